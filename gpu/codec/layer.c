/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer.c - coding a block with the `layer` speculator: segment after segment, each guessed from the
 * exact values of those before it.
 */
#include "gpu/codec/layer_code.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/product.h"

struct layer_workspace {
	struct residual_encoder *encoder;
	struct residual_decoder *decoder;
	struct layer_turn *turns; /* [tokens][pairs] */
	int32_t *mu, *values;	  /* [tokens][columns_max] */
	int8_t *inputs;		  /* [tokens][columns] */
	size_t turns_cap, mu_cap, values_cap, inputs_cap;
};

struct layer_workspace *layer_workspace_free(struct layer_workspace *w)
{
	if (!w)
		return NULL;
	residual_encoder_free(w->encoder);
	residual_decoder_free(w->decoder);
	free(w->turns);
	free(w->mu);
	free(w->values);
	free(w->inputs);
	free(w);
	return NULL;
}

static int workspace_reserve(struct layer_workspace **ret, const struct codec_geometry *g,
			     const struct layer_profile *p)
{
	struct layer_workspace *w = *ret;
	size_t tokens = g->block_tokens, mu = tokens * p->columns_max * sizeof(int32_t);
	int r = 0;

	if (!w) {
		w = calloc(1, sizeof(*w));
		if (!w)
			return -ENOMEM;
		*ret = w;
	}
	if (!w->encoder)
		r = residual_encoder_new(&w->encoder);
	if (r == 0 && !w->decoder)
		r = residual_decoder_new(&w->decoder);
	if (r == 0)
		r = codec_workspace_grow((void **)&w->turns, &w->turns_cap,
					 tokens * p->pairs * sizeof(*w->turns) + 1u);
	if (r == 0)
		r = codec_workspace_grow((void **)&w->mu, &w->mu_cap, mu);
	if (r == 0)
		r = codec_workspace_grow((void **)&w->values, &w->values_cap, mu);
	if (r == 0)
		r = codec_workspace_grow((void **)&w->inputs, &w->inputs_cap, tokens * p->columns);
	return r;
}

void layer_turns(const struct layer_profile *p, uint32_t position, uint32_t tokens,
		 struct layer_turn *ret)
{
	for (uint32_t t = 0; t < tokens; t++)
		for (uint32_t i = 0; i < p->pairs; i++)
			*ret++ = layer_turn_of(p->freq[i], position + t, p->turn_round_bf16);
}

/* Turn one token's row of a segment, each head by the same angles; sign: 1 forward, -1 back. */
static void row_turn(const struct layer_profile *p, const struct layer_segment *s,
		     const struct layer_turn *turns, int32_t sign, int32_t *row)
{
	for (uint32_t head = 0; head < s->columns; head += s->head_dim) {
		int32_t *a = row + head;

		if (!p->interleaved) {
			codec_kernels_get()->layer_turn(turns, p->pairs, sign, a, a + p->pairs);
			continue;
		}
		for (uint32_t i = 0; i < p->pairs; i++) {
			struct layer_turn t = turns[i];

			t.sin *= sign;
			layer_rotate(t, &a[2u * i], &a[2u * i + 1u]);
		}
	}
}

void layer_values(const struct layer_profile *p, const struct layer_segment *s,
		  const struct layer_turn *turns, uint32_t tokens, const uint8_t *patterns,
		  int32_t *ret)
{
	const size_t element = s->type.bits / 8u;

	for (uint32_t t = 0; t < tokens; t++) {
		int32_t *row = ret + (size_t)t * s->columns;

		codec_kernels_get()->layer_values(s->type, patterns + t * s->columns * element,
						  s->columns, row);
		if (s->turned)
			row_turn(p, s, turns + (size_t)t * p->pairs, -1, row);
	}
}

void layer_inputs(const struct layer_profile *p, const struct layer_segment *s, uint32_t tokens,
		  const int32_t *values, int8_t *inputs)
{
	for (uint32_t t = 0; t < tokens; t++)
		codec_kernels_get()->layer_inputs(
			values + (size_t)t * s->columns, s->in_mul, s->columns,
			inputs + (size_t)t * p->columns + s->column_first);
}

