/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_cuda.c - see fake_cuda.h.  It insists on what the real one punishes late or never: waiting for
 * an event that was not recorded, the default stream, a launch while an old error is pending.
 */
#include "tests/lib/fake_cuda.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "gpu/codec/cuda_codec.h"

struct fake_cuda fake_cuda;

struct CUevent_st {
	int left;
	bool recorded;
	struct CUstream_st *stream; /* where it was recorded */
};

struct CUstream_st {
	struct CUstream_st *waits[4]; /* those whose events it was told to wait for, not over yet */
};

static _Thread_local cudaError_t last_error;

static cudaError_t answer(cudaError_t e)
{
	if (e != cudaSuccess)
		last_error = e;
	return e;
}

static cudaError_t give(void **ret, size_t align, size_t bytes)
{
	*ret = aligned_alloc(align, (bytes + align - 1u) / align * align);
	assert(*ret);
	memset(*ret, 0, bytes);
	fake_cuda.live++;
	return cudaSuccess;
}

static cudaError_t take(void *p)
{
	assert(p && fake_cuda.live > 0);
	fake_cuda.live--;
	free(p);
	return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
	cudaError_t e = last_error;

	last_error = cudaSuccess;
	return e;
}

const char *cudaGetErrorName(cudaError_t e)
{
	static _Thread_local char name[32];

	(void)snprintf(name, sizeof(name), "error %d", (int)e);
	return name;
}

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
	*count = 2;
	return answer((cudaError_t)fake_cuda.no_device);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
	memset(prop, 0, sizeof(*prop));
	(void)snprintf(prop->name, sizeof(prop->name), "Fake %d", device);
	memset(prop->uuid.bytes, 0xa0 + device, sizeof(prop->uuid.bytes));
	prop->totalGlobalMem = 1ull << 37;
	return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int len, int device)
{
	(void)snprintf(id, (size_t)len, "FFFF:%02X:00.0", (unsigned)device);
	return cudaSuccess;
}

cudaError_t cudaInitDevice(int device, unsigned device_flags, unsigned flags)
{
	(void)device_flags;
	assert(device < 2 && flags == cudaInitDeviceFlagsAreValid);
	return cudaSuccess;
}

cudaError_t cudaDeviceSetLimit(enum cudaLimit limit, size_t value)
{
	assert(limit == cudaLimitStackSize && value > 0);
	return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
	assert(device >= 0 && device < 2);
	return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
	*least = 0;
	*greatest = -5;
	return cudaSuccess;
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *ret, unsigned flags, int priority)
{
	assert(flags == cudaStreamNonBlocking && priority == 0);
	return give((void **)ret, 64, sizeof(**ret));
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
	return take(s);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
	assert(s);
	fake_cuda.synchronized++;
	return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
	assert(s && e->recorded && flags == 0);
	for (unsigned i = 3; i > 0; i--)
		s->waits[i] = s->waits[i - 1u];
	s->waits[0] = e->stream;
	return answer((cudaError_t)fake_cuda.wait_error);
}

int fake_cuda_waits(const struct CUstream_st *stream, const struct CUstream_st *other)
{
	for (unsigned i = 0; i < 4; i++)
		if (stream->waits[i] == other)
			return 1;
	return 0;
}

