/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aside.c - threads that close descriptors, one for each lot, and end.  They share nothing with anybody.  Called by the
 * control thread.
 */
#include "daemon/aside.h"

#include <assert.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/log.h"
#include "ipc/fdpass.h"

#define STACK_BYTES (256u << 10)

/* The caller's, until the thread has taken a copy. */
struct lot {
	const int *fds;
	unsigned count;
	sem_t taken;
};

static void *close_lot(void *arg)
{
	struct lot *lot = arg;
	int fds[FDPASS_FDS_MAX];
	unsigned count = lot->count;

	memcpy(fds, lot->fds, count * sizeof(fds[0]));
	(void)sem_post(&lot->taken); /* lot is gone from here on */
	(void)prctl(PR_SET_NAME, "skvcd-close");
	for (unsigned i = 0; i < count; i++)
		(void)close(fds[i]);
	return NULL;
}

static int start(struct lot *lot)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	r = pthread_attr_init(&attr);
	if (r)
		return -r;
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	(void)pthread_attr_setstacksize(&attr, STACK_BYTES);
	r = pthread_create(&thread, &attr, close_lot, lot);
	(void)pthread_attr_destroy(&attr);
	return -r;
}

void aside_close(const int *fds, unsigned count)
{
	struct lot lot = { .fds = fds, .count = count };
	int r;

	assert(count <= FDPASS_FDS_MAX);
	if (!count)
		return;
	(void)sem_init(&lot.taken, 0, 0);
	r = start(&lot);
	while (r == 0 && sem_wait(&lot.taken) < 0)
		;
	(void)sem_destroy(&lot.taken);
	if (r < 0)
		log_line(LOG_LEVEL_WARNING,
			 "%u descriptors of a client stay open: no thread to close them: %s", count,
			 strerror(-r));
}

void aside_close_socket(int sock)
{
	char byte;

	/* From here on nothing more can come. */
	if (shutdown(sock, SHUT_RD) == 0 && recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
		(void)close(sock);
	else
		aside_close(&sock, 1);
}
