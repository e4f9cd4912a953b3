/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c - slots, spans and classes of the arena.  Lane-only.  Where the memory comes from is in
 * pool_arena.c.
 *
 * The arena is cut into slabs, and a slab by halves into spans (a buddy system): a span is a power of two
 * of units, a unit is 64 granules, a slab is the largest span.  All slots of a span are of one class.
 *
 * A class is a slot size: a span's n-th part, rounded down to the granule, with n from 17 to 32 in the
 * span that is then the smallest possible one, and from 1 to 32 in a slab.  Neighbouring classes so differ
 * by 3 to 6 % for sizes of at most 1/16 slab, and a slot is on average 2 to 3 % larger than what was asked
 * for.  Larger ones waste more, up to a half just above 1/2 slab: which is why a slab is 1/64 of the arena
 * by default.  That small classes live in small spans is what keeps many classes from holding on to
 * a slab each: it costs them a few slots, not a few per cent of the arena.
 *
 * Spans of a class with free slots are on its lists, by fullness in quarters; the fullest is taken first,
 * so that the others may run empty and serve another class.  Slots of a span are handed out
 * last-in-first-out, then in address order where none has been before: memory that was never needed is
 * never touched.
 *
 * Where a slot comes from, in this order: a partial span of the class; while the class has no span, one of
 * a class whose slots are up to 1/16 larger; a new span; one of a class up to 1/8 larger; a new span that
 * is smaller than it should be, and wastes part of a slot at its end.
 *
 * Fill, for the hysteresis: counting the spans in use would refuse for ever (once all are in use,
 * evictions seldom empty one), counting the bytes asked for would never see a full pool.  Slots that are
 * taken, each with 1/n of its span, reach 100 % exactly when nothing is free.  Free slots of a class that
 * nobody asks for count as room all the same: then pool_alloc() says -ENOSPC below full_percent, and
 * pool_sparse_owners() is the way out.
 */
#include "daemon/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/pool_state.h"

#define SLAB_BYTES_MIN (1ull << 20)
#define SLAB_BYTES_MAX (64ull << 20) /* of the slab size chosen here; options may say more */
#define GRANULE_BYTES_MIN 64u
#define UNIT_SHIFT 6u	      /* granules per unit */
#define SPAN_SLOTS_MAX 32u    /* in the span that a class prefers, above one granule */
#define BORROW_PART 8u	      /* a slot may be up to 1/8 larger than the class's own */
#define BORROW_FIRST_PART 16u /* while there is room for a span of its own: 1/16 */

static bool is_power_of_two(uint64_t n)
{
	return n && !(n & (n - 1));
}

static uint32_t log2_of(uint64_t n)
{
	return (uint32_t)__builtin_ctzll(n);
}

/* ---- making ---- */

static uint64_t choose_slab_bytes(uint64_t bytes)
{
	uint64_t slab = SLAB_BYTES_MIN;

	while (slab < SLAB_BYTES_MAX && slab * 2 <= bytes / 64)
		slab *= 2;
	return slab;
}

/* Fill in pool->classes, or only count them when it is NULL. */
static uint32_t build_classes(struct pool *pool)
{
	uint32_t count = 0, last = 0;

	for (uint32_t order = 0; order <= pool->order_max; order++) {
		uint32_t granules = pool_span_granules(pool, order);
		uint32_t n = order ? SPAN_SLOTS_MAX : granules;
		uint32_t n_min = order < pool->order_max ? SPAN_SLOTS_MAX / 2 + 1 : 1;

		/* Of all n with the same slot, the first and largest. */
		for (; n >= n_min; n--) {
			uint32_t slot = granules / n;

			if (slot <= last)
				continue;
			if (pool->classes) {
				struct pool_class *c = &pool->classes[count];

				c->slot_granules = slot;
				c->order = order;
				c->slot_bytes = (uint64_t)slot << pool->granule_shift;
				memset(c->partial, 0xff, sizeof(c->partial));
			}
			last = slot;
			count++;
		}
	}
	return count;
}

