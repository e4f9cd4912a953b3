/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_profile.c - the `model` section of a profile: from a file, so every field is checked here, but for the
 * parameters, which only their model can check.
 */
#include "gpu/codec/model_profile.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS_MAX (CODEC_SEGMENTS_MAX / 2u)
#define NOWHERE UINT16_MAX

static_assert(sizeof(struct model_section) == 128, "section header");
static_assert(offsetof(struct model_section, params_bytes) == 32, "section header");
static_assert(offsetof(struct model_section, model_digest) == 64, "section header");

static size_t section_bytes(uint64_t params_bytes)
{
	return (sizeof(struct model_section) + params_bytes + MODEL_SECTION_ALIGN - 1u) &
	       ~(size_t)(MODEL_SECTION_ALIGN - 1u);
}

size_t model_section_bytes_max(const struct codec_geometry *g)
{
	uint32_t widest = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		if (codec_segment_columns(&g->segments[i]) > widest)
			widest = codec_segment_columns(&g->segments[i]);
	return section_bytes(mspec_params_bytes_max(LAYERS_MAX, widest, CODEC_ROW_SCALARS_MAX));
}

/* What parameters need of a geometry. */
struct shape {
	uint32_t layers, kv_heads, head_dim, dtype;
};

/*
 * The geometry's segment of each of the parameters', in their order.  0, or -EINVAL with what does not fit
 * in err.
 */
static int segments_find(const struct codec_geometry *g, const struct shape *s, uint16_t *ret,
			 char *err, size_t err_bytes)
{
	for (uint32_t i = 0; i < 2u * s->layers; i++)
		ret[i] = NOWHERE;
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *seg = &g->segments[i];
		uint32_t at = 2u * seg->layer + (seg->kind == CODEC_KIND_V);
		const char *why = NULL;

		if (!codec_segment_coded(seg))
			continue;
		if (seg->kind != CODEC_KIND_K && seg->kind != CODEC_KIND_V)
			why = "is neither keys nor values";
		else if (seg->dtype != s->dtype)
			why = "is of another type than the sample";
		else if (codec_segment_columns(seg) != s->kv_heads * s->head_dim)
			why = "has not the columns of the model's heads";
		else if (seg->layer >= s->layers)
			why = "is of a layer that the model has not";
		else if (ret[at] != NOWHERE)
			why = "is there twice";
		if (why) {
			(void)snprintf(err, err_bytes, "segment %u (layer %u, %u * %u) %s", i,
				       seg->layer, seg->heads, seg->head_dim, why);
			return -EINVAL;
		}
		ret[at] = (uint16_t)i;
	}
	for (uint32_t i = 0; i < 2u * s->layers; i++)
		if (ret[i] == NOWHERE) {
			(void)snprintf(err, err_bytes, "no segment for the %s of layer %u",
				       i % 2u ? "values" : "keys", i / 2u);
			return -EINVAL;
		}
	return 0;
}

int mspec_shape_of(const struct codec_geometry *g, struct mspec_shape *ret)
{
	const struct codec_segment *first = NULL;
	uint32_t layers = 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		if (g->segments[i].kind != CODEC_KIND_K)
			continue;
		layers++;
		if (!first && g->segments[i].layer == 0)
			first = &g->segments[i];
	}
	if (!first)
		return -EINVAL;
	*ret = (struct mspec_shape){ .layers = layers,
				     .kv_heads = first->heads,
				     .head_dim = first->head_dim };
	return 0;
}

static bool all_zero(const uint8_t *p, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (p[i] != 0)
			return false;
	return true;
}

