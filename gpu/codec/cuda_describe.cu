/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_describe.cu - the host side of the kernels: what they can code, and geometries, regions and profiles as they
 * read them, made once and copied to the GPU.
 */
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

/* C's word in headers whose functions are not called here. */
#define _Atomic(type) type
extern "C" {
#include "gpu/codec/internal.h"
}
#undef _Atomic

#include "gpu/codec/cuda_codec.h"
#include "gpu/codec/cuda_layer_run.cuh"
#include "gpu/codec/cuda_objects.cuh"

/* ---- what can be done ---- */

static int chunk_uniform(const struct codec_geometry *g, uint32_t chunk)
{
	uint32_t first = g->chunk_first_segment[chunk];

	for (uint32_t i = first; i < g->chunk_first_segment[chunk + 1]; i++)
		if (codec_segment_coded(&g->segments[i]) &&
		    g->segments[i].dtype != g->segments[first].dtype)
			return 0;
	return 1;
}

extern "C" int cuda_codec_geometry_ok(const struct codec_geometry *g)
{
	for (uint32_t i = 0; i < g->chunks_count; i++)
		if (!chunk_uniform(g, i))
			return 0;
	return codec_geometry_regular(g);
}

extern "C" int cuda_codec_profile_ok(const struct codec_geometry *g, const struct codec_profile *p)
{
	if (p->tables_count > TABLES_MAX || p->segments_count != g->segments_count)
		return 0;
	for (uint32_t i = 0; i < g->segments_count; i++)
		if (p->runs[i].columns &&
		    p->runs[i].shift != codec_dtype_shift(g->segments[i].dtype))
			return 0;
	return 1;
}

/* ---- regions ---- */

/* Per lane all coded rows have `bits` low bits; the last 16 are carried by the coder's first state. */
static uint32_t low_bytes_of(uint64_t bits)
{
	uint64_t stored = bits - (bits < CODEC_CARRIED_BITS ? bits : CODEC_CARRIED_BITS),
		 rest = stored % 32u;

	return (uint32_t)(stored / 32u * 128u + (rest == 0 ? 0 : rest <= 16 ? 64u : 128u));
}

static void chunk_fill(struct gpu_chunk *c, const struct codec_geometry *g, uint32_t index,
		       int regular, uint64_t *scratch_off)
{
	uint32_t first = g->chunk_first_segment[index], end = g->chunk_first_segment[index + 1];
	uint64_t bits = 0;

	memset(c, 0, sizeof(*c));
	c->first_segment = first;
	c->end_segment = end;
	c->raw_bytes = (uint32_t)codec_chunk_bytes(g, index);
	c->element_bytes = (uint8_t)codec_dtype_bytes(g->segments[first].dtype);
	c->shift = (uint8_t)codec_dtype_shift(g->segments[first].dtype);
	c->coded = codec_segment_coded(&g->segments[first]) && regular;
	for (uint32_t i = first; i < end && c->coded; i++) {
		uint32_t columns = codec_segment_columns(&g->segments[i]);

		c->scalars += columns * g->block_tokens;
		c->tiles += columns / CODEC_LANES * (g->block_tokens / TILE_ROWS);
	}
	bits = (uint64_t)c->tiles * TILE_ROWS * c->shift;
	c->low_bytes = low_bytes_of(bits);
	c->escapes_max = c->scalars / 8u < ESCAPES_MAX ? c->scalars / 8u : ESCAPES_MAX;
	c->scratch_off = *scratch_off;
	/* Words that would make it longer than raw are not kept. */
	c->words_end = (uint32_t)up(c->raw_bytes + WORDS_SLACK_BYTES, 16);
	c->escapes_end = (uint32_t)up(c->words_end + c->escapes_max * c->element_bytes, 16);
	*scratch_off += c->tiles ? up(c->escapes_end, 128) : 0;
}

static void geometry_fill(struct gpu_geometry *out, struct gpu_segment *seg,
			  struct gpu_chunk *chunk, const struct codec_geometry *g)
{
	const int regular = cuda_codec_geometry_ok(g);
	uint64_t scratch = 0;
	uint32_t column = 0;

