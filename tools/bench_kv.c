/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kv.c - reads a dump through gpu/model/safetensors, copies its blocks into canonical packing, and
 * composes blocks of another shape from them.  One thread; errors go to stderr, a line each.
 */
#include "tools/bench_kv.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/model/safetensors.h"

/* Layers of the shapes that are no file's; heads are the same. */
static const uint32_t shape_layers[KV_SHAPE_COUNT] = {
	[KV_SHAPE_LLAMA] = 32, [KV_SHAPE_QWEN3_8B] = 36
};
#define SHAPE_LAYERS_MAX 36u
#define LLAMA_HEADS 8u
#define LLAMA_HEAD_DIM 128u

static uint8_t dtype_of(const char *name)
{
	if (!strcmp(name, "BF16"))
		return CODEC_DTYPE_BF16;
	if (!strcmp(name, "F16"))
		return CODEC_DTYPE_FP16;
	if (!strcmp(name, "F8_E4M3"))
		return CODEC_DTYPE_E4M3;
	if (!strcmp(name, "F8_E5M2"))
		return CODEC_DTYPE_E5M2;
	return CODEC_DTYPE_COUNT;
}

static int tensor_segment(const char *path, const struct safetensors_tensor *t, uint64_t tokens,
			  uint32_t layer, uint8_t kind, struct codec_segment *ret_segment)
{
	uint8_t dtype = dtype_of(t->dtype);

	if (dtype == CODEC_DTYPE_COUNT) {
		(void)fprintf(stderr,
			      "skvc-bench: %s: %s has type %s, not BF16, F16, F8_E4M3 or F8_E5M2\n",
			      path, t->name, t->dtype);
		return -EINVAL;
	}
	if (t->dims_count != 3 || t->dims[0] != tokens || t->dims[1] == 0 ||
	    t->dims[1] > UINT16_MAX || t->dims[2] == 0 || t->dims[2] > UINT16_MAX) {
		(void)fprintf(stderr, "skvc-bench: %s: %s is not [tokens, heads, dim] like k.0\n",
			      path, t->name);
		return -EINVAL;
	}
	*ret_segment = (struct codec_segment){
		.kind = kind,
		.dtype = dtype,
		.layer = (uint16_t)layer,
		.heads = (uint16_t)t->dims[1],
		.head_dim = (uint16_t)t->dims[2],
	};
	return 0;
}

/* Finds k.0, v.0, k.1, ... and makes the geometry of them.  tensors: 2 * KV_LAYERS_MAX entries. */
static int dump_segments(const char *path, const struct safetensors *st, uint32_t block_tokens,
			 const struct safetensors_tensor **tensors, struct kv_dump *d)
{
	struct codec_segment *segments = calloc(CODEC_SEGMENTS_MAX, sizeof(*segments));
	int r = segments ? 0 : -ENOMEM;

	for (; r == 0 && d->layers < KV_LAYERS_MAX; d->layers++) {
		uint32_t i = 2u * d->layers;
		char name[16];

		(void)snprintf(name, sizeof(name), "k.%u", d->layers);
		tensors[i] = safetensors_find(st, name);
		name[0] = 'v';
		tensors[i + 1u] = safetensors_find(st, name);
		if (!tensors[i] || !tensors[i + 1u])
			break;
		for (uint32_t j = 0; j < 2 && r == 0; j++)
			r = tensor_segment(path, tensors[i + j], tensors[0]->dims[0], d->layers,
					   j ? CODEC_KIND_V : CODEC_KIND_K, &segments[i + j]);
	}
	if (r == 0 && d->layers == 0) {
		(void)fprintf(stderr, "skvc-bench: %s: no tensors k.0 and v.0\n", path);
		r = -EINVAL;
	}
	if (r == 0) {
		r = codec_geometry_init(&d->g, block_tokens, segments, 2u * d->layers);
		if (r < 0)
			(void)fprintf(stderr, "skvc-bench: %s: the codec refuses this shape: %s\n",
				      path, strerror(-r));
	}
	free(segments);
	return r;
}

