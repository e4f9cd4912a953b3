/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_daemon_death.c - kill -9 of the daemon with jobs in flight: each completes with -EPIPE within 100 ms,
 * the arena stays readable and writable, and after a restart the same session goes on.
 */
#include "tests/lib/e2e.h"

#include <signal.h>
#include <sys/wait.h>

#define NOTICE_MS_MAX (100u * E2E_SLOW)

static struct private_daemon daemon_;

static int stop(void **state)
{
	(void)state;
	return private_daemon_stop(&daemon_);
}

/* kill() only sends the signal: all threads have stopped when waitpid() says so. */
static void freeze(void)
{
	assert_int_equal(kill(daemon_.pid, SIGSTOP), 0);
	assert_int_equal(waitpid(daemon_.pid, NULL, WUNTRACED), daemon_.pid);
}

/* Jobs that cannot end before the daemon does: it is stopped when they are submitted. */
static unsigned submit_all_kinds(struct engine *e, uint64_t lease, uint64_t *jobs, uint64_t *bitmap)
{
	struct skvc_key key = engine_key(e, 1, 0);
	unsigned n = 0;

	assert_ok(engine_submit_store(e, 50, 0, 8, &jobs[n++]));
	assert_ok(engine_submit_load(e, lease, 0, 8, bitmap, &jobs[n++]));
	assert_ok(engine_submit_lookup(e, 1, 8, &jobs[n++]));
	assert_ok(skvc_touch(e->session, e->ns, &key, 1, &jobs[n++]));
	assert_ok(skvc_nop(e->session, &jobs[n++]));
	return n;
}

static void open_engine(struct engine *e)
{
	struct engine_options o = { .seed = 3, .model = "restart" };

	assert_ok(engine_open(e, daemon_.socket, &o));
}

static void check_all_are_epipe(struct engine *e, const uint64_t *jobs, unsigned n)
{
	struct skvc_completion c;

	for (unsigned i = 0; i < n; i++) {
		assert_ok(skvc_result(e->session, jobs[i], &c));
		assert_res(c.res, -EPIPE);
		assert_res(skvc_result(e->session, jobs[i], &c), -ESTALE);
	}
	assert_int_equal(skvc_pending(e->session), 0);
}

static void check_unusable_but_harmless(struct engine *e)
{
	struct skvc_key key = engine_key(e, 1, 0);
	uint64_t job;
	uint8_t *data = malloc(e->data.block_bytes);

	assert_non_null(data);
	assert_res(skvc_nop(e->session, &job), -EPIPE);
	assert_res(engine_submit_store(e, 1, 0, 1, &job), -EPIPE);
	assert_res(skvc_get(e->session, e->ns, &key, data, e->data.block_bytes), -EPIPE);
	assert_res(skvc_put(e->session, e->ns, &key, data, e->data.block_bytes), -EPIPE);
	free(data);
	/* The arena belongs to the engine as long as it wants. */
	memset(e->pages, 0x42, e->blocks * e->data.block_bytes);
}

static void kill_restart_go_on(int stopped_first)
{
	struct skvc_completion c;
	uint64_t jobs[8], bitmap[ENGINE_BLOCKS_MAX / 64], start;
	struct engine e;
	unsigned n, ms;

	assert_ok(private_daemon_start(&daemon_, 0, NULL));
	open_engine(&e);
	assert_ok(engine_store(&e, 1, 0, 8, &c));
	assert_ok(engine_lookup(&e, 1, 8, &c));
	if (stopped_first)
		freeze();
	n = submit_all_kinds(&e, c.lease, jobs, bitmap);
	if (!stopped_first)
		n = 0; /* they may be done: then only what comes after counts */
	private_daemon_kill(&daemon_, SIGKILL);
	start = private_daemon_now_ns();
	if (n) {
		assert_res(skvc_wait(e.session, jobs, n, 5000000000ull), -EPIPE);
	} else {
		uint64_t until = start + 5000000000ull;
		int r = 0;

		while (r >= 0 && private_daemon_now_ns() < until)
			r = skvc_poll(e.session, &c, 1);
		assert_res(r, -EPIPE);
	}
	ms = (unsigned)((private_daemon_now_ns() - start) / 1000000);
	print_message("noticed after %u ms\n", ms);
	assert_true(ms <= NOTICE_MS_MAX);
	if (n)
		check_all_are_epipe(&e, jobs, n);
	check_unusable_but_harmless(&e);
	assert_true(skvc_reconnect(e.session) < 0); /* nobody there yet; not the end */
	assert_ok(private_daemon_restart(&daemon_, 0, NULL));
	assert_ok(skvc_reconnect(e.session));
	assert_ptr_equal(skvc_arena_ptr(e.arena), e.pages);
	for (size_t i = 0; i < e.blocks * e.data.block_bytes; i++)
		assert_int_equal(e.pages[i], 0x42); /* contents are kept */
	assert_int_equal(engine_fetch(&e, 1, 8), 0);
	assert_ok(engine_store(&e, 1, 0, 8, &c));
	assert_int_equal(engine_fetch(&e, 1, 8), 8);
	engine_close(&e);
}

static void test_with_jobs_pending(void **state)
{
	(void)state;
	kill_restart_go_on(1);
}

static void test_while_busy(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		kill_restart_go_on(0);
		assert_ok(private_daemon_stop(&daemon_));
	}
}

/* A client that sleeps in skvc_wait without spinning is woken by the death, too. */
static void test_sleeping_client(void **state)
{
	struct engine_options o = { .seed = 3, .model = "restart", .spin_ns = 1 };
	uint64_t job, start;
	struct engine e;
	unsigned ms;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, 0, NULL));
	assert_ok(engine_open(&e, daemon_.socket, &o));
	freeze();
	assert_ok(engine_submit_store(&e, 1, 0, 8, &job));
	assert_res(skvc_wait(e.session, &job, 1, 20000000), -ETIME);
	private_daemon_kill(&daemon_, SIGKILL);
	start = private_daemon_now_ns();
	assert_res(skvc_wait(e.session, &job, 1, 5000000000ull), -EPIPE);
	ms = (unsigned)((private_daemon_now_ns() - start) / 1000000);
	print_message("noticed after %u ms\n", ms);
	assert_true(ms <= NOTICE_MS_MAX);
	engine_close(&e);
}

/* SIGTERM: running work ends, pending jobs are told, the exit status is 0 (checked by stop). */
static void test_orderly_stop(void **state)
{
	struct skvc_completion c;
	struct engine e;
	uint64_t job;
	int r;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, 64u << 20, NULL));
	open_engine(&e);
	assert_ok(engine_store(&e, 1, 0, 16, &c));
	assert_ok(engine_submit_store(&e, 2, 0, 16, &job));
	assert_ok(private_daemon_stop(&daemon_));
	r = skvc_wait(e.session, &job, 1, 5000000000ull);
	assert_true(r == 0 || r == -EPIPE);
	assert_ok(skvc_result(e.session, job, &c));
	assert_true(c.res == 0 || c.res == -EPIPE || c.res == -ECANCELED);
	engine_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_with_jobs_pending, stop),
		cmocka_unit_test_teardown(test_while_busy, stop),
		cmocka_unit_test_teardown(test_sleeping_client, stop),
		cmocka_unit_test_teardown(test_orderly_stop, stop),
	};

	return cmocka_run_group_tests_name("daemon-death", tests, NULL, NULL);
}
