/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_client_death.c - kill -9 of a client at every stage of its life: within 100 ms the daemon holds
 * nothing of it any more, what was committed stays, and nobody else notices.
 */
#include "tests/lib/e2e.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define RELEASE_MS_MAX (100u * E2E_SLOW)
#define DATA_SEED 7u

enum stage {
	STAGE_CONNECTED,    /* socket only, nothing said */
	STAGE_HALF_MESSAGE, /* a packet that is not a whole HELLO */
	STAGE_SESSION,
	STAGE_NAMESPACE,
	STAGE_ARENA, /* with a registered region */
	STAGE_STORE_SUBMITTED,
	STAGE_SOURCE_FREE,
	STAGE_LEASE,
	STAGE_LOADING,
	STAGE_LOADING_FROM_NVME,
	STAGE_BUSY, /* at a random moment of everything at once */
};

static struct private_daemon daemon_;
static int news[2]; /* the child says: I am there */

static void announce(void)
{
	if (write(news[1], "x", 1) != 1)
		_exit(3);
}

static void say(const void *bytes, size_t n)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", daemon_.socket);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		_exit(4);
	if (n && send(fd, bytes, n, MSG_NOSIGNAL) != (ssize_t)n)
		_exit(5);
}

static void open_or_exit(struct engine *e, uint32_t blocks)
{
	struct engine_options o = {
		.seed = DATA_SEED, .model = "death", .layers = 8, .heads = 4, .blocks = blocks
	};

	if (engine_open(e, daemon_.socket, &o) < 0)
		_exit(6);
}

/* Take completions until one of this kind. */
static void until_event(struct engine *e, uint16_t event)
{
	struct skvc_completion c;

	for (;;) {
		int n = skvc_poll(e->session, &c, 1);

		if (n < 0)
			_exit(7);
		if (n == 1 && c.event == event)
			return;
	}
}

static void busy_for_ever(struct engine *e)
{
	struct skvc_completion c;
	struct rng r;

	rng_init(&r, (uint64_t)getpid());
	announce();
	for (;;) {
		uint32_t count = 1 + rng_below(&r, e->blocks);
		int got;

		(void)engine_store(e, 1000 + rng_below(&r, 20), 0, count, &c);
		got = engine_fetch(e, 1000 + rng_below(&r, 20), count);
		if (got == -EBADMSG)
			_exit(9);
	}
}

static void load_from(struct engine *e, uint64_t chain, uint32_t count)
{
	uint64_t bitmap[ENGINE_BLOCKS_MAX / 64], job;
	struct skvc_completion found;

	if (engine_lookup(e, chain, count, &found) < 0 || found.count != count)
		_exit(8);
	if (engine_submit_load(e, found.lease, 0, count, bitmap, &job) < 0)
		_exit(8);
	announce();
	for (;;)
		(void)pause();
}

static void child(enum stage stage)
{
	struct skvc_completion c;
	struct engine e;
	uint64_t job;

	if (stage <= STAGE_HALF_MESSAGE) {
		say("SVC1abc", stage == STAGE_CONNECTED ? 0 : 7);
	} else if (stage <= STAGE_NAMESPACE) {
		struct skvc_session *session;
		struct skvc_geometry g;
		struct kv_data data;
		uint32_t ns;

		if (skvc_open(daemon_.socket, NULL, &session) < 0)
			_exit(6);
		if (kv_data_init(&data, 1, 2, 2, 64, 16, SKVC_DTYPE_BF16) < 0)
			_exit(6);
		g = kv_data_geometry(&data, "death");
		if (stage == STAGE_NAMESPACE && skvc_namespace_open(session, &g, &ns) < 0)
			_exit(6);
	} else {
		open_or_exit(&e, 64);
		switch (stage) {
		case STAGE_STORE_SUBMITTED:
			if (engine_submit_store(&e, 500, 0, 64, &job) < 0)
				_exit(8);
			break;
		case STAGE_SOURCE_FREE:
			if (engine_submit_store(&e, 501, 0, 64, &job) < 0)
				_exit(8);
			until_event(&e, SKVC_EVENT_SOURCE_FREE);
			break;
		case STAGE_LEASE:
			if (engine_lookup(&e, 1, 32, &c) < 0 || c.count != 32)
				_exit(8);
			break;
		case STAGE_LOADING:
			load_from(&e, 1, 32);
			break;
		case STAGE_LOADING_FROM_NVME:
			load_from(&e, 2, 32);
			break;
		case STAGE_BUSY:
			busy_for_ever(&e);
			break;
		default:
			break;
		}
	}
	announce();
	for (;;)
		(void)pause();
}

static pid_t spawn(enum stage stage)
{
	struct pollfd p = { .fd = news[0], .events = POLLIN };
	pid_t pid;
	char x;

	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		child(stage);
	}
	assert_int_equal(poll(&p, 1, 20000 * (int)E2E_SLOW), 1);
	assert_int_equal(read(news[0], &x, 1), 1);
	return pid;
}

static void kill_and_check(pid_t pid, unsigned already)
{
	int status, ms;

	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail_msg("the client ended by itself: status 0x%x", (unsigned)status);
	ms = daemon_stats_wait(&daemon_, "sessions", already, RELEASE_MS_MAX);
	if (ms < 0)
		private_daemon_print_log(&daemon_);
	assert_true(ms >= 0 && (unsigned)ms <= RELEASE_MS_MAX);
	assert_int_equal(daemon_stats_get("leases"), 0);
	assert_int_equal(daemon_stats_get("jobs"), 0);
	assert_false(private_daemon_died(&daemon_));
	print_message("released after %d ms\n", ms);
}

