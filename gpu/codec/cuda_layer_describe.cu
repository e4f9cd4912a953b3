/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_describe.cu - the host side of `layer`: what its kernels can do, and a profile's maps as they read them.
 */
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

/* C's word in headers whose functions are not called here. */
#define _Atomic(type) type
extern "C" {
#include "gpu/codec/internal.h"
#include "gpu/codec/layer_code.h"
#include "gpu/codec/residual_rows.h"
}
#undef _Atomic

#include "gpu/codec/cuda_layer_run.cuh"
#include "gpu/codec/cuda_layer_tables.cuh"
#include "gpu/codec/cuda_objects.cuh"

static uint32_t dtype_of(const struct codec_geometry *g, const struct layer_segment *s)
{
	return g->segments[s->segment].dtype;
}

/* ---- what can be done ---- */

/* A turn is done in registers: pairs must lie where one thread has both. */
static bool turns_ok(const struct layer_profile *p, const struct layer_segment *s)
{
	if (!s->turned)
		return true;
	if (PIECE % s->head_dim != 0 || s->head_dim % 8u != 0)
		return false;
	if (p->interleaved)
		return p->pairs % 2u == 0;
	return p->pairs == 8 || p->pairs == 16 || p->pairs == 32 || p->pairs == 64;
}

/* A leaf of 1-byte elements is two tiles, and must be one stream's. */
static bool shares_ok(const struct codec_geometry *g, const struct layer_profile *p,
		      const struct layer_segment *s)
{
	for (uint32_t i = 0; i < p->streams_count; i++) {
		const struct layer_share h = layer_share_of(s->columns, i, p->streams_count);

		if (h.group_begin == h.group_end)
			return false;
		if (s->type.bits == 8 && h.group_begin * (g->block_tokens / TILE_ROWS) % 2u)
			return false;
	}
	return true;
}

int cuda_layer_can(const struct codec_geometry *g, const struct codec_profile *p)
{
	const struct layer_profile *l = p->layer;

	if (!l)
		return 0;
	if (!codec_geometry_regular(g) || l->streams_count > RESIDUAL_STREAMS_MAX)
		return -1;
	for (uint32_t i = 0; i < l->segments_count; i++) {
		const struct layer_segment *s = &l->segments[i];

		if (residual_tau_streams(s->columns, l->streams_count) > LAYER_TAU_STREAMS_MAX)
			return -1;
		if (s->columns % CODEC_LANES || s->head_dim % 4u || !turns_ok(l, s) ||
		    !shares_ok(g, l, s))
			return -1;
	}
	return 1;
}

/* ---- shapes ---- */

/* Segments that segment i takes. */
static uint32_t inputs_count(const struct layer_profile *p, uint32_t i)
{
	uint32_t n = 0;

	if (p->segments[i].inputs == 0)
		return 0;
	while (n < i && p->segments[i - n - 1u].column_first >= p->segments[i].input_first)
		n++;
	return n;
}

/*
 * An encoder's rows are no longer than raw ones, but perhaps in one of the streams that share a tau and its choice;
 * and each token has a tau of ten bits at most.
 */
static uint64_t stream_bytes(const struct codec_geometry *g, const struct layer_profile *p,
			     uint32_t stream)
{
	uint64_t bytes = 4096;

	for (uint32_t i = 0; i < p->segments_count; i++) {
		const struct layer_segment *s = &p->segments[i];
		const struct layer_share h = layer_share_of(s->columns, stream, p->streams_count);

		bytes += (uint64_t)g->block_tokens * (h.group_end - h.group_begin) * CODEC_LANES *
				 (s->type.bits / 8u) *
				 (residual_tau_streams(s->columns, p->streams_count) > 1 ? 2u
											 : 1u) +
			 2u * (uint64_t)g->block_tokens;
	}
	return up(bytes, 256);
}

