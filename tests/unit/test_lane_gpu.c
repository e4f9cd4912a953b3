/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_lane_gpu.c - the data path between an engine's GPU memory and the pools, on the simulated GPU: what
 * goes in comes out, by each way there is; events; aborts; the GPU pool.
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

/* ---- what goes in comes out ---- */

static void round_trip(enum gpu_rig_layout layout)
{
	struct gpu_lane f;

	gpu_rig_config(&f.config);
	gpu_lane_start(&f, layout);
	gpu_lane_store_all(
		&f, 0,
		64); /* copied out raw: samples, and coded by the CPU before there is a profile */
	gpu_lane_eventually(&f, STAT_PROFILES_FITTED, 1);
	gpu_lane_load_all(&f, 0, 64); /* `generic`: by the CPU, and copied in */
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_ENCODE_NS), 0);
	gpu_lane_store_all(&f, 64, 64); /* by the GPU */
	assert_true(gpu_lane_counter(&f, STAT_GPU_ENCODE_NS) > 0);
	gpu_lane_load_all(&f, 64, 64);
	gpu_lane_load_all(&f, 0, 128);
	gpu_lane_load_host(&f, 0, 128);
	assert_int_equal(gpu_lane_counter(&f, STAT_STORE_BLOCKS), 128);
	assert_int_equal(gpu_lane_counter(&f, STAT_LOAD_BLOCKS), 64 + 64 + 128 + 128);
	assert_int_equal(gpu_lane_counter(&f, STAT_CHECKSUM_FAILURES), 0);
	gpu_lane_stop(&f);
}

static void what_goes_in_comes_out(void **state)
{
	(void)state;
	for (enum gpu_rig_layout l = 0; l < GPU_RIG_LAYOUT_COUNT; l++)
		round_trip(l);
}

/* ---- shapes ---- */

static void generic_blocks_go_through_the_cpu(void **state)
{
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	f.config.speculator = CODEC_SPEC_GENERIC;
	gpu_lane_start(&f, GPU_RIG_HND);
	gpu_lane_store_all(&f, 0, 100);
	gpu_lane_load_all(&f, 0, 100);
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_ENCODE_NS), 0);
	assert_int_equal(gpu_lane_counter(&f, STAT_PROFILES_FITTED), 0);
	gpu_lane_stop(&f);
}

