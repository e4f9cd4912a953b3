/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lazy.h - memory that is zero, and taken page by page as it is touched.
 */
#ifndef SKVCD_DAEMON_UTIL_LAZY_H
#define SKVCD_DAEMON_UTIL_LAZY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

/* NULL when there is none; given back by munmap(). */
static inline void *map_lazily(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

#endif
