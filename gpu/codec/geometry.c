/* SPDX-License-Identifier: Apache-2.0 */
/*
 * geometry.c - what a block looks like: its segments, how they are cut into chunks, and the copies
 * between a strided view and the canonical packing (segment, token, head, element).
 *
 * Knows nothing of coding.  Any thread; a geometry is immutable once made.
 */
#include "gpu/codec/codec.h"

#include <assert.h>
#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"

uint32_t codec_dtype_bytes(uint8_t dtype)
{
	switch (dtype) {
	case CODEC_DTYPE_BF16:
	case CODEC_DTYPE_FP16:
		return 2;
	case CODEC_DTYPE_U8:
	case CODEC_DTYPE_E4M3:
	case CODEC_DTYPE_E5M2:
		return 1;
	default:
		return 0;
	}
}

/* Leaves two mantissa bits in a cell: four cells to a binade for every element type. */
unsigned codec_dtype_shift(uint8_t dtype)
{
	switch (dtype) {
	case CODEC_DTYPE_BF16:
		return 5;
	case CODEC_DTYPE_FP16:
		return 8;
	case CODEC_DTYPE_E4M3:
		return 1;
	default:
		return 0;
	}
}

bool codec_segment_coded(const struct codec_segment *s)
{
	return s->kind != CODEC_KIND_OPAQUE && s->dtype != CODEC_DTYPE_U8;
}

uint32_t codec_segment_columns(const struct codec_segment *s)
{
	return (uint32_t)s->heads * s->head_dim;
}

uint64_t codec_segment_bytes(const struct codec_geometry *g, uint32_t segment)
{
	const struct codec_segment *s = &g->segments[segment];

	return (uint64_t)g->block_tokens * codec_segment_columns(s) * codec_dtype_bytes(s->dtype);
}

uint64_t codec_chunk_bytes(const struct codec_geometry *g, uint32_t chunk)
{
	uint32_t first = g->chunk_first_segment[chunk], end = g->chunk_first_segment[chunk + 1];
	uint64_t past = end == g->segments_count ? g->raw_bytes : g->segment_off[end];

	return past - g->segment_off[first];
}

static int segment_check(const struct codec_segment *s)
{
	if (s->kind >= CODEC_KIND_COUNT || s->dtype >= CODEC_DTYPE_COUNT)
		return -EINVAL;
	if (s->heads == 0 || s->head_dim == 0 || codec_segment_columns(s) > CODEC_ROW_SCALARS_MAX)
		return -EINVAL;
	return 0;
}

/* The digest is of a stated byte string, not of a struct with holes. */
static void geometry_digest(struct codec_geometry *g)
{
	crypto_generichash_state st;
	uint32_t head[4] = { 0x47564b53u, 1u, g->block_tokens, g->segments_count };

	static_assert(sizeof(struct codec_segment) == 8,
		      "segments are hashed as they lie in memory");
	crypto_generichash_init(&st, NULL, 0, CODEC_DIGEST_BYTES);
	crypto_generichash_update(&st, (const uint8_t *)head, sizeof(head));
	crypto_generichash_update(&st, (const uint8_t *)g->segments,
				  g->segments_count * sizeof(*g->segments));
	crypto_generichash_final(&st, g->digest, CODEC_DIGEST_BYTES);
}

static void geometry_cut_chunks(struct codec_geometry *g)
{
	uint64_t scalars = 0;
	bool coded = false;

	g->chunks_count = 0;
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		bool now = codec_segment_coded(s);

		if (i == 0 || scalars >= CODEC_CHUNK_SCALARS_MIN || now != coded) {
			g->chunk_first_segment[g->chunks_count++] = i;
			scalars = 0;
		}
		coded = now;
		scalars += (uint64_t)g->block_tokens * codec_segment_columns(s);
	}
	g->chunk_first_segment[g->chunks_count] = g->segments_count;
}

int codec_geometry_init(struct codec_geometry *g, uint32_t block_tokens,
			const struct codec_segment *segments, uint32_t segments_count)
{
	struct codec_geometry t = { .block_tokens = block_tokens,
				    .segments_count = segments_count };

	if (block_tokens == 0 || block_tokens > CODEC_BLOCK_TOKENS_MAX || segments_count == 0 ||
	    segments_count > CODEC_SEGMENTS_MAX)
		return -EINVAL;
	for (uint32_t i = 0; i < segments_count; i++)
		if (segment_check(&segments[i]) < 0)
			return -EINVAL;

	t.segments = malloc(segments_count * sizeof(*t.segments));
	t.segment_off = malloc(segments_count * sizeof(*t.segment_off));
	t.chunk_first_segment = malloc((segments_count + 1u) * sizeof(*t.chunk_first_segment));
	if (!t.segments || !t.segment_off || !t.chunk_first_segment) {
		codec_geometry_deinit(&t);
		return -ENOMEM;
	}
	memcpy(t.segments, segments, segments_count * sizeof(*t.segments));
	for (uint32_t i = 0; i < segments_count; i++) {
		t.segment_off[i] = t.raw_bytes;
		t.raw_bytes += codec_segment_bytes(&t, i);
	}
	if (t.raw_bytes > CODEC_RAW_BYTES_MAX) {
		codec_geometry_deinit(&t);
		return -EINVAL;
	}
	geometry_cut_chunks(&t);
	geometry_digest(&t);
	*g = t;
	return 0;
}

