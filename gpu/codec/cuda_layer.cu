/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer.cu - a batch through the segments of `layer`, in coding order, two or three launches a segment:
 *
 *   decode   guesses (tensor cores) -> a warp for each stream of each block, which mostly makes the inputs of what
 *            comes later, too; else these
 *   encode   inputs of all segments first, then from the last segment to the first:
 *            guesses -> each token's scale and symbols -> a warp for each stream, backwards
 *
 * What runs between the launches (guesses, inputs, patterns of one segment) stays in the GPU's second-level cache for
 * batches of a few thousand tokens.  All of it is integer, and equal to layer.c and residual_code.c bit for bit.
 */
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* C's word in headers whose functions are not called here. */
#define _Atomic(type) type
extern "C" {
#include "gpu/codec/internal.h"
}
#undef _Atomic

#include "gpu/codec/cuda_layer_decode.cuh"
#include "gpu/codec/cuda_layer_encode.cuh"
#include "gpu/codec/cuda_layer_gemm.cuh"
#include "gpu/codec/cuda_layer_inputs.cuh"
#include "gpu/codec/cuda_layer_pack.cuh"
#include "gpu/codec/cuda_layer_run.cuh"
#include "gpu/codec/cuda_objects.cuh"

#define STREAM_WARPS \
	32u /* at most; a multiple of LAYER_TAU_STREAMS_MAX, whose streams share a tau */
#define SYMBOL_THREADS 512u
#define SYMBOL_BLOCKS 2 /* to a multiprocessor */
#define SYMBOL_ROWS 4u	/* of a warp; of one task */
#define ENCODE_THREADS 256u
#define ENCODE_BLOCKS 4
#define ROWS_BEYOND 8u /* guesses are read ahead */

/* ---- one kernel after another ---- */

/*
 * The kernels between gemm and gemm are launched while the one before still runs, so that their tables are loaded and
 * their blocks are there when it ends.  Each waits for the end of all before it touches what they wrote.
 */
template <typename... Params, typename... Args>
static cudaError_t launch_early(void (*kernel)(Params...), dim3 grid, uint32_t threads,
				uint32_t bytes, cudaStream_t stream, Args... args)
{
	cudaLaunchAttribute early;
	cudaLaunchConfig_t config;

	memset(&config, 0, sizeof(config));
	memset(&early, 0, sizeof(early));
	early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	early.val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = grid;
	config.blockDim = dim3(threads);
	config.dynamicSmemBytes = bytes;
	config.stream = stream;
	config.attrs = &early;
	config.numAttrs = 1;
	return cudaLaunchKernelEx(&config, kernel, args...);
}

/* ---- small kernels ---- */

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

/* Of a thread block that decodes: its segment's, in shared memory. */
struct decode_block {
	struct gpu_layer_segment s;
	uint32_t position;
	uint8_t *inputs; /* as a job has it */
};

/* One stream's part of a segment, by a warp.  What it needs from afar is asked for before any of it is waited for. */
template <int DT, bool WRITE>
__device__ static inline void stream_decode(const struct gpu_layer_run *r,
					    const struct decode_block *b,
					    struct gpu_layer_stream *stream, uint32_t i,
					    uint32_t warp, uint32_t lane)
{
	uint8_t *const tables = shared + XXH3_TABLE_BYTES;
	uint8_t *const rings = tables + LAYER_DECODE_TABLES;
	uint8_t *const leaves = rings + STREAM_WARPS * RING_BYTES;
	uint8_t *const taus = leaves + STREAM_WARPS * LEAF_BYTES;
	const struct xxh3_lane xx = { .table = (const uint64_t *)shared + lane };
	const uint32_t streams = r->layer.streams_count, each = warp_uniform(b->s.tau_streams),
		       t = i / streams;
	const struct layer_share h = layer_share_of(warp_uniform(b->s.columns), i % streams,
						    streams);
	const struct gpu_layer_task *of = &r->of[t];
	const uint32_t column = h.group_begin * CODEC_LANES + lane;
	int32_t *mu = r->mu + (uint64_t)t * r->tokens * r->mu_columns + column;
	const struct layer_ahead ahead = layer_ahead_of(b->s.base + column, mu, r->mu_columns);
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
	j.tau = taus + (warp & ~(each - 1u)) * (r->tokens + TAU_MORE);
	j.leaves = (uint64_t *)(r->leaves + t * r->leaves_stride);
	j.inputs = b->inputs;
	if (!warp_uniform(of->live))
		return;
	layer_decoder_init(&d, tables, lane);
	layer_stream_load(stream, &d, (uint16_t *)(rings + warp * RING_BYTES));
	streams_barrier(warp, each); /* the last stream's are not read any more */
	if ((warp & (each - 1u)) == 0) {
		layer_taus(&d, r->tokens, j.tau);
		if (lane == 0)
			j.tau[r->tokens] = 0;
	}
	streams_barrier(warp, each);

	const bool differs = layer_share_decode<DT, WRITE>(&j, &d, &xx, h, mu, ahead);
	const bool bad = layer_stream_park(stream, &d, b->position + 1u == r->layer.segments_count,
					   !WRITE && differs);

	if (bad && lane == 0 && WRITE)
		atomicOr(&r->status[t], CUDA_STATUS_MALFORMED);
	else if (bad && lane == 0)
		r->of[t].bad = 1;
	__syncwarp();
}

