/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_fit.c - the parameters of the `model` speculator from a sample of cache and its token ids.
 *
 * Layer by layer over the whole sample, two passes walk together: the truth, a copy of the model in two planes
 * throughout that attends over the cache's own keys and values and is never corrected, and the guess, as it
 * will be coded with what was fitted so far.  Their difference is what the gain learns to undo.
 *
 * Floating point is used here, to fit; nothing that it gives reaches a guess but as integers.
 */
#include "gpu/codec/model_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/model_solve.h"

#define ROWS 256u /* of a pass */
#define RIDGE 1e-3
#define HEADROOM 1.5	 /* of the context's range beyond the sample's largest value */
#define SIGMA_LEAST 0.02 /* of an error's square, that is not rounding */
#define COUNT_TOKENS 16u /* of a block, for the tables' statistics */

struct sequence {
	const int32_t *ids;	  /* borrowed, as are the patterns */
	const uint8_t **patterns; /* owned array */
	uint32_t count;
	size_t first; /* row in the sample */
};

struct mspec_fit {
	const struct mspec_model *m;
	struct mspec_fit_options o;
	float *scales; /* owned; K's, then V's */
	struct residual_type type;
	struct sequence *sequences; /* owned */
	uint32_t sequences_count;
	size_t rows;

	/* While it runs, owned: */
	struct mspec_params *p;
	struct mspec_pass pass;
	struct mspec_layer truth; /* no owned fields in use */
	int32_t *hidden_true, *hidden, *error, *mu_v;
	int16_t *k, *v;			/* one sequence's context of a layer */
	struct residual_counts *counts; /* K, V */
	bool own_attention; /* of the truth: the engine attended before values were rounded to fp8 */
	double truth_error;
	double rms[MSPEC_RMS_COUNT];
	double bits; /* per scalar, once finished */
};

int mspec_fit_new(const struct mspec_model *m, const struct mspec_fit_options *o,
		  struct mspec_fit **ret)
{
	const uint32_t layers = m->config.layers;
	struct mspec_fit *f = calloc(1, sizeof(*f));

	assert(m->low_planes);
	if (!f)
		return -ENOMEM;
	f->m = m;
	f->o = *o;
	f->type = residual_type_of(o->dtype);
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
	mspec_pass_deinit(&f->pass);
	free(f->hidden_true);
	free(f->hidden);
	free(f->error);
	free(f->mu_v);
	free(f->k);
	free(f->v);
	free(f->counts);
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
	const size_t segments = 2u * (size_t)f->m->config.layers;
	struct sequence *s = realloc(f->sequences,
				     (f->sequences_count + 1u) * sizeof(struct sequence));

	if (!s)
		return -ENOMEM;
	f->sequences = s;
	if (count == 0 || count > MODEL_POSITIONS_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++)
		if (ids[i] < 0 || (uint32_t)ids[i] >= f->m->config.vocab)
			return -EINVAL;
	s += f->sequences_count;
	*s = (struct sequence){ .ids = ids, .count = count, .first = f->rows };
	s->patterns = malloc(segments * sizeof(s->patterns[0]));
	if (!s->patterns)
		return -ENOMEM;
	memcpy((void *)s->patterns, (const void *)patterns, segments * sizeof(patterns[0]));
	f->rows += count;
	f->sequences_count++;
	return 0;
}

/* ---- walking over the sample ---- */

struct chunk { /* ROWS rows at most of one sequence */
	const struct sequence *s;
	uint32_t begin, count;
	size_t row; /* of the sample */
};

static size_t row_bytes(const struct mspec_fit *f)
{
	return (size_t)mspec_kv_width(&f->m->config) * f->type.bits / 8u;
}

static const uint8_t *chunk_patterns(const struct mspec_fit *f, const struct chunk *c,
				     uint32_t segment)
{
	return c->s->patterns[segment] + c->begin * row_bytes(f);
}

