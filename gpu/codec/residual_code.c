/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_code.c - the residual coder over segments, scalar: the reference that every other
 * implementation must equal byte for byte.
 *
 * An encoder must know all symbols before it codes the last of them, so it keeps a list of steps of
 * each stream and runs through it backwards at the end.
 */
#include "gpu/codec/residual_code.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define STATES_BYTES (CODEC_LANES * 4u)
#define STEP_RAW 0x80000000u
#define ROW_STEPS_MAX (CODEC_LANES * (1u + RESIDUAL_ITEMS_MAX))
#define COST_ONE 4u /* a bit, in the costs that rows are weighed with */

/* A rANS step.  A token: start << 11 | frequency; raw: STEP_RAW | bits << 16 | value.  Lane << 24. */
struct steps {
	uint32_t *step; /* owned */
	size_t count, cap;
};

struct residual_encoder {
	uint32_t streams_count;
	struct steps steps[RESIDUAL_STREAMS_MAX];
	uint16_t *words; /* owned */
	size_t words_cap;
};

struct stream {
	uint32_t state[CODEC_LANES];
	const uint8_t *words; /* borrowed, maybe unaligned */
	uint32_t words_left;
};

struct residual_decoder {
	uint32_t streams_count;
	struct stream stream[RESIDUAL_STREAMS_MAX];
	uint8_t *tau; /* owned: of one stream's tokens */
	size_t tau_cap;
};

/* ---- tables ---- */

static int table_build(const uint16_t *freq, uint32_t count, uint32_t *dec, uint32_t *enc)
{
	uint32_t start = 0;

	for (uint32_t t = 0; t < count; t++) {
		if (freq[t] >= CODEC_PROB_SUM || freq[t] > CODEC_PROB_SUM - start)
			return -EBADMSG;
		enc[t] = freq[t] | start << 16;
		for (uint32_t i = 0; i < freq[t]; i++)
			dec[start + i] = codec_dec_entry(freq[t], i, t);
		start += freq[t];
	}
	return start == CODEC_PROB_SUM ? 0 : -EBADMSG;
}

int residual_tables_build(const struct residual_freqs *f, struct residual_tables *t)
{
	int r = 0;

	for (uint32_t c = 0; r == 0 && c < RESIDUAL_CLASSES; c++) {
		r = table_build(f->token[c], RESIDUAL_TOKENS, t->dec[c], t->enc[c]);
		if (f->token[c][RESIDUAL_ESC] == 0)
			r = -EBADMSG;
	}
	if (r == 0)
		r = table_build(f->tau, RESIDUAL_TAU_SYMBOLS, t->tau_dec, t->tau_enc);
	for (uint32_t i = 0; i < RESIDUAL_TAU_SYMBOLS; i++)
		if (f->tau[i] == 0)
			r = -EBADMSG;
	return r;
}

uint32_t residual_streams(uint64_t scalars, uint32_t columns_min)
{
	uint32_t groups = (columns_min + CODEC_LANES - 1u) / CODEC_LANES, n = 1;

	while (2u * n * RESIDUAL_STREAM_GROUPS <= groups && 2u * n <= RESIDUAL_STREAMS_MAX &&
	       scalars / (2u * n) >= RESIDUAL_STREAM_SCALARS)
		n *= 2u;
	return n;
}

/* ---- one stream's share of a segment ---- */

struct share {
	uint32_t group_begin, group_end;
	uint32_t column_begin, column_end;
};

static struct share share_of(const struct residual_segment *s, uint32_t stream,
			     uint32_t streams_count)
{
	uint32_t groups = (s->columns + CODEC_LANES - 1u) / CODEC_LANES;
	struct share h = { .group_begin = stream * groups / streams_count,
			   .group_end = (stream + 1u) * groups / streams_count };

	h.column_begin = h.group_begin * CODEC_LANES;
	h.column_end = h.group_end * CODEC_LANES;
	if (h.column_end > s->columns)
		h.column_end = s->columns;
	return h;
}

