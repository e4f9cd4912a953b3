/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.c - an operator's wish: all blocks of a tenant, of a namespace or of everybody leave, as far as nobody
 * holds them; or some of a tenant, because its quota was made smaller.  Lane only.  A walk through the
 * index, or from the cold end of the lists, a bounded part in each turn; one wish at a time.
 */
#include <assert.h>

#include "daemon/lane_state.h"
#include "daemon/recode.h"

#define EVICT_BATCH 256u /* entries of the index in one turn */

void evict_begin(struct lane *lane, const struct mail *mail)
{
	struct lane_evict *e = &lane->evict;

	assert(!e->running); /* control asks for one at a time */
	*e = (struct lane_evict){
		.trim = e->trim,
		.running = 1,
		.tenant = mail->subject,
		.ns = mail->object,
		.id = mail->value,
	};
}

static int wanted(const struct lane *lane, const struct block *b)
{
	const struct lane_evict *e = &lane->evict;
	const struct namespace *ns;

	if (b->state != BLOCK_RESIDENT && b->state != BLOCK_NVME && b->state != BLOCK_FETCHING)
		return 0;
	ns = lane->ns[b->ns];
	return (!e->ns || e->ns == ns) && (!e->tenant || e->tenant == ns->tenant);
}

/* What is leased, pinned, on its way or being read stays: its user was promised it. */
static int held(const struct lane *lane, const struct block *b)
{
	return b->refs || b->state == BLOCK_FETCHING || b->flags & BLOCK_WANTED ||
	       tier_pinned(lane, b);
}

unsigned evict_run(struct lane *lane)
{
	struct lane_evict *e = &lane->evict;
	uint32_t end = index_end(lane->index);

	if (!e->running || !recode_make_way(lane)) /* the lane itself is no reason to keep one */
		return 0;
	for (unsigned n = 0; n < EVICT_BATCH && e->next < end; n++, e->next++) {
		const struct block *b = index_block(lane->index, e->next);

		if (!wanted(lane, b))
			continue;
		if (held(lane, b)) {
			e->kept++;
			continue;
		}
		e->blocks++;
		e->bytes += b->record_bytes;
		stats_add(&lane->stats, STAT_EVICTED_BLOCKS, 1);
		tier_forget(lane, e->next);
	}
	if (e->next >= end)
		e->running = 0;
	return 1;
}

/* As after a store that wanted what others had borrowed, but nobody waits for it. */
unsigned evict_trim(struct lane *lane)
{
	unsigned n = lane->evict.trim ? quota_return(lane) : 0;

	lane->evict.trim = n > 0; /* 0: all is well, or held, and goes after the next store */
	return n;
}
