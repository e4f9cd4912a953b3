/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fit.c - gathers what a namespace's blocks look like, in bounded memory, and freezes it as a profile.
 *
 * Two steps.  The first blocks (some 256 tokens, at most SAMPLE_BYTES_MAX) are kept; from them each
 * channel gets its top cell and sign flip, fixed from then on.  Then every block, the kept ones first,
 * only adds to the channels' histograms of tokens by context: 1280 bytes a channel.
 *
 * One thread at a time; runs at low priority.  Floating point is used in fit_tables.c only.
 */
#include "gpu/codec/codec.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/fit_tables.h"
#include "gpu/codec/internal.h"

#define CHANNELS_MAX 262144u /* 320 MiB of histograms */
#define SAMPLE_TOKENS 256u
#define SAMPLE_BYTES_MAX (64u << 20)
#define TOKENS_MAX 60000u /* a uint16 count cannot overflow */
#define CELLS_MAX 1024u
#define TOP_MARGIN_CELLS 6u /* above the 90th percentile: 4.6 sigma if normal */
#define GROUPS_MAX ((CODEC_KIND_COUNT - 1u) * (CODEC_DTYPE_COUNT - 1u))

struct fit_channels { /* frozen alignment and counts */
	uint16_t *top;
	uint8_t *flip;
	uint16_t *counts; /* channels * FIT_CHANNEL_COUNTS */
};

struct codec_fit {
	const struct codec_geometry *g; /* borrowed until free */
	uint32_t channels_count;
	uint32_t samples_max;
	uint32_t samples_count;
	uint64_t tokens_count;
	uint8_t *samples;	/* owned until aligned; canonical blocks */
	uint8_t *block;		/* owned; one canonical block */
	uint8_t *previous;	/* owned; last token's tokens of a segment */
	struct fit_channels ch; /* owned; top is NULL until aligned */
};

static void channels_deinit(struct fit_channels *c)
{
	free(c->top);
	free(c->flip);
	free(c->counts);
	*c = (struct fit_channels){ 0 };
}

static int channels_init(struct fit_channels *c, uint32_t channels_count)
{
	c->top = calloc(channels_count + 1u, sizeof(*c->top));
	c->flip = calloc(channels_count + 1u, sizeof(*c->flip));
	c->counts = calloc((size_t)channels_count * FIT_CHANNEL_COUNTS + 1u, sizeof(*c->counts));
	if (!c->top || !c->flip || !c->counts) {
		channels_deinit(c);
		return -ENOMEM;
	}
	return 0;
}

int codec_fit_new(const struct codec_geometry *g, struct codec_fit **ret_fit)
{
	struct codec_fit *f;
	uint64_t channels = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		if (codec_segment_coded(&g->segments[i]))
			channels += codec_segment_columns(&g->segments[i]);
	if (channels > CHANNELS_MAX)
		return -E2BIG;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->g = g;
	f->channels_count = (uint32_t)channels;
	f->samples_max = SAMPLE_TOKENS / g->block_tokens;
	if (f->samples_max > SAMPLE_BYTES_MAX / g->raw_bytes)
		f->samples_max = (uint32_t)(SAMPLE_BYTES_MAX / g->raw_bytes);
	if (f->samples_max == 0)
		f->samples_max = 1;
	f->samples = malloc(f->samples_max * g->raw_bytes);
	f->block = malloc(g->raw_bytes);
	f->previous = malloc(CODEC_ROW_SCALARS_MAX);
	if (!f->samples || !f->block || !f->previous) {
		codec_fit_free(f);
		return -ENOMEM;
	}
	*ret_fit = f;
	return 0;
}

struct codec_fit *codec_fit_free(struct codec_fit *f)
{
	if (!f)
		return NULL;
	free(f->samples);
	free(f->block);
	free(f->previous);
	channels_deinit(&f->ch);
	free(f);
	return NULL;
}

uint64_t codec_fit_tokens(const struct codec_fit *f)
{
	return f->tokens_count;
}

