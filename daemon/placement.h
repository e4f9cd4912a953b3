/* SPDX-License-Identifier: Apache-2.0 */
/*
 * placement.h - where fresh memory lies, and when it is paid for.  Knows nothing of what it is for.
 */
#ifndef SKVCD_DAEMON_PLACEMENT_H
#define SKVCD_DAEMON_PLACEMENT_H

#include <stdint.h>

/* Prefer a NUMA node for pages that are not there yet; a preference, not a bond: a node that is full must
 * not get anybody killed.  node < 0: no wish.  0, -EINVAL (no such node), -errno.  Any thread. */
int placement_prefer(void *base, uint64_t bytes, int node);

/* Is there such a node that memory can be preferred on? */
int placement_has_node(int node);

/*
 * Make every page of a mapping present, on all cores: one thread takes 3 s a GiB on a virtual
 * machine, and pinning without this does it one page after the other.  exists: the mapping is shared, and most of its
 * pages are there already.  0, -ENOMEM, -errno.
 * Context: start-up; makes threads and waits for them.
 */
int placement_populate(void *base, uint64_t bytes, int exists);

#endif
