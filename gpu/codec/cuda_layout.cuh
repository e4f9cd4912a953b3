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
#define LEAF_ACCS 8u	/* accumulators of a leaf, 8 bytes each, in scratch */
#define RING_BYTES 512u /* rANS words of one warp, in shared memory; aligned to its size */
#define STATES_BYTES (CODEC_LANES * 4u)

struct gpu_segment {
	uint64_t off, block_stride, token_stride, head_stride; /* bytes, from the region's base */
	uint64_t canonical_off;
	uint64_t bytes; /* of one block */
	uint32_t columns, rows_per_token;
	uint32_t heads, head_dim;
	uint32_t first_leaf;
	uint32_t first_column; /* in the profile's padded columns */
	uint32_t
		head_magic; /* 2^32 / head_dim, rounded up: column / head_dim is its high product */
	uint8_t element_bytes;
	uint8_t coded;
	uint8_t vector; /* every 16 bytes of a head's row can be accessed at once; strides of tokens are short */
	uint8_t reserved;
};

struct gpu_chunk {
	uint32_t first_segment, end_segment;
	uint32_t scalars;
	uint32_t raw_bytes;
	uint32_t low_bytes;   /* stored low-bit rows */
	uint32_t tiles;	      /* 0: not coded */
	uint64_t scratch_off; /* in a task's scratch */
	uint32_t words_end; /* byte offset in the chunk's scratch: rANS words grow down from here */
	uint32_t escapes_end; /* likewise, escaped patterns */
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
	/* a task's scratch: chunks, sizes, payload offsets, accumulators of leaves, digests of leaves */
	uint64_t sizes_off, offsets_off, leaves_off, digests_off, scratch_bytes;
};

struct gpu_region { /* in device memory */
	struct gpu_geometry g;
	uint64_t base;
};

/* A column: top (bits 0..9), width (10..15), flip (16), table (17..23). */
#define COLUMN_WIDTH_SHIFT 10u
#define COLUMN_FLIP_SHIFT 16u
#define COLUMN_TABLE_SHIFT 17u

/*
 * A slot of a decoder table: slot - start (bits 0..9), context of the token (10..12), sign (13), distance (14..19),
 * frequency (22..31).  The fields of core.h's entry, where shifting finds them cheapest.
 */
#define SLOT_FREQ_SHIFT 22u
#define SLOT_CONTEXT_SHIFT 10u
#define SLOT_SIGN_SHIFT 13u
#define SLOT_DISTANCE_SHIFT 14u
#define SLOT_BIAS_MASK 1023u
#define SLOT_TOKEN_MASK (127u << SLOT_SIGN_SHIFT)
#define TABLE_BYTES (CODEC_PROB_SUM * 4u)

/* An encoder's entry: start (bits 0..9), frequency (22..31), reciprocal (32..63): a state is compared with the
 * frequency where it lies. */
#define ENTRY_FREQ_SHIFT 22u
#define ENTRY_START_MASK 1023u
#define ENTRY_TABLE_BYTES (CODEC_TOKENS_PITCH * 8u)

struct gpu_profile {
	uint32_t tables_count;
	const uint32_t *dec;	/* tables_count * CODEC_PROB_SUM slots */
	const uint64_t *enc;	/* tables_count * CODEC_TOKENS_PITCH */
	const uint32_t *column; /* padded, all coded segments */
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
	uint32_t position; /* encode */
};

static_assert(sizeof(struct gpu_task) == CUDA_TASK_BYTES, "the host makes room for them");

struct gpu_layer_task;

struct gpu_batch { /* kernel argument */
	uint32_t tasks_count;
	uint32_t chunks_count;
	uint8_t *scratch;
	struct cuda_result *results;
	uint8_t *chunk_done;
	uint32_t *status;      /* per task; in scratch */
	uint32_t *chunk_tasks; /* decode: tasks that have finished a chunk; in scratch */
	uint64_t leaves_off, digests_off, task_stride; /* decode: of a task in scratch */
	/* encode: what `layer` made of each task; those that it was good for are left alone.  NULL: nothing. */
	struct gpu_layer_task *layer;
	int layer_part; /* decode: `layer` was done before */
	struct gpu_profile profile;
	const struct gpu_task *task; /* in scratch, or where the host wrote them */
};

