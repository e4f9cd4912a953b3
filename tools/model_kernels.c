/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_kernels.c - the scalar twin of the engine's arithmetic, and the choice between the two.
 * fmaf() is exact wherever it runs: slow where the processor has no such instruction, but equal.
 */
#include "tools/model_kernels.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static void panel_scalar(const float *x, size_t x_stride, uint32_t rows, uint32_t inner,
			 const uint16_t *w, size_t w_stride, float *y, size_t y_stride)
{
	assert(rows <= MODEL_ROWS_MAX);
	for (uint32_t r = 0; r < rows; r++) {
		float acc[MODEL_PANEL];

		memcpy(acc, y + r * y_stride, sizeof(acc));
		for (uint32_t i = 0; i < inner; i++)
			for (uint32_t o = 0; o < MODEL_PANEL; o++)
				acc[o] = fmaf(x[r * x_stride + i],
					      model_from_bf16(w[i * w_stride + o]), acc[o]);
		memcpy(y + r * y_stride, acc, sizeof(acc));
	}
}

static void dots_scalar(const float *q, uint32_t dim, const uint16_t *k, size_t k_stride,
			uint32_t keys, float *scores)
{
	assert(dim % 16 == 0);
	for (uint32_t j = 0; j < keys; j++) {
		float even[8] = { 0 }, odd[8] = { 0 }, both[8];

		for (uint32_t d = 0; d < dim; d += 16) {
			const uint16_t *row = k + j * k_stride + d;

			for (uint32_t l = 0; l < 8; l++) {
				even[l] = fmaf(q[d + l], model_from_bf16(row[2 * l]), even[l]);
				odd[l] = fmaf(q[d + 8 + l], model_from_bf16(row[2 * l + 1]),
					      odd[l]);
			}
		}
		for (uint32_t l = 0; l < 8; l++)
			both[l] = even[l] + odd[l];
		scores[j] = MODEL_SUM8(both);
	}
}

static float exp_scalar(float x)
{
	union {
		float f;
		uint32_t u;
	} y;
	float n, r, p;

	x = x > MODEL_EXP_LOW ? x : MODEL_EXP_LOW; /* NaN goes low, as maxps has it */
	x = x < MODEL_EXP_HIGH ? x : MODEL_EXP_HIGH;
	n = rintf(x * MODEL_EXP_LOG2E);
	r = fmaf(n, -MODEL_EXP_LN2_HIGH, x);
	r = fmaf(n, -MODEL_EXP_LN2_LOW, r);
	p = fmaf(MODEL_EXP_C6, r, MODEL_EXP_C5);
	p = fmaf(p, r, MODEL_EXP_C4);
	p = fmaf(p, r, MODEL_EXP_C3);
	p = fmaf(p, r, MODEL_EXP_C2);
	p = fmaf(p, r, 1.0f);
	y.f = fmaf(p, r, 1.0f);
	y.u += (uint32_t)(int32_t)n << 23; /* times 2^n; MODEL_EXP_LOW keeps it normal */
	return y.f;
}

static float softmax_scalar(float *scores, uint32_t count)
{
	float greatest = scores[0], lanes[8] = { 0 };

	for (uint32_t j = 1; j < count; j++)
		greatest = scores[j] > greatest ? scores[j] : greatest;
	for (uint32_t j = 0; j < count; j++) {
		scores[j] = exp_scalar(scores[j] - greatest);
		lanes[j % 8] += scores[j];
	}
	return MODEL_SUM8(lanes);
}

static void silu_scalar(float *gate, const float *up, size_t count)
{
	for (size_t i = 0; i < count; i++)
		gate[i] = gate[i] / (1.0f + exp_scalar(-gate[i])) * up[i];
}

static float squares_scalar(const float *x, uint32_t count)
{
	float lanes[8] = { 0 };

	for (uint32_t i = 0; i < count; i++)
		lanes[i % 8] = fmaf(x[i], x[i], lanes[i % 8]);
	return MODEL_SUM8(lanes);
}

void model_split_query(const float *q, uint32_t dim, float *ret)
{
	for (uint32_t d = 0; d < dim; d += 16) {
		for (uint32_t l = 0; l < 8; l++) {
			ret[d + l] = q[d + 2 * l];
			ret[d + 8 + l] = q[d + 2 * l + 1];
		}
	}
}

const struct model_kernels *model_kernels_scalar(void)
{
	static const struct model_kernels kernels = {
		.name = "scalar",
		.panel = panel_scalar,
		.dots = dots_scalar,
		.softmax = softmax_scalar,
		.silu = silu_scalar,
		.squares = squares_scalar,
	};

	return &kernels;
}

const struct model_kernels *model_kernels_best(void)
{
	const struct model_kernels *kernels = model_kernels_avx2();

	return kernels ? kernels : model_kernels_scalar();
}
