/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layout.cuh - what the kernels know of a geometry, a region and a profile, as it lies in device
 * memory, and the ways from a row of the coded order to the engine's pages.
 *
 * Tile: 16 rows of one group of 32 columns, that is 16 tokens of them; a leaf of the checksum tree is one tile
 * of 2-byte elements or two of 1-byte ones.  A warp works on one tile at a time in its shared memory.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYOUT_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYOUT_CUH

#include <stdint.h>

#include "gpu/codec/core.h"
#include "gpu/codec/cuda_codec.h"

#define WARP_LANES 32u
#define FULL_MASK 0xffffffffu
#define TILE_ROWS 16u
#define LEAF_BYTES 1024u
#define RING_WORDS 128u /* rANS words of one warp, in shared memory */
#define STATES_BYTES (CODEC_LANES * 4u)

struct gpu_segment {
	uint64_t off, block_stride, token_stride, head_stride; /* bytes, from the region's base */
	uint64_t canonical_off;
	uint64_t bytes; /* of one block */
	uint32_t columns, rows_per_token;
	uint32_t heads, head_dim;
	uint32_t first_leaf;
	uint32_t first_column; /* in the profile's padded columns */
	uint8_t element_bytes;
	uint8_t coded;
	uint8_t vector; /* every 16 bytes of a head's row can be accessed at once */
	uint8_t reserved[5];
};

struct gpu_chunk {
	uint32_t first_segment, end_segment;
	uint32_t scalars;
	uint32_t raw_bytes;
	uint32_t low_bytes;    /* stored low-bit rows */
	uint32_t tiles;	       /* 0: not coded */
	uint64_t scratch_off;  /* in a task's scratch */
	uint32_t words_end;    /* byte offset in the chunk's scratch: rANS words grow down from here */
	uint32_t escapes_end;  /* likewise, escaped patterns */
	uint32_t escapes_max;
	uint8_t element_bytes, shift, coded;
	uint8_t reserved;
};

struct gpu_sizes { /* of one encoded chunk, in scratch */
	uint32_t words, escapes;
	uint32_t raw;	  /* 1: keep it raw */
	uint32_t payload; /* bytes, without padding */
};

struct gpu_geometry {
	uint32_t tokens, segments_count, chunks_count, leaves_count;
	uint64_t raw_bytes;
	uint8_t digest[16];
	const struct gpu_segment *segment;
	const struct gpu_chunk *chunk;
	/* a task's scratch: chunks, then sizes, then payload offsets, then leaves */
	uint64_t sizes_off, offsets_off, leaves_off, scratch_bytes;
};

struct gpu_region { /* in device memory */
	struct gpu_geometry g;
	uint64_t base;
};

/* A column: top (bits 0..9), width (10..15), flip (16), table (17..23). */
#define COLUMN_WIDTH_SHIFT 10u
#define COLUMN_FLIP_SHIFT 16u
#define COLUMN_TABLE_SHIFT 17u

struct gpu_profile {
	uint32_t tables_count;
	const uint32_t *dec;	  /* tables_count * CODEC_PROB_SUM */
	const uint64_t *enc;	  /* tables_count * CODEC_TOKENS_PITCH */
	const uint32_t *column;	  /* padded, all coded segments */
	const uint8_t *context; /* per segment */
	uint8_t digest[16];
};

struct gpu_task {
	const struct gpu_region *region;
	uint8_t *payload;
	uint64_t payload_bytes;
	uint64_t expect_xxh3;
	uint32_t block_index;
	uint32_t skip_tokens;
};

struct gpu_batch { /* kernel argument */
	uint32_t tasks_count;
	uint32_t chunks_count;
	uint8_t *scratch;
	struct cuda_result *results;
	uint8_t *chunk_done;
	uint32_t *status;     /* per task; in scratch */
	uint32_t *chunk_tasks; /* decode: tasks that have finished a chunk; in scratch */
	uint64_t leaves_off, leaves_stride; /* decode: of a task's digests in scratch */
	struct gpu_profile profile;
	struct gpu_task task[CUDA_BATCH_TASKS_MAX];
};

