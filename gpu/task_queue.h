/* SPDX-License-Identifier: Apache-2.0 */
/*
 * task_queue.h - tasks in the order of their start, for whoever has them (device.h): linked by device_next, nothing is
 * allocated, and zeros are an empty one.
 */
#ifndef SKVCD_GPU_TASK_QUEUE_H
#define SKVCD_GPU_TASK_QUEUE_H

#include <stddef.h>

#include "gpu/device.h"

struct task_queue {
	struct device_task *head;
	struct device_task **end; /* where the next one goes, when there is one */
	unsigned count;
};

static inline void task_queue_push(struct task_queue *q, struct device_task *t)
{
	struct device_task **at = q->head ? q->end : &q->head;

	t->device_next = NULL;
	*at = t;
	q->end = &t->device_next;
	q->count++;
}

/* Take out the task that *at points at; at is within the queue. */
static inline struct device_task *task_queue_take(struct task_queue *q, struct device_task **at)
{
	struct device_task *t = *at;

	*at = t->device_next;
	if (q->end == &t->device_next)
		q->end = at;
	q->count--;
	t->device_next = NULL;
	return t;
}

/* The first; NULL: it is empty. */
static inline struct device_task *task_queue_pop(struct task_queue *q)
{
	return q->head ? task_queue_take(q, &q->head) : NULL;
}

/* Where *t is in the queue; NULL: nowhere. */
static inline struct device_task **task_queue_find(struct task_queue *q,
						   const struct device_task *t)
{
	for (struct device_task **at = &q->head; *at; at = &(*at)->device_next)
		if (*at == t)
			return at;
	return NULL;
}

/* from is empty then. */
static inline void task_queue_append(struct task_queue *q, struct task_queue *from)
{
	if (!from->head)
		return;
	*(q->head ? q->end : &q->head) = from->head;
	q->end = from->end;
	q->count += from->count;
	*from = (struct task_queue){ 0 };
}

#endif
