/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_ring.c - a ring of the kernel's, made as this kernel can: for uring.c, which knows what goes through it.
 */
#include "daemon/uring_ring.h"

#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/uring.h"

#define SQPOLL_IDLE_MS 50u

const char *uring_hint(int error)
{
	switch (error) {
	case -EPERM:
	case -EACCES:
		return "io_uring is not permitted here: see kernel.io_uring_disabled and the system call "
		       "filter of the unit or container";
	case -ENOSYS:
		return "this kernel has no io_uring, or a system call filter hides it";
	case -ENOMEM:
		return "io_uring ran into the locked-memory limit: raise LimitMEMLOCK= (ulimit -l)";
	case -EINVAL:
		return "this kernel's io_uring is too old: 5.13 or newer is needed";
	default:
		return "io_uring cannot be set up";
	}
}

int uring_ring_make(struct io_uring *ring, unsigned entries, unsigned cq_entries, unsigned how)
{
	/*
	 * Completions of one thread's I/O, without interrupting it (COOP_TASKRUN): the flag in the ring
	 * says when to enter the kernel for them.  DISABLED until the owner's first entry: with
	 * SINGLE_ISSUER, the thread that enables the ring owns it.
	 */
	const unsigned base = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_R_DISABLED |
			      how;
	const unsigned coop = IORING_SETUP_SUBMIT_ALL |
			      (how & IORING_SETUP_SQPOLL /* nobody is interrupted then */
				       ? 0
				       : IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
	const unsigned tries[] = { base | coop | IORING_SETUP_SINGLE_ISSUER, base | coop, base };
	int r = -EINVAL;

	/* -EINVAL: a kernel that does not know a flag. */
	for (unsigned i = 0; i < sizeof(tries) / sizeof(*tries) && r == -EINVAL; i++) {
		struct io_uring_params p = { .flags = tries[i], .sq_thread_idle = SQPOLL_IDLE_MS };

		p.cq_entries = cq_entries;
		r = io_uring_queue_init_params(entries, ring, &p);
	}
	return r;
}

int uring_try_iopoll(int fd, void *buf, uint32_t bytes)
{
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	int r = io_uring_queue_init(4, &ring, IORING_SETUP_IOPOLL);

	if (r < 0)
		return r;
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_read(sqe, fd, buf, bytes, 0);
	r = io_uring_submit_and_wait(&ring, 1);
	if (r >= 0)
		r = io_uring_wait_cqe(&ring, &cqe);
	if (r == 0)
		r = cqe->res < 0 ? cqe->res : cqe->res == (int)bytes ? 0 : -EIO;
	io_uring_queue_exit(&ring);
	return r;
}

int uring_ring_file(struct io_uring *ring, unsigned index, int fd)
{
	int fds[URING_FILES_MAX];

	if (index)
		return io_uring_register_files_update(ring, index, &fd, 1);
	memset(fds, 0xff, sizeof(fds)); /* a table with holes */
	fds[0] = fd;
	return io_uring_register_files(ring, fds, URING_FILES_MAX);
}

/* liburing 2.3 declares io_uring_enable_rings(), but its shared library does not export it. */
int uring_ring_enable(struct io_uring *ring)
{
	return syscall(__NR_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL,
		       0) < 0
		       ? -errno
		       : 0;
}
