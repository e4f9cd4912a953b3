/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequence.c - one sequence's prefix and the payload of the blocks that are coded after it.
 *
 * Nothing here outlives a failure: the prefix grows by whole blocks that are right.
 */
#include "gpu/codec/sequence.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "gpu/codec/model_profile.h"

#define FLAG_IDS 1u

struct sequence_head {
	uint32_t check;
	uint32_t position;
	uint32_t mu_digest;
	uint16_t streams;
	uint8_t flags;
	uint8_t reserved;
};

static_assert(sizeof(struct sequence_head) == 16, "payload head");

struct codec_sequence {
	const struct codec_geometry *g;	     /* borrowed, like the next two */
	const struct codec_profile *profile; /* with a model attached */
	const struct model_profile *p;	     /* the profile's */
	struct mspec_context *context;	     /* owned, like all below */
	struct mspec_coder *coder;
	struct residual_encoder *encoder;
	struct residual_decoder *decoder;
	const uint8_t **in; /* [segments]: where each lies in a raw block */
	uint8_t **out;
	int32_t *ids; /* [block_tokens]: those of the block being coded */
};

/* ---- the object ---- */

int codec_sequence_new(const struct codec_geometry *g, const struct codec_profile *profile,
		       const struct mspec_runner *runner, struct codec_sequence **ret_sequence)
{
	struct codec_sequence *s;
	int r;

	if (!profile->model)
		return -ENODATA;
	if (!profile->model->params)
		return -ENODEV;
	assert(memcmp(profile->geometry_digest, g->digest, CODEC_DIGEST_BYTES) == 0);
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->g = g;
	s->profile = profile;
	s->p = profile->model;
	s->in = calloc(s->p->segments_count, sizeof(s->in[0]));
	s->out = calloc(s->p->segments_count, sizeof(s->out[0]));
	s->ids = calloc(g->block_tokens, sizeof(s->ids[0]));
	r = s->in && s->out && s->ids ? 0 : -ENOMEM;
	if (r == 0)
		r = mspec_context_new(s->p->params, &s->context);
	if (r == 0)
		r = mspec_coder_new_for(s->p->params, runner, g->block_tokens, &s->coder);
	if (r == 0)
		r = residual_encoder_new(&s->encoder);
	if (r == 0)
		r = residual_decoder_new(&s->decoder);
	if (r < 0) {
		codec_sequence_free(s);
		return r;
	}
	*ret_sequence = s;
	return 0;
}

struct codec_sequence *codec_sequence_free(struct codec_sequence *s)
{
	if (!s)
		return NULL;
	mspec_context_free(s->context);
	mspec_coder_free(s->coder);
	residual_encoder_free(s->encoder);
	residual_decoder_free(s->decoder);
	free((void *)s->in);
	free((void *)s->out);
	free(s->ids);
	free(s);
	return NULL;
}

uint32_t codec_sequence_position(const struct codec_sequence *s)
{
	return mspec_context_count(s->context);
}

int codec_sequence_truncate(struct codec_sequence *s, uint32_t position)
{
	if (position > mspec_context_count(s->context))
		return -EINVAL;
	mspec_context_truncate(s->context, position);
	return 0;
}

uint64_t codec_sequence_bytes(const struct codec_sequence *s)
{
	return mspec_context_bytes(s->context);
}

bool sequence_of_geometry(const struct codec_sequence *s, const struct codec_geometry *g)
{
	return memcmp(s->g->digest, g->digest, CODEC_DIGEST_BYTES) == 0;
}

bool sequence_of_profile(const struct codec_sequence *s, const struct codec_profile *p)
{
	return p && memcmp(s->profile->digest, p->digest, CODEC_DIGEST_BYTES) == 0;
}

bool sequence_has_room(const struct codec_sequence *s)
{
	return mspec_context_count(s->context) <= MODEL_POSITIONS_MAX - s->g->block_tokens;
}

static void segments_in(struct codec_sequence *s, const uint8_t *raw)
{
	for (uint32_t i = 0; i < s->p->segments_count; i++)
		s->in[i] = raw + s->g->segment_off[s->p->segments[i]];
}

