/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_gemm_wide.cuh - guesses as in cuda_layer_gemm.cuh, for batches that fill the GPU: a thread block makes
 * 256 rows of 128 columns, so that a piece of weights is fetched half as often: the second-level cache is what products
 * wait for.  One thread fetches, two groups of four warps multiply, each 128 rows;
 * they have the registers of the group of the one that fetches.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_GEMM_WIDE_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_GEMM_WIDE_CUH

#include "gpu/codec/cuda_layer_gemm.cuh"

#define WIDE_STAGES 4u
#define WIDE_STAGE_BYTES (3u * PIECE_BYTES) /* two pieces of rows, one of weights */
#define WIDE_PIECES 2u			    /* of rows */
#define WIDE_MULTIPLIERS (GEMM_GROUPS * 128u)
#define WIDE_THREADS (WIDE_MULTIPLIERS + 128u) /* registers are given to groups of four warps */
#define WIDE_HALVES 2u			       /* of a group's rows */
#define WIDE_SHARED (WIDE_STAGES * WIDE_STAGE_BYTES + 1024u + 16u * WIDE_STAGES)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* One warp: turns of a group's rows, to where a piece was. */
template <uint32_t STEP>
__device__ static inline void wide_turns(const struct gpu_layer_run *r, uint32_t row, uint32_t to,
					 uint32_t full, uint32_t turn)
{
	typedef gemm_turns<STEP> turns;
	const uint32_t lane = threadIdx.x % WARP_LANES;
	const uint8_t *from = (const uint8_t *)(r->turn + (uint64_t)row * r->layer.pairs);

	mbar_wait(full + 8u, turn);
	if (lane == 0)
		mbar_expect(full, PIECE * turns::ROW);
	__syncwarp();
	for (uint32_t i = lane; i < PIECE; i += WARP_LANES)
		bulk_fetch(to + i * turns::PITCH, from + i * r->layer.pairs * 4u, turns::ROW, full);
}

/* One warp: pieces of rows and of weights, one stage after the other; then a stage of turns for each group. */
template <uint32_t STEP>
__device__ static inline void wide_feed(const struct gpu_layer_run *r,
					const struct gpu_layer_io *io,
					const struct gpu_layer_segment *s, uint32_t ring,
					uint32_t barriers)
{
	const uint8_t *weights = s->weights + (uint64_t)blockIdx.y * s->inputs_pieces * PIECE_BYTES;
	const uint32_t first = blockIdx.x * WIDE_PIECES,
		       rows = min(r->rows_pieces - first, WIDE_PIECES) * PIECE_BYTES;
	const uint32_t lane = threadIdx.x % WARP_LANES;
	uint32_t stage = 0, turn = 1; /* empty at first */

	for (uint32_t i = 0; i < io->count; i++)
		for (uint32_t k = 0; k < io->pieces[i]; k++, weights += PIECE_BYTES) {
			const uint32_t full = barriers + 16u * stage,
				       to = ring + stage * WIDE_STAGE_BYTES;

			mbar_wait(full + 8u, turn);
			if (lane == 0) {
				mbar_expect(full, rows + PIECE_BYTES);
				bulk_fetch(to, gemm_input(r, io, i, k, first), rows, full);
				bulk_fetch(to + WIDE_PIECES * PIECE_BYTES, weights, PIECE_BYTES,
					   full);
			}
			if (++stage == WIDE_STAGES) {
				stage = 0;
				turn ^= 1u;
			}
		}
	for (uint32_t g = 0; gemm_turns<STEP>::HERE && g < rows / PIECE_BYTES; g++) {
		wide_turns<STEP>(r, (first + g) * PIECE, ring + stage * WIDE_STAGE_BYTES,
				 barriers + 16u * stage, turn);
		if (++stage == WIDE_STAGES) {
			stage = 0;
			turn ^= 1u;
		}
	}
}

/* One group: the sums of its rows, in two halves. */
__device__ static inline void wide_sums(int32_t (&d)[WIDE_HALVES][GEMM_SUMS], uint32_t pieces,
					uint32_t ring, uint32_t barriers, uint32_t group)
{
	uint32_t stage = 0, turn = 0, last = 0;

	for (uint32_t n = 0; n < pieces; n++) {
		const uint32_t at = ring + stage * WIDE_STAGE_BYTES,
			       rows = at + group * PIECE_BYTES,
			       weights = at + WIDE_PIECES * PIECE_BYTES;

		mbar_wait(barriers + 16u * stage, turn);
		__syncwarp();
		asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
		for (uint32_t k = 0; k < PIECE / 32u; k++) {
			multiply_64x128(d[0], tile_descriptor(rows + 32u * k),
					tile_descriptor(weights + 32u * k));
			multiply_64x128(d[1], tile_descriptor(rows + GEMM_ROWS_BYTES + 32u * k),
					tile_descriptor(weights + 32u * k));
		}
		asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
		/* The piece before this one has been read; this one may still be. */
		asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
		if (n > 0 && threadIdx.x % 128u == 0)
			mbar_arrive(barriers + 16u * last + 8u);
		last = stage;
		if (++stage == WIDE_STAGES) {
			stage = 0;
			turn ^= 1u;
		}
	}
	asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
	for (uint32_t i = 0; i < GEMM_SUMS; i++) /* not read before the wait */
		asm volatile("" : "+r"(d[0][i]), "+r"(d[1][i])::"memory");
}

