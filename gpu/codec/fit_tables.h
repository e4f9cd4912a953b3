/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fit_tables.h - from histograms of channels to classes and frequency tables.  Pure arithmetic on
 * counts; floating point is allowed here, since what comes out is integers that are stored.
 */
#ifndef SKVCD_GPU_CODEC_FIT_TABLES_H
#define SKVCD_GPU_CODEC_FIT_TABLES_H

#include <stdint.h>

#include "gpu/codec/core.h"

#define FIT_CLASSES_MAX 4u
#define FIT_CHANNEL_COUNTS (CODEC_CONTEXTS * CODEC_TOKENS_PITCH)

/* Channels of one kind and element type, which share classes. */
struct fit_group {
	const uint16_t *const *counts; /* borrowed; channels_count x FIT_CHANNEL_COUNTS */
	uint32_t channels_count;
	uint32_t classes_max;  /* 1..FIT_CLASSES_MAX */
	uint32_t pattern_bits; /* what an escape costs besides its token */
	uint32_t shift;
	/* out */
	uint8_t context; /* tables per class: CODEC_CONTEXTS, else 1 */
	uint32_t classes_count;
	uint8_t *class_of; /* owned; channels_count */
	uint8_t width[FIT_CLASSES_MAX];
	uint16_t freq[FIT_CLASSES_MAX][CODEC_CONTEXTS][CODEC_TOKENS_COUNT];
	double bits; /* expected, all scalars of the sample */
	double scalars;
};

/* 0 or -ENOMEM; on error nothing is owned. */
int fit_group_solve(struct fit_group *group);

#endif
