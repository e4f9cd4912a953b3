/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_draft_fit.c - the maps of a draft from a sample of a cache and its token ids.
 *
 * The draft runs over the sample once.  Then, layer by layer of the cache, ridge solutions: of K from the draft's
 * states and the exact layers before, of V from these and its own layer's exact K.  What is left tells scales and
 * statistics, as it will be coded.
 */
#include "gpu/codec/model_fit_internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/layer_fit.h"
#include "gpu/codec/model_solve.h"

#define RIDGE 1e-3
#define WEIGH_ONE (1 << MSPEC_WEIGH_FRAC)
#define DEVIATION_LEAST 1e-3 /* of a column, of the largest of its part */
#define ROTARY_SEGMENTS 2u   /* whose keys are looked at */
#define ROTARY_TOKENS 768u

struct draft_fit {		/* while fit_draft() runs */
	double most_k, most_v;	/* of the draft's keys and values of a layer */
	double *sums, *squares; /* owned; of columns: MSPEC_TAPS * hidden, or 2 * kv */
	uint32_t inputs;	/* of V; K's are all but the last kv */
	struct model_solve *solve;
	int32_t *x; /* owned; [FIT_ROWS][inputs] */
	double *weights_k, *weights_v;
};

/* ---- how keys were turned ---- */

/* Blocks of the longest sequence's first layers, from its start. */
static int rotary_sample(const struct mspec_fit *f, struct codec_geometry *g, uint8_t **ret_blocks,
			 uint32_t *ret_count)
{
	struct codec_segment segments[ROTARY_SEGMENTS];
	const struct fit_sequence *s = &f->sequences[0];
	const uint32_t count = f->shape.layers < ROTARY_SEGMENTS ? f->shape.layers
								 : ROTARY_SEGMENTS;
	uint32_t tokens;
	size_t bytes;
	uint8_t *to;
	int r;

	for (uint32_t i = 1; i < f->sequences_count; i++)
		if (f->sequences[i].count > s->count)
			s = &f->sequences[i];
	tokens = s->count < ROTARY_TOKENS ? s->count : ROTARY_TOKENS;
	for (uint32_t i = 0; i < count; i++)
		segments[i] = (struct codec_segment){ .kind = CODEC_KIND_K,
						      .dtype = (uint8_t)f->o.dtype,
						      .layer = (uint16_t)i,
						      .heads = (uint16_t)f->shape.kv_heads,
						      .head_dim = (uint16_t)f->shape.head_dim };
	*ret_count = tokens >= 16u ? tokens / 16u : 1u;
	r = codec_geometry_init(g, tokens / *ret_count, segments, count);
	if (r < 0)
		return r;
	*ret_blocks = to = malloc(*ret_count * g->raw_bytes);
	if (!to) {
		codec_geometry_deinit(g);
		return -ENOMEM;
	}
	bytes = (size_t)g->block_tokens * f->kv * f->type.bits / 8u;
	for (uint32_t b = 0; b < *ret_count; b++)
		for (uint32_t i = 0; i < count; i++, to += bytes)
			memcpy(to, s->patterns[2u * i] + b * bytes, bytes);
	return 0;
}

static int rotary_find(const struct mspec_fit *f, struct layer_rotary *ret)
{
	struct codec_geometry g;
	uint32_t positions[ROTARY_TOKENS], count;
	uint8_t *blocks;
	int r = rotary_sample(f, &g, &blocks, &count);

	if (r < 0)
		return r;
	for (uint32_t b = 0; b < count; b++)
		positions[b] = b * g.block_tokens;
	r = layer_rotary_find(&(struct layer_sample){ .g = &g,
						      .blocks = blocks,
						      .positions = positions,
						      .blocks_count = count,
						      .cancel = f->o.cancel },
			      ret);
	free(blocks);
	codec_geometry_deinit(&g);
	return r;
}

