/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_engine.c - the talk between `skvc-bench neighbour` and the process that computes, from both ends.
 */
#include "tools/bench_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/bench_engine_loops.h"
#include "tools/skvc_bench.h"

#define START_MS_MAX 60000

const char *const engine_loop_names[ENGINE_LOOP_COUNT] = { "prefill", "decode" };

/* ---- this end ---- */

static void child(const int *in, const int *out, const char *gpu, bool no_gpu, pid_t parent)
{
	const char *argv[] = { "skvc-bench", "neighbour-engine",
			       no_gpu ? "cpu"
			       : gpu  ? gpu
				      : "0",
			       NULL };

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() == parent && dup2(in[0], STDIN_FILENO) >= 0 &&
	    dup2(out[1], STDOUT_FILENO) >= 0)
		(void)execv("/proc/self/exe", (char *const *)(uintptr_t)argv);
	_exit(127);
}

/* A whole line in e->line: 1; 0: not within wait_ms; or -errno. */
static int line_read(struct engine *e, int wait_ms, const struct report *r)
{
	struct pollfd p = { .fd = e->from, .events = POLLIN };
	char *end = memchr(e->line, '\n', e->line_bytes);

	while (!end) {
		int ready = poll(&p, 1, wait_ms);
		ssize_t n;

		if (ready < 0 && errno == EINTR)
			continue;
		if (ready <= 0)
			return ready;
		n = read(e->from, e->line + e->line_bytes, sizeof(e->line) - 1u - e->line_bytes);
		if (n <= 0)
			return report_fail(r, -ECHILD, "the engine's process ended");
		e->line_bytes += (size_t)n;
		end = memchr(e->line, '\n', e->line_bytes);
		if (!end && e->line_bytes == sizeof(e->line) - 1u)
			return report_fail(r, -EPROTO, "the engine's process says nonsense");
	}
	*end = '\0';
	return 1;
}

static void line_drop(struct engine *e)
{
	size_t used = strlen(e->line) + 1u;

	memmove(e->line, e->line + used, e->line_bytes - used);
	e->line_bytes -= used;
}

int engine_start(struct engine *e, const char *gpu, bool no_gpu, const struct report *r)
{
	const pid_t parent = getpid();
	int in[2], out[2], rc;

	*e = (struct engine){ .to = -1, .from = -1 };
	if (pipe2(in, O_CLOEXEC) < 0)
		return report_fail(r, -errno, "pipe: %s", strerror(errno));
	if (pipe2(out, O_CLOEXEC) < 0) {
		(void)close(in[0]);
		(void)close(in[1]);
		return report_fail(r, -errno, "pipe: %s", strerror(errno));
	}
	(void)fflush(NULL);
	e->pid = fork();
	if (e->pid == 0)
		child(in, out, gpu, no_gpu, parent);
	(void)close(in[0]);
	(void)close(out[1]);
	e->to = in[1];
	e->from = out[0];
	if (e->pid < 0) {
		e->pid = 0;
		return report_fail(r, -errno, "fork: %s", strerror(errno));
	}
	rc = line_read(e, START_MS_MAX, r);
	if (rc == 0)
		return report_fail(r, -ETIMEDOUT, "the engine's process does not start");
	if (rc < 0)
		return rc;
	if (strncmp(e->line, "ready ", 6) != 0)
		return report_fail(r, -ENODEV, "the engine's process: %s", e->line);
	(void)snprintf(e->text, sizeof(e->text), "%.63s", e->line + 6);
	line_drop(e);
	return 0;
}

int engine_begin(struct engine *e, enum engine_loop loop, double seconds, const struct report *r)
{
	if (dprintf(e->to, "%s %.3f\n", engine_loop_names[loop], seconds) < 0)
		return report_fail(r, -EPIPE, "the engine's process ended");
	return 0;
}

int engine_answer(struct engine *e, int wait_ms, struct engine_steps *ret, const struct report *r)
{
	struct engine_steps s;
	int rc = line_read(e, wait_ms, r);

	if (rc <= 0)
		return rc;
	if (sscanf(e->line, "steps %lu %lf %lf %lf", &s.count, &s.mean_us, &s.p50_us, &s.p99_us) !=
	    4) /* NOLINT(cert-err34-c): our own other half wrote it */
		return report_fail(r, -EPROTO, "the engine's process: %s", e->line);
	line_drop(e);
	*ret = s;
	return 1;
}

void engine_stop(struct engine *e)
{
	if (e->pid > 0) {
		(void)close(e->to); /* it ends at the end of its input */
		(void)close(e->from);
		(void)kill(e->pid, SIGTERM);
		(void)waitpid(e->pid, NULL, 0);
	}
	*e = (struct engine){ .to = -1, .from = -1 };
}

/* ---- the other end ---- */

static int serve(struct engine_loops *l, const struct report *r)
{
	char line[64];

	while (fgets(line, sizeof(line), stdin)) {
		enum engine_loop loop = line[0] == 'd' ? ENGINE_DECODE : ENGINE_PREFILL;
		const char *space = strchr(line, ' ');
		struct engine_steps s;
		int rc = engine_loops_run(l, loop, space ? strtod(space, NULL) : 0, &s, r);

		if (rc < 0)
			return rc;
		(void)printf("steps %lu %.3f %.3f %.3f\n", s.count, s.mean_us, s.p50_us, s.p99_us);
		(void)fflush(stdout);
	}
	return 0;
}

int bench_engine_main(int argc, char **argv)
{
	char err[REPORT_BYTES] = "";
	const struct report report = { "engine", err, sizeof(err) };
	const char *gpu = argc > 1 ? argv[1] : "0";
	struct engine_loops *l = NULL;
	int r = engine_loops_new(strcmp(gpu, "cpu") != 0 ? gpu : NULL, &l, &report);

	if (r == 0) {
		(void)printf("ready %s\n", engine_loops_text(l));
		(void)fflush(stdout);
		r = serve(l, &report);
	}
	if (r < 0)
		(void)printf("failed %s\n", err[0] ? err : strerror(-r));
	engine_loops_free(l);
	return r < 0 || fflush(stdout) == EOF ? 1 : 0;
}
