/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_ipc.c - how long it takes to ask skvcd something: an empty operation through the rings, with
 * a client that polls and with one that sleeps, beside a ping-pong over a Unix socket between two
 * processes of the same run.  The socket runs twice: with its two processes on different processors, and
 * on one, which is often faster since nobody has to wake a sleeping processor; the faster one is what the
 * rings are compared with.
 *
 * The contenders take turns in short slices, so that whatever else the machine does hits all of them.
 */
#include "tools/output.h"
#include "tools/skvc_bench.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <dirent.h>
#include <time.h>
#include <unistd.h>

#include "client-lib/skvc.h"
#include "gpu/model/report.h"
#include "tools/bench_samples.h"
#include "tools/demo_daemon.h"

#define ROUNDS_DEFAULT 100000u
#define ROUNDS_MIN 100u
#define ROUNDS_MAX 10000000u
#define SLICES 20u
#define WARM_ROUNDS 2000u
#define WOKEN_PART 50u /* one woken round for so many polled ones: each takes a pause besides */
#define IDLE_NS 200000 /* long enough for the daemon to fall asleep too (its spin: 50 us) */
#define PIPELINE_DEPTH 128u /* operations in flight */
#define PIPELINE_SECONDS 1u /* in all */
#define MESSAGE_BYTES 64u   /* as large as a ring entry */
#define RATIO_GOAL 8.0

struct ipc_bench {
	const char *socket; /* of a running skvcd, or NULL */
	uint32_t rounds;
	bool json;

	struct demo_daemon daemon;
	struct skvc_session *polled;
	struct skvc_session *woken;
	int ping;   /* our end of the socket pair */
	pid_t pong; /* the child behind it */
	int cpus;
	bool pinned;
	cpu_set_t mine, others;					   /* when pinned */
	struct samples polled_ns, woken_ns, apart_ns, together_ns; /* the last two: the socket */
	uint64_t pipelined_ops, pipelined_ns;
	char err[REPORT_BYTES];
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int fail(struct ipc_bench *b, int error, const char *what)
{
	(void)snprintf(b->err, sizeof(b->err), "%s: %s", what, strerror(-error));
	return error;
}

static int fail_session(struct ipc_bench *b, int error, const struct skvc_session *s)
{
	(void)snprintf(b->err, sizeof(b->err), "skvcd: %s", skvc_last_error(s));
	return error;
}

/* ---- processors: us on the first, everybody else on the others, when there are two ---- */

static int first_cpu(const cpu_set_t *set)
{
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, set))
			return cpu;
	return 0;
}

