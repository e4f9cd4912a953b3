/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_encode.cuh - the encoder's two steps for a segment whose guesses are made: the scale of each token's
 * row and its symbols (one warp a token and stream), then the rows of a stream's share, the last first (one warp a
 * stream).  All
 * values are known to an encoder, so segments are taken from the last to the first and no list of steps is kept.
 *
 * Both are residual_code.c's, and what they read of the pages may change under them: words are bounded, and a block
 * that came out as something else is found by the verification or its checksum.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_ENCODE_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_ENCODE_CUH

#include "gpu/codec/cuda_layer.cuh"

#define LAYER_COST_ONE 4u
#define LAYER_ROW_BYTES 512u /* words of one row, at most */

/* residual_symbol, in registers. */
template <int DT> struct layer_symbol {
	static const uint32_t ITEMS = DT <= 2 ? 3u : RESIDUAL_ITEMS_MAX;
	uint32_t token, count;
	uint32_t item[ITEMS], bits[ITEMS];

	__device__ __forceinline__ void push(uint32_t value, int32_t n)
	{
#pragma unroll
		for (uint32_t i = 0; i < ITEMS; i++)
			if (i == count) {
				item[i] = value & ((1u << n) - 1u);
				bits[i] = (uint32_t)n;
			}
		count++;
	}
};

/* residual_push_low() */
template <int DT>
__device__ __forceinline__ static void layer_push_low(struct layer_symbol<DT> *s, uint32_t pattern,
						      uint32_t mant, int32_t n, int32_t sub)
{
	const struct residual_type t = residual_type_of(DT);
	uint32_t a = n > 31 ? 0 : mant >> n;

#pragma unroll
	for (int32_t i = 0; i < t.groups_max; i++) {
		const int32_t step = min(t.group_bits, sub);

		if (a != 0 || sub <= 0)
			break;
		n -= step;
		sub -= step;
		a = n > 31 ? 0 : mant >> n;
		s->push(a, step);
	}
	if (a == 0 && sub > 0)
		s->push(pattern, (int32_t)t.bits);
	else if (a != 0 && n > 0)
		s->push(mant, n);
}

/* residual_symbol(), and an escape where the token has no frequency.  Returns the token's entry. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_symbol_of(struct layer_symbol<DT> *s,
							   struct residual_grid g, uint32_t pattern,
							   const uint32_t *enc)
{
	const struct residual_type t = residual_type_of(DT);
	const uint32_t mag = pattern & ((1u << (t.bits - 1u)) - 1u), e = mag >> t.mant_bits;
	const uint32_t mant = (mag & ((1u << t.mant_bits) - 1u)) | (e ? 1u << t.mant_bits : 0u);
	const int32_t sh = (int32_t)(e ? e : 1u) - t.bias - t.mant_bits + RESIDUAL_FRAC - g.q;
	bool escape = mag > t.mag_max || sh > RESIDUAL_SHIFT_MAX;
	int32_t x = (int32_t)(sh >= 0 ? mant << (sh & 31) : sh < -31 ? 0 : mant >> (-sh & 31));

	x = (pattern >> (t.bits - 1u)) ^ g.flip ? -x - 1 : x;
	const int32_t r = x - g.mu;
	const uint32_t far = (uint32_t)abs(r) - (RESIDUAL_NEAR + 1u);

	s->count = 0;
	s->token = (uint32_t)(r + RESIDUAL_NEAR);
	if (!escape && s->token > 2u * RESIDUAL_NEAR) {
		const uint32_t j = (uint32_t)residual_log2((far & 0xfffu) + 4u) - 2u;

		escape = far >= (4u << RESIDUAL_BUCKETS) - 4u;
		s->token = (r > 0 ? RESIDUAL_BUCKET_POS : RESIDUAL_BUCKET_NEG) + j;
		s->push(far + 4u - (4u << j), (int32_t)j + 2);
	}
	if (!escape && sh < 0)
		layer_push_low<DT>(s, pattern, mant, -sh, residual_sub(t, g.q));
	s->token = escape ? RESIDUAL_ESC : s->token;
	uint32_t entry = enc[g.class_ * ENC_PITCH + s->token];

	if (escape || (entry & ENTRY_FREQ_MASK) == 0) {
		s->token = RESIDUAL_ESC;
		s->count = 0;
		s->push(pattern, (int32_t)t.bits);
		entry = enc[g.class_ * ENC_PITCH + RESIDUAL_ESC];
	}
	return entry;
}

#define ERROR_MOST 16384u /* 256 sigma, in 64ths */

