/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequence_rig.c - see sequence_rig.h.
 */
#include "tests/lib/sequence_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/codec_rig.h"

#define NO_DRAFT UINT32_MAX

static void must(int ok, const char *what)
{
	if (!ok) {
		(void)fprintf(stderr, "sequence_rig: %s failed\n", what);
		abort();
	}
}

static uint32_t kv_of(const struct sequence_rig *r)
{
	return r->c->kv_heads * r->c->head_dim;
}

static void geometry(struct sequence_rig *r, uint8_t dtype, bool reversed, bool opaque)
{
	struct codec_segment segments[SEQUENCE_RIG_SEGMENTS + 1u];
	const uint32_t n = 2u * r->c->layers;

	must(n <= SEQUENCE_RIG_SEGMENTS, "few layers");
	for (uint32_t i = 0; i < n; i++) {
		uint32_t of = reversed ? n - 1u - i : i;

		segments[i] = (struct codec_segment){
			.kind = of % 2u ? CODEC_KIND_V : CODEC_KIND_K,
			.dtype = dtype,
			.layer = (uint16_t)(of / 2u),
			.heads = (uint16_t)r->c->kv_heads,
			.head_dim = (uint16_t)r->c->head_dim,
		};
	}
	segments[n] = (struct codec_segment){
		.kind = CODEC_KIND_OPAQUE, .dtype = CODEC_DTYPE_U8, .heads = 1, .head_dim = 8
	};
	must(codec_geometry_init(&r->g, SEQUENCE_RIG_TOKENS, segments, n + opaque) == 0,
	     "geometry");
}

/* The model's own cache, in the type that was asked for: of each of its segments, all tokens' rows. */
static void cache(const struct sequence_rig *r, uint8_t dtype, uint8_t **rows)
{
	const size_t kv = kv_of(r), layer = SEQUENCE_RIG_ALL * kv, bytes = codec_dtype_bytes(dtype);
	double *k = calloc(r->c->layers * layer, sizeof(*k));
	double *v = calloc(r->c->layers * layer, sizeof(*v));

	must(k && v, "memory");
	tiny_model_cache(r->tiny, r->ids, SEQUENCE_RIG_ALL, k, v);
	for (uint32_t i = 0; i < 2u * r->c->layers; i++) {
		const double *from = (i % 2u ? v : k) + i / 2u * layer;

		rows[i] = malloc(layer * bytes);
		must(rows[i] != NULL, "memory");
		for (size_t at = 0; at < layer; at++) {
			uint16_t x = codec_rig_element(dtype, (float)from[at]);

			memcpy(rows[i] + at * bytes, &x, bytes);
		}
	}
	free(k);
	free(v);
}

static void blocks(struct sequence_rig *r, uint8_t *const *rows)
{
	for (uint32_t b = 0; b < SEQUENCE_RIG_BLOCKS; b++) {
		r->block[b] = malloc(r->g.raw_bytes);
		r->coded[b] = malloc(r->cap);
		must(r->block[b] && r->coded[b], "memory");
		rng_fill(&r->rng, r->block[b], r->g.raw_bytes);
		for (uint32_t i = 0; i < 2u * r->c->layers; i++) {
			const struct codec_segment *s = &r->g.segments[i];
			const size_t bytes = (size_t)SEQUENCE_RIG_TOKENS * kv_of(r) *
					     codec_dtype_bytes(s->dtype);

			memcpy(r->block[b] + r->g.segment_off[i],
			       rows[2u * s->layer + (s->kind == CODEC_KIND_V)] + b * bytes, bytes);
		}
	}
}

static void fit_model(struct sequence_rig *r, uint8_t dtype, bool ids, uint8_t *const *rows)
{
	const struct mspec_fit_options o = { .mode = r->smaller ? MSPEC_DRAFT : MSPEC_COPY,
					     .cache = { r->c->layers, r->c->kv_heads,
							r->c->head_dim },
					     .previous = 1,
					     .dtype = dtype,
					     .ids = ids,
					     .precision = mspec_precision_default() };
	struct mspec_fit *f = NULL;

	must(mspec_fit_new(r->m, &o, &f) == 0, "fit");
	must(mspec_fit_add(f, r->ids, (const uint8_t *const *)rows, SEQUENCE_RIG_ALL) == 0,
	     "sample");
	must(mspec_fit_finish(f, &r->params) == 0, "parameters");
	r->bits = mspec_fit_bits(f);
	mspec_fit_free(f);
}

static void fit_profiles(struct sequence_rig *r)
{
	struct codec_fit *fit = NULL;
	uint32_t positions[SEQUENCE_RIG_BLOCKS];
	uint8_t *all = malloc(SEQUENCE_RIG_BLOCKS * r->g.raw_bytes);
	char err[CODEC_ERR_BYTES] = "";

	must(all != NULL && codec_fit_new(&r->g, &fit) == 0, "memory");
	for (uint32_t b = 0; b < SEQUENCE_RIG_BLOCKS; b++) {
		struct codec_view v = { .base = r->block[b] };

		codec_fit_add(fit, &v);
		memcpy(all + b * r->g.raw_bytes, r->block[b], r->g.raw_bytes);
		positions[b] = b * SEQUENCE_RIG_TOKENS;
	}
	must(codec_fit_finish(fit, &r->channel) == 0, "channel profile");
	must(codec_profile_fit_layer(&r->g, r->channel, all, positions, SEQUENCE_RIG_BLOCKS, 1,
				     &r->layer) == 0,
	     "layer profile");
	if (codec_profile_with_model(&r->g, r->layer, r->params, r->bits, &r->model, err,
				     sizeof(err)) < 0)
		must(0, err[0] ? err : "model profile");
	codec_fit_free(fit);
	free(all);
}

