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
#define RECORD_VERSION 2u
#define RECORD_HAS_TOKENS 0x01u /* token_hash is valid */

/*
 * All that the index has to know of a block, so that it can be made again from the records alone.  log_id and
 * sequence are of the place that the record was written to: one that an earlier life of the file, or an earlier
 * use of the segment, left there never passes.
 */
struct record_header { /* little endian */
	uint32_t magic;
	uint16_t version;
	uint16_t header_bytes; /* sizeof(struct record_header) */
	uint64_t header_xxh3;  /* XXH3-64 of the header with this field zero */
	uint64_t payload_xxh3; /* XXH3-64 of everything behind the header */
	uint64_t raw_xxh3;     /* checksum of the raw block (gpu/codec/format.h) */
	uint64_t log_id;       /* of the NVMe log; 0: not written to one yet, as the next */
	uint64_t sequence;     /* of the segment */
	uint64_t token_hash;
	uint8_t ns_digest[32];
	uint8_t profile_digest[32]; /* zero when no profile is needed */
	uint8_t key[32];
	uint8_t parent[32]; /* its parent's key, of the same namespace */
	uint32_t group;
	uint32_t parent_group;
	uint32_t position; /* of its first token in its sequence, or CODEC_POSITION_UNKNOWN */
	uint8_t key_len;
	uint8_t parent_len;    /* 0: no parent, or it was gone */
	uint8_t speculator;    /* CODEC_SPEC_MODEL: its prefix is needed to decode it */
	uint8_t flags;	       /* RECORD_* */
	uint32_t tokens_count; /* token ids after the header: 0 or block_tokens */
	uint32_t payload_bytes;
	uint64_t raw_bytes;
	uint8_t reserved[40]; /* 0 */
};

_Static_assert(sizeof(struct record_header) == 256, "record header");

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
void record_seal_header(struct record_header *h); /* only that has changed */

/* A whole header that says what a record can be: 0, -EBADMSG.  Nothing is said of what lies behind it. */
int record_check_header(const struct record_header *h);
/* And the bytes behind it: all of them are here, and they are the ones that were written. */
int record_check_whole(const void *record, uint64_t bytes);

/*
 * Is this the record that `expect` describes (key, namespace, profile, place, lengths), whole?
 * 0; -EBADMSG: checksum or structure; -ESTALE: a sound record of something else.
 */
int record_check(const void *record, uint64_t bytes, const struct record_header *expect);

#endif
