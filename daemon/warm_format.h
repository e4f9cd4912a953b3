/* SPDX-License-Identifier: Apache-2.0 */
/*
 * warm_format.h - the index of host memory, as one life of the daemon leaves it to the next, in a memfd beside the
 * pool's.  Native: it never leaves the machine, nor this boot of it.
 *
 *	0		struct warm_header
 *			struct warm_span [spans_count]
 *			struct warm_block [blocks_count]: those that are not on NVMe before the others, each kind
 *			coldest first
 *			metas_count pieces: namespaces, and behind each its profiles (persist.h)
 *	total_bytes	zeros, to the end of the page
 *
 * The header is written when all the rest is there, and its magic is cleared before the pool is changed again: what
 * is found with a magic says how the pool is.
 */
#ifndef SKVCD_DAEMON_WARM_FORMAT_H
#define SKVCD_DAEMON_WARM_FORMAT_H

#include <stdint.h>
#include <xxhash.h>

#define WARM_MAGIC 0x5844494d52415753ull /* "SWARMIDX" */
#define WARM_VERSION 1u
#define WARM_PAGE_BYTES 4096u

struct warm_header {
	uint64_t magic; /* 0: not complete, or used */
	uint32_t version;
	uint32_t header_bytes;
	uint64_t total_bytes;
	uint64_t pool_ino; /* of the pool's memfd: this index is of no other one */
	uint64_t pool_bytes, pool_slab_bytes;
	uint32_t granule_bytes;
	uint32_t spans_count;
	uint32_t blocks_count;
	uint32_t metas_count;
	uint64_t metas_bytes;
	uint64_t body_xxh3; /* XXH3-64 of all behind the header */
	uint8_t reserved[40];
	uint64_t xxh3; /* of this struct without this field */
};

struct warm_span {
	uint32_t unit, order, slot_granules;
	uint32_t reserved; /* 0 */
};

#define WARM_HAS_TOKENS 0x01u
#define WARM_MODEL 0x02u
#define WARM_MODEL_TRIED 0x04u
#define WARM_LAYER 0x08u

struct warm_block {
	uint8_t key[32];
	uint8_t parent[32]; /* its parent's key, of the same namespace */
	uint64_t raw_xxh3;
	uint64_t token_hash;
	uint64_t pin_until_ns; /* CLOCK_MONOTONIC */
	uint32_t slot;
	uint32_t record_bytes;
	uint32_t group, parent_group;
	uint32_t position;
	uint16_t padding_bytes;
	uint16_t ns;	 /* the so manieth namespace among the pieces */
	uint8_t profile; /* 1 + the so manieth profile behind it; 0: none */
	uint8_t key_len;
	uint8_t parent_len;   /* 0: none */
	uint8_t flags;	      /* WARM_* */
	uint8_t tried;	      /* as in struct block */
	uint8_t reserved[11]; /* 0 */
};

_Static_assert(sizeof(struct warm_header) == 128, "header");
_Static_assert(sizeof(struct warm_span) == 16, "span");
_Static_assert(sizeof(struct warm_block) == 128, "block");

static inline uint64_t warm_header_xxh3(const struct warm_header *h)
{
	return XXH3_64bits(h, sizeof(*h) - sizeof(h->xxh3));
}

#endif
