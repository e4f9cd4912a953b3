/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_config.h - config.json of a Hugging Face folder: the shape of a model, checked.
 */
#ifndef SKVCD_GPU_MODEL_CONFIG_H
#define SKVCD_GPU_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

struct report;

#define MODEL_EOS_MAX 8u
#define MODEL_VOCAB_MAX (1u << 22)

enum model_arch { MODEL_QWEN3, MODEL_LLAMA, MODEL_ARCH_COUNT };

struct model_config {
	enum model_arch arch; /* Qwen3 normalises q and k per head */
	uint32_t layers;      /* 1..512 */
	uint32_t hidden;      /* this and mlp: multiples of 16 */
	uint32_t mlp;
	uint32_t heads;
	uint32_t kv_heads; /* divides heads */
	uint32_t head_dim; /* multiple of 16 */
	uint32_t vocab;
	uint32_t context_max; /* positions that the model was made for */
	bool tied;	      /* the output matrix is the embedding */
	float norm_eps;
	double rope_theta;
	uint32_t eos_count;
	uint32_t eos[MODEL_EOS_MAX]; /* tokens that end a text */
};

/*
 * Reads and checks @path.  Return: 0; -EINVAL for anything missing, out of range or not
 * implemented, with a line in @r that names it; or file_read()'s errors.
 */
int model_config_read(const struct report *r, const char *path, struct model_config *ret);

/* The same for the text of such a file, NUL at text[bytes]. */
int model_config_parse(const struct report *r, const char *text, uint64_t bytes,
		       struct model_config *ret);

const char *model_arch_name(enum model_arch arch);

#endif
