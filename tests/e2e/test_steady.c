/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_steady.c - the two ends of load: busy, the data path makes no system call in either process (both run
 * under strace, which writes each call with its time); idle, the daemon costs next to nothing.
 */
#include "tests/lib/e2e.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP_NS 300000000ull
#define BUSY_NS 1000000000ull
#define IDLE_MS 3000u
#define RSS_BYTES_MAX (20u << 20)

static struct private_daemon daemon_;

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

/* ---- busy ---- */

/* What the client process tells its parent: when it was busy, and with how much. */
struct busy {
	double from, to;		/* wall clock, seconds, as strace -ttt writes them */
	unsigned long long ops;
};

static double wall_clock(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_REALTIME, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* One turn; returns how many operations it was. */
static unsigned turn(struct engine *e, int with_blocks)
{
	struct skvc_completion c;
	uint64_t job;

	if (!with_blocks) {
		if (skvc_nop(e->session, &job) < 0 || engine_finish(e, job, &c) < 0)
			exit(2);
		if (engine_lookup(e, 1, 8, &c) < 0 || engine_release(e, c.lease) < 0)
			exit(2);
		return 3;
	}
	if (engine_fetch(e, 1, 8) != 8)
		exit(2);
	for (uint32_t i = 0; i < 2; i++) {
		struct skvc_key key = engine_key(e, 2, i);

		if (skvc_drop(e->session, e->ns, &key, 1, &job) < 0 || engine_finish(e, job, &c) < 0)
			exit(2);
	}
	if (engine_store(e, 2, 0, 2, &c) < 0)
		exit(2);
	return 6;
}

/* main() of the traced client: `test_steady --client SOCKET BLOCKS OUT`. */
static int client(const char *socket, int with_blocks, const char *out)
{
	struct engine_options o = { .seed = 1, .model = "steady", .spin_ns = UINT64_MAX };
	struct busy busy = { 0 };
	struct skvc_completion c;
	struct engine e;
	uint64_t until;
	FILE *f;

	if (engine_open(&e, socket, &o) < 0 || engine_store(&e, 1, 0, 8, &c) < 0)
		return 1;
	until = private_daemon_now_ns() + WARM_UP_NS;
	while (private_daemon_now_ns() < until)
		(void)turn(&e, with_blocks);
	busy.from = wall_clock();
	until = private_daemon_now_ns() + BUSY_NS;
	while (private_daemon_now_ns() < until)
		busy.ops += turn(&e, with_blocks);
	busy.to = wall_clock();
	f = fopen(out, "w");
	if (!f || fprintf(f, "%.6f %.6f %llu\n", busy.from, busy.to, busy.ops) < 0 || fclose(f))
		return 1;
	engine_close(&e);
	return 0;
}

/* System calls of a strace -f -ttt log within the busy time; prints the first few. */
static unsigned count_calls(const char *path, const struct busy *busy, const char *who)
{
	FILE *f = fopen(path, "r");
	char line[1024];
	unsigned n = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		char *at = line;
		double when;

		(void)strtol(line, &at, 10);	/* thread, with -f */
		when = strtod(at, &at);
		if (when < busy->from || when > busy->to || strstr(at, " resumed>"))
			continue;
		if (n++ < 5)
			print_message("%s: %s", who, line);
	}
	(void)fclose(f);
	return n;
}

static int strace_works(void)
{
	return system("strace -D -o /dev/null true >/dev/null 2>&1") == 0;
}