/* Another engine finds what was committed before, and can store. */
static void life_goes_on(void)
{
	struct engine_options o = {
		.seed = DATA_SEED, .model = "death", .layers = 8, .heads = 4, .blocks = 64
	};
	static uint64_t chain = 100;
	struct skvc_completion c;
	struct engine e;

	assert_ok(engine_open(&e, daemon_.socket, &o));
	assert_int_equal(engine_fetch(&e, 1, 32), 32);
	chain++;
	assert_ok(engine_store(&e, chain, 0, 8, &c));
	assert_int_equal(engine_fetch(&e, chain, 8), 8);
	engine_close(&e);
}

static void die_at(enum stage stage)
{
	kill_and_check(spawn(stage), 0);
	life_goes_on();
}

/* Blocks of chain 1 stay in the pool (touched by each life_goes_on), those of chain 2 go to NVMe. */
static int start(void **state)
{
	/* One user's leases, 320 blocks of the busy ones: more than its half of the pool. */
	static const char *const overrides[] = { "limits.lease_share=100", NULL };
	struct engine_options o = {
		.seed = DATA_SEED, .model = "death", .layers = 8, .heads = 4, .blocks = 64
	};
	struct skvc_completion c;
	struct engine e;
	int r;

	(void)state;
	if (pipe2(news, O_CLOEXEC) < 0)
		return -1;
	r = private_daemon_start(&daemon_, 256u << 20, overrides);
	if (r == 0)
		r = engine_open(&e, daemon_.socket, &o);
	if (r == 0)
		r = engine_store(&e, 2, 0, 32, &c);
	for (uint64_t chain = 10; r == 0 && chain < 14; chain++)
		r = engine_store(&e, chain, 0, 64, &c);
	if (r == 0)
		r = engine_store(&e, 1, 0, 32, &c);
	if (r == 0)
		engine_close(&e);
	return r;
}

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

static void test_connected(void **state)
{
	(void)state;
	die_at(STAGE_CONNECTED);
}

static void test_half_message(void **state)
{
	(void)state;
	die_at(STAGE_HALF_MESSAGE);
}

static void test_after_handshake(void **state)
{
	(void)state;
	die_at(STAGE_SESSION);
}

static void test_after_namespace(void **state)
{
	(void)state;
	die_at(STAGE_NAMESPACE);
}

static void test_after_arena(void **state)
{
	(void)state;
	die_at(STAGE_ARENA);
}

static void test_store_submitted(void **state)
{
	(void)state;
	die_at(STAGE_STORE_SUBMITTED);
}

static void test_after_source_free(void **state)
{
	(void)state;
	die_at(STAGE_SOURCE_FREE);
}

static void test_holding_a_lease(void **state)
{
	(void)state;
	die_at(STAGE_LEASE);
}

static void test_mid_load(void **state)
{
	(void)state;
	die_at(STAGE_LOADING);
}

static void test_mid_load_from_nvme(void **state)
{
	(void)state;
	die_at(STAGE_LOADING_FROM_NVME);
}

static void test_at_any_moment(void **state)
{
	struct rng r;

	(void)state;
	rng_init(&r, rng_seed_env(1));
	for (unsigned i = 0; i < 15; i++) {
		pid_t pid = spawn(STAGE_BUSY);

		private_daemon_sleep_ms(rng_below(&r, 40));
		kill_and_check(pid, 0);
	}
	life_goes_on();
}

/* One dies, the other one is in the middle of its work and must not notice. */
static void test_the_neighbour_does_not_notice(void **state)
{
	struct engine_options o = {
		.seed = DATA_SEED, .model = "death", .layers = 8, .heads = 4, .blocks = 64
	};
	struct engine e;
	pid_t pid[5];

	(void)state;
	for (unsigned i = 0; i < 5; i++)
		pid[i] = spawn(STAGE_BUSY);
	assert_ok(engine_open(&e, daemon_.socket, &o));
	for (unsigned i = 0; i < 5; i++) {
		int status;

		assert_int_equal(engine_fetch(&e, 1, 32), 32);
		assert_int_equal(kill(pid[i], SIGKILL), 0);
		assert_int_equal(engine_fetch(&e, 1, 32), 32);
		assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
		assert_true(WIFSIGNALED(status));
	}
	assert_true(daemon_stats_wait(&daemon_, "sessions", 1, RELEASE_MS_MAX) >= 0);
	assert_int_equal(engine_fetch(&e, 1, 32), 32);
	engine_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_connected),
		cmocka_unit_test(test_half_message),
		cmocka_unit_test(test_after_handshake),
		cmocka_unit_test(test_after_namespace),
		cmocka_unit_test(test_after_arena),
		cmocka_unit_test(test_store_submitted),
		cmocka_unit_test(test_after_source_free),
		cmocka_unit_test(test_holding_a_lease),
		cmocka_unit_test(test_mid_load),
		cmocka_unit_test(test_mid_load_from_nvme),
		cmocka_unit_test(test_at_any_moment),
		cmocka_unit_test(test_the_neighbour_does_not_notice),
	};

	return cmocka_run_group_tests_name("client-death", tests, start, stop);
}
