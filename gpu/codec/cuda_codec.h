/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_codec.h - the codec on a GPU: what cuda_device.c launches.  Plain C; the kernels behind it are in
 * cuda_codec.cu and cuda_*.cuh.  No policy, no waiting: everything here is queued on the caller's stream.
 * Integer arithmetic only, so that the bytes are those of cpu_scalar.c.
 *
 * Functions return 0 or a cudaError_t, as an int; cuda_error.c makes an errno of it.  The context of the
 * device must be current.  Pointers named `dev` are device addresses.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_CODEC_H
#define SKVCD_GPU_CODEC_CUDA_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_BATCH_TASKS_MAX 1024u
#define CUDA_TASK_BYTES 48u /* what kernels are told of one */

struct CUstream_st;    /* cudaStream_t */
struct cuda_profile;   /* a profile's tables in device memory */
struct cuda_region;    /* a region's segments and strides in device memory */
struct codec_geometry; /* codec.h */

/* Can the kernels code this geometry?  (codec_geometry_regular, one element type in a chunk.) */
int cuda_codec_geometry_ok(const struct codec_geometry *g);
/* And with this profile (its tables fit shared memory)? */
int cuda_codec_profile_ok(const struct codec_geometry *g, const struct codec_profile *p);

/* Has it a part for `layer`?  0: no; 1: yes, and the kernels can do it; -1: they cannot: columns that are no
 * multiple of 32, heads of turned keys that do not divide 128, streams that part a leaf. */
int cuda_codec_layer_ok(const struct codec_geometry *g, const struct codec_profile *p);
/* Tasks of one batch with `layer` that so much scratch is enough for; 0: not one. */
uint32_t cuda_codec_layer_tasks(const struct codec_geometry *g, const struct codec_profile *p,
				int encode, uint64_t scratch_bytes);

/* Once for the current device: kernels' shared memory limits.  sms: multiprocessors. */
int cuda_codec_init(unsigned *ret_sms);

/* Copies queued on the stream come from private memory that lives as long as the object. */
int cuda_codec_profile_new(const struct codec_geometry *g, const struct codec_profile *p,
			   struct CUstream_st *stream, struct cuda_profile **ret_profile);
struct cuda_profile *cuda_codec_profile_free(struct cuda_profile *p); /* nothing may be using it */

/* base: device address of the region.  Any geometry: gather and scatter work for all. */
int cuda_codec_region_new(const struct codec_geometry *g, uint64_t base,
			  const struct codec_stride *stride, const uint64_t *block_stride,
			  struct CUstream_st *stream, struct cuda_region **ret_region);
struct cuda_region *cuda_codec_region_free(struct cuda_region *r);

enum cuda_status {			      /* bits of cuda_result.status; 0: good */
		   CUDA_STATUS_MALFORMED = 1, /* -EBADMSG */
		   CUDA_STATUS_STALE = 2,     /* -ESTALE: another profile, geometry or version */
		   CUDA_STATUS_CHECKSUM = 4   /* -EBADMSG */
};

/* One per task; written by the kernels, in pinned memory that the device can write.  Zeroed by the caller. */
struct cuda_result {
	uint64_t encoded_bytes; /* encode */
	uint64_t raw_xxh3;	/* encode: of the source; decode: of what was written */
	uint32_t status;	/* decode: enum cuda_status bits */
	uint32_t chunks_raw;	/* encode */
	uint32_t escapes;	/* encode */
	uint32_t verify_failed; /* encode: chunks that did not decode to what they were made from */
	uint32_t speculator;	/* encode: what was really used (enum codec_speculator) */
	uint32_t reserved;
};

struct cuda_codec_task {
	const struct cuda_region *region; /* all of one batch have the same geometry */
	uint32_t block_index;
	uint32_t skip_tokens; /* decode, scatter */
	uint32_t position; /* encode with layer: of the first token, not CODEC_POSITION_UNKNOWN */
	uint64_t dev_payload; /* encode: where the packed payload goes, codec_bound() bytes of room;
				* decode: payload; gather, scatter: canonical raw bytes.  64-byte aligned */
	uint64_t payload_bytes; /* decode */
	uint64_t expect_xxh3;	/* decode */
};

struct cuda_codec_batch {
	const struct codec_geometry *geom;
	const struct cuda_profile
		*profile;     /* NULL: encode raw; decode payloads of raw chunks only */
	uint32_t tasks_count; /* 1..CUDA_BATCH_TASKS_MAX */
	int verify;	      /* encode */
	/* encode: `layer` where it is good, else `channel`.  decode: some payload may be of `layer`.  The
	 * profile must have such a part (cuda_codec_layer_ok). */
	int layer;
	/* CUDA_TASK_BYTES for each task: pinned memory that has the same address on the device, the batch's until it is
	 * over */
	void *task_words;
	uint64_t dev_scratch; /* 256-byte aligned, of cuda_codec_*_scratch bytes */
	uint64_t
		dev_results; /* device address of struct cuda_result[tasks_count] (mapped pinned memory) */
	/* decode: 0, or device address of one byte per chunk in mapped pinned memory, zeroed by the caller; set
	 * to 1 when that chunk is written for every task of the batch. */
	uint64_t dev_chunk_done;
	struct cuda_codec_task task[CUDA_BATCH_TASKS_MAX];
};

size_t cuda_codec_encode_scratch(const struct codec_geometry *g, uint32_t tasks_count);
size_t cuda_codec_decode_scratch(const struct codec_geometry *g, uint32_t tasks_count);

int cuda_codec_encode(const struct cuda_codec_batch *b, struct CUstream_st *stream);
int cuda_codec_decode(const struct cuda_codec_batch *b, struct CUstream_st *stream);
int cuda_codec_gather(const struct cuda_codec_batch *b, struct CUstream_st *stream);
int cuda_codec_scatter(const struct cuda_codec_batch *b, struct CUstream_st *stream);

#ifdef __cplusplus
}
#endif

#endif