/* The pages from `page` on hold the blocks from `first` on; the first one from `skip` tokens on. */
static void load_skipping(struct gpu_lane *f, uint32_t first, uint32_t count, uint32_t skip)
{
	uint64_t lease = gpu_lane_lease_of(f, first, count);
	struct skvc_abi_cqe cqe;
	uint32_t rel;

	gpu_rig_wipe(&f->g, 0x11);
	f->rs.skip_tokens = skip;
	f->rs.flags = SKVC_ABI_SQE_LAYER_PROGRESS;
	lane_rig_load(&f->rs, lease, 3, count, 8);
	rel = f->rs.result_rel;
	f->rs.skip_tokens = 0;
	f->rs.flags = 0;
	cqe = lane_rig_complete(&f->rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	assert_int_equal(lane_rig_bitmap(&f->rs, rel + 8), RIG_LAYERS * 2); /* all segments */
	assert_true(gpu_rig_is_from(&f->g, 3, first, skip, 0x11));
	for (uint32_t i = 1; i < count; i++)
		assert_true(gpu_rig_is(&f->g, 3 + i, first + i));
	assert_int_equal(lane_rig_release(&f->rs, lease).res, 0);
}

static void leading_tokens_stay_untouched(void **state)
{
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_lane_store_all(&f, 0, 8);
	load_skipping(&f, 0, 8, 5); /* copied in */
	gpu_lane_with_profile(&f);
	gpu_lane_store_all(&f, 100, 8);
	load_skipping(&f, 100, 8, 15); /* decoded by the GPU */
	load_skipping(&f, 100, 1, 0);
	gpu_lane_stop(&f);
}

/* Blocks that came from host memory, coded by the CPU, are the GPU's to decode, and the other way round. */
static void host_and_gpu_share_blocks(void **state)
{
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_lane_with_profile(&f);
	f.rs.handle = 1;
	for (uint32_t i = 0; i < 32; i++)
		lane_rig_fill(&f.rs, i, i);
	lane_rig_store(&f.rs, 0, 32, 7);
	assert_int_equal(lane_rig_done(&f.rs).count, 32);
	f.rs.handle = f.g.handle;
	gpu_lane_load_all(&f, 0, 32);
	gpu_lane_store_all(&f, 32, 32);
	gpu_lane_load_host(&f, 0, 64);
	gpu_lane_stop(&f);
}

/* ---- events ---- */

static void nothing_completes(struct lane_rig_session *rs, unsigned ms)
{
	struct skvc_abi_cqe cqe;

	for (unsigned i = 0; i < ms; i++) {
		assert_false(lane_rig_try_complete(rs, &cqe));
		usleep(1000);
	}
}

static void store_behind_event(struct gpu_lane *f, struct gpu_rig_event *ready, uint32_t first)
{
	struct skvc_abi_cqe cqe;

	gpu_rig_event_set(ready, SIM_EVENT_PENDING);
	gpu_rig_wipe(&f->g, 0xcc);
	f->rs.arg = skvc_abi_events(ready->handle, 0);
	lane_rig_store(&f->rs, first, 32, 7);
	nothing_completes(&f->rs, 20);
	for (uint32_t i = 0; i < 32; i++)
		gpu_rig_fill(&f->g, (first + i) % RIG_PAGES, first + i);
	gpu_rig_event_set(ready, SIM_EVENT_COMPLETE);
	cqe = lane_rig_done(&f->rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, 32);
	f->rs.arg = 0;
	gpu_lane_load_all(f, first, 32);
}

static void load_between_events(struct gpu_lane *f, struct gpu_rig_event *ready,
				struct gpu_rig_event *done, uint32_t first)
{
	uint64_t lease = gpu_lane_lease_of(f, first, 32);
	uint32_t records = atomic_load(&done->words->records);
	struct skvc_abi_cqe cqe;

	gpu_rig_event_set(ready, SIM_EVENT_PENDING);
	gpu_rig_wipe(&f->g, 0x22);
	f->rs.arg = skvc_abi_events(ready->handle, done->handle);
	lane_rig_load(&f->rs, lease, 0, 32, 8);
	nothing_completes(&f->rs, 20);
	assert_int_equal(atomic_load(&done->words->records), records);
	for (uint64_t i = 0; i < f->g.bytes; i++)
		if (f->g.map[i] != 0x22)
			fail_msg("byte %llu was touched before the event", (unsigned long long)i);
	gpu_rig_event_set(ready, SIM_EVENT_COMPLETE);
	cqe = lane_rig_complete(&f->rs);
	assert_int_equal(atomic_load(&done->words->records), records + 1);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, 32);
	for (uint32_t i = 0; i < 32; i++)
		assert_true(gpu_rig_is(&f->g, i, first + i));
	f->rs.arg = 0;
	assert_int_equal(lane_rig_release(&f->rs, lease).res, 0);
}

static void pages_are_touched_between_the_events(void **state)
{
	struct gpu_rig_event ready, done;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_rig_event_open(&f.rs, 3, &ready);
	gpu_rig_event_open(&f.rs, 4, &done);
	store_behind_event(&f, &ready, 0);
	load_between_events(&f, &ready, &done, 0);
	gpu_lane_with_profile(&f);
	store_behind_event(&f, &ready, 64);
	load_between_events(&f, &ready, &done, 64);
	lane_rig_session_close(&f.rs);
	gpu_rig_event_close(&ready);
	gpu_rig_event_close(&done);
	gpu_rig_close(&f.g);
	lane_rig_stop(&f.rig);
}

static void expect_refusal(struct gpu_lane *f, uint32_t handle, uint64_t arg, int32_t res,
			   uint16_t reason)
{
	struct skvc_abi_cqe cqe;

	f->rs.handle = handle;
	f->rs.arg = arg;
	lane_rig_store(&f->rs, 0, 1, 7);
	cqe = lane_rig_complete(&f->rs);
	assert_int_equal(cqe.kind, SKVC_ABI_CQE_DONE);
	assert_int_equal(cqe.res, res);
	assert_int_equal(cqe.reason, reason);
	f->rs.handle = f->g.handle;
	f->rs.arg = 0;
}

