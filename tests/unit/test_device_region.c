/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_device_region.c - layouts over several allocations: those that engines have, and random ones against a
 * map of every byte.  Addresses are numbers here; nothing is read or written.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/device.h"
#include "tests/lib/rng.h"

#define TOKENS 4u
#define HEADS 2u
#define DIM 8u
#define ELEMENT 2u
#define HEAD_BYTES (DIM * ELEMENT)
#define TOKEN_BYTES (HEADS * HEAD_BYTES)
#define PAGE (TOKENS * TOKEN_BYTES) /* one block of K or V of one layer */
#define BLOCKS 3u
#define SEGMENTS_MAX 8u

struct layout {
	struct codec_geometry g;
	struct device_part parts[SEGMENTS_MAX];
	uint32_t parts_count;
	uint32_t segment_part[SEGMENTS_MAX];
	struct codec_stride stride[SEGMENTS_MAX];
	uint64_t block_stride[SEGMENTS_MAX];
};

static void init(struct layout *l, uint32_t segments, uint16_t heads, uint16_t dim)
{
	struct codec_segment s[SEGMENTS_MAX];

	memset(l, 0, sizeof(*l));
	for (uint32_t i = 0; i < segments; i++)
		s[i] = (struct codec_segment){ .kind = CODEC_KIND_K,
					       .dtype = CODEC_DTYPE_BF16,
					       .layer = (uint16_t)(i / 2),
					       .heads = heads,
					       .head_dim = dim };
	assert_int_equal(codec_geometry_init(&l->g, TOKENS, s, segments), 0);
}

static void part(struct layout *l, uintptr_t base, uint64_t bytes)
{
	l->parts[l->parts_count++] = (struct device_part){ (void *)base, bytes };
}

static void place(struct layout *l, uint32_t segment, uint32_t in, uint64_t off,
		  uint64_t block_stride, uint64_t token_stride, uint64_t head_stride)
{
	l->segment_part[segment] = in;
	l->stride[segment] = (struct codec_stride){ .off = off,
						    .token_stride = token_stride,
						    .head_stride = head_stride };
	l->block_stride[segment] = block_stride;
}

static int try_blocks(const struct layout *l, uint32_t blocks)
{
	struct device_region r = { .bytes = 77 };
	int res = device_region_init_parts(&r, &l->g, l->parts, l->parts_count, l->segment_part,
					   blocks, l->stride, l->block_stride);

	if (res == 0)
		device_region_deinit(&r);
	else
		assert_int_equal(r.bytes, 77); /* untouched */
	return res;
}

/* All of it fits; a block more, or a byte less of any allocation, does not. */
static void fits_exactly(struct layout *l)
{
	assert_int_equal(try_blocks(l, BLOCKS), 0);
	for (uint32_t i = 0; i < l->parts_count; i++) {
		l->parts[i].bytes--;
		assert_int_equal(try_blocks(l, BLOCKS), -ERANGE);
		l->parts[i].bytes++;
	}
	assert_true(try_blocks(l, BLOCKS + 1) < 0);
	codec_geometry_deinit(&l->g);
}

/* ---- the layouts in skvc.h's table ---- */

