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
	uint32_t fresh;	    /* ids below were used at least once */
	uint32_t free_head; /* linked through hash_next */
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

	if (!ix)
		return -ENOMEM;
	while (buckets < blocks_max && buckets < 1u << 30)
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
	if (ix->bucket)
		munmap(ix->bucket, ((uint64_t)ix->mask + 1) * sizeof(*ix->bucket));
	free(ix);
	return NULL;
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
	return sizeof(*ix) + (uint64_t)ix->blocks_max * sizeof(*ix->block) +
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
	uint32_t id = ix->bucket[bucket];

	while (id) {
		const struct block *b = &ix->block[id - 1];

		if (b->ns == ns && b->group == key->group && b->key_len == key->len &&
		    !memcmp(b->key, key->bytes, SKVC_ABI_KEY_BYTES))
			return id - 1;
		id = b->hash_next;
	}
	return BLOCK_NONE;
}

int index_insert(struct index *ix, uint32_t ns, const struct skvc_abi_key *key, uint32_t *ret_id)
{
	return index_insert_at(ix, index_bucket(ix, ns, key), ns, key, ret_id);
}

int index_insert_at(struct index *ix, uint32_t bucket, uint32_t ns, const struct skvc_abi_key *key,
		    uint32_t *ret_id)
{
	uint32_t id, generation;
	struct block *b;

	if (ix->free_head != BLOCK_NONE) {
		id = ix->free_head;
		ix->free_head = ix->block[id].hash_next;
	} else if (ix->fresh < ix->blocks_max) {
		id = ix->fresh++;
	} else {
		return -ENOSPC;
	}
	b = &ix->block[id];
	assert(b->state == BLOCK_FREE);
	generation = b->generation;
	memset(b, 0, sizeof(*b));
	b->generation = generation;
	memcpy(b->key, key->bytes, sizeof(b->key));
	b->key_len = key->len;
	b->group = key->group;
	b->ns = ns;
	b->parent = BLOCK_NONE;
	b->slot = b->gpu_slot = UINT32_MAX;
	b->state = BLOCK_STORING;
	b->hash_next = ix->bucket[bucket];
	ix->bucket[bucket] = id + 1;
	ix->count++;
	*ret_id = id;
	return 0;
}

void index_unlink(struct index *ix, uint32_t id)
{
	struct block *b = index_block(ix, id);
	uint32_t *link = &ix->bucket[bucket_of(ix, b->ns, b->group, b->key, b->key_len)];
	uint32_t parent = index_parent(ix, id);

	while (*link != id + 1) {
		assert(*link);
		link = &ix->block[*link - 1].hash_next;
	}
	*link = b->hash_next;
	b->hash_next = 0;
	if (parent != BLOCK_NONE) {
		assert(ix->block[parent].children > 0);
		ix->block[parent].children--;
	}
	b->parent = BLOCK_NONE;
	ix->count--;
}

void index_release(struct index *ix, uint32_t id)
{
	struct block *b = index_block(ix, id);

	assert(b->refs == 0 && !(b->flags & BLOCK_LISTED));
	index_set_state(ix, id, BLOCK_FREE);
	b->generation++;
	b->hash_next = ix->free_head;
	ix->free_head = id;
}

void index_set_state(struct index *ix, uint32_t id, enum block_state state)
{
	struct block *b = index_block(ix, id);

	assert(state < BLOCK_STATE_COUNT && legal[b->state][state]);
	b->state = (uint8_t)state;
}

void index_set_parent(struct index *ix, uint32_t id, uint32_t parent)
{
	struct block *b = index_block(ix, id), *p;

	assert(index_parent(ix, id) == BLOCK_NONE && parent != id);
	p = index_block(ix, parent);
	b->parent = parent;
	b->parent_generation = p->generation;
	p->children++;
}

uint32_t index_parent(const struct index *ix, uint32_t id)
{
	const struct block *b = index_block(ix, id);

	if (b->parent == BLOCK_NONE || ix->block[b->parent].generation != b->parent_generation)
		return BLOCK_NONE;
	return b->parent;
}

void block_list_init(struct block_list *l)
{
	l->head = l->tail = BLOCK_NONE;
	l->count = 0;
}

void block_list_push(struct index *ix, struct block_list *l, uint32_t id)
{
	struct block *b = index_block(ix, id);

	assert(!(b->flags & BLOCK_LISTED));
	b->flags |= BLOCK_LISTED;
	b->prev = l->tail;
	b->next = BLOCK_NONE;
	if (l->tail != BLOCK_NONE)
		ix->block[l->tail].next = id;
	else
		l->head = id;
	l->tail = id;
	l->count++;
}

void block_list_insert(struct index *ix, struct block_list *l, uint32_t after, uint32_t id)
{
	struct block *b = index_block(ix, id);

	assert(!(b->flags & BLOCK_LISTED) && after != id);
	b->flags |= BLOCK_LISTED;
	b->prev = after;
	b->next = after == BLOCK_NONE ? l->head : index_block(ix, after)->next;
	*(b->prev == BLOCK_NONE ? &l->head : &ix->block[b->prev].next) = id;
	*(b->next == BLOCK_NONE ? &l->tail : &ix->block[b->next].prev) = id;
	l->count++;
}

void block_list_remove(struct index *ix, struct block_list *l, uint32_t id)
{
	struct block *b = index_block(ix, id);

	assert(b->flags & BLOCK_LISTED && l->count > 0);
	b->flags &= (uint8_t)~BLOCK_LISTED;
	if (b->prev != BLOCK_NONE)
		ix->block[b->prev].next = b->next;
	else
		l->head = b->next;
	if (b->next != BLOCK_NONE)
		ix->block[b->next].prev = b->prev;
	else
		l->tail = b->prev;
	l->count--;
}
