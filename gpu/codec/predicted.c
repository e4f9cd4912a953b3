/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predicted.c - the share of a block that a speculator codes as a whole (`layer`), not chunk by chunk: made
 * before the container asks for the chunks, and read before it hands them out.
 */
#include "gpu/codec/internal.h"

#include <errno.h>
#include <string.h>

#include "gpu/codec/layer_code.h"

static uint64_t coded_bytes(const struct codec_geometry *g, uint64_t *ret_scalars)
{
	uint64_t bytes = 0;

	*ret_scalars = 0;
	for (uint32_t i = 0; i < g->segments_count; i++)
		if (codec_segment_coded(&g->segments[i])) {
			bytes += codec_segment_bytes(g, i);
			*ret_scalars += (uint64_t)g->block_tokens *
					codec_segment_columns(&g->segments[i]);
		}
	return bytes;
}

static int verify(struct codec_workspace *ws, const struct codec_geometry *g,
		  const struct layer_profile *p)
{
	int r = codec_workspace_grow((void **)&ws->check, &ws->check_cap, g->raw_bytes);

	if (r == 0)
		r = layer_decode(&ws->layer, g, p, ws->predicted, ws->predicted_bytes, ws->check);
	for (uint32_t i = 0; r == 0 && i < g->segments_count; i++)
		if (codec_segment_coded(&g->segments[i]) &&
		    memcmp(ws->check + g->segment_off[i], ws->block + g->segment_off[i],
			   codec_segment_bytes(g, i)) != 0)
			r = -EBADMSG;
	return r;
}

int codec_predicted_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			   const struct codec_profile *profile, unsigned flags, uint32_t position,
			   struct codec_info *info)
{
	struct residual_bits bits = { 0 };
	uint64_t escapes = 0, scalars, raw = coded_bytes(g, &scalars);
	int r = codec_workspace_grow((void **)&ws->predicted, &ws->predicted_cap, raw);

	if (r == 0)
		r = layer_encode(&ws->layer, g, profile->layer, position, ws->block, ws->predicted,
				 raw, &ws->predicted_bytes, &escapes, &bits);
	if (r == 0 && flags & CODEC_ENCODE_VERIFY)
		r = verify(ws, g, profile->layer);
	if (r == -ENOSPC || r == -EBADMSG)
		return CODEC_PREDICTED_NONE;
	if (r < 0)
		return r;
	info->escapes = (uint32_t)escapes;
	info->ideal_bits = bits.token + bits.raw + bits.tau;
	return (double)ws->predicted_bytes * 8 * 100 >
			       profile->layer->expected_bits * (double)scalars * LAYER_POOR_PERCENT
		       ? CODEC_PREDICTED_POOR
		       : CODEC_PREDICTED_GOOD;
}

int codec_predicted_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			   const struct codec_profile *profile, const uint8_t *in, size_t in_bytes)
{
	size_t off = sizeof(struct format_block_header) +
		     (size_t)g->chunks_count * sizeof(struct format_chunk_entry);
	struct format_chunk_entry e;
	int r = codec_workspace_grow((void **)&ws->block, &ws->block_cap, g->raw_bytes);

	for (uint32_t c = 0; r == 0 && c < g->chunks_count; c++) {
		size_t padded;

		memcpy(&e, in + sizeof(struct format_block_header) + c * sizeof(e), sizeof(e));
		padded = (e.payload_bytes + FORMAT_PAYLOAD_ALIGN - 1ull) &
			 ~(size_t)(FORMAT_PAYLOAD_ALIGN - 1u);
		if (padded > in_bytes - off)
			return -EBADMSG;
		if (e.method == FORMAT_METHOD_RESIDUAL)
			return layer_decode(&ws->layer, g, profile->layer, in + off,
					    e.payload_bytes, ws->block);
		off += padded;
	}
	return r < 0 ? r : -EBADMSG; /* none has it */
}
