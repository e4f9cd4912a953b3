/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus.c - org.skvcd.Skvcd1 on /org/skvcd/Skvcd1: counters, namespaces, sessions, tenants, models.  Control thread.
 *
 * Everything but the list of models is read: no other method changes the daemon, and none makes the lane do
 * anything, since its counters are atomics that are read where they lie.  A peer that asks without reading answers is
 * dropped before its answers fill our memory.
 */
#include "daemon/bus.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>
#include <systemd/sd-id128.h>

#include "daemon/listener.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/util/clock.h"

#define BUS_NAME "org.skvcd.Skvcd1"
#define BUS_PATH "/org/skvcd/Skvcd1"
#define BUS_PEERS_MAX 16u
#define BUS_UNREAD_MAX 32u /* answers that a peer may leave unread */

struct bus {
	sd_event *event;	       /* borrowed */
	const struct control *control; /* borrowed */
	struct listener listener;
	sd_event_source *accept_source;
	sd_bus *system;		      /* NULL: there is none */
	sd_bus *peers[BUS_PEERS_MAX]; /* NULL: free */
};

/* ---- methods ---- */

/* -ENOBUFS ends the connection's dispatch with an error reply that is not sent either. */
static int may_answer(sd_bus_message *call)
{
	uint64_t unread = 0;
	sd_bus *bus = sd_bus_message_get_bus(call);

	if (sd_bus_get_n_queued_write(bus, &unread) >= 0 && unread > BUS_UNREAD_MAX) {
		sd_bus_close(bus);
		return -ENOBUFS;
	}
	return 0;
}