/*
 * fn for every chunk, with the pass at its rows and the layer's context of its sequence.  hidden: of the
 * sample, taken into the pass and back again.
 */
static int walk(struct mspec_fit *f, uint32_t layer, int32_t *hidden,
		void (*fn)(struct mspec_fit *, uint32_t, const struct chunk *))
{
	const struct model_config *c = &f->m->config;
	const struct mspec_layer *l = &f->p->layers[layer];

	for (uint32_t i = 0; i < f->sequences_count; i++) {
		const struct sequence *s = &f->sequences[i];

		mspec_kv_store(c, f->type, s->patterns[2u * layer], s->count, l->k_frac, f->k,
			       s->count, 0);
		mspec_kv_store(c, f->type, s->patterns[2u * layer + 1u], s->count, l->v_frac, f->v,
			       s->count, 0);
		f->pass.capacity = s->count;
		for (uint32_t begin = 0; begin < s->count; begin += ROWS) {
			const uint32_t n = s->count - begin < ROWS ? s->count - begin : ROWS;
			const struct chunk chunk = { s, begin, n, s->first + begin };
			int32_t *h = hidden + chunk.row * c->hidden;
			int r = mspec_pass_start(&f->pass, begin, n);

			if (r < 0)
				return r;
			if (f->o.cancel && atomic_load_explicit(f->o.cancel, memory_order_relaxed))
				return -ECANCELED;
			memcpy(f->pass.hidden, h, (size_t)n * c->hidden * sizeof(h[0]));
			fn(f, layer, &chunk);
			memcpy(h, f->pass.hidden, (size_t)n * c->hidden * sizeof(h[0]));
		}
	}
	return 0;
}

static void pass_as(struct mspec_fit *f, uint32_t layer, bool truth)
{
	static const struct mspec_precision all = {
		.wide = { 3, 3, 3, 3, 3, 3 },
	};

	f->pass.precision = truth ? all : f->o.precision;
	f->pass.layer = truth ? &f->truth : &f->p->layers[layer];
	f->pass.w = &f->m->layers[layer];
}

static int32_t *errors_of(struct mspec_fit *f, const struct chunk *c)
{
	return f->error + c->row * 2u * mspec_kv_width(&f->m->config);
}

/* ---- steps, each over the whole sample ---- */

static void step_embed(struct mspec_fit *f, uint32_t layer, const struct chunk *c)
{
	(void)layer;
	(void)mspec_pass_embed(&f->pass, c->s->ids + c->begin, NULL); /* ids were checked */
}

static void step_guess_k(struct mspec_fit *f, uint32_t layer, const struct chunk *c)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);

	mspec_pass_guess_k(&f->pass);
	mspec_pass_error(&f->pass, f->type, false, chunk_patterns(f, c, 2u * layer));
	mspec_pass_error(&f->pass, f->type, true, chunk_patterns(f, c, 2u * layer + 1u));
	memcpy(errors_of(f, c), f->pass.error, (size_t)c->count * 2u * kv * sizeof(int32_t));
	memcpy(f->mu_v + c->row * kv, f->pass.mu_v, (size_t)c->count * kv * sizeof(int32_t));
}

static void count_part(struct mspec_fit *f, const struct chunk *c, uint32_t segment,
		       const int32_t *mu)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);
	const struct mspec_layer *l = &f->p->layers[segment / 2u];
	const uint8_t *patterns = chunk_patterns(f, c, segment);
	const uint32_t streams =
		residual_streams((uint64_t)COUNT_TOKENS * kv * 2u * f->m->config.layers, kv,
				 RESIDUAL_STREAM_SCALARS, RESIDUAL_TAU_GROUPS);

	for (uint32_t t = 0; t < c->count; t += COUNT_TOKENS) {
		const struct residual_segment s = {
			.tokens_count = c->count - t < COUNT_TOKENS ? c->count - t : COUNT_TOKENS,
			.columns = kv,
			.type = f->type,
			.base = segment % 2u ? l->base_v : l->base_k,
			.mu = mu + (size_t)t * kv,
		};

		residual_count(&f->counts[segment % 2u], &s, patterns + t * row_bytes(f), streams);
	}
}

