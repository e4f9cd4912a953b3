/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_heads_wide.cuh - what guess_kernel and query_kernel do, for heads of 32, 64 or 128 dims.
 *
 * A warp has eight heads, each lane dims / 32 neighbouring values of each, in shared memory between the steps; what a
 * value is turned with is 16 lanes away.  What is reckoned once a head (a norm, a scale) is a lane's work, of all eight
 * heads at once.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_HEADS_WIDE_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_HEADS_WIDE_CUH

#include "gpu/codec/cuda_model_heads.cuh"

#define HEADS_EACH 8u /* of a warp */

template <uint32_t PER>
__device__ __forceinline__ static void heads_load(const int32_t *from, int32_t (&x)[PER])
{
	if constexpr (PER < 4u) {
#pragma unroll
		for (uint32_t k = 0; k < PER; k++)
			x[k] = from[k];
	} else {
#pragma unroll
		for (uint32_t k = 0; k < PER; k += 4u) {
			const int4 v = *(const int4 *)(from + k);

			x[k] = v.x;
			x[k + 1u] = v.y;
			x[k + 2u] = v.z;
			x[k + 3u] = v.w;
		}
	}
}

template <uint32_t PER>
__device__ __forceinline__ static void heads_store(int32_t *to, const int32_t (&x)[PER])
{
	if constexpr (PER < 4u) {
#pragma unroll
		for (uint32_t k = 0; k < PER; k++)
			to[k] = x[k];
	} else {
#pragma unroll
		for (uint32_t k = 0; k < PER; k += 4u)
			*(int4 *)(to + k) = make_int4(x[k], x[k + 1u], x[k + 2u], x[k + 3u]);
	}
}

/* model_sat32(model_shift()); shift: 1 to 62. */
__device__ __forceinline__ static int32_t heads_shift(int64_t x, int32_t shift)
{
	return model_sat32(((x >> (shift - 1)) + 1) >> 1);
}

__device__ __forceinline__ static bool heads_plain(int32_t shift)
{
	return shift >= 1 && shift <= 62;
}

/* Sum over a warp; x below 2^50. */
__device__ __forceinline__ static uint64_t heads_sum(uint64_t x)
{
	const uint32_t low = __reduce_add_sync(ALL_LANES, (uint32_t)x & 0xffffffu);
	const uint32_t high = __reduce_add_sync(ALL_LANES, (uint32_t)(x >> 24));

	return ((uint64_t)high << 24) + low;
}

/* model_norm_apply() */
template <uint32_t PER>
__device__ __forceinline__ static void heads_apply(struct model_norm n, const int16_t *weights,
						   int32_t frac, int32_t (&x)[PER])
{
	const int32_t shift = -n.exp - MODEL_FRAC;

#pragma unroll
	for (uint32_t k = 0; k < PER; k++)
		if (heads_plain(shift) && heads_plain(frac))
			x[k] = heads_shift((int64_t)heads_shift((int64_t)x[k] * n.inv, shift) *
						   weights[k],
					   frac);
		else
			x[k] = model_norm_apply(x[k], n, weights[k], frac);
}

/* The heads of a warp; a lane reads what it wrote. */
template <uint32_t PER> struct heads_shared {
	__align__(16) int32_t x[HEAD_WARPS][HEADS_EACH][LANES][PER];
};

/* Each lane: the norm of head `lane`. */
template <uint32_t PER>
__device__ __forceinline__ static struct model_norm heads_norms(const struct gpu_heads_job *j,
								const int32_t (*heads)[LANES][PER])
{
	const uint32_t lane = threadIdx.x % LANES;
	uint64_t squares = 0;
	int32_t shift = 0;

#pragma unroll 2
	for (uint32_t h = 0; h < HEADS_EACH; h++) {
		int32_t x[PER];
		uint32_t max = 0;
		uint64_t sum = 0;

		heads_load<PER>(heads[h][lane], x);
#pragma unroll
		for (uint32_t k = 0; k < PER; k++)
			max = umax(max, model_abs(x[k]));
		const int32_t s = model_norm_shift(__reduce_max_sync(ALL_LANES, max));

#pragma unroll
		for (uint32_t k = 0; k < PER; k++) {
			const int32_t y = x[k] >> s;

			sum += (uint64_t)((int64_t)y * y);
		}
		sum = heads_sum(sum);
		squares = lane == h ? sum : squares;
		shift = lane == h ? s : shift;
	}
	return model_norm_of(squares, j->dim, j->eps, shift);
}

