/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_avx512.c - the heavy loops of the `model` speculator with AVX-512 VNNI.
 */
#include "gpu/codec/internal.h"
#include "gpu/codec/model_internal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#ifndef __clang__ /* which makes vectors at any level */
#pragma GCC push_options
#pragma GCC optimize("O3,vect-cost-model=dynamic")
#endif
#include "gpu/codec/model_loops.inc"
#ifndef __clang__
#pragma GCC pop_options
#endif

#define VNNI __attribute__((target("avx512vnni")))
/* Products of a weight and a value that one int32 holds: 8 * 32767 * 8191 < 2^31. */
#define KEYS_EXACT 8u

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

/* Scores become weights: model_exp() eight at a time.  Its shift must be one of 1..62. */
VNNI static uint64_t weigh(const struct mspec_attend *a, int32_t max)
{
	const __m256i top = _mm256_set1_epi32(max);
	const __m512i mant = _mm512_set1_epi64(a->step.mant), one = _mm512_set1_epi64(1);
	const __m512i half = _mm512_set1_epi64((int64_t)1 << (-a->step.exp - 1));
	const __m128i shift = _mm_cvtsi32_si128(-a->step.exp);
	__m512i total = _mm512_setzero_si512();

	for (uint32_t j = 0; j < a->keys; j += 8) {
		const __mmask8 live = a->keys - j < 8 ? (__mmask8)((1u << (a->keys - j)) - 1u)
						      : 0xff;
		__m256i below = _mm256_sub_epi32(top, _mm256_loadu_si256((void *)(a->scores + j)));
		__m512i x = _mm512_mul_epu32(_mm512_cvtepu32_epi64(below), mant);
		__m512i n, p;

		x = _mm512_srl_epi64(_mm512_add_epi64(x, half), shift);
		n = _mm512_srli_epi64(x, MODEL_EXP_BITS);
		x = _mm512_and_si512(x, _mm512_set1_epi64((1 << MODEL_EXP_BITS) - 1));
		/* Four bytes of two-byte entries: one entry is behind the table, and is masked off. */
		p = _mm512_cvtepu32_epi64(_mm512_i64gather_epi32(x, a->exp, 2));
		p = _mm512_and_si512(p, _mm512_set1_epi64(0xffff));
		p = _mm512_add_epi64(p, _mm512_srli_epi64(_mm512_sllv_epi64(one, n), 1));
		p = _mm512_maskz_srlv_epi64(
			_mm512_mask_cmple_epu64_mask(live, n, _mm512_set1_epi64(MODEL_P_BITS)), p,
			n);
		total = _mm512_add_epi64(total, p);
		_mm256_storeu_si256((void *)(a->scores + j), _mm512_cvtepi64_epi32(p));
	}
	return (uint64_t)_mm512_reduce_add_epi64(total);
}

VNNI static uint64_t attend(const struct mspec_attend *a)
{
	const int32_t max = score_all(a);
	uint64_t total = 0;

	if (a->step.exp <= -1 && a->step.exp >= -62) {
		total = weigh(a, max);
	} else {
		for (uint32_t j = 0; j < a->keys; j++) {
			uint32_t p = model_exp(a->exp, (uint32_t)max - (uint32_t)a->scores[j],
					       a->step);

			a->scores[j] = (int32_t)p;
			total += p;
		}
	}
	a->scores[a->keys] = 0;
	for (uint32_t column = 0; column < a->dim; column += 16)
		mix_16(a, column);
	return total;
}

const struct mspec_kernels mspec_kernels_avx512 = {
	.name = "avx512",
	.product = product_avx512_i8,
	.attend = attend,
	MSPEC_ROW_KERNELS,
};
#endif
