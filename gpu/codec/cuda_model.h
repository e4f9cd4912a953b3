/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model.h - the `model` speculator's pass on a GPU: the guesses of many sequences' rows at once, those of
 * model_pass.c bit for bit.  Plain C; no policy, no waiting but where said: all is queued on the caller's stream.
 *
 * model    weights and parameters in device memory; immutable, shared
 * context  one sequence's keys and values so far, exact ones (a draft: its own), in device memory
 * batch    scratch of rows on their way through the layers; one user at a time
 *
 *   cuda_model_start(batch, parts)
 *   for each segment (K, V of each layer in order):
 *     cuda_model_guess() -> mu; encode with it, or decode the patterns
 *     cuda_model_known(patterns)
 *   cuda_model_end(): the rows are part of their contexts
 *
 * Functions return 0 or a cudaError_t, as an int.  The context of the device must be current.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_H
#define SKVCD_GPU_CODEC_CUDA_MODEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_MODEL_POSITIONS_MAX 65536u /* of a sequence */

struct CUstream_st; /* cudaStream_t */
struct mspec_params;
struct cuda_model;
struct cuda_model_context;
struct cuda_model_batch;

/* p is borrowed.  Waits for the stream: weights take a second per 10 GB or so. */
int cuda_model_new(const struct mspec_params *p, struct CUstream_st *stream,
		   struct cuda_model **ret);
struct cuda_model *cuda_model_free(struct cuda_model *m); /* nothing may be using it */
size_t cuda_model_bytes(const struct cuda_model *m);	  /* of device memory */

/* tokens_max: <= CUDA_MODEL_POSITIONS_MAX.  Waits for the stream, so that any may use it then. */
int cuda_model_context_new(const struct cuda_model *m, uint32_t tokens_max,
			   struct CUstream_st *stream, struct cuda_model_context **ret);
struct cuda_model_context *cuda_model_context_free(struct cuda_model_context *c);
void cuda_model_context_reset(struct cuda_model_context *c);
uint32_t cuda_model_context_count(const struct cuda_model_context *c);
uint32_t cuda_model_context_capacity(const struct cuda_model_context *c);
/* Forget all tokens but the first `count`, of which there must be as many. */
void cuda_model_context_truncate(struct cuda_model_context *c, uint32_t count);
/* Room for so many tokens, with those that it holds.  Waits for the stream.  On failure it is as it was. */
int cuda_model_context_grow(const struct cuda_model *m, struct cuda_model_context *c,
			    uint32_t tokens_max, struct CUstream_st *stream);
size_t cuda_model_context_bytes(const struct cuda_model *m, const struct cuda_model_context *c);

/* m may have to have positions made; nothing that was queued of its batches may be under way then. */
int cuda_model_batch_new(struct cuda_model *m, uint32_t rows_max, uint32_t parts_max,
			 uint32_t positions_max, struct CUstream_st *stream,
			 struct cuda_model_batch **ret);
struct cuda_model_batch *cuda_model_batch_free(struct cuda_model_batch *b);

struct cuda_model_part { /* rows that follow a context */
	struct cuda_model_context *context;
	const int32_t *ids; /* NULL when the parameters do not want them */
	uint32_t count;
};

/*
 * No context twice.  What was queued of this batch before must be over.  cudaErrorInvalidValue: an id outside the
 * vocabulary, or more than the batch or a context holds.
 */
int cuda_model_start(struct cuda_model_batch *b, const struct cuda_model_part *parts,
		     uint32_t count, struct CUstream_st *stream);
/* dev_mu: [rows][kv], rows of all parts in order; good until the next call. */
int cuda_model_guess(struct cuda_model_batch *b, uint32_t segment, struct CUstream_st *stream,
		     const int32_t **dev_mu);
/* patterns: device memory, [rows][kv], the cache's type */
int cuda_model_known(struct cuda_model_batch *b, uint32_t segment, const uint8_t *dev_patterns,
		     struct CUstream_st *stream);
void cuda_model_end(struct cuda_model_batch *b);
/*
 * Tokens whose values are known, instead of all that: queued, and the context holds them.  dev_patterns: of segment i,
 * [count][kv], at dev_patterns + off[i].  cudaErrorNotSupported: a draft, which wants ids: cuda_model_follow().
 */
int cuda_model_append(struct cuda_model_batch *b, struct cuda_model_context *c, uint32_t count,
		      const uint8_t *dev_patterns, const uint64_t *off, struct CUstream_st *stream);
/* Tokens whose ids are known, for a draft; ids as those of a part.  cudaErrorNotSupported: a copy. */
int cuda_model_follow(struct cuda_model_batch *b, struct cuda_model_context *c, const int32_t *ids,
		      uint32_t count, struct CUstream_st *stream);
/* Of each part's guesses so far, as mspec_result's.  Waits for the stream. */
int cuda_model_digests(struct cuda_model_batch *b, struct CUstream_st *stream, uint32_t *ret);

#ifdef __cplusplus
}
#endif

#endif
