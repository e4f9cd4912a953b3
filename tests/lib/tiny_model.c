/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tiny_model.c - writes the folders and repeats the forward pass, position by position, with nothing
 * shared with the engine but the file format.
 */
#include "tests/lib/tiny_model.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/model/safetensors.h"
#include "tests/lib/rng.h"

#define TENSORS_MAX 64u

struct shape {
	const char *arch;
	uint32_t layers, hidden, mlp, heads, kv_heads, dim, vocab;
	int tied, norms, shards;
	double theta, eps;
	const char *rope; /* how config.json says theta */
};

static const struct shape shapes[TINY_KINDS + 1u] = {
	{ "Qwen3ForCausalLM", 3, 48, 80, 4, 2, 16, 96, 1, 1, 1, 1e4, 1e-6,
	  "\"head_dim\":16,\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":\"default\"}" },
	{ "LlamaForCausalLM", 2, 64, 96, 4, 4, 16, 80, 0, 0, 2, 5e5, 1e-5,
	  "\"rope_theta\":500000.0,\"rope_scaling\":null" },
	{ "LlamaForCausalLM", 2, 32, 64, 7, 1, 32, 100, 0, 0, 1, 1e4, 1e-5, "\"head_dim\":32" },
	{ "LlamaForCausalLM", 2, 64, 64, 8, 8, 32, 90, 0, 0, 1, 1e4, 1e-5, "\"head_dim\":32" },
};

struct tiny_model {
	const struct shape *shape;
	char folder[64];
	struct safetensors_tensor tensors[TENSORS_MAX];
	char names[TENSORS_MAX][80];
	uint32_t count;
};

