/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_avx512.c - the AVX-512 kernels with gathers; see cpu_avx512.inc.
 */
#define AVX512_LOADS 0
#include "gpu/codec/cpu_avx512.inc"
