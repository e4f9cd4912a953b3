/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_model_sample.c - chains that begin alike are sampled for what is new of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "daemon/model_sample.h"

#define MOST 8u
#define CHAIN_MAX 64u

static struct sequence_step entry[256];
static uint32_t positions[256], taken;
static struct sequence_block chain[CHAIN_MAX];

/* Blocks 1, 2, ... as far as `alike`, then others, each of this chain alone. */
static uint32_t wants(uint32_t number, uint32_t alike, uint32_t count)
{
	assert_true(count <= CHAIN_MAX);
	for (uint32_t i = 0; i < count; i++)
		chain[i] = (struct sequence_block){ .block = i < alike
								     ? 1u + i
								     : 1000u * (number + 1u) + i };
	return model_sample_wants(entry, positions, taken, chain, count, MOST);
}

static uint32_t take(uint32_t number, uint32_t alike, uint32_t count)
{
	const uint32_t n = wants(number, alike, count);

	for (uint32_t i = 0; i < n; i++, taken++) {
		entry[taken].block = chain[i].block;
		positions[taken] = 16u * i;
	}
	return n;
}

static void test_all_different(void **state)
{
	(void)state;
	taken = 0;
	assert_int_equal(take(0, 0, 5), 5);
	assert_int_equal(take(1, 0, 30), MOST);
	assert_int_equal(take(2, 0, 1), 1);
}

/* The beginning that all have is taken again, to get at what they have not. */
static void test_a_long_prompt(void **state)
{
	(void)state;
	taken = 0;
	assert_int_equal(take(0, 20, 40), MOST);	     /* all of it alike */
	assert_int_equal(take(1, 20, 40), 2u * MOST);	     /* the next of it */
	assert_int_equal(take(2, 20, 40), 2u * MOST + MOST); /* to where it ends, and on */
	assert_int_equal(take(3, 20, 40), 20u + MOST);
	assert_int_equal(take(4, 20, 40), 20u + MOST);
}

/* Nothing new, or little behind much. */
static void test_not_worth_it(void **state)
{
	(void)state;
	taken = 0;
	assert_int_equal(take(0, 6, 6), 6);
	assert_int_equal(wants(1, 6, 6), 0);
	assert_int_equal(wants(1, 3, 3), 0);
	assert_int_equal(wants(1, 6, 7), 0);
	assert_int_equal(wants(1, 6, 8), 8);
	assert_int_equal(wants(1, 4, 5), 5);
}

/* The one that shares most counts, wherever it lies among those taken. */
static void test_among_others(void **state)
{
	(void)state;
	taken = 0;
	assert_int_equal(take(0, 0, 3), 3);
	assert_int_equal(take(1, 4, 6), 6);
	assert_int_equal(take(2, 2, 5), 5);
	assert_int_equal(take(3, 0, 8), MOST);
	assert_int_equal(wants(4, 4, 20), 4u + MOST);
	assert_int_equal(wants(4, 5, 20), 4u + MOST);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_different),
		cmocka_unit_test(test_a_long_prompt),
		cmocka_unit_test(test_not_worth_it),
		cmocka_unit_test(test_among_others),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