static double bf16(uint16_t b)
{
	uint32_t u = (uint32_t)b << 16;
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

static uint16_t to_bf16(double x)
{
	float f = (float)x;
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Uniform in middle - spread..middle + spread; rows = 0 for a vector. */
static void add_tensor(struct tiny_model *t, struct rng *rng, const char *name, uint32_t rows,
		       uint32_t columns, double middle, double spread)
{
	struct safetensors_tensor *s = &t->tensors[t->count];
	size_t scalars = (size_t)(rows ? rows : 1) * columns;
	uint16_t *data = malloc(scalars * sizeof(data[0]));

	assert(t->count < TENSORS_MAX && data);
	for (size_t i = 0; i < scalars; i++)
		data[i] = to_bf16(middle + spread * (rng_below(rng, 20001) / 10000.0 - 1));
	(void)snprintf(t->names[t->count], sizeof(t->names[0]), "%s.weight", name);
	*s = (struct safetensors_tensor){ .name = t->names[t->count],
					  .dtype = "BF16",
					  .dims_count = rows ? 2 : 1,
					  .data = data,
					  .bytes = scalars * sizeof(data[0]) };
	s->dims[0] = rows ? rows : columns;
	s->dims[1] = rows ? columns : 0;
	t->count++;
}

static void add_layer(struct tiny_model *t, struct rng *rng, uint32_t l)
{
	const struct shape *s = t->shape;
	const struct {
		const char *name;
		uint32_t rows, columns;
		int wanted;
	} parts[] = {
		{ "input_layernorm", 0, s->hidden, 1 },
		{ "self_attn.q_proj", s->heads * s->dim, s->hidden, 1 },
		{ "self_attn.k_proj", s->kv_heads * s->dim, s->hidden, 1 },
		{ "self_attn.v_proj", s->kv_heads * s->dim, s->hidden, 1 },
		{ "self_attn.o_proj", s->hidden, s->heads * s->dim, 1 },
		{ "self_attn.q_norm", 0, s->dim, s->norms },
		{ "self_attn.k_norm", 0, s->dim, s->norms },
		{ "post_attention_layernorm", 0, s->hidden, 1 },
		{ "mlp.gate_proj", s->mlp, s->hidden, 1 },
		{ "mlp.up_proj", s->mlp, s->hidden, 1 },
		{ "mlp.down_proj", s->hidden, s->mlp, 1 },
	};
	char name[64];

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (!parts[i].wanted)
			continue;
		(void)snprintf(name, sizeof(name), "model.layers.%u.%s", l, parts[i].name);
		add_tensor(t, rng, name, parts[i].rows, parts[i].columns, parts[i].rows ? 0 : 1,
			   parts[i].rows ? 2.0 / sqrt(parts[i].columns) : 0.4);
	}
}

static void write_text(const struct tiny_model *t, const char *name, const char *text)
{
	char path[128];
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", t->folder, name);
	f = fopen(path, "w");
	assert(f);
	(void)!fwrite(text, 1, strlen(text), f);
	assert(fclose(f) == 0);
}

static void write_config(const struct tiny_model *t)
{
	const struct shape *s = t->shape;
	char text[1024];

	(void)snprintf(text, sizeof(text),
		       "{\"architectures\":[\"%s\"],\"num_hidden_layers\":%u,\"hidden_size\":%u,"
		       "\"intermediate_size\":%u,\"num_attention_heads\":%u,"
		       "\"num_key_value_heads\":%u,\"vocab_size\":%u,\"rms_norm_eps\":%g,"
		       "\"max_position_embeddings\":4096,\"tie_word_embeddings\":%s,%s}",
		       s->arch, s->layers, s->hidden, s->mlp, s->heads, s->kv_heads, s->vocab,
		       s->eps, s->tied ? "true" : "false", s->rope);
	write_text(t, "config.json", text);
}

/* One file, or two and the index that says which tensor is where. */
static void write_weights(const struct tiny_model *t)
{
	const uint32_t half = t->shape->shards == 2 ? t->count / 2 : t->count;
	char path[128], *index = malloc(TENSORS_MAX * 128);
	size_t at;

	assert(index);
	(void)snprintf(path, sizeof(path), "%s/%s", t->folder,
		       half < t->count ? "a.safetensors" : "model.safetensors");
	if (safetensors_write(path, t->tensors, half, NULL, 0, NULL, 0) < 0)
		abort();
	if (half < t->count) {
		(void)snprintf(path, sizeof(path), "%s/b.safetensors", t->folder);
		if (safetensors_write(path, t->tensors + half, t->count - half, NULL, 0, NULL, 0) <
		    0)
			abort();
		at = (size_t)sprintf(index, "{\"weight_map\":{");
		for (uint32_t i = 0; i < t->count; i++)
			at += (size_t)sprintf(index + at, "%s\"%s\":\"%s.safetensors\"",
					      i ? "," : "", t->names[i], i < half ? "a" : "b");
		(void)sprintf(index + at, "}}");
		write_text(t, "model.safetensors.index.json", index);
	}
	free(index);
}

struct tiny_model *tiny_model_new(uint32_t kind)
{
	struct tiny_model *t = calloc(1, sizeof(*t));
	struct rng rng;

	assert(t && kind <= TINY_WIDE);
	t->shape = &shapes[kind];
	(void)snprintf(t->folder, sizeof(t->folder), "/tmp/tiny_model.XXXXXX");
	if (!mkdtemp(t->folder))
		abort();
	rng_init(&rng, 1000 + kind);
	add_tensor(t, &rng, "model.embed_tokens", t->shape->vocab, t->shape->hidden, 0, 1);
	for (uint32_t l = 0; l < t->shape->layers; l++)
		add_layer(t, &rng, l);
	add_tensor(t, &rng, "model.norm", 0, t->shape->hidden, 1, 0.4);
	if (!t->shape->tied)
		add_tensor(t, &rng, "lm_head", t->shape->vocab, t->shape->hidden, 0, 0.3);
	write_config(t);
	write_weights(t);
	return t;
}

struct tiny_model *tiny_model_free(struct tiny_model *t)
{
	static const char *const files[] = { "a.safetensors", "b.safetensors", "config.json",
					     "model.safetensors", "model.safetensors.index.json" };
	char path[128];

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		(void)snprintf(path, sizeof(path), "%s/%s", t->folder, files[i]);
		(void)unlink(path);
	}
	(void)rmdir(t->folder);
	for (uint32_t i = 0; i < t->count; i++)
		free((void *)(uintptr_t)t->tensors[i].data);
	free(t);
	return NULL;
}

