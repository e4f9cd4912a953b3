/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_predictor.c - a predictor's engine (predictor.h) on a GPU: models and prefixes in its memory, blocks through
 * them in batches.  The predictor's thread, but for what predictor.h says of sequences that no task has.
 *
 *   DECODE    payloads up -> the model, which decodes them into raw blocks -> checksums -> blocks down
 *   ENCODE    raw blocks up -> the model -> payloads down -> the container, by the codec on this thread
 *
 * What other speculators coded, or are to code, the codec does on this thread, and the raw block goes into the
 * prefix.
 */
#include "gpu/cuda_predictor.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "gpu/clock.h"
#include "gpu/codec/format.h"
#include "gpu/codec/internal.h"
#include "gpu/codec/model_profile.h"
#include "gpu/cpu_code.h"
#include "gpu/cuda_internal.h"

/* The symbol is found by its name; nobody includes it. */
int skvcd_cuda_predictor_new_v1(const struct predictor_options *options, struct device **ret_device,
				char *err);

static int wait_stream(struct cuda_engine *c)
{
	return cuda_engine_told(c, (int)cudaStreamSynchronize(c->stream));
}

/* Nothing that was queued touches anybody's memory any more, whatever has failed. */
static int all_over(struct cuda_engine *c, int e)
{
	const int last = (int)cudaStreamSynchronize(c->stream);

	atomic_store(&c->base.busy_since_ns, 0);
	return e ? e : last;
}

static void gpu_begins(struct cuda_engine *c)
{
	atomic_store(&c->base.busy_since_ns, gpu_now_ns());
}

/* ---- tasks ---- */

/* Token ids that the model can be given. */
static bool ids_good(const struct device_task *t)
{
	const struct model_profile *p = t->sequence->profile->model;

	for (uint32_t i = 0; p->ids && t->tokens && i < t->region->geom->block_tokens; i++)
		if (t->tokens[i] < 0 || (uint32_t)t->tokens[i] >= p->section->vocab)
			return false;
	return !p->ids || t->tokens;
}

static bool by_model(const struct device_task *t)
{
	const uint8_t *in = t->in;

	if (t->op == DEVICE_ENCODE)
		return t->speculator == CODEC_SPEC_MODEL && t->profile == t->sequence->profile &&
		       ids_good(t);
	return t->in_bytes > FORMAT_SPECULATOR_OFF && in[FORMAT_SPECULATOR_OFF] == CODEC_SPEC_MODEL;
}

static unsigned batch_max(struct predictor_engine *e, const struct device_task *t)
{
	const struct cuda_engine *c = cuda_engine_of(e);

	if (t->op == DEVICE_PREPARE || !by_model(t))
		return 1;
	return cuda_engine_blocks(c->batch_tokens, t->region->geom);
}

static bool position_good(const struct device_task *t, uint32_t position)
{
	return t->position == position ||
	       (t->op == DEVICE_DECODE && t->position == CODEC_POSITION_UNKNOWN);
}

/* A raw block into the region, but for what is to be left. */
static void block_out(const struct device_task *t, const uint8_t *raw)
{
	const struct codec_geometry *g = t->region->geom;
	const struct codec_view v = cpu_view(t);

	for (uint32_t i = 0; i < g->segments_count; i++)
		codec_scatter(g, &v, i, t->skip_tokens, raw + g->segment_off[i]);
}

/* In one piece, and all of it? */
static bool region_packed(const struct device_task *t)
{
	return !t->region->stride && t->skip_tokens == 0;
}

/* ---- one block that the model does not code ---- */

static int append(struct cuda_engine *c, struct cuda_sequence *q, const uint8_t *raw)
{
	const struct codec_geometry *g = q->base.geom;
	struct cuda_resident *m = q->model;
	int e = (int)cudaMemcpyAsync(m->raw, raw, g->raw_bytes, cudaMemcpyHostToDevice, c->stream);

	if (e == 0)
		e = cuda_model_append(cuda_model_coder_batch(m->decoder), q->context,
				      g->block_tokens, m->raw, m->off, c->stream);
	return e == 0 ? wait_stream(c) : cuda_engine_told(c, e);
}

static int decode_alone(struct cuda_engine *c, struct device_task *t, uint8_t *raw)
{
	const struct codec_view v = { .base = raw };
	int r = codec_decode_from(c->ws, t->region->geom, t->profile, t->in, t->in_bytes,
				  &t->expect_xxh3, &v, 0, NULL);

	t->refusal = (uint8_t)codec_refusal(c->ws);
	if (r == 0 && !t->prefix_only)
		block_out(t, raw);
	return r;
}

