/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_decode.cuh - one stream's share of one segment, by one warp: rANS with 32 states, the values that they
 * say beside the guesses, checksum, and the way to the pages.  States are parked in scratch between segments.
 *
 * What most rows are made of (a token within RESIDUAL_NEAR, bits below the unit) is written out here; a row with a
 * bucket or an escape in any lane goes through residual.h's reader.  Both do what residual_code.c does.
 *
 * Whatever the payload says, no access leaves the arrays: words are masked in the ring and fetched within their
 * bounds, tables were checked when the profile was parsed.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_DECODE_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_DECODE_CUH

#include "gpu/codec/cuda_decode.cuh"
#include "gpu/codec/cuda_layer.cuh"

struct layer_decoder { /* one lane's */
	uint32_t x;
	uint32_t below; /* mask of the lanes before it */
	uint32_t lane;
	const uint8_t *token; /* shared: [class][slot] */
	const uint32_t *enc;  /* shared: [class][token] */
	struct warp_words w;
};

__device__ __forceinline__ static void layer_refill(struct layer_decoder *d)
{
	const bool need = d->x < CODEC_STATE_LOW;
	const uint32_t word = words_take(&d->w, need, d->below);

	d->x = need ? d->x << 16 | word : d->x;
}

__device__ __forceinline__ static uint32_t layer_take_token(struct layer_decoder *d, uint32_t class_)
{
	const uint32_t slot = d->x & (CODEC_PROB_SUM - 1u);
	const uint32_t token = d->token[class_ * CODEC_PROB_SUM + slot];
	const uint32_t e = d->enc[class_ * RESIDUAL_TOKENS + token];

	d->x = (e & 0xffffu) * (d->x >> CODEC_PROB_BITS) + slot - (e >> 16);
	layer_refill(d);
	return token;
}

/* bits: 0..16 */
__device__ __forceinline__ static uint32_t layer_take_raw(struct layer_decoder *d, uint32_t bits)
{
	const uint32_t v = d->x & ((1u << bits) - 1u);

	d->x >>= bits;
	layer_refill(d);
	return v;
}

/* A row with buckets or escapes in it. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_row_any(struct layer_decoder *d, struct residual_grid g,
					 uint32_t token)
{
	const struct residual_type t = residual_type_of(DT);
	struct residual_reader rd;

	rd.pattern = 0;
	residual_reader_start(&rd, t, g, token);
	while (__any_sync(FULL_MASK, rd.want > 0)) {
		words_need(&d->w, d->lane);
		const uint32_t v = layer_take_raw(d, (uint32_t)rd.want);

		if (rd.want > 0)
			residual_reader_feed(&rd, t, g, v);
	}
	return rd.pattern;
}

/* Lanes that were within a unit of zero (`open`) have taken their first group, v of `want` bits. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_row_zeros(struct layer_decoder *d, bool open, int32_t q,
					   int32_t want, uint32_t v, uint32_t sign,
					   uint32_t pattern)
{
	const struct residual_type t = residual_type_of(DT);
	int32_t groups = 0;

	while (__any_sync(FULL_MASK, open)) {
		const uint32_t a = v;
		bool whole = false, more = false;

		if (open) {
			q -= want;
			groups++;
			const int32_t sub = residual_sub(t, q);

			whole = a == 0 && sub > 0 && groups >= t.groups_max;
			more = a == 0 && sub > 0 && !whole;
			want = a ? max(min(t.mant_bits - residual_log2(a), sub), 0)
			       : sub <= 0 ? 0
			       : whole	  ? (int32_t)t.bits
					  : min(t.group_bits, sub);
		}
		words_need(&d->w, d->lane);
		v = layer_take_raw(d, open ? (uint32_t)want : 0);
		if (open && !more)
			pattern = whole ? v : residual_assemble(t, a, q, want, v, sign);
		open = open && more;
	}
	return pattern;
}

/* One row: the pattern of this lane's column.  words_need() was asked. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_row(struct layer_decoder *d, struct residual_grid g)
{
	const struct residual_type t = residual_type_of(DT);
	const uint32_t token = layer_take_token(d, g.class_);

	if (__any_sync(FULL_MASK, token >= RESIDUAL_BUCKET_POS))
		return layer_row_any<DT>(d, g, token);
	const int32_t x = (int32_t)token - RESIDUAL_NEAR + g.mu, sub = residual_sub(t, g.q);
	const uint32_t a = (uint32_t)(x ^ x >> 31), sign = ((uint32_t)x >> 31) ^ g.flip;
	const int32_t below = a ? t.mant_bits - residual_log2(a | 1u) : t.group_bits;
	const int32_t want = max(min(below, sub), 0);
	const uint32_t v = layer_take_raw(d, (uint32_t)want);
	const uint32_t pattern = residual_assemble(t, a, g.q, want, v, sign);

	return layer_row_zeros<DT>(d, a == 0 && want > 0, g.q, want, v, sign, pattern);
}

/* The steps of all tokens, a byte each. */
__device__ __forceinline__ static void layer_taus(struct layer_decoder *d, const uint32_t *tau_dec,
					 uint32_t tokens, uint8_t *tau)
{
	for (uint32_t t = d->lane; t < tokens + d->lane; t += WARP_LANES) {
		const bool here = t < tokens;

		words_need(&d->w, d->lane);
		if (here) {
			const uint32_t e = tau_dec[d->x & (CODEC_PROB_SUM - 1u)];

			tau[t] = (uint8_t)(e >> CODEC_DEC_TOKEN_SHIFT & CODEC_DEC_TOKEN_MASK);
			d->x = codec_rans_decode_step(d->x, e);
		}
		layer_refill(d);
	}
	__syncwarp();
}

