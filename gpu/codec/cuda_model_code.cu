/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_code.cu - a batch of blocks through the pass and the residual coder: which kernels, in which order.
 *
 *   decode   heads, ids, streams' places; then segment by segment: guess, decode, into the pages, known
 *   encode   all rows from the pages; segment by segment: guess, known; then from the last segment to the first:
 *            symbols, streams; then payloads
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "gpu/codec/cuda_model_objects.cuh"

#define _Atomic(type) type
extern "C" {
#include "gpu/codec/codec.h"
#include "gpu/codec/residual_rows.h"
}
#undef _Atomic

#include "gpu/codec/cuda_layer_tables.cuh"
#include "gpu/codec/cuda_model_code.h"
#include "gpu/codec/cuda_model_streams.cuh"

struct cuda_model_coder {
	const struct cuda_model *m; /* borrowed */
	struct cuda_model_batch *batch;
	uint8_t *memory;		 /* device; owned; all of run's, and the next five */
	uint8_t *pinned;		 /* host; owned; the blocks, then their states */
	struct gpu_layer_tables *tables; /* device, like the next four */
	struct gpu_layer_grids *grids;
	struct gpu_code_place *places;
	int16_t *base;			    /* [segment][columns] */
	int32_t *mu;			    /* of all segments; NULL: decodes only */
	struct gpu_code_block *host_blocks; /* in pinned */
	struct gpu_code_state *host_states;
	struct gpu_code_run run;
	uint32_t blocks_max, segments_count, dtype, sms;
	uint32_t parts_count; /* of what is queued */
	bool wide;	      /* pages can be had 16 bytes at a time */
	bool encodes;	      /* what the batch does that was not asked for yet */
	bool queued;
	size_t bytes;
};

/* ---- the object ---- */

static struct gpu_code_run run_of(const struct mspec_params *p, const struct cuda_model_shape *s)
{
	const struct model_config *c = &p->model->config;
	const struct mspec_shape cache = mspec_params_shape(p);
	const uint32_t element = residual_type_of(p->dtype).bits / 8u;
	struct gpu_code_run r = {};
	uint64_t share;

	r.tokens = s->block_tokens;
	r.streams_count = s->streams_count;
	r.columns = mspec_shape_kv(cache);
	r.row_bytes = r.columns * element;
	r.head_bytes = cache.head_dim * element;
	r.vocab = c->vocab;
	while (p->ids && c->vocab > 1u << r.id_bits)
		r.id_bits++;
	r.ids_bytes = code_ids_bytes(r.tokens, r.id_bits);
	r.segment_bytes = (uint64_t)s->blocks_max * r.tokens * r.row_bytes;
	/* Rows of symbols are no longer than raw ones, and each token has a tau of ten bits at most. */
	share = (r.columns / CODEC_LANES + r.streams_count - 1u) / r.streams_count * CODEC_LANES;
	r.stream_bytes = 2u * cache.layers * (uint64_t)r.tokens *
			 (share * element + share / 64u + 2u);
	r.stream_bytes = (r.stream_bytes + (CODE_ROWS + 1u) * LAYER_ROW_BYTES + 255u) / 256u * 256u;
	return r;
}

static void coder_place(struct cuda_model_coder *c, struct cuda_arena *a, bool encodes)
{
	struct gpu_code_run *r = &c->run;
	const uint64_t rows = (uint64_t)c->blocks_max * r->tokens,
		       streams = (uint64_t)c->blocks_max * r->streams_count;
	const uint64_t scalars = rows * r->columns;

	r->block = (struct gpu_code_block *)arena_take(a, c->blocks_max * sizeof(*r->block));
	r->state = (struct gpu_code_state *)arena_take(a, c->blocks_max * sizeof(*r->state));
	r->stream = (struct gpu_layer_stream *)arena_take(a, streams * sizeof(*r->stream));
	c->tables = (struct gpu_layer_tables *)arena_take(a, 2u * sizeof(*c->tables));
	c->grids = (struct gpu_layer_grids *)arena_take(a, sizeof(*c->grids));
	c->places = (struct gpu_code_place *)arena_take(a, c->segments_count * sizeof(*c->places));
	c->base = (int16_t *)arena_take(a, (size_t)c->segments_count * r->columns * 2u);
	r->patterns = (uint8_t *)arena_take(a,
					    r->segment_bytes * (encodes ? c->segments_count : 1u));
	r->tables = c->tables;
	r->grids = c->grids;
	r->place = c->places;
	if (!encodes)
		return;
	c->mu = (int32_t *)arena_take(a, scalars * c->segments_count * 4u);
	r->tau = (uint8_t *)arena_take(a, streams * r->tokens);
	r->symbol = (uint2 *)arena_take(a, scalars * sizeof(*r->symbol));
	/* The copy of words looks at the next one. */
	r->words = (uint8_t *)arena_take(a, streams * r->stream_bytes + 4u);
}

