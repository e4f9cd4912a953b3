/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_code.c - the residual coder over segments: which rows a stream has, in which order, and the
 * bytes around them.  What a row takes is the kernels' part.
 *
 * An encoder must know all symbols before it codes the last of them, so it keeps a list of rows of each
 * stream and runs through it backwards at the end.
 */
#include "gpu/codec/residual_code.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "gpu/codec/residual_rows.h"

#define STATES_BYTES (CODEC_LANES * 4u)
#define ROUNDS_MAX (RESIDUAL_ITEMS_MAX + 1u) /* of one row; one more if it turns out to be raw */

struct residual_encoder {
	uint32_t streams_count;
	struct residual_list list[RESIDUAL_STREAMS_MAX];
	uint16_t *words; /* owned */
	size_t words_cap;
};

struct residual_decoder {
	uint32_t streams_count;
	struct residual_stream stream[RESIDUAL_STREAMS_MAX];
};

/* ---- tables ---- */

/* -log2(frequency / CODEC_PROB_SUM) in quarters of a bit, roughly. */
static uint32_t freq_cost(uint32_t freq)
{
	uint32_t l = (uint32_t)residual_log2(freq);
	uint32_t next = l >= 2 ? freq >> (l - 2u) & 3u : freq << (2u - l) & 3u;

	return RESIDUAL_COST_ONE * (CODEC_PROB_BITS - l) - next;
}

