/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_lane.c - see gpu_lane.h.  Runs on the test's thread.
 */
#include "tests/lib/gpu_lane.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/util/clock.h"

void gpu_lane_start(struct gpu_lane *f, enum gpu_rig_layout layout)
{
	lane_rig_start(&f->rig, &f->config);
	lane_rig_session_open(&f->rig, &f->rs);
	gpu_rig_open(&f->rs, 2, layout, &f->g);
}

uint64_t gpu_lane_counter(struct gpu_lane *f, enum stats_id id)
{
	return stats_get(lane_stats(f->rig.lane), id);
}

void gpu_lane_eventually(struct gpu_lane *f, enum stats_id id, uint64_t least)
{
	uint64_t start_ns = clock_now_ns();

	while (gpu_lane_counter(f, id) < least) {
		if (clock_now_ns() - start_ns > RIG_WAIT_NS)
			fail_msg("%s is %llu, not %llu", stats_info[id].name,
				 (unsigned long long)gpu_lane_counter(f, id),
				 (unsigned long long)least);
		usleep(1000);
	}
}

/* Everything that was taken is back when the lane has stopped: the pools' destructors assert that. */
void gpu_lane_stop(struct gpu_lane *f)
{
	lane_rig_session_close(&f->rs);
	gpu_rig_close(&f->g);
	lane_rig_stop(&f->rig);
}

struct skvc_abi_cqe gpu_lane_store(struct gpu_lane *f, uint32_t first, uint32_t count)
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

void gpu_lane_store_all(struct gpu_lane *f, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = gpu_lane_store(f, first, count);

	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	assert_true(cqe.stored_bytes > 0 && cqe.stored_bytes < cqe.raw_bytes);
}

uint64_t gpu_lane_lease_of(struct gpu_lane *f, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(&f->rs, first, count);

	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	return cqe.lease;
}

void gpu_lane_load_all(struct gpu_lane *f, uint32_t first, uint32_t count)
{
	uint64_t lease = gpu_lane_lease_of(f, first, count);
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
void gpu_lane_load_host(struct gpu_lane *f, uint32_t first, uint32_t count)
{
	uint64_t lease = gpu_lane_lease_of(f, first, count);
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

void gpu_lane_with_profile(struct gpu_lane *f)
{
	gpu_lane_store_all(f, 1000, 64);
	gpu_lane_eventually(f, STAT_PROFILES_FITTED, 1);
}