static struct mspec_model *load(const struct tiny_model *t)
{
	struct mspec_model *m = NULL;
	char err[MODEL_ERR_BYTES] = "";

	if (mspec_model_load(tiny_model_folder(t), true, &m, err, sizeof(err)) < 0)
		must(0, err);
	return m;
}

/* draft: the kind of one, or NO_DRAFT. */
static struct sequence_rig *make(uint32_t kind, uint32_t draft, uint8_t dtype, bool ids,
				 bool reversed, bool opaque)
{
	struct sequence_rig *r = calloc(1, sizeof(*r));
	uint8_t *rows[SEQUENCE_RIG_SEGMENTS] = { NULL };
	uint32_t vocab;

	must(r != NULL, "memory");
	rng_init(&r->rng, 31 + kind * 7u + dtype);
	r->tiny = tiny_model_new(kind);
	r->m = load(r->tiny);
	r->c = mspec_model_config(r->m);
	if (draft != NO_DRAFT) {
		r->smaller = tiny_model_new(draft);
		r->target = r->m;
		r->m = load(r->smaller);
	}
	vocab = mspec_model_config(r->m)->vocab;
	vocab = r->c->vocab < vocab ? r->c->vocab : vocab;
	for (uint32_t i = 0; i < SEQUENCE_RIG_ALL; i++)
		r->ids[i] = (int32_t)rng_below(&r->rng, vocab);
	r->ids[0] = (int32_t)vocab - 1;
	geometry(r, dtype, reversed, opaque);
	r->cap = codec_bound(&r->g);
	r->back = malloc(r->g.raw_bytes);
	must(r->back && codec_workspace_new(&r->ws) == 0, "memory");
	cache(r, dtype, rows);
	blocks(r, rows);
	fit_model(r, dtype, ids, rows);
	fit_profiles(r);
	for (uint32_t i = 0; i < SEQUENCE_RIG_SEGMENTS; i++)
		free(rows[i]);
	return r;
}

struct sequence_rig *sequence_rig_new(uint32_t kind, uint8_t dtype, bool ids, bool reversed)
{
	return make(kind, NO_DRAFT, dtype, ids, reversed, true);
}

struct sequence_rig *sequence_rig_plain(uint32_t kind, uint8_t dtype, bool ids)
{
	return make(kind, NO_DRAFT, dtype, ids, false, false);
}

struct sequence_rig *sequence_rig_draft(uint32_t kind, uint32_t draft_kind, uint8_t dtype)
{
	return make(kind, draft_kind, dtype, true, true, true);
}

struct sequence_rig *sequence_rig_free(struct sequence_rig *r)
{
	codec_profile_free(r->channel);
	codec_profile_free(r->layer);
	codec_profile_free(r->model);
	codec_workspace_free(r->ws);
	codec_geometry_deinit(&r->g);
	mspec_params_free(r->params);
	mspec_model_free(r->m);
	mspec_model_free(r->target);
	tiny_model_free(r->tiny);
	if (r->smaller)
		tiny_model_free(r->smaller);
	for (uint32_t b = 0; b < SEQUENCE_RIG_BLOCKS; b++) {
		free(r->block[b]);
		free(r->coded[b]);
	}
	free(r->back);
	free(r);
	return NULL;
}

int sequence_rig_encode(struct sequence_rig *r, const struct codec_profile *p, uint8_t speculator,
			unsigned flags, struct codec_sequence *s, uint32_t b)
{
	const struct codec_view v = { .base = r->block[b],
				      .position = b * SEQUENCE_RIG_TOKENS,
				      .sequence = s,
				      .tokens = r->ids + b * SEQUENCE_RIG_TOKENS };

	return codec_encode(r->ws, &r->g, p, speculator, flags, &v, r->coded[b], r->cap,
			    &r->info[b]);
}

int sequence_rig_decode(struct sequence_rig *r, const struct codec_profile *p,
			struct codec_sequence *s, uint32_t b)
{
	const struct codec_view v = { .base = r->back,
				      .position = CODEC_POSITION_UNKNOWN,
				      .sequence = s };

	memset(r->back, 0xa5, r->g.raw_bytes);
	return codec_decode(r->ws, &r->g, p, r->coded[b], r->info[b].encoded_bytes, NULL, &v);
}

struct codec_profile *sequence_rig_again(const struct sequence_rig *r,
					 const struct codec_profile *p, const struct mspec_model *m)
{
	struct codec_profile *again = NULL;
	size_t bytes = 0;
	const void *serial = codec_profile_bytes(p, &bytes);

	must(codec_profile_parse(&r->g, serial, bytes, &again) == 0, "parse");
	must(!m || codec_profile_attach_model(again, m) == 0, "attach");
	return again;
}

struct codec_sequence *sequence_rig_sequence(const struct sequence_rig *r,
					     const struct codec_profile *p)
{
	struct codec_sequence *s = NULL;

	must(codec_sequence_new(&r->g, p, NULL, &s) == 0, "sequence");
	return s;
}
