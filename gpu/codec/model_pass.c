/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_pass.c - the stages of one layer over rows of one sequence, in tiles that threads share out.
 *
 * A stage reads what earlier stages left and writes rows of its own, so tiles are independent.
 */
#include "gpu/codec/model_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows and products ---- */

static const struct mspec_runner *runner_of(const struct mspec_pass *p)
{
	return p->runner && p->threads > 1 ? p->runner : NULL;
}

void mspec_quantise(const struct mspec_pass *p, struct mspec_thread *t, uint32_t row,
		    const struct mspec_matrix *m, uint32_t wide, int32_t frac,
		    struct model_norm norm)
{
	const uint32_t q_max = wide & MODEL_WIDE_ROW ? MODEL_Q16 : MODEL_Q8, count = m->depth;
	int8_t *high = t->high + (size_t)row * m->pitch, *low = t->low + (size_t)row * m->pitch;
	struct model_quant q;

	if (m->mixed) {
		const int32_t over = model_bits(p->kernels->max(t->wide, count)) - MODEL_MIX_BITS;

		p->kernels->mix(t->wide, t->mix, count, over > 0 ? over : 0);
		frac -= over > 0 ? over : 0;
	}
	q = model_quant_of(p->kernels->max(t->wide, count), q_max);
	t->row_scale[row] = model_row_scale(q, q_max, frac, norm);
	p->kernels->planes(t->wide, count, q, high, wide & MODEL_WIDE_ROW ? low : NULL);
	memset(high + count, 0, m->pitch - count);
	memset(low + count, 0, m->pitch - count);
}

void mspec_quantise_hidden(const struct mspec_pass *p, struct mspec_thread *t, uint32_t row,
			   const int32_t *h, const struct mspec_norm *norm, uint64_t eps,
			   uint32_t wide, const struct mspec_matrix *m)
{
	const uint32_t count = p->m->config.hidden;
	const int32_t shift = model_norm_shift(p->kernels->max32(h, count));
	const uint64_t squares = p->kernels->squares(h, count, shift);

	assert(count > 0);
	p->kernels->weigh(h, norm->weights, count, t->wide);
	mspec_quantise(p, t, row, m, wide, norm->frac, model_norm_of(squares, count, eps, shift));
}

void mspec_multiply(const struct mspec_pass *p, struct mspec_thread *t,
		    const struct mspec_matrix *m, uint32_t rows, uint32_t wide, int32_t frac,
		    bool add, int32_t *out, size_t out_pitch)
{
	int32_t *hh = t->acc, *hl = hh + MSPEC_TILE * MSPEC_CHUNK,
		*lh = hl + MSPEC_TILE * MSPEC_CHUNK;

	for (uint32_t first = 0; first < m->outs; first += MSPEC_CHUNK) {
		const uint32_t n = m->outs - first < MSPEC_CHUNK ? m->outs - first : MSPEC_CHUNK;
		const size_t at = (size_t)first * m->pitch;

		p->kernels->product(t->high, m->pitch, m->high + at, rows, n, m->pitch, hh);
		if (wide & MODEL_WIDE_WEIGHT)
			p->kernels->product(t->high, m->pitch, m->low + at, rows, n, m->pitch, hl);
		if (wide & MODEL_WIDE_ROW)
			p->kernels->product(t->low, m->pitch, m->high + at, rows, n, m->pitch, lh);
		for (uint32_t r = 0; r < rows; r++) {
			const struct mspec_rescale s = { .row = t->row_scale[r],
							 .mants = m->mants + first,
							 .exps = m->exps + first,
							 .wide = wide,
							 .exp = model_join_exp(wide),
							 .frac = frac,
							 .add = add };

			p->kernels->rescale(&s, hh + r * n, hl + r * n, lh + r * n, n,
					    out + r * out_pitch + first);
		}
	}
}

void mspec_turn_row(int32_t *row, uint32_t columns, uint32_t dim, const int32_t *rope, int32_t sign)
{
	const uint32_t half = dim / 2;

	for (uint32_t h = 0; h < columns; h += dim)
		for (uint32_t i = 0; i < half; i++)
			model_turn(&row[h + i], &row[h + i + half], rope[2u * i],
				   sign * rope[2u * i + 1u]);
}