/* The guess as it will be coded; the scales are known by now. */
static void step_count(struct mspec_fit *f, uint32_t layer, const struct chunk *c)
{
	mspec_pass_guess_k(&f->pass);
	count_part(f, c, 2u * layer, f->pass.mu_k);
	mspec_pass_error(&f->pass, f->type, false, chunk_patterns(f, c, 2u * layer));
	mspec_pass_guess_v(&f->pass);
	count_part(f, c, 2u * layer + 1u, f->pass.mu_v);
	mspec_pass_error(&f->pass, f->type, true, chunk_patterns(f, c, 2u * layer + 1u));
	mspec_pass_gain(&f->pass);
}

static void step_finish(struct mspec_fit *f, uint32_t layer, const struct chunk *c)
{
	(void)layer;
	(void)c;
	mspec_pass_finish(&f->pass);
}

/* The truth with keys and values of its own: what the cache held before it was rounded to few bits. */
static void step_finish_own(struct mspec_fit *f, uint32_t layer, const struct chunk *c)
{
	(void)layer;
	(void)c;
	mspec_pass_own(&f->pass, f->k, f->v);
}

/* V's guess with the map, and what is left of V's error. */
static void step_guess_v(struct mspec_fit *f, uint32_t layer, const struct chunk *c)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);

	memcpy(f->pass.error, errors_of(f, c), (size_t)c->count * 2u * kv * sizeof(int32_t));
	memcpy(f->pass.mu_v, f->mu_v + c->row * kv, (size_t)c->count * kv * sizeof(int32_t));
	mspec_pass_guess_v(&f->pass);
	mspec_pass_error(&f->pass, f->type, true, chunk_patterns(f, c, 2u * layer + 1u));
	memcpy(errors_of(f, c), f->pass.error, (size_t)c->count * 2u * kv * sizeof(int32_t));
}

/* ---- what is fitted ---- */

static void range_of(const struct mspec_fit *f, uint32_t segment, int32_t *ret_frac,
		     double *ret_rms)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);
	double max = 1, squares = 0;

	for (uint32_t i = 0; i < f->sequences_count; i++) {
		const struct sequence *s = &f->sequences[i];

		for (size_t at = 0; at < (size_t)s->count * kv; at++) {
			double x = residual_fixed(
				f->type, codec_pattern_at(s->patterns[segment], at, f->type.bits));

			max = fabs(x) > max ? fabs(x) : max;
			squares += x * x;
		}
	}
	*ret_rms = sqrt(squares / ((double)f->rows * kv)) * 0x1p-16;
	*ret_frac = RESIDUAL_FRAC + (int32_t)floor(log2(MODEL_KV / (max * HEADROOM)));
}

static void scales_set(struct mspec_fit *f, uint32_t layer)
{
	const struct model_config *c = &f->m->config;
	struct mspec_layer *l = &f->p->layers[layer];
	const double scale_k = f->scales[layer], scale_v = f->scales[c->layers + layer];

	range_of(f, 2u * layer, &l->k_frac, &f->rms[MSPEC_RMS_K]);
	range_of(f, 2u * layer + 1u, &l->v_frac, &f->rms[MSPEC_RMS_V]);
	l->unit_k = mspec_scale_of(ldexp(1 / scale_k, RESIDUAL_FRAC - MODEL_FRAC));
	l->unit_v = mspec_scale_of(ldexp(1 / scale_v, RESIDUAL_FRAC - MODEL_FRAC));
	l->real_v = mspec_scale_of(ldexp(scale_v, MODEL_FRAC - 8 - l->v_frac));
	l->score = mspec_scale_of(
		ldexp(M_LOG2E / sqrt(c->head_dim) * scale_k, MODEL_EXP_BITS - l->k_frac));
	f->truth = *l;
	f->truth.bias_k = f->truth.bias_v = NULL;
	f->truth.sigma_k = f->truth.sigma_v = NULL;
	for (uint32_t i = 0; i < mspec_kv_width(c); i++) /* for now: errors as they are */
		l->sigma_k[i] = l->sigma_v[i] = MSPEC_BASE_MAX;
	f->truth.eps_input = f->truth.eps_post = (uint64_t)ldexp(c->norm_eps,
								 2 * MSPEC_HIDDEN_FRAC);
}

