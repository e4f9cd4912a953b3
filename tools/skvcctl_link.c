/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_link.c - connect to the daemon's own socket, where no bus daemon is needed, or to the system bus.
 */
#include "tools/skvcctl_link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BUS_TIMEOUT_US 5000000

/* ---- what to tell a person ---- */

static enum skvcctl_exit no_daemon(struct skvcctl_link *l, const char *why)
{
	if (l->source->system)
		(void)snprintf(l->err, l->err_bytes,
			       "no skvcd on the system bus (%s): start it, or try without "
			       "--system",
			       why);
	else
		(void)snprintf(l->err, l->err_bytes,
			       "no skvcd on %s (%s): start it, or name its bus socket with "
			       "--bus or $SKVC_BUS",
			       l->source->path, why);
	return SKVCCTL_NO_DAEMON;
}

enum skvcctl_exit skvcctl_link_failed(struct skvcctl_link *l, int error, const char *what)
{
	const char *where = l->source->system ? "the system bus" : l->source->path;

	if (error == -EACCES || error == -EPERM)
		(void)snprintf(l->err, l->err_bytes,
			       "%s: not permitted: run as root or as a member of the group "
			       "that the socket belongs to",
			       where);
	else if (error == -ECONNRESET || error == -ENOTCONN || error == -EPIPE)
		(void)snprintf(l->err, l->err_bytes,
			       "%s: the daemon closed the connection: is it being stopped? see "
			       "its log",
			       where);
	else if (error == -EBUSY)
		(void)snprintf(l->err, l->err_bytes,
			       "%s: the daemon is busy: its socket has no place free; try again",
			       where);
	else if (error == -EPROTOTYPE)
		(void)snprintf(l->err, l->err_bytes,
			       "%s: this is the clients' socket: name skvcd's bus_socket", where);
	else if (error == -ETIMEDOUT)
		(void)snprintf(l->err, l->err_bytes,
			       "%s: no answer within 5 s: is this skvcd's bus socket? see its "
			       "log",
			       where);
	else
		(void)snprintf(l->err, l->err_bytes, "%s: %s: %s", where, what, strerror(-error));
	return SKVCCTL_FAILURE;
}

/* ---- connection ---- */

/*
 * The daemon hangs up on whom it does not take, and says why in words of the handshake.  sd-bus may have closed the
 * socket before it read them, when it was late with its own.  So they are looked at here, and left to it.
 */
static int first_words(int sock, int limit_ms)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };
	char words[8] = "";

	if (!poll(&p, 1, limit_ms))
		return -ETIMEDOUT;
	if (recv(sock, words, sizeof(words), MSG_PEEK | MSG_DONTWAIT) < (ssize_t)sizeof(words))
		return 0;
	if (!memcmp(words, "REJECTED", 8))
		return -EACCES;
	return memcmp(words, "ERROR ", 6) ? 0 : -EBUSY;
}

/* Takes the socket over. */
static int begin(struct skvcctl_link *l, int sock)
{
	int ours = fcntl(sock, F_DUPFD_CLOEXEC, 0), said;
	int r = ours < 0 ? -errno : sd_bus_new(&l->bus);

	if (r >= 0)
		r = sd_bus_set_fd(l->bus, sock, sock);
	if (r < 0) {
		(void)close(sock);
	} else {
		r = sd_bus_start(l->bus);
		said = first_words(ours, r < 0 ? 0 : BUS_TIMEOUT_US / 1000);
		if (r >= 0 || said == -EACCES || said == -EBUSY)
			r = said;
	}
	if (ours >= 0)
		(void)close(ours);
	if (r < 0)
		l->bus = sd_bus_close_unref(
			l->bus); /* or closing it would wait for an answer, too */
	return r;
}

static enum skvcctl_exit connect_peer(struct skvcctl_link *l)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(l->source->path);
	int fd, r;

	if (!len || len >= sizeof(addr.sun_path))
		return skvcctl_link_failed(l, -ENAMETOOLONG, "socket path");
	memcpy(addr.sun_path, l->source->path, len);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return skvcctl_link_failed(l, -errno, "socket");
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		r = -errno;
		(void)close(fd);
		return r == -ENOENT || r == -ECONNREFUSED || r == -ENOTSOCK || r == -ENOTDIR
			       ? no_daemon(l, strerror(-r))
			       : skvcctl_link_failed(l, r, "connect");
	}
	r = begin(l, fd);
	return r < 0 ? skvcctl_link_failed(l, r, "connect") : SKVCCTL_OK;
}

enum skvcctl_exit skvcctl_link_open(struct skvcctl_link *l)
{
	enum skvcctl_exit e = SKVCCTL_OK;
	int r;

	if (!l->source->system) {
		e = connect_peer(l);
	} else {
		r = sd_bus_open_system(&l->bus);
		if (r < 0)
			return no_daemon(l, strerror(-r));
		l->destination = BUS_NAME;
	}
	if (e == SKVCCTL_OK)
		(void)sd_bus_set_method_call_timeout(l->bus, BUS_TIMEOUT_US);
	return e;
}

enum skvcctl_exit skvcctl_link_call(struct skvcctl_link *l, const char *method,
				    sd_bus_message **ret_reply)
{
	sd_bus_error error = SD_BUS_ERROR_NULL;
	enum skvcctl_exit e = SKVCCTL_OK;
	int r;

	r = sd_bus_call_method(l->bus, l->destination, BUS_PATH, BUS_NAME, method, &error,
			       ret_reply, NULL);
	if (r < 0 && (sd_bus_error_has_name(&error, SD_BUS_ERROR_SERVICE_UNKNOWN) ||
		      sd_bus_error_has_name(&error, SD_BUS_ERROR_NAME_HAS_NO_OWNER)))
		e = no_daemon(l, "nobody has the name " BUS_NAME);
	else if (r < 0)
		e = skvcctl_link_failed(l, r, method);
	sd_bus_error_free(&error);
	return e;
}
