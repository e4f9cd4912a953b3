/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_engine.h - engine.h with pages in GPU memory: one session, one namespace of made-up KV data, one region in
 * one or more allocations, laid out as engines lay theirs out.  For processes that are engines and nothing
 * else: what must not fail ends them with status 1.
 */
#ifndef SKVCD_TESTS_LIB_GPU_ENGINE_H
#define SKVCD_TESTS_LIB_GPU_ENGINE_H

#include <stdint.h>

#include "client-lib/skvc.h"
#include "tests/lib/gpu_side.h"
#include "tests/lib/kv_data.h"

#define GPU_ENGINE_MEMORIES_MAX 4u
#define GPU_ENGINE_LAYERS 4u
#define GPU_ENGINE_BLOCKS_MAX 64u
#define GPU_ENGINE_POISON 0xa5u

enum gpu_engine_layout {
	GPU_ENGINE_PER_LAYER,	/* an allocation to a layer, [2, N, T, H, D] in each */
	GPU_ENGINE_CROSS_LAYER, /* [N, L, 2, T, H, D], half of the layers in each of two */
	GPU_ENGINE_LAYOUT_COUNT
};

struct gpu_engine {
	struct gpu_side side;
	struct skvc_session *session;
	struct kv_data data;
	enum gpu_engine_layout layout;
	uint32_t ns, region, blocks, memories;
	uint64_t seed;
	struct gpu_memory memory[GPU_ENGINE_MEMORIES_MAX];
	struct skvc_gpu_stride stride[2u * GPU_ENGINE_LAYERS];
	uint8_t *image[GPU_ENGINE_MEMORIES_MAX]; /* owned; what the memory holds, or should */
	uint8_t *block;				 /* owned; one, packed */
};

/* Returns 0, or 77 when there is no GPU. */
int gpu_engine_open(struct gpu_engine *e, const char *socket, uint64_t seed,
		    enum gpu_side_kind kind, enum gpu_engine_layout layout, uint32_t blocks);
/* register_gpu once more, of what the exports say; returns what it returned. */
int gpu_engine_register(struct gpu_engine *e, const struct skvc_gpu_export *exports,
			uint32_t blocks, uint32_t *ret_region);
void gpu_engine_exports(struct gpu_engine *e, struct skvc_gpu_export *ret);
void gpu_engine_close(struct gpu_engine *e);

/* Blocks (chain, 0 .. count) into pages 0 .. count: of the image, then of the GPU. */
void gpu_engine_image(struct gpu_engine *e, uint64_t chain, uint32_t count);
void gpu_engine_write(struct gpu_engine *e);
void gpu_engine_poison(struct gpu_engine *e, uint8_t value);

/* Keys (chain, 0 .. count), pages 0 .. count as they are.  event: 0, or what is waited for. */
int gpu_engine_submit_store(struct gpu_engine *e, uint64_t chain, uint32_t count, uint32_t event,
			    uint64_t *ret_job);
int gpu_engine_submit_load(struct gpu_engine *e, uint64_t lease, uint32_t count, uint32_t ready,
			   uint32_t done, uint64_t *ret_bitmap, uint64_t *ret_job);
int gpu_engine_finish(struct gpu_engine *e, uint64_t job, struct skvc_completion *ret);
/* 0 and a lease on ret->count blocks, all ready; or what went wrong. */
int gpu_engine_lookup(struct gpu_engine *e, uint64_t chain, uint32_t count,
		      struct skvc_completion *ret);
void gpu_engine_release(struct gpu_engine *e, uint64_t lease);

/* Fill, store, wait.  What the job said, or the call. */
int gpu_engine_store(struct gpu_engine *e, uint64_t chain, uint32_t count);
/*
 * Look up, load onto poison, compare: how many blocks came back; bytes that are reported as exact and are
 * not, or written where nothing should be, end the process.  -errno of the load that brought none.
 */
int gpu_engine_fetch(struct gpu_engine *e, uint64_t chain, uint32_t count);
/* The pages of these blocks hold them, the others' and what lies between `other`. */
void gpu_engine_check(struct gpu_engine *e, uint64_t chain, uint32_t count, const uint64_t *bitmap,
		      uint8_t other);

#endif
