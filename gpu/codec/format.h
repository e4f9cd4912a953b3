/* SPDX-License-Identifier: Apache-2.0 */
/*
 * format.h - the bytes of an encoded block and of a profile.  Everything is little endian; reserved
 * bytes are zero when written and checked to be zero when read.
 *
 * Encoded block
 *   offset  size  what
 *        0     4  magic "SKVB"
 *        4     2  version (2)
 *        6     1  speculator (enum codec_speculator)
 *        7     1  reserved
 *        8     4  encoded bytes, all of it
 *       12     4  chunks
 *       16     8  raw bytes
 *       24     8  checksum of the raw bytes, see below
 *       32    16  first half of the profile's digest; zero when no chunk needs a profile
 *       48    16  first half of the geometry's digest
 *       64   8*n  chunk index: u32 payload bytes, u16 escape bytes, u8 method, u8 reserved
 *             ..  payloads in chunk order, each padded with zeros to a multiple of 8 bytes
 *
 * Payload by method
 *   raw      the canonical bytes
 *   residual the first such chunk of a block carries what all of them share, the others are empty.
 *            layer_code.h, sequence.h and residual_code.h say what it is.  Speculators `layer`
 *            and `model` only.
 *   generic  u32 bytes of the first zstd frame; a frame of all low bytes (and of one-byte elements),
 *            then a frame of all high bytes (empty when there are none)
 *   channel  32 x u32 final coder states; the stored low bits; u16 rANS words; escaped patterns in
 *            coded order of rows, in a row by lane, each of its element's size.  core.h says what
 *            the coded order and the low bits are.
 *            Stored low bits, the first S bits of every lane's stream: floor(S / 32) rows of 32 x
 *            u32, word l of row j has bits [32 j, 32 j + 32) of lane l; then the S mod 32 bits that
 *            are left, if any, in one row of 32 x u16 when they are 16 or fewer, else of 32 x u32.
 *            Unused high bits of that row are zero.  The carried bits of lane l are the low half of
 *            the state that its decoder ends with, unused high bits zero; the high half must be 1.
 *            How many words there are follows from the payload's length.
 *
 * Checksum: a tree, so that pieces can be hashed in any order, by any device.  It depends on the raw
 * bytes and the geometry only, not on how they are coded.
 *   leaves   each segment's bytes, in pieces of 1024, the last one padded with zeros to 1024: each
 *            piece's XXH3-64 (seed 0).  A segment of n bytes has ceil(n / 1024) leaves.  The bytes
 *            of a segment that `channel` could code (kind not opaque, type not U8) are taken in
 *            coded order: row (r, t) gives the patterns of its columns, 32 or those that exist.  The
 *            bytes of the others are taken in canonical order.
 *   root     the leaves of all segments in order, u64 each, padded with zeros to a multiple of 1024
 *            bytes: XXH3-64 (seed 0) of these bytes is the checksum.
 *
 * Profile
 *        0     4  magic "SKVP"
 *        4     2  version (1; 2, 3 when sections follow)
 *        6     1  probability bits (10)
 *        7     1  contexts (5)
 *        8    32  geometry digest
 *       40     4  segments
 *       44     4  channels: columns of all coded segments
 *       48     4  tables
 *       52     4  expected bits per scalar, 16 fraction bits
 *       56     8  tokens fitted
 *       64   4*s  per segment: u8 coded, u8 shift, u8 context, u8 reserved
 *            4*c  per channel: u16 top, u8 width, u8 table (bits 0..6) | flip << 7
 *          254*t  per table: 127 x u16 frequency, sum 1024
 *             ..  zeros to a multiple of 8 bytes
 *             ..  version 2: zeros to a multiple of 64 bytes, then the `layer` section (layer_code.h)
 *             ..  version 3: the same, or without that section, then the `model` section (model_profile.h)
 */
#ifndef SKVCD_GPU_CODEC_FORMAT_H
#define SKVCD_GPU_CODEC_FORMAT_H

#include <assert.h>
#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the codec writes its structs as they lie in memory: little-endian machines only"
#endif

