/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec_model.c - the model speculator gives back every pattern, guesses alike whoever computes and
 * however a sequence is cut, and takes no wrong parameters.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/model_internal.h"
#include "tests/lib/model_rig.h"

static struct mspec_params *fit(const struct model_rig *r, bool ids,
				const struct mspec_runner *runner)
{
	return model_rig_fit(r, &(struct mspec_fit_options){ .dtype = r->dtype,
							     .ids = ids,
							     .precision = mspec_precision_default(),
							     .runner = runner });
}

static struct model_rig *rig_new(uint32_t kind, uint32_t dtype, bool ids)
{
	struct model_rig *r = model_rig_new(77, kind, dtype, NULL);

	r->p = fit(r, ids, NULL);
	return r;
}

static void test_cut_anywhere(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++)
		for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++) {
			struct model_rig *r = rig_new(kind, dtype, dtype % 2u);

			model_rig_cut_anywhere(r);
			model_rig_free(r);
		}
}

/* Values that the context was told are as good as values that it saw coded. */
static void test_known_prefix(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16, true);

	(void)state;
	model_rig_known_prefix(r);
	model_rig_free(r);
}

/* Scalar or vector, one thread or three: the same guesses, and the same parameters from a fit. */
static void test_anyone_computes(void **state)
{
	static const char *const names[] = { "scalar", "avx2", "avx512" };
	struct model_threads *threads = NULL;
	struct mspec_runner runner = { .run = model_rig_run_threads, .threads = 3 };

	(void)state;
	assert_int_equal(model_threads_new(3, &threads), 0);
	runner.self = threads;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++) {
		struct model_rig *r = rig_new(kind, CODEC_DTYPE_BF16, true);
		uint32_t digest = model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, NULL);
		uint8_t fitted[MODEL_DIGEST_BYTES];

		memcpy(fitted, mspec_params_digest(r->p), sizeof(fitted));
		assert_int_equal(model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, &runner),
				 digest);
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			if (mspec_kernels_force(names[i]) < 0)
				continue;
			assert_int_equal(model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, NULL),
					 digest);
			mspec_params_free(r->p);
			r->p = fit(r, true, &runner);
			assert_memory_equal(fitted, mspec_params_digest(r->p), sizeof(fitted));
		}
		assert_int_equal(mspec_kernels_force(NULL), 0);
		model_rig_free(r);
	}
	model_threads_free(threads);
}

static void check_product(struct rng *rng, const struct mspec_kernels *k, uint32_t rows,
			  uint32_t outs, uint32_t depth, bool extreme)
{
	int8_t *a = malloc((size_t)rows * depth), *w = malloc((size_t)outs * depth);
	int32_t *x = calloc((size_t)rows * outs, sizeof(*x)),
		*y = calloc((size_t)rows * outs, sizeof(*y));

	assert_true(a && w && x && y);
	rng_fill(rng, a, (size_t)rows * depth);
	rng_fill(rng, w, (size_t)outs * depth);
	if (extreme) {
		memset(a, 0x80, (size_t)rows * depth);
		memset(w, 0x80, (size_t)outs * depth);
	}
	mspec_kernels_scalar.product(a, depth, w, rows, outs, depth, x);
	k->product(a, depth, w, rows, outs, depth, y);
	assert_memory_equal(x, y, (size_t)rows * outs * sizeof(*x));
	free(a);
	free(w);
	free(x);
	free(y);
}

static void check_attend(struct rng *rng, const struct mspec_kernels *k, uint32_t dim,
			 uint32_t keys, int32_t exp, bool extreme)
{
	static struct model_tables tables;
	int16_t query[256], *kv = malloc(2u * (size_t)keys * dim * sizeof(*kv));
	int32_t *scores = calloc(keys + 64u, sizeof(*scores));
	int64_t x[256], y[256];
	struct mspec_attend a = { .query = query,
				  .k = kv,
				  .v = kv + (size_t)keys * dim,
				  .exp = tables.exp,
				  .step = { 1u << 23 | 12345u, exp },
				  .dim = dim,
				  .keys = keys,
				  .scores = scores,
				  .sums = x };
	uint64_t total;

	assert_true(kv && scores);
	model_tables_fill(&tables);
	for (uint32_t i = 0; i < dim; i++)
		query[i] = (int16_t)(extreme ? MODEL_QUERY : (int)rng_below(rng, 2047) - 1023);
	for (size_t i = 0; i < 2u * (size_t)keys * dim; i++)
		kv[i] = (int16_t)(extreme ? -MODEL_KV : (int)rng_below(rng, 16383) - 8191);
	total = mspec_kernels_scalar.attend(&a);
	a.sums = y;
	assert_int_equal(k->attend(&a), total);
	assert_memory_equal(x, y, dim * sizeof(x[0]));
	free(kv);
	free(scores);
}