/* inputs: where this segment's go, if they are made here. */
template <int DT, bool WRITE>
__global__ __launch_bounds__(STREAM_WARPS *WARP_LANES, 1) void layer_decode_kernel(
	const __grid_constant__ struct gpu_layer_run r, struct gpu_layer_stream *stream,
	uint32_t position, uint8_t *inputs)
{
	__shared__ struct decode_block block;
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);
	const struct gpu_layer_segment *s = &r.layer.segment[position];
	const uint32_t all = r.tasks_count * r.layer.streams_count, warps = blockDim.x / WARP_LANES;

	next_may_begin();
	if (threadIdx.x == 0) {
		block.s = *s;
		block.position = position;
		block.inputs = inputs;
	}
	for (uint32_t field = warp; field < XXH3_FIELDS; field += warps)
		xxh3_table_field((uint64_t *)shared, field, lane);
	layer_decode_tables_load(shared + XXH3_TABLE_BYTES, &r.layer.tables[s->tables],
				 &r.layer.grids[DT - 1]);
	__syncthreads();
	before_is_done();
	/* Bounds of loops are the same in all lanes, here and below: the compiler then provides for nothing else. */
	for (uint32_t quad = blockIdx.x + gridDim.x * (warp / LAYER_TAU_STREAMS_MAX);;
	     quad += gridDim.x * (warps / LAYER_TAU_STREAMS_MAX)) {
		const uint32_t i = quad * LAYER_TAU_STREAMS_MAX + warp % LAYER_TAU_STREAMS_MAX;

		if (i >= all)
			break;
		stream_decode<DT, WRITE>(&r, &block, &stream[i], i, warp, lane);
	}
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

/* ---- launches ---- */

typedef void gemm_kernel(struct gpu_layer_run, struct gpu_layer_io);

static gemm_kernel *const gemm_kernels[2][GEMM_TURNS] = {
	{ layer_gemm_kernel<0, false>, layer_gemm_kernel<1, false>, layer_gemm_kernel<2, false>,
	  layer_gemm_kernel<4, false>, layer_gemm_kernel<8, false>,
	  layer_gemm_kernel<GEMM_UNTURNED, false> },
	{ layer_gemm_kernel<0, true>, layer_gemm_kernel<1, true>, layer_gemm_kernel<2, true>,
	  layer_gemm_kernel<4, true>, layer_gemm_kernel<8, true>,
	  layer_gemm_kernel<GEMM_UNTURNED, true> },
};

