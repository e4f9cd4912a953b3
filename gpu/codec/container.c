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
#include <zstd.h>

#include "gpu/codec/checksum.h"
#include "gpu/codec/internal.h"
#include "gpu/codec/layer_code.h"
#include "gpu/codec/model_profile.h"
#include "gpu/codec/sequence.h"

int codec_workspace_new(struct codec_workspace **ret_ws)
{
	struct codec_workspace *ws = calloc(1, sizeof(*ws));

	if (!ws)
		return -ENOMEM;
	*ret_ws = ws;
	return 0;
}

struct codec_workspace *codec_workspace_free(struct codec_workspace *ws)
{
	if (!ws)
		return NULL;
	for (unsigned i = 0; i < CODEC_STREAMS_MAX; i++) {
		free(ws->slot[i].raw);
		free(ws->slot[i].tokens);
		free(ws->slot[i].low);
	}
	free(ws->words);
	free(ws->coded);
	free(ws->split);
	free(ws->check);
	free(ws->leaves);
	free(ws->block);
	free(ws->predicted);
	free(ws->kept);
	ws->layer = layer_workspace_free(ws->layer);
	ZSTD_freeCCtx(ws->zstd_c);
	ZSTD_freeDCtx(ws->zstd_d);
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

static uint64_t chunk_scalars(const struct codec_geometry *g, uint32_t chunk)
{
	uint64_t n = 0;

	for (uint32_t i = g->chunk_first_segment[chunk]; i < g->chunk_first_segment[chunk + 1]; i++)
		n += (uint64_t)g->block_tokens * codec_segment_columns(&g->segments[i]);
	return n;
}

/* A chunk on its way through the codec; a batch of them shares the decoder. */
struct job {
	uint32_t chunk;
	struct format_chunk_entry e;
	const uint8_t *payload;	 /* borrowed: e.payload_bytes, in bounds */
	uint8_t *out;		 /* borrowed: the chunk's canonical bytes */
	struct codec_slot *slot; /* borrowed: tokens and low are free for use */
	uint32_t escapes;	 /* encoding with `channel`: scalars */
	int res;
};

/* All that a job needs before the decoder, or the whole of it.  Returns 1 when stream waits for it. */
static int job_begin(struct codec_workspace *ws, const struct codec_geometry *g,
		     const struct codec_profile *profile, struct job *j,
		     struct codec_stream *stream)
{
	const struct format_chunk_entry *e = &j->e;
	bool coded = codec_segment_coded(&g->segments[g->chunk_first_segment[j->chunk]]);

	if (e->method != FORMAT_METHOD_CHANNEL && e->escape_bytes != 0)
		return -EBADMSG;
	if (ws->predicted_all && coded && e->method != FORMAT_METHOD_RESIDUAL)
		return -EBADMSG;
	switch (e->method) {
	case FORMAT_METHOD_RAW:
		if (e->payload_bytes != codec_chunk_bytes(g, j->chunk))
			return -EBADMSG;
		memcpy(j->out, j->payload, e->payload_bytes);
		return 0;
	case FORMAT_METHOD_GENERIC:
		return codec_generic_decode(ws, g, j->chunk, j->payload, e->payload_bytes, j->out);
	case FORMAT_METHOD_CHANNEL: {
		int r;

		if (!profile || !coded)
			return -EBADMSG;
		r = codec_channel_open(j->slot, g, profile, j->chunk, j->payload, e->payload_bytes,
				       e->escape_bytes, stream);
		return r < 0 ? r : 1;
	}
	case FORMAT_METHOD_RESIDUAL:
		if (!ws->predicted_ready || !coded || (e->payload_bytes && ws->predicted_stored))
			return -EBADMSG;
		ws->predicted_stored |= e->payload_bytes != 0;
		memcpy(j->out, ws->block + g->segment_off[g->chunk_first_segment[j->chunk]],
		       codec_chunk_bytes(g, j->chunk));
		return 0;
	default:
		return -EBADMSG;
	}
}

/* Decode a batch; each job's res says how it went. */
static void jobs_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, struct job *jobs, unsigned jobs_count)
{
	struct codec_stream streams[CODEC_STREAMS_MAX];
	struct job *waiting[CODEC_STREAMS_MAX];
	unsigned n = 0;

	assert(jobs_count <= CODEC_STREAMS_MAX);
	for (unsigned i = 0; i < jobs_count; i++) {
		jobs[i].res = job_begin(ws, g, profile, &jobs[i], &streams[n]);
		if (jobs[i].res > 0)
			waiting[n++] = &jobs[i];
	}
	if (n > 0)
		codec_kernels_get()->decode(profile, streams, n);
	for (unsigned i = 0; i < n; i++)
		waiting[i]->res = codec_channel_close(waiting[i]->slot, g, profile,
						      waiting[i]->chunk, waiting[i]->e.escape_bytes,
						      &streams[i], waiting[i]->out);
}

