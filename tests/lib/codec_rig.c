/* SPDX-License-Identifier: Apache-2.0 */
/*
 * codec_rig.c - see codec_rig.h.
 */
#include "tests/lib/codec_rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int ok, const char *what)
{
	if (!ok) {
		(void)fprintf(stderr, "codec_rig: %s failed\n", what);
		abort();
	}
}

uint16_t codec_rig_element(uint8_t dtype, float x)
{
	static const struct {
		int mantissa, bias, largest, bits;
	} formats[CODEC_DTYPE_COUNT] = {
		[CODEC_DTYPE_BF16] = { 7, 127, 0x7f7f, 16 },
		[CODEC_DTYPE_FP16] = { 10, 15, 0x7bff, 16 },
		[CODEC_DTYPE_E4M3] = { 3, 7, 0x7e, 8 },
		[CODEC_DTYPE_E5M2] = { 2, 15, 0x7b, 8 },
	};
	int m = formats[dtype].mantissa, e, pattern;
	float a = fabsf(x);

	must(formats[dtype].bits >= 8, "an element type");
	(void)frexpf(a, &e);
	e = e - 1 < 1 - formats[dtype].bias ? 1 - formats[dtype].bias : e - 1;
	/* Significand in units of the last place; it carries into the exponent by itself. */
	pattern = (int)ldexpf(a, m - e) + ((e + formats[dtype].bias - 1) << m);
	if (pattern > formats[dtype].largest)
		pattern = formats[dtype].largest;
	return (uint16_t)(pattern | (signbit(x) ? 1 << (formats[dtype].bits - 1) : 0));
}

static float uniform(struct rng *rng)
{
	return ((float)(rng_next(rng) >> 40) + 0.5f) * 0x1p-24f;
}

static float normal(struct rng *rng)
{
	return sqrtf(-2.0f * logf(uniform(rng))) * cosf(6.2831853f * uniform(rng));
}

static void segment_fill(const struct codec_geometry *g, uint32_t segment, uint64_t seed,
			 struct rng *rng, uint8_t *out)
{
	const struct codec_segment *s = &g->segments[segment];
	uint32_t columns = (uint32_t)s->heads * s->head_dim;

	for (uint32_t t = 0; t < g->block_tokens; t++)
		for (uint32_t c = 0; c < columns; c++) {
			uint64_t h = rng_mix(seed ^ ((uint64_t)segment << 32 | c));
			float spread = 0.25f + (float)(h & 1023u) / 512.0f, mean = 0;
			uint16_t v;

			if (s->dtype == CODEC_DTYPE_U8) {
				*out++ = (uint8_t)("the quick brown fox "[(t + c) % 20u]);
				continue;
			}
			if (h >> 60 == 0)
				mean = 4.0f * spread;
			v = codec_rig_element(s->dtype, mean + spread * normal(rng));
			*out++ = (uint8_t)v;
			if (codec_dtype_bytes(s->dtype) == 2)
				*out++ = (uint8_t)(v >> 8);
		}
}

void codec_rig_fill(const struct codec_geometry *g, uint64_t seed, struct rng *rng, uint8_t *block)
{
	for (uint32_t i = 0; i < g->segments_count; i++)
		segment_fill(g, i, seed, rng, block + g->segment_off[i]);
}

void codec_rig_init(struct codec_rig *r, uint32_t block_tokens,
		    const struct codec_segment *segments, uint32_t segments_count, uint64_t seed,
		    uint32_t fitted_blocks)
{
	struct codec_fit *fit = NULL;
	struct rng rng;

	*r = (struct codec_rig){ 0 };
	rng_init(&rng, seed);
	must(codec_geometry_init(&r->g, block_tokens, segments, segments_count) == 0, "geometry");
	must(codec_workspace_new(&r->ws) == 0, "workspace");
	r->cap = codec_bound(&r->g);
	r->block = malloc(r->g.raw_bytes);
	r->back = malloc(r->g.raw_bytes);
	r->coded = malloc(r->cap);
	must(r->block && r->back && r->coded, "memory");
	must(codec_fit_new(&r->g, &fit) == 0, "fit");
	for (uint32_t i = 0; i < fitted_blocks; i++) {
		struct codec_view v = { .base = r->block };

		codec_rig_fill(&r->g, seed, &rng, r->block);
		codec_fit_add(fit, &v);
	}
	must(codec_fit_finish(fit, &r->profile) == 0, "profile");
	codec_fit_free(fit);
	codec_rig_fill(&r->g, seed, &rng, r->block);
}

void codec_rig_deinit(struct codec_rig *r)
{
	codec_profile_free(r->profile);
	codec_workspace_free(r->ws);
	codec_geometry_deinit(&r->g);
	free(r->block);
	free(r->back);
	free(r->coded);
}

int codec_rig_encode(struct codec_rig *r, uint8_t speculator, unsigned flags)
{
	struct codec_view v = { .base = r->block };

	return codec_encode(r->ws, &r->g, r->profile, speculator, flags, &v, r->coded, r->cap,
			    &r->info);
}

int codec_rig_decode(struct codec_rig *r)
{
	struct codec_view v = { .base = r->back };

	memset(r->back, 0xa5, r->g.raw_bytes);
	return codec_decode(r->ws, &r->g, r->profile, r->coded, r->info.encoded_bytes,
			    &r->info.raw_xxh3, &v);
}
