/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_policies.c - the yardsticks of `skvc-bench replay`: LRU, S3-FIFO (SOSP 2023), ARC (FAST 2003), and the
 * offline optimum.  Written to be compared with, not to be fast.
 */
#include "tools/replay_policies.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

const struct replay_policy replay_policies[REPLAY_POLICIES] = {
	{ "lru", "LRU", replay_lru },
	{ "s3fifo", "S3-FIFO", replay_s3fifo },
	{ "arc", "ARC", replay_arc },
	{ "default", "skvcd", replay_daemon },
	{ "optimum", "optimum", replay_optimum },
};

double replay_now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- lists of blocks ---- */

enum where { NOWHERE, A, B, A_GHOST, B_GHOST, LISTS };

struct item {
	uint32_t prev, next;
	uint8_t where; /* enum where */
	uint8_t uses;
};

struct lists {
	const struct replay_trace *t;
	struct item *item; /* owned; the trace's blocks, then a head for each list */
	uint32_t count[LISTS];
	uint32_t capacity;
	uint32_t target; /* of ARC, for list A */
	uint64_t stores;
};

static int lists_init(struct lists *l, const struct replay_trace *t, uint32_t capacity)
{
	*l = (struct lists){ .t = t, .capacity = capacity };
	l->item = calloc((size_t)t->blocks + LISTS, sizeof(*l->item));
	if (!l->item)
		return -ENOMEM;
	for (uint32_t i = t->blocks; i < t->blocks + LISTS; i++)
		l->item[i].prev = l->item[i].next = i;
	return 0;
}

static void move(struct lists *l, uint32_t block, enum where to)
{
	struct item *i = &l->item[block];
	uint32_t head = l->t->blocks + to;

	if (i->where != NOWHERE) {
		l->item[i->prev].next = i->next;
		l->item[i->next].prev = i->prev;
		l->count[i->where]--;
	}
	i->where = (uint8_t)to;
	if (to == NOWHERE)
		return;
	i->prev = l->item[head].prev;
	i->next = head;
	l->item[i->prev].next = block;
	l->item[head].prev = block;
	l->count[to]++;
}

/* The one that is longest on a list that is not empty. */
static uint32_t eldest(const struct lists *l, enum where list)
{
	return l->item[l->t->blocks + list].next;
}

static int is_there(const struct lists *l, uint32_t block)
{
	return l->item[block].where == A || l->item[block].where == B;
}

/* Every request: hits of the leading prefix, then all blocks from the last to the first. */
static int play(const struct replay_trace *t, uint32_t capacity,
		void (*use)(struct lists *l, uint32_t block), struct replay_result *r)
{
	struct lists l;
	double start;

	if (lists_init(&l, t, capacity) < 0)
		return -ENOMEM;
	*r = (struct replay_result){ 0 };
	start = replay_now();
	for (uint32_t i = 0; i < t->requests; i++) {
		uint32_t at = t->first[i];

		for (; at < t->first[i + 1] && is_there(&l, t->block[at]); at++)
			r->hits++;
		for (at = t->first[i + 1]; at > t->first[i]; at--)
			use(&l, t->block[at - 1]);
	}
	r->seconds = replay_now() - start;
	r->stores = l.stores;
	free(l.item);
	return 0;
}

/* ---- LRU ---- */

static void lru_use(struct lists *l, uint32_t block)
{
	if (!is_there(l, block)) {
		l->stores++;
		if (l->count[A] == l->capacity)
			move(l, eldest(l, A), NOWHERE);
	}
	move(l, block, A);
}

int replay_lru(const struct replay_trace *t, uint32_t capacity, struct replay_result *r)
{
	return play(t, capacity, lru_use, r);
}

/* ---- S3-FIFO: A small, B main, A_GHOST ---- */

static void s3fifo_evict_main(struct lists *l)
{
	uint32_t block = eldest(l, B);

	while (l->item[block].uses > 0) {
		l->item[block].uses--;
		move(l, block, B);
		block = eldest(l, B);
	}
	move(l, block, NOWHERE);
}

static void s3fifo_evict(struct lists *l)
{
	uint32_t small_max = l->capacity / 10, block;

	while (l->count[A] > 0 && (l->count[A] > small_max || !l->count[B])) {
		block = eldest(l, A);
		if (l->item[block].uses <= 1) {
			move(l, block, A_GHOST);
			if (l->count[A_GHOST] > l->capacity - small_max)
				move(l, eldest(l, A_GHOST), NOWHERE);
			return;
		}
		l->item[block].uses = 0;
		move(l, block, B);
	}
	s3fifo_evict_main(l);
}

static void s3fifo_use(struct lists *l, uint32_t block)
{
	struct item *i = &l->item[block];
	int again;

	if (is_there(l, block)) {
		if (i->uses < 3)
			i->uses++;
		return;
	}
	again = i->where == A_GHOST;
	move(l, block, NOWHERE);
	while (l->count[A] + l->count[B] >= l->capacity)
		s3fifo_evict(l);
	i->uses = 0;
	move(l, block, again ? B : A);
	l->stores++;
}

int replay_s3fifo(const struct replay_trace *t, uint32_t capacity, struct replay_result *r)
{
	return play(t, capacity, s3fifo_use, r);
}

/* ---- ARC: A used once, B used more often ---- */

static void arc_replace(struct lists *l, int was_in_b)
{
	if (l->count[A] &&
	    (l->count[A] > l->target || (was_in_b && l->count[A] == l->target) || !l->count[B]))
		move(l, eldest(l, A), A_GHOST);
	else
		move(l, eldest(l, B), B_GHOST);
}

