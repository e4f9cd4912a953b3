/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c - slots, slabs and classes of the arena.  Lane-only.  Where the memory comes from is in
 * pool_arena.c.
 *
 * A class is a number n of slots per slab; its slot is slab / n, rounded down to the granule.  Among the
 * possible n those are kept whose slot is at least 1/32 larger than that of the class below (and of the n
 * with equal slots the largest), so a class table has a few hundred entries and a slot is, for sizes of at
 * most 1/16 slab, on average about 3 % larger than what was asked for.  Larger ones waste more: up to a
 * half just above 1/2 slab, which is why the default slab is 1/64 of the arena or 64 MiB.
 *
 * All partial slabs of a class are on one of its lists, by fullness in quarters; the fullest is taken
 * first, so that the others may run empty and serve another class.  Full slabs are on no list.  Slots of a
 * slab are handed out last-in-first-out, then in address order where none has been before: memory that was
 * never needed is never touched.
 *
 * Fill, for the hysteresis: counting the slabs in use would refuse for ever (once all slabs are in use,
 * evictions seldom empty one), counting the bytes asked for would never see a full pool.  Slots that are
 * taken, each with 1/n of its slab, reach 100 % exactly when nothing is free.  Free slots of a class that
 * nobody asks for count as room all the same: then pool_alloc() says -ENOSPC below full_percent, and
 * pool_sparse_owners() is the way out.
 */
#include "daemon/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/pool_arena.h"

#define SLAB_BYTES_MIN (1ull << 20)
#define SLAB_BYTES_MAX (64ull << 20)		/* of the slab size chosen here; options may say more */
#define GRANULE_BYTES_MIN 64u
#define CLASS_STEP 32u				/* slots of neighbouring classes differ by at least 1/32 */
#define BORROW_PART 8u				/* a slot may be up to 1/8 larger than the class's own */
#define GROUPS 4u				/* lists of partial slabs: by fullness */
#define NONE UINT32_MAX
#define CLASS_NONE UINT16_MAX

struct class {
	uint32_t slots;				/* per slab */
	uint32_t slot_granules;
	uint64_t slot_bytes;
	uint64_t share_bytes;			/* slab_bytes / slots: slot and its part of the tail */
	uint32_t partial[GROUPS];		/* heads of slab lists, fullest last */
};

struct slab {
	uint32_t prev, next;			/* of its class's list, or the list of free slabs (next) */
	uint32_t live;				/* slots handed out */
	uint32_t fresh;				/* slots from here on were never handed out since it has its class */
	uint32_t free;				/* first free slot below fresh, through meta.owner */
	uint16_t class;				/* CLASS_NONE: free */
	uint8_t group;				/* of the list it is on; GROUPS: full, on none */
};

/* Of one slot; bytes is 0 when it is free. */
struct slot_meta {
	uint32_t owner;
	uint32_t bytes;				/* a slab is < 4 GiB */
};

struct pool {
	struct pool_arena arena;		/* owned */
	struct pool_arena meta_arena;		/* owned: slot_meta[slabs][slots_max], touched as used */
	struct class *classes;			/* owned; by ascending slot_bytes */
	struct slab *slabs;			/* owned */
	uint8_t *base;
	struct slot_meta *meta;
	uint32_t classes_count;
	uint32_t slabs_count;
	uint32_t slabs_fresh;			/* slabs from here on were never used */
	uint32_t slabs_free;			/* first free slab below that, through next */
	uint32_t slots_max;			/* per slab, of the smallest class */
	uint32_t slab_shift, granule_shift;
	bool refusing;				/* hysteresis */
	uint64_t share_bytes;			/* sum over live slots */
	struct pool_usage usage;
};

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

/*
 * Fill in pool->classes, or only count them when it is NULL.  From one granule per slot upwards; from one
 * slot size to the next in steps that skip every n with the same slot.
 */
