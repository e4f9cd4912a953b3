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

#include <sodium.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/model_internal.h"
#include "tests/lib/guess_rig.h"
#include "tests/lib/model_rig.h"
#include "tests/lib/random_params.h"
#include "tests/lib/sequence_rig.h"

static const struct mspec_shape shapes[] = { { 4, 2, 16 }, { 3, 1, 48 }, { 2, 3, 32 } };

static struct model_rig *rig_new(uint32_t kind, uint32_t dtype)
{
	struct model_rig *r = model_rig_new(177, kind, dtype, &shapes[kind]);

	r->p = random_params_new_draft(&r->rng, r->m, r->shape, kind, dtype,
				       mspec_precision_default());
	return r;
}

static void test_cut_anywhere(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++)
		for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++) {
			struct model_rig *r = rig_new(kind, dtype);

			model_rig_cut_anywhere(r);
			model_rig_free(r);
		}
}

/* A prefix of which only the ids are known is as good as one that was coded. */
static void test_known_ids(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16);

	(void)state;
	model_rig_known_prefix(r);
	model_rig_free(r);
}

/* Scalar or vector, one thread or three: the same guesses. */
static void test_anyone_computes(void **state)
{
	static const char *const names[] = { "scalar", "avx2", "avx512" };
	struct model_threads *threads = NULL;
	struct mspec_runner runner = { .run = model_rig_run_threads, .threads = 3 };

	(void)state;
	assert_int_equal(model_threads_new(3, &threads), 0);
	runner.self = threads;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++) {
		struct model_rig *r = rig_new(kind, CODEC_DTYPE_BF16);
		uint32_t digest = model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, NULL);

		assert_int_equal(model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, &runner),
				 digest);
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			if (mspec_kernels_force(names[i]) < 0)
				continue;
			assert_int_equal(model_rig_round_trip(r, r->p, MODEL_RIG_TOKENS, 0, NULL),
					 digest);
		}
		assert_int_equal(mspec_kernels_force(NULL), 0);
		model_rig_free(r);
	}
	model_threads_free(threads);
}

/* ---- the fit ---- */

static struct mspec_params *fit(struct model_rig *r, const struct mspec_runner *runner)
{
	const struct mspec_fit_options o = { .mode = MSPEC_DRAFT,
					     .cache = r->shape,
					     .previous = 2,
					     .dtype = r->dtype,
					     .ids = true,
					     .precision = mspec_precision_default(),
					     .runner = runner };
	struct mspec_params *p = model_rig_fit(r, &o);

	assert_int_equal(mspec_params_mode(p), MSPEC_DRAFT);
	assert_true(mspec_params_ids(p));
	assert_memory_equal(&p->draft->shape, &r->shape, sizeof(r->shape));
	return p;
}

/* Whoever fits, the parameters are the same, and what they code comes back. */
static void test_fit(void **state)
{
	static const char *const names[] = { "scalar", "avx2", "avx512" };
	struct model_threads *threads = NULL;
	struct mspec_runner runner = { .run = model_rig_run_threads, .threads = 3 };

	(void)state;
	assert_int_equal(model_threads_new(3, &threads), 0);
	runner.self = threads;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++) {
		struct model_rig *r = rig_new(kind, kind ? CODEC_DTYPE_BF16 : CODEC_DTYPE_E4M3);
		struct mspec_params *p = fit(r, NULL);
		const uint32_t digest = model_rig_round_trip(r, p, MODEL_RIG_TOKENS, 0, NULL);

		assert_int_equal(model_rig_round_trip(r, p, 0, 0, &runner), digest);
		for (size_t i = kind; i < sizeof(names) / sizeof(names[0]); i += TINY_KINDS) {
			struct mspec_params *other;

			if (mspec_kernels_force(names[i]) < 0)
				continue;
			other = fit(r, &runner);
			assert_memory_equal(mspec_params_digest(p), mspec_params_digest(other),
					    MODEL_DIGEST_BYTES);
			mspec_params_free(other);
		}
		assert_int_equal(mspec_kernels_force(NULL), 0);
		mspec_params_free(p);
		model_rig_free(r);
	}
	model_threads_free(threads);
}