static int check_options(const struct pool_options *o, uint64_t *ret_slab_bytes)
{
	uint64_t slab = o->slab_bytes ? o->slab_bytes : choose_slab_bytes(o->bytes);

	if (!is_power_of_two(slab) || !is_power_of_two(o->granule_bytes))
		return -EINVAL;
	if (o->granule_bytes < GRANULE_BYTES_MIN || o->granule_bytes > slab ||
	    slab > POOL_PIECE_BYTES)
		return -EINVAL;
	if (o->bytes < slab)
		return -EINVAL;
	/* A handle is the slot's offset in granules, and POOL_NONE is none. */
	if (o->bytes / o->granule_bytes >= POOL_NONE)
		return -EINVAL;
	*ret_slab_bytes = slab;
	return 0;
}

static int make_tables(struct pool *pool)
{
	const uint64_t units = (uint64_t)pool->slabs_count << pool->order_max;
	const uint64_t granules = units << pool->unit_shift;
	struct pool_arena_options meta = { .numa_node = -1 };
	int r;

	pool->classes_count = build_classes(pool);
	assert(pool->classes_count > 0 && pool->classes_count < POOL_CLASS_NONE);
	pool->classes = calloc(pool->classes_count, sizeof(*pool->classes));
	pool->slab_live_bytes = calloc(pool->slabs_count, sizeof(*pool->slab_live_bytes));
	if (!pool->classes || !pool->slab_live_bytes)
		return -ENOMEM;
	(void)build_classes(pool);
	memset(pool->free_spans, 0xff, sizeof(pool->free_spans));

	meta.bytes = granules * sizeof(*pool->meta) + units * (sizeof(*pool->spans) + 1);
	r = pool_arena_init(&pool->meta_arena, &meta);
	if (r < 0)
		return r;
	pool->meta = (struct pool_slot_meta *)(void *)pool->meta_arena.base;
	pool->spans = (struct pool_span *)(void *)(pool->meta + granules);
	pool->unit_order = (uint8_t *)(pool->spans + units);
	return 0;
}

int pool_new(const struct pool_options *options, struct pool **ret_pool)
{
	struct pool_arena_options arena = { 0 };
	struct pool *pool;
	uint64_t slab_bytes;
	uint32_t shift;
	int r;

	r = check_options(options, &slab_bytes);
	if (r < 0)
		return r;
	pool = calloc(1, sizeof(*pool));
	if (!pool)
		return -ENOMEM;
	pool->granule_shift = log2_of(options->granule_bytes);
	shift = log2_of(slab_bytes) - pool->granule_shift;
	pool->unit_shift = shift < UNIT_SHIFT ? shift : UNIT_SHIFT;
	pool->order_max = shift - pool->unit_shift;
	assert(pool->order_max < POOL_ORDERS_MAX);
	pool->slabs_count = (uint32_t)(options->bytes / slab_bytes);
	pool->usage.bytes = pool->slabs_count * slab_bytes;

	r = make_tables(pool);
	if (r < 0)
		goto fail;
	if (options->foreign) {
		pool->base = options->foreign;
		*ret_pool = pool;
		return 0;
	}
	arena.bytes = pool->usage.bytes;
	arena.align_bytes = options->granule_bytes;
	arena.numa_node = options->numa_node;
	arena.lock = options->lock;
	arena.populate = options->populate;
	arena.huge = true;
	arena.name = options->name;
	arena.fd = options->fd;
	r = pool_arena_init(&pool->arena, &arena);
	if (r < 0)
		goto fail;
	pool->base = pool->arena.base;
	*ret_pool = pool;
	return 0;
fail:
	(void)pool_free(pool);
	return r;
}

struct pool *pool_free(struct pool *pool)
{
	if (!pool)
		return NULL;
	assert(pool->usage.slots == 0);
	assert(pool->usage.used_bytes == 0 && pool->usage.slot_bytes == 0);
	assert(pool->usage.slab_bytes == 0 && pool->share_bytes == 0);
	pool_arena_deinit(&pool->arena);
	pool_arena_deinit(&pool->meta_arena);
	free(pool->classes);
	free(pool->slab_live_bytes);
	free(pool);
	return NULL;
}

