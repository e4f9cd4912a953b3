/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_cache.h - the engine's side of libskvc: keys for blocks, lookup, load, store.
 *
 * The pages lie in an arena of the daemon, so that it reads and writes them where they are; without a
 * daemon they lie in ordinary memory.  Whatever goes wrong with the daemon is a miss: every function
 * here says so with a line in `note` and the engine computes what it did not get.
 */
#ifndef SKVCD_TOOLS_DEMO_CACHE_H
#define SKVCD_TOOLS_DEMO_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "client-lib/skvc.h"
#include "tools/model.h"

#define DEMO_BLOCKS_MAX 1024u /* 16384 tokens: context of one demo run */
#define DEMO_NOTE_BYTES 256u

struct demo_cache {
	const struct model_config *config; /* borrowed from the model */
	struct skvc_session *session;	   /* owned; NULL: no daemon, everything is a miss */
	struct model_pages pages;	   /* in the arena, or owned when there is no session */
	void *memory;			   /* owned; pages without a daemon */
	uint32_t ns, region;
	char note[DEMO_NOTE_BYTES]; /* why the daemon is of no use, or empty */

	/* Of the last lookup, load and store. */
	uint32_t hit_blocks;	  /* found */
	uint32_t restored_blocks; /* in the pages, byte-exact */
	uint32_t stored_blocks;	  /* committed, these or by somebody before */
	uint64_t raw_bytes, stored_bytes;
};

/*
 * Pages for @blocks_count blocks, and a session when @use_daemon.  @name is how the model is called.
 * Return: 0 (also without a daemon: see note), or -ENOMEM.
 */
int demo_cache_open(struct demo_cache *c, const struct model *m, const char *name,
		    uint32_t blocks_count, bool use_daemon, const char *socket);
void demo_cache_close(struct demo_cache *c);

/*
 * The names of a sequence's full blocks: each is BLAKE2b-256 of the one before, and of its tokens;
 * the first one's parent is the model's identity.  So equal names mean equal prefixes of one model.
 */
void demo_cache_keys(const struct model *m, const int32_t *ids, uint32_t blocks_count,
		     struct skvc_key *ret_keys);

/*
 * Find how many of the first @count blocks are known, wait until they are in memory, and decode them
 * into the pages table[0..].  Sets hit_blocks and restored_blocks; a block after the first that did
 * not come back is not counted: it has lost its prefix.
 */
void demo_cache_load(struct demo_cache *c, const struct skvc_key *keys, const int32_t *ids,
		     const uint32_t *table, uint32_t count);

/*
 * Offer the blocks first..first + count - 1 and wait until they are committed.  Sets stored_blocks,
 * raw_bytes and stored_bytes.
 */
void demo_cache_store(struct demo_cache *c, const struct skvc_key *keys, const int32_t *ids,
		      const uint32_t *table, uint32_t first, uint32_t count);

#endif
