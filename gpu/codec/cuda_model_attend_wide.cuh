/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_attend_wide.cuh - attention with heads of 128 dims by Hopper's tensor cores: what attend_plain() does, 128
 * keys at a time.
 *
 * Two groups of four warps have the same 64 rows.  Each makes the scores of 64 of the keys, and sums 64 of the dims.
 * Keys and values come by bulk copies, one step ahead of their use; all operands lie in pieces.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_ATTEND_WIDE_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_ATTEND_WIDE_CUH

#include "gpu/codec/cuda_hopper.cuh"
#include "gpu/codec/cuda_model_attend.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define WIDE_SUMS 32u /* of a thread: 2 rows of 16 columns */
#define HALF_PIECE (MPIECE_BYTES / 2u)

struct attend_wide_shared {
	uint8_t stage[2][4][MPIECE_BYTES]; /* K high, low, V high, low */
	uint8_t query[2][HALF_PIECE];
	uint8_t weight[2][HALF_PIECE];
	uint16_t exp[MODEL_EXP_ENTRIES];
	int32_t max[2][MTILE];
	uint32_t total[2][MTILE];
	uint64_t full[2];
};

static_assert(sizeof(struct attend_wide_shared) + 1024u <= ATTEND_WIDE_SHARED, "and room to align");

struct attend_wide { /* a thread block's work */
	const struct gpu_attend_job *j;
	struct attend_wide_shared *s;
	struct gpu_model_tile tile;
	const uint8_t *plane[4];
	uint32_t pieces; /* of its keys */
	uint32_t group;	 /* of this thread */
	uint32_t row;	 /* the first of this thread */
	uint32_t column; /* likewise, in its group's 64 */
};

/* 64 rows, 64 columns, 32 deep. */
__device__ __forceinline__ static void wide_multiply(int32_t (&d)[WIDE_SUMS], uint64_t a,
						     uint64_t b)
{
	asm volatile(
		"wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
		"{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
		"%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1;"
		: "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
		  "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
		  "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]),
		  "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
		  "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
		  "+r"(d[30]), "+r"(d[31])
		: "l"(a), "l"(b));
}

/* The same for rows of weights. */
__device__ __forceinline__ static void wide_weigh(int32_t (&d)[WIDE_SUMS], uint64_t a, uint64_t b)
{
	asm volatile(
		"wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 "
		"{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
		"%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1;"
		: "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
		  "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
		  "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]),
		  "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
		  "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
		  "+r"(d[30]), "+r"(d[31])
		: "l"(a), "l"(b));
}

__device__ __forceinline__ static void wide_begin(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ static void wide_end(int32_t (&a)[WIDE_SUMS], int32_t (&b)[WIDE_SUMS],
						int32_t (&c)[WIDE_SUMS])
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
	asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
	for (uint32_t i = 0; i < WIDE_SUMS; i++) /* not read before the wait */
		asm volatile("" : "+r"(a[i]), "+r"(b[i]), "+r"(c[i])::"memory");
}

/* Step n of both passes: the first has keys only. */
__device__ __forceinline__ static void wide_fetch(const struct attend_wide *w, uint32_t n)
{
	const uint32_t planes = n < w->pieces ? 2u : 4u;
	const uint64_t at = (uint64_t)(n % w->pieces) * MPIECE_BYTES;
	const uint32_t full = (uint32_t)__cvta_generic_to_shared(&w->s->full[n % 2u]);

	if (threadIdx.x != 0 || n >= 2u * w->pieces)
		return;
	mbar_expect(full, planes * MPIECE_BYTES);
	for (uint32_t i = 0; i < planes; i++)
		bulk_fetch((uint32_t)__cvta_generic_to_shared(w->s->stage[n % 2u][i]),
			   w->plane[i] + at, MPIECE_BYTES, full);
}

__device__ __forceinline__ static void wide_wait(const struct attend_wide *w, uint32_t n)
{
	mbar_wait((uint32_t)__cvta_generic_to_shared(&w->s->full[n % 2u]), n / 2u & 1u);
}

