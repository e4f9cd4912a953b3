/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.c - the life of a connection: handshake, one packet at a time, answers, and the end.  Control
 * thread.  The meaning of requests is in client_request.c; the arrows are drawn in client.h.
 *
 * Ending has one order, whoever starts it: no request is read any more, SESSION_END tells the lane, the lane
 * drains and says SESSION_GONE, and only then the socket is closed and memory unmapped: until then the
 * device may still read or write the client's pages, and a closed socket would tell it otherwise.  Only a
 * client that is gone itself has its socket closed at once.
 */
#include "daemon/client.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/aside.h"
#include "daemon/log.h"
#include "daemon/util/clock.h"
#include "ipc/fdpass.h"
#include "ipc/segment.h"
#include "ipc/wake.h"

/* Every message that asks for the lane's work leaves one answer owed, and a session asks one at a time. */
#define CLIENT_MAILS_MAX 1u
#define CLIENT_BEHIND_NS 100000000ull

static const uint8_t legal_next[CLIENT_STATE_COUNT] = {
	[CLIENT_HELLO] = 1u << CLIENT_ADDING | 1u << CLIENT_OVER,
	[CLIENT_ADDING] = 1u << CLIENT_IDLE | 1u << CLIENT_ENDING | 1u << CLIENT_OVER,
	[CLIENT_IDLE] = 1u << CLIENT_ASKING | 1u << CLIENT_LEAVING | 1u << CLIENT_ENDING,
	[CLIENT_ASKING] = 1u << CLIENT_IDLE | 1u << CLIENT_ENDING,
	[CLIENT_LEAVING] = 1u << CLIENT_ENDING | 1u << CLIENT_OVER,
	[CLIENT_ENDING] = 1u << CLIENT_OVER,
	[CLIENT_OVER] = 0,
};

static void set_state(struct client *c, enum client_state state)
{
	assert(legal_next[c->state] & 1u << state);
	c->state = state;
}

/* ---- the host ---- */

int client_host_init(struct client_host *host, const struct config *config, struct lane *lane,
		     struct registry *registry, struct stats *stats)
{
	memset(host, 0, sizeof(*host));
	host->config = config;
	host->lane = lane;
	host->registry = registry;
	host->stats = stats;
	host->gpu = lane_gpu(lane);
	host->late_max = 2 * config->sessions_max + 2; /* and one letter each of control.c's own */
	host->by_slot = calloc(config->sessions_max, sizeof(struct client *));
	host->packet = malloc(CTL_MSG_BYTES_MAX);
	host->late = calloc(host->late_max, sizeof(*host->late));
	if (host->by_slot && host->packet && host->late)
		return 0;
	client_host_deinit(host);
	return -ENOMEM;
}

void client_host_deinit(struct client_host *host)
{
	assert(!host->sessions_count && !host->arenas_bytes);
	free(host->by_slot);
	free(host->packet);
	free(host->late);
	memset(host, 0, sizeof(*host));
}

void client_host_flush(struct client_host *host)
{
	uint32_t sent = 0;

	while (sent < host->late_count && !mailbox_send(lane_inbox(host->lane), &host->late[sent]))
		sent++;
	memmove(host->late, host->late + sent, (host->late_count - sent) * sizeof(*host->late));
	host->late_count -= sent;
}

void client_host_post(struct client_host *host, uint32_t type, void *subject, void *object,
		      uint64_t value)
{
	struct mail mail = { .type = type, .subject = subject, .object = object, .value = value };

	client_host_flush(host);
	if (!host->late_count && !mailbox_send(lane_inbox(host->lane), &mail))
		return;
	assert(host->late_count < host->late_max);
	host->late[host->late_count++] = mail;
}

/* ---- memory ---- */

int client_new(struct client_host *host, int sock, const struct listener_peer *peer,
	       struct client **ret_client)
{
	struct client *c = calloc(1, sizeof(*c));

