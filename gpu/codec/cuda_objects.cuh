/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_objects.cuh - what cuda_describe.cu makes and cuda_codec.cu launches with, and the sizes that both must
 * know: of a thread block and its shared memory, and of scratch.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_OBJECTS_CUH
#define SKVCD_GPU_CODEC_CUDA_OBJECTS_CUH

#include "gpu/codec/cuda_layout.cuh"

struct cuda_layer; /* cuda_layer_run.cuh */

/*
 * Warps of a thread block, one block to a multiprocessor.  Many fill its issue slots; few have twice the registers,
 * so that one chunk is done sooner: for batches that do not fill the GPU.
 */
#define WARPS_MANY 32u
#define WARPS_FEW 16u
#define SMALL_WARPS 8u	     /* of kernels without tables */
#define CHECKSUM_BYTES 2048u /* constants of the checksum */
#define SHARED_MAX (227u << 10)
#define DECODE_WARP_BYTES (LEAF_BYTES + RING_BYTES)
#define ROOT_THREADS 256u
#define ENCODE_WARP_BYTES LEAF_BYTES
#define TABLES_MAX \
	((SHARED_MAX - CHECKSUM_BYTES - WARPS_MANY * DECODE_WARP_BYTES) / (CODEC_PROB_SUM * 4u))
#define ESCAPES_MAX (UINT16_MAX / 2u)
/* A tile needs room for 17 rows before it is begun. */
#define WORDS_SLACK_BYTES (17u * 32u * 2u)

struct cuda_profile {
	struct gpu_profile dev;
	uint8_t *memory;	  /* device */
	uint8_t *host;		  /* what was copied */
	struct cuda_layer *layer; /* owned; NULL: nothing for the kernels */
};

struct cuda_region {
	const struct gpu_region *dev;
	uint8_t *host; /* what was copied: begins with struct gpu_region */
	struct gpu_geometry g;
};

/* Scratch of an encode begins with a status word for each task, that of a decode with these and its chunks'
 * counters; then come the tasks themselves, and what is each one's own. */
#define STATUS_BYTES (CUDA_BATCH_TASKS_MAX * 4u)
#define TASKS_BYTES (CUDA_BATCH_TASKS_MAX * CUDA_TASK_BYTES)

struct decode_scratch {
	uint64_t tasks_off;   /* their descriptors */
	uint64_t leaves_off;  /* of the first task: accumulators of its leaves */
	uint64_t digests_off; /* and their digests */
	uint64_t task_stride;
};

struct decode_scratch cuda_decode_scratch_of(const struct codec_geometry *g);

/* v, up to a multiple of `to`. */
static inline uint64_t up(uint64_t v, uint64_t to)
{
	return (v + to - 1u) / to * to;
}

#endif
