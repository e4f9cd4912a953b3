/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_scalar.c - the reference kernels, straight from core.h.  What they produce is the format; the
 * vector kernels must produce the same bytes, and use parts of it for what does not fill a
 * vector.
 *
 * Pure functions over their arguments; any thread.  The decoder trusts nothing but array sizes.
 */
#include "gpu/codec/internal.h"

#include <errno.h>
#include <string.h>

#include "gpu/codec/cpu_leaves.h"

static uint32_t load_u16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* A row's low bits into the lanes' streams.  A word is written whole when its first bit is. */
static void low_push(uint32_t *low, size_t bit, unsigned shift, const uint32_t *bits)
{
	uint32_t *row = low + bit / 32u * CODEC_LANES;
	unsigned at = bit % 32u;

	for (uint32_t l = 0; shift > 0 && l < CODEC_LANES; l++) {
		uint64_t word = (uint64_t)bits[l] << at;

		row[l] = (at ? row[l] : 0) | (uint32_t)word;
		if (at + shift > 32u)
			row[CODEC_LANES + l] = (uint32_t)(word >> 32);
	}
}

static uint32_t low_pull(const uint32_t *low, size_t bit, unsigned shift, uint32_t lane)
{
	const uint32_t *word = low + bit / 32u * CODEC_LANES + lane;
	unsigned at = bit % 32u;
	uint32_t bits;

	if (shift == 0)
		return 0;
	bits = *word >> at;
	if (at + shift > 32u)
		bits |= word[CODEC_LANES] << (32u - at);
	return bits & ((1u << shift) - 1u);
}

uint32_t codec_scalar_tokenize_group(const struct codec_run *run, uint32_t group,
				     const uint8_t *raw, uint8_t *tokens, uint32_t *low,
				     size_t low_bit)
{
	uint32_t escapes = 0, bytes = run->bits / 8u, first = group * CODEC_LANES;
	uint32_t lanes = codec_group_lanes(run, group);

	raw += (size_t)first * bytes;
	for (uint32_t t = 0; t < run->tokens_count; t++) {
		uint32_t bits[CODEC_LANES] = { 0 };

		memset(tokens, 0, CODEC_LANES);
		for (uint32_t l = 0; l < lanes; l++) {
			uint32_t pattern = bytes == 2 ? load_u16(raw + 2u * l) : raw[l];
			uint32_t c = first + l;
			uint32_t token = codec_token_of(pattern, run->bits, run->shift, run->top[c],
							run->width[c], run->flip[c]);

			tokens[l] = (uint8_t)token;
			escapes += token == CODEC_TOKEN_ESC;
			bits[l] = pattern & ((1u << run->shift) - 1u);
		}
		low_push(low, low_bit, run->shift, bits);
		low_bit += run->shift;
		tokens += CODEC_LANES;
		raw += (size_t)run->columns * bytes;
	}
	return escapes;
}

static uint32_t scalar_tokenize(const struct codec_run *run, const uint8_t *raw, uint8_t *tokens,
				uint32_t *low, size_t low_bit)
{
	uint32_t escapes = 0;

	for (uint32_t r = 0; r < run->rows_per_token; r++) {
		escapes += codec_scalar_tokenize_group(run, r, raw, tokens, low, low_bit);
		tokens += (size_t)run->tokens_count * CODEC_LANES;
		low_bit += (size_t)run->tokens_count * run->shift;
	}
	return escapes;
}

uint16_t *codec_scalar_encode_row(const struct codec_profile *p, const uint16_t *table,
				  const uint8_t *previous, const uint8_t *tokens, uint32_t lanes,
				  uint32_t *states, uint16_t *end)
{
	for (uint32_t l = lanes; l-- > 0;) {
		uint32_t t = table[l] + (previous ? codec_context_of(previous[l]) : 0);
		uint32_t e = (uint32_t)p->enc[t * CODEC_TOKENS_PITCH + tokens[l]];
		uint32_t freq = e & 0xffffu;

		if (codec_rans_encode_spills(states[l], freq)) {
			*--end = (uint16_t)states[l];
			states[l] >>= 16;
		}
		states[l] = codec_rans_encode_step(states[l], freq, e >> 16);
	}
	return end;
}

static uint16_t *scalar_encode(const struct codec_profile *p, const struct codec_run *runs,
			       uint32_t runs_count, const uint8_t *tokens, uint32_t *states,
			       uint16_t *end)
{
	for (uint32_t i = 0; i < runs_count; i++)
		tokens += (size_t)runs[i].tokens_count * runs[i].rows_per_token * CODEC_LANES;
	for (uint32_t i = runs_count; i-- > 0;) {
		const struct codec_run *run = &runs[i];

		for (uint32_t r = run->rows_per_token; r-- > 0;)
			for (uint32_t t = run->tokens_count; t-- > 0;) {
				tokens -= CODEC_LANES;
				end = codec_scalar_encode_row(
					p, run->table + r * CODEC_LANES,
					run->context && t > 0 ? tokens - CODEC_LANES : NULL, tokens,
					codec_group_lanes(run, r), states, end);
			}
	}
	return end;
}

