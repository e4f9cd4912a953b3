/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics_http.c - libmicrohttpd without a thread of its own: its epoll descriptor and its timeout are
 * sources of the control thread's loop, so that nothing it reads needs a lock.
 *
 * Whoever reaches the address may ask.  So connections are few, each has little memory and a short life, and
 * what is asked for is one of two pages: nothing of a request is kept, and none makes the lane do anything.
 */
#include "daemon/metrics_http.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <microhttpd.h>
#include <systemd/sd-event.h>

#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/util/clock.h"

#define HTTP_CONNECTIONS_MAX 8u
#define HTTP_MEMORY_BYTES ((size_t)16 << 10) /* of one connection: its request's head */
#define HTTP_IDLE_S 5u
#define HTTP_LIFE_NS (20ull * CLOCK_NS_PER_S) /* however busy it looks */
#define HTTP_TICK_US 1000000u
#define HTTP_RUNS_MAX 16u /* of the library in one turn of the loop */

struct http_client {
	int fd; /* -1: free */
	uint64_t until_ns;
};

struct metrics_http {
	const struct control *control; /* borrowed */
	struct MHD_Daemon *mhd;
	sd_event_source *io_source, *timer_source;
	struct http_client client[HTTP_CONNECTIONS_MAX];
};

/* ---- the address ---- */

static unsigned port_of(int fd)
{
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} addr;
	socklen_t len = sizeof(addr);

	memset(&addr, 0, sizeof(addr));
	if (getsockname(fd, &addr.any, &len) < 0)
		return 0;
	return ntohs(addr.any.sa_family == AF_INET6 ? addr.in6.sin6_port : addr.in.sin_port);
}

static int open_socket(const char *text, int *ret_fd, char *err, size_t err_bytes)
{
	struct sockaddr_storage addr;
	socklen_t len = 0;
	int fd = -1, one = 1, r;

	r = config_parse_address(text, &addr, &len);
	if (!r) {
		fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		r = fd < 0 ? -errno : 0;
	}
	if (!r) {
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, (const struct sockaddr *)&addr, len) < 0 ||
		    listen(fd, HTTP_CONNECTIONS_MAX) < 0)
			r = -errno;
	}
	if (r < 0) {
		(void)snprintf(err, err_bytes, "[metrics] listen: %s: %s%s", text, strerror(-r),
			       r == -EAFNOSUPPORT || r == -EPERM || r == -EADDRNOTAVAIL
				       ? "; the unit's PrivateNetwork= and "
					 "RestrictAddressFamilies= need a drop-in, see skvcd(8)"
				       : "");
		if (fd >= 0)
			(void)close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

/* ---- requests ---- */

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, char *text, size_t bytes,
			      enum MHD_ResponseMemoryMode mode, const char *type)
{
	struct MHD_Response *response = MHD_create_response_from_buffer(bytes, text, mode);
	enum MHD_Result r;

	if (!response) {
		if (mode == MHD_RESPMEM_MUST_FREE)
			free(text);
		return MHD_NO;
	}
	(void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		(void)MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
	r = MHD_queue_response(c, status, response);
	MHD_destroy_response(response);
	return r;
}

static enum MHD_Result answer_line(struct MHD_Connection *c, unsigned status, const char *line)
{
	return answer(c, status, (char *)line, strlen(line), MHD_RESPMEM_PERSISTENT,
		      "text/plain; charset=utf-8");
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *c, const char *url,
				  const char *method, const char *version, const char *upload,
				  size_t *upload_bytes, void **con)
{
	const struct metrics_http *http = user;
	char *text;
	size_t bytes;

	(void)version;
	(void)upload;
	(void)upload_bytes;
	(void)con;
	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
		return answer_line(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
	if (!strcmp(url, "/"))
		return answer_line(c, MHD_HTTP_OK, "skvcd " SKVCD_VERSION ": see /metrics\n");
	if (strcmp(url, "/metrics") != 0)
		return answer_line(c, MHD_HTTP_NOT_FOUND, "only /metrics\n");
	if (metrics_text(http->control, &text, &bytes) < 0)
		return answer_line(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
	return answer(c, MHD_HTTP_OK, text, bytes, MHD_RESPMEM_MUST_FREE, METRICS_CONTENT_TYPE);
}

static int fd_of(struct MHD_Connection *c)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);

	return info ? info->connect_fd : -1;
}

static void on_connection(void *user, struct MHD_Connection *c, void **context,
			  enum MHD_ConnectionNotificationCode code)
{
	struct metrics_http *http = user;
	struct http_client *client = *context;