/* A cache that does not vary, and one of nothing but infinities and NaN. */
static void test_fit_odd(void **state)
{
	static const uint16_t patterns[] = { 0x0000, 0x3f80, 0xff80, 0x7fc1, 0x7f7f };

	(void)state;
	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16);
		struct mspec_params *p;

		model_rig_fill_with(r, patterns[i]);
		p = fit(r, NULL);
		(void)model_rig_round_trip(r, p, 16, 0, NULL);
		model_rig_fill(r, true);
		(void)model_rig_round_trip(r, p, 16, 0, NULL);
		mspec_params_free(p);
		model_rig_free(r);
	}
}

/* Keys that stand still, but for some noise, turned by their position. */
static void fill_turned(struct model_rig *r, double theta)
{
	const uint32_t kv = mspec_shape_kv(r->shape), dim = r->shape.head_dim;
	double frequencies[64];
	int32_t rope[128], row[128];

	assert_true(dim <= 128 && kv <= 128);
	model_rope_frequencies(theta, dim / 2u, frequencies);
	for (uint32_t i = 0; i < r->segments; i += 2)
		for (uint32_t t = 0; t < MODEL_RIG_TOKENS; t++) {
			model_rope_row(frequencies, dim / 2u, t, false, rope);
			for (uint32_t c = 0; c < kv; c++)
				row[c] = (int32_t)(1u << 16) +
					 (int32_t)rng_below(&r->rng, 1u << 13);
			mspec_turn_row(row, kv, dim, rope, 1);
			for (uint32_t c = 0; c < kv; c++) {
				const float x = (float)row[c] * 0x1p-16f;
				uint32_t bits;

				memcpy(&bits, &x, sizeof(bits));
				bits >>= 16;
				memcpy(r->values[i] + t * r->row_bytes + 2u * c, &bits, 2);
			}
		}
}

/* How the cache's keys were turned is found in them: it need not be as in the draft (10000 in this one). */
static void test_theta(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16);
	struct mspec_params *p;

	(void)state;
	fill_turned(r, 5e5);
	p = fit(r, NULL);
	assert_true(p->draft->theta > 4e5 && p->draft->theta < 6e5);
	(void)model_rig_round_trip(r, p, 16, 0, NULL);
	mspec_params_free(p);
	fill_turned(r, 1e4);
	p = fit(r, NULL);
	assert_true(p->draft->theta > 9e3 && p->draft->theta < 1.1e4);
	mspec_params_free(p);
	model_rig_free(r);
}

/* Bits a scalar of a sequence, in blocks of 16, streams' states and rounding left out. */
static double coded_bits(const struct mspec_params *p, const struct guess_sequence *s)
{
	const double scalars = (double)s->count * mspec_shape_kv(mspec_params_shape(p));
	const uint32_t segments = 2u * mspec_params_shape(p).layers;
	const size_t row_bytes = (size_t)mspec_shape_kv(mspec_params_shape(p)) * 2u;
	struct residual_encoder *e = NULL;
	struct mspec_context *c = NULL;
	struct mspec_coder *w = NULL;
	struct mspec_result result;
	double bits = 0;
	size_t bytes;

	assert_int_equal(mspec_coder_new_for(p, NULL, 16, &w), 0);
	assert_int_equal(mspec_context_new(p, &c), 0);
	assert_int_equal(residual_encoder_new(&e), 0);
	for (uint32_t t = 0; t < s->count; t += 16) {
		const uint8_t *rows[MODEL_RIG_SEGMENTS_MAX];
		uint8_t out[1u << 14];

		for (uint32_t i = 0; i < segments; i++)
			rows[i] = s->patterns[i] + t * row_bytes;
		residual_encoder_start(e, 1);
		assert_int_equal(mspec_encode(w, c, s->ids + t, 16, rows, e, &result), 0);
		assert_int_equal(residual_encoder_finish(e, out, sizeof(out), &bytes), 0);
		for (uint32_t i = 0; i < 2; i++)
			bits += result.bits[i].token + result.bits[i].raw + result.bits[i].tau;
	}
	residual_encoder_free(e);
	mspec_context_free(c);
	mspec_coder_free(w);
	return bits / (scalars * segments);
}

