/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_flight.c - what was launched and has not landed, moves, and the account of background work.
 * The lane's thread.  Flights end in the order of their stream, so only the first of each is asked for.
 */
#include "gpu/cuda_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "gpu/clock.h"

/* A small group completes early; many in the air hide the gaps between them. */
#define MOVES_GROUP_MAX 16u
#define MOVES_POLL_MAX 32u /* 2 to 3 us each: what one poll may cost */
#define SWITCH_NS \
	200000 /* measured beside a GEMM loop without MPS: what going to us and back costs it */
#define PACE_BYTES 65536u
#define PACE_BATCH_BYTES (8u << 20) /* smaller batches do not tell the pace */
#define BUS_BYTES_PER_US 55000u	    /* measured, either way: issue "The GPU data plane" */

static const uint32_t class_flights[CUDA_CLASS_COUNT] = {
	[CUDA_CLASS_LOAD] = 16,
	[CUDA_CLASS_MOVE] = 32,
	[CUDA_CLASS_STORE] = 16,
};

#define FLIGHTS_COUNT 64u
#define RESULTS_BYTES (CUDA_BATCH_TASKS_MAX * sizeof(struct cuda_result))
#define WORDS_BYTES (CUDA_BATCH_TASKS_MAX * CUDA_TASK_BYTES)
/* chunks: at most segments */
#define FLIGHT_MAPPED_BYTES (RESULTS_BYTES + CODEC_SEGMENTS_MAX + WORDS_BYTES)

static_assert(RESULTS_BYTES % 64 == 0 && CODEC_SEGMENTS_MAX % 64 == 0 && WORDS_BYTES % 64 == 0,
	      "a line has one flight's");

static int events_new(struct cuda_flight *f)
{
	int e = (int)cudaEventCreateWithFlags(&f->copied[0], cudaEventDisableTiming);

	if (e == 0)
		e = (int)cudaEventCreateWithFlags(&f->copied[1], cudaEventDisableTiming);
	if (e == 0)
		e = (int)cudaEventCreateWithFlags(&f->kernel_begin, cudaEventDefault);
	if (e == 0)
		e = (int)cudaEventCreateWithFlags(&f->kernel_end, cudaEventDefault);
	return e;
}

int cuda_flights_new(struct cuda_device *d, char *err)
{
	void *device_address = NULL;
	uint32_t n = 0;
	int e = (int)cudaHostAlloc(&d->mapped, FLIGHTS_COUNT * FLIGHT_MAPPED_BYTES,
				   cudaHostAllocMapped | cudaHostAllocPortable);

	if (e != 0)
		return gpu_say(err, gpu_errno(e), "no pinned memory for results: %s",
			       gpu_error_name(e));
	e = (int)cudaHostGetDevicePointer(&device_address, d->mapped, 0);
	if (e != 0 || device_address != d->mapped)
		return gpu_say(err, e ? gpu_errno(e) : -EOPNOTSUPP,
			       "the GPU has another address for host memory");
	d->flights = calloc(FLIGHTS_COUNT, sizeof(*d->flights));
	if (!d->flights)
		return gpu_say(err, -ENOMEM, "out of memory");
	for (unsigned c = 0; c < CUDA_CLASS_COUNT; c++)
		for (uint32_t i = 0; i < class_flights[c]; i++) {
			struct cuda_flight *f = &d->flights[n];
			uint8_t *mapped = (uint8_t *)d->mapped + n * FLIGHT_MAPPED_BYTES;

			assert(n < FLIGHTS_COUNT);
			n++;
			f->class = (enum cuda_class)c;
			f->result = (struct cuda_result *)mapped;
			f->chunk_done = mapped + RESULTS_BYTES;
			f->task_words = mapped + RESULTS_BYTES + CODEC_SEGMENTS_MAX;
			f->next = d->flights_free[c];
			d->flights_free[c] = f;
			e = events_new(f);
			if (e != 0)
				return gpu_say(err, gpu_errno(e), "cannot make events: %s",
					       gpu_error_name(e));
		}
	return 0;
}

