/* SPDX-License-Identifier: Apache-2.0 */
/*
 * profile.c - the frozen tables of a namespace: parsing (a profile comes from disk, so every field is
 * checked here and nowhere later), the arrays that the kernels read, the digest.
 *
 * A profile is immutable and may be used by any number of threads.
 */
#include "gpu/codec/codec.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/layer_code.h"
#include "gpu/codec/model_profile.h"

struct layout { /* byte offsets inside a serialised profile */
	size_t segments_off;
	size_t channels_off;
	size_t tables_off;
	size_t end_off;
	size_t bytes;
};

static struct layout layout_of(uint32_t segments, uint32_t channels, uint32_t tables)
{
	struct layout l = { .segments_off = sizeof(struct format_profile_header) };

	l.channels_off = l.segments_off + segments * sizeof(struct format_profile_segment);
	l.tables_off = l.channels_off + channels * sizeof(struct format_profile_channel);
	l.end_off = l.tables_off + (size_t)tables * CODEC_TOKENS_COUNT * 2u;
	l.bytes = (l.end_off + 7u) & ~(size_t)7u;
	return l;
}

static uint32_t geometry_channels(const struct codec_geometry *g)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		if (codec_segment_coded(&g->segments[i]))
			n += codec_segment_columns(&g->segments[i]);
	return n;
}

size_t codec_profile_serial_bytes(const struct codec_geometry *g, uint32_t tables_count)
{
	return layout_of(g->segments_count, geometry_channels(g), tables_count).bytes;
}

/* Where sections begin. */
static size_t sections_off(const struct layout *l)
{
	return (l->bytes + FORMAT_SECTION_ALIGN - 1u) & ~(size_t)(FORMAT_SECTION_ALIGN - 1u);
}

static int header_check(const struct codec_geometry *g, const struct format_profile_header *h,
			const uint8_t *buf, size_t buf_bytes)
{
	struct layout l;
	size_t end;

	if (h->magic != FORMAT_PROFILE_MAGIC)
		return -EBADMSG;
	if (h->version < FORMAT_PROFILE_VERSION || h->version > FORMAT_PROFILE_VERSION_MODEL ||
	    memcmp(h->geometry_digest, g->digest, CODEC_DIGEST_BYTES) != 0)
		return -ESTALE;
	if (h->prob_bits != CODEC_PROB_BITS || h->contexts != CODEC_CONTEXTS ||
	    h->segments_count != g->segments_count || h->channels_count != geometry_channels(g))
		return -EBADMSG;
	if (h->tables_count > FORMAT_TABLES_MAX || (h->channels_count > 0 && h->tables_count == 0))
		return -EBADMSG;
	l = layout_of(h->segments_count, h->channels_count, h->tables_count);
	end = h->version == FORMAT_PROFILE_VERSION ? l.bytes : sections_off(&l);
	if (h->version == FORMAT_PROFILE_VERSION ? end != buf_bytes : end >= buf_bytes)
		return -EBADMSG;
	for (size_t i = l.end_off; i < end; i++)
		if (buf[i] != 0)
			return -EBADMSG;
	return 0;
}

static int profile_alloc(struct codec_profile *p, const struct codec_geometry *g)
{
	size_t padded = 0, slots = (size_t)p->tables_count * CODEC_PROB_SUM;
	size_t tokens = (size_t)p->tables_count * CODEC_TOKENS_PITCH;

	for (uint32_t i = 0; i < g->segments_count; i++)
		if (codec_segment_coded(&g->segments[i]))
			padded += (codec_segment_columns(&g->segments[i]) + CODEC_LANES - 1u) &
				  ~(size_t)(CODEC_LANES - 1u);
	p->runs = calloc(g->segments_count, sizeof(*p->runs));
	/* One more row than needed, so that an empty profile is no special case. */
	p->columns = calloc((padded + CODEC_LANES) * 4u, sizeof(*p->columns));
	p->dec = calloc(slots + 1u, sizeof(*p->dec));
	p->enc = calloc(tokens + 1u, sizeof(*p->enc));
	if (!p->runs || !p->columns || !p->dec || !p->enc)
		return -ENOMEM;
	return 0;
}

