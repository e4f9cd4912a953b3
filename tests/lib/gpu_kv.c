/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_kv.c - see gpu_kv.h.
 */
#include "tests/lib/gpu_kv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "tests/lib/codec_rig.h"

#define TAIL_BYTES 256u /* behind a region: to see who writes there */
#define FITTED_BLOCKS 16u

static const struct shape {
	const char *name;
	uint32_t block_tokens;
	uint16_t layers, heads, head_dim;
	bool latent; /* one segment to a layer */
	bool regular;
} shapes[GPU_KV_SHAPE_COUNT] = {
	[GPU_KV_2X4X64] = { "2x4x64", 16, 2, 4, 64, false, true },
	[GPU_KV_3X8X128] = { "3x8x128", 16, 3, 8, 128, false, true },
	[GPU_KV_MLA] = { "MLA 1x576", 16, 2, 1, 576, true, true },
	[GPU_KV_4X80] = { "4x80", 16, 2, 4, 80, false, true },
	[GPU_KV_TOKENS64] = { "64 tokens", 64, 1, 4, 64, false, true },
	[GPU_KV_TOKENS128] = { "128 tokens", 128, 4, 2, 128, false, true },
	[GPU_KV_MIXED] = { "K bf16, V e4m3", 64, 1, 4, 64, false, true },
	[GPU_KV_OPAQUE] = { "with opaque bytes", 16, 2, 4, 64, false, true },
	[GPU_KV_RAGGED] = { "3x40", 16, 1, 3, 40, false, false },
	[GPU_KV_MIXED_ROWS] = { "K bf16, V e4m3 in one chunk", 16, 1, 4, 64, false, false },
};

const char *gpu_kv_shape_name(enum gpu_kv_shape shape)
{
	return shapes[shape].name;
}

const char *gpu_kv_content_name(enum gpu_kv_content content)
{
	static const char *const names[] = { "real",	      "constant",     "random",
					     "zeros",	      "specials",     "outliers",
					     "rare specials", "rare outliers" };

	return names[content];
}

const char *gpu_kv_layout_name(enum gpu_kv_layout layout)
{
	static const char *const names[] = { "packed", "NHD", "HND", "gaps", "odd" };

	return names[layout];
}

bool gpu_kv_shape_is_mixed(enum gpu_kv_shape shape)
{
	return shape == GPU_KV_MIXED || shape == GPU_KV_MIXED_ROWS;
}

static uint32_t segments_make(enum gpu_kv_shape shape, uint8_t dtype, struct codec_segment *seg)
{
	const struct shape *s = &shapes[shape];
	uint32_t n = 0;

	for (uint16_t layer = 0; layer < s->layers; layer++) {
		struct codec_segment one = {
			.dtype = dtype, .layer = layer, .heads = s->heads, .head_dim = s->head_dim
		};

		if (gpu_kv_shape_is_mixed(shape))
			one.dtype = CODEC_DTYPE_BF16;
		one.kind = s->latent ? CODEC_KIND_LATENT : CODEC_KIND_K;
		seg[n++] = one;
		if (shape == GPU_KV_OPAQUE)
			seg[n++] = (struct codec_segment){ .kind = CODEC_KIND_OPAQUE,
							   .layer = layer,
							   .heads = 1,
							   .head_dim = 100 };
		if (gpu_kv_shape_is_mixed(shape))
			one.dtype = CODEC_DTYPE_E4M3;
		one.kind = CODEC_KIND_V;
		if (!s->latent)
			seg[n++] = one;
	}
	return n;
}

/* ---- contents ---- */

struct element {
	uint32_t bits, mantissa_bits;
};

static struct element element_of(uint8_t dtype)
{
	switch (dtype) {
	case CODEC_DTYPE_BF16:
		return (struct element){ 16, 7 };
	case CODEC_DTYPE_FP16:
		return (struct element){ 16, 10 };
	case CODEC_DTYPE_E4M3:
		return (struct element){ 8, 3 };
	case CODEC_DTYPE_E5M2:
		return (struct element){ 8, 2 };
	default:
		return (struct element){ 8, 8 };
	}
}