static uint32_t build_classes(struct pool *pool)
{
	const uint32_t granules = 1u << (pool->slab_shift - pool->granule_shift);
	uint32_t count = 0, last = 0;

	for (uint32_t n = granules; n > 0;) {
		uint32_t slot = granules / n;

		/* A full slab is always a class: it is what pool_largest_bytes() promises. */
		if (!last || n == 1 || (uint64_t)(slot - last) * CLASS_STEP >= last) {
			if (pool->classes) {
				struct class *c = &pool->classes[count];

				c->slots = n;
				c->slot_granules = slot;
				c->slot_bytes = (uint64_t)slot << pool->granule_shift;
				c->share_bytes = (1ull << pool->slab_shift) / n;
				memset(c->partial, 0xff, sizeof(c->partial));
			}
			last = slot;
			count++;
		}
		n = granules / (slot + 1);	/* the largest n whose slot is larger */
	}
	return count;
}

static int check_options(const struct pool_options *o, uint64_t *ret_slab_bytes)
{
	uint64_t slab = o->slab_bytes ? o->slab_bytes : choose_slab_bytes(o->bytes);

	if (!is_power_of_two(slab) || !is_power_of_two(o->granule_bytes))
		return -EINVAL;
	if (o->granule_bytes < GRANULE_BYTES_MIN || o->granule_bytes > slab || slab > POOL_PIECE_BYTES)
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
	struct pool_arena_options meta = { .numa_node = -1 };
	int r;

	pool->classes_count = build_classes(pool);
	assert(pool->classes_count > 0 && pool->classes_count < CLASS_NONE);
	pool->classes = calloc(pool->classes_count, sizeof(*pool->classes));
	pool->slabs = calloc(pool->slabs_count, sizeof(*pool->slabs));
	if (!pool->classes || !pool->slabs)
		return -ENOMEM;
	(void)build_classes(pool);
	pool->slots_max = pool->classes[0].slots;
	for (uint32_t i = 0; i < pool->slabs_count; i++)
		pool->slabs[i].class = CLASS_NONE;

	meta.bytes = (uint64_t)pool->slabs_count * pool->slots_max * sizeof(*pool->meta);
	r = pool_arena_init(&pool->meta_arena, &meta);
	if (r < 0)
		return r;
	pool->meta = (struct slot_meta *)(void *)pool->meta_arena.base;
	return 0;
}

int pool_new(const struct pool_options *options, struct pool **ret_pool)
{
	struct pool_arena_options arena = { 0 };
	struct pool *pool;
	uint64_t slab_bytes;
	int r;

	r = check_options(options, &slab_bytes);
	if (r < 0)
		return r;
	pool = calloc(1, sizeof(*pool));
	if (!pool)
		return -ENOMEM;
	pool->slab_shift = log2_of(slab_bytes);
	pool->granule_shift = log2_of(options->granule_bytes);
	pool->slabs_count = (uint32_t)(options->bytes >> pool->slab_shift);
	pool->slabs_free = NONE;
	pool->usage.bytes = (uint64_t)pool->slabs_count << pool->slab_shift;

	r = make_tables(pool);
	if (r < 0)
		goto fail;
	arena.bytes = pool->usage.bytes;
	arena.align_bytes = options->granule_bytes;
	arena.numa_node = options->numa_node;
	arena.lock = options->lock;
	arena.huge = true;
	arena.name = options->name;
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
	free(pool->slabs);
	free(pool);
	return NULL;
}

/* ---- slabs and their lists ---- */

static struct slot_meta *meta_of(const struct pool *pool, uint32_t slab, uint32_t index)
{
	return &pool->meta[(uint64_t)slab * pool->slots_max + index];
}

static void list_remove(struct pool *pool, uint32_t id)
{
	struct slab *s = &pool->slabs[id];
	struct class *c = &pool->classes[s->class];

	assert(s->group < GROUPS);
	if (s->prev != NONE)
		pool->slabs[s->prev].next = s->next;
	else
		c->partial[s->group] = s->next;
	if (s->next != NONE)
		pool->slabs[s->next].prev = s->prev;
	s->group = GROUPS;
}

