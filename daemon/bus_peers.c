/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus_peers.c - who asks on the daemon's own socket, without a bus daemon: who may, and for how many at a time
 * there is a place.  Control thread.
 *
 * A place is free again when a thread and this one have seen that who had it is gone, and so a moment after he knows
 * it himself.  Who finds none waits, for a bounded time and as one of a bounded number; then he is hung up on.
 */
#include "daemon/bus_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <systemd/sd-id128.h>

#include "daemon/aside.h"
#include "daemon/bus_relay.h"
#include "daemon/log.h"

/* sd-bus takes a refusal for one when there is an answer to each line that it sent: AUTH, DATA, NEGOTIATE_UNIX_FD. */
#define WORDS_REJECTED "REJECTED EXTERNAL\r\nERROR\r\nERROR\r\n"
#define WORDS_BUSY "ERROR no place is free\r\n"

static void admit(struct bus *bus);

static int on_disconnected(sd_bus_message *message, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	sd_bus *peer = sd_bus_message_get_bus(message);

	(void)error;
	for (unsigned i = 0; i < BUS_PEERS_MAX; i++)
		if (bus->peers[i].bus == peer)
			bus->peers[i].bus = sd_bus_close_unref(peer);
	admit(bus);
	return 0;
}

/* Root's and the daemon's own user's. */
static bool may_change(uid_t uid)
{
	return !uid || uid == geteuid();
}

/*
 * sd-bus would ask the socket who its peer is, and that is the relay.  So what the table does not give to everybody
 * is refused here.
 */
static int on_call_of_other(sd_bus_message *call, void *user, sd_bus_error *error)
{
	const char *member = sd_bus_message_get_member(call);
	int r;

	(void)user;
	(void)error;
	if (!member || sd_bus_message_is_method_call(call, NULL, NULL) <= 0)
		return 0;
	for (const sd_bus_vtable *v = bus_vtable; v->type != _SD_BUS_VTABLE_END; v++) {
		if (v->type != _SD_BUS_VTABLE_METHOD || v->flags & SD_BUS_VTABLE_UNPRIVILEGED ||
		    strcmp(v->x.method.member, member) != 0)
			continue;
		r = bus_may_answer(call);
		return r < 0 ? r
			     : sd_bus_reply_method_errorf(
				       call, SD_BUS_ERROR_ACCESS_DENIED,
				       "%s is for root and the daemon's own user", member);
	}
	return 0;
}

/*
 * Takes the socket over, also when it fails: from sd_bus_set_fd on it is the peer's, and sd-bus closes it as
 * soon as the handshake goes wrong, when its number may be somebody else's already.
 */
static int serve(struct bus *bus, struct bus_peer *peer, int sock)
{
	sd_id128_t id;
	int r;

	r = sd_id128_randomize(&id);
	if (r >= 0)
		r = sd_bus_set_fd(peer->bus, sock, sock);
	if (r < 0) {
		(void)close(sock);
		return r;
	}
	r = sd_bus_set_server(peer->bus, 1, id);
	/* Who it is we have asked the kernel, and do not believe its own word. */
	if (r >= 0)
		r = sd_bus_set_anonymous(peer->bus, 1);
	if (r >= 0)
		r = sd_bus_set_sender(peer->bus, BUS_NAME);
	if (r >= 0)
		r = sd_bus_start(peer->bus);
	if (r >= 0)
		r = sd_bus_match_signal(peer->bus, NULL, "org.freedesktop.DBus.Local",
					"/org/freedesktop/DBus/Local", "org.freedesktop.DBus.Local",
					"Disconnected", on_disconnected, bus);
	if (r >= 0 && !may_change(peer->uid))
		r = sd_bus_add_filter(peer->bus, NULL, on_call_of_other, NULL);
	if (r >= 0)
		r = sd_bus_add_object_vtable(peer->bus, NULL, BUS_PATH, BUS_NAME, bus_vtable, bus);
	if (r >= 0)
		r = bus_attach(bus, peer->bus);
	return r;
}