/* ---- free spans ---- */

void pool_free_span_push(struct pool *pool, uint32_t unit, uint32_t order)
{
	struct pool_span *s = &pool->spans[unit];

	assert(!s->is_free);
	s->prev = POOL_NONE;
	s->next = pool->free_spans[order];
	if (s->next != POOL_NONE)
		pool->spans[s->next].prev = unit;
	pool->free_spans[order] = unit;
	s->class_idx = POOL_CLASS_NONE;
	s->order = (uint8_t)order;
	s->is_free = true;
}

static void free_span_remove(struct pool *pool, uint32_t unit)
{
	struct pool_span *s = &pool->spans[unit];

	assert(s->is_free);
	if (s->prev != POOL_NONE)
		pool->spans[s->prev].next = s->next;
	else
		pool->free_spans[s->order] = s->next;
	if (s->next != POOL_NONE)
		pool->spans[s->next].prev = s->prev;
	s->is_free = false;
}

/* The smallest free span of at least this order, cut down to it; POOL_NONE. */
static uint32_t free_span_take(struct pool *pool, uint32_t order)
{
	uint32_t have = order, unit = POOL_NONE;

	while (have < pool->order_max && pool->free_spans[have] == POOL_NONE)
		have++;
	if (pool->free_spans[have] != POOL_NONE) {
		unit = pool->free_spans[have];
		free_span_remove(pool, unit);
	} else if (pool->slabs_fresh < pool->slabs_count) {
		unit = pool->slabs_fresh++ << pool->order_max;
	} else {
		return POOL_NONE;
	}
	while (have > order) {
		have--;
		pool_free_span_push(pool, unit + (1u << have), have);
	}
	return unit;
}

/* Joined with its other half as long as that is free too. */
static void free_span_give(struct pool *pool, uint32_t unit, uint32_t order)
{
	while (order < pool->order_max) {
		uint32_t other = unit ^ (1u << order);

		if (!pool->spans[other].is_free || pool->spans[other].order != order)
			break;
		free_span_remove(pool, other);
		unit &= ~(1u << order);
		order++;
	}
	pool_free_span_push(pool, unit, order);
}

/* ---- spans of a class ---- */

static void list_remove(struct pool *pool, uint32_t unit)
{
	struct pool_span *s = &pool->spans[unit];
	struct pool_class *c = &pool->classes[s->class_idx];

	assert(s->group < POOL_GROUPS);
	if (s->prev != POOL_NONE)
		pool->spans[s->prev].next = s->next;
	else
		c->partial[s->group] = s->next;
	if (s->next != POOL_NONE)
		pool->spans[s->next].prev = s->prev;
	s->group = POOL_GROUPS;
}

static void list_push(struct pool *pool, uint32_t unit, uint32_t group)
{
	struct pool_span *s = &pool->spans[unit];
	uint32_t *head = &pool->classes[s->class_idx].partial[group];

	assert(s->group == POOL_GROUPS && group < POOL_GROUPS);
	s->prev = POOL_NONE;
	s->next = *head;
	if (*head != POOL_NONE)
		pool->spans[*head].prev = unit;
	*head = unit;
	s->group = (uint8_t)group;
}

void pool_regroup(struct pool *pool, uint32_t unit)
{
	struct pool_span *s = &pool->spans[unit];
	uint32_t group = POOL_GROUPS;

	assert(s->live > 0 && s->live <= s->slots);
	if (s->live < s->slots)
		group = (uint32_t)((uint64_t)s->live * POOL_GROUPS / s->slots);
	if (group == s->group)
		return;
	if (s->group < POOL_GROUPS)
		list_remove(pool, unit);
	if (group < POOL_GROUPS)
		list_push(pool, unit, group);
}

