/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_device.c - a GPU that is not one, for machines without: what a lane can see of it is what it sees of
 * the CUDA device.  Nothing runs before poll(); poll() makes batches of waiting tasks of one op, and the
 * tasks of a batch complete together.  There is one stream per op, with one batch under way.
 *
 * Tasks wait in order, foreground before background, but one whose ready event is pending is passed by
 * those behind it.  An ENCODE takes its room in the staging memory when it is launched, for the worst
 * payload, and keeps it until unstage(); while there is no room ENCODEs wait in their order, and all else
 * goes on.  One background batch runs at a time; after it the device rests from background work so that
 * this takes background_percent of the time at most.
 *
 * The codec runs on worker threads.  They and the lane meet under `lock`; it is held for a few
 * instructions, and this is no device for speed.  A clock thread wakes a lane that sleeps while something
 * waits for a time or an event, since nobody else would.
 */
#include "gpu/device.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gpu/clock.h"
#include "gpu/sim_handles.h"
#include "gpu/sim_internal.h"
#include "gpu/staging.h"
#include "gpu/task_queue.h"

#define WORKERS 2u
#define STREAMS ((unsigned)DEVICE_FIT) /* one per op before it */
#define TASKS_MAX 65536u
#define BATCH_TASKS_MAX 16u
#define BACKGROUND_BATCH_TASKS_MAX 4u /* foreground work of that op waits for it */
#define TICK_NS 200000u		      /* between looks at events that a sleeping lane waits for */

struct stream {
	struct task_queue waiting[2]; /* lane only; [1]: background */
	bool busy;		      /* lane only: a batch is launched and not harvested */
	bool background;	      /* lane only: what kind of batch it is */
	uint64_t begin_ns;	      /* lane only */
	/* under the lock */
	struct task_queue todo;	    /* no worker has it */
	struct task_queue finished; /* of the batch */
	unsigned running;	    /* tasks of the batch that are not finished */
	uint64_t end_ns;	    /* when the last one was */
};

struct sim_device {
	struct device base;
	struct device_facts facts;
	unsigned background_percent;
	int wake_fd; /* borrowed */
	/* lane only */
	unsigned in_flight;
	struct task_queue done;
	struct sim_memory memory;
	bool background_running;
	uint64_t background_from_ns; /* no background work before */
	unsigned background_next;    /* the stream whose turn it is */
	_Atomic(int) dead;	     /* 0 or -EIO; written by the lane, read by the workers */
	pthread_mutex_t lock;
	pthread_cond_t work;  /* for the workers */
	pthread_cond_t alarm; /* for the clock */
	/* under the lock */
	bool armed;
	bool stop;
	uint64_t tick_ns; /* when the clock wakes the lane; 0: it does not */
	struct stream streams[STREAMS];
	unsigned threads_count;
	pthread_t threads[WORKERS + 1u]; /* the clock is the last */
	struct codec_workspace *ws[WORKERS];
};

static struct sim_device *sim_device_of(struct device *d)
{
	return (struct sim_device *)d;
}

/* ---- workers ---- */

/* Under the lock. */
static void lane_wake(struct sim_device *d)
{
	uint64_t one = 1;

	if (!d->armed)
		return;
	d->armed = false;
	d->tick_ns = 0;
	if (write(d->wake_fd, &one, sizeof(one)) < 0)
		return; /* full: then it is readable already */
}

/* Under the lock: loads before stores, what is short before what is long. */
static struct device_task *worker_next(struct sim_device *d)
{
	static const enum device_op order[] = { DEVICE_MOVE, DEVICE_DECODE, DEVICE_COPY_IN,
						DEVICE_COPY_OUT, DEVICE_ENCODE };

	static_assert(sizeof(order) / sizeof(order[0]) == STREAMS, "every op has its place");
	for (unsigned i = 0; i < STREAMS; i++) {
		struct device_task *t = task_queue_pop(&d->streams[order[i]].todo);

		if (t)
			return t;
	}
	return NULL;
}

static void worker_loop(struct sim_device *d, struct codec_workspace *ws)
{
	(void)pthread_mutex_lock(&d->lock);
	for (;;) {
		struct device_task *t = worker_next(d);
		struct stream *s;
		uint64_t begin;

		if (!t) {
			if (d->stop)
				break;
			(void)pthread_cond_wait(&d->work, &d->lock);
			continue;
		}
		(void)pthread_mutex_unlock(&d->lock);
		begin = gpu_now_ns();
		t->res = atomic_load_explicit(&d->dead, memory_order_relaxed);
		if (t->res == 0)
			t->res = sim_task_run(ws, t);
		t->busy_ns = gpu_now_ns() - begin;
		s = &d->streams[t->op];
		(void)pthread_mutex_lock(&d->lock);
		task_queue_push(&s->finished, t);
		if (--s->running == 0) {
			s->end_ns = gpu_now_ns();
			lane_wake(d);
		}
	}
	(void)pthread_mutex_unlock(&d->lock);
}

