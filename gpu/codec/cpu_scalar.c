/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_scalar.c - the reference kernels, straight from core.h.  What they produce is the format; the
 * vector kernels must produce the same bytes, and use the row steps here for what does not fill a
 * vector.
 *
 * Pure functions over their arguments; any thread.  The decoder trusts nothing but array sizes.
 */
#include "gpu/codec/internal.h"

#include <errno.h>
#include <string.h>

#include "gpu/codec/checksum.h"

static uint32_t load_u16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

uint32_t codec_scalar_tokenize_row(const struct codec_run *run, uint32_t column, uint32_t lanes,
				   const uint8_t *raw, uint8_t *tokens, uint32_t *planes)
{
	uint32_t escapes = 0;

	for (unsigned k = 0; k < run->shift; k++)
		planes[k] = 0;
	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t pattern = run->bits == 16 ? load_u16(raw + 2u * l) : raw[l];
		uint32_t c = column + l;
		uint32_t token = codec_token_of(pattern, run->bits, run->shift, run->top[c],
						run->width[c], run->flip[c]);

		tokens[l] = (uint8_t)token;
		escapes += token == CODEC_TOKEN_ESC;
		for (unsigned k = 0; k < run->shift; k++)
			planes[k] |= (pattern >> k & 1u) << l;
	}
	return escapes;
}

static uint32_t row_lanes(const struct codec_run *run, uint32_t row)
{
	uint32_t left = run->columns - row * CODEC_LANES;

	return left < CODEC_LANES ? left : CODEC_LANES;
}

static uint32_t scalar_tokenize(const struct codec_run *run, const uint8_t *raw, uint8_t *tokens,
				uint32_t *planes)
{
	uint32_t escapes = 0, bytes = run->bits / 8u;

	for (uint32_t t = 0; t < run->tokens_count; t++)
		for (uint32_t r = 0; r < run->rows_per_token; r++) {
			uint32_t lanes = row_lanes(run, r);

			escapes += codec_scalar_tokenize_row(run, r * CODEC_LANES, lanes, raw,
							     tokens, planes);
			raw += (size_t)lanes * bytes;
			tokens += CODEC_LANES;
			planes += run->shift;
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
		size_t pitch = (size_t)run->rows_per_token * CODEC_LANES;

		for (uint32_t t = run->tokens_count; t-- > 0;)
			for (uint32_t r = run->rows_per_token; r-- > 0;) {
				const uint8_t *previous = run->context && t > 0 ? tokens - pitch
										: NULL;

				tokens -= CODEC_LANES;
				if (previous)
					previous -= CODEC_LANES;
				end = codec_scalar_encode_row(p, run->table + r * CODEC_LANES,
							      previous, tokens, row_lanes(run, r),
							      states, end);
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

		tokens[l] = (uint8_t)(e >> CODEC_DEC_TOKEN_SHIFT);
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
		size_t pitch = (size_t)run->rows_per_token * CODEC_LANES;

		for (uint32_t t = 0; t < run->tokens_count; t++)
			for (uint32_t r = 0; r < run->rows_per_token; r++) {
				const uint8_t *previous = run->context && t > 0 ? tokens - pitch
										: NULL;
				int64_t n = codec_scalar_decode_row(
					p, run->table + r * CODEC_LANES, previous,
					row_lanes(run, r), s->words + 2u * (size_t)used,
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

uint32_t codec_scalar_rebuild_row(const struct codec_run *run, uint32_t column, uint32_t lanes,
				  const uint8_t *tokens, const uint32_t *planes,
				  const uint8_t *escapes, uint32_t escapes_count, uint8_t *raw)
{
	uint32_t used = 0;

	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t c = column + l, low = 0, pattern;

		for (unsigned k = 0; k < run->shift; k++)
			low |= (planes[k] >> l & 1u) << k;
		pattern = codec_pattern_of(tokens[l], low, run->bits, run->shift, run->top[c],
					   run->flip[c]);
		if (tokens[l] == CODEC_TOKEN_ESC) {
			if (used < escapes_count)
				pattern = run->bits == 16 ? load_u16(escapes + 2u * used)
							  : escapes[used];
			used++;
		}
		if (run->bits == 16) {
			uint16_t v = (uint16_t)pattern;

			memcpy(raw + 2u * l, &v, sizeof(v));
		} else {
			raw[l] = (uint8_t)pattern;
		}
	}
	return used;
}

static uint32_t scalar_rebuild(const struct codec_run *run, const uint8_t *tokens,
			       const uint32_t *planes, const uint8_t *escapes,
			       uint32_t escapes_count, uint8_t *raw)
{
	uint32_t used = 0, bytes = run->bits / 8u;

	for (uint32_t t = 0; t < run->tokens_count; t++)
		for (uint32_t r = 0; r < run->rows_per_token; r++) {
			uint32_t lanes = row_lanes(run, r);

			if (used > escapes_count)
				return used;
			used += codec_scalar_rebuild_row(run, r * CODEC_LANES, lanes, tokens,
							 planes, escapes + (size_t)bytes * used,
							 escapes_count - used, raw);
			raw += (size_t)lanes * bytes;
			tokens += CODEC_LANES;
			planes += run->shift;
		}
	return used;
}

static void scalar_checksum(struct checksum *c, const void *buf, size_t bytes)
{
	checksum_update(c, buf, bytes);
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
	.checksum = scalar_checksum,
};
