/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_arena.c - mapping, NUMA placement and locking of the pool's memory.  Runs at start-up, on the
 * thread that makes the lane.  May not know what the memory is for.
 */
#include "daemon/pool_arena.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/placement.h"
#include "ipc/segment.h"

#define HUGE_BYTES (2ull << 20) /* alignment that lets x86-64 and arm64 use huge pages */

/*
 * Address space is reserved larger than the arena, so that the arena can begin where it should; the
 * surplus stays inaccessible and costs nothing.
 */
static int map(struct pool_arena *a, uint64_t align_bytes, int fd)
{
	const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
				 : MAP_SHARED | MAP_NORESERVE;
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

/* Locked as they become present, by as many threads as there are: mlock() by itself would go over all of it alone. */
static int lock(const struct pool_arena *a)
{
	return mlock2(a->base, (size_t)a->bytes, MLOCK_ONFAULT) < 0 ? -errno : 0;
}

/* A memfd comes from the manager that kept it, so it is asked what it is. */
static int check_given(int fd, uint64_t bytes)
{
	struct stat st;

	if (segment_check_fd(fd, bytes) < 0 || fstat(fd, &st) < 0 ||
	    (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR)
		return -ESTALE;
	return (uint64_t)st.st_size == bytes && st.st_uid == geteuid() ? 0 : -ESTALE;
}

static int get_memfd(const struct pool_arena_options *options, int *ret_fd)
{
	int r;

	if (!options->fd)
		return segment_create(options->name, options->bytes, ret_fd);
	r = check_given(options->fd - 1, options->bytes);
	if (r == 0)
		*ret_fd = options->fd - 1;
	return r;
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
	if (options->name || options->fd) {
		r = get_memfd(options, &fd);
		if (r < 0)
			return r;
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
	r = placement_prefer(a->base, a->bytes, options->numa_node);
	if (r == 0 && options->lock)
		r = lock(a);
	if (r == 0 && (options->lock || options->populate))
		r = placement_populate(a->base, a->bytes, options->fd != 0);
	if (r < 0)
		goto fail;
	return 0;
fail:
	if (options->fd)
		a->fd = 0;
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