	memset(out, 0, sizeof(*out));
	out->tokens = g->block_tokens;
	out->segments_count = g->segments_count;
	out->chunks_count = g->chunks_count;
	out->raw_bytes = g->raw_bytes;
	memcpy(out->digest, g->digest, sizeof(out->digest));
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];

		memset(&seg[i], 0, sizeof(seg[i]));
		seg[i].canonical_off = g->segment_off[i];
		seg[i].bytes = codec_segment_bytes(g, i);
		seg[i].columns = codec_segment_columns(s);
		seg[i].rows_per_token = (seg[i].columns + CODEC_LANES - 1u) / CODEC_LANES;
		seg[i].heads = s->heads;
		seg[i].head_dim = s->head_dim;
		seg[i].head_magic = s->head_dim > 1 ? UINT32_MAX / s->head_dim + 1u : 0;
		seg[i].element_bytes = (uint8_t)codec_dtype_bytes(s->dtype);
		seg[i].coded = codec_segment_coded(s);
		seg[i].first_leaf = out->leaves_count;
		seg[i].first_column = column;
		out->leaves_count += (uint32_t)((seg[i].bytes + LEAF_BYTES - 1u) / LEAF_BYTES);
		if (seg[i].coded)
			column += seg[i].rows_per_token * CODEC_LANES;
	}
	for (uint32_t i = 0; i < g->chunks_count; i++)
		chunk_fill(&chunk[i], g, i, regular, &scratch);
	out->sizes_off = up(scratch, 256);
	out->offsets_off = up(out->sizes_off + g->chunks_count * sizeof(struct gpu_sizes), 256);
	out->leaves_off = up(out->offsets_off + g->chunks_count * sizeof(uint32_t), 256);
	out->digests_off = up(out->leaves_off + (uint64_t)out->leaves_count * LEAF_ACCS * 8u, 256);
	out->scratch_bytes = up(out->digests_off + up(out->leaves_count, 128) * 8u, 256);
}

static int segment_vector(const struct gpu_segment *s, uint64_t base)
{
	return s->head_dim * s->element_bytes % 16u == 0 && s->canonical_off % 16u == 0 &&
	       (base + s->off) % 16u == 0 && s->block_stride % 16u == 0 &&
	       s->token_stride % 16u == 0 && (s->heads == 1 || s->head_stride % 16u == 0) &&
	       s->token_stride < UINT32_MAX;
}

extern "C" int cuda_codec_region_new(const struct codec_geometry *g, uint64_t base,
				     const struct codec_stride *stride,
				     const uint64_t *block_stride, struct CUstream_st *stream,
				     struct cuda_region **ret_region)
{
	const size_t segments_off = up(sizeof(struct gpu_region), 64);
	const size_t chunks_off = up(segments_off + g->segments_count * sizeof(struct gpu_segment),
				     64);
	const size_t bytes = chunks_off + g->chunks_count * sizeof(struct gpu_chunk);
	struct cuda_region *r = (struct cuda_region *)calloc(1, sizeof(*r));
	struct gpu_segment *seg;
	struct gpu_region *h;
	uint8_t *dev = NULL;
	cudaError_t e;

	if (!r || !(r->host = (uint8_t *)calloc(1, bytes))) {
		free(r);
		return cudaErrorMemoryAllocation;
	}
	h = (struct gpu_region *)r->host;
	seg = (struct gpu_segment *)(r->host + segments_off);
	geometry_fill(&h->g, seg, (struct gpu_chunk *)(r->host + chunks_off), g);
	h->base = base;
	for (uint32_t i = 0; i < g->segments_count; i++) {
		seg[i].off = stride[i].off;
		seg[i].token_stride = stride[i].token_stride;
		seg[i].head_stride = stride[i].head_stride;
		seg[i].block_stride = block_stride[i];
		seg[i].vector = (uint8_t)segment_vector(&seg[i], base);
	}
	e = cudaMalloc((void **)&dev, bytes);
	if (e == cudaSuccess) {
		h->g.segment = (const struct gpu_segment *)(dev + segments_off);
		h->g.chunk = (const struct gpu_chunk *)(dev + chunks_off);
		r->g = h->g;
		r->dev = (const struct gpu_region *)dev;
		e = cudaMemcpyAsync(dev, r->host, bytes, cudaMemcpyHostToDevice, stream);
		if (e == cudaSuccess)
			e = cudaStreamSynchronize(stream);
	}
	if (e != cudaSuccess) {
		cuda_codec_region_free(r);
		return e;
	}
	*ret_region = r;
	return 0;
}

