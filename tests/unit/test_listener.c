/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_listener.c - one daemon a socket: the lock, what a killed daemon left, what systemd passed; and who
 * is at the other end.
 */
#include "daemon/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64], path[96], err[256];
static struct sockaddr_un addr;

static int setup(void **state)
{
	(void)state;
	(void)snprintf(dir, sizeof(dir), "/tmp/skvcd-listen-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/run/sock", dir);
	memset(&addr, 0, sizeof(addr));
	addr.sun_family = AF_UNIX;
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	return 0;
}

static int teardown(void **state)
{
	char other[128];

	(void)state;
	(void)unlink(path);
	(void)snprintf(other, sizeof(other), "%s.lock", path);
	(void)unlink(other);
	(void)snprintf(other, sizeof(other), "%s/run", dir);
	(void)rmdir(other);
	return rmdir(dir);
}

static int listen_on(int type, int given_fd, struct listener *ret)
{
	err[0] = '\0';
	return listener_open(path, type, 0660, given_fd, ret, err, sizeof(err));
}

/* A socket bound by somebody who does not take our lock. */
static int stranger(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void test_modes(void **state)
{
	struct listener l = LISTENER_NONE;
	struct stat st;

	(void)state;
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &l), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0660);
	assert_true(fcntl(l.fd, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(l.fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(l.lock_fd, F_GETFD) & FD_CLOEXEC);
	*strrchr(path, '/') = '\0';
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0755);
	path[strlen(path)] = '/';
	listener_close(&l);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(l.fd, -1);
	listener_close(&l); /* closing what is closed is fine */
}

static void test_second_is_refused(void **state)
{
	struct listener first = LISTENER_NONE, second = LISTENER_NONE;
	char want[32];

	(void)state;
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &first), 0);
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &second), -EADDRINUSE);
	(void)snprintf(want, sizeof(want), "with pid %d;", (int)getpid());
	assert_non_null(strstr(err, want));
	assert_int_equal(second.fd, -1);
	assert_int_equal(access(path, F_OK), 0); /* the first one's is untouched */
	listener_close(&first);
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &second), 0);
	listener_close(&second);
}

static void test_stale_is_replaced(void **state)
{
	struct listener l = LISTENER_NONE;
	int fd;

	(void)state;
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &l), 0);
	listener_close(&l);
	fd = stranger();
	(void)close(fd);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &l), 0);
	listener_close(&l);
	/* Somebody lives there, though without our lock. */
	fd = stranger();
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &l), -EADDRINUSE);
	assert_int_equal(access(path, F_OK), 0);
	(void)close(fd);
	(void)unlink(path);
	/* No socket at all: nothing of ours to remove. */
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	(void)close(fd);
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &l), -EEXIST);
	assert_int_equal(access(path, F_OK), 0);
}

static void test_given_by_systemd(void **state)
{
	struct listener l = LISTENER_NONE;
	int fd;

	(void)state;
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &l), 0);
	listener_close(&l);
	fd = stranger();
	assert_int_equal(listen_on(SOCK_SEQPACKET, fd, &l), -EINVAL); /* does not listen */
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(listen_on(SOCK_STREAM, fd, &l), -EINVAL);
	assert_non_null(strstr(err, "skvcd.socket"));
	assert_int_equal(listen_on(SOCK_SEQPACKET, fd, &l), 0);
	assert_int_equal(l.fd, fd);
	listener_close(&l);
	assert_int_equal(access(path, F_OK), 0); /* systemd's to remove */
}

static void test_bad_paths(void **state)
{
	char longer[200];
	struct listener l = LISTENER_NONE;

	(void)state;
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	assert_int_equal(listener_open(longer, SOCK_STREAM, 0660, -1, &l, err, sizeof(err)),
			 -ENAMETOOLONG);
	assert_int_equal(listener_open("", SOCK_STREAM, 0660, -1, &l, err, sizeof(err)),
			 -ENAMETOOLONG);
	assert_int_equal(
		listener_open("/nonexistent/a/b", SOCK_STREAM, 0660, -1, &l, err, sizeof(err)),
		-ENOENT);
	assert_non_null(strstr(err, "/nonexistent/a/b.lock"));
}

static void test_peer(void **state)
{
	struct listener l = LISTENER_NONE;
	struct listener_peer peer;
	struct pollfd p = { .events = POLLIN };
	int sock = -1, status, go[2];
	pid_t pid;

	(void)state;
	assert_int_equal(listen_on(SOCK_SEQPACKET, -1, &l), 0);
	assert_int_equal(listener_accept(&l, &sock), -EAGAIN);
	assert_int_equal(pipe(go), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
		char c;

		(void)alarm(20);
		if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
			_exit(1);
		_exit(read(go[0], &c, 1) == 1 ? 0 : 1);
	}
	p.fd = l.fd;
	assert_int_equal(poll(&p, 1, 10000), 1);
	assert_int_equal(listener_accept(&l, &sock), 0);
	assert_int_equal(listener_peer(sock, &peer), 0);
	assert_int_equal(peer.pid, pid);
	assert_int_equal(peer.uid, geteuid());
	assert_true(peer.pidfd >= 0);
	assert_true(fcntl(peer.pidfd, F_GETFD) & FD_CLOEXEC);
	assert_true(listener_peer_in_group(sock, getegid()));
	assert_false(listener_peer_in_group(sock, 54321));
	p.fd = peer.pidfd;
	assert_int_equal(poll(&p, 1, 0), 0); /* it lives */
	assert_int_equal(write(go[1], "x", 1), 1);
	assert_int_equal(poll(&p, 1, 10000), 1); /* and now it does not */
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	(void)close(peer.pidfd);
	(void)close(sock);
	(void)close(go[0]);
	(void)close(go[1]);
	listener_close(&l);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_modes),
		TEST(test_second_is_refused),
		TEST(test_stale_is_replaced),
		TEST(test_given_by_systemd),
		cmocka_unit_test(test_bad_paths),
		TEST(test_peer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
