/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fd_keeper.h - a manager of services, as far as a daemon's fd store goes: it listens on $NOTIFY_SOCKET, keeps what it
 * is told to keep by name, and passes it to the next daemon.  A thread of its own does so; the rest is the test's.
 */
#ifndef SKVCD_TESTS_LIB_FD_KEEPER_H
#define SKVCD_TESTS_LIB_FD_KEEPER_H

#include <pthread.h>

#define FD_KEEPER_MAX 8u

struct fd_keeper {
	char path[64];
	int sock;
	pthread_t thread;
	pthread_mutex_t mutex; /* of what is below */
	struct {
		char name[32];
		int fd;
	} kept[FD_KEEPER_MAX];
	unsigned count;
	unsigned ready, reloading, stopping; /* how often it was told so */
};

void fd_keeper_open(struct fd_keeper *k);
void fd_keeper_close(struct fd_keeper *k); /* drops all */

/* A copy, for the caller; -1: none of this name, -2: more than one. */
int fd_keeper_get(struct fd_keeper *k, const char *name);
void fd_keeper_put(struct fd_keeper *k, const char *name, int fd); /* takes it over */
void fd_keeper_drop(struct fd_keeper *k, const char *name);
unsigned fd_keeper_ready(struct fd_keeper *k);

void fd_keeper_become_child(struct fd_keeper *k); /* in the child, before it becomes the daemon */

#endif