const char *tiny_model_folder(const struct tiny_model *t)
{
	return t->folder;
}

/* ---- the arithmetic ---- */

static const uint16_t *weight(const struct tiny_model *t, const char *format, uint32_t layer)
{
	char name[80];

	(void)snprintf(name, sizeof(name), format, layer);
	for (uint32_t i = 0; i < t->count; i++)
		if (strncmp(t->names[i], name, strlen(name)) == 0 &&
		    strcmp(t->names[i] + strlen(name), ".weight") == 0)
			return t->tensors[i].data;
	abort();
}

static void times(const uint16_t *w, uint32_t rows, uint32_t columns, const double *x, double *y)
{
	for (uint32_t r = 0; r < rows; r++) {
		y[r] = 0;
		for (uint32_t i = 0; i < columns; i++)
			y[r] += bf16(w[(size_t)r * columns + i]) * x[i];
	}
}

static void norm(const struct tiny_model *t, const uint16_t *w, uint32_t count, const double *x,
		 double *y)
{
	double sum = 0;

	for (uint32_t i = 0; i < count; i++)
		sum += x[i] * x[i];
	for (uint32_t i = 0; i < count; i++)
		y[i] = x[i] / sqrt(sum / count + t->shape->eps) * bf16(w[i]);
}

static void turn(const struct tiny_model *t, uint32_t position, double *head)
{
	const uint32_t half = t->shape->dim / 2;

	for (uint32_t i = 0; i < half; i++) {
		double angle = position * pow(t->shape->theta, -2.0 * i / t->shape->dim);
		double a = head[i], b = head[i + half];

		head[i] = a * cos(angle) - b * sin(angle);
		head[i + half] = b * cos(angle) + a * sin(angle);
	}
}

/* heads of n, normalised and turned in place. */
static void finish_heads(const struct tiny_model *t, const char *norm_name, uint32_t layer,
			 uint32_t position, double *x, uint32_t n)
{
	for (uint32_t h = 0; h < n; h++) {
		if (t->shape->norms)
			norm(t, weight(t, norm_name, layer), t->shape->dim, x + h * t->shape->dim,
			     x + h * t->shape->dim);
		turn(t, position, x + h * t->shape->dim);
	}
}

static void attention(const struct shape *s, const double *q, const double *k, const double *v,
		      uint32_t keys, double *out)
{
	const uint32_t width = s->kv_heads * s->dim;
	double *p = calloc(keys, sizeof(double));

	assert(p);
	for (uint32_t h = 0; h < s->heads; h++) {
		const uint32_t kv = h * s->kv_heads / s->heads * s->dim;
		double sum = 0;

		for (uint32_t j = 0; j < keys; j++) {
			p[j] = 0;
			for (uint32_t d = 0; d < s->dim; d++)
				p[j] += q[h * s->dim + d] * k[j * width + kv + d];
			p[j] = exp(p[j] / sqrt(s->dim));
			sum += p[j];
		}
		for (uint32_t d = 0; d < s->dim; d++) {
			out[h * s->dim + d] = 0;
			for (uint32_t j = 0; j < keys; j++)
				out[h * s->dim + d] += p[j] / sum * v[j * width + kv + d];
		}
	}
	free(p);
}

