/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fd_keeper.c - see fd_keeper.h.  Messages are those of sd_notify(3): lines NAME=VALUE, and fds beside them.
 */
#include "tests/lib/fd_keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LISTEN_FIRST 3

static void die(const char *what)
{
	perror(what);
	abort();
}

static int is_same(int a, int b)
{
	struct stat x, y;

	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

/* As systemd does it: the same file is not kept twice. */
static void keep(struct fd_keeper *k, const char *name, int fd)
{
	for (unsigned i = 0; i < k->count; i++)
		if (is_same(k->kept[i].fd, fd)) {
			(void)close(fd);
			return;
		}
	if (k->count == FD_KEEPER_MAX)
		die("fd_keeper: full");
	(void)snprintf(k->kept[k->count].name, sizeof(k->kept[0].name), "%s", name);
	k->kept[k->count++].fd = fd;
}

static void drop(struct fd_keeper *k, const char *name)
{
	unsigned n = 0;

	for (unsigned i = 0; i < k->count; i++) {
		if (!name || !strcmp(k->kept[i].name, name))
			(void)close(k->kept[i].fd);
		else
			k->kept[n++] = k->kept[i];
	}
	k->count = n;
}

/* The value of a line, in buf; NULL: there is none. */
static const char *value(const char *text, const char *name, char *buf, size_t bytes)
{
	size_t len = strlen(name);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, len) != 0 || line[len] != '=')
			continue;
		(void)snprintf(buf, bytes, "%.*s", (int)strcspn(line + len + 1, "\n"),
			       line + len + 1);
		return buf;
	}
	return NULL;
}

/* fds that nobody is to keep are closed: whoever waits for that (BARRIER=1) knows then that all was read. */
static void take(struct fd_keeper *k, const char *text, const int *fds, unsigned count)
{
	char name[32] = "stored", word[32];
	int keeps = value(text, "FDSTORE", word, sizeof(word)) != NULL;

	(void)value(text, "FDNAME", name, sizeof(name));
	(void)pthread_mutex_lock(&k->mutex);
	k->ready += value(text, "READY", word, sizeof(word)) != NULL;
	k->reloading += value(text, "RELOADING", word, sizeof(word)) != NULL;
	k->stopping += value(text, "STOPPING", word, sizeof(word)) != NULL;
	if (value(text, "FDSTOREREMOVE", word, sizeof(word)))
		drop(k, name);
	for (unsigned i = 0; i < count; i++) {
		if (keeps)
			keep(k, name, fds[i]);
		else
			(void)close(fds[i]);
	}
	(void)pthread_mutex_unlock(&k->mutex);
}

static void *listen_on(void *arg)
{
	struct fd_keeper *k = arg;
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(8 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	char text[4096];

	for (;;) {
		struct iovec iov = { text, sizeof(text) - 1 };
		struct msghdr msg = { .msg_iov = &iov,
				      .msg_iovlen = 1,
				      .msg_control = &control,
				      .msg_controllen = sizeof(control) };
		ssize_t n = recvmsg(k->sock, &msg, MSG_CMSG_CLOEXEC);
		int fds[8];
		unsigned count = 0;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) /* shut down */
			return NULL;
		text[n] = '\0';
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
			if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
				continue;
			count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds, CMSG_DATA(c), count * sizeof(int));
		}
		take(k, text, fds, count);
	}
}

void fd_keeper_open(struct fd_keeper *k)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	memset(k, 0, sizeof(*k));
	(void)snprintf(k->path, sizeof(k->path), "/tmp/skvcd-keeper-%d", (int)getpid());
	(void)unlink(k->path);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", k->path);
	k->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (k->sock < 0 || bind(k->sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		die("fd_keeper: socket");
	(void)pthread_mutex_init(&k->mutex, NULL);
	if (pthread_create(&k->thread, NULL, listen_on, k) != 0)
		die("fd_keeper: thread");
}

void fd_keeper_close(struct fd_keeper *k)
{
	(void)shutdown(k->sock, SHUT_RDWR);
	(void)pthread_join(k->thread, NULL);
	(void)close(k->sock);
	(void)unlink(k->path);
	drop(k, NULL);
	(void)pthread_mutex_destroy(&k->mutex);
}

int fd_keeper_get(struct fd_keeper *k, const char *name)
{
	int fd = -1;

	(void)pthread_mutex_lock(&k->mutex);
	for (unsigned i = 0; i < k->count; i++)
		if (!strcmp(k->kept[i].name, name))
			fd = fd == -1 ? k->kept[i].fd : -2;
	if (fd >= 0)
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	(void)pthread_mutex_unlock(&k->mutex);
	return fd;
}

void fd_keeper_put(struct fd_keeper *k, const char *name, int fd)
{
	(void)pthread_mutex_lock(&k->mutex);
	keep(k, name, fd);
	(void)pthread_mutex_unlock(&k->mutex);
}

void fd_keeper_drop(struct fd_keeper *k, const char *name)
{
	(void)pthread_mutex_lock(&k->mutex);
	drop(k, name);
	(void)pthread_mutex_unlock(&k->mutex);
}

unsigned fd_keeper_ready(struct fd_keeper *k)
{
	unsigned n;

	(void)pthread_mutex_lock(&k->mutex);
	n = k->ready;
	(void)pthread_mutex_unlock(&k->mutex);
	return n;
}

/* Nobody else runs in the child: what the mutex guards is not looked at, but was still when it was made. */
void fd_keeper_become_child(struct fd_keeper *k)
{
	char pid[16], count[16], names[FD_KEEPER_MAX * 33] = "";
	int up[FD_KEEPER_MAX];

	for (unsigned i = 0; i < k->count; i++) {
		up[i] = fcntl(k->kept[i].fd, F_DUPFD_CLOEXEC, 64);
		(void)snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s",
			       i ? ":" : "", k->kept[i].name);
	}
	for (unsigned i = 0; i < k->count; i++)
		if (up[i] < 0 || dup2(up[i], LISTEN_FIRST + (int)i) < 0)
			_exit(126);
	(void)snprintf(pid, sizeof(pid), "%d", (int)getpid());
	(void)snprintf(count, sizeof(count), "%u", k->count);
	(void)setenv("NOTIFY_SOCKET", k->path, 1);
	if (!k->count)
		return;
	(void)setenv("LISTEN_PID", pid, 1);
	(void)setenv("LISTEN_FDS", count, 1);
	(void)setenv("LISTEN_FDNAMES", names, 1);
}