	if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
		if (client)
			client->fd = -1;
		*context = NULL;
		return;
	}
	for (unsigned i = 0; i < HTTP_CONNECTIONS_MAX && !*context; i++)
		if (http->client[i].fd < 0) {
			http->client[i] = (struct http_client){ fd_of(c),
								clock_now_ns() + HTTP_LIFE_NS };
			*context = &http->client[i];
		}
}

/* ---- in the loop ---- */

/* One that sends a byte now and then would never be idle: its place is needed. */
static bool end_old_ones(struct metrics_http *http)
{
	uint64_t now_ns = clock_now_ns();
	bool any = false;

	for (unsigned i = 0; i < HTTP_CONNECTIONS_MAX; i++) {
		struct http_client *client = &http->client[i];

		if (client->fd < 0)
			continue;
		any = true;
		if (now_ns > client->until_ns)
			(void)shutdown(client->fd, SHUT_RDWR); /* the library sees it and closes */
	}
	return any;
}

/*
 * The timer runs while somebody is connected, and once more: when all places were taken, the library listens
 * again only in the run behind the one that freed some.
 */
static void serve(struct metrics_http *http)
{
	bool any = end_old_ones(http);
	MHD_UNSIGNED_LONG_LONG ms = 0;
	uint64_t us = HTTP_TICK_US;

	for (unsigned i = 0; i < HTTP_RUNS_MAX; i++) {
		(void)MHD_run(http->mhd);
		if (MHD_get_timeout(http->mhd, &ms) != MHD_YES || ms)
			break;
	}
	any |= end_old_ones(http);
	if (!any)
		return;
	if (MHD_get_timeout(http->mhd, &ms) == MHD_YES && ms < HTTP_TICK_US / 1000)
		us = ms * 1000 + 1;
	(void)sd_event_source_set_time_relative(http->timer_source, us);
	(void)sd_event_source_set_enabled(http->timer_source, SD_EVENT_ONESHOT);
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
	(void)source;
	(void)fd;
	(void)events;
	serve(user);
	return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *user)
{
	(void)source;
	(void)usec;
	serve(user);
	return 0;
}

static int start(struct metrics_http *http, struct sd_event *event, int fd)
{
	const union MHD_DaemonInfo *info;
	int r;

	http->mhd = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, on_request, http,
				     MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
				     HTTP_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
				     HTTP_MEMORY_BYTES, MHD_OPTION_CONNECTION_TIMEOUT, HTTP_IDLE_S,
				     MHD_OPTION_NOTIFY_CONNECTION, on_connection, http,
				     MHD_OPTION_END);
	if (!http->mhd) {
		(void)close(fd);
		return -ENOMEM;
	}
	info = MHD_get_daemon_info(http->mhd, MHD_DAEMON_INFO_EPOLL_FD);
	if (!info)
		return -EIO;
	r = sd_event_add_io(event, &http->io_source, info->epoll_fd, EPOLLIN, on_io, http);
	if (r >= 0)
		r = sd_event_add_time_relative(event, &http->timer_source, CLOCK_MONOTONIC, 0,
					       HTTP_TICK_US / 10, on_timer, http);
	/* Clients and their memory come first. */
	if (r >= 0)
		r = sd_event_source_set_priority(http->io_source, SD_EVENT_PRIORITY_NORMAL + 2);
	return r;
}

int metrics_http_new(struct sd_event *event, const struct control *control,
		     struct metrics_http **ret, char *err, size_t err_bytes)
{
	const char *listen = control_config(control)->metrics_listen;
	struct metrics_http *http;
	unsigned port;
	int fd, r;

	*ret = NULL;
	if (!listen[0])
		return 0;
	r = open_socket(listen, &fd, err, err_bytes);
	if (r < 0)
		return r;
	port = port_of(fd);
	http = calloc(1, sizeof(*http));
	if (!http) {
		(void)close(fd);
		(void)snprintf(err, err_bytes, "out of memory");
		return -ENOMEM;
	}
	http->control = control;
	for (unsigned i = 0; i < HTTP_CONNECTIONS_MAX; i++)
		http->client[i].fd = -1;
	r = start(http, event, fd);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "[metrics] listen: %s: %s", listen, strerror(-r));
		metrics_http_free(http);
		return r;
	}
	log_line(LOG_LEVEL_INFO, "metrics are served on %.*s:%u/metrics",
		 (int)(strrchr(listen, ':') - listen), listen, port);
	*ret = http;
	return 0;
}

struct metrics_http *metrics_http_free(struct metrics_http *http)
{
	if (!http)
		return NULL;
	http->io_source = sd_event_source_disable_unref(http->io_source);
	http->timer_source = sd_event_source_disable_unref(http->timer_source);
	if (http->mhd)
		MHD_stop_daemon(http->mhd);
	free(http);
	return NULL;
}