static int entry_store(const uint8_t *from, struct format_chunk_entry *e, size_t bytes,
		       uint8_t method, uint32_t escape_bytes, uint8_t *out, size_t cap)
{
	if (format_padded(bytes) > cap)
		return -ENOSPC;
	memcpy(out, from, bytes);
	memset(out + bytes, 0, format_padded(bytes) - bytes);
	*e = (struct format_chunk_entry){
		.payload_bytes = (uint32_t)bytes,
		.escape_bytes = (uint16_t)escape_bytes,
		.method = method,
	};
	return 0;
}

/*
 * Try the methods in order until one shrinks the chunk in slot->raw.  `generic` is asked after `channel`
 * when many scalars escaped, since then the data is not what the profile was made for, and may be
 * trivial.
 */
static int chunk_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, uint8_t speculator, struct job *j,
			uint8_t *out, size_t cap)
{
	uint32_t chunk = j->chunk, escape_bytes = 0;
	size_t raw = codec_chunk_bytes(g, chunk), best = raw, bytes;
	bool coded = codec_segment_coded(&g->segments[g->chunk_first_segment[chunk]]);
	int r;

	j->escapes = 0;
	if (speculator >= CODEC_SPEC_LAYER && coded) {
		bytes = ws->predicted_stored ? 0 : ws->predicted_bytes;
		ws->predicted_stored = true;
		return entry_store(ws->predicted, &j->e, bytes, FORMAT_METHOD_RESIDUAL, 0, out,
				   cap);
	}
	if (speculator == CODEC_SPEC_CHANNEL && coded) {
		r = codec_channel_encode(ws, j->slot, g, profile, chunk, &bytes, &j->escapes,
					 &escape_bytes);
		if (r < 0 && r != -E2BIG)
			return r;
		if (r == 0 && bytes < best && format_padded(bytes) <= cap) {
			r = entry_store(ws->coded, &j->e, bytes, FORMAT_METHOD_CHANNEL,
					escape_bytes, out, cap);
			if (j->escapes <= chunk_scalars(g, chunk) / 64u)
				return r;
			best = bytes;
		}
	}
	if (speculator != CODEC_SPEC_RAW) {
		r = codec_generic_encode(ws, j->slot, g, chunk, &bytes);
		if (r < 0 && r != -E2BIG)
			return r;
		if (r == 0 && bytes < best && format_padded(bytes) <= cap) {
			best = bytes;
			(void)entry_store(ws->coded, &j->e, bytes, FORMAT_METHOD_GENERIC, 0, out,
					  cap);
		}
	}
	if (best < raw)
		return 0;
	return entry_store(j->slot->raw, &j->e, raw, FORMAT_METHOD_RAW, 0, out, cap);
}

