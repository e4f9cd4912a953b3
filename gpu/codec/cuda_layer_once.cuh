/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_once.cuh - an encoder of 2-byte elements, for streams that have one column group of each segment: a warp
 * takes its stream from guesses and pages to words, through several segments, the last first.  What lies between stays
 * in shared memory.
 *
 * A tile is 16 tokens.  Warps that share their taus wait for one another twice in a tile: for the errors of all, which
 * say the taus, and for the costs of all, which say whether a row is better raw.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_ONCE_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_ONCE_CUH

#include "gpu/codec/cuda_layer_encode.cuh"

#define ONCE_WARPS 32u /* at most, of a thread block; a multiple of LAYER_TAU_STREAMS_MAX */

struct once_room { /* of a warp, in shared memory; taus of all tokens lie elsewhere */
	uint2 cell[TILE_ROWS][WARP_LANES]; /* guess and pattern of a scalar, then its symbol */
	uint32_t errors[TILE_ROWS], costs[TILE_ROWS]; /* of its columns, for the others too */
};

#define ONCE_ENC_AT 0u
#define ONCE_GRIDS_AT (LAYER_TABLES * LAYER_SHARED_ENC)
#define ONCE_RCP_AT (ONCE_GRIDS_AT + LAYER_GRID_BYTES)
#define ONCE_ROOMS_AT (ONCE_RCP_AT + CODEC_PROB_SUM * 4u)
#define ONCE_TAUS_AT (ONCE_ROOMS_AT + ONCE_WARPS * (uint32_t)sizeof(struct once_room))
static_assert(ONCE_GRIDS_AT % 16u == 0 && ONCE_RCP_AT % 16u == 0 && ONCE_ROOMS_AT % 16u == 0 &&
		      ONCE_TAUS_AT % 4u == 0,
	      "parts are aligned");

CODEC_HD uint32_t once_shared(uint32_t tokens)
{
	return ONCE_TAUS_AT + ONCE_WARPS * tokens;
}

/* What does not change with the segment.  Reciprocals of frequencies are the same in all tables. */
__device__ static inline void once_tables_load(uint8_t *to, const struct gpu_layer *l,
					       const struct gpu_layer_grids *grids)
{
	for (uint32_t i = 0; i < LAYER_TABLES; i++)
		tables_load(to + ONCE_ENC_AT + i * LAYER_SHARED_ENC, l->tables[i].enc,
			    LAYER_SHARED_ENC);
	tables_load(to + ONCE_GRIDS_AT, grids, LAYER_GRID_BYTES);
	tables_load(to + ONCE_RCP_AT, l->tables[0].rcp, CODEC_PROB_SUM * 4u);
}

struct once_job { /* of a warp and a segment */
	const struct gpu_layer_segment *s;
	const uint32_t *enc;	  /* shared, like the next */
	const int16_t *grids;	  /* of this lane's column */
	struct once_room *room;	  /* of the first warp that shares its taus */
	uint8_t *tau;		  /* this warp's own, of all tokens */
	const int32_t *mu;	  /* this lane's column of the first token */
	struct layer_place place; /* likewise */
	int32_t base;		  /* clamped */
	uint32_t pitch, tokens;
	uint32_t warp, each; /* that share their taus */
};

#define LOAD_ROWS 8u /* of a tile, on their way at once */

/* Errors of rows, in 64ths of sigma: lane first + k has row k's sum. */
template <int DT>
__device__ __forceinline__ static uint32_t once_errors(const uint32_t (&pattern)[LOAD_ROWS],
						       const int32_t (&mu)[LOAD_ROWS], int32_t base,
						       uint32_t first, uint32_t lane)
{
	const uint32_t factor = layer_error_factor(base);
	const bool slow = __any_sync(FULL_MASK, factor == 0);
	uint32_t most = 0, mine = 0;

#pragma unroll
	for (uint32_t k = 0; k < LOAD_ROWS; k++)
		most = max(most, pattern[k] & 0x7fffu);
	const bool large = DT != 1 || __any_sync(FULL_MASK, most >= LAYER_FIXED_LARGE);

#pragma unroll
	for (uint32_t k = 0; k < LOAD_ROWS; k++) {
		const int32_t x = large ? layer_fixed<DT>(pattern[k])
					: __float2int_rz(__uint_as_float(pattern[k] << 16) *
							 (float)(1u << RESIDUAL_FRAC));
		const uint32_t d = __sad(x, mu[k], 0);
		const uint32_t ratio = slow ? layer_error_ratio(d, base)
					    : min(__umulhi(d, factor), ERROR_MOST);
		const uint32_t sum = layer_warp_sum(ratio);

		mine = lane == first + k ? sum : mine;
	}
	return mine;
}

