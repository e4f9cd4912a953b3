/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aside.c - queues of descriptors, one for each user who has any, and the threads that empty them and end.  Any
 * thread; the lock is held for no system call but the start of a thread.
 */
#include "daemon/aside.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/log.h"
#include "daemon/util/detached.h"
#include "ipc/fdpass.h"

#define PACKETS_MAX 64u

struct lot {
	struct lot *next;
	unsigned count;
	int fds[];
};

struct user {
	struct user *next;
	uid_t uid;
	unsigned threads;
	unsigned lots; /* waiting, or with a thread */
	struct lot *first, **last;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct user *users; /* owned; by the lock.  Each has lots or threads */

static struct user **find(uid_t uid)
{
	struct user **at = &users;

	while (*at && (*at)->uid != uid)
		at = &(*at)->next;
	return at;
}

static struct lot *next_lot(struct user *u)
{
	struct lot *lot = u->first;

	if (!lot)
		return NULL;
	u->first = lot->next;
	if (!u->first)
		u->last = &u->first;
	return lot;
}

static void *close_lots(void *arg)
{
	struct user *u = arg;
	struct lot *lot;

	(void)prctl(PR_SET_NAME, "skvcd-close");
	(void)pthread_mutex_lock(&lock);
	while ((lot = next_lot(u)) != NULL) {
		(void)pthread_mutex_unlock(&lock);
		for (unsigned i = 0; i < lot->count; i++)
			(void)close(lot->fds[i]);
		free(lot);
		(void)pthread_mutex_lock(&lock);
		u->lots--;
	}
	if (!--u->threads && !u->lots) {
		*find(u->uid) = u->next;
		free(u);
	}
	(void)pthread_mutex_unlock(&lock);
	return NULL;
}

static struct user *find_or_make(uid_t uid)
{
	struct user **at = find(uid);

	if (!*at) {
		*at = calloc(1, sizeof(**at));
		if (*at) {
			(*at)->uid = uid;
			(*at)->last = &(*at)->first;
		}
	}
	return *at;
}

void aside_close(uid_t uid, const int *fds, unsigned count)
{
	struct lot *lot;
	struct user *u;
	int r = 0;

	assert(count <= FDPASS_FDS_MAX);
	if (!count)
		return;
	lot = malloc(sizeof(*lot) + count * sizeof(fds[0]));
	(void)pthread_mutex_lock(&lock);
	u = lot ? find_or_make(uid) : NULL;
	if (u) {
		lot->next = NULL;
		lot->count = count;
		memcpy(lot->fds, fds, count * sizeof(fds[0]));
		*u->last = lot;
		u->last = &lot->next;
		u->lots++;
		if (u->threads < ASIDE_THREADS_MAX) {
			r = detached_start(close_lots, u);
			u->threads += r == 0;
		}
	}
	(void)pthread_mutex_unlock(&lock);
	if (!u)
		free(lot);
	if (!u || r < 0)
		log_line(LOG_LEVEL_WARNING,
			 "%u descriptors of a client stay open: no memory to close them aside",
			 count);
}

/*
 * Takes what brings no descriptors along.  Credentials are asked for with each packet, which tells an empty one from
 * the end; without room for more, the kernel says when there is more.  false: descriptors are there, or too much is.
 */
static bool read_away(int sock)
{
	const int on = 1;

	if (setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
		return false;
	for (unsigned i = 0; i < PACKETS_MAX; i++) {
		char bytes[4096];
		struct iovec iov = { .iov_base = bytes, .iov_len = sizeof(bytes) };
		union {
			struct cmsghdr align;
			char bytes[CMSG_SPACE(sizeof(struct ucred))];
		} control;
		struct msghdr msg = { .msg_iov = &iov,
				      .msg_iovlen = 1,
				      .msg_control = control.bytes,
				      .msg_controllen = sizeof(control.bytes) };
		ssize_t n = recvmsg(sock, &msg, MSG_PEEK | MSG_DONTWAIT);

		if (n < 0)
			continue; /* that of a peer which has closed is said once, before what it sent */
		if (!n && !msg.msg_controllen)
			return true;
		if (msg.msg_flags & MSG_CTRUNC)
			return false;
		(void)recv(sock, bytes, sizeof(bytes), MSG_DONTWAIT);
	}
	return false;
}

void aside_close_socket(uid_t uid, int sock)
{
	/* From here on nothing more can come. */
	if (shutdown(sock, SHUT_RD) == 0 && read_away(sock))
		(void)close(sock);
	else
		aside_close(uid, &sock, 1);
}

bool aside_is_behind(uid_t uid)
{
	const struct user *u;
	bool behind;

	(void)pthread_mutex_lock(&lock);
	u = *find(uid);
	behind = u && u->lots >= ASIDE_BEHIND;
	(void)pthread_mutex_unlock(&lock);
	return behind;
}
