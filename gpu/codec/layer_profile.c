/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_profile.c - the `layer` section of a profile: from a file, so every field is checked here and
 * nowhere later.
 */
#include "gpu/codec/layer_fit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(struct layer_section) == 64, "section header");
static_assert(sizeof(struct layer_section_segment) == 8, "section segment");

static size_t aligned(size_t bytes)
{
	return (bytes + LAYER_ALIGN - 1u) & ~(size_t)(LAYER_ALIGN - 1u);
}

/* Offsets of a section's fixed parts. */
struct parts {
	size_t freq, freqs, segments, first;
};

static struct parts parts_of(uint32_t segments_count, uint32_t pairs)
{
	struct parts p = { .freq = sizeof(struct layer_section) };

	p.freqs = aligned(p.freq + pairs * sizeof(uint64_t));
	p.segments = aligned(p.freqs + LAYER_TABLES * sizeof(struct residual_freqs));
	p.first = aligned(p.segments + segments_count * sizeof(struct layer_section_segment));
	return p;
}

static size_t column_bytes(size_t columns)
{
	return aligned(columns * (4u + 4u + 4u + 2u + 1u));
}

/* Columns that segment i of these takes as inputs. */
static uint64_t inputs_of(const struct codec_geometry *g, const struct layer_section_segment *s,
			  uint32_t i)
{
	uint64_t n = 0;

	for (uint32_t k = i - s[i].inputs; k < i; k++)
		n += codec_segment_columns(&g->segments[s[k].segment]);
	return n;
}

size_t layer_section_bytes(const struct codec_geometry *g, const struct layer_section_segment *s,
			   uint32_t segments_count, uint32_t pairs)
{
	size_t bytes = parts_of(segments_count, pairs).first;

	for (uint32_t i = 0; i < segments_count; i++) {
		size_t columns = codec_segment_columns(&g->segments[s[i].segment]);
		uint64_t inputs = inputs_of(g, s, i);

		if (inputs > LAYER_INPUT_COLUMNS_MAX)
			return 0;
		bytes += column_bytes(columns) + aligned(columns * inputs);
	}
	return bytes;
}

size_t layer_section_bytes_max(const struct codec_geometry *g)
{
	size_t bytes = parts_of(CODEC_SEGMENTS_MAX, CODEC_ROW_SCALARS_MAX / 2u).first, widest = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		if (codec_segment_columns(&g->segments[i]) > widest)
			widest = codec_segment_columns(&g->segments[i]);
	widest *= LAYER_INPUTS_MAX;
	if (widest > LAYER_INPUT_COLUMNS_MAX)
		widest = LAYER_INPUT_COLUMNS_MAX;
	for (uint32_t i = 0; i < g->segments_count; i++) {
		size_t columns = codec_segment_columns(&g->segments[i]);

		bytes += column_bytes(columns) + aligned(columns * widest);
	}
	return bytes;
}

void layer_section_fill(const struct layer_section *h, const struct layer_rotary *rotary,
			const struct residual_freqs *freqs, const struct layer_section_segment *s,
			uint8_t *section)
{
	struct parts at = parts_of(h->segments_count, h->pairs);

	memcpy(section, h, sizeof(*h));
	for (uint32_t i = 0; i < h->pairs; i++) {
		uint64_t freq = layer_rotary_freq(rotary, i);

		memcpy(section + at.freq + i * sizeof(freq), &freq, sizeof(freq));
	}
	for (uint32_t i = 0; i < LAYER_TABLES; i++)
		memcpy(section + at.freqs + i * sizeof(*freqs), freqs, sizeof(*freqs));
	memcpy(section + at.segments, s, h->segments_count * sizeof(*s));
}

