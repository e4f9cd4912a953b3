/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_slot.c - batches of a predictor on a GPU, several under way at a time: what is queued, in which order, and what
 * becomes of it.
 *
 *   DECODE    begin: payloads up -> the model, which decodes them into raw blocks -> checksums
 *             end:   blocks down
 *   ENCODE    begin: raw blocks up -> checksums -> the model
 *             end:   payloads down -> the container, by the codec on this thread
 *
 * A batch may follow one that is still under way in the same prefix: it is queued behind it, as if that will go well;
 * if it does not, cancel_behind() is what its tasks get.  Batches end in the order in which they began.
 */
#include "gpu/cuda_predictor.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "gpu/clock.h"
#include "gpu/codec/format.h"
#include "gpu/codec/internal.h"
#include "gpu/cpu_code.h"
#include "gpu/cuda_internal.h"

/* ---- the object ---- */

int cuda_slot_init(struct cuda_engine *c, struct cuda_slot *s, int priority)
{
	const uint32_t ids = c->batch_tokens < CODEC_BLOCK_TOKENS_MAX ? CODEC_BLOCK_TOKENS_MAX
								      : c->batch_tokens;
	int e = (int)cudaStreamCreateWithPriority(&s->stream, cudaStreamNonBlocking, priority);

	if (e == 0)
		e = (int)cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming);
	if (e == 0)
		e = (int)cudaHostAlloc((void **)&s->ids, ids * sizeof(s->ids[0]),
				       cudaHostAllocDefault);
	return e;
}

void cuda_slot_deinit(struct cuda_slot *s)
{
	if (s->stream)
		(void)cudaStreamDestroy(s->stream);
	if (s->done)
		(void)cudaEventDestroy(s->done);
	if (s->ids)
		(void)cudaFreeHost(s->ids);
}

void cuda_slot_take(struct cuda_engine *c, struct cuda_slot *s, struct device_task **tasks,
		    unsigned count)
{
	assert(!s->begun);
	s->number = ++c->number;
	s->encodes = tasks[0]->op == DEVICE_ENCODE;
	s->count = count;
	for (unsigned i = 0; i < count; i++)
		s->task[i] = tasks[i];
}

/* ---- failures ---- */

/* The prefix ended before what began later than s. */
static void cancel_behind(struct cuda_engine *c, const struct cuda_slot *s,
			  const struct device_sequence *q)
{
	for (unsigned k = 0; k < PREDICTOR_DEPTH_MAX; k++) {
		struct cuda_slot *later = &c->slot[k];

		for (unsigned i = 0; later->number > s->number && i < later->count; i++)
			if (later->task[i]->sequence == q && later->task[i]->res == 0)
				later->task[i]->res = -ECANCELED;
	}
}

/*
 * From `first` on all tasks of that sequence: the first has failed with r, the others are behind it, and the prefix
 * ends before it.
 */
static void fail_from(struct cuda_engine *c, struct cuda_slot *s, unsigned first, int r)
{
	struct device_sequence *q = s->task[first]->sequence;

	cuda_sequence_truncate(q, s->position[first]);
	s->task[first]->res = r;
	for (unsigned i = first + 1u; i < s->count && s->task[i]->sequence == q; i++)
		s->task[i]->res = -ECANCELED;
	cancel_behind(c, s, q);
}

/* All that has not failed yet. */
static void fail_all(struct cuda_engine *c, struct cuda_slot *s, int r)
{
	for (unsigned i = 0; i < s->count; i++)
		if (s->task[i]->res == 0)
			fail_from(c, s, i, r);
}

/* ---- before it begins ---- */

/* How many tasks from `first` on are of its sequence. */
static unsigned of_sequence(const struct cuda_slot *s, unsigned first)
{
	unsigned n = 1;

	while (first + n < s->count && s->task[first + n]->sequence == s->task[first]->sequence)
		n++;
	return n;
}

static bool encoder_taken(const struct cuda_engine *c, const struct cuda_slot *s)
{
	const struct codec_profile *p = s->task[0]->sequence->profile;
	bool taken = false;

	for (unsigned k = 0; k < PREDICTOR_DEPTH_MAX; k++)
		taken |= c->slot[k].begun && c->slot[k].encodes && c->slot[k].model->profile == p;
	return s->encodes && taken;
}

