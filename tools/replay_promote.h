/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_promote.h - a trace through two tiers under the daemon's policy: which blocks are found where, by what becomes
 * of one that is found on NVMe.  Blocks are of one size, and lie in one tier at a time.
 */
#ifndef SKVCD_TOOLS_REPLAY_PROMOTE_H
#define SKVCD_TOOLS_REPLAY_PROMOTE_H

#include <stdint.h>

#include "tools/replay_trace.h"

/* Is it kept in host memory? */
enum replay_promotion {
	REPLAY_PROMOTE_ALWAYS, /* as the daemon does */
	REPLAY_PROMOTE_WORTH,  /* if it is worth no less than what it displaces */
	REPLAY_PROMOTE_THIRD,  /* from its third use on, the store being the first */
	REPLAY_PROMOTE_NEVER,
	REPLAY_PROMOTIONS
};

extern const char *const replay_promotion_names[REPLAY_PROMOTIONS];

/* Blocks of leading prefixes. */
struct replay_promote_result {
	uint64_t host, nvme;
};

/* 0, -ENOMEM. */
int replay_promote(const struct replay_trace *t, enum replay_promotion rule, uint32_t host_blocks,
		   uint32_t nvme_blocks, struct replay_promote_result *ret);

#endif