/* One private copy, in canonical order; everything after works on it. */
static int chunk_copy(struct codec_workspace *ws, struct codec_slot *slot,
		      const struct codec_geometry *g, uint32_t chunk, const struct codec_view *src)
{
	uint32_t first = g->chunk_first_segment[chunk], end = g->chunk_first_segment[chunk + 1];
	size_t bytes = codec_chunk_bytes(g, chunk), off = 0;
	int r = codec_workspace_grow((void **)&slot->raw, &slot->raw_cap, bytes);

	if (r < 0)
		return r;
	for (uint32_t i = first; i < end; i++) {
		codec_gather(g, src, i, slot->raw + off);
		checksum_segment(ws, g, i, slot->raw + off);
		off += codec_segment_bytes(g, i);
	}
	assert(off == bytes);
	return 0;
}

void codec_header_fill(struct format_block_header *h, const struct codec_geometry *g,
		       const struct codec_profile *profile, uint8_t speculator)
{
	*h = (struct format_block_header){
		.magic = FORMAT_BLOCK_MAGIC,
		.version = FORMAT_BLOCK_VERSION,
		.speculator = speculator,
		.chunks_count = g->chunks_count,
		.raw_bytes = g->raw_bytes,
	};
	if (speculator >= CODEC_SPEC_CHANNEL)
		memcpy(h->profile_digest, profile->digest, FORMAT_DIGEST_PREFIX_BYTES);
	memcpy(h->geometry_digest, g->digest, FORMAT_DIGEST_PREFIX_BYTES);
}

/* Where a batch of payloads is being written. */
struct output {
	uint8_t *bytes;
	size_t used;
	size_t cap;
};

/* Keep the job's chunk raw after all; payloads behind it move up. */
static int job_keep_raw(const struct codec_geometry *g, struct job *j, struct job *behind,
			unsigned behind_count, struct output *o)
{
	size_t raw = codec_chunk_bytes(g, j->chunk);
	size_t at = (size_t)(j->payload - o->bytes), next = at + format_padded(j->e.payload_bytes);
	size_t grow = format_padded(raw) - (next - at);

	assert(raw > j->e.payload_bytes && o->used >= next);
	if (grow > o->cap - o->used)
		return -ENOSPC;
	memmove(o->bytes + next + grow, o->bytes + next, o->used - next);
	o->used += grow;
	for (unsigned i = 0; i < behind_count; i++)
		behind[i].payload += grow;
	return entry_store(j->slot->raw, &j->e, raw, FORMAT_METHOD_RAW, 0, o->bytes + at,
			   format_padded(raw));
}

/* Decode a batch from what is about to be stored; it must give the copies that it was made from. */
static int jobs_verify(struct codec_workspace *ws, const struct codec_geometry *g,
		       const struct codec_profile *profile, struct job *jobs, unsigned jobs_count,
		       struct output *o)
{
	size_t bytes = 0;
	int r;

	for (unsigned i = 0; i < jobs_count; i++)
		bytes += codec_chunk_bytes(g, jobs[i].chunk);
	r = codec_workspace_grow((void **)&ws->check, &ws->check_cap, bytes);
	if (r < 0)
		return r;
	bytes = 0;
	for (unsigned i = 0; i < jobs_count; i++) {
		jobs[i].out = ws->check + bytes;
		bytes += codec_chunk_bytes(g, jobs[i].chunk);
	}
	jobs_decode(ws, g, profile, jobs, jobs_count);
	for (unsigned i = 0; i < jobs_count; i++) {
		struct job *j = &jobs[i];

		if (j->res < 0 && j->res != -EBADMSG)
			return j->res;
		if (j->res == 0 &&
		    memcmp(j->out, j->slot->raw, codec_chunk_bytes(g, j->chunk)) == 0)
			continue;
		r = job_keep_raw(g, j, j + 1, jobs_count - i - 1u, o);
		if (r < 0)
			return r;
	}
	return 0;
}

