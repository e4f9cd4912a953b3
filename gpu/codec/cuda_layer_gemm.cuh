/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_gemm.cuh - the guess of a segment for all rows of a batch: int8 products by the tensor cores, summed in
 * int32, then layer_output() and the turn of keys while the sums are still in registers.
 *
 * A thread block makes 64 rows of 128 columns.  One warp fetches pieces of weights and half pieces of inputs
 * (cuda_layer.cuh) into a ring in shared memory, by bulk copies; four warps multiply.  What comes after the sums takes
 * about as long as the products, so several thread blocks share a multiprocessor and are not in step.  The sum is
 * exact, so its order does not matter.  GPUs without these instructions use a plain loop.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_GEMM_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_GEMM_CUH

#include "gpu/codec/cuda_layer.cuh"

#define GEMM_STAGES 3u
#define GEMM_ROWS 64u
#define GEMM_ROWS_BYTES (GEMM_ROWS * PIECE)
#define GEMM_STAGE_BYTES (GEMM_ROWS_BYTES + PIECE_BYTES)
#define GEMM_SHARED (GEMM_STAGES * GEMM_STAGE_BYTES + 1024u + 2u * GEMM_STAGES * 8u)
#define GEMM_THREADS 160u /* 128 and the warp that fetches */
#ifndef GEMM_BLOCKS
#define GEMM_BLOCKS 2 /* to a multiprocessor */
#endif
#define GEMM_SUMS 64u /* of a thread: 2 rows of 32 columns */

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ static inline void barrier_init(uint32_t at, uint32_t count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}

__device__ static inline void barrier_arrive(uint32_t at)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}

__device__ static inline void barrier_expect(uint32_t at, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
		     : "memory");
}

__device__ static inline void barrier_wait(uint32_t at, uint32_t parity)
{
	asm volatile("{\n.reg .pred p;\n"
		     "WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
		     "@p bra DONE;\nbra WAIT;\nDONE:\n}" ::"r"(at),
		     "r"(parity)
		     : "memory");
}

__device__ static inline void piece_fetch(uint32_t to, const uint8_t *from, uint32_t bytes,
					  uint32_t barrier)
{
	asm volatile(
		"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
		"%2, [%3];" ::"r"(to),
		"l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
		: "memory");
}

/* 128-byte rows, swizzled, eight of them (1024 bytes) after another. */
__device__ static inline uint64_t piece_descriptor(uint32_t at)
{
	return (uint64_t)(at >> 4 & 0x3fffu) | (uint64_t)1 << 16 | (uint64_t)(1024u >> 4) << 32 |
	       (uint64_t)1 << 62;
}

/* 64 rows, 128 columns, 32 inputs. */
__device__ static inline void multiply(int32_t (&d)[GEMM_SUMS], uint64_t a, uint64_t b)
{
	asm volatile(
		"wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
		"{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
		"%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
		"%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
		"%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1;"
		: "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
		  "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
		  "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]),
		  "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
		  "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
		  "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]),
		  "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]),
		  "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]),
		  "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]),
		  "+r"(d[54]), "+r"(d[55]), "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]),
		  "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
		: "l"(a), "l"(b));
}

/* One thread: the pieces of a tile, in order, as room becomes free. */
__device__ static void gemm_fetch(const struct gpu_layer_run *r, const struct gpu_layer_io *io,
				  const uint8_t *weights, uint32_t ring, uint32_t barriers)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < io->count; i++)
		for (uint32_t k = 0; k < io->pieces[i]; k++, n++) {
			const uint32_t stage = n % GEMM_STAGES, turn = n / GEMM_STAGES;
			const uint32_t full = barriers + 16u * stage,
				       to = ring + stage * GEMM_STAGE_BYTES;

			if (turn > 0)
				barrier_wait(full + 8u, (turn - 1u) & 1u);
			barrier_expect(full, GEMM_STAGE_BYTES);
			piece_fetch(to,
				    io->in[i] + (uint64_t)k * r->rows_pieces * PIECE_BYTES +
					    (uint64_t)blockIdx.x * GEMM_ROWS_BYTES,
				    GEMM_ROWS_BYTES, full);
			piece_fetch(to + GEMM_ROWS_BYTES, weights + (uint64_t)n * PIECE_BYTES,
				    PIECE_BYTES, full);
		}
}

