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
#include "gpu/codec/cuda_pack.cuh"


/*
 * Warps of a thread block, one block to a multiprocessor.  Many fill its issue slots; few have twice the registers,
 * so that one chunk is done sooner: for batches that do not fill the GPU.
 */
#define WARPS_MANY 32u
#define WARPS_FEW 16u
#define SMALL_WARPS 8u /* of kernels without tables */
#define SHARED_MAX (227u << 10)
#define DECODE_WARP_BYTES (LEAF_BYTES + RING_BYTES)
#define ROOT_THREADS 256u
#define ENCODE_WARP_BYTES LEAF_BYTES
#define TABLES_MAX ((SHARED_MAX - XXH3_TABLE_BYTES - WARPS_MANY * DECODE_WARP_BYTES) / (CODEC_PROB_SUM * 4u))
#define ESCAPES_MAX (UINT16_MAX / 2u)
/* A tile needs room for 17 rows before it is begun. */
#define WORDS_SLACK_BYTES (17u * 32u * 2u)

struct cuda_profile {
	struct gpu_profile dev;
	uint8_t *memory; /* device */
	uint8_t *host;	 /* what was copied */
};

struct cuda_region {
	const struct gpu_region *dev;
	uint8_t *host; /* what was copied: begins with struct gpu_region */
	struct gpu_geometry g;
};

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

__device__ static struct encode_view encode_view_of(const struct gpu_batch *b, uint32_t t, uint32_t c)
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

template <uint32_t WARPS>
__global__ __launch_bounds__(WARPS *WARP_LANES, 1) void encode_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t lane = threadIdx.x % WARP_LANES, warp = warp_uniform(threadIdx.x / WARP_LANES);
	const uint32_t tables = b.profile.enc ? b.profile.tables_count * CODEC_TOKENS_PITCH * 8u : 0;
	uint8_t *const loaded = shared_load(b.profile.enc, tables);
	const struct xxh3_lane xx = xxh3_of(lane);

	for (uint32_t i = blockIdx.x + gridDim.x * warp; i < b.chunks_count * b.tasks_count;
	     i += gridDim.x * WARPS) {
		const struct encode_view v = encode_view_of(&b, i % b.tasks_count, i / b.tasks_count);
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
			.words_limit = -(int32_t)((c->words_end - STATES_BYTES - c->low_bytes) / 2u),
			.escapes_count = 0,
			.low_high = 0,
			.coding = tables > 0,
		};

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
__global__ __launch_bounds__(WARPS *WARP_LANES, 1) void verify_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t lane = threadIdx.x % WARP_LANES, warp = warp_uniform(threadIdx.x / WARP_LANES);
	const uint32_t tables = b.profile.tables_count * CODEC_PROB_SUM * 4u;
	uint8_t *const loaded = shared_load(b.profile.dec, tables);
	const struct xxh3_lane xx = xxh3_of(lane);

	for (uint32_t i = blockIdx.x + gridDim.x * warp; i < b.chunks_count * b.tasks_count;
	     i += gridDim.x * WARPS) {
		const struct encode_view v = encode_view_of(&b, i % b.tasks_count, i / b.tasks_count);
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
	const struct encode_view v = encode_view_of(&b, i / b.chunks_count, i % b.chunks_count);
	const uint32_t *offsets =
		(const uint32_t *)(b.scratch + i / b.chunks_count * v.g->scratch_bytes + v.g->offsets_off);
	uint8_t *to = v.task->payload + offsets[i % b.chunks_count];

	if (v.sizes->raw)
		pack_raw(v.task->region, v.chunk, v.task->block_index, to, lane);
	else
		pack_channel(v.chunk, v.sizes, v.scratch, (uint32_t *)to, lane);
}

