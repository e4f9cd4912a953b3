/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index.h - the table of blocks: key -> block, fixed size, made once.  Blocks are named by ids (u32)
 * everywhere else.  Knows no tier, no job, no session.  Lane-only.
 */
#ifndef SKVCD_DAEMON_INDEX_H
#define SKVCD_DAEMON_INDEX_H

#include <stdint.h>

#include "ipc/abi.h"

#define BLOCK_NONE UINT32_MAX

/*
 *	FREE -> STORING			store began: reserved, invisible to lookups
 *	STORING -> RESIDENT		published: the record lies in a host slot or in a GPU slot
 *	STORING -> NVME			found on NVMe when the daemon started
 *	RESIDENT -> NVME		host slot given up, the NVMe copy stays
 *	NVME -> FETCHING		a read into a host slot is in flight
 *	FETCHING -> RESIDENT | NVME	read and verified | failed, may be tried again
 *	any -> DEAD			dropped, evicted or quarantined while somebody holds it: unlinked
 *	DEAD, others without holders -> FREE
 */
enum block_state {
	BLOCK_FREE,
	BLOCK_STORING,
	BLOCK_RESIDENT,
	BLOCK_NVME,
	BLOCK_FETCHING,
	BLOCK_DEAD,
	BLOCK_STATE_COUNT
};

#define BLOCK_SPILLING 0x01u   /* a write to NVMe is in flight (holds a reference) */
#define BLOCK_WANTED 0x02u     /* queued for a fetch */
#define BLOCK_UNREAD 0x04u     /* its last read from NVMe was an error; cleared when wanted again */
#define BLOCK_HAS_TOKENS 0x08u /* token_hash is valid */
#define BLOCK_LISTED \
	0x10u /* on exactly one list (clean, dirty, droppable, fetch or the GPU pool's) */
#define BLOCK_CLEAN 0x20u    /* has a durable NVMe copy */
#define BLOCK_READABLE 0x40u /* DEAD, but its slot is whole: who holds it may still load it */
#define BLOCK_CORRUPT 0x80u  /* DEAD because its bytes were wrong */

#define BLOCK_MOVE_RUNS \
	0x01u /* GPU slot -> host slot (holds a reference): the host slot is not whole */
#define BLOCK_MOVE_WANTED \
	0x02u /* a load into host memory waits for that; `wanted` says since when */
#define BLOCK_MOVE_FAILED 0x04u /* for that load */

/* Ids are of 24 bits.  A link to oneself is none: the functions below say BLOCK_NONE then. */
#define BLOCKS_MAX (1u << 24)

/* For fields that need no alignment: with it each block would be four bytes longer. */
typedef uint64_t block_u64 __attribute__((aligned(4)));

struct block {
	uint8_t key[SKVC_ABI_KEY_BYTES];
	uint32_t link_hash : 24; /* index.c's own, like the four links below */
	uint8_t state : 3;	 /* enum block_state */
	uint8_t droppable : 1; /* dirty, and not worth being written to NVMe: on that list, if on one */
	uint8_t profile : 4; /* 1 + index into the namespace's profiles; 0: none needed */
	uint32_t group;
	uint16_t ns;
	uint16_t generation;	 /* bumped when freed */
	uint32_t link_prev : 24; /* of the list it is on */
	uint8_t flags;		 /* BLOCK_* */
	uint32_t link_next : 24;
	uint8_t tried; /* low bits of the profile's version with which the strongest speculator was tried */
	uint32_t link_parent : 24;
	uint8_t key_len : 6;
	uint8_t ahead_pins : 1;	 /* it is pinned because it was read ahead */
	uint8_t held_gpu : 1;	 /* held, and counted as in the GPU pool: quota.c's own */
	uint32_t children : 24;	 /* blocks in the index that name this one as parent */
	uint8_t move : 4;	 /* BLOCK_MOVE_* */
	uint8_t model : 1;	 /* coded after its prefix (sequences.c) */
	uint8_t model_tried : 1; /* that does not make it smaller */
	uint8_t layer : 1;	 /* coded with `layer` */
	uint8_t ahead : 1;	 /* was read from NVMe, or is, and nobody has asked for it */
	uint32_t refs;		 /* leases, loads, spills, fetches and moves that hold it */
	uint32_t slot;		 /* in the host pool, or POOL_NONE */
	uint32_t record_bytes;	 /* header, tokens, payload and padding: what quotas count */
	uint16_t padding_bytes;	 /* of record_bytes: less than a granule */
	uint16_t wanted;   /* since when it waits for a fetch, or for a move: tier_policy.c's own */
	uint32_t position; /* of its first token in its sequence, or CODEC_POSITION_UNKNOWN */
	uint32_t pinned;   /* not evicted before: tier_policy.c's own */
	block_u64 token_hash;
	block_u64 raw_xxh3;
};