__device__ static inline void wide_ring_init(uint32_t barriers)
{
	if (threadIdx.x == 0) {
		for (uint32_t i = 0; i < WIDE_STAGES; i++) {
			mbar_init(barriers + 16u * i, 1);
			mbar_init(barriers + 16u * i + 8u, GEMM_GROUPS);
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		asm volatile("fence.proxy.async;" ::: "memory");
	}
	__syncthreads();
}

#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* Where a group's turns are, of its row `in_piece`, when they are there. */
template <uint32_t STEP>
__device__ __forceinline__ static const uint8_t *wide_turns_wait(const uint8_t *ring,
								 uint32_t barriers, uint32_t pieces,
								 uint32_t group, uint32_t in_piece)
{
	const uint32_t n = pieces + group, stage = n % WIDE_STAGES;

	mbar_wait(barriers + 16u * stage, n / WIDE_STAGES % 2u);
	__syncwarp();
	return ring + stage * WIDE_STAGE_BYTES + in_piece * gemm_turns<STEP>::PITCH;
}

/* One group: its rows, from sums to guesses.  row: this thread's first. */
template <uint32_t STEP, bool NARROW>
__device__ static inline void wide_group(const struct gpu_layer_run *r,
					 const struct gpu_layer_io *io,
					 const struct gpu_layer_segment *s,
					 const struct gemm_column *column, const uint8_t *ring,
					 uint32_t barriers, uint32_t group, uint32_t row)
{
	const uint8_t *turns = NULL;
	int32_t d[WIDE_HALVES][GEMM_SUMS];

#pragma unroll
	for (uint32_t i = 0; i < GEMM_SUMS; i++) {
		d[0][i] = 0;
		d[1][i] = 0;
	}
	wide_sums(d, s->inputs_pieces, (uint32_t)__cvta_generic_to_shared(ring), barriers,
		  warp_uniform(group));
	if (blockIdx.x * WIDE_PIECES + group >= r->rows_pieces)
		return;
	if constexpr (gemm_turns<STEP>::HERE)
		turns = wide_turns_wait<STEP>(ring, barriers, s->inputs_pieces, group, row % PIECE);
#pragma unroll
	for (uint32_t half = 0; half < WIDE_HALVES; half++) {
		gemm_finish<STEP, NARROW>(r, io, s, column, d[half], row + half * GEMM_ROWS,
					  turns ? turns + half * GEMM_ROWS * gemm_turns<STEP>::PITCH
						: NULL);
		asm volatile("" ::: "memory"); /* registers do not do for both at a time */
	}
}

#endif

/* grid: pairs of pieces of rows, pieces of columns, segments.  Otherwise as layer_gemm_kernel. */
template <uint32_t STEP, bool NARROW>
__global__ __launch_bounds__(WIDE_THREADS, 1) void layer_gemm_wide_kernel(
	const __grid_constant__ struct gpu_layer_run r,
	const __grid_constant__ struct gpu_layer_io io)
{
	extern __shared__ uint8_t ring[];
	__shared__ struct gemm_column column[PIECE];
	const struct gpu_layer_segment s = *gemm_segment(&r, &io);
	const uint32_t group = threadIdx.x / 128u;
	const uint32_t row = (blockIdx.x * WIDE_PIECES + group) * PIECE +
			     threadIdx.x % 128u / WARP_LANES * 16u + threadIdx.x % WARP_LANES / 4u;

	next_may_begin();
	gemm_columns_load(column, &s);
	before_is_done();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	const uint32_t at = (uint32_t)__cvta_generic_to_shared(ring), base = (at + 1023u) & ~1023u,
		       barriers = base + WIDE_STAGES * WIDE_STAGE_BYTES;

	wide_ring_init(barriers);
	if (group == GEMM_GROUPS) {
		asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
		if (threadIdx.x / WARP_LANES == WIDE_MULTIPLIERS / WARP_LANES)
			wide_feed<STEP>(&r, &io, &s, base, barriers);
	} else {
		asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
		wide_group<STEP, NARROW>(&r, &io, &s, column, ring + (base - at), barriers, group,
					 row);
	}
#else
	const uint32_t piece = blockIdx.x * WIDE_PIECES + group;

	for (uint32_t half = 0; group < GEMM_GROUPS && half < WIDE_HALVES; half++) {
		int32_t d[GEMM_SUMS] = {};

		if (piece >= r.rows_pieces)
			return;
		gemm_sums_plain(&r, &io, &s, d, piece, row % PIECE + half * GEMM_ROWS);
		gemm_finish<STEP, NARROW>(&r, &io, &s, column, d, row + half * GEMM_ROWS, NULL);
	}
#endif
}

#endif
