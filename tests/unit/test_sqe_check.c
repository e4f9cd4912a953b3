/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sqe_check.c - one good entry of each operation, and everything that can be wrong with it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "ipc/sqe_check.h"

#define AREA 65536u
#define TOKENS 16u
#define KEY_BYTES 40u

static struct skvc_abi_sqe good(uint8_t opcode)
{
	struct skvc_abi_sqe e = { .opcode = opcode, .user_data = 1 };

	switch (opcode) {
	case SKVC_ABI_OP_LOOKUP:
		e.flags = SKVC_ABI_SQE_TOKENS | SKVC_ABI_SQE_PARENT;
		e.ns = 1;
		e.count = 3;
		e.args_rel = 64;
		e.args_bytes = 4 * KEY_BYTES + 3 * TOKENS * 4;
		e.arg = SKVC_ABI_TTL_NS_MAX;
		break;
	case SKVC_ABI_OP_LOAD:
		e.flags = SKVC_ABI_SQE_LAYER_PROGRESS;
		e.region = 2;
		e.lease = 1ull << 32;
		e.count = 65;
		e.args_bytes = 65 * 4;
		e.first = SKVC_ABI_BLOCKS_MAX - 65;
		e.skip_tokens = 15;
		e.result_rel = AREA - 24;
		e.result_bytes = 24;
		break;
	case SKVC_ABI_OP_STORE:
		e.flags = SKVC_ABI_SQE_TOKENS;
		e.ns = 1;
		e.region = 2;
		e.count = 64;
		e.args_bytes = 64 * (KEY_BYTES + 4 + TOKENS * 4);
		e.result_rel = 8192;
		e.result_bytes = 8;
		break;
	case SKVC_ABI_OP_RELEASE:
		e.lease = 7;
		break;
	case SKVC_ABI_OP_PIN:
		e.arg = 1;
		/* fallthrough */
	case SKVC_ABI_OP_TOUCH:
	case SKVC_ABI_OP_DROP:
		e.ns = 1;
		e.count = 2;
		e.args_bytes = 2 * KEY_BYTES;
		break;
	case SKVC_ABI_OP_ABORT:
		e.arg = 99;
		break;
	default:
		break;
	}
	return e;
}

static void takes_good_entries(void **state)
{
	struct sqe_args args;

	(void)state;
	for (unsigned o = 0; o < SKVC_ABI_OP_COUNT; o++) {
		uint8_t op = (uint8_t)o;
		struct skvc_abi_sqe e = good(op);

		assert_int_equal(sqe_check(&e, AREA), SKVC_ABI_REASON_NONE);
		assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &args), SKVC_ABI_REASON_NONE);
		assert_int_equal(args.total_bytes, e.args_bytes);
	}
}

static void lays_arguments_out(void **state)
{
	struct skvc_abi_sqe e = good(SKVC_ABI_OP_LOOKUP);
	struct sqe_args a;

	(void)state;
	assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &a), 0);
	assert_true(a.parent_off == 0 && a.keys_off == 40 && a.keys_count == 3);
	assert_true(a.blocks_count == 0 && a.tokens_off == 160 && a.tokens_count == 48);
	e = good(SKVC_ABI_OP_STORE);
	assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &a), 0);
	assert_true(a.keys_off == 0 && a.keys_count == 64 && a.blocks_off == 2560);
	assert_true(a.blocks_count == 64 && a.tokens_off == 2816 && a.tokens_count == 1024);
	e = good(SKVC_ABI_OP_LOAD);
	assert_int_equal(sqe_check_args(&e, 1, AREA, &a), 0);
	assert_true(a.keys_count == 0 && a.blocks_off == 0 && a.blocks_count == 65 &&
		    !a.tokens_count);
}

