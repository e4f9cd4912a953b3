/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.h - the one clock of the daemon: CLOCK_MONOTONIC in nanoseconds, read through the vDSO (no
 * system call).  Any thread.
 */
#ifndef SKVCD_DAEMON_UTIL_CLOCK_H
#define SKVCD_DAEMON_UTIL_CLOCK_H

#include <stdint.h>
#include <time.h>

#define CLOCK_NS_PER_S 1000000000ull
#define CLOCK_NS_PER_MS 1000000ull

static inline uint64_t clock_now_ns(void)
{
	struct timespec ts = { 0 };

	(void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail for this clock */
	return (uint64_t)ts.tv_sec * CLOCK_NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* a + b, or UINT64_MAX: how "no deadline" stays one. */
static inline uint64_t clock_add_ns(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

#endif