/* model_turn(); rope: of the row's position. */
template <uint32_t PER>
__device__ __forceinline__ static void heads_turn(const int32_t *rope, int32_t (&x)[PER])
{
	const uint32_t lane = threadIdx.x % LANES;
	const int32_t *at = rope + 2u * PER * (lane % 16u);

#pragma unroll
	for (uint32_t k = 0; k < PER; k++) {
		const int2 turn = *(const int2 *)(at + 2u * k);
		const int32_t other = __shfl_xor_sync(ALL_LANES, x[k], 16);
		const int64_t a = (int64_t)x[k] * turn.x, b = (int64_t)other * turn.y;

		x[k] = heads_shift(lane < 16u ? a - b : a + b, MODEL_ROPE_FRAC);
	}
}

/* model_times() */
template <uint32_t PER>
__device__ __forceinline__ static void heads_times(struct model_scale s, int32_t (&x)[PER])
{
#pragma unroll
	for (uint32_t k = 0; k < PER; k++)
		x[k] = heads_plain(-s.exp) ? heads_shift((int64_t)x[k] * s.mant, -s.exp)
					   : model_times(x[k], s);
}

template <uint32_t PER>
__device__ __forceinline__ static void heads_add(const int32_t *bias, int32_t (&x)[PER])
{
	int32_t b[PER];

	heads_load<PER>(bias + threadIdx.x % LANES * PER, b);
#pragma unroll
	for (uint32_t k = 0; k < PER; k++)
		x[k] = model_sat32((int64_t)x[k] + b[k]);
}

/* grid: rows' heads, keys' then values', / HEAD_WARPS / HEADS_EACH */
template <uint32_t PER>
__global__ __launch_bounds__(HEAD_WARPS *LANES) void guess_wide_kernel(
	const __grid_constant__ struct gpu_heads_job j)
{
	__shared__ struct heads_shared<PER> s;
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t first = (blockIdx.x * HEAD_WARPS + warp) * HEADS_EACH;
	const uint32_t heads = 2u * j.kv_heads, all = j.rows * heads;
	struct model_norm own = model_norm_none();
	int32_t x[PER];

	if (first >= all)
		return;
#pragma unroll 4
	for (uint32_t h = 0; h < HEADS_EACH; h++) {
		const uint32_t item = min(first + h, all - 1u);

		heads_load<PER>(j.in + (uint64_t)item * j.dim + lane * PER, x);
		heads_store<PER>(s.x[warp][h][lane], x);
	}
	if (j.norm.weights)
		own = heads_norms<PER>(&j, s.x[warp]);
#pragma unroll 1
	for (uint32_t h = 0; h < HEADS_EACH && first + h < all; h++) {
		const uint32_t row = (first + h) / heads, head = (first + h) % heads;
		const bool key = head < j.kv_heads;
		const uint32_t column = (head - (key ? 0 : j.kv_heads)) * j.dim;
		const uint64_t to = (uint64_t)row * j.kv_heads * j.dim + column + lane * PER;
		struct model_norm n;

		n.inv = __shfl_sync(ALL_LANES, own.inv, h);
		n.exp = __shfl_sync(ALL_LANES, own.exp, h);
		heads_load<PER>(s.x[warp][h][lane], x);
		if (key && j.norm.weights)
			heads_apply<PER>(n, j.norm.weights + lane * PER, j.norm.frac, x);
		heads_add<PER>((key ? j.bias_k : j.bias_v) + column, x);
		if (key)
			heads_turn<PER>(j.rope + (uint64_t)j.position[row] * j.dim, x);
		heads_times<PER>(key ? j.unit_k : j.unit_v, x);
		heads_store<PER>((key ? j.mu_k : j.mu_v) + to, x);
	}
}

