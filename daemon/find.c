/* SPDX-License-Identifier: Apache-2.0 */
/*
 * find.c - where a block is, and what would bring it back: an operator's question, answered from the index.  Lane
 * only.  Looking is no use of the block.
 */
#include "daemon/lane_state.h"

static enum lane_where where(const struct block *b)
{
	if (b->state == BLOCK_NVME)
		return LANE_WHERE_NVME;
	if (b->state == BLOCK_FETCHING)
		return LANE_WHERE_FETCHING;
	return b->slot == POOL_NONE ? LANE_WHERE_GPU : LANE_WHERE_HOST;
}

static void describe(const struct lane *lane, const struct namespace *ns, uint32_t id,
		     struct lane_found *ret)
{
	const struct block *b = index_block(lane->index, id);

	*ret = (struct lane_found){
		.ns = ns->id,
		.where = (uint8_t)where(b),
		.speculator = block_speculator(b),
		.on_nvme = b->state == BLOCK_NVME || b->flags & BLOCK_CLEAN,
		.position = b->position,
		.holders = b->refs,
		.children = b->children,
		.record_bytes = b->record_bytes,
		.pinned_ns = tier_pinned_ns(lane, b),
	};
	plan_of_block(lane, ns, b, ret);
}

void find_answer(const struct lane *lane, struct lane_question *q)
{
	q->count = 0;
	for (uint32_t i = 0; i < lane->ns_end && q->count < LANE_FOUND_MAX; i++) {
		uint32_t id = lane->ns[i] ? index_find(lane->index, i, &q->key) : BLOCK_NONE;

		if (id != BLOCK_NONE && lookup_visible(index_block(lane->index, id)))
			describe(lane, lane->ns[i], id, &q->found[q->count++]);
	}
}