/* Norm (for Qwen3) and rope of one head; bias may be NULL. */
static void finish_head(const struct mspec_pass *p, const struct mspec_norm *norm,
			const int32_t *rope, const int32_t *bias, int32_t *x)
{
	const struct model_config *c = &p->m->config;
	const uint32_t dim = c->head_dim;

	if (norm->weights) {
		uint64_t squares = 0;
		uint32_t max = 0;
		struct model_norm n;
		int32_t shift;

		assert(dim > 0);
		for (uint32_t i = 0; i < dim; i++)
			max = model_abs(x[i]) > max ? model_abs(x[i]) : max;
		shift = model_norm_shift(max);
		for (uint32_t i = 0; i < dim; i++) {
			int64_t y = x[i] >> shift;

			squares += (uint64_t)(y * y);
		}
		n = model_norm_of(squares, dim, p->m->eps_head, shift);
		for (uint32_t i = 0; i < dim; i++)
			x[i] = model_norm_apply(x[i], n, norm->weights[i], norm->frac);
	}
	for (uint32_t i = 0; bias && i < dim; i++)
		x[i] = model_sat32((int64_t)x[i] + bias[i]);
	mspec_turn_row(x, dim, dim, rope, 1);
}

uint32_t mspec_pass_tile_rows(const struct mspec_pass *p, uint32_t tile)
{
	uint32_t left = p->rows - tile * MSPEC_TILE;

	return left < MSPEC_TILE ? left : MSPEC_TILE;
}

void mspec_pass_tiles(struct mspec_pass *p, void (*stage)(void *, uint32_t, uint32_t),
		      void *context)
{
	const struct mspec_runner *runner = runner_of(p);
	const uint32_t tiles = (p->rows + MSPEC_TILE - 1u) / MSPEC_TILE;

	if (runner && tiles > 1)
		runner->run(runner->self, tiles, stage, context);
	else
		for (uint32_t i = 0; i < tiles; i++)
			stage(context, i, 0);
}

/* ---- guesses ---- */

static void guess_k_tile(void *context, uint32_t tile, uint32_t thread)
{
	struct mspec_pass *p = context;
	struct mspec_thread *t = &p->scratch[thread];
	const struct model_config *c = &p->m->config;
	const struct mspec_layer *l = p->layer;
	const uint32_t kv = mspec_kv_width(c), rows = mspec_pass_tile_rows(p, tile);
	const size_t first = (size_t)tile * MSPEC_TILE;

	for (uint32_t r = 0; r < rows; r++)
		mspec_quantise_hidden(p, t, r, p->hidden + (first + r) * c->hidden, &p->w->input,
				      l->eps_input, p->precision.wide[MSPEC_KV], &p->w->kv);
	mspec_multiply(p, t, &p->w->kv, rows, p->precision.wide[MSPEC_KV], MODEL_FRAC, false,
		       t->out, 2u * kv);
	for (uint32_t r = 0; r < rows; r++) {
		int32_t *k = t->out + (size_t)r * 2u * kv, *v = k + kv;
		int32_t *mu_k = p->mu_k + (first + r) * kv, *mu_v = p->mu_v + (first + r) * kv;

		for (uint32_t i = 0; i < kv; i += c->head_dim)
			finish_head(p, &p->w->k_norm, p->rope + (first + r) * c->head_dim,
				    l->bias_k ? l->bias_k + i : NULL, k + i);
		for (uint32_t i = 0; i < kv; i++) {
			int64_t bias = l->bias_v ? l->bias_v[i] : 0;

			mu_k[i] = model_times(k[i], l->unit_k);
			mu_v[i] = model_times(model_sat32(v[i] + bias), l->unit_v);
		}
	}
}

void mspec_pass_guess_k(struct mspec_pass *p)
{
	mspec_pass_tiles(p, guess_k_tile, p);
}

static const uint16_t shape_inside[MODEL_SHAPE_COUNT] = MODEL_SHAPE_INSIDE;

