/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_client_session.c - opening and closing against daemons that are absent, foreign, silent or broken;
 * registrations; fork; a session handed from thread to thread.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/client_rig.h"

static void opens_and_closes(void **state)
{
	struct skvc_options options = { .name = "engine 1", .sq_entries = 8, .args_bytes = 100000 };
	unsigned fds = rig_open_fds();
	struct rig rig;

	(void)state;
	rig_init(&rig, &options);
	assert_string_equal(skvc_last_error(rig.session), "");
	assert_int_equal(skvc_arena_bytes(rig.arena) % 4096, 0);
	assert_int_equal((uintptr_t)skvc_arena_ptr(rig.arena) % 4096, 0);
	assert_int_equal(skvc_pending(rig.session), 0);
	assert_null(skvc_close(rig.session));
	assert_int_equal(fake_daemon_byes(rig.daemon), 1);
	rig.daemon = fake_daemon_free(rig.daemon);
	assert_int_equal(rig_open_fds(), fds);
	assert_null(skvc_close(NULL));
	assert_null(skvc_arena_free(NULL));
	assert_null(skvc_arena_ptr(NULL));
	assert_int_equal(skvc_poll(NULL, NULL, 0), -EINVAL);
	assert_string_equal(skvc_version(), "0.1.0");
}

static void refuses_bad_options(void **state)
{
	const struct skvc_options bad[] = {
		{ .role = 2 },
		{ .sq_entries = 7 },
		{ .sq_entries = 4 },
		{ .sq_entries = 100 },
		{ .sq_entries = 8192 },
		{ .args_bytes = 1000 },
		{ .args_bytes = 1u << 30 },
		{ .name = "0123456789012345678901234567890123456789012345678901234567890123" },
	};
	struct fake_daemon *d = fake_daemon_new();
	struct skvc_session *s = (struct skvc_session *)state;
	char path[200];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(skvc_open(fake_daemon_path(d), &bad[i], &s), -EINVAL);
	memset(path, 'x', sizeof(path));
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(skvc_open(path, NULL, &s), -EINVAL);
	assert_int_equal(skvc_open(fake_daemon_path(d), NULL, NULL), -EINVAL);
	assert_ptr_equal(s, state); /* untouched on failure */
	/* The daemon, not the library, refuses a name that would upset a terminal. */
	assert_int_equal(
		skvc_open(fake_daemon_path(d), &(struct skvc_options){ .name = "\x1b[2J" }, &s),
		-ECONNREFUSED);
	assert_int_equal(fake_daemon_bad_entries(d), 1);
	(void)fake_daemon_free(d);
}

