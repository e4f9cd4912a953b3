/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_attend.cuh - attention over the exact keys and values of the context, in integers.
 *
 * A thread block has a tile of 64 rows and a head; keys come 64 at a time.  First the largest score of each row, over
 * all its keys; then the scores once more, their weights, and the sums of weight * value.  Scores and sums are made of
 * products of int8 planes (weights: uint8), value = 128 * high + low, with the cross products in one sum.
 *
 * Four warps share out a tile's rows, 16 each, and two or four such groups its keys: their weights go through shared
 * memory, and then a group sums its share of the dims.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_ATTEND_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_ATTEND_CUH

#include "gpu/codec/cuda_model.cuh"
#include "gpu/codec/cuda_model_heads.cuh"
#include "gpu/codec/model_math.h"

#define ATTEND_KEYS_MAX 65536u /* of a sequence: sums of planes fit an int32 */
#define ATTEND_DIMS_MAX 128u   /* that a thread block sums */
#define ATTEND_WEIGHTS_PITCH (MTILE + 16u)

struct gpu_attend_job {
	const uint8_t *high, *low;	/* queries */
	const struct model_scale *step; /* [row][heads] */
	const struct gpu_model_tile *tiles;
	const struct gpu_model_sequence *sequences;
	const uint16_t *exp; /* table */
	uint32_t heads, kv_heads, dim, layer;
	int32_t *out; /* [row][heads][dim] */
};

struct attend_fragment { /* of 16 rows, 32 columns of bytes */
	uint32_t x[4];
};

