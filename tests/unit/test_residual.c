/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_residual.c - the residual coder gives back every bit pattern of every type for any guess and any
 * scale, in few bits where the guess is good; and makes nothing of damaged streams but -EBADMSG.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/residual_code.h"
#include "tests/lib/rng.h"

#define COLUMNS_MAX 200u
#define TOKENS_MAX 40u
#define SCALARS_MAX (COLUMNS_MAX * TOKENS_MAX)

struct rig {
	struct rng rng;
	struct residual_encoder *e;
	struct residual_decoder *d;
	struct residual_tables *tables;
	struct residual_freqs freqs;
	struct residual_segment s;
	int16_t base[COLUMNS_MAX];
	int32_t mu[SCALARS_MAX];
	uint8_t in[2u * SCALARS_MAX], back[2u * SCALARS_MAX];
	uint8_t coded[16u * SCALARS_MAX];
	size_t coded_bytes;
	uint64_t escapes;
	struct residual_bits bits;
};

static struct rig *rig_new(uint64_t seed)
{
	struct rig *r = calloc(1, sizeof(*r));

	assert_non_null(r);
	rng_init(&r->rng, seed);
	r->tables = calloc(1, sizeof(*r->tables));
	assert_non_null(r->tables);
	assert_int_equal(residual_encoder_new(&r->e), 0);
	assert_int_equal(residual_decoder_new(&r->d), 0);
	return r;
}

static void rig_free(struct rig *r)
{
	residual_encoder_free(r->e);
	residual_decoder_free(r->d);
	free(r->tables);
	free(r);
}

static double gauss(struct rng *rng)
{
	double u = (rng_below(rng, 1u << 30) + 1.0) / (1u << 30);
	double v = rng_below(rng, 1u << 30) * 6.283185307179586 / (1u << 30);

	return sqrt(-2 * log(u)) * cos(v);
}

static uint32_t pattern_bf16(float x)
{
	uint32_t u;

	memcpy(&u, &x, 4);
	return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

static void put(struct rig *r, size_t i, uint32_t pattern)
{
	if (r->s.type.bits == 16) {
		r->in[2u * i] = (uint8_t)pattern;
		r->in[2u * i + 1u] = (uint8_t)(pattern >> 8);
	} else {
		r->in[i] = (uint8_t)pattern;
	}
}

static void shape(struct rig *r, uint8_t dtype, uint32_t tokens, uint32_t columns)
{
	r->s = (struct residual_segment){ .tokens_count = tokens,
					  .columns = columns,
					  .type = residual_type_of(dtype),
					  .tables = r->tables,
					  .base = r->base,
					  .mu = r->mu };
}

/* Anything: every pattern equally, every mu, every scale. */
static void fill_random(struct rig *r)
{
	for (uint32_t c = 0; c < r->s.columns; c++)
		r->base[c] = (int16_t)((int32_t)rng_below(&r->rng, 220) - 70);
	for (size_t i = 0; i < (size_t)r->s.columns * r->s.tokens_count; i++) {
		uint32_t x = (uint32_t)rng_next(&r->rng);
		int32_t mu = (int32_t)((uint32_t)rng_next(&r->rng) >> rng_below(&r->rng, 32));

		put(r, i, x);
		if (rng_below(&r->rng, 4) == 0) /* or a guess that is right, nearly */
			mu = residual_fixed(r->s.type, x & ((1u << r->s.type.bits) - 1u)) / 2 +
			     (int32_t)rng_below(&r->rng, 64);
		r->mu[i] = mu == INT32_MIN ? 0 : mu;
	}
}

/* sigma and |value| in units of one. */
static void fill_gauss(struct rig *r, double sigma, double value)
{
	for (uint32_t c = 0; c < r->s.columns; c++)
		r->base[c] = (int16_t)lround(4 * log2(sigma * (1 << RESIDUAL_FRAC)));
	for (size_t i = 0; i < (size_t)r->s.columns * r->s.tokens_count; i++) {
		double m = value * gauss(&r->rng), x = m + sigma * gauss(&r->rng);

		r->mu[i] = (int32_t)lround(m * (1 << RESIDUAL_FRAC));
		put(r, i, pattern_bf16((float)x));
	}
}

static void fit(struct rig *r, uint32_t streams)
{
	struct residual_counts *c = calloc(1, sizeof(*c));

	assert_non_null(c);
	residual_count(c, &r->s, r->in, streams);
	residual_freqs_fit(c, &r->freqs);
	free(c);
	assert_int_equal(residual_tables_build(&r->freqs, r->tables), 0);
}

static void encode(struct rig *r, uint32_t streams, uint32_t segments)
{
	r->escapes = 0;
	r->bits = (struct residual_bits){ 0 };
	residual_encoder_start(r->e, streams);
	for (uint32_t i = 0; i < segments; i++)
		assert_int_equal(residual_encode(r->e, &r->s, r->in, &r->escapes, &r->bits), 0);
	assert_int_equal(residual_encoder_finish(r->e, r->coded, sizeof(r->coded), &r->coded_bytes),
			 0);
}

static int decode(struct rig *r, uint32_t streams, uint32_t segments)
{
	int res = residual_decoder_start(r->d, streams, r->coded, r->coded_bytes);

	for (uint32_t i = 0; res == 0 && i < segments; i++) {
		memset(r->back, 0xa5, sizeof(r->back));
		res = residual_decode(r->d, &r->s, r->back);
		if (res == 0 &&
		    memcmp(r->in, r->back,
			   (size_t)r->s.columns * r->s.tokens_count * (r->s.type.bits / 8u)) != 0)
			return -EILSEQ;
	}
	return res ? res : residual_decoder_finish(r->d);
}

static void test_any_pattern_any_guess(void **state)
{
	struct rig *r = rig_new(rng_seed_env(1));

	(void)state;
	for (uint8_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++)
		for (uint32_t i = 0; i < 60; i++) {
			uint32_t streams = 1u + rng_below(&r->rng, 4);
			uint32_t raw;

			shape(r, dtype, 1u + rng_below(&r->rng, TOKENS_MAX),
			      1u + rng_below(&r->rng, COLUMNS_MAX));
			fill_random(r);
			if (i % 3 == 0)
				fit(r, streams);
			encode(r, streams, 2);
			assert_int_equal(decode(r, streams, 2), 0);
			raw = 2u * r->s.columns * r->s.tokens_count * (r->s.type.bits / 8u);
			/* Rows of raw patterns bound it; what is left is states and tau. */
			assert_true(r->coded_bytes <=
				    raw + streams * (140u + 2u * 2u * r->s.tokens_count));
		}
	rig_free(r);
}

/* Bits per scalar of a normal error, on the grid that each value has of itself. */
static double entropy(const struct rig *r, double sigma)
{
	double n = (double)r->s.columns * r->s.tokens_count, sum = 0;

	for (size_t i = 0; i < (size_t)n; i++) {
		uint32_t mag = (r->in[2u * i] | (uint32_t)r->in[2u * i + 1u] << 8) & 0x7fffu;

		sum += log2(sigma * 4.1327) - ((double)(mag >> 7) - 127 - 7);
	}
	return sum / n;
}

static void test_good_guesses_are_short(void **state)
{
	static const struct {
		double sigma, value;
	} want[] = { { 0.25, 1.0 }, { 0.05, 1.0 }, { 0.25, 100 }, { 1.0, 0.0 } };
	struct rig *r = rig_new(rng_seed_env(2));

	(void)state;
	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		double n, bits, ideal;

		shape(r, CODEC_DTYPE_BF16, TOKENS_MAX, COLUMNS_MAX - 8u);
		fill_gauss(r, want[i].sigma, want[i].value);
		fit(r, 1);
		fill_gauss(r, want[i].sigma, want[i].value); /* not what was fitted */
		encode(r, 1, 1);
		assert_int_equal(decode(r, 1, 1), 0);
		n = (double)r->s.columns * r->s.tokens_count;
		bits = (double)(r->coded_bytes - 136u) * 8 / n;
		ideal = entropy(r, want[i].sigma);
		print_message("sigma %g of %g: %.3f bits, %.3f by the tables, %.3f ideal\n",
			      want[i].sigma, want[i].value, bits,
			      (r->bits.token + r->bits.raw + r->bits.tau) / n, ideal);
		if (ideal > 2) /* below, the grid is coarse beside the error and this is no bound */
			assert_true(bits < ideal + 0.25);
		assert_true(bits * n < 1.002 * (r->bits.token + r->bits.raw + r->bits.tau) + 64);
	}
	rig_free(r);
}

