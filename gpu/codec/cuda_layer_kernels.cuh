/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_kernels.cuh - the kernels of `layer` but for products and inputs, which have files of their own.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_KERNELS_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_KERNELS_CUH

#include "gpu/codec/cuda_layer_decode.cuh"
#include "gpu/codec/cuda_layer_encode.cuh"
#include "gpu/codec/cuda_layer_inputs.cuh"
#include "gpu/codec/cuda_layer_once.cuh"
#include "gpu/codec/cuda_layer_pack.cuh"
#include "gpu/codec/cuda_objects.cuh"

#define STREAM_WARPS \
	32u /* at most; a multiple of LAYER_TAU_STREAMS_MAX, whose streams share a tau */
#define SYMBOL_THREADS 512u
#define SYMBOL_BLOCKS 2 /* to a multiprocessor */
#define SYMBOL_ROWS 4u	/* of a warp; of one task */
#define ENCODE_THREADS 256u
#define ENCODE_BLOCKS 4
#define ROWS_BEYOND 8u /* guesses are read ahead */

/* ---- small kernels ---- */

/* Once, before any other: the checksum's constants. */
__global__ void layer_checksum_kernel(void)
{
	xxh3_table_fill(layer_checksum_table, threadIdx.x);
}

/* Decode: what each task is.  A warp a task. */
__global__ void layer_open_kernel(const __grid_constant__ struct gpu_batch b,
				  const __grid_constant__ struct gpu_layer_run r)
{
	const uint32_t t = blockIdx.x, lane = threadIdx.x;
	struct gpu_layer_task *of = &r.of[t];
	bool live = false;

	if (lane == 0) {
		((struct gpu_task *)r.task)[t] = b.task[t];
		*of = layer_task_of(&b.task[t]);
	}
	__syncwarp();
	/* Another header's faults are decode_kernel's to tell. */
	if (!warp_uniform(header_check(&b, &b.task[t], lane)) &&
	    warp_uniform(b.task[t].payload[6]) == CODEC_SPEC_LAYER) {
		live = layer_open(&r, &b.task[t], of, &r.stream[t * r.layer.streams_count], lane);
		if (!live && lane == 0)
			atomicOr(&r.status[t], CUDA_STATUS_MALFORMED);
	}
	if (lane == 0)
		of->live = live;
}

/* Encode: likewise; every stream begins at the end of its room. */
__global__ void layer_begin_kernel(const __grid_constant__ struct gpu_batch b,
				   const __grid_constant__ struct gpu_layer_run r, uint8_t *words,
				   uint64_t words_stride, uint64_t stream_bytes)
{
	const uint32_t t = blockIdx.x, lane = threadIdx.x;

	for (uint32_t i = 0; i < r.layer.streams_count; i++) {
		struct gpu_layer_stream *s = &r.stream[t * r.layer.streams_count + i];

		s->state[lane] = CODEC_STATE_LOW;
		if (lane == 0) {
			s->limit = (uint64_t)(words + t * words_stride + i * stream_bytes);
			s->words = s->limit + stream_bytes;
			s->left = 0;
			s->bad = 0;
		}
	}
	if (lane == 0) {
		((struct gpu_task *)r.task)[t] = b.task[t];
		r.of[t] = layer_task_of(&b.task[t]);
		r.of[t].live = 1;
		r.of[t].position = b.task[t].position;
	}
}

/* Verification reads what was written. */
__global__ void layer_again_kernel(const __grid_constant__ struct gpu_layer_run r,
				   struct gpu_layer_stream *keep)
{
	const uint32_t i = blockIdx.x * PLAIN_THREADS / WARP_LANES + threadIdx.x / WARP_LANES;
	const uint32_t lane = threadIdx.x % WARP_LANES;

	if (i >= r.tasks_count * r.layer.streams_count)
		return;
	keep[i].state[lane] = r.stream[i].state[lane];
	if (lane == 0) {
		keep[i].words = r.stream[i].words;
		keep[i].left = r.stream[i].left;
		keep[i].bad = 0;
	}
}

/* ---- streams ---- */

