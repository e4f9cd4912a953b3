/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_codec.cu - the kernels and their launches.  One warp works on one chunk of one block; a persistent
 * grid of one wide thread block per multiprocessor keeps a profile's tables in shared memory and takes
 * chunks in layer order, so that first layers are finished first.
 *
 * Host side: descriptions of regions and profiles as the kernels read them, made once.
 */
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* C's word in headers whose functions are not called here. */
#define _Atomic(type) type
extern "C" {
#include "gpu/codec/internal.h"
}
#undef _Atomic

#include "gpu/codec/cuda_codec.h"
#include "gpu/codec/cuda_decode.cuh"
#include "gpu/codec/cuda_encode.cuh"
#include "gpu/codec/cuda_layer_run.cuh"
#include "gpu/codec/cuda_open.cuh"
#include "gpu/codec/cuda_pack.cuh"
#include "gpu/codec/cuda_objects.cuh"

static_assert(XXH3_TABLE_BYTES == CHECKSUM_BYTES, "the first part of shared memory");

/* ---- kernels ---- */

/* Shared memory: the checksum's constants, a profile's tables, then what each warp has.  The first two by the
 * whole thread block. */
__device__ static uint8_t *shared_load(const void *tables, uint32_t bytes)
{
	uint8_t *at = shared + XXH3_TABLE_BYTES;

	if (threadIdx.x < WARP_LANES)
		xxh3_table_fill((uint64_t *)shared, threadIdx.x);
	for (uint32_t i = threadIdx.x; i < bytes / 16u; i += blockDim.x)
		((uint4 *)at)[i] = ((const uint4 *)tables)[i];
	__syncthreads();
	return at;
}

__device__ static struct xxh3_lane xxh3_of(uint32_t lane)
{
	return (struct xxh3_lane){ .table = (const uint64_t *)shared + lane };
}

struct encode_view { /* of one chunk of one task */
	const struct gpu_task *task;
	const struct gpu_geometry *g;
	const struct gpu_chunk *chunk;
	uint8_t *scratch; /* the chunk's */
	struct gpu_sizes *sizes;
	uint64_t *leaves; /* the task's */
};

__device__ static struct encode_view encode_view_of(const struct gpu_batch *b, uint32_t t,
						    uint32_t c)
{
	const struct gpu_geometry *g = &b->task[t].region->g;
	uint8_t *scratch = b->scratch + t * g->scratch_bytes;

	return (struct encode_view){
		.task = &b->task[t],
		.g = g,
		.chunk = &g->chunk[c],
		.scratch = scratch + g->chunk[c].scratch_off,
		.sizes = (struct gpu_sizes *)(scratch + g->sizes_off) + c,
		.leaves = (uint64_t *)(scratch + g->leaves_off),
	};
}

/* Is the task's payload already there? */
__device__ static inline bool layer_has(const struct gpu_batch *b, uint32_t task)
{
	return b->layer && warp_uniform(b->layer[task].verdict == LAYER_GOOD);
}

