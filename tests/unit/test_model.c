/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_model.c - the engine's promises: the two implementations of its arithmetic agree in every bit;
 * a token's keys, values and logits do not depend on batches, threads, block tables or on where its
 * prefix came from; the values are those of a plain double-precision model written here, of a
 * reference dump when there is one, and make sense of English.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"
#include "gpu/model/safetensors.h"
#include "tests/lib/rng.h"
#include "tests/lib/tiny_model.h"
#include "tools/model.h"
#include "tools/model_kernels.h"
#include "tools/tokenizer.h"

#define SHIPPED "tools/models/qwen3-7m"
#define PROMPT "tools/models/prompt.txt"
#define REFERENCE "../shared/data/kv/qwen3-7m-books-1k.bf16.safetensors"

static struct model *open_model(const char *folder, const struct model_kernels *kernels,
				uint32_t threads)
{
	const struct model_options options = { .threads = threads,
					       .context_tokens = 1040,
					       .kernels = kernels };
	struct model *m = NULL;
	char err[REPORT_BYTES];

	if (model_open(folder, &options, &m, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	return m;
}

/* The first `count` tokens of the prompt that ships with the project. */
static void prompt_tokens(int32_t *ret, size_t count)
{
	const struct report r = { .subject = PROMPT };
	struct tokenizer *tok = NULL;
	size_t bytes, ids_count;
	int32_t *ids;
	char *text;

	assert_int_equal(tokenizer_open(SHIPPED "/tokenizer.json", &tok, NULL, 0), 0);
	assert_int_equal(file_read(&r, PROMPT, 1u << 20, &text, &bytes), 0);
	assert_int_equal(tokenizer_encode(tok, text, bytes, &ids, &ids_count), 0);
	assert_true(ids_count >= count);
	memcpy(ret, ids, count * sizeof(ids[0]));
	free(ids);
	free(text);
	tokenizer_close(tok);
}

/* A sequence's pages in one of several orders, filled with junk: what is not written must not matter. */
struct cache {
	struct model_pages pages;
	uint32_t table[80];
};

static void cache_init(struct cache *c, const struct model *m, uint32_t tokens, uint32_t order)
{
	const uint32_t blocks = (tokens + MODEL_BLOCK_TOKENS - 1) / MODEL_BLOCK_TOKENS;
	const uint64_t bytes = model_pages_bytes(model_config(m), blocks);

	assert_true(blocks <= 80);
	c->pages = (struct model_pages){ .base = malloc(bytes), .blocks_count = blocks };
	assert_non_null(c->pages.base);
	memset(c->pages.base, order ? 0xff : 0x00, bytes); /* 0xffff is a NaN */
	for (uint32_t i = 0; i < blocks; i++)
		c->table[i] = order ? blocks - 1 - i : i;
}

static void run(struct model *m, const struct cache *c, const int32_t *ids, uint32_t first,
		uint32_t end, uint32_t batch, float *logits)
{
	for (uint32_t at = first; at < end; at += batch) {
		uint32_t count = end - at < batch ? end - at : batch;

		assert_int_equal(model_forward(m, &c->pages, c->table, at, ids + at, count,
					       at + count == end ? logits : NULL),
				 0);
	}
}

/* Keys and values of the tokens first..end - 1 equal, and that of every layer. */
static void expect_same_cache(const struct model *m, const struct cache *a, const struct cache *b,
			      uint32_t first, uint32_t end)
{
	const struct model_config *c = model_config(m);
	const size_t width = (size_t)c->kv_heads * c->head_dim;

	for (uint32_t segment = 0; segment < 2 * c->layers; segment++) {
		for (uint32_t t = first; t < end; t++) {
			const uint32_t i = t / MODEL_BLOCK_TOKENS;
			const size_t row = t % MODEL_BLOCK_TOKENS * width;

			if (memcmp(model_page(c, &a->pages, segment, a->table[i]) + row,
				   model_page(c, &b->pages, segment, b->table[i]) + row,
				   width * sizeof(uint16_t)) != 0)
				fail_msg("segment %u of token %u differs", segment, t);
		}
	}
}

static void test_bf16(void **state)
{
	(void)state;
	for (uint32_t b = 0; b < 65536; b++) {
		float f = model_from_bf16((uint16_t)b);

		if (isnan(f))
			assert_true(isnan(model_from_bf16(model_to_bf16(f))));
		else
			assert_int_equal(model_to_bf16(f), b);
	}
	assert_int_equal(model_to_bf16(1.00390625f), 0x3f80); /* half way: to even, down */
	assert_int_equal(model_to_bf16(1.01171875f), 0x3f82); /* half way: to even, up */
	assert_int_equal(model_to_bf16(1.00390637f), 0x3f81);
	assert_int_equal(model_to_bf16(3.4e38f), 0x7f80); /* beyond the greatest: infinity */
}

static void fill_floats(struct rng *rng, float *x, size_t count, float scale)
{
	for (size_t i = 0; i < count; i++)
		x[i] = ((float)rng_below(rng, 1u << 24) / (1u << 23) - 1.0f) * scale;
}

static void test_kernels_agree(void **state)
{
	const struct model_kernels *a = model_kernels_scalar(), *b = model_kernels_avx2();
	static float x[6 * 160], y[2][6 * 32], s[2][160];
	static uint16_t w[160 * 40];
	struct rng rng;

	(void)state;
	if (!b) {
		print_message("this processor has no AVX2 and FMA\n");
		skip();
	}
	rng_init(&rng, rng_seed_env(3));
	for (uint32_t round = 0; round < 400; round++) {
		uint32_t rows = 1 + rng_below(&rng, 6), inner = 1 + rng_below(&rng, 150);
		uint32_t dim = 16 * (1 + rng_below(&rng, 2)), keys = 1 + rng_below(&rng, 17);

		fill_floats(&rng, x, sizeof(x) / sizeof(x[0]), 4.0f);
		for (size_t i = 0; i < sizeof(w) / sizeof(w[0]); i++)
			w[i] = model_to_bf16(x[i % 900] * (float)(1 + i % 7));
		fill_floats(&rng, y[0], sizeof(y[0]) / sizeof(y[0][0]), 1.0f);
		memcpy(y[1], y[0], sizeof(y[0]));
		a->panel(x, 157, rows, inner, w, 40, y[0], 31);
		b->panel(x, 157, rows, inner, w, 40, y[1], 31);
		assert_memory_equal(y[0], y[1], sizeof(y[0]));

		a->dots(x, dim, w, 40, keys, s[0]);
		b->dots(x, dim, w, 40, keys, s[1]);
		assert_memory_equal(s[0], s[1], keys * sizeof(float));

		fill_floats(&rng, s[0], 160, round % 2 ? 3.0f : 120.0f);
		memcpy(s[1], s[0], sizeof(s[0]));
		keys = 1 + rng_below(&rng, 150);
		assert_true(a->softmax(s[0], keys) == b->softmax(s[1], keys));
		assert_memory_equal(s[0], s[1], keys * sizeof(float));

		fill_floats(&rng, s[0], 160, round % 2 ? 3.0f : 200.0f);
		memcpy(s[1], s[0], sizeof(s[0]));
		a->silu(s[0], x, 160);
		b->silu(s[1], x, 160);
		assert_memory_equal(s[0], s[1], sizeof(s[0]));
		assert_true(a->squares(x, 152) == b->squares(x, 152));
	}
}

/* Against libm: the softmax of two scores, 0 and -x, holds e^-x. */
static void test_exp_is_exp(void **state)
{
	const struct model_kernels *k = model_kernels_best();
	float scores[8];

	(void)state;
	for (uint32_t i = 0; i < 6200; i++) {
		const float x = (float)i * 0.0137f;
		const double want = exp((double)-x);

		scores[0] = 0;
		scores[1] = -x;
		assert_true(fabs(k->softmax(scores, 2) - (1 + want)) < 3e-7);
		assert_true(fabs(scores[1] / want - 1) < 3e-7);
	}
}

static void test_one_result_for_all_batches(void **state)
{
	enum { TOKENS = 150 };
	static const uint32_t batches[] = { 1, 7, 16, 50, MODEL_BATCH_TOKENS };
	struct model *m = open_model(SHIPPED, NULL, 1), *threaded = open_model(SHIPPED, NULL, 3);
	const uint32_t vocab = model_config(m)->vocab;
	float *want = malloc(vocab * sizeof(float)), *got = malloc(vocab * sizeof(float));
	int32_t ids[TOKENS];
	struct cache first;

	(void)state;
	assert_true(want && got);
	prompt_tokens(ids, TOKENS);
	cache_init(&first, m, TOKENS, 0);
	run(m, &first, ids, 0, TOKENS, MODEL_BATCH_TOKENS, want);
	for (size_t i = 0; i < sizeof(batches) / sizeof(batches[0]); i++) {
		struct cache other;

		cache_init(&other, m, TOKENS, 1);
		run(i % 2 ? threaded : m, &other, ids, 0, TOKENS, batches[i], got);
		expect_same_cache(m, &first, &other, 0, TOKENS);
		assert_memory_equal(want, got, vocab * sizeof(float));
		free(other.pages.base);
	}
	free(first.pages.base);
	free(want);
	free(got);
	model_close(m);
	model_close(threaded);
}

static void test_one_result_on_every_processor(void **state)
{
	enum { TOKENS = 40 };
	struct model *m = open_model(SHIPPED, NULL, 1);
	struct model *scalar = open_model(SHIPPED, model_kernels_scalar(), 2);
	const uint32_t vocab = model_config(m)->vocab;
	float *want = malloc(vocab * sizeof(float)), *got = malloc(vocab * sizeof(float));
	struct cache a, b;
	int32_t ids[TOKENS];

	(void)state;
	assert_true(want && got);
	assert_memory_equal(model_identity(m), model_identity(scalar), MODEL_IDENTITY_BYTES);
	prompt_tokens(ids, TOKENS);
	cache_init(&a, m, TOKENS, 0);
	cache_init(&b, m, TOKENS, 1);
	run(m, &a, ids, 0, TOKENS, TOKENS, want);
	run(scalar, &b, ids, 0, TOKENS, 13, got);
	expect_same_cache(m, &a, &b, 0, TOKENS);
	assert_memory_equal(want, got, vocab * sizeof(float));
	free(a.pages.base);
	free(b.pages.base);
	free(want);
	free(got);
	model_close(m);
	model_close(scalar);
}

/* What the cache is for: pages copied to another place, by another model object, go on the same way. */
static void test_goes_on_from_copied_pages(void **state)
{
	enum { TOKENS = 100, KEPT = 96, MORE = 12 };
	struct model *m = open_model(SHIPPED, NULL, 2), *other = open_model(SHIPPED, NULL, 1);
	const struct model_config *c = model_config(m);
	float *want = malloc(c->vocab * sizeof(float)), *got = malloc(c->vocab * sizeof(float));
	int32_t ids[TOKENS + MORE];
	struct cache a, b;

	(void)state;
	assert_true(want && got);
	prompt_tokens(ids, TOKENS);
	cache_init(&a, m, TOKENS + MORE, 0);
	cache_init(&b, m, TOKENS + MORE, 1);
	run(m, &a, ids, 0, TOKENS, MODEL_BATCH_TOKENS, want);
	for (uint32_t segment = 0; segment < 2 * c->layers; segment++)
		for (uint32_t i = 0; i < KEPT / MODEL_BLOCK_TOKENS; i++)
			memcpy(model_page(c, &b.pages, segment, b.table[i]),
			       model_page(c, &a.pages, segment, a.table[i]),
			       model_segment_bytes(c));
	run(other, &b, ids, KEPT, TOKENS, MODEL_BATCH_TOKENS, got);
	for (uint32_t t = TOKENS; t < TOKENS + MORE; t++) {
		assert_memory_equal(want, got, c->vocab * sizeof(float));
		ids[t] = model_greedy(m, want);
		assert_true(ids[t] >= 0);
		run(m, &a, ids, t, t + 1, 1, want);
		run(other, &b, ids, t, t + 1, 1, got);
	}
	expect_same_cache(m, &a, &b, 0, TOKENS + MORE);
	/* And a wrong byte in the prefix does not: the test would see it. */
	*model_page(c, &b.pages, 5, b.table[1]) ^= 0x80;
	run(other, &b, ids, TOKENS + MORE - 1, TOKENS + MORE, 1, got);
	assert_memory_not_equal(want, got, c->vocab * sizeof(float));
	free(a.pages.base);
	free(b.pages.base);
	free(want);
	free(got);
	model_close(m);
	model_close(other);
}

/* Loss on the prompt far below guessing, ln 8192 = 9.0; a wrong head or sign somewhere is above 6. */
static void test_makes_sense_of_english(void **state)
{
	enum { TOKENS = 160, SKIPPED = 8 };
	struct model *m = open_model(SHIPPED, NULL, 2);
	const uint32_t vocab = model_config(m)->vocab;
	float *logits = malloc(vocab * sizeof(float));
	double loss = 0;
	int32_t ids[TOKENS];
	struct cache c;

	(void)state;
	assert_non_null(logits);
	prompt_tokens(ids, TOKENS);
	cache_init(&c, m, TOKENS, 0);
	for (uint32_t t = 0; t + 1 < TOKENS; t++) {
		double sum = 0;

		run(m, &c, ids, t, t + 1, 1, logits);
		for (uint32_t i = 0; i < vocab; i++)
			sum += exp((double)logits[i]);
		if (t >= SKIPPED)
			loss += log(sum) - (double)logits[ids[t + 1]];
	}
	loss /= TOKENS - 1 - SKIPPED;
	print_message("loss on the prompt: %.3f nats per token\n", loss);
	assert_true(loss > 2.0 && loss < 5.5);
	free(c.pages.base);
	free(logits);
	model_close(m);
}

/* What the shipped model says after a fixed beginning: a golden value for every machine. */
static void test_golden_continuation(void **state)
{
	enum { TOKENS = 64, MORE = 16 };
	static const int32_t want[MORE] = { 12,	  199, 819, 261, 1266, 12, 280, 261,
					    1266, 12,  280, 261, 1266, 12, 199, 819 };
	struct model *m = open_model(SHIPPED, NULL, 2);
	float *logits = malloc(model_config(m)->vocab * sizeof(float));
	int32_t ids[TOKENS + MORE];
	struct cache c;

	(void)state;
	assert_non_null(logits);
	prompt_tokens(ids, TOKENS);
	cache_init(&c, m, TOKENS + MORE, 0);
	run(m, &c, ids, 0, TOKENS, MODEL_BATCH_TOKENS, logits);
	for (uint32_t t = TOKENS; t < TOKENS + MORE; t++) {
		ids[t] = model_greedy(m, logits);
		run(m, &c, ids, t, t + 1, 1, logits);
	}
	assert_memory_equal(ids + TOKENS, want, sizeof(want));
	free(c.pages.base);
	free(logits);
	model_close(m);
}

/*
 * Against a dump made by a bfloat16 implementation: that one rounds after every step, 2^-9 relative
 * each, so that some percent of difference add up over the layers; a wrong formula gives 10 % and more.
 */
static void test_reference_dump(void **state)
{
	const double limit = 0.02;
	struct model *m = open_model(SHIPPED, NULL, 2);
	const struct model_config *c = model_config(m);
	const size_t width = (size_t)c->kv_heads * c->head_dim;
	const struct safetensors_tensor *t;
	struct safetensors *st = NULL;
	char err[REPORT_BYTES], name[16];
	int32_t ids[1024];
	struct cache cache;

	(void)state;
	if (access(REFERENCE, R_OK) < 0) {
		print_message("no reference dump at %s\n", REFERENCE);
		model_close(m);
		skip();
	}
	assert_int_equal(safetensors_open(REFERENCE, &st, err, sizeof(err)), 0);
	t = safetensors_find(st, "tokens");
	assert_true(t && t->bytes == sizeof(ids));
	memcpy(ids, t->data, sizeof(ids));
	cache_init(&cache, m, 1024, 0);
	run(m, &cache, ids, 0, 1024, MODEL_BATCH_TOKENS, NULL);
	for (uint32_t segment = 0; segment < 2 * c->layers; segment++) {
		double error = 0, power = 0;

		(void)snprintf(name, sizeof(name), "%c.%u", segment % 2 ? 'v' : 'k', segment / 2);
		t = safetensors_find(st, name);
		assert_true(t && t->bytes == 1024 * width * 2);
		for (size_t i = 0; i < 1024 * width; i++) {
			const uint16_t *page =
				model_page(c, &cache.pages, segment,
					   (uint32_t)(i / width / MODEL_BLOCK_TOKENS));
			double mine = model_from_bf16(page[i % (MODEL_BLOCK_TOKENS * width)]),
			       theirs;
			uint16_t b;

			memcpy(&b, (const uint8_t *)t->data + 2 * i, sizeof(b));
			theirs = model_from_bf16(b);
			error += (mine - theirs) * (mine - theirs);
			power += theirs * theirs;
		}
		if (!(sqrt(error / power) < limit))
			fail_msg("%s differs by %.4f", name, sqrt(error / power));
	}
	safetensors_close(st);
	free(cache.pages.base);
	model_close(m);
}

/* Both architectures, odd shapes, shards, own output matrix: against tiny_model.h's plain loops. */
static void test_against_plain_arithmetic(void **state)
{
	enum { TOKENS = 37 };

	(void)state;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++) {
		struct tiny_model *tiny = tiny_model_new(kind);
		struct model *m = open_model(tiny_model_folder(tiny), NULL, 2);
		const uint32_t vocab = model_config(m)->vocab;
		float *logits = malloc(vocab * sizeof(float));
		double *want = malloc(vocab * sizeof(double)), worst = 0, greatest = 0;
		int32_t ids[TOKENS];
		struct cache c;

		assert_true(logits && want);
		for (uint32_t i = 0; i < TOKENS; i++)
			ids[i] = (int32_t)(i * 29 % vocab);
		cache_init(&c, m, TOKENS, 1);
		run(m, &c, ids, 0, TOKENS, 16, logits);
		tiny_model_logits(tiny, ids, TOKENS, want);
		for (uint32_t i = 0; i < vocab; i++) {
			worst = fmax(worst, fabs(want[i] - (double)logits[i]));
			greatest = fmax(greatest, fabs(want[i]));
		}
		if (!(worst < 2e-3 * greatest))
			fail_msg("kind %u: logits differ by %g of %g", kind, worst, greatest);
		free(c.pages.base);
		free(logits);
		free(want);
		model_close(m);
		tiny_model_free(tiny);
	}
}

static void test_bounds(void **state)
{
	struct tiny_model *tiny = tiny_model_new(0);
	struct model *m = open_model(tiny_model_folder(tiny), NULL, 1);
	float *logits = malloc(model_config(m)->vocab * sizeof(float));
	int32_t ids[2] = { -1, 0 };
	struct cache c;

	(void)state;
	assert_non_null(logits);
	cache_init(&c, m, 1040, 0);
	assert_int_equal(model_forward(m, &c.pages, c.table, 0, ids, 1, NULL), -EINVAL);
	ids[0] = (int32_t)model_config(m)->vocab;
	assert_int_equal(model_forward(m, &c.pages, c.table, 0, ids, 1, NULL), -EINVAL);
	ids[0] = 0;
	assert_int_equal(model_forward(m, &c.pages, c.table, 1040, ids, 1, NULL), -E2BIG);
	assert_int_equal(model_forward(m, &c.pages, c.table, 1039, ids, 2, NULL), -E2BIG);
	assert_int_equal(model_forward(m, &c.pages, c.table, 1039, ids, 1, logits), 0);
	for (uint32_t i = 0; i < model_config(m)->vocab; i++)
		logits[i] = i == 3 || i == 5 ? 1.0f : i == 7 ? NAN : i == 8 ? INFINITY : 0.0f;
	assert_int_equal(model_greedy(m, logits), 3);
	for (uint32_t i = 0; i < model_config(m)->vocab; i++)
		logits[i] = NAN;
	assert_int_equal(model_greedy(m, logits), -1);
	free(c.pages.base);
	free(logits);
	model_close(m);
	tiny_model_free(tiny);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bf16),
		cmocka_unit_test(test_kernels_agree),
		cmocka_unit_test(test_exp_is_exp),
		cmocka_unit_test(test_one_result_for_all_batches),
		cmocka_unit_test(test_one_result_on_every_processor),
		cmocka_unit_test(test_goes_on_from_copied_pages),
		cmocka_unit_test(test_makes_sense_of_english),
		cmocka_unit_test(test_golden_continuation),
		cmocka_unit_test(test_reference_dump),
		cmocka_unit_test(test_against_plain_arithmetic),
		cmocka_unit_test(test_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