static void takes_what_engines_have(void **state)
{
	struct layout l;

	(void)state;
	/* [2, N, T, H, D], a tensor a layer */
	init(&l, 4, HEADS, DIM);
	for (uint32_t i = 0; i < 2; i++) {
		part(&l, 0x700000000000u + i * 0x100000u, 2 * BLOCKS * PAGE);
		place(&l, 2 * i, i, 0, PAGE, TOKEN_BYTES, HEAD_BYTES);
		place(&l, 2 * i + 1, i, BLOCKS * PAGE, PAGE, TOKEN_BYTES, HEAD_BYTES);
	}
	fits_exactly(&l);
	/* [2, N, H, T, D] */
	init(&l, 2, HEADS, DIM);
	part(&l, 0x1000, 2 * BLOCKS * PAGE);
	place(&l, 0, 0, 0, PAGE, HEAD_BYTES, TOKENS * HEAD_BYTES);
	place(&l, 1, 0, BLOCKS * PAGE, PAGE, HEAD_BYTES, TOKENS * HEAD_BYTES);
	fits_exactly(&l);
	/* [N, 2, T, H, D], some way into the allocation */
	init(&l, 2, HEADS, DIM);
	part(&l, 0x1000, 2 * BLOCKS * PAGE + 512);
	place(&l, 0, 0, 512, 2 * PAGE, TOKEN_BYTES, HEAD_BYTES);
	place(&l, 1, 0, 512 + PAGE, 2 * PAGE, TOKEN_BYTES, HEAD_BYTES);
	fits_exactly(&l);
	/* [N, T, H, 2 * D] */
	init(&l, 2, HEADS, DIM);
	part(&l, 0x1000, 2 * BLOCKS * PAGE);
	place(&l, 0, 0, 0, 2 * PAGE, 2 * TOKEN_BYTES, 2 * HEAD_BYTES);
	place(&l, 1, 0, HEAD_BYTES, 2 * PAGE, 2 * TOKEN_BYTES, 2 * HEAD_BYTES);
	fits_exactly(&l);
	/* [N, L, 2, T, H, D] */
	init(&l, 4, HEADS, DIM);
	part(&l, 0x1000, 4 * BLOCKS * PAGE);
	for (uint32_t i = 0; i < 4; i++)
		place(&l, i, 0, i * PAGE, 4 * PAGE, TOKEN_BYTES, HEAD_BYTES);
	fits_exactly(&l);
	/* [N, T, 576] */
	init(&l, 1, 1, 576);
	part(&l, 0x1000, BLOCKS * TOKENS * 576 * ELEMENT);
	place(&l, 0, 0, 0, TOKENS * 576 * ELEMENT, 576 * ELEMENT, 576 * ELEMENT);
	fits_exactly(&l);
}

static void counts_from_the_lowest_allocation(void **state)
{
	struct device_region r;
	struct layout l;

	(void)state;
	init(&l, 4, HEADS, DIM);
	part(&l, 0x9000, 0x1000);
	part(&l, 0x4000, 0x800);
	part(&l, 0x7f0000000000u, 0x2000);
	place(&l, 0, 0, 0x10, PAGE, TOKEN_BYTES, HEAD_BYTES);
	place(&l, 1, 1, 0, PAGE, TOKEN_BYTES, HEAD_BYTES);
	place(&l, 2, 2, 0x40, PAGE, TOKEN_BYTES, HEAD_BYTES);
	place(&l, 3, 0, 0x800, PAGE, TOKEN_BYTES, HEAD_BYTES);
	assert_int_equal(device_region_init_parts(&r, &l.g, l.parts, 3, l.segment_part, BLOCKS,
						  l.stride, l.block_stride),
			 0);
	assert_ptr_equal(r.base, (void *)0x4000);
	assert_true(r.bytes == 0x7f0000002000u - 0x4000);
	assert_true(r.stride[0].off == 0x5010 && r.stride[1].off == 0);
	assert_true(r.stride[2].off == 0x7f0000000040u - 0x4000 && r.stride[3].off == 0x5800);
	assert_true(r.stride[3].token_stride == TOKEN_BYTES && r.block_stride[3] == PAGE);
	device_region_deinit(&r);
	codec_geometry_deinit(&l.g);
}

static void refuses_impossible_allocations(void **state)
{
	struct layout l;

	(void)state;
	init(&l, 2, HEADS, DIM);
	part(&l, 0x1000, BLOCKS * PAGE);
	part(&l, 0x8000, BLOCKS * PAGE);
	place(&l, 0, 0, 0, PAGE, TOKEN_BYTES, HEAD_BYTES);
	place(&l, 1, 1, 0, PAGE, TOKEN_BYTES, HEAD_BYTES);
	assert_int_equal(try_blocks(&l, BLOCKS), 0);
	assert_int_equal(try_blocks(&l, 0), -EINVAL);
	/* No element of the region reaches over; the other allocation is no room of this one. */
	l.parts[0].bytes = BLOCKS * PAGE - ELEMENT;
	assert_int_equal(try_blocks(&l, BLOCKS), -ERANGE);
	l.parts[0].bytes = BLOCKS * PAGE;
	l.stride[0].off = 0x7000; /* where the other one is */
	assert_int_equal(try_blocks(&l, BLOCKS), -ERANGE);
	l.stride[0].off = 0;
	l.parts[1].bytes = UINT64_MAX - 0x7000; /* beyond the last address */
	assert_int_equal(try_blocks(&l, BLOCKS), -ERANGE);
	l.parts[1].bytes = 0;
	assert_int_equal(try_blocks(&l, BLOCKS), -EINVAL);
	l.parts[1] = (struct device_part){ NULL, BLOCKS * PAGE };
	assert_int_equal(try_blocks(&l, BLOCKS), -EINVAL);
	/* Half an element between them. */
	l.parts[1] = (struct device_part){ (void *)0x8001, BLOCKS * PAGE };
	assert_int_equal(try_blocks(&l, BLOCKS), -EINVAL);
	/* One allocation under two names. */
	l.parts[1] = l.parts[0];
	assert_int_equal(try_blocks(&l, BLOCKS), -EINVAL);
	l.parts[0].bytes = l.parts[1].bytes = 2 * BLOCKS * PAGE;
	l.stride[1].off = BLOCKS * PAGE;
	assert_int_equal(try_blocks(&l, BLOCKS), 0);
	l.stride[1].off -= ELEMENT;
	assert_int_equal(try_blocks(&l, BLOCKS), -EINVAL);
	codec_geometry_deinit(&l.g);
}