/* Sends and drops a reply that was built, or drops it and hands the error on. */
static int reply_send(sd_bus_message *reply, int r)
{
	if (r >= 0)
		r = sd_bus_send(NULL, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

static int reply_new(sd_bus_message *call, sd_bus_message **ret_reply)
{
	int r = may_answer(call);

	return r < 0 ? r : sd_bus_message_new_method_return(call, ret_reply);
}

static int on_ping(sd_bus_message *call, void *user, sd_bus_error *error)
{
	int r = may_answer(call);

	(void)user;
	(void)error;
	return r < 0 ? r : sd_bus_reply_method_return(call, "s", SKVCD_VERSION);
}

static int append_stat(sd_bus_message *m, uint64_t value, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static int append_stat(sd_bus_message *m, uint64_t value, const char *format, ...)
{
	char name[96];
	va_list args;

	va_start(args, format);
	(void)vsnprintf(name, sizeof(name), format, args);
	va_end(args);
	return sd_bus_message_append(m, "{st}", name, value);
}

static int append_latencies(sd_bus_message *m, const struct stats *stats)
{
	int r = 0;

	for (unsigned h = 0; r >= 0 && h < STATS_HIST_COUNT; h++) {
		const char *name = stats_hist_name[h];

		r = append_stat(m, stats_hist_samples(stats, h), "latency.%s.count", name);
		if (r >= 0)
			r = append_stat(
				m,
				atomic_load_explicit(&stats->hist_sum_ns[h], memory_order_relaxed),
				"latency.%s.sum_ns", name);
		if (r >= 0)
			r = append_stat(m, stats_percentile_ns(stats, h, 0.50), "latency.%s.p50_ns",
					name);
		if (r >= 0)
			r = append_stat(m, stats_percentile_ns(stats, h, 0.99), "latency.%s.p99_ns",
					name);
	}
	return r;
}

static int on_get_stats(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	sd_bus_message *reply = NULL;
	int r;

	(void)error;
	r = reply_new(call, &reply);
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "{st}");
	for (unsigned i = 0; r >= 0 && i < STAT_COUNT; i++)
		r = append_stat(reply, control_stat(bus->control, i), "%s", stats_info[i].name);
	for (uint16_t i = 1; r >= 0 && i < SKVC_ABI_REASON_COUNT; i++)
		r = append_stat(reply, control_reason(bus->control, i), "reason.%s",
				stats_reason_word(i));
	if (r >= 0)
		r = append_latencies(reply, control_lane_stats(bus->control));
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return reply_send(reply, r);
}

static int on_describe_stats(sd_bus_message *call, void *user, sd_bus_error *error)
{
	sd_bus_message *reply = NULL;
	int r;

	(void)user;
	(void)error;
	r = reply_new(call, &reply);
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(ssss)");
	for (unsigned i = 0; r >= 0 && i < STAT_COUNT; i++)
		r = sd_bus_message_append(reply, "(ssss)", stats_info[i].name,
					  stats_info[i].kind == 'C' ? "counter" : "gauge",
					  stats_info[i].unit, stats_info[i].text);
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return reply_send(reply, r);
}

static int on_get_metrics(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	char *text = NULL;
	size_t bytes;
	int r = may_answer(call);

	(void)error;
	if (r >= 0)
		r = metrics_text(bus->control, &text, &bytes);
	if (r >= 0)
		r = sd_bus_reply_method_return(call, "s", text);
	free(text);
	return r;
}

static int append_namespace(sd_bus_message *m, const struct namespace *ns)
{
	char digest[2 * sizeof(ns->digest) + 1];

	for (size_t i = 0; i < sizeof(ns->digest); i++)
		(void)snprintf(digest + 2 * i, 3, "%02x", ns->digest[i]);
	return sd_bus_message_append(
		m, "(usssuuttttttuu)", ns->id, ns->tenant->name, ns->model, digest,
		ns->geom.block_tokens, ns->geom.segments_count, ns->geom.raw_bytes,
		atomic_load_explicit(&ns->blocks, memory_order_relaxed),
		atomic_load_explicit(&ns->raw_bytes, memory_order_relaxed),
		atomic_load_explicit(&ns->coded_bytes, memory_order_relaxed),
		atomic_load_explicit(&ns->hits, memory_order_relaxed),
		atomic_load_explicit(&ns->misses, memory_order_relaxed),
		atomic_load_explicit(&ns->profile_version, memory_order_relaxed),
		(uint32_t)atomic_load_explicit(&ns->profile_bits_milli, memory_order_relaxed));
}

/* An array of what `append` makes of each namespace. */
static int reply_namespaces(sd_bus_message *call, const struct bus *bus, const char *contents,
			    int (*append)(sd_bus_message *m, const struct namespace *ns))
{
	const struct registry *registry = control_registry(bus->control);
	sd_bus_message *reply = NULL;
	int r = reply_new(call, &reply);

	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', contents);
	for (uint32_t i = 0; r >= 0 && i < registry->namespaces_count; i++)
		r = append(reply, registry->namespaces[i]);
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return reply_send(reply, r);
}

static int on_list_namespaces(sd_bus_message *call, void *user, sd_bus_error *error)
{
	(void)error;
	return reply_namespaces(call, user, "(usssuuttttttuu)", append_namespace);
}

static const char *profile_state(const struct namespace *ns, uint32_t newest)
{
	static const char *const at_work[NS_FIT_COUNT] = {
		[NS_FIT_SAMPLING] = "sampling",	  [NS_FIT_DUE] = "fitting",
		[NS_FIT_FITTING] = "fitting",	  [NS_FIT_LAYER_DUE] = "fitting-layer",
		[NS_FIT_LAYER] = "fitting-layer",
	};
	uint32_t fit = atomic_load_explicit(&ns->fit_shown, memory_order_relaxed);

	if (!newest)
		return "old";
	return at_work[fit] ? at_work[fit] : "in-use";
}

/* A slot that the lane is changing is passed over: the next picture has it. */
static int append_profile(sd_bus_message *m, const struct namespace *ns,
			  const struct ns_profile *np)
{
	uint32_t version = atomic_load_explicit(&np->version, memory_order_acquire);
	uint32_t layer = atomic_load_explicit(&np->layer, memory_order_relaxed);
	uint32_t previous = atomic_load_explicit(&np->previous, memory_order_relaxed);
	uint32_t pairs = atomic_load_explicit(&np->rotary_pairs, memory_order_relaxed);
	uint32_t newest = atomic_load_explicit(&np->newest, memory_order_relaxed);
	uint32_t model = atomic_load_explicit(&np->model, memory_order_relaxed);
	uint64_t bytes = atomic_load_explicit(&np->bytes, memory_order_relaxed);
	uint64_t tokens = atomic_load_explicit(&np->tokens, memory_order_relaxed);
	uint64_t expected = atomic_load_explicit(&np->expected_milli, memory_order_relaxed);
	uint64_t measured = atomic_load_explicit(&np->measured_milli, memory_order_relaxed);
	uint64_t blocks = atomic_load_explicit(&np->blocks, memory_order_relaxed);
	char digest[17];

	(void)snprintf(digest, sizeof(digest), "%016" PRIx64,
		       atomic_load_explicit(&np->digest, memory_order_relaxed));
	atomic_thread_fence(memory_order_acquire);
	if (!version || atomic_load_explicit(&np->version, memory_order_relaxed) != version)
		return 0;
	return sd_bus_message_append(m, "(ussusuutttttsu)", ns->id, ns->tenant->name, ns->model,
				     version, digest, layer ? previous + 1 : 0, pairs, bytes,
				     tokens, expected, measured, blocks, profile_state(ns, newest),
				     model);
}

/* Those of each namespace; one that has none yet has a row of version 0. */
static int append_profiles(sd_bus_message *m, const struct namespace *ns)
{
	int r = 0;

	for (unsigned i = 0; r >= 0 && i < NS_PROFILES_MAX; i++)
		r = append_profile(m, ns, &ns->profile[i]);
	if (r >= 0 && !atomic_load_explicit(&ns->profile_version, memory_order_relaxed))
		r = sd_bus_message_append(m, "(ussusuutttttsu)", ns->id, ns->tenant->name,
					  ns->model, 0, "", 0, 0, (uint64_t)0, (uint64_t)0,
					  (uint64_t)0, (uint64_t)0, (uint64_t)0,
					  profile_state(ns, 1), 0);
	return r;
}

static int on_list_profiles(sd_bus_message *call, void *user, sd_bus_error *error)
{
	(void)error;
	return reply_namespaces(call, user, "(ussusuutttttsu)", append_profiles);
}

static int append_session(sd_bus_message *m, const struct session *s)
{
	uint64_t now_ns = clock_now_ns();

	return sd_bus_message_append(
		m, "(uuusssttttuut)", s->id, (uint32_t)s->pid, (uint32_t)s->uid, s->tenant->name,
		s->name, s->role ? "scheduler" : "worker",
		atomic_load_explicit(&s->ops, memory_order_relaxed),
		atomic_load_explicit(&s->store_blocks, memory_order_relaxed),
		atomic_load_explicit(&s->load_blocks, memory_order_relaxed),
		atomic_load_explicit(&s->lookup_blocks, memory_order_relaxed),
		(uint32_t)atomic_load_explicit(&s->jobs, memory_order_relaxed),
		(uint32_t)atomic_load_explicit(&s->leases, memory_order_relaxed),
		now_ns > s->opened_ns ? now_ns - s->opened_ns : 0);
}

static int on_list_sessions(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	sd_bus_message *reply = NULL;
	int r;

	(void)error;
	r = reply_new(call, &reply);
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(uuusssttttuut)");
	for (uint32_t i = 0; r >= 0 && i < control_config(bus->control)->sessions_max; i++) {
		const struct session *s = control_session(bus->control, i);

		if (s)
			r = append_session(reply, s);
	}
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return reply_send(reply, r);
}

static int on_list_tenants(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	const struct registry *registry = control_registry(bus->control);
	sd_bus_message *reply = NULL;
	int r;

	(void)error;
	r = reply_new(call, &reply);
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(stt)");
	for (uint32_t i = 0; r >= 0 && i < registry->tenants_count; i++) {
		const struct tenant *t = registry->tenants[i];

		r = sd_bus_message_append(
			reply, "(stt)", t->name,
			atomic_load_explicit(&t->charged_bytes, memory_order_relaxed),
			t->quota_bytes);
	}
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return reply_send(reply, r);
}

static int append_model(sd_bus_message *m, const struct model_entry *e)
{
	static const struct model_config none = { 0 };
	const struct model_config *c = e->model ? mspec_model_config(e->model) : &none;
	const uint8_t *digest = e->model ? mspec_model_digest(e->model) : NULL;
	char hex[2 * MODEL_DIGEST_BYTES + 1] = "";

	for (size_t i = 0; digest && i < MODEL_DIGEST_BYTES; i++)
		(void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	return sd_bus_message_append(m, "(sssssuu)", e->name, e->folder, model_state_name(e->state),
				     e->err, hex, c->layers, c->vocab);
}

static int on_list_models(sd_bus_message *call, void *user, sd_bus_error *error)
{
	const struct bus *bus = user;
	const struct models *models = control_models(bus->control);
	const struct model_entry *e;
	sd_bus_message *reply = NULL;
	int r = reply_new(call, &reply);

	(void)error;
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(sssssuu)");
	for (unsigned i = 0; r >= 0 && (e = models_at(models, i)) != NULL; i++)
		r = append_model(reply, e);
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return reply_send(reply, r);
}

/* Answered at once: ListModels says what came of it. */
static int on_add_model(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	const char *name, *folder;
	char err[MODELS_ERR_BYTES] = "";
	int r = may_answer(call);

	if (r >= 0)
		r = sd_bus_message_read(call, "ss", &name, &folder);
	if (r < 0)
		return r;
	r = models_add(control_models(bus->control), name, folder, err, sizeof(err));
	if (r < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS, "%s", err);
	return sd_bus_reply_method_return(call, "");
}

static int on_remove_model(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	const char *name;
	int r = may_answer(call);

	if (r >= 0)
		r = sd_bus_message_read(call, "s", &name);
	if (r < 0)
		return r;
	if (models_remove(control_models(bus->control), name) < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "%s: no model of this name is loaded", name);
	return sd_bus_reply_method_return(call, "");
}

static int get_version(sd_bus *sd, const char *path, const char *interface, const char *property,
		       sd_bus_message *reply, void *user, sd_bus_error *error)
{
	(void)sd, (void)path, (void)interface, (void)property, (void)user, (void)error;
	return sd_bus_message_append(reply, "s", SKVCD_VERSION);
}

static int get_health(sd_bus *sd, const char *path, const char *interface, const char *property,
		      sd_bus_message *reply, void *user, sd_bus_error *error)
{
	struct bus *bus = user;

	(void)sd, (void)path, (void)interface, (void)property, (void)error;
	return sd_bus_message_append(reply, "s", control_health(bus->control));
}

static int get_status(sd_bus *sd, const char *path, const char *interface, const char *property,
		      sd_bus_message *reply, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	char line[256];

	(void)sd, (void)path, (void)interface, (void)property, (void)error;
	control_status(bus->control, line, sizeof(line));
	return sd_bus_message_append(reply, "s", line);
}

/* Unprivileged: who may talk to us is decided by the socket's mode, or by the bus policy. */
static const sd_bus_vtable bus_vtable[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD_WITH_ARGS("Ping", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", version), on_ping,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("GetStats", SD_BUS_NO_ARGS, SD_BUS_RESULT("a{st}", stats),
				on_get_stats, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("DescribeStats", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(ssss)", name_kind_unit_text), on_describe_stats,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("GetMetrics", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", text),
				on_get_metrics, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListNamespaces", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(usssuuttttttuu)", namespaces), on_list_namespaces,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListProfiles", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(ussusuutttttsu)", profiles), on_list_profiles,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListModels", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(sssssuu)", models),
				on_list_models, SD_BUS_VTABLE_UNPRIVILEGED),
	/* These read files as the daemon does: root's and the daemon's own user's. */
	SD_BUS_METHOD_WITH_ARGS("AddModel", SD_BUS_ARGS("s", name, "s", folder), SD_BUS_NO_RESULT,
				on_add_model, 0),
	SD_BUS_METHOD_WITH_ARGS("RemoveModel", SD_BUS_ARGS("s", name), SD_BUS_NO_RESULT,
				on_remove_model, 0),
	SD_BUS_METHOD_WITH_ARGS("ListSessions", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(uuusssttttuut)", sessions), on_list_sessions,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListTenants", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(stt)", tenants),
				on_list_tenants, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_PROPERTY("Version", "s", get_version, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	SD_BUS_PROPERTY("Health", "s", get_health, 0, 0),
	SD_BUS_PROPERTY("StatusLine", "s", get_status, 0, 0),
	SD_BUS_VTABLE_END,
};

/* ---- peer to peer ---- */

static int on_disconnected(sd_bus_message *message, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	sd_bus *peer = sd_bus_message_get_bus(message);

	(void)error;
	for (unsigned i = 0; i < BUS_PEERS_MAX; i++)
		if (bus->peers[i] == peer)
			bus->peers[i] = sd_bus_close_unref(peer);
	return 0;
}

/*
 * Takes the socket over, also when it fails: from sd_bus_set_fd on it is the peer's, and sd-bus closes it as
 * soon as the handshake goes wrong, when its number may be somebody else's already.
 */
static int serve(struct bus *bus, sd_bus *peer, int sock)
{
	sd_id128_t id;
	int r;

	r = sd_id128_randomize(&id);
	if (r >= 0)
		r = sd_bus_set_fd(peer, sock, sock);
	if (r < 0) {
		(void)close(sock);
		return r;
	}
	r = sd_bus_set_server(peer, 1, id);
	if (r >= 0)
		r = sd_bus_set_sender(peer, BUS_NAME);
	if (r >= 0)
		r = sd_bus_start(peer);
	if (r >= 0)
		r = sd_bus_match_signal(peer, NULL, "org.freedesktop.DBus.Local",
					"/org/freedesktop/DBus/Local", "org.freedesktop.DBus.Local",
					"Disconnected", on_disconnected, bus);
	if (r >= 0)
		r = sd_bus_add_object_vtable(peer, NULL, BUS_PATH, BUS_NAME, bus_vtable, bus);
	if (r >= 0)
		r = sd_bus_attach_event(peer, bus->event, SD_EVENT_PRIORITY_NORMAL + 1);
	return r;
}

/* Root, the daemon's own user, or the daemon's group: the socket's mode says so, too, but may be changed. */
static int may_ask(int sock)
{
	struct listener_peer peer;

	struct session s = { 0 };

	if (listener_peer(sock, &peer) < 0)
		return 0;
	if (peer.pidfd >= 0)
		(void)close(peer.pidfd);
	if (!peer.uid || peer.uid == geteuid() || listener_peer_in_group(sock, getegid()))
		return 1;
	s.pid = peer.pid;
	s.uid = peer.uid;
	log_client(LOG_LEVEL_WARNING, &s, SKVC_ABI_REASON_NOT_PERMITTED,
		   "may not ask on the bus socket");
	return 0;
}

static void connected(struct bus *bus, int sock)
{
	sd_bus *peer = NULL;
	unsigned slot = 0;

	while (slot < BUS_PEERS_MAX && bus->peers[slot])
		slot++;
	if (slot == BUS_PEERS_MAX || !may_ask(sock) || sd_bus_new(&peer) < 0) {
		(void)close(sock);
		return;
	}
	if (serve(bus, peer, sock) < 0) {
		(void)sd_bus_close_unref(peer);
		return;
	}
	bus->peers[slot] = peer;
}

static int on_accept(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct bus *bus = user;
	int sock;

	(void)source;
	(void)fd;
	(void)events;
	if (!listener_accept(&bus->listener, &sock))
		connected(bus, sock);
	return 0;
}

/* ---- the system bus ---- */

static int on_named(sd_bus_message *message, void *user, sd_bus_error *error)
{
	const sd_bus_error *e = sd_bus_message_get_error(message);

	(void)user;
	(void)error;
	if (e)
		log_line(LOG_LEVEL_INFO, "system bus: no name " BUS_NAME ": %s", e->message);
	return 0;
}

static void join_system(struct bus *bus)
{
	int r = sd_bus_open_system(&bus->system);

	if (r >= 0)
		r = sd_bus_add_object_vtable(bus->system, NULL, BUS_PATH, BUS_NAME, bus_vtable,
					     bus);
	if (r >= 0)
		r = sd_bus_attach_event(bus->system, bus->event, SD_EVENT_PRIORITY_NORMAL + 1);
	if (r >= 0)
		r = sd_bus_request_name_async(bus->system, NULL, BUS_NAME, 0, on_named, NULL);
	if (r >= 0)
		return;
	log_line(LOG_LEVEL_DEBUG, "system bus: %s; only the socket serves", strerror(-r));
	bus->system = sd_bus_close_unref(bus->system);
}

int bus_new(struct sd_event *event, const struct control *control, struct bus **ret_bus, char *err,
	    size_t err_bytes)
{
	const struct config *config = control_config(control);
	struct bus *bus = calloc(1, sizeof(*bus));
	int r = 0;

	if (!bus) {
		(void)snprintf(err, err_bytes, "out of memory");
		return -ENOMEM;
	}
	bus->event = event;
	bus->control = control;
	bus->listener = (struct listener)LISTENER_NONE;
	if (config->bus_socket[0])
		r = listener_open(config->bus_socket, SOCK_STREAM, config->socket_mode, -1,
				  &bus->listener, err, err_bytes);
	if (!r && config->bus_socket[0]) {
		r = sd_event_add_io(event, &bus->accept_source, bus->listener.fd, EPOLLIN,
				    on_accept, bus);
		if (r < 0)
			(void)snprintf(err, err_bytes, "bus socket: %s", strerror(-r));
	}
	if (r < 0) {
		bus_free(bus);
		return r;
	}
	join_system(bus);
	*ret_bus = bus;
	return 0;
}

struct bus *bus_free(struct bus *bus)
{
	if (!bus)
		return NULL;
	bus->accept_source = sd_event_source_disable_unref(bus->accept_source);
	for (unsigned i = 0; i < BUS_PEERS_MAX; i++)
		bus->peers[i] = sd_bus_close_unref(bus->peers[i]);
	bus->system = sd_bus_flush_close_unref(bus->system);
	listener_close(&bus->listener);
	free(bus);
	return NULL;
}
