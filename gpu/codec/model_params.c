/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_params.c - what was fitted: made, written, read back.
 *
 * Serial form, little endian, all integers:
 *
 *   "skvM", version, dtype, flags (1: ids, 2: coarse rope), layers, kv, hidden; u8 precision[6], 2 of zeros;
 *   the model's digest
 *
 *   version 1, a copy: without ids: i32 start[hidden]
 *     f32 scale_k, scale_v of each layer
 *     per layer: i32 k_frac, v_frac; unit_k, unit_v, score, real_v as u32, i32; u64 eps_input, eps_post;
 *       i32 bias_k[kv], bias_v[kv]; i16 sigma_k[kv], sigma_v[kv], base_k[kv], base_v[kv]; the value map, the gains
 *       (a matrix: u16 mants, i16 exps of its rows; the high plane; with wide weights the low one)
 *   version 2, a draft, with ids; layers, kv, hidden above are the draft's.  u32 layers, kv_heads, head_dim of the
 *     cache, previous; f64 theta
 *     f32 scale_k, scale_v of each layer of the cache
 *     per layer of the draft: k_frac .. eps_post as above; i16 weights of each tap's norm[hidden]
 *     per layer of the cache, kv its own: i32 bias[2 kv]; i16 weigh[2 kv], base_k[kv], base_v[kv]; the maps of the
 *       taps, of the layers before, of own K
 *
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
#define VERSION_COPY 1u
#define VERSION_DRAFT 2u
#define FLAG_IDS 1u
#define FLAG_COARSE 2u
#define EXP_MAX 256 /* of a scale: beyond it nothing is left of any product */
#define SHAPE_LAYERS_MAX 512u
#define SHAPE_WIDTH_MAX 65536u

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

/* What both modes have. */
static int params_new(const struct mspec_model *m, uint32_t layers, uint32_t dtype,
		      struct mspec_precision precision, struct mspec_params **ret)
{
	struct mspec_params *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->model = m;
	p->dtype = dtype;
	p->precision = precision;
	p->start = calloc(m->config.hidden, sizeof(p->start[0]));
	p->layers = calloc(m->config.layers, sizeof(p->layers[0]));
	p->tables = calloc(2, sizeof(p->tables[0]));
	p->scale_k = calloc(layers, sizeof(p->scale_k[0]));
	p->scale_v = calloc(layers, sizeof(p->scale_v[0]));
	if (!p->start || !p->layers || !p->tables || !p->scale_k || !p->scale_v) {
		mspec_params_free(p);
		return -ENOMEM;
	}
	*ret = p;
	return 0;
}

int mspec_params_new(const struct mspec_model *m, uint32_t dtype, struct mspec_precision precision,
		     struct mspec_params **ret)
{
	struct mspec_params *p = NULL;
	int r = params_new(m, m->config.layers, dtype, precision, &p);

	for (uint32_t l = 0; r == 0 && l < m->config.layers; l++)
		r = layer_new(p, &p->layers[l]);
	if (r < 0) {
		mspec_params_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

static int draft_layer_new(const struct mspec_params *p, const struct mspec_draft *d,
			   uint32_t layer)
{
	struct mspec_draft_layer *l = &d->layers[layer];
	const uint32_t kv = mspec_shape_kv(d->shape), hidden = p->model->config.hidden;
	int r = 0;

	l->bias = calloc(2u * (size_t)kv, sizeof(l->bias[0]));
	l->weigh = calloc(2u * (size_t)kv, sizeof(l->weigh[0]));
	l->base_k = calloc(kv, sizeof(l->base_k[0]));
	l->base_v = calloc(kv, sizeof(l->base_v[0]));
	if (!l->bias || !l->weigh || !l->base_k || !l->base_v)
		r = -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < MSPEC_TAPS; i++)
		r = mspec_matrix_init(&l->tap[i], 2u * kv, hidden, wide_maps(p));
	for (uint32_t i = 0; r == 0 && i < mspec_draft_past(d, layer); i++)
		r = mspec_matrix_init(&l->past[i], 2u * kv, kv, wide_maps(p));
	return r < 0 ? r : mspec_matrix_init(&l->own, kv, kv, wide_maps(p));
}

int mspec_draft_new(const struct mspec_params *p, struct mspec_shape shape, uint32_t previous,
		    struct mspec_draft **ret)
{
	struct mspec_draft *d = calloc(1, sizeof(*d));
	const uint32_t hidden = p->model->config.hidden;
	int r;

