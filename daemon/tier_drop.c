/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_drop.c - blocks that their engine computes sooner than NVMe brings them back (plan_drops): when memory is short
 * they are given up, as what is on NVMe already is, and not written.  They have a list of their own beside `dirty`,
 * so that it is known at any time how much room can be made at once.  When the plan changes its mind of a
 * namespace, the index is gone through, a part in each turn, and its blocks change lists; a block that is put
 * on a list meanwhile is put on the right one.
 */
#include "daemon/lane_state.h"

#define SORT_BATCH 4096u /* entries of the index looked at in one turn: less than 0.1 ms */

void tier_sort(struct lane *lane)
{
	lane->sort_left = index_end(lane->index);
}

static int is_elsewhere(const struct lane *lane, const struct block *b)
{
	return b->state == BLOCK_RESIDENT && b->flags & BLOCK_LISTED && !(b->flags & BLOCK_CLEAN) &&
	       index_gpu_slot(lane->index, b) == POOL_NONE &&
	       b->droppable != lane->ns[b->ns]->plan_drops;
}

unsigned tier_sort_run(struct lane *lane)
{
	uint32_t end = index_end(lane->index);
	unsigned n = 0;

	for (; lane->sort_left && n < SORT_BATCH; n++, lane->sort_left--) {
		lane->sort_next = lane->sort_next + 1 < end ? lane->sort_next + 1 : 0;
		if (is_elsewhere(lane, index_block(lane->index, lane->sort_next)))
			tier_relist(lane, lane->sort_next);
	}
	return n;
}