_Static_assert(sizeof(struct block) == 100, "memory per indexed block");
_Static_assert(BLOCK_STATE_COUNT <= 8 && SKVC_ABI_KEY_BYTES < 64, "bits of a block");

struct block_list {
	uint32_t head, tail, count;
};

struct index;

/* blocks_max: up to BLOCKS_MAX. */
int index_new(uint32_t blocks_max, struct index **ret_index);
int index_add_gpu(struct index *ix); /* blocks may have slots in a GPU pool: 0, -ENOMEM */
struct index *index_free(struct index *ix);
struct block *index_block(const struct index *ix, uint32_t id);
/* In the GPU pool, or POOL_NONE. */
uint32_t index_gpu_slot(const struct index *ix, const struct block *b);
void index_set_gpu_slot(struct index *ix, const struct block *b, uint32_t slot);
uint32_t index_find(const struct index *ix, uint32_t ns, const struct skvc_abi_key *key);
/* A new block in state STORING.  0, -ENOSPC (table full).  The key must not be there. */
int index_insert(struct index *ix, uint32_t ns, const struct skvc_abi_key *key, uint32_t *ret_id);
/*
 * The same in parts, for who has many keys at hand: their buckets, then prefetch step 0 of all and step 1 of all, and
 * little is waited for when they are looked up.
 */
uint32_t index_bucket(const struct index *ix, uint32_t ns, const struct skvc_abi_key *key);
void index_prefetch(const struct index *ix, uint32_t bucket, unsigned step);
uint32_t index_find_at(const struct index *ix, uint32_t bucket, uint32_t ns,
		       const struct skvc_abi_key *key);
int index_insert_at(struct index *ix, uint32_t bucket, uint32_t ns, const struct skvc_abi_key *key,
		    uint32_t *ret_id);
void index_unlink(struct index *ix, uint32_t id); /* no longer found by its key */
/* Unlinked and off every list: back to FREE.  The id is used again when no block names it as parent any more. */
void index_release(struct index *ix, uint32_t id);
void index_set_state(struct index *ix, uint32_t id,
		     enum block_state state); /* asserts the arrow exists */
void index_set_parent(struct index *ix, uint32_t id, uint32_t parent);
uint32_t index_parent(const struct index *ix, uint32_t id); /* BLOCK_NONE when it has gone */
uint64_t index_hash(const struct index *ix, uint32_t ns, const struct skvc_abi_key *key);
uint64_t index_key_hash(const struct index *ix, uint32_t id); /* nobody can choose keys by it */
uint32_t index_count(const struct index *ix);
uint32_t index_end(const struct index *ix);   /* ids below were used at least once */
uint64_t index_bytes(const struct index *ix); /* all memory, when full */

void block_list_init(struct block_list *l);
void block_list_push(struct index *ix, struct block_list *l, uint32_t id); /* at the tail */
/* Behind another one of the list; behind BLOCK_NONE: first. */
void block_list_insert(struct index *ix, struct block_list *l, uint32_t after, uint32_t id);
void block_list_remove(struct index *ix, struct block_list *l, uint32_t id);
/* Of the list that it is on; BLOCK_NONE: none. */
uint32_t block_list_prev(const struct index *ix, uint32_t id);
uint32_t block_list_next(const struct index *ix, uint32_t id);

#endif
