/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_staging.c - the account of staging memory: extents never overlap, what is given back can be
 * taken again, and after any order of taking and giving everything is one piece again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>

#include "gpu/staging.h"

#define BASE 0x100000u
#define BYTES (64u * STAGING_ALIGN)

static void test_fill_and_empty(void **state)
{
	struct staging_area a;
	uint64_t at[STAGING_EXTENTS_MAX];

	(void)state;
	staging_init(&a, BASE, BYTES);
	assert_true(staging_idle(&a));
	assert_int_equal(staging_room(&a), BYTES);
	for (unsigned i = 0; i < 64; i++) {
		at[i] = staging_take(&a, 1); /* rounded up */
		assert_int_equal(at[i], BASE + i * STAGING_ALIGN);
	}
	assert_int_equal(staging_room(&a), 0);
	assert_int_equal(staging_take(&a, 1), 0);
	/* Two neighbours make one hole, found by first fit. */
	staging_unref(&a, at[10]);
	staging_unref(&a, at[11] + 7); /* any address inside */
	staging_unref(&a, at[40]);
	assert_int_equal(staging_room(&a), 2u * STAGING_ALIGN);
	assert_int_equal(staging_take(&a, 3u * STAGING_ALIGN), 0);
	assert_int_equal(staging_take(&a, 2u * STAGING_ALIGN), at[10]);
	assert_int_equal(staging_take(&a, STAGING_ALIGN), at[40]);
}

static void test_users(void **state)
{
	struct staging_area a;
	uint64_t at;

	(void)state;
	staging_init(&a, BASE, BYTES);
	at = staging_take(&a, BYTES);
	assert_int_equal(at, BASE);
	staging_ref(&a, at + BYTES - 1u, 2);
	for (unsigned i = 0; i < 2; i++) {
		staging_unref(&a, at + i * STAGING_ALIGN);
		assert_int_equal(staging_room(&a), 0);
	}
	staging_unref(&a, at);
	assert_true(staging_idle(&a));
	assert_int_equal(staging_take(&a, BYTES + 1u), 0);
}

/* Against a map of who owns which unit. */
static void test_random(void **state)
{
	struct staging_area a;
	uint64_t at[64] = { 0 };
	unsigned units[64] = { 0 }, owner[64] = { 0 };

	(void)state;
	srand(7);
	staging_init(&a, BASE, BYTES);
	for (unsigned step = 0; step < 20000; step++) {
		unsigned i = (unsigned)rand() % 64u, n = 1u + (unsigned)rand() % 9u, hole = 0,
			 most = 0, first;

		if (units[i] > 0) {
			staging_unref(&a, at[i]);
			for (unsigned u = 0; u < 64; u++)
				owner[u] = owner[u] == i + 1u ? 0 : owner[u];
			units[i] = 0;
			continue;
		}
		for (unsigned u = 0; u < 64; u++) {
			hole = owner[u] ? 0 : hole + 1u;
			most = hole > most ? hole : most;
		}
		assert_int_equal(staging_room(&a), most * STAGING_ALIGN);
		at[i] = staging_take(&a, n * STAGING_ALIGN);
		assert_int_equal(at[i] != 0, n <= most);
		if (at[i] == 0)
			continue;
		first = (unsigned)((at[i] - BASE) / STAGING_ALIGN);
		units[i] = n;
		for (unsigned u = first; u < first + n; u++) {
			assert_true(u < 64 && owner[u] == 0);
			owner[u] = i + 1u;
		}
	}
	for (unsigned i = 0; i < 64; i++)
		if (units[i] > 0)
			staging_unref(&a, at[i]);
	assert_int_equal(staging_room(&a), BYTES);
}

/* What the default promises: two batches of about 16 blocks of 2 MiB each way, and scratch. */
static void test_cut(void **state)
{
	struct staging_cut c = staging_cut(160u << 20);

	(void)state;
	assert_true(c.loads_bytes / 2 >= 12u * (2u << 20)); /* raw; 18 at a ratio of 1.5 */
	assert_true(c.stores_bytes / 2 >= 14u * ((2u << 20) + 4096u));
	assert_true(c.stores_scratch_bytes >= 16u * (2u << 20));
	assert_int_equal(c.loads_bytes + c.stores_bytes + c.loads_scratch_bytes +
				 c.stores_scratch_bytes,
			 160u << 20);
	c = staging_cut((5u << 20) + 77u);
	assert_int_equal(c.loads_bytes % STAGING_ALIGN, 0);
	assert_true(c.loads_bytes + c.stores_bytes + c.loads_scratch_bytes +
			    c.stores_scratch_bytes <=
		    5u << 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fill_and_empty),
		cmocka_unit_test(test_users),
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