static int header_check(const struct model_section *h, const uint8_t *section, size_t bytes)
{
	if (h->magic != MODEL_SECTION_MAGIC || h->bytes != bytes)
		return -EBADMSG;
	if (h->version != MODEL_SECTION_VERSION)
		return -ESTALE;
	if (h->reserved != 0 || !all_zero(h->zeros, sizeof(h->zeros)) ||
	    !all_zero(h->more_zeros, sizeof(h->more_zeros)))
		return -EBADMSG;
	if (h->layers == 0 || h->layers > LAYERS_MAX || h->kv_heads == 0 || h->head_dim == 0 ||
	    h->kv_heads > CODEC_ROW_SCALARS_MAX || h->head_dim > CODEC_ROW_SCALARS_MAX ||
	    h->vocab < 2 || h->vocab > MODEL_VOCAB_MAX)
		return -EBADMSG;
	if (h->params_bytes > bytes - sizeof(*h) || section_bytes(h->params_bytes) != bytes ||
	    !all_zero(section + sizeof(*h) + h->params_bytes, bytes - sizeof(*h) - h->params_bytes))
		return -EBADMSG;
	return 0;
}

static uint32_t bits_of(uint32_t values)
{
	uint32_t bits = 0;

	while (values > 1u << bits)
		bits++;
	return bits;
}

static int profile_build(struct model_profile *p, const struct codec_geometry *g)
{
	const struct model_section *h = p->section;
	struct shape shape = { .layers = h->layers,
			       .kv_heads = h->kv_heads,
			       .head_dim = h->head_dim };
	struct mspec_facts facts;
	uint64_t kv = (uint64_t)h->kv_heads * h->head_dim;
	char err[CODEC_ERR_BYTES];
	int r = mspec_facts_read(p->serial, h->params_bytes, &facts);

	if (r < 0)
		return r;
	if (facts.layers != h->layers || facts.kv != kv ||
	    memcmp(facts.model, h->model_digest, sizeof(facts.model)) != 0)
		return -EBADMSG;
	shape.dtype = facts.dtype;
	p->segments_count = 2u * h->layers;
	p->segments = calloc(p->segments_count, sizeof(p->segments[0]));
	if (!p->segments)
		return -ENOMEM;
	if (segments_find(g, &shape, p->segments, err, sizeof(err)) < 0)
		return -EBADMSG;
	p->ids = facts.ids;
	p->draft = facts.mode == MSPEC_DRAFT;
	p->id_bits = facts.ids ? bits_of(h->vocab) : 0;
	p->expected_bits = h->expected_bits_q16 / 65536.0;
	p->streams_count = residual_streams(p->segments_count * kv * g->block_tokens, (uint32_t)kv,
					    RESIDUAL_STREAM_SCALARS, RESIDUAL_TAU_GROUPS);
	return 0;
}

bool model_ids_good(const struct model_profile *p, const int32_t *ids, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (ids[i] < 0 || (uint32_t)ids[i] >= p->section->vocab)
			return false;
	return true;
}

int model_profile_parse(const struct codec_geometry *g, const uint8_t *section, size_t bytes,
			struct model_profile **ret)
{
	struct model_section h;
	struct model_profile *p;
	int r;