static int batch_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, uint8_t speculator, unsigned flags,
			const struct codec_view *src, struct job *jobs, unsigned jobs_count,
			struct output *o)
{
	for (unsigned i = 0; i < jobs_count; i++) {
		struct job *j = &jobs[i];
		int r = chunk_copy(ws, j->slot, g, j->chunk, src);

		if (r == 0)
			r = chunk_encode(ws, g, profile, speculator, j, o->bytes + o->used,
					 o->cap - o->used);
		if (r < 0)
			return r;
		j->payload = o->bytes + o->used;
		o->used += format_padded(j->e.payload_bytes);
	}
	if (!(flags & CODEC_ENCODE_VERIFY) || speculator >= CODEC_SPEC_LAYER)
		return 0; /* predicted.c has verified its own; the rest is `generic`, with a checksum */
	return jobs_verify(ws, g, profile, jobs, jobs_count, o);
}

static int blocks_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			 const struct codec_profile *profile, uint8_t speculator, unsigned flags,
			 const struct codec_view *src, uint8_t *out, size_t cap,
			 struct codec_info *info)
{
	struct output o = { .bytes = out, .used = info->encoded_bytes, .cap = cap };
	size_t index = sizeof(struct format_block_header);

	for (uint32_t c = 0; c < g->chunks_count;) {
		struct job jobs[CODEC_STREAMS_MAX];
		unsigned n = 0;
		int r;

		for (; n < CODEC_STREAMS_MAX && c < g->chunks_count; n++, c++)
			jobs[n] = (struct job){ .chunk = c, .slot = &ws->slot[n] };
		r = batch_encode(ws, g, profile, speculator, flags, src, jobs, n, &o);
		if (r < 0)
			return r;
		for (unsigned i = 0; i < n; i++) {
			memcpy(out + index, &jobs[i].e, sizeof(jobs[i].e));
			index += sizeof(jobs[i].e);
			if (jobs[i].e.method == FORMAT_METHOD_CHANNEL)
				info->escapes += jobs[i].escapes;
			info->chunks_raw += jobs[i].e.method == FORMAT_METHOD_RAW;
		}
	}
	info->encoded_bytes = o.used;
	return 0;
}

/* All of a block from src, by one speculator, which the profile can do. */
static int block_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, uint8_t speculator, unsigned flags,
			const struct codec_view *src, void *out, size_t cap,
			struct codec_info *ret_info)
{
	struct codec_info info = { .speculator = speculator };
	struct format_block_header h;
	int r = checksum_start(ws, g);

	info.encoded_bytes = sizeof(h) +
			     (size_t)g->chunks_count * sizeof(struct format_chunk_entry);
	if (cap < info.encoded_bytes)
		return -ENOSPC;
	ws->predicted_all = false;
	ws->predicted_ready = speculator >= CODEC_SPEC_LAYER;
	ws->predicted_stored = false;
	if (r == 0)
		r = blocks_encode(ws, g, profile, speculator, flags, src, out, cap, &info);
	if (r < 0)
		return r;
	codec_header_fill(&h, g, profile, speculator);
	h.encoded_bytes = (uint32_t)info.encoded_bytes;
	h.raw_xxh3 = checksum_end(ws, g);
	memcpy(out, &h, sizeof(h));
	info.raw_xxh3 = h.raw_xxh3;
	*ret_info = info;
	return 0;
}

/* From one private copy in ws->block: a predicted one where it is good, CHANNEL where that is smaller. */
static int predicted_or_channel(struct codec_workspace *ws, const struct codec_geometry *g,
				const struct codec_profile *profile, uint8_t speculator,
				unsigned flags, const struct codec_view *copy, void *out,
				size_t cap, struct codec_info *ret_info)
{
	struct codec_info predicted = { 0 }, info;
	int verdict = codec_predicted_encode(ws, g, profile, speculator, flags, copy, &predicted);
	int r;

	if (verdict < 0)
		return verdict;
	if (verdict != CODEC_PREDICTED_GOOD) {
		r = block_encode(ws, g, profile, CODEC_SPEC_CHANNEL, flags, copy, out, cap, &info);
		if (r < 0 || verdict == CODEC_PREDICTED_NONE ||
		    info.encoded_bytes <= ws->predicted_bytes) {
			*ret_info = info;
			return r;
		}
	}
	r = block_encode(ws, g, profile, predicted.speculator, flags, copy, out, cap, &info);
	if (r < 0)
		return r;
	info.escapes += predicted.escapes;
	info.ideal_bits = predicted.ideal_bits;
	*ret_info = info;
	return 0;
}

