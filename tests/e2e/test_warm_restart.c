/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_warm_restart.c - host memory outlives the daemon where somebody keeps its pool: after a restart in order all
 * blocks are there, byte-exact; after kill -9, with another configuration, or with an index that was tampered with, the
 * daemon starts empty and says so, and nothing wrong is ever served.
 */
#include "tests/lib/e2e.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/warm_format.h"
#include "tests/lib/fd_keeper.h"

#define TIER_BYTES (96u << 20)
#define CHAINS 6u
#define CHAIN_BLOCKS 32u
#define BLOCKS (CHAINS * CHAIN_BLOCKS)

static struct fd_keeper keeper;
static struct private_daemon daemon_ = { .keeper = &keeper };
static struct engine engine_;

static const char *const roomy[] = { "host.pool=64M", NULL };

static int setup(void **state)
{
	(void)state;
	fd_keeper_open(&keeper);
	return 0;
}

static int teardown(void **state)
{
	int r = private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);

	(void)state;
	fd_keeper_close(&keeper);
	return r;
}

/* 64 KiB a block, so 12 MiB of all, in a pool of 64: nothing has to go. */
static void begin(uint64_t nvme_bytes, const char *const *overrides, uint32_t chains)
{
	struct engine_options o = {
		.seed = 5, .model = "warm", .layers = 4, .heads = 4, .blocks = CHAIN_BLOCKS
	};
	struct skvc_completion c;

	assert_ok(private_daemon_start(&daemon_, nvme_bytes, overrides));
	assert_ok(engine_open(&engine_, daemon_.socket, &o));
	for (uint64_t chain = 0; chain < chains; chain++)
		assert_ok(engine_store(&engine_, chain, 0, CHAIN_BLOCKS, &c));
}

static void stop_in_order(void)
{
	assert_int_equal(kill(daemon_.pid, SIGTERM), 0);
	private_daemon_kill(&daemon_, 0); /* and wait */
}

static void start(uint64_t nvme_bytes, const char *const *overrides)
{
	assert_ok(private_daemon_restart(&daemon_, nvme_bytes, overrides));
	assert_ok(skvc_reconnect(engine_.session));
	assert_ok(daemon_stats_read(&daemon_));
}

static void all_are_exact(uint32_t chains)
{
	for (uint64_t chain = 0; chain < chains; chain++)
		assert_int_equal(engine_fetch(&engine_, chain, CHAIN_BLOCKS), CHAIN_BLOCKS);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
}

static void is_empty(const char *why)
{
	assert_int_equal(daemon_stats_get("blocks"), 0);
	assert_int_equal(daemon_stats_get("host_restored_blocks"), 0);
	if (!private_daemon_logged(&daemon_, why)) {
		private_daemon_print_log(&daemon_);
		fail_msg("not logged: %s", why);
	}
	for (uint64_t chain = 0; chain < CHAINS; chain++)
		assert_int_equal(engine_fetch(&engine_, chain, CHAIN_BLOCKS), 0);
}

/* It works as any other: fill it with the same again, and more. */
static void goes_on(void)
{
	struct skvc_completion c;

	for (uint64_t chain = 0; chain < 2 * CHAINS; chain++)
		assert_ok(engine_store(&engine_, chain, 0, CHAIN_BLOCKS, &c));
	all_are_exact(2 * CHAINS);
}

