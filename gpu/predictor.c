/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predictor.c - the device of predictor.h: its queues, its thread, its batches.
 *
 * The lane and the thread meet under `lock`, which is held for a few instructions a task; how many tasks like one go
 * together is asked when it is started, and kept in its device_user.  A task of a sequence never passes another of the
 * same sequence that waits as it does.  What engines wait for goes before what may wait; after a background batch the
 * device rests from such work, so that it takes background_percent of the time at most.
 *
 * As many batches are begun as the engine can have under way and tasks are there for; then the oldest is waited for.
 */
#include "gpu/predictor.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gpu/clock.h"

#define TASKS_MAX 65536u

struct sequence_queue { /* linked by next_todo */
	struct device_sequence *head, **end;
};

struct batch { /* the thread's */
	unsigned count;
	bool background;
	int dead; /* the engine's errno, instead of a beginning */
	uint64_t took_ns;
	struct device_task *task[PREDICTOR_BATCH_MAX];
};

struct predictor {
	struct device base;
	struct predictor_engine *engine; /* owned */
	unsigned background_percent;
	int wake_fd;	    /* borrowed */
	unsigned in_flight; /* the lane's */
	pthread_t thread;
	bool started;
	/* the thread's */
	uint64_t background_from_ns; /* no background work before */
	uint64_t accounted_ns;	     /* until then the time was some batch's */
	struct batch batch[PREDICTOR_DEPTH_MAX];
	unsigned oldest, running; /* of `batch`; how many are under way */
	/* under the lock */
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct sequence_queue todo[2]; /* [1]: background */
	struct task_queue done;
	struct device_sequence *ended;
	bool armed, stop;
};

static struct predictor *predictor_of(struct device *d)
{
	return (struct predictor *)d;
}

/* ---- queues ---- */

static void todo_push(struct predictor *p, struct device_task *t)
{
	const unsigned k = t->background != 0;
	struct sequence_queue *q = &p->todo[k];
	struct device_sequence *s = t->sequence;

	if (!s->todo[k].head) {
		s->next_todo[k] = NULL;
		*q->end = s;
		q->end = &s->next_todo[k];
	}
	task_queue_push(&s->todo[k], t);
}

/* Out of the queue with the sequence that *at points at, if nothing of it waits any more.  True: it went. */
static bool todo_trim(struct predictor *p, unsigned k, struct device_sequence **at)
{
	struct device_sequence *s = *at;

	if (s->todo[k].head)
		return false;
	*at = s->next_todo[k];
	if (p->todo[k].end == &s->next_todo[k])
		p->todo[k].end = at;
	return true;
}

/* ---- the thread ---- */

/* Under the lock, like all up to the loop. */
static void finish(struct predictor *p, struct device_task *t)
{
	const uint64_t one = 1;

	if (t->res < 0)
		t->sequence->failed = true;
	task_queue_push(&p->done, t);
	if (!p->armed)
		return;
	p->armed = false;
	if (write(p->wake_fd, &one, sizeof(one)) < 0)
		return; /* full: then it is readable already */
}

/* Can they go through one model together? */
static bool alike(const struct device_task *a, const struct device_task *b)
{
	return a->op == b->op && a->sequence->profile == b->sequence->profile &&
	       a->sequence->geom == b->sequence->geom;
}

static unsigned together(const struct device_task *t)
{
	return (unsigned)(uintptr_t)t->device_user;
}

/* Those behind a failed one. */
static void cancel_all(struct predictor *p, struct task_queue *q)
{
	struct device_task *t;

	while ((t = task_queue_pop(q))) {
		t->res = -ECANCELED;
		finish(p, t);
	}
}

/* From the first on what may be in the batch. */
static void take_from(struct device_sequence *s, unsigned k, struct batch *b, unsigned *most)
{
	struct task_queue *q = &s->todo[k];

	while (q->head && b->count < *most) {
		const unsigned n = together(q->head);

		if (b->count == 0)
			*most = n < PREDICTOR_BATCH_MAX ? n : PREDICTOR_BATCH_MAX;
		else if (!alike(b->task[0], q->head) || n < *most)
			break;
		s->running++;
		b->task[b->count++] = task_queue_pop(q);
	}
}

