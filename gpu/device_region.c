/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device_region.c - a client's description of its KV allocation, checked once.  The numbers come from
 * another process; after device_region_init no view of any block can leave the allocation, so that the
 * data path needs no checks.
 *
 * Runs on the control thread or a lane; no I/O.
 */
#include "gpu/device.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define AXES_MAX 3u /* block, token, head */

/* One direction in which a segment repeats. */
struct axis {
	uint64_t count;	 /* > 1; an axis of one step is left out */
	uint64_t stride; /* bytes */
};

/* A segment over all its blocks: runs of item_bytes, repeated along the axes, smallest stride first.
 * off counts from the region's base. */
struct lattice {
	uint64_t off;
	uint64_t item_bytes;
	unsigned axes_count;
	struct axis axes[AXES_MAX];
};

static void lattice_add(struct lattice *l, uint64_t count, uint64_t stride)
{
	unsigned i = l->axes_count;

	if (count == 1)
		return;
	for (; i > 0 && l->axes[i - 1].stride > stride; i--)
		l->axes[i] = l->axes[i - 1];
	l->axes[i] = (struct axis){ .count = count, .stride = stride };
	l->axes_count++;
}

/*
 * Bytes from the first to past the last, when something of span_bytes repeats along axes.  No two
 * copies meet when each stride is at least the span of everything inside it.  That is every layout
 * engines use; stranger interleavings are refused.  Returns 0 or -EINVAL (copies meet), -ERANGE.
 */
static int span_repeat(uint64_t span_bytes, const struct axis *axes, unsigned axes_count,
		       uint64_t *ret_span_bytes)
{
	for (unsigned i = 0; i < axes_count; i++) {
		uint64_t reach;

		if (axes[i].stride < span_bytes)
			return -EINVAL;
		if (__builtin_mul_overflow(axes[i].count - 1u, axes[i].stride, &reach) ||
		    __builtin_add_overflow(span_bytes, reach, &span_bytes))
			return -ERANGE;
	}
	*ret_span_bytes = span_bytes;
	return 0;
}

/* part: where the segment's allocation begins, and its bytes, counted from the region's base. */
static int lattice_init(struct lattice *l, const struct device_region *r, uint32_t segment,
			uint64_t part_off, uint64_t part_bytes)
{
	const struct codec_segment *seg = &r->geom->segments[segment];
	const struct codec_stride *s = &r->stride[segment];
	uint64_t element = codec_dtype_bytes(seg->dtype), span, end;
	int res;

	*l = (struct lattice){ .item_bytes = seg->head_dim * element };
	lattice_add(l, r->blocks_count, r->block_stride[segment]);
	lattice_add(l, r->geom->block_tokens, s->token_stride);
	lattice_add(l, seg->heads, s->head_stride);
	if (s->off % element != 0 || part_off % element != 0)
		return -EINVAL;
	for (unsigned i = 0; i < l->axes_count; i++)
		if (l->axes[i].stride % element != 0)
			return -EINVAL;
	res = span_repeat(l->item_bytes, l->axes, l->axes_count, &span);
	if (res < 0)
		return res;
	if (__builtin_add_overflow(s->off, span, &end) || end > part_bytes)
		return -ERANGE;
	/* The allocation ends inside the region, so this cannot wrap. */
	l->off = part_off + s->off;
	return 0;
}

/*
 * Two segments are apart when, inside some common set of outer axes, the one's bytes end before the
 * other's begin, and the outer axes keep the pair as a whole from meeting its own copies.  No outer
 * axis: they lie in different parts of the allocation; all of them: they alternate head by head.
 * Neither span can overflow: each lattice lies inside its allocation.
 */
