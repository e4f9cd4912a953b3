/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_solve.h - ridge regression for fitting, in double precision through BLAS and LAPACK.  One thread at a
 * time per object (BLAS may use more).
 */
#ifndef SKVCD_GPU_CODEC_MODEL_SOLVE_H
#define SKVCD_GPU_CODEC_MODEL_SOLVE_H

#include <stddef.h>
#include <stdint.h>

struct model_solve; /* sums of products of inputs and outputs */

int model_solve_new(uint32_t inputs, uint32_t outputs, struct model_solve **ret);
struct model_solve *model_solve_free(struct model_solve *s); /* accepts NULL, returns NULL */
/* rows of inputs and outputs, integers. */
void model_solve_add(struct model_solve *s, const int32_t *x, size_t x_pitch, const int32_t *y,
		     size_t y_pitch, uint32_t rows);
/*
 * weights[output][input]: of least squares with `ridge` times each input's mean square on the diagonal.
 * -EDOM: no such solution.  The sums are used up.
 */
int model_solve_finish(struct model_solve *s, double ridge, double *weights);
/* For sums as if each input and output had had its mean subtracted: once, when all rows are there. */
int model_solve_new_centred(uint32_t inputs, uint32_t outputs, struct model_solve **ret);
void model_solve_centre(struct model_solve *s);
/* The solution for the first inputs and some outputs only: weights[outputs][inputs].  Leaves the sums; -ENOMEM. */
int model_solve_part(const struct model_solve *s, uint32_t inputs, uint32_t first_output,
		     uint32_t outputs, double ridge, double *weights);

#endif