struct layer_job { /* of a warp */
	const struct gpu_layer_run *run;
	const struct gpu_layer_segment *s;
	const struct gpu_task *task;
	const struct gpu_segment *seg;
	uint32_t task_index;
	uint8_t *leaf; /* shared */
	uint8_t *tau;  /* shared, a byte per token */
	uint64_t *leaves;
};

/* Does a lane's column of 16 rows hold other patterns than the tile? */
template <int BYTES>
__device__ __forceinline__ static bool tile_differs(const struct tile_way *way, uint32_t token,
					   const uint8_t *tile, uint32_t lane)
{
	bool differs = false;

#pragma unroll 4
	for (uint32_t k = 0; k < TILE_ROWS; k++) {
		const uint8_t *from = way->at + (token + k) * way->stride;

		if (BYTES == 2)
			differs |= ((const uint16_t *)tile)[k * 32u + lane] != *(const uint16_t *)from;
		else
			differs |= tile[k * 32u + lane] != *from;
	}
	return differs;
}

#define LAYER_ROWS 4u /* guesses in registers ahead of their rows */

/* 16 rows of a group into the tile, and as patterns where their guesses were. */
template <int DT>
__device__ __forceinline__ static void layer_tile(struct layer_decoder *d, const uint8_t *tau,
						  int32_t base, int32_t *mu, uint32_t pitch,
						  uint8_t *tile)
{
	const uint32_t bytes = DT <= 2 ? 2u : 1u;
	int32_t m[LAYER_ROWS], ahead[LAYER_ROWS];

#pragma unroll
	for (uint32_t k = 0; k < LAYER_ROWS; k++)
		m[k] = mu[k * pitch];
	struct residual_grid g = layer_grid<DT>(m[0], layer_scale(base, tau[0]));
#pragma unroll 1
	for (uint32_t row = 0; row < TILE_ROWS; row += LAYER_ROWS) {
		const uint32_t next_row = (row + LAYER_ROWS) % TILE_ROWS;

#pragma unroll
		for (uint32_t k = 0; k < LAYER_ROWS; k++)
			ahead[k] = mu[(next_row + k) * pitch];
#pragma unroll
		for (uint32_t k = 0; k < LAYER_ROWS; k++) {
			const bool raw = tau[row + k] == RESIDUAL_TAU_RAW;
			struct residual_grid next;
			uint32_t pattern;

			words_need(&d->w, d->lane);
			/* While this row's states are on their way. */
			next = layer_grid<DT>(k + 1u < LAYER_ROWS ? m[(k + 1u) % LAYER_ROWS] : ahead[0],
					      layer_scale(base, tau[(row + k + 1u) % TILE_ROWS]));
			if (__any_sync(FULL_MASK, raw))
				pattern = layer_take_raw(d, 8u * bytes);
			else
				pattern = layer_row<DT>(d, g);
			if (bytes == 2)
				((uint16_t *)tile)[(row + k) * 32u + d->lane] = (uint16_t)pattern;
			else
				tile[(row + k) * 32u + d->lane] = (uint8_t)pattern;
			mu[(row + k) * pitch] = (int32_t)pattern;
			g = next;
		}
#pragma unroll
		for (uint32_t k = 0; k < LAYER_ROWS; k++)
			m[k] = ahead[k];
	}
	__syncwarp();
}

