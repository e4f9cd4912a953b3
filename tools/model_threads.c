/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_threads.c - a pool that sleeps between loops.  The lock guards the description of the loop;
 * items are handed out by one counter.
 */
#include "tools/model_threads.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

struct worker {
	struct model_threads *pool; /* borrowed: the pool joins its threads */
	uint32_t index;
	pthread_t thread;
};

struct model_threads {
	pthread_mutex_t lock;
	pthread_cond_t start, done;
	uint64_t loop; /* under lock: number of the current loop */
	uint32_t busy; /* under lock: workers that have not finished it */
	bool stop;     /* under lock */

	/* Written under lock before `loop` moves on, read by workers after they saw it move. */
	uint32_t items;
	void (*run)(void *context, uint32_t item, uint32_t thread);
	void *context;

	_Atomic uint32_t next;	 /* any thread takes one; an item's order is nobody's */
	uint32_t count;		 /* with the caller */
	struct worker workers[]; /* count - 1 */
};

static void take_items(struct model_threads *t, uint32_t thread)
{
	uint32_t item;

	while ((item = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed)) < t->items)
		t->run(t->context, item, thread);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct model_threads *t = w->pool;
	uint64_t seen = 0;

	pthread_mutex_lock(&t->lock);
	for (;;) {
		while (t->loop == seen && !t->stop)
			pthread_cond_wait(&t->start, &t->lock);
		if (t->stop)
			break;
		seen = t->loop;
		pthread_mutex_unlock(&t->lock);
		take_items(t, w->index);
		pthread_mutex_lock(&t->lock);
		if (--t->busy == 0)
			pthread_cond_signal(&t->done);
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

int model_threads_new(uint32_t count, struct model_threads **ret)
{
	struct model_threads *t;
	int error;

	assert(count && count <= MODEL_THREADS_MAX);
	t = calloc(1, sizeof(*t) + (count - 1) * sizeof(t->workers[0]));
	if (!t)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->start, NULL);
	pthread_cond_init(&t->done, NULL);
	t->count = 1;
	while (t->count < count) {
		struct worker *w = &t->workers[t->count - 1];

		w->pool = t;
		w->index = t->count;
		error = pthread_create(&w->thread, NULL, worker_main, w);
		if (error) {
			model_threads_free(t);
			return -error;
		}
		t->count++;
	}
	*ret = t;
	return 0;
}

struct model_threads *model_threads_free(struct model_threads *t)
{
	if (!t)
		return NULL;
	pthread_mutex_lock(&t->lock);
	assert(t->busy == 0);
	t->stop = true;
	pthread_cond_broadcast(&t->start);
	pthread_mutex_unlock(&t->lock);
	for (uint32_t i = 0; i + 1 < t->count; i++)
		pthread_join(t->workers[i].thread, NULL);
	pthread_cond_destroy(&t->start);
	pthread_cond_destroy(&t->done);
	pthread_mutex_destroy(&t->lock);
	free(t);
	return NULL;
}

uint32_t model_threads_count(const struct model_threads *t)
{
	return t->count;
}

void model_threads_run(struct model_threads *t, uint32_t items,
		       void (*run)(void *context, uint32_t item, uint32_t thread), void *context)
{
	if (t->count == 1 || items <= 1) {
		for (uint32_t item = 0; item < items; item++)
			run(context, item, 0);
		return;
	}
	pthread_mutex_lock(&t->lock);
	assert(t->busy == 0);
	t->items = items;
	t->run = run;
	t->context = context;
	atomic_store_explicit(&t->next, 0, memory_order_relaxed);
	t->busy = t->count - 1;
	t->loop++;
	pthread_cond_broadcast(&t->start);
	pthread_mutex_unlock(&t->lock);
	take_items(t, 0);
	pthread_mutex_lock(&t->lock);
	while (t->busy)
		pthread_cond_wait(&t->done, &t->lock);
	pthread_mutex_unlock(&t->lock);
}
