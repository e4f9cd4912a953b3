/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_batch.c - tasks that can go together become one launch of the codec.  The lane's thread.
 *
 *   DECODE    host payloads -> staging (two copy streams in turn) -> kernels -> pages
 *   COPY_IN   the same with raw bytes and the scatter kernel
 *   ENCODE    pages -> kernels -> staging, where payloads stay until unstaged
 *   COPY_OUT  pages -> gather kernel -> staging -> host
 *
 * The copies of one batch run while the kernels of the one before do.  A batch starts with the oldest
 * task, takes the like of it from behind, and waits for more to come only where it would have to wait anyway.
 */
#include "gpu/cuda_internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "gpu/codec/format.h"

/* How far behind its first task a batch looks for others; bounds a poll. */
#define BATCH_LOOK_MAX CUDA_BATCH_TASKS_MAX
/* So many blocks are enough for a GPU when they are large; when they are small it takes more, up to so many bytes. */
#define BATCH_TASKS_ENOUGH 256u
#define BATCH_BYTES_ENOUGH (256ull << 20)
#define PAYLOAD_ALIGN 64u

static uint64_t aligned(uint64_t bytes)
{
	return (bytes + PAYLOAD_ALIGN - 1u) & ~(uint64_t)(PAYLOAD_ALIGN - 1u);
}

static bool decodes_in_place(const struct device_task *t)
{
	return t->op == DEVICE_DECODE && t->in_place == DEVICE_PLACE_DEVICE &&
	       (uintptr_t)t->in % PAYLOAD_ALIGN == 0;
}

uint64_t cuda_task_bytes(struct cuda_device *d, const struct device_task *t)
{
	switch (t->op) {
	case DEVICE_ENCODE:
		return aligned(cuda_shape_of(d, t->region->geom)->bound_bytes);
	case DEVICE_DECODE:
		return decodes_in_place(t) ? 0 : aligned(t->in_bytes);
	case DEVICE_COPY_OUT:
	case DEVICE_COPY_IN:
		return aligned(t->region->geom->raw_bytes);
	default:
		return 0;
	}
}

/* `raw` blocks are only gathered or read as they are; the tables are of no use. */
static const struct codec_profile *task_profile(const struct device_task *t)
{
	if (t->op == DEVICE_DECODE || (t->op == DEVICE_ENCODE && t->speculator != CODEC_SPEC_RAW))
		return t->profile;
	return NULL;
}

/*
 * Do the kernels of `layer` take part?  A block whose position nobody knows is coded by `channel`, and so is one
 * whose profile has nothing better.  A payload in device memory cannot be looked at here.
 */
static bool task_layer(struct cuda_device *d, const struct device_task *t)
{
	const struct codec_profile *p = task_profile(t);
	const uint8_t *in = t->in;

	if (!p || cuda_layers_of(d, t->region->geom, p)->ok <= 0)
		return false;
	if (t->op == DEVICE_ENCODE)
		return t->speculator == CODEC_SPEC_LAYER && t->position != CODEC_POSITION_UNKNOWN;
	return t->in_place == DEVICE_PLACE_DEVICE ||
	       (t->in_bytes > FORMAT_SPECULATOR_OFF &&
		in[FORMAT_SPECULATOR_OFF] == CODEC_SPEC_LAYER);
}

static bool alike(struct cuda_device *d, const struct device_task *a, const struct device_task *b)
{
	return a->op == b->op && a->region->geom == b->region->geom &&
	       task_profile(a) == task_profile(b) && task_layer(d, a) == task_layer(d, b) &&
	       (a->op != DEVICE_ENCODE ||
		(a->speculator == b->speculator && !a->verify == !b->verify));
}