/* WRITE: into the pages, leaves are kept.  Else: is it what lies there?  Returns whether it is not. */
template <int DT, bool WRITE>
__device__ static bool layer_share_decode(const struct layer_job *j, struct layer_decoder *d,
					  const struct xxh3_lane *xx, struct layer_share h)
{
	const int BYTES = DT <= 2 ? 2 : 1;
	const struct gpu_layer_run *r = j->run;
	const uint32_t tokens = r->tokens, vector = warp_uniform(j->seg->vector);
	uint8_t *base = segment_base(j->task->region, j->seg, j->task->block_index);
	bool differs = false;

	layer_taus(d, r->layer.tables[j->s->tables].tau_dec, tokens, j->tau);
	for (uint32_t group = h.group_begin; group < h.group_end; group++) {
		const uint32_t column = group * 32u + d->lane;
		const struct tile_way way = tile_way_of<BYTES>(j->seg, base, group * 32u,
							       WRITE ? vector : 0, d->lane);
		int32_t *mu = r->mu + (uint64_t)j->task_index * tokens * r->mu_columns + column;
		const int32_t scale = j->s->base[column];

		for (uint32_t t = 0; t < tokens; t += TILE_ROWS) {
			const uint32_t index = group * (tokens / TILE_ROWS) + t / TILE_ROWS;
			uint8_t *tile = j->leaf + (BYTES == 1 ? (index & 1u) * (LEAF_BYTES / 2u) : 0);

			layer_tile<DT>(d, j->tau + t, scale, mu + (uint64_t)t * r->mu_columns,
				       r->mu_columns, tile);
			if (!WRITE) {
				differs |= tile_differs<BYTES>(&way, t, tile, d->lane);
				__syncwarp();
				continue;
			}
			tile_store<BYTES>(&way, t, j->task->skip_tokens, tile, d->lane);
			if (BYTES == 2 || (index & 1u)) {
				const uint64_t acc = xxh3_leaf(xx, (const uint64_t *)j->leaf, d->lane);
				const uint32_t leaf = j->seg->first_leaf + index / (2u / BYTES);

				if (d->lane < LEAF_ACCS)
					j->leaves[(uint64_t)leaf * LEAF_ACCS + d->lane] = acc;
			}
			__syncwarp();
		}
	}
	return differs;
}

template <bool WRITE>
__device__ __forceinline__ static bool layer_share_any(const struct layer_job *j, struct layer_decoder *d,
					      const struct xxh3_lane *xx, struct layer_share h)
{
	switch (j->s->dtype) {
	case 1:
		return layer_share_decode<1, WRITE>(j, d, xx, h);
	case 2:
		return layer_share_decode<2, WRITE>(j, d, xx, h);
	case 3:
		return layer_share_decode<3, WRITE>(j, d, xx, h);
	default:
		return layer_share_decode<4, WRITE>(j, d, xx, h);
	}
}

/* Where a stream stands, from its place in scratch, and back. */
__device__ __forceinline__ static void layer_stream_load(const struct gpu_layer_stream *s,
						struct layer_decoder *d, uint16_t *ring)
{
	struct gpu_stream words;

	words.words = (const uint16_t *)s->words;
	words.words_count = s->left;
	d->x = s->state[d->lane];
	words_init(&d->w, &words, ring, d->lane);
}

/* Returns whether it cannot be right. */
__device__ __forceinline__ static bool layer_stream_park(struct gpu_layer_stream *s, const struct layer_decoder *d,
						bool last, bool bad)
{
	const bool under = d->w.pos > d->w.end;

	s->state[d->lane] = d->x;
	/* The end must be the beginning of an encoder. */
	bad |= last && (d->x != CODEC_STATE_LOW || d->w.pos != d->w.end);
	bad = __any_sync(FULL_MASK, bad || under);
	if (d->lane == 0) {
		s->words = (uint64_t)d->w.words + (under ? d->w.end : d->w.pos);
		s->left = under ? 0 : (d->w.end - d->w.pos) / 2u;
		s->bad |= bad;
	}
	return bad;
}

#endif