/* Scores of the group's keys, in what was hh. */
__device__ __forceinline__ static void wide_scores(const struct attend_wide *w, uint32_t n,
						   int32_t (&hh)[WIDE_SUMS])
{
	const uint32_t q = (uint32_t)__cvta_generic_to_shared(w->s->query[0]);
	const uint32_t k = (uint32_t)__cvta_generic_to_shared(w->s->stage[n % 2u][0]) +
			   w->group * HALF_PIECE;
	int32_t cross[WIDE_SUMS], ll[WIDE_SUMS];

#pragma unroll
	for (uint32_t i = 0; i < WIDE_SUMS; i++)
		hh[i] = cross[i] = ll[i] = 0;
	wide_begin();
#pragma unroll
	for (uint32_t i = 0; i < MPIECE; i += 32u) {
		const uint64_t qh = tile_descriptor(q + i),
			       ql = tile_descriptor(q + HALF_PIECE + i);
		const uint64_t kh = tile_descriptor(k + i),
			       kl = tile_descriptor(k + MPIECE_BYTES + i);

		wide_multiply(hh, qh, kh);
		wide_multiply(cross, qh, kl);
		wide_multiply(ll, ql, kl);
		wide_multiply(cross, ql, kh);
	}
	wide_end(hh, cross, ll);
#pragma unroll
	for (uint32_t i = 0; i < WIDE_SUMS; i++)
		hh[i] = (int32_t)(((uint32_t)hh[i] << 14) + ((uint32_t)cross[i] << 7) +
				  (uint32_t)ll[i]);
}

__device__ __forceinline__ static void wide_max(const struct attend_wide *w,
						struct attend_row (&row)[2])
{
	for (uint32_t n = 0; n < w->pieces; n++) {
		const int32_t key = (int32_t)(n * MPIECE + w->group * MTILE + w->column);
		int32_t score[WIDE_SUMS];

		wide_fetch(w, n + 1u);
		wide_wait(w, n);
		wide_scores(w, n, score);
#pragma unroll
		for (uint32_t i = 0; i < WIDE_SUMS; i++)
			if (key + (int32_t)(i / 4u * 8u + (i & 1u)) <= row[i / 2u % 2u].last)
				row[i / 2u % 2u].max = max(row[i / 2u % 2u].max, score[i]);
		__syncthreads();
	}
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		row[i].max = max(row[i].max, __shfl_xor_sync(ALL_LANES, row[i].max, 1));
		row[i].max = max(row[i].max, __shfl_xor_sync(ALL_LANES, row[i].max, 2));
		if (threadIdx.x % 4u == 0)
			w->s->max[w->group][w->row + 8u * i] = row[i].max;
	}
	__syncthreads();
#pragma unroll
	for (uint32_t i = 0; i < 2; i++)
		row[i].max = max(w->s->max[0][w->row + 8u * i], w->s->max[1][w->row + 8u * i]);
}

/* Weights of the group's keys of step n, to shared memory. */
__device__ __forceinline__ static void wide_weights(const struct attend_wide *w, uint32_t n,
						    struct attend_row (&row)[2])
{
	const uint32_t first = w->group * MTILE + w->column, base = n % w->pieces * MPIECE;
	int32_t score[WIDE_SUMS];

	wide_scores(w, n, score);
#pragma unroll
	for (uint32_t i = 0; i < WIDE_SUMS; i += 2u) {
		const uint32_t half = i / 2u % 2u, key = first + i / 4u * 8u;
		const uint32_t at = mpiece_at(w->row + 8u * half, key);
		uint32_t a = 0, b = 0;

		if ((int32_t)(base + key) <= row[half].last)
			a = attend_exp(w->s->exp, &row[half], score[i]);
		if ((int32_t)(base + key + 1u) <= row[half].last)
			b = attend_exp(w->s->exp, &row[half], score[i + 1u]);
		row[half].total += a + b;
		*(uint16_t *)&w->s->weight[0][at] = (uint16_t)(a >> 7 | b >> 7 << 8);
		*(uint16_t *)&w->s->weight[1][at] = (uint16_t)((a & 127u) | (b & 127u) << 8);
	}
}

struct wide_sums {
	int32_t hh[WIDE_SUMS], cross[WIDE_SUMS], ll[WIDE_SUMS];
};

__device__ __forceinline__ static void wide_values(const struct attend_wide *w, uint32_t n,
						   struct wide_sums &d)
{
	const uint32_t p = (uint32_t)__cvta_generic_to_shared(w->s->weight[0]);
	const uint32_t v = (uint32_t)__cvta_generic_to_shared(w->s->stage[n % 2u][2]) +
			   w->group * HALF_PIECE;

	wide_begin();
#pragma unroll
	for (uint32_t i = 0; i < MPIECE; i += 32u) {
		const uint64_t ph = tile_descriptor(p + i),
			       pl = tile_descriptor(p + HALF_PIECE + i);
		const uint64_t vh = tile_descriptor(v + i),
			       vl = tile_descriptor(v + MPIECE_BYTES + i);

		wide_weigh(d.hh, ph, vh);
		wide_weigh(d.cross, ph, vl);
		wide_weigh(d.ll, pl, vl);
		wide_weigh(d.cross, pl, vh);
	}
	wide_end(d.hh, d.cross, d.ll);
}

