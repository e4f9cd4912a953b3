/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_faults.c - a file that loses or changes bytes, and I/O that fails, is short, has no space or
 * stalls: blocks come back exact or are misses, each failure is counted, the daemon goes on without the
 * tier and takes it back when it works again.
 */
#include "tests/lib/e2e.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define TIER_BYTES (96u << 20)
#define CHAINS 6u
#define CHAIN_BLOCKS 32u

static struct private_daemon daemon_;

static void start(const char *fault)
{
	static char text[200];
	/* A busy disk stalls, too. */
	const char *deadline = strstr(fault, "stall") ? "nvme.deadline=1s" : "nvme.deadline=10s";
	const char *const overrides[] = { text,
					  "nvme.retry=200ms",
					  deadline,
					  "limits.store_wait=1s",
					  "limits.lease_share=100",
					  NULL };

	(void)snprintf(text, sizeof(text), "fault.nvme=%s", fault);
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, overrides));
}

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

/* 256 KiB a block: 192 of them are 48 MiB against a pool of 16. */
static void open_engine(struct engine *e)
{
	struct engine_options o = {
		.seed = 9, .model = "faults", .layers = 16, .heads = 4, .blocks = CHAIN_BLOCKS
	};

	assert_ok(engine_open(e, daemon_.socket, &o));
}

/* Stores may be refused for want of room; nothing else. */
static unsigned store_all(struct engine *e)
{
	struct skvc_completion c;
	unsigned stored = 0;

	for (uint64_t chain = 0; chain < CHAINS; chain++) {
		int r = engine_store(e, chain, 0, CHAIN_BLOCKS, &c);

		assert_true(r == 0 || r == -EAGAIN);
		stored += c.count;
	}
	return stored;
}

/* How many come back.  engine_fetch() fails the test on wrong bytes: -EBADMSG is no count. */
static unsigned fetch_all(struct engine *e)
{
	unsigned exact = 0;

	for (uint64_t chain = 0; chain < CHAINS; chain++) {
		int n = engine_fetch(e, chain, CHAIN_BLOCKS);

		if (n < 0)
			print_error("chain %u: %s\n", (unsigned)chain, strerror(-n));
		assert_true(n >= 0);
		exact += (unsigned)n;
	}
	return exact;
}

static void still_serves(struct engine *e)
{
	uint64_t until = private_daemon_now_ns() + 10000000000ull * E2E_SLOW;
	static uint64_t chain = 1000;
	struct skvc_completion c;
	int r;

	/* A store may have to wait until a tier that fails is taken out of service. */
	do
		r = engine_store(e, ++chain, 0, 4, &c);
	while (r == -EAGAIN && private_daemon_now_ns() < until);
	assert_ok(r);
	assert_int_equal(engine_fetch(e, chain, 4), 4);
	assert_false(private_daemon_died(&daemon_));
}

/*
 * Flip one byte in each 64 KiB of the spill file, behind the daemon's back.  Past the page cache where that can be:
 * dirty pages under the daemon's direct writes are EIO for one of the two.
 */
static void corrupt_file(void)
{
	static _Alignas(4096) uint8_t sector[4096];
	int fd = open(daemon_.nvme, O_RDWR | O_CLOEXEC | O_DIRECT);
	struct stat st;

	if (fd < 0 && errno == EINVAL)
		fd = open(daemon_.nvme, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, TIER_BYTES);
	for (off_t at = 0; at < st.st_size; at += 65536) {
		assert_int_equal(pread(fd, sector, sizeof(sector), at), sizeof(sector));
		sector[1000] ^= 0x10;
		assert_int_equal(pwrite(fd, sector, sizeof(sector), at), sizeof(sector));
	}
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(close(fd), 0);
}

static void test_corrupt_file(void **state)
{
	unsigned stored, exact;
	struct engine e;

	(void)state;
	start("");
	open_engine(&e);
	stored = store_all(&e);
	assert_int_equal(stored, CHAINS * CHAIN_BLOCKS);
	corrupt_file();
	exact = fetch_all(&e);
	assert_ok(daemon_stats_read(&daemon_));
	print_message("%u of %u blocks exact, %u quarantined\n", exact, stored,
		      (unsigned)daemon_stats_get("checksum_failures"));
	assert_true(exact < stored);
	assert_true(daemon_stats_get("checksum_failures") > 0);
	assert_true(daemon_stats_reason("corrupt") > 0);
	/* A block that was found corrupt is a miss from then on, not an error again. */
	(void)fetch_all(&e);
	still_serves(&e);
	engine_close(&e);
}

static void run_with(const char *fault, int all_must_return)
{
	unsigned stored, exact;
	struct engine e;

	start(fault);
	open_engine(&e);
	stored = store_all(&e);
	exact = fetch_all(&e);
	assert_ok(daemon_stats_read(&daemon_));
	print_message("%s: %u stored, %u exact, %u I/O errors, %u quarantined, health %u\n", fault,
		      stored, exact, (unsigned)daemon_stats_get("nvme_errors"),
		      (unsigned)daemon_stats_get("checksum_failures"),
		      (unsigned)daemon_stats_get("nvme_health"));
	assert_true(exact > 0);
	if (all_must_return && exact != stored)
		daemon_stats_print();
	if (all_must_return)
		assert_int_equal(exact, stored);
	still_serves(&e);
	engine_close(&e);
}

