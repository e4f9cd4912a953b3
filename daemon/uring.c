/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.c - the lane's ring.  Lane thread only, after start-up.  Knows bytes, offsets and eventfds; not
 * what they are for.
 *
 * A read or write is in one of these states:
 *
 *	HELD -> KERNEL		its time has come (injected stall), or there is an entry for it again
 *	KERNEL -> KERNEL	a short or interrupted transfer goes on
 *	KERNEL, HELD -> READY	it failed without the kernel (injected), or was cancelled while held
 *	KERNEL, READY -> IDLE	reported through done()
 *
 * In HELD and KERNEL it is on one of two lists: `inflight`, by deadline, or `overdue` once that passed.
 * Deadlines are a list here, not linked timeouts in the ring: these would double the entries, and a
 * timer per I/O, for something that hardly ever happens.  What passes its deadline is cancelled.  The
 * kernel can cancel what it has queued but not what the device has: such an operation stays overdue, and
 * its memory in use, until the completion comes.
 */
#include "daemon/uring.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/uring_fault.h"
#include "daemon/uring_list.h"
#include "daemon/uring_ring.h"
#include "daemon/util/clock.h"

#define ENTRIES_MAX 4096u
#define WATCHES_SLACK 256u     /* submission entries beside the reads and writes */
#define CQ_ENTRIES_SLACK 2048u /* completions of watches; an overflow is kept by the kernel */
#define REAP_BATCH 64u
#define RETRIES_MAX 16u		 /* of EINTR, EAGAIN and transfers that moved nothing */
#define DIRECT_ALIGN_BYTES 4096u /* where a short transfer may go on under O_DIRECT */

enum op_state {
	OP_IDLE,
	OP_HELD,
	OP_KERNEL,
	OP_READY,
	OP_WATCH_OFF, /* not armed: an entry was not to be had, or it ended */
	OP_WATCH_ON,
	OP_WATCH_ENDING /* removal asked for */
};

struct uring {
	struct io_uring ring;
	struct io_uring disk; /* has_disk: of reads and writes, polled */
	bool has_disk;
	unsigned disk_count; /* in the kernel, of that one */
	bool disabled;	     /* until the owning thread first enters */
	unsigned files;
	bool reaping;
	unsigned entries;
	unsigned buffers; /* registered */
	unsigned inflight_count, overdue_count, file_overdue[URING_FILES_MAX];
	unsigned held_count;  /* in HELD */
	unsigned watches_off; /* in OP_WATCH_OFF, or to be removed and not told to the kernel */
	struct uring_list inflight, overdue, ready, watches;
	struct uring_faults faults;
	uint32_t flips;
	void (*tap)(void *user, const struct uring_op *op, int done); /* tests */
	void *tap_user;
};

/* ---- the ring itself ---- */

static int new_ring(unsigned entries, const char *fault_spec, unsigned how,
		    struct uring **ret_uring)
{
	struct uring *u;
	int r;

	if (entries < 1 || entries > ENTRIES_MAX)
		return -EINVAL;
	u = calloc(1, sizeof(*u));
	if (!u)
		return -ENOMEM;
	r = uring_fault_parse(fault_spec, &u->faults);
	if (r == 0)
		r = uring_ring_make(&u->ring, entries + WATCHES_SLACK,
				    2 * entries + CQ_ENTRIES_SLACK, how);
	if (r < 0) {
		free(u);
		return r;
	}
	u->disabled = true;
	u->entries = entries;
	*ret_uring = u;
	return 0;
}

int uring_new(unsigned entries, const char *fault_spec, struct uring **ret_uring)
{
	return new_ring(entries, fault_spec, 0, ret_uring);
}

int uring_new_sqpoll(unsigned entries, const char *fault_spec, struct uring **ret_uring)
{
	return new_ring(entries, fault_spec, IORING_SETUP_SQPOLL, ret_uring);
}

int uring_add_iopoll(struct uring *u, int sqpoll)
{
	int r;

	assert(!u->has_disk && !u->files && !u->buffers);
	r = uring_ring_make(&u->disk, u->entries, 2 * u->entries,
			    IORING_SETUP_IOPOLL | (sqpoll ? IORING_SETUP_SQPOLL : 0));
	if (r < 0)
		return r;
	u->has_disk = true;
	u->disabled = true;
	return 0;
}

