/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_fit.c - the maps from layer to layer: ridge regression of each segment on the int8 inputs that the
 * decoder will have, its weights quantised, then scales and token tables from the errors that the
 * integer procedure leaves.
 */
#include "gpu/codec/layer_fit.h"

#include <assert.h>
#include <cblas.h>
#include <errno.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RIDGE 1e-3 /* of the mean diagonal */
#define MUL_BITS 23
#define PASSES 3 /* of regression; the later ones weigh tokens by how far off they were */
#define WEIGHT_ERROR_MIN 0.1 /* of the mean square error: no token counts for more than ten */
#define GRAM_TOKENS 512 /* of one step of the sums: whoever cancels waits for no more than one */

struct fit {
	const struct layer_sample *s;
	uint64_t tokens;
	uint8_t *section; /* owned until done */
	size_t section_bytes;
	struct layer_profile *p;  /* owned; looks into section */
	struct layer_turn *turns; /* [tokens][pairs] */
	int8_t *inputs;		  /* [tokens][p->columns] */
	int32_t *values, *mu;	  /* [tokens][columns_max] */
	uint8_t *patterns;	  /* [tokens][columns_max] of an element */
	float *x, *y;		  /* [tokens][inputs], [tokens][columns] */
	double *mean_x, *mean_y;
	float *gram, *cross; /* [inputs][inputs], [inputs][columns] */
	double *a, *b;
	double *weight;			/* [tokens], mean 1 */
	struct residual_counts *counts; /* LAYER_TABLES */
	struct residual_bits bits;
	uint64_t scalars;
};

static void *shape_alloc(size_t n, size_t each)
{
	return calloc(n ? n : 1u, each);
}

/* ---- the order of coding ---- */

static int before(const struct codec_segment *a, const struct codec_segment *b)
{
	return a->layer != b->layer ? a->layer < b->layer : a->kind < b->kind;
}

/* Coded segments in order of layers, keys first; a stable insertion sort of at most 1024. */
static uint32_t order_make(const struct codec_geometry *g, struct layer_section_segment *o)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		uint32_t k = n;

		if (!codec_segment_coded(&g->segments[i]))
			continue;
		for (; k > 0 && before(&g->segments[i], &g->segments[o[k - 1u].segment]); k--)
			o[k] = o[k - 1u];
		o[k] = (struct layer_section_segment){ .segment = i };
		n++;
	}
	return n;
}

/* How many segments before i belong to its own layer or the `previous` ones; none when that is 0. */
static void order_inputs(const struct codec_geometry *g, struct layer_section_segment *o,
			 uint32_t n, uint32_t previous)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t layer = g->segments[o[i].segment].layer, k = 0;

		while (previous > 0 && k < i && k < LAYER_INPUTS_MAX &&
		       layer - g->segments[o[i - k - 1u].segment].layer <= previous)
			k++;
		o[i].inputs = (uint16_t)k;
	}
}

/* A section that parses, with nothing learnt in it. */
static int section_start(struct fit *f, const struct layer_rotary *rotary, uint32_t previous)
{
	const struct codec_geometry *g = f->s->g;
	struct layer_section_segment *order = calloc(g->segments_count, sizeof(*order));
	struct residual_freqs *freqs = calloc(1, sizeof(*freqs));
	struct residual_counts *none = calloc(1, sizeof(*none));
	struct layer_section h = { .magic = LAYER_SECTION_MAGIC,
				   .version = LAYER_SECTION_VERSION,
				   .turn_round_bf16 = rotary->round_bf16,
				   .interleaved = rotary->interleaved,
				   .pairs = rotary->pairs,
				   .previous = previous,
				   .tokens_count = f->tokens };
	int r = order && freqs && none ? 0 : -ENOMEM;

	if (r == 0) {
		h.segments_count = order_make(g, order);
		order_inputs(g, order, h.segments_count, previous);
		for (uint32_t i = 0; i < h.segments_count; i++) {
			const struct codec_segment *seg = &g->segments[order[i].segment];

			order[i].tables = seg->kind != CODEC_KIND_K;
			order[i].turned = seg->kind == CODEC_KIND_K && rotary->pairs &&
					  2u * rotary->pairs <= seg->head_dim;
		}
		h.bytes = layer_section_bytes(g, order, h.segments_count, rotary->pairs);
		r = h.segments_count == 0 ? -EINVAL : h.bytes == 0 ? -E2BIG : 0;
	}
	if (r == 0) {
		f->section_bytes = h.bytes;
		f->section = aligned_alloc(LAYER_ALIGN, h.bytes);
		r = f->section ? 0 : -ENOMEM;
	}
	if (r == 0) {
		memset(f->section, 0, h.bytes);
		residual_freqs_fit(none, freqs);
		layer_section_fill(&h, rotary, freqs, order, f->section);
	}
	if (r == 0)
		r = layer_profile_parse(g, f->section, f->section_bytes, &f->p);
	free(order);
	free(freqs);
	free(none);
	return r;
}

