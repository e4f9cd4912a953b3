/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predicted.c - the share of a block that a speculator codes as a whole (`layer`, `model`), not chunk by
 * chunk: made before the container asks for the chunks, and read before it hands them out.
 */
#include "gpu/codec/internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "gpu/codec/layer_code.h"
#include "gpu/codec/model_profile.h"
#include "gpu/codec/sequence.h"

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

bool codec_predicted_can(const struct codec_profile *profile, uint8_t speculator,
			 const struct codec_view *src)
{
	if (speculator == CODEC_SPEC_LAYER)
		return profile->layer && src->position != CODEC_POSITION_UNKNOWN;
	assert(speculator == CODEC_SPEC_MODEL);
	if (src->made)
		return profile->model != NULL;
	return profile->model && src->sequence && sequence_of_profile(src->sequence, profile) &&
	       (!profile->model->ids || src->tokens);
}

/* The payload that was made elsewhere. */
static int take_made(struct codec_workspace *ws, const struct codec_made *made, size_t cap,
		     struct codec_info *info)
{
	if (made->bytes_count > cap)
		return -ENOSPC;
	memcpy(ws->predicted, made->bytes, made->bytes_count);
	ws->predicted_bytes = made->bytes_count;
	info->escapes = made->escapes;
	info->ideal_bits = (double)made->bytes_count * 8;
	return 0;
}

/* One block's payload by one speculator, and the way back. */
static int encode(struct codec_workspace *ws, const struct codec_geometry *g,
		  const struct codec_profile *profile, const struct codec_view *src, size_t cap,
		  struct codec_info *info)
{
	struct residual_bits bits = { 0 };
	uint64_t escapes = 0;
	int r;

	if (info->speculator == CODEC_SPEC_MODEL && src->made)
		return take_made(ws, src->made, cap, info);
	if (info->speculator == CODEC_SPEC_MODEL) {
		r = sequence_encode(src->sequence, ws->block, src->tokens, ws->predicted, cap,
				    &ws->predicted_bytes, &escapes, &info->ideal_bits);
	} else {
		r = layer_encode(&ws->layer, g, profile->layer, src->position, ws->block,
				 ws->predicted, cap, &ws->predicted_bytes, &escapes, &bits);
		info->ideal_bits = bits.token + bits.raw + bits.tau;
	}
	info->escapes = (uint32_t)escapes;
	return r;
}

static int decode(struct codec_workspace *ws, const struct codec_geometry *g,
		  const struct codec_profile *profile, struct codec_sequence *s, uint8_t speculator,
		  const uint8_t *in, size_t in_bytes, uint8_t *raw)
{
	if (speculator == CODEC_SPEC_MODEL)
		return sequence_decode(s, in, in_bytes, raw, &ws->refusal);
	return layer_decode(&ws->layer, g, profile->layer, in, in_bytes, raw);
}

/* From the state before: a sequence is taken back by the block and gets it again.  -EBADMSG: it differs. */
static int verify(struct codec_workspace *ws, const struct codec_geometry *g,
		  const struct codec_profile *profile, struct codec_sequence *s, uint8_t speculator)
{
	int r = codec_workspace_grow((void **)&ws->check, &ws->check_cap, g->raw_bytes);

	if (r < 0)
		return r;
	if (speculator == CODEC_SPEC_MODEL) {
		r = codec_sequence_truncate(s, codec_sequence_position(s) - g->block_tokens);
		assert(r == 0);
	}
	r = decode(ws, g, profile, s, speculator, ws->predicted, ws->predicted_bytes, ws->check);
	if (r == -ESTALE)
		return -EBADMSG;
	for (uint32_t i = 0; r == 0 && i < g->segments_count; i++)
		if (codec_segment_coded(&g->segments[i]) &&
		    memcmp(ws->check + g->segment_off[i], ws->block + g->segment_off[i],
			   codec_segment_bytes(g, i)) != 0)
			r = -EBADMSG;
	return r;
}

static double expected_bits(const struct codec_profile *profile, uint8_t speculator)
{
	return speculator == CODEC_SPEC_MODEL ? profile->model->expected_bits
					      : profile->layer->expected_bits;
}

