/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu_sim.c - the engine's side of the simulated GPU: memory is a memfd handed over as a descriptor,
 * an event is a word in another one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/sim_handles.h"
#include "tools/bench_gpu.h"

/* A sealed memfd, mapped. */
static int memfd_make(const struct bench_gpu *g, uint64_t bytes, int *ret_fd, void **ret_base)
{
	int fd = memfd_create("skvc-bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *base = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0)
		base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED) {
		int error = errno;

		if (fd >= 0)
			(void)close(fd);
		return report_fail(g->r, -error, "a memfd: %s", strerror(error));
	}
	*ret_fd = fd;
	*ret_base = base;
	return 0;
}

static int sim_memory_new(struct bench_gpu *g, struct skvc_session *s, uint64_t bytes,
			  struct bench_memory *ret)
{
	void *base = NULL;
	int fd = -1, r = memfd_make(g, bytes, &fd, &base);

	(void)s;
	if (r == 0)
		*ret = (struct bench_memory){ .address = (uintptr_t)base,
					      .bytes = bytes,
					      .fd = fd };
	return r;
}

static void sim_memory_free(struct bench_gpu *g, struct bench_memory *m)
{
	(void)g;
	if (m->address) {
		(void)munmap((void *)(uintptr_t)m->address, m->bytes);
		(void)close(m->fd);
	}
	*m = (struct bench_memory){ .fd = -1 };
}

static int sim_region(struct bench_gpu *g, struct skvc_session *s, uint32_t ns,
		      const struct bench_memory *m, uint32_t blocks, uint32_t *ret_region)
{
	struct skvc_gpu_export e = {
		.type = SKVC_GPU_POSIX_FD,
		.fd = m->fd,
		.allocation_bytes = m->bytes,
	};
	int r;

	memcpy(e.device_uuid, g->uuid, sizeof(e.device_uuid));
	r = skvc_register_gpu(s, ns, &e, 1, blocks, NULL, ret_region);
	return r < 0 ? bench_session_fail(g->r, r, "skvc_register_gpu", s) : 0;
}

static int sim_event_new(struct bench_gpu *g, struct bench_event *ret)
{
	struct sim_handle handle = { .magic = SIM_EVENT_MAGIC, .pid = (int32_t)getpid() };
	struct sim_event_words *words;
	void *base = NULL;
	int fd = -1, r = memfd_make(g, SIM_EVENT_BYTES, &fd, &base);

	if (r < 0)
		return r;
	words = base;
	atomic_store_explicit(&words->state, SIM_EVENT_COMPLETE, memory_order_release);
	handle.fd = fd;
	*ret = (struct bench_event){ .own = base, .fd = fd };
	memcpy(ret->handle, &handle, sizeof(ret->handle));
	return 0;
}

/* Copies are done when they return, so that the stream has reached the event already. */
static int sim_event_record(struct bench_gpu *g, struct bench_event *e)
{
	struct sim_event_words *words = e->own;

	(void)g;
	atomic_store_explicit(&words->state, SIM_EVENT_COMPLETE, memory_order_release);
	return 0;
}

static void sim_event_free(struct bench_gpu *g, struct bench_event *e)
{
	(void)g;
	if (e->own) {
		(void)munmap(e->own, SIM_EVENT_BYTES);
		(void)close(e->fd);
	}
	*e = (struct bench_event){ .fd = -1 };
}

/* Copies and host memory are as without a GPU. */
static const struct bench_gpu_ops sim_ops = {
	.memory_new = sim_memory_new,
	.memory_free = sim_memory_free,
	.region = sim_region,
	.event_new = sim_event_new,
	.event_record = sim_event_record,
	.event_free = sim_event_free,
	.host_new = bench_host_new,
	.host_free = bench_host_free,
	.copy = bench_host_copy,
	.sync = bench_host_sync,
	.free = bench_host_close,
};

int bench_gpu_sim_open(struct bench_gpu *g)
{
	g->ops = &sim_ops;
	(void)snprintf(g->model, sizeof(g->model), "simulated");
	memcpy(g->uuid, SIM_UUID, sizeof(g->uuid));
	return 0;
}
