/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_args.c - what all tenants share, and that none of them can take all of it: argument memory (by leases), jobs,
 * and turns on the device.
 */
#include "tests/lib/lane_rig.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/args.h"

#define SESSIONS_MAX 40u
#define ALL 4096u

static struct lane_rig_session greedy[SESSIONS_MAX];

/* Each takes what he gets, one after the other. */
static void everybody_leaves_something(void **state)
{
	uint64_t used = 0, before = ALL;

	(void)state;
	for (unsigned tenant = 0; tenant < 8; tenant++) {
		uint64_t mine = 0;

		while (args_share_allows(mine, 1, used, ALL)) {
			mine++;
			used++;
		}
		assert_int_equal(mine, before / 2);
		before = mine;
	}
	assert_int_equal(used, ALL - before);
}

static void numbers_that_cannot_be(void **state)
{
	(void)state;
	assert_true(args_share_allows(0, ALL, 0, ALL));
	assert_false(args_share_allows(0, ALL + 1, 0, ALL));
	assert_false(args_share_allows(0, UINT64_MAX, 1, ALL));
	assert_false(args_share_allows(UINT64_MAX, 1, 1, ALL));
	assert_false(args_share_allows(0, 0, ALL + 1, ALL));
}

/* ---- with a lane ---- */

static struct rig rig;
static struct tenant other_tenant;
static struct namespace other_ns;

static void start(uint32_t sessions, struct config *c)
{
	c->sessions_max = SESSIONS_MAX;
	c->blocks_max = 1u << 15;
	lane_rig_start(&rig, c);
	for (uint32_t i = 0; i < sessions; i++)
		lane_rig_session_open(&rig, &greedy[i]);
	memset(&other_tenant, 0, sizeof(other_tenant));
	memset(&other_ns, 0, sizeof(other_ns));
	(void)snprintf(other_tenant.name, sizeof(other_tenant.name), "other");
	other_ns.id = 1;
	other_ns.tenant = &other_tenant;
	other_ns.geom = rig.ns.geom;
	memset(other_ns.digest, 0xdd, sizeof(other_ns.digest));
}

static void stop(uint32_t sessions, struct lane_rig_session *other)
{
	for (uint32_t i = 0; i < sessions; i++)
		lane_rig_session_close(&greedy[i]);
	lane_rig_session_close(other);
	assert_int_equal(rig.tenant.jobs, 0);
	assert_int_equal(rig.tenant.args_bytes, 0);
	assert_int_equal(other_tenant.args_bytes, 0);
	lane_rig_stop(&rig);
}

/* A lease has room for all that was asked for, be it found or not. */
static unsigned lease_all(uint32_t sessions)
{
	unsigned granted = 0;

	for (uint32_t i = 0; i < sessions; i++)
		for (unsigned k = 0; k < 1024; k++) {
			struct skvc_abi_cqe cqe = lane_rig_lookup(&greedy[i], 0, ALL);

			if (cqe.res == 0) {
				granted++;
				continue;
			}
			assert_int_equal(cqe.reason, SKVC_ABI_REASON_LEASES_FULL);
			return granted;
		}
	return granted;
}

static void leases_do_not_take_all_memory(void **state)
{
	const uint32_t sessions = 17;
	struct lane_rig_session other;
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.leases_max = 1024;
	start(sessions, &c);
	lane_rig_session_open_ns(&rig, &other, &other_ns);
	lane_rig_store(&greedy[0], 0, 1, 1);
	assert_int_equal(lane_rig_done(&greedy[0]).res, 0);
	lane_rig_store(&other, 0, 1, 1);
	assert_int_equal(lane_rig_done(&other).res, 0);
	assert_in_range(lease_all(sessions), 4096, 16 * 1024 - 1);
	assert_int_equal(lane_rig_lookup(&other, 0, ALL).count, 1);
	stop(sessions, &other);
}

/* Returns how many were refused so far. */
static unsigned submit_many(struct lane_rig_session *rs, uint32_t first)
{
	unsigned refused = 0;

	for (uint32_t i = 0; i < 128; i++) {
		struct skvc_abi_cqe cqe;

		while (ring_produce_room(&rs->sq) <= 0)
			(void)sched_yield();
		lane_rig_store_at(rs, first + i, 1, 0, i);
		while (lane_rig_try_complete(rs, &cqe))
			refused += cqe.reason == SKVC_ABI_REASON_JOBS_FULL;
	}
	while (ring_produce_room(&rs->sq) < 64) /* until all were taken */
		(void)sched_yield();
	return refused;
}

static void one_tenant_does_not_take_all_jobs(void **state)
{
	const uint32_t sessions = 34;
	const struct skvc_abi_sqe abort = { .opcode = SKVC_ABI_OP_ABORT, .arg = 1, .user_data = 2 };
	struct lane_rig_session other;
	struct skvc_abi_cqe cqe;
	struct config c;

	(void)state;
	lane_rig_config(&c);
	(void)snprintf(c.fault_device, sizeof(c.fault_device), "encode:delay_ms=100");
	start(sessions, &c);
	lane_rig_session_open_ns(&rig, &other, &other_ns);
	for (uint32_t i = 0; i < sessions; i++)
		(void)submit_many(&greedy[i], i * 128);
	lane_rig_store_at(&other, 0, 1, 0, 1);
	lane_rig_submit(&other, &abort);
	do
		cqe = lane_rig_complete(&other);
	while (cqe.user_data != 1 || cqe.kind != SKVC_ABI_CQE_DONE);
	assert_int_not_equal(cqe.reason, SKVC_ABI_REASON_JOBS_FULL);
	stop(sessions, &other);
}

