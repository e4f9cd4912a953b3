/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_run.cuh - between cuda_codec.cu, which knows containers and batches, and cuda_layer.cu, which takes a
 * batch through the segments of `layer`.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_RUN_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_RUN_CUH

#include <cuda_runtime.h>

#include "gpu/codec/cuda_layer.cuh"

#define ONCE_SEGMENTS_MAX \
	8u /* coded by one launch of an encoder: guesses of all of them are kept */

struct cuda_layer_segment { /* what launches must know */
	uint32_t pieces, first_piece;
	uint32_t inputs, dtype, tau_streams;
	uint32_t turn; /* which of gemm_rotate()'s */
	bool narrow;
	bool taken; /* by a later one */
	bool flat;  /* guesses are the bias: no product, no turn */
	bool own_inputs; /* its decoder can make them: warps that share a tau have both elements of its pairs */
};

struct cuda_layer_shape { /* of a geometry and a profile: what scratch is made of */
	uint32_t tokens, segments_count, streams_count, pairs;
	uint32_t pieces, pieces_max; /* of all segments, of the widest */
	uint32_t slots;		     /* segments whose inputs a decoder keeps */
	uint32_t once;	       /* cuda_layer_once.cuh: segments taken at a time; 0: not for it */
	uint64_t stream_bytes; /* an encoder's words, at most */
	uint64_t coded_bytes;  /* raw, of the predicted segments */
};

struct cuda_layer { /* a profile's part */
	struct gpu_layer dev;
	struct cuda_layer_shape shape;
	struct cuda_layer_segment *segment; /* owned */
	double poor;			    /* bytes * 8 * 100 above it are poor */
	uint8_t *memory;		    /* device */
	cudaStream_t side;		    /* for the second half of a large batch to be encoded */
	cudaEvent_t fork, join;
};

/* 0: the profile has no such part; 1: the kernels can do it; -1: they cannot. */
int cuda_layer_can(const struct codec_geometry *g, const struct codec_profile *p);
int cuda_layer_init(void);
/* Copies before it returns. */
int cuda_layer_new(const struct codec_geometry *g, const struct codec_profile *p,
		   struct CUstream_st *stream, struct cuda_layer **ret_layer);
struct cuda_layer *cuda_layer_free(struct cuda_layer *l);

uint64_t cuda_layer_decode_scratch(const struct cuda_layer_shape *s, uint32_t tasks_count);
uint64_t cuda_layer_encode_scratch(const struct cuda_layer_shape *s, uint32_t tasks_count);
struct cuda_layer_shape cuda_layer_shape_of(const struct codec_geometry *g,
					    const struct codec_profile *p);

/*
 * All segments of the tasks whose payloads are `layer`: into the pages, leaves where the batch has them, and status
 * bits.  Chunks of the others are left alone.
 */
int cuda_layer_decode(const struct cuda_layer *l, const struct gpu_batch *b, uint8_t *scratch,
		      struct CUstream_st *stream);
/*
 * Whole payloads where that is good or perhaps; leaves are there already.  *ret_tasks says of each task which: of
 * those that are not LAYER_GOOD, cuda_codec.cu tries `channel`.
 */
int cuda_layer_encode(const struct cuda_layer *l, const struct gpu_batch *b, uint8_t *scratch,
		      int verify, struct CUstream_st *stream, struct gpu_layer_task **ret_tasks);

#endif
