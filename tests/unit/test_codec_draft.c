/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec_draft.c - a draft's guesses of a cache of another shape: every pattern comes back, guesses are alike
 * whoever computes and however a sequence is cut, and hang on token ids alone; wrong parameters are refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/model_internal.h"
#include "tests/lib/random_params.h"
#include "tests/lib/rng.h"
#include "tests/lib/tiny_model.h"
#include "tools/model_threads.h"

#define TOKENS 48u
#define SEGMENTS_MAX 8u
#define CODED_MAX (1u << 20)

/* A tiny model as the draft of a cache of a shape of its own, with any values. */
struct rig {
	struct rng rng;
	struct tiny_model *tiny;
	struct mspec_model *m;
	struct mspec_params *p;
	struct mspec_shape shape;
	uint32_t dtype, segments;
	size_t row_bytes;
	int32_t ids[TOKENS];
	uint8_t *values[SEGMENTS_MAX], *back[SEGMENTS_MAX];
	uint8_t *coded;
};

static const struct mspec_shape shapes[] = { { 4, 2, 16 }, { 3, 1, 48 }, { 2, 3, 32 } };

/* Mostly values near 1, and now and then any pattern at all: infinities, NaN. */
static void fill_values(struct rig *r)
{
	const struct residual_type t = residual_type_of(r->dtype);
	const size_t element = t.bits / 8u;

	for (uint32_t i = 0; i < r->segments; i++)
		for (size_t at = 0; at < TOKENS * r->row_bytes; at += element) {
			uint32_t x = (uint32_t)(t.bias - 2) << t.mant_bits;

			x += rng_below(&r->rng, 4u << t.mant_bits);
			x |= rng_below(&r->rng, 2) << (t.bits - 1u);
			if (rng_one_in(&r->rng, 50))
				x = (uint32_t)rng_next(&r->rng);
			memcpy(r->values[i] + at, &x, element);
		}
}

static struct rig *rig_new(uint32_t kind, uint32_t dtype)
{
	struct rig *r = calloc(1, sizeof(*r));
	char err[MODEL_ERR_BYTES] = "";