void mspec_pass_error(struct mspec_pass *p, struct residual_type t, bool value,
		      const uint8_t *patterns)
{
	const struct model_config *c = &p->m->config;
	const uint32_t kv = mspec_kv_width(c);
	const int32_t *mu = value ? p->mu_v : p->mu_k;
	const int16_t *sigma = value ? p->layer->sigma_v : p->layer->sigma_k;

	for (uint32_t r = 0; r < p->rows; r++) {
		int32_t *e = p->error + (size_t)r * 2u * kv + (value ? kv : 0);
		const int32_t *rope = p->rope + (size_t)r * c->head_dim;

		for (uint32_t i = 0; i < kv; i++) {
			const size_t at = (size_t)r * kv + i;
			const uint32_t pattern = codec_pattern_at(patterns, at, t.bits);
			int32_t d = model_sat32((int64_t)residual_fixed(t, pattern) - mu[at]);

			e[i] = model_shape(shape_inside, d, model_half_gap(t, pattern), sigma[i]);
		}
		if (!value)
			mspec_turn_row(e, kv, c->head_dim, rope, -1);
	}
}

static void quantise_error(const struct mspec_pass *p, struct mspec_thread *t, uint32_t row,
			   size_t at, bool value, const struct mspec_matrix *m)
{
	const uint32_t kv = mspec_kv_width(&p->m->config);
	const int32_t *e = p->error + at * 2u * kv + (value ? kv : 0);

	for (uint32_t i = 0; i < kv; i++)
		t->wide[i] = e[i];
	mspec_quantise(p, t, row, m, p->precision.wide[MSPEC_MAPS], RESIDUAL_FRAC,
		       model_norm_none());
}

static void guess_v_tile(void *context, uint32_t tile, uint32_t thread)
{
	struct mspec_pass *p = context;
	struct mspec_thread *t = &p->scratch[thread];
	const struct mspec_matrix *map = &p->layer->value_map;
	const uint32_t kv = mspec_kv_width(&p->m->config), rows = mspec_pass_tile_rows(p, tile);
	const size_t first = (size_t)tile * MSPEC_TILE;

	for (uint32_t r = 0; r < rows; r++)
		quantise_error(p, t, r, first + r, false, map);
	mspec_multiply(p, t, map, rows, p->precision.wide[MSPEC_MAPS], RESIDUAL_FRAC, true,
		       p->mu_v + first * kv, kv);
}

void mspec_pass_guess_v(struct mspec_pass *p)
{
	mspec_pass_tiles(p, guess_v_tile, p);
}

/* ---- the rest of the layer ---- */

static void attend_head(const struct mspec_pass *p, struct mspec_thread *t, uint32_t row,
			uint32_t head, int32_t *q, int32_t *mixed)
{
	const struct model_config *c = &p->m->config;
	const uint32_t dim = c->head_dim, kv_head = head / (c->heads / c->kv_heads);
	const size_t plane = kv_head * p->capacity * dim;
	struct mspec_attend a = { .query = t->query,
				  .k = p->k + plane,
				  .v = p->v + plane,
				  .exp = p->m->tables.exp,
				  .dim = dim,
				  .keys = p->position + row + 1u,
				  .scores = t->scores,
				  .sums = t->sums };
	struct model_quant quant;
	struct model_scale s;
	uint32_t max = 0;
	int64_t total;

	finish_head(p, &p->w->q_norm, p->rope + (size_t)row * dim, NULL, q);
	for (uint32_t i = 0; i < dim; i++)
		max = model_abs(q[i]) > max ? model_abs(q[i]) : max;
	quant = model_quant_of(max, MODEL_QUERY);
	for (uint32_t i = 0; i < dim; i++)
		t->query[i] = (int16_t)model_quantise(q[i], quant);
	s = model_row_scale(quant, MODEL_QUERY, MODEL_FRAC, model_norm_none());
	a.step.mant = (uint32_t)((uint64_t)s.mant * p->layer->score.mant >> 24);
	a.step.exp = s.exp + p->layer->score.exp + 24;
	total = (int64_t)p->kernels->attend(&a);
	for (uint32_t i = 0; i < dim; i++)
		mixed[i] = (int32_t)(t->sums[i] * 256 / total);
}

