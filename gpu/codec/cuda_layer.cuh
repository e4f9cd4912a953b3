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
	uint32_t tables; /* which */
	uint32_t dtype;
	const uint8_t *weights; /* [pieces][inputs_pieces] */
	const uint32_t *in_mul; /* padded to whole pieces, like the next four */
	const int32_t *bias, *mul;
	const int16_t *base;
	const uint8_t *shift;
};

struct gpu_layer_tables { /* of tokens, in device memory; the first two go to shared memory */
	uint8_t token[RESIDUAL_CLASSES][CODEC_PROB_SUM];
	uint32_t enc[RESIDUAL_CLASSES][RESIDUAL_TOKENS]; /* frequency | start << 16 */
	uint32_t tau_dec[CODEC_PROB_SUM];		 /* codec_dec_entry */
	uint32_t tau_enc[RESIDUAL_TAU_SYMBOLS + 3u];
};

#define LAYER_SHARED_TOKEN (RESIDUAL_CLASSES * CODEC_PROB_SUM)
#define LAYER_SHARED_ENC (RESIDUAL_CLASSES * RESIDUAL_TOKENS * 4u)

struct gpu_layer { /* a profile's */
	const struct gpu_layer_segment *segment;
	const struct gpu_layer_tables *tables;
	const uint64_t *freq;
	uint32_t segments_count, streams_count, pairs, round_bf16;
};

struct gpu_layer_task { /* of one task, in scratch */
	uint32_t live;	/* 0: nothing for these kernels */
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
	uint8_t *tau;			 /* encode: [task][stream][token] */
	uint2 *symbol;			 /* encode: [row][mu_columns], cuda_layer_encode.cuh */
	uint8_t *leaves;		 /* of the first task */
	uint64_t leaves_stride;
	uint32_t *status;
};

/* Where each of a segment's inputs lies, and where it leaves its own. */
struct gpu_layer_io {
	uint32_t position; /* in coding order */
	uint32_t count;
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

__device__ static inline struct layer_turn layer_turn_at(const struct gpu_layer_run *r,
							 uint32_t row, uint32_t pair)
{
	const uint32_t v = r->turn[row * r->layer.pairs + pair];
	struct layer_turn t;

	t.cos = (int16_t)v;
	t.sin = (int32_t)v >> 16;
	return t;
}

__device__ static inline int32_t layer_scale(int32_t base, uint32_t tau)
{
	return min(max(base + residual_tau(tau), RESIDUAL_SCALE_MIN), RESIDUAL_SCALE_MAX);
}

/* residual_grid(), with the classes that matter free of branches. */
template <int DT>
__device__ static inline struct residual_grid layer_grid(int32_t mu, int32_t scale)
{
	const struct residual_type t = residual_type_of(DT);
	const uint32_t a = (uint32_t)abs(mu);
	const int32_t lm = residual_log2(a | 1u), k = scale >> 2;
	struct residual_grid g;

	g.flip = (uint32_t)mu >> 31;
	g.q = min(max(max(k - 2, lm - t.mant_bits),
		      max(RESIDUAL_FRAC - (t.bias - 1) - t.mant_bits, 2)),
		  28);
	g.mu = (int32_t)(a >> g.q);
	const int32_t d = scale - 4 * g.q;
	const int32_t near = 4 * max(11 - d, 0) + min(max((lm - k + 3) >> 1, 0), 3);
	const int32_t low = 28 + 4 * min((3 - d) >> 1, 5) + (int32_t)(a >> (g.q - 2) & 3u);

	g.class_ = (uint32_t)(d >= 8 ? near : d >= 4 ? 23 - d : low);
	if (__any_sync(FULL_MASK, d <= -9))
		g.class_ = d <= -9 ? residual_far_class(a, g.q, scale) : g.class_;
	return g;
}

#endif
