/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wake.c - the socket that wakes a client.  Made by the control thread, written by the lane.
 */
#include "ipc/wake.h"

#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

int wake_pair(int *ret_fd, int *ret_peer_fd)
{
	const int bytes = 1; /* the kernel's least: a few words, of which nobody needs the second */
	int fds[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
		return -errno;
	/* Nobody reads this end, so nothing may be piled up there. */
	if (setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) < 0 ||
	    shutdown(fds[0], SHUT_RD) < 0) {
		r = -errno;
		(void)close(fds[0]);
		(void)close(fds[1]);
		return r;
	}
	*ret_fd = fds[0];
	*ret_peer_fd = fds[1];
	return 0;
}

void wake_send(int fd)
{
	const uint64_t one = 1;

	/* Full: then it is readable.  Closed or shut down: the client's own doing, it can poll the ring. */
	(void)send(fd, &one, sizeof(one), MSG_DONTWAIT | MSG_NOSIGNAL);
}
