/* SPDX-License-Identifier: Apache-2.0 */
/*
 * product_avx512.c - integer matrix products with VNNI: 64 terms an instruction.
 *
 * The byte instruction takes one factor without a sign, so the weights' sign bit is flipped on the way
 * in, which adds 128 to each: a row's sums come out too large by 128 times the sum of its activations.
 * What overflows on the way does so modulo 2^32 and comes back.
 */
#include "gpu/codec/internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "gpu/codec/cpu_vector.h"

#define TILE_ROWS 4u
#define TILE_OUTPUTS 4u
#define STEP_I8 64u

/* gcc 12 copies the sums twice a step around the intrinsics: 173 G terms/s instead of 190. */
KERNEL void dot_i8(__m512i *acc, __m512i positive, __m512i x)
{
	__asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(positive), "v"(x));
}

KERNEL int32_t row_offset_i8(const int8_t *a, uint32_t k)
{
	__m512i sum = _mm512_setzero_si512();
	const __m512i flip = _mm512_set1_epi8(-128);

	for (uint32_t i = 0; i < k; i += STEP_I8) {
		__mmask64 m = k - i < STEP_I8 ? ((__mmask64)1 << (k - i)) - 1u : ~(__mmask64)0;

		sum = _mm512_dpbusd_epi32(sum, flip, _mm512_maskz_loadu_epi8(m, a + i));
	}
	return _mm512_reduce_add_epi32(sum);
}

/* The sums of four vectors' elements. */
KERNEL __m128i sums_of(const __m512i *v)
{
	__m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
				     _mm512_unpackhi_epi32(v[0], v[1]));
	__m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
				     _mm512_unpackhi_epi32(v[2], v[3]));
	__m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
	__m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));

	return _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
}

KERNEL void step_i8(const int8_t *a, size_t a_pitch, const int8_t *const *w, size_t i,
		    unsigned rows, __mmask64 m, __m512i acc[TILE_ROWS][TILE_OUTPUTS])
{
	__m512i y[TILE_OUTPUTS];

	UNROLLED
	for (unsigned o = 0; o < TILE_OUTPUTS; o++)
		y[o] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(m, w[o] + i),
					_mm512_set1_epi8(-128));
	UNROLLED
	for (unsigned r = 0; r < rows; r++) {
		__m512i x = _mm512_maskz_loadu_epi8(m, a + r * a_pitch + i);

		UNROLLED
		for (unsigned o = 0; o < TILE_OUTPUTS; o++)
			dot_i8(&acc[r][o], y[o], x);
	}
}

KERNEL void tile_i8(const int8_t *a, size_t a_pitch, const int8_t *const *w, uint32_t k,
		    unsigned rows, const int32_t *offset, int32_t (*sum)[TILE_OUTPUTS])
{
	__m512i acc[TILE_ROWS][TILE_OUTPUTS];
	uint32_t i = 0;

	UNROLLED
	for (unsigned r = 0; r < rows; r++) {
		UNROLLED
		for (unsigned o = 0; o < TILE_OUTPUTS; o++)
			acc[r][o] = _mm512_setzero_si512();
	}
	for (; k - i >= STEP_I8; i += STEP_I8)
		step_i8(a, a_pitch, w, i, rows, ~(__mmask64)0, acc);
	if (i < k)
		step_i8(a, a_pitch, w, i, rows, ((__mmask64)1 << (k - i)) - 1u, acc);
	UNROLLED
	for (unsigned r = 0; r < rows; r++)
		_mm_storeu_si128((__m128i *)(void *)sum[r],
				 _mm_sub_epi32(sums_of(acc[r]), _mm_set1_epi32(offset[r])));
}

#include "gpu/codec/product_drive.inc"

void product_avx512_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
		       uint32_t outputs, uint32_t k, int32_t *out)
{
	drive_i8(a, a_pitch, w, rows, outputs, k, out);
}

#endif
