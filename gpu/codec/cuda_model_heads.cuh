/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_heads.cuh - what is done head by head: keys and values of a product into guesses, queries into int8,
 * exact patterns into errors and into the context.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_HEADS_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_HEADS_CUH

#include "gpu/codec/cuda_model.cuh"

#define HEAD_WARPS 8u
#define HEAD_DIM_MAX 256u

__device__ static const uint16_t model_shape_inside[MODEL_SHAPE_COUNT] = MODEL_SHAPE_INSIDE;

struct gpu_heads_job {
	const int32_t *in; /* [row][heads][dim] */
	uint32_t rows, heads, kv_heads, dim;
	const int32_t *rope;	  /* [position][dim] */
	const uint32_t *position; /* of each row */
	struct gpu_norm norm;	  /* of queries or keys */
	uint64_t eps;
	const int32_t *bias_k, *bias_v;
	struct model_scale unit_k, unit_v; /* guesses */
	int32_t *mu_k, *mu_v;
	uint8_t *high, *low; /* queries: [row][heads][padded dim] */
	struct model_scale *step;
	struct model_scale score;
};

/* Norm, bias and rope of a head in shared memory, by one warp. */
__device__ __forceinline__ static void head_finish(const struct gpu_heads_job *j,
						   const int32_t *rope, const int32_t *bias,
						   int32_t *x)
{
	const uint32_t lane = threadIdx.x % LANES, dim = j->dim, half = dim / 2u;

	if (j->norm.weights) {
		uint32_t max = 0;
		uint64_t squares = 0;
		struct model_norm n;
		int32_t shift;

		for (uint32_t i = lane; i < dim; i += LANES)
			max = umax(max, model_abs(x[i]));
		shift = model_norm_shift(lanes_max(max));
		for (uint32_t i = lane; i < dim; i += LANES) {
			const int32_t y = x[i] >> shift;

			squares += (uint64_t)((int64_t)y * y);
		}
		n = model_norm_of(lanes_sum64(squares), dim, j->eps, shift);
		for (uint32_t i = lane; i < dim; i += LANES)
			x[i] = model_norm_apply(x[i], n, j->norm.weights[i], j->norm.frac);
	}
	if (bias)
		for (uint32_t i = lane; i < dim; i += LANES)
			x[i] = model_sat32((int64_t)x[i] + bias[i]);
	__syncwarp();
	for (uint32_t i = lane; i < half; i += LANES)
		model_turn(&x[i], &x[i + half], rope[2u * i], rope[2u * i + 1u]);
	__syncwarp();
}

/* One warp to a head of a row: keys, then values.  grid: rows' heads / HEAD_WARPS */
__global__ __launch_bounds__(HEAD_WARPS *LANES) void guess_kernel(
	const __grid_constant__ struct gpu_heads_job j)
{
	__shared__ int32_t heads[HEAD_WARPS][HEAD_DIM_MAX];
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t item = blockIdx.x * HEAD_WARPS + warp, row = item / (2u * j.kv_heads);
	const uint32_t head = item % (2u * j.kv_heads);
	const bool value = head >= j.kv_heads;
	const uint32_t column = (head - (value ? j.kv_heads : 0)) * j.dim;
	int32_t *x = heads[warp];

	if (row >= j.rows)
		return;
	const int32_t *in = j.in + ((uint64_t)row * 2u * j.kv_heads + head) * j.dim;
	const uint64_t to = (uint64_t)row * j.kv_heads * j.dim + column;

	if (value) {
		for (uint32_t i = lane; i < j.dim; i += LANES)
			j.mu_v[to + i] = model_times(
				model_sat32((int64_t)in[i] + j.bias_v[column + i]), j.unit_v);
		return;
	}
	for (uint32_t i = lane; i < j.dim; i += LANES)
		x[i] = in[i];
	__syncwarp();
	head_finish(&j, j.rope + (uint64_t)j.position[row] * j.dim, j.bias_k + column, x);
	for (uint32_t i = lane; i < j.dim; i += LANES)
		j.mu_k[to + i] = model_times(x[i], j.unit_k);
}

