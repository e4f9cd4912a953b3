/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy.c - the queues of leaves, and what is remembered of blocks that went.
 *
 * A class has EPOCHS queues by last use, an epoch being an eighth of what the cache holds.  When a new one
 * begins, the oldest queue is joined to the one of all older.  A leaf is on the queue of its class and
 * epoch while nobody holds it; unlinking needs no more than its neighbours, for the heads are nodes, too.
 */
#include "daemon/policy.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/policy_worth.h"

#define EPOCHS 64u		  /* the first queue is of all that are older than the others */
#define EPOCHS_PER_CACHE 8u	  /* in as many uses as the cache has blocks */
#define SCAN_MAX 256u		  /* blocks asked about for one victim */
#define CLASS_LAST (USES_MAX + 1) /* used once, as the last of its request */
#define USES_MAX 4u
#define CHANCE_MIN (1.0f / 256) /* of a use while it is there, for a block to be stored */
#define GHOST_WAYS 4u
#define GHOSTS_PER_BLOCK 2u /* of the cache, at two bytes each */
#define GHOST_USES 7u	    /* bits of an entry */
#define GHOST_THERE 8u	    /* in every entry */

#define NODE_IN 0x01u
#define NODE_HELD 0x02u
#define NODE_QUEUED 0x04u

struct node {
	uint32_t prev, next;
	uint32_t children; /* that are in the tier, whether this one is or not */
	uint16_t epoch;	   /* of its last use */
	uint8_t class;
	uint8_t uses : 4; /* USES_MAX: as many or more */
	uint8_t flags : 4;
};

_Static_assert(sizeof(struct node) == 16, "memory per indexed block");
_Static_assert(USES_MAX <= GHOST_USES, "an entry holds a count of uses");
_Static_assert(CLASS_LAST < WORTH_CLASSES, "one class for each count of uses, and the last");

struct policy {
	struct node *node; /* owned mapping, nodes_max and the heads */
	uint32_t nodes_max;
	uint32_t count;
	uint16_t *
		ghost; /* owned; sets of GHOST_WAYS, the newest first: hash, uses in the low bits */
	uint32_t ghost_sets;
	struct worth *worth; /* owned */
	uint32_t now;	     /* uses */
	uint32_t epoch;
	uint32_t epoch_uses;
	uint32_t began[EPOCHS];		 /* when the epoch of this queue began */
	uint64_t filled[WORTH_CLASSES];	 /* bit: the queue may have blocks */
	float age_at_end[WORTH_CLASSES]; /* of victims, smoothed; 0: there was none yet */
};

