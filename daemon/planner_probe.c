/* SPDX-License-Identifier: Apache-2.0 */
/*
 * planner_probe.c - what this machine does by one thread, measured before the daemon serves: a copy in memory,
 * and the codec on made-up data.  `layer` and `model` need a fitted profile, so their first blocks are the probe.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/planner.h"
#include "daemon/util/clock.h"

#define COPY_BYTES (8u << 20)
#define ROUNDS 4u
#define LAYERS 1u
#define HEADS 2u
#define HEAD_DIM 128u
#define TOKENS 16u

struct probe {
	struct codec_geometry g;
	struct codec_workspace *ws;
	struct codec_fit *fit;
	struct codec_profile *profile;
	uint8_t *raw, *coded;
	size_t cap;
};

static void probe_copy(struct plan_rate *r, uint8_t *from, uint8_t *to)
{
	memset(from, 1, COPY_BYTES);
	memset(to, 2, COPY_BYTES);
	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t begin_ns = clock_now_ns();

		memcpy(to, from, COPY_BYTES);
		__asm__ volatile("" : : "r"(to) : "memory"); /* nobody reads the copy */
		plan_rate_seen(r, COPY_BYTES, clock_now_ns() - begin_ns);
	}
}

/* bf16 with a bell of exponents, as keys and values have: sums of uniform numbers. */
static void make_up(uint8_t *raw, uint64_t bytes)
{
	uint64_t x = 88172645463325252ull;

	for (uint64_t i = 0; i + 1 < bytes; i += 2) {
		float sum = -2;
		uint32_t bits;

		for (unsigned n = 0; n < 4; n++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			sum += (float)(x >> 40) * 0x1p-24f;
		}
		memcpy(&bits, &sum, sizeof(bits));
		raw[i] = (uint8_t)(bits >> 16);
		raw[i + 1] = (uint8_t)(bits >> 24);
	}
}

static int probe_new(struct probe *p)
{
	struct codec_segment segment[2 * LAYERS];
	struct codec_view v;
	int r;

	for (unsigned i = 0; i < 2 * LAYERS; i++)
		segment[i] = (struct codec_segment){ .kind = i & 1 ? CODEC_KIND_V : CODEC_KIND_K,
						     .dtype = CODEC_DTYPE_BF16,
						     .layer = (uint16_t)(i / 2),
						     .heads = HEADS,
						     .head_dim = HEAD_DIM };
	r = codec_geometry_init(&p->g, TOKENS, segment, 2 * LAYERS);
	if (r == 0)
		r = codec_workspace_new(&p->ws);
	if (r == 0)
		r = codec_fit_new(&p->g, &p->fit);
	if (r < 0)
		return r;
	p->cap = codec_bound(&p->g);
	p->raw = malloc(p->g.raw_bytes);
	p->coded = malloc(p->cap);
	if (!p->raw || !p->coded)
		return -ENOMEM;
	make_up(p->raw, p->g.raw_bytes);
	v = (struct codec_view){ .base = p->raw, .position = CODEC_POSITION_UNKNOWN };
	codec_fit_add(p->fit, &v);
	return codec_fit_finish(p->fit, &p->profile);
}

static void probe_free(struct probe *p)
{
	free(p->coded);
	free(p->raw);
	p->profile = codec_profile_free(p->profile);
	p->fit = codec_fit_free(p->fit);
	p->ws = codec_workspace_free(p->ws);
	codec_geometry_deinit(&p->g);
}

static int probe_code(struct probe *p, struct plan_machine *m, uint8_t speculator)
{
	struct codec_view v = { .base = p->raw, .position = CODEC_POSITION_UNKNOWN };
	struct codec_info info;
	uint64_t at_ns[3];
	int r;

	for (unsigned i = 0; i < ROUNDS; i++) {
		at_ns[0] = clock_now_ns();
		r = codec_encode(p->ws, &p->g, p->profile, speculator, CODEC_ENCODE_VERIFY, &v,
				 p->coded, p->cap, &info);
		at_ns[1] = clock_now_ns();
		if (r == 0)
			r = codec_decode(p->ws, &p->g, p->profile, p->coded, info.encoded_bytes,
					 &info.raw_xxh3, &v);
		at_ns[2] = clock_now_ns();
		if (r < 0)
			return r;
		if (!i) /* code and tables came into the caches */
			continue;
		plan_rate_seen(&m->code[PLAN_CPU][PLAN_ENCODE][speculator], p->g.raw_bytes,
			       at_ns[1] - at_ns[0]);
		plan_rate_seen(&m->code[PLAN_CPU][PLAN_DECODE][speculator], p->g.raw_bytes,
			       at_ns[2] - at_ns[1]);
	}
	return 0;
}

int planner_probe(struct plan_machine *m)
{
	uint8_t *copy = malloc(2u * COPY_BYTES);
	struct probe p = { 0 };
	int r = copy ? probe_new(&p) : -ENOMEM;

	if (copy)
		probe_copy(&m->copy, copy, copy + COPY_BYTES);
	free(copy);
	for (unsigned s = CODEC_SPEC_RAW; r == 0 && s <= CODEC_SPEC_CHANNEL; s++)
		r = probe_code(&p, m, (uint8_t)s);
	probe_free(&p);
	return r;
}