static void clock_loop(struct sim_device *d)
{
	(void)pthread_mutex_lock(&d->lock);
	while (!d->stop) {
		struct timespec ts = { .tv_sec = (time_t)(d->tick_ns / 1000000000u),
				       .tv_nsec = (long)(d->tick_ns % 1000000000u) };

		if (d->tick_ns == 0)
			(void)pthread_cond_wait(&d->alarm, &d->lock);
		else
			(void)pthread_cond_timedwait(&d->alarm, &d->lock, &ts);
		if (d->tick_ns != 0 && gpu_now_ns() >= d->tick_ns)
			lane_wake(d);
	}
	(void)pthread_mutex_unlock(&d->lock);
}

struct thread_start {
	struct sim_device *device;
	struct codec_workspace *ws; /* NULL: the clock */
};

static void *thread_main(void *arg)
{
	struct thread_start start = *(struct thread_start *)arg;

	free(arg);
	if (start.ws)
		worker_loop(start.device, start.ws);
	else
		clock_loop(start.device);
	return NULL;
}

/* ---- the lane's side ---- */

static void task_done(struct sim_device *d, struct device_task *t, int res)
{
	t->res = res;
	task_queue_push(&d->done, t);
}

/* A worker is finished with it, or its batch was not launched. */
static void task_settle(struct sim_device *d, struct device_task *t, int res)
{
	struct sim_staged *s = t->device_user;

	t->device_user = NULL;
	if (s && res == 0)
		t->staged = sim_device_address(s->memory);
	else if (s)
		sim_stage_free(&d->memory, s);
	task_done(d, t, res);
}

static void stream_harvest(struct sim_device *d, struct stream *s)
{
	int dead = atomic_load_explicit(&d->dead, memory_order_relaxed);
	struct task_queue finished = { 0 };
	struct device_task *t;
	uint64_t end_ns;
	bool running;

	(void)pthread_mutex_lock(&d->lock);
	end_ns = s->end_ns;
	running = s->running > 0;
	if (!running)
		task_queue_append(&finished, &s->finished);
	(void)pthread_mutex_unlock(&d->lock);
	if (running)
		return;
	while ((t = task_queue_pop(&finished)))
		task_settle(d, t, dead < 0 ? dead : t->res);
	s->busy = false;
	if (s->background) {
		unsigned percent = d->background_percent;

		d->background_running = false;
		d->background_from_ns = end_ns +
					(end_ns - s->begin_ns) * (100u - percent) / percent;
	}
}

enum verdict { LAUNCH, WAIT_EVENT, WAIT_STAGING };

static enum verdict task_verdict(const struct sim_device *d, const struct device_task *t)
{
	if (t->ready && sim_event_pending(t->ready))
		return WAIT_EVENT;
	if (t->op == DEVICE_ENCODE && !sim_stage_fits(&d->memory, t->region->geom))
		return WAIT_STAGING;
	return LAUNCH;
}

static void stream_batch(struct sim_device *d, struct task_queue *waiting, unsigned tasks_max,
			 struct task_queue *batch)
{
	struct device_task **at = &waiting->head;

	while (*at && batch->count < tasks_max) {
		struct sim_staged *staged = NULL;
		struct device_task *t = *at;

		switch (task_verdict(d, t)) {
		case WAIT_EVENT:
			at = &t->device_next;
			continue;
		case WAIT_STAGING:
			return; /* nor may smaller ones pass: it would wait for ever */
		case LAUNCH:
			break;
		}
		(void)task_queue_take(waiting, at);
		if (t->op == DEVICE_ENCODE &&
		    sim_stage_new(&d->memory, t->region->geom, &staged) < 0) {
			task_done(d, t, -ENOMEM);
			continue;
		}
		t->device_user = staged;
		task_queue_push(batch, t);
	}
}

static bool stream_launch(struct sim_device *d, struct stream *s, bool background)
{
	struct task_queue batch = { 0 };

	stream_batch(d, &s->waiting[background],
		     background ? BACKGROUND_BATCH_TASKS_MAX : BATCH_TASKS_MAX, &batch);
	if (batch.count == 0)
		return false;
	s->busy = true;
	s->background = background;
	s->begin_ns = gpu_now_ns();
	(void)pthread_mutex_lock(&d->lock);
	s->running = batch.count;
	task_queue_append(&s->todo, &batch);
	(void)pthread_cond_broadcast(&d->work);
	(void)pthread_mutex_unlock(&d->lock);
	return true;
}