__device__ __forceinline__ static void wide_store(const struct attend_wide *w,
						  const struct attend_row (&row)[2],
						  const struct wide_sums &d)
{
	const struct gpu_attend_job *j = w->j;

#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		uint32_t total = row[i].total;

		total += __shfl_xor_sync(ALL_LANES, total, 1);
		total += __shfl_xor_sync(ALL_LANES, total, 2);
		if (threadIdx.x % 4u == 0)
			w->s->total[w->group][w->row + 8u * i] = total;
	}
	__syncthreads();
#pragma unroll
	for (uint32_t i = 0; i < 2; i++) {
		const uint32_t r = w->row + 8u * i, total = w->s->total[0][r] + w->s->total[1][r];
		const double inverse = 1.0 / (double)total;
		int32_t *out = j->out +
			       ((uint64_t)(w->tile.first + r) * j->heads + blockIdx.y) * j->dim;

		if (r >= w->tile.count)
			continue;
#pragma unroll
		for (uint32_t n = 0; n < WIDE_SUMS / 4u; n++) {
			const uint32_t at = 4u * n + 2u * i,
				       dim = w->group * MTILE + w->column + 8u * n;
			int2 x;

			x.x = attend_mean(d.hh[at], d.cross[at], d.ll[at], total, inverse);
			x.y = attend_mean(d.hh[at + 1u], d.cross[at + 1u], d.ll[at + 1u], total,
					  inverse);
			if (dim < j->dim)
				*(int2 *)(out + dim) = x;
		}
	}
}

__device__ __forceinline__ static void wide_load(const struct attend_wide *w)
{
	const struct gpu_attend_job *j = w->j;

	for (uint32_t i = threadIdx.x; i < MODEL_EXP_ENTRIES; i += blockDim.x)
		w->s->exp[i] = j->exp[i];
	for (uint32_t i = threadIdx.x; i < 2u * MTILE * 8u; i += blockDim.x) {
		const uint32_t plane = i / (MTILE * 8u), r = i / 8u % MTILE, at = i % 8u * 16u;
		const uint64_t item = (uint64_t)(w->tile.first + r) * j->heads + blockIdx.y;
		uint4 x = make_uint4(0, 0, 0, 0);

		if (r < w->tile.count)
			x = *(const uint4 *)((plane ? j->low : j->high) + item * MPIECE + at);
		*(uint4 *)&w->s->query[plane][mpiece_at(r, at)] = x;
	}
	if (threadIdx.x == 0) {
		mbar_init((uint32_t)__cvta_generic_to_shared(&w->s->full[0]), 1);
		mbar_init((uint32_t)__cvta_generic_to_shared(&w->s->full[1]), 1);
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	}
	asm volatile("fence.proxy.async;" ::
			     : "memory"); /* the tensor cores read what was written */
	__syncthreads();
}

__device__ static void attend_wide(const struct gpu_attend_job *j, uint8_t *shared)
{
	const uint32_t misaligned = (uint32_t)__cvta_generic_to_shared(shared) & 1023u;
	const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
	struct wide_sums sums = {};
	struct attend_row row[2];
	struct attend_wide w;

	w.j = j;
	w.s = (struct attend_wide_shared *)(shared + (1024u - misaligned) % 1024u);
	w.tile = j->tiles[gridDim.x - 1u - blockIdx.x];
	w.pieces = (w.tile.position + w.tile.count + MPIECE - 1u) / MPIECE;
	w.group = warp / 4u;
	w.row = warp % 4u * 16u + lane / 4u;
	w.column = lane % 4u * 2u;
#pragma unroll
	for (uint32_t i = 0; i < 4; i++)
		w.plane[i] = context_head(&j->sequences[w.tile.sequence], j->layer, i, j->kv_heads,
					  blockIdx.y / (j->heads / j->kv_heads), MPIECE);
	wide_load(&w);
	attend_rows_init(j, &w.tile, w.row, row);
	wide_fetch(&w, 0);
	wide_max(&w, row);
	for (uint32_t n = w.pieces; n < 2u * w.pieces; n++) {
		wide_fetch(&w, n + 1u);
		wide_wait(&w, n);
		wide_weights(&w, n, row);
		asm volatile("fence.proxy.async;" ::: "memory");
		__syncthreads();
		wide_values(&w, n, sums);
		__syncthreads();
	}
	wide_store(&w, row, sums);
}

#endif

/* grid: tiles, heads, dims / ATTEND_DIMS_MAX */
template <uint32_t DIM>
__global__ __launch_bounds__(attend_shape<DIM>::THREADS, DIM < 128u ? 2 : 1) void attend_kernel(
	const __grid_constant__ struct gpu_attend_job j)
{
	extern __shared__ __align__(16) uint8_t shared[];

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	if constexpr (DIM == MPIECE)
		attend_wide(&j, shared);
	else
#endif
		attend_plain<DIM>(&j, shared);
}

#endif
