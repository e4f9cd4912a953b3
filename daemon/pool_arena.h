/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_arena.h - the pool's memory: mapped, placed on a NUMA node, locked.  Start-up only; knows nothing
 * of slots.
 */
#ifndef SKVCD_DAEMON_POOL_ARENA_H
#define SKVCD_DAEMON_POOL_ARENA_H

#include <stddef.h>
#include <stdint.h>

struct pool_arena_options {
	uint64_t bytes;
	uint64_t align_bytes; /* power of two, or 0; pages and huge pages are seen to */
	int numa_node;	      /* -1: none */
	int lock;
	int populate;	  /* make every page present now */
	int huge;	  /* ask for huge pages; best effort */
	const char *name; /* of a sealed memfd that backs it; NULL: anonymous, private */
	int fd;		  /* + 1: such a memfd that is there already; 0: none */
};

struct pool_arena {
	uint8_t *base; /* aligned */
	uint64_t bytes;
	void *map; /* what to unmap */
	size_t map_bytes;
	int fd; /* memfd + 1; 0: none */
};

/*
 * Zeroed memory, untouched unless locked or populated, or that of options->fd as it is.  0, -EINVAL (no such node),
 * -ENOMEM, -EPERM, -EAGAIN, -ESTALE (fd is not a sealed memfd of ours of that size), -errno.  After a failure that
 * fd is still the caller's.
 */
int pool_arena_init(struct pool_arena *a, const struct pool_arena_options *options);
void pool_arena_deinit(struct pool_arena *a); /* zeroed or half-built: fine */

#endif
