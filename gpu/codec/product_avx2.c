/* SPDX-License-Identifier: Apache-2.0 */
/*
 * product_avx2.c - integer matrix products with AVX2: bytes are widened, because its byte instruction
 * saturates.
 */
#include "gpu/codec/internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "gpu/codec/cpu_vector.h"

#define TILE_ROWS 4u
#define TILE_OUTPUTS 4u
#define STEP 16u

KERNEL int32_t row_offset_i8(const int8_t *a, uint32_t k)
{
	(void)a;
	(void)k;
	return 0;
}

KERNEL __m256i load_i8(const int8_t *p)
{
	return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* The sums of four vectors' elements. */
KERNEL __m128i sums_of(const __m256i *v)
{
	__m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));

	return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

/* Two rows by four outputs: what 16 registers hold. */
KERNEL void pair_i8(const int8_t *a, size_t a_pitch, const int8_t *const *w, uint32_t k,
		    unsigned rows, int32_t (*sum)[TILE_OUTPUTS])
{
	__m256i acc[2][TILE_OUTPUTS];
	uint32_t i = 0;

	UNROLLED
	for (unsigned o = 0; o < TILE_OUTPUTS; o++)
		acc[0][o] = acc[1][o] = _mm256_setzero_si256();
	for (; k - i >= STEP; i += STEP) {
		__m256i x[2];

		x[0] = load_i8(a + i);
		x[1] = load_i8(a + (rows - 1u) * a_pitch + i);
		UNROLLED
		for (unsigned o = 0; o < TILE_OUTPUTS; o++) {
			__m256i y = load_i8(w[o] + i);

			for (unsigned r = 0; r < rows; r++)
				acc[r][o] = _mm256_add_epi32(acc[r][o], _mm256_madd_epi16(x[r], y));
		}
	}
	for (unsigned r = 0; r < rows; r++) {
		_mm_storeu_si128((__m128i *)(void *)sum[r], sums_of(acc[r]));
		for (unsigned o = 0; o < TILE_OUTPUTS; o++)
			for (uint32_t j = i; j < k; j++)
				sum[r][o] += a[r * a_pitch + j] * w[o][j];
	}
}

KERNEL void tile_i8(const int8_t *a, size_t a_pitch, const int8_t *const *w, uint32_t k,
		    unsigned rows, const int32_t *offset, int32_t (*sum)[TILE_OUTPUTS])
{
	(void)offset;
	pair_i8(a, a_pitch, w, k, rows < 2 ? 1 : 2, sum);
	if (rows > 2)
		pair_i8(a + 2u * a_pitch, a_pitch, w, k, rows - 2u, sum + 2);
}

#include "gpu/codec/product_drive.inc"

void product_avx2_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
		     uint32_t outputs, uint32_t k, int32_t *out)
{
	drive_i8(a, a_pitch, w, rows, outputs, k, out);
}

#endif