/* Starts of whole blocks that lie inside one sequence, and their positions in it. */
static uint32_t *block_starts(const struct safetensors *st, uint64_t tokens, uint32_t block_tokens,
			      uint32_t *positions, uint32_t *ret_count)
{
	const struct safetensors_tensor *s = safetensors_find(st, "seq_start");
	uint64_t sequences = s && !strcmp(s->dtype, "I32") && s->bytes >= 8 ? s->bytes / 4u - 1u
									    : 1u;
	uint32_t *starts = calloc(tokens / block_tokens + 1u, sizeof(*starts)), n = 0;
	int64_t done = 0;

	for (uint64_t i = 0; starts && i < sequences; i++) {
		int32_t range[2] = { 0, (int32_t)tokens };

		if (s && sequences == s->bytes / 4u - 1u)
			memcpy(range, (const uint8_t *)s->data + 4u * i, sizeof(range));
		if (range[0] < done || (uint64_t)range[1] > tokens)
			continue; /* nonsense: as if the sequence were not there */
		for (int64_t t = range[0]; t + block_tokens <= range[1]; t += block_tokens) {
			positions[n] = (uint32_t)(t - range[0]);
			starts[n++] = (uint32_t)t;
		}
		done = range[1] > done ? range[1] : done;
	}
	*ret_count = n;
	return starts;
}

/* What an fp8 dump says its values were divided by. */
static int dump_scales(const struct safetensors *st, struct kv_dump *d)
{
	const struct safetensors_tensor *of[2] = { safetensors_find(st, "scale.k"),
						   safetensors_find(st, "scale.v") };

	d->scales = calloc(d->g.segments_count, sizeof(*d->scales));
	if (!d->scales)
		return -ENOMEM;
	for (uint32_t i = 0; i < d->g.segments_count; i++) {
		const struct safetensors_tensor *t = of[i % 2u];
		float scale = 1;

		if (t && !strcmp(t->dtype, "F32") && i / 2u < t->bytes / 4u)
			memcpy(&scale, (const uint8_t *)t->data + 4u * (i / 2u), 4);
		d->scales[i] = scale > 0 ? (double)scale : 1;
	}
	return 0;
}

static int dump_blocks(const struct safetensors *st, const struct safetensors_tensor **tensors,
		       struct kv_dump *d)
{
	uint64_t tokens = tensors[0]->dims[0];
	uint32_t *starts;

	d->positions = calloc(tokens / d->g.block_tokens + 1u, sizeof(*d->positions));
	if (!d->positions)
		return -ENOMEM;
	starts = block_starts(st, tokens, d->g.block_tokens, d->positions, &d->blocks_count);
	if (!starts)
		return -ENOMEM;
	d->blocks = malloc(d->blocks_count * d->g.raw_bytes + 1u);
	for (uint32_t b = 0; d->blocks && b < d->blocks_count; b++)
		for (uint32_t i = 0; i < d->g.segments_count; i++) {
			const struct codec_segment *s = &d->g.segments[i];
			size_t row = (size_t)s->heads * s->head_dim * codec_dtype_bytes(s->dtype);

			memcpy(d->blocks + b * d->g.raw_bytes + d->g.segment_off[i],
			       (const uint8_t *)tensors[i]->data + starts[b] * row,
			       row * d->g.block_tokens);
		}
	d->tokens = (uint64_t)d->blocks_count * d->g.block_tokens;
	free(starts);
	return d->blocks ? 0 : -ENOMEM;
}

void kv_dump_deinit(struct kv_dump *d)
{
	codec_geometry_deinit(&d->g);
	free(d->blocks);
	free(d->positions);
	free(d->scales);
	d->blocks = NULL;
	d->scales = NULL;
	d->positions = NULL;
}

int kv_dump_read(const char *path, uint32_t block_tokens, struct kv_dump *d)
{
	const struct safetensors_tensor **tensors;
	char err[SAFETENSORS_ERR_BYTES] = "";
	struct safetensors *st;
	int r = safetensors_open(path, &st, err, sizeof(err));

	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench: %s\n", err);
		return r;
	}
	tensors = calloc(CODEC_SEGMENTS_MAX, sizeof(struct safetensors_tensor *));
	r = tensors ? dump_segments(path, st, block_tokens, tensors, d) : -ENOMEM;
	if (r == 0) {
		assert(tensors[0]);
		d->dtype = tensors[0]->dtype;
		r = dump_blocks(st, tensors, d);
		if (r == 0)
			r = dump_scales(st, d);
	}
	if (r == 0 && d->blocks_count < 2) {
		(void)fprintf(stderr, "skvc-bench: %s: fewer than two blocks of %u tokens\n", path,
			      block_tokens);
		r = -EINVAL;
	}
	if (r == -ENOMEM)
		(void)fprintf(stderr, "skvc-bench: %s: out of memory\n", path);
	free(tensors);
	safetensors_close(st);
	return r;
}

/* ---- blocks without end ---- */

int kv_shape_parse(const char *name, enum kv_shape *ret_shape)
{
	if (!strcmp(name, "file"))
		*ret_shape = KV_SHAPE_FILE;
	else if (!strcmp(name, "llama"))
		*ret_shape = KV_SHAPE_LLAMA;
	else if (!strcmp(name, "qwen3-8b"))
		*ret_shape = KV_SHAPE_QWEN3_8B;
	else
		return -EINVAL;
	return 0;
}

