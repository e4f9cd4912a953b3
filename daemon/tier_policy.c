/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_policy.c - what policy.c is told of the blocks in memory, and what it is asked.
 *
 * A block is in the policy while it is RESIDENT, and held there while it is on none of the lists clean, dirty and
 * gpu_cold.  A lookup, a touch, a store of what is there, and a fetch are uses; loads are not, for a lookup came
 * before.  What moves bytes in the background (spill, recode, move) holds a block and is no use.
 */
#include "daemon/lane_state.h"

#define SCAN_MAX 64u /* blocks looked at when the policy has none */

void tier_policy_enter(struct lane *lane, uint32_t id)
{
	policy_insert(lane->policy, id, index_parent(lane->index, id),
		      index_key_hash(lane->index, id), false);
}

void tier_policy_leave(struct lane *lane, uint32_t id)
{
	if (policy_has(lane->policy, id))
		policy_remove(lane->policy, id, index_parent(lane->index, id),
			      index_key_hash(lane->index, id));
}

void tier_policy_link(struct lane *lane, uint32_t id, uint32_t parent)
{
	if (policy_has(lane->policy, id))
		policy_link(lane->policy, id, parent);
}

/* One that lies on NVMe is used when it has been fetched. */
void tier_use(struct lane *lane, uint32_t id)
{
	if (policy_has(lane->policy, id))
		policy_use(lane->policy, id, index_key_hash(lane->index, id), false);
}

int tier_pinned(const struct lane *lane, const struct block *b)
{
	return b->pin_until_ns > lane->now_ns;
}

/* ---- the victim ---- */

struct wanted {
	const struct lane *lane;
	const struct block_list *list;
	const struct tenant *tenant; /* NULL: any */
};

static int is_wanted(const struct wanted *w, const struct block *b)
{
	return !tier_pinned(w->lane, b) && (!w->tenant || w->lane->ns[b->ns]->tenant == w->tenant);
}

/* Of a queue of the policy, so it is RESIDENT and on one of three lists. */
static bool may_go(void *user, uint32_t id)
{
	const struct wanted *w = user;
	const struct lane *lane = w->lane;
	const struct block *b = index_block(lane->index, id);
	const struct block_list *its = b->gpu_slot != POOL_NONE ? &lane->gpu_cold
				       : b->flags & BLOCK_CLEAN ? &lane->clean
								: &lane->dirty;

	return its == w->list && is_wanted(w, b);
}

/* Without a leaf that may go: the coldest; children before parents when the block would be lost. */
static uint32_t coldest_listed(const struct wanted *w)
{
	uint32_t id = w->list->head, second = BLOCK_NONE;

	for (unsigned n = 0; id != BLOCK_NONE && n < SCAN_MAX; n++) {
		const struct block *b = index_block(w->lane->index, id);

		if (is_wanted(w, b)) {
			if (b->flags & BLOCK_CLEAN || !b->children)
				return id;
			if (second == BLOCK_NONE)
				second = id;
		}
		id = b->next;
	}
	return second;
}

uint32_t tier_coldest(const struct lane *lane, const struct block_list *l,
		      const struct tenant *tenant)
{
	struct wanted w = { lane, l, tenant };
	uint32_t id = l->head == BLOCK_NONE ? POLICY_NONE : policy_victim(lane->policy, may_go, &w);

	_Static_assert(POLICY_NONE == BLOCK_NONE, "one number for none");
	return id == POLICY_NONE ? coldest_listed(&w) : id;
}
