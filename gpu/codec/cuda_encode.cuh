/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_encode.cuh - one chunk, by one warp: pages to checksum, tokens, low bits and rANS words in one pass.
 *
 * The coder runs backwards, so tiles are taken from the last to the first and rows from 15 to 0; each tile is
 * read from the pages once, into shared memory, and everything comes from that copy.  A row's table needs
 * the token above it, so row 0 of a tile waits until the tile before it was read, or has context 0.
 *
 * Words and escapes grow downwards in the chunk's scratch, and cuda_pack.cuh puts the pieces together.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_ENCODE_CUH
#define SKVCD_GPU_CODEC_CUDA_ENCODE_CUH

#include "gpu/codec/cuda_layout.cuh"
#include "gpu/codec/cuda_xxh3.cuh"

struct encode_job {
	const struct gpu_region *region;
	const struct gpu_chunk *chunk;
	const struct gpu_profile *profile;
	const uint64_t *enc; /* shared */
	uint8_t *leaf;	     /* shared, LEAF_BYTES of this warp */
	uint8_t *scratch;    /* of this chunk */
	uint64_t *digests;   /* of the task */
	uint32_t block_index;
};

struct encode_state {
	uint32_t x;
	uint16_t *words; /* the lowest one written */
	uint16_t *words_limit;
	uint32_t escapes_count;
	uint32_t low_high; /* of a low-bit word whose low half comes next */
	bool coding;	    /* false: it would not shrink, only the digests are still wanted */
};

__device__ static inline void encode_step(struct encode_state *st, const uint64_t *table, uint32_t token,
					  uint32_t above)
{
	const uint64_t e = table[token];
	const uint32_t freq = (uint32_t)e & 0xffffu, start = (uint32_t)e >> 16, rcp = (uint32_t)(e >> 32);
	const bool spills = codec_rans_encode_spills(st->x, freq);
	const uint32_t mask = __ballot_sync(FULL_MASK, spills);

	/* Lanes in ascending order in memory: a decoder reads them in that order. */
	if (spills) {
		*(st->words - 1 - __popc(mask & above)) = (uint16_t)st->x;
		st->x >>= 16;
	}
	st->words -= __popc(mask);
	/* The reciprocal gives the quotient or one less. */
	uint32_t q = __umulhi(st->x, rcp), rest = st->x - q * freq;

	if (rest >= freq) {
		q++;
		rest -= freq;
	}
	st->x = (q << CODEC_PROB_BITS) + rest + start;
}

/* Patterns of the escaped lanes of a tile, last row first, downwards from `end`.  Rare.  Returns how many there
 * are; beyond `room` nothing is written. */
template <int BYTES>
__device__ static __noinline__ uint32_t tile_collect(uint8_t *end, uint32_t room, const uint8_t *tile,
						     uint32_t rows, uint32_t lane)
{
	const uint32_t above = lane == 31u ? 0 : FULL_MASK << (lane + 1u);
	uint32_t n = 0;

	for (int k = (int)TILE_ROWS - 1; k >= 0; k--) {
		uint32_t mask = __ballot_sync(FULL_MASK, rows >> k & 1u);
		uint32_t at = n + 1u + __popc(mask & above);

		if (rows >> k & 1u && at <= room) {
			uint8_t *to = end - at * BYTES;

			to[0] = tile[(k * 32u + lane) * BYTES];
			if (BYTES == 2)
				to[1] = tile[(k * 32u + lane) * BYTES + 1u];
		}
		n += __popc(mask);
	}
	return n;
}

/*
 * Store a tile's low bits, `tile` counted from the chunk's first of `tiles`; tiles come in descending order.
 * A tile is SHIFT half-words a lane; two make a stored word, and the very last one is not stored but returned:
 * it goes into the coder's first state.
 */
template <int SHIFT>
__device__ static inline uint32_t low_store(struct encode_state *st, const uint32_t *w, uint8_t *low,
					    uint32_t tile, uint32_t tiles, uint32_t lane)
{
	const uint32_t last = tiles * SHIFT - 1u;
	uint32_t carried = 0;

#pragma unroll
	for (int i = SHIFT - 1; i >= 0; i--) {
		const uint32_t at = tile * SHIFT + i, half = w[i / 2] >> (i % 2 * 16) & 0xffffu;
		uint8_t *row = low + (uint64_t)(at / 2u) * 128u;

		if (at == last)
			carried = half;
		else if (at % 2u)
			st->low_high = half << 16;
		else if (at + 1u == last)
			((uint16_t *)row)[lane] = (uint16_t)half;
		else
			((uint32_t *)row)[lane] = half | st->low_high;
	}
	return carried;
}

