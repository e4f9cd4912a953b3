/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_internal.h - what the files of the `model` speculator share.  Nothing outside gpu/codec/model*
 * includes it.
 */
#ifndef SKVCD_GPU_CODEC_MODEL_INTERNAL_H
#define SKVCD_GPU_CODEC_MODEL_INTERNAL_H

#include "gpu/codec/model.h"
#include "gpu/codec/model_math.h"

#define MSPEC_TILE 16u	 /* rows that one item of work takes through a stage */
#define MSPEC_CHUNK 256u /* outputs of a product at a time */
#define MSPEC_ALIGN 64u	 /* depth of matrices is padded with zeros to it */
#define MSPEC_HIDDEN_FRAC 16

/* Weights [outs][pitch] in planes; a weight is (256 * high + low) * mant * 2^exp of its row. */
struct mspec_matrix {
	uint32_t outs, depth, pitch;
	bool mixed;	    /* rows are to be mixed: model_mix_block() */
	int8_t *high, *low; /* owned; low may be NULL: then it is 0 */
	uint16_t *mants;    /* owned; >= 2^15, or 0 for a row of zeros */
	int16_t *exps;	    /* owned */
};

struct mspec_norm {
	int16_t *weights; /* owned */
	int32_t frac;
};

struct mspec_weights {				       /* of a layer */
	struct mspec_matrix q, kv, o, gate_up, down;   /* kv: k's outputs, then v's */
	struct mspec_norm input, post, q_norm, k_norm; /* the last two empty for Llama */
};

struct mspec_model {
	struct model_config config;
	struct model_tables tables;
	double *frequencies;	       /* owned; head_dim / 2 */
	struct mspec_matrix embedding; /* both planes */
	struct mspec_weights *layers;  /* owned */
	uint64_t eps_head;	       /* of the heads' norms, in squares of MODEL_FRAC's unit */
	bool low_planes;
	uint8_t digest[MODEL_DIGEST_BYTES];
};

static inline uint32_t mspec_q_width(const struct model_config *c)
{
	return c->heads * c->head_dim;
}

static inline uint32_t mspec_kv_width(const struct model_config *c)
{
	return c->kv_heads * c->head_dim;
}

/* ---- matrices (model_weights.c) ---- */

int mspec_matrix_init(struct mspec_matrix *m, uint32_t outs, uint32_t depth, bool low);
void mspec_matrix_deinit(struct mspec_matrix *m);
/* One row from floating point; -EINVAL: not finite. */
int mspec_matrix_row(struct mspec_matrix *m, uint32_t out, const double *row);
/* Times a positive factor, to 16 bits. */
void mspec_matrix_times(struct mspec_matrix *m, double factor);
/* The nearest mant * 2^exp, mant of 24 bits; x > 0. */
struct model_scale mspec_scale_of(double x);

/* ---- kernels ---- */

struct mspec_attend {
	const int16_t *query;	 /* [dim] */
	const int16_t *k, *v;	 /* [keys][dim] */
	const uint16_t *exp;	 /* table */
	struct model_scale step; /* of a score, for model_exp() */
	uint32_t dim, keys;	 /* dim: a multiple of 16 */
	int32_t *scores;	 /* scratch, keys rounded up to 32 */
	int64_t *sums;		 /* [dim]: what comes out: sums of weight * value */
};

/* How sums of products become fixed point: those of one row, columns of a matrix. */
struct mspec_rescale {
	struct model_scale row;
	const uint16_t *mants;
	const int16_t *exps;
	uint32_t wide;
	int32_t exp, frac; /* more of the weights' exponent; fraction bits of what comes out */
	bool add;	   /* to what is there */
};

struct mspec_kernels {
	const char *name;
	/* One of product.h's. */
	void (*product)(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
			uint32_t outputs, uint32_t k, int32_t *out);
	/* Returns the sum of weights. */
	uint64_t (*attend)(const struct mspec_attend *a);

	/* Rows, element by element: model_loops.inc. */
	uint64_t (*max)(const int64_t *values, uint32_t count);
	void (*mix)(int64_t *values, int32_t *scratch, uint32_t count, int32_t shift);
	void (*planes)(const int64_t *values, uint32_t count, struct model_quant q, int8_t *high,
		       int8_t *low);
	void (*rescale)(const struct mspec_rescale *s, const int32_t *hh, const int32_t *hl,
			const int32_t *lh, uint32_t count, int32_t *out);
	uint64_t (*squares)(const int32_t *x, uint32_t count, int32_t shift);
	uint32_t (*max32)(const int32_t *x, uint32_t count);
	void (*weigh)(const int32_t *x, const int16_t *weights, uint32_t count, int64_t *y);
	void (*gate)(const int32_t *table, const int32_t *gate, const int32_t *up, uint32_t count,
		     int64_t *y);
};

extern const struct mspec_kernels mspec_kernels_scalar;
extern const struct mspec_kernels mspec_kernels_avx2, mspec_kernels_avx512; /* x86-64 only */
const struct mspec_kernels *mspec_kernels_pick(void);
/* Tests: kernels by name, or NULL to pick again.  Not while anything runs.  -ENOENT; -ENOTSUP here. */
int mspec_kernels_force(const char *name);

