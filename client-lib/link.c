/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.c - one connection to a daemon: socket, handshake, segment, requests and answers.  Knows nothing
 * of jobs.  Everything the daemon says is checked before it is used: the library lives in a process that
 * must not fall over because of a broken or foreign daemon.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client-lib/client.h"
#include "ipc/fdpass.h"
#include "ipc/segment.h"

#define WELCOME_FDS 3u /* segment, eventfd that wakes the lane, socket that wakes us */
#define SEGMENT_BYTES_MAX (1ull << 30)

void client_link_clear(struct client_link *link)
{
	memset(link, 0, sizeof(*link));
	link->sock = -1;
	link->sq_fd = -1;
	link->cq_fd = -1;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

static int wait_for(int sock, short events, uint64_t deadline_ns)
{
	struct pollfd fd = { .fd = sock, .events = events };

	for (;;) {
		uint64_t now_ns = client_now_ns();
		uint64_t left_ns = now_ns < deadline_ns ? deadline_ns - now_ns : 0;
		struct timespec timeout = {
			.tv_sec = (time_t)(left_ns / 1000000000ull),
			.tv_nsec = (long)(left_ns % 1000000000ull),
		};
		int n = ppoll(&fd, 1, &timeout, NULL);

		if (n > 0)
			return 0;
		if (!n)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

/*
 * The daemon closes its end of what wakes us when it has drained the session and closed what we exported; when it
 * dies, the kernel does.  An older daemon's eventfd tells nothing: then that is not waited for.
 */
int client_link_let_go(const struct client_link *link, uint64_t timeout_ns)
{
	struct stat st;

	if (link->cq_fd < 0 || fstat(link->cq_fd, &st) < 0 || !S_ISSOCK(st.st_mode))
		return 0;
	return wait_for(link->cq_fd, 0, client_deadline_ns(timeout_ns));
}

/* owner: false in a forked child, where the segment is not mapped and its address may be another's. */
void client_link_close(struct client_link *link, bool owner)
{
	if (owner)
		segment_unmap(link->segment, link->layout.segment_bytes);
	close_fd(&link->sock);
	close_fd(&link->sq_fd);
	close_fd(&link->cq_fd);
	client_link_clear(link);
}

/* ---- requests ---- */

static int send_packet(const struct client_link *link, const struct client_request *request,
		       uint64_t deadline_ns)
{
	int r;

	for (;;) {
		r = fdpass_send(link->sock, request->packet, request->packet_bytes, &request->fd,
				request->fd >= 0 ? 1 : 0);
		if (r != -EAGAIN)
			return r == -ECONNRESET ? -EPIPE : r;
		r = wait_for(link->sock, POLLOUT, deadline_ns);
		if (r < 0)
			return r;
	}
}

static void close_fds(int *fds, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		(void)close(fds[i]);
}

static int receive_answer(struct skvc_session *s, struct client_link *link,
			  const struct client_request *request, uint64_t deadline_ns,
			  union client_answer *ret_answer)
{
	int fds[CTL_FDS_MAX];
	unsigned fds_count = 0, fds_want;
	int n, r;

	r = wait_for(link->sock, POLLIN, deadline_ns);
	if (r < 0)
		return client_error(s, r, "the daemon does not answer");
	n = fdpass_recv(link->sock, ret_answer, sizeof(*ret_answer), fds, CTL_FDS_MAX, &fds_count,
			MSG_DONTWAIT);
	if (!n || n == -ECONNRESET)
		return client_error(s, -EPIPE, "the daemon closed the connection");
	if (n < 0)
		return client_error(s, -EPROTO, "the daemon's answer cannot be received (%s)",
				    strerror(-n));
	if (ctl_msg_check_answer(ret_answer, (size_t)n, request->expected, link->seq)) {
		close_fds(fds, fds_count);
		if (!ctl_msg_check_answer(ret_answer, (size_t)n, CTL_ERROR, 0))
			return client_error(s, -EPIPE, "the daemon ended the session: %s",
					    (const char *)ret_answer->error.text);
		return client_error(s, -EPROTO, "the daemon's answer is malformed");
	}
	fds_want = ret_answer->h.type == CTL_ERROR ? 0 : request->fds_count;
	if (fds_count != fds_want) {
		close_fds(fds, fds_count);
		return client_error(s, -EPROTO,
				    "the daemon's answer came with %u descriptors, not %u",
				    fds_count, fds_want);
	}
	memcpy(request->ret_fds ? request->ret_fds : fds, fds, fds_count * sizeof(int));
	return 0;
}

int client_link_request(struct skvc_session *s, struct client_link *link,
			const struct client_request *request, union client_answer *ret_answer,
			bool *ret_link_broken)
{
	uint64_t deadline_ns = client_deadline_ns(request->timeout_ns ? request->timeout_ns
								      : s->timeout_ns);
	int r;

	/* 0 is the sequence number of what the daemon says unasked. */
	link->seq++;
	if (!link->seq)
		link->seq = 1;
	ctl_msg_init(request->packet, request->type, request->packet_bytes, link->seq);
	*ret_link_broken = true;
	r = send_packet(link, request, deadline_ns);
	if (r < 0)
		return client_error(s, r, "cannot send to the daemon (%s)", strerror(-r));
	r = receive_answer(s, link, request, deadline_ns, ret_answer);
	if (r < 0)
		return r;
	*ret_link_broken = false;
	if (ret_answer->h.type == CTL_ERROR)
		return client_error(s, ret_answer->error.res, "%s (%s)",
				    (const char *)ret_answer->error.text,
				    skvc_reason_name(ret_answer->error.reason));
	return 0;
}

int client_control(struct skvc_session *s, struct client_request *request,
		   union client_answer *ret_answer)
{
	bool broken;
	int r;

	if (s->gone)
		return client_error(s, -EPIPE, "the daemon is gone");
	r = client_link_request(s, &s->link, request, ret_answer, &broken);
	if (!broken)
		return r;
	/* The next answer could be this request's: the connection is of no use any more. */
	if (r != -ETIMEDOUT) {
		client_fail(s, s->error);
		return -EPIPE;
	}
	client_give_up(s, s->error);
	return client_error(s, r,
			    "%s: the connection is given up; skvc_reconnect() when it runs again",
			    s->error);
}

int client_request_on(struct skvc_session *s, struct client_link *link,
		      struct client_request *request, union client_answer *ret_answer)
{
	bool broken;

	return link == &s->link ? client_control(s, request, ret_answer)
				: client_link_request(s, link, request, ret_answer, &broken);
}

/* ---- connecting ---- */

static int connect_socket(struct skvc_session *s, uint64_t deadline_ns, int *ret_sock)
{
	const struct timespec pause = { .tv_nsec = 2000000 };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock, r;

	_Static_assert(sizeof(s->path) <= sizeof(addr.sun_path), "a path fits");
	memcpy(addr.sun_path, s->path, sizeof(s->path));
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return client_error(s, -errno, "socket: %s", strerror(errno));
	while (connect(sock, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		r = -errno;
		if (r == -EINTR)
			continue;
		/* EAGAIN: the daemon's backlog is full; a Unix socket cannot be polled for that. */
		if (r == -EAGAIN && client_now_ns() < deadline_ns) {
			(void)nanosleep(&pause, NULL);
			continue;
		}
		(void)close(sock);
		return client_error(s, r == -EAGAIN ? -ETIMEDOUT : r, "connect to %s: %s", s->path,
				    strerror(-r));
	}
	*ret_sock = sock;
	return 0;
}

static int map_segment(struct skvc_session *s, struct client_link *link, int fd, uint64_t bytes)
{
	struct skvc_abi_header layout;
	void *base;
	int r;

	if (bytes < sizeof(struct skvc_abi_header) || bytes > SEGMENT_BYTES_MAX)
		return client_error(s, -EPROTO, "a segment of %llu bytes cannot be",
				    (unsigned long long)bytes);
	r = segment_check_fd(fd, bytes);
	if (r < 0)
		return client_error(s, -EPROTO, "the daemon's segment is not sealed as it must be");
	r = segment_map(fd, bytes, &base);
	if (r < 0)
		return client_error(s, r, "cannot map the session's segment: %s", strerror(-r));
	memcpy(&layout, base, sizeof(layout));
	__asm__ volatile("" : : "r"(&layout) : "memory");
	r = segment_check_header(&layout, bytes);
	if (!r && layout.sq_entries != s->sq_entries)
		r = -EPROTO;
	if (r < 0) {
		segment_unmap(base, bytes);
		return client_error(s, -EPROTO, "the daemon's segment has an impossible header");
	}
	/* A forked child has no business with the rings: there the pages are absent. */
	(void)madvise(base, (size_t)bytes, MADV_DONTFORK);
	link->segment = base;
	link->header = base;
	link->layout = layout;
	return 0;
}

static int check_versions(struct skvc_session *s, const struct ctl_welcome *w)
{
	if (w->abi_major == SKVC_ABI_MAJOR &&
	    !ctl_msg_versions_meet(SKVC_ABI_MAJOR, SKVC_ABI_MINOR, w->abi_major_min,
				   w->abi_minor_min) &&
	    !ctl_msg_versions_meet(w->abi_major, w->abi_minor, SKVC_ABI_MAJOR, 0))
		return 0;
	return client_error(
		s, -EPROTO,
		"the daemon speaks protocol %u.%u and accepts %u.%u and later, this library "
		"speaks %u.%u and accepts %u.%u and later",
		w->abi_major, w->abi_minor, w->abi_major_min, w->abi_minor_min, SKVC_ABI_MAJOR,
		SKVC_ABI_MINOR, SKVC_ABI_MAJOR, 0);
}

/*
 * By agreement neither can block or raise SIGPIPE in our host's threads; make sure.  An eventfd has no type that
 * fstat() would tell.
 */
static int check_wakeups(struct skvc_session *s, const struct client_link *link)
{
	struct stat st;

	if (fstat(link->sq_fd, &st) < 0 || st.st_mode & S_IFMT)
		return client_error(s, -EPROTO, "what wakes the daemon is no eventfd");
	if (fcntl(link->sq_fd, F_SETFL, O_NONBLOCK) < 0 ||
	    fcntl(link->cq_fd, F_SETFL, O_NONBLOCK) < 0)
		return client_error(s, -errno, "wake-ups: %s", strerror(errno));
	return 0;
}

static int handshake(struct skvc_session *s, struct client_link *link, uint64_t timeout_ns)
{
	struct ctl_hello hello = {
		.abi_major = SKVC_ABI_MAJOR,
		.abi_minor = SKVC_ABI_MINOR,
		.abi_major_min = SKVC_ABI_MAJOR,
		.abi_minor_min = 0,
		.role = s->role,
		.sq_entries = s->sq_entries,
		.args_bytes = s->args_bytes,
	};
	int fds[WELCOME_FDS];
	const struct client_request request = {
		.type = CTL_HELLO,
		.expected = CTL_WELCOME,
		.packet = &hello,
		.packet_bytes = sizeof(hello),
		.fd = -1,
		.timeout_ns = timeout_ns,
		.ret_fds = fds,
		.fds_count = WELCOME_FDS,
	};
	union client_answer answer;
	bool broken;
	int r;

	memcpy(hello.name, s->name, sizeof(hello.name));
	r = client_link_request(s, link, &request, &answer, &broken);
	if (r == -EPIPE)
		return -ECONNREFUSED; /* it went away while we said hello */
	if (r < 0)
		return r;
	link->sq_fd = fds[1];
	link->cq_fd = fds[2];
	r = check_versions(s, &answer.welcome);
	if (!r)
		r = map_segment(s, link, fds[0], answer.welcome.segment_bytes);
	(void)close(fds[0]);
	if (r < 0)
		return r;
	return check_wakeups(s, link);
}

int client_link_open(struct skvc_session *s, struct client_link *ret_link)
{
	uint64_t now_ns = client_now_ns();
	uint64_t deadline_ns = now_ns + s->connect_timeout_ns;
	struct client_link link;
	int r;

	client_link_clear(&link);
	r = connect_socket(s, deadline_ns, &link.sock);
	if (r < 0)
		return r;
	now_ns = client_now_ns();
	r = handshake(s, &link, now_ns < deadline_ns ? deadline_ns - now_ns : 1);
	if (r < 0) {
		client_link_close(&link, true);
		return r;
	}
	*ret_link = link;
	return 0;
}
