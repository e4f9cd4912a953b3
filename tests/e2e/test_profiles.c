/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_profiles.c - a daemon left to itself: it samples a new namespace, fits maps from layer to layer, codes
 * what it has again, writes that to NVMe, and gives every block back exact.  And it stops when it is told
 * to, whatever it is fitting.
 */
#include "tests/lib/e2e.h"

#define TIER_BYTES (96u << 20)
#define CHAINS 6u
#define CHAIN_BLOCKS 20u
#define ALL (CHAINS * CHAIN_BLOCKS)
#define PUSH_BLOCKS 32u
#define WAIT_MS (60000u * E2E_SLOW)

static struct private_daemon daemon_;

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

static void at_least(const char *name, uint64_t want)
{
	uint64_t until = private_daemon_now_ns() + WAIT_MS * 1000000ull;

	while (daemon_stats_now(&daemon_, name) < want) {
		if (private_daemon_now_ns() > until)
			fail_msg("%s is %llu, not %llu", name,
				 (unsigned long long)daemon_stats_now(&daemon_, name),
				 (unsigned long long)want);
		private_daemon_sleep_ms(10);
	}
}

/* What skvcctl says of profiles has all of these in it. */
static void profiles_say(const char *const *words)
{
	char command[512], text[16384];
	FILE *f;
	size_t n;

	(void)snprintf(command, sizeof(command), "%s --bus %s profiles && %s --bus %s -j profiles",
		       private_daemon_program("skvcctl"), daemon_.bus,
		       private_daemon_program("skvcctl"), daemon_.bus);
	f = popen(command, "r");
	assert_non_null(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	assert_int_equal(pclose(f), 0);
	for (; *words; words++)
		if (!strstr(text, *words))
			fail_msg("'%s' is not in:\n%s", *words, text);
}

static void test_to_nvme_and_back(void **state)
{
	static const char *const overrides[] = { "codec.fit_tokens=128,1024",
						 "profile.priority=normal",
						 "profile.previous=1",
						 "host.spill_percent=1",
						 "codec.plan=no", /* whether or not it pays here */
						 NULL };
	static const char *const first[] = { "no profile yet", "sampling", NULL };
	static const char *const last[] = { "layer, looks back 1",	  "in-use",
					    "\"speculator\":\t\"layer\"", "\"previous\":\t1",
					    "bits a scalar expected",	  NULL };
	struct engine_options o = { .seed = 3,
				    .model = "layers",
				    .layers = 4,
				    .head_dim = 32,
				    .blocks = CHAIN_BLOCKS,
				    .follows = 1 };
	struct engine_options push = {
		.seed = 4, .model = "push", .layers = 16, .heads = 4, .blocks = PUSH_BLOCKS
	};
	struct skvc_completion c;
	struct engine e, p;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, overrides));
	assert_ok(engine_open(&e, daemon_.socket, &o));
	profiles_say(first);
	for (uint64_t chain = 0; chain < CHAINS; chain++) {
		assert_ok(engine_store(&e, chain, 0, CHAIN_BLOCKS, &c));
		at_least("profiles_fitted", 1);
	}
	at_least("profiles_layer", 1);
	for (uint64_t chain = CHAINS; chain < 2 * CHAINS; chain++)
		assert_ok(engine_store(&e, chain, 0, CHAIN_BLOCKS, &c));
	at_least("layer_blocks", ALL);
	at_least("blocks_nvme", 2 * ALL);
	profiles_say(last);
	assert_int_equal(daemon_stats_now(&daemon_, "recode_failed"), 0);
	/* Others push them out of host memory. */
	assert_ok(engine_open(&p, daemon_.socket, &push));
	for (uint64_t chain = 0; chain < 4; chain++)
		assert_ok(engine_store(&p, chain, 0, PUSH_BLOCKS, &c));
	for (uint64_t chain = 0; chain < 2 * CHAINS; chain++)
		assert_int_equal(engine_fetch(&e, chain, CHAIN_BLOCKS), CHAIN_BLOCKS);
	assert_true(daemon_stats_now(&daemon_, "fetch_blocks") > 0);
	assert_int_equal(daemon_stats_now(&daemon_, "checksum_failures"), 0);
	engine_close(&p);
	engine_close(&e);
}

/* Nobody waits for the end of a fit: it is told to stop.  (The stop is in the teardown, within its 10 s.) */
static void test_stop_while_fitting(void **state)
{
	static const char *const overrides[] = { "codec.fit_tokens=512", "profile.priority=low",
						 "profile.previous=6", NULL };
	struct engine_options o = { .seed = 5,
				    .model = "wide",
				    .layers = 8,
				    .heads = 8,
				    .head_dim = 64,
				    .blocks = 40,
				    .follows = 1 };
	struct skvc_completion c;
	struct engine e;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, 0, overrides));
	assert_ok(engine_open(&e, daemon_.socket, &o));
	assert_ok(engine_store(&e, 1, 0, 40, &c));
	at_least("profiles_fitted", 1);
	private_daemon_sleep_ms(200);
	engine_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_to_nvme_and_back, stop),
		cmocka_unit_test_teardown(test_stop_while_fitting, stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
