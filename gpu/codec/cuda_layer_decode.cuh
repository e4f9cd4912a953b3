/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_decode.cuh - one stream's share of one segment, by one warp: rANS with 32 states, the values that they
 * say beside the guesses, checksum, and the way to the pages.  States are parked in scratch between segments.
 *
 * What others are guessed from is made of a tile while it is at hand.  Keys are turned back for that, by pairs: four
 * warps that share a tau wait for one another, as their columns are whole heads.
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
#include "gpu/codec/cuda_hopper.cuh"
#include "gpu/codec/cuda_layer.cuh"

struct layer_decoder { /* one lane's */
	uint32_t x;
	uint32_t below; /* mask of the lanes before it */
	uint32_t lane;
	uint32_t token;	     /* shared address: [class][slot] */
	const uint32_t *enc; /* shared: [class][token] */
	const uint32_t *tau_dec;
	const int16_t *grids; /* shared */
	struct warp_words w;
};

#define LAYER_DECODE_TAU (LAYER_SHARED_TOKEN + LAYER_SHARED_ENC)
#define LAYER_DECODE_GRIDS (LAYER_DECODE_TAU + LAYER_SHARED_TAU)
#define LAYER_DECODE_TABLES                                          \
	((LAYER_DECODE_GRIDS + LAYER_GRID_BYTES + RING_BYTES - 1u) & \
	 ~(RING_BYTES - 1u)) /* rings follow, which are aligned */

/* What a decoder needs in shared memory, by the whole thread block. */
__device__ static inline void layer_decode_tables_load(uint8_t *to,
						       const struct gpu_layer_tables *tables,
						       const struct gpu_layer_grids *grids)
{
	tables_load(to, tables, LAYER_DECODE_GRIDS);
	tables_load(to + LAYER_DECODE_GRIDS, grids, LAYER_GRID_BYTES);
}

__device__ __align__(16) uint64_t layer_checksum_table[XXH3_FIELDS * WARP_LANES];

/*
 * Likewise, with the checksum's constants before them, and the taus' table of the next segment.  They are on their way
 * afterwards; layer_decode_tables_wait() is for each warp to ask, and a barrier of the thread block before that.
 */
__device__ static inline void layer_decode_tables_begin(uint64_t *barrier, uint8_t *to,
							const struct gpu_layer_tables *tables,
							const struct gpu_layer_tables *next,
							const struct gpu_layer_grids *grids)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	const uint32_t at = shared_at(to), full = shared_at(barrier);

	if (threadIdx.x != 0)
		return;
	mbar_init(full, 1);
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
	mbar_expect(full, XXH3_TABLE_BYTES + LAYER_DECODE_GRIDS + LAYER_GRID_BYTES);
	bulk_fetch(at, (const uint8_t *)layer_checksum_table, XXH3_TABLE_BYTES, full);
	bulk_fetch(at + XXH3_TABLE_BYTES, (const uint8_t *)tables, LAYER_DECODE_TAU, full);
	bulk_fetch(at + XXH3_TABLE_BYTES + LAYER_DECODE_TAU, (const uint8_t *)next->tau_dec,
		   LAYER_SHARED_TAU, full);
	bulk_fetch(at + XXH3_TABLE_BYTES + LAYER_DECODE_GRIDS, (const uint8_t *)grids,
		   LAYER_GRID_BYTES, full);
#else
	tables_load(to, layer_checksum_table, XXH3_TABLE_BYTES);
	tables_load(to + XXH3_TABLE_BYTES, tables, LAYER_DECODE_TAU);
	tables_load(to + XXH3_TABLE_BYTES + LAYER_DECODE_TAU, next->tau_dec, LAYER_SHARED_TAU);
	tables_load(to + XXH3_TABLE_BYTES + LAYER_DECODE_GRIDS, grids, LAYER_GRID_BYTES);
#endif
}

__device__ __forceinline__ static void layer_decode_tables_wait(const uint64_t *barrier)
{
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
	mbar_wait(shared_at(barrier), 0);
#endif
}

/* All but its words. */
__device__ __forceinline__ static void layer_decoder_init(struct layer_decoder *d,
							  const uint8_t *tables, uint32_t lane)
{
	d->lane = lane;
	d->below = (1u << lane) - 1u;
	d->token = shared_at(tables);
	d->enc = (const uint32_t *)(tables + LAYER_SHARED_TOKEN);
	d->tau_dec = (const uint32_t *)(tables + LAYER_SHARED_TOKEN + LAYER_SHARED_ENC);
	d->grids = (const int16_t *)(tables + LAYER_DECODE_GRIDS);
}