/* How much a hit among the ghosts of one list moves the target. */
static uint32_t arc_step(uint32_t mine, uint32_t other)
{
	assert(mine > 0); /* it was found among these */
	return other > mine ? other / mine : 1;
}

/* A block that neither is there nor was lately: room among the ghosts and in the cache. */
static void arc_make_room(struct lists *l)
{
	uint32_t in_a = l->count[A] + l->count[A_GHOST];
	uint32_t all = in_a + l->count[B] + l->count[B_GHOST];

	if (in_a == l->capacity && !l->count[A_GHOST]) {
		move(l, eldest(l, A), NOWHERE);
		return;
	}
	if (in_a == l->capacity)
		move(l, eldest(l, A_GHOST), NOWHERE);
	else if (all >= 2ull * l->capacity)
		move(l, eldest(l, B_GHOST), NOWHERE);
	if (l->count[A] + l->count[B] == l->capacity)
		arc_replace(l, 0);
}

static void arc_use(struct lists *l, uint32_t block)
{
	uint32_t step;

	switch ((enum where)l->item[block].where) {
	case A_GHOST:
		step = arc_step(l->count[A_GHOST], l->count[B_GHOST]);
		l->target = step < l->capacity - l->target ? l->target + step : l->capacity;
		arc_replace(l, 0);
		l->stores++;
		break;
	case B_GHOST:
		step = arc_step(l->count[B_GHOST], l->count[A_GHOST]);
		l->target = step < l->target ? l->target - step : 0;
		arc_replace(l, 1);
		l->stores++;
		break;
	case NOWHERE:
		arc_make_room(l);
		move(l, block, A);
		l->stores++;
		return;
	default:
		break;
	}
	move(l, block, B);
}

int replay_arc(const struct replay_trace *t, uint32_t capacity, struct replay_result *r)
{
	return play(t, capacity, arc_use, r);
}

/* ---- the offline optimum ---- */

/*
 * Belady's: the block goes whose next use is furthest, at once if that is the new one.  A parent is named in
 * every request that names its child, and before it: so the furthest one is a leaf, and the set is always
 * whole prefixes.  No policy that does not know the future can have more hits.
 */
struct optimum {
	const struct replay_trace *t;
	uint32_t *next; /* owned: for each place in the trace, that of the block's next use */
	uint32_t *now;	/* owned: for each block the next use, 0 when it is not there */
	uint64_t *heap; /* owned: next use and block, the furthest on top; stale ones are skipped */
	uint64_t heap_count;
	uint32_t count;
};

static void heap_push(struct optimum *o, uint64_t v)
{
	uint64_t i = o->heap_count++;

	for (; i > 0 && o->heap[(i - 1) / 2] < v; i = (i - 1) / 2)
		o->heap[i] = o->heap[(i - 1) / 2];
	o->heap[i] = v;
}

static uint64_t heap_pop(struct optimum *o)
{
	uint64_t top = o->heap[0], v = o->heap[--o->heap_count], i = 0, child;

	while ((child = 2 * i + 1) < o->heap_count) {
		if (child + 1 < o->heap_count && o->heap[child + 1] > o->heap[child])
			child++;
		if (o->heap[child] <= v)
			break;
		o->heap[i] = o->heap[child];
		i = child;
	}
	o->heap[i] = v;
	return top;
}

static int optimum_init(struct optimum *o, const struct replay_trace *t)
{
	uint32_t named = t->first[t->requests];

	*o = (struct optimum){ .t = t };
	o->next = calloc((size_t)named + 1, sizeof(*o->next));
	o->now = calloc(t->blocks, sizeof(*o->now));
	o->heap = calloc((size_t)named + 1, sizeof(*o->heap));
	if (!o->next || !o->now || !o->heap)
		return -ENOMEM;
	/* Places from 1 on; one that never comes again comes after all, the deeper the later. */
	for (uint32_t at = named; at > 0; at--) {
		uint32_t later = o->now[t->block[at - 1]];

		o->next[at - 1] = later ? later : named + at;
		o->now[t->block[at - 1]] = at;
	}
	for (uint32_t b = 0; b < t->blocks; b++)
		o->now[b] = 0;
	return 0;
}

static void optimum_request(struct optimum *o, uint32_t request, uint32_t capacity,
			    struct replay_result *r)
{
	const struct replay_trace *t = o->t;
	uint32_t at = t->first[request];

	for (; at < t->first[request + 1] && o->now[t->block[at]]; at++)
		r->hits++;
	for (at = t->first[request]; at < t->first[request + 1]; at++) {
		uint32_t block = t->block[at];

		o->count += !o->now[block];
		r->stores += !o->now[block];
		o->now[block] = o->next[at];
		heap_push(o, (uint64_t)o->next[at] << 32 | block);
	}
	while (o->count > capacity) {
		uint64_t v = heap_pop(o);

		if (o->now[(uint32_t)v] != v >> 32)
			continue;
		/* What goes in the request that brought it was never taken in. */
		r->stores -= v >> 32 > t->first[t->requests] + t->first[request];
		o->now[(uint32_t)v] = 0;
		o->count--;
	}
}

int replay_optimum(const struct replay_trace *t, uint32_t capacity, struct replay_result *r)
{
	struct optimum o;
	int e = optimum_init(&o, t);
	double start = replay_now();

	*r = (struct replay_result){ 0 };
	for (uint32_t i = 0; e == 0 && i < t->requests; i++)
		optimum_request(&o, i, capacity, r);
	r->seconds = replay_now() - start;
	free(o.next);
	free(o.now);
	free(o.heap);
	return e;
}
