/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_slots.h - a table's entries for 8 lanes by plain loads, where the gather instruction is microcode.
 * Included by files that are compiled for AVX2 at least.
 */
#ifndef SKVCD_GPU_CODEC_CPU_SLOTS_H
#define SKVCD_GPU_CODEC_CPU_SLOTS_H

#include <immintrin.h>
#include <stdint.h>

static inline __attribute__((always_inline)) __m128i slots2(const uint32_t *base, uint64_t two)
{
	return _mm_insert_epi32(_mm_cvtsi32_si128((int)base[(uint32_t)two]), (int)base[two >> 32],
				1);
}

/* base[index] */
static inline __attribute__((always_inline)) __m256i slots8(const uint32_t *base, __m256i index)
{
	__m128i low = _mm256_castsi256_si128(index), high = _mm256_extracti128_si256(index, 1);
	__m128i e01 = slots2(base, (uint64_t)_mm_cvtsi128_si64(low));
	__m128i e23 = slots2(base, (uint64_t)_mm_extract_epi64(low, 1));
	__m128i e45 = slots2(base, (uint64_t)_mm_cvtsi128_si64(high));
	__m128i e67 = slots2(base, (uint64_t)_mm_extract_epi64(high, 1));

	return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi64(e01, e23)),
				       _mm_unpacklo_epi64(e45, e67), 1);
}

#endif