struct cuda_layer_shape cuda_layer_shape_of(const struct codec_geometry *g,
					    const struct codec_profile *profile)
{
	const struct layer_profile *p = profile->layer;
	struct cuda_layer_shape s;

	memset(&s, 0, sizeof(s));
	s.tokens = g->block_tokens;
	s.segments_count = p->segments_count;
	s.streams_count = p->streams_count;
	s.pairs = p->pairs;
	s.once = ONCE_SEGMENTS_MAX;
	for (uint32_t i = 0; i < p->segments_count; i++) {
		const uint32_t pieces = (p->segments[i].columns + PIECE - 1u) / PIECE,
			       slots = inputs_count(p, i) + 1u;

		if (p->segments[i].columns != p->streams_count * CODEC_LANES ||
		    p->segments[i].type.bits != 16)
			s.once = 0;
		s.pieces += pieces;
		s.pieces_max = pieces > s.pieces_max ? pieces : s.pieces_max;
		s.slots = slots > s.slots ? slots : s.slots;
		s.coded_bytes += codec_segment_bytes(g, p->segments[i].segment);
	}
	for (uint32_t i = 0; i < p->streams_count; i++) {
		const uint64_t bytes = stream_bytes(g, p, i);

		s.stream_bytes = bytes > s.stream_bytes ? bytes : s.stream_bytes;
	}
	return s;
}

static uint64_t scalars_of(const struct codec_geometry *g, const struct layer_profile *p)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < p->segments_count; i++)
		n += (uint64_t)g->block_tokens * p->segments[i].columns;
	return n;
}

/* ---- a profile's maps ---- */

struct layer_map { /* where parts lie in the copy */
	uint64_t segments, tables, grids, freq, end;
};

static struct layer_map map_of(const struct layer_profile *p)
{
	struct layer_map m;

	m.segments = 0;
	m.tables = up(p->segments_count * sizeof(struct gpu_layer_segment), 256);
	m.grids = m.tables + up(LAYER_TABLES * sizeof(struct gpu_layer_tables), 256);
	m.freq = m.grids + LAYER_DTYPES * LAYER_GRID_BYTES;
	m.end = m.freq + up(p->pairs * sizeof(uint64_t), 256);
	return m;
}

/* Bytes of a segment's arrays and weights. */
static uint64_t segment_bytes(const struct gpu_layer_segment *s)
{
	return up((uint64_t)s->pieces * PIECE * 15u, 256) +
	       (uint64_t)s->pieces * s->inputs_pieces * PIECE_BYTES;
}

/* May the kernels take their shorter ways? */
static bool segment_narrow(const struct layer_segment *s)
{
	for (uint32_t c = 0; c < s->columns; c++) {
		const int8_t *w = s->weights + (uint64_t)c * s->inputs;
		const int64_t bias = s->bias[c], mul = s->mul[c];
		uint64_t sum = 0;

		for (uint32_t i = 0; i < s->inputs; i++)
			sum += (uint64_t)(w[i] < 0 ? -w[i] : w[i]);
		/* Below 2^31 * 2^31. */
		const uint64_t most = 128u * sum * (uint64_t)(mul < 0 ? -mul : mul);

		if (s->in_mul[c] >> 31 || (mul != 0 && s->shift[c] > LAYER_SHIFT_MAX) ||
		    (mul != 0 ? most >> s->shift[c] : 0) + (uint64_t)(bias < 0 ? -bias : bias) +
				    1u >=
			    1u << 30)
			return false;
	}
	return true;
}

static void segment_describe(struct gpu_layer_segment *out, const struct codec_geometry *g,
			     const struct layer_profile *p, uint32_t i, uint32_t first_piece)
{
	const struct layer_segment *s = &p->segments[i];

	memset(out, 0, sizeof(*out));
	out->segment = s->segment;
	out->columns = s->columns;
	out->pieces = (s->columns + PIECE - 1u) / PIECE;
	out->first_piece = first_piece;
	out->inputs = inputs_count(p, i);
	for (uint32_t k = i - out->inputs; k < i; k++)
		out->inputs_pieces += (p->segments[k].columns + PIECE - 1u) / PIECE;
	out->head_dim = s->head_dim;
	out->pairs = s->turned ? p->pairs : 0;
	out->interleaved = p->interleaved;
	out->quads_twice = p->interleaved ? 0 : s->columns / s->head_dim * out->pairs / 4u;
	out->quads = s->columns / 4u - out->quads_twice;
	out->tables = s->tables;
	out->dtype = dtype_of(g, s);
	out->tau_streams = residual_tau_streams(s->columns, p->streams_count);
}