static uint16_t special(struct element e, struct rng *r)
{
	uint32_t sign = (rng_next(r) & 1u) << (e.bits - 1u);
	uint32_t mantissa = (uint32_t)rng_next(r) & ((1u << e.mantissa_bits) - 1u);
	uint32_t exponents = ((1u << (e.bits - 1u)) - 1u) >> e.mantissa_bits << e.mantissa_bits;

	switch (rng_below(r, 4)) {
	case 0: /* a NaN with a payload, or an infinity */
		return (uint16_t)(sign | exponents | mantissa);
	case 1:
		return (uint16_t)(sign | exponents);
	case 2:
		return (uint16_t)sign;
	default: /* subnormal */
		return (uint16_t)(sign | mantissa);
	}
}

/* One in `every` element. */
static void elements_spoil(const struct codec_geometry *g, uint32_t segment, bool specials,
			   uint32_t every, struct rng *r, uint8_t *block)
{
	const struct codec_segment *s = &g->segments[segment];
	uint32_t bytes = codec_dtype_bytes(s->dtype);
	uint32_t n = g->block_tokens * s->heads * s->head_dim;
	struct element e = element_of(s->dtype);

	for (uint32_t i = 0; i < n; i++) {
		uint16_t v;

		if (!rng_one_in(r, every))
			continue;
		v = specials ? special(e, r) : (uint16_t)rng_next(r);
		memcpy(block + g->segment_off[segment] + (size_t)i * bytes, &v, bytes);
	}
}

static void content_fill(const struct codec_geometry *g, enum gpu_kv_content content, uint64_t seed,
			 struct rng *r, uint8_t *block)
{
	static const uint32_t every[GPU_KV_CONTENT_COUNT] = {
		[GPU_KV_SPECIALS] = 4,
		[GPU_KV_OUTLIERS] = 50,
		[GPU_KV_RARE_SPECIALS] = 100,
		[GPU_KV_RARE_OUTLIERS] = 100,
	};

	switch (content) {
	case GPU_KV_CONSTANT:
		for (uint64_t i = 0; i < g->raw_bytes; i++)
			block[i] = i % 2 ? 0x3f : 0x3c;
		return;
	case GPU_KV_RANDOM:
		rng_fill(r, block, g->raw_bytes);
		return;
	case GPU_KV_ZEROS:
		memset(block, 0, g->raw_bytes);
		return;
	default:
		codec_rig_fill(g, seed, r, block);
	}
	for (uint32_t i = 0; every[content] && i < g->segments_count; i++)
		elements_spoil(g, i, content == GPU_KV_SPECIALS || content == GPU_KV_RARE_SPECIALS,
			       every[content], r, block);
}

/* ---- the CPU's word ---- */

static void profiles_fit(struct gpu_kv *kv, uint64_t seed, struct rng *r)
{
	for (unsigned p = 0; p < 2; p++) {
		struct codec_fit *fit = NULL;

		assert_int_equal(codec_fit_new(&kv->g, &fit), 0);
		for (unsigned i = 0; i < FITTED_BLOCKS; i++) {
			struct codec_view v = { .base = kv->back };

			content_fill(&kv->g,
				     p ? (enum gpu_kv_content)(i % GPU_KV_CONTENT_COUNT)
				       : GPU_KV_REAL,
				     seed, r, kv->back);
			codec_fit_add(fit, &v);
		}
		assert_int_equal(codec_fit_finish(fit, &kv->profile[p]), 0);
		codec_fit_free(fit);
	}
}

static void *allocate(uint64_t bytes)
{
	void *p = malloc(bytes);

	assert_non_null(p);
	return p;
}

