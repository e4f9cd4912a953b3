/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual.h - the integer core of the residual coder: what `layer` and `model` turn a guess into bits
 * with.  Shared by every implementation (scalar, AVX2, AVX-512, CUDA); what these functions compute is
 * the format.
 *
 * Guess.  mu is the predicted value in fixed point, RESIDUAL_FRAC fraction bits.  scale is the guess's
 * expected error, 4 * log2(sigma * 2^RESIDUAL_FRAC) in quarter octaves: a static base of the column plus
 * a step that the encoder chose for the token (residual_tau).  Everything after is integer, so equal mu
 * and scale are the whole contract between an encoder and a decoder.
 *
 * Grid.  residual_grid picks a unit 2^(q - RESIDUAL_FRAC) near a quarter of sigma but never finer than
 * the element type is at |mu|, and a class for the statistics: how sigma, the unit and |mu| lie to one
 * another.  Signs are folded: value and guess are seen through mu's sign.
 *
 * Value.  A finite pattern is an integer X on the grid (negative values are -A - 1, so that both zeros
 * exist) and, below the unit, raw bits of its mantissa.  The token tells X - mu / unit: exactly within
 * RESIDUAL_NEAR, in buckets with raw bits beyond.  Values within one unit of zero go on in groups of
 * raw bits until their first one bit shows, or give up as a raw pattern: that keeps zeros, subnormals
 * and tiny values exact.  NaN, infinity and what lies far outside is RESIDUAL_ESC and a raw pattern.
 *
 * No floating point, no allocation, no libc here: compilable by nvcc.
 */
#ifndef SKVCD_GPU_CODEC_RESIDUAL_H
#define SKVCD_GPU_CODEC_RESIDUAL_H

#include "gpu/codec/core.h"

#define RESIDUAL_FRAC 16
#define RESIDUAL_TOKENS 64u
#define RESIDUAL_NEAR 21 /* |r| up to here has a token of its own */
#define RESIDUAL_ESC 63u
#define RESIDUAL_BUCKETS 10u
#define RESIDUAL_BUCKET_POS (2u * RESIDUAL_NEAR + 1u)
#define RESIDUAL_BUCKET_NEG (RESIDUAL_BUCKET_POS + RESIDUAL_BUCKETS)
#define RESIDUAL_CLASSES 72u
#define RESIDUAL_TAU_COUNT 16u
#define RESIDUAL_TAU_RAW 16u /* the token's row is raw patterns */
#define RESIDUAL_TAU_SYMBOLS 17u
#define RESIDUAL_ITEMS_MAX 6u /* raw items behind one token */
#define RESIDUAL_SHIFT_MAX 14
#define RESIDUAL_SCALE_MIN (-64)
#define RESIDUAL_SCALE_MAX 128
#define RESIDUAL_MU_MAX 0x7fffffff

struct residual_type { /* an element type, as the coder sees it */
	int32_t mant_bits;
	int32_t bias;
	uint32_t bits;	    /* 16 or 8 */
	uint32_t exp_max;   /* largest exponent field of a finite value */
	uint32_t mag_max;   /* largest magnitude pattern of a finite value */
	int32_t group_bits; /* of one group near zero */
	int32_t groups_max;
};

/* dtype: bf16 1, fp16 2, e4m3 3, e5m2 4 (enum codec_dtype). */
CODEC_HD struct residual_type residual_type_of(uint32_t dtype)
{
	struct residual_type t;

	t.bits = dtype <= 2u ? 16u : 8u;
	t.mant_bits = dtype == 1u ? 7 : dtype == 2u ? 10 : dtype == 3u ? 3 : 2;
	t.bias = dtype == 1u ? 127 : dtype == 3u ? 7 : 15;
	t.exp_max = dtype == 1u ? 254u : dtype == 3u ? 15u : 30u;
	t.mag_max = dtype == 1u ? 0x7f7fu : dtype == 2u ? 0x7bffu : dtype == 3u ? 0x7eu : 0x7bu;
	t.group_bits = dtype <= 2u ? 7 : t.mant_bits;
	t.groups_max = dtype <= 2u ? 1 : 4;
	return t;
}

CODEC_HD int32_t residual_log2(uint32_t x) /* x > 0 */
{
#ifdef __CUDA_ARCH__
	uint32_t top;

	asm("bfind.u32 %0, %1;" : "=r"(top) : "r"(x));
	return (int32_t)top;
#else
	return 31 - __builtin_clz(x);
#endif
}

