/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_json.c - the picture for programs.  Keys are the daemon's own names and do not change; numbers
 * are written as they are, not through a double.
 */
#include "tools/output.h"
#include "tools/skvcctl.h"
#include "tools/skvcctl_plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

static void add_u64(cJSON *object, const char *key, uint64_t value)
{
	char text[24];

	(void)snprintf(text, sizeof(text), "%" PRIu64, value);
	(void)cJSON_AddRawToObject(object, key, text);
}

static void add_kind(cJSON *root, const char *key, const struct skvcctl_picture *p,
		     enum skvcctl_kind kind)
{
	cJSON *object = cJSON_AddObjectToObject(root, key);

	for (size_t i = 0; i < p->stats_count; i++)
		if (p->stats[i].kind == kind)
			add_u64(object, p->stats[i].name, p->stats[i].value);
}

/* "load.p99_ns" becomes "load": { "p99_ns": ... }. */
static void add_latency(cJSON *root, const struct skvcctl_picture *p)
{
	cJSON *all = cJSON_AddObjectToObject(root, "latency");

	for (size_t i = 0; i < p->stats_count; i++) {
		const struct skvcctl_stat *s = &p->stats[i];
		const char *dot = strchr(s->name, '.');
		char name[64];
		cJSON *one;

		if (s->kind != SKVCCTL_LATENCY || !dot)
			continue;
		(void)snprintf(name, sizeof(name), "%.*s", (int)(dot - s->name), s->name);
		one = cJSON_GetObjectItemCaseSensitive(all, name);
		if (!one)
			one = cJSON_AddObjectToObject(all, name);
		add_u64(one, dot + 1, s->value);
	}
}

static cJSON *add_row(cJSON *array)
{
	cJSON *row = cJSON_CreateObject();

	if (row && !cJSON_AddItemToArray(array, row)) {
		cJSON_Delete(row);
		return NULL;
	}
	return row;
}

static void add_namespaces(cJSON *root, const struct skvcctl_picture *p)
{
	cJSON *array = cJSON_AddArrayToObject(root, "namespaces");

	for (size_t i = 0; i < p->namespaces_count; i++) {
		const struct skvcctl_namespace *n = &p->namespaces[i];
		cJSON *row = add_row(array);

		add_u64(row, "id", n->id);
		(void)cJSON_AddStringToObject(row, "tenant", n->tenant);
		(void)cJSON_AddStringToObject(row, "model", n->model);
		(void)cJSON_AddStringToObject(row, "digest", n->digest);
		add_u64(row, "block_tokens", n->block_tokens);
		add_u64(row, "segments", n->segments_count);
		add_u64(row, "block_raw_bytes", n->block_raw_bytes);
		add_u64(row, "blocks", n->blocks);
		add_u64(row, "raw_bytes", n->raw_bytes);
		add_u64(row, "coded_bytes", n->coded_bytes);
		add_u64(row, "hits", n->hits);
		add_u64(row, "misses", n->misses);
		add_u64(row, "profile_version", n->profile_version);
		add_u64(row, "profile_bits_milli", n->profile_bits_milli);
	}
}

static void add_profiles(cJSON *root, const struct skvcctl_picture *p)
{
	cJSON *array = cJSON_AddArrayToObject(root, "profiles");

	for (size_t i = 0; i < p->profiles_count; i++) {
		const struct skvcctl_profile *f = &p->profiles[i];
		cJSON *row = add_row(array);

		add_u64(row, "namespace", f->ns);
		(void)cJSON_AddStringToObject(row, "tenant", f->tenant);
		(void)cJSON_AddStringToObject(row, "model", f->model);
		add_u64(row, "version", f->version);
		(void)cJSON_AddStringToObject(row, "digest", f->digest);
		(void)cJSON_AddStringToObject(row, "speculator", f->lookback ? "layer" : "channel");
		(void)cJSON_AddStringToObject(row, "model_part", skvcctl_model_part(f));
		add_u64(row, "previous", f->lookback ? f->lookback - 1 : 0);
		add_u64(row, "rotary_pairs", f->rotary_pairs);
		add_u64(row, "bytes", f->bytes);
		add_u64(row, "tokens", f->tokens);
		add_u64(row, "expected_bits_milli", f->expected_milli);
		add_u64(row, "measured_bits_milli", f->measured_milli);
		add_u64(row, "blocks", f->blocks);
		(void)cJSON_AddStringToObject(row, "state", f->state);
	}
}