void fake_cuda_waited(struct CUstream_st *stream)
{
	memset(stream->waits, 0, sizeof(stream->waits));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned flags)
{
	(void)flags;
	return give((void **)ret, 64, sizeof(**ret));
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
	return take(e);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
	assert(s);
	if (fake_cuda.record_error)
		return answer((cudaError_t)fake_cuda.record_error);
	e->recorded = true;
	e->stream = s;
	e->left = fake_cuda.delay;
	return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
	if (fake_cuda.query_error)
		return answer((cudaError_t)fake_cuda.query_error);
	if (e->left == 0)
		return cudaSuccess;
	e->left--;
	return answer(cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
	assert(begin->recorded && end->recorded);
	*ms = 0.1f;
	return cudaSuccess;
}

/* ---- memory ---- */

cudaError_t cudaHostAlloc(void **ret, size_t bytes, unsigned flags)
{
	(void)flags;
	return give(ret, 64, bytes);
}

cudaError_t cudaHostGetDevicePointer(void **ret, void *host, unsigned flags)
{
	(void)flags;
	*ret = host;
	return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
	return take(p);
}

cudaError_t cudaMalloc(void **ret, size_t bytes)
{
	return give(ret, 256, bytes);
}

cudaError_t cudaFree(void *p)
{
	return take(p);
}

/* A NULL source stands for memory that is not there. */
cudaError_t cudaMemcpyAsync(void *out, const void *in, size_t bytes, enum cudaMemcpyKind kind,
			    cudaStream_t s)
{
	assert(s && kind != cudaMemcpyHostToHost);
	fake_cuda.copies++;
	if (!in)
		return answer(cudaErrorInvalidValue);
	memcpy(out, in, bytes);
	return cudaSuccess;
}

cudaError_t cudaHostRegister(void *base, size_t bytes, unsigned flags)
{
	(void)flags;
	assert(base && bytes <= 64ull << 30);
	fake_cuda.live++;
	return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *base)
{
	assert(base);
	fake_cuda.live--;
	return cudaSuccess;
}

/* ---- handles: the first byte says what they are ---- */

cudaError_t cudaIpcOpenMemHandle(void **ret, cudaIpcMemHandle_t handle, unsigned flags)
{
	assert(flags == cudaIpcMemLazyEnablePeerAccess);
	if (handle.reserved[0] == 'n') /* nonsense */
		return answer(cudaErrorInvalidResourceHandle);
	if (handle.reserved[0] == 's') /* of the same process */
		return answer(cudaErrorDeviceUninitialized);
	return give(ret, 256, 1u << 20);
}

cudaError_t cudaIpcCloseMemHandle(void *p)
{
	return take(p);
}

cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *ret, cudaIpcEventHandle_t handle)
{
	if (handle.reserved[0] == 'n')
		return answer(cudaErrorMapBufferObjectFailed);
	(void)give((void **)ret, 64, sizeof(**ret));
	(*ret)->left = 1 << 30; /* recorded by nobody yet */
	return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *at, const void *p)
{
	(void)p;
	*at = (struct cudaPointerAttributes){ .type = cudaMemoryTypeDevice };
	return cudaSuccess;
}

static int driver_address_range(unsigned long long *base, size_t *bytes, unsigned long long p)
{
	*base = p;
	*bytes = 1u << 20;
	return 0;
}

static int driver_refuses(void)
{
	return cudaErrorInvalidValue;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **ret, unsigned version,
					     unsigned long long flags,
					     enum cudaDriverEntryPointQueryResult *found)
{
	int (*refuses)(void) = driver_refuses;
	int (*range)(unsigned long long *, size_t *, unsigned long long) = driver_address_range;

	(void)version;
	(void)flags;
	if (strcmp(name, "cuMemGetAddressRange") == 0)
		memcpy(ret, &range, sizeof(range));
	else
		memcpy(ret, &refuses, sizeof(refuses));
	*found = cudaDriverEntryPointSuccess;
	return cudaSuccess;
}

/* ---- a codec: the payload is the block, pages are canonical ---- */

struct cuda_region {
	uint64_t base, each;
};

struct cuda_profile {
	const struct codec_profile *of;
};

uint64_t fake_cuda_hash(const void *block, uint64_t bytes)
{
	const uint8_t *p = block;
	uint64_t h = bytes;

	for (uint64_t i = 0; i < bytes; i++)
		h = (h ^ p[i]) * 0x100000001b3u;
	return h;
}

/* The codec's own, where a model's blocks are compared by it. */
static uint64_t block_sum(const struct codec_geometry *g, void *page)
{
	const struct codec_view v = { .base = page };
	struct codec_workspace *ws = NULL;
	struct codec_info info = { 0 };
	uint8_t *out = malloc(codec_bound(g));
	int r = codec_workspace_new(&ws);

	assert(out && r == 0);
	r = codec_encode(ws, g, NULL, CODEC_SPEC_RAW, 0, &v, out, codec_bound(g), &info);
	assert(r == 0);
	codec_workspace_free(ws);
	free(out);
	if (fake_cuda.bad_sums > 0)
		return fake_cuda.bad_sums--, ~info.raw_xxh3;
	return info.raw_xxh3;
}

int cuda_codec_geometry_ok(const struct codec_geometry *g)
{
	return g->segments_count > 0;
}

int cuda_codec_profile_ok(const struct codec_geometry *g, const struct codec_profile *p)
{
	return g && p;
}

