/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy.c - the queues of leaves, and what is remembered of blocks that went.
 *
 * A class has EPOCHS queues by last use, an epoch being an eighth of what the cache holds.  When a new one
 * begins, the oldest queue is joined to the one of all older.  A leaf is on the queue of its class and
 * epoch while nobody holds it; unlinking needs no more than its neighbours, for the heads are nodes, too.
 * There is such a set of queues, a room, for each place and group; one is made when it is first used.
 */
#include "daemon/policy.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/policy_worth.h"
#include "daemon/util/lazy.h"

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

#define ROOMS (POLICY_PLACES * POLICY_GROUPS)
#define HEADS (ROOMS * WORTH_CLASSES * EPOCHS)

struct node {
	uint32_t prev, next;
	uint32_t children; /* that are in the cache, whether this one is or not */
	uint16_t epoch;	   /* of its last use */
	uint16_t class : 3;
	uint16_t uses : 3; /* USES_MAX: as many or more */
	uint16_t in : 1;
	uint16_t held : 1;
	uint16_t queued : 1;
	uint16_t place : 2;
	uint16_t group : 5;
};

_Static_assert(sizeof(struct node) == 16, "memory per indexed block");
_Static_assert(USES_MAX <= GHOST_USES, "an entry holds a count of uses");
_Static_assert(CLASS_LAST < WORTH_CLASSES, "one class for each count of uses, and the last");
_Static_assert(WORTH_CLASSES <= 8 && POLICY_PLACES <= 4 && POLICY_GROUPS <= 32, "bits of a node");

struct policy {
	struct node *node; /* owned mapping, nodes_max and the heads */
	uint32_t nodes_max;
	uint32_t count[POLICY_PLACES];
	uint32_t total; /* of all places */
	uint16_t *
		ghost; /* owned; sets of GHOST_WAYS, the newest first: hash, uses in the low bits */
	uint32_t ghost_sets;
	struct worth *worth; /* owned */
	uint32_t now;	     /* uses */
	uint32_t epoch;
	uint32_t epoch_uses;
	uint32_t began[EPOCHS];		       /* when the epoch of this queue began */
	uint32_t groups[POLICY_PLACES];	       /* bit: that room is made */
	uint64_t filled[ROOMS][WORTH_CLASSES]; /* bit: the queue may have blocks */
	float age_at_end
		[WORTH_CLASSES]; /* of the cache's victims, smoothed; 0: there was none yet */
};

static uint32_t room_at(uint32_t place, uint32_t group)
{
	return place * POLICY_GROUPS + group;
}

static uint32_t room_of(const struct node *n)
{
	return room_at(n->place, n->group);
}

static uint32_t head_of(const struct policy *p, uint32_t room, uint32_t class, uint32_t queue)
{
	return p->nodes_max + (room * WORTH_CLASSES + class) * EPOCHS + queue;
}

static void make_room(struct policy *p, uint32_t place, uint32_t group)
{
	uint32_t room = room_at(place, group);

	if (p->groups[place] & 1u << group)
		return;
	for (uint32_t i = head_of(p, room, 0, 0); i < head_of(p, room + 1, 0, 0); i++)
		p->node[i].prev = p->node[i].next = i;
	p->groups[place] |= 1u << group;
}

int policy_new(uint32_t nodes_max, uint32_t blocks_max, struct policy **ret_policy)
{
	struct policy *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	assert(nodes_max > 0 && nodes_max < POLICY_NONE - HEADS);
	p->nodes_max = nodes_max;
	p->ghost_sets = (uint32_t)((uint64_t)blocks_max * GHOSTS_PER_BLOCK / GHOST_WAYS) + 1;
	p->ghost = calloc(p->ghost_sets, GHOST_WAYS * sizeof(*p->ghost));
	p->node = map_lazily(((uint64_t)nodes_max + HEADS) * sizeof(struct node));
	if (!p->ghost || !p->node || worth_new(blocks_max, &p->worth) < 0)
		return policy_free(p), -ENOMEM;
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
		munmap(p->node, ((uint64_t)p->nodes_max + HEADS) * sizeof(*p->node));
	worth_free(p->worth);
	free(p->ghost);
	free(p);
	return NULL;
}

uint64_t policy_bytes(const struct policy *p)
{
	uint64_t rooms = 0;

	for (uint32_t place = 0; place < POLICY_PLACES; place++)
		rooms += (uint64_t)__builtin_popcount(p->groups[place]);
	return sizeof(*p) + worth_bytes(p->worth) +
	       (uint64_t)p->ghost_sets * GHOST_WAYS * sizeof(*p->ghost) +
	       (p->nodes_max + rooms * WORTH_CLASSES * EPOCHS) * sizeof(*p->node);
}

static struct node *node_of(const struct policy *p, uint32_t id)
{
	assert(id < p->nodes_max);
	return &p->node[id];
}

bool policy_has(const struct policy *p, uint32_t id)
{
	return node_of(p, id)->in;
}

uint32_t policy_place(const struct policy *p, uint32_t id)
{
	assert(policy_has(p, id));
	return node_of(p, id)->place;
}