/* Build one table both ways.  Returns the width it supports: below, no frequency is 0; 0 = malformed. */
static uint32_t table_build(struct codec_profile *p, uint32_t table, const uint8_t *serial)
{
	uint32_t *dec = p->dec + (size_t)table * CODEC_PROB_SUM;
	uint64_t *enc = p->enc + (size_t)table * CODEC_TOKENS_PITCH;
	uint32_t start = 0, width = 0;
	uint16_t freq[CODEC_TOKENS_COUNT];

	memcpy(freq, serial, sizeof(freq));
	for (uint32_t t = 0; t < CODEC_TOKENS_COUNT; t++) {
		if (freq[t] >= CODEC_PROB_SUM || freq[t] > CODEC_PROB_SUM - start)
			return 0;
		enc[t] = codec_enc_entry(freq[t], start);
		for (uint32_t i = 0; i < freq[t]; i++)
			dec[start + i] = codec_dec_entry(freq[t], i, t);
		start += freq[t];
	}
	if (start != CODEC_PROB_SUM || freq[CODEC_TOKEN_ESC] == 0)
		return 0;
	while (width < CODEC_WIDTH_MAX && freq[2u * width] && freq[2u * width + 1u])
		width++;
	return width;
}

static int channel_check(const struct codec_run *run, const struct format_profile_channel *c,
			 const uint8_t *widths, uint32_t tables_count)
{
	uint32_t table = c->table_flip & 127u, n = run->context ? CODEC_CONTEXTS : 1u;
	uint32_t cells = 1u << (run->bits - 1u) >> run->shift;

	if (c->top >= cells || c->width == 0 || table + n > tables_count)
		return -EBADMSG;
	for (uint32_t i = 0; i < n; i++)
		if (c->width > widths[table + i])
			return -EBADMSG;
	return 0;
}

/* Fill one run and its column arrays; *columns and *channel advance. */
static int run_build(struct codec_profile *p, const struct codec_geometry *g, uint32_t segment,
		     const struct format_profile_segment *fs, const uint8_t *widths,
		     uint16_t **columns, const uint8_t **channel)
{
	const struct codec_segment *s = &g->segments[segment];
	struct codec_run *run = &p->runs[segment];
	uint32_t padded;
	uint16_t *a = *columns;

	if (fs->reserved != 0 || fs->coded != codec_segment_coded(s))
		return -EBADMSG;
	if (!fs->coded)
		return fs->shift == 0 && fs->context == 0 ? 0 : -EBADMSG;
	if (fs->shift > CODEC_SHIFT_MAX || fs->context > 1)
		return -EBADMSG;
	run->tokens_count = g->block_tokens;
	run->columns = codec_segment_columns(s);
	run->rows_per_token = (run->columns + CODEC_LANES - 1u) / CODEC_LANES;
	run->bits = (uint8_t)(codec_dtype_bytes(s->dtype) * 8u);
	run->shift = fs->shift;
	run->context = fs->context;
	if (run->shift >= run->bits - 1u)
		return -EBADMSG;
	padded = run->rows_per_token * CODEC_LANES;
	run->top = a;
	run->width = a + padded;
	run->flip = a + 2u * padded;
	run->table = a + 3u * padded;
	for (uint32_t i = 0; i < run->columns; i++) {
		struct format_profile_channel c;

		memcpy(&c, *channel, sizeof(c));
		if (channel_check(run, &c, widths, p->tables_count) < 0)
			return -EBADMSG;
		a[i] = c.top;
		a[padded + i] = c.width;
		a[2u * padded + i] = c.table_flip >> 7;
		a[3u * padded + i] = c.table_flip & 127u;
		*channel += sizeof(c);
	}
	*columns += 4u * (size_t)padded;
	return 0;
}

/* The sections behind the channel part: of version 2 `layer`, of version 3 it may be left out before `model`. */
static int sections_parse(struct codec_profile *p, const struct codec_geometry *g, uint16_t version,
			  const uint8_t *at, size_t bytes)
{
	struct layer_section h;
	int r;

	if (version == FORMAT_PROFILE_VERSION_LAYER)
		return layer_profile_parse(g, at, bytes, &p->layer);
	if (bytes < sizeof(h))
		return -EBADMSG;
	memcpy(&h, at, sizeof(h));
	if (h.magic == LAYER_SECTION_MAGIC) {
		if (h.bytes >= bytes || h.bytes % FORMAT_SECTION_ALIGN != 0)
			return -EBADMSG;
		r = layer_profile_parse(g, at, h.bytes, &p->layer);
		if (r < 0)
			return r;
		at += h.bytes;
		bytes -= h.bytes;
	}
	return model_profile_parse(g, at, bytes, &p->model);
}