static void test_short_transfers_are_continued(void **state)
{
	(void)state;
	run_with("write:short:every=2,read:short:every=2", 1);
	assert_int_equal(daemon_stats_get("nvme_errors"), 0);
}

static void test_flipped_reads(void **state)
{
	(void)state;
	run_with("read:flip:every=5", 0);
	assert_true(daemon_stats_get("checksum_failures") > 0);
}

static void test_write_errors(void **state)
{
	(void)state;
	run_with("write:eio:every=7", 0);
	assert_true(daemon_stats_get("nvme_errors") > 0);
}

static void test_no_space(void **state)
{
	(void)state;
	run_with("write:enospc:every=3", 0);
	assert_true(daemon_stats_get("nvme_errors") > 0);
}

static void test_every_write_fails(void **state)
{
	(void)state;
	run_with("write:eio:every=1", 0);
	assert_true(daemon_stats_get("nvme_errors") > 0);
	assert_int_equal(daemon_stats_get("blocks_nvme"), 0);
}

static void test_read_errors(void **state)
{
	(void)state;
	run_with("read:eio:every=9", 0);
	assert_true(daemon_stats_get("nvme_errors") > 0);
}

static void test_stalled_reads_run_into_their_deadline(void **state)
{
	(void)state;
	run_with("read:stall_ms=4000:every=25", 0);
	assert_true(daemon_stats_get("nvme_errors") > 0);
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

/* Out of service after failures, back by itself once there is nothing to fail at: the gauge goes 1, 2, 1. */
static void test_the_tier_comes_back(void **state)
{
	uint64_t until, chain;
	struct engine e;
	int out = 0;

	(void)state;
	start("write:eio:every=4");
	open_engine(&e);
	assert_int_equal(daemon_stats_now(&daemon_, "nvme_health"), 1);
	until = private_daemon_now_ns() + 15000000000ull * E2E_SLOW;
	for (chain = 0; !out && private_daemon_now_ns() < until; chain++) {
		struct skvc_completion c;

		(void)engine_store(&e, chain, 0, CHAIN_BLOCKS, &c);
		out = daemon_stats_now(&daemon_, "nvme_health") == 2;
	}
	assert_true(out);
	while (chain > 0)
		drop_chain(&e, --chain);
	assert_true(daemon_stats_wait(&daemon_, "nvme_health", 1, 10000 * E2E_SLOW) >= 0);
	still_serves(&e);
	engine_close(&e);
}

/* A record that no segment has room for: such blocks are given up when memory is short, and others go on to NVMe. */
static void test_blocks_longer_than_a_segment(void **state)
{
	struct engine_options o = {
		.seed = 9, .model = "long", .layers = 61, .heads = 4, .blocks = 2
	};
	static const char *const raw[] = { "codec.speculator=raw", "limits.store_wait=1s", NULL };
	struct skvc_completion c;
	struct engine e, other;
	int r;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, raw));
	open_engine(&other);
	assert_ok(engine_open(&e, daemon_.socket,
			      &o)); /* 976 KiB, of a segment's 1 MiB less its headers */
	for (uint64_t chain = 0; chain < 16; chain++) {
		r = engine_store(&e, chain, 0, 2, &c);
		assert_true(r == 0 || r == -EAGAIN);
	}
	still_serves(&other);
	(void)store_all(&other);
	assert_true(fetch_all(&other) > CHAINS * CHAIN_BLOCKS / 2);
	assert_ok(daemon_stats_read(&daemon_));
	assert_true(daemon_stats_get("blocks_nvme") > CHAINS * CHAIN_BLOCKS / 4);
	assert_true(daemon_stats_get("dropped_blocks") > 0);
	assert_ok(engine_store(&e, 16, 0, 2, &c));
	assert_int_equal(engine_fetch(&e, 16, 2), 2);
	still_serves(&other);
	engine_close(&e);
	engine_close(&other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_corrupt_file, stop),
		cmocka_unit_test_teardown(test_short_transfers_are_continued, stop),
		cmocka_unit_test_teardown(test_flipped_reads, stop),
		cmocka_unit_test_teardown(test_write_errors, stop),
		cmocka_unit_test_teardown(test_no_space, stop),
		cmocka_unit_test_teardown(test_every_write_fails, stop),
		cmocka_unit_test_teardown(test_read_errors, stop),
		cmocka_unit_test_teardown(test_stalled_reads_run_into_their_deadline, stop),
		cmocka_unit_test_teardown(test_the_tier_comes_back, stop),
		cmocka_unit_test_teardown(test_blocks_longer_than_a_segment, stop),
	};

	return cmocka_run_group_tests_name("nvme-faults", tests, NULL, NULL);
}
