/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus.c - org.skvcd.Skvcd1 on /org/skvcd/Skvcd1: counters, namespaces, sessions, tenants, models, and an
 * operator's few wishes.  Control thread.
 *
 * Reading makes the lane do nothing: its counters are atomics that are read where they lie.  What changes the
 * daemon (vtable below, without UNPRIVILEGED) is root's and the daemon's own user's.  A peer that asks without
 * reading answers is dropped before its answers fill our memory.
 */
#include "daemon/bus_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/reload.h"
#include "daemon/util/clock.h"

#define BUS_SYSTEM "unix:path=/run/dbus/system_bus_socket"
#define BUS_INTERFACE 1u /* counts what was added to the interface; methods never change */
#define BUS_LOOK_US 1000000u
#define BUS_REJOIN_LOOKS 5u
#define BUS_UNREAD_MAX 32u /* answers that a peer may leave unread */

/* ---- methods ---- */

/* -ENOBUFS ends the dispatch with an error reply that is not sent either. */
int bus_may_answer(sd_bus_message *call)
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
int bus_reply_send(sd_bus_message *reply, int r)
{
	if (r >= 0)
		r = sd_bus_send(NULL, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

int bus_reply_new(sd_bus_message *call, sd_bus_message **ret_reply)
{
	int r = bus_may_answer(call);

	return r < 0 ? r : sd_bus_message_new_method_return(call, ret_reply);
}

static int on_ping(sd_bus_message *call, void *user, sd_bus_error *error)
{
	int r = bus_may_answer(call);

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
	r = bus_reply_new(call, &reply);
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
	return bus_reply_send(reply, r);
}

static int on_describe_stats(sd_bus_message *call, void *user, sd_bus_error *error)
{
	sd_bus_message *reply = NULL;
	int r;

	(void)user;
	(void)error;
	r = bus_reply_new(call, &reply);
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(ssss)");
	for (unsigned i = 0; r >= 0 && i < STAT_COUNT; i++)
		r = sd_bus_message_append(reply, "(ssss)", stats_info[i].name,
					  stats_info[i].kind == 'C' ? "counter" : "gauge",
					  stats_info[i].unit, stats_info[i].text);
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return bus_reply_send(reply, r);
}

static int on_describe_reasons(sd_bus_message *call, void *user, sd_bus_error *error)
{
	sd_bus_message *reply = NULL;
	int r = bus_reply_new(call, &reply);

	(void)user;
	(void)error;
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(ss)");
	for (unsigned i = 1; r >= 0 && i < SKVC_ABI_REASON_COUNT; i++)
		r = sd_bus_message_append(reply, "(ss)", stats_reason_word((uint16_t)i),
					  stats_reason_text((uint16_t)i));
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return bus_reply_send(reply, r);
}

static int on_get_metrics(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	char *text = NULL;
	size_t bytes;
	int r = bus_may_answer(call);

	(void)error;
	if (r >= 0)
		r = metrics_text(bus->control, &text, &bytes);
	if (r >= 0)
		r = sd_bus_reply_method_return(call, "s", text);
	free(text);
	return r;
}

/* Answered at once: ListModels says what came of it. */
static int on_add_model(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	const char *name, *folder;
	char err[MODELS_ERR_BYTES] = "";
	int r = bus_may_answer(call);

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
	int r = bus_may_answer(call);

	if (r >= 0)
		r = sd_bus_message_read(call, "s", &name);
	if (r < 0)
		return r;
	if (models_remove(control_models(bus->control), name) < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "%s: no model of this name is loaded", name);
	return sd_bus_reply_method_return(call, "");
}

/* ---- an operator's wishes ---- */

static void look(struct bus *bus);

static int on_set_quota(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	const char *tenant;
	uint64_t bytes;
	int r = bus_may_answer(call);

	if (r >= 0)
		r = sd_bus_message_read(call, "st", &tenant, &bytes);
	if (r < 0)
		return r;
	if (bytes > UINT64_C(1) << 50)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "quota: at most 1024 TiB; 0: no limit");
	r = control_set_quota(bus->control, tenant, bytes);
	if (r == -EAGAIN)
		return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
					 "the data path is behind: try again");
	if (r < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "%s: nobody has connected as this tenant", tenant);
	return sd_bus_reply_method_return(call, "");
}

/* The call waits for its answer here; NULL: the daemon ends first, and so does the connection. */
static void evicted(void *user, const struct control_evicted *result)
{
	sd_bus_message *call = user;

	if (result)
		(void)sd_bus_reply_method_return(call, "ttt", result->blocks, result->bytes,
						 result->kept);
	sd_bus_message_unref(call);
}

