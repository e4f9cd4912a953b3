/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fit_tables.c - clusters channels by the code length of their tokens under each other's tables
 * (k-means with Kullback-Leibler cost), and turns a class's counts into frequencies.
 *
 * Runs at low priority on a device's thread; knows nothing of blocks or files.
 */
#include "gpu/codec/fit_tables.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS_MAX 16u
#define SMOOTH 0.02f
#define CONTEXT_GAIN_MIN 0.01 /* bits per scalar that pay for five tables */

struct clusters {
	uint32_t contexts; /* 1: counts of all contexts are added up */
	uint32_t classes_count;
	uint8_t *class_of; /* borrowed */
	double sum[FIT_CLASSES_MAX][FIT_CHANNEL_COUNTS];
	float cost[FIT_CLASSES_MAX][FIT_CHANNEL_COUNTS]; /* -log2 of the class's probability */
};

struct order {
	float key;
	uint32_t channel;
};

static int order_compare(const void *a, const void *b)
{
	const struct order *x = a, *y = b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return x->channel < y->channel ? -1 : x->channel > y->channel;
}

/* First guess: equal shares, ordered by the mean distance below the top. */
static int clusters_start(const struct fit_group *g, struct clusters *c)
{
	struct order *o = malloc(g->channels_count * sizeof(*o));

	if (!o)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->channels_count; i++) {
		float n = 0, sum = 0;

		for (uint32_t k = 0; k < FIT_CHANNEL_COUNTS; k++) {
			n += (float)g->counts[i][k];
			sum += (float)g->counts[i][k] * (float)(k % CODEC_TOKENS_PITCH);
		}
		o[i] = (struct order){ .key = n > 0 ? sum / n : 0, .channel = i };
	}
	qsort(o, g->channels_count, sizeof(*o), order_compare);
	for (uint32_t i = 0; i < g->channels_count; i++)
		c->class_of[o[i].channel] =
			(uint8_t)((uint64_t)i * c->classes_count / g->channels_count);
	free(o);
	return 0;
}

static void clusters_sum(const struct fit_group *g, struct clusters *c)
{
	memset(c->sum, 0, sizeof(c->sum));
	for (uint32_t i = 0; i < g->channels_count; i++) {
		double *sum = c->sum[c->class_of[i]];
		const uint16_t *n = g->counts[i];

		for (uint32_t x = 0; x < CODEC_CONTEXTS; x++)
			for (uint32_t t = 0; t < CODEC_TOKENS_COUNT; t++)
				sum[(c->contexts > 1 ? x : 0) * CODEC_TOKENS_PITCH + t] +=
					n[x * CODEC_TOKENS_PITCH + t];
	}
}

static void clusters_cost(struct clusters *c)
{
	for (uint32_t k = 0; k < c->classes_count; k++)
		for (uint32_t x = 0; x < CODEC_CONTEXTS; x++) {
			const double *sum =
				&c->sum[k][(c->contexts > 1 ? x : 0) * CODEC_TOKENS_PITCH];
			float *cost = &c->cost[k][x * CODEC_TOKENS_PITCH];
			double total = 0;

			for (uint32_t t = 0; t < CODEC_TOKENS_COUNT; t++)
				total += sum[t] + (double)SMOOTH;
			memset(cost, 0, CODEC_TOKENS_PITCH * sizeof(*cost));
			for (uint32_t t = 0; t < CODEC_TOKENS_COUNT; t++)
				cost[t] = (float)log2(total / (sum[t] + (double)SMOOTH));
		}
}

static float channel_cost(const uint16_t *counts, const float *cost)
{
	float part[8] = { 0 };

	for (uint32_t k = 0; k < FIT_CHANNEL_COUNTS; k += 8)
		for (uint32_t j = 0; j < 8; j++)
			part[j] += (float)counts[k + j] * cost[k + j];
	return ((part[0] + part[1]) + (part[2] + part[3])) +
	       ((part[4] + part[5]) + (part[6] + part[7]));
}

static int clusters_solve(const struct fit_group *g, struct clusters *c)
{
	int r = clusters_start(g, c);

	if (r < 0)
		return r;
	for (uint32_t round = 0; round < ROUNDS_MAX; round++) {
		uint32_t moved = 0;

		clusters_sum(g, c);
		clusters_cost(c);
		for (uint32_t i = 0; i < g->channels_count; i++) {
			float best = INFINITY;
			uint8_t class = 0;

			for (uint32_t k = 0; k < c->classes_count; k++) {
				float cost = channel_cost(g->counts[i], c->cost[k]);

				if (cost < best) {
					best = cost;
					class = (uint8_t)k;
				}
			}
			moved += class != c->class_of[i];
			c->class_of[i] = class;
		}
		if (moved * 1000u <= g->channels_count)
			break;
	}
	clusters_sum(g, c);
	return 0;
}