/* Guesses and patterns of a tile into the room, and their errors: lane k has row k's.  t: its first token. */
template <int DT>
__device__ __forceinline__ static uint32_t once_load(const struct once_job *j, uint2 *cell,
						     uint32_t t, uint32_t lane)
{
	const struct layer_page page = j->place.page();
	const int32_t *from = j->mu + (uint64_t)t * j->pitch;
	const int32_t base = j->s->base[j->place.column];
	const uint8_t *at = page.at + t * page.stride;
	uint32_t mine = 0;

#pragma unroll 1
	for (uint32_t first = 0; first < TILE_ROWS; first += LOAD_ROWS) {
		uint32_t pattern[LOAD_ROWS];
		int32_t mu[LOAD_ROWS];

#pragma unroll
		for (uint32_t k = 0; k < LOAD_ROWS; k++) {
			pattern[k] = *(const uint16_t *)at;
			mu[k] = *from;
			at += page.stride;
			from += j->pitch;
		}
#pragma unroll
		for (uint32_t k = 0; k < LOAD_ROWS; k++)
			cell[(first + k) * WARP_LANES] = make_uint2((uint32_t)mu[k], pattern[k]);
		mine += once_errors<DT>(pattern, mu, base, first, lane);
	}
	return mine;
}

/* Of those that share their taus: what each has of this lane's row. */
__device__ __forceinline__ static uint32_t once_total(const struct once_job *j,
						      uint32_t (once_room::*of)[TILE_ROWS],
						      uint32_t lane)
{
	uint32_t sum = 0;

#pragma unroll
	for (uint32_t w = 0; w < LAYER_TAU_STREAMS_MAX; w++)
		sum += w < j->each ? (j->room[w].*of)[lane % TILE_ROWS] : 0;
	return sum;
}

/* residual_pick_tau(), of this lane's row. */
__device__ __forceinline__ static uint32_t once_tau(uint32_t sum, uint32_t columns)
{
	uint32_t tau = 0;

#pragma unroll
	for (uint32_t i = 0; i < RESIDUAL_TAU_COUNT - 1u; i++)
		tau += sum > layer_tau_part[i] * columns; /* thresholds rise */
	return tau;
}

#define ONCE_ROWS 4u /* whose symbols are made at once */

/*
 * layer_symbol_coded() of a bfloat16 where nothing is rare: no far class, no bucket, no escape.  *rare: something is,
 * and what is returned is nothing.  No branches, so that several rows are on their way at once.
 */
__device__ __forceinline__ static struct layer_coded once_symbol(const int16_t *grids, uint2 cell,
								 uint32_t tau, const uint32_t *enc,
								 bool *rare)
{
	const int32_t mu = (int32_t)cell.x;
	const uint32_t a = (uint32_t)abs(mu), pattern = cell.y;
	const int32_t e = grids[(int32_t)(tau * 2u * GRID_PITCH) + layer_top(a)];
	const uint32_t fine = __funnelshift_r(a, 0, (uint32_t)e);
	const uint32_t class_ = (uint32_t)(e >> GRID_CLASS_SHIFT) +
				(fine & (uint32_t)(e >> GRID_PHASE_SHIFT) & 3u);
	const uint32_t mag = pattern & 0x7fffu, mant = (pattern & 127u) | 128u;
	const int32_t sh = (int32_t)(mag >> 7) - 120 - (e & 31), n = max(-sh, 0);
	const uint32_t above = __funnelshift_rc(mant << 15, 0, (uint32_t)(15 - sh));
	const int32_t x = (int32_t)above ^ (int32_t)(pattern << 16 ^ cell.x) >> 31;
	const uint32_t token = (uint32_t)(x - (int32_t)(fine >> 2) + RESIDUAL_NEAR);
	const bool zero = above == 0, odd = e < 0 || mag > 0x7f7fu || sh > RESIDUAL_SHIFT_MAX ||
					    token > 2u * RESIDUAL_NEAR;
	const uint32_t entry = enc[odd ? 0 : class_ * ENC_PITCH + token];
	const uint32_t rest = (uint32_t)(n - 7), group = __funnelshift_rc(mant, 0, rest);
	const uint32_t first = zero ? group : mant, first_bits = zero ? 7u : (uint32_t)n;
	const uint32_t second = group ? mant : pattern, second_bits = !zero   ? 0
								      : group ? rest
									      : 16u;
	struct layer_coded c;

	*rare |= odd || (entry & ENTRY_FREQ_MASK) == 0;
	c.cost = (entry >> ENTRY_COST_SHIFT & 63u) + LAYER_COST_ONE * (first_bits + second_bits);
	c.symbol = make_uint2((entry & SYMBOL_ENTRY_MASK) | first_bits << SYMBOL_FIRST_SHIFT |
				      second_bits << SYMBOL_SECOND_SHIFT,
			      (first & ((1u << first_bits) - 1u)) |
				      (second & ((1u << second_bits) - 1u)) << 16);
	return c;
}

