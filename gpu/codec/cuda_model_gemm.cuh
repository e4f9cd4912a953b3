/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_gemm.cuh - products of rows and weights in int8, summed in int32 by the tensor cores, and what
 * becomes of the sums: model_join(), model_rescale(), while they are still in registers.
 *
 * A thread block makes 128 rows of 128 outputs.  One warp fetches pieces (cuda_model.cuh) into a ring in shared
 * memory, 16 KiB each by one bulk copy; two groups of four warps multiply 64 rows each.  Two blocks share a
 * multiprocessor, so that one multiplies while the other rescales.  Operands in two planes: high * high has sums of
 * its own, and high * low and low * high, which weigh the same, share others.
 *
 * GPUs without these instructions use a plain loop.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_GEMM_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_GEMM_CUH

#include "gpu/codec/cuda_hopper.cuh"

#define PRODUCT_THREADS 288u /* two groups of 128 and the warp that fetches */
#define PRODUCT_SUMS 64u     /* of a thread: 2 rows of 32 columns */

#define PRODUCT_SCALES \
	(MPIECE * 4u)	 /* bytes at the start of shared memory: of each output, mant | exp << 16 */
#define PRODUCT_BATCH 4u /* outputs of which a thread has what is there before it writes */

struct gpu_product {
	const uint8_t *high, *low; /* rows */
	const struct model_scale *row_scale;
	struct gpu_matrix m;
	uint32_t rows, rows_pieces;
	int32_t frac;
	uint32_t add; /* to what is there */
	int32_t *out;
	uint32_t out_pitch;
};

CODEC_HD uint32_t product_planes(uint32_t wide) /* pieces of a stage */
{
	return 2u + (wide & MODEL_WIDE_ROW ? 1u : 0u) + (wide & MODEL_WIDE_WEIGHT ? 1u : 0u);
}

CODEC_HD uint32_t product_stages(uint32_t wide)
{
	return wide == 0 || wide == (MODEL_WIDE_ROW | MODEL_WIDE_WEIGHT) ? 3u : 4u;
}

