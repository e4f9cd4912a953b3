/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_code.h - the `layer` speculator over blocks: its part of a profile, and coding a block with it.
 *
 * Section of a profile (format.h says where sections lie), little endian, every part aligned to 64 bytes:
 *
 *   header             struct layer_section
 *   rotary frequencies u64 * pairs, turns per token times 2^64
 *   token tables       2 * struct residual_freqs: of keys, of values and the rest
 *   segments           struct layer_section_segment * segments, in coding order
 *   of each segment, in that order, from a multiple of 64 on:
 *                      u32 in_mul * columns, i32 bias * columns, i32 mul * columns, i16 base * columns,
 *                      u8 shift * columns; and from a multiple of 64 on the weights, i8 * columns * inputs,
 *                      the inputs of a column together
 *
 * Inputs of a segment: all columns of the `inputs` segments before it in coding order.
 */
#ifndef SKVCD_GPU_CODEC_LAYER_CODE_H
#define SKVCD_GPU_CODEC_LAYER_CODE_H

#include "gpu/codec/internal.h"
#include "gpu/codec/layer.h"
#include "gpu/codec/residual_code.h"

#define LAYER_SECTION_MAGIC 0x5259414cu /* "LAYR" */
#define LAYER_SECTION_VERSION 1u
#define LAYER_TABLES 2u
#define LAYER_INPUTS_MAX (2u * LAYER_PREVIOUS_MAX + 1u)
#define LAYER_ALIGN 64u
#define LAYER_STREAM_BYTES 65536u /* raw, of one stream, at least: its states cost 128 */
#define LAYER_POOR_PERCENT 125u	  /* of what a profile promises: then perhaps `channel` is better */

struct layer_section {
	uint32_t magic;
	uint16_t version;
	uint8_t turn_round_bf16; /* 0 or 1 */
	uint8_t interleaved;	 /* 1: a pair is elements 2i, 2i + 1 of a head; 0: i, i + pairs */
	uint64_t bytes;		 /* of the section */
	uint32_t segments_count;
	uint32_t pairs;		    /* rotary pairs of a head; 0: keys are not turned */
	uint32_t previous;	    /* layers looked back */
	uint32_t expected_bits_q16; /* per scalar, on the fitted sample */
	uint64_t tokens_count;	    /* fitted */
	uint8_t reserved[24];
};

struct layer_section_segment {
	uint32_t segment; /* of the geometry */
	uint16_t inputs;  /* segments before this one in coding order */
	uint8_t tables;	  /* 0 .. LAYER_TABLES - 1 */
	uint8_t turned;
};

struct layer_segment {
	uint32_t segment;
	uint32_t columns;
	uint32_t column_first; /* of its inputs to others, in a token's row of all inputs */
	uint32_t input_first;  /* of those it takes, in such a row */
	uint32_t inputs;       /* columns of these */
	uint32_t head_dim;
	uint8_t tables, turned;
	struct residual_type type;
	const uint32_t *in_mul; /* borrowed from the section, like the next five */
	const int32_t *bias, *mul;
	const int16_t *base;
	const uint8_t *shift;
	const int8_t *weights; /* [columns][inputs] */
};

/* Immutable once parsed. */
struct layer_profile {
	struct layer_segment *segments; /* owned, in coding order */
	uint32_t segments_count;
	uint32_t columns;     /* of all segments: inputs of a token */
	uint32_t columns_max; /* of one segment */
	uint32_t streams_count;
	uint32_t pairs;
	uint32_t previous;
	uint8_t interleaved, turn_round_bf16;
	double expected_bits;
	const struct layer_section *section; /* borrowed, as it lies in a profile */
	const uint64_t *freq;		     /* borrowed from the section */
	struct residual_tables *tables;	     /* owned, LAYER_TABLES */
};

/* Bytes of a section; 0: more than a section can have. */
size_t layer_section_bytes(const struct codec_geometry *g,
			   const struct layer_section_segment *segments, uint32_t segments_count,
			   uint32_t pairs);

/* No section of this geometry is longer. */
size_t layer_section_bytes_max(const struct codec_geometry *g);

/* section: 64-byte aligned, borrowed as long as the profile lives.  -EBADMSG, -ENOMEM. */
int layer_profile_parse(const struct codec_geometry *g, const uint8_t *section, size_t bytes,
			struct layer_profile **ret);
struct layer_profile *layer_profile_free(struct layer_profile *p);

/* Scratch of one thread. */
struct layer_workspace;
struct layer_workspace *layer_workspace_free(struct layer_workspace *w);

/*
 * Code the predicted segments of one block.  raw: canonical packing of the whole block.  -ENOMEM, -ENOSPC.
 * Payload: u32 position of the first token, u32 streams, then the streams (residual_code.h).
 */
int layer_encode(struct layer_workspace **w, const struct codec_geometry *g,
		 const struct layer_profile *p, uint32_t position, const uint8_t *raw, uint8_t *out,
		 size_t cap, size_t *ret_bytes, uint64_t *escapes, struct residual_bits *bits);
/* Writes these segments of raw and nothing else.  -EBADMSG, -ENOMEM. */
int layer_decode(struct layer_workspace **w, const struct codec_geometry *g,
		 const struct layer_profile *p, const uint8_t *in, size_t in_bytes, uint8_t *raw);

/* ---- parts of it, for fitting ---- */

/* tokens * pairs turns, from this position on. */
void layer_turns(const struct layer_profile *p, uint32_t position, uint32_t tokens,
		 struct layer_turn *ret);
/* Fixed-point values of one segment's patterns, turned back: [tokens][columns]. */
void layer_values(const struct layer_profile *p, const struct layer_segment *s,
		  const struct layer_turn *turns, uint32_t tokens, const uint8_t *patterns,
		  int32_t *ret);
/* values -> inputs, into rows of p->columns. */
void layer_inputs(const struct layer_profile *p, const struct layer_segment *s, uint32_t tokens,
		  const int32_t *values, int8_t *inputs);
/* The guess of a segment: [tokens][columns]. */
void layer_guess(const struct layer_profile *p, const struct layer_segment *s,
		 const struct layer_turn *turns, uint32_t tokens, const int8_t *inputs,
		 int32_t *mu);

#endif