static int on_evict(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	const char *tenant;
	uint32_t ns;
	int r = bus_may_answer(call);

	if (r >= 0)
		r = sd_bus_message_read(call, "su", &tenant, &ns);
	if (r < 0)
		return r;
	r = control_evict(bus->control, tenant, ns, evicted, call);
	if (r == -ENOENT)
		return sd_bus_error_setf(error, SD_BUS_ERROR_INVALID_ARGS,
					 "there is no such tenant, or no such namespace");
	if (r < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_LIMITS_EXCEEDED,
					 "blocks are being evicted already: try again");
	sd_bus_message_ref(call);
	return 1;
}

static int on_drain(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	int on, r = bus_may_answer(call);

	(void)error;
	if (r >= 0)
		r = sd_bus_message_read(call, "b", &on);
	if (r < 0)
		return r;
	control_drain(bus->control, on != 0);
	r = sd_bus_reply_method_return(call, "");
	look(bus);
	return r;
}

static int on_reload(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	char text[RELOAD_TEXT_BYTES] = "";
	int r = bus_may_answer(call);

	if (r < 0)
		return r;
	if (control_reload(bus->control, text, sizeof(text)) < 0)
		return sd_bus_error_setf(error, SD_BUS_ERROR_FAILED, "%s", text);
	return sd_bus_reply_method_return(call, "s", text);
}

/* ---- properties ---- */

static int get_interface(sd_bus *sd, const char *path, const char *interface, const char *property,
			 sd_bus_message *reply, void *user, sd_bus_error *error)
{
	(void)sd, (void)path, (void)interface, (void)property, (void)user, (void)error;
	return sd_bus_message_append(reply, "u", BUS_INTERFACE);
}