static void busy_without_calls(int with_blocks)
{
	/* Longer than any pause between two operations, so that nobody goes to sleep. */
	static const char *const overrides[] = { "daemon.spin=10ms", NULL };
	char daemon_log[160], client_log[160], out[160], self[400];
	unsigned daemon_calls, client_calls;
	struct busy busy = { 0 };
	ssize_t n;
	int status;
	pid_t pid;
	FILE *f;

	if (!strace_works()) {
		print_message("strace cannot trace here\n");
		skip();
	}
	memset(&daemon_, 0, sizeof(daemon_));
	(void)snprintf(daemon_log, sizeof(daemon_log), "/tmp/skvcd-steady-%d.daemon", (int)getpid());
	(void)snprintf(client_log, sizeof(client_log), "/tmp/skvcd-steady-%d.client", (int)getpid());
	(void)snprintf(out, sizeof(out), "/tmp/skvcd-steady-%d.out", (int)getpid());
	memcpy(daemon_.wrap, (const char *[8]){ "strace", "-D", "-f", "-ttt", "-o", daemon_log },
	       sizeof(daemon_.wrap));
	assert_ok(private_daemon_start(&daemon_, 0, overrides));
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	assert_true(n > 0);
	self[n] = '\0';
	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)execlp("strace", "strace", "-f", "-ttt", "-o", client_log, self, "--client",
			     daemon_.socket, with_blocks ? "1" : "0", out, (char *)NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_ok(private_daemon_stop(&daemon_));
	private_daemon_sleep_ms(100);	/* strace -D writes on its own time */
	f = fopen(out, "r");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lf %lf %llu", &busy.from, &busy.to, &busy.ops), 3);
	(void)fclose(f);
	daemon_calls = count_calls(daemon_log, &busy, "daemon");
	client_calls = count_calls(client_log, &busy, "client");
	print_message("%llu operations in %.2f s: %u system calls of the daemon, %u of the client\n",
		      busy.ops, busy.to - busy.from, daemon_calls, client_calls);
	assert_true(busy.ops > 200);
	/* Heartbeats and the like: a handful in a second, and none that grows with the operations. */
	assert_true(daemon_calls <= 20);
	assert_true(client_calls <= 5);
	(void)unlink(daemon_log);
	(void)unlink(client_log);
	(void)unlink(out);
}

static void test_no_system_calls_for_small_operations(void **state)
{
	(void)state;
	busy_without_calls(0);
}

static void test_no_system_calls_for_stores_and_loads(void **state)
{
	(void)state;
	busy_without_calls(1);
}

/* ---- idle ---- */

static void test_idle(void **state)
{
	uint64_t cpu_ns, rss, pools;

	(void)state;
	memset(&daemon_, 0, sizeof(daemon_));
	assert_ok(private_daemon_start(&daemon_, 64u << 20, (const char *[]){ "host.pool=256M", NULL }));
	private_daemon_sleep_ms(500);
	cpu_ns = private_daemon_cpu_ns(&daemon_);
	private_daemon_sleep_ms(IDLE_MS);
	cpu_ns = private_daemon_cpu_ns(&daemon_) - cpu_ns;
	/* The pool is a memfd: shared memory in the kernel's books.  The rest is the daemon's own. */
	pools = private_daemon_memory(&daemon_, "RssShmem");
	rss = private_daemon_memory(&daemon_, "VmRSS") - pools;
	print_message("idle: %.2f %% of a core, %.1f MiB beside pools of %.1f MiB\n",
		      (double)cpu_ns / (IDLE_MS * 1e4), (double)rss / 1048576, (double)pools / 1048576);
	assert_true(cpu_ns < IDLE_MS * 1000000ull / 200);	/* 0.5 % */
#ifndef SKVCD_SAN
	assert_true(rss < RSS_BYTES_MAX);
#endif
}

/* A client that is connected and does nothing costs no more. */
static void test_idle_with_clients(void **state)
{
	struct engine_options o = { .seed = 1, .model = "idle" };
	struct skvc_completion c;
	struct engine e[4];
	uint64_t cpu_ns;

	(void)state;
	memset(&daemon_, 0, sizeof(daemon_));
	assert_ok(private_daemon_start(&daemon_, 0, NULL));
	for (unsigned i = 0; i < 4; i++) {
		assert_ok(engine_open(&e[i], daemon_.socket, &o));
		assert_ok(engine_store(&e[i], i, 0, 8, &c));
	}
	private_daemon_sleep_ms(500);
	cpu_ns = private_daemon_cpu_ns(&daemon_);
	private_daemon_sleep_ms(IDLE_MS);
	cpu_ns = private_daemon_cpu_ns(&daemon_) - cpu_ns;
	print_message("idle with 4 clients: %.2f %% of a core\n", (double)cpu_ns / (IDLE_MS * 1e4));
	assert_true(cpu_ns < IDLE_MS * 1000000ull / 200);
	for (unsigned i = 0; i < 4; i++)
		engine_close(&e[i]);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_no_system_calls_for_small_operations, stop),
		cmocka_unit_test_teardown(test_no_system_calls_for_stores_and_loads, stop),
		cmocka_unit_test_teardown(test_idle, stop),
		cmocka_unit_test_teardown(test_idle_with_clients, stop),
	};

	if (argc == 5 && !strcmp(argv[1], "--client"))
		return client(argv[2], argv[3][0] == '1', argv[4]);
	return cmocka_run_group_tests_name("steady", tests, NULL, NULL);
}
