/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_weights.h - the matrices of a model, checked against its shape and laid out for panel().
 */
#ifndef SKVCD_TOOLS_MODEL_WEIGHTS_H
#define SKVCD_TOOLS_MODEL_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/model/config.h"
#include "gpu/model/report.h"

struct model_threads;

/* bf16, in panels of 16 outputs: [outputs / 16][inputs][16]; missing outputs of the last are 0. */
struct model_matrix {
	uint16_t *panels; /* owned, 64-byte aligned */
	uint32_t inputs, outputs;
};

struct model_layer {
	struct model_matrix qkv; /* outputs: heads of q, of k, of v */
	struct model_matrix o;
	struct model_matrix gate_up; /* outputs: mlp of gate, mlp of up */
	struct model_matrix down;
	float *input_norm, *post_norm; /* owned; hidden each */
	float *q_norm, *k_norm;	       /* owned; head_dim each, NULL for Llama */
};

struct model_weights {
	uint32_t layers_count;
	struct model_layer *layers; /* owned */
	struct model_matrix output; /* vocab outputs */
	float *final_norm;	    /* owned */
	uint16_t *embedding;	    /* owned; [vocab][hidden] */
	uint8_t digest[32];	    /* of names, shapes and bytes of all used tensors */
};

/* Return: 0, or a negative errno with its line in @r; @ret is then empty. */
int model_weights_load(const struct report *r, const char *folder, const struct model_config *c,
		       struct model_threads *threads, struct model_weights *ret);

/* Accepts an empty or half-loaded one, and empties it. */
void model_weights_unload(struct model_weights *w);

#endif
