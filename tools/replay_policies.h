/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_policies.h - what `skvc-bench replay` compares: each plays a whole trace with a cache of so many blocks.
 *
 * A request first looks up how long its prefix is there: those are its hits.  Then all its blocks are used,
 * or stored.  Where a policy knows only an order of uses, the request's last block counts as used first, so
 * that parents stay longer than their children: plain LRU in the other order is worse.
 */
#ifndef SKVCD_TOOLS_REPLAY_POLICIES_H
#define SKVCD_TOOLS_REPLAY_POLICIES_H

#include <stdint.h>

#include "tools/replay_trace.h"

struct replay_result {
	uint64_t hits;				      /* blocks of leading prefixes */
	uint64_t stores;			      /* blocks that were taken in */
	uint64_t refused;			      /* by an admission filter */
	double seconds;				      /* without setting up */
	double index_block_bytes, policy_block_bytes; /* of memory for each block; 0: not told */
};

struct replay_policy {
	const char *name, *title;
	/* With room for capacity blocks, at least 1.  0, -ENOMEM. */
	int (*run)(const struct replay_trace *t, uint32_t capacity, struct replay_result *r);
};

#define REPLAY_POLICIES 5u
#define REPLAY_DEFAULT 3u
#define REPLAY_OPTIMUM 4u
extern const struct replay_policy replay_policies[REPLAY_POLICIES];

int replay_lru(const struct replay_trace *t, uint32_t capacity, struct replay_result *r);
int replay_s3fifo(const struct replay_trace *t, uint32_t capacity, struct replay_result *r);
int replay_arc(const struct replay_trace *t, uint32_t capacity, struct replay_result *r);
int replay_daemon(const struct replay_trace *t, uint32_t capacity, struct replay_result *r);
int replay_optimum(const struct replay_trace *t, uint32_t capacity, struct replay_result *r);

/* Of a block's key: the same in every run, so that a table can be made again; the daemon's hash has a secret. */
uint64_t replay_hash(uint32_t block);
double replay_now(void); /* seconds of this thread on a core: others' work does not count */

#endif
