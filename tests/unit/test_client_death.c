/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_client_death.c - the daemon dies in every state the client can be in; and the way back.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/client_rig.h"

#define SECOND_NS 1000000000ull
/* The promise is 100 ms; sanitizers on a busy machine get more. */
#ifdef SKVCD_SAN
#define NOTICED_NS SECOND_NS
#else
#define NOTICED_NS 100000000ull
#endif

#define JOBS 12

struct killer {
	struct rig *rig;
	uint64_t killed_ns;
	unsigned delay_us;
};

static void *kill_later(void *user)
{
	struct killer *k = user;

	usleep(k->delay_us);
	k->killed_ns = rig_now_ns();
	fake_daemon_kill(k->rig->daemon);
	return NULL;
}

static uint64_t bitmaps[JOBS];

/* JOBS held nops and stores, half of each. */
static void submit_held(struct rig *rig, uint64_t *jobs)
{
	const uint32_t block = 0;
	const struct skvc_key key = rig_key(77);
	struct skvc_store store = {
		.ns = rig->ns, .region = rig->region, .count = 1, .keys = &key, .blocks = &block
	};

	fake_daemon_hold(rig->daemon, true);
	for (int i = 0; i < JOBS; i++) {
		bitmaps[i] = i % 2 ? UINT64_MAX : 0;
		store.ret_bitmap = &bitmaps[i];
		if (i % 2)
			assert_int_equal(skvc_store(rig->session, &store, &jobs[i]), 0);
		else
			jobs[i] = rig_nop(rig);
	}
}

/* Each of jobs[] exactly one DONE with -EPIPE, then -EPIPE for ever. */
static void take_broken(struct rig *rig, const uint64_t *jobs, unsigned count)
{
	struct skvc_completion c[2 * JOBS];
	unsigned seen[JOBS] = { 0 };
	uint64_t job;
	int n;

	assert_int_equal(skvc_pending(rig->session), count);
	n = skvc_poll(rig->session, c, 2 * JOBS);
	assert_int_equal(n, count ? (int)count : -EPIPE);
	for (int i = 0; i < n; i++) {
		assert_int_equal(c[i].res, -EPIPE);
		assert_int_equal(c[i].event, SKVC_EVENT_DONE);
		assert_string_equal(skvc_reason_name(c[i].reason), "daemon-gone");
		for (unsigned k = 0; k < count; k++)
			seen[k] += jobs[k] == c[i].job;
	}
	for (unsigned k = 0; k < count; k++)
		assert_int_equal(seen[k], 1);
	for (unsigned k = 0; k < JOBS; k++)
		assert_true(bitmaps[k] == 0); /* nothing is claimed */
	for (int i = 0; i < 3; i++)
		assert_int_equal(skvc_poll(rig->session, c, 1), -EPIPE);
	assert_int_equal(skvc_nop(rig->session, &job), -EPIPE);
	assert_int_equal(skvc_pending(rig->session), 0);
}

static void while_idle(void **state)
{
	struct skvc_completion c;
	uint64_t start_ns;
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	fake_daemon_kill(rig.daemon);
	start_ns = rig_now_ns();
	while (!skvc_poll(rig.session, &c, 1))
		assert_true(rig_now_ns() - start_ns < NOTICED_NS);
	take_broken(&rig, NULL, 0);
	rig_deinit(&rig);
}

static void while_it_is_polled(void **state)
{
	struct skvc_completion c;
	uint64_t start_ns, jobs[JOBS];
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	submit_held(&rig, jobs);
	assert_int_equal(skvc_poll(rig.session, &c, 1), 0);
	fake_daemon_kill(rig.daemon);
	start_ns = rig_now_ns();
	while (!skvc_poll(rig.session, NULL, 0) && rig_now_ns() - start_ns < NOTICED_NS &&
	       skvc_result(rig.session, jobs[0], &c) == -EINPROGRESS)
		;
	assert_true(rig_now_ns() - start_ns < NOTICED_NS);
	assert_int_equal(c.res, -EPIPE);
	take_broken(&rig, jobs + 1, JOBS - 1);
	rig_deinit(&rig);
}

static void while_it_is_waited_for(void **state)
{
	const uint64_t spins[] = { 1, UINT64_MAX };

	(void)state;
	for (int i = 0; i < 2; i++) {
		const struct skvc_options options = { .spin_ns = spins[i] };
		struct killer killer = { .delay_us = 20000 };
		uint64_t jobs[JOBS];
		pthread_t thread;
		struct rig rig;

		rig_init(&rig, &options);
		submit_held(&rig, jobs);
		killer.rig = &rig;
		assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
		assert_int_equal(skvc_wait(rig.session, jobs, JOBS, SKVC_WAIT_FOREVER), -EPIPE);
		assert_int_equal(pthread_join(thread, NULL), 0);
		assert_true(rig_now_ns() - killer.killed_ns < NOTICED_NS);
		assert_int_equal(skvc_wait(rig.session, jobs, JOBS, 0), -EPIPE);
		assert_int_equal(skvc_abort(rig.session, jobs[0]), -EPIPE);
		take_broken(&rig, jobs, JOBS);
		rig_deinit(&rig);
	}
}