/* Noise, and hundreds of inputs to learn it by heart from: what the fit says holds for what it has not seen. */
static void test_fit_says_what_comes(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16);
	const struct mspec_fit_options o = { .mode = MSPEC_DRAFT,
					     .cache = r->shape,
					     .previous = 2,
					     .dtype = r->dtype,
					     .ids = true,
					     .precision = mspec_precision_default() };
	struct guess_sequence seen, unseen;
	struct mspec_params *p = NULL;
	struct mspec_fit *f = NULL;
	double coded;

	(void)state;
	guess_sequence_init(&seen, &r->rng, r->p, 1024, false);
	guess_sequence_init(&unseen, &r->rng, r->p, 256, false);
	assert_int_equal(mspec_fit_new(r->m, &o, &f), 0);
	assert_int_equal(mspec_fit_add(f, seen.ids, (const uint8_t *const *)seen.patterns, 1024),
			 0);
	assert_int_equal(mspec_fit_finish(f, &p), 0);
	coded = coded_bits(p, &unseen);
	print_message("said %.3f bits a scalar, came %.3f\n", mspec_fit_bits(f), coded);
	assert_true(coded < mspec_fit_bits(f) * 1.02);
	mspec_fit_free(f);
	mspec_params_free(p);
	guess_sequence_deinit(&seen, r->p);
	guess_sequence_deinit(&unseen, r->p);
	model_rig_free(r);
}

static void test_mode(void **state)
{
	struct sequence_rig *r = sequence_rig_draft(0, 1, CODEC_DTYPE_BF16);
	const struct mspec_shape shape = mspec_params_shape(r->params);

	(void)state;
	assert_int_equal(shape.layers, r->c->layers);
	assert_int_equal(mspec_mode_for(r->m, shape), MSPEC_DRAFT);
	assert_int_equal(mspec_mode_for(r->target, shape), MSPEC_COPY);
	assert_int_equal(codec_profile_model(r->model).products, mspec_params_products(r->params));
	assert_true(codec_profile_model(r->model).ids);
	assert_true(codec_profile_model(r->model).draft);
	sequence_rig_free(r);
}

/* ---- parameters ---- */

static void test_params_form(void **state)
{
	struct model_rig *r = rig_new(1, CODEC_DTYPE_E4M3), *other = rig_new(2, CODEC_DTYPE_E4M3);
	struct mspec_params *again = NULL;
	struct mspec_facts facts;
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
	assert_int_equal(mspec_facts_read(bytes, count, &facts), 0);
	assert_int_equal(facts.mode, MSPEC_DRAFT);
	assert_int_equal(facts.layers, r->shape.layers);
	assert_int_equal(facts.kv, mspec_shape_kv(r->shape));
	assert_true(facts.ids);
	assert_true(count <= mspec_params_bytes_max(r->shape.layers, facts.kv, facts.hidden));
	assert_int_equal(model_rig_round_trip(r, again, 16, 0, NULL),
			 model_rig_round_trip(r, r->p, 16, 0, NULL));
	assert_int_equal(mspec_params_products(again), mspec_params_products(r->p));
	mspec_params_free(again);
	assert_int_equal(mspec_params_parse(other->m, bytes, count, &again), -ESTALE);
	for (size_t cut = 0; cut < count; cut += 1 + cut / 3)
		assert_int_equal(mspec_params_parse(r->m, bytes, cut, &again), -EBADMSG);
	free(bytes);
	free(twice);
	model_rig_free(other);
	model_rig_free(r);
}