	if (bytes < sizeof(h))
		return -EBADMSG;
	memcpy(&h, section, sizeof(h));
	r = header_check(&h, section, bytes);
	if (r < 0)
		return r;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->section = (const struct model_section *)(const void *)section;
	p->serial = section + sizeof(h);
	r = profile_build(p, g);
	if (r < 0) {
		model_profile_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct model_profile *model_profile_free(struct model_profile *p)
{
	if (!p)
		return NULL;
	mspec_params_free(p->params);
	free(p->segments);
	free(p);
	return NULL;
}

int model_profile_attach(struct model_profile *p, const struct mspec_model *m)
{
	const struct model_section *h = p->section;
	struct mspec_params *params = NULL;
	struct mspec_shape shape;
	int r;

	if (p->params)
		return -EALREADY;
	if (memcmp(h->model_digest, mspec_model_digest(m), sizeof(h->model_digest)) != 0)
		return -ESTALE;
	if (mspec_model_config(m)->vocab != h->vocab)
		return -EBADMSG;
	r = mspec_params_parse(m, p->serial, h->params_bytes, &params);
	if (r < 0)
		return r;
	shape = mspec_params_shape(params);
	if (shape.layers != h->layers || shape.kv_heads != h->kv_heads ||
	    shape.head_dim != h->head_dim) {
		mspec_params_free(params);
		return -EBADMSG;
	}
	p->params = params;
	return 0;
}

/* ---- of a profile ---- */

int codec_profile_attach_model(struct codec_profile *p, const struct mspec_model *m)
{
	return p->model ? model_profile_attach(p->model, m) : -ENODATA;
}

struct codec_model_info codec_profile_model(const struct codec_profile *p)
{
	struct codec_model_info info = { .attached = 0 };
	const struct model_section *h;

	if (!p->model)
		return info;
	h = p->model->section;
	memcpy(info.digest, h->model_digest, sizeof(info.digest));
	info.attached = p->model->params != NULL;
	info.ids = p->model->ids;
	info.draft = p->model->draft;
	info.vocab = h->vocab;
	info.expected_bits = p->model->expected_bits;
	info.params_bytes = h->params_bytes;
	info.products = h->products;
	return info;
}

static uint32_t q16(double x)
{
	return x > 0 && x < 65536 ? (uint32_t)(x * 65536) : 0;
}

/* The section of these parameters; owned by the caller. */
static int section_make(const struct mspec_params *params, double expected_bits,
			uint8_t **ret_section, size_t *ret_bytes)
{
	const struct mspec_model *m = mspec_params_model(params);
	const struct mspec_shape shape = mspec_params_shape(params);
	struct model_section h = {
		.magic = MODEL_SECTION_MAGIC,
		.version = MODEL_SECTION_VERSION,
		.layers = shape.layers,
		.kv_heads = shape.kv_heads,
		.head_dim = shape.head_dim,
		.vocab = mspec_model_config(m)->vocab,
		.products = mspec_params_products(params),
		.expected_bits_q16 = q16(expected_bits),
	};
	uint8_t *serial = NULL, *section;
	size_t bytes = 0;
	int r = mspec_params_serialise(params, &serial, &bytes);

	if (r < 0)
		return r;
	h.params_bytes = bytes;
	h.bytes = section_bytes(bytes);
	memcpy(h.model_digest, mspec_model_digest(m), sizeof(h.model_digest));
	section = calloc(1, h.bytes);
	if (section) {
		memcpy(section, &h, sizeof(h));
		memcpy(section + sizeof(h), serial, bytes);
	}
	free(serial);
	*ret_section = section;
	*ret_bytes = h.bytes;
	return section ? 0 : -ENOMEM;
}

/* Would the parse find the segments?  With words, while there is somebody to read them. */
static int suits(const struct codec_geometry *g, const struct mspec_params *params, char *err,
		 size_t err_bytes)
{
	const struct mspec_shape shape = mspec_params_shape(params);
	const struct shape s = { shape.layers, shape.kv_heads, shape.head_dim,
				 mspec_params_dtype(params) };
	uint16_t segments[CODEC_SEGMENTS_MAX];

	if (shape.layers > LAYERS_MAX) {
		(void)snprintf(err, err_bytes, "the cache has %u layers, %u at most", shape.layers,
			       LAYERS_MAX);
		return -EINVAL;
	}
	return segments_find(g, &s, segments, err, err_bytes);
}

int codec_profile_with_model(const struct codec_geometry *g, const struct codec_profile *p,
			     const struct mspec_params *params, double expected_bits,
			     struct codec_profile **ret_profile, char *err, size_t err_bytes)
{
	struct codec_profile *with = NULL;
	uint8_t *section = NULL;
	size_t bytes = 0;
	char unread[CODEC_ERR_BYTES];
	int r = suits(g, params, err ? err : unread, err ? err_bytes : sizeof(unread));

	if (r == 0)
		r = section_make(params, expected_bits, &section, &bytes);
	if (r == 0)
		r = codec_profile_with_model_section(g, p, section, bytes, &with);
	free(section);
	if (r == 0)
		r = codec_profile_attach_model(with, mspec_params_model(params));
	if (r < 0) {
		codec_profile_free(with);
		return r;
	}
	*ret_profile = with;
	return 0;
}
