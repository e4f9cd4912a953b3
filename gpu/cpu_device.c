/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_device.c - the device that is made of threads.  Each worker has a ring of tasks to do, written by
 * the lane, and a ring of tasks done, read by the lane; both have one writer and one reader, and both
 * can hold every task that may be under way, so no ring is ever full.
 *
 * What may wait has workers of its own, so that it never stands before a load: fits one at low priority;
 * fits of maps between layers, which take minutes, another, that runs when nobody else wants the core; and
 * so has coding in the background.
 *
 * Waiting, both ways, is the same handshake: the sleeper raises a flag and looks at the ring once more;
 * the waker writes the ring and looks at the flag.  All four accesses are sequentially consistent, so
 * at least one of the two sees the other.
 */
#include "gpu/device.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gpu/clock.h"
#include "gpu/cpu_code.h"
#include "gpu/cpu_fit.h"

#define CACHE_LINE 64
#define WORKERS_MAX 64u
#define TASKS_MAX 65536u
#define SPIN_CHECKS 64u /* looks at the ring between looks at the clock */

struct task_ring {
	struct device_task **slots; /* owned; capacity is a power of two */
	uint32_t mask;
	/* Free-running.  tail: written by the producer, releases the slot; head: by the consumer. */
	alignas(CACHE_LINE) _Atomic(uint32_t) tail;
	alignas(CACHE_LINE) _Atomic(uint32_t) head;
};

struct cpu_device;

/* Behind those that code, one each of the others. */
enum worker_role { WORKER_CODES, WORKER_FITS, WORKER_FITS_LAYER, WORKER_CODES_IDLE, WORKER_ROLES };

#define WORKERS_EXTRA ((unsigned)WORKER_ROLES - 1u)

static const char *const role_names[WORKER_ROLES] = { "skvcd-worker", "skvcd-fit", "skvcd-layer",
						      "skvcd-idle" };

struct worker {
	struct cpu_device *device;  /* borrowed, outlives the thread */
	struct codec_workspace *ws; /* owned, the thread's */
	pthread_t thread;
	bool started;
	enum worker_role role;
	uint32_t in_flight;    /* lane only: started and not yet polled */
	struct task_ring todo; /* lane -> worker */
	struct task_ring done; /* worker -> lane */
	alignas(CACHE_LINE) _Atomic(uint32_t)
		asleep; /* futex word; set by the worker, cleared by either */
};

struct cpu_device {
	struct device base;
	unsigned workers_count; /* of role CODES; the others stand behind them */
	uint32_t in_flight;	/* lane only */
	unsigned poll_next;	/* lane only: where poll goes on, for fairness */
	int wake_fd;		/* borrowed */
	uint64_t spin_ns;
	/* Set by the lane, cleared by whoever signals first. */
	alignas(CACHE_LINE) _Atomic(uint32_t) armed;
	_Atomic(uint32_t) stop;
	_Atomic(uint32_t) priority; /* enum device_priority; the lane's, read by the workers */
	struct worker workers[];
};