static int encode_alone(struct cuda_engine *c, struct device_task *t, uint8_t *raw)
{
	struct codec_view v = cpu_view(t);

	codec_copy_out(t->region->geom, &v, raw);
	v = (struct codec_view){ .base = raw, .position = t->position };
	return codec_encode(c->ws, t->region->geom, t->profile, t->speculator,
			    t->verify ? CODEC_ENCODE_VERIFY : 0, &v, t->out, t->out_cap_bytes,
			    &t->info);
}

static void run_alone(struct cuda_engine *c, struct device_task *t)
{
	struct cuda_sequence *q = cuda_sequence_of(t->sequence);
	const uint32_t before = cuda_sequence_position(t->sequence);
	int r = cuda_sequence_ready(c, q, t->region->geom->block_tokens);

	if (r == 0 && !position_good(t, cuda_sequence_position(t->sequence))) {
		t->refusal = CODEC_REFUSAL_PREFIX;
		r = t->op == DEVICE_ENCODE ? -EINVAL : -ESTALE;
	}
	if (r == 0)
		r = t->op == DEVICE_ENCODE ? encode_alone(c, t, q->model->host_raw)
					   : decode_alone(c, t, q->model->host_raw);
	if (r == 0)
		r = append(c, q, q->model->host_raw);
	if (r < 0)
		cuda_sequence_truncate(t->sequence, before);
	t->res = r;
}

/* ---- batches ---- */

/*
 * From `first` on all tasks of that sequence: the first has failed with r, the others are behind it, and the prefix
 * ends before it.
 */
static void fail_from(struct cuda_engine *c, unsigned first, int r)
{
	struct device_sequence *s = c->task[first]->sequence;
	uint32_t keep = cuda_sequence_of(s)->before;

	for (unsigned i = first; i > 0 && c->task[i - 1u]->sequence == s; i--)
		keep += s->geom->block_tokens;
	cuda_sequence_truncate(s, keep);
	c->task[first]->res = r;
	for (unsigned i = first + 1u; i < c->count && c->task[i]->sequence == s; i++)
		c->task[i]->res = -ECANCELED;
}

/* All that has not failed yet: as if nothing had been begun. */
static void fail_all(struct cuda_engine *c, int r)
{
	for (unsigned i = 0; i < c->count; i++) {
		struct device_task *t = c->task[i];

		if (t->res != 0)
			continue;
		t->res = r;
		cuda_sequence_truncate(t->sequence, cuda_sequence_of(t->sequence)->before);
	}
}

/* All of one sequence behind each other, in order. */
static void batch_sort(struct cuda_engine *c, struct device_task **tasks, unsigned count)
{
	c->count = 0;
	for (unsigned i = 0; i < count; i++) {
		struct device_sequence *s = tasks[i]->sequence;
		bool first = true;

		for (unsigned k = 0; k < i && first; k++)
			first = tasks[k]->sequence != s;
		for (unsigned k = i; first && k < count; k++)
			if (tasks[k]->sequence == s)
				c->task[c->count++] = tasks[k];
	}
	assert(c->count == count);
}

/* Room for each sequence's tasks, and what can be said of them before they run.  check: NULL, or of one more. */
static void batch_check(struct cuda_engine *c, int (*check)(struct cuda_engine *, unsigned))
{
	for (unsigned i = 0, n; i < c->count; i += n) {
		struct device_sequence *s = c->task[i]->sequence;
		const uint32_t tokens = s->geom->block_tokens;
		int r;

		for (n = 1; i + n < c->count && c->task[i + n]->sequence == s;)
			n++;
		cuda_sequence_of(s)->before = cuda_sequence_position(s);
		r = cuda_sequence_ready(c, cuda_sequence_of(s), n * tokens);
		if (r < 0) {
			fail_from(c, i, r);
			continue;
		}
		for (unsigned k = i; r == 0 && k < i + n; k++) {
			if (!position_good(c->task[k],
					   cuda_sequence_position(s) + (k - i) * tokens)) {
				c->task[k]->refusal = CODEC_REFUSAL_PREFIX;
				r = c->task[k]->op == DEVICE_ENCODE ? -EINVAL : -ESTALE;
			} else if (check) {
				r = check(c, k);
			}
			if (r < 0)
				fail_from(c, k, r);
		}
	}
}