/*
 * Counts -> frequencies that sum to CODEC_PROB_SUM; tokens at or beyond the width are escapes.  Below
 * the width every frequency is at least 1, so that the encoder never meets a 0.
 */
static void quantise(const double *counts, uint32_t width, uint16_t *freq)
{
	double total = 0, escapes = counts[CODEC_TOKEN_ESC];
	int32_t left = (int32_t)CODEC_PROB_SUM;

	for (uint32_t t = 0; t < CODEC_TOKENS_COUNT; t++)
		total += counts[t];
	for (uint32_t t = 2u * width; t < CODEC_TOKEN_ESC; t++)
		escapes += counts[t];
	memset(freq, 0, CODEC_TOKENS_COUNT * sizeof(*freq));
	for (uint32_t t = 0; t < CODEC_TOKENS_COUNT; t++) {
		double n = t == CODEC_TOKEN_ESC ? escapes : counts[t];

		if (t >= 2u * width && t != CODEC_TOKEN_ESC)
			continue;
		freq[t] = 1;
		if (total > 0 && n * CODEC_PROB_SUM > total)
			freq[t] = (uint16_t)lround(n * CODEC_PROB_SUM / total);
		left -= freq[t];
	}
	while (left != 0) {
		uint32_t largest = 0;

		for (uint32_t t = 1; t < CODEC_TOKENS_COUNT; t++)
			if (freq[t] > freq[largest])
				largest = t;
		/* The largest exceeds 1 whenever something must be taken away: 127 ones are few.  And
		 * it ends below the sum, since the others hold at least 1 each. */
		freq[largest] = (uint16_t)(freq[largest] + (left > 0 ? 1 : -1));
		left -= left > 0 ? 1 : -1;
	}
}

static double coded_bits(const struct fit_group *g, const double *counts, const uint16_t *freq)
{
	double bits = 0;

	for (uint32_t t = 0; t < CODEC_TOKENS_COUNT; t++) {
		bool out = freq[t] == 0 || t == CODEC_TOKEN_ESC;
		double p = out ? freq[CODEC_TOKEN_ESC] : freq[t];

		if (counts[t] > 0)
			bits += counts[t] * (CODEC_PROB_BITS - log2(p) +
					     (out ? g->pattern_bits : 0) + g->shift);
	}
	return bits;
}

/* Widths and tables of every class; returns the bits of the whole sample under them. */
static double tables_make(struct fit_group *g, const struct clusters *c)
{
	double all = 0;

	g->scalars = 0;
	for (uint32_t k = 0; k < c->classes_count; k++) {
		double best = INFINITY;

		for (uint32_t w = 4; w <= CODEC_WIDTH_MAX; w++) {
			uint16_t freq[CODEC_CONTEXTS][CODEC_TOKENS_COUNT];
			double bits = 0;

			for (uint32_t x = 0; x < c->contexts; x++) {
				const double *counts = &c->sum[k][x * CODEC_TOKENS_PITCH];

				quantise(counts, w, freq[x]);
				bits += coded_bits(g, counts, freq[x]);
			}
			if (bits < best) {
				best = bits;
				g->width[k] = (uint8_t)w;
				memcpy(g->freq[k], freq, c->contexts * sizeof(freq[0]));
			}
		}
		all += best;
		for (uint32_t i = 0; i < FIT_CHANNEL_COUNTS; i++)
			g->scalars += c->sum[k][i];
	}
	return all;
}

int fit_group_solve(struct fit_group *g)
{
	struct clusters *c = malloc(sizeof(*c));
	struct fit_group with = *g;
	int r = 0;

	g->class_of = calloc(g->channels_count, 1);
	with.class_of = calloc(g->channels_count, 1);
	if (!c || !g->class_of || !with.class_of) {
		r = -ENOMEM;
		goto out;
	}
	c->classes_count = g->channels_count < g->classes_max ? g->channels_count : g->classes_max;
	c->contexts = 1;
	c->class_of = g->class_of;
	r = clusters_solve(g, c);
	if (r < 0)
		goto out;
	g->bits = tables_make(g, c);
	c->contexts = CODEC_CONTEXTS;
	c->class_of = with.class_of;
	r = clusters_solve(g, c);
	if (r < 0)
		goto out;
	with.bits = tables_make(&with, c);
	with.context = 1;
	if (with.bits + CONTEXT_GAIN_MIN * g->scalars < g->bits) {
		uint8_t *swap = g->class_of;

		*g = with;
		with.class_of = swap;
	}
	g->classes_count = c->classes_count;
out:
	free(c);
	free(with.class_of);
	if (r < 0) {
		free(g->class_of);
		g->class_of = NULL;
	}
	return r;
}
