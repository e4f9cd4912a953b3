/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_draft.c - guesses of a cache from a smaller model of the family: its states and the exact layers before,
 * through fitted linear maps.
 *
 * For a block's rows, in this order; whoever computes it otherwise gets other guesses:
 *
 *   1. The draft's pass: hidden state = embedding, of which a copy is kept (the first tap).  Then every layer of the
 *      draft, the last one too: mspec_pass_own(), that is guess K and V as a copy does (without biases), round them
 *      to the context with model_kv(), attend over the context, MLP.  The hidden state that is left is the second
 *      tap.  The cache's values have no part in it, so a context holds the draft's own and follows from token ids.
 *   2. For each layer l of the cache, sums[2 * kv] = bias, int32 in RESIDUAL_FRAC; then one product after the other is
 *      added to it, rescaled to RESIDUAL_FRAC and saturated each time (model_rescale(), model_sat32()):
 *        tap 0, tap 1: the row through a norm of the fitted weights, eps as layer 0 of the draft has it, quantised as
 *          the hidden state of a pass is, with MSPEC_MAPS planes; times tap[0], tap[1]
 *        K, V of layer l - 1; of l - 2; .. l - previous (none before 0): x[i] * weigh[i] of *that* layer in int64,
 *          of RESIDUAL_FRAC + MSPEC_WEIGH_FRAC fraction bits, quantised with MSPEC_MAPS planes; times past[0] (K of
 *          l - 1), past[1] (V of l - 1), past[2], ...
 *   3. mu of K = the first kv sums, each head turned forward by the cache's rope (model_turn()).
 *      K is coded.  x of K = residual_fixed() of its patterns, turned back.
 *   4. mu of V = the other kv sums + own * x of K, quantised with this layer's weigh, added and saturated as above.
 *      V is coded.  x of V = residual_fixed() of its patterns.
 *
 * Every product is of exact integers by rows, so that batch, tiles, threads and device make no difference.
 */
#include "gpu/codec/model_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint32_t kv_of(const struct mspec_guess *g)
{
	return mspec_shape_kv(g->p->draft->shape);
}

uint32_t mspec_guess_widest(const struct mspec_params *p)
{
	return p->draft ? 2u * mspec_shape_kv(p->draft->shape) : 0;
}

int mspec_guess_init(struct mspec_guess *g, const struct mspec_params *p, struct mspec_pass *pass)
{
	const struct mspec_draft *d = p->draft;
	const size_t rows = pass->rows_max, kv = mspec_shape_kv(d->shape);

	*g = (struct mspec_guess){ .p = p, .pass = pass };
	assert(rows > 0 && kv > 0);
	g->embedding = calloc(rows * p->model->config.hidden, sizeof(int32_t));
	g->sums = calloc(rows * 2u * kv, sizeof(int32_t));
	g->mu_k = calloc(rows * kv, sizeof(int32_t));
	g->mu_v = calloc(rows * kv, sizeof(int32_t));
	g->exact = calloc((d->previous + 1u) * rows * 2u * kv, sizeof(int32_t));
	if (!g->embedding || !g->sums || !g->mu_k || !g->mu_v || !g->exact) {
		mspec_guess_deinit(g);
		return -ENOMEM;
	}
	return 0;
}

void mspec_guess_deinit(struct mspec_guess *g)
{
	free(g->embedding);
	free(g->sums);
	free(g->mu_k);
	free(g->mu_v);
	free(g->exact);
	free(g->turns.all);
	*g = (struct mspec_guess){ .p = NULL };
}

int mspec_guess_start(struct mspec_guess *g)
{
	const struct mspec_draft *d = g->p->draft;
	const struct mspec_pass *pass = g->pass;
	const uint32_t end = pass->position + pass->rows;

	if (end > g->turns.count && mspec_turns_grow(&g->turns, d->frequencies, d->shape.head_dim,
						     g->p->coarse_rope, end + pass->rows) < 0)
		return -ENOMEM;
	g->rope = g->turns.all + (size_t)pass->position * d->shape.head_dim;
	memcpy(g->embedding, pass->hidden,
	       (size_t)pass->rows * pass->m->config.hidden * sizeof(int32_t));
	return 0;
}

void mspec_guess_layer(struct mspec_guess *g, uint32_t layer)
{
	assert(layer < g->p->draft->shape.layers);
	g->at = layer;
	g->layer = &g->p->draft->layers[layer];
}

int32_t *mspec_guess_values(const struct mspec_guess *g, uint32_t layer)
{
	const uint32_t slots = g->p->draft->previous + 1u;

	return g->exact + (size_t)(layer % slots) * g->pass->rows_max * 2u * kv_of(g);
}