/* Soon, like kept_fd(): the keeper reads what it is told by and by, as systemd does. */
static void assert_gone(const char *name)
{
	uint64_t until = private_daemon_now_ns() + 30000000000ull * E2E_SLOW;
	int fd;

	while ((fd = fd_keeper_get(&keeper, name)) != -1) {
		if (fd >= 0)
			(void)close(fd);
		assert_true(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(5);
	}
}

static int kept_fd(const char *name)
{
	uint64_t until = private_daemon_now_ns() + 30000000000ull * E2E_SLOW;
	int fd;

	while ((fd = fd_keeper_get(&keeper, name)) < 0) {
		assert_true(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(5);
	}
	return fd;
}

static void assert_kept(const char *name)
{
	(void)close(kept_fd(name));
}

static void wait_for_any(const char *what)
{
	uint64_t until = private_daemon_now_ns() + 30000000000ull * E2E_SLOW;

	while (!daemon_stats_now(&daemon_, what)) {
		assert_true(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(5);
	}
}

/* In the end: blocks that are coded again meanwhile are read in the middle of that. */
static void all_is_accounted_for(void)
{
	uint64_t until = private_daemon_now_ns() + 30000000000ull * E2E_SLOW;

	while (daemon_stats_get("pool_used_bytes") != daemon_stats_get("coded_bytes")) {
		assert_true(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(5);
		assert_ok(daemon_stats_read(&daemon_));
	}
}

/* Three times, with stores and drops in between; what was dropped does not come back. */
static void test_in_order(void **state)
{
	struct skvc_key keys[CHAIN_BLOCKS];
	struct skvc_completion c;
	uint64_t job;

	(void)state;
	begin(0, roomy, CHAINS);
	wait_for_any("profiles"); /* a stop does not wait for that */
	for (unsigned life = 0; life < 3; life++) {
		uint64_t chain = CHAINS + life;

		assert_ok(engine_store(&engine_, chain, 0, CHAIN_BLOCKS, &c));
		for (uint32_t i = 0; i < CHAIN_BLOCKS; i++)
			keys[i] = engine_key(&engine_, chain, i);
		assert_ok(skvc_drop(engine_.session, engine_.ns, keys, CHAIN_BLOCKS, &job));
		assert_ok(engine_finish(&engine_, job, &c));
		stop_in_order();
		assert_kept("skvcd-index");
		start(0, roomy);
		assert_int_equal(daemon_stats_get("host_restored_blocks"), BLOCKS);
		assert_int_equal(daemon_stats_get("host_refused_blocks"), 0);
		assert_int_equal(daemon_stats_get("blocks_host"), BLOCKS);
		assert_true(daemon_stats_get("profiles") > 0);
		all_is_accounted_for();
		assert_gone("skvcd-index"); /* it is good for one start */
		assert_kept("skvcd-pool");
		assert_int_equal(engine_fetch(&engine_, chain, CHAIN_BLOCKS), 0);
		all_are_exact(CHAINS);
	}
	assert_true(private_daemon_logged(&daemon_, "host memory: 192 blocks of"));
	goes_on();
	engine_close(&engine_);
}

/* The same process, loaded again; its socket is never gone, and nobody keeps anything. */
static void test_loaded_again(void **state)
{
	pid_t pid;

	(void)state;
	daemon_.keeper = NULL;
	begin(0, roomy, CHAINS);
	pid = daemon_.pid;
	for (unsigned life = 1; life < 3; life++) {
		assert_int_equal(kill(pid, SIGUSR2), 0);
		for (int r = -1; r != 0;) { /* the old one has to see it first */
			r = skvc_reconnect(engine_.session);
			if (r == 0 && engine_fetch(&engine_, 0, 1) != 1)
				r = -1;
			if (r == 0 && daemon_stats_now(&daemon_, "host_restored_blocks") != BLOCKS)
				r = -1;
			assert_false(private_daemon_died(&daemon_));
		}
		assert_int_equal(daemon_stats_now(&daemon_, "blocks_host"), BLOCKS);
		all_are_exact(CHAINS);
	}
	goes_on();
	engine_close(&engine_);
	daemon_.keeper = &keeper;
}

/* Ten minutes of it are to come when the daemon is to stop. */
static void test_a_fit_is_not_waited_for(void **state)
{
	static const char *const slow[] = { "host.pool=64M", "fault.device=fit:delay_ms=600000",
					    NULL };

	(void)state;
	begin(0, slow, CHAINS);
	stop_in_order();
	assert_true(private_daemon_logged(&daemon_, "skvcd: stopped"));
	start(0, roomy);
	assert_int_equal(daemon_stats_get("host_restored_blocks"), BLOCKS);
	all_are_exact(CHAINS);
	engine_close(&engine_);
}

static void test_after_kill(void **state)
{
	(void)state;
	begin(0, roomy, CHAINS);
	private_daemon_kill(&daemon_, SIGKILL);
	assert_gone("skvcd-index");
	assert_kept("skvcd-pool");
	start(0, roomy);
	is_empty("the last daemon did not stop in order");
	goes_on();
	/* Also when it was found before. */
	stop_in_order();
	start(0, roomy);
	assert_int_equal(daemon_stats_get("host_restored_blocks"), 2 * BLOCKS);
	private_daemon_kill(&daemon_, SIGKILL);
	start(0, roomy);
	is_empty("the last daemon did not stop in order");
	engine_close(&engine_);
}

/* What systemd has not been told to forget says itself that it was used. */
static void test_an_old_index(void **state)
{
	int fd;

	(void)state;
	begin(0, roomy, CHAINS);
	stop_in_order();
	fd = kept_fd("skvcd-index");
	start(0, roomy);
	assert_gone("skvcd-index");
	assert_int_equal(daemon_stats_get("host_restored_blocks"), BLOCKS);
	private_daemon_kill(&daemon_, SIGKILL);
	fd_keeper_put(&keeper, "skvcd-index", fd);
	start(0, roomy);
	is_empty("was not written to its end, or has been used");
	goes_on();
	engine_close(&engine_);
}

static void test_a_damaged_index(void **state)
{
	struct rng rng;
	struct stat st;
	int fd;

	(void)state;
	rng_init(&rng, 3);
	begin(0, roomy, CHAINS);
	for (unsigned i = 0; i < 4; i++) {
		uint8_t byte;
		off_t at;

		stop_in_order();
		fd = kept_fd("skvcd-index");
		assert_int_equal(fstat(fd, &st), 0);
		at = (off_t)(i ? rng_below(&rng, (uint32_t)st.st_size - WARM_PAGE_BYTES) : 8);
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		byte ^= (uint8_t)(1u << rng_below(&rng, 8));
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
		(void)close(fd);
		start(0, roomy);
		is_empty("the index of the pool that was kept is");
		goes_on();
	}
	engine_close(&engine_);
}

static void test_another_configuration(void **state)
{
	static const char *const larger[] = { "host.pool=80M", NULL };
	static const char *const not_kept[] = { "host.pool=64M", "host.persist=no", NULL };

	(void)state;
	begin(0, roomy, CHAINS);
	stop_in_order();
	start(0, larger);
	is_empty("not of the size that is configured");
	goes_on();
	assert_kept("skvcd-pool"); /* one, the new one */
	stop_in_order();
	start(0, larger);
	assert_int_equal(daemon_stats_get("host_restored_blocks"), 2 * BLOCKS);
	stop_in_order();
	start(0, not_kept);
	assert_int_equal(daemon_stats_get("blocks"), 0);
	assert_gone("skvcd-pool");
	assert_gone("skvcd-index");
	stop_in_order();
	assert_gone("skvcd-index");
	start(0, not_kept);
	engine_close(&engine_);
}

/* Blocks that are in both places are there once, and the slots of clean ones can be given up. */
static void test_with_nvme(void **state)
{
	static const char *const early[] = { "host.pool=64M", "host.spill_percent=1", NULL };
	uint64_t on_nvme;

	(void)state;
	begin(TIER_BYTES, early, CHAINS);
	wait_for_any("blocks_nvme");
	stop_in_order();
	start(TIER_BYTES, early);
	on_nvme = daemon_stats_get("nvme_restored_blocks");
	print_message("%u blocks on NVMe, %u in host memory\n", (unsigned)on_nvme,
		      (unsigned)daemon_stats_get("host_restored_blocks"));
	assert_int_equal(daemon_stats_get("blocks"), BLOCKS);
	assert_int_equal(daemon_stats_get("blocks_host"), BLOCKS);
	assert_int_equal(daemon_stats_get("host_restored_blocks"), BLOCKS);
	assert_true(on_nvme > 0);
	all_are_exact(CHAINS);
	assert_int_equal(daemon_stats_now(&daemon_, "fetch_blocks"), 0);
	/* NVMe alone, when the pool is gone. */
	stop_in_order();
	fd_keeper_drop(&keeper, "skvcd-pool");
	start(TIER_BYTES, early);
	assert_int_equal(daemon_stats_get("host_restored_blocks"), 0);
	assert_true(daemon_stats_get("nvme_restored_blocks") >= on_nvme);
	for (uint64_t chain = 0; chain < CHAINS; chain++)
		assert_true(engine_fetch(&engine_, chain, CHAIN_BLOCKS) >= 0);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
	engine_close(&engine_);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_in_order),
		TEST(test_loaded_again),
		TEST(test_a_fit_is_not_waited_for),
		TEST(test_after_kill),
		TEST(test_an_old_index),
		TEST(test_a_damaged_index),
		TEST(test_another_configuration),
		TEST(test_with_nvme),
	};

	return cmocka_run_group_tests_name("warm-restart", tests, NULL, NULL);
}