/* Mean square of what the hidden state lacks, in its integers. */
static double hidden_gap(struct mspec_fit *f)
{
	const size_t n = f->rows * f->m->config.hidden;
	double squares = 0, all = 0;

	for (size_t i = 0; i < n; i++) {
		double d = (double)f->hidden_true[i] - f->hidden[i];

		squares += d * d;
		all += (double)f->hidden_true[i] * f->hidden_true[i];
	}
	f->rms[MSPEC_RMS_HIDDEN] = sqrt(all / (double)n) * 0x1p-16;
	return squares / (double)n;
}

/* Mean errors of a part go to its bias, and out of the errors. */
static void bias_set(struct mspec_fit *f, uint32_t offset, double unit, int32_t *bias)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);

	assert(f->rows > 0);
	for (uint32_t i = 0; i < kv; i++) {
		int64_t sum = 0, mean;

		for (size_t r = 0; r < f->rows; r++)
			sum += f->error[r * 2u * kv + offset + i];
		mean = sum / (int64_t)f->rows;
		for (size_t r = 0; r < f->rows; r++)
			f->error[r * 2u * kv + offset + i] =
				model_sat32(f->error[r * 2u * kv + offset + i] - mean);
		bias[i] = model_sat32(llrint((double)mean * unit * 16)); /* 16 to MODEL_FRAC */
	}
}

static int map_set(struct mspec_matrix *m, const double *weights, size_t pitch)
{
	for (uint32_t o = 0; o < m->outs; o++)
		if (mspec_matrix_row(m, o, weights + o * pitch) < 0)
			return -EDOM;
	return 0;
}

static int value_map_set(struct mspec_fit *f, uint32_t layer)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);
	double *weights = malloc((size_t)kv * kv * sizeof(double));
	struct model_solve *s = NULL;
	int r = weights ? model_solve_new(kv, kv, &s) : -ENOMEM;

	if (r == 0) {
		assert(f->rows <= UINT32_MAX);
		model_solve_add(s, f->error, 2u * kv, f->error + kv, 2u * kv, (uint32_t)f->rows);
		r = model_solve_finish(s, f->o.ridge > 0 ? f->o.ridge : RIDGE, weights);
	}
	if (r == 0)
		r = map_set(&f->p->layers[layer].value_map, weights, kv);
	model_solve_free(s);
	free(weights);
	return r;
}

