/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_arena.c - mapping, NUMA placement and locking of the pool's memory.  Runs at start-up, on the
 * thread that makes the lane.  May not know what the memory is for.
 */
#include "daemon/pool_arena.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <numa.h>
#include <numaif.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U			/* Linux 6.3 */
#endif

#define HUGE_BYTES (2ull << 20)			/* alignment that lets x86-64 and arm64 use huge pages */
#define LOCK_PIECE_BYTES (1ull << 30)		/* mlock() in pieces: it cannot be interrupted in between */

static int make_memfd(const char *name, uint64_t bytes)
{
	const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd, r;

	fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, flags);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		r = -errno;
		(void)close(fd);
		return r;
	}
	return fd;
}

/*
 * Address space is reserved larger than the arena, so that the arena can begin where it should; the
 * surplus stays inaccessible and costs nothing.
 */
static int map(struct pool_arena *a, uint64_t align_bytes, int fd)
{
	const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE;
	uintptr_t at;
	void *p;

	if (a->bytes > SIZE_MAX - align_bytes)
		return -ENOMEM;
	a->map_bytes = (size_t)(a->bytes + align_bytes);
	p = mmap(NULL, a->map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	a->map = p;
	at = ((uintptr_t)p + align_bytes - 1) & ~(uintptr_t)(align_bytes - 1);
	p = mmap((void *)at, (size_t)a->bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	a->base = p;
	return 0;
}

/* Preferred, not bound: a node that is full must not get the daemon killed. */
static int place(struct pool_arena *a, int node)
{
	unsigned long mask[1024 / (CHAR_BIT * sizeof(long))] = { 0 };
	const unsigned bits = CHAR_BIT * sizeof(long);

	if (numa_available() < 0)
		return 0;			/* a kernel without NUMA: there is nothing to choose from */
	if (node > numa_max_node() || (unsigned)node >= sizeof(mask) * CHAR_BIT ||
	    !numa_bitmask_isbitset(numa_all_nodes_ptr, (unsigned)node))
		return -EINVAL;
	mask[(unsigned)node / bits] |= 1ul << ((unsigned)node % bits);
	if (mbind(a->base, (unsigned long)a->bytes, MPOL_PREFERRED, mask, sizeof(mask) * CHAR_BIT, 0) < 0)
		/* A container may forbid it; where the memory lies is then a matter of speed. */
		return errno == EPERM || errno == ENOSYS ? 0 : -errno;
	return 0;
}

static int lock(struct pool_arena *a)
{
	for (uint64_t off = 0; off < a->bytes; off += LOCK_PIECE_BYTES) {
		uint64_t left = a->bytes - off;

		if (mlock(a->base + off, (size_t)(left < LOCK_PIECE_BYTES ? left : LOCK_PIECE_BYTES)) < 0)
			return -errno;
	}
	return 0;
}

int pool_arena_init(struct pool_arena *a, const struct pool_arena_options *options)
{
	uint64_t align = options->huge ? HUGE_BYTES : 4096;
	int fd = -1, r;

	assert(options->bytes > 0 && !(options->align_bytes & (options->align_bytes - 1)));
	memset(a, 0, sizeof(*a));
	if (options->numa_node < -1)
		return -EINVAL;
	if (align < options->align_bytes)
		align = options->align_bytes;
	if (options->name) {
		fd = make_memfd(options->name, options->bytes);
		if (fd < 0)
			return fd;
		a->fd = fd + 1;
	}
	a->bytes = options->bytes;
	r = map(a, align, fd);
	if (r < 0)
		goto fail;
	if (options->huge)
		(void)madvise(a->base, (size_t)a->bytes, MADV_HUGEPAGE);
	/* A core dump with the whole cache in it would fill the disk, and holds other people's text. */
	(void)madvise(a->base, (size_t)a->bytes, MADV_DONTDUMP);
	if (options->numa_node >= 0) {
		r = place(a, options->numa_node);
		if (r < 0)
			goto fail;
	}
	if (options->lock) {
		r = lock(a);
		if (r < 0)
			goto fail;
	}
	return 0;
fail:
	pool_arena_deinit(a);
	return r;
}

void pool_arena_deinit(struct pool_arena *a)
{
	if (a->map)
		(void)munmap(a->map, a->map_bytes);
	if (a->fd)
		(void)close(a->fd - 1);
	memset(a, 0, sizeof(*a));
}