static void handles_name_what_they_should(void **state)
{
	struct gpu_rig_event e;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_rig_event_open(&f.rs, 3, &e);
	expect_refusal(&f, 3, 0, -ESTALE, SKVC_ABI_REASON_BAD_REGION);
	expect_refusal(&f, 99, 0, -ESTALE, SKVC_ABI_REASON_BAD_REGION);
	expect_refusal(&f, 2, 99, -ESTALE, SKVC_ABI_REASON_BAD_EVENT);
	expect_refusal(&f, 2, 2, -ESTALE, SKVC_ABI_REASON_BAD_EVENT);
	expect_refusal(&f, 2, UINT32_MAX, -ESTALE, SKVC_ABI_REASON_BAD_EVENT);
	expect_refusal(&f, 1, 3, -ESTALE, SKVC_ABI_REASON_BAD_EVENT); /* host memory has none */
	gpu_lane_store_all(&f, 0, 4);
	lane_rig_session_close(&f.rs);
	gpu_rig_event_close(&e);
	gpu_rig_close(&f.g);
	lane_rig_stop(&f.rig);
}

/* Returns how the job ended; its completion and the abort's come in either order. */
static struct skvc_abi_cqe aborted(struct lane_rig_session *rs, uint64_t user_data)
{
	struct skvc_abi_cqe first, second;

	lane_rig_submit(rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_ABORT,
						    .arg = user_data,
						    .user_data = 200 });
	first = lane_rig_complete(rs);
	second = lane_rig_complete(rs);
	assert_true((first.user_data == 200) != (second.user_data == 200));
	return first.user_data == 200 ? second : first;
}

/* Jobs whose event never comes: others go on, an abort ends them, and so does time. */
static void stuck_jobs(struct gpu_lane *f, struct gpu_rig_event *never, uint32_t first)
{
	struct skvc_abi_cqe cqe;
	unsigned done = 0, free = 0;

	gpu_rig_event_set(never, SIM_EVENT_PENDING);
	f->rs.arg = skvc_abi_events(never->handle, 0);
	for (uint32_t i = 0; i < 12; i++)
		lane_rig_store(&f->rs, first + 10 * i, 10, 100 + i);
	f->rs.arg = 0;
	nothing_completes(&f->rs, 10);
	for (uint32_t i = 0; i < 12; i++)
		lane_rig_submit(&f->rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_ABORT,
								.arg = 100 + i,
								.user_data = 200 });
	while (done < 12 || free < 12) {
		cqe = lane_rig_complete(&f->rs);
		if (cqe.kind == SKVC_ABI_CQE_SOURCE_FREE) {
			free++;
		} else if (cqe.user_data == 200) {
			assert_int_equal(cqe.res, 0);
		} else {
			assert_int_equal(cqe.res, -ECANCELED);
			assert_int_equal(cqe.reason, SKVC_ABI_REASON_ABORTED);
			assert_int_equal(cqe.count, 0);
			done++;
		}
	}
	gpu_rig_wipe(&f->g, 0); /* ours again */
}

static void an_event_that_never_comes_can_be_aborted(void **state)
{
	struct gpu_rig_event never;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_rig_event_open(&f.rs, 3, &never);
	stuck_jobs(&f, &never, 0);
	gpu_lane_with_profile(&f);
	stuck_jobs(&f, &never, 0);
	gpu_lane_store_all(&f, 0, 120); /* the keys are free again */
	gpu_lane_load_all(&f, 0, 120);
	lane_rig_session_close(&f.rs);
	gpu_rig_event_close(&never);
	gpu_rig_close(&f.g);
	lane_rig_stop(&f.rig);
}

/* The same for loads, decoded by the GPU and copied in; who waits for the other event is not left waiting. */
static void a_load_behind_an_event_can_be_aborted(void **state)
{
	struct gpu_rig_event never, done;
	struct skvc_abi_cqe cqe;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_rig_event_open(&f.rs, 3, &never);
	gpu_rig_event_open(&f.rs, 4, &done);
	gpu_lane_store_all(&f, 0, 20);
	gpu_lane_with_profile(&f);
	gpu_lane_store_all(&f, 20, 20);
	gpu_rig_event_set(&never, SIM_EVENT_PENDING);
	gpu_rig_wipe(&f.g, 0x33);
	for (uint32_t i = 0; i < 2; i++) {
		uint64_t lease = gpu_lane_lease_of(&f, 20 * i, 20);
		uint32_t records = atomic_load(&done.words->records);

		f.rs.arg = skvc_abi_events(never.handle, done.handle);
		lane_rig_load(&f.rs, lease, 0, 20, 8);
		nothing_completes(&f.rs, 20);
		cqe = aborted(&f.rs, 8);
		assert_int_equal(cqe.res, -ECANCELED);
		assert_int_equal(cqe.count, 0);
		assert_int_equal(atomic_load(&done.words->records), records + 1);
		f.rs.arg = 0;
		assert_int_equal(lane_rig_release(&f.rs, lease).res, 0);
	}
	for (uint64_t i = 0; i < f.g.bytes; i++)
		if (f.g.map[i] != 0x33)
			fail_msg("byte %llu was touched", (unsigned long long)i);
	lane_rig_session_close(&f.rs);
	gpu_rig_event_close(&never);
	gpu_rig_event_close(&done);
	gpu_rig_close(&f.g);
	lane_rig_stop(&f.rig);
}

