/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_record.c - a record as it may come back from a damaged or forged spill file: whatever passes the
 * check lies inside the bytes that were read, is the one that was expected, and has not changed a bit.
 *
 * Input: one byte of flags, then the record.  Flag 1: give it right checksums first, as a forger would;
 * flag 2: expect another generation.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/record.h"

#define RECORD_BYTES_MAX 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int condition)
{
	if (!condition)
		abort();
}

/* What passed must fail when any one bit of it is another one. */
static void flip_one(uint8_t *record, uint64_t bytes, const struct record_header *expect,
		     uint8_t where)
{
	uint64_t at = record_bytes((struct record_header *)record) * where / 256;

	record[at] ^= 0x10;
	must(record_check(record, bytes, expect) < 0);
	record[at] ^= 0x10;
	must(record_check(record, bytes, expect) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct record_header expect = { 0 }, *h;
	uint8_t *record, flags;
	uint64_t bytes;
	int r;

	if (size < 1 || size > RECORD_BYTES_MAX)
		return 0;
	flags = data[0];
	bytes = size - 1;
	/* To the byte: a sanitizer then sees the first one that is read too many. */
	record = malloc(bytes ? bytes : 1);
	if (!record)
		return 0;
	memcpy(record, data + 1, bytes);
	h = (struct record_header *)record;
	if (bytes >= sizeof(*h)) {
		if (flags & 1 && record_bytes(h) <= bytes)
			record_seal(h);
		expect = *h;
		expect.sequence ^= flags >> 1 & 1;
	}
	r = record_check(record, bytes, &expect);
	must(r || record_check_whole(record, bytes) == 0);
	must(r == 0 || r == -EBADMSG || r == -ESTALE);
	if (r == 0) {
		must(!(flags & 2));
		/* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): it cannot see that 0 means a whole header */
		must(record_payload_off(h->tokens_count) + h->payload_bytes <= bytes);
		must(record_payload_off(h->tokens_count) % 64 == 0);
		flip_one(record, bytes, &expect, flags);
	}
	free(record);
	return 0;
}