static void attention_tile(struct mspec_pass *p, struct mspec_thread *t, size_t first,
			   uint32_t rows)
{
	const struct model_config *c = &p->m->config;
	const uint32_t q_width = mspec_q_width(c);
	int32_t *h = p->hidden + first * c->hidden;

	for (uint32_t r = 0; r < rows; r++)
		mspec_quantise_hidden(p, t, r, h + (size_t)r * c->hidden, &p->w->input,
				      p->layer->eps_input, p->precision.wide[MSPEC_Q], &p->w->q);
	mspec_multiply(p, t, &p->w->q, rows, p->precision.wide[MSPEC_Q], MODEL_FRAC, false, t->out,
		       q_width);
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t head = 0; head < c->heads; head++) {
			const size_t at = (size_t)r * q_width + head * c->head_dim;

			attend_head(p, t, (uint32_t)first + r, head, t->out + at, t->mixed + at);
		}
	for (uint32_t r = 0; r < rows; r++) {
		for (uint32_t i = 0; i < q_width; i++)
			t->wide[i] = model_times(t->mixed[(size_t)r * q_width + i],
						 p->layer->real_v);
		mspec_quantise(p, t, r, &p->w->o, p->precision.wide[MSPEC_O], MODEL_FRAC,
			       model_norm_none());
	}
	mspec_multiply(p, t, &p->w->o, rows, p->precision.wide[MSPEC_O], MSPEC_HIDDEN_FRAC, true, h,
		       c->hidden);
}

static void mlp_tile(struct mspec_pass *p, struct mspec_thread *t, size_t first, uint32_t rows)
{
	const struct model_config *c = &p->m->config;
	int32_t *h = p->hidden + first * c->hidden;

	for (uint32_t r = 0; r < rows; r++)
		mspec_quantise_hidden(p, t, r, h + (size_t)r * c->hidden, &p->w->post,
				      p->layer->eps_post, p->precision.wide[MSPEC_GATE],
				      &p->w->gate_up);
	mspec_multiply(p, t, &p->w->gate_up, rows, p->precision.wide[MSPEC_GATE], MODEL_MLP_FRAC,
		       false, t->out, 2 * (size_t)c->mlp);
	for (uint32_t r = 0; r < rows; r++) {
		const int32_t *gate = t->out + (size_t)r * 2u * c->mlp, *up = gate + c->mlp;

		p->kernels->gate(p->m->tables.sigmoid, gate, up, c->mlp, t->wide);
		mspec_quantise(p, t, r, &p->w->down, p->precision.wide[MSPEC_DOWN],
			       2 * MODEL_MLP_FRAC, model_norm_none());
	}
	mspec_multiply(p, t, &p->w->down, rows, p->precision.wide[MSPEC_DOWN], MSPEC_HIDDEN_FRAC,
		       true, h, c->hidden);
}

static void gain_tile(void *context, uint32_t tile, uint32_t thread)
{
	struct mspec_pass *p = context;
	struct mspec_thread *t = &p->scratch[thread];
	const struct model_config *c = &p->m->config;
	const uint32_t rows = mspec_pass_tile_rows(p, tile);
	const size_t first = (size_t)tile * MSPEC_TILE;

	for (uint32_t value = 0; value < 2; value++) {
		const struct mspec_matrix *gain = value ? &p->layer->gain_v : &p->layer->gain_k;

		for (uint32_t r = 0; r < rows; r++)
			quantise_error(p, t, r, first + r, value, gain);
		mspec_multiply(p, t, gain, rows, p->precision.wide[MSPEC_MAPS], MSPEC_HIDDEN_FRAC,
			       true, p->hidden + first * c->hidden, c->hidden);
	}
}

static void finish_tile(void *context, uint32_t tile, uint32_t thread)
{
	struct mspec_pass *p = context;
	struct mspec_thread *t = &p->scratch[thread];
	const size_t first = (size_t)tile * MSPEC_TILE;

	attention_tile(p, t, first, mspec_pass_tile_rows(p, tile));
	mlp_tile(p, t, first, mspec_pass_tile_rows(p, tile));
}

