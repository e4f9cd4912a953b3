/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aside.h - closing what came from somebody else.  The last close() of a descriptor can take as long as who made it
 * likes: a TCP socket lingers, a FUSE file asks its server.  So other threads do that, which may stay there: a few for
 * each user, behind which his descriptors wait for their turn and nobody else's.
 */
#ifndef SKVCD_DAEMON_ASIDE_H
#define SKVCD_DAEMON_ASIDE_H

#include <stdbool.h>
#include <sys/types.h>

#define ASIDE_NOBODY ((uid_t)-1) /* of a peer that is not known */
#define ASIDE_THREADS_MAX 4u	 /* of one user */
#define ASIDE_BEHIND 16u /* lots that are not closed yet: nothing more is taken from this user */

/* Descriptors that this user passed to us, at most FDPASS_FDS_MAX.  Without memory they stay open. */
void aside_close(uid_t uid, const int *fds, unsigned count);

/* A client's socket.  What it has sent and nobody has read may bring descriptors along; else it is closed at once. */
void aside_close_socket(uid_t uid, int sock);

bool aside_is_behind(uid_t uid);

#endif