static void list_push(struct pool *pool, uint32_t id, uint32_t group)
{
	struct slab *s = &pool->slabs[id];
	uint32_t *head = &pool->classes[s->class].partial[group];

	assert(s->group == GROUPS && group < GROUPS);
	s->prev = NONE;
	s->next = *head;
	if (*head != NONE)
		pool->slabs[*head].prev = id;
	*head = id;
	s->group = (uint8_t)group;
}

/* After live changed: the slab moves to the list of its fullness. */
static void regroup(struct pool *pool, uint32_t id)
{
	struct slab *s = &pool->slabs[id];
	uint32_t slots = pool->classes[s->class].slots, group = GROUPS;

	assert(s->live > 0 && s->live <= slots);
	if (s->live < slots)
		group = (uint32_t)((uint64_t)s->live * GROUPS / slots);
	if (group == s->group)
		return;
	if (s->group < GROUPS)
		list_remove(pool, id);
	if (group < GROUPS)
		list_push(pool, id, group);
}

/* A slab for the class, used before if there is one; NONE.  It is on no list. */
static uint32_t slab_take(struct pool *pool, uint32_t class)
{
	uint32_t id = pool->slabs_free;
	struct slab *s;

	if (id != NONE)
		pool->slabs_free = pool->slabs[id].next;
	else if (pool->slabs_fresh < pool->slabs_count)
		id = pool->slabs_fresh++;
	else
		return NONE;

	s = &pool->slabs[id];
	assert(s->class == CLASS_NONE && s->live == 0);
	*s = (struct slab){ .prev = NONE, .next = NONE, .free = NONE, .class = (uint16_t)class,
			    .group = GROUPS };
	pool->usage.slab_bytes += 1ull << pool->slab_shift;
	return id;
}

