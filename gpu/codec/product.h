/* SPDX-License-Identifier: Apache-2.0 */
/*
 * product.h - exact integer matrix products, what the predictors are made of.
 *
 * A sum is the same whatever order it is taken in, so every instruction set gives the same numbers.
 * Both factors lie row by row along k, as a token's activations and an output's weights do.  Which
 * kernel runs is codec_isa_set's choice.  One thread; no allocation; no alignment is asked for.
 */
#ifndef SKVCD_GPU_CODEC_PRODUCT_H
#define SKVCD_GPU_CODEC_PRODUCT_H

#include <stddef.h>
#include <stdint.h>

#define PRODUCT_K_MAX 131071u /* terms whose sum fits whatever they are */

/* out[r][o] = sum of a[r][i] * w[o][i] over i < k.
 * a: [rows], a_pitch from one to the next; w: [outputs][k]; out: [rows][outputs].  k <= PRODUCT_K_MAX. */
void product_i8(const int8_t *a, size_t a_pitch, const int8_t *w, uint32_t rows, uint32_t outputs,
		uint32_t k, int32_t *out);

#endif