/* ---- memory ---- */

static int fit_alloc(struct fit *f)
{
	uint32_t inputs = 0;
	size_t n = f->tokens, c = f->p->columns_max;

	for (uint32_t i = 0; i < f->p->segments_count; i++)
		if (f->p->segments[i].inputs > inputs)
			inputs = f->p->segments[i].inputs;
	f->turns = shape_alloc(n * f->p->pairs, sizeof(*f->turns));
	f->inputs = shape_alloc(n * f->p->columns, 1);
	f->values = shape_alloc(n * c, sizeof(*f->values));
	f->mu = shape_alloc(n * c, sizeof(*f->mu));
	f->patterns = shape_alloc(n * c, 2);
	f->x = shape_alloc(n * inputs, sizeof(*f->x));
	f->y = shape_alloc(n * c, sizeof(*f->y));
	f->mean_x = shape_alloc(inputs, sizeof(double));
	f->mean_y = shape_alloc(c, sizeof(double));
	f->gram = shape_alloc((size_t)inputs * inputs, sizeof(float));
	f->cross = shape_alloc(inputs * c, sizeof(float));
	f->a = shape_alloc((size_t)inputs * inputs, sizeof(double));
	f->b = shape_alloc(inputs * c, sizeof(double));
	f->weight = shape_alloc(n, sizeof(*f->weight));
	f->counts = calloc(LAYER_TABLES, sizeof(*f->counts));
	return f->turns && f->inputs && f->values && f->mu && f->patterns && f->x && f->y &&
			       f->mean_x && f->mean_y && f->gram && f->cross && f->a && f->b &&
			       f->weight && f->counts
		       ? 0
		       : -ENOMEM;
}

static void fit_deinit(struct fit *f)
{
	f->p = layer_profile_free(f->p);
	free(f->section);
	free(f->turns);
	free(f->inputs);
	free(f->values);
	free(f->mu);
	free(f->patterns);
	free(f->x);
	free(f->y);
	free(f->mean_x);
	free(f->mean_y);
	free(f->gram);
	free(f->cross);
	free(f->a);
	free(f->b);
	free(f->weight);
	free(f->counts);
}

/* ---- one segment ---- */

/* The section is ours while it is fitted; a parsed profile only looks into it. */
static void *writable(const struct fit *f, const void *p)
{
	return f->section + ((const uint8_t *)p - f->section);
}

static void patterns_gather(struct fit *f, const struct layer_segment *s)
{
	const struct codec_geometry *g = f->s->g;
	uint64_t bytes = codec_segment_bytes(g, s->segment);

	for (uint32_t b = 0; b < f->s->blocks_count; b++)
		memcpy(f->patterns + b * bytes,
		       f->s->blocks + b * g->raw_bytes + g->segment_off[s->segment], bytes);
}

