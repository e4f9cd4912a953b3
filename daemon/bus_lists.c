/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus_lists.c - the rows of the bus: namespaces, profiles, sessions, tenants, models.  Control thread; reads
 * what the lane shows of each, and never makes it wait.
 */
#include "daemon/bus_internal.h"

#include <inttypes.h>
#include <stdio.h>

#include "daemon/util/clock.h"

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

int bus_append_namespaces(sd_bus_message *m, const struct bus *bus, const char *contents,
			  int (*append)(sd_bus_message *m, const struct namespace *ns))
{
	const struct registry *registry = control_registry(bus->control);
	int r = sd_bus_message_open_container(m, 'a', contents);

	for (uint32_t i = 0; r >= 0 && i < registry->namespaces_count; i++)
		r = append(m, registry->namespaces[i]);
	return r >= 0 ? sd_bus_message_close_container(m) : r;
}

int bus_reply_namespaces(sd_bus_message *call, const struct bus *bus, const char *contents,
			 int (*append)(sd_bus_message *m, const struct namespace *ns))
{
	sd_bus_message *reply = NULL;
	int r = bus_reply_new(call, &reply);

	if (r >= 0)
		r = bus_append_namespaces(reply, bus, contents, append);
	return bus_reply_send(reply, r);
}

int bus_on_list_namespaces(sd_bus_message *call, void *user, sd_bus_error *error)
{
	(void)error;
	return bus_reply_namespaces(call, user, "(usssuuttttttuu)", append_namespace);
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

int bus_on_list_profiles(sd_bus_message *call, void *user, sd_bus_error *error)
{
	(void)error;
	return bus_reply_namespaces(call, user, "(ussusuutttttsu)", append_profiles);
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

int bus_on_list_sessions(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	sd_bus_message *reply = NULL;
	int r;

	(void)error;
	r = bus_reply_new(call, &reply);
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(uuusssttttuut)");
	for (uint32_t i = 0; r >= 0 && i < control_config(bus->control)->sessions_max; i++) {
		const struct session *s = control_session(bus->control, i);

		if (s)
			r = append_session(reply, s);
	}
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return bus_reply_send(reply, r);
}

int bus_on_list_tenants(sd_bus_message *call, void *user, sd_bus_error *error)
{
	struct bus *bus = user;
	const struct registry *registry = control_registry(bus->control);
	sd_bus_message *reply = NULL;
	int r;

	(void)error;
	r = bus_reply_new(call, &reply);
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(stt)");
	for (uint32_t i = 0; r >= 0 && i < registry->tenants_count; i++) {
		const struct tenant *t = registry->tenants[i];

		r = sd_bus_message_append(
			reply, "(stt)", t->name,
			atomic_load_explicit(&t->charged_bytes, memory_order_relaxed),
			atomic_load_explicit(&t->quota_bytes, memory_order_relaxed));
	}
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return bus_reply_send(reply, r);
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

int bus_on_list_models(sd_bus_message *call, void *user, sd_bus_error *error)
{
	const struct bus *bus = user;
	const struct models *models = control_models(bus->control);
	const struct model_entry *e;
	sd_bus_message *reply = NULL;
	int r = bus_reply_new(call, &reply);

	(void)error;
	if (r >= 0)
		r = sd_bus_message_open_container(reply, 'a', "(sssssuu)");
	for (unsigned i = 0; r >= 0 && (e = models_at(models, i)) != NULL; i++)
		r = append_model(reply, e);
	if (r >= 0)
		r = sd_bus_message_close_container(reply);
	return bus_reply_send(reply, r);
}