struct uring *uring_free(struct uring *u)
{
	if (!u)
		return NULL;
	assert(u->inflight_count == 0 && u->overdue_count == 0);
	assert(!u->inflight.head && !u->overdue.head && !u->ready.head);
	if (u->has_disk)
		io_uring_queue_exit(&u->disk);
	io_uring_queue_exit(&u->ring);
	free(u);
	return NULL;
}

int uring_register_buffers(struct uring *u, const struct iovec *iov, unsigned count)
{
	int r;

	assert(u->buffers == 0);
	r = io_uring_register_buffers(u->has_disk ? &u->disk : &u->ring, iov, count);
	if (r < 0)
		return r;
	u->buffers = count;
	return 0;
}

int uring_register_file(struct uring *u, int fd)
{
	int r;

	if (u->files == URING_FILES_MAX)
		return -ENOSPC;
	r = uring_ring_file(&u->ring, u->files, fd);
	if (r >= 0 && u->has_disk)
		r = uring_ring_file(&u->disk, u->files, fd);
	if (r < 0)
		return r;
	return (int)u->files++;
}

int uring_set_fault(struct uring *u, const char *fault_spec)
{
	return uring_fault_parse(fault_spec, &u->faults);
}

void uring_set_tap(struct uring *u, void (*tap)(void *user, const struct uring_op *op, int done),
		   void *user)
{
	u->tap = tap;
	u->tap_user = user;
}

/* The first entry into the kernel makes this thread the owner. */
static int enable(struct uring *u)
{
	int r;

	if (!u->disabled)
		return 0;
	r = uring_ring_enable(&u->ring);
	if (r == 0 && u->has_disk)
		r = uring_ring_enable(&u->disk);
	u->disabled = r < 0;
	return r;
}

static int enter(struct uring *u, struct io_uring *ring)
{
	int r;

	r = enable(u);
	if (r < 0)
		return r;
	do
		r = io_uring_submit(ring);
	while (r == -EINTR);
	/* Busy or short of memory: what is queued stays queued, the next turn tries again. */
	if (r == -EBUSY || r == -EAGAIN)
		return 0;
	return r < 0 ? r : 0;
}

/* NULL only when the kernel takes nothing now. */
static struct io_uring_sqe *ring_sqe(struct uring *u, struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	if (!sqe && enter(u, ring) == 0)
		sqe = io_uring_get_sqe(ring);
	return sqe;
}

static struct io_uring_sqe *get_sqe(struct uring *u)
{
	return ring_sqe(u, &u->ring);
}

/* ---- reads and writes ---- */

static struct uring_list *list_of(struct uring *u, const struct uring_op *op)
{
	return op->timed_out ? &u->overdue : &u->inflight;
}

/* Give the kernel what is left of it; without an entry it is held until there is one. */
static void issue(struct uring *u, struct uring_op *op)
{
	const bool polled = u->has_disk && op->kind != URING_SYNC;
	struct io_uring_sqe *sqe = ring_sqe(u, polled ? &u->disk : &u->ring);
	uint32_t bytes = op->bytes - op->moved;
	const bool fixed = op->buf_index != URING_BUF_NONE;
	unsigned pieces = op->iovs;

	assert(op->moved < op->bytes);
	assert(op->state != OP_KERNEL && op->state != OP_READY);
	if (!sqe) {
		if (op->state != OP_HELD)
			u->held_count++;
		op->state = OP_HELD;
		op->held_until_ns = 0;
		return;
	}
	if (op->state == OP_HELD)
		u->held_count--;
	op->state = OP_KERNEL;
	u->disk_count += polled;
	if (op->fault == URING_FAULT_SHORT && !op->moved && bytes > DIRECT_ALIGN_BYTES) {
		bytes = bytes / 2 & ~(DIRECT_ALIGN_BYTES - 1);
		bytes = bytes ? bytes : DIRECT_ALIGN_BYTES;
		pieces = (pieces + 1) / 2;
	}

	if (op->kind == URING_SYNC)
		io_uring_prep_fsync(sqe, op->file, IORING_FSYNC_DATASYNC);
	else if (op->iov)
		io_uring_prep_readv(sqe, op->file, op->iov, pieces, op->off + op->moved);
	else if (op->kind == URING_READ && fixed)
		io_uring_prep_read_fixed(sqe, op->file, op->data + op->moved, bytes,
					 op->off + op->moved, (int)op->buf_index);
	else if (op->kind == URING_READ)
		io_uring_prep_read(sqe, op->file, op->data + op->moved, bytes, op->off + op->moved);
	else if (fixed)
		io_uring_prep_write_fixed(sqe, op->file, op->data + op->moved, bytes,
					  op->off + op->moved, (int)op->buf_index);
	else
		io_uring_prep_write(sqe, op->file, op->data + op->moved, bytes,
				    op->off + op->moved);
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	io_uring_sqe_set_data(sqe, op);
}