__device__ __forceinline__ static void attend_multiply(int32_t (&d)[4],
						       const struct attend_fragment &a, uint32_t b0,
						       uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
	    "{%0,%1,%2,%3};"
	    : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
	    : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ static void attend_weigh(int32_t (&d)[4],
						    const struct attend_fragment &a, uint32_t b0,
						    uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
	    "{%0,%1,%2,%3};"
	    : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
	    : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

template <uint32_t DIM> struct attend_shape {
	static const uint32_t GROUPS = DIM <= 128u ? 2u
						   : 4u; /* of four warps: what fits registers */
	static const uint32_t THREADS = GROUPS * 4u * LANES;
	static const uint32_t KEYS = MTILE / GROUPS;
	static const uint32_t DIMS = DIM < ATTEND_DIMS_MAX ? DIM : ATTEND_DIMS_MAX;
	static const uint32_t COUNT = DIMS / GROUPS / 8u; /* of 8 dims each */
};

template <uint32_t DIM> struct attend_shared {
	static const uint32_t GROUPS = attend_shape<DIM>::GROUPS, DIMS = attend_shape<DIM>::DIMS;
	uint8_t k[2][MTILE][DIM + 16u];
	uint8_t v[2][DIMS][ATTEND_WEIGHTS_PITCH];
	uint8_t weight[2][MTILE][ATTEND_WEIGHTS_PITCH];
	uint16_t exp[MODEL_EXP_ENTRIES];
	int32_t max[GROUPS][MTILE];
	uint32_t total[GROUPS][MTILE];
};

struct attend_row {   /* what a thread knows of a row of its scores */
	int32_t last; /* key that it may see; -1: none */
	int32_t max;
	uint32_t total;
	struct model_scale step;
};

/* Keys of a tile, or values of `dims` dims from `dim` on, from `base` on. */
template <uint32_t DIM>
__device__ __forceinline__ static void attend_copy_keys(struct attend_shared<DIM> *s,
							uint32_t plane, const uint8_t *from,
							uint32_t base)
{
	const uint32_t parts = DIM / 16u;

	for (uint32_t n = threadIdx.x; n < MTILE * parts; n += blockDim.x) {
		const uint32_t r = n / parts, at = n % parts * 16u;

		*(uint4 *)&s->k[plane][r][at] =
			*(const uint4 *)(from + context_k_at(DIM, base + r, at));
	}
}

template <uint32_t DIM>
__device__ __forceinline__ static void attend_copy_values(struct attend_shared<DIM> *s,
							  uint32_t plane, const uint8_t *from,
							  uint32_t capacity, uint32_t dim,
							  uint32_t base)
{
	const uint32_t parts = MTILE / 16u;

	for (uint32_t n = threadIdx.x; n < attend_shape<DIM>::DIMS * parts; n += blockDim.x) {
		const uint32_t r = n / parts, at = n % parts * 16u;

		*(uint4 *)&s->v[plane][r][at] =
			*(const uint4 *)(from + context_v_at(DIM, capacity, base + at, dim + r));
	}
}

__device__ __forceinline__ static void attend_rows_init(const struct gpu_attend_job *j,
							const struct gpu_model_tile *tile,
							uint32_t r, struct attend_row (&row)[2])
{
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const bool there = r + 8u * i < tile->count;

		row[i].last = there ? (int32_t)(tile->position + r + 8u * i) : -1;
		row[i].max = INT32_MIN;
		row[i].total = 0;
		row[i].step = (struct model_scale){ 0, 0 };
		if (there)
			row[i].step = j->step[(uint64_t)(tile->first + r + 8u * i) * j->heads +
					      blockIdx.y];
	}
}

template <uint32_t DIM>
__device__ __forceinline__ static void attend_queries(const struct gpu_attend_job *j,
						      const uint8_t *plane,
						      const struct gpu_model_tile *tile,
						      uint32_t row,
						      struct attend_fragment (&q)[DIM / 32u])
{
	const uint32_t lane = threadIdx.x % LANES;

#pragma unroll
	for (uint32_t k = 0; k < DIM / 32u; k++)
#pragma unroll
		for (uint32_t i = 0; i < 4; i++) {
			const uint32_t r = row + (i & 1u) * 8u;
			const uint64_t item = (uint64_t)(tile->first + r) * j->heads + blockIdx.y;

			q[k].x[i] = r < tile->count
					    ? *(const uint32_t *)(plane + item * DIM + 32u * k +
								  (i & 2u) * 8u + lane % 4u * 4u)
					    : 0;
		}
}

/* Scores of 16 rows and the 8 keys from `key` of the tile. */
template <uint32_t DIM>
__device__ __forceinline__ static void attend_scores(
	const struct attend_shared<DIM> *s, const struct attend_fragment (&high)[DIM / 32u],
	const struct attend_fragment (&low)[DIM / 32u], uint32_t key, int32_t (&score)[4])
{
	const uint32_t lane = threadIdx.x % LANES, at = lane % 4u * 4u;
	int32_t hh[4] = { 0 }, cross[4] = { 0 }, ll[4] = { 0 };

	key += lane / 4u;
#pragma unroll
	for (uint32_t k = 0; k < DIM / 32u; k++) {
		const uint8_t *h = &s->k[0][key][32u * k + at], *l = &s->k[1][key][32u * k + at];
		const uint32_t h0 = *(const uint32_t *)h, h1 = *(const uint32_t *)(h + 16);
		const uint32_t l0 = *(const uint32_t *)l, l1 = *(const uint32_t *)(l + 16);

		attend_multiply(hh, high[k], h0, h1);
		attend_multiply(cross, high[k], l0, l1);
		attend_multiply(cross, low[k], h0, h1);
		attend_multiply(ll, low[k], l0, l1);
	}
#pragma unroll
	for (uint32_t i = 0; i < 4; i++)
		score[i] = (int32_t)(((uint32_t)hh[i] << 14) + ((uint32_t)cross[i] << 7) +
				     (uint32_t)ll[i]);
}

__device__ __forceinline__ static uint32_t attend_exp(const uint16_t *table,
						      const struct attend_row *r, int32_t score)
{
	const uint32_t below = (uint32_t)r->max - (uint32_t)score;
	const int32_t shift = -r->step.exp;

	if (shift < 1 || shift > 62)
		return model_exp(table, below, r->step);
	const uint64_t x = (((uint64_t)below * r->step.mant >> (shift - 1)) + 1u) >> 1;
	const uint32_t n = (uint32_t)(x >> MODEL_EXP_BITS);

	if (x >> MODEL_EXP_BITS > MODEL_P_BITS)
		return 0;
	const uint32_t top = table[x & ((1u << MODEL_EXP_BITS) - 1u)];

	return n ? (top + (1u << (n - 1u))) >> n : top;
}

/* Sums of planes into what comes out: sum * 256 / total, towards zero. */
__device__ __forceinline__ static int32_t attend_mean(int32_t hh, int32_t cross, int32_t ll,
						      uint32_t total, double inverse)
{
	const int64_t sum = ((int64_t)hh << 14) + ((int64_t)cross << 7) + ll;
	const int64_t a = (sum < 0 ? -sum : sum) << 8;
	int32_t q = (int32_t)((double)a * inverse); /* one off at most; put right exactly */
	const int64_t rest = a - (int64_t)q * total;

	q += rest < 0 ? -1 : rest >= (int64_t)total ? 1 : 0;
	return sum < 0 ? -q : q;
}

template <uint32_t DIM>
__device__ __forceinline__ static void attend_max(const struct gpu_attend_job *j,
						  struct attend_shared<DIM> *s,
						  const struct gpu_model_tile *tile,
						  const struct attend_fragment (&high)[DIM / 32u],
						  const struct attend_fragment (&low)[DIM / 32u],
						  struct attend_row (&row)[2], uint32_t last)
{
	const struct gpu_model_sequence *seq = &j->sequences[tile->sequence];
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t head = blockIdx.y / (j->heads / j->kv_heads);
	const uint8_t *k_high = context_head(seq, j->layer, 0, j->kv_heads, head, DIM);
	const uint8_t *k_low = context_head(seq, j->layer, 1, j->kv_heads, head, DIM);

	for (uint32_t base = 0; base < tile->position + tile->count; base += MTILE) {
		const uint32_t first = warp / 4u * attend_shape<DIM>::KEYS;

		__syncthreads();
		attend_copy_keys<DIM>(s, 0, k_high, base);
		attend_copy_keys<DIM>(s, 1, k_low, base);
		__syncthreads();
#pragma unroll
		for (uint32_t n = 0; n < attend_shape<DIM>::KEYS; n += 8u) {
			const int32_t key = (int32_t)(base + first + n + lane % 4u * 2u);
			int32_t score[4];

			if (base + first + n > last)
				continue;
			attend_scores<DIM>(s, high, low, first + n, score);
#pragma unroll
			for (uint32_t i = 0; i < 4; i++)
				if (key + (int32_t)(i & 1u) <= row[i / 2u].last)
					row[i / 2u].max = max(row[i / 2u].max, score[i]);
		}
	}
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		row[i].max = max(row[i].max, __shfl_xor_sync(ALL_LANES, row[i].max, 1));
		row[i].max = max(row[i].max, __shfl_xor_sync(ALL_LANES, row[i].max, 2));
		if (lane % 4u == 0)
			s->max[warp / 4u][warp % 4u * 16u + lane / 4u + 8u * i] = row[i].max;
	}
	__syncthreads();
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t r = warp % 4u * 16u + lane / 4u + 8u * i;

		for (uint32_t g = 0; g < attend_shape<DIM>::GROUPS; g++)
			row[i].max = max(row[i].max, s->max[g][r]);
	}
}