/* One warp to a head of a row. */
__global__ __launch_bounds__(HEAD_WARPS *LANES) void query_kernel(
	const __grid_constant__ struct gpu_heads_job j)
{
	__shared__ int32_t heads[HEAD_WARPS][HEAD_DIM_MAX];
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t item = blockIdx.x * HEAD_WARPS + warp, row = item / j.heads;
	const uint32_t padded = model_dim_padded(j.dim);
	int32_t *x = heads[warp];
	uint32_t max = 0;

	if (row >= j.rows)
		return;
	for (uint32_t i = lane; i < j.dim; i += LANES)
		x[i] = j.in[(uint64_t)item * j.dim + i];
	__syncwarp();
	head_finish(&j, j.rope + (uint64_t)j.position[row] * j.dim, NULL, x);
	for (uint32_t i = lane; i < j.dim; i += LANES)
		max = umax(max, model_abs(x[i]));
	const struct model_quant quant = model_quant_of(lanes_max(max), MODEL_QUERY);

	for (uint32_t i = lane; i < padded; i += LANES) {
		const int32_t q = i < j.dim ? model_quantise(x[i], quant) : 0, h = model_split(q);

		j.high[(uint64_t)item * padded + i] = (uint8_t)h;
		j.low[(uint64_t)item * padded + i] = (uint8_t)(q - 128 * h);
	}
	if (lane == 0) {
		const struct model_scale s = model_row_scale(quant, MODEL_QUERY, MODEL_FRAC,
							     model_norm_none());

		j.step[item] = (struct model_scale){
			(uint32_t)((uint64_t)s.mant * j.score.mant >> 24), s.exp + j.score.exp + 24
		};
	}
}

/* ---- exact values ---- */

struct gpu_known_job {
	const uint8_t *patterns; /* [row][kv_heads][dim] */
	const int32_t *mu;
	struct residual_type type;
	uint32_t kv_heads, dim, layer, segment;
	const int16_t *sigma;
	const int32_t *rope;
	const struct gpu_model_tile *tiles;
	struct gpu_model_sequence *sequences;
	int32_t frac;	/* of the context's values */
	int32_t *error; /* [row][2][kv] */
};

__device__ __forceinline__ static uint32_t known_pattern(const uint8_t *patterns,
							 struct residual_type type, uint64_t at)
{
	return type.bits == 16u ? ((const uint16_t *)patterns)[at] : patterns[at];
}

struct known_value {
	int32_t error, kept;
};

__device__ __forceinline__ static struct known_value known_value_of(const struct gpu_known_job *j,
								    uint64_t at, uint32_t column,
								    uint32_t place,
								    uint32_t *digest)
{
	const uint32_t pattern = known_pattern(j->patterns, j->type, at);
	const int32_t mu = j->mu[at], fixed = residual_fixed(j->type, pattern);
	const int32_t d = model_sat32((int64_t)fixed - mu);
	struct known_value v;

	v.error = model_shape(model_shape_inside, d, model_half_gap(j->type, pattern),
			      j->sigma[column]);
	v.kept = model_kv(fixed, j->frac);
	*digest += model_guess_digest(mu, place + column, j->segment);
	return v;
}

__device__ __forceinline__ static void known_add_digest(uint32_t *to, uint32_t digest)
{
	digest = __reduce_add_sync(ALL_LANES, digest);
	if (threadIdx.x % LANES == 0)
		atomicAdd(to, digest);
}

/* Planes of a head of a layer's part in a context. */
__device__ __forceinline__ static uint8_t *context_head(const struct gpu_model_sequence *s,
							uint32_t layer, uint32_t plane,
							uint32_t kv_heads, uint32_t head,
							uint32_t padded)
{
	return s->values +
	       ((uint64_t)(layer * 4u + plane) * kv_heads + head) * s->capacity * padded;
}

__device__ __forceinline__ static void context_put(uint8_t *high, uint8_t *low, uint64_t to,
						   int32_t kept)
{
	const int32_t h = model_split(kept);

	high[to] = (uint8_t)h;
	low[to] = (uint8_t)(kept - 128 * h);
}

/* Values of a head of a tile, by way of shared memory, to lie position by position. */
struct turned_values {
	uint8_t high[HEAD_DIM_MAX][MTILE + 4u], low[HEAD_DIM_MAX][MTILE + 4u];
};

__device__ __forceinline__ static void turned_put(struct turned_values *t, uint32_t row, uint32_t i,
						  int32_t kept)
{
	const int32_t h = model_split(kept);

	t->high[i][row] = (uint8_t)h;
	t->low[i][row] = (uint8_t)(kept - 128 * h);
}

