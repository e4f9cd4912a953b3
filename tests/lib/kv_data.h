/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_data.h - block contents that look like a KV cache to a codec: each channel (segment, head,
 * dimension) has a mean and a spread of its own, tokens scatter around it, and a block is a pure function
 * of a seed and a number, so that no test needs to remember what it stored.
 */
#ifndef SKVCD_TESTS_LIB_KV_DATA_H
#define SKVCD_TESTS_LIB_KV_DATA_H

#include <stddef.h>
#include <stdint.h>

#include "client-lib/skvc.h"

struct kv_data {
	uint64_t seed;
	uint32_t block_tokens;
	uint32_t segments_count;
	struct skvc_segment *segments; /* owned */
	float *mean;		       /* owned; one per channel of all segments */
	float *spread;		       /* owned */
	uint32_t channels_count;
	int follows;	    /* each layer is the one before, mixed, and a little of its own */
	size_t block_bytes; /* packed: [segment][token][head][dimension] */
};

/* layers pairs of K and V segments of heads * head_dim elements.  0 or -ENOMEM. */
int kv_data_init(struct kv_data *d, uint64_t seed, uint32_t layers, uint16_t heads,
		 uint16_t head_dim, uint32_t block_tokens, enum skvc_dtype dtype);
void kv_data_deinit(struct kv_data *d);

/* The geometry that this is the data of; borrows d and model. */
struct skvc_geometry kv_data_geometry(const struct kv_data *d, const char *model);

void kv_data_fill(const struct kv_data *d, uint64_t block, void *ret_bytes);
/* Bytes of no block that compress: bf16 of magnitude about one; always the same. */
void kv_data_fill_any(uint8_t *mem, size_t bytes);
/* 0, or 1 when the bytes are not those of this block. */
int kv_data_compare(const struct kv_data *d, uint64_t block, const void *bytes);

/* The name of a block; `salt` separates tests that share a daemon. */
struct skvc_key kv_data_key(uint64_t salt, uint64_t block);

#endif
