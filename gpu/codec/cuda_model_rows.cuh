/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_rows.cuh - rows into int8 for a product: where a row comes from, its mix by blocks of a Hadamard matrix,
 * its planes and its scale.  One thread block to a row; a row stays in registers, 8 neighbours at a time in a thread,
 * so that a warp has 256 of them, the largest block there is.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_ROWS_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_ROWS_CUH

#include "gpu/codec/cuda_model.cuh"

#define ROW_THREADS_MAX 512u
#define ROW_GROUP 8u
#define ROW_GROUPS_MAX 16u /* of a thread: rows of 65536 */

enum row_source {
	ROW_NORM,    /* the hidden state times a norm's weights */
	ROW_WEIGHED, /* times the weights, and no norm */
	ROW_VALUES,  /* as they are */
	ROW_SCALED,  /* times `real` */
	ROW_GATED    /* silu(gate) * up; up lies `count` behind */
};

struct gpu_row_job {
	const int32_t *in;
	uint32_t in_pitch, count;
	uint32_t depth_pieces, rows_pieces;
	uint32_t mixed, q_max;
	int32_t frac;
	struct gpu_norm norm;
	uint64_t eps;
	struct model_scale real;
	const int32_t *sigmoid;
	uint8_t *high, *low; /* low: when q_max is MODEL_Q16 */
	struct model_scale *scale;
};

struct row_shared {
	uint64_t part[ROW_THREADS_MAX / LANES];
	uint32_t part32[ROW_THREADS_MAX / LANES];
};

/* What `lanes` makes of a warp's values, of a whole thread block's; part: a place for each warp. */
template <typename T, T (*lanes)(T)> __device__ __forceinline__ static T row_reduce(T *part, T x)
{
	const uint32_t warps = blockDim.x / LANES;

	x = lanes(x);
	if (threadIdx.x % LANES == 0)
		part[threadIdx.x / LANES] = x;
	__syncthreads();
	x = threadIdx.x % LANES < warps ? part[threadIdx.x % LANES] : 0;
	x = lanes(x);
	__syncthreads();
	return x;
}

__device__ __forceinline__ static uint64_t row_max(struct row_shared *s, uint64_t x)
{
	return row_reduce<uint64_t, lanes_max64>(s->part, x);
}

__device__ __forceinline__ static uint64_t row_sum(struct row_shared *s, uint64_t x)
{
	return row_reduce<uint64_t, lanes_sum64>(s->part, x);
}

__device__ __forceinline__ static uint32_t row_max32(struct row_shared *s, uint32_t x)
{
	return row_reduce<uint32_t, lanes_max>(s->part32, x);
}

__device__ __forceinline__ static void row_load8(const int32_t *from, int32_t (&x)[ROW_GROUP])
{
	const int4 a = ((const int4 *)from)[0], b = ((const int4 *)from)[1];

	x[0] = a.x;
	x[1] = a.y;
	x[2] = a.z;
	x[3] = a.w;
	x[4] = b.x;
	x[5] = b.y;
	x[6] = b.z;
	x[7] = b.w;
}

__device__ __forceinline__ static uint64_t abs64(int64_t x)
{
	return (uint64_t)(x < 0 ? -x : x);
}

/* The place in its row of a thread's group. */
__device__ __forceinline__ static uint32_t row_place(uint32_t group)
{
	return (group * blockDim.x + threadIdx.x) * ROW_GROUP;
}

/* One over the root mean square; the hidden state is in x. */
template <uint32_t GROUPS>
__device__ __forceinline__ static struct model_norm row_norm(const struct gpu_row_job *j,
							     struct row_shared *s,
							     const int32_t (&x)[GROUPS][ROW_GROUP])
{
	uint32_t max = 0;
	uint64_t sum = 0;
	int32_t shift;

#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++)
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++)
			max = umax(max, model_abs(x[g][i]));
	shift = model_norm_shift(row_max32(s, max));
#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++)
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++) {
			const int32_t y = x[g][i] >> shift;

			sum += (uint64_t)((int64_t)y * y);
		}
	return model_norm_of(row_sum(s, sum), j->count, j->eps, shift);
}