/* Where a block's segment begins in the engine's pages. */
__device__ static inline uint8_t *segment_base(const struct gpu_region *r, const struct gpu_segment *s,
					       uint32_t block)
{
	return (uint8_t *)(r->base + s->off + (uint64_t)block * s->block_stride);
}

/* Offset of a column inside a token's row. */
__device__ static inline uint64_t column_off(const struct gpu_segment *s, uint32_t column)
{
	uint32_t head = column / s->head_dim;

	return head * s->head_stride + (uint64_t)(column - head * s->head_dim) * s->element_bytes;
}

/* Byte `at` of a segment in canonical packing. */
__device__ static inline uint8_t *canonical_at(const struct gpu_segment *s, uint8_t *base, uint64_t at)
{
	uint32_t row = s->columns * s->element_bytes;
	uint32_t token = (uint32_t)(at / row), rest = (uint32_t)(at - (uint64_t)token * row);
	uint32_t head_bytes = s->head_dim * s->element_bytes, head = rest / head_bytes;

	return base + token * s->token_stride + head * s->head_stride + (rest - head * head_bytes);
}

/* One tile between pages and shared memory.  `column`: first of its 32. */
template <int BYTES>
__device__ static inline void tile_store(const struct gpu_segment *s, uint8_t *base, uint32_t column,
					 uint32_t token, uint32_t skip, const uint8_t *tile, uint32_t lane)
{
	const uint32_t parts = 32u * BYTES / 16u; /* 16-byte parts of a row */

	if (s->vector) {
		uint32_t part = lane % parts;
		uint8_t *to = base + column_off(s, column + part * (16u / BYTES));

#pragma unroll
		for (uint32_t v = lane; v < TILE_ROWS * parts; v += WARP_LANES) {
			uint32_t t = token + v / parts;

			if (t >= skip)
				*(uint4 *)(to + t * s->token_stride) = ((const uint4 *)tile)[v];
		}
		return;
	}
	uint8_t *to = base + column_off(s, column + lane);

	for (uint32_t k = 0; k < TILE_ROWS; k++) {
		uint32_t t = token + k;

		if (t < skip)
			continue;
		if (BYTES == 2)
			*(uint16_t *)(to + t * s->token_stride) = ((const uint16_t *)tile)[k * 32u + lane];
		else
			to[t * s->token_stride] = tile[k * 32u + lane];
	}
}

template <int BYTES>
__device__ static inline void tile_load(const struct gpu_segment *s, const uint8_t *base, uint32_t column,
					uint32_t token, uint8_t *tile, uint32_t lane)
{
	const uint32_t parts = 32u * BYTES / 16u;

	if (s->vector) {
		uint32_t part = lane % parts;
		const uint8_t *from = base + column_off(s, column + part * (16u / BYTES));

#pragma unroll
		for (uint32_t v = lane; v < TILE_ROWS * parts; v += WARP_LANES)
			((uint4 *)tile)[v] = *(const uint4 *)(from + (token + v / parts) * s->token_stride);
		return;
	}
	const uint8_t *from = base + column_off(s, column + lane);

	for (uint32_t k = 0; k < TILE_ROWS; k++) {
		const uint8_t *at = from + (token + k) * s->token_stride;

		if (BYTES == 2)
			((uint16_t *)tile)[k * 32u + lane] = *(const uint16_t *)at;
		else
			tile[k * 32u + lane] = *at;
	}
}

/* The same tile in a canonical chunk: `from` is the segment's first byte, 4-byte aligned. */
template <int BYTES>
__device__ static inline void tile_load_canonical(const struct gpu_segment *s, const uint8_t *from,
						  uint32_t column, uint32_t token, uint8_t *tile,
						  uint32_t lane)
{
	const uint32_t words = 32u * BYTES / 4u;

	for (uint32_t v = lane; v < TILE_ROWS * words; v += WARP_LANES) {
		uint64_t at = ((uint64_t)(token + v / words) * s->columns + column) * BYTES + v % words * 4u;

		((uint32_t *)tile)[v] = *(const uint32_t *)(from + at);
	}
}

#endif