int layer_section_finish(uint8_t *section, const struct residual_counts *counts, uint64_t scalars)
{
	struct layer_section *h = (struct layer_section *)(void *)section;
	struct parts at = parts_of(h->segments_count, h->pairs);
	struct residual_freqs *f = malloc(sizeof(*f));
	double bits = 0;

	if (!f)
		return -ENOMEM;
	for (uint32_t i = 0; i < LAYER_TABLES; i++) {
		residual_freqs_fit(&counts[i], f);
		bits += residual_freqs_bits(&counts[i], f);
		memcpy(section + at.freqs + i * sizeof(*f), f, sizeof(*f));
	}
	free(f);
	if (scalars > 0)
		h->expected_bits_q16 = (uint32_t)(bits / (double)scalars * 65536);
	return 0;
}

/* Each coded segment once, in order, with inputs that exist. */
static int segments_check(const struct codec_geometry *g, const struct layer_section *h,
			  const struct layer_section_segment *s)
{
	uint8_t seen[CODEC_SEGMENTS_MAX] = { 0 };
	uint32_t coded = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		coded += codec_segment_coded(&g->segments[i]);
	if (h->segments_count != coded)
		return -EBADMSG;
	for (uint32_t i = 0; i < h->segments_count; i++) {
		const struct codec_segment *seg;

		if (s[i].segment >= g->segments_count || seen[s[i].segment]++)
			return -EBADMSG;
		seg = &g->segments[s[i].segment];
		if (!codec_segment_coded(seg) || s[i].inputs > i ||
		    s[i].inputs > LAYER_INPUTS_MAX || s[i].tables >= LAYER_TABLES ||
		    s[i].turned > 1)
			return -EBADMSG;
		if (s[i].turned && (h->pairs == 0 || 2u * h->pairs > seg->head_dim))
			return -EBADMSG;
	}
	return 0;
}

static int header_check(const struct layer_section *h, size_t bytes)
{
	static const uint8_t zero[sizeof(h->reserved)];

	if (h->magic != LAYER_SECTION_MAGIC || h->bytes != bytes)
		return -EBADMSG;
	if (h->version != LAYER_SECTION_VERSION)
		return -ESTALE;
	if (h->turn_round_bf16 > 1 || h->interleaved > 1 || h->segments_count == 0 ||
	    h->segments_count > CODEC_SEGMENTS_MAX || h->pairs > CODEC_ROW_SCALARS_MAX / 2u ||
	    h->previous > LAYER_PREVIOUS_MAX || memcmp(h->reserved, zero, sizeof(zero)) != 0)
		return -EBADMSG;
	return parts_of(h->segments_count, h->pairs).first <= bytes ? 0 : -EBADMSG;
}

static int columns_check(const struct layer_segment *s)
{
	for (uint32_t c = 0; c < s->columns; c++)
		if (s->shift[c] > LAYER_SHIFT_MAX || (s->shift[c] == 0 && s->mul[c] != 0) ||
		    s->base[c] < RESIDUAL_SCALE_MIN || s->base[c] > RESIDUAL_SCALE_MAX ||
		    s->bias[c] == INT32_MIN || s->mul[c] == INT32_MIN)
			return -EBADMSG;
	return 0;
}

/* One segment's pointers into the section; *off advances. */
static int segment_build(struct layer_profile *p, const struct codec_geometry *g, uint32_t i,
			 const struct layer_section_segment *fs, const uint8_t *section,
			 size_t *off)
{
	const struct codec_segment *seg = &g->segments[fs[i].segment];
	struct layer_segment *s = &p->segments[i];
	const uint8_t *at = section + *off;

	s->segment = fs[i].segment;
	s->columns = codec_segment_columns(seg);
	s->column_first = p->columns;
	s->inputs = (uint32_t)inputs_of(g, fs, i);
	s->input_first = p->columns - s->inputs;
	s->head_dim = seg->head_dim;
	s->tables = fs[i].tables;
	s->turned = fs[i].turned;
	s->type = residual_type_of(seg->dtype);
	s->in_mul = (const uint32_t *)(const void *)at;
	s->bias = (const int32_t *)(const void *)(at + 4u * (size_t)s->columns);
	s->mul = (const int32_t *)(const void *)(at + 8u * (size_t)s->columns);
	s->base = (const int16_t *)(const void *)(at + 12u * (size_t)s->columns);
	s->shift = at + 14u * (size_t)s->columns;
	s->weights = (const int8_t *)at + column_bytes(s->columns);
	*off += column_bytes(s->columns) + aligned((size_t)s->columns * s->inputs);
	p->columns += s->columns;
	if (s->columns > p->columns_max)
		p->columns_max = s->columns;
	return columns_check(s);
}

