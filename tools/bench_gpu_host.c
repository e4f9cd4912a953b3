/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu_host.c - no GPU at all: the engine's pages lie in an arena, and a raw copy is a memcpy.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tools/bench_gpu.h"

static int host_memory_new(struct bench_gpu *g, struct skvc_session *s, uint64_t bytes,
			   struct bench_memory *ret)
{
	struct skvc_arena *arena;
	int r = skvc_arena_new(s, bytes, &arena);

	if (r < 0)
		return bench_session_fail(g->r, r, "skvc_arena_new", s);
	*ret = (struct bench_memory){
		.address = (uintptr_t)skvc_arena_ptr(arena),
		.bytes = bytes,
		.fd = -1,
		.arena = arena,
	};
	return 0;
}

/* The session frees it. */
static void host_memory_free(struct bench_gpu *g, struct bench_memory *m)
{
	(void)g;
	*m = (struct bench_memory){ .fd = -1 };
}

static int host_region(struct bench_gpu *g, struct skvc_session *s, uint32_t ns,
		       const struct bench_memory *m, uint32_t blocks, uint32_t *ret_region)
{
	int r = skvc_register_host(s, ns, m->arena, 0, blocks, NULL, ret_region);

	return r < 0 ? bench_session_fail(g->r, r, "skvc_register_host", s) : 0;
}

int bench_host_new(struct bench_gpu *g, uint64_t bytes, void **ret)
{
	void *host = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (host == MAP_FAILED)
		return report_fail(g->r, -ENOMEM, "out of memory");
	*ret = host;
	return 0;
}

void bench_host_free(struct bench_gpu *g, void *host, uint64_t bytes)
{
	(void)g;
	if (host)
		(void)munmap(host, bytes);
}

int bench_host_copy(struct bench_gpu *g, bool to_device, uint64_t address, void *host,
		    uint64_t bytes)
{
	if (to_device)
		memcpy((void *)(uintptr_t)address, host, bytes);
	else
		memcpy(host, (const void *)(uintptr_t)address, bytes);
	(void)g;
	return 0;
}

int bench_host_sync(struct bench_gpu *g, bool to_device)
{
	(void)g;
	(void)to_device;
	return 0;
}

void bench_host_close(struct bench_gpu *g)
{
	(void)g;
}

static const struct bench_gpu_ops host_ops = {
	.memory_new = host_memory_new,
	.memory_free = host_memory_free,
	.region = host_region,
	.host_new = bench_host_new,
	.host_free = bench_host_free,
	.copy = bench_host_copy,
	.sync = bench_host_sync,
	.free = bench_host_close,
};

int bench_gpu_host_open(struct bench_gpu *g)
{
	(void)snprintf(g->model, sizeof(g->model), "none, host memory");
	g->ops = &host_ops;
	return 0;
}