/* The step of an 8-bit quantiser that loses least of a column: clipping against rounding. */
static double column_step(const struct fit *f, const struct layer_segment *s, uint32_t c)
{
	double max = 1, best = INFINITY, ret = 1;

	for (uint64_t t = 0; t < f->tokens; t++)
		max = fmax(max, fabs((double)f->values[t * s->columns + c]));
	for (int k = 0; k < 9; k++) {
		double step = max / 127 * pow(2, -k / 3.0), loss = 0;

		for (uint64_t t = 0; t < f->tokens; t += 7) {
			double v = f->values[t * s->columns + c];
			double q = fmin(127, fmax(-127, nearbyint(v / step)));

			loss += (v - q * step) * (v - q * step);
		}
		if (loss < best) {
			best = loss;
			ret = step;
		}
	}
	return ret;
}

static void inputs_fit(struct fit *f, const struct layer_segment *s)
{
	uint32_t *in_mul = writable(f, s->in_mul);

	layer_values(f->p, s, f->turns, (uint32_t)f->tokens, f->patterns, f->values);
	for (uint32_t c = 0; c < s->columns; c++) {
		double mul = 4294967296.0 / column_step(f, s, c);

		in_mul[c] = mul >= 4294967295.0 ? UINT32_MAX : (uint32_t)lround(mul);
	}
	layer_inputs(f->p, s, (uint32_t)f->tokens, f->values, f->inputs);
}

static void means_take(struct fit *f, const struct layer_segment *s)
{
	memset(f->mean_x, 0, s->inputs * sizeof(*f->mean_x));
	memset(f->mean_y, 0, s->columns * sizeof(*f->mean_y));
	for (uint64_t t = 0; t < f->tokens; t++) {
		const int8_t *in = f->inputs + t * f->p->columns + s->input_first;
		double w = f->weight[t] / (double)f->tokens;

		for (uint32_t i = 0; i < s->inputs; i++)
			f->mean_x[i] += w * in[i];
		for (uint32_t c = 0; c < s->columns; c++)
			f->mean_y[c] += w * f->values[t * s->columns + c];
	}
}

/* f->x, f->y and their means; both centred, and by the roots of their weights. */
static void samples_load(struct fit *f, const struct layer_segment *s)
{
	means_take(f, s);
	for (uint64_t t = 0; t < f->tokens; t++) {
		const int8_t *in = f->inputs + t * f->p->columns + s->input_first;
		double w = sqrt(f->weight[t]), one = w / (1 << RESIDUAL_FRAC);

		for (uint32_t i = 0; i < s->inputs; i++)
			f->x[t * s->inputs + i] = (float)(w * (in[i] - f->mean_x[i]));
		for (uint32_t c = 0; c < s->columns; c++)
			f->y[t * s->columns + c] =
				(float)(one * (f->values[t * s->columns + c] - f->mean_y[c]));
	}
}

static int sums_make(struct fit *f, int n, int c)
{
	for (size_t t = 0; t < f->tokens; t += GRAM_TOKENS) {
		int tokens = f->tokens - t < GRAM_TOKENS ? (int)(f->tokens - t) : GRAM_TOKENS;
		const float *x = f->x + t * (size_t)n, *y = f->y + t * (size_t)c;
		float keep = t ? 1 : 0;

		if (layer_sample_cancelled(f->s))
			return -ECANCELED;
		cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, n, tokens, 1, x, n, keep,
			    f->gram, n);
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, c, tokens, 1, x, n, y, c,
			    keep, f->cross, c);
	}
	return 0;
}

/* f->b: [inputs][columns], in values of one per input step. */
static int ridge_solve(struct fit *f, const struct layer_segment *s)
{
	int n = (int)s->inputs, c = (int)s->columns;
	double diagonal = 0;
	int r = sums_make(f, n, c);

	if (r < 0)
		return r;
	for (int i = 0; i < n; i++)
		diagonal += (double)f->gram[(size_t)i * (size_t)n + (size_t)i] / n;
	for (size_t i = 0; i < (size_t)n * (size_t)n; i++)
		f->a[i] = (double)f->gram[i];
	for (size_t i = 0; i < (size_t)n * (size_t)c; i++)
		f->b[i] = (double)f->cross[i];
	for (size_t i = 0; i < (size_t)n; i++)
		f->a[i * (size_t)n + i] += RIDGE * diagonal + 1e-6;
	return LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', n, c, f->a, n, f->b, c) == 0 ? 0 : -EDOM;
}