int kv_tile_init(struct kv_tile *t, const struct kv_dump *source, enum kv_shape shape)
{
	struct codec_segment segments[2u * SHAPE_LAYERS_MAX];
	const uint32_t layers = shape_layers[shape];

	*t = (struct kv_tile){ .source = source, .shape = shape };
	if (shape == KV_SHAPE_FILE)
		return codec_geometry_init(&t->g, source->g.block_tokens, source->g.segments,
					   source->g.segments_count);
	for (uint32_t i = 0; i < 2u * layers; i++)
		segments[i] = (struct codec_segment){
			.kind = i % 2u ? CODEC_KIND_V : CODEC_KIND_K,
			.dtype = source->g.segments[i % 2u].dtype,
			.layer = (uint16_t)(i / 2u),
			.heads = LLAMA_HEADS,
			.head_dim = LLAMA_HEAD_DIM,
		};
	return codec_geometry_init(&t->g, source->g.block_tokens, segments, 2u * layers);
}

void kv_tile_deinit(struct kv_tile *t)
{
	codec_geometry_deinit(&t->g);
}

/* splitmix64: which block feeds which part looks random and is the same in every run. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/*
 * Segment i of the block, from its layer's namesake in the dump, in runs of that one's channels.  The uses
 * of one segment of the dump take different blocks of it as long as there are enough: a block does not
 * repeat itself, or what looks for repeats (zstd) would look better than it is.
 */
static void tile_segment(const struct kv_tile *t, uint32_t i, uint64_t index, uint32_t first,
			 uint32_t count, uint8_t *out)
{
	const struct kv_dump *d = t->source;
	const struct codec_segment *to = &t->g.segments[i];
	const uint32_t from_segment = (i / 2u) % d->layers * 2u + i % 2u;
	const struct codec_segment *from = &d->g.segments[from_segment];
	const size_t element = codec_dtype_bytes(to->dtype);
	const size_t to_row = (size_t)to->heads * to->head_dim * element;
	const size_t from_row = (size_t)from->heads * from->head_dim * element;
	const uint64_t runs = (to_row + from_row - 1u) / from_row;
	uint64_t use = mix(index * CODEC_SEGMENTS_MAX + from_segment) % count +
		       i / 2u / d->layers * runs;

	for (size_t off = 0; off < to_row; off += from_row, use++) {
		const uint8_t *in = d->blocks + (first + use % count) * d->g.raw_bytes +
				    d->g.segment_off[from_segment];
		const size_t bytes = to_row - off < from_row ? to_row - off : from_row;

		for (uint32_t token = 0; token < t->g.block_tokens; token++)
			memcpy(out + token * to_row + off, in + token * from_row, bytes);
	}
}

void kv_tile_block(const struct kv_tile *t, enum kv_part part, uint64_t index, uint8_t *out)
{
	const struct kv_dump *d = t->source;
	const uint32_t half = d->blocks_count / 2u;
	const uint32_t first = part == KV_SECOND_HALF ? half : 0;
	const uint32_t count = part == KV_FIRST_HALF ? half : d->blocks_count - first;

	assert(count > 0);
	if (t->shape == KV_SHAPE_FILE) {
		memcpy(out, d->blocks + (first + index % count) * d->g.raw_bytes, d->g.raw_bytes);
		return;
	}
	for (uint32_t i = 0; i < t->g.segments_count; i++)
		tile_segment(t, i, index, first, count, out + t->g.segment_off[i]);
}

int kv_dump_reshape(struct kv_dump *d, enum kv_shape shape, uint32_t blocks_count, bool halves)
{
	struct kv_dump to = { .blocks_count = blocks_count, .layers = shape_layers[shape] };
	struct kv_tile t;
	int r;

	if (shape == KV_SHAPE_FILE)
		return 0;
	r = kv_tile_init(&t, d, shape);
	if (r < 0)
		return r;
	to.blocks = malloc(blocks_count * t.g.raw_bytes);
	to.positions = calloc(blocks_count, sizeof(*to.positions));
	if (!to.blocks || !to.positions) {
		free(to.blocks);
		free(to.positions);
		kv_tile_deinit(&t);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < blocks_count; i++)
		kv_tile_block(&t,
			      !halves		      ? KV_ALL
			      : i < blocks_count / 2u ? KV_FIRST_HALF
						      : KV_SECOND_HALF,
			      i, to.blocks + i * t.g.raw_bytes);
	to.tokens = (uint64_t)blocks_count * t.g.block_tokens;
	to.dtype = d->dtype;
	to.g = t.g; /* handed over */
	kv_dump_deinit(d);
	*d = to;
	return 0;
}
