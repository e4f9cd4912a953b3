/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_record.c - a stored record is accepted whole and for the block it is of, and never otherwise.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "daemon/record.h"

#define PAYLOAD 1000u
#define TOKENS 16u

static uint64_t make(uint8_t *buf, struct record_header *ret_expect)
{
	struct record_header *h = (struct record_header *)buf;

	memset(buf, 0, 4096);
	*h = (struct record_header){
		.magic = RECORD_MAGIC,
		.version = RECORD_VERSION,
		.header_bytes = sizeof(*h),
		.raw_xxh3 = 0x1234,
		.log_id = 77,
		.sequence = 3,
		.group = 1,
		.key_len = 32,
		.tokens_count = TOKENS,
		.payload_bytes = PAYLOAD,
		.raw_bytes = 49152,
	};
	for (unsigned i = 0; i < 32; i++) {
		h->key[i] = (uint8_t)i;
		h->ns_digest[i] = (uint8_t)(i * 3);
		h->profile_digest[i] = (uint8_t)(i * 5);
	}
	for (unsigned i = 0; i < PAYLOAD; i++)
		buf[record_payload_off(TOKENS) + i] = (uint8_t)(i * 7);
	record_seal(h);
	*ret_expect = *h;
	return record_bytes(h);
}

static void a_sealed_record_passes(void **state)
{
	_Alignas(64) uint8_t buf[4096];
	struct record_header expect;
	uint64_t bytes = make(buf, &expect);

	(void)state;
	assert_int_equal(bytes, 320 + PAYLOAD);
	assert_int_equal(record_check(buf, bytes, &expect), 0);
	assert_int_equal(record_check(buf, 4096, &expect), 0); /* padding behind it */
}

static void every_flipped_bit_is_seen(void **state)
{
	_Alignas(64) uint8_t buf[4096];
	struct record_header expect;
	uint64_t bytes = make(buf, &expect);

	(void)state;
	for (uint64_t bit = 0; bit < bytes * 8; bit++) {
		buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_int_not_equal(record_check(buf, bytes, &expect), 0);
		buf[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(record_check(buf, bytes, &expect), 0);
}

static void every_truncation_is_seen(void **state)
{
	_Alignas(64) uint8_t buf[4096];
	struct record_header expect;
	uint64_t bytes = make(buf, &expect);

	(void)state;
	for (uint64_t n = 0; n < bytes; n++)
		assert_int_equal(record_check(buf, n, &expect), -EBADMSG);
}

static void a_sound_record_of_another_block_is_stale(void **state)
{
	_Alignas(64) uint8_t buf[4096];
	struct record_header expect, other;
	uint64_t bytes = make(buf, &expect);

	(void)state;
#define DIFFERS(field)                                                       \
	do {                                                                 \
		other = expect;                                              \
		other.field ^= 1;                                            \
		assert_int_equal(record_check(buf, bytes, &other), -ESTALE); \
	} while (0)
	DIFFERS(log_id);
	DIFFERS(sequence);
	DIFFERS(group);
	DIFFERS(key_len);
	DIFFERS(key[31]);
	DIFFERS(ns_digest[0]);
	DIFFERS(profile_digest[0]);
	DIFFERS(raw_bytes);
	DIFFERS(raw_xxh3);
#undef DIFFERS
}

static void a_length_that_leaves_the_record_is_refused(void **state)
{
	_Alignas(64) uint8_t buf[4096];
	struct record_header expect, *h = (struct record_header *)buf;

	(void)state;
	make(buf, &expect);
	h->payload_bytes = UINT32_MAX;
	h->tokens_count = UINT32_MAX;
	/* Whoever writes the disk can compute checksums too: a sound header whose lengths are not. */
	h->header_xxh3 = 0;
	h->header_xxh3 = XXH3_64bits(h, sizeof(*h));
	assert_int_equal(record_check(buf, sizeof(buf), &expect), -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_sealed_record_passes),
		cmocka_unit_test(every_flipped_bit_is_seen),
		cmocka_unit_test(every_truncation_is_seen),
		cmocka_unit_test(a_sound_record_of_another_block_is_stale),
		cmocka_unit_test(a_length_that_leaves_the_record_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
