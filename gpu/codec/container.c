/* SPDX-License-Identifier: Apache-2.0 */
/*
 * container.c - a whole block: header, chunk index, chunk by chunk through the methods, checksum.
 *
 * Encode makes one private copy of each chunk and looks at the source no more.  Decode believes
 * nothing in the bytes it is given; the last word is the checksum of what it wrote.
 */
#include "gpu/codec/codec.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "gpu/codec/internal.h"

int codec_workspace_new(struct codec_workspace **ret_ws)
{
	struct codec_workspace *ws = calloc(1, sizeof(*ws));

	if (!ws)
		return -ENOMEM;
	ws->xxh3 = XXH3_createState();
	if (!ws->xxh3) {
		free(ws);
		return -ENOMEM;
	}
	*ret_ws = ws;
	return 0;
}

struct codec_workspace *codec_workspace_free(struct codec_workspace *ws)
{
	if (!ws)
		return NULL;
	free(ws->raw);
	free(ws->check);
	free(ws->tokens);
	free(ws->planes);
	free(ws->words);
	free(ws->coded);
	free(ws->split);
	ZSTD_freeCCtx(ws->zstd_c);
	ZSTD_freeDCtx(ws->zstd_d);
	XXH3_freeState(ws->xxh3);
	free(ws);
	return NULL;
}

int codec_workspace_grow(void **buf, size_t *cap, size_t bytes)
{
	size_t want = (bytes + 4095u) & ~(size_t)4095u;
	void *p;

	if (bytes <= *cap)
		return 0;
	p = aligned_alloc(64, want);
	if (!p)
		return -ENOMEM;
	free(*buf);
	*buf = p;
	*cap = want;
	return 0;
}

size_t codec_bound(const struct codec_geometry *g)
{
	/* Raw chunks, each padded. */
	return sizeof(struct format_block_header) + g->raw_bytes +
	       (size_t)g->chunks_count *
		       (sizeof(struct format_chunk_entry) + FORMAT_PAYLOAD_ALIGN - 1u);
}

static size_t padded(size_t bytes)
{
	return (bytes + FORMAT_PAYLOAD_ALIGN - 1u) & ~(size_t)(FORMAT_PAYLOAD_ALIGN - 1u);
}

static uint64_t chunk_scalars(const struct codec_geometry *g, uint32_t chunk)
{
	uint64_t n = 0;

	for (uint32_t i = g->chunk_first_segment[chunk]; i < g->chunk_first_segment[chunk + 1]; i++)
		n += (uint64_t)g->block_tokens * codec_segment_columns(&g->segments[i]);
	return n;
}

/* Decode one chunk's payload into canonical bytes. */
static int chunk_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, uint32_t chunk,
			const struct format_chunk_entry *e, const uint8_t *in, uint8_t *out)
{
	bool coded = codec_segment_coded(&g->segments[g->chunk_first_segment[chunk]]);

	if (e->method != FORMAT_METHOD_CHANNEL && e->escapes != 0)
		return -EBADMSG;
	switch (e->method) {
	case FORMAT_METHOD_RAW:
		if (e->payload_bytes != codec_chunk_bytes(g, chunk))
			return -EBADMSG;
		memcpy(out, in, e->payload_bytes);
		return 0;
	case FORMAT_METHOD_GENERIC:
		return codec_generic_decode(ws, g, chunk, in, e->payload_bytes, out);
	case FORMAT_METHOD_CHANNEL:
		if (!profile || !coded)
			return -EBADMSG;
		return codec_channel_decode(ws, g, profile, chunk, in, e->payload_bytes, e->escapes,
					    out);
	default:
		return -EBADMSG;
	}
}