static void while_an_event_loop_sleeps(void **state)
{
	uint64_t jobs[JOBS], start_ns;
	struct pollfd p = { .events = POLLIN };
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	submit_held(&rig, jobs);
	p.fd = skvc_event_fd(rig.session);
	assert_int_equal(skvc_arm(rig.session), 1);
	fake_daemon_kill(rig.daemon);
	start_ns = rig_now_ns();
	assert_int_equal(poll(&p, 1, 5000), 1);
	assert_int_equal(skvc_arm(rig.session), 0);
	assert_true(rig_now_ns() - start_ns < NOTICED_NS);
	take_broken(&rig, jobs, JOBS);
	assert_int_equal(skvc_arm(rig.session), -EPIPE);
	rig_deinit(&rig);
}

static void with_results_not_taken_yet(void **state)
{
	struct skvc_completion c;
	uint64_t jobs[JOBS], kept, unread;
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	kept = rig_nop(&rig);
	assert_int_equal(skvc_wait(rig.session, &kept, 1, SECOND_NS), 0);
	unread = rig_nop(&rig); /* published, and never looked at before the daemon dies */
	while (fake_daemon_taken(rig.daemon) < 2)
		;
	usleep(10000);
	submit_held(&rig, jobs);
	fake_daemon_kill(rig.daemon);
	assert_int_equal(skvc_wait(rig.session, jobs, JOBS, SKVC_WAIT_FOREVER), -EPIPE);
	assert_int_equal(skvc_result(rig.session, kept, &c), 0);
	assert_int_equal(c.res, 0);
	assert_int_equal(skvc_result(rig.session, unread, &c), 0);
	assert_int_equal(c.res, 0);
	take_broken(&rig, jobs, JOBS);
	rig_deinit(&rig);
}

static void what_was_published_is_true(void **state)
{
	struct skvc_arena *arena;
	struct skvc_completion c;
	struct rig rig;
	uint64_t job;

	(void)state;
	rig_init(&rig, NULL);
	job = rig_nop(&rig);
	while (fake_daemon_taken(rig.daemon) < 1)
		;
	usleep(20000);
	fake_daemon_kill(rig.daemon);
	/* A call that never looks at the ring finds out first. */
	assert_int_equal(skvc_arena_new(rig.session, 4096, &arena), -EPIPE);
	assert_int_equal(skvc_result(rig.session, job, &c), 0);
	assert_int_equal(c.res, 0);
	rig_deinit(&rig);
}

static void reconnects_before_anybody_noticed(void **state)
{
	struct pollfd p = { .events = POLLIN };
	struct rig rig;
	pid_t child;

	(void)state;
	rig_init(&rig, NULL);
	/* A child keeps the old descriptors open all the time. */
	child = fork();
	if (!child) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* if an assertion below ends the test */
		(void)pause();
		_exit(0);
	}
	assert_int_equal(rig_finish(&rig, rig_nop(&rig)).res, 0);
	fake_daemon_kill(rig.daemon);
	fake_daemon_restart(rig.daemon);
	assert_int_equal(skvc_reconnect(rig.session), 0);
	assert_int_equal(rig_finish(&rig, rig_nop(&rig)).res, 0);
	p.fd = skvc_event_fd(rig.session);
	assert_int_equal(skvc_arm(rig.session), 1);
	assert_int_equal(poll(&p, 1, 20), 0);
	(void)kill(child, SIGKILL);
	assert_int_equal(waitpid(child, NULL, 0), child);
	rig_deinit(&rig);
}

static void during_synchronous_calls(void **state)
{
	const struct skvc_key key = rig_key(5);
	uint8_t data[RIG_BLOCK_BYTES] = { 0 };
	struct killer killer = { .delay_us = 20000 };
	pthread_t thread;
	struct rig rig;
	uint64_t job;
	uint32_t ns;

	(void)state;
	rig_init(&rig, NULL);
	assert_int_equal(skvc_put(rig.session, rig.ns, &key, data, sizeof(data)), 0);
	fake_daemon_hold(rig.daemon, true);
	job = rig_nop(&rig);
	killer.rig = &rig;
	assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
	assert_int_equal(skvc_get(rig.session, rig.ns, &key, data, sizeof(data)), -EPIPE);
	assert_int_equal(pthread_join(thread, NULL), 0);
	take_broken(&rig, &job, 1);
	assert_int_equal(skvc_put(rig.session, rig.ns, &key, data, sizeof(data)), -EPIPE);
	assert_int_equal(rig_namespace(rig.session, "x", &ns), -EPIPE);
	assert_int_equal(skvc_unregister(rig.session, rig.region), 0);
	assert_null(skvc_arena_free(rig.arena));
	rig_deinit(&rig);
}