template <uint32_t WARPS>
__global__ __launch_bounds__(WARPS *WARP_LANES,
			     1) void encode_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);
	const uint32_t tables = b.profile.enc ? b.profile.tables_count * CODEC_TOKENS_PITCH * 8u
					      : 0;
	uint8_t *const loaded = shared_load(b.profile.enc, tables);
	const struct xxh3_lane xx = xxh3_of(lane);

	for (uint32_t i = blockIdx.x + gridDim.x * warp; i < b.chunks_count * b.tasks_count;
	     i += gridDim.x * WARPS) {
		const struct encode_view v = encode_view_of(&b, i % b.tasks_count,
							    i / b.tasks_count);
		const struct gpu_chunk *c = v.chunk;
		uint16_t *words_end = (uint16_t *)(v.scratch + c->words_end);
		struct encode_job j = {
			.region = v.task->region,
			.chunk = c,
			.profile = &b.profile,
			.enc = (const uint64_t *)loaded,
			.leaf = loaded + tables + warp * ENCODE_WARP_BYTES,
			.scratch = v.scratch,
			.leaves = v.leaves,
			.block_index = v.task->block_index,
		};
		struct encode_state st = {
			.x = CODEC_STATE_LOW,
			.words = words_end,
			.words_at = 0,
			.words_limit =
				-(int32_t)((c->words_end - STATES_BYTES - c->low_bytes) / 2u),
			.escapes_count = 0,
			.low_high = 0,
			.coding = tables > 0,
		};

		if (layer_has(&b, i % b.tasks_count))
			continue;
		if (warp_uniform(c->tiles)) {
			encode_any(&j, &st, &xx, lane);
			((uint32_t *)v.scratch)[lane] = st.x;
		} else {
			st.coding = false;
			digest_chunk_bytes(&j, &xx, lane);
		}
		if (lane == 0)
			*v.sizes = (struct gpu_sizes){
				.words = st.coding ? (uint32_t)-st.words_at : 0,
				.escapes = st.coding ? st.escapes_count : 0,
				.raw = !st.coding,
				.payload = 0,
			};
	}
}

/* Decode what was encoded, from where it lies, and compare the leaves. */
template <uint32_t WARPS>
__global__ __launch_bounds__(WARPS *WARP_LANES,
			     1) void verify_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);
	const uint32_t tables = b.profile.tables_count * CODEC_PROB_SUM * 4u;
	uint8_t *const loaded = shared_load(b.profile.dec, tables);
	const struct xxh3_lane xx = xxh3_of(lane);

	for (uint32_t i = blockIdx.x + gridDim.x * warp; i < b.chunks_count * b.tasks_count;
	     i += gridDim.x * WARPS) {
		const struct encode_view v = encode_view_of(&b, i % b.tasks_count,
							    i / b.tasks_count);
		const struct gpu_chunk *c = v.chunk;
		struct decode_job j = {
			.region = v.task->region,
			.chunk = c,
			.profile = &b.profile,
			.dec = (const uint32_t *)loaded,
			.leaf = loaded + tables + WARPS * RING_BYTES + warp * LEAF_BYTES,
			.ring = (uint16_t *)(loaded + tables + warp * RING_BYTES),
			.leaves = v.leaves,
			.block_index = v.task->block_index,
			.skip_tokens = 0,
		};
		struct gpu_stream s = {
			.states = (const uint32_t *)v.scratch,
			.low = v.scratch + STATES_BYTES,
			.words = (const uint16_t *)(v.scratch + c->words_end) - v.sizes->words,
			.escapes = v.scratch + c->escapes_end - v.sizes->escapes * c->element_bytes,
			.words_count = v.sizes->words,
			.escapes_count = v.sizes->escapes,
		};

		if (layer_has(&b, i % b.tasks_count))
			continue;
		if (warp_uniform(v.sizes->raw) || !decode_any<false>(&j, &s, &xx, lane))
			continue;
		if (lane == 0) {
			v.sizes->raw = 1;
			atomicAdd(&b.status[i % b.tasks_count], 1u);
		}
	}
}

__global__ void pack_index_kernel(const __grid_constant__ struct gpu_batch b)
{
	(void)shared_load(NULL, 0);
	const struct xxh3_lane xx = xxh3_of(threadIdx.x % WARP_LANES);

	if (layer_has(&b, blockIdx.x))
		return;
	pack_index(&b, blockIdx.x, &xx, threadIdx.x);
	if (threadIdx.x == 0)
		b.results[blockIdx.x].verify_failed = b.status[blockIdx.x];
}

