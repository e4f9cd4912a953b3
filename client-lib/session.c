/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.c - the life of a session: open, close, connect again; and what every call begins with.
 *
 * Closing, in order: BYE (the daemon drains, so that nothing of it touches our memory any more), unmap
 * the arenas, unmap the segment, close the descriptors, free.  In a forked child only the child's own
 * copies are freed: the session and the connection are the parent's.
 */
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "client-lib/client.h"

#define OWNER_MARK 1u
#define OWNER_PAGE_BYTES ((size_t)sysconf(_SC_PAGESIZE))

_Static_assert(sizeof(SKVC_DEFAULT_SOCKET) <= sizeof(((struct skvc_session *)0)->path), "fits");

uint64_t client_now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint64_t client_deadline_ns(uint64_t timeout_ns)
{
	uint64_t now_ns;

	if (timeout_ns == UINT64_MAX)
		return UINT64_MAX;
	now_ns = client_now_ns();
	return timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
}

uint64_t client_left_ns(uint64_t deadline_ns)
{
	uint64_t now_ns;

	if (deadline_ns == UINT64_MAX)
		return UINT64_MAX;
	now_ns = client_now_ns();
	return now_ns < deadline_ns ? deadline_ns - now_ns : 0;
}

/* ---- diagnostics ---- */

void client_say(struct skvc_session *s, const char *format, ...)
{
	char line[CLIENT_ERROR_BYTES];
	va_list ap;

	if (!s)
		return;
	/* Formatted aside: an argument may be the old text. */
	va_start(ap, format);
	(void)vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	memcpy(s->error, line, sizeof(line));
}

void client_log(const struct skvc_session *s, const char *format, ...)
{
	char line[CLIENT_ERROR_BYTES + 64];
	va_list ap;

	if (!s->log)
		return;
	va_start(ap, format);
	(void)vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	s->log(s->log_user, line);
}

const char *skvc_last_error(const struct skvc_session *session)
{
	return session ? session->error : "no session";
}

/* ---- fork ---- */

/*
 * getpid() would be a system call on every call of ours.  A page that the kernel replaces by zeroes in
 * a child (Linux 4.14) says the same for the price of a load.
 */
static void owner_init(struct skvc_session *s)
{
	void *page;

	s->owner_pid = getpid();
	page = mmap(NULL, OWNER_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0);
	if (page == MAP_FAILED)
		return;
	if (madvise(page, OWNER_PAGE_BYTES, MADV_WIPEONFORK) < 0) {
		(void)munmap(page, OWNER_PAGE_BYTES);
		return;
	}
	s->owner_mark = page;
	*s->owner_mark = OWNER_MARK;
}

bool client_is_owner(const struct skvc_session *s)
{
	if (s->owner_mark)
		return __atomic_load_n(s->owner_mark, __ATOMIC_RELAXED) == OWNER_MARK;
	return getpid() == s->owner_pid;
}

int client_enter(struct skvc_session *s)
{
	if (!s)
		return -EINVAL;
	if (!client_is_owner(s))
		return client_error(s, -EOWNERDEAD, "a session does not survive fork()");
	return 0;
}

/* ---- options ---- */

static bool one_cpu(void)
{
	cpu_set_t set;

	return !sched_getaffinity(0, sizeof(set), &set) && CPU_COUNT(&set) == 1;
}

static int take_sizes(struct skvc_session *s, const struct skvc_options *o)
{
	s->role = o->role;
	if (s->role > SKVC_ROLE_SCHEDULER)
		return client_error(s, -EINVAL, "role %u is neither worker nor scheduler", o->role);
	s->sq_entries = o->sq_entries ? o->sq_entries : 256;
	if (s->sq_entries < SKVC_ABI_SQ_ENTRIES_MIN || s->sq_entries > SKVC_ABI_SQ_ENTRIES_MAX ||
	    (s->sq_entries & (s->sq_entries - 1)))
		return client_error(s, -EINVAL, "sq_entries %u is not a power of two in %u..%u",
				    o->sq_entries, SKVC_ABI_SQ_ENTRIES_MIN,
				    SKVC_ABI_SQ_ENTRIES_MAX);
	s->args_bytes = o->args_bytes ? o->args_bytes : 2u << 20;
	if (s->args_bytes < SKVC_ABI_ARGS_AREA_BYTES_MIN ||
	    s->args_bytes > SKVC_ABI_ARGS_AREA_BYTES_MAX)
		return client_error(s, -EINVAL, "args_bytes %llu is outside %u..%u",
				    (unsigned long long)o->args_bytes, SKVC_ABI_ARGS_AREA_BYTES_MIN,
				    SKVC_ABI_ARGS_AREA_BYTES_MAX);
	s->args_bytes = (s->args_bytes + SKVC_ABI_PAGE_BYTES - 1) &
			~(uint64_t)(SKVC_ABI_PAGE_BYTES - 1);
	return 0;
}