static void it_holds_up_nobody_else_and_not_for_ever(void **state)
{
	struct lane_rig_session stuck;
	struct gpu_rig_region theirs;
	struct gpu_rig_event never;
	struct skvc_abi_cqe cqe;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	f.config.event_wait_ns = 300000000;
	gpu_lane_start(&f, GPU_RIG_NHD);
	lane_rig_session_open(&f.rig, &stuck);
	gpu_rig_open(&stuck, 2, GPU_RIG_HND, &theirs);
	gpu_rig_event_open(&stuck, 3, &never);
	gpu_rig_event_set(&never, SIM_EVENT_PENDING);
	stuck.arg = skvc_abi_events(never.handle, 0);
	for (uint32_t i = 0; i < 12; i++)
		lane_rig_store(&stuck, 2000 + 10 * i, 10, 100 + i);
	gpu_lane_store_all(&f, 0, 64);
	gpu_lane_load_all(&f, 0, 64);
	for (unsigned n = 0; n < 12;) {
		cqe = lane_rig_complete(&stuck);
		if (cqe.kind == SKVC_ABI_CQE_SOURCE_FREE)
			continue;
		assert_int_equal(cqe.res, -ECANCELED);
		assert_int_equal(cqe.reason, SKVC_ABI_REASON_BAD_EVENT);
		assert_true(cqe.elapsed_ns >= f.config.event_wait_ns);
		n++;
	}
	lane_rig_session_close(&stuck);
	gpu_rig_event_close(&never);
	gpu_rig_close(&theirs);
	gpu_lane_stop(&f);
}

/* Nor do loads that the CPU decodes first: what they take of host memory and tasks counts from then on. */
static void nor_do_loads_through_the_cpu(void **state)
{
	struct lane_rig_session stuck;
	struct gpu_rig_region theirs;
	struct gpu_rig_event never;
	struct skvc_abi_cqe cqe;
	struct gpu_lane f;
	uint64_t lease;

	(void)state;
	gpu_rig_config(&f.config);
	f.config.pool_bytes = 8u << 20; /* 64 raw blocks fit the quarter that they are staged in */
	f.config.speculator = CODEC_SPEC_GENERIC;
	f.config.event_wait_ns = 20000000000;
	(void)snprintf(f.config.fault_device, sizeof(f.config.fault_device), "decode:delay_ms=100");
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_lane_store_all(&f, 0, 32);
	lane_rig_session_open(&f.rig, &stuck);
	gpu_rig_open(&stuck, 2, GPU_RIG_HND, &theirs);
	gpu_rig_event_open(&stuck, 3, &never);
	gpu_rig_event_set(&never, SIM_EVENT_PENDING);
	cqe = lane_rig_lookup(&stuck, 0, 32);
	assert_int_equal(cqe.count, 32);
	lease = cqe.lease;
	stuck.arg = skvc_abi_events(never.handle, 0);
	for (uint32_t i = 0; i < 100; i++) {
		lane_rig_load(&stuck, lease, i, 1, 100 + i);
		if (i % 50 == 49) /* as many as its ring takes */
			nothing_completes(&stuck, 10);
	}
	cqe = gpu_lane_store(&f, 100, 64);
	assert_int_equal(cqe.count, 64);
	assert_true(cqe.elapsed_ns < f.config.event_wait_ns / 2);
	gpu_lane_load_all(&f, 100, 64);
	gpu_rig_event_set(&never, SIM_EVENT_COMPLETE);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(lane_rig_complete(&stuck).res, 0);
	lane_rig_session_close(&stuck);
	gpu_rig_event_close(&never);
	gpu_rig_close(&theirs);
	gpu_lane_stop(&f);
}

