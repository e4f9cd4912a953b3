/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_wake.c - what wakes a client, and that nothing the client does with its end stops or kills who wakes it.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "ipc/wake.h"

#define SENDS 100000

static int readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, 0) == 1 && p.revents & POLLIN;
}

static void wakes_and_is_emptied(void **state)
{
	uint64_t words[64];
	int fd, peer;

	(void)state;
	assert_int_equal(wake_pair(&fd, &peer), 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC && fcntl(peer, F_GETFD) & FD_CLOEXEC);
	assert_false(readable(peer));
	wake_send(fd);
	assert_true(readable(peer));
	wake_send(fd);
	assert_int_equal(read(peer, words, sizeof(words)), 16);
	assert_false(readable(peer));
	(void)close(fd);
	assert_true(readable(peer)); /* whoever sleeps notices */
	(void)close(peer);
}

/* It is full after a few words, whatever the other end says about blocking. */
static void nobody_reads(void **state)
{
	uint64_t word;
	unsigned kept = 0;
	int fd, peer;

	(void)state;
	assert_int_equal(wake_pair(&fd, &peer), 0);
	assert_int_equal(fcntl(peer, F_SETFL, 0), 0);
	for (unsigned i = 0; i < SENDS; i++)
		wake_send(fd);
	while (recv(peer, &word, sizeof(word), MSG_DONTWAIT) == (ssize_t)sizeof(word))
		kept++;
	assert_in_range(kept, 1, 64);
	wake_send(fd);
	assert_true(readable(peer));
	(void)close(fd);
	(void)close(peer);
}

static void nothing_can_be_piled_up_in_it(void **state)
{
	uint64_t word = 1;
	int fd, peer;

	(void)state;
	assert_int_equal(wake_pair(&fd, &peer), 0);
	assert_int_equal(send(peer, &word, sizeof(word), MSG_NOSIGNAL), -1);
	assert_int_equal(errno, EPIPE);
	(void)close(fd);
	(void)close(peer);
}

static void nobody_is_there(void **state)
{
	int fd, peer;

	(void)state;
	assert_int_equal(wake_pair(&fd, &peer), 0);
	assert_int_equal(shutdown(peer, SHUT_RDWR), 0);
	wake_send(fd); /* a SIGPIPE would end this program */
	(void)close(peer);
	wake_send(fd);
	(void)close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wakes_and_is_emptied),
		cmocka_unit_test(nobody_reads),
		cmocka_unit_test(nothing_can_be_piled_up_in_it),
		cmocka_unit_test(nobody_is_there),
	};

	return cmocka_run_group_tests_name("wake", tests, NULL, NULL);
}