uint32_t policy_children(const struct policy *p, uint32_t id)
{
	return node_of(p, id)->children;
}

uint32_t policy_count(const struct policy *p)
{
	return p->total - p->count[POLICY_BELOW];
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
	uint32_t queue = queue_of(p, n->epoch), room = room_of(n);

	if (n->queued) {
		p->node[n->prev].next = n->next;
		p->node[n->next].prev = n->prev;
		n->queued = 0;
	}
	if (!n->in || n->held || n->children)
		return;
	append(p, head_of(p, room, n->class, queue), id);
	p->filled[room][n->class] |= 1ull << queue;
	n->queued = 1;
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

static void join_room(struct policy *p, uint32_t room, uint32_t queue)
{
	for (uint32_t c = 0; c < WORTH_CLASSES; c++) {
		uint64_t *filled = &p->filled[room][c];

		if (*filled & 1ull << queue)
			*filled |= 1;
		*filled &= ~(1ull << queue);
		join(p, head_of(p, room, c, 0), head_of(p, room, c, queue));
	}
}

/* How long is one the cache says, not what lies below it; how many keys are watched is for all. */
static void begin_epoch(struct policy *p)
{
	uint32_t queue = 1 + (p->epoch + 1) % (EPOCHS - 1);

	for (uint32_t place = 0; place < POLICY_PLACES; place++)
		for (uint32_t groups = p->groups[place]; groups; groups &= groups - 1)
			join_room(p, room_at(place, (uint32_t)__builtin_ctz(groups)), queue);
	p->began[0] = p->began[queue];
	p->epoch++;
	p->began[queue] = p->now;
	p->epoch_uses = policy_count(p) / EPOCHS_PER_CACHE + 1;
	worth_set_blocks(p->worth, p->total);
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
	    worth_chance(p->worth, class, max(policy_count(p), (uint32_t)p->age_at_end[class])) >=
		    CHANCE_MIN)
		return true;
	count_use(p, hash, class);
	ghost_put(p, hash, uses);
	return false;
}

static void put_in(struct policy *p, uint32_t id, uint32_t place, uint32_t group)
{
	struct node *n = node_of(p, id);

	assert(!n->in && place < POLICY_PLACES && group < POLICY_GROUPS);
	make_room(p, place, group);
	n->in = n->held = 1;
	n->place = place & 3;
	n->group = group & 31;
	p->count[place]++;
	p->total++;
}

void policy_insert(struct policy *p, uint32_t id, uint32_t group, uint32_t parent, uint64_t hash,
		   bool last)
{
	put_in(p, id, 0, group);
	node_of(p, id)->uses = ghost_uses(p, hash) & 7;
	policy_use(p, id, hash, last);
	policy_link(p, id, parent);
}

void policy_found(struct policy *p, uint32_t id, uint32_t group)
{
	struct node *n = node_of(p, id);

	put_in(p, id, POLICY_BELOW, group);
	n->uses = 1;
	n->class = class_of(1, false) & 7;
	n->epoch = (uint16_t)(p->epoch - EPOCHS);
}

void policy_use(struct policy *p, uint32_t id, uint64_t hash, bool last)
{
	struct node *n = node_of(p, id);

	assert(n->in);
	n->uses = one_more(n->uses) & 7;
	n->class = class_of(n->uses, last) & 7;
	count_use(p, hash, n->class);
	n->epoch = (uint16_t)p->epoch;
	requeue(p, id);
}

void policy_hold(struct policy *p, uint32_t id)
{
	assert(policy_has(p, id));
	node_of(p, id)->held = 1;
	requeue(p, id);
}

void policy_unhold(struct policy *p, uint32_t id)
{
	assert(policy_has(p, id));
	node_of(p, id)->held = 0;
	requeue(p, id);
}

static void add_child(struct policy *p, uint32_t parent)
{
	struct node *n;

	if (parent == POLICY_NONE)
		return;
	n = node_of(p, parent);
	n->children++;
	if (n->in && n->class == CLASS_LAST) /* the request went on */
		n->class = class_of(n->uses, false) & 7;
	requeue(p, parent);
}

static void remove_child(struct policy *p, uint32_t parent)
{
	if (parent == POLICY_NONE)
		return;
	assert(node_of(p, parent)->children > 0);
	node_of(p, parent)->children--;
	requeue(p, parent);
}

void policy_link(struct policy *p, uint32_t id, uint32_t parent)
{
	assert(policy_has(p, id) && parent != id);
	if (node_of(p, id)->place != POLICY_BELOW)
		add_child(p, parent);
}

void policy_move(struct policy *p, uint32_t id, uint32_t parent, uint32_t place)
{
	struct node *n = node_of(p, id);
	uint32_t from = n->place;

	assert(n->in && place < POLICY_PLACES && parent != id);
	if (from == place)
		return;
	make_room(p, place, n->group);
	p->count[from]--;
	p->count[place]++;
	n->place = place & 3;
	requeue(p, id);
	if (from == POLICY_BELOW)
		add_child(p, parent);
	else if (place == POLICY_BELOW)
		remove_child(p, parent);
}

