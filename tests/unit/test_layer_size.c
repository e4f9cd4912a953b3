/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_layer_size.c - what stays lossless when it breaks and only costs size: the sign of a guess is folded,
 * tokens never seen take no probability, a profile moves to a cache of another scale.  Bounds on real KV cache
 * are in tests/e2e/test_speculators.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "tests/lib/codec_rig.h"
#include "tests/lib/layer_rig.h"
#include "tests/lib/rng.h"

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_signs_are_folded),
		cmocka_unit_test(test_unseen_tokens_take_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
