/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_cuda.c - dlopen and a table of names.  The library stays loaded until the process ends: the
 * driver does not take it well otherwise.
 */
#include "tools/bench_cuda.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SYMBOL(field, name)                               \
	{                                                 \
		offsetof(struct cuda_driver, field), name \
	}

/* As the header of CUDA 12 and 13 maps them: cuMemAlloc is cuMemAlloc_v2, and so on. */
static const struct cuda_symbol {
	size_t off;
	const char *name;
} symbols[] = {
	SYMBOL(init, "cuInit"),
	SYMBOL(device_get, "cuDeviceGet"),
	SYMBOL(device_name, "cuDeviceGetName"),
	SYMBOL(device_uuid, "cuDeviceGetUuid_v2"),
	SYMBOL(primary_retain, "cuDevicePrimaryCtxRetain"),
	SYMBOL(primary_release, "cuDevicePrimaryCtxRelease_v2"),
	SYMBOL(context_set, "cuCtxSetCurrent"),
	SYMBOL(context_sync, "cuCtxSynchronize"),
	SYMBOL(memory_alloc, "cuMemAlloc_v2"),
	SYMBOL(memory_free, "cuMemFree_v2"),
	SYMBOL(host_alloc, "cuMemHostAlloc"),
	SYMBOL(host_free, "cuMemFreeHost"),
	SYMBOL(copy_to_device, "cuMemcpyHtoDAsync_v2"),
	SYMBOL(copy_to_host, "cuMemcpyDtoHAsync_v2"),
	SYMBOL(fill, "cuMemsetD8Async"),
	SYMBOL(stream_new, "cuStreamCreate"),
	SYMBOL(stream_free, "cuStreamDestroy_v2"),
	SYMBOL(stream_sync, "cuStreamSynchronize"),
	SYMBOL(stream_query, "cuStreamQuery"),
	SYMBOL(event_new, "cuEventCreate"),
	SYMBOL(event_free, "cuEventDestroy_v2"),
	SYMBOL(event_record, "cuEventRecord"),
	SYMBOL(event_sync, "cuEventSynchronize"),
	SYMBOL(event_elapsed, "cuEventElapsedTime"),
	SYMBOL(ipc_memory, "cuIpcGetMemHandle"),
	SYMBOL(ipc_event, "cuIpcGetEventHandle"),
	SYMBOL(error_name, "cuGetErrorName"),
};

int cuda_check(const struct cuda_driver *c, int error, const char *what, const struct report *r)
{
	const char *name = NULL;

	if (error == 0)
		return 0;
	if (!c->error_name || c->error_name(error, &name) != 0 || !name)
		name = "unknown error";
	return report_fail(r, -EIO, "%s: %s (%d)", what, name, error);
}

static int library_load(struct cuda_driver *c, const struct report *r)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

	if (!library)
		return report_fail(r, -ENODEV, "no CUDA driver here (%s)", dlerror());
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		void *symbol = dlsym(library, symbols[i].name);

		if (!symbol)
			return report_fail(r, -ENODEV, "the CUDA driver has no %s: too old",
					   symbols[i].name);
		memcpy((uint8_t *)c + symbols[i].off, &symbol, sizeof(symbol));
	}
	return 0;
}

int cuda_driver_open(struct cuda_driver *c, const char *which, const struct report *r)
{
	struct cuda_uuid uuid;
	char *end = NULL;
	long ordinal = which ? strtol(which, &end, 10) : 0;
	int rc;

	*c = (struct cuda_driver){ 0 };
	if (ordinal < 0 || ordinal > 1023 || (which && (end == which || *end)))
		return report_fail(r, -ENODEV, "%s: not the number of a GPU", which);
	rc = library_load(c, r);
	if (rc < 0)
		return rc;
	if (cuda_check(c, c->init(0), "cuInit", r) < 0 ||
	    cuda_check(c, c->device_get(&c->device, (int)ordinal), "cuDeviceGet", r) < 0 ||
	    cuda_check(c, c->device_name(c->model, sizeof(c->model), c->device), "cuDeviceGetName",
		       r) < 0 ||
	    cuda_check(c, c->device_uuid(&uuid, c->device), "cuDeviceGetUuid", r) < 0)
		return -ENODEV;
	memcpy(c->uuid, uuid.bytes, sizeof(c->uuid));
	rc = cuda_check(c, c->primary_retain(&c->context, c->device), "cuDevicePrimaryCtxRetain",
			r);
	if (rc == 0)
		rc = cuda_check(c, c->context_set(c->context), "cuCtxSetCurrent", r);
	return rc;
}

void cuda_driver_close(struct cuda_driver *c)
{
	if (c->context)
		(void)c->primary_release(c->device);
	*c = (struct cuda_driver){ 0 };
}