__device__ __forceinline__ static void layer_refill(struct layer_decoder *d)
{
	const bool need = d->x < CODEC_STATE_LOW;
	const uint32_t word = words_take(&d->w, need, d->below);

	d->x = need ? d->x << 16 | word : d->x;
}

/* Like table_word(), of a table's row of CODEC_PROB_SUM. */
__device__ __forceinline__ static uint32_t table_byte(uint32_t table, uint32_t row, uint32_t slot)
{
	uint32_t v;

	asm("{ .reg .u32 at; mad.lo.u32 at, %1, %4, %2; add.u32 at, at, %3; ld.shared.u8 %0, [at]; }"
	    : "=r"(v)
	    : "r"(row), "r"(table), "r"(slot), "n"(CODEC_PROB_SUM));
	return v;
}

__device__ __forceinline__ static uint32_t layer_take_token(struct layer_decoder *d,
							    uint32_t class_)
{
	const uint32_t slot = d->x & (CODEC_PROB_SUM - 1u);
	const uint32_t token = table_byte(d->token, class_, slot);
	const uint32_t e = d->enc[class_ * ENC_PITCH + token];

	d->x = (e & ENTRY_FREQ_MASK) * (d->x >> CODEC_PROB_BITS) + slot - (e >> ENTRY_START_SHIFT);
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
 * A float of a small integer has its highest bits where bf16 has them.
 */
__device__ __forceinline__ static uint32_t layer_row_bf16(struct layer_decoder *d,
							  struct layer_cell g, uint32_t token)
{
	const int32_t x = (int32_t)token - RESIDUAL_NEAR + g.mu;
	const uint32_t a = (uint32_t)(x ^ x >> 31), sign = ((uint32_t)x ^ g.sign) >> 16 & 0x8000u;
	const int32_t want = min(max(7 - layer_top(a), 0), 7);
	const uint32_t bits = layer_take_raw(d, (uint32_t)want);
	/* Below 2^23: the guess has no more than 8 bits on its grid. */
	const float whole = __int_as_float(0x4b000000 | (int32_t)(a << want | bits)) - 8388608.0f;
	uint32_t mag = (__float_as_uint(whole) >> 16) + ((g.q - (uint32_t)want - 14u) << 7);
	const bool zero = a == 0;

	if (__any_sync(FULL_MASK, zero)) {
		const int32_t m = 7 - layer_top(bits);
		const uint32_t low = layer_take_raw(d, zero ? (bits ? (uint32_t)m : 16u) : 0);
		const uint32_t small = ((g.q - (uint32_t)m + 112u) << 7) + (bits << m | low);

		mag = zero ? small : mag;
		if (zero && bits == 0)
			return low;
	}
	return (mag & 0x7fffu) | sign;
}

/* Likewise where a lane's token is a bucket or an escape: its first item comes in the first step, the others later. */
__device__ __forceinline__ static uint32_t layer_row_bf16_far(struct layer_decoder *d,
							      struct layer_cell g, uint32_t token)
{
	const bool escape = token == RESIDUAL_ESC, far = token >= RESIDUAL_BUCKET_POS && !escape;
	const bool neg = token >= RESIDUAL_BUCKET_NEG;
	const uint32_t j = token - (neg ? RESIDUAL_BUCKET_NEG : RESIDUAL_BUCKET_POS) & 15u;
	int32_t x = (int32_t)token - RESIDUAL_NEAR + g.mu;
	int32_t want = min(max(7 - layer_top((uint32_t)(x ^ x >> 31)), 0), 7);
	const uint32_t item = layer_take_raw(d, escape ? 16u : far ? j + 2u : (uint32_t)want);

	if (far) {
		const int32_t r = (int32_t)(4u << j) - 4 + RESIDUAL_NEAR + 1 + (int32_t)item;

		x = (neg ? -r : r) + g.mu;
		want = min(max(7 - layer_top((uint32_t)(x ^ x >> 31)), 0), 7);
	}
	const uint32_t a = (uint32_t)(x ^ x >> 31);
	const bool zero = a == 0 && !escape;
	const uint32_t after = zero ? (item ? (uint32_t)(7 - layer_top(item)) : 16u) : 0;

	words_need(&d->w, d->lane);
	const uint32_t second = layer_take_raw(d, escape ? 0 : far ? (uint32_t)want : after);
	const uint32_t bits = far ? second : item;
	uint32_t low = second;

	if (__any_sync(FULL_MASK, far && zero)) {
		const uint32_t third = layer_take_raw(d, !(far && zero) ? 0
							 : bits ? (uint32_t)(7 - layer_top(bits))
								: 16u);

		low = far ? third : low;
	}
	const int32_t m = 7 - layer_top(bits);
	const float whole = __int_as_float(0x4b000000 | (int32_t)(a << want | bits)) - 8388608.0f;
	const uint32_t mag = zero ? ((g.q - (uint32_t)m + 112u) << 7) + (bits << (m & 31) | low)
				  : (__float_as_uint(whole) >> 16) +
					     ((g.q - (uint32_t)want - 14u) << 7);

	return escape		   ? item
	       : zero && bits == 0 ? low
				   : (mag & 0x7fffu) | (((uint32_t)x ^ g.sign) >> 16 & 0x8000u);
}

/* One row.  words_need() was asked. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_row(struct layer_decoder *d, struct layer_cell g)
{
	const uint32_t token = layer_take_token(d, g.class_);

	if (DT != 1)
		return layer_row_any<DT>(d, layer_grid_of(g), token);
	return __any_sync(FULL_MASK, token >= RESIDUAL_BUCKET_POS) ? layer_row_bf16_far(d, g, token)
								   : layer_row_bf16(d, g, token);
}

/* The steps of all tokens, a byte each. */
__device__ __forceinline__ static void layer_taus(struct layer_decoder *d, uint32_t tokens,
						  uint8_t *tau)
{
	for (uint32_t first = 0; first < tokens; first += WARP_LANES) {
		const uint32_t t = first + d->lane;
		const bool here = t < tokens;

		words_need(&d->w, d->lane);
		if (here) {
			const uint32_t e = d->tau_dec[d->x & (CODEC_PROB_SUM - 1u)];

			tau[t] = (uint8_t)(e >> CODEC_DEC_TOKEN_SHIFT & CODEC_DEC_TOKEN_MASK);
			d->x = codec_rans_decode_step(d->x, e);
		}
		layer_refill(d);
	}
	__syncwarp();
}

struct layer_job { /* of a warp */
	const struct gpu_layer_run *run;
	const struct gpu_layer_segment *s; /* shared */
	const struct gpu_segment *seg;
	uint8_t *page; /* of the block's segment */
	uint32_t task_index, skip_tokens;
	uint32_t warp;
	uint8_t *leaf; /* shared; those of the thread block's warps follow each other */
	uint8_t *tau;  /* shared memory: a byte per token */
	uint64_t *leaves;
	uint8_t *inputs; /* of this segment, to be made here, or NULL */
};

/* What a lane's column begins with: its scale and the guesses of two rows. */
struct layer_ahead {
	int32_t base, mu[2];
};

__device__ __forceinline__ static struct layer_ahead layer_ahead_of(const int16_t *base,
								    const int32_t *mu,
								    uint32_t pitch)
{
	const struct layer_ahead a = { *base, { mu[0], mu[pitch] } };

	return a;
}

/* Do 16 rows of the pages hold other patterns than the tile? */
template <int BYTES>
__device__ __forceinline__ static bool tile_differs(const struct tile_way *way, uint32_t token,
						    const uint8_t *tile, uint32_t lane)
{
	const uint32_t parts = 32u * BYTES / 16u;
	bool differs = false;

	if (way->vector) {
#pragma unroll
		for (uint32_t v = lane; v < TILE_ROWS * parts; v += WARP_LANES) {
			const uint32_t t = token + v / parts;
			const uint4 a = *(const uint4 *)(way->at +
							 (uint64_t)t * (uint32_t)way->stride),
				    b = ((const uint4 *)tile)[v];

			differs |= ((a.x ^ b.x) | (a.y ^ b.y) | (a.z ^ b.z) | (a.w ^ b.w)) != 0;
		}
		return differs;
	}
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

/* A tile's patterns to where its guesses were, for layer_inputs_kernel: the first bytes of each row's 128. */
template <int BYTES>
__device__ __forceinline__ static void tile_keep(int32_t *mu, uint32_t pitch, const uint8_t *tile,
						 uint32_t lane)
{
	const uint32_t parts = 32u * BYTES / 16u;

#pragma unroll
	for (uint32_t v = lane; v < TILE_ROWS * parts; v += WARP_LANES)
		((uint4 *)(mu + v / parts * pitch))[v % parts] = ((const uint4 *)tile)[v];
}

/* Four patterns of a row of a tile. */
template <int DT>
__device__ __forceinline__ static void tile_words(const uint8_t *at, uint32_t (&w)[2])
{
	w[0] = ((const uint32_t *)at)[0];
	w[1] = DT <= 2 ? ((const uint32_t *)at)[1] : 0;
}

template <int DT>
__device__ __forceinline__ static uint32_t tile_inputs_of(const uint8_t *at, uint4 mul, bool narrow)
{
	uint32_t w[2];
	int32_t v[4];

	tile_words<DT>(at, w);
	layer_values_of<DT>(w, v);
	return layer_inputs_of(narrow, mul, v);
}

/* A tile of a segment that is not turned as inputs of others: a lane 16 columns of a row.  row, column: its first. */
template <int DT>
__device__ __forceinline__ static void tile_inputs(const struct layer_job *j, uint32_t row,
						   uint32_t column, const uint8_t *tile,
						   uint32_t lane)
{
	const uint32_t bytes = DT <= 2 ? 2u : 1u, c = column + lane % 2u * 16u,
		       at = row + lane / 2u;
	const uint4 *mul = (const uint4 *)(j->s->in_mul + c);
	uint8_t *to = j->inputs +
		      ((uint64_t)(c / PIECE) * j->run->rows_pieces + at / PIECE) * PIECE_BYTES +
		      piece_at(at % PIECE, c % PIECE);
	const bool narrow = j->s->narrow;
	uint4 v;

	tile += lane * 16u * bytes;
	v.x = tile_inputs_of<DT>(tile, mul[0], narrow);
	v.y = tile_inputs_of<DT>(tile + 4u * bytes, mul[1], narrow);
	v.z = tile_inputs_of<DT>(tile + 8u * bytes, mul[2], narrow);
	v.w = tile_inputs_of<DT>(tile + 12u * bytes, mul[3], narrow);
	*(uint4 *)to = v;
}

/* 16 rows of a group into the tile.  A guess is read two rows ahead, also beyond the last one.  RAWS: some are raw. */
template <int DT, bool RAWS>
__device__ __forceinline__ static void layer_tile(struct layer_decoder *d, const uint8_t *tau,
						  const struct layer_ahead *a, const int32_t *mu,
						  uint32_t pitch, uint8_t *tile)
{
	const uint32_t bytes = DT <= 2 ? 2u : 1u;
	const int32_t base = a->base;
	const int16_t *const grids = layer_grids_of(d->grids, base);
	struct layer_cell g = layer_cell_of(grids, base, a->mu[0], tau[0]);
	int32_t m = a->mu[1];

	mu += 2u * pitch;
	tile += d->lane * bytes;
#pragma unroll 2
	for (uint32_t k = 0; k < TILE_ROWS; k++, tile += 32u * bytes, mu += pitch) {
		struct layer_cell next;
		uint32_t pattern;

		words_need(&d->w, d->lane);
		/* While this row's states are on their way. */
		next = layer_cell_of(grids, base, m, tau[k + 1u]);
		m = *mu;
		if (RAWS && __any_sync(FULL_MASK, tau[k] == RESIDUAL_TAU_RAW))
			pattern = layer_take_raw(d, 8u * bytes);
		else
			pattern = layer_row<DT>(d, g);
		if (bytes == 2)
			*(uint16_t *)tile = (uint16_t)pattern;
		else
			*tile = (uint8_t)pattern;
		g = next;
	}
	__syncwarp();
}

#define QUAD_ROWS 8u /* that four warps take at once: a thread four pairs of one; twice in a tile */
static_assert(TILE_ROWS == 2u * QUAD_ROWS, "turns are two");
static_assert(LAYER_TAU_STREAMS_MAX * CODEC_LANES == PIECE, "four warps' columns are a piece's");

/* What a thread needs of a quad's tiles, beside their patterns: where its four pairs are, and their turns. */
struct quad_place {
	uint32_t column, other;
	uint4 mul, other_mul, turns[TILE_ROWS / QUAD_ROWS];
};

/* row: the first of all tasks'. */
__device__ __forceinline__ static struct quad_place quad_place_of(const struct layer_job *j,
								  uint32_t piece, uint32_t row,
								  uint32_t thread)
{
	const uint32_t pairs = j->s->pairs, at = thread % 16u * 4u, e = at & (pairs - 1u);
	struct quad_place q;

	q.column = (at - e) * 2u + e;
	q.other = q.column + pairs;
	q.mul = *(const uint4 *)(j->s->in_mul + piece * PIECE + q.column);
	q.other_mul = *(const uint4 *)(j->s->in_mul + piece * PIECE + q.other);
	for (uint32_t k = 0; k < TILE_ROWS / QUAD_ROWS; k++)
		q.turns[k] = *(
			const uint4 *)(j->run->turn +
				       (uint64_t)(row + thread / 16u + k * QUAD_ROWS) * pairs + e);
	return q;
}

/* Tiles of four warps, turned back: 128 columns of heads that are pairs altogether. */
template <int DT>
__device__ __forceinline__ static void quad_inputs(const struct layer_job *j,
						   const struct quad_place *q, uint32_t piece,
						   uint32_t row, const uint8_t *tiles,
						   uint32_t thread)
{
	const uint8_t *at = tiles + q->column / 32u * LEAF_BYTES + q->column % 32u * 2u,
		      *other_at = tiles + q->other / 32u * LEAF_BYTES + q->other % 32u * 2u;
	uint8_t *to = j->inputs +
		      ((uint64_t)piece * j->run->rows_pieces + row / PIECE) * PIECE_BYTES;
	const bool narrow = j->s->narrow;
	uint4 four = q->turns[0];

#pragma unroll 1
	for (uint32_t k = thread / 16u; k < TILE_ROWS; k += QUAD_ROWS) {
		const uint32_t t[4] = { four.x, four.y, four.z, four.w };
		uint32_t w[2], other_w[2];
		int32_t v[4], other[4];

		four = q->turns[1];
		tile_words<DT>(at + k * 64u, w);
		tile_words<DT>(other_at + k * 64u, other_w);
		layer_pairs_of<DT>(w, other_w, t, v, other);
		*(uint32_t *)(to + piece_at((row + k) % PIECE, q->column)) =
			layer_inputs_of(narrow, q->mul, v);
		*(uint32_t *)(to + piece_at((row + k) % PIECE, q->other)) =
			layer_inputs_of(narrow, q->other_mul, other);
	}
}

/* A tile as inputs of others, alone or with those of the other warps of its tau. */
template <int DT>
__device__ __forceinline__ static void layer_tile_inputs(const struct layer_job *j, uint32_t group,
							 uint32_t token, const uint8_t *tile,
							 uint32_t lane)
{
	const uint32_t row = j->task_index * j->run->tokens + token,
		       of_quad = j->warp % LAYER_TAU_STREAMS_MAX,
		       piece = group / LAYER_TAU_STREAMS_MAX, thread = of_quad * WARP_LANES + lane;

	if (DT > 2 || !j->s->pairs) {
		tile_inputs<DT>(j, row, group * CODEC_LANES, tile, lane);
		return;
	}
	const struct quad_place q = quad_place_of(j, piece, row, thread);

	streams_barrier(j->warp, LAYER_TAU_STREAMS_MAX);
	quad_inputs<DT>(j, &q, piece, row, j->leaf - of_quad * LEAF_BYTES, thread);
	streams_barrier(j->warp, LAYER_TAU_STREAMS_MAX);
}

/* A decoded tile to all that want it.  index: of the segment's tiles. */
template <int DT>
__device__ __forceinline__ static void layer_tile_out(const struct layer_job *j,
						      const struct tile_way *way,
						      const struct xxh3_lane *xx, uint32_t group,
						      uint32_t token, int32_t *mu, uint32_t index,
						      const uint8_t *tile, uint32_t lane)
{
	const int BYTES = DT <= 2 ? 2 : 1;

	tile_store<BYTES>(way, token, j->skip_tokens, tile, lane);
	if (j->s->taken && !j->inputs)
		tile_keep<BYTES>(mu, j->run->mu_columns, tile, lane);
	if (BYTES == 2 || (index & 1u)) {
		const uint64_t acc = xxh3_leaf(xx, (const uint64_t *)j->leaf, lane);
		const uint32_t leaf = j->seg->first_leaf + index / (2u / BYTES);

		if (lane < LEAF_ACCS)
			j->leaves[(uint64_t)leaf * LEAF_ACCS + lane] = acc;
	}
	if (j->inputs)
		layer_tile_inputs<DT>(j, group, token, tile, lane);
	__syncwarp();
}

/*
 * WRITE: into the pages, leaves are kept.  Else: is it what lies there?  Returns whether it is not.  FLAT: guesses are
 * the same in every row.  mu: of this
 * lane's column in the first group, whose beginning `a` is.
 */
template <int DT, bool WRITE, bool FLAT>
__device__ __forceinline__ static bool layer_share_decode(const struct layer_job *j,
							  struct layer_decoder *d,
							  const struct xxh3_lane *xx,
							  struct layer_share h, int32_t *mu,
							  struct layer_ahead a)
{
	const int BYTES = DT <= 2 ? 2 : 1;
	const uint32_t tokens = j->run->tokens, pitch = FLAT ? 0 : j->run->mu_columns;
	bool differs = false;

	for (uint32_t group = h.group_begin; group < h.group_end; group++) {
		for (uint32_t t = 0; t < tokens; t += TILE_ROWS) {
			const uint32_t index = group * (tokens / TILE_ROWS) + t / TILE_ROWS;
			uint8_t *tile = j->leaf +
					(BYTES == 1 ? (index & 1u) * (LEAF_BYTES / 2u) : 0);
			int32_t *at = mu + (uint64_t)t * pitch;

			if (__any_sync(FULL_MASK,
				       j->tau[t + d->lane % TILE_ROWS] == RESIDUAL_TAU_RAW))
				layer_tile<DT, true>(d, j->tau + t, &a, at, pitch, tile);
			else
				layer_tile<DT, false>(d, j->tau + t, &a, at, pitch, tile);
			/* Here, as the rows need the registers. */
			const struct tile_way way = tile_way_of<BYTES>(j->seg, j->page, group * 32u,
								       warp_uniform(j->seg->vector),
								       d->lane);

			/* Of the next tile, while this one goes out: of this column, or of the next group's. */
			if (t + TILE_ROWS < tokens)
				a = layer_ahead_of(j->s->base + group * 32u + d->lane,
						   at + TILE_ROWS * pitch, pitch);
			else if (group + 1u < h.group_end)
				a = layer_ahead_of(j->s->base + group * 32u + 32u + d->lane,
						   mu + 32, pitch);
			if (WRITE) {
				layer_tile_out<DT>(j, &way, xx, group, t, at - d->lane, index, tile,
						   d->lane);
			} else {
				differs |= tile_differs<BYTES>(&way, t, tile, d->lane);
				__syncwarp();
			}
		}
		mu += 32;
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
		if (bad) /* not read: it would be waited for */
			s->bad = 1;
	}
	return bad;
}

/* Likewise, from where layer_stream_leave() put it.  The ring can be read after the next barrier. */
__device__ __forceinline__ static void layer_stream_resume(const struct gpu_layer_stream *s,
							   const struct gpu_layer_aside *a,
							   struct layer_decoder *d, uint16_t *ring)
{
	const uint4 held = a->ring[d->lane];

	d->x = s->state[d->lane];
	d->w.ring = shared_at(ring);
	d->w.words = (const uint64_t *)a->words;
	d->w.end = a->end;
	d->w.pos = a->pos;
	d->w.filled = a->filled;
	d->w.ahead = a->ahead[d->lane];
	((uint4 *)ring)[d->lane] = held;
}

/* Returns whether it cannot be right. */
__device__ __forceinline__ static bool layer_stream_leave(struct gpu_layer_stream *s,
							  struct gpu_layer_aside *a,
							  const struct layer_decoder *d,
							  const uint16_t *ring, bool last, bool bad)
{
	if (last) {
		/* The end must be the beginning of an encoder. */
		bad |= d->x != CODEC_STATE_LOW || d->w.pos != d->w.end;
		return __any_sync(FULL_MASK, bad);
	}
	s->state[d->lane] = d->x;
	a->ring[d->lane] = ((const uint4 *)ring)[d->lane];
	a->ahead[d->lane] = d->w.ahead;
	if (d->lane == 0) {
		a->words = (uint64_t)d->w.words;
		a->end = d->w.end;
		a->pos = d->w.pos;
		a->filled = d->w.filled;
	}
	return __any_sync(FULL_MASK, bad || d->w.pos > d->w.end);
}

#endif
