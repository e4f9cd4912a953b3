/* SPDX-License-Identifier: Apache-2.0 */
/*
 * record.c - sealing and checking of stored records.  Pure: bytes in, verdict out.
 */
#include "daemon/record.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

static uint64_t header_checksum(const struct record_header *h)
{
	struct record_header copy = *h;

	copy.header_xxh3 = 0;
	return XXH3_64bits(&copy, sizeof(copy));
}

void record_seal_header(struct record_header *h)
{
	h->header_xxh3 = header_checksum(h);
}

void record_seal(struct record_header *h)
{
	const uint8_t *body = (const uint8_t *)h + sizeof(*h);

	h->payload_xxh3 = XXH3_64bits(body, record_bytes(h) - sizeof(*h));
	record_seal_header(h);
}

int record_check_header(const struct record_header *h)
{
	if (h->magic != RECORD_MAGIC || h->version != RECORD_VERSION ||
	    h->header_bytes != sizeof(*h) || h->header_xxh3 != header_checksum(h))
		return -EBADMSG;
	return h->key_len <= sizeof(h->key) && h->parent_len <= sizeof(h->parent) ? 0 : -EBADMSG;
}

/* The header has been read: all of the body is here. */
static int check_body(const struct record_header *h, const void *record)
{
	const uint8_t *body = (const uint8_t *)record + sizeof(*h);

	return XXH3_64bits(body, record_bytes(h) - sizeof(*h)) == h->payload_xxh3 ? 0 : -EBADMSG;
}

static int read_header(struct record_header *h, const void *record, uint64_t bytes)
{
	int r;

	if (bytes < sizeof(*h))
		return -EBADMSG;
	memcpy(h, record, sizeof(*h));
	r = record_check_header(h);
	return r < 0 ? r : record_bytes(h) <= bytes ? 0 : -EBADMSG;
}

int record_check_whole(const void *record, uint64_t bytes)
{
	struct record_header h;
	int r = read_header(&h, record, bytes);

	return r < 0 ? r : check_body(&h, record);
}

int record_check(const void *record, uint64_t bytes, const struct record_header *expect)
{
	struct record_header h;
	int r = read_header(&h, record, bytes);

	if (r < 0)
		return r;
	if (h.log_id != expect->log_id || h.sequence != expect->sequence ||
	    h.raw_xxh3 != expect->raw_xxh3 || h.raw_bytes != expect->raw_bytes ||
	    h.group != expect->group || h.key_len != expect->key_len ||
	    memcmp(h.key, expect->key, sizeof(h.key)) ||
	    memcmp(h.ns_digest, expect->ns_digest, sizeof(h.ns_digest)) ||
	    memcmp(h.profile_digest, expect->profile_digest, sizeof(h.profile_digest)))
		return -ESTALE;
	return check_body(&h, record);
}
