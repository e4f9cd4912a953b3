/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_pack.cuh - an encoded block's pieces into the container of format.h: sizes and places (one warp a
 * task), then the bytes (one warp a chunk).  Chunks that did not shrink are read from the pages once more;
 * whoever changes pages meanwhile gets a block that fails its checksum.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_PACK_CUH
#define SKVCD_GPU_CODEC_CUDA_PACK_CUH

#include "gpu/codec/cuda_layout.cuh"
#include "gpu/codec/cuda_xxh3.cuh"
#include "gpu/codec/format.h"

__device__ static inline uint32_t warp_sum(uint32_t v)
{
	for (int m = 16; m > 0; m >>= 1)
		v += __shfl_xor_sync(FULL_MASK, v, m);
	return v;
}

/* Sum over the lanes below this one. */
__device__ static inline uint32_t warp_before(uint32_t v, uint32_t lane)
{
	uint32_t sum = v;

	for (uint32_t d = 1; d < WARP_LANES; d <<= 1) {
		uint32_t up = __shfl_up_sync(FULL_MASK, sum, d);

		if (lane >= d)
			sum += up;
	}
	return sum - v;
}

__device__ static inline uint32_t payload_padded(uint32_t bytes)
{
	return (bytes + FORMAT_PAYLOAD_ALIGN - 1u) & ~(FORMAT_PAYLOAD_ALIGN - 1u);
}

/* Zeros behind the leaves up to whole KiB, then the root. */
__device__ static inline uint64_t digests_root(const struct gpu_geometry *g, uint64_t *digests,
					       const struct xxh3_lane *xx, uint32_t lane)
{
	uint32_t blocks = (g->leaves_count + 127u) / 128u;

	for (uint32_t i = g->leaves_count + lane; i < blocks * 128u; i += WARP_LANES)
		digests[i] = 0;
	__syncwarp();
	return xxh3_long(xx, digests, blocks, lane);
}

__device__ static inline void header_write(const struct gpu_batch *b, const struct gpu_task *task,
					   uint32_t encoded_bytes, uint64_t root)
{
	const struct gpu_geometry *g = &task->region->g;
	struct format_block_header *h = (struct format_block_header *)task->payload;

	h->magic = FORMAT_BLOCK_MAGIC;
	h->version = FORMAT_BLOCK_VERSION;
	h->speculator = b->profile.dec ? CODEC_SPEC_CHANNEL : CODEC_SPEC_RAW;
	h->reserved = 0;
	h->encoded_bytes = encoded_bytes;
	h->chunks_count = g->chunks_count;
	h->raw_bytes = g->raw_bytes;
	h->raw_xxh3 = root;
	for (uint32_t i = 0; i < FORMAT_DIGEST_PREFIX_BYTES; i++) {
		h->profile_digest[i] = b->profile.dec ? b->profile.digest[i] : 0;
		h->geometry_digest[i] = g->digest[i];
	}
}

/* One warp: which method, how long, where. */
__device__ static void pack_index(const struct gpu_batch *b, uint32_t t, const struct xxh3_lane *xx,
				  uint32_t lane)
{
	const struct gpu_task *task = &b->task[t];
	const struct gpu_geometry *g = &task->region->g;
	uint8_t *scratch = b->scratch + t * g->scratch_bytes;
	struct gpu_sizes *sizes = (struct gpu_sizes *)(scratch + g->sizes_off);
	uint32_t *offsets = (uint32_t *)(scratch + g->offsets_off);
	struct format_chunk_entry *entry =
		(struct format_chunk_entry *)(task->payload + sizeof(struct format_block_header));
	uint32_t at = (uint32_t)(sizeof(struct format_block_header) + g->chunks_count * sizeof(*entry));
	uint32_t raws = 0, escapes = 0;

	for (uint32_t first = 0; first < g->chunks_count; first += WARP_LANES) {
		uint32_t i = first + lane, padded = 0;

		if (i < g->chunks_count) {
			const struct gpu_chunk *c = &g->chunk[i];
			struct gpu_sizes *s = &sizes[i];
			uint32_t coded = STATES_BYTES + c->low_bytes + 2u * s->words +
					 s->escapes * c->element_bytes;

			if (s->raw || coded >= c->raw_bytes)
				*s = (struct gpu_sizes){ .words = 0, .escapes = 0, .raw = 1, .payload = c->raw_bytes };
			else
				s->payload = coded;
			entry[i] = (struct format_chunk_entry){
				.payload_bytes = s->payload,
				.escape_bytes = (uint16_t)(s->escapes * c->element_bytes),
				.method = (uint8_t)(s->raw ? FORMAT_METHOD_RAW : FORMAT_METHOD_CHANNEL),
				.reserved = 0,
			};
			raws += s->raw;
			escapes += s->escapes;
			padded = payload_padded(s->payload);
		}
		uint32_t before = warp_before(padded, lane);

		if (i < g->chunks_count)
			offsets[i] = at + before;
		at += warp_sum(padded);
	}
	uint64_t root = digests_root(g, (uint64_t *)(scratch + g->leaves_off), xx, lane);

	raws = warp_sum(raws);
	escapes = warp_sum(escapes);
	if (lane == 0) {
		header_write(b, task, at, root);
		b->results[t].encoded_bytes = at;
		b->results[t].raw_xxh3 = root;
		b->results[t].chunks_raw = raws;
		b->results[t].escapes = escapes;
	}
}