static uint32_t pattern_at(const struct residual_segment *s, const uint8_t *patterns,
			   uint32_t token, uint32_t column)
{
	size_t i = (size_t)token * s->columns + column;

	return s->type.bits == 16 ? patterns[2u * i] | (uint32_t)patterns[2u * i + 1u] << 8
				  : patterns[i];
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

#define TAU_UNIT_LOG2 6	     /* errors are summed in 64ths of sigma */
#define TAU_ERROR_MAX 16384u /* 256 sigma: an outlier says no more than that */

/* |error| / sigma in 64ths, at most TAU_ERROR_MAX. */
static uint32_t error_ratio(uint32_t d, int32_t scale)
{
	/* 2^(-f / 4) for f = 0..3, 14 fraction bits */
	static const uint16_t root[4] = { 16384, 13777, 11585, 9742 };
	int32_t sh = (scale >> 2) + 14 - TAU_UNIT_LOG2;
	uint64_t v = (uint64_t)d * root[scale & 3];

	if (sh >= 0)
		v = sh > 63 ? 0 : v >> sh;
	else
		v = sh < -20 ? TAU_ERROR_MAX : v << -sh;
	return v < TAU_ERROR_MAX ? (uint32_t)v : TAU_ERROR_MAX;
}

uint32_t residual_pick_tau(const struct residual_segment *s, const uint8_t *patterns,
			   uint32_t token, uint32_t column_begin, uint32_t column_end)
{
	/* Mean |error| where tau and tau + 1 part, in 64ths: 0.7979 * 64 * 2^((tau - 2.5) / 2). */
	static const uint16_t part[RESIDUAL_TAU_COUNT - 1u] = { 21,  30,  43,	61,   86,
								121, 172, 243,	344,  486,
								687, 972, 1374, 1943, 2748 };
	uint64_t sum = 0;
	uint32_t n = column_end - column_begin, tau = 0;

	for (uint32_t c = column_begin; c < column_end; c++) {
		int32_t mu = s->mu[(size_t)token * s->columns + c];
		int64_t d = (int64_t)residual_fixed(s->type, pattern_at(s, patterns, token, c)) -
			    mu;

		sum += error_ratio((uint32_t)(d < 0 ? -d : d), s->base[c]);
	}
	while (tau < RESIDUAL_TAU_COUNT - 1u && sum > (uint64_t)part[tau] * n)
		tau++;
	return tau;
}

/* ---- encoding ---- */

int residual_encoder_new(struct residual_encoder **ret)
{
	*ret = calloc(1, sizeof(**ret));
	return *ret ? 0 : -ENOMEM;
}

struct residual_encoder *residual_encoder_free(struct residual_encoder *e)
{
	if (!e)
		return NULL;
	for (uint32_t i = 0; i < RESIDUAL_STREAMS_MAX; i++)
		free(e->steps[i].step);
	free(e->words);
	free(e);
	return NULL;
}

void residual_encoder_start(struct residual_encoder *e, uint32_t streams_count)
{
	assert(streams_count >= 1 && streams_count <= RESIDUAL_STREAMS_MAX);
	e->streams_count = streams_count;
	for (uint32_t i = 0; i < streams_count; i++)
		e->steps[i].count = 0;
}

static int steps_reserve(struct steps *s, size_t more)
{
	size_t cap = s->cap ? s->cap : 4096;
	uint32_t *p;

	if (s->count + more <= s->cap)
		return 0;
	while (cap < s->count + more)
		cap *= 2u;
	p = realloc(s->step, cap * sizeof(*p));
	if (!p)
		return -ENOMEM;
	s->step = p;
	s->cap = cap;
	return 0;
}

static void step_raw(struct steps *s, uint32_t lane, uint32_t value, uint32_t bits)
{
	s->step[s->count++] = STEP_RAW | lane << 26 | bits << 16 | value;
}

static void step_token(struct steps *s, uint32_t lane, uint32_t enc)
{
	s->step[s->count++] = lane << 26 | (enc >> 16) << 11 | (enc & 0xffffu);
}

/* -log2(frequency / CODEC_PROB_SUM) in quarters of a bit, roughly. */
static uint32_t freq_cost(uint32_t freq)
{
	uint32_t l = (uint32_t)residual_log2(freq);
	uint32_t next = l >= 2 ? freq >> (l - 2u) & 3u : freq << (2u - l) & 3u;

	return COST_ONE * (CODEC_PROB_BITS - l) - next;
}

/* Symbols of a row slice of one token. */
static uint32_t symbols_make(const struct residual_segment *s, const uint8_t *patterns,
			     uint32_t token, uint32_t column, uint32_t lanes, uint32_t tau,
			     struct residual_symbol *sym, uint32_t *enc)
{
	uint32_t cost = 0;

	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t pattern = pattern_at(s, patterns, token, column + l);
		struct residual_grid g = grid_at(s, token, column + l, tau);

		residual_symbol(&sym[l], s->type, g, pattern);
		enc[l] = s->tables->enc[g.class_][sym[l].token];
		if ((enc[l] & 0xffffu) == 0) {
			residual_escape(&sym[l], s->type, pattern);
			enc[l] = s->tables->enc[g.class_][RESIDUAL_ESC];
		}
		cost += freq_cost(enc[l] & 0xffffu);
		for (uint32_t i = 0; i < sym[l].items_count; i++)
			cost += COST_ONE * sym[l].item_bits[i];
	}
	return cost;
}

