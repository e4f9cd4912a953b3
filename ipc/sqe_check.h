/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sqe_check.h - is this submission entry well formed?  Pure functions over private copies: they look at
 * no shared memory and know no session; whether a handle exists is the daemon's business.
 */
#ifndef SKVCD_IPC_SQE_CHECK_H
#define SKVCD_IPC_SQE_CHECK_H

#include <stdint.h>

#include "ipc/abi.h"

/* Where the parts of an argument list lie, bytes from its start; counts of zero when absent. */
struct sqe_args {
	uint32_t parent_off; /* valid with SQE_PARENT */
	uint32_t keys_off;
	uint32_t keys_count;
	uint32_t blocks_off;
	uint32_t blocks_count;
	uint32_t tokens_off;
	uint32_t tokens_count;
	uint32_t total_bytes;
};

/*
 * Check everything that depends on the entry alone: opcode, flags that the opcode takes, reserved and
 * unused fields zero, count and its limits, result area inside [0, args_area_bytes).
 * Returns SKVC_ABI_REASON_NONE or the first thing that is wrong.
 */
enum skvc_abi_reason sqe_check(const struct skvc_abi_sqe *sqe, uint64_t args_area_bytes);

/*
 * The layout that the entry's argument list must have, given the namespace's block_tokens (needed with
 * SQE_TOKENS, else any).  Returns NONE, BAD_COUNT (token limit) or BAD_ARGS (args_bytes is not exactly
 * the total, or the list leaves the area).
 */
enum skvc_abi_reason sqe_check_args(const struct skvc_abi_sqe *sqe, uint32_t block_tokens,
				    uint64_t args_area_bytes, struct sqe_args *ret_args);

/* A copied key: length 16..32, unused tail and reserved bytes zero. */
enum skvc_abi_reason sqe_check_key(const struct skvc_abi_key *key);

#endif