static unsigned batch_take(struct predictor *p, struct batch *b, bool background)
{
	struct device_sequence **at = &p->todo[background].head;
	unsigned most = 1;

	b->count = 0;
	while (*at && b->count < most) {
		struct device_sequence *s = *at;

		if (!s->failed)
			take_from(s, background, b, &most);
		else if (s->running == 0) /* not before those before it */
			cancel_all(p, &s->todo[background]);
		if (!todo_trim(p, background, at))
			at = &s->next_todo[background];
	}
	return b->count;
}

/* Is it known how long the next background batch must wait?  Not while one is under way. */
static bool background_may(const struct predictor *p)
{
	for (unsigned i = 0; i < p->running && p->background_percent < 100u; i++)
		if (p->batch[(p->oldest + i) % PREDICTOR_DEPTH_MAX].background)
			return false;
	return gpu_now_ns() >= p->background_from_ns || p->stop;
}

/* The next one to begin; NULL: none now. */
static struct batch *batch_next(struct predictor *p)
{
	struct batch *b = &p->batch[(p->oldest + p->running) % PREDICTOR_DEPTH_MAX];

	if (p->running == p->engine->depth)
		return NULL;
	b->background = false;
	if (batch_take(p, b, false) > 0)
		return b;
	b->background = true;
	return background_may(p) && batch_take(p, b, true) > 0 ? b : NULL;
}

static void batch_wait(struct predictor *p)
{
	const struct timespec until = { .tv_sec = (time_t)(p->background_from_ns / 1000000000u),
					.tv_nsec = (long)(p->background_from_ns % 1000000000u) };

	if (p->todo[1].head)
		(void)pthread_cond_timedwait(&p->work, &p->lock, &until);
	else
		(void)pthread_cond_wait(&p->work, &p->lock);
}

/* The time since this was last called is that batch's: the one that was begun, or waited for.  NULL: nobody's. */
static void account(struct predictor *p, struct batch *b)
{
	const uint64_t now = gpu_now_ns();

	if (b)
		b->took_ns += now - p->accounted_ns;
	p->accounted_ns = now;
}

/* Without the lock, like the next two. */
static void batch_begin(struct predictor *p, struct batch *b)
{
	account(p, p->running ? &p->batch[p->oldest] : NULL);
	b->took_ns = 0;
	b->dead = atomic_load(&p->engine->dead);
	if (b->dead == 0)
		p->engine->ops->begin(p->engine, (unsigned)(b - p->batch), b->task, b->count);
	account(p, b);
}

static void batch_end(struct predictor *p, struct batch *b)
{
	if (b->dead == 0)
		p->engine->ops->end(p->engine, (unsigned)(b - p->batch));
	account(p, b);
	for (unsigned i = 0; i < b->count; i++) {
		if (b->dead < 0)
			b->task[i]->res = b->dead;
		b->task[i]->busy_ns = b->took_ns / b->count + 1u;
	}
	if (b->background)
		p->background_from_ns = p->accounted_ns + b->took_ns *
								  (100u - p->background_percent) /
								  p->background_percent;
}

static void ended_end(struct predictor *p, struct device_sequence *s)
{
	while (s) {
		struct device_sequence *next = s->next;

		p->engine->ops->sequence_end(p->engine, s);
		s = next;
	}
}

/* What failed before its batch ends: nothing more of its sequence begins.  Under the lock. */
static void failed_mark(struct predictor *p)
{
	for (unsigned k = 0; k < p->running; k++) {
		const struct batch *b = &p->batch[(p->oldest + k) % PREDICTOR_DEPTH_MAX];

		for (unsigned i = 0; b->dead == 0 && i < b->count; i++)
			if (b->task[i]->res < 0)
				b->task[i]->sequence->failed = true;
	}
}

/* Begins what can begin.  False: nothing can.  Under the lock, but not all the time; like the next one. */
static bool begin_more(struct predictor *p)
{
	/* Before any task: what they were of may be gone, and others in its place. */
	struct device_sequence *ended = p->ended;
	struct batch *b = ended ? NULL : batch_next(p);

	if (!ended && !b)
		return false;
	p->ended = NULL;
	(void)pthread_mutex_unlock(&p->lock);
	ended_end(p, ended);
	if (b) {
		batch_begin(p, b);
		p->running++;
	}
	(void)pthread_mutex_lock(&p->lock);
	failed_mark(p);
	return true;
}

static void end_oldest(struct predictor *p)
{
	struct batch *b = &p->batch[p->oldest];

	(void)pthread_mutex_unlock(&p->lock);
	batch_end(p, b);
	p->oldest = (p->oldest + 1u) % PREDICTOR_DEPTH_MAX;
	p->running--;
	(void)pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < b->count; i++) {
		b->task[i]->sequence->running--;
		finish(p, b->task[i]);
	}
}