#define TAU_MORE 4u /* behind a stream's taus: one is read ahead */

static_assert((XXH3_TABLE_BYTES + LAYER_DECODE_TABLES) % RING_BYTES == 0, "rings are aligned");
static_assert(LAYER_DECODE_GRIDS +
			      (GRID_BASE_MAX - 6 - GRID_SCALE_FIRST + 2 * RESIDUAL_TAU_RAW + 1) *
				      GRID_PITCH * sizeof(int16_t) <=
		      LAYER_DECODE_TABLES + RING_BYTES,
	      "no row that a tau chooses is beyond shared memory");
static_assert(XXH3_TABLE_BYTES + LAYER_DECODE_TABLES +
			      STREAM_WARPS * (RING_BYTES + LEAF_BYTES + CODEC_BLOCK_TOKENS_MAX +
					      TAU_MORE) +
			      2048u <=
		      SHARED_MAX,
	      "it fits, with what a thread block knows of its segment");

__host__ __device__ static inline uint32_t decode_shared(uint32_t tokens)
{
	return XXH3_TABLE_BYTES + LAYER_DECODE_TABLES +
	       STREAM_WARPS * (RING_BYTES + LEAF_BYTES + tokens + TAU_MORE);
}

#define START_WARPS 8u

/* Before the first segment: each stream's first words, and the first taus. */
__global__ void layer_start_kernel(const __grid_constant__ struct gpu_layer_run r,
				   struct gpu_layer_stream *streams)
{
	__shared__ __align__(RING_BYTES) uint16_t ring[START_WARPS][RING_BYTES / 2u];
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES),
		       i = blockIdx.x * START_WARPS + warp;
	const struct gpu_layer_segment *s = r.layer.segment;
	struct layer_decoder d;

	if (i >= r.tasks_count * r.layer.streams_count ||
	    !warp_uniform(r.of[i / r.layer.streams_count].live))
		return;
	d.lane = lane;
	d.below = (1u << lane) - 1u;
	d.tau_dec = r.layer.tables[s->tables].tau_dec;
	layer_stream_load(&streams[i], &d, ring[warp]);
	if ((i & (warp_uniform(s->tau_streams) - 1u)) == 0)
		layer_taus(&d, r.tokens, r.tau + (uint64_t)i * r.tokens);
	(void)layer_stream_leave(&streams[i], &r.aside[i], &d, ring[warp], false, false);
}

/* A stream's taus of a segment, and one more, which is read ahead. */
__device__ __forceinline__ static void layer_taus_resume(uint8_t *to, const uint8_t *from,
							 uint32_t tokens, uint32_t lane)
{
	for (uint32_t t = lane * 4u; t < tokens; t += WARP_LANES * 4u)
		*(uint32_t *)(to + t) = *(const uint32_t *)(from + t);
	if (lane == 0)
		to[tokens] = 0;
}

/* Of a thread block that decodes: its segment's, in shared memory. */
struct decode_block {
	struct gpu_layer_segment s;
	uint32_t position;
	uint32_t streams_magic; /* the high word of n times it: n by streams; 0: these are one */
	bool single;		/* a stream has one group of columns */
	uint8_t *inputs;	/* as a job has it */
	uint32_t next_each;	/* streams that share a tau in the next segment; 0: there is none */
	uint64_t tables;	/* barrier: they are there */
};

__device__ static inline void decode_block_fill(struct decode_block *b,
						const struct gpu_layer_run *r, uint32_t position,
						uint8_t *inputs)
{
	const uint32_t streams = r->layer.streams_count;

	b->s = r->layer.segment[position];
	b->position = position;
	b->streams_magic = streams > 1u ? 0xffffffffu / streams + 1u : 0;
	b->single = b->s.columns == streams * CODEC_LANES;
	b->inputs = inputs;
	b->next_each = position + 1u < r->layer.segments_count
			       ? (&r->layer.segment[position])[1].tau_streams
			       : 0;
}

__device__ __forceinline__ static struct layer_share decode_share(const struct decode_block *b,
								  uint32_t of_task,
								  uint32_t streams)
{
	struct layer_share h = { of_task, of_task + 1u };

	if (!warp_uniform(b->single))
		h = layer_share_of(warp_uniform(b->s.columns), of_task, streams);
	return h;
}