/* A client dies, or takes its memory back, while its jobs wait. */
static void the_owner_goes_first(void **state)
{
	struct gpu_rig_event never;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_rig_event_open(&f.rs, 3, &never);
	gpu_rig_event_set(&never, SIM_EVENT_PENDING);
	f.rs.arg = skvc_abi_events(never.handle, 0);
	lane_rig_store(&f.rs, 0, 100, 7);
	lane_rig_store(&f.rs, 100, 100, 8);
	nothing_completes(&f.rs, 5);
	lane_rig_session_close(&f.rs); /* waits for GONE, checks users */
	gpu_rig_event_close(&never);
	gpu_rig_close(&f.g);
	lane_rig_stop(&f.rig);
}

static void a_region_ends_when_nothing_waits_for_it(void **state)
{
	struct gpu_rig_event ready;
	struct mail end, m;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	gpu_lane_start(&f, GPU_RIG_NHD);
	gpu_rig_event_open(&f.rs, 3, &ready);
	gpu_rig_event_set(&ready, SIM_EVENT_PENDING);
	for (uint32_t i = 0; i < 20; i++)
		gpu_rig_fill(&f.g, i, i);
	f.rs.arg = skvc_abi_events(ready.handle, 0);
	lane_rig_store(&f.rs, 0, 20, 7);
	gpu_lane_eventually(&f, STAT_JOBS, 1); /* mail is read before rings */
	nothing_completes(&f.rs, 5);
	end = (struct mail){
		.type = LANE_REGION_END, .subject = &f.rs.s, .object = &f.g.region, .value = 2
	};
	assert_int_equal(mailbox_send(lane_inbox(f.rig.lane), &end), 0);
	end.object = &ready.region;
	end.value = 3;
	assert_int_equal(mailbox_send(lane_inbox(f.rig.lane), &end), 0);
	nothing_completes(&f.rs, 20);
	assert_false(mailbox_recv(lane_outbox(f.rig.lane), &m));
	expect_refusal(&f, 2, 0, -ESTALE, SKVC_ABI_REASON_BAD_REGION); /* on its way out */
	gpu_rig_event_set(&ready, SIM_EVENT_COMPLETE);
	assert_int_equal(lane_rig_done(&f.rs).count, 20);
	(void)lane_rig_mail(&f.rig, LANE_REGION_END);
	(void)lane_rig_mail(&f.rig, LANE_REGION_END);
	gpu_rig_event_close(&ready);
	gpu_rig_close(&f.g);
	gpu_rig_open(&f.rs, 2, GPU_RIG_HND, &f.g); /* the handles are free again */
	gpu_lane_load_all(&f, 0, 20);
	gpu_rig_end(&f.g);
	lane_rig_session_close(&f.rs);
	gpu_rig_close(&f.g);
	lane_rig_stop(&f.rig);
}

/* ---- room ---- */

#define REFUSALS 4u /* one after the other: there is no room */
static uint64_t lease_table[1024];

/* Store and lease until nothing more goes in; returns the refusal. */
static struct skvc_abi_cqe lease_everything(struct gpu_lane *f, uint32_t *ret_leases)
{
	struct skvc_abi_cqe cqe;
	uint32_t key = 0, refused = 0;

	*ret_leases = 0;
	for (;;) {
		uint32_t count = *ret_leases < 8 && !refused ? 50 : 1;

		cqe = gpu_lane_store(f, key, count);
		/* A slow machine refuses for want of time, too; what came of that is not leased and goes. */
		if (cqe.res < 0 && ++refused == REFUSALS)
			return cqe;
		if (cqe.res == 0) {
			refused = refused > 0;
			lease_table[(*ret_leases)++] = gpu_lane_lease_of(f, key, count);
		}
		key += count;
	}
}

/* A lane whose small pool has no room and nothing to evict; what refused the last store. */
static struct skvc_abi_cqe start_all_leased(struct gpu_lane *f, uint64_t store_wait_ns,
					    uint32_t *ret_leases)
{
	gpu_rig_config(&f->config);
	f->config.pool_bytes = 16u << 20;
	f->config.leases_max = 1024;
	f->config.full_percent = 100; /* for want of a slot, not of the watermark */
	f->config.store_wait_ns = store_wait_ns;
	gpu_lane_start(f, GPU_RIG_NHD);
	gpu_lane_with_profile(f);
	return lease_everything(f, ret_leases);
}

