/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.h - a listening Unix socket that belongs to one daemon at a time, and who is at the other end
 * of a connection.  Control thread.
 */
#ifndef SKVCD_DAEMON_LISTENER_H
#define SKVCD_DAEMON_LISTENER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/config.h"

struct listener {
	int fd;	     /* owned, listening, nonblocking */
	int lock_fd; /* owned: "<path>.lock", held exclusively */
	int made;    /* the socket file is ours to remove */
	char path[CONFIG_SOCKET_BYTES];
};

#define LISTENER_NONE                   \
	{                               \
		.fd = -1, .lock_fd = -1 \
	}

/*
 * Lock path and listen there; a socket that a dead daemon left is replaced.  given_fd >= 0: systemd
 * listens already, use that (taken over on success).  type: SOCK_SEQPACKET or SOCK_STREAM.
 * -EADDRINUSE: another daemon's, err names its pid; -errno with one line in err.
 */
int listener_open(const char *path, int type, uint32_t mode, int given_fd, struct listener *ret,
		  char *err, size_t err_bytes);
void listener_close(struct listener *l);

/* Nonblocking, CLOEXEC.  -EAGAIN: nobody waits. */
int listener_accept(const struct listener *l, int *ret_sock);

struct listener_peer {
	pid_t pid; /* 0: not visible from here */
	uid_t uid;
	gid_t gid;
	int pidfd; /* owned by the caller; -1: none can be had */
};

/* The kernel's word about the other end.  -ESRCH: it is gone already. */
int listener_peer(int sock, struct listener_peer *ret);
/* 1: the peer has this group, as its own or as a supplementary one. */
int listener_peer_in_group(int sock, gid_t gid);

#endif
