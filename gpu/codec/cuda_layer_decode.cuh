/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_decode.cuh - one stream's share of one segment, by one warp: rANS with 32 states, the values that they
 * say beside the guesses, checksum, and the way to the pages.  States are parked in scratch between segments.
 *
 * The first raw item of a row is taken by all lanes together, whatever it means; those that have more go on in a
 * loop.  It does what residual.h's reader does, in code that fits the instruction cache.
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

__device__ __forceinline__ static uint32_t layer_take_token(struct layer_decoder *d,
							    uint32_t class_)
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

struct layer_value { /* a scalar as far as it is known */
	uint32_t a, sign;
	int32_t q, want, groups;
	bool whole; /* the next item is the pattern */
	bool group; /* the next item is a group near zero */
};

/* residual_reader_next() */
template <int DT> __device__ __forceinline__ static void layer_value_next(struct layer_value *v)
{
	const struct residual_type t = residual_type_of(DT);
	const int32_t sub = residual_sub(t, v->q);
	const int32_t low = min(t.mant_bits - residual_log2(v->a | 1u), sub);
	const bool zero = v->a == 0 && sub > 0;

	v->whole = zero && v->groups >= t.groups_max;
	v->group = zero && !v->whole;
	v->want = v->whole    ? (int32_t)t.bits
		  : v->group  ? min(t.group_bits, sub)
		  : v->a == 0 ? 0
			      : max(low, 0);
}

template <int DT>
__device__ __forceinline__ static void layer_value_is(struct layer_value *v, struct residual_grid g,
						      int32_t r)
{
	const int32_t x = r + g.mu;

	v->a = (uint32_t)(x ^ x >> 31);
	v->sign = ((uint32_t)x >> 31) ^ g.flip;
	v->q = g.q;
	v->groups = 0;
	layer_value_next<DT>(v);
}

/* The position of the highest one bit; -1 of zero. */
__device__ __forceinline__ static int32_t layer_top(uint32_t v)
{
	int32_t at;

	asm("bfind.u32 %0, %1;" : "=r"(at) : "r"(v));
	return at;
}

/* A row of any sort, after its tokens: the pattern of this lane's column. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_row_any(struct layer_decoder *d,
							 struct residual_grid g, uint32_t token)
{
	const struct residual_type t = residual_type_of(DT);
	bool bucket = false, open;
	int32_t near = 0;
	struct layer_value v;
	uint32_t bits, pattern;

	layer_value_is<DT>(&v, g, (int32_t)token - RESIDUAL_NEAR);
	if (__any_sync(FULL_MASK, token >= RESIDUAL_BUCKET_POS)) {
		const bool far = token >= RESIDUAL_BUCKET_POS, neg = token >= RESIDUAL_BUCKET_NEG;
		const uint32_t j = token - (neg ? RESIDUAL_BUCKET_NEG : RESIDUAL_BUCKET_POS);

		bucket = far && token != RESIDUAL_ESC;
		near = (int32_t)(4u << (j & 15u)) - 4 + RESIDUAL_NEAR + 1;
		v.sign = far ? neg : v.sign;
		v.whole = far ? !bucket : v.whole;
		v.group = v.group && !far;
		v.want = !far ? v.want : bucket ? (int32_t)j + 2 : (int32_t)t.bits;
	}
	bits = layer_take_raw(d, (uint32_t)v.want);
	pattern = v.whole ? bits : residual_assemble(t, v.a, v.q, v.want, bits, v.sign);
	open = bucket || v.group;
	while (__any_sync(FULL_MASK, open)) {
		words_need(&d->w, d->lane);
		if (open && bucket) {
			const int32_t r = near + (int32_t)bits;

			layer_value_is<DT>(&v, g, v.sign ? -r : r);
			bucket = false;
		} else if (open) {
			v.a = bits;
			v.q -= v.want;
			v.groups++;
			layer_value_next<DT>(&v);
		}
		bits = layer_take_raw(d, open ? (uint32_t)v.want : 0);
		if (open)
			pattern = v.whole ? bits
					  : residual_assemble(t, v.a, v.q, v.want, bits, v.sign);
		open = open && v.group;
	}
	return pattern;
}

/*
 * bf16 has 7 bits below the unit at most, and always as many as asked for: so a value near zero has one group of 7
 * bits, and then what is below its first one bit, or a pattern if it has none.  Three steps a row, without branches.
 */
