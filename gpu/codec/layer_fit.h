/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_fit.h - makes the `layer` section of a profile from a sample of raw blocks.
 *
 * Runs at low priority, on one thread at a time, in minutes for large geometries.  Floating point is for
 * fitting only: what it finds is frozen as integers.
 */
#ifndef SKVCD_GPU_CODEC_LAYER_FIT_H
#define SKVCD_GPU_CODEC_LAYER_FIT_H

#include <stdatomic.h>

#include "gpu/codec/layer_code.h"

struct layer_sample {
	const struct codec_geometry *g; /* borrowed, like the next two */
	const uint8_t *blocks;		/* blocks_count * g->raw_bytes, canonical packing */
	const uint32_t *positions;	/* of each block's first token */
	uint32_t blocks_count;
	const _Atomic(uint32_t) *cancel; /* set by another thread: stop; NULL: nobody will */
};

/* Asked for between steps of a second or two. */
static inline int layer_sample_cancelled(const struct layer_sample *s)
{
	return s->cancel && atomic_load_explicit(s->cancel, memory_order_relaxed);
}

/* How keys are turned. */
struct layer_rotary {
	uint32_t pairs; /* 0: they are not */
	uint8_t interleaved;
	uint8_t round_bf16;
	double theta;
};

/* From the sample alone: the rotary base that makes keys stand still.  -ENOMEM; -ECANCELED. */
int layer_rotary_find(const struct layer_sample *s, struct layer_rotary *ret);
/* Turns per token times 2^64 of pair i. */
uint64_t layer_rotary_freq(const struct layer_rotary *r, uint32_t i);

/* The parts of a section that are known before fitting, and the statistics at its end (-ENOMEM). */
void layer_section_fill(const struct layer_section *h, const struct layer_rotary *rotary,
			const struct residual_freqs *freqs, const struct layer_section_segment *s,
			uint8_t *section);
int layer_section_finish(uint8_t *section, const struct residual_counts *counts, uint64_t scalars);

/*
 * The same section for a cache whose stored values are those of the sample divided by ratio[segment]: an
 * fp8 cache under another scale.  p: the section, parsed.
 */
void layer_section_rescale(uint8_t *section, const struct layer_profile *p, const double *ratio);

/*
 * previous: layers looked back, 1 .. LAYER_PREVIOUS_MAX; 0: every channel is guessed by its mean alone.  The
 * section is 64-byte aligned, the caller's to free().  -ENODATA: fewer blocks than two; -EINVAL: nothing to
 * predict; -E2BIG: more inputs than a sum can have; -ENOMEM; -ECANCELED.
 */
int layer_fit(const struct layer_sample *s, const struct layer_rotary *rotary, uint32_t previous,
	      uint8_t **ret_section, size_t *ret_bytes);

#endif
