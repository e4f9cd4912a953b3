/* SPDX-License-Identifier: Apache-2.0 */
/*
 * product.c - integer matrix products: the scalar kernels, and the way to the others.
 */
#include "gpu/codec/product.h"

#include <assert.h>

#include "gpu/codec/internal.h"

void product_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows, uint32_t outputs,
		uint32_t k, int32_t *out)
{
	assert(k <= PRODUCT_K_MAX);
	codec_kernels_get()->product_i8(a, a_pitch, w, rows, outputs, k, out);
}

void product_scalar_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows,
		       uint32_t outputs, uint32_t k, int32_t *out)
{
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t o = 0; o < outputs; o++) {
			const int8_t *x = a + r * a_pitch, *y = w + (size_t)o * k;
			int32_t sum = 0;

			for (uint32_t i = 0; i < k; i++)
				sum += x[i] * y[i];
			out[(size_t)r * outputs + o] = sum;
		}
}
