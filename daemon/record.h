/* SPDX-License-Identifier: Apache-2.0 */
/*
 * record.h - a stored block as it lies in a host slot and on NVMe: header, token ids, payload, zero
 * padding.  The header alone says whose block it is and whether the bytes are whole; a record from disk
 * is hostile until record_check said 0.  Pure functions.
 */
#ifndef SKVCD_DAEMON_RECORD_H
#define SKVCD_DAEMON_RECORD_H

#include <stdint.h>

#define RECORD_MAGIC 0x43525653u /* "SVRC" */
#define RECORD_VERSION 1u

struct record_header { /* little endian */
	uint32_t magic;
	uint16_t version;
	uint16_t header_bytes; /* sizeof(struct record_header) */
	uint64_t header_xxh3;  /* XXH3-64 of the header with this field zero */
	uint64_t payload_xxh3; /* XXH3-64 of everything behind the header */
	uint64_t raw_xxh3;     /* checksum of the raw block (gpu/codec/format.h) */
	uint64_t epoch;	       /* of the log: a record of an earlier life never passes */
	uint32_t generation;   /* of the block's place in the index */
	uint32_t block;	       /* its id there */
	uint8_t ns_digest[32];
	uint8_t profile_digest[32]; /* zero when no profile is needed */
	uint8_t key[32];
	uint32_t group;
	uint8_t key_len;
	uint8_t speculator;
	uint16_t reserved0;
	uint32_t tokens_count; /* token ids after the header: 0 or block_tokens */
	uint32_t payload_bytes;
	uint64_t raw_bytes;
	uint8_t reserved1[24];
};

_Static_assert(sizeof(struct record_header) == 192, "record header");

/* The payload starts on a cache line. */
static inline uint64_t record_payload_off(uint32_t tokens_count)
{
	return (sizeof(struct record_header) + (uint64_t)tokens_count * 4 + 63) & ~63ull;
}

static inline uint64_t record_bytes(const struct record_header *h)
{
	return record_payload_off(h->tokens_count) + h->payload_bytes;
}

/* Fill in the two checksums; everything else and the bytes behind it are in place. */
void record_seal(struct record_header *h);

/*
 * Is this the record that `expect` describes (key, namespace, profile, epoch, generation, lengths), whole?
 * 0; -EBADMSG: checksum or structure; -ESTALE: a sound record of something else.
 */
int record_check(const void *record, uint64_t bytes, const struct record_header *expect);

#endif