static bool is_poor(const struct codec_profile *profile, uint8_t speculator, size_t bytes,
		    uint64_t scalars)
{
	return (double)bytes * 8 * 100 >
	       expected_bits(profile, speculator) * (double)scalars * LAYER_POOR_PERCENT;
}

/* ws->block by info->speculator into ws->predicted: an outcome, or -ENOMEM. */
static int attempt(struct codec_workspace *ws, const struct codec_geometry *g,
		   const struct codec_profile *profile, unsigned flags,
		   const struct codec_view *src, struct codec_info *info)
{
	uint64_t scalars, raw = coded_bytes(g, &scalars);
	const uint32_t before = src->sequence ? codec_sequence_position(src->sequence) : 0;
	int r = codec_workspace_grow((void **)&ws->predicted, &ws->predicted_cap, raw);

	if (r == 0)
		r = encode(ws, g, profile, src, raw, info);
	if (r == 0 && flags & CODEC_ENCODE_VERIFY &&
	    !(src->made && info->speculator == CODEC_SPEC_MODEL))
		r = verify(ws, g, profile, src->sequence, info->speculator);
	if (r < 0 && src->sequence)
		(void)codec_sequence_truncate(src->sequence, before);
	if (r == -ENOSPC || r == -EBADMSG || r == -EINVAL)
		return CODEC_PREDICTED_NONE;
	if (r < 0)
		return r;
	return is_poor(profile, info->speculator, ws->predicted_bytes, scalars)
		       ? CODEC_PREDICTED_POOR
		       : CODEC_PREDICTED_GOOD;
}

static void swap_kept(struct codec_workspace *ws)
{
	uint8_t *buf = ws->kept;
	size_t cap = ws->kept_cap, bytes = ws->kept_bytes;

	ws->kept = ws->predicted;
	ws->kept_cap = ws->predicted_cap;
	ws->kept_bytes = ws->predicted_bytes;
	ws->predicted = buf;
	ws->predicted_cap = cap;
	ws->predicted_bytes = bytes;
}

int codec_predicted_encode(struct codec_workspace *ws, const struct codec_geometry *g,
			   const struct codec_profile *profile, uint8_t speculator, unsigned flags,
			   const struct codec_view *src, struct codec_info *info)
{
	int best = CODEC_PREDICTED_NONE;

	for (uint8_t s = speculator; s >= CODEC_SPEC_LAYER && best != CODEC_PREDICTED_GOOD; s--) {
		struct codec_info by = { .speculator = s };
		int verdict;

		if (!codec_predicted_can(profile, s, src))
			continue;
		verdict = attempt(ws, g, profile, flags, src, &by);
		if (verdict < 0)
			return verdict;
		if (verdict != CODEC_PREDICTED_NONE &&
		    (best == CODEC_PREDICTED_NONE || ws->predicted_bytes < ws->kept_bytes)) {
			swap_kept(ws);
			*info = by;
		}
		best = verdict > best ? verdict : best;
	}
	swap_kept(ws);
	return best;
}

int codec_predicted_payload(const struct codec_geometry *g, const uint8_t *in, size_t in_bytes,
			    const uint8_t **ret_payload, size_t *ret_bytes)
{
	const size_t index = sizeof(struct format_block_header);
	size_t off = index + (size_t)g->chunks_count * sizeof(struct format_chunk_entry);
	struct format_chunk_entry e;

	if (in_bytes < off)
		return -EBADMSG;
	for (uint32_t c = 0; c < g->chunks_count; c++) {
		size_t padded;

		memcpy(&e, in + index + c * sizeof(e), sizeof(e));
		padded = format_padded(e.payload_bytes);
		if (padded > in_bytes - off)
			return -EBADMSG;
		if (e.method == FORMAT_METHOD_RESIDUAL) {
			*ret_payload = in + off;
			*ret_bytes = e.payload_bytes;
			return 0;
		}
		off += padded;
	}
	return -EBADMSG;
}

int codec_predicted_decode(struct codec_workspace *ws, const struct codec_geometry *g,
			   const struct codec_profile *profile, struct codec_sequence *s,
			   const uint8_t *in, size_t in_bytes)
{
	const uint8_t *payload = NULL;
	size_t bytes = 0;
	int r = codec_workspace_grow((void **)&ws->block, &ws->block_cap, g->raw_bytes);

	if (r == 0)
		r = codec_predicted_payload(g, in, in_bytes, &payload, &bytes);
	return r < 0 ? r
		     : decode(ws, g, profile, s, s ? CODEC_SPEC_MODEL : CODEC_SPEC_LAYER, payload,
			      bytes, ws->block);
}

