/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_streams.cuh - a segment of a batch whose guesses are made, through the residual coder: rows of `layer`'s
 * kernels, from guesses and patterns as the pass has them.  Streams are parked in device memory between segments.
 *
 * Decoding goes with the pass, a segment at a time.  Encoding comes after it, from the last segment to the first, as
 * the coder must see the end first; so the guesses of all segments are kept until then.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_STREAMS_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_STREAMS_CUH

#include "gpu/codec/cuda_layer_decode.cuh"
#include "gpu/codec/cuda_layer_encode.cuh"
#include "gpu/codec/cuda_model_code.cuh"

#define CODE_WARPS 24u /* of a thread block, at most */
#define CODE_WARPS_LOAD 12u
#define CODE_WARPS_MIN 4u /* one to a scheduler: a stream's rows wait for one another */
#define CODE_AHEAD 4u	  /* guesses in registers before their rows */
#define CODE_SYMBOL_THREADS 512u
#define CODE_SYMBOL_BLOCKS 2 /* to a multiprocessor */

__host__ __device__ static inline uint32_t code_decode_shared(uint32_t tokens, uint32_t warps)
{
	return LAYER_DECODE_TABLES + warps * (RING_BYTES + tokens);
}

/* ---- decoding ---- */

/* A group of 32 columns.  mu, to: of this lane's column in the block's first row. */
template <int DT>
__device__ __forceinline__ static void code_group_decode(const struct gpu_code_run *r,
							 struct layer_decoder *d,
							 const uint8_t *tau, int32_t base,
							 const int32_t *mu, uint8_t *to)
{
	const uint32_t bytes = DT <= 2 ? 2u : 1u, columns = r->columns, tokens = r->tokens;
	const int16_t *const grids = layer_grids_of(d->grids, base);
	bool raws = false;
	int32_t m[CODE_AHEAD];

#pragma unroll
	for (uint32_t k = 0; k < CODE_AHEAD; k++)
		m[k] = mu[(uint64_t)k * columns];
	struct layer_cell g = layer_cell_of(grids, base, m[0], tau[0]);

#pragma unroll 1
	for (uint32_t t = 0; t < tokens; t++, to += columns * bytes) {
		const uint32_t ahead = min(t + CODE_AHEAD, tokens - 1u);
		struct layer_cell next;
		uint32_t pattern;

		if (t % TILE_ROWS == 0)
			raws = __any_sync(FULL_MASK,
					  tau[t + d->lane % TILE_ROWS] == RESIDUAL_TAU_RAW);
		words_need(&d->w, d->lane);
#pragma unroll
		for (uint32_t i = 0; i + 1u < CODE_AHEAD; i++)
			m[i] = m[i + 1u];
		m[CODE_AHEAD - 1u] = mu[(uint64_t)ahead * columns];
		/* While this row's states are on their way. */
		next = layer_cell_of(grids, base, m[0], tau[min(t + 1u, tokens - 1u)]);
		if (raws && __any_sync(FULL_MASK, tau[t] == RESIDUAL_TAU_RAW))
			pattern = layer_take_raw(d, 8u * bytes);
		else
			pattern = layer_row<DT>(d, g);
		if (bytes == 2)
			*(uint16_t *)to = (uint16_t)pattern;
		else
			*to = (uint8_t)pattern;
		g = next;
	}
}

/* A stream's share of a segment of a block. */
template <int DT>
__device__ static void code_share_decode(const struct gpu_code_run *r,
					 const struct gpu_code_segment *s, uint32_t block,
					 struct layer_share h, struct layer_decoder *d,
					 uint8_t *tau)
{
	layer_taus(d, r->tokens, tau);
	for (uint32_t group = h.group_begin; group < h.group_end; group++) {
		const uint32_t column = group * CODEC_LANES + d->lane;
		const uint64_t at = (uint64_t)block * r->tokens * r->columns + column;

		code_group_decode<DT>(r, d, tau, s->base[column], s->mu + at,
				      s->patterns + at * (DT <= 2 ? 2u : 1u));
	}
}

