/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_rig.c - see layer_rig.h.
 */
#include "tests/lib/layer_rig.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/codec_rig.h"
#include "tests/lib/rng.h"

#define SEGMENTS_MAX 16u

static void must(int ok, const char *what)
{
	if (!ok) {
		(void)fprintf(stderr, "layer_rig: %s failed\n", what);
		abort();
	}
}

struct layer_rig_options layer_rig_defaults(void)
{
	return (struct layer_rig_options){ .dtype = CODEC_DTYPE_BF16,
					   .turn = LAYER_RIG_HALF,
					   .theta = 1e4,
					   .spread = 0.5f,
					   .noise = 0.2f,
					   .previous = 1,
					   .layers = 3,
					   .heads = 2,
					   .head_dim = 16,
					   .block_tokens = 16,
					   .blocks = 72,
					   .fitted = 64,
					   .seed = 7 };
}

static float gauss(struct rng *rng)
{
	float u = ((float)(rng_next(rng) >> 40) + 0.5f) * 0x1p-24f;
	float v = ((float)(rng_next(rng) >> 40) + 0.5f) * 0x1p-24f;

	return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v);
}

/* A fixed number in -1 .. 1 of a seed and a place. */
static float place(uint64_t seed, uint64_t at)
{
	return (float)(int32_t)(rng_mix(seed ^ at << 20) >> 32) * 0x1p-31f;
}

/* One output of a layer: three of its inputs, and something of its own. */
static float mixed(const struct layer_rig_options *o, struct rng *rng, uint64_t at, const float *a,
		   const float *b, uint32_t columns)
{
	float sum = 0;

	for (uint32_t i = 0; i < 3; i++) {
		uint32_t from = (uint32_t)(rng_mix(o->seed + at * 8u + i) % (2u * columns));

		sum += (from < columns ? a[from] : b[from - columns]) *
		       (0.5f + 0.2f * place(o->seed, at * 8u + i));
	}
	return sum + o->noise * gauss(rng);
}

static float to_bf16(float x)
{
	uint32_t u;

	memcpy(&u, &x, sizeof(u));
	u += 0x7fffu + (u >> 16 & 1u);
	u &= 0xffff0000u;
	memcpy(&x, &u, sizeof(x));
	return x;
}

static void turn(const struct layer_rig_options *o, uint32_t position, float *row)
{
	uint32_t pairs = o->head_dim / 2u;

	for (uint32_t head = 0; head < o->heads * o->head_dim; head += o->head_dim)
		for (uint32_t i = 0; i < pairs && o->turn != LAYER_RIG_STILL; i++) {
			double angle = position * pow(o->theta, -(double)i / pairs);
			float c = (float)cos(angle), s = (float)sin(angle), x, y;
			float *a = row + head + (o->turn == LAYER_RIG_HALF ? i : 2u * i);
			float *b = a + (o->turn == LAYER_RIG_HALF ? pairs : 1u);

			if (o->round_bf16) {
				c = to_bf16(c);
				s = to_bf16(s);
			}
			x = *a * c - *b * s;
			y = *b * c + *a * s;
			*a = x;
			*b = y;
		}
}

static void row_write(const struct layer_rig_options *o, uint32_t segment, const float *x,
		      uint32_t position, uint8_t *out)
{
	uint32_t columns = o->heads * o->head_dim, bytes = codec_dtype_bytes(o->dtype);
	float row[256] = { 0 };

	for (uint32_t c = 0; c < columns; c++)
		row[c] = 1.5f * place(o->seed + 1u, segment * 1024u + c) + o->spread * x[c];
	if (segment % 2u == 0)
		turn(o, position, row);
	for (uint32_t c = 0; c < columns; c++) {
		uint16_t v = codec_rig_element(o->dtype, row[c]);

		memcpy(out + (size_t)c * bytes, &v, bytes);
	}
}

static void token_write(struct layer_rig *r, const struct layer_rig_options *o, struct rng *rng,
			uint32_t token)
{
	uint32_t columns = o->heads * o->head_dim;
	uint8_t *block = layer_rig_block(r, token / o->block_tokens);
	float k[256] = { 0 }, v[256] = { 0 }, made[256];

	must(columns <= 256, "a narrow shape");
	for (uint32_t layer = 0; layer < o->layers; layer++) {
		for (uint32_t part = 0; part < 2; part++) {
			uint32_t segment = 2u * layer + part;
			size_t row = codec_segment_bytes(&r->g, segment) / o->block_tokens;

			for (uint32_t c = 0; c < columns; c++)
				made[c] = layer == 0 && part == 0 ? gauss(rng)
					  : layer == 0
						  ? mixed(o, rng, segment * 512u + c, k, k, columns)
						  : mixed(o, rng, segment * 512u + c, k, v,
							  columns);
			memcpy(part ? v : k, made, columns * sizeof(*made));
			row_write(o, segment, made, token,
				  block + r->g.segment_off[segment] +
					  token % o->block_tokens * row);
		}
	}
}

struct layer_rotary layer_rig_rotary(const struct layer_rig_options *o)
{
	return (struct layer_rotary){ .pairs = o->turn == LAYER_RIG_STILL ? 0 : o->head_dim / 2u,
				      .interleaved = o->turn == LAYER_RIG_INTERLEAVED,
				      .round_bf16 = o->round_bf16,
				      .theta = o->theta };
}

