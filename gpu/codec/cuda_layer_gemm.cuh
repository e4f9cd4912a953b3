/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_gemm.cuh - the guess of a segment for all rows of a batch: int8 products by the tensor cores, summed in
 * int32, then layer_output() and the turn of keys while the sums are still in registers.
 *
 * A thread block makes 128 rows of 128 columns.  Pieces of weights and of inputs (cuda_layer.cuh) come into a ring in
 * shared memory, by bulk copies; two groups of four warps multiply, each half of the rows: the second-level cache gives
 * no more than that asks for.  What comes after the sums takes about as long as the products, so two thread blocks
 * share a multiprocessor.  The sum is exact, so its order does not matter.  GPUs without these instructions use a plain
 * loop.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_GEMM_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_GEMM_CUH

#include "gpu/codec/cuda_hopper.cuh"
#include "gpu/codec/cuda_layer.cuh"

#define GEMM_STAGES 3u	     /* of the ring, where two thread blocks share a multiprocessor */
#define GEMM_STAGES_ALONE 5u /* where each has one to itself: more must be on its way at once */
#define GEMM_GROUPS 2u	     /* that multiply */
#define GEMM_ROWS 64u	     /* of one of them */
#define GEMM_ROWS_BYTES (GEMM_ROWS * PIECE)
#define GEMM_STAGE_BYTES (2u * PIECE_BYTES)
#define GEMM_THREADS (GEMM_GROUPS * 128u)
#define GEMM_BLOCKS 2 /* to a multiprocessor */
#define GEMM_UNTURNED 99u
#define GEMM_SUMS 64u /* of a thread: 2 rows of 32 columns */

CODEC_HD uint32_t gemm_shared(uint32_t stages)
{
	return stages * GEMM_STAGE_BYTES + 1024u + 2u * stages * 8u;
}

/* One of the segments that a launch makes guesses of. */
__device__ static inline const struct gpu_layer_segment *gemm_segment(const struct gpu_layer_run *r,
								      const struct gpu_layer_io *io)
{
	return &r->layer.segment[io->position + blockIdx.z * io->step];
}