/* Is this the container that the task is about?  Lane i < 16 looks at word i of the header. */
__device__ static uint32_t header_check(const struct gpu_batch *b, const struct gpu_task *t, uint32_t lane)
{
	const struct gpu_geometry *g = &t->region->g;
	const uint32_t word = lane < 16 ? ((const uint32_t *)t->payload)[lane] : 0;
	const uint32_t kind = __shfl_sync(FULL_MASK, word, 1), channel = kind >> 16 == CODEC_SPEC_CHANNEL;
	const uint32_t profile = channel ? ((const uint32_t *)b->profile.digest)[lane % 4u] : 0;
	const uint64_t wide = lane < 6 ? g->raw_bytes : t->expect_xxh3;
	uint32_t expect = lane % 2u ? (uint32_t)(wide >> 32) : (uint32_t)wide, bad; /* words 4 to 7 */

	/* Selections, not branches: the warp stays together. */
	expect = lane == 0 ? FORMAT_BLOCK_MAGIC : expect;
	expect = lane == 1 ? FORMAT_BLOCK_VERSION | (kind & 0x00ff0000u) : expect;
	expect = lane == 2 ? (uint32_t)t->payload_bytes : expect;
	expect = lane == 3 ? g->chunks_count : expect;
	expect = lane >= 8 ? profile : expect;
	expect = lane >= 12 ? ((const uint32_t *)g->digest)[lane % 4u] : expect;
	expect = lane >= 16 ? word : expect;
	bad = __ballot_sync(FULL_MASK, word != expect);
	if (channel && !b->profile.dec)
		bad |= 0x0100u;
	return (bad & 0x00ffu ? CUDA_STATUS_MALFORMED : 0) | (bad & 0xff00u ? CUDA_STATUS_STALE : 0);
}

__device__ static inline uint64_t up_to_align(uint32_t bytes)
{
	return ((uint64_t)bytes + FORMAT_PAYLOAD_ALIGN - 1u) & ~(uint64_t)(FORMAT_PAYLOAD_ALIGN - 1u);
}

/* Find a chunk's payload; every length is checked against payload_bytes before it is believed. */
__device__ static uint32_t chunk_open(const struct gpu_task *t, uint32_t index,
				      struct format_chunk_entry *ret_entry, const uint8_t **ret_payload,
				      uint32_t lane)
{
	const struct gpu_geometry *g = &t->region->g;
	const struct format_chunk_entry *entry =
		(const struct format_chunk_entry *)(t->payload + sizeof(struct format_block_header));
	const uint64_t begin = sizeof(struct format_block_header) + (uint64_t)g->chunks_count * sizeof(*entry);
	uint64_t before = 0;

	for (uint32_t i = lane; i < index; i += WARP_LANES)
		before += up_to_align(entry[i].payload_bytes);
	for (int m = 16; m > 0; m >>= 1)
		before += __shfl_xor_sync(FULL_MASK, (unsigned long long)before, m);
	*ret_entry = entry[index];
	const uint64_t end = begin + before + up_to_align(ret_entry->payload_bytes);

	if (end > t->payload_bytes || ret_entry->reserved != 0)
		return CUDA_STATUS_MALFORMED;
	if (index + 1u == g->chunks_count && end != t->payload_bytes)
		return CUDA_STATUS_MALFORMED;
	*ret_payload = t->payload + begin + before;
	return 0;
}

__device__ static uint32_t stream_open(const struct gpu_chunk *c, const struct format_chunk_entry *e,
				       const uint8_t *payload, struct gpu_stream *ret)
{
	const uint32_t fixed = STATES_BYTES + c->low_bytes;

	if (!c->tiles || e->payload_bytes < fixed || e->escape_bytes > e->payload_bytes - fixed ||
	    e->escape_bytes % c->element_bytes)
		return CUDA_STATUS_MALFORMED;
	const uint32_t words = e->payload_bytes - fixed - e->escape_bytes;

	if (words % 2u || words / 2u > c->scalars)
		return CUDA_STATUS_MALFORMED;
	ret->states = (const uint32_t *)payload;
	ret->low = payload + STATES_BYTES;
	ret->words = (const uint16_t *)(payload + fixed);
	ret->words_count = words / 2u;
	ret->escapes = payload + fixed + words;
	ret->escapes_count = e->escape_bytes / c->element_bytes;
	return 0;
}

