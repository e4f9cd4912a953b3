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
#define MSPEC_WEIGH_FRAC 12 /* of an input's weight before a draft's maps */
#define MSPEC_TAPS 2u /* states of a draft that its maps start from: embedding, last hidden state */

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

/* A layer of the cache, by a draft (model_draft.c): kv is the cache's. */
struct mspec_draft_layer {
	int32_t *bias;		  /* owned; [2 * kv]: K's before rope, V's; RESIDUAL_FRAC */
	int16_t *weigh;		  /* owned; [2 * kv]: of its exact K and V as inputs */
	int16_t *base_k, *base_v; /* owned */
	struct mspec_matrix tap[MSPEC_TAPS]; /* 2 * kv by the draft's hidden */
	/* 2 * kv by kv; K, V of the layer before, of the one before that: 2 * min(previous, layer) of them */
	struct mspec_matrix past[2u * MSPEC_PREVIOUS_MAX];
	struct mspec_matrix own; /* own K to V: kv by kv */
};

struct mspec_draft {
	struct mspec_shape shape; /* of the cache */
	uint32_t previous;
	double theta;			    /* of the cache's rope; 0: none */
	double *frequencies;		    /* owned; head_dim / 2, of theta */
	struct mspec_norm norm[MSPEC_TAPS]; /* MSPEC_WEIGH_FRAC */
	struct mspec_draft_layer *layers;   /* owned; [shape.layers] */
};

struct mspec_params {
	const struct mspec_model *model; /* borrowed */
	uint32_t dtype;
	bool ids;
	bool coarse_rope; /* of the cache */
	struct mspec_precision precision;
	float *scale_k, *scale_v;  /* owned; [cache's layers]; a value is its pattern's times it */
	int32_t *start;		   /* owned; the hidden state without ids */
	struct mspec_draft *draft; /* owned; NULL: a copy */
	/* Owned; of the model.  A draft's: only what its own pass needs, neither arrays nor matrices. */
	struct mspec_layer *layers;
	struct residual_freqs freqs[2]; /* K, V */
	struct residual_tables *tables; /* owned; two */
	uint8_t digest[MODEL_DIGEST_BYTES];
};

int mspec_params_new(const struct mspec_model *m, uint32_t dtype, struct mspec_precision precision,
		     struct mspec_params **ret);
/* MSPEC_DRAFT; theta and all fitted things are still to be set. */
int mspec_params_new_draft(const struct mspec_model *m, struct mspec_shape shape, uint32_t previous,
			   uint32_t dtype, struct mspec_precision precision,
			   struct mspec_params **ret);
int mspec_draft_new(const struct mspec_params *p, struct mspec_shape shape, uint32_t previous,
		    struct mspec_draft **ret);
struct mspec_draft *mspec_draft_free(struct mspec_draft *d);
void mspec_draft_turns(struct mspec_draft *d); /* the frequencies of its theta */

static inline uint32_t mspec_shape_kv(struct mspec_shape s)
{
	return s.kv_heads * s.head_dim;
}

/* Matrices of layers before that a layer's guess starts from. */
static inline uint32_t mspec_draft_past(const struct mspec_draft *d, uint32_t layer)
{
	return 2u * (layer < d->previous ? layer : d->previous);
}

/* Scales of a segment of the cache. */
static inline const int16_t *mspec_params_base(const struct mspec_params *p, uint32_t segment)
{
	if (p->draft) {
		const struct mspec_draft_layer *l = &p->draft->layers[segment / 2u];

		return segment % 2u ? l->base_v : l->base_k;
	}
	return segment % 2u ? p->layers[segment / 2u].base_v : p->layers[segment / 2u].base_k;
}

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

/* Cosines and sines of the first positions. */
struct mspec_turns {
	int32_t *all; /* owned; [count][dim] */
	uint32_t count;
};

int mspec_turns_grow(struct mspec_turns *t, const double *frequencies, uint32_t dim, bool coarse,
		     uint32_t count);
/* Heads of a row turned by a position's cosines and sines; sign: 1 forward, -1 back. */
void mspec_turn_row(int32_t *row, uint32_t columns, uint32_t dim, const int32_t *rope,
		    int32_t sign);

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
	const int32_t *rope;  /* [rows][head_dim], in turns */
	struct mspec_turns turns;
	const int16_t *k, *v; /* context of the layer: [kv_heads][capacity][head_dim] */
	size_t capacity;
	struct mspec_thread *scratch; /* owned; threads of them */
	uint32_t scores_count;
};

