/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_ring.h - making a ring, and what it has to know before it is used.  Only for uring.c.
 */
#ifndef SKVCD_DAEMON_URING_RING_H
#define SKVCD_DAEMON_URING_RING_H

struct io_uring;

/* Disabled until uring_ring_enable(), from the thread that owns it.  how: IORING_SETUP_* beside the usual ones. */
int uring_ring_make(struct io_uring *ring, unsigned entries, unsigned cq_entries, unsigned how);
int uring_ring_enable(struct io_uring *ring);
/* The first one (index 0) makes the table, of URING_FILES_MAX. */
int uring_ring_file(struct io_uring *ring, unsigned index, int fd);

#endif
