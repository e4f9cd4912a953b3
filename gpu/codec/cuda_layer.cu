/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer.cu - a batch through the segments of `layer`, in coding order, two or three launches a segment:
 *
 *   decode   guesses (tensor cores) -> a warp for each stream of each block, which mostly makes the inputs of what
 *            comes later, too; else these
 *   encode   inputs of all segments first, then from the last segments to the first:
 *            guesses of several segments -> a warp for each stream: scales, symbols and words, backwards
 *            or, where streams have several groups of columns: guesses of one -> each token's scale and symbols
 *            -> a warp for each stream, backwards
 *
 * What runs between a decoder's launches (guesses, inputs, patterns of one segment) stays in the GPU's second-level
 * cache for batches of a few thousand tokens.  All of it is integer, and equal to layer.c and residual_code.c bit for
 * bit.
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

#include "gpu/codec/cuda_layer_gemm.cuh"
#include "gpu/codec/cuda_layer_gemm_wide.cuh"
#include "gpu/codec/cuda_layer_inputs.cuh"
#include "gpu/codec/cuda_layer_kernels.cuh"
#include "gpu/codec/cuda_layer_launch.cuh"
#include "gpu/codec/cuda_layer_run.cuh"

/* ---- launches ---- */

typedef void decode_kernel(struct gpu_layer_run, struct gpu_layer_stream *, uint32_t, uint8_t *);

/* That compare or write; of guesses that are made or flat, as those of 1-byte elements never are; of each type. */
static decode_kernel *const decode_kernels[2][2][LAYER_DTYPES] = {
	{ { layer_decode_kernel<1, false, false>, layer_decode_kernel<2, false, false>,
	    layer_decode_kernel<3, false, false>, layer_decode_kernel<4, false, false> },
	  { layer_decode_kernel<1, false, true>, layer_decode_kernel<2, false, true> } },
	{ { layer_decode_kernel<1, true, false>, layer_decode_kernel<2, true, false>,
	    layer_decode_kernel<3, true, false>, layer_decode_kernel<4, true, false> },
	  { layer_decode_kernel<1, true, true>, layer_decode_kernel<2, true, true> } },
};

typedef void once_kernel(struct gpu_layer_run, struct once_segments);

static once_kernel *const once_kernels[] = { layer_once_kernel<1>, layer_once_kernel<2> };

typedef void gemm_kernel(struct gpu_layer_run, struct gpu_layer_io);

static gemm_kernel *const gemm_kernels[2][GEMM_TURNS] = {
	{ layer_gemm_kernel<0, false>, layer_gemm_kernel<1, false>, layer_gemm_kernel<2, false>,
	  layer_gemm_kernel<4, false>, layer_gemm_kernel<8, false>,
	  layer_gemm_kernel<GEMM_UNTURNED, false> },
	{ layer_gemm_kernel<0, true>, layer_gemm_kernel<1, true>, layer_gemm_kernel<2, true>,
	  layer_gemm_kernel<4, true>, layer_gemm_kernel<8, true>,
	  layer_gemm_kernel<GEMM_UNTURNED, true> },
};

static gemm_kernel *const wide_kernels[2][GEMM_TURNS] = {
	{ layer_gemm_wide_kernel<0, false>, layer_gemm_wide_kernel<1, false>,
	  layer_gemm_wide_kernel<2, false>, layer_gemm_wide_kernel<4, false>,
	  layer_gemm_wide_kernel<8, false>, layer_gemm_wide_kernel<GEMM_UNTURNED, false> },
	{ layer_gemm_wide_kernel<0, true>, layer_gemm_wide_kernel<1, true>,
	  layer_gemm_wide_kernel<2, true>, layer_gemm_wide_kernel<4, true>,
	  layer_gemm_wide_kernel<8, true>, layer_gemm_wide_kernel<GEMM_UNTURNED, true> },
};

int cuda_layer_init(void)
{
	cudaError_t e = cudaSuccess;

	for (uint32_t i = 0; i < 2u * GEMM_TURNS && e == cudaSuccess; i++) {
		e = shared_allow((const void *)gemm_kernels[i / GEMM_TURNS][i % GEMM_TURNS],
				 gemm_shared(GEMM_STAGES_ALONE));
		if (e == cudaSuccess)
			e = shared_allow((const void *)wide_kernels[i / GEMM_TURNS][i % GEMM_TURNS],
					 WIDE_SHARED);
	}
	for (uint32_t i = 0; i < 4u * LAYER_DTYPES && e == cudaSuccess; i++) {
		decode_kernel *k = decode_kernels[i / (2u * LAYER_DTYPES)][i / LAYER_DTYPES % 2u]
						 [i % LAYER_DTYPES];

		if (k)
			e = shared_allow((const void *)k, decode_shared(CODEC_BLOCK_TOKENS_MAX));
	}
	for (unsigned i = 0; i < sizeof(once_kernels) / sizeof(once_kernels[0]) && e == cudaSuccess;
	     i++)
		e = shared_allow((const void *)once_kernels[i],
				 once_shared(CODEC_BLOCK_TOKENS_MAX));
	if (e == cudaSuccess)
		e = cudaMemcpyToSymbol(xxh3_secret, XXH3_kSecret, XXH3_SECRET_BYTES);
	if (e == cudaSuccess) {
		layer_checksum_kernel<<<1, WARP_LANES>>>();
		e = cudaGetLastError();
	}
	if (e == cudaSuccess)
		e = cudaStreamSynchronize(0);
	return e;
}

