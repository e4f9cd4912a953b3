/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_math.h - the tables of the `model` speculator: exponential, sigmoid, cosines and sines as
 * integers that are the same on every machine.
 *
 * Made from double precision sums, products and quotients alone, each of which IEEE 754 rounds in one
 * way; libm's functions differ between versions and are not used.  model_math.c is compiled without
 * contraction.  Threads: pure functions.
 */
#ifndef SKVCD_GPU_CODEC_MODEL_MATH_H
#define SKVCD_GPU_CODEC_MODEL_MATH_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/codec/model_core.h"

#define MODEL_EXP_ENTRIES (1u << MODEL_EXP_BITS)
#define MODEL_SIG_ENTRIES (((uint32_t)MODEL_SIG_RANGE << MODEL_SIG_STEP) + 1u)

struct model_tables {
	uint16_t exp[MODEL_EXP_ENTRIES + 1u]; /* the last is 0: vector code reads it */
	int32_t sigmoid[MODEL_SIG_ENTRIES];
};

void model_tables_fill(struct model_tables *t);

/* theta^(-i / half), i < half. */
void model_rope_frequencies(double theta, uint32_t half, double *ret);

/*
 * Cosines and sines of one position: ret[2 * i], ret[2 * i + 1].  coarse: first rounded to bf16, as engines
 * do that keep them in the model's type.
 */
void model_rope_row(const double *frequencies, uint32_t half, uint32_t position, bool coarse,
		    int32_t *ret);

#endif
