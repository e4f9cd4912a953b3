/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_plan.c - an engine that says how fast it computes finds only what is restored sooner, and the daemon tells
 * with what numbers it decides.
 */
#include "tests/lib/e2e.h"

#include <signal.h>
#include <sys/wait.h>

#define BLOCKS 8u

static struct private_daemon daemon_;

static int start(void **state)
{
	(void)state;
	return private_daemon_start(&daemon_, 0, NULL);
}

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

static void open_engine(struct engine *e)
{
	struct engine_options o = { .seed = 9, .model = "plan" };

	assert_ok(engine_open(e, daemon_.socket, &o));
}

static void finds(struct engine *e, int blocks)
{
	struct skvc_completion c;

	assert_int_equal(engine_fetch(e, 1, BLOCKS), blocks);
	if (blocks)
		return;
	assert_res(engine_lookup(e, 1, BLOCKS, &c), -ENOENT);
	assert_string_equal(skvc_reason_name(c.reason), "recompute");
	assert_int_equal(c.count, 0);
}

static void test_who_computes_faster_finds_nothing(void **state)
{
	const uint64_t faster_than_light = 1000000000000ull;
	struct skvc_completion c;
	struct engine e, other;

	(void)state;
	open_engine(&e);
	open_engine(&other);
	assert_ok(engine_store(&e, 1, 0, BLOCKS, &c));
	finds(&e, BLOCKS); /* nothing was said */
	assert_ok(skvc_namespace_prefill(e.session, e.ns, faster_than_light));
	finds(&e, 0);
	finds(&other, 0); /* it is the namespace's */
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 1));
	finds(&e, BLOCKS);
	assert_ok(skvc_namespace_prefill(e.session, e.ns, faster_than_light));
	finds(&e, 0);
	assert_ok(skvc_namespace_prefill(other.session, other.ns, 0));
	finds(&e, BLOCKS);
	engine_close(&other);
	engine_close(&e);
}

static void test_bad_rates(void **state)
{
	struct engine e;

	(void)state;
	open_engine(&e);
	assert_int_equal(skvc_namespace_prefill(e.session, 0, 1), -EINVAL);
	assert_int_equal(skvc_namespace_prefill(e.session, e.ns + 1, 1), -EINVAL);
	assert_non_null(strstr(skvc_last_error(e.session), "no namespace"));
	assert_int_equal(skvc_namespace_prefill(NULL, e.ns, 1), -EINVAL);
	assert_ok(skvc_namespace_prefill(e.session, e.ns, UINT64_MAX));
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 0));
	engine_close(&e);
}

/* The daemon that was told is gone; the next one hears it from the library. */
static void test_a_rate_survives_the_daemon(void **state)
{
	struct skvc_completion c;
	struct engine e;

	(void)state;
	open_engine(&e);
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 1000000000000ull));
	private_daemon_kill(&daemon_, SIGKILL);
	assert_ok(private_daemon_restart(&daemon_, 0, NULL));
	assert_ok(skvc_reconnect(e.session));
	assert_ok(engine_store(&e, 1, 0, BLOCKS, &c));
	finds(&e, 0);
	engine_close(&e);
}

/* Runs skvcctl; returns its exit status, and what it wrote to either output. */
static int ctl(const char *what, char *ret, size_t bytes)
{
	char command[1024];
	FILE *f;

	(void)snprintf(command, sizeof(command), "%s --bus %s %s 2>&1",
		       private_daemon_program("skvcctl"), daemon_.bus, what);
	f = popen(command, "r");
	assert_non_null(f);
	ret[fread(ret, 1, bytes - 1, f)] = '\0';
	return WEXITSTATUS(pclose(f));
}

static void test_the_numbers_are_shown(void **state)
{
	struct skvc_completion c;
	char out[16384];
	struct engine e;

	(void)state;
	open_engine(&e);
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 4321));
	for (uint64_t chain = 1; chain < 9; chain++)
		assert_ok(engine_store(&e, chain, 0, BLOCKS, &c));
	private_daemon_sleep_ms(150); /* it is looked at again ten times a second at most */
	assert_int_equal(engine_fetch(&e, 1, BLOCKS), BLOCKS);
	assert_int_equal(ctl("explain --plan", out, sizeof(out)), 0);
	print_message("%s", out);
	assert_non_null(strstr(out, "cpu-encode-generic"));
	assert_non_null(strstr(out, "copy"));
	assert_non_null(strstr(out, "plan, tenant"));
	assert_non_null(strstr(out, "computes 4321 tokens a second"));
	assert_non_null(strstr(out, "   generic "));
	assert_non_null(strstr(out, "3.70 ms")); /* 16 tokens */
	assert_non_null(strstr(out, "when memory is short, a block is written to NVMe"));
	engine_close(&e);
}

static void explain(const struct skvc_key *key, const char *behind, char *ret, size_t bytes)
{
	char what[128] = "explain ";

	for (unsigned i = 0; i < key->len; i++)
		(void)snprintf(what + strlen(what), 3, "%02x", key->bytes[i]);
	(void)snprintf(what + strlen(what), 16, "%s", behind);
	assert_int_equal(ctl(what, ret, bytes), 0);
}

