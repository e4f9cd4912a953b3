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
	size_t pitch;  /* of a */
	int8_t *a, *w; /* each allocated to the byte, so that a sanitizer sees a read beyond */
	int32_t *out, *want;
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
	size_t pitch = k + rng_below(&r->rng, 70);
	size_t n = rows ? (rows - 1u) * pitch + k : 0, m = (size_t)outputs * k,
	       s = (size_t)rows * outputs;
	int8_t x = rng_below(&r->rng, 2) ? -128 : 127, y = rng_below(&r->rng, 4) ? -128 : 127;

	r->rows = rows;
	r->outputs = outputs;
	r->k = k;
	r->pitch = pitch;
	r->a = take(n);
	r->w = take(m);
	r->out = take(s * sizeof(*r->out));
	r->want = take(s * sizeof(*r->want));
	for (size_t i = 0; i < n; i++)
		r->a[i] = extreme ? x : (int8_t)rng_next(&r->rng);
	for (size_t i = 0; i < m; i++)
		r->w[i] = extreme ? y : (int8_t)rng_next(&r->rng);
}

static void rig_deinit(struct rig *r)
{
	free(r->a);
	free(r->w);
	free(r->out);
	free(r->want);
}

static void wanted(struct rig *r)
{
	for (size_t i = 0; i < (size_t)r->rows * r->outputs; i++) {
		size_t row = i / r->outputs * r->pitch, output = i % r->outputs * r->k;
		int64_t sum = 0;

		for (uint32_t j = 0; j < r->k; j++)
			sum += (int64_t)r->a[row + j] * r->w[output + j];
		r->want[i] = (int32_t)sum;
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
		product_i8(r->a, r->pitch, r->w, r->rows, r->outputs, r->k, r->out);
		assert_memory_equal(r->out, r->want, s * sizeof(*r->out));
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
