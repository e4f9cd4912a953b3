/* SPDX-License-Identifier: Apache-2.0 */
/*
 * registry.h - tenants and namespaces: found or made by the control thread, never removed while the daemon
 * runs, because blocks of them stay when their clients are gone.
 */
#ifndef SKVCD_DAEMON_REGISTRY_H
#define SKVCD_DAEMON_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/config.h"
#include "daemon/secret.h"
#include "daemon/session.h"

#define REGISTRY_TENANTS_MAX 1024u

struct registry {
	const struct config *config; /* borrowed */
	uint8_t secret[SECRET_BYTES];
	struct tenant **tenants; /* owned, [tenants_count] by id */
	uint32_t tenants_count;
	struct namespace **namespaces; /* owned, [namespaces_count] by id; at most namespaces_max */
	uint32_t namespaces_count;
};

int registry_new(const struct config *config, const uint8_t secret[SECRET_BYTES],
		 struct registry **ret_registry);
/* The lane must have ended: it borrows what is in here.  Returns NULL. */
struct registry *registry_free(struct registry *r);

/* The tenant of a user: the section whose uids hold it, else one of its own.  -EUSERS, -ENOMEM. */
int registry_tenant(struct registry *r, uid_t uid, struct tenant **ret_tenant);

/* NULL: nobody has connected as this tenant yet. */
struct tenant *registry_tenant_named(const struct registry *r, const char *name);
/* The configuration has changed: every tenant's quota is what it says again. */
void registry_take_quotas(struct registry *r);

struct registry_ns_key { /* all borrowed for the call */
	struct tenant *tenant;
	const char *model;
	const void *salt; /* the client's */
	size_t salt_bytes;
	bool unbounded; /* it may be more than the tenant's share */
};

/*
 * Find or make the namespace with this key and this geometry; takes *geom over when it makes one (*geom is
 * then zero), else leaves it to the caller.  -EUSERS (table full), -EDQUOT (the tenant has his share), -ENOMEM.
 */
int registry_namespace(struct registry *r, const struct registry_ns_key *key,
		       struct codec_geometry *geom, struct namespace **ret_ns);

/* To tell whether a tenant has the same salt as in an earlier life of the daemon. */
#define REGISTRY_TAG_BYTES 16u
void registry_tag(const struct tenant *tenant, uint8_t ret_tag[REGISTRY_TAG_BYTES]);

struct lane_saved_ns;

/* Make a namespace that blocks were found of (lane.h).  -ESTALE: its tenant is not configured any more, or the secret
 * is another one; -EINVAL: no geometry; -EEXIST; -EUSERS, -ENOMEM.  user: the registry. */
int registry_restore(void *user, const struct lane_saved_ns *saved, struct namespace **ret_ns);

#endif
