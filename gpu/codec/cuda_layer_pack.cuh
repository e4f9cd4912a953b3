/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_pack.cuh - the streams of a block between the container of format.h and where the kernels keep them.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_PACK_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_PACK_CUH

#include "gpu/codec/cuda_layer.cuh"
#include "gpu/codec/cuda_open.cuh"
#include "gpu/codec/cuda_pack.cuh"

#define LAYER_HEAD_BYTES 8u /* position, streams */

__device__ static inline uint32_t layer_index_bytes(uint32_t streams)
{
	return (streams * 4u + 7u) & ~7u;
}

/* Bytes of a payload before its words. */
__device__ static inline uint32_t layer_fixed_bytes(uint32_t streams)
{
	return LAYER_HEAD_BYTES + layer_index_bytes(streams) + streams * STATES_BYTES;
}

/* The chunk that carries it: where, and how long; nothing else may.  Returns false when there is none. */
__device__ static inline bool layer_find(const struct gpu_task *t, uint64_t *ret_off,
					 uint32_t *ret_bytes, uint32_t lane)
{
	const uint32_t chunks = t->region->g.chunks_count;
	const struct format_chunk_entry *entry =
		(const struct format_chunk_entry *)(t->payload +
						    sizeof(struct format_block_header));
	uint64_t off = sizeof(struct format_block_header) + (uint64_t)chunks * sizeof(*entry);
	bool found = false;

	for (uint32_t first = 0; first < chunks && !found; first += WARP_LANES) {
		const uint32_t i = first + lane;
		const uint32_t bytes = i < chunks ? entry[i].payload_bytes : 0;
		const bool is = i < chunks && entry[i].method == FORMAT_METHOD_RESIDUAL;
		const uint32_t mask = __ballot_sync(FULL_MASK, is),
			       at = mask ? __ffs(mask) - 1 : 32;
		uint64_t before = lane < at ? up_to_align(bytes) : 0;

		for (int m = 16; m > 0; m >>= 1)
			before += __shfl_xor_sync(FULL_MASK, (unsigned long long)before, m);
		off += before;
		found = mask != 0;
		*ret_bytes = __shfl_sync(FULL_MASK, bytes, at % WARP_LANES);
	}
	*ret_off = off;
	return found && off + *ret_bytes <= t->payload_bytes;
}

/* States and words of a decoder's streams; false when the payload cannot be one. */
__device__ static inline bool layer_open(const struct gpu_layer_run *r, const struct gpu_task *t,
					 struct gpu_layer_task *of, struct gpu_layer_stream *stream,
					 uint32_t lane)
{
	const uint32_t n = r->layer.streams_count, fixed = layer_fixed_bytes(n);
	uint64_t off, at = fixed;
	uint32_t bytes;
	bool bad = false;

	if (!layer_find(t, &off, &bytes, lane) || bytes < fixed)
		return false;
	const uint8_t *payload = t->payload + off; /* 8-byte aligned */
	const uint32_t *head = (const uint32_t *)payload;

	if (head[1] != n || (n % 2u && head[2u + n] != 0))
		return false;
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t words = head[2u + i];
		const uint32_t x =
			((const uint32_t *)(payload + LAYER_HEAD_BYTES + layer_index_bytes(n) +
					    i * STATES_BYTES))[lane];

		bad |= x < CODEC_STATE_LOW;
		stream[i].state[lane] = x;
		if (lane == 0) {
			stream[i].words = (uint64_t)(payload + min(at, (uint64_t)bytes));
			stream[i].left = words;
			stream[i].bad = 0;
		}
		at += 2u * (uint64_t)words;
	}
	if (__any_sync(FULL_MASK, bad) || at != bytes)
		return false;
	if (lane == 0)
		of->position = head[0];
	return true;
}

/* The block's chunk index, and where each chunk's payload begins; returns where the last one ends.  By a warp. */
__device__ static inline uint32_t layer_index(const struct gpu_geometry *g, uint32_t bytes,
					      struct format_chunk_entry *entry, uint32_t *offsets,
					      struct gpu_layer_task *of, uint32_t lane,
					      uint32_t *ret_raws)
{
	uint32_t at =
		(uint32_t)(sizeof(struct format_block_header) + g->chunks_count * sizeof(*entry));
	bool first = true;

	/* What is in the way of all lanes is little. */
	for (uint32_t i = 0; i < g->chunks_count; i++) {
		const struct gpu_chunk *c = &g->chunk[i];
		const uint32_t size = !c->coded ? c->raw_bytes : first ? bytes : 0;

		if (lane == 0) {
			entry[i] = (struct format_chunk_entry){
				.payload_bytes = size,
				.escape_bytes = 0,
				.method = (uint8_t)(c->coded ? FORMAT_METHOD_RESIDUAL
							     : FORMAT_METHOD_RAW),
				.reserved = 0,
			};
			offsets[i] = at;
			if (c->coded && first)
				of->at = at;
		}
		*ret_raws += !c->coded;
		first = first && !c->coded;
		at += payload_padded(size);
	}
	return at;
}

