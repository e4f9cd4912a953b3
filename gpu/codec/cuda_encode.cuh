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
	uint64_t *leaves;    /* accumulators, of the task */
	uint32_t block_index;
};

struct encode_state {
	uint32_t x;
	uint16_t *words;     /* of the scratch's end; indices are negative */
	int32_t words_at;    /* the lowest one written */
	int32_t words_limit; /* not below */
	uint32_t escapes_count;
	uint32_t low_high; /* of a low-bit word whose low half comes next */
	bool coding;	    /* false: it would not shrink, only the digests are still wanted */
};

/*
 * What a row leaves for coding: the byte offset of its token in a table (bits 0..9) and that of the context it is to
 * the row below it (from bit 10).
 */
#define ROW_TOKEN_MASK (ENTRY_TABLE_BYTES - 1u)
#define ROW_CONTEXTS (7u * ENTRY_TABLE_BYTES)
#define ROW_OF(token) ((token) * 8u + codec_context_of(token) * ENTRY_TABLE_BYTES)

/* ROW_OF(codec_token_of(pattern)), and whether it escapes. */
template <int BYTES, int SHIFT>
__device__ static inline uint32_t row_of(uint32_t pattern, uint32_t top, uint32_t width, uint32_t flip, bool *escapes)
{
	const uint32_t sign = pattern >> (BYTES * 8 - 1) ^ flip;
	const uint32_t cell = (pattern & ((1u << (BYTES * 8 - 1)) - 1u)) >> SHIFT;
	const uint32_t distance = top - cell;
	const uint32_t near = 2u * distance < CODEC_CONTEXT_NEAR_TOKENS ? 3u * ENTRY_TABLE_BYTES : ENTRY_TABLE_BYTES;
	const uint32_t row = distance * 16u + near + sign * (8u + ENTRY_TABLE_BYTES);
	const bool outside = distance >= width;

	*escapes |= outside;
	return outside ? ROW_OF(CODEC_TOKEN_ESC) : row;
}

static_assert(CODEC_CONTEXT_NEAR_TOKENS % 2u == 0, "near is a matter of the distance alone");