static void event_destroy(struct CUevent_st *event)
{
	if (event)
		(void)cudaEventDestroy(event);
}

void cuda_flights_free(struct cuda_device *d)
{
	for (uint32_t i = 0; d->flights && i < FLIGHTS_COUNT; i++) {
		struct cuda_flight *f = &d->flights[i];

		event_destroy(f->copied[0]);
		event_destroy(f->copied[1]);
		event_destroy(f->kernel_begin);
		event_destroy(f->kernel_end);
	}
	free(d->flights);
	d->flights = NULL;
	if (d->mapped)
		(void)cudaFreeHost(d->mapped);
	d->mapped = NULL;
}

struct cuda_flight *cuda_flight_get(struct cuda_device *d, enum cuda_class class)
{
	struct cuda_flight *f = d->flights_free[class];

	if (!f)
		return NULL;
	d->flights_free[class] = f->next;
	f->next = NULL;
	f->background = f->kernel = false;
	f->res = 0;
	f->tasks = (struct task_queue){ 0 };
	f->geom = NULL;
	f->staged = f->staged_each = 0;
	f->progress = 0;
	return f;
}

/* Its last event is recorded on f->stream. */
void cuda_flight_launched(struct cuda_device *d, struct cuda_flight *f)
{
	struct cuda_flights *l = &d->flying[f->stream];

	f->launched_ns = gpu_now_ns();
	if (l->tail)
		l->tail->next = f;
	else
		l->head = f;
	l->tail = f;
	d->flights_count[f->class]++;
	d->background_count[f->class] += f->background;
}

uint64_t cuda_flights_since(const struct cuda_device *d)
{
	uint64_t since = UINT64_MAX;

	for (unsigned s = 0; s < CUDA_STREAM_COUNT; s++) {
		const struct cuda_flight *f = d->flying[s].head;

		if (f && f->launched_ns < since)
			since = f->launched_ns;
	}
	return since == UINT64_MAX ? 0 : since;
}

static void flight_put(struct cuda_device *d, struct cuda_flight *f)
{
	assert(f->tasks.count == 0 && d->flights_count[f->class] > 0);
	d->flights_count[f->class]--;
	d->background_count[f->class] -= f->background;
	f->next = d->flights_free[f->class];
	d->flights_free[f->class] = f;
}

/* ---- landing ---- */

static int encode_landed(struct cuda_device *d, const struct cuda_flight *f, struct device_task *t,
			 uint32_t index)
{
	const struct cuda_result *r = &f->result[index];
	uint64_t at = f->staged + index * f->staged_each;

	/* Results begin as zeros: a kernel that did not run must not count. */
	if (r->status != 0 || r->encoded_bytes == 0 || r->encoded_bytes > f->staged_each ||
	    r->speculator > CODEC_SPEC_LAYER)
		return -EIO;
	t->info = (struct codec_info){
		.encoded_bytes = r->encoded_bytes,
		.raw_xxh3 = r->raw_xxh3,
		.chunks_raw = r->chunks_raw,
		.escapes = r->escapes,
		.speculator = (uint8_t)r->speculator,
	};
	t->staged = (void *)(uintptr_t)at;
	staging_ref(&d->stores, at, 1);
	return 0;
}

static int decode_landed(const struct cuda_flight *f, struct device_task *t, uint32_t index)
{
	const struct cuda_result *r = &f->result[index];

	if (r->status & CUDA_STATUS_STALE)
		return -ESTALE;
	/* The kernel compared the checksums; so do we, who know that there was a kernel. */
	if (r->status != 0 || r->raw_xxh3 != t->expect_xxh3)
		return -EBADMSG;
	atomic_store_explicit(&t->segments_done, f->geom->segments_count, memory_order_relaxed);
	return 0;
}

/*
 * A batch's kernels cost engines what they take when nobody disturbs them, and the way there and back.  The
 * time between its events may have an engine's turn in it, so the best pace seen counts.
 */
