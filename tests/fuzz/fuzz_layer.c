/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_layer.c - the `layer` speculator against itself: of a random geometry, with maps fitted on random data,
 * a random block gives the same bytes by every instruction set, comes back from any of them, and is guessed the
 * same however its tokens are cut.
 *
 * Input: two bytes that name a geometry, data and a fit, all random; six that say what is done to one of its
 * blocks and where that begins; then bytes that it is made of (none: random numbers).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "tests/lib/layer_rig.h"
#include "tests/lib/rng.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HEAD_BYTES 8u
#define RIGS 64u /* kept: a fit takes much longer than all the rest */

static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
#define ISAS (sizeof(isas) / sizeof(isas[0]))

struct plan {
	uint32_t position;
	uint8_t mode; /* of the coded block */
	struct rng rng;
	const uint8_t *bytes; /* borrowed */
	size_t bytes_count;
};

static struct kept {
	uint32_t id; /* 0: empty */
	struct layer_rig r;
	uint8_t *block; /* owned: of the rig's, spoilt */
} kept[RIGS];

static struct layer_rig_options options_of(uint32_t id)
{
	struct layer_rig_options o = layer_rig_defaults();
	struct rng rng;

	rng_init(&rng, id);
	o.dtype = (uint8_t)(CODEC_DTYPE_BF16 + rng_below(&rng, 4));
	o.turn = (enum layer_rig_turn)rng_below(&rng, 3);
	o.round_bf16 = rng_one_in(&rng, 2);
	o.layers = 1u + rng_below(&rng, 3);
	o.heads = 1u + rng_below(&rng, 3);
	o.head_dim = 2u + 2u * rng_below(&rng, 12);
	o.block_tokens = 1u + rng_below(&rng, 48);
	o.previous = rng_below(&rng, 3);
	o.blocks = 3u + rng_below(&rng, 4);
	o.fitted = o.blocks - 1u;
	o.noise = (float)rng_below(&rng, 256) / 64.0f;
	o.spread = (float)(1u + rng_below(&rng, 256)) / 32.0f;
	o.seed = rng_next(&rng);
	return o;
}

static struct kept *kept_get(uint32_t id)
{
	struct kept *k = &kept[id % RIGS];
	struct layer_rig_options o = options_of(id);

	if (k->id == id + 1u)
		return k;
	if (k->id) {
		layer_rig_deinit(&k->r);
		free(k->block);
	}
	(void)codec_isa_set(isas[id % ISAS]); /* fits, too, have to be the same */
	layer_rig_init(&k->r, &o);
	k->block = malloc(k->r.g.raw_bytes);
	assert(k->block);
	k->id = id + 1u;
	return k;
}

static void plan_make(struct plan *p, const uint8_t *data, size_t size)
{
	uint64_t seed;

	memcpy(&seed, data, 8);
	p->mode = data[2] % 4u;
	memcpy(&p->position, data + 4, 4);
	p->position %= CODEC_POSITION_UNKNOWN;
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
	static struct layer_workspace *w;
	struct payload container = { 0 }, layer = { 0 };
	struct kept *k;
	struct plan p;

	if (size < HEAD_BYTES)
		return 0;
	plan_make(&p, data, size);
	k = kept_get(data[0] | (uint32_t)data[1] << 8);
	memcpy(k->block, layer_rig_block(&k->r, data[3] % 3u), k->r.g.raw_bytes);
	block_spoil(&p, k->r.g.raw_bytes, k->block);
	for (size_t i = 0; i < ISAS; i++) {
		if (codec_isa_set(isas[i]) < 0)
			continue;
		container_check(&k->r, k->block, p.position, &container);
		layer_check(&k->r, &w, k->block, p.position, &layer);
	}
	cuts_check(&p, &k->r, k->block);
	(void)codec_isa_set(NULL);
	free(container.bytes);
	free(layer.bytes);
	return 0;
}