/* Of a block that was refused. */
__device__ static inline void code_share_clear(const struct gpu_code_run *r,
					       const struct gpu_code_segment *s, uint32_t block,
					       struct layer_share h, uint32_t lane)
{
	const uint32_t bytes = r->row_bytes / r->columns;
	const uint32_t first = h.group_begin * CODEC_LANES * bytes,
		       count = (h.group_end - h.group_begin) * CODEC_LANES * bytes;

	for (uint32_t t = 0; t < r->tokens; t++) {
		uint8_t *row = s->patterns + (uint64_t)(block * r->tokens + t) * r->row_bytes;

		for (uint32_t i = lane * 4u; i < count; i += WARP_LANES * 4u)
			*(uint32_t *)(row + first + i) = 0;
	}
}

template <int DT>
__global__ __launch_bounds__(CODE_WARPS *WARP_LANES, 1) void code_decode_kernel(
	const __grid_constant__ struct gpu_code_run r,
	const __grid_constant__ struct gpu_code_segment s)
{
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);
	uint8_t *const rings = shared + LAYER_DECODE_TABLES;
	const uint32_t warps = blockDim.x / WARP_LANES;
	uint8_t *const tau = rings + warps * RING_BYTES + warp * r.tokens;

	layer_decode_tables_load(shared, &r.tables[s.segment % 2u], r.grids);
	__syncthreads();
	for (uint32_t i = blockIdx.x + gridDim.x * warp; i < r.blocks_count * r.streams_count;
	     i += gridDim.x * warps) {
		const uint32_t block = i / r.streams_count;
		const struct layer_share h = layer_share_of(r.columns, i % r.streams_count,
							    r.streams_count);
		struct layer_decoder d;

		if (warp_uniform(r.state[block].status) != CODE_GOOD) {
			code_share_clear(&r, &s, block, h, lane);
			continue;
		}
		layer_decoder_init(&d, shared, lane);
		layer_stream_load(&r.stream[i], &d, (uint16_t *)(rings + warp * RING_BYTES));
		code_share_decode<DT>(&r, &s, block, h, &d, tau);
		if (layer_stream_park(&r.stream[i], &d, s.last, false) && lane == 0)
			atomicOr(&r.state[block].bad, 1u);
		__syncwarp();
	}
}

/* ---- encoding ---- */

/* Every stream begins at the end of its room.  A warp a block; grid: blocks */
__global__ void code_begin_kernel(const __grid_constant__ struct gpu_code_run r)
{
	const uint32_t lane = threadIdx.x;

	for (uint32_t i = 0; i < r.streams_count; i++) {
		const uint32_t at = blockIdx.x * r.streams_count + i;
		struct gpu_layer_stream *s = &r.stream[at];

		s->state[lane] = CODEC_STATE_LOW;
		if (lane == 0) {
			s->limit = (uint64_t)(r.words + at * r.stream_bytes);
			s->words = s->limit + r.stream_bytes;
			s->left = 0;
			s->bad = 0;
		}
	}
	if (lane == 0)
		r.state[blockIdx.x] = (struct gpu_code_state){};
}

