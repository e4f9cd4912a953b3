/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_sample.h - how much of a chain of blocks a fit of `model` looks at.  Chains are taken from their first block
 * on, and many begin alike (a system prompt): what one shares with those that were taken is taken again only for enough
 * that is new behind it.
 */
#ifndef SKVCD_DAEMON_MODEL_SAMPLE_H
#define SKVCD_DAEMON_MODEL_SAMPLE_H

#include <stdint.h>

#include "daemon/sequences.h"

/*
 * entry, positions [taken]: chains that were taken, one behind the other, each beginning at position 0.  most: new
 * blocks of one chain.  Returns how many of this one's `count`, from its start, to take; 0: too little of it is new.
 */
uint32_t model_sample_wants(const struct sequence_step *entry, const uint32_t *positions,
			    uint32_t taken, const struct sequence_block *chain, uint32_t count,
			    uint32_t most);

#endif
