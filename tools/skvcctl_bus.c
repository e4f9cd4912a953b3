/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_bus.c - fetch a picture of the daemon over D-Bus, and change it.  Answers are bounded: the socket may be
 * anybody's.
 */
#include "tools/skvcctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/skvcctl_link.h"

#define CHANGE_TIMEOUT_US 60000000u /* a large index takes a while to evict */

/* ---- arrays ---- */

/* Room for one more row, or NULL. */
static void *grow(void **rows, size_t count, size_t row_bytes, size_t max)
{
	void *more;

	if (count >= max)
		return NULL;
	if (!(count & (count - 1))) { /* 0, 1, 2, 4 ... are full: double */
		more = realloc(*rows, (count ? 2 * count : 1) * row_bytes);
		if (!more)
			return NULL;
		*rows = more;
	}
	memset((char *)*rows + count * row_bytes, 0, row_bytes);
	return (char *)*rows + count * row_bytes;
}

/* What terminals act on becomes '?': C0, DEL, and C1 as UTF-8 has it; but for this character. */
static void clean(char *text, char keep)
{
	for (; *text; text++) {
		unsigned char next = (unsigned char)text[1];

		if (*text == '\302' && next >= 0x80 && next < 0xa0)
			text[0] = text[1] = '?';
		else if (((unsigned char)*text < ' ' || *text == 0x7f) && *text != keep)
			*text = '?';
	}
}

static void copy(char *to, size_t to_bytes, const char *from)
{
	(void)snprintf(to, to_bytes, "%s", from);
	clean(to, '\0');
}

#define COPY(to, from) copy((to), sizeof(to), (from))

static int add_stat(struct skvcctl_picture *p, const char *name, uint64_t value)
{
	struct skvcctl_stat *s;

	s = grow((void **)&p->stats, p->stats_count, sizeof(*s), SKVCCTL_STATS_MAX);
	if (!s)
		return -ENOMEM;
	s->kind = SKVCCTL_GAUGE; /* until it is described */
	if (!strncmp(name, "reason.", 7)) {
		s->kind = SKVCCTL_REASON;
		name += 7;
	} else if (!strncmp(name, "latency.", 8)) {
		s->kind = SKVCCTL_LATENCY;
		name += 8;
	}
	COPY(s->name, name);
	s->value = value;
	p->stats_count++;
	return 0;
}

static int read_stats(sd_bus_message *m, struct skvcctl_picture *p)
{
	const char *name;
	uint64_t value;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "{st}");
	while (r >= 0 && (r = sd_bus_message_read(m, "{st}", &name, &value)) > 0)
		r = add_stat(p, name, value);
	return r;
}

static int read_kinds(sd_bus_message *m, struct skvcctl_picture *p)
{
	const char *name, *kind, *unit, *text;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(ssss)");
	while (r >= 0 && (r = sd_bus_message_read(m, "(ssss)", &name, &kind, &unit, &text)) > 0)
		for (size_t i = 0; !strcmp(kind, "counter") && i < p->stats_count; i++)
			if (p->stats[i].kind == SKVCCTL_GAUGE && !strcmp(p->stats[i].name, name))
				p->stats[i].kind = SKVCCTL_COUNTER;
	return r;
}

static int add_text(struct skvcctl_picture *p, const char *name, const char *kind, const char *unit,
		    const char *text)
{
	struct skvcctl_text *t = grow((void **)&p->texts, p->texts_count, sizeof(*t),
				      SKVCCTL_STATS_MAX);

	if (!t)
		return -ENOMEM;
	COPY(t->name, name);
	COPY(t->kind, kind);
	COPY(t->unit, unit);
	COPY(t->text, text);
	p->texts_count++;
	return 0;
}

static int read_stat_texts(sd_bus_message *m, struct skvcctl_picture *p)
{
	const char *name, *kind, *unit, *text;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(ssss)");
	while (r >= 0 && (r = sd_bus_message_read(m, "(ssss)", &name, &kind, &unit, &text)) > 0)
		r = add_text(p, name, kind, unit, text);
	return r;
}

static int read_reason_texts(sd_bus_message *m, struct skvcctl_picture *p)
{
	const char *word, *text;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(ss)");
	while (r >= 0 && (r = sd_bus_message_read(m, "(ss)", &word, &text)) > 0)
		r = add_text(p, word, "reason", "refusals", text);
	return r;
}

