/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.h - the `model` speculator: guesses a block's keys and values by running a model in int8, and hands the
 * guesses to the residual coder.  In one of two modes:
 *
 * copy   of the model that made them, in a closed loop.  Per layer: guess K from the hidden state, code K; guess V
 *        from the hidden state and K's error, code V; add to the hidden state what both errors tell of it; attend
 *        over the exact K and V; MLP; next layer.
 * draft  a smaller model of the family, over the same token ids, with keys and values of its own.  Its embedding and
 *        its last hidden state, and the exact K and V of the layers before, tell of a layer by fitted linear maps.
 *
 * model    immutable once loaded, shared by any number of threads
 * params   what was fitted on a sample of the cache: maps, scales, tables; immutable, shared, serial form
 * context  one sequence's keys and values so far, exact ones (a draft: its own); one user at a time
 * coder    scratch of one thread of work (and of the threads of its runner)
 *
 * Guesses depend on token ids, on the context's values and on the row alone: not on how a sequence was
 * cut into blocks, on the device or on the number of threads.  Starts no thread, does no I/O but to load a
 * folder, never logs.
 */
#ifndef SKVCD_GPU_CODEC_MODEL_H
#define SKVCD_GPU_CODEC_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/residual_code.h"
#include "gpu/model/config.h"

#define MODEL_ERR_BYTES 512u
#define MODEL_DIGEST_BYTES 32u
#define MODEL_BLOCK_MAX 1024u	       /* tokens of one call */
#define MODEL_POSITIONS_MAX (1u << 20) /* of a sequence */
#define MODEL_THREADS_LIMIT 64u

/* Which products run with rows or weights in two planes: MODEL_WIDE_* of model_core.h for each. */
enum mspec_product {
	MSPEC_KV,   /* k_proj, v_proj */
	MSPEC_Q,    /* q_proj */
	MSPEC_O,    /* o_proj */
	MSPEC_GATE, /* gate_proj, up_proj */
	MSPEC_DOWN, /* down_proj */
	MSPEC_MAPS, /* the fitted maps */
	MSPEC_PRODUCTS
};

struct mspec_precision {
	uint8_t wide[MSPEC_PRODUCTS];
};

/* The default: two planes for k_proj and v_proj, rows and weights, and for the rows of the maps. */
struct mspec_precision mspec_precision_default(void);

/* Runs fn(context, item, thread) once for each item < items, thread < threads; returns when all are done. */
struct mspec_runner {
	void (*run)(void *self, uint32_t items, void (*fn)(void *, uint32_t, uint32_t),
		    void *context);
	void *self;
	uint32_t threads;
};

/* ---- the model ---- */

struct mspec_model;

/**
 * mspec_model_load() - read a Hugging Face folder (Qwen3 or Llama) and quantise its weights.
 * @low_planes: keep the second planes of all weights, not only of k_proj and v_proj: twice the memory.  A fit
 *              needs them, and so do wide weights elsewhere.
 * @err: one line naming the tensor and what is wrong, on failure only.
 *
 * Return: 0; -EINVAL for content that is wrong or not implemented; -ENOMEM; the errno of the I/O.
 */
int mspec_model_load(const char *folder, bool low_planes, struct mspec_model **ret, char *err,
		     size_t err_bytes);
struct mspec_model *mspec_model_free(struct mspec_model *m); /* accepts NULL, returns NULL */
const struct model_config *mspec_model_config(const struct mspec_model *m);
/* BLAKE2b of the shape, the weights as stored and the version of this arithmetic. */
const uint8_t *mspec_model_digest(const struct mspec_model *m);
/* Products of one token of a copy at this precision, in int8 multiply-adds, attention left out. */
uint64_t mspec_model_products(const struct mspec_model *m, struct mspec_precision p);

/* ---- fitted parameters ---- */

struct codec_geometry;

enum mspec_mode { MSPEC_COPY, MSPEC_DRAFT, MSPEC_MODE_COUNT };

/* Of a cache; a copy's is its model's. */
struct mspec_shape {
	uint32_t layers, kv_heads, head_dim;
};