static int table_build(const uint16_t *freq, uint32_t count, uint32_t *dec, uint32_t *enc)
{
	uint32_t start = 0;

	for (uint32_t t = 0; t < count; t++) {
		if (freq[t] >= CODEC_PROB_SUM || freq[t] > CODEC_PROB_SUM - start)
			return -EBADMSG;
		enc[t] = freq[t] | start << 16;
		if (freq[t])
			enc[t] |= freq_cost(freq[t]) << RESIDUAL_ENC_COST_SHIFT;
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

uint32_t residual_streams(uint64_t size, uint32_t columns_min, uint32_t size_each,
			  uint32_t groups_each)
{
	uint32_t groups = (columns_min + CODEC_LANES - 1u) / CODEC_LANES, n = 1;

	while (2u * n * groups_each <= groups && 2u * n <= RESIDUAL_STREAMS_MAX &&
	       size / (2u * n) >= size_each)
		n *= 2u;
	return n;
}

/* ---- the token's scale ---- */

/* The step for n errors, in 64ths of sigma, of this sum. */
static uint32_t tau_of(uint64_t sum, uint32_t n)
{
	/* Mean |error| where tau and tau + 1 part, in 64ths: 0.7979 * 64 * 2^((tau - 2.5) / 2). */
	static const uint16_t part[RESIDUAL_TAU_COUNT - 1u] = { 21,  30,  43,	61,   86,
								121, 172, 243,	344,  486,
								687, 972, 1374, 1943, 2748 };
	uint32_t tau = 0;

	while (tau < RESIDUAL_TAU_COUNT - 1u && sum > (uint64_t)part[tau] * n)
		tau++;
	return tau;
}

uint32_t residual_pick_tau(const struct residual_segment *s, const uint8_t *patterns,
			   uint32_t token, uint32_t column_begin, uint32_t column_end)
{
	uint64_t sum = 0;

	for (uint32_t c = column_begin; c < column_end; c++)
		sum += residual_error_at(s, patterns, token, c);
	return tau_of(sum, column_end - column_begin);
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
	for (uint32_t i = 0; i < RESIDUAL_STREAMS_MAX; i++) {
		free(e->list[i].row);
		free(e->list[i].round);
	}
	free(e->words);
	free(e);
	return NULL;
}

void residual_encoder_start(struct residual_encoder *e, uint32_t streams_count)
{
	assert(streams_count >= 1 && streams_count <= RESIDUAL_STREAMS_MAX);
	e->streams_count = streams_count;
	for (uint32_t i = 0; i < streams_count; i++) {
		e->list[i].rows_count = 0;
		e->list[i].rounds_count = 0;
	}
}

/* Room for count + more in *buf.  0 or -ENOMEM. */
static int grow(void **buf, size_t *cap, size_t count, size_t more, size_t each)
{
	size_t n = *cap ? *cap : 256;
	void *p;

	if (count + more <= *cap)
		return 0;
	while (n < count + more)
		n *= 2u;
	p = realloc(*buf, n * each);
	if (!p)
		return -ENOMEM;
	*buf = p;
	*cap = n;
	return 0;
}

static int list_reserve(struct residual_list *l, size_t rows)
{
	int r = grow((void **)&l->row, &l->rows_cap, l->rows_count, rows, sizeof(*l->row));

	return r ? r
		 : grow((void **)&l->round, &l->rounds_cap, l->rounds_count, rows * ROUNDS_MAX,
			sizeof(*l->round));
}

static void tau_encode(struct residual_list *list, size_t first, const struct residual_segment *s,
		       const uint8_t *tau)
{
	for (uint32_t t = 0; t < s->tokens_count; t++) {
		struct residual_row *row = &list->row[first + t / CODEC_LANES];

		if (t % CODEC_LANES == 0)
			*row = (struct residual_row){ 0 };
		row->enc[t % CODEC_LANES] = s->tables->tau_enc[tau[t]];
		row->lanes |= 1u << t % CODEC_LANES;
	}
}

/* Make a row one of patterns; its old rounds stay unused. */
static void row_make_raw(struct residual_list *list, struct residual_row *row,
			 const struct residual_segment *s, const uint8_t *patterns, uint32_t token,
			 uint32_t group)
{
	struct residual_round *round = &list->round[list->rounds_count];

	row->lanes = 0;
	row->rounds_count = 1;
	row->round_first = list->rounds_count++;
	*round = (struct residual_round){ 0 };
	for (uint32_t l = 0; l < residual_group_lanes(s, group); l++) {
		round->value[l] = (uint16_t)residual_pattern_at(s, patterns, token,
								group * CODEC_LANES + l);
		round->bits[l] = (uint8_t)s->type.bits;
	}
}

/* The tokens' code length; a product of frequencies, because logarithms are slow. */
static double tokens_bits(const struct residual_row *row)
{
	double product = 1, n = 0;

	for (uint32_t l = 0; l < CODEC_LANES; l++)
		if (row->lanes >> l & 1u) {
			product *= row->enc[l] & RESIDUAL_ENC_FREQ_MASK; /* below 2^320 */
			n++;
		}
	return n * CODEC_PROB_BITS - log2(product);
}

/* The code length of the rows from `first` on, of which tau_count are tau. */
static void bits_add(const struct residual_list *list, size_t first, size_t tau_count,
		     struct residual_bits *b)
{
	for (size_t i = first; i < list->rows_count; i++) {
		const struct residual_row *row = &list->row[i];

		if (i < first + tau_count)
			b->tau += tokens_bits(row);
		else if (row->lanes)
			b->token += tokens_bits(row);
		for (uint32_t k = 0; k < row->rounds_count; k++) {
			const struct residual_round *r = &list->round[row->round_first + k];
			uint32_t n = 0;

			for (uint32_t l = 0; l < CODEC_LANES; l++)
				n += r->bits[l];
			b->raw += n;
		}
	}
}

/* The streams of a tau: what each codes, and where its rows of this segment begin. */
struct part {
	uint32_t streams_count;
	struct residual_list *list;
	struct residual_share share[RESIDUAL_STREAMS_MAX];
	size_t first[RESIDUAL_STREAMS_MAX];
	size_t tau_rows; /* of the first stream */
};

/* Rows of tau, still to be filled, and of all groups. */
static int part_rows(struct part *p, const struct residual_segment *s, const uint8_t *patterns,
		     const uint8_t *tau, struct residual_weight *weight)
{
	for (uint32_t i = 0; i < p->streams_count; i++) {
		struct residual_list *list = &p->list[i];
		const struct residual_share *h = &p->share[i];
		size_t groups = h->group_end - h->group_begin;

		p->first[i] = list->rows_count;
		if (list_reserve(list, p->tau_rows + groups * s->tokens_count) < 0)
			return -ENOMEM;
		if (i == 0)
			list->rows_count += p->tau_rows;
		for (uint32_t g = h->group_begin; g < h->group_end; g++)
			codec_kernels_get()->residual_symbols(s, g, patterns, tau, list, weight);
	}
	return 0;
}

static void part_make_raw(struct part *p, const struct residual_segment *s, const uint8_t *patterns,
			  uint32_t token)
{
	for (uint32_t i = 0; i < p->streams_count; i++) {
		struct residual_list *list = &p->list[i];
		const struct residual_share *h = &p->share[i];
		size_t row = p->first[i] + (i == 0 ? p->tau_rows : 0) + token;

		for (uint32_t g = h->group_begin; g < h->group_end; g++, row += s->tokens_count)
			row_make_raw(list, &list->row[row], s, patterns, token, g);
	}
}

static int part_encode(struct part *p, const struct residual_segment *s, const uint8_t *patterns,
		       uint64_t *escapes, struct residual_bits *bits)
{
	const struct residual_share *end = &p->share[p->streams_count - 1u];
	struct residual_weight weight[RESIDUAL_TOKENS_MAX];
	uint64_t errors[RESIDUAL_TOKENS_MAX];
	uint8_t tau[RESIDUAL_TOKENS_MAX];
	uint32_t columns = end->column_end - p->share[0].column_begin;

	assert(s->tokens_count <= RESIDUAL_TOKENS_MAX);
	if (p->share[0].group_begin == end->group_end || s->tokens_count == 0)
		return 0;
	p->tau_rows = (s->tokens_count + CODEC_LANES - 1u) / CODEC_LANES;
	memset(errors, 0, s->tokens_count * sizeof(errors[0]));
	memset(weight, 0, s->tokens_count * sizeof(weight[0]));
	for (uint32_t g = p->share[0].group_begin; g < end->group_end; g++)
		codec_kernels_get()->residual_errors(s, g, patterns, errors);
	for (uint32_t t = 0; t < s->tokens_count; t++)
		tau[t] = (uint8_t)tau_of(errors[t], columns);
	if (part_rows(p, s, patterns, tau, weight) < 0)
		return -ENOMEM;
	for (uint32_t t = 0; t < s->tokens_count; t++) {
		/* Would the token's patterns, as they are, be no longer? */
		if (weight[t].cost < (uint64_t)RESIDUAL_COST_ONE * s->type.bits * columns) {
			*escapes += weight[t].escapes;
			continue;
		}
		tau[t] = RESIDUAL_TAU_RAW;
		part_make_raw(p, s, patterns, t);
	}
	tau_encode(&p->list[0], p->first[0], s, tau);
	for (uint32_t i = 0; bits && i < p->streams_count; i++)
		bits_add(&p->list[i], p->first[i], i == 0 ? p->tau_rows : 0, bits);
	return 0;
}

int residual_encode(struct residual_encoder *e, const struct residual_segment *s,
		    const uint8_t *patterns, uint64_t *escapes, struct residual_bits *bits)
{
	uint32_t each = residual_tau_streams(s->columns, e->streams_count);

	for (uint32_t i = 0; i < e->streams_count; i += each) {
		struct part p = { .streams_count = each, .list = &e->list[i] };
		int r;

		for (uint32_t k = 0; k < each; k++)
			p.share[k] = residual_share_of(s, i + k, e->streams_count);
		r = part_encode(&p, s, patterns, escapes, bits);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Room for all words that a list can make, and for stores that reach below the first. */
static int words_reserve(struct residual_encoder *e, const struct residual_list *list)
{
	size_t n = (list->rows_count + list->rounds_count) * CODEC_LANES + CODEC_WORDS_SLACK;

	if (n <= e->words_cap)
		return 0;
	free(e->words);
	e->words = malloc(n * sizeof(*e->words));
	e->words_cap = e->words ? n : 0;
	return e->words ? 0 : -ENOMEM;
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
		const struct residual_list *list = &e->list[i];
		uint32_t state[CODEC_LANES], n;
		uint16_t *first;

		if (words_reserve(e, list) < 0)
			return -ENOMEM;
		for (uint32_t l = 0; l < CODEC_LANES; l++)
			state[l] = CODEC_STATE_LOW;
		first = codec_kernels_get()->residual_code(list, state, e->words + e->words_cap);
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
		struct residual_stream *s = &d->stream[i];

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

static int taus_decode(struct residual_stream *st, const struct residual_segment *s, uint8_t *tau)
{
	for (uint32_t t = 0; t < s->tokens_count; t++) {
		uint32_t symbol;

		if (residual_take_symbol(st, t % CODEC_LANES, s->tables->tau_dec, &symbol) < 0)
			return -EBADMSG;
		tau[t] = (uint8_t)symbol;
	}
	return 0;
}

int residual_decode(struct residual_decoder *d, const struct residual_segment *s, uint8_t *patterns)
{
	const struct codec_kernels *k = codec_kernels_get();
	uint32_t each = residual_tau_streams(s->columns, d->streams_count);
	uint8_t tau[RESIDUAL_TOKENS_MAX];
	int r = 0;

	assert(s->tokens_count <= RESIDUAL_TOKENS_MAX);
	for (uint32_t i = 0; r == 0 && i < d->streams_count; i++) {
		struct residual_share h = residual_share_of(s, i, d->streams_count),
				      last = residual_share_of(s, i / each * each + each - 1u,
							       d->streams_count);

		if (i % each == 0 && h.group_begin < last.group_end)
			r = taus_decode(&d->stream[i], s, tau);
		for (uint32_t g = h.group_begin; r == 0 && g < h.group_end; g++)
			r = k->residual_decode(&d->stream[i], s, g, tau, patterns);
	}
	return r;
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
