/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_bench_kv.c - the benchmarks' blocks without end: which channel feeds which, that fitted and measured
 * blocks have nothing in common, and that blocks differ, those of a replayed trace, too; and what samples say of
 * themselves.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench_kv.h"
#include "tools/bench_samples.h"
#include "tools/replay_data.h"

#define TOKENS 4u
#define LAYERS 3u
#define CHANNELS 6u /* 2 heads of 3: no divisor of Llama's 1024 */
#define BLOCKS 10u

/* Each scalar says where it is from: block, segment and channel in 16 bits. */
static uint16_t scalar(uint32_t block, uint32_t segment, uint32_t channel)
{
	return (uint16_t)(block << 8 | segment << 4 | channel);
}

static void dump_make(struct kv_dump *d)
{
	struct codec_segment segments[2u * LAYERS];
	uint16_t *out;

	for (uint32_t i = 0; i < 2u * LAYERS; i++)
		segments[i] = (struct codec_segment){
			.kind = i % 2u ? CODEC_KIND_V : CODEC_KIND_K,
			.dtype = CODEC_DTYPE_BF16,
			.layer = (uint16_t)(i / 2u),
			.heads = 2,
			.head_dim = CHANNELS / 2u,
		};
	*d = (struct kv_dump){ .blocks_count = BLOCKS, .layers = LAYERS, .dtype = "BF16" };
	assert_int_equal(codec_geometry_init(&d->g, TOKENS, segments, 2u * LAYERS), 0);
	d->blocks = malloc(BLOCKS * d->g.raw_bytes);
	assert_non_null(d->blocks);
	out = (uint16_t *)(void *)d->blocks;
	for (uint32_t b = 0; b < BLOCKS; b++)
		for (uint32_t i = 0; i < 2u * LAYERS; i++)
			for (uint32_t t = 0; t < TOKENS; t++)
				for (uint32_t c = 0; c < CHANNELS; c++)
					*out++ = scalar(b, i, c);
}

static void llama_block_keeps_channels(void **state)
{
	struct kv_dump d;
	struct kv_tile t;
	uint16_t *block;

	(void)state;
	dump_make(&d);
	assert_int_equal(kv_tile_init(&t, &d, KV_SHAPE_LLAMA), 0);
	assert_int_equal(t.g.raw_bytes, 2u * 32u * 8u * 128u * 2u * TOKENS);
	block = malloc(t.g.raw_bytes);
	assert_non_null(block);
	for (uint64_t index = 0; index < 20; index++) {
		const enum kv_part part = index % 2u ? KV_FIRST_HALF : KV_SECOND_HALF;

		memset(block, 0xff, t.g.raw_bytes);
		kv_tile_block(&t, part, index, (uint8_t *)block);
		for (uint32_t k = 0; k < t.g.raw_bytes / 2u; k++) {
			const uint32_t segment = k / (TOKENS * 1024u), channel = k % 1024u;
			const uint16_t v = block[k];

			/* The layer's namesake, keys from keys; the channel modulo the row. */
			assert_int_equal(v >> 4 & 15u, segment / 2u % LAYERS * 2u + segment % 2u);
			assert_int_equal(v & 15u, channel % CHANNELS);
			assert_int_equal(v >> 8 < BLOCKS / 2u, part == KV_FIRST_HALF);
		}
	}
	free(block);
	kv_tile_deinit(&t);
	kv_dump_deinit(&d);
}

static void blocks_differ_and_repeat_exactly(void **state)
{
	struct kv_dump d;
	struct kv_tile t;
	uint8_t *a, *b;

	(void)state;
	dump_make(&d);
	assert_int_equal(kv_tile_init(&t, &d, KV_SHAPE_LLAMA), 0);
	a = malloc(t.g.raw_bytes);
	b = malloc(t.g.raw_bytes);
	assert_non_null(a);
	assert_non_null(b);
	for (uint64_t i = 0; i < 16; i++) {
		kv_tile_block(&t, KV_ALL, i, a);
		kv_tile_block(&t, KV_ALL, i, b);
		assert_memory_equal(a, b, t.g.raw_bytes);
		kv_tile_block(&t, KV_ALL, i + 1u, b);
		assert_memory_not_equal(a, b, t.g.raw_bytes);
	}
	free(a);
	free(b);
	kv_tile_deinit(&t);
	kv_dump_deinit(&d);
}

