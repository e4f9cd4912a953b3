/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.c - an operator's wish: all blocks of a tenant, of a namespace or of everybody leave, as far as nobody
 * holds them; or a tenant's coldest ones, because its quota was made smaller.  Lane only.  A walk through the
 * index, or from the cold end of the lists, a bounded part in each turn; one wish at a time.
 */
#include <assert.h>

#include "daemon/lane_state.h"

#define EVICT_BATCH 256u     /* entries of the index in one turn */
#define EVICT_TRIM_BATCH 32u /* blocks, each behind a look at the cold end */

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
	       b->pin_until_ns > lane->now_ns;
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

/* As at a store that its tenant has no room for, but nobody waits for it. */
unsigned evict_trim(struct lane *lane)
{
	unsigned n = 0;

	if (!lane->evict.trim)
		return 0;
	for (uint32_t i = 0; i < lane->ns_end && n < EVICT_TRIM_BATCH; i++) {
		const struct tenant *t = lane->ns[i] ? lane->ns[i]->tenant : NULL;
		uint64_t quota = t ? atomic_load_explicit(&t->quota_bytes, memory_order_relaxed)
				   : 0;

		while (quota && n < EVICT_TRIM_BATCH &&
		       atomic_load_explicit(&t->charged_bytes, memory_order_relaxed) > quota &&
		       tier_evict_for_tenant(lane, t))
			n++;
	}
	lane->evict.trim = n >
			   0; /* nothing could go: the rest is held, and goes at the next store */
	return n;
}