/* Pairs that lie side by side are taken as not turned: no model that can be loaded has them. */
static int rotary_set(struct mspec_fit *f)
{
	struct mspec_draft *d = f->p->draft;
	struct layer_rotary found = { 0 };
	int r = rotary_find(f, &found);

	if (r < 0)
		return r;
	d->theta = found.pairs && !found.interleaved ? found.theta : 0;
	f->p->coarse_rope = d->theta > 0 && found.round_bf16;
	mspec_draft_turns(d);
	return 0;
}

/* ---- the draft over the sample ---- */

static void step_embed(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	(void)layer;
	(void)mspec_pass_embed(&f->pass, c->s->ids + c->begin, NULL); /* ids were checked */
}

static double most(const int32_t *x, size_t count, double before)
{
	for (size_t i = 0; i < count; i++)
		before = fabs((double)x[i]) > before ? fabs((double)x[i]) : before;
	return before;
}

static void step_range(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const size_t count = (size_t)c->count * mspec_kv_width(&f->m->config);

	(void)layer;
	mspec_pass_guess_k(&f->pass);
	f->draft->most_k = most(f->pass.mu_k, count, f->draft->most_k);
	f->draft->most_v = most(f->pass.mu_v, count, f->draft->most_v);
}

static void step_own(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	(void)layer;
	(void)c;
	mspec_pass_own(&f->pass, f->k, f->v);
}

/* f->hidden: the draft's last hidden state of every row. */
static int pass_run(struct mspec_fit *f)
{
	const struct model_config *c = &f->m->config;
	int r = fit_walk(f, 0, f->hidden, NULL, step_embed);

	for (uint32_t i = 0; r == 0 && i < c->layers; i++) {
		struct mspec_layer *l = &f->p->layers[i];

		f->pass.layer = l;
		f->pass.w = &f->m->layers[i];
		l->eps_input = l->eps_post = (uint64_t)ldexp(c->norm_eps, 2 * MSPEC_HIDDEN_FRAC);
		fit_pass_set(f, l, 1, 1);
		f->draft->most_k = f->draft->most_v = 1;
		r = fit_walk(f, i, f->hidden, NULL, step_range);
		l->k_frac = fit_frac(f->draft->most_k);
		l->v_frac = fit_frac(f->draft->most_v);
		fit_pass_set(f, l, 1, 1);
		if (r == 0)
			r = fit_walk(f, i, f->hidden, NULL, step_own);
	}
	return r;
}

/* Of all positions of the sample, so that no chunk has to make any. */
static int turns_set(struct mspec_fit *f)
{
	const struct mspec_draft *d = f->p->draft;
	uint32_t longest = 0;

	for (uint32_t i = 0; i < f->sequences_count; i++)
		longest = f->sequences[i].count > longest ? f->sequences[i].count : longest;
	return mspec_turns_grow(&f->guess.turns, d->frequencies, d->shape.head_dim,
				f->p->coarse_rope, longest);
}

/* ---- inputs ---- */

/* A chunk's taps, and the exact values of the layer and of those that it looks back to. */
static void chunk_take(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const uint32_t hidden = f->m->config.hidden, back = f->p->draft->previous;

	step_embed(f, layer, c);
	(void)mspec_guess_start(&f->guess); /* has its cosines and sines: turns_set() */
	memcpy(f->pass.hidden, f->hidden + c->row * hidden,
	       (size_t)c->count * hidden * sizeof(int32_t));
	for (uint32_t l = layer < back ? 0 : layer - back; l <= layer; l++) {
		mspec_guess_layer(&f->guess, l);
		mspec_guess_exact(&f->guess, false, fit_patterns(f, c, 2u * l));
		mspec_guess_exact(&f->guess, true, fit_patterns(f, c, 2u * l + 1u));
	}
}