static int profile_build(struct codec_profile *p, const struct codec_geometry *g,
			 const struct format_profile_header *h)
{
	struct layout l = layout_of(h->segments_count, h->channels_count, h->tables_count);
	const uint8_t *channel = p->serial + l.channels_off;
	uint8_t widths[FORMAT_TABLES_MAX];
	uint16_t *columns;
	int r;

	p->tables_count = h->tables_count;
	p->segments_count = h->segments_count;
	p->expected_bits = h->expected_bits_q16 / 65536.0;
	p->tokens_fitted = h->tokens_count;
	memcpy(p->geometry_digest, h->geometry_digest, CODEC_DIGEST_BYTES);
	r = profile_alloc(p, g);
	if (r < 0)
		return r;
	for (uint32_t t = 0; t < h->tables_count; t++) {
		uint32_t w = table_build(p, t,
					 p->serial + l.tables_off + t * CODEC_TOKENS_COUNT * 2u);

		if (w == 0)
			return -EBADMSG;
		widths[t] = (uint8_t)w;
	}
	columns = p->columns;
	for (uint32_t i = 0; i < h->segments_count; i++) {
		struct format_profile_segment fs;

		memcpy(&fs, p->serial + l.segments_off + i * sizeof(fs), sizeof(fs));
		r = run_build(p, g, i, &fs, widths, &columns, &channel);
		if (r < 0)
			return r;
	}
	assert(channel == p->serial + l.tables_off);
	if (h->version == FORMAT_PROFILE_VERSION)
		return 0;
	return sections_parse(p, g, h->version, p->serial + sections_off(&l),
			      p->serial_bytes - sections_off(&l));
}

int codec_profile_from_serial(const struct codec_geometry *g, uint8_t *serial, size_t serial_bytes,
			      struct codec_profile **ret_profile)
{
	struct format_profile_header h;
	struct codec_profile *p;
	int r;

	if (serial_bytes < sizeof(h))
		return -EBADMSG;
	memcpy(&h, serial, sizeof(h));
	r = header_check(g, &h, serial, serial_bytes);
	if (r < 0)
		return r;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->serial = serial;
	p->serial_bytes = serial_bytes;
	r = profile_build(p, g, &h);
	if (r < 0) {
		p->serial = NULL; /* still the caller's */
		codec_profile_free(p);
		return r;
	}
	crypto_generichash(p->digest, CODEC_DIGEST_BYTES, serial, serial_bytes, NULL, 0);
	*ret_profile = p;
	return 0;
}

/* Sections are read where they lie. */
uint8_t *codec_serial_alloc(size_t bytes)
{
	return aligned_alloc(FORMAT_SECTION_ALIGN, (bytes + FORMAT_SECTION_ALIGN - 1u) &
							   ~(size_t)(FORMAT_SECTION_ALIGN - 1u));
}

struct section {
	const uint8_t *at; /* NULL: none */
	size_t bytes;	   /* a multiple of FORMAT_SECTION_ALIGN */
};

static struct section layer_of(const struct codec_profile *p)
{
	struct section s = { NULL, 0 };

	if (p->layer) {
		s.at = (const uint8_t *)p->layer->section;
		s.bytes = p->layer->section->bytes;
	}
	return s;
}

static struct section model_of(const struct codec_profile *p)
{
	struct section s = { NULL, 0 };

	if (p->model) {
		s.at = (const uint8_t *)p->model->section;
		s.bytes = p->model->section->bytes;
	}
	return s;
}

/* p's channel part with these sections. */
static int with_sections(const struct codec_geometry *g, const struct codec_profile *p,
			 struct section layer, struct section model,
			 struct codec_profile **ret_profile)
{
	struct format_profile_header h;
	struct layout l;
	uint8_t *serial;
	size_t bytes;
	int r;

