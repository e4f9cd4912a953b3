/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_models.c - models, rooms for batches and prefixes in a GPU's memory, for cuda_predictor.c.  A model is there
 * from its first task on until its last sequence ends; a prefix has room for twice as many tokens whenever it is full.
 */
#include "gpu/cuda_predictor.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <cuda_runtime_api.h>

#include "gpu/codec/model_profile.h"
#include "gpu/cuda_internal.h"

#define CONTEXT_TOKENS_MIN 1024u
#define ALIGN 256u

void cuda_engine_enter(const struct cuda_engine *c)
{
	(void)cudaSetDevice(c->ordinal);
}

int cuda_engine_told(struct cuda_engine *c, int cuda_error)
{
	if (gpu_error_sticky(cuda_error))
		atomic_store(&c->base.dead, -EIO);
	return gpu_errno(cuda_error);
}

/* ---- rooms ---- */

static void room_deinit(struct cuda_room *o)
{
	cuda_model_coder_free(o->decoder);
	if (o->region)
		cuda_codec_region_free(o->region);
	if (o->raw)
		(void)cudaFree(o->raw);
	if (o->results)
		(void)cudaFreeHost(o->results);
	if (o->host_raw)
		(void)cudaFreeHost(o->host_raw);
	*o = (struct cuda_room){ 0 };
}

static uint64_t aligned(uint64_t bytes)
{
	return (bytes + ALIGN - 1u) & ~(uint64_t)(ALIGN - 1u);
}

/* Where a segment lies in a raw block. */
static struct codec_stride stride_of(const struct codec_geometry *g, uint32_t segment)
{
	const struct codec_segment *s = &g->segments[segment];
	const uint64_t head = (uint64_t)s->head_dim * codec_dtype_bytes(s->dtype);

	return (struct codec_stride){ g->segment_off[segment], head * s->heads, head };
}

/* Raw blocks, payloads, and what checksums take, in one allocation. */
static int room_memory(struct cuda_engine *c, const struct cuda_resident *m, struct cuda_room *o)
{
	const uint64_t blocks = m->blocks_max, sums = blocks < SUMS_MAX ? blocks : SUMS_MAX,
		       scratch = aligned(cuda_codec_encode_scratch(m->geom, (uint32_t)sums));
	struct codec_stride stride[CODEC_SEGMENTS_MAX];
	uint64_t block_stride[CODEC_SEGMENTS_MAX];
	int e = (int)cudaMalloc((void **)&o->raw,
				2u * blocks * m->raw_each + sums * m->copy_each + scratch);

	if (e == 0)
		e = (int)cudaHostAlloc((void **)&o->results,
				       blocks * (sizeof(o->results[0]) + CUDA_TASK_BYTES),
				       cudaHostAllocMapped);
	if (e == 0)
		e = (int)cudaHostAlloc((void **)&o->host_raw, m->raw_each, cudaHostAllocDefault);
	if (e != 0)
		return e;
	o->task_words = (uint8_t *)(o->results + blocks);
	o->payload = o->raw + blocks * m->raw_each;
	o->copy = o->payload + blocks * m->raw_each;
	o->scratch = o->copy + sums * m->copy_each;
	for (uint32_t i = 0; i < m->geom->segments_count; i++) {
		stride[i] = stride_of(m->geom, i);
		block_stride[i] = m->raw_each;
	}
	return cuda_codec_region_new(m->geom, (uint64_t)(uintptr_t)o->raw, stride, block_stride,
				     c->stream, &o->region);
}

static int coder_new(struct cuda_engine *c, struct cuda_resident *m, int encodes,
		     struct cuda_model_coder **ret)
{
	const struct model_profile *p = m->profile->model;
	struct cuda_model_place places[CODEC_SEGMENTS_MAX];
	const struct cuda_model_shape shape = { .block_tokens = m->geom->block_tokens,
						.streams_count = p->streams_count,
						.blocks_max = m->blocks_max,
						.parts_max = m->blocks_max,
						.positions_max = c->positions_max,
						.encodes = encodes,
						.places = places };

