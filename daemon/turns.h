/* SPDX-License-Identifier: Apache-2.0 */
/*
 * turns.h - whose turn it is: tenants in turn, the sessions of one in turn, the jobs of one in turn.  Whoever has many
 * jobs, or many sessions, has them share his turn with each other and not with everybody else.
 *
 * A node is on the list of the one above it as long as it has something below itself, a job as long as it has items to
 * start.  All of it lies in tenants, sessions and jobs: nothing is allocated, each step is O(1).  Lane only.
 */
#ifndef SKVCD_DAEMON_TURNS_H
#define SKVCD_DAEMON_TURNS_H

#include <stddef.h>
#include <stdint.h>

enum turn_kind { TURN_LOADS, TURN_STORES, TURN_KINDS };

struct turn {
	struct turn *prev, *next;  /* beside it */
	struct turn *first, *last; /* below it */
	uint64_t idle; /* the run of request_run() in which nothing below it could go on */
};

static inline void turn_push(struct turn *above, struct turn *t)
{
	t->prev = above->last;
	t->next = NULL;
	if (above->last)
		above->last->next = t;
	else
		above->first = t;
	above->last = t;
}

static inline void turn_remove(struct turn *above, struct turn *t)
{
	if (t->prev)
		t->prev->next = t->next;
	else
		above->first = t->next;
	if (t->next)
		t->next->prev = t->prev;
	else
		above->last = t->prev;
	t->prev = t->next = NULL;
}

#endif