void policy_remove(struct policy *p, uint32_t id, uint32_t parent, uint64_t hash)
{
	struct node *n = node_of(p, id);

	assert(n->in && p->count[n->place] > 0);
	n->in = n->held = 0;
	requeue(p, id);
	p->count[n->place]--;
	p->total--;
	ghost_put(p, hash, n->uses);
	if (n->place != POLICY_BELOW)
		remove_child(p, parent);
}

void policy_reset(struct policy *p, uint32_t id)
{
	assert(!policy_has(p, id));
	*node_of(p, id) = (struct node){ 0 };
}

/* ---- the victim ---- */

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

float policy_worth(const struct policy *p, uint32_t id)
{
	const struct node *n = node_of(p, id);

	assert(n->in);
	return worth_of(p->worth, n->class, p->now - p->began[queue_of(p, n->epoch)]);
}

struct search {
	uint32_t groups[POLICY_PLACES]; /* of these rooms */
	bool (*may_go)(void *user, uint32_t id);
	void *user;
	uint32_t asked;			     /* that may not */
	uint32_t room;			     /* where the least worth is, with class */
	uint32_t class;			     /* WORTH_CLASSES: nowhere */
	uint64_t done[ROOMS][WORTH_CLASSES]; /* queues that have none that may go */
};

/* Of `done` only what is looked at: all of it takes as long as the rest. */
static void search_begin(const struct policy *p, struct search *s, uint32_t places, uint32_t groups)
{
	s->asked = 0;
	for (uint32_t place = 0; place < POLICY_PLACES; place++) {
		uint32_t of_place = places >> place & 1 ? p->groups[place] & groups : 0;

		s->groups[place] = of_place;
		for (; of_place; of_place &= of_place - 1)
			memset(s->done[room_at(place, (uint32_t)__builtin_ctz(of_place))], 0,
			       sizeof(s->done[0]));
	}
}

static uint64_t left(const struct policy *p, const struct search *s, uint32_t room, uint32_t class)
{
	return p->filled[room][class] & ~s->done[room][class];
}

static void least_of_room(const struct policy *p, struct search *s, uint32_t room, float *worth)
{
	for (uint32_t c = 0; c < WORTH_CLASSES; c++) {
		uint64_t queues = left(p, s, room, c);
		float its = queues ? worth_of(p->worth, c, age_of(p, queues)) : 0;

		if (queues && (s->class == WORTH_CLASSES || its < *worth)) {
			*worth = its;
			s->room = room;
			s->class = c;
		}
	}
}

/* Where the head of what is left of the queues has the least worth. */
static void least(const struct policy *p, struct search *s)
{
	float worth = 0;

	s->class = WORTH_CLASSES;
	for (uint32_t place = 0; place < POLICY_PLACES; place++)
		for (uint32_t groups = s->groups[place]; groups; groups &= groups - 1)
			least_of_room(p, s, room_at(place, (uint32_t)__builtin_ctz(groups)),
				      &worth);
}

/*
 * The first of a queue that may go.  Who may not goes behind the youngest, so that the next search does not begin with
 * the same ones again; the youngest queue itself is walked along.
 */
static uint32_t first_of(struct policy *p, struct search *s, uint32_t queue)
{
	uint32_t head = head_of(p, s->room, s->class, queue), next;

	for (uint32_t id = p->node[head].next; id != head; id = next) {
		if (!s->may_go || s->may_go(s->user, id))
			return id;
		next = p->node[id].next;
		if (queue != queue_of(p, (uint16_t)p->epoch)) {
			p->node[id].epoch = (uint16_t)p->epoch;
			requeue(p, id);
		}
		if (++s->asked >= SCAN_MAX)
			break;
	}
	return POLICY_NONE;
}

/* Over some hundred victims, so that one odd age says little. */
static void count_victim(struct policy *p, uint32_t class, uint32_t age)
{
	float *end = &p->age_at_end[class];

	*end = *end > 0 ? *end + ((float)age - *end) / 256 : (float)age + 1;
}

uint32_t policy_victim(struct policy *p, uint32_t places, uint32_t groups,
		       bool (*may_go)(void *user, uint32_t id), void *user)
{
	struct search s;

	search_begin(p, &s, places, groups);
	s.may_go = may_go;
	s.user = user;
	while (s.asked < SCAN_MAX) {
		uint32_t queue, head, id, age;

		least(p, &s);
		if (s.class == WORTH_CLASSES)
			break;
		queue = oldest(p, left(p, &s, s.room, s.class));
		age = p->now - p->began[queue];
		id = first_of(p, &s, queue);
		if (id != POLICY_NONE) {
			if (node_of(p, id)->place != POLICY_BELOW)
				count_victim(p, s.class, age);
			return id;
		}
		head = head_of(p, s.room, s.class, queue);
		s.done[s.room][s.class] |= 1ull << queue;
		if (p->node[head].next == head)
			p->filled[s.room][s.class] &= ~(1ull << queue);
	}
	return POLICY_NONE;
}
