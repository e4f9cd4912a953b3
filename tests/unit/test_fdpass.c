/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_fdpass.c - packets with descriptors; and that refused ones leave no descriptor open.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/fdpass.h"
#include "tests/lib/client_rig.h"

static int pair[2];

static int make_pair(void **state)
{
	(void)state;
	return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
}

static int close_pair(void **state)
{
	(void)state;
	(void)close(pair[0]);
	return close(pair[1]);
}

/* What a foreign program might send: any number of descriptors in one message. */
static void send_fds(int count, int with_credentials)
{
	char control[CMSG_SPACE(64 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))] = { 0 };
	char byte = 'x';
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control };
	struct cmsghdr *c = (struct cmsghdr *)control;
	int fds[64];

	for (int i = 0; i < 64; i++)
		fds[i] = pair[0];
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
	memcpy(CMSG_DATA(c), fds, (size_t)count * sizeof(int));
	msg.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
	if (with_credentials) {
		struct ucred cred = { getpid(), getuid(), getgid() };

		c = (struct cmsghdr *)(control + msg.msg_controllen);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_CREDENTIALS;
		c->cmsg_len = CMSG_LEN(sizeof(cred));
		memcpy(CMSG_DATA(c), &cred, sizeof(cred));
		msg.msg_controllen += CMSG_SPACE(sizeof(cred));
	}
	assert_int_equal(sendmsg(pair[0], &msg, 0), 1);
}

static void carries_bytes_and_descriptors(void **state)
{
	int fds[4], one = 0, pipe_fds[2];
	unsigned count = 9;
	char buffer[16];

	(void)state;
	assert_int_equal(fdpass_send(pair[0], "hello", 5, NULL, 0), 0);
	assert_int_equal(fdpass_recv(pair[1], buffer, sizeof(buffer), fds, 4, &count, 0), 5);
	assert_int_equal(count, 0);
	assert_memory_equal(buffer, "hello", 5);
	assert_int_equal(pipe(pipe_fds), 0);
	assert_int_equal(fdpass_send(pair[0], "fds", 3, (int[]){ pipe_fds[1], pipe_fds[1] }, 2), 0);
	assert_int_equal(fdpass_recv(pair[1], buffer, sizeof(buffer), fds, 2, &count, 0), 3);
	assert_int_equal(count, 2);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
		assert_int_equal(write(fds[i], &one, 1), 1); /* really the pipe */
		assert_int_equal(read(pipe_fds[0], &one, 1), 1);
		(void)close(fds[i]);
	}
	(void)close(pipe_fds[0]);
	(void)close(pipe_fds[1]);
	assert_int_equal(fdpass_send(pair[0], "x", 1, pair, 5), -EINVAL);
}

static void refused_descriptors_are_closed(void **state)
{
	static const int counts[] = { 1, 3, 8, 9, 64 };
	unsigned open = rig_open_fds();

	(void)state;
	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		int fds[4] = { -7, -7, -7, -7 };
		unsigned count = 9;
		char byte;

		send_fds(counts[i], 0);
		assert_int_equal(fdpass_recv(pair[1], &byte, 1, fds, 0, &count, 0), -EPROTO);
		assert_int_equal(count, 9); /* untouched */
		assert_int_equal(rig_open_fds(), open);
		if (counts[i] > 4) {
			send_fds(counts[i], 0);
			assert_int_equal(fdpass_recv(pair[1], &byte, 1, fds, 4, &count, 0),
					 -EPROTO);
			assert_int_equal(fds[0], -7);
			assert_int_equal(rig_open_fds(), open);
		}
	}
	/* Too long a packet, with descriptors. */
	assert_int_equal(fdpass_send(pair[0], "long", 4, pair, 2), 0);
	assert_int_equal(
		fdpass_recv(pair[1], (char[3]){ 0 }, 3, (int[4]){ 0 }, 4, &(unsigned){ 0 }, 0),
		-EMSGSIZE);
	assert_int_equal(rig_open_fds(), open);
}

static void refuses_foreign_control_data(void **state)
{
	unsigned open = rig_open_fds(), count;
	const int on = 1;
	int fds[4];
	char byte;

	(void)state;
	assert_int_equal(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
	/* Credentials alone, which the kernel adds by itself; then with descriptors. */
	assert_int_equal(fdpass_send(pair[0], "x", 1, NULL, 0), 0);
	assert_int_equal(fdpass_recv(pair[1], &byte, 1, fds, 4, &count, 0), -EPROTO);
	send_fds(2, 1);
	assert_int_equal(fdpass_recv(pair[1], &byte, 1, fds, 4, &count, 0), -EPROTO);
	assert_int_equal(rig_open_fds(), open);
}

static void tells_ends_apart(void **state)
{
	unsigned count = 9;
	int fds[4];
	char byte;

	(void)state;
	assert_int_equal(fdpass_recv(pair[1], &byte, 1, fds, 4, &count, MSG_DONTWAIT), -EAGAIN);
	assert_int_equal(fcntl(pair[0], F_SETFL, O_NONBLOCK), 0);
	while (!fdpass_send(pair[0], "x", 1, NULL, 0))
		;
	assert_int_equal(fdpass_send(pair[0], "x", 1, NULL, 0), -EAGAIN);
	(void)shutdown(pair[0], SHUT_RDWR);
	while (fdpass_recv(pair[1], &byte, 1, fds, 4, &count, 0) == 1)
		;
	assert_int_equal(fdpass_recv(pair[1], &byte, 1, fds, 4, &count, 0), 0);
	assert_int_equal(count, 0);
	assert_int_equal(fdpass_send(pair[1], "x", 1, NULL, 0), -EPIPE); /* and no SIGPIPE */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(carries_bytes_and_descriptors, make_pair,
						close_pair),
		cmocka_unit_test_setup_teardown(refused_descriptors_are_closed, make_pair,
						close_pair),
		cmocka_unit_test_setup_teardown(refuses_foreign_control_data, make_pair,
						close_pair),
		cmocka_unit_test_setup_teardown(tells_ends_apart, make_pair, close_pair),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
