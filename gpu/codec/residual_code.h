/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_code.h - the residual coder over whole segments: rANS streams that run on through all the
 * predicted segments of a block, so that a small block pays for its coder states once.
 *
 * A block has residual_streams() streams.  Stream s of N codes, of every segment, the column groups
 * [s * G / N, (s + 1) * G / N) of its G groups of CODEC_LANES columns.  A token has one tau for the columns
 * of residual_tau_streams() streams, K of them from a multiple of K on; the first of these codes it.  Of
 * each segment in order:
 *
 *   ceil(T / 32) rows of tau symbols, token t in lane t % 32 of row t / 32, if the stream codes any
 *   for each group of columns, for each token: a row
 *
 * A row's tokens come first, in lane order, then rounds: raw item i of every lane that has one, in lane
 * order.  A token is one rANS step under the table of its class; a raw item of n bits takes the low n
 * bits of the state.  After each step a state below 2^16 takes one word of the stream.  The row of a
 * token whose tau is RESIDUAL_TAU_RAW has one raw item a lane, the pattern.
 *
 * Not thread safe; one object per thread.  The decoder trusts nothing but the sizes that its caller gives.
 */
#ifndef SKVCD_GPU_CODEC_RESIDUAL_CODE_H
#define SKVCD_GPU_CODEC_RESIDUAL_CODE_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/residual.h"

#define RESIDUAL_STREAMS_MAX 64u
#define RESIDUAL_STREAM_SCALARS \
	49152u		       /* of one stream of `model`, at least: its states cost 1024 bits */
#define RESIDUAL_TAU_GROUPS 4u /* so many columns share a tau, at least */

/* The token statistics of one sort of segment (keys or values), frozen. */
struct residual_tables {
	uint32_t dec[RESIDUAL_CLASSES][CODEC_PROB_SUM];	 /* codec_dec_entry */
	uint32_t enc[RESIDUAL_CLASSES][RESIDUAL_TOKENS]; /* residual_rows.h has the fields */
	uint32_t tau_dec[CODEC_PROB_SUM];
	uint32_t tau_enc[RESIDUAL_TAU_SYMBOLS];
};

/* Frequencies as a profile has them; each class sums to CODEC_PROB_SUM. */
struct residual_freqs {
	uint16_t token[RESIDUAL_CLASSES][RESIDUAL_TOKENS]; /* RESIDUAL_ESC is never 0 */
	uint16_t tau[RESIDUAL_TAU_SYMBOLS];		   /* none is 0 */
};

/* -EBADMSG: a sum is wrong, or a frequency is 0 that may not be. */
int residual_tables_build(const struct residual_freqs *f, struct residual_tables *t);

/* One segment of one block, to be coded. */
struct residual_segment {
	uint32_t tokens_count;
	uint32_t columns;
	struct residual_type type;
	const struct residual_tables *tables; /* borrowed, like the next two */
	const int16_t *base;		      /* [columns] scale of each, before tau */
	const int32_t *mu;		      /* [tokens_count][columns] */
};

/* What coding takes in theory, by the tables: in bits. */
struct residual_bits {
	double token, raw, tau;
};

/* Streams of a block of this size, in any unit, whose narrowest segment has so many columns: a power of two.
 * Each has so much of the size and so many column groups, at least. */
uint32_t residual_streams(uint64_t size, uint32_t columns_min, uint32_t size_each,
			  uint32_t groups_each);
/* Streams that share a token's tau in a segment of so many columns: a power of two, divides streams_count. */
CODEC_HD uint32_t residual_tau_streams(uint32_t columns, uint32_t streams_count)
{
	const uint32_t groups = (columns + CODEC_LANES - 1u) / CODEC_LANES;
	uint32_t k = 1;

	while (streams_count / k * RESIDUAL_TAU_GROUPS > groups && streams_count / k % 2u == 0)
		k *= 2u;
	return k;
}

struct residual_encoder;
struct residual_decoder;

int residual_encoder_new(struct residual_encoder **ret);
struct residual_encoder *residual_encoder_free(struct residual_encoder *e);
void residual_encoder_start(struct residual_encoder *e, uint32_t streams_count);
/* patterns: [tokens_count][columns] of the element's size, little endian.  -ENOMEM.  *escapes grows by the
 * scalars that were escaped, *bits (may be NULL) by the code length. */
int residual_encode(struct residual_encoder *e, const struct residual_segment *s,
		    const uint8_t *patterns, uint64_t *escapes, struct residual_bits *bits);
/*
 * Everything coded since the start, as bytes: u32 words of each stream, padded to a multiple of 8 bytes;
 * 32 x u32 states of each; u16 words of each.  -ENOSPC.
 */
int residual_encoder_finish(struct residual_encoder *e, uint8_t *out, size_t cap,
			    size_t *ret_bytes);

int residual_decoder_new(struct residual_decoder **ret);
struct residual_decoder *residual_decoder_free(struct residual_decoder *d);
/* in is borrowed until the finish.  -EBADMSG. */
int residual_decoder_start(struct residual_decoder *d, uint32_t streams_count, const uint8_t *in,
			   size_t in_bytes);
/* patterns: written, as above.  -EBADMSG. */
int residual_decode(struct residual_decoder *d, const struct residual_segment *s,
		    uint8_t *patterns);
/* -EBADMSG: something is left, or the states are not those that an encoder begins with. */
int residual_decoder_finish(struct residual_decoder *d);

/* The step for one token's row slice that fits its errors best, 0 .. RESIDUAL_TAU_COUNT - 1. */
uint32_t residual_pick_tau(const struct residual_segment *s, const uint8_t *patterns,
			   uint32_t token, uint32_t column_begin, uint32_t column_end);

/* Counts for fitting tables: what coding this segment would use. */
struct residual_counts {
	double token[RESIDUAL_CLASSES][RESIDUAL_TOKENS];
	double tau[RESIDUAL_TAU_SYMBOLS];
	double raw_bits;
};
void residual_count(struct residual_counts *c, const struct residual_segment *s,
		    const uint8_t *patterns, uint32_t streams_count);
/* Bits that what was counted takes under these tables. */
double residual_freqs_bits(const struct residual_counts *c, const struct residual_freqs *f);
void residual_freqs_fit(const struct residual_counts *c, struct residual_freqs *ret);

#endif
