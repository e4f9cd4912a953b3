/* SPDX-License-Identifier: Apache-2.0 */
/*
 * staging.c - cutting staging memory, and keeping account of it.
 *
 * Loads and stores have areas of their own, so that payloads which wait to be written out never keep
 * a load from starting.  An area is not cut into slots: a batch takes what it needs, so a batch of one
 * leaves the rest to the next.  A batch takes half of its area at most, hence two can be under way.
 *
 * Scratch belongs to a stream, not to a batch: the kernels of a stream run one after the other, so
 * all its batches use the same bytes.
 */
#include "gpu/staging.h"

#include <assert.h>
#include <string.h>

/*
 * In sixteenths; of the default 128 MiB: 40, 48, 32 and 8 MiB.  A store takes the bound of its block, so half
 * of 48 MiB is 11 blocks of 2 MiB; a load takes what the block was coded to, so half of 40 MiB is 15 blocks
 * at a ratio of 1.5 and 10 raw ones.  The encoder's scratch holds chunks before they are packed, about a
 * bound each; the decoder's is a fraction of that (cuda_codec_*_scratch say it exactly).
 */
#define CUT_LOADS 5u
#define CUT_STORES 6u
#define CUT_STORES_SCRATCH 4u
#define CUT_LOADS_SCRATCH 1u

static_assert(CUT_LOADS + CUT_STORES + CUT_STORES_SCRATCH + CUT_LOADS_SCRATCH == 16, "all of it");

static uint64_t rounded(uint64_t bytes)
{
	return (bytes + STAGING_ALIGN - 1u) & ~(uint64_t)(STAGING_ALIGN - 1u);
}

struct staging_cut staging_cut(uint64_t staging_bytes)
{
	uint64_t part = staging_bytes / 16u & ~(uint64_t)(STAGING_ALIGN - 1u);

	return (struct staging_cut){
		.loads_bytes = part * CUT_LOADS,
		.stores_bytes = part * CUT_STORES,
		.loads_scratch_bytes = part * CUT_LOADS_SCRATCH,
		.stores_scratch_bytes = part * CUT_STORES_SCRATCH,
	};
}

uint64_t staging_block_max(const struct staging_cut *cut)
{
	return cut->loads_bytes < cut->stores_bytes ? cut->loads_bytes : cut->stores_bytes;
}

void staging_init(struct staging_area *a, uint64_t base, uint64_t bytes)
{
	assert(base != 0 && base % STAGING_ALIGN == 0 && bytes % STAGING_ALIGN == 0);
	*a = (struct staging_area){ .base = base, .bytes = bytes };
}

/* Where the gap before extent i begins, and how long it is; i may be extents_count. */
static uint64_t gap_before(const struct staging_area *a, uint32_t i, uint64_t *ret_off)
{
	uint64_t off = i == 0 ? 0 : a->extent[i - 1].off + a->extent[i - 1].bytes;
	uint64_t end = i == a->extents_count ? a->bytes : a->extent[i].off;

	assert(off <= end);
	*ret_off = off;
	return end - off;
}

uint64_t staging_room(const struct staging_area *a)
{
	uint64_t most = 0, off;

	if (a->extents_count == STAGING_EXTENTS_MAX)
		return 0;
	for (uint32_t i = 0; i <= a->extents_count; i++) {
		uint64_t gap = gap_before(a, i, &off);

		most = gap > most ? gap : most;
	}
	return most;
}

uint64_t staging_take(struct staging_area *a, uint64_t bytes)
{
	uint64_t off;

	assert(bytes > 0);
	if (a->extents_count == STAGING_EXTENTS_MAX || bytes > a->bytes)
		return 0;
	bytes = rounded(bytes);
	for (uint32_t i = 0; i <= a->extents_count; i++) {
		if (gap_before(a, i, &off) < bytes)
			continue;
		memmove(&a->extent[i + 1], &a->extent[i],
			(a->extents_count - i) * sizeof(a->extent[0]));
		a->extent[i] = (struct staging_extent){ .off = off, .bytes = bytes, .refs = 1 };
		a->extents_count++;
		return a->base + off;
	}
	return 0;
}

static uint32_t extent_at(const struct staging_area *a, uint64_t address)
{
	for (uint32_t i = 0; i < a->extents_count; i++)
		if (address - a->base - a->extent[i].off < a->extent[i].bytes)
			return i;
	assert(!"not a staged address");
	return 0;
}

void staging_ref(struct staging_area *a, uint64_t address, uint32_t users)
{
	a->extent[extent_at(a, address)].refs += users;
}

void staging_unref(struct staging_area *a, uint64_t address)
{
	uint32_t i = extent_at(a, address);

	assert(a->extent[i].refs > 0);
	if (--a->extent[i].refs > 0)
		return;
	a->extents_count--;
	memmove(&a->extent[i], &a->extent[i + 1], (a->extents_count - i) * sizeof(a->extent[0]));
}
