/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_solve.c - ridge regression: Gram matrices by dsyrk and dgemm, the solution by Cholesky.
 */
#include "gpu/codec/model_solve.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>
#include <lapacke.h>

#define ROWS 512u /* converted at a time */

struct model_solve {
	uint32_t inputs, outputs;
	double *gram;  /* owned; [inputs][inputs], the upper half */
	double *cross; /* owned; [inputs][outputs] */
	double *x, *y; /* owned; [ROWS][..] */
	/* Of a centred one, owned: the first row, that all are counted from so that nothing is lost; their sums. */
	double *from_x, *from_y, *sum_x, *sum_y;
	double rows;
};

int model_solve_new(uint32_t inputs, uint32_t outputs, struct model_solve **ret)
{
	struct model_solve *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->inputs = inputs;
	s->outputs = outputs;
	s->gram = calloc((size_t)inputs * inputs, sizeof(double));
	s->cross = calloc((size_t)inputs * outputs, sizeof(double));
	s->x = calloc((size_t)ROWS * inputs, sizeof(double));
	s->y = calloc((size_t)ROWS * outputs, sizeof(double));
	if (!s->gram || !s->cross || !s->x || !s->y) {
		model_solve_free(s);
		return -ENOMEM;
	}
	*ret = s;
	return 0;
}

struct model_solve *model_solve_free(struct model_solve *s)
{
	if (!s)
		return NULL;
	free(s->gram);
	free(s->cross);
	free(s->x);
	free(s->y);
	free(s->from_x);
	free(s->from_y);
	free(s->sum_x);
	free(s->sum_y);
	free(s);
	return NULL;
}

int model_solve_new_centred(uint32_t inputs, uint32_t outputs, struct model_solve **ret)
{
	struct model_solve *s = NULL;
	int r = model_solve_new(inputs, outputs, &s);

	if (r < 0)
		return r;
	s->from_x = calloc(inputs, sizeof(double));
	s->from_y = calloc(outputs, sizeof(double));
	s->sum_x = calloc(inputs, sizeof(double));
	s->sum_y = calloc(outputs, sizeof(double));
	if (!s->from_x || !s->from_y || !s->sum_x || !s->sum_y) {
		model_solve_free(s);
		return -ENOMEM;
	}
	*ret = s;
	return 0;
}

static void convert(const int32_t *from, size_t pitch, uint32_t rows, uint32_t columns, double *to)
{
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t i = 0; i < columns; i++)
			to[(size_t)r * columns + i] = from[r * pitch + i] * 0x1p-16;
}

/* Counted from the first row of all. */
static void shift(double *x, uint32_t rows, uint32_t columns, bool first, double *from, double *sum)
{
	if (first)
		memcpy(from, x, columns * sizeof(double));
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t i = 0; i < columns; i++) {
			x[(size_t)r * columns + i] -= from[i];
			sum[i] += x[(size_t)r * columns + i];
		}
}

void model_solve_add(struct model_solve *s, const int32_t *x, size_t x_pitch, const int32_t *y,
		     size_t y_pitch, uint32_t rows)
{
	const int in = (int)s->inputs, out = (int)s->outputs;

	for (uint32_t first = 0; first < rows; first += ROWS) {
		const uint32_t n = rows - first < ROWS ? rows - first : ROWS;

		convert(x + first * x_pitch, x_pitch, n, s->inputs, s->x);
		convert(y + first * y_pitch, y_pitch, n, s->outputs, s->y);
		if (s->sum_x) {
			shift(s->x, n, s->inputs, s->rows == 0, s->from_x, s->sum_x);
			shift(s->y, n, s->outputs, s->rows == 0, s->from_y, s->sum_y);
		}
		s->rows += n;
		cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, in, (int)n, 1, s->x, in, 1,
			    s->gram, in);
		cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, in, out, (int)n, 1, s->x, in,
			    s->y, out, 1, s->cross, out);
	}
}

void model_solve_centre(struct model_solve *s)
{
	const int in = (int)s->inputs, out = (int)s->outputs;

	assert(s->sum_x && s->rows > 0);
	cblas_dsyr(CblasRowMajor, CblasUpper, in, -1 / s->rows, s->sum_x, 1, s->gram, in);
	cblas_dger(CblasRowMajor, in, out, -1 / s->rows, s->sum_x, 1, s->sum_y, 1, s->cross, out);
}

int model_solve_part(const struct model_solve *s, uint32_t inputs, uint32_t first_output,
		     uint32_t outputs, double ridge, double *weights)
{
	struct model_solve part = { .inputs = inputs, .outputs = outputs };
	int r = -ENOMEM;

	part.gram = malloc((size_t)inputs * inputs * sizeof(double));
	part.cross = malloc((size_t)inputs * outputs * sizeof(double));
	if (part.gram && part.cross) {
		for (size_t i = 0; i < inputs; i++) {
			memcpy(part.gram + i * inputs, s->gram + i * s->inputs,
			       inputs * sizeof(double));
			memcpy(part.cross + i * outputs, s->cross + i * s->outputs + first_output,
			       outputs * sizeof(double));
		}
		r = model_solve_finish(&part, ridge, weights);
	}
	free(part.gram);
	free(part.cross);
	return r;
}

int model_solve_finish(struct model_solve *s, double ridge, double *weights)
{
	double mean = 0;

	for (uint32_t i = 0; i < s->inputs; i++)
		mean += s->gram[(size_t)i * s->inputs + i] / s->inputs;
	for (uint32_t i = 0; i < s->inputs; i++) {
		double *d = &s->gram[(size_t)i * s->inputs + i];

		*d += ridge * *d + 1e-9 * mean + 1e-30;
	}
	if (LAPACKE_dposv(LAPACK_ROW_MAJOR, 'U', (int)s->inputs, (int)s->outputs, s->gram,
			  (int)s->inputs, s->cross, (int)s->outputs) != 0)
		return -EDOM;
	for (uint32_t o = 0; o < s->outputs; o++)
		for (uint32_t i = 0; i < s->inputs; i++)
			weights[(size_t)o * s->inputs + i] = s->cross[(size_t)i * s->outputs + o];
	return 0;
}
