/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_code.cuh - what the kernels know of a batch of blocks between pages and payloads of sequence.h, and the
 * payload around the streams: head, ids, checksum.
 *
 * Block b of a batch has rows [b * tokens, (b + 1) * tokens) of it.  Segments are in the model's order: K of layer 0,
 * V of layer 0, K of layer 1, ...
 *
 * Whatever a payload says, nothing outside it and the batch is touched: lengths are compared with the payload's before
 * they are believed, ids with the vocabulary.  A block that is refused goes on through the layers with zeros.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_CODE_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_CODE_CUH

#include "gpu/codec/cuda_layer.cuh"
#include "gpu/codec/cuda_model.cuh"
#include "gpu/codec/cuda_pack.cuh"
#include "gpu/codec/cuda_xxh3_any.cuh"

#define CODE_HEAD_BYTES 16u /* sequence.h */
#define CODE_FLAG_IDS 1u
#define CODE_CHECK_THREADS (XXH3_ANY_WARPS * WARP_LANES)
#define CODE_SMALL_THREADS 128u

enum code_status {
	CODE_GOOD,
	CODE_DAMAGED, /* what the CPU sees before it looks at the position */
	CODE_POSITION,
	CODE_STREAMS, /* and what it sees after */
	CODE_SPACE    /* encode: longer than its room */
};

struct gpu_code_block { /* as the host tells it */
	uint64_t base;	/* of the pages */
	uint8_t *payload;
	uint32_t index;	   /* of the block in them */
	uint32_t bytes;	   /* of the payload; encode: its room */
	uint32_t position; /* of its first token */
	uint32_t reserved;
};

struct gpu_code_state { /* and what came of it */
	uint32_t status;
	uint32_t bad;	 /* streams that did not come to their end, or ran out of scratch */
	uint32_t digest; /* of the guesses */
	uint32_t expect; /* decode: that of the payload */
	uint32_t bytes, escapes;
	uint32_t reserved[2];
};

struct gpu_code_place { /* a segment in the pages; bytes */
	uint64_t off, block_stride, token_stride, head_stride;
};

struct gpu_code_run { /* kernel argument */
	const struct gpu_code_block *block;
	struct gpu_code_state *state;
	struct gpu_layer_stream *stream;       /* [block][stream] */
	const struct gpu_layer_tables *tables; /* keys', values' */
	const struct gpu_layer_grids *grids;   /* of the element type */
	const struct gpu_code_place *place;
	uint32_t blocks_count, tokens, streams_count, columns;
	uint32_t row_bytes, head_bytes;
	uint32_t id_bits, vocab, ids_bytes; /* 0 without ids */
	int32_t *ids;			    /* [row] */
	uint8_t *patterns;		    /* [segment][row][columns]; decode: of one segment */
	uint64_t segment_bytes;		    /* of them */
	uint8_t *tau;			    /* encode: [block][stream][token] */
	uint2 *symbol;			    /* encode: [row][columns] */
	uint8_t *words;			    /* encode: [block][stream][stream_bytes] */
	uint64_t stream_bytes;
};

struct gpu_code_segment { /* kernel argument: the one that is coded */
	uint32_t segment, last;
	const int16_t *base;
	int32_t *mu; /* [row][columns] */
	uint8_t *patterns;
};

/* ---- ids ---- */

CODEC_HD uint32_t code_ids_bytes(uint32_t count, uint32_t bits)
{
	return (count * bits + 63u) / 64u * 8u;
}

/* 64 bits of the packed ids. */
CODEC_HD uint64_t code_ids_word(const int32_t *ids, uint32_t count, uint32_t bits, uint32_t word)
{
	uint64_t v = 0;

	for (uint32_t t = 64u * word / bits; t < count && t * bits < 64u * (word + 1u); t++) {
		const int32_t at = (int32_t)(t * bits) - (int32_t)(64u * word);
		const uint64_t id = (uint32_t)ids[t];

		v |= at < 0 ? id >> -at : id << at;
	}
	return v;
}

