/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_decode.cuh - one chunk, by one warp: rANS, low bits, checksum and the way to the pages in one pass.
 *
 * A lane owns one coder state and one column of every row.  Words come through a small ring in shared
 * memory, filled 64 at a time, one load ahead.  Whatever the payload says, no access leaves the arrays: the
 * ring is masked, low bits and escapes are bounded, tables were checked when the profile was parsed; a wrong
 * stream gives wrong patterns, which the checks at the end and the checksum find.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_DECODE_CUH
#define SKVCD_GPU_CODEC_CUDA_DECODE_CUH

#include "gpu/codec/cuda_layout.cuh"
#include "gpu/codec/cuda_xxh3.cuh"

struct gpu_stream { /* a coded chunk */
	const uint32_t *states;
	const uint8_t *low; /* stored low-bit rows */
	const uint16_t *words; /* 2-byte aligned */
	const uint8_t *escapes;
	uint32_t words_count, escapes_count;
};

struct warp_words { /* where a warp stands in its words */
	uint16_t *ring; /* shared, RING_WORDS */
	const uint16_t *words;
	uint32_t count; /* of the stream */
	uint32_t pos, filled;
	uint32_t ahead; /* this lane's two words of the next 64 */
};

__device__ static inline uint32_t words_fetch(const struct warp_words *w, uint32_t at, uint32_t lane)
{
	uint32_t i = at + 2u * lane, lo = 0, hi = 0;

	if (i < w->count)
		lo = w->words[i];
	if (i + 1u < w->count)
		hi = w->words[i + 1u];
	return lo | hi << 16;
}

__device__ static inline void words_fill(struct warp_words *w, uint32_t lane)
{
	__syncwarp();
	((uint32_t *)w->ring)[(w->filled % RING_WORDS) / 2u + lane] = w->ahead;
	w->filled += 64u;
	w->ahead = words_fetch(w, w->filled, lane);
	__syncwarp();
}

__device__ static inline void words_init(struct warp_words *w, const struct gpu_stream *s, uint16_t *ring,
					 uint32_t lane)
{
	w->ring = ring;
	w->words = s->words;
	w->count = s->words_count;
	w->pos = w->filled = 0;
	w->ahead = words_fetch(w, 0, lane);
	words_fill(w, lane);
	words_fill(w, lane);
}

/* At least two rows' words are in the ring afterwards. */
__device__ static inline void words_need(struct warp_words *w, uint32_t lane)
{
	if (w->filled - w->pos < 2u * CODEC_LANES)
		words_fill(w, lane);
}

/* Low bits of one tile: 16 rows of SHIFT bits, SHIFT * 16 bits a lane, in 32-bit words. */
template <int SHIFT> struct low_bits {
	static const int WORDS = SHIFT == 0 ? 1 : (SHIFT * 16 + 31) / 32;
	uint32_t w[WORDS];

	/* From the stored rows; bits beyond them are zero (the carried ones come with the last tile). */
	__device__ void load(const uint8_t *low, uint32_t low_bytes, uint32_t tile, uint32_t lane)
	{
		const uint32_t bit = tile * (SHIFT * 16u), odd = bit % 32u;

		if (SHIFT == 0)
			return;
		uint32_t have = word(low, low_bytes, bit / 32u, lane);

#pragma unroll
		for (int i = 0; i < WORDS; i++) {
			uint32_t next = 0;

			/* With whole words of bits an aligned tile needs no look beyond them. */
			if (i + 1 < WORDS || odd)
				next = word(low, low_bytes, bit / 32u + i + 1u, lane);
			w[i] = odd ? have >> 16 | next << 16 : have;
			have = next;
		}
		if (SHIFT * 16 % 32)
			w[WORDS - 1] &= 0xffffu;
	}

	__device__ static uint32_t word(const uint8_t *low, uint32_t low_bytes, uint32_t j, uint32_t lane)
	{
		uint32_t at = j * 128u;

		if (at + 128u <= low_bytes)
			return *(const uint32_t *)(low + at + 4u * lane);
		if (at + 64u <= low_bytes)
			return *(const uint16_t *)(low + at + 2u * lane);
		return 0;
	}

	__device__ uint32_t row(int k) const
	{
		const int bit = k * SHIFT;

		if (SHIFT == 0)
			return 0;
		uint32_t v = w[bit / 32] >> (bit % 32);
		if (bit % 32 + SHIFT > 32)
			v |= w[bit / 32 + 1] << (32 - bit % 32);
		return v & ((1u << SHIFT) - 1u);
	}
};