/* Weights of the keys of a tile from `base`, to shared memory. */
template <uint32_t DIM>
__device__ __forceinline__ static void attend_weights(
	struct attend_shared<DIM> *s, const struct attend_fragment (&high)[DIM / 32u],
	const struct attend_fragment (&low)[DIM / 32u], struct attend_row (&row)[2], uint32_t base,
	uint32_t last)
{
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t first = warp / 4u * attend_shape<DIM>::KEYS;

#pragma unroll
	for (uint32_t n = 0; n < attend_shape<DIM>::KEYS; n += 8u) {
		const uint32_t at = first + n + lane % 4u * 2u;
		int32_t score[4];
		uint32_t p[4] = { 0 };

		if (base + first + n <= last) {
			attend_scores<DIM>(s, high, low, first + n, score);
#pragma unroll
			for (uint32_t i = 0; i < 4; i++)
				if ((int32_t)(base + at + (i & 1u)) <= row[i / 2u].last)
					p[i] = attend_exp(s->exp, &row[i / 2u], score[i]);
		}
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			const uint32_t a = p[2u * i], b = p[2u * i + 1u];
			const uint32_t r = warp % 4u * 16u + lane / 4u + 8u * i;

			row[i].total += a + b;
			*(uint16_t *)&s->weight[0][r][at] = (uint16_t)(a >> 7 | b >> 7 << 8);
			*(uint16_t *)&s->weight[1][r][at] = (uint16_t)((a & 127u) | (b & 127u)
											    << 8);
		}
	}
}

template <uint32_t DIM> struct attend_sums {
	static const uint32_t COUNT = attend_shape<DIM>::COUNT;
	int32_t hh[COUNT][4], cross[COUNT][4], ll[COUNT][4];
};

template <uint32_t DIM>
__device__ __forceinline__ static void attend_values(const struct attend_shared<DIM> *s,
						     struct attend_sums<DIM> &sums)
{
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t at = lane % 4u * 4u, r = warp % 4u * 16u + lane / 4u;
	const uint32_t dim = warp / 4u * (attend_shape<DIM>::COUNT * 8u) + lane / 4u;

#pragma unroll
	for (uint32_t k = 0; k < MTILE; k += 32u) {
		struct attend_fragment high, low;

#pragma unroll
		for (uint32_t i = 0; i < 4; i++) {
			const uint32_t row = r + (i & 1u) * 8u, c = k + at + (i & 2u) * 8u;

			high.x[i] = *(const uint32_t *)&s->weight[0][row][c];
			low.x[i] = *(const uint32_t *)&s->weight[1][row][c];
		}
#pragma unroll
		for (uint32_t n = 0; n < attend_shape<DIM>::COUNT; n++) {
			const uint8_t *h = &s->v[0][dim + 8u * n][k + at],
				      *l = &s->v[1][dim + 8u * n][k + at];
			const uint32_t h0 = *(const uint32_t *)h, h1 = *(const uint32_t *)(h + 16);
			const uint32_t l0 = *(const uint32_t *)l, l1 = *(const uint32_t *)(l + 16);

			attend_weigh(sums.hh[n], high, h0, h1);
			attend_weigh(sums.cross[n], high, l0, l1);
			attend_weigh(sums.cross[n], low, h0, h1);
			attend_weigh(sums.ll[n], low, l0, l1);
		}
	}
}