/* words: of the packed ids. */
CODEC_HD uint32_t code_id_at(const uint32_t *words, uint32_t bits, uint32_t t)
{
	const uint32_t at = t * bits, odd = at % 32u;
	uint64_t v = words[at / 32u];

	if (odd + bits > 32u)
		v |= (uint64_t)words[at / 32u + 1u] << 32;
	return (uint32_t)(v >> odd) & ((1u << bits) - 1u);
}

/* Into the batch, by the whole thread block; an id that is none becomes 0.  Returns whether all are right. */
__device__ static inline bool code_ids_read(const struct gpu_code_run *r, const uint32_t *words,
					    int32_t *ids)
{
	const uint32_t end = r->tokens * r->id_bits;
	bool bad = false;

	for (uint32_t t = threadIdx.x; t < r->tokens; t += blockDim.x) {
		const uint32_t id = code_id_at(words, r->id_bits, t);

		bad |= id >= r->vocab;
		ids[t] = id < r->vocab ? (int32_t)id : 0;
	}
	for (uint32_t w = end / 32u + threadIdx.x; w < r->ids_bytes / 4u; w += blockDim.x)
		bad |= words[w] >> (w == end / 32u ? end % 32u : 0) != 0;
	return !__syncthreads_or(bad);
}

/* ---- the streams' place ---- */

CODEC_HD uint32_t code_index_bytes(uint32_t streams)
{
	return (streams * 4u + 7u) & ~7u;
}

/* States and words of a block's streams, by one warp.  at: 8-byte aligned. */
__device__ static inline bool code_streams_open(const struct gpu_code_run *r, const uint8_t *at,
						uint32_t bytes, struct gpu_layer_stream *stream,
						uint32_t lane)
{
	const uint32_t n = r->streams_count, index = code_index_bytes(n);
	const uint32_t *words = (const uint32_t *)at;
	uint64_t off = index + n * STATES_BYTES;
	bool bad = false;

	if (bytes < off || (n % 2u && words[n] != 0))
		return false;
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t x = ((const uint32_t *)(at + index + i * STATES_BYTES))[lane];

		bad |= x < CODEC_STATE_LOW;
		stream[i].state[lane] = x;
		if (lane == 0) {
			stream[i].words = (uint64_t)(at + min(off, (uint64_t)bytes));
			stream[i].left = words[i];
			stream[i].bad = 0;
		}
		off += 2u * (uint64_t)words[i];
	}
	return !__any_sync(FULL_MASK, bad) && off == bytes;
}

/* ---- opening a payload ---- */

/* All that is before the streams.  By the whole thread block. */
__device__ static inline uint32_t code_head_read(const struct gpu_code_run *r,
						 const struct gpu_code_block *b, int32_t *ids,
						 struct xxh3_any_shared *sh)
{
	const uint32_t *head = (const uint32_t *)b->payload;

	if (b->bytes < CODE_HEAD_BYTES)
		return CODE_DAMAGED;
	if (head[0] != (uint32_t)xxh3_any(b->payload + 4, b->bytes - 4u, sh))
		return CODE_DAMAGED;
	if (head[3] != (r->streams_count | (r->ids_bytes ? CODE_FLAG_IDS << 16 : 0)))
		return CODE_DAMAGED;
	if (r->ids_bytes) {
		if (r->ids_bytes > b->bytes - CODE_HEAD_BYTES)
			return CODE_DAMAGED;
		if (!code_ids_read(r, head + CODE_HEAD_BYTES / 4u, ids))
			return CODE_DAMAGED;
	}
	return head[1] == b->position ? CODE_GOOD : CODE_POSITION;
}

