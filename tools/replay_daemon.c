/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_daemon.c - a trace through the daemon's own table of blocks and its own policy, as a lane would do it:
 * look the prefix up and hold it, use it, store the rest block by block, let go.
 */
#include "tools/replay_policies.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/index.h"
#include "daemon/policy.h"

struct cache {
	struct index *ix;      /* owned */
	struct policy *policy; /* owned */
	uint32_t *held;	       /* owned; ids of the request that is running */
	uint32_t held_count;
	uint32_t capacity;
	uint64_t refused; /* by the admission filter */
};

static struct skvc_abi_key key_of(uint32_t block)
{
	struct skvc_abi_key key = { .len = 8 };

	memcpy(key.bytes, &block, sizeof(block));
	return key;
}

uint64_t replay_hash(uint32_t block)
{
	uint64_t x = block + 0x9e3779b97f4a7c15ull;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static uint64_t hash_of_id(const struct cache *c, uint32_t id)
{
	uint32_t block;

	memcpy(&block, index_block(c->ix, id)->key, sizeof(block));
	return replay_hash(block);
}

static void hold(struct cache *c, uint32_t id)
{
	policy_hold(c->policy, id);
	c->held[c->held_count++] = id;
}

/* Room for one more: 1, or 0 when all that is there is held or has children that are. */
static int make_room(struct cache *c)
{
	while (policy_count(c->policy) >= c->capacity) {
		uint32_t id = policy_victim(c->policy, POLICY_ALL, POLICY_ALL, NULL, NULL);

		if (id == POLICY_NONE)
			return 0;
		policy_remove(c->policy, id, index_parent(c->ix, id), hash_of_id(c, id));
		policy_reset(c->policy, id);
		index_unlink(c->ix, id);
		index_release(c->ix, id);
	}
	return 1;
}

/* Its id, BLOCK_NONE when it was refused. */
static uint32_t store(struct cache *c, uint32_t block, uint32_t parent, int last)
{
	struct skvc_abi_key key = key_of(block);
	uint32_t id;

	if (!policy_admits(c->policy, replay_hash(block), last)) {
		c->refused++;
		return BLOCK_NONE;
	}
	if (!make_room(c) || index_insert(c->ix, 0, &key, &id) < 0)
		return BLOCK_NONE;
	index_set_state(c->ix, id, BLOCK_RESIDENT);
	if (parent != BLOCK_NONE)
		index_set_parent(c->ix, id, parent);
	policy_insert(c->policy, id, 0, parent, replay_hash(block), last);
	c->held[c->held_count++] = id;
	return id;
}

static void request(struct cache *c, const uint32_t *block, uint32_t count, struct replay_result *r)
{
	uint32_t hits = 0, parent = BLOCK_NONE, i, id;

	for (; hits < count; hits++) {
		struct skvc_abi_key key = key_of(block[hits]);

		id = index_find(c->ix, 0, &key);
		if (id == BLOCK_NONE)
			break;
		hold(c, id);
	}
	r->hits += hits;
	for (i = 0; i < hits; i++) {
		parent = c->held[i];
		policy_use(c->policy, parent, replay_hash(block[i]), i + 1 == count);
	}
	for (; i < count; i++) {
		struct skvc_abi_key key = key_of(block[i]);

		id = index_find(c->ix, 0, &key);
		if (id != BLOCK_NONE) { /* behind a gap, or twice in one request */
			hold(c, id);
			policy_use(c->policy, id, replay_hash(block[i]), i + 1 == count);
		} else {
			id = store(c, block[i], parent, i + 1 == count);
			if (id == BLOCK_NONE)
				break; /* what follows would be worth nothing */
			r->stores++;
		}
		parent = id;
	}
	while (c->held_count > 0)
		policy_unhold(c->policy, c->held[--c->held_count]);
}

static uint32_t longest(const struct replay_trace *t)
{
	uint32_t most = 0;

	for (uint32_t i = 0; i < t->requests; i++)
		if (t->first[i + 1] - t->first[i] > most)
			most = t->first[i + 1] - t->first[i];
	return most;
}

int replay_daemon(const struct replay_trace *t, uint32_t capacity, struct replay_result *r)
{
	struct cache c = { .capacity = capacity };
	double start;
	int e = -ENOMEM;

	*r = (struct replay_result){ 0 };
	c.held = calloc((size_t)longest(t) + 1, sizeof(*c.held));
	if (c.held && index_new(capacity, &c.ix) == 0 &&
	    policy_new(capacity, capacity, &c.policy) == 0)
		e = 0;
	start = replay_now();
	for (uint32_t i = 0; e == 0 && i < t->requests; i++)
		request(&c, t->block + t->first[i], t->first[i + 1] - t->first[i], r);
	r->seconds = replay_now() - start;
	r->refused = c.refused;
	if (e == 0) {
		r->index_block_bytes = (double)index_bytes(c.ix) / capacity;
		r->policy_block_bytes = (double)policy_bytes(c.policy) / capacity;
	}
	free(c.held);
	index_free(c.ix);
	policy_free(c.policy);
	return e;
}
