/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_core.h - the integer arithmetic of the `model` speculator: what these functions compute decides
 * mu, so they are the format.  Every implementation (scalar, AVX-512, CUDA) shares them.
 *
 * Numbers.  Real values are integers in fixed point: the hidden state has a fraction that the parameters
 * state, projections have MODEL_FRAC bits, mu and errors RESIDUAL_FRAC.  Scales are a mantissa of 24 bits
 * (16 for a weight's row) and an exponent.  What leaves an int32 saturates.
 *
 * Sums are of integers and never overflow for shapes within model.h's bounds, so their order is free and
 * a row's result depends on nothing but the row: not on batch, block, device or thread.
 *
 *   row -> int8 or 15-bit integers: q = y * Q / max|y|, rounded; Q = 127 or 32639 (two int8 planes)
 *   product: sum of int8 * int8 by planes in int32, put together in int64 (model_join)
 *   result: sum * row scale * weight scale, one multiply and one rounding shift (model_rescale)
 *
 * Shifts of negative values are arithmetic.  No floating point, no allocation, no libc here: compilable
 * by nvcc.
 */
#ifndef SKVCD_GPU_CODEC_MODEL_CORE_H
#define SKVCD_GPU_CODEC_MODEL_CORE_H

#include "gpu/codec/residual.h"

#define MODEL_FRAC 20	  /* of q, k, v before they become mu */
#define MODEL_MLP_FRAC 16 /* of gate and up */
#define MODEL_Q8 127	  /* largest of an int8 row */
#define MODEL_Q16 32639	  /* of a row in two planes: 127 * 256 + 127 */
#define MODEL_QUERY 1023 /* of a query; |key| <= MODEL_KV, head_dim <= 256: a score fits an int32 */
#define MODEL_KV 8191	 /* largest of a key or value in the context */
#define MODEL_P_BITS 15	 /* of a softmax weight; the largest is 2^15 - 1 */
#define MODEL_EXP_BITS 10  /* index of the exponential's table: fraction of an octave */
#define MODEL_SIG_STEP 7   /* log2 of steps per unit of the sigmoid's table */
#define MODEL_SIG_RANGE 16 /* the table ends there */
#define MODEL_SIG_FRAC 24
#define MODEL_ROPE_FRAC 30

struct model_scale {
	uint32_t mant; /* < 2^24 */
	int32_t exp;   /* value: mant * 2^exp */
};

CODEC_HD int32_t model_bits(uint64_t x) /* position of the highest one bit, from 1; 0 for 0 */
{
#ifdef __CUDA_ARCH__
	return 64 - __clzll((long long)x);
#else
	return x ? 64 - __builtin_clzll(x) : 0;
#endif
}

CODEC_HD int32_t model_sat32(int64_t x)
{
	return x > 0x7fffffff ? 0x7fffffff : x < -0x7fffffff ? -0x7fffffff : (int32_t)x;
}

CODEC_HD uint32_t model_abs(int32_t x) /* |x| for every x */
{
	return x < 0 ? 0u - (uint32_t)x : (uint32_t)x;
}

/* x * 2^-shift, rounded half up, for any shift; saturates when it goes up. |x| < 2^62. */
CODEC_HD int64_t model_shift(int64_t x, int32_t shift)
{
	if (shift > 62)
		return 0;
	if (shift > 0)
		return (x + ((int64_t)1 << (shift - 1))) >> shift;
	if (x == 0 || shift == 0)
		return x;
	if (-shift + model_bits((uint64_t)(x < 0 ? -x : x)) > 62)
		return x < 0 ? -((int64_t)1 << 62) : (int64_t)1 << 62;
	return x * ((int64_t)1 << -shift);
}

/*
 * floor(sqrt(x)) and a / b, x and a below 2^63.  A GPU has no division of integers: there doubles estimate,
 * and integers put the estimate right, so that it is exact whatever the estimate was.
 */
#ifdef __CUDA_ARCH__
CODEC_HD uint32_t model_sqrt(uint64_t x)
{
	uint64_t r = (uint64_t)__dsqrt_rn((double)x);

	while (r * r > x)
		r--;
	while ((r + 1u) * (r + 1u) <= x)
		r++;
	return (uint32_t)r;
}

CODEC_HD uint64_t model_div(uint64_t a, uint32_t b)
{
	const double inverse = __drcp_rn((double)b);
	uint64_t q = (uint64_t)((double)a * inverse);
	int64_t rest = (int64_t)(a - q * b);

	q += (uint64_t)(int64_t)((double)rest * inverse);
	rest = (int64_t)(a - q * b);
	while (rest < 0) {
		rest += b;
		q--;
	}
	while (rest >= (int64_t)b) {
		rest -= b;
		q++;
	}
	return q;
}
#else
CODEC_HD uint32_t model_sqrt(uint64_t x)
{
	uint64_t r = 0, bit = (uint64_t)1 << 62;

	while (bit) {
		if (x >= r + bit) {
			x -= r + bit;
			r = (r >> 1) + bit;
		} else {
			r >>= 1;
		}
		bit >>= 2;
	}
	return (uint32_t)r;
}

CODEC_HD uint64_t model_div(uint64_t a, uint32_t b)
{
	return a / b;
}
#endif

/* ---- norms ---- */

/* One over a row's root mean square, in units of its integers: inv * 2^exp, inv in [2^30, 2^31]. */
struct model_norm {
	uint32_t inv;
	int32_t exp;
};

/* How far a row's values are shifted before they are squared. */
CODEC_HD int32_t model_norm_shift(uint32_t max)
{
	int32_t s = model_bits(max) - 23;

	return s > 0 ? s : 0;
}

/* squares: of the values >> shift.  eps: in squares of the values' unit. */
CODEC_HD struct model_norm model_norm_of(uint64_t squares, uint32_t count, uint64_t eps,
					 int32_t shift)
{
	uint64_t mean = model_div(squares, count) + (eps >> (2 * shift));
	struct model_norm n;
	int32_t up;

	if (mean == 0)
		mean = 1;
	up = (62 - model_bits(mean)) & ~1; /* even; mean < 2^62 */
	n.inv = (uint32_t)model_div((uint64_t)1 << 61, model_sqrt(mean << up));
	n.exp = up / 2 - shift - 61;
	return n;
}

/* value / rms in MODEL_FRAC, times a norm's weight of weight_frac fraction bits */
CODEC_HD int32_t model_norm_apply(int32_t value, struct model_norm n, int32_t weight,
				  int32_t weight_frac)
{
	int64_t x = model_sat32(model_shift((int64_t)value * n.inv, -n.exp - MODEL_FRAC));

	return model_sat32(model_shift(x * weight, weight_frac));
}

/* ---- rows to few bits ---- */

/*
 * Rows with few large values lose less when they are mixed first: blocks of a Hadamard matrix, whose inverse is
 * folded into the weights.  Values are cut to MODEL_MIX_BITS before, so that sums of a block fit an int32.
 */
#define MODEL_MIX_BITS 22
#define MODEL_MIX_MAX 256u

/* The block for a row of this length: the largest power of two that divides it. */
CODEC_HD uint32_t model_mix_block(uint32_t count)
{
	uint32_t block = count & (0u - count);

	return block < MODEL_MIX_MAX ? block : MODEL_MIX_MAX;
}

struct model_quant {
	int32_t shift; /* of the row's values, down, before they are multiplied */
	uint32_t max;  /* of their magnitudes then; < 2^31 */
	uint64_t inv;  /* (Q << 40) / max */
};

CODEC_HD struct model_quant model_quant_of(uint64_t max, uint32_t q_max)
{
	struct model_quant q;

	q.shift = model_bits(max) - 31;
	if (q.shift < 0)
		q.shift = 0;
	q.max = (uint32_t)(max >> q.shift);
	q.inv = q.max ? model_div((uint64_t)q_max << 40, q.max) : 0;
	return q;
}

CODEC_HD int32_t model_quantise(int64_t value, struct model_quant q)
{
	return (int32_t)(((value >> q.shift) * (int64_t)q.inv + ((int64_t)1 << 39)) >> 40);
}

/* The high plane of a value in two; the low one is value - 256 * high, -128 .. 127. */
CODEC_HD int32_t model_high(int32_t value)
{
	return (value + 128) >> 8;
}

/* What 1 of a quantised row stands for: max / Q * 2^(shift - frac) [/ rms]. */
CODEC_HD struct model_scale model_row_scale(struct model_quant q, uint32_t q_max, int32_t frac,
					    struct model_norm n)
{
	uint64_t m = model_div((uint64_t)q.max * n.inv, q_max);
	struct model_scale s;
	int32_t down = model_bits(m) - 24;

	s.mant = (uint32_t)(down > 0 ? m >> down : m);
	s.exp = (down > 0 ? down : 0) + q.shift - frac + n.exp;
	return s;
}

/* For a row that is not normalised. */
CODEC_HD struct model_norm model_norm_none(void)
{
	struct model_norm n;

	n.inv = 1u << 30;
	n.exp = -30;
	return n;
}

/* ---- products ---- */

#define MODEL_WIDE_ROW 1u    /* rows in two planes */
#define MODEL_WIDE_WEIGHT 2u /* weights in two planes */

/*
 * Planes to one sum: hh high * high, hl row high * weight low, lh row low * weight high.  A wide weight
 * with a wide row leaves low * low out and counts in units of 256.
 */
CODEC_HD int64_t model_join(uint32_t wide, int32_t hh, int32_t hl, int32_t lh)
{
	if (wide == 0)
		return hh;
	return (int64_t)hh * 256 + (wide & MODEL_WIDE_ROW ? lh : 0) +
	       (wide & MODEL_WIDE_WEIGHT ? hl : 0);
}

/* A weight's scale is that of its two planes; what a sum's unit is in terms of it, as a power of two. */
CODEC_HD int32_t model_join_exp(uint32_t wide)
{
	return wide == MODEL_WIDE_WEIGHT ? 0 : 8;
}

/* sum * row scale * (mant * 2^exp) in fixed point; |sum| < 2^38 */
CODEC_HD int64_t model_rescale64(int64_t sum, struct model_scale row, uint32_t mant, int32_t exp,
				 int32_t frac)
{
	uint64_t m = (uint64_t)row.mant * mant >> 16;

	return model_shift(sum * (int64_t)m, -(16 + row.exp + exp + frac));
}

CODEC_HD int32_t model_rescale(int64_t sum, struct model_scale row, uint32_t mant, int32_t exp,
			       int32_t frac)
{
	return model_sat32(model_rescale64(sum, row, mant, exp, frac));
}

/* value * scale, both in fixed point */
CODEC_HD int32_t model_times(int32_t value, struct model_scale s)
{
	return model_sat32(model_shift((int64_t)value * s.mant, -s.exp));
}

/* ---- attention ---- */

/* (a, b) turned by an angle of this cosine and sine, MODEL_ROPE_FRAC fraction bits. */
CODEC_HD void model_turn(int32_t *a, int32_t *b, int32_t cosine, int32_t sine)
{
	int64_t x = (int64_t)*a * cosine - (int64_t)*b * sine;
	int64_t y = (int64_t)*b * cosine + (int64_t)*a * sine;

	*a = model_sat32(model_shift(x, MODEL_ROPE_FRAC));
	*b = model_sat32(model_shift(y, MODEL_ROPE_FRAC));
}

/* A cache value in RESIDUAL_FRAC fixed point as the context keeps it, with frac fraction bits. */
CODEC_HD int32_t model_kv(int32_t fixed, int32_t frac)
{
	int64_t v = model_shift(fixed, 16 - frac);

	return v > MODEL_KV ? MODEL_KV : v < -MODEL_KV ? -MODEL_KV : (int32_t)v;
}

/* Weight of a score `below` the largest; step: what one score is in 2^-MODEL_EXP_BITS octaves. */
CODEC_HD uint32_t model_exp(const uint16_t *table, uint32_t below, struct model_scale step)
{
	int64_t x = model_shift((int64_t)((uint64_t)below * step.mant), -step.exp);
	int64_t n = x >> MODEL_EXP_BITS;
	uint32_t top = table[x & ((1 << MODEL_EXP_BITS) - 1)];

	if (n == 0)
		return top;
	return n > MODEL_P_BITS ? 0 : (top + (1u << (n - 1))) >> n;
}

/* ---- errors ---- */

/* log2 of half the gap between a finite pattern's neighbours, in RESIDUAL_FRAC fixed point; may be negative */
CODEC_HD int32_t model_half_gap(struct residual_type t, uint32_t pattern)
{
	uint32_t e = (pattern & ((1u << (t.bits - 1u)) - 1u)) >> t.mant_bits;

	return (int32_t)(e ? e : 1u) - t.bias - t.mant_bits + RESIDUAL_FRAC - 1;
}

#define MODEL_SHAPE_FIRST (-10)
#define MODEL_SHAPE_COUNT 19
/* 256 * u * density(u) / (distribution(u) - 1/2) of the normal distribution, u = 2^(i / 4) */
#define MODEL_SHAPE_INSIDE                                                                       \
	{                                                                                        \
		253, 252, 251, 249, 246, 241, 235, 227, 216, 201, 181, 156, 126, 92, 58, 29, 11, \
			2, 0                                                                     \
	}

/*
 * What an error tells of the value before it was rounded to its pattern, which lies within half a gap: a
 * guess inside that cell may well be right, one outside is wrong by what it lies outside.  inside: 256ths of
 * the error that count in the cell, by 4 log2 of half a gap over sigma from MODEL_SHAPE_FIRST; sigma is given
 * as 4 log2, in quarter octaves of RESIDUAL_FRAC fixed point.
 */
CODEC_HD int32_t model_shape(const uint16_t *inside, int32_t error, int32_t half_gap, int32_t sigma)
{
	int32_t i = 4 * half_gap - sigma - MODEL_SHAPE_FIRST;
	int64_t h = half_gap < 0 ? 0 : half_gap > 30 ? (int64_t)1 << 30 : (int64_t)1 << half_gap;
	int64_t a = model_abs(error), in = a < h ? a : h, y;

	if (i < 0)
		return error;
	y = a - in + (i < MODEL_SHAPE_COUNT ? (in * inside[i] + 128) >> 8 : 0);
	return (int32_t)(error < 0 ? -y : y);
}

/* ---- MLP ---- */

/* table: sigmoid(i / 2^MODEL_SIG_STEP), MODEL_SIG_FRAC bits, MODEL_SIG_RANGE << MODEL_SIG_STEP entries + 1 */
CODEC_HD int32_t model_silu(const int32_t *table, int32_t gate)
{
	const int32_t down = MODEL_MLP_FRAC - MODEL_SIG_STEP;
	uint32_t a = model_abs(gate), i = a >> down, f = a & ((1u << down) - 1u);
	int32_t s;

	if (i >= (uint32_t)MODEL_SIG_RANGE << MODEL_SIG_STEP)
		return gate < 0 ? 0 : gate;
	s = table[i] + (int32_t)(((table[i + 1] - table[i]) * (int64_t)f) >> down);
	if (gate < 0)
		s = (1 << MODEL_SIG_FRAC) - s;
	return (int32_t)model_shift((int64_t)gate * s, MODEL_SIG_FRAC);
}

#endif
