/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sqe_check.c - what a well-formed submission entry looks like, as one table and the checks that read it.
 *
 * Pure functions over private copies, called by the lane and by nobody else in production; fuzzed as they
 * are.  All sums are done in 64 bits over 32-bit inputs whose counts are bounded first, so none can wrap.
 */
#include "ipc/sqe_check.h"

#include <stdbool.h>

/* Which of an entry's fields an operation uses; every other one must be zero. */
struct sqe_shape {
	uint8_t flags; /* that may be set */
	bool ns;
	bool keys;   /* count keys in the argument list */
	bool blocks; /* count block indices, a region, and results */
	bool lease;
	bool ttl;   /* arg is a time to live */
	bool job;   /* arg is a user_data */
	bool first; /* first, skip_tokens */
	bool ready; /* low half of arg is an event handle, or 0 */
	bool done;  /* and so is the high half */
};

static const struct sqe_shape sqe_shapes[SKVC_ABI_OP_COUNT] = {
	[SKVC_ABI_OP_NOP] = { 0 },
	[SKVC_ABI_OP_LOOKUP] = {
		.flags = SKVC_ABI_SQE_TOKENS | SKVC_ABI_SQE_PARENT,
		.ns = true, .keys = true, .ttl = true,
	},
	[SKVC_ABI_OP_LOAD] = {
		.flags = SKVC_ABI_SQE_LAYER_PROGRESS,
		.blocks = true, .lease = true, .first = true, .ready = true, .done = true,
	},
	[SKVC_ABI_OP_STORE] = {
		.flags = SKVC_ABI_SQE_TOKENS | SKVC_ABI_SQE_PARENT,
		.ns = true, .keys = true, .blocks = true, .ready = true,
	},
	[SKVC_ABI_OP_RELEASE] = { .lease = true },
	[SKVC_ABI_OP_TOUCH] = { .ns = true, .keys = true },
	[SKVC_ABI_OP_DROP] = { .ns = true, .keys = true },
	[SKVC_ABI_OP_PIN] = { .ns = true, .keys = true, .ttl = true },
	[SKVC_ABI_OP_ABORT] = { .job = true },
};

static bool in_area(uint32_t rel, uint64_t bytes, uint64_t area_bytes)
{
	return bytes <= area_bytes && rel <= area_bytes - bytes;
}

/* Fields outside the shape are zero: what is unused today can get a meaning tomorrow. */
static bool unused_are_zero(const struct skvc_abi_sqe *sqe, const struct sqe_shape *shape)
{
	bool args = shape->keys || shape->blocks;

	if (sqe->reserved0)
		return false;
	if (!shape->ns && sqe->ns)
		return false;
	if (!args && (sqe->count || sqe->args_rel || sqe->args_bytes))
		return false;
	if (!shape->blocks && (sqe->region || sqe->result_rel || sqe->result_bytes))
		return false;
	if (!shape->lease && sqe->lease)
		return false;
	if (!shape->first && (sqe->first || sqe->skip_tokens))
		return false;
	if (!shape->ttl && !shape->job &&
	    ((!shape->ready && skvc_abi_ready_event(sqe->arg)) ||
	     (!shape->done && skvc_abi_done_event(sqe->arg))))
		return false;
	return true;
}

static enum skvc_abi_reason check_result(const struct skvc_abi_sqe *sqe, uint64_t args_area_bytes)
{
	bool progress = sqe->flags & SKVC_ABI_SQE_LAYER_PROGRESS;
	uint32_t words = (sqe->count + 63) / 64 + (progress ? 1 : 0);

	if (!sqe->result_bytes)
		return progress || sqe->result_rel ? SKVC_ABI_REASON_BAD_RESULT
						   : SKVC_ABI_REASON_NONE;
	if (sqe->result_bytes != words * 8 || sqe->result_rel % 8)
		return SKVC_ABI_REASON_BAD_RESULT;
	if (!in_area(sqe->result_rel, sqe->result_bytes, args_area_bytes))
		return SKVC_ABI_REASON_BAD_RESULT;
	return SKVC_ABI_REASON_NONE;
}

enum skvc_abi_reason sqe_check(const struct skvc_abi_sqe *sqe, uint64_t args_area_bytes)
{
	const struct sqe_shape *shape;

