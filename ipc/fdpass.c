/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdpass.c - sendmsg and recvmsg with SCM_RIGHTS, and the care that keeps foreign descriptors from
 * staying open when a packet is refused.  Runs on the daemon's control thread and in the client.
 */
#include "ipc/fdpass.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc/ctl_msg.h"

/*
 * Room for all that can come: a peer that sends too many is told apart (we see the surplus and refuse) from control
 * data that the kernel cut off, and it never has to drop descriptors, which would be our close() of them.
 */
union fdpass_control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(FDPASS_FDS_MAX * sizeof(int))];
};

int fdpass_send(int sock, const void *packet, size_t packet_bytes, const int *fds,
		unsigned fds_count)
{
	struct iovec iov = { .iov_base = (void *)packet, .iov_len = packet_bytes };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union fdpass_control control;
	ssize_t n;

	if (fds_count > CTL_FDS_MAX)
		return -EINVAL;
	if (fds_count) {
		struct cmsghdr *cmsg;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(fds_count * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(fds_count * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, fds_count * sizeof(int));
	}
	do {
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	/* A SEQPACKET socket sends all of a packet or nothing. */
	return (size_t)n == packet_bytes ? 0 : -EMSGSIZE;
}

/* Take every descriptor out of the control data, so that each one is either handed over or closed. */
static unsigned collect_fds(struct msghdr *msg, int *fds, bool *ret_foreign)
{
	unsigned count = 0;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		size_t n;

		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
			*ret_foreign = true;
			continue;
		}
		n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(fd));
			if (count < FDPASS_FDS_MAX)
				fds[count++] = fd;
			else
				(void)close(fd);
		}
	}
	return count;
}

int fdpass_take(int sock, void *ret_packet, size_t packet_max, int ret_fds[FDPASS_FDS_MAX],
		unsigned *ret_fds_count, int flags)
{
	struct iovec iov = { .iov_base = ret_packet, .iov_len = packet_max };
	union fdpass_control control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	bool foreign = false;
	ssize_t n;

	*ret_fds_count = 0;
	do {
		n = recvmsg(sock, &msg, flags | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	*ret_fds_count = collect_fds(&msg, ret_fds, &foreign);
	if (msg.msg_flags & MSG_TRUNC)
		return -EMSGSIZE;
	return foreign || (msg.msg_flags & MSG_CTRUNC) ? -EPROTO : (int)n;
}

int fdpass_recv(int sock, void *ret_packet, size_t packet_max, int *ret_fds, unsigned fds_max,
		unsigned *ret_fds_count, int flags)
{
	int fds[FDPASS_FDS_MAX];
	unsigned count;
	int r = fdpass_take(sock, ret_packet, packet_max, fds, &count, flags);

	if (r >= 0 && count > fds_max)
		r = -EPROTO;
	if (r <= 0) {
		for (unsigned i = 0; i < count; i++)
			(void)close(fds[i]);
		if (!r)
			*ret_fds_count = 0;
		return r;
	}
	if (count)
		memcpy(ret_fds, fds, count * sizeof(int));
	*ret_fds_count = count;
	return r;
}
