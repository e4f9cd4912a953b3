/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_lane_gpu.c - the data path between an engine's GPU memory and the pools, on the simulated GPU: what
 * goes in comes out, by each way there is; events; aborts; the GPU pool.
 */
#include "tests/lib/gpu_rig.h"

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

struct fixture {
	struct config config;
	struct rig rig;
	struct lane_rig_session rs;
	struct gpu_rig_region g;
};

static void start(struct fixture *f, enum gpu_rig_layout layout)
{
	lane_rig_start(&f->rig, &f->config);
	lane_rig_session_open(&f->rig, &f->rs);
	gpu_rig_open(&f->rs, 2, layout, &f->g);
}

static uint64_t counter(struct fixture *f, enum stats_id id)
{
	return stats_get(lane_stats(f->rig.lane), id);
}

static void eventually(struct fixture *f, enum stats_id id, uint64_t least)
{
	uint64_t start_ns = clock_now_ns();

	while (counter(f, id) < least) {
		if (clock_now_ns() - start_ns > RIG_WAIT_NS)
			fail_msg("%s is %llu, not %llu", stats_info[id].name,
				 (unsigned long long)counter(f, id), (unsigned long long)least);
		usleep(1000);
	}
}

/* Everything that was taken is back when the lane has stopped: the pools' destructors assert that. */
static void stop(struct fixture *f)
{
	lane_rig_session_close(&f->rs);
	gpu_rig_close(&f->g);
	lane_rig_stop(&f->rig);
}

static struct skvc_abi_cqe store(struct fixture *f, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe;

	for (uint32_t i = 0; i < count; i++)
		gpu_rig_fill(&f->g, (first + i) % RIG_PAGES, first + i);
	lane_rig_store(&f->rs, first, count, 7);
	cqe = lane_rig_complete(&f->rs);
	assert_int_equal(cqe.kind, SKVC_ABI_CQE_SOURCE_FREE);
	gpu_rig_wipe(&f->g, 0xee); /* the source may be reused: nothing must read it now */
	cqe = lane_rig_complete(&f->rs);
	assert_int_equal(cqe.kind, SKVC_ABI_CQE_DONE);
	return cqe;
}

static void store_all(struct fixture *f, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = store(f, first, count);

	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	assert_true(cqe.stored_bytes > 0 && cqe.stored_bytes < cqe.raw_bytes);
}

static uint64_t lease_of(struct fixture *f, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(&f->rs, first, count);

	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	return cqe.lease;
}

static void load_all(struct fixture *f, uint32_t first, uint32_t count)
{
	uint64_t lease = lease_of(f, first, count);
	struct skvc_abi_cqe cqe;

	gpu_rig_wipe(&f->g, 0x11);
	lane_rig_load(&f->rs, lease, 0, count, 8);
	cqe = lane_rig_complete(&f->rs);
	assert_int_equal(cqe.kind, SKVC_ABI_CQE_DONE);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	for (uint32_t i = 0; i < count; i++)
		assert_true(gpu_rig_is(&f->g, i, first + i));
	assert_int_equal(lane_rig_release(&f->rs, lease).res, 0);
}

/* Into the session's host region. */
static void load_host(struct fixture *f, uint32_t first, uint32_t count)
{
	uint64_t lease = lease_of(f, first, count);
	struct skvc_abi_cqe cqe;

	f->rs.handle = 1;
	for (uint32_t i = 0; i < count; i++)
		memset(lane_rig_page(&f->rs, i), 0x11, f->rig.ns.geom.raw_bytes);
	lane_rig_load(&f->rs, lease, 0, count, 8);
	cqe = lane_rig_complete(&f->rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	for (uint32_t i = 0; i < count; i++)
		assert_true(lane_rig_page_is(&f->rs, i, first + i));
	assert_int_equal(lane_rig_release(&f->rs, lease).res, 0);
	f->rs.handle = f->g.handle;
}

/* ---- what goes in comes out ---- */

static void round_trip(enum gpu_rig_layout layout)
{
	struct fixture f;

	gpu_rig_config(&f.config);
	start(&f, layout);
	store_all(&f, 0,
		  64); /* copied out raw: samples, and coded by the CPU before there is a profile */
	eventually(&f, STAT_PROFILES_FITTED, 1);
	load_all(&f, 0, 64); /* `generic`: by the CPU, and copied in */
	assert_int_equal(counter(&f, STAT_GPU_ENCODE_NS), 0);
	store_all(&f, 64, 64); /* by the GPU */
	assert_true(counter(&f, STAT_GPU_ENCODE_NS) > 0);
	load_all(&f, 64, 64);
	load_all(&f, 0, 128);
	load_host(&f, 0, 128);
	assert_int_equal(counter(&f, STAT_STORE_BLOCKS), 128);
	assert_int_equal(counter(&f, STAT_LOAD_BLOCKS), 64 + 64 + 128 + 128);
	assert_int_equal(counter(&f, STAT_CHECKSUM_FAILURES), 0);
	stop(&f);
}

static void what_goes_in_comes_out(void **state)
{
	(void)state;
	for (enum gpu_rig_layout l = 0; l < GPU_RIG_LAYOUT_COUNT; l++)
		round_trip(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_goes_in_comes_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
