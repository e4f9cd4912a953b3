/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer.cuh - what the kernels of `layer` know of a profile's maps and of a batch, as it lies in device
 * memory, and the small things they share.
 *
 * Rows.  The tokens of all tasks of a batch follow each other: row t * tokens + token.  Inputs and weights lie in
 * pieces of 128 rows (or output columns) times 128 input columns, one byte each, and in a piece the way the tensor
 * cores take it: row r at 128 r, its 16-byte parts at the place of their number xor r % 8.  What is beyond a
 * segment's columns is zero in the weights, so it may be anything in the inputs.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_CUH

#include "gpu/codec/cuda_layout.cuh"
#include "gpu/codec/layer_code.h"

#define PIECE 128u
#define PIECE_BYTES (PIECE * PIECE)

struct gpu_layer_segment {
	uint32_t segment; /* of the geometry */
	uint32_t columns, pieces, first_piece;
	uint32_t inputs;	  /* segments before this one */
	uint32_t inputs_pieces;	  /* pieces of their columns */
	uint32_t head_dim, pairs; /* pairs 0: not turned */
	uint32_t interleaved;
	uint32_t quads;	      /* of columns, for inputs; */
	uint32_t quads_twice; /* the first have their pairs in others that are not counted */
	uint32_t tables;      /* which */
	uint32_t dtype;
	uint32_t tau_streams; /* residual_tau_streams() */
	uint32_t taken;	      /* by a later segment */
	uint32_t flat;	      /* every row's guesses are the bias, and no later segment takes it */
	uint32_t narrow;      /* no guess of a sum is beyond 2^30, and in_mul is below 2^31 */
	const uint8_t *weights; /* [pieces][inputs_pieces] */
	const uint32_t *in_mul; /* padded to whole pieces, like the next four */
	const int32_t *bias, *mul;
	const int16_t *base;
	const uint8_t *shift;
};

#define ENC_PITCH (RESIDUAL_TOKENS + 1u) /* odd: lanes of like tokens find theirs in other banks */

struct gpu_layer_tables { /* of tokens, in device memory; parts of them go to shared memory */
	uint8_t token[RESIDUAL_CLASSES][CODEC_PROB_SUM];
	uint32_t enc[RESIDUAL_CLASSES][ENC_PITCH]; /* as residual_tables has them */
	uint32_t tau_dec[CODEC_PROB_SUM]; /* codec_dec_entry; a decoder's tables end here */
	uint32_t tau_enc[RESIDUAL_TAU_SYMBOLS + 3u];
	uint32_t rcp[CODEC_PROB_SUM]; /* of a frequency, as codec_enc_entry() has it */
};

/*
 * What residual_grid() gives, of an element type, for each scale and position of |mu|'s highest bit, first of 0, which
 * has none: q - 2 | GRID_FAR | mask of the phase << GRID_PHASE_SHIFT | class << GRID_CLASS_SHIFT.  Scales beyond the
 * limits are there as well, so that a column's base, clamped once, and a step need no clamp.
 */
#define GRID_PITCH 33u /* odd: lanes whose guesses are alike in size find theirs in other banks */

struct gpu_layer_grids {
	int16_t grid[256][GRID_PITCH];
};

#define GRID_SCALE_FIRST (-96)
#define GRID_BASE_MIN \
	(-90) /* every step leads below RESIDUAL_SCALE_MIN, as it does from lower ones */
#define GRID_BASE_MAX 134
#define GRID_FAR 0x8000u /* the class is residual_far_class()'s to say */
#define GRID_PHASE_SHIFT 5u
#define GRID_CLASS_SHIFT 7u
#define LAYER_DTYPES 4u
#define GEMM_TURNS 6u		 /* neighbours; 8, 16, 32, 64 pairs apart; none */
#define LAYER_TAU_STREAMS_MAX 4u /* that share a tau */
#define LAYER_GRID_BYTES ((uint32_t)sizeof(struct gpu_layer_grids))
static_assert(GRID_BASE_MIN + 24 <= RESIDUAL_SCALE_MIN && GRID_BASE_MAX - 6 >= RESIDUAL_SCALE_MAX,
	      "a clamped base is as good");

