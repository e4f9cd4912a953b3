/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.h - the clock of all devices, the same as the lane's: CLOCK_MONOTONIC in nanoseconds, read without
 * a system call.  Any thread.
 */
#ifndef SKVCD_GPU_CLOCK_H
#define SKVCD_GPU_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t gpu_now_ns(void)
{
	struct timespec ts = { 0 };

	(void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail for this clock */
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#endif