/* Places in scratch, of decoding and of encoding. */
struct layer_places {
	uint64_t task, of, stream, keep, aside, turn, mu, tau, symbol, inputs, words, end;
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

/* Guesses of a segment. */
static uint64_t mu_count(const struct cuda_layer_shape *s, uint32_t n)
{
	return ((uint64_t)rows_pieces(s, n) * PIECE + ROWS_BEYOND) * s->pieces_max * PIECE;
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
	p.aside = place(&at, streams * sizeof(struct gpu_layer_aside));
	p.turn = place(&at, rows * s->pairs * 4u);
	p.mu = place(&at, mu_count(s, n) * 4u * (encode && s->once ? s->once : 1u));
	p.tau = place(&at, streams * s->tokens);
	p.symbol = place(&at,
			 encode && !s->once ? rows * s->pieces_max * PIECE * sizeof(uint2) : 0);
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
	r.aside = (struct gpu_layer_aside *)(scratch + p->aside);
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

/* The guesses of `count` segments that are alike, from io's on. */
static void launch_gemm(const struct cuda_layer *l, const struct gpu_layer_run *r,
			const struct gpu_layer_io *io, uint32_t count, cudaStream_t stream)
{
	const struct cuda_layer_segment *s = &l->segment[io->position];
	const bool alone = r->rows_pieces * s->pieces * count <= sms_count();
	struct gpu_layer_io staged = *io;

	if (s->flat)
		return;
	if (!alone && count == 1) {
		(void)launch_early(
			wide_kernels[s->narrow][s->turn],
			dim3((r->rows_pieces + WIDE_PIECES - 1u) / WIDE_PIECES, s->pieces, count),
			WIDE_THREADS, WIDE_SHARED, stream, *r, *io);
		return;
	}
	staged.stages = alone ? GEMM_STAGES_ALONE : GEMM_STAGES;
	(void)launch_early(gemm_kernels[s->narrow][s->turn], dim3(r->rows_pieces, s->pieces, count),
			   GEMM_THREADS, gemm_shared(staged.stages), stream, *r, staged);
}

/* Thread blocks and their threads, for a warp to each stream and no more than `most` in a block. */
static dim3 streams_blocks(const struct gpu_layer_run *r, uint32_t most, uint32_t *ret_threads)
{
	const uint32_t quads =
		(r->tasks_count * r->layer.streams_count + LAYER_TAU_STREAMS_MAX - 1u) /
		LAYER_TAU_STREAMS_MAX;
	const uint32_t blocks = quads < sms_count() ? quads : sms_count(),
		       spread = (quads + blocks - 1u) / blocks * LAYER_TAU_STREAMS_MAX;

	*ret_threads = (spread < most ? spread : most) * WARP_LANES;
	return dim3(blocks);
}

static void launch_start(const struct gpu_layer_run *r, struct gpu_layer_stream *streams,
			 cudaStream_t stream)
{
	const uint32_t items = r->tasks_count * r->layer.streams_count;

	layer_start_kernel<<<(items + START_WARPS - 1u) / START_WARPS, START_WARPS * WARP_LANES, 0,
			     stream>>>(*r, streams);
}

template <bool WRITE>
static void launch_streams(const struct cuda_layer *l, const struct gpu_layer_run *r,
			   struct gpu_layer_stream *streams, uint32_t position, uint8_t *inputs,
			   cudaStream_t stream)
{
	const struct cuda_layer_segment *s = &l->segment[position];
	uint32_t threads;
	const dim3 blocks = streams_blocks(r, STREAM_WARPS, &threads);

	(void)launch_early(decode_kernels[WRITE][s->flat][s->dtype - 1u], blocks, threads,
			   decode_shared(r->tokens), stream, *r, streams, position, inputs);
}

int cuda_layer_decode(const struct cuda_layer *l, const struct gpu_batch *b, uint8_t *scratch,
		      struct CUstream_st *stream)
{
	const struct layer_places p = places_of(&l->shape, b->tasks_count, false);
	const struct gpu_layer_run r = run_of(l, b, &p, scratch);
	const uint64_t slot_bytes = (uint64_t)l->shape.pieces_max * r.rows_pieces * PIECE_BYTES;

	layer_open_kernel<<<r.tasks_count, WARP_LANES, 0, stream>>>(*b, r);
	launch_turns(&r, stream);
	launch_start(&r, r.stream, stream);
	for (uint32_t i = 0; i < r.layer.segments_count; i++) {
		const struct gpu_layer_io io = io_of(l, i, scratch + p.inputs, r.rows_pieces,
						     slot_bytes);

		const bool taken = l->segment[i].taken, own = l->segment[i].own_inputs;

		launch_gemm(l, &r, &io, 1, stream);
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
	uint64_t mu_stride; /* where guesses of several segments are kept */
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
	part.aside += first * r->layer.streams_count;
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
	p.mu_stride = mu_count(&l->shape, r->tasks_count);
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
		launch_start(&w->r, w->keep, w->stream);
	}
	for (uint32_t i = 0; i < p->part[0].r.layer.segments_count; i++)
		for (uint32_t k = 0; k < p->count; k++) {
			const struct layer_part *w = &p->part[k];
			const struct gpu_layer_io io = io_of(p->layer, i, w->inputs,
							     w->r.rows_pieces, 0);

			launch_gemm(p->layer, &w->r, &io, 1, w->stream);
			launch_streams<false>(p->layer, &w->r, w->keep, i, NULL, w->stream);
		}
}

/* Segments of one type that end before `end`, as many as are coded at a time. */
static struct once_segments segments_before(const struct layer_parts *p, uint32_t end)
{
	const struct cuda_layer_segment *s = p->layer->segment;
	const uint32_t most = p->layer->shape.once ? p->layer->shape.once : 1u;
	struct once_segments of = { end - 1u, 1u, p->mu_stride };

	while (of.count < most && of.first > 0 && s[of.first - 1u].dtype == s[end - 1u].dtype) {
		of.first--;
		of.count++;
	}
	return of;
}

/* Have two segments products of the same form, and inputs that lie alike? */
static bool segments_alike(const struct cuda_layer_segment *a, const struct cuda_layer_segment *b)
{
	bool alike = a->inputs == b->inputs && a->pieces == b->pieces && a->turn == b->turn &&
		     a->narrow == b->narrow && a->flat == b->flat;

	for (uint32_t i = 1; alike && i <= a->inputs; i++)
		alike = (a - i)->pieces == (b - i)->pieces;
	return alike;
}

/* How many of the segments from `first` on, `step` apart, one launch can make guesses of. */
static uint32_t segments_together(const struct cuda_layer_segment *first, uint32_t step,
				  uint32_t count)
{
	uint32_t n = 1;

	while (n * step < count && segments_alike(first, first + n * step) &&
	       first[n * step].first_piece - first[(n - 1u) * step].first_piece ==
		       first[step].first_piece - first->first_piece)
		n++;
	return n;
}

/* Guesses of all: as a layer's keys and values differ, every second segment is like another. */
static void launch_guesses(const struct layer_parts *p, const struct layer_part *w,
			   const struct once_segments *of)
{
	const struct cuda_layer *l = p->layer;
	bool done[ONCE_SEGMENTS_MAX] = {};

	for (uint32_t i = 0; i < of->count; i++) {
		const struct cuda_layer_segment *s = &l->segment[of->first + i];
		struct gpu_layer_io io = io_of(l, of->first + i, w->inputs, w->r.rows_pieces, 0);
		struct gpu_layer_run r = w->r;
		uint32_t n;

		if (done[i])
			continue;
		n = segments_together(s, 1, of->count - i);
		io.step = n > 1 ? 1 : 2;
		if (n == 1)
			n = segments_together(s, 2, of->count - i);
		if (n > 1)
			io.in_stride = (uint64_t)(s[io.step].first_piece - s->first_piece) *
				       r.rows_pieces * PIECE_BYTES;
		io.mu_stride = io.step * of->mu_stride;
		r.mu += i * of->mu_stride;
		launch_gemm(l, &r, &io, n, w->stream);
		for (uint32_t k = 0; k < n; k++)
			done[i + k * io.step] = true;
	}
}

static void launch_segments(const struct layer_parts *p, const struct layer_part *w,
			    struct once_segments of)
{
	const struct cuda_layer *l = p->layer;
	uint32_t threads;

	launch_guesses(p, w, &of);
	if (!l->shape.once) {
		launch_symbols(l, &w->r, of.first, w->stream);
		return;
	}
	const dim3 blocks = streams_blocks(&w->r, ONCE_WARPS, &threads);

	(void)launch_early(once_kernels[l->segment[of.first].dtype - 1u], blocks, threads,
			   once_shared(w->r.tokens), w->stream, w->r, of);
}

/* All segments, the last first. */
static void launch_encode(const struct layer_parts *p)
{
	const uint32_t segments = p->part[0].r.layer.segments_count;
	struct once_segments of;

	for (uint32_t k = 0; k < p->count; k++) {
		const struct layer_part *w = &p->part[k];

		layer_inputs_kernel<true>
			<<<dim3(inputs_blocks(&w->r, p->layer->shape.pieces_max), segments),
			   PLAIN_THREADS, 0, w->stream>>>(w->r, 0, w->inputs);
	}
	for (uint32_t end = segments; end > 0; end = of.first) {
		of = segments_before(p, end);
		for (uint32_t k = 0; k < p->count; k++)
			launch_segments(p, &p->part[k], of);
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