	assert(layer.at || model.at);
	memcpy(&h, p->serial, sizeof(h));
	l = layout_of(h.segments_count, h.channels_count, h.tables_count);
	bytes = sections_off(&l) + layer.bytes + model.bytes;
	serial = codec_serial_alloc(bytes);
	if (!serial)
		return -ENOMEM;
	h.version = model.at ? FORMAT_PROFILE_VERSION_MODEL : FORMAT_PROFILE_VERSION_LAYER;
	memset(serial, 0, sections_off(&l));
	memcpy(serial, p->serial, l.bytes);
	memcpy(serial, &h, sizeof(h));
	if (layer.at)
		memcpy(serial + sections_off(&l), layer.at, layer.bytes);
	if (model.at)
		memcpy(serial + sections_off(&l) + layer.bytes, model.at, model.bytes);
	r = codec_profile_from_serial(g, serial, bytes, ret_profile);
	if (r < 0)
		free(serial);
	return r;
}

int codec_profile_with_layer(const struct codec_geometry *g, const struct codec_profile *p,
			     const uint8_t *section, size_t section_bytes,
			     struct codec_profile **ret_profile)
{
	return with_sections(g, p, (struct section){ section, section_bytes }, model_of(p),
			     ret_profile);
}

int codec_profile_with_model_section(const struct codec_geometry *g, const struct codec_profile *p,
				     const uint8_t *section, size_t section_bytes,
				     struct codec_profile **ret_profile)
{
	return with_sections(g, p, layer_of(p), (struct section){ section, section_bytes },
			     ret_profile);
}

/* Cells of each binade; a channel's tokens are counted from its top cell, so moving that one moves all. */
static double binade_cells(const struct codec_segment *s, uint32_t shift)
{
	static const int mantissa[CODEC_DTYPE_COUNT] = { 0, 7, 10, 3, 2 };

	return ldexp(1, mantissa[s->dtype] - (int)shift);
}

void codec_profile_rescale_channels(const struct codec_geometry *g, uint8_t *serial,
				    const double *ratio)
{
	struct format_profile_header h;
	struct format_profile_segment fs;
	struct layout l;
	uint8_t *at;

	memcpy(&h, serial, sizeof(h));
	l = layout_of(h.segments_count, h.channels_count, h.tables_count);
	at = serial + l.channels_off;
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		double cells, by;

		if (!codec_segment_coded(s))
			continue;
		memcpy(&fs, serial + l.segments_off + i * sizeof(fs), sizeof(fs));
		cells = (double)(1u << (codec_dtype_bytes(s->dtype) * 8u - 1u) >> fs.shift);
		by = nearbyint(binade_cells(s, fs.shift) * log2(ratio[i]));
		for (uint32_t c = 0; c < codec_segment_columns(s); c++) {
			struct format_profile_channel fc;

			memcpy(&fc, at, sizeof(fc));
			fc.top = (uint16_t)fmin(cells - 1, fmax(0, fc.top - by));
			memcpy(at, &fc, sizeof(fc));
			at += sizeof(fc);
		}
	}
}

int codec_profile_parse(const struct codec_geometry *g, const void *buf, size_t buf_bytes,
			struct codec_profile **ret_profile)
{
	/* The largest that this geometry can have; anything longer is not copied at all. */
	size_t max = codec_profile_serial_bytes(g, FORMAT_TABLES_MAX) + FORMAT_SECTION_ALIGN +
		     layer_section_bytes_max(g) + model_section_bytes_max(g);
	uint8_t *serial;
	int r;

	if (buf_bytes == 0 || buf_bytes > max)
		return -EBADMSG;
	serial = codec_serial_alloc(buf_bytes);
	if (!serial)
		return -ENOMEM;
	memcpy(serial, buf, buf_bytes);
	r = codec_profile_from_serial(g, serial, buf_bytes, ret_profile);
	if (r < 0)
		free(serial);
	return r;
}

struct codec_profile *codec_profile_free(struct codec_profile *p)
{
	if (!p)
		return NULL;
	p->layer = layer_profile_free(p->layer);
	p->model = model_profile_free(p->model);
	free(p->serial);
	free(p->runs);
	free(p->columns);
	free(p->dec);
	free(p->enc);
	free(p);
	return NULL;
}

const void *codec_profile_bytes(const struct codec_profile *p, size_t *ret_bytes)
{
	*ret_bytes = p->serial_bytes;
	return p->serial;
}

const uint8_t *codec_profile_digest(const struct codec_profile *p)
{
	return p->digest;
}

double codec_profile_expected_bits(const struct codec_profile *p)
{
	return p->expected_bits;
}
