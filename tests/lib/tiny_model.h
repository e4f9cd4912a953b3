/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tiny_model.h - Hugging Face folders with small random models in a temporary place, and their
 * arithmetic once more in plain double-precision loops: what the engine is measured against.
 */
#ifndef SKVCD_TESTS_LIB_TINY_MODEL_H
#define SKVCD_TESTS_LIB_TINY_MODEL_H

#include <stdint.h>

/* 0: Qwen3, tied; 1: Llama in two shards, own output matrix; 2: Llama, 7 heads on 1, vocabulary of 100 */
#define TINY_KINDS 3u
#define TINY_WIDE 3u /* one more: Llama, 256 columns of keys, enough for two streams of `model` */

struct tiny_model;

/* Never NULL: a test that can't write to its temporary folder has failed. */
struct tiny_model *tiny_model_new(uint32_t kind);

/* Removes the folder.  Returns NULL. */
struct tiny_model *tiny_model_free(struct tiny_model *t);

const char *tiny_model_folder(const struct tiny_model *t);

/* Keys and values of all tokens, rounded to bf16: [layers][count][kv_heads * head_dim] each. */
void tiny_model_cache(const struct tiny_model *t, const int32_t *ids, uint32_t count, double *k,
		      double *v);

/* Vocabulary's worth of logits after the last of the tokens; keys and values rounded to bf16. */
void tiny_model_logits(const struct tiny_model *t, const int32_t *ids, uint32_t count, double *ret);

#endif