__global__ void pack_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t lane = threadIdx.x % WARP_LANES;
	const uint32_t i = blockIdx.x * SMALL_WARPS + threadIdx.x / WARP_LANES;

	if (i >= b.chunks_count * b.tasks_count)
		return;
	if (layer_has(&b, i / b.chunks_count))
		return;
	const struct encode_view v = encode_view_of(&b, i / b.chunks_count, i % b.chunks_count);
	const uint32_t *offsets = (const uint32_t *)(b.scratch +
						     i / b.chunks_count * v.g->scratch_bytes +
						     v.g->offsets_off);
	uint8_t *to = v.task->payload + offsets[i % b.chunks_count];

	if (v.sizes->raw)
		pack_raw(v.task->region, v.chunk, v.task->block_index, to, lane);
	else
		pack_channel(v.chunk, v.sizes, v.scratch, (uint32_t *)to, lane);
}

__device__ static uint32_t decode_one(const struct gpu_batch *b, const struct gpu_task *t,
				      uint32_t index, struct decode_job *j,
				      const struct xxh3_lane *xx, uint32_t lane)
{
	struct format_chunk_entry e;
	struct gpu_stream s;
	const uint8_t *payload;
	uint32_t status = warp_uniform(header_check(b, t, lane)), method;

	if (!status)
		status = warp_uniform(chunk_open(t, index, &e, &payload, lane));
	if (status)
		return status;
	method = warp_uniform(e.method);
	if (method == FORMAT_METHOD_CHANNEL) {
		const uint32_t kind = warp_uniform(((const uint8_t *)t->payload)[6]);

		if (!b->profile.dec || kind != CODEC_SPEC_CHANNEL)
			return CUDA_STATUS_MALFORMED;
		status = warp_uniform(stream_open(j->chunk, &e, payload, &s));
		return status				   ? status
		       : decode_any<true>(j, &s, xx, lane) ? CUDA_STATUS_MALFORMED
							   : 0;
	}
	if (method ==
	    FORMAT_METHOD_RESIDUAL) { /* cuda_layer.cu has written it, or has said why not */
		const uint32_t kind = warp_uniform(((const uint8_t *)t->payload)[6]);

		return kind != CODEC_SPEC_LAYER || !b->layer_part || e.escape_bytes ||
				       !j->chunk->coded ||
				       (e.payload_bytes && !residual_first(t, index, lane))
			       ? CUDA_STATUS_MALFORMED
			       : 0;
	}
	if (warp_uniform(method != FORMAT_METHOD_RAW || e.payload_bytes != j->chunk->raw_bytes ||
			 e.escape_bytes))
		return CUDA_STATUS_MALFORMED;
	if (!warp_uniform(j->chunk->tiles))
		raw_chunk_bytes(j, payload, xx, lane);
	else if (warp_uniform(j->chunk->element_bytes) == 2)
		raw_chunk_tiles<2>(j, payload, xx, lane);
	else
		raw_chunk_tiles<1>(j, payload, xx, lane);
	return 0;
}

/* A chunk is written for one more task; the last of them tells the host. */
__device__ static void chunk_finished(const struct gpu_batch *b, uint32_t index)
{
	if (!b->chunk_done)
		return;
	__threadfence_system();
	if (atomicAdd(&b->chunk_tasks[index], 1u) + 1u == b->tasks_count)
		b->chunk_done[index] = 1;
}

template <uint32_t WARPS>
__global__ __launch_bounds__(WARPS *WARP_LANES,
			     1) void decode_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t lane = threadIdx.x % WARP_LANES,
		       warp = warp_uniform(threadIdx.x / WARP_LANES);
	const uint32_t tables = b.profile.dec ? b.profile.tables_count * CODEC_PROB_SUM * 4u : 0;
	uint8_t *const loaded = shared_load(b.profile.dec, tables);
	const struct xxh3_lane xx = xxh3_of(lane);

	for (uint32_t i = blockIdx.x + gridDim.x * warp; i < b.chunks_count * b.tasks_count;
	     i += gridDim.x * WARPS) {
		const uint32_t t = i % b.tasks_count, c = i / b.tasks_count;
		const struct gpu_task *task = &b.task[t];
		struct decode_job j = {
			.region = task->region,
			.chunk = &task->region->g.chunk[c],
			.profile = &b.profile,
			.dec = (const uint32_t *)loaded,
			.leaf = loaded + tables + WARPS * RING_BYTES + warp * LEAF_BYTES,
			.ring = (uint16_t *)(loaded + tables + warp * RING_BYTES),
			.leaves = (uint64_t *)(b.scratch + b.leaves_off + t * b.task_stride),
			.block_index = task->block_index,
			.skip_tokens = task->skip_tokens,
		};
		const uint32_t status = decode_one(&b, task, c, &j, &xx, lane);

		__syncwarp();
		if (lane == 0) {
			if (status)
				atomicOr(&b.status[t], status);
			chunk_finished(&b, c);
		}
		__syncwarp();
	}
}