/* One token through one layer; k and v are this layer's, up to and with this position. */
static void layer_step(const struct tiny_model *t, uint32_t l, uint32_t position, double *h,
		       double *k, double *v)
{
	const struct shape *s = t->shape;
	const uint32_t width = s->kv_heads * s->dim;
	double x[64] = { 0 }, q[512] = { 0 }, mixed[512] = { 0 };
	double y[64] = { 0 }, gate[96] = { 0 }, up[96] = { 0 };
	double *kp = k + position * width, *vp = v + position * width;

	norm(t, weight(t, "model.layers.%u.input_layernorm", l), s->hidden, h, x);
	times(weight(t, "model.layers.%u.self_attn.q_proj", l), s->heads * s->dim, s->hidden, x, q);
	times(weight(t, "model.layers.%u.self_attn.k_proj", l), width, s->hidden, x, kp);
	times(weight(t, "model.layers.%u.self_attn.v_proj", l), width, s->hidden, x, vp);
	finish_heads(t, "model.layers.%u.self_attn.q_norm", l, position, q, s->heads);
	finish_heads(t, "model.layers.%u.self_attn.k_norm", l, position, kp, s->kv_heads);
	for (uint32_t i = 0; i < width; i++) {
		kp[i] = bf16(to_bf16(kp[i]));
		vp[i] = bf16(to_bf16(vp[i]));
	}
	attention(s, q, k, v, position + 1, mixed);
	times(weight(t, "model.layers.%u.self_attn.o_proj", l), s->hidden, s->heads * s->dim, mixed,
	      y);
	for (uint32_t i = 0; i < s->hidden; i++)
		h[i] += y[i];
	norm(t, weight(t, "model.layers.%u.post_attention_layernorm", l), s->hidden, h, x);
	times(weight(t, "model.layers.%u.mlp.gate_proj", l), s->mlp, s->hidden, x, gate);
	times(weight(t, "model.layers.%u.mlp.up_proj", l), s->mlp, s->hidden, x, up);
	for (uint32_t i = 0; i < s->mlp; i++)
		gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
	times(weight(t, "model.layers.%u.mlp.down_proj", l), s->hidden, s->mlp, gate, y);
	for (uint32_t i = 0; i < s->hidden; i++)
		h[i] += y[i];
}

/* As tiny_model_cache(); h becomes the hidden state of the last token. */
static void forward(const struct tiny_model *t, const int32_t *ids, uint32_t count, double *k,
		    double *v, double *h)
{
	const struct shape *s = t->shape;
	const size_t layer = (size_t)count * s->kv_heads * s->dim;
	const uint16_t *embedding = weight(t, "model.embed_tokens", 0);

	for (uint32_t p = 0; p < count; p++) {
		for (uint32_t i = 0; i < s->hidden; i++)
			h[i] = bf16(embedding[(size_t)ids[p] * s->hidden + i]);
		for (uint32_t l = 0; l < s->layers; l++)
			layer_step(t, l, p, h, k + layer * l, v + layer * l);
	}
}

void tiny_model_cache(const struct tiny_model *t, const int32_t *ids, uint32_t count, double *k,
		      double *v)
{
	double h[64] = { 0 };

	forward(t, ids, count, k, v, h);
}

void tiny_model_logits(const struct tiny_model *t, const int32_t *ids, uint32_t count, double *ret)
{
	const struct shape *s = t->shape;
	const size_t scalars = (size_t)s->layers * count * s->kv_heads * s->dim;
	double *k = calloc(scalars, sizeof(double)), *v = calloc(scalars, sizeof(double));
	const uint16_t *embedding = weight(t, "model.embed_tokens", 0);
	double h[64] = { 0 }, x[64] = { 0 };

	assert(k && v && count);
	forward(t, ids, count, k, v, h);
	norm(t, weight(t, "model.norm", 0), s->hidden, h, x);
	times(s->tied ? embedding : weight(t, "lm_head", 0), s->vocab, s->hidden, x, ret);
	free(k);
	free(v);
}
