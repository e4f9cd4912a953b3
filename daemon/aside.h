/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aside.h - closing what came from somebody else.  The last close() of a descriptor can take as long as who made it
 * likes: a TCP socket lingers, a FUSE file asks its server.  So a thread of its own does that, which may stay there.
 */
#ifndef SKVCD_DAEMON_ASIDE_H
#define SKVCD_DAEMON_ASIDE_H

/* Descriptors that were passed to us, at most FDPASS_FDS_MAX.  Without a thread they stay open: better than to wait. */
void aside_close(const int *fds, unsigned count);

/* A client's socket.  What it has sent and nobody has read may bring descriptors along; else it is closed at once. */
void aside_close_socket(int sock);

#endif
