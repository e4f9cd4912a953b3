/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_side.c - see gpu_side.h.
 */
#include "tests/lib/gpu_side.h"

#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/sim_handles.h"
#include "tests/lib/private_daemon.h"

/*
 * As cuda.h has them since 11.0; no CUDA header may be needed to build the tests.
 */
struct vmm_location { /* CUmemLocation */
	int type;
	int id;
};

struct vmm_prop { /* CUmemAllocationProp */
	int type;
	int handle_types;
	struct vmm_location location;
	void *win32;
	uint8_t flags[8];
};

struct vmm_access { /* CUmemAccessDesc */
	struct vmm_location location;
	int flags;
};

static_assert(offsetof(struct vmm_prop, location) == 8 && offsetof(struct vmm_prop, win32) == 16 &&
		      offsetof(struct vmm_prop, flags) == 24 && sizeof(struct vmm_prop) == 32,
	      "CUmemAllocationProp");
static_assert(sizeof(struct vmm_access) == 12, "CUmemAccessDesc");

#define VMM_POSIX_FD 1
#define VMM_PINNED 1
#define VMM_DEVICE 1
#define VMM_READ_WRITE 3

struct gpu_vmm {
	int (*create)(uint64_t *handle, size_t bytes, const struct vmm_prop *prop,
		      unsigned long long flags);
	int (*release)(uint64_t handle);
	int (*reserve)(uint64_t *address, size_t bytes, size_t align, uint64_t hint,
		       unsigned long long flags);
	int (*unreserve)(uint64_t address, size_t bytes);
	int (*map)(uint64_t address, size_t bytes, size_t off, uint64_t handle,
		   unsigned long long flags);
	int (*unmap)(uint64_t address, size_t bytes);
	int (*access)(uint64_t address, size_t bytes, const struct vmm_access *desc, size_t count);
	int (*to_shareable)(void *shareable, uint64_t handle, int type, unsigned long long flags);
	int (*granularity)(size_t *grain, const struct vmm_prop *prop, int option);
	int (*info)(size_t *free_bytes, size_t *total_bytes);
	int (*host_function)(cuda_stream stream, void (*function)(void *user), void *user);
	int (*event_query)(cuda_event event);
};

#define SYMBOL(field, name)                           \
	{                                             \
		offsetof(struct gpu_vmm, field), name \
	}

static const struct vmm_symbol {
	size_t off;
	const char *name;
} symbols[] = {
	SYMBOL(create, "cuMemCreate"),
	SYMBOL(release, "cuMemRelease"),
	SYMBOL(reserve, "cuMemAddressReserve"),
	SYMBOL(unreserve, "cuMemAddressFree"),
	SYMBOL(map, "cuMemMap"),
	SYMBOL(unmap, "cuMemUnmap"),
	SYMBOL(access, "cuMemSetAccess"),
	SYMBOL(to_shareable, "cuMemExportToShareableHandle"),
	SYMBOL(granularity, "cuMemGetAllocationGranularity"),
	SYMBOL(info, "cuMemGetInfo_v2"),
	SYMBOL(host_function, "cuLaunchHostFunc"),
	SYMBOL(event_query, "cuEventQuery"),
};

void gpu_side_die(const char *file, int line, const char *what)
{
	(void)fflush(NULL);
	(void)fprintf(stderr, "%s:%d: process %d: not so: %s\n", file, line, (int)getpid(), what);
	_exit(1);
}

bool gpu_side_is_sim(void)
{
	const char *device = getenv("SKVC_TEST_DEVICE");

	return device && !strcmp(device, "sim");
}

/* A call of the driver that has to work. */
static void must_do(const struct gpu_side *g, int error, const char *what, int line)
{
	char text[REPORT_BYTES] = "";
	struct report r = { .subject = "GPU", .err = text, .err_bytes = sizeof(text) };

	if (cuda_check(&g->cuda, error, what, &r) < 0)
		gpu_side_die(__FILE__, line, text);
}

#define must(g, call) must_do(g, call, #call, __LINE__)

static void vmm_load(struct gpu_side *g)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

	g->vmm = calloc(1, sizeof(*g->vmm));
	gpu_need(library && g->vmm);
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		void *symbol = dlsym(library, symbols[i].name);

		if (!symbol)
			gpu_side_die(__FILE__, __LINE__, symbols[i].name);
		memcpy((uint8_t *)g->vmm + symbols[i].off, &symbol, sizeof(symbol));
	}
}