/* Can it begin while others are under way?  What these use stays where it is. */
static bool fits_beside(const struct cuda_engine *c, const struct cuda_slot *s)
{
	for (unsigned i = 0, n; i < s->count; i += n) {
		const struct cuda_sequence *q = cuda_sequence_of(s->task[i]->sequence);

		n = of_sequence(s, i);
		if (q->slot && !cuda_sequence_has_room(c, q, n * q->base.geom->block_tokens))
			return false;
	}
	return !encoder_taken(c, s);
}

/* The model, and memory for the batch; others end when it must be theirs.  Also on failure the room may be taken. */
static int room_take(struct cuda_engine *c, struct cuda_slot *s)
{
	struct cuda_sequence *q = cuda_sequence_of(s->task[0]->sequence);
	int r = 0;

	s->room = NULL;
	for (unsigned i = 1; !q->model && i < s->count; i++)
		q = cuda_sequence_of(s->task[i]->sequence);
	if (!q->model)
		r = cuda_sequence_ready(c, q, 0);
	if (r < 0)
		return r;
	s->model = q->model;
	s->room = cuda_resident_room(c, s->model);
	if (!s->room) {
		cuda_slots_end(c);
		s->room = cuda_resident_room(c, s->model);
	}
	assert(s->room);
	s->room->taken = true;
	if (s->encodes)
		r = cuda_resident_encodes(c, s->model);
	if (r != -ENOMEM)
		return r;
	cuda_slots_end(c);
	return cuda_resident_encodes(c, s->model);
}

/* Without having begun, or at the end. */
static void room_leave(struct cuda_slot *s)
{
	if (s->room)
		s->room->taken = false;
	s->count = 0;
}

bool cuda_position_good(const struct device_task *t, uint32_t position)
{
	return t->position == position ||
	       (t->op == DEVICE_DECODE && t->position == CODEC_POSITION_UNKNOWN);
}

static int decode_check(struct cuda_slot *s, unsigned i)
{
	struct device_task *t = s->task[i];
	int r = codec_model_payload(t->region->geom, t->profile, t->in, t->in_bytes, &s->coded[i],
				    &t->refusal);

	/* All that this geometry has is the model's. */
	if (r == -ENODATA || (r == 0 && s->coded[i].raw_xxh3 != t->expect_xxh3) ||
	    (r == 0 && s->coded[i].payload_bytes > t->region->geom->raw_bytes))
		return -EBADMSG;
	if (r == 0 && t->profile != t->sequence->profile) {
		t->refusal = CODEC_REFUSAL_PREFIX;
		return -ESTALE;
	}
	return r;
}

static int task_check(struct cuda_slot *s, unsigned i)
{
	struct device_task *t = s->task[i];

	if (cuda_position_good(t, s->position[i]))
		return s->encodes ? 0 : decode_check(s, i);
	t->refusal = CODEC_REFUSAL_PREFIX;
	return s->encodes ? -EINVAL : -ESTALE;
}

static void positions_fill(struct cuda_slot *s)
{
	for (unsigned i = 0; i < s->count; i++) {
		const struct device_sequence *q = s->task[i]->sequence;

		s->position[i] = i > 0 && s->task[i - 1u]->sequence == q
					 ? s->position[i - 1u] + q->geom->block_tokens
					 : cuda_sequence_position(q);
	}
}

/* Room for each sequence's tasks, and what can be said of them before they run. */
static void batch_check(struct cuda_engine *c, struct cuda_slot *s)
{
	for (unsigned i = 0, n; i < s->count; i += n) {
		struct device_sequence *q = s->task[i]->sequence;
		const uint32_t tokens = q->geom->block_tokens;
		int r;

		n = of_sequence(s, i);
		if (s->task[i]->res != 0)
			continue; /* what was before has failed meanwhile */
		r = cuda_sequence_ready(c, cuda_sequence_of(q), n * tokens);
		if (r < 0) {
			fail_from(c, s, i, r);
			continue;
		}
		for (unsigned k = i; r == 0 && k < i + n; k++) {
			r = task_check(s, k);
			if (r < 0)
				fail_from(c, s, k, r);
		}
	}
}

