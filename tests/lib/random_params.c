/* SPDX-License-Identifier: Apache-2.0 */
/*
 * random_params.c - see random_params.h.
 */
#include "tests/lib/random_params.h"

#include <math.h>
#include <stdlib.h>

/* Weights of about 2^log2 at most. */
static void random_matrix(struct rng *rng, struct mspec_matrix *m, int log2)
{
	for (uint32_t o = 0; o < m->outs; o++) {
		rng_fill(rng, m->high + (size_t)o * m->pitch, m->depth);
		if (m->low)
			rng_fill(rng, m->low + (size_t)o * m->pitch, m->depth);
		m->mants[o] = (uint16_t)(0x8000u + rng_below(rng, 0x8000));
		m->exps[o] = (int16_t)(log2 - 31);
	}
}

/* What a pass attends with. */
static void random_pass(const struct model_config *c, struct mspec_layer *l)
{
	l->k_frac = l->v_frac = 10;
	l->unit_k = l->unit_v = mspec_scale_of(ldexp(1, RESIDUAL_FRAC - MODEL_FRAC));
	l->real_v = mspec_scale_of(ldexp(1, MODEL_FRAC - 8 - l->v_frac));
	l->score = mspec_scale_of(ldexp(M_LOG2E / sqrt(c->head_dim), MODEL_EXP_BITS - l->k_frac));
	l->eps_input = l->eps_post = (uint64_t)ldexp(c->norm_eps, 2 * MSPEC_HIDDEN_FRAC);
}

static void random_layer(struct rng *rng, const struct model_config *c, struct mspec_layer *l)
{
	random_pass(c, l);
	for (uint32_t i = 0; i < mspec_kv_width(c); i++) {
		l->bias_k[i] = (int32_t)rng_below(rng, 1u << 17) - (1 << 16);
		l->bias_v[i] = (int32_t)rng_below(rng, 1u << 17) - (1 << 16);
		l->sigma_k[i] = (int16_t)(30 + rng_below(rng, 30));
		l->sigma_v[i] = (int16_t)(30 + rng_below(rng, 30));
		l->base_k[i] = l->base_v[i] = 60;
	}
	random_matrix(rng, &l->value_map, -5);
	random_matrix(rng, &l->gain_k, -8);
	random_matrix(rng, &l->gain_v, -8);
}

struct mspec_params *random_params_new(struct rng *rng, const struct mspec_model *m, uint32_t dtype,
				       bool ids, struct mspec_precision precision)
{
	struct mspec_params *p = NULL;

	if (mspec_params_new(m, dtype, precision, &p) < 0)
		abort();
	p->ids = ids;
	for (uint32_t i = 0; i < m->config.hidden; i++)
		p->start[i] = (int32_t)rng_below(rng, 1u << 16) - (1 << 15);
	for (uint32_t i = 0; i < m->config.layers; i++) {
		p->scale_k[i] = p->scale_v[i] = 1;
		random_layer(rng, &m->config, &p->layers[i]);
	}
	return p;
}

static void random_draft_layer(struct rng *rng, const struct mspec_draft *d, uint32_t layer)
{
	struct mspec_draft_layer *l = &d->layers[layer];
	const uint32_t kv = mspec_shape_kv(d->shape);

	for (uint32_t i = 0; i < 2u * kv; i++) {
		l->bias[i] = (int32_t)rng_below(rng, 1u << 17) - (1 << 16);
		l->weigh[i] = (int16_t)(1 + rng_below(rng, INT16_MAX));
	}
	for (uint32_t i = 0; i < kv; i++)
		l->base_k[i] = l->base_v[i] = 60;
	for (uint32_t i = 0; i < MSPEC_TAPS; i++)
		random_matrix(rng, &l->tap[i], -8);
	for (uint32_t i = 0; i < mspec_draft_past(d, layer); i++)
		random_matrix(rng, &l->past[i], -8);
	random_matrix(rng, &l->own, -8);
}

struct mspec_params *random_params_new_draft(struct rng *rng, const struct mspec_model *m,
					     struct mspec_shape shape, uint32_t previous,
					     uint32_t dtype, struct mspec_precision precision)
{
	static const struct residual_counts none;
	struct mspec_params *p = NULL;

	if (mspec_params_new_draft(m, shape, previous, dtype, precision, &p) < 0)
		abort();
	p->draft->theta = 10000;
	for (uint32_t i = 0; i < m->config.layers; i++)
		random_pass(&m->config, &p->layers[i]);
	for (uint32_t i = 0; i < MSPEC_TAPS; i++)
		for (uint32_t k = 0; k < m->config.hidden; k++)
			p->draft->norm[i].weights[k] = (int16_t)(1 + rng_below(rng, INT16_MAX));
	for (uint32_t i = 0; i < shape.layers; i++) {
		p->scale_k[i] = p->scale_v[i] = 1;
		random_draft_layer(rng, p->draft, i);
	}
	for (uint32_t i = 0; i < 2; i++)
		residual_freqs_fit(&none, &p->freqs[i]);
	if (mspec_params_seal(p) < 0)
		abort();
	return p;
}
