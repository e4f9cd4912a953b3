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

__device__ static inline uint32_t shared_at(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* Never written while a kernel decodes. */
__device__ static inline uint32_t table_word(uint32_t table, uint32_t slot)
{
	uint32_t v;

	asm("{ .reg .u32 at; mad.lo.u32 at, %1, 4, %2; ld.shared.u32 %0, [at]; }" : "=r"(v) : "r"(slot), "r"(table));
	return v;
}

struct warp_words { /* where a warp stands in its words */
	uint32_t ring;	       /* shared address, aligned to RING_BYTES */
	const uint64_t *words; /* aligned down: what lies before the first word is skipped by pos */
	uint32_t end;	       /* bytes from there */
	uint32_t pos, filled;  /* bytes */
	uint64_t ahead;	       /* this lane's four words of the next 128 */
};

#define FILL_BYTES (RING_BYTES / 2u) /* 128 words: what four rows can take */

__device__ static inline uint64_t words_fetch(const struct warp_words *w, uint32_t lane)
{
	return w->filled + 8u * lane < w->end ? w->words[w->filled / 8u + lane] : 0;
}

__device__ static inline void words_fill(struct warp_words *w, uint32_t lane)
{
	__syncwarp();
	asm volatile("st.shared.u64 [%0], %1;" ::"r"(w->ring + w->filled % RING_BYTES + 8u * lane), "l"(w->ahead)
		     : "memory");
	w->filled += FILL_BYTES;
	w->ahead = words_fetch(w, lane);
	__syncwarp();
}

__device__ static inline void words_init(struct warp_words *w, const struct gpu_stream *s, uint16_t *ring,
					 uint32_t lane)
{
	w->ring = shared_at(ring);
	w->words = (const uint64_t *)((uintptr_t)s->words & ~(uintptr_t)7u);
	w->pos = (uint32_t)((uintptr_t)s->words & 7u);
	w->end = w->pos + 2u * s->words_count;
	w->filled = 0;
	w->ahead = words_fetch(w, lane);
	words_fill(w, lane);
}

/* Four rows' words are in the ring afterwards. */
__device__ static inline void words_need(struct warp_words *w, uint32_t lane)
{
	/* Asked as a vote: the compiler sees then that no lane goes another way. */
	if (__any_sync(FULL_MASK, w->filled - w->pos < FILL_BYTES))
		words_fill(w, lane);
}

/* One word for each lane that asks, in lane order. */
__device__ static inline uint32_t words_take(struct warp_words *w, bool need, uint32_t below)
{
	const uint32_t mask = __ballot_sync(FULL_MASK, need);
	const uint32_t at = w->pos + 2u * __popc(mask & below);
	uint16_t word;

	asm volatile("ld.shared.u16 %0, [%1];" : "=h"(word) : "r"((at & (RING_BYTES - 2u)) | w->ring));
	w->pos += 2u * __popc(mask);
	return word;
}

/* Low bits of one tile: 16 rows of SHIFT bits, SHIFT * 16 bits a lane, in 32-bit words. */
template <int SHIFT> struct low_bits {
	static const int WORDS = SHIFT == 0 ? 1 : (SHIFT * 16 + 31) / 32;
	uint32_t w[WORDS];

	/*
	 * Of tile `tile` from the stored rows.  The last tile's end lies beyond them: those bits are zero here, and
	 * come from the coder's last state.
	 */
	__device__ void load(const uint8_t *low, uint32_t low_bytes, uint32_t tile, uint32_t tiles, uint32_t lane)
	{
		const uint32_t bit = tile * (SHIFT * 16u), odd = bit % 32u;
		const uint8_t *at = low + bit / 32u * 128u + 4u * lane;
		uint32_t v[WORDS + 1];

		if (SHIFT == 0 || tile >= tiles)
			return;
		v[WORDS] = 0; /* a tile that begins inside a word ends with one */
		if ((bit / 32u + WORDS) * 128u <= low_bytes) {
#pragma unroll
			for (int i = 0; i < WORDS; i++)
				v[i] = ((const uint32_t *)at)[i * 32];
		} else {
			for (int i = 0; i < WORDS; i++)
				v[i] = word(low, low_bytes, bit / 32u + i, lane);
		}
#pragma unroll
		for (int i = 0; i < WORDS; i++)
			w[i] = __funnelshift_r(v[i], v[i + 1], odd);
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

/*
 * Escaped lanes of a tile take their patterns from the list.  An escape's token looks like distance 63, which no
 * other token has, so its cell tells it.  Rare.  Returns how many there were.
 */
template <int BYTES, int SHIFT>
__device__ static __noinline__ uint32_t tile_escapes(const uint8_t *escapes, uint32_t escapes_count, uint32_t used,
						     uint8_t *tile, uint32_t top, uint32_t lane)
{
	const uint32_t mask = ((1u << (BYTES * 8 - 1)) - 1u) >> SHIFT << SHIFT, below = (1u << lane) - 1u;
	const uint32_t escape = (top - (63u << SHIFT)) & mask;

	for (uint32_t k = 0; k < TILE_ROWS; k++) {
		uint8_t *to = tile + (k * 32u + lane) * BYTES;
		const uint32_t pattern = BYTES == 2 ? *(uint16_t *)to : *to;
		const bool is = (pattern & mask) == escape;
		const uint32_t all = __ballot_sync(FULL_MASK, is), at = used + __popc(all & below);

		if (is && at < escapes_count) {
			to[0] = escapes[at * BYTES];
			if (BYTES == 2)
				to[1] = escapes[at * BYTES + 1u];
		}
		used += __popc(all);
	}
	return used;
}

struct decode_job {
	const struct gpu_region *region;
	const struct gpu_chunk *chunk;
	const struct gpu_profile *profile;
	const uint32_t *dec; /* shared */
	uint8_t *leaf;	     /* shared, LEAF_BYTES of this warp */
	uint16_t *ring;	     /* shared, RING_BYTES of this warp */
	uint64_t *leaves;    /* accumulators, of the task: written, or compared when verifying */
	uint32_t block_index, skip_tokens;
};

/* Keep a leaf's accumulators, or compare them with what is there: 1 when they differ. */
template <bool WRITE>
__device__ static inline uint32_t leaf_done(const struct decode_job *j, const struct xxh3_lane *xx, uint32_t leaf,
					    uint32_t lane)
{
	const uint64_t acc = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);
	uint64_t *at = &j->leaves[leaf * LEAF_ACCS + lane % LEAF_ACCS];

	if (!WRITE)
		return *at != acc;
	if (lane < LEAF_ACCS)
		*at = acc;
	return 0;
}

/* WRITE: into the pages, leaves are stored.  Else compare leaves only.  Returns 0 or 1: not what it was. */
template <int BYTES, int SHIFT, bool WRITE>
__device__ static uint32_t decode_chunk(const struct decode_job *j, const struct gpu_stream *s,
					const struct xxh3_lane *xx, uint32_t lane)
{
	const struct gpu_chunk *c = j->chunk;
	const uint32_t tokens = warp_uniform(j->region->g.tokens), below = (1u << lane) - 1u, tables = shared_at(j->dec);
	const uint32_t tiles = warp_uniform(c->tiles), low_bytes = warp_uniform(c->low_bytes);
	const uint32_t end_segment = warp_uniform(c->end_segment);
	const uint32_t *column = j->profile->column + j->region->g.segment[c->first_segment].first_column + lane;
	uint32_t x = s->states[lane], tile_index = 0, escapes_used = 0;
	uint32_t bad = x < CODEC_STATE_LOW, col = *column;
	struct warp_words w;
	struct low_bits<SHIFT> low, ahead;

	words_init(&w, s, j->ring, lane);
	ahead.load(s->low, low_bytes, 0, tiles, lane);
	for (uint32_t i = warp_uniform(c->first_segment); i < end_segment; i++) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint32_t rows_per_token = warp_uniform(seg->rows_per_token);
		const uint32_t vector = warp_uniform(seg->vector);
		const uint32_t contexts = j->profile->context[i] ? 7u * TABLE_BYTES : 0;
		uint8_t *base = segment_base(j->region, seg, j->block_index);
		uint32_t leaf = seg->first_leaf;

		for (uint32_t r = 0; r < rows_per_token; r++) {
			const uint32_t top = ((col & 1023u) << SHIFT) ^ (col >> COLUMN_FLIP_SHIFT & 1u)
									      << (BYTES * 8 - 1);
			const uint32_t table = tables + (col >> COLUMN_TABLE_SHIFT) * TABLE_BYTES;
			const struct tile_way way = tile_way_of<BYTES>(seg, base, r * 32u, vector, lane);
			uint32_t dec = table; /* of the first token: context 0 */

			column += CODEC_LANES; /* a chunk's columns follow each other, with a row to spare */
			col = *column;
			for (uint32_t t = 0; t < tokens; t += TILE_ROWS) {
				/* Two tiles of 1-byte elements make a leaf. */
				const uint32_t half = BYTES == 1 ? tile_index & 1u : 0;
				uint8_t *tile = j->leaf + half * (LEAF_BYTES / 2u);
				uint32_t farthest = 0;

				low = ahead;
				tile_index++;
				ahead.load(s->low, low_bytes, tile_index, tiles, lane);
#pragma unroll
				for (int k = 0; k < (int)TILE_ROWS; k++) {
					if (k % 4 == 0)
						words_need(&w, lane);
					const uint32_t e = table_word(dec, x & (CODEC_PROB_SUM - 1u));

					x = (e >> SLOT_FREQ_SHIFT) * (x >> CODEC_PROB_BITS) + (e & SLOT_BIAS_MASK);
					dec = table + (e << 2 & contexts);
					const bool need = x < CODEC_STATE_LOW;
					const uint32_t word = words_take(&w, need, below);

					x = need ? x << 16 | word : x;
					/* codec_pattern_of(), for tokens that the profile allows. */
					const uint32_t below_top = (e >> (SLOT_DISTANCE_SHIFT - SHIFT)) & (63u << SHIFT);
					farthest = max(farthest, below_top);
					const uint32_t sign = BYTES == 2 ? e << 2 & 0x8000u : e >> 6 & 0x80u;
					const uint32_t pattern = ((top - below_top) ^ sign) | low.row(k);

					if (BYTES == 2)
						((uint16_t *)tile)[k * 32 + lane] = (uint16_t)pattern;
					else
						tile[k * 32 + lane] = (uint8_t)pattern;
				}
				if (tile_index == tiles) {
					bad |= x >> 16 != 1u || (SHIFT == 0 && (x & 0xffffu) != 0);
					tile_carry<BYTES, SHIFT>(tile, x & 0xffffu, lane);
				}
				if (__any_sync(FULL_MASK, farthest == 63u << SHIFT))
					escapes_used = tile_escapes<BYTES, SHIFT>(s->escapes, s->escapes_count,
										  escapes_used, tile, top, lane);
				__syncwarp();
				if (WRITE)
					tile_store<BYTES>(&way, t, j->skip_tokens, tile, lane);
				if (BYTES == 2 || half)
					bad |= leaf_done<WRITE>(j, xx, leaf++, lane);
				__syncwarp();
			}
		}
	}
	bad |= w.pos != w.end || escapes_used != s->escapes_count;
	return __any_sync(FULL_MASK, bad);
}

template <bool WRITE>
__device__ static inline uint32_t decode_any(const struct decode_job *j, const struct gpu_stream *s,
					     const struct xxh3_lane *xx, uint32_t lane)
{
	if (warp_uniform(j->chunk->element_bytes) == 2)
		return warp_uniform(j->chunk->shift) == 5 ? decode_chunk<2, 5, WRITE>(j, s, xx, lane)
					    : decode_chunk<2, 8, WRITE>(j, s, xx, lane);
	return warp_uniform(j->chunk->shift) == 1 ? decode_chunk<1, 1, WRITE>(j, s, xx, lane)
				    : decode_chunk<1, 0, WRITE>(j, s, xx, lane);
}

/* A raw chunk of coded segments: canonical bytes to the pages, through the same tiles. */
template <int BYTES>
__device__ static void raw_chunk_tiles(const struct decode_job *j, const uint8_t *payload,
				       const struct xxh3_lane *xx, uint32_t lane)
{
	const struct gpu_chunk *c = j->chunk;
	const struct gpu_segment *first = &j->region->g.segment[c->first_segment];
	const uint32_t end = warp_uniform(c->end_segment);

	for (uint32_t i = warp_uniform(c->first_segment); i < end; i++) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint8_t *from = payload + (seg->canonical_off - first->canonical_off);
		uint8_t *base = segment_base(j->region, seg, j->block_index);
		const uint32_t rows_per_token = warp_uniform(seg->rows_per_token), vector = warp_uniform(seg->vector);
		const uint32_t tokens = warp_uniform(j->region->g.tokens);
		uint32_t tile_index = 0;

		for (uint32_t r = 0; r < rows_per_token; r++) {
			const struct tile_way way = tile_way_of<BYTES>(seg, base, r * 32u, vector, lane);

			for (uint32_t t = 0; t < tokens; t += TILE_ROWS, tile_index++) {
				const uint32_t half = BYTES == 1 ? tile_index & 1u : 0;
				uint8_t *tile = j->leaf + half * (LEAF_BYTES / 2u);

				tile_load_canonical<BYTES>(seg, from, r * 32u, t, tile, lane);
				__syncwarp();
				tile_store<BYTES>(&way, t, j->skip_tokens, tile, lane);
				if (BYTES == 2 || half)
					(void)leaf_done<true>(j, xx, seg->first_leaf + tile_index / (2u / BYTES), lane);
				__syncwarp();
			}
		}
	}
}

/* A chunk of segments of unknown meaning: byte by byte, leaves in canonical order. */
__device__ static void raw_chunk_bytes(const struct decode_job *j, const uint8_t *payload,
				       const struct xxh3_lane *xx, uint32_t lane)
{
	const struct gpu_chunk *c = j->chunk;
	const struct gpu_segment *first = &j->region->g.segment[c->first_segment];
	const uint32_t end = warp_uniform(c->end_segment);

	for (uint32_t i = warp_uniform(c->first_segment); i < end; i++) {
		const struct gpu_segment *seg = &j->region->g.segment[i];
		const uint8_t *from = payload + (seg->canonical_off - first->canonical_off);
		const uint64_t row = (uint64_t)seg->columns * seg->element_bytes;
		uint8_t *base = segment_base(j->region, seg, j->block_index);

		const uint32_t leaves = warp_uniform((uint32_t)((seg->bytes + LEAF_BYTES - 1u) / LEAF_BYTES));

		for (uint32_t n = 0; n < leaves; n++) {
			const uint64_t off = (uint64_t)n * LEAF_BYTES;

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
			(void)leaf_done<true>(j, xx, seg->first_leaf + n, lane);
			__syncwarp();
		}
	}
}

#endif
