/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_code_rig.c - see model_code_rig.h.
 */
#include "tests/lib/model_code_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/codec_rig.h"

static void must(int ok, const char *what)
{
	if (!ok) {
		(void)fprintf(stderr, "model_code_rig: %s failed\n", what);
		abort();
	}
}

static void *must_calloc(size_t count, size_t each)
{
	void *p = calloc(count, each);

	must(p != NULL, "memory");
	return p;
}

static uint32_t kv_of(const struct code_rig *r)
{
	return r->base->c->kv_heads * r->base->c->head_dim;
}

uint64_t code_rig_segment_off(const struct code_rig *r, uint32_t segment)
{
	return r->g.segment_off[r->p->segments[segment]];
}

static void geometry(struct code_rig *r)
{
	const struct model_config *c = r->base->c;
	struct codec_segment segments[SEQUENCE_RIG_SEGMENTS];
	const uint32_t n = 2u * c->layers;

	must(n <= SEQUENCE_RIG_SEGMENTS, "few layers");
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t of = n - 1u - i;

		segments[i] = (struct codec_segment){
			.kind = of % 2u ? CODEC_KIND_V : CODEC_KIND_K,
			.dtype = r->shape.dtype,
			.layer = (uint16_t)(of / 2u),
			.heads = (uint16_t)c->kv_heads,
			.head_dim = (uint16_t)c->head_dim,
		};
	}
	must(codec_geometry_init(&r->g, r->shape.block_tokens, segments, n) == 0, "geometry");
}

static void profile(struct code_rig *r)
{
	struct codec_fit *fit = NULL;
	struct codec_profile *channel = NULL;
	uint8_t *raw = must_calloc(r->g.raw_bytes, 1);
	const struct codec_view v = { .base = raw };
	char err[CODEC_ERR_BYTES] = "";

	must(codec_fit_new(&r->g, &fit) == 0, "fit");
	rng_fill(&r->base->rng, raw, r->g.raw_bytes);
	codec_fit_add(fit, &v);
	must(codec_fit_finish(fit, &channel) == 0, "channel profile");
	if (codec_profile_with_model(&r->g, channel, r->base->params, r->base->bits, &r->profile,
				     err, sizeof(err)) < 0)
		must(0, err[0] ? err : "model profile");
	r->profile->model->streams_count = r->shape.streams_count;
	r->p = r->profile->model;
	codec_profile_free(channel);
	codec_fit_free(fit);
	free(raw);
}

/* ---- data ---- */

static uint32_t wild_element(struct rng *rng, uint32_t element, uint32_t token, uint32_t bits)
{
	const uint32_t noise = (uint32_t)rng_next(rng) & ((1u << bits) - 1u);

	if (token % 37u == 5u)
		return noise;
	if (token % 41u == 7u)
		return 0;
	switch (rng_below(rng, 200)) {
	case 0:
		return noise;
	case 1:
		return 0;
	case 2:
		return 1u << (bits - 1u);
	case 3:
		return rng_below(rng, 8);
	default:
		return element;
	}
}

static void sequence_fill(struct code_rig *r, struct code_rig_sequence *s)
{
	const struct model_config *c = r->base->c;
	const uint32_t tokens = r->shape.block_tokens, count = s->blocks * tokens;
	const size_t kv = kv_of(r), layer = count * kv, bytes = codec_dtype_bytes(r->shape.dtype);
	double *k = must_calloc(c->layers * layer, sizeof(*k)),
	       *v = must_calloc(c->layers * layer, sizeof(*v));

	tiny_model_cache(r->base->tiny, s->ids, count, k, v);
	for (uint32_t i = 0; i < 2u * c->layers; i++)
		for (size_t at = 0; at < layer; at++) {
			const uint32_t token = (uint32_t)(at / kv), block = token / tokens;
			uint32_t x = codec_rig_element(
				r->shape.dtype, (float)(i % 2u ? v : k)[i / 2u * layer + at]);

			if (r->shape.wild)
				x = wild_element(&r->base->rng, x, token, 8u * (uint32_t)bytes);
			memcpy(s->raw[block] + code_rig_segment_off(r, i) +
				       (at - (size_t)block * tokens * kv) * bytes,
			       &x, bytes);
		}
	free(k);
	free(v);
}

static void sequence_code(struct code_rig *r, struct code_rig_sequence *s)
{
	struct codec_sequence *q = code_rig_sequence(r);
	const size_t cap = 2u * r->g.raw_bytes + 4096u;
	uint8_t *out = must_calloc(cap, 1);

	for (uint32_t b = 0; b < s->blocks; b++) {
		double bits = 0;

		must(sequence_encode(q, s->raw[b], s->ids + b * r->shape.block_tokens, out, cap,
				     &s->bytes[b], &s->escapes[b], &bits) == 0,
		     "encoding");
		s->payload[b] = must_calloc(s->bytes[b], 1);
		memcpy(s->payload[b], out, s->bytes[b]);
	}
	codec_sequence_free(q);
	free(out);
}

static void sequence_make(struct code_rig *r, struct code_rig_sequence *s, uint32_t blocks)
{
	const uint32_t of = r->base->c->vocab, own = mspec_model_config(r->base->m)->vocab,
		       vocab = of < own ? of : own;

	s->blocks = blocks;
	s->ids = must_calloc(blocks * r->shape.block_tokens, sizeof(s->ids[0]));
	s->raw = must_calloc(blocks, sizeof(s->raw[0]));
	s->payload = must_calloc(blocks, sizeof(s->payload[0]));
	s->bytes = must_calloc(blocks, sizeof(s->bytes[0]));
	s->escapes = must_calloc(blocks, sizeof(s->escapes[0]));
	for (uint32_t i = 0; i < blocks * r->shape.block_tokens; i++)
		s->ids[i] = (int32_t)rng_below(&r->base->rng, vocab);
	for (uint32_t b = 0; b < blocks; b++)
		s->raw[b] = must_calloc(r->g.raw_bytes, 1);
	sequence_fill(r, s);
	sequence_code(r, s);
}

struct code_rig *code_rig_new(const struct code_rig_shape *shape)
{
	struct code_rig *r = must_calloc(1, sizeof(*r));

	r->shape = *shape;
	r->base = shape->draft ? sequence_rig_draft(shape->kind, shape->draft - 1u, shape->dtype)
			       : sequence_rig_new(shape->kind, shape->dtype, shape->ids, false);
	geometry(r);
	profile(r);
	for (uint32_t i = 0; i < CODE_RIG_SEQUENCES; i++)
		sequence_make(r, &r->s[i], shape->blocks[i]);
	return r;
}

struct code_rig *code_rig_free(struct code_rig *r)
{
	for (uint32_t i = 0; i < CODE_RIG_SEQUENCES; i++) {
		struct code_rig_sequence *s = &r->s[i];

		for (uint32_t b = 0; b < s->blocks; b++) {
			free(s->raw[b]);
			free(s->payload[b]);
		}
		free(s->ids);
		free((void *)s->raw);
		free((void *)s->payload);
		free(s->bytes);
		free(s->escapes);
	}
	codec_profile_free(r->profile);
	codec_geometry_deinit(&r->g);
	sequence_rig_free(r->base);
	free(r);
	return NULL;
}

struct codec_sequence *code_rig_sequence(const struct code_rig *r)
{
	struct codec_sequence *q = NULL;

	must(codec_sequence_new(&r->g, r->profile, NULL, &q) == 0, "sequence");
	return q;
}