static struct node *map_lazily(uint64_t count)
{
	void *p = mmap(NULL, count * sizeof(struct node), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static uint32_t head_of(const struct policy *p, uint32_t class, uint32_t queue)
{
	return p->nodes_max + class * EPOCHS + queue;
}

int policy_new(uint32_t nodes_max, uint32_t blocks_max, struct policy **ret_policy)
{
	struct policy *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	assert(nodes_max > 0 && nodes_max < POLICY_NONE - WORTH_CLASSES * EPOCHS);
	p->nodes_max = nodes_max;
	p->ghost_sets = (uint32_t)((uint64_t)blocks_max * GHOSTS_PER_BLOCK / GHOST_WAYS) + 1;
	p->ghost = calloc(p->ghost_sets, GHOST_WAYS * sizeof(*p->ghost));
	p->node = map_lazily(nodes_max + WORTH_CLASSES * EPOCHS);
	if (!p->ghost || !p->node || worth_new(blocks_max, &p->worth) < 0)
		return policy_free(p), -ENOMEM;
	for (uint32_t i = head_of(p, 0, 0); i < head_of(p, WORTH_CLASSES, 0); i++)
		p->node[i].prev = p->node[i].next = i;
	p->epoch = EPOCHS;
	p->epoch_uses = 1;
	*ret_policy = p;
	return 0;
}

struct policy *policy_free(struct policy *p)
{
	if (!p)
		return NULL;
	if (p->node)
		munmap(p->node,
		       ((uint64_t)p->nodes_max + WORTH_CLASSES * EPOCHS) * sizeof(*p->node));
	worth_free(p->worth);
	free(p->ghost);
	free(p);
	return NULL;
}

uint64_t policy_bytes(const struct policy *p)
{
	return sizeof(*p) + worth_bytes(p->worth) +
	       (uint64_t)p->ghost_sets * GHOST_WAYS * sizeof(*p->ghost) +
	       ((uint64_t)p->nodes_max + WORTH_CLASSES * EPOCHS) * sizeof(*p->node);
}

static struct node *node_of(const struct policy *p, uint32_t id)
{
	assert(id < p->nodes_max);
	return &p->node[id];
}

bool policy_has(const struct policy *p, uint32_t id)
{
	return node_of(p, id)->flags & NODE_IN;
}

uint32_t policy_children(const struct policy *p, uint32_t id)
{
	return node_of(p, id)->children;
}

uint32_t policy_count(const struct policy *p)
{
	return p->count;
}

/* ---- queues ---- */

/* An epoch is of the newest EPOCHS - 1, or older: queue 0. */
static uint32_t queue_of(const struct policy *p, uint16_t epoch)
{
	uint32_t ago = (uint16_t)(p->epoch - epoch);

	return ago < EPOCHS - 1 ? 1 + (p->epoch - ago) % (EPOCHS - 1) : 0;
}

static void append(struct policy *p, uint32_t head, uint32_t id)
{
	struct node *n = &p->node[id];

	n->prev = p->node[head].prev;
	n->next = head;
	p->node[n->prev].next = id;
	p->node[head].prev = id;
}

/* What may go is on a queue, nothing else is. */
static void requeue(struct policy *p, uint32_t id)
{
	struct node *n = node_of(p, id);
	uint32_t queue = queue_of(p, n->epoch);

	if (n->flags & NODE_QUEUED) {
		p->node[n->prev].next = n->next;
		p->node[n->next].prev = n->prev;
		n->flags &= (uint8_t)~NODE_QUEUED & 0xf;
	}
	if (!(n->flags & NODE_IN) || n->flags & NODE_HELD || n->children)
		return;
	append(p, head_of(p, n->class, queue), id);
	p->filled[n->class] |= 1ull << queue;
	n->flags |= NODE_QUEUED;
}

/* All of one queue behind all of another of its class. */
static void join(struct policy *p, uint32_t to, uint32_t from)
{
	struct node *a = &p->node[to], *b = &p->node[from];

	if (b->next == from)
		return;
	p->node[a->prev].next = b->next;
	p->node[b->next].prev = a->prev;
	p->node[b->prev].next = to;
	a->prev = b->prev;
	b->prev = b->next = from;
}

static void begin_epoch(struct policy *p)
{
	uint32_t queue = 1 + (p->epoch + 1) % (EPOCHS - 1);

	for (uint32_t c = 0; c < WORTH_CLASSES; c++) {
		if (p->filled[c] & 1ull << queue)
			p->filled[c] |= 1;
		p->filled[c] &= ~(1ull << queue);
		join(p, head_of(p, c, 0), head_of(p, c, queue));
	}
	p->began[0] = p->began[queue];
	p->epoch++;
	p->began[queue] = p->now;
	p->epoch_uses = p->count / EPOCHS_PER_CACHE + 1;
	worth_set_blocks(p->worth, p->count);
}

/* ---- what is remembered of blocks that are not there ---- */

static uint16_t ghost_tag(uint64_t hash)
{
	return (uint16_t)(((uint16_t)hash | GHOST_THERE) & ~GHOST_USES);
}

static uint16_t *ghost_set(const struct policy *p, uint64_t hash)
{
	return p->ghost + ((hash >> 32) * p->ghost_sets >> 32) * GHOST_WAYS;
}

/* Its place in the set, GHOST_WAYS when it is not there. */
static uint32_t ghost_find(const struct policy *p, uint64_t hash)
{
	const uint16_t *set = ghost_set(p, hash);
	uint32_t i = 0;

	while (i < GHOST_WAYS && (set[i] & ~GHOST_USES) != ghost_tag(hash))
		i++;
	return i;
}

static uint32_t ghost_uses(const struct policy *p, uint64_t hash)
{
	uint32_t i = ghost_find(p, hash);

	return i < GHOST_WAYS ? ghost_set(p, hash)[i] & GHOST_USES : 0;
}

/* To the front; the last one falls out unless it was there. */
static void ghost_put(struct policy *p, uint64_t hash, uint32_t uses)
{
	uint32_t i = ghost_find(p, hash);
	uint16_t *set = ghost_set(p, hash);

	for (i = i < GHOST_WAYS ? i : GHOST_WAYS - 1; i > 0; i--)
		set[i] = set[i - 1];
	set[0] = (uint16_t)(ghost_tag(hash) | uses);
}

/* ---- the life of a block ---- */

static uint32_t max(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

static uint32_t class_of(uint32_t uses, bool last)
{
	return uses == 1 && last ? CLASS_LAST : uses - 1;
}

static uint32_t one_more(uint32_t uses)
{
	return uses < USES_MAX ? uses + 1 : USES_MAX;
}

static void count_use(struct policy *p, uint64_t hash, uint32_t class)
{
	p->now++;
	if (p->now - p->began[queue_of(p, (uint16_t)p->epoch)] >= p->epoch_uses)
		begin_epoch(p);
	worth_use(p->worth, hash, class, p->now);
}

bool policy_admits(struct policy *p, uint64_t hash, bool last)
{
	uint32_t uses = one_more(ghost_uses(p, hash)), class = class_of(uses, last);

	/* Within the time of a whole cache of uses: what goes earlier may be worth more than it got. */
	if (!p->age_at_end[class] ||
	    worth_chance(p->worth, class, max(p->count, (uint32_t)p->age_at_end[class])) >=
		    CHANCE_MIN)
		return true;
	count_use(p, hash, class);
	ghost_put(p, hash, uses);
	return false;
}

void policy_insert(struct policy *p, uint32_t id, uint32_t parent, uint64_t hash, bool last)
{
	struct node *n = node_of(p, id);

	assert(!(n->flags & NODE_IN) && parent != id);
	n->flags = NODE_IN | NODE_HELD;
	n->uses = ghost_uses(p, hash) & 0xf;
	p->count++;
	policy_use(p, id, hash, last);
	policy_link(p, id, parent);
}

void policy_use(struct policy *p, uint32_t id, uint64_t hash, bool last)
{
	struct node *n = node_of(p, id);

	assert(n->flags & NODE_IN);
	n->uses = one_more(n->uses) & 0xf;
	n->class = (uint8_t)class_of(n->uses, last);
	count_use(p, hash, n->class);
	n->epoch = (uint16_t)p->epoch;
	requeue(p, id);
}

void policy_hold(struct policy *p, uint32_t id)
{
	assert(policy_has(p, id));
	node_of(p, id)->flags |= NODE_HELD;
	requeue(p, id);
}

void policy_unhold(struct policy *p, uint32_t id)
{
	assert(policy_has(p, id));
	node_of(p, id)->flags &= (uint8_t)~NODE_HELD & 0xf;
	requeue(p, id);
}

void policy_link(struct policy *p, uint32_t id, uint32_t parent)
{
	assert(policy_has(p, id) && parent != id);
	if (parent == POLICY_NONE)
		return;
	node_of(p, parent)->children++;
	requeue(p, parent);
}

void policy_remove(struct policy *p, uint32_t id, uint32_t parent, uint64_t hash)
{
	struct node *n = node_of(p, id);

	assert(n->flags & NODE_IN && p->count > 0);
	n->flags &= NODE_QUEUED;
	requeue(p, id);
	p->count--;
	ghost_put(p, hash, n->uses);
	if (parent == POLICY_NONE)
		return;
	assert(node_of(p, parent)->children > 0);
	node_of(p, parent)->children--;
	requeue(p, parent);
}

void policy_reset(struct policy *p, uint32_t id)
{
	assert(!policy_has(p, id));
	*node_of(p, id) = (struct node){ 0 };
}

/* ---- the victim ---- */

/* The first of a queue that may go; *asked counts those that may not. */
static uint32_t first_of(const struct policy *p, uint32_t head, uint32_t *asked,
			 bool (*may_go)(void *user, uint32_t id), void *user)
{
	for (uint32_t id = p->node[head].next; id != head; id = p->node[id].next) {
		if (!may_go || may_go(user, id))
			return id;
		if (++*asked >= SCAN_MAX)
			break;
	}
	return POLICY_NONE;
}

/* The oldest of these queues: the bits from 1 on go round, beginning behind the newest epoch's. */
static uint32_t oldest(const struct policy *p, uint64_t queues)
{
	uint32_t newest = 1 + p->epoch % (EPOCHS - 1);
	uint64_t behind = newest < EPOCHS - 1 ? queues >> (newest + 1) << (newest + 1) : 0;

	if (queues & 1)
		return 0;
	return (uint32_t)__builtin_ctzll(behind ? behind : queues);
}

/* Of the oldest of these queues of a class. */
static uint32_t age_of(const struct policy *p, uint64_t queues)
{
	return p->now - p->began[oldest(p, queues)];
}

/* The class with the least worth at the head of what is left of its queues; WORTH_CLASSES: none. */
static uint32_t least(const struct policy *p, const uint64_t left[WORTH_CLASSES])
{
	uint32_t class = WORTH_CLASSES;
	float worth = 0;

	for (uint32_t c = 0; c < WORTH_CLASSES; c++) {
		float its = left[c] ? worth_of(p->worth, c, age_of(p, left[c])) : 0;

		if (left[c] && (class == WORTH_CLASSES || its < worth)) {
			worth = its;
			class = c;
		}
	}
	return class;
}

/* Over some hundred victims, so that one odd age says little. */
static void count_victim(struct policy *p, uint32_t class, uint32_t age)
{
	float *end = &p->age_at_end[class];

	*end = *end > 0 ? *end + ((float)age - *end) / 256 : (float)age + 1;
}

uint32_t policy_victim(struct policy *p, bool (*may_go)(void *user, uint32_t id), void *user)
{
	uint64_t left[WORTH_CLASSES];
	uint32_t asked = 0;

	for (uint32_t c = 0; c < WORTH_CLASSES; c++)
		left[c] = p->filled[c];
	while (asked < SCAN_MAX) {
		uint32_t class = least(p, left), queue, head, id;

		if (class == WORTH_CLASSES)
			break;
		queue = oldest(p, left[class]);
		head = head_of(p, class, queue);
		id = first_of(p, head, &asked, may_go, user);
		if (id != POLICY_NONE) {
			count_victim(p, class, age_of(p, left[class]));
			return id;
		}
		left[class] &= ~(1ull << queue);
		if (p->node[head].next == head)
			p->filled[class] &= ~(1ull << queue);
	}
	return POLICY_NONE;
}
