/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_avx2.c - the loops of the `model` speculator as vectors of 256 bits, made by the compiler.
 */
#include "gpu/codec/internal.h"
#include "gpu/codec/model_internal.h"

#if defined(__x86_64__)
#include <string.h>

#ifndef __clang__ /* which makes vectors at any level */
#pragma GCC optimize("O3,vect-cost-model=dynamic")
#endif
#define MSPEC_PLAIN
#include "gpu/codec/model_loops.inc"

const struct mspec_kernels mspec_kernels_avx2 = {
	.name = "avx2",
	.product = product_avx2_i8,
	.attend = attend,
	MSPEC_ROW_KERNELS,
};
#endif