	assert(shape.layers && shape.kv_heads && shape.head_dim && previous <= MSPEC_PREVIOUS_MAX);
	if (!d)
		return -ENOMEM;
	d->shape = shape;
	d->previous = previous;
	d->frequencies = calloc(shape.head_dim / 2u + 1u, sizeof(d->frequencies[0]));
	d->layers = calloc(shape.layers, sizeof(d->layers[0]));
	r = d->frequencies && d->layers ? 0 : -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < MSPEC_TAPS; i++) {
		d->norm[i].frac = MSPEC_WEIGH_FRAC;
		d->norm[i].weights = calloc(hidden, sizeof(d->norm[i].weights[0]));
		r = d->norm[i].weights ? 0 : -ENOMEM;
	}
	for (uint32_t l = 0; r == 0 && l < shape.layers; l++)
		r = draft_layer_new(p, d, l);
	if (r < 0) {
		mspec_draft_free(d);
		return r;
	}
	*ret = d;
	return 0;
}

struct mspec_draft *mspec_draft_free(struct mspec_draft *d)
{
	if (!d)
		return NULL;
	for (uint32_t i = 0; d->layers && i < d->shape.layers; i++) {
		struct mspec_draft_layer *l = &d->layers[i];

		free(l->bias);
		free(l->weigh);
		free(l->base_k);
		free(l->base_v);
		for (uint32_t k = 0; k < MSPEC_TAPS; k++)
			mspec_matrix_deinit(&l->tap[k]);
		for (uint32_t k = 0; k < mspec_draft_past(d, i); k++)
			mspec_matrix_deinit(&l->past[k]);
		mspec_matrix_deinit(&l->own);
	}
	for (uint32_t i = 0; i < MSPEC_TAPS; i++)
		free(d->norm[i].weights);
	free(d->layers);
	free(d->frequencies);
	free(d);
	return NULL;
}

void mspec_draft_turns(struct mspec_draft *d)
{
	if (d->theta > 0)
		model_rope_frequencies(d->theta, d->shape.head_dim / 2u, d->frequencies);
	else
		memset(d->frequencies, 0, d->shape.head_dim / 2u * sizeof(d->frequencies[0]));
}

int mspec_params_new_draft(const struct mspec_model *m, struct mspec_shape shape, uint32_t previous,
			   uint32_t dtype, struct mspec_precision precision,
			   struct mspec_params **ret)
{
	struct mspec_params *p = NULL;
	int r = params_new(m, shape.layers, dtype, precision, &p);

	if (r < 0)
		return r;
	p->ids = true;
	r = mspec_draft_new(p, shape, previous, &p->draft);
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
	mspec_draft_free(p->draft);
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

const char *mspec_mode_name(enum mspec_mode mode)
{
	assert(mode < MSPEC_MODE_COUNT);
	return mode == MSPEC_DRAFT ? "draft" : "copy";
}

struct mspec_shape mspec_model_shape(const struct mspec_model *m)
{
	return (struct mspec_shape){ m->config.layers, m->config.kv_heads, m->config.head_dim };
}

enum mspec_mode mspec_mode_for(const struct mspec_model *m, struct mspec_shape cache)
{
	const struct mspec_shape own = mspec_model_shape(m);

