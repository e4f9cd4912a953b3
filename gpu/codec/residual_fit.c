/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_fit.c - the residual coder's tables from counts of what it would have coded.
 *
 * Floating point is used for fitting only.
 */
#include "gpu/codec/residual_rows.h"

#include <assert.h>
#include <math.h>
#include <string.h>

void residual_count(struct residual_counts *c, const struct residual_segment *s,
		    const uint8_t *patterns, uint32_t streams_count)
{
	uint32_t parts = streams_count / residual_tau_streams(s->columns, streams_count);

	for (uint32_t i = 0; i < parts; i++) {
		const struct residual_share h = residual_share_of(s, i, parts);

		for (uint32_t t = 0; h.column_begin < h.column_end && t < s->tokens_count; t++) {
			uint32_t tau = residual_pick_tau(s, patterns, t, h.column_begin,
							 h.column_end);

			c->tau[tau]++;
			for (uint32_t k = h.column_begin; k < h.column_end; k++) {
				size_t at = (size_t)t * s->columns + k;
				uint32_t pattern = codec_pattern_at(patterns, at, s->type.bits);
				struct residual_grid g = residual_grid(
					s->type, s->mu[at], s->base[k] + residual_tau(tau));
				struct residual_symbol sym;

				residual_symbol(&sym, s->type, g, pattern);
				c->token[g.class_][sym.token]++;
				for (uint32_t j = 0; j < sym.items_count; j++)
					c->raw_bits += sym.item_bits[j];
			}
		}
	}
}

/* Counts to frequencies that sum to CODEC_PROB_SUM: rare ones may have none, `must` has at least 1. */
static void freqs_quantise(const double *counts, uint32_t n, double floor_at, uint32_t must,
			   uint16_t *freq)
{
	double total = 0;
	int32_t left = (int32_t)CODEC_PROB_SUM;

	assert(n > 1 && must < n);
	for (uint32_t i = 0; i < n; i++)
		total += counts[i];
	for (uint32_t i = 0; i < n; i++) {
		double f = total > 0 ? counts[i] * CODEC_PROB_SUM / total : 0;

		freq[i] = (uint16_t)(f < floor_at ? 0 : f < 1 ? 1 : lround(f));
		if (i == must && freq[i] == 0)
			freq[i] = 1;
		if (freq[i] >= CODEC_PROB_SUM)
			freq[i] = CODEC_PROB_SUM - 1u;
		left -= freq[i];
	}
	while (left != 0) {
		uint32_t largest = 0;

		for (uint32_t i = 1; i < n; i++)
			if (freq[i] > freq[largest])
				largest = i;
		/* What a certain token leaves goes to the escape, or if that is it, to any other. */
		if (left > 0 && freq[largest] == CODEC_PROB_SUM - 1u)
			largest = largest == must ? (must + 1u) % n : must;
		freq[largest] = (uint16_t)(freq[largest] + (left > 0 ? 1 : -1));
		left -= left > 0 ? 1 : -1;
	}
}

void residual_freqs_fit(const struct residual_counts *c, struct residual_freqs *ret)
{
	double tau[RESIDUAL_TAU_SYMBOLS];

	for (uint32_t k = 0; k < RESIDUAL_CLASSES; k++) {
		double counts[RESIDUAL_TOKENS], total = 0;

		memcpy(counts, c->token[k], sizeof(counts));
		for (uint32_t t = 0; t < RESIDUAL_TOKENS; t++)
			total += counts[t];
		for (uint32_t t = 0; total == 0 && t < RESIDUAL_TOKENS; t++)
			counts[t] = 1; /* a class not seen: no opinion */
		freqs_quantise(counts, RESIDUAL_TOKENS, 0.25, RESIDUAL_ESC, ret->token[k]);
	}
	for (uint32_t i = 0; i < RESIDUAL_TAU_SYMBOLS; i++)
		tau[i] = c->tau[i] + 0.5;
	freqs_quantise(tau, RESIDUAL_TAU_SYMBOLS, 0, RESIDUAL_TAU_RAW, ret->tau);
	for (uint32_t i = 0, largest = 0; i < RESIDUAL_TAU_SYMBOLS; i++)
		if (ret->tau[i] == 0) {
			for (uint32_t j = 0; j < RESIDUAL_TAU_SYMBOLS; j++)
				if (ret->tau[j] > ret->tau[largest])
					largest = j;
			ret->tau[i]++;
			ret->tau[largest]--;
		}
}

static double symbol_bits(double count, uint16_t freq)
{
	return count > 0 && freq > 0 ? count * (CODEC_PROB_BITS - log2(freq)) : 0;
}

double residual_freqs_bits(const struct residual_counts *c, const struct residual_freqs *f)
{
	double bits = c->raw_bits;

	for (uint32_t k = 0; k < RESIDUAL_CLASSES; k++)
		for (uint32_t t = 0; t < RESIDUAL_TOKENS; t++)
			bits += symbol_bits(c->token[k][t], f->token[k][t]);
	for (uint32_t i = 0; i < RESIDUAL_TAU_SYMBOLS; i++)
		bits += symbol_bits(c->tau[i], f->tau[i]);
	return bits;
}