static void share_spend(struct cuda_device *d, const struct cuda_flight *f, uint64_t busy_ns)
{
	uint64_t raw_bytes = f->tasks.count * f->geom->raw_bytes;
	uint64_t units = raw_bytes / PACE_BYTES + 1u, known_ns;

	if (raw_bytes >= PACE_BATCH_BYTES &&
	    (d->pace[f->class] == 0 || busy_ns / units < d->pace[f->class]))
		d->pace[f->class] = busy_ns / units + 1u;
	known_ns = d->pace[f->class] * units;
	if (known_ns == 0 || known_ns > busy_ns)
		known_ns = busy_ns;
	cuda_budget_spend(&d->share, known_ns + SWITCH_NS);
}

static void flight_landed(struct cuda_device *d, struct cuda_flight *f, int res)
{
	uint32_t count = f->tasks.count;
	uint64_t busy_ns = 0;
	float ms = 0;

	if (f->res < 0)
		res = f->res;
	if (res == 0 && f->kernel &&
	    cudaEventElapsedTime(&ms, f->kernel_begin, f->kernel_end) == cudaSuccess)
		busy_ns = (uint64_t)((double)ms * 1e6);
	if (f->background && f->kernel)
		cuda_budget_spend(&d->budget, busy_ns);
	if (f->kernel && d->share.percent < 100)
		share_spend(d, f, busy_ns);
	for (uint32_t i = 0; i < count; i++) {
		struct device_task *t = task_queue_pop(&f->tasks);
		int r = res < 0 ? res : t->res; /* a refused move's own */

		if (r == 0 && f->op == DEVICE_ENCODE)
			r = encode_landed(d, f, t, i);
		else if (r == 0 && f->op == DEVICE_DECODE)
			r = decode_landed(f, t, i);
		t->busy_ns = busy_ns / count;
		cuda_finish(d, t, r);
	}
	if (f->staged)
		staging_unref(f->class == CUDA_CLASS_LOAD ? &d->loads : &d->stores, f->staged);
	flight_put(d, f);
}

/* Leading chunks that are written, in every task of the decoding batch at the head of its stream. */
static void flight_progress(struct cuda_flight *f)
{
	uint32_t n = f->progress;

	while (n < f->geom->chunks_count && f->chunk_done[n])
		n++;
	if (n == f->progress)
		return;
	f->progress = n;
	for (struct device_task *t = f->tasks.head; t; t = t->device_next)
		atomic_store_explicit(&t->segments_done, f->geom->chunk_first_segment[n],
				      memory_order_relaxed);
}

void cuda_flights_harvest(struct cuda_device *d)
{
	for (unsigned s = 0; s < CUDA_STREAM_COUNT; s++) {
		struct cuda_flights *l = &d->flying[s];

		while (l->head) {
			struct cuda_flight *f = l->head;
			bool ends_by_kernel = s <= CUDA_STREAM_STORE;
			cudaError_t e = cudaEventQuery(ends_by_kernel ? f->kernel_end
								      : f->copied[0]);

			if (e == cudaErrorNotReady) {
				if (f->op == DEVICE_DECODE)
					flight_progress(f);
				break;
			}
			if (e != cudaSuccess) {
				cuda_device_die(d);
				return;
			}
			l->head = f->next;
			if (!l->head)
				l->tail = NULL;
			flight_landed(d, f, 0);
			d->eager = true;
		}
	}
}

void cuda_flights_fail(struct cuda_device *d)
{
	for (unsigned s = 0; s < CUDA_STREAM_COUNT; s++) {
		struct cuda_flights *l = &d->flying[s];

		while (l->head) {
			struct cuda_flight *f = l->head;

			l->head = f->next;
			flight_landed(d, f, -EIO);
		}
		l->tail = NULL;
	}
}

/* ---- moves ---- */

static enum cuda_stream move_stream(struct cuda_device *d, const struct device_task *t)
{
	const struct device_copy *c = &t->copy[0];

