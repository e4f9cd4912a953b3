/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.h - what an inference engine does with libskvc, made small: one session, one namespace of made-up
 * KV data, one arena with room for a run of blocks, and calls that store a run, look it up, load it and
 * compare every byte.  A run is blocks (chain, 0), (chain, 1), ... each the parent of the next.
 */
#ifndef SKVCD_TESTS_LIB_ENGINE_H
#define SKVCD_TESTS_LIB_ENGINE_H

#include <stdint.h>

#include "client-lib/skvc.h"
#include "tests/lib/kv_data.h"

#define ENGINE_BLOCKS_MAX 256u

struct engine_options {	       /* zero: the values in brackets */
	uint64_t seed;	       /* of the data: engines that share blocks share it */
	const char *model;     /* ["test"] */
	const char *name;      /* ["engine"] */
	uint32_t role;	       /* enum skvc_role */
	uint32_t layers;       /* [2] */
	uint16_t heads;	       /* [2] */
	uint16_t head_dim;     /* [64] */
	uint32_t block_tokens; /* [16] */
	uint32_t dtype;	       /* [SKVC_DTYPE_BF16] */
	uint32_t blocks;       /* room in the arena [32], at most ENGINE_BLOCKS_MAX */
	uint32_t sq_entries;
	uint64_t spin_ns;
	uint64_t timeout_ns; /* also for connecting */
	int follows;	     /* kv_data's */
};

struct engine {
	struct skvc_session *session;
	struct skvc_arena *arena;
	uint8_t *pages; /* of the arena */
	struct kv_data data;
	uint32_t ns;
	uint32_t region;
	uint32_t blocks;
	uint64_t salt; /* of the keys */
};

/* Each returns 0 or the first negative errno that the library said, after printing it. */
int engine_open(struct engine *e, const char *socket, const struct engine_options *options);
void engine_close(struct engine *e);

static inline uint64_t engine_block(uint64_t chain, uint32_t position)
{
	return chain << 16 | position;
}

struct skvc_key engine_key(const struct engine *e, uint64_t chain, uint32_t position);
uint8_t *engine_page(const struct engine *e, uint32_t page);

/* Submit only: keys (chain, first..first + count) from pages 0..count, which are filled. */
int engine_submit_store(struct engine *e, uint64_t chain, uint32_t first, uint32_t count,
			uint64_t *ret_job);
int engine_submit_lookup(struct engine *e, uint64_t chain, uint32_t count, uint64_t *ret_job);
/* Load count blocks from the lease's first one into pages 0..count; bitmap: ENGINE_BLOCKS_MAX bits or NULL. */
int engine_submit_load(struct engine *e, uint64_t lease, uint32_t first, uint32_t count,
		       uint64_t *ret_bitmap, uint64_t *ret_job);
/* Wait for a job and take its DONE; a store's SOURCE_FREE is taken on the way. */
int engine_finish(struct engine *e, uint64_t job, struct skvc_completion *ret);

/* Whole operations.  They return what the library or the completion said. */
int engine_store(struct engine *e, uint64_t chain, uint32_t first, uint32_t count,
		 struct skvc_completion *ret);
int engine_lookup(struct engine *e, uint64_t chain, uint32_t count, struct skvc_completion *ret);
int engine_release(struct engine *e, uint64_t lease);
/* Wait until a lease's blocks are ready or lost, at most 10 s: 0, -ETIME, -ESTALE. */
int engine_lease_ready(struct engine *e, uint64_t lease, struct skvc_lease_status *ret);

/*
 * Look (chain, 0..count) up, wait for NVMe, load and compare all of the prefix that is there.  Returns how
 * many blocks came back byte-exact, or a negative errno; a block reported as exact that is not is -EBADMSG
 * and printed: nothing may ever cause that.
 */
int engine_fetch(struct engine *e, uint64_t chain, uint32_t count);

#endif
