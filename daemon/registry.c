/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registry.c - who a user is, and what a namespace is called.  Control thread.
 *
 * A namespace's digest starts with its tenant's salt, and that comes from the daemon's secret: nobody can
 * name, and so reach, another tenant's blocks, even with the same model, geometry and salt.
 */
#include "daemon/registry.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/lane.h"

int registry_new(const struct config *config, const uint8_t secret[SECRET_BYTES],
		 struct registry **ret_registry)
{
	struct registry *r;

	if (sodium_init() < 0)
		return -EIO;
	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->config = config;
	memcpy(r->secret, secret, SECRET_BYTES);
	r->tenants = calloc(REGISTRY_TENANTS_MAX, sizeof(struct tenant *));
	r->namespaces = calloc(config->namespaces_max, sizeof(struct namespace *));
	if (!r->tenants || !r->namespaces) {
		registry_free(r);
		return -ENOMEM;
	}
	*ret_registry = r;
	return 0;
}

struct registry *registry_free(struct registry *r)
{
	if (!r)
		return NULL;
	for (uint32_t i = 0; i < r->namespaces_count; i++) {
		codec_profile_free(
			atomic_load_explicit(&r->namespaces[i]->shipped, memory_order_acquire));
		codec_geometry_deinit(&r->namespaces[i]->geom);
		free(r->namespaces[i]);
	}
	for (uint32_t i = 0; i < r->tenants_count; i++) {
		explicit_bzero(r->tenants[i]->salt, sizeof(r->tenants[i]->salt));
		free(r->tenants[i]);
	}
	free(r->namespaces);
	free(r->tenants);
	explicit_bzero(r->secret, sizeof(r->secret));
	free(r);
	return NULL;
}

/* Every part is preceded by its length: two different lists of parts never hash the same bytes. */
static void hash_part(crypto_generichash_state *state, const void *bytes, size_t count)
{
	uint64_t count_le = htole64(count);

	(void)crypto_generichash_update(state, (const unsigned char *)&count_le, sizeof(count_le));
	if (count)
		(void)crypto_generichash_update(state, bytes, count);
}

static void tenant_salt(const struct registry *r, const char *name, uint8_t ret_salt[32])
{
	crypto_generichash_state state;

	(void)crypto_generichash_init(&state, r->secret, SECRET_BYTES, 32);
	hash_part(&state, name, strlen(name));
	(void)crypto_generichash_final(&state, ret_salt, 32);
}

static void namespace_digest(const struct registry_ns_key *key, const struct codec_geometry *geom,
			     uint8_t ret_digest[32])
{
	crypto_generichash_state state;

	(void)crypto_generichash_init(&state, NULL, 0, 32);
	hash_part(&state, key->tenant->salt, sizeof(key->tenant->salt));
	hash_part(&state, key->model, strlen(key->model));
	hash_part(&state, key->salt, key->salt_bytes);
	hash_part(&state, geom->digest, sizeof(geom->digest));
	(void)crypto_generichash_final(&state, ret_digest, 32);
}

static int get_tenant(struct registry *r, const char *name, uint64_t quota_bytes,
		      struct tenant **ret_tenant)
{
	struct tenant *t;

	for (uint32_t i = 0; i < r->tenants_count; i++)
		if (!strcmp(r->tenants[i]->name, name)) {
			*ret_tenant = r->tenants[i];
			return 0;
		}
	if (r->tenants_count == REGISTRY_TENANTS_MAX)
		return -EUSERS;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->id = r->tenants_count;
	(void)snprintf(t->name, sizeof(t->name), "%s", name);
	tenant_salt(r, name, t->salt);
	atomic_store_explicit(&t->quota_bytes, quota_bytes, memory_order_relaxed);
	r->tenants[r->tenants_count++] = t;
	*ret_tenant = t;
	return 0;
}

struct tenant *registry_tenant_named(const struct registry *r, const char *name)
{
	for (uint32_t i = 0; i < r->tenants_count; i++)
		if (!strcmp(r->tenants[i]->name, name))
			return r->tenants[i];
	return NULL;
}

void registry_take_quotas(struct registry *r)
{
	for (uint32_t i = 0; i < r->tenants_count; i++) {
		struct tenant *t = r->tenants[i];
		uint64_t quota_bytes = r->config->quota_bytes;

		for (uint32_t k = 0; k < r->config->tenants_count; k++)
			if (!strcmp(r->config->tenants[k].name, t->name))
				quota_bytes = r->config->tenants[k].quota_bytes;
		atomic_store_explicit(&t->quota_bytes, quota_bytes, memory_order_relaxed);
	}
}