/* From the list of its deadline to those that the next reap reports. */
static void make_ready(struct uring *u, struct uring_op *op, int32_t res)
{
	assert(op->state == OP_HELD);
	uring_list_remove(list_of(u, op), op);
	u->held_count--;
	op->state = OP_READY;
	op->res = res;
	uring_list_append(&u->ready, op);
}

static int queue(struct uring *u, struct uring_op *op, unsigned kind)
{
	struct uring_op *at = u->inflight.tail;
	uint64_t hold_ns = 0;

	assert(op->file < u->files && op->done && op->bytes > 0);
	assert(op->buf_index == URING_BUF_NONE || op->buf_index < u->buffers);
	if (u->inflight_count >= u->entries)
		return -EAGAIN;

	op->start_ns = clock_now_ns();
	op->kind = (uint8_t)kind;
	op->moved = 0;
	op->timed_out = 0;
	op->retries = 0;
	op->state = OP_IDLE;
	op->fault = (uint8_t)uring_fault_next(&u->faults, kind, op->file, op->off, op->bytes,
					      &hold_ns);
	/* Almost always the last: deadlines are mostly a constant from now. */
	while (at && at->deadline_ns > op->deadline_ns)
		at = at->prev;
	uring_list_insert_after(&u->inflight, at, op);
	u->inflight_count++;
	if (u->tap && kind != URING_READ)
		u->tap(u->tap_user, op, 0);

	if (op->fault == URING_FAULT_NONE || op->fault == URING_FAULT_SHORT ||
	    op->fault == URING_FAULT_FLIP || op->fault == URING_FAULT_LATE) {
		issue(u, op);
		return 0;
	}
	op->state = OP_HELD;
	u->held_count++;
	op->held_until_ns = op->start_ns + hold_ns;
	if (op->fault == URING_FAULT_EIO)
		make_ready(u, op, -EIO);
	else if (op->fault == URING_FAULT_ENOSPC)
		make_ready(u, op, -ENOSPC);
	return 0;
}

int uring_read(struct uring *u, struct uring_op *op, unsigned buf_index, void *dst, uint32_t bytes,
	       uint64_t off, uint64_t deadline_ns)
{
	op->data = dst;
	op->iov = NULL;
	op->bytes = bytes;
	op->off = off;
	op->buf_index = buf_index;
	op->deadline_ns = deadline_ns;
	return queue(u, op, URING_READ);
}

int uring_write(struct uring *u, struct uring_op *op, unsigned buf_index, const void *src,
		uint32_t bytes, uint64_t off, uint64_t deadline_ns)
{
	op->data = (uint8_t *)(uintptr_t)src; /* only read */
	op->iov = NULL;
	op->bytes = bytes;
	op->off = off;
	op->buf_index = buf_index;
	op->deadline_ns = deadline_ns;
	return queue(u, op, URING_WRITE);
}

int uring_readv(struct uring *u, struct uring_op *op, struct iovec *iov, unsigned count,
		uint64_t off, uint64_t deadline_ns)
{
	op->data = NULL;
	op->iov = iov;
	op->iovs = count;
	op->bytes = 0;
	for (unsigned i = 0; i < count; i++)
		op->bytes += (uint32_t)iov[i].iov_len;
	op->off = off;
	op->buf_index = URING_BUF_NONE;
	op->deadline_ns = deadline_ns;
	return queue(u, op, URING_READ);
}

int uring_sync(struct uring *u, struct uring_op *op)
{
	op->data = NULL;
	op->iov = NULL;
	op->bytes = 1; /* of a transfer: one that is not over */
	op->off = 0;
	op->buf_index = URING_BUF_NONE;
	op->deadline_ns = URING_NEVER;
	return queue(u, op, URING_SYNC);
}

