/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_made.c - a `layer` profile that nobody fitted and blocks that suit it, out of a random seed: for tests
 * and for measuring speed in shapes that there is no KV cache of.  Maps are random, values are what they
 * guess plus noise of a third of a value, keys are turned.  The bits that this takes say nothing.
 */
#include "gpu/codec/layer_fit.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define THETA 1e6
#define NOISE 0.35
#define IN_MUL (1u << 21) /* a value of one is an input of 32 */

struct made {
	const struct codec_geometry *g;
	struct layer_profile *p;
	uint8_t *section;
	struct layer_turn *turns;
	int32_t *mu, *values;
	int8_t *inputs;
	struct residual_counts *counts;
	uint64_t seed, scalars;
};

/* splitmix64 */
static uint64_t next(uint64_t *seed)
{
	uint64_t x = *seed += 0x9e3779b97f4a7c15u;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Nearly normal: a sum of eight, with now and then one far out. */
static double noise(uint64_t *seed)
{
	uint64_t a = next(seed), b = next(seed);
	double sum = 0;

	for (unsigned i = 0; i < 4; i++)
		sum += (double)(a >> 16 * i & 0xffffu) + (double)(b >> 16 * i & 0xffffu);
	sum = (sum / 65536 - 4) * 1.2247;
	return next(seed) % 512u == 0 ? 6 * sum : sum;
}

/* The nearest finite pattern. */
static uint32_t pattern_of(struct residual_type t, double v)
{
	double a = fabs(v);
	int e = 0, q;
	uint32_t mag;

	(void)frexp(a, &e);
	e = a > 0 && e - 1 > 1 - t.bias ? e - 1 : 1 - t.bias;
	q = e - t.mant_bits;
	mag = (uint32_t)lround(ldexp(a, -q)) + ((uint32_t)(e + t.bias - 1) << t.mant_bits);
	return (mag > t.mag_max ? t.mag_max : mag) | (v < 0 ? 1u << (t.bits - 1u) : 0u);
}

static uint32_t order_make(const struct codec_geometry *g, uint32_t previous, uint32_t pairs,
			   struct layer_section_segment *s)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *seg = &g->segments[i];
		uint32_t inputs = previous ? 2u * previous + (seg->kind == CODEC_KIND_V) : 0;

		if (!codec_segment_coded(seg))
			continue;
		s[n] = (struct layer_section_segment){
			.segment = i,
			.inputs = (uint16_t)(inputs < n ? inputs : n),
			.tables = seg->kind != CODEC_KIND_K,
			.turned = seg->kind == CODEC_KIND_K && pairs && 2u * pairs <= seg->head_dim,
		};
		n++;
	}
	return n;
}

/* A section without statistics or maps, parsed. */
static int section_make(struct made *m, uint32_t previous, bool interleaved)
{
	struct layer_section_segment *order = calloc(m->g->segments_count, sizeof(*order));
	struct residual_counts *none = calloc(1, sizeof(*none));
	struct residual_freqs *freqs = calloc(1, sizeof(*freqs));
	struct layer_rotary rotary = { .pairs = m->g->segments[0].head_dim / 2u,
				       .interleaved = interleaved,
				       .round_bf16 = 1,
				       .theta = THETA };
	struct layer_section h = { .magic = LAYER_SECTION_MAGIC,
				   .version = LAYER_SECTION_VERSION,
				   .turn_round_bf16 = rotary.round_bf16,
				   .interleaved = rotary.interleaved,
				   .pairs = rotary.pairs,
				   .previous = previous };
	int r = order && none && freqs ? 0 : -ENOMEM;

	if (r == 0) {
		h.segments_count = order_make(m->g, previous, rotary.pairs, order);
		h.bytes = layer_section_bytes(m->g, order, h.segments_count, rotary.pairs);
		r = h.segments_count == 0 ? -EINVAL : h.bytes == 0 ? -E2BIG : 0;
	}
	if (r == 0) {
		m->section = aligned_alloc(LAYER_ALIGN, h.bytes);
		r = m->section ? 0 : -ENOMEM;
	}
	if (r == 0) {
		memset(m->section, 0, h.bytes);
		residual_freqs_fit(none, freqs);
		layer_section_fill(&h, &rotary, freqs, order, m->section);
		r = layer_profile_parse(m->g, m->section, h.bytes, &m->p);
	}
	free(order);
	free(none);
	free(freqs);
	return r;
}

