/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_cuda.h - the part of the CUDA driver that the benchmarks use, found at run time: no CUDA header and
 * no CUDA library is needed to build them, and none to run the rest of skvc-bench.
 *
 * Prototypes are the driver's, with its types spelled out: a CUdevice is an int, a CUdeviceptr a uint64_t,
 * handles are pointers, a CUresult is an int and 0 is success.
 */
#ifndef SKVCD_TOOLS_BENCH_CUDA_H
#define SKVCD_TOOLS_BENCH_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/model/report.h"

#define CUDA_STREAM_NON_BLOCKING 1u
#define CUDA_EVENT_DEFAULT 0u
#define CUDA_EVENT_DISABLE_TIMING 2u
#define CUDA_EVENT_INTERPROCESS 4u
#define CUDA_HOST_PORTABLE 1u

struct cuda_uuid {
	uint8_t bytes[16];
};

struct cuda_ipc_handle { /* CUipcMemHandle and CUipcEventHandle: passed by value in the other direction */
	uint8_t bytes[64];
};

typedef struct CUctx_st *cuda_context;
typedef struct CUstream_st *cuda_stream;
typedef struct CUevent_st *cuda_event;

struct cuda_driver {
	int (*init)(unsigned flags);
	int (*device_get)(int *device, int ordinal);
	int (*device_name)(char *name, int bytes, int device);
	int (*device_uuid)(struct cuda_uuid *uuid, int device);
	int (*primary_retain)(cuda_context *context, int device);
	int (*primary_release)(int device);
	int (*context_set)(cuda_context context);
	int (*context_sync)(void);
	int (*memory_alloc)(uint64_t *address, size_t bytes);
	int (*memory_free)(uint64_t address);
	int (*host_alloc)(void **host, size_t bytes, unsigned flags);
	int (*host_free)(void *host);
	int (*copy_to_device)(uint64_t to, const void *from, size_t bytes, cuda_stream stream);
	int (*copy_to_host)(void *to, uint64_t from, size_t bytes, cuda_stream stream);
	int (*fill)(uint64_t to, unsigned char value, size_t bytes, cuda_stream stream);
	int (*stream_new)(cuda_stream *stream, unsigned flags);
	int (*stream_free)(cuda_stream stream);
	int (*stream_sync)(cuda_stream stream);
	int (*stream_query)(cuda_stream stream);
	int (*event_new)(cuda_event *event, unsigned flags);
	int (*event_free)(cuda_event event);
	int (*event_record)(cuda_event event, cuda_stream stream);
	int (*event_sync)(cuda_event event);
	int (*event_elapsed)(float *ms, cuda_event from, cuda_event to);
	int (*ipc_memory)(struct cuda_ipc_handle *handle, uint64_t address);
	int (*ipc_event)(struct cuda_ipc_handle *handle, cuda_event event);
	int (*error_name)(int error, const char **name);
	int device;
	cuda_context context; /* of this thread, once open */
	char model[64];
	uint8_t uuid[16];
};

/* Loads libcuda.so.1, makes the primary context of a device current.  -ENODEV with a line: no driver, no
 * device, or a driver too old.  `which`: an ordinal, NULL: the first. */
int cuda_driver_open(struct cuda_driver *c, const char *which, const struct report *r);
void cuda_driver_close(struct cuda_driver *c); /* zero-initialised is fine */

/* 0, or -EIO with "what: CUDA_ERROR_..." in r. */
int cuda_check(const struct cuda_driver *c, int error, const char *what, const struct report *r);

#endif