__device__ __forceinline__ static uint32_t layer_error_root(int32_t scale)
{
	return scale & 2 ? (scale & 1 ? 9742u : 11585u) : (scale & 1 ? 13777u : 16384u);
}

/* |error| / sigma in 64ths, at most 256 sigma: residual_error_at(). */
__device__ static __noinline__ uint32_t layer_error_ratio(uint32_t d, int32_t scale)
{
	const int32_t sh = min((scale >> 2) + 8, 63);
	const uint64_t v = (uint64_t)d * layer_error_root(scale); /* below 2^46 */
	const uint64_t wide = sh >= 0 ? v >> sh : sh < -20 ? ERROR_MOST : v << -sh;

	return wide < ERROR_MOST ? (uint32_t)wide : ERROR_MOST;
}

/* What that is the high half of a product with, where there is such a number; else 0. */
__device__ __forceinline__ static uint32_t layer_error_factor(int32_t scale)
{
	const int32_t sh = (scale >> 2) + 8;

	return sh >= 15 && sh <= 32 ? layer_error_root(scale) << (32 - sh) : 0;
}

struct layer_page { /* a lane's column of a segment in the pages */
	const uint8_t *at;
	uint64_t stride;
};

template <int DT>
__device__ __forceinline__ static uint32_t layer_page_pattern(const struct layer_page *p,
							      uint32_t token)
{
	const uint8_t *at = p->at + token * p->stride;

	return DT <= 2 ? *(const uint16_t *)at : *at;
}

__constant__ const uint16_t layer_tau_part[RESIDUAL_TAU_COUNT - 1u] = {
	21, 30, 43, 61, 86, 121, 172, 243, 344, 486, 687, 972, 1374, 1943, 2748
};

__device__ __forceinline__ static uint32_t layer_warp_sum(uint32_t v)
{
	return __reduce_add_sync(FULL_MASK, v);
}

/*
 * What coding a scalar takes, as the first step leaves it for the second.  x: the token's entry, but with bits of the
 * first raw item and SYMBOL_MORE, when there is a third, where its cost was; bits of the second << 26 |
 * SYMBOL_ESCAPE.  y: the items, 16 bits each.  Of a row of raw patterns: y is the pattern.
 */
#define SYMBOL_ENTRY_MASK 0x03ff03ffu
#define SYMBOL_FIRST_SHIFT 10u
#define SYMBOL_MORE (1u << 15)
#define SYMBOL_SECOND_SHIFT 26u
#define SYMBOL_ESCAPE (1u << 31)

struct layer_coded {
	uint2 symbol;
	uint32_t cost;
};

template <int DT>
__device__ __forceinline__ static struct layer_coded layer_symbol_coded(struct layer_cell g,
									uint32_t pattern,
									const uint32_t *enc)
{
	struct layer_symbol<DT> s;
	const uint32_t entry = layer_symbol_of<DT>(&s, layer_grid_of(g), pattern, enc);
	const uint32_t first = s.count > 0 ? s.bits[0] : 0, second = s.count > 1 ? s.bits[1] : 0;
	struct layer_coded c;

	c.cost = entry >> ENTRY_COST_SHIFT & 63u;
#pragma unroll
	for (uint32_t i = 0; i < layer_symbol<DT>::ITEMS; i++)
		c.cost += i < s.count ? LAYER_COST_ONE * s.bits[i] : 0;
	c.symbol = make_uint2((entry & SYMBOL_ENTRY_MASK) | first << SYMBOL_FIRST_SHIFT |
				      second << SYMBOL_SECOND_SHIFT |
				      (s.count > 2 ? SYMBOL_MORE : 0) |
				      (s.token == RESIDUAL_ESC ? SYMBOL_ESCAPE : 0),
			      (s.count > 0 ? s.item[0] : 0) | (s.count > 1 ? s.item[1] << 16 : 0));
	return c;
}

