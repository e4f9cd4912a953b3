/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_tables.cuh - the residual coder's tables as the kernels take them.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_TABLES_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_TABLES_CUH

#include <string.h>

#include "gpu/codec/cuda_layer.cuh"
#include "gpu/codec/residual_rows.h"

static inline void tables_fill(struct gpu_layer_tables *out, const struct residual_tables *t)
{
	for (uint32_t c = 0; c < RESIDUAL_CLASSES; c++)
		for (uint32_t i = 0; i < CODEC_PROB_SUM; i++)
			out->token[c][i] = (uint8_t)(t->dec[c][i] >> CODEC_DEC_TOKEN_SHIFT &
						     CODEC_DEC_TOKEN_MASK);
	for (uint32_t c = 0; c < RESIDUAL_CLASSES; c++)
		memcpy(out->enc[c], t->enc[c], sizeof(t->enc[c]));
	memcpy(out->tau_dec, t->tau_dec, sizeof(out->tau_dec));
	memcpy(out->tau_enc, t->tau_enc, sizeof(t->tau_enc));
	for (uint32_t f = 0; f < CODEC_PROB_SUM; f++)
		out->rcp[f] = f > 1 ? (uint32_t)(((uint64_t)1 << 32) / f) : 0xffffffffu;
}

static inline void grids_fill(struct gpu_layer_grids *out, uint32_t dtype)
{
	for (int32_t i = 0; i < 256; i++)
		for (uint32_t column = 0; column < GRID_PITCH; column++) {
			const int32_t at = i + GRID_SCALE_FIRST,
				      scale = at < RESIDUAL_SCALE_MIN	? RESIDUAL_SCALE_MIN
					      : at > RESIDUAL_SCALE_MAX ? RESIDUAL_SCALE_MAX
									: at;
			/* Phase 0, but for a that has no bits there. */
			const uint32_t top = column ? column - 1u : 0;
			const uint32_t a = top < 31 ? 1u << top : RESIDUAL_MU_MAX;
			const struct residual_grid g = residual_grid(residual_type_of(dtype),
								     (int32_t)a, scale);
			const bool phased = g.class_ >= 28 && g.class_ < 52;
			const uint32_t phase = phased ? a >> (g.q - 2) & 3u : 0;
			const bool far = g.class_ >= 52;

			out->grid[i][column] =
				(int16_t)((uint32_t)(g.q - 2) | (far ? GRID_FAR : 0) |
					  (phased ? 3u : 0) << GRID_PHASE_SHIFT |
					  (far ? 0 : g.class_ - phase) << GRID_CLASS_SHIFT);
		}
}

#endif