/* model_silu(): steps of the table are below 2^16, so an int32 holds their parts. */
__device__ __forceinline__ static int32_t row_silu(const int32_t *table, int32_t gate)
{
	const int32_t down = MODEL_MLP_FRAC - MODEL_SIG_STEP;
	const uint32_t a = model_abs(gate), f = a & ((1u << down) - 1u);
	const uint32_t end = (uint32_t)MODEL_SIG_RANGE << MODEL_SIG_STEP, i = a >> down;
	const uint32_t at = i < end ? i : end - 1u;
	const int32_t first = table[at];
	int32_t s = first + (int32_t)((uint32_t)(table[at + 1u] - first) * f >> down);

	s = gate < 0 ? (1 << MODEL_SIG_FRAC) - s : s;
	const int32_t y = (int32_t)(((int64_t)gate * s + (1 << (MODEL_SIG_FRAC - 1))) >>
				    MODEL_SIG_FRAC);

	return i < end ? y : gate < 0 ? 0 : gate;
}

/* model_times(), told apart for a whole group what its shift is like. */
__device__ __forceinline__ static void row_times8(const int32_t (&x)[ROW_GROUP],
						  struct model_scale s, int64_t (&y)[ROW_GROUP])
{
	const int32_t shift = -s.exp;

	if (shift < 1 || shift > 62) {
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++)
			y[i] = model_times(x[i], s);
		return;
	}
#pragma unroll
	for (uint32_t i = 0; i < ROW_GROUP; i++)
		y[i] = model_sat32((((int64_t)x[i] * s.mant >> (shift - 1)) + 1) >> 1);
}

template <enum row_source SOURCE, uint32_t GROUPS>
__device__ __forceinline__ static struct model_norm row_read(const struct gpu_row_job *j,
							     struct row_shared *s,
							     int64_t (&y)[GROUPS][ROW_GROUP])
{
	const bool weighs = SOURCE == ROW_NORM || SOURCE == ROW_WEIGHED;
	const int32_t *in = j->in + (uint64_t)blockIdx.x * j->in_pitch;
	int32_t x[GROUPS][ROW_GROUP];

#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++) {
		const uint32_t at = row_place(g);

		if (at < j->count) {
			row_load8(in + at, x[g]);
		} else {
#pragma unroll
			for (uint32_t i = 0; i < ROW_GROUP; i++)
				x[g][i] = 0;
		}
		uint4 w = make_uint4(0, 0, 0, 0);

		if (weighs && at < j->count)
			w = *(const uint4 *)(j->norm.weights + at);
		const uint32_t pairs[] = { w.x, w.y, w.z, w.w };
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++) {
			const int32_t weight = (int16_t)(pairs[i / 2u] >> 16u * (i & 1u));

			if (weighs)
				y[g][i] = (int64_t)x[g][i] * weight;
			else if (SOURCE == ROW_VALUES)
				y[g][i] = x[g][i];
		}
		if (SOURCE == ROW_SCALED)
			row_times8(x[g], j->real, y[g]);
		if (SOURCE == ROW_GATED) {
			int32_t up[ROW_GROUP] = { 0 };

			if (at < j->count)
				row_load8(in + j->count + at, up);
#pragma unroll
			for (uint32_t i = 0; i < ROW_GROUP; i++)
				y[g][i] = (int64_t)row_silu(j->sigmoid, x[g][i]) * up[i];
		}
	}
	return SOURCE == ROW_NORM ? row_norm<GROUPS>(j, s, x) : model_norm_none();
}

template <uint32_t GROUPS>
__device__ __forceinline__ static uint64_t row_largest(const int64_t (&y)[GROUPS][ROW_GROUP])
{
	uint64_t max = 0;

#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++)
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++) {
			const uint64_t a = abs64(y[g][i]);

			max = a > max ? a : max;
		}
	return max;
}

/* 8 values of one block of a Hadamard matrix; the other lanes of the warp have the rest of it. */
__device__ __forceinline__ static void row_mix(int32_t (&x)[ROW_GROUP], uint32_t block)
{
	const uint32_t lane = threadIdx.x % LANES;

#pragma unroll
	for (uint32_t half = 1; half < ROW_GROUP; half *= 2u)
		if (half < block)
#pragma unroll
			for (uint32_t i = 0; i < ROW_GROUP; i++)
				if (!(i & half)) {
					const int32_t sum = x[i] + x[i + half];

					x[i + half] = x[i] - x[i + half];
					x[i] = sum;
				}
#pragma unroll
	for (uint32_t m = 1; m < LANES; m *= 2u)
		if (m * ROW_GROUP < block)
#pragma unroll
			for (uint32_t i = 0; i < ROW_GROUP; i++) {
				const int32_t other = __shfl_xor_sync(ALL_LANES, x[i], m);

				x[i] = lane & m ? other - x[i] : x[i] + other;
			}
}