/* Leaves what it coded in ws->block when it did so by prediction, or there is a sequence to append it to. */
static int encode(struct codec_workspace *ws, const struct codec_geometry *g,
		  const struct codec_profile *profile, uint8_t speculator, unsigned flags,
		  const struct codec_view *src, void *out, size_t cap, struct codec_info *ret_info)
{
	struct codec_view copy = { .position = src->position,
				   .sequence = src->sequence,
				   .tokens = src->tokens,
				   .made = src->made };
	int r;

	while (speculator >= CODEC_SPEC_LAYER && !codec_predicted_can(profile, speculator, src))
		speculator--;
	if (speculator < CODEC_SPEC_LAYER && !src->sequence)
		return block_encode(ws, g, profile, speculator, flags, src, out, cap, ret_info);
	r = codec_workspace_grow((void **)&ws->block, &ws->block_cap, g->raw_bytes);
	if (r < 0)
		return r;
	codec_copy_out(g, src, ws->block);
	copy.base = ws->block;
	if (speculator < CODEC_SPEC_LAYER)
		return block_encode(ws, g, profile, speculator, flags, &copy, out, cap, ret_info);
	return predicted_or_channel(ws, g, profile, speculator, flags, &copy, out, cap, ret_info);
}

/* After a call that came to r: the block in ws->block belongs to the sequence, or nothing has happened. */
static int sequence_settle(struct codec_workspace *ws, const struct codec_view *v, uint32_t before,
			   int r)
{
	struct codec_sequence *s = v->sequence;

	if (r == 0 && codec_sequence_position(s) == before)
		r = sequence_append_raw(s, ws->block, v->tokens);
	if (r < 0) {
		int back = codec_sequence_truncate(s, before);

		assert(back == 0);
		(void)back;
	}
	return r;
}

int codec_encode(struct codec_workspace *ws, const struct codec_geometry *g,
		 const struct codec_profile *profile, uint8_t speculator, unsigned flags,
		 const struct codec_view *src, void *out, size_t cap, struct codec_info *ret_info)
{
	uint32_t before;
	int r;

	if (speculator > CODEC_SPEC_MODEL)
		return -EINVAL;
	if (speculator >= CODEC_SPEC_CHANNEL &&
	    (!profile || memcmp(profile->geometry_digest, g->digest, CODEC_DIGEST_BYTES) != 0))
		speculator = CODEC_SPEC_GENERIC;
	if (!src->sequence)
		return encode(ws, g, profile, speculator, flags, src, out, cap, ret_info);
	before = codec_sequence_position(src->sequence);
	if (!sequence_of_geometry(src->sequence, g) || src->position != before)
		return -EINVAL;
	if (!sequence_has_room(src->sequence))
		return -E2BIG;
	r = encode(ws, g, profile, speculator, flags, src, out, cap, ret_info);
	return sequence_settle(ws, src, before, r);
}

/* What can be said without a profile. */
int codec_header_check_geometry(const struct codec_geometry *g, const struct format_block_header *h,
				size_t in_bytes)
{
	if (h->magic != FORMAT_BLOCK_MAGIC || h->version == 0)
		return -EBADMSG;
	if (h->version != FORMAT_BLOCK_VERSION)
		return -ESTALE; /* sound perhaps, and not ours to judge */
	if (h->reserved != 0)
		return -EBADMSG;
	if (h->speculator > CODEC_SPEC_MODEL || h->encoded_bytes != in_bytes)
		return -EBADMSG;
	if (memcmp(h->geometry_digest, g->digest, FORMAT_DIGEST_PREFIX_BYTES) != 0)
		return -ESTALE;
	if (h->chunks_count != g->chunks_count || h->raw_bytes != g->raw_bytes)
		return -EBADMSG;
	return 0;
}