__global__ void decode_root_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t t = blockIdx.x;
	uint32_t status = b.status[t];
	uint64_t root = 0;

	(void)shared_load(NULL, 0);
	const struct xxh3_lane xx = xxh3_of(threadIdx.x % WARP_LANES);

	if (!status) {
		root = leaves_root(&b.task[t].region->g,
				   (const uint64_t *)(b.scratch + b.leaves_off + t * b.task_stride),
				   (uint64_t *)(b.scratch + b.digests_off + t * b.task_stride),
				   &xx);
		status = root == b.task[t].expect_xxh3 ? 0 : CUDA_STATUS_CHECKSUM;
	}
	if (threadIdx.x == 0) {
		b.results[t].raw_xxh3 = root;
		b.results[t].status = status;
	}
}

/* Canonical bytes at task.payload <-> pages; one warp a segment. */
__global__ void copy_kernel(const __grid_constant__ struct gpu_batch b, bool to_pages)
{
	const struct gpu_task *t = &b.task[blockIdx.y];
	const struct gpu_region *r = t->region;
	const uint32_t lane = threadIdx.x % WARP_LANES;
	const uint32_t i = blockIdx.x * SMALL_WARPS + threadIdx.x / WARP_LANES;

	if (i >= r->g.segments_count)
		return;
	const struct gpu_segment *s = &r->g.segment[i];
	uint8_t *base = segment_base(r, s, t->block_index), *flat = t->payload + s->canonical_off;
	const uint64_t skip = (uint64_t)t->skip_tokens * s->columns * s->element_bytes;

	if (s->vector) {
		for (uint64_t o = 16u * lane; o < s->bytes; o += 16u * WARP_LANES) {
			uint4 *page = (uint4 *)canonical_at(s, base, o), *at = (uint4 *)(flat + o);

			if (!to_pages)
				*at = *page;
			else if (o >= skip)
				*page = *at;
		}
		return;
	}
	for (uint64_t o = lane; o < s->bytes; o += WARP_LANES) {
		uint8_t *page = canonical_at(s, base, o);

		if (!to_pages)
			flat[o] = *page;
		else if (o >= skip)
			*page = flat[o];
	}
}

/* ---- launches ---- */

extern "C" int cuda_codec_init(unsigned *ret_sms)
{
	const void *kernels[] = {
		(const void *)encode_kernel<WARPS_MANY>, (const void *)encode_kernel<WARPS_FEW>,
		(const void *)verify_kernel<WARPS_MANY>, (const void *)verify_kernel<WARPS_FEW>,
		(const void *)decode_kernel<WARPS_MANY>, (const void *)decode_kernel<WARPS_FEW>,
	};
	int device, sms;
	cudaError_t e = cudaGetDevice(&device);

	if (e == cudaSuccess)
		e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
	for (unsigned i = 0; i < sizeof(kernels) / sizeof(kernels[0]) && e == cudaSuccess; i++)
		e = cudaFuncSetAttribute(kernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize,
					 (int)SHARED_MAX);
	if (e == cudaSuccess)
		e = (cudaError_t)cuda_layer_init();
	if (e == cudaSuccess)
		e = cudaMemcpyToSymbol(xxh3_secret, XXH3_kSecret, XXH3_SECRET_BYTES);
	if (e == cudaSuccess)
		*ret_sms = (unsigned)sms;
	return e;
}

