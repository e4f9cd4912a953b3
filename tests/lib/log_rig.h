/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log_rig.h - an NVMe log on a real file in a folder of its own, with a ring, a registered buffer and
 * operations, for tests that drive it step by step.
 */
#ifndef SKVCD_TESTS_LIB_LOG_RIG_H
#define SKVCD_TESTS_LIB_LOG_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/nvme_log.h"
#include "daemon/util/clock.h"

#define MIB (1ull << 20)
#define MS CLOCK_NS_PER_MS
#define LOG_RIG_BLOCKS 512u
#define LOG_RIG_OPS 24u
#define LOG_RIG_DEPTH 16u
#define LOG_RIG_ALIGN 4096u
#define LOG_RIG_RECORD_BYTES (64u << 10)
#define LOG_RIG_RETRY_NS (30 * MS)

/* A sanitizer slows everything down; a bound in time is then only about hanging. */
#ifdef SKVCD_SAN
#define LOG_RIG_SLOW 10u
#else
#define LOG_RIG_SLOW 1u
#endif

struct log_rig_op {
	struct nvme_op op;
	uint8_t *buf; /* LOG_RIG_RECORD_BYTES of the registered memory */
	uint32_t bytes;
	uint32_t content; /* what was put into buf, or ought to come */
	unsigned done;	  /* times done() was called since it was started */
	int res;
	bool busy;
};

/* What the log must know of a block. */
struct log_rig_block {
	uint32_t content; /* of the record that it holds, or is getting */
	uint32_t bytes;
	uint32_t life; /* one more at each append, forget and eviction */
	bool writing, held;
};

struct log_rig {
	char dir[64], path[96], err[256];
	struct nvme_log_options options;
	struct uring *u;
	struct stats *stats;
	struct nvme_log *log;
	struct log_rig_op ops[LOG_RIG_OPS];
	uint8_t *memory;
	struct log_rig_block model[LOG_RIG_BLOCKS];
	unsigned evicted, failed, cancelled;
	uint32_t evict_forgets; /* evict() forgets this block too, when set */
};

/* A folder, options, memory; then a ring (skips the test where there is none); then the log. */
void log_rig_dir(struct log_rig *rig);
void log_rig_ring(struct log_rig *rig);
int log_rig_open(struct log_rig *rig);	 /* of nvme_log_open(); the line in rig->err */
void log_rig_close(struct log_rig *rig); /* log and ring; to be opened again */
/* All of it; skips the test where the filesystem has no direct I/O. */
void log_rig_setup_retry(struct log_rig *rig, uint64_t retry_ns);
void log_rig_setup(struct log_rig *rig);
void log_rig_teardown(struct log_rig *rig); /* whatever there is */

void log_rig_fault(struct log_rig *rig, const char *spec);
void log_rig_turn(struct log_rig *rig, uint64_t wait_ns); /* sleep at most so long, reap */
void log_rig_drain(struct log_rig *rig); /* until nothing is in flight; fails after 20 s */

/* Queue and return what the log said; rig->ops[].busy until done. */
int log_rig_start_append(struct log_rig *rig, struct log_rig_op *t, uint32_t block, uint32_t bytes,
			 uint32_t content);
int log_rig_start_read(struct log_rig *rig, struct log_rig_op *t, uint32_t block);
/* Queue, wait, and what came of it.  They use ops[0] and ops[1]. */
int log_rig_append(struct log_rig *rig, uint32_t block, uint32_t bytes, uint32_t content);
int log_rig_read(struct log_rig *rig, uint32_t block);

/* A sealed record for this place in a log, `bytes` in all, of content that its key makes; is it there, whole? */
void log_rig_make_record(uint8_t *buf, uint32_t bytes, uint32_t key, uint64_t log_id,
			 uint64_t sequence);
bool log_rig_is_record(const uint8_t *buf, uint32_t bytes, uint32_t key);

bool log_rig_is(const uint8_t *p, uint32_t bytes,
		uint32_t content); /* the bytes of that content? */

#endif