static int take_options(struct skvc_session *s, const char *path, const struct skvc_options *o)
{
	if (!path)
		path = secure_getenv("SKVC_SOCKET");
	if (!path || !*path)
		path = SKVC_DEFAULT_SOCKET;
	if (strlen(path) >= sizeof(s->path))
		return client_error(s, -EINVAL, "socket path is longer than %zu bytes",
				    sizeof(s->path) - 1);
	memcpy(s->path, path, strlen(path) + 1);
	s->connect_timeout_ns = o->connect_timeout_ns ? o->connect_timeout_ns : 5000000000ull;
	if (s->connect_timeout_ns > INT64_MAX)
		s->connect_timeout_ns = INT64_MAX;
	s->timeout_ns = o->timeout_ns ? o->timeout_ns : CLIENT_TIMEOUT_NS;
	s->spin_ns = o->spin_ns;
	if (!s->spin_ns)
		s->spin_ns = one_cpu() ? 0
				       : 50000; /* alone on a CPU, spinning keeps the lane away */
	if (o->name) {
		if (strlen(o->name) >= sizeof(s->name))
			return client_error(s, -EINVAL, "name is longer than %zu bytes",
					    sizeof(s->name) - 1);
		memcpy(s->name, o->name, strlen(o->name) + 1);
	}
	return take_sizes(s, o);
}

/* ---- open, close, reconnect ---- */

static void use_link(struct skvc_session *s, const struct client_link *link)
{
	const struct skvc_abi_header *layout = &link->layout;
	struct skvc_abi_header *h = link->header;

	s->link = *link;
	ring_init(&s->sq, link->segment + layout->sq_off, layout->sq_entries, &h->sq_tail,
		  &h->sq_head);
	ring_init(&s->cq, link->segment + layout->cq_off, layout->cq_entries, &h->cq_head,
		  &h->cq_tail);
	client_args_reset(&s->args, (uint32_t)layout->args_bytes);
	s->gone = false;
	s->silent = false;
	s->armed = false;
	s->alive_checked_ns = client_now_ns();
}

static int watch_link(struct skvc_session *s, const struct client_link *link)
{
	struct epoll_event on_cq = { .events = EPOLLIN };
	struct epoll_event on_sock = { .events = EPOLLIN | EPOLLRDHUP };

	if (epoll_ctl(s->event_fd, EPOLL_CTL_ADD, link->cq_fd, &on_cq) < 0 ||
	    epoll_ctl(s->event_fd, EPOLL_CTL_ADD, link->sock, &on_sock) < 0)
		return -errno;
	return 0;
}

/*
 * Closing does not take a descriptor out of the set as long as somebody else holds the same open file:
 * the daemon holds the eventfd, a forked child the socket.
 */
static void unwatch_link(struct skvc_session *s, const struct client_link *link)
{
	(void)epoll_ctl(s->event_fd, EPOLL_CTL_DEL, link->cq_fd, NULL);
	(void)epoll_ctl(s->event_fd, EPOLL_CTL_DEL, link->sock, NULL);
}

static void session_free(struct skvc_session *s)
{
	bool owner = client_is_owner(s);

	client_memory_deinit(s);
	client_link_close(&s->link, owner);
	if (s->event_fd >= 0)
		(void)close(s->event_fd);
	client_args_deinit(&s->args);
	free(s->jobs);
	if (s->owner_mark)
		(void)munmap(s->owner_mark, OWNER_PAGE_BYTES);
	free(s);
}