/* In two planes, or in the high one alone. */
__device__ __forceinline__ static void row_store8(const struct gpu_row_job *j, uint32_t at,
						  const int32_t (&q)[ROW_GROUP])
{
	const uint32_t row = blockIdx.x;
	const uint64_t piece = (uint64_t)(at / MPIECE) * j->rows_pieces + row / MPIECE;
	const uint64_t to = piece * MPIECE_BYTES + mpiece_at(row % MPIECE, at % MPIECE);
	const bool wide = j->q_max == MODEL_Q16;
	uint64_t high = 0, low = 0;

	if (at >= j->depth_pieces * MPIECE)
		return;
#pragma unroll
	for (uint32_t i = 0; i < ROW_GROUP; i++) {
		const int32_t h = wide ? model_high(q[i]) : q[i];

		high |= (uint64_t)(uint8_t)h << (8u * i);
		low |= (uint64_t)(uint8_t)(q[i] - 256 * h) << (8u * i);
	}
	*(uint64_t *)(j->high + to) = high;
	if (wide)
		*(uint64_t *)(j->low + to) = low;
}

/* Bits of the largest magnitude: all magnitudes or'ed have as many. */
template <uint32_t GROUPS>
__device__ __forceinline__ static int32_t row_bits(struct row_shared *s,
						   const int64_t (&y)[GROUPS][ROW_GROUP])
{
	uint64_t all = 0;

#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++)
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++)
			all |= abs64(y[g][i]);
	return (int32_t)row_max32(s, (uint32_t)model_bits(all));
}

/* The rest of a row that is mixed, whose values are few bits then; returns by how many they were cut. */
template <uint32_t GROUPS>
__device__ __forceinline__ static int32_t row_put_mixed(const struct gpu_row_job *j,
							struct row_shared *s,
							const int64_t (&y)[GROUPS][ROW_GROUP],
							struct model_quant *quant)
{
	const uint32_t block = model_mix_block(j->count);
	const int32_t bits = row_bits<GROUPS>(s, y) - MODEL_MIX_BITS, over = bits > 0 ? bits : 0;
	int32_t x[GROUPS][ROW_GROUP];
	uint32_t max = 0;

#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++) {
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++)
			x[g][i] = (int32_t)(y[g][i] >> over);
		row_mix(x[g], block);
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++)
			max = umax(max, model_abs(x[g][i]));
	}
	*quant = model_quant_of(row_max32(s, max), j->q_max); /* below 2^31: nothing to shift */
#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++) {
#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++)
			x[g][i] = (int32_t)((x[g][i] * (int64_t)quant->inv + ((int64_t)1 << 39)) >>
					    40);
		row_store8(j, row_place(g), x[g]);
	}
	return over;
}

template <uint32_t GROUPS>
__device__ __forceinline__ static void row_put(const struct gpu_row_job *j, struct row_shared *s,
					       const int64_t (&y)[GROUPS][ROW_GROUP],
					       struct model_quant *quant)
{
	*quant = model_quant_of(row_max(s, row_largest<GROUPS>(y)), j->q_max);
#pragma unroll
	for (uint32_t g = 0; g < GROUPS; g++) {
		int32_t q[ROW_GROUP];

#pragma unroll
		for (uint32_t i = 0; i < ROW_GROUP; i++)
			q[i] = model_quantise(y[g][i], *quant);
		row_store8(j, row_place(g), q);
	}
}

/* grid: rows. */
template <enum row_source SOURCE, uint32_t GROUPS, bool MIXED>
__global__ __launch_bounds__(ROW_THREADS_MAX) void row_kernel(
	const __grid_constant__ struct gpu_row_job j)
{
	__shared__ struct row_shared s;
	int64_t y[GROUPS][ROW_GROUP];
	const struct model_norm norm = row_read<SOURCE, GROUPS>(&j, &s, y);
	struct model_quant quant;
	int32_t frac = j.frac;

	if (MIXED)
		frac -= row_put_mixed<GROUPS>(&j, &s, y, &quant);
	else
		row_put<GROUPS>(&j, &s, y, &quant);
	if (threadIdx.x == 0)
		j.scale[blockIdx.x] = model_row_scale(quant, j.q_max, frac, norm);
}

#endif