/* Top cell and flip of one column of one segment from the sample blocks. */
static void column_align(const struct codec_fit *f, uint32_t segment, uint32_t column,
			 uint16_t *ret_top, uint8_t *ret_flip)
{
	const struct codec_segment *s = &f->g->segments[segment];
	uint32_t bytes = codec_dtype_bytes(s->dtype), bits = bytes * 8u, columns, n = 0,
		 negative = 0;
	unsigned shift = codec_dtype_shift(s->dtype);
	uint32_t cells = 1u << (bits - 1u) >> shift, cell = 0, above;
	uint32_t count[CELLS_MAX] = { 0 };

	assert(cells <= CELLS_MAX);
	columns = codec_segment_columns(s);
	for (uint32_t b = 0; b < f->samples_count; b++) {
		const uint8_t *raw = f->samples + b * f->g->raw_bytes + f->g->segment_off[segment];

		for (uint32_t t = 0; t < f->g->block_tokens; t++) {
			uint32_t x = codec_pattern_at(raw, (size_t)t * columns + column, bits);

			count[(x & ((1u << (bits - 1u)) - 1u)) >> shift]++;
			negative += x >> (bits - 1u);
			n++;
		}
	}
	cell = cells - 1u;
	for (above = count[cell]; cell > 0 && above * 10u < n; above += count[cell])
		cell--;
	cell += TOP_MARGIN_CELLS;
	*ret_top = (uint16_t)(cell < cells ? cell : cells - 1u);
	*ret_flip = negative * 2u > n;
}

static void channels_align(const struct codec_fit *f, struct fit_channels *c)
{
	uint32_t channel = 0;

	for (uint32_t i = 0; i < f->g->segments_count; i++) {
		const struct codec_segment *s = &f->g->segments[i];

		for (uint32_t k = 0; codec_segment_coded(s) && k < codec_segment_columns(s); k++) {
			column_align(f, i, k, &c->top[channel], &c->flip[channel]);
			channel++;
		}
	}
	assert(channel == f->channels_count);
}

static void segment_count(const struct codec_fit *f, struct fit_channels *c, uint32_t segment,
			  uint32_t channel, const uint8_t *raw)
{
	const struct codec_segment *s = &f->g->segments[segment];
	uint32_t columns = codec_segment_columns(s), bytes = codec_dtype_bytes(s->dtype);
	unsigned shift = codec_dtype_shift(s->dtype);

	for (uint32_t t = 0; t < f->g->block_tokens; t++) {
		for (uint32_t i = 0; i < columns; i++) {
			uint32_t x = codec_pattern_at(raw, i, bytes * 8u);
			uint32_t token = codec_token_of(x, bytes * 8u, shift, c->top[channel + i],
							CODEC_WIDTH_MAX, c->flip[channel + i]);
			uint32_t context = t > 0 ? codec_context_of(f->previous[i]) : 0;

			c->counts[(size_t)(channel + i) * FIT_CHANNEL_COUNTS +
				  context * CODEC_TOKENS_PITCH + token]++;
			f->previous[i] = (uint8_t)token;
		}
		raw += (size_t)columns * bytes;
	}
}

static void block_count(const struct codec_fit *f, struct fit_channels *c, const uint8_t *block)
{
	uint32_t channel = 0;

	for (uint32_t i = 0; i < f->g->segments_count; i++) {
		if (!codec_segment_coded(&f->g->segments[i]))
			continue;
		segment_count(f, c, i, channel, block + f->g->segment_off[i]);
		channel += codec_segment_columns(&f->g->segments[i]);
	}
}

static int samples_freeze(const struct codec_fit *f, struct fit_channels *c)
{
	int r = channels_init(c, f->channels_count);

	if (r < 0)
		return r;
	channels_align(f, c);
	for (uint32_t b = 0; b < f->samples_count; b++)
		block_count(f, c, f->samples + b * f->g->raw_bytes);
	return 0;
}

