/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.c - blocks of one sequence through the `model` speculator: guesses to the residual coder, exact values
 * to the context.
 */
#include "gpu/codec/model.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/model_internal.h"

struct mspec_context {
	const struct mspec_params *p; /* borrowed */
	uint32_t count, capacity;     /* tokens */
	int16_t *
		values; /* owned; [2 * layers][kv_heads][capacity][head_dim], as the model has them */
};

struct mspec_coder {
	const struct mspec_params *p; /* borrowed */
	struct mspec_pass pass;
	struct mspec_guess guess; /* of a draft; else nothing */
};

/* ---- the context ---- */

int mspec_context_new(const struct mspec_params *p, struct mspec_context **ret)
{
	struct mspec_context *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->p = p;
	*ret = c;
	return 0;
}

struct mspec_context *mspec_context_free(struct mspec_context *c)
{
	if (!c)
		return NULL;
	free(c->values);
	free(c);
	return NULL;
}

void mspec_context_reset(struct mspec_context *c)
{
	c->count = 0;
}

uint32_t mspec_context_count(const struct mspec_context *c)
{
	return c->count;
}

void mspec_context_truncate(struct mspec_context *c, uint32_t count)
{
	assert(count <= c->count);
	c->count = count;
}

static size_t plane_scalars(const struct mspec_context *c)
{
	return (size_t)c->capacity * c->p->model->config.head_dim;
}

uint64_t mspec_context_bytes(const struct mspec_context *c)
{
	const struct model_config *m = &c->p->model->config;

	return sizeof(*c) +
	       2u * (uint64_t)m->layers * m->kv_heads * plane_scalars(c) * sizeof(c->values[0]);
}

static int16_t *segment_at(const struct mspec_context *c, uint32_t segment)
{
	return c->values + (size_t)segment * c->p->model->config.kv_heads * plane_scalars(c);
}

static int context_reserve(struct mspec_context *c, uint32_t more)
{
	const struct model_config *m = &c->p->model->config;
	const size_t planes = 2u * (size_t)m->layers * m->kv_heads;
	uint32_t capacity = c->capacity ? c->capacity : 64u;
	int16_t *values;

	if (more > MODEL_POSITIONS_MAX - c->count)
		return -EINVAL;
	if (c->count + more <= c->capacity)
		return 0;
	while (capacity < c->count + more)
		capacity *= 2u;
	values = malloc(planes * capacity * m->head_dim * sizeof(values[0]));
	if (!values)
		return -ENOMEM;
	for (size_t i = 0; i < planes && c->count; i++)
		memcpy(values + i * capacity * m->head_dim, c->values + i * plane_scalars(c),
		       (size_t)c->count * m->head_dim * sizeof(values[0]));
	free(c->values);
	c->values = values;
	c->capacity = capacity;
	return 0;
}

/* The values of one segment behind those that count. */
static void context_store(struct mspec_context *c, uint32_t segment, const uint8_t *patterns,
			  uint32_t count)
{
	const struct mspec_layer *l = &c->p->layers[segment / 2u];

	mspec_kv_store(&c->p->model->config, residual_type_of(c->p->dtype), patterns, count,
		       segment % 2u ? l->v_frac : l->k_frac, segment_at(c, segment), c->capacity,
		       c->count);
}

int mspec_context_append(struct mspec_context *c, const uint8_t *const *patterns, uint32_t count)
{
	int r = c->p->draft ? -ENODATA : context_reserve(c, count);

	if (r < 0)
		return r;
	for (uint32_t i = 0; count && i < 2u * c->p->model->config.layers; i++)
		context_store(c, i, patterns[i], count);
	c->count += count;
	return 0;
}

/* ---- coding ---- */

int mspec_coder_new(const struct mspec_params *p, const struct mspec_runner *runner,
		    struct mspec_coder **ret)
{
	return mspec_coder_new_for(p, runner, MODEL_BLOCK_MAX, ret);
}

int mspec_coder_new_for(const struct mspec_params *p, const struct mspec_runner *runner,
			uint32_t rows_max, struct mspec_coder **ret)
{
	struct mspec_coder *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	assert(rows_max > 0 && rows_max <= MODEL_BLOCK_MAX);
	w->p = p;
	r = mspec_pass_init(&w->pass, p->model, runner, rows_max, mspec_guess_widest(p));
	if (r == 0 && p->draft)
		r = mspec_guess_init(&w->guess, p, &w->pass);
	if (r < 0) {
		mspec_coder_free(w);
		return r;
	}
	w->pass.precision = p->precision;
	w->pass.coarse_rope = p->coarse_rope && !p->draft; /* whose it is */
	*ret = w;
	return 0;
}

struct mspec_coder *mspec_coder_free(struct mspec_coder *w)
{
	if (!w)
		return NULL;
	mspec_guess_deinit(&w->guess);
	mspec_pass_deinit(&w->pass);
	free(w);
	return NULL;
}

/*
 * A sum, so that any order of guesses gives it, and blocks of a run add up to that of the run; each guess is
 * stirred with its place in the sequence.
 */
static uint32_t digest_of(const int32_t *mu, size_t count, size_t place, uint32_t segment)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		uint32_t x = (uint32_t)mu[i] + (uint32_t)(place + i) * 0x9e3779b9u +
			     segment * 0x85ebca6bu;

		x = (x ^ x >> 16) * 0x7feb352du;
		x = (x ^ x >> 15) * 0x846ca68bu;
		sum += x ^ x >> 16;
	}
	return sum;
}

/* One block on its way: encoding has `in`, decoding `out`. */
struct block {
	struct mspec_coder *w;
	struct mspec_context *c;
	uint32_t count;
	const uint8_t *const *in;
	uint8_t *const *out;
	struct residual_encoder *e;
	struct residual_decoder *d;
	struct mspec_result *result;
};

