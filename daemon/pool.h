/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.h - an arena cut into slots by size class.  A class is "n slots per span"; spans are powers of two,
 * cut from slabs, the largest of them, and go back when they are empty.  Callers get handles, never
 * pointers that outlive a call.  Lane-only; no I/O, no policy: when it is full it says so.
 *
 * A fresh slot holds the bytes of whoever had it before.  Whoever writes less than whole sectors of it to
 * a disk pads with zeros first; nothing here clears memory.
 */
#ifndef SKVCD_DAEMON_POOL_H
#define SKVCD_DAEMON_POOL_H

#include <stdint.h>
#include <sys/uio.h>

#define POOL_NONE UINT32_MAX
#define POOL_PIECE_BYTES (1ull << 30) /* what io_uring takes as one registered buffer */

struct pool;

struct pool_options {
	uint64_t bytes;		/* multiple of slab_bytes after rounding down */
	uint64_t slab_bytes;	/* power of two, the largest slot; 0: bytes / 64, in 1..64 MiB */
	uint32_t granule_bytes; /* power of two >= 64; slots are multiples and aligned to it */
	int numa_node;		/* -1: none */
	int lock;		/* mlock; failure is an error */
	int populate;		/* make every page present now (locking does too) */
	const char *name;	/* of the memfd; NULL: anonymous private memory */
	int fd; /* + 1, instead of a new one: a memfd of an earlier pool, as pool_fd() gave it; taken over when
		 * there is a pool, and left alone when not.  0: none */
	void *foreign; /* borrowed memory instead of the pool's own, aligned to the granule; the pool
			* never looks into it (GPU memory).  NULL: none */
};

/* 0, -EINVAL (also: no such NUMA node), -ENOMEM, -EPERM/-EAGAIN (mlock: RLIMIT_MEMLOCK), -ESTALE (fd: of another
 * size, not sealed, or not ours), -errno */
int pool_new(const struct pool_options *options, struct pool **ret_pool);
struct pool *pool_free(struct pool *pool); /* asserts that every slot was returned; takes NULL */

/* A slot for `bytes` (> 0), remembered with its owner (a block id).  0, -ENOSPC (nothing fits now),
 * -EFBIG (never fits). */
int pool_alloc(struct pool *pool, uint64_t bytes, uint32_t owner, uint32_t *ret_slot);
void pool_release(struct pool *pool, uint32_t slot);
void *pool_ptr(const struct pool *pool, uint32_t slot);
uint64_t pool_slot_bytes(const struct pool *pool, uint32_t slot); /* capacity of the slot */
uint32_t pool_owner(const struct pool *pool, uint32_t slot);
void pool_set_owner(struct pool *pool, uint32_t slot, uint32_t owner);
uint64_t pool_largest_bytes(const struct pool *pool); /* the largest that can ever fit */

/*
 * Whose slots to empty so that a span becomes free in which `bytes` fit: the owners in the emptiest place
 * of the emptiest slab, at most max; 0 when nothing is taken.  With max of them gone, asking again finds
 * the same place emptier.  Looks at every slab: for when an allocation failed.
 */
unsigned pool_sparse_owners(const struct pool *pool, uint64_t bytes, uint32_t *ret_owners,
			    unsigned max);

struct pool_usage {
	uint64_t bytes;	     /* arena */
	uint64_t used_bytes; /* asked for */
	uint64_t slot_bytes; /* of the slots they lie in: waste = 1 - used / slot */
	uint64_t slab_bytes; /* of the spans in use: fill of the arena */
	uint32_t slots;
};
void pool_usage(const struct pool *pool, struct pool_usage *ret);

/*
 * Hysteresis: 0 once the fill passed full_percent, until it is below accept_percent.  Fill is the share
 * of the arena that occupied slots take, each with its part of the span's tail; see pool.c for why.
 */
int pool_accepts(struct pool *pool, uint32_t full_percent, uint32_t accept_percent);

/* Pieces (POOL_PIECE_BYTES each, the last may be less) for registration with io_uring: how many there are,
 * of which the first max were written.  Registering pins a piece, and so touches all of it. */
unsigned pool_iovecs(const struct pool *pool, struct iovec *ret_iov, unsigned max);
unsigned pool_iovec_index(const struct pool *pool, uint32_t slot); /* the piece that holds a slot */

int pool_fd(const struct pool *pool); /* borrowed; -1: it is no memfd */

/*
 * What was handed out, to be written down and found again in a pool of the same options over the same memory
 * (pool_restore.c).
 */
struct pool_saved_span {
	uint32_t unit, order, slot_granules;
};

/* The next span that is in use; *cursor is 0 at first.  1; 0: that was the last. */
int pool_save_span(const struct pool *pool, uint32_t *cursor, struct pool_saved_span *ret);

/* For a pool that has handed nothing out: all spans, then their slots, then the end, whatever was refused in between;
 * only then anything else.  What they say is not trusted.  0, -EBADMSG: it cannot be so. */
int pool_restore_span(struct pool *pool, const struct pool_saved_span *saved);
/* The slot is then one like any other, except that no slot comes free before the end. */
int pool_restore_slot(struct pool *pool, uint32_t slot, uint64_t bytes, uint32_t owner);
void pool_restore_end(struct pool *pool);

#endif