/*
 * The same for bf16, without branches but for what is rare: below the unit are n bits of the mantissa, or 7 and then
 * those behind their first one bit, or the pattern.  A subnormal value is so far below every unit that it needs no
 * mantissa of its own.  All lanes of a warp.
 */
template <>
__device__ __forceinline__ struct layer_coded layer_symbol_coded<1>(struct layer_cell g,
								    uint32_t pattern,
								    const uint32_t *enc) {
	const uint32_t mag = pattern & 0x7fffu, mant = (pattern & 127u) | 128u;
	const int32_t sh = (int32_t)(mag >> 7) - 120 - (int32_t)g.q, n = max(-sh, 0);
	/* mant << sh or >> -sh: shifts of 32 and more give nothing, as those do that are none, of what escapes. */
	const uint32_t a = __funnelshift_rc(mant << 15, 0, (uint32_t)(15 - sh));
	const int32_t x = (int32_t)a ^ (int32_t)(pattern << 16 ^ g.sign) >> 31;
	const int32_t r = x - g.mu;
	const bool zero = a == 0, escape = mag > 0x7f7fu || sh > RESIDUAL_SHIFT_MAX;
	const uint32_t rest =
		(uint32_t)(n - 7); /* bits below the first item of a value near zero */
	const uint32_t group = __funnelshift_rc(mant, 0, rest);
	uint32_t token = (uint32_t)(r + RESIDUAL_NEAR);
	uint32_t first = zero ? group : mant, first_bits = zero ? 7u : (uint32_t)n;
	uint32_t second = group ? mant : pattern, second_bits = !zero ? 0 : group ? rest : 16u;
	uint32_t third_bits = 0;
	struct layer_coded c;

	if (__any_sync(FULL_MASK, escape || token > 2u * RESIDUAL_NEAR)) {
		const uint32_t far = (uint32_t)abs(r) - (RESIDUAL_NEAR + 1u);
		const uint32_t j = (uint32_t)residual_log2((far & 0xfffu) + 4u) - 2u;

		if (escape ||
		    (token > 2u * RESIDUAL_NEAR && far >= (4u << RESIDUAL_BUCKETS) - 4u)) {
			token = RESIDUAL_ESC;
		} else if (token > 2u * RESIDUAL_NEAR) {
			token = (r > 0 ? RESIDUAL_BUCKET_POS : RESIDUAL_BUCKET_NEG) + j;
			third_bits = second_bits;
			second = first;
			second_bits = first_bits;
			first = far + 4u - (4u << j);
			first_bits = j + 2u;
		}
	}
	uint32_t entry = enc[g.class_ * ENC_PITCH + token];
	const bool escapes = token == RESIDUAL_ESC || (entry & ENTRY_FREQ_MASK) == 0;

	if (__any_sync(FULL_MASK, escapes) && escapes) {
		entry = enc[g.class_ * ENC_PITCH + RESIDUAL_ESC];
		first = pattern;
		first_bits = 16;
		second_bits = 0;
		third_bits = 0;
	}
	c.cost = (entry >> ENTRY_COST_SHIFT & 63u) +
		 LAYER_COST_ONE * (first_bits + second_bits + third_bits);
	c.symbol = make_uint2(
		(entry & SYMBOL_ENTRY_MASK) | first_bits << SYMBOL_FIRST_SHIFT |
			second_bits << SYMBOL_SECOND_SHIFT | (third_bits ? SYMBOL_MORE : 0) |
			(escapes ? SYMBOL_ESCAPE : 0),
		(first & ((1u << first_bits) - 1u)) | (second & ((1u << second_bits) - 1u)) << 16);
	return c;
}

