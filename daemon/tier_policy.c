/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_policy.c - what policy.c is told of the blocks, and what it is asked.
 *
 * A block is in the policy from its publication, or from when it was found on NVMe, until it is forgotten.  In memory
 * it is held there while it is on none of the lists clean, dirty, droppable and gpu_cold, unless that is recode's
 * doing; on NVMe only, while it is held or has children anywhere: so what is lost for good is lost from a chain's end.
 * A lookup, a touch and a store of what is there are uses, wherever the block lies.  What moves bytes (load, spill,
 * fetch, recode, move) is none.
 *
 * Each tenant has queues of its own, as far as there are groups for them.
 */
#include <math.h>

#include "daemon/lane_state.h"
#include "daemon/recode.h"

#define WAIT_SHIFT 22u /* 4.2 ms */
#define SCAN_MAX 64u   /* blocks of a list looked at when the policy has none */
#define ANCESTORS_MAX 256u
#define KEPT 0.2f /* of what is asked about: a byte in five is written again */
#define KEPT_STEP (1.0f / 32)
#define POSITION_HALF 4096.0f /* tokens */
#define POSITION_WEIGHT 0.25f /* of a doubling of the worth */

_Static_assert(POLICY_NONE == BLOCK_NONE, "one number for none");
_Static_assert((int)TIER_PLACE_NVME == (int)POLICY_BELOW, "what lies behind the memory");

static uint32_t group_of(const struct tenant *t)
{
	return t->id % POLICY_GROUPS;
}

static uint32_t block_group(const struct lane *lane, uint32_t id)
{
	return group_of(lane->ns[index_block(lane->index, id)->ns]->tenant);
}

void tier_policy_enter(struct lane *lane, uint32_t id, int last)
{
	policy_insert(lane->policy, id, block_group(lane, id), index_parent(lane->index, id),
		      index_key_hash(lane->index, id), last);
}

void tier_policy_found(struct lane *lane, uint32_t id)
{
	policy_found(lane->policy, id, block_group(lane, id));
	tier_policy_settle(lane, id);
}

void tier_policy_leave(struct lane *lane, uint32_t id)
{
	if (policy_has(lane->policy, id))
		policy_remove(lane->policy, id, index_parent(lane->index, id),
			      index_key_hash(lane->index, id));
}

void tier_policy_place(struct lane *lane, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);
	enum tier_place place = b->state != BLOCK_RESIDENT		      ? TIER_PLACE_NVME
				: index_gpu_slot(lane->index, b) != POOL_NONE ? TIER_PLACE_GPU
				: b->flags & BLOCK_CLEAN || b->droppable      ? TIER_PLACE_CLEAN
									      : TIER_PLACE_DIRTY;

	policy_move(lane->policy, id, index_parent(lane->index, id), place);
}

void tier_policy_settle(struct lane *lane, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);

	if (b->state != BLOCK_NVME)
		return;
	if (b->refs || b->children)
		policy_hold(lane->policy, id);
	else
		policy_unhold(lane->policy, id);
}

/* Else a chain would stay for as long as nobody has time to code its last block again. */
void tier_policy_lets_go(struct lane *lane, uint32_t id)
{
	policy_unhold(lane->policy, id);
}

/*
 * For a link that an earlier life names.  Positions grow from parent to child.  Where they are not known, nobody may be
 * his own ancestor; of a chain longer than is looked at the rest is left without.
 */
int tier_may_link(const struct lane *lane, uint32_t id, uint32_t parent)
{
	const struct block *b = index_block(lane->index, id), *p = index_block(lane->index, parent);

	if (parent == id || b->ns != p->ns)
		return 0;
	if (b->position != CODEC_POSITION_UNKNOWN || p->position != CODEC_POSITION_UNKNOWN)
		return p->position != CODEC_POSITION_UNKNOWN &&
		       b->position == p->position + lane->ns[b->ns]->geom.block_tokens;
	for (unsigned n = 0; parent != BLOCK_NONE && n < ANCESTORS_MAX; n++) {
		parent = index_parent(lane->index, parent);
		if (parent == id)
			return 0;
	}
	return parent == BLOCK_NONE;
}

void tier_link(struct lane *lane, uint32_t id, uint32_t parent)
{
	index_set_parent(lane->index, id, parent);
	if (policy_has(lane->policy, id))
		policy_link(lane->policy, id, parent);
	tier_policy_settle(lane, parent);
}

void tier_use(struct lane *lane, uint32_t id, int last)
{
	tier_asked(lane, index_block(lane->index, id));
	if (policy_has(lane->policy, id))
		policy_use(lane->policy, id, index_key_hash(lane->index, id), last);
}

/* ---- pins, and what is waited for ---- */

/* A pin ends up to 67 ms late, and one that would end 9 years after the machine's start then. */
void tier_pin(struct block *b, uint64_t until_ns)
{
	uint64_t until = (until_ns >> PINS_UNIT_SHIFT) +
			 ((until_ns & ((1u << PINS_UNIT_SHIFT) - 1)) != 0);

	b->pinned = until < UINT32_MAX ? (uint32_t)until : UINT32_MAX;
}

uint64_t tier_pin_until_ns(const struct block *b)
{
	return (uint64_t)b->pinned << PINS_UNIT_SHIFT;
}

uint64_t tier_pinned_ns(const struct lane *lane, const struct block *b)
{
	uint64_t until_ns = tier_pin_until_ns(b);

	return until_ns > lane->now_ns ? until_ns - lane->now_ns : 0;
}

int tier_pinned(const struct lane *lane, const struct block *b)
{
	return tier_pinned_ns(lane, b) > 0;
}

