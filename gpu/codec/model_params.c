/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_params.c - what was fitted: made, written, read back.
 *
 * Serial form, little endian, all integers:
 *
 *   "skvM", version, dtype, flags (1: ids, 2: coarse rope), layers, kv, hidden; u8 precision[6], 2 of zeros;
 *   the model's digest; without ids: i32 start[hidden]
 *   f32 scale_k, scale_v of each layer
 *   per layer: i32 k_frac, v_frac; unit_k, unit_v, score, real_v as u32, i32; u64 eps_input, eps_post;
 *     i32 bias_k[kv], bias_v[kv]; i16 sigma_k[kv], sigma_v[kv], base_k[kv], base_v[kv]; the value map, the gains
 *     (a matrix: u16 mants, i16 exps of its rows; the high plane; with wide weights the low one)
 *   K's frequencies, V's: u16 token[classes][tokens], tau
 *   BLAKE2b of all before, which is the parameters' digest
 *
 * It may come from anywhere: every field is checked when it is read.
 */
#include "gpu/codec/model_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#define MAGIC 0x4d766b73u
#define VERSION 1u
#define FLAG_IDS 1u
#define FLAG_COARSE 2u
#define EXP_MAX 256 /* of a scale: beyond it nothing is left of any product */

static bool wide_maps(const struct mspec_params *p)
{
	return p->precision.wide[MSPEC_MAPS] & MODEL_WIDE_WEIGHT;
}

static int layer_new(const struct mspec_params *p, struct mspec_layer *l)
{
	const uint32_t kv = mspec_kv_width(&p->model->config);

	l->bias_k = calloc(kv, sizeof(l->bias_k[0]));
	l->bias_v = calloc(kv, sizeof(l->bias_v[0]));
	l->sigma_k = calloc(kv, sizeof(l->sigma_k[0]));
	l->sigma_v = calloc(kv, sizeof(l->sigma_v[0]));
	l->base_k = calloc(kv, sizeof(l->base_k[0]));
	l->base_v = calloc(kv, sizeof(l->base_v[0]));
	if (!l->bias_k || !l->bias_v || !l->sigma_k || !l->sigma_v || !l->base_k || !l->base_v ||
	    mspec_matrix_init(&l->value_map, kv, kv, wide_maps(p)) < 0 ||
	    mspec_matrix_init(&l->gain_k, p->model->config.hidden, kv, wide_maps(p)) < 0 ||
	    mspec_matrix_init(&l->gain_v, p->model->config.hidden, kv, wide_maps(p)) < 0)
		return -ENOMEM;
	return 0;
}