/* The last 16 bits of a lane's stream were in its coder's first state: put them into the last tile. */
template <int BYTES, int SHIFT>
__device__ static inline void tile_carry(uint8_t *tile, uint32_t carried, uint32_t lane)
{
	const int bit = SHIFT == 0 ? 0 : SHIFT * 16 - 16;
	struct low_bits<SHIFT> low = { { 0 } };

	if (SHIFT == 0)
		return;
	low.w[bit / 32] = carried << bit % 32;
#pragma unroll
	for (int k = 0; k < (int)TILE_ROWS; k++) {
		if (BYTES == 2)
			((uint16_t *)tile)[k * 32 + lane] |= (uint16_t)low.row(k);
		else
			tile[k * 32 + lane] |= (uint8_t)low.row(k);
	}
}

/* Escaped lanes of a tile take their patterns from the list.  Rare.  Returns how many there were. */
template <int BYTES>
__device__ static __noinline__ uint32_t tile_escapes(const uint8_t *escapes, uint32_t escapes_count,
						     uint32_t used, uint8_t *tile, uint32_t rows,
						     uint32_t lane)
{
	uint32_t below = (1u << lane) - 1u;

	for (uint32_t k = 0; k < TILE_ROWS; k++) {
		uint32_t mask = __ballot_sync(FULL_MASK, rows >> k & 1u);
		uint32_t at = used + __popc(mask & below);

		if (rows >> k & 1u && at < escapes_count) {
			const uint8_t *from = escapes + at * BYTES;

			tile[(k * 32u + lane) * BYTES] = from[0];
			if (BYTES == 2)
				tile[(k * 32u + lane) * BYTES + 1u] = from[1];
		}
		used += __popc(mask);
	}
	return used;
}

struct decode_job {
	const struct gpu_region *region;
	const struct gpu_chunk *chunk;
	const struct gpu_profile *profile;
	const uint32_t *dec; /* shared */
	uint8_t *leaf;	     /* shared, LEAF_BYTES of this warp */
	uint16_t *ring;	     /* shared, RING_WORDS of this warp */
	uint64_t *digests;   /* of the task: written, or compared when verifying */
	uint32_t block_index, skip_tokens;
};

/* WRITE: into the pages, digests are stored.  Else compare digests only.  Returns 0 or 1: not what it was. */
template <int BYTES, int SHIFT, bool WRITE>
__device__ static uint32_t decode_chunk(const struct decode_job *j, const struct gpu_stream *s,
					const struct xxh3_lane *xx, uint32_t lane)
{
	const struct gpu_chunk *c = j->chunk;
	const uint32_t tokens = j->region->g.tokens, below = (1u << lane) - 1u;
	uint32_t x = s->states[lane], tile_index = 0, escapes_used = 0;
	uint32_t bad = x < CODEC_STATE_LOW;
	struct warp_words w;
	struct low_bits<SHIFT> low, ahead;

	words_init(&w, s, j->ring, lane);
	ahead.load(s->low, c->low_bytes, 0, lane);
	for (uint32_t i = c->first_segment; i < c->end_segment; i++) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint32_t rows_per_token = seg->rows_per_token;
		const uint32_t context = j->profile->context[i] ? CODEC_PROB_SUM : 0;
		uint8_t *base = segment_base(j->region, seg, j->block_index);
		uint32_t digest = seg->first_leaf;

		for (uint32_t r = 0; r < rows_per_token; r++) {
			const uint32_t col = j->profile->column[seg->first_column + r * 32u + lane];
			const uint32_t top = col & 1023u, flip = col >> COLUMN_FLIP_SHIFT & 1u;
			const uint32_t *table = j->dec + (col >> COLUMN_TABLE_SHIFT) * CODEC_PROB_SUM;
			const uint32_t *dec = table; /* of the first token: context 0 */

			for (uint32_t t = 0; t < tokens; t += TILE_ROWS) {
				/* Two tiles of 1-byte elements make a leaf. */
				const uint32_t half = BYTES == 1 ? tile_index & 1u : 0;
				uint8_t *tile = j->leaf + half * (LEAF_BYTES / 2u);
				uint32_t escaped = 0;

				low = ahead;
				tile_index++;
				ahead.load(s->low, c->low_bytes, tile_index, lane);
#pragma unroll
				for (int k = 0; k < (int)TILE_ROWS; k++) {
					if (k % 2 == 0)
						words_need(&w, lane);
					const uint32_t e = dec[x & (CODEC_PROB_SUM - 1u)];
					const uint32_t token = e >> CODEC_DEC_TOKEN_SHIFT & 127u;

					dec = table + (e >> CODEC_DEC_CONTEXT_SHIFT) * context;
					x = codec_rans_decode_step(x, e);
					const bool need = x < CODEC_STATE_LOW;
					const uint32_t mask = __ballot_sync(FULL_MASK, need);
					const uint32_t at = w.pos + __popc(mask & below);
					const uint32_t word = w.ring[at % RING_WORDS];

					x = need ? x << 16 | word : x;
					w.pos += __popc(mask);
					escaped |= (uint32_t)(token == CODEC_TOKEN_ESC) << k;
					const uint32_t pattern = codec_pattern_of(token, low.row(k), BYTES * 8,
										  SHIFT, top, flip);
					if (BYTES == 2)
						((uint16_t *)tile)[k * 32 + lane] = (uint16_t)pattern;
					else
						tile[k * 32 + lane] = (uint8_t)pattern;
				}
				if (tile_index == c->tiles) {
					bad |= x >> 16 != 1u || (SHIFT == 0 && (x & 0xffffu) != 0);
					tile_carry<BYTES, SHIFT>(tile, x & 0xffffu, lane);
				}
				if (__any_sync(FULL_MASK, escaped))
					escapes_used = tile_escapes<BYTES>(s->escapes, s->escapes_count,
								   escapes_used, tile, escaped, lane);
				__syncwarp();
				if (WRITE)
					tile_store<BYTES>(seg, base, r * 32u, t, j->skip_tokens, tile, lane);
				if (BYTES == 2 || half) {
					uint64_t h = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);

					if (!WRITE)
						bad |= j->digests[digest] != h;
					else if (lane == 0)
						j->digests[digest] = h;
					digest++;
				}
				__syncwarp();
			}
		}
	}
	bad |= w.pos != s->words_count || escapes_used != s->escapes_count;
	return __any_sync(FULL_MASK, bad);
}