__device__ static uint32_t decode_one(const struct gpu_batch *b, const struct gpu_task *t, uint32_t index,
				      struct decode_job *j, const struct xxh3_lane *xx, uint32_t lane)
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
		return status ? status : decode_any<true>(j, &s, xx, lane) ? CUDA_STATUS_MALFORMED : 0;
	}
	if (warp_uniform(method != FORMAT_METHOD_RAW || e.payload_bytes != j->chunk->raw_bytes || e.escape_bytes))
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
__global__ __launch_bounds__(WARPS *WARP_LANES, 1) void decode_kernel(const __grid_constant__ struct gpu_batch b)
{
	const uint32_t lane = threadIdx.x % WARP_LANES, warp = warp_uniform(threadIdx.x / WARP_LANES);
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
				   (uint64_t *)(b.scratch + b.digests_off + t * b.task_stride), &xx);
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

/* ---- host: what can be done ---- */

static int chunk_uniform(const struct codec_geometry *g, uint32_t chunk)
{
	uint32_t first = g->chunk_first_segment[chunk];

	for (uint32_t i = first; i < g->chunk_first_segment[chunk + 1]; i++)
		if (codec_segment_coded(&g->segments[i]) && g->segments[i].dtype != g->segments[first].dtype)
			return 0;
	return 1;
}

extern "C" int cuda_codec_geometry_ok(const struct codec_geometry *g)
{
	for (uint32_t i = 0; i < g->chunks_count; i++)
		if (!chunk_uniform(g, i))
			return 0;
	return codec_geometry_regular(g);
}

extern "C" int cuda_codec_profile_ok(const struct codec_geometry *g, const struct codec_profile *p)
{
	if (p->tables_count > TABLES_MAX || p->segments_count != g->segments_count)
		return 0;
	for (uint32_t i = 0; i < g->segments_count; i++)
		if (p->runs[i].columns && p->runs[i].shift != codec_dtype_shift(g->segments[i].dtype))
			return 0;
	return 1;
}

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
		e = cudaMemcpyToSymbol(xxh3_secret, XXH3_kSecret, XXH3_SECRET_BYTES);
	if (e == cudaSuccess)
		*ret_sms = (unsigned)sms;
	return e;
}

/* ---- host: regions ---- */

static uint64_t up(uint64_t v, uint64_t to)
{
	return (v + to - 1u) / to * to;
}

/* Per lane all coded rows have `bits` low bits; the last 16 are carried by the coder's first state. */
static uint32_t low_bytes_of(uint64_t bits)
{
	uint64_t stored = bits - (bits < CODEC_CARRIED_BITS ? bits : CODEC_CARRIED_BITS), rest = stored % 32u;

	return (uint32_t)(stored / 32u * 128u + (rest == 0 ? 0 : rest <= 16 ? 64u : 128u));
}

static void chunk_fill(struct gpu_chunk *c, const struct codec_geometry *g, uint32_t index, int regular,
		       uint64_t *scratch_off)
{
	uint32_t first = g->chunk_first_segment[index], end = g->chunk_first_segment[index + 1];
	uint64_t bits = 0;

	memset(c, 0, sizeof(*c));
	c->first_segment = first;
	c->end_segment = end;
	c->raw_bytes = (uint32_t)codec_chunk_bytes(g, index);
	c->element_bytes = (uint8_t)codec_dtype_bytes(g->segments[first].dtype);
	c->shift = (uint8_t)codec_dtype_shift(g->segments[first].dtype);
	c->coded = codec_segment_coded(&g->segments[first]) && regular;
	for (uint32_t i = first; i < end && c->coded; i++) {
		uint32_t columns = codec_segment_columns(&g->segments[i]);

		c->scalars += columns * g->block_tokens;
		c->tiles += columns / CODEC_LANES * (g->block_tokens / TILE_ROWS);
	}
	bits = (uint64_t)c->tiles * TILE_ROWS * c->shift;
	c->low_bytes = low_bytes_of(bits);
	c->escapes_max = c->scalars / 8u < ESCAPES_MAX ? c->scalars / 8u : ESCAPES_MAX;
	c->scratch_off = *scratch_off;
	/* Words that would make it longer than raw are not kept. */
	c->words_end = (uint32_t)up(c->raw_bytes + WORDS_SLACK_BYTES, 16);
	c->escapes_end = (uint32_t)up(c->words_end + c->escapes_max * c->element_bytes, 16);
	*scratch_off += c->tiles ? up(c->escapes_end, 128) : 0;
}

