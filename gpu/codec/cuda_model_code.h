/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_code.h - blocks of sequences through the `model` speculator on a GPU: from pages to payloads of
 * sequence.h, those of sequence_encode() byte for byte, and back.  Plain C; no policy; all of a batch is queued on the
 * caller's stream, and nothing waits before cuda_model_coded().
 *
 *   cuda_model_encode() or cuda_model_decode()
 *   cuda_model_coded(): what came of each block; contexts keep those that went well
 *
 * Functions return 0 or a cudaError_t, as an int.  The context of the device must be current.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_CODE_H
#define SKVCD_GPU_CODEC_CUDA_MODEL_CODE_H

#include "gpu/codec/cuda_model.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_MODEL_PAYLOAD_MAX (1u << 30) /* bytes */

struct cuda_model_coder;

/* Where a segment lies in the pages: bytes from a base to the first head of the first token of block 0. */
struct cuda_model_place {
	uint64_t off, block_stride, token_stride, head_stride;
};

struct cuda_model_shape {
	uint32_t block_tokens;	/* a multiple of 16, at most 1024 */
	uint32_t streams_count; /* of a payload: the profile's */
	uint32_t blocks_max, parts_max, positions_max;
	int encodes; /* 0: never, which takes a fraction of the memory */
	/* [2 * layers]: K of layer 0, V of layer 0, K of layer 1, ...; copied.  Multiples of the element's size. */
	const struct cuda_model_place *places;
};

/*
 * m is borrowed; it has a batch of its own (cuda_model_batch_new()).  Waits for the stream.  cudaErrorNotSupported:
 * rows that are not whole groups of 32 columns, or the tokens or streams of a block are not as above.
 */
int cuda_model_coder_new(struct cuda_model *m, const struct cuda_model_shape *s,
			 struct CUstream_st *stream, struct cuda_model_coder **ret);
struct cuda_model_coder *cuda_model_coder_free(struct cuda_model_coder *c);
size_t cuda_model_coder_bytes(const struct cuda_model_coder *c); /* of device memory */
struct cuda_model_batch *cuda_model_coder_batch(struct cuda_model_coder *c);
/* Can there be one of such blocks?  cudaErrorNotSupported otherwise, as below. */
int cuda_model_coder_ok(const struct mspec_params *p, uint32_t block_tokens,
			uint32_t streams_count);

struct cuda_model_block {
	uint64_t base;	/* device address of the pages */
	uint32_t index; /* of the block in them */
	/* Device memory, 8-byte aligned, that can be read and written up to a multiple of 8 bytes. */
	uint8_t *payload;
	uint32_t payload_bytes; /* encode: the room; decode: its length */
};

struct cuda_model_result {
	int res; /* 0; -ENOSPC (encode); -EBADMSG, -ESTALE (decode): as sequence_encode() and sequence_decode() */
	uint32_t refusal; /* enum codec_refusal, with -ESTALE */
	uint32_t payload_bytes, escapes, mu_digest;
};

/*
 * parts: rows that follow their contexts, whole blocks each; no context twice.  blocks: those of all parts in order.
 * Encoding wants ids as cuda_model_start() does; decoding has them from the payloads.  cudaErrorInvalidValue: as
 * cuda_model_start(), or a batch before this one is still to be asked for.
 */
int cuda_model_encode(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		      uint32_t parts_count, const struct cuda_model_block *blocks,
		      struct CUstream_st *stream);
int cuda_model_decode(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		      uint32_t parts_count, const struct cuda_model_block *blocks,
		      struct CUstream_st *stream);
/*
 * Waits for the stream.  ret: of each block.  Contexts have grown by all blocks since these were queued, so that more
 * of the same sequence can be queued behind them, by another coder too, on a stream that waits for this one.  Now each
 * ends before its first block that was refused: those behind it follow another prefix, and are refused for that, but
 * of those of a later batch it is the caller who must know.  All that were encoded stay, also those whose payload had
 * not the room.  After an error contexts are as they were before the batch.
 */
int cuda_model_coded(struct cuda_model_coder *c, struct CUstream_st *stream,
		     struct cuda_model_result *ret);

#ifdef __cplusplus
}
#endif

#endif
