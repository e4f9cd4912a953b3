/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_weights.c - finds every tensor that a model of this shape needs, checks its dtype and
 * shape, and copies it out of the file.  Nothing is mapped once loading is over.
 */
#include "tools/model_weights.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "gpu/model/folder.h"
#include "tools/model_kernels.h"
#include "tools/model_threads.h"

/* One load: where tensors come from and what goes over them. */
struct loader {
	const struct report *r;
	struct model_folder *files; /* owned */
	struct model_threads *threads;
	crypto_generichash_state digest;
};

/* The tensor [rows][columns], or [columns] for rows = 0, in bf16; the digest takes it in. */
static int find_tensor(struct loader *l, const char *name, uint32_t rows, uint32_t columns,
		       const uint8_t **ret)
{
	const struct safetensors_tensor *t = NULL;
	int rc = model_folder_tensor(l->files, name, rows, columns, &t);

	if (rc < 0)
		return rc;
	if (strcmp(t->dtype, "BF16") != 0)
		return report_fail(l->r, -EINVAL, "tensor %s: dtype %s, only BF16 is implemented",
				   name, t->dtype);
	crypto_generichash_update(&l->digest, (const uint8_t *)name, strlen(name) + 1);
	crypto_generichash_update(&l->digest, t->data, t->bytes);
	*ret = t->data;
	return 0;
}

struct pack {
	uint16_t *panels;    /* of the first output of this tensor */
	const uint8_t *rows; /* unaligned bf16 [outputs][inputs] */
	uint32_t inputs, outputs;
};

static void pack_panel(void *context, uint32_t item, uint32_t thread)
{
	const struct pack *p = context;
	uint16_t *panel = p->panels + (size_t)item * p->inputs * MODEL_PANEL;
	uint32_t first = item * MODEL_PANEL;
	uint32_t lanes = p->outputs - first < MODEL_PANEL ? p->outputs - first : MODEL_PANEL;

	(void)thread;
	for (uint32_t lane = 0; lane < lanes; lane++) {
		const uint8_t *row = p->rows + (size_t)(first + lane) * p->inputs * 2;

		for (uint32_t i = 0; i < p->inputs; i++)
			memcpy(&panel[i * MODEL_PANEL + lane], row + 2 * (size_t)i, 2);
	}
}

static uint32_t panels_of(uint32_t outputs)
{
	return (outputs + MODEL_PANEL - 1) / MODEL_PANEL;
}

static int matrix_init(const struct report *r, struct model_matrix *m, uint32_t outputs,
		       uint32_t inputs)
{
	size_t bytes = (size_t)panels_of(outputs) * inputs * MODEL_PANEL * sizeof(uint16_t);

	bytes = (bytes + 63) / 64 * 64;
	m->panels = aligned_alloc(64, bytes);
	if (!m->panels)
		return report_fail(r, -ENOMEM, "no memory for weights");
	memset(m->panels, 0, bytes);
	m->inputs = inputs;
	m->outputs = outputs;
	return 0;
}

/* Fills the outputs first..first + outputs - 1 of a matrix; first is a multiple of a panel. */
static int matrix_fill(struct loader *l, const char *name, struct model_matrix *m, uint32_t first,
		       uint32_t outputs)
{
	struct pack p = {
		.panels = m->panels + (size_t)first * m->inputs,
		.inputs = m->inputs,
		.outputs = outputs,
	};
	int rc;

	assert(first % MODEL_PANEL == 0 && first + outputs <= m->outputs);
	rc = find_tensor(l, name, outputs, m->inputs, &p.rows);
	if (rc < 0)
		return rc;
	model_threads_run(l->threads, panels_of(outputs), pack_panel, &p);
	return 0;
}

static int load_vector(struct loader *l, const char *name, uint32_t count, float **ret)
{
	const uint8_t *from = NULL;
	float *to;
	int rc;

	rc = find_tensor(l, name, 0, count, &from);
	if (rc < 0)
		return rc;
	assert(from);
	to = malloc(count * sizeof(to[0]));
	if (!to)
		return report_fail(l->r, -ENOMEM, "no memory for weights");
	for (uint32_t i = 0; i < count; i++) {
		uint16_t b;

		memcpy(&b, from + 2 * (size_t)i, sizeof(b));
		to[i] = model_from_bf16(b);
	}
	*ret = to;
	return 0;
}

