/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_layer_size.c - what stays lossless when it breaks and only costs size: the sign of a guess is folded,
 * tokens never seen take no probability, a profile moves to a cache of another scale; and bounds on real KV
 * cache, where there is some ($SKVC_KV, a folder, or ../shared/data/kv).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/codec/internal.h"
#include "tests/lib/codec_rig.h"
#include "tests/lib/layer_rig.h"
#include "tests/lib/rng.h"
#include "tools/bench_kv.h"

/* ---- the coder ---- */

#define TOKENS 64u
#define COLUMNS 128u
#define SCALARS (TOKENS * COLUMNS)

struct coder {
	struct residual_segment s;
	struct residual_tables *tables;
	struct residual_freqs freqs;
	int16_t base[COLUMNS];
	int32_t mu[SCALARS];
	uint8_t patterns[2u * SCALARS];
};

static float gauss(struct rng *rng)
{
	float u = ((float)(rng_next(rng) >> 40) + 0.5f) * 0x1p-24f;
	float v = ((float)(rng_next(rng) >> 40) + 0.5f) * 0x1p-24f;

	return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v);
}

/* Guesses of magnitude one, values sigma beside them. */
static struct coder *coder_new(uint8_t dtype, float sigma)
{
	struct coder *c = calloc(1, sizeof(*c));
	struct residual_counts *counts = calloc(1, sizeof(*counts));
	uint32_t bytes = codec_dtype_bytes(dtype);
	struct rng rng;

	assert_non_null(c);
	assert_non_null(counts);
	rng_init(&rng, 5);
	c->tables = malloc(sizeof(*c->tables));
	assert_non_null(c->tables);
	c->s = (struct residual_segment){ .tokens_count = TOKENS,
					  .columns = COLUMNS,
					  .type = residual_type_of(dtype),
					  .tables = c->tables,
					  .base = c->base,
					  .mu = c->mu };
	for (uint32_t i = 0; i < COLUMNS; i++)
		c->base[i] = (int16_t)lroundf(4 * log2f(sigma * (1 << RESIDUAL_FRAC)));
	for (uint32_t i = 0; i < SCALARS; i++) {
		float mu = fabsf(gauss(&rng)) + 0.1f, x = mu + sigma * gauss(&rng);
		uint16_t v = codec_rig_element(dtype, x);

		c->mu[i] = (int32_t)lroundf(mu * (1 << RESIDUAL_FRAC));
		memcpy(c->patterns + (size_t)i * bytes, &v, bytes);
	}
	residual_count(counts, &c->s, c->patterns, 1);
	residual_freqs_fit(counts, &c->freqs);
	free(counts);
	assert_int_equal(residual_tables_build(&c->freqs, c->tables), 0);
	return c;
}

static void coder_free(struct coder *c)
{
	free(c->tables);
	free(c);
}

static double coder_bits(const struct coder *c)
{
	struct residual_bits bits = { 0 };
	struct residual_encoder *e = NULL;
	uint64_t escapes = 0;

	assert_int_equal(residual_encoder_new(&e), 0);
	residual_encoder_start(e, 1);
	assert_int_equal(residual_encode(e, &c->s, c->patterns, &escapes, &bits), 0);
	residual_encoder_free(e);
	return (bits.token + bits.raw + bits.tau) / SCALARS;
}

/* All guesses and values negated: tables that never saw a negative guess must do as well. */
static void test_signs_are_folded(void **state)
{
	(void)state;
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++) {
		struct coder *c = coder_new((uint8_t)dtype, 0.1f);
		double before = coder_bits(c), after;
		uint32_t bytes = codec_dtype_bytes((uint8_t)dtype);

		for (uint32_t i = 0; i < SCALARS; i++) {
			c->mu[i] = -c->mu[i];
			c->patterns[(size_t)i * bytes + bytes - 1u] ^= 0x80u;
		}
		after = coder_bits(c);
		print_message("type %u: %.4f bits, negated %.4f\n", dtype, before, after);
		assert_true(fabs(before - after) < 1e-9);
		coder_free(c);
	}
}

/* A floor of 1 for each token would cost 0.04 bits. */
static void test_unseen_tokens_take_nothing(void **state)
{
	struct coder *c = coder_new(CODEC_DTYPE_BF16, 0.1f);
	uint32_t classes = 0;

	(void)state;
	for (uint32_t k = 0; k < RESIDUAL_CLASSES; k++) {
		uint32_t sum = 0, largest = 0;

		for (uint32_t t = 0; t < RESIDUAL_TOKENS; t++) {
			sum += c->freqs.token[k][t];
			if (c->freqs.token[k][t] > largest)
				largest = c->freqs.token[k][t];
		}
		assert_int_equal(sum, CODEC_PROB_SUM);
		assert_true(c->freqs.token[k][RESIDUAL_ESC] > 0);
		if (largest < 64u)
			continue; /* a class that was never seen: uniform */
		classes++;
		/* Five sigma away, on either side. */
		assert_int_equal(c->freqs.token[k][RESIDUAL_BUCKET_POS + 8u], 0);
		assert_int_equal(c->freqs.token[k][RESIDUAL_BUCKET_NEG + 8u], 0);
	}
	assert_true(classes > 0);
	coder_free(c);
}