void pool_span_begin(struct pool *pool, uint32_t unit, uint32_t class_idx, uint32_t order)
{
	struct pool_class *c = &pool->classes[class_idx];
	struct pool_span *s = &pool->spans[unit];

	*s = (struct pool_span){ .prev = POOL_NONE,
				 .next = POOL_NONE,
				 .free = POOL_NONE,
				 .class_idx = (uint16_t)class_idx,
				 .order = (uint8_t)order,
				 .group = POOL_GROUPS };
	s->slots = pool_span_granules(pool, order) / c->slot_granules;
	assert(s->slots > 0);
	c->spans++;
	memset(pool->unit_order + unit, (int)order + 1, (size_t)1 << order);
	pool->usage.slab_bytes += pool_span_bytes(pool, order);
}

/* A new span for the class, on no list yet; POOL_NONE. */
static uint32_t span_new(struct pool *pool, uint32_t class_idx, uint32_t order)
{
	uint32_t unit = free_span_take(pool, order);

	if (unit != POOL_NONE)
		pool_span_begin(pool, unit, class_idx, order);
	return unit;
}

static void span_free(struct pool *pool, uint32_t unit)
{
	struct pool_span *s = &pool->spans[unit];

	assert(s->live == 0 && s->class_idx != POOL_CLASS_NONE &&
	       pool->classes[s->class_idx].spans > 0);
	if (s->group < POOL_GROUPS)
		list_remove(pool, unit);
	pool->classes[s->class_idx].spans--;
	pool->usage.slab_bytes -= pool_span_bytes(pool, s->order);
	memset(pool->unit_order + unit, 0, (size_t)1 << s->order);
	free_span_give(pool, unit, s->order);
}

/* ---- slots ---- */

/* The smallest class whose slot takes `bytes`, which fit in a slab. */
static uint32_t class_for(const struct pool *pool, uint64_t bytes)
{
	uint32_t low = 0, high = pool->classes_count - 1;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (pool->classes[mid].slot_bytes >= bytes)
			high = mid;
		else
			low = mid + 1;
	}
	assert(pool->classes[low].slot_bytes >= bytes);
	return low;
}

static uint32_t partial_of(const struct pool *pool, uint32_t class_idx)
{
	for (uint32_t g = POOL_GROUPS; g-- > 0;)
		if (pool->classes[class_idx].partial[g] != POOL_NONE)
			return pool->classes[class_idx].partial[g];
	return POOL_NONE;
}

/* Of a class whose slots are little larger. */
static uint32_t borrow(const struct pool *pool, uint32_t own, uint32_t part)
{
	const uint64_t limit = pool->classes[own].slot_bytes + pool->classes[own].slot_bytes / part;
	uint32_t unit = POOL_NONE;

	for (uint32_t c = own + 1; unit == POOL_NONE && c < pool->classes_count; c++) {
		if (pool->classes[c].slot_bytes > limit)
			break;
		unit = partial_of(pool, c);
	}
	return unit;
}

/* A span that has room for `bytes`; the order of attempts is explained at the top. */
static uint32_t find_span(struct pool *pool, uint64_t bytes)
{
	const uint32_t own = class_for(pool, bytes);
	const struct pool_class *c = &pool->classes[own];
	uint32_t unit;

	unit = partial_of(pool, own);
	if (unit == POOL_NONE && c->spans == 0)
		unit = borrow(pool, own, BORROW_FIRST_PART);
	if (unit == POOL_NONE)
		unit = span_new(pool, own, c->order);
	if (unit == POOL_NONE)
		unit = borrow(pool, own, BORROW_PART);
	for (uint32_t order = c->order; unit == POOL_NONE && order-- > 0;) {
		if (pool_span_granules(pool, order) < c->slot_granules)
			break;
		unit = span_new(pool, own, order);
	}
	return unit;
}