/* One stream's part of a segment, by a warp.  What it needs from afar is asked for before any of it is waited for. */
template <int DT, bool WRITE, bool FLAT>
__device__ static inline void stream_decode(const struct gpu_layer_run *r,
					    const struct decode_block *b,
					    struct gpu_layer_stream *streams, uint32_t i,
					    uint32_t warp, uint32_t lane)
{
	uint8_t *const tables = shared + XXH3_TABLE_BYTES;
	uint8_t *const rings = tables + LAYER_DECODE_TABLES;
	uint8_t *const leaves = rings + STREAM_WARPS * RING_BYTES;
	uint8_t *const taus = leaves + STREAM_WARPS * LEAF_BYTES;
	uint16_t *const ring = (uint16_t *)(rings + warp * RING_BYTES);
	const struct xxh3_lane xx = { .table = (const uint64_t *)shared + lane };
	const uint32_t count = r->layer.streams_count, each = warp_uniform(b->s.tau_streams),
		       magic = warp_uniform(b->streams_magic), t = magic ? __umulhi(i, magic) : i,
		       of_task = i - t * count;
	const struct layer_share h = decode_share(b, of_task, count);
	const struct gpu_layer_task *of = &r->of[t];
	const uint32_t column = h.group_begin * CODEC_LANES + lane;
	const uint32_t pitch = FLAT ? 0 : r->mu_columns;
	int32_t *mu = FLAT ? (int32_t *)b->s.bias + column
			   : r->mu + (uint64_t)t * r->tokens * pitch + column;
	const struct layer_ahead ahead = layer_ahead_of(b->s.base + column, mu, pitch);
	struct layer_decoder d;
	struct layer_job j;

	j.run = r;
	j.s = &b->s;
	j.seg = of->segment + b->s.segment;
	j.page = layer_page_base(of, j.seg);
	j.task_index = t;
	j.skip_tokens = of->skip_tokens;
	j.warp = warp;
	j.leaf = leaves + warp * LEAF_BYTES;
	j.tau = taus + warp * (r->tokens + TAU_MORE);
	j.leaves = (uint64_t *)(r->leaves + t * r->leaves_stride);
	j.inputs = b->inputs;
	if (!warp_uniform(of->live))
		return;
	layer_decoder_init(&d, tables, lane);
	layer_stream_resume(&streams[i], &r->aside[i], &d, ring);
	layer_taus_resume(j.tau, r->tau + (uint64_t)(i & ~(each - 1u)) * r->tokens, r->tokens,
			  lane);
	__syncwarp();
	layer_decode_tables_wait(&b->tables);

	const bool differs = layer_share_decode<DT, WRITE, FLAT>(&j, &d, &xx, h, mu, ahead);
	const uint32_t next_each = warp_uniform(b->next_each);

	if (next_each && (i & (next_each - 1u)) == 0)
		layer_taus(&d, r->tokens, r->tau + (uint64_t)i * r->tokens);
	const bool bad = layer_stream_leave(&streams[i], &r->aside[i], &d, ring, next_each == 0,
					    !WRITE && differs);

	if (bad && lane == 0 && WRITE)
		atomicOr(&r->status[t], CUDA_STATUS_MALFORMED);
	else if (bad && lane == 0)
		r->of[t].bad = 1;
	__syncwarp();
}

