/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_lane_gpu_faults.c - what the lane makes of a GPU that fails: each fault at each operation, its death
 * under load, blocks that are dropped while they are moved, and all tiers at once.  What is reported as
 * restored is exact, everything completes, and all is given back.
 */
#include "tests/lib/gpu_lane.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/util/clock.h"

#define BLOCKS 40u
#define ROUNDS 3u

static void config_with(struct config *c, const char *spec)
{
	gpu_rig_config(c);
	c->pool_bytes = 16u << 20;
	c->gpu_pool_bytes = 16u << 20;
	(void)snprintf(c->fault_gpu, sizeof(c->fault_gpu), "%s", spec);
}

/* ---- stores and loads that may fail ---- */

static void fill(struct gpu_lane *f, uint32_t first, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		gpu_rig_fill(&f->g, (first + i) % RIG_PAGES, first + i);
		lane_rig_fill(&f->rs, (first + i) % RIG_PAGES, first + i);
	}
}

static struct skvc_abi_cqe try_store(struct gpu_lane *f, uint32_t handle, uint32_t first)
{
	struct skvc_abi_cqe cqe;

	fill(f, first, BLOCKS);
	f->rs.handle = handle;
	lane_rig_store(&f->rs, first, BLOCKS, 7);
	cqe = lane_rig_done(&f->rs);
	assert_int_equal(cqe.user_data, 7);
	assert_true(cqe.count <= BLOCKS);
	assert_true(cqe.count == BLOCKS || cqe.res < 0);
	return cqe;
}

static int page_is(struct gpu_lane *f, uint32_t handle, uint32_t page, uint32_t seed)
{
	return handle == 1 ? lane_rig_page_is(&f->rs, page, seed) : gpu_rig_is(&f->g, page, seed);
}

/* Load what can be found of the keys; returns how many blocks came, all of them exact unless told so. */
static uint32_t try_load(struct gpu_lane *f, uint32_t handle, uint32_t first, int exact)
{
	uint32_t came = 0;

	f->rs.handle = handle;
	for (uint32_t k = 0; k < BLOCKS;) {
		struct skvc_abi_cqe cqe = lane_rig_lookup(&f->rs, first + k, BLOCKS - k);
		uint64_t lease = cqe.lease, map;
		uint32_t count = cqe.count;

		if (cqe.res < 0) {
			k++;
			continue;
		}
		gpu_rig_wipe(&f->g, 0x11);
		lane_rig_load(&f->rs, lease, 0, count, 8);
		cqe = lane_rig_complete(&f->rs);
		map = lane_rig_bitmap(&f->rs, f->rs.result_rel);
		if (cqe.kind == SKVC_ABI_CQE_DONE && cqe.reason == SKVC_ABI_REASON_DEVICE_GONE)
			map = 0;
		assert_int_equal(cqe.count, __builtin_popcountll(map));
		assert_true(cqe.count == count || cqe.res < 0);
		for (uint32_t i = 0; i < count; i++)
			if (map >> i & 1 && exact)
				assert_true(page_is(f, handle, i, first + k + i));
		came += cqe.count;
		k += count;
		(void)lane_rig_release(&f->rs, lease);
	}
	return came;
}

/* ---- each fault at each operation ---- */

static void run_faults(const char *spec, int exact)
{
	struct gpu_lane f;
	uint32_t came = 0;

	config_with(&f.config, spec);
	gpu_lane_start(&f, GPU_RIG_HND);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		(void)try_store(&f, 2, round * BLOCKS);
		came += try_load(&f, 2, round * BLOCKS, exact);
		came += try_load(&f, 1, round * BLOCKS, exact);
	}
	/* The host's way never depends on the GPU. */
	assert_int_equal(try_store(&f, 1, 2000).count, BLOCKS);
	assert_int_equal(try_load(&f, 1, 2000, 1), BLOCKS);
	assert_true(came > 0);
	gpu_lane_stop(&f);
}

static void each_fault_at_each_operation(void **state)
{
	static const char *const ops[] = { "encode", "decode", "copy", "copy_in", "move" };
	static const char *const kinds[] = { "eio",	   "enomem",	 "corrupt",
					     "delay_ms=2", "stall_ms=3", "launch" };
	char spec[64];

	(void)state;
	for (unsigned o = 0; o < 5; o++)
		for (unsigned k = 0; k < 6; k++) {
			/* A raw copy that the bus spoils is nobody's to notice: the checksum is
			 * taken on the other side of it. */
			int exact = k != 2 || (o != 2 && o != 3);

			(void)snprintf(spec, sizeof(spec), "%s:%s:every=5", ops[o], kinds[k]);
			print_message("%s\n", spec);
			run_faults(spec, exact);
		}
}

