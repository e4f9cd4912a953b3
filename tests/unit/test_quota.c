/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_quota.c - two tenants on one lane: what one leaves of its quota the other uses, and gives back when it is
 * wanted, whatever it pinned; without borrowing nobody is above his own.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/lane_rig.h"

#define QUOTA (2u << 20)
#define LEASES 64u
#define BATCH 10u
#define HOUR_NS 3600000000000ull

static struct rig rig;
static struct tenant second;
static struct namespace second_ns;
static struct lane_rig_session rs, second_rs; /* rs: of rig.tenant */
static int second_is_open;

static void start(const struct config *c)
{
	lane_rig_start(&rig, c);
	memset(&second, 0, sizeof(second));
	memset(&second_ns, 0, sizeof(second_ns));
	(void)snprintf(rig.tenant.name, sizeof(rig.tenant.name), "first");
	(void)snprintf(second.name, sizeof(second.name), "second");
	second.id = 1;
	atomic_store(&rig.tenant.quota_bytes, QUOTA);
	atomic_store(&second.quota_bytes, QUOTA);
	second_ns.id = 1;
	second_ns.tenant = &second;
	second_ns.geom = rig.ns.geom;
	lane_rig_session_open(&rig, &rs);
	for (uint32_t page = 0; page < BATCH; page++)
		lane_rig_fill(&rs, page, page);
}

static void open_second(void)
{
	lane_rig_session_open_ns(&rig, &second_rs, &second_ns);
	second_is_open = 1;
	for (uint32_t page = 0; page < BATCH; page++)
		lane_rig_fill(&second_rs, page, 100 + page);
}

static int stop(void **state)
{
	(void)state;
	if (second_is_open)
		lane_rig_session_close(&second_rs);
	second_is_open = 0;
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	return 0;
}

static uint64_t charged(struct tenant *t)
{
	return atomic_load(&t->charged_bytes);
}

static uint64_t stat(enum stats_id id)
{
	return stats_get(lane_stats(rig.lane), id);
}

static struct skvc_abi_cqe store(struct lane_rig_session *s, uint32_t first)
{
	lane_rig_store_at(s, first, BATCH, 0, 1);
	return lane_rig_done(s);
}

static void store_many(struct lane_rig_session *s, uint32_t first, uint32_t count)
{
	for (uint32_t i = 0; i < count; i += BATCH)
		assert_int_equal(store(s, first + i).res, 0);
}

/* Letters are taken in order: when this one is answered, those before it are done. */
static void settle(void)
{
	struct tenant nobody = { .name = "nobody" };
	struct mail m = { .type = LANE_EVICT, .subject = &nobody };

	assert_int_equal(mailbox_send(lane_inbox(rig.lane), &m), 0);
	(void)lane_rig_mail(&rig, LANE_EVICT);
}

static void charged_falls_to(struct tenant *t, uint64_t bytes)
{
	for (unsigned tries = 0; charged(t) > bytes; tries++) {
		if (tries >= 20000)
			fail_msg("%llu bytes stay", (unsigned long long)charged(t));
		(void)usleep(1000);
	}
}

static void pin(struct lane_rig_session *s, uint32_t count)
{
	assert_int_equal(lane_rig_pin(s, 0, count, HOUR_NS).count, count);
}

static void what_is_idle_is_borrowed_and_given_back(void **state)
{
	struct config c;

	(void)state;
	lane_rig_config(&c);
	start(&c);
	open_second();
	store_many(&rs, 0, 400);
	assert_true(charged(&rig.tenant) > 2 * QUOTA - (QUOTA >> 3)); /* both quotas are used */
	assert_true(charged(&rig.tenant) <= 2 * QUOTA);
	assert_int_equal(stat(STAT_QUOTA_RETURNED_BLOCKS), 0);
	store_many(&second_rs, 0, 400); /* not one is refused */
	assert_true(charged(&second) > QUOTA - (QUOTA >> 3));
	/* Above its own only by what the first left: who gives back gives whole blocks, so a part of one more. */
	assert_true(charged(&second) <= QUOTA ||
		    charged(&second) + charged(&rig.tenant) <= 2 * QUOTA);
	charged_falls_to(&rig.tenant, 2 * QUOTA - charged(&second));
	assert_true(charged(&rig.tenant) > QUOTA - (QUOTA >> 3)); /* and no further than that */
	assert_true(stat(STAT_QUOTA_RETURNED_BLOCKS) > 0);
	/* What each stored last is there. */
	assert_int_equal(lane_rig_lookup(&rs, 390, BATCH).count, BATCH);
	assert_int_equal(lane_rig_lookup(&second_rs, 390, BATCH).count, BATCH);
}