/* Without the tasks: those are written where the caller said, and read from there or, once copied, from scratch. */
static void batch_fill(struct gpu_batch *out, const struct cuda_codec_batch *b)
{
	struct gpu_task *task = (struct gpu_task *)b->task_words;

	memset(out, 0, sizeof(*out));
	out->task = task;
	out->tasks_count = b->tasks_count;
	out->chunks_count = b->geom->chunks_count;
	out->results = (struct cuda_result *)b->dev_results;
	if (b->profile)
		out->profile = b->profile->dev;
	for (uint32_t i = 0; i < b->tasks_count; i++)
		task[i] = (struct gpu_task){
			.region = b->task[i].region->dev,
			.payload = (uint8_t *)b->task[i].dev_payload,
			.payload_bytes = b->task[i].payload_bytes,
			.expect_xxh3 = b->task[i].expect_xxh3,
			.block_index = b->task[i].block_index,
			.skip_tokens = b->task[i].skip_tokens,
			.position = b->task[i].position,
		};
}

static cudaError_t tasks_copy(struct gpu_batch *k, uint8_t *to, cudaStream_t stream)
{
	const struct gpu_task *from = k->task;

	k->task = (const struct gpu_task *)to;
	return cudaMemcpyAsync(to, from, k->tasks_count * sizeof(*from), cudaMemcpyHostToDevice,
			       stream);
}

static uint32_t sms_count(void)
{
	int device = 0, sms = 1;

	(void)cudaGetDevice(&device);
	(void)cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
	return (uint32_t)sms;
}

/* Chunks that are not enough for all warps of all multiprocessors. */
static bool few(const struct gpu_batch *b)
{
	return b->chunks_count * b->tasks_count <= sms_count() * WARPS_FEW;
}

static uint32_t grid_of(const struct gpu_batch *b)
{
	uint32_t items = b->chunks_count * b->tasks_count, sms = sms_count();

	return items < sms ? items : sms;
}

template <uint32_t WARPS>
static void launch_encode(const struct gpu_batch *k, int verify, cudaStream_t stream)
{
	const uint32_t tables = k->profile.enc ? k->profile.tables_count : 0;

	encode_kernel<WARPS>
		<<<grid_of(k), WARPS * WARP_LANES,
		   XXH3_TABLE_BYTES + tables * CODEC_TOKENS_PITCH * 8u + WARPS * ENCODE_WARP_BYTES,
		   stream>>>(*k);
	if (verify && tables)
		verify_kernel<WARPS>
			<<<grid_of(k), WARPS * WARP_LANES,
			   XXH3_TABLE_BYTES + tables * TABLE_BYTES + WARPS * DECODE_WARP_BYTES,
			   stream>>>(*k);
}

template <uint32_t WARPS> static void launch_decode(const struct gpu_batch *k, cudaStream_t stream)
{
	const uint32_t tables = k->profile.dec ? k->profile.tables_count : 0;

	decode_kernel<WARPS>
		<<<grid_of(k), WARPS * WARP_LANES,
		   XXH3_TABLE_BYTES + tables * TABLE_BYTES + WARPS * DECODE_WARP_BYTES, stream>>>(
			*k);
}

/* Checksums of all tasks, then `layer` for all; k is told what came of it. */
static int encode_by_layer(const struct cuda_codec_batch *b, struct gpu_batch *k,
			   struct CUstream_st *stream)
{
	uint8_t *scratch = (uint8_t *)b->dev_scratch +
			   (cuda_codec_encode_scratch(b->geom, k->tasks_count) + 255u) / 256u *
				   256u;
	struct gpu_batch sums = *k;

	if (!b->profile || !b->profile->layer)
		return cudaErrorInvalidValue;
	memset(&sums.profile, 0, sizeof(sums.profile)); /* no tables: nothing is coded */
	if (few(&sums))
		launch_encode<WARPS_FEW>(&sums, 0, stream);
	else
		launch_encode<WARPS_MANY>(&sums, 0, stream);
	return cuda_layer_encode(b->profile->layer, k, scratch, b->verify, stream, &k->layer);
}