/* The pieces of a segment's weights: of 128 columns, all its inputs in order, then the next 128. */
static void weights_fill(uint8_t *to, const struct layer_profile *p, uint32_t i, uint32_t inputs)
{
	const struct layer_segment *s = &p->segments[i];

	for (uint32_t first = 0; first < s->columns; first += PIECE)
		for (uint32_t k = i - inputs; k < i; k++) {
			const struct layer_segment *in = &p->segments[k];
			const int8_t *w = s->weights + (in->column_first - s->input_first);

			for (uint32_t at = 0; at < in->columns; at += PIECE, to += PIECE_BYTES)
				for (uint32_t row = 0; row < PIECE && first + row < s->columns;
				     row++)
					for (uint32_t c = 0; c < PIECE && at + c < in->columns;
					     c += 16u)
						memcpy(to + piece_at(row, c),
						       w + (uint64_t)(first + row) * s->inputs +
							       at + c,
						       16);
		}
}

/* to: host memory; dev: the same place on the device. */
static void segment_fill(struct gpu_layer_segment *out, uint8_t *to, const uint8_t *dev,
			 const struct layer_profile *p, uint32_t i)
{
	const struct layer_segment *s = &p->segments[i];
	const uint64_t columns = (uint64_t)out->pieces * PIECE, weights = up(columns * 15u, 256);

	memcpy(to, s->in_mul, 4u * (uint64_t)s->columns);
	memcpy(to + 4u * columns, s->bias, 4u * (uint64_t)s->columns);
	memcpy(to + 8u * columns, s->mul, 4u * (uint64_t)s->columns);
	memcpy(to + 12u * columns, s->base, 2u * (uint64_t)s->columns);
	memcpy(to + 14u * columns, s->shift, s->columns);
	out->in_mul = (const uint32_t *)dev;
	out->bias = (const int32_t *)(dev + 4u * columns);
	out->mul = (const int32_t *)(dev + 8u * columns);
	out->base = (const int16_t *)(dev + 12u * columns);
	out->shift = dev + 14u * columns;
	out->weights = dev + weights;
	weights_fill(to + weights, p, i, out->inputs);
}

/* Everything to the device; a segment at a time through one buffer. */
static cudaError_t memory_fill(struct cuda_layer *l, const struct codec_geometry *g,
			       const struct layer_profile *p, struct gpu_layer_segment *seg,
			       uint8_t *head, cudaStream_t stream)
{
	const struct layer_map m = map_of(p);
	uint64_t most = 0, all = m.end, at = m.end;
	cudaError_t e = cudaSuccess;
	uint8_t *buffer;

	for (uint32_t i = 0; i < p->segments_count; i++) {
		segment_describe(&seg[i], g, p, i, l->segment[i].first_piece);
		all += segment_bytes(&seg[i]);
		most = segment_bytes(&seg[i]) > most ? segment_bytes(&seg[i]) : most;
	}
	buffer = (uint8_t *)malloc(most);
	if (!buffer)
		return cudaErrorMemoryAllocation;
	e = cudaMalloc((void **)&l->memory, all);
	for (uint32_t i = 0; i < p->segments_count && e == cudaSuccess; i++) {
		memset(buffer, 0, segment_bytes(&seg[i]));
		segment_fill(&seg[i], buffer, l->memory + at, p, i);
		/* From pageable memory: it has been read when this returns. */
		e = cudaMemcpyAsync(l->memory + at, buffer, segment_bytes(&seg[i]),
				    cudaMemcpyHostToDevice, stream);
		if (e == cudaSuccess)
			e = cudaStreamSynchronize(stream);
		at += segment_bytes(&seg[i]);
	}
	free(buffer);
	for (uint32_t i = 0; i < p->segments_count; i++) {
		seg[i].taken = l->segment[i].taken;
		seg[i].narrow = l->segment[i].narrow;
		seg[i].flat = l->segment[i].flat;
	}
	memcpy(head + m.segments, seg, p->segments_count * sizeof(*seg));
	for (uint32_t i = 0; i < LAYER_TABLES; i++)
		tables_fill((struct gpu_layer_tables *)(head + m.tables) + i, &p->tables[i]);
	for (uint32_t i = 0; i < LAYER_DTYPES; i++)
		grids_fill((struct gpu_layer_grids *)(head + m.grids) + i, i + 1u);
	memcpy(head + m.freq, p->freq, p->pairs * sizeof(uint64_t));
	if (e == cudaSuccess)
		e = cudaMemcpyAsync(l->memory, head, m.end, cudaMemcpyHostToDevice, stream);
	return e == cudaSuccess ? cudaStreamSynchronize(stream) : e;
}

