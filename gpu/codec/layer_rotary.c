/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_rotary.c - finds how keys were rotated (RoPE), from the keys alone: an un-rotated channel has a
 * mean, and only under the right frequencies do the turned-back samples of it add up.
 */
#include "gpu/codec/layer_fit.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS_MAX 768u
#define SEGMENTS_MAX 3u
#define HEADS_MAX 4u
#define THETA_LOG_MIN 6.9  /* 1e3 */
#define THETA_LOG_MAX 18.5 /* 1e8 */
#define COARSE_STEP 0.01
#define FINE_STEP 0.0002
#define SNAP 0.004
#define GAIN_MIN 1.05 /* over not turning at all */

struct keys {		    /* a few heads' keys as floats */
	float *value;	    /* owned, [series][tokens][head_dim] */
	uint32_t *position; /* owned, [tokens] */
	uint32_t series, tokens, head_dim;
};

static void keys_deinit(struct keys *k)
{
	free(k->value);
	free(k->position);
}

static void series_read(struct keys *k, const struct layer_sample *s, uint32_t segment,
			uint32_t head, uint32_t blocks, float *to)
{
	const struct codec_segment *seg = &s->g->segments[segment];
	struct residual_type type = residual_type_of(seg->dtype);
	uint32_t columns = codec_segment_columns(seg);

	for (uint32_t b = 0; b < blocks; b++) {
		const uint8_t *p = s->blocks + (uint64_t)b * s->g->raw_bytes +
				   s->g->segment_off[segment];

		for (uint32_t t = 0; t < s->g->block_tokens; t++)
			for (uint32_t c = 0; c < k->head_dim; c++)
				*to++ = ldexpf((float)residual_fixed(
						       type, codec_pattern_at(
								     p,
								     (size_t)t * columns +
									     head * k->head_dim + c,
								     type.bits)),
					       -RESIDUAL_FRAC);
	}
}

static int keys_read(const struct layer_sample *s, struct keys *k)
{
	uint32_t segment[SEGMENTS_MAX], segments = 0, heads = HEADS_MAX;
	uint32_t blocks = TOKENS_MAX / s->g->block_tokens;
	float *to;

	*k = (struct keys){ 0 };
	for (uint32_t i = 0; i < s->g->segments_count && segments < SEGMENTS_MAX; i++) {
		const struct codec_segment *seg = &s->g->segments[i];

		if (seg->kind != CODEC_KIND_K || !codec_segment_coded(seg) || seg->head_dim % 2u)
			continue;
		if (segments > 0 && seg->head_dim != k->head_dim)
			continue;
		k->head_dim = seg->head_dim;
		if (seg->heads < heads)
			heads = seg->heads;
		segment[segments++] = i;
	}
	if (segments == 0 || heads == 0 || k->head_dim == 0)
		return 0;
	blocks = blocks ? blocks : 1u;
	if (blocks > s->blocks_count)
		blocks = s->blocks_count;
	k->tokens = blocks * s->g->block_tokens;
	k->series = segments * heads;
	assert(k->tokens > 0);
	k->value = malloc((size_t)k->series * k->tokens * k->head_dim * sizeof(float));
	k->position = malloc(k->tokens * sizeof(uint32_t));
	if (!k->value || !k->position)
		return -ENOMEM;
	for (uint32_t t = 0; t < k->tokens; t++)
		k->position[t] = s->positions[t / s->g->block_tokens] + t % s->g->block_tokens;
	to = k->value;
	for (uint32_t i = 0; i < segments; i++)
		for (uint32_t h = 0; h < heads; h++, to += (size_t)k->tokens * k->head_dim)
			series_read(k, s, segment[i], h, blocks, to);
	return 0;
}

/* Length of the mean of a pair's samples, turned back by freq a token; squared, of all series. */
static double pair_score(const struct keys *k, uint32_t a, uint32_t b, double freq, float *turn)
{
	double sum = 0;

	for (uint32_t t = 0; t < k->tokens; t++) {
		double angle = freq * k->position[t];

		turn[2u * t] = (float)cos(angle);
		turn[2u * t + 1u] = (float)sin(angle);
	}
	for (uint32_t i = 0; i < k->series; i++) {
		const float *v = k->value + (size_t)i * k->tokens * k->head_dim;
		float x = 0, y = 0, all = 1e-20f;

		for (uint32_t t = 0; t < k->tokens; t++, v += k->head_dim) {
			x += v[a] * turn[2u * t] + v[b] * turn[2u * t + 1u];
			y += v[b] * turn[2u * t] - v[a] * turn[2u * t + 1u];
			all += v[a] * v[a] + v[b] * v[b];
		}
		sum += ((double)x * x + (double)y * y) / ((double)all * k->tokens);
	}
	return sum;
}

