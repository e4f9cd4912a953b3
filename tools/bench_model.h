/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_model.h - the `model` speculator for the benchmarks: dumps of KV cache with token ids, parameters fitted on
 * them, and what the codec makes of their blocks, sequence by sequence.  Errors go to stderr, a line each.
 */
#ifndef SKVCD_TOOLS_BENCH_MODEL_H
#define SKVCD_TOOLS_BENCH_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/model.h"
#include "tools/bench_predictor.h"

struct safetensors;

struct bench_dump {
	const char *path;
	struct safetensors *st; /* owned */
	uint32_t dtype;
	struct mspec_shape shape;
	uint32_t tokens_count;
	int32_t *ids;	 /* owned */
	int32_t *starts; /* owned; sequences_count + 1 */
	uint32_t sequences_count;
	float *scale_k, *scale_v; /* owned; NULL: 1 */
	const uint8_t **patterns; /* owned array; [2 * layers] */
	size_t row_bytes;
};

/* shape: what it has to be of; NULL: any.  0 or -errno; to be closed in any case. */
int bench_dump_open(const char *path, const struct mspec_shape *shape, struct bench_dump *d);
void bench_dump_close(struct bench_dump *d); /* zero-initialised is fine */
/* Says "path: whatname".  Returns -EINVAL. */
int bench_dump_bad(const struct bench_dump *d, const char *what, const char *name);

/* Parameters of one or more dumps, of each tokens_max (0: all) or a little more.  The options' type and scales are
 * the first dump's, and its shape says whether the model is a copy or a draft.  ret_bits: what they promise, per
 * scalar. */
int bench_model_fit(const struct mspec_model *m, const struct bench_dump *dumps,
		    uint32_t dumps_count, uint32_t tokens_max, const struct mspec_fit_options *o,
		    struct mspec_params **ret, double *ret_bits);

struct bench_model_coding {
	const struct mspec_params *params; /* for the dump's scales */
	double expected_bits;
	const struct mspec_runner *runner; /* may be NULL */
	const struct bench_dump
		*channel_on; /* where statistics to fall back on come from; NULL: the dump */
	uint32_t block;	     /* tokens */
	const struct bench_predictor_options *gpu; /* also there, after the CPU; NULL: not */
};

struct bench_model_totals {
	uint64_t blocks, fallbacks; /* not coded by MODEL in the end */
	uint64_t scalars, raw_bytes, coded_bytes, escapes;
	double ideal_bits; /* of the residual coder's tables, all blocks */
	double encode_s, decode_s;
	struct bench_predictor_results gpu;
};

/* Whole blocks of each sequence: encoded, decoded, compared; coded_bytes has all that the container adds. */
int bench_model_code(const struct bench_dump *d, const struct bench_model_coding *o,
		     struct bench_model_totals *ret);

#endif