/* A warp a token and stream: its scale, its symbols, and the digest of its guesses. */
template <int DT>
__global__ __launch_bounds__(CODE_SYMBOL_THREADS, CODE_SYMBOL_BLOCKS) void code_symbols_kernel(
	const __grid_constant__ struct gpu_code_run r,
	const __grid_constant__ struct gpu_code_segment s)
{
	const uint32_t lane = threadIdx.x % WARP_LANES, each = CODE_SYMBOL_THREADS / WARP_LANES;
	struct layer_rows w;

	layer_symbol_tables_load(shared, &r.tables[s.segment % 2u], r.grids);
	__syncthreads();
	w.base = s.base;
	w.page_stride = r.row_bytes;
	w.pitch = r.columns;
	w.head_stride = 0; /* all columns are one head */
	w.head_dim = r.columns;
	w.head_magic = 0;
	w.enc = (const uint32_t *)shared;
	w.grids = (const int16_t *)(shared + LAYER_SHARED_ENC);
	w.lane = lane;
	for (uint32_t i = warp_uniform(blockIdx.x * each + threadIdx.x / WARP_LANES);
	     i < r.blocks_count * r.tokens * r.streams_count; i += gridDim.x * each) {
		const uint32_t row = i / r.streams_count, stream = i % r.streams_count;
		const uint32_t block = row / r.tokens, token = row % r.tokens;
		const uint32_t place = (r.block[block].position + token) * r.columns;
		const struct layer_share h = layer_share_of(r.columns, stream, r.streams_count);
		uint32_t digest = 0;

		w.page = s.patterns + (uint64_t)row * r.row_bytes;
		w.mu = s.mu + (uint64_t)row * r.columns;
		w.symbol = r.symbol + (uint64_t)row * r.columns;
		layer_rows_symbols<DT>(
			&w, h, 1, r.tau + (block * r.streams_count + stream) * r.tokens + token);
		for (uint32_t g = h.group_begin; g < h.group_end; g++) {
			const uint32_t c = g * CODEC_LANES + lane;

			digest += model_guess_digest(w.mu[c], place + c, s.segment);
		}
		digest = layer_warp_sum(digest);
		if (lane == 0)
			atomicAdd(&r.state[block].digest, digest);
	}
}

struct code_place { /* a lane's column of a block's segment, where its patterns are kept */
	struct layer_page at;

	__device__ __forceinline__ struct layer_page page() const
	{
		return at;
	}
};

/* A stream's share of a segment of a block.  False: its words do not fit. */
template <int DT>
__device__ __forceinline__ static bool code_share_encode(const struct gpu_code_run *r,
							 const struct gpu_code_segment *s,
							 uint32_t block, struct layer_share h,
							 const uint8_t *tau, struct layer_coder *c,
							 uint32_t lane)
{
	for (uint32_t group = h.group_end; group-- > h.group_begin;) {
		const uint32_t column = group * CODEC_LANES + lane;
		const uint64_t at = (uint64_t)block * r->tokens * r->columns + column;
		const struct layer_group<struct code_place> g = {
			.tokens = r->tokens, .pitch = r->columns, .tau = tau,
			.symbol = r->symbol + at, .mu = s->mu + at,
			.place = { { s->patterns + at * (DT <= 2 ? 2u : 1u), r->row_bytes } },
			.base = s->base + column,
		};

		if (!layer_group_encode<DT>(&g, c))
			return false;
	}
	return layer_taus_encode(r->tables[s->segment % 2u].tau_enc, tau, r->tokens, c, lane);
}

template <int DT>
__global__ __launch_bounds__(CODE_WARPS *WARP_LANES, 1) void code_encode_kernel(
	const __grid_constant__ struct gpu_code_run r,
	const __grid_constant__ struct gpu_code_segment s)
{
	__shared__ __align__(16) uint32_t rcp[CODEC_PROB_SUM];
	const struct gpu_layer_tables *tables = &r.tables[s.segment % 2u];
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);

	tables_load((uint8_t *)rcp, tables->rcp, sizeof(rcp));
	__syncthreads();
	for (uint32_t i = blockIdx.x + gridDim.x * warp; i < r.blocks_count * r.streams_count;
	     i += gridDim.x * (blockDim.x / WARP_LANES)) {
		struct gpu_layer_stream *stream = &r.stream[i];
		const uint32_t block = i / r.streams_count;
		struct layer_coder c;

		if (warp_uniform(stream->bad))
			continue;
		layer_coder_load(&c, stream, tables, rcp, lane);
		const uint32_t before = c.at;
		const bool fits = code_share_encode<DT>(
			&r, &s, block,
			layer_share_of(r.columns, i % r.streams_count, r.streams_count),
			r.tau + (uint64_t)i * r.tokens, &c, lane);
		const uint32_t escapes = layer_warp_sum(c.escapes);

		layer_coder_park(stream, &c, before, fits, lane);
		if (lane == 0) {
			if (escapes)
				atomicAdd(&r.state[block].escapes, escapes);
			if (!fits)
				atomicOr(&r.state[block].bad, 1u);
		}
		__syncwarp();
	}
}

#endif
