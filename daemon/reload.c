/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reload.c - which keys differ, and which of them may.  The table says which (CONFIG_LIVE); of tenants it is
 * their quota, for a uid that becomes another tenant's has blocks already.
 */
#include "daemon/reload.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void say(struct reload *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(struct reload *r, const char *format, ...)
{
	size_t len = strlen(r->text);
	va_list args;

	va_start(args, format);
	(void)vsnprintf(r->text + len, sizeof(r->text) - len, format, args);
	va_end(args);
}

static void take_key(struct config *now, const struct config *next, const struct config_key *k,
		     struct reload *r)
{
	const unsigned char *value = (const unsigned char *)next + k->off;
	char text[CONFIG_VALUE_BYTES];

	if (!memcmp((const unsigned char *)now + k->off, value, k->field_bytes))
		return;
	config_key_value(next, k, text, sizeof(text));
	if (k->flags & CONFIG_LIVE) {
		memcpy((unsigned char *)now + k->off, value, k->field_bytes);
		r->changed++;
	} else {
		r->waiting++;
	}
	say(r, "[%s] %s = %s%s\n", k->section, k->key, text,
	    k->flags & CONFIG_LIVE ? "" : ": needs a restart");
}

/* Its index, or tenants_count. */
static uint32_t find(const struct config *c, const char *name)
{
	uint32_t i = 0;

	while (i < c->tenants_count && strcmp(c->tenants[i].name, name) != 0)
		i++;
	return i;
}

static void take_tenant(struct config *now, const struct config_tenant *t, struct reload *r)
{
	uint32_t i = find(now, t->name);
	struct config_tenant *is = &now->tenants[i];

	if (i == now->tenants_count || is->uid_first != t->uid_first ||
	    is->uid_last != t->uid_last) {
		say(r, "[tenant %s] uid: needs a restart\n", t->name);
		r->waiting++;
	} else if (is->quota_bytes != t->quota_bytes) {
		is->quota_bytes = t->quota_bytes;
		say(r, "[tenant %s] quota = %" PRIu64 "M\n", t->name, t->quota_bytes >> 20);
		r->changed++;
	}
}

static void take_tenants(struct config *now, const struct config *next, struct reload *r)
{
	for (uint32_t i = 0; i < next->tenants_count; i++)
		take_tenant(now, &next->tenants[i], r);
	for (uint32_t i = 0; i < now->tenants_count; i++)
		if (find(next, now->tenants[i].name) == next->tenants_count) {
			say(r, "[tenant %s] is gone: needs a restart\n", now->tenants[i].name);
			r->waiting++;
		}
}

void reload_take(struct config *now, const struct config *next, struct reload *ret)
{
	memset(ret, 0, sizeof(*ret));
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k))
		take_key(now, next, k, ret);
	take_tenants(now, next, ret);
}

int reload_try(struct config *now, const struct config *next, int (*tell)(void *user), void *user,
	       struct reload *ret)
{
	static struct config before; /* large for a stack; control thread only */
	int r;

	before = *now;
	reload_take(now, next, ret);
	r = tell(user);
	if (r < 0)
		*now = before;
	return r;
}
