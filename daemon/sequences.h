/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequences.h - prefixes for `model`: what the lane's other files ask of sequences.c.
 */
#ifndef SKVCD_DAEMON_SEQUENCES_H
#define SKVCD_DAEMON_SEQUENCES_H

#include "daemon/lane_state.h"

/* The checksum, too: a place may outlast 65536 blocks of one number. */
struct sequence_block {
	uint32_t block, generation;
	uint64_t raw_xxh3;
};

int sequences_start(struct lane *lane);
void sequences_stop(struct lane *lane);
void sequences_run(struct lane *lane);
uint32_t sequences_blocks_max(const struct lane *lane, const struct namespace *ns);
int sequences_reachable(struct lane *lane, uint32_t block); /* is all of its prefix here? */
int sequences_gpu(const struct lane *lane); /* is there a place on the GPU, or will there be? */
/* The blocks before this one, first to last, in lane->path.  Their number; -ENODATA: one of them is gone; -E2BIG: too
 * many. */
int sequences_path(struct lane *lane, uint32_t block);
/*
 * A prefix to code this block after, with this profile: *pq if that is one already taken, else one that is taken now.
 * 1: it holds just the blocks before this one, and is free for a task; 0: not yet, ask again; -ENODATA, -ESTALE,
 * -EBADMSG: some of these are gone, or are others; -E2BIG: they are too many; -ENODEV: no model; -ENOMEM; -EIO.  *pq is
 * to be given back in any case.
 */
int sequences_take(struct lane *lane, struct lane_sequence **pq, uint32_t block,
		   struct ns_profile *np, int background);
/* A task goes on from it, with this block. */
void sequences_begin(struct lane *lane, struct lane_sequence *q, uint32_t block);
void sequences_end(struct lane *lane, struct lane_sequence *q, uint32_t block, int32_t res);
/* Forget this block, and those behind it. */
void sequences_back(const struct lane *lane, struct lane_sequence *q, uint32_t block);
void sequences_give_back(struct lane *lane, struct lane_sequence **pq); /* takes NULL in it */
void sequences_task_done(struct lane *lane, struct task *task);

#endif