static bool places_wide(const struct cuda_model_place *p, uint32_t count, uint32_t head_bytes)
{
	uint64_t all = head_bytes;

	for (uint32_t i = 0; i < count; i++)
		all |= p[i].off | p[i].block_stride | p[i].token_stride | p[i].head_stride;
	return all % 16u == 0;
}

/* Waits: the copies are from memory that goes. */
static int coder_tables(struct cuda_model_coder *c, struct CUstream_st *stream)
{
	struct host_tables {
		struct gpu_layer_tables tables[2];
		struct gpu_layer_grids grids;
	} *h = (struct host_tables *)calloc(1, sizeof(*h));
	int r;

	if (!h)
		return cudaErrorMemoryAllocation;
	for (uint32_t i = 0; i < 2; i++)
		tables_fill(&h->tables[i], &c->m->p->tables[i]);
	grids_fill(&h->grids, c->dtype);
	r = cudaMemcpyAsync(c->tables, h->tables, sizeof(h->tables), cudaMemcpyHostToDevice,
			    stream);
	if (r == 0)
		r = cudaMemcpyAsync(c->grids, &h->grids, sizeof(h->grids), cudaMemcpyHostToDevice,
				    stream);
	if (r == 0)
		r = cudaStreamSynchronize(stream);
	free(h);
	return r;
}

static int coder_fill(struct cuda_model_coder *c, const struct cuda_model_place *places,
		      struct CUstream_st *stream)
{
	const struct mspec_params *p = c->m->p;
	const size_t row = c->run.columns * sizeof(int16_t);
	int r = coder_tables(c, stream);

	static_assert(sizeof(*places) == sizeof(*c->places), "copied as they are");
	if (r == 0)
		r = cudaMemcpyAsync(c->places, places, c->segments_count * sizeof(*places),
				    cudaMemcpyHostToDevice, stream);
	for (uint32_t i = 0; r == 0 && i < c->segments_count; i++)
		r = cudaMemcpyAsync(c->base + (size_t)i * c->run.columns, mspec_params_base(p, i),
				    row, cudaMemcpyHostToDevice, stream);
	if (r == 0)
		r = cudaMemcpyToSymbolAsync(xxh3_secret, XXH3_kSecret, XXH3_SECRET_BYTES, 0,
					    cudaMemcpyHostToDevice, stream);
	return r ? r : cudaStreamSynchronize(stream);
}

static void (*const decoders[])(struct gpu_code_run, struct gpu_code_segment) = {
	code_decode_kernel<1>, code_decode_kernel<2>, code_decode_kernel<3>, code_decode_kernel<4>
};
static void (*const symbols[])(struct gpu_code_run, struct gpu_code_segment) = {
	code_symbols_kernel<1>, code_symbols_kernel<2>, code_symbols_kernel<3>,
	code_symbols_kernel<4>
};
static void (*const encoders[])(struct gpu_code_run, struct gpu_code_segment) = {
	code_encode_kernel<1>, code_encode_kernel<2>, code_encode_kernel<3>, code_encode_kernel<4>
};

int cuda_model_coder_ok(const struct mspec_params *p, uint32_t block_tokens, uint32_t streams_count)
{
	const uint32_t columns = mspec_shape_kv(mspec_params_shape(p));
	struct cuda_model_shape s = {};

	s.block_tokens = block_tokens;
	s.streams_count = streams_count;
	return block_tokens % TILE_ROWS == 0 && block_tokens > 0 &&
	       block_tokens <= MODEL_BLOCK_MAX && columns % CODEC_LANES == 0 && streams_count > 0 &&
	       streams_count <= RESIDUAL_STREAMS_MAX && streams_count <= columns / CODEC_LANES &&
	       residual_tau_streams(columns, streams_count) == 1 &&
	       run_of(p, &s).stream_bytes <= UINT32_MAX;
}