extern "C" int cuda_codec_encode(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	const size_t status_bytes = up(STATUS_BYTES, 256);
	struct gpu_batch k;
	uint32_t items;
	cudaError_t e;

	batch_fill(&k, b);
	k.status = (uint32_t *)b->dev_scratch;
	k.scratch = (uint8_t *)b->dev_scratch + status_bytes + up(TASKS_BYTES, 256);
	items = k.chunks_count * k.tasks_count;
	e = cudaMemsetAsync(k.status, 0, status_bytes, stream);
	if (e == cudaSuccess)
		e = tasks_copy(&k, (uint8_t *)b->dev_scratch + status_bytes, stream);
	if (e != cudaSuccess)
		return e;
	if (b->layer) {
		e = (cudaError_t)encode_by_layer(b, &k, stream);
		if (e != cudaSuccess)
			return e;
	}
	if (few(&k))
		launch_encode<WARPS_FEW>(&k, b->verify, stream);
	else
		launch_encode<WARPS_MANY>(&k, b->verify, stream);
	pack_index_kernel<<<k.tasks_count, ROOT_THREADS, XXH3_TABLE_BYTES, stream>>>(k);
	pack_kernel<<<(items + SMALL_WARPS - 1u) / SMALL_WARPS, SMALL_WARPS * WARP_LANES, 0,
		      stream>>>(k);
	return cudaGetLastError();
}

extern "C" int cuda_codec_decode(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	const struct decode_scratch scratch = cuda_decode_scratch_of(b->geom);
	struct gpu_batch k;
	cudaError_t e;

	for (uint32_t i = 0; i < b->tasks_count; i++)
		if (b->task[i].payload_bytes <
		    sizeof(struct format_block_header) +
			    b->geom->chunks_count * sizeof(struct format_chunk_entry))
			return cudaErrorInvalidValue;
	batch_fill(&k, b);
	k.status = (uint32_t *)b->dev_scratch;
	k.chunk_tasks = k.status + CUDA_BATCH_TASKS_MAX;
	k.scratch = (uint8_t *)b->dev_scratch;
	k.leaves_off = scratch.leaves_off;
	k.digests_off = scratch.digests_off;
	k.task_stride = scratch.task_stride;
	k.chunk_done = (uint8_t *)b->dev_chunk_done;
	e = cudaMemsetAsync(k.status, 0, scratch.tasks_off, stream);
	if (e == cudaSuccess)
		e = tasks_copy(&k, (uint8_t *)b->dev_scratch + scratch.tasks_off, stream);
	if (e != cudaSuccess)
		return e;
	k.layer_part = b->layer;
	if (b->layer) {
		if (!b->profile || !b->profile->layer)
			return cudaErrorInvalidValue;
		e = (cudaError_t)cuda_layer_decode(
			b->profile->layer, &k,
			k.scratch + (cuda_codec_decode_scratch(b->geom, k.tasks_count) + 255u) /
					    256u * 256u,
			stream);
		if (e != cudaSuccess)
			return e;
	}
	if (few(&k))
		launch_decode<WARPS_FEW>(&k, stream);
	else
		launch_decode<WARPS_MANY>(&k, stream);
	decode_root_kernel<<<k.tasks_count, ROOT_THREADS, XXH3_TABLE_BYTES, stream>>>(k);
	return cudaGetLastError();
}

static int copy(const struct cuda_codec_batch *b, bool to_pages, struct CUstream_st *stream)
{
	struct gpu_batch k;

	batch_fill(&k, b);
	copy_kernel<<<dim3((b->geom->segments_count + SMALL_WARPS - 1u) / SMALL_WARPS,
			   k.tasks_count),
		      SMALL_WARPS * WARP_LANES, 0, stream>>>(k, to_pages);
	return cudaGetLastError();
}

extern "C" int cuda_codec_gather(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	return copy(b, false, stream);
}

extern "C" int cuda_codec_scatter(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	return copy(b, true, stream);
}