/* A row of a tap as the maps see it before its weights, in RESIDUAL_FRAC. */
static void tap_row(const struct mspec_fit *f, const int32_t *h, int32_t *to)
{
	const uint32_t count = f->m->config.hidden;
	const int32_t shift = model_norm_shift(f->pass.kernels->max32(h, count));
	const struct model_norm n = model_norm_of(f->pass.kernels->squares(h, count, shift), count,
						  f->p->layers[0].eps_input, shift);

	for (uint32_t i = 0; i < count; i++)
		to[i] = model_norm_apply(h[i], n, 1, MODEL_FRAC - RESIDUAL_FRAC);
}

static const int32_t *tap_at(const struct mspec_fit *f, uint32_t tap, uint32_t row)
{
	return (tap ? f->pass.hidden : f->guess.embedding) + (size_t)row * f->m->config.hidden;
}

static void moments_add(struct draft_fit *d, uint32_t first, const int32_t *x, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		d->sums[first + i] += x[i];
		d->squares[first + i] += (double)x[i] * x[i];
	}
}

/* Weights that make the deviations of all columns alike: so few bits do for the maps. */
static void weights_set(const struct mspec_fit *f, uint32_t first, uint32_t count, int16_t *ret)
{
	const double rows = (double)f->rows;
	double *deviation = f->draft->squares + first, largest = 1, middle = 0;

	assert(f->rows > 0 && count > 0);
	for (uint32_t i = 0; i < count; i++) {
		const double mean = f->draft->sums[first + i] / rows;
		const double square = deviation[i] / rows - mean * mean;

		deviation[i] = square > 0 ? sqrt(square) : 0;
		largest = deviation[i] > largest ? deviation[i] : largest;
	}
	for (uint32_t i = 0; i < count; i++) {
		deviation[i] = fmax(deviation[i], largest * DEVIATION_LEAST);
		middle += log(deviation[i]) / count;
	}
	for (uint32_t i = 0; i < count; i++) {
		const double w = rint(WEIGH_ONE * exp(middle) / deviation[i]);

		ret[i] = (int16_t)(w < 1 ? 1 : w > INT16_MAX ? INT16_MAX : w);
	}
}

static void step_norms(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const uint32_t hidden = f->m->config.hidden;

	chunk_take(f, layer, c);
	for (uint32_t r = 0; r < c->count; r++)
		for (uint32_t i = 0; i < MSPEC_TAPS; i++) {
			tap_row(f, tap_at(f, i, r), f->draft->x);
			moments_add(f->draft, i * hidden, f->draft->x, hidden);
		}
}

static int norms_set(struct mspec_fit *f)
{
	const uint32_t hidden = f->m->config.hidden;
	int r = fit_walk(f, 0, NULL, NULL, step_norms);

	for (uint32_t i = 0; r == 0 && i < MSPEC_TAPS; i++)
		weights_set(f, i * hidden, hidden, f->p->draft->norm[i].weights);
	return r;
}

/* ---- a layer ---- */

/* Rows of d->x and what they are to give, to the sums, but for those that are held out. */
static void rows_solve(struct mspec_fit *f, const struct fit_chunk *c, const int32_t *exact)
{
	const struct draft_fit *d = f->draft;
	const uint8_t *measured = f->measured + c->row;
	const size_t width = 2u * (size_t)f->kv;

	for (uint32_t r = 0, end; r < c->count; r = end) {
		for (end = r + 1u; end < c->count && measured[end] == measured[r]; end++)
			;
		if (!f->hold_out || !measured[r])
			model_solve_add(d->solve, d->x + (size_t)r * d->inputs, d->inputs,
					exact + r * width, (uint32_t)width, end - r);
	}
}

