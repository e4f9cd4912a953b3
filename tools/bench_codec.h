/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_codec.h - parts of `skvc-bench codec`: what runs on a GPU, or on the simulated one, through
 * gpu/device.h alone; and what is coded block after block.
 */
#ifndef SKVCD_TOOLS_BENCH_CODEC_H
#define SKVCD_TOOLS_BENCH_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"
#include "gpu/model/report.h"
#include "tools/bench_model_point.h"

struct codec_gpu_options {
	bool sim;
	const char *which;	/* of gpu_device_options */
	const char *library;	/* with the CUDA device; NULL: the one of the build */
	uint64_t copies;	/* of the blocks given; 0: as many as `bytes` takes */
	uint64_t bytes;		/* raw, at least */
	uint64_t staging_bytes; /* device memory for payloads in flight */
	double seconds;		/* for each thing measured, at least */
};

/* What is coded, and what the CPU made of it.  All borrowed for the call. */
struct codec_gpu_input {
	const struct codec_geometry *g;
	const struct codec_profile *profile; /* may be NULL */
	uint8_t speculator;
	const uint32_t *positions; /* of the blocks; NULL: nobody knows */
	const uint8_t *blocks;	   /* canonical packing */
	uint32_t count;
	const uint8_t *coded; /* count * cap */
	const size_t *coded_bytes;
	size_t cap;
};

/* Medians of passes over all blocks.  busy: the GPU's time; wall: with starting, polling and waiting. */
struct codec_gpu_time {
	double busy_s, wall_s;
	uint32_t passes;
};

struct codec_gpu_results {
	char name[16];	/* of the device: "cuda", "sim" */
	char model[64]; /* of the card */
	uint64_t staging_bytes, footprint_bytes;
	uint32_t blocks; /* all copies */
	uint64_t raw_bytes, encoded_bytes;
	uint64_t escapes, chunks_raw;
	uint32_t compared;  /* payloads, against the CPU's of the same block */
	uint32_t identical; /* of these */
	uint32_t verified;  /* blocks decoded and equal to their source */
	struct codec_gpu_time encode, encode_verify, decode;
};

/* 0, or -errno with a line in r.  -EBADMSG: a block came back other than it was. */
int bench_codec_gpu(const struct codec_gpu_options *o, const struct codec_gpu_input *in,
		    struct codec_gpu_results *ret, const struct report *r);

/* The same for the `model` speculator, on the CPU; prints.  0, or -errno with a line on stderr. */
int bench_codec_model(const struct bench_model_ask *ask, bool json);

/* Path of the shared object with the CUDA device, beside this program: bin/../lib/skvcd/. */
void bench_cuda_library(char *ret, size_t ret_bytes);

#endif