static int read_namespaces(sd_bus_message *m, struct skvcctl_picture *p)
{
	struct skvcctl_namespace n;
	const char *tenant, *model, *digest;
	struct skvcctl_namespace *row;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(usssuuttttttuu)");
	while (r >= 0) {
		memset(&n, 0, sizeof(n));
		r = sd_bus_message_read(m, "(usssuuttttttuu)", &n.id, &tenant, &model, &digest,
					&n.block_tokens, &n.segments_count, &n.block_raw_bytes,
					&n.blocks, &n.raw_bytes, &n.coded_bytes, &n.hits, &n.misses,
					&n.profile_version, &n.profile_bits_milli);
		if (r <= 0)
			break;
		COPY(n.tenant, tenant);
		COPY(n.model, model);
		COPY(n.digest, digest);
		row = grow((void **)&p->namespaces, p->namespaces_count, sizeof(n),
			   SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		*row = n;
		p->namespaces_count++;
	}
	return r;
}

static int read_profiles(sd_bus_message *m, struct skvcctl_picture *p)
{
	struct skvcctl_profile f;
	const char *tenant, *model, *digest, *state;
	struct skvcctl_profile *row;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(ussusuutttttsu)");
	while (r >= 0) {
		memset(&f, 0, sizeof(f));
		r = sd_bus_message_read(m, "(ussusuutttttsu)", &f.ns, &tenant, &model, &f.version,
					&digest, &f.lookback, &f.rotary_pairs, &f.bytes, &f.tokens,
					&f.expected_milli, &f.measured_milli, &f.blocks, &state,
					&f.model_part);
		if (r <= 0)
			break;
		COPY(f.tenant, tenant);
		COPY(f.model, model);
		COPY(f.digest, digest);
		COPY(f.state, state);
		row = grow((void **)&p->profiles, p->profiles_count, sizeof(f), SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		*row = f;
		p->profiles_count++;
	}
	return r;
}

static int read_rates(sd_bus_message *m, struct skvcctl_picture *p)
{
	struct skvcctl_rate rate, *row;
	const char *name;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(stt)");
	while (r >= 0 &&
	       (r = sd_bus_message_read(m, "(stt)", &name, &rate.bytes_per_s, &rate.samples)) > 0) {
		row = grow((void **)&p->rates, p->rates_count, sizeof(*row), SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		COPY(rate.name, name);
		*row = rate;
		p->rates_count++;
	}
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

static int read_ways(sd_bus_message *m, struct skvcctl_picture *p)
{
	const char *tenant, *model, *speculator;
	struct skvcctl_way w, *row;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(usststttttttbb)");
	while (r >= 0) {
		r = sd_bus_message_read(m, "(usststttttttbb)", &w.ns, &tenant, &model,
					&w.prefill_tokens_per_s, &speculator, &w.ratio_milli,
					&w.host_milli, &w.nvme_milli, &w.host_ns, &w.nvme_ns,
					&w.gone_ns, &w.expected_ns, &w.assumed, &w.chosen);
		if (r <= 0)
			break;
		if (!w.ratio_milli)
			return -EBADMSG;
		COPY(w.tenant, tenant);
		COPY(w.model, model);
		COPY(w.speculator, speculator);
		row = grow((void **)&p->ways, p->ways_count, sizeof(*row), SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		*row = w;
		p->ways_count++;
	}
	return r;
}

static int read_places(sd_bus_message *m, struct skvcctl_picture *p)
{
	struct skvcctl_place place, *row;
	int r = sd_bus_message_enter_container(m, 'a', "(ubbttt)");

	while (r >= 0) {
		r = sd_bus_message_read(m, "(ubbttt)", &place.ns, &place.dropped, &place.promoted,
					&place.nvme_ns, &place.host_ns, &place.prefill_ns);
		if (r <= 0)
			break;
		row = grow((void **)&p->places, p->places_count, sizeof(*row), SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		*row = place;
		p->places_count++;
	}
	return r;
}

static int read_plan(sd_bus_message *m, struct skvcctl_picture *p)
{
	int r = read_rates(m, p);

	return r < 0 ? r : read_ways(m, p);
}

static int read_sessions(sd_bus_message *m, struct skvcctl_picture *p)
{
	struct skvcctl_session s;
	const char *tenant, *name, *role;
	struct skvcctl_session *row;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(uuusssttttuut)");
	while (r >= 0) {
		memset(&s, 0, sizeof(s));
		r = sd_bus_message_read(m, "(uuusssttttuut)", &s.id, &s.pid, &s.uid, &tenant, &name,
					&role, &s.ops, &s.store_blocks, &s.load_blocks,
					&s.lookup_blocks, &s.jobs, &s.leases, &s.age_ns);
		if (r <= 0)
			break;
		COPY(s.tenant, tenant);
		COPY(s.name, name);
		COPY(s.role, role);
		row = grow((void **)&p->sessions, p->sessions_count, sizeof(s), SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		*row = s;
		p->sessions_count++;
	}
	return r;
}

static int read_tenants(sd_bus_message *m, struct skvcctl_picture *p)
{
	struct skvcctl_tenant t;
	struct skvcctl_tenant *row;
	const char *name;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(stt)");
	while (r >= 0) {
		memset(&t, 0, sizeof(t));
		r = sd_bus_message_read(m, "(stt)", &name, &t.charged_bytes, &t.quota_bytes);
		if (r <= 0)
			break;
		COPY(t.name, name);
		row = grow((void **)&p->tenants, p->tenants_count, sizeof(t), SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		*row = t;
		p->tenants_count++;
	}
	return r;
}

static int read_models(sd_bus_message *m, struct skvcctl_picture *p)
{
	const char *name, *folder, *state, *err, *digest;
	struct skvcctl_model o;
	struct skvcctl_model *row;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(sssssuu)");
	while (r >= 0) {
		memset(&o, 0, sizeof(o));
		r = sd_bus_message_read(m, "(sssssuu)", &name, &folder, &state, &err, &digest,
					&o.layers, &o.vocab);
		if (r <= 0)
			break;
		COPY(o.name, name);
		COPY(o.folder, folder);
		COPY(o.state, state);
		COPY(o.err, err);
		COPY(o.digest, digest);
		row = grow((void **)&p->models, p->models_count, sizeof(o), SKVCCTL_ROWS_MAX);
		if (!row)
			return -ENOMEM;
		*row = o;
		p->models_count++;
	}
	return r;
}

/* ---- the picture ---- */

static uint64_t now_ns(void)
{
	struct timespec ts = { 0 };

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static enum skvcctl_exit get_property(struct skvcctl_link *l, const char *name, char *ret,
				      size_t ret_bytes)
{
	sd_bus_error error = SD_BUS_ERROR_NULL;
	char *value = NULL;
	int r;

	r = sd_bus_get_property_string(l->bus, l->destination, BUS_PATH, BUS_NAME, name, &error,
				       &value);
	sd_bus_error_free(&error);
	if (r < 0)
		return skvcctl_link_failed(l, r, name);
	copy(ret, ret_bytes, value);
	free(value);
	return SKVCCTL_OK;
}

static enum skvcctl_exit get_version(struct skvcctl_link *l, struct skvcctl_picture *p)
{
	sd_bus_message *reply = NULL;
	enum skvcctl_exit e;
	const char *version;
	uint64_t start_ns;
	int r;

	e = skvcctl_link_call(l, "Ping",
			      &reply); /* connecting is over after this one: time the second */
	sd_bus_message_unref(reply);
	reply = NULL;
	if (e != SKVCCTL_OK)
		return e;
	start_ns = now_ns();
	e = skvcctl_link_call(l, "Ping", &reply);
	p->ping_ns = now_ns() - start_ns;
	if (e != SKVCCTL_OK)
		return e;
	r = sd_bus_message_read(reply, "s", &version);
	if (r >= 0)
		COPY(p->version, version);
	sd_bus_message_unref(reply);
	if (r < 0)
		return skvcctl_link_failed(l, r, "Ping");
	e = get_property(l, "Health", p->health, sizeof(p->health));
	return e != SKVCCTL_OK ? e : get_property(l, "StatusLine", p->status, sizeof(p->status));
}

static const struct part {
	unsigned what;
	const char *method;
	int (*read)(sd_bus_message *m, struct skvcctl_picture *p);
} parts[] = {
	{ SKVCCTL_GET_STATS, "GetStats", read_stats },
	{ SKVCCTL_GET_STATS, "DescribeStats", read_kinds },
	{ SKVCCTL_GET_NAMESPACES, "ListNamespaces", read_namespaces },
	{ SKVCCTL_GET_PROFILES, "ListProfiles", read_profiles },
	{ SKVCCTL_GET_SESSIONS, "ListSessions", read_sessions },
	{ SKVCCTL_GET_TENANTS, "ListTenants", read_tenants },
	{ SKVCCTL_GET_MODELS, "ListModels", read_models },
	{ SKVCCTL_GET_PLAN, "GetPlan", read_plan },
	{ SKVCCTL_GET_PLAN, "GetPlacement", read_places },
	{ SKVCCTL_GET_TEXTS, "DescribeStats", read_stat_texts },
	{ SKVCCTL_GET_TEXTS, "DescribeReasons", read_reason_texts },
};

static enum skvcctl_exit get_part(struct skvcctl_link *l, const struct part *part,
				  struct skvcctl_picture *p)
{
	sd_bus_message *reply = NULL;
	enum skvcctl_exit e;
	int r;

	e = skvcctl_link_call(l, part->method, &reply);
	if (e != SKVCCTL_OK)
		return e;
	r = part->read(reply, p);
	sd_bus_message_unref(reply);
	return r < 0 ? skvcctl_link_failed(l, r, part->method) : SKVCCTL_OK;
}

enum skvcctl_exit skvcctl_fetch(const struct skvcctl_source *source, unsigned what,
				struct skvcctl_picture *ret, char *err, size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };
	struct skvcctl_picture p = { 0 };
	enum skvcctl_exit e;

	e = skvcctl_link_open(&l);
	if (e == SKVCCTL_OK && what & SKVCCTL_GET_VERSION)
		e = get_version(&l, &p);
	for (size_t i = 0; e == SKVCCTL_OK && i < sizeof(parts) / sizeof(parts[0]); i++)
		if (what & parts[i].what)
			e = get_part(&l, &parts[i], &p);
	(void)sd_bus_close_unref(l.bus);
	if (e != SKVCCTL_OK) {
		skvcctl_picture_deinit(&p);
		return e;
	}
	*ret = p;
	return SKVCCTL_OK;
}

/* ---- metrics ---- */

enum skvcctl_exit skvcctl_metrics(const struct skvcctl_source *source, char **ret_text, char *err,
				  size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };
	enum skvcctl_exit e = skvcctl_link_open(&l);
	sd_bus_message *reply = NULL;
	const char *text;
	int r;

	if (e == SKVCCTL_OK)
		e = skvcctl_link_call(&l, "GetMetrics", &reply);
	if (e == SKVCCTL_OK) {
		r = sd_bus_message_read(reply, "s", &text);
		*ret_text = r < 0 ? NULL : strdup(text);
		if (!*ret_text)
			e = skvcctl_link_failed(&l, r < 0 ? r : -ENOMEM, "GetMetrics");
	}
	sd_bus_message_unref(reply);
	(void)sd_bus_close_unref(l.bus);
	return e;
}

/* ---- changes ---- */

/* What the daemon says itself is the best that can be said. */
static enum skvcctl_exit refused(struct skvcctl_link *l, const sd_bus_error *error, int r,
				 const char *method)
{
	static const char *const own[] = { SD_BUS_ERROR_INVALID_ARGS, SD_BUS_ERROR_FAILED,
					   SD_BUS_ERROR_LIMITS_EXCEEDED };

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		if (sd_bus_error_has_name(error, own[i])) {
			copy(l->err, l->err_bytes, error->message ? error->message : "refused");
			return SKVCCTL_FAILURE;
		}
	if (sd_bus_error_has_name(error, SD_BUS_ERROR_UNKNOWN_METHOD))
		(void)snprintf(l->err, l->err_bytes, "this skvcd is older and cannot do that");
	else if (sd_bus_error_has_name(error, SD_BUS_ERROR_ACCESS_DENIED))
		(void)snprintf(l->err, l->err_bytes,
			       "not permitted: run as root or as the daemon's own user");
	else
		return skvcctl_link_failed(l, r, method);
	return SKVCCTL_FAILURE;
}

/* One call that changes the daemon.  ret_reply: NULL, or the answer to be unreferenced. */
static enum skvcctl_exit change(struct skvcctl_link *l, sd_bus_message **ret_reply,
				const char *method, const char *types, ...)
{
	sd_bus_error error = SD_BUS_ERROR_NULL;
	enum skvcctl_exit e = skvcctl_link_open(l);
	va_list args;
	int r;

	if (e == SKVCCTL_OK) {
		(void)sd_bus_set_method_call_timeout(l->bus, CHANGE_TIMEOUT_US);
		va_start(args, types);
		r = sd_bus_call_methodv(l->bus, l->destination, BUS_PATH, BUS_NAME, method, &error,
					ret_reply, types, args);
		va_end(args);
		if (r < 0)
			e = refused(l, &error, r, method);
	}
	sd_bus_error_free(&error);
	(void)sd_bus_flush_close_unref(l->bus);
	return e;
}

enum skvcctl_exit skvcctl_set_quota(const struct skvcctl_source *source, const char *tenant,
				    uint64_t bytes, char *err, size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };

	return change(&l, NULL, "SetQuota", "st", tenant, bytes);
}

enum skvcctl_exit skvcctl_evict(const struct skvcctl_source *source, const char *tenant,
				uint32_t ns, struct skvcctl_evicted *ret, char *err,
				size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };
	sd_bus_message *reply = NULL;
	enum skvcctl_exit e = change(&l, &reply, "Evict", "su", tenant, ns);
	int r;

	if (e == SKVCCTL_OK) {
		r = sd_bus_message_read(reply, "ttt", &ret->blocks, &ret->bytes, &ret->kept);
		if (r < 0)
			e = skvcctl_link_failed(&l, r, "Evict");
	}
	sd_bus_message_unref(reply);
	return e;
}

static int read_found(sd_bus_message *m, struct skvcctl_found *ret, size_t *ret_count)
{
	const char *where, *speculator;
	int r;

	r = sd_bus_message_enter_container(m, 'a', "(ussbuuuttttt)");
	while (r >= 0) {
		struct skvcctl_found f;

		r = sd_bus_message_read(m, "(ussbuuuttttt)", &f.ns, &where, &speculator, &f.on_nvme,
					&f.position, &f.holders, &f.children, &f.record_bytes,
					&f.pinned_ns, &f.restore_ns, &f.host_ns, &f.prefill_ns);
		if (r <= 0)
			break;
		if (*ret_count == SKVCCTL_FOUND_MAX)
			return -EBADMSG;
		COPY(f.where, where);
		COPY(f.speculator, speculator);
		ret[(*ret_count)++] = f;
	}
	return r;
}

enum skvcctl_exit skvcctl_find(const struct skvcctl_source *source, const char *key, uint32_t group,
			       struct skvcctl_found ret[SKVCCTL_FOUND_MAX], size_t *ret_count,
			       char *err, size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };
	sd_bus_message *reply = NULL;
	enum skvcctl_exit e = change(&l, &reply, "FindBlock", "su", key, group);
	int r;

	*ret_count = 0;
	if (e == SKVCCTL_OK) {
		r = read_found(reply, ret, ret_count);
		if (r < 0)
			e = skvcctl_link_failed(&l, r, "FindBlock");
	}
	sd_bus_message_unref(reply);
	return e;
}

enum skvcctl_exit skvcctl_drain(const struct skvcctl_source *source, bool on, char *err,
				size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };

	return change(&l, NULL, "Drain", "b", (int)on);
}

enum skvcctl_exit skvcctl_reload(const struct skvcctl_source *source, char *ret_text,
				 size_t text_bytes, char *err, size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };
	sd_bus_message *reply = NULL;
	enum skvcctl_exit e = change(&l, &reply, "Reload", NULL);
	const char *text;
	int r;

	if (e == SKVCCTL_OK) {
		r = sd_bus_message_read(reply, "s", &text);
		if (r < 0) {
			e = skvcctl_link_failed(&l, r, "Reload");
		} else {
			(void)snprintf(ret_text, text_bytes, "%s", text);
			clean(ret_text, '\n');
		}
	}
	sd_bus_message_unref(reply);
	return e;
}

enum skvcctl_exit skvcctl_model_remove(const struct skvcctl_source *source, const char *name,
				       char *err, size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };

	return change(&l, NULL, "RemoveModel", "s", name);
}

enum skvcctl_exit skvcctl_model_add(const struct skvcctl_source *source, const char *name,
				    const char *folder, char *err, size_t err_bytes)
{
	struct skvcctl_link l = { .source = source, .err = err, .err_bytes = err_bytes };
	char *path = realpath(folder, NULL);
	enum skvcctl_exit e;

	if (!path) {
		(void)snprintf(err, err_bytes, "%s: %s", folder, strerror(errno));
		return SKVCCTL_FAILURE;
	}
	e = change(&l, NULL, "AddModel", "ss", name, path);
	free(path);
	return e;
}

void skvcctl_picture_deinit(struct skvcctl_picture *p)
{
	free(p->stats);
	free(p->namespaces);
	free(p->profiles);
	free(p->sessions);
	free(p->tenants);
	free(p->models);
	free(p->rates);
	free(p->ways);
	free(p->places);
	free(p->texts);
	memset(p, 0, sizeof(*p));
}

uint64_t skvcctl_value(const struct skvcctl_picture *p, enum skvcctl_kind kind, const char *name)
{
	for (size_t i = 0; i < p->stats_count; i++)
		if (p->stats[i].kind == kind && !strcmp(p->stats[i].name, name))
			return p->stats[i].value;
	return 0;
}