	for (uint32_t i = 0; i < p->segments_count; i++) {
		const struct codec_stride s = stride_of(m->geom, p->segments[i]);

		places[i] = (struct cuda_model_place){ .off = s.off,
						       .token_stride = s.token_stride,
						       .head_stride = s.head_stride };
	}
	return cuda_model_coder_new(m->m, &shape, c->stream, ret);
}

/* Waits, so that all streams may use it. */
static int room_add(struct cuda_engine *c, struct cuda_resident *m)
{
	struct cuda_room *o = &m->room[m->rooms];
	int e = coder_new(c, m, 0, &o->decoder);

	if (e == 0)
		e = room_memory(c, m, o);
	if (e == 0)
		e = (int)cudaStreamSynchronize(c->stream);
	if (e != 0) {
		room_deinit(o);
		(void)cudaGetLastError();
		return e;
	}
	m->rooms++;
	return 0;
}

struct cuda_room *cuda_resident_room(struct cuda_engine *c, struct cuda_resident *m)
{
	for (unsigned i = 0; i < m->rooms; i++)
		if (!m->room[i].taken)
			return &m->room[i];
	if (m->rooms == m->rooms_max)
		return NULL;
	if (cuda_engine_told(c, room_add(c, m)) == 0)
		return &m->room[m->rooms - 1u];
	m->rooms_max = m->rooms; /* it stays with those */
	return NULL;
}

/* Rooms beside each model's first make way for what there must be.  False: there are none that no slot has. */
static bool rooms_shrink(struct cuda_engine *c)
{
	bool any = false;

	for (struct cuda_resident *m = c->models; m; m = m->next) {
		while (m->rooms > 1 && !m->room[m->rooms - 1u].taken) {
			room_deinit(&m->room[--m->rooms]);
			any = true;
		}
		m->rooms_max = m->rooms;
	}
	return any;
}

/* ---- models ---- */

struct cuda_resident *cuda_resident_free(struct cuda_resident *m)
{
	for (unsigned i = 0; i < m->rooms; i++)
		room_deinit(&m->room[i]);
	cuda_model_coder_free(m->encoder);
	cuda_model_free(m->m);
	free(m);
	return NULL;
}

unsigned cuda_engine_blocks(uint32_t tokens, const struct codec_geometry *g)
{
	const uint32_t n = tokens / g->block_tokens;

	return n == 0 ? 1u : n < PREDICTOR_BATCH_MAX ? n : PREDICTOR_BATCH_MAX;
}

static int cuda_resident_new(struct cuda_engine *c, const struct device_sequence *s,
			     struct cuda_resident **ret)
{
	struct cuda_resident *m = calloc(1, sizeof(*m));
	const struct model_profile *p = s->profile->model;
	int e;

	if (!m)
		return -ENOMEM;
	m->profile = s->profile;
	m->geom = s->geom;
	m->blocks_max = cuda_engine_blocks(c->batch_tokens, s->geom);
	m->rooms_max = PREDICTOR_DEPTH_MAX;
	m->raw_each = aligned(m->geom->raw_bytes);
	m->copy_each = aligned(codec_bound(m->geom));
	for (uint32_t i = 0; i < p->segments_count; i++)
		m->off[i] = s->geom->segment_off[p->segments[i]];
	e = cuda_model_new(p->params, c->stream, &m->m);
	if (e == 0)
		e = room_add(c, m);
	if (e != 0) {
		cuda_resident_free(m);
		(void)cudaGetLastError();
		return cuda_engine_told(c, e);
	}
	m->next = c->models;
	c->models = m;
	*ret = m;
	return 0;
}

static void cuda_resident_drop(struct cuda_engine *c, struct cuda_resident *m)
{
	struct cuda_resident **link = &c->models;

	if (--m->users > 0)
		return;
	while (*link != m)
		link = &(*link)->next;
	*link = m->next;
	cuda_resident_free(m);
}

