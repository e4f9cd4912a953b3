/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_rig.c - see model_rig.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/lib/model_rig.h"

#include <stdlib.h>
#include <string.h>

#include "gpu/codec/codec.h"

#define CODED_MAX (1u << 20)

static size_t element_bytes(const struct model_rig *r)
{
	return residual_type_of(r->dtype).bits / 8u;
}

void model_rig_fill(struct model_rig *r, bool wild)
{
	const struct residual_type t = residual_type_of(r->dtype);
	const size_t element = element_bytes(r);

	for (uint32_t i = 0; i < r->segments; i++)
		for (size_t at = 0; at < MODEL_RIG_TOKENS * r->row_bytes; at += element) {
			uint32_t x = (uint32_t)(t.bias - 2) << t.mant_bits;

			x += rng_below(&r->rng, 4u << t.mant_bits);
			x |= rng_below(&r->rng, 2) << (t.bits - 1u);
			if (wild && rng_one_in(&r->rng, 50))
				x = (uint32_t)rng_next(&r->rng);
			memcpy(r->values[i] + at, &x, element);
		}
}

void model_rig_fill_with(struct model_rig *r, uint32_t pattern)
{
	const size_t element = element_bytes(r);

	for (uint32_t i = 0; i < r->segments; i++)
		for (size_t at = 0; at < MODEL_RIG_TOKENS * r->row_bytes; at += element)
			memcpy(r->values[i] + at, &pattern, element);
}

