/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_format.h - what lies in the NVMe log's file beside the records (record.h).  Little endian.  Pure.
 *
 *	0		superblock, twice (nvme_file.c)
 *	32 KiB		the probe's block
 *	64 KiB		segment 0 goes on here; segment n begins at n * segment_bytes
 *
 * A segment begins with its header.  Behind that, at multiples of the alignment, lie records and lists of what
 * was forgotten (kind DATA), or pieces of a blob (META, CHECKPOINT).  Each of them names the log and the use of
 * the segment that it was written for: what an earlier use left behind does not pass.
 *
 * A blob is a stream in pieces, in as many segments as it takes; the last block of the last one says that it is
 * complete, and is written when all the rest is on the media.  The one before it stays until then.
 */
#ifndef SKVCD_DAEMON_NVME_FORMAT_H
#define SKVCD_DAEMON_NVME_FORMAT_H

#include <stdint.h>
#include <xxhash.h>

#define NVME_FORMAT_VERSION 2u
#define NVME_SEGMENT_MAGIC 0x47535653u	/* "SVSG" */
#define NVME_PIECE_MAGIC 0x48435653u	/* "SVCH" */
#define NVME_TOMBS_MAGIC 0x42545653u	/* "SVTB" */
#define NVME_BLOB_END_MAGIC 0x45425653u /* "SVBE" */

enum nvme_kind { NVME_KIND_DATA = 1, NVME_KIND_META, NVME_KIND_CHECKPOINT, NVME_KIND_COUNT };

struct nvme_segment_header {
	uint32_t magic;
	uint16_t version;
	uint16_t kind; /* enum nvme_kind */
	uint64_t log_id;
	uint64_t sequence; /* of this use; grows, and none comes twice */
	uint64_t blob;	   /* sequence of the blob's first segment; 0: DATA */
	uint32_t ordinal;  /* of this segment in the blob */
	uint32_t segment;  /* where it lies */
	uint8_t reserved[16];
	uint64_t xxh3; /* of this struct with this field zero, as below */
};

struct nvme_piece {
	uint32_t magic;
	uint32_t number; /* in the blob, from 0 */
	uint64_t log_id;
	uint64_t blob;
	uint32_t stored_bytes; /* behind this struct: a zstd frame */
	uint32_t raw_bytes;    /* what it holds */
	uint64_t stored_xxh3;
	uint8_t reserved[16];
	uint64_t xxh3;
};

struct nvme_tombs {
	uint32_t magic;
	uint32_t count; /* of struct nvme_tomb behind this */
	uint64_t log_id;
	uint64_t sequence; /* of the segment that this lies in */
	uint8_t reserved[32];
	uint64_t xxh3; /* of all of the block: nvme_format_tombs_xxh3() */
};

/* The record at this place is not to be found any more. */
struct nvme_tomb {
	uint64_t sequence;
	uint32_t segment;
	uint32_t off_sectors;
};

struct nvme_blob_end {
	uint32_t magic;
	uint32_t segments;
	uint64_t log_id;
	uint64_t blob;
	uint64_t
		tail; /* segments of this and of higher sequences may hold what the blob does not */
	uint64_t raw_bytes;
	uint32_t pieces;
	uint8_t reserved[12];
	uint64_t xxh3;
};

_Static_assert(sizeof(struct nvme_segment_header) == 64, "segment header");
_Static_assert(sizeof(struct nvme_piece) == 64, "piece");
_Static_assert(sizeof(struct nvme_tombs) == 64, "tombs");
_Static_assert(sizeof(struct nvme_tomb) == 16, "tomb");
_Static_assert(sizeof(struct nvme_blob_end) == 64, "end of a blob");

/* Of a struct whose last 8 bytes are the checksum. */
static inline uint64_t nvme_format_xxh3(const void *p, uint32_t bytes)
{
	return XXH3_64bits(p, bytes - 8);
}

static inline uint64_t nvme_format_tombs_xxh3(const uint8_t *block, uint32_t bytes)
{
	const uint32_t head = sizeof(struct nvme_tombs);

	return XXH3_64bits_withSeed(block + head, bytes - head, nvme_format_xxh3(block, head));
}

#endif