void mspec_pass_gain(struct mspec_pass *p)
{
	mspec_pass_tiles(p, gain_tile, p);
}

void mspec_pass_finish(struct mspec_pass *p)
{
	mspec_pass_tiles(p, finish_tile, p);
}

void mspec_pass_own(struct mspec_pass *p, int16_t *k, int16_t *v)
{
	const struct model_config *c = &p->m->config;
	const uint32_t kv = mspec_kv_width(c), dim = c->head_dim;

	mspec_pass_guess_k(p);
	for (uint32_t r = 0; r < p->rows; r++)
		for (uint32_t i = 0; i < kv; i++) {
			const size_t from = (size_t)r * kv + i;
			const size_t to = (i / dim * p->capacity + p->position + r) * dim + i % dim;

			k[to] = (int16_t)model_kv(p->mu_k[from], p->layer->k_frac);
			v[to] = (int16_t)model_kv(p->mu_v[from], p->layer->v_frac);
		}
	p->k = k;
	p->v = v;
	mspec_pass_finish(p);
}

/* ---- rows in, scratch ---- */

int mspec_pass_embed(struct mspec_pass *p, const int32_t *ids, const int32_t *start)
{
	const struct model_config *c = &p->m->config;
	const struct mspec_matrix *m = &p->m->embedding;

	for (uint32_t r = 0; ids && r < p->rows; r++)
		if (ids[r] < 0 || (uint32_t)ids[r] >= c->vocab)
			return -EINVAL;
	for (uint32_t r = 0; r < p->rows; r++) {
		int32_t *h = p->hidden + (size_t)r * c->hidden;

		if (!ids) {
			memcpy(h, start, c->hidden * sizeof(h[0]));
			continue;
		}
		for (uint32_t i = 0; i < c->hidden; i++) {
			const size_t at = (size_t)ids[r] * m->pitch + i;
			const struct model_scale s = { m->mants[ids[r]],
						       m->exps[ids[r]] + MSPEC_HIDDEN_FRAC };

			h[i] = model_times(m->high[at] * 256 + m->low[at], s);
		}
	}
	return 0;
}

static int scores_grow(struct mspec_pass *p, uint32_t count)
{
	for (uint32_t i = 0; i < p->threads; i++) {
		int32_t *s = realloc(p->scratch[i].scores, count * sizeof(s[0]));

		if (!s)
			return -ENOMEM;
		p->scratch[i].scores = s;
	}
	p->scores_count = count;
	return 0;
}

int mspec_turns_grow(struct mspec_turns *t, const double *frequencies, uint32_t dim, bool coarse,
		     uint32_t count)
{
	int32_t *r;

	if (count <= t->count)
		return 0;
	r = realloc(t->all, (size_t)count * dim * sizeof(r[0]));
	if (!r)
		return -ENOMEM;
	for (uint32_t i = t->count; i < count; i++)
		model_rope_row(frequencies, dim / 2, i, coarse, r + (size_t)i * dim);
	t->all = r;
	t->count = count;
	return 0;
}