/* grid: blocks */
__global__ __launch_bounds__(CODE_CHECK_THREADS) void code_open_kernel(
	const __grid_constant__ struct gpu_code_run r)
{
	__shared__ struct xxh3_any_shared sh;
	const struct gpu_code_block b = r.block[blockIdx.x];
	struct gpu_layer_stream *stream = &r.stream[blockIdx.x * r.streams_count];
	int32_t *ids = r.ids + blockIdx.x * r.tokens;
	const uint32_t lane = threadIdx.x % WARP_LANES, off = CODE_HEAD_BYTES + r.ids_bytes;
	uint32_t status;

	for (uint32_t t = threadIdx.x; r.ids_bytes && t < r.tokens; t += blockDim.x)
		ids[t] = 0;
	__syncthreads();
	status = code_head_read(&r, &b, ids, &sh);
	if (threadIdx.x >= WARP_LANES)
		return;
	if (status == CODE_GOOD &&
	    !code_streams_open(&r, b.payload + off, b.bytes - off, stream, lane))
		status = CODE_STREAMS;
	if (lane == 0) {
		r.state[blockIdx.x] = (struct gpu_code_state){
			.status = status,
			.bad = 0,
			.digest = 0,
			.expect = status ? 0 : ((const uint32_t *)b.payload)[2],
			.bytes = b.bytes,
			.escapes = 0,
			.reserved = {},
		};
	}
}

/* ---- making one ---- */

/* All but the words and the checksum, or a status that says why not.  A warp a block; grid: blocks. */
__global__ void code_finish_kernel(const __grid_constant__ struct gpu_code_run r)
{
	const uint32_t lane = threadIdx.x, n = r.streams_count;
	const struct gpu_code_block b = r.block[blockIdx.x];
	struct gpu_code_state *state = &r.state[blockIdx.x];
	const struct gpu_layer_stream *stream = &r.stream[blockIdx.x * n];
	uint32_t *head = (uint32_t *)b.payload;
	uint8_t *at = b.payload + CODE_HEAD_BYTES + r.ids_bytes;
	uint64_t bytes = CODE_HEAD_BYTES + r.ids_bytes + code_index_bytes(n) + n * STATES_BYTES;

	for (uint32_t i = 0; i < n; i++)
		bytes += 2u * (uint64_t)stream[i].left;
	if (state->bad || bytes > b.bytes) {
		if (lane == 0)
			state->status = CODE_SPACE;
		return;
	}
	for (uint32_t w = lane; w < r.ids_bytes / 8u; w += WARP_LANES)
		((uint64_t *)(b.payload + CODE_HEAD_BYTES))[w] =
			code_ids_word(r.ids + blockIdx.x * r.tokens, r.tokens, r.id_bits, w);
	for (uint32_t i = 0; i < n; i++)
		((uint32_t *)(at + code_index_bytes(n) + i * STATES_BYTES))[lane] =
			stream[i].state[lane];
	for (uint32_t i = lane; i < code_index_bytes(n) / 4u; i += WARP_LANES)
		((uint32_t *)at)[i] = i < n ? stream[i].left : 0;
	if (lane == 0) {
		head[1] = b.position;
		head[2] = state->digest;
		head[3] = n | (r.ids_bytes ? CODE_FLAG_IDS << 16 : 0);
		state->bytes = (uint32_t)bytes;
	}
}

