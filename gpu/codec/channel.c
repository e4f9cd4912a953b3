/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel.c - one chunk by static statistics per channel: tokens and low bits, then rANS over the
 * tokens.  Lays the kernels' outputs out as format.h says, and reads them back from hostile bytes.
 *
 * Runs on the caller's thread with the caller's workspace.
 */
#include "gpu/codec/internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define STATES_BYTES (CODEC_LANES * 4u)

struct chunk_shape {
	const struct codec_run *runs;
	uint32_t runs_count;
	size_t scalars;
	size_t rows;
	size_t low_bits; /* of a lane, the carried ones included */
	size_t stored_bits;
};

static struct chunk_shape chunk_shape(const struct codec_geometry *g, const struct codec_profile *p,
				      uint32_t chunk)
{
	uint32_t first = g->chunk_first_segment[chunk], end = g->chunk_first_segment[chunk + 1];
	struct chunk_shape c = { .runs = &p->runs[first], .runs_count = end - first };

	for (uint32_t i = 0; i < c.runs_count; i++) {
		const struct codec_run *run = &c.runs[i];
		size_t rows = (size_t)run->tokens_count * run->rows_per_token;

		assert(run->columns > 0);
		c.rows += rows;
		c.low_bits += rows * run->shift;
		c.scalars += (size_t)run->tokens_count * run->columns;
	}
	if (c.low_bits > CODEC_CARRIED_BITS)
		c.stored_bits = c.low_bits - CODEC_CARRIED_BITS;
	return c;
}

/* Rows of 32-bit words that hold so many bits of every lane, and what they take in memory. */
static size_t low_rows(size_t bits)
{
	return (bits + 31u) / 32u;
}

static size_t low_row_bytes(size_t rows)
{
	return rows * CODEC_LANES * sizeof(uint32_t);
}

/* A payload's low bits: whole rows of words, then a row that may be of half words. */
static size_t stored_bytes(size_t bits)
{
	size_t whole = low_row_bytes(bits / 32u), rest = bits % 32u;

	if (rest == 0)
		return whole;
	return whole + CODEC_LANES * (rest <= 16u ? sizeof(uint16_t) : sizeof(uint32_t));
}

static int slot_reserve(struct codec_slot *slot, const struct chunk_shape *c)
{
	int r = codec_workspace_grow((void **)&slot->tokens, &slot->tokens_cap,
				     c->rows * CODEC_LANES);

	if (r == 0)
		r = codec_workspace_grow((void **)&slot->low, &slot->low_cap,
					 low_row_bytes(low_rows(c->low_bits)));
	return r;
}

static int output_reserve(struct codec_workspace *ws, const struct chunk_shape *c)
{
	size_t words = c->scalars + CODEC_WORDS_SLACK;
	size_t coded = STATES_BYTES + stored_bytes(c->stored_bits) + c->scalars * 4u;
	int r = codec_workspace_grow((void **)&ws->words, &ws->words_cap, words * 2u);

	if (r == 0)
		r = codec_workspace_grow((void **)&ws->coded, &ws->coded_cap, coded);
	return r;
}

/* The stored bits of the streams into a payload; what shares a word with them stays behind. */
static uint8_t *low_store(const uint32_t *low, size_t bits, uint8_t *out)
{
	size_t whole = low_row_bytes(bits / 32u), rest = bits % 32u;

	if (whole > 0)
		memcpy(out, low, whole);
	out += whole;
	low += bits / 32u * CODEC_LANES;
	for (uint32_t l = 0; rest > 0 && l < CODEC_LANES; l++) {
		uint32_t word = low[l] & ((1u << rest) - 1u);
		size_t bytes = rest <= 16u ? sizeof(uint16_t) : sizeof(uint32_t);

		memcpy(out, &word, bytes); /* little endian: its low half */
		out += bytes;
	}
	return out;
}

/* The inverse; -EBADMSG when there are bits beyond the stored ones. */
static int low_load(uint32_t *low, size_t bits, const uint8_t *in)
{
	size_t whole = low_row_bytes(bits / 32u), rest = bits % 32u;
	uint32_t beyond = 0;

	if (whole > 0)
		memcpy(low, in, whole);
	in += whole;
	low += bits / 32u * CODEC_LANES;
	for (uint32_t l = 0; rest > 0 && l < CODEC_LANES; l++) {
		size_t bytes = rest <= 16u ? sizeof(uint16_t) : sizeof(uint32_t);

		low[l] = 0;
		memcpy(&low[l], in, bytes);
		in += bytes;
		beyond |= low[l] >> rest;
	}
	return beyond == 0 ? 0 : -EBADMSG;
}