/* By the whole thread block, once all have put theirs. */
__device__ __forceinline__ static void turned_keep(const struct turned_values *t,
						   const struct gpu_model_sequence *s,
						   const struct gpu_model_tile *tile,
						   uint32_t layer, uint32_t kv_heads, uint32_t dim)
{
	const uint32_t padded = model_dim_padded(dim);
	uint8_t *high = context_head(s, layer, 2, kv_heads, blockIdx.y, padded);
	uint8_t *low = context_head(s, layer, 3, kv_heads, blockIdx.y, padded);

	__syncthreads();
	for (uint32_t n = threadIdx.x; n < dim * MTILE; n += blockDim.x) {
		const uint32_t i = n / MTILE, r = n % MTILE;
		const uint64_t to = context_v_at(padded, s->capacity, tile->position + r, i);

		if (r < tile->count) {
			high[to] = t->high[i][r];
			low[to] = t->low[i][r];
		}
	}
}

/* grid: tiles, kv heads */
__global__ __launch_bounds__(256) void known_k_kernel(
	const __grid_constant__ struct gpu_known_job j)
{
	const struct gpu_model_tile tile = j.tiles[blockIdx.x];
	struct gpu_model_sequence *s = &j.sequences[tile.sequence];
	const uint32_t half = j.dim / 2u, kv = j.kv_heads * j.dim, padded = model_dim_padded(j.dim);
	const uint32_t column = blockIdx.y * j.dim;
	uint8_t *high = context_head(s, j.layer, 0, j.kv_heads, blockIdx.y, padded);
	uint8_t *low = context_head(s, j.layer, 1, j.kv_heads, blockIdx.y, padded);
	uint32_t digest = 0;

	for (uint32_t n = threadIdx.x; n < tile.count * half; n += blockDim.x) {
		const uint32_t r = n / half, i = n % half, position = tile.position + r;
		const uint64_t at = (uint64_t)(tile.first + r) * kv + column + i;
		const int32_t *rope = j.rope + (uint64_t)position * j.dim + 2u * i;
		int32_t *e = j.error + (uint64_t)(tile.first + r) * 2u * kv + column + i;
		struct known_value a = known_value_of(&j, at, column + i, position * kv, &digest),
				   b = known_value_of(&j, at + half, column + i + half,
						      position * kv, &digest);

		model_turn(&a.error, &b.error, rope[0], -rope[1]);
		e[0] = a.error;
		e[half] = b.error;
		context_put(high, low, context_k_at(padded, position, i), a.kept);
		context_put(high, low, context_k_at(padded, position, i + half), b.kept);
	}
	known_add_digest(&s->digest, digest);
}

/* grid: tiles, kv heads */
__global__ __launch_bounds__(256) void known_v_kernel(
	const __grid_constant__ struct gpu_known_job j)
{
	__shared__ struct turned_values turned;
	const struct gpu_model_tile tile = j.tiles[blockIdx.x];
	struct gpu_model_sequence *s = &j.sequences[tile.sequence];
	const uint32_t kv = j.kv_heads * j.dim, column = blockIdx.y * j.dim;
	uint32_t digest = 0;

	for (uint32_t n = threadIdx.x; n < tile.count * j.dim; n += blockDim.x) {
		const uint32_t r = n / j.dim, i = n % j.dim;
		const uint64_t at = (uint64_t)(tile.first + r) * kv + column + i;
		const struct known_value a = known_value_of(&j, at, column + i,
							    (tile.position + r) * kv, &digest);

		j.error[(uint64_t)(tile.first + r) * 2u * kv + kv + column + i] = a.error;
		turned_put(&turned, r, i, a.kept);
	}
	turned_keep(&turned, s, &tile, j.layer, j.kv_heads, j.dim);
	known_add_digest(&s->digest, digest);
}

/* ---- the first hidden state ---- */

struct gpu_embed_job {
	const int8_t *high, *low; /* [vocabulary][pitch] */
	const uint16_t *mants;
	const int16_t *exps;
	const int32_t *start; /* without ids */
	const int32_t *ids;   /* NULL: start */
	int32_t *hidden;
	uint32_t pitch, count, frac;
};

/* grid: rows */
__global__ void embed_kernel(const __grid_constant__ struct gpu_embed_job j)
{
	int32_t *h = j.hidden + (uint64_t)blockIdx.x * j.count;

	if (!j.ids) {
		for (uint32_t i = threadIdx.x; i < j.count; i += blockDim.x)
			h[i] = j.start[i];
		return;
	}
	const uint32_t id = (uint32_t)j.ids[blockIdx.x];
	const struct model_scale s = { j.mants[id], j.exps[id] + (int32_t)j.frac };

	for (uint32_t i = threadIdx.x; i < j.count; i += blockDim.x) {
		const uint64_t at = (uint64_t)id * j.pitch + i;

		h[i] = model_times(j.high[at] * 256 + j.low[at], s);
	}
}

#endif
