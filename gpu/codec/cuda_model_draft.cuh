/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_draft.cuh - what a draft does element by element beside the kernels of a pass: its own keys and values
 * into the context, sums of maps into guesses, exact patterns into inputs of the next maps.  model_draft.c says in
 * which order.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_DRAFT_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_DRAFT_CUH

#include "gpu/codec/cuda_model_heads.cuh"

struct gpu_own_job {
	const int32_t *mu_k, *mu_v; /* [row][kv_heads][dim] */
	uint32_t kv_heads, dim, layer;
	int32_t k_frac, v_frac; /* of the context's values */
	const struct gpu_model_tile *tiles;
	const struct gpu_model_sequence *sequences;
};

/* Guesses are what the draft's own context holds.  grid: tiles, kv heads */
__global__ __launch_bounds__(256) void own_kernel(const __grid_constant__ struct gpu_own_job j)
{
	__shared__ struct turned_values turned;
	const struct gpu_model_tile tile = j.tiles[blockIdx.x];
	const struct gpu_model_sequence *s = &j.sequences[tile.sequence];
	const uint32_t kv = j.kv_heads * j.dim, padded = model_dim_padded(j.dim);
	uint8_t *high = context_head(s, j.layer, 0, j.kv_heads, blockIdx.y, padded);
	uint8_t *low = context_head(s, j.layer, 1, j.kv_heads, blockIdx.y, padded);

	for (uint32_t n = threadIdx.x; n < tile.count * j.dim; n += blockDim.x) {
		const uint32_t r = n / j.dim, i = n % j.dim;
		const uint64_t at = (uint64_t)(tile.first + r) * kv + blockIdx.y * j.dim + i;

		context_put(high, low, context_k_at(padded, tile.position + r, i),
			    model_kv(j.mu_k[at], j.k_frac));
		turned_put(&turned, r, i, model_kv(j.mu_v[at], j.v_frac));
	}
	turned_keep(&turned, s, &tile, j.layer, j.kv_heads, j.dim);
}

/* Every row of sums begins with the bias.  grid: rows */
__global__ void sums_kernel(const int32_t *bias, uint32_t count, int32_t *sums)
{
	for (uint32_t i = threadIdx.x; i < count; i += blockDim.x)
		sums[(uint64_t)blockIdx.x * count + i] = bias[i];
}

struct gpu_sums_job {
	const int32_t *sums; /* [row][2][kv] */
	uint32_t kv, dim;
	const int32_t *rope;	  /* [position][dim]; NULL: V */
	const uint32_t *position; /* of each row */
	int32_t *mu;		  /* [row][kv] */
};

/* One part's sums as guesses, K's turned.  grid: rows */
__global__ void sums_out_kernel(const __grid_constant__ struct gpu_sums_job j)
{
	const uint32_t half = j.dim / 2u;
	const int32_t *in = j.sums + (uint64_t)blockIdx.x * 2u * j.kv + (j.rope ? 0 : j.kv);
	int32_t *mu = j.mu + (uint64_t)blockIdx.x * j.kv;

	for (uint32_t n = threadIdx.x; n < j.kv / 2u; n += blockDim.x) {
		const uint32_t i = n % half, at = n / half * j.dim + i;
		int32_t a = in[at], b = in[at + half];

		if (j.rope) {
			const int32_t *rope = j.rope + (uint64_t)j.position[blockIdx.x] * j.dim +
					      2u * i;

			model_turn(&a, &b, rope[0], rope[1]);
		}
		mu[at] = a;
		mu[at + half] = b;
	}
}

struct gpu_exact_job {
	const uint8_t *patterns; /* [row][kv_heads][dim] */
	const int32_t *mu;
	struct residual_type type;
	uint32_t kv_heads, dim, segment;
	const int32_t *rope; /* [position][dim]; NULL: V */
	const struct gpu_model_tile *tiles;
	struct gpu_model_sequence *sequences;
	int32_t *to; /* [row][2][kv] */
};

/* One part of what is exact, K's turned back, and the digest of its guesses.  grid: tiles, kv heads */
__global__ __launch_bounds__(256) void exact_kernel(const __grid_constant__ struct gpu_exact_job j)
{
	const struct gpu_model_tile tile = j.tiles[blockIdx.x];
	const uint32_t half = j.dim / 2u, kv = j.kv_heads * j.dim, column = blockIdx.y * j.dim;
	uint32_t digest = 0;

	for (uint32_t n = threadIdx.x; n < tile.count * half; n += blockDim.x) {
		const uint32_t r = n / half, i = n % half, position = tile.position + r;
		const uint64_t at = (uint64_t)(tile.first + r) * kv + column + i;
		int32_t *to = j.to + (uint64_t)(tile.first + r) * 2u * kv + (j.rope ? 0 : kv) +
			      column + i;
		int32_t a = residual_fixed(j.type, known_pattern(j.patterns, j.type, at)),
			b = residual_fixed(j.type, known_pattern(j.patterns, j.type, at + half));

		if (j.rope) {
			const int32_t *rope = j.rope + (uint64_t)position * j.dim + 2u * i;

			model_turn(&a, &b, rope[0], -rope[1]);
		}
		to[0] = a;
		to[half] = b;
		digest += model_guess_digest(j.mu[at], position * kv + column + i, j.segment) +
			  model_guess_digest(j.mu[at + half], position * kv + column + i + half,
					     j.segment);
	}
	known_add_digest(&j.sequences[tile.sequence].digest, digest);
}

#endif