/* A field that the operation does not use must be zero; one that it uses may be set. */
static void refuses_unused_fields(void **state)
{
	struct field {
		size_t off, bytes;
		uint32_t used_by; /* bit per operation */
	};
#define FIELD(name, ops)                                                                           \
	{                                                                                          \
		offsetof(struct skvc_abi_sqe, name), sizeof(((struct skvc_abi_sqe *)0)->name), ops \
	}
#define OP(x) (1u << SKVC_ABI_OP_##x)
	const uint32_t keyed = OP(LOOKUP) | OP(STORE) | OP(TOUCH) | OP(DROP) | OP(PIN);
	const struct field fields[] = {
		FIELD(reserved0, 0),
		FIELD(ns, keyed),
		FIELD(count, keyed | OP(LOAD)),
		FIELD(region, OP(LOAD) | OP(STORE)),
		FIELD(args_rel, keyed | OP(LOAD)),
		FIELD(args_bytes, keyed | OP(LOAD)),
		FIELD(lease, OP(LOAD) | OP(RELEASE)),
		FIELD(first, OP(LOAD)),
		FIELD(skip_tokens, OP(LOAD)),
		FIELD(result_rel, OP(LOAD) | OP(STORE)),
		FIELD(result_bytes, OP(LOAD) | OP(STORE)),
		FIELD(arg, OP(LOOKUP) | OP(PIN) | OP(ABORT) | OP(LOAD)),
	};

	(void)state;
	for (unsigned o = 0; o < SKVC_ABI_OP_COUNT; o++) {
		uint8_t op = (uint8_t)o;
		for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
			struct skvc_abi_sqe e = good(op);
			enum skvc_abi_reason reason;

			if (fields[i].used_by & 1u << op)
				continue;
			((uint8_t *)&e)[fields[i].off + fields[i].bytes - 1] = 1;
			reason = sqe_check(&e, AREA);
			if (reason != SKVC_ABI_REASON_BAD_RESERVED)
				fail_msg("op %u, field %zu: reason %u", op, i, reason);
		}
	}
}

static void packs_events(void **state)
{
	const uint64_t arg = skvc_abi_events(0x80000001u, 0xfffffffeu);

	(void)state;
	assert_true(arg == 0xfffffffe80000001ull);
	assert_int_equal(skvc_abi_ready_event(arg), 0x80000001u);
	assert_int_equal(skvc_abi_done_event(arg), 0xfffffffeu);
	assert_true(skvc_abi_events(0, 0) == 0);
}

struct wrong {
	uint8_t op;
	struct skvc_abi_sqe add; /* what differs from the good entry, added to it */
	enum skvc_abi_reason reason;
};

static void refuses_bad_values(void **state)
{
#define L SKVC_ABI_OP_LOOKUP
#define D SKVC_ABI_OP_LOAD
#define S SKVC_ABI_OP_STORE
	static const struct wrong wrongs[] = {
		{ 0, { .opcode = SKVC_ABI_OP_COUNT }, SKVC_ABI_REASON_BAD_OPCODE },
		{ 0, { .opcode = 255 }, SKVC_ABI_REASON_BAD_OPCODE },
		{ 0, { .flags = 1 }, SKVC_ABI_REASON_BAD_FLAGS },
		{ L, { .flags = 4 }, SKVC_ABI_REASON_BAD_FLAGS },
		{ L, { .flags = 8 }, SKVC_ABI_REASON_BAD_FLAGS },
		{ D, { .flags = 1 }, SKVC_ABI_REASON_BAD_FLAGS },
		{ L, { .count = (uint32_t)-3 }, SKVC_ABI_REASON_BAD_COUNT },
		{ L, { .count = 4094 }, SKVC_ABI_REASON_BAD_COUNT },
		{ L, { .count = UINT32_MAX - 3 }, SKVC_ABI_REASON_BAD_COUNT },
		{ D, { .first = 1 }, SKVC_ABI_REASON_BAD_COUNT },
		{ D, { .first = UINT32_MAX - 4031 }, SKVC_ABI_REASON_BAD_COUNT },
		{ D, { .skip_tokens = 1009 }, SKVC_ABI_REASON_BAD_COUNT },
		{ L, { .ns = UINT32_MAX }, SKVC_ABI_REASON_BAD_NAMESPACE }, /* 0 */
		{ S, { .region = (uint32_t)-2 }, SKVC_ABI_REASON_BAD_REGION },
		{ D, { .lease = -(1ull << 32) }, SKVC_ABI_REASON_LEASE_GONE },
		{ SKVC_ABI_OP_RELEASE, { .lease = (uint64_t)-7 }, SKVC_ABI_REASON_LEASE_GONE },
		{ L, { .arg = 1 }, SKVC_ABI_REASON_BAD_TTL },
		{ SKVC_ABI_OP_PIN, { .arg = UINT64_MAX - 1 }, SKVC_ABI_REASON_BAD_TTL },
		{ D, { .result_bytes = 8 }, SKVC_ABI_REASON_BAD_RESULT },
		{ D, { .result_bytes = (uint32_t)-8 }, SKVC_ABI_REASON_BAD_RESULT },
		{ D, { .result_bytes = (uint32_t)-24 }, SKVC_ABI_REASON_BAD_RESULT },
		{ D, { .result_rel = 8 }, SKVC_ABI_REASON_BAD_RESULT }, /* one word outside */
		{ D, { .result_rel = (uint32_t)-4 }, SKVC_ABI_REASON_BAD_RESULT },
		{ D, { .result_rel = 0xfffffff8u - AREA + 24 }, SKVC_ABI_REASON_BAD_RESULT },
		{ S,
		  { .result_bytes = (uint32_t)-8 },
		  SKVC_ABI_REASON_BAD_RESULT }, /* rel without bytes */
		/* Events: both are free in a load, a store has nothing to record. */
		{ D, { .arg = UINT64_MAX }, SKVC_ABI_REASON_NONE },
		{ S, { .arg = UINT32_MAX }, SKVC_ABI_REASON_NONE },
		{ S, { .arg = 1ull << 32 }, SKVC_ABI_REASON_BAD_RESERVED },
		{ S, { .arg = 1ull << 63 | 1 }, SKVC_ABI_REASON_BAD_RESERVED },
		{ SKVC_ABI_OP_NOP, { .arg = 1 }, SKVC_ABI_REASON_BAD_RESERVED },
		{ SKVC_ABI_OP_RELEASE, { .arg = 1 }, SKVC_ABI_REASON_BAD_RESERVED },
		{ SKVC_ABI_OP_DROP, { .arg = 1ull << 32 }, SKVC_ABI_REASON_BAD_RESERVED },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(wrongs) / sizeof(wrongs[0]); i++) {
		const struct wrong *w = &wrongs[i];
		struct skvc_abi_sqe e = good(w->op);
		enum skvc_abi_reason reason;

		e.opcode = (uint8_t)(e.opcode + w->add.opcode);
		e.flags = (uint8_t)(e.flags + w->add.flags);
		e.ns += w->add.ns;
		e.count += w->add.count;
		e.region += w->add.region;
		e.lease += w->add.lease;
		e.first += w->add.first;
		e.skip_tokens += w->add.skip_tokens;
		e.result_rel += w->add.result_rel;
		e.result_bytes += w->add.result_bytes;
		e.arg += w->add.arg;
		reason = sqe_check(&e, AREA);
		if (reason != w->reason)
			fail_msg("case %zu: reason %u", i, reason);
	}
}