#define LAYER_SYMBOL_TABLES (LAYER_SHARED_ENC + LAYER_GRID_BYTES)

/* What symbols are made with in shared memory, by the whole thread block. */
__device__ static inline void
layer_symbol_tables_load(uint8_t *to, const struct gpu_layer_tables *tables,
			 const struct gpu_layer_grids *grids)
{
	tables_load(to, tables->enc, LAYER_SHARED_ENC);
	tables_load(to + LAYER_SHARED_ENC, grids, LAYER_GRID_BYTES);
}

#define ROW_GROUPS 4u /* of a row, in registers at once */

struct layer_rows { /* what symbols are made of, and where they go: of the first of some rows */
	const int16_t *base;
	const uint8_t *page;
	uint64_t page_stride; /* to the next row, like the next */
	uint32_t pitch;	      /* of mu and symbol */
	uint64_t head_stride;
	uint32_t head_dim, head_magic;
	const uint32_t *enc; /* shared, like the next */
	const int16_t *grids;
	const int32_t *mu;
	uint2 *symbol;
	uint32_t lane;
};

struct layer_columns { /* a lane's in ROW_GROUPS groups */
	const uint8_t *page[ROW_GROUPS];
	int32_t base[ROW_GROUPS];    /* clamped */
	uint32_t factor[ROW_GROUPS]; /* layer_error_factor() */
};

template <int DT>
__device__ __forceinline__ static const uint8_t *layer_rows_page(const struct layer_rows *w,
								 uint32_t column)
{
	const uint32_t bytes = DT <= 2 ? 2u : 1u, head = __umulhi(column, w->head_magic);

	return w->page + head * w->head_stride + (column - head * w->head_dim) * bytes;
}

/* Groups beyond the end are the last one. */
template <int DT>
__device__ __forceinline__ static void layer_columns_of(struct layer_columns *c,
							const struct layer_rows *w, uint32_t group,
							uint32_t end)
{
#pragma unroll
	for (uint32_t k = 0; k < ROW_GROUPS; k++) {
		const uint32_t column = min(group + k, end - 1u) * CODEC_LANES + w->lane;
		const int32_t base = w->base[column];

		c->page[k] = layer_rows_page<DT>(w, column);
		c->base[k] = layer_base_clamped(base);
		c->factor[k] = layer_error_factor(base);
	}
}

struct layer_scalars {
	uint32_t pattern[ROW_GROUPS];
	int32_t mu[ROW_GROUPS];
};

struct layer_row { /* of layer_rows: a lane's first column, and where in the pages */
	const int32_t *mu;
	uint2 *symbol;
	uint64_t page_off;
};

template <int DT>
__device__ __forceinline__ static void layer_scalars_load(struct layer_scalars *v,
							  const struct layer_columns *c,
							  const struct layer_row *row,
							  uint32_t group, uint32_t end)
{
	const int32_t *mu = row->mu + group * CODEC_LANES;

#pragma unroll
	for (uint32_t k = 0; k < ROW_GROUPS; k++) {
		const uint8_t *at = c->page[k] + row->page_off;

		v->pattern[k] = DT <= 2 ? *(const uint16_t *)at : *at;
	}
	if (group + ROW_GROUPS <= end) {
#pragma unroll
		for (uint32_t k = 0; k < ROW_GROUPS; k++)
			v->mu[k] = mu[k * CODEC_LANES];
		return;
	}
#pragma unroll
	for (uint32_t k = 0; k < ROW_GROUPS; k++)
		v->mu[k] = mu[min(k, end - 1u - group) * CODEC_LANES];
}