/* The section is ours: what a parsed profile borrows of it may be written. */
static void maps_fill(struct made *m)
{
	for (uint32_t i = 0; i < m->p->segments_count; i++) {
		const struct layer_segment *s = &m->p->segments[i];
		double gain = s->inputs ? 0.9 / (sqrt(s->inputs) * 32 * 37) * 65536 : 0;
		int8_t *w = (int8_t *)(uintptr_t)s->weights;

		for (uint32_t c = 0; c < s->columns; c++) {
			((uint32_t *)(uintptr_t)s->in_mul)[c] = IN_MUL;
			((int32_t *)(uintptr_t)s->bias)[c] = s->inputs ? (int32_t)(c % 64u) * 64
								       : 0;
			((int32_t *)(uintptr_t)s->mul)[c] = (int32_t)lround(gain * (1 << 20));
			((uint8_t *)(uintptr_t)s->shift)[c] = 20;
			((int16_t *)(uintptr_t)s->base)[c] =
				(int16_t)lround(4 * log2((s->inputs ? NOISE : 1) * 65536));
		}
		for (size_t k = 0; k < (size_t)s->columns * s->inputs; k++)
			w[k] = (int8_t)(next(&m->seed) % 129u - 64u);
	}
}

static int made_alloc(struct made *m)
{
	size_t tokens = m->g->block_tokens, cells = tokens * m->p->columns_max;

	m->turns = calloc(tokens * m->p->pairs + 1u, sizeof(*m->turns));
	m->mu = calloc(cells, sizeof(*m->mu));
	m->values = calloc(cells, sizeof(*m->values));
	m->inputs = calloc(tokens, m->p->columns);
	m->counts = calloc(LAYER_TABLES, sizeof(*m->counts));
	return m->turns && m->mu && m->values && m->inputs && m->counts ? 0 : -ENOMEM;
}

static void block_make(struct made *m, uint32_t position, uint8_t *block)
{
	uint32_t tokens = m->g->block_tokens;

	layer_turns(m->p, position, tokens, m->turns);
	for (uint32_t i = 0; i < m->p->segments_count; i++) {
		const struct layer_segment *s = &m->p->segments[i];
		uint8_t *to = block + m->g->segment_off[s->segment];
		struct residual_segment c = { .tokens_count = tokens,
					      .columns = s->columns,
					      .type = s->type,
					      .base = s->base,
					      .mu = m->mu };

		layer_guess(m->p, s, m->turns, tokens, m->inputs, m->mu);
		for (size_t k = 0; k < (size_t)tokens * s->columns; k++) {
			double v = m->mu[k] / 65536.0 + (s->inputs ? NOISE : 1) * noise(&m->seed);
			uint32_t pattern = pattern_of(s->type, v);

			memcpy(to + k * (s->type.bits / 8u), &pattern, s->type.bits / 8u);
		}
		residual_count(&m->counts[s->tables], &c, to, m->p->streams_count);
		m->scalars += (uint64_t)tokens * s->columns;
		layer_values(m->p, s, m->turns, tokens, to, m->values);
		layer_inputs(m->p, s, tokens, m->values, m->inputs);
	}
}

/* Channel statistics of these blocks, with the section. */
static int profile_make(struct made *m, const uint8_t *blocks, uint32_t blocks_count,
			struct codec_profile **ret)
{
	const struct layer_section *h = (const struct layer_section *)(const void *)m->section;
	struct codec_profile *channel = NULL;
	struct codec_fit *fit = NULL;
	int r = codec_fit_new(m->g, &fit);

	for (uint32_t i = 0; r == 0 && i < blocks_count; i++) {
		/* A view may be written through; this one is not. */
		struct codec_view v = { .base = (uint8_t *)(uintptr_t)blocks, .block_index = i };

		codec_fit_add(fit, &v);
	}
	if (r == 0)
		r = codec_fit_finish(fit, &channel);
	codec_fit_free(fit);
	if (r == 0)
		r = layer_section_finish(m->section, m->counts, m->scalars);
	if (r == 0)
		r = codec_profile_with_layer(m->g, channel, m->section, h->bytes, ret);
	codec_profile_free(channel);
	return r;
}

int codec_profile_made(const struct codec_geometry *g, uint32_t previous, int interleaved,
		       uint64_t seed, const uint32_t *positions, uint32_t blocks_count,
		       void *blocks, struct codec_profile **ret_profile)
{
	struct made m = { .g = g, .seed = seed };
	int r = previous > LAYER_PREVIOUS_MAX || blocks_count == 0
			? -EINVAL
			: section_make(&m, previous, interleaved != 0);

	if (r == 0)
		r = made_alloc(&m);
	if (r == 0) {
		maps_fill(&m);
		for (uint32_t i = 0; i < blocks_count; i++)
			block_make(&m, positions[i], (uint8_t *)blocks + i * g->raw_bytes);
		r = profile_make(&m, blocks, blocks_count, ret_profile);
	}
	m.p = layer_profile_free(m.p);
	free(m.section);
	free(m.turns);
	free(m.mu);
	free(m.values);
	free(m.inputs);
	free(m.counts);
	return r;
}