static void device_launch(struct sim_device *d)
{
	for (unsigned i = 0; i < STREAMS; i++)
		if (!d->streams[i].busy)
			(void)stream_launch(d, &d->streams[i], false);
	if (d->background_running || gpu_now_ns() < d->background_from_ns)
		return;
	for (unsigned i = 0; i < STREAMS; i++) {
		unsigned at = (d->background_next + i) % STREAMS;
		struct stream *s = &d->streams[at];

		if (!s->busy && stream_launch(d, s, true)) {
			d->background_running = true;
			d->background_next = (at + 1u) % STREAMS;
			return;
		}
	}
}

/* What nobody has touched completes with res. */
static void device_drop_waiting(struct sim_device *d, int res)
{
	for (unsigned i = 0; i < STREAMS * 2u; i++) {
		struct task_queue *q = &d->streams[i / 2u].waiting[i % 2u];

		for (struct device_task *t = task_queue_pop(q); t; t = task_queue_pop(q))
			task_done(d, t, res);
	}
}

static void device_harvest(struct sim_device *d)
{
	for (unsigned i = 0; i < STREAMS; i++)
		if (d->streams[i].busy)
			stream_harvest(d, &d->streams[i]);
}

static int sim_device_dead(struct device *dev)
{
	return atomic_load_explicit(&sim_device_of(dev)->dead, memory_order_relaxed);
}

void sim_device_kill(struct device *dev)
{
	atomic_store_explicit(&sim_device_of(dev)->dead, -EIO, memory_order_relaxed);
}

static int sim_device_can_encode(struct device *dev, const struct codec_geometry *g,
				 const struct codec_profile *profile, uint8_t speculator)
{
	if (sim_stage_bytes(g) > sim_device_of(dev)->memory.staging_bytes)
		return 0;
	return speculator == CODEC_SPEC_RAW ||
	       ((speculator == CODEC_SPEC_CHANNEL || speculator == CODEC_SPEC_LAYER) && profile);
}

static int sim_device_can_decode(struct device *dev, const struct codec_geometry *g,
				 const struct codec_profile *profile, const void *payload,
				 uint64_t payload_bytes)
{
	(void)dev;
	(void)profile;
	return !codec_payload_needs_cpu(g, payload, payload_bytes);
}

/* Addresses are our own doing: a wrong one is a bug of the lane. */
static void task_assert(const struct sim_device *d, const struct device_task *t)
{
	if (t->op != DEVICE_MOVE) {
		assert(t->region && t->block_index < t->region->blocks_count);
		assert(t->region->device_private == d);
		assert(t->skip_tokens <= t->region->geom->block_tokens);
	}
	if (t->op == DEVICE_DECODE && t->in_place == DEVICE_PLACE_DEVICE)
		assert(sim_in_pool(&d->memory, t->in, t->in_bytes));
	else if (t->op == DEVICE_DECODE || t->op == DEVICE_COPY_IN)
		assert(!sim_is_device_address(t->in));
	if (t->op == DEVICE_COPY_OUT)
		assert(!sim_is_device_address(t->out));
	if (t->op != DEVICE_MOVE)
		return;
	assert(t->copies_count <= DEVICE_COPIES_MAX);
	for (uint32_t i = 0; i < t->copies_count; i++) {
		const struct device_copy *c = &t->copy[i];

		if (c->in_place == DEVICE_PLACE_DEVICE)
			assert(sim_in_pool(&d->memory, c->in, c->bytes) ||
			       sim_in_staging(&d->memory, c->in, c->bytes));
		else
			assert(!sim_is_device_address(c->in));
		if (c->out_place == DEVICE_PLACE_DEVICE)
			assert(sim_in_pool(&d->memory, c->out, c->bytes));
		else
			assert(!sim_is_device_address(c->out));
	}
}

static int sim_device_start(struct device *dev, struct device_task *task)
{
	struct sim_device *d = sim_device_of(dev);
	int r = sim_device_dead(dev);

	if (r < 0)
		return r;
	if ((unsigned)task->op >= STREAMS)
		return -EINVAL;
	if (d->in_flight == dev->tasks_max)
		return -EAGAIN;
	task_assert(d, task);
	if (task->op == DEVICE_ENCODE &&
	    !sim_device_can_encode(dev, task->region->geom, task->profile, task->speculator))
		return -EOPNOTSUPP;
	task->res = 0;
	if (task->op == DEVICE_ENCODE)
		task->staged = NULL;
	task->ret_profile = NULL;
	task->busy_ns = 0;
	task->device_user = NULL;
	atomic_store_explicit(&task->segments_done, 0, memory_order_relaxed);
	task_queue_push(&d->streams[task->op].waiting[task->background != 0], task);
	d->in_flight++;
	return 0;
}

