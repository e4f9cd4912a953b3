/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_planes.c - a block as all its low bytes and all its high bytes: what zstd, the yardstick of
 * skvc-bench codec, is given.
 */
#include "tools/bench_codec.h"

#include <string.h>

/* Segment by segment: low bytes to the front half, high bytes to the back half. */
size_t bench_planes_split(const struct codec_geometry *g, const uint8_t *raw, uint8_t *low,
			  uint8_t *high)
{
	size_t n = 0, off = 0, h = 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		size_t scalars = (size_t)s->heads * s->head_dim * g->block_tokens;

		if (codec_dtype_bytes(s->dtype) == 1) {
			memcpy(low + n, raw + off, scalars);
			off += scalars;
		} else {
			for (size_t j = 0; j < scalars; j++) {
				low[n + j] = raw[off + 2u * j];
				high[h + j] = raw[off + 2u * j + 1u];
			}
			off += 2u * scalars;
			h += scalars;
		}
		n += scalars;
	}
	return h;
}

size_t bench_planes_join(const struct codec_geometry *g, uint8_t *raw, const uint8_t *low,
			 const uint8_t *high)
{
	size_t n = 0, off = 0, h = 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		size_t scalars = (size_t)s->heads * s->head_dim * g->block_tokens;

		if (codec_dtype_bytes(s->dtype) == 1) {
			memcpy(raw + off, low + n, scalars);
			off += scalars;
		} else {
			for (size_t j = 0; j < scalars; j++) {
				raw[off + 2u * j] = low[n + j];
				raw[off + 2u * j + 1u] = high[h + j];
			}
			off += 2u * scalars;
			h += scalars;
		}
		n += scalars;
	}
	return off;
}
