/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu_cuda.c - a real GPU, through the driver's own interface: cuMemAlloc memory named by legacy IPC
 * handles, as PyTorch names its own.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench_cuda.h"
#include "tools/bench_gpu.h"

struct own {
	struct cuda_driver c;
	cuda_stream stream[BENCH_GPU_STREAMS]; /* by to_device */
};

static struct own *own_of(const struct bench_gpu *g)
{
	return g->own;
}

static int check(const struct bench_gpu *g, int error, const char *what)
{
	return cuda_check(&own_of(g)->c, error, what, g->r);
}

static int cuda_memory_new(struct bench_gpu *g, struct skvc_session *s, uint64_t bytes,
			   struct bench_memory *ret)
{
	uint64_t address = 0;
	int r = check(g, own_of(g)->c.memory_alloc(&address, bytes), "cuMemAlloc");

	(void)s;
	if (r == 0)
		*ret = (struct bench_memory){ .address = address, .bytes = bytes, .fd = -1 };
	return r;
}

static void cuda_memory_free(struct bench_gpu *g, struct bench_memory *m)
{
	if (m->address)
		(void)own_of(g)->c.memory_free(m->address);
	*m = (struct bench_memory){ .fd = -1 };
}

static int cuda_region(struct bench_gpu *g, struct skvc_session *s, uint32_t ns,
		       const struct bench_memory *m, uint32_t blocks, uint32_t *ret_region)
{
	struct skvc_gpu_export e = {
		.type = SKVC_GPU_IPC_HANDLE,
		.fd = -1,
		.allocation_bytes = m->bytes,
	};
	struct cuda_ipc_handle handle;
	int r = check(g, own_of(g)->c.ipc_memory(&handle, m->address), "cuIpcGetMemHandle");

	if (r < 0)
		return r;
	memcpy(e.ipc_handle, handle.bytes, sizeof(e.ipc_handle));
	memcpy(e.device_uuid, g->uuid, sizeof(e.device_uuid));
	r = skvc_register_gpu(s, ns, &e, 1, blocks, NULL, ret_region);
	return r < 0 ? bench_session_fail(g->r, r, "skvc_register_gpu", s) : 0;
}

static int cuda_host_new(struct bench_gpu *g, uint64_t bytes, void **ret)
{
	return check(g, own_of(g)->c.host_alloc(ret, bytes, CUDA_HOST_PORTABLE), "cuMemHostAlloc");
}

static void cuda_host_free(struct bench_gpu *g, void *host, uint64_t bytes)
{
	(void)bytes;
	if (host)
		(void)own_of(g)->c.host_free(host);
}

static int cuda_copy(struct bench_gpu *g, bool to_device, uint64_t address, void *host,
		     uint64_t bytes)
{
	struct own *o = own_of(g);

	if (to_device)
		return check(g, o->c.copy_to_device(address, host, bytes, o->stream[1]),
			     "cuMemcpyHtoDAsync");
	return check(g, o->c.copy_to_host(host, address, bytes, o->stream[0]), "cuMemcpyDtoHAsync");
}

static int cuda_sync(struct bench_gpu *g, bool to_device)
{
	return check(g, own_of(g)->c.stream_sync(own_of(g)->stream[to_device]),
		     "cuStreamSynchronize");
}

static int cuda_event_new(struct bench_gpu *g, struct bench_event *ret)
{
	struct own *o = own_of(g);
	struct cuda_ipc_handle handle;
	cuda_event event = NULL;
	int r = check(g,
		      o->c.event_new(&event, CUDA_EVENT_DISABLE_TIMING | CUDA_EVENT_INTERPROCESS),
		      "cuEventCreate");

	if (r == 0)
		r = check(g, o->c.ipc_event(&handle, event), "cuIpcGetEventHandle");
	if (r < 0)
		return r;
	*ret = (struct bench_event){ .own = event, .fd = -1 };
	memcpy(ret->handle, handle.bytes, sizeof(ret->handle));
	return 0;
}

static int cuda_event_record(struct bench_gpu *g, struct bench_event *e)
{
	return check(g, own_of(g)->c.event_record(e->own, own_of(g)->stream[1]), "cuEventRecord");
}

static void cuda_event_free(struct bench_gpu *g, struct bench_event *e)
{
	if (e->own)
		(void)own_of(g)->c.event_free(e->own);
	*e = (struct bench_event){ .fd = -1 };
}

static void cuda_free(struct bench_gpu *g)
{
	struct own *o = own_of(g);

	for (unsigned i = 0; i < BENCH_GPU_STREAMS; i++)
		if (o->stream[i])
			(void)o->c.stream_free(o->stream[i]);
	cuda_driver_close(&o->c);
	free(o);
}

static const struct bench_gpu_ops cuda_ops = {
	.memory_new = cuda_memory_new,
	.memory_free = cuda_memory_free,
	.region = cuda_region,
	.host_new = cuda_host_new,
	.host_free = cuda_host_free,
	.copy = cuda_copy,
	.sync = cuda_sync,
	.event_new = cuda_event_new,
	.event_record = cuda_event_record,
	.event_free = cuda_event_free,
	.free = cuda_free,
};

int bench_gpu_cuda_open(struct bench_gpu *g, const char *which)
{
	struct own *o = calloc(1, sizeof(*o));
	int r;

	assert(!g->ops);
	if (!o)
		return report_fail(g->r, -ENOMEM, "out of memory");
	r = cuda_driver_open(&o->c, which, g->r);
	if (r < 0) {
		cuda_driver_close(&o->c);
		free(o);
		return r;
	}
	g->own = o;
	g->ops = &cuda_ops;
	memcpy(g->model, o->c.model, sizeof(g->model));
	memcpy(g->uuid, o->c.uuid, sizeof(g->uuid));
	for (unsigned i = 0; i < BENCH_GPU_STREAMS && r == 0; i++)
		r = check(g, o->c.stream_new(&o->stream[i], CUDA_STREAM_NON_BLOCKING),
			  "cuStreamCreate");
	return r;
}
