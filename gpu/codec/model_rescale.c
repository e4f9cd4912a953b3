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

int mspec_params_rescale(const struct mspec_params *p, const float *scale_k, const float *scale_v,
			 struct mspec_params **ret)
{
	const struct model_config *c = &p->model->config;
	struct mspec_params *to = NULL;
	uint8_t *bytes = NULL;
	size_t count = 0;
	int r;

	for (uint32_t l = 0; l < c->layers; l++)
		if ((scale_k && !mspec_scale_good(scale_k[l])) ||
		    (scale_v && !mspec_scale_good(scale_v[l])))
			return -EINVAL;
	r = mspec_params_serialise(p, &bytes, &count); /* the way to a copy */
	if (r == 0)
		r = mspec_params_parse(p->model, bytes, count, &to);
	free(bytes);
	if (r < 0)
		return r;
	assert(to);
	for (uint32_t l = 0; l < c->layers; l++) {
		const float k = scale_k ? scale_k[l] : 1, v = scale_v ? scale_v[l] : 1;

		layer_move(&to->layers[l], mspec_kv_width(c), (double)p->scale_k[l] / k,
			   (double)p->scale_v[l] / v);
		to->scale_k[l] = k;
		to->scale_v[l] = v;
	}
	r = mspec_params_seal(to);
	if (r < 0)
		mspec_params_free(to);
	else
		*ret = to;
	return r;
}