/* A pair's elements lie in one head; four warps decode the same tokens of 128 columns. */
static bool pairs_at_hand(const struct layer_profile *p, const struct layer_segment *s,
			  const struct cuda_layer_segment *launch)
{
	if (!s->turned)
		return true;
	return !p->interleaved && launch->dtype <= 2u && 2u * p->pairs == s->head_dim &&
	       PIECE % s->head_dim == 0 && launch->tau_streams == LAYER_TAU_STREAMS_MAX &&
	       s->columns == p->streams_count * CODEC_LANES;
}

static void launches_fill(struct cuda_layer *l, const struct codec_geometry *g,
			  const struct layer_profile *p)
{
	uint32_t first = 0;

	for (uint32_t i = 0; i < p->segments_count; i++) {
		struct cuda_layer_segment *s = &l->segment[i];

		s->pieces = (p->segments[i].columns + PIECE - 1u) / PIECE;
		s->first_piece = first;
		s->inputs = inputs_count(p, i);
		s->dtype = dtype_of(g, &p->segments[i]);
		s->turn = !p->segments[i].turned ? GEMM_TURNS - 1u
			  : p->interleaved	 ? 0
						 : (uint32_t)residual_log2(p->pairs) - 2u;
		s->narrow = segment_narrow(&p->segments[i]);
		s->tau_streams = residual_tau_streams(p->segments[i].columns, p->streams_count);
		s->own_inputs = pairs_at_hand(p, &p->segments[i], s);
		first += s->pieces;
		for (uint32_t k = i - s->inputs; k < i; k++)
			l->segment[k].taken = true;
	}
	/* Encoders of several groups to a stream read guesses and write symbols in step. */
	for (uint32_t i = 0; i < p->segments_count; i++) {
		struct cuda_layer_segment *s = &l->segment[i];

		s->flat = l->shape.once && s->inputs == 0 && !p->segments[i].turned && s->narrow &&
			  !s->taken;
	}
}

int cuda_layer_new(const struct codec_geometry *g, const struct codec_profile *profile,
		   struct CUstream_st *stream, struct cuda_layer **ret_layer)
{
	const struct layer_profile *p = profile->layer;
	const struct layer_map m = map_of(p);
	struct cuda_layer *l = (struct cuda_layer *)calloc(1, sizeof(*l));
	struct gpu_layer_segment *seg = (struct gpu_layer_segment *)calloc(p->segments_count,
									   sizeof(*seg));
	uint8_t *head = (uint8_t *)calloc(1, m.end);
	cudaError_t e = cudaErrorMemoryAllocation;

	if (l)
		l->segment = (struct cuda_layer_segment *)calloc(p->segments_count,
								 sizeof(*l->segment));
	if (l && l->segment && seg && head) {
		l->shape = cuda_layer_shape_of(g, profile);
		l->poor = p->expected_bits * (double)scalars_of(g, p) * LAYER_POOR_PERCENT;
		launches_fill(l, g, p);
		e = memory_fill(l, g, p, seg, head, stream);
	}
	if (e == cudaSuccess)
		e = cudaStreamCreateWithFlags(&l->side, cudaStreamNonBlocking);
	if (e == cudaSuccess)
		e = cudaEventCreateWithFlags(&l->fork, cudaEventDisableTiming);
	if (e == cudaSuccess)
		e = cudaEventCreateWithFlags(&l->join, cudaEventDisableTiming);
	free(seg);
	free(head);
	if (e != cudaSuccess) {
		cuda_layer_free(l);
		return e;
	}
	l->dev.segment = (const struct gpu_layer_segment *)(l->memory + m.segments);
	l->dev.tables = (const struct gpu_layer_tables *)(l->memory + m.tables);
	l->dev.grids = (const struct gpu_layer_grids *)(l->memory + m.grids);
	l->dev.freq = (const uint64_t *)(l->memory + m.freq);
	l->dev.segments_count = p->segments_count;
	l->dev.streams_count = p->streams_count;
	l->dev.pairs = p->pairs;
	l->dev.round_bf16 = p->turn_round_bf16;
	*ret_layer = l;
	return 0;
}

struct cuda_layer *cuda_layer_free(struct cuda_layer *l)
{
	if (!l)
		return NULL;
	if (l->fork)
		(void)cudaEventDestroy(l->fork);
	if (l->join)
		(void)cudaEventDestroy(l->join);
	if (l->side)
		(void)cudaStreamDestroy(l->side);
	(void)cudaFree(l->memory);
	free(l->segment);
	free(l);
	return NULL;
}