/* A private copy, as a client's may change. */
static int ids_take(struct codec_sequence *s, const int32_t *tokens)
{
	if (!tokens)
		return -EINVAL;
	memcpy(s->ids, tokens, s->g->block_tokens * sizeof(s->ids[0]));
	return model_ids_good(s->p, s->ids, s->g->block_tokens) ? 0 : -EINVAL;
}

int sequence_append_raw(struct codec_sequence *s, const uint8_t *raw, const int32_t *tokens)
{
	if (!sequence_has_room(s))
		return -E2BIG;
	if (mspec_params_mode(s->p->params) == MSPEC_DRAFT) {
		if (ids_take(s, tokens) < 0)
			return -ENODATA;
		return mspec_context_follow(s->coder, s->context, s->ids, s->g->block_tokens);
	}
	segments_in(s, raw);
	return mspec_context_append(s->context, s->in, s->g->block_tokens);
}

int codec_sequence_append(struct codec_sequence *s, const struct codec_view *block)
{
	uint8_t *raw = malloc(s->g->raw_bytes);
	int r;

	if (!raw)
		return -ENOMEM;
	codec_copy_out(s->g, block, raw);
	r = sequence_append_raw(s, raw, block->tokens);
	free(raw);
	return r;
}

/* ---- token ids ---- */

static size_t ids_bytes(const struct codec_geometry *g, const struct model_profile *p)
{
	return ((size_t)g->block_tokens * p->id_bits + 63u) / 64u * 8u;
}

/* out: ids_bytes() of zeros. */
static void ids_pack(const int32_t *ids, uint32_t count, uint32_t bits, uint8_t *out)
{
	size_t at = 0;

	for (uint32_t t = 0; t < count; t++)
		for (uint32_t b = 0; b < bits; b++, at++)
			out[at / 8u] |= (uint8_t)(((uint32_t)ids[t] >> b & 1u) << at % 8u);
}

/* -EBADMSG: an id out of the vocabulary, or a bit behind the last one. */
static int ids_unpack(const uint8_t *in, size_t bytes, uint32_t count, uint32_t bits,
		      uint32_t vocab, int32_t *ids)
{
	size_t at = 0;

	assert(bits < 32u && (size_t)count * bits <= bytes * 8u);
	for (uint32_t t = 0; t < count; t++) {
		uint32_t id = 0;

		for (uint32_t b = 0; b < bits; b++, at++)
			id |= (uint32_t)(in[at / 8u] >> at % 8u & 1u) << b;
		if (id >= vocab)
			return -EBADMSG;
		ids[t] = (int32_t)id;
	}
	for (; at < bytes * 8u; at++)
		if (in[at / 8u] >> at % 8u & 1u)
			return -EBADMSG;
	return 0;
}

/* ---- the payload ---- */

static uint32_t check_of(const uint8_t *payload, size_t bytes)
{
	const size_t skip = sizeof(uint32_t);

	assert(bytes >= skip);
	return (uint32_t)XXH3_64bits(payload + skip, bytes - skip);
}

/* Head, streams' place and ids (into ids, when there are any).  -EBADMSG. */
static int payload_read(const struct codec_geometry *g, const struct model_profile *p,
			const uint8_t *in, size_t in_bytes, struct sequence_head *h,
			size_t *ret_streams_off, int32_t *ids)
{
	size_t off = sizeof(*h);
	int r = 0;

	if (in_bytes < sizeof(*h))
		return -EBADMSG;
	memcpy(h, in, sizeof(*h));
	if (h->check != check_of(in, in_bytes))
		return -EBADMSG;
	if (h->streams != p->streams_count || h->flags != (p->ids ? FLAG_IDS : 0) ||
	    h->reserved != 0)
		return -EBADMSG;
	if (p->ids) {
		const size_t bytes = ids_bytes(g, p);

		if (bytes > in_bytes - off)
			return -EBADMSG;
		r = ids_unpack(in + off, bytes, g->block_tokens, p->id_bits, p->section->vocab,
			       ids);
		off += bytes;
	}
	*ret_streams_off = off;
	return r;
}