/* What is still to be done, as parts and blocks of the room.  False: nothing. */
static bool batch_lay(struct cuda_slot *s)
{
	const uint64_t each = s->model->raw_each;
	unsigned n = 0;

	s->parts_count = 0;
	for (unsigned i = 0; i < s->count; i++) {
		struct device_task *t = s->task[i];
		struct cuda_sequence *q = cuda_sequence_of(t->sequence);

		if (t->res != 0)
			continue;
		if (s->parts_count == 0 || s->part[s->parts_count - 1u].context != q->context)
			s->part[s->parts_count++] =
				(struct cuda_model_part){ .context = q->context };
		s->part[s->parts_count - 1u].count += q->base.geom->block_tokens;
		s->block[n] = (struct cuda_model_block){
			.base = (uint64_t)(uintptr_t)(s->room->raw + n * each),
			.payload = s->room->payload + n * each,
		};
		s->task[n] = t; /* those that have ended are passed over from here on */
		s->position[n] = s->position[i];
		s->coded[n] = s->coded[i];
		n++;
	}
	s->count = n;
	return n > 0;
}

/* ---- it begins ---- */

static struct cuda_model_coder *coder_of(const struct cuda_slot *s)
{
	return s->encodes ? s->model->encoder : s->room->decoder;
}

/* Behind the batches in which the same prefixes are, and no others. */
static int follow(struct cuda_slot *s)
{
	const struct cuda_slot *before = NULL;
	int e = 0;

	for (unsigned i = 0; e == 0 && i < s->count; i++) {
		struct cuda_sequence *q = cuda_sequence_of(s->task[i]->sequence);

		if (q->slot && q->slot != s && q->slot != before) {
			before = q->slot;
			e = (int)cudaStreamWaitEvent(s->stream, before->done, 0);
		}
	}
	return e;
}

/* The checksums of all blocks, with what the codec makes of raw ones. */
static int sums_queue(struct cuda_engine *c, struct cuda_slot *s)
{
	const struct cuda_room *o = s->room;
	struct cuda_codec_batch *b = &c->sums;
	int e = 0;

	b->geom = s->model->geom;
	b->dev_scratch = (uint64_t)(uintptr_t)o->scratch;
	memset(o->results, 0, s->count * sizeof(o->results[0]));
	for (unsigned first = 0; e == 0 && first < s->count; first += b->tasks_count) {
		b->tasks_count = s->count - first < SUMS_MAX ? s->count - first : SUMS_MAX;
		b->dev_results = (uint64_t)(uintptr_t)&o->results[first];
		b->task_words = o->task_words + first * CUDA_TASK_BYTES;
		for (unsigned i = 0; i < b->tasks_count; i++)
			b->task[i] = (struct cuda_codec_task){
				.region = o->region,
				.block_index = first + i,
				.dev_payload =
					(uint64_t)(uintptr_t)(o->copy + i * s->model->copy_each),
			};
		e = cuda_codec_encode(b, s->stream);
	}
	return e;
}

static int decode_queue(struct cuda_engine *c, struct cuda_slot *s)
{
	int e = 0;

	for (unsigned i = 0; e == 0 && i < s->count; i++) {
		s->block[i].payload_bytes = (uint32_t)s->coded[i].payload_bytes;
		e = (int)cudaMemcpyAsync(s->block[i].payload, s->coded[i].payload,
					 s->coded[i].payload_bytes, cudaMemcpyHostToDevice,
					 s->stream);
	}
	if (e == 0)
		e = follow(s);
	if (e == 0)
		e = cuda_model_decode(s->room->decoder, s->part, s->parts_count, s->block,
				      s->stream);
	if (e == 0)
		e = (int)cudaEventRecord(s->done, s->stream);
	return e == 0 ? sums_queue(c, s) : e;
}

/* A raw block up; by way of pinned memory when it is in pieces. */
static int raw_up(const struct cuda_slot *s, unsigned i)
{
	const struct device_task *t = s->task[i];
	const struct codec_view v = cpu_view(t);
	const uint8_t *from = t->region->base;
	int e;

	if (t->region->stride) {
		codec_copy_out(s->model->geom, &v, s->room->host_raw);
		from = s->room->host_raw;
	}
	e = (int)cudaMemcpyAsync((void *)(uintptr_t)s->block[i].base, from,
				 s->model->geom->raw_bytes, cudaMemcpyHostToDevice, s->stream);
	if (e == 0 && t->region->stride)
		e = (int)cudaStreamSynchronize(s->stream); /* the next one goes there too */
	return e;
}