int64_t codec_scalar_decode_row(const struct codec_profile *p, const uint16_t *table,
				const uint8_t *previous, uint32_t lanes, const uint8_t *words,
				uint32_t words_left, uint32_t *states, uint8_t *tokens)
{
	uint32_t used = 0;

	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t t = table[l] + (previous ? codec_context_of(previous[l]) : 0);
		uint32_t slot = states[l] & (CODEC_PROB_SUM - 1u);
		uint32_t e = p->dec[t * CODEC_PROB_SUM + slot];

		tokens[l] = (uint8_t)(e >> CODEC_DEC_TOKEN_SHIFT & CODEC_DEC_TOKEN_MASK);
		states[l] = codec_rans_decode_step(states[l], e);
		if (states[l] < CODEC_STATE_LOW) {
			if (used == words_left)
				return -EBADMSG;
			states[l] = states[l] << 16 | load_u16(words + 2u * used);
			used++;
		}
	}
	return used;
}

static int stream_decode(const struct codec_profile *p, struct codec_stream *s)
{
	uint8_t *tokens = s->tokens;
	uint32_t used = 0;

	for (uint32_t i = 0; i < s->runs_count; i++) {
		const struct codec_run *run = &s->runs[i];

		for (uint32_t r = 0; r < run->rows_per_token; r++)
			for (uint32_t t = 0; t < run->tokens_count; t++) {
				int64_t n = codec_scalar_decode_row(
					p, run->table + r * CODEC_LANES,
					run->context && t > 0 ? tokens - CODEC_LANES : NULL,
					codec_group_lanes(run, r), s->words + 2u * (size_t)used,
					s->words_count - used, s->states, tokens);

				if (n < 0)
					return (int)n;
				used += (uint32_t)n;
				tokens += CODEC_LANES;
			}
	}
	return used == s->words_count ? 0 : -EBADMSG;
}

static void scalar_decode(const struct codec_profile *p, struct codec_stream *streams,
			  uint32_t streams_count)
{
	for (uint32_t i = 0; i < streams_count; i++)
		streams[i].res = stream_decode(p, &streams[i]);
}

uint32_t codec_scalar_rebuild_group(const struct codec_run *run, uint32_t group,
				    const uint8_t *tokens, const uint32_t *low, size_t low_bit,
				    const uint8_t *escapes, uint32_t escapes_count, uint8_t *raw)
{
	uint32_t used = 0, bytes = run->bits / 8u, first = group * CODEC_LANES;
	uint32_t lanes = codec_group_lanes(run, group);

	raw += (size_t)first * bytes;
	for (uint32_t t = 0; t < run->tokens_count; t++) {
		for (uint32_t l = 0; l < lanes; l++) {
			uint32_t c = first + l, bits = low_pull(low, low_bit, run->shift, l);
			uint32_t pattern = codec_pattern_of(tokens[l], bits, run->bits, run->shift,
							    run->top[c], run->flip[c]);

			if (tokens[l] == CODEC_TOKEN_ESC) {
				if (used < escapes_count)
					pattern = bytes == 2 ? load_u16(escapes + 2u * used)
							     : escapes[used];
				used++;
			}
			if (bytes == 2) {
				uint16_t v = (uint16_t)pattern;

				memcpy(raw + 2u * l, &v, sizeof(v));
			} else {
				raw[l] = (uint8_t)pattern;
			}
		}
		low_bit += run->shift;
		tokens += CODEC_LANES;
		raw += (size_t)run->columns * bytes;
	}
	return used;
}

static uint32_t scalar_rebuild(const struct codec_run *run, const uint8_t *tokens,
			       const uint32_t *low, size_t low_bit, const uint8_t *escapes,
			       uint32_t escapes_count, uint8_t *raw)
{
	uint32_t used = 0, bytes = run->bits / 8u;

	for (uint32_t r = 0; r < run->rows_per_token; r++) {
		if (used > escapes_count)
			return used;
		used += codec_scalar_rebuild_group(run, r, tokens, low, low_bit,
						   escapes + (size_t)bytes * used,
						   escapes_count - used, raw);
		tokens += (size_t)run->tokens_count * CODEC_LANES;
		low_bit += (size_t)run->tokens_count * run->shift;
	}
	return used;
}

static void scalar_leaves(const struct codec_leaf_shape *shape, const uint8_t *raw,
			  uint64_t *leaves)
{
	leaves_compute(shape, raw, leaves);
}

static bool scalar_supported(void)
{
	return true;
}

const struct codec_kernels codec_kernels_scalar = {
	.name = "scalar",
	.supported = scalar_supported,
	.tokenize = scalar_tokenize,
	.encode = scalar_encode,
	.decode = scalar_decode,
	.rebuild = scalar_rebuild,
	.leaves = scalar_leaves,
	.residual_errors = residual_scalar_errors,
	.residual_symbols = residual_scalar_symbols,
	.residual_code = residual_scalar_code,
	.residual_decode = residual_scalar_decode,
	.layer_values = layer_scalar_values,
	.layer_inputs = layer_scalar_inputs,
	.layer_outputs = layer_scalar_outputs,
	.layer_turn = layer_scalar_turn,
	.product_i8 = product_scalar_i8,
};
