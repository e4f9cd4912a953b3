/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.c - the forward pass: norm, q k v, rope, attention over pages, MLP, logits.
 *
 * Work is shared by rows (tokens) or by outputs, never by cutting a sum: an output is computed by
 * one thread from start to end in the order that model_kernels.h states.  Scratch is sized once, when
 * the model is opened.
 */
#include "tools/model.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sodium.h>

#include "gpu/model/report.h"
#include "tools/model_kernels.h"
#include "tools/model_threads.h"
#include "tools/model_weights.h"

#define ARITHMETIC_VERSION "skvc-demo arithmetic 1" /* part of the identity; change with results */
#define THREADS_DEFAULT_MAX 8u
#define CONTEXT_DEFAULT 4096u
#define PANELS_PER_ITEM 4u
#define SERIAL_PRODUCTS_MAX (1u << 20) /* less work than waking threads is worth */

struct model {
	struct model_config config;
	struct model_weights weights;	     /* owned */
	const struct model_kernels *kernels; /* borrowed, static */
	struct model_threads *threads;	     /* owned */
	uint32_t context_tokens;
	uint8_t identity[MODEL_IDENTITY_BYTES];
	float *cosines, *sines; /* owned; [context_tokens][head_dim / 2] */

	/* Scratch, owned; [MODEL_BATCH_TOKENS][...] but for the last three. */
	float *hidden;	/* the residual stream, [hidden] */
	float *normed;	/* [hidden] */
	float *qkv;	/* [q, k, v] */
	float *mixed;	/* attention's output, [heads * head_dim] */
	float *gate_up; /* [2 * mlp] */
	float *scores;	/* per thread: [heads / kv_heads][scores_stride];
							 * the last of a row is 1 / its sum */
	float *query;	/* per thread: [head_dim] */
	float *logits;	/* [vocab, rounded up to whole panels] */
	size_t scores_stride;
};

/* One model_forward(), as its loops see it. */
struct batch {
	struct model *m;
	const struct model_pages *pages;
	const uint32_t *block_table;
	uint32_t position;
	uint32_t count;
	uint32_t layer;
};

static uint32_t q_width(const struct model_config *c)
{
	return c->heads * c->head_dim;
}

static uint32_t kv_width(const struct model_config *c)
{
	return c->kv_heads * c->head_dim;
}

uint64_t model_segment_bytes(const struct model_config *c)
{
	return (uint64_t)MODEL_BLOCK_TOKENS * kv_width(c) * sizeof(uint16_t);
}

uint64_t model_block_bytes(const struct model_config *c)
{
	return 2 * (uint64_t)c->layers * model_segment_bytes(c);
}

uint64_t model_pages_bytes(const struct model_config *c, uint32_t blocks_count)
{
	return blocks_count * model_block_bytes(c);
}

uint16_t *model_page(const struct model_config *c, const struct model_pages *pages,
		     uint32_t segment, uint32_t block)
{
	uint64_t index = (uint64_t)segment * pages->blocks_count + block;

	assert(segment < 2 * c->layers && block < pages->blocks_count);
	return pages->base + index * (model_segment_bytes(c) / sizeof(uint16_t));
}

const struct model_config *model_config(const struct model *m)
{
	return &m->config;
}

const struct model_kernels *model_kernels(const struct model *m)
{
	return m->kernels;
}

uint32_t model_threads_used(const struct model *m)
{
	return model_threads_count(m->threads);
}

const uint8_t *model_identity(const struct model *m)
{
	return m->identity;
}

/* ---- products ---- */

struct product {
	const struct model *m;
	const struct model_matrix *matrix;
	const float *x;
	float *y;
	size_t x_stride, y_stride;
	uint32_t rows;
};

static void product_item(void *context, uint32_t item, uint32_t thread)
{
	const struct product *p = context;
	const uint32_t inputs = p->matrix->inputs;
	const uint32_t panels = (p->matrix->outputs + MODEL_PANEL - 1) / MODEL_PANEL;
	uint32_t panel = item * PANELS_PER_ITEM;
	uint32_t end = panel + PANELS_PER_ITEM < panels ? panel + PANELS_PER_ITEM : panels;

	(void)thread;
	for (; panel < end; panel++) {
		const uint16_t *w = p->matrix->panels + (size_t)panel * inputs * MODEL_PANEL;

		for (uint32_t row = 0; row < p->rows; row += MODEL_ROWS_MAX) {
			uint32_t left = p->rows - row;

			p->m->kernels->panel(p->x + row * p->x_stride, p->x_stride,
					     left < MODEL_ROWS_MAX ? left : MODEL_ROWS_MAX, inputs,
					     w, MODEL_PANEL,
					     p->y + row * p->y_stride + panel * MODEL_PANEL,
					     p->y_stride);
		}
	}
}

