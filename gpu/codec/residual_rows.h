/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_rows.h - what the residual coder's files share: rows of symbols between the pass that makes
 * them and the pass that codes them backwards, streams, and the kernels' tools.
 */
#ifndef SKVCD_GPU_CODEC_RESIDUAL_ROWS_H
#define SKVCD_GPU_CODEC_RESIDUAL_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/residual_code.h"

/* An encoder entry: frequency (bits 0..9) | cost (10..15) | start << 16. */
#define RESIDUAL_ENC_FREQ_MASK 1023
#define RESIDUAL_ENC_COST_SHIFT 10u
#define RESIDUAL_ENC_COST_MASK 63

#define RESIDUAL_COST_ONE 4u	       /* a bit, in the costs that rows are weighed with */
#define RESIDUAL_TOKENS_MAX 1024u      /* CODEC_BLOCK_TOKENS_MAX */
#define RESIDUAL_ERROR_UNIT_LOG2 6     /* errors are summed in 64ths of sigma */
#define RESIDUAL_ERROR_MAX 16384u      /* 256 sigma: an outlier says no more than that */
#define RESIDUAL_ERROR_SHIFT_MIN (-20) /* a scale so small that every error is an outlier */

/* One raw item each of a row's lanes. */
struct residual_round {
	uint16_t value[CODEC_LANES];
	uint8_t bits[CODEC_LANES]; /* 0: the lane has none, and its value is 0 */
};

struct residual_row {
	uint32_t enc[CODEC_LANES]; /* frequency | cost | start << 16 */
	uint32_t lanes;		   /* bit mask: which have a token */
	uint32_t rounds_count;
	size_t round_first;
};

/* All rows of a stream, in the decoder's order. */
struct residual_list {
	struct residual_row *row;     /* owned */
	struct residual_round *round; /* owned */
	size_t rows_count, rows_cap;
	size_t rounds_count, rounds_cap;
};

/* Of one token's rows. */
struct residual_weight {
	uint64_t cost; /* in 1 / RESIDUAL_COST_ONE bits, roughly */
	uint32_t escapes;
};

struct residual_stream {
	uint32_t state[CODEC_LANES];
	const uint8_t *words; /* borrowed, maybe unaligned, hostile */
	uint32_t words_left;
};

/* A part of a guess's |error|: root[scale & 3] is 2^(-(scale & 3) / 4) with 14 fraction bits. */
static const uint16_t residual_root[4] = { 16384, 13777, 11585, 9742 };

static inline int32_t residual_error_shift(int32_t scale)
{
	return (scale >> 2) + 14 - RESIDUAL_ERROR_UNIT_LOG2;
}

static inline uint32_t residual_group_lanes(const struct residual_segment *s, uint32_t group)
{
	uint32_t left = s->columns - group * CODEC_LANES;

	return left < CODEC_LANES ? left : CODEC_LANES;
}

/* What one stream codes of a segment. */
struct residual_share {
	uint32_t group_begin, group_end;
	uint32_t column_begin, column_end;
};

static inline struct residual_share residual_share_of(const struct residual_segment *s,
						      uint32_t stream, uint32_t streams_count)
{
	uint32_t groups = (s->columns + CODEC_LANES - 1u) / CODEC_LANES;
	struct residual_share h = { .group_begin = stream * groups / streams_count,
				    .group_end = (stream + 1u) * groups / streams_count };

	h.column_begin = h.group_begin * CODEC_LANES;
	h.column_end = h.group_end * CODEC_LANES;
	if (h.column_end > s->columns)
		h.column_end = s->columns;
	return h;
}

static inline uint32_t residual_lanes_mask(uint32_t lanes)
{
	return lanes < CODEC_LANES ? (1u << lanes) - 1u : 0xffffffffu;
}

/* residual_scalar.c */
uint32_t residual_pattern_at(const struct residual_segment *s, const uint8_t *patterns,
			     uint32_t token, uint32_t column);
uint32_t residual_error_at(const struct residual_segment *s, const uint8_t *patterns,
			   uint32_t token, uint32_t column);
int residual_take_symbol(struct residual_stream *st, uint32_t lane, const uint32_t *dec,
			 uint32_t *ret_symbol);

#endif
