/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_avx512.c - the heavy loops of the `model` speculator with AVX-512 VNNI.
 *
 * vpdpbusd multiplies unsigned by signed bytes: rows get 128 added, and 128 times the weights' sum is taken
 * away again.  It does not saturate, so sums are exact.
 */
#include "gpu/codec/model_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#define VNNI __attribute__((target("avx512vnni")))
#define ROWS 4u
#define OUTS 4u
/* Products of a weight and a value that one int32 holds: 8 * 32767 * 8191 < 2^31. */
#define KEYS_EXACT 8u

/* rows <= ROWS, outs <= OUTS; both constant where it is inlined */
VNNI static inline __attribute__((always_inline)) void gemm_tile(
	const int8_t *a, size_t a_pitch, uint32_t rows, const int8_t *w, size_t w_pitch,
	const int32_t *w_sums, uint32_t outs, uint32_t depth, int32_t *acc, size_t acc_pitch)
{
	const __m512i flip = _mm512_set1_epi8((char)0x80);
	__m512i sum[ROWS][OUTS];

	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t o = 0; o < outs; o++)
			sum[r][o] = _mm512_setzero_si512();
	for (uint32_t i = 0; i < depth; i += 64) {
		__m512i y[OUTS];

		for (uint32_t o = 0; o < outs; o++)
			y[o] = _mm512_loadu_si512(w + o * w_pitch + i);
		for (uint32_t r = 0; r < rows; r++) {
			__m512i x = _mm512_xor_si512(_mm512_loadu_si512(a + r * a_pitch + i), flip);

			for (uint32_t o = 0; o < outs; o++)
				sum[r][o] = _mm512_dpbusd_epi32(sum[r][o], x, y[o]);
		}
	}
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t o = 0; o < outs; o++)
			acc[r * acc_pitch + o] = _mm512_reduce_add_epi32(sum[r][o]) -
						 128 * w_sums[o];
}

VNNI static void gemm(const int8_t *a, size_t a_pitch, uint32_t rows, const int8_t *w,
		      size_t w_pitch, const int32_t *w_sums, uint32_t outs, uint32_t depth,
		      int32_t *acc, size_t acc_pitch)
{
	uint32_t o = 0;

	for (; o + OUTS <= outs; o += OUTS) {
		const int8_t *y = w + o * w_pitch;
		uint32_t r = 0;

		for (; r + ROWS <= rows; r += ROWS)
			gemm_tile(a + r * a_pitch, a_pitch, ROWS, y, w_pitch, w_sums + o, OUTS,
				  depth, acc + r * acc_pitch + o, acc_pitch);
		for (; r < rows; r++)
			gemm_tile(a + r * a_pitch, a_pitch, 1, y, w_pitch, w_sums + o, OUTS, depth,
				  acc + r * acc_pitch + o, acc_pitch);
	}
	for (; o < outs; o++)
		for (uint32_t r = 0; r < rows; r++)
			gemm_tile(a + r * a_pitch, a_pitch, 1, w + o * w_pitch, w_pitch, w_sums + o,
				  1, depth, acc + r * acc_pitch + o, acc_pitch);
}

VNNI static int32_t score_all(const struct mspec_attend *a)
{
	__m512i query[8]; /* dim <= 256 */
	const uint32_t vectors = (a->dim + 31u) / 32u;
	const __mmask32 last = a->dim % 32u ? 0xffffu : 0xffffffffu;
	int32_t max = INT32_MIN;

	for (uint32_t i = 0; i < vectors; i++)
		query[i] = _mm512_maskz_loadu_epi16(i + 1 < vectors ? 0xffffffffu : last,
						    a->query + 32u * i);
	for (uint32_t j = 0; j < a->keys; j++) {
		const int16_t *k = a->k + (size_t)j * a->dim;
		__m512i sum = _mm512_setzero_si512();

		for (uint32_t i = 0; i < vectors; i++)
			sum = _mm512_dpwssd_epi32(
				sum, query[i],
				_mm512_maskz_loadu_epi16(i + 1 < vectors ? 0xffffffffu : last,
							 k + 32u * i));
		a->scores[j] = _mm512_reduce_add_epi32(sum);
		max = a->scores[j] > max ? a->scores[j] : max;
	}
	return max;
}

/* sums[0..15] += of 16 columns, over keys in groups that an int32 holds; p: keys rounded up to 8, zeros behind */
VNNI static void mix_16(const struct mspec_attend *a, uint32_t column)
{
	const __m256i zero = _mm256_setzero_si256();
	__m512i low = _mm512_setzero_si512(), high = low;

	for (uint32_t first = 0; first < a->keys; first += KEYS_EXACT) {
		__m512i sum = _mm512_setzero_si512();

		for (uint32_t j = first; j < first + KEYS_EXACT && j < a->keys; j += 2) {
			const int16_t *v = a->v + (size_t)j * a->dim + column;
			__m256i x = _mm256_loadu_si256((const void *)v);
			__m256i y = j + 1 < a->keys ? _mm256_loadu_si256((const void *)(v + a->dim))
						    : zero;
			__m512i pair = _mm512_inserti64x4(
				_mm512_castsi256_si512(_mm256_unpacklo_epi16(x, y)),
				_mm256_unpackhi_epi16(x, y), 1);

			sum = _mm512_dpwssd_epi32(
				sum, pair,
				_mm512_set1_epi32(a->scores[j] | a->scores[j + 1] << 16));
		}
		low = _mm512_add_epi64(low, _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum)));
		high = _mm512_add_epi64(high,
					_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(sum, 1)));
	}
	/* Unpacking left columns 0-3 8-11 in `low` and 4-7 12-15 in `high`. */
	_mm256_storeu_si256((void *)(a->sums + column), _mm512_castsi512_si256(low));
	_mm256_storeu_si256((void *)(a->sums + column + 8), _mm512_extracti64x4_epi64(low, 1));
	_mm256_storeu_si256((void *)(a->sums + column + 4), _mm512_castsi512_si256(high));
	_mm256_storeu_si256((void *)(a->sums + column + 12), _mm512_extracti64x4_epi64(high, 1));
}

VNNI static uint64_t attend(const struct mspec_attend *a)
{
	const int32_t max = score_all(a);
	uint64_t total = 0;

	for (uint32_t j = 0; j < a->keys; j++) {
		uint32_t p = model_exp(a->exp, (uint32_t)max - (uint32_t)a->scores[j], a->step);

		a->scores[j] = (int32_t)p;
		total += p;
	}
	a->scores[a->keys] = 0;
	for (uint32_t column = 0; column < a->dim; column += 16)
		mix_16(a, column);
	return total;
}

const struct mspec_kernels mspec_kernels_avx512 = {
	.name = "avx512",
	.gemm = gemm,
	.attend = attend,
};
#endif
