/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_log.h - a trace through a host pool with the NVMe log behind it: what taking segments back costs in writes,
 * and what it keeps.
 */
#ifndef SKVCD_TOOLS_REPLAY_LOG_H
#define SKVCD_TOOLS_REPLAY_LOG_H

#include <stdint.h>

#include "tools/replay_trace.h"

#define REPLAY_LOG_COPY_PERCENT 50u /* the default of [nvme] copy_percent */

struct replay_log_options {
	uint32_t host_blocks, nvme_blocks;
	uint32_t segment_blocks;
	uint32_t copy_percent; /* 0: nothing is copied */
};

struct replay_log_result {
	uint64_t hits; /* blocks of leading prefixes, in either tier */
	uint64_t stored, copied, given_up;
};

/* 0, -ENOMEM, -EINVAL: fewer than 8 segments. */
int replay_log(const struct replay_trace *t, const struct replay_log_options *o,
	       struct replay_log_result *ret);

#endif
