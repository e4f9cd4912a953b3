/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.h - the only file that knows liburing: the lane's ring for NVMe I/O and for sleeping.  Lane-only.
 *
 * Operations are embedded in their owners and complete exactly once through done().  Queueing costs no
 * system call; uring_submit() makes one when something is queued; uring_reap() none.
 */
#ifndef SKVCD_DAEMON_URING_H
#define SKVCD_DAEMON_URING_H

#include <stdint.h>
#include <sys/uio.h>

struct uring;

struct uring_op {
	void (*done)(struct uring_op *op, int32_t res);	/* bytes moved, or negative errno; may queue more */
	uint64_t start_ns;				/* set when queued */
	/* private to uring.c */
	struct uring_op *prev, *next;
	uint64_t deadline_ns;
	uint32_t bytes;
	uint8_t kind;
	uint8_t timed_out;
};

/* 0; -EPERM/-ENOSYS with a hint for people in uring_hint(): io_uring disabled or filtered. */
int uring_new(unsigned entries, const char *fault_spec, struct uring **ret_uring);
struct uring *uring_free(struct uring *u);		/* no operation may be in flight */
const char *uring_hint(int error);

int uring_register_buffers(struct uring *u, const struct iovec *iov, unsigned count);
int uring_register_file(struct uring *u, int fd);	/* one file: index 0 */

/* fault_spec (tests): "write:eio:every=3,read:enospc:every=5,read:short:every=2,write:stall_ms=200:every=4,
 * read:flip:every=7" - "flip" corrupts a byte of what was read. */

/* Queue; -EAGAIN when the queue is full.  A short transfer is continued inside; res is `bytes` or an error.
 * The operation reports -ETIMEDOUT when the deadline passes (it is cancelled; memory is not touched after). */
int uring_read(struct uring *u, struct uring_op *op, unsigned buf_index, void *dst, uint32_t bytes,
	       uint64_t off, uint64_t deadline_ns);
int uring_write(struct uring *u, struct uring_op *op, unsigned buf_index, const void *src, uint32_t bytes,
		uint64_t off, uint64_t deadline_ns);

/* Watch an eventfd: done(op, 1) on each readiness (the eventfd is emptied inside), until removed. */
int uring_watch(struct uring *u, struct uring_op *op, int fd);
void uring_unwatch(struct uring *u, struct uring_op *op);	/* done(op, -ECANCELED) follows */

int uring_submit(struct uring *u);
unsigned uring_reap(struct uring *u, unsigned max);		/* calls done(); returns how many */
int uring_sleep(struct uring *u, uint64_t timeout_ns);		/* submit and wait; UINT64_MAX: for ever */
unsigned uring_inflight(const struct uring *u);			/* reads and writes */

#endif