/* y += x * matrix, row by row; y has room for whole panels. */
static void multiply_add(const struct model *m, const struct model_matrix *matrix, const float *x,
			 size_t x_stride, uint32_t rows, float *y, size_t y_stride)
{
	struct product p = {
		.m = m,
		.matrix = matrix,
		.x = x,
		.y = y,
		.rows = rows,
		.x_stride = x_stride,
		.y_stride = y_stride,
	};
	const uint32_t panels = (matrix->outputs + MODEL_PANEL - 1) / MODEL_PANEL;
	const uint32_t items = (panels + PANELS_PER_ITEM - 1) / PANELS_PER_ITEM;

	if ((uint64_t)rows * matrix->inputs * matrix->outputs < SERIAL_PRODUCTS_MAX)
		for (uint32_t item = 0; item < items; item++)
			product_item(&p, item, 0);
	else
		model_threads_run(m->threads, items, product_item, &p);
}

static void multiply(const struct model *m, const struct model_matrix *matrix, const float *x,
		     size_t x_stride, uint32_t rows, float *y, size_t y_stride)
{
	memset(y, 0, rows * y_stride * sizeof(y[0]));
	multiply_add(m, matrix, x, x_stride, rows, y, y_stride);
}

/* ---- norm, rope, pages ---- */

/* y may be x. */
static void rms_norm(const struct model *m, const float *x, const float *weight, uint32_t count,
		     float *y)
{
	float mean = m->kernels->squares(x, count) / (float)count;
	float scale = 1.0f / sqrtf(mean + m->config.norm_eps);

	for (uint32_t i = 0; i < count; i++)
		y[i] = x[i] * scale * weight[i];
}

static void norm_all(const struct batch *b, const float *weight)
{
	const uint32_t hidden = b->m->config.hidden;

	for (uint32_t t = 0; t < b->count; t++)
		rms_norm(b->m, b->m->hidden + (size_t)t * hidden, weight, hidden,
			 b->m->normed + (size_t)t * hidden);
}

/* Element i turns with element i + head_dim / 2. */
static void rope(const struct model *m, uint32_t position, float *head)
{
	const uint32_t half = m->config.head_dim / 2;
	const float *cosine = m->cosines + (size_t)position * half;
	const float *sine = m->sines + (size_t)position * half;

	for (uint32_t i = 0; i < half; i++) {
		float a = head[i], z = head[i + half];

		head[i] = fmaf(a, cosine[i], -(z * sine[i]));
		head[i + half] = fmaf(z, cosine[i], a * sine[i]);
	}
}

/* Finishes q, k and v of one token and writes k and v to their page. */
static void place_token(void *context, uint32_t item, uint32_t thread)
{
	const struct batch *b = context;
	const struct model *m = b->m;
	const struct model_config *c = &m->config;
	const struct model_layer *layer = &m->weights.layers[b->layer];
	const uint32_t position = b->position + item, width = kv_width(c);
	const uint32_t block = b->block_table[position / MODEL_BLOCK_TOKENS];
	const size_t row = (size_t)(position % MODEL_BLOCK_TOKENS) * width;
	const float scale = 1.0f / sqrtf((float)c->head_dim);
	float *q = m->qkv + (size_t)item * (q_width(c) + 2 * width);
	float *k = q + q_width(c), *v = k + width;
	uint16_t *k_row = model_page(c, b->pages, 2 * b->layer, block) + row;
	uint16_t *v_row = model_page(c, b->pages, 2 * b->layer + 1, block) + row;

	(void)thread;
	for (uint32_t h = 0; h < c->heads; h++) {
		float *head = q + h * c->head_dim;

		if (layer->q_norm)
			rms_norm(m, head, layer->q_norm, c->head_dim, head);
		rope(m, position, head);
		for (uint32_t d = 0; d < c->head_dim; d++)
			head[d] *= scale;
	}
	for (uint32_t h = 0; h < c->kv_heads; h++) {
		if (layer->k_norm)
			rms_norm(m, k + h * c->head_dim, layer->k_norm, c->head_dim,
				 k + h * c->head_dim);
		rope(m, position, k + h * c->head_dim);
	}
	for (uint32_t i = 0; i < width; i++) {
		k_row[i] = model_to_bf16(k[i]);
		v_row[i] = model_to_bf16(v[i]);
	}
}