/* widest: of rows and outputs that others than the pass's own stages put through its scratch; 0: none do. */
int mspec_pass_init(struct mspec_pass *p, const struct mspec_model *m,
		    const struct mspec_runner *runner, uint32_t rows_max, uint32_t widest);
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
/*
 * A whole layer with keys and values of its own, which go to k and v, [kv_heads][capacity][head_dim], at the rows'
 * positions: the pass attends over these.
 */
void mspec_pass_own(struct mspec_pass *p, int16_t *k, int16_t *v);

/* What stages are made of.  Each tile of MSPEC_TILE rows is one call of the stage, by any thread. */
void mspec_pass_tiles(struct mspec_pass *p, void (*stage)(void *, uint32_t, uint32_t),
		      void *context);
uint32_t mspec_pass_tile_rows(const struct mspec_pass *p, uint32_t tile);
/*
 * The row in t->wide in planes of `wide`: integers of `frac` fraction bits, mixed first for matrices that want
 * it.
 */
void mspec_quantise(const struct mspec_pass *p, struct mspec_thread *t, uint32_t row,
		    const struct mspec_matrix *m, uint32_t wide, int32_t frac,
		    struct model_norm norm);
/* The hidden state of a row through a norm. */
void mspec_quantise_hidden(const struct mspec_pass *p, struct mspec_thread *t, uint32_t row,
			   const int32_t *h, const struct mspec_norm *norm, uint64_t eps,
			   uint32_t wide, const struct mspec_matrix *m);
/* out[row][o] = the rows in t times a matrix, in fixed point of `frac` bits; add: on top of what is there. */
void mspec_multiply(const struct mspec_pass *p, struct mspec_thread *t,
		    const struct mspec_matrix *m, uint32_t rows, uint32_t wide, int32_t frac,
		    bool add, int32_t *out, size_t out_pitch);

/* ---- guesses from a draft (model_draft.c) ---- */

/* Of one block on its way, beside the pass of the draft itself. */
struct mspec_guess {
	const struct mspec_params *p; /* borrowed, as is the pass */
	struct mspec_pass *pass;      /* at the block's rows; its hidden state is the second tap */
	const struct mspec_draft_layer *layer;
	uint32_t at;	      /* the layer's number */
	int32_t *embedding;   /* owned; [rows][hidden]: the first tap */
	int32_t *sums;	      /* owned; [rows][2 * kv]: guesses before rope */
	int32_t *mu_k, *mu_v; /* owned; [rows][kv] */
	int32_t *
		exact; /* owned; [previous + 1][rows][2 * kv]: K un-rotated, V; layer % (previous + 1) */
	const int32_t *rope; /* [rows][head_dim], in turns */
	struct mspec_turns turns;
};

/* The pass was made for rows as wide as the cache's: mspec_guess_widest(). */
uint32_t mspec_guess_widest(const struct mspec_params *p);
int mspec_guess_init(struct mspec_guess *g, const struct mspec_params *p, struct mspec_pass *pass);
void mspec_guess_deinit(struct mspec_guess *g);
/* At the pass's rows, which were just embedded.  -ENOMEM. */
int mspec_guess_start(struct mspec_guess *g);
void mspec_guess_layer(struct mspec_guess *g, uint32_t layer); /* set before each layer's stages */
void mspec_guess_k(struct mspec_guess *g);		       /* sums, mu_k */
/* Exact values of one part of the layer, as inputs of what comes. */
void mspec_guess_exact(struct mspec_guess *g, bool value, const uint8_t *patterns);
void mspec_guess_v(struct mspec_guess *g); /* mu_v, once K is exact */
/* Exact values of a layer not further back than `previous` from the newest: [rows][2 * kv]. */
int32_t *mspec_guess_values(const struct mspec_guess *g, uint32_t layer);

/* patterns [count][kv] into a context's layer at `first`: to is [kv_heads][capacity][head_dim]. */
void mspec_kv_store(const struct model_config *c, struct residual_type t, const uint8_t *patterns,
		    uint32_t count, int32_t frac, int16_t *to, size_t capacity, uint32_t first);

#endif
