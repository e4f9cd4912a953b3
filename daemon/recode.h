/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recode.h - blocks coded again: what the lane's other files call, and what recode.c and recode_chain.c share.
 */
#ifndef SKVCD_DAEMON_RECODE_H
#define SKVCD_DAEMON_RECODE_H

#include "daemon/lane_state.h"

/* recode.c */
int recode_idle(const struct lane *lane); /* has nobody wanted the machine for a moment? */
int recode_start(struct lane *lane);
void recode_stop(struct lane *lane);
int recode_wants(struct lane *lane, const struct block *b);
int recode_pending(struct lane *lane, const struct block *b);
unsigned recode_run(struct lane *lane);
int recode_busy(const struct lane *lane);
int recode_holds(const struct lane *lane, uint32_t block); /* a reference to it */
void recode_task_done(struct lane *lane, struct task *task);
int recode_make_way(
	struct lane *lane); /* nothing is held for it now: 1; a step runs, and ends soon: 0 */
int recode_waits(const struct lane *lane); /* look at it again soon, though nobody wakes the lane */
/* For recode_chain.c: is it to be coded with `model`, and may it be now? */
int recode_may_model(struct lane *lane, const struct block *b);
void recode_hold(struct lane *lane, uint32_t block, struct recode_place *ret_place);
void recode_unhold(struct lane *lane, uint32_t block, const struct recode_place *place);
int recode_smaller(const struct lane *lane, const struct block *b, const struct codec_info *info);
/* The record in the task's staging, checked, becomes the block's, unless somebody else holds it. */
void recode_commit(struct lane *lane, struct task *t, uint32_t block, uint8_t asked);

/* recode_chain.c */
void recode_chain_begin(struct lane *lane, uint32_t block); /* and those before it */
void recode_chain_stop(struct lane *lane);
unsigned recode_chain_run(struct lane *lane);
int recode_chain_make_way(struct lane *lane); /* see recode_make_way() */
void recode_chain_task_done(struct lane *lane, struct task *task);

#endif