int codec_header_check_profile(const struct codec_geometry *g, const struct codec_profile *profile,
			       const struct format_block_header *h)
{
	static const uint8_t zero[FORMAT_DIGEST_PREFIX_BYTES];

	if (h->speculator < CODEC_SPEC_CHANNEL)
		return memcmp(h->profile_digest, zero, sizeof(zero)) == 0 ? 0 : -EBADMSG;
	if (!profile ||
	    memcmp(h->profile_digest, profile->digest, FORMAT_DIGEST_PREFIX_BYTES) != 0 ||
	    memcmp(profile->geometry_digest, g->digest, CODEC_DIGEST_BYTES) != 0)
		return -ESTALE;
	if ((h->speculator == CODEC_SPEC_LAYER && !profile->layer) ||
	    (h->speculator == CODEC_SPEC_MODEL && !profile->model))
		return -EBADMSG;
	return 0;
}

int codec_header_check(const struct codec_geometry *g, const struct codec_profile *profile,
		       const struct format_block_header *h, size_t in_bytes, uint8_t *ret_refusal)
{
	int r = codec_header_check_geometry(g, h, in_bytes);

	*ret_refusal = h->version == FORMAT_BLOCK_VERSION ? CODEC_REFUSAL_GEOMETRY
							  : CODEC_REFUSAL_VERSION;
	if (r == 0) {
		*ret_refusal = CODEC_REFUSAL_PROFILE;
		r = codec_header_check_profile(g, profile, h);
	}
	if (r == 0 && h->speculator == CODEC_SPEC_MODEL && !profile->model->params) {
		*ret_refusal = CODEC_REFUSAL_MODEL;
		return -ENODEV;
	}
	if (r != -ESTALE)
		*ret_refusal = CODEC_REFUSAL_NONE;
	return r;
}

/* All that can be said before any payload is looked at; ws->refusal says which -ESTALE it is. */
static int header_check(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, const struct format_block_header *h,
			size_t in_bytes, const struct codec_sequence *s)
{
	int r = codec_header_check(g, profile, h, in_bytes, &ws->refusal);

	if (r < 0 || h->speculator != CODEC_SPEC_MODEL || (s && sequence_of_profile(s, profile)))
		return r;
	ws->refusal = CODEC_REFUSAL_PREFIX;
	return -ESTALE;
}

enum codec_refusal codec_refusal(const struct codec_workspace *ws)
{
	return (enum codec_refusal)ws->refusal;
}

int codec_payload_needs_cpu(const struct codec_geometry *g, const void *payload,
			    uint64_t payload_bytes)
{
	const uint8_t *in = payload;
	struct format_block_header h;
	uint64_t end = sizeof(h) + (uint64_t)g->chunks_count * sizeof(struct format_chunk_entry);
	bool residual = false;

	if (payload_bytes < end)
		return 1;
	memcpy(&h, in, sizeof(h));
	if (codec_header_check_geometry(g, &h, payload_bytes) < 0)
		return 1;
	for (uint32_t c = 0; c < g->chunks_count; c++) {
		struct format_chunk_entry e;

		memcpy(&e, in + sizeof(h) + (size_t)c * sizeof(e), sizeof(e));
		if (e.method != FORMAT_METHOD_RAW && e.method != FORMAT_METHOD_CHANNEL &&
		    e.method != FORMAT_METHOD_RESIDUAL)
			return 1;
		/* The first of these has it all. */
		if (e.method == FORMAT_METHOD_RESIDUAL &&
		    (h.speculator != CODEC_SPEC_LAYER || e.escape_bytes != 0 ||
		     (residual && e.payload_bytes != 0) ||
		     !codec_segment_coded(&g->segments[g->chunk_first_segment[c]])))
			return 1;
		residual |= e.method == FORMAT_METHOD_RESIDUAL;
		if (e.reserved != 0 ||
		    (e.method == FORMAT_METHOD_RAW &&
		     (e.escape_bytes != 0 || e.payload_bytes != codec_chunk_bytes(g, c))))
			return 1;
		if (e.method == FORMAT_METHOD_CHANNEL &&
		    (h.speculator != CODEC_SPEC_CHANNEL ||
		     !codec_segment_coded(&g->segments[g->chunk_first_segment[c]])))
			return 1;
		end += format_padded(e.payload_bytes); /* 2^32 each at most: no overflow */
	}
	return end != payload_bytes || (h.speculator == CODEC_SPEC_LAYER && !residual);
}