static int gain_set(struct mspec_fit *f, uint32_t layer)
{
	const uint32_t kv = mspec_kv_width(&f->m->config), hidden = f->m->config.hidden;
	double *weights = malloc((size_t)hidden * 2u * kv * sizeof(double));
	int32_t *gap = malloc((size_t)ROWS * hidden * sizeof(int32_t));
	struct model_solve *s = NULL;
	int r = weights && gap ? model_solve_new(2u * kv, hidden, &s) : -ENOMEM;

	for (size_t row = 0; r == 0 && row < f->rows; row += ROWS) {
		const uint32_t n = f->rows - row < ROWS ? (uint32_t)(f->rows - row) : ROWS;
		const int32_t *a = f->hidden_true + row * hidden, *b = f->hidden + row * hidden;

		for (size_t i = 0; i < (size_t)n * hidden; i++)
			gap[i] = model_sat32((int64_t)a[i] - b[i]);
		model_solve_add(s, f->error + row * 2u * kv, 2u * kv, gap, hidden, n);
	}
	if (r == 0)
		r = model_solve_finish(s, f->o.ridge > 0 ? f->o.ridge : RIDGE, weights);
	if (r == 0)
		r = map_set(&f->p->layers[layer].gain_k, weights, 2u * kv);
	if (r == 0)
		r = map_set(&f->p->layers[layer].gain_v, weights + kv, 2u * kv);
	model_solve_free(s);
	free(gap);
	free(weights);
	return r;
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
	const uint32_t kv = mspec_kv_width(&f->m->config);
	double sum = 0;

	for (uint32_t i = 0; i < f->sequences_count; i++) {
		const struct sequence *s = &f->sequences[i];

		for (uint32_t t = 0; t < s->count; t++) {
			uint32_t x = codec_pattern_at(s->patterns[segment], (size_t)t * kv + column,
						      f->type.bits);

			sum += ldexp(1, 2 * model_half_gap(f->type, x)) / 3;
		}
	}
	return sum / (double)f->rows;
}

/*
 * A part's scales from its plain errors.  Columns that rope turns into one another share them: `pair` of them
 * apart, 0: none do.  Returns the root mean square of all.
 */
static double scales_fit(const struct mspec_fit *f, uint32_t segment, int16_t *base, int16_t *sigma)
{
	const struct model_config *c = &f->m->config;
	const uint32_t kv = mspec_kv_width(c), offset = segment % 2u ? kv : 0;
	const uint32_t pair = segment % 2u ? 0 : c->head_dim / 2;
	double *squares = calloc(2u * (size_t)kv, sizeof(double)), *rounding, all = 0;

	if (!squares)
		return -1;
	rounding = squares + kv;
	for (size_t r = 0; r < f->rows; r++)
		for (uint32_t i = 0; i < kv; i++) {
			double e = f->error[r * 2u * kv + offset + i];

			squares[i] += e * e / (double)f->rows;
		}
	for (uint32_t i = 0; i < kv; i++)
		rounding[i] = rounding_of(f, segment, i);
	for (uint32_t i = 0; i < kv; i++) {
		const uint32_t d = i % c->head_dim;
		const uint32_t j = pair == 0 ? i : d < pair ? i + pair : i - pair;
		double mean = (squares[i] + squares[j]) / 2;
		double before = mean - (rounding[i] + rounding[j]) / 2;

		all += mean / kv;
		base[i] = quarter_octaves(mean);
		sigma[i] = quarter_octaves(before > mean * SIGMA_LEAST ? before
								       : mean * SIGMA_LEAST);
	}
	free(squares);
	return sqrt(all) * 0x1p-16;
}

/* ---- what the engine did, found out ---- */

static void step_truth_error(struct mspec_fit *f, uint32_t layer, const struct chunk *c)
{
	const uint32_t kv = mspec_kv_width(&f->m->config);
	const uint8_t *patterns = chunk_patterns(f, c, 2u * layer);

	mspec_pass_guess_k(&f->pass);
	for (size_t i = 0; i < (size_t)c->count * kv; i++) {
		double e = (double)residual_fixed(f->type,
						  codec_pattern_at(patterns, i, f->type.bits)) -
			   f->pass.mu_k[i];

		f->truth_error += e * e;
	}
}

/* How far the truth is from the cache's keys: squares summed. */
static int truth_error(struct mspec_fit *f, uint32_t layer, double *ret)
{
	int r;

	scales_set(f, layer);
	pass_as(f, layer, true);
	f->truth_error = 0;
	r = walk(f, layer, f->hidden_true, step_truth_error);
	*ret = f->truth_error;
	return r;
}

static void rope_as(struct mspec_fit *f, bool coarse)
{
	f->p->coarse_rope = f->pass.coarse_rope = coarse;
	f->pass.turns.count = 0;
}