	if (!c) {
		aside_close_socket(peer->uid, sock);
		if (peer->pidfd >= 0)
			(void)close(peer->pidfd);
		return -ENOMEM;
	}
	c->host = host;
	c->state = CLIENT_HELLO;
	c->sock = sock;
	c->pidfd = peer->pidfd;
	c->segment_fd = -1;
	c->wake_fd = -1;
	c->deadline_ns = clock_now_ns() + CLIENT_HELLO_NS;
	c->session.pid = peer->pid;
	c->session.uid = peer->uid;
	c->session.gid = peer->gid;
	c->session.sq_fd = -1;
	c->session.cq_fd = -1;
	*ret_client = c;
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

void client_close(struct client *c)
{
	if (c->sock >= 0)
		aside_close_socket(c->session.uid, c->sock);
	c->sock = -1;
	close_fd(&c->pidfd);
	c->drop_socket = false;
}

/* The lane does not know them (any more). */
static void release_regions(struct client *c)
{
	client_request_drop(c);
	for (unsigned i = 1; i <= SESSION_REGIONS_MAX; i++)
		if (c->regions[i]) {
			client_region_delete(c, c->regions[i]);
			c->regions[i] = NULL;
		}
	assert(!c->memories_count && !c->strides_count);
}

/* Everything that the session held; safe on a half-built one. */
static void release(struct client *c)
{
	struct client_host *host = c->host;

	release_regions(c);
	for (unsigned i = 1; i <= SESSION_ARENAS_MAX; i++) {
		host->arenas_bytes -= c->arena[i].bytes;
		arena_deinit(&c->arena[i]);
	}
	c->arenas_bytes = 0;
	close_fd(&c->segment_fd);
	close_fd(&c->wake_fd);
	close_fd(&c->session.sq_fd);
	close_fd(&c->session.cq_fd);
	segment_unmap(c->session.segment, c->session.segment_bytes);
	c->session.segment = NULL;
	if (c->session.id) {
		assert(host->by_slot[c->session.slot] == c);
		host->by_slot[c->session.slot] = NULL;
		host->sessions_count--;
	}
}

struct client *client_free(struct client *c)
{
	if (!c)
		return NULL;
	assert(c->state == CLIENT_OVER && c->sock < 0 && c->pidfd < 0);
	free(c);
	return NULL;
}

/* ---- ends ---- */

static void over(struct client *c)
{
	set_state(c, CLIENT_OVER);
	c->drop_socket = true;
	release(c);
}

/* The socket stays open until the lane has drained: a client that sees it closed may write to its pages. */
static void end(struct client *c, uint16_t reason)
{
	if (c->state == CLIENT_ENDING || c->state == CLIENT_OVER)
		return;
	c->deadline_ns = 0;
	c->end_reason = reason;
	if (c->state == CLIENT_HELLO) {
		over(c);
		return;
	}
	/* In ADDING the lane's answer is on its way, and SESSION_END follows on it. */
	if (c->state == CLIENT_IDLE || c->state == CLIENT_ASKING) {
		client_host_post(c->host, LANE_SESSION_END, &c->session, NULL, reason);
		c->end_sent = true;
	}
	set_state(c, CLIENT_ENDING);
}

static void error_fill(struct client *c, struct ctl_error *m, int res, uint16_t reason,
		       const char *text)
{
	memset(m, 0, sizeof(*m));
	ctl_msg_init(&m->h, CTL_ERROR, sizeof(*m), c->seq);
	m->res = res;
	m->reason = reason;
	m->abi_major = SKVC_ABI_MAJOR;
	m->abi_minor = SKVC_ABI_MINOR;
	(void)snprintf((char *)m->text, sizeof(m->text), "%s", text);
}

/* The connection cannot go on: say why to the client if it listens, to the log, and end it. */
static void fail(struct client *c, int res, uint16_t reason, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void fail(struct client *c, int res, uint16_t reason, const char *format, ...)
{
	char text[CTL_TEXT_BYTES];
	struct ctl_error m;
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	error_fill(c, &m, res, reason, text);
	if (!c->drop_socket)
		(void)fdpass_send(c->sock, &m, sizeof(m), NULL, 0);
	stats_reason(c->host->stats, reason);
	if (reason == SKVC_ABI_REASON_BAD_MESSAGE)
		stats_add(c->host->stats, STAT_SESSIONS_FAILED, 1);
	log_client(LOG_EVENT_SESSION_FAILED, LOG_LEVEL_WARNING, &c->session, reason,
		   "connection ended: %s", text);
	end(c, reason);
}

void client_gone(struct client *c)
{
	if (c->state != CLIENT_ENDING && c->state != CLIENT_OVER && c->session.id)
		log_client(LOG_EVENT_SESSION_CLOSED, LOG_LEVEL_INFO, &c->session,
			   SKVC_ABI_REASON_CLIENT_GONE, "client is gone");
	end(c, SKVC_ABI_REASON_CLIENT_GONE);
	c->drop_socket = true; /* nobody is at its other end */
}

void client_shutdown(struct client *c)
{
	end(c, SKVC_ABI_REASON_SHUTDOWN);
}

/* ---- answers ---- */

void client_answer(struct client *c, uint16_t type, void *message, uint32_t bytes, const int *fds,
		   unsigned fds_count)
{
	int r;

	ctl_msg_init(message, type, bytes, c->seq);
	r = fdpass_send(c->sock, message, bytes, fds, fds_count);
	c->seq = 0; /* answered: what is said next was not asked for */
	if (r == -EAGAIN)
		fail(c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE,
		     "the client does not read its answers");
	else if (r < 0)
		client_gone(c);
}

void client_refuse(struct client *c, int res, uint16_t reason, const char *format, ...)
{
	char text[CTL_TEXT_BYTES];
	struct ctl_error m;
	va_list args;

	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	error_fill(c, &m, res, reason, text);
	if (reason != SKVC_ABI_REASON_NONE)
		stats_reason(c->host->stats, reason);
	log_client(LOG_EVENT_NONE, LOG_LEVEL_DEBUG, &c->session, reason, "request refused: %s",
		   text);
	client_answer(c, CTL_ERROR, &m, sizeof(m), NULL, 0);
}

void client_ask(struct client *c, enum lane_mail type, void *object, uint32_t handle)
{
	assert(c->mails_out < CLIENT_MAILS_MAX);
	set_state(c, CLIENT_ASKING);
	c->handle = handle;
	c->mails_out++;
	client_host_post(c->host, type, &c->session, object, handle);
}

/* ---- handshake ---- */

/* Those that are ending have their places until they are over. */
static uint32_t sessions_of(const struct client_host *host, uid_t uid)
{
	uint32_t n = 0;

	for (uint32_t slot = 0; slot < host->config->sessions_max; slot++)
		n += host->by_slot[slot] && host->by_slot[slot]->session.uid == uid;
	return n;
}

/* Root has other means to shut everybody out. */
static bool has_its_share(const struct client *c)
{
	const struct config *config = c->host->config;

	return c->session.uid != 0 &&
	       sessions_of(c->host, c->session.uid) >=
		       config_share(config->sessions_per_user, config->sessions_max);
}

static int take_slot(struct client *c)
{
	struct client_host *host = c->host;

	for (uint32_t slot = 0; slot < host->config->sessions_max; slot++) {
		if (host->by_slot[slot])
			continue;
		host->by_slot[slot] = c;
		host->sessions_count++;
		if (!++host->sessions_made)
			++host->sessions_made; /* 0 is no session */
		c->session.slot = slot;
		c->session.id = host->sessions_made;
		return 0;
	}
	return -EUSERS;
}

/* The session's memory, whole before anybody else sees it. */
static int make_segment(struct client *c, const struct ctl_hello *hello)
{
	struct session *s = &c->session;
	void *base;
	int r;

	r = segment_layout(hello->sq_entries, c->host->config->leases_max, hello->args_bytes,
			   &s->layout);
	if (r < 0)
		return r;
	s->layout.session_id = s->id;
	r = segment_create("skvcd-session", s->layout.segment_bytes, &c->segment_fd);
	if (r < 0)
		return r;
	r = segment_map(c->segment_fd, s->layout.segment_bytes, &base);
	if (r < 0)
		return r;
	s->segment = base;
	s->segment_bytes = s->layout.segment_bytes;
	memcpy(s->segment, &s->layout, sizeof(s->layout));
	s->sq_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	return s->sq_fd < 0 ? -errno : wake_pair(&s->cq_fd, &c->wake_fd);
}

/* Names are UTF-8 on the wire; in logs and tables they are ASCII, so that no terminal is fooled. */
static void take_name(struct session *s, const uint8_t *name)
{
	(void)snprintf(s->name, sizeof(s->name), "%s", (const char *)name);
	for (char *p = s->name; *p; p++)
		if ((unsigned char)*p < ' ' || (unsigned char)*p >= 0x7f)
			*p = '?';
}

static void hello(struct client *c, const struct ctl_hello *m)
{
	struct session *s = &c->session;
	int r;

	if (ctl_msg_versions_meet(m->abi_major, m->abi_minor, SKVC_ABI_MAJOR, 0) < 0 ||
	    ctl_msg_versions_meet(SKVC_ABI_MAJOR, SKVC_ABI_MINOR, m->abi_major_min,
				  m->abi_minor_min) < 0) {
		fail(c, -EPROTO, SKVC_ABI_REASON_VERSION,
		     "client speaks %u.%u and wants at least %u.%u, this "
		     "daemon speaks %u.%u: install matching versions",
		     m->abi_major, m->abi_minor, m->abi_major_min, m->abi_minor_min, SKVC_ABI_MAJOR,
		     SKVC_ABI_MINOR);
		return;
	}
	if (c->host->draining) {
		fail(c, -ESHUTDOWN, SKVC_ABI_REASON_SHUTDOWN,
		     "the daemon drains: it takes no new sessions");
		return;
	}
	if (has_its_share(c)) {
		fail(c, -EUSERS, SKVC_ABI_REASON_USER_SESSIONS,
		     "user %u has %u sessions, his share; end some, or raise [limits] "
		     "sessions_per_user",
		     (unsigned)s->uid, sessions_of(c->host, s->uid));
		return;
	}
	if (take_slot(c) < 0) {
		fail(c, -EUSERS, SKVC_ABI_REASON_SESSIONS_FULL,
		     "%u sessions are connected; raise [daemon] "
		     "sessions_max",
		     c->host->config->sessions_max);
		return;
	}
	r = registry_tenant(c->host->registry, s->uid, &s->tenant);
	if (!r) {
		s->role = m->role;
		take_name(s, m->name);
		r = make_segment(c, m);
	}
	if (r < 0) {
		fail(c, r, SKVC_ABI_REASON_MEMORY_LIMIT,
		     "no memory for a session of %" PRIu64 " bytes: %s", m->args_bytes,
		     strerror(-r));
		return;
	}
	s->opened_ns = clock_now_ns();
	c->deadline_ns = 0;
	set_state(c, CLIENT_ADDING);
	client_host_post(c->host, LANE_SESSION_ADD, s, NULL, 0);
}

static void welcome(struct client *c)
{
	const struct config *config = c->host->config;
	struct ctl_welcome m = {
		.abi_major = SKVC_ABI_MAJOR,
		.abi_minor = SKVC_ABI_MINOR,
		.abi_major_min = SKVC_ABI_MAJOR,
		.session_id = c->session.id,
		.segment_bytes = c->session.segment_bytes,
		.arena_bytes_max = config->arena_session_bytes,
		.lease_ttl_default_ns = config->lease_ttl_ns,
	};
	int fds[3] = { c->segment_fd, c->session.sq_fd, c->wake_fd };

	set_state(c, CLIENT_IDLE);
	log_client(LOG_EVENT_SESSION_OPENED, LOG_LEVEL_INFO, &c->session, SKVC_ABI_REASON_NONE,
		   "connected as %s of tenant %s", c->session.role ? "scheduler" : "worker",
		   c->session.tenant->name);
	client_answer(c, CTL_WELCOME, &m, sizeof(m), fds, 3);
	close_fd(&c->segment_fd);
	close_fd(&c->wake_fd);
}

/* ---- input ---- */

bool client_wants_input(const struct client *c)
{
	return c->state == CLIENT_HELLO || (c->state == CLIENT_IDLE && !c->deadline_ns);
}

/* Requests cost us more than the client: beyond a rate that no engine needs, they wait in its socket. */
static void count_request(struct client *c)
{
	uint64_t now_ns = clock_now_ns();

	if (now_ns - c->window_ns >= CLOCK_NS_PER_S) {
		c->window_ns = now_ns;
		c->window_requests = 0;
	}
	if (++c->window_requests >= CLIENT_REQUESTS_PER_S && c->state == CLIENT_IDLE)
		c->deadline_ns = c->window_ns + CLOCK_NS_PER_S;
}

/* An exported allocation comes with one descriptor, everything else with none. */
static unsigned fds_wanted(const struct ctl_header *h)
{
	return h->type == CTL_MEMORY_GPU &&
	       ((const struct ctl_memory_gpu *)h)->memory_type == CTL_MEMORY_POSIX_FD;
}

static void packet(struct client *c, size_t bytes, const int *fds, unsigned fds_count)
{
	const struct ctl_header *h = (const struct ctl_header *)c->host->packet;
	char text[CTL_TEXT_BYTES];
	uint16_t reason;
	int r;

	c->seq = bytes >= sizeof(*h) ? h->seq : 0;
	r = ctl_msg_check_request(h, bytes, &reason, text);
	if (r < 0) {
		fail(c, r, reason, "%s", text);
		return;
	}
	if (fds_count != fds_wanted(h)) {
		fail(c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE, "%u file descriptors where %u belong",
		     fds_count, fds_wanted(h));
		return;
	}
	if ((c->state == CLIENT_HELLO) != (h->type == CTL_HELLO)) {
		fail(c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE,
		     c->state == CLIENT_HELLO ? "the first message must be HELLO"
					      : "a second HELLO");
		return;
	}
	c->type = h->type;
	if (h->type == CTL_HELLO) {
		hello(c, (const struct ctl_hello *)h);
	} else if (h->type == CTL_BYE) {
		set_state(c, CLIENT_LEAVING);
		c->deadline_ns = 0;
		client_host_post(c->host, LANE_SESSION_END, &c->session, NULL,
				 SKVC_ABI_REASON_NONE);
		c->end_sent = true;
	} else {
		count_request(c);
		client_request(c, h, fds_count ? fds[0] : -1);
	}
}

/* What recvmsg() said, and the packet if there is one. */
static void received(struct client *c, int r, const int *fds, unsigned fds_count)
{
	if (r >= 0 && fds_count > CTL_FDS_MAX)
		r = -EPROTO;
	if (r == -EMSGSIZE || r == -EPROTO) {
		c->seq = 0;
		fail(c, -EPROTO, SKVC_ABI_REASON_BAD_MESSAGE,
		     r == -EMSGSIZE ? "a packet longer than any message"
				    : "too many file descriptors, or foreign control data");
		return;
	}
	if (r <= 0)
		client_gone(c);
	else
		packet(c, (size_t)r, fds, fds_count);
}

void client_input(struct client *c)
{
	int fds[FDPASS_FDS_MAX];
	unsigned fds_count;
	int r;

	if (!client_wants_input(c))
		return;
	r = fdpass_take(c->sock, c->host->packet, CTL_MSG_BYTES_MAX, fds, &fds_count, MSG_DONTWAIT);
	if (r != -EAGAIN)
		received(c, r, fds, fds_count);
	/* Whoever keeps what a descriptor names has it opened by now, in its own way. */
	aside_close(c->session.uid, fds, fds_count);
	/* His descriptors are not closed as fast as they come: more of them wait in his own socket. */
	if (c->state == CLIENT_IDLE && aside_is_behind(c->session.uid))
		c->deadline_ns = clock_now_ns() + CLIENT_BEHIND_NS;
}

void client_deadline(struct client *c)
{
	if (c->state == CLIENT_HELLO) {
		fail(c, -ETIMEDOUT, SKVC_ABI_REASON_BAD_MESSAGE, "no HELLO within %llu s",
		     CLIENT_HELLO_NS / CLOCK_NS_PER_S);
		return;
	}
	c->deadline_ns = 0; /* a pause is over */
}

/* ---- mail ---- */

static void added(struct client *c, int res)
{
	if (c->state == CLIENT_ENDING) { /* it died meanwhile */
		if (res < 0) {
			over(c);
			return;
		}
		client_host_post(c->host, LANE_SESSION_END, &c->session, NULL, c->end_reason);
		c->end_sent = true;
		return;
	}
	if (!res) {
		welcome(c);
		return;
	}
	set_state(c,
		  CLIENT_ENDING); /* so that fail() leaves the lane alone: it has no such session */
	fail(c, res, SKVC_ABI_REASON_SESSIONS_FULL, "the data path refused the session: %s",
	     strerror(-res));
	over(c);
}

static void gone(struct client *c)
{
	struct ctl_ok m = { 0 };

	assert(c->end_sent && !c->mails_out);
	release_regions(c); /* before the client hears of it, and frees what it had exported */
	if (c->state == CLIENT_LEAVING) {
		ctl_msg_init(&m.h, CTL_OK, sizeof(m), c->seq);
		(void)fdpass_send(c->sock, &m, sizeof(m), NULL, 0);
		log_client(LOG_EVENT_SESSION_CLOSED, LOG_LEVEL_INFO, &c->session,
			   SKVC_ABI_REASON_NONE, "left");
	}
	over(c);
}

void client_mail(struct client *c, const struct mail *mail)
{
	switch (mail->type) {
	case LANE_SESSION_ADD:
		added(c, mail->res);
		break;
	case LANE_NS_ADD:
	case LANE_REGION_ADD:
	case LANE_REGION_END:
		assert(c->mails_out);
		c->mails_out--;
		if (c->state == CLIENT_ASKING)
			set_state(c, CLIENT_IDLE);
		client_request_done(c, mail);
		break;
	case LANE_SESSION_FAILED:
		log_client(LOG_EVENT_SESSION_FAILED, LOG_LEVEL_WARNING, &c->session,
			   (uint16_t)mail->value, "session ended: the client broke the contract");
		end(c, (uint16_t)mail->value);
		break;
	case LANE_SESSION_GONE:
		gone(c);
		break;
	default:
		assert(0 && "mail that is not about a session");
	}
}
