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

#define INPUT_ROWS 4u /* of a thread; of one task */

struct inputs_place { /* of a thread: its first row */
	const struct gpu_layer_run *r;
	const struct gpu_layer_segment *s;
	const uint8_t *patterns; /* of the row: in the pages, or where decoding left them */
	uint64_t stride;	 /* from a row of them to the next */
	const struct gpu_segment *seg;
	bool vector;
	uint8_t *out;
	uint32_t row;
};

/* Where four columns are: PAGES or what tile_keep() left. */
template <bool PAGES>
__device__ __forceinline__ static const uint8_t *inputs_at(const struct inputs_place *w,
							   uint32_t column, uint32_t bytes)
{
	return w->patterns +
	       (PAGES ? column_off(w->seg, column)
		      : column / CODEC_LANES * (CODEC_LANES * 4u) + column % CODEC_LANES * bytes);
}

/* Four patterns. */
template <int DT>
__device__ __forceinline__ static void inputs_load(const uint8_t *at, bool vector, uint32_t (&w)[2])
{
	const uint16_t *two = (const uint16_t *)at;

	w[1] = 0;
	if (vector && DT <= 2) {
		const uint2 four = *(const uint2 *)at;

		w[0] = four.x;
		w[1] = four.y;
	} else if (vector) {
		w[0] = *(const uint32_t *)at;
	} else if (DT <= 2) {
		w[0] = two[0] | (uint32_t)two[1] << 16;
		w[1] = two[2] | (uint32_t)two[3] << 16;
	} else {
		w[0] = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
	}
}

/* The same four columns of INPUT_ROWS rows: values, turned back, as inputs.  pair: and those `pairs` on. */
template <int DT, bool PAGES>
__device__ __forceinline__ static void inputs_make(const struct inputs_place *w, uint32_t column,
						   uint32_t e, bool pair)
{
	const uint32_t pairs = w->s->pairs, bytes = residual_type_of(DT).bits / 8u,
		       second = pair ? column + pairs : column;
	const bool narrow = w->s->narrow, neighbours = w->s->interleaved && e < 2u * pairs;
	const uint4 mul = *(const uint4 *)(w->s->in_mul + column),
		    second_mul = *(const uint4 *)(w->s->in_mul + second);
	const uint8_t *at = inputs_at<PAGES>(w, column, bytes),
		      *second_at = inputs_at<PAGES>(w, second, bytes);
	const uint32_t *turn = w->r->turn + w->row * pairs + (neighbours ? e / 2u : e);
	const uint64_t piece_row = (uint64_t)w->row / PIECE * PIECE_BYTES,
		       pitch = (uint64_t)w->r->rows_pieces * PIECE_BYTES;
	uint8_t *to = w->out + column / PIECE * pitch + piece_row,
		*second_to = w->out + second / PIECE * pitch + piece_row;

#pragma unroll 1
	for (uint32_t i = 0; i < INPUT_ROWS; i++, at += w->stride, second_at += w->stride) {
		const uint32_t row = (w->row + i) % PIECE;
		uint32_t words[2], other_words[2];
		int32_t v[4], other[4];

		inputs_load<DT>(at, w->vector, words);
		if (pair) {
			inputs_load<DT>(second_at, w->vector, other_words);

			const uint4 four = *(const uint4 *)turn; /* pairs are a multiple of four */
			const uint32_t t[4] = { four.x, four.y, four.z, four.w };

			layer_pairs_of<DT>(words, other_words, t, v, other);
			*(uint32_t *)(second_to + piece_at(row, second % PIECE)) =
				layer_inputs_of(narrow, second_mul, other);
		} else {
			layer_values_of<DT>(words, v);
		}
		if (neighbours) {
			layer_unrotate_any(layer_turn_unpacked(turn[0]), &v[0], &v[1]);
			layer_unrotate_any(layer_turn_unpacked(turn[1]), &v[2], &v[3]);
		}
		*(uint32_t *)(to + piece_at(row, column % PIECE)) = layer_inputs_of(narrow, mul, v);
		turn += pairs;
	}
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
	const uint32_t t = row / r.tokens, column = head * s.head_dim + e;
	const struct gpu_layer_task *of = &r.of[t];

	w.r = &r;
	w.s = &s;
	w.seg = of->segment + s.segment;
	w.vector = !PAGES || w.seg->vector;
	w.stride = PAGES ? w.seg->token_stride : r.mu_columns * 4u;
	w.patterns = PAGES ? layer_page_base(of, w.seg) + row % r.tokens * w.stride
			   : (const uint8_t *)r.mu + row * w.stride;
	w.out = out + (PAGES ? (uint64_t)s.first_piece * r.rows_pieces * PIECE_BYTES : 0);
	w.row = row;
	if (s.dtype == 1)
		inputs_make<1, PAGES>(&w, column, e, pair);
	else if (s.dtype == 2)
		inputs_make<2, PAGES>(&w, column, e, pair);
	else if (s.dtype == 3)
		inputs_make<3, PAGES>(&w, column, e, pair);
	else
		inputs_make<4, PAGES>(&w, column, e, pair);
}

#endif
