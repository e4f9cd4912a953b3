/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring.h - the only file that knows liburing: the lane's ring for NVMe I/O and for sleeping.  Lane-only.
 *
 * Operations are embedded in their owners and complete exactly once through done().  Queueing costs no
 * system call; uring_submit() makes one when something is queued; uring_reap() none, except when the
 * kernel says that completions wait behind one.
 *
 * The ring may be made, and its buffers and file registered, by one thread; the thread that first submits
 * or sleeps owns it from then on.
 */
#ifndef SKVCD_DAEMON_URING_H
#define SKVCD_DAEMON_URING_H

#include <stdint.h>
#include <sys/uio.h>

#define URING_BUF_NONE UINT32_MAX /* memory that was not registered */
#define URING_NEVER UINT64_MAX	  /* no deadline */
#define URING_FILES_MAX 16u

struct uring;

struct uring_op {
	/*
	 * Bytes moved, or negative errno; may queue more.  The op is the owner's again when this is called,
	 * and may be gone when it returns.
	 */
	void (*done)(struct uring_op *op, int32_t res);
	uint64_t start_ns; /* set when queued */
	void *user;	   /* the owner's */
	/* the owner's: which file, as uring_register_file() said; 0: the first */
	uint8_t file;
	/* private to uring.c */
	struct uring_op *prev, *next;
	uint64_t deadline_ns;
	uint64_t held_until_ns; /* injected fault: not given to the kernel before */
	uint64_t off;
	uint8_t *data;
	struct iovec *iov; /* readv: what is left of it; else NULL */
	unsigned iovs;
	uint32_t bytes;
	uint32_t moved;
	uint32_t buf_index;
	int32_t res; /* on the ready list: what to report */
	int fd;	     /* watch */
	uint8_t kind;
	uint8_t state;
	uint8_t timed_out;
	uint8_t retries;
	uint8_t fault;
};

/* 0; -EPERM/-ENOSYS with a hint for people in uring_hint(): io_uring disabled or filtered; -EINVAL: the
 * fault spec (NULL or empty: none). */
int uring_new(unsigned entries, const char *fault_spec, struct uring **ret_uring);
/* The same, where a kernel thread takes what is queued: no system call for it, and a core while there is I/O. */
int uring_new_sqpoll(unsigned entries, const char *fault_spec, struct uring **ret_uring);
/*
 * Reads and writes go through a second ring, whose completions are polled for, not waited for: before any buffer or
 * file is registered.  Then uring_sleep() does not sleep while there are any in flight.  sqpoll: as above, for that
 * ring.  0 or -errno: there is only the one ring, as before.
 */
int uring_add_iopoll(struct uring *u, int sqpoll);
/* Can that be done with this file?  One block is read, aligned.  0, -EOPNOTSUPP or another errno. */
int uring_try_iopoll(int fd, void *buf, uint32_t bytes);
struct uring *uring_free(struct uring *u); /* no operation may be in flight */
const char *uring_hint(int error);

/* Pins the memory, counted against RLIMIT_MEMLOCK without CAP_IPC_LOCK: -ENOMEM.  Once each. */
int uring_register_buffers(struct uring *u, const struct iovec *iov, unsigned count);
/* Its number, from 0; -ENOSPC: URING_FILES_MAX are. */
int uring_register_file(struct uring *u, int fd);

/*
 * fault_spec (tests): rules joined by commas, each KIND:FAULT:every=N, perhaps with :file=M, :at=OFFSET or both, of
 * which the first that matches an operation is played on every Nth of its kind (of that file; that moves the byte at
 * this offset).  KIND: read or write.  FAULT:
 *	eio, enospc	fails without having been tried
 *	short		the kernel is asked for half of it first
 *	stall_ms=T	waits T before it is tried; a deadline cancels it
 *	hang_ms=T	the same, and no cancel reaches it: -ETIMEDOUT only when T is over
 *	flip		one byte of what was read is another one
 *	late		done, and said to have failed (-EIO)
 */
int uring_set_fault(struct uring *u,
		    const char *fault_spec); /* replaces all rules; -EINVAL: none changed */

/*
 * Queue; -EAGAIN when `entries` operations are in flight.  A short transfer is continued inside; res is
 * `bytes` or an error.  At deadline_ns (CLOCK_MONOTONIC, or URING_NEVER) the operation is cancelled and
 * reports -ETIMEDOUT, whatever the device says afterwards; but only when the memory is not touched any
 * more, and a device that hangs can put that off.  uring_overdue() knows at once.
 */
int uring_read(struct uring *u, struct uring_op *op, unsigned buf_index, void *dst, uint32_t bytes,
	       uint64_t off, uint64_t deadline_ns);
int uring_write(struct uring *u, struct uring_op *op, unsigned buf_index, const void *src,
		uint32_t bytes, uint64_t off, uint64_t deadline_ns);
/*
 * The same into several pieces of memory, one after the other, none of them registered.  The list is the ring's until
 * done() is called, and what it says then is nobody's business.
 */
int uring_readv(struct uring *u, struct uring_op *op, struct iovec *iov, unsigned count,
		uint64_t off, uint64_t deadline_ns);

/*
 * Flush: what was written, and had completed, before this was queued is on the device's media when res is 0
 * (fdatasync).  Counted as an operation, as the two above; no deadline, no injected faults.
 */
int uring_sync(struct uring *u, struct uring_op *op);

/*
 * Watch an eventfd: done(op, 1) after each write, or once after several, until removed; a negative res is the
 * last call.  It is not read: each write wakes the poll, and who shares an eventfd could have made reading block.
 */
int uring_watch(struct uring *u, struct uring_op *op, int fd);
void uring_unwatch(struct uring *u, struct uring_op *op); /* done(op, -ECANCELED) follows */

/* Tests: told of each write and flush when it is queued (done 0), and when it has ended well (done 1). */
void uring_set_tap(struct uring *u, void (*tap)(void *user, const struct uring_op *op, int done),
		   void *user);

int uring_submit(struct uring *u);
unsigned uring_reap(struct uring *u, unsigned max); /* calls done(); returns how many */
/* Submit and wait for at most this long (UINT64_MAX: for ever), less when a deadline is near.  0: look. */
int uring_sleep(struct uring *u, uint64_t timeout_ns);
unsigned uring_inflight(const struct uring *u); /* reads and writes not reported yet */
unsigned uring_overdue(const struct uring *u);	/* of these, past their deadline */
unsigned uring_file_overdue(const struct uring *u, unsigned file); /* and of one file */

#endif