/* Root, the daemon's own user, or the daemon's group: the socket's mode says so, too, but may be changed. */
static int may_ask(int sock, const struct listener_peer *peer)
{
	struct session s = { .pid = peer->pid, .uid = peer->uid };

	if (may_change(peer->uid) || listener_peer_in_group(sock, getegid()))
		return 1;
	log_client(LOG_EVENT_NOT_PERMITTED, LOG_LEVEL_WARNING, &s, SKVC_ABI_REASON_NOT_PERMITTED,
		   "may not ask on the bus socket");
	return 0;
}

/*
 * Nobody keeps all others out, and others never keep out who could put an end to that.  NULL: none for him.  One that
 * was given up for what it did not read (bus_may_answer()) is closed, and no signal says so.
 */
static struct bus_peer *place_for(struct bus *bus, uid_t uid)
{
	unsigned end = may_change(uid) ? BUS_PEERS_MAX : BUS_PEERS_MAX - BUS_PEERS_KEPT, his = 0;
	struct bus_peer *place = NULL;

	for (unsigned i = 0; i < end; i++) {
		struct bus_peer *p = &bus->peers[i];

		if (p->bus && sd_bus_is_open(p->bus) <= 0)
			p->bus = sd_bus_close_unref(p->bus);
		if (!p->bus)
			place = p;
		else
			his += p->uid == uid;
	}
	return may_change(uid) || (his < BUS_PEERS_PER_USER && !aside_is_behind(uid)) ? place
										      : NULL;
}

/* Takes the socket over. */
static void seat(struct bus *bus, struct bus_peer *place, uid_t uid, int sock)
{
	int end, r = sd_bus_new(&place->bus);

	if (r < 0) {
		aside_close_socket(uid, sock);
		return;
	}
	place->uid = uid;
	r = bus_relay_start(sock, uid, &end);
	if (r >= 0)
		r = serve(bus, place, end);
	if (r < 0)
		place->bus = sd_bus_close_unref(place->bus);
}

/* In the words of the handshake that the peer has begun, so that it can tell one from the other. */
static void hang_up(uid_t uid, int sock, const char *words)
{
	(void)send(sock, words, strlen(words), MSG_DONTWAIT | MSG_NOSIGNAL);
	aside_close_socket(uid, sock);
}

/* ---- who waits for a place ---- */

/* As with places: nobody takes the whole room, and others leave an end of it to root and our own user. */
static bool may_wait(const struct bus *bus, uid_t uid)
{
	unsigned his = 0;

	for (unsigned i = 0; i < bus->waiting_count; i++)
		his += bus->waiting[i].uid == uid;
	return may_change(uid) ? bus->waiting_count < BUS_WAITING_MAX
			       : bus->waiting_count < BUS_WAITING_MAX - BUS_WAITING_KEPT &&
					 his < BUS_WAITING_PER_USER;
}