#define ENTRY_FREQ_MASK 1023u /* of enc; bits 10..15: cost, in quarters of a bit; start << 16 */
#define ENTRY_COST_SHIFT 10u
#define ENTRY_START_SHIFT 16u

#define LAYER_SHARED_TOKEN (RESIDUAL_CLASSES * CODEC_PROB_SUM)
#define LAYER_SHARED_ENC (RESIDUAL_CLASSES * ENC_PITCH * 4u)
#define LAYER_SHARED_TAU (CODEC_PROB_SUM * 4u)
static_assert(LAYER_SHARED_ENC % 16u == 0 && LAYER_GRID_BYTES % 16u == 0, "tables are aligned");

struct gpu_layer { /* a profile's */
	const struct gpu_layer_segment *segment;
	const struct gpu_layer_tables *tables;
	const struct gpu_layer_grids *grids; /* of dtype - 1 */
	const uint64_t *freq;
	uint32_t segments_count, streams_count, pairs, round_bf16;
};

struct gpu_layer_task {			   /* of one task, in scratch */
	const struct gpu_segment *segment; /* of its region, like the next */
	uint64_t base;
	uint32_t block_index, skip_tokens;
	uint32_t live; /* 0: nothing for these kernels */
	uint32_t position;
	uint32_t bytes;	  /* encode: of the payload, without padding */
	uint32_t verdict; /* encode: enum below */
	uint32_t escapes;
	uint32_t bad; /* encode: it overflowed, or was not what it was made from */
	uint32_t at;  /* encode: where the payload lies in the container */
	uint32_t reserved;
};

enum { LAYER_NONE, LAYER_POOR, LAYER_GOOD }; /* as predicted.c says */

struct gpu_layer_stream { /* of one task, parked between segments */
	uint32_t state[WARP_LANES];
	uint64_t words; /* decode: address of the next; encode: of the lowest written */
	uint64_t limit; /* encode: not below */
	uint32_t left;	/* decode: words; encode: words written */
	uint32_t bad;
	uint32_t reserved[2];
};

/*
 * Where a decoder's stream stands, between segments: all that a warp goes on with, where it finds it at once.  The
 * addresses of words would have to be waited for before the words.
 */
struct gpu_layer_aside {
	uint4 ring[WARP_LANES];
	uint64_t ahead[WARP_LANES];
	uint64_t words;
	uint32_t end, pos, filled;
	uint32_t reserved[3];
};

struct gpu_layer_run { /* kernel argument: a batch on its way through the segments */
	struct gpu_layer layer;
	uint32_t tasks_count, tokens;
	uint32_t rows, rows_pieces;  /* all tasks' tokens; in pieces */
	uint32_t mu_columns;	     /* of a row of mu */
	const struct gpu_task *task; /* in scratch */
	struct gpu_layer_task *of;
	struct gpu_layer_stream *stream; /* [task][stream] */
	uint32_t *turn;			 /* [row][pair]: cosine | sine << 16 */
	int32_t *mu;			 /* [row][mu_columns]; decoding leaves the patterns in it */
	uint8_t *tau;			 /* [task][stream][token], of the first that share it */
	struct gpu_layer_aside *aside;	 /* decode: [task][stream] */
	uint2 *symbol;			 /* encode: [row][mu_columns], cuda_layer_encode.cuh */
	uint8_t *leaves;		 /* of the first task */
	uint64_t leaves_stride;
	uint32_t *status;
};

/* Where each of a segment's inputs lies, and where it leaves its own. */
struct gpu_layer_io {
	uint32_t position; /* in coding order */
	uint32_t count;
	uint32_t stages; /* of the ring that products come through */
	uint32_t step;	 /* of several segments at a time: from a position to the next */
	uint64_t in_stride, mu_stride; /* likewise, in bytes of inputs and in guesses */
	const uint8_t *in[LAYER_INPUTS_MAX];
	uint32_t pieces[LAYER_INPUTS_MAX];
	uint8_t *out; /* NULL: nobody takes it */
};

