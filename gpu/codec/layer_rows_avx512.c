/* SPDX-License-Identifier: Apache-2.0 */
/* layer_rows_avx512.c - layer_rows.inc for AVX512. */
#include <string.h>

#include "gpu/codec/internal.h"

#define ROWS(name) layer_avx512_##name
#include "gpu/codec/layer_rows.inc"