/* Sum over the pairs of a head.  theta 0: not turned. */
static double score(const struct keys *k, double theta, int interleaved, float *turn)
{
	uint32_t pairs = k->head_dim / 2u;
	double sum = 0;

	for (uint32_t i = 0; i < pairs; i++)
		sum += pair_score(k, interleaved ? 2u * i : i,
				  interleaved ? 2u * i + 1u : i + pairs,
				  theta > 0 ? pow(theta, -(double)i / pairs) : 0, turn);
	return sum;
}

/* The bases that models really use; a found one this near is meant to be it. */
static double snap(double theta)
{
	static const double known[] = { 1e4, 1e5,   1.5e5, 2.5e5, 5e5, 6e5, 8e5,
					1e6, 1.5e6, 2e6,   5e6,	  8e6, 1e7, 1.1e7 };

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (fabs(log(theta / known[i])) < SNAP)
			return known[i];
	return theta;
}

static double search(const struct layer_sample *sample, const struct keys *k, double from,
		     double to, double step, int interleaved, float *turn, double *ret_score)
{
	double best = 0;

	*ret_score = -1;
	for (uint32_t i = 0; from + i * step <= to && !layer_sample_cancelled(sample); i++) {
		double l = from + i * step, s = score(k, exp(l), interleaved, turn);

		if (s > *ret_score) {
			*ret_score = s;
			best = l;
		}
	}
	return best;
}

/* Entropy, up to a constant, of what the mean leaves when it is turned by tables of either rounding. */
static double leftover(const struct keys *k, const struct layer_rotary *r)
{
	double sum = 0;

	for (uint32_t i = 0; i < k->series; i++)
		for (uint32_t j = 0; j < r->pairs; j++) {
			const float *v = k->value + (size_t)i * k->tokens * k->head_dim;
			uint32_t a = r->interleaved ? 2u * j : j;
			uint32_t b = r->interleaved ? 2u * j + 1u : j + r->pairs;
			uint64_t freq = layer_rotary_freq(r, j);
			double x = 0, y = 0, left = 1e-20;

			for (int pass = 0; pass < 2; pass++)
				for (uint32_t t = 0; t < k->tokens; t++) {
					struct layer_turn u = layer_turn_of(freq, k->position[t],
									    r->round_bf16);
					double c = ldexp(u.cos, -LAYER_TURN_BITS);
					double s = ldexp(u.sin, -LAYER_TURN_BITS);
					double p = v[t * k->head_dim + a],
					       q = v[t * k->head_dim + b];

					if (pass == 0) {
						x += (p * c + q * s) / k->tokens;
						y += (q * c - p * s) / k->tokens;
					} else {
						p -= x * c - y * s;
						q -= y * c + x * s;
						left += p * p + q * q;
					}
				}
			sum += log(left);
		}
	return sum;
}

static void find(const struct layer_sample *sample, const struct keys *k, float *turn,
		 struct layer_rotary *r)
{
	double still = score(k, 0, 0, turn), best = still * GAIN_MIN, got;

	for (int interleaved = 0; interleaved < 2; interleaved++) {
		double l = search(sample, k, THETA_LOG_MIN, THETA_LOG_MAX, COARSE_STEP, interleaved,
				  turn, &got);

		if (got <= best)
			continue;
		best = got;
		l = search(sample, k, l - COARSE_STEP, l + COARSE_STEP, FINE_STEP, interleaved,
			   turn, &got);
		*r = (struct layer_rotary){ .pairs = k->head_dim / 2u,
					    .interleaved = (uint8_t)interleaved,
					    .theta = snap(exp(l)) };
	}
	if (r->pairs) {
		struct layer_rotary rounded = *r;

		rounded.round_bf16 = 1;
		if (leftover(k, &rounded) < leftover(k, r))
			*r = rounded;
	}
}

int layer_rotary_find(const struct layer_sample *s, struct layer_rotary *ret)
{
	struct layer_rotary r = { 0 };
	struct keys k;
	float *turn = NULL;
	int res = keys_read(s, &k);

	if (res == 0 && k.series > 0) {
		turn = malloc(2u * k.tokens * sizeof(*turn));
		if (turn)
			find(s, &k, turn, &r);
		else
			res = -ENOMEM;
	}
	free(turn);
	keys_deinit(&k);
	if (res == 0 && layer_sample_cancelled(s))
		res = -ECANCELED;
	if (res == 0)
		*ret = r;
	return res;
}

uint64_t layer_rotary_freq(const struct layer_rotary *r, uint32_t i)
{
	double turns = pow(r->theta, -(double)i / r->pairs) / 6.283185307179586476925;

	return (uint64_t)(turns * 18446744073709551616.0);
}