static int encode_queue(struct cuda_engine *c, struct cuda_slot *s)
{
	const uint32_t tokens = s->model->geom->block_tokens;
	unsigned n = 0;
	int e = 0;

	for (unsigned i = 0; e == 0 && i < s->count; i++) {
		if (s->task[i]->tokens)
			memcpy(s->ids + (size_t)i * tokens, s->task[i]->tokens,
			       tokens * sizeof(s->ids[0]));
		s->block[i].payload_bytes = (uint32_t)s->model->geom->raw_bytes;
		e = raw_up(s, i);
	}
	for (unsigned i = 0; i < s->parts_count; i++) {
		s->part[i].ids = s->ids + n;
		n += s->part[i].count;
	}
	if (e == 0)
		e = sums_queue(c, s);
	if (e == 0)
		e = follow(s);
	if (e == 0)
		e = cuda_model_encode(s->model->encoder, s->part, s->parts_count, s->block,
				      s->stream);
	return e == 0 ? (int)cudaEventRecord(s->done, s->stream) : e;
}

/* s begins, or is not under way any more: since when is the oldest of them waited for? */
static void begun_set(struct cuda_engine *c, struct cuda_slot *s, bool begun)
{
	bool any = false;

	for (unsigned k = 0; k < PREDICTOR_DEPTH_MAX; k++)
		any |= &c->slot[k] != s && c->slot[k].begun;
	if (!begun || !any)
		atomic_store(&c->base.busy_since_ns, begun || any ? gpu_now_ns() : 0);
	s->begun = begun;
}

/* What was queued ends, and is forgotten. */
static void begin_failed(struct cuda_engine *c, struct cuda_slot *s, int e)
{
	(void)cuda_model_coded(coder_of(s), s->stream, s->result);
	begun_set(c, s, false);
	fail_all(c, s, cuda_engine_told(c, e));
	room_leave(s);
	(void)cudaGetLastError();
}

void cuda_slot_begin(struct cuda_engine *c, struct cuda_slot *s)
{
	int r, e;

	if (!fits_beside(c, s))
		cuda_slots_end(c);
	r = room_take(c, s);
	positions_fill(s);
	if (r < 0)
		fail_all(c, s, r);
	else
		batch_check(c, s);
	if (r < 0 || !batch_lay(s)) {
		room_leave(s);
		return;
	}
	begun_set(c, s, true);
	e = s->encodes ? encode_queue(c, s) : decode_queue(c, s);
	if (e != 0) {
		begin_failed(c, s, e);
		return;
	}
	for (unsigned i = 0; i < s->count; i++)
		cuda_sequence_of(s->task[i]->sequence)->slot = s;
}

/* ---- it ends ---- */

/* Nothing that was queued touches anybody's memory any more, whatever has failed. */
static int all_over(const struct cuda_slot *s, int e)
{
	const int last = (int)cudaStreamSynchronize(s->stream);

	return e ? e : last;
}

void cuda_block_out(const struct device_task *t, const uint8_t *raw)
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

/* What came of each block; prefixes end before the first wrong one. */
static void decode_judge(struct cuda_engine *c, struct cuda_slot *s)
{
	for (unsigned i = 0; i < s->count; i++) {
		struct device_task *t = s->task[i];
		const struct cuda_model_result *is = &s->result[i];

		if (t->res != 0)
			continue;
		if (is->res == 0 && s->room->results[i].raw_xxh3 == s->coded[i].raw_xxh3)
			continue;
		t->refusal = (uint8_t)is->refusal;
		fail_from(c, s, i, is->res ? is->res : -EBADMSG);
	}
}

