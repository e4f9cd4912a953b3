/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy_worth.h - what a block of a class and an age is worth, from what a sample of the keys did.  Part of policy.c;
 * time is counted in uses of blocks.
 */
#ifndef SKVCD_DAEMON_POLICY_WORTH_H
#define SKVCD_DAEMON_POLICY_WORTH_H

#include <stdint.h>

#define WORTH_CLASSES 8u
#define WORTH_BINS 56u /* of age, two for each power of two */

struct worth;

/* Memory for a cache of up to so many blocks. */
int worth_new(uint32_t blocks_max, struct worth **ret_worth);
struct worth *worth_free(struct worth *w);
/* So many blocks are in the cache now: that decides how large a sample is needed. */
void worth_set_blocks(struct worth *w, uint32_t blocks);
/* A block was used: it is of this class from now on, until it is used again. */
void worth_use(struct worth *w, uint64_t hash, uint32_t class, uint32_t now);
/* Uses per use of the cache that one block's room brings; comparable among classes and ages. */
float worth_of(const struct worth *w, uint32_t class, uint32_t age);
/* Of a block that was just used, to be used again before this age. */
float worth_chance(const struct worth *w, uint32_t class, uint32_t age);
uint64_t worth_bytes(const struct worth *w);

#endif