/* The values of patterns; large ones are rare. */
template <int DT>
__device__ __forceinline__ static void layer_scalars_fixed(const struct layer_scalars *v,
							   int32_t (&x)[ROW_GROUPS])
{
	uint32_t most = 0;

#pragma unroll
	for (uint32_t k = 0; k < ROW_GROUPS; k++) {
		x[k] = DT == 1 ? __float2int_rz(__uint_as_float(v->pattern[k] << 16) *
						(float)(1u << RESIDUAL_FRAC))
			       : layer_fixed<DT>(v->pattern[k]);
		most = max(most, v->pattern[k] & 0x7fffu);
	}
	if (DT == 1 && __any_sync(FULL_MASK, most >= LAYER_FIXED_LARGE)) {
#pragma unroll
		for (uint32_t k = 0; k < ROW_GROUPS; k++)
			x[k] = layer_fixed<DT>(v->pattern[k]);
	}
}

/* The sum of a lane's errors. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_errors(const struct layer_scalars *v,
							const struct layer_rows *w,
							const struct layer_columns *c,
							uint32_t group, uint32_t end)
{
	int32_t x[ROW_GROUPS];
	uint32_t sum = 0;

	layer_scalars_fixed<DT>(v, x);
#pragma unroll
	for (uint32_t k = 0; k < ROW_GROUPS; k++) {
		const uint32_t d = __sad(x[k], v->mu[k], 0);
		uint32_t ratio = min(__umulhi(d, c->factor[k]), ERROR_MOST);

		if (__any_sync(FULL_MASK, c->factor[k] == 0))
			ratio = layer_error_ratio(
				d, w->base[min(group + k, end - 1u) * CODEC_LANES + w->lane]);
		sum += group + k < end ? ratio : 0;
	}
	return sum;
}

/* residual_pick_tau(), of a sum of errors. */
__device__ __forceinline__ static uint32_t layer_pick_tau(uint32_t sum, uint32_t columns,
							  uint32_t lane)
{
	const bool above = lane < RESIDUAL_TAU_COUNT - 1u &&
			   sum > (uint64_t)layer_tau_part[lane % (RESIDUAL_TAU_COUNT - 1u)] *
					   columns;

	return __popc(__ballot_sync(FULL_MASK, above)); /* thresholds rise */
}

/* Symbols of ROW_GROUPS groups, without those beyond the end.  Returns what a lane's cost. */
template <int DT>
__device__ __forceinline__ static uint32_t layer_symbols_put(const struct layer_scalars *v,
							     const struct layer_rows *w,
							     const struct layer_columns *c,
							     uint2 *symbol, uint32_t tau,
							     uint32_t group, uint32_t end)
{
	uint32_t cost = 0;

#pragma unroll
	for (uint32_t k = 0; k < ROW_GROUPS; k++) {
		if (group + k >= end)
			break;
		const struct layer_coded s =
			layer_symbol_coded<DT>(layer_cell_of(layer_grids_at(w->grids, c->base[k]),
							     c->base[k], v->mu[k], tau),
					       v->pattern[k], w->enc);

		cost += s.cost;
		symbol[(group + k) * CODEC_LANES] = s.symbol;
	}
	return cost;
}

/* A row of raw patterns. */
template <int DT>
__device__ __forceinline__ static void layer_row_raw(const struct layer_rows *w,
						     struct layer_share h,
						     const struct layer_row *row)
{
	for (uint32_t g = h.group_begin; g < h.group_end; g++) {
		const uint8_t *at = layer_rows_page<DT>(w, g * CODEC_LANES + w->lane) +
				    row->page_off;

		row->symbol[g * CODEC_LANES] = make_uint2(0, DT <= 2 ? *(const uint16_t *)at : *at);
	}
}