static void during_an_abort(void **state)
{
	struct killer killer = { .delay_us = 20000 };
	struct skvc_completion c;
	pthread_t thread;
	struct rig rig;
	uint64_t job;

	(void)state;
	rig_init(&rig, NULL);
	fake_daemon_stall(rig.daemon, true);
	job = rig_nop(&rig);
	killer.rig = &rig;
	assert_int_equal(pthread_create(&thread, NULL, kill_later, &killer), 0);
	assert_int_equal(skvc_abort(rig.session, job), -EPIPE);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(skvc_result(rig.session, job, &c), 0);
	assert_int_equal(c.res, -EPIPE);
	rig_deinit(&rig);
}

static void comes_back(void **state)
{
	const uint32_t block = 2;
	const struct skvc_key key = rig_key(500);
	struct skvc_store store = { .count = 1, .keys = &key, .blocks = &block };
	struct skvc_lease_status status;
	uint64_t jobs[JOBS], job, lease;
	uint8_t data[RIG_BLOCK_BYTES];
	struct rig rig;
	void *address;
	unsigned fds;
	int event_fd;

	(void)state;
	rig_init(&rig, NULL);
	rig_store(&rig, 4);
	assert_int_equal(
		skvc_get(rig.session, rig.ns, &(struct skvc_key){ .len = 16 }, data, sizeof(data)),
		-ENOENT); /* makes the hidden arena */
	assert_int_equal(skvc_reconnect(rig.session), -EISCONN);
	lease = rig_lease(&rig, 4);
	address = skvc_arena_ptr(rig.arena);
	event_fd = skvc_event_fd(rig.session);
	fds = rig_open_fds();
	for (int round = 0; round < 3; round++) {
		submit_held(&rig, jobs);
		fake_daemon_kill(rig.daemon);
		assert_int_equal(skvc_wait(rig.session, jobs, JOBS, SECOND_NS), -EPIPE);
		rig_fill(&rig, 2, 4242 + (uint32_t)round); /* the engine still owns its pages */
		assert_int_equal(skvc_reconnect(rig.session), -ECONNREFUSED);
		assert_int_equal(skvc_nop(rig.session, &job), -EPIPE);
		fake_daemon_hold(rig.daemon, false);
		fake_daemon_restart(rig.daemon);
		fake_daemon_fault(rig.daemon, FAKE_ARENA_UNSEALED); /* fails half-way */
		assert_int_equal(skvc_reconnect(rig.session), -EPROTO);
		fake_daemon_fault(rig.daemon, FAKE_NONE);
		assert_int_equal(skvc_reconnect(rig.session), 0);
		assert_ptr_equal(skvc_arena_ptr(rig.arena), address);
		assert_int_equal(skvc_event_fd(rig.session), event_fd);
		assert_true(rig_is_filled(&rig, 2, 4242 + (uint32_t)round));
		assert_int_equal(rig_open_fds(), fds);
		assert_int_equal(fake_daemon_arenas(rig.daemon), 2);
		assert_int_equal(fake_daemon_regions(rig.daemon), 2);
		assert_int_equal(skvc_lease_poll(rig.session, lease, &status), -ESTALE);
		/* The old completions are still there, and the old handles work: the daemon sees the pages. */
		for (int i = 0; i < JOBS; i++) {
			struct skvc_completion c;

			assert_int_equal(skvc_result(rig.session, jobs[i], &c), 0);
			assert_int_equal(c.res, -EPIPE);
		}
		store.ns = rig.ns;
		store.region = rig.region;
		assert_int_equal(skvc_store(rig.session, &store, &job), 0);
		assert_int_equal(rig_finish(&rig, job).res, 0);
		assert_int_equal(skvc_get(rig.session, rig.ns, &key, data, sizeof(data)), 0);
		assert_memory_equal(data, rig_page(&rig, 2), sizeof(data));
		assert_int_equal(skvc_drop(rig.session, rig.ns, &key, 1, &job), 0);
		assert_int_equal(rig_finish(&rig, job).res, 0);
		assert_int_equal(skvc_arm(rig.session), 1); /* and the old socket no longer cries */
		assert_int_equal(poll(&(struct pollfd){ .fd = event_fd, .events = POLLIN }, 1, 0),
				 0);
	}
	rig_deinit(&rig);
}

static void closes_after_death(void **state)
{
	uint64_t jobs[JOBS];
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	submit_held(&rig, jobs);
	fake_daemon_kill(rig.daemon);
	rig_deinit(&rig); /* not noticed before */
	rig_init(&rig, NULL);
	submit_held(&rig, jobs);
	rig_deinit(&rig); /* and with jobs in flight, the daemon alive */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(while_idle),
		cmocka_unit_test(while_it_is_polled),
		cmocka_unit_test(while_it_is_waited_for),
		cmocka_unit_test(while_an_event_loop_sleeps),
		cmocka_unit_test(with_results_not_taken_yet),
		cmocka_unit_test(what_was_published_is_true),
		cmocka_unit_test(reconnects_before_anybody_noticed),
		cmocka_unit_test(during_synchronous_calls),
		cmocka_unit_test(during_an_abort),
		cmocka_unit_test(comes_back),
		cmocka_unit_test(closes_after_death),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