struct model_rig *model_rig_new(uint64_t seed, uint32_t kind, uint32_t dtype,
				const struct mspec_shape *cache)
{
	struct model_rig *r = calloc(1, sizeof(*r));
	char err[MODEL_ERR_BYTES] = "";

	assert_non_null(r);
	rng_init(&r->rng, seed + kind * 5u + dtype);
	r->tiny = tiny_model_new(kind);
	r->dtype = dtype;
	if (mspec_model_load(tiny_model_folder(r->tiny), true, &r->m, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	r->shape = cache ? *cache : mspec_model_shape(r->m);
	r->segments = 2u * r->shape.layers;
	assert_true(r->segments <= MODEL_RIG_SEGMENTS_MAX);
	r->row_bytes = (size_t)mspec_shape_kv(r->shape) * element_bytes(r);
	for (uint32_t i = 0; i < r->segments; i++) {
		r->values[i] = malloc(MODEL_RIG_TOKENS * r->row_bytes);
		r->back[i] = malloc(MODEL_RIG_TOKENS * r->row_bytes);
		assert_non_null(r->values[i]);
		assert_non_null(r->back[i]);
	}
	for (uint32_t i = 0; i < MODEL_RIG_TOKENS; i++)
		r->ids[i] = (int32_t)rng_below(&r->rng, mspec_model_config(r->m)->vocab);
	r->coded = malloc(CODED_MAX);
	assert_non_null(r->coded);
	model_rig_fill(r, true);
	return r;
}

void model_rig_free(struct model_rig *r)
{
	mspec_params_free(r->p);
	mspec_model_free(r->m);
	tiny_model_free(r->tiny);
	for (uint32_t i = 0; i < r->segments; i++) {
		free(r->values[i]);
		free(r->back[i]);
	}
	free(r->coded);
	free(r);
}

struct mspec_params *model_rig_fit(const struct model_rig *r, const struct mspec_fit_options *o)
{
	const uint8_t *const *values = (const uint8_t *const *)r->values;
	struct mspec_params *p = NULL;
	struct mspec_fit *f = NULL;

	assert_int_equal(mspec_fit_new(r->m, o, &f), 0);
	assert_int_equal(mspec_fit_add(f, r->ids, values, MODEL_RIG_TOKENS), 0);
	assert_int_equal(mspec_fit_add(f, r->ids + 5, values, 17), 0);
	assert_int_equal(mspec_fit_finish(f, &p), 0);
	assert_true(mspec_fit_bits(f) > 0);
	mspec_fit_free(f);
	return p;
}

/* ---- there and back ---- */

/* Rows from `first` on of every segment. */
static void rows_at(const struct model_rig *r, uint8_t *const *all, uint32_t first, uint8_t **ret)
{
	for (uint32_t i = 0; i < r->segments; i++)
		ret[i] = all[i] + first * r->row_bytes;
}

size_t model_rig_encode(struct model_rig *r, struct mspec_coder *w, struct mspec_context *c,
			uint32_t count, struct mspec_result *ret)
{
	const uint32_t first = mspec_context_count(c);
	uint8_t *rows[MODEL_RIG_SEGMENTS_MAX];
	struct residual_encoder *e = NULL;
	size_t bytes = 0;

	rows_at(r, r->values, first, rows);
	assert_int_equal(residual_encoder_new(&e), 0);
	residual_encoder_start(e, 1);
	assert_int_equal(
		mspec_encode(w, c, r->ids + first, count, (const uint8_t *const *)rows, e, ret), 0);
	assert_int_equal(residual_encoder_finish(e, r->coded, CODED_MAX, &bytes), 0);
	residual_encoder_free(e);
	return bytes;
}

static void decode(struct model_rig *r, struct mspec_coder *w, struct mspec_context *c,
		   uint32_t count, size_t bytes, struct mspec_result *ret)
{
	const uint32_t first = mspec_context_count(c);
	uint8_t *rows[MODEL_RIG_SEGMENTS_MAX];
	struct residual_decoder *d = NULL;

	rows_at(r, r->back, first, rows);
	assert_int_equal(residual_decoder_new(&d), 0);
	assert_int_equal(residual_decoder_start(d, 1, r->coded, bytes), 0);
	assert_int_equal(mspec_decode(w, c, r->ids + first, count, d, rows, ret), 0);
	assert_int_equal(residual_decoder_finish(d), 0);
	residual_decoder_free(d);
}

/* The first `known` tokens: `cut` of them, then the rest. */
static void context_learn(const struct model_rig *r, const struct mspec_params *p,
			  struct mspec_coder *w, struct mspec_context *c, uint32_t known,
			  uint32_t cut)
{
	uint8_t *rows[MODEL_RIG_SEGMENTS_MAX];

	for (uint32_t at = 0; at < known; at += cut, cut = known - at) {
		rows_at(r, r->values, at, rows);
		if (mspec_params_mode(p) == MSPEC_DRAFT)
			assert_int_equal(mspec_context_follow(w, c, r->ids + at, cut), 0);
		else
			assert_int_equal(mspec_context_append(c, (const uint8_t *const *)rows, cut),
					 0);
	}
}

uint32_t model_rig_round_trip(struct model_rig *r, const struct mspec_params *p, uint32_t block,
			      uint32_t known, const struct mspec_runner *runner)
{
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL, *other = NULL;
	struct mspec_result in, out;
	uint32_t digest = 0;

	assert_int_equal(mspec_coder_new_for(p, runner, MODEL_RIG_TOKENS, &w), 0);
	assert_int_equal(mspec_context_new(p, &c), 0);
	assert_int_equal(mspec_context_new(p, &other), 0);
	context_learn(r, p, w, c, known, known);
	context_learn(r, p, w, other, known, 1); /* cut otherwise */
	for (uint32_t t = known; t < MODEL_RIG_TOKENS;) {
		uint32_t n = block ? block : 1 + rng_below(&r->rng, 20);
		size_t bytes;

		n = n > MODEL_RIG_TOKENS - t ? MODEL_RIG_TOKENS - t : n;
		bytes = model_rig_encode(r, w, c, n, &in);
		decode(r, w, other, n, bytes, &out);
		assert_int_equal(in.mu_digest, out.mu_digest);
		digest += in.mu_digest;
		t += n;
	}
	for (uint32_t i = 0; i < r->segments; i++)
		assert_memory_equal(r->values[i] + known * r->row_bytes,
				    r->back[i] + known * r->row_bytes,
				    (MODEL_RIG_TOKENS - known) * r->row_bytes);
	mspec_context_free(c);
	mspec_context_free(other);
	mspec_coder_free(w);
	return digest;
}

void model_rig_cut_anywhere(struct model_rig *r)
{
	const uint32_t digest = model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, NULL);

	assert_int_equal(model_rig_round_trip(r, r->p, 16, 0, NULL), digest);
	assert_int_equal(model_rig_round_trip(r, r->p, 1, 0, NULL), digest);
	assert_int_equal(model_rig_round_trip(r, r->p, 0, 0, NULL), digest);
}

void model_rig_known_prefix(struct model_rig *r)
{
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL;
	struct mspec_result head;

	assert_int_equal(mspec_coder_new_for(r->p, NULL, MODEL_RIG_TOKENS, &w), 0);
	assert_int_equal(mspec_context_new(r->p, &c), 0);
	(void)model_rig_encode(r, w, c, 19, &head);
	assert_int_equal(head.mu_digest + model_rig_round_trip(r, r->p, 7, 19, NULL),
			 model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, NULL));
	mspec_context_free(c);
	mspec_coder_free(w);
}

void model_rig_run_threads(void *self, uint32_t items, void (*fn)(void *, uint32_t, uint32_t),
			   void *context)
{
	model_threads_run(self, items, fn, context);
}
