/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_leaves.h - the leaves of the checksum, compiled into each kernel file, since the packaged xxHash
 * is built for the oldest processors: 10 GB/s where AVX2 does 35.  The values are the same.
 */
#ifndef SKVCD_GPU_CODEC_CPU_LEAVES_H
#define SKVCD_GPU_CODEC_CPU_LEAVES_H

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gpu/codec/internal.h"

/* A piece that is being put together. */
struct leaf_writer {
	uint64_t *next;
	size_t used;
	uint8_t piece[CODEC_LEAF_BYTES];
};

static inline uint64_t leaf_of(const uint8_t *piece)
{
	return XXH3_64bits(piece, CODEC_LEAF_BYTES);
}

static inline void leaf_write(struct leaf_writer *w, const uint8_t *from, size_t bytes)
{
	while (bytes > 0) {
		size_t n = CODEC_LEAF_BYTES - w->used;

		if (n > bytes)
			n = bytes;
		memcpy(w->piece + w->used, from, n);
		w->used += n;
		from += n;
		bytes -= n;
		if (w->used == CODEC_LEAF_BYTES) {
			*w->next++ = leaf_of(w->piece);
			w->used = 0;
		}
	}
}

static inline void leaf_finish(struct leaf_writer *w)
{
	if (w->used == 0)
		return;
	memset(w->piece + w->used, 0, CODEC_LEAF_BYTES - w->used);
	*w->next = leaf_of(w->piece);
}

/*
 * Whole rows, of a constant size that divides a piece: copies of a few instructions.  What does not fill
 * a piece stays in w.
 */
static inline __attribute__((always_inline)) void leaf_write_rows(struct leaf_writer *w,
								  const uint8_t *from,
								  size_t stride,
								  uint32_t rows_count,
								  size_t row_bytes)
{
	for (uint32_t t = 0; t < rows_count; t++) {
		memcpy(w->piece + w->used, from, row_bytes);
		from += stride;
		w->used += row_bytes;
		if (w->used == CODEC_LEAF_BYTES) {
			*w->next++ = leaf_of(w->piece);
			w->used = 0;
		}
	}
}

static inline void leaves_coded(const struct codec_leaf_shape *s, const uint8_t *raw,
				struct leaf_writer *w)
{
	size_t stride = (size_t)s->columns * s->element_bytes;
	uint32_t c = 0;

	for (; s->columns - c >= CODEC_LANES; c += CODEC_LANES)
		if (s->element_bytes == 2)
			leaf_write_rows(w, raw + c * 2u, stride, s->tokens_count, CODEC_LANES * 2u);
		else
			leaf_write_rows(w, raw + c, stride, s->tokens_count, CODEC_LANES);
	if (c == s->columns)
		return;
	for (uint32_t t = 0; t < s->tokens_count; t++)
		leaf_write(w, raw + t * stride + (size_t)c * s->element_bytes,
			   (size_t)(s->columns - c) * s->element_bytes);
}

static inline void leaves_compute(const struct codec_leaf_shape *s, const uint8_t *raw,
				  uint64_t *leaves)
{
	size_t bytes = (size_t)s->tokens_count * s->columns * s->element_bytes;
	struct leaf_writer w;

	w.next = leaves;
	w.used = 0;
	if (s->coded) {
		leaves_coded(s, raw, &w);
	} else {
		for (; bytes >= CODEC_LEAF_BYTES; bytes -= CODEC_LEAF_BYTES) {
			*w.next++ = leaf_of(raw);
			raw += CODEC_LEAF_BYTES;
		}
		leaf_write(&w, raw, bytes);
	}
	leaf_finish(&w);
}

#endif