CODEC_HD uint32_t product_shared(uint32_t wide)
{
	return product_stages(wide) * (product_planes(wide) * MPIECE_BYTES + 16u) + 1024u +
	       PRODUCT_SCALES;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* One thread: all pieces in order, as room becomes free.  A stage: rows high, weights high, rows low, weights low. */
template <uint32_t WIDE>
__device__ static void product_fetch(const struct gpu_product *p, uint32_t ring, uint32_t barriers)
{
	const uint32_t bytes = product_planes(WIDE) * MPIECE_BYTES, stages = product_stages(WIDE);

	for (uint32_t k = 0; k < p->m.depth_pieces; k++) {
		const uint32_t stage = k % stages, turn = k / stages;
		const uint32_t full = barriers + 16u * stage;
		const uint64_t row = ((uint64_t)k * p->rows_pieces + blockIdx.x) * MPIECE_BYTES;
		const uint64_t weight = ((uint64_t)blockIdx.y * p->m.depth_pieces + k) *
					MPIECE_BYTES;
		uint32_t to = ring + stage * bytes;

		if (turn > 0)
			mbar_wait(full + 8u, (turn - 1u) & 1u);
		mbar_expect(full, bytes);
		bulk_fetch(to, p->high + row, MPIECE_BYTES, full);
		bulk_fetch(to += MPIECE_BYTES, p->m.high + weight, MPIECE_BYTES, full);
		if (WIDE & MODEL_WIDE_ROW)
			bulk_fetch(to += MPIECE_BYTES, p->low + row, MPIECE_BYTES, full);
		if (WIDE & MODEL_WIDE_WEIGHT)
			bulk_fetch(to += MPIECE_BYTES, p->m.low + weight, MPIECE_BYTES, full);
	}
}

/* hh: high * high; cross: the two others. */
template <uint32_t WIDE>
__device__ __forceinline__ static void product_sums(const struct gpu_product *p,
						    int32_t (&hh)[PRODUCT_SUMS],
						    int32_t (&cross)[PRODUCT_SUMS], uint8_t *shared)
{
	const uint32_t bytes = product_planes(WIDE) * MPIECE_BYTES, stages = product_stages(WIDE);
	const uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
	const uint32_t ring = (base + 1023u) & ~1023u;
	const uint32_t barriers = ring + stages * bytes;
	const uint32_t group = threadIdx.x / 128u, own = group * (MPIECE_BYTES / 2u);

	if (threadIdx.x == 0) {
		for (uint32_t i = 0; i < stages; i++) {
			mbar_init(barriers + 16u * i, 1);
			mbar_init(barriers + 16u * i + 8u, 2);
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		asm volatile("fence.proxy.async;" ::: "memory");
	}
	__syncthreads();
	if (group == 2u) {
		if (threadIdx.x == 256u)
			product_fetch<WIDE>(p, ring, barriers);
		return;
	}
	for (uint32_t n = 0; n < p->m.depth_pieces; n++) {
		const uint32_t stage = n % stages, at = ring + stage * bytes;
		const uint32_t row_low = at + 2u * MPIECE_BYTES;
		const uint32_t weight_low = at + (WIDE & MODEL_WIDE_ROW ? 3u : 2u) * MPIECE_BYTES;

		mbar_wait(barriers + 16u * stage, n / stages & 1u);
		asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
		for (uint32_t k = 0; k < MPIECE; k += 32u) {
			const uint64_t a = tile_descriptor(at + own + k),
				       b = tile_descriptor(at + MPIECE_BYTES + k);

			multiply_64x128(hh, a, b);
			if (WIDE & MODEL_WIDE_WEIGHT)
				multiply_64x128(cross, a, tile_descriptor(weight_low + k));
			if (WIDE & MODEL_WIDE_ROW)
				multiply_64x128(cross, tile_descriptor(row_low + own + k), b);
		}
		asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
		/* The piece before this one has been read; this one may still be. */
		asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
		if (n > 0 && threadIdx.x % 128u == 0)
			mbar_arrive(barriers + 16u * ((n - 1u) % stages) + 8u);
	}
	asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
	for (uint32_t i = 0; i < PRODUCT_SUMS; i++) { /* not read before the wait */
		asm volatile("" : "+r"(hh[i])::"memory");
		if (WIDE)
			asm volatile("" : "+r"(cross[i])::"memory");
	}
}

#else

template <uint32_t WIDE>
__device__ __forceinline__ static void product_sums(const struct gpu_product *p,
						    int32_t (&hh)[PRODUCT_SUMS],
						    int32_t (&cross)[PRODUCT_SUMS], uint8_t *)
{
	const uint32_t lane = threadIdx.x % LANES, row = threadIdx.x / LANES * 16u + lane / 4u;

	if (threadIdx.x >= 256u)
		return;
	for (uint32_t k = 0; k < p->m.depth_pieces; k++) {
		const uint64_t at = ((uint64_t)k * p->rows_pieces + blockIdx.x) * MPIECE_BYTES,
			       w = ((uint64_t)blockIdx.y * p->m.depth_pieces + k) * MPIECE_BYTES;

		for (uint32_t c = 0; c < MPIECE; c += 4u)
#pragma unroll
			for (uint32_t j = 0; j < PRODUCT_SUMS; j++) {
				const uint32_t column = j / 4u * 8u + lane % 4u * 2u + (j & 1u);
				const uint64_t x = at + mpiece_at(row + (j & 2u) * 4u, c),
					       y = w + mpiece_at(column, c);
				const int32_t a = *(const int32_t *)(p->high + x),
					      b = *(const int32_t *)(p->m.high + y);

				hh[j] = __dp4a(a, b, hh[j]);
				if (WIDE & MODEL_WIDE_WEIGHT)
					cross[j] = __dp4a(a, *(const int32_t *)(p->m.low + y),
							  cross[j]);
				if (WIDE & MODEL_WIDE_ROW)
					cross[j] = __dp4a(*(const int32_t *)(p->low + x), b,
							  cross[j]);
			}
	}
}

#endif

/* model_rescale() of a sum; base: the shift, but for the weight's exponent. */
template <uint32_t WIDE>
__device__ __forceinline__ static int32_t product_rescale(int32_t hh, int32_t cross,
							  uint32_t row_mant, int32_t base,
							  uint32_t mant, int32_t exp)
{
	const uint32_t m = (uint32_t)((uint64_t)row_mant * mant >> 16);
	const int32_t shift = base - exp;
	const int64_t sum = WIDE ? (int64_t)hh * 256 + cross : hh;
	const int64_t x = sum * (int64_t)m;

	if (shift < 1 || shift > 62)
		return model_sat32(model_shift(x, shift));
	return model_sat32(((x >> (shift - 1)) + 1) >> 1);
}

template <uint32_t WIDE>
__device__ __forceinline__ static void product_store(const struct gpu_product *p,
						     const uint32_t *scales,
						     const int32_t (&hh)[PRODUCT_SUMS],
						     const int32_t (&cross)[PRODUCT_SUMS],
						     uint32_t row, uint32_t half)
{
	const struct model_scale s = p->row_scale[row];
	const int32_t base = -(16 + s.exp + model_join_exp(WIDE) + p->frac);
	const uint32_t quad = threadIdx.x % 4u * 2u, first = blockIdx.y * MPIECE + quad;
	int32_t *out = p->out + (uint64_t)row * p->out_pitch;

#pragma unroll
	for (uint32_t batch = 0; batch < PRODUCT_SUMS / 4u; batch += PRODUCT_BATCH) {
		int2 was[PRODUCT_BATCH];

#pragma unroll
		for (uint32_t i = 0; i < PRODUCT_BATCH; i++) {
			const uint32_t c = first + 8u * (batch + i);

			was[i] = make_int2(0, 0);
			if (p->add && c < p->m.outs)
				was[i] = *(const int2 *)(out + c);
		}
#pragma unroll
		for (uint32_t i = 0; i < PRODUCT_BATCH; i++) {
			const uint32_t c = first + 8u * (batch + i),
				       at = 4u * (batch + i) + 2u * half;
			const uint2 w = *(const uint2 *)(scales + quad + 8u * (batch + i));
			int2 x;

			x.x = product_rescale<WIDE>(hh[at], cross[at], s.mant, base, w.x & 0xffffu,
						    (int32_t)w.x >> 16);
			x.y = product_rescale<WIDE>(hh[at + 1u], cross[at + 1u], s.mant, base,
						    w.y & 0xffffu, (int32_t)w.y >> 16);
			x.x = model_sat32((int64_t)x.x + was[i].x);
			x.y = model_sat32((int64_t)x.y + was[i].y);
			if (c < p->m.outs)
				*(int2 *)(out + c) = x;
		}
	}
}

/* By those that multiply, before they begin. */
__device__ __forceinline__ static void product_scales(const struct gpu_product *p, uint32_t *scales)
{
	const uint32_t c = blockIdx.y * MPIECE + threadIdx.x;

	if (threadIdx.x < MPIECE)
		scales[threadIdx.x] =
			c < p->m.outs ? p->m.mants[c] | (uint32_t)(uint16_t)p->m.exps[c] << 16 : 0;
}

/* grid: pieces of rows, pieces of outputs. */
template <uint32_t WIDE>
__global__ __launch_bounds__(PRODUCT_THREADS, WIDE ? 1 : 2) void product_kernel(
	const __grid_constant__ struct gpu_product p)
{
	extern __shared__ __align__(16) uint8_t shared[];
	uint32_t *scales = (uint32_t *)shared;
	const uint32_t lane = threadIdx.x % LANES;
	const uint32_t row = blockIdx.x * MPIECE + threadIdx.x / LANES * 16u + lane / 4u;
	int32_t hh[PRODUCT_SUMS], cross[PRODUCT_SUMS];

#pragma unroll
	for (uint32_t i = 0; i < PRODUCT_SUMS; i++)
		hh[i] = cross[i] = 0;
	product_scales(&p, scales);
	__syncthreads();
	product_sums<WIDE>(&p, hh, cross, shared + PRODUCT_SCALES);
	if (threadIdx.x >= 256u)
		return;
	if (row < p.rows)
		product_store<WIDE>(&p, scales, hh, cross, row, 0);
	if (row + 8u < p.rows)
		product_store<WIDE>(&p, scales, hh, cross, row + 8u, 1);
}

#endif