/* step: fixed-point value of one unit of the sum. */
static void output_scale(double step, int32_t *mul, uint8_t *shift)
{
	int e = 0;

	if (step <= 0) {
		*mul = 0;
		*shift = 1;
		return;
	}
	(void)frexp(step, &e); /* step in [2^(e - 1), 2^e) */
	e = MUL_BITS - e;
	*shift = (uint8_t)(e < 1 ? 1 : e > (int)LAYER_SHIFT_MAX ? (int)LAYER_SHIFT_MAX : e);
	step = ldexp(step, *shift);
	*mul = step >= 2147483647.0 ? INT32_MAX : (int32_t)lround(step);
}

static int32_t fixed_clamp(double v)
{
	return v >= RESIDUAL_MU_MAX    ? RESIDUAL_MU_MAX
	       : v <= -RESIDUAL_MU_MAX ? -RESIDUAL_MU_MAX
				       : (int32_t)lround(v);
}

static void weights_quantise(struct fit *f, const struct layer_segment *s)
{
	int8_t *weights = writable(f, s->weights);
	int32_t *bias = writable(f, s->bias), *mul = writable(f, s->mul);
	uint8_t *shift = writable(f, s->shift);

	for (uint32_t c = 0; c < s->columns; c++) {
		int8_t *row = weights + (size_t)c * s->inputs;
		double max = 0, mean = 0, step;

		for (uint32_t i = 0; i < s->inputs; i++)
			max = fmax(max, fabs(f->b[(size_t)i * s->columns + c]));
		step = max / 127;
		for (uint32_t i = 0; i < s->inputs && step > 0; i++) {
			row[i] = (int8_t)lround(f->b[(size_t)i * s->columns + c] / step);
			mean += row[i] * f->mean_x[i];
		}
		output_scale(step * 65536.0, &mul[c], &shift[c]);
		bias[c] = fixed_clamp(f->mean_y[c] - ldexp(mean * mul[c], -shift[c]));
	}
}

/* ---- errors of the integer procedure ---- */

static double error_at(const struct fit *f, const struct layer_segment *s, size_t i)
{
	uint32_t pattern = codec_pattern_at(f->patterns, i, s->type.bits);

	return (double)residual_fixed(s->type, pattern) - f->mu[i];
}

static void errors_sum(const struct fit *f, const struct layer_segment *s, double *square)
{
	for (uint64_t t = 0; t < f->tokens; t++)
		for (uint32_t c = 0; c < s->columns; c++) {
			double e = error_at(f, s, t * s->columns + c);

			square[c] += e * e / (double)f->tokens;
		}
}

/*
 * Each token's scale is coded (tau), so what matters is a column's error beside its token's: tokens count
 * inversely to their mean square error.  Worth 0.03 bits per scalar of bf16 or e4m3.
 */
static int weights_fit(struct fit *f, const struct layer_segment *s)
{
	double *square = shape_alloc(s->columns, sizeof(*square)), sum = 0;

	if (!square)
		return -ENOMEM;
	errors_sum(f, s, square);
	for (uint64_t t = 0; t < f->tokens; t++) {
		double mean = 0;

		for (uint32_t c = 0; c < s->columns; c++) {
			double e = error_at(f, s, t * s->columns + c);

			mean += e * e / (square[c] > 0 ? square[c] : 1) / s->columns;
		}
		f->weight[t] = 1 / fmax(mean, WEIGHT_ERROR_MIN);
		sum += f->weight[t];
	}
	for (uint64_t t = 0; t < f->tokens; t++)
		f->weight[t] *= (double)f->tokens / sum;
	free(square);
	return 0;
}

