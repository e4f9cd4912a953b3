/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_fit_model.c - sample sequences into the parameters of the `model` speculator, and these into a profile.
 */
#include <assert.h>
#include <cblas.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/model.h"
#include "gpu/cpu_fit.h"

/* Rows of all samples, segment by segment, in the model's order: K of layer 0, V of layer 0, K of layer 1, ... */
struct rows {
	struct mspec_shape shape;
	uint32_t segments_count;
	uint8_t *bytes;	       /* owned */
	const uint8_t **begin; /* owned, [segments_count] */
	size_t row_bytes;      /* of one token of a segment */
	uint8_t dtype;
};

/* The segment of this kind and layer; -1: none, or not one such. */
static int find(const struct codec_geometry *g, uint32_t layer, uint8_t kind)
{
	int found = -1;

	for (uint32_t i = 0; i < g->segments_count; i++)
		if (g->segments[i].kind == kind && g->segments[i].layer == layer) {
			if (found >= 0)
				return -1;
			found = (int)i;
		}
	return found;
}

static void rows_free(struct rows *r)
{
	free(r->bytes);
	free((void *)r->begin);
}

static int rows_make(const struct device_task *t, struct rows *r)
{
	const struct codec_geometry *g = t->geom;
	const uint32_t tokens = g->block_tokens;
	const int first = find(g, 0, CODEC_KIND_K);

	if (first < 0 || codec_dtype_bytes(g->segments[first].dtype) == 0 ||
	    mspec_shape_of(g, &r->shape) < 0)
		return -EINVAL;
	r->dtype = g->segments[first].dtype;
	r->row_bytes = (size_t)r->shape.kv_heads * r->shape.head_dim * codec_dtype_bytes(r->dtype);
	r->segments_count = 2u * r->shape.layers;
	assert(r->segments_count > 0); /* the first keys are there */
	r->begin = calloc(r->segments_count, sizeof(r->begin[0]));
	r->bytes = malloc(r->segments_count * r->row_bytes * tokens * t->samples_count);
	if (!r->begin || !r->bytes)
		return -ENOMEM;
	for (uint32_t i = 0; i < r->segments_count; i++) {
		const int at = find(g, i / 2u, i % 2u ? CODEC_KIND_V : CODEC_KIND_K);
		uint8_t *to = r->bytes + (size_t)i * r->row_bytes * tokens * t->samples_count;

		if (at < 0 || g->segments[at].dtype != r->dtype ||
		    g->segments[at].heads != r->shape.kv_heads ||
		    g->segments[at].head_dim != r->shape.head_dim)
			return -EINVAL;
		r->begin[i] = to;
		for (uint32_t b = 0; b < t->samples_count; b++, to += r->row_bytes * tokens)
			memcpy(to, (const uint8_t *)t->in + b * g->raw_bytes + g->segment_off[at],
			       r->row_bytes * tokens);
	}
	return 0;
}

/* Each sequence of samples: those from one at position 0 to the next such. */
static int sequences_add(const struct device_task *t, const struct rows *r, struct mspec_fit *f)
{
	const uint8_t **at = calloc(r->segments_count, sizeof(at[0]));
	const uint32_t tokens = t->geom->block_tokens;
	int e = at ? 0 : -ENOMEM;

	for (uint32_t b = 0, n; e == 0 && b < t->samples_count; b += n) {
		for (n = 1; b + n < t->samples_count && t->positions[b + n] != 0; n++)
			;
		for (uint32_t i = 0; i < r->segments_count; i++)
			at[i] = r->begin[i] + (size_t)b * tokens * r->row_bytes;
		e = mspec_fit_add(f, t->tokens + (size_t)b * tokens, at, n * tokens);
	}
	free((void *)at);
	return e;
}

static int fit(struct device_task *t, const struct rows *r)
{
	const struct mspec_fit_options o = { .mode = mspec_mode_for(t->model, r->shape),
					     .cache = r->shape,
					     .previous = t->previous,
					     .dtype = r->dtype,
					     .ids = true,
					     .precision = mspec_precision_default(),
					     .cancel = &t->cancel };
	char err[CODEC_ERR_BYTES] = "";
	struct mspec_params *params = NULL;
	struct mspec_fit *f = NULL;
	int e = mspec_fit_new(t->model, &o, &f);

	if (e == 0)
		e = sequences_add(t, r, f);
	if (e == 0)
		e = mspec_fit_finish(f, &params);
	if (e == 0) {
		t->bits_model = mspec_fit_bits(f);
		e = codec_profile_with_model(t->geom, t->profile, params, t->bits_model,
					     &t->ret_profile, err, sizeof(err));
	}
	mspec_fit_free(f);
	mspec_params_free(params);
	return e;
}

int cpu_fit_model(struct device_task *t)
{
	struct rows r = { 0 };
	int e = t->samples_count == 0 || t->in_bytes / t->samples_count < t->geom->raw_bytes
			? -EINVAL
			: rows_make(t, &r);

	openblas_set_num_threads(1); /* of the process: this is the only thread that uses it */
	if (e == 0)
		e = fit(t, &r);
	rows_free(&r);
	return e;
}