/* Row slices of those that share their taus: each one's tau, row_is_raw(), and its symbols. */
template <int DT>
__device__ __forceinline__ static void layer_rows_symbols(const struct layer_rows *w,
							  struct layer_share h, uint32_t rows,
							  uint8_t *ret_tau)
{
	const struct residual_type t = residual_type_of(DT);
	const uint32_t begin = h.group_begin, end = h.group_end, n = (end - begin) * CODEC_LANES;
	const bool wide = n > ROW_GROUPS * CODEC_LANES;
	struct layer_columns c;
	struct layer_scalars v;

	struct layer_row row = { w->mu + w->lane, w->symbol + w->lane, 0 };

	layer_columns_of<DT>(&c, w, begin, end);
#pragma unroll 1
	for (uint32_t i = 0; i < rows; i++) {
		uint32_t sum = 0, cost = 0, tau;

		for (uint32_t g = begin; g < end; g += ROW_GROUPS) {
			if (wide)
				layer_columns_of<DT>(&c, w, g, end);
			layer_scalars_load<DT>(&v, &c, &row, g, end);
			sum += layer_errors<DT>(&v, w, &c, g, end);
		}
		sum = layer_warp_sum(sum); /* at most columns * 2^14 < 2^31 */
		tau = layer_pick_tau(sum, n, w->lane);
		for (uint32_t g = begin; g < end; g += ROW_GROUPS) {
			if (wide) {
				layer_columns_of<DT>(&c, w, g, end);
				layer_scalars_load<DT>(&v, &c, &row, g, end);
			}
			cost += layer_symbols_put<DT>(&v, w, &c, row.symbol, tau, g, end);
		}
		cost = layer_warp_sum(cost);
		if (cost >= LAYER_COST_ONE * t.bits * n) {
			layer_row_raw<DT>(w, h, &row);
			tau = RESIDUAL_TAU_RAW;
		}
		if (w->lane == 0)
			ret_tau[i] = (uint8_t)tau;
		row.mu += w->pitch;
		row.symbol += w->pitch;
		row.page_off += w->page_stride;
	}
}

/* ---- coding ---- */

struct layer_coder { /* one lane's */
	uint32_t x;
	uint32_t above;	     /* mask of the lanes behind it */
	uint32_t at;	     /* of the lowest word written, in bytes behind the limit */
	uint8_t *limit;	     /* words are not written below */
	const uint32_t *enc; /* device, rarely read */
	const uint32_t *rcp; /* shared: of a frequency, as codec_enc_entry() has it */
	uint32_t escapes;
};

/* Where a stream stands, from its place in scratch, and back.  rcp: the tables', in shared memory. */
__device__ __forceinline__ static void layer_coder_load(struct layer_coder *c,
							const struct gpu_layer_stream *s,
							const struct gpu_layer_tables *tables,
							const uint32_t *rcp, uint32_t lane)
{
	c->x = s->state[lane];
	c->above = lane == 31u ? 0 : FULL_MASK << (lane + 1u);
	asm volatile("" : "+r"(c->above)); /* keep it */
	c->limit = (uint8_t *)s->limit;
	c->at = warp_uniform((uint32_t)(s->words - s->limit));
	c->enc = &tables->enc[0][0];
	c->rcp = rcp;
	c->escapes = 0;
}

/* before: where it stood. */
__device__ __forceinline__ static void layer_coder_park(struct gpu_layer_stream *s,
							const struct layer_coder *c,
							uint32_t before, bool fits, uint32_t lane)
{
	s->state[lane] = c->x;
	__syncwarp();
	if (lane == 0) {
		s->left += (before - c->at) / 2u;
		s->words = s->limit + c->at;
		if (!fits)
			s->bad = 1;
	}
}

/* Lanes in ascending order in memory: a decoder reads them in that order.  Without a branch of a lane. */
__device__ __forceinline__ static void layer_spill(struct layer_coder *c, bool spills)
{
	const uint32_t mask = __ballot_sync(FULL_MASK, spills);
	const uint32_t at = c->at - 2u - 2u * __popc(mask & c->above);

	asm volatile("{ .reg .pred p; setp.ne.u32 p, %0, 0; @p st.global.u16 [%1], %2; }" ::"r"(
			     (uint32_t)spills),
		     "l"(__cvta_generic_to_global(c->limit + at)), "h"((uint16_t)c->x)
		     : "memory");
	c->x = spills ? c->x >> 16 : c->x;
	c->at -= 2u * __popc(mask);
}

