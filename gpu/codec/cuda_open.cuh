/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_open.cuh - the container of format.h, read by a warp: header, index, and where a chunk's payload lies.  Every
 * length is checked against the payload's before it is believed.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_OPEN_CUH
#define SKVCD_GPU_CODEC_CUDA_OPEN_CUH

#include "gpu/codec/cuda_decode.cuh"
#include "gpu/codec/format.h"

/* Is this the container that the task is about?  Lane i < 16 looks at word i of the header. */
__device__ static inline uint32_t header_check(const struct gpu_batch *b, const struct gpu_task *t,
					       uint32_t lane)
{
	const struct gpu_geometry *g = &t->region->g;
	const uint32_t word = lane < 16 ? ((const uint32_t *)t->payload)[lane] : 0;
	/* Both need the profile. */
	const uint32_t kind = __shfl_sync(FULL_MASK, word, 1),
		       channel = kind >> 16 == CODEC_SPEC_CHANNEL || kind >> 16 == CODEC_SPEC_LAYER;
	const uint32_t profile = channel ? ((const uint32_t *)b->profile.digest)[lane % 4u] : 0;
	const uint64_t wide = lane < 6 ? g->raw_bytes : t->expect_xxh3;
	uint32_t expect = lane % 2u ? (uint32_t)(wide >> 32) : (uint32_t)wide,
		 bad; /* words 4 to 7 */

	/* Selections, not branches: the warp stays together. */
	expect = lane == 0 ? FORMAT_BLOCK_MAGIC : expect;
	expect = lane == 1 ? FORMAT_BLOCK_VERSION | (kind & 0x00ff0000u) : expect;
	expect = lane == 2 ? (uint32_t)t->payload_bytes : expect;
	expect = lane == 3 ? g->chunks_count : expect;
	expect = lane >= 8 ? profile : expect;
	expect = lane >= 12 ? ((const uint32_t *)g->digest)[lane % 4u] : expect;
	expect = lane >= 16 ? word : expect;
	bad = __ballot_sync(FULL_MASK, word != expect);
	if (channel && !b->profile.dec)
		bad |= 0x0100u;
	if (kind >> 16 == CODEC_SPEC_LAYER && !b->layer_part)
		bad |= 0x0001u;
	return (bad & 0x00ffu ? CUDA_STATUS_MALFORMED : 0) |
	       (bad & 0xff00u ? CUDA_STATUS_STALE : 0);
}

__device__ static inline uint64_t up_to_align(uint32_t bytes)
{
	return ((uint64_t)bytes + FORMAT_PAYLOAD_ALIGN - 1u) &
	       ~(uint64_t)(FORMAT_PAYLOAD_ALIGN - 1u);
}

/* Find a chunk's payload; every length is checked against payload_bytes before it is believed. */
__device__ static inline uint32_t chunk_open(const struct gpu_task *t, uint32_t index,
					     struct format_chunk_entry *ret_entry,
					     const uint8_t **ret_payload, uint32_t lane)
{
	const struct gpu_geometry *g = &t->region->g;
	const struct format_chunk_entry *entry =
		(const struct format_chunk_entry *)(t->payload +
						    sizeof(struct format_block_header));
	const uint64_t begin = sizeof(struct format_block_header) +
			       (uint64_t)g->chunks_count * sizeof(*entry);
	uint64_t before = 0;

	for (uint32_t i = lane; i < index; i += WARP_LANES)
		before += up_to_align(entry[i].payload_bytes);
	for (int m = 16; m > 0; m >>= 1)
		before += __shfl_xor_sync(FULL_MASK, (unsigned long long)before, m);
	*ret_entry = entry[index];
	const uint64_t end = begin + before + up_to_align(ret_entry->payload_bytes);

	if (end > t->payload_bytes || ret_entry->reserved != 0)
		return CUDA_STATUS_MALFORMED;
	if (index + 1u == g->chunks_count && end != t->payload_bytes)
		return CUDA_STATUS_MALFORMED;
	*ret_payload = t->payload + begin + before;
	return 0;
}

/* Is this the first chunk that `layer` coded? */
__device__ static inline bool residual_first(const struct gpu_task *t, uint32_t index,
					     uint32_t lane)
{
	const struct format_chunk_entry *entry =
		(const struct format_chunk_entry *)(t->payload +
						    sizeof(struct format_block_header));
	bool other = false;

	for (uint32_t i = lane; i < index; i += WARP_LANES)
		other |= entry[i].method == FORMAT_METHOD_RESIDUAL;
	return !__any_sync(FULL_MASK, other);
}

__device__ static inline uint32_t stream_open(const struct gpu_chunk *c,
					      const struct format_chunk_entry *e,
					      const uint8_t *payload, struct gpu_stream *ret)
{
	const uint32_t fixed = STATES_BYTES + c->low_bytes;

	if (!c->tiles || e->payload_bytes < fixed || e->escape_bytes > e->payload_bytes - fixed ||
	    e->escape_bytes % c->element_bytes)
		return CUDA_STATUS_MALFORMED;
	const uint32_t words = e->payload_bytes - fixed - e->escape_bytes;

	if (words % 2u || words / 2u > c->scalars)
		return CUDA_STATUS_MALFORMED;
	ret->states = (const uint32_t *)payload;
	ret->low = payload + STATES_BYTES;
	ret->words = (const uint16_t *)(payload + fixed);
	ret->words_count = words / 2u;
	ret->escapes = payload + fixed + words;
	ret->escapes_count = e->escape_bytes / c->element_bytes;
	return 0;
}

#endif