int sequence_encode(struct codec_sequence *s, const uint8_t *raw, const int32_t *tokens,
		    uint8_t *out, size_t cap, size_t *ret_bytes, uint64_t *escapes, double *bits)
{
	const uint32_t position = mspec_context_count(s->context), count = s->g->block_tokens;
	struct sequence_head h = { .position = position,
				   .streams = (uint16_t)s->p->streams_count,
				   .flags = s->p->ids ? FLAG_IDS : 0 };
	size_t off = sizeof(h) + (s->p->ids ? ids_bytes(s->g, s->p) : 0), bytes = 0;
	struct mspec_result result;
	int r = s->p->ids ? ids_take(s, tokens) : 0;

	if (r < 0)
		return r;
	if (cap < off)
		return -ENOSPC;
	segments_in(s, raw);
	residual_encoder_start(s->encoder, s->p->streams_count);
	r = mspec_encode(s->coder, s->context, s->p->ids ? s->ids : NULL, count, s->in, s->encoder,
			 &result);
	if (r < 0)
		return r;
	r = residual_encoder_finish(s->encoder, out + off, cap - off, &bytes);
	if (r < 0) {
		mspec_context_truncate(s->context, position);
		return r;
	}
	h.mu_digest = result.mu_digest;
	memset(out, 0, off);
	memcpy(out, &h, sizeof(h));
	if (s->p->ids)
		ids_pack(s->ids, count, s->p->id_bits, out + sizeof(h));
	h.check = check_of(out, off + bytes);
	memcpy(out, &h.check, sizeof(h.check));
	*ret_bytes = off + bytes;
	*escapes = result.escapes;
	*bits = 0;
	for (uint32_t i = 0; i < 2; i++)
		*bits += result.bits[i].token + result.bits[i].raw + result.bits[i].tau;
	return 0;
}

int sequence_decode(struct codec_sequence *s, const uint8_t *in, size_t in_bytes, uint8_t *raw,
		    uint8_t *refusal)
{
	const uint32_t position = mspec_context_count(s->context);
	struct sequence_head h;
	struct mspec_result result = { .mu_digest = 0 };
	size_t off = 0;
	int r = payload_read(s->g, s->p, in, in_bytes, &h, &off, s->ids);

	if (r < 0)
		return r;
	if (h.position != position) {
		*refusal = CODEC_REFUSAL_PREFIX;
		return -ESTALE;
	}
	for (uint32_t i = 0; i < s->p->segments_count; i++)
		s->out[i] = raw + s->g->segment_off[s->p->segments[i]];
	r = residual_decoder_start(s->decoder, h.streams, in + off, in_bytes - off);
	if (r < 0)
		return r;
	r = mspec_decode(s->coder, s->context, s->p->ids ? s->ids : NULL, s->g->block_tokens,
			 s->decoder, s->out, &result);
	if (r == 0)
		r = residual_decoder_finish(s->decoder);
	if (r == 0 && result.mu_digest != h.mu_digest)
		r = -EBADMSG;
	if (r == 0)
		return 0;
	mspec_context_truncate(s->context, position);
	if (r == -EBADMSG) { /* the bytes were right: it must be the guesses */
		*refusal = CODEC_REFUSAL_GUESSES;
		r = -ESTALE;
	}
	return r;
}

int codec_payload_tokens(const struct codec_geometry *g, const struct codec_profile *profile,
			 const void *payload, size_t payload_bytes, int32_t *ret_tokens)
{
	struct format_block_header h;
	struct sequence_head head;
	const uint8_t *own = NULL;
	size_t own_bytes = 0, off = 0;
	int32_t *ids;
	int r;

	if (payload_bytes < sizeof(h))
		return -EBADMSG;
	memcpy(&h, payload, sizeof(h));
	r = codec_header_check_geometry(g, &h, payload_bytes);
	if (r < 0)
		return r;
	if (h.speculator != CODEC_SPEC_MODEL)
		return -ENODATA;
	r = codec_header_check_profile(g, profile, &h);
	if (r == 0 && !profile->model->ids)
		r = -ENODATA;
	if (r == 0)
		r = codec_predicted_payload(g, payload, payload_bytes, &own, &own_bytes);
	if (r < 0)
		return r;
	ids = calloc(g->block_tokens, sizeof(ids[0]));
	if (!ids)
		return -ENOMEM;
	r = payload_read(g, profile->model, own, own_bytes, &head, &off, ids);
	if (r == 0)
		memcpy(ret_tokens, ids, g->block_tokens * sizeof(ids[0]));
	free(ids);
	return r;
}
