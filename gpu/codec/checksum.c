/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checksum.c - see checksum.h.  The leaves, which are where the bytes are, come from the kernels.
 */
#include "gpu/codec/checksum.h"

#include <assert.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gpu/codec/internal.h"

size_t checksum_segment_leaves(const struct codec_geometry *g, uint32_t segment)
{
	return (codec_segment_bytes(g, segment) + CODEC_LEAF_BYTES - 1u) / CODEC_LEAF_BYTES;
}

size_t checksum_block_leaves(const struct codec_geometry *g)
{
	size_t n = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		n += checksum_segment_leaves(g, i);
	return n;
}

size_t checksum_root_bytes(const struct codec_geometry *g)
{
	size_t bytes = checksum_block_leaves(g) * sizeof(uint64_t);

	return (bytes + CHECKSUM_ROOT_ALIGN_BYTES - 1u) & ~(size_t)(CHECKSUM_ROOT_ALIGN_BYTES - 1u);
}

int checksum_start(struct codec_workspace *ws, const struct codec_geometry *g)
{
	ws->leaves_count = 0;
	return codec_workspace_grow((void **)&ws->leaves, &ws->leaves_cap, checksum_root_bytes(g));
}

void checksum_segment(struct codec_workspace *ws, const struct codec_geometry *g, uint32_t segment,
		      const uint8_t *raw)
{
	const struct codec_segment *s = &g->segments[segment];
	const struct codec_leaf_shape shape = {
		.tokens_count = g->block_tokens,
		.columns = codec_segment_columns(s),
		.element_bytes = codec_dtype_bytes(s->dtype),
		.coded = codec_segment_coded(s),
	};
	size_t n = checksum_segment_leaves(g, segment);

	assert((ws->leaves_count + n) * sizeof(uint64_t) <= ws->leaves_cap);
	codec_kernels_get()->leaves(&shape, raw, ws->leaves + ws->leaves_count);
	ws->leaves_count += n;
}

uint64_t checksum_root(const uint64_t *leaves, size_t root_bytes)
{
	return XXH3_64bits(leaves, root_bytes);
}

uint64_t checksum_end(struct codec_workspace *ws, const struct codec_geometry *g)
{
	size_t used = ws->leaves_count * sizeof(uint64_t), bytes = checksum_root_bytes(g);

	assert(ws->leaves_count == checksum_block_leaves(g));
	memset((uint8_t *)ws->leaves + used, 0, bytes - used);
	return checksum_root(ws->leaves, bytes);
}

int codec_checksum(struct codec_workspace *ws, const struct codec_geometry *g,
		   const struct codec_view *src, uint64_t *ret_sum)
{
	struct codec_slot *slot = &ws->slot[0];
	int r = checksum_start(ws, g);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < g->segments_count; i++) {
		r = codec_workspace_grow((void **)&slot->raw, &slot->raw_cap,
					 codec_segment_bytes(g, i));
		if (r < 0)
			return r;
		codec_gather(g, src, i, slot->raw);
		checksum_segment(ws, g, i, slot->raw);
	}
	*ret_sum = checksum_end(ws, g);
	return 0;
}
