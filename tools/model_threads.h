/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_threads.h - run the items of a loop on a few threads.
 *
 * One caller at a time.  Which thread runs an item is chance; an item must not depend on it.
 */
#ifndef SKVCD_TOOLS_MODEL_THREADS_H
#define SKVCD_TOOLS_MODEL_THREADS_H

#include <stdint.h>

#define MODEL_THREADS_MAX 64u

struct model_threads;

/* @count: 1..MODEL_THREADS_MAX with the caller.  Return: 0, -ENOMEM, or pthread_create's errno. */
int model_threads_new(uint32_t count, struct model_threads **ret);

/* Ends the threads.  Accepts NULL, returns NULL. */
struct model_threads *model_threads_free(struct model_threads *threads);

uint32_t model_threads_count(const struct model_threads *threads);

/*
 * Calls run(context, item, thread) once for each item < items, thread < model_threads_count(), and
 * returns when all are done.  The caller works too.
 */
void model_threads_run(struct model_threads *threads, uint32_t items,
		       void (*run)(void *context, uint32_t item, uint32_t thread), void *context);

#endif
