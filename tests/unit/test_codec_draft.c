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
#include "tests/lib/random_params.h"
#include "tests/lib/guess_rig.h"
#include "tests/lib/rng.h"
#include "tests/lib/sequence_rig.h"
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

/* Values near 1; wild: now and then any pattern at all, infinities, NaN. */
static void fill_values(struct rig *r, bool wild)
{
	const struct residual_type t = residual_type_of(r->dtype);
	const size_t element = t.bits / 8u;

	for (uint32_t i = 0; i < r->segments; i++)
		for (size_t at = 0; at < TOKENS * r->row_bytes; at += element) {
			uint32_t x = (uint32_t)(t.bias - 2) << t.mant_bits;

			x += rng_below(&r->rng, 4u << t.mant_bits);
			x |= rng_below(&r->rng, 2) << (t.bits - 1u);
			if (wild && rng_one_in(&r->rng, 50))
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
	fill_values(r, true);
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

/* ---- the fit ---- */

static struct mspec_params *fit(struct rig *r, const struct mspec_runner *runner)
{
	const struct mspec_fit_options o = { .mode = MSPEC_DRAFT,
					     .cache = r->shape,
					     .previous = 2,
					     .dtype = r->dtype,
					     .ids = true,
					     .precision = mspec_precision_default(),
					     .runner = runner };
	struct mspec_params *p = NULL;
	struct mspec_fit *f = NULL;

	assert_int_equal(mspec_fit_new(r->m, &o, &f), 0);
	assert_int_equal(mspec_fit_add(f, r->ids, (const uint8_t *const *)r->values, TOKENS), 0);
	assert_int_equal(mspec_fit_add(f, r->ids + 5, (const uint8_t *const *)r->values, 17), 0);
	assert_int_equal(mspec_fit_finish(f, &p), 0);
	assert_true(mspec_fit_bits(f) > 0);
	mspec_fit_free(f);
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
	struct mspec_runner runner = { .run = run_threads, .threads = 3 };

	(void)state;
	assert_int_equal(model_threads_new(3, &threads), 0);
	runner.self = threads;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++) {
		struct rig *r = rig_new(kind, kind ? CODEC_DTYPE_BF16 : CODEC_DTYPE_E4M3);
		struct mspec_params *p = fit(r, NULL);
		const uint32_t digest = round_trip(r, p, TOKENS, 0, NULL);

		assert_int_equal(round_trip(r, p, 0, 0, &runner), digest);
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
		rig_free(r);
	}
	model_threads_free(threads);
}

/* A cache that does not vary, and one of nothing but infinities and NaN. */
static void test_fit_odd(void **state)
{
	static const uint16_t patterns[] = { 0x0000, 0x3f80, 0xff80, 0x7fc1, 0x7f7f };

	(void)state;
	for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
		struct rig *r = rig_new(0, CODEC_DTYPE_BF16);
		struct mspec_params *p;

		for (uint32_t s = 0; s < r->segments; s++)
			for (size_t at = 0; at < TOKENS * r->row_bytes; at += 2)
				memcpy(r->values[s] + at, &patterns[i], 2);
		p = fit(r, NULL);
		(void)round_trip(r, p, 16, 0, NULL);
		fill_values(r, true);
		(void)round_trip(r, p, 16, 0, NULL);
		mspec_params_free(p);
		rig_free(r);
	}
}