/* Tables go up once, on a stream without other work; both kernel streams wait for them. */
static int profile_get(struct cuda_device *d, const struct codec_geometry *g,
		       const struct codec_profile *key, const struct cuda_profile **ret_profile)
{
	struct cuda_profile *p = NULL;
	int e;

	*ret_profile = NULL;
	if (!key)
		return 0;
	for (uint32_t i = 0; i < d->profiles_count; i++)
		if (d->profile[i].key == key) {
			*ret_profile = d->profile[i].profile;
			return 0;
		}
	if (d->profiles_count == CUDA_PROFILES_MAX)
		return cudaErrorMemoryAllocation;
	e = cuda_codec_profile_new(g, key, d->stream[CUDA_STREAM_IDLE], &p);
	if (e != 0)
		return e;
	d->profile[d->profiles_count++] = (struct cuda_profile_entry){ .key = key, .profile = p };
	e = (int)cudaEventRecord(d->uploaded, d->stream[CUDA_STREAM_IDLE]);
	if (e == 0)
		e = (int)cudaStreamWaitEvent(d->stream[CUDA_STREAM_LOAD], d->uploaded, 0);
	if (e == 0)
		e = (int)cudaStreamWaitEvent(d->stream[CUDA_STREAM_STORE], d->uploaded, 0);
	if (e != 0) { /* the next batch would not wait for them either */
		d->profiles_count--;
		cuda_codec_profile_free(p); /* waits for the upload */
		return e;
	}
	*ret_profile = p;
	return 0;
}

/* ---- choosing ---- */

struct choice {
	struct task_queue tasks;
	uint64_t bytes; /* of staging */
	bool cut;	/* others like these did not find room */
};

static uint32_t tasks_enough(const struct codec_geometry *g)
{
	const uint64_t n = BATCH_BYTES_ENOUGH / g->raw_bytes;

	return n < BATCH_TASKS_ENOUGH	  ? BATCH_TASKS_ENOUGH
	       : n < CUDA_BATCH_TASKS_MAX ? (uint32_t)n
					  : CUDA_BATCH_TASKS_MAX;
}

/*
 * Take the first task and those like it off the queue.  A batch is content with half of the area, so
 * that another fits beside it; a block that is larger than that goes alone.  Work that may wait takes
 * a quarter: what comes after it must not wait for long.
 */
static void batch_choose(struct cuda_device *d, struct task_queue *todo, enum cuda_class class,
			 bool background, struct choice *c)
{
	const struct staging_area *area = class == CUDA_CLASS_LOAD ? &d->loads : &d->stores;
	const struct device_task *first = todo->head;
	uint32_t tasks_max;
	uint64_t room = staging_room(area), most = area->bytes / (background ? 4u : 2u);
	struct task_queue left = { 0 };

	/* What is behind it may not go either, or large blocks would wait for ever. */
	if (cuda_task_bytes(d, first) > room)
		return;
	tasks_max = cuda_shape_of(d, first->region->geom)->tasks_max[class];
	if (tasks_max == 0 || first->op == DEVICE_COPY_OUT || first->op == DEVICE_COPY_IN)
		tasks_max = CUDA_BATCH_TASKS_MAX; /* no scratch; coding was checked by start() */
	else if (task_layer(d, first))
		tasks_max =
			cuda_layers_of(d, first->region->geom, first->profile)->tasks_max[class];
	if (tasks_max > tasks_enough(first->region->geom))
		tasks_max = tasks_enough(first->region->geom);
	for (unsigned i = 0; i < BATCH_LOOK_MAX && todo->head && c->tasks.count < tasks_max; i++) {
		struct device_task *t = task_queue_pop(todo);
		uint64_t bytes = cuda_task_bytes(d, t);

		if (alike(d, t, first) && c->bytes + bytes <= room &&
		    (c->bytes + bytes <= most || c->tasks.count == 0)) {
			c->bytes += bytes;
			task_queue_push(&c->tasks, t);
			continue;
		}
		task_queue_push(&left, t);
		if (alike(d, t, first)) {
			c->cut = c->bytes + bytes > room;
			break;
		}
	}
	task_queue_append(&left, todo);
	*todo = left;
}

/* Put a choice back where it came from. */
static void batch_unchoose(struct task_queue *todo, struct choice *c)
{
	task_queue_append(&c->tasks, todo);
	*todo = c->tasks;
	c->tasks = (struct task_queue){ 0 };
}

/* ---- launching ---- */

