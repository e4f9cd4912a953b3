/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_loads_avx512.c - the AVX-512 kernels with plain loads; see cpu_avx512.inc.
 */
#define AVX512_LOADS 1
#include "gpu/codec/cpu_avx512.inc"