/* Some rows' symbols, whatever they are.  Returns as once_symbols(). */
template <int DT>
__device__ __forceinline__ static uint32_t once_symbols_any(const struct once_job *j, uint2 *cell,
							    uint32_t t, uint32_t first,
							    uint32_t lane)
{
	uint32_t mine = 0;

#pragma unroll 1
	for (uint32_t k = first; k < first + ONCE_ROWS; k++) {
		const uint2 v = cell[k * WARP_LANES];
		const struct layer_coded coded = layer_symbol_coded<DT>(
			layer_cell_of(j->grids, j->base, (int32_t)v.x, j->tau[t + k]), v.y, j->enc);
		const uint32_t sum = layer_warp_sum(coded.cost);

		cell[k * WARP_LANES] = coded.symbol;
		mine = lane == k ? sum : mine;
	}
	return mine;
}

/* Symbols of a tile in place of what they are made of.  Lane k has row k's costs. */
template <int DT>
__device__ __forceinline__ static uint32_t once_symbols(const struct once_job *j, uint2 *cell,
							uint32_t t, uint32_t lane)
{
	uint32_t mine = 0;

#pragma unroll 1
	for (uint32_t first = 0; first < TILE_ROWS; first += ONCE_ROWS) {
		const uint32_t taus = *(const uint32_t *)(j->tau + t + first);
		struct layer_coded coded[ONCE_ROWS];
		bool rare = DT != 1;

#pragma unroll
		for (uint32_t k = 0; k < ONCE_ROWS && DT == 1; k++)
			coded[k] = once_symbol(j->grids, cell[(first + k) * WARP_LANES],
					       taus >> 8u * k & 0xffu, j->enc, &rare);
		if (__any_sync(FULL_MASK, rare)) {
			mine += once_symbols_any<DT>(j, cell, t, first, lane);
			continue;
		}
#pragma unroll
		for (uint32_t k = 0; k < ONCE_ROWS; k++) {
			const uint32_t sum = layer_warp_sum(coded[k].cost);

			cell[(first + k) * WARP_LANES] = coded[k].symbol;
			mine = lane == first + k ? sum : mine;
		}
	}
	return mine;
}

/* Rows that are better raw: seldom any.  raw, tau: lane k has row k's.  at: this lane's column in the pages. */
__device__ static __noinline__ void once_raws(const uint8_t *at, uint64_t stride, uint2 *cell,
					      uint8_t *tau, bool raw)
{
	const uint32_t rows = __ballot_sync(FULL_MASK, raw);

	if (raw)
		*tau = RESIDUAL_TAU_RAW;
	for (uint32_t k = 0; k < TILE_ROWS; k++)
		if (rows >> k & 1u)
			cell[k * WARP_LANES] = make_uint2(0, *(const uint16_t *)(at + k * stride));
	__syncwarp();
}

/* A tile up to its symbols and taus. */
template <int DT>
__device__ __forceinline__ static void once_tile(const struct once_job *j, uint2 *cell, uint32_t t,
						 uint32_t lane)
{
	struct once_room *own = j->room + j->warp % j->each;
	uint32_t v = once_load<DT>(j, cell, t, lane);

	if (lane < TILE_ROWS)
		own->errors[lane] = v;
	streams_barrier(j->warp, j->each);
	v = once_tau(once_total(j, &once_room::errors, lane), j->each * CODEC_LANES);
	if (lane < TILE_ROWS)
		j->tau[t + lane] = (uint8_t)v;
	__syncwarp();
	v = once_symbols<DT>(j, cell, t, lane);
	if (lane < TILE_ROWS)
		own->costs[lane] = v;
	streams_barrier(j->warp, j->each);
	const bool raw = lane < TILE_ROWS &&
			 once_total(j, &once_room::costs, lane) >=
				 LAYER_COST_ONE * residual_type_of(DT).bits * j->each * CODEC_LANES;

	if (__any_sync(FULL_MASK, raw)) {
		const struct layer_page page = j->place.page();

		once_raws(page.at + t * page.stride, page.stride, cell, j->tau + t + lane, raw);
	}
}

/* The words of a tile.  False: they do not fit. */
template <int DT>
__device__ __forceinline__ static bool once_words(const struct once_job *j, const uint2 *cell,
						  struct layer_coder *c, uint32_t t, uint32_t lane)
{
	const struct layer_group<struct layer_place> g = {
		.tokens = j->tokens, .pitch = j->pitch, .tau = j->tau, .symbol = NULL, .mu = j->mu,
		.place = j->place, .base = j->s->base + j->place.column
	};

