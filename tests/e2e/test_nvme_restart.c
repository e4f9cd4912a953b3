/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_restart.c - what the NVMe tier holds outlives the daemon: after kill -9 and after an orderly stop the
 * clients reconnect, find their blocks and load them byte-exact; what was dropped stays dropped; a file that does
 * not fit is refused with a line that says what to do.
 */
#include "tests/lib/e2e.h"

#include <signal.h>
#include <unistd.h>

#define TIER_BYTES (96u << 20)
#define CHAINS 6u
#define CHAIN_BLOCKS 32u
#define BLOCKS (CHAINS * CHAIN_BLOCKS)

static struct private_daemon daemon_;

static int stop(void **state)
{
	int r = private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);

	(void)state;
	daemon_.files = 0;
	return r;
}

/* 256 KiB a block: 192 of them are 48 MiB against a pool of 16. */
static void open_engine(struct engine *e)
{
	struct engine_options o = {
		.seed = 11, .model = "restart", .layers = 16, .heads = 4, .blocks = CHAIN_BLOCKS
	};

	assert_ok(engine_open(e, daemon_.socket, &o));
}

static void store_chain(struct engine *e, uint64_t chain)
{
	uint64_t until = private_daemon_now_ns() + 20000000000ull * E2E_SLOW;
	struct skvc_completion c;
	int r;

	/* It may have to wait for room. */
	do
		r = engine_store(e, chain, 0, CHAIN_BLOCKS, &c);
	while (r == -EAGAIN && private_daemon_now_ns() < until);
	assert_ok(r);
}

static unsigned fetch_all(struct engine *e, uint64_t chains)
{
	unsigned exact = 0;

	for (uint64_t chain = 0; chain < chains; chain++) {
		int n = engine_fetch(e, chain, CHAIN_BLOCKS);

		assert_true(n >= 0);
		exact += (unsigned)n;
	}
	return exact;
}

/*
 * How many blocks lie on NVMe, once nothing has been written for a while: what names their namespace and has their
 * profile comes after them, within 50 ms, or after a second when the first try found no room.
 */
static uint64_t settled(void)
{
	uint64_t until = private_daemon_now_ns() + 30000000000ull * E2E_SLOW;
	uint64_t n = 0, written = 0, before, written_before;
	unsigned quiet = 0;

	while (quiet < 30 && private_daemon_now_ns() < until) {
		before = n;
		written_before = written;
		private_daemon_sleep_ms(50);
		assert_ok(daemon_stats_read(&daemon_));
		n = daemon_stats_get("blocks_nvme");
		written = daemon_stats_get("nvme_written_bytes");
		quiet = n && n == before && written == written_before &&
					!daemon_stats_get("nvme_inflight")
				? quiet + 1
				: 0;
	}
	return n;
}

static void drop_chain(struct engine *e, uint64_t chain)
{
	struct skvc_key keys[CHAIN_BLOCKS];
	struct skvc_completion c;
	uint64_t job;

	for (uint32_t i = 0; i < CHAIN_BLOCKS; i++)
		keys[i] = engine_key(e, chain, i);
	assert_ok(skvc_drop(e->session, e->ns, keys, CHAIN_BLOCKS, &job));
	assert_ok(engine_finish(e, job, &c));
}

static void again(const char *const *overrides, int orderly)
{
	if (orderly) {
		assert_int_equal(kill(daemon_.pid, SIGTERM), 0);
		private_daemon_kill(&daemon_, 0); /* and wait */
	} else {
		private_daemon_kill(&daemon_, SIGKILL);
	}
	assert_ok(private_daemon_restart(&daemon_, TIER_BYTES, overrides));
}

static void blocks_come_back(int orderly)
{
	uint64_t before, after;
	struct engine e;
	unsigned exact;

	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, NULL));
	open_engine(&e);
	for (uint64_t chain = 0; chain < CHAINS; chain++)
		store_chain(&e, chain);
	before = settled();
	assert_true(before > BLOCKS / 3);
	again(NULL, orderly);
	assert_ok(daemon_stats_read(&daemon_));
	after = daemon_stats_get("blocks_nvme");
	assert_int_equal(after, before);
	assert_int_equal(daemon_stats_get("nvme_restored_blocks"), before);
	assert_int_equal(daemon_stats_get("nvme_refused_blocks"), 0);
	/* An orderly stop leaves one segment at most to be read record by record. */
	if (orderly)
		assert_true(private_daemon_logged(&daemon_, " 1 MiB behind it)") ||
			    private_daemon_logged(&daemon_, " 0 MiB behind it)"));
	assert_ok(skvc_reconnect(e.session));
	exact = fetch_all(&e, CHAINS);
	assert_ok(daemon_stats_read(&daemon_));
	print_message("%u blocks before, %u after, %u found as prefixes and exact\n",
		      (unsigned)before, (unsigned)after, exact);
	assert_int_equal(daemon_stats_get("checksum_failures"), 0);
	/* Blocks go in order of use: of most chains the whole, or its end, is on NVMe. */
	assert_true(exact > 0);
	engine_close(&e);
}