static void says_when_there_is_no_daemon(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct skvc_session *s = NULL;
	char dir[] = "/tmp/skvc-test-XXXXXX";
	int sock;

	(void)state;
	assert_non_null(mkdtemp(dir));
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/sock", dir);
	assert_int_equal(skvc_open(addr.sun_path, NULL, &s), -ENOENT);
	sock = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	assert_int_equal(bind(sock, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(skvc_open(addr.sun_path, NULL, &s), -ECONNREFUSED);
	/* Nobody accepts and the backlog is full: a bounded wait. */
	assert_int_equal(listen(sock, 0), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(skvc_open(addr.sun_path,
					   &(struct skvc_options){ .connect_timeout_ns = 30000000 },
					   &s),
				 -ETIMEDOUT);
	assert_null(s);
	(void)close(sock);
	(void)unlink(addr.sun_path);
	(void)rmdir(dir);
}

static void takes_the_path_from_the_environment(void **state)
{
	struct fake_daemon *d = fake_daemon_new();
	struct skvc_session *s;

	(void)state;
	assert_int_equal(setenv("SKVC_SOCKET", fake_daemon_path(d), 1), 0);
	assert_int_equal(skvc_open(NULL, NULL, &s), 0);
	s = skvc_close(s);
	assert_int_equal(skvc_open("/nonexistent/skvc", NULL, &s), -ENOENT); /* a path wins */
	assert_int_equal(unsetenv("SKVC_SOCKET"), 0);
	(void)fake_daemon_free(d);
}

static char seen_line[512];

static void see_line(void *user, const char *line)
{
	(void)user;
	(void)snprintf(seen_line, sizeof(seen_line), "%s", line);
}

struct hello_case {
	enum fake_fault fault;
	int res;
	const char *says;
};

static void survives_every_bad_welcome(void **state)
{
	static const struct hello_case cases[] = {
		{ FAKE_HELLO_SILENT, -ETIMEDOUT, "does not answer" },
		{ FAKE_HELLO_HANGUP, -ECONNREFUSED, "closed the connection" },
		{ FAKE_HELLO_USERS, -EUSERS, "no more sessions" },
		{ FAKE_HELLO_MAJOR, -EPROTO, "daemon speaks protocol 2.2" },
		{ FAKE_HELLO_CLIENT_TOO_OLD, -EPROTO, "accepts 1.3" },
		{ FAKE_HELLO_SEQ, -EPROTO, "malformed" },
		{ FAKE_HELLO_SHORT, -EPROTO, "malformed" },
		{ FAKE_HELLO_FDS, -EPROTO, "2 descriptors, not 3" },
		{ FAKE_HELLO_FDS_MANY, -EPROTO, "4 descriptors, not 3" },
		{ FAKE_HELLO_UNSEALED, -EPROTO, "not sealed" },
		{ FAKE_HELLO_SMALL, -EPROTO, "not sealed" },
		{ FAKE_HELLO_OVERLAP, -EPROTO, "impossible header" },
		{ FAKE_HELLO_NOT_MEMFD, -EPROTO, "not sealed" },
		{ FAKE_HELLO_SOCKET, -EPROTO, "no eventfd" },
		{ FAKE_CTL_LAST_WORDS, -ECONNREFUSED, "last words" },
	};
	struct rig rig;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct skvc_options options = { .log = see_line };
		struct skvc_session *s = NULL;
		unsigned fds = rig_open_fds();
		int r;

		rig_init(&rig, NULL);
		(void)skvc_close(rig.session);
		fake_daemon_fault(rig.daemon, cases[i].fault);
		options.connect_timeout_ns = cases[i].res == -ETIMEDOUT ? 50000000 : 5000000000ull;
		seen_line[0] = '\0';
		r = skvc_open(fake_daemon_path(rig.daemon), &options, &s);
		if (r != cases[i].res || !strstr(seen_line, cases[i].says))
			fail_msg("case %zu: %d instead of %d: %s", i, r, cases[i].res, seen_line);
		assert_null(s);
		(void)fake_daemon_free(rig.daemon);
		assert_int_equal(rig_open_fds(), fds);
	}
}

static void says_why_it_did_not_open(void **state)
{
	const struct skvc_options options = { .log = see_line };
	struct fake_daemon *d = fake_daemon_new();
	struct skvc_session *s;

	(void)state;
	fake_daemon_fault(d, FAKE_HELLO_MAJOR);
	assert_int_equal(skvc_open(fake_daemon_path(d), &options, &s), -EPROTO);
	assert_non_null(strstr(seen_line, "speaks protocol 2.2"));
	assert_non_null(strstr(seen_line, "speaks 1.2"));
	fake_daemon_fault(d, FAKE_HELLO_USERS);
	assert_int_equal(skvc_open(fake_daemon_path(d), &options, &s), -EUSERS);
	assert_non_null(strstr(seen_line, "no more sessions (sessions-full)"));
	(void)fake_daemon_free(d);
}

static void names_the_wrong_field_of_a_geometry(void **state)
{
	struct skvc_segment segment = { .heads = 2, .head_dim = 8, .dtype = SKVC_DTYPE_BF16 };
	const struct skvc_geometry good = {
		.model = "m", .block_tokens = 16, .segments_count = 1, .segments = &segment
	};
	struct skvc_geometry g;
	uint32_t ns = 77;
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	g = good;
	g.model = "";
	assert_int_equal(skvc_namespace_open(rig.session, &g, &ns), -EINVAL);
	assert_non_null(strstr(skvc_last_error(rig.session), "model"));
	g = good;
	g.block_tokens = 1025;
	assert_int_equal(skvc_namespace_open(rig.session, &g, &ns), -EINVAL);
	assert_non_null(strstr(skvc_last_error(rig.session), "block_tokens 1025"));
	g = good;
	g.segments_count = 0;
	assert_int_equal(skvc_namespace_open(rig.session, &g, &ns), -EINVAL);
	g = good;
	g.salt_bytes = 4;
	assert_int_equal(skvc_namespace_open(rig.session, &g, &ns), -EINVAL);
	assert_non_null(strstr(skvc_last_error(rig.session), "salt"));
	segment.heads = 65535;
	segment.head_dim = 2;
	assert_int_equal(skvc_namespace_open(rig.session, &good, &ns), -EINVAL);
	assert_non_null(strstr(skvc_last_error(rig.session), "segment 0"));
	assert_int_equal(skvc_namespace_open(rig.session, NULL, &ns), -EINVAL);
	assert_int_equal(ns, 77);
	segment.heads = 1;
	assert_int_equal(skvc_namespace_open(rig.session, &good, &ns), 0);
	assert_int_equal(ns, 2);
	rig_deinit(&rig);
}

static void registers_and_forgets_memory(void **state)
{
	uint32_t region, other, ns;
	struct skvc_arena *arena;
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	assert_int_equal(skvc_arena_new(rig.session, 1, &arena), 0);
	assert_int_equal(skvc_arena_bytes(arena), 4096);
	assert_int_equal(skvc_register_host(rig.session, rig.ns, arena, 0, 2, NULL, &region), 0);
	assert_int_equal(skvc_register_host(rig.session, rig.ns, arena, 4096, 1, NULL, &other),
			 -ERANGE);
	assert_int_equal(skvc_register_host(rig.session, 9, arena, 0, 1, NULL, &other), -EINVAL);
	assert_int_equal(skvc_register_host(rig.session, rig.ns, arena, 0, 0, NULL, &other),
			 -EINVAL);
	assert_int_equal(skvc_register_host(rig.session, rig.ns, NULL, 0, 1, NULL, &other),
			 -EINVAL);
	assert_int_equal(fake_daemon_regions(rig.daemon), 2);
	assert_int_equal(skvc_unregister(rig.session, region), 0);
	assert_int_equal(fake_daemon_regions(rig.daemon), 1);
	assert_int_equal(skvc_unregister(rig.session, region), -ESTALE);
	assert_int_equal(skvc_register_host(rig.session, rig.ns, arena, 0, 1, NULL, &other), 0);
	assert_int_not_equal(other, region); /* the same slot under another generation */
	assert_int_equal(fake_daemon_arenas(rig.daemon), 2);
	assert_null(skvc_arena_free(arena)); /* takes its region along */
	assert_int_equal(fake_daemon_arenas(rig.daemon), 1);
	assert_int_equal(fake_daemon_regions(rig.daemon), 1);
	assert_int_equal(skvc_unregister(rig.session, other), -ESTALE);
	assert_int_equal(skvc_arena_new(rig.session, 2ull << 30, &arena), -EDQUOT);
	assert_int_equal(skvc_arena_new(rig.session, 0, &arena), -EINVAL);
	assert_int_equal(skvc_arena_new(rig.session, UINT64_MAX, &arena), -EINVAL);
	while (!rig_namespace(rig.session, "more", &ns))
		;
	assert_non_null(strstr(skvc_last_error(rig.session), "too many namespaces"));
	rig_deinit(&rig);
}

static void a_broken_answer_ends_the_session(void **state)
{
	static const enum fake_fault faults[] = { FAKE_CTL_HANGUP, FAKE_CTL_LAST_WORDS,
						  FAKE_ARENA_UNSEALED };
	struct skvc_arena *arena = NULL;
	struct rig rig;
	uint64_t job;
	uint32_t ns;

	(void)state;
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		rig_init(&rig, NULL);
		fake_daemon_fault(rig.daemon, faults[i]);
		assert_int_equal(skvc_arena_new(rig.session, 4096, &arena), -EPIPE);
		assert_null(arena);
		assert_int_equal(skvc_nop(rig.session, &job), -EPIPE);
		assert_int_equal(skvc_poll(rig.session, NULL, 0), -EPIPE);
		rig_deinit(&rig);
	}
	rig_init(&rig, NULL);
	fake_daemon_fault(rig.daemon, FAKE_NS_BYTES);
	assert_int_equal(rig_namespace(rig.session, "other", &ns), -EPIPE);
	assert_int_equal(skvc_nop(rig.session, &job), -EPIPE);
	rig_deinit(&rig);
}

/* In the child: every call refuses, nothing touches the parent's session, closing frees. */
static int child_checks(struct rig *rig, uint64_t job)
{
	const struct skvc_key key = rig_key(0);
	struct skvc_completion done;
	struct skvc_lease_status status;
	uint8_t data[RIG_BLOCK_BYTES];
	uint32_t handle;
	uint64_t other;
	int bad = 0;

	bad += skvc_nop(rig->session, &other) != -EOWNERDEAD;
	bad += skvc_poll(rig->session, &done, 1) != -EOWNERDEAD;
	bad += skvc_wait(rig->session, &job, 1, 0) != -EOWNERDEAD;
	bad += skvc_result(rig->session, job, &done) != -EOWNERDEAD;
	bad += skvc_abort(rig->session, job) != -EOWNERDEAD;
	bad += skvc_arm(rig->session) != -EOWNERDEAD;
	bad += skvc_event_fd(rig->session) != -EOWNERDEAD;
	bad += skvc_reconnect(rig->session) != -EOWNERDEAD;
	bad += skvc_lease_poll(rig->session, 1, &status) != -EOWNERDEAD;
	bad += skvc_release(rig->session, 1, &other) != -EOWNERDEAD;
	bad += skvc_touch(rig->session, rig->ns, &key, 1, &other) != -EOWNERDEAD;
	bad += skvc_put(rig->session, rig->ns, &key, data, sizeof(data)) != -EOWNERDEAD;
	bad += skvc_get(rig->session, rig->ns, &key, data, sizeof(data)) != -EOWNERDEAD;
	bad += skvc_unregister(rig->session, rig->region) != -EOWNERDEAD;
	bad += rig_namespace(rig->session, "child", &handle) != -EOWNERDEAD;
	bad += skvc_pending(rig->session) != 0;
	bad += skvc_arena_free(rig->arena) != NULL;
	bad += memchr(rig_page(rig, 0), 0, 1) == (void *)1; /* the arena is still there to read */
	bad += skvc_close(rig->session) != NULL;
	return bad;
}

static void a_forked_child_has_no_session(void **state)
{
	struct rig rig;
	uint64_t job;
	int status;
	pid_t pid;

	(void)state;
	rig_init(&rig, NULL);
	job = rig_nop(&rig);
	pid = fork();
	if (!pid)
		_exit(child_checks(&rig, job));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_int_equal(rig_finish(&rig, job).res, 0); /* the parent goes on */
	assert_int_equal(fake_daemon_byes(rig.daemon), 0);
	rig_store(&rig, 4);
	rig_deinit(&rig);
}

struct baton {
	pthread_mutex_t lock;
	struct rig *rig;
	unsigned failures;
};

static void *use_by_turns(void *user)
{
	struct baton *baton = user;

	for (int i = 0; i < 500; i++) {
		struct skvc_completion done;
		uint64_t job;

		(void)pthread_mutex_lock(&baton->lock);
		if (skvc_nop(baton->rig->session, &job) ||
		    skvc_wait(baton->rig->session, &job, 1, SKVC_WAIT_FOREVER) ||
		    skvc_result(baton->rig->session, job, &done) || done.res)
			baton->failures++;
		(void)pthread_mutex_unlock(&baton->lock);
	}
	return NULL;
}

static void threads_hand_a_session_over(void **state)
{
	const struct skvc_options options = { .sq_entries = 8, .spin_ns = 20000 };
	struct baton baton = { .lock = PTHREAD_MUTEX_INITIALIZER };
	pthread_t threads[2];
	struct rig rig;

	(void)state;
	rig_init(&rig, &options);
	baton.rig = &rig;
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, use_by_turns, &baton), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	assert_int_equal(baton.failures, 0);
	assert_int_equal(skvc_pending(rig.session), 0);
	rig_deinit(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(opens_and_closes),
		cmocka_unit_test(refuses_bad_options),
		cmocka_unit_test(says_when_there_is_no_daemon),
		cmocka_unit_test(takes_the_path_from_the_environment),
		cmocka_unit_test(survives_every_bad_welcome),
		cmocka_unit_test(says_why_it_did_not_open),
		cmocka_unit_test(names_the_wrong_field_of_a_geometry),
		cmocka_unit_test(registers_and_forgets_memory),
		cmocka_unit_test(a_broken_answer_ends_the_session),
		cmocka_unit_test(a_forked_child_has_no_session),
		cmocka_unit_test(threads_hand_a_session_over),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