#define FORMAT_BLOCK_MAGIC 0x42564b53u /* "SKVB" */
#define FORMAT_BLOCK_VERSION 2u
#define FORMAT_PROFILE_MAGIC 0x50564b53u /* "SKVP" */
#define FORMAT_PROFILE_VERSION 1u
#define FORMAT_PROFILE_VERSION_LAYER 2u
#define FORMAT_PROFILE_VERSION_MODEL 3u
#define FORMAT_SECTION_ALIGN 64u
#define FORMAT_DIGEST_PREFIX_BYTES 16u
#define FORMAT_PAYLOAD_ALIGN 8u
#define FORMAT_SPECULATOR_OFF 6u /* in a block's header */
#define FORMAT_TABLES_MAX 64u

enum format_method { /* of a chunk; wire values */
		     FORMAT_METHOD_RAW = 0,
		     FORMAT_METHOD_GENERIC = 1,
		     FORMAT_METHOD_CHANNEL = 2,
		     FORMAT_METHOD_RESIDUAL = 3,
		     FORMAT_METHOD_COUNT
};

struct format_block_header {
	uint32_t magic;
	uint16_t version;
	uint8_t speculator;
	uint8_t reserved;
	uint32_t encoded_bytes;
	uint32_t chunks_count;
	uint64_t raw_bytes;
	uint64_t raw_xxh3;
	uint8_t profile_digest[FORMAT_DIGEST_PREFIX_BYTES];
	uint8_t geometry_digest[FORMAT_DIGEST_PREFIX_BYTES];
};

struct format_chunk_entry {
	uint32_t payload_bytes;
	uint16_t escape_bytes;
	uint8_t method;
	uint8_t reserved;
};

struct format_profile_header {
	uint32_t magic;
	uint16_t version;
	uint8_t prob_bits;
	uint8_t contexts;
	uint8_t geometry_digest[32];
	uint32_t segments_count;
	uint32_t channels_count;
	uint32_t tables_count;
	uint32_t expected_bits_q16;
	uint64_t tokens_count;
};

struct format_profile_segment {
	uint8_t coded;
	uint8_t shift;
	uint8_t context;
	uint8_t reserved;
};

struct format_profile_channel {
	uint16_t top;
	uint8_t width;
	uint8_t table_flip;
};

/* A payload with the zeros behind it. */
static inline size_t format_padded(size_t bytes)
{
	return (bytes + FORMAT_PAYLOAD_ALIGN - 1u) & ~(size_t)(FORMAT_PAYLOAD_ALIGN - 1u);
}

static_assert(sizeof(struct format_block_header) == 64, "block header");
static_assert(offsetof(struct format_block_header, encoded_bytes) == 8, "block header");
static_assert(offsetof(struct format_block_header, speculator) == FORMAT_SPECULATOR_OFF,
	      "block header");
static_assert(offsetof(struct format_block_header, chunks_count) == 12, "block header");
static_assert(offsetof(struct format_block_header, raw_bytes) == 16, "block header");
static_assert(offsetof(struct format_block_header, raw_xxh3) == 24, "block header");
static_assert(offsetof(struct format_block_header, profile_digest) == 32, "block header");
static_assert(offsetof(struct format_block_header, geometry_digest) == 48, "block header");
static_assert(sizeof(struct format_chunk_entry) == 8, "chunk entry");
static_assert(offsetof(struct format_chunk_entry, escape_bytes) == 4, "chunk entry");
static_assert(offsetof(struct format_chunk_entry, method) == 6, "chunk entry");
static_assert(sizeof(struct format_profile_header) == 64, "profile header");
static_assert(offsetof(struct format_profile_header, geometry_digest) == 8, "profile header");
static_assert(offsetof(struct format_profile_header, segments_count) == 40, "profile header");
static_assert(offsetof(struct format_profile_header, expected_bits_q16) == 52, "profile header");
static_assert(offsetof(struct format_profile_header, tokens_count) == 56, "profile header");
static_assert(sizeof(struct format_profile_segment) == 4, "profile segment");
static_assert(sizeof(struct format_profile_channel) == 4, "profile channel");

#endif
