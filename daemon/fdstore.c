/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdstore.c - fds from and for systemd, or another manager that does as it does.  Control thread.  Does not know what
 * is behind them: who uses one asks.
 */
#include "daemon/fdstore.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>

#define SETTLE_US 5000000u
#define EXEC_FDS 3

/* Twice the same name: nobody knows which one is right. */
static void take_one(int *ret, int *seen, int fd)
{
	if ((*seen)++) {
		(void)close(fd);
		if (*ret >= 0)
			(void)close(*ret);
		*ret = -1;
		return;
	}
	*ret = fd;
}

int fdstore_take(struct fdstore *ret, char *err, size_t err_bytes)
{
	struct fdstore f = FDSTORE_NONE;
	int sockets = 0, pools = 0, indexes = 0, n, fd;
	char **names = NULL;

	n = sd_listen_fds_with_names(1, &names);
	for (int i = 0; i < n; i++) {
		fd = SD_LISTEN_FDS_START + i;
		if (!strcmp(names[i], FDSTORE_POOL))
			take_one(&f.pool, &pools, fd);
		else if (!strcmp(names[i], FDSTORE_INDEX))
			take_one(&f.index, &indexes, fd);
		else
			take_one(&f.socket, &sockets, fd);
	}
	for (int i = 0; names && names[i]; i++)
		free(names[i]);
	free(names);
	if (pools > 1)
		fdstore_forget(FDSTORE_POOL);
	if (n >= 0 && sockets <= 1) {
		*ret = f;
		return 0;
	}
	fdstore_close(&f);
	if (n < 0)
		(void)snprintf(err, err_bytes, "fds that were passed ($LISTEN_FDS): %s",
			       strerror(-n));
	else
		(void)snprintf(err, err_bytes,
			       "systemd passed %d sockets, one is expected; compare skvcd.socket",
			       sockets);
	return n < 0 ? n : -EINVAL;
}

void fdstore_close(struct fdstore *f)
{
	if (f->socket >= 0)
		(void)close(f->socket);
	if (f->pool >= 0)
		(void)close(f->pool);
	if (f->index >= 0)
		(void)close(f->index);
	*f = (struct fdstore)FDSTORE_NONE;
}

int fdstore_is_there(void)
{
	const char *to = getenv("NOTIFY_SOCKET");

	return to && *to;
}

void fdstore_keep(const char *name, int fd)
{
	char text[64];

	(void)snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s", name);
	(void)sd_pid_notify_with_fds(0, 0, text, &fd, 1);
}

void fdstore_forget(const char *name)
{
	(void)sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

void fdstore_settle(void)
{
	(void)sd_notify_barrier(0, SETTLE_US);
}

/* Away from the numbers that they are to get. */
static int move_up(int fd)
{
	int moved = fcntl(fd, F_DUPFD_CLOEXEC, SD_LISTEN_FDS_START + EXEC_FDS);

	return moved < 0 ? -errno : moved;
}

static int pass(const int *fds, int count)
{
	int up[EXEC_FDS];

	for (int i = 0; i < count; i++) {
		up[i] = move_up(fds[i]);
		if (up[i] < 0)
			return up[i];
	}
	for (int i = 0; i < count; i++)
		if (dup2(up[i], SD_LISTEN_FDS_START + i) < 0)
			return -errno;
	return 0;
}

int fdstore_exec(const struct fdstore *f, char **argv)
{
	char pid[16], count_text[16], names[64] = "", path[PATH_MAX];
	int fds[EXEC_FDS], count = 0, r;
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (n <= 0)
		return -errno;
	path[n] = '\0';
	if (f->socket >= 0)
		fds[count++] = f->socket;
	if (f->pool >= 0)
		fds[count++] = f->pool;
	if (f->index >= 0)
		fds[count++] = f->index;
	r = pass(fds, count);
	if (r < 0)
		return r;
	(void)snprintf(names, sizeof(names), "%s%s%s", f->socket >= 0 ? "skvcd.socket:" : "",
		       f->pool >= 0 ? FDSTORE_POOL ":" : "", f->index >= 0 ? FDSTORE_INDEX : "");
	if (names[0] && names[strlen(names) - 1] == ':')
		names[strlen(names) - 1] = '\0';
	(void)snprintf(pid, sizeof(pid), "%d", (int)getpid());
	(void)snprintf(count_text, sizeof(count_text), "%d", count);
	if (setenv("LISTEN_PID", pid, 1) < 0 || setenv("LISTEN_FDS", count_text, 1) < 0 ||
	    setenv("LISTEN_FDNAMES", names, 1) < 0)
		return -errno;
	(void)execv(path, argv);
	return -errno;
}
