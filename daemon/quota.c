/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quota.c - what a tenant's blocks occupy, in compressed bytes, wherever they lie.  A charge is taken
 * before the slot and given back when the block leaves the index: block.record_bytes is the receipt.
 *
 * With [limits] borrow a quota is what a tenant can count on, and together tenants with a quota have the sum of all
 * quotas: what one leaves idle others may use.  When it wants that after all it is never refused, and who is
 * furthest above his own quota gives back, his pins notwithstanding.  Until that is done, and if leases hold what
 * should go, the sum is exceeded by no more than what was borrowed.
 *
 * Blocks that somebody holds, a lease above all, cannot be evicted, whoever needs the room.  How much that is, is
 * counted for each tenant, and a lookup ends before a block that would be too much ([limits] lease_share).  So is what
 * a tenant has pinned.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/lane_state.h"

#define RETURN_BATCH 16u /* blocks given back during one store; the rest in evict_trim() */

static uint64_t quota_of(const struct tenant *t)
{
	return atomic_load_explicit(&t->quota_bytes, memory_order_relaxed);
}

static uint64_t charged_to(const struct tenant *t)
{
	return atomic_load_explicit(&t->charged_bytes, memory_order_relaxed);
}

/* held + bytes > limit, without overflow; a limit may have become less than what is held */
static int exceeds(uint64_t held, uint64_t bytes, uint64_t limit)
{
	return held > limit || bytes > limit - held;
}

/* ---- who there is ---- */

static int is_known(const struct lane *lane, const char *name)
{
	const struct tenant *t = lane->tenants;

	while (t && strcmp(t->name, name) != 0)
		t = t->next;
	return t != NULL;
}

/* Who is configured and has not come lends all of his quota. */
static void count_absent(struct lane *lane)
{
	lane->absent_quotas_bytes = 0;
	for (uint32_t i = 0; i < lane->config.tenants_count; i++)
		if (!is_known(lane, lane->config.tenants[i].name))
			lane->absent_quotas_bytes += lane->config.tenants[i].quota_bytes;
}

void quota_know(struct lane *lane, struct tenant *tenant)
{
	if (tenant->known)
		return;
	tenant->known = 1;
	tenant->next = lane->tenants;
	lane->tenants = tenant;
	count_absent(lane);
}

void quota_configured(struct lane *lane, const struct config *config)
{
	lane->config.tenants_count = config->tenants_count;
	memcpy(lane->config.tenants, config->tenants, sizeof(config->tenants));
	count_absent(lane);
	lane->evict.trim = 1;
}

/* ---- charges ---- */

/* Of all who have a quota: is what they hold, and bytes, more than they may have together? */
static int all_exceed(const struct lane *lane, uint64_t bytes)
{
	uint64_t quotas = lane->absent_quotas_bytes, charged = 0;

	for (const struct tenant *t = lane->tenants; t; t = t->next) {
		quotas += quota_of(t);
		charged += quota_of(t) ? charged_to(t) : 0;
	}
	return exceeds(charged, bytes, quotas);
}

int quota_charge(const struct lane *lane, struct tenant *tenant, uint64_t bytes)
{
	uint64_t charged = charged_to(tenant), quota = quota_of(tenant);

	if (quota && exceeds(charged, bytes, quota) &&
	    (!lane->config.quota_borrow || all_exceed(lane, bytes)))
		return -EDQUOT;
	atomic_store_explicit(&tenant->charged_bytes, charged + bytes, memory_order_relaxed);
	return 0;
}

void quota_uncharge(struct tenant *tenant, uint64_t bytes)
{
	uint64_t charged = charged_to(tenant);

	assert(bytes <= charged);
	atomic_store_explicit(&tenant->charged_bytes, charged - bytes, memory_order_relaxed);
}

/* ---- what nobody can evict ---- */

static unsigned held_where(const struct lane *lane, const struct block *b)
{
	return b->slot == POOL_NONE && index_gpu_slot(lane->index, b) != POOL_NONE;
}

void quota_hold(struct lane *lane, struct block *b)
{
	unsigned gpu = held_where(lane, b);

	b->held_gpu = gpu & 1;
	lane->ns[b->ns]->tenant->held_bytes[gpu] += b->record_bytes;
	lane->held_bytes[gpu] += b->record_bytes;
}

void quota_unhold(struct lane *lane, const struct block *b)
{
	struct tenant *t = lane->ns[b->ns]->tenant;
	unsigned gpu = b->held_gpu;

	assert(t->held_bytes[gpu] >= b->record_bytes &&
	       lane->held_bytes[gpu] >= t->held_bytes[gpu]);
	t->held_bytes[gpu] -= b->record_bytes;
	lane->held_bytes[gpu] -= b->record_bytes;
}