static int coder_memory(struct cuda_model_coder *c, const struct cuda_model_shape *s)
{
	const size_t blocks = s->blocks_max * sizeof(*c->host_blocks);
	struct cuda_arena a = {};
	int device = 0, sms = 1, r;

	coder_place(c, &a, s->encodes != 0);
	c->bytes = a.at;
	r = cudaMalloc(&c->memory, a.at);
	if (r == 0)
		r = cudaMallocHost(&c->pinned, blocks + s->blocks_max * sizeof(*c->host_states));
	if (r)
		return r;
	a = (struct cuda_arena){ c->memory, 0 };
	coder_place(c, &a, s->encodes != 0);
	c->host_blocks = (struct gpu_code_block *)c->pinned;
	c->host_states = (struct gpu_code_state *)(c->pinned + blocks);
	r = cudaGetDevice(&device);
	if (r == 0)
		r = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
	c->sms = (uint32_t)sms;
	if (r == 0)
		r = cudaFuncSetAttribute((const void *)decoders[c->dtype - 1u],
					 cudaFuncAttributeMaxDynamicSharedMemorySize,
					 (int)code_decode_shared(MODEL_BLOCK_MAX, CODE_WARPS));
	return r;
}

int cuda_model_coder_new(struct cuda_model *m, const struct cuda_model_shape *s,
			 struct CUstream_st *stream, struct cuda_model_coder **ret)
{
	struct cuda_model_coder *c;
	int r;

	if (!cuda_model_coder_ok(m->p, s->block_tokens, s->streams_count))
		return cudaErrorNotSupported;
	if (s->blocks_max == 0 || s->blocks_max > UINT32_MAX / 2u / s->block_tokens)
		return cudaErrorInvalidValue;
	c = (struct cuda_model_coder *)calloc(1, sizeof(*c));
	if (!c)
		return cudaErrorMemoryAllocation;
	c->m = m;
	c->blocks_max = s->blocks_max;
	c->segments_count = 2u * mspec_params_shape(m->p).layers;
	c->dtype = m->p->dtype;
	c->run = run_of(m->p, s);
	c->wide = places_wide(s->places, c->segments_count, c->run.head_bytes);
	r = coder_memory(c, s);
	if (r == 0)
		r = coder_fill(c, s->places, stream);
	if (r == 0)
		r = cuda_model_batch_new(m, s->blocks_max * s->block_tokens, s->parts_max,
					 s->positions_max, stream, &c->batch);
	if (r) {
		cuda_model_coder_free(c);
		return r;
	}
	c->run.ids = c->batch->ids;
	*ret = c;
	return 0;
}

struct cuda_model_coder *cuda_model_coder_free(struct cuda_model_coder *c)
{
	if (!c)
		return NULL;
	cuda_model_batch_free(c->batch);
	(void)cudaFree(c->memory);
	(void)cudaFreeHost(c->pinned);
	free(c);
	return NULL;
}

size_t cuda_model_coder_bytes(const struct cuda_model_coder *c)
{
	return c->bytes;
}

struct cuda_model_batch *cuda_model_coder_batch(struct cuda_model_coder *c)
{
	return c->batch;
}

/* ---- a batch ---- */

/* Parts as blocks, on the host and on the device. */
static int blocks_lay(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		      uint32_t parts_count, const struct cuda_model_block *blocks,
		      struct CUstream_st *stream)
{
	const uint32_t tokens = c->run.tokens;
	uint32_t n = 0;

	if (c->queued)
		return cudaErrorInvalidValue;
	for (uint32_t i = 0; i < parts_count; i++) {
		const uint32_t first = n, more = parts[i].count / tokens;

		if (parts[i].count % tokens || more > c->blocks_max - n)
			return cudaErrorInvalidValue;
		for (; n < first + more; n++) {
			const struct cuda_model_block *b = &blocks[n];

			if ((uintptr_t)b->payload % 8u || b->payload_bytes > CUDA_MODEL_PAYLOAD_MAX)
				return cudaErrorInvalidValue;
			c->host_blocks[n] = (struct gpu_code_block){
				.base = b->base,
				.payload = b->payload,
				.index = b->index,
				.bytes = b->payload_bytes,
				.position = cuda_model_context_count(parts[i].context) +
					    (n - first) * tokens,
				.reserved = 0,
			};
		}
	}
	c->run.blocks_count = n;
	return cudaMemcpyAsync((void *)c->run.block, c->host_blocks, n * sizeof(*c->host_blocks),
			       cudaMemcpyHostToDevice, stream);
}

static struct gpu_code_segment segment_of(const struct cuda_model_coder *c, uint32_t i)
{
	struct gpu_code_segment s = {};

	s.segment = i;
	s.last = i + 1u == c->segments_count;
	s.base = c->base + (size_t)i * c->run.columns;
	s.patterns = c->run.patterns;
	return s;
}