/* ---- against a map ---- */

#define MAP_BASE 0x10000u
#define MAP_BYTES 8192u

static uint8_t map[MAP_BYTES];

/* Marks every byte of a segment; false when one lies outside its allocation or is marked already. */
static bool mark(const struct layout *l, const struct device_region *r, uint32_t s)
{
	const struct device_part *p = &l->parts[l->segment_part[s]];

	for (uint32_t n = 0; n < BLOCKS * TOKENS * HEADS * HEAD_BYTES; n++) {
		uint32_t head = n / HEAD_BYTES % HEADS, token = n / TOKEN_BYTES % TOKENS;
		uintptr_t at = (uintptr_t)r->base + r->stride[s].off +
			       n / PAGE * r->block_stride[s] + token * r->stride[s].token_stride +
			       head * r->stride[s].head_stride + n % HEAD_BYTES;

		if (at < (uintptr_t)p->base || at >= (uintptr_t)p->base + p->bytes)
			return false;
		if (map[at - MAP_BASE]++)
			return false;
	}
	return true;
}

static void random_layout(struct rng *rng, struct layout *l)
{
	/* Strides that fit together, one of them perhaps from elsewhere; offs wherever they fall. */
	static const uint64_t unit[][3] = {
		{ PAGE, TOKEN_BYTES, HEAD_BYTES },
		{ PAGE, HEAD_BYTES, TOKENS * HEAD_BYTES },
		{ 2 * PAGE, TOKEN_BYTES, HEAD_BYTES },
		{ 2 * PAGE, 2 * TOKEN_BYTES, 2 * HEAD_BYTES },
		{ HEAD_BYTES, BLOCKS * TOKEN_BYTES, BLOCKS * HEAD_BYTES },
	};

	init(l, 2, HEADS, DIM);
	for (uint32_t i = 0; i < 2; i++)
		part(l, MAP_BASE + rng_below(rng, 3) * 1024, 512 + rng_below(rng, 5) * 256);
	if (rng_one_in(rng, 3))
		l->parts[1] = l->parts[0];
	for (uint32_t i = 0; i < 2; i++) {
		const uint64_t *u = unit[rng_below(rng, 5)];
		uint64_t stride[3] = { u[0], u[1], u[2] };

		if (rng_one_in(rng, 3))
			stride[rng_below(rng, 3)] = unit[rng_below(rng, 5)][rng_below(rng, 3)];
		place(l, i, rng_below(rng, 2), rng_below(rng, 24) * HEAD_BYTES, stride[0],
		      stride[1], stride[2]);
	}
}

static void never_takes_bytes_twice_or_outside(void **state)
{
	uint64_t seed = rng_seed_env(0x5eed);
	struct rng rng = { .state = seed };
	unsigned taken = 0;

	(void)state;
	for (unsigned round = 0; round < 200000; round++) {
		struct device_region r;
		struct layout l;

		random_layout(&rng, &l);
		if (!device_region_init_parts(&r, &l.g, l.parts, l.parts_count, l.segment_part,
					      BLOCKS, l.stride, l.block_stride)) {
			taken++;
			memset(map, 0, sizeof(map));
			if (!mark(&l, &r, 0) || !mark(&l, &r, 1))
				fail_msg("SEED=%llu round %u", (unsigned long long)seed, round);
			device_region_deinit(&r);
		}
		codec_geometry_deinit(&l.g);
	}
	assert_in_range(taken, 10000, 190000); /* it takes some, and refuses some */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(takes_what_engines_have),
		cmocka_unit_test(counts_from_the_lowest_allocation),
		cmocka_unit_test(refuses_impossible_allocations),
		cmocka_unit_test(never_takes_bytes_twice_or_outside),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
