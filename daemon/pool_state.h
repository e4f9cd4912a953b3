/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_state.h - what pool.c and pool_restore.c share of a pool, and nobody else: how it works is on top of pool.c.
 */
#ifndef SKVCD_DAEMON_POOL_STATE_H
#define SKVCD_DAEMON_POOL_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/pool.h"
#include "daemon/pool_arena.h"

#define POOL_ORDERS_MAX 19u /* units per slab: 2^18 at most (1 GiB of 64 bytes) */
#define POOL_GROUPS 4u	    /* lists of partial spans: by fullness */
#define POOL_CLASS_NONE UINT16_MAX

struct pool_class {
	uint32_t slot_granules;
	uint32_t order; /* of the span it prefers */
	uint64_t slot_bytes;
	uint32_t spans;
	uint32_t partial[POOL_GROUPS]; /* heads of span lists, fullest last */
};

/* Named by its first unit.  Those of units that begin no span are unused. */
struct pool_span {
	uint32_t prev, next; /* of its class's list, or of the free spans of its order */
	uint32_t slots;
	uint32_t live;	    /* slots handed out */
	uint32_t fresh;	    /* slots from here on were never handed out since it is a span */
	uint32_t free;	    /* first free slot below fresh, through meta.owner */
	uint16_t class_idx; /* POOL_CLASS_NONE: free, or unused */
	uint8_t order;
	uint8_t group; /* of the list it is on; POOL_GROUPS: full, on none */
	bool is_free;  /* on the list of free spans of its order */
};

/* Of one slot; bytes is 0 when it is free.  A span's begin at its first granule's. */
struct pool_slot_meta {
	uint32_t owner;
	uint32_t bytes; /* a slab is < 4 GiB */
};

struct pool {
	struct pool_arena arena;      /* owned; empty when the memory is foreign */
	struct pool_arena meta_arena; /* owned: spans, slots' metadata, orders; touched as used */
	struct pool_class *classes;   /* owned; by ascending slot_bytes */
	uint64_t *slab_live_bytes;    /* owned; of the slots taken in each slab */
	uint8_t *base;		      /* the arena's, or foreign: then an address, never followed */
	struct pool_span *spans;      /* [units] */
	struct pool_slot_meta *meta;  /* [granules] */
	uint8_t *unit_order;	      /* [units]: of the span it lies in, + 1; 0: in none */
	uint32_t classes_count;
	uint32_t slabs_count;
	uint32_t slabs_fresh; /* slabs from here on were never used */
	uint32_t order_max;   /* of a slab */
	uint32_t granule_shift;
	uint32_t unit_shift; /* granules per unit; less than UNIT_SHIFT in tiny slabs */
	uint32_t free_spans[POOL_ORDERS_MAX]; /* list heads */
	bool refusing;			      /* hysteresis */
	uint64_t share_bytes;		      /* sum over live slots: 1/n of the span each */
	struct pool_usage usage;
};

static inline uint64_t pool_span_bytes(const struct pool *pool, uint32_t order)
{
	return 1ull << (order + pool->unit_shift + pool->granule_shift);
}

static inline uint32_t pool_span_granules(const struct pool *pool, uint32_t order)
{
	return 1u << (order + pool->unit_shift);
}

static inline struct pool_slot_meta *pool_meta_of(const struct pool *pool, uint32_t unit,
						  uint32_t index)
{
	return &pool->meta[((uint64_t)unit << pool->unit_shift) + index];
}

/* The span that a unit lies in, by its first unit; POOL_NONE. */
static inline uint32_t pool_span_at(const struct pool *pool, uint32_t unit)
{
	return pool->unit_order[unit] ? unit & ~((1u << (pool->unit_order[unit] - 1)) - 1)
				      : POOL_NONE;
}

/* These units, free until now, are a span of this class, on no list yet. */
void pool_span_begin(struct pool *pool, uint32_t unit, uint32_t class_idx, uint32_t order);
void pool_free_span_push(struct pool *pool, uint32_t unit, uint32_t order);
void pool_regroup(struct pool *pool,
		  uint32_t unit); /* after live changed: to the list of its fullness */
/* A slot of the span is taken: counted everywhere. */
void pool_slot_taken(struct pool *pool, uint32_t unit, uint32_t index, uint32_t owner,
		     uint64_t bytes);

#endif