/*
 * Streams of a thread block, a warp to each: as many as all multiprocessors together must have, but no fewer than each
 * has schedulers.  So few blocks leave room for the kernels of other batches.
 */
static uint32_t streams_each(const struct cuda_model_coder *c)
{
	const uint32_t items = c->run.blocks_count * c->run.streams_count;
	const uint32_t each = (items + c->sms - 1u) / c->sms;

	return each < CODE_WARPS_MIN ? CODE_WARPS_MIN : each < CODE_WARPS ? each : CODE_WARPS;
}

static uint32_t streams_grid(const struct cuda_model_coder *c)
{
	const uint32_t items = c->run.blocks_count * c->run.streams_count, each = streams_each(c);
	const uint32_t grid = (items + each - 1u) / each;

	return grid < c->sms ? grid : c->sms;
}

/* More warps than streams come to load the tables. */
static uint32_t decode_warps(const struct cuda_model_coder *c)
{
	const uint32_t each = streams_each(c);

	return each < CODE_WARPS_LOAD ? CODE_WARPS_LOAD : each;
}

/* What became of the blocks, to the host.  Until that is asked for, all went well. */
static int states_queue(struct cuda_model_coder *c, bool encodes, struct CUstream_st *stream)
{
	const int r = cudaMemcpyAsync(c->host_states, c->run.state,
				      c->run.blocks_count * sizeof(*c->host_states),
				      cudaMemcpyDeviceToHost, stream);

	c->encodes = encodes;
	c->queued = r == 0;
	if (r)
		return r;
	c->parts_count = c->batch->parts;
	cuda_model_end(c->batch);
	return 0;
}

static int decode_segment(struct cuda_model_coder *c, uint32_t i, struct CUstream_st *stream)
{
	const struct gpu_code_run *run = &c->run;
	const uint32_t warps = decode_warps(c), rows = run->blocks_count * run->tokens;
	struct gpu_code_segment s = segment_of(c, i);
	const int32_t *mu = NULL;
	int r = cuda_model_guess(c->batch, i, stream, &mu);

	if (r)
		return r;
	s.mu = (int32_t *)mu;
	decoders[c->dtype - 1u]<<<streams_grid(c), warps * WARP_LANES,
				  code_decode_shared(run->tokens, warps), stream>>>(*run, s);
	code_rows_out_kernel<<<rows, CODE_SMALL_THREADS, 0, stream>>>(*run, s, c->wide);
	r = cudaGetLastError();
	return r ? r : cuda_model_known(c->batch, i, run->patterns, stream);
}

int cuda_model_decode(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		      uint32_t parts_count, const struct cuda_model_block *blocks,
		      struct CUstream_st *stream)
{
	int r = blocks_lay(c, parts, parts_count, blocks, stream);

	if (r == 0)
		r = cuda_model_lay(c->batch, parts, parts_count, true, stream);
	if (r)
		return r;
	code_open_kernel<<<c->run.blocks_count, CODE_CHECK_THREADS, 0, stream>>>(c->run);
	r = cudaGetLastError();
	if (r == 0)
		r = cuda_model_embed(c->batch, stream);
	for (uint32_t i = 0; r == 0 && i < c->segments_count; i++)
		r = decode_segment(c, i, stream);
	return r ? r : states_queue(c, false, stream);
}

/* The pass over rows that are known; guesses stay in mu, patterns where they are. */
static int encode_pass(struct cuda_model_coder *c, struct CUstream_st *stream)
{
	const size_t scalars = (size_t)c->blocks_max * c->run.tokens * c->run.columns;
	struct cuda_model_batch *b = c->batch;
	int32_t *const mu_k = b->mu_k, *const mu_v = b->mu_v;
	int r = cuda_model_embed(b, stream);

	for (uint32_t i = 0; r == 0 && i < c->segments_count; i++) {
		const int32_t *mu;

		if (i % 2u == 0) {
			b->mu_k = c->mu + i * scalars;
			b->mu_v = b->mu_k + scalars;
		}
		r = cuda_model_guess(b, i, stream, &mu);
		if (r == 0)
			r = cuda_model_known(b, i, c->run.patterns + i * c->run.segment_bytes,
					     stream);
	}
	b->mu_k = mu_k;
	b->mu_v = mu_v;
	return r;
}