void gpu_kv_init(struct gpu_kv *kv, enum gpu_kv_shape shape, uint8_t dtype, uint64_t seed)
{
	struct codec_segment seg[GPU_KV_SEGMENTS_MAX];
	struct rng r;

	memset(kv, 0, sizeof(*kv));
	rng_init(&r, seed);
	assert_int_equal(codec_geometry_init(&kv->g, shapes[shape].block_tokens, seg,
					     segments_make(shape, dtype, seg)),
			 0);
	kv->regular = shapes[shape].regular;
	assert_int_equal(codec_workspace_new(&kv->ws), 0);
	kv->cap = codec_bound(&kv->g);
	kv->back = allocate(kv->g.raw_bytes);
	profiles_fit(kv, seed, &r);
	for (unsigned c = 0; c < GPU_KV_CONTENT_COUNT; c++) {
		struct codec_view v;

		kv->raw[c] = allocate(kv->g.raw_bytes);
		content_fill(&kv->g, (enum gpu_kv_content)c, seed, &r, kv->raw[c]);
		v = (struct codec_view){ .base = kv->raw[c] };
		for (unsigned p = 0; p < 2; p++) {
			kv->coded[p][c] = allocate(kv->cap);
			assert_int_equal(codec_encode(kv->ws, &kv->g, kv->profile[p],
						      CODEC_SPEC_CHANNEL, CODEC_ENCODE_VERIFY, &v,
						      kv->coded[p][c], kv->cap, &kv->info[p][c]),
					 0);
		}
	}
}

void gpu_kv_deinit(struct gpu_kv *kv)
{
	for (unsigned c = 0; c < GPU_KV_CONTENT_COUNT; c++) {
		free(kv->raw[c]);
		free(kv->coded[0][c]);
		free(kv->coded[1][c]);
	}
	for (unsigned p = 0; p < 2; p++)
		codec_profile_free(kv->profile[p]);
	free(kv->back);
	codec_workspace_free(kv->ws);
	codec_geometry_deinit(&kv->g);
}

int gpu_kv_decodes(struct gpu_kv *kv, unsigned profile, const void *payload, uint64_t bytes,
		   enum gpu_kv_content content)
{
	struct codec_view v = { .base = kv->back };
	uint64_t expect = kv->info[profile][content].raw_xxh3;

	return codec_decode(kv->ws, &kv->g, kv->profile[profile], payload, bytes, &expect, &v) ==
		       0 &&
	       memcmp(kv->back, kv->raw[content], kv->g.raw_bytes) == 0;
}

/* ---- layouts ---- */

uint64_t gpu_kv_place(const struct codec_geometry *g, enum gpu_kv_layout layout, uint32_t blocks,
		      struct codec_stride *ret_stride, uint64_t *ret_block_stride)
{
	uint64_t at = layout == GPU_KV_ODD ? 2 : 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		uint64_t head = (uint64_t)s->head_dim * codec_dtype_bytes(s->dtype);
		uint64_t token = head * s->heads;
		uint64_t gap = layout == GPU_KV_GAPS ? 64 : layout == GPU_KV_ODD ? 2 : 0;
		struct codec_stride *st = &ret_stride[i];

		*st = (struct codec_stride){ .off = at,
					     .token_stride = token + gap,
					     .head_stride = head };
		ret_block_stride[i] = g->block_tokens * st->token_stride + 2u * gap;
		if (layout == GPU_KV_HND) {
			st->token_stride = head;
			st->head_stride = g->block_tokens * head;
		}
		if (layout == GPU_KV_PACKED) {
			st->off = g->segment_off[i];
			ret_block_stride[i] = g->raw_bytes;
		} else {
			at += blocks * ret_block_stride[i] + 4u * gap;
		}
	}
	return (layout == GPU_KV_PACKED ? blocks * g->raw_bytes : at) + TAIL_BYTES;
}

void gpu_kv_scatter(const struct device_region *r, uint32_t block, uint32_t skip,
		    const uint8_t *raw, uint8_t *image)
{
	const struct codec_geometry *g = r->geom;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		const struct codec_stride *st = &r->stride[i];
		uint64_t head = (uint64_t)s->head_dim * codec_dtype_bytes(s->dtype);
		const uint8_t *in = raw + g->segment_off[i];

		for (uint32_t t = 0; t < g->block_tokens; t++)
			for (uint32_t h = 0; h < s->heads; h++, in += head)
				if (t >= skip)
					memcpy(image + st->off + block * r->block_stride[i] +
						       t * st->token_stride + h * st->head_stride,
					       in, head);
	}
}