/* What is still to be done, as parts and blocks of its model's memory.  False: nothing. */
static bool batch_lay(struct cuda_engine *c, struct cuda_resident **ret_model)
{
	unsigned n = 0;

	c->parts_count = 0;
	for (unsigned i = 0; i < c->count; i++) {
		struct device_task *t = c->task[i];
		struct cuda_sequence *q = cuda_sequence_of(t->sequence);
		struct cuda_resident *m = q->model;

		if (t->res != 0)
			continue;
		if (c->parts_count == 0 || c->part[c->parts_count - 1u].context != q->context)
			c->part[c->parts_count++] =
				(struct cuda_model_part){ .context = q->context };
		c->part[c->parts_count - 1u].count += q->base.geom->block_tokens;
		c->block[n] = (struct cuda_model_block){
			.base = (uint64_t)(uintptr_t)(m->raw + n * m->raw_each),
			.payload = m->payload + n * m->raw_each,
		};
		c->task[n] = t; /* those that have ended are passed over from here on */
		c->coded[n] = c->coded[i];
		*ret_model = m;
		n++;
	}
	c->count = n;
	return n > 0;
}

/* ---- decoding ---- */

static int decode_check(struct cuda_engine *c, unsigned i)
{
	struct device_task *t = c->task[i];
	int r = codec_model_payload(t->region->geom, t->profile, t->in, t->in_bytes, &c->coded[i],
				    &t->refusal);

	/* All that this geometry has is the model's. */
	if (r == -ENODATA || (r == 0 && c->coded[i].raw_xxh3 != t->expect_xxh3) ||
	    (r == 0 && c->coded[i].payload_bytes > t->region->geom->raw_bytes))
		return -EBADMSG;
	if (r == 0 && t->profile != t->sequence->profile) {
		t->refusal = CODEC_REFUSAL_PREFIX;
		return -ESTALE;
	}
	return r;
}

/* The checksums of all blocks, with what the codec makes of raw ones. */
static int sums_queue(struct cuda_engine *c, struct cuda_resident *m)
{
	struct cuda_codec_batch *b = &c->sums;
	int e = 0;

	b->geom = m->geom;
	b->dev_scratch = (uint64_t)(uintptr_t)m->scratch;
	memset(m->results, 0, c->count * sizeof(m->results[0]));
	for (unsigned first = 0; e == 0 && first < c->count; first += b->tasks_count) {
		b->tasks_count = c->count - first < SUMS_MAX ? c->count - first : SUMS_MAX;
		b->dev_results = (uint64_t)(uintptr_t)&m->results[first];
		for (unsigned i = 0; i < b->tasks_count; i++)
			b->task[i] = (struct cuda_codec_task){
				.region = m->region,
				.block_index = first + i,
				.dev_payload = (uint64_t)(uintptr_t)(m->copy + i * m->copy_each),
			};
		e = cuda_codec_encode(b, c->stream);
	}
	return e;
}

static int decode_queue(struct cuda_engine *c, struct cuda_resident *m)
{
	int e = 0;

	for (unsigned i = 0; e == 0 && i < c->count; i++) {
		c->block[i].payload_bytes = (uint32_t)c->coded[i].payload_bytes;
		e = (int)cudaMemcpyAsync(c->block[i].payload, c->coded[i].payload,
					 c->coded[i].payload_bytes, cudaMemcpyHostToDevice,
					 c->stream);
	}
	if (e == 0)
		e = cuda_model_decode(m->decoder, c->part, c->parts_count, c->block, c->stream);
	return e == 0 ? sums_queue(c, m) : e;
}

/* What came of each block; prefixes end before the first wrong one. */
static void decode_judge(struct cuda_engine *c, const struct cuda_resident *m)
{
	for (unsigned i = 0; i < c->count; i++) {
		struct device_task *t = c->task[i];
		const struct cuda_model_result *is = &c->result[i];

		if (t->res != 0)
			continue;
		if (is->res == 0 && m->results[i].raw_xxh3 == c->coded[i].raw_xxh3)
			continue;
		t->refusal = (uint8_t)is->refusal;
		fail_from(c, i, is->res ? is->res : -EBADMSG);
	}
}

static int decode_out(struct cuda_engine *c, const struct cuda_resident *m)
{
	int e = 0;

	for (unsigned i = 0; e == 0 && i < c->count; i++) {
		struct device_task *t = c->task[i];
		const uint8_t *raw = m->raw + i * m->raw_each;

		if (t->res != 0 || t->prefix_only)
			continue;
		e = (int)cudaMemcpyAsync(region_packed(t) ? t->region->base : m->host_raw, raw,
					 m->geom->raw_bytes, cudaMemcpyDeviceToHost, c->stream);
		if (e != 0 || region_packed(t))
			continue;
		e = (int)cudaStreamSynchronize(c->stream);
		if (e == 0)
			block_out(t, m->host_raw);
	}
	return all_over(c, e);
}

