/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_layer.c - the `layer` speculator: finds how keys were turned, gives back every bit pattern of every
 * type in no more bytes than raw, the same bytes by every instruction set, and guesses the same however tokens
 * are cut into blocks.  SEED=N repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "tests/lib/layer_rig.h"
#include "tests/lib/rng.h"

static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
#define ISAS (sizeof(isas) / sizeof(isas[0]))

/* ---- how keys were turned ---- */

static struct layer_rotary found(const struct layer_rig_options *o)
{
	struct layer_rotary rotary = { 0 };
	struct layer_rig r;

	layer_rig_init(&r, o);
	assert_int_equal(layer_rotary_find(&(struct layer_sample){ .g = &r.g,
								   .blocks = r.blocks,
								   .positions = r.positions,
								   .blocks_count = o->blocks },
					   &rotary),
			 0);
	layer_rig_deinit(&r);
	return rotary;
}

static struct layer_rig_options turned(enum layer_rig_turn turn, double theta)
{
	struct layer_rig_options o = layer_rig_defaults();

	o.turn = turn;
	o.theta = theta;
	o.layers = 1;
	o.blocks = 48;
	o.fitted = 0;
	return o;
}

static void test_finds_base_and_style(void **state)
{
	static const double thetas[] = { 1e4, 5e5 };

	(void)state;
	for (size_t i = 0; i < sizeof(thetas) / sizeof(thetas[0]); i++)
		for (int style = LAYER_RIG_HALF; style <= LAYER_RIG_INTERLEAVED; style++) {
			struct layer_rig_options o = turned((enum layer_rig_turn)style, thetas[i]);
			struct layer_rotary got = found(&o);

			assert_int_equal(got.pairs, o.head_dim / 2u);
			assert_int_equal(got.interleaved, style == LAYER_RIG_INTERLEAVED);
			assert_true(fabs(log(got.theta / thetas[i])) < 0.005);
		}
}

static void test_finds_rounded_tables(void **state)
{
	(void)state;
	for (uint8_t rounded = 0; rounded < 2; rounded++) {
		struct layer_rig_options o = turned(LAYER_RIG_HALF, 1e4);

		o.dtype = CODEC_DTYPE_FP16; /* what is stored must not hide it */
		o.spread = 0.005f;
		o.round_bf16 = rounded;
		assert_int_equal(found(&o).round_bf16, rounded);
	}
}

static void test_finds_that_keys_stand_still(void **state)
{
	struct layer_rig_options o = turned(LAYER_RIG_STILL, 1e4);

	(void)state;
	assert_int_equal(found(&o).pairs, 0);
}

/* ---- round trips ---- */

static void test_every_type_comes_back(void **state)
{
	(void)state;
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++)
		for (uint32_t previous = 0; previous <= 2; previous++) {
			struct layer_rig_options o = layer_rig_defaults();
			uint64_t layer = 0, channel = 0;
			struct layer_rig r;

			o.dtype = (uint8_t)dtype;
			o.previous = previous;
			layer_rig_init(&r, &o);
			for (uint32_t i = 0; i < o.blocks; i++) {
				struct codec_view v = { .base = layer_rig_block(&r, i) };

				assert_int_equal(codec_encode(r.ws, &r.g, r.profile,
							      CODEC_SPEC_CHANNEL, 0, &v, r.coded,
							      r.cap, &r.info),
						 0);
				channel += r.info.encoded_bytes;
				assert_int_equal(layer_rig_encode(&r, layer_rig_block(&r, i),
								  r.positions[i],
								  CODEC_ENCODE_VERIFY),
						 0);
				assert_int_equal(r.info.speculator, CODEC_SPEC_LAYER);
				layer += r.info.encoded_bytes;
				assert_int_equal(layer_rig_decode(&r), 0);
				assert_memory_equal(r.back, layer_rig_block(&r, i), r.g.raw_bytes);
			}
			print_message("type %u, %u previous: %.3f of channel's bytes\n", dtype,
				      previous, (double)layer / (double)channel);
			if (previous > 0)
				assert_true(layer * 100 < channel * 93);
			layer_rig_deinit(&r);
		}
}

/* What no model makes. */
static uint32_t nasty(struct rng *rng, struct residual_type t, uint32_t kind)
{
	uint32_t sign = rng_below(rng, 2) << (t.bits - 1u), r = (uint32_t)rng_next(rng);

	switch (kind < 6u ? kind : (r >> 16) % 6u) {
	case 0: /* all there is */
		return r & ((1u << t.bits) - 1u);
	case 1: /* infinities and NaN */
		return sign | (t.mag_max + 1u + r % 2u);
	case 2: /* both zeros */
		return sign;
	case 3: /* subnormals */
		return sign | (r & ((1u << t.mant_bits) - 1u));
	case 4: /* the largest */
		return sign | t.mag_max;
	default: /* one value */
		return t.mag_max / 2u;
	}
}