/* Values of a head into their two planes. */
template <uint32_t PER>
__device__ __forceinline__ static void heads_planes(const int32_t (&q)[PER], uint8_t *high,
						    uint8_t *low)
{
	uint32_t hs = 0, ls = 0;

#pragma unroll
	for (uint32_t k = 0; k < PER; k++) {
		const int32_t h = model_split(q[k]);

		hs |= (uint32_t)(uint8_t)h << 8u * k;
		ls |= (uint32_t)(uint8_t)(q[k] - 128 * h) << 8u * k;
	}
	if (PER == 4u) {
		*(uint32_t *)high = hs;
		*(uint32_t *)low = ls;
	} else if (PER == 2u) {
		*(uint16_t *)high = (uint16_t)hs;
		*(uint16_t *)low = (uint16_t)ls;
	} else {
		*high = (uint8_t)hs;
		*low = (uint8_t)ls;
	}
}

/* grid: rows' heads / HEAD_WARPS / HEADS_EACH */
template <uint32_t PER>
__global__ __launch_bounds__(HEAD_WARPS *LANES) void query_wide_kernel(
	const __grid_constant__ struct gpu_heads_job j)
{
	__shared__ struct heads_shared<PER> s;
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t first = (blockIdx.x * HEAD_WARPS + warp) * HEADS_EACH;
	const uint32_t all = j.rows * j.heads;
	struct model_norm own = model_norm_none();
	uint32_t largest = 0;
	int32_t x[PER];

	if (first >= all)
		return;
#pragma unroll 4
	for (uint32_t h = 0; h < HEADS_EACH; h++) {
		const uint32_t item = min(first + h, all - 1u);

		heads_load<PER>(j.in + (uint64_t)item * j.dim + lane * PER, x);
		heads_store<PER>(s.x[warp][h][lane], x);
	}
	if (j.norm.weights)
		own = heads_norms<PER>(&j, s.x[warp]);
#pragma unroll 1
	for (uint32_t h = 0; h < HEADS_EACH && first + h < all; h++) {
		const uint32_t row = (first + h) / j.heads;
		struct model_norm n;
		uint32_t max = 0;

		n.inv = __shfl_sync(ALL_LANES, own.inv, h);
		n.exp = __shfl_sync(ALL_LANES, own.exp, h);
		heads_load<PER>(s.x[warp][h][lane], x);
		if (j.norm.weights)
			heads_apply<PER>(n, j.norm.weights + lane * PER, j.norm.frac, x);
		heads_turn<PER>(j.rope + (uint64_t)j.position[row] * j.dim, x);
#pragma unroll
		for (uint32_t k = 0; k < PER; k++)
			max = umax(max, model_abs(x[k]));
		max = __reduce_max_sync(ALL_LANES, max);
		largest = lane == h ? max : largest;
		heads_store<PER>(s.x[warp][h][lane], x);
	}
	struct model_quant q = model_quant_of(largest, MODEL_QUERY);

	if (lane < HEADS_EACH && first + lane < all) {
		const struct model_scale scale = model_row_scale(q, MODEL_QUERY, MODEL_FRAC,
								 model_norm_none());

		j.step[first + lane] =
			(struct model_scale){ (uint32_t)((uint64_t)scale.mant * j.score.mant >> 24),
					      scale.exp + j.score.exp + 24 };
	}
	const uint64_t inv = q.inv;

	q.shift = 0; /* values are below 2^31: there is nothing to shift */
#pragma unroll 2
	for (uint32_t h = 0; h < HEADS_EACH && first + h < all; h++) {
		const uint64_t to = (uint64_t)(first + h) * j.dim + lane * PER;

		q.inv = __shfl_sync(ALL_LANES, (unsigned long long)inv, h);
		heads_load<PER>(s.x[warp][h][lane], x);
#pragma unroll
		for (uint32_t k = 0; k < PER; k++)
			x[k] = model_quantise(x[k], q);
		heads_planes<PER>(x, j.high + to, j.low + to);
	}
}

#endif