/* Keys that stand still, but for some noise, turned by their position. */
static void fill_turned(struct rig *r, double theta)
{
	const uint32_t kv = mspec_shape_kv(r->shape), dim = r->shape.head_dim;
	double frequencies[64];
	int32_t rope[128], row[128];

	assert_true(dim <= 128 && kv <= 128);
	model_rope_frequencies(theta, dim / 2u, frequencies);
	for (uint32_t i = 0; i < r->segments; i += 2)
		for (uint32_t t = 0; t < TOKENS; t++) {
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
	struct rig *r = rig_new(0, CODEC_DTYPE_BF16);
	struct mspec_params *p;

	(void)state;
	fill_turned(r, 5e5);
	p = fit(r, NULL);
	assert_true(p->draft->theta > 4e5 && p->draft->theta < 6e5);
	(void)round_trip(r, p, 16, 0, NULL);
	mspec_params_free(p);
	fill_turned(r, 1e4);
	p = fit(r, NULL);
	assert_true(p->draft->theta > 9e3 && p->draft->theta < 1.1e4);
	mspec_params_free(p);
	rig_free(r);
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
		const uint8_t *rows[SEGMENTS_MAX];
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
	struct rig *r = rig_new(0, CODEC_DTYPE_BF16);
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
	rig_free(r);
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
	struct rig *r = rig_new(1, CODEC_DTYPE_E4M3), *other = rig_new(2, CODEC_DTYPE_E4M3);
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
	assert_int_equal(round_trip(r, again, 16, 0, NULL), round_trip(r, r->p, 16, 0, NULL));
	assert_int_equal(mspec_params_products(again), mspec_params_products(r->p));
	mspec_params_free(again);
	assert_int_equal(mspec_params_parse(other->m, bytes, count, &again), -ESTALE);
	for (size_t cut = 0; cut < count; cut += 1 + cut / 3)
		assert_int_equal(mspec_params_parse(r->m, bytes, cut, &again), -EBADMSG);
	free(bytes);
	free(twice);
	rig_free(other);
	rig_free(r);
}

/* With its digest made right again, damage is refused or is parameters as good as any. */
static void test_params_damaged(void **state)
{
	struct rig *r = rig_new(0, CODEC_DTYPE_BF16);
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
				(void)round_trip(r, p, 16, 0, NULL);
			mspec_params_free(p);
		}
		bytes[at] = was;
		crypto_generichash(bytes + count - 32, 32, bytes, count - 32, NULL, 0);
	}
	assert_true(taken > 0 && taken < 300);
	free(bytes);
	rig_free(r);
}

static size_t all_bytes(struct rig *r, const struct mspec_params *p)
{
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL;
	struct mspec_result result;
	size_t bytes;

	assert_int_equal(mspec_coder_new_for(p, NULL, TOKENS, &w), 0);
	assert_int_equal(mspec_context_new(p, &c), 0);
	bytes = encode(r, w, c, TOKENS, &result);
	mspec_context_free(c);
	mspec_coder_free(w);
	return bytes;
}

/* Values twice as large in units half as large are coded as well as before. */
static void test_rescale(void **state)
{
	struct rig *r = rig_new(0, CODEC_DTYPE_BF16);
	const float k[] = { 0.5f, 1, 0.25f, 0.5f }, v[] = { 1, 0.25f, 0.5f, 1 };
	const float bad[] = { 1, -1, 1, 1 };
	struct mspec_params *p, *same = NULL, *moved = NULL;
	size_t before, after;

	(void)state;
	fill_values(r, false);
	p = fit(r, NULL);
	before = all_bytes(r, p);
	assert_int_equal(mspec_params_rescale(p, bad, NULL, &moved), -EINVAL);
	assert_int_equal(mspec_params_rescale(p, NULL, NULL, &same), 0);
	assert_memory_equal(mspec_params_digest(p), mspec_params_digest(same), MODEL_DIGEST_BYTES);
	assert_int_equal(mspec_params_rescale(p, k, v, &moved), 0);
	for (uint32_t i = 0; i < r->segments; i++) {
		const float scale = (i % 2u ? v : k)[i / 2u];
		const uint16_t up = (uint16_t)((scale < 0.5f ? 2u : scale < 1 ? 1u : 0) << 7);

		for (size_t at = 0; at < TOKENS * r->row_bytes; at += 2) {
			uint16_t x;

			memcpy(&x, r->values[i] + at, 2);
			x = (uint16_t)(x + up);
			memcpy(r->values[i] + at, &x, 2);
		}
	}
	after = all_bytes(r, moved);
	assert_true(after < before + before / 50 && before < after + after / 50);
	assert_true(all_bytes(r, p) > after + after / 50);
	(void)round_trip(r, moved, 16, 0, NULL);
	mspec_params_free(moved);
	mspec_params_free(same);
	mspec_params_free(p);
	rig_free(r);
}

static void test_bad_calls(void **state)
{
	struct rig *r = rig_new(2, CODEC_DTYPE_BF16);
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
	assert_int_equal(mspec_coder_new_for(r->p, NULL, TOKENS, &w), 0);
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
	rig_free(r);
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