/* With its digest made right again, damage is refused or is parameters as good as any. */
static void test_params_damaged(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16);
	uint8_t *bytes = NULL;
	size_t count = 0;
	uint32_t taken = 0;

	(void)state;
	assert_int_equal(mspec_params_serialise(r->p, &bytes, &count), 0);
	for (uint32_t i = 0; i < 300; i++) {
		struct mspec_params *p = NULL;
		struct mspec_facts facts;
		const size_t at = rng_below(&r->rng, i % 2 ? 400 : (uint32_t)count - 32u);
		const uint8_t was = bytes[at];

		bytes[at] ^= (uint8_t)(1u << rng_below(&r->rng, 8));
		assert_int_equal(mspec_params_parse(r->m, bytes, count, &p), -EBADMSG);
		crypto_generichash(bytes + count - 32, 32, bytes, count - 32, NULL, 0);
		if (mspec_params_parse(r->m, bytes, count, &p) == 0) {
			assert_int_equal(mspec_facts_read(bytes, count, &facts), 0);
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

static size_t all_bytes(struct model_rig *r, const struct mspec_params *p)
{
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL;
	struct mspec_result result;
	size_t bytes;

	assert_int_equal(mspec_coder_new_for(p, NULL, MODEL_RIG_TOKENS, &w), 0);
	assert_int_equal(mspec_context_new(p, &c), 0);
	bytes = model_rig_encode(r, w, c, MODEL_RIG_TOKENS, &result);
	mspec_context_free(c);
	mspec_coder_free(w);
	return bytes;
}

/* Values twice as large in units half as large are coded as well as before. */
static void test_rescale(void **state)
{
	struct model_rig *r = rig_new(0, CODEC_DTYPE_BF16);
	const float k[] = { 0.5f, 1, 0.25f, 0.5f }, v[] = { 1, 0.25f, 0.5f, 1 };
	const float bad[] = { 1, -1, 1, 1 };
	struct mspec_params *p, *same = NULL, *moved = NULL;
	size_t before, after;

	(void)state;
	model_rig_fill(r, false);
	p = fit(r, NULL);
	before = all_bytes(r, p);
	assert_int_equal(mspec_params_rescale(p, bad, NULL, &moved), -EINVAL);
	assert_int_equal(mspec_params_rescale(p, NULL, NULL, &same), 0);
	assert_memory_equal(mspec_params_digest(p), mspec_params_digest(same), MODEL_DIGEST_BYTES);
	assert_int_equal(mspec_params_rescale(p, k, v, &moved), 0);
	for (uint32_t i = 0; i < r->segments; i++) {
		const float scale = (i % 2u ? v : k)[i / 2u];
		const uint16_t up = (uint16_t)((scale < 0.5f ? 2u : scale < 1 ? 1u : 0) << 7);

		for (size_t at = 0; at < MODEL_RIG_TOKENS * r->row_bytes; at += 2) {
			uint16_t x;

			memcpy(&x, r->values[i] + at, 2);
			x = (uint16_t)(x + up);
			memcpy(r->values[i] + at, &x, 2);
		}
	}
	after = all_bytes(r, moved);
	assert_true(after < before + before / 50 && before < after + after / 50);
	assert_true(all_bytes(r, p) > after + after / 50);
	(void)model_rig_round_trip(r, moved, 16, 0, NULL);
	mspec_params_free(moved);
	mspec_params_free(same);
	mspec_params_free(p);
	model_rig_free(r);
}

static void test_bad_calls(void **state)
{
	struct model_rig *r = rig_new(2, CODEC_DTYPE_BF16);
	struct mspec_fit_options o = { .mode = MSPEC_DRAFT,
				       .cache = r->shape,
				       .dtype = CODEC_DTYPE_BF16 };
	const int32_t bad[] = { 1, -1 };
	const uint8_t *const *values = (const uint8_t *const *)r->values;
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL;
	struct mspec_result result;
	struct mspec_fit *f = NULL;

	(void)state;
	assert_int_equal(mspec_fit_new(r->m, &o, &f), -EINVAL); /* without ids */
	o.ids = true;
	o.previous = MSPEC_PREVIOUS_MAX + 1u;
	assert_int_equal(mspec_fit_new(r->m, &o, &f), -EINVAL);
	o.previous = 0;
	o.cache.head_dim = 15;
	assert_int_equal(mspec_fit_new(r->m, &o, &f), -EINVAL);
	assert_int_equal(mspec_coder_new_for(r->p, NULL, MODEL_RIG_TOKENS, &w), 0);
	assert_int_equal(mspec_context_new(r->p, &c), 0);
	assert_int_equal(mspec_context_follow(w, c, r->ids, 7), 0);
	assert_int_equal(mspec_context_append(c, values, 5), -ENODATA);
	assert_int_equal(mspec_context_follow(w, c, bad, 2), -EINVAL);
	assert_int_equal(mspec_context_follow(w, c, NULL, 2), -EINVAL);
	assert_int_equal(mspec_encode(w, c, NULL, 2, values, NULL, &result), -EINVAL);
	assert_int_equal(mspec_encode(w, c, bad, 2, values, NULL, &result), -EINVAL);
	assert_int_equal(mspec_context_count(c), 7);
	assert_true(mspec_context_bytes(c) > 0);
	mspec_context_free(c);
	mspec_coder_free(w);
	model_rig_free(r);
}

/* ---- blocks ---- */

#define T SEQUENCE_RIG_TOKENS

static int decode_with(struct sequence_rig *r, struct codec_sequence *s, uint32_t b,
		       const int32_t *tokens)
{
	const struct codec_view v = {
		.base = r->back, .position = b * T, .sequence = s, .tokens = tokens
	};

	memset(r->back, 0xa5, r->g.raw_bytes);
	return codec_decode(r->ws, &r->g, r->model, r->coded[b], r->info[b].encoded_bytes, NULL,
			    &v);
}

/* Blocks that others coded are part of the prefix by their ids; without these the prefix ends. */
static void test_blocks(void **state)
{
	static const uint8_t by[SEQUENCE_RIG_BLOCKS] = { CODEC_SPEC_CHANNEL, CODEC_SPEC_MODEL,
							 CODEC_SPEC_LAYER, CODEC_SPEC_RAW,
							 CODEC_SPEC_MODEL };

	(void)state;
	for (uint32_t kind = 1; kind < TINY_KINDS; kind++) {
		struct sequence_rig *r = sequence_rig_draft(0, kind, CODEC_DTYPE_BF16);
		struct codec_profile *again = sequence_rig_again(r, r->model, r->m);
		struct codec_sequence *s = sequence_rig_sequence(r, r->model);
		struct codec_sequence *other = sequence_rig_sequence(r, again);

		assert_int_equal(codec_profile_attach_model(again, r->m), -EALREADY);
		for (uint32_t b = 0; b < SEQUENCE_RIG_BLOCKS; b++) {
			assert_int_equal(
				sequence_rig_encode(r, r->model, by[b], CODEC_ENCODE_VERIFY, s, b),
				0);
			assert_int_equal(r->info[b].speculator, by[b]);
			assert_int_equal(codec_sequence_position(s), (b + 1u) * T);
		}
		for (uint32_t b = 0; b < SEQUENCE_RIG_BLOCKS; b++) {
			const int32_t *ids = r->ids + b * T;

			if (by[b] != CODEC_SPEC_MODEL) {
				assert_int_equal(decode_with(r, other, b, NULL), -ENODATA);
				assert_int_equal(codec_sequence_position(other), b * T);
			}
			assert_int_equal(
				decode_with(r, other, b, by[b] == CODEC_SPEC_MODEL ? NULL : ids),
				0);
			assert_memory_equal(r->back, r->block[b], r->g.raw_bytes);
			assert_int_equal(codec_sequence_position(other), (b + 1u) * T);
		}
		codec_sequence_free(s);
		codec_sequence_free(other);
		codec_profile_free(again);
		sequence_rig_free(r);
	}
}

/* The right length and other ids before: refused, and no trace of it. */
static void test_wrong_prefix(void **state)
{
	struct sequence_rig *r = sequence_rig_draft(0, 1, CODEC_DTYPE_BF16);
	struct codec_sequence *s = sequence_rig_sequence(r, r->model);
	struct codec_profile *bare = sequence_rig_again(r, r->model, NULL);
	const struct codec_view other = { .base = r->block[0], .tokens = r->ids + 2u * T };
	const struct codec_view none = { .base = r->block[0] };

	(void)state;
	assert_int_equal(codec_profile_attach_model(bare, r->target), -ESTALE);
	for (uint32_t b = 0; b < 2; b++) {
		assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, 0, s, b), 0);
		assert_int_equal(r->info[b].speculator, CODEC_SPEC_MODEL);
	}
	assert_int_equal(codec_sequence_truncate(s, 0), 0);
	assert_int_equal(codec_sequence_append(s, &none), -ENODATA);
	assert_int_equal(codec_sequence_append(s, &other), 0);
	assert_int_equal(sequence_rig_decode(r, r->model, s, 1), -ESTALE);
	assert_int_equal(codec_refusal(r->ws), CODEC_REFUSAL_GUESSES);
	assert_int_equal(codec_sequence_position(s), T);
	assert_int_equal(codec_sequence_truncate(s, 0), 0);
	assert_int_equal(sequence_rig_decode(r, r->model, s, 0), 0);
	assert_int_equal(sequence_rig_decode(r, r->model, s, 1), 0);
	assert_memory_equal(r->back, r->block[1], r->g.raw_bytes);
	codec_profile_free(bare);
	codec_sequence_free(s);
	sequence_rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut_anywhere),
		cmocka_unit_test(test_known_ids),
		cmocka_unit_test(test_anyone_computes),
		cmocka_unit_test(test_fit),
		cmocka_unit_test(test_fit_odd),
		cmocka_unit_test(test_theta),
		cmocka_unit_test(test_fit_says_what_comes),
		cmocka_unit_test(test_mode),
		cmocka_unit_test(test_params_form),
		cmocka_unit_test(test_params_damaged),
		cmocka_unit_test(test_rescale),
		cmocka_unit_test(test_bad_calls),
		cmocka_unit_test(test_blocks),
		cmocka_unit_test(test_wrong_prefix),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