static void geometry_fill(struct gpu_geometry *out, struct gpu_segment *seg, struct gpu_chunk *chunk,
			  const struct codec_geometry *g)
{
	const int regular = cuda_codec_geometry_ok(g);
	uint64_t scratch = 0;
	uint32_t column = 0;

	memset(out, 0, sizeof(*out));
	out->tokens = g->block_tokens;
	out->segments_count = g->segments_count;
	out->chunks_count = g->chunks_count;
	out->raw_bytes = g->raw_bytes;
	memcpy(out->digest, g->digest, sizeof(out->digest));
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];

		memset(&seg[i], 0, sizeof(seg[i]));
		seg[i].canonical_off = g->segment_off[i];
		seg[i].bytes = codec_segment_bytes(g, i);
		seg[i].columns = codec_segment_columns(s);
		seg[i].rows_per_token = (seg[i].columns + CODEC_LANES - 1u) / CODEC_LANES;
		seg[i].heads = s->heads;
		seg[i].head_dim = s->head_dim;
		seg[i].head_magic = s->head_dim > 1 ? UINT32_MAX / s->head_dim + 1u : 0;
		seg[i].element_bytes = (uint8_t)codec_dtype_bytes(s->dtype);
		seg[i].coded = codec_segment_coded(s);
		seg[i].first_leaf = out->leaves_count;
		seg[i].first_column = column;
		out->leaves_count += (uint32_t)((seg[i].bytes + LEAF_BYTES - 1u) / LEAF_BYTES);
		if (seg[i].coded)
			column += seg[i].rows_per_token * CODEC_LANES;
	}
	for (uint32_t i = 0; i < g->chunks_count; i++)
		chunk_fill(&chunk[i], g, i, regular, &scratch);
	out->sizes_off = up(scratch, 256);
	out->offsets_off = up(out->sizes_off + g->chunks_count * sizeof(struct gpu_sizes), 256);
	out->leaves_off = up(out->offsets_off + g->chunks_count * sizeof(uint32_t), 256);
	out->digests_off = up(out->leaves_off + (uint64_t)out->leaves_count * LEAF_ACCS * 8u, 256);
	out->scratch_bytes = up(out->digests_off + up(out->leaves_count, 128) * 8u, 256);
}

static int segment_vector(const struct gpu_segment *s, uint64_t base)
{
	return s->head_dim * s->element_bytes % 16u == 0 && s->canonical_off % 16u == 0 &&
	       (base + s->off) % 16u == 0 && s->block_stride % 16u == 0 && s->token_stride % 16u == 0 &&
	       (s->heads == 1 || s->head_stride % 16u == 0) &&
	       s->token_stride < UINT32_MAX;
}

extern "C" int cuda_codec_region_new(const struct codec_geometry *g, uint64_t base,
				     const struct codec_stride *stride, const uint64_t *block_stride,
				     struct CUstream_st *stream, struct cuda_region **ret_region)
{
	const size_t segments_off = up(sizeof(struct gpu_region), 64);
	const size_t chunks_off = up(segments_off + g->segments_count * sizeof(struct gpu_segment), 64);
	const size_t bytes = chunks_off + g->chunks_count * sizeof(struct gpu_chunk);
	struct cuda_region *r = (struct cuda_region *)calloc(1, sizeof(*r));
	struct gpu_segment *seg;
	struct gpu_region *h;
	uint8_t *dev = NULL;
	cudaError_t e;