static uint32_t group_lanes(const struct residual_segment *s, uint32_t group)
{
	uint32_t left = s->columns - group * CODEC_LANES;

	return left < CODEC_LANES ? left : CODEC_LANES;
}

/* Would the token's patterns, as they are, be no longer? */
static bool row_is_raw(const struct residual_segment *s, const uint8_t *patterns, uint32_t token,
		       const struct share *h, uint32_t tau)
{
	struct residual_symbol sym[CODEC_LANES];
	uint32_t enc[CODEC_LANES];
	uint64_t cost = 0;

	for (uint32_t g = h->group_begin; g < h->group_end; g++)
		cost += symbols_make(s, patterns, token, g * CODEC_LANES, group_lanes(s, g), tau,
				     sym, enc);
	return cost >= (uint64_t)COST_ONE * s->type.bits * (h->column_end - h->column_begin);
}

static void row_encode_raw(struct steps *st, const struct residual_segment *s,
			   const uint8_t *patterns, uint32_t token, uint32_t group)
{
	for (uint32_t l = 0; l < group_lanes(s, group); l++)
		step_raw(st, l, pattern_at(s, patterns, token, group * CODEC_LANES + l),
			 s->type.bits);
}

static void row_encode(struct steps *st, const struct residual_segment *s, const uint8_t *patterns,
		       uint32_t token, uint32_t group, uint32_t tau, uint64_t *escapes)
{
	struct residual_symbol sym[CODEC_LANES];
	uint32_t enc[CODEC_LANES], lanes = group_lanes(s, group), round = 0, more;

	(void)symbols_make(s, patterns, token, group * CODEC_LANES, lanes, tau, sym, enc);
	for (uint32_t l = 0; l < lanes; l++) {
		step_token(st, l, enc[l]);
		*escapes += sym[l].token == RESIDUAL_ESC;
	}
	do {
		more = 0;
		for (uint32_t l = 0; l < lanes; l++)
			if (sym[l].items_count > round) {
				step_raw(st, l, sym[l].item[round], sym[l].item_bits[round]);
				more = 1;
			}
		round++;
	} while (more);
}

/* The code length of the steps from `first` on. */
static void bits_add(const struct steps *st, size_t first, struct residual_bits *b, int tau)
{
	for (size_t i = first; i < st->count; i++) {
		uint32_t x = st->step[i];

		if (x & STEP_RAW)
			b->raw += x >> 16 & 31u;
		else if (tau)
			b->tau += CODEC_PROB_BITS - log2((double)(x & 2047u));
		else
			b->token += CODEC_PROB_BITS - log2((double)(x & 2047u));
	}
}

static int share_encode(struct steps *st, const struct residual_segment *s, const struct share *h,
			const uint8_t *patterns, uint64_t *escapes, struct residual_bits *bits)
{
	uint8_t tau[1024]; /* CODEC_BLOCK_TOKENS_MAX */
	size_t first = st->count;
	int r;

	assert(s->tokens_count <= sizeof(tau));
	r = steps_reserve(st, s->tokens_count);
	if (r < 0 || h->group_begin == h->group_end)
		return r;
	for (uint32_t t = 0; t < s->tokens_count; t++) {
		tau[t] = (uint8_t)residual_pick_tau(s, patterns, t, h->column_begin, h->column_end);
		if (row_is_raw(s, patterns, t, h, tau[t]))
			tau[t] = RESIDUAL_TAU_RAW;
		step_token(st, t % CODEC_LANES, s->tables->tau_enc[tau[t]]);
	}
	if (bits)
		bits_add(st, first, bits, 1);
	first = st->count;
	for (uint32_t g = h->group_begin; g < h->group_end; g++)
		for (uint32_t t = 0; t < s->tokens_count; t++) {
			r = steps_reserve(st, ROW_STEPS_MAX);
			if (r < 0)
				return r;
			if (tau[t] == RESIDUAL_TAU_RAW)
				row_encode_raw(st, s, patterns, t, g);
			else
				row_encode(st, s, patterns, t, g, tau[t], escapes);
		}
	if (bits)
		bits_add(st, first, bits, 0);
	return 0;
}