/* What the coder's states carry, and its way back.  Both may cross from one word to the next. */
static void low_carry(const uint32_t *low, const struct chunk_shape *c, uint32_t *states)
{
	size_t carried = c->low_bits - c->stored_bits;
	unsigned at = c->stored_bits % 32u;

	low += c->stored_bits / 32u * CODEC_LANES;
	for (uint32_t l = 0; l < CODEC_LANES; l++) {
		uint32_t bits = 0;

		if (carried > 0)
			bits = low[l] >> at;
		if (at + carried > 32u)
			bits |= low[CODEC_LANES + l] << (32u - at);
		states[l] = CODEC_STATE_LOW | (bits & ((1u << carried) - 1u));
	}
}

/* The coder must have ended in states that a coder starts from. */
static int low_carry_back(uint32_t *low, const struct chunk_shape *c, const uint32_t *states)
{
	size_t carried = c->low_bits - c->stored_bits;
	unsigned at = c->stored_bits % 32u;

	low += c->stored_bits / 32u * CODEC_LANES;
	for (uint32_t l = 0; l < CODEC_LANES; l++) {
		uint32_t bits = states[l] & 0xffffu;

		if (states[l] >> 16 != 1u || bits >> carried != 0)
			return -EBADMSG;
		if (carried > 0)
			low[l] = (at ? low[l] : 0) | bits << at;
		if (at + carried > 32u)
			low[CODEC_LANES + l] = bits >> (32u - at);
	}
	return 0;
}

/* Patterns of the escaped tokens, in coded order.  Rare, so a plain scan. */
static uint8_t *escapes_collect(const struct codec_run *run, const uint8_t *raw,
				const uint8_t *tokens, uint8_t *out)
{
	size_t bytes = run->bits / 8u;
	const uint8_t *at = tokens;
	const uint8_t *end = tokens + (size_t)run->tokens_count * run->rows_per_token * CODEC_LANES;

	/* Lanes without a column have token 0. */
	while (at < end && (at = memchr(at, CODEC_TOKEN_ESC, (size_t)(end - at)))) {
		size_t row = (size_t)(at - tokens) / CODEC_LANES;
		size_t lane = (size_t)(at - tokens) % CODEC_LANES;
		size_t column = row / run->tokens_count * CODEC_LANES + lane;

		memcpy(out, raw + (row % run->tokens_count * run->columns + column) * bytes, bytes);
		out += bytes;
		at++;
	}
	return out;
}

static uint32_t chunk_tokenize(struct codec_slot *slot, const struct codec_kernels *k,
			       const struct chunk_shape *c)
{
	const uint8_t *raw = slot->raw;
	uint8_t *tokens = slot->tokens;
	uint32_t escapes = 0;
	size_t low_bit = 0;

	for (uint32_t i = 0; i < c->runs_count; i++) {
		const struct codec_run *run = &c->runs[i];
		size_t rows = (size_t)run->tokens_count * run->rows_per_token;

		escapes += k->tokenize(run, raw, tokens, slot->low, low_bit);
		raw += (size_t)run->tokens_count * run->columns * (run->bits / 8u);
		tokens += rows * CODEC_LANES;
		low_bit += rows * run->shift;
	}
	return escapes;
}

static uint8_t *chunk_escapes(const struct codec_slot *slot, const struct chunk_shape *c,
			      uint8_t *out)
{
	const uint8_t *raw = slot->raw, *tokens = slot->tokens;

	for (uint32_t i = 0; i < c->runs_count; i++) {
		const struct codec_run *run = &c->runs[i];

		out = escapes_collect(run, raw, tokens, out);
		raw += (size_t)run->tokens_count * run->columns * (run->bits / 8u);
		tokens += (size_t)run->tokens_count * run->rows_per_token * CODEC_LANES;
	}
	return out;
}

