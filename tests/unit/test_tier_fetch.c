/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tier_fetch.c - how blocks come back from NVMe: those of one prefix together, and what follows on them before
 * anybody asks.
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

#define CHAIN 60u
#define CHAINS 4u
#define OTHERS 1000000u /* keys of blocks that push the others out */

static struct rig rig;
static struct lane_rig_session rs;
static char path[64];
static uint32_t others;

static uint64_t counter(enum stats_id id)
{
	return stats_get(lane_stats(rig.lane), id);
}

static void wait_for(enum stats_id id, uint64_t at_least)
{
	const uint64_t start_ns = clock_now_ns();

	while (counter(id) < at_least) {
		if (clock_now_ns() - start_ns > RIG_WAIT_NS)
			fail_msg("%s is %llu, not %llu", stats_info[id].name,
				 (unsigned long long)counter(id), (unsigned long long)at_least);
		usleep(1000);
	}
}

static void start_with(struct config *config, uint64_t read_ahead_bytes, const char *fault)
{
	struct config c = *config;
	int fd;

	(void)snprintf(path, sizeof(path), "./skvcd-test-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	c.pool_bytes = 16u << 20;
	c.store_wait_ns = 20000000000ull; /* for a disk that is busy with others */
	(void)snprintf(c.nvme_path, sizeof(c.nvme_path), "%s", path);
	c.nvme_bytes = 256u << 20;
	c.nvme_segment_bytes = 8u << 20;
	c.nvme_read_ahead_bytes = read_ahead_bytes;
	(void)snprintf(c.fault_nvme, sizeof(c.fault_nvme), "%s", fault ? fault : "");
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	others = OTHERS;
}

static void start(uint64_t read_ahead_bytes, const char *fault)
{
	struct config c;

	lane_rig_config(&c);
	c.speculator = CONFIG_SPECULATOR_RAW; /* of one size, and nothing is coded again */
	start_with(&c, read_ahead_bytes, fault);
}

static int stop(void **state)
{
	(void)state;
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	unlink(path);
	return 0;
}

/* Key n has the bytes of seed n; they lie in page n. */
static void fill(uint32_t first, uint32_t count)
{
	for (uint32_t i = first; i < first + count; i++)
		lane_rig_fill(&rs, i % RIG_PAGES, i);
}

static void store(uint32_t first, uint32_t count)
{
	for (unsigned tries = 0; tries < 100; tries++) {
		int32_t res;

		fill(first, count);
		lane_rig_store(&rs, first, count, 7);
		res = lane_rig_done(&rs).res;
		if (res == 0)
			return;
		assert_int_equal(res, -EAGAIN); /* the disk is busy with others */
		usleep(20000);
	}
	fail_msg("blocks %u and on were refused 100 times", first);
}

/* Until only NVMe has what was stored before. */
static void push_out(void)
{
	const uint64_t pool_blocks = rig.config.pool_bytes / rig.ns.geom.raw_bytes;

	for (uint64_t n = 0; n < 3 * pool_blocks; n += 50, others += 50)
		store(others, 50);
}

/* And forgotten: then there is room. */
static void make_room(void)
{
	push_out();
	for (uint32_t at = OTHERS; at < others; at += 50) {
		lane_rig_drop(&rs, at, 50, 9);
		assert_int_equal(lane_rig_complete(&rs).res, 0);
	}
}

static void load(uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(&rs, first, count);
	uint64_t lease = cqe.lease;

	assert_int_equal(cqe.count, count);
	lane_rig_load(&rs, lease, 0, count, 8);
	cqe = lane_rig_complete(&rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	for (uint32_t i = 0; i < count; i++)
		assert_true(lane_rig_page_is(&rs, i, first + i));
	assert_int_equal(lane_rig_release(&rs, lease).res, 0);
}

static void a_prefix_comes_with_few_reads(void **state)
{
	(void)state;
	start(0, NULL);
	store(0, CHAIN);
	push_out();
	load(0, CHAIN);
	assert_int_equal(counter(STAT_FETCH_BLOCKS), CHAIN);
	assert_int_equal(counter(STAT_NVME_JOINED_BLOCKS), CHAIN);
	print_message("%u blocks with %u reads\n", CHAIN, (unsigned)counter(STAT_NVME_READS));
	assert_true(counter(STAT_NVME_READS) <= CHAIN / 8);
	assert_int_equal(counter(STAT_READ_AHEAD_BLOCKS), 0);
}

/* Stored at once, they are published by turns; what lies between two of one chain would be too much to read. */
static void chains_that_were_stored_at_once_lie_apart(void **state)
{
	(void)state;
	start(0, NULL);
	fill(0, CHAINS * CHAIN);
	for (uint32_t i = 0; i < CHAINS; i++)
		lane_rig_store(&rs, i * CHAIN, CHAIN, 100 + i);
	for (uint32_t i = 0; i < CHAINS; i++)
		assert_int_equal(lane_rig_done(&rs).res, 0);
	push_out();
	for (uint32_t i = 0; i < CHAINS; i++)
		load(i * CHAIN, CHAIN);
	print_message("%u blocks with %u reads\n", (unsigned)counter(STAT_FETCH_BLOCKS),
		      (unsigned)counter(STAT_NVME_READS));
	assert_int_equal(counter(STAT_FETCH_BLOCKS), CHAINS * CHAIN);
	assert_true(counter(STAT_NVME_READS) <= CHAINS * CHAIN / 8);
}

/* A sector that can't be read costs the block that it is in. */
static void a_failed_read_is_parted(void **state)
{
	struct skvc_abi_cqe cqe;
	uint64_t lease;

	(void)state;
	start(0, "read:eio:every=1:at=500000"); /* within the first records written */
	store(0, CHAIN);
	make_room();
	cqe = lane_rig_lookup(&rs, 0, CHAIN);
	lease = cqe.lease;
	assert_int_equal(cqe.count, CHAIN);
	lane_rig_load(&rs, lease, 0, CHAIN, 8);
	cqe = lane_rig_complete(&rs);
	assert_int_equal(cqe.res, -ENODATA);
	assert_int_equal(cqe.count, CHAIN - 1);
	assert_int_equal(lane_rig_release(&rs, lease).res, 0);
	assert_int_equal(counter(STAT_NVME_PARTED_READS), 1);
	assert_int_equal(counter(STAT_NVME_ERRORS), 1);
	assert_int_equal(counter(STAT_NVME_HEALTH), 1);
	assert_int_equal(counter(STAT_CHECKSUM_FAILURES), 0);
}

/* What its engine computes again and stores takes the place of a block that could not be read. */
static void a_block_that_cannot_be_read_is_stored_again(void **state)
{
	(void)state;
	a_failed_read_is_parted(state);
	store(0, CHAIN);
	assert_int_equal(counter(STAT_STORE_DUPLICATE_BLOCKS), CHAIN - 1);
	load(0, CHAIN);
	make_room();
	load(0, CHAIN);
	assert_int_equal(counter(STAT_NVME_ERRORS), 1);
	assert_int_equal(counter(STAT_BLOCKS), CHAIN);
}

static void what_follows_is_read_ahead(void **state)
{
	const uint32_t step = 6;

	(void)state;
	start(20 * 32768, NULL);
	store(0, CHAIN);
	make_room();
	load(0, step);
	wait_for(STAT_READ_AHEAD_BLOCKS, 1);
	for (uint32_t first = step; first < CHAIN; first += step) {
		wait_for(STAT_FETCH_BLOCKS, first + step); /* before it is asked for */
		load(first, step);
	}
	assert_int_equal(counter(STAT_FETCH_BLOCKS), CHAIN);
	assert_int_equal(counter(STAT_READ_AHEAD_BLOCKS), CHAIN - step);
	assert_int_equal(counter(STAT_READ_AHEAD_USED_BLOCKS), CHAIN - step);
	assert_int_equal(counter(STAT_READ_AHEAD_WASTED_BLOCKS), 0);
	assert_int_equal(rig.lane->ahead.bytes, 0); /* what was used does not count any more, */
	for (uint32_t id = 0; id < index_end(rig.lane->index); id++)
		assert_int_equal(index_block(rig.lane->index, id)->pinned, 0); /* nor stay */
}

static void read_ahead_is_bounded_and_counted(void **state)
{
	(void)state;
	start(10 * 32768 + 10000, NULL);
	store(0, CHAIN);
	push_out();
	load(0, 4);
	wait_for(STAT_READ_AHEAD_BLOCKS, 1);
	load(0, 4); /* it is warm now: nothing more is read */
	lane_rig_drop(&rs, 0, CHAIN, 9);
	assert_int_equal(lane_rig_complete(&rs).res, 0);
	wait_for(STAT_READ_AHEAD_WASTED_BLOCKS, counter(STAT_READ_AHEAD_BLOCKS));
	print_message("%u read ahead\n", (unsigned)counter(STAT_READ_AHEAD_BLOCKS));
	assert_true(counter(STAT_READ_AHEAD_BLOCKS) <= 10);
	assert_int_equal(counter(STAT_READ_AHEAD_WASTED_BLOCKS), counter(STAT_READ_AHEAD_BLOCKS));
	assert_int_equal(counter(STAT_READ_AHEAD_USED_BLOCKS), 0);
}

/* A chain that the request left, or ended with, is not gone on with. */
static void a_miss_reads_nothing_ahead(void **state)
{
	struct skvc_abi_cqe cqe;

	(void)state;
	start(1u << 20, NULL);
	store(0, CHAIN);
	push_out();
	load(0, CHAIN);
	push_out();
	lane_rig_drop(&rs, CHAIN / 2, 1, 9);
	assert_int_equal(lane_rig_complete(&rs).count, 1);
	cqe = lane_rig_lookup(&rs, 0, CHAIN);
	assert_int_equal(cqe.count, CHAIN / 2);
	lane_rig_load(&rs, cqe.lease, 0, CHAIN / 2, 8);
	assert_int_equal(lane_rig_complete(&rs).count, CHAIN / 2);
	assert_int_equal(lane_rig_release(&rs, cqe.lease).res, 0);
	assert_int_equal(counter(STAT_READ_AHEAD_BLOCKS), 0);
}

/*
 * Half of the slots are free, but in every slab there is a block that lies nowhere else: one of another size finds no
 * room and waits, until some were written, though the pool is far from where writing begins.
 */
static void a_slot_of_another_size_is_made(void **state)
{
	const uint64_t pool_bytes = 16u << 20;
	struct config c;
	uint32_t n = 0;

	(void)state;
	lane_rig_config(&c);
	c.speculator = CONFIG_SPECULATOR_GENERIC;
	c.spill_percent = 99;
	c.full_percent = 100;
	start_with(&c, 0, NULL);
	while (counter(STAT_POOL_SLAB_BYTES) < counter(STAT_POOL_BYTES)) {
		assert_true(n < pool_bytes / 16384);
		store(n, 1);
		n++;
	}
	for (uint32_t i = 0; i < n; i += 2) {
		lane_rig_drop(&rs, i, 1, 9);
		assert_int_equal(lane_rig_complete(&rs).count, 1);
	}
	assert_int_equal(counter(STAT_SPILL_BLOCKS), 0);
	memset(lane_rig_page(&rs, 0), 0, rig.ns.geom.raw_bytes); /* that is small */
	lane_rig_store_at(&rs, OTHERS, 1, 0, 7);
	assert_int_equal(lane_rig_done(&rs).res, 0);
	assert_true(counter(STAT_SPILL_BLOCKS) > 0);
	assert_int_equal(counter(STAT_EVICTED_BLOCKS), 0);
	for (uint32_t i = 1; i < n; i += 2)
		load(i, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(a_prefix_comes_with_few_reads, stop),
		cmocka_unit_test_teardown(chains_that_were_stored_at_once_lie_apart, stop),
		cmocka_unit_test_teardown(a_failed_read_is_parted, stop),
		cmocka_unit_test_teardown(a_block_that_cannot_be_read_is_stored_again, stop),
		cmocka_unit_test_teardown(what_follows_is_read_ahead, stop),
		cmocka_unit_test_teardown(read_ahead_is_bounded_and_counted, stop),
		cmocka_unit_test_teardown(a_miss_reads_nothing_ahead, stop),
		cmocka_unit_test_teardown(a_slot_of_another_size_is_made, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
