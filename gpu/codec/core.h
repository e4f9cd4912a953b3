/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h - the integer core of the `channel` coder, shared by every implementation (scalar, AVX2,
 * AVX-512, CUDA).  What these few functions compute is the format; the kernels only do it faster.
 *
 * Rows and lanes.  A segment has heads * head_dim columns, cut into groups of CODEC_LANES; the lanes
 * of the last group beyond the columns code nothing.  Row (r, t) is group r of token t: lane l of it
 * is column CODEC_LANES * r + l.  Rows are coded group by group, and in a group token by token:
 *
 *   for each segment of the chunk: for each group r: for each token t: row (r, t)
 *
 * so that a group's columns, and all that belongs to them (top, width, flip, table), stay in registers
 * for block_tokens rows, and a lane's predecessor in time is its predecessor in the order.  Lane l
 * owns one rANS state and codes every column that is l modulo CODEC_LANES.
 *
 * Symbol.  A pattern is sign | magnitude.  The magnitude loses its `shift` low bits to the lane's low
 * bits, below; the rest, the cell, is counted downwards from the channel's `top` cell, so that channels of unlike scale
 * share tables: distance = top - cell, token = 2 * distance + (sign ^ flip).  With shift = mantissa
 * bits - 2 there are four cells to a binade: finer ones gained less than they cost in table size.  A
 * distance outside the channel's width is CODEC_TOKEN_ESC and the whole pattern goes out of line, so
 * the mapping is exact for every bit pattern, NaN, infinity, -0 and subnormals included.
 *
 * Table.  A channel has a table, or a run of CODEC_CONTEXTS tables of which the token of the same
 * channel one token earlier, that is of the same lane in the row before, picks one (0 when t is 0):
 * after RoPE a key's channel turns slowly, so its last sign and size tell the next (0.2 bits per key
 * scalar on measured caches; nothing for values).
 *
 * Low bits.  Each lane has a bit stream.  Every row in coded order appends the pattern's `shift` low
 * bits to it, least significant first; a lane without a column appends zeros, so that all lanes
 * advance alike.  Of the B bits (the sum of `shift` over the chunk's rows) that each lane has at the
 * end, the last min(CODEC_CARRIED_BITS, B) are carried: they lie, least significant first, in the low
 * half of the lane's initial coder state, whose rest is zero but for bit 16, and the decoder finds
 * them in the states it ends with.  The S bits before them are stored; format.h says how.
 *
 * No floating point, no allocation, no libc here: compilable by nvcc.
 */
#ifndef SKVCD_GPU_CODEC_CORE_H
#define SKVCD_GPU_CODEC_CORE_H

#include <stdint.h>

#ifdef __CUDACC__
#define CODEC_HD __host__ __device__ static inline
#else
#define CODEC_HD static inline
#endif

#define CODEC_LANES 32u
#define CODEC_PROB_BITS 10u
#define CODEC_PROB_SUM (1u << CODEC_PROB_BITS)
#define CODEC_WIDTH_MAX 63u /* distances 0..62 */
#define CODEC_TOKEN_ESC 126u
#define CODEC_TOKENS_COUNT 127u
#define CODEC_TOKENS_PITCH 128u /* entries of one table in the encoder's arrays */
#define CODEC_CONTEXTS 5u
#define CODEC_CONTEXT_NEAR_TOKENS 22u /* tokens below: distance < 11, "large" */
#define CODEC_SHIFT_MAX 8u
#define CODEC_STATE_LOW (1u << 16) /* states lie in [2^16, 2^32) between symbols */
/* The low half of each initial state carries low bits, so a chunk's states cost half as much. */
#define CODEC_CARRIED_BITS 16u

/* Which of a channel's tables: 0 without a predecessor in the block, else by size and sign. */
CODEC_HD uint32_t codec_context_of(uint32_t previous_token)
{
	return 1u + (previous_token & 1u) + (previous_token < CODEC_CONTEXT_NEAR_TOKENS ? 2u : 0u);
}

/*
 * Decoder table entry, one per probability slot: frequency (bits 0..9) | slot - start (10..19) |
 * token (20..26) | the context that the token makes for the next row (27..29).
 */
#define CODEC_DEC_BIAS_SHIFT 10u
#define CODEC_DEC_TOKEN_SHIFT 20u
#define CODEC_DEC_CONTEXT_SHIFT 27u
#define CODEC_DEC_FIELD_MASK 1023u
#define CODEC_DEC_TOKEN_MASK 127u

CODEC_HD uint32_t codec_dec_entry(uint32_t freq, uint32_t bias, uint32_t token)
{
	return freq | bias << CODEC_DEC_BIAS_SHIFT | token << CODEC_DEC_TOKEN_SHIFT |
	       codec_context_of(token) << CODEC_DEC_CONTEXT_SHIFT;
}

/*
 * Encoder table entry: frequency | start << 16 | floor(2^32 / frequency) << 32.  A frequency is at most
 * CODEC_PROB_SUM - 1.  For frequency 1 the reciprocal is one too small, like the quotients it gives.
 */
CODEC_HD uint64_t codec_enc_entry(uint32_t freq, uint32_t start)
{
	uint64_t rcp = freq > 1 ? ((uint64_t)1 << 32) / freq : 0xffffffffu;

	return freq | (uint64_t)start << 16 | rcp << 32;
}

/* Element i of little-endian patterns, which may lie anywhere; `bits` is 16 or 8. */
CODEC_HD uint32_t codec_pattern_at(const uint8_t *raw, uint64_t i, unsigned bits)
{
	return bits == 16u ? raw[2u * i] | (uint32_t)raw[2u * i + 1u] << 8 : raw[i];
}

/* `bits` is 16 or 8: the size of a pattern. */
CODEC_HD uint32_t codec_token_of(uint32_t pattern, unsigned bits, unsigned shift, uint32_t top,
				 uint32_t width, uint32_t flip)
{
	uint32_t sign = pattern >> (bits - 1u);
	uint32_t cell = (pattern & ((1u << (bits - 1u)) - 1u)) >> shift;
	uint32_t distance = top - cell; /* wraps to a huge value above the top */

	return distance < width ? 2u * distance + (sign ^ flip) : CODEC_TOKEN_ESC;
}

/* The inverse, for any token, valid or not (a hostile stream gives wrong patterns, never bad memory). */
CODEC_HD uint32_t codec_pattern_of(uint32_t token, uint32_t low, unsigned bits, unsigned shift,
				   uint32_t top, uint32_t flip)
{
	uint32_t cell = top - (token >> 1);
	uint32_t sign = (token & 1u) ^ flip;

	return (((cell << shift) | low) & ((1u << (bits - 1u)) - 1u)) | sign << (bits - 1u);
}

/*
 * One rANS step each way.  The encoder first gives up a word when the state would overflow; it runs
 * backwards over the rows and over a row's lanes and writes its words backwards, the decoder reads both forwards.
 */
CODEC_HD int codec_rans_encode_spills(uint32_t state, uint32_t freq)
{
	return state >= freq << (32u - CODEC_PROB_BITS);
}

CODEC_HD uint32_t codec_rans_encode_step(uint32_t state, uint32_t freq, uint32_t start)
{
	return (state / freq << CODEC_PROB_BITS) + state % freq + start;
}

CODEC_HD uint32_t codec_rans_decode_step(uint32_t state, uint32_t entry)
{
	return (entry & CODEC_DEC_FIELD_MASK) * (state >> CODEC_PROB_BITS) +
	       (entry >> CODEC_DEC_BIAS_SHIFT & CODEC_DEC_FIELD_MASK);
}

#endif