/* Cosines and sines in the model's type, or finer? */
static int rope_choose(struct mspec_fit *f)
{
	double coarse = 0, fine = 0;
	int r;

	rope_as(f, true);
	r = truth_error(f, 0, &coarse);
	rope_as(f, false);
	if (r == 0)
		r = truth_error(f, 0, &fine);
	rope_as(f, coarse <= fine);
	return r;
}

/* Layer 0 of the truth, over the cache's values or its own: whichever gives the better keys in layer 1. */
static int attention_choose(struct mspec_fit *f)
{
	const size_t count = f->rows * f->m->config.hidden;
	int32_t *before;
	double cache = 0, own = 0;
	int r;

	assert(count > 0);
	before = malloc(count * sizeof(before[0]));
	r = before ? 0 : -ENOMEM;

	if (r == 0) {
		memcpy(before, f->hidden_true, count * sizeof(before[0]));
		pass_as(f, 0, true);
		r = walk(f, 0, f->hidden_true, step_finish);
	}
	if (r == 0)
		r = truth_error(f, 1, &cache);
	if (r == 0) {
		memcpy(f->hidden_true, before, count * sizeof(before[0]));
		scales_set(f, 0);
		pass_as(f, 0, true);
		r = walk(f, 0, f->hidden_true, step_finish_own);
	}
	if (r == 0)
		r = truth_error(f, 1, &own);
	if (r == 0)
		memcpy(f->hidden_true, before, count * sizeof(before[0]));
	f->own_attention = own < cache;
	free(before);
	return r;
}

static int choose(struct mspec_fit *f)
{
	int r = rope_choose(f);

	f->own_attention = false;
	if (r == 0 && f->type.bits == 8 && f->m->config.layers > 1)
		r = attention_choose(f);
	return r;
}

static int fit_layer(struct mspec_fit *f, uint32_t layer)
{
	struct mspec_layer *l = &f->p->layers[layer];
	const struct model_config *c = &f->m->config;
	const uint32_t kv = mspec_kv_width(c);
	double gap;
	int r;

	scales_set(f, layer);
	gap = hidden_gap(f);
	f->rms[MSPEC_RMS_HIDDEN_ERR] = sqrt(gap) * 0x1p-16;
	l->eps_input = f->truth.eps_input + (uint64_t)gap;
	pass_as(f, layer, false);
	r = walk(f, layer, f->hidden, step_guess_k);
	if (r < 0)
		return r;
	bias_set(f, 0, f->scales[layer], l->bias_k);
	bias_set(f, kv, f->scales[c->layers + layer], l->bias_v);
	r = walk(f, layer, f->hidden, step_guess_k);
	if (r == 0)
		f->rms[MSPEC_RMS_K_ERR] = scales_fit(f, 2u * layer, l->base_k, l->sigma_k);
	if (r == 0)
		r = walk(f, layer, f->hidden, step_guess_k);
	if (r == 0)
		r = value_map_set(f, layer);
	if (r == 0)
		r = walk(f, layer, f->hidden, step_guess_v);
	if (r == 0)
		f->rms[MSPEC_RMS_V_ERR] = scales_fit(f, 2u * layer + 1u, l->base_v, l->sigma_v);
	if (r == 0)
		r = walk(f, layer, f->hidden, step_guess_v);
	if (r == 0)
		r = gain_set(f, layer);
	if (r < 0)
		return r;
	if (f->rms[MSPEC_RMS_K_ERR] < 0 || f->rms[MSPEC_RMS_V_ERR] < 0)
		return -ENOMEM;
	r = walk(f, layer, f->hidden, step_count);
	gap = hidden_gap(f);
	f->rms[MSPEC_RMS_HIDDEN_AFTER] = sqrt(gap) * 0x1p-16;
	l->eps_post = f->truth.eps_input + (uint64_t)gap;
	if (r == 0 && f->o.layer_done)
		f->o.layer_done(f->o.user, layer, f->rms);
	if (r == 0 && layer + 1u < c->layers) {
		r = walk(f, layer, f->hidden, step_finish);
		pass_as(f, layer, true);
		if (r == 0)
			r = walk(f, layer, f->hidden_true,
				 f->own_attention ? step_finish_own : step_finish);
	}
	return r;
}