int residual_encode(struct residual_encoder *e, const struct residual_segment *s,
		    const uint8_t *patterns, uint64_t *escapes, struct residual_bits *bits)
{
	for (uint32_t i = 0; i < e->streams_count; i++) {
		struct share h = share_of(s, i, e->streams_count);
		int r = share_encode(&e->steps[i], s, &h, patterns, escapes, bits);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Run one stream's steps, last first.  Words grow down from end; returns the first. */
static uint16_t *stream_encode(const struct steps *st, uint32_t *state, uint16_t *end)
{
	for (uint32_t l = 0; l < CODEC_LANES; l++)
		state[l] = CODEC_STATE_LOW;
	for (size_t i = st->count; i-- > 0;) {
		uint32_t x = st->step[i], lane = x >> 26 & 31u, *s = &state[lane];

		if (x & STEP_RAW) {
			uint32_t bits = x >> 16 & 31u;

			if (*s >> (32u - bits)) {
				*--end = (uint16_t)*s;
				*s >>= 16;
			}
			*s = *s << bits | (x & 0xffffu);
		} else {
			uint32_t freq = x & 2047u, start = x >> 11 & 1023u;

			if (codec_rans_encode_spills(*s, freq)) {
				*--end = (uint16_t)*s;
				*s >>= 16;
			}
			*s = codec_rans_encode_step(*s, freq, start);
		}
	}
	return end;
}

static size_t index_bytes(uint32_t streams_count)
{
	return ((size_t)streams_count * 4u + 7u) & ~(size_t)7u;
}

int residual_encoder_finish(struct residual_encoder *e, uint8_t *out, size_t cap, size_t *ret_bytes)
{
	size_t states = index_bytes(e->streams_count);
	size_t at = states + (size_t)e->streams_count * STATES_BYTES;

	if (at > cap)
		return -ENOSPC;
	memset(out, 0, states);
	for (uint32_t i = 0; i < e->streams_count; i++) {
		const struct steps *st = &e->steps[i];
		uint32_t state[CODEC_LANES], n;
		uint16_t *first;

		if (e->words_cap < st->count) {
			free(e->words);
			e->words = malloc(st->count * sizeof(*e->words));
			e->words_cap = e->words ? st->count : 0;
			if (!e->words)
				return -ENOMEM;
		}
		first = stream_encode(st, state, e->words + e->words_cap);
		n = (uint32_t)(e->words + e->words_cap - first);
		if (n > (cap - at) / 2u)
			return -ENOSPC;
		memcpy(out + 4u * i, &n, 4);
		memcpy(out + states + i * STATES_BYTES, state, STATES_BYTES);
		memcpy(out + at, first, 2u * (size_t)n);
		at += 2u * (size_t)n;
	}
	*ret_bytes = at;
	return 0;
}

/* ---- decoding ---- */

int residual_decoder_new(struct residual_decoder **ret)
{
	*ret = calloc(1, sizeof(**ret));
	return *ret ? 0 : -ENOMEM;
}

struct residual_decoder *residual_decoder_free(struct residual_decoder *d)
{
	if (d)
		free(d->tau);
	free(d);
	return NULL;
}

int residual_decoder_start(struct residual_decoder *d, uint32_t streams_count, const uint8_t *in,
			   size_t in_bytes)
{
	size_t states = index_bytes(streams_count);
	size_t at = states + (size_t)streams_count * STATES_BYTES;

	if (streams_count == 0 || streams_count > RESIDUAL_STREAMS_MAX || in_bytes < at)
		return -EBADMSG;
	for (size_t i = 4u * (size_t)streams_count; i < states; i++)
		if (in[i] != 0)
			return -EBADMSG;
	for (uint32_t i = 0; i < streams_count; i++) {
		struct stream *s = &d->stream[i];

		memcpy(&s->words_left, in + 4u * i, 4);
		memcpy(s->state, in + states + i * STATES_BYTES, STATES_BYTES);
		for (uint32_t l = 0; l < CODEC_LANES; l++)
			if (s->state[l] < CODEC_STATE_LOW)
				return -EBADMSG;
		s->words = in + at;
		if (s->words_left > (in_bytes - at) / 2u)
			return -EBADMSG;
		at += 2u * (size_t)s->words_left;
	}
	d->streams_count = streams_count;
	return at == in_bytes ? 0 : -EBADMSG;
}

static int refill(struct stream *s, uint32_t lane)
{
	if (s->state[lane] >= CODEC_STATE_LOW)
		return 0;
	if (s->words_left == 0)
		return -EBADMSG;
	s->state[lane] = s->state[lane] << 16 | s->words[0] | (uint32_t)s->words[1] << 8;
	s->words += 2;
	s->words_left--;
	return 0;
}

static int take_symbol(struct stream *s, uint32_t lane, const uint32_t *dec, uint32_t *ret_symbol)
{
	uint32_t e = dec[s->state[lane] & (CODEC_PROB_SUM - 1u)];

	*ret_symbol = e >> CODEC_DEC_TOKEN_SHIFT & CODEC_DEC_TOKEN_MASK;
	s->state[lane] = codec_rans_decode_step(s->state[lane], e);
	return refill(s, lane);
}

static int take_raw(struct stream *s, uint32_t lane, uint32_t bits, uint32_t *ret_value)
{
	*ret_value = s->state[lane] & ((1u << bits) - 1u);
	s->state[lane] >>= bits;
	return refill(s, lane);
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

static int row_decode_raw(struct stream *st, const struct residual_segment *s, uint8_t *patterns,
			  uint32_t token, uint32_t group)
{
	for (uint32_t l = 0; l < group_lanes(s, group); l++) {
		uint32_t pattern;
		int r = take_raw(st, l, s->type.bits, &pattern);

		if (r < 0)
			return r;
		pattern_put(s, patterns, token, group * CODEC_LANES + l, pattern);
	}
	return 0;
}

static int row_decode(struct stream *st, const struct residual_segment *s, uint8_t *patterns,
		      uint32_t token, uint32_t group, uint32_t tau)
{
	struct residual_grid grid[CODEC_LANES];
	struct residual_reader rd[CODEC_LANES];
	uint32_t lanes = group_lanes(s, group), first = group * CODEC_LANES, more = 0;

	for (uint32_t l = 0; l < lanes; l++) {
		uint32_t symbol;

		grid[l] = grid_at(s, token, first + l, tau);
		if (take_symbol(st, l, s->tables->dec[grid[l].class_], &symbol) < 0)
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

static int share_decode(struct residual_decoder *d, struct stream *st,
			const struct residual_segment *s, const struct share *h, uint8_t *patterns)
{
	uint8_t tau[1024]; /* CODEC_BLOCK_TOKENS_MAX */
	int r = 0;

	(void)d;
	assert(s->tokens_count <= sizeof(tau));
	if (h->group_begin == h->group_end)
		return 0;
	for (uint32_t t = 0; t < s->tokens_count; t++) {
		uint32_t symbol;

		if (take_symbol(st, t % CODEC_LANES, s->tables->tau_dec, &symbol) < 0)
			return -EBADMSG;
		tau[t] = (uint8_t)symbol;
	}
	for (uint32_t g = h->group_begin; r == 0 && g < h->group_end; g++)
		for (uint32_t t = 0; r == 0 && t < s->tokens_count; t++)
			r = tau[t] == RESIDUAL_TAU_RAW ? row_decode_raw(st, s, patterns, t, g)
						       : row_decode(st, s, patterns, t, g, tau[t]);
	return r;
}

int residual_decode(struct residual_decoder *d, const struct residual_segment *s, uint8_t *patterns)
{
	for (uint32_t i = 0; i < d->streams_count; i++) {
		struct share h = share_of(s, i, d->streams_count);
		int r = share_decode(d, &d->stream[i], s, &h, patterns);

		if (r < 0)
			return r;
	}
	return 0;
}

int residual_decoder_finish(struct residual_decoder *d)
{
	for (uint32_t i = 0; i < d->streams_count; i++) {
		if (d->stream[i].words_left != 0)
			return -EBADMSG;
		for (uint32_t l = 0; l < CODEC_LANES; l++)
			if (d->stream[i].state[l] != CODEC_STATE_LOW)
				return -EBADMSG;
	}
	return 0;
}