static int get_draining(sd_bus *sd, const char *path, const char *interface, const char *property,
			sd_bus_message *reply, void *user, sd_bus_error *error)
{
	struct bus *bus = user;

	(void)sd, (void)path, (void)interface, (void)property, (void)error;
	return sd_bus_message_append(reply, "b", control_draining(bus->control));
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

/* Unprivileged: who may talk to us is decided by the socket's mode, or by the bus policy.
 * org.skvcd.Skvcd1(5) has all of these. */
const sd_bus_vtable bus_vtable[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD_WITH_ARGS("Ping", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", version), on_ping,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("GetStats", SD_BUS_NO_ARGS, SD_BUS_RESULT("a{st}", stats),
				on_get_stats, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("DescribeStats", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(ssss)", name_kind_unit_text), on_describe_stats,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("DescribeReasons", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(ss)", word_text), on_describe_reasons,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("GetMetrics", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", text),
				on_get_metrics, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("GetPlan", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(stt)", rates, "a(usststttttttbb)", ways),
				bus_on_get_plan, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("GetPlacement", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(ubbttt)", places),
				bus_on_get_placement, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListNamespaces", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(usssuuttttttuu)", namespaces),
				bus_on_list_namespaces, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListProfiles", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(ussusuutttttsu)", profiles), bus_on_list_profiles,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListModels", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(sssssuu)", models),
				bus_on_list_models, SD_BUS_VTABLE_UNPRIVILEGED),
	/* These read files as the daemon does: root's and the daemon's own user's. */
	SD_BUS_METHOD_WITH_ARGS("AddModel", SD_BUS_ARGS("s", name, "s", folder), SD_BUS_NO_RESULT,
				on_add_model, 0),
	SD_BUS_METHOD_WITH_ARGS("RemoveModel", SD_BUS_ARGS("s", name), SD_BUS_NO_RESULT,
				on_remove_model, 0),
	/* These change what everybody has. */
	SD_BUS_METHOD_WITH_ARGS("SetQuota", SD_BUS_ARGS("s", tenant, "t", bytes), SD_BUS_NO_RESULT,
				on_set_quota, 0),
	SD_BUS_METHOD_WITH_ARGS("Evict", SD_BUS_ARGS("s", tenant, "u", ns),
				SD_BUS_RESULT("t", blocks, "t", bytes, "t", kept_blocks), on_evict,
				0),
	SD_BUS_METHOD_WITH_ARGS("FindBlock", SD_BUS_ARGS("s", key, "u", group),
				SD_BUS_RESULT("a(ussbuuuttttt)", blocks), bus_on_find_block, 0),
	SD_BUS_METHOD_WITH_ARGS("Drain", SD_BUS_ARGS("b", on), SD_BUS_NO_RESULT, on_drain, 0),
	SD_BUS_METHOD_WITH_ARGS("Reload", SD_BUS_NO_ARGS, SD_BUS_RESULT("s", text), on_reload, 0),
	SD_BUS_METHOD_WITH_ARGS("ListSessions", SD_BUS_NO_ARGS,
				SD_BUS_RESULT("a(uuusssttttuut)", sessions), bus_on_list_sessions,
				SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD_WITH_ARGS("ListTenants", SD_BUS_NO_ARGS, SD_BUS_RESULT("a(stt)", tenants),
				bus_on_list_tenants, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_PROPERTY("Version", "s", get_version, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	SD_BUS_PROPERTY("InterfaceVersion", "u", get_interface, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	SD_BUS_PROPERTY("Health", "s", get_health, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
	SD_BUS_PROPERTY("Draining", "b", get_draining, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
	SD_BUS_PROPERTY("StatusLine", "s", get_status, 0, 0),
	SD_BUS_VTABLE_END,
};

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

/*
 * At the loop's end sd-bus would wait until what it has to say is sent, and before that for the handshake's end: for
 * who does not answer until we are killed, with nothing saved.
 */
int bus_attach(struct bus *bus, sd_bus *sd)
{
	int r = sd_bus_set_close_on_exit(sd, 0);

	return r < 0 ? r : sd_bus_attach_event(sd, bus->event, SD_EVENT_PRIORITY_NORMAL + 1);
}

/* As sd_bus_open_system() does it, but for descriptors: whoever may send us a message could make us close his. */
static int open_system(sd_bus **ret)
{
	const char *address = getenv("DBUS_SYSTEM_BUS_ADDRESS");
	int r = sd_bus_new(ret);

	if (r >= 0)
		r = sd_bus_set_address(*ret, address && address[0] ? address : BUS_SYSTEM);
	if (r >= 0)
		r = sd_bus_set_bus_client(*ret, 1);
	if (r >= 0)
		r = sd_bus_negotiate_fds(*ret, 0);
	return r < 0 ? r : sd_bus_start(*ret);
}

static void join_system(struct bus *bus)
{
	int r = open_system(&bus->system);

	if (r >= 0)
		r = sd_bus_add_object_vtable(bus->system, NULL, BUS_PATH, BUS_NAME, bus_vtable,
					     bus);
	if (r >= 0)
		r = bus_attach(bus, bus->system);
	if (r >= 0)
		r = sd_bus_request_name_async(bus->system, NULL, BUS_NAME, 0, on_named, NULL);
	if (r >= 0)
		return;
	log_line(LOG_LEVEL_DEBUG, "system bus: %s; only the socket serves", strerror(-r));
	bus->system = sd_bus_close_unref(bus->system);
}

/* dbus may begin after us, or again, and it may have been given up: bus_may_answer(). */
static void keep_system(struct bus *bus)
{
	if (bus->system && sd_bus_is_open(bus->system) > 0)
		return;
	if (bus->system)
		log_line(LOG_LEVEL_INFO, "system bus: the connection is gone");
	bus->system = sd_bus_close_unref(bus->system);
	if (bus->looks_alone++ % BUS_REJOIN_LOOKS == 0)
		join_system(bus);
}

/* ---- changes ---- */

static void tell(struct bus *bus, const char *property)
{
	if (bus->system)
		(void)sd_bus_emit_properties_changed(bus->system, BUS_PATH, BUS_NAME, property,
						     NULL);
	for (unsigned i = 0; i < BUS_PEERS_MAX; i++) {
		uint64_t unread = 0;

		/* One that does not read is told no more. */
		if (bus->peers[i].bus &&
		    sd_bus_get_n_queued_write(bus->peers[i].bus, &unread) >= 0 &&
		    unread <= BUS_UNREAD_MAX)
			(void)sd_bus_emit_properties_changed(bus->peers[i].bus, BUS_PATH, BUS_NAME,
							     property, NULL);
	}
}

static void look(struct bus *bus)
{
	const char *health = control_health(bus->control);
	bool draining = control_draining(bus->control);

	if (bus->draining != draining) {
		bus->draining = draining;
		tell(bus, "Draining");
	}
	if (strcmp(bus->health, health) != 0) {
		bus->health = health;
		tell(bus, "Health");
	}
}

static int on_look(sd_event_source *source, uint64_t usec, void *user)
{
	struct bus *bus = user;

	(void)usec;
	look(bus);
	keep_system(bus);
	bus_peers_look(bus);
	(void)sd_event_source_set_time_relative(source, BUS_LOOK_US);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

int bus_new(struct sd_event *event, struct control *control, struct bus **ret_bus, char *err,
	    size_t err_bytes)
{
	struct bus *bus = calloc(1, sizeof(*bus));
	int r;

	if (!bus) {
		(void)snprintf(err, err_bytes, "out of memory");
		return -ENOMEM;
	}
	bus->event = event;
	bus->control = control;
	r = bus_peers_start(bus, err, err_bytes);
	if (r < 0) {
		bus_free(bus);
		return r;
	}
	bus->health = control_health(control);
	r = sd_event_add_time_relative(event, &bus->look_source, CLOCK_MONOTONIC, BUS_LOOK_US,
				       BUS_LOOK_US / 10, on_look, bus);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "bus: %s", strerror(-r));
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
	bus->look_source = sd_event_source_disable_unref(bus->look_source);
	bus_peers_stop(bus);
	bus->system = sd_bus_close_unref(bus->system);
	free(bus);
	return NULL;
}
