/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model.cuh - what the kernels of `model` know of weights, contexts and a batch, as they lie in device memory.
 *
 * Rows of a batch follow each other, whatever sequence they are of; only attention and what is kept of a sequence
 * care.  A sequence's rows are cut into tiles of 64 for them.
 *
 * Operands of products lie in pieces of 128 rows (or outputs) times 128 columns, one byte each, and in a piece the
 * way the tensor cores take it: row r at 128 r, its 16-byte parts at the place of their number xor r % 8.  Weights
 * are [outputs' piece][columns' piece], rows [columns' piece][rows' piece].  Weights beyond a matrix are zero, so rows
 * may have anything there.
 *
 * A context's values are split by 128, value = 128 * high + low, for products of int8.  Of each layer: K high, K low
 * [kv head][position][dim], V high, V low [kv head][dim][position]; dims padded to model_dim_padded().  With 128 dims
 * those are pieces, [kv head][positions' piece].
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_CUH

#include <stdint.h>

#include "gpu/codec/model_core.h"

#define MPIECE 128u
#define MPIECE_BYTES (MPIECE * MPIECE)
#define MTILE 64u /* rows of one sequence; also keys at a time */
#define LANES 32u
#define ALL_LANES 0xffffffffu

struct gpu_matrix {
	const uint8_t *high, *low; /* pieces; low may be NULL */
	const uint16_t *mants;
	const int16_t *exps;
	uint32_t outs, depth;
	uint32_t depth_pieces;
	uint32_t mixed;
};

struct gpu_norm {
	const int16_t *weights; /* NULL: none */
	int32_t frac;
};

struct gpu_model_layer {
	struct gpu_matrix q, kv, o, gate_up, down, value_map, gain_k, gain_v;
	struct gpu_norm input, post, q_norm, k_norm;
	const int32_t *bias_k, *bias_v;
	const int16_t *sigma_k, *sigma_v;
	int32_t k_frac, v_frac;
	struct model_scale unit_k, unit_v, score, real_v;
	uint64_t eps_input, eps_post;
};

struct gpu_model_sequence { /* of a batch */
	uint8_t *values;    /* its context's */
	uint32_t capacity;  /* positions; a multiple of MPIECE */
	uint32_t digest;    /* of guesses so far */
};

struct gpu_model_tile {
	uint32_t sequence, position; /* of its first row */
	uint32_t first, count;	     /* rows */
};

/* Byte `column` of a row of a piece. */
CODEC_HD uint32_t mpiece_at(uint32_t row, uint32_t column)
{
	return row * MPIECE + ((column >> 4 ^ (row & 7u)) << 4) + (column & 15u);
}

CODEC_HD uint32_t model_dim_padded(uint32_t dim)
{
	return dim <= 32u ? 32u : dim <= 64u ? 64u : dim <= 128u ? 128u : 256u;
}

CODEC_HD uint32_t mpieces(uint32_t count)
{
	return (count + MPIECE - 1u) / MPIECE;
}

/* Where a head's planes have a value. */
CODEC_HD uint64_t context_k_at(uint32_t padded, uint32_t position, uint32_t dim)
{
	if (padded == MPIECE)
		return (uint64_t)(position / MPIECE) * MPIECE_BYTES +
		       mpiece_at(position % MPIECE, dim);
	return (uint64_t)position * padded + dim;
}

CODEC_HD uint64_t context_v_at(uint32_t padded, uint32_t capacity, uint32_t position, uint32_t dim)
{
	if (padded == MPIECE)
		return (uint64_t)(position / MPIECE) * MPIECE_BYTES +
		       mpiece_at(dim, position % MPIECE);
	return (uint64_t)dim * capacity + position;
}

/* value = 128 * high + low, low in -64 .. 63 */
CODEC_HD int32_t model_split(int32_t value)
{
	return (value + 64) >> 7;
}

/* One guess's part of the digest, as model.c sums it. */
CODEC_HD uint32_t model_guess_digest(int32_t mu, uint32_t place, uint32_t segment)
{
	uint32_t x = (uint32_t)mu + place * 0x9e3779b9u + segment * 0x85ebca6bu;

	x = (x ^ x >> 16) * 0x7feb352du;
	x = (x ^ x >> 15) * 0x846ca68bu;
	return x ^ x >> 16;
}

#ifdef __CUDACC__

__device__ __forceinline__ static uint32_t lanes_max(uint32_t x)
{
	return __reduce_max_sync(ALL_LANES, x);
}

__device__ __forceinline__ static uint64_t lanes_max64(uint64_t x)
{
#pragma unroll
	for (uint32_t i = LANES / 2u; i; i /= 2u) {
		const uint64_t y = __shfl_xor_sync(ALL_LANES, x, i);

		x = x > y ? x : y;
	}
	return x;
}

__device__ __forceinline__ static uint64_t lanes_sum64(uint64_t x)
{
#pragma unroll
	for (uint32_t i = LANES / 2u; i; i /= 2u)
		x += __shfl_xor_sync(ALL_LANES, x, i);
	return x;
}

#endif

#endif
