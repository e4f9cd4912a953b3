/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_fit_internal.h - what the fits of the `model` speculator share: the sample and walks over it, scales, counts.
 * Nothing outside gpu/codec/model_*fit* includes it.
 *
 * Floating point is used here, to fit; nothing that it gives reaches a guess but as integers.
 */
#ifndef SKVCD_GPU_CODEC_MODEL_FIT_INTERNAL_H
#define SKVCD_GPU_CODEC_MODEL_FIT_INTERNAL_H

#include "gpu/codec/model_internal.h"

#define FIT_ROWS 256u /* of a pass */

struct fit_sequence {
	const int32_t *ids;	  /* borrowed, as are the patterns */
	const uint8_t **patterns; /* owned array */
	uint32_t count;
	size_t first; /* row in the sample */
};

struct fit_chunk { /* FIT_ROWS rows at most of one sequence */
	const struct fit_sequence *s;
	uint32_t begin, count;
	size_t row; /* of the sample */
};

struct mspec_fit {
	const struct mspec_model *m;
	struct mspec_fit_options o;
	struct mspec_shape shape; /* of the cache */
	uint32_t kv;		  /* its width */
	float *scales;		  /* owned; K's, then V's */
	struct residual_type type;
	struct fit_sequence *sequences; /* owned */
	uint32_t sequences_count;
	size_t rows;
	bool hold_out; /* maps are fitted on the rows that are not measured, not on all */
	size_t measured_count;
	uint8_t *measured; /* [rows], while it runs, owned: a row whose error is looked at */

	/* While it runs, owned: */
	struct mspec_params *p;
	struct mspec_pass pass;
	struct mspec_layer truth;	/* a copy's; no owned fields in use */
	struct mspec_guess guess;	/* a draft's */
	struct draft_fit *draft;	/* borrowed from fit_draft() */
	int32_t *hidden_true, *mu_v;	/* a copy's */
	int32_t *hidden;		/* [rows][hidden] */
	int32_t *error;			/* [rows][2 * kv] */
	int16_t *k, *v;			/* one sequence's context of a layer of the model */
	struct residual_counts *counts; /* K, V */
	bool own_attention; /* of the truth: the engine attended before values were rounded to fp8 */
	double truth_error;
	double rms[MSPEC_RMS_COUNT];
	double bits; /* per scalar, once finished */
};

typedef void fit_step(struct mspec_fit *f, uint32_t layer, const struct fit_chunk *c);

/*
 * step for every chunk, with the pass at its rows.  hidden: of the sample, taken into the pass and back again; NULL:
 * not.  before: NULL, or for each sequence, at its first chunk.  -ENOMEM; -ECANCELED.
 */
int fit_walk(struct mspec_fit *f, uint32_t layer, int32_t *hidden, fit_step *before,
	     fit_step *step);
const uint8_t *fit_patterns(const struct mspec_fit *f, const struct fit_chunk *c, uint32_t segment);
int32_t *fit_errors(struct mspec_fit *f, const struct fit_chunk *c);

/* Of a model's layer that attends over values in units of a scale; k_frac and v_frac are set. */
void fit_pass_set(const struct mspec_fit *f, struct mspec_layer *l, double scale_k, double scale_v);
/* Fraction bits for values of this magnitude at most, in RESIDUAL_FRAC. */
int32_t fit_frac(double max);
/* Mean errors of a part go to its bias, and out of the errors; one of an error is `unit` of the bias's. */
void fit_bias_set(struct mspec_fit *f, uint32_t offset, double unit, int32_t *bias);
/* -EDOM: not finite. */
int fit_map_set(struct mspec_matrix *m, const double *weights, size_t pitch);
/*
 * A part's scales from its plain errors.  Columns that rope turns into one another share them.  sigma: NULL: not
 * wanted.  Returns the root mean square of all, -1 when there is no memory.
 */
double fit_scales(const struct mspec_fit *f, uint32_t segment, int16_t *base, int16_t *sigma);
/* A segment's guesses of a chunk, as they will be coded, to the statistics; its scales are known. */
void fit_count(struct mspec_fit *f, const struct fit_chunk *c, uint32_t segment, const int32_t *mu);

/* Once the scratch is there and p made, up to the statistics. */
int fit_copy(struct mspec_fit *f);
int fit_draft(struct mspec_fit *f); /* model_draft_fit.c */

#endif