int cuda_codec_layer_ok(const struct codec_geometry *g, const struct codec_profile *p)
{
	assert(g && p);
	return 0;
}

uint32_t cuda_codec_layer_tasks(const struct codec_geometry *g, const struct codec_profile *p,
				int encode, uint64_t scratch_bytes)
{
	assert(g && p);
	(void)encode;
	(void)scratch_bytes;
	return CUDA_BATCH_TASKS_MAX;
}

int cuda_codec_init(unsigned *ret_sms)
{
	*ret_sms = 132;
	return 0;
}

int cuda_codec_profile_new(const struct codec_geometry *g, const struct codec_profile *p,
			   struct CUstream_st *stream, struct cuda_profile **ret_profile)
{
	assert(g && stream);
	(void)give((void **)ret_profile, 64, sizeof(**ret_profile));
	(*ret_profile)->of = p;
	return 0;
}

struct cuda_profile *cuda_codec_profile_free(struct cuda_profile *p)
{
	(void)take(p);
	return NULL;
}

int cuda_codec_region_new(const struct codec_geometry *g, uint64_t base,
			  const struct codec_stride *stride, const uint64_t *block_stride,
			  struct CUstream_st *stream, struct cuda_region **ret_region)
{
	assert(g && stride && block_stride && stream);
	(void)give((void **)ret_region, 64, sizeof(**ret_region));
	(*ret_region)->base = base;
	(*ret_region)->each = block_stride[0];
	return 0;
}

struct cuda_region *cuda_codec_region_free(struct cuda_region *r)
{
	(void)take(r);
	return NULL;
}

size_t cuda_codec_encode_scratch(const struct codec_geometry *g, uint32_t tasks_count)
{
	return codec_bound(g) * tasks_count;
}

size_t cuda_codec_decode_scratch(const struct codec_geometry *g, uint32_t tasks_count)
{
	return g->raw_bytes / 16u * tasks_count;
}

static int batch_run(const struct cuda_codec_batch *b, struct CUstream_st *stream, bool out)
{
	struct cuda_result *result = (struct cuda_result *)(uintptr_t)b->dev_results;
	uint64_t bytes = b->geom->raw_bytes;

	assert(stream && b->tasks_count > 0 && b->tasks_count <= CUDA_BATCH_TASKS_MAX);
	memset(b->task_words, 0x5a, b->tasks_count * CUDA_TASK_BYTES); /* as the codec would */
	assert(b->dev_scratch % 256 == 0 && cudaGetLastError() == cudaSuccess);
	if (fake_cuda.launch_error)
		return (int)answer((cudaError_t)fake_cuda.launch_error);
	fake_cuda.batches++;
	if (b->tasks_count > fake_cuda.batch_tasks_most)
		fake_cuda.batch_tasks_most = b->tasks_count;
	for (uint32_t i = 0; i < b->tasks_count; i++) {
		const struct cuda_codec_task *t = &b->task[i];
		void *page =
			(void *)(uintptr_t)(t->region->base + t->block_index * t->region->each);
		void *payload = (void *)(uintptr_t)t->dev_payload;

		assert(t->dev_payload % 64 == 0);
		memcpy(out ? payload : page, out ? page : payload, bytes);
		result[i].encoded_bytes = bytes;
		result[i].raw_xxh3 = fake_cuda.model_geometry ? block_sum(b->geom, page)
							      : fake_cuda_hash(page, bytes);
	}
	if (b->dev_chunk_done) /* half of them now, the rest with the event */
		memset((void *)(uintptr_t)b->dev_chunk_done, 1, (b->geom->chunks_count + 1u) / 2u);
	return 0;
}

int cuda_codec_encode(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	return batch_run(b, stream, true);
}

int cuda_codec_decode(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	return batch_run(b, stream, false);
}

int cuda_codec_gather(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	return batch_run(b, stream, true);
}

int cuda_codec_scatter(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	return batch_run(b, stream, false);
}

/* Weak: the codec's own comes first where it is linked. */
__attribute__((weak)) int codec_payload_needs_cpu(const struct codec_geometry *g,
						  const void *payload, uint64_t payload_bytes);
int codec_payload_needs_cpu(const struct codec_geometry *g, const void *payload,
			    uint64_t payload_bytes)
{
	return !g || !payload || payload_bytes == 0;
}