/* The end of encoding: is it good, and then all but the words.  By a warp. */
__device__ static inline void layer_finish(const struct gpu_layer_run *r, const struct gpu_batch *b,
					   uint32_t index, uint64_t coded_bytes, double poor,
					   uint64_t root, uint32_t lane)
{
	const struct gpu_task *t = &b->task[index];
	const struct gpu_geometry *g = &t->region->g;
	struct gpu_layer_task *of = &r->of[index];
	const struct gpu_layer_stream *stream = &r->stream[index * r->layer.streams_count];
	const uint32_t n = r->layer.streams_count;
	uint32_t *offsets = (uint32_t *)(b->scratch + index * g->scratch_bytes + g->offsets_off);
	struct format_chunk_entry *entry =
		(struct format_chunk_entry *)(t->payload + sizeof(struct format_block_header));
	uint64_t bytes = layer_fixed_bytes(n);
	uint32_t verdict, at, raws = 0;

	for (uint32_t i = 0; i < n; i++)
		bytes += 2u * (uint64_t)stream[i].left;
	verdict = of->bad || bytes > coded_bytes   ? LAYER_NONE
		  : (double)bytes * 8 * 100 > poor ? LAYER_POOR
						   : LAYER_GOOD;
	__syncwarp();
	if (lane == 0) {
		of->verdict = verdict;
		of->bytes = (uint32_t)bytes;
	}
	if (verdict == LAYER_NONE)
		return;
	at = layer_index(g, (uint32_t)bytes, entry, offsets, of, lane, &raws);
	__syncwarp();
	uint8_t *payload = t->payload + of->at;

	for (uint32_t i = 0; i < n; i++) {
		((uint32_t *)(payload + LAYER_HEAD_BYTES + layer_index_bytes(n) +
			      i * STATES_BYTES))[lane] = stream[i].state[lane];
		if (lane == 0)
			((uint32_t *)(payload + LAYER_HEAD_BYTES))[i] = stream[i].left;
	}
	if (lane == 0) {
		((uint32_t *)payload)[0] = of->position;
		((uint32_t *)payload)[1] = n;
		if (n % 2u)
			((uint32_t *)payload)[2u + n] = 0;
		for (uint32_t i = (uint32_t)bytes; i < payload_padded((uint32_t)bytes); i++)
			payload[i] = 0;
		header_write(b, t, at, root);
		((struct format_block_header *)t->payload)->speculator = CODEC_SPEC_LAYER;
		b->results[index].encoded_bytes = at;
		b->results[index].raw_xxh3 = root;
		b->results[index].chunks_raw = raws;
		b->results[index].escapes = of->escapes;
		b->results[index].speculator = CODEC_SPEC_LAYER;
	}
}

/* One stream's words to their place; both are 2-byte aligned. */
__device__ static inline void layer_pack_words(const struct gpu_layer_run *r,
					       const struct gpu_task *t, uint32_t index,
					       uint32_t stream_index, uint32_t lane)
{
	const struct gpu_layer_stream *stream = &r->stream[index * r->layer.streams_count];
	uint8_t *to = t->payload + r->of[index].at + layer_fixed_bytes(r->layer.streams_count);
	const uint16_t *from = (const uint16_t *)stream[stream_index].words;
	uint32_t count = stream[stream_index].left;

	for (uint32_t i = 0; i < stream_index; i++)
		to += 2u * (uint64_t)stream[i].left;
	if (count > 0 && (uintptr_t)to & 2u) {
		if (lane == 0)
			*(uint16_t *)to = *from;
		to += 2;
		from++;
		count--;
	}
	copy_words((uint32_t *)to, from, count / 2u, lane);
	if (count % 2u && lane == 0)
		((uint16_t *)to)[count - 1u] = from[count - 1u];
}

#endif