/* Where the GPU can: the next kernel in the stream may come and wait; all kernels before this one have ended. */
__device__ static inline void next_may_begin(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ static inline void before_is_done(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Of tables to shared memory: `bytes` from `from`, by the whole thread block.  Nobody writes them meanwhile. */
__device__ static inline void tables_load(uint8_t *to, const void *from, uint32_t bytes)
{
	const uint32_t count = bytes / 16u, step = blockDim.x;
	uint4 v[4]; /* on their way at once */

	for (uint32_t i = threadIdx.x; i < count; i += 4u * step) {
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			v[k] = __ldg((const uint4 *)from + min(i + k * step, count - 1u));
#pragma unroll
		for (uint32_t k = 0; k < 4; k++)
			if (i + k * step < count)
				((uint4 *)to)[i + k * step] = v[k];
	}
}

/* What a task of a batch is, but for what opening or coding it tells. */
__device__ static inline struct gpu_layer_task layer_task_of(const struct gpu_task *t)
{
	return (struct gpu_layer_task){
		.segment = t->region->g.segment,
		.base = t->region->base,
		.block_index = t->block_index,
		.skip_tokens = t->skip_tokens,
	};
}

/* Where a task's segment begins in the engine's pages. */
__device__ static inline uint8_t *layer_page_base(const struct gpu_layer_task *t,
						  const struct gpu_segment *s)
{
	return (uint8_t *)(t->base + s->off + (uint64_t)t->block_index * s->block_stride);
}

/* Byte `column` of a row of a piece. */
CODEC_HD uint32_t piece_at(uint32_t row, uint32_t column)
{
	return row * PIECE + ((column >> 4 ^ (row & 7u)) << 4) + (column & 15u);
}

/* Columns of a stream's share. */
struct layer_share {
	uint32_t group_begin, group_end;
};

CODEC_HD struct layer_share layer_share_of(uint32_t columns, uint32_t stream, uint32_t streams)
{
	const uint32_t groups = columns / CODEC_LANES;
	const struct layer_share h = { stream * groups / streams,
				       (stream + 1u) * groups / streams };

	return h;
}

static_assert(LAYER_TAU_STREAMS_MAX == 4u, "half of 1, 2 and 4 is how far to shift");

/* A barrier of the `each` warps from a multiple of each on that share a tau. */
__device__ __forceinline__ static void streams_barrier(uint32_t warp, uint32_t each)
{
	if (each == 1u)
		__syncwarp();
	else
		asm volatile("bar.sync %0, %1;" ::"r"(warp >> each / 2u), "r"(each * WARP_LANES)
			     : "memory");
}

__device__ static inline struct layer_turn layer_turn_unpacked(uint32_t v)
{
	struct layer_turn t;

	t.cos = (int16_t)v;
	t.sin = (int32_t)v >> 16;
	return t;
}

__device__ static inline struct layer_turn layer_turn_at(const struct gpu_layer_run *r,
							 uint32_t row, uint32_t pair)
{
	return layer_turn_unpacked(r->turn[row * r->layer.pairs + pair]);
}

/* ---- residual.h's and layer.h's, with what the GPU is good at ---- */

/* v >> LAYER_TURN_BITS, where that fits. */
__device__ __forceinline__ static int32_t layer_turned(int64_t v)
{
	return (int32_t)__funnelshift_r((uint32_t)v, (uint32_t)(v >> 32), LAYER_TURN_BITS);
}

/* layer_clamp(v >> LAYER_TURN_BITS), v below 2^47. */
__device__ __forceinline__ static int32_t layer_turned_clamped(int64_t v)
{
	const int32_t high = (int32_t)(v >> 32), sign = high >> 31;
	const int32_t x = high >> (LAYER_TURN_BITS - 1) == sign ? layer_turned(v)
								: sign ^ RESIDUAL_MU_MAX;

	return max(x, -RESIDUAL_MU_MAX);
}

/* layer_rotate() of what is below 2^30. */
__device__ __forceinline__ static void layer_rotate_narrow(struct layer_turn t, int32_t *a,
							   int32_t *b)
{
	const int64_t half = (int64_t)1 << (LAYER_TURN_BITS - 1);
	const int32_t x = *a, y = *b;

	*a = layer_turned(((int64_t)x * t.cos + half) + (int64_t)y * -t.sin);
	*b = layer_turned(((int64_t)y * t.cos + half) + (int64_t)x * t.sin);
}

/* layer_unrotate() */
__device__ __forceinline__ static void layer_unrotate_any(struct layer_turn t, int32_t *a,
							  int32_t *b)
{
	const int64_t half = (int64_t)1 << (LAYER_TURN_BITS - 1);
	const int32_t x = *a, y = *b;

	*a = layer_turned_clamped(((int64_t)x * t.cos + half) + (int64_t)y * t.sin);
	*b = layer_turned_clamped(((int64_t)y * t.cos + half) + (int64_t)x * -t.sin);
}

/* layer_output(), where `narrow` says that it needs no clamp. */
__device__ __forceinline__ static int32_t layer_output_narrow(int32_t acc, int32_t bias,
							      int32_t mul, uint32_t shift)
{
	const int64_t v = (int64_t)acc * mul + (((int64_t)1 << shift) >> 1);
	const int32_t high = (int32_t)(v >> 32);

	return bias + (shift & 32u ? high >> (shift & 31u)
				   : (int32_t)__funnelshift_r((uint32_t)v, (uint32_t)high, shift));
}

#define LAYER_FIXED_LARGE ((127u + 30u - RESIDUAL_FRAC) << 7) /* a bf16 of 2^30 */

/* residual_fixed() */
template <int DT> __device__ __forceinline__ static int32_t layer_fixed(uint32_t pattern)
{
	if (DT != 1)
		return residual_fixed(residual_type_of(DT), pattern);
	/* A conversion does it, but for what is 2^30 and more, and not a number. */
	const uint32_t mag = pattern & 0x7fffu;
	const int32_t v =
		__float2int_rz(__uint_as_float(pattern << 16) * (float)(1u << RESIDUAL_FRAC));
	const int32_t clamped = pattern >> 15 ? -RESIDUAL_MU_MAX : RESIDUAL_MU_MAX;

	return mag < LAYER_FIXED_LARGE ? v : mag > 0x7f7fu ? 0 : clamped;
}

/* Values of four patterns, as they lie in two words, or in one. */
template <int DT>
__device__ __forceinline__ static void layer_values_of(const uint32_t (&w)[2], int32_t (&v)[4])
{
#pragma unroll
	for (uint32_t k = 0; k < 4; k++)
		v[k] = layer_fixed<DT>(DT <= 2 ? w[k / 2u] >> 16u * (k % 2u) & 0xffffu
					       : w[0] >> 8u * k & 0xffu);
}

#define LAYER_PAIRS_LARGE ((127u + 29u - RESIDUAL_FRAC) << 7) /* a bf16 of 2^29 */

/* Of pairs of bf16 below 2^29: what a conversion gives, and turned it is below 2^30. */
__device__ __forceinline__ static bool layer_pairs_small(const uint32_t (&w)[2],
							 const uint32_t (&other)[2])
{
	const uint32_t mags = 0x7fff7fffu,
		       most = __vmaxu2(__vmaxu2(w[0] & mags, w[1] & mags),
				       __vmaxu2(other[0] & mags, other[1] & mags));

	return max(most & 0xffffu, most >> 16) < LAYER_PAIRS_LARGE;
}

/* Four pairs as values, turned back. */
template <int DT>
__device__ __forceinline__ static void layer_pairs_of(const uint32_t (&w)[2],
						      const uint32_t (&other_w)[2],
						      const uint32_t (&turn)[4], int32_t (&v)[4],
						      int32_t (&other)[4])
{
	if (DT == 1 && layer_pairs_small(w, other_w)) {
#pragma unroll
		for (uint32_t k = 0; k < 4; k++) {
			const uint32_t up = 16u * (1u - k % 2u), high = 0xffff0000u;
			struct layer_turn t = layer_turn_unpacked(turn[k]);

			v[k] = __float2int_rz(__uint_as_float(w[k / 2u] << up & high) *
					      (float)(1u << RESIDUAL_FRAC));
			other[k] = __float2int_rz(__uint_as_float(other_w[k / 2u] << up & high) *
						  (float)(1u << RESIDUAL_FRAC));
			t.sin = -t.sin;
			layer_rotate_narrow(t, &v[k], &other[k]);
		}
		return;
	}
	layer_values_of<DT>(w, v);
	layer_values_of<DT>(other_w, other);
#pragma unroll
	for (uint32_t k = 0; k < 4; k++)
		layer_unrotate_any(layer_turn_unpacked(turn[k]), &v[k], &other[k]);
}

__device__ static inline int32_t layer_scale(int32_t base, uint32_t tau)
{
	return min(max(base + residual_tau(tau), RESIDUAL_SCALE_MIN), RESIDUAL_SCALE_MAX);
}

__device__ __forceinline__ static int32_t layer_base_clamped(int32_t base)
{
	return min(max(base, GRID_BASE_MIN), GRID_BASE_MAX);
}

/* The position of the highest one bit; -1 of zero. */
__device__ __forceinline__ static int32_t layer_top(uint32_t v)
{
	int32_t at;

	asm("bfind.u32 %0, %1;" : "=r"(at) : "r"(v));
	return at;
}

/* Where a column's scales begin in a table of grids, of its clamped base: each step is two of its rows. */
__device__ __forceinline__ static const int16_t *layer_grids_at(const int16_t *grids,
								int32_t clamped)
{
	return grids + (clamped + residual_tau(0) - GRID_SCALE_FIRST) * (int32_t)GRID_PITCH + 1;
}

__device__ __forceinline__ static const int16_t *layer_grids_of(const int16_t *grids, int32_t base)
{
	return layer_grids_at(grids, layer_base_clamped(base));
}

/* layer_input() of four columns of a row, a byte each. */
__device__ __forceinline__ static uint32_t layer_inputs_of(bool narrow, uint4 mul,
							   const int32_t (&v)[4])
{
	const uint32_t m[4] = { mul.x, mul.y, mul.z, mul.w };
	uint32_t out = 0;

#pragma unroll
	for (uint32_t k = 0; k < 4; k++) {
		const int32_t x =
			narrow ? (int32_t)(((int64_t)v[k] * (int32_t)m[k] + ((int64_t)1 << 31)) >>
					   32)
			       : layer_input(v[k], m[k]);

		out |= ((uint32_t)min(max(x, -127), 127) & 0xffu) << 8u * k;
	}
	return out;
}

struct layer_cell { /* a residual_grid as far as rows need it, with what is cheapest to have */
	uint32_t q; /* its q - 2 */
	int32_t mu;
	uint32_t sign; /* the highest bit is its flip */
	uint32_t class_;
};

/* residual_grid() of a column with this base.  All lanes of a warp. */
__device__ __forceinline__ static struct layer_cell layer_cell_of(const int16_t *grids_of,
								  int32_t base, int32_t mu,
								  uint32_t tau)
{
	const uint32_t a = (uint32_t)abs(mu);
	const int32_t e = grids_of[(int32_t)(tau * 2u * GRID_PITCH) + layer_top(a)];
	const uint32_t fine =
		__funnelshift_r(a, 0, (uint32_t)e); /* a >> (q - 2): the shift is modulo 32 */
	struct layer_cell c;

	c.sign = (uint32_t)mu;
	c.q = (uint32_t)e & 31u;
	c.mu = (int32_t)(fine >> 2);
	c.class_ = (uint32_t)(e >> GRID_CLASS_SHIFT) +
		   (fine & (uint32_t)(e >> GRID_PHASE_SHIFT) & 3u);
	if (e < 0)
		c.class_ = residual_far_class(a, (int32_t)c.q + 2, layer_scale(base, tau));
	__syncwarp();
	return c;
}

__device__ __forceinline__ static struct residual_grid layer_grid_of(struct layer_cell c)
{
	const struct residual_grid g = { (int32_t)c.q + 2, c.mu, c.sign >> 31, c.class_ };

	return g;
}

#endif
