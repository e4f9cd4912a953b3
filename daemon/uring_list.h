/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_list.h - lists of operations, through their own links.  Only for uring.c.
 */
#ifndef SKVCD_DAEMON_URING_LIST_H
#define SKVCD_DAEMON_URING_LIST_H

#include <assert.h>
#include <stddef.h>

#include "daemon/uring.h"

struct uring_list {
	struct uring_op *head, *tail;
};

static inline void uring_list_insert_after(struct uring_list *l, struct uring_op *at,
					   struct uring_op *op)
{
	op->prev = at;
	op->next = at ? at->next : l->head;
	if (op->prev)
		op->prev->next = op;
	else
		l->head = op;
	if (op->next)
		op->next->prev = op;
	else
		l->tail = op;
}

static inline void uring_list_append(struct uring_list *l, struct uring_op *op)
{
	uring_list_insert_after(l, l->tail, op);
}

static inline void uring_list_remove(struct uring_list *l, struct uring_op *op)
{
	assert(op->prev ? op->prev->next == op : l->head == op);
	assert(op->next ? op->next->prev == op : l->tail == op);
	if (op->prev)
		op->prev->next = op->next;
	else
		l->head = op->next;
	if (op->next)
		op->next->prev = op->prev;
	else
		l->tail = op->prev;
	op->prev = op->next = NULL;
}

#endif
