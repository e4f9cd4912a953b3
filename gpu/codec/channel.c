/* SPDX-License-Identifier: Apache-2.0 */
/*
 * channel.c - one chunk by static statistics per channel: tokens and bit planes, then rANS over the
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
	size_t planes; /* bit-plane words, the carried ones included */
	size_t carried;
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
		c.planes += rows * run->shift;
		c.scalars += (size_t)run->tokens_count * run->columns;
	}
	c.carried = c.planes < CODEC_CARRIED_WORDS ? c.planes : CODEC_CARRIED_WORDS;
	return c;
}

static int slot_reserve(struct codec_slot *slot, const struct chunk_shape *c)
{
	int r = codec_workspace_grow((void **)&slot->tokens, &slot->tokens_cap,
				     c->rows * CODEC_LANES);

	if (r == 0)
		r = codec_workspace_grow((void **)&slot->planes, &slot->planes_cap,
					 (c->planes + CODEC_CARRIED_WORDS) * 4u);
	return r;
}

static int output_reserve(struct codec_workspace *ws, const struct chunk_shape *c)
{
	size_t words = c->scalars + CODEC_WORDS_SLACK;
	size_t coded = STATES_BYTES + c->planes * 4u + c->scalars * 4u;
	int r = codec_workspace_grow((void **)&ws->words, &ws->words_cap, words * 2u);

	if (r == 0)
		r = codec_workspace_grow((void **)&ws->coded, &ws->coded_cap, coded);
	return r;
}

/* Patterns of the escaped tokens, in row order.  Rare, so a plain scan. */
static uint8_t *escapes_collect(const struct codec_run *run, const uint8_t *raw,
				const uint8_t *tokens, uint8_t *out)
{
	size_t bytes = run->bits / 8u;

	for (uint32_t t = 0; t < run->tokens_count; t++) {
		const uint8_t *at = tokens, *end = tokens + run->columns;

		while (at < end && (at = memchr(at, CODEC_TOKEN_ESC, (size_t)(end - at)))) {
			size_t column = (size_t)(at - tokens);

			memcpy(out, raw + column * bytes, bytes);
			out += bytes;
			at++;
		}
		tokens += (size_t)run->rows_per_token * CODEC_LANES;
		raw += run->columns * bytes;
	}
	return out;
}

static uint32_t chunk_tokenize(struct codec_slot *slot, const struct codec_kernels *k,
			       const struct chunk_shape *c)
{
	const uint8_t *raw = slot->raw;
	uint8_t *tokens = slot->tokens;
	uint32_t *planes = slot->planes;
	uint32_t escapes = 0;

	for (uint32_t i = 0; i < c->runs_count; i++) {
		const struct codec_run *run = &c->runs[i];
		size_t rows = (size_t)run->tokens_count * run->rows_per_token;

		escapes += k->tokenize(run, raw, tokens, planes);
		raw += (size_t)run->tokens_count * run->columns * (run->bits / 8u);
		tokens += rows * CODEC_LANES;
		planes += rows * run->shift;
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
	uint16_t carried[CODEC_LANES] = { 0 };
	uint16_t *end, *words;
	uint8_t *out;
	size_t stored = c.planes - c.carried;
	int r = slot_reserve(slot, &c);

	if (r == 0)
		r = output_reserve(ws, &c);
	if (r < 0)
		return r;
	escapes = chunk_tokenize(slot, k, &c);
	if (escapes > UINT16_MAX / 2u || escapes > c.scalars / 8u)
		return -E2BIG;
	memcpy(carried, slot->planes + stored, c.carried * 4u);
	for (uint32_t l = 0; l < CODEC_LANES; l++)
		states[l] = CODEC_STATE_LOW | carried[l];
	end = ws->words + c.scalars + CODEC_WORDS_SLACK;
	words = k->encode(p, c.runs, c.runs_count, slot->tokens, states, end);
	assert(words >= ws->words + CODEC_WORDS_SLACK);

	out = ws->coded;
	memcpy(out, states, STATES_BYTES);
	out += STATES_BYTES;
	memcpy(out, slot->planes, stored * 4u);
	out += stored * 4u;
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

/* The coder must have ended in states a coder starts from; their low halves are the last planes. */
static int chunk_end_states(struct codec_slot *slot, const struct chunk_shape *c,
			    const uint32_t *states)
{
	uint16_t carried[CODEC_LANES];

	for (uint32_t l = 0; l < CODEC_LANES; l++) {
		if (states[l] >> 16 != 1u)
			return -EBADMSG;
		carried[l] = (uint16_t)states[l];
		if (l >= 2u * c->carried && carried[l] != 0)
			return -EBADMSG;
	}
	memcpy(slot->planes + (c->planes - c->carried), carried, c->carried * 4u);
	return 0;
}

static int chunk_rebuild(const struct codec_slot *slot, const struct codec_kernels *k,
			 const struct chunk_shape *c, const uint8_t *escapes, size_t escape_bytes,
			 uint8_t *out)
{
	const uint8_t *tokens = slot->tokens;
	const uint32_t *planes = slot->planes;

	for (uint32_t i = 0; i < c->runs_count; i++) {
		const struct codec_run *run = &c->runs[i];
		size_t rows = (size_t)run->tokens_count * run->rows_per_token;
		size_t bytes = run->bits / 8u, there = escape_bytes / bytes;
		uint32_t used = k->rebuild(run, tokens, planes, escapes, (uint32_t)there, out);

		if (used > there)
			return -EBADMSG;
		escapes += used * bytes;
		escape_bytes -= used * bytes;
		tokens += rows * CODEC_LANES;
		planes += rows * run->shift;
		out += (size_t)run->tokens_count * run->columns * bytes;
	}
	return escape_bytes == 0 ? 0 : -EBADMSG;
}

int codec_channel_open(struct codec_slot *slot, const struct codec_geometry *g,
		       const struct codec_profile *p, uint32_t chunk, const uint8_t *in,
		       size_t in_bytes, uint32_t escape_bytes, struct codec_stream *ret_stream)
{
	struct chunk_shape c = chunk_shape(g, p, chunk);
	size_t stored = (c.planes - c.carried) * 4u;
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
	memcpy(slot->planes, in + STATES_BYTES, stored);
	return 0;
}

int codec_channel_close(struct codec_slot *slot, const struct codec_geometry *g,
			const struct codec_profile *p, uint32_t chunk, uint32_t escape_bytes,
			const struct codec_stream *stream, uint8_t *out)
{
	struct chunk_shape c = chunk_shape(g, p, chunk);
	int r = stream->res;

	if (r == 0)
		r = chunk_end_states(slot, &c, stream->states);
	if (r < 0)
		return r;
	return chunk_rebuild(slot, codec_kernels_get(), &c,
			     stream->words + 2u * (size_t)stream->words_count, escape_bytes, out);
}