/* Step of a token's scale in quarter octaves, tau 0..15. */
CODEC_HD int32_t residual_tau(uint32_t tau)
{
	return 2 * (int32_t)tau - 6;
}

/* Fixed-point value of a finite pattern, clamped to +-RESIDUAL_MU_MAX; NaN and infinity give 0. */
CODEC_HD int32_t residual_fixed(struct residual_type t, uint32_t pattern)
{
	/* Without branches, so that loops over it become vectors. */
	uint32_t mag = pattern & ((1u << (t.bits - 1u)) - 1u), e = mag >> t.mant_bits;
	uint32_t normal = e != 0;
	uint32_t mant = (mag & ((1u << t.mant_bits) - 1u)) | normal << t.mant_bits;
	int32_t sh = (int32_t)(e + 1u - normal) - t.bias - t.mant_bits + RESIDUAL_FRAC;
	int32_t left = sh < 0 ? 0 : sh, right = sh > 0 ? 0 : -sh, sign, v;

	left = left > 30 ? 30 : left;
	right = right > 31 ? 31 : right;
	v = (int32_t)(mant << left >> right);
	v = sh + t.mant_bits >= 30 ? RESIDUAL_MU_MAX : v;
	v = mag > t.mag_max ? 0 : v;
	sign = -(int32_t)(pattern >> (t.bits - 1u));
	return (v ^ sign) - sign;
}

struct residual_grid {
	int32_t q;  /* log2 of the unit, in fixed-point steps; 2..28 */
	int32_t mu; /* |mu| / unit, rounded down */
	uint32_t flip;
	uint32_t class_; /* < RESIDUAL_CLASSES */
};

/* How mu's fraction of a unit lies to the middle, for units far wider than sigma. */
CODEC_HD uint32_t residual_far_class(uint32_t a, int32_t q, int32_t scale)
{
	int32_t dl = (int32_t)(a & ((1u << q) - 1u)) - (1 << (q - 1));
	uint32_t m = (uint32_t)(dl < 0 ? -dl : dl);
	int32_t t = -99, lv;

	if (m) {
		int32_t l = residual_log2(m);
		uint32_t next = l >= 2 ? m >> (l - 2) : m << (2 - l);

		t = 4 * l + (int32_t)(next & 3u) - scale;
	}
	lv = t < -8   ? 0
	     : t < -4 ? 1
	     : t < -1 ? 2
	     : t < 1  ? 3
	     : t < 3  ? 4
	     : t < 5  ? 5
	     : t < 7  ? 6
	     : t < 10 ? 7
		      : 8;
	return 52u + (dl < 0 ? 9u : 0u) + (uint32_t)lv;
}

CODEC_HD int32_t residual_max(int32_t a, int32_t b)
{
	return a > b ? a : b;
}

CODEC_HD struct residual_grid residual_grid(struct residual_type t, int32_t mu, int32_t scale)
{
	struct residual_grid g;
	uint32_t a = (uint32_t)(mu < 0 ? -mu : mu), phase;
	int32_t lm = a ? residual_log2(a) : 0, k = scale >> 2, d, u;

	g.flip = mu < 0;
	g.q = residual_max(residual_max(k - 2, lm - t.mant_bits),
			   residual_max(RESIDUAL_FRAC - (t.bias - 1) - t.mant_bits, 2));
	if (g.q > 28)
		g.q = 28;
	g.mu = (int32_t)(a >> g.q);
	phase = a >> (g.q - 2) & 3u;
	d = scale - 4 * g.q;
	u = residual_max(11 - d, 0);
	if (u < 4) {
		int32_t m = lm - k;

		g.class_ = 4u * (uint32_t)u + (m < -1 ? 0u : m < 1 ? 1u : m < 3 ? 2u : 3u);
	} else if (d >= 4) {
		g.class_ = 16u + (uint32_t)(u - 4);
	} else if (d > -9) {
		int32_t v = (3 - d) >> 1;

		g.class_ = 28u + 4u * (uint32_t)(v < 5 ? v : 5) + phase;
	} else {
		g.class_ = residual_far_class(a, g.q, scale);
	}
	return g;
}

