/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_drop.c - blocks that their engine computes sooner than NVMe brings them back (plan_drops), and those that are
 * longer than a segment: when memory is short they are given up, as what is on NVMe already is, and not written.  They
 * have a list of their own beside `dirty`, so that it is known at any time how much room can be made at once.  When the
 * plan changes its mind of a namespace, the index is gone through, a part in each turn, and its blocks change lists; a
 * block that is put on a list meanwhile is put on the right one.
 */
#include "daemon/lane_state.h"

#define SORT_BATCH 4096u  /* entries of the index looked at in one turn: less than 0.1 ms */
#define RELIST_BATCH 256u /* and so many that change lists */

void tier_sort(struct lane *lane)
{
	lane->sorts = 1;
	lane->sort_next = 0;
}

/* What is pinned cannot be given up: for its slot it has to be written.  But for what no segment has room for. */
int tier_drops(const struct lane *lane, const struct block *b)
{
	if (lane->log && b->record_bytes > nvme_set_record_bytes_max(lane->log))
		return 1;
	return lane->ns[b->ns]->plan_drops && !tier_pinned(lane, b);
}

static int is_elsewhere(const struct lane *lane, const struct block *b)
{
	return b->state == BLOCK_RESIDENT && b->flags & BLOCK_LISTED && !(b->flags & BLOCK_CLEAN) &&
	       index_gpu_slot(lane->index, b) == POOL_NONE && b->droppable != tier_drops(lane, b);
}

unsigned tier_sort_one(struct lane *lane, uint32_t id)
{
	if (!is_elsewhere(lane, index_block(lane->index, id)))
		return 0;
	tier_relist(lane, id);
	return 1;
}

unsigned tier_sort_run(struct lane *lane)
{
	unsigned n = 0, moved = 0;

	while (lane->sorts && n < SORT_BATCH && moved < RELIST_BATCH) {
		const uint32_t id = lane->sort_next;

		if (id >= index_end(lane->index)) {
			lane->sorts = 0;
			break;
		}
		lane->sort_next++; /* before: on the way the plan may change its mind again */
		n++;
		moved += tier_sort_one(lane, id);
	}
	return n;
}
