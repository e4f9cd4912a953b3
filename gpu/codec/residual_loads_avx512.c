/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_loads_avx512.c - the residual coder's AVX-512 kernels with plain loads; see
 * residual_avx512.inc.
 */
#define AVX512_LOADS 1
#include "gpu/codec/residual_avx512.inc"
