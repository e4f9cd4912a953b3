/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_objects.cuh - what cuda_model_load.cu makes and cuda_model.cu launches with.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_OBJECTS_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_OBJECTS_CUH

#include <cuda_runtime.h>

/* C's word in headers whose functions are not called here. */
#define _Atomic(type) type
extern "C" {
#include "gpu/codec/model_internal.h"
}
#undef _Atomic

#include "gpu/codec/cuda_model.cuh"
#include "gpu/codec/cuda_model.h"

/* A layer of the cache, by a draft (model_draft.c): kv is the cache's. */
struct gpu_draft_layer {
	struct gpu_matrix tap[MSPEC_TAPS], past[2u * MSPEC_PREVIOUS_MAX], own;
	const int32_t *bias;  /* [2 * kv] */
	const int16_t *weigh; /* [2 * kv] */
};

struct cuda_model {
	const struct mspec_params *p; /* borrowed */
	uint8_t *memory;	      /* device; owned; all that the rest points to */
	size_t bytes;
	struct gpu_model_layer *layers;	      /* host; owned; of the model */
	struct gpu_draft_layer *draft_layers; /* host; owned; of the cache; NULL: a copy */
	struct gpu_norm tap_norm[MSPEC_TAPS];
	const int8_t *embedding_high, *embedding_low;
	const uint16_t *embedding_mants;
	const int16_t *embedding_exps;
	const int32_t *start, *sigmoid;
	const uint16_t *exp;
	int32_t *rope;	     /* device; owned; [rope_positions][head_dim] */
	int32_t *cache_rope; /* the same for the cache of a draft; owned */
	uint32_t rope_positions;
};

struct cuda_model_context {
	uint8_t *values; /* device; owned */
	uint32_t capacity, count;
};

struct cuda_model_batch {
	const struct cuda_model *m; /* borrowed */
	uint8_t *memory;	    /* device; owned */
	uint32_t rows_max, parts_max, tiles_max, positions_max;
	uint32_t rows, parts, tiles;
	uint8_t *staging; /* host, pinned; owned; the next three */
	uint32_t *host_positions;
	struct gpu_model_tile *host_tiles;
	struct gpu_model_sequence *host_sequences;
	struct cuda_model_part *host_parts; /* owned */

	int32_t *hidden, *error, *out, *mu_k, *mu_v, *ids;
	/* A draft's, and no error then: as struct mspec_guess has them, but for rows_max rows each. */
	int32_t *embedding, *sums, *exact;
	uint32_t *positions;
	uint8_t *high, *low;		 /* rows of a product, in pieces */
	uint8_t *query_high, *query_low; /* [row][heads][padded dim] */
	struct model_scale *row_scale, *step;
	struct gpu_model_tile *tile_of;
	struct gpu_model_sequence *sequences;
};

/*
 * cuda_model_start() in two steps, for those whose ids come by another way into batch->ids: then parts need none.
 * The second one takes a draft all of its way.
 */
int cuda_model_lay(struct cuda_model_batch *b, const struct cuda_model_part *parts, uint32_t count,
		   bool ids_later, struct CUstream_st *stream);
int cuda_model_embed(struct cuda_model_batch *b, struct CUstream_st *stream);

/* Device memory is laid out by the same code twice: to count, and to place. */
struct cuda_arena {
	uint8_t *base; /* NULL: only counts */
	size_t at;
};

static inline void *arena_take(struct cuda_arena *a, size_t bytes)
{
	void *p = a->base ? a->base + a->at : NULL;

	a->at += (bytes + 255u) / 256u * 256u;
	return p;
}

#endif