static void *thread_main(void *arg)
{
	struct predictor *p = arg;

	(void)pthread_mutex_lock(&p->lock);
	for (;;) {
		if (begin_more(p))
			continue;
		if (p->running > 0)
			end_oldest(p);
		else if (p->stop && !p->todo[0].head && !p->todo[1].head)
			break;
		else
			batch_wait(p);
	}
	(void)pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* ---- tasks ---- */

static bool region_good(const struct device_task *t)
{
	return t->region && !t->region->device_private && t->region->geom == t->sequence->geom &&
	       t->block_index < t->region->blocks_count && t->in_place == DEVICE_PLACE_HOST;
}

static int predictor_start(struct device *dev, struct device_task *t)
{
	struct predictor *p = predictor_of(dev);
	int r = atomic_load(&p->engine->dead);

	if (r < 0)
		return r;
	if ((t->op != DEVICE_ENCODE && t->op != DEVICE_DECODE && t->op != DEVICE_PREPARE) ||
	    !t->sequence)
		return -EINVAL;
	assert(t->sequence->predictor == p && !t->ready);
	assert(t->op == DEVICE_PREPARE || region_good(t));
	if (p->in_flight == dev->tasks_max)
		return -EAGAIN;
	p->in_flight++;
	t->res = 0;
	t->refusal = CODEC_REFUSAL_NONE;
	t->staged = NULL;
	t->ret_profile = NULL;
	t->busy_ns = 0;
	t->device_user = (void *)(uintptr_t)p->engine->ops->batch_max(p->engine, t);
	atomic_store_explicit(&t->segments_done, 0, memory_order_relaxed);
	(void)pthread_mutex_lock(&p->lock);
	t->sequence->tasks++;
	todo_push(p, t);
	(void)pthread_cond_signal(&p->work);
	(void)pthread_mutex_unlock(&p->lock);
	return 0;
}

static unsigned predictor_poll(struct device *dev, struct device_task **ret_done, unsigned max)
{
	struct predictor *p = predictor_of(dev);
	unsigned n = 0;

	if (p->in_flight == 0)
		return 0;
	(void)pthread_mutex_lock(&p->lock);
	for (; n < max && p->done.head; n++) {
		struct device_task *t = task_queue_pop(&p->done);

		assert(t->sequence->tasks > 0);
		if (--t->sequence->tasks == 0)
			t->sequence->failed = false;
		ret_done[n] = t;
	}
	(void)pthread_mutex_unlock(&p->lock);
	p->in_flight -= n;
	return n;
}

/* And so are those of its sequence that come behind it. */
static int predictor_cancel(struct device *dev, struct device_task *t)
{
	struct predictor *p = predictor_of(dev);
	const unsigned k = t->background != 0;
	struct task_queue *q = &t->sequence->todo[k];
	struct device_task **at;

	(void)pthread_mutex_lock(&p->lock);
	at = task_queue_find(q, t);
	if (at) {
		struct device_sequence **of = &p->todo[k].head;

		t->res = -ECANCELED;
		finish(p, task_queue_take(q, at));
		while (*of != t->sequence)
			of = &(*of)->next_todo[k];
		(void)todo_trim(p, k, of);
	}
	(void)pthread_mutex_unlock(&p->lock);
	return at != NULL;
}

static int predictor_arm(struct device *dev)
{
	struct predictor *p = predictor_of(dev);
	bool sleep;

	if (p->in_flight == 0)
		return 1;
	(void)pthread_mutex_lock(&p->lock);
	sleep = !p->done.head;
	p->armed = sleep;
	(void)pthread_mutex_unlock(&p->lock);
	return sleep;
}

static void predictor_disarm(struct device *dev)
{
	struct predictor *p = predictor_of(dev);

	if (p->in_flight == 0)
		return;
	(void)pthread_mutex_lock(&p->lock);
	p->armed = false;
	(void)pthread_mutex_unlock(&p->lock);
}

static int predictor_dead(struct device *dev)
{
	return atomic_load(&predictor_of(dev)->engine->dead);
}

static uint64_t predictor_busy_since(struct device *dev)
{
	return atomic_load(&predictor_of(dev)->engine->busy_since_ns);
}

/* ---- sequences ---- */

static int predictor_sequence_new(struct device *dev, const struct codec_geometry *g,
				  const struct codec_profile *profile, struct device_sequence **ret)
{
	struct predictor *p = predictor_of(dev);
	int r = p->engine->ops->sequence_new(p->engine, g, profile, ret);

	if (r < 0)
		return r;
	(*ret)->predictor = p;
	(*ret)->geom = g;
	(*ret)->profile = profile;
	return 0;
}

static struct device_sequence *predictor_sequence_free(struct device_sequence *s)
{
	struct predictor *p;

	if (!s)
		return NULL;
	p = s->predictor;
	(void)pthread_mutex_lock(&p->lock);
	assert(s->tasks == 0);
	s->next = p->ended;
	p->ended = s;
	(void)pthread_cond_signal(&p->work);
	(void)pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* No task has it, so neither has the thread. */
static void must_be_idle(const struct device_sequence *s)
{
	(void)pthread_mutex_lock(&s->predictor->lock);
	assert(s->tasks == 0);
	(void)pthread_mutex_unlock(&s->predictor->lock);
}

static uint32_t predictor_sequence_position(const struct device_sequence *s)
{
	must_be_idle(s);
	return s->predictor->engine->ops->position(s);
}

static void predictor_sequence_truncate(struct device_sequence *s, uint32_t position)
{
	must_be_idle(s);
	s->predictor->engine->ops->truncate(s, position);
}

static uint64_t predictor_sequence_bytes(const struct device_sequence *s)
{
	must_be_idle(s);
	return s->predictor->engine->ops->bytes(s);
}

/* ---- from the first to the last ---- */

/* Also undoes a half-made one.  What was started runs to its end. */
static struct device *predictor_free(struct device *dev)
{
	struct predictor *p = predictor_of(dev);

	(void)pthread_mutex_lock(&p->lock);
	p->armed = false;
	p->stop = true;
	(void)pthread_cond_signal(&p->work);
	(void)pthread_mutex_unlock(&p->lock);
	if (p->started)
		(void)pthread_join(p->thread, NULL);
	p->engine->ops->free(p->engine);
	(void)pthread_cond_destroy(&p->work);
	(void)pthread_mutex_destroy(&p->lock);
	free(p);
	return NULL;
}

static const struct device_ops predictor_ops = {
	.start = predictor_start,
	.poll = predictor_poll,
	.arm = predictor_arm,
	.disarm = predictor_disarm,
	.free = predictor_free,
	.name = "predictor",
	.cancel = predictor_cancel,
	.dead = predictor_dead,
	.busy_since = predictor_busy_since,
	.sequence_new = predictor_sequence_new,
	.sequence_free = predictor_sequence_free,
	.sequence_position = predictor_sequence_position,
	.sequence_truncate = predictor_sequence_truncate,
	.sequence_bytes = predictor_sequence_bytes,
};

static int thread_new(struct predictor *p)
{
	sigset_t all, old;
	int r;

	/* Signals are the control thread's. */
	sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&p->thread, NULL, thread_main, p);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r != 0)
		return -r;
	p->started = true;
	(void)pthread_setname_np(p->thread, "skvcd-predict");
	return 0;
}

int predictor_new(struct predictor_engine *e, const struct predictor_options *o,
		  struct device **ret_device)
{
	struct predictor *p = NULL;
	pthread_condattr_t attr;
	int r = -EINVAL;

	assert(e->depth > 0 && e->depth <= PREDICTOR_DEPTH_MAX);
	if (o->tasks_max > 0 && o->tasks_max <= TASKS_MAX && o->background_percent > 0 &&
	    o->background_percent <= 100) {
		p = calloc(1, sizeof(*p));
		r = -ENOMEM;
	}
	if (!p) {
		e->ops->free(e);
		return r;
	}
	p->base = (struct device){ .ops = &predictor_ops,
				   .tasks_max = o->tasks_max,
				   .sequence_tasks = o->tasks_max };
	p->engine = e;
	p->background_percent = o->background_percent;
	p->wake_fd = o->wake_fd;
	p->todo[0].end = &p->todo[0].head;
	p->todo[1].end = &p->todo[1].head;
	(void)pthread_mutex_init(&p->lock, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&p->work, &attr);
	(void)pthread_condattr_destroy(&attr);
	r = thread_new(p);
	if (r < 0) {
		predictor_free(&p->base);
		return r;
	}
	*ret_device = &p->base;
	return 0;
}
