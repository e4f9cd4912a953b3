/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_layer.c - the `layer` speculator against itself: of a random geometry, with maps fitted on random data,
 * a random block gives the same bytes by every instruction set, comes back from any of them, and is guessed the
 * same however its tokens are cut.
 *
 * Input: 16 bytes that say all this, then bytes that the blocks are made of (none: only random numbers).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "tests/lib/layer_rig.h"
#include "tests/lib/rng.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HEAD_BYTES 16u

static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
#define ISAS (sizeof(isas) / sizeof(isas[0]))

struct plan {
	struct layer_rig_options o;
	uint32_t position;
	uint8_t mode; /* of the coded block */
	struct rng rng;
	const uint8_t *bytes; /* borrowed */
	size_t bytes_count;
};

static void plan_make(struct plan *p, const uint8_t *data, size_t size)
{
	uint64_t seed;

	p->o = layer_rig_defaults();
	p->o.dtype = (uint8_t)(CODEC_DTYPE_BF16 + data[0] % 4u);
	p->o.turn = (enum layer_rig_turn)(data[1] % 3u);
	p->o.round_bf16 = data[1] >> 7;
	p->o.layers = 1u + data[2] % 3u;
	p->o.heads = 1u + data[3] % 3u;
	p->o.head_dim = 2u + 2u * (data[4] % 12u);
	p->o.block_tokens = 1u + data[5] % 48u;
	p->o.previous = data[6] % 3u;
	p->o.blocks = 3u + data[6] / 64u;
	p->o.fitted = p->o.blocks - 1u;
	p->o.noise = (float)data[7] / 64.0f;
	p->o.spread = (float)(1u + data[8]) / 32.0f;
	p->mode = data[9] % 4u;
	memcpy(&p->position, data + 10, 4);
	p->position %= CODEC_POSITION_UNKNOWN;
	memcpy(&seed, data + 8, 8);
	p->o.seed = seed;
	rng_init(&p->rng, seed);
	p->bytes = data + HEAD_BYTES;
	p->bytes_count = size - HEAD_BYTES;
}

/* Over a block of the rig: nothing, the input, noise, or a few of either. */
static void block_spoil(struct plan *p, uint64_t bytes, uint8_t *block)
{
	switch (p->mode) {
	case 0:
		return;
	case 1:
		for (uint64_t i = 0; i < bytes && p->bytes_count > 0; i++)
			block[i] = p->bytes[i % p->bytes_count];
		return;
	case 2:
		rng_fill(&p->rng, block, bytes);
		return;
	default:
		for (uint64_t i = 0; i < bytes; i += 1u + rng_below(&p->rng, 64))
			block[i] = p->bytes_count ? p->bytes[i % p->bytes_count]
						  : (uint8_t)rng_next(&p->rng);
	}
}

struct payload {
	uint8_t *bytes; /* owned */
	size_t count;
};

/* Once more, by this instruction set; the first one's bytes are what all must give. */
static void container_check(struct layer_rig *r, const uint8_t *block, uint32_t position,
			    struct payload *first)
{
	int res = layer_rig_encode(r, block, position, CODEC_ENCODE_VERIFY);
	uint64_t most = r->g.raw_bytes + r->g.raw_bytes / 200u +
			sizeof(struct format_block_header) + 16u * r->g.chunks_count;

	assert(res == 0 && r->info.encoded_bytes <= most);
	if (!first->bytes) {
		first->count = r->info.encoded_bytes;
		first->bytes = malloc(first->count);
		assert(first->bytes);
		memcpy(first->bytes, r->coded, first->count);
	}
	assert(r->info.encoded_bytes == first->count &&
	       memcmp(r->coded, first->bytes, first->count) == 0);
	res = layer_rig_decode(r);
	assert(res == 0 && memcmp(r->back, block, r->g.raw_bytes) == 0);
}

/* The same of the speculator alone, which the container would not choose for such data. */
static void layer_check(struct layer_rig *r, struct layer_workspace **w, const uint8_t *block,
			uint32_t position, struct payload *first)
{
	size_t cap = 8u * r->g.raw_bytes + 65536u, bytes = 0;
	uint8_t *out = malloc(cap);
	uint64_t escapes = 0;
	int res;

	assert(out);
	res = layer_encode(w, &r->g, r->profile->layer, position, block, out, cap, &bytes, &escapes,
			   NULL);
	assert(res == 0);
	if (!first->bytes) {
		first->bytes = out;
		first->count = bytes;
	} else {
		assert(bytes == first->count && memcmp(out, first->bytes, bytes) == 0);
		free(out);
	}
	memset(r->back, 0xa5, r->g.raw_bytes);
	res = layer_decode(w, &r->g, r->profile->layer, first->bytes, first->count, r->back);
	assert(res == 0 && memcmp(r->back, block, r->g.raw_bytes) == 0);
}

static void cuts_check(struct plan *p, struct layer_rig *r, const uint8_t *block)
{
	uint32_t tokens = r->g.block_tokens, columns = r->profile->layer->columns;
	size_t ints = (size_t)tokens * columns;
	int32_t *whole = malloc(ints * sizeof(*whole)), *cut = calloc(ints, sizeof(*cut));

	assert(whole && cut);
	(void)codec_isa_set("scalar");
	layer_rig_guesses(r, 0, tokens, p->position, block, whole);
	for (uint32_t at = 0; at < tokens;) {
		uint32_t n = 1u + rng_below(&p->rng, tokens - at);

		(void)codec_isa_set(isas[rng_below(&p->rng, ISAS)]);
		layer_rig_guesses(r, at, n, p->position + at, block, cut + (size_t)at * columns);
		at += n;
	}
	assert(memcmp(whole, cut, ints * sizeof(*cut)) == 0);
	free(whole);
	free(cut);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct payload container = { 0 }, layer = { 0 };
	struct layer_workspace *w = NULL;
	struct layer_rig r;
	struct plan p;
	uint8_t *block;

	if (size < HEAD_BYTES)
		return 0;
	plan_make(&p, data, size);
	(void)codec_isa_set(isas[data[15] % ISAS]); /* fits, too, have to be the same */
	layer_rig_init(&r, &p.o);
	block = layer_rig_block(&r, p.o.blocks - 1u);
	block_spoil(&p, r.g.raw_bytes, block);
	for (size_t i = 0; i < ISAS; i++) {
		if (codec_isa_set(isas[i]) < 0)
			continue;
		container_check(&r, block, p.position, &container);
		layer_check(&r, &w, block, p.position, &layer);
	}
	cuts_check(&p, &r, block);
	(void)codec_isa_set(NULL);
	free(container.bytes);
	free(layer.bytes);
	layer_workspace_free(w);
	layer_rig_deinit(&r);
	return 0;
}