static int tables_build(struct layer_profile *p, const uint8_t *at)
{
	struct residual_freqs *f = malloc(sizeof(*f));
	int r = f && p->tables ? 0 : -ENOMEM;

	for (uint32_t i = 0; r == 0 && i < LAYER_TABLES; i++) {
		memcpy(f, at + i * sizeof(*f), sizeof(*f));
		r = residual_tables_build(f, &p->tables[i]);
	}
	free(f);
	return r;
}

static int profile_build(struct layer_profile *p, const struct codec_geometry *g,
			 const struct layer_section *h, const uint8_t *section)
{
	struct parts at = parts_of(h->segments_count, h->pairs);
	const struct layer_section_segment *fs =
		(const struct layer_section_segment *)(const void *)(section + at.segments);
	size_t off = at.first;
	uint32_t columns_min = UINT32_MAX, groups = 1;
	uint64_t raw = 0;
	int r = segments_check(g, h, fs);

	if (r == 0 && layer_section_bytes(g, fs, h->segments_count, h->pairs) != h->bytes)
		r = -EBADMSG;
	if (r < 0)
		return r;
	p->segments = calloc(h->segments_count, sizeof(*p->segments));
	p->tables = aligned_alloc(64, aligned(LAYER_TABLES * sizeof(*p->tables)));
	p->segments_count = h->segments_count;
	p->pairs = h->pairs;
	p->previous = h->previous;
	p->interleaved = h->interleaved;
	p->turn_round_bf16 = h->turn_round_bf16;
	p->expected_bits = h->expected_bits_q16 / 65536.0;
	p->section = (const struct layer_section *)(const void *)section;
	p->freq = (const uint64_t *)(const void *)(section + at.freq);
	r = p->segments ? tables_build(p, section + at.freqs) : -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < h->segments_count; i++) {
		r = segment_build(p, g, i, fs, section, &off);
		if (r < 0)
			break;
		raw += codec_segment_bytes(g, p->segments[i].segment);
		if (p->segments[i].type.bits == 8)
			groups = 2; /* 16 tokens of them make a leaf of the checksum */
		if (p->segments[i].columns < columns_min)
			columns_min = p->segments[i].columns;
	}
	p->streams_count = residual_streams(raw, columns_min, LAYER_STREAM_BYTES, groups);
	return r;
}

int layer_profile_parse(const struct codec_geometry *g, const uint8_t *section, size_t bytes,
			struct layer_profile **ret)
{
	struct layer_section h;
	struct layer_profile *p;
	int r;

	if (bytes < sizeof(h))
		return -EBADMSG;
	memcpy(&h, section, sizeof(h));
	r = header_check(&h, bytes);
	if (r < 0)
		return r;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	r = profile_build(p, g, &h, section);
	if (r < 0) {
		layer_profile_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct layer_profile *layer_profile_free(struct layer_profile *p)
{
	if (!p)
		return NULL;
	free(p->segments);
	free(p->tables);
	free(p);
	return NULL;
}

struct codec_layer_info codec_profile_layer(const struct codec_profile *p)
{
	struct codec_layer_info info = { 0 };

	if (!p->layer)
		return info;
	info.previous = p->layer->previous;
	info.rotary_pairs = p->layer->pairs;
	info.expected_bits = p->layer->expected_bits;
	for (uint32_t i = 0; i < p->layer->segments_count; i++) {
		const struct layer_segment *s = &p->layer->segments[i];

		info.products += (uint64_t)s->columns * s->inputs;
	}
	info.weights_bytes = info.products;
	return info;
}
