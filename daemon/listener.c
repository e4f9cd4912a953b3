/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.c - lock, bind, listen, accept, and the peer's credentials.  Control thread.  Knows nothing of
 * what is spoken over the sockets.
 */
#include "daemon/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5, asm-generic/socket.h */
#endif

#define LISTENER_BACKLOG 64

static int fail(int error, char *err, size_t err_bytes, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static int fail(int error, char *err, size_t err_bytes, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(err, err_bytes, format, args);
	va_end(args);
	return error;
}

/* /run/skvcd is normally systemd's work; a private daemon in a fresh directory makes its own. */
static void make_parent(const char *path)
{
	char dir[CONFIG_SOCKET_BYTES];
	const char *slash = strrchr(path, '/');

	if (!slash || slash == path)
		return;
	(void)snprintf(dir, sizeof(dir), "%.*s", (int)(slash - path), path);
	(void)mkdir(dir, 0755); /* whether it is usable shows when the lock is made */
}

/* The lock file stays when the daemon ends: removing it would let two daemons lock two files. */
static int take_lock(struct listener *l, char *err, size_t err_bytes)
{
	char path[CONFIG_SOCKET_BYTES + 8], pid[16] = "";
	ssize_t n;
	int r;

	(void)snprintf(path, sizeof(path), "%s.lock", l->path);
	l->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (l->lock_fd < 0) {
		r = -errno;
		return fail(r, err, err_bytes, "%s: cannot be made: %s", path, strerror(-r));
	}
	if (flock(l->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		r = -errno;
		if (r != -EWOULDBLOCK)
			return fail(r, err, err_bytes, "%s: cannot be locked: %s", path,
				    strerror(-r));
		n = pread(l->lock_fd, pid, sizeof(pid) - 1, 0);
		pid[n > 0 ? n : 0] = '\0';
		return fail(-EADDRINUSE, err, err_bytes,
			    "socket %s: skvcd is running already, with pid %d; stop "
			    "it, or give this one a socket of its own",
			    l->path, atoi(pid));
	}
	n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
	if (ftruncate(l->lock_fd, 0) < 0 || pwrite(l->lock_fd, pid, (size_t)n, 0) != n)
		return fail(-EIO, err, err_bytes, "%s: cannot be written", path);
	return 0;
}

/* A socket without a listener is what a killed daemon leaves.  1: may be removed; 0: nothing is there. */
static int is_stale(const struct listener *l, int type, const struct sockaddr_un *addr, char *err,
		    size_t err_bytes)
{
	struct stat st;
	int fd, r;

	if (lstat(l->path, &st) < 0)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return fail(-EEXIST, err, err_bytes,
			    "socket %s: something else has this name; remove it or "
			    "choose another",
			    l->path);
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	r = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0 ? errno : 0;
	(void)close(fd);
	if (r == ECONNREFUSED)
		return 1;
	return fail(-EADDRINUSE, err, err_bytes,
		    "socket %s: another program listens on it; stop it or choose "
		    "another name",
		    l->path);
}

static int bind_and_listen(struct listener *l, int type, uint32_t mode, char *err, size_t err_bytes)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	mode_t old;
	int r;

	memcpy(addr.sun_path, l->path, strlen(l->path));
	r = is_stale(l, type, &addr, err, err_bytes);
	if (r < 0)
		return r;
	if (r)
		(void)unlink(l->path);
	l->fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->fd < 0) {
		r = -errno;
		return fail(r, err, err_bytes, "socket %s: %s", l->path, strerror(-r));
	}
	old = umask(0177); /* closed to others until its mode is set; no thread runs yet */
	r = bind(l->fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0 ? -errno : 0;
	(void)umask(old);
	l->made = !r;
	if (!r && chmod(l->path, mode) < 0)
		r = -errno;
	if (!r && listen(l->fd, LISTENER_BACKLOG) < 0)
		r = -errno;
	if (r < 0)
		return fail(r, err, err_bytes, "socket %s: cannot listen: %s", l->path,
			    strerror(-r));
	return 0;
}

static int adopt(struct listener *l, int type, int given_fd, char *err, size_t err_bytes)
{
	socklen_t len = sizeof(int);
	int is_type = 0, listens = 0;

	if (getsockopt(given_fd, SOL_SOCKET, SO_TYPE, &is_type, &len) < 0 || is_type != type ||
	    getsockopt(given_fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) < 0 || !listens)
		return fail(-EINVAL, err, err_bytes,
			    "socket %s: what systemd passed is not a listening socket of "
			    "this type; compare skvcd.socket",
			    l->path);
	if (fcntl(given_fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(given_fd, F_SETFD, FD_CLOEXEC) < 0)
		return fail(-errno, err, err_bytes, "socket %s: %s", l->path, strerror(errno));
	l->fd = given_fd;
	return 0;
}

int listener_open(const char *path, int type, uint32_t mode, int given_fd, struct listener *ret,
		  char *err, size_t err_bytes)
{
	struct listener l = LISTENER_NONE;
	int r;

	if (!path[0] || strlen(path) >= sizeof(l.path))
		return fail(-ENAMETOOLONG, err, err_bytes,
			    "socket %.120s: empty or too long a name", path);
	memcpy(l.path, path, strlen(path));
	make_parent(path);
	r = take_lock(&l, err, err_bytes);
	if (!r)
		r = given_fd >= 0 ? adopt(&l, type, given_fd, err, err_bytes)
				  : bind_and_listen(&l, type, mode, err, err_bytes);
	if (r < 0) {
		listener_close(&l);
		return r;
	}
	*ret = l;
	return 0;
}

void listener_close(struct listener *l)
{
	if (l->made)
		(void)unlink(l->path);
	if (l->fd >= 0)
		(void)close(l->fd);
	if (l->lock_fd >= 0)
		(void)close(l->lock_fd);
	*l = (struct listener)LISTENER_NONE;
}

int listener_accept(const struct listener *l, int *ret_sock)
{
	int fd;

	do {
		fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	} while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	if (fd < 0)
		return -errno;
	*ret_sock = fd;
	return 0;
}

int listener_peer(int sock, struct listener_peer *ret)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int pidfd = -1;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -errno;
	len = sizeof(pidfd);
	if (cred.pid > 0 && getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) < 0) {
		/* Before 6.5.  The pid could be a successor's by now: then the socket tells the death. */
		pidfd = errno == ENOPROTOOPT ? pidfd_open(cred.pid, 0) : -1;
		if (pidfd < 0 && errno == ESRCH)
			return -ESRCH;
	}
	if (pidfd >= 0)
		(void)fcntl(pidfd, F_SETFD, FD_CLOEXEC);
	ret->pid = cred.pid;
	ret->uid = cred.uid;
	ret->gid = cred.gid;
	ret->pidfd = pidfd;
	return 0;
}

int listener_peer_in_group(int sock, gid_t gid)
{
	struct ucred cred;
	gid_t groups[256];
	socklen_t len = sizeof(cred);

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return 0;
	if (cred.gid == gid)
		return 1;
	len = sizeof(groups);
	if (getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0)
		return 0;
	for (size_t i = 0; i < len / sizeof(groups[0]); i++)
		if (groups[i] == gid)
			return 1;
	return 0;
}