static int decode_out(const struct cuda_slot *s)
{
	int e = 0;

	for (unsigned i = 0; e == 0 && i < s->count; i++) {
		struct device_task *t = s->task[i];
		const uint8_t *raw = s->room->raw + i * s->model->raw_each;

		if (t->res != 0 || t->prefix_only)
			continue;
		e = (int)cudaMemcpyAsync(region_packed(t) ? t->region->base : s->room->host_raw,
					 raw, s->model->geom->raw_bytes, cudaMemcpyDeviceToHost,
					 s->stream);
		if (e != 0 || region_packed(t))
			continue;
		e = (int)cudaStreamSynchronize(s->stream);
		if (e == 0)
			cuda_block_out(t, s->room->host_raw);
	}
	return all_over(s, e);
}

/* To where it will lie in the container. */
static int payloads_down(struct cuda_slot *s)
{
	const uint64_t off = sizeof(struct format_block_header) +
			     s->model->geom->chunks_count * sizeof(struct format_chunk_entry);
	int e = 0;

	for (unsigned i = 0; e == 0 && i < s->count; i++) {
		struct cuda_model_result *is = &s->result[i];
		struct device_task *t = s->task[i];

		if (is->res == 0 && off + is->payload_bytes > t->out_cap_bytes)
			is->res = -ENOSPC;
		s->coded[i].payload = (uint8_t *)t->out + off;
		if (t->res == 0 && is->res == 0)
			e = (int)cudaMemcpyAsync((uint8_t *)t->out + off, s->block[i].payload,
						 is->payload_bytes, cudaMemcpyDeviceToHost,
						 s->stream);
	}
	return all_over(s, e);
}

/* The container around the payload, or what the codec makes of a block that the model does not make smaller. */
static int pack_one(struct cuda_engine *c, const struct cuda_slot *s, unsigned i)
{
	struct device_task *t = s->task[i];
	const struct cuda_resident *m = s->model;
	const struct codec_made made = { .bytes = s->coded[i].payload,
					 .bytes_count = s->result[i].payload_bytes,
					 .escapes = s->result[i].escapes };
	struct codec_view v = cpu_view(t);
	int r = -ENODATA;

	if (s->result[i].res == 0)
		r = codec_made_pack(m->geom, t->profile, &made, s->room->results[i].raw_xxh3,
				    t->out, t->out_cap_bytes, &t->info);
	if (r != -ENODATA)
		return r;
	v.tokens = NULL;
	v.made = s->result[i].res == 0 ? &made : NULL;
	return codec_encode(c->ws, m->geom, t->profile, t->speculator,
			    t->verify ? CODEC_ENCODE_VERIFY : 0, &v, t->out, t->out_cap_bytes,
			    &t->info);
}

static void encode_pack(struct cuda_engine *c, struct cuda_slot *s)
{
	for (unsigned i = 0; i < s->count; i++) {
		int r = s->task[i]->res == 0 ? pack_one(c, s, i) : 0;

		if (r < 0)
			fail_from(c, s, i, r);
	}
}

static void slot_end(struct cuda_engine *c, struct cuda_slot *s)
{
	int e = cuda_model_coded(coder_of(s), s->stream, s->result);

	if (e == 0 && s->encodes) {
		e = payloads_down(s);
	} else if (e == 0) {
		decode_judge(c, s);
		e = decode_out(s);
	}
	begun_set(c, s, false);
	if (e != 0)
		fail_all(c, s, cuda_engine_told(c, e));
	else if (s->encodes)
		encode_pack(c, s);
	for (unsigned i = 0; i < s->count; i++) {
		struct cuda_sequence *q = cuda_sequence_of(s->task[i]->sequence);

		if (q->slot == s)
			q->slot = NULL;
	}
	room_leave(s);
}

static struct cuda_slot *slot_oldest(struct cuda_engine *c)
{
	struct cuda_slot *oldest = NULL;

	for (unsigned k = 0; k < PREDICTOR_DEPTH_MAX; k++)
		if (c->slot[k].begun && (!oldest || c->slot[k].number < oldest->number))
			oldest = &c->slot[k];
	return oldest;
}

void cuda_slot_end(struct cuda_engine *c, const struct cuda_slot *s)
{
	while (s->begun)
		slot_end(c, slot_oldest(c));
}

void cuda_slots_end(struct cuda_engine *c)
{
	struct cuda_slot *s;

	while ((s = slot_oldest(c)))
		slot_end(c, s);
}