/* ---- what leases hold ---- */

#define BLOCKS 200u /* of a pool of 16 MiB, raw: two fifths of it */
#define STEP 50u

/* Leases on first, first + STEP, ...; returns how many blocks they hold. */
static uint32_t lease_blocks(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	uint32_t held = 0;

	for (uint32_t i = 0; i < count; i += STEP) {
		struct skvc_abi_cqe cqe = lane_rig_lookup(rs, first + i, STEP);

		held += cqe.count;
		if (cqe.count == STEP)
			continue;
		assert_int_equal(cqe.reason, SKVC_ABI_REASON_LEASE_SHARE);
		assert_int_equal(cqe.res, cqe.count ? 0 : -ENOENT);
		assert_int_equal(cqe.lease != 0,
				 cqe.count != 0); /* what it says it found, it holds */
	}
	return held;
}

static void store_blocks(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	for (uint32_t i = 0; i < count; i += STEP) {
		lane_rig_store_at(rs, first + i, STEP, 0, 1);
		assert_int_equal(lane_rig_done(rs).count, STEP);
	}
}

static void leases_leave_memory_to_others(void **state)
{
	struct lane_rig_session other;
	uint32_t mine, others;
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = 16u << 20;
	c.leases_max = 1024;
	c.lease_share_percent = 50;
	c.speculator = CONFIG_SPECULATOR_RAW;
	start(2, &c);
	lane_rig_session_open_ns(&rig, &other, &other_ns);
	store_blocks(&greedy[0], 0, 2 * BLOCKS);
	mine = lease_blocks(&greedy[0], 0, 2 * BLOCKS);
	assert_in_range(mine, BLOCKS, BLOCKS + BLOCKS / 2);
	assert_int_equal(lease_blocks(&greedy[1], 2 * BLOCKS - STEP, STEP),
			 0); /* of the tenant, not the session */
	/* What is held is held: another lease on it costs nothing. */
	assert_int_equal(lane_rig_lookup(&greedy[1], 0, STEP).count, STEP);
	/* Everybody else finds room, and may hold as much as he leaves. */
	store_blocks(&other, 0, BLOCKS);
	others = lease_blocks(&other, 0, BLOCKS);
	assert_in_range(others, mine / 3, mine * 2 / 3);
	/* What was given back can be had again. */
	lane_rig_session_close(&greedy[0]);
	lane_rig_session_close(&greedy[1]);
	assert_int_equal(lease_blocks(&other, others, STEP), STEP);
	lane_rig_session_close(&other);
	lane_rig_stop(&rig);
	assert_int_equal(rig.tenant.held_bytes[0], 0);
	assert_int_equal(other_tenant.held_bytes[0], 0);
}

/* ---- turns ---- */

#define MANY 64u /* jobs of one block each */
#define FEW 16u	 /* blocks, all of one job */

/* Of the sessions' jobs, how many had ended when the other session's only one did. */
static unsigned ended_before(uint32_t sessions, struct lane_rig_session *other)
{
	unsigned ended = 0;
	struct skvc_abi_cqe cqe;

	for (uint32_t i = 0; i < MANY; i++) {
		struct lane_rig_session *rs = &greedy[i % sessions];

		while (ring_produce_room(&rs->sq) <= 0)
			(void)sched_yield();
		lane_rig_store_at(rs, i, 1, i, i);
	}
	lane_rig_store_at(other, 1000, FEW, 0, 1);
	assert_int_equal(lane_rig_done(other).count, FEW);
	for (uint32_t i = 0; i < sessions; i++)
		while (lane_rig_try_complete(&greedy[i], &cqe))
			ended += cqe.kind == SKVC_ABI_CQE_DONE;
	for (uint32_t i = 0; i < sessions; i++)
		while (greedy[i].s.jobs)
			(void)sched_yield();
	return ended;
}

static void start_slow(uint32_t sessions)
{
	struct config c;

	lane_rig_config(&c);
	c.speculator = CONFIG_SPECULATOR_GENERIC;
	(void)snprintf(c.fault_device, sizeof(c.fault_device), "encode:delay_ms=2");
	start(sessions, &c);
}

/* Two sessions of one tenant: each has its turn, be it for one of many jobs or of one. */
static void many_jobs_have_one_turn(void **state)
{
	struct lane_rig_session other;

	(void)state;
	start_slow(1);
	lane_rig_session_open(&rig, &other);
	assert_in_range(ended_before(1, &other), FEW / 2, 2 * FEW);
	stop(1, &other);
}

/* And each tenant has, however many sessions he has opened. */
static void many_sessions_have_one_turn(void **state)
{
	struct lane_rig_session other;

	(void)state;
	start_slow(8);
	lane_rig_session_open_ns(&rig, &other, &other_ns);
	assert_in_range(ended_before(8, &other), FEW / 2, 2 * FEW);
	stop(8, &other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everybody_leaves_something),
		cmocka_unit_test(numbers_that_cannot_be),
		cmocka_unit_test(leases_do_not_take_all_memory),
		cmocka_unit_test(one_tenant_does_not_take_all_jobs),
		cmocka_unit_test(leases_leave_memory_to_others),
		cmocka_unit_test(many_jobs_have_one_turn),
		cmocka_unit_test(many_sessions_have_one_turn),
	};

	return cmocka_run_group_tests_name("args", tests, NULL, NULL);
}