/* Everything leased: staged payloads wait for room, then are given back, and the store is refused. */
static void staged_payloads_wait_for_room(void **state)
{
	struct skvc_abi_cqe cqe;
	uint32_t leases = 0;
	struct gpu_lane f;

	(void)state;
	cqe = start_all_leased(&f, 500000000, &leases); /* a slow machine makes room in less */
	assert_int_equal(cqe.res, -EAGAIN);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_POOL_FULL);
	cqe = gpu_lane_store(&f, 5000, 100); /* all of them wait */
	assert_int_equal(cqe.res, -EAGAIN);
	assert_true(cqe.elapsed_ns >= f.config.store_wait_ns);
	assert_true(cqe.count < 100);
	while (leases)
		assert_int_equal(lane_rig_release(&f.rs, lease_table[--leases]).res, 0);
	gpu_lane_store_all(&f, 6000, 100);
	gpu_lane_load_all(&f, 6000, 100);
	gpu_lane_stop(&f);
}

/* A store that waits for room goes on when there is some, and one that is aborted ends at once. */
static void waiting_stores_end_both_ways(void **state)
{
	struct skvc_abi_cqe cqe;
	uint32_t leases = 0;
	struct gpu_lane f;

	(void)state;
	(void)start_all_leased(&f, 2000000000,
			       &leases); /* longer than a busy machine stands still */
	for (uint32_t i = 0; i < 50; i++)
		gpu_rig_fill(&f.g, (5000 + i) % RIG_PAGES, 5000 + i);
	lane_rig_store(&f.rs, 5000, 50, 9);
	assert_int_equal(lane_rig_complete(&f.rs).kind, SKVC_ABI_CQE_SOURCE_FREE);
	nothing_completes(&f.rs, 5);
	for (uint32_t i = 0; i < 4; i++)
		lane_rig_submit(&f.rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_RELEASE,
							       .lease = lease_table[i],
							       .user_data = 300 });
	for (uint32_t i = 0; i < 5; i++) { /* in whatever order */
		struct skvc_abi_cqe c = lane_rig_complete(&f.rs);

		if (c.user_data == 9)
			cqe = c;
	}
	assert_int_equal(cqe.user_data, 9);
	assert_int_equal(cqe.res, 0);
	gpu_lane_load_all(&f, 5000, 50);
	(void)lease_everything(&f, &leases);
	lane_rig_store(&f.rs, 7000, 50, 10);
	assert_int_equal(lane_rig_complete(&f.rs).kind, SKVC_ABI_CQE_SOURCE_FREE);
	cqe = aborted(&f.rs, 10);
	assert_int_equal(cqe.user_data, 10);
	assert_int_equal(cqe.res, -ECANCELED);
	assert_true(cqe.elapsed_ns < f.config.store_wait_ns);
	lane_rig_store(&f.rs, 7000, 250, 11); /* and one whose owner goes */
	assert_int_equal(lane_rig_complete(&f.rs).kind, SKVC_ABI_CQE_SOURCE_FREE);
	lane_rig_session_close(&f.rs);
	gpu_rig_close(&f.g);
	lane_rig_stop(&f.rig);
}

/* ---- the GPU pool ---- */

static void blocks_sink_through_the_tiers(void **state)
{
	struct skvc_abi_cqe cqe;
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	f.config.gpu_pool_bytes = 16u << 20;
	f.config.pool_bytes = 16u << 20;
	gpu_lane_start(&f, GPU_RIG_HND);
	gpu_lane_with_profile(&f);
	gpu_lane_store_all(&f, 0, 100);
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_BLOCKS), 100);
	gpu_lane_load_all(&f, 0, 100);
	assert_int_equal(gpu_lane_counter(&f, STAT_HIT_BLOCKS_GPU), 100);
	for (uint32_t first = 100; first < 1000; first += 100)
		gpu_lane_store_all(&f, first, 100);
	gpu_lane_eventually(&f, STAT_GPU_DEMOTED_BLOCKS, 100);
	gpu_lane_load_all(&f, 800, 200); /* the newest, on the GPU */
	gpu_lane_load_all(&f, 300, 200); /* demoted */
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_ENCODE_NS) > 0, 1);
	for (uint32_t first = 1100; first < 1900; first += 100)
		gpu_lane_store_all(&f, first, 100);
	gpu_lane_eventually(&f, STAT_EVICTED_BLOCKS, 1);
	cqe = lane_rig_lookup(&f.rs, 100, 1);
	assert_int_equal(cqe.res, -ENOENT);
	gpu_lane_load_host(&f, 1700, 200);
	gpu_lane_load_all(&f, 1700, 200);
	assert_int_equal(gpu_lane_counter(&f, STAT_CHECKSUM_FAILURES), 0);
	gpu_lane_stop(&f);
}