/* ---- death ---- */

static void await_gauge(struct gpu_lane *f, enum stats_id id, uint64_t want)
{
	uint64_t start_ns = clock_now_ns();

	while (gpu_lane_counter(f, id) != want && clock_now_ns() - start_ns < RIG_WAIT_NS)
		usleep(1000);
	assert_int_equal(gpu_lane_counter(f, id), want);
}

static void run_death(const char *spec)
{
	struct skvc_abi_cqe cqe;
	uint64_t start_ns = clock_now_ns();
	struct gpu_lane f;
	uint32_t round = 0;

	config_with(&f.config, spec);
	gpu_lane_start(&f, GPU_RIG_HND);
	/* A slow machine needs many rounds until there is a profile, and the GPU something to code. */
	for (; gpu_lane_counter(&f, STAT_GPU_HEALTH) == 1; round++) {
		assert_true(clock_now_ns() - start_ns < RIG_WAIT_NS);
		(void)try_store(&f, 2, round * BLOCKS);
		(void)try_load(&f, 2, round * BLOCKS, 1);
		(void)try_load(&f, 1, round * BLOCKS, 1);
	}
	assert_int_equal(lane_rig_mail(&f.rig, LANE_GPU_HEALTH).res, -EIO);
	cqe = try_store(&f, 2, 1u << 20);
	assert_int_equal(cqe.res, -EIO);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_DEVICE_GONE);
	assert_int_equal(try_store(&f, 1, 1u << 20).count, BLOCKS);
	assert_int_equal(try_load(&f, 1, 1u << 20, 1), BLOCKS);
	for (uint32_t i = round > 9 ? round - 9 : 0; i < round;
	     i++) /* what lies here is served, the rest is forgotten */
		(void)try_load(&f, 1, i * BLOCKS, 1);
	await_gauge(&f, STAT_GPU_BLOCKS, 0);
	await_gauge(&f, STAT_DEVICE_INFLIGHT, 0);
	gpu_lane_stop(&f);
}

static void death_at_each_operation(void **state)
{
	static const char *const ops[] = { "encode", "decode", "copy", "copy_in", "move" };
	char spec[64];

	(void)state;
	for (unsigned o = 0; o < 5; o++)
		for (unsigned every = 1; every <= 25; every += 12) {
			(void)snprintf(spec, sizeof(spec), "%s:dead:every=%u", ops[o], every);
			print_message("%s\n", spec);
			run_death(spec);
		}
}

/* Leased blocks that were only there are lost to who holds them, too, and their index entries come back. */
static void a_lease_does_not_save_what_died(void **state)
{
	struct skvc_abi_cqe cqe;
	struct gpu_lane f;
	uint64_t lease;

	(void)state;
	config_with(&f.config, "decode:dead:every=30");
	gpu_lane_start(&f, GPU_RIG_HND);
	gpu_lane_with_profile(&f);
	gpu_lane_store_all(&f, 0, 50);
	lease = gpu_lane_lease_of(&f, 0, 50);
	lane_rig_load(&f.rs, lease, 0, 50, 8);
	cqe = lane_rig_complete(&f.rs);
	assert_int_equal(cqe.res, -EIO);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_DEVICE_ERROR);
	assert_true(cqe.count < 50);
	await_gauge(&f, STAT_GPU_HEALTH, 2);
	gpu_lane_eventually(&f, STAT_GPU_LOST_BLOCKS, 50);
	assert_int_equal(lane_rig_lookup(&f.rs, 0, 50).res, -ENOENT);
	f.rs.handle = 1;
	lane_rig_load(&f.rs, lease, 0, 50, 8);
	cqe = lane_rig_complete(&f.rs);
	assert_int_equal(cqe.count, 0);
	assert_true(cqe.res < 0);
	assert_int_equal(lane_rig_release(&f.rs, lease).res, 0);
	await_gauge(&f, STAT_GPU_BLOCKS, 0);
	gpu_lane_stop(&f);
}

/* ---- moves that something comes between ---- */

