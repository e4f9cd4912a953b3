/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_limits.c - what happens when something is full: the pool (eviction, pins and leases hold), the
 * quota of a tenant, leases, their deadlines, arenas, blocks that fit nowhere.
 */
#include "tests/lib/e2e.h"

#include <unistd.h>

#define POOL_BYTES (16u << 20)
#define CHAIN_BLOCKS 16u

static struct private_daemon daemon_;

static void start(const char *const *overrides)
{
	assert_ok(private_daemon_start(&daemon_, 0, overrides));
}

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

/* Blocks of 256 KiB: 64 of them fill the pool even before compression is counted. */
static void open_big(struct engine *e, const char *model)
{
	struct engine_options o = {
		.seed = 5, .model = model, .layers = 16, .heads = 4, .blocks = CHAIN_BLOCKS
	};

	assert_ok(engine_open(e, daemon_.socket, &o));
}

static void check_pool(void)
{
	assert_ok(daemon_stats_read(&daemon_));
	assert_true(daemon_stats_get("pool_used_bytes") <= daemon_stats_get("pool_bytes"));
	assert_true(daemon_stats_get("pool_slot_bytes") >= daemon_stats_get("pool_used_bytes"));
	assert_true(daemon_stats_get("coded_bytes") <= POOL_BYTES);
}

static void test_eviction_under_pressure(void **state)
{
	struct skvc_completion c;
	struct engine e;
	unsigned old = 0;
	int last = 0;

	(void)state;
	start(NULL);
	open_big(&e, "pressure");
	for (uint64_t chain = 0; chain < 20; chain++) {
		assert_ok(engine_store(&e, chain, 0, CHAIN_BLOCKS, &c));
		assert_int_equal(c.count, CHAIN_BLOCKS);
		last = engine_fetch(&e, chain, CHAIN_BLOCKS);
		assert_int_equal(last, CHAIN_BLOCKS); /* what is new is there */
	}
	check_pool();
	assert_true(daemon_stats_get("evicted_blocks") > 0);
	for (uint64_t chain = 0; chain < 5; chain++)
		old += (unsigned)engine_fetch(&e, chain, CHAIN_BLOCKS);
	assert_true(old < 5 * CHAIN_BLOCKS / 2);
	engine_close(&e);
}

/* Children go before their parents: what is left of a chain is always a prefix of it. */
static void test_children_go_before_parents(void **state)
{
	struct skvc_completion c;
	struct engine e;

	(void)state;
	start(NULL);
	open_big(&e, "order");
	for (uint64_t chain = 0; chain < 8; chain++)
		assert_ok(engine_store(&e, chain, 0, CHAIN_BLOCKS, &c));
	for (uint64_t chain = 0; chain < 8; chain++) {
		uint32_t prefix = 0, alone = 0;

		if (engine_lookup(&e, chain, CHAIN_BLOCKS, &c) == 0) {
			prefix = c.count;
			assert_ok(engine_release(&e, c.lease));
		}
		for (uint32_t i = prefix; i < CHAIN_BLOCKS; i++) {
			struct skvc_key key = engine_key(&e, chain, i);
			uint64_t job;

			assert_ok(skvc_touch(e.session, e.ns, &key, 1, &job));
			assert_ok(engine_finish(&e, job, &c));
			alone += c.count;
		}
		assert_int_equal(alone, 0);
	}
	engine_close(&e);
}