extern "C" struct cuda_region *cuda_codec_region_free(struct cuda_region *r)
{
	if (!r)
		return NULL;
	(void)cudaFree((void *)r->dev);
	free(r->host);
	free(r);
	return NULL;
}

/* ---- profiles ---- */

static void columns_fill(uint32_t *out, const struct codec_geometry *g,
			 const struct codec_profile *p)
{
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_run *run = &p->runs[i];

		for (uint32_t c = 0; c < run->rows_per_token * CODEC_LANES; c++, out++)
			if (c < run->columns)
				*out = run->top[c] | (uint32_t)run->width[c] << COLUMN_WIDTH_SHIFT |
				       (uint32_t)run->flip[c] << COLUMN_FLIP_SHIFT |
				       (uint32_t)run->table[c] << COLUMN_TABLE_SHIFT;
	}
}

static void slots_fill(uint32_t *out, const struct codec_profile *p)
{
	for (size_t i = 0; i < (size_t)p->tables_count * CODEC_PROB_SUM; i++) {
		uint32_t e = p->dec[i], freq = e & CODEC_DEC_FIELD_MASK;
		uint32_t bias = e >> CODEC_DEC_BIAS_SHIFT & CODEC_DEC_FIELD_MASK;
		uint32_t token = e >> CODEC_DEC_TOKEN_SHIFT & CODEC_DEC_TOKEN_MASK;

		out[i] = bias | codec_context_of(token) << SLOT_CONTEXT_SHIFT |
			 token << SLOT_SIGN_SHIFT | freq << SLOT_FREQ_SHIFT;
	}
}

static void entries_fill(uint64_t *out, const struct codec_profile *p)
{
	for (size_t i = 0; i < (size_t)p->tables_count * CODEC_TOKENS_PITCH; i++) {
		uint64_t e = p->enc[i], freq = e & 0xffffu, start = e >> 16 & 0xffffu;

		out[i] = start | freq << ENTRY_FREQ_SHIFT | e >> 32 << 32;
	}
}

extern "C" int cuda_codec_profile_new(const struct codec_geometry *g, const struct codec_profile *p,
				      struct CUstream_st *stream, struct cuda_profile **ret_profile)
{
	const size_t dec_bytes = (size_t)p->tables_count * CODEC_PROB_SUM * 4u;
	const size_t enc_bytes = (size_t)p->tables_count * CODEC_TOKENS_PITCH * 8u;
	struct cuda_profile *t = (struct cuda_profile *)calloc(1, sizeof(*t));
	size_t columns = 0, enc_off = up(dec_bytes, 256), column_off = up(enc_off + enc_bytes, 256);
	size_t context_off, bytes;
	cudaError_t e;

	for (uint32_t i = 0; i < g->segments_count; i++)
		columns += p->runs[i].rows_per_token * CODEC_LANES;
	/* The decoder looks one row of columns ahead. */
	context_off = up(column_off + (columns + CODEC_LANES) * 4u, 256);
	bytes = context_off + g->segments_count;
	if (!t || !(t->host = (uint8_t *)calloc(1, bytes))) {
		free(t);
		return cudaErrorMemoryAllocation;
	}
	slots_fill((uint32_t *)t->host, p);
	entries_fill((uint64_t *)(t->host + enc_off), p);
	columns_fill((uint32_t *)(t->host + column_off), g, p);
	for (uint32_t i = 0; i < g->segments_count; i++)
		t->host[context_off + i] = p->runs[i].context;
	e = cudaMalloc((void **)&t->memory, bytes);
	if (e == cudaSuccess)
		e = cudaMemcpyAsync(t->memory, t->host, bytes, cudaMemcpyHostToDevice, stream);
	if (e != cudaSuccess) {
		cuda_codec_profile_free(t);
		return e;
	}
	t->dev.tables_count = p->tables_count;
	t->dev.dec = (const uint32_t *)t->memory;
	t->dev.enc = (const uint64_t *)(t->memory + enc_off);
	t->dev.column = (const uint32_t *)(t->memory + column_off);
	t->dev.context = t->memory + context_off;
	memcpy(t->dev.digest, p->digest, sizeof(t->dev.digest));
	if (cuda_layer_can(g, p) > 0) {
		int r = cuda_layer_new(g, p, stream, &t->layer);

		if (r != 0) {
			cuda_codec_profile_free(t);
			return r;
		}
	}
	*ret_profile = t;
	return 0;
}