/* One part of a layer's exact values, of rows of a tile, as rows of a map. */
static void quantise_values(const struct mspec_guess *g, struct mspec_thread *t, uint32_t layer,
			    bool value, size_t first, uint32_t rows, const struct mspec_matrix *map)
{
	const uint32_t kv = kv_of(g), offset = value ? kv : 0;
	const int32_t *x = mspec_guess_values(g, layer) + first * 2u * kv + offset;
	const int16_t *weigh = g->p->draft->layers[layer].weigh + offset;
	const struct mspec_pass *pass = g->pass;

	for (uint32_t r = 0; r < rows; r++) {
		pass->kernels->weigh(x + (size_t)r * 2u * kv, weigh, kv, t->wide);
		mspec_quantise(pass, t, r, map, pass->precision.wide[MSPEC_MAPS],
			       RESIDUAL_FRAC + MSPEC_WEIGH_FRAC, model_norm_none());
	}
}

static void guess_k_tile(void *context, uint32_t tile, uint32_t thread)
{
	const struct mspec_guess *g = context;
	const struct mspec_pass *pass = g->pass;
	const struct mspec_draft *d = g->p->draft;
	struct mspec_thread *t = &pass->scratch[thread];
	const uint32_t kv = kv_of(g), rows = mspec_pass_tile_rows(pass, tile);
	const uint32_t hidden = pass->m->config.hidden, wide = pass->precision.wide[MSPEC_MAPS];
	const size_t first = (size_t)tile * MSPEC_TILE;
	int32_t *sums = g->sums + first * 2u * kv;

	for (uint32_t r = 0; r < rows; r++)
		memcpy(sums + (size_t)r * 2u * kv, g->layer->bias, 2u * kv * sizeof(sums[0]));
	for (uint32_t i = 0; i < MSPEC_TAPS; i++) {
		const int32_t *h = (i ? pass->hidden : g->embedding) + first * hidden;
		const struct mspec_matrix *map = &g->layer->tap[i];

		for (uint32_t r = 0; r < rows; r++)
			mspec_quantise_hidden(pass, t, r, h + (size_t)r * hidden, &d->norm[i],
					      g->p->layers[0].eps_input, wide, map);
		mspec_multiply(pass, t, map, rows, wide, RESIDUAL_FRAC, true, sums, 2u * kv);
	}
	for (uint32_t i = 0; i < mspec_draft_past(d, g->at); i++) {
		const struct mspec_matrix *map = &g->layer->past[i];

		quantise_values(g, t, g->at - 1u - i / 2u, i % 2u, first, rows, map);
		mspec_multiply(pass, t, map, rows, wide, RESIDUAL_FRAC, true, sums, 2u * kv);
	}
	for (uint32_t r = 0; r < rows; r++) {
		int32_t *k = g->mu_k + (first + r) * kv;

		memcpy(k, sums + (size_t)r * 2u * kv, kv * sizeof(k[0]));
		mspec_turn_row(k, kv, d->shape.head_dim, g->rope + (first + r) * d->shape.head_dim,
			       1);
	}
}

void mspec_guess_k(struct mspec_guess *g)
{
	mspec_pass_tiles(g->pass, guess_k_tile, g);
}

void mspec_guess_exact(struct mspec_guess *g, bool value, const uint8_t *patterns)
{
	const struct residual_type type = residual_type_of(g->p->dtype);
	const uint32_t kv = kv_of(g), dim = g->p->draft->shape.head_dim;
	int32_t *to = mspec_guess_values(g, g->at) + (value ? kv : 0);

	for (uint32_t r = 0; r < g->pass->rows; r++, to += 2u * kv) {
		for (uint32_t i = 0; i < kv; i++)
			to[i] = residual_fixed(
				type, codec_pattern_at(patterns, (size_t)r * kv + i, type.bits));
		if (!value)
			mspec_turn_row(to, kv, dim, g->rope + (size_t)r * dim, -1);
	}
}

static void guess_v_tile(void *context, uint32_t tile, uint32_t thread)
{
	const struct mspec_guess *g = context;
	const struct mspec_pass *pass = g->pass;
	struct mspec_thread *t = &pass->scratch[thread];
	const struct mspec_matrix *own = &g->layer->own;
	const uint32_t kv = kv_of(g), rows = mspec_pass_tile_rows(pass, tile);
	const size_t first = (size_t)tile * MSPEC_TILE;

	for (uint32_t r = 0; r < rows; r++)
		memcpy(g->mu_v + (first + r) * kv, g->sums + (first + r) * 2u * kv + kv,
		       kv * sizeof(int32_t));
	quantise_values(g, t, g->at, false, first, rows, own);
	mspec_multiply(pass, t, own, rows, pass->precision.wide[MSPEC_MAPS], RESIDUAL_FRAC, true,
		       g->mu_v + first * kv, kv);
}

void mspec_guess_v(struct mspec_guess *g)
{
	mspec_pass_tiles(g->pass, guess_v_tile, g);
}
