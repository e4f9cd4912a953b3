/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_data.h - `skvc-bench replay --kv`: a trace with bytes, through a daemon of its own.  Each block of the
 * trace is one of the daemon's, made of real KV cache; what comes back is compared with what was stored.
 */
#ifndef SKVCD_TOOLS_REPLAY_DATA_H
#define SKVCD_TOOLS_REPLAY_DATA_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "tools/bench_offload.h"
#include "tools/replay_trace.h"

struct replay_data_options {
	struct offload_options offload; /* kv, shape, block_tokens and settings are the caller's */
	uint32_t step;			/* blocks asked for at a time; 0: a whole request's */
	double percent, nvme_percent;	/* of the raw bytes of all different blocks; NVMe 0: none */
};

struct replay_data_times {
	uint32_t count;
	double p50_us, p99_us, sum_s;
};

struct replay_data_result {
	double percent;
	uint64_t pool_bytes, nvme_bytes, block_bytes; /* of a block: raw */
	uint64_t asked, host, nvme; /* blocks: in all lookups, and where they were found */
	uint64_t verified, lost;    /* of those found: restored and compared, or not to be had */
	uint64_t stored, refused;
	uint64_t stored_raw_bytes, stored_bytes;
	uint64_t nvme_first_bytes, nvme_written_bytes; /* first copies of blocks, and all */
	uint64_t ahead, ahead_used;		       /* blocks that were read ahead */
	double seconds, waited_s;		       /* the whole of it; of this, for room */
	/* Calls; loads from memory alone, and loads that had to wait for NVMe; with their lookup in the sum. */
	struct replay_data_times lookup, load_host, load_nvme, store;
	uint64_t load_host_blocks, load_nvme_blocks;
};

/* What a trace's block holds: real KV cache, and its number in the place of the first values. */
void replay_data_block(const struct kv_tile *tile, uint32_t number, uint8_t *out);
/* Is it that?  scratch: of a block's size. */
bool replay_data_is(const struct kv_tile *tile, uint32_t number, const uint8_t *bytes,
		    uint8_t *scratch);

/* 0, or -errno with a line in err: -EBADMSG when a load said yes and the bytes are others. */
int replay_data_run(const struct replay_trace *t, const struct replay_data_options *o,
		    struct replay_data_result *ret, char err[REPORT_BYTES]);

void replay_data_print(const struct replay_data_result *r, uint32_t count, FILE *out);
int replay_data_json(const struct replay_data_result *r, uint32_t count,
		     FILE *out); /* 0, -ENOMEM */

#endif
