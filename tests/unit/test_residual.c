/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_residual.c - the residual coder gives back every bit pattern of every type for any guess and any
 * scale, in few bits where the guess is good; makes nothing of damaged streams but -EBADMSG; and does all
 * that alike with every instruction set.
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

static void shape(struct rig *r, uint32_t dtype, uint32_t tokens, uint32_t columns)
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
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++)
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

/* ---- instruction sets ---- */

static const char *const isas[] = { "avx2", "avx512", "avx512-loads" };
#define ISAS_COUNT (sizeof(isas) / sizeof(isas[0]))

/* A pattern of the segment's type near a value. */
static uint32_t pattern_near(const struct rig *r, double x)
{
	int32_t mb = r->s.type.mant_bits, e = 0;
	double m = frexp(fabs(x), &e);
	uint32_t sign = x < 0 ? 1u << (r->s.type.bits - 1u) : 0, mag;

	e += r->s.type.bias - 1;
	if (r->s.type.mant_bits == 7)
		return pattern_bf16((float)x);
	if (e <= 0)
		mag = (uint32_t)lround(ldexp(m, mb + e));
	else
		mag = ((uint32_t)e << mb) + (uint32_t)lround(ldexp(m, mb + 1)) - (1u << mb);
	return sign | (mag < r->s.type.mag_max ? mag : r->s.type.mag_max);
}

/* Like a cache: columns of unlike scale, tokens of unlike error, guesses near zero, outliers. */
static void fill_real(struct rig *r)
{
	double error = ldexp(1, -(int)rng_below(&r->rng, 11));
	uint32_t columns = r->s.columns;

	for (uint32_t c = 0; c < columns; c++) {
		double size = ldexp(1, 2 - (int)rng_below(&r->rng, 7));

		r->base[c] = (int16_t)lround(4 * log2(size * error * (1 << RESIDUAL_FRAC)));
		for (uint32_t t = 0; t < r->s.tokens_count; t++) {
			size_t i = (size_t)t * columns + c;
			double m = size * gauss(&r->rng);
			double d = size * error * gauss(&r->rng) * (t % 5 == 4 ? 6 : 1);

			if (rng_below(&r->rng, 64) == 0)
				d *= 40;
			if (rng_below(&r->rng, 256) == 0)
				m = d = 0;
			r->mu[i] = (int32_t)lround(m * (1 << RESIDUAL_FRAC));
			put(r, i, pattern_near(r, m + d));
		}
	}
}

/* What each instruction set makes of a segment that the scalar code has coded. */
static void isas_agree(struct rig *r, uint32_t streams)
{
	size_t n = r->coded_bytes;
	uint8_t *coded = malloc(n);
	struct residual_bits bits = r->bits;
	uint64_t escapes = r->escapes;

	assert_non_null(coded);
	memcpy(coded, r->coded, n);
	for (size_t i = 0; i < ISAS_COUNT; i++) {
		if (codec_isa_set(isas[i]) < 0)
			continue;
		memset(r->coded, 0xa5, sizeof(r->coded));
		encode(r, streams, 2);
		assert_int_equal(r->coded_bytes, n);
		assert_memory_equal(r->coded, coded, n);
		assert_int_equal(r->escapes, escapes);
		assert_memory_equal(&r->bits, &bits, sizeof(bits));
		assert_int_equal(decode(r, streams, 2), 0);
	}
	free(coded);
}

static void test_isas_agree(void **state)
{
	struct rig *r = rig_new(rng_seed_env(5));

	(void)state;
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++)
		for (uint32_t i = 0; i < 120; i++) {
			uint32_t streams = 1u + rng_below(&r->rng, 4);

			shape(r, dtype, 1u + rng_below(&r->rng, TOKENS_MAX),
			      i % 3 == 0 ? 32u * (1u + rng_below(&r->rng, COLUMNS_MAX / 32u))
					 : 1u + rng_below(&r->rng, COLUMNS_MAX));
			if (i % 2 == 0)
				fill_random(r);
			else
				fill_real(r);
			if (i % 6 != 5) /* else tables of another segment */
				fit(r, streams);
			assert_int_equal(codec_isa_set("scalar"), 0);
			encode(r, streams, 2);
			assert_int_equal(decode(r, streams, 2), 0);
			isas_agree(r, streams);
		}
	assert_int_equal(codec_isa_set(NULL), 0);
	rig_free(r);
}

/* Decode without looking at what the values should be. */
static int decode_any(struct rig *r, uint32_t streams)
{
	int res = residual_decoder_start(r->d, streams, r->coded, r->coded_bytes);

	memset(r->back, 0xa5, sizeof(r->back));
	if (res == 0)
		res = residual_decode(r->d, &r->s, r->back);
	return res ? res : residual_decoder_finish(r->d);
}

static void test_isas_refuse_alike(void **state)
{
	struct rig *r = rig_new(rng_seed_env(6));
	uint8_t *back = malloc(sizeof(r->back));

	(void)state;
	assert_non_null(back);
	for (uint32_t i = 0; i < 1500; i++) {
		uint32_t cut, at;
		int want;

		if (i % 50 == 0) {
			shape(r, 1u + i / 50u % 4u, 1u + rng_below(&r->rng, TOKENS_MAX),
			      1u + rng_below(&r->rng, COLUMNS_MAX));
			fill_real(r);
			fit(r, 1);
		}
		encode(r, 1, 1);
		/* Words missing at the end, states that nobody left, or noise. */
		cut = 2u * rng_below(&r->rng, i % 3 == 0 ? 40 : 2);
		if (cut < r->coded_bytes - 136u) {
			uint32_t n = (uint32_t)(r->coded_bytes - 136u - cut) / 2u;

			memcpy(r->coded, &n, 4);
			r->coded_bytes -= cut;
		}
		at = 8u + rng_below(&r->rng, (uint32_t)r->coded_bytes - 8u);
		for (uint32_t k = 0; i % 5 && at + k < r->coded_bytes && k < i % 97; k++)
			r->coded[at + k] = (uint8_t)rng_next(&r->rng);
		assert_int_equal(codec_isa_set("scalar"), 0);
		want = decode_any(r, 1);
		assert_true(want == 0 || want == -EBADMSG);
		memcpy(back, r->back, sizeof(r->back));
		for (size_t k = 0; k < ISAS_COUNT; k++) {
			if (codec_isa_set(isas[k]) < 0)
				continue;
			assert_int_equal(decode_any(r, 1), want);
			if (want == 0) /* the noise was what was there */
				assert_memory_equal(back, r->back, sizeof(r->back));
		}
	}
	assert_int_equal(codec_isa_set(NULL), 0);
	free(back);
	rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_any_pattern_any_guess),
		cmocka_unit_test(test_good_guesses_are_short),
		cmocka_unit_test(test_damage_is_refused),
		cmocka_unit_test(test_tables_are_checked),
		cmocka_unit_test(test_isas_agree),
		cmocka_unit_test(test_isas_refuse_alike),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