#define MSPEC_PREVIOUS_MAX 6u	  /* layers that a draft's maps look back */
#define MSPEC_PREVIOUS_DEFAULT 2u /* beyond it there is little to win */

const char *mspec_mode_name(enum mspec_mode mode);
struct mspec_shape mspec_model_shape(const struct mspec_model *m);
/* Of a cache, if it has but one: as the keys of layer 0 are, and as deep as there are keys.  -EINVAL: it has none. */
int mspec_shape_of(const struct codec_geometry *g, struct mspec_shape *ret);
/* A copy where the shapes are equal. */
enum mspec_mode mspec_mode_for(const struct mspec_model *m, struct mspec_shape cache);

struct mspec_params;

/* What a serial form says of itself, to those who have not its model. */
struct mspec_facts {
	enum mspec_mode mode;
	uint32_t dtype;		     /* enum codec_dtype */
	uint32_t layers, kv, hidden; /* of the cache; the model's hidden state */
	bool ids;
	uint8_t model[MODEL_DIGEST_BYTES];
};

/* Form, length and digest of the whole are checked, no more.  -EBADMSG. */
int mspec_facts_read(const uint8_t *in, size_t bytes, struct mspec_facts *ret);
/* Bytes of the longest serial form for a cache of this shape, and a model as deep at most. */
uint64_t mspec_params_bytes_max(uint32_t layers, uint32_t kv, uint32_t hidden);

/* -EBADMSG for anything wrong, -ESTALE when it is of another model.  m is borrowed by the params. */
int mspec_params_parse(const struct mspec_model *m, const uint8_t *in, size_t bytes,
		       struct mspec_params **ret);
/*
 * The same for a cache whose scales (of each layer; NULL: 1) are others than those of the sample: patterns stand
 * for their value times the scale.  -EINVAL: a scale that is not one; -ERANGE: too far from the sample's.
 */
int mspec_params_rescale(const struct mspec_params *p, const float *scale_k, const float *scale_v,
			 struct mspec_params **ret);
struct mspec_params *mspec_params_free(struct mspec_params *p);
/* -ERANGE: a number in it that no serial form has room for. */
int mspec_params_serialise(const struct mspec_params *p, uint8_t **ret_bytes, size_t *ret_count);
const uint8_t *mspec_params_digest(const struct mspec_params *p); /* of the serial form */
bool mspec_params_ids(const struct mspec_params *p);		  /* wants token ids */
uint32_t mspec_params_dtype(const struct mspec_params *p);	  /* enum codec_dtype */
enum mspec_mode mspec_params_mode(const struct mspec_params *p);
struct mspec_shape mspec_params_shape(const struct mspec_params *p); /* of the cache */
/* Products of one token, in int8 multiply-adds: the model's and the maps', attention left out. */
uint64_t mspec_params_products(const struct mspec_params *p);
struct mspec_precision mspec_params_precision(const struct mspec_params *p);
const struct mspec_model *mspec_params_model(const struct mspec_params *p); /* borrowed */

/* ---- fitting ---- */

struct mspec_fit;

struct mspec_fit_options {
	enum mspec_mode mode;	  /* mspec_mode_for() */
	struct mspec_shape cache; /* a draft's; a copy's is its model's */
	uint32_t previous;	  /* a draft's: layers looked back, MSPEC_PREVIOUS_MAX at most */
	uint32_t dtype;		  /* enum codec_dtype */
	bool ids; /* the coder will know the token ids; the fit always does.  A draft's must */
	struct mspec_precision precision;
	double ridge;			/* of each input's own mean square; 0: the default */
	const float *scale_k, *scale_v; /* [layers]; a value is its pattern's times it; NULL: 1 */
	const struct mspec_runner *runner; /* NULL: the caller's thread alone */
	void (*layer_done)(void *user, uint32_t layer,
			   const double *rms); /* see below; may be NULL */
	void *user;
	/* Another thread sets it: the finish ends soon with -ECANCELED.  NULL: nobody does. */
	const _Atomic(uint32_t) *cancel;
};