extern "C" struct cuda_profile *cuda_codec_profile_free(struct cuda_profile *p)
{
	if (!p)
		return NULL;
	(void)cudaFree(p->memory);
	p->layer = cuda_layer_free(p->layer);
	free(p->host);
	free(p);
	return NULL;
}

/* ---- scratch ---- */

static uint64_t leaves_count(const struct codec_geometry *g)
{
	uint64_t leaves = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		leaves += (codec_segment_bytes(g, i) + LEAF_BYTES - 1u) / LEAF_BYTES;
	return leaves;
}

/* Accumulators and digests of a task's leaves. */
static size_t leaves_bytes(const struct codec_geometry *g)
{
	return up(leaves_count(g) * LEAF_ACCS * 8u, 256) + up(up(leaves_count(g), 128) * 8u, 256);
}

struct decode_scratch cuda_decode_scratch_of(const struct codec_geometry *g)
{
	struct decode_scratch s;

	s.tasks_off = up(STATUS_BYTES + g->chunks_count * sizeof(uint32_t), 256);
	s.leaves_off = s.tasks_off + up(TASKS_BYTES, 256);
	s.digests_off = s.leaves_off + up(leaves_count(g) * LEAF_ACCS * 8u, 256);
	s.task_stride = leaves_bytes(g);
	return s;
}

extern "C" size_t cuda_codec_decode_scratch(const struct codec_geometry *g, uint32_t tasks_count)
{
	const struct decode_scratch s = cuda_decode_scratch_of(g);

	return s.leaves_off + tasks_count * s.task_stride;
}

extern "C" size_t cuda_codec_encode_scratch(const struct codec_geometry *g, uint32_t tasks_count)
{
	const int regular = cuda_codec_geometry_ok(g);
	uint64_t scratch = 0;

	for (uint32_t i = 0; i < g->chunks_count; i++) {
		struct gpu_chunk c;

		chunk_fill(&c, g, i, regular, &scratch);
	}
	scratch = up(scratch, 256) + up(g->chunks_count * sizeof(struct gpu_sizes), 256) +
		  up(g->chunks_count * sizeof(uint32_t), 256) + leaves_bytes(g);
	return up(STATUS_BYTES, 256) + up(TASKS_BYTES, 256) + tasks_count * up(scratch, 256);
}

/* ---- `layer` ---- */

extern "C" int cuda_codec_layer_ok(const struct codec_geometry *g, const struct codec_profile *p)
{
	return cuda_layer_can(g, p);
}

extern "C" uint32_t cuda_codec_layer_tasks(const struct codec_geometry *g,
					   const struct codec_profile *p, int encode,
					   uint64_t scratch_bytes)
{
	const struct cuda_layer_shape s = cuda_layer_shape_of(g, p);
	uint32_t n = 0;

	for (uint32_t step = CUDA_BATCH_TASKS_MAX; step > 0; step /= 2u) {
		const uint32_t more = n + step;
		const uint64_t bytes = encode ? up(cuda_codec_encode_scratch(g, more), 256) +
							cuda_layer_encode_scratch(&s, more)
					      : up(cuda_codec_decode_scratch(g, more), 256) +
							cuda_layer_decode_scratch(&s, more);

		if (more <= CUDA_BATCH_TASKS_MAX && bytes <= scratch_bytes)
			n = more;
	}
	return n;
}