/* ---- attention ---- */

/* mixed += scores * V for the heads of one group, block by block in ascending order. */
static void mix_values(const struct batch *b, uint32_t kv_head, uint32_t keys, const float *scores,
		       float *mixed)
{
	const struct model *m = b->m;
	const struct model_config *c = &m->config;
	const uint32_t group = c->heads / c->kv_heads, width = kv_width(c);

	for (uint32_t first = 0; first < keys; first += MODEL_BLOCK_TOKENS) {
		const uint32_t block = b->block_table[first / MODEL_BLOCK_TOKENS],
			       left = keys - first;
		const uint16_t *v = model_page(c, b->pages, 2 * b->layer + 1, block) +
				    kv_head * c->head_dim;

		for (uint32_t g = 0; g < group; g += MODEL_ROWS_MAX) {
			uint32_t rows = group - g < MODEL_ROWS_MAX ? group - g : MODEL_ROWS_MAX;

			for (uint32_t d = 0; d < c->head_dim; d += MODEL_PANEL)
				m->kernels->panel(
					scores + g * m->scores_stride + first, m->scores_stride,
					rows, left < MODEL_BLOCK_TOKENS ? left : MODEL_BLOCK_TOKENS,
					v + d, width, mixed + g * c->head_dim + d, c->head_dim);
		}
	}
}

/* The heads of one group of one token, last token first: it has the most to do. */
static void attend(void *context, uint32_t item, uint32_t thread)
{
	const struct batch *b = context;
	const struct model *m = b->m;
	const struct model_config *c = &m->config;
	const uint32_t group = c->heads / c->kv_heads, width = kv_width(c);
	const uint32_t kv_head = item % c->kv_heads, t = b->count - 1 - item / c->kv_heads;
	const uint32_t keys = b->position + t + 1, head = kv_head * group;
	const float *q = m->qkv + (size_t)t * (q_width(c) + 2 * width) + head * c->head_dim;
	float *mixed = m->mixed + (size_t)t * q_width(c) + head * c->head_dim;
	float *scores = m->scores + thread * group * m->scores_stride;
	float *query = m->query + (size_t)thread * c->head_dim;

	for (uint32_t g = 0; g < group; g++) {
		float *row = scores + g * m->scores_stride;

		model_split_query(q + g * c->head_dim, c->head_dim, query);
		for (uint32_t first = 0; first < keys; first += MODEL_BLOCK_TOKENS) {
			uint32_t block = b->block_table[first / MODEL_BLOCK_TOKENS];
			uint32_t left = keys - first;

			m->kernels->dots(query, c->head_dim,
					 model_page(c, b->pages, 2 * b->layer, block) +
						 kv_head * c->head_dim,
					 width,
					 left < MODEL_BLOCK_TOKENS ? left : MODEL_BLOCK_TOKENS,
					 row + first);
		}
		row[m->scores_stride - 1] = 1.0f / m->kernels->softmax(row, keys);
	}
	memset(mixed, 0, group * c->head_dim * sizeof(mixed[0]));
	mix_values(b, kv_head, keys, scores, mixed);
	for (uint32_t i = 0; i < group * c->head_dim; i++)
		mixed[i] *= scores[(i / c->head_dim + 1) * m->scores_stride - 1];
}

static void silu_token(void *context, uint32_t item, uint32_t thread)
{
	const struct batch *b = context;
	const uint32_t mlp = b->m->config.mlp;
	float *row = b->m->gate_up + (size_t)item * 2 * mlp;

	(void)thread;
	b->m->kernels->silu(row, row + mlp, mlp);
}

/* ---- the pass ---- */