int gpu_side_open(struct gpu_side *g)
{
	char text[REPORT_BYTES] = "";
	struct report r = { .subject = "GPU", .err = text, .err_bytes = sizeof(text) };

	*g = (struct gpu_side){ .sim = gpu_side_is_sim() };
	if (g->sim) {
		memcpy(g->uuid, SIM_UUID, sizeof(g->uuid));
		return 0;
	}
	if (cuda_driver_open(&g->cuda, NULL, &r) < 0) {
		cuda_driver_close(&g->cuda);
		printf("no GPU to test: %s\n", text);
		return 77;
	}
	memcpy(g->uuid, g->cuda.uuid, sizeof(g->uuid));
	vmm_load(g);
	must(g, g->cuda.stream_new(&g->stream, CUDA_STREAM_NON_BLOCKING));
	return 0;
}

void gpu_side_close(struct gpu_side *g)
{
	if (g->stream)
		(void)g->cuda.stream_free(g->stream);
	free(g->vmm);
	cuda_driver_close(&g->cuda);
	*g = (struct gpu_side){ .sim = g->sim };
}

uint64_t gpu_side_free_bytes(const struct gpu_side *g)
{
	size_t left = 0, total = 0;

	if (!g->sim)
		must(g, g->vmm->info(&left, &total));
	return left;
}

/* ---- memory ---- */