/* Both members of a rotary pair are one another's mixture. */
static void errors_pool(const struct fit *f, const struct layer_segment *s, double *square)
{
	uint32_t step = f->p->interleaved ? 1u : f->p->pairs;

	for (uint32_t head = 0; s->turned && head < s->columns; head += s->head_dim)
		for (uint32_t i = 0; i < f->p->pairs; i++) {
			double *a = square + head + (f->p->interleaved ? 2u * i : i);

			a[0] = a[step] = (a[0] + a[step]) / 2;
		}
}

static int scales_fit(struct fit *f, const struct layer_segment *s)
{
	double *square = shape_alloc(s->columns, sizeof(*square));
	int16_t *base = writable(f, s->base);

	if (!square)
		return -ENOMEM;
	errors_sum(f, s, square);
	errors_pool(f, s, square);
	for (uint32_t c = 0; c < s->columns; c++) {
		double v = square[c] > 0 ? 2 * log2(square[c]) : 0;

		base[c] = (int16_t)fmin(RESIDUAL_SCALE_MAX, fmax(0, nearbyint(v)));
	}
	free(square);
	return 0;
}

static struct residual_segment block_segment(const struct fit *f, const struct layer_segment *s,
					     uint32_t block)
{
	uint32_t tokens = f->s->g->block_tokens;

	return (struct residual_segment){ .tokens_count = tokens,
					  .columns = s->columns,
					  .type = s->type,
					  .base = s->base,
					  .mu = f->mu + (size_t)block * tokens * s->columns };
}

static void symbols_count(struct fit *f, const struct layer_segment *s)
{
	uint64_t bytes = codec_segment_bytes(f->s->g, s->segment);

	for (uint32_t b = 0; b < f->s->blocks_count; b++) {
		struct residual_segment c = block_segment(f, s, b);

		residual_count(&f->counts[s->tables], &c, f->patterns + b * bytes,
			       f->p->streams_count);
	}
	f->scalars += f->tokens * s->columns;
}

static int segment_fit(struct fit *f, const struct layer_segment *s)
{
	int r = 0;

	patterns_gather(f, s);
	inputs_fit(f, s);
	for (uint64_t t = 0; t < f->tokens; t++)
		f->weight[t] = 1;
	for (int pass = 0; r == 0 && pass < PASSES; pass++) {
		if (pass > 0)
			r = weights_fit(f, s);
		if (r == 0)
			samples_load(f, s);
		if (r == 0 && s->inputs > 0)
			r = ridge_solve(f, s);
		if (r < 0)
			return r;
		weights_quantise(f, s);
		layer_guess(f->p, s, f->turns, (uint32_t)f->tokens, f->inputs, f->mu);
	}
	r = scales_fit(f, s);
	if (r == 0)
		symbols_count(f, s);
	return r;
}

int layer_fit(const struct layer_sample *s, const struct layer_rotary *rotary, uint32_t previous,
	      uint8_t **ret_section, size_t *ret_bytes)
{
	struct fit f = { .s = s, .tokens = (uint64_t)s->blocks_count * s->g->block_tokens };
	int r;

	if (s->blocks_count < 2)
		return -ENODATA;
	if (previous > LAYER_PREVIOUS_MAX)
		return -EINVAL;
	r = section_start(&f, rotary, previous);
	if (r == 0)
		r = fit_alloc(&f);
	for (uint32_t b = 0; r == 0 && b < s->blocks_count; b++)
		layer_turns(f.p, s->positions[b], s->g->block_tokens,
			    f.turns + (size_t)b * s->g->block_tokens * f.p->pairs);
	for (uint32_t i = 0; r == 0 && i < f.p->segments_count; i++)
		r = segment_fit(&f, &f.p->segments[i]);
	if (r == 0)
		r = layer_section_finish(f.section, f.counts, f.scalars);
	if (r == 0) {
		*ret_section = f.section;
		*ret_bytes = f.section_bytes;
		f.section = NULL;
	}
	fit_deinit(&f);
	return r;
}