/* Inputs and what they are to give, to the sums. */
static void step_inputs(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const uint32_t hidden = f->m->config.hidden, kv = f->kv;
	const size_t bytes = kv * sizeof(int32_t);
	struct draft_fit *d = f->draft;
	const int32_t *exact;

	chunk_take(f, layer, c);
	exact = mspec_guess_values(&f->guess, layer);
	for (uint32_t r = 0; r < c->count; r++) {
		const size_t at = (size_t)r * 2u * kv;
		int32_t *x = d->x + (size_t)r * d->inputs;

		for (uint32_t i = 0; i < MSPEC_TAPS; i++, x += hidden)
			tap_row(f, tap_at(f, i, r), x);
		for (uint32_t i = 0; i < mspec_draft_past(f->p->draft, layer); i++, x += kv)
			memcpy(x,
			       mspec_guess_values(&f->guess, layer - 1u - i / 2u) + at +
				       (i % 2u ? kv : 0),
			       bytes);
		memcpy(x, exact + at, bytes);
		moments_add(d, 0, exact + at, 2u * kv);
	}
	rows_solve(f, c, exact);
}

/* Columns from `first` on of both solutions to a map of 2 * kv, or of V's alone to one of kv. */
static int map_set(const struct mspec_fit *f, uint32_t first, const int16_t *weigh,
		   struct mspec_matrix *m)
{
	const struct draft_fit *d = f->draft;
	const uint32_t kv = f->kv, k_outs = m->outs - kv;
	double *row = calloc(m->depth, sizeof(row[0]));
	int r = row ? 0 : -ENOMEM;

	assert(m->outs == kv || m->outs == 2u * kv);
	for (uint32_t o = 0; r == 0 && o < m->outs; o++) {
		const double *from = o < k_outs ? d->weights_k + (size_t)o * (d->inputs - kv)
						: d->weights_v + (size_t)(o - k_outs) * d->inputs;

		for (uint32_t i = 0; i < m->depth; i++)
			row[i] = from[first + i] * WEIGH_ONE / weigh[i];
		if (mspec_matrix_row(m, o, row) < 0)
			r = -EDOM;
	}
	free(row);
	return r;
}

static int maps_set(struct mspec_fit *f, uint32_t layer)
{
	const double ridge = f->o.ridge > 0 ? f->o.ridge : RIDGE;
	const struct mspec_draft *p = f->p->draft;
	struct mspec_draft_layer *l = &p->layers[layer];
	struct draft_fit *d = f->draft;
	uint32_t first = 0;
	int r;

	model_solve_centre(d->solve);
	r = model_solve_part(d->solve, d->inputs - f->kv, 0, f->kv, ridge, d->weights_k);
	if (r == 0)
		r = model_solve_part(d->solve, d->inputs, f->kv, f->kv, ridge, d->weights_v);
	for (uint32_t i = 0; r == 0 && i < MSPEC_TAPS; i++, first += l->tap[0].depth)
		r = map_set(f, first, p->norm[i].weights, &l->tap[i]);
	for (uint32_t i = 0; r == 0 && i < mspec_draft_past(p, layer); i++, first += f->kv)
		r = map_set(f, first, p->layers[layer - 1u - i / 2u].weigh + (i % 2u ? f->kv : 0),
			    &l->past[i]);
	return r < 0 ? r : map_set(f, first, l->weigh, &l->own);
}

static int layer_maps(struct mspec_fit *f, uint32_t layer)
{
	const uint32_t past = mspec_draft_past(f->p->draft, layer), kv = f->kv;
	struct mspec_draft_layer *l = &f->p->draft->layers[layer];
	struct draft_fit *d = f->draft;
	int r;

	d->inputs = MSPEC_TAPS * f->m->config.hidden + (past + 1u) * kv;
	memset(d->sums, 0, 2u * kv * sizeof(d->sums[0]));
	memset(d->squares, 0, 2u * kv * sizeof(d->squares[0]));
	r = model_solve_new_centred(d->inputs, 2u * kv, &d->solve);
	if (r == 0)
		r = fit_walk(f, layer, NULL, NULL, step_inputs);
	if (r == 0) {
		for (uint32_t v = 0; v < 2; v++) {
			double all = 0;

			for (uint32_t i = 0; i < kv; i++)
				all += d->squares[v * kv + i] / ((double)f->rows * kv);
			f->rms[v ? MSPEC_RMS_V : MSPEC_RMS_K] = sqrt(all) * 0x1p-16;
			weights_set(f, v * kv, kv, l->weigh + v * kv);
		}
		r = maps_set(f, layer);
	}
	d->solve = model_solve_free(d->solve);
	return r;
}