static void report(struct uring *u, struct uring_op *op, int32_t res)
{
	assert(u->inflight_count > 0 && op->state != OP_IDLE);
	u->inflight_count--;
	if (op->timed_out) {
		assert(u->overdue_count > 0 && u->file_overdue[op->file] > 0);
		u->overdue_count--;
		u->file_overdue[op->file]--;
		res = -ETIMEDOUT;
	}
	op->state = OP_IDLE;
	if (u->tap && op->kind != URING_READ && res >= 0)
		u->tap(u->tap_user, op, 1);
	op->done(op, res);
}

/* What the injected "flip" does: one byte, another one each time. */
static void flip(struct uring *u, struct uring_op *op)
{
	uint32_t at = (u->flips++ * 2654435761u) % op->bytes;
	const struct iovec *v = op->iov;

	if (!v) {
		op->data[at] ^= 0x10;
		return;
	}
	while (v < op->iov + op->iovs - 1 && at >= v->iov_len)
		at -= (uint32_t)v++->iov_len;
	((uint8_t *)v->iov_base)[at % v->iov_len] ^= 0x10;
}

/* So much of a readv was moved: the rest of its list. */
static void advance(struct uring_op *op, uint32_t bytes)
{
	op->moved += bytes;
	while (op->iov && bytes) {
		struct iovec *v = op->iov;
		uint32_t n = bytes < v->iov_len ? bytes : (uint32_t)v->iov_len;

		v->iov_base = (uint8_t *)v->iov_base + n;
		v->iov_len -= n;
		bytes -= n;
		if (!v->iov_len) {
			op->iov++;
			op->iovs--;
		}
	}
}

/* A completion of a read or write: over, or does it go on?  Returns how many were reported. */
static unsigned transferred(struct uring *u, struct uring_op *op, int32_t res)
{
	assert(op->state == OP_KERNEL);
	op->state = OP_IDLE;
	u->disk_count -= u->has_disk && op->kind != URING_SYNC;
	if (op->kind == URING_SYNC && res >= 0) {
		op->moved = op->bytes;
	} else if (res > 0 && (uint32_t)res >= op->bytes - op->moved) {
		op->moved = op->bytes;
		res = (int32_t)op->bytes;
		if (op->fault == URING_FAULT_FLIP && op->kind == URING_READ)
			flip(u, op);
		if (op->fault == URING_FAULT_LATE)
			res = -EIO;
	} else if (!op->timed_out &&
		   (res >= 0 || res == -EINTR || res == -EAGAIN || res == -ECANCELED)) {
		/*
		 * O_DIRECT cannot go on in the middle of a sector; the part before it counts.  Cancelled
		 * without having been late: by a cancel that was meant for this op's life before.
		 */
		uint32_t step = res > 0 ? (uint32_t)res & ~(DIRECT_ALIGN_BYTES - 1) : 0;

		advance(op, step);
		if (step || op->retries++ < RETRIES_MAX) {
			issue(u, op);
			return 0;
		}
		res = -EIO;
	}
	uring_list_remove(list_of(u, op), op);
	op->state = OP_KERNEL;
	report(u, op, res);
	return 1;
}

/* ---- time ---- */

static void overdue(struct uring *u, struct uring_op *op)
{
	struct io_uring_sqe *sqe;

	uring_list_remove(&u->inflight, op);
	op->timed_out = 1;
	u->overdue_count++;
	u->file_overdue[op->file]++;
	uring_list_append(&u->overdue, op);
	if (op->state == OP_HELD && op->fault != URING_FAULT_HANG) {
		make_ready(u, op, -ETIMEDOUT);
		return;
	}
	if (op->state != OP_KERNEL)
		return;
	/* Best effort: without an entry, or without success, the completion comes when it comes. */
	sqe = get_sqe(u);
	if (!sqe)
		return;
	io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)op, 0);
	io_uring_sqe_set_data(sqe, NULL);
}

static void held_run(struct uring *u, struct uring_list *l, uint64_t now_ns)
{
	struct uring_op *op, *next;

	for (op = l->head; op && u->held_count; op = next) {
		next = op->next;
		if (op->state != OP_HELD || op->held_until_ns > now_ns)
			continue;
		if (op->timed_out)
			make_ready(u, op, -ETIMEDOUT);
		else
			issue(u, op);
	}
}

