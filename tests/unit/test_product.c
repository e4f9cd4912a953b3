/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_product.c - every instruction set gives the sums that a loop gives, for any shape and the most
 * extreme factors.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/product.h"
#include "tests/lib/rng.h"

static const char *const isas[] = { "avx512", "avx512-loads", "avx2", "scalar" };
#define ISAS_COUNT (sizeof(isas) / sizeof(isas[0]))

struct rig {
	struct rng rng;
	uint32_t rows, outputs, k;
	int8_t *a, *w; /* each allocated to the byte, so that a sanitizer sees a read beyond */
	int16_t *wide;
	int32_t *out, *want;
	int64_t *out_wide, *want_wide;
};

static void *take(size_t bytes)
{
	void *p = malloc(bytes ? bytes : 1u);

	assert_non_null(p);
	return p;
}

/* extreme: the smallest and the largest factors only, the same for all. */
static void rig_init(struct rig *r, uint32_t rows, uint32_t outputs, uint32_t k, bool extreme)
{
	size_t n = (size_t)rows * k, m = (size_t)outputs * k, s = (size_t)rows * outputs;
	int8_t x = rng_below(&r->rng, 2) ? -128 : 127, y = rng_below(&r->rng, 4) ? -128 : 127;

	r->rows = rows;
	r->outputs = outputs;
	r->k = k;
	r->a = take(n);
	r->w = take(m);
	r->wide = take(n * sizeof(*r->wide));
	r->out = take(s * sizeof(*r->out));
	r->want = take(s * sizeof(*r->want));
	r->out_wide = take(s * sizeof(*r->out_wide));
	r->want_wide = take(s * sizeof(*r->want_wide));
	for (size_t i = 0; i < n; i++) {
		r->a[i] = extreme ? x : (int8_t)rng_next(&r->rng);
		r->wide[i] = extreme ? (int16_t)(x < 0 ? INT16_MIN : INT16_MAX)
				     : (int16_t)rng_next(&r->rng);
	}
	for (size_t i = 0; i < m; i++)
		r->w[i] = extreme ? y : (int8_t)rng_next(&r->rng);
}

static void rig_deinit(struct rig *r)
{
	free(r->a);
	free(r->w);
	free(r->wide);
	free(r->out);
	free(r->want);
	free(r->out_wide);
	free(r->want_wide);
}

static void wanted(struct rig *r)
{
	for (size_t i = 0; i < (size_t)r->rows * r->outputs; i++) {
		size_t row = i / r->outputs * r->k, output = i % r->outputs * r->k;
		int64_t sum = 0, wide = 0;

		for (uint32_t j = 0; j < r->k; j++) {
			sum += (int64_t)r->a[row + j] * r->w[output + j];
			wide += (int64_t)r->wide[row + j] * r->w[output + j];
		}
		r->want[i] = (int32_t)sum;
		r->want_wide[i] = wide;
	}
}

static void every_isa(struct rig *r)
{
	size_t s = (size_t)r->rows * r->outputs;

	wanted(r);
	for (size_t i = 0; i < ISAS_COUNT; i++) {
		if (codec_isa_set(isas[i]) < 0)
			continue;
		memset(r->out, 0xa5, s * sizeof(*r->out));
		memset(r->out_wide, 0xa5, s * sizeof(*r->out_wide));
		product_i8(r->a, r->w, r->rows, r->outputs, r->k, r->out);
		product_i16(r->wide, r->w, r->rows, r->outputs, r->k, r->out_wide);
		assert_memory_equal(r->out, r->want, s * sizeof(*r->out));
		assert_memory_equal(r->out_wide, r->want_wide, s * sizeof(*r->out_wide));
	}
	assert_int_equal(codec_isa_set(NULL), 0);
}

static void test_any_shape(void **state)
{
	struct rig r;

	(void)state;
	rng_init(&r.rng, rng_seed_env(1));
	for (uint32_t i = 0; i < 300; i++) {
		rig_init(&r, rng_below(&r.rng, 40), rng_below(&r.rng, 30), rng_below(&r.rng, 400),
			 i % 4 == 0);
		every_isa(&r);
		rig_deinit(&r);
	}
}

static void test_longest_sums(void **state)
{
	static const uint32_t k[] = { 4095, 4096, 4097, 9000, PRODUCT_K_MAX };
	struct rig r;

	(void)state;
	rng_init(&r.rng, rng_seed_env(2));
	for (uint32_t i = 0; i < 5u * (sizeof(k) / sizeof(k[0])); i++) {
		rig_init(&r, 2, 3, k[i / 5u], i % 5u != 0);
		every_isa(&r);
		rig_deinit(&r);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_any_shape),
		cmocka_unit_test(test_longest_sums),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