	assert_non_null(r);
	rng_init(&r->rng, 177 + kind * 5u + dtype);
	r->tiny = tiny_model_new(kind);
	r->dtype = dtype;
	r->shape = shapes[kind];
	if (mspec_model_load(tiny_model_folder(r->tiny), true, &r->m, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	r->segments = 2u * r->shape.layers;
	assert_true(r->segments <= SEGMENTS_MAX);
	r->row_bytes = (size_t)mspec_shape_kv(r->shape) * residual_type_of(dtype).bits / 8u;
	for (uint32_t i = 0; i < r->segments; i++) {
		r->values[i] = malloc(TOKENS * r->row_bytes);
		r->back[i] = malloc(TOKENS * r->row_bytes);
		assert_non_null(r->values[i]);
		assert_non_null(r->back[i]);
	}
	for (uint32_t i = 0; i < TOKENS; i++)
		r->ids[i] = (int32_t)rng_below(&r->rng, mspec_model_config(r->m)->vocab);
	r->coded = malloc(CODED_MAX);
	assert_non_null(r->coded);
	fill_values(r);
	r->p = random_params_new_draft(&r->rng, r->m, r->shape, kind, dtype,
				       mspec_precision_default());
	return r;
}

static void rig_free(struct rig *r)
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

static size_t encode(struct rig *r, struct mspec_coder *w, struct mspec_context *c, uint32_t count,
		     struct mspec_result *result)
{
	const uint32_t first = mspec_context_count(c);
	const uint8_t *rows[SEGMENTS_MAX];
	struct residual_encoder *e = NULL;
	size_t bytes = 0;

	for (uint32_t i = 0; i < r->segments; i++)
		rows[i] = r->values[i] + first * r->row_bytes;
	assert_int_equal(residual_encoder_new(&e), 0);
	residual_encoder_start(e, 1);
	assert_int_equal(mspec_encode(w, c, r->ids + first, count, rows, e, result), 0);
	assert_int_equal(residual_encoder_finish(e, r->coded, CODED_MAX, &bytes), 0);
	residual_encoder_free(e);
	return bytes;
}

static void decode(struct rig *r, struct mspec_coder *w, struct mspec_context *c, uint32_t count,
		   size_t bytes, struct mspec_result *result)
{
	const uint32_t first = mspec_context_count(c);
	uint8_t *rows[SEGMENTS_MAX];
	struct residual_decoder *d = NULL;

	for (uint32_t i = 0; i < r->segments; i++)
		rows[i] = r->back[i] + first * r->row_bytes;
	assert_int_equal(residual_decoder_new(&d), 0);
	assert_int_equal(residual_decoder_start(d, 1, r->coded, bytes), 0);
	assert_int_equal(mspec_decode(w, c, r->ids + first, count, d, rows, result), 0);
	assert_int_equal(residual_decoder_finish(d), 0);
	residual_decoder_free(d);
}

/* All TOKENS but the first `known` in blocks of `block` (0: random ones) there and back; the guesses' digest. */
static uint32_t round_trip(struct rig *r, const struct mspec_params *p, uint32_t block,
			   uint32_t known, const struct mspec_runner *runner)
{
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL, *other = NULL;
	struct mspec_result in, out;
	uint32_t digest = 0;

	assert_int_equal(mspec_coder_new_for(p, runner, TOKENS, &w), 0);
	assert_int_equal(mspec_context_new(p, &c), 0);
	assert_int_equal(mspec_context_new(p, &other), 0);
	assert_int_equal(mspec_context_follow(w, c, r->ids, known), 0);
	for (uint32_t i = 0; i < known; i++) /* cut otherwise */
		assert_int_equal(mspec_context_follow(w, other, r->ids + i, 1), 0);
	for (uint32_t t = known; t < TOKENS;) {
		uint32_t n = block ? block : 1 + rng_below(&r->rng, 20);
		size_t bytes;

		n = n > TOKENS - t ? TOKENS - t : n;
		bytes = encode(r, w, c, n, &in);
		decode(r, w, other, n, bytes, &out);
		assert_int_equal(in.mu_digest, out.mu_digest);
		digest += in.mu_digest;
		t += n;
	}
	for (uint32_t i = 0; i < r->segments; i++)
		assert_memory_equal(r->values[i] + known * r->row_bytes,
				    r->back[i] + known * r->row_bytes,
				    (TOKENS - known) * r->row_bytes);
	mspec_context_free(c);
	mspec_context_free(other);
	mspec_coder_free(w);
	return digest;
}

static void test_cut_anywhere(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++)
		for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++) {
			struct rig *r = rig_new(kind, dtype);
			uint32_t digest = round_trip(r, r->p, TOKENS, 0, NULL);

			assert_int_equal(round_trip(r, r->p, 16, 0, NULL), digest);
			assert_int_equal(round_trip(r, r->p, 1, 0, NULL), digest);
			assert_int_equal(round_trip(r, r->p, 0, 0, NULL), digest);
			rig_free(r);
		}
}

/* A prefix of which only the ids are known is as good as one that was coded. */
static void test_known_ids(void **state)
{
	struct rig *r = rig_new(0, CODEC_DTYPE_BF16);
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL;
	struct mspec_result head;

	(void)state;
	assert_int_equal(mspec_coder_new_for(r->p, NULL, TOKENS, &w), 0);
	assert_int_equal(mspec_context_new(r->p, &c), 0);
	(void)encode(r, w, c, 19, &head);
	assert_int_equal(head.mu_digest + round_trip(r, r->p, 7, 19, NULL),
			 round_trip(r, r->p, TOKENS, 0, NULL));
	mspec_context_free(c);
	mspec_coder_free(w);
	rig_free(r);
}

static void run_threads(void *self, uint32_t items, void (*fn)(void *, uint32_t, uint32_t),
			void *context)
{
	model_threads_run(self, items, fn, context);
}

/* Scalar or vector, one thread or three: the same guesses. */
static void test_anyone_computes(void **state)
{
	static const char *const names[] = { "scalar", "avx2", "avx512" };
	struct model_threads *threads = NULL;
	struct mspec_runner runner = { .run = run_threads, .threads = 3 };

	(void)state;
	assert_int_equal(model_threads_new(3, &threads), 0);
	runner.self = threads;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++) {
		struct rig *r = rig_new(kind, CODEC_DTYPE_BF16);
		uint32_t digest = round_trip(r, r->p, TOKENS, 0, NULL);

		assert_int_equal(round_trip(r, r->p, TOKENS, 0, &runner), digest);
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			if (mspec_kernels_force(names[i]) < 0)
				continue;
			assert_int_equal(round_trip(r, r->p, TOKENS, 0, NULL), digest);
		}
		assert_int_equal(mspec_kernels_force(NULL), 0);
		rig_free(r);
	}
	model_threads_free(threads);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut_anywhere),
		cmocka_unit_test(test_known_ids),
		cmocka_unit_test(test_anyone_computes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
