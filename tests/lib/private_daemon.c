/* SPDX-License-Identifier: Apache-2.0 */
/*
 * private_daemon.c - start, watch, kill and stop a skvcd for one test program.  Single-threaded.
 */
#include "tests/lib/private_daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/fd_keeper.h"

#define START_MS_MAX 20000u
#define STOP_MS_MAX 10000u

uint64_t private_daemon_now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void private_daemon_sleep_ms(unsigned ms)
{
	struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

/* build/<flavour>: given by the runner, or found from where this program lies (.../tests/e2e/x). */
static const char *build_dir(void)
{
	static char dir[400];
	const char *env = getenv("SKVC_BUILD");
	ssize_t n;

	if (env && *env)
		return env;
	n = readlink("/proc/self/exe", dir, sizeof(dir) - 1);
	if (n < 0)
		return "build/release";
	dir[n] = '\0';
	for (unsigned up = 0; up < 3; up++) {
		char *slash = strrchr(dir, '/');

		if (!slash)
			return "build/release";
		*slash = '\0';
	}
	return dir;
}

const char *private_daemon_program(const char *name)
{
	static char path[512];

	(void)snprintf(path, sizeof(path), "%s/bin/%s", build_dir(), name);
	return path;
}

static int can_connect(const char *socket_path, int type)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	int r;

	if (fd < 0)
		return 0;
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", socket_path);
	r = connect(fd, (struct sockaddr *)&addr, sizeof(addr));
	(void)close(fd);
	return r == 0;
}

struct arguments {
	const char *argv[2 * PRIVATE_DAEMON_OVERRIDES_MAX + 16];
	unsigned count;
	char text[12][1100];
	unsigned text_count;
};

static void add_override(struct arguments *a, const char *assignment)
{
	if (a->count + 3 >= sizeof(a->argv) / sizeof(a->argv[0]))
		abort();
	a->argv[a->count++] = "-o";
	a->argv[a->count++] = assignment;
}

__attribute__((format(printf, 2, 3))) static void add_default(struct arguments *a,
							      const char *format, ...)
{
	va_list args;

	if (a->text_count == sizeof(a->text) / sizeof(a->text[0]))
		abort();
	va_start(args, format);
	(void)vsnprintf(a->text[a->text_count], sizeof(a->text[0]), format, args);
	va_end(args);
	add_override(a, a->text[a->text_count++]);
}

static void make_arguments(struct arguments *a, const struct private_daemon *d, uint64_t nvme_bytes,
			   const char *const *overrides)
{
	static char conf[128];

	for (unsigned i = 0; d->wrap[i]; i++)
		a->argv[a->count++] = d->wrap[i];
	a->argv[a->count++] = private_daemon_program("skvcd");
	(void)snprintf(conf, sizeof(conf), "%s/skvcd.conf", d->dir);
	a->argv[a->count++] = "-c";
	a->argv[a->count++] = conf;
	add_default(a, "daemon.cpu_workers=1");
	add_default(a, "host.pool=16M");
	add_default(a, "host.lock_memory=no");
	if (nvme_bytes) {
		if (d->files == 2)
			add_default(a, "nvme.path=%s, %s.2", d->nvme, d->nvme);
		else
			add_default(a, "nvme.path=%s", d->nvme);
		add_default(a, "nvme.size=%llu",
			    (unsigned long long)nvme_bytes / (d->files == 2 ? 2 : 1));
		add_default(a, "nvme.segment=1M");
	}
	for (unsigned i = 0; overrides && overrides[i]; i++)
		add_override(a, overrides[i]);
}

/* In the child: its own log, its end tied to the parent's. */
static void become_daemon(const struct private_daemon *d, const struct arguments *a, pid_t parent)
{
	int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0)
		_exit(126);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(126);
	(void)unsetenv("NOTIFY_SOCKET");
	(void)unsetenv("LISTEN_FDS");
	if (d->keeper)
		fd_keeper_become_child(d->keeper);
	(void)execvp(a->argv[0], (char *const *)a->argv);
	dprintf(2, "%s: %s\n", a->argv[0], strerror(errno));
	_exit(127);
}

int private_daemon_restart(struct private_daemon *d, uint64_t nvme_bytes,
			   const char *const *overrides)
{
	uint64_t until = private_daemon_now_ns() + START_MS_MAX * 1000000ull;
	struct arguments a = { 0 };
	pid_t parent = getpid();

	make_arguments(&a, d, nvme_bytes, overrides);
	(void)fflush(NULL);
	d->pid = fork();
	if (d->pid < 0)
		return -errno;
	if (d->pid == 0)
		become_daemon(d, &a, parent);
	/* The bus comes last: when it is there, start-up is over. */
	while (!can_connect(d->bus, SOCK_STREAM) || !can_connect(d->socket, SOCK_SEQPACKET)) {
		if (private_daemon_died(d))
			return -ECHILD;
		if (private_daemon_now_ns() > until) {
			private_daemon_print_log(d);
			return -ETIMEDOUT;
		}
		private_daemon_sleep_ms(2);
	}
	return 0;
}