/* Pins protect what is within the quota; a lease protects all, and its owner, too, from being refused. */
static void pins_do_not_keep_what_is_borrowed(void **state)
{
	struct skvc_abi_cqe lease;
	struct config c;
	uint64_t before;

	(void)state;
	lane_rig_config(&c);
	c.speculator = CONFIG_SPECULATOR_GENERIC; /* nothing becomes smaller by itself */
	start(&c);
	open_second();
	store_many(&rs, 0, 150);
	before = charged(&rig.tenant);
	assert_true(before > QUOTA + (QUOTA >> 2));
	pin(&rs, 150);
	lease = lane_rig_lookup(&rs, 0, 150);
	assert_int_equal(lease.count, 150);
	store_many(&second_rs, 0, 150);
	assert_true(charged(&second) > QUOTA - (QUOTA >> 3));
	assert_int_equal(charged(&rig.tenant), before);
	assert_int_equal(lane_rig_release(&rs, lease.lease).res, 0);
	store_many(&second_rs, 150, BATCH);
	charged_falls_to(&rig.tenant, 2 * QUOTA - charged(&second));
	assert_true(charged(&rig.tenant) > QUOTA - (QUOTA >> 3));
}

static void without_borrowing_quotas_are_hard(void **state)
{
	struct config c, *next = malloc(sizeof(*next));
	struct mail m = { .type = LANE_CONFIG, .subject = next };

	(void)state;
	assert_non_null(next);
	lane_rig_config(&c);
	start(&c);
	open_second();
	store_many(&rs, 0, 400);
	assert_true(charged(&rig.tenant) > QUOTA);
	*next = rig.config;
	next->quota_borrow = 0;
	assert_int_equal(mailbox_send(lane_inbox(rig.lane), &m), 0);
	charged_falls_to(&rig.tenant, QUOTA);
	store_many(&rs, 400, 400);
	assert_true(charged(&rig.tenant) <= QUOTA && charged(&rig.tenant) > QUOTA - (QUOTA >> 3));
	assert_int_equal(charged(&second), 0);
}

/* A tenant that is configured and has not come yet lends all of its quota, and only once when it has come. */
static void who_is_absent_lends(void **state)
{
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.tenants_count = 2;
	(void)snprintf(c.tenants[0].name, sizeof(c.tenants[0].name), "first");
	(void)snprintf(c.tenants[1].name, sizeof(c.tenants[1].name), "second");
	c.tenants[0].quota_bytes = c.tenants[1].quota_bytes = QUOTA;
	start(&c);
	store_many(&rs, 0, 400);
	assert_true(charged(&rig.tenant) > 2 * QUOTA - (QUOTA >> 3));
	assert_true(charged(&rig.tenant) <= 2 * QUOTA);
	open_second();
	store_many(&rs, 400, 400);
	assert_true(charged(&rig.tenant) <= 2 * QUOTA);
	store_many(&second_rs, 0, 400);
	assert_true(charged(&second) > QUOTA - (QUOTA >> 3));
	charged_falls_to(&rig.tenant, 2 * QUOTA - charged(&second));
}

/* A tenant without a quota neither lends nor borrows. */
static void who_has_no_quota_is_not_counted(void **state)
{
	struct config c;

	(void)state;
	lane_rig_config(&c);
	start(&c);
	open_second();
	atomic_store(&second.quota_bytes, 0);
	store_many(&second_rs, 0, 400);
	assert_true(charged(&second) > 2 * QUOTA);
	store_many(&rs, 0, 400);
	assert_true(charged(&rig.tenant) <= QUOTA);
	settle();
	assert_true(charged(&second) > 2 * QUOTA);
	assert_int_equal(stat(STAT_QUOTA_RETURNED_BLOCKS), 0);
}

