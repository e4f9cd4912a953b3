/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_weights.c - a folder's weights as integers.  Every tensor is checked: there, of its shape, of a type
 * that is implemented, finite.  Nothing is mapped once loading is over.
 */
#include "gpu/codec/model_internal.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "gpu/codec/codec.h"
#include "gpu/model/folder.h"

#define ARITHMETIC_VERSION "skvcd model speculator 1" /* part of the digest; change with results */

struct loader {
	const struct report *r;
	const struct model_config *c;
	struct model_folder *files; /* owned */
	double *row;		    /* owned; of the widest matrix */
	crypto_generichash_state digest;
};

static double bf16_at(const uint8_t *p)
{
	uint32_t u = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

static double fp16_at(const uint8_t *p)
{
	uint32_t h = p[0] | (uint32_t)p[1] << 8, e = h >> 10 & 31u, m = h & 1023u;
	double x = e == 31 ? (m ? NAN : INFINITY)
		   : e	   ? ldexp(m + 1024.0, (int)e - 25)
			   : ldexp(m, -24);

	return h & 0x8000u ? -x : x;
}

static double fp32_at(const uint8_t *p)
{
	float f;

	memcpy(&f, p, sizeof(f));
	return f;
}

static int find(struct loader *l, const char *name, uint32_t rows, uint32_t columns,
		const struct safetensors_tensor **ret)
{
	const struct safetensors_tensor *t = NULL;
	int rc = model_folder_tensor(l->files, name, rows, columns, &t);

	if (rc < 0)
		return rc;
	assert(t);
	if (strcmp(t->dtype, "BF16") != 0 && strcmp(t->dtype, "F16") != 0 &&
	    strcmp(t->dtype, "F32") != 0)
		return report_fail(l->r, -EINVAL, "tensor %s: dtype %s, not BF16, F16 or F32", name,
				   t->dtype);
	crypto_generichash_update(&l->digest, (const uint8_t *)name, strlen(name) + 1);
	crypto_generichash_update(&l->digest, t->data, t->bytes);
	*ret = t;
	return 0;
}

static void read_row(const struct safetensors_tensor *t, uint64_t row, uint32_t columns,
		     double *ret)
{
	const uint32_t bytes = safetensors_dtype_bytes(t->dtype);
	double (*at)(const uint8_t *) = bytes == 4	     ? fp32_at
					: t->dtype[0] == 'B' ? bf16_at
							     : fp16_at;
	const uint8_t *p = (const uint8_t *)t->data + row * columns * bytes;

	for (uint32_t i = 0; i < columns; i++)
		ret[i] = at(p + (size_t)i * bytes);
}

/* A row times blocks of a Hadamard matrix over their size: its product with a mixed row is that with the row. */
static void mix_row(double *x, uint32_t count)
{
	const uint32_t block = model_mix_block(count);

	for (uint32_t half = 1; half < block; half *= 2u)
		for (uint32_t first = 0; first < count; first += 2u * half)
			for (uint32_t i = first; i < first + half; i++) {
				double a = x[i], b = x[i + half];

				x[i] = a + b;
				x[i + half] = a - b;
			}
	for (uint32_t i = 0; i < count; i++)
		x[i] /= block;
}

static int fill(struct loader *l, const char *name, struct mspec_matrix *m, uint32_t first,
		uint32_t outs)
{
	const struct safetensors_tensor *t = NULL;
	int rc = find(l, name, outs, m->depth, &t);

	if (rc < 0)
		return rc;
	assert(t);
	for (uint32_t o = 0; rc == 0 && o < outs; o++) {
		read_row(t, o, m->depth, l->row);
		if (m->mixed)
			mix_row(l->row, m->depth);
		if (mspec_matrix_row(m, first + o, l->row) < 0)
			rc = report_fail(l->r, -EINVAL, "tensor %s: row %u is not finite", name, o);
	}
	return rc;
}

static int fill_norm(struct loader *l, const char *name, uint32_t count, struct mspec_norm *n)
{
	const struct safetensors_tensor *t = NULL;
	double max = 0;
	int exp, rc = find(l, name, 0, count, &t);

	if (rc < 0)
		return rc;
	assert(t);
	read_row(t, 0, count, l->row);
	for (uint32_t i = 0; i < count; i++) {
		if (!(fabs(l->row[i]) < 1e6))
			return report_fail(l->r, -EINVAL, "tensor %s: %u is not a norm's weight",
					   name, i);
		max = fabs(l->row[i]) > max ? fabs(l->row[i]) : max;
	}
	(void)frexp(max, &exp);
	n->frac = exp < -15 ? 30 : 15 - exp; /* max * 2^frac <= 2^15 */
	assert(count > 0);
	n->weights = malloc(count * sizeof(n->weights[0]));
	if (!n->weights)
		return report_fail(l->r, -ENOMEM, "no memory for weights");
	for (uint32_t i = 0; i < count; i++) {
		double w = rint(ldexp(l->row[i], n->frac));

		n->weights[i] = (int16_t)(w > 32767 ? 32767 : w < -32767 ? -32767 : w);
	}
	return 0;
}

static int load_matrices(struct loader *l, uint32_t layer, struct mspec_weights *w, bool low)
{
	const struct model_config *c = l->c;
	const uint32_t q = mspec_q_width(c), kv = mspec_kv_width(c);
	const struct {
		const char *name;
		struct mspec_matrix *m;
		uint32_t depth, outs, first, all;
		bool mixed;
	} parts[] = {
		{ "self_attn.q_proj", &w->q, c->hidden, q, 0, q, true },
		{ "self_attn.k_proj", &w->kv, c->hidden, kv, 0, 2 * kv, false },
		{ "self_attn.v_proj", &w->kv, c->hidden, kv, kv, 2 * kv, false },
		{ "self_attn.o_proj", &w->o, q, c->hidden, 0, c->hidden, true },
		{ "mlp.gate_proj", &w->gate_up, c->hidden, c->mlp, 0, 2 * c->mlp, true },
		{ "mlp.up_proj", &w->gate_up, c->hidden, c->mlp, c->mlp, 2 * c->mlp, true },
		{ "mlp.down_proj", &w->down, c->mlp, c->hidden, 0, c->hidden, true },
	};
	char name[96];
	int rc = 0;

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]) && rc == 0; i++) {
		(void)snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer,
			       parts[i].name);
		if (parts[i].first == 0 &&
		    mspec_matrix_init(parts[i].m, parts[i].all, parts[i].depth,
				      low || parts[i].m == &w->kv) < 0)
			return report_fail(l->r, -ENOMEM, "no memory for weights");
		parts[i].m->mixed = parts[i].mixed;
		rc = fill(l, name, parts[i].m, parts[i].first, parts[i].outs);
	}
	return rc;
}

