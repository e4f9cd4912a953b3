/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_daemon.c - fork, exec, wait.  One thread; the signal handler only sets a flag.
 */
#include "tools/demo_daemon.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
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

#include "gpu/model/report.h"
#include "tools/progress.h"

#define START_NS_MAX 15000000000u
#define STOP_NS_MAX 10000000000u
#define LOG_BYTES_SHOWN 2000

static volatile sig_atomic_t told_to_stop;

static void on_signal(int signal)
{
	(void)signal;
	told_to_stop = 1;
}

void demo_daemon_catch_signals(void)
{
	const struct sigaction action = { .sa_handler = on_signal }; /* no SA_RESTART: waits end */

	(void)sigaction(SIGINT, &action, NULL);
	(void)sigaction(SIGTERM, &action, NULL);
	(void)sigaction(SIGHUP, &action, NULL);
}

void demo_daemon_own_folder(char *ret)
{
	ssize_t bytes = readlink("/proc/self/exe", ret, PATH_MAX - 1);
	char *slash;

	ret[bytes < 0 ? 0 : bytes] = '\0';
	slash = strrchr(ret, '/');
	if (slash && slash != ret)
		*slash = '\0';
	else
		memcpy(ret, ".", sizeof("."));
}

/* In the child: never returns. */
static void become(const char **argv, const char *output, const char *errors, pid_t parent)
{
	char self[PATH_MAX], path[PATH_MAX + 64];
	int out = output ? open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	int err = errors ? open(errors, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;

	if ((output && (out < 0 || dup2(out, STDOUT_FILENO) < 0)) ||
	    (errors && (err < 0 || dup2(err, STDERR_FILENO) < 0)))
		_exit(126);
	/* The daemon and the engine end with the tour however that ends. */
	(void)prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(126);
	if (!argv[0]) {
		argv[0] = "skvc-demo";
		(void)execv("/proc/self/exe", (char *const *)(uintptr_t)argv);
	} else {
		demo_daemon_own_folder(self);
		(void)snprintf(path, sizeof(path), "%s/%s", self, argv[0]);
		(void)execv(path, (char *const *)(uintptr_t)argv);
		(void)snprintf(path, sizeof(path), "%s/../sbin/%s", self, argv[0]);
		(void)execv(path, (char *const *)(uintptr_t)argv);
		(void)execvp(argv[0], (char *const *)(uintptr_t)argv);
	}
	(void)dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static pid_t spawn(const char **argv, const char *output, const char *errors)
{
	const pid_t parent = getpid();
	pid_t pid;

	(void)fflush(NULL); /* else the child prints it once more */
	pid = fork();
	if (pid == 0)
		become(argv, output, errors, parent);
	return pid < 0 ? -errno : pid;
}

int demo_daemon_run(const char **argv, const char *output)
{
	pid_t pid = spawn(argv, output, NULL);
	int status;

	if (pid < 0)
		return pid;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
		if (told_to_stop)
			(void)kill(pid, SIGTERM);
	}
	if (told_to_stop)
		return -EINTR;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -ECHILD;
}

static int make_folder(struct demo_daemon *d, const struct report *r)
{
	const char *tmp = getenv("TMPDIR");
	int used;

	/* /var/tmp and not /tmp: that one is often in memory, where O_DIRECT means nothing. */
	used = snprintf(d->dir, sizeof(d->dir), "%s/skvc-demo.XXXXXX",
			tmp && tmp[0] ? tmp : "/var/tmp");
	if (used < 0 || (size_t)used >= sizeof(d->dir) || !mkdtemp(d->dir)) {
		d->dir[0] = '\0';
		return report_fail(r, -EIO, "no temporary folder in %s: %s",
				   tmp && tmp[0] ? tmp : "/var/tmp", strerror(errno));
	}
	(void)snprintf(d->socket, sizeof(d->socket), "%s/sock", d->dir);
	(void)snprintf(d->bus, sizeof(d->bus), "%s/bus", d->dir);
	(void)snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	(void)snprintf(d->conf, sizeof(d->conf), "%s/skvcd.conf", d->dir);
	(void)snprintf(d->nvme, sizeof(d->nvme), "%s/nvme", d->dir);
	return 0;
}

static int write_configuration(const struct demo_daemon *d, const struct report *r)
{
	FILE *f = fopen(d->conf, "we");

	if (!f)
		return report_fail(r, -errno, "%s: %s", d->conf, strerror(errno));
	fprintf(f,
		"[daemon]\nsocket = %s\nbus_socket = %s\nstate_dir = %s/state\n\n"
		"[host]\npool = 256M\nlock_memory = no\n\n"
		"[nvme]\npath = %s\nsize = 256M\n",
		d->socket, d->bus, d->dir, d->nvme);
	if (fclose(f) != 0)
		return report_fail(r, -errno, "%s: %s", d->conf, strerror(errno));
	return 0;
}

static bool can_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	bool ok;

	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	ok = fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0;
	if (fd >= 0)
		(void)close(fd);
	return ok;
}