/* Goes round after 4.5 minutes: nothing is asked to wait for longer than store_wait, one minute at most. */
static uint16_t wait_clock(const struct lane *lane)
{
	return (uint16_t)(lane->now_ns >> WAIT_SHIFT);
}

void tier_waits_begin(const struct lane *lane, struct block *b)
{
	b->wanted = wait_clock(lane);
}

uint64_t tier_waits_ns(const struct lane *lane, const struct block *b)
{
	return (uint64_t)(uint16_t)(wait_clock(lane) - b->wanted) << WAIT_SHIFT;
}

/* ---- the victim ---- */

struct wanted {
	const struct lane *lane;
	const struct tenant *tenant; /* NULL: any */
	int lost;		     /* for good: nothing may hang on it */
	int orphans;		     /* but that may, when it is not in memory */
	int pinned;		     /* these, too */
};

/* One that recode holds may go: its slot is free when recode sees that. */
static uint32_t held_by_recode(const struct lane *lane, uint32_t id)
{
	return (uint32_t)recode_holds(lane, id);
}

static bool may_go(void *user, uint32_t id)
{
	const struct wanted *w = user;
	const struct block *b = index_block(w->lane->index, id);
	int lost = w->lost || !(b->flags & BLOCK_CLEAN);
	int keeps = w->orphans ? policy_children(w->lane->policy, id) > 0 : lost && b->children;

	return (w->pinned || !tier_pinned(w->lane, b)) && b->refs == held_by_recode(w->lane, id) &&
	       (!w->tenant || w->lane->ns[b->ns]->tenant == w->tenant) && !keeps;
}

/* The coldest of a list that may go. */
static uint32_t first_of(const struct wanted *w, const struct block_list *list)
{
	uint32_t id = list->head;

	for (unsigned n = 0; id != BLOCK_NONE && n < SCAN_MAX; n++) {
		if (may_go((void *)w, id))
			return id;
		id = block_list_next(w->lane->index, id);
	}
	return BLOCK_NONE;
}

/*
 * Without a leaf that may go: the coldest of a list.  When it would be lost, one without children in memory: those on
 * NVMe, or on their way, are lost with it, but something can be stored.
 */
static uint32_t coldest_of(const struct wanted *w, const struct block_list *list)
{
	const struct wanted second = { .lane = w->lane, .tenant = w->tenant, .orphans = 1 };
	uint32_t id = first_of(w, list);

	return id != BLOCK_NONE ? id : first_of(&second, list);
}

static uint32_t coldest_listed(const struct wanted *w, enum tier_place place)
{
	const struct lane *lane = w->lane;
	uint32_t id;

	if (place != TIER_PLACE_CLEAN)
		return coldest_of(w, place == TIER_PLACE_GPU ? &lane->gpu_cold : &lane->dirty);
	id = coldest_of(w, &lane->clean);
	return id != BLOCK_NONE ? id : coldest_of(w, &lane->droppable);
}

static uint32_t victim(const struct wanted *w, uint32_t places)
{
	uint32_t groups = w->tenant ? 1u << group_of(w->tenant) : POLICY_ALL;
	uint32_t id = policy_victim(w->lane->policy, places, groups, may_go, (void *)w);

	for (unsigned place = 0; id == POLICY_NONE && place < TIER_PLACE_NVME; place++)
		if (places >> place & 1)
			id = coldest_listed(w, (enum tier_place)place);
	return id;
}

uint32_t tier_victim(const struct lane *lane, enum tier_place place)
{
	const struct wanted w = { .lane = lane, .lost = place != TIER_PLACE_CLEAN };

	return victim(&w, 1u << place);
}

/*
 * What would be given up anyway goes first.  A clean leaf of the memory may have children on NVMe: these, or others, go
 * before it.
 */
static uint32_t victim_lost(const struct wanted *w)
{
	uint32_t id = first_of(w, &w->lane->droppable);

	if (id == BLOCK_NONE)
		id = victim(w, POLICY_ALL & ~(1u << TIER_PLACE_CLEAN));
	return id != BLOCK_NONE ? id : victim(w, 1u << TIER_PLACE_CLEAN);
}

uint32_t tier_victim_lost(const struct lane *lane, const struct tenant *tenant)
{
	return victim_lost(&(struct wanted){ .lane = lane, .tenant = tenant, .lost = 1 });
}

uint32_t tier_victim_pinned(const struct lane *lane, const struct tenant *tenant)
{
	return victim_lost(
		&(struct wanted){ .lane = lane, .tenant = tenant, .lost = 1, .pinned = 1 });
}

/* ---- what NVMe keeps ---- */

/* Of equals the later one in its sequence is worth less, for it is worth nothing without the others. */
static float score(const struct lane *lane, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);
	float position = b->position == CODEC_POSITION_UNKNOWN ? 0 : (float)b->position;

	return log2f(policy_worth(lane->policy, id)) -
	       POSITION_WEIGHT * position / (position + POSITION_HALF);
}

/*
 * The bar moves so that KEPT of those asked about are above it, whatever their worths are: up by each that is, down by
 * each that is not.
 */
int tier_policy_keeps(struct lane *lane, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);
	float its;
	int keeps;

	if (!policy_has(lane->policy, id))
		return 0; /* nobody can find it */
	if (b->refs || tier_pinned(lane, b) || policy_children(lane->policy, id))
		return 1;
	if (lane->ns[b->ns]->plan_drops)
		return 0; /* its engine computes it sooner */
	its = score(lane, id);
	if (!lane->keeps_asked++)
		lane->keeps_bar = its;
	keeps = its > lane->keeps_bar;
	lane->keeps_bar += keeps ? KEPT_STEP * (1 - KEPT) : -KEPT_STEP * KEPT;
	return keeps;
}