static int memfd_make(uint64_t bytes, void **ret_base)
{
	int fd = memfd_create("engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	gpu_need(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
		 fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
	*ret_base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	gpu_need(*ret_base != MAP_FAILED);
	return fd;
}

static void vmm_new(struct gpu_side *g, struct gpu_memory *m)
{
	struct vmm_location here = { .type = VMM_DEVICE, .id = g->cuda.device };
	struct vmm_prop prop = { .type = VMM_PINNED,
				 .handle_types = VMM_POSIX_FD,
				 .location = here };
	struct vmm_access access = { .location = here, .flags = VMM_READ_WRITE };
	size_t grain = 0;

	must(g, g->vmm->granularity(&grain, &prop, 0));
	gpu_need(grain && m->bytes % grain == 0);
	must(g, g->vmm->create(&m->handle, m->bytes, &prop, 0));
	must(g, g->vmm->reserve(&m->address, m->bytes, 0, 0, 0));
	must(g, g->vmm->map(m->address, m->bytes, 0, m->handle, 0));
	must(g, g->vmm->access(m->address, m->bytes, &access, 1));
	must(g, g->vmm->to_shareable(&m->fd, m->handle, VMM_POSIX_FD, 0));
}

void gpu_side_memory_new(struct gpu_side *g, enum gpu_side_kind kind, uint64_t bytes,
			 struct gpu_memory *ret)
{
	void *base;

	*ret = (struct gpu_memory){ .kind = kind, .bytes = bytes, .fd = -1 };
	gpu_need(bytes % GPU_SIDE_GRAIN == 0);
	if (g->sim) {
		ret->fd = memfd_make(bytes, &base);
		ret->address = (uintptr_t)base;
	} else if (kind == GPU_SIDE_IPC) {
		must(g, g->cuda.memory_alloc(&ret->address, bytes));
	} else {
		vmm_new(g, ret);
	}
}

void gpu_side_memory_free(struct gpu_side *g, struct gpu_memory *m)
{
	if (g->sim) {
		(void)munmap((void *)(uintptr_t)m->address, m->bytes);
	} else if (m->kind == GPU_SIDE_IPC) {
		must(g, g->cuda.memory_free(m->address));
	} else {
		must(g, g->vmm->unmap(m->address, m->bytes));
		must(g, g->vmm->unreserve(m->address, m->bytes));
		must(g, g->vmm->release(m->handle));
	}
	if (m->fd >= 0)
		(void)close(m->fd);
	*m = (struct gpu_memory){ .fd = -1 };
}

struct skvc_gpu_export gpu_side_export(const struct gpu_side *g, const struct gpu_memory *m)
{
	struct skvc_gpu_export e = { .type = SKVC_GPU_POSIX_FD,
				     .fd = m->fd,
				     .allocation_bytes = m->bytes };

	memcpy(e.device_uuid, g->uuid, sizeof(e.device_uuid));
	if (m->kind == GPU_SIDE_VMM)
		return e;
	e.type = SKVC_GPU_IPC_HANDLE;
	e.fd = -1;
	if (g->sim) {
		struct sim_handle h = { .magic = SIM_MEMORY_MAGIC,
					.pid = (int32_t)getpid(),
					.fd = m->fd };

		memcpy(e.ipc_handle, &h, sizeof(e.ipc_handle));
	} else {
		struct cuda_ipc_handle h;

		must(g, g->cuda.ipc_memory(&h, m->address));
		memcpy(e.ipc_handle, h.bytes, sizeof(e.ipc_handle));
	}
	return e;
}

/* ---- copies ---- */

void *gpu_side_host(struct gpu_side *g, uint64_t bytes)
{
	void *host = NULL;

	if (g->sim)
		host = calloc(1, bytes);
	else
		must(g, g->cuda.host_alloc(&host, bytes, CUDA_HOST_PORTABLE));
	gpu_need(host);
	return host;
}

void gpu_side_write(struct gpu_side *g, const struct gpu_memory *m, const void *host)
{
	if (g->sim) {
		memcpy((void *)(uintptr_t)m->address, host, m->bytes);
		return;
	}
	must(g, g->cuda.copy_to_device(m->address, host, m->bytes, g->stream));
	must(g, g->cuda.stream_sync(g->stream));
}

void gpu_side_read(struct gpu_side *g, const struct gpu_memory *m, void *host)
{
	if (g->sim) {
		memcpy(host, (const void *)(uintptr_t)m->address, m->bytes);
		return;
	}
	must(g, g->cuda.copy_to_host(host, m->address, m->bytes, g->stream));
	must(g, g->cuda.stream_sync(g->stream));
}

void gpu_side_fill(struct gpu_side *g, const struct gpu_memory *m, uint8_t value)
{
	if (g->sim) {
		memset((void *)(uintptr_t)m->address, value, m->bytes);
		return;
	}
	must(g, g->cuda.fill(m->address, value, m->bytes, g->stream));
	must(g, g->cuda.stream_sync(g->stream));
}

/* ---- events ---- */

void gpu_side_event_new(struct gpu_side *g, struct gpu_event *ret)
{
	*ret = (struct gpu_event){ .fd = -1 };
	if (g->sim) {
		struct sim_handle h = { .magic = SIM_EVENT_MAGIC, .pid = (int32_t)getpid() };

		h.fd = ret->fd = memfd_make(SIM_EVENT_BYTES, &ret->own);
		atomic_store(&((struct sim_event_words *)ret->own)->state, SIM_EVENT_COMPLETE);
		memcpy(ret->handle, &h, sizeof(ret->handle));
	} else {
		struct cuda_ipc_handle h;
		cuda_event e = NULL;

		must(g, g->cuda.event_new(&e, CUDA_EVENT_DISABLE_TIMING | CUDA_EVENT_INTERPROCESS));
		must(g, g->cuda.ipc_event(&h, e));
		ret->own = e;
		memcpy(ret->handle, h.bytes, sizeof(ret->handle));
	}
}

void gpu_side_event_free(struct gpu_side *g, struct gpu_event *e)
{
	if (g->sim) {
		(void)munmap(e->own, SIM_EVENT_BYTES);
		(void)close(e->fd);
	} else {
		must(g, g->cuda.event_free(e->own));
	}
	*e = (struct gpu_event){ .fd = -1 };
}

static struct later {
	pthread_t thread;
	unsigned ms;
	void *to;
	const void *from;
	uint64_t bytes;
	struct sim_event_words *words;
} later;

static void later_wait(void *user)
{
	private_daemon_sleep_ms(*(unsigned *)user);
}

static void *later_main(void *arg)
{
	struct later *l = arg;

	private_daemon_sleep_ms(l->ms);
	memcpy(l->to, l->from, l->bytes);
	atomic_store_explicit(&l->words->state, SIM_EVENT_COMPLETE, memory_order_release);
	return NULL;
}

void gpu_side_write_later(struct gpu_side *g, const struct gpu_memory *m, const void *host,
			  unsigned ms, struct gpu_event *e)
{
	later = (struct later){ .ms = ms };
	if (!g->sim) {
		must(g, g->vmm->host_function(g->stream, later_wait, &later.ms));
		must(g, g->cuda.copy_to_device(m->address, host, m->bytes, g->stream));
		must(g, g->cuda.event_record(e->own, g->stream));
		return;
	}
	later.to = (void *)(uintptr_t)m->address;
	later.from = host;
	later.bytes = m->bytes;
	later.words = e->own;
	atomic_store(&later.words->state, SIM_EVENT_PENDING);
	gpu_need(pthread_create(&later.thread, NULL, later_main, &later) == 0);
}

void gpu_side_later_end(struct gpu_side *g)
{
	if (g->sim)
		gpu_need(pthread_join(later.thread, NULL) == 0);
	else
		must(g, g->cuda.stream_sync(g->stream));
}

void gpu_side_event_was_recorded(struct gpu_side *g, struct gpu_event *e, unsigned records)
{
	if (g->sim) {
		const struct sim_event_words *words = e->own;

		gpu_need(atomic_load(&words->records) == records);
		return;
	}
	must(g, g->cuda.event_sync(e->own));
	must(g, g->vmm->event_query(e->own));
}