/* What one scalar is coded as. */
struct residual_symbol {
	uint32_t token;
	uint32_t items_count;
	uint16_t item[RESIDUAL_ITEMS_MAX];
	uint8_t item_bits[RESIDUAL_ITEMS_MAX]; /* 1..16 */
};

CODEC_HD void residual_push(struct residual_symbol *s, uint32_t value, int32_t bits)
{
	s->item[s->items_count] = (uint16_t)(value & ((1u << bits) - 1u));
	s->item_bits[s->items_count++] = (uint8_t)bits;
}

CODEC_HD void residual_escape(struct residual_symbol *s, struct residual_type t, uint32_t pattern)
{
	s->token = RESIDUAL_ESC;
	s->items_count = 0;
	residual_push(s, pattern, (int32_t)t.bits);
}

/* r's token, and its bucket's bits.  Returns 0 when it has none. */
CODEC_HD int residual_token(struct residual_symbol *s, int32_t r)
{
	uint32_t t, j;

	s->items_count = 0;
	if (r >= -RESIDUAL_NEAR && r <= RESIDUAL_NEAR) {
		s->token = (uint32_t)(r + RESIDUAL_NEAR);
		return 1;
	}
	t = (uint32_t)(r < 0 ? -r : r) - (RESIDUAL_NEAR + 1u);
	if (t >= (4u << RESIDUAL_BUCKETS) - 4u)
		return 0;
	j = (uint32_t)residual_log2(t + 4u) - 2u;
	s->token = (r > 0 ? RESIDUAL_BUCKET_POS : RESIDUAL_BUCKET_NEG) + j;
	residual_push(s, t + 4u - (4u << j), (int32_t)j + 2);
	return 1;
}

/* The bits of a value's mantissa below the grid; n of them lie below the unit, `sub` at most could. */
CODEC_HD void residual_push_low(struct residual_symbol *s, struct residual_type t, uint32_t pattern,
				uint32_t mant, int32_t n, int32_t sub)
{
	uint32_t a = n > 31 ? 0 : mant >> n;
	int32_t i;

	for (i = 0; a == 0 && i < t.groups_max && sub > 0; i++) {
		int32_t step = t.group_bits < sub ? t.group_bits : sub;

		n -= step;
		sub -= step;
		a = n > 31 ? 0 : mant >> n; /* n >= 0: a was 0 before the last group's bits */
		residual_push(s, a, step);
	}
	if (a == 0 && sub > 0)
		residual_push(s, pattern, (int32_t)t.bits);
	else if (a != 0 && n > 0)
		residual_push(s, mant, n);
}

/* Does not look at tables: a token without a frequency is the caller's to escape. */
CODEC_HD void residual_symbol(struct residual_symbol *s, struct residual_type t,
			      struct residual_grid g, uint32_t pattern)
{
	uint32_t mag = pattern & ((1u << (t.bits - 1u)) - 1u);
	uint32_t e = mag >> t.mant_bits;
	uint32_t mant = (mag & ((1u << t.mant_bits) - 1u)) | (e ? 1u << t.mant_bits : 0u);
	int32_t sh = (int32_t)(e ? e : 1u) - t.bias - t.mant_bits + RESIDUAL_FRAC - g.q;
	int32_t x;

	if (mag > t.mag_max || sh > RESIDUAL_SHIFT_MAX) {
		residual_escape(s, t, pattern);
		return;
	}
	x = (int32_t)(sh >= 0 ? mant << sh : sh < -31 ? 0 : mant >> -sh);
	if ((pattern >> (t.bits - 1u)) ^ g.flip)
		x = -x - 1;
	if (!residual_token(s, x - g.mu)) {
		residual_escape(s, t, pattern);
		return;
	}
	if (sh < 0)
		residual_push_low(s, t, pattern, mant, -sh,
				  g.q - RESIDUAL_FRAC + t.bias - 1 + t.mant_bits);
}

/*
 * The decoder, for a scalar whose token is known: asks for its raw items one by one.  Start, then while
 * want > 0 take `want` bits and feed them, then the pattern is in place.  Anything fed to it gives some
 * pattern.
 */
struct residual_reader {
	int32_t want;	/* bits of the next item; 0: done */
	uint32_t state; /* enum below */
	uint32_t pattern;
	uint32_t a, sign;
	int32_t q, groups, r_base;
};

enum { RESIDUAL_READ_BUCKET, RESIDUAL_READ_GROUP, RESIDUAL_READ_LOW, RESIDUAL_READ_PATTERN };