/* Word `i` of the payload behind its fixed part: rANS words, then escaped patterns, then zeros. */
__device__ static inline uint32_t tail_word(const uint16_t *words, uint32_t words_bytes, const uint8_t *escapes,
					    uint32_t escape_bytes, uint32_t i)
{
	uint32_t at = 4u * i, v = 0;

	if (at + 4u <= words_bytes)
		return words[2u * i] | (uint32_t)words[2u * i + 1u] << 16;
	for (uint32_t k = 0; k < 4; k++) {
		uint32_t p = at + k;

		if (p < words_bytes)
			v |= (uint32_t)((const uint8_t *)words)[p] << (8u * k);
		else if (p - words_bytes < escape_bytes)
			v |= (uint32_t)escapes[p - words_bytes] << (8u * k);
	}
	return v;
}

__device__ static void pack_channel(const struct gpu_chunk *c, const struct gpu_sizes *s, const uint8_t *scratch,
				    uint32_t *to, uint32_t lane)
{
	const uint32_t fixed = (STATES_BYTES + c->low_bytes) / 4u;
	const uint32_t escape_bytes = s->escapes * c->element_bytes;
	const uint16_t *words = (const uint16_t *)(scratch + c->words_end) - s->words;
	const uint8_t *escapes = scratch + c->escapes_end - escape_bytes;
	const uint32_t tail = (2u * s->words + escape_bytes + 3u) / 4u;

#pragma unroll 4
	for (uint32_t i = lane; i < fixed; i += WARP_LANES)
		to[i] = ((const uint32_t *)scratch)[i];
#pragma unroll 4
	for (uint32_t i = lane; i < tail; i += WARP_LANES)
		to[fixed + i] = tail_word(words, 2u * s->words, escapes, escape_bytes, i);
}

__device__ static void pack_raw(const struct gpu_region *r, const struct gpu_chunk *c, uint32_t block,
				uint8_t *to, uint32_t lane)
{
	const uint64_t first = r->g.segment[c->first_segment].canonical_off;

	for (uint32_t i = c->first_segment; i < c->end_segment; i++) {
		const struct gpu_segment *seg = &r->g.segment[i];
		uint8_t *base = segment_base(r, seg, block), *at = to + (seg->canonical_off - first);

		if (seg->vector) {
			for (uint64_t o = 16u * lane; o < seg->bytes; o += 16u * WARP_LANES) {
				uint4 v = *(const uint4 *)canonical_at(seg, base, o);
				uint32_t *w = (uint32_t *)(at + o);

				w[0] = v.x;
				w[1] = v.y;
				w[2] = v.z;
				w[3] = v.w;
			}
			continue;
		}
		for (uint64_t o = lane; o < seg->bytes; o += WARP_LANES)
			at[o] = *canonical_at(seg, base, o);
	}
	/* Padding up to whole words. */
	for (uint32_t p = c->raw_bytes + lane; p < payload_padded(c->raw_bytes); p += WARP_LANES)
		to[p] = 0;
}

#endif