static void check_kernels(const struct mspec_kernels *k)
{
	struct rng rng;

	rng_init(&rng, 5);
	for (uint32_t i = 0; i < 40; i++) {
		check_product(&rng, k, 1 + rng_below(&rng, 17), 1 + rng_below(&rng, 37),
			      64u * (1 + rng_below(&rng, 5)), i % 8 == 7);
		check_attend(&rng, k, 16u * (1 + rng_below(&rng, 16)), 1 + rng_below(&rng, 70),
			     -5 - (int)rng_below(&rng, 35), i % 8 == 7);
	}
	check_attend(&rng, k, 64, 33, 3, false);
	check_attend(&rng, k, 64, 33, -70, false);
	check_attend(&rng, k, 256, 3000, -30, true);
}

static void test_kernels_agree(void **state)
{
	static const char *const names[] = { "avx2", "avx512" };

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (mspec_kernels_force(names[i]) == 0)
			check_kernels(mspec_kernels_pick());
	assert_int_equal(mspec_kernels_force(NULL), 0);
}

/* ---- parameters ---- */

static void test_params_form(void **state)
{
	struct model_rig *r = rig_new(1, CODEC_DTYPE_E4M3, false), *other;
	struct mspec_params *again = NULL;
	uint8_t *bytes = NULL, *twice = NULL;
	size_t count = 0, count_twice = 0;

	(void)state;
	assert_int_equal(mspec_params_serialise(r->p, &bytes, &count), 0);
	assert_int_equal(mspec_params_parse(r->m, bytes, count, &again), 0);
	assert_memory_equal(mspec_params_digest(r->p), mspec_params_digest(again),
			    MODEL_DIGEST_BYTES);
	assert_int_equal(mspec_params_serialise(again, &twice, &count_twice), 0);
	assert_int_equal(count, count_twice);
	assert_memory_equal(bytes, twice, count);
	assert_int_equal(mspec_params_dtype(again), CODEC_DTYPE_E4M3);
	assert_false(mspec_params_ids(again));
	assert_int_equal(model_rig_round_trip(r, again, 16, 0, NULL),
			 model_rig_round_trip(r, r->p, 16, 0, NULL));
	mspec_params_free(again);
	other = rig_new(2, CODEC_DTYPE_E4M3, false);
	assert_int_equal(mspec_params_parse(other->m, bytes, count, &again), -ESTALE);
	model_rig_free(other);
	for (size_t cut = 0; cut < count; cut += 1 + cut / 3)
		assert_int_equal(mspec_params_parse(r->m, bytes, cut, &again), -EBADMSG);
	free(bytes);
	free(twice);
	model_rig_free(r);
}

/* With its digest made right again, damage is refused or is parameters as good as any. */
static void test_params_damaged(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16, true);
	uint8_t *bytes = NULL;
	size_t count = 0;
	uint32_t taken = 0;

	(void)state;
	assert_int_equal(mspec_params_serialise(r->p, &bytes, &count), 0);
	for (uint32_t i = 0; i < 300; i++) {
		struct mspec_params *p = NULL;
		const size_t at = rng_below(&r->rng, i % 2 ? 600 : (uint32_t)count - 32u);
		const uint8_t was = bytes[at];

		bytes[at] ^= (uint8_t)(1u << rng_below(&r->rng, 8));
		assert_int_equal(mspec_params_parse(r->m, bytes, count, &p), -EBADMSG);
		crypto_generichash(bytes + count - 32, 32, bytes, count - 32, NULL, 0);
		if (mspec_params_parse(r->m, bytes, count, &p) == 0) {
			if (taken++ % 8u == 0)
				(void)model_rig_round_trip(r, p, 16, 0, NULL);
			mspec_params_free(p);
		}
		bytes[at] = was;
		crypto_generichash(bytes + count - 32, 32, bytes, count - 32, NULL, 0);
	}
	assert_true(taken > 0 && taken < 300);
	free(bytes);
	model_rig_free(r);
}