template <bool WRITE>
__device__ static inline uint32_t decode_any(const struct decode_job *j, const struct gpu_stream *s,
					     const struct xxh3_lane *xx, uint32_t lane)
{
	if (j->chunk->element_bytes == 2)
		return j->chunk->shift == 5 ? decode_chunk<2, 5, WRITE>(j, s, xx, lane)
					    : decode_chunk<2, 8, WRITE>(j, s, xx, lane);
	return j->chunk->shift == 1 ? decode_chunk<1, 1, WRITE>(j, s, xx, lane)
				    : decode_chunk<1, 0, WRITE>(j, s, xx, lane);
}

/* A raw chunk of coded segments: canonical bytes to the pages, through the same tiles. */
template <int BYTES>
__device__ static void raw_chunk_tiles(const struct decode_job *j, const uint8_t *payload,
				       const struct xxh3_lane *xx, uint32_t lane)
{
	const struct gpu_chunk *c = j->chunk;
	const struct gpu_segment *first = &j->region->g.segment[c->first_segment];

	for (uint32_t i = c->first_segment; i < c->end_segment; i++) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint8_t *from = payload + (seg->canonical_off - first->canonical_off);
		uint8_t *base = segment_base(j->region, seg, j->block_index);
		uint32_t tile_index = 0;

		for (uint32_t r = 0; r < seg->rows_per_token; r++)
			for (uint32_t t = 0; t < j->region->g.tokens; t += TILE_ROWS, tile_index++) {
				const uint32_t half = BYTES == 1 ? tile_index & 1u : 0;
				uint8_t *tile = j->leaf + half * (LEAF_BYTES / 2u);

				tile_load_canonical<BYTES>(seg, from, r * 32u, t, tile, lane);
				__syncwarp();
				tile_store<BYTES>(seg, base, r * 32u, t, j->skip_tokens, tile, lane);
				if (BYTES == 2 || half) {
					uint64_t h = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);

					if (lane == 0)
						j->digests[seg->first_leaf + tile_index / (2u / BYTES)] = h;
				}
				__syncwarp();
			}
	}
}

/* A chunk of segments of unknown meaning: byte by byte, leaves in canonical order. */
__device__ static void raw_chunk_bytes(const struct decode_job *j, const uint8_t *payload,
				       const struct xxh3_lane *xx, uint32_t lane)
{
	const struct gpu_chunk *c = j->chunk;
	const struct gpu_segment *first = &j->region->g.segment[c->first_segment];

	for (uint32_t i = c->first_segment; i < c->end_segment; i++) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint8_t *from = payload + (seg->canonical_off - first->canonical_off);
		const uint64_t row = (uint64_t)seg->columns * seg->element_bytes;
		uint8_t *base = segment_base(j->region, seg, j->block_index);

		for (uint64_t off = 0, leaf = seg->first_leaf; off < seg->bytes; off += LEAF_BYTES, leaf++) {
			for (uint32_t b = lane; b < LEAF_BYTES; b += WARP_LANES) {
				uint64_t at = off + b;
				uint8_t v = 0;

				if (at < seg->bytes) {
					v = from[at];
					if (at >= j->skip_tokens * row)
						*canonical_at(seg, base, at) = v;
				}
				j->leaf[b] = v;
			}
			__syncwarp();
			uint64_t h = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);

			if (lane == 0)
				j->digests[leaf] = h;
			__syncwarp();
		}
	}
}

#endif