/* ---- parameters ---- */

/* Of a column's scale, so that no step takes it out of the residual coder's range. */
#define MSPEC_BASE_MIN (RESIDUAL_SCALE_MIN + 6)
#define MSPEC_BASE_MAX (RESIDUAL_SCALE_MAX - 8)

struct mspec_layer {
	int32_t k_frac, v_frac; /* of the context's values */
	struct model_scale unit_k,
		unit_v;		       /* from MODEL_FRAC to the cache's unit in RESIDUAL_FRAC */
	struct model_scale score;      /* of query * key, for unit query scale */
	struct model_scale real_v;     /* from 256ths of a context's value to MODEL_FRAC */
	uint64_t eps_input, eps_post;  /* in squares of the hidden state's unit */
	int32_t *bias_k, *bias_v;      /* owned; MODEL_FRAC; k's before rope */
	struct mspec_matrix value_map; /* K's error to V: kv by kv */
	struct mspec_matrix gain_k, gain_v; /* their errors to the hidden state */
	int16_t *sigma_k, *sigma_v;	    /* owned; of the error before rounding, as a base */
	int16_t *base_k, *base_v;	    /* owned */
};

struct mspec_params {
	const struct mspec_model *model; /* borrowed */
	uint32_t dtype;
	bool ids;
	bool coarse_rope;
	struct mspec_precision precision;
	float *scale_k, *scale_v;	/* owned; a value is its pattern's times it */
	int32_t *start;			/* owned; the hidden state without ids */
	struct mspec_layer *layers;	/* owned */
	struct residual_freqs freqs[2]; /* K, V */
	struct residual_tables *tables; /* owned; two */
	uint8_t digest[MODEL_DIGEST_BYTES];
};

int mspec_params_new(const struct mspec_model *m, uint32_t dtype, struct mspec_precision precision,
		     struct mspec_params **ret);
bool mspec_scale_good(float x);		       /* of a cache */
int mspec_params_seal(struct mspec_params *p); /* tables and digest, once all is set */

/* ---- a pass over rows of one sequence ---- */

struct mspec_thread {		       /* scratch of one thread */
	int8_t *high, *low;	       /* [MSPEC_TILE][widest pitch] */
	struct model_scale *row_scale; /* [MSPEC_TILE] */
	int32_t *mix;		       /* [widest row] */
	int64_t *wide;		       /* [widest row] */
	int32_t *out;		       /* [MSPEC_TILE][widest output] */
	int32_t *mixed;		       /* [MSPEC_TILE][q width] */
	int32_t *acc;		       /* [3][MSPEC_TILE][MSPEC_CHUNK] */
	int16_t *query;		       /* [head_dim] */
	int64_t *sums;		       /* [head_dim] */
	int32_t *scores;	       /* [positions] */
};

struct mspec_pass {
	const struct mspec_model *m;
	const struct mspec_layer *layer; /* set before each stage */
	const struct mspec_weights *w;
	const struct mspec_kernels *kernels;
	const struct mspec_runner *runner; /* or NULL */
	struct mspec_precision precision;
	uint32_t rows_max, threads;
	uint32_t rows, position;
	bool coarse_rope;
	int32_t *hidden;      /* [rows][hidden] */
	int32_t *mu_k, *mu_v; /* [rows][kv] */
	int32_t *error;	      /* [rows][2 * kv]: K's un-rotated, V's */
	const int32_t *rope;  /* [rows][head_dim], in rope_all */
	int32_t *rope_all;    /* owned; of positions below rope_count */
	uint32_t rope_count;
	const int16_t *k, *v; /* context of the layer: [kv_heads][capacity][head_dim] */
	size_t capacity;
	struct mspec_thread *scratch; /* owned; threads of them */
	uint32_t scores_count;
};

int mspec_pass_init(struct mspec_pass *p, const struct mspec_model *m,
		    const struct mspec_runner *runner, uint32_t rows_max);
void mspec_pass_deinit(struct mspec_pass *p);
/* Rows `position` and on: rope rows, scratch for so many keys.  -ENOMEM. */
int mspec_pass_start(struct mspec_pass *p, uint32_t position, uint32_t rows);
/* hidden = the embedding of ids, or start (when ids is NULL).  -EINVAL: an id outside the vocabulary. */
int mspec_pass_embed(struct mspec_pass *p, const int32_t *ids, const int32_t *start);
void mspec_pass_guess_k(struct mspec_pass *p); /* mu_k; mu_v without the map */
/* Errors of one part from the exact patterns; K's are turned back. */
void mspec_pass_error(struct mspec_pass *p, struct residual_type t, bool value,
		      const uint8_t *patterns);
void mspec_pass_guess_v(struct mspec_pass *p); /* mu_v += map * K's error */
void mspec_pass_gain(struct mspec_pass *p);    /* hidden += gain * errors */
void mspec_pass_finish(struct mspec_pass *p);  /* attention, MLP */

/* patterns [count][kv] into a context's layer at `first`: to is [kv_heads][capacity][head_dim]. */
void mspec_kv_store(const struct model_config *c, struct residual_type t, const uint8_t *patterns,
		    uint32_t count, int32_t frac, int16_t *to, size_t capacity, uint32_t first);

#endif