/* All wait for the same time: the first's is over first.  Without a timer bus_peers_look() sees to it. */
static void wait_on(struct bus *bus)
{
	if (bus->waiting_count)
		(void)sd_event_source_set_time(bus->wait_source,
					       bus->waiting[0].until_ns / 1000 + 1);
	(void)sd_event_source_set_enabled(bus->wait_source,
					  bus->waiting_count ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
}

/* Who went away takes no place from those who are still there, and nothing was ever asked by him. */
static bool is_gone(int sock)
{
	struct pollfd p = { .fd = sock };

	return poll(&p, 1, 0) > 0;
}

/*
 * In the order they came.  Who is behind one that may have no place, as his user has all he may, does not wait for him.
 */
static void admit(struct bus *bus)
{
	uint64_t now_ns = clock_now_ns();
	unsigned left = 0;

	for (unsigned i = 0; i < bus->waiting_count; i++) {
		struct bus_waiting w = bus->waiting[i];
		bool gone = is_gone(w.sock);
		struct bus_peer *place = gone ? NULL : place_for(bus, w.uid);

		if (place)
			seat(bus, place, w.uid, w.sock);
		else if (gone || w.until_ns <= now_ns)
			hang_up(w.uid, w.sock, WORDS_BUSY);
		else
			bus->waiting[left++] = w;
	}
	bus->waiting_count = left;
	wait_on(bus);
}

static int on_wait(sd_event_source *source, uint64_t usec, void *user)
{
	(void)source;
	(void)usec;
	admit(user);
	return 0;
}

static void wait_for_place(struct bus *bus, uid_t uid, int sock)
{
	if (!may_wait(bus, uid)) {
		hang_up(uid, sock, WORDS_BUSY);
		return;
	}
	bus->waiting[bus->waiting_count++] = (struct bus_waiting){
		.sock = sock, .uid = uid, .until_ns = clock_now_ns() + BUS_WAIT_NS
	};
	wait_on(bus);
}

static void connected(struct bus *bus, int sock)
{
	struct listener_peer peer = { .pidfd = -1 };
	struct bus_peer *place;
	int r = listener_peer(sock, &peer);

	if (peer.pidfd >= 0)
		(void)close(peer.pidfd);
	if (r < 0 || !may_ask(sock, &peer)) {
		hang_up(r < 0 ? ASIDE_NOBODY : peer.uid, sock, WORDS_REJECTED);
		return;
	}
	admit(bus); /* who waits came before him */
	place = place_for(bus, peer.uid);
	if (place)
		seat(bus, place, peer.uid, sock);
	else
		wait_for_place(bus, peer.uid, sock);
}

/* EMFILE and the like: the connection stays readable, so polling on would spin.  bus_peers_look() tries again. */
static int on_accept(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct bus *bus = user;
	int sock, r = listener_accept(&bus->listener, &sock);

	(void)fd;
	(void)events;
	if (!r)
		connected(bus, sock);
	else if (r != -EAGAIN)
		(void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
	return 0;
}

int bus_peers_start(struct bus *bus, char *err, size_t err_bytes)
{
	const struct config *config = control_config(bus->control);
	int r;

	bus->listener = (struct listener)LISTENER_NONE;
	if (!config->bus_socket[0])
		return 0;
	r = listener_open(config->bus_socket, SOCK_STREAM, config->socket_mode, -1, &bus->listener,
			  err, err_bytes);
	if (r < 0)
		return r;
	r = sd_event_add_io(bus->event, &bus->accept_source, bus->listener.fd, EPOLLIN, on_accept,
			    bus);
	if (r >= 0)
		r = sd_event_add_time(bus->event, &bus->wait_source, CLOCK_MONOTONIC, 0, 1000,
				      on_wait, bus);
	if (r >= 0)
		r = sd_event_source_set_enabled(bus->wait_source, SD_EVENT_OFF);
	if (r < 0)
		(void)snprintf(err, err_bytes, "bus socket: %s", strerror(-r));
	return r < 0 ? r : 0;
}

void bus_peers_look(struct bus *bus)
{
	if (!bus->accept_source)
		return;
	(void)sd_event_source_set_enabled(bus->accept_source, SD_EVENT_ON);
	admit(bus); /* places that nobody said were free */
}

void bus_peers_stop(struct bus *bus)
{
	bus->accept_source = sd_event_source_disable_unref(bus->accept_source);
	bus->wait_source = sd_event_source_disable_unref(bus->wait_source);
	for (unsigned i = 0; i < BUS_PEERS_MAX; i++)
		bus->peers[i].bus = sd_bus_close_unref(bus->peers[i].bus);
	for (unsigned i = 0; i < bus->waiting_count; i++)
		aside_close_socket(bus->waiting[i].uid, bus->waiting[i].sock);
	bus->waiting_count = 0;
	listener_close(&bus->listener);
}