static int decode_batch(struct cuda_engine *c)
{
	struct cuda_resident *m = NULL;
	int e;

	batch_check(c, decode_check);
	if (!batch_lay(c, &m))
		return 0;
	gpu_begins(c);
	e = decode_queue(c, m);
	if (e != 0) { /* what was queued ends, and is forgotten */
		(void)cuda_model_coded(m->decoder, c->stream, c->result);
		return e;
	}
	e = cuda_model_coded(m->decoder, c->stream, c->result);
	if (e != 0)
		return e;
	decode_judge(c, m);
	return decode_out(c, m);
}

/* ---- encoding ---- */

/* A raw block up; by way of pinned memory when it is in pieces. */
static int raw_up(struct cuda_engine *c, const struct cuda_resident *m, unsigned i)
{
	const struct device_task *t = c->task[i];
	const struct codec_view v = cpu_view(t);
	const uint8_t *from = t->region->base;
	int e = 0;

	if (t->region->stride) {
		e = (int)cudaStreamSynchronize(c->stream); /* the one before is read */
		codec_copy_out(m->geom, &v, m->host_raw);
		from = m->host_raw;
	}
	return e ? e
		 : (int)cudaMemcpyAsync((void *)(uintptr_t)c->block[i].base, from,
					m->geom->raw_bytes, cudaMemcpyHostToDevice, c->stream);
}

static int encode_queue(struct cuda_engine *c, struct cuda_resident *m)
{
	const uint32_t tokens = m->geom->block_tokens;
	unsigned n = 0;
	int e = 0;

	for (unsigned i = 0; e == 0 && i < c->count; i++) {
		if (c->task[i]->tokens)
			memcpy(c->ids + (size_t)i * tokens, c->task[i]->tokens,
			       tokens * sizeof(c->ids[0]));
		c->block[i].payload_bytes = (uint32_t)m->geom->raw_bytes;
		e = raw_up(c, m, i);
	}
	for (unsigned i = 0; i < c->parts_count; i++) {
		c->part[i].ids = c->ids + n;
		n += c->part[i].count;
	}
	if (e == 0)
		e = sums_queue(c, m);
	return e == 0 ? cuda_model_encode(m->encoder, c->part, c->parts_count, c->block, c->stream)
		      : e;
}

/* To where it will lie in the container. */
static int payloads_down(struct cuda_engine *c, const struct cuda_resident *m)
{
	const uint64_t off = sizeof(struct format_block_header) +
			     m->geom->chunks_count * sizeof(struct format_chunk_entry);
	int e = 0;

	for (unsigned i = 0; e == 0 && i < c->count; i++) {
		struct cuda_model_result *is = &c->result[i];
		struct device_task *t = c->task[i];

		if (is->res == 0 && off + is->payload_bytes > t->out_cap_bytes)
			is->res = -ENOSPC;
		c->coded[i].payload = (uint8_t *)t->out + off;
		if (is->res == 0)
			e = (int)cudaMemcpyAsync((uint8_t *)t->out + off, c->block[i].payload,
						 is->payload_bytes, cudaMemcpyDeviceToHost,
						 c->stream);
	}
	return all_over(c, e);
}

/* The container around the payload, or what the codec makes of a block that the model does not make smaller. */
static int pack_one(struct cuda_engine *c, const struct cuda_resident *m, unsigned i)
{
	struct device_task *t = c->task[i];
	const struct codec_made made = { .bytes = c->coded[i].payload,
					 .bytes_count = c->result[i].payload_bytes,
					 .escapes = c->result[i].escapes };
	struct codec_view v = cpu_view(t);
	int r = -ENODATA;

	if (c->result[i].res == 0)
		r = codec_made_pack(m->geom, t->profile, &made, m->results[i].raw_xxh3, t->out,
				    t->out_cap_bytes, &t->info);
	if (r != -ENODATA)
		return r;
	v.tokens = NULL;
	v.made = c->result[i].res == 0 ? &made : NULL;
	return codec_encode(c->ws, m->geom, t->profile, t->speculator,
			    t->verify ? CODEC_ENCODE_VERIFY : 0, &v, t->out, t->out_cap_bytes,
			    &t->info);
}

static void encode_pack(struct cuda_engine *c, const struct cuda_resident *m)
{
	for (unsigned i = 0; i < c->count; i++) {
		int r = c->task[i]->res == 0 ? pack_one(c, m, i) : 0;

		if (r < 0)
			fail_from(c, i, r);
	}
}