static int scratch_init(struct mspec_fit *f)
{
	const struct model_config *c = &f->m->config;
	const size_t kv = mspec_kv_width(c);
	uint32_t longest = 0;
	int r;

	assert(f->rows > 0 && c->hidden > 0 && kv > 0);
	for (uint32_t i = 0; i < f->sequences_count; i++)
		longest = f->sequences[i].count > longest ? f->sequences[i].count : longest;
	assert(longest > 0);
	r = mspec_pass_init(&f->pass, f->m, f->o.runner, ROWS, 0);
	if (r < 0)
		return r;
	f->hidden_true = calloc(f->rows * c->hidden, sizeof(int32_t));
	f->hidden = calloc(f->rows * c->hidden, sizeof(int32_t));
	f->error = calloc(f->rows * 2u * kv, sizeof(int32_t));
	f->mu_v = calloc(f->rows * kv, sizeof(int32_t));
	f->k = calloc(longest * kv, sizeof(int16_t));
	f->v = calloc(longest * kv, sizeof(int16_t));
	f->counts = calloc(2, sizeof(f->counts[0]));
	f->pass.k = f->k;
	f->pass.v = f->v;
	return f->hidden_true && f->hidden && f->error && f->mu_v && f->k && f->v && f->counts
		       ? 0
		       : -ENOMEM;
}

/* Where the hidden state starts: the embeddings, or their mean. */
static int start_set(struct mspec_fit *f)
{
	const uint32_t hidden = f->m->config.hidden;
	int r = walk(f, 0, f->hidden_true, step_embed);

	if (r < 0)
		return r;
	assert(f->rows > 0);
	for (uint32_t i = 0; i < hidden; i++) {
		int64_t sum = 0;

		for (size_t row = 0; row < f->rows; row++)
			sum += f->hidden_true[row * hidden + i];
		f->p->start[i] = f->o.ids ? 0 : (int32_t)(sum / (int64_t)f->rows);
	}
	for (size_t row = 0; row < f->rows; row++)
		memcpy(f->hidden + row * hidden,
		       f->o.ids ? f->hidden_true + row * hidden : f->p->start,
		       hidden * sizeof(int32_t));
	return 0;
}

static void bits_set(struct mspec_fit *f)
{
	const struct model_config *c = &f->m->config;
	const double scalars = 2.0 * c->layers * mspec_kv_width(c) * (double)f->rows;

	f->bits = 0;
	for (uint32_t i = 0; i < 2; i++)
		f->bits += residual_freqs_bits(&f->counts[i], &f->p->freqs[i]) / scalars;
}

double mspec_fit_bits(const struct mspec_fit *f)
{
	return f->bits;
}

int mspec_fit_finish(struct mspec_fit *f, struct mspec_params **ret)
{
	int r;

	if (f->rows == 0)
		return -EINVAL;
	r = mspec_params_new(f->m, f->o.dtype, f->o.precision, &f->p);
	if (r == 0)
		r = scratch_init(f);
	if (r == 0) {
		f->p->ids = f->o.ids;
		memcpy(f->p->scale_k, f->scales, f->m->config.layers * sizeof(float));
		memcpy(f->p->scale_v, f->scales + f->m->config.layers,
		       f->m->config.layers * sizeof(float));
		r = start_set(f);
	}
	if (r == 0) {
		r = choose(f);
	}
	for (uint32_t l = 0; r == 0 && l < f->m->config.layers; l++)
		r = fit_layer(f, l);
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