/* `at`: byte address of the entry in shared memory. */
__device__ static inline void encode_step(struct encode_state *st, uint32_t at, uint32_t above)
{
	uint32_t e, rcp;

	asm("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(e), "=r"(rcp) : "r"(at));
	const uint32_t freq = e >> ENTRY_FREQ_SHIFT;
	/* codec_rans_encode_spills() */
	const bool spills = st->x >= (e & ~((1u << ENTRY_FREQ_SHIFT) - 1u));
	const uint32_t mask = __ballot_sync(FULL_MASK, spills);

	/* Lanes in ascending order in memory: a decoder reads them in that order. */
	if (spills) {
		st->words[st->words_at - 1 - __popc(mask & above)] = (uint16_t)st->x;
		st->x >>= 16;
	}
	st->words_at -= __popc(mask);
	/* codec_rans_encode_step(): the reciprocal gives the quotient or one less. */
	const uint32_t q = __umulhi(st->x, rcp), rest = st->x - q * freq;
	const uint32_t gap = CODEC_PROB_SUM - freq;
	uint32_t x = q * gap + st->x + (e & ENTRY_START_MASK);

	if (rest >= freq)
		x += gap;
	st->x = x;
}

/*
 * Patterns of the escaped lanes of a tile, last row first, downwards from `end`.  Rare.  Returns how many there are;
 * beyond `room` nothing is written.
 */
template <int BYTES, int SHIFT>
__device__ static __noinline__ uint32_t tile_collect(uint8_t *end, uint32_t room, const uint8_t *tile, uint32_t top,
						     uint32_t width, uint32_t lane)
{
	const uint32_t above = lane == 31u ? 0 : FULL_MASK << (lane + 1u);
	uint32_t n = 0;

	for (int k = (int)TILE_ROWS - 1; k >= 0; k--) {
		const uint8_t *from = tile + (k * 32u + lane) * BYTES;
		const uint32_t pattern = BYTES == 2 ? *(const uint16_t *)from : *from;
		const bool is = codec_token_of(pattern, BYTES * 8, SHIFT, top, width, 0) == CODEC_TOKEN_ESC;
		const uint32_t mask = __ballot_sync(FULL_MASK, is), at = n + 1u + __popc(mask & above);

		if (is && at <= room) {
			end[-(int)(at * BYTES)] = (uint8_t)pattern;
			if (BYTES == 2)
				end[-(int)(at * BYTES) + 1] = (uint8_t)(pattern >> 8);
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
	const uint32_t tokens = warp_uniform(j->region->g.tokens), tiles = warp_uniform(c->tiles);
	const uint32_t first_segment = warp_uniform(c->first_segment);
	const uint32_t above = lane == 31u ? 0 : FULL_MASK << (lane + 1u);
	const uint32_t tables = (uint32_t)__cvta_generic_to_shared(j->enc);
	uint8_t *low = j->scratch + STATES_BYTES, *escapes_end = j->scratch + c->escapes_end;
	uint32_t tile_index = tiles;

	for (uint32_t i = warp_uniform(c->end_segment); i-- > first_segment;) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint32_t rows_per_token = warp_uniform(seg->rows_per_token);
		const uint32_t vector = warp_uniform(seg->vector);
		const uint32_t contexts = st->coding && j->profile->context[i] ? ROW_CONTEXTS : 0;
		uint8_t *base = segment_base(j->region, seg, j->block_index);
		uint32_t leaf = seg->first_leaf + rows_per_token * (tokens / TILE_ROWS) / (2u / BYTES);

		for (uint32_t r = rows_per_token; r-- > 0;) {
			const uint32_t col =
				st->coding ? j->profile->column[seg->first_column + r * 32u + lane] : 0;
			const uint32_t top = col & 1023u, width = col >> COLUMN_WIDTH_SHIFT & 63u;
			const uint32_t flip = col >> COLUMN_FLIP_SHIFT & 1u;
			const uint32_t table = tables + (col >> COLUMN_TABLE_SHIFT) * ENTRY_TABLE_BYTES;
			const struct tile_way way = tile_way_of<BYTES>(seg, base, r * 32u, vector, lane);
			uint32_t pending = 0;

			for (uint32_t t = tokens; t > 0;) {
				const bool last = tile_index == tiles, upper = t < tokens;
				uint32_t row[TILE_ROWS], w[SHIFT == 0 ? 1 : (SHIFT * 16 + 31) / 32] = { 0 };
				bool escapes = false;

				t -= TILE_ROWS;
				tile_index--;
				const uint32_t half = BYTES == 1 ? tile_index & 1u : 0;
				uint8_t *tile = j->leaf + half * (LEAF_BYTES / 2u);

				tile_load<BYTES>(&way, t, tile, lane);
				__syncwarp();
				if (BYTES == 2 || !half) {
					uint64_t acc = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);

					leaf--;
					if (lane < LEAF_ACCS)
						j->leaves[leaf * LEAF_ACCS + lane] = acc;
				}
				if (st->coding) {
#pragma unroll
					for (int k = 0; k < (int)TILE_ROWS; k++) {
						const uint32_t p = BYTES == 2 ? ((const uint16_t *)tile)[k * 32 + lane]
									      : tile[k * 32 + lane];
						const int bit = k * SHIFT;

						row[k] = row_of<BYTES, SHIFT>(p, top, width, flip, &escapes);
						if (SHIFT > 0) {
							const uint32_t v = p & ((1u << SHIFT) - 1u);

							w[bit / 32] |= v << (bit % 32);
							if (bit % 32 + SHIFT > 32)
								w[bit / 32 + 1] |= v >> (32 - bit % 32);
						}
					}
					const uint32_t carried = low_store<SHIFT>(st, w, low, tile_index, tiles,
									  lane);

					if (last)
						st->x = CODEC_STATE_LOW | carried;
					if (__any_sync(FULL_MASK, escapes))
						st->escapes_count += tile_collect<BYTES, SHIFT>(
							escapes_end - st->escapes_count * BYTES,
							c->escapes_max - st->escapes_count, tile, top, width, lane);
					/* 17 rows at most, a word a lane. */
					st->coding = st->escapes_count <= c->escapes_max &&
						     st->words_at - st->words_limit >= 17 * 32;
				}
				if (st->coding) {
					if (upper)
						encode_step(st, table + pending + (row[TILE_ROWS - 1] & contexts), above);
#pragma unroll
					for (int k = (int)TILE_ROWS - 1; k > 0; k--)
						encode_step(st, table + (row[k] & ROW_TOKEN_MASK) + (row[k - 1] & contexts),
							    above);
					pending = row[0] & ROW_TOKEN_MASK;
					if (t == 0)
						encode_step(st, table + pending, above);
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
			uint64_t acc = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);

			if (lane < LEAF_ACCS)
				j->leaves[leaf * LEAF_ACCS + lane] = acc;
			__syncwarp();
		}
	}
}

/* `code` false: digests only. */
__device__ static inline void encode_any(const struct encode_job *j, struct encode_state *st,
					 const struct xxh3_lane *xx, uint32_t lane)
{
	if (warp_uniform(j->chunk->element_bytes) == 2) {
		if (warp_uniform(j->chunk->shift) == 5)
			encode_chunk<2, 5>(j, st, xx, lane);
		else
			encode_chunk<2, 8>(j, st, xx, lane);
	} else if (warp_uniform(j->chunk->shift) == 1) {
		encode_chunk<1, 1>(j, st, xx, lane);
	} else {
		encode_chunk<1, 0>(j, st, xx, lane);
	}
}

#endif
