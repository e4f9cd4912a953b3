/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_cuda_model.c - the model on a GPU that is not one (fake_cuda.h): the codec's own sequences, at once.  It
 * insists on what the real one wants of its caller.
 */
#include "tests/lib/fake_cuda.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include <cuda_runtime_api.h>

#include "gpu/codec/cuda_model_code.h"
#include "gpu/codec/model_profile.h"
#include "gpu/codec/sequence.h"

#define BLOCKS_MAX 1024u

struct cuda_model {
	const struct mspec_params *p;
};

struct cuda_model_context {
	struct codec_sequence *s;
	uint32_t capacity;
	uint32_t count;		    /* as if all that is queued went well */
	struct CUstream_st *stream; /* where it is queued last; NULL: nowhere */
};

struct cuda_model_batch {
	uint32_t blocks_max;
};

struct cuda_model_coder {
	struct cuda_model_batch batch;
	int encodes;
	bool queued;
	uint32_t blocks, parts;
	struct cuda_model_context *context[BLOCKS_MAX]; /* of each part */
	uint32_t begin[BLOCKS_MAX], keep[BLOCKS_MAX], end[BLOCKS_MAX];
	struct cuda_model_result result[BLOCKS_MAX];
};

static void *made(size_t bytes)
{
	void *p = calloc(1, bytes);

	assert(p);
	fake_cuda.live++;
	return p;
}

static void unmade(void *p)
{
	assert(fake_cuda.live > 0);
	fake_cuda.live--;
	free(p);
}

int cuda_model_new(const struct mspec_params *p, struct CUstream_st *stream,
		   struct cuda_model **ret)
{
	assert(p && stream && fake_cuda.model_geometry && fake_cuda.model_profile);
	assert(fake_cuda.model_profile->model->params == p);
	if (fake_cuda.gate) {
		(void)pthread_mutex_lock(fake_cuda.gate);
		(void)pthread_mutex_unlock(fake_cuda.gate);
	}
	if (fake_cuda.model_error)
		return fake_cuda.model_error;
	*ret = made(sizeof(**ret));
	(*ret)->p = p;
	fake_cuda.models++;
	return 0;
}

struct cuda_model *cuda_model_free(struct cuda_model *m)
{
	if (m)
		unmade(m);
	return NULL;
}

int cuda_model_context_new(const struct cuda_model *m, uint32_t tokens_max,
			   struct CUstream_st *stream, struct cuda_model_context **ret)
{
	int r;

	assert(m && stream && tokens_max > 0);
	*ret = made(sizeof(**ret));
	(*ret)->capacity = tokens_max;
	r = codec_sequence_new(fake_cuda.model_geometry, fake_cuda.model_profile, NULL, &(*ret)->s);
	assert(r == 0);
	return 0;
}

struct cuda_model_context *cuda_model_context_free(struct cuda_model_context *c)
{
	if (!c)
		return NULL;
	assert(!c->stream);
	codec_sequence_free(c->s);
	unmade(c);
	return NULL;
}

uint32_t cuda_model_context_count(const struct cuda_model_context *c)
{
	return c->count;
}

uint32_t cuda_model_context_capacity(const struct cuda_model_context *c)
{
	return c->capacity;
}

void cuda_model_context_truncate(struct cuda_model_context *c, uint32_t count)
{
	int r = 0;

	if (count < codec_sequence_position(c->s))
		r = codec_sequence_truncate(c->s, count);
	assert(r == 0);
	c->count = count < c->count ? count : c->count;
}

int cuda_model_context_grow(const struct cuda_model *m, struct cuda_model_context *c,
			    uint32_t tokens_max, struct CUstream_st *stream)
{
	assert(m && stream && tokens_max > c->capacity && !c->stream);
	c->capacity = tokens_max;
	return 0;
}

size_t cuda_model_context_bytes(const struct cuda_model *m, const struct cuda_model_context *c)
{
	assert(m);
	return c->capacity;
}

int cuda_model_append(struct cuda_model_batch *b, struct cuda_model_context *c, uint32_t count,
		      const uint8_t *dev_patterns, const uint64_t *off, struct CUstream_st *stream)
{
	const struct model_profile *p = fake_cuda.model_profile->model;

	assert(b && stream && count == fake_cuda.model_geometry->block_tokens);
	assert(cuda_model_context_count(c) + count <= c->capacity);
	for (uint32_t i = 0; i < p->segments_count; i++)
		assert(off[i] == fake_cuda.model_geometry->segment_off[p->segments[i]]);
	assert(!c->stream && c->count == codec_sequence_position(c->s));
	if (sequence_append_raw(c->s, dev_patterns, NULL) < 0)
		return cudaErrorMemoryAllocation;
	c->count += count;
	return 0;
}

int cuda_model_follow(struct cuda_model_batch *b, struct cuda_model_context *c, const int32_t *ids,
		      uint32_t count, struct CUstream_st *stream)
{
	assert(b && stream && count == fake_cuda.model_geometry->block_tokens);
	assert(cuda_model_context_count(c) + count <= c->capacity);
	assert(!c->stream && c->count == codec_sequence_position(c->s));
	if (sequence_append_raw(c->s, NULL, ids) < 0)
		return cudaErrorMemoryAllocation;
	c->count += count;
	return 0;
}

/* ---- coders ---- */

int cuda_model_coder_ok(const struct mspec_params *p, uint32_t block_tokens, uint32_t streams_count)
{
	return p && block_tokens % 16u == 0 && streams_count > 0;
}

