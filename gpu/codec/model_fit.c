/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_fit.c - the parameters of a copy of the model from a sample of its cache and token ids.
 *
 * Layer by layer over the whole sample, two passes walk together: the truth, a copy of the model in two planes
 * throughout that attends over the cache's own keys and values and is never corrected, and the guess, as it
 * will be coded with what was fitted so far.  Their difference is what the gain learns to undo.
 */
#include "gpu/codec/model_fit_internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/model_solve.h"

#define RIDGE 1e-3

static void pass_as(struct mspec_fit *f, uint32_t layer, bool truth)
{
	static const struct mspec_precision all = {
		.wide = { 3, 3, 3, 3, 3, 3 },
	};

	f->pass.precision = truth ? all : f->o.precision;
	f->pass.layer = truth ? &f->truth : &f->p->layers[layer];
	f->pass.w = &f->m->layers[layer];
}

/* The layer's context of a chunk's sequence. */
static void store_context(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const struct mspec_layer *l = &f->p->layers[layer];
	const struct fit_sequence *s = c->s;

	mspec_kv_store(&f->m->config, f->type, s->patterns[2u * layer], s->count, l->k_frac, f->k,
		       s->count, 0);
	mspec_kv_store(&f->m->config, f->type, s->patterns[2u * layer + 1u], s->count, l->v_frac,
		       f->v, s->count, 0);
}

static int walk(struct mspec_fit *f, uint32_t layer, int32_t *hidden, fit_step *step)
{
	return fit_walk(f, layer, hidden, store_context, step);
}

/* ---- steps, each over the whole sample ---- */

static void step_embed(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	(void)layer;
	(void)mspec_pass_embed(&f->pass, c->s->ids + c->begin, NULL); /* ids were checked */
}

static void step_guess_k(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);

	mspec_pass_guess_k(&f->pass);
	mspec_pass_error(&f->pass, f->type, false, fit_patterns(f, c, 2u * layer));
	mspec_pass_error(&f->pass, f->type, true, fit_patterns(f, c, 2u * layer + 1u));
	memcpy(fit_errors(f, c), f->pass.error, (size_t)c->count * 2u * kv * sizeof(int32_t));
	memcpy(f->mu_v + c->row * kv, f->pass.mu_v, (size_t)c->count * kv * sizeof(int32_t));
}

/* The guess as it will be coded; the scales are known by now. */
static void step_count(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	mspec_pass_guess_k(&f->pass);
	fit_count(f, c, 2u * layer, f->pass.mu_k);
	mspec_pass_error(&f->pass, f->type, false, fit_patterns(f, c, 2u * layer));
	mspec_pass_guess_v(&f->pass);
	fit_count(f, c, 2u * layer + 1u, f->pass.mu_v);
	mspec_pass_error(&f->pass, f->type, true, fit_patterns(f, c, 2u * layer + 1u));
	mspec_pass_gain(&f->pass);
}

static void step_finish(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	(void)layer;
	(void)c;
	mspec_pass_finish(&f->pass);
}

/* The truth with keys and values of its own: what the cache held before it was rounded to few bits. */
static void step_finish_own(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	(void)layer;
	(void)c;
	mspec_pass_own(&f->pass, f->k, f->v);
}

/* V's guess with the map, and what is left of V's error. */
static void step_guess_v(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);

	memcpy(f->pass.error, fit_errors(f, c), (size_t)c->count * 2u * kv * sizeof(int32_t));
	memcpy(f->pass.mu_v, f->mu_v + c->row * kv, (size_t)c->count * kv * sizeof(int32_t));
	mspec_pass_guess_v(&f->pass);
	mspec_pass_error(&f->pass, f->type, true, fit_patterns(f, c, 2u * layer + 1u));
	memcpy(fit_errors(f, c), f->pass.error, (size_t)c->count * 2u * kv * sizeof(int32_t));
}

/* ---- what is fitted ---- */

static void range_of(const struct mspec_fit *f, uint32_t segment, int32_t *ret_frac,
		     double *ret_rms)
{
	double max = 1, squares = 0;

	for (uint32_t i = 0; i < f->sequences_count; i++) {
		const struct fit_sequence *s = &f->sequences[i];

		for (size_t at = 0; at < (size_t)s->count * f->kv; at++) {
			double x = residual_fixed(
				f->type, codec_pattern_at(s->patterns[segment], at, f->type.bits));

			max = fabs(x) > max ? fabs(x) : max;
			squares += x * x;
		}
	}
	*ret_rms = sqrt(squares / ((double)f->rows * f->kv)) * 0x1p-16;
	*ret_frac = fit_frac(max);
}

