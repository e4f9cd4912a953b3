/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_memory.c - memory and events that engines export, and memory of the daemon that the GPU uses.
 * The control thread's, but for event_record, which is the lane's, and host and pool memory, which are
 * taken before there is traffic.  Handles come from clients: any bytes, any descriptor.
 */
#include "gpu/cuda_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

/* Host memory is registered in pieces of this size at most. */
#define HOST_PIECE_BYTES (64ull << 30)

/* As of this version none of the functions below has another shape than its type here says. */
#define DRIVER_SHAPES 12000u

static_assert(sizeof(cudaIpcMemHandle_t) == DEVICE_HANDLE_BYTES, "what engines send");
static_assert(sizeof(cudaIpcEventHandle_t) == DEVICE_HANDLE_BYTES, "what engines send");

/* The driver's entry points that the runtime has no name for; not linked, since a machine may have none. */
struct cuda_driver {
	PFN_cuMemGetAddressRange_v3020 address_range;
	PFN_cuMemImportFromShareableHandle_v10020 import;
	PFN_cuMemGetAllocationPropertiesFromHandle_v10020 properties;
	PFN_cuMemGetAllocationGranularity_v10020 granularity;
	PFN_cuMemAddressReserve_v10020 reserve;
	PFN_cuMemAddressFree_v10020 unreserve;
	PFN_cuMemMap_v10020 map;
	PFN_cuMemUnmap_v10020 unmap;
	PFN_cuMemSetAccess_v10020 set_access;
	PFN_cuMemRelease_v10020 release;
};

struct device_memory {
	struct device_memory *next;
	uint32_t type; /* enum device_memory_type */
	uint32_t users;
	uint8_t handle[DEVICE_HANDLE_BYTES]; /* IPC_HANDLE: the same one is opened once */
	void *base;
	uint64_t bytes; /* IPC_HANDLE: to the allocation's end; POSIX_FD: as mapped */
};

static int entry(void *ret_function, const char *name, char *err)
{
	enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
	void *function = NULL;
	int e = (int)cudaGetDriverEntryPointByVersion(name, &function, DRIVER_SHAPES,
						      cudaEnableDefault, &found);

	if (e != 0 || found != cudaDriverEntryPointSuccess || !function)
		return gpu_say(err, -EOPNOTSUPP, "the driver has no %s", name);
	memcpy(ret_function, &function, sizeof(function));
	return 0;
}

int cuda_memory_init(struct cuda_device *d, char *err)
{
	struct cuda_driver *v = calloc(1, sizeof(*v));
	int r = 0;

	if (!v)
		return gpu_say(err, -ENOMEM, "out of memory");
	d->driver = v;
	const struct {
		void *function;
		const char *name;
	} entries[] = {
		{ &v->address_range, "cuMemGetAddressRange" },
		{ &v->import, "cuMemImportFromShareableHandle" },
		{ &v->properties, "cuMemGetAllocationPropertiesFromHandle" },
		{ &v->granularity, "cuMemGetAllocationGranularity" },
		{ &v->reserve, "cuMemAddressReserve" },
		{ &v->unreserve, "cuMemAddressFree" },
		{ &v->map, "cuMemMap" },
		{ &v->unmap, "cuMemUnmap" },
		{ &v->set_access, "cuMemSetAccess" },
		{ &v->release, "cuMemRelease" },
	};
	for (unsigned i = 0; i < sizeof(entries) / sizeof(entries[0]) && r == 0; i++)
		r = entry(entries[i].function, entries[i].name, err);
	return r;
}

/* What the control thread learns of a lost context, the lane hears of at its next poll. */
static int refused(struct cuda_device *d, int e, int res, char *err, const char *what)
{
	int expected = 0;

	(void)cudaGetLastError();
	if (gpu_error_sticky(e)) {
		(void)atomic_compare_exchange_strong(&d->dead, &expected, -EIO);
		res = -EIO;
	}
	return gpu_say(err, res, "%s: %s", what, gpu_error_name(e));
}