__device__ __forceinline__ static void layer_put_token(struct layer_coder *c, uint32_t entry,
						       bool here)
{
	const uint32_t freq = here ? entry & ENTRY_FREQ_MASK : 1u,
		       start = entry >> ENTRY_START_SHIFT & ENTRY_FREQ_MASK;

	layer_spill(c, here && codec_rans_encode_spills(c->x, freq));
	/* codec_rans_encode_step(): the reciprocal gives the quotient or one less. */
	uint32_t q = __umulhi(c->x, c->rcp[freq]), rest = c->x - q * freq;

	if (rest >= freq) {
		q++;
		rest -= freq;
	}
	c->x = here ? (q << CODEC_PROB_BITS) + rest + start : c->x;
}

/* bits: 0..16; value has no others. */
__device__ __forceinline__ static void layer_put_raw(struct layer_coder *c, uint32_t value,
						     uint32_t bits)
{
	layer_spill(c, __funnelshift_l(c->x, 0, bits) != 0);
	c->x = c->x << bits | value;
}

/* A row with more than two items in some lane: once more from its values. */
template <int DT>
__device__ __forceinline__ static void layer_put_row(struct layer_coder *c, struct residual_grid g,
						     uint32_t pattern)
{
	struct layer_symbol<DT> sym;
	const uint32_t entry = layer_symbol_of<DT>(&sym, g, pattern, c->enc);

#pragma unroll
	for (uint32_t i = layer_symbol<DT>::ITEMS; i-- > 0;)
		if (__any_sync(FULL_MASK, sym.count > i))
			layer_put_raw(c, sym.count > i ? sym.item[i] : 0,
				      sym.count > i ? sym.bits[i] : 0);
	layer_put_token(c, entry, true);
}

__device__ __forceinline__ static void layer_put_symbols(struct layer_coder *c, uint2 s)
{
	const uint32_t first = s.x >> SYMBOL_FIRST_SHIFT & 31u,
		       second = s.x >> SYMBOL_SECOND_SHIFT & 31u;

	if (__any_sync(FULL_MASK, second > 0))
		layer_put_raw(c, s.y >> 16, second);
	layer_put_raw(c, s.y & 0xffffu, first);
	layer_put_token(c, s.x, true);
}

#define CODE_ROWS 4u /* at once; symbols of as many more are on their way */

/* Place: what page(), a lane's column of the pages, is asked of where a row needs its values again: seldom. */
template <typename Place> struct layer_group { /* of rows, to be coded */
	uint32_t tokens, pitch;		       /* pitch: of rows of mu and symbol */
	const uint8_t *tau;		       /* of all tokens, 4-byte aligned */
	const uint2 *symbol;		       /* this lane's column of the first row, likewise */
	const int32_t *mu;
	Place place;
	const int16_t *base;
};

/* Row t of a group.  raws: it may be raw, as its tau says. */
template <int DT, typename Place>
__device__ __forceinline__ static void layer_row_encode(const struct layer_group<Place> *g,
							struct layer_coder *c, uint32_t t,
							bool raws, uint2 s)
{
	if (raws && g->tau[t] == RESIDUAL_TAU_RAW) {
		layer_put_raw(c, s.y, DT <= 2 ? 16u : 8u);
		return;
	}
	if (__any_sync(FULL_MASK, (s.x & SYMBOL_MORE) != 0)) {
		const struct layer_page page = g->place.page();

		layer_put_row<DT>(c,
				  residual_grid(residual_type_of(DT), g->mu[(uint64_t)t * g->pitch],
						layer_scale(*g->base, g->tau[t])),
				  layer_page_pattern<DT>(&page, t));
	} else {
		layer_put_symbols(c, s);
	}
	c->escapes += s.x >> 31;
}

template <int DT, typename Place>
__device__ __forceinline__ static void layer_rows_encode(const struct layer_group<Place> *g,
							 struct layer_coder *c, uint32_t t,
							 uint32_t taus, const uint2 (&s)[CODE_ROWS])
{
	/* A byte of RESIDUAL_TAU_RAW, the largest, has a bit that no other has. */
	const bool raws = __any_sync(FULL_MASK, (taus & RESIDUAL_TAU_RAW * 0x01010101u) != 0);

#pragma unroll
	for (uint32_t k = CODE_ROWS; k-- > 0;)
		layer_row_encode<DT>(g, c, t + k, raws, s[k]);
}