/* All chunks of MODEL, the first of which has the payload, and no byte more. */
static int index_check(const struct codec_geometry *g, const uint8_t *in, size_t in_bytes)
{
	const size_t index = sizeof(struct format_block_header);
	size_t end = index + (size_t)g->chunks_count * sizeof(struct format_chunk_entry);

	for (uint32_t c = 0; c < g->chunks_count; c++) {
		struct format_chunk_entry e;

		memcpy(&e, in + index + c * sizeof(e), sizeof(e));
		if (e.method != FORMAT_METHOD_RESIDUAL)
			return -ENODATA;
		if (e.reserved != 0 || e.escape_bytes != 0 || (c > 0 && e.payload_bytes != 0) ||
		    !codec_segment_coded(&g->segments[g->chunk_first_segment[c]]))
			return -EBADMSG;
		end += format_padded(e.payload_bytes);
	}
	return end == in_bytes ? 0 : -EBADMSG;
}

int codec_model_payload(const struct codec_geometry *g, const struct codec_profile *profile,
			const void *in, size_t in_bytes, struct codec_model_part *ret,
			uint8_t *ret_refusal)
{
	struct format_block_header h;
	size_t bytes = 0;
	int r;

	*ret_refusal = CODEC_REFUSAL_NONE;
	if (in_bytes < sizeof(h) + (size_t)g->chunks_count * sizeof(struct format_chunk_entry))
		return -EBADMSG;
	memcpy(&h, in, sizeof(h));
	if (codec_header_check_geometry(g, &h, in_bytes) == 0 && h.speculator != CODEC_SPEC_MODEL)
		return -ENODATA;
	r = codec_header_check(g, profile, &h, in_bytes, ret_refusal);
	if (r == 0)
		r = index_check(g, in, in_bytes);
	if (r == 0)
		r = codec_predicted_payload(g, in, in_bytes, &ret->payload, &bytes);
	ret->payload_bytes = bytes;
	ret->raw_xxh3 = h.raw_xxh3;
	return r;
}

int codec_made_pack(const struct codec_geometry *g, const struct codec_profile *profile,
		    const struct codec_made *made, uint64_t raw_xxh3, void *out, size_t cap,
		    struct codec_info *ret_info)
{
	const size_t index = sizeof(struct format_block_header),
		     bytes = index + (size_t)g->chunks_count * sizeof(struct format_chunk_entry) +
			     format_padded(made->bytes_count);
	const struct format_chunk_entry e = { .payload_bytes = (uint32_t)made->bytes_count,
					      .method = FORMAT_METHOD_RESIDUAL },
					behind = { .method = FORMAT_METHOD_RESIDUAL };
	struct format_block_header h;
	uint8_t *to = out, *payload;
	uint64_t scalars;

	if (coded_bytes(g, &scalars) != g->raw_bytes || made->bytes_count > g->raw_bytes ||
	    is_poor(profile, CODEC_SPEC_MODEL, made->bytes_count, scalars))
		return -ENODATA;
	if (bytes > cap)
		return -ENOSPC;
	codec_header_fill(&h, g, profile, CODEC_SPEC_MODEL);
	h.encoded_bytes = (uint32_t)bytes;
	h.raw_xxh3 = raw_xxh3;
	memcpy(to, &h, sizeof(h));
	for (uint32_t c = 0; c < g->chunks_count; c++)
		memcpy(to + index + c * sizeof(e), c ? &behind : &e, sizeof(e));
	payload = to + bytes - format_padded(made->bytes_count);
	memmove(payload, made->bytes, made->bytes_count);
	memset(payload + made->bytes_count, 0, (size_t)(to + bytes - payload) - made->bytes_count);
	*ret_info = (struct codec_info){ .encoded_bytes = bytes,
					 .raw_xxh3 = raw_xxh3,
					 .escapes = made->escapes,
					 .ideal_bits = (double)made->bytes_count * 8,
					 .speculator = CODEC_SPEC_MODEL };
	return 0;
}
