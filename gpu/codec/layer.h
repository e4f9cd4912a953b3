/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer.h - the integer core of the `layer` speculator, shared by every implementation (scalar, vector,
 * CUDA): how a key or value becomes an int8 input, and how a sum of products becomes a guess.
 *
 * Segments are coded in an order of layers: K of a layer, then its V.  A segment is guessed from the exact
 * values of the segments right before it in that order: K from K and V of one to six previous layers, V
 * from these and its own layer's K.
 *
 * Keys are cached after RoPE; a map between them that holds for every position is one between un-rotated
 * keys.  So a key is turned back by its token's position on the way in, and its guess is turned on the
 * way out.  Values of a rotary pair: element i and i + pairs of a head (or 2i and 2i + 1).
 *
 *   in   x = residual_fixed(pattern), turned back if a key; input = round(x * in_mul / 2^32), in +-127
 *   sum  acc = sum of weight * input, exact in int32 (at most LAYER_INPUTS_MAX inputs)
 *   out  mu = bias + round(acc * mul / 2^shift), turned if a key
 *
 * Angles are fractions of a turn: position * freq modulo 2^64, of which the upper 32 bits count.
 *
 * No floating point, no allocation, no libc here: compilable by nvcc.
 */
#ifndef SKVCD_GPU_CODEC_LAYER_H
#define SKVCD_GPU_CODEC_LAYER_H

#include "gpu/codec/residual.h"

#define LAYER_INPUT_COLUMNS_MAX 131072u /* 127 * 127 * this < 2^31 */
#define LAYER_PREVIOUS_MAX 6u		/* layers looked back */
#define LAYER_TURN_BITS 14		/* fraction bits of sine and cosine */
#define LAYER_SHIFT_MAX 62u

struct layer_turn {
	int32_t cos, sin; /* LAYER_TURN_BITS fraction bits */
};

#define LAYER_Q30(x) ((int64_t)(x))

/* sin and cos of a quarter turn's fraction r / 2^30, r <= 2^29 (an eighth of a turn), in Q30. */
CODEC_HD void layer_eighth(uint32_t r, int64_t *ret_sin, int64_t *ret_cos)
{
	/* x = r * pi / 2; then Taylor, each term of the one before; truncating shifts of positives. */
	int64_t x = ((int64_t)r * LAYER_Q30(1686629713)) >> 30, x2 = (x * x) >> 30;
	int64_t one = (int64_t)1 << 30, s, c;

	s = one - x2 / 72;
	s = one - ((x2 * s) >> 30) / 42;
	s = one - ((x2 * s) >> 30) / 20;
	s = one - ((x2 * s) >> 30) / 6;
	*ret_sin = (x * s) >> 30;
	c = one - x2 / 90;
	c = one - ((x2 * c) >> 30) / 56;
	c = one - ((x2 * c) >> 30) / 30;
	c = one - ((x2 * c) >> 30) / 12;
	*ret_cos = one - ((x2 * c) >> 30) / 2;
}

/* To the nearest bfloat16, ties to even: what an engine's own tables are rounded to.  v in Q30, >= 0. */
CODEC_HD int64_t layer_round_bf16(int64_t v)
{
	int32_t l, drop;
	int64_t half, low;

	if (v < 256)
		return v;
	l = residual_log2((uint32_t)v);
	drop = l - 7;
	half = (int64_t)1 << (drop - 1);
	low = v & (((int64_t)1 << drop) - 1);
	v >>= drop;
	if (low > half || (low == half && (v & 1)))
		v++;
	return v << drop;
}

/* freq: turns per token times 2^64. */
CODEC_HD struct layer_turn layer_turn_of(uint64_t freq, uint32_t position, int round_bf16)
{
	uint32_t f = (uint32_t)((freq * position) >> 32), quarter = f >> 30, r = f & 0x3fffffffu;
	int64_t s, c, t;
	struct layer_turn turn;

	if (r > 1u << 29) {
		layer_eighth((1u << 30) - r, &c, &s);
	} else {
		layer_eighth(r, &s, &c);
	}
	if (round_bf16) {
		s = layer_round_bf16(s);
		c = layer_round_bf16(c);
	}
	s = (s + (1 << (29 - LAYER_TURN_BITS))) >> (30 - LAYER_TURN_BITS);
	c = (c + (1 << (29 - LAYER_TURN_BITS))) >> (30 - LAYER_TURN_BITS);
	if (quarter & 1u) {
		t = s;
		s = c;
		c = -t;
	}
	if (quarter & 2u) {
		s = -s;
		c = -c;
	}
	turn.cos = (int32_t)c;
	turn.sin = (int32_t)s;
	return turn;
}

CODEC_HD int32_t layer_clamp(int64_t v)
{
	return (int32_t)(v > RESIDUAL_MU_MAX	? RESIDUAL_MU_MAX
			 : v < -RESIDUAL_MU_MAX ? -RESIDUAL_MU_MAX
						: v);
}

/* a and b of a pair, turned forward. */
CODEC_HD void layer_rotate(struct layer_turn t, int32_t *a, int32_t *b)
{
	const int64_t half = (int64_t)1 << (LAYER_TURN_BITS - 1);
	int64_t x = (int64_t)*a * t.cos - (int64_t)*b * t.sin;
	int64_t y = (int64_t)*b * t.cos + (int64_t)*a * t.sin;

	*a = layer_clamp((x + half) >> LAYER_TURN_BITS);
	*b = layer_clamp((y + half) >> LAYER_TURN_BITS);
}

/* ... and back. */
CODEC_HD void layer_unrotate(struct layer_turn t, int32_t *a, int32_t *b)
{
	t.sin = -t.sin;
	layer_rotate(t, a, b);
}

CODEC_HD int8_t layer_input(int32_t x, uint32_t in_mul)
{
	int64_t v = ((int64_t)x * in_mul + ((int64_t)1 << 31)) >> 32;

	return (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
}

/* shift: 1 .. LAYER_SHIFT_MAX, or anything when mul is 0; |mul| < 2^31. */
CODEC_HD int32_t layer_output(int32_t acc, int32_t bias, int32_t mul, uint32_t shift)
{
	int64_t v = (int64_t)acc * mul, by = shift;

	return layer_clamp(bias + ((v + ((int64_t)1 << by >> 1)) >> by));
}

#endif
