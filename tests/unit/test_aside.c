/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_aside.c - descriptors are closed, by somebody; a socket without anything unread at once.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/aside.h"
#include "ipc/fdpass.h"
#include "tests/lib/control_rig.h"

static int is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static void all_of_a_lot(void **state)
{
	unsigned before = control_rig_open_fds();
	int fds[FDPASS_FDS_MAX];

	(void)state;
	aside_close(NULL, 0);
	for (unsigned i = 0; i < FDPASS_FDS_MAX; i++) {
		fds[i] = fcntl(0, F_DUPFD_CLOEXEC, 3);
		assert_true(fds[i] >= 0);
	}
	aside_close(fds, FDPASS_FDS_MAX);
	assert_int_equal(control_rig_fds_left(before), before);
}

static void a_socket_that_was_read(void **state)
{
	int fds[2];
	char byte = 1;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(send(fds[0], &byte, 1, 0), 1);
	aside_close_socket(fds[0]);
	assert_false(is_open(fds[0]));
	assert_int_equal(recv(fds[1], &byte, 1, 0), 1); /* what was said last is heard */
	assert_int_equal(recv(fds[1], &byte, 1, 0), 0);
	aside_close_socket(fds[1]);
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
	aside_close_socket(fds[0]);
	assert_int_equal(control_rig_fds_left(before + 1), before + 1);
	assert_true(fdpass_send(fds[1], &byte, 1, &zero, 1) < 0);
	(void)close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_a_lot),
		cmocka_unit_test(a_socket_that_was_read),
		cmocka_unit_test(a_socket_with_something_unread),
	};

	return cmocka_run_group_tests_name("aside", tests, NULL, NULL);
}
