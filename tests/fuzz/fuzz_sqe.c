/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_sqe.c - a ring entry and its argument list, as a hostile client may write them: whatever passes the
 * checks must keep every offset inside the list and the list inside the area.
 *
 * Input: 64 bytes entry, u32 block_tokens, u32 size of the argument area, then the list's bytes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ipc/sqe_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int condition)
{
	if (!condition)
		abort();
}

static void check_parts(const struct skvc_abi_sqe *e, const struct sqe_args *a, uint32_t area_bytes)
{
	must(a->total_bytes == e->args_bytes);
	must((uint64_t)e->args_rel + a->total_bytes <= area_bytes);
	must(a->keys_count <= SKVC_ABI_BLOCKS_MAX && a->blocks_count <= SKVC_ABI_BLOCKS_MAX);
	must(a->tokens_count <= SKVC_ABI_TOKENS_MAX);
	must(a->keys_off + (uint64_t)a->keys_count * sizeof(struct skvc_abi_key) == a->blocks_off);
	must(a->blocks_off + (uint64_t)a->blocks_count * 4 == a->tokens_off);
	must(a->tokens_off + (uint64_t)a->tokens_count * 4 == a->total_bytes);
	must(a->keys_off == (e->flags & SKVC_ABI_SQE_PARENT ? sizeof(struct skvc_abi_key) : 0));
	must((uint64_t)e->result_rel + e->result_bytes <= area_bytes);
	if (e->result_bytes)
		must(e->result_bytes >= (e->count + 63) / 64 * 8 && e->result_rel % 8 == 0);
}

/* Keys that pass are equal exactly when their bytes are: nothing hides in a tail. */
static void check_keys(const uint8_t *list, size_t list_bytes, const struct sqe_args *a)
{
	for (uint32_t i = 0; i < a->keys_count; i++) {
		size_t off = a->keys_off + (size_t)i * sizeof(struct skvc_abi_key);
		struct skvc_abi_key key;

		if (off + sizeof(key) > list_bytes)
			return;
		memcpy(&key, list + off, sizeof(key));
		if (sqe_check_key(&key) != SKVC_ABI_REASON_NONE)
			continue;
		must(key.len >= 16 && key.len <= 32 && !key.reserved[0]);
		for (uint32_t k = key.len; k < 32; k++)
			must(!key.bytes[k]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t block_tokens, area_bytes;
	struct skvc_abi_sqe e;
	struct sqe_args a;

	if (size < sizeof(e) + 8)
		return 0;
	memcpy(&e, data, sizeof(e));
	memcpy(&block_tokens, data + sizeof(e), 4);
	memcpy(&area_bytes, data + sizeof(e) + 4, 4);
	/* Safe on any entry, checked before or not. */
	memset(&a, 0xa5, sizeof(a));
	if (sqe_check_args(&e, block_tokens, area_bytes, &a) != SKVC_ABI_REASON_NONE)
		must(a.total_bytes == 0xa5a5a5a5u);
	if (sqe_check(&e, area_bytes) != SKVC_ABI_REASON_NONE)
		return 0;
	must(e.opcode < SKVC_ABI_OP_COUNT && !e.reserved0);
	if (e.opcode == SKVC_ABI_OP_STORE)
		must(!skvc_abi_done_event(e.arg));
	if (sqe_check_args(&e, block_tokens, area_bytes, &a) != SKVC_ABI_REASON_NONE)
		return 0;
	check_parts(&e, &a, area_bytes);
	check_keys(data + sizeof(e) + 8, size - sizeof(e) - 8, &a);
	return 0;
}
