/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_explain.c - the daemon says what its words mean; what to do about them is said here.
 */
#include "tools/skvcctl_explain.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static const struct {
	const char *reason, *advice;
} advices[SKVCCTL_ADVICES] = {
	{ "pool-full", "raise [host] pool, or give it an NVMe tier: [nvme] path" },
	{ "quota",
	  "skvcctl quota TENANT SIZE, or [tenant NAME] quota; skvcctl tenants shows them" },
	{ "index-full", "raise [limits] blocks_max: small blocks need more entries" },
	{ "jobs-full", "nothing: the engine has many operations in flight, and asks again" },
	{ "leases-full", "raise [limits] leases_max, or have the engine release leases sooner" },
	{ "lease-share",
	  "have the engine release leases sooner, or raise [limits] lease_share or [host] pool" },
	{ "lease-gone", "load sooner after the lookup, or raise [limits] lease_ttl" },
	{ "tokens-differ", "two token sequences have one key: use a stronger hash in the engine" },
	{ "parent-differs", "keys must depend on all tokens before them, too" },
	{ "version", "install libskvc and skvcd of one release" },
	{ "corrupt",
	  "check the memory (edac-util -v) and the drive (smartctl -a): bytes have changed" },
	{ "io-error", "smartctl -a, and the kernel's log: the drive answers with errors" },
	{ "io-timeout", "the drive is slow: lower [nvme] queue_depth, or raise [nvme] deadline" },
	{ "device-error", "see skvcd's log; on a GPU also nvidia-smi -q" },
	{ "device-gone", "systemctl restart skvcd, when nvidia-smi shows a GPU in order" },
	{ "sessions-full", "raise [daemon] sessions_max" },
	{ "user-sessions", "raise [limits] sessions_per_user, or end sessions of that user" },
	{ "namespaces-full", "raise [daemon] namespaces_max, or restart skvcd" },
	{ "tenant-namespaces",
	  "raise [limits] namespaces_per_tenant; a restart forgets namespaces without blocks" },
	{ "shutdown", "the daemon stops or drains: connect again; skvcctl drain off" },
	{ "not-permitted", "usermod -aG skvcd USER, then log in again; skvcctl doctor" },
	{ "memory-limit",
	  "raise [host] arena_session and arena_total, [limits] arenas_per_user, or register less" },
	{ "too-large",
	  "a block must fit a slab of the pool: fewer tokens a block, or a larger pool" },
	{ "bad-memory", "skvcctl doctor: GPU memory needs the same IPC namespace, or descriptors" },
	{ "bad-event", "record the event before the operation; see [limits] event_wait" },
	{ "profile-gone", "nothing: the block is computed and stored again" },
	{ "model-gone", "skvcctl model add NAME FOLDER with the model that coded it" },
	{ "not-admitted",
	  "nothing: it is stored when it comes again; [limits] admission = no takes all" },
	{ "prefix-gone", "nothing: a block before it was evicted, so it is computed again" },
	{ "recompute",
	  "nothing: skvcctl explain --plan shows what restoring takes, and what the engine said" },
	{ "ring-overrun", "the client is broken: it publishes more than its ring holds" },
	{ "bad-message", "the client is broken, or no client of skvcd: see its pid in the log" },
};

const char *skvcctl_advice(const char *reason)
{
	for (size_t i = 0; i < sizeof(advices) / sizeof(advices[0]); i++)
		if (!strcmp(advices[i].reason, reason))
			return advices[i].advice;
	return NULL;
}

static uint64_t value_of(const struct skvcctl_picture *p, const struct skvcctl_text *t)
{
	enum skvcctl_kind kind = !strcmp(t->kind, "reason")    ? SKVCCTL_REASON
				 : !strcmp(t->kind, "counter") ? SKVCCTL_COUNTER
							       : SKVCCTL_GAUGE;

	return skvcctl_value(p, kind, t->name);
}

static void print_text(const struct skvcctl_picture *p, const struct skvcctl_text *t, FILE *out)
{
	const char *advice = !strcmp(t->kind, "reason") ? skvcctl_advice(t->name) : NULL;

	(void)fprintf(out, "%s: %s\n  %s, so far %" PRIu64 " %s\n", t->name, t->text, t->kind,
		      value_of(p, t), t->unit);
	if (advice)
		(void)fprintf(out, "  -> %s\n", advice);
}

int skvcctl_explain(const struct skvcctl_picture *p, const char *word, FILE *out)
{
	unsigned found = 0;

	for (size_t i = 0; i < p->texts_count; i++) {
		const struct skvcctl_text *t = &p->texts[i];

		if (word ? strcmp(t->name, word) != 0
			 : strcmp(t->kind, "reason") != 0 || !value_of(p, t))
			continue;
		print_text(p, t, out);
		found++;
	}
	if (!found && !word)
		(void)fprintf(out, "Nothing was ever refused.\n");
	return word && !found ? -ENOENT : 0;
}