int registry_tenant(struct registry *r, uid_t uid, struct tenant **ret_tenant)
{
	uint64_t quota_bytes = r->config->quota_bytes;
	char name[sizeof(((struct tenant *)0)->name)];

	(void)snprintf(name, sizeof(name), "uid-%" PRIu32, (uint32_t)uid);
	for (uint32_t i = 0; i < r->config->tenants_count; i++) {
		const struct config_tenant *c = &r->config->tenants[i];

		if (uid < c->uid_first || uid > c->uid_last)
			continue;
		memcpy(name, c->name, sizeof(name));
		quota_bytes = c->quota_bytes;
		break;
	}
	return get_tenant(r, name, quota_bytes, ret_tenant);
}

/* A tenant by the name that it had: as configured now. */
static int tenant_by_name(struct registry *r, const char *name, struct tenant **ret_tenant)
{
	unsigned uid;
	int n = 0, e;

	for (uint32_t i = 0; i < r->config->tenants_count; i++)
		if (!strcmp(r->config->tenants[i].name, name))
			return get_tenant(r, name, r->config->tenants[i].quota_bytes, ret_tenant);
	if (sscanf(name, "uid-%u%n", &uid, &n) != 1 || name[n])
		return -ESTALE;
	e = registry_tenant(r, uid, ret_tenant);
	if (e == 0 && strcmp((*ret_tenant)->name, name) != 0)
		return -ESTALE; /* this user has a section of his own by now */
	return e;
}

void registry_tag(const struct tenant *tenant, uint8_t ret_tag[REGISTRY_TAG_BYTES])
{
	static const char what[] = "skvcd: tenant of stored blocks";
	crypto_generichash_state state;

	(void)crypto_generichash_init(&state, tenant->salt, sizeof(tenant->salt),
				      REGISTRY_TAG_BYTES);
	hash_part(&state, what, sizeof(what));
	(void)crypto_generichash_final(&state, ret_tag, REGISTRY_TAG_BYTES);
}

static struct namespace *find_namespace(const struct registry *r, const uint8_t *digest)
{
	for (uint32_t i = 0; i < r->namespaces_count; i++)
		if (!memcmp(r->namespaces[i]->digest, digest, sizeof(r->namespaces[i]->digest)))
			return r->namespaces[i];
	return NULL;
}

/* Takes *geom over. */
static int make_namespace(struct registry *r, struct tenant *tenant, const uint8_t *digest,
			  const char *model, struct codec_geometry *geom, struct namespace **ret_ns)
{
	struct namespace *ns;

	if (r->namespaces_count >= r->config->namespaces_max)
		return -EUSERS;
	ns = calloc(1, sizeof(*ns));
	if (!ns)
		return -ENOMEM;
	ns->id = r->namespaces_count;
	ns->tenant = tenant;
	memcpy(ns->digest, digest, sizeof(ns->digest));
	(void)snprintf(ns->model, sizeof(ns->model), "%s", model);
	ns->geom = *geom;
	memset(geom, 0, sizeof(*geom));
	r->namespaces[r->namespaces_count++] = ns;
	*ret_ns = ns;
	return 0;
}

int registry_restore(void *user, const struct lane_saved_ns *saved, struct namespace **ret_ns)
{
	uint8_t tag[REGISTRY_TAG_BYTES];
	struct registry *r = user;
	struct codec_geometry geom;
	struct tenant *tenant;
	int e;

	if (find_namespace(r, saved->digest))
		return -EEXIST;
	e = tenant_by_name(r, saved->tenant, &tenant);
	if (e < 0)
		return e;
	registry_tag(tenant, tag);
	if (memcmp(tag, saved->tag, sizeof(tag)) != 0)
		return -ESTALE;
	e = codec_geometry_init(&geom, saved->block_tokens, saved->segments, saved->segments_count);
	if (e < 0)
		return e;
	e = make_namespace(r, tenant, saved->digest, saved->model, &geom, ret_ns);
	codec_geometry_deinit(&geom); /* not ours any more, or not needed */
	if (e == 0)
		(*ret_ns)->restored = 1;
	return e;
}

/* Those that were found on NVMe count, too, but are never refused: they have blocks. */
static bool has_its_share(const struct registry *r, const struct tenant *tenant)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < r->namespaces_count; i++)
		n += r->namespaces[i]->tenant == tenant;
	return n >= config_share(r->config->namespaces_per_tenant, r->config->namespaces_max);
}

int registry_namespace(struct registry *r, const struct registry_ns_key *key,
		       struct codec_geometry *geom, struct namespace **ret_ns)
{
	uint8_t digest[32];

	namespace_digest(key, geom, digest);
	*ret_ns = find_namespace(r, digest);
	if (*ret_ns)
		return 0;
	if (!key->unbounded && has_its_share(r, key->tenant))
		return -EDQUOT;
	return make_namespace(r, key->tenant, digest, key->model, geom, ret_ns);
}