/* Who drops what he has leased has its memory until the lease ends, and pays for it until then. */
static void what_is_dropped_under_a_lease_is_paid_for(void **state)
{
	uint64_t lease[LEASES];
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.quota_borrow = 0;
	start(&c);
	for (unsigned i = 0; i < LEASES; i++) {
		(void)store(&rs, i * BATCH);
		lease[i] = lane_rig_lookup(&rs, i * BATCH, BATCH).lease;
		lane_rig_drop(&rs, i * BATCH, BATCH, 2);
		(void)lane_rig_complete(&rs);
		assert_true(stat(STAT_POOL_USED_BYTES) <= QUOTA);
		assert_true(charged(&rig.tenant) >= stat(STAT_POOL_USED_BYTES));
	}
	for (unsigned i = 0; i < LEASES; i++)
		if (lease[i])
			(void)lane_rig_release(&rs, lease[i]);
	assert_int_equal(charged(&rig.tenant), 0);
	assert_int_equal(stat(STAT_POOL_USED_BYTES), 0);
	assert_int_equal(store(&rs, 0).res, 0);
}

/* Nobody can pin all of the memory: half of it alone, half of the rest the next one, and others are stored. */
static void pins_leave_room_to_others(void **state)
{
	struct skvc_abi_cqe cqe = { .count = BATCH };
	struct config c;
	uint32_t first;
	uint64_t pool;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = pool = 16u << 20;
	c.lease_share_percent = 50;
	c.lease_ttl_max_ns = HOUR_NS;
	c.speculator = CONFIG_SPECULATOR_GENERIC; /* nothing becomes smaller by itself */
	start(&c);
	open_second();
	atomic_store(&rig.tenant.quota_bytes, 0);
	atomic_store(&second.quota_bytes, 0);
	for (first = 0; cqe.count == BATCH && first < 4000; first += BATCH) {
		store_many(&rs, first, BATCH);
		cqe = lane_rig_pin(&rs, first, BATCH, HOUR_NS);
	}
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_LEASE_SHARE);
	assert_true(charged(&rig.tenant) > pool / 100 * 49);
	first += BATCH;
	store_many(&rs, first, BATCH);
	cqe = lane_rig_pin(&rs, first, BATCH, HOUR_NS);
	assert_int_equal(cqe.res, -EDQUOT);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_LEASE_SHARE);
	assert_int_equal(lane_rig_pin(&rs, 0, BATCH, HOUR_NS).count,
			 BATCH);	 /* it is counted already */
	store_many(&second_rs, 0, 2000); /* not one is refused */
	assert_true(charged(&second) > pool / 100 * 40);
	assert_int_equal(lane_rig_lookup(&rs, 0, BATCH).count, BATCH);
	/* What is not pinned any more makes room, and what is dropped. */
	assert_int_equal(lane_rig_pin(&rs, 0, BATCH, 0).count, BATCH);
	store_many(&rs, 5000, BATCH);
	assert_int_equal(lane_rig_pin(&rs, 5000, BATCH, HOUR_NS).count, BATCH);
	assert_int_equal(lane_rig_pin(&rs, 0, BATCH, HOUR_NS).res, -EDQUOT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(what_is_idle_is_borrowed_and_given_back, stop),
		cmocka_unit_test_teardown(pins_do_not_keep_what_is_borrowed, stop),
		cmocka_unit_test_teardown(pins_leave_room_to_others, stop),
		cmocka_unit_test_teardown(without_borrowing_quotas_are_hard, stop),
		cmocka_unit_test_teardown(who_is_absent_lends, stop),
		cmocka_unit_test_teardown(who_has_no_quota_is_not_counted, stop),
		cmocka_unit_test_teardown(what_is_dropped_under_a_lease_is_paid_for, stop),
	};

	return cmocka_run_group_tests_name("quota", tests, NULL, NULL);
}