template <int BYTES, int SHIFT>
__device__ static void encode_chunk(const struct encode_job *j, struct encode_state *st,
				    const struct xxh3_lane *xx, uint32_t lane)
{
	const struct gpu_chunk *c = j->chunk;
	const uint32_t tokens = j->region->g.tokens;
	const uint32_t above = lane == 31u ? 0 : FULL_MASK << (lane + 1u);
	uint8_t *low = j->scratch + STATES_BYTES, *escapes_end = j->scratch + c->escapes_end;
	uint32_t tile_index = c->tiles;

	for (uint32_t i = c->end_segment; i-- > c->first_segment;) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint32_t context = st->coding && j->profile->context[i] ? CODEC_TOKENS_PITCH : 0;
		const uint8_t *base = segment_base(j->region, seg, j->block_index);
		uint32_t digest = seg->first_leaf + seg->rows_per_token * (tokens / TILE_ROWS) / (2u / BYTES);

		for (uint32_t r = seg->rows_per_token; r-- > 0;) {
			const uint32_t col =
				st->coding ? j->profile->column[seg->first_column + r * 32u + lane] : 0;
			const uint32_t top = col & 1023u, width = col >> COLUMN_WIDTH_SHIFT & 63u;
			const uint32_t flip = col >> COLUMN_FLIP_SHIFT & 1u;
			const uint64_t *table = j->enc + (col >> COLUMN_TABLE_SHIFT) * CODEC_TOKENS_PITCH;
			uint32_t pending = 0;

			for (uint32_t t = tokens; t > 0;) {
				const bool last = tile_index == c->tiles, upper = t < tokens;
				uint32_t token[TILE_ROWS], w[SHIFT == 0 ? 1 : (SHIFT * 16 + 31) / 32] = { 0 };
				uint32_t escaped = 0;

				t -= TILE_ROWS;
				tile_index--;
				const uint32_t half = BYTES == 1 ? tile_index & 1u : 0;
				uint8_t *tile = j->leaf + half * (LEAF_BYTES / 2u);

				tile_load<BYTES>(seg, base, r * 32u, t, tile, lane);
				__syncwarp();
				if (BYTES == 2 || !half) {
					uint64_t h = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);

					digest--;
					if (lane == 0)
						j->digests[digest] = h;
				}
				if (st->coding) {
#pragma unroll
					for (int k = 0; k < (int)TILE_ROWS; k++) {
						const uint32_t p = BYTES == 2 ? ((const uint16_t *)tile)[k * 32 + lane]
									      : tile[k * 32 + lane];
						const int bit = k * SHIFT;

						token[k] = codec_token_of(p, BYTES * 8, SHIFT, top, width, flip);
						escaped |= (uint32_t)(token[k] == CODEC_TOKEN_ESC) << k;
						if (SHIFT > 0) {
							const uint32_t v = p & ((1u << SHIFT) - 1u);

							w[bit / 32] |= v << (bit % 32);
							if (bit % 32 + SHIFT > 32)
								w[bit / 32 + 1] |= v >> (32 - bit % 32);
						}
					}
					const uint32_t carried = low_store<SHIFT>(st, w, low, tile_index, c->tiles,
									  lane);

					if (last)
						st->x = CODEC_STATE_LOW | carried;
					if (__any_sync(FULL_MASK, escaped))
						st->escapes_count += tile_collect<BYTES>(
							escapes_end - st->escapes_count * BYTES,
							c->escapes_max - st->escapes_count, tile, escaped, lane);
					/* 17 rows at most, a word a lane. */
					st->coding = st->escapes_count <= c->escapes_max &&
						     st->words - st->words_limit >= 17 * 32;
				}
				if (st->coding) {
					if (upper)
						encode_step(st, table + codec_context_of(token[TILE_ROWS - 1]) * context,
							    pending, above);
#pragma unroll
					for (int k = (int)TILE_ROWS - 1; k > 0; k--)
						encode_step(st, table + codec_context_of(token[k - 1]) * context,
							    token[k], above);
					pending = token[0];
					if (t == 0)
						encode_step(st, table, pending, above);
				}
				__syncwarp();
			}
		}
	}
}

/* Digests of a chunk that is kept raw whatever it holds. */
__device__ static void digest_chunk_bytes(const struct encode_job *j, const struct xxh3_lane *xx, uint32_t lane)
{
	for (uint32_t i = j->chunk->first_segment; i < j->chunk->end_segment; i++) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		uint8_t *base = segment_base(j->region, seg, j->block_index);

		for (uint64_t off = 0, leaf = seg->first_leaf; off < seg->bytes; off += LEAF_BYTES, leaf++) {
			for (uint32_t b = lane; b < LEAF_BYTES; b += WARP_LANES)
				j->leaf[b] = off + b < seg->bytes ? *canonical_at(seg, base, off + b) : 0;
			__syncwarp();
			uint64_t h = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);

			if (lane == 0)
				j->digests[leaf] = h;
			__syncwarp();
		}
	}
}

/* `code` false: digests only. */
__device__ static inline void encode_any(const struct encode_job *j, struct encode_state *st,
					 const struct xxh3_lane *xx, uint32_t lane)
{
	if (j->chunk->element_bytes == 2) {
		if (j->chunk->shift == 5)
			encode_chunk<2, 5>(j, st, xx, lane);
		else
			encode_chunk<2, 8>(j, st, xx, lane);
	} else if (j->chunk->shift == 1) {
		encode_chunk<1, 1>(j, st, xx, lane);
	} else {
		encode_chunk<1, 0>(j, st, xx, lane);
	}
}

#endif
