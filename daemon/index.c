/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index.c - chained hash table over a fixed array of blocks.  The hash is keyed (SipHash, random key), so
 * that a tenant who chooses keys cannot make chains long.  The arrays are mapped, not touched: memory
 * is used as blocks are.
 */
#include "daemon/index.h"

#include <assert.h>
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct index {
	struct block *block; /* owned mapping, blocks_max */
	uint32_t *bucket;    /* owned mapping, mask + 1; id + 1, 0 = empty */
	uint32_t mask;
	uint32_t blocks_max;
	uint32_t fresh; /* ids below were used at least once */
	uint32_t *
		gpu_slot; /* owned mapping, blocks_max; 1 + slot, 0: none.  NULL: there is no GPU pool */
	uint32_t free_head; /* linked as a bucket is */
	uint32_t count;
	unsigned char hash_key[crypto_shorthash_KEYBYTES];
};

static const uint8_t legal[BLOCK_STATE_COUNT][BLOCK_STATE_COUNT] = {
	[BLOCK_FREE] = { [BLOCK_STORING] = 1 },
	[BLOCK_STORING] = { [BLOCK_RESIDENT] = 1,
			    [BLOCK_NVME] = 1,
			    [BLOCK_DEAD] = 1,
			    [BLOCK_FREE] = 1 },
	[BLOCK_RESIDENT] = { [BLOCK_NVME] = 1, [BLOCK_DEAD] = 1, [BLOCK_FREE] = 1 },
	[BLOCK_NVME] = { [BLOCK_FETCHING] = 1, [BLOCK_DEAD] = 1, [BLOCK_FREE] = 1 },
	[BLOCK_FETCHING] = { [BLOCK_RESIDENT] = 1, [BLOCK_NVME] = 1, [BLOCK_DEAD] = 1 },
	[BLOCK_DEAD] = { [BLOCK_FREE] = 1 },
};

/* A link says "none" by naming the block that it is in. */
static uint32_t followed(uint32_t link, uint32_t id)
{
	return link == id ? BLOCK_NONE : link;
}

static uint32_t link_to(uint32_t to, uint32_t id)
{
	return (to == BLOCK_NONE ? id : to) & (BLOCKS_MAX - 1);
}

static void *map_lazily(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	(void)madvise(p, bytes,
		      MADV_HUGEPAGE); /* fewer faults and TLB misses, where it is allowed */
	return p;
}

int index_new(uint32_t blocks_max, struct index **ret_index)
{
	struct index *ix = calloc(1, sizeof(*ix));
	uint32_t buckets = 1024;

	assert(blocks_max <= BLOCKS_MAX);
	if (!ix)
		return -ENOMEM;
	while (buckets <=
	       blocks_max / 2) /* a chain is of one or two blocks: a word more each would not pay */
		buckets *= 2;
	ix->mask = buckets - 1;
	ix->blocks_max = blocks_max;
	ix->free_head = BLOCK_NONE;
	ix->block = map_lazily((uint64_t)blocks_max * sizeof(*ix->block));
	ix->bucket = map_lazily((uint64_t)buckets * sizeof(*ix->bucket));
	if (!ix->block || !ix->bucket) {
		index_free(ix);
		return -ENOMEM;
	}
	randombytes_buf(ix->hash_key, sizeof(ix->hash_key));
	*ret_index = ix;
	return 0;
}

struct index *index_free(struct index *ix)
{
	if (!ix)
		return NULL;
	if (ix->block)
		munmap(ix->block, (uint64_t)ix->blocks_max * sizeof(*ix->block));
	if (ix->gpu_slot)
		munmap(ix->gpu_slot, (uint64_t)ix->blocks_max * sizeof(*ix->gpu_slot));
	if (ix->bucket)
		munmap(ix->bucket, ((uint64_t)ix->mask + 1) * sizeof(*ix->bucket));
	free(ix);
	return NULL;
}

int index_add_gpu(struct index *ix)
{
	assert(!ix->gpu_slot);
	ix->gpu_slot = map_lazily((uint64_t)ix->blocks_max * sizeof(*ix->gpu_slot));
	return ix->gpu_slot ? 0 : -ENOMEM;
}

uint32_t index_gpu_slot(const struct index *ix, const struct block *b)
{
	return ix->gpu_slot ? ix->gpu_slot[b - ix->block] - 1 : UINT32_MAX;
}

void index_set_gpu_slot(struct index *ix, const struct block *b, uint32_t slot)
{
	ix->gpu_slot[b - ix->block] = slot + 1;
}

