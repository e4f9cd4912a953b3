/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus_relay.c - a detached thread for each peer, which copies bytes both ways until one end is closed.  It may stay
 * where the kernel closes what its peer sent, and the peer has one place less for so long.
 */
#include "daemon/bus_relay.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/aside.h"
#include "daemon/util/detached.h"

#define BUFFER_BYTES 4096u

enum end { PEER, DAEMON };

/* From one end to the other. */
struct way {
	size_t at, count; /* what lies in bytes and was not sent yet */
	char bytes[BUFFER_BYTES];
};

struct relay {
	uid_t uid;
	struct pollfd end[2]; /* owned */
	struct way from[2];
};

/* 1: something went; 0: not now; -1: it is over. */
static int outcome(ssize_t n)
{
	if (n > 0)
		return 1;
	return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

/* Without room for control data the kernel itself drops what descriptors there are: here, in this thread. */
static int take(int fd, struct way *w)
{
	ssize_t n = recv(fd, w->bytes, sizeof(w->bytes), MSG_DONTWAIT);

	w->at = 0;
	w->count = n > 0 ? (size_t)n : 0;
	return outcome(n);
}

static int give(int fd, struct way *w)
{
	ssize_t n = send(fd, w->bytes + w->at, w->count, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0) {
		w->at += (size_t)n;
		w->count -= (size_t)n;
	}
	return outcome(n);
}

/* A buffer's worth, without waiting; 1: some of it went somewhere. */
static int copy(struct relay *r, enum end from)
{
	struct way *w = &r->from[from];
	int taken = w->count ? 0 : take(r->end[from].fd, w);
	int given = w->count ? give(r->end[!from].fd, w) : 0;

	return taken < 0 || given < 0 ? -1 : taken | given;
}

static void want(struct relay *r, enum end e)
{
	r->end[e].events = (short)((r->from[e].count ? 0 : POLLIN) |
				   (r->from[!e].count ? POLLOUT : 0));
}

static void *run(void *user)
{
	struct relay *r = user;
	bool over = false;

	(void)prctl(PR_SET_NAME, "skvcd-bus");
	while (!over) {
		int to_daemon, to_peer;

		want(r, PEER);
		want(r, DAEMON);
		if (poll(r->end, 2, -1) < 0)
			continue; /* EINTR: what is polled is sound */
		to_daemon = copy(r, PEER);
		to_peer = copy(r, DAEMON);
		/* Behind a closed end there may be bytes; but nobody waits for a peer that does not read. */
		over = to_daemon < 0 || to_peer < 0 ||
		       ((r->end[PEER].revents | r->end[DAEMON].revents) & (POLLHUP | POLLERR) &&
			!to_daemon && !to_peer);
	}
	aside_close_socket(r->uid, r->end[PEER].fd);
	(void)close(r->end[DAEMON].fd); /* last: until then his place is taken */
	free(r);
	return NULL;
}

int bus_relay_start(int sock, uid_t uid, int *ret_sock)
{
	struct relay *r = calloc(1, sizeof(*r));
	int pair[2], e;

	if (!r || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
		e = r ? -errno : -ENOMEM;
		free(r);
		aside_close_socket(uid, sock);
		return e;
	}
	r->uid = uid;
	r->end[PEER].fd = sock;
	r->end[DAEMON].fd = pair[1];
	e = detached_start(run, r);
	if (e) {
		free(r);
		(void)close(pair[0]);
		(void)close(pair[1]);
		aside_close_socket(uid, sock);
		return e;
	}
	*ret_sock = pair[0]; /* NOLINT(clang-analyzer-unix.Malloc): the thread has r */
	return 0;
}
