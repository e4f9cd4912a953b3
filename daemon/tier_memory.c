/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_memory.c - the host pool as it is made at the start: in memory of its own, or in what an earlier life of the
 * daemon left, and registered with io_uring.  Where no later life is to find it, it is no memfd: huge pages of ordinary
 * memory are to be had on most systems, those of shared memory are not, and a device likes them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/lane_state.h"
#include "daemon/log.h"
#include "daemon/warm.h"

#define TIER_IOVECS_MAX 1024u

static int start_pool(struct lane *lane, char *err, unsigned err_bytes)
{
	const struct config *c = &lane->config;
	struct pool_options o = {
		.bytes = c->pool_bytes,
		.granule_bytes = lane->granule_bytes,
		.numa_node = c->numa_node,
		.lock = (int)c->lock_memory,
		.populate = lane->log != NULL,
		.name = c->host_persist ? "skvcd-pool" : NULL,
		.fd = lane->restore.pool_fd,
	};
	int r = pool_new(&o, &lane->pool);

	if (r == -ESTALE) {
		warm_refuse_pool(lane);
		o.fd = 0;
		r = pool_new(&o, &lane->pool);
	}
	if (r == 0 && o.fd) {
		lane->restore.pool_fd = 0; /* the pool's now */
		lane->pool_kept = 1;
	}
	if (r < 0)
		snprintf(
			err, err_bytes, "host pool of %llu bytes: %s%s",
			(unsigned long long)c->pool_bytes, strerror(-r),
			c->lock_memory && (r == -EPERM || r == -EAGAIN || r == -ENOMEM)
				? "; raise LimitMEMLOCK (ulimit -l), make pool_bytes smaller, or set "
				  "[host] lock_memory = no"
				: "");
	return r;
}

/* Registered buffers save the kernel a page walk per I/O; where they are not allowed, I/O works without. */
static void register_pool(struct lane *lane)
{
	struct iovec iov[TIER_IOVECS_MAX];
	unsigned n = pool_iovecs(lane->pool, iov, TIER_IOVECS_MAX);
	int r = uring_register_buffers(lane->uring, iov, n);

	lane->pool_registered = r == 0;
	if (r < 0)
		log_line(LOG_LEVEL_WARNING,
			 "io_uring does not take the host pool as registered buffers: %s; "
			 "NVMe I/O costs more CPU. Raise LimitMEMLOCK (ulimit -l)",
			 strerror(-r));
}

int tier_start_pool(struct lane *lane, char *err, unsigned err_bytes)
{
	int r = start_pool(lane, err, err_bytes);

	if (r == 0 && lane->log)
		register_pool(lane);
	return r;
}
