/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_stats.c - counters, reasons, and percentiles against a sorted list of the same numbers.
 */
#include "daemon/stats.h"

#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/rng.h"

static struct stats s; /* 8 KiB: not for the stack of each test */

static int clear(void **state)
{
	(void)state;
	memset(&s, 0, sizeof(s));
	return 0;
}

static void test_table(void **state)
{
	(void)state;
	for (unsigned i = 0; i < STAT_COUNT; i++) {
		assert_non_null(stats_info[i].name);
		assert_true(stats_info[i].kind == 'C' || stats_info[i].kind == 'G');
		assert_true(stats_info[i].unit[0] && stats_info[i].text[0]);
		/* Names are JSON keys and metric names. */
		for (const char *p = stats_info[i].name; *p; p++)
			assert_true(islower((unsigned char)*p) || *p == '_');
		for (unsigned k = 0; k < i; k++)
			assert_string_not_equal(stats_info[i].name, stats_info[k].name);
	}
	for (unsigned i = 0; i < STATS_HIST_COUNT; i++)
		assert_true(stats_hist_name[i] && stats_hist_name[i][0]);
}

static void test_counters(void **state)
{
	(void)state;
	stats_add(&s, STAT_OPS, 5);
	stats_add(&s, STAT_OPS, 2);
	stats_sub(&s, STAT_OPS, 3);
	stats_set(&s, STAT_BLOCKS, 9);
	assert_int_equal(stats_get(&s, STAT_OPS), 4);
	assert_int_equal(stats_get(&s, STAT_BLOCKS), 9);
	assert_int_equal(stats_get(&s, STAT_LOOKUPS), 0);
}

static void test_reasons(void **state)
{
	(void)state;
	for (unsigned i = 0; i < SKVC_ABI_REASON_COUNT; i++) {
		assert_non_null(stats_reason_word((uint16_t)i));
		for (unsigned k = 0; k <= i; k++)
			stats_reason(&s, (uint16_t)i);
	}
	for (unsigned i = 0; i < SKVC_ABI_REASON_COUNT; i++)
		assert_int_equal(atomic_load(&s.reason[i]), i + 1);
	assert_string_equal(stats_reason_word(SKVC_ABI_REASON_POOL_FULL), "pool-full");
	assert_string_equal(stats_reason_word(SKVC_ABI_REASON_COUNT), "unknown");
	assert_string_equal(stats_reason_word(UINT16_MAX), "unknown");
}

static void test_empty_and_single(void **state)
{
	(void)state;
	assert_int_equal(stats_percentile_ns(&s, STATS_HIST_LOAD, 0.5), 0);
	assert_int_equal(stats_hist_samples(&s, STATS_HIST_LOAD), 0);
	stats_record_ns(&s, STATS_HIST_LOAD, 1000);
	assert_int_equal(stats_hist_samples(&s, STATS_HIST_LOAD), 1);
	assert_int_equal(stats_hist_samples(&s, STATS_HIST_STORE), 0);
	for (unsigned p = 0; p <= 4; p++)
		assert_in_range(stats_percentile_ns(&s, STATS_HIST_LOAD, p / 4.0), 800, 1250);
	assert_int_equal(atomic_load(&s.hist_sum_ns[STATS_HIST_LOAD]), 1000);
}

static void test_edges(void **state)
{
	(void)state;
	for (uint64_t ns = 0; ns < 10; ns++)
		stats_record_ns(&s, STATS_HIST_LOOKUP, ns);
	assert_in_range(stats_percentile_ns(&s, STATS_HIST_LOOKUP, 1.0), 8, 11);
	assert_in_range(stats_percentile_ns(&s, STATS_HIST_LOOKUP, 0.0), 0, 1);
	/* Above the last octave everything is one bucket, and nothing is lost or overrun. */
	stats_record_ns(&s, STATS_HIST_STORE, UINT64_MAX);
	stats_record_ns(&s, STATS_HIST_STORE, UINT64_C(1) << 40);
	assert_int_equal(stats_hist_samples(&s, STATS_HIST_STORE), 2);
	assert_true(stats_percentile_ns(&s, STATS_HIST_STORE, 0.5) >= UINT64_C(1) << 39);
	/* Every power of two, and its neighbours, lands at most a bucket away from itself. */
	for (unsigned b = 2; b < 39; b++)
		for (int d = -1; d <= 1; d++) {
			uint64_t ns = (UINT64_C(1) << b) + (uint64_t)(int64_t)d;

			memset(&s, 0, sizeof(s));
			stats_record_ns(&s, STATS_HIST_LOAD, ns);
			assert_in_range(stats_percentile_ns(&s, STATS_HIST_LOAD, 0.5), (ns * 4) / 5,
					(ns * 5) / 4 + 1);
		}
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

#define SAMPLES 20000u

static void test_against_sorted(void **state)
{
	static const double points[] = { 0.01, 0.1, 0.5, 0.9, 0.99, 0.999 };
	static uint64_t all[SAMPLES];
	struct rng rng = { .state = 7 };

	(void)state;
	for (unsigned i = 0; i < SAMPLES; i++) {
		/* Log-uniform over 100 ns .. 1 s, as latencies with a long tail are. */
		all[i] = (uint64_t)(100.0 *
				    pow(10.0, 7.0 * (double)rng_below(&rng, 1u << 20) / 1048576.0));
		stats_record_ns(&s, STATS_HIST_NVME_READ, all[i]);
	}
	qsort(all, SAMPLES, sizeof(all[0]), compare);
	assert_int_equal(stats_hist_samples(&s, STATS_HIST_NVME_READ), SAMPLES);
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		double truth = (double)all[(size_t)(points[i] * SAMPLES)];
		double got = (double)stats_percentile_ns(&s, STATS_HIST_NVME_READ, points[i]);

		if (fabs(got / truth - 1.0) > 0.1)
			fail_msg("p%g: %.0f ns, sorted %.0f ns", 100.0 * points[i], got, truth);
	}
}

static void test_percentiles_rise(void **state)
{
	struct rng rng = { .state = 3 };
	uint64_t last = 0;

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		stats_record_ns(&s, STATS_HIST_LOAD,
				rng_below(&rng, 1u << rng_below(&rng, 24)) + 1);
	for (unsigned p = 0; p <= 1000; p++) {
		uint64_t ns = stats_percentile_ns(&s, STATS_HIST_LOAD, p / 1000.0);

		assert_true(ns >= last);
		last = ns;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_table, clear),
		cmocka_unit_test_setup(test_counters, clear),
		cmocka_unit_test_setup(test_reasons, clear),
		cmocka_unit_test_setup(test_empty_and_single, clear),
		cmocka_unit_test_setup(test_edges, clear),
		cmocka_unit_test_setup(test_against_sorted, clear),
		cmocka_unit_test_setup(test_percentiles_rise, clear),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