static int write_configuration(const struct private_daemon *d)
{
	char path[128];
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/skvcd.conf", d->dir);
	f = fopen(path, "w");
	if (!f)
		return -errno;
	fprintf(f, "[daemon]\nsocket = %s\nbus_socket = %s\nstate_dir = %s/state\n", d->socket,
		d->bus, d->dir);
	return fclose(f) == 0 ? 0 : -errno;
}

int private_daemon_start(struct private_daemon *d, uint64_t nvme_bytes,
			 const char *const *overrides)
{
	struct private_daemon given = *d;

	memset(d, 0, sizeof(*d));
	memcpy(d->wrap, given.wrap, sizeof(d->wrap));
	d->keeper = given.keeper;
	d->files = given.files;
	(void)snprintf(d->dir, sizeof(d->dir), "/tmp/skvcd-test-XXXXXX");
	if (!mkdtemp(d->dir))
		return -errno;
	(void)snprintf(d->socket, sizeof(d->socket), "%s/sock", d->dir);
	(void)snprintf(d->bus, sizeof(d->bus), "%s/bus", d->dir);
	(void)snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	if (nvme_bytes) {
		/* Beside the programs: /tmp may be a tmpfs, where O_DIRECT means little. */
		(void)snprintf(d->nvme, sizeof(d->nvme), "%s/run", build_dir());
		(void)mkdir(d->nvme, 0700);
		(void)snprintf(d->nvme, sizeof(d->nvme), "%s/run/%s.nvme", build_dir(),
			       strrchr(d->dir, '/') + 1);
	}
	if (write_configuration(d) < 0)
		return -EIO;
	return private_daemon_restart(d, nvme_bytes, overrides);
}

int private_daemon_died(struct private_daemon *d)
{
	int status;

	if (!d->pid || waitpid(d->pid, &status, WNOHANG) != d->pid)
		return 0;
	d->pid = 0;
	fprintf(stderr, "skvcd ended by itself: %s %d\n",
		WIFSIGNALED(status) ? "signal" : "exit status",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	private_daemon_print_log(d);
	return 1;
}

void private_daemon_print_log(const struct private_daemon *d)
{
	char line[512];
	FILE *f = fopen(d->log, "r");

	if (!f)
		return;
	if (fseek(f, -16384, SEEK_END) < 0)
		rewind(f);
	while (fgets(line, sizeof(line), f))
		fprintf(stderr, "skvcd: %s", line);
	(void)fclose(f);
}

int private_daemon_logged(const struct private_daemon *d, const char *text)
{
	char line[2048];
	FILE *f = fopen(d->log, "r");
	int found = 0;

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, text) != NULL;
	if (f)
		(void)fclose(f);
	return found;
}

void private_daemon_kill(struct private_daemon *d, int signal)
{
	if (!d->pid)
		return;
	(void)kill(d->pid, signal);
	(void)waitpid(d->pid, NULL, 0);
	d->pid = 0;
}

static void remove_files(struct private_daemon *d)
{
	char command[160];

	if (d->nvme[0])
		(void)unlink(d->nvme);
	if (d->nvme[0] && d->files == 2) {
		char second[sizeof(d->nvme) + 2];

		(void)snprintf(second, sizeof(second), "%s.2", d->nvme);
		(void)unlink(second);
	}
	/* Made by mkdtemp under /tmp: nothing in it needs quoting. */
	(void)snprintf(command, sizeof(command), "rm -rf %s", d->dir);
	if (d->dir[0] && system(command) != 0)
		fprintf(stderr, "%s: not removed\n", d->dir);
	d->dir[0] = '\0';
	d->nvme[0] = '\0';
}

int private_daemon_stop(struct private_daemon *d)
{
	uint64_t until = private_daemon_now_ns() + STOP_MS_MAX * 1000000ull;
	int status = 0, r = -ECHILD;
	pid_t ended = 0;

	if (!d->pid) {
		remove_files(d);
		return 0;
	}
	(void)kill(d->pid, SIGTERM);
	while (!ended && private_daemon_now_ns() < until) {
		ended = waitpid(d->pid, &status, WNOHANG);
		if (!ended)
			private_daemon_sleep_ms(5);
	}
	if (ended == d->pid && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		r = 0;
	} else {
		fprintf(stderr, "skvcd did not stop cleanly: %s, status 0x%x\n",
			ended ? "ended" : "still running", (unsigned)status);
		private_daemon_print_log(d);
		if (!ended)
			private_daemon_kill(d, SIGKILL);
	}
	d->pid = 0;
	remove_files(d);
	return r;
}

uint64_t private_daemon_memory(const struct private_daemon *d, const char *field)
{
	char path[64], line[256];
	size_t len = strlen(field);
	uint64_t kib = 0;
	FILE *f;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)d->pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, field, len) && line[len] == ':')
			kib = strtoull(line + len + 1, NULL, 10);
	if (f)
		(void)fclose(f);
	return kib * 1024;
}

uint64_t private_daemon_cpu_ns(const struct private_daemon *d)
{
	clockid_t clock;
	struct timespec ts;

	if (clock_getcpuclockid(d->pid, &clock) != 0 || clock_gettime(clock, &ts) < 0)
		return 0;
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}