static int load_norms(struct loader *l, uint32_t layer, struct mspec_weights *w)
{
	const struct {
		const char *name;
		struct mspec_norm *n;
		uint32_t count;
	} parts[] = {
		{ "input_layernorm", &w->input, l->c->hidden },
		{ "post_attention_layernorm", &w->post, l->c->hidden },
		{ "self_attn.q_norm", &w->q_norm, l->c->head_dim },
		{ "self_attn.k_norm", &w->k_norm, l->c->head_dim },
	};
	const size_t count = l->c->arch == MODEL_QWEN3 ? 4 : 2;
	char name[96];
	int rc = 0;

	for (size_t i = 0; i < count && rc == 0; i++) {
		(void)snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer,
			       parts[i].name);
		rc = fill_norm(l, name, parts[i].count, parts[i].n);
	}
	return rc;
}

static int load_all(struct loader *l, struct mspec_model *m)
{
	const struct model_config *c = l->c;
	const uint32_t widest = mspec_q_width(c) > c->mlp ? mspec_q_width(c) : c->mlp;
	int rc;

	l->row = malloc((widest > c->hidden ? widest : c->hidden) * sizeof(l->row[0]));
	m->layers = calloc(c->layers, sizeof(m->layers[0]));
	m->frequencies = calloc(c->head_dim / 2, sizeof(m->frequencies[0]));
	if (!l->row || !m->layers || !m->frequencies ||
	    mspec_matrix_init(&m->embedding, c->vocab, c->hidden, true) < 0)
		return report_fail(l->r, -ENOMEM, "no memory for weights");
	rc = fill(l, "model.embed_tokens.weight", &m->embedding, 0, c->vocab);
	for (uint32_t layer = 0; layer < c->layers && rc == 0; layer++) {
		rc = load_matrices(l, layer, &m->layers[layer], m->low_planes);
		if (rc == 0)
			rc = load_norms(l, layer, &m->layers[layer]);
	}
	return rc;
}

static void digest_shape(crypto_generichash_state *state, const struct model_config *c)
{
	const uint32_t shape[] = { c->arch,  c->layers,	  c->hidden,   c->mlp,
				   c->heads, c->kv_heads, c->head_dim, c->vocab };

	crypto_generichash_init(state, NULL, 0, MODEL_DIGEST_BYTES);
	crypto_generichash_update(state, (const uint8_t *)ARITHMETIC_VERSION,
				  sizeof(ARITHMETIC_VERSION));
	crypto_generichash_update(state, (const uint8_t *)shape, sizeof(shape));
	crypto_generichash_update(state, (const uint8_t *)&c->norm_eps, sizeof(c->norm_eps));
	crypto_generichash_update(state, (const uint8_t *)&c->rope_theta, sizeof(c->rope_theta));
}

