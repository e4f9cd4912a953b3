/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_scalar.c - the residual coder's scalar kernels: the reference that every other implementation
 * must equal byte for byte.
 */
#include "gpu/codec/residual_rows.h"

#include <errno.h>

#include "gpu/codec/internal.h"

uint32_t residual_pattern_at(const struct residual_segment *s, const uint8_t *patterns,
			     uint32_t token, uint32_t column)
{
	return codec_pattern_at(patterns, (size_t)token * s->columns + column, s->type.bits);
}

static struct residual_grid grid_at(const struct residual_segment *s, uint32_t token,
				    uint32_t column, uint32_t tau)
{
	int32_t scale = s->base[column] + residual_tau(tau);

	if (scale < RESIDUAL_SCALE_MIN)
		scale = RESIDUAL_SCALE_MIN;
	if (scale > RESIDUAL_SCALE_MAX)
		scale = RESIDUAL_SCALE_MAX;
	return residual_grid(s->type, s->mu[(size_t)token * s->columns + column], scale);
}

/* ---- the token's scale ---- */

/* |error| / sigma in 64ths, at most RESIDUAL_ERROR_MAX. */
uint32_t residual_error_at(const struct residual_segment *s, const uint8_t *patterns,
			   uint32_t token, uint32_t column)
{
	int32_t mu = s->mu[(size_t)token * s->columns + column], scale = s->base[column];
	int32_t sh = residual_error_shift(scale);
	int64_t d = (int64_t)residual_fixed(s->type,
					    residual_pattern_at(s, patterns, token, column)) -
		    mu;
	uint64_t v = (uint64_t)(d < 0 ? -d : d) * residual_root[scale & 3];

	if (sh >= 0)
		v = sh > 63 ? 0 : v >> sh;
	else
		v = sh < RESIDUAL_ERROR_SHIFT_MIN ? RESIDUAL_ERROR_MAX : v << -sh;
	return v < RESIDUAL_ERROR_MAX ? (uint32_t)v : RESIDUAL_ERROR_MAX;
}

void residual_scalar_errors(const struct residual_segment *s, uint32_t group,
			    const uint8_t *patterns, uint64_t *sums)
{
	uint32_t first = group * CODEC_LANES, lanes = residual_group_lanes(s, group);

	for (uint32_t t = 0; t < s->tokens_count; t++)
		for (uint32_t l = 0; l < lanes; l++)
			sums[t] += residual_error_at(s, patterns, t, first + l);
}

/* ---- encoding ---- */

static void row_symbols(const struct residual_segment *s, uint32_t group, const uint8_t *patterns,
			uint32_t token, uint32_t tau, struct residual_list *list,
			struct residual_weight *weight)
{
	uint32_t lanes = residual_group_lanes(s, group);
	struct residual_row *row = &list->row[list->rows_count++];

	*row = (struct residual_row){ .lanes = residual_lanes_mask(lanes),
				      .round_first = list->rounds_count };
	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t column = group * CODEC_LANES + l;
		uint32_t pattern = residual_pattern_at(s, patterns, token, column);
		struct residual_grid g = grid_at(s, token, column, tau);
		struct residual_symbol sym;

		residual_symbol(&sym, s->type, g, pattern);
		row->enc[l] = s->tables->enc[g.class_][sym.token];
		if ((row->enc[l] & RESIDUAL_ENC_FREQ_MASK) == 0) {
			residual_escape(&sym, s->type, pattern);
			row->enc[l] = s->tables->enc[g.class_][RESIDUAL_ESC];
		}
		weight->escapes += sym.token == RESIDUAL_ESC;
		weight->cost += row->enc[l] >> RESIDUAL_ENC_COST_SHIFT & RESIDUAL_ENC_COST_MASK;
		for (uint32_t i = 0; i < sym.items_count; i++) {
			struct residual_round *round = &list->round[row->round_first + i];

			if (i == row->rounds_count) {
				*round = (struct residual_round){ 0 };
				row->rounds_count++;
			}
			round->value[l] = sym.item[i];
			round->bits[l] = sym.item_bits[i];
			weight->cost += RESIDUAL_COST_ONE * sym.item_bits[i];
		}
	}
	list->rounds_count += row->rounds_count;
}

void residual_scalar_symbols(const struct residual_segment *s, uint32_t group,
			     const uint8_t *patterns, const uint8_t *tau,
			     struct residual_list *list, struct residual_weight *weight)
{
	for (uint32_t t = 0; t < s->tokens_count; t++)
		row_symbols(s, group, patterns, t, tau[t], list, &weight[t]);
}

static uint16_t *code_raw(uint32_t *state, const struct residual_round *r, uint16_t *end)
{
	for (uint32_t l = CODEC_LANES; l-- > 0;) {
		uint32_t bits = r->bits[l];

		if (!bits)
			continue;
		if (state[l] >> (32u - bits)) {
			*--end = (uint16_t)state[l];
			state[l] >>= 16;
		}
		state[l] = state[l] << bits | r->value[l];
	}
	return end;
}

