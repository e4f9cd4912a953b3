/* SPDX-License-Identifier: Apache-2.0 */
/*
 * power_file.c - see power_file.h.
 */
#include "tests/lib/power_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/uring_fault.h"

#define SECTOR 512u

struct power_write {
	struct power_write *next;
	const struct uring_op *op; /* NULL: it has ended */
	uint64_t ended;		   /* when */
	uint64_t off;
	uint32_t bytes;
	uint8_t data[];
};

static void must(int condition)
{
	if (!condition)
		abort();
}

static void write_queued(struct power_file *p, const struct uring_op *op)
{
	struct power_write *w = malloc(sizeof(*w) + op->bytes);

	must(w != NULL);
	*w = (struct power_write){ .op = op, .off = op->off, .bytes = op->bytes };
	memcpy(w->data, op->data, op->bytes);
	if (p->last)
		p->last->next = w;
	else
		p->first = w;
	p->last = w;
	p->writes++;
}

static void write_ended(struct power_file *p, const struct uring_op *op)
{
	for (struct power_write *w = p->first; w; w = w->next)
		if (w->op == op) {
			w->op = NULL;
			w->ended = p->now;
			return;
		}
	abort();
}

static void sync_queued(struct power_file *p, const struct uring_op *op)
{
	unsigned i = 0;

	while (i < 4 && p->sync[i].op && p->sync[i].op != op)
		i++;
	must(i < 4);
	p->sync[i].op = op;
	p->sync[i].began = p->now;
}

/* What failed before it at the same place does not come after it. */
static void overwritten(struct power_file *p, const struct power_write *by)
{
	for (struct power_write *w = p->first; w != by; w = w->next)
		if (w->off < by->off + by->bytes && by->off < w->off + w->bytes)
			w->bytes = 0;
}

/* All that had ended when it began is on the media. */
static void sync_ended(struct power_file *p, const struct uring_op *op)
{
	struct power_write **link = &p->first, *w;
	uint64_t began;
	unsigned i = 0;

	while (i < 4 && p->sync[i].op != op)
		i++;
	must(i < 4);
	began = p->sync[i].began;
	p->sync[i].op = NULL;
	p->last = NULL;
	while ((w = *link)) {
		if (w->op || w->ended > began) {
			p->last = w;
			link = &w->next;
			continue;
		}
		overwritten(p, w);
		memcpy(p->image + w->off, w->data, w->bytes);
		*link = w->next;
		free(w);
	}
	if (began > p->synced_to)
		p->synced_to = began;
	p->flushes++;
}

/* A write that fails is not reported: its operation's next write says so. */
static void forget_failed(struct power_file *p, const struct uring_op *op)
{
	for (struct power_write *w = p->first; w; w = w->next)
		if (w->op == op) {
			w->op = NULL;
			w->ended = UINT64_MAX;
		}
}

void power_file_tap(void *user, const struct uring_op *op, int done)
{
	struct power_file *p = user;

	p->now++;
	if (op->kind == URING_SYNC && done) {
		sync_ended(p, op);
	} else if (op->kind == URING_SYNC) {
		sync_queued(p, op);
	} else if (done) {
		write_ended(p, op);
	} else {
		forget_failed(p, op);
		write_queued(p, op);
	}
}

void power_file_begin(struct power_file *p, const char *path, uint64_t bytes, struct uring *u)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	*p = (struct power_file){ .image = malloc(bytes), .bytes = bytes };
	must(fd >= 0 && p->image);
	must(pread(fd, p->image, bytes, 0) == (ssize_t)bytes);
	(void)close(fd);
	uring_set_tap(u, power_file_tap, p);
}

void power_file_cut(struct power_file *p, const char *path, struct rng *rng, uint32_t keep_one_in)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	for (struct power_write *w = p->first; w; w = w->next) {
		int all = rng_one_in(rng, 4), none = rng_one_in(rng, 4);

		for (uint32_t at = 0; at < w->bytes; at += SECTOR)
			if (all || (!none && rng_one_in(rng, keep_one_in)))
				memcpy(p->image + w->off + at, w->data + at, SECTOR);
	}
	must(fd >= 0 && pwrite(fd, p->image, p->bytes, 0) == (ssize_t)p->bytes);
	must(close(fd) == 0);
}

void power_file_end(struct power_file *p)
{
	while (p->first) {
		struct power_write *w = p->first;

		p->first = w->next;
		free(w);
	}
	free(p->image);
	*p = (struct power_file){ 0 };
}