void pool_slot_taken(struct pool *pool, uint32_t unit, uint32_t index, uint32_t owner,
		     uint64_t bytes)
{
	struct pool_slot_meta *m = pool_meta_of(pool, unit, index);
	struct pool_span *s = &pool->spans[unit];
	uint64_t slot_bytes = pool->classes[s->class_idx].slot_bytes;

	assert(m->bytes == 0 && bytes > 0 && bytes <= slot_bytes);
	m->owner = owner;
	m->bytes = (uint32_t)bytes;
	s->live++;
	pool->share_bytes += pool_span_bytes(pool, s->order) / s->slots;
	pool->slab_live_bytes[unit >> pool->order_max] += slot_bytes;
	pool->usage.used_bytes += bytes;
	pool->usage.slot_bytes += slot_bytes;
	pool->usage.slots++;
}

int pool_alloc(struct pool *pool, uint64_t bytes, uint32_t owner, uint32_t *ret_slot)
{
	uint32_t unit, index;
	struct pool_span *s;

	assert(bytes > 0);
	if (bytes > pool_largest_bytes(pool))
		return -EFBIG;
	unit = find_span(pool, bytes);
	if (unit == POOL_NONE)
		return -ENOSPC;

	s = &pool->spans[unit];
	if (s->free != POOL_NONE) {
		index = s->free;
		assert(index < s->fresh);
		s->free = pool_meta_of(pool, unit, index)->owner;
	} else {
		assert(s->fresh < s->slots);
		index = s->fresh++;
	}
	pool_slot_taken(pool, unit, index, owner, bytes);
	pool_regroup(pool, unit);
	*ret_slot = (unit << pool->unit_shift) + index * pool->classes[s->class_idx].slot_granules;
	return 0;
}

struct place {
	uint32_t unit, index;
	struct pool_span *span;
	const struct pool_class *size_class;
	struct pool_slot_meta *meta;
};

/* Handles are ours alone: one that is not of a live slot is a bug of the caller. */
static struct place place_of(const struct pool *pool, uint32_t slot)
{
	uint32_t within, unit = slot >> pool->unit_shift;
	struct place p;

	assert(slot != POOL_NONE && unit >> pool->order_max < pool->slabs_count);
	p.unit = pool_span_at(pool, unit);
	assert(p.unit != POOL_NONE);
	p.span = &pool->spans[p.unit];
	assert(p.span->class_idx != POOL_CLASS_NONE);
	p.size_class = &pool->classes[p.span->class_idx];
	within = slot - (p.unit << pool->unit_shift);
	p.index = within / p.size_class->slot_granules;
	assert(p.index * p.size_class->slot_granules == within && p.index < p.span->fresh);
	p.meta = pool_meta_of(pool, p.unit, p.index);
	assert(p.meta->bytes > 0);
	return p;
}

void pool_release(struct pool *pool, uint32_t slot)
{
	struct place p = place_of(pool, slot);
	struct pool_span *s = p.span;

	assert(s->live > 0 && pool->usage.slots > 0);
	pool->share_bytes -= pool_span_bytes(pool, s->order) / s->slots;
	pool->slab_live_bytes[p.unit >> pool->order_max] -= p.size_class->slot_bytes;
	pool->usage.used_bytes -= p.meta->bytes;
	pool->usage.slot_bytes -= p.size_class->slot_bytes;
	pool->usage.slots--;

	p.meta->bytes = 0;
	p.meta->owner = s->free;
	s->free = p.index;
	if (--s->live == 0)
		span_free(pool, p.unit);
	else
		pool_regroup(pool, p.unit);
}

void *pool_ptr(const struct pool *pool, uint32_t slot)
{
	(void)place_of(pool, slot);
	return pool->base + ((uint64_t)slot << pool->granule_shift);
}

uint64_t pool_slot_bytes(const struct pool *pool, uint32_t slot)
{
	return place_of(pool, slot).size_class->slot_bytes;
}

uint32_t pool_owner(const struct pool *pool, uint32_t slot)
{
	return place_of(pool, slot).meta->owner;
}

void pool_set_owner(struct pool *pool, uint32_t slot, uint32_t owner)
{
	place_of(pool, slot).meta->owner = owner;
}

uint64_t pool_largest_bytes(const struct pool *pool)
{
	return pool_span_bytes(pool, pool->order_max);
}

/* ---- fullness ---- */

