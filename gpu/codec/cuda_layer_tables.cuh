/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_tables.cuh - the residual coder's tables as the kernels take them.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_TABLES_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_TABLES_CUH

#include <string.h>

#include "gpu/codec/cuda_layer.cuh"
#include "gpu/codec/residual_rows.h"

/* Without the cost that the CPU keeps in an entry: frequency | start << 16. */
static inline uint32_t entry_bare(uint32_t enc)
{
	return enc & ~((uint32_t)RESIDUAL_ENC_COST_MASK << RESIDUAL_ENC_COST_SHIFT);
}

static inline void tables_fill(struct gpu_layer_tables *out, const struct residual_tables *t)
{
	for (uint32_t c = 0; c < RESIDUAL_CLASSES; c++)
		for (uint32_t i = 0; i < CODEC_PROB_SUM; i++)
			out->token[c][i] = (uint8_t)(t->dec[c][i] >> CODEC_DEC_TOKEN_SHIFT &
						     CODEC_DEC_TOKEN_MASK);
	for (uint32_t c = 0; c < RESIDUAL_CLASSES; c++)
		for (uint32_t i = 0; i < RESIDUAL_TOKENS; i++)
			out->enc[c][i] = entry_bare(t->enc[c][i]);
	memcpy(out->tau_dec, t->tau_dec, sizeof(out->tau_dec));
	for (uint32_t i = 0; i < RESIDUAL_TAU_SYMBOLS; i++)
		out->tau_enc[i] = entry_bare(t->tau_enc[i]);
}

#endif