static void file_shape_goes_round(void **state)
{
	struct kv_dump d;
	struct kv_tile t;
	uint8_t *a;

	(void)state;
	dump_make(&d);
	assert_int_equal(kv_tile_init(&t, &d, KV_SHAPE_FILE), 0);
	assert_memory_equal(t.g.digest, d.g.digest, CODEC_DIGEST_BYTES);
	a = malloc(t.g.raw_bytes);
	assert_non_null(a);
	for (uint64_t i = 0; i < 3u * BLOCKS; i++) {
		kv_tile_block(&t, KV_ALL, i, a);
		assert_memory_equal(a, d.blocks + i % BLOCKS * d.g.raw_bytes, d.g.raw_bytes);
		kv_tile_block(&t, KV_SECOND_HALF, i, a);
		assert_memory_equal(a, d.blocks + (BLOCKS / 2u + i % (BLOCKS / 2u)) * d.g.raw_bytes,
				    d.g.raw_bytes);
	}
	free(a);
	kv_tile_deinit(&t);
	kv_dump_deinit(&d);
}

static void reshaped_dump_keeps_halves_apart(void **state)
{
	struct kv_dump d;

	(void)state;
	dump_make(&d);
	assert_int_equal(kv_dump_reshape(&d, KV_SHAPE_FILE, 4, true), 0);
	assert_int_equal(d.blocks_count, BLOCKS); /* nothing to do */
	assert_int_equal(kv_dump_reshape(&d, KV_SHAPE_LLAMA, 4, true), 0);
	assert_int_equal(d.blocks_count, 4);
	assert_int_equal(d.tokens, 4u * TOKENS);
	for (uint32_t b = 0; b < 4; b++)
		for (uint64_t k = 0; k < d.g.raw_bytes; k += 2) {
			uint16_t v;

			memcpy(&v, d.blocks + b * d.g.raw_bytes + k, sizeof(v));
			assert_int_equal(v >> 8 < BLOCKS / 2u, b < 2);
		}
	kv_dump_deinit(&d);
}

static void samples_tell_percentiles(void **state)
{
	double values[] = { 5, 1, 4, 2, 3 };
	struct samples s;

	(void)state;
	assert_int_equal(samples_init(&s, 100), 0);
	assert_int_equal(samples_percentile(&s, 50), 0);
	for (uint64_t i = 150; i > 0; i--)
		samples_add(&s, i);
	assert_int_equal(s.count, 100); /* 51 to 150: the last 50 did not fit */
	samples_sort(&s);
	assert_int_equal(samples_percentile(&s, 50), 100);
	assert_int_equal(samples_percentile(&s, 99), 149);
	assert_int_equal(samples_percentile(&s, 100), 150);
	samples_deinit(&s);
	assert_true(median(values, 5) == 3.0);
}

/* A dump has few blocks, a trace has many: another one's bytes, or one wrong bit, are not taken for right. */
static void replayed_blocks_are_not_mistaken(void **state)
{
	uint8_t *block, *scratch;
	struct kv_dump d;
	struct kv_tile t;

	(void)state;
	dump_make(&d);
	assert_int_equal(kv_tile_init(&t, &d, KV_SHAPE_FILE), 0);
	block = malloc(t.g.raw_bytes);
	scratch = malloc(t.g.raw_bytes);
	assert_non_null(block);
	assert_non_null(scratch);
	replay_data_block(&t, 3, block);
	assert_true(replay_data_is(&t, 3, block, scratch));
	for (uint32_t other = 0; other < 3 * BLOCKS; other++)
		assert_int_equal(replay_data_is(&t, other, block, scratch), other == 3);
	for (uint64_t i = 0; i < t.g.raw_bytes; i++) {
		block[i] ^= 0x10;
		assert_false(replay_data_is(&t, 3, block, scratch));
		block[i] ^= 0x10;
	}
	free(block);
	free(scratch);
	kv_tile_deinit(&t);
	kv_dump_deinit(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(replayed_blocks_are_not_mistaken),
		cmocka_unit_test(llama_block_keeps_channels),
		cmocka_unit_test(blocks_differ_and_repeat_exactly),
		cmocka_unit_test(file_shape_goes_round),
		cmocka_unit_test(reshaped_dump_keeps_halves_apart),
		cmocka_unit_test(samples_tell_percentiles),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