/* The same in every lane: told to the compiler, which then needs no provision for lanes that go other ways. */
__device__ static inline uint32_t warp_uniform(uint32_t v)
{
	return __shfl_sync(FULL_MASK, v, 0);
}

/* Where a block's segment begins in the engine's pages. */
__device__ static inline uint8_t *segment_base(const struct gpu_region *r,
					       const struct gpu_segment *s, uint32_t block)
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
__device__ static inline uint8_t *canonical_at(const struct gpu_segment *s, uint8_t *base,
					       uint64_t at)
{
	uint32_t row = s->columns * s->element_bytes;
	uint32_t token = (uint32_t)(at / row), rest = (uint32_t)(at - (uint64_t)token * row);
	uint32_t head_bytes = s->head_dim * s->element_bytes, head = rest / head_bytes;

	return base + token * s->token_stride + head * s->head_stride + (rest - head * head_bytes);
}

/*
 * How a lane walks the pages of one group of 32 columns: 16 bytes of every fourth (second) token when that is
 * possible, else its own column of every token.
 */
struct tile_way {
	uint8_t *at; /* token 0 */
	uint64_t stride;
	uint32_t vector;
};

template <int BYTES>
__device__ static inline struct tile_way tile_way_of(const struct gpu_segment *s, uint8_t *base,
						     uint32_t column, uint32_t vector,
						     uint32_t lane)
{
	const uint32_t parts = 32u * BYTES / 16u; /* 16-byte parts of a row */
	struct tile_way w = { .at = base, .stride = s->token_stride, .vector = vector };

	if (w.vector) {
		uint32_t c = column + lane % parts * (16u / BYTES),
			 head = __umulhi(c, s->head_magic);

		w.at += head * s->head_stride + (uint64_t)(c - head * s->head_dim) * BYTES;
	} else {
		w.at += column_off(s, column + lane);
	}
	return w;
}

/* One tile between pages and shared memory; `token`: its first. */
template <int BYTES>
__device__ static inline void tile_store(const struct tile_way *w, uint32_t token, uint32_t skip,
					 const uint8_t *tile, uint32_t lane)
{
	const uint32_t parts = 32u * BYTES / 16u;

	if (w->vector) {
#pragma unroll
		for (uint32_t v = lane; v < TILE_ROWS * parts; v += WARP_LANES) {
			uint32_t t = token + v / parts;

			if (t >= skip)
				*(uint4 *)(w->at + (uint64_t)t * (uint32_t)w->stride) =
					((const uint4 *)tile)[v];
		}
		return;
	}
#pragma unroll 1
	for (uint32_t k = 0; k < TILE_ROWS; k++) {
		uint8_t *to = w->at + (token + k) * w->stride;

		if (token + k < skip)
			continue;
		if (BYTES == 2)
			*(uint16_t *)to = ((const uint16_t *)tile)[k * 32u + lane];
		else
			*to = tile[k * 32u + lane];
	}
}

template <int BYTES>
__device__ static inline void tile_load(const struct tile_way *w, uint32_t token, uint8_t *tile,
					uint32_t lane)
{
	const uint32_t parts = 32u * BYTES / 16u;

	if (w->vector) {
#pragma unroll
		for (uint32_t v = lane; v < TILE_ROWS * parts; v += WARP_LANES)
			((uint4 *)tile)[v] =
				*(const uint4 *)(w->at + (uint64_t)(token + v / parts) *
								 (uint32_t)w->stride);
		return;
	}
#pragma unroll 1
	for (uint32_t k = 0; k < TILE_ROWS; k++) {
		const uint8_t *from = w->at + (token + k) * w->stride;

		if (BYTES == 2)
			((uint16_t *)tile)[k * 32u + lane] = *(const uint16_t *)from;
		else
			tile[k * 32u + lane] = *from;
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
		uint64_t at = ((uint64_t)(token + v / words) * s->columns + column) * BYTES +
			      v % words * 4u;

		((uint32_t *)tile)[v] = *(const uint32_t *)(from + at);
	}
}

#endif
