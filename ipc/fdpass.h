/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdpass.h - one packet with its file descriptors over a SOCK_SEQPACKET socket.
 */
#ifndef SKVCD_IPC_FDPASS_H
#define SKVCD_IPC_FDPASS_H

#include <stddef.h>

/* Send one packet (MSG_NOSIGNAL).  fds are borrowed.  0, -EAGAIN (nonblocking socket), -EPIPE, ... */
int fdpass_send(int sock, const void *packet, size_t packet_bytes, const int *fds,
		unsigned fds_count);

/*
 * Receive one packet.  Returns its length (0: peer closed), or -EAGAIN, -EMSGSIZE (truncated packet),
 * -EPROTO (control data truncated or of another kind), -errno.  fds come CLOEXEC and are the caller's;
 * on any error none is left open.  ret_fds has room for fds_max; more is -EPROTO.
 */
int fdpass_recv(int sock, void *ret_packet, size_t packet_max, int *ret_fds, unsigned fds_max,
		unsigned *ret_fds_count, int flags);

/*
 * The same, but the caller closes what came along, also after an error, which leaves *ret_fds_count at how many: for
 * who must not be held up by the close() of a descriptor that a stranger made.  ret_fds has room for FDPASS_FDS_MAX.
 */
#define FDPASS_FDS_MAX 253u /* the kernel passes no more: SCM_MAX_FD */
int fdpass_take(int sock, void *ret_packet, size_t packet_max, int ret_fds[FDPASS_FDS_MAX],
		unsigned *ret_fds_count, int flags);

#endif