	if (c->in_place == DEVICE_PLACE_HOST)
		return d->turn_in++ % 2 ? CUDA_STREAM_IN1 : CUDA_STREAM_IN0;
	if (c->out_place == DEVICE_PLACE_HOST)
		return d->turn_out++ % 2 ? CUDA_STREAM_OUT1 : CUDA_STREAM_OUT0;
	return CUDA_STREAM_INSIDE;
}

static int move_queue(struct cuda_device *d, const struct device_task *t, enum cuda_stream s)
{
	for (uint32_t i = 0; i < t->copies_count; i++) {
		const struct device_copy *c = &t->copy[i];
		int e = cuda_copy(d, c->out, c->in, c->bytes, (enum device_place)c->in_place,
				  (enum device_place)c->out_place, s);

		if (e != 0)
			return e;
	}
	return 0;
}

static void moves_close(struct cuda_device *d, struct cuda_flight *f)
{
	int e;

	cuda_flight_launched(d, f);
	/* Else what was queued can not be waited for any more. */
	e = (int)cudaEventRecord(f->copied[0], d->stream[f->stream]);
	if (e != 0)
		cuda_device_abandon(d, e);
}

uint64_t cuda_bus_ns(uint64_t bytes)
{
	return bytes * 1000u / BUS_BYTES_PER_US;
}

static uint64_t move_ns(const struct device_task *t)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < t->copies_count; i++)
		bytes += t->copy[i].bytes;
	return cuda_bus_ns(bytes);
}

/* Groups up to MOVES_POLL_MAX moves by stream.  Returns true when it stopped at that bound. */
bool cuda_moves_launch(struct cuda_device *d, bool background)
{
	struct task_queue *todo = &d->todo[CUDA_CLASS_MOVE][background];
	struct cuda_flight *open[CUDA_STREAM_COUNT] = { 0 };
	uint32_t n = 0, most = background ? MOVES_GROUP_MAX : MOVES_POLL_MAX;
	int e = 0;

	/* Loads queue behind what is on the copy streams, so let there be little that may wait. */
	if (background && d->background_count[CUDA_CLASS_MOVE] > 0)
		return false;
	while (todo->head && n < most && !gpu_error_sticky(e)) {
		struct device_task *t;
		enum cuda_stream s;

		if (background && !cuda_budget_open(&d->budget))
			break;
		s = move_stream(d, todo->head);
		if (!open[s])
			open[s] = cuda_flight_get(d, CUDA_CLASS_MOVE);
		if (!open[s])
			break;
		open[s]->op = DEVICE_MOVE;
		open[s]->stream = s;
		open[s]->background = background;
		t = task_queue_pop(todo);
		t->device_user = NULL;
		task_queue_push(&open[s]->tasks, t);
		e = move_queue(d, t, s);
		t->res = gpu_errno(e); /* waits with its group: it may have been queued in part */
		if (background)
			cuda_budget_spend(&d->budget, move_ns(t));
		n++;
		if (open[s]->tasks.count < MOVES_GROUP_MAX)
			continue;
		moves_close(d, open[s]);
		open[s] = NULL;
	}
	for (unsigned s = 0; s < CUDA_STREAM_COUNT; s++)
		if (open[s])
			moves_close(d, open[s]);
	if (gpu_error_sticky(e))
		cuda_device_die(d);
	return !background && todo->head && n == most;
}

/* ---- background ---- */

bool cuda_budget_open(struct cuda_budget *b)
{
	uint64_t now = gpu_now_ns(), gone = now - b->filled_ns;

	if (b->percent >= 100)
		return true;
	if (gone > 1000000000u)
		gone = 1000000000u;
	b->filled_ns = now;
	b->ns += (int64_t)(gone * b->percent / 100u);
	if (b->ns > b->ns_max)
		b->ns = b->ns_max;
	return b->ns > 0;
}

void cuda_budget_spend(struct cuda_budget *b, uint64_t ns)
{
	b->ns -= (int64_t)ns;
}