static void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic(uint32_t) *word, uint32_t value)
{
	(void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic(uint32_t) *word)
{
	(void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static int ring_init(struct task_ring *r, uint32_t entries)
{
	uint32_t capacity = 1;

	while (capacity < entries)
		capacity <<= 1;
	r->slots = calloc(capacity, sizeof(struct device_task *));
	if (!r->slots)
		return -ENOMEM;
	r->mask = capacity - 1u;
	return 0;
}

static void ring_push(struct task_ring *r, struct device_task *task)
{
	uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);

	assert(tail - atomic_load_explicit(&r->head, memory_order_relaxed) <= r->mask);
	r->slots[tail & r->mask] = task;
	/* seq_cst, not release: the handshake above; the slot is published with it. */
	atomic_store_explicit(&r->tail, tail + 1u, memory_order_seq_cst);
}

static bool ring_empty(struct task_ring *r)
{
	return atomic_load_explicit(&r->head, memory_order_relaxed) ==
	       atomic_load_explicit(&r->tail, memory_order_seq_cst);
}

static struct device_task *ring_pop(struct task_ring *r)
{
	uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
	struct device_task *task;

	if (head == atomic_load_explicit(&r->tail, memory_order_acquire))
		return NULL;
	task = r->slots[head & r->mask];
	atomic_store_explicit(&r->head, head + 1u, memory_order_release);
	return task;
}

/* The device's sequences are the codec's own. */
static struct codec_sequence *sequence_of(const struct device_sequence *s)
{
	return (struct codec_sequence *)(uintptr_t)s;
}

static int task_run(struct codec_workspace *ws, struct device_task *t)
{
	struct codec_view v;

	if (t->op == DEVICE_FIT)
		return cpu_fit(ws, t);
	if (t->op == DEVICE_FIT_LAYER)
		return cpu_fit_layer(ws, t);
	if (t->op == DEVICE_FIT_MODEL)
		return cpu_fit_model(t);
	switch (t->op) {
	case DEVICE_ENCODE:
		return cpu_encode(ws, t, sequence_of(t->sequence));
	case DEVICE_DECODE:
		return cpu_decode(ws, t, sequence_of(t->sequence));
	case DEVICE_COPY_OUT:
		if (t->out_cap_bytes < t->region->geom->raw_bytes)
			return -ENOSPC;
		v = cpu_view(t);
		codec_copy_out(t->region->geom, &v, t->out);
		return 0;
	default:
		return -EINVAL;
	}
}

static void worker_sleep(struct worker *w)
{
	struct cpu_device *d = w->device;

	atomic_store_explicit(&w->asleep, 1, memory_order_seq_cst);
	while (ring_empty(&w->todo) && !atomic_load_explicit(&d->stop, memory_order_seq_cst) &&
	       atomic_load_explicit(&w->asleep, memory_order_seq_cst))
		futex_wait(&w->asleep, 1);
	atomic_store_explicit(&w->asleep, 0, memory_order_relaxed);
}

static void worker_wake(struct worker *w)
{
	if (atomic_load_explicit(&w->asleep, memory_order_seq_cst) &&
	    atomic_exchange_explicit(&w->asleep, 0, memory_order_seq_cst))
		futex_wake(&w->asleep);
}

static void worker_complete(struct worker *w, struct device_task *task)
{
	struct cpu_device *d = w->device;
	uint64_t one = 1;

	ring_push(&w->done, task);
	if (atomic_load_explicit(&d->armed, memory_order_seq_cst) &&
	    atomic_exchange_explicit(&d->armed, 0, memory_order_seq_cst)) {
		ssize_t n = write(d->wake_fd, &one, sizeof(one));

		(void)n; /* full: then it is readable already */
	}
}

/* The next task, or NULL when the device stops and everything is done. */
static struct device_task *worker_next(struct worker *w)
{
	uint64_t until = 0;

	for (;;) {
		for (unsigned i = 0; i < SPIN_CHECKS; i++) {
			struct device_task *t = ring_pop(&w->todo);

			if (t)
				return t;
			relax();
		}
		if (atomic_load_explicit(&w->device->stop, memory_order_seq_cst)) {
			/* Everything was pushed before stop was set. */
			return ring_pop(&w->todo);
		}
		if (until == 0)
			until = gpu_now_ns() + (w->role ? 0 : w->device->spin_ns);
		if (gpu_now_ns() >= until) {
			worker_sleep(w);
			until = 0;
		}
	}
}

/* Of this thread only, on Linux.  Where it is not allowed, it works without. */
static void worker_lower(const struct worker *w)
{
	uint32_t p = atomic_load_explicit(&w->device->priority, memory_order_relaxed);

	if (w->role == WORKER_FITS || p != DEVICE_PRIORITY_NORMAL)
		(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 19);
	if (w->role != WORKER_FITS && p == DEVICE_PRIORITY_IDLE)
		(void)sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){ 0 });
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct device_task *t;
	bool lowered = false;

	while ((t = worker_next(w))) {
		uint64_t begin = gpu_now_ns();

		if (w->role != WORKER_CODES && !lowered)
			worker_lower(w);
		lowered = true;
		t->res = task_run(w->ws, t);
		t->busy_ns = gpu_now_ns() - begin;
		worker_complete(w, t);
	}
	return NULL;
}

