/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tier_drop.c - blocks that their engine computes sooner than NVMe brings them back are given up when memory is
 * short, and nobody waits for that; others beside them are written as ever, and the plan may change its mind.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <errno.h>

#include <cmocka.h>

#include "daemon/lane_state.h"
#include "tests/lib/lane_rig.h"

#define BATCH 50u
#define PINNED 400u			   /* of some 500 that fit */
#define FASTER_THAN_LIGHT 1000000000000ull /* tokens a second */
#define OTHERS 1000000u			   /* keys */

static struct rig rig;
static struct tenant second;
static struct namespace second_ns;
static struct lane_rig_session rs, second_rs;
static int second_is_open;
static char path[64];

static uint64_t counter(enum stats_id id)
{
	return stats_get(lane_stats(rig.lane), id);
}

static void start(uint64_t prefill_tokens_per_s)
{
	struct config c;
	int fd;

	lane_rig_config(&c);
	(void)snprintf(path, sizeof(path), "./skvcd-test-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	(void)snprintf(c.nvme_path, sizeof(c.nvme_path), "%s", path);
	c.pool_bytes = 16u << 20;
	c.nvme_bytes = 128u << 20;
	c.nvme_segment_bytes = 4u << 20;
	c.speculator = CONFIG_SPECULATOR_RAW; /* of one size, and nothing is coded again */
	c.plan = 1;
	lane_rig_start(&rig, &c);
	atomic_store(&rig.ns.prefill_tokens_per_s, prefill_tokens_per_s);
	lane_rig_session_open(&rig, &rs);
	for (uint32_t page = 0; page < BATCH; page++)
		lane_rig_fill(&rs, page, page);
	second_is_open = 0;
}

static void open_second(void)
{
	memset(&second, 0, sizeof(second));
	memset(&second_ns, 0, sizeof(second_ns));
	(void)snprintf(second.name, sizeof(second.name), "second");
	second.id = 1;
	second_ns.id = 1;
	second_ns.tenant = &second;
	second_ns.geom = rig.ns.geom;
	lane_rig_session_open_ns(&rig, &second_rs, &second_ns);
	for (uint32_t page = 0; page < BATCH; page++)
		lane_rig_fill(&second_rs, page, page);
	second_is_open = 1;
}

static int stop(void **state)
{
	(void)state;
	if (second_is_open)
		lane_rig_session_close(&second_rs);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	(void)unlink(path);
	return 0;
}

/* Chains of BATCH blocks. */
static int32_t store(struct lane_rig_session *to, uint32_t first)
{
	lane_rig_store_at(to, first, BATCH, 0, 1);
	return lane_rig_done(to).res;
}

static void store_patiently(struct lane_rig_session *to, uint32_t first)
{
	for (unsigned tries = 0; tries < 100; tries++) {
		int32_t res = store(to, first);

		if (res == 0)
			return;
		assert_int_equal(res, -EAGAIN); /* the disk is busy */
		usleep(20000);
	}
	fail_msg("blocks %u and on were refused 100 times", first);
}

static uint32_t found(struct lane_rig_session *by, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(by, first, count);

	if (cqe.count)
		assert_int_equal(lane_rig_release(by, cqe.lease).res, 0);
	return cqe.count;
}

/*
 * The plan is looked at again ten times a second, when something is asked.  Blocks change lists behind the answer;
 * behind the next one they have.
 */
static void say(uint64_t prefill_tokens_per_s, int drops)
{
	const uint64_t start_ns = clock_now_ns();

	atomic_store(&rig.ns.prefill_tokens_per_s, prefill_tokens_per_s);
	while (atomic_load(&rig.ns.plan_place.drops) != (uint64_t)drops) {
		assert_true(clock_now_ns() - start_ns < RIG_WAIT_NS);
		(void)found(&rs, OTHERS, 1);
		usleep(1000);
	}
	(void)found(&rs, OTHERS, 1);
	assert_int_equal(rig.lane->sorts, 0);
}

/* Four pools full are stored, and none of it is written, refused, or waited for. */
static void what_is_computed_sooner_is_not_written(void **state)
{
	(void)state;
	start(FASTER_THAN_LIGHT);
	for (uint32_t first = 0; first < 2000; first += BATCH)
		assert_int_equal(store(&rs, first), 0);
	assert_int_equal(counter(STAT_SPILL_BLOCKS), 0);
	assert_int_equal(counter(STAT_STORE_REFUSED_BLOCKS), 0);
	assert_true(counter(STAT_DROPPED_BLOCKS) > 1000);
	assert_int_equal(counter(STAT_DROPPED_BLOCKS), counter(STAT_EVICTED_BLOCKS));
	assert_int_equal(counter(STAT_BLOCKS) + counter(STAT_DROPPED_BLOCKS), 2000);
}

/* Without its word all is written, whatever it costs. */
static void who_says_nothing_is_written(void **state)
{
	(void)state;
	start(0);
	for (uint32_t first = 0; first < 2000; first += BATCH)
		store_patiently(&rs, first);
	assert_int_equal(counter(STAT_DROPPED_BLOCKS), 0);
	assert_int_equal(counter(STAT_EVICTED_BLOCKS), 0);
	assert_int_equal(counter(STAT_BLOCKS), 2000);
	assert_true(counter(STAT_SPILL_BLOCKS) > 1000);
}

/* They give way to those of somebody whose blocks are worth a place on NVMe: of these none is lost. */
static void they_give_way_to_others(void **state)
{
	(void)state;
	start(FASTER_THAN_LIGHT);
	open_second();
	for (uint32_t n = 0; n < 1000; n += BATCH) {
		store_patiently(&rs, n);
		store_patiently(&second_rs, OTHERS + n);
	}
	assert_true(counter(STAT_DROPPED_BLOCKS) > 0);
	assert_int_equal(counter(STAT_DROPPED_BLOCKS), counter(STAT_EVICTED_BLOCKS));
	assert_int_equal(atomic_load(&second_ns.blocks), 1000);
	for (uint32_t n = 0; n < 1000; n += BATCH)
		assert_int_equal(found(&second_rs, OTHERS + n, BATCH), BATCH);
}

/* An engine becomes slower: what is in memory is worth writing now, and is; and faster again. */
static void the_plan_may_change_its_mind(void **state)
{
	uint64_t dropped, spilled;

	(void)state;
	start(FASTER_THAN_LIGHT);
	for (uint32_t first = 0; first < 400; first += BATCH) /* it all fits */
		assert_int_equal(store(&rs, first), 0);
	assert_int_equal(rig.lane->droppable.count, 400);
	assert_int_equal(rig.lane->dirty.count, 0);
	say(1, 0);
	assert_int_equal(rig.lane->droppable.count, 0);
	assert_int_equal(rig.lane->droppable_bytes, 0);
	for (uint32_t first = 400; first < 1400; first += BATCH)
		store_patiently(&rs, first);
	assert_int_equal(counter(STAT_DROPPED_BLOCKS), 0);
	assert_int_equal(counter(STAT_BLOCKS), 1400);
	for (uint32_t first = 0; first < 1400; first += BATCH)
		assert_int_equal(found(&rs, first, BATCH), BATCH);
	say(FASTER_THAN_LIGHT, 1);
	assert_int_equal(rig.lane->dirty.count, 0);
	assert_int_equal(rig.lane->dirty_bytes, 0);
	dropped = counter(STAT_DROPPED_BLOCKS);
	spilled = counter(STAT_SPILL_BLOCKS) + 64; /* as many may be in flight */
	for (uint32_t first = 2000; first < 4000; first += BATCH)
		assert_int_equal(store(&rs, first), 0);
	assert_true(counter(STAT_DROPPED_BLOCKS) > dropped);
	assert_true(counter(STAT_SPILL_BLOCKS) <= spilled);
}

/* What is leased stays, whatever the plan says meanwhile. */
static void leases_hold(void **state)
{
	struct skvc_abi_cqe cqe;

	(void)state;
	start(FASTER_THAN_LIGHT);
	for (uint32_t first = 0; first < 200; first += BATCH)
		assert_int_equal(store(&rs, first), 0);
	say(1, 0);
	cqe = lane_rig_lookup(&rs, 0, BATCH);
	assert_int_equal(cqe.count, BATCH);
	say(FASTER_THAN_LIGHT, 1);
	for (uint32_t first = 200; first < 2000; first += BATCH)
		assert_int_equal(store(&rs, first), 0);
	assert_true(counter(STAT_DROPPED_BLOCKS) > 0);
	lane_rig_load(&rs, cqe.lease, BATCH, BATCH, 8); /* to other pages */
	assert_int_equal(lane_rig_complete(&rs).count, BATCH);
	for (uint32_t i = 0; i < BATCH; i++)
		assert_true(lane_rig_page_is(&rs, BATCH + i, i));
	assert_int_equal(lane_rig_release(&rs, cqe.lease).res, 0);
}

static void pin(uint32_t first, uint32_t count)
{
	assert_int_equal(lane_rig_pin(&rs, first, count, 3600000000000ull).count, count);
}

/* What is pinned stays, though its namespace's blocks are given up, and is written; all others are not. */
static void what_is_pinned_is_written(void **state)
{
	struct skvc_abi_cqe cqe;

	(void)state;
	start(FASTER_THAN_LIGHT);
	for (uint32_t first = 0; first < PINNED; first += BATCH) {
		assert_int_equal(store(&rs, first), 0);
		pin(first, BATCH);
	}
	for (uint32_t first = PINNED; first < 2000; first += BATCH)
		store_patiently(&rs, first);
	assert_in_range(counter(STAT_SPILL_BLOCKS), 1, PINNED);
	assert_int_equal(counter(STAT_BLOCKS) + counter(STAT_DROPPED_BLOCKS), 2000);
	say(1, 0); /* else a lookup says that to compute them is quicker */
	for (uint32_t first = 0; first < PINNED; first += BATCH) {
		cqe = lane_rig_lookup(&rs, first, BATCH);
		assert_int_equal(cqe.count, BATCH);
		lane_rig_load(&rs, cqe.lease, BATCH, BATCH, 8); /* to other pages */
		assert_int_equal(lane_rig_complete(&rs).count, BATCH);
		for (uint32_t i = 0; i < BATCH; i++)
			assert_true(lane_rig_page_is(&rs, BATCH + i, i));
		assert_int_equal(lane_rig_release(&rs, cqe.lease).res, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(what_is_computed_sooner_is_not_written, stop),
		cmocka_unit_test_teardown(who_says_nothing_is_written, stop),
		cmocka_unit_test_teardown(they_give_way_to_others, stop),
		cmocka_unit_test_teardown(the_plan_may_change_its_mind, stop),
		cmocka_unit_test_teardown(leases_hold, stop),
		cmocka_unit_test_teardown(what_is_pinned_is_written, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