/* -E2BIG: more escapes than a chunk can say, keep it some other way. */
int codec_channel_encode(struct codec_workspace *ws, struct codec_slot *slot,
			 const struct codec_geometry *g, const struct codec_profile *p,
			 uint32_t chunk, size_t *ret_bytes, uint32_t *ret_escapes,
			 uint32_t *ret_escape_bytes)
{
	const struct codec_kernels *k = codec_kernels_get();
	struct chunk_shape c = chunk_shape(g, p, chunk);
	uint32_t states[CODEC_LANES], escapes;
	uint16_t *end, *words;
	uint8_t *out;
	int r = slot_reserve(slot, &c);

	if (r == 0)
		r = output_reserve(ws, &c);
	if (r < 0)
		return r;
	escapes = chunk_tokenize(slot, k, &c);
	if (escapes > UINT16_MAX / 2u || escapes > c.scalars / 8u)
		return -E2BIG;
	low_carry(slot->low, &c, states);
	end = ws->words + c.scalars + CODEC_WORDS_SLACK;
	words = k->encode(p, c.runs, c.runs_count, slot->tokens, states, end);
	assert(words >= ws->words + CODEC_WORDS_SLACK);

	out = ws->coded;
	memcpy(out, states, STATES_BYTES);
	out = low_store(slot->low, c.stored_bits, out + STATES_BYTES);
	memcpy(out, words, (size_t)(end - words) * 2u);
	out += (size_t)(end - words) * 2u;
	*ret_escape_bytes = 0;
	if (escapes) {
		uint8_t *begin = out;

		out = chunk_escapes(slot, &c, out);
		*ret_escape_bytes = (uint32_t)(out - begin);
	}
	assert((size_t)(out - ws->coded) <= ws->coded_cap);
	*ret_bytes = (size_t)(out - ws->coded);
	*ret_escapes = escapes;
	return 0;
}

static int chunk_rebuild(const struct codec_slot *slot, const struct codec_kernels *k,
			 const struct chunk_shape *c, const uint8_t *escapes, size_t escape_bytes,
			 uint8_t *out)
{
	const uint8_t *tokens = slot->tokens;
	size_t low_bit = 0;

	for (uint32_t i = 0; i < c->runs_count; i++) {
		const struct codec_run *run = &c->runs[i];
		size_t rows = (size_t)run->tokens_count * run->rows_per_token;
		size_t bytes = run->bits / 8u, there = escape_bytes / bytes;
		uint32_t used = k->rebuild(run, tokens, slot->low, low_bit, escapes,
					   (uint32_t)there, out);

		if (used > there)
			return -EBADMSG;
		escapes += used * bytes;
		escape_bytes -= used * bytes;
		tokens += rows * CODEC_LANES;
		low_bit += rows * run->shift;
		out += (size_t)run->tokens_count * run->columns * bytes;
	}
	return escape_bytes == 0 ? 0 : -EBADMSG;
}

int codec_channel_open(struct codec_slot *slot, const struct codec_geometry *g,
		       const struct codec_profile *p, uint32_t chunk, const uint8_t *in,
		       size_t in_bytes, uint32_t escape_bytes, struct codec_stream *ret_stream)
{
	struct chunk_shape c = chunk_shape(g, p, chunk);
	size_t stored = stored_bytes(c.stored_bits);
	size_t fixed = STATES_BYTES + stored + escape_bytes, words;
	int r;

	if (in_bytes < fixed || (in_bytes - fixed) % 2u != 0)
		return -EBADMSG;
	words = (in_bytes - fixed) / 2u;
	if (words > c.scalars)
		return -EBADMSG;
	r = slot_reserve(slot, &c);
	if (r < 0)
		return r;
	*ret_stream = (struct codec_stream){
		.runs = c.runs,
		.runs_count = c.runs_count,
		.words = in + STATES_BYTES + stored,
		.words_count = (uint32_t)words,
		.tokens = slot->tokens,
	};
	memcpy(ret_stream->states, in, STATES_BYTES);
	for (uint32_t l = 0; l < CODEC_LANES; l++)
		if (ret_stream->states[l] < CODEC_STATE_LOW)
			return -EBADMSG;
	return low_load(slot->low, c.stored_bits, in + STATES_BYTES);
}

int codec_channel_close(struct codec_slot *slot, const struct codec_geometry *g,
			const struct codec_profile *p, uint32_t chunk, uint32_t escape_bytes,
			const struct codec_stream *stream, uint8_t *out)
{
	struct chunk_shape c = chunk_shape(g, p, chunk);
	int r = stream->res;

	if (r == 0)
		r = low_carry_back(slot->low, &c, stream->states);
	if (r < 0)
		return r;
	return chunk_rebuild(slot, codec_kernels_get(), &c,
			     stream->words + 2u * (size_t)stream->words_count, escape_bytes, out);
}