/* The chunk's bytes, decoded from what is about to be stored, must be the copy they were made from. */
static int chunk_verify(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, uint32_t chunk,
			const struct format_chunk_entry *e, const uint8_t *stored)
{
	size_t bytes = codec_chunk_bytes(g, chunk);
	int r = codec_workspace_grow((void **)&ws->check, &ws->check_cap, bytes);

	if (r < 0)
		return r;
	r = chunk_decode(ws, g, profile, chunk, e, stored, ws->check);
	if (r == 0 && memcmp(ws->check, ws->raw, bytes) != 0)
		r = -EBADMSG;
	return r;
}

static int entry_store(const struct codec_workspace *ws, struct format_chunk_entry *e, size_t bytes,
		       uint8_t method, uint32_t escapes, uint8_t *out, size_t cap)
{
	const uint8_t *from = method == FORMAT_METHOD_RAW ? ws->raw : ws->coded;

	if (padded(bytes) > cap)
		return -ENOSPC;
	memcpy(out, from, bytes);
	memset(out + bytes, 0, padded(bytes) - bytes);
	*e = (struct format_chunk_entry){
		.payload_bytes = (uint32_t)bytes,
		.escapes = (uint16_t)escapes,
		.method = method,
	};
	return 0;
}

/*
 * Try the methods in order until one shrinks the chunk.  `generic` is asked after `channel` when many
 * scalars escaped, since then the data is not what the profile was made for, and may be trivial.
 */
static int chunk_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, uint8_t speculator, uint32_t chunk,
			struct format_chunk_entry *e, uint8_t *out, size_t cap)
{
	size_t raw = codec_chunk_bytes(g, chunk), best = raw, bytes;
	bool coded = codec_segment_coded(&g->segments[g->chunk_first_segment[chunk]]);
	uint32_t escapes = 0;
	int r;

	if (speculator == CODEC_SPEC_CHANNEL && coded) {
		r = codec_channel_encode(ws, g, profile, chunk, &bytes, &escapes);
		if (r < 0 && r != -E2BIG)
			return r;
		if (r == 0 && bytes < best && padded(bytes) <= cap) {
			r = entry_store(ws, e, bytes, FORMAT_METHOD_CHANNEL, escapes, out, cap);
			if (escapes <= chunk_scalars(g, chunk) / 64u)
				return r;
			best = bytes;
		}
	}
	if (speculator != CODEC_SPEC_RAW) {
		r = codec_generic_encode(ws, g, chunk, &bytes);
		if (r < 0 && r != -E2BIG)
			return r;
		if (r == 0 && bytes < best && padded(bytes) <= cap) {
			best = bytes;
			(void)entry_store(ws, e, bytes, FORMAT_METHOD_GENERIC, 0, out, cap);
		}
	}
	if (best < raw)
		return 0;
	return entry_store(ws, e, raw, FORMAT_METHOD_RAW, 0, out, cap);
}

/* One private copy, in canonical order; everything after works on it. */
static int chunk_copy(struct codec_workspace *ws, const struct codec_geometry *g, uint32_t chunk,
		      const struct codec_view *src)
{
	uint32_t first = g->chunk_first_segment[chunk], end = g->chunk_first_segment[chunk + 1];
	size_t bytes = codec_chunk_bytes(g, chunk), off = 0;
	int r = codec_workspace_grow((void **)&ws->raw, &ws->raw_cap, bytes);

	if (r < 0)
		return r;
	for (uint32_t i = first; i < end; i++) {
		codec_gather(g, src, i, ws->raw + off);
		off += codec_segment_bytes(g, i);
	}
	assert(off == bytes);
	XXH3_64bits_update(ws->xxh3, ws->raw, bytes);
	return 0;
}

static void header_fill(struct format_block_header *h, const struct codec_geometry *g,
			const struct codec_profile *profile, uint8_t speculator)
{
	*h = (struct format_block_header){
		.magic = FORMAT_BLOCK_MAGIC,
		.version = FORMAT_BLOCK_VERSION,
		.speculator = speculator,
		.chunks_count = g->chunks_count,
		.raw_bytes = g->raw_bytes,
	};
	if (speculator == CODEC_SPEC_CHANNEL)
		memcpy(h->profile_digest, profile->digest, FORMAT_DIGEST_PREFIX_BYTES);
	memcpy(h->geometry_digest, g->digest, FORMAT_DIGEST_PREFIX_BYTES);
}

