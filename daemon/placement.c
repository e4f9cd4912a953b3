/* SPDX-License-Identifier: Apache-2.0 */
/*
 * placement.c - NUMA preference and parallel pre-faulting of the daemon's own memory (the pool at
 * start-up, clients' arenas as they are made).  May not know what the memory is for.
 */
#include "daemon/placement.h"

#include <errno.h>
#include <limits.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_READ 22 /* Linux 5.14, as the next */
#define MADV_POPULATE_WRITE 23
#endif

#define PLACEMENT_NODES_MAX 1024u
#define PLACEMENT_THREADS_MAX 16u
#define PLACEMENT_PIECE_BYTES (64ull << 20)
#define PLACEMENT_PAGE_BYTES 4096u

struct populate {
	uint8_t *base;
	uint64_t bytes;
	int advice;
	_Atomic uint64_t next; /* offset of the first piece nobody has taken; any worker adds */
	_Atomic int error;     /* the last failure; any worker writes, read after they are joined */
};

int placement_has_node(int node)
{
	return node >= 0 && numa_available() >= 0 && node <= numa_max_node() &&
	       (unsigned)node < PLACEMENT_NODES_MAX &&
	       numa_bitmask_isbitset(numa_all_nodes_ptr, (unsigned)node);
}

int placement_prefer(void *base, uint64_t bytes, int node)
{
	unsigned long mask[PLACEMENT_NODES_MAX / (CHAR_BIT * sizeof(long))] = { 0 };
	const unsigned bits = CHAR_BIT * sizeof(long);

	if (node < 0 || numa_available() < 0)
		return 0; /* no wish, or a kernel without NUMA: nothing to choose from */
	if (!placement_has_node(node))
		return -EINVAL;
	mask[(unsigned)node / bits] |= 1ul << ((unsigned)node % bits);
	if (mbind(base, bytes, MPOL_PREFERRED, mask, PLACEMENT_NODES_MAX, 0) < 0)
		/* A container may forbid it; where the memory lies is then a matter of speed. */
		return errno == EPERM || errno == ENOSYS ? 0 : -errno;
	return 0;
}

static int populate_piece(uint8_t *p, uint64_t bytes, int advice)
{
	if (!madvise(p, bytes, advice))
		return 0;
	if (errno != EINVAL)
		return -errno;
	for (uint64_t off = 0; off < bytes; off += PLACEMENT_PAGE_BYTES) { /* an older kernel */
		volatile uint8_t *byte = p + off;
		uint8_t is = *byte; /* there may be something already */

		*byte = is;
	}
	return 0;
}

static void *populate_worker(void *arg)
{
	struct populate *w = arg;

	for (;;) {
		uint64_t off = atomic_fetch_add(&w->next, PLACEMENT_PIECE_BYTES), left;
		int r;

		if (off >= w->bytes)
			return NULL;
		left = w->bytes - off;
		r = populate_piece(w->base + off,
				   left < PLACEMENT_PIECE_BYTES ? left : PLACEMENT_PIECE_BYTES,
				   w->advice);
		if (r < 0)
			atomic_store(&w->error, r);
	}
}

/* Faults for reading map many pages that are there already at once; shared ones may be written then, too. */
int placement_populate(void *base, uint64_t bytes, int exists)
{
	struct populate w = { .base = base,
			      .bytes = bytes,
			      .advice = exists ? MADV_POPULATE_READ : MADV_POPULATE_WRITE };
	pthread_t thread[PLACEMENT_THREADS_MAX];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = 0;

	while (n < PLACEMENT_THREADS_MAX && (long)n + 1 < cores &&
	       n * PLACEMENT_PIECE_BYTES < bytes &&
	       !pthread_create(&thread[n], NULL, populate_worker, &w))
		n++;
	(void)populate_worker(&w); /* this thread too: without any other it does all */
	while (n > 0)
		(void)pthread_join(thread[--n], NULL);
	return atomic_load(&w.error);
}