static void scales_set(struct mspec_fit *f, uint32_t layer)
{
	const struct model_config *c = &f->m->config;
	struct mspec_layer *l = &f->p->layers[layer];
	const double scale_k = f->scales[layer], scale_v = f->scales[c->layers + layer];

	range_of(f, 2u * layer, &l->k_frac, &f->rms[MSPEC_RMS_K]);
	range_of(f, 2u * layer + 1u, &l->v_frac, &f->rms[MSPEC_RMS_V]);
	fit_pass_set(f, l, scale_k, scale_v);
	f->truth = *l;
	f->truth.bias_k = f->truth.bias_v = NULL;
	f->truth.sigma_k = f->truth.sigma_v = NULL;
	for (uint32_t i = 0; i < mspec_kv_width(c); i++) /* for now: errors as they are */
		l->sigma_k[i] = l->sigma_v[i] = MSPEC_BASE_MAX;
	f->truth.eps_input = f->truth.eps_post = (uint64_t)ldexp(c->norm_eps,
								 2 * MSPEC_HIDDEN_FRAC);
}

/* Mean square of what the hidden state lacks, in its integers. */
static double hidden_gap(struct mspec_fit *f)
{
	const size_t n = f->rows * f->m->config.hidden;
	double squares = 0, all = 0;

	for (size_t i = 0; i < n; i++) {
		double d = (double)f->hidden_true[i] - f->hidden[i];

		squares += d * d;
		all += (double)f->hidden_true[i] * f->hidden_true[i];
	}
	f->rms[MSPEC_RMS_HIDDEN] = sqrt(all / (double)n) * 0x1p-16;
	return squares / (double)n;
}

static int value_map_set(struct mspec_fit *f, uint32_t layer)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);
	double *weights = malloc((size_t)kv * kv * sizeof(double));
	struct model_solve *s = NULL;
	int r = weights ? model_solve_new(kv, kv, &s) : -ENOMEM;

	if (r == 0) {
		assert(f->rows <= UINT32_MAX);
		model_solve_add(s, f->error, 2u * kv, f->error + kv, 2u * kv, (uint32_t)f->rows);
		r = model_solve_finish(s, f->o.ridge > 0 ? f->o.ridge : RIDGE, weights);
	}
	if (r == 0)
		r = fit_map_set(&f->p->layers[layer].value_map, weights, kv);
	model_solve_free(s);
	free(weights);
	return r;
}

static int gain_set(struct mspec_fit *f, uint32_t layer)
{
	const uint32_t kv = mspec_kv_width(&f->m->config), hidden = f->m->config.hidden;
	double *weights = malloc((size_t)hidden * 2u * kv * sizeof(double));
	int32_t *gap = malloc((size_t)FIT_ROWS * hidden * sizeof(int32_t));
	struct model_solve *s = NULL;
	int r = weights && gap ? model_solve_new(2u * kv, hidden, &s) : -ENOMEM;

	for (size_t row = 0; r == 0 && row < f->rows; row += FIT_ROWS) {
		const uint32_t n = f->rows - row < FIT_ROWS ? (uint32_t)(f->rows - row) : FIT_ROWS;
		const int32_t *a = f->hidden_true + row * hidden, *b = f->hidden + row * hidden;

		for (size_t i = 0; i < (size_t)n * hidden; i++)
			gap[i] = model_sat32((int64_t)a[i] - b[i]);
		model_solve_add(s, f->error + row * 2u * kv, 2u * kv, gap, hidden, n);
	}
	if (r == 0)
		r = model_solve_finish(s, f->o.ridge > 0 ? f->o.ridge : RIDGE, weights);
	if (r == 0)
		r = fit_map_set(&f->p->layers[layer].gain_k, weights, 2u * kv);
	if (r == 0)
		r = fit_map_set(&f->p->layers[layer].gain_v, weights + kv, 2u * kv);
	model_solve_free(s);
	free(gap);
	free(weights);
	return r;
}

/* ---- what the engine did, found out ---- */

static void step_truth_error(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);
	const uint8_t *patterns = fit_patterns(f, c, 2u * layer);

	mspec_pass_guess_k(&f->pass);
	for (size_t i = 0; i < (size_t)c->count * kv; i++) {
		double e = (double)residual_fixed(f->type,
						  codec_pattern_at(patterns, i, f->type.bits)) -
			   f->pass.mu_k[i];

		f->truth_error += e * e;
	}
}

/* How far the truth is from the cache's keys: squares summed. */
static int truth_error(struct mspec_fit *f, uint32_t layer, double *ret)
{
	int r;

	scales_set(f, layer);
	pass_as(f, layer, true);
	f->truth_error = 0;
	r = walk(f, layer, f->hidden_true, step_truth_error);
	*ret = f->truth_error;
	return r;
}

static void rope_as(struct mspec_fit *f, bool coarse)
{
	f->p->coarse_rope = f->pass.coarse_rope = coarse;
	f->pass.turns.count = 0;
}

/* Cosines and sines in the model's type, or finer? */
static int rope_choose(struct mspec_fit *f)
{
	double coarse = 0, fine = 0;
	int r;

	rope_as(f, true);
	r = truth_error(f, 0, &coarse);
	rope_as(f, false);
	if (r == 0)
		r = truth_error(f, 0, &fine);
	rope_as(f, coarse <= fine);
	return r;
}