	if (!r || !(r->host = (uint8_t *)calloc(1, bytes))) {
		free(r);
		return cudaErrorMemoryAllocation;
	}
	h = (struct gpu_region *)r->host;
	seg = (struct gpu_segment *)(r->host + segments_off);
	geometry_fill(&h->g, seg, (struct gpu_chunk *)(r->host + chunks_off), g);
	h->base = base;
	for (uint32_t i = 0; i < g->segments_count; i++) {
		seg[i].off = stride[i].off;
		seg[i].token_stride = stride[i].token_stride;
		seg[i].head_stride = stride[i].head_stride;
		seg[i].block_stride = block_stride[i];
		seg[i].vector = (uint8_t)segment_vector(&seg[i], base);
	}
	e = cudaMalloc((void **)&dev, bytes);
	if (e == cudaSuccess) {
		h->g.segment = (const struct gpu_segment *)(dev + segments_off);
		h->g.chunk = (const struct gpu_chunk *)(dev + chunks_off);
		r->g = h->g;
		r->dev = (const struct gpu_region *)dev;
		e = cudaMemcpyAsync(dev, r->host, bytes, cudaMemcpyHostToDevice, stream);
		if (e == cudaSuccess)
			e = cudaStreamSynchronize(stream);
	}
	if (e != cudaSuccess) {
		cuda_codec_region_free(r);
		return e;
	}
	*ret_region = r;
	return 0;
}

extern "C" struct cuda_region *cuda_codec_region_free(struct cuda_region *r)
{
	if (!r)
		return NULL;
	(void)cudaFree((void *)r->dev);
	free(r->host);
	free(r);
	return NULL;
}

/* ---- host: profiles ---- */

static void columns_fill(uint32_t *out, const struct codec_geometry *g, const struct codec_profile *p)
{
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_run *run = &p->runs[i];

		for (uint32_t c = 0; c < run->rows_per_token * CODEC_LANES; c++, out++)
			if (c < run->columns)
				*out = run->top[c] | (uint32_t)run->width[c] << COLUMN_WIDTH_SHIFT |
				       (uint32_t)run->flip[c] << COLUMN_FLIP_SHIFT |
				       (uint32_t)run->table[c] << COLUMN_TABLE_SHIFT;
	}
}

static void slots_fill(uint32_t *out, const struct codec_profile *p)
{
	for (size_t i = 0; i < (size_t)p->tables_count * CODEC_PROB_SUM; i++) {
		uint32_t e = p->dec[i], freq = e & CODEC_DEC_FIELD_MASK;
		uint32_t bias = e >> CODEC_DEC_BIAS_SHIFT & CODEC_DEC_FIELD_MASK;
		uint32_t token = e >> CODEC_DEC_TOKEN_SHIFT & CODEC_DEC_TOKEN_MASK;

		out[i] = bias | codec_context_of(token) << SLOT_CONTEXT_SHIFT | token << SLOT_SIGN_SHIFT |
			 freq << SLOT_FREQ_SHIFT;
	}
}

static void entries_fill(uint64_t *out, const struct codec_profile *p)
{
	for (size_t i = 0; i < (size_t)p->tables_count * CODEC_TOKENS_PITCH; i++) {
		uint64_t e = p->enc[i], freq = e & 0xffffu, start = e >> 16 & 0xffffu;

		out[i] = start | freq << ENTRY_FREQ_SHIFT | e >> 32 << 32;
	}
}

extern "C" int cuda_codec_profile_new(const struct codec_geometry *g, const struct codec_profile *p,
				      struct CUstream_st *stream, struct cuda_profile **ret_profile)
{
	const size_t dec_bytes = (size_t)p->tables_count * CODEC_PROB_SUM * 4u;
	const size_t enc_bytes = (size_t)p->tables_count * CODEC_TOKENS_PITCH * 8u;
	struct cuda_profile *t = (struct cuda_profile *)calloc(1, sizeof(*t));
	size_t columns = 0, enc_off = up(dec_bytes, 256), column_off = up(enc_off + enc_bytes, 256);
	size_t context_off, bytes;
	cudaError_t e;