/* inputs: where this segment's go, if they are made here.  FLAT: as the segment says. */
template <int DT, bool WRITE, bool FLAT>
__global__ __launch_bounds__(STREAM_WARPS *WARP_LANES, 1) void layer_decode_kernel(
	const __grid_constant__ struct gpu_layer_run r, struct gpu_layer_stream *streams,
	uint32_t position, uint8_t *inputs)
{
	__shared__ struct decode_block block;
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);
	const struct gpu_layer_segment *s = &r.layer.segment[position];
	const uint32_t all = r.tasks_count * r.layer.streams_count, warps = blockDim.x / WARP_LANES;

	next_may_begin();
	layer_decode_tables_begin(
		&block.tables, shared, &r.layer.tables[s->tables],
		&r.layer.tables[position + 1u < r.layer.segments_count ? s[1].tables : s->tables],
		&r.layer.grids[DT - 1]);
	if (threadIdx.x == WARP_LANES)
		decode_block_fill(&block, &r, position, inputs);
	__syncthreads();
	before_is_done();
	/* Bounds of loops are the same in all lanes, here and below: the compiler then provides for nothing else. */
	for (uint32_t quad = blockIdx.x + gridDim.x * (warp / LAYER_TAU_STREAMS_MAX);;
	     quad += gridDim.x * (warps / LAYER_TAU_STREAMS_MAX)) {
		const uint32_t i = quad * LAYER_TAU_STREAMS_MAX + warp % LAYER_TAU_STREAMS_MAX;

		if (i >= all)
			break;
		stream_decode<DT, WRITE, FLAT>(&r, &block, streams, i, warp, lane);
	}
	/* Nothing may be on its way to what is given back. */
	layer_decode_tables_wait(&block.tables);
}

/* A warp: some rows of a part of those streams that share their taus. */
template <int DT>
__global__ __launch_bounds__(SYMBOL_THREADS, SYMBOL_BLOCKS) void layer_symbols_kernel(
	const __grid_constant__ struct gpu_layer_run r, uint32_t position)
{
	const uint32_t lane = threadIdx.x % WARP_LANES, each = SYMBOL_THREADS / WARP_LANES;
	const struct gpu_layer_segment *s = &r.layer.segment[position];
	const uint32_t streams = r.layer.streams_count, of_tau = s->tau_streams,
		       parts = streams / of_tau, columns = s->columns, segment = s->segment;
	struct layer_rows w;

	next_may_begin();
	layer_symbol_tables_load(shared, &r.layer.tables[s->tables], &r.layer.grids[DT - 1]);
	w.base = s->base;
	w.pitch = r.mu_columns;
	w.enc = (const uint32_t *)shared;
	w.grids = (const int16_t *)(shared + LAYER_SHARED_ENC);
	w.lane = lane;
	__syncthreads();
	before_is_done();
	for (uint32_t i = warp_uniform(blockIdx.x * each + threadIdx.x / WARP_LANES);
	     i < r.rows / SYMBOL_ROWS * parts; i += gridDim.x * each) {
		const uint32_t row = i / parts * SYMBOL_ROWS, part = i % parts, t = row / r.tokens,
			       token = row % r.tokens;
		const struct gpu_layer_task *of = &r.of[t];
		const struct gpu_segment *seg = of->segment + segment;

		w.page_stride = seg->token_stride;
		w.page = layer_page_base(of, seg) + token * w.page_stride;
		w.head_stride = seg->head_stride;
		w.head_dim = seg->head_dim;
		w.head_magic = seg->head_magic;
		w.mu = r.mu + (uint64_t)row * r.mu_columns;
		w.symbol = r.symbol + (uint64_t)row * r.mu_columns;
		layer_rows_symbols<DT>(&w, layer_share_of(warp_uniform(columns), part, parts),
				       SYMBOL_ROWS,
				       r.tau + (t * streams + part * of_tau) * r.tokens + token);
	}
}