static void chunk_guess(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	chunk_take(f, layer, c);
	mspec_guess_k(&f->guess);
	mspec_guess_v(&f->guess);
}

static void step_errors(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const uint32_t kv = f->kv;
	const int32_t *exact;
	int32_t *e = fit_errors(f, c);

	chunk_guess(f, layer, c);
	exact = mspec_guess_values(&f->guess, layer);
	for (uint32_t r = 0; r < c->count; r++)
		for (uint32_t i = 0; i < 2u * kv; i++) {
			const size_t at = (size_t)r * 2u * kv + i;
			const int32_t guess = i < kv ? f->guess.sums[at]
						     : f->guess.mu_v[(size_t)r * kv + i - kv];

			e[at] = model_sat32((int64_t)exact[at] - guess);
		}
}

static void step_count(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	chunk_guess(f, layer, c);
	fit_count(f, c, 2u * layer, f->guess.mu_k);
	fit_count(f, c, 2u * layer + 1u, f->guess.mu_v);
}

static int fit_layer(struct mspec_fit *f, uint32_t layer)
{
	struct mspec_draft_layer *l = &f->p->draft->layers[layer];
	int r = layer_maps(f, layer);

	if (r == 0)
		r = fit_walk(f, layer, NULL, NULL, step_errors);
	if (r < 0)
		return r;
	fit_bias_set(f, 0, 1, l->bias);
	fit_bias_set(f, f->kv, 1, l->bias + f->kv);
	f->rms[MSPEC_RMS_K_ERR] = fit_scales(f, 2u * layer, l->base_k, NULL);
	f->rms[MSPEC_RMS_V_ERR] = fit_scales(f, 2u * layer + 1u, l->base_v, NULL);
	if (f->rms[MSPEC_RMS_K_ERR] < 0 || f->rms[MSPEC_RMS_V_ERR] < 0)
		return -ENOMEM;
	r = fit_walk(f, layer, NULL, NULL, step_count);
	if (r == 0 && f->o.layer_done)
		f->o.layer_done(f->o.user, layer, f->rms);
	return r;
}

static int scratch_init(struct mspec_fit *f, struct draft_fit *d)
{
	const uint32_t hidden = f->m->config.hidden, kv = f->kv;
	const size_t most_inputs = MSPEC_TAPS * hidden + (2u * f->o.previous + 1u) * (size_t)kv;
	const size_t columns = MSPEC_TAPS * hidden > 2u * kv ? MSPEC_TAPS * hidden : 2u * kv;

	d->sums = calloc(columns, sizeof(double));
	d->squares = calloc(columns, sizeof(double));
	d->x = calloc(FIT_ROWS * most_inputs, sizeof(int32_t));
	d->weights_k = calloc(kv * most_inputs, sizeof(double));
	d->weights_v = calloc(kv * most_inputs, sizeof(double));
	return d->sums && d->squares && d->x && d->weights_k && d->weights_v ? 0 : -ENOMEM;
}

int fit_draft(struct mspec_fit *f)
{
	struct draft_fit d = { 0 };
	int r = rotary_set(f);

	f->draft = &d;
	if (r == 0)
		r = scratch_init(f, &d);
	if (r == 0)
		r = pass_run(f);
	if (r == 0)
		r = mspec_guess_init(&f->guess, f->p, &f->pass);
	if (r == 0)
		r = turns_set(f);
	if (r == 0)
		r = norms_set(f);
	for (uint32_t l = 0; r == 0 && l < f->shape.layers; l++)
		r = fit_layer(f, l);
	f->draft = NULL;
	free(d.sums);
	free(d.squares);
	free(d.x);
	free(d.weights_k);
	free(d.weights_v);
	return r;
}
