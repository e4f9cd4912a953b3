/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fdstore.h - fds that come from whoever starts the daemon, and those that he keeps for the next one: the host pool's
 * memfd, and its index (warm.h).  The protocol is systemd's (sd_listen_fds(3), FDSTORE= in sd_notify(3)), and not its
 * alone.
 */
#ifndef SKVCD_DAEMON_FDSTORE_H
#define SKVCD_DAEMON_FDSTORE_H

#include <stddef.h>

#define FDSTORE_POOL "skvcd-pool"
#define FDSTORE_INDEX "skvcd-index"

struct fdstore {
	int socket; /* -1: none, as the others; owned */
	int pool, index;
};

#define FDSTORE_NONE                                   \
	{                                              \
		.socket = -1, .pool = -1, .index = -1, \
	}

/* What was passed.  -EINVAL: more than one socket; -errno; with a line in err. */
int fdstore_take(struct fdstore *ret, char *err, size_t err_bytes);
void fdstore_close(struct fdstore *f);

int fdstore_is_there(void); /* is there anybody to keep something? */
/* Nothing is known of whether he does.  The fd stays the caller's. */
void fdstore_keep(const char *name, int fd);
void fdstore_forget(const char *name);
void fdstore_settle(void); /* until he has heard all of that; not for long */

/* The program is loaded again, as the same process, with these passed to it as a manager would.  Returns when that
 * fails: -errno. */
int fdstore_exec(const struct fdstore *f, char **argv);

#endif