static int blocks_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			 const struct codec_profile *profile, uint8_t speculator, unsigned flags,
			 const struct codec_view *src, uint8_t *out, size_t cap,
			 struct codec_info *info)
{
	size_t index = sizeof(struct format_block_header), used = info->encoded_bytes;

	for (uint32_t c = 0; c < g->chunks_count; c++) {
		struct format_chunk_entry e;
		int r = chunk_copy(ws, g, c, src);

		if (r == 0)
			r = chunk_encode(ws, g, profile, speculator, c, &e, out + used, cap - used);
		if (r == 0 && (flags & CODEC_ENCODE_VERIFY) && e.method != FORMAT_METHOD_RAW) {
			r = chunk_verify(ws, g, profile, c, &e, out + used);
			if (r == -EBADMSG)
				r = entry_store(ws, &e, codec_chunk_bytes(g, c),
						FORMAT_METHOD_RAW, 0, out + used, cap - used);
		}
		if (r < 0)
			return r;
		memcpy(out + index, &e, sizeof(e));
		index += sizeof(e);
		used += padded(e.payload_bytes);
		info->escapes += e.escapes;
		info->chunks_raw += e.method == FORMAT_METHOD_RAW;
	}
	info->encoded_bytes = used;
	return 0;
}

int codec_encode(struct codec_workspace *ws, const struct codec_geometry *g,
		 const struct codec_profile *profile, uint8_t speculator, unsigned flags,
		 const struct codec_view *src, void *out, size_t cap, struct codec_info *ret_info)
{
	struct format_block_header h;
	struct codec_info info = { 0 };
	int r;

	if (speculator > CODEC_SPEC_CHANNEL)
		return -EINVAL;
	if (speculator == CODEC_SPEC_CHANNEL &&
	    (!profile || memcmp(profile->geometry_digest, g->digest, CODEC_DIGEST_BYTES) != 0))
		speculator = CODEC_SPEC_GENERIC;
	info.encoded_bytes = sizeof(h) + (size_t)g->chunks_count * sizeof(struct format_chunk_entry);
	if (cap < info.encoded_bytes)
		return -ENOSPC;
	XXH3_64bits_reset(ws->xxh3);
	r = blocks_encode(ws, g, profile, speculator, flags, src, out, cap, &info);
	if (r < 0)
		return r;
	header_fill(&h, g, profile, speculator);
	h.encoded_bytes = (uint32_t)info.encoded_bytes;
	h.raw_xxh3 = XXH3_64bits_digest(ws->xxh3);
	memcpy(out, &h, sizeof(h));
	info.raw_xxh3 = h.raw_xxh3;
	info.speculator = speculator;
	*ret_info = info;
	return 0;
}

static int header_check(const struct codec_geometry *g, const struct codec_profile *profile,
			const struct format_block_header *h, size_t in_bytes)
{
	static const uint8_t zero[FORMAT_DIGEST_PREFIX_BYTES];

	if (h->magic != FORMAT_BLOCK_MAGIC || h->version != FORMAT_BLOCK_VERSION || h->reserved != 0)
		return -EBADMSG;
	if (h->speculator > CODEC_SPEC_CHANNEL || h->encoded_bytes != in_bytes)
		return -EBADMSG;
	if (memcmp(h->geometry_digest, g->digest, FORMAT_DIGEST_PREFIX_BYTES) != 0)
		return -ESTALE;
	if (h->chunks_count != g->chunks_count || h->raw_bytes != g->raw_bytes)
		return -EBADMSG;
	if (h->speculator != CODEC_SPEC_CHANNEL)
		return memcmp(h->profile_digest, zero, sizeof(zero)) == 0 ? 0 : -EBADMSG;
	if (!profile || memcmp(h->profile_digest, profile->digest, FORMAT_DIGEST_PREFIX_BYTES) != 0 ||
	    memcmp(profile->geometry_digest, g->digest, CODEC_DIGEST_BYTES) != 0)
		return -ESTALE;
	return 0;
}