static struct cpu_device *cpu_device_of(struct device *d)
{
	return (struct cpu_device *)d;
}

static struct worker *worker_of(struct cpu_device *d, enum worker_role role)
{
	assert(role > WORKER_CODES && role < WORKER_ROLES);
	return &d->workers[d->workers_count + (unsigned)role - 1u];
}

static int cpu_device_start(struct device *dev, struct device_task *task)
{
	struct cpu_device *d = cpu_device_of(dev);
	struct worker *w = &d->workers[0];

	if (task->op >= DEVICE_OP_COUNT)
		return -EINVAL;
	if (d->in_flight == dev->tasks_max)
		return -EAGAIN;
	if (task->op == DEVICE_FIT) {
		assert(task->geom && task->fit);
		w = worker_of(d, WORKER_FITS);
	} else if (task->op == DEVICE_FIT_LAYER || task->op == DEVICE_FIT_MODEL) {
		assert(task->geom && task->profile && task->positions);
		w = worker_of(d, WORKER_FITS_LAYER);
	} else if (task->background) {
		assert(task->region && task->block_index < task->region->blocks_count);
		w = worker_of(d, WORKER_CODES_IDLE);
	} else {
		assert(task->region && task->block_index < task->region->blocks_count);
		assert(task->skip_tokens <= task->region->geom->block_tokens);
		for (unsigned i = 1; i < d->workers_count; i++)
			if (d->workers[i].in_flight < w->in_flight)
				w = &d->workers[i];
	}
	task->res = 0;
	task->ret_profile = NULL;
	task->samples_kept = 0;
	task->refusal = CODEC_REFUSAL_NONE;
	task->busy_ns = 0;
	atomic_store_explicit(&task->segments_done, 0, memory_order_relaxed);
	w->in_flight++;
	d->in_flight++;
	ring_push(&w->todo, task);
	worker_wake(w);
	return 0;
}

static unsigned cpu_device_poll(struct device *dev, struct device_task **ret_done, unsigned max)
{
	struct cpu_device *d = cpu_device_of(dev);
	unsigned n = 0, idle = 0, all = d->workers_count + WORKERS_EXTRA;

	if (d->in_flight == 0)
		return 0;
	while (n < max && idle < all) {
		struct worker *w = &d->workers[d->poll_next];
		struct device_task *t = w->in_flight > 0 ? ring_pop(&w->done) : NULL;

		d->poll_next = d->poll_next + 1u == all ? 0 : d->poll_next + 1u;
		if (!t) {
			idle++;
			continue;
		}
		assert(w->in_flight > 0 && d->in_flight > 0);
		w->in_flight--;
		d->in_flight--;
		idle = 0;
		ret_done[n++] = t;
	}
	return n;
}

static void cpu_device_disarm(struct device *dev)
{
	atomic_store_explicit(&cpu_device_of(dev)->armed, 0, memory_order_seq_cst);
}

static int cpu_device_arm(struct device *dev)
{
	struct cpu_device *d = cpu_device_of(dev);

	atomic_store_explicit(&d->armed, 1, memory_order_seq_cst);
	for (unsigned i = 0; i < d->workers_count + WORKERS_EXTRA; i++)
		if (!ring_empty(&d->workers[i].done)) {
			cpu_device_disarm(dev);
			return 0;
		}
	return 1;
}

/* Also undoes a half-made device. */
static struct device *cpu_device_free(struct device *dev)
{
	struct cpu_device *d = cpu_device_of(dev);

	cpu_device_disarm(dev);
	atomic_store_explicit(&d->stop, 1, memory_order_seq_cst);
	for (unsigned i = 0; i < d->workers_count + WORKERS_EXTRA; i++)
		if (d->workers[i].started)
			worker_wake(&d->workers[i]);
	for (unsigned i = 0; i < d->workers_count + WORKERS_EXTRA; i++) {
		struct worker *w = &d->workers[i];

		if (w->started)
			pthread_join(w->thread, NULL);
		codec_workspace_free(w->ws);
		free(w->todo.slots);
		free(w->done.slots);
	}
	free(d);
	return NULL;
}