static int encode_segment(struct cuda_model_coder *c, uint32_t i, struct CUstream_st *stream)
{
	const struct gpu_code_run *run = &c->run;
	const uint32_t each = CODE_SYMBOL_THREADS / WARP_LANES, most = CODE_SYMBOL_BLOCKS * c->sms,
		       items = run->blocks_count * run->tokens * run->streams_count,
		       blocks = (items + each - 1u) / each, grid = blocks < most ? blocks : most;
	struct gpu_code_segment s = segment_of(c, i);

	s.mu = c->mu + (size_t)i * c->blocks_max * run->tokens * run->columns;
	s.patterns = run->patterns + i * run->segment_bytes;
	symbols[c->dtype - 1u]<<<grid, CODE_SYMBOL_THREADS, LAYER_SYMBOL_TABLES, stream>>>(*run, s);
	encoders[c->dtype - 1u]<<<streams_grid(c), streams_each(c) * WARP_LANES, 0, stream>>>(*run,
											      s);
	return cudaGetLastError();
}

int cuda_model_encode(struct cuda_model_coder *c, const struct cuda_model_part *parts,
		      uint32_t parts_count, const struct cuda_model_block *blocks,
		      struct CUstream_st *stream)
{
	const struct gpu_code_run *run = &c->run;
	int r = c->mu ? blocks_lay(c, parts, parts_count, blocks, stream) : cudaErrorNotSupported;

	if (r == 0)
		r = cuda_model_lay(c->batch, parts, parts_count, false, stream);
	if (r)
		return r;
	code_begin_kernel<<<run->blocks_count, WARP_LANES, 0, stream>>>(*run);
	code_rows_in_kernel<<<dim3(run->blocks_count * run->tokens, c->segments_count),
			      CODE_SMALL_THREADS, 0, stream>>>(*run, c->wide);
	r = cudaGetLastError();
	if (r == 0)
		r = encode_pass(c, stream);
	for (uint32_t i = c->segments_count; r == 0 && i-- > 0;)
		r = encode_segment(c, i, stream);
	if (r)
		return r;
	code_finish_kernel<<<run->blocks_count, WARP_LANES, 0, stream>>>(*run);
	code_pack_kernel<<<dim3(run->blocks_count, run->streams_count), WARP_LANES, 0, stream>>>(
		*run);
	code_seal_kernel<<<run->blocks_count, CODE_CHECK_THREADS, 0, stream>>>(*run);
	r = cudaGetLastError();
	return r ? r : states_queue(c, true, stream);
}

/* ---- what came of it ---- */

/* follows: all blocks of the part before this one were right. */
static struct cuda_model_result result_of(const struct gpu_code_state *s, bool follows)
{
	struct cuda_model_result r = {};

	r.payload_bytes = s->bytes;
	r.escapes = s->escapes;
	r.mu_digest = s->digest;
	if (s->status == CODE_SPACE) {
		r.res = -ENOSPC;
	} else if (s->status == CODE_DAMAGED) {
		r.res = -EBADMSG;
	} else if (!follows || s->status == CODE_POSITION) {
		r.res = -ESTALE;
		r.refusal = CODEC_REFUSAL_PREFIX;
	} else if (s->status == CODE_STREAMS) {
		r.res = -EBADMSG;
	} else if (s->bad ||
		   s->digest != s->expect) { /* the bytes were right: it must be the guesses */
		r.res = -ESTALE;
		r.refusal = CODEC_REFUSAL_GUESSES;
	}
	return r;
}

/* The tokens that a part's context keeps, of its blocks from first on; what came of each. */
static uint32_t part_coded(const struct cuda_model_coder *c, uint32_t first, uint32_t count,
			   int error, struct cuda_model_result *ret)
{
	uint32_t keep = c->host_blocks[first].position;
	bool follows = true;

	for (uint32_t i = first; error == 0 && i < first + count; i++) {
		struct gpu_code_state s = c->host_states[i];

		if (c->encodes)
			s.expect = s.digest;
		ret[i] = result_of(&s, follows);
		follows = follows && (c->encodes || ret[i].res == 0);
		keep += follows ? c->run.tokens : 0;
	}
	return keep;
}

int cuda_model_coded(struct cuda_model_coder *c, struct CUstream_st *stream,
		     struct cuda_model_result *ret)
{
	const int error = cudaStreamSynchronize(stream);
	uint32_t n = 0;

	if (!c->queued)
		return cudaErrorInvalidValue;
	c->queued = false;
	for (uint32_t i = 0; i < c->parts_count; i++) {
		const struct cuda_model_part *part = &c->batch->host_parts[i];
		const uint32_t count = part->count / c->run.tokens;
		const uint32_t keep = part_coded(c, n, count, error, ret);

		if (keep < c->host_blocks[n].position + part->count)
			cuda_model_context_truncate(part->context, keep);
		n += count;
	}
	return error;
}
