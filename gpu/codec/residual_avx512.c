/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_avx512.c - the residual coder's AVX-512 kernels with gathers; see residual_avx512.inc.
 */
#define AVX512_LOADS 0
#include "gpu/codec/residual_avx512.inc"