static void add_sessions(cJSON *root, const struct skvcctl_picture *p)
{
	cJSON *array = cJSON_AddArrayToObject(root, "sessions");

	for (size_t i = 0; i < p->sessions_count; i++) {
		const struct skvcctl_session *s = &p->sessions[i];
		cJSON *row = add_row(array);

		add_u64(row, "id", s->id);
		add_u64(row, "pid", s->pid);
		add_u64(row, "uid", s->uid);
		(void)cJSON_AddStringToObject(row, "tenant", s->tenant);
		(void)cJSON_AddStringToObject(row, "name", s->name);
		(void)cJSON_AddStringToObject(row, "role", s->role);
		add_u64(row, "ops", s->ops);
		add_u64(row, "store_blocks", s->store_blocks);
		add_u64(row, "load_blocks", s->load_blocks);
		add_u64(row, "lookup_blocks", s->lookup_blocks);
		add_u64(row, "jobs", s->jobs);
		add_u64(row, "leases", s->leases);
		add_u64(row, "age_ns", s->age_ns);
	}
}

static void add_models(cJSON *root, const struct skvcctl_picture *p)
{
	cJSON *array = cJSON_AddArrayToObject(root, "models");

	for (size_t i = 0; i < p->models_count; i++) {
		const struct skvcctl_model *m = &p->models[i];
		cJSON *row = cJSON_CreateObject();

		(void)cJSON_AddStringToObject(row, "name", m->name);
		(void)cJSON_AddStringToObject(row, "folder", m->folder);
		(void)cJSON_AddStringToObject(row, "state", m->state);
		(void)cJSON_AddStringToObject(row, "error", m->err);
		(void)cJSON_AddStringToObject(row, "digest", m->digest);
		add_u64(row, "layers", m->layers);
		add_u64(row, "vocab", m->vocab);
		(void)cJSON_AddItemToArray(array, row);
	}
}

static void add_tenants(cJSON *root, const struct skvcctl_picture *p)
{
	cJSON *array = cJSON_AddArrayToObject(root, "tenants");

	for (size_t i = 0; i < p->tenants_count; i++) {
		cJSON *row = add_row(array);

		(void)cJSON_AddStringToObject(row, "name", p->tenants[i].name);
		add_u64(row, "charged_bytes", p->tenants[i].charged_bytes);
		add_u64(row, "quota_bytes", p->tenants[i].quota_bytes);
	}
}

int skvcctl_print_json(const struct skvcctl_picture *p, unsigned what, FILE *out)
{
	cJSON *root = cJSON_CreateObject();

	if (what & SKVCCTL_GET_VERSION) {
		(void)cJSON_AddStringToObject(root, "version", p->version);
		(void)cJSON_AddStringToObject(root, "health", p->health);
		(void)cJSON_AddStringToObject(root, "status", p->status);
		add_u64(root, "ping_ns", p->ping_ns);
	}
	if (what & SKVCCTL_GET_STATS) {
		add_kind(root, "counters", p, SKVCCTL_COUNTER);
		add_kind(root, "gauges", p, SKVCCTL_GAUGE);
		add_kind(root, "reasons", p, SKVCCTL_REASON);
		add_latency(root, p);
	}
	if (what & SKVCCTL_GET_TENANTS)
		add_tenants(root, p);
	if (what & SKVCCTL_GET_NAMESPACES)
		add_namespaces(root, p);
	if (what & SKVCCTL_GET_PROFILES)
		add_profiles(root, p);
	if (what & SKVCCTL_GET_MODELS)
		add_models(root, p);
	if (what & SKVCCTL_GET_PLAN)
		skvcctl_add_plan(root, p);
	if (what & SKVCCTL_GET_SESSIONS)
		add_sessions(root, p);
	return output_json(root, out);
}