/* So much shared memory, and the multiprocessor set for more, so that different kernels may meet there. */
static cudaError_t shared_allow(const void *kernel, uint32_t bytes)
{
	const cudaError_t e = cudaFuncSetAttribute(
		kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	return e != cudaSuccess
		       ? e
		       : cudaFuncSetAttribute(kernel,
					      cudaFuncAttributePreferredSharedMemoryCarveout,
					      (int)cudaSharedmemCarveoutMaxShared);
}

int cuda_layer_init(void)
{
	const void *decoders[] = {
		(const void *)layer_decode_kernel<1, true>,
		(const void *)layer_decode_kernel<2, true>,
		(const void *)layer_decode_kernel<3, true>,
		(const void *)layer_decode_kernel<4, true>,
		(const void *)layer_decode_kernel<1, false>,
		(const void *)layer_decode_kernel<2, false>,
		(const void *)layer_decode_kernel<3, false>,
		(const void *)layer_decode_kernel<4, false>,
	};
	cudaError_t e = cudaSuccess;

	for (uint32_t i = 0; i < 2u * GEMM_TURNS && e == cudaSuccess; i++)
		e = shared_allow((const void *)gemm_kernels[i / GEMM_TURNS][i % GEMM_TURNS],
				 gemm_shared(GEMM_STAGES_ALONE));
	for (unsigned i = 0; i < sizeof(decoders) / sizeof(decoders[0]) && e == cudaSuccess; i++)
		e = shared_allow(decoders[i], decode_shared(CODEC_BLOCK_TOKENS_MAX));
	if (e == cudaSuccess)
		e = cudaMemcpyToSymbol(xxh3_secret, XXH3_kSecret, XXH3_SECRET_BYTES);
	return e;
}

/* Places in scratch, of decoding and of encoding. */
struct layer_places {
	uint64_t task, of, stream, keep, turn, mu, tau, symbol, inputs, words, end;
};

static uint64_t place(uint64_t *at, uint64_t bytes)
{
	const uint64_t here = *at;

	*at = (here + bytes + 255u) & ~(uint64_t)255u;
	return here;
}

static uint32_t rows_pieces(const struct cuda_layer_shape *s, uint32_t tasks_count)
{
	return (tasks_count * s->tokens + PIECE - 1u) / PIECE;
}

static struct layer_places places_of(const struct cuda_layer_shape *s, uint32_t n, bool encode)
{
	const uint64_t pieces = rows_pieces(s, n), rows = pieces * PIECE;
	const uint64_t streams = (uint64_t)n * s->streams_count;
	struct layer_places p;
	uint64_t at = 0;

	p.task = place(&at, n * sizeof(struct gpu_task));
	p.of = place(&at, n * sizeof(struct gpu_layer_task));
	p.stream = place(&at, streams * sizeof(struct gpu_layer_stream));
	p.keep = place(&at, encode ? streams * sizeof(struct gpu_layer_stream) : 0);
	p.turn = place(&at, rows * s->pairs * 4u);
	p.mu = place(&at, (rows + ROWS_BEYOND) * s->pieces_max * PIECE * 4u);
	p.tau = place(&at, encode ? streams * s->tokens : 0);
	p.symbol = place(&at, encode ? rows * s->pieces_max * PIECE * sizeof(uint2) : 0);
	p.inputs = place(&at,
			 (encode ? s->pieces : s->slots * s->pieces_max) * pieces * PIECE_BYTES);
	p.words = place(&at, encode ? streams * s->stream_bytes : 0);
	p.end = at;
	return p;
}

uint64_t cuda_layer_decode_scratch(const struct cuda_layer_shape *s, uint32_t tasks_count)
{
	return places_of(s, tasks_count, false).end;
}

uint64_t cuda_layer_encode_scratch(const struct cuda_layer_shape *s, uint32_t tasks_count)
{
	return places_of(s, tasks_count, true).end;
}

static struct gpu_layer_run run_of(const struct cuda_layer *l, const struct gpu_batch *b,
				   const struct layer_places *p, uint8_t *scratch)
{
	struct gpu_layer_run r;

	memset(&r, 0, sizeof(r));
	r.layer = l->dev;
	r.tasks_count = b->tasks_count;
	r.tokens = l->shape.tokens;
	r.rows = b->tasks_count * r.tokens;
	r.rows_pieces = rows_pieces(&l->shape, b->tasks_count);
	r.mu_columns = l->shape.pieces_max * PIECE;
	r.task = (const struct gpu_task *)(scratch + p->task);
	r.of = (struct gpu_layer_task *)(scratch + p->of);
	r.stream = (struct gpu_layer_stream *)(scratch + p->stream);
	r.turn = (uint32_t *)(scratch + p->turn);
	r.mu = (int32_t *)(scratch + p->mu);
	r.tau = scratch + p->tau;
	r.symbol = (uint2 *)(scratch + p->symbol);
	r.leaves = b->scratch + b->leaves_off;
	r.leaves_stride = b->task_stride;
	r.status = b->status;
	return r;
}

/* slot_bytes 0: every segment's inputs have their own place. */
static struct gpu_layer_io io_of(const struct cuda_layer *l, uint32_t position, uint8_t *inputs,
				 uint32_t pieces, uint64_t slot_bytes)
{
	const struct cuda_layer_segment *s = &l->segment[position];
	struct gpu_layer_io io;

	memset(&io, 0, sizeof(io));
	io.position = position;
	io.count = s->inputs;
	for (uint32_t i = 0; i <= s->inputs; i++) {
		const uint32_t at = position - s->inputs + i;
		uint8_t *place = inputs + (slot_bytes ? at % l->shape.slots * slot_bytes
						      : (uint64_t)l->segment[at].first_piece *
								pieces * PIECE_BYTES);

		if (i == s->inputs) {
			io.out = place;
			break;
		}
		io.in[i] = place;
		io.pieces[i] = l->segment[at].pieces;
	}
	return io;
}

static void launch_turns(const struct gpu_layer_run *r, cudaStream_t stream)
{
	const uint32_t all = r->rows_pieces * PIECE * r->layer.pairs;

	if (all)
		layer_turn_kernel<<<(all + PLAIN_THREADS - 1u) / PLAIN_THREADS, PLAIN_THREADS, 0,
				    stream>>>(*r);
}

static uint32_t inputs_blocks(const struct gpu_layer_run *r, uint32_t pieces)
{
	return (uint32_t)(((uint64_t)r->rows / INPUT_ROWS * pieces * (PIECE / 4u) + PLAIN_THREADS -
			   1u) /
			  PLAIN_THREADS);
}

static uint32_t sms_count(void)
{
	int device = 0, sms = 1;

	(void)cudaGetDevice(&device);
	(void)cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
	return (uint32_t)sms;
}

static void launch_gemm(const struct cuda_layer *l, const struct gpu_layer_run *r,
			const struct gpu_layer_io *io, cudaStream_t stream)
{
	const struct cuda_layer_segment *s = &l->segment[io->position];
	struct gpu_layer_io staged = *io;

	staged.stages = r->rows_pieces * s->pieces <= sms_count() ? GEMM_STAGES_ALONE : GEMM_STAGES;
	(void)launch_early(gemm_kernels[s->narrow][s->turn], dim3(r->rows_pieces, s->pieces),
			   GEMM_THREADS, gemm_shared(staged.stages), stream, *r, staged);
}

/* Thread blocks for so many items, `each` in one, but no more than `most` to a multiprocessor. */
static uint32_t blocks_of(uint32_t items, uint32_t each, uint32_t most)
{
	const uint32_t blocks = (items + each - 1u) / each;

	return blocks < most * sms_count() ? blocks : most * sms_count();
}

template <bool WRITE>
static void launch_streams(const struct cuda_layer *l, const struct gpu_layer_run *r,
			   struct gpu_layer_stream *streams, uint32_t position, uint8_t *inputs,
			   cudaStream_t stream)
{
	static void (*const kernel[])(
		struct gpu_layer_run, struct gpu_layer_stream *, uint32_t,
		uint8_t *) = { layer_decode_kernel<1, WRITE>, layer_decode_kernel<2, WRITE>,
			       layer_decode_kernel<3, WRITE>, layer_decode_kernel<4, WRITE> };

	const uint32_t most = STREAM_WARPS / LAYER_TAU_STREAMS_MAX,
		       quads = (r->tasks_count * r->layer.streams_count + LAYER_TAU_STREAMS_MAX -
				1u) /
			       LAYER_TAU_STREAMS_MAX;
	const uint32_t blocks = quads < sms_count() ? quads : sms_count(),
		       spread = (quads + blocks - 1u) / blocks,
		       each = spread < most ? spread : most;

	(void)launch_early(kernel[l->segment[position].dtype - 1u], dim3(blocks),
			   each * LAYER_TAU_STREAMS_MAX * WARP_LANES, decode_shared(r->tokens),
			   stream, *r, streams, position, inputs);
}

int cuda_layer_decode(const struct cuda_layer *l, const struct gpu_batch *b, uint8_t *scratch,
		      struct CUstream_st *stream)
{
	const struct layer_places p = places_of(&l->shape, b->tasks_count, false);
	const struct gpu_layer_run r = run_of(l, b, &p, scratch);
	const uint64_t slot_bytes = (uint64_t)l->shape.pieces_max * r.rows_pieces * PIECE_BYTES;

	layer_open_kernel<<<r.tasks_count, WARP_LANES, 0, stream>>>(*b, r);
	launch_turns(&r, stream);
	for (uint32_t i = 0; i < r.layer.segments_count; i++) {
		const struct gpu_layer_io io = io_of(l, i, scratch + p.inputs, r.rows_pieces,
						     slot_bytes);

		const bool taken = l->segment[i].taken, own = l->segment[i].own_inputs;

		launch_gemm(l, &r, &io, stream);
		launch_streams<true>(l, &r, r.stream, i, taken && own ? io.out : NULL, stream);
		if (taken && !own)
			(void)launch_early(layer_inputs_kernel<false>,
					   dim3(inputs_blocks(&r, l->segment[i].pieces)),
					   PLAIN_THREADS, 0, stream, r, i, io.out);
	}
	return cudaGetLastError();
}

/*
 * A large batch is encoded as two, on two streams: the kernels of one begin and end beside those of the other.
 * Measured on an H100: 6 % faster; decoding was not.
 */
struct layer_part {
	struct gpu_layer_run r;
	uint8_t *inputs;
	struct gpu_layer_stream *keep; /* to verify */
	cudaStream_t stream;
};

struct layer_parts {
	const struct cuda_layer *layer;
	uint32_t count;
	struct layer_part part[2];
};

#define PART_ROWS 512u /* of one of two, at least */
#define PART_TASKS 8u  /* a multiple of: rows of the second begin with a piece */

/* The part of r's tasks from `first` on, so many. */
static struct gpu_layer_run run_part(const struct gpu_layer_run *r, uint32_t first, uint32_t count)
{
	struct gpu_layer_run part = *r;
	const uint64_t row = (uint64_t)first * r->tokens;

	part.tasks_count = count;
	part.rows = count * r->tokens;
	part.rows_pieces = (part.rows + PIECE - 1u) / PIECE;
	part.task += first;
	part.of += first;
	part.stream += first * r->layer.streams_count;
	part.turn += row * r->layer.pairs;
	part.mu += row * r->mu_columns;
	part.tau += row * r->layer.streams_count;
	part.symbol += row * r->mu_columns;
	part.leaves += first * r->leaves_stride;
	part.status += first;
	return part;
}

static struct layer_parts parts_begin(const struct cuda_layer *l, const struct gpu_layer_run *r,
				      const struct layer_places *at, uint8_t *scratch,
				      cudaStream_t stream)
{
	const bool two = r->rows >= 2u * PART_ROWS && r->tasks_count >= 2u * PART_TASKS;
	const uint32_t first = two ? (r->tasks_count / 2u + PART_TASKS - 1u) / PART_TASKS *
					       PART_TASKS
				   : r->tasks_count;
	struct layer_parts p;

	p.layer = l;
	p.count = two ? 2u : 1u;
	p.part[0] = { run_part(r, 0, first), scratch + at->inputs,
		      (struct gpu_layer_stream *)(scratch + at->keep), stream };
	if (!two)
		return p;
	p.part[1] = { run_part(r, first, r->tasks_count - first),
		      p.part[0].inputs +
			      (uint64_t)l->shape.pieces * p.part[0].r.rows_pieces * PIECE_BYTES,
		      p.part[0].keep + first * r->layer.streams_count, l->side };
	(void)cudaEventRecord(l->fork, stream);
	(void)cudaStreamWaitEvent(l->side, l->fork, 0);
	return p;
}

static void parts_end(const struct layer_parts *p)
{
	if (p->count < 2u)
		return;
	(void)cudaEventRecord(p->layer->join, p->layer->side);
	(void)cudaStreamWaitEvent(p->part[0].stream, p->layer->join, 0);
}

static void launch_symbols(const struct cuda_layer *l, const struct gpu_layer_run *r,
			   uint32_t position, cudaStream_t stream)
{
	static void (*const symbols[])(struct gpu_layer_run, uint32_t) = {
		layer_symbols_kernel<1>, layer_symbols_kernel<2>, layer_symbols_kernel<3>,
		layer_symbols_kernel<4>
	};
	static void (*const encode[])(struct gpu_layer_run, uint32_t) = { layer_encode_kernel<1>,
									  layer_encode_kernel<2>,
									  layer_encode_kernel<3>,
									  layer_encode_kernel<4> };
	const uint32_t items = r->tasks_count * r->layer.streams_count;
	const struct cuda_layer_segment *s = &l->segment[position];

	(void)launch_early(
		symbols[s->dtype - 1u],
		dim3(blocks_of(r->rows / SYMBOL_ROWS * (r->layer.streams_count / s->tau_streams),
			       SYMBOL_THREADS / WARP_LANES, SYMBOL_BLOCKS)),
		SYMBOL_THREADS, LAYER_SYMBOL_TABLES, stream, *r, position);
	(void)launch_early(
		encode[s->dtype - 1u],
		dim3((items + ENCODE_THREADS / WARP_LANES - 1u) / (ENCODE_THREADS / WARP_LANES)),
		ENCODE_THREADS, 0, stream, *r, position);
}

/* Decode what was encoded, from where it lies, and compare it with the pages. */
static void launch_verify(const struct layer_parts *p)
{
	const uint32_t each = PLAIN_THREADS / WARP_LANES;

	for (uint32_t k = 0; k < p->count; k++) {
		const struct layer_part *w = &p->part[k];
		const uint32_t items = w->r.tasks_count * w->r.layer.streams_count;

		layer_again_kernel<<<(items + each - 1u) / each, PLAIN_THREADS, 0, w->stream>>>(
			w->r, w->keep);
	}
	for (uint32_t i = 0; i < p->part[0].r.layer.segments_count; i++)
		for (uint32_t k = 0; k < p->count; k++) {
			const struct layer_part *w = &p->part[k];
			const struct gpu_layer_io io = io_of(p->layer, i, w->inputs,
							     w->r.rows_pieces, 0);

			launch_gemm(p->layer, &w->r, &io, w->stream);
			launch_streams<false>(p->layer, &w->r, w->keep, i, NULL, w->stream);
		}
}

/* All segments, the last first. */
static void launch_encode(const struct layer_parts *p)
{
	const uint32_t segments = p->part[0].r.layer.segments_count;

	for (uint32_t k = 0; k < p->count; k++) {
		const struct layer_part *w = &p->part[k];

		layer_inputs_kernel<true>
			<<<dim3(inputs_blocks(&w->r, p->layer->shape.pieces_max), segments),
			   PLAIN_THREADS, 0, w->stream>>>(w->r, 0, w->inputs);
	}
	for (uint32_t i = segments; i-- > 0;)
		for (uint32_t k = 0; k < p->count; k++) {
			const struct layer_part *w = &p->part[k];
			const struct gpu_layer_io io = io_of(p->layer, i, w->inputs,
							     w->r.rows_pieces, 0);

			launch_gemm(p->layer, &w->r, &io, w->stream);
			launch_symbols(p->layer, &w->r, i, w->stream);
		}
}

int cuda_layer_encode(const struct cuda_layer *l, const struct gpu_batch *b, uint8_t *scratch,
		      int verify, struct CUstream_st *stream, struct gpu_layer_task **ret_tasks)
{
	const struct layer_places at = places_of(&l->shape, b->tasks_count, true);
	const struct gpu_layer_run r = run_of(l, b, &at, scratch);
	const uint32_t streams = r.layer.streams_count, warps = streams + b->chunks_count;

	struct layer_parts p;

	*ret_tasks = r.of;
	layer_begin_kernel<<<r.tasks_count, WARP_LANES, 0, stream>>>(
		*b, r, scratch + at.words, streams * l->shape.stream_bytes, l->shape.stream_bytes);
	launch_turns(&r, stream);
	p = parts_begin(l, &r, &at, scratch, stream);
	launch_encode(&p);
	if (verify)
		launch_verify(&p);
	parts_end(&p);
	layer_finish_kernel<<<r.tasks_count, ROOT_THREADS, XXH3_TABLE_BYTES, stream>>>(
		*b, r, l->shape.coded_bytes, l->poor);
	layer_pack_kernel<<<dim3((warps + SMALL_WARPS - 1u) / SMALL_WARPS, r.tasks_count),
			    SMALL_WARPS * WARP_LANES, 0, stream>>>(*b, r);
	return cudaGetLastError();
}