void layer_section_rescale(uint8_t *section, const struct layer_profile *p, const double *ratio)
{
	const struct fit f = { .section = section };

	for (uint32_t i = 0; i < p->segments_count; i++) {
		const struct layer_segment *s = &p->segments[i];
		uint32_t *in_mul = writable(&f, s->in_mul);
		int32_t *bias = writable(&f, s->bias), *mul = writable(&f, s->mul);
		int16_t *base = writable(&f, s->base);
		double by = ratio[s->segment];

		for (uint32_t c = 0; c < s->columns; c++) {
			double scale = s->base[c] - nearbyint(4 * log2(by));

			in_mul[c] = (uint32_t)fmin(UINT32_MAX, nearbyint(s->in_mul[c] * by));
			bias[c] = fixed_clamp(s->bias[c] / by);
			mul[c] = fixed_clamp(s->mul[c] / by);
			base[c] = (int16_t)fmin(RESIDUAL_SCALE_MAX,
						fmax(RESIDUAL_SCALE_MIN, scale));
		}
	}
}

int codec_profile_fit_layer(const struct codec_geometry *g, const struct codec_profile *p,
			    const void *blocks, const uint32_t *positions, uint32_t blocks_count,
			    uint32_t previous, struct codec_profile **ret_profile)
{
	return codec_profile_fit_layer_until(g, p, blocks, positions, blocks_count, previous, NULL,
					     ret_profile);
}

int codec_profile_fit_layer_until(const struct codec_geometry *g, const struct codec_profile *p,
				  const void *blocks, const uint32_t *positions,
				  uint32_t blocks_count, uint32_t previous,
				  const _Atomic(uint32_t) *cancel,
				  struct codec_profile **ret_profile)
{
	const struct layer_sample s = { .g = g,
					.blocks = blocks,
					.positions = positions,
					.blocks_count = blocks_count,
					.cancel = cancel };
	struct layer_rotary rotary;
	uint8_t *section = NULL;
	size_t bytes = 0;
	int r = layer_rotary_find(&s, &rotary);

	if (r == 0)
		r = layer_fit(&s, &rotary, previous, &section, &bytes);
	if (r < 0)
		return r;
	r = codec_profile_with_layer(g, p, section, bytes, ret_profile);
	free(section);
	return r;
}

uint64_t codec_profile_layer_bytes(const struct codec_geometry *g, uint32_t previous)
{
	struct layer_section_segment *order = calloc(g->segments_count, sizeof(*order));
	uint32_t n, pairs = 0;
	uint64_t bytes = 0;

	if (order && previous <= LAYER_PREVIOUS_MAX) {
		n = order_make(g, order);
		order_inputs(g, order, n, previous);
		for (uint32_t i = 0; i < n; i++)
			if (g->segments[order[i].segment].head_dim / 2u > pairs)
				pairs = g->segments[order[i].segment].head_dim / 2u;
		bytes = n ? layer_section_bytes(g, order, n, pairs) : 0;
	}
	free(order);
	return bytes;
}

int codec_profile_rescale(const struct codec_geometry *g, const struct codec_profile *p,
			  const double *ratio, struct codec_profile **ret_profile)
{
	uint8_t *serial = codec_serial_alloc(p->serial_bytes);
	int r;

	if (!serial)
		return -ENOMEM;
	memcpy(serial, p->serial, p->serial_bytes);
	codec_profile_rescale_channels(g, serial, ratio);
	if (p->layer) {
		const uint8_t *old = (const uint8_t *)p->layer->section;
		uint8_t *section = serial + (old - p->serial);
		struct layer_profile *own = NULL;

		r = layer_profile_parse(g, section, p->layer->section->bytes, &own);
		if (r == 0)
			layer_section_rescale(section, own, ratio);
		layer_profile_free(own);
		if (r < 0) {
			free(serial);
			return r;
		}
	}
	r = codec_profile_from_serial(g, serial, p->serial_bytes, ret_profile);
	if (r < 0)
		free(serial);
	return r;
}