/* Deadlines that passed, and operations whose time has come.  Reads the clock only when I/O is in flight. */
static void time_run(struct uring *u)
{
	struct uring_op *op;
	uint64_t now_ns;

	if (!u->inflight.head && !u->held_count)
		return;
	now_ns = clock_now_ns();
	while ((op = u->inflight.head) && op->deadline_ns <= now_ns)
		overdue(u, op);
	if (u->held_count) {
		held_run(u, &u->inflight, now_ns);
		held_run(u, &u->overdue, now_ns);
	}
}

/* When time_run() next has something to do. */
static uint64_t time_next_ns(const struct uring *u)
{
	uint64_t next_ns = u->inflight.head ? u->inflight.head->deadline_ns : UINT64_MAX;
	const struct uring_list *lists[] = { &u->inflight, &u->overdue };

	if (!u->held_count)
		return next_ns;
	for (unsigned i = 0; i < 2; i++)
		for (const struct uring_op *op = lists[i]->head; op; op = op->next)
			if (op->state == OP_HELD && op->held_until_ns < next_ns)
				next_ns = op->held_until_ns;
	return next_ns;
}

/* ---- eventfds ---- */

static void watch_arm(struct uring *u, struct uring_op *op)
{
	struct io_uring_sqe *sqe = get_sqe(u);

	assert(op->state == OP_WATCH_OFF);
	if (!sqe)
		return;
	io_uring_prep_poll_multishot(sqe, op->fd, POLLIN);
	io_uring_sqe_set_data(sqe, op);
	op->state = OP_WATCH_ON;
	u->watches_off--;
}

int uring_watch(struct uring *u, struct uring_op *op, int fd)
{
	assert(op->done && fd >= 0);
	op->start_ns = clock_now_ns();
	op->kind = URING_WATCH;
	op->fd = fd;
	op->state = OP_WATCH_OFF;
	u->watches_off++;
	uring_list_append(&u->watches, op);
	watch_arm(u, op);
	return 0;
}

static void watch_cancel(struct uring *u, struct uring_op *op)
{
	struct io_uring_sqe *sqe = get_sqe(u);

	assert(op->state == OP_WATCH_ENDING && op->retries);
	if (!sqe)
		return;
	io_uring_prep_cancel64(sqe, (uint64_t)(uintptr_t)op, 0);
	io_uring_sqe_set_data(sqe, NULL);
	op->retries = 0;
	u->watches_off--;
}

static void watch_end(struct uring *u, struct uring_op *op, int32_t res)
{
	uring_list_remove(&u->watches, op);
	op->state = OP_READY;
	op->res = res;
	uring_list_append(&u->ready, op);
}

void uring_unwatch(struct uring *u, struct uring_op *op)
{
	assert(op->kind == URING_WATCH);
	if (op->state == OP_WATCH_OFF) { /* the kernel does not know it */
		u->watches_off--;
		watch_end(u, op, -ECANCELED);
		return;
	}
	assert(op->state == OP_WATCH_ON);
	op->state = OP_WATCH_ENDING;
	op->retries = 1; /* the cancel is to be sent */
	u->watches_off++;
	watch_cancel(u, op);
}

/* Entries that were not to be had before. */
static void watches_run(struct uring *u)
{
	struct uring_op *op, *next;

	for (op = u->watches.head; op && u->watches_off; op = next) {
		next = op->next;
		if (op->state == OP_WATCH_OFF)
			watch_arm(u, op);
		else if (op->state == OP_WATCH_ENDING && op->retries)
			watch_cancel(u, op);
	}
}

static unsigned watch_fired(struct uring *u, struct uring_op *op, int32_t res, bool more)
{
	if (!more && op->state == OP_WATCH_ENDING) {
		if (op->retries) /* it ended by itself, before the cancel was sent */
			u->watches_off--;
		watch_end(u, op, -ECANCELED);
		return 0;
	}
	if (!more && res < 0 && res != -ECANCELED && res != -ENOMEM) {
		watch_end(u, op, res);
		return 0;
	}
	if (!more) { /* the kernel ends a multishot when it likes */
		op->state = OP_WATCH_OFF;
		u->watches_off++;
		watch_arm(u, op);
	}
	if (op->state == OP_WATCH_ENDING)
		return 0;
	op->done(op, 1);
	return 1;
}