uint16_t *residual_scalar_code(const struct residual_list *list, uint32_t *state, uint16_t *end)
{
	for (size_t i = list->rows_count; i-- > 0;) {
		const struct residual_row *row = &list->row[i];

		for (uint32_t k = row->rounds_count; k-- > 0;)
			end = code_raw(state, &list->round[row->round_first + k], end);
		for (uint32_t l = CODEC_LANES; l-- > 0;) {
			uint32_t freq = row->enc[l] & RESIDUAL_ENC_FREQ_MASK;

			if (!(row->lanes >> l & 1u))
				continue;
			if (codec_rans_encode_spills(state[l], freq)) {
				*--end = (uint16_t)state[l];
				state[l] >>= 16;
			}
			state[l] = codec_rans_encode_step(state[l], freq, row->enc[l] >> 16);
		}
	}
	return end;
}

/* ---- decoding ---- */

static int refill(struct residual_stream *st, uint32_t lane)
{
	if (st->state[lane] >= CODEC_STATE_LOW)
		return 0;
	if (st->words_left == 0)
		return -EBADMSG;
	st->state[lane] = st->state[lane] << 16 | st->words[0] | (uint32_t)st->words[1] << 8;
	st->words += 2;
	st->words_left--;
	return 0;
}

int residual_take_symbol(struct residual_stream *st, uint32_t lane, const uint32_t *dec,
			 uint32_t *ret_symbol)
{
	uint32_t e = dec[st->state[lane] & (CODEC_PROB_SUM - 1u)];

	*ret_symbol = e >> CODEC_DEC_TOKEN_SHIFT & CODEC_DEC_TOKEN_MASK;
	st->state[lane] = codec_rans_decode_step(st->state[lane], e);
	return refill(st, lane);
}

static int take_raw(struct residual_stream *st, uint32_t lane, uint32_t bits, uint32_t *ret_value)
{
	*ret_value = st->state[lane] & ((1u << bits) - 1u);
	st->state[lane] >>= bits;
	return refill(st, lane);
}

static void pattern_put(const struct residual_segment *s, uint8_t *patterns, uint32_t token,
			uint32_t column, uint32_t pattern)
{
	size_t i = (size_t)token * s->columns + column;

	if (s->type.bits == 16) {
		patterns[2u * i] = (uint8_t)pattern;
		patterns[2u * i + 1u] = (uint8_t)(pattern >> 8);
	} else {
		patterns[i] = (uint8_t)pattern;
	}
}

static int row_decode_raw(struct residual_stream *st, const struct residual_segment *s,
			  uint32_t group, uint32_t token, uint8_t *patterns)
{
	uint32_t lanes = residual_group_lanes(s, group);

	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t pattern;
		int r = take_raw(st, l, s->type.bits, &pattern);

		if (r < 0)
			return r;
		pattern_put(s, patterns, token, group * CODEC_LANES + l, pattern);
	}
	return 0;
}

static int row_decode(struct residual_stream *st, const struct residual_segment *s, uint32_t group,
		      uint32_t token, uint32_t tau, uint8_t *patterns)
{
	struct residual_grid grid[CODEC_LANES];
	struct residual_reader rd[CODEC_LANES];
	uint32_t lanes = residual_group_lanes(s, group), first = group * CODEC_LANES, more = 0;

	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t symbol;

		grid[l] = grid_at(s, token, first + l, tau);
		if (residual_take_symbol(st, l, s->tables->dec[grid[l].class_], &symbol) < 0)
			return -EBADMSG;
		residual_reader_start(&rd[l], s->type, grid[l], symbol);
		more |= (uint32_t)rd[l].want;
	}
	while (more) {
		more = 0;
		for (uint32_t l = 0; l < lanes; l++) {
			uint32_t value;

			if (!rd[l].want)
				continue;
			if (take_raw(st, l, (uint32_t)rd[l].want, &value) < 0)
				return -EBADMSG;
			residual_reader_feed(&rd[l], s->type, grid[l], value);
			more |= (uint32_t)rd[l].want;
		}
	}
	for (uint32_t l = 0; l < lanes; l++)
		pattern_put(s, patterns, token, first + l, rd[l].pattern);
	return 0;
}

int residual_scalar_decode(struct residual_stream *st, const struct residual_segment *s,
			   uint32_t group, const uint8_t *tau, uint8_t *patterns)
{
	int r = 0;

	for (uint32_t t = 0; r == 0 && t < s->tokens_count; t++)
		r = tau[t] == RESIDUAL_TAU_RAW ? row_decode_raw(st, s, group, t, patterns)
					       : row_decode(st, s, group, t, tau[t], patterns);
	return r;
}
