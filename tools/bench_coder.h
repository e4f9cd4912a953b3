/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_coder.h - how small and how fast blocks of a dump become: by the codec, by zstd on byte planes, and
 * not at all (memcpy).  What is decoded is compared with its source.
 */
#ifndef SKVCD_TOOLS_BENCH_CODER_H
#define SKVCD_TOOLS_BENCH_CODER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/bench_kv.h"

struct coder_bench {
	const struct kv_dump *kv; /* borrowed */
	uint32_t first, count;	  /* of its blocks: these are measured */
	double seconds;		  /* for each thing measured, at least */
	struct codec_workspace *ws;
	const struct codec_profile *profile; /* borrowed; the caller's to set, like the next */
	uint8_t speculator;
	uint8_t *coded; /* count * cap */
	size_t cap;
	size_t *coded_bytes;
	uint8_t *back; /* count blocks */
	/* results; seconds are medians of passes over all blocks */
	uint64_t encoded_total, escapes, chunks_raw, zstd_total;
	uint32_t verified;
	uint32_t fallbacks; /* blocks not coded by the speculator asked for */
	double encode_s, encode_verify_s, decode_s, memcpy_s, zstd_encode_s, zstd_decode_s;
};

/* Blocks from `first` on.  -ENOMEM. */
int coder_bench_init(struct coder_bench *b, const struct kv_dump *kv, uint32_t first,
		     double seconds);
void coder_bench_deinit(struct coder_bench *b); /* zero-initialised is fine */
/* verify: also measure encoding with CODEC_ENCODE_VERIFY.  -EBADMSG: a block came back other than it was. */
int coder_bench_codec(struct coder_bench *b, bool verify);
int coder_bench_zstd(struct coder_bench *b, int level);
int coder_bench_memcpy(struct coder_bench *b);
double coder_bench_scalars(const struct coder_bench *b); /* of all measured blocks */

#endif