static unsigned sim_device_poll(struct device *dev, struct device_task **ret_done, unsigned max)
{
	struct sim_device *d = sim_device_of(dev);
	int dead = sim_device_dead(dev);
	unsigned n = 0;

	if (d->in_flight == 0)
		return 0;
	device_harvest(d);
	if (dead < 0)
		device_drop_waiting(d, dead);
	else
		device_launch(d);
	for (; n < max && d->done.head; n++)
		ret_done[n] = task_queue_pop(&d->done);
	d->in_flight -= n;
	return n;
}

static int sim_device_cancel(struct device *dev, struct device_task *task)
{
	struct sim_device *d = sim_device_of(dev);
	struct task_queue *q = &d->streams[task->op].waiting[task->background != 0];
	struct device_task **at = task_queue_find(q, task);

	if (!at)
		return 0;
	task_done(d, task_queue_take(q, at), -ECANCELED);
	return 1;
}

static void sim_device_unstage(struct device *dev, void *staged)
{
	struct sim_device *d = sim_device_of(dev);
	struct sim_staged *s = d->memory.staged;

	while (s && sim_device_address(s->memory) != staged)
		s = s->next;
	assert(s);
	sim_stage_free(&d->memory, s);
}

/*
 * When the lane must look again at what waits in a stream that is not busy: UINT64_MAX, something else
 * will wake it; 0, at once.
 */
static uint64_t queue_look_ns(const struct sim_device *d, const struct task_queue *q,
			      uint64_t from_ns, uint64_t now)
{
	bool event = false;

	for (const struct device_task *t = q->head; t; t = t->device_next) {
		enum verdict v = task_verdict(d, t);

		if (v == LAUNCH)
			return now >= from_ns ? 0 : from_ns;
		if (v == WAIT_STAGING)
			break; /* until the lane unstages something */
		event = true;
	}
	if (!event)
		return UINT64_MAX;
	return from_ns > now + TICK_NS ? from_ns : now + TICK_NS;
}

static uint64_t device_look_ns(struct sim_device *d)
{
	uint64_t now = gpu_now_ns(), look = UINT64_MAX;

	if (sim_device_dead(&d->base) < 0)
		return 0;
	for (unsigned i = 0; i < STREAMS; i++) {
		struct stream *s = &d->streams[i];
		uint64_t at;

		if (s->busy)
			continue; /* it signals, and the poll after that looks at the rest */
		at = queue_look_ns(d, &s->waiting[0], 0, now);
		if (at < look)
			look = at;
		if (d->background_running)
			continue;
		at = queue_look_ns(d, &s->waiting[1], d->background_from_ns, now);
		if (at < look)
			look = at;
	}
	return look;
}

static void sim_device_disarm(struct device *dev)
{
	struct sim_device *d = sim_device_of(dev);

	(void)pthread_mutex_lock(&d->lock);
	d->armed = false;
	d->tick_ns = 0;
	(void)pthread_mutex_unlock(&d->lock);
}

/* With tasks that wait for an event or for their share of the time the wake fd is also written from time
 * to time, without anything being complete. */
static int sim_device_arm(struct device *dev)
{
	struct sim_device *d = sim_device_of(dev);
	bool sleep = true;
	uint64_t look;

	if (d->in_flight == 0)
		return 1;
	look = device_look_ns(d);
	if (d->done.head || look == 0)
		return 0;
	(void)pthread_mutex_lock(&d->lock);
	for (unsigned i = 0; i < STREAMS; i++)
		if (d->streams[i].busy && d->streams[i].running == 0)
			sleep = false;
	if (sleep) {
		d->armed = true;
		d->tick_ns = look == UINT64_MAX ? 0 : look;
		(void)pthread_cond_signal(&d->alarm);
	}
	(void)pthread_mutex_unlock(&d->lock);
	return sleep;
}

static int sim_device_host_register(struct device *dev, void *base, uint64_t bytes)
{
	(void)dev;
	return !base || bytes == 0 || (uintptr_t)base % 4096u != 0 ? -EINVAL : 0;
}

static void sim_device_host_unregister(struct device *dev, void *base, uint64_t bytes)
{
	(void)dev;
	(void)base;
	(void)bytes;
}

static int sim_device_pool_memory(struct device *dev, uint64_t bytes, void **ret_base)
{
	return sim_pool_new(&sim_device_of(dev)->memory, bytes, ret_base);
}

