/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_predictor.h - the `model` speculator on a GPU, or a simulated one, through gpu/device.h alone: blocks of
 * sequences, all of them under way together, and what the CPU made of them to compare with.
 */
#ifndef SKVCD_TOOLS_BENCH_PREDICTOR_H
#define SKVCD_TOOLS_BENCH_PREDICTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"

struct bench_predictor_options {
	bool sim;
	const char *which;   /* of the GPUs */
	const char *library; /* with the CUDA device; NULL: the one of the build */
	uint32_t copies;     /* of all sequences, at a time; not 0 */
	uint32_t tokens;     /* that go through the model at a time; not 0 */
	double seconds;	     /* for each thing measured, at least */
};

/* Of one sequence after the other, each from position 0 on.  Owned by the list. */
struct bench_predictor_block {
	uint8_t *raw;	/* canonical packing */
	uint8_t *coded; /* by the CPU */
	size_t coded_bytes;
	uint64_t raw_xxh3;
	uint32_t position;
	const int32_t *ids; /* borrowed */
};

struct bench_predictor_blocks {
	struct bench_predictor_block *block; /* owned */
	uint32_t count, cap;
};

/* Copies raw and coded; -ENOMEM. */
int bench_predictor_keep(struct bench_predictor_blocks *b, const struct codec_geometry *g,
			 const uint8_t *raw, const uint8_t *coded, const struct codec_info *info,
			 uint32_t position, const int32_t *ids);
void bench_predictor_forget(struct bench_predictor_blocks *b);

struct bench_predictor_results {
	char name[16];
	uint32_t sequences, blocks; /* all copies */
	uint64_t raw_bytes;
	uint32_t identical; /* of `blocks`: the payload is the CPU's */
	uint32_t verified;  /* decoded and equal to their source */
	double encode_s,
		decode_s; /* of all blocks, host memory to host memory: medians of passes */
	double prefix_s;  /* decoded as others' prefix alone */
	uint32_t passes;
};

/* 0, or -errno after a line on stderr. */
int bench_predictor_run(const struct bench_predictor_options *o, const struct codec_geometry *g,
			const struct codec_profile *profile, const struct bench_predictor_blocks *b,
			struct bench_predictor_results *ret);

#endif
