/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_inputs.cuh - patterns of a segment to int8 inputs of those that take it: keys are turned back, and each
 * byte goes where the tensor cores want it.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_INPUTS_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_INPUTS_CUH

#include "gpu/codec/cuda_layer.cuh"

#define PLAIN_THREADS 256u

/* Every row's turns. */
__global__ void layer_turn_kernel(const __grid_constant__ struct gpu_layer_run r)
{
	const uint32_t i = blockIdx.x * PLAIN_THREADS + threadIdx.x, row = i / r.layer.pairs;

	if (row >= r.rows_pieces * PIECE)
		return;
	const uint32_t task = min(row / r.tokens, r.tasks_count - 1u);
	const struct layer_turn t = layer_turn_of(r.layer.freq[i % r.layer.pairs],
						  r.of[task].position + row % r.tokens,
						  (int)r.layer.round_bf16);

	r.turn[i] = ((uint32_t)t.cos & 0xffffu) | (uint32_t)t.sin << 16;
}

/* Four patterns: where decoding left them, or from the pages. */
template <bool PAGES>
__device__ static inline void patterns_load(const struct gpu_layer_run *r,
					    const struct gpu_task *task,
					    const struct gpu_segment *seg, uint32_t row,
					    uint32_t column, uint32_t bytes, uint32_t (&p)[4])
{
	const uint8_t *at = PAGES ? segment_base(task->region, seg, task->block_index) +
					    (uint64_t)(row % r->tokens) * seg->token_stride +
					    column_off(seg, column)
				  : (const uint8_t *)(r->mu + (uint64_t)row * r->mu_columns +
						      column / CODEC_LANES * CODEC_LANES) +
					    column % CODEC_LANES * bytes;
	const bool vector = !PAGES || seg->vector;

	if (vector && bytes == 2u) {
		const uint2 v = *(const uint2 *)at;

		p[0] = v.x & 0xffffu;
		p[1] = v.x >> 16;
		p[2] = v.y & 0xffffu;
		p[3] = v.y >> 16;
	} else if (vector) {
		const uint32_t v = *(const uint32_t *)at;

		for (uint32_t k = 0; k < 4; k++)
			p[k] = v >> 8u * k & 0xffu;
	} else {
		for (uint32_t k = 0; k < 4; k++)
			p[k] = bytes == 2u ? ((const uint16_t *)at)[k] : at[k];
	}
}

#define INPUT_ROWS 4u /* of a thread; of one task */

struct inputs_place { /* of a row */
	const struct gpu_layer_run *r;
	const struct gpu_layer_segment *s;
	const struct gpu_task *task;
	const struct gpu_segment *seg;
	uint8_t *out;
	uint32_t row;
};

template <int DT, bool PAGES>
__device__ static inline void inputs_load(const struct inputs_place *w, uint32_t column,
					  int32_t (&v)[4])
{
	uint32_t p[4];

	patterns_load<PAGES>(w->r, w->task, w->seg, w->row, column, residual_type_of(DT).bits / 8u,
			     p);
#pragma unroll
	for (uint32_t k = 0; k < 4; k++)
		v[k] = layer_fixed<DT>(p[k]);
}

__device__ static inline void inputs_store(const struct inputs_place *w, uint32_t column,
					   const int32_t (&v)[4])
{
	const uint4 mul = *(const uint4 *)(w->s->in_mul + column);
	const uint32_t m[4] = { mul.x, mul.y, mul.z, mul.w };
	uint32_t out = 0;

#pragma unroll
	for (uint32_t k = 0; k < 4; k++) {
		/* layer_input() */
		const int32_t x = w->s->narrow ? (int32_t)(((int64_t)v[k] * (int32_t)m[k] +
							    ((int64_t)1 << 31)) >>
							   32)
					       : layer_input(v[k], m[k]);

		out |= ((uint32_t)min(max(x, -127), 127) & 0xffu) << 8u * k;
	}
	*(uint32_t *)(w->out +
		      ((uint64_t)(column / PIECE) * w->r->rows_pieces + w->row / PIECE) *
			      PIECE_BYTES +
		      piece_at(w->row % PIECE, column % PIECE)) = out;
}

/* Four columns of a row: values, turned back, as inputs.  pair: the other elements lie `pairs` on; both are made. */
template <int DT, bool PAGES>
__device__ static inline void inputs_make(const struct inputs_place *w, uint32_t column, uint32_t e,
					  bool pair)
{
	const uint32_t pairs = w->s->pairs;
	int32_t v[4], other[4];

	inputs_load<DT, PAGES>(w, column, v);
	if (pair) {
		inputs_load<DT, PAGES>(w, column + pairs, other);
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			layer_unrotate_any(layer_turn_at(w->r, w->row, e + k), &v[k], &other[k]);
		inputs_store(w, column + pairs, other);
	} else if (w->s->interleaved && e < 2u * pairs) {
		layer_unrotate_any(layer_turn_at(w->r, w->row, e / 2u), &v[0], &v[1]);
		layer_unrotate_any(layer_turn_at(w->r, w->row, e / 2u + 1u), &v[2], &v[3]);
	}
	inputs_store(w, column, v);
}

/* A thread: four columns of some rows, or twice four that are pairs.  PAGES: of every segment in turn (blockIdx.y). */
template <bool PAGES>
__global__ __launch_bounds__(PLAIN_THREADS) void layer_inputs_kernel(
	const __grid_constant__ struct gpu_layer_run r, uint32_t position, uint8_t *out)
{
	const uint32_t which = PAGES ? blockIdx.y : position;
	const struct gpu_layer_segment s = r.layer.segment[which];
	const uint32_t i = blockIdx.x * PLAIN_THREADS + threadIdx.x, row = i / s.quads * INPUT_ROWS,
		       quad = i % s.quads;
	const bool pair = quad < s.quads_twice;
	const uint32_t pairs = s.interleaved ? 0 : s.pairs, rest = s.head_dim - 2u * pairs,
		       part = (pair ? pairs : rest) / 4u, at = pair ? quad : quad - s.quads_twice;
	const uint32_t head = at / part, e = (at - head * part) * 4u + (pair ? 0 : 2u * pairs);
	struct inputs_place w;

	next_may_begin();
	before_is_done();
	if (row >= r.rows)
		return;
	w.r = &r;
	w.s = &s;
	w.task = &r.task[row / r.tokens];
	w.seg = &w.task->region->g.segment[s.segment];
	w.out = out + (PAGES ? (uint64_t)s.first_piece * r.rows_pieces * PIECE_BYTES : 0);
#pragma unroll 1
	for (w.row = row; w.row < row + INPUT_ROWS; w.row++) {
		const uint32_t column = head * s.head_dim + e;

		if (s.dtype == 1)
			inputs_make<1, PAGES>(&w, column, e, pair);
		else if (s.dtype == 2)
			inputs_make<2, PAGES>(&w, column, e, pair);
		else if (s.dtype == 3)
			inputs_make<3, PAGES>(&w, column, e, pair);
		else
			inputs_make<4, PAGES>(&w, column, e, pair);
	}
}

#endif