struct block *index_block(const struct index *ix, uint32_t id)
{
	assert(id < ix->fresh);
	return &ix->block[id];
}

uint32_t index_count(const struct index *ix)
{
	return ix->count;
}

uint32_t index_end(const struct index *ix)
{
	return ix->fresh;
}

uint64_t index_bytes(const struct index *ix)
{
	return sizeof(*ix) +
	       ix->blocks_max *
		       (uint64_t)(sizeof(*ix->block) + (ix->gpu_slot ? sizeof(*ix->gpu_slot) : 0)) +
	       ((uint64_t)ix->mask + 1) * sizeof(*ix->bucket);
}

static uint64_t hash_of(const struct index *ix, uint32_t ns, uint32_t group, const uint8_t *key,
			uint8_t key_len)
{
	unsigned char in[SKVC_ABI_KEY_BYTES + 12], out[crypto_shorthash_BYTES];
	uint32_t len32 = key_len;
	uint64_t hash;

	memcpy(in, key, SKVC_ABI_KEY_BYTES);
	memcpy(in + SKVC_ABI_KEY_BYTES, &ns, 4);
	memcpy(in + SKVC_ABI_KEY_BYTES + 4, &group, 4);
	memcpy(in + SKVC_ABI_KEY_BYTES + 8, &len32, 4);
	crypto_shorthash(out, in, sizeof(in), ix->hash_key);
	memcpy(&hash, out, sizeof(hash));
	return hash;
}

static uint32_t bucket_of(const struct index *ix, uint32_t ns, uint32_t group, const uint8_t *key,
			  uint8_t key_len)
{
	return (uint32_t)hash_of(ix, ns, group, key, key_len) & ix->mask;
}

uint64_t index_hash(const struct index *ix, uint32_t ns, const struct skvc_abi_key *key)
{
	return hash_of(ix, ns, key->group, key->bytes, key->len);
}

uint64_t index_key_hash(const struct index *ix, uint32_t id)
{
	const struct block *b = index_block(ix, id);

	return hash_of(ix, b->ns, b->group, b->key, b->key_len);
}

uint32_t index_bucket(const struct index *ix, uint32_t ns, const struct skvc_abi_key *key)
{
	return bucket_of(ix, ns, key->group, key->bytes, key->len);
}

void index_prefetch(const struct index *ix, uint32_t bucket, unsigned step)
{
	if (step == 0)
		__builtin_prefetch(&ix->bucket[bucket]);
	else if (ix->bucket[bucket])
		__builtin_prefetch(&ix->block[ix->bucket[bucket] - 1]);
}

uint32_t index_find(const struct index *ix, uint32_t ns, const struct skvc_abi_key *key)
{
	return index_find_at(ix, index_bucket(ix, ns, key), ns, key);
}

uint32_t index_find_at(const struct index *ix, uint32_t bucket, uint32_t ns,
		       const struct skvc_abi_key *key)
{
	uint32_t id = ix->bucket[bucket] - 1;

	while (id != BLOCK_NONE) {
		const struct block *b = &ix->block[id];

		if (b->ns == ns && b->group == key->group && b->key_len == key->len &&
		    !memcmp(b->key, key->bytes, SKVC_ABI_KEY_BYTES))
			break;
		id = followed(b->link_hash, id);
	}
	return id;
}

int index_insert(struct index *ix, uint32_t ns, const struct skvc_abi_key *key, uint32_t *ret_id)
{
	return index_insert_at(ix, index_bucket(ix, ns, key), ns, key, ret_id);
}

int index_insert_at(struct index *ix, uint32_t bucket, uint32_t ns, const struct skvc_abi_key *key,
		    uint32_t *ret_id)
{
	uint16_t generation;
	struct block *b;
	uint32_t id;

	assert(ns <= UINT16_MAX);
	if (ix->free_head != BLOCK_NONE) {
		id = ix->free_head;
		ix->free_head = followed(ix->block[id].link_hash, id);
	} else if (ix->fresh < ix->blocks_max) {
		id = ix->fresh++;
	} else {
		return -ENOSPC;
	}
	b = &ix->block[id];
	assert(b->state == BLOCK_FREE && !b->children);
	generation = b->generation;
	memset(b, 0, sizeof(*b));
	b->generation = generation;
	memcpy(b->key, key->bytes, sizeof(b->key));
	b->key_len = key->len & 63;
	b->group = key->group;
	b->ns = (uint16_t)ns;
	b->link_parent = link_to(BLOCK_NONE, id);
	b->slot = UINT32_MAX;
	b->state = BLOCK_STORING;
	b->link_hash = link_to(ix->bucket[bucket] - 1, id);
	ix->bucket[bucket] = id + 1;
	ix->count++;
	*ret_id = id;
	return 0;
}