template <int DT>
__global__ __launch_bounds__(ENCODE_THREADS, ENCODE_BLOCKS) void layer_encode_kernel(
	const __grid_constant__ struct gpu_layer_run r, uint32_t position)
{
	__shared__ __align__(16) uint32_t rcp[CODEC_PROB_SUM];
	const uint32_t lane = threadIdx.x % WARP_LANES;
	const uint32_t i = warp_uniform((blockIdx.x * ENCODE_THREADS + threadIdx.x) / WARP_LANES);
	const struct gpu_layer_segment *s = &r.layer.segment[position];
	const uint32_t streams = r.layer.streams_count, t = i / streams;
	struct gpu_layer_stream *stream = &r.stream[i];

	next_may_begin();
	tables_load((uint8_t *)rcp, r.layer.tables[s->tables].rcp, sizeof(rcp));
	__syncthreads();
	before_is_done();
	if (i >= r.tasks_count * streams || warp_uniform(stream->bad))
		return;
	const uint32_t of_tau = i % warp_uniform(s->tau_streams);
	struct layer_coder c;

	layer_coder_load(&c, stream, &r.layer.tables[s->tables], rcp, lane);
	const uint32_t before = c.at;
	const bool fits = layer_share_encode<DT>(
		&r, s, layer_share_of(warp_uniform(s->columns), i % streams, streams), t,
		r.tau + (uint64_t)(i - of_tau) * r.tokens, of_tau == 0, &c, lane);
	const uint32_t escapes = layer_warp_sum(c.escapes);

	layer_coder_park(stream, &c, before, fits, lane);
	if (lane == 0) {
		if (escapes)
			atomicAdd(&r.of[t].escapes, escapes);
		if (!fits)
			r.of[t].bad = 1;
	}
}

/* Both steps at once, where streams have one group of columns each. */
template <int DT>
__global__ __launch_bounds__(ONCE_WARPS *WARP_LANES, 1) void layer_once_kernel(
	const __grid_constant__ struct gpu_layer_run r, struct once_segments segments)
{
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);
	const uint32_t all = r.tasks_count * r.layer.streams_count, warps = blockDim.x / WARP_LANES;

	next_may_begin();
	once_tables_load(shared, &r.layer, &r.layer.grids[DT - 1]);
	__syncthreads();
	before_is_done();
	for (uint32_t quad = blockIdx.x + gridDim.x * (warp / LAYER_TAU_STREAMS_MAX);;
	     quad += gridDim.x * (warps / LAYER_TAU_STREAMS_MAX)) {
		const uint32_t i = quad * LAYER_TAU_STREAMS_MAX + warp % LAYER_TAU_STREAMS_MAX;

		if (i >= all)
			break;
		once_stream<DT>(&r, &segments, shared, i, warp, lane);
	}
}

/* A thread block a task: the root; its first warp: the rest. */
__global__ void layer_finish_kernel(const __grid_constant__ struct gpu_batch b,
				    const __grid_constant__ struct gpu_layer_run r,
				    uint64_t coded_bytes, double poor)
{
	const struct gpu_geometry *g = &b.task[blockIdx.x].region->g;
	uint8_t *scratch = b.scratch + blockIdx.x * g->scratch_bytes;
	const struct xxh3_lane xx = { .table = (const uint64_t *)shared +
					       threadIdx.x % WARP_LANES };

	if (threadIdx.x < WARP_LANES)
		xxh3_table_fill((uint64_t *)shared, threadIdx.x);
	__syncthreads();
	const uint64_t root = leaves_root(g, (const uint64_t *)(scratch + g->leaves_off),
					  (uint64_t *)(scratch + g->digests_off), &xx);

	if (threadIdx.x < WARP_LANES)
		layer_finish(&r, &b, blockIdx.x, coded_bytes, poor, root, threadIdx.x);
}

/* Warps of a task: first one a stream, then one a chunk. */
__global__ void layer_pack_kernel(const __grid_constant__ struct gpu_batch b,
				  const __grid_constant__ struct gpu_layer_run r)
{
	const uint32_t lane = threadIdx.x % WARP_LANES, t = blockIdx.y;
	const uint32_t i = blockIdx.x * SMALL_WARPS + threadIdx.x / WARP_LANES;
	const struct gpu_task *task = &b.task[t];
	const struct gpu_geometry *g = &task->region->g;

	if (r.of[t].verdict == LAYER_NONE || i >= r.layer.streams_count + g->chunks_count)
		return;
	if (i < r.layer.streams_count) {
		layer_pack_words(&r, task, t, i, lane);
		return;
	}
	const uint32_t chunk = i - r.layer.streams_count;
	const uint32_t *offsets =
		(const uint32_t *)(b.scratch + t * g->scratch_bytes + g->offsets_off);

	if (!g->chunk[chunk].coded)
		pack_raw(task->region, &g->chunk[chunk], task->block_index,
			 task->payload + offsets[chunk], lane);
}

#endif
