/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arena.h - engine memory that the daemon makes: a sealed memfd, mapped here, placed and locked as
 * configured, and handed to one client.  Control thread makes and frees; the device reads and writes.
 */
#ifndef SKVCD_DAEMON_ARENA_H
#define SKVCD_DAEMON_ARENA_H

#include <stdint.h>

#include "daemon/config.h"

struct arena {
	uint8_t *base; /* owned mapping; NULL: no arena */
	uint64_t bytes;
	uint32_t regions_count; /* that lie in it: it stays while there are any */
};

/* Fills *ret and gives the fd to the caller, who sends it and closes it.  -ENOMEM, -EPERM (mlock), -errno. */
int arena_init(const struct config *config, uint64_t bytes, struct arena *ret, int *ret_fd);
void arena_deinit(struct arena *a);

#endif