/* Into host memory: moved first. */
static void host_memory_gets_blocks_of_the_gpu_pool(void **state)
{
	struct gpu_lane f;

	(void)state;
	gpu_rig_config(&f.config);
	f.config.gpu_pool_bytes = 16u << 20;
	gpu_lane_start(&f, GPU_RIG_HND);
	gpu_lane_with_profile(&f);
	gpu_lane_store_all(&f, 0, 100);
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_BLOCKS), 100);
	gpu_lane_load_host(&f, 0, 60);
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_DEMOTED_BLOCKS), 60);
	gpu_lane_eventually(&f, STAT_BLOCKS_HOST, 60);
	gpu_lane_load_all(&f, 0, 100);
	gpu_lane_load_host(&f, 0, 100);
	gpu_lane_stop(&f);
}

/* ---- start ---- */

static void refuses_to_start(struct config *c, const char *want)
{
	char err[256] = "";
	struct lane *lane = NULL;

	assert_true(lane_start(c, NULL, &lane, err, sizeof(err)) < 0);
	assert_null(lane);
	if (!strstr(err, want))
		fail_msg("the error does not name %s: %s", want, err);
}

/* A GPU that somebody asked for and that cannot be had is an error; without the wish, one serves without. */
static void it_says_why_it_does_not_start(void **state)
{
	struct gpu_lane f;
	struct config c;

	(void)state;
	gpu_rig_config(&c);
	(void)snprintf(c.fault_gpu, sizeof(c.fault_gpu), "encode:rust");
	refuses_to_start(&c, "[fault] gpu");
	gpu_rig_config(&c);
	c.gpu_pool_bytes = 1ull << 40;
	refuses_to_start(&c, "[gpu] pool");
	gpu_rig_config(&c);
	(void)snprintf(c.gpu_library, sizeof(c.gpu_library), "/nonexistent/libskvcd-cuda.so");
	(void)snprintf(c.gpu_device, sizeof(c.gpu_device), "7");
	refuses_to_start(&c, "[gpu] device = 7: /nonexistent/libskvcd-cuda.so");
	(void)snprintf(c.gpu_library, sizeof(c.gpu_library), "/dev/null");
	(void)snprintf(c.gpu_device, sizeof(c.gpu_device), "auto");
	refuses_to_start(&c, "[gpu] device = auto: /dev/null");
	(void)snprintf(c.gpu_library, sizeof(c.gpu_library), "/nonexistent/libskvcd-cuda.so");
	lane_rig_start(&f.rig, &c);
	assert_null(lane_gpu(f.rig.lane));
	assert_int_equal(gpu_lane_counter(&f, STAT_GPU_HEALTH), 0);
	lane_rig_stop(&f.rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_goes_in_comes_out),
		cmocka_unit_test(generic_blocks_go_through_the_cpu),
		cmocka_unit_test(leading_tokens_stay_untouched),
		cmocka_unit_test(host_and_gpu_share_blocks),
		cmocka_unit_test(pages_are_touched_between_the_events),
		cmocka_unit_test(handles_name_what_they_should),
		cmocka_unit_test(an_event_that_never_comes_can_be_aborted),
		cmocka_unit_test(a_load_behind_an_event_can_be_aborted),
		cmocka_unit_test(it_holds_up_nobody_else_and_not_for_ever),
		cmocka_unit_test(nor_do_loads_through_the_cpu),
		cmocka_unit_test(the_owner_goes_first),
		cmocka_unit_test(a_region_ends_when_nothing_waits_for_it),
		cmocka_unit_test(staged_payloads_wait_for_room),
		cmocka_unit_test(waiting_stores_end_both_ways),
		cmocka_unit_test(blocks_sink_through_the_tiers),
		cmocka_unit_test(host_memory_gets_blocks_of_the_gpu_pool),
		cmocka_unit_test(it_says_why_it_does_not_start),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