/* Take the next payload off the input.  Returns 0 or -EBADMSG. */
static int payload_take(const uint8_t *in, size_t in_bytes, size_t *off,
			const struct format_chunk_entry *e, const uint8_t **ret_payload)
{
	size_t bytes = e->payload_bytes, end = padded(bytes);

	if (e->reserved != 0 || end > in_bytes - *off)
		return -EBADMSG;
	for (size_t i = bytes; i < end; i++)
		if (in[*off + i] != 0)
			return -EBADMSG;
	*ret_payload = in + *off;
	*off += end;
	return 0;
}

static int blocks_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			 const struct codec_profile *profile, const uint8_t *in, size_t in_bytes,
			 const struct codec_view *dst, uint32_t skip_tokens,
			 _Atomic(uint32_t) *segments_done)
{
	size_t index = sizeof(struct format_block_header);
	size_t off = index + (size_t)g->chunks_count * sizeof(struct format_chunk_entry);

	for (uint32_t c = 0; c < g->chunks_count; c++) {
		size_t bytes = codec_chunk_bytes(g, c);
		struct format_chunk_entry e;
		const uint8_t *payload;
		uint8_t *from;
		int r;

		memcpy(&e, in + index, sizeof(e));
		index += sizeof(e);
		r = payload_take(in, in_bytes, &off, &e, &payload);
		if (r == 0)
			r = codec_workspace_grow((void **)&ws->check, &ws->check_cap, bytes);
		if (r == 0)
			r = chunk_decode(ws, g, profile, c, &e, payload, ws->check);
		if (r < 0)
			return r;
		XXH3_64bits_update(ws->xxh3, ws->check, bytes);
		from = ws->check;
		for (uint32_t i = g->chunk_first_segment[c]; i < g->chunk_first_segment[c + 1]; i++) {
			codec_scatter(g, dst, i, skip_tokens, from);
			from += codec_segment_bytes(g, i);
		}
		if (segments_done)
			atomic_store_explicit(segments_done, g->chunk_first_segment[c + 1],
					      memory_order_release);
	}
	return off == in_bytes ? 0 : -EBADMSG;
}

int codec_decode_from(struct codec_workspace *ws, const struct codec_geometry *g,
		      const struct codec_profile *profile, const void *in, size_t in_bytes,
		      const uint64_t *expect_xxh3, const struct codec_view *dst,
		      uint32_t skip_tokens, _Atomic(uint32_t) *segments_done)
{
	struct format_block_header h;
	uint64_t sum;
	int r;

	if (skip_tokens > g->block_tokens)
		return -EINVAL;
	if (in_bytes < sizeof(h) + (size_t)g->chunks_count * sizeof(struct format_chunk_entry))
		return -EBADMSG;
	memcpy(&h, in, sizeof(h));
	r = header_check(g, profile, &h, in_bytes);
	if (r < 0)
		return r;
	if (expect_xxh3 && *expect_xxh3 != h.raw_xxh3)
		return -EBADMSG;
	if (h.speculator != CODEC_SPEC_CHANNEL)
		profile = NULL;				/* its digest was not compared */
	XXH3_64bits_reset(ws->xxh3);
	r = blocks_decode(ws, g, profile, in, in_bytes, dst, skip_tokens, segments_done);
	if (r < 0)
		return r;
	sum = XXH3_64bits_digest(ws->xxh3);
	return sum == h.raw_xxh3 ? 0 : -EBADMSG;
}

int codec_decode(struct codec_workspace *ws, const struct codec_geometry *g,
		 const struct codec_profile *profile, const void *in, size_t in_bytes,
		 const uint64_t *expect_xxh3, const struct codec_view *dst)
{
	return codec_decode_from(ws, g, profile, in, in_bytes, expect_xxh3, dst, 0, NULL);
}