static void slab_give_back(struct pool *pool, uint32_t id)
{
	struct slab *s = &pool->slabs[id];

	assert(s->live == 0 && s->class != CLASS_NONE);
	if (s->group < GROUPS)
		list_remove(pool, id);
	s->class = CLASS_NONE;
	s->next = pool->slabs_free;
	pool->slabs_free = id;
	pool->usage.slab_bytes -= 1ull << pool->slab_shift;
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

static uint32_t partial_of(const struct pool *pool, uint32_t class)
{
	for (uint32_t g = GROUPS; g-- > 0;)
		if (pool->classes[class].partial[g] != NONE)
			return pool->classes[class].partial[g];
	return NONE;
}

/* A slab that has room for `bytes`: of its own class, else a free one, else of a class little larger. */
static uint32_t find_slab(struct pool *pool, uint64_t bytes)
{
	const uint32_t own = class_for(pool, bytes);
	const uint64_t limit = pool->classes[own].slot_bytes + pool->classes[own].slot_bytes / BORROW_PART;
	uint32_t id;

	id = partial_of(pool, own);
	if (id == NONE)
		id = slab_take(pool, own);
	for (uint32_t c = own + 1; id == NONE && c < pool->classes_count; c++) {
		if (pool->classes[c].slot_bytes > limit)
			break;
		id = partial_of(pool, c);
	}
	return id;
}

int pool_alloc(struct pool *pool, uint64_t bytes, uint32_t owner, uint32_t *ret_slot)
{
	const struct class *c;
	struct slot_meta *m;
	struct slab *s;
	uint32_t id, index;

	assert(bytes > 0);
	if (bytes > pool_largest_bytes(pool))
		return -EFBIG;
	id = find_slab(pool, bytes);
	if (id == NONE)
		return -ENOSPC;

	s = &pool->slabs[id];
	c = &pool->classes[s->class];
	if (s->free != NONE) {
		index = s->free;
		m = meta_of(pool, id, index);
		assert(m->bytes == 0 && index < s->fresh);
		s->free = m->owner;
	} else {
		assert(s->fresh < c->slots);
		index = s->fresh++;
		m = meta_of(pool, id, index);
	}
	m->owner = owner;
	m->bytes = (uint32_t)bytes;
	s->live++;
	regroup(pool, id);

	pool->share_bytes += c->share_bytes;
	pool->usage.used_bytes += bytes;
	pool->usage.slot_bytes += c->slot_bytes;
	pool->usage.slots++;
	*ret_slot = (id << (pool->slab_shift - pool->granule_shift)) + index * c->slot_granules;
	return 0;
}

struct place {
	uint32_t slab, index;
	const struct class *class;
	struct slot_meta *meta;
};

/* Handles are ours alone: one that is not of a live slot is a bug of the caller. */
static struct place place_of(const struct pool *pool, uint32_t slot)
{
	const uint32_t shift = pool->slab_shift - pool->granule_shift;
	struct place p = { .slab = slot >> shift };
	uint32_t within = slot & ((1u << shift) - 1);
	const struct slab *s;

	assert(slot != POOL_NONE && p.slab < pool->slabs_count);
	s = &pool->slabs[p.slab];
	assert(s->class != CLASS_NONE);
	p.class = &pool->classes[s->class];
	p.index = within / p.class->slot_granules;
	assert(p.index * p.class->slot_granules == within && p.index < s->fresh);
	p.meta = meta_of(pool, p.slab, p.index);
	assert(p.meta->bytes > 0);
	return p;
}

void pool_release(struct pool *pool, uint32_t slot)
{
	struct place p = place_of(pool, slot);
	struct slab *s = &pool->slabs[p.slab];

	assert(s->live > 0 && pool->usage.slots > 0);
	pool->share_bytes -= p.class->share_bytes;
	pool->usage.used_bytes -= p.meta->bytes;
	pool->usage.slot_bytes -= p.class->slot_bytes;
	pool->usage.slots--;

	p.meta->bytes = 0;
	p.meta->owner = s->free;
	s->free = p.index;
	if (--s->live == 0)
		slab_give_back(pool, p.slab);
	else
		regroup(pool, p.slab);
}

void *pool_ptr(const struct pool *pool, uint32_t slot)
{
	(void)place_of(pool, slot);
	return pool->base + ((uint64_t)slot << pool->granule_shift);
}

uint64_t pool_slot_bytes(const struct pool *pool, uint32_t slot)
{
	return place_of(pool, slot).class->slot_bytes;
}

uint32_t pool_owner(const struct pool *pool, uint32_t slot)
{
	return place_of(pool, slot).meta->owner;
}

uint64_t pool_largest_bytes(const struct pool *pool)
{
	return 1ull << pool->slab_shift;
}

/* ---- fullness ---- */

unsigned pool_sparse_owners(const struct pool *pool, uint64_t bytes, uint32_t *ret_owners, unsigned max)
{
	uint64_t best_bytes = UINT64_MAX;
	uint32_t best = NONE, own;
	unsigned count = 0;

	assert(bytes > 0);
	if (bytes > pool_largest_bytes(pool))
		return 0;
	own = class_for(pool, bytes);
	for (uint32_t i = 0; i < pool->slabs_fresh; i++) {
		const struct slab *s = &pool->slabs[i];

		if (s->class == CLASS_NONE || s->class == own)
			continue;
		if (s->live * pool->classes[s->class].share_bytes < best_bytes) {
			best_bytes = s->live * pool->classes[s->class].share_bytes;
			best = i;
		}
	}
	if (best == NONE)
		return 0;
	for (uint32_t i = 0; i < pool->slabs[best].fresh && count < max; i++) {
		const struct slot_meta *m = meta_of(pool, best, i);

		if (m->bytes)
			ret_owners[count++] = m->owner;
	}
	return count;
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
		ret_iov[count].iov_len = (size_t)(left < POOL_PIECE_BYTES ? left : POOL_PIECE_BYTES);
	}
	return count;
}

unsigned pool_iovec_index(const struct pool *pool, uint32_t slot)
{
	(void)place_of(pool, slot);
	return (unsigned)(((uint64_t)slot << pool->granule_shift) / POOL_PIECE_BYTES);
}