/* Errors of a handle that is no good, whatever the driver calls them, are the client's fault. */
static int handle_errno(int e)
{
	int r = gpu_errno(e);

	return r == -ENOMEM || r == -EOPNOTSUPP ? r : -EINVAL;
}

/* ---- IPC handles ---- */

/*
 * What was opened must be memory of this GPU, and as large as was said.  The runtime gives the address of
 * the exporter's allocation, which may lie inside a larger piece that the driver cut up.
 */
static int ipc_check(struct cuda_device *d, const struct device_import *im, void *base,
		     uint64_t *ret_bytes, char *err)
{
	struct cudaPointerAttributes at = { .device = -1 };
	CUdeviceptr start = 0;
	size_t size = 0;
	uint64_t bytes;
	int e = (int)cudaPointerGetAttributes(&at, base);

	if (e != 0)
		return refused(d, e, -EIO, err, "nothing is known about the opened memory");
	if (at.type != cudaMemoryTypeDevice || at.device != d->ordinal)
		return gpu_say(err, -ENODEV, "this memory is not of GPU %d", d->ordinal);
	e = (int)d->driver->address_range(&start, &size, (CUdeviceptr)(uintptr_t)base);
	if (e != 0)
		return refused(d, e, -EIO, err, "the size of the opened memory is not known");
	bytes = size - ((uint64_t)(uintptr_t)base - start);
	if (bytes < im->allocation_bytes)
		return gpu_say(err, -ERANGE, "the allocation has %llu bytes, not %llu",
			       (unsigned long long)bytes, (unsigned long long)im->allocation_bytes);
	*ret_bytes = bytes;
	return 0;
}

static int ipc_open(struct cuda_device *d, const struct device_import *im, struct device_memory *m,
		    char *err)
{
	cudaIpcMemHandle_t handle;
	int e, r;

	memcpy(&handle, im->handle, sizeof(handle));
	e = (int)cudaIpcOpenMemHandle(&m->base, handle, cudaIpcMemLazyEnablePeerAccess);
	if (e == cudaErrorDeviceUninitialized) /* "invalid device context", of all things */
		return refused(d, e, -EINVAL, err, "a handle of this very process");
	if (e != 0)
		return refused(d, e, handle_errno(e), err, "not a memory handle");
	r = ipc_check(d, im, m->base, &m->bytes, err);
	if (r < 0)
		(void)cudaIpcCloseMemHandle(m->base);
	memcpy(m->handle, im->handle, sizeof(m->handle));
	return r;
}

static struct device_memory *ipc_find(struct cuda_device *d, const uint8_t *handle)
{
	for (struct device_memory *m = d->memories; m; m = m->next)
		if (m->type == DEVICE_MEMORY_IPC_HANDLE &&
		    memcmp(m->handle, handle, sizeof(m->handle)) == 0)
			return m;
	return NULL;
}

/* ---- POSIX descriptors ---- */

/*
 * Map an imported handle.  The driver tells no size of it; it refuses to map more than there is, and that
 * is the check: exactly what was claimed is mapped, rounded up to what can be mapped at all.
 */
