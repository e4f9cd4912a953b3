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

#ifndef __clang__ /* which makes vectors at any level */
#pragma GCC push_options
#pragma GCC optimize("O3,vect-cost-model=dynamic")
#endif
#include "gpu/codec/model_loops.inc"
#ifndef __clang__
#pragma GCC pop_options
#endif

#define VNNI __attribute__((target("avx512vnni")))
#define ROWS 4u
#define OUTS 4u
/* Products of a weight and a value that one int32 holds: 8 * 32767 * 8191 < 2^31. */
#define KEYS_EXACT 8u

/* Of four vectors: the sums of their elements. */
VNNI static inline __m128i sums_of(__m512i a, __m512i b, __m512i c, __m512i d)
{
	__m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
	__m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
	__m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd),
				       _mm512_unpackhi_epi64(ab, cd));
	__m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all),
					_mm512_extracti64x4_epi64(all, 1));

	return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/*
 * sum + unsigned bytes of x times signed bytes of w.  Not the intrinsic: gcc 12 copies every sum around it, twice
 * as many instructions in all.
 */
VNNI static inline __m512i add_products(__m512i sum, __m512i x, __m512i w)
{
	__asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
	return sum;
}

/* OUTS sums of one row */
struct sums {
	__m512i a, b, c, d;
};

VNNI static inline void sums_add(struct sums *s, const int8_t *a, __m512i w0, __m512i w1,
				 __m512i w2, __m512i w3)
{
	__m512i x = _mm512_xor_si512(_mm512_loadu_si512(a), _mm512_set1_epi8((char)0x80));

	s->a = add_products(s->a, x, w0);
	s->b = add_products(s->b, x, w1);
	s->c = add_products(s->c, x, w2);
	s->d = add_products(s->d, x, w3);
}

VNNI static inline void sums_store(const struct sums *s, __m128i offset, int32_t *acc)
{
	_mm_storeu_si128((void *)acc, _mm_sub_epi32(sums_of(s->a, s->b, s->c, s->d), offset));
}

/* ROWS rows, or one, by OUTS: written out, so that sums stay in registers. */
VNNI static void gemm_tile(const int8_t *a, size_t a_pitch, const int8_t *w, size_t w_pitch,
			   const int32_t *w_sums, uint32_t depth, int32_t *acc, size_t acc_pitch)
{
	const __m128i offset = _mm_slli_epi32(_mm_loadu_si128((const void *)w_sums), 7);
	struct sums r0 = { _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
			   _mm512_setzero_si512() };
	struct sums r1 = r0, r2 = r0, r3 = r0;

	for (uint32_t i = 0; i < depth; i += 64) {
		const __m512i w0 = _mm512_loadu_si512(w + i);
		const __m512i w1 = _mm512_loadu_si512(w + w_pitch + i);
		const __m512i w2 = _mm512_loadu_si512(w + 2 * w_pitch + i);
		const __m512i w3 = _mm512_loadu_si512(w + 3 * w_pitch + i);

		sums_add(&r0, a + i, w0, w1, w2, w3);
		sums_add(&r1, a + a_pitch + i, w0, w1, w2, w3);
		sums_add(&r2, a + 2 * a_pitch + i, w0, w1, w2, w3);
		sums_add(&r3, a + 3 * a_pitch + i, w0, w1, w2, w3);
	}
	sums_store(&r0, offset, acc);
	sums_store(&r1, offset, acc + acc_pitch);
	sums_store(&r2, offset, acc + 2 * acc_pitch);
	sums_store(&r3, offset, acc + 3 * acc_pitch);
}

VNNI static void gemm_row(const int8_t *a, const int8_t *w, size_t w_pitch, const int32_t *w_sums,
			  uint32_t depth, int32_t *acc)
{
	const __m128i offset = _mm_slli_epi32(_mm_loadu_si128((const void *)w_sums), 7);
	struct sums r = { _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
			  _mm512_setzero_si512() };

	for (uint32_t i = 0; i < depth; i += 64)
		sums_add(&r, a + i, _mm512_loadu_si512(w + i), _mm512_loadu_si512(w + w_pitch + i),
			 _mm512_loadu_si512(w + 2 * w_pitch + i),
			 _mm512_loadu_si512(w + 3 * w_pitch + i));
	sums_store(&r, offset, acc);
}

VNNI static void gemm_one(const int8_t *a, const int8_t *w, int32_t w_sum, uint32_t depth,
			  int32_t *acc)
{
	const __m512i flip = _mm512_set1_epi8((char)0x80);
	__m512i sum = _mm512_setzero_si512();

	for (uint32_t i = 0; i < depth; i += 64)
		sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(_mm512_loadu_si512(a + i), flip),
					  _mm512_loadu_si512(w + i));
	*acc = _mm512_reduce_add_epi32(sum) - 128 * w_sum;
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
			gemm_tile(a + r * a_pitch, a_pitch, y, w_pitch, w_sums + o, depth,
				  acc + r * acc_pitch + o, acc_pitch);
		for (; r < rows; r++)
			gemm_row(a + r * a_pitch, y, w_pitch, w_sums + o, depth,
				 acc + r * acc_pitch + o);
	}
	for (; o < outs; o++)
		for (uint32_t r = 0; r < rows; r++)
			gemm_one(a + r * a_pitch, w + o * w_pitch, w_sums[o], depth,
				 acc + r * acc_pitch + o);
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
	.gemm = gemm,
	.attend = attend,
	MSPEC_ROW_KERNELS,
};
#endif
