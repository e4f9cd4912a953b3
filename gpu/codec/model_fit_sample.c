/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_fit_sample.c - the sample that parameters of the `model` speculator are fitted on, walks over it, and what a
 * fit of either mode ends with: scales, statistics, parameters.
 */
#include "gpu/codec/model_fit_internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define HEADROOM 1.5	 /* of the context's range beyond the sample's largest value */
#define SIGMA_LEAST 0.02 /* of an error's square, that is not rounding */
#define COUNT_TOKENS 16u /* of a block, for the tables' statistics */
#define HOLD_ROWS 1024u	 /* of a sample, of fewer nothing is held out */
#define HOLD_EVERY 8u	 /* one block of COUNT_TOKENS of so many */

/* ---- the sample ---- */

static bool options_good(const struct mspec_model *m, const struct mspec_fit_options *o)
{
	const struct mspec_shape *s = &o->cache;

	if (o->mode == MSPEC_COPY)
		return m->low_planes;
	return o->ids && o->previous <= MSPEC_PREVIOUS_MAX && s->layers && s->kv_heads &&
	       s->head_dim && s->head_dim % 2u == 0;
}

int mspec_fit_new(const struct mspec_model *m, const struct mspec_fit_options *o,
		  struct mspec_fit **ret)
{
	struct mspec_fit *f;
	uint32_t layers;

	if (!options_good(m, o))
		return -EINVAL;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->m = m;
	f->o = *o;
	f->shape = o->mode == MSPEC_DRAFT ? o->cache : mspec_model_shape(m);
	f->kv = mspec_shape_kv(f->shape);
	f->type = residual_type_of(o->dtype);
	layers = f->shape.layers;
	f->scales = calloc(2u * (size_t)layers, sizeof(f->scales[0]));
	if (!f->scales) {
		free(f);
		return -ENOMEM;
	}
	for (uint32_t l = 0; l < layers; l++) {
		f->scales[l] = o->scale_k ? o->scale_k[l] : 1;
		f->scales[layers + l] = o->scale_v ? o->scale_v[l] : 1;
		if (!mspec_scale_good(f->scales[l]) || !mspec_scale_good(f->scales[layers + l])) {
			mspec_fit_free(f);
			return -EINVAL;
		}
	}
	*ret = f;
	return 0;
}

static void scratch_free(struct mspec_fit *f)
{
	mspec_guess_deinit(&f->guess);
	mspec_pass_deinit(&f->pass);
	free(f->hidden_true);
	free(f->hidden);
	free(f->error);
	free(f->mu_v);
	free(f->k);
	free(f->v);
	free(f->counts);
	free(f->measured);
	f->measured = NULL;
	f->hidden_true = f->hidden = f->error = f->mu_v = NULL;
	f->k = f->v = NULL;
	f->counts = NULL;
	f->p = mspec_params_free(f->p);
}

struct mspec_fit *mspec_fit_free(struct mspec_fit *f)
{
	if (!f)
		return NULL;
	scratch_free(f);
	for (uint32_t i = 0; i < f->sequences_count; i++)
		free((void *)f->sequences[i].patterns);
	free(f->sequences);
	free(f->scales);
	free(f);
	return NULL;
}

int mspec_fit_add(struct mspec_fit *f, const int32_t *ids, const uint8_t *const *patterns,
		  uint32_t count)
{
	const size_t segments = 2u * (size_t)f->shape.layers;
	struct fit_sequence *s = realloc(f->sequences,
					 (f->sequences_count + 1u) * sizeof(struct fit_sequence));

	if (!s)
		return -ENOMEM;
	f->sequences = s;
	if (count == 0 || count > MODEL_POSITIONS_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++)
		if (ids[i] < 0 || (uint32_t)ids[i] >= f->m->config.vocab)
			return -EINVAL;
	s += f->sequences_count;
	*s = (struct fit_sequence){ .ids = ids, .count = count, .first = f->rows };
	s->patterns = malloc(segments * sizeof(s->patterns[0]));
	if (!s->patterns)
		return -ENOMEM;
	memcpy((void *)s->patterns, (const void *)patterns, segments * sizeof(patterns[0]));
	f->rows += count;
	f->sequences_count++;
	return 0;
}