static void dropped_while_it_is_moved(void **state)
{
	struct skvc_abi_cqe cqe;
	struct gpu_lane f;
	uint64_t lease;

	(void)state;
	config_with(&f.config, "move:delay_ms=20");
	gpu_lane_start(&f, GPU_RIG_HND);
	gpu_lane_with_profile(&f);
	gpu_lane_store_all(&f, 0, 30);
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_BLOCKS), 30);
	lease = gpu_lane_lease_of(&f, 0, 30);
	f.rs.handle = 1;
	lane_rig_load(&f.rs, lease, 0, 30, 8); /* starts the moves */
	usleep(5000);
	lane_rig_drop(&f.rs, 0, 30, 500);
	cqe = lane_rig_complete(&f.rs);
	assert_int_equal(cqe.user_data, 500);
	assert_int_equal(cqe.count, 30);
	cqe = lane_rig_complete(&f.rs); /* a lease is still a lease */
	assert_int_equal(cqe.user_data, 8);
	assert_int_equal(cqe.count, 30);
	for (uint32_t i = 0; i < 30; i++)
		assert_true(lane_rig_page_is(&f.rs, i, i));
	assert_int_equal(lane_rig_lookup(&f.rs, 0, 30).res, -ENOENT);
	assert_int_equal(lane_rig_release(&f.rs, lease).res, 0);
	await_gauge(&f, STAT_GPU_BLOCKS, 0);
	gpu_lane_stop(&f);
}

/* Host and GPU memory load the same blocks at once: the move must not take them from under a decode. */
static void both_sides_load_what_is_moved(void **state)
{
	struct skvc_abi_cqe cqe;
	struct gpu_lane f;
	uint64_t lease;

	(void)state;
	config_with(&f.config, "decode:delay_ms=10:every=2");
	gpu_lane_start(&f, GPU_RIG_HND);
	gpu_lane_with_profile(&f);
	for (uint32_t round = 0; round < 5; round++) {
		uint32_t first = round * 50;

		gpu_lane_store_all(&f, first, 50);
		lease = gpu_lane_lease_of(&f, first, 50);
		lane_rig_load(&f.rs, lease, 0, 50, 8);
		f.rs.handle = 1;
		lane_rig_load(&f.rs, lease, 0, 50, 9);
		f.rs.handle = f.g.handle;
		lane_rig_load(&f.rs, lease, 50, 50, 10);
		lane_rig_drop(&f.rs, first, 25, 500);
		for (uint32_t i = 0; i < 4; i++) {
			cqe = lane_rig_complete(&f.rs);
			assert_int_equal(cqe.res, 0);
			assert_int_equal(cqe.count, cqe.user_data == 500 ? 25 : 50);
		}
		for (uint32_t i = 0; i < 50; i++) {
			assert_true(gpu_rig_is(&f.g, i, first + i));
			assert_true(gpu_rig_is(&f.g, 50 + i, first + i));
			assert_true(lane_rig_page_is(&f.rs, i, first + i));
		}
		assert_int_equal(lane_rig_release(&f.rs, lease).res, 0);
	}
	assert_int_equal(gpu_lane_counter(&f, STAT_CHECKSUM_FAILURES), 0);
	gpu_lane_stop(&f);
}

/* GPU pool, host pool, NVMe: nothing is lost on the way down, and all of it comes back up. */
static void all_the_way_down_and_up(void **state)
{
	char path[] = "./skvcd-test-XXXXXX";
	struct gpu_lane f;
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	(void)close(fd);
	config_with(&f.config, "");
	(void)snprintf(f.config.nvme_path, sizeof(f.config.nvme_path), "%s", path);
	f.config.nvme_bytes = 128u << 20;
	f.config.nvme_segment_bytes = 4u << 20;
	f.config.store_wait_ns = 10000000000;
	f.config.full_percent = 100; /* stores wait for a slow disk rather than being refused */
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_lane_with_profile(&f);
	for (uint32_t first = 2000; first < 4500; first += 50)
		gpu_lane_store_all(&f, first, 50);
	assert_true(gpu_lane_counter(&f, STAT_GPU_DEMOTED_BLOCKS) > 0);
	assert_true(gpu_lane_counter(&f, STAT_SPILL_BLOCKS) > 0);
	assert_int_equal(gpu_lane_counter(&f, STAT_EVICTED_BLOCKS), 0);
	for (uint32_t first = 2000; first < 4500; first += 100)
		gpu_lane_load_all(&f, first, 100);
	assert_true(gpu_lane_counter(&f, STAT_FETCH_BLOCKS) > 0);
	for (uint32_t first = 2000; first < 4500; first += 100)
		gpu_lane_load_host(&f, first, 100);
	assert_int_equal(gpu_lane_counter(&f, STAT_CHECKSUM_FAILURES), 0);
	gpu_lane_stop(&f);
	(void)unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_fault_at_each_operation),
		cmocka_unit_test(death_at_each_operation),
		cmocka_unit_test(a_lease_does_not_save_what_died),
		cmocka_unit_test(dropped_while_it_is_moved),
		cmocka_unit_test(both_sides_load_what_is_moved),
		cmocka_unit_test(all_the_way_down_and_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