/* A piece of its input i: of columns, of rows. */
__device__ __forceinline__ static const uint8_t *gemm_input(const struct gpu_layer_run *r,
							    const struct gpu_layer_io *io,
							    uint32_t i, uint32_t columns,
							    uint32_t rows)
{
	return io->in[i] + blockIdx.z * io->in_stride +
	       ((uint64_t)columns * r->rows_pieces + rows) * PIECE_BYTES;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct gemm_feed {			 /* one thread's: the pieces of a tile, in order */
	uint32_t input, piece, n, stage; /* next */
};

__device__ __forceinline__ static void gemm_fetch(struct gemm_feed *f,
						  const struct gpu_layer_run *r,
						  const struct gpu_layer_io *io,
						  const uint8_t *weights, uint32_t ring,
						  uint32_t barriers)
{
	const uint32_t full = barriers + 16u * f->stage, to = ring + f->stage * GEMM_STAGE_BYTES;

	mbar_expect(full, GEMM_STAGE_BYTES);
	bulk_fetch(to, gemm_input(r, io, f->input, f->piece, blockIdx.x), PIECE_BYTES, full);
	bulk_fetch(to + PIECE_BYTES, weights + (uint64_t)f->n * PIECE_BYTES, PIECE_BYTES, full);
	f->n++;
	f->stage = f->stage + 1u < io->stages ? f->stage + 1u : 0;
	if (++f->piece == io->pieces[f->input]) {
		f->piece = 0;
		f->input++;
	}
}

__device__ static inline void gemm_sums(const struct gpu_layer_run *r,
					const struct gpu_layer_io *io,
					const struct gpu_layer_segment *s, int32_t (&d)[GEMM_SUMS],
					uint8_t *shared)
{
	const uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
	const uint32_t ring = (base + 1023u) & ~1023u, all = s->inputs_pieces;
	const uint32_t stages = io->stages, barriers = ring + stages * GEMM_STAGE_BYTES;
	const uint8_t *weights = s->weights + (uint64_t)blockIdx.y * all * PIECE_BYTES;
	const uint32_t rows = warp_uniform(threadIdx.x / 128u) * GEMM_ROWS_BYTES;
	struct gemm_feed feed = { 0, 0, 0, 0 };
	uint32_t stage = 0, turn = 0, last = 0, last_turn = 0; /* of the piece before */

	if (threadIdx.x == 0) {
		for (uint32_t i = 0; i < stages; i++) {
			mbar_init(barriers + 16u * i, 1);
			mbar_init(barriers + 16u * i + 8u, GEMM_GROUPS);
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		asm volatile("fence.proxy.async;" ::: "memory");
		while (feed.n < all && feed.n < stages)
			gemm_fetch(&feed, r, io, weights, ring, barriers);
	}
	__syncthreads();
	for (uint32_t n = 0; n < all; n++) {
		const uint32_t at = ring + stage * GEMM_STAGE_BYTES;
		const uint32_t empty = barriers + 16u * last + 8u;

		mbar_wait(barriers + 16u * stage, turn);
		__syncwarp();
		asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
		for (uint32_t k = 0; k < PIECE / 32u; k++)
			multiply_64x128(d, tile_descriptor(at + rows + 32u * k),
					tile_descriptor(at + PIECE_BYTES + 32u * k));
		asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
		/* The piece before this one has been read; this one may still be. */
		asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
		if (n > 0 && threadIdx.x % 128u == 0)
			mbar_arrive(empty);
		if (n > 0 && threadIdx.x == 0 && feed.n < all) {
			mbar_wait(empty, last_turn);
			gemm_fetch(&feed, r, io, weights, ring, barriers);
		}
		last = stage;
		last_turn = turn;
		if (++stage == stages) {
			stage = 0;
			turn ^= 1u;
		}
	}
	asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
	for (uint32_t i = 0; i < GEMM_SUMS; i++) /* not read before the wait */
		asm volatile("" : "+r"(d[i])::"memory");
}

#endif

/* Without these instructions: sums of two rows of a piece, the first of which is `row`. */
__device__ static inline void gemm_sums_plain(const struct gpu_layer_run *r,
					      const struct gpu_layer_io *io,
					      const struct gpu_layer_segment *s,
					      int32_t (&d)[GEMM_SUMS], uint32_t piece, uint32_t row)
{
	const uint32_t lane = threadIdx.x % WARP_LANES;
	const uint8_t *w = s->weights + (uint64_t)blockIdx.y * s->inputs_pieces * PIECE_BYTES;

	for (uint32_t i = 0; i < io->count; i++)
		for (uint32_t k = 0; k < io->pieces[i]; k++, w += PIECE_BYTES) {
			const uint8_t *a = gemm_input(r, io, i, k, piece);

			for (uint32_t c = 0; c < PIECE; c += 4u) {
				const int32_t x = *(const int32_t *)(a + piece_at(row, c)),
					      y = *(const int32_t *)(a + piece_at(row + 8u, c));

#pragma unroll
				for (uint32_t j = 0; j < GEMM_SUMS; j++) {
					const uint32_t column = j / 4u * 8u + lane % 4u * 2u +
								(j & 1u);

					d[j] = __dp4a(j & 2u ? y : x,
						      *(const int32_t *)(w + piece_at(column, c)),
						      d[j]);
				}
			}
		}
}

template <bool NARROW>
__device__ __forceinline__ static void gemm_turn(struct layer_turn t, int32_t *a, int32_t *b)
{
	if (NARROW)
		layer_rotate_narrow(t, a, b);
	else
		layer_rotate(t, a, b);
}

/*
 * Turns of 128 rows in shared memory, where halves of a head are pairs (STEP: their distance in groups of eight
 * columns).  Rows are that far apart that the threads which read at the same time find them in different banks.
 */
template <uint32_t STEP> struct gemm_turns {
	static const bool HERE = STEP != 0 && STEP != GEMM_UNTURNED;
	static const uint32_t ROW = HERE ? 32u * STEP : 0, PITCH = ROW + 32u;
};

static_assert(PIECE * gemm_turns<8>::PITCH <= 2u * GEMM_STAGE_BYTES, "where pieces were");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* By the whole thread block, when the ring is read no more.  row: the first. */
template <uint32_t STEP>
__device__ __forceinline__ static void gemm_turns_load(const struct gpu_layer_run *r, uint8_t *to,
						       uint32_t row)
{
	typedef gemm_turns<STEP> turns;
	const uint32_t parts = turns::ROW / 16u;
	const uint32_t *from = r->turn + (uint64_t)row * r->layer.pairs;

	__syncthreads();
#pragma unroll
	for (uint32_t i = threadIdx.x; i < PIECE * parts; i += GEMM_THREADS)
		*(uint4 *)(to + i / parts * turns::PITCH + i % parts * 16u) =
			*(const uint4 *)(from + i / parts * r->layer.pairs + i % parts * 4u);
	__syncthreads();
}

#endif

/*
 * Turn what a thread has: of each row, columns 8 j + 2 (lane % 4) + {0, 1}.  STEP: groups of eight columns from one
 * element of a pair to the other; 0: they are neighbours.  turns: of `row`, in shared memory, or NULL.
 */
template <uint32_t STEP, bool NARROW>
__device__ static inline void gemm_rotate(const struct gpu_layer_run *r,
					  const struct gpu_layer_segment *s,
					  int32_t (&d)[GEMM_SUMS], uint32_t row,
					  const uint8_t *turns)
{
	const uint32_t quad = threadIdx.x % 4u;

#pragma unroll
	for (uint32_t j = 0; j < GEMM_SUMS / 4u; j++) {
		const uint32_t e = 8u * j % s->head_dim;

		if (STEP == 0) {
			const uint32_t pair = e / 2u + quad;

			if (pair >= s->pairs)
				continue;
			gemm_turn<NARROW>(layer_turn_at(r, row, pair), &d[4u * j], &d[4u * j + 1u]);
			gemm_turn<NARROW>(layer_turn_at(r, row + 8u, pair), &d[4u * j + 2u],
					  &d[4u * j + 3u]);
			continue;
		}
		if (j + STEP >= GEMM_SUMS / 4u || e / 8u + 1u > STEP)
			continue;
#pragma unroll
		for (uint32_t i = 0; i < 2; i++) {
			const uint32_t pair = e + 2u * quad;
			const uint2 two =
				turns ? *(const uint2 *)(turns + i * 8u * gemm_turns<STEP>::PITCH +
							 4u * pair)
				      : *(const uint2 *)(r->turn + (row + i * 8u) * r->layer.pairs +
							 pair);
			int32_t *v = &d[4u * j + 2u * i],
				*w = &d[(4u * (j + STEP) + 2u * i) % GEMM_SUMS];

			gemm_turn<NARROW>(layer_turn_unpacked(two.x), &v[0], &w[0]);
			gemm_turn<NARROW>(layer_turn_unpacked(two.y), &v[1], &w[1]);
		}
	}
}

struct __align__(16) gemm_column
{
	int32_t bias, mul;
	uint32_t shift, reserved;
};

template <bool NARROW>
__device__ static inline void gemm_outputs(const struct gemm_column *column,
					   int32_t (&d)[GEMM_SUMS])
{
	const uint32_t first = threadIdx.x % 4u * 2u;

#pragma unroll
	for (uint32_t j = 0; j < GEMM_SUMS / 4u; j++)
#pragma unroll
		for (uint32_t k = 0; k < 2; k++) {
			const struct gemm_column c = column[first + 8u * j + k];

#pragma unroll
			for (uint32_t i = 0; i < 4u; i += 2u) {
				int32_t *v = &d[4u * j + i + k];

				*v = NARROW ? layer_output_narrow(*v, c.bias, c.mul, c.shift)
					    : layer_output(*v, c.bias, c.mul, c.shift);
			}
		}
}

/* What a thread block's columns need after the sums. */
__device__ static inline void gemm_columns_load(struct gemm_column *column,
						const struct gpu_layer_segment *s)
{
	if (threadIdx.x < PIECE) {
		const uint32_t c = blockIdx.y * PIECE + threadIdx.x;

		column[threadIdx.x] = (struct gemm_column){ s->bias[c], s->mul[c], s->shift[c], 0 };
	}
	__syncthreads();
}

/* Sums to guesses of `row` and the eighth after it.  turns: as gemm_rotate has it. */
template <uint32_t STEP, bool NARROW>
__device__ __forceinline__ static void gemm_finish(const struct gpu_layer_run *r,
						   const struct gpu_layer_io *io,
						   const struct gpu_layer_segment *s,
						   const struct gemm_column *column,
						   int32_t (&d)[GEMM_SUMS], uint32_t row,
						   const uint8_t *turns)
{
	int32_t *mu = r->mu + blockIdx.z * io->mu_stride + (uint64_t)row * r->mu_columns;

	gemm_outputs<NARROW>(column, d);
	if (STEP != GEMM_UNTURNED)
		gemm_rotate<STEP, NARROW>(r, s, d, row, turns);
#pragma unroll
	for (uint32_t j = 0; j < GEMM_SUMS / 4u; j++) {
		const uint32_t c = blockIdx.y * PIECE + 8u * j + threadIdx.x % 4u * 2u;
		int32_t *to = mu + c;

		*(int2 *)to = make_int2(d[4u * j], d[4u * j + 1u]);
		*(int2 *)(to + 8u * (uint64_t)r->mu_columns) = make_int2(d[4u * j + 2u],
									 d[4u * j + 3u]);
	}
}

/* grid: pieces of rows, pieces of columns, segments.  STEP: gemm_rotate()'s, GEMM_UNTURNED: not. */
template <uint32_t STEP, bool NARROW>
__global__ __launch_bounds__(GEMM_THREADS, GEMM_BLOCKS) void layer_gemm_kernel(
	const __grid_constant__ struct gpu_layer_run r,
	const __grid_constant__ struct gpu_layer_io io)
{
	extern __shared__ uint8_t ring[];
	__shared__ struct gemm_column column[PIECE];
	const struct gpu_layer_segment s = *gemm_segment(&r, &io);
	const uint32_t in_piece = threadIdx.x / WARP_LANES * 16u + threadIdx.x % WARP_LANES / 4u;
	const uint8_t *turns = NULL;
	int32_t d[GEMM_SUMS];

	next_may_begin();
	gemm_columns_load(column, &s);
	before_is_done();
#pragma unroll
	for (uint32_t i = 0; i < GEMM_SUMS; i++) {
		d[i] = 0;
		asm volatile("" : "+r"(d[i])); /* here, not among the products */
	}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	gemm_sums(&r, &io, &s, d, ring);
	if constexpr (gemm_turns<STEP>::HERE) {
		gemm_turns_load<STEP>(&r, ring, blockIdx.x * PIECE);
		turns = ring + in_piece * gemm_turns<STEP>::PITCH;
	}
#else
	gemm_sums_plain(&r, &io, &s, d, blockIdx.x, in_piece);
#endif
	gemm_finish<STEP, NARROW>(&r, &io, &s, column, d, blockIdx.x * PIECE + in_piece, turns);
}

#endif