static void nasty_fill(struct rng *rng, const struct layer_rig *r, uint32_t kind, uint8_t *block)
{
	struct residual_type t = residual_type_of(r->g.segments[0].dtype);

	for (size_t i = 0; i < r->g.raw_bytes; i += t.bits / 8u) {
		uint32_t v = kind == 7 && !rng_one_in(rng, 50)
				     ? 0
				     : nasty(rng, t, kind == 7 ? 0 : kind);

		if (kind != 7 || v)
			memcpy(block + i, &v, t.bits / 8u);
	}
}

static void test_anything_comes_back_and_never_longer(void **state)
{
	struct rng rng;

	(void)state;
	rng_init(&rng, rng_seed_env(21));
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++) {
		struct layer_rig_options o = layer_rig_defaults();
		struct layer_rig r;

		o.dtype = (uint8_t)dtype;
		o.block_tokens = 64;
		o.head_dim = 64; /* so that headers are within the half percent */
		o.fitted = 8;
		o.blocks = 9;
		layer_rig_init(&r, &o);
		for (uint32_t kind = 0; kind < 8; kind++) {
			uint8_t *block = malloc(r.g.raw_bytes);

			assert_non_null(block);
			memcpy(block, layer_rig_block(&r, 8), r.g.raw_bytes);
			nasty_fill(&rng, &r, kind, block);
			assert_int_equal(layer_rig_encode(&r, block, (uint32_t)rng_next(&rng) / 2u,
							  kind % 2u ? CODEC_ENCODE_VERIFY : 0),
					 0);
			assert_true(r.info.encoded_bytes <= r.g.raw_bytes + r.g.raw_bytes / 200u);
			assert_int_equal(layer_rig_decode(&r), 0);
			assert_memory_equal(r.back, block, r.g.raw_bytes);
			free(block);
		}
		layer_rig_deinit(&r);
	}
}

/* ... by `layer` itself, which codec_encode would not have chosen. */
static void test_layer_itself_takes_anything(void **state)
{
	struct layer_rig_options o = layer_rig_defaults();
	struct layer_workspace *w = NULL;
	struct rng rng;

	(void)state;
	rng_init(&rng, rng_seed_env(22));
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++) {
		uint64_t escapes = 0;
		struct layer_rig r;
		uint8_t *block, *out;
		size_t cap, bytes = 0;

		o.dtype = (uint8_t)dtype;
		layer_rig_init(&r, &o);
		cap = 4u * r.g.raw_bytes + 4096u;
		block = malloc(r.g.raw_bytes);
		out = malloc(cap);
		assert_non_null(block);
		assert_non_null(out);
		for (uint32_t kind = 0; kind < 8; kind++) {
			uint32_t position = (uint32_t)rng_next(&rng);

			memcpy(block, layer_rig_block(&r, 65), r.g.raw_bytes);
			nasty_fill(&rng, &r, kind, block);
			assert_int_equal(layer_encode(&w, &r.g, r.profile->layer, position, block,
						      out, cap, &bytes, &escapes, NULL),
					 0);
			assert_int_equal(
				layer_decode(&w, &r.g, r.profile->layer, out, bytes, r.back), 0);
			assert_memory_equal(r.back, block, r.g.raw_bytes);
			assert_int_equal(layer_encode(&w, &r.g, r.profile->layer, position, block,
						      out, bytes - 1u, &bytes, &escapes, NULL),
					 -ENOSPC);
		}
		free(block);
		free(out);
		layer_rig_deinit(&r);
	}
	layer_workspace_free(w);
}

/* ---- the same bits everywhere ---- */

static void test_every_isa_writes_the_same(void **state)
{
	struct layer_rig_options o = layer_rig_defaults();
	uint8_t *first = NULL;
	size_t first_bytes = 0;

	(void)state;
	o.head_dim = 24; /* 48 columns: a group and a half */
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype < CODEC_DTYPE_COUNT; dtype++) {
		struct layer_rig r;

		o.dtype = (uint8_t)dtype;
		layer_rig_init(&r, &o);
		for (uint32_t block = 64; block < 72; block++)
			for (size_t i = 0; i < ISAS; i++) {
				if (codec_isa_set(isas[i]) < 0)
					continue;
				assert_int_equal(layer_rig_encode(&r, layer_rig_block(&r, block),
								  r.positions[block], 0),
						 0);
				if (i == 0) {
					free(first);
					first_bytes = r.info.encoded_bytes;
					first = malloc(first_bytes);
					assert_non_null(first);
					memcpy(first, r.coded, first_bytes);
				}
				assert_int_equal(r.info.encoded_bytes, first_bytes);
				assert_memory_equal(r.coded, first, first_bytes);
				assert_int_equal(layer_rig_decode(&r), 0);
				assert_memory_equal(r.back, layer_rig_block(&r, block),
						    r.g.raw_bytes);
			}
		layer_rig_deinit(&r);
	}
	free(first);
	assert_int_equal(codec_isa_set(NULL), 0);
}

