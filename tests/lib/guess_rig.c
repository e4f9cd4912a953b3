/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guess_rig.c - see guess_rig.h.
 */
#include "tests/lib/guess_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *must(void *p)
{
	if (!p) {
		(void)fprintf(stderr, "guess_rig: no memory\n");
		abort();
	}
	return p;
}

static uint32_t segments_of(const struct mspec_params *p)
{
	return 2u * mspec_params_shape(p).layers;
}

static size_t scalars_of(const struct guess_sequence *s, const struct mspec_params *p)
{
	return (size_t)s->count * mspec_shape_kv(mspec_params_shape(p));
}

static uint32_t random_pattern(struct rng *rng, struct residual_type t, bool wild)
{
	const uint64_t x = rng_next(rng);
	uint32_t pattern = (uint32_t)(t.bias - 3) << t.mant_bits;

	if (wild && x >> 58 == 0)
		return (uint32_t)x & ((1u << t.bits) - 1u);
	pattern += (uint32_t)((x & 0xffffffffu) * (4u << t.mant_bits) >> 32);
	return pattern | (uint32_t)(x >> 32 & 1u) << (t.bits - 1u);
}

void guess_sequence_init(struct guess_sequence *s, struct rng *rng, const struct mspec_params *p,
			 uint32_t count, bool wild)
{
	const struct residual_type t = residual_type_of(p->dtype);
	const size_t element = t.bits / 8u;

	*s = (struct guess_sequence){ .count = count };
	s->ids = must(calloc(count, sizeof(s->ids[0])));
	s->patterns = must(calloc(segments_of(p), sizeof(s->patterns[0])));
	for (uint32_t i = 0; i < count; i++)
		s->ids[i] = (int32_t)rng_below(rng, p->model->config.vocab);
	for (uint32_t i = 0; i < segments_of(p); i++) {
		s->patterns[i] = must(malloc(scalars_of(s, p) * element));
		for (size_t at = 0; at < scalars_of(s, p); at++) {
			const uint32_t x = random_pattern(rng, t, wild);

			memcpy(s->patterns[i] + at * element, &x, element);
		}
	}
}

void guess_sequence_deinit(struct guess_sequence *s, const struct mspec_params *p)
{
	for (uint32_t i = 0; i < segments_of(p); i++) {
		free(s->patterns[i]);
		if (s->mu)
			free(s->mu[i]);
	}
	free(s->patterns);
	free((void *)s->mu);
	free(s->ids);
	*s = (struct guess_sequence){ .count = 0 };
}

/* ---- guesses ---- */

static uint32_t digest_of(const int32_t *mu, size_t count, uint32_t segment) /* as model.c */
{
	uint32_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		uint32_t x = (uint32_t)mu[i] + (uint32_t)i * 0x9e3779b9u + segment * 0x85ebca6bu;

		x = (x ^ x >> 16) * 0x7feb352du;
		x = (x ^ x >> 15) * 0x846ca68bu;
		sum += x ^ x >> 16;
	}
	return sum;
}

static void mu_keep(struct guess_sequence *s, const struct mspec_params *p, uint32_t segment,
		    const int32_t *mu)
{
	const size_t scalars = scalars_of(s, p);

	s->mu[segment] = must(malloc(scalars * sizeof(int32_t)));
	memcpy(s->mu[segment], mu, scalars * sizeof(int32_t));
	s->digest += digest_of(s->mu[segment], scalars, segment);
}

static void copy_segment(struct guess_sequence *s, const struct mspec_params *p,
			 struct mspec_pass *pass, uint32_t segment, int16_t *kept)
{
	const struct residual_type t = residual_type_of(p->dtype);
	const bool value = segment % 2u;

	mu_keep(s, p, segment, value ? pass->mu_v : pass->mu_k);
	mspec_pass_error(pass, t, value, s->patterns[segment]);
	mspec_kv_store(&p->model->config, t, s->patterns[segment], s->count,
		       value ? pass->layer->v_frac : pass->layer->k_frac, kept, s->count, 0);
}

static void copy_layer(struct guess_sequence *s, const struct mspec_params *p,
		       struct mspec_pass *pass, uint32_t layer, int16_t *k, int16_t *v)
{
	pass->k = k;
	pass->v = v;
	mspec_pass_guess_k(pass);
	copy_segment(s, p, pass, 2u * layer, k);
	mspec_pass_guess_v(pass);
	copy_segment(s, p, pass, 2u * layer + 1u, v);
	if (layer + 1u < p->model->config.layers) {
		mspec_pass_gain(pass);
		mspec_pass_finish(pass);
	}
}

/* From what a draft's pass has left. */
static void draft_layer(struct guess_sequence *s, struct mspec_guess *g, uint32_t layer)
{
	mspec_guess_layer(g, layer);
	mspec_guess_k(g);
	mu_keep(s, g->p, 2u * layer, g->mu_k);
	mspec_guess_exact(g, false, s->patterns[2u * layer]);
	mspec_guess_v(g);
	mu_keep(s, g->p, 2u * layer + 1u, g->mu_v);
	mspec_guess_exact(g, true, s->patterns[2u * layer + 1u]);
}

static void run(struct guess_sequence *s, const struct mspec_params *p, struct mspec_pass *pass,
		struct mspec_guess *g)
{
	const struct model_config *c = &p->model->config;
	const size_t kept = (size_t)s->count * mspec_kv_width(c);
	int16_t *k = must(calloc(kept, sizeof(*k))), *v = must(calloc(kept, sizeof(*v)));

	for (uint32_t l = 0; l < c->layers; l++) {
		pass->layer = &p->layers[l];
		pass->w = &p->model->layers[l];
		pass->capacity = s->count;
		if (p->draft)
			mspec_pass_own(pass, k, v);
		else
			copy_layer(s, p, pass, l, k, v);
	}
	for (uint32_t l = 0; p->draft && l < p->draft->shape.layers; l++)
		draft_layer(s, g, l);
	free(k);
	free(v);
}

void guess_sequence_run(struct guess_sequence *s, const struct mspec_params *p,
			const struct mspec_runner *runner)
{
	struct mspec_guess g = { .p = NULL };
	struct mspec_pass pass;
	int r = mspec_pass_init(&pass, p->model, runner, s->count, mspec_guess_widest(p));

	s->mu = must(calloc(segments_of(p), sizeof(s->mu[0])));
	pass.precision = p->precision;
	pass.coarse_rope = p->coarse_rope && !p->draft;
	if (r == 0)
		r = mspec_pass_start(&pass, 0, s->count);
	if (r == 0)
		r = mspec_pass_embed(&pass, p->ids ? s->ids : NULL, p->start);
	if (r == 0 && p->draft)
		r = mspec_guess_init(&g, p, &pass);
	if (r == 0 && p->draft)
		r = mspec_guess_start(&g);
	if (r < 0) {
		(void)fprintf(stderr, "guess_rig: %d\n", r);
		abort();
	}
	run(s, p, &pass, &g);
	mspec_guess_deinit(&g);
	mspec_pass_deinit(&pass);
}
