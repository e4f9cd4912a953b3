/* SPDX-License-Identifier: Apache-2.0 */
/* layer_rows_avx2.c - layer_rows.inc for AVX2. */
#include <string.h>

#include "gpu/codec/internal.h"

#define ROWS(name) layer_avx2_##name
#include "gpu/codec/layer_rows.inc"