/* ---- submit, reap, sleep ---- */

int uring_submit(struct uring *u)
{
	int r = 0;

	if (u->watches_off)
		watches_run(u);
	if (u->has_disk && io_uring_sq_ready(&u->disk))
		r = enter(u, &u->disk);
	if (r == 0 && io_uring_sq_ready(&u->ring))
		r = enter(u, &u->ring);
	return r;
}

static unsigned reap_kernel(struct uring *u, struct io_uring *ring, unsigned max)
{
	struct io_uring_cqe *cqes[REAP_BATCH], copy[REAP_BATCH];
	unsigned n, count = 0;

	/*
	 * Copied and given back first: done() may submit.  A batch at most per call, so a watch that fires
	 * all the time keeps nobody from the rest of the loop.
	 */
	n = io_uring_peek_batch_cqe(ring, cqes, max < REAP_BATCH ? max : REAP_BATCH);
	for (unsigned i = 0; i < n; i++)
		memcpy(&copy[i], cqes[i], sizeof(copy[i]));
	io_uring_cq_advance(ring, n);
	for (unsigned i = 0; i < n; i++) {
		struct uring_op *op = io_uring_cqe_get_data(&copy[i]);

		if (!op) /* of a cancel: its target reports by itself */
			continue;
		if (op->kind == URING_WATCH)
			count += watch_fired(u, op, copy[i].res, copy[i].flags & IORING_CQE_F_MORE);
		else
			count += transferred(u, op, copy[i].res);
	}
	return count;
}

static unsigned reap_ready(struct uring *u, unsigned max)
{
	unsigned count = 0;

	while (u->ready.head && count < max) {
		struct uring_op *op = u->ready.head;

		uring_list_remove(&u->ready, op);
		count++;
		if (op->kind == URING_WATCH) {
			op->state = OP_IDLE;
			op->done(op, op->res);
		} else {
			report(u, op, op->res);
		}
	}
	return count;
}

unsigned uring_reap(struct uring *u, unsigned max)
{
	unsigned count = 0;

	assert(!u->reaping); /* not from done() */
	u->reaping = true;
	time_run(u);
	if (u->disk_count && max)
		count = reap_kernel(u, &u->disk, max);
	if (max > count)
		count += reap_kernel(u, &u->ring, max - count);
	count += reap_ready(u, max - count);
	u->reaping = false;
	return count;
}

/* Polled I/O is in flight: nobody wakes us for it, so look, until there is something of either ring. */
static int poll_rings(struct uring *u, uint64_t until_ns)
{
	struct io_uring_cqe *cqe;
	int r = uring_submit(u);

	while (r == 0 && clock_now_ns() < until_ns)
		if (io_uring_peek_cqe(&u->disk, &cqe) == 0 ||
		    io_uring_peek_cqe(&u->ring, &cqe) == 0)
			break;
	return r;
}

int uring_sleep(struct uring *u, uint64_t timeout_ns)
{
	uint64_t now_ns = clock_now_ns(), until_ns = clock_add_ns(now_ns, timeout_ns);
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;
	int r;

	if (time_next_ns(u) < until_ns)
		until_ns = time_next_ns(u);
	if (u->ready.head || u->watches_off || until_ns <= now_ns)
		return uring_submit(u);
	r = enable(u);
	if (r < 0)
		return r;
	if (u->disk_count)
		return poll_rings(u, until_ns);
	ts.tv_sec = (long long)((until_ns - now_ns) / CLOCK_NS_PER_S);
	ts.tv_nsec = (long long)((until_ns - now_ns) % CLOCK_NS_PER_S);
	r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, until_ns == UINT64_MAX ? NULL : &ts,
					     NULL);
	if (r == -ETIME || r == -EINTR || r == -EBUSY || r == -EAGAIN)
		return 0;
	return r < 0 ? r : 0;
}

unsigned uring_inflight(const struct uring *u)
{
	return u->inflight_count;
}

unsigned uring_overdue(const struct uring *u)
{
	return u->overdue_count;
}

unsigned uring_file_overdue(const struct uring *u, unsigned file)
{
	return u->file_overdue[file];
}