__device__ static inline void gemm_sums(const struct gpu_layer_run *r,
					const struct gpu_layer_io *io,
					const struct gpu_layer_segment *s, int32_t (&d)[GEMM_SUMS],
					uint8_t *shared)
{
	const uint32_t base = (uint32_t)__cvta_generic_to_shared(shared);
	const uint32_t ring = (base + 1023u) & ~1023u;
	const uint32_t barriers = ring + GEMM_STAGES * GEMM_STAGE_BYTES;

	if (threadIdx.x == 0) {
		for (uint32_t i = 0; i < GEMM_STAGES; i++) {
			barrier_init(barriers + 16u * i, 1);
			barrier_init(barriers + 16u * i + 8u, 1);
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
		asm volatile("fence.proxy.async;" ::: "memory");
	}
	__syncthreads();
	if (threadIdx.x >= 128u) {
		if (threadIdx.x == 128u)
			gemm_fetch(r, io,
				   s->weights +
					   (uint64_t)blockIdx.y * s->inputs_pieces * PIECE_BYTES,
				   ring, barriers);
		return;
	}
	for (uint32_t n = 0; n < s->inputs_pieces; n++) {
		const uint32_t stage = n % GEMM_STAGES, at = ring + stage * GEMM_STAGE_BYTES;

		barrier_wait(barriers + 16u * stage, n / GEMM_STAGES & 1u);
		asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
		for (uint32_t k = 0; k < PIECE / 32u; k++)
			multiply(d, piece_descriptor(at + 32u * k),
				 piece_descriptor(at + GEMM_ROWS_BYTES + 32u * k));
		asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
		/* The piece before this one has been read; this one may still be. */
		asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
		if (n > 0 && threadIdx.x == 0)
			barrier_arrive(barriers + 16u * ((n - 1u) % GEMM_STAGES) + 8u);
	}
	asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
	for (uint32_t i = 0; i < GEMM_SUMS; i++) /* not read before the wait */
		asm volatile("" : "+r"(d[i])::"memory");
}

#else

__device__ static inline void gemm_sums(const struct gpu_layer_run *r,
					const struct gpu_layer_io *io,
					const struct gpu_layer_segment *s, int32_t (&d)[GEMM_SUMS],
					uint8_t *)
{
	const uint32_t lane = threadIdx.x % WARP_LANES;
	const uint32_t row = blockIdx.x % 2u * GEMM_ROWS + threadIdx.x / WARP_LANES * 16u +
			     lane / 4u;
	const uint8_t *w = s->weights + (uint64_t)blockIdx.y * s->inputs_pieces * PIECE_BYTES;

	if (threadIdx.x >= 128u)
		return;
	for (uint32_t i = 0; i < io->count; i++)
		for (uint32_t k = 0; k < io->pieces[i]; k++, w += PIECE_BYTES) {
			const uint8_t *a = io->in[i] +
					   ((uint64_t)k * r->rows_pieces + blockIdx.x / 2u) *
						   PIECE_BYTES;

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

#endif

/*
 * Turn what a thread has: of each row, columns 8 j + 2 (lane % 4) + {0, 1}.  STEP: groups of eight columns from one
 * element of a pair to the other; 0: they are neighbours.
 */
template <uint32_t STEP>
__device__ static inline void gemm_rotate(const struct gpu_layer_run *r,
					  const struct gpu_layer_segment *s,
					  int32_t (&d)[GEMM_SUMS], uint32_t row)
{
	const uint32_t quad = threadIdx.x % 4u;

#pragma unroll
	for (uint32_t j = 0; j < GEMM_SUMS / 4u; j++) {
		const uint32_t e = 8u * j % s->head_dim;

		if (STEP == 0) {
			const uint32_t pair = e / 2u + quad;

			if (pair >= s->pairs)
				continue;
			layer_rotate(layer_turn_at(r, row, pair), &d[4u * j], &d[4u * j + 1u]);
			layer_rotate(layer_turn_at(r, row + 8u, pair), &d[4u * j + 2u],
				     &d[4u * j + 3u]);
			continue;
		}
		if (j + STEP >= GEMM_SUMS / 4u || e / 8u + 1u > STEP)
			continue;
#pragma unroll
		for (uint32_t k = 0; k < 4; k++) {
			const uint32_t pair = e + 2u * quad + (k & 1u);

			layer_rotate(layer_turn_at(r, row + (k & 2u) * 4u, pair), &d[4u * j + k],
				     &d[(4u * (j + STEP) + k) % GEMM_SUMS]);
		}
	}
}

__device__ static inline void gemm_outputs(const struct gpu_layer_segment *s,
					   int32_t (&d)[GEMM_SUMS])
{
	const uint32_t first = blockIdx.y * PIECE + threadIdx.x % 4u * 2u;

#pragma unroll
	for (uint32_t j = 0; j < GEMM_SUMS / 4u; j++)
#pragma unroll
		for (uint32_t k = 0; k < 2; k++) {
			const uint32_t c = first + 8u * j + k;
			const int32_t bias = s->bias[c], mul = s->mul[c];
			const uint32_t shift = s->shift[c];

			d[4u * j + k] = layer_output(d[4u * j + k], bias, mul, shift);
			d[4u * j + 2u + k] = layer_output(d[4u * j + 2u + k], bias, mul, shift);
		}
}

/* grid: half pieces of rows, pieces of columns. */
__global__ __launch_bounds__(GEMM_THREADS, GEMM_BLOCKS) void layer_gemm_kernel(
	const __grid_constant__ struct gpu_layer_run r,
	const __grid_constant__ struct gpu_layer_io io)
{
	extern __shared__ uint8_t ring[];
	const struct gpu_layer_segment s = r.layer.segment[io.position];
	const uint32_t lane = threadIdx.x % WARP_LANES;
	const uint32_t row = blockIdx.x * GEMM_ROWS + threadIdx.x / WARP_LANES * 16u + lane / 4u;
	int32_t d[GEMM_SUMS];

	next_may_begin();
	before_is_done();
#pragma unroll
	for (uint32_t i = 0; i < GEMM_SUMS; i++)
		d[i] = 0;
	gemm_sums(&r, &io, &s, d, ring);
	if (threadIdx.x >= 128u)
		return;
	gemm_outputs(&s, d);
	if (s.pairs) {
		if (s.interleaved)
			gemm_rotate<0>(&r, &s, d, row);
		else if (s.pairs == 64u)
			gemm_rotate<8>(&r, &s, d, row);
		else if (s.pairs == 32u)
			gemm_rotate<4>(&r, &s, d, row);
		else if (s.pairs == 16u)
			gemm_rotate<2>(&r, &s, d, row);
		else
			gemm_rotate<1>(&r, &s, d, row);
	}
#pragma unroll
	for (uint32_t j = 0; j < GEMM_SUMS / 4u; j++) {
		const uint32_t c = blockIdx.y * PIECE + 8u * j + lane % 4u * 2u;
		int32_t *to = r.mu + (uint64_t)row * r.mu_columns + c;

		*(int2 *)to = make_int2(d[4u * j], d[4u * j + 1u]);
		*(int2 *)(to + 8u * (uint64_t)r.mu_columns) = make_int2(d[4u * j + 2u],
									d[4u * j + 3u]);
	}
}

#endif