/* Take the next payload off the input.  Returns 0 or -EBADMSG. */
static int payload_take(const uint8_t *in, size_t in_bytes, size_t *off,
			const struct format_chunk_entry *e, const uint8_t **ret_payload)
{
	size_t bytes = e->payload_bytes, end = format_padded(bytes);

	if (e->reserved != 0 || end > in_bytes - *off)
		return -EBADMSG;
	for (size_t i = bytes; i < end; i++)
		if (in[*off + i] != 0)
			return -EBADMSG;
	*ret_payload = in + *off;
	*off += end;
	return 0;
}

/* Decoded bytes into the checksum and the block's pages. */
static void chunk_scatter(struct codec_workspace *ws, const struct codec_geometry *g,
			  const struct job *j, const struct codec_view *dst, uint32_t skip_tokens)
{
	const uint8_t *from = j->out;
	uint32_t end = g->chunk_first_segment[j->chunk + 1];

	for (uint32_t i = g->chunk_first_segment[j->chunk]; i < end; i++) {
		checksum_segment(ws, g, i, from);
		if (ws->block_whole)
			memcpy(ws->block + g->segment_off[i], from, codec_segment_bytes(g, i));
		codec_scatter(g, dst, i, skip_tokens, from);
		from += codec_segment_bytes(g, i);
	}
}

/* Fetch a batch's payloads from the input and decode it into the slots. */
static int batch_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			const struct codec_profile *profile, const uint8_t *in, size_t in_bytes,
			size_t *off, struct job *jobs, unsigned jobs_count)
{
	for (unsigned i = 0; i < jobs_count; i++) {
		struct job *j = &jobs[i];
		int r;

		memcpy(&j->e, in + sizeof(struct format_block_header) + j->chunk * sizeof(j->e),
		       sizeof(j->e));
		r = payload_take(in, in_bytes, off, &j->e, &j->payload);
		if (r == 0)
			r = codec_workspace_grow((void **)&j->slot->raw, &j->slot->raw_cap,
						 codec_chunk_bytes(g, j->chunk));
		if (r < 0)
			return r;
		j->out = j->slot->raw;
	}
	jobs_decode(ws, g, profile, jobs, jobs_count);
	for (unsigned i = 0; i < jobs_count; i++)
		if (jobs[i].res < 0)
			return jobs[i].res;
	return 0;
}

static int blocks_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			 const struct codec_profile *profile, const uint8_t *in, size_t in_bytes,
			 const struct codec_view *dst, uint32_t skip_tokens,
			 _Atomic(uint32_t) *segments_done)
{
	size_t off = sizeof(struct format_block_header) +
		     (size_t)g->chunks_count * sizeof(struct format_chunk_entry);

	for (uint32_t c = 0; c < g->chunks_count;) {
		struct job jobs[CODEC_STREAMS_MAX];
		unsigned n = 0;
		int r;

		for (; n < CODEC_STREAMS_MAX && c < g->chunks_count; n++, c++)
			jobs[n] = (struct job){ .chunk = c, .slot = &ws->slot[n] };
		r = batch_decode(ws, g, profile, in, in_bytes, &off, jobs, n);
		if (r < 0)
			return r;
		for (unsigned i = 0; i < n; i++) {
			chunk_scatter(ws, g, &jobs[i], dst, skip_tokens);
			if (segments_done)
				atomic_store_explicit(segments_done,
						      g->chunk_first_segment[jobs[i].chunk + 1],
						      memory_order_release);
		}
	}
	return off == in_bytes ? 0 : -EBADMSG;
}