static void test_damage_is_refused(void **state)
{
	struct rig *r = rig_new(rng_seed_env(3));
	uint32_t refused = 0, other = 0;

	(void)state;
	shape(r, CODEC_DTYPE_BF16, 16, 128);
	fill_gauss(r, 0.1, 1);
	fit(r, 2);
	encode(r, 2, 2);
	for (uint32_t i = 0; i < 2000; i++) {
		size_t at = rng_below(&r->rng, (uint32_t)r->coded_bytes);
		uint8_t flip = (uint8_t)(1u << rng_below(&r->rng, 8));
		int res;

		r->coded[at] ^= flip;
		res = decode(r, 2, 2);
		assert_int_not_equal(res, 0);
		refused += res == -EBADMSG;
		other += res == -EILSEQ;
		r->coded[at] ^= flip;
	}
	assert_int_equal(refused + other, 2000);
	for (size_t n = 0; n < r->coded_bytes; n += 7) {
		assert_int_equal(residual_decoder_start(r->d, 2, r->coded, n), -EBADMSG);
	}
	rig_free(r);
}

static void test_tables_are_checked(void **state)
{
	struct rig *r = rig_new(4);

	(void)state;
	shape(r, CODEC_DTYPE_E4M3, 16, 64);
	fill_random(r);
	fit(r, 1);
	r->freqs.token[3][5]++;
	assert_int_equal(residual_tables_build(&r->freqs, r->tables), -EBADMSG);
	r->freqs.token[3][5]--;
	r->freqs.tau[0] = (uint16_t)(r->freqs.tau[0] + r->freqs.tau[1]);
	r->freqs.tau[1] = 0;
	assert_int_equal(residual_tables_build(&r->freqs, r->tables), -EBADMSG);
	rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_any_pattern_any_guess),
		cmocka_unit_test(test_good_guesses_are_short),
		cmocka_unit_test(test_damage_is_refused),
		cmocka_unit_test(test_tables_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