int cuda_model_coder_new(struct cuda_model *m, const struct cuda_model_shape *s,
			 struct CUstream_st *stream, struct cuda_model_coder **ret)
{
	assert(m && stream && s->blocks_max > 0 && s->blocks_max <= BLOCKS_MAX);
	if (fake_cuda.coders_most && fake_cuda.coders == fake_cuda.coders_most)
		return cudaErrorMemoryAllocation;
	fake_cuda.coders++;
	if (fake_cuda.coders > fake_cuda.coders_peak)
		fake_cuda.coders_peak = fake_cuda.coders;
	*ret = made(sizeof(**ret));
	(*ret)->batch.blocks_max = s->blocks_max;
	(*ret)->encodes = s->encodes;
	return 0;
}

struct cuda_model_coder *cuda_model_coder_free(struct cuda_model_coder *c)
{
	if (!c)
		return NULL;
	fake_cuda.coders--;
	unmade(c);
	return NULL;
}

struct cuda_model_batch *cuda_model_coder_batch(struct cuda_model_coder *c)
{
	return &c->batch;
}

static struct cuda_model_result encode_one(struct codec_sequence *s, const int32_t *ids,
					   const struct cuda_model_block *b)
{
	uint8_t *raw = (uint8_t *)(uintptr_t)b->base;
	struct cuda_model_result r = { 0 };
	uint64_t escapes = 0;
	size_t bytes = 0;
	double bits;

	assert(b->index == 0);
	r.res = sequence_encode(s, raw, ids, b->payload, b->payload_bytes, &bytes, &escapes, &bits);
	r.payload_bytes = (uint32_t)bytes;
	r.escapes = (uint32_t)escapes;
	if (r.res == -ENOSPC) {
		const int append = sequence_append_raw(s, raw, ids);

		assert(append == 0);
	}
	return r;
}

static struct cuda_model_result decode_one(struct codec_sequence *s,
					   const struct cuda_model_block *b)
{
	struct cuda_model_result r = { 0 };
	uint8_t refusal = 0;

	r.res = sequence_decode(s, b->payload, b->payload_bytes, (uint8_t *)(uintptr_t)b->base,
				&refusal);
	r.refusal = refusal;
	return r;
}

/* One part, up to the first that is refused; until that is told, all of it is in the context. */
static uint32_t code_part(struct cuda_model_coder *c, const struct cuda_model_part *part,
			  const struct cuda_model_block *blocks, uint32_t n, bool encode)
{
	const uint32_t tokens = fake_cuda.model_geometry->block_tokens;
	struct cuda_model_context *x = part->context;
	const uint32_t count = part->count / tokens, i = c->parts++;
	bool follows = true;

	assert(part->count % tokens == 0 && count > 0 && n + count <= c->batch.blocks_max);
	assert(x->count + part->count <= x->capacity);
	c->context[i] = x;
	c->begin[i] = c->keep[i] = x->count;
	c->end[i] = x->count += part->count;
	for (uint32_t b = 0; b < count; b++) {
		const int32_t *ids = part->ids ? part->ids + b * tokens : NULL;
		struct cuda_model_result *r = &c->result[n + b];

		*r = (struct cuda_model_result){ .res = -ESTALE, .refusal = CODEC_REFUSAL_PREFIX };
		if (follows && c->keep[i] == codec_sequence_position(x->s))
			*r = encode ? encode_one(x->s, ids, &blocks[n + b])
				    : decode_one(x->s, &blocks[n + b]);
		follows = follows && (r->res == 0 || (encode && r->res == -ENOSPC));
		c->keep[i] += follows ? tokens : 0;
	}
	return count;
}

static int code(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		uint32_t parts_count, const struct cuda_model_block *blocks, bool encode,
		struct CUstream_st *stream)
{
	uint32_t n = 0;

	assert(!c->queued && parts_count > 0);
	if (fake_cuda.code_error)
		return fake_cuda.code_error;
	c->parts = 0;
	for (uint32_t i = 0; i < parts_count; i++) {
		struct cuda_model_context *x = parts[i].context;

		for (uint32_t k = 0; k < i; k++)
			assert(parts[k].context != x);
		/* Or it would be read while it is still being written. */
		assert(!x->stream || x->stream == stream || fake_cuda_waits(stream, x->stream));
		fake_cuda.model_followed += x->stream && x->stream != stream;
		x->stream = stream;
		n += code_part(c, &parts[i], blocks, n, encode);
	}
	c->blocks = n;
	c->queued = true;
	fake_cuda.model_batches++;
	if (parts_count > fake_cuda.model_parts_most)
		fake_cuda.model_parts_most = parts_count;
	if (n > fake_cuda.model_blocks_most)
		fake_cuda.model_blocks_most = n;
	return 0;
}

int cuda_model_encode(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		      uint32_t parts_count, const struct cuda_model_block *blocks,
		      struct CUstream_st *stream)
{
	assert(stream && c->encodes);
	return code(c, parts, parts_count, blocks, true, stream);
}

int cuda_model_decode(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		      uint32_t parts_count, const struct cuda_model_block *blocks,
		      struct CUstream_st *stream)
{
	assert(stream);
	return code(c, parts, parts_count, blocks, false, stream);
}

int cuda_model_coded(struct cuda_model_coder *c, struct CUstream_st *stream,
		     struct cuda_model_result *ret)
{
	assert(stream);
	if (!c->queued)
		return cudaErrorInvalidValue;
	c->queued = false;
	fake_cuda_waited(stream);
	for (uint32_t i = 0; i < c->parts; i++) {
		const uint32_t keep = fake_cuda.coded_error ? c->begin[i] : c->keep[i];

		if (c->context[i]->stream == stream)
			c->context[i]->stream = NULL;
		if (keep < c->end[i])
			cuda_model_context_truncate(c->context[i], keep);
	}
	for (uint32_t i = 0; i < c->blocks; i++)
		ret[i] = c->result[i];
	return fake_cuda.coded_error;
}