static void run_layer(struct batch *b)
{
	struct model *m = b->m;
	const struct model_config *c = &m->config;
	const struct model_layer *layer = &m->weights.layers[b->layer];
	const uint32_t width = q_width(c) + 2 * kv_width(c);

	norm_all(b, layer->input_norm);
	multiply(m, &layer->qkv, m->normed, c->hidden, b->count, m->qkv, width);
	model_threads_run(m->threads, b->count, place_token, b);
	model_threads_run(m->threads, b->count * c->kv_heads, attend, b);
	multiply_add(m, &layer->o, m->mixed, q_width(c), b->count, m->hidden, c->hidden);
	norm_all(b, layer->post_norm);
	multiply(m, &layer->gate_up, m->normed, c->hidden, b->count, m->gate_up,
		 2 * (size_t)c->mlp);
	model_threads_run(m->threads, b->count, silu_token, b);
	multiply_add(m, &layer->down, m->gate_up, 2 * (size_t)c->mlp, b->count, m->hidden,
		     c->hidden);
}

static void output_logits(struct batch *b, float *ret_logits)
{
	struct model *m = b->m;
	const struct model_config *c = &m->config;
	const size_t padded = (c->vocab + MODEL_PANEL - 1) / MODEL_PANEL * MODEL_PANEL;
	float *last = m->hidden + (size_t)(b->count - 1) * c->hidden;

	rms_norm(m, last, m->weights.final_norm, c->hidden, m->normed);
	multiply(m, &m->weights.output, m->normed, c->hidden, 1, m->logits, padded);
	memcpy(ret_logits, m->logits, c->vocab * sizeof(ret_logits[0]));
}

int model_forward(struct model *m, const struct model_pages *pages, const uint32_t *block_table,
		  uint32_t position, const int32_t *ids, uint32_t count, float *ret_logits)
{
	const struct model_config *c = &m->config;
	struct batch b = {
		.m = m,
		.pages = pages,
		.block_table = block_table,
		.position = position,
		.count = count,
	};

	assert(count && count <= MODEL_BATCH_TOKENS);
	if (position > m->context_tokens || count > m->context_tokens - position)
		return -E2BIG;
	for (uint32_t t = 0; t < count; t++) {
		const uint16_t *row;

		if (ids[t] < 0 || (uint32_t)ids[t] >= c->vocab)
			return -EINVAL;
		row = m->weights.embedding + (size_t)ids[t] * c->hidden;
		for (uint32_t i = 0; i < c->hidden; i++)
			m->hidden[(size_t)t * c->hidden + i] = model_from_bf16(row[i]);
	}
	for (b.layer = 0; b.layer < c->layers; b.layer++)
		run_layer(&b);
	if (ret_logits)
		output_logits(&b, ret_logits);
	return 0;
}

int32_t model_greedy(const struct model *m, const float *logits)
{
	int32_t best = -1;

	for (uint32_t id = 0; id < m->config.vocab; id++)
		if (isfinite(logits[id]) && (best < 0 || logits[id] > logits[best]))
			best = (int32_t)id;
	return best;
}

/* ---- opening and closing ---- */

static void fill_rope(struct model *m)
{
	const uint32_t half = m->config.head_dim / 2;

	for (uint32_t i = 0; i < half; i++) {
		double frequency = pow(m->config.rope_theta, -(double)i / half);

		for (uint32_t p = 0; p < m->context_tokens; p++) {
			m->cosines[(size_t)p * half + i] = (float)cos(p * frequency);
			m->sines[(size_t)p * half + i] = (float)sin(p * frequency);
		}
	}
}

static void fill_identity(struct model *m)
{
	const struct model_config *c = &m->config;
	const uint32_t shape[] = { c->arch,  c->layers,	  c->hidden,   c->mlp,
				   c->heads, c->kv_heads, c->head_dim, c->vocab };
	crypto_generichash_state state;

	crypto_generichash_init(&state, NULL, 0, sizeof(m->identity));
	crypto_generichash_update(&state, (const uint8_t *)ARITHMETIC_VERSION,
				  sizeof(ARITHMETIC_VERSION));
	crypto_generichash_update(&state, (const uint8_t *)shape, sizeof(shape));
	crypto_generichash_update(&state, (const uint8_t *)&c->norm_eps, sizeof(c->norm_eps));
	crypto_generichash_update(&state, (const uint8_t *)&c->rope_theta, sizeof(c->rope_theta));
	crypto_generichash_update(&state, m->weights.digest, sizeof(m->weights.digest));
	crypto_generichash_final(&state, m->identity, sizeof(m->identity));
}

