/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arena.c - one sealed memfd, mapped.  Control thread, so nothing here may take long: pages are placed
 * and locked when they are first touched (MLOCK_ONFAULT), not now.
 */
#include "daemon/arena.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/log.h"
#include "daemon/placement.h"
#include "ipc/segment.h"

int arena_init(const struct config *config, uint64_t bytes, struct arena *ret, int *ret_fd)
{
	void *base;
	int fd, r;

	r = segment_create("skvcd-arena", bytes, &fd);
	if (r < 0)
		return r;
	r = segment_map(fd, bytes, &base);
	if (r < 0) {
		(void)close(fd);
		return r;
	}
	r = placement_prefer(base, bytes, config->numa_node);
	if (r < 0)
		log_line(LOG_LEVEL_DEBUG, "arena: no placement on NUMA node %d: %s",
			 config->numa_node, strerror(-r));
	if (config->lock_memory && mlock2(base, bytes, MLOCK_ONFAULT) < 0) {
		r = -errno;
		segment_unmap(base, bytes);
		(void)close(fd);
		return r;
	}
	ret->base = base;
	ret->bytes = bytes;
	ret->regions_count = 0;
	*ret_fd = fd;
	return 0;
}

void arena_deinit(struct arena *a)
{
	segment_unmap(a->base, a->bytes);
	memset(a, 0, sizeof(*a));
}
