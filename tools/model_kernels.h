/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_kernels.h - the arithmetic of the demo engine, in two implementations with the same bits.
 *
 * The order of every sum is part of the contract, so that a result depends on the operands alone:
 * not on how many tokens are processed together, nor on threads, nor on the processor.
 *  - matrix products: one chain of fused multiply-adds per output, in ascending order of the inner
 *    index, starting from what the output holds;
 *  - dot products and sums: lane l of 8 (or 16) takes the elements l, l + 8 (16), ... in ascending
 *    order; then MODEL_SUM8.
 * Pure functions; any thread.
 */
#ifndef SKVCD_TOOLS_MODEL_KERNELS_H
#define SKVCD_TOOLS_MODEL_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define MODEL_PANEL 16u	  /* outputs of one weight panel */
#define MODEL_ROWS_MAX 6u /* rows of one call of panel() */

/* The tree that ends every sum over 8 lanes. */
#define MODEL_SUM8(v) \
	((((v)[0] + (v)[1]) + ((v)[2] + (v)[3])) + (((v)[4] + (v)[5]) + ((v)[6] + (v)[7])))

struct model_kernels {
	const char *name;

	/* y[r][0..15] += sum over i < inner of x[r][i] * w[i][0..15]; rows <= MODEL_ROWS_MAX */
	void (*panel)(const float *x, size_t x_stride, uint32_t rows, uint32_t inner,
		      const uint16_t *w, size_t w_stride, float *y, size_t y_stride);

	/*
	 * scores[j] = q . k[j] for j < keys; q as model_split_query() left it, dim a multiple of
	 * 16.  Lane l of 16 takes the elements that are l in their group of 16; lanes 2 i and
	 * 2 i + 1 are added before MODEL_SUM8.
	 */
	void (*dots)(const float *q, uint32_t dim, const uint16_t *k, size_t k_stride,
		     uint32_t keys, float *scores);

	/* scores[j] = exp(scores[j] - greatest), room for a multiple of 8; returns the sum. */
	float (*softmax)(float *scores, uint32_t count);

	/* gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]; count a multiple of 8. */
	void (*silu)(float *gate, const float *up, size_t count);

	/* Sum of x[i]^2; count a multiple of 8. */
	float (*squares)(const float *x, uint32_t count);
};

/* The best that this processor runs; model_kernels_scalar() runs everywhere. */
const struct model_kernels *model_kernels_best(void);
const struct model_kernels *model_kernels_scalar(void);
const struct model_kernels *model_kernels_avx2(void); /* NULL: not on this processor */

/* In each group of 16, even elements first, then the odd ones: how bf16 pairs fall into lanes. */
void model_split_query(const float *q, uint32_t dim, float *ret);

/* bf16: the upper half of a float; rounding to nearest even, NaN stays NaN. */
static inline float model_from_bf16(uint16_t b)
{
	union {
		uint32_t u;
		float f;
	} x = { .u = (uint32_t)b << 16 };

	return x.f;
}

static inline uint16_t model_to_bf16(float f)
{
	union {
		float f;
		uint32_t u;
	} x = { .f = f };

	if ((x.u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(x.u >> 16 | 0x40);
	return (uint16_t)((x.u + 0x7fff + (x.u >> 16 & 1)) >> 16);
}

/* Constants of exp(), shared by both implementations: e^x = 2^n * e^r, |r| <= ln 2 / 2. */
#define MODEL_EXP_LOW -86.0f /* below, e^x counts as e^-86: no subnormals */
#define MODEL_EXP_HIGH 88.0f
#define MODEL_EXP_LOG2E 1.44269504088896341f
#define MODEL_EXP_LN2_HIGH 0.693359375f /* exact in 9 bits, so n times it is exact */
#define MODEL_EXP_LN2_LOW -2.12194440e-4f
#define MODEL_EXP_C6 1.3888889e-3f /* 1/6!, 1/5!, ...: the series is good to */
#define MODEL_EXP_C5 8.3333333e-3f /* 1e-7 for |r| <= 0.3466 */
#define MODEL_EXP_C4 4.1666667e-2f
#define MODEL_EXP_C3 1.6666667e-1f
#define MODEL_EXP_C2 0.5f

#endif