static int alloc_floats(float **ret, size_t count)
{
	float *p = aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64);

	if (!p)
		return -ENOMEM;
	*ret = p;
	return 0;
}

static int alloc_scratch(struct model *m)
{
	const struct model_config *c = &m->config;
	const size_t batch = MODEL_BATCH_TOKENS, threads = model_threads_count(m->threads);
	const size_t half = c->head_dim / 2, group = c->heads / c->kv_heads;
	struct {
		float **p;
		size_t count;
	} all[] = {
		{ &m->cosines, m->context_tokens * half },
		{ &m->sines, m->context_tokens * half },
		{ &m->hidden, batch * c->hidden },
		{ &m->normed, batch * c->hidden },
		{ &m->qkv, batch * (q_width(c) + 2 * kv_width(c)) },
		{ &m->mixed, batch * q_width(c) },
		{ &m->gate_up, batch * 2 * c->mlp },
		{ &m->query, threads * c->head_dim },
		{ &m->logits, (c->vocab + MODEL_PANEL - 1) / MODEL_PANEL * MODEL_PANEL },
		{ &m->scores, 0 },
	};

	m->scores_stride = (m->context_tokens + MODEL_BLOCK_TOKENS - 1) / 8 * 8 + 16;
	all[sizeof(all) / sizeof(all[0]) - 1].count = threads * group * m->scores_stride;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (alloc_floats(all[i].p, all[i].count) < 0)
			return -ENOMEM;
	return 0;
}

static uint32_t threads_wanted(const struct model_options *options)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t threads = options && options->threads ? options->threads : THREADS_DEFAULT_MAX;

	if ((!options || !options->threads) && processors > 0 && processors < (long)threads)
		threads = (uint32_t)processors;
	return threads < MODEL_THREADS_MAX ? threads : MODEL_THREADS_MAX;
}

static int open_parts(struct model *m, const struct report *r, const char *folder,
		      const struct model_options *options)
{
	size_t path_bytes = strlen(folder) + sizeof("/config.json");
	struct report config_report = *r;
	char *path = malloc(path_bytes);
	int rc;

	if (!path)
		return report_fail(r, -ENOMEM, "no memory");
	(void)snprintf(path, path_bytes, "%s/config.json", folder);
	config_report.subject = path;
	rc = model_config_read(&config_report, path, &m->config);
	free(path);
	if (rc < 0)
		return rc;
	rc = model_threads_new(threads_wanted(options), &m->threads);
	if (rc < 0)
		return report_fail(r, rc, "threads: %s", strerror(-rc));
	if (alloc_scratch(m) < 0)
		return report_fail(r, -ENOMEM, "no memory for %u positions", m->context_tokens);
	rc = model_weights_load(r, folder, &m->config, m->threads, &m->weights);
	if (rc < 0)
		return rc;
	fill_rope(m);
	fill_identity(m);
	return 0;
}

int model_open(const char *folder, const struct model_options *options, struct model **ret,
	       char *err, size_t err_bytes)
{
	const struct report r = { .subject = folder, .err = err, .err_bytes = err_bytes };
	struct model *m;
	int rc;

	if (sodium_init() < 0)
		return report_fail(&r, -EIO, "libsodium did not start");
	m = calloc(1, sizeof(*m));
	if (!m)
		return report_fail(&r, -ENOMEM, "no memory");
	m->kernels = options && options->kernels ? options->kernels : model_kernels_best();
	m->context_tokens = options && options->context_tokens ? options->context_tokens
							       : CONTEXT_DEFAULT;
	rc = open_parts(m, &r, folder, options);
	if (rc < 0)
		model_close(m);
	else
		*ret = m;
	return rc;
}

struct model *model_close(struct model *m)
{
	if (!m)
		return NULL;
	model_threads_free(m->threads);
	model_weights_unload(&m->weights);
	free(m->cosines);
	free(m->sines);
	free(m->hidden);
	free(m->normed);
	free(m->qkv);
	free(m->mixed);
	free(m->gate_up);
	free(m->scores);
	free(m->query);
	free(m->logits);
	free(m);
	return NULL;
}
