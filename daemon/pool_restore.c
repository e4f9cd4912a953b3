/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_restore.c - the slots of a pool written down, and handed out again as they were in the next life of the daemon.
 * Runs before the lane does.  What was written down is not trusted: whatever it says, the pool is a sound one.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/pool_state.h"

static uint32_t units_count(const struct pool *pool)
{
	return pool->slabs_count << pool->order_max;
}

int pool_save_span(const struct pool *pool, uint32_t *cursor, struct pool_saved_span *ret)
{
	const uint32_t end = pool->slabs_fresh << pool->order_max;
	const struct pool_span *s;
	uint32_t unit = *cursor;

	while (unit < end && !pool->unit_order[unit])
		unit++;
	if (unit >= end)
		return 0;
	s = &pool->spans[unit];
	*ret = (struct pool_saved_span){ .unit = unit,
					 .order = s->order,
					 .slot_granules =
						 pool->classes[s->class_idx].slot_granules };
	*cursor = unit + (1u << s->order);
	return 1;
}

/* The class of just this slot; POOL_CLASS_NONE. */
static uint32_t class_of(const struct pool *pool, uint32_t slot_granules)
{
	uint32_t low = 0, high = pool->classes_count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (pool->classes[mid].slot_granules == slot_granules)
			return mid;
		if (pool->classes[mid].slot_granules < slot_granules)
			low = mid + 1;
		else
			high = mid;
	}
	return POOL_CLASS_NONE;
}

int pool_restore_span(struct pool *pool, const struct pool_saved_span *saved)
{
	uint32_t class_idx = class_of(pool, saved->slot_granules), slab;

	if (class_idx == POOL_CLASS_NONE || saved->order > pool->order_max ||
	    saved->unit >= units_count(pool) || saved->unit & ((1u << saved->order) - 1))
		return -EBADMSG;
	if (pool_span_granules(pool, saved->order) < saved->slot_granules)
		return -EBADMSG;
	/* Aligned as spans are: it lies in one slab, and no other one overlaps it in part only. */
	for (uint32_t i = 0; i < 1u << saved->order; i++)
		if (pool->unit_order[saved->unit + i])
			return -EBADMSG;
	pool_span_begin(pool, saved->unit, class_idx, saved->order);
	slab = saved->unit >> pool->order_max;
	if (slab >= pool->slabs_fresh)
		pool->slabs_fresh = slab + 1;
	return 0;
}

int pool_restore_slot(struct pool *pool, uint32_t slot, uint64_t bytes, uint32_t owner)
{
	uint32_t unit = slot >> pool->unit_shift, index, within;
	const struct pool_class *c;
	struct pool_span *s;

	if (slot == POOL_NONE || unit >= units_count(pool))
		return -EBADMSG;
	unit = pool_span_at(pool, unit);
	if (unit == POOL_NONE)
		return -EBADMSG;
	s = &pool->spans[unit];
	c = &pool->classes[s->class_idx];
	within = slot - (unit << pool->unit_shift);
	index = within / c->slot_granules;
	if (index * c->slot_granules != within || index >= s->slots || !bytes ||
	    bytes > c->slot_bytes || pool_meta_of(pool, unit, index)->bytes)
		return -EBADMSG;
	pool_slot_taken(pool, unit, index, owner, bytes);
	if (index >= s->fresh)
		s->fresh = index + 1;
	return 0;
}

/* The slots between those that are taken are free; a span without any is none. */
static void end_span(struct pool *pool, uint32_t unit)
{
	struct pool_span *s = &pool->spans[unit];

	if (!s->live) {
		pool->classes[s->class_idx].spans--;
		pool->usage.slab_bytes -= pool_span_bytes(pool, s->order);
		memset(pool->unit_order + unit, 0, (size_t)1 << s->order);
		s->class_idx = POOL_CLASS_NONE;
		return;
	}
	for (uint32_t i = s->fresh; i-- > 0;) {
		struct pool_slot_meta *m = pool_meta_of(pool, unit, i);

		if (m->bytes)
			continue;
		m->owner = s->free;
		s->free = i;
	}
	pool_regroup(pool, unit);
}

/* Units from..to-1 of a slab as the largest spans that lie there: as if they had been joined one by one. */
static void free_gap(struct pool *pool, uint32_t from, uint32_t to)
{
	while (from < to) {
		uint32_t order = from ? (uint32_t)__builtin_ctz(from) : pool->order_max;

		if (order > pool->order_max)
			order = pool->order_max;
		while ((1u << order) > to - from)
			order--;
		pool_free_span_push(pool, from, order);
		from += 1u << order;
	}
}

void pool_restore_end(struct pool *pool)
{
	const uint32_t end = pool->slabs_fresh << pool->order_max;
	uint32_t gap = 0;

	for (uint32_t unit = 0; unit < end;) {
		uint32_t order = pool->unit_order[unit];

		if (!order) {
			unit++;
			continue;
		}
		end_span(pool, unit);
		if (pool->unit_order[unit]) {
			free_gap(pool, gap, unit);
			gap = unit + (1u << (order - 1));
		}
		unit += 1u << (order - 1);
	}
	free_gap(pool, gap, end);
}