static void test_a_block_is_explained(void **state)
{
	struct skvc_completion c;
	struct skvc_key key;
	char out[4096];
	struct engine e;
	uint64_t job;

	(void)state;
	open_engine(&e);
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 1));
	assert_ok(engine_store(&e, 77, 0, 3, &c));
	key = engine_key(&e, 77, 1);
	explain(&key, "", out, sizeof(out));
	assert_non_null(strstr(out, "in host, coded with"));
	assert_non_null(strstr(out, "begins at token 16"));
	assert_non_null(strstr(out, "1 blocks follow it, 0 hold it"));
	assert_non_null(strstr(out, "computing it 16.0 s: restored"));
	assert_null(strstr(out, "pinned"));
	assert_ok(skvc_pin(e.session, e.ns, &key, 1, 60000000000ull, &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_ok(skvc_namespace_prefill(e.session, e.ns, UINT64_MAX / 2));
	explain(&key, ":0", out, sizeof(out));
	assert_non_null(strstr(out, "pinned for another"));
	explain(&key, ":1", out, sizeof(out));
	assert_non_null(strstr(out, "No namespace has a block of this key"));
	assert_ok(skvc_drop(e.session, e.ns, &key, 1, &job));
	assert_ok(engine_finish(&e, job, &c));
	explain(&key, "", out, sizeof(out));
	assert_non_null(strstr(out, "No namespace has a block of this key"));
	/* What is no key is a word. */
	assert_int_equal(ctl("explain 00112233445566778899aabbccddee", out, sizeof(out)), 1);
	assert_int_equal(ctl("explain 00112233445566778899aabbccddeeff:x", out, sizeof(out)), 1);
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 0));
	engine_close(&e);
}

/* The first block, of chains from 100 on, that is on NVMe alone; its words in `out`. */
static uint64_t chain_on_nvme(struct engine *e, struct skvc_key *ret, char *out, size_t bytes)
{
	for (uint64_t chain = 100; chain < 108; chain++) {
		*ret = engine_key(e, chain, 0);
		explain(ret, "", out, bytes);
		if (strstr(out, "in nvme, coded"))
			return chain;
	}
	fail_msg("all are in memory");
	return 0;
}

/* What is on NVMe, and asked for, is kept in memory, unless it is left to the engine; that is said before. */
static void is_promoted(struct engine *e)
{
	struct skvc_key key;
	uint64_t chain;
	char out[16384];

	chain = chain_on_nvme(e, &key, out, sizeof(out));
	assert_non_null(strstr(out, "promote, from NVMe to memory: "));
	assert_non_null(strstr(out, "kept until others are worth more"));
	assert_int_equal(engine_fetch(e, chain, 32), 32); /* so it is known what NVMe takes */
	explain(&key, "", out, sizeof(out));
	assert_non_null(strstr(out, "in host and on nvme"));
	assert_null(strstr(out, "promote"));
	(void)chain_on_nvme(e, &key, out, sizeof(out));
	assert_ok(skvc_namespace_prefill(e->session, e->ns, 1000000000000ull));
	explain(&key, "", out, sizeof(out));
	assert_non_null(strstr(out, "left where it is, for its engine computes it sooner"));
	assert_ok(skvc_namespace_prefill(e->session, e->ns, 1));
}

/*
 * Another daemon, with NVMe.  Blocks of an engine that computes them sooner are given up, not written; when it
 * computes no sooner, they are written.  Chains of 32 blocks of 256 KiB: eight are four times the pool.
 */
static void test_what_is_computed_sooner_is_not_written(void **state)
{
	struct engine_options o = {
		.seed = 5, .model = "sooner", .layers = 16, .heads = 4, .blocks = 32
	};
	struct private_daemon first = daemon_;
	struct skvc_completion c;
	struct skvc_key key;
	struct engine e;
	char out[16384];

	(void)state;
	assert_ok(private_daemon_start(&daemon_, 128u << 20, NULL));
	assert_ok(engine_open(&e, daemon_.socket, &o));
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 1000000000000ull));
	for (uint64_t chain = 0; chain < 8; chain++)
		assert_ok(engine_store(&e, chain, 0, 32, &c));
	assert_int_equal(daemon_stats_now(&daemon_, "spill_blocks"), 0);
	assert_true(daemon_stats_get("dropped_blocks") > 100);
	assert_int_equal(daemon_stats_get("dropped_blocks") + daemon_stats_get("blocks"), 8 * 32);
	assert_int_equal(ctl("plan", out, sizeof(out)), 0);
	assert_non_null(
		strstr(out, "when memory is short, a block is given up: from NVMe it takes"));
	assert_non_null(strstr(out, "from memory: left where it is"));
	key = engine_key(&e, 7, 0);
	explain(&key, "", out, sizeof(out));
	assert_non_null(strstr(out, "when memory is short, one like it is given up"));
	assert_ok(skvc_namespace_prefill(e.session, e.ns, 1));
	for (uint64_t chain = 100; chain < 108; chain++) {
		const uint64_t until = private_daemon_now_ns() + 20000000000ull * E2E_SLOW;

		while (engine_store(&e, chain, 0, 32, &c) == -EAGAIN)
			assert_true(private_daemon_now_ns() < until);
	}
	assert_true(daemon_stats_now(&daemon_, "spill_blocks") > 100);
	is_promoted(&e);
	assert_int_equal(ctl("plan", out, sizeof(out)), 0);
	assert_non_null(strstr(out, "when memory is short, a block is written to NVMe"));
	assert_non_null(strstr(out, "from memory: read when it is asked for"));
	engine_close(&e);
	assert_ok(private_daemon_stop(&daemon_));
	daemon_ = first;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_who_computes_faster_finds_nothing),
		cmocka_unit_test(test_bad_rates),
		cmocka_unit_test(test_the_numbers_are_shown),
		cmocka_unit_test(test_a_block_is_explained),
		cmocka_unit_test(test_a_rate_survives_the_daemon),
		cmocka_unit_test(test_what_is_computed_sooner_is_not_written),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
