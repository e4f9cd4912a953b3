/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_client_args.c - the allocator of the argument area against a byte map, in random order.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "client-lib/client.h"
#include "tests/lib/rng.h"

#define UNITS 128u
#define TOTAL (UNITS * CLIENT_ARGS_UNIT_BYTES)
#define JOBS 40u

struct held {
	uint32_t off, bytes;
};

/* The longest run of free units: the allocator may say -EAGAIN exactly when this is too short. */
static uint32_t longest_hole(const uint8_t *map)
{
	uint32_t run = 0, best = 0;

	for (uint32_t i = 0; i < UNITS; i++) {
		run = map[i] ? 0 : run + 1;
		best = run > best ? run : best;
	}
	return best;
}

static void agrees_with_a_byte_map(void **state)
{
	struct rng rng = { .state = 3 };
	struct held held[JOBS];
	uint8_t map[UNITS] = { 0 };
	struct client_args a;
	uint32_t count = 0, refused = 0;

	(void)state;
	assert_int_equal(client_args_init(&a, JOBS), 0);
	client_args_reset(&a, TOTAL);
	for (int step = 0; step < 200000; step++) {
		if (count < JOBS && rng_one_in(&rng, 2)) {
			uint32_t bytes = 1 + rng_below(&rng, rng_one_in(&rng, 8) ? 4000 : 600);
			uint32_t units = (bytes + 63) / 64, off = 0;

			if (client_args_alloc(&a, bytes, &off)) {
				assert_true(longest_hole(map) < units);
				refused++;
				continue;
			}
			assert_true(off % 64 == 0 && off / 64 + units <= UNITS);
			for (uint32_t i = 0; i < units; i++) {
				assert_int_equal(map[off / 64 + i], 0);
				map[off / 64 + i] = 1;
			}
			held[count++] = (struct held){ off, bytes };
		} else if (count) {
			uint32_t at = rng_below(&rng, count);

			client_args_free(&a, held[at].off, held[at].bytes);
			memset(map + held[at].off / 64, 0, (held[at].bytes + 63) / 64);
			held[at] = held[--count];
		}
	}
	assert_true(refused > 1000);
	while (count--)
		client_args_free(&a, held[count].off, held[count].bytes);
	assert_int_equal(a.free_count, 1);
	assert_int_equal(a.free[0].bytes, TOTAL);
	client_args_deinit(&a);
}

static void never_runs_out_of_extents(void **state)
{
	struct client_args a;
	uint32_t off[JOBS];

	(void)state;
	assert_int_equal(client_args_init(&a, JOBS), 0);
	client_args_reset(&a, TOTAL);
	for (uint32_t i = 0; i < JOBS; i++)
		assert_int_equal(client_args_alloc(&a, 64, &off[i]), 0);
	/* Every second one: as many holes as there can be. */
	for (uint32_t i = 0; i < JOBS; i += 2)
		client_args_free(&a, off[i], 64);
	assert_int_equal(a.free_count, JOBS / 2 + 1);
	for (uint32_t i = 1; i < JOBS; i += 2)
		client_args_free(&a, off[i], 64);
	assert_int_equal(a.free_count, 1);
	assert_int_equal(client_args_alloc(&a, TOTAL, &off[0]), 0);
	assert_int_equal(client_args_alloc(&a, 1, &off[1]), -EAGAIN);
	client_args_deinit(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(agrees_with_a_byte_map),
		cmocka_unit_test(never_runs_out_of_extents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
