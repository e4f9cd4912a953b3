/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_luts.h - lane permutations by 8-bit mask, made by the preprocessor so that they are constant.
 * Included by one kernel file each.
 */
#ifndef SKVCD_GPU_CODEC_CPU_LUTS_H
#define SKVCD_GPU_CODEC_CPU_LUTS_H

#include <stdint.h>

#define LUT_RANK(m, l) __builtin_popcount((m) & ((1u << (l)) - 1u))
#define LUT_LANE_IF(m, l, k) (((m) >> (l)&1u) && LUT_RANK(m, l) == (k) ? (l) : 0)
#define LUT_NTH(m, k)                                                         \
	(LUT_LANE_IF(m, 1, k) + LUT_LANE_IF(m, 2, k) + LUT_LANE_IF(m, 3, k) + \
	 LUT_LANE_IF(m, 4, k) + LUT_LANE_IF(m, 5, k) + LUT_LANE_IF(m, 6, k) + \
	 LUT_LANE_IF(m, 7, k))

#define LUT_4(f, m) f(m), f((m) + 1), f((m) + 2), f((m) + 3)
#define LUT_16(f, m) LUT_4(f, m), LUT_4(f, (m) + 4), LUT_4(f, (m) + 8), LUT_4(f, (m) + 12)
#define LUT_64(f, m) LUT_16(f, m), LUT_16(f, (m) + 16), LUT_16(f, (m) + 32), LUT_16(f, (m) + 48)
#define LUT_256(f)                                                          \
	{                                                                   \
		LUT_64(f, 0), LUT_64(f, 64), LUT_64(f, 128), LUT_64(f, 192) \
	}

/* A set lane takes the next word in order. */
#define LUT_EXPAND(m)                                                                           \
	{                                                                                       \
		LUT_RANK(m, 0), LUT_RANK(m, 1), LUT_RANK(m, 2), LUT_RANK(m, 3), LUT_RANK(m, 4), \
			LUT_RANK(m, 5), LUT_RANK(m, 6), LUT_RANK(m, 7)                          \
	}

/* Set lanes go to the top lanes, in order. */
#define LUT_TOP(m, j) LUT_NTH(m, (j)-8 + __builtin_popcount(m))
#define LUT_COMPRESS(m)                                                                    \
	{                                                                                  \
		LUT_TOP(m, 0), LUT_TOP(m, 1), LUT_TOP(m, 2), LUT_TOP(m, 3), LUT_TOP(m, 4), \
			LUT_TOP(m, 5), LUT_TOP(m, 6), LUT_TOP(m, 7)                        \
	}

static const uint8_t lut_expand[256][8] = LUT_256(LUT_EXPAND);
static const uint8_t lut_compress[256][8] = LUT_256(LUT_COMPRESS);

#endif