int mspec_params_new(const struct mspec_model *m, uint32_t dtype, struct mspec_precision precision,
		     struct mspec_params **ret)
{
	struct mspec_params *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	p->model = m;
	p->dtype = dtype;
	p->precision = precision;
	p->start = calloc(m->config.hidden, sizeof(p->start[0]));
	p->layers = calloc(m->config.layers, sizeof(p->layers[0]));
	p->tables = calloc(2, sizeof(p->tables[0]));
	p->scale_k = calloc(m->config.layers, sizeof(p->scale_k[0]));
	p->scale_v = calloc(m->config.layers, sizeof(p->scale_v[0]));
	r = p->start && p->layers && p->tables && p->scale_k && p->scale_v ? 0 : -ENOMEM;
	for (uint32_t l = 0; r == 0 && l < m->config.layers; l++)
		r = layer_new(p, &p->layers[l]);
	if (r < 0) {
		mspec_params_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct mspec_params *mspec_params_free(struct mspec_params *p)
{
	if (!p)
		return NULL;
	for (uint32_t i = 0; p->layers && i < p->model->config.layers; i++) {
		struct mspec_layer *l = &p->layers[i];

		free(l->bias_k);
		free(l->bias_v);
		free(l->sigma_k);
		free(l->sigma_v);
		free(l->base_k);
		free(l->base_v);
		mspec_matrix_deinit(&l->value_map);
		mspec_matrix_deinit(&l->gain_k);
		mspec_matrix_deinit(&l->gain_v);
	}
	free(p->layers);
	free(p->start);
	free(p->scale_k);
	free(p->scale_v);
	free(p->tables);
	free(p);
	return NULL;
}

const uint8_t *mspec_params_digest(const struct mspec_params *p)
{
	return p->digest;
}

bool mspec_params_ids(const struct mspec_params *p)
{
	return p->ids;
}

uint32_t mspec_params_dtype(const struct mspec_params *p)
{
	return p->dtype;
}

struct mspec_precision mspec_params_precision(const struct mspec_params *p)
{
	return p->precision;
}

const struct mspec_model *mspec_params_model(const struct mspec_params *p)
{
	return p->model;
}

/* ---- one description of the form, for both ways ---- */

struct stream {
	uint8_t *out;	   /* writing; NULL: only counts */
	const uint8_t *in; /* reading; NULL: writes */
	size_t at, bytes;
	bool bad; /* reading: cut short, or a field out of its range */
};

static void integer(struct stream *s, uint64_t *value, uint32_t bytes)
{
	if (s->in) {
		*value = 0;
		if (bytes > s->bytes - s->at) {
			s->bad = true;
			return;
		}
		for (uint32_t i = 0; i < bytes; i++)
			*value |= (uint64_t)s->in[s->at + i] << (8 * i);
	} else if (s->out) {
		for (uint32_t i = 0; i < bytes; i++)
			s->out[s->at + i] = (uint8_t)(*value >> (8 * i));
	}
	s->at += bytes;
}

static void unsigned_field(struct stream *s, uint32_t *value, uint32_t least, uint32_t most)
{
	uint64_t x = *value;

	integer(s, &x, 4);
	if (x < least || x > most)
		s->bad = true;
	else
		*value = (uint32_t)x;
}

static int64_t signed_field(struct stream *s, int64_t value, uint32_t bytes, int64_t least,
			    int64_t most)
{
	uint64_t x = (uint64_t)value;
	int64_t y;

	integer(s, &x, bytes);
	y = bytes == 2 ? (int16_t)(uint16_t)x : (int32_t)(uint32_t)x;
	if (y < least || y > most) {
		s->bad = true;
		return value;
	}
	return y;
}

static void scale_field(struct stream *s, struct model_scale *x)
{
	unsigned_field(s, &x->mant, 0, (1u << 24) - 1u);
	x->exp = (int32_t)signed_field(s, x->exp, 4, -EXP_MAX, EXP_MAX);
}

static void float_field(struct stream *s, float *x)
{
	uint32_t bits = 0;

	memcpy(&bits, x, sizeof(bits));
	unsigned_field(s, &bits, 0, UINT32_MAX);
	memcpy(x, &bits, sizeof(bits));
	if (s->in && !mspec_scale_good(*x))
		s->bad = true;
}

static void eps_field(struct stream *s, uint64_t *eps)
{
	uint64_t x = *eps;

	integer(s, &x, 8);
	if (x >> 61)
		s->bad = true;
	else
		*eps = x;
}

static void bytes_field(struct stream *s, void *p, size_t count)
{
	if (s->bad || (s->in && count > s->bytes - s->at)) {
		s->bad = true;
		return;
	}
	if (s->in)
		memcpy(p, s->in + s->at, count);
	else if (s->out)
		memcpy(s->out + s->at, p, count);
	s->at += count;
}

static void plane_field(struct stream *s, const struct mspec_matrix *m, int8_t *plane)
{
	for (uint32_t o = 0; o < m->outs; o++)
		bytes_field(s, plane + (size_t)o * m->pitch, m->depth);
}

static void matrix_field(struct stream *s, struct mspec_matrix *m)
{
	for (uint32_t o = 0; o < m->outs; o++) {
		uint64_t x = m->mants[o];

		integer(s, &x, 2);
		if (x != 0 && x < 0x8000)
			s->bad = true;
		m->mants[o] = (uint16_t)x;
	}
	for (uint32_t o = 0; o < m->outs; o++)
		m->exps[o] = (int16_t)signed_field(s, m->exps[o], 2, -EXP_MAX, EXP_MAX);
	plane_field(s, m, m->high);
	if (m->low)
		plane_field(s, m, m->low);
}

static void layer_fields(struct stream *s, struct mspec_layer *l, uint32_t kv)
{
	l->k_frac = (int32_t)signed_field(s, l->k_frac, 4, -32, 48);
	l->v_frac = (int32_t)signed_field(s, l->v_frac, 4, -32, 48);
	scale_field(s, &l->unit_k);
	scale_field(s, &l->unit_v);
	scale_field(s, &l->score);
	scale_field(s, &l->real_v);
	eps_field(s, &l->eps_input);
	eps_field(s, &l->eps_post);
	for (uint32_t i = 0; i < kv; i++)
		l->bias_k[i] = (int32_t)signed_field(s, l->bias_k[i], 4, -INT32_MAX, INT32_MAX);
	for (uint32_t i = 0; i < kv; i++)
		l->bias_v[i] = (int32_t)signed_field(s, l->bias_v[i], 4, -INT32_MAX, INT32_MAX);
	for (uint32_t i = 0; i < kv; i++)
		l->sigma_k[i] = (int16_t)signed_field(s, l->sigma_k[i], 2, MSPEC_BASE_MIN,
						      MSPEC_BASE_MAX);
	for (uint32_t i = 0; i < kv; i++)
		l->sigma_v[i] = (int16_t)signed_field(s, l->sigma_v[i], 2, MSPEC_BASE_MIN,
						      MSPEC_BASE_MAX);
	for (uint32_t i = 0; i < kv; i++)
		l->base_k[i] = (int16_t)signed_field(s, l->base_k[i], 2, MSPEC_BASE_MIN,
						     MSPEC_BASE_MAX);
	for (uint32_t i = 0; i < kv; i++)
		l->base_v[i] = (int16_t)signed_field(s, l->base_v[i], 2, MSPEC_BASE_MIN,
						     MSPEC_BASE_MAX);
	matrix_field(s, &l->value_map);
	matrix_field(s, &l->gain_k);
	matrix_field(s, &l->gain_v);
}

static void freqs_field(struct stream *s, struct residual_freqs *f)
{
	for (uint32_t k = 0; k < RESIDUAL_CLASSES; k++)
		for (uint32_t t = 0; t < RESIDUAL_TOKENS; t++)
			f->token[k][t] = (uint16_t)signed_field(s, f->token[k][t], 2, 0,
								CODEC_PROB_SUM);
	for (uint32_t t = 0; t < RESIDUAL_TAU_SYMBOLS; t++)
		f->tau[t] = (uint16_t)signed_field(s, f->tau[t], 2, 0, CODEC_PROB_SUM);
}

struct head {
	uint32_t magic, version, dtype, flags, layers, kv, hidden;
	uint8_t precision[MSPEC_PRODUCTS], zeros[2];
	uint8_t model[MODEL_DIGEST_BYTES];
};

static void head_fields(struct stream *s, struct head *h)
{
	unsigned_field(s, &h->magic, MAGIC, MAGIC);
	unsigned_field(s, &h->version, VERSION, VERSION);
	unsigned_field(s, &h->dtype, 1, 4);
	unsigned_field(s, &h->flags, 0, FLAG_IDS | FLAG_COARSE);
	unsigned_field(s, &h->layers, 1, UINT32_MAX);
	unsigned_field(s, &h->kv, 1, UINT32_MAX);
	unsigned_field(s, &h->hidden, 1, UINT32_MAX);
	bytes_field(s, h->precision, sizeof(h->precision));
	bytes_field(s, h->zeros, sizeof(h->zeros));
	bytes_field(s, h->model, sizeof(h->model));
}

#define HEAD_BYTES (7u * 4u + MSPEC_PRODUCTS + 2u + MODEL_DIGEST_BYTES)
#define SHAPE_LAYERS_MAX 512u
#define SHAPE_WIDTH_MAX 65536u

static uint64_t matrix_bytes(uint64_t outs, uint64_t depth, bool wide)
{
	return outs * 4u + outs * depth * (wide ? 2u : 1u);
}

/* Of a whole serial form. */
static uint64_t form_bytes(uint64_t layers, uint64_t kv, uint64_t hidden, bool ids, bool wide)
{
	const uint64_t layer = 2u * 4u + 4u * 8u + 2u * 8u + kv * (2u * 4u + 4u * 2u) +
			       matrix_bytes(kv, kv, wide) + 2u * matrix_bytes(hidden, kv, wide);
	const uint64_t freqs = 2u * 2u *
			       (RESIDUAL_CLASSES * RESIDUAL_TOKENS + RESIDUAL_TAU_SYMBOLS);

	return HEAD_BYTES + (ids ? 0 : 4u * hidden) + layers * (8u + layer) + freqs +
	       MODEL_DIGEST_BYTES;
}

uint64_t mspec_params_bytes_max(uint32_t layers, uint32_t kv, uint32_t hidden)
{
	return form_bytes(layers, kv, hidden, false, true);
}

static void body_fields(struct stream *s, struct mspec_params *p)
{
	const struct model_config *c = &p->model->config;

	for (uint32_t i = 0; !p->ids && i < c->hidden; i++)
		p->start[i] = (int32_t)signed_field(s, p->start[i], 4, -INT32_MAX, INT32_MAX);
	for (uint32_t l = 0; l < c->layers; l++) {
		float_field(s, &p->scale_k[l]);
		float_field(s, &p->scale_v[l]);
	}
	for (uint32_t l = 0; l < c->layers && !s->bad; l++)
		layer_fields(s, &p->layers[l], mspec_kv_width(c));
	freqs_field(s, &p->freqs[0]);
	freqs_field(s, &p->freqs[1]);
}

static void write_all(struct stream *s, const struct mspec_params *p)
{
	struct head h = {
		.magic = MAGIC,
		.version = VERSION,
		.dtype = p->dtype,
		.flags = (p->ids ? FLAG_IDS : 0) | (p->coarse_rope ? FLAG_COARSE : 0),
		.layers = p->model->config.layers,
		.kv = mspec_kv_width(&p->model->config),
		.hidden = p->model->config.hidden,
	};

	memcpy(h.precision, p->precision.wide, sizeof(h.precision));
	memcpy(h.model, p->model->digest, sizeof(h.model));
	head_fields(s, &h);
	body_fields(s, (struct mspec_params *)p); /* writing leaves it as it is */
}

int mspec_params_serialise(const struct mspec_params *p, uint8_t **ret_bytes, size_t *ret_count)
{
	struct stream s = { .out = NULL };

	write_all(&s, p);
	s.out = malloc(s.at + MODEL_DIGEST_BYTES);
	if (!s.out)
		return -ENOMEM;
	s.at = 0;
	write_all(&s, p);
	assert(!s.bad);
	crypto_generichash(s.out + s.at, MODEL_DIGEST_BYTES, s.out, s.at, NULL, 0);
	*ret_bytes = s.out;
	*ret_count = s.at + MODEL_DIGEST_BYTES;
	return 0;
}

int mspec_params_seal(struct mspec_params *p)
{
	uint8_t *bytes = NULL;
	size_t count = 0;
	int r;

	for (uint32_t i = 0; i < 2; i++) {
		r = residual_tables_build(&p->freqs[i], &p->tables[i]);
		if (r < 0)
			return r;
	}
	r = mspec_params_serialise(p, &bytes, &count);
	if (r < 0)
		return r;
	memcpy(p->digest, bytes + count - MODEL_DIGEST_BYTES, MODEL_DIGEST_BYTES);
	free(bytes);
	return 0;
}

static bool head_fits(const struct mspec_model *m, const struct head *h)
{
	for (uint32_t i = 0; i < MSPEC_PRODUCTS; i++) {
		if (h->precision[i] > (MODEL_WIDE_ROW | MODEL_WIDE_WEIGHT))
			return false;
		if (h->precision[i] & MODEL_WIDE_WEIGHT && i != MSPEC_MAPS && i != MSPEC_KV &&
		    !m->low_planes)
			return false;
	}
	return h->layers == m->config.layers && h->kv == mspec_kv_width(&m->config) &&
	       h->hidden == m->config.hidden && h->zeros[0] == 0 && h->zeros[1] == 0;
}

/* Digest of the whole, then the head; s is left behind it. */
static int head_read(struct stream *s, const uint8_t *in, size_t bytes, struct head *h)
{
	uint8_t digest[MODEL_DIGEST_BYTES];

	if (bytes < MODEL_DIGEST_BYTES)
		return -EBADMSG;
	*s = (struct stream){ .in = in, .bytes = bytes - MODEL_DIGEST_BYTES };
	crypto_generichash(digest, sizeof(digest), in, s->bytes, NULL, 0);
	if (memcmp(digest, in + s->bytes, sizeof(digest)) != 0)
		return -EBADMSG;
	head_fields(s, h);
	return s->bad ? -EBADMSG : 0;
}

int mspec_facts_read(const uint8_t *in, size_t bytes, struct mspec_facts *ret)
{
	struct stream s;
	struct head h = { 0 };
	int r = head_read(&s, in, bytes, &h);

	if (r < 0)
		return r;
	assert(s.at == HEAD_BYTES);
	if (h.layers > SHAPE_LAYERS_MAX || h.kv > SHAPE_WIDTH_MAX || h.hidden > SHAPE_WIDTH_MAX ||
	    form_bytes(h.layers, h.kv, h.hidden, h.flags & FLAG_IDS,
		       h.precision[MSPEC_MAPS] & MODEL_WIDE_WEIGHT) != bytes)
		return -EBADMSG;
	*ret = (struct mspec_facts){ .dtype = h.dtype,
				     .layers = h.layers,
				     .kv = h.kv,
				     .hidden = h.hidden,
				     .ids = h.flags & FLAG_IDS };
	memcpy(ret->model, h.model, sizeof(ret->model));
	return 0;
}

int mspec_params_parse(const struct mspec_model *m, const uint8_t *in, size_t bytes,
		       struct mspec_params **ret)
{
	struct stream s;
	struct mspec_precision precision;
	struct mspec_params *p;
	struct head h = { 0 };
	int r = head_read(&s, in, bytes, &h);

	if (r < 0)
		return r;
	if (memcmp(h.model, m->digest, sizeof(h.model)) != 0)
		return -ESTALE;
	if (!head_fits(m, &h))
		return -EBADMSG;
	memcpy(precision.wide, h.precision, sizeof(precision.wide));
	r = mspec_params_new(m, h.dtype, precision, &p);
	if (r < 0)
		return r;
	p->ids = h.flags & FLAG_IDS;
	p->coarse_rope = h.flags & FLAG_COARSE;
	body_fields(&s, p);
	r = s.bad || s.at != s.bytes ? -EBADMSG : mspec_params_seal(p);
	if (r < 0) {
		mspec_params_free(p);
		return r;
	}
	*ret = p;
	return 0;
}