	for (uint32_t i = 0; i < g->segments_count; i++)
		columns += p->runs[i].rows_per_token * CODEC_LANES;
	/* The decoder looks one row of columns ahead. */
	context_off = up(column_off + (columns + CODEC_LANES) * 4u, 256);
	bytes = context_off + g->segments_count;
	if (!t || !(t->host = (uint8_t *)calloc(1, bytes))) {
		free(t);
		return cudaErrorMemoryAllocation;
	}
	slots_fill((uint32_t *)t->host, p);
	entries_fill((uint64_t *)(t->host + enc_off), p);
	columns_fill((uint32_t *)(t->host + column_off), g, p);
	for (uint32_t i = 0; i < g->segments_count; i++)
		t->host[context_off + i] = p->runs[i].context;
	e = cudaMalloc((void **)&t->memory, bytes);
	if (e == cudaSuccess)
		e = cudaMemcpyAsync(t->memory, t->host, bytes, cudaMemcpyHostToDevice, stream);
	if (e != cudaSuccess) {
		cuda_codec_profile_free(t);
		return e;
	}
	t->dev.tables_count = p->tables_count;
	t->dev.dec = (const uint32_t *)t->memory;
	t->dev.enc = (const uint64_t *)(t->memory + enc_off);
	t->dev.column = (const uint32_t *)(t->memory + column_off);
	t->dev.context = t->memory + context_off;
	memcpy(t->dev.digest, p->digest, sizeof(t->dev.digest));
	*ret_profile = t;
	return 0;
}

extern "C" struct cuda_profile *cuda_codec_profile_free(struct cuda_profile *p)
{
	if (!p)
		return NULL;
	(void)cudaFree(p->memory);
	free(p->host);
	free(p);
	return NULL;
}

/* ---- host: launches ---- */

static uint64_t leaves_count(const struct codec_geometry *g)
{
	uint64_t leaves = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		leaves += (codec_segment_bytes(g, i) + LEAF_BYTES - 1u) / LEAF_BYTES;
	return leaves;
}

/* Accumulators and digests of a task's leaves. */
static size_t leaves_bytes(const struct codec_geometry *g)
{
	return up(leaves_count(g) * LEAF_ACCS * 8u, 256) + up(up(leaves_count(g), 128) * 8u, 256);
}

/* Scratch of a decode: status words, counters of chunks, leaves of every task. */
static size_t decode_leaves_off(uint32_t chunks_count)
{
	return up(CUDA_BATCH_TASKS_MAX * 4u + chunks_count * 4u, 256);
}

extern "C" size_t cuda_codec_decode_scratch(const struct codec_geometry *g, uint32_t tasks_count)
{
	return decode_leaves_off(g->chunks_count) + tasks_count * leaves_bytes(g);
}

extern "C" size_t cuda_codec_encode_scratch(const struct codec_geometry *g, uint32_t tasks_count)
{
	const int regular = cuda_codec_geometry_ok(g);
	uint64_t scratch = 0;

	for (uint32_t i = 0; i < g->chunks_count; i++) {
		struct gpu_chunk c;

		chunk_fill(&c, g, i, regular, &scratch);
	}
	scratch = up(scratch, 256) + up(g->chunks_count * sizeof(struct gpu_sizes), 256) +
		  up(g->chunks_count * sizeof(uint32_t), 256) + leaves_bytes(g);
	return up(CUDA_BATCH_TASKS_MAX * 4u, 256) + tasks_count * up(scratch, 256);
}

