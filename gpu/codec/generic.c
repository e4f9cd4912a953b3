/* SPDX-License-Identifier: Apache-2.0 */
/*
 * generic.c - a chunk as byte planes under zstd: for segments of unknown meaning, for namespaces
 * without a profile yet, and for chunks that `channel` makes larger (a page of zeros, say).
 *
 * Runs on the caller's thread with the caller's workspace.  zstd checks its own input; the sizes that
 * must come out are known from the geometry.
 */
#include "gpu/codec/internal.h"

#include <errno.h>
#include <string.h>
#include <zstd.h>

#define GENERIC_LEVEL 1

/* High bytes of two-byte elements; all other bytes are low. */
static size_t chunk_high_bytes(const struct codec_geometry *g, uint32_t chunk)
{
	size_t high = 0;

	for (uint32_t i = g->chunk_first_segment[chunk]; i < g->chunk_first_segment[chunk + 1]; i++)
		if (codec_dtype_bytes(g->segments[i].dtype) == 2)
			high += codec_segment_bytes(g, i) / 2u;
	return high;
}

static void planes_split(const struct codec_geometry *g, uint32_t chunk, const uint8_t *raw,
			 uint8_t *low, uint8_t *high)
{
	for (uint32_t i = g->chunk_first_segment[chunk]; i < g->chunk_first_segment[chunk + 1];
	     i++) {
		size_t bytes = codec_segment_bytes(g, i);

		if (codec_dtype_bytes(g->segments[i].dtype) == 1) {
			memcpy(low, raw, bytes);
			low += bytes;
		} else {
			for (size_t j = 0; j < bytes / 2u; j++) {
				low[j] = raw[2u * j];
				high[j] = raw[2u * j + 1u];
			}
			low += bytes / 2u;
			high += bytes / 2u;
		}
		raw += bytes;
	}
}

static void planes_join(const struct codec_geometry *g, uint32_t chunk, const uint8_t *low,
			const uint8_t *high, uint8_t *raw)
{
	for (uint32_t i = g->chunk_first_segment[chunk]; i < g->chunk_first_segment[chunk + 1];
	     i++) {
		size_t bytes = codec_segment_bytes(g, i);

		if (codec_dtype_bytes(g->segments[i].dtype) == 1) {
			memcpy(raw, low, bytes);
			low += bytes;
		} else {
			for (size_t j = 0; j < bytes / 2u; j++) {
				raw[2u * j] = low[j];
				raw[2u * j + 1u] = high[j];
			}
			low += bytes / 2u;
			high += bytes / 2u;
		}
		raw += bytes;
	}
}

/* -E2BIG: zstd refuses, keep the chunk some other way. */
int codec_generic_encode(struct codec_workspace *ws, const struct codec_slot *slot,
			 const struct codec_geometry *g, uint32_t chunk, size_t *ret_bytes)
{
	size_t bytes = codec_chunk_bytes(g, chunk), high = chunk_high_bytes(g, chunk);
	size_t low = bytes - high, n, cap = 4u + ZSTD_compressBound(low) + ZSTD_compressBound(high);
	uint32_t first;
	int r = codec_workspace_grow((void **)&ws->split, &ws->split_cap, bytes);

	if (r == 0)
		r = codec_workspace_grow((void **)&ws->coded, &ws->coded_cap, cap);
	if (r < 0)
		return r;
	if (!ws->zstd_c) {
		ws->zstd_c = ZSTD_createCCtx();
		if (!ws->zstd_c)
			return -ENOMEM;
		(void)ZSTD_CCtx_setParameter(ws->zstd_c, ZSTD_c_compressionLevel, GENERIC_LEVEL);
		(void)ZSTD_CCtx_setParameter(ws->zstd_c, ZSTD_c_contentSizeFlag, 0);
		(void)ZSTD_CCtx_setParameter(ws->zstd_c, ZSTD_c_checksumFlag, 0);
	}
	planes_split(g, chunk, slot->raw, ws->split, ws->split + low);
	n = ZSTD_compress2(ws->zstd_c, ws->coded + 4, cap - 4u, ws->split, low);
	if (ZSTD_isError(n))
		return -E2BIG;
	first = (uint32_t)n;
	memcpy(ws->coded, &first, 4);
	*ret_bytes = 4u + n;
	if (high == 0)
		return 0;
	n = ZSTD_compress2(ws->zstd_c, ws->coded + 4 + first, cap - 4u - first, ws->split + low,
			   high);
	if (ZSTD_isError(n))
		return -E2BIG;
	*ret_bytes += n;
	return 0;
}

int codec_generic_decode(struct codec_workspace *ws, const struct codec_geometry *g, uint32_t chunk,
			 const uint8_t *in, size_t in_bytes, uint8_t *out)
{
	size_t bytes = codec_chunk_bytes(g, chunk), high = chunk_high_bytes(g, chunk);
	size_t low = bytes - high, n;
	uint32_t first;
	int r = codec_workspace_grow((void **)&ws->split, &ws->split_cap, bytes);

	if (r < 0)
		return r;
	if (!ws->zstd_d) {
		ws->zstd_d = ZSTD_createDCtx();
		if (!ws->zstd_d)
			return -ENOMEM;
	}
	if (in_bytes < 4)
		return -EBADMSG;
	memcpy(&first, in, 4);
	if (first > in_bytes - 4u || (high == 0 && first != in_bytes - 4u))
		return -EBADMSG;
	n = ZSTD_decompressDCtx(ws->zstd_d, ws->split, low, in + 4, first);
	if (ZSTD_isError(n) || n != low)
		return -EBADMSG;
	if (high > 0) {
		n = ZSTD_decompressDCtx(ws->zstd_d, ws->split + low, high, in + 4 + first,
					in_bytes - 4u - first);
		if (ZSTD_isError(n) || n != high)
			return -EBADMSG;
	}
	planes_join(g, chunk, ws->split, ws->split + low, out);
	return 0;
}