/* A warp a stream: its words to their place.  grid: blocks, streams */
__global__ void code_pack_kernel(const __grid_constant__ struct gpu_code_run r)
{
	const uint32_t lane = threadIdx.x, n = r.streams_count;
	const struct gpu_code_block b = r.block[blockIdx.x];
	const struct gpu_layer_stream *stream = &r.stream[blockIdx.x * n];
	const uint16_t *from = (const uint16_t *)stream[blockIdx.y].words;
	uint32_t count = stream[blockIdx.y].left;
	uint8_t *to = b.payload + CODE_HEAD_BYTES + r.ids_bytes + code_index_bytes(n) +
		      n * STATES_BYTES;

	if (r.state[blockIdx.x].status != CODE_GOOD)
		return;
	for (uint32_t i = 0; i < blockIdx.y; i++)
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

/* grid: blocks */
__global__ __launch_bounds__(CODE_CHECK_THREADS) void code_seal_kernel(
	const __grid_constant__ struct gpu_code_run r)
{
	__shared__ struct xxh3_any_shared sh;
	const struct gpu_code_block b = r.block[blockIdx.x];
	const struct gpu_code_state *state = &r.state[blockIdx.x];

	if (state->status != CODE_GOOD)
		return;
	const uint64_t h = xxh3_any(b.payload + 4, state->bytes - 4u, &sh);

	if (threadIdx.x == 0)
		*(uint32_t *)b.payload = (uint32_t)h;
}

/* ---- pages ---- */

/* A row between its page and where the kernels have it, by the whole thread block. */
template <bool OUT>
__device__ __forceinline__ static void code_row_copy(const struct gpu_code_run *r, uint8_t *page,
						     uint64_t head_stride, uint8_t *row, bool wide)
{
	if (wide) {
		for (uint32_t at = threadIdx.x * 16u; at < r->row_bytes; at += blockDim.x * 16u) {
			uint4 *in_page = (uint4 *)(page + at / r->head_bytes * head_stride +
						   at % r->head_bytes),
			      *in_row = (uint4 *)(row + at);

			if (OUT)
				*in_page = *in_row;
			else
				*in_row = *in_page;
		}
		return;
	}
	for (uint32_t at = threadIdx.x; at < r->row_bytes; at += blockDim.x) {
		uint8_t *in_page = page + at / r->head_bytes * head_stride + at % r->head_bytes;

		if (OUT)
			*in_page = row[at];
		else
			row[at] = *in_page;
	}
}

/* grid: rows, segments.  wide: pages can be had 16 bytes at a time. */
__global__ __launch_bounds__(CODE_SMALL_THREADS) void code_rows_in_kernel(
	const __grid_constant__ struct gpu_code_run r, uint32_t wide)
{
	const struct gpu_code_block b = r.block[blockIdx.x / r.tokens];
	const struct gpu_code_place p = r.place[blockIdx.y];

	code_row_copy<false>(&r,
			     (uint8_t *)(b.base + p.off + b.index * p.block_stride +
					 blockIdx.x % r.tokens * p.token_stride),
			     p.head_stride,
			     r.patterns + blockIdx.y * r.segment_bytes +
				     (uint64_t)blockIdx.x * r.row_bytes,
			     wide && b.base % 16u == 0);
}

/* Decode: a segment's rows into the pages, and the digest of its guesses.  grid: rows */
__global__ __launch_bounds__(CODE_SMALL_THREADS) void code_rows_out_kernel(
	const __grid_constant__ struct gpu_code_run r,
	const __grid_constant__ struct gpu_code_segment s, uint32_t wide)
{
	const uint32_t block = blockIdx.x / r.tokens, token = blockIdx.x % r.tokens;
	const struct gpu_code_block b = r.block[block];
	const struct gpu_code_place p = r.place[s.segment];
	const int32_t *mu = s.mu + (uint64_t)blockIdx.x * r.columns;
	const uint32_t place = (b.position + token) * r.columns;
	uint32_t digest = 0;

	if (r.state[block].status != CODE_GOOD)
		return;
	code_row_copy<true>(
		&r, (uint8_t *)(b.base + p.off + b.index * p.block_stride + token * p.token_stride),
		p.head_stride, s.patterns + (uint64_t)blockIdx.x * r.row_bytes,
		wide && b.base % 16u == 0);
	for (uint32_t c = threadIdx.x; c < r.columns; c += blockDim.x)
		digest += model_guess_digest(mu[c], place + c, s.segment);
	digest = __reduce_add_sync(FULL_MASK, digest);
	if (threadIdx.x % WARP_LANES == 0 && digest)
		atomicAdd(&r.state[block].digest, digest);
}

#endif