/* in: an encoded block with a good header h. */
static int decode(struct codec_workspace *ws, const struct codec_geometry *g,
		  const struct codec_profile *profile, const struct format_block_header *h,
		  const uint8_t *in, size_t in_bytes, const struct codec_view *dst,
		  uint32_t skip_tokens, _Atomic(uint32_t) *segments_done)
{
	int r = 0;

	if (h->speculator < CODEC_SPEC_CHANNEL)
		profile = NULL; /* its digest was not compared */
	ws->block_whole = dst->sequence != NULL;
	ws->predicted_all = h->speculator == CODEC_SPEC_MODEL;
	ws->predicted_ready = h->speculator >= CODEC_SPEC_LAYER;
	ws->predicted_stored = false;
	if (ws->block_whole)
		r = codec_workspace_grow((void **)&ws->block, &ws->block_cap, g->raw_bytes);
	if (r == 0 && ws->predicted_ready)
		r = codec_predicted_decode(ws, g, profile,
					   h->speculator == CODEC_SPEC_MODEL ? dst->sequence : NULL,
					   in, in_bytes);
	if (r == 0)
		r = checksum_start(ws, g);
	if (r == 0)
		r = blocks_decode(ws, g, profile, in, in_bytes, dst, skip_tokens, segments_done);
	if (r < 0)
		return r;
	return checksum_end(ws, g) == h->raw_xxh3 ? 0 : -EBADMSG;
}

int codec_decode_from(struct codec_workspace *ws, const struct codec_geometry *g,
		      const struct codec_profile *profile, const void *in, size_t in_bytes,
		      const uint64_t *expect_xxh3, const struct codec_view *dst,
		      uint32_t skip_tokens, _Atomic(uint32_t) *segments_done)
{
	struct codec_sequence *s = dst->sequence;
	const uint32_t before = s ? codec_sequence_position(s) : 0;
	struct format_block_header h;
	int r;

	ws->refusal = CODEC_REFUSAL_NONE;
	if (skip_tokens > g->block_tokens || (s && !sequence_of_geometry(s, g)))
		return -EINVAL;
	if (in_bytes < sizeof(h) + (size_t)g->chunks_count * sizeof(struct format_chunk_entry))
		return -EBADMSG;
	memcpy(&h, in, sizeof(h));
	r = header_check(ws, g, profile, &h, in_bytes, s);
	if (r < 0)
		return r;
	if (expect_xxh3 && *expect_xxh3 != h.raw_xxh3)
		return -EBADMSG;
	if (!s)
		return decode(ws, g, profile, &h, in, in_bytes, dst, skip_tokens, segments_done);
	if (dst->position != before && dst->position != CODEC_POSITION_UNKNOWN) {
		ws->refusal = CODEC_REFUSAL_PREFIX;
		return -ESTALE;
	}
	if (!sequence_has_room(s))
		return -E2BIG;
	r = decode(ws, g, profile, &h, in, in_bytes, dst, skip_tokens, segments_done);
	return sequence_settle(ws, dst, before, r);
}

int codec_decode(struct codec_workspace *ws, const struct codec_geometry *g,
		 const struct codec_profile *profile, const void *in, size_t in_bytes,
		 const uint64_t *expect_xxh3, const struct codec_view *dst)
{
	return codec_decode_from(ws, g, profile, in, in_bytes, expect_xxh3, dst, 0, NULL);
}