static void refuses_bad_lists(void **state)
{
	struct sqe_args a = { .total_bytes = 77 };
	struct skvc_abi_sqe e;

	(void)state;
	for (unsigned o = 1; o < SKVC_ABI_OP_COUNT; o++) {
		uint8_t op = (uint8_t)o;
		e = good(op);
		e.args_bytes += 4;
		assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &a), SKVC_ABI_REASON_BAD_ARGS);
		if (!good(op).args_bytes)
			continue;
		e = good(op);
		e.args_bytes -= 4;
		assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &a), SKVC_ABI_REASON_BAD_ARGS);
		e = good(op);
		e.args_rel = 4;
		assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &a), SKVC_ABI_REASON_BAD_ARGS);
		e.args_rel = (AREA - e.args_bytes + 8) & ~7u;
		assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &a), SKVC_ABI_REASON_BAD_ARGS);
		e.args_rel = 0xfffffff8u;
		assert_int_equal(sqe_check_args(&e, TOKENS, AREA, &a), SKVC_ABI_REASON_BAD_ARGS);
		assert_int_equal(sqe_check_args(&e, TOKENS, 0, &a), SKVC_ABI_REASON_BAD_ARGS);
	}
	e = good(SKVC_ABI_OP_LOOKUP);
	assert_int_equal(sqe_check_args(&e, 0, AREA, &a), SKVC_ABI_REASON_BAD_COUNT);
	assert_int_equal(sqe_check_args(&e, 21846, AREA, &a), SKVC_ABI_REASON_BAD_COUNT);
	assert_int_equal(sqe_check_args(&e, UINT32_MAX, AREA, &a), SKVC_ABI_REASON_BAD_COUNT);
	assert_int_equal(sqe_check_args(&e, TOKENS + 1, AREA, &a), SKVC_ABI_REASON_BAD_ARGS);
	assert_int_equal(a.total_bytes, 77); /* untouched */
}

static void checks_keys(void **state)
{
	struct skvc_abi_key key = { .len = 32 };

	(void)state;
	memset(key.bytes, 0xff, sizeof(key.bytes));
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_NONE);
	key.len = 33;
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_BAD_KEY);
	key.len = 31;
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_BAD_KEY);
	memset(key.bytes + 16, 0, 16);
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_NONE);
	key.len = 16;
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_NONE);
	key.len = 15;
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_BAD_KEY);
	key.len = 16;
	key.bytes[16] = 1;
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_BAD_KEY);
	key.bytes[16] = 0;
	key.reserved[2] = 1;
	assert_int_equal(sqe_check_key(&key), SKVC_ABI_REASON_BAD_KEY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(takes_good_entries),	 cmocka_unit_test(lays_arguments_out),
		cmocka_unit_test(refuses_unused_fields), cmocka_unit_test(refuses_bad_values),
		cmocka_unit_test(packs_events),		 cmocka_unit_test(refuses_bad_lists),
		cmocka_unit_test(checks_keys),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