	const bool raws = __any_sync(FULL_MASK, j->tau[t + lane % TILE_ROWS] == RESIDUAL_TAU_RAW);
	const uint2 *at = cell + (TILE_ROWS - 1u) * WARP_LANES;
	uint2 next = *at;

#pragma unroll 1
	for (uint32_t k = TILE_ROWS; k > 0;) {
		if (__any_sync(FULL_MASK, c->at < ONCE_ROWS * LAYER_ROW_BYTES))
			return false;
#pragma unroll 1
		for (uint32_t i = 0; i < ONCE_ROWS; i++) {
			const uint2 s = next;

			k--;
			at -= WARP_LANES;
			next = *at; /* at last of what lies before the room, for nothing */
			layer_row_encode<DT>(&g, c, t + k, raws, s);
		}
	}
	return true;
}

/* A stream's part of a segment.  fits: false when its words did not before; the others may wait for this warp. */
template <int DT>
__device__ __forceinline__ static bool once_segment(const struct once_job *j,
						    const uint32_t *tau_enc, struct layer_coder *c,
						    bool fits, uint32_t lane)
{
	uint2 *cell = &j->room[j->warp % j->each].cell[0][lane];

#pragma unroll 1
	for (uint32_t t = j->tokens; t > 0;) {
		t -= TILE_ROWS;
		once_tile<DT>(j, cell, t, lane);
		if (fits)
			fits = once_words<DT>(j, cell, c, t, lane);
		__syncwarp();
	}
	if (fits && j->warp % j->each == 0)
		fits = layer_taus_encode(tau_enc, j->tau, j->tokens, c, lane);
	__syncwarp();
	return fits;
}

/* Stream `of` of task t in segment `position`, whose guesses begin at mu. */
__device__ __forceinline__ static void once_job_of(struct once_job *j,
						   const struct gpu_layer_run *r,
						   const uint8_t *tables, const int32_t *mu,
						   uint32_t position, uint32_t t, uint32_t of,
						   uint32_t warp, uint32_t lane)
{
	const struct gpu_layer_segment *s = &r->layer.segment[position];
	const uint32_t each = warp_uniform(s->tau_streams);
	const uint32_t column = of * CODEC_LANES + lane;

	j->s = s;
	j->enc = (const uint32_t *)(tables + ONCE_ENC_AT +
				    warp_uniform(s->tables) * LAYER_SHARED_ENC);
	j->base = layer_base_clamped(s->base[column]);
	j->grids = layer_grids_at((const int16_t *)(tables + ONCE_GRIDS_AT), j->base);
	j->room = (struct once_room *)(tables + ONCE_ROOMS_AT) + warp / each * each;
	j->tau = (uint8_t *)tables + ONCE_TAUS_AT + warp * r->tokens;
	j->pitch = s->flat ? 0 : r->mu_columns;
	j->tokens = r->tokens;
	j->mu = s->flat ? s->bias + column : mu + (uint64_t)t * r->tokens * j->pitch + column;
	j->place = { &r->of[t], s->segment, column };
	j->warp = warp;
	j->each = each;
}

/* Segments whose guesses are made: from `first` on, so many; mu_stride: from one's to the next's. */
struct once_segments {
	uint32_t first, count;
	uint64_t mu_stride;
};

template <int DT>
__device__ static inline void once_stream(const struct gpu_layer_run *r,
					  const struct once_segments *segments, uint8_t *tables,
					  uint32_t i, uint32_t warp, uint32_t lane)
{
	const uint32_t streams = r->layer.streams_count, t = i / streams;
	struct gpu_layer_stream *stream = &r->stream[i];
	bool fits = !warp_uniform(stream->bad);
	struct layer_coder c;

	layer_coder_load(&c, stream, &r->layer.tables[0], (const uint32_t *)(tables + ONCE_RCP_AT),
			 lane);
	const uint32_t before = c.at;

#pragma unroll 1
	for (uint32_t k = segments->count; k-- > 0;) {
		struct once_job j;

		once_job_of(&j, r, tables, r->mu + k * segments->mu_stride, segments->first + k, t,
			    i % streams, warp, lane);
		c.enc = j.enc;
		fits = once_segment<DT>(&j, r->layer.tables[warp_uniform(j.s->tables)].tau_enc, &c,
					fits, lane);
	}
	const uint32_t escapes = layer_warp_sum(c.escapes);

	layer_coder_park(stream, &c, before, fits, lane);
	if (lane == 0) {
		if (escapes)
			atomicAdd(&r->of[t].escapes, escapes);
		if (!fits)
			r->of[t].bad = 1;
	}
}

#endif