/* ---- walking over the sample ---- */

static size_t row_bytes(const struct mspec_fit *f)
{
	return (size_t)f->kv * f->type.bits / 8u;
}

const uint8_t *fit_patterns(const struct mspec_fit *f, const struct fit_chunk *c, uint32_t segment)
{
	return c->s->patterns[segment] + c->begin * row_bytes(f);
}

int32_t *fit_errors(struct mspec_fit *f, const struct fit_chunk *c)
{
	return f->error + c->row * 2u * f->kv;
}

static int chunk_walk(struct mspec_fit *f, uint32_t layer, int32_t *hidden,
		      const struct fit_chunk *c, fit_step *step)
{
	const uint32_t width = f->m->config.hidden;
	const size_t bytes = (size_t)c->count * width * sizeof(hidden[0]);
	int r = mspec_pass_start(&f->pass, c->begin, c->count);

	if (r < 0)
		return r;
	if (f->o.cancel && atomic_load_explicit(f->o.cancel, memory_order_relaxed))
		return -ECANCELED;
	if (hidden)
		memcpy(f->pass.hidden, hidden + c->row * width, bytes);
	step(f, layer, c);
	if (hidden)
		memcpy(hidden + c->row * width, f->pass.hidden, bytes);
	return 0;
}

int fit_walk(struct mspec_fit *f, uint32_t layer, int32_t *hidden, fit_step *before, fit_step *step)
{
	int r = 0;

	for (uint32_t i = 0; i < f->sequences_count; i++) {
		const struct fit_sequence *s = &f->sequences[i];

		f->pass.capacity = s->count;
		for (uint32_t begin = 0; r == 0 && begin < s->count; begin += FIT_ROWS) {
			const uint32_t left = s->count - begin;
			const struct fit_chunk c = { s, begin, left < FIT_ROWS ? left : FIT_ROWS,
						     s->first + begin };

			if (begin == 0 && before)
				before(f, layer, &c);
			r = chunk_walk(f, layer, hidden, &c, step);
		}
	}
	return r;
}

/* ---- what is fitted alike ---- */

static int scratch_init(struct mspec_fit *f)
{
	const struct model_config *c = &f->m->config;
	const size_t own = mspec_kv_width(c);
	uint32_t longest = 0;
	int r;

	assert(f->rows > 0 && c->hidden > 0 && own > 0 && f->kv > 0);
	for (uint32_t i = 0; i < f->sequences_count; i++)
		longest = f->sequences[i].count > longest ? f->sequences[i].count : longest;
	assert(longest > 0);
	r = mspec_pass_init(&f->pass, f->m, f->o.runner, FIT_ROWS, mspec_guess_widest(f->p));
	if (r < 0)
		return r;
	f->pass.precision = f->o.precision;
	f->hidden = calloc(f->rows * c->hidden, sizeof(int32_t));
	f->error = calloc(f->rows * 2u * f->kv, sizeof(int32_t));
	f->k = calloc(longest * own, sizeof(int16_t));
	f->v = calloc(longest * own, sizeof(int16_t));
	f->counts = calloc(2, sizeof(f->counts[0]));
	f->pass.k = f->k;
	f->pass.v = f->v;
	f->measured = malloc(f->rows);
	return f->hidden && f->error && f->k && f->v && f->counts && f->measured ? 0 : -ENOMEM;
}

/*
 * Which rows tell scales and statistics.  Maps with as many inputs as a draft's fit their own sample better than what
 * comes after it: they are measured on blocks that they have not seen.
 */