/* a, on a grid of 2^q, and below it n bits: the pattern they make. */
CODEC_HD uint32_t residual_assemble(struct residual_type t, uint32_t a, int32_t q, int32_t n,
				    uint32_t low, uint32_t sign)
{
	uint32_t mant, mag = 0;
	int32_t e;

	if (a) {
		int32_t over = residual_log2(a) - t.mant_bits;

		if (n == 0 && over > 0) {
			mant = a >> over;
			n = -over;
		} else {
			mant = a << n | low;
		}
		e = q - n - RESIDUAL_FRAC + t.bias + t.mant_bits;
		mag = mant >> t.mant_bits ? (uint32_t)e << t.mant_bits : 0u;
		mag |= mant & ((1u << t.mant_bits) - 1u);
	}
	return (mag & ((1u << (t.bits - 1u)) - 1u)) | sign << (t.bits - 1u);
}

/* Bits that could lie below 2^q. */
CODEC_HD int32_t residual_sub(struct residual_type t, int32_t q)
{
	return q - RESIDUAL_FRAC + t.bias - 1 + t.mant_bits;
}

/* rd->a, rd->q, rd->groups are set: what comes next? */
CODEC_HD void residual_reader_next(struct residual_reader *rd, struct residual_type t)
{
	int32_t sub = residual_sub(t, rd->q), n;

	rd->want = 0;
	if (rd->a == 0) {
		if (sub <= 0) {
			rd->pattern = rd->sign << (t.bits - 1u);
		} else if (rd->groups < t.groups_max) {
			rd->state = RESIDUAL_READ_GROUP;
			rd->want = t.group_bits < sub ? t.group_bits : sub;
		} else {
			rd->state = RESIDUAL_READ_PATTERN;
			rd->want = (int32_t)t.bits;
		}
		return;
	}
	n = t.mant_bits - residual_log2(rd->a);
	if (n > sub)
		n = sub;
	if (n > 0) {
		rd->state = RESIDUAL_READ_LOW;
		rd->want = n;
	} else {
		rd->pattern = residual_assemble(t, rd->a, rd->q, 0, 0, rd->sign);
	}
}

/* r is known. */
CODEC_HD void residual_reader_value(struct residual_reader *rd, struct residual_type t,
				    struct residual_grid g, int32_t r)
{
	int32_t x = r + g.mu;

	rd->sign = (x < 0) ^ g.flip;
	rd->a = (uint32_t)(x < 0 ? -x - 1 : x);
	rd->q = g.q;
	rd->groups = 0;
	residual_reader_next(rd, t);
}

CODEC_HD void residual_reader_start(struct residual_reader *rd, struct residual_type t,
				    struct residual_grid g, uint32_t token)
{
	if (token == RESIDUAL_ESC) {
		rd->state = RESIDUAL_READ_PATTERN;
		rd->want = (int32_t)t.bits;
	} else if (token < RESIDUAL_BUCKET_POS) {
		residual_reader_value(rd, t, g, (int32_t)token - RESIDUAL_NEAR);
	} else {
		uint32_t neg = token >= RESIDUAL_BUCKET_NEG;
		uint32_t j = token - (neg ? RESIDUAL_BUCKET_NEG : RESIDUAL_BUCKET_POS);

		rd->state = RESIDUAL_READ_BUCKET;
		rd->want = (int32_t)j + 2;
		rd->r_base = (int32_t)(4u << j) - 4 + RESIDUAL_NEAR + 1;
		rd->sign = neg;
	}
}

CODEC_HD void residual_reader_feed(struct residual_reader *rd, struct residual_type t,
				   struct residual_grid g, uint32_t bits)
{
	int32_t r;

	switch (rd->state) {
	case RESIDUAL_READ_BUCKET:
		r = rd->r_base + (int32_t)bits;
		residual_reader_value(rd, t, g, rd->sign ? -r : r);
		return;
	case RESIDUAL_READ_GROUP:
		rd->q -= rd->want;
		rd->groups++;
		rd->a = bits;
		residual_reader_next(rd, t);
		return;
	case RESIDUAL_READ_LOW:
		rd->pattern = residual_assemble(t, rd->a, rd->q, rd->want, bits, rd->sign);
		rd->want = 0;
		return;
	default:
		rd->pattern = bits;
		rd->want = 0;
	}
}

#endif