static void pin_threads_of(pid_t pid, const cpu_set_t *set)
{
	struct dirent *entry;
	char path[64];
	DIR *dir;

	(void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			(void)sched_setaffinity((pid_t)strtol(entry->d_name, NULL, 10),
						sizeof(*set), set);
	if (dir)
		(void)closedir(dir);
}

static void pin(struct ipc_bench *b)
{
	cpu_set_t all;

	if (sched_getaffinity(0, sizeof(all), &all) < 0)
		return;
	b->cpus = CPU_COUNT(&all);
	if (b->cpus < 2)
		return;
	CPU_ZERO(&b->mine);
	CPU_SET(first_cpu(&all), &b->mine);
	b->others = all;
	CPU_CLR(first_cpu(&all), &b->others);
	if (b->daemon.pid > 0)
		pin_threads_of(b->daemon.pid, &b->others);
	b->pinned = sched_setaffinity(0, sizeof(b->mine), &b->mine) == 0;
}

/* ---- the contenders ---- */

static int nop_round_trip(struct ipc_bench *b, struct skvc_session *s)
{
	struct skvc_completion done = { 0 };
	uint64_t job;
	int r;

	r = skvc_nop(s, &job);
	if (!r)
		r = skvc_wait(s, &job, 1, SKVC_WAIT_FOREVER);
	if (!r)
		r = skvc_result(s, job, &done);
	return r < 0 ? fail_session(b, r, s) : done.res < 0 ? fail(b, done.res, "nop") : 0;
}

static int slice_polled(struct ipc_bench *b, uint32_t rounds, struct samples *samples)
{
	for (uint32_t i = 0; i < rounds; i++) {
		uint64_t start_ns = now_ns();
		int r = nop_round_trip(b, b->polled);

		if (r < 0)
			return r;
		if (samples)
			samples_add(samples, now_ns() - start_ns);
	}
	return 0;
}

/* Both sides asleep before each round: the operation pays for two wake-ups. */
static int slice_woken(struct ipc_bench *b, uint32_t rounds)
{
	const struct timespec idle = { .tv_nsec = IDLE_NS };

	for (uint32_t i = 0; i < rounds; i++) {
		uint64_t start_ns;
		int r;

		(void)nanosleep(&idle, NULL);
		start_ns = now_ns();
		r = nop_round_trip(b, b->woken);
		if (r < 0)
			return r;
		samples_add(&b->woken_ns, now_ns() - start_ns);
	}
	return 0;
}

static int slice_socket(struct ipc_bench *b, uint32_t rounds, const cpu_set_t *where,
			struct samples *samples)
{
	uint8_t message[MESSAGE_BYTES] = { 0 };

	if (b->pinned)
		pin_threads_of(b->pong, where);
	for (uint32_t i = 0; i < rounds; i++) {
		uint64_t start_ns = now_ns();

		if (send(b->ping, message, sizeof(message), MSG_NOSIGNAL) != sizeof(message) ||
		    recv(b->ping, message, sizeof(message), 0) != sizeof(message))
			return fail(b, errno ? -errno : -EPIPE, "Unix socket");
		if (samples)
			samples_add(samples, now_ns() - start_ns);
	}
	return 0;
}

static int slice_pipelined(struct ipc_bench *b, uint64_t duration_ns)
{
	struct skvc_completion done[PIPELINE_DEPTH];
	uint64_t start_ns = now_ns(), spent_ns = 0, job, ops = 0;

	while (spent_ns < duration_ns || skvc_pending(b->polled)) {
		int r = 0;

		while (spent_ns < duration_ns && skvc_pending(b->polled) < PIPELINE_DEPTH && !r)
			r = skvc_nop(b->polled, &job);
		if (r < 0 && r != -EAGAIN)
			return fail_session(b, r, b->polled);
		r = skvc_poll(b->polled, done, PIPELINE_DEPTH);
		if (r < 0)
			return fail_session(b, r, b->polled);
		ops += (uint64_t)r;
		spent_ns = now_ns() - start_ns;
	}
	b->pipelined_ops += ops;
	b->pipelined_ns += spent_ns;
	return 0;
}

/* ---- run ---- */

/* In the child: answer until the other end is closed. */
static void pong(int sock, pid_t parent)
{
	uint8_t message[MESSAGE_BYTES];

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	while (recv(sock, message, sizeof(message), 0) == sizeof(message))
		if (send(sock, message, sizeof(message), MSG_NOSIGNAL) != sizeof(message))
			break;
	_exit(0);
}

static int start_pong(struct ipc_bench *b)
{
	pid_t parent = getpid();
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return fail(b, -errno, "socketpair");
	b->pong = fork();
	if (b->pong == 0) {
		(void)close(pair[0]);
		pong(pair[1], parent);
	}
	(void)close(pair[1]);
	b->ping = pair[0];
	return b->pong < 0 ? fail(b, -errno, "fork") : 0;
}

static int open_session(struct ipc_bench *b, const char *path, uint64_t spin_ns,
			struct skvc_session **ret)
{
	const struct skvc_options options = { .name = "skvc-bench", .spin_ns = spin_ns };
	int r = skvc_open(path, &options, ret);

	if (r < 0)
		(void)snprintf(b->err, sizeof(b->err), "%s: %s", path, strerror(-r));
	return r;
}

static int start(struct ipc_bench *b)
{
	const struct report report = { "skvcd", b->err, sizeof(b->err) };
	int r;

	r = start_pong(b);
	if (!r && !b->socket)
		r = demo_daemon_start(&b->daemon, &report);
	if (!r)
		r = open_session(b, b->socket ? b->socket : b->daemon.socket, UINT64_MAX,
				 &b->polled);
	if (!r)
		r = open_session(b, b->socket ? b->socket : b->daemon.socket, 1, &b->woken);
	if (!r)
		r = samples_init(&b->polled_ns, b->rounds);
	if (!r)
		r = samples_init(&b->apart_ns, b->rounds);
	if (!r)
		r = samples_init(&b->together_ns, b->rounds);
	if (!r)
		r = samples_init(&b->woken_ns, b->rounds / WOKEN_PART + SLICES);
	return r;
}

static int measure(struct ipc_bench *b)
{
	uint32_t rounds = b->rounds / SLICES;
	uint32_t woken = rounds / WOKEN_PART ? rounds / WOKEN_PART : 1;
	int r;

	r = slice_polled(b, WARM_ROUNDS, NULL);
	if (!r)
		r = slice_socket(b, WARM_ROUNDS, &b->others, NULL);
	for (uint32_t i = 0; i < SLICES && !r; i++) {
		r = slice_polled(b, rounds, &b->polled_ns);
		if (!r)
			r = slice_socket(b, rounds, &b->others, &b->apart_ns);
		if (!r && b->pinned)
			r = slice_socket(b, rounds, &b->mine, &b->together_ns);
		if (!r)
			r = slice_woken(b, woken);
		if (!r)
			r = slice_pipelined(b, PIPELINE_SECONDS * 1000000000ull / SLICES);
	}
	samples_sort(&b->polled_ns);
	samples_sort(&b->apart_ns);
	samples_sort(&b->together_ns);
	samples_sort(&b->woken_ns);
	return r;
}

static void stop(struct ipc_bench *b)
{
	b->polled = skvc_close(b->polled);
	b->woken = skvc_close(b->woken);
	demo_daemon_stop(&b->daemon);
	if (b->ping >= 0)
		(void)close(b->ping);
	if (b->pong > 0)
		(void)waitpid(b->pong, NULL, 0);
	samples_deinit(&b->polled_ns);
	samples_deinit(&b->apart_ns);
	samples_deinit(&b->together_ns);
	samples_deinit(&b->woken_ns);
}

/* ---- result ---- */

/* Against the socket where it was faster. */
static double ratio(const struct ipc_bench *b, unsigned percent)
{
	uint64_t polled = samples_percentile(&b->polled_ns, percent);
	uint64_t socket = samples_percentile(&b->apart_ns, percent);

	if (b->together_ns.count && samples_percentile(&b->together_ns, percent) < socket)
		socket = samples_percentile(&b->together_ns, percent);
	return polled ? (double)socket / (double)polled : 0;
}

static double pipelined_per_s(const struct ipc_bench *b)
{
	return b->pipelined_ns ? (double)b->pipelined_ops * 1e9 / (double)b->pipelined_ns : 0;
}

static void add_percentiles(cJSON *root, const char *name, const struct samples *s)
{
	cJSON *o = cJSON_AddObjectToObject(root, name);

	(void)cJSON_AddNumberToObject(o, "p50_ns", (double)samples_percentile(s, 50));
	(void)cJSON_AddNumberToObject(o, "p99_ns", (double)samples_percentile(s, 99));
	(void)cJSON_AddNumberToObject(o, "rounds", s->count);
}

static int print_json(const struct ipc_bench *b)
{
	cJSON *root = cJSON_CreateObject();

	(void)cJSON_AddStringToObject(root, "benchmark", "ipc");
	(void)cJSON_AddStringToObject(root, "version", skvc_version());
	(void)cJSON_AddNumberToObject(root, "cpus", b->cpus);
	(void)cJSON_AddBoolToObject(root, "pinned", b->pinned);
	add_percentiles(root, "polled", &b->polled_ns);
	add_percentiles(root, "woken", &b->woken_ns);
	add_percentiles(root, "unix_socket", &b->apart_ns);
	add_percentiles(root, "unix_socket_one_cpu", &b->together_ns);
	(void)cJSON_AddNumberToObject(root, "pipelined_depth", PIPELINE_DEPTH);
	(void)cJSON_AddNumberToObject(root, "pipelined_ops_per_s", pipelined_per_s(b));
	(void)cJSON_AddNumberToObject(root, "ratio_p50", ratio(b, 50));
	(void)cJSON_AddNumberToObject(root, "ratio_p99", ratio(b, 99));
	(void)cJSON_AddNumberToObject(root, "ratio_goal", RATIO_GOAL);
	(void)cJSON_AddBoolToObject(root, "goal_met", ratio(b, 50) >= RATIO_GOAL);
	return output_json(root, stdout);
}

static void print_row(const char *name, const struct samples *s)
{
	(void)printf("%-34s %10.2f us %10.2f us   (%u rounds)\n", name,
		     (double)samples_percentile(s, 50) / 1e3,
		     (double)samples_percentile(s, 99) / 1e3, s->count);
}

static void print_table(const struct ipc_bench *b)
{
	(void)printf("%-34s %13s %13s\n", "round trip", "p50", "p99");
	print_row("rings, client polls", &b->polled_ns);
	print_row("rings, both sides asleep before", &b->woken_ns);
	print_row("Unix socket, 64-byte ping-pong", &b->apart_ns);
	if (b->together_ns.count)
		print_row("... both processes on one CPU", &b->together_ns);
	(void)printf("rings, %u in flight: %.0f operations/s\n", PIPELINE_DEPTH,
		     pipelined_per_s(b));
	(void)printf(
		"the rings' polled round trip is %.1f times shorter (p50; p99: %.1f), goal %.0f\n",
		ratio(b, 50), ratio(b, 99), RATIO_GOAL);
	if (!b->pinned)
		(void)printf("not pinned: %d processor(s) - these numbers say little\n", b->cpus);
}

static const char usage_text[] =
	"Usage: skvc-bench ipc [OPTION]...\n"
	"\n"
	"Round trip of an empty operation through the shared-memory rings, beside a ping-pong over a\n"
	"Unix socket in the same run.  Starts a skvcd of its own unless told of one.\n"
	"\n"
	"  --socket PATH   measure the skvcd behind this socket\n"
	"  --rounds N      polled round trips, 100..10000000; default 100000\n"
	"  --json          one JSON object\n"
	"  -h, --help      this text\n";

/* 0, 2 wrong usage, or -1: done, nothing more to do. */
static int parse(struct ipc_bench *b, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "socket", required_argument, NULL, 's' },
		{ "rounds", required_argument, NULL, 'n' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	optind = 0; /* the caller's argv is not ours to go on with */
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			b->socket = optarg;
			break;
		case 'n':
			if (bench_count_parse(optarg, ROUNDS_MIN, ROUNDS_MAX, &b->rounds) < 0)
				return bench_usage_error(
					"ipc", "--rounds takes 100..10000000, not ", optarg);
			break;
		case 'j':
			b->json = true;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return -1;
		default:
			(void)fputs("Try 'skvc-bench ipc --help'.\n", stderr);
			return 2;
		}
	}
	if (optind < argc)
		return bench_usage_error("ipc", "too many arguments: ", argv[optind]);
	return 0;
}

int bench_ipc_main(int argc, char **argv)
{
	struct ipc_bench b = { .rounds = ROUNDS_DEFAULT, .ping = -1, .cpus = 1 };
	int r = parse(&b, argc, argv);

	if (r)
		return r < 0 ? 0 : r;
	r = start(&b);
	if (!r) {
		pin(&b);
		r = measure(&b);
	}
	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench ipc: %s\n", b.err[0] ? b.err : strerror(-r));
		if (!b.socket)
			demo_daemon_print_log(&b.daemon);
	} else if (b.json) {
		r = print_json(&b);
	} else {
		print_table(&b);
	}
	stop(&b);
	return r < 0;
}