static int session_init(struct skvc_session *s, const char *path,
			const struct skvc_options *options)
{
	struct client_link link;
	int r;

	r = take_options(s, path, options);
	if (r < 0)
		return r;
	s->jobs_max = 2 * s->sq_entries;
	s->jobs = calloc(s->jobs_max, sizeof(*s->jobs));
	if (!s->jobs || client_args_init(&s->args, s->jobs_max) < 0)
		return client_error(s, -ENOMEM, "no memory for %u jobs", s->jobs_max);
	client_jobs_init(s);
	s->event_fd = epoll_create1(EPOLL_CLOEXEC);
	if (s->event_fd < 0)
		return client_error(s, -errno, "epoll_create1: %s", strerror(errno));
	owner_init(s);
	r = client_link_open(s, &link);
	if (r < 0)
		return r;
	use_link(s, &link);
	r = watch_link(s, &link);
	return r < 0 ? client_error(s, r, "epoll: %s", strerror(-r)) : 0;
}

int skvc_open(const char *path, const struct skvc_options *options,
	      struct skvc_session **ret_session)
{
	static const struct skvc_options defaults;
	struct skvc_session *s;
	int r;

	if (!ret_session)
		return -EINVAL;
	if (!options)
		options = &defaults;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	client_link_clear(&s->link);
	s->event_fd = -1;
	s->log = options->log;
	s->log_user = options->log_user;
	r = session_init(s, path, options);
	if (r < 0) {
		client_log(s, "skvc: open: %s", s->error);
		session_free(s);
		return r;
	}
	*ret_session = s;
	return 0;
}

static void say_bye(struct skvc_session *s, uint64_t timeout_ns)
{
	struct ctl_header bye;
	struct client_request request = {
		.type = CTL_BYE,
		.expected = CTL_OK,
		.packet = &bye,
		.packet_bytes = sizeof(bye),
		.fd = -1,
		.timeout_ns = timeout_ns,
	};
	union client_answer answer;

	/* Whatever comes back, the session ends. */
	(void)client_control(s, &request, &answer);
}

/* Nothing of the daemon may touch our host's memory after this, unless it does not answer. */
static void take_leave(struct skvc_session *s)
{
	uint64_t timeout_ns = s->timeout_ns < CLIENT_CLOSE_TIMEOUT_NS ? s->timeout_ns
								      : CLIENT_CLOSE_TIMEOUT_NS;
	uint64_t deadline_ns = client_deadline_ns(timeout_ns);

	if (!s->gone)
		say_bye(s, timeout_ns);
	if (s->gone && client_link_let_go(&s->link, client_left_ns(deadline_ns)) < 0)
		client_log(s, "skvc: close: the daemon does not answer, and may still write to GPU "
			      "memory that was registered");
}

struct skvc_session *skvc_close(struct skvc_session *session)
{
	if (!session)
		return NULL;
	if (client_is_owner(session))
		take_leave(session);
	session_free(session);
	return NULL;
}

/*
 * It stays the session's, unused: what was registered over it the daemon lets go of in its own time, and
 * skvc_unregister() and the next attempt wait for that.
 */
static void new_link_failed(struct skvc_session *s)
{
	s->gone = true;
	(void)shutdown(s->link.sock, SHUT_RDWR);
}

int skvc_reconnect(struct skvc_session *session)
{
	struct client_link link;
	int r, watched;

	r = client_enter(session);
	if (r < 0)
		return r;
	if (!session->gone) {
		session->alive_checked_ns = 0;
		session->heard = false;
		client_check_alive(session, client_now_ns());
	}
	if (!session->gone)
		return client_error(session, -EISCONN, "the session is connected");
	if (client_link_let_go(&session->link, session->connect_timeout_ns) < 0)
		return client_error(session, -ETIMEDOUT,
				    "the daemon still has the memory of the old connection");
	r = client_link_open(session, &link);
	if (r < 0)
		return r;
	r = client_memory_reopen(session, &link);
	unwatch_link(session, &session->link);
	client_link_close(&session->link, true);
	use_link(session, &link);
	watched = watch_link(session, &link);
	if (!r && watched < 0)
		r = client_error(session, watched, "epoll: %s", strerror(-watched));
	if (r < 0)
		new_link_failed(session);
	return r;
}