static void test_pins_and_leases_hold(void **state)
{
	/* A block that is coded again just now stays, and its chain with it. */
	static const char *const overrides[] = { "codec.speculator=channel", NULL };
	struct skvc_key keys[CHAIN_BLOCKS];
	struct skvc_completion leased, c;
	struct engine e;
	uint64_t job;

	(void)state;
	start(overrides);
	open_big(&e, "pins");
	assert_ok(engine_store(&e, 1, 0, CHAIN_BLOCKS, &c));
	assert_ok(engine_store(&e, 2, 0, CHAIN_BLOCKS, &c));
	for (uint32_t i = 0; i < CHAIN_BLOCKS; i++)
		keys[i] = engine_key(&e, 1, i);
	assert_ok(skvc_pin(e.session, e.ns, keys, CHAIN_BLOCKS, 60000000000ull, &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_ok(engine_lookup(&e, 2, CHAIN_BLOCKS, &leased));
	for (uint64_t chain = 10; chain < 25; chain++)
		(void)engine_store(&e, chain, 0, CHAIN_BLOCKS, &c);
	assert_int_equal(engine_fetch(&e, 1, CHAIN_BLOCKS), CHAIN_BLOCKS);
	assert_int_equal(engine_fetch(&e, 2, CHAIN_BLOCKS), CHAIN_BLOCKS);
	assert_ok(engine_release(&e, leased.lease));
	assert_ok(skvc_pin(e.session, e.ns, keys, CHAIN_BLOCKS, 0, &job));
	assert_ok(engine_finish(&e, job, &c));
	/* As long as the policy has learned nothing of how often blocks are used again, age decides. */
	for (uint64_t chain = 30; chain < 45; chain++)
		assert_ok(engine_store(&e, chain, 0, CHAIN_BLOCKS, &c));
	assert_true(engine_fetch(&e, 1, CHAIN_BLOCKS) + engine_fetch(&e, 2, CHAIN_BLOCKS) < 8);
	check_pool();
	engine_close(&e);
}

/* One block after the other, each leased at once, so that none makes room for the next.  Returns how many
 * were taken; *ret is the completion of the one that was refused. */
static unsigned store_and_lease(struct engine *e, uint64_t *leases, unsigned max,
				struct skvc_completion *ret, uint64_t *ret_stored_bytes)
{
	struct skvc_completion leased;
	unsigned n = 0;

	*ret_stored_bytes = 0;
	while (n < max && engine_store(e, 1000 + n, 0, 1, ret) == 0) {
		*ret_stored_bytes += ret->stored_bytes;
		assert_ok(engine_lookup(e, 1000 + n, 1, &leased));
		leases[n++] = leased.lease;
	}
	return n;
}

/* Everything is leased: a store waits, is refused with a reason, and works again after the release. */
static void test_a_full_pool_refuses(void **state)
{
	static const char *const overrides[] = { "limits.store_wait=50ms", "limits.lease_share=100",
						 NULL };
	uint64_t leases[200], stored_bytes;
	struct skvc_completion c;
	struct engine e;
	unsigned n;

	(void)state;
	start(overrides);
	open_big(&e, "full");
	n = store_and_lease(&e, leases, 200, &c, &stored_bytes);
	assert_true(n < 200);
	assert_res(c.res, -EAGAIN);
	assert_string_equal(skvc_reason_name(c.reason), "pool-full");
	check_pool();
	print_message("%u blocks, %.1f MiB in a pool of 16\n", n, (double)stored_bytes / 1048576);
	assert_true(stored_bytes > POOL_BYTES / 4 * 3);
	assert_int_equal(daemon_stats_get("blocks"), n);
	assert_true(daemon_stats_get("store_refused_blocks") > 0);
	assert_true(daemon_stats_reason("pool-full") > 0);
	for (unsigned i = 0; i < n; i++)
		assert_ok(engine_release(&e, leases[i]));
	assert_ok(engine_store(&e, 100, 0, CHAIN_BLOCKS, &c));
	assert_int_equal(engine_fetch(&e, 100, CHAIN_BLOCKS), CHAIN_BLOCKS);
	engine_close(&e);
}

static void test_quota_in_compressed_bytes(void **state)
{
	static char uid[64];
	const char *const overrides[] = { uid, "tenant small.quota=2M", NULL };
	uint64_t leases[200], stored_bytes;
	struct skvc_completion c;
	struct engine e;
	unsigned n;

	(void)state;
	(void)snprintf(uid, sizeof(uid), "tenant small.uid=%u", (unsigned)getuid());
	start(overrides);
	open_big(&e, "quota");
	n = store_and_lease(&e, leases, 200, &c, &stored_bytes);
	assert_res(c.res, -EDQUOT);
	assert_string_equal(skvc_reason_name(c.reason), "quota");
	print_message("%u blocks of %zu bytes, %.2f MiB against a quota of 2\n", n,
		      e.data.block_bytes, (double)stored_bytes / 1048576);
	assert_true(stored_bytes <= 2u << 20);
	/* Compression is capacity: more blocks than would fit as they are. */
	assert_true(n > (2u << 20) / e.data.block_bytes);
	assert_ok(daemon_stats_read(&daemon_));
	assert_true(daemon_stats_get("coded_bytes") <= 2u << 20);
	assert_true(daemon_stats_reason("quota") > 0);
	for (unsigned i = 0; i < n; i++)
		assert_ok(engine_release(&e, leases[i]));
	assert_ok(engine_store(&e, 1, 0, 1, &c)); /* in the place of an older one */
	assert_int_equal(engine_fetch(&e, 1, 1), 1);
	engine_close(&e);
}

/* What a tenant that is configured and has not come leaves idle is used, unless that is not wanted. */
static void test_idle_quota_is_borrowed(void **state)
{
	static char uid[64], other[64];
	const char *const overrides[] = { uid, "tenant small.quota=2M", other,
					  "tenant absent.quota=1M", NULL };
	const char *const hard[] = {
		uid, "tenant small.quota=2M", other, "tenant absent.quota=1M", "limits.borrow=no",
		NULL
	};
	uint64_t leases[200], stored_bytes;
	struct skvc_completion c;
	struct engine e;

	(void)state;
	(void)snprintf(uid, sizeof(uid), "tenant small.uid=%u", (unsigned)getuid());
	(void)snprintf(other, sizeof(other), "tenant absent.uid=%u", (unsigned)getuid() + 1);
	for (unsigned borrows = 0; borrows < 2; borrows++) {
		start(borrows ? overrides : hard);
		open_big(&e, "borrow");
		(void)store_and_lease(&e, leases, 200, &c, &stored_bytes);
		assert_res(c.res, -EDQUOT);
		assert_string_equal(skvc_reason_name(c.reason), "quota");
		print_message("%.2f MiB against quotas of 2 and 1, %s\n",
			      (double)stored_bytes / 1048576, borrows ? "borrowing" : "hard");
		if (borrows)
			assert_in_range(stored_bytes, 5u << 19, 3u << 20);
		else
			assert_in_range(stored_bytes, 3u << 19, 2u << 20);
		engine_close(&e);
		if (!borrows)
			assert_ok(private_daemon_stop(&daemon_));
	}
}

static void test_leases_end_at_their_deadline(void **state)
{
	struct skvc_key keys[4];
	struct skvc_lease_status status;
	struct skvc_completion c;
	uint64_t job, lease;
	struct engine e;

	(void)state;
	start(NULL);
	open_big(&e, "deadline");
	assert_ok(engine_store(&e, 1, 0, 4, &c));
	for (uint32_t i = 0; i < 4; i++)
		keys[i] = engine_key(&e, 1, i);
	assert_ok(skvc_lookup(
		e.session,
		&(struct skvc_lookup){
			.ns = e.ns, .count = 4, .keys = keys, .lease_ttl_ns = 1000000000 },
		&job));
	assert_ok(engine_finish(&e, job, &c));
	lease = c.lease;
	assert_ok(skvc_lease_poll(e.session, lease, &status));
	assert_int_equal(status.blocks_hit, 4);
	assert_int_equal(status.blocks_ready, 4);
	assert_true(daemon_stats_wait(&daemon_, "leases", 0, 20000) >= 0);
	assert_int_equal(daemon_stats_get("leases_expired"), 1);
	assert_res(skvc_lease_poll(e.session, lease, &status), -ESTALE);
	assert_ok(engine_submit_load(&e, lease, 0, 4, NULL, &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_res(c.res, -ESTALE);
	engine_close(&e);
}

static void test_leases_are_counted(void **state)
{
	static const char *const overrides[] = { "limits.leases_max=4", NULL };
	struct skvc_completion c, leased[4];
	struct engine e;

	(void)state;
	start(overrides);
	open_big(&e, "leases");
	assert_ok(engine_store(&e, 1, 0, 1, &c));
	for (unsigned i = 0; i < 4; i++)
		assert_ok(engine_lookup(&e, 1, 1, &leased[i]));
	assert_res(engine_lookup(&e, 1, 1, &c), -EAGAIN);
	assert_string_equal(skvc_reason_name(c.reason), "leases-full");
	assert_ok(engine_release(&e, leased[2].lease));
	assert_ok(engine_lookup(&e, 1, 1, &c));
	assert_int_not_equal(c.lease, leased[2].lease); /* the old handle stays dead */
	assert_res(engine_release(&e, leased[2].lease), -ESTALE);
	engine_close(&e);
	assert_true(daemon_stats_wait(&daemon_, "leases", 0, 20000) >= 0);
}

static void test_arena_limit(void **state)
{
	static const char *const overrides[] = { "host.arena_session=1M", NULL };
	struct skvc_session *session;
	struct skvc_arena *a, *b;

	(void)state;
	start(overrides);
	assert_ok(skvc_open(daemon_.socket, NULL, &session));
	assert_ok(skvc_arena_new(session, 1u << 20, &a));
	assert_res(skvc_arena_new(session, 4096, &b), -EDQUOT);
	a = skvc_arena_free(a);
	assert_ok(skvc_arena_new(session, 1u << 19, &b));
	b = skvc_arena_free(b);
	assert_null(skvc_close(session));
}

static void test_a_block_that_fits_nowhere(void **state)
{
	struct skvc_segment segment[32];
	struct skvc_geometry g = {
		.model = "huge", .block_tokens = 64, .segments_count = 32, .segments = segment
	};
	struct skvc_session *session;
	uint32_t ns;

	(void)state;
	start(NULL);
	for (unsigned i = 0; i < 32; i++) /* 32 MiB a block against a pool of 16 */
		segment[i] = (struct skvc_segment){ .kind = SKVC_KIND_K,
						    .dtype = SKVC_DTYPE_BF16,
						    .layer = (uint16_t)i,
						    .heads = 64,
						    .head_dim = 128 };
	assert_ok(skvc_open(daemon_.socket, NULL, &session));
	assert_res(skvc_namespace_open(session, &g, &ns), -EFBIG);
	assert_true(strlen(skvc_last_error(session)) > 0);
	assert_null(skvc_close(session));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_eviction_under_pressure, stop),
		cmocka_unit_test_teardown(test_children_go_before_parents, stop),
		cmocka_unit_test_teardown(test_pins_and_leases_hold, stop),
		cmocka_unit_test_teardown(test_a_full_pool_refuses, stop),
		cmocka_unit_test_teardown(test_quota_in_compressed_bytes, stop),
		cmocka_unit_test_teardown(test_idle_quota_is_borrowed, stop),
		cmocka_unit_test_teardown(test_leases_end_at_their_deadline, stop),
		cmocka_unit_test_teardown(test_leases_are_counted, stop),
		cmocka_unit_test_teardown(test_arena_limit, stop),
		cmocka_unit_test_teardown(test_a_block_that_fits_nowhere, stop),
	};

	return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