/* What layer_done() is told: root mean squares, in the cache's units but for the hidden state. */
enum {
	MSPEC_RMS_K,
	MSPEC_RMS_K_ERR,
	MSPEC_RMS_V,
	MSPEC_RMS_V_ERR,
	MSPEC_RMS_HIDDEN,
	MSPEC_RMS_HIDDEN_ERR,
	MSPEC_RMS_HIDDEN_AFTER,
	MSPEC_RMS_COUNT
};

/* m was loaded with its low planes, unless it is a draft.  -EINVAL: options that can't be; -ENOMEM. */
int mspec_fit_new(const struct mspec_model *m, const struct mspec_fit_options *o,
		  struct mspec_fit **ret);
struct mspec_fit *mspec_fit_free(struct mspec_fit *f);
/*
 * One sequence from its start.  patterns: K of layer 0, V of layer 0, K of layer 1, ...; each [count][kv_heads *
 * head_dim] little endian.  Both are borrowed until the fit is freed.  -EINVAL: an id outside the vocabulary.
 */
int mspec_fit_add(struct mspec_fit *f, const int32_t *ids, const uint8_t *const *patterns,
		  uint32_t count);
int mspec_fit_finish(struct mspec_fit *f, struct mspec_params **ret);
/* Bits per scalar of the sample under what came out of the finish; 0 before. */
double mspec_fit_bits(const struct mspec_fit *f);

/* ---- coding ---- */

struct mspec_context;

int mspec_context_new(const struct mspec_params *p, struct mspec_context **ret);
struct mspec_context *mspec_context_free(struct mspec_context *c);
void mspec_context_reset(struct mspec_context *c);
uint32_t mspec_context_count(const struct mspec_context *c);
/* Forget all tokens but the first `count`, of which there must be as many. */
void mspec_context_truncate(struct mspec_context *c, uint32_t count);
uint64_t mspec_context_bytes(const struct mspec_context *c); /* of memory */
/*
 * Tokens whose values are known: patterns as for the fit.  -ENODATA: a draft wants to know their ids, not their
 * values: mspec_context_follow().
 */
int mspec_context_append(struct mspec_context *c, const uint8_t *const *patterns, uint32_t count);

struct mspec_coder;

/*
 * Tokens whose ids are known, for a draft.  -ENODATA: it is a copy, which wants values; -EINVAL: an id outside the
 * vocabulary, too many tokens; -ENOMEM.  After a failure the context is as it was.
 */
int mspec_context_follow(struct mspec_coder *w, struct mspec_context *c, const int32_t *ids,
			 uint32_t count);

/* runner is borrowed. */
int mspec_coder_new(const struct mspec_params *p, const struct mspec_runner *runner,
		    struct mspec_coder **ret);
/* One for blocks of at most rows_max tokens, which takes less memory. */
int mspec_coder_new_for(const struct mspec_params *p, const struct mspec_runner *runner,
			uint32_t rows_max, struct mspec_coder **ret);
struct mspec_coder *mspec_coder_free(struct mspec_coder *w);

/* What one block's coding tells. */
struct mspec_result {
	uint32_t mu_digest; /* of every guess; those of a run's blocks add up to the run's */
	uint64_t escapes;
	struct residual_bits bits[2]; /* K, V; the encoder only */
};

/*
 * Code `count` tokens that follow the context; they are appended to it.  ids: NULL when the params do not
 * want them.  The coder (started by the caller) takes the segments in the order K, V of each layer.
 * -EINVAL: an id outside the vocabulary, too many tokens; -ENOMEM; -EBADMSG from the decoder.  After a failure
 * the context is as it was.
 */
int mspec_encode(struct mspec_coder *w, struct mspec_context *c, const int32_t *ids, uint32_t count,
		 const uint8_t *const *patterns, struct residual_encoder *e,
		 struct mspec_result *ret);
int mspec_decode(struct mspec_coder *w, struct mspec_context *c, const int32_t *ids, uint32_t count,
		 struct residual_decoder *d, uint8_t *const *patterns, struct mspec_result *ret);

#endif