static int fd_map(struct cuda_device *d, struct device_memory *m, CUmemGenericAllocationHandle h,
		  uint64_t claimed_bytes, char *err)
{
	const struct cuda_driver *v = d->driver;
	CUmemAccessDesc access = { .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
	CUmemAllocationProp prop;
	CUdeviceptr at = 0;
	size_t grain = 0;
	int e = (int)v->properties(&prop, h);
	bool past_end;

	if (e == 0 &&
	    (prop.location.type != CU_MEM_LOCATION_TYPE_DEVICE || prop.location.id != d->ordinal))
		return gpu_say(err, -ENODEV, "this memory is not of GPU %d", d->ordinal);
	if (e == 0)
		e = (int)v->granularity(&grain, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
	if (e != 0 || grain == 0)
		return refused(d, e, -EIO, err, "nothing is known about the imported memory");
	if (claimed_bytes == 0 || claimed_bytes > d->facts.memory_bytes)
		return gpu_say(err, -ERANGE, "%llu bytes are more than the GPU has",
			       (unsigned long long)claimed_bytes);
	m->bytes = (claimed_bytes + grain - 1u) / grain * grain;
	e = (int)v->reserve(&at, m->bytes, grain, 0, 0);
	if (e != 0)
		return refused(d, e, -ENOMEM, err, "no addresses for the imported memory");
	e = (int)v->map(at, m->bytes, 0, h, 0);
	if (e != 0) {
		/* Drivers name a map past the allocation's end either way. */
		past_end = e == cudaErrorInvalidValue || e == cudaErrorNotSupported;
		(void)v->unreserve(at, m->bytes);
		return refused(d, e, past_end ? -ERANGE : gpu_errno(e), err,
			       "the allocation is smaller than claimed, or cannot be mapped");
	}
	access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
	access.location.id = d->ordinal;
	e = (int)v->set_access(at, m->bytes, &access, 1);
	if (e != 0) {
		(void)v->unmap(at, m->bytes);
		(void)v->unreserve(at, m->bytes);
		return refused(d, e, handle_errno(e), err, "no access to the imported memory");
	}
	m->base = (void *)(uintptr_t)at;
	return 0;
}

static int fd_open(struct cuda_device *d, const struct device_import *im, struct device_memory *m,
		   char *err)
{
	CUmemGenericAllocationHandle h = 0;
	int r, e;

	e = (int)d->driver->import(&h, (void *)(uintptr_t)im->fd,
				   CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (e != 0)
		return refused(d, e, handle_errno(e), err, "not a descriptor of GPU memory");
	r = fd_map(d, m, h, im->allocation_bytes, err);
	/* The mapping keeps the memory; the handle is of no more use. */
	(void)d->driver->release(h);
	return r;
}

/* ---- both ---- */

static int cuda_memory_open(struct device *dev, const struct device_import *im,
			    struct device_memory **ret_memory, void **ret_base, char *err)
{
	struct cuda_device *d = cuda_device_of(dev);
	bool ipc = im->type == DEVICE_MEMORY_IPC_HANDLE;
	struct device_memory *m;
	int r;

	if (!ipc && im->type != DEVICE_MEMORY_POSIX_FD)
		return gpu_say(err, -EINVAL, "memory of unknown type %u", im->type);
	if (atomic_load(&d->dead))
		return gpu_say(err, -EIO, "the GPU has failed");
	if (memcmp(im->uuid, d->facts.uuid, sizeof(im->uuid)) != 0)
		return gpu_say(err, -ENODEV, "this memory is of another GPU");
	cuda_device_enter(d);
	m = ipc ? ipc_find(d, im->handle) : NULL;
	if (m && m->bytes < im->allocation_bytes)
		return gpu_say(err, -ERANGE, "the allocation has %llu bytes, not %llu",
			       (unsigned long long)m->bytes,
			       (unsigned long long)im->allocation_bytes);
	if (!m) {
		m = calloc(1, sizeof(*m));
		if (!m)
			return gpu_say(err, -ENOMEM, "out of memory");
		m->type = im->type;
		r = ipc ? ipc_open(d, im, m, err) : fd_open(d, im, m, err);
		if (r < 0) {
			free(m);
			return r;
		}
		m->next = d->memories;
		d->memories = m;
	}
	m->users++;
	*ret_memory = m;
	*ret_base = m->base;
	return 0;
}

static void memory_unmap(struct cuda_device *d, struct device_memory *m)
{
	if (m->type == DEVICE_MEMORY_IPC_HANDLE) {
		(void)cudaIpcCloseMemHandle(m->base);
	} else {
		(void)d->driver->unmap((CUdeviceptr)(uintptr_t)m->base, m->bytes);
		(void)d->driver->unreserve((CUdeviceptr)(uintptr_t)m->base, m->bytes);
	}
	free(m);
}

static void cuda_memory_close(struct device *dev, struct device_memory *m)
{
	struct cuda_device *d = cuda_device_of(dev);
	struct device_memory **link = &d->memories;

	if (!m)
		return;
	assert(m->users > 0);
	if (--m->users > 0)
		return;
	while (*link != m)
		link = &(*link)->next;
	*link = m->next;
	cuda_device_enter(d);
	memory_unmap(d, m);
}

void cuda_memory_deinit(struct cuda_device *d)
{
	while (d->memories) {
		struct device_memory *m = d->memories;

		d->memories = m->next;
		memory_unmap(d, m);
	}
	free(d->driver);
	d->driver = NULL;
}

/* ---- regions ---- */

/* Waits, so that the lane may use the region on any stream as soon as it hears of it. */
static int cuda_region_open(struct device *dev, struct device_region *region)
{
	struct cuda_device *d = cuda_device_of(dev);
	struct cuda_region *r = NULL;
	int e;

	if (atomic_load(&d->dead))
		return -EIO;
	cuda_device_enter(d);
	(void)cudaGetLastError();
	e = cuda_codec_region_new(region->geom, (uint64_t)(uintptr_t)region->base, region->stride,
				  region->block_stride, d->control, &r);
	if (e != 0)
		return refused(d, e, gpu_errno(e), NULL, "");
	e = (int)cudaStreamSynchronize(d->control);
	if (e != 0) {
		cuda_codec_region_free(r);
		return refused(d, e, gpu_errno(e), NULL, "");
	}
	region->device_private = r;
	return 0;
}

static void cuda_region_close(struct device *dev, struct device_region *region)
{
	cuda_device_enter(cuda_device_of(dev));
	if (region->device_private)
		region->device_private = cuda_codec_region_free(region->device_private);
}

/* ---- events ---- */

static int cuda_event_open(struct device *dev, const uint8_t handle[DEVICE_HANDLE_BYTES],
			   struct device_event **ret_event, char *err)
{
	struct cuda_device *d = cuda_device_of(dev);
	struct device_event *ev;
	cudaIpcEventHandle_t h;
	int e;

	if (atomic_load(&d->dead))
		return gpu_say(err, -EIO, "the GPU has failed");
	ev = calloc(1, sizeof(*ev));
	if (!ev)
		return gpu_say(err, -ENOMEM, "out of memory");
	cuda_device_enter(d);
	memcpy(&h, handle, sizeof(h));
	e = (int)cudaIpcOpenEventHandle(&ev->event, h);
	if (e != 0) {
		free(ev);
		/* Seen on 580.159: memory goes from user to user, events do not, not even to root. */
		return refused(d, e, handle_errno(e), err,
			       "not an event handle, or another user's: CUDA shares events only "
			       "between processes of one user");
	}
	*ret_event = ev;
	return 0;
}

static void cuda_event_close(struct device *dev, struct device_event *ev)
{
	if (!ev)
		return;
	assert(!ev->waiting.head);
	cuda_device_enter(cuda_device_of(dev));
	(void)cudaEventDestroy(ev->event);
	free(ev);
}

/*
 * The lane's.  What it polled is over, so any stream without work would do; on a stream with
 * work, the engine would wait for that too.
 */
static int cuda_event_record(struct device *dev, struct device_event *ev)
{
	struct cuda_device *d = cuda_device_of(dev);
	int e;

	if (atomic_load(&d->dead))
		return -EIO;
	cuda_device_enter(d);
	e = (int)cudaEventRecord(ev->event, d->stream[CUDA_STREAM_IDLE]);
	return e == 0 ? 0 : refused(d, e, gpu_errno(e), NULL, "");
}

const struct device_import_ops cuda_import_ops = {
	.memory_open = cuda_memory_open,
	.memory_close = cuda_memory_close,
	.region_open = cuda_region_open,
	.region_close = cuda_region_close,
	.event_open = cuda_event_open,
	.event_close = cuda_event_close,
	.event_record = cuda_event_record,
};

/* ---- the daemon's own ---- */

static uint64_t piece_bytes(uint64_t left)
{
	return left < HOST_PIECE_BYTES ? left : HOST_PIECE_BYTES;
}

static void pieces_unregister(void *base, uint64_t bytes)
{
	for (uint64_t off = 0; off < bytes; off += piece_bytes(bytes - off))
		(void)cudaHostUnregister((uint8_t *)base + off);
}

int cuda_host_register(struct device *dev, void *base, uint64_t bytes)
{
	struct cuda_device *d = cuda_device_of(dev);
	uint64_t off = 0;

	if (d->hosts_count == CUDA_HOSTS_MAX)
		return -ENOMEM;
	cuda_device_enter(d);
	while (off < bytes) {
		uint64_t piece = piece_bytes(bytes - off);
		int e = (int)cudaHostRegister((uint8_t *)base + off, piece,
					      cudaHostRegisterPortable);

		if (e != 0) {
			pieces_unregister(base, off);
			return refused(d, e, gpu_errno(e), NULL, "");
		}
		off += piece;
	}
	d->host[d->hosts_count++] = (struct cuda_host){ .base = (uintptr_t)base, .bytes = bytes };
	return 0;
}

void cuda_host_unregister(struct device *dev, void *base, uint64_t bytes)
{
	struct cuda_device *d = cuda_device_of(dev);

	for (uint32_t i = 0; i < d->hosts_count; i++)
		if (d->host[i].base == (uintptr_t)base && d->host[i].bytes == bytes) {
			cuda_device_enter(d);
			pieces_unregister(base, bytes);
			d->host[i] = d->host[--d->hosts_count];
			return;
		}
}

/* How much of a copy stays in one registered piece: the driver refuses one over two of them. */
static uint64_t copy_piece(const struct cuda_device *d, uintptr_t address, uint64_t bytes)
{
	for (uint32_t i = 0; i < d->hosts_count; i++) {
		uint64_t off = address - d->host[i].base;

		if (off < d->host[i].bytes) {
			uint64_t left = HOST_PIECE_BYTES - off % HOST_PIECE_BYTES;

			return bytes < left ? bytes : left;
		}
	}
	return bytes;
}

int cuda_copy(const struct cuda_device *d, void *out, const void *in, uint64_t bytes,
	      enum device_place in_place, enum device_place out_place, enum cuda_stream stream)
{
	enum cudaMemcpyKind kind = in_place == DEVICE_PLACE_HOST    ? cudaMemcpyHostToDevice
				   : out_place == DEVICE_PLACE_HOST ? cudaMemcpyDeviceToHost
								    : cudaMemcpyDeviceToDevice;

	for (uint64_t off = 0; off < bytes;) {
		uint64_t n = bytes - off;
		int e;

		if (kind == cudaMemcpyHostToDevice)
			n = copy_piece(d, (uintptr_t)in + off, n);
		else if (kind == cudaMemcpyDeviceToHost)
			n = copy_piece(d, (uintptr_t)out + off, n);
		e = (int)cudaMemcpyAsync((void *)((uintptr_t)out + off),
					 (const void *)((uintptr_t)in + off), n, kind,
					 d->stream[stream]);
		if (e != 0)
			return e;
		off += n;
	}
	return 0;
}

int cuda_pool_memory(struct device *dev, uint64_t bytes, void **ret_base)
{
	struct cuda_device *d = cuda_device_of(dev);
	void *p = NULL;
	int e;

	if (d->pools_count == CUDA_POOLS_MAX)
		return -ENOMEM;
	cuda_device_enter(d);
	e = (int)cudaMalloc(&p, bytes);
	if (e != 0)
		return refused(d, e, gpu_errno(e), NULL, "");
	d->pool[d->pools_count++] = p;
	*ret_base = p;
	return 0;
}