static void batch_fill(struct cuda_device *d, const struct cuda_flight *f, bool verify)
{
	struct cuda_codec_batch *b = &d->batch;
	uint64_t at = f->staged;
	uint32_t i = 0;

	b->geom = f->geom;
	b->tasks_count = f->tasks.count;
	b->verify = verify;
	b->layer = task_layer(d, f->tasks.head);
	b->task_words = f->task_words;
	b->dev_scratch = f->class == CUDA_CLASS_LOAD ? d->loads_scratch : d->stores_scratch;
	b->dev_results = (uint64_t)(uintptr_t)f->result;
	b->dev_chunk_done = f->op == DEVICE_DECODE
				    ? (uint64_t)(uintptr_t)(const void *)f->chunk_done
				    : 0;
	memset(f->result, 0, f->tasks.count * sizeof(f->result[0]));
	if (f->op == DEVICE_DECODE)
		for (uint32_t c = 0; c < f->geom->chunks_count; c++)
			f->chunk_done[c] = 0;
	for (const struct device_task *t = f->tasks.head; t; t = t->device_next) {
		b->task[i++] = (struct cuda_codec_task){
			.region = t->region->device_private,
			.block_index = t->block_index,
			.skip_tokens = t->skip_tokens,
			.position = t->position,
			.dev_payload = decodes_in_place(t) ? (uint64_t)(uintptr_t)t->in : at,
			.payload_bytes = t->op == DEVICE_DECODE ? t->in_bytes : 0,
			.expect_xxh3 = t->expect_xxh3,
		};
		at += cuda_task_bytes(d, t);
	}
}

/* Payloads into staging; the kernels' stream waits for them.  Waits even for half of them. */
static int batch_copy_in(struct cuda_device *d, const struct cuda_flight *f)
{
	bool used[2] = { false, false };
	uint32_t i = 0;
	int e = 0;

	for (const struct device_task *t = f->tasks.head; t && e == 0; t = t->device_next, i++) {
		bool raw = t->op == DEVICE_COPY_IN;
		unsigned turn;

		if (decodes_in_place(t))
			continue;
		turn = d->turn_in++ % 2;
		used[turn] = true;
		e = cuda_copy(d, (void *)(uintptr_t)d->batch.task[i].dev_payload, t->in,
			      raw ? f->geom->raw_bytes : t->in_bytes,
			      raw ? DEVICE_PLACE_HOST : (enum device_place)t->in_place,
			      DEVICE_PLACE_DEVICE, (enum cuda_stream)(CUDA_STREAM_IN0 + turn));
	}
	for (unsigned turn = 0; turn < 2; turn++) {
		int r = 0;

		if (!used[turn])
			continue;
		r = (int)cudaEventRecord(f->copied[turn], d->stream[CUDA_STREAM_IN0 + turn]);
		if (r == 0)
			r = (int)cudaStreamWaitEvent(d->stream[CUDA_STREAM_LOAD], f->copied[turn],
						     0);
		if (r != 0) { /* nobody could say when these copies end */
			cuda_device_abandon(d, r);
			return r;
		}
	}
	return e;
}

static int batch_kernels(struct cuda_device *d, struct cuda_flight *f)
{
	struct CUstream_st *stream =
		d->stream[f->class == CUDA_CLASS_LOAD ? CUDA_STREAM_LOAD : CUDA_STREAM_STORE];
	int e = (int)cudaEventRecord(f->kernel_begin, stream);

	if (e != 0)
		return e;
	switch (f->op) {
	case DEVICE_ENCODE:
		e = cuda_codec_encode(&d->batch, stream);
		break;
	case DEVICE_DECODE:
		e = cuda_codec_decode(&d->batch, stream);
		break;
	case DEVICE_COPY_OUT:
		e = cuda_codec_gather(&d->batch, stream);
		break;
	case DEVICE_COPY_IN:
		e = cuda_codec_scatter(&d->batch, stream);
		break;
	default:
		e = cudaErrorInvalidValue;
	}
	f->kernel = e == 0;
	return e;
}

static int batch_copy_out(struct cuda_device *d, const struct cuda_flight *f)
{
	uint32_t i = 0;
	int e = 0;

	for (const struct device_task *t = f->tasks.head; t && e == 0; t = t->device_next, i++)
		e = cuda_copy(d, t->out, (const void *)(uintptr_t)d->batch.task[i].dev_payload,
			      f->geom->raw_bytes, DEVICE_PLACE_DEVICE, DEVICE_PLACE_HOST,
			      f->stream);
	return e;
}