	if (sqe->opcode >= SKVC_ABI_OP_COUNT)
		return SKVC_ABI_REASON_BAD_OPCODE;
	shape = &sqe_shapes[sqe->opcode];
	if (sqe->flags & ~shape->flags)
		return SKVC_ABI_REASON_BAD_FLAGS;
	if (!unused_are_zero(sqe, shape))
		return SKVC_ABI_REASON_BAD_RESERVED;
	if (shape->keys || shape->blocks)
		if (!sqe->count || sqe->count > SKVC_ABI_BLOCKS_MAX)
			return SKVC_ABI_REASON_BAD_COUNT;
	if (shape->first &&
	    (sqe->first >= SKVC_ABI_BLOCKS_MAX || sqe->count > SKVC_ABI_BLOCKS_MAX - sqe->first ||
	     sqe->skip_tokens >= SKVC_ABI_BLOCK_TOKENS_MAX))
		return SKVC_ABI_REASON_BAD_COUNT;
	if (shape->ns && !sqe->ns)
		return SKVC_ABI_REASON_BAD_NAMESPACE;
	if (shape->blocks && !sqe->region)
		return SKVC_ABI_REASON_BAD_REGION;
	if (shape->lease && !sqe->lease)
		return SKVC_ABI_REASON_LEASE_GONE;
	if (shape->ttl && sqe->arg > SKVC_ABI_TTL_NS_MAX)
		return SKVC_ABI_REASON_BAD_TTL;
	return shape->blocks ? check_result(sqe, args_area_bytes) : SKVC_ABI_REASON_NONE;
}

enum skvc_abi_reason sqe_check_args(const struct skvc_abi_sqe *sqe, uint32_t block_tokens,
				    uint64_t args_area_bytes, struct sqe_args *ret_args)
{
	const struct sqe_shape *shape;
	struct sqe_args args = { 0 };
	uint64_t total_bytes = 0;

	/* Safe on any entry, although callers come here through sqe_check(). */
	if (sqe->opcode >= SKVC_ABI_OP_COUNT)
		return SKVC_ABI_REASON_BAD_ARGS;
	shape = &sqe_shapes[sqe->opcode];
	if (sqe->count > SKVC_ABI_BLOCKS_MAX)
		return SKVC_ABI_REASON_BAD_COUNT;

	if (sqe->flags & SKVC_ABI_SQE_PARENT)
		total_bytes += sizeof(struct skvc_abi_key);
	args.keys_off = (uint32_t)total_bytes;
	args.keys_count = shape->keys ? sqe->count : 0;
	total_bytes += (uint64_t)args.keys_count * sizeof(struct skvc_abi_key);
	args.blocks_off = (uint32_t)total_bytes;
	args.blocks_count = shape->blocks ? sqe->count : 0;
	total_bytes += (uint64_t)args.blocks_count * sizeof(uint32_t);
	args.tokens_off = (uint32_t)total_bytes;
	if (sqe->flags & SKVC_ABI_SQE_TOKENS) {
		uint64_t tokens = (uint64_t)sqe->count * block_tokens;

		if (!block_tokens || tokens > SKVC_ABI_TOKENS_MAX)
			return SKVC_ABI_REASON_BAD_COUNT;
		args.tokens_count = (uint32_t)tokens;
		total_bytes += tokens * sizeof(uint32_t);
	}

	if (total_bytes != sqe->args_bytes || total_bytes > SKVC_ABI_ARGS_BYTES_MAX)
		return SKVC_ABI_REASON_BAD_ARGS;
	if (sqe->args_rel % 8 || !in_area(sqe->args_rel, total_bytes, args_area_bytes))
		return SKVC_ABI_REASON_BAD_ARGS;
	args.total_bytes = (uint32_t)total_bytes;
	*ret_args = args;
	return SKVC_ABI_REASON_NONE;
}

enum skvc_abi_reason sqe_check_key(const struct skvc_abi_key *key)
{
	uint8_t rest = 0;

	if (key->len < SKVC_ABI_KEY_BYTES_MIN || key->len > SKVC_ABI_KEY_BYTES)
		return SKVC_ABI_REASON_BAD_KEY;
	for (uint32_t i = key->len; i < SKVC_ABI_KEY_BYTES; i++)
		rest |= key->bytes[i];
	for (uint32_t i = 0; i < sizeof(key->reserved); i++)
		rest |= key->reserved[i];
	return rest ? SKVC_ABI_REASON_BAD_KEY : SKVC_ABI_REASON_NONE;
}