static void test_after_kill(void **state)
{
	(void)state;
	blocks_come_back(0);
}

/* Two files are one tier, and it is found again whole. */
static void test_two_files(void **state)
{
	(void)state;
	daemon_.files = 2;
	blocks_come_back(0);
}

static void test_after_stop(void **state)
{
	(void)state;
	blocks_come_back(1);
}

/* A second and a third time, with more stored and dropped in between: nothing comes back that was dropped. */
static void test_again_and_again(void **state)
{
	struct engine e;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, NULL));
	open_engine(&e);
	for (uint64_t life = 0; life < 4; life++) {
		uint64_t on_nvme;

		for (uint64_t chain = 0; chain < 3; chain++)
			store_chain(&e, 100 * life + chain);
		drop_chain(&e, 100 * life);
		if (life)
			drop_chain(&e, 100 * (life - 1) + 1);
		on_nvme = settled();
		again(NULL, life % 2);
		assert_ok(skvc_reconnect(e.session));
		assert_ok(daemon_stats_read(&daemon_));
		assert_int_equal(daemon_stats_get("blocks_nvme"), on_nvme);
		assert_int_equal(engine_fetch(&e, 100 * life, CHAIN_BLOCKS), 0);
		if (life)
			assert_int_equal(engine_fetch(&e, 100 * (life - 1) + 1, CHAIN_BLOCKS), 0);
	}
	assert_int_equal(daemon_stats_get("checksum_failures"), 0);
	engine_close(&e);
}

/* The log goes round more than once; what is written beside the records stays small. */
static void test_what_it_costs(void **state)
{
	static const char *const segments[] = { "nvme.segment=4M", NULL };
	uint64_t written, spilled;
	struct engine e;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, segments));
	open_engine(&e);
	for (uint64_t chain = 0; chain < 40; chain++)
		store_chain(&e, chain);
	(void)settled();
	written = daemon_stats_get("nvme_written_bytes");
	spilled = daemon_stats_get("spill_bytes");
	print_message("%.1f MiB written for %.1f MiB of records: %.3f; %u segments reused, "
		      "%u checkpoints\n",
		      (double)written / (1 << 20), (double)spilled / (1 << 20),
		      (double)written / (double)spilled,
		      (unsigned)daemon_stats_get("nvme_reclaimed_segments"),
		      (unsigned)daemon_stats_get("nvme_checkpoints"));
	assert_true(spilled > TIER_BYTES && daemon_stats_get("nvme_reclaimed_segments") > 0);
	assert_true(written * 10 <= spilled * 13);
	engine_close(&e);
}

static void test_not_to_be_kept(void **state)
{
	static const char *const forget[] = { "nvme.persist=no", NULL };
	struct engine e;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, NULL));
	open_engine(&e);
	for (uint64_t chain = 0; chain < CHAINS; chain++)
		store_chain(&e, chain);
	assert_true(settled() > 0);
	again(forget, 0);
	assert_int_equal(daemon_stats_now(&daemon_, "blocks"), 0);
	again(NULL, 0);
	assert_int_equal(daemon_stats_now(&daemon_, "blocks"), 0);
	engine_close(&e);
}

static void test_a_file_that_does_not_fit(void **state)
{
	(void)state;
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, NULL));
	private_daemon_kill(&daemon_, SIGKILL);
	assert_res(private_daemon_restart(&daemon_, TIER_BYTES / 2, NULL), -ECHILD);
	assert_true(private_daemon_logged(&daemon_, "configure it as it was, or remove the file"));
	assert_ok(private_daemon_restart(&daemon_, TIER_BYTES, NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_after_kill, stop),
		cmocka_unit_test_teardown(test_two_files, stop),
		cmocka_unit_test_teardown(test_after_stop, stop),
		cmocka_unit_test_teardown(test_again_and_again, stop),
		cmocka_unit_test_teardown(test_what_it_costs, stop),
		cmocka_unit_test_teardown(test_not_to_be_kept, stop),
		cmocka_unit_test_teardown(test_a_file_that_does_not_fit, stop),
	};

	return cmocka_run_group_tests_name("nvme-restart", tests, NULL, NULL);
}
