/* SPDX-License-Identifier: Apache-2.0 */
/* layer_rows.c - layer_rows.inc for any processor. */
#include <string.h>

#include "gpu/codec/internal.h"

#define ROWS(name) layer_scalar_##name
#include "gpu/codec/layer_rows.inc"