struct codec_profile *layer_rig_fit(const struct layer_sample *s, const struct layer_rotary *rotary,
				    uint32_t previous)
{
	struct codec_profile *channel = NULL, *with = NULL;
	struct codec_fit *fit = NULL;
	uint8_t *section = NULL;
	size_t bytes = 0;

	openblas_set_num_threads(1); /* more cost more than they do, at these sizes */
	must(codec_fit_new(s->g, &fit) == 0, "fit");
	for (uint32_t i = 0; i < s->blocks_count; i++) {
		uint8_t *block = malloc(s->g->raw_bytes);
		struct codec_view v = { .base = block };

		must(block != NULL, "memory");
		memcpy(block, s->blocks + i * s->g->raw_bytes, s->g->raw_bytes);
		codec_fit_add(fit, &v);
		free(block);
	}
	must(codec_fit_finish(fit, &channel) == 0, "channel statistics");
	codec_fit_free(fit);
	must(layer_fit(s, rotary, previous, &section, &bytes) == 0, "maps");
	must(codec_profile_with_layer(s->g, channel, section, bytes, &with) == 0, "profile");
	free(section);
	codec_profile_free(channel);
	return with;
}

void layer_rig_init(struct layer_rig *r, const struct layer_rig_options *o)
{
	struct codec_segment segments[SEGMENTS_MAX];
	struct layer_rotary rotary = layer_rig_rotary(o);
	struct rng rng;

	*r = (struct layer_rig){ 0 };
	must(2u * o->layers <= SEGMENTS_MAX, "few layers");
	for (uint32_t i = 0; i < 2u * o->layers; i++)
		segments[i] = (struct codec_segment){ .kind = i % 2u ? CODEC_KIND_V : CODEC_KIND_K,
						      .dtype = o->dtype,
						      .layer = (uint16_t)(i / 2u),
						      .heads = (uint16_t)o->heads,
						      .head_dim = (uint16_t)o->head_dim };
	must(codec_geometry_init(&r->g, o->block_tokens, segments, 2u * o->layers) == 0,
	     "geometry");
	must(codec_workspace_new(&r->ws) == 0, "workspace");
	r->cap = codec_bound(&r->g);
	r->blocks = malloc(o->blocks * r->g.raw_bytes);
	r->positions = calloc(o->blocks, sizeof(*r->positions));
	r->back = malloc(r->g.raw_bytes);
	r->coded = malloc(r->cap);
	must(r->blocks && r->positions && r->back && r->coded, "memory");
	rng_init(&rng, o->seed);
	for (uint32_t t = 0; t < o->blocks * o->block_tokens; t++)
		token_write(r, o, &rng, t);
	for (uint32_t i = 0; i < o->blocks; i++)
		r->positions[i] = i * o->block_tokens;
	if (o->fitted > 0) {
		const struct layer_sample s = { .g = &r->g,
						.blocks = r->blocks,
						.positions = r->positions,
						.blocks_count = o->fitted };

		r->profile = layer_rig_fit(&s, &rotary, o->previous);
	}
}

void layer_rig_deinit(struct layer_rig *r)
{
	codec_profile_free(r->profile);
	codec_workspace_free(r->ws);
	codec_geometry_deinit(&r->g);
	free(r->blocks);
	free(r->positions);
	free(r->back);
	free(r->coded);
}

uint8_t *layer_rig_block(const struct layer_rig *r, uint32_t i)
{
	return r->blocks + i * r->g.raw_bytes;
}

int layer_rig_encode(struct layer_rig *r, const uint8_t *block, uint32_t position, unsigned flags)
{
	struct codec_view v = { .base = (uint8_t *)block, .position = position };

	return codec_encode(r->ws, &r->g, r->profile, CODEC_SPEC_LAYER, flags, &v, r->coded, r->cap,
			    &r->info);
}

void layer_rig_guesses(const struct layer_rig *r, uint32_t from, uint32_t tokens, uint32_t position,
		       const uint8_t *block, int32_t *mu)
{
	const struct layer_profile *p = r->profile->layer;
	struct layer_turn *turns = malloc((size_t)tokens * (p->pairs + 1u) * sizeof(*turns));
	int32_t *one = malloc((size_t)tokens * p->columns_max * sizeof(*one));
	int8_t *inputs = calloc((size_t)tokens * p->columns, 1);

	must(turns && one && inputs, "memory");
	layer_turns(p, position, tokens, turns);
	for (uint32_t i = 0; i < p->segments_count; i++) {
		const struct layer_segment *s = &p->segments[i];
		size_t row = codec_segment_bytes(&r->g, s->segment) / r->g.block_tokens;

		layer_guess(p, s, turns, tokens, inputs, one);
		for (uint32_t t = 0; t < tokens; t++)
			memcpy(mu + (size_t)t * p->columns + s->column_first,
			       one + (size_t)t * s->columns, s->columns * sizeof(*one));
		layer_values(p, s, turns, tokens, block + r->g.segment_off[s->segment] + from * row,
			     one);
		layer_inputs(p, s, tokens, one, inputs);
	}
	free(turns);
	free(one);
	free(inputs);
}

int layer_rig_decode(struct layer_rig *r)
{
	struct codec_view v = { .base = r->back };

	memset(r->back, 0xa5, r->g.raw_bytes);
	return codec_decode(r->ws, &r->g, r->profile, r->coded, r->info.encoded_bytes,
			    &r->info.raw_xxh3, &v);
}