/* Layer 0 of the truth, over the cache's values or its own: whichever gives the better keys in layer 1. */
static int attention_choose(struct mspec_fit *f)
{
	const size_t count = f->rows * f->m->config.hidden;
	int32_t *before;
	double cache = 0, own = 0;
	int r;

	assert(count > 0);
	before = malloc(count * sizeof(before[0]));
	r = before ? 0 : -ENOMEM;

	if (r == 0) {
		memcpy(before, f->hidden_true, count * sizeof(before[0]));
		pass_as(f, 0, true);
		r = walk(f, 0, f->hidden_true, step_finish);
	}
	if (r == 0)
		r = truth_error(f, 1, &cache);
	if (r == 0) {
		memcpy(f->hidden_true, before, count * sizeof(before[0]));
		scales_set(f, 0);
		pass_as(f, 0, true);
		r = walk(f, 0, f->hidden_true, step_finish_own);
	}
	if (r == 0)
		r = truth_error(f, 1, &own);
	if (r == 0)
		memcpy(f->hidden_true, before, count * sizeof(before[0]));
	f->own_attention = own < cache;
	free(before);
	return r;
}

static int choose(struct mspec_fit *f)
{
	int r = rope_choose(f);

	f->own_attention = false;
	if (r == 0 && f->type.bits == 8 && f->m->config.layers > 1)
		r = attention_choose(f);
	return r;
}

static int fit_layer(struct mspec_fit *f, uint32_t layer)
{
	struct mspec_layer *l = &f->p->layers[layer];
	const struct model_config *c = &f->m->config;
	const uint32_t kv = mspec_kv_width(c);
	double gap;
	int r;

	scales_set(f, layer);
	gap = hidden_gap(f);
	f->rms[MSPEC_RMS_HIDDEN_ERR] = sqrt(gap) * 0x1p-16;
	l->eps_input = f->truth.eps_input + (uint64_t)gap;
	pass_as(f, layer, false);
	r = walk(f, layer, f->hidden, step_guess_k);
	if (r < 0)
		return r;
	fit_bias_set(f, 0, 16 * f->scales[layer], l->bias_k); /* RESIDUAL_FRAC to MODEL_FRAC */
	fit_bias_set(f, kv, 16 * f->scales[c->layers + layer], l->bias_v);
	r = walk(f, layer, f->hidden, step_guess_k);
	if (r == 0)
		f->rms[MSPEC_RMS_K_ERR] = fit_scales(f, 2u * layer, l->base_k, l->sigma_k);
	if (r == 0)
		r = walk(f, layer, f->hidden, step_guess_k);
	if (r == 0)
		r = value_map_set(f, layer);
	if (r == 0)
		r = walk(f, layer, f->hidden, step_guess_v);
	if (r == 0)
		f->rms[MSPEC_RMS_V_ERR] = fit_scales(f, 2u * layer + 1u, l->base_v, l->sigma_v);
	if (r == 0)
		r = walk(f, layer, f->hidden, step_guess_v);
	if (r == 0)
		r = gain_set(f, layer);
	if (r < 0)
		return r;
	if (f->rms[MSPEC_RMS_K_ERR] < 0 || f->rms[MSPEC_RMS_V_ERR] < 0)
		return -ENOMEM;
	r = walk(f, layer, f->hidden, step_count);
	gap = hidden_gap(f);
	f->rms[MSPEC_RMS_HIDDEN_AFTER] = sqrt(gap) * 0x1p-16;
	l->eps_post = f->truth.eps_input + (uint64_t)gap;
	if (r == 0 && f->o.layer_done)
		f->o.layer_done(f->o.user, layer, f->rms);
	if (r == 0 && layer + 1u < c->layers) {
		r = walk(f, layer, f->hidden, step_finish);
		pass_as(f, layer, true);
		if (r == 0)
			r = walk(f, layer, f->hidden_true,
				 f->own_attention ? step_finish_own : step_finish);
	}
	return r;
}

/* Where the hidden state starts: the embeddings, or their mean. */
static int start_set(struct mspec_fit *f)
{
	const uint32_t hidden = f->m->config.hidden;
	int r = walk(f, 0, f->hidden_true, step_embed);

	if (r < 0)
		return r;
	assert(f->rows > 0);
	for (uint32_t i = 0; i < hidden; i++) {
		int64_t sum = 0;

		for (size_t row = 0; row < f->rows; row++)
			sum += f->hidden_true[row * hidden + i];
		f->p->start[i] = f->o.ids ? 0 : (int32_t)(sum / (int64_t)f->rows);
	}
	for (size_t row = 0; row < f->rows; row++)
		memcpy(f->hidden + row * hidden,
		       f->o.ids ? f->hidden_true + row * hidden : f->p->start,
		       hidden * sizeof(int32_t));
	return 0;
}

int fit_copy(struct mspec_fit *f)
{
	const uint32_t hidden = f->m->config.hidden;
	int r;

	assert(f->rows > 0 && hidden > 0 && f->kv > 0);
	f->hidden_true = calloc(f->rows * hidden, sizeof(int32_t));
	f->mu_v = calloc(f->rows * f->kv, sizeof(int32_t));
	r = f->hidden_true && f->mu_v ? start_set(f) : -ENOMEM;
	if (r == 0)
		r = choose(f);
	for (uint32_t l = 0; r == 0 && l < f->shape.layers; l++)
		r = fit_layer(f, l);
	return r;
}