void codec_fit_add(struct codec_fit *f, const struct codec_view *block)
{
	if (f->tokens_count + f->g->block_tokens > TOKENS_MAX)
		return;
	if (!f->ch.top && f->samples_count == f->samples_max) {
		if (samples_freeze(f, &f->ch) < 0)
			return; /* no memory: go on with what was kept */
		free(f->samples);
		f->samples = NULL;
	}
	if (f->ch.top) {
		codec_copy_out(f->g, block, f->block);
		block_count(f, &f->ch, f->block);
	} else {
		codec_copy_out(f->g, block, f->samples + f->samples_count * f->g->raw_bytes);
		f->samples_count++;
	}
	f->tokens_count += f->g->block_tokens;
}

struct groups {
	struct fit_group group[GROUPS_MAX];
	const uint16_t **counts[GROUPS_MAX]; /* owned */
	uint32_t first_table[GROUPS_MAX];
	bool used[GROUPS_MAX];
	uint32_t tables_count;
};

static uint32_t group_of(const struct codec_segment *s)
{
	assert(codec_segment_coded(s));
	return (s->kind - 1u) * (CODEC_DTYPE_COUNT - 1u) + s->dtype - 1u;
}

static void groups_deinit(struct groups *gs)
{
	for (uint32_t i = 0; i < GROUPS_MAX; i++) {
		free(gs->group[i].class_of);
		free(gs->counts[i]);
	}
	free(gs);
}

/* Hand each channel's counts to its group. */
static int groups_fill(const struct codec_fit *f, const struct fit_channels *c, struct groups *gs)
{
	uint32_t groups_count = 0, channel = 0, classes;

	for (uint32_t i = 0; i < f->g->segments_count; i++) {
		const struct codec_segment *s = &f->g->segments[i];
		struct fit_group *g;
		uint32_t k;

		if (!codec_segment_coded(s))
			continue;
		k = group_of(s);
		g = &gs->group[k];
		if (!gs->used[k]) {
			gs->used[k] = true;
			gs->counts[k] = calloc(f->channels_count, sizeof(*gs->counts[k]));
			if (!gs->counts[k])
				return -ENOMEM;
			groups_count++;
			g->counts = gs->counts[k];
			g->pattern_bits = 8u * codec_dtype_bytes(s->dtype);
			g->shift = codec_dtype_shift(s->dtype);
		}
		for (uint32_t j = 0; j < codec_segment_columns(s); j++, channel++)
			gs->counts[k][g->channels_count++] = c->counts +
							     (size_t)channel * FIT_CHANNEL_COUNTS;
	}
	classes = FORMAT_TABLES_MAX / (CODEC_CONTEXTS * (groups_count ? groups_count : 1u));
	for (uint32_t k = 0; k < GROUPS_MAX; k++)
		gs->group[k].classes_max = classes < FIT_CLASSES_MAX ? classes : FIT_CLASSES_MAX;
	return 0;
}

static int groups_solve(struct groups *gs)
{
	for (uint32_t k = 0; k < GROUPS_MAX; k++) {
		struct fit_group *g = &gs->group[k];
		int r;

		if (!gs->used[k])
			continue;
		r = fit_group_solve(g);
		if (r < 0)
			return r;
		gs->first_table[k] = gs->tables_count;
		gs->tables_count += g->classes_count * (g->context ? CODEC_CONTEXTS : 1u);
	}
	assert(gs->tables_count <= FORMAT_TABLES_MAX);
	return 0;
}

static uint32_t groups_expected_q16(const struct groups *gs)
{
	double bits = 0, scalars = 0;

	for (uint32_t k = 0; k < GROUPS_MAX; k++)
		if (gs->used[k]) {
			bits += gs->group[k].bits;
			scalars += gs->group[k].scalars;
		}
	return scalars > 0 ? (uint32_t)(bits / scalars * 65536.0 + 0.5) : 0;
}

static void put(uint8_t **at, const void *from, size_t bytes)
{
	memcpy(*at, from, bytes);
	*at += bytes;
}