/* Bytes taken in the spans that lie in this window, or around it. */
static uint64_t window_live_bytes(const struct pool *pool, uint32_t unit, uint32_t order)
{
	uint64_t bytes = 0;

	for (uint32_t end = unit + (1u << order); unit < end;) {
		uint32_t first = pool_span_at(pool, unit);

		if (first == POOL_NONE) {
			unit++;
			continue;
		}
		bytes += pool->spans[first].live *
			 pool->classes[pool->spans[first].class_idx].slot_bytes;
		unit = first + (1u << pool->spans[first].order);
	}
	return bytes;
}

static unsigned window_owners(const struct pool *pool, uint32_t unit, uint32_t order,
			      uint32_t *ret_owners, unsigned max)
{
	unsigned count = 0;

	for (uint32_t end = unit + (1u << order); unit < end && count < max;) {
		uint32_t first = pool_span_at(pool, unit);

		if (first == POOL_NONE) {
			unit++;
			continue;
		}
		for (uint32_t i = 0; i < pool->spans[first].fresh && count < max; i++)
			if (pool_meta_of(pool, first, i)->bytes)
				ret_owners[count++] = pool_meta_of(pool, first, i)->owner;
		unit = first + (1u << pool->spans[first].order);
	}
	return count;
}

unsigned pool_sparse_owners(const struct pool *pool, uint64_t bytes, uint32_t *ret_owners,
			    unsigned max)
{
	uint64_t least = UINT64_MAX;
	uint32_t slab = POOL_NONE, unit = POOL_NONE, order;

	assert(bytes > 0);
	if (bytes > pool_largest_bytes(pool))
		return 0;
	order = pool->classes[class_for(pool, bytes)].order;
	for (uint32_t i = 0; i < pool->slabs_fresh; i++) {
		if (!pool->slab_live_bytes[i] || pool->slab_live_bytes[i] >= least)
			continue;
		least = pool->slab_live_bytes[i];
		slab = i;
	}
	if (slab == POOL_NONE)
		return 0;
	/* In the emptiest slab, the emptiest window that could become the span that is needed. */
	least = UINT64_MAX;
	for (uint32_t i = 0; i < 1u << (pool->order_max - order); i++) {
		uint32_t first = (slab << pool->order_max) + (i << order);
		uint64_t live = window_live_bytes(pool, first, order);

		if (live && live < least) {
			least = live;
			unit = first;
		}
	}
	assert(unit != POOL_NONE);
	return window_owners(pool, unit, order, ret_owners, max);
}

void pool_usage(const struct pool *pool, struct pool_usage *ret)
{
	*ret = pool->usage;
}

int pool_accepts(struct pool *pool, uint32_t full_percent, uint32_t accept_percent)
{
	/* In 1/100 slabs' bytes: no overflow below 2^57 bytes, and no division. */
	const uint64_t fill = pool->share_bytes * 100;

	assert(accept_percent <= full_percent);
	if (fill >= pool->usage.bytes * full_percent)
		pool->refusing = true;
	else if (fill < pool->usage.bytes * accept_percent)
		pool->refusing = false;
	return !pool->refusing;
}

/* ---- for io_uring ---- */

unsigned pool_iovecs(const struct pool *pool, struct iovec *ret_iov, unsigned max)
{
	unsigned count = 0;

	for (uint64_t off = 0; off < pool->usage.bytes; off += POOL_PIECE_BYTES, count++) {
		uint64_t left = pool->usage.bytes - off;

		if (count >= max)
			continue;
		ret_iov[count].iov_base = pool->base + off;
		ret_iov[count].iov_len = (size_t)(left < POOL_PIECE_BYTES ? left
									  : POOL_PIECE_BYTES);
	}
	return count;
}

int pool_fd(const struct pool *pool)
{
	return pool->arena.fd - 1;
}

unsigned pool_iovec_index(const struct pool *pool, uint32_t slot)
{
	(void)place_of(pool, slot);
	return (unsigned)(((uint64_t)slot << pool->granule_shift) / POOL_PIECE_BYTES);
}