void codec_geometry_deinit(struct codec_geometry *g)
{
	free(g->segments);
	free(g->segment_off);
	free(g->chunk_first_segment);
	*g = (struct codec_geometry){ 0 };
}

int codec_geometry_regular(const struct codec_geometry *g)
{
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		uint32_t columns = codec_segment_columns(s), groups = columns / CODEC_LANES;

		/* A GPU faults on a wide access that is not aligned, and is lost for everybody. */
		if (g->segment_off[i] % 16u != 0)
			return 0;
		if (!codec_segment_coded(s))
			continue;
		if (columns % CODEC_LANES != 0 || g->block_tokens % 16u != 0 || groups > 2048u)
			return 0;
		if (codec_dtype_bytes(s->dtype) == 1 && groups * g->block_tokens % 32u != 0)
			return 0;
	}
	return 1;
}

/* Where a segment lies in a view, and how it steps. */
struct span {
	uint8_t *base;
	uint64_t token_stride;
	uint64_t head_stride;
	uint64_t head_bytes;
	uint64_t row_bytes;
};

static struct span span_of(const struct codec_geometry *g, const struct codec_view *v,
			   uint32_t segment)
{
	const struct codec_segment *s = &g->segments[segment];
	struct span p = { .head_bytes = (uint64_t)s->head_dim * codec_dtype_bytes(s->dtype) };

	p.row_bytes = p.head_bytes * s->heads;
	if (v->stride) {
		const struct codec_stride *d = &v->stride[segment];

		p.base = v->base + d->off + v->block_index * v->block_stride[segment];
		p.token_stride = d->token_stride;
		p.head_stride = d->head_stride;
	} else {
		p.base = v->base + v->block_index * g->raw_bytes + g->segment_off[segment];
		p.token_stride = p.row_bytes;
		p.head_stride = p.head_bytes;
	}
	return p;
}

void codec_gather(const struct codec_geometry *g, const struct codec_view *v, uint32_t segment,
		  uint8_t *dst)
{
	struct span p = span_of(g, v, segment);
	uint32_t heads = g->segments[segment].heads;

	if (heads == 1 || p.head_stride == p.head_bytes) {
		if (p.token_stride == p.row_bytes) {
			memcpy(dst, p.base, p.row_bytes * g->block_tokens);
			return;
		}
		for (uint32_t t = 0; t < g->block_tokens; t++)
			memcpy(dst + t * p.row_bytes, p.base + t * p.token_stride, p.row_bytes);
		return;
	}
	for (uint32_t t = 0; t < g->block_tokens; t++)
		for (uint32_t h = 0; h < heads; h++)
			memcpy(dst + t * p.row_bytes + h * p.head_bytes,
			       p.base + t * p.token_stride + h * p.head_stride, p.head_bytes);
}

void codec_scatter(const struct codec_geometry *g, const struct codec_view *v, uint32_t segment,
		   uint32_t skip_tokens, const uint8_t *src)
{
	struct span p = span_of(g, v, segment);
	uint32_t heads = g->segments[segment].heads;

	assert(skip_tokens <= g->block_tokens);
	if (heads == 1 || p.head_stride == p.head_bytes) {
		for (uint32_t t = skip_tokens; t < g->block_tokens; t++)
			memcpy(p.base + t * p.token_stride, src + t * p.row_bytes, p.row_bytes);
		return;
	}
	for (uint32_t t = skip_tokens; t < g->block_tokens; t++)
		for (uint32_t h = 0; h < heads; h++)
			memcpy(p.base + t * p.token_stride + h * p.head_stride,
			       src + t * p.row_bytes + h * p.head_bytes, p.head_bytes);
}

void codec_copy_out(const struct codec_geometry *g, const struct codec_view *src, void *out)
{
	for (uint32_t i = 0; i < g->segments_count; i++)
		codec_gather(g, src, i, (uint8_t *)out + g->segment_off[i]);
}
