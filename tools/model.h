/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.h - a small inference engine for the CPU: a Hugging Face folder in, logits out, its KV
 * cache in pages that the caller owns.
 *
 * Arithmetic is fp32 on bf16 weights; keys (after rope) and values are rounded to bf16 when they are
 * written to their page, and attention reads them from there always, also those of the token itself.
 * Sums have one fixed order (model_kernels.h).  So the logits of a token are a function of the
 * weights and the tokens before it, and it makes no difference, to the last bit, in what batches the
 * prefix was computed, or whether its pages came from somewhere else.
 *
 * One thread at a time may use a model; it has worker threads of its own.  Knows nothing of skvcd.
 */
#ifndef SKVCD_TOOLS_MODEL_H
#define SKVCD_TOOLS_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/model/config.h"

#define MODEL_BLOCK_TOKENS 16u /* tokens of a page */
#define MODEL_BATCH_TOKENS 96u /* tokens of one model_forward() at most */
#define MODEL_IDENTITY_BYTES 32u

struct model;
struct model_kernels;

struct model_options {			     /* zero-initialise */
	uint32_t threads;		     /* 0: one per processor, at most 8 */
	uint32_t context_tokens;	     /* positions < this will be used; 0: 4096 */
	const struct model_kernels *kernels; /* NULL: the best of this processor */
};

/*
 * The memory of a KV cache: 2 * layers segments one after the other (K of layer 0, V of layer 0, K
 * of layer 1, ...), each [blocks_count][MODEL_BLOCK_TOKENS][kv_heads][head_dim] in bf16.
 */
struct model_pages {
	uint16_t *base; /* borrowed; model_pages_bytes() of it */
	uint32_t blocks_count;
};

/**
 * model_open() - load config.json and the weights (model.safetensors, or the shards that
 * model.safetensors.index.json names) of a folder.
 * @options: may be NULL.
 * @err: one line saying what is wrong and where, on failure only.
 *
 * Return: 0; -EINVAL for content that is wrong or not implemented; -ENOMEM; the errno of the I/O.
 */
int model_open(const char *folder, const struct model_options *options, struct model **ret,
	       char *err, size_t err_bytes);

/* Accepts NULL, returns NULL. */
struct model *model_close(struct model *m);

const struct model_config *model_config(const struct model *m);
const struct model_kernels *model_kernels(const struct model *m);
uint32_t model_threads_used(const struct model *m);

/* BLAKE2b-256 of everything that decides a KV value: shape, weights, version of the arithmetic. */
const uint8_t *model_identity(const struct model *m);

/* Bytes of one segment of one block, of a whole block, and of pages for so many blocks. */
uint64_t model_segment_bytes(const struct model_config *c);
uint64_t model_block_bytes(const struct model_config *c);
uint64_t model_pages_bytes(const struct model_config *c, uint32_t blocks_count);

/* Where a segment (2 * layer for K, 2 * layer + 1 for V) of a block lies. */
uint16_t *model_page(const struct model_config *c, const struct model_pages *pages,
		     uint32_t segment, uint32_t block);

/**
 * model_forward() - run tokens through the model: positions position..position + count - 1.
 * @pages: the pages of all earlier positions hold their keys and values; those of these positions
 *         are written.
 * @block_table: entry i is the block of positions 16 i..16 i + 15; entries < pages->blocks_count.
 * @count: 1..MODEL_BATCH_TOKENS.
 * @ret_logits: vocab floats for the last of the tokens; NULL when they are not wanted.
 *
 * Return: 0; -EINVAL for an id outside the vocabulary; -E2BIG beyond context_tokens.
 */
int model_forward(struct model *m, const struct model_pages *pages, const uint32_t *block_table,
		  uint32_t position, const int32_t *ids, uint32_t count, float *ret_logits);

/* The token with the greatest logit, the first of equals; -1 when none is a finite number. */
int32_t model_greedy(const struct model *m, const float *logits);

#endif