__device__ __forceinline__ static uint32_t layer_row_bf16(struct layer_decoder *d,
							  struct residual_grid g, uint32_t token)
{
	const int32_t x = (int32_t)token - RESIDUAL_NEAR + g.mu;
	const uint32_t a = (uint32_t)(x ^ x >> 31), sign = ((uint32_t)x >> 31 ^ g.flip) << 15;
	const int32_t n = 7 - layer_top(a), want = max(min(n, 7), 0);
	const uint32_t bits = layer_take_raw(d, (uint32_t)want);
	/* e << 7 | mantissa, whose leading one adds to e */
	uint32_t mag = ((uint32_t)(g.q - n + 117) << 7) + ((a << want | bits) >> max(-n, 0));
	const bool zero = a == 0;

	if (__any_sync(FULL_MASK, zero)) {
		const int32_t m = 7 - layer_top(bits);
		const uint32_t low = layer_take_raw(d, zero ? (bits ? (uint32_t)m : 16u) : 0);
		const uint32_t small = ((uint32_t)(g.q - 7 - m + 117) << 7) + (bits << m | low);

		mag = zero ? small : mag;
		if (zero && bits == 0)
			return low;
	}
	return (mag & 0x7fffu) | sign;
}

/* One row.  words_need() was asked. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_row(struct layer_decoder *d,
						     struct residual_grid g)
{
	const uint32_t token = layer_take_token(d, g.class_);

	if (DT == 1 && !__any_sync(FULL_MASK, token >= RESIDUAL_BUCKET_POS))
		return layer_row_bf16(d, g, token);
	return layer_row_any<DT>(d, g, token);
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
			differs |= ((const uint16_t *)tile)[k * 32u + lane] !=
				   *(const uint16_t *)from;
		else
			differs |= tile[k * 32u + lane] != *from;
	}
	return differs;
}

#define LAYER_AHEAD 4u /* guesses in registers before their rows */

/*
 * 16 rows of a group into the tile, and as patterns where their guesses were.  Guesses are read a few rows ahead, also
 * beyond the last one.
 */
template <int DT>
__device__ __forceinline__ static void layer_tile(struct layer_decoder *d, const uint8_t *tau,
						  int32_t base, int32_t *mu, uint32_t pitch,
						  uint8_t *tile)
{
	const uint32_t bytes = DT <= 2 ? 2u : 1u;
	const bool raws = __any_sync(FULL_MASK, tau[d->lane % TILE_ROWS] == RESIDUAL_TAU_RAW);
	const int32_t *ahead = mu + LAYER_AHEAD * pitch;
	int32_t m[LAYER_AHEAD];

#pragma unroll
	for (uint32_t k = 0; k < LAYER_AHEAD; k++)
		m[k] = mu[k * pitch];
	struct residual_grid g = layer_grid<DT>(m[0], layer_scale(base, tau[0]));

	tile += d->lane * bytes;
#pragma unroll 1
	for (uint32_t k = 0; k < TILE_ROWS; k++, tile += 32u * bytes, mu += pitch, ahead += pitch) {
		struct residual_grid next;
		uint32_t pattern;

		words_need(&d->w, d->lane);
#pragma unroll
		for (uint32_t i = 0; i + 1u < LAYER_AHEAD; i++)
			m[i] = m[i + 1u];
		m[LAYER_AHEAD - 1u] = *ahead;
		/* While this row's states are on their way. */
		next = layer_grid<DT>(m[0], layer_scale(base, tau[k + 1u]));
		if (raws && __any_sync(FULL_MASK, tau[k] == RESIDUAL_TAU_RAW))
			pattern = layer_take_raw(d, 8u * bytes);
		else
			pattern = layer_row<DT>(d, g);
		if (bytes == 2)
			*(uint16_t *)tile = (uint16_t)pattern;
		else
			*tile = (uint8_t)pattern;
		*mu = (int32_t)pattern;
		g = next;
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
			uint8_t *tile = j->leaf +
					(BYTES == 1 ? (index & 1u) * (LEAF_BYTES / 2u) : 0);

			layer_tile<DT>(d, j->tau + t, scale, mu + (uint64_t)t * r->mu_columns,
				       r->mu_columns, tile);
			if (!WRITE) {
				differs |= tile_differs<BYTES>(&way, t, tile, d->lane);
				__syncwarp();
				continue;
			}
			tile_store<BYTES>(&way, t, j->task->skip_tokens, tile, d->lane);
			if (BYTES == 2 || (index & 1u)) {
				const uint64_t acc = xxh3_leaf(xx, (const uint64_t *)j->leaf,
							       d->lane);
				const uint32_t leaf = j->seg->first_leaf + index / (2u / BYTES);

				if (d->lane < LEAF_ACCS)
					j->leaves[(uint64_t)leaf * LEAF_ACCS + d->lane] = acc;
			}
			__syncwarp();
		}
	}
	return differs;
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
__device__ __forceinline__ static bool layer_stream_park(struct gpu_layer_stream *s,
							 const struct layer_decoder *d, bool last,
							 bool bad)
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