static int cpu_sequence_new(struct device *dev, const struct codec_geometry *g,
			    const struct codec_profile *profile, struct device_sequence **ret)
{
	struct codec_sequence *s = NULL;
	int r = codec_sequence_new(g, profile, NULL, &s);

	(void)dev;
	*ret = (struct device_sequence *)s;
	return r;
}

static struct device_sequence *cpu_sequence_free(struct device_sequence *s)
{
	codec_sequence_free(sequence_of(s));
	return NULL;
}

static uint32_t cpu_sequence_position(const struct device_sequence *s)
{
	return codec_sequence_position(sequence_of(s));
}

static void cpu_sequence_truncate(struct device_sequence *s, uint32_t position)
{
	int r = codec_sequence_truncate(sequence_of(s), position);

	(void)r;
	assert(r == 0);
}

static uint64_t cpu_sequence_bytes(const struct device_sequence *s)
{
	return codec_sequence_bytes(sequence_of(s));
}

static const struct device_ops cpu_device_ops = {
	.start = cpu_device_start,
	.poll = cpu_device_poll,
	.arm = cpu_device_arm,
	.disarm = cpu_device_disarm,
	.free = cpu_device_free,
	.name = "cpu",
	.sequence_new = cpu_sequence_new,
	.sequence_free = cpu_sequence_free,
	.sequence_position = cpu_sequence_position,
	.sequence_truncate = cpu_sequence_truncate,
	.sequence_bytes = cpu_sequence_bytes,
};

static int worker_init(struct cpu_device *d, unsigned index)
{
	struct worker *w = &d->workers[index];
	sigset_t all, old;
	int r;

	w->device = d;
	w->role = index < d->workers_count ? WORKER_CODES
					   : (enum worker_role)(index - d->workers_count + 1u);
	r = ring_init(&w->todo, d->base.tasks_max);
	if (r == 0)
		r = ring_init(&w->done, d->base.tasks_max);
	if (r == 0)
		r = codec_workspace_new(&w->ws);
	if (r < 0)
		return r;
	/* Signals are the control thread's. */
	sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&w->thread, NULL, worker_main, w);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r != 0)
		return -r;
	w->started = true;
	(void)pthread_setname_np(w->thread, role_names[w->role]);
	return 0;
}

void cpu_device_priority(struct device *dev, enum device_priority priority)
{
	atomic_store_explicit(&cpu_device_of(dev)->priority, priority, memory_order_relaxed);
}

int cpu_device_new(unsigned workers, unsigned tasks_max, int wake_fd, uint64_t spin_ns,
		   struct device **ret_device)
{
	struct cpu_device *d;
	size_t bytes;

	if (workers == 0 || workers > WORKERS_MAX || tasks_max == 0 || tasks_max > TASKS_MAX)
		return -EINVAL;
	bytes = sizeof(*d) + (workers + WORKERS_EXTRA) * sizeof(d->workers[0]);
	bytes = (bytes + CACHE_LINE - 1u) & ~(size_t)(CACHE_LINE - 1u);
	d = aligned_alloc(CACHE_LINE, bytes);
	if (!d)
		return -ENOMEM;
	*d = (struct cpu_device){
		.base = { .ops = &cpu_device_ops, .tasks_max = tasks_max, .sequence_tasks = 1 },
		.workers_count = workers,
		.wake_fd = wake_fd,
		.spin_ns = spin_ns,
	};
	for (unsigned i = 0; i < workers + WORKERS_EXTRA; i++)
		d->workers[i] = (struct worker){ 0 };
	for (unsigned i = 0; i < workers + WORKERS_EXTRA; i++) {
		int r = worker_init(d, i);

		if (r < 0) {
			cpu_device_free(&d->base);
			return r;
		}
	}
	*ret_device = &d->base;
	return 0;
}