static void test_cuts_do_not_matter(void **state)
{
	struct layer_rig_options o = layer_rig_defaults();
	const struct layer_profile *p;
	int32_t *whole, *cut;
	struct layer_rig r;
	struct rng rng;
	size_t ints;

	(void)state;
	rng_init(&rng, rng_seed_env(23));
	o.block_tokens = 48;
	o.blocks = 24;
	o.fitted = 20;
	o.previous = 2;
	layer_rig_init(&r, &o);
	p = r.profile->layer;
	ints = (size_t)o.block_tokens * p->columns;
	whole = malloc(ints * sizeof(*whole));
	cut = malloc(ints * sizeof(*cut));
	assert_non_null(whole);
	assert_non_null(cut);
	for (uint32_t round = 0; round < 12; round++) {
		const uint8_t *block = layer_rig_block(&r, 20u + round % 4u);
		uint32_t position = round < 4 ? r.positions[20u + round] : rng_below(&rng, 100000);

		layer_rig_guesses(&r, 0, 48, position, block, whole);
		memset(cut, 0, ints * sizeof(*cut));
		for (uint32_t at = 0; at < 48;) {
			uint32_t n = round == 0 ? 16u : 1u + rng_below(&rng, 48u - at);

			layer_rig_guesses(&r, at, n, position + at, block,
					  cut + (size_t)at * p->columns);
			at += n;
		}
		assert_memory_equal(whole, cut, ints * sizeof(*cut));
	}
	free(whole);
	free(cut);
	layer_rig_deinit(&r);
}

/* ---- positions ---- */

static void test_unknown_position_is_channel(void **state)
{
	struct layer_rig_options o = layer_rig_defaults();
	struct layer_rig r;

	(void)state;
	layer_rig_init(&r, &o);
	assert_int_equal(layer_rig_encode(&r, layer_rig_block(&r, 64), CODEC_POSITION_UNKNOWN, 0),
			 0);
	assert_int_equal(r.info.speculator, CODEC_SPEC_CHANNEL);
	assert_int_equal(layer_rig_decode(&r), 0);
	assert_memory_equal(r.back, layer_rig_block(&r, 64), r.g.raw_bytes);
	layer_rig_deinit(&r);
}

static void test_wrong_position_is_only_bigger(void **state)
{
	struct layer_rig_options o = layer_rig_defaults();
	uint64_t right = 0, wrong = 0;
	struct layer_rig r;

	(void)state;
	layer_rig_init(&r, &o);
	for (uint32_t i = 64; i < 72; i++) {
		static const uint32_t off[] = { 3, 1000, 0x80000000u, 0xfffffff0u };
		const uint8_t *block = layer_rig_block(&r, i);

		assert_int_equal(layer_rig_encode(&r, block, r.positions[i], 0), 0);
		right += r.info.encoded_bytes;
		assert_int_equal(layer_rig_encode(&r, block, r.positions[i] + off[i % 4u], 0), 0);
		wrong += r.info.encoded_bytes;
		assert_int_equal(layer_rig_decode(&r), 0);
		assert_memory_equal(r.back, block, r.g.raw_bytes);
	}
	print_message("%.3f of the bytes with the right positions\n",
		      (double)wrong / (double)right);
	assert_true(wrong > right);
	layer_rig_deinit(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_finds_base_and_style),
		cmocka_unit_test(test_finds_rounded_tables),
		cmocka_unit_test(test_finds_that_keys_stand_still),
		cmocka_unit_test(test_every_type_comes_back),
		cmocka_unit_test(test_anything_comes_back_and_never_longer),
		cmocka_unit_test(test_layer_itself_takes_anything),
		cmocka_unit_test(test_every_isa_writes_the_same),
		cmocka_unit_test(test_cuts_do_not_matter),
		cmocka_unit_test(test_unknown_position_is_channel),
		cmocka_unit_test(test_wrong_position_is_only_bigger),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
