/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_aside.c - descriptors are closed, by somebody; a socket without anything unread at once; and one user's do not
 * take more threads, the longer they take.
 */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/aside.h"
#include "ipc/fdpass.h"
#include "tests/lib/control_rig.h"
#include "tests/lib/raw_client.h"

static int is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static unsigned closers(void)
{
	DIR *d = opendir("/proc/self/task");
	const struct dirent *e;
	unsigned n = 0;

	assert_non_null(d);
	while ((e = readdir(d)) != NULL) {
		char path[300], name[32] = "";
		FILE *f;

		(void)snprintf(path, sizeof(path), "/proc/self/task/%s/comm", e->d_name);
		f = fopen(path, "re");
		if (f) {
			(void)!fgets(name, sizeof(name), f);
			(void)fclose(f);
		}
		n += !strcmp(name, "skvcd-close\n");
	}
	(void)closedir(d);
	return n;
}

static void all_of_a_lot(void **state)
{
	unsigned before = control_rig_open_fds();
	int fds[FDPASS_FDS_MAX];

	(void)state;
	aside_close(1, NULL, 0);
	for (unsigned i = 0; i < FDPASS_FDS_MAX; i++) {
		fds[i] = fcntl(0, F_DUPFD_CLOEXEC, 3);
		assert_true(fds[i] >= 0);
	}
	aside_close(1, fds, FDPASS_FDS_MAX);
	assert_int_equal(control_rig_fds_left(before), before);
}

static void a_socket_that_was_read(void **state)
{
	int fds[2];
	char byte = 1;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(send(fds[0], &byte, 1, 0), 1);
	aside_close_socket(1, fds[0]);
	assert_false(is_open(fds[0]));
	assert_int_equal(recv(fds[1], &byte, 1, 0), 1); /* what was said last is heard */
	assert_int_equal(recv(fds[1], &byte, 1, 0), 0);
	aside_close_socket(1, fds[1]);
	assert_false(is_open(fds[1]));
}

static void a_socket_with_something_unread(void **state)
{
	unsigned before = control_rig_open_fds();
	int fds[2], zero = 0;
	char byte = 1;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(fdpass_send(fds[1], &byte, 1, &zero, 1), 0);
	aside_close_socket(1, fds[0]);
	assert_int_equal(control_rig_fds_left(before + 1), before + 1);
	assert_true(fdpass_send(fds[1], &byte, 1, &zero, 1) < 0);
	(void)close(fds[1]);
}

/* What he made takes its time: the threads that wait for it are few, and others' descriptors do not. */
static void a_user_holds_up_himself(void **state)
{
	unsigned before, many = 5 * ASIDE_BEHIND;
	int peers[5 * ASIDE_BEHIND];

	(void)state;
	assert_false(aside_is_behind(1));
	for (unsigned i = 0; i < many; i++) {
		int fd = raw_lingering_socket(&peers[i]);

		assert_true(fd >= 0);
		aside_close(1, &fd, 1);
	}
	assert_true(aside_is_behind(1));
	assert_true(closers() <= ASIDE_THREADS_MAX);
	assert_false(aside_is_behind(2));
	before = control_rig_open_fds();
	for (unsigned i = 0; i < many; i++) {
		int fd = fcntl(0, F_DUPFD_CLOEXEC, 3);

		aside_close(2, &fd, 1);
	}
	assert_true(control_rig_fds_left(before) <= before);
	for (unsigned i = 0; i < many; i++)
		(void)close(peers[i]);
	for (unsigned ms = 0; aside_is_behind(1); ms++) {
		assert_true(ms < 20000);
		(void)usleep(1000);
	}
}

/* An empty packet is no end, and an error before what was sent neither. */
static void a_socket_that_looks_empty(void **state)
{
	for (unsigned i = 0; i < 2; i++) {
		int fds[2], peer, fd = raw_lingering_socket(&peer);
		char byte = 1;

		(void)state;
		assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
		if (i)
			assert_int_equal(send(fds[0], &byte, 1, 0), 1); /* unread when it closes */
		else
			assert_int_equal(send(fds[1], &byte, 0, 0), 0);
		assert_int_equal(fdpass_send(fds[1], &byte, 1, &fd, 1), 0);
		(void)close(fd);
		(void)close(fds[1]);
		(void)alarm(20);
		aside_close_socket(1, fds[0]);
		(void)alarm(0);
		(void)close(peer);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_a_lot),
		cmocka_unit_test(a_socket_that_was_read),
		cmocka_unit_test(a_socket_with_something_unread),
		cmocka_unit_test(a_user_holds_up_himself),
		cmocka_unit_test(a_socket_that_looks_empty),
	};

	return cmocka_run_group_tests_name("aside", tests, NULL, NULL);
}