static void measured_set(struct mspec_fit *f)
{
	size_t block = 0;

	f->hold_out = f->o.mode == MSPEC_DRAFT && f->rows >= HOLD_ROWS;
	f->measured_count = 0;
	for (uint32_t i = 0; i < f->sequences_count; i++)
		for (uint32_t t = 0; t < f->sequences[i].count; t++) {
			const bool yes = !f->hold_out || block % HOLD_EVERY == HOLD_EVERY - 1u;

			f->measured[f->sequences[i].first + t] = yes;
			f->measured_count += yes;
			block += t % COUNT_TOKENS == COUNT_TOKENS - 1u ||
				 t == f->sequences[i].count - 1u;
		}
}

void fit_pass_set(const struct mspec_fit *f, struct mspec_layer *l, double scale_k, double scale_v)
{
	const struct model_config *c = &f->m->config;

	l->unit_k = mspec_scale_of(ldexp(1 / scale_k, RESIDUAL_FRAC - MODEL_FRAC));
	l->unit_v = mspec_scale_of(ldexp(1 / scale_v, RESIDUAL_FRAC - MODEL_FRAC));
	l->real_v = mspec_scale_of(ldexp(scale_v, MODEL_FRAC - 8 - l->v_frac));
	l->score = mspec_scale_of(
		ldexp(M_LOG2E / sqrt(c->head_dim) * scale_k, MODEL_EXP_BITS - l->k_frac));
}

int32_t fit_frac(double max)
{
	return RESIDUAL_FRAC + (int32_t)floor(log2(MODEL_KV / (max * HEADROOM)));
}

void fit_bias_set(struct mspec_fit *f, uint32_t offset, double unit, int32_t *bias)
{
	const uint32_t kv = f->kv;

	assert(f->measured_count > 0);
	for (uint32_t i = 0; i < kv; i++) {
		int64_t sum = 0, mean;

		for (size_t r = 0; r < f->rows; r++)
			sum += f->measured[r] ? f->error[r * 2u * kv + offset + i] : 0;
		mean = sum / (int64_t)f->measured_count;
		for (size_t r = 0; r < f->rows; r++)
			f->error[r * 2u * kv + offset + i] =
				model_sat32(f->error[r * 2u * kv + offset + i] - mean);
		bias[i] = model_sat32(llrint((double)mean * unit));
	}
}

int fit_map_set(struct mspec_matrix *m, const double *weights, size_t pitch)
{
	for (uint32_t o = 0; o < m->outs; o++)
		if (mspec_matrix_row(m, o, weights + o * pitch) < 0)
			return -EDOM;
	return 0;
}

static int16_t quarter_octaves(double mean_square)
{
	double b = rint(2 * log2(mean_square + 1e-9));

	return (int16_t)(b < MSPEC_BASE_MIN   ? MSPEC_BASE_MIN
			 : b > MSPEC_BASE_MAX ? MSPEC_BASE_MAX
					      : b);
}

/* Mean square of what rounding to the element type adds to a column's error. */
static double rounding_of(const struct mspec_fit *f, uint32_t segment, uint32_t column)
{
	double sum = 0;

	for (uint32_t i = 0; i < f->sequences_count; i++) {
		const struct fit_sequence *s = &f->sequences[i];

		for (uint32_t t = 0; t < s->count; t++) {
			uint32_t x = codec_pattern_at(s->patterns[segment],
						      (size_t)t * f->kv + column, f->type.bits);

			sum += ldexp(1, 2 * model_half_gap(f->type, x)) / 3;
		}
	}
	return sum / (double)f->rows;
}