static int wait_for_socket(struct demo_daemon *d, const struct report *r)
{
	const struct timespec pause = { .tv_nsec = 5000000 };
	const uint64_t until_ns = progress_now_ns() + START_NS_MAX;
	int status;

	while (!can_connect(d->socket)) {
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			d->pid = 0;
			return report_fail(r, -ECHILD, "skvcd ended at its start");
		}
		if (told_to_stop)
			return report_fail(r, -EINTR, "stopped");
		if (progress_now_ns() > until_ns)
			return report_fail(r, -ETIMEDOUT, "skvcd did not open its socket");
		(void)nanosleep(&pause, NULL);
	}
	return 0;
}

int demo_daemon_start(struct demo_daemon *d, const struct report *r)
{
	const char *none = NULL;

	return demo_daemon_start_with(d, &none, r);
}

int demo_daemon_start_with(struct demo_daemon *d, const char *const *overrides,
			   const struct report *r)
{
	const char *argv[4 + 2 * DEMO_OVERRIDES_MAX] = { "skvcd", "--config", d->conf };
	unsigned n = 3;
	int rc;

	for (; *overrides; overrides++) {
		assert(n + 2 < sizeof(argv) / sizeof(argv[0]));
		argv[n++] = "-o";
		argv[n++] = *overrides;
	}
	*d = (struct demo_daemon){ .pid = 0 };
	rc = make_folder(d, r);
	if (rc == 0)
		rc = write_configuration(d, r);
	if (rc < 0)
		return rc;
	rc = spawn(argv, d->log, d->log);
	if (rc < 0)
		return report_fail(r, rc, "fork: %s", strerror(-rc));
	d->pid = rc;
	return wait_for_socket(d, r);
}

static void wait_for_end(struct demo_daemon *d)
{
	const struct timespec pause = { .tv_nsec = 5000000 };
	const uint64_t until_ns = progress_now_ns() + STOP_NS_MAX;

	(void)kill(d->pid, SIGTERM);
	while (waitpid(d->pid, NULL, WNOHANG) == 0) {
		if (progress_now_ns() > until_ns) {
			(void)kill(d->pid, SIGKILL);
			(void)waitpid(d->pid, NULL, 0);
			break;
		}
		(void)nanosleep(&pause, NULL);
	}
	d->pid = 0;
}

/* Files of a folder of ours, and the folder. */
static void remove_folder(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			(void)unlinkat(dirfd(dir), entry->d_name, 0);
	if (dir)
		(void)closedir(dir);
	(void)rmdir(path);
}

void demo_daemon_stop(struct demo_daemon *d)
{
	char state[DEMO_PATH_BYTES];

	if (d->pid > 0)
		wait_for_end(d);
	if (!d->dir[0])
		return;
	(void)snprintf(state, sizeof(state), "%s/state", d->dir);
	remove_folder(state);
	remove_folder(d->dir);
	d->dir[0] = '\0';
}

void demo_daemon_print_log(const struct demo_daemon *d)
{
	char text[LOG_BYTES_SHOWN + 1];
	FILE *f = d->dir[0] ? fopen(d->log, "re") : NULL;
	size_t bytes;

	if (!f)
		return;
	(void)fseek(f, -LOG_BYTES_SHOWN, SEEK_END); /* fails when it is shorter: from the start */
	bytes = fread(text, 1, LOG_BYTES_SHOWN, f);
	(void)fclose(f);
	if (bytes)
		fprintf(stderr, "---- log of skvcd ----\n%.*s----\n", (int)bytes, text);
}