/* A cache that does not vary, one of nothing but infinities or NaN, and the largest and smallest numbers. */
static void test_fit_odd(void **state)
{
	static const uint16_t patterns[] = { 0x0000, 0x3f80, 0xff80, 0x7fc1, 0x7f7f, 0x0001 };

	(void)state;
	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16, true);

		mspec_params_free(r->p);
		model_rig_fill_with(r, patterns[i]);
		r->p = fit(r, true, NULL);
		(void)model_rig_round_trip(r, r->p, 16, 0, NULL);
		model_rig_fill(r, true);
		(void)model_rig_round_trip(r, r->p, 16, 0, NULL);
		model_rig_free(r);
	}
}

static void test_rescale(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_E4M3, true);
	const float k[] = { 0.7f, 3.0f, 1e-3f }, v[] = { 1.0f, 40.0f, 1.1f }, bad[] = { 1, -1, 1 };
	const float far[] = { 1e-19f, 1e19f, 1e-19f };
	struct mspec_params *p = NULL, *same = NULL;

	(void)state;
	assert_int_equal(mspec_params_rescale(r->p, bad, NULL, &p), -EINVAL);
	assert_int_equal(mspec_params_rescale(r->p, far, far, &p), -ERANGE);
	assert_null(p);
	assert_int_equal(mspec_params_rescale(r->p, NULL, NULL, &same), 0);
	assert_memory_equal(mspec_params_digest(r->p), mspec_params_digest(same),
			    MODEL_DIGEST_BYTES);
	assert_int_equal(mspec_params_rescale(r->p, k, v, &p), 0);
	assert_memory_not_equal(mspec_params_digest(r->p), mspec_params_digest(p),
				MODEL_DIGEST_BYTES);
	(void)model_rig_round_trip(r, p, 16, 0, NULL);
	mspec_params_free(p);
	mspec_params_free(same);
	model_rig_free(r);
}

static void test_bad_calls(void **state)
{
	struct model_rig *r = rig_new(2, CODEC_DTYPE_BF16, true);
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL;
	struct mspec_result result;
	struct residual_encoder *e = NULL;
	const int32_t bad[] = { 1, -1 }, large[] = { 1, (int32_t)mspec_model_config(r->m)->vocab };

	(void)state;
	assert_int_equal(mspec_coder_new(r->p, NULL, &w), 0);
	assert_int_equal(mspec_context_new(r->p, &c), 0);
	assert_int_equal(residual_encoder_new(&e), 0);
	residual_encoder_start(e, 1);
	assert_int_equal(mspec_encode(w, c, bad, 2, (const uint8_t *const *)r->values, e, &result),
			 -EINVAL);
	assert_int_equal(
		mspec_encode(w, c, large, 2, (const uint8_t *const *)r->values, e, &result),
		-EINVAL);
	assert_int_equal(mspec_encode(w, c, NULL, 2, (const uint8_t *const *)r->values, e, &result),
			 -EINVAL);
	assert_int_equal(
		mspec_encode(w, c, r->ids, 0, (const uint8_t *const *)r->values, e, &result),
		-EINVAL);
	assert_int_equal(mspec_encode(w, c, r->ids, MODEL_BLOCK_MAX + 1u,
				      (const uint8_t *const *)r->values, e, &result),
			 -EINVAL);
	assert_int_equal(mspec_context_count(c), 0);
	residual_encoder_free(e);
	mspec_context_free(c);
	mspec_coder_free(w);
	model_rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kernels_agree), cmocka_unit_test(test_cut_anywhere),
		cmocka_unit_test(test_known_prefix),  cmocka_unit_test(test_anyone_computes),
		cmocka_unit_test(test_params_form),   cmocka_unit_test(test_params_damaged),
		cmocka_unit_test(test_fit_odd),	      cmocka_unit_test(test_rescale),
		cmocka_unit_test(test_bad_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