static int encode_batch(struct cuda_engine *c)
{
	struct cuda_resident *m = NULL;
	int e;

	batch_check(c, NULL);
	if (!batch_lay(c, &m))
		return 0;
	e = cuda_resident_encodes(c, m);
	if (e != 0)
		return e;
	gpu_begins(c);
	e = encode_queue(c, m);
	if (e != 0) {
		(void)cuda_model_coded(m->encoder, c->stream, c->result);
		return e;
	}
	e = cuda_model_coded(m->encoder, c->stream, c->result);
	if (e == 0)
		e = payloads_down(c, m);
	if (e == 0)
		encode_pack(c, m);
	return e;
}

static void run(struct predictor_engine *e, struct device_task **tasks, unsigned count)
{
	struct cuda_engine *c = cuda_engine_of(e);
	int r;

	cuda_engine_enter(c);
	(void)cudaGetLastError();
	if (tasks[0]->op == DEVICE_PREPARE) {
		tasks[0]->res = cuda_sequence_ready(c, cuda_sequence_of(tasks[0]->sequence), 0);
	} else if (!by_model(tasks[0])) {
		assert(count == 1);
		run_alone(c, tasks[0]);
	} else {
		batch_sort(c, tasks, count);
		r = cuda_engine_told(c, tasks[0]->op == DEVICE_ENCODE ? encode_batch(c)
								      : decode_batch(c));
		if (r < 0)
			fail_all(c, r);
	}
	(void)cudaGetLastError();
	atomic_store(&e->busy_since_ns, 0);
}

/* ---- from the first to the last ---- */

static void engine_free(struct predictor_engine *e)
{
	struct cuda_engine *c = cuda_engine_of(e);

	cuda_engine_enter(c);
	while (c->models) {
		struct cuda_resident *m = c->models;

		c->models = m->next;
		cuda_resident_free(m);
	}
	if (c->stream)
		(void)cudaStreamDestroy(c->stream);
	codec_workspace_free(c->ws);
	free(c->ids);
	free(c);
}

static const struct predictor_engine_ops engine_ops = {
	.sequence_new = cuda_sequence_new,
	.position = cuda_sequence_position,
	.truncate = cuda_sequence_truncate,
	.bytes = cuda_sequence_bytes,
	.sequence_end = cuda_sequence_end,
	.batch_max = batch_max,
	.run = run,
	.free = engine_free,
};

static int engine_init(struct cuda_engine *c, char *err)
{
	int least = 0, greatest = 0, e;
	unsigned sms;

	c->base.ops = &engine_ops;
	c->ids = calloc(c->batch_tokens < CODEC_BLOCK_TOKENS_MAX ? CODEC_BLOCK_TOKENS_MAX
								 : c->batch_tokens,
			sizeof(c->ids[0]));
	if (!c->ids || codec_workspace_new(&c->ws) < 0)
		return gpu_say(err, -ENOMEM, "out of memory");
	cuda_engine_enter(c);
	/* We are guests on this GPU: whatever an engine runs goes first. */
	e = (int)cudaDeviceGetStreamPriorityRange(&least, &greatest);
	if (e == 0)
		e = (int)cudaStreamCreateWithPriority(&c->stream, cudaStreamNonBlocking, least);
	if (e == 0)
		e = cuda_codec_init(&sms);
	if (e != 0)
		return gpu_say(err, gpu_errno(e), "no stream for models: %s", gpu_error_name(e));
	return 0;
}

int skvcd_cuda_predictor_new_v1(const struct predictor_options *options, struct device **ret_device,
				char *err)
{
	struct device_facts facts;
	struct cuda_engine *c;
	int ordinal, r;

	if (options->batch_tokens == 0 || options->positions_max == 0 ||
	    options->positions_max > PREDICTOR_POSITIONS_MAX)
		return gpu_say(err, -EINVAL, "tokens out of range");
	r = cuda_facts_choose(options->which, &ordinal, &facts, err);
	if (r < 0)
		return r;
	c = calloc(1, sizeof(*c));
	if (!c)
		return gpu_say(err, -ENOMEM, "out of memory");
	c->ordinal = ordinal;
	c->batch_tokens = options->batch_tokens;
	static_assert(PREDICTOR_POSITIONS_MAX <= CUDA_MODEL_POSITIONS_MAX, "what kernels can do");
	c->positions_max = options->positions_max;
	r = engine_init(c, err);
	if (r < 0) {
		engine_free(&c->base);
		return r;
	}
	r = predictor_new(&c->base, options, ret_device);
	return r < 0 ? gpu_say(err, r, "no thread for models") : 0;
}