/*
 * Queue everything.  Whatever fails on the way, the last event is recorded behind what was queued, so the
 * flight lands, with an error, when nothing of it runs any more.
 */
static void batch_queue(struct cuda_device *d, struct cuda_flight *f,
			const struct codec_profile *profile, bool verify)
{
	bool load = f->class == CUDA_CLASS_LOAD;
	int e, last;

	/* "Not ready" is an error to the runtime, which the kernels' launch check would see. */
	(void)cudaGetLastError();
	batch_fill(d, f, verify);
	e = profile_get(d, f->geom, profile, &d->batch.profile);
	if (e == 0 && load)
		e = batch_copy_in(d, f);
	if (e == 0)
		e = batch_kernels(d, f);
	last = (int)cudaEventRecord(f->kernel_end,
				    d->stream[load ? CUDA_STREAM_LOAD : CUDA_STREAM_STORE]);
	if (last == 0 && f->op == DEVICE_COPY_OUT) {
		/* Behind the gather that may have been queued, whatever has failed since. */
		last = (int)cudaStreamWaitEvent(d->stream[f->stream], f->kernel_end, 0);
		if (last == 0 && e == 0)
			e = batch_copy_out(d, f);
		if (last == 0)
			last = (int)cudaEventRecord(f->copied[0], d->stream[f->stream]);
	}
	f->res = gpu_errno(e);
	cuda_flight_launched(d, f);
	(void)cudaGetLastError(); /* a refusal must not look like the next launch's */
	if (last != 0)
		cuda_device_abandon(d, last);
	else if (gpu_error_sticky(e))
		cuda_device_die(d);
}

/*
 * One batch runs, and another is behind it: a third would wait for both, so it may as well grow meanwhile.  Small
 * batches take nearly as long as large ones: `layer` is a chain of kernels, two of each segment.
 */
static bool better_later(const struct cuda_device *d, enum cuda_class class,
			 const struct task_queue *todo)
{
	const struct device_task *first = todo->head;
	const struct cuda_flight *f =
		d->flying[class == CUDA_CLASS_LOAD ? CUDA_STREAM_LOAD : CUDA_STREAM_STORE].head;

	return (first->op == DEVICE_ENCODE || first->op == DEVICE_DECODE) && f && f->next &&
	       todo->count < tasks_enough(first->region->geom);
}

bool cuda_batch_launch(struct cuda_device *d, enum cuda_class class, bool background)
{
	struct task_queue *todo = &d->todo[class][background];
	struct staging_area *area = class == CUDA_CLASS_LOAD ? &d->loads : &d->stores;
	const struct device_task *first = todo->head;
	struct choice c = { .bytes = 0 };
	struct cuda_flight *f;

	if (!first || !d->flights_free[class])
		return false;
	if (background && (d->background_count[class] > 0 || !cuda_budget_open(&d->budget)))
		return false;
	if (!cuda_budget_open(&d->share) || better_later(d, class, todo))
		return false;
	batch_choose(d, todo, class, background, &c);
	/* Crumbs of a full area would make small batches for as long as it stays full. */
	if (c.tasks.count == 0 || (c.cut && c.bytes < area->bytes / 4u && !staging_idle(area))) {
		batch_unchoose(todo, &c);
		return false;
	}
	f = cuda_flight_get(d, class);
	assert(f && c.tasks.head);
	if (c.bytes > 0) {
		f->staged = staging_take(area, c.bytes);
		assert(f->staged);
	}
	f->op = first->op;
	f->geom = first->region->geom;
	f->background = background;
	f->staged_each = cuda_task_bytes(d, first); /* stores: all alike */
	f->stream = class == CUDA_CLASS_LOAD ? CUDA_STREAM_LOAD : CUDA_STREAM_STORE;
	if (f->op == DEVICE_COPY_OUT)
		f->stream = d->turn_out++ % 2 ? CUDA_STREAM_OUT1 : CUDA_STREAM_OUT0;
	f->tasks = c.tasks;
	for (struct device_task *t = f->tasks.head; t; t = t->device_next)
		t->device_user = NULL;
	if (background && f->op != DEVICE_ENCODE) /* kernels are paid for when they have run */
		cuda_budget_spend(&d->budget, cuda_bus_ns(c.bytes));
	batch_queue(d, f, task_profile(first), first->verify);
	return true;
}