static void batch_fill(struct gpu_batch *out, const struct cuda_codec_batch *b)
{
	memset(out, 0, sizeof(*out));
	out->tasks_count = b->tasks_count;
	out->chunks_count = b->geom->chunks_count;
	out->results = (struct cuda_result *)b->dev_results;
	if (b->profile)
		out->profile = b->profile->dev;
	for (uint32_t i = 0; i < b->tasks_count; i++)
		out->task[i] = (struct gpu_task){
			.region = b->task[i].region->dev,
			.payload = (uint8_t *)b->task[i].dev_payload,
			.payload_bytes = b->task[i].payload_bytes,
			.expect_xxh3 = b->task[i].expect_xxh3,
			.block_index = b->task[i].block_index,
			.skip_tokens = b->task[i].skip_tokens,
		};
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

template <uint32_t WARPS> static void launch_encode(const struct gpu_batch *k, int verify, cudaStream_t stream)
{
	const uint32_t tables = k->profile.enc ? k->profile.tables_count : 0;

	encode_kernel<WARPS><<<grid_of(k), WARPS * WARP_LANES,
			       XXH3_TABLE_BYTES + tables * CODEC_TOKENS_PITCH * 8u + WARPS * ENCODE_WARP_BYTES,
			       stream>>>(*k);
	if (verify && tables)
		verify_kernel<WARPS><<<grid_of(k), WARPS * WARP_LANES,
				       XXH3_TABLE_BYTES + tables * TABLE_BYTES + WARPS * DECODE_WARP_BYTES,
				       stream>>>(*k);
}

template <uint32_t WARPS> static void launch_decode(const struct gpu_batch *k, cudaStream_t stream)
{
	const uint32_t tables = k->profile.dec ? k->profile.tables_count : 0;

	decode_kernel<WARPS><<<grid_of(k), WARPS * WARP_LANES,
			       XXH3_TABLE_BYTES + tables * TABLE_BYTES + WARPS * DECODE_WARP_BYTES, stream>>>(*k);
}

extern "C" int cuda_codec_encode(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	const size_t status_bytes = up(CUDA_BATCH_TASKS_MAX * 4u, 256);
	struct gpu_batch k;
	uint32_t items;
	cudaError_t e;

	batch_fill(&k, b);
	k.status = (uint32_t *)b->dev_scratch;
	k.scratch = (uint8_t *)b->dev_scratch + status_bytes;
	items = k.chunks_count * k.tasks_count;
	e = cudaMemsetAsync(k.status, 0, status_bytes, stream);
	if (e != cudaSuccess)
		return e;
	if (few(&k))
		launch_encode<WARPS_FEW>(&k, b->verify, stream);
	else
		launch_encode<WARPS_MANY>(&k, b->verify, stream);
	pack_index_kernel<<<k.tasks_count, ROOT_THREADS, XXH3_TABLE_BYTES, stream>>>(k);
	pack_kernel<<<(items + SMALL_WARPS - 1u) / SMALL_WARPS, SMALL_WARPS * WARP_LANES, 0, stream>>>(k);
	return cudaGetLastError();
}

extern "C" int cuda_codec_decode(const struct cuda_codec_batch *b, struct CUstream_st *stream)
{
	struct gpu_batch k;
	cudaError_t e;

	for (uint32_t i = 0; i < b->tasks_count; i++)
		if (b->task[i].payload_bytes < sizeof(struct format_block_header) +
						       b->geom->chunks_count * sizeof(struct format_chunk_entry))
			return cudaErrorInvalidValue;
	batch_fill(&k, b);
	k.status = (uint32_t *)b->dev_scratch;
	k.chunk_tasks = k.status + CUDA_BATCH_TASKS_MAX;
	k.scratch = (uint8_t *)b->dev_scratch;
	k.leaves_off = decode_leaves_off(k.chunks_count);
	k.digests_off = k.leaves_off + up(leaves_count(b->geom) * LEAF_ACCS * 8u, 256);
	k.task_stride = leaves_bytes(b->geom);
	k.chunk_done = (uint8_t *)b->dev_chunk_done;
	e = cudaMemsetAsync(k.status, 0, k.leaves_off, stream);
	if (e != cudaSuccess)
		return e;
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
	copy_kernel<<<dim3((b->geom->segments_count + SMALL_WARPS - 1u) / SMALL_WARPS, k.tasks_count),
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