/* Of what others leave of all, so much in a hundred: [limits] lease_share. */
static uint64_t share_of(const struct lane *lane, uint64_t all, uint64_t others)
{
	uint64_t left = others < all ? all - others : 0;

	return left / 100 * lane->config.lease_share_percent;
}

/*
 * May a lease of its tenant hold this block, too?  Of what others' leave of the pool, so much in a hundred: with 50
 * nobody holds more than he leaves.  What is held already costs nothing more, unless there is too much of it.
 */
int quota_lease_allows(const struct lane *lane, const struct block *b)
{
	unsigned gpu = b->refs ? b->held_gpu : held_where(lane, b);
	uint64_t all = gpu ? lane->config.gpu_pool_bytes : lane->config.pool_bytes;
	uint64_t mine = lane->ns[b->ns]->tenant->held_bytes[gpu];

	return !exceeds(mine, b->refs ? 0 : b->record_bytes,
			share_of(lane, all, lane->held_bytes[gpu] - mine));
}

/* ---- what is pinned ---- */

static void count_pin(struct lane *lane, const struct block *b)
{
	if (b->pinned && !b->ahead_pins)
		pins_add(&lane->ns[b->ns]->tenant->pins, b->pinned, b->record_bytes);
}

static void uncount_pin(struct lane *lane, const struct block *b)
{
	if (b->pinned && !b->ahead_pins)
		pins_sub(&lane->ns[b->ns]->tenant->pins, b->pinned, b->record_bytes);
}

static uint32_t pins_now(const struct lane *lane)
{
	uint64_t now = lane->now_ns >> PINS_UNIT_SHIFT;

	return now < UINT32_MAX ? (uint32_t)now : UINT32_MAX;
}

void quota_pin(struct lane *lane, struct block *b, uint64_t until_ns, int ahead)
{
	uint64_t most_ns = clock_add_ns(lane->now_ns, SKVC_ABI_TTL_NS_MAX);

	pins_expire(&lane->ns[b->ns]->tenant->pins, pins_now(lane));
	uncount_pin(lane, b);
	tier_pin(b, until_ns < most_ns ? until_ns : most_ns);
	b->ahead_pins = ahead & 1;
	count_pin(lane, b);
}

void quota_pin_resize(struct lane *lane, struct block *b, uint32_t record_bytes)
{
	uncount_pin(lane, b);
	b->record_bytes = record_bytes;
	count_pin(lane, b);
}

/* As with leases, of host memory. */
uint64_t quota_pins_limit(const struct lane *lane, const struct tenant *tenant)
{
	uint64_t others = 0;

	for (struct tenant *t = lane->tenants; t; t = t->next) {
		pins_expire(&t->pins, pins_now(lane));
		others += t != tenant ? t->pins.bytes : 0;
	}
	return share_of(lane, lane->config.pool_bytes, others);
}

int quota_pin_allows(const struct lane *lane, const struct block *b, uint64_t limit)
{
	if (tier_pinned(lane, b) && !b->ahead_pins)
		return 1; /* it is counted already */
	return !exceeds(lane->ns[b->ns]->tenant->pins.bytes, b->record_bytes, limit);
}

/* ---- giving back ---- */

/* How far it is above its own quota. */
static uint64_t above(const struct tenant *t)
{
	uint64_t quota = quota_of(t), charged = charged_to(t);

	return quota && charged > quota ? charged - quota : 0;
}

/* The furthest above its quota of those that are not yet marked; NULL: nobody has to give anything back. */
static struct tenant *debtor(const struct lane *lane)
{
	struct tenant *most = NULL;

	if (lane->config.quota_borrow && !all_exceed(lane, 0))
		return NULL;
	for (struct tenant *t = lane->tenants; t; t = t->next)
		if (!t->stuck && above(t) > (most ? above(most) : 0))
			most = t;
	return most;
}

unsigned quota_return(struct lane *lane)
{
	struct tenant *t;
	unsigned n = 0;

	for (t = lane->tenants; t; t = t->next)
		t->stuck = 0;
	while (n < RETURN_BATCH && (t = debtor(lane))) {
		if (!tier_evict_for_tenant(lane, t) &&
		    (!lane->config.quota_borrow || !tier_evict_pinned(lane, t))) {
			t->stuck = 1; /* all it has is held */
			continue;
		}
		stats_add(&lane->stats, STAT_QUOTA_RETURNED_BLOCKS, 1);
		n++;
	}
	return n;
}