/* ---- sequences ---- */

int cuda_sequence_new(struct predictor_engine *e, const struct codec_geometry *g,
		      const struct codec_profile *profile, struct device_sequence **ret)
{
	const struct model_profile *p = profile->model;
	struct cuda_sequence *s;

	(void)e;
	if (!p)
		return -ENODATA;
	if (!p->params)
		return -ENODEV;
	if (p->segments_count != g->segments_count || !cuda_codec_geometry_ok(g) ||
	    !cuda_model_coder_ok(p->params, g->block_tokens, p->streams_count))
		return -EOPNOTSUPP;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	*ret = &s->base;
	return 0;
}

uint32_t cuda_sequence_position(const struct device_sequence *s)
{
	const struct cuda_model_context *x = cuda_sequence_of(s)->context;

	return x ? cuda_model_context_count(x) : 0;
}

void cuda_sequence_truncate(struct device_sequence *s, uint32_t position)
{
	if (cuda_sequence_of(s)->context)
		cuda_model_context_truncate(cuda_sequence_of(s)->context, position);
}

uint64_t cuda_sequence_bytes(const struct device_sequence *s)
{
	const struct cuda_sequence *q = cuda_sequence_of(s);

	return q->context ? cuda_model_context_bytes(q->model->m, q->context) : 0;
}

void cuda_sequence_end(struct predictor_engine *e, struct device_sequence *s)
{
	struct cuda_sequence *q = cuda_sequence_of(s);

	cuda_engine_enter(cuda_engine_of(e));
	cuda_model_context_free(q->context);
	if (q->model)
		cuda_resident_drop(cuda_engine_of(e), q->model);
	free(q);
}

static int cuda_sequence_bind(struct cuda_engine *c, struct cuda_sequence *q)
{
	struct cuda_resident *m = c->models;
	int r = 0;

	if (q->model)
		return 0;
	while (m && m->profile != q->base.profile)
		m = m->next;
	if (!m)
		r = cuda_resident_new(c, &q->base, &m);
	if (r < 0)
		return r;
	assert(m);
	m->users++;
	q->model = m;
	return 0;
}

bool cuda_sequence_has_room(const struct cuda_engine *c, const struct cuda_sequence *q,
			    uint32_t more)
{
	const uint32_t want = cuda_sequence_position(&q->base) + more;

	return want <= c->positions_max && q->context &&
	       want <= cuda_model_context_capacity(q->context);
}

static int sequence_ready(struct cuda_engine *c, struct cuda_sequence *q, uint32_t more)
{
	const uint32_t want = cuda_sequence_position(&q->base) + more;
	uint32_t room = q->context ? 2u * cuda_model_context_capacity(q->context)
				   : CONTEXT_TOKENS_MIN;
	int r, e = 0;

	if (want > c->positions_max)
		return -E2BIG;
	r = cuda_sequence_bind(c, q);
	if (r < 0 || (q->context && want <= cuda_model_context_capacity(q->context)))
		return r;
	room = room < want ? want : room < c->positions_max ? room : c->positions_max;
	e = q->context ? cuda_model_context_grow(q->model->m, q->context, room, c->stream)
		       : cuda_model_context_new(q->model->m, room, c->stream, &q->context);
	if (e != 0)
		(void)cudaGetLastError();
	return cuda_engine_told(c, e);
}

int cuda_sequence_ready(struct cuda_engine *c, struct cuda_sequence *q, uint32_t more)
{
	int r = sequence_ready(c, q, more);

	return r == -ENOMEM && rooms_shrink(c) ? sequence_ready(c, q, more) : r;
}

int cuda_resident_encodes(struct cuda_engine *c, struct cuda_resident *m)
{
	int r = 0;

	do {
		if (!m->encoder)
			r = cuda_engine_told(c, coder_new(c, m, 1, &m->encoder));
		(void)cudaGetLastError();
	} while (r == -ENOMEM && rooms_shrink(c));
	return r;
}