static bool lattices_apart(const struct lattice *a, const struct lattice *b)
{
	const struct lattice *low = a->off <= b->off ? a : b, *high = a->off <= b->off ? b : a;
	uint64_t gap = high->off - low->off;

	for (unsigned outer = 0; outer <= low->axes_count && outer <= high->axes_count; outer++) {
		unsigned i = low->axes_count - outer, j = high->axes_count - outer;
		uint64_t low_span, high_span, all;

		if (outer > 0 && (low->axes[i].count != high->axes[j].count ||
				  low->axes[i].stride != high->axes[j].stride))
			return false;
		if (span_repeat(low->item_bytes, low->axes, i, &low_span) < 0 ||
		    span_repeat(high->item_bytes, high->axes, j, &high_span) < 0)
			return false;
		if (gap >= low_span &&
		    span_repeat(gap + high_span, &low->axes[i], outer, &all) == 0)
			return true;
	}
	return false;
}

static int lattices_check(const struct lattice *l, uint32_t count)
{
	/* At most 1024 segments: half a million comparisons, once per registration. */
	for (uint32_t a = 0; a < count; a++)
		for (uint32_t b = a + 1; b < count; b++)
			if (!lattices_apart(&l[a], &l[b]))
				return -EINVAL;
	return 0;
}

/* What the allocations span together.  -EINVAL: one that is nothing; -ERANGE: beyond the address space. */
static int parts_span(const struct device_part *parts, uint32_t parts_count, uint8_t **ret_base,
		      uint64_t *ret_bytes)
{
	const struct device_part *low = &parts[0];
	uintptr_t end_max = 0;

	for (uint32_t i = 0; i < parts_count; i++) {
		uintptr_t end;

		if (!parts[i].base || parts[i].bytes == 0)
			return -EINVAL;
		if (__builtin_add_overflow((uintptr_t)parts[i].base, parts[i].bytes, &end))
			return -ERANGE;
		if (end > end_max)
			end_max = end;
		if ((uintptr_t)parts[i].base < (uintptr_t)low->base)
			low = &parts[i];
	}
	*ret_base = low->base;
	*ret_bytes = end_max - (uintptr_t)low->base;
	return 0;
}

int device_region_init_parts(struct device_region *r, const struct codec_geometry *geom,
			     const struct device_part *parts, uint32_t parts_count,
			     const uint32_t *segment_part, uint32_t blocks_count,
			     const struct codec_stride *stride, const uint64_t *block_stride)
{
	uint32_t n = geom->segments_count;
	struct device_region t = { .geom = geom, .blocks_count = blocks_count };
	struct lattice *lattices;
	int res;

	if (blocks_count == 0)
		return -EINVAL;
	res = parts_span(parts, parts_count, &t.base, &t.bytes);
	if (res < 0)
		return res;
	lattices = calloc(n, sizeof(*lattices));
	t.stride = malloc(n * sizeof(*t.stride));
	t.block_stride = malloc(n * sizeof(*t.block_stride));
	if (!lattices || !t.stride || !t.block_stride)
		res = -ENOMEM;
	for (uint32_t i = 0; i < n && res == 0; i++) {
		const struct device_part *part = &parts[segment_part[i]];
		uint64_t part_off = (uintptr_t)part->base - (uintptr_t)t.base;

		t.stride[i] = stride[i];
		t.block_stride[i] = block_stride[i];
		res = lattice_init(&lattices[i], &t, i, part_off, part->bytes);
		t.stride[i].off = lattices[i].off;
	}
	if (res == 0)
		res = lattices_check(lattices, n);
	free(lattices);
	if (res < 0) {
		device_region_deinit(&t);
		return res;
	}
	*r = t;
	return 0;
}

int device_region_init(struct device_region *r, const struct codec_geometry *geom, void *base,
		       uint64_t bytes, uint32_t blocks_count, const struct codec_stride *stride,
		       const uint64_t *block_stride)
{
	static const uint32_t all_in_one[CODEC_SEGMENTS_MAX];
	const struct device_part part = { .base = base, .bytes = bytes };

	return device_region_init_parts(r, geom, &part, 1, all_in_one, blocks_count, stride,
					block_stride);
}

void device_region_deinit(struct device_region *r)
{
	free(r->stride);
	free(r->block_stride);
	*r = (struct device_region){ 0 };
}
