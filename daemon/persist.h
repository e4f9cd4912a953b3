/* SPDX-License-Identifier: Apache-2.0 */
/*
 * persist.h - the pieces of the two blobs that are kept on NVMe beside the records (nvme_log.h): meta, which says
 * what namespaces and profiles the records need, and the checkpoint of the index.  Little endian.
 */
#ifndef SKVCD_DAEMON_PERSIST_H
#define SKVCD_DAEMON_PERSIST_H

#include <stdint.h>

#include "daemon/session.h"

enum persist_meta_kind { PERSIST_META_NS = 1, PERSIST_META_PROFILE = 2 };

/* META: one of these a piece, and behind it a namespace, or a part of a profile's bytes. */
struct persist_meta {
	uint32_t kind;	/* enum persist_meta_kind */
	uint32_t bytes; /* behind this */
	uint8_t ns_digest[32];
	/* PERSIST_META_PROFILE */
	uint8_t profile_digest[32];
	uint64_t total_bytes, off;
	uint64_t tokens, promised[2];
	uint32_t number;
	uint32_t newest;
};

/* The same pieces are in the index of host memory (warm_format.h), where no profile comes in parts. */
struct persist_ns {
	char tenant[32];
	uint8_t tag[16]; /* registry_tag() */
	char model[256];
	uint32_t block_tokens, segments_count;
	/* struct codec_segment [segments_count] */
};

_Static_assert(sizeof(struct persist_meta) == 120, "meta");
_Static_assert(sizeof(struct persist_ns) == 312, "namespace");
_Static_assert(sizeof(struct codec_segment) == 8, "segment of a geometry");

int persist_needs(const struct namespace *ns); /* somebody does, to find blocks of it */
uint32_t persist_ns_bytes(const struct namespace *ns);
uint32_t persist_put_ns(const struct namespace *ns, uint8_t *buf); /* as many */
/* All but off and bytes. */
void persist_profile_meta(const struct namespace *ns, const struct ns_profile *np,
			  struct persist_meta *ret);

/*
 * CHECKPOINT: a piece begins with this, then come `tables` of struct persist_table, then one column after the
 * other: the same field of all blocks together compresses better.
 */
struct persist_piece {
	uint32_t count;
	uint32_t tables;
};

struct persist_table { /* a namespace, and what its blocks' profile numbers mean here */
	uint8_t ns_digest[32];
	uint8_t profile_digest[NS_PROFILES_MAX][32];
};

#define PERSIST_HAS_TOKENS 0x01u
#define PERSIST_MODEL 0x02u
#define PERSIST_LAYER 0x04u

/* field, bytes; in this order */
#define PERSIST_COLUMNS(X)          \
	X(KEY, 32)                  \
	X(RAW_XXH3, 8)              \
	X(TOKEN_HASH, 8)            \
	X(SEQUENCE, 8)              \
	X(SEGMENT, 4)               \
	X(OFF_SECTORS, 4)           \
	X(SECTORS, 4)               \
	X(POSITION, 4)              \
	X(ID, 4) /* in that life */ \
	X(GENERATION, 4)            \
	X(PARENT, 4) /* its id */   \
	X(PARENT_GENERATION, 4)     \
	X(GROUP, 4)                 \
	X(PADDING, 2)               \
	X(TABLE, 1)                 \
	X(PROFILE, 1)               \
	X(KEY_LEN, 1)               \
	X(FLAGS, 1)

enum persist_column {
#define PERSIST_ENUM(name, bytes) PERSIST_##name,
	PERSIST_COLUMNS(PERSIST_ENUM)
#undef PERSIST_ENUM
		PERSIST_COLUMN_COUNT
};

static const uint8_t persist_width[PERSIST_COLUMN_COUNT] = {
#define PERSIST_WIDTH(name, bytes) bytes,
	PERSIST_COLUMNS(PERSIST_WIDTH)
#undef PERSIST_WIDTH
};

#define PERSIST_BLOCK_BYTES 102u /* sum of these */

/* Where each column of `count` blocks begins, behind what stands before them. */
static inline void persist_columns(uint32_t count, uint32_t tables,
				   uint32_t ret_off[PERSIST_COLUMN_COUNT + 1])
{
	uint32_t off =
		(uint32_t)(sizeof(struct persist_piece) + tables * sizeof(struct persist_table));

	for (unsigned i = 0; i < PERSIST_COLUMN_COUNT; i++) {
		ret_off[i] = off;
		off += count * persist_width[i];
	}
	ret_off[PERSIST_COLUMN_COUNT] = off;
}

#endif