int mspec_pass_start(struct mspec_pass *p, uint32_t position, uint32_t rows)
{
	const uint32_t keys = position + rows;

	assert(rows && rows <= p->rows_max);
	if (keys + 64u > p->scores_count && scores_grow(p, 2u * keys + 64u) < 0)
		return -ENOMEM;
	if (keys > p->turns.count &&
	    mspec_turns_grow(&p->turns, p->m->frequencies, p->m->config.head_dim, p->coarse_rope,
			     keys + rows) < 0)
		return -ENOMEM;
	p->rope = p->turns.all + (size_t)position * p->m->config.head_dim;
	p->position = position;
	p->rows = rows;
	return 0;
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

static int thread_init(struct mspec_thread *t, const struct model_config *c, uint32_t widest)
{
	const uint32_t q = mspec_q_width(c), kv = mspec_kv_width(c);
	const uint32_t own = max_u32(max_u32(c->hidden, c->mlp), max_u32(q, 2u * kv));
	const uint32_t row = max_u32(own, widest);
	const uint32_t out = max_u32(max_u32(c->hidden, 2u * c->mlp), max_u32(q, 2u * kv));
	const size_t pitch = (row + MSPEC_ALIGN) / MSPEC_ALIGN * MSPEC_ALIGN;

	t->high = calloc(MSPEC_TILE, pitch);
	t->low = calloc(MSPEC_TILE, pitch);
	t->row_scale = calloc(MSPEC_TILE, sizeof(t->row_scale[0]));
	t->wide = calloc(row, sizeof(t->wide[0]));
	t->mix = calloc(row, sizeof(t->mix[0]));
	t->out = calloc((size_t)MSPEC_TILE * out, sizeof(t->out[0]));
	t->mixed = calloc((size_t)MSPEC_TILE * q, sizeof(t->mixed[0]));
	t->acc = calloc(3u * MSPEC_TILE * MSPEC_CHUNK, sizeof(t->acc[0]));
	t->query = calloc(c->head_dim, sizeof(t->query[0]));
	t->sums = calloc(c->head_dim, sizeof(t->sums[0]));
	return t->high && t->low && t->row_scale && t->wide && t->mix && t->out && t->mixed &&
			       t->acc && t->query && t->sums
		       ? 0
		       : -ENOMEM;
}

int mspec_pass_init(struct mspec_pass *p, const struct mspec_model *m,
		    const struct mspec_runner *runner, uint32_t rows_max, uint32_t widest)
{
	const struct model_config *c = &m->config;
	const uint32_t kv = mspec_kv_width(c);
	int r = 0;

	*p = (struct mspec_pass){ .m = m,
				  .kernels = mspec_kernels_pick(),
				  .runner = runner,
				  .rows_max = rows_max,
				  .threads = runner ? runner->threads : 1u };
	assert(p->threads >= 1 && p->threads <= MODEL_THREADS_LIMIT);
	p->hidden = calloc((size_t)rows_max * c->hidden, sizeof(int32_t));
	p->mu_k = calloc((size_t)rows_max * kv, sizeof(int32_t));
	p->mu_v = calloc((size_t)rows_max * kv, sizeof(int32_t));
	p->error = calloc((size_t)rows_max * 2u * kv, sizeof(int32_t));
	p->scratch = calloc(p->threads, sizeof(p->scratch[0]));
	if (!p->hidden || !p->mu_k || !p->mu_v || !p->error || !p->scratch)
		r = -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < p->threads; i++)
		r = thread_init(&p->scratch[i], c, widest);
	if (r < 0)
		mspec_pass_deinit(p);
	return r;
}

void mspec_pass_deinit(struct mspec_pass *p)
{
	for (uint32_t i = 0; p->scratch && i < p->threads; i++) {
		struct mspec_thread *t = &p->scratch[i];

		free(t->high);
		free(t->low);
		free(t->row_scale);
		free(t->wide);
		free(t->mix);
		free(t->out);
		free(t->mixed);
		free(t->acc);
		free(t->query);
		free(t->sums);
		free(t->scores);
	}
	free(p->scratch);
	free(p->hidden);
	free(p->mu_k);
	free(p->mu_v);
	free(p->error);
	free(p->turns.all);
	*p = (struct mspec_pass){ .m = NULL };
}

/* ---- patterns ---- */

void mspec_kv_store(const struct model_config *c, struct residual_type t, const uint8_t *patterns,
		    uint32_t count, int32_t frac, int16_t *to, size_t capacity, uint32_t first)
{
	for (uint32_t r = 0; r < count; r++)
		for (uint32_t h = 0; h < c->kv_heads; h++)
			for (uint32_t i = 0; i < c->head_dim; i++) {
				const size_t at = ((size_t)r * c->kv_heads + h) * c->head_dim + i;
				int32_t x = residual_fixed(t,
							   codec_pattern_at(patterns, at, t.bits));

				to[(h * capacity + first + r) * c->head_dim + i] =
					(int16_t)model_kv(x, frac);
			}
}
