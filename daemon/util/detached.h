/* SPDX-License-Identifier: Apache-2.0 */
/*
 * detached.h - a thread that nobody waits for, with a small stack.
 */
#ifndef SKVCD_DAEMON_UTIL_DETACHED_H
#define SKVCD_DAEMON_UTIL_DETACHED_H

#include <pthread.h>

#define DETACHED_STACK_BYTES (256u << 10)

/* 0 or -errno. */
static inline int detached_start(void *(*run)(void *), void *user)
{
	pthread_attr_t attr;
	pthread_t thread;
	int e = pthread_attr_init(&attr);

	if (e)
		return -e;
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	(void)pthread_attr_setstacksize(&attr, DETACHED_STACK_BYTES);
	e = pthread_create(&thread, &attr, run, user);
	(void)pthread_attr_destroy(&attr);
	return -e;
}

#endif
