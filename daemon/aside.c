/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aside.c - threads that close descriptors, one for each lot, and end.  They share nothing with anybody.  Called by the
 * control thread.
 */
#include "daemon/aside.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/log.h"

#define STACK_BYTES (256u << 10)

struct lot {
	unsigned count;
	int fds[];
};

static void *close_lot(void *arg)
{
	struct lot *lot = arg;

	(void)prctl(PR_SET_NAME, "skvcd-close");
	for (unsigned i = 0; i < lot->count; i++)
		(void)close(lot->fds[i]);
	free(lot);
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
	struct lot *lot;
	int r = -ENOMEM;

	if (!count)
		return;
	lot = malloc(sizeof(*lot) + count * sizeof(lot->fds[0]));
	if (lot) {
		lot->count = count;
		memcpy(lot->fds, fds, count * sizeof(lot->fds[0]));
		r = start(lot);
	}
	if (r == 0)
		return;
	free(lot);
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