/* What the fixed widths of the arithmetic need. */
static int check_shape(const struct report *r, const struct model_config *c)
{
	const uint32_t q = mspec_q_width(c), kv = mspec_kv_width(c);

	if (c->head_dim > 256)
		return report_fail(r, -EINVAL, "\"head_dim\" %u: 256 is the most", c->head_dim);
	if (c->mlp > 65536 || q > 65536 || kv > CODEC_ROW_SCALARS_MAX)
		return report_fail(r, -EINVAL, "a layer wider than 65536");
	if (2u * c->layers > CODEC_SEGMENTS_MAX)
		return report_fail(r, -EINVAL, "more than %u layers", CODEC_SEGMENTS_MAX / 2u);
	return 0;
}

int mspec_model_load(const char *folder, bool low_planes, struct mspec_model **ret, char *err,
		     size_t err_bytes)
{
	const struct report r = { .subject = folder, .err = err, .err_bytes = err_bytes };
	char path[MODEL_PATH_BYTES_MAX];
	const struct report at_config = { .subject = path, .err = err, .err_bytes = err_bytes };
	struct mspec_model *m = calloc(1, sizeof(*m));
	struct loader l = { .r = &r };
	int rc;

	if (!m)
		return report_fail(&r, -ENOMEM, "no memory");
	m->low_planes = low_planes;
	l.c = &m->config;
	rc = model_folder_path(&r, folder, "config.json", path);
	if (rc == 0)
		rc = model_config_read(&at_config, path, &m->config);
	if (rc == 0)
		rc = check_shape(&at_config, &m->config);
	if (rc == 0)
		rc = model_folder_open(&r, folder, &l.files);
	if (rc == 0) {
		digest_shape(&l.digest, &m->config);
		rc = load_all(&l, m);
	}
	model_folder_close(l.files);
	free(l.row);
	if (rc < 0) {
		mspec_model_free(m);
		return rc;
	}
	crypto_generichash_final(&l.digest, m->digest, sizeof(m->digest));
	m->eps_head = (uint64_t)ldexp(m->config.norm_eps, 2 * MODEL_FRAC);
	model_tables_fill(&m->tables);
	model_rope_frequencies(m->config.rope_theta, m->config.head_dim / 2, m->frequencies);
	*ret = m;
	return 0;
}

struct mspec_model *mspec_model_free(struct mspec_model *m)
{
	if (!m)
		return NULL;
	for (uint32_t i = 0; m->layers && i < m->config.layers; i++) {
		struct mspec_weights *w = &m->layers[i];

		mspec_matrix_deinit(&w->q);
		mspec_matrix_deinit(&w->kv);
		mspec_matrix_deinit(&w->o);
		mspec_matrix_deinit(&w->gate_up);
		mspec_matrix_deinit(&w->down);
		free(w->input.weights);
		free(w->post.weights);
		free(w->q_norm.weights);
		free(w->k_norm.weights);
	}
	free(m->layers);
	free(m->frequencies);
	mspec_matrix_deinit(&m->embedding);
	free(m);
	return NULL;
}

const struct model_config *mspec_model_config(const struct mspec_model *m)
{
	return &m->config;
}

const uint8_t *mspec_model_digest(const struct mspec_model *m)
{
	return m->digest;
}

struct mspec_precision mspec_precision_default(void)
{
	return (struct mspec_precision){ .wide = { [MSPEC_KV] = MODEL_WIDE_ROW | MODEL_WIDE_WEIGHT,
						   [MSPEC_MAPS] = MODEL_WIDE_ROW } };
}

static const uint32_t planes[] = { 1, 2, 2, 3 }; /* products of int8, by MODEL_WIDE_* */

/* Of a pass of the model itself. */
static uint64_t pass_products(const struct model_config *c, struct mspec_precision p)
{
	const uint64_t hidden = c->hidden, kv = mspec_kv_width(c), q = mspec_q_width(c);

	return c->layers *
	       (planes[p.wide[MSPEC_KV]] * 2 * kv * hidden + planes[p.wide[MSPEC_Q]] * q * hidden +
		planes[p.wide[MSPEC_O]] * q * hidden +
		planes[p.wide[MSPEC_GATE]] * 2 * c->mlp * hidden +
		planes[p.wide[MSPEC_DOWN]] * c->mlp * hidden);
}

uint64_t mspec_model_products(const struct mspec_model *m, struct mspec_precision p)
{
	const struct model_config *c = &m->config;
	const uint64_t hidden = c->hidden, kv = mspec_kv_width(c);

	return pass_products(c, p) +
	       c->layers * planes[p.wide[MSPEC_MAPS]] * (kv * kv + 2 * kv * hidden);
}

uint64_t mspec_params_products(const struct mspec_params *p)
{
	const struct mspec_draft *d = p->draft;
	uint64_t kv, maps = 0;

	if (!d)
		return mspec_model_products(p->model, p->precision);
	kv = mspec_shape_kv(d->shape);
	for (uint32_t l = 0; l < d->shape.layers; l++)
		maps += MSPEC_TAPS * 2 * kv * p->model->config.hidden +
			mspec_draft_past(d, l) * 2 * kv * kv + kv * kv;
	return pass_products(&p->model->config, p->precision) +
	       planes[p->precision.wide[MSPEC_MAPS]] * maps;
}
