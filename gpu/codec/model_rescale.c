/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_rescale.c - parameters for a cache with other scales: everything in the cache's units moves with them.
 *
 * An encoder and a decoder both do this, so it has to come out alike: products, quotients and rounding only.
 */
#include "gpu/codec/model_internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define ROOM 1.25 /* a context's range has it to spare */

bool mspec_scale_good(float x)
{
	return x > 1e-20f && x < 1e20f;
}

/* round(4 log2 x) */
static int32_t quarter_octaves(double x)
{
	/* 2^(-7/8), 2^(-5/8), 2^(-3/8), 2^(-1/8) */
	static const double parts[] = { 0.54525386633262882, 0.64841977732550483,
					0.77110541270397041, 0.91700404320467122 };
	int exp;
	double mant = frexp(x, &exp);
	int32_t q = 4 * exp - 4;

	for (uint32_t i = 0; i < 4; i++)
		q += mant >= parts[i];
	return q;
}

static void scale_times(struct model_scale *s, double factor)
{
	*s = mspec_scale_of(ldexp(s->mant, s->exp) * factor);
}

static void base_move(int16_t *base, uint32_t count, int32_t by)
{
	for (uint32_t i = 0; i < count; i++) {
		int32_t b = base[i] + by;

		base[i] = (int16_t)(b < MSPEC_BASE_MIN	 ? MSPEC_BASE_MIN
				    : b > MSPEC_BASE_MAX ? MSPEC_BASE_MAX
							 : b);
	}
}

/* Fraction bits that values `by` times as large have to do without. */
static int32_t range_move(double by)
{
	int exp = 0;

	if (by > ROOM)
		(void)frexp(by, &exp);
	return exp;
}

/* k, v: how many times as large the cache's values are now */
static void layer_move(struct mspec_layer *l, uint32_t kv, double k, double v)
{
	const int32_t k_bits = range_move(k), v_bits = range_move(v);

	l->k_frac -= k_bits;
	l->v_frac -= v_bits;
	scale_times(&l->unit_k, k);
	scale_times(&l->unit_v, v);
	scale_times(&l->score, ldexp(1 / k, k_bits));
	scale_times(&l->real_v, ldexp(1 / v, v_bits));
	base_move(l->sigma_k, kv, quarter_octaves(k));
	base_move(l->sigma_v, kv, quarter_octaves(v));
	base_move(l->base_k, kv, quarter_octaves(k));
	base_move(l->base_v, kv, quarter_octaves(v));
	mspec_matrix_times(&l->value_map, v / k);
	mspec_matrix_times(&l->gain_k, 1 / k);
	mspec_matrix_times(&l->gain_v, 1 / v);
}

/* Rows of a map from `first` on. */
static void rows_times(struct mspec_matrix *m, uint32_t first, uint32_t count, double factor)
{
	struct mspec_matrix rows = { .outs = count,
				     .mants = m->mants + first,
				     .exps = m->exps + first };

	mspec_matrix_times(&rows, factor);
}

/*
 * by: how many times as large the cache's values are now, K's and V's of each layer.  Inputs keep their weights, as all
 * of a part move alike.
 */
static void draft_layer_move(const struct mspec_draft *d, uint32_t layer, const double *by)
{
	struct mspec_draft_layer *l = &d->layers[layer];
	const uint32_t kv = mspec_shape_kv(d->shape);

	for (uint32_t v = 0; v < 2; v++) {
		const double to = by[2u * layer + v];

		for (uint32_t i = v * kv; i < (v + 1u) * kv; i++)
			l->bias[i] = model_times(l->bias[i], mspec_scale_of(to));
		for (uint32_t i = 0; i < MSPEC_TAPS; i++)
			rows_times(&l->tap[i], v * kv, kv, to);
		for (uint32_t i = 0; i < mspec_draft_past(d, layer); i++)
			rows_times(&l->past[i], v * kv, kv,
				   to / by[2u * (layer - 1u - i / 2u) + i % 2u]);
		base_move(v ? l->base_v : l->base_k, kv, quarter_octaves(to));
	}
	mspec_matrix_times(&l->own, by[2u * layer + 1u] / by[2u * layer]);
}

int mspec_params_rescale(const struct mspec_params *p, const float *scale_k, const float *scale_v,
			 struct mspec_params **ret)
{
	const struct mspec_shape shape = mspec_params_shape(p);
	struct mspec_params *to = NULL;
	uint8_t *bytes = NULL;
	double *by; /* [layers][K, V] */
	size_t count = 0;
	int r;

	assert(shape.layers > 0);
	for (uint32_t l = 0; l < shape.layers; l++)
		if ((scale_k && !mspec_scale_good(scale_k[l])) ||
		    (scale_v && !mspec_scale_good(scale_v[l])))
			return -EINVAL;
	by = calloc(2u * (size_t)shape.layers, sizeof(by[0]));
	r = by ? mspec_params_serialise(p, &bytes, &count) : -ENOMEM; /* the way to a copy */
	if (r == 0)
		r = mspec_params_parse(p->model, bytes, count, &to);
	free(bytes);
	if (r < 0) {
		free(by);
		return r;
	}
	assert(to);
	for (uint32_t l = 0; l < shape.layers; l++) {
		to->scale_k[l] = scale_k ? scale_k[l] : 1;
		to->scale_v[l] = scale_v ? scale_v[l] : 1;
		by[2u * l] = (double)p->scale_k[l] / to->scale_k[l];
		by[2u * l + 1u] = (double)p->scale_v[l] / to->scale_v[l];
	}
	for (uint32_t l = 0; l < shape.layers; l++)
		if (to->draft)
			draft_layer_move(to->draft, l, by);
		else
			layer_move(&to->layers[l], mspec_shape_kv(shape), by[2u * l],
				   by[2u * l + 1u]);
	free(by);
	r = mspec_params_seal(to);
	if (r < 0)
		mspec_params_free(to);
	else
		*ret = to;
	return r;
}