	return own.layers == cache.layers && own.kv_heads == cache.kv_heads &&
			       own.head_dim == cache.head_dim
		       ? MSPEC_COPY
		       : MSPEC_DRAFT;
}

enum mspec_mode mspec_params_mode(const struct mspec_params *p)
{
	return p->draft ? MSPEC_DRAFT : MSPEC_COPY;
}

struct mspec_shape mspec_params_shape(const struct mspec_params *p)
{
	return p->draft ? p->draft->shape : mspec_model_shape(p->model);
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

/* What a pass needs to attend, of either mode. */
static void pass_fields(struct stream *s, struct mspec_layer *l)
{
	l->k_frac = (int32_t)signed_field(s, l->k_frac, 4, -32, 48);
	l->v_frac = (int32_t)signed_field(s, l->v_frac, 4, -32, 48);
	scale_field(s, &l->unit_k);
	scale_field(s, &l->unit_v);
	scale_field(s, &l->score);
	scale_field(s, &l->real_v);
	eps_field(s, &l->eps_input);
	eps_field(s, &l->eps_post);
}

static void bias_field(struct stream *s, int32_t *bias, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		bias[i] = (int32_t)signed_field(s, bias[i], 4, -INT32_MAX, INT32_MAX);
}

static void shorts_field(struct stream *s, int16_t *x, uint32_t count, int32_t least, int32_t most)
{
	for (uint32_t i = 0; i < count; i++)
		x[i] = (int16_t)signed_field(s, x[i], 2, least, most);
}

static void layer_fields(struct stream *s, struct mspec_layer *l, uint32_t kv)
{
	pass_fields(s, l);
	bias_field(s, l->bias_k, kv);
	bias_field(s, l->bias_v, kv);
	shorts_field(s, l->sigma_k, kv, MSPEC_BASE_MIN, MSPEC_BASE_MAX);
	shorts_field(s, l->sigma_v, kv, MSPEC_BASE_MIN, MSPEC_BASE_MAX);
	shorts_field(s, l->base_k, kv, MSPEC_BASE_MIN, MSPEC_BASE_MAX);
	shorts_field(s, l->base_v, kv, MSPEC_BASE_MIN, MSPEC_BASE_MAX);
	matrix_field(s, &l->value_map);
	matrix_field(s, &l->gain_k);
	matrix_field(s, &l->gain_v);
}

static void draft_layer_fields(struct stream *s, const struct mspec_draft *d, uint32_t layer)
{
	struct mspec_draft_layer *l = &d->layers[layer];
	const uint32_t kv = mspec_shape_kv(d->shape);

	bias_field(s, l->bias, 2u * kv);
	shorts_field(s, l->weigh, 2u * kv, 1, INT16_MAX);
	shorts_field(s, l->base_k, kv, MSPEC_BASE_MIN, MSPEC_BASE_MAX);
	shorts_field(s, l->base_v, kv, MSPEC_BASE_MIN, MSPEC_BASE_MAX);
	for (uint32_t i = 0; i < MSPEC_TAPS; i++)
		matrix_field(s, &l->tap[i]);
	for (uint32_t i = 0; i < mspec_draft_past(d, layer); i++)
		matrix_field(s, &l->past[i]);
	matrix_field(s, &l->own);
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
	/* A draft: of the cache. */
	struct mspec_shape shape;
	uint32_t previous;
	double theta;
};

/* 0: keys are not turned */
static bool theta_good(double theta)
{
	return theta == 0 || (theta >= 2 && theta <= 1e12);
}

static void theta_field(struct stream *s, double *theta)
{
	uint64_t bits = 0;

	memcpy(&bits, theta, sizeof(bits));
	integer(s, &bits, 8);
	memcpy(theta, &bits, sizeof(bits));
	if (!theta_good(*theta))
		s->bad = true;
}

static void head_fields(struct stream *s, struct head *h)
{
	unsigned_field(s, &h->magic, MAGIC, MAGIC);
	unsigned_field(s, &h->version, VERSION_COPY, VERSION_DRAFT);
	unsigned_field(s, &h->dtype, 1, 4);
	unsigned_field(s, &h->flags, 0, FLAG_IDS | FLAG_COARSE);
	unsigned_field(s, &h->layers, 1, UINT32_MAX);
	unsigned_field(s, &h->kv, 1, UINT32_MAX);
	unsigned_field(s, &h->hidden, 1, UINT32_MAX);
	bytes_field(s, h->precision, sizeof(h->precision));
	bytes_field(s, h->zeros, sizeof(h->zeros));
	bytes_field(s, h->model, sizeof(h->model));
	if (h->version != VERSION_DRAFT)
		return;
	unsigned_field(s, &h->shape.layers, 1, SHAPE_LAYERS_MAX);
	unsigned_field(s, &h->shape.kv_heads, 1, SHAPE_WIDTH_MAX);
	unsigned_field(s, &h->shape.head_dim, 2, SHAPE_WIDTH_MAX);
	unsigned_field(s, &h->previous, 0, MSPEC_PREVIOUS_MAX);
	theta_field(s, &h->theta);
}

#define HEAD_BYTES (7u * 4u + MSPEC_PRODUCTS + 2u + MODEL_DIGEST_BYTES)
#define DRAFT_HEAD_BYTES (4u * 4u + 8u)
#define PASS_BYTES (2u * 4u + 4u * 8u + 2u * 8u)
#define FREQS_BYTES (2u * 2u * (RESIDUAL_CLASSES * RESIDUAL_TOKENS + RESIDUAL_TAU_SYMBOLS))

static uint64_t matrix_bytes(uint64_t outs, uint64_t depth, bool wide)
{
	return outs * 4u + outs * depth * (wide ? 2u : 1u);
}

/* Of a whole serial form of a copy. */
static uint64_t copy_bytes(uint64_t layers, uint64_t kv, uint64_t hidden, bool ids, bool wide)
{
	const uint64_t layer = PASS_BYTES + kv * (2u * 4u + 4u * 2u) + matrix_bytes(kv, kv, wide) +
			       2u * matrix_bytes(hidden, kv, wide);

	return HEAD_BYTES + (ids ? 0 : 4u * hidden) + layers * (8u + layer) + FREQS_BYTES +
	       MODEL_DIGEST_BYTES;
}

/* ... of a draft of so many layers: layers and kv are the cache's. */
static uint64_t draft_bytes(uint64_t layers, uint64_t kv, uint64_t previous, uint64_t own_layers,
			    uint64_t hidden, bool wide)
{
	const uint64_t layer = kv * (2u * 4u + 2u * 2u + 2u * 2u) +
			       MSPEC_TAPS * matrix_bytes(2u * kv, hidden, wide) +
			       matrix_bytes(kv, kv, wide);
	uint64_t past = 0; /* matrices */

	for (uint64_t l = 0; l < layers; l++)
		past += 2u * (l < previous ? l : previous);
	return HEAD_BYTES + DRAFT_HEAD_BYTES + layers * (8u + layer) +
	       past * matrix_bytes(2u * kv, kv, wide) + own_layers * PASS_BYTES +
	       MSPEC_TAPS * 2u * hidden + FREQS_BYTES + MODEL_DIGEST_BYTES;
}

uint64_t mspec_params_bytes_max(uint32_t layers, uint32_t kv, uint32_t hidden)
{
	const uint64_t copy = copy_bytes(layers, kv, hidden, false, true);
	const uint64_t draft = draft_bytes(layers, kv, MSPEC_PREVIOUS_MAX, layers, hidden, true);

	return copy > draft ? copy : draft;
}

static void copy_fields(struct stream *s, struct mspec_params *p)
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
}

static void draft_fields(struct stream *s, struct mspec_params *p)
{
	const struct model_config *c = &p->model->config;
	const struct mspec_draft *d = p->draft;

	for (uint32_t l = 0; l < d->shape.layers; l++) {
		float_field(s, &p->scale_k[l]);
		float_field(s, &p->scale_v[l]);
	}
	for (uint32_t l = 0; l < c->layers && !s->bad; l++)
		pass_fields(s, &p->layers[l]);
	for (uint32_t i = 0; i < MSPEC_TAPS; i++)
		shorts_field(s, d->norm[i].weights, c->hidden, 1, INT16_MAX);
	for (uint32_t l = 0; l < d->shape.layers && !s->bad; l++)
		draft_layer_fields(s, d, l);
}

static void body_fields(struct stream *s, struct mspec_params *p)
{
	if (p->draft)
		draft_fields(s, p);
	else
		copy_fields(s, p);
	freqs_field(s, &p->freqs[0]);
	freqs_field(s, &p->freqs[1]);
}

static void write_all(struct stream *s, const struct mspec_params *p)
{
	struct head h = {
		.magic = MAGIC,
		.version = p->draft ? VERSION_DRAFT : VERSION_COPY,
		.dtype = p->dtype,
		.flags = (p->ids ? FLAG_IDS : 0) | (p->coarse_rope ? FLAG_COARSE : 0),
		.layers = p->model->config.layers,
		.kv = mspec_kv_width(&p->model->config),
		.hidden = p->model->config.hidden,
	};

	memcpy(h.precision, p->precision.wide, sizeof(h.precision));
	memcpy(h.model, p->model->digest, sizeof(h.model));
	if (p->draft) {
		h.shape = p->draft->shape;
		h.previous = p->draft->previous;
		h.theta = p->draft->theta;
	}
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
	if (s.bad) {
		free(s.out);
		return -ERANGE;
	}
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
	if (p->draft)
		mspec_draft_turns(p->draft);
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

/* Is this the length of such a form?  And so nothing that it states is larger than what is there. */
static bool head_sane(const struct head *h, size_t bytes)
{
	const bool wide = h->precision[MSPEC_MAPS] & MODEL_WIDE_WEIGHT;
	const uint64_t kv = (uint64_t)h->shape.kv_heads * h->shape.head_dim;

	if (h->layers > SHAPE_LAYERS_MAX || h->kv > SHAPE_WIDTH_MAX || h->hidden > SHAPE_WIDTH_MAX)
		return false;
	if (h->version == VERSION_COPY)
		return copy_bytes(h->layers, h->kv, h->hidden, h->flags & FLAG_IDS, wide) == bytes;
	return h->flags & FLAG_IDS && h->shape.head_dim % 2u == 0 && kv <= SHAPE_WIDTH_MAX &&
	       draft_bytes(h->shape.layers, kv, h->previous, h->layers, h->hidden, wide) == bytes;
}

int mspec_facts_read(const uint8_t *in, size_t bytes, struct mspec_facts *ret)
{
	struct stream s;
	struct head h = { 0 };
	int r = head_read(&s, in, bytes, &h);

	if (r < 0)
		return r;
	if (!head_sane(&h, bytes))
		return -EBADMSG;
	*ret = (struct mspec_facts){ .mode = MSPEC_COPY,
				     .dtype = h.dtype,
				     .layers = h.layers,
				     .kv = h.kv,
				     .hidden = h.hidden,
				     .ids = h.flags & FLAG_IDS };
	if (h.version == VERSION_DRAFT) {
		ret->mode = MSPEC_DRAFT;
		ret->layers = h.shape.layers;
		ret->kv = mspec_shape_kv(h.shape);
	}
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
	if (!head_fits(m, &h) || !head_sane(&h, bytes))
		return -EBADMSG;
	memcpy(precision.wide, h.precision, sizeof(precision.wide));
	r = h.version == VERSION_DRAFT
		    ? mspec_params_new_draft(m, h.shape, h.previous, h.dtype, precision, &p)
		    : mspec_params_new(m, h.dtype, precision, &p);
	if (r < 0)
		return r;
	if (p->draft)
		p->draft->theta = h.theta;
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