static void put_free(struct index *ix, uint32_t id)
{
	ix->block[id].link_hash = link_to(ix->free_head, id);
	ix->free_head = id;
}

/* The last of its children may have kept an id from use. */
static void drop_parent(struct index *ix, uint32_t id)
{
	struct block *b = &ix->block[id];
	uint32_t parent = followed(b->link_parent, id);

	if (parent == BLOCK_NONE)
		return;
	assert(ix->block[parent].children > 0);
	b->link_parent = link_to(BLOCK_NONE, id);
	if (!--ix->block[parent].children && ix->block[parent].state == BLOCK_FREE)
		put_free(ix, parent);
}

void index_unlink(struct index *ix, uint32_t id)
{
	struct block *b = index_block(ix, id);
	uint32_t *bucket = &ix->bucket[bucket_of(ix, b->ns, b->group, b->key, b->key_len)];
	uint32_t next = followed(b->link_hash, id), before = *bucket - 1;

	if (before == id) {
		*bucket = next + 1;
	} else {
		assert(before != BLOCK_NONE);
		while (ix->block[before].link_hash != id) {
			assert(ix->block[before].link_hash != before);
			before = ix->block[before].link_hash;
		}
		ix->block[before].link_hash = link_to(next, before);
	}
	drop_parent(ix, id);
	ix->count--;
}

void index_release(struct index *ix, uint32_t id)
{
	struct block *b = index_block(ix, id);

	assert(b->refs == 0 && !(b->flags & BLOCK_LISTED));
	index_set_state(ix, id, BLOCK_FREE);
	b->generation++;
	if (!b->children)
		put_free(ix, id);
}

void index_set_state(struct index *ix, uint32_t id, enum block_state state)
{
	struct block *b = index_block(ix, id);

	assert(state < BLOCK_STATE_COUNT && legal[b->state][state]);
	b->state = state & 7;
}

void index_set_parent(struct index *ix, uint32_t id, uint32_t parent)
{
	assert(index_parent(ix, id) == BLOCK_NONE && parent != id);
	assert(index_block(ix, parent)->state != BLOCK_FREE);
	drop_parent(ix, id);
	ix->block[id].link_parent = link_to(parent, id);
	ix->block[parent].children++;
}

uint32_t index_parent(const struct index *ix, uint32_t id)
{
	uint32_t parent = followed(index_block(ix, id)->link_parent, id);

	return parent == BLOCK_NONE || ix->block[parent].state == BLOCK_FREE ? BLOCK_NONE : parent;
}

void block_list_init(struct block_list *l)
{
	l->head = l->tail = BLOCK_NONE;
	l->count = 0;
}

uint32_t block_list_prev(const struct index *ix, uint32_t id)
{
	return followed(index_block(ix, id)->link_prev, id);
}

uint32_t block_list_next(const struct index *ix, uint32_t id)
{
	return followed(index_block(ix, id)->link_next, id);
}

/* The two, or the ends of the list in their place, are neighbours now. */
static void join(struct index *ix, struct block_list *l, uint32_t prev, uint32_t next)
{
	if (prev != BLOCK_NONE)
		ix->block[prev].link_next = link_to(next, prev);
	else
		l->head = next;
	if (next != BLOCK_NONE)
		ix->block[next].link_prev = link_to(prev, next);
	else
		l->tail = prev;
}

void block_list_push(struct index *ix, struct block_list *l, uint32_t id)
{
	block_list_insert(ix, l, l->tail, id);
}

void block_list_insert(struct index *ix, struct block_list *l, uint32_t after, uint32_t id)
{
	struct block *b = index_block(ix, id);
	uint32_t next = after == BLOCK_NONE ? l->head : block_list_next(ix, after);

	assert(!(b->flags & BLOCK_LISTED) && after != id);
	b->flags |= BLOCK_LISTED;
	join(ix, l, after, id);
	join(ix, l, id, next);
	l->count++;
}

void block_list_remove(struct index *ix, struct block_list *l, uint32_t id)
{
	struct block *b = index_block(ix, id);

	assert(b->flags & BLOCK_LISTED && l->count > 0);
	b->flags &= (uint8_t)~BLOCK_LISTED;
	join(ix, l, block_list_prev(ix, id), block_list_next(ix, id));
	l->count--;
}