template <uint32_t DIM>
__device__ __forceinline__ static void attend_store(const struct gpu_attend_job *j,
						    struct attend_shared<DIM> *s,
						    const struct gpu_model_tile *tile,
						    const struct attend_row (&row)[2],
						    const struct attend_sums<DIM> &sums)
{
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t dims = attend_shape<DIM>::DIMS;
	const uint32_t first = blockIdx.z * dims + warp / 4u * (attend_shape<DIM>::COUNT * 8u) +
			       lane % 4u * 2u;

#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t r = warp % 4u * 16u + lane / 4u + 8u * i;
		uint32_t total = row[i].total;

		total += __shfl_xor_sync(ALL_LANES, total, 1);
		total += __shfl_xor_sync(ALL_LANES, total, 2);
		if (lane % 4u == 0)
			s->total[warp / 4u][r] = total;
	}
	__syncthreads();
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t r = warp % 4u * 16u + lane / 4u + 8u * i;
		uint32_t total = 0;
		int32_t *out = j->out +
			       ((uint64_t)(tile->first + r) * j->heads + blockIdx.y) * j->dim;

		if (r >= tile->count)
			continue;
		for (uint32_t g = 0; g < attend_shape<DIM>::GROUPS; g++)
			total += s->total[g][r];
		const double inverse = 1.0 / (double)total;

#pragma unroll
		for (uint32_t n = 0; n < attend_shape<DIM>::COUNT; n++) {
			const uint32_t d = first + 8u * n;
			int2 x;

			if (d >= j->dim)
				continue;
			x.x = attend_mean(sums.hh[n][2u * i], sums.cross[n][2u * i],
					  sums.ll[n][2u * i], total, inverse);
			x.y = attend_mean(sums.hh[n][2u * i + 1u], sums.cross[n][2u * i + 1u],
					  sums.ll[n][2u * i + 1u], total, inverse);
			*(int2 *)(out + d) = x;
		}
	}
}

/* By any GPU with tensor cores for int8. */
template <uint32_t DIM>
__device__ __forceinline__ static void attend_plain(const struct gpu_attend_job *j, uint8_t *shared)
{
	struct attend_shared<DIM> *s = (struct attend_shared<DIM> *)shared;
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	const uint32_t dims = attend_shape<DIM>::DIMS, r = warp % 4u * 16u + lane / 4u;
	const uint32_t head = blockIdx.y / (j->heads / j->kv_heads);
	const struct gpu_model_tile tile = j->tiles[gridDim.x - 1u - blockIdx.x];
	const struct gpu_model_sequence *seq = &j->sequences[tile.sequence];
	const uint32_t last = tile.position + min(warp % 4u * 16u + 15u, tile.count - 1u);
	struct attend_fragment q_high[DIM / 32u], q_low[DIM / 32u];
	struct attend_sums<DIM> sums = {
	};
	struct attend_row row[2];

	for (uint32_t i = threadIdx.x; i < MODEL_EXP_ENTRIES; i += blockDim.x)
		s->exp[i] = j->exp[i];
	attend_queries<DIM>(j, j->high, &tile, r, q_high);
	attend_queries<DIM>(j, j->low, &tile, r, q_low);
	attend_rows_init(j, &tile, r, row);
	attend_max<DIM>(j, s, &tile, q_high, q_low, row, last);
	for (uint32_t base = 0; base < tile.position + tile.count; base += MTILE) {
		__syncthreads();
		for (uint32_t plane = 0; plane < 2; plane++) {
			attend_copy_keys<DIM>(
				s, plane,
				context_head(seq, j->layer, plane, j->kv_heads, head, DIM), base);
			attend_copy_values<DIM>(
				s, plane,
				context_head(seq, j->layer, 2u + plane, j->kv_heads, head, DIM),
				seq->capacity, blockIdx.z * dims, base);
		}
		__syncthreads();
		attend_weights<DIM>(s, q_high, q_low, row, base, last);
		__syncthreads();
		attend_values<DIM>(s, sums);
	}
	attend_store<DIM>(j, s, &tile, row, sums);
}

#define ATTEND_WIDE_SHARED (166u << 10) /* of cuda_model_attend_wide.cuh, with room to align */

CODEC_HD uint32_t attend_shared_bytes(uint32_t dim, uint32_t plain)
{
	return dim == MPIECE && plain < ATTEND_WIDE_SHARED ? ATTEND_WIDE_SHARED : plain;
}

#endif