void layer_guess(const struct layer_profile *p, const struct layer_segment *s,
		 const struct layer_turn *turns, uint32_t tokens, const int8_t *inputs, int32_t *mu)
{
	product_i8(inputs + s->input_first, p->columns, s->weights, tokens, s->columns, s->inputs,
		   mu);
	for (uint32_t t = 0; t < tokens; t++) {
		int32_t *row = mu + (size_t)t * s->columns;

		codec_kernels_get()->layer_outputs(s->bias, s->mul, s->shift, s->columns, row);
		if (s->turned)
			row_turn(p, s, turns + (size_t)t * p->pairs, 1, row);
	}
}

static struct residual_segment coded_segment(const struct layer_profile *p,
					     const struct layer_segment *s, uint32_t tokens,
					     const int32_t *mu)
{
	return (struct residual_segment){ .tokens_count = tokens,
					  .columns = s->columns,
					  .type = s->type,
					  .tables = &p->tables[s->tables],
					  .base = s->base,
					  .mu = mu };
}

#define PAYLOAD_HEAD_BYTES 8u

int layer_encode(struct layer_workspace **ws, const struct codec_geometry *g,
		 const struct layer_profile *p, uint32_t position, const uint8_t *raw, uint8_t *out,
		 size_t cap, size_t *ret_bytes, uint64_t *escapes, struct residual_bits *bits)
{
	uint32_t tokens = g->block_tokens, head[2] = { position, p->streams_count };
	struct layer_workspace *w;
	size_t bytes;
	int r = workspace_reserve(ws, g, p);

	if (r < 0)
		return r;
	if (cap < PAYLOAD_HEAD_BYTES)
		return -ENOSPC;
	w = *ws;
	layer_turns(p, position, tokens, w->turns);
	residual_encoder_start(w->encoder, p->streams_count);
	for (uint32_t i = 0; i < p->segments_count; i++) {
		const struct layer_segment *s = &p->segments[i];
		const uint8_t *patterns = raw + g->segment_off[s->segment];
		struct residual_segment c = coded_segment(p, s, tokens, w->mu);

		layer_guess(p, s, w->turns, tokens, w->inputs, w->mu);
		r = residual_encode(w->encoder, &c, patterns, escapes, bits);
		if (r < 0)
			return r;
		layer_values(p, s, w->turns, tokens, patterns, w->values);
		layer_inputs(p, s, tokens, w->values, w->inputs);
	}
	memcpy(out, head, sizeof(head));
	r = residual_encoder_finish(w->encoder, out + PAYLOAD_HEAD_BYTES, cap - PAYLOAD_HEAD_BYTES,
				    &bytes);
	*ret_bytes = PAYLOAD_HEAD_BYTES + bytes;
	return r;
}

int layer_decode(struct layer_workspace **ws, const struct codec_geometry *g,
		 const struct layer_profile *p, const uint8_t *in, size_t in_bytes, uint8_t *raw)
{
	uint32_t tokens = g->block_tokens, head[2];
	struct layer_workspace *w;
	int r = workspace_reserve(ws, g, p);

	if (r < 0)
		return r;
	if (in_bytes < PAYLOAD_HEAD_BYTES)
		return -EBADMSG;
	memcpy(head, in, sizeof(head));
	if (head[1] != p->streams_count)
		return -EBADMSG;
	w = *ws;
	r = residual_decoder_start(w->decoder, head[1], in + PAYLOAD_HEAD_BYTES,
				   in_bytes - PAYLOAD_HEAD_BYTES);
	if (r < 0)
		return r;
	layer_turns(p, head[0], tokens, w->turns);
	for (uint32_t i = 0; i < p->segments_count; i++) {
		const struct layer_segment *s = &p->segments[i];
		uint8_t *patterns = raw + g->segment_off[s->segment];
		struct residual_segment c = coded_segment(p, s, tokens, w->mu);

		layer_guess(p, s, w->turns, tokens, w->inputs, w->mu);
		r = residual_decode(w->decoder, &c, patterns);
		if (r < 0)
			return r;
		layer_values(p, s, w->turns, tokens, patterns, w->values);
		layer_inputs(p, s, tokens, w->values, w->inputs);
	}
	return residual_decoder_finish(w->decoder);
}