/* Rows of a group, the last first.  False: their words do not fit. */
template <int DT, typename Place>
__device__ __forceinline__ static bool layer_group_encode(const struct layer_group<Place> *g,
							  struct layer_coder *c)
{
	const uint32_t pitch = g->pitch;
	const uint2 *next = g->symbol + (uint64_t)(g->tokens - CODE_ROWS) * pitch;
	uint2 s[CODE_ROWS], ahead[CODE_ROWS];
	uint32_t taus, taus_ahead = *(const uint32_t *)(g->tau + g->tokens - CODE_ROWS);

#pragma unroll
	for (uint32_t k = 0; k < CODE_ROWS; k++)
		ahead[k] = next[k * pitch];
#pragma unroll 1
	for (uint32_t t = g->tokens; t > 0;) {
		t -= CODE_ROWS;
		next -= t > 0 ? CODE_ROWS * pitch : 0;
		taus = taus_ahead;
		taus_ahead = *(const uint32_t *)(g->tau + (t > 0 ? t - CODE_ROWS : 0));
#pragma unroll
		for (uint32_t k = 0; k < CODE_ROWS; k++) {
			s[k] = ahead[k];
			ahead[k] = next[k * pitch];
		}
		if (__any_sync(FULL_MASK, c->at < CODE_ROWS * LAYER_ROW_BYTES))
			return false;
		layer_rows_encode<DT>(g, c, t, taus, s);
	}
	return true;
}

/* The steps of all tokens.  False: their words do not fit. */
__device__ __forceinline__ static bool layer_taus_encode(const uint32_t *tau_enc,
							 const uint8_t *tau, uint32_t tokens,
							 struct layer_coder *c, uint32_t lane)
{
	for (uint32_t row = (tokens + WARP_LANES - 1u) / WARP_LANES; row-- > 0;) {
		const uint32_t t = row * WARP_LANES + lane;
		const bool here = t < tokens;

		if (__any_sync(FULL_MASK, c->at < LAYER_ROW_BYTES))
			return false;
		layer_put_token(c, here ? tau_enc[tau[t]] : 0, here);
	}
	return true;
}

struct layer_place { /* a lane's column of a task's segment */
	const struct gpu_layer_task *task;
	uint32_t segment, column;

	__device__ __forceinline__ struct layer_page page() const
	{
		const struct gpu_segment *s = task->segment + segment;

		return (struct layer_page){ .at = layer_page_base(task, s) + column_off(s, column),
					    .stride = s->token_stride };
	}
};

/* A stream's share of a segment; first: of those that share its taus.  False: its words do not fit. */
template <int DT>
__device__ __forceinline__ static bool layer_share_encode(const struct gpu_layer_run *r,
							  const struct gpu_layer_segment *s,
							  struct layer_share h, uint32_t task_index,
							  const uint8_t *tau, bool first,
							  struct layer_coder *c, uint32_t lane)
{
	const uint32_t tokens = r->tokens;

	for (uint32_t group = h.group_end; group-- > h.group_begin;) {
		const uint32_t column = group * CODEC_LANES + lane;
		const uint64_t at = (uint64_t)task_index * tokens * r->mu_columns + column;
		const struct layer_group<struct layer_place> g = {
			.tokens = tokens, .pitch = r->mu_columns, .tau = tau,
			.symbol = r->symbol + at, .mu = r->mu + at,
			.place = { &r->of[task_index], s->segment, column },
			.base = s->base + column
		};

		if (!layer_group_encode<DT>(&g, c))
			return false;
	}
	return !first ||
	       layer_taus_encode(r->layer.tables[s->tables].tau_enc, tau, tokens, c, lane);
}

#endif