static void serial_segments(const struct codec_fit *f, const struct groups *gs, uint8_t **at)
{
	for (uint32_t i = 0; i < f->g->segments_count; i++) {
		const struct codec_segment *s = &f->g->segments[i];
		struct format_profile_segment fs = { 0 };

		if (codec_segment_coded(s)) {
			fs.coded = 1;
			fs.shift = (uint8_t)codec_dtype_shift(s->dtype);
			fs.context = gs->group[group_of(s)].context;
		}
		put(at, &fs, sizeof(fs));
	}
}

static void serial_channels(const struct codec_fit *f, const struct fit_channels *c,
			    const struct groups *gs, uint8_t **at)
{
	uint32_t next[GROUPS_MAX] = { 0 }, channel = 0;

	for (uint32_t i = 0; i < f->g->segments_count; i++) {
		const struct codec_segment *s = &f->g->segments[i];

		for (uint32_t j = 0; codec_segment_coded(s) && j < codec_segment_columns(s); j++) {
			uint32_t k = group_of(s);
			const struct fit_group *g = &gs->group[k];
			uint8_t class = g->class_of[next[k]++];
			struct format_profile_channel fc = {
				.top = c->top[channel],
				.width = g->width[class],
			};

			fc.table_flip = (uint8_t)(gs->first_table[k] +
						  class * (g->context ? CODEC_CONTEXTS : 1u));
			fc.table_flip |= (uint8_t)(c->flip[channel] << 7);
			put(at, &fc, sizeof(fc));
			channel++;
		}
	}
}

static int profile_serialise(const struct codec_fit *f, const struct fit_channels *c,
			     const struct groups *gs, struct codec_profile **ret_profile)
{
	size_t bytes = codec_profile_serial_bytes(f->g, gs->tables_count);
	struct format_profile_header h = {
		.magic = FORMAT_PROFILE_MAGIC,
		.version = FORMAT_PROFILE_VERSION,
		.prob_bits = CODEC_PROB_BITS,
		.contexts = CODEC_CONTEXTS,
		.segments_count = f->g->segments_count,
		.channels_count = f->channels_count,
		.tables_count = gs->tables_count,
		.expected_bits_q16 = groups_expected_q16(gs),
		.tokens_count = f->tokens_count,
	};
	uint8_t *serial = calloc(1, bytes), *at = serial;
	int r;

	if (!serial)
		return -ENOMEM;
	memcpy(h.geometry_digest, f->g->digest, CODEC_DIGEST_BYTES);
	put(&at, &h, sizeof(h));
	serial_segments(f, gs, &at);
	serial_channels(f, c, gs, &at);
	for (uint32_t k = 0; k < GROUPS_MAX; k++)
		for (uint32_t i = 0; gs->used[k] && i < gs->group[k].classes_count; i++)
			put(&at, gs->group[k].freq[i],
			    (gs->group[k].context ? CODEC_CONTEXTS : 1u) * CODEC_TOKENS_COUNT * 2u);
	assert((size_t)(at - serial) <= bytes);
	r = codec_profile_from_serial(f->g, serial, bytes, ret_profile);
	if (r < 0)
		free(serial);
	assert(r == 0 || r == -ENOMEM);
	return r;
}

int codec_fit_finish(const struct codec_fit *f, struct codec_profile **ret_profile)
{
	struct fit_channels own = { 0 };
	struct groups *gs;
	int r;

	if (f->tokens_count == 0)
		return -ENODATA;
	gs = calloc(1, sizeof(*gs));
	if (!gs)
		return -ENOMEM;
	r = f->ch.top ? 0 : samples_freeze(f, &own);
	if (r == 0)
		r = groups_fill(f, f->ch.top ? &f->ch : &own, gs);
	if (r == 0)
		r = groups_solve(gs);
	if (r == 0)
		r = profile_serialise(f, f->ch.top ? &f->ch : &own, gs, ret_profile);
	groups_deinit(gs);
	channels_deinit(&own);
	return r;
}