static int load_matrices(struct loader *l, const struct model_config *c, uint32_t layer,
			 struct model_layer *ret)
{
	const uint32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
	const struct {
		const char *name;
		struct model_matrix *matrix;
		uint32_t inputs, outputs, first, all;
	} parts[] = {
		{ "self_attn.q_proj", &ret->qkv, c->hidden, q, 0, q + 2 * kv },
		{ "self_attn.k_proj", &ret->qkv, c->hidden, kv, q, q + 2 * kv },
		{ "self_attn.v_proj", &ret->qkv, c->hidden, kv, q + kv, q + 2 * kv },
		{ "self_attn.o_proj", &ret->o, q, c->hidden, 0, c->hidden },
		{ "mlp.gate_proj", &ret->gate_up, c->hidden, c->mlp, 0, 2 * c->mlp },
		{ "mlp.up_proj", &ret->gate_up, c->hidden, c->mlp, c->mlp, 2 * c->mlp },
		{ "mlp.down_proj", &ret->down, c->mlp, c->hidden, 0, c->hidden },
	};
	char name[96];
	int rc = 0;

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]) && rc == 0; i++) {
		(void)snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer,
			       parts[i].name);
		if (!parts[i].matrix->panels)
			rc = matrix_init(l->r, parts[i].matrix, parts[i].all, parts[i].inputs);
		if (rc == 0)
			rc = matrix_fill(l, name, parts[i].matrix, parts[i].first,
					 parts[i].outputs);
	}
	return rc;
}

static int load_norms(struct loader *l, const struct model_config *c, uint32_t layer,
		      struct model_layer *ret)
{
	const struct {
		const char *name;
		float **vector;
		uint32_t count;
	} parts[] = {
		{ "input_layernorm", &ret->input_norm, c->hidden },
		{ "post_attention_layernorm", &ret->post_norm, c->hidden },
		{ "self_attn.q_norm", &ret->q_norm, c->head_dim },
		{ "self_attn.k_norm", &ret->k_norm, c->head_dim },
	};
	const size_t count = c->arch == MODEL_QWEN3 ? 4 : 2;
	char name[96];
	int rc = 0;

	for (size_t i = 0; i < count && rc == 0; i++) {
		(void)snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer,
			       parts[i].name);
		rc = load_vector(l, name, parts[i].count, parts[i].vector);
	}
	return rc;
}

static int load_all(struct loader *l, const struct model_config *c, struct model_weights *w)
{
	const size_t embedding_bytes = (size_t)c->vocab * c->hidden * sizeof(uint16_t);
	const uint8_t *rows = NULL;
	int rc;

	w->layers = calloc(c->layers, sizeof(w->layers[0]));
	w->embedding = malloc(embedding_bytes);
	if (!w->layers || !w->embedding)
		return report_fail(l->r, -ENOMEM, "no memory for weights");
	w->layers_count = c->layers;
	rc = find_tensor(l, "model.embed_tokens.weight", c->vocab, c->hidden, &rows);
	if (rc == 0) {
		assert(rows);
		memcpy(w->embedding, rows, embedding_bytes);
		rc = matrix_init(l->r, &w->output, c->vocab, c->hidden);
	}
	if (rc == 0)
		rc = matrix_fill(l, c->tied ? "model.embed_tokens.weight" : "lm_head.weight",
				 &w->output, 0, c->vocab);
	if (rc == 0)
		rc = load_vector(l, "model.norm.weight", c->hidden, &w->final_norm);
	for (uint32_t layer = 0; layer < c->layers && rc == 0; layer++) {
		rc = load_matrices(l, c, layer, &w->layers[layer]);
		if (rc == 0)
			rc = load_norms(l, c, layer, &w->layers[layer]);
	}
	return rc;
}

int model_weights_load(const struct report *r, const char *folder, const struct model_config *c,
		       struct model_threads *threads, struct model_weights *ret)
{
	struct loader l = { .r = r, .threads = threads };
	struct model_weights w = { .layers_count = 0 };
	int rc;

	crypto_generichash_init(&l.digest, NULL, 0, sizeof(w.digest));
	rc = model_folder_open(r, folder, &l.files);
	if (rc == 0)
		rc = load_all(&l, c, &w);
	crypto_generichash_final(&l.digest, w.digest, sizeof(w.digest));
	model_folder_close(l.files);
	if (rc < 0)
		model_weights_unload(&w);
	else
		*ret = w;
	return rc;
}

void model_weights_unload(struct model_weights *w)
{
	for (uint32_t i = 0; w->layers && i < w->layers_count; i++) {
		struct model_layer *layer = &w->layers[i];

		free(layer->qkv.panels);
		free(layer->o.panels);
		free(layer->gate_up.panels);
		free(layer->down.panels);
		free(layer->input_norm);
		free(layer->post_norm);
		free(layer->q_norm);
		free(layer->k_norm);
	}
	free(w->layers);
	free(w->output.panels);
	free(w->final_norm);
	free(w->embedding);
	*w = (struct model_weights){ .layers_count = 0 };
}