static int block_segment(struct block *b, uint32_t segment)
{
	const struct mspec_params *p = b->w->p;
	const uint32_t value = segment % 2u;
	const struct residual_segment s = {
		.tokens_count = b->count,
		.columns = mspec_shape_kv(mspec_params_shape(p)),
		.type = residual_type_of(p->dtype),
		.tables = &p->tables[value],
		.base = mspec_params_base(p, segment),
		.mu = p->draft ? value ? b->w->guess.mu_v : b->w->guess.mu_k
		      : value  ? b->w->pass.mu_v
			       : b->w->pass.mu_k,
	};
	const uint8_t *patterns;
	int r;

	b->result->mu_digest += digest_of(s.mu, (size_t)s.tokens_count * s.columns,
					  (size_t)b->c->count * s.columns, segment);
	if (b->e) {
		patterns = b->in[segment];
		r = residual_encode(b->e, &s, patterns, &b->result->escapes,
				    &b->result->bits[value]);
	} else {
		patterns = b->out[segment];
		r = residual_decode(b->d, &s, b->out[segment]);
	}
	if (r < 0)
		return r;
	if (p->draft) {
		mspec_guess_exact(&b->w->guess, value, patterns);
	} else {
		mspec_pass_error(&b->w->pass, s.type, value, patterns);
		context_store(b->c, segment, patterns, b->count);
	}
	return 0;
}

static void pass_at(struct mspec_coder *w, const struct mspec_context *c, uint32_t layer)
{
	struct mspec_pass *pass = &w->pass;

	pass->layer = &w->p->layers[layer];
	pass->w = &w->p->model->layers[layer];
	pass->k = segment_at(c, 2u * layer);
	pass->v = segment_at(c, 2u * layer + 1u);
	pass->capacity = c->capacity;
}

static int copy_layer(struct block *b, uint32_t layer)
{
	struct mspec_pass *pass = &b->w->pass;
	int r;

	pass_at(b->w, b->c, layer);
	mspec_pass_guess_k(pass);
	r = block_segment(b, 2u * layer);
	if (r < 0)
		return r;
	mspec_pass_guess_v(pass);
	r = block_segment(b, 2u * layer + 1u);
	if (r < 0 || layer + 1u == b->w->p->model->config.layers)
		return r;
	mspec_pass_gain(pass);
	mspec_pass_finish(pass);
	return 0;
}

/* The draft over its rows behind the context, which has room for them. */
static void draft_pass(struct mspec_coder *w, const struct mspec_context *c)
{
	for (uint32_t l = 0; l < w->p->model->config.layers; l++) {
		pass_at(w, c, l);
		mspec_pass_own(&w->pass, segment_at(c, 2u * l), segment_at(c, 2u * l + 1u));
	}
}

static int draft_layer(struct block *b, uint32_t layer)
{
	struct mspec_guess *g = &b->w->guess;
	int r;

	mspec_guess_layer(g, layer);
	mspec_guess_k(g);
	r = block_segment(b, 2u * layer);
	if (r < 0)
		return r;
	mspec_guess_v(g);
	return block_segment(b, 2u * layer + 1u);
}

/* Rows behind the context, embedded. */
static int rows_start(struct mspec_coder *w, struct mspec_context *c, const int32_t *ids,
		      uint32_t count)
{
	int r = context_reserve(c, count);

	if (r == 0)
		r = mspec_pass_start(&w->pass, c->count, count);
	if (r == 0)
		r = mspec_pass_embed(&w->pass, ids, w->p->start);
	return r;
}

int mspec_context_follow(struct mspec_coder *w, struct mspec_context *c, const int32_t *ids,
			 uint32_t count)
{
	const uint32_t before = c->count, most = w->pass.rows_max;
	int r = !w->p->draft ? -ENODATA : ids || !count ? 0 : -EINVAL;

	assert(c->p == w->p);
	for (uint32_t at = 0, n; r == 0 && at < count; at += n) {
		n = count - at < most ? count - at : most;
		r = rows_start(w, c, ids + at, n);
		if (r < 0)
			break;
		draft_pass(w, c);
		c->count += n;
	}
	if (r < 0)
		c->count = before;
	return r;
}

static int block_run(struct block *b, const int32_t *ids)
{
	const struct mspec_params *p = b->w->p;
	int r;

	assert(b->c->p == p);
	*b->result = (struct mspec_result){ .escapes = 0 };
	if (b->count == 0 || b->count > b->w->pass.rows_max || (p->ids && !ids))
		return -EINVAL;
	r = rows_start(b->w, b->c, p->ids ? ids : NULL, b->count);
	if (r == 0 && p->draft) {
		r = mspec_guess_start(&b->w->guess);
		if (r == 0)
			draft_pass(b->w, b->c);
	}
	for (uint32_t l = 0; r == 0 && l < mspec_params_shape(p).layers; l++)
		r = p->draft ? draft_layer(b, l) : copy_layer(b, l);
	if (r == 0)
		b->c->count += b->count;
	return r;
}

int mspec_encode(struct mspec_coder *w, struct mspec_context *c, const int32_t *ids, uint32_t count,
		 const uint8_t *const *patterns, struct residual_encoder *e,
		 struct mspec_result *ret)
{
	struct block b = { .w = w, .c = c, .count = count, .in = patterns, .e = e, .result = ret };

	return block_run(&b, ids);
}

int mspec_decode(struct mspec_coder *w, struct mspec_context *c, const int32_t *ids, uint32_t count,
		 struct residual_decoder *d, uint8_t *const *patterns, struct mspec_result *ret)
{
	struct block b = { .w = w, .c = c, .count = count, .out = patterns, .d = d, .result = ret };

	return block_run(&b, ids);
}