double fit_scales(const struct mspec_fit *f, uint32_t segment, int16_t *base, int16_t *sigma)
{
	const uint32_t kv = f->kv, dim = f->shape.head_dim, offset = segment % 2u ? kv : 0;
	const uint32_t pair = segment % 2u ? 0 : dim / 2;
	double *squares = calloc(2u * (size_t)kv, sizeof(double)), *rounding, all = 0;

	if (!squares)
		return -1;
	rounding = squares + kv;
	for (size_t r = 0; r < f->rows; r++)
		for (uint32_t i = 0; f->measured[r] && i < kv; i++) {
			double e = f->error[r * 2u * kv + offset + i];

			squares[i] += e * e / (double)f->measured_count;
		}
	for (uint32_t i = 0; sigma && i < kv; i++)
		rounding[i] = rounding_of(f, segment, i);
	for (uint32_t i = 0; i < kv; i++) {
		const uint32_t d = i % dim;
		const uint32_t j = pair == 0 ? i : d < pair ? i + pair : i - pair;
		double mean = (squares[i] + squares[j]) / 2;
		double before = mean - (rounding[i] + rounding[j]) / 2;

		all += mean / kv;
		base[i] = quarter_octaves(mean);
		if (sigma)
			sigma[i] = quarter_octaves(
				before > mean * SIGMA_LEAST ? before : mean * SIGMA_LEAST);
	}
	free(squares);
	return sqrt(all) * 0x1p-16;
}

void fit_count(struct mspec_fit *f, const struct fit_chunk *c, uint32_t segment, const int32_t *mu)
{
	const uint32_t kv = f->kv;
	const int16_t *base = mspec_params_base(f->p, segment);
	const uint8_t *patterns = fit_patterns(f, c, segment);
	const uint32_t streams =
		residual_streams((uint64_t)COUNT_TOKENS * kv * 2u * f->shape.layers, kv,
				 RESIDUAL_STREAM_SCALARS, RESIDUAL_TAU_GROUPS);

	for (uint32_t t = 0; t < c->count; t += COUNT_TOKENS) {
		const struct residual_segment s = {
			.tokens_count = c->count - t < COUNT_TOKENS ? c->count - t : COUNT_TOKENS,
			.columns = kv,
			.type = f->type,
			.base = base,
			.mu = mu + (size_t)t * kv,
		};

		if (f->measured[c->row + t])
			residual_count(&f->counts[segment % 2u], &s, patterns + t * row_bytes(f),
				       streams);
	}
}

/* ---- from the first to the last ---- */

static void bits_set(struct mspec_fit *f)
{
	const double scalars = 2.0 * f->shape.layers * f->kv * (double)f->measured_count;

	f->bits = 0;
	for (uint32_t i = 0; i < 2; i++)
		f->bits += residual_freqs_bits(&f->counts[i], &f->p->freqs[i]) / scalars;
}

double mspec_fit_bits(const struct mspec_fit *f)
{
	return f->bits;
}

static int params_new(struct mspec_fit *f)
{
	int r = f->o.mode == MSPEC_DRAFT
			? mspec_params_new_draft(f->m, f->shape, f->o.previous, f->o.dtype,
						 f->o.precision, &f->p)
			: mspec_params_new(f->m, f->o.dtype, f->o.precision, &f->p);

	if (r < 0)
		return r;
	f->p->ids = f->o.ids;
	memcpy(f->p->scale_k, f->scales, f->shape.layers * sizeof(float));
	memcpy(f->p->scale_v, f->scales + f->shape.layers, f->shape.layers * sizeof(float));
	return 0;
}

int mspec_fit_finish(struct mspec_fit *f, struct mspec_params **ret)
{
	int r;

	if (f->rows == 0)
		return -EINVAL;
	r = params_new(f);
	if (r == 0)
		r = scratch_init(f);
	if (r == 0)
		measured_set(f);
	if (r == 0)
		r = f->o.mode == MSPEC_DRAFT ? fit_draft(f) : fit_copy(f);
	for (uint32_t i = 0; r == 0 && i < 2; i++)
		residual_freqs_fit(&f->counts[i], &f->p->freqs[i]);
	if (r == 0)
		r = mspec_params_seal(f->p);
	if (r == 0)
		bits_set(f);
	if (r == 0) {
		*ret = f->p;
		f->p = NULL;
	}
	scratch_free(f);
	return r;
}
