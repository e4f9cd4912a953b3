/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_lane_operator.c - what an operator asks of the lane while it works: blocks that shall leave, other
 * settings, another quota.  What is in use stays, what is gone is uncharged, and everybody else is served.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/lane_rig.h"

#define BLOCKS 100u
#define HELD 10u

static struct rig rig;
static struct lane_rig_session rs;

static int setup(void **state)
{
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.speculator = CONFIG_SPECULATOR_CHANNEL; /* none becomes smaller meanwhile */
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	for (uint32_t page = 0; page < BLOCKS; page++)
		lane_rig_fill(&rs, page, page + 1);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	return 0;
}

static uint64_t stat(enum stats_id id)
{
	return stats_get(lane_stats(rig.lane), id);
}

static void store(uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe;

	for (uint32_t i = 0; i < count; i += 10) {
		lane_rig_store(&rs, first + i, 10, 1);
		cqe = lane_rig_done(&rs);
		assert_int_equal(cqe.res, 0);
		assert_int_equal(cqe.count, 10);
	}
}

static struct mail evict(void *tenant, void *ns)
{
	struct mail m = { .type = LANE_EVICT, .subject = tenant, .object = ns };

	assert_int_equal(mailbox_send(lane_inbox(rig.lane), &m), 0);
	return lane_rig_mail(&rig, LANE_EVICT);
}

static void test_evict(void **state)
{
	struct skvc_abi_cqe lease, cqe;
	struct tenant other = { .name = "other" };
	uint64_t charged, gone = 0;
	struct mail m;

	(void)state;
	store(0, BLOCKS);
	charged = atomic_load(&rig.tenant.charged_bytes);
	assert_true(charged > 0);
	lease = lane_rig_lookup(&rs, 0, HELD);
	assert_int_equal(lease.count, HELD);
	m = evict(&other, NULL); /* nothing is its own */
	assert_int_equal(m.value, 0);
	assert_int_equal(m.res, 0);
	m = evict(&rig.tenant, &rig.ns);
	assert_int_equal(m.value, BLOCKS - HELD);
	assert_int_equal(m.res, HELD);
	assert_int_equal((uintptr_t)m.object, charged - atomic_load(&rig.tenant.charged_bytes));
	assert_int_equal(stat(STAT_EVICTED_BLOCKS), BLOCKS - HELD);
	assert_int_equal(stat(STAT_BLOCKS), HELD);
	/* Who had a lease is served as it was promised. */
	for (uint32_t page = 0; page < HELD; page++)
		memset(lane_rig_page(&rs, page), 0, rig.ns.geom.raw_bytes);
	lane_rig_load(&rs, lease.lease, 0, HELD, 2);
	cqe = lane_rig_done(&rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, HELD);
	for (uint32_t page = 0; page < HELD; page++)
		assert_true(lane_rig_page_is(&rs, page, page + 1));
	(void)lane_rig_release(&rs, lease.lease);
	do {
		m = evict(NULL, NULL);
		gone += m.value;
	} while (m.res); /* the lane itself may hold one for a moment, to code it again */
	assert_int_equal(gone, HELD);
	assert_int_equal(atomic_load(&rig.tenant.charged_bytes), 0);
	assert_int_equal(stat(STAT_BLOCKS), 0);
	assert_int_equal(stat(STAT_POOL_USED_BYTES), 0);
	assert_int_equal(lane_rig_lookup(&rs, 0, 1).res, -ENOENT);
	store(0, 10); /* and it goes on */
}

static void test_quota_below_what_is_charged(void **state)
{
	struct mail trim = { .type = LANE_TRIM };
	uint64_t charged;

	(void)state;
	store(0, BLOCKS);
	charged = atomic_load(&rig.tenant.charged_bytes);
	atomic_store(&rig.tenant.quota_bytes, charged / 4);
	assert_int_equal(mailbox_send(lane_inbox(rig.lane), &trim), 0);
	for (unsigned tries = 0; atomic_load(&rig.tenant.charged_bytes) > charged / 4; tries++) {
		assert_true(tries < 60000);
		(void)usleep(1000);
	}
	assert_true(atomic_load(&rig.tenant.charged_bytes) > charged / 8); /* and no further */
	for (uint32_t page = 0; page < 10; page++)
		lane_rig_fill(&rs, BLOCKS + page, 1000 + page);
	store(BLOCKS, 10);
	assert_true(atomic_load(&rig.tenant.charged_bytes) <= charged / 4);
	assert_int_equal(lane_rig_lookup(&rs, BLOCKS, 10).count, 10);
	atomic_store(&rig.tenant.quota_bytes, 0);
	store(0, BLOCKS);
	assert_true(atomic_load(&rig.tenant.charged_bytes) > charged / 2);
}

/* The lane takes what may change, frees the letter, and has it before what is asked next. */
static void test_config(void **state)
{
	struct config *next = malloc(sizeof(*next));
	struct mail m = { .type = LANE_CONFIG, .subject = next };

	(void)state;
	assert_non_null(next);
	*next = rig.config;
	next->lease_ttl_ns = 20 * 1000000ull;
	next->sessions_max = 1; /* not live: must not be taken */
	store(0, 10);
	assert_int_equal(mailbox_send(lane_inbox(rig.lane), &m), 0);
	(void)evict(&rig.ns, NULL); /* nobody's; its answer comes after the letter */
	assert_int_equal(lane_rig_lookup(&rs, 0, 10).count, 10);
	for (unsigned tries = 0; !stat(STAT_LEASES_EXPIRED); tries++) {
		assert_true(tries < 60000);
		(void)usleep(1000);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_evict),
		TEST(test_quota_below_what_is_charged),
		TEST(test_config),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