/* Also undoes a half-made device.  What is launched runs to its end, the rest is cancelled. */
static struct device *sim_device_free(struct device *dev)
{
	struct sim_device *d = sim_device_of(dev);

	(void)pthread_mutex_lock(&d->lock);
	d->armed = false;
	d->tick_ns = 0;
	d->stop = true;
	(void)pthread_cond_broadcast(&d->work);
	(void)pthread_cond_broadcast(&d->alarm);
	(void)pthread_mutex_unlock(&d->lock);
	for (unsigned i = 0; i < d->threads_count; i++)
		(void)pthread_join(d->threads[i], NULL);
	device_harvest(d);
	device_drop_waiting(d, -ECANCELED);
	sim_memory_deinit(&d->memory);
	for (unsigned i = 0; i < WORKERS; i++)
		codec_workspace_free(d->ws[i]);
	(void)pthread_cond_destroy(&d->work);
	(void)pthread_cond_destroy(&d->alarm);
	(void)pthread_mutex_destroy(&d->lock);
	free(d);
	return NULL;
}

static const struct device_ops sim_device_ops = {
	.start = sim_device_start,
	.poll = sim_device_poll,
	.arm = sim_device_arm,
	.disarm = sim_device_disarm,
	.free = sim_device_free,
	.name = "sim",
	.cancel = sim_device_cancel,
	.unstage = sim_device_unstage,
	.can_encode = sim_device_can_encode,
	.can_decode = sim_device_can_decode,
	.host_register = sim_device_host_register,
	.host_unregister = sim_device_host_unregister,
	.pool_memory = sim_device_pool_memory,
	.dead = sim_device_dead,
};

static int thread_new(struct sim_device *d, struct codec_workspace *ws)
{
	struct thread_start *start = malloc(sizeof(*start));
	pthread_t *thread = &d->threads[d->threads_count];
	sigset_t all, old;
	int r;

	if (!start)
		return -ENOMEM;
	*start = (struct thread_start){ .device = d, .ws = ws };
	/* Signals are the control thread's. */
	sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(thread, NULL, thread_main, start);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r != 0) {
		free(start);
		return -r;
	}
	d->threads_count++;
	(void)pthread_setname_np(*thread, "skvcd-sim");
	return 0;
}

static int threads_new(struct sim_device *d)
{
	int r = 0;

	for (unsigned i = 0; i < WORKERS && r == 0; i++) {
		r = codec_workspace_new(&d->ws[i]);
		if (r == 0)
			r = thread_new(d, d->ws[i]);
	}
	return r < 0 ? r : thread_new(d, NULL);
}

static void sim_device_init(struct sim_device *d, const struct gpu_device_options *o)
{
	struct staging_cut cut = staging_cut(o->staging_bytes);
	pthread_condattr_t attr;

	d->base = (struct device){ .ops = &sim_device_ops,
				   .import = &sim_import_ops,
				   .facts = &d->facts,
				   .tasks_max = o->tasks_max };
	d->facts = (struct device_facts){ .model = "simulated GPU",
					  .numa_node = -1,
					  .memory_bytes = SIM_MEMORY_BYTES,
					  .staging_bytes = o->staging_bytes,
					  .block_bytes_max = staging_block_max(&cut),
					  .footprint_bytes = o->staging_bytes };
	memcpy(d->facts.uuid, SIM_UUID, DEVICE_UUID_BYTES);
	d->memory.staging_bytes = o->staging_bytes;
	d->background_percent = o->background_percent;
	d->wake_fd = o->wake_fd;
	(void)pthread_mutex_init(&d->lock, NULL);
	(void)pthread_cond_init(&d->work, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&d->alarm, &attr);
	(void)pthread_condattr_destroy(&attr);
}

int sim_device_new(const struct gpu_device_options *options, struct device **ret_device)
{
	const char *which = options->which;
	struct sim_device *d;
	int r;

	if (options->tasks_max == 0 || options->tasks_max > TASKS_MAX ||
	    options->background_percent == 0 || options->background_percent > 100 ||
	    options->staging_bytes == 0 || options->staging_bytes > SIM_MEMORY_BYTES)
		return -EINVAL;
	if (which && strcmp(which, "auto") != 0 && strcmp(which, "0") != 0 &&
	    strcmp(which, SIM_UUID_TEXT) != 0)
		return -ENODEV;
	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	sim_device_init(d, options);
	r = threads_new(d);
	if (r < 0) {
		sim_device_free(&d->base);
		return r;
	}
	*ret_device = &d->base;
	return 0;
}
