/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_pack.cuh - an encoded block's pieces into the container of format.h: sizes and places (one warp a
 * task), then the bytes (one warp a chunk).  Chunks that did not shrink are read from the pages once more;
 * whoever changes pages meanwhile gets a block that fails its checksum.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_PACK_CUH
#define SKVCD_GPU_CODEC_CUDA_PACK_CUH

#include "gpu/codec/cuda_layer.cuh"
#include "gpu/codec/cuda_xxh3.cuh"
#include "gpu/codec/format.h"

extern __shared__ __align__(1024) uint8_t shared[];

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

/*
 * By a thread block: digests of a task's leaves from their accumulators, zeros behind them up to whole KiB, and
 * by its first warp the root, in each of its lanes.
 */
__device__ static inline uint64_t leaves_root(const struct gpu_geometry *g, const uint64_t *leaves,
					      uint64_t *digests, const struct xxh3_lane *xx)
{
	const uint32_t blocks = (g->leaves_count + 127u) / 128u;

	for (uint32_t i = threadIdx.x; i < blocks * 128u; i += blockDim.x)
		digests[i] = i < g->leaves_count ? xxh3_digest((const uint64_t *)shared,
							       leaves + (uint64_t)i * LEAF_ACCS)
						 : 0;
	__syncthreads();
	return threadIdx.x < WARP_LANES ? xxh3_long(xx, digests, blocks, threadIdx.x) : 0;
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

/* How long each chunk is.  Returns false when `layer` was poor, but is not poorer: its payload stays. */
__device__ static inline bool pack_sizes(const struct gpu_batch *b, uint32_t t,
					 struct gpu_sizes *sizes, uint32_t at, uint32_t lane)
{
	const struct gpu_geometry *g = &b->task[t].region->g;
	struct gpu_layer_task *layer = b->layer ? &b->layer[t] : NULL;
	uint32_t bytes = 0;

	for (uint32_t i = lane; i < g->chunks_count; i += WARP_LANES) {
		const struct gpu_chunk *c = &g->chunk[i];
		struct gpu_sizes *s = &sizes[i];
		const uint32_t coded = STATES_BYTES + c->low_bytes + 2u * s->words +
				       s->escapes * c->element_bytes;

		if (s->raw || coded >= c->raw_bytes)
			*s = (struct gpu_sizes){
				.words = 0, .escapes = 0, .raw = 1, .payload = c->raw_bytes
			};
		else
			s->payload = coded;
		bytes += payload_padded(s->payload);
	}
	at += warp_sum(bytes);
	const bool keep = layer && layer->verdict == LAYER_POOR && at > layer->bytes;

	__syncwarp();
	if (keep && lane == 0)
		layer->verdict = LAYER_GOOD;
	return !keep;
}

/* A thread block: the root.  Its first warp: which method, how long, where. */
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
	uint32_t at =
		(uint32_t)(sizeof(struct format_block_header) + g->chunks_count * sizeof(*entry));
	uint32_t raws = 0, escapes = 0;
	const uint64_t root = leaves_root(g, (const uint64_t *)(scratch + g->leaves_off),
					  (uint64_t *)(scratch + g->digests_off), xx);

	if (threadIdx.x >= WARP_LANES)
		return;
	if (!pack_sizes(b, t, sizes, at, lane))
		return;
	for (uint32_t first = 0; first < g->chunks_count; first += WARP_LANES) {
		uint32_t i = first + lane, padded = 0;

		if (i < g->chunks_count) {
			const struct gpu_sizes *s = &sizes[i];

			entry[i] = (struct format_chunk_entry){
				.payload_bytes = s->payload,
				.escape_bytes = (uint16_t)(s->escapes * g->chunk[i].element_bytes),
				.method = (uint8_t)(s->raw ? FORMAT_METHOD_RAW
							   : FORMAT_METHOD_CHANNEL),
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
	raws = warp_sum(raws);
	escapes = warp_sum(escapes);
	if (lane == 0) {
		header_write(b, task, at, root);
		b->results[t].encoded_bytes = at;
		b->results[t].raw_xxh3 = root;
		b->results[t].chunks_raw = raws;
		b->results[t].escapes = escapes;
		b->results[t].speculator = b->profile.dec ? CODEC_SPEC_CHANNEL : CODEC_SPEC_RAW;
	}
}

/* Word `i` of the payload behind its fixed part: rANS words, then escaped patterns, then zeros. */
__device__ static inline uint32_t tail_word(const uint16_t *words, uint32_t words_bytes,
					    const uint8_t *escapes, uint32_t escape_bytes,
					    uint32_t i)
{
	uint32_t at = 4u * i, v = 0;

	for (uint32_t k = 0; k < 4; k++) {
		uint32_t p = at + k;

		if (p < words_bytes)
			v |= (uint32_t)((const uint8_t *)words)[p] << (8u * k);
		else if (p - words_bytes < escape_bytes)
			v |= (uint32_t)escapes[p - words_bytes] << (8u * k);
	}
	return v;
}

#define COPY_DEPTH 8u /* loads in flight in each lane */

/* Both 8-byte aligned, in units of that. */
__device__ static inline void copy_aligned(uint64_t *to, const uint64_t *from, uint32_t count,
					   uint32_t lane)
{
	uint64_t v[COPY_DEPTH];

	for (uint32_t i = lane; i < count; i += COPY_DEPTH * WARP_LANES) {
#pragma unroll
		for (uint32_t d = 0; d < COPY_DEPTH; d++)
			if (i + d * WARP_LANES < count)
				v[d] = from[i + d * WARP_LANES];
#pragma unroll
		for (uint32_t d = 0; d < COPY_DEPTH; d++)
			if (i + d * WARP_LANES < count)
				to[i + d * WARP_LANES] = v[d];
	}
}

/* From 2-byte alignment to 4-byte alignment; reads up to 4 bytes before and behind. */
__device__ static inline void copy_words(uint32_t *to, const uint16_t *from, uint32_t count,
					 uint32_t lane)
{
	const uint32_t *at = (const uint32_t *)((uintptr_t)from & ~(uintptr_t)3u);
	const uint32_t shift = (uintptr_t)from & 2u ? 16 : 0;
	uint32_t v[COPY_DEPTH], next[COPY_DEPTH];

	for (uint32_t i = lane; i < count; i += COPY_DEPTH * WARP_LANES) {
#pragma unroll
		for (uint32_t d = 0; d < COPY_DEPTH; d++)
			if (i + d * WARP_LANES < count) {
				v[d] = at[i + d * WARP_LANES];
				next[d] = at[i + d * WARP_LANES + 1u];
			}
#pragma unroll
		for (uint32_t d = 0; d < COPY_DEPTH; d++)
			if (i + d * WARP_LANES < count)
				to[i + d * WARP_LANES] = __funnelshift_r(v[d], next[d], shift);
	}
}

__device__ static void pack_channel(const struct gpu_chunk *c, const struct gpu_sizes *s,
				    const uint8_t *scratch, uint32_t *to, uint32_t lane)
{
	const uint32_t fixed = STATES_BYTES + c->low_bytes; /* a multiple of 64 */
	const uint32_t escape_bytes = s->escapes * c->element_bytes, words_bytes = 2u * s->words;
	const uint16_t *words = (const uint16_t *)(scratch + c->words_end) - s->words;
	const uint8_t *escapes = scratch + c->escapes_end - escape_bytes;
	const uint32_t whole = words_bytes / 4u,
		       tail = payload_padded(words_bytes + escape_bytes) / 4u;

	copy_aligned((uint64_t *)to, (const uint64_t *)scratch, fixed / 8u, lane);
	to += fixed / 4u;
	copy_words(to, words, whole, lane);
	for (uint32_t i = whole + lane; i < tail; i += WARP_LANES)
		to[i] = tail_word(words, words_bytes, escapes, escape_bytes, i);
}

__device__ static void pack_raw(const struct gpu_region *r, const struct gpu_chunk *c,
				uint32_t block, uint8_t *to, uint32_t lane)
{
	const uint64_t first = r->g.segment[c->first_segment].canonical_off;

	for (uint32_t i = c->first_segment; i < c->end_segment; i++) {
		const struct gpu_segment *seg = &r->g.segment[i];
		uint8_t *base = segment_base(r, seg, block),
			*at = to + (seg->canonical_off - first);

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