/* ---- real data ---- */

struct measured {
	double channel, layer, mean,
		ideal; /* bits per scalar, all headers included but for the ideal */
};

static int dump_open(const char *type, struct kv_dump *d)
{
	const char *folder = getenv("SKVC_KV");
	char path[512];

	(void)snprintf(path, sizeof(path), "%s/qwen3-52m-books-1k.%s.safetensors",
		       folder ? folder : "../shared/data/kv", type);
	if (access(path, R_OK) < 0) {
		print_message("skipped: no %s; SKVC_KV=FOLDER says where it is\n", path);
		return 0;
	}
	assert_int_equal(kv_dump_read(path, 16, d), 0);
	return 1;
}

static double encode_half(const struct kv_dump *d, const struct codec_profile *p, uint8_t spec,
			  double *ret_ideal)
{
	uint32_t first = d->blocks_count / 2u;
	size_t cap = codec_bound(&d->g);
	struct codec_workspace *ws = NULL;
	uint8_t *coded = malloc(cap), *back = malloc(d->g.raw_bytes);
	double bits = 0, scalars = 0;

	assert_non_null(coded);
	assert_non_null(back);
	assert_int_equal(codec_workspace_new(&ws), 0);
	for (uint32_t i = first; i < d->blocks_count; i++) {
		struct codec_view v = { .base = d->blocks,
					.block_index = i,
					.position = d->positions[i] },
				  to = { .base = back };
		struct codec_info info;

		assert_int_equal(codec_encode(ws, &d->g, p, spec, 0, &v, coded, cap, &info), 0);
		assert_int_equal(info.speculator, spec);
		assert_int_equal(codec_decode(ws, &d->g, p, coded, info.encoded_bytes, NULL, &to),
				 0);
		assert_memory_equal(back, d->blocks + i * d->g.raw_bytes, d->g.raw_bytes);
		bits += 8.0 * (double)info.encoded_bytes;
		*ret_ideal += info.ideal_bits;
		scalars += (double)d->g.raw_bytes / codec_dtype_bytes(d->g.segments[0].dtype);
	}
	codec_workspace_free(ws);
	free(coded);
	free(back);
	*ret_ideal /= scalars;
	return bits / scalars;
}

/* Fit on the first half, which is far too little and so the same every time; measure the second. */
static struct measured measure(const struct kv_dump *d)
{
	struct layer_sample s = { .g = &d->g,
				  .blocks = d->blocks,
				  .positions = d->positions,
				  .blocks_count = d->blocks_count };
	struct measured m = { 0 };
	struct layer_rotary rotary;
	struct codec_profile *p;
	double none = 0;

	assert_int_equal(layer_rotary_find(&s, &rotary), 0);
	assert_int_equal(rotary.pairs, 32);
	assert_int_equal(rotary.interleaved, 0);
	assert_true(rotary.theta == 1e6); /* the model's configuration says so */
	s.blocks_count /= 2u;
	p = layer_rig_fit(&s, &rotary, 1);
	m.channel = encode_half(d, p, CODEC_SPEC_CHANNEL, &none);
	m.layer = encode_half(d, p, CODEC_SPEC_LAYER, &m.ideal);
	codec_profile_free(p);
	p = layer_rig_fit(&s, &rotary, 0);
	none = 0;
	m.mean = encode_half(d, p, CODEC_SPEC_LAYER, &none);
	codec_profile_free(p);
	print_message("%s: channel %.3f, means %.3f, layer %.3f bits (%.3f ideal)\n", d->dtype,
		      m.channel, m.mean, m.layer, m.ideal);
	return m;
}

static void test_real_bf16(void **state)
{
	struct measured m;
	struct kv_dump d = { 0 };

	(void)state;
	if (!dump_open("bf16", &d))
		skip();
	m = measure(&d);
	assert_true(m.channel < 10.45);
	assert_true(m.mean < 10.28);
	assert_true(m.layer < 9.16);
	assert_true(m.layer < m.ideal * 1.02);
	kv_dump_deinit(&d);
}

static void test_real_e4m3(void **state)
{
	struct measured m;
	struct kv_dump d = { 0 };

	(void)state;
	if (!dump_open("e4m3", &d))
		skip();
	m = measure(&d);
	assert_true(m.channel < 6.44);
	assert_true(m.mean < 6.31);
	assert_true(m.layer < 5.29);
	assert_true(m.layer < m.ideal * 1.02);
	kv_dump_deinit(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_signs_are_folded),
		cmocka_unit_test(test_unseen_tokens_take_nothing),
		cmocka_unit_test(test_real_bf16),
		cmocka_unit_test(test_real_e4m3),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
