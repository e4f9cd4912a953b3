/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_engine.c - see gpu_engine.h.
 */
#include "tests/lib/gpu_engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/engine.h"
#include "tests/lib/private_daemon.h"

#define HEADS 4u
#define HEAD_DIM 64u
#define TOKENS 16u
#define SEGMENTS (2u * GPU_ENGINE_LAYERS)
#define SEGMENT_BYTES (TOKENS * HEADS * HEAD_DIM * 2u)
#define FRONT_BYTES 512u /* what lies before the tensor in its allocation */
#define WAIT_NS 60000000000ull

static void layout_make(struct gpu_engine *e)
{
	uint32_t layers = GPU_ENGINE_LAYERS / e->memories; /* in an allocation */
	uint64_t p = SEGMENT_BYTES;

	for (uint32_t i = 0; i < SEGMENTS; i++) {
		uint32_t layer = i / 2 % layers, v = i % 2;
		struct skvc_gpu_stride *s = &e->stride[i];

		*s = (struct skvc_gpu_stride){ .memory = i / 2 / layers,
					       .token_stride = HEADS * HEAD_DIM * 2u,
					       .head_stride = HEAD_DIM * 2u };
		if (e->layout == GPU_ENGINE_PER_LAYER) {
			s->off = FRONT_BYTES + v * e->blocks * p;
			s->block_stride = p;
		} else {
			s->off = FRONT_BYTES + (2u * layer + v) * p;
			s->block_stride = 2u * layers * p;
		}
	}
}

static void memories_make(struct gpu_engine *e, enum gpu_side_kind kind)
{
	uint64_t bytes = FRONT_BYTES + (uint64_t)SEGMENTS / e->memories * e->blocks * SEGMENT_BYTES;

	bytes = (bytes + GPU_SIDE_GRAIN - 1u) / GPU_SIDE_GRAIN * GPU_SIDE_GRAIN;
	for (uint32_t i = 0; i < e->memories; i++) {
		gpu_side_memory_new(&e->side, kind, bytes, &e->memory[i]);
		e->image[i] = gpu_side_host(&e->side, bytes);
	}
}

void gpu_engine_exports(struct gpu_engine *e, struct skvc_gpu_export *ret)
{
	for (uint32_t i = 0; i < e->memories; i++)
		ret[i] = gpu_side_export(&e->side, &e->memory[i]);
}

int gpu_engine_register(struct gpu_engine *e, const struct skvc_gpu_export *exports,
			uint32_t blocks, uint32_t *ret_region)
{
	return skvc_register_gpu(e->session, e->ns, exports, e->memories, blocks, e->stride,
				 ret_region);
}

static void session_open(struct gpu_engine *e, const char *socket)
{
	struct skvc_options o = { .name = "gpu engine" };
	struct skvc_geometry g = kv_data_geometry(&e->data, "gpu");
	int r = skvc_open(socket, &o, &e->session);

	if (r < 0)
		gpu_side_die(__FILE__, __LINE__, strerror(-r));
	gpu_need(skvc_namespace_open(e->session, &g, &e->ns) == 0);
}

int gpu_engine_open(struct gpu_engine *e, const char *socket, uint64_t seed,
		    enum gpu_side_kind kind, enum gpu_engine_layout layout, uint32_t blocks)
{
	struct skvc_gpu_export exports[GPU_ENGINE_MEMORIES_MAX];
	int r;

	memset(e, 0, sizeof(*e));
	r = gpu_side_open(&e->side);
	if (r)
		return r;
	e->seed = seed;
	e->layout = layout;
	e->blocks = blocks;
	e->memories = layout == GPU_ENGINE_PER_LAYER ? GPU_ENGINE_LAYERS : 2;
	gpu_need(blocks <= GPU_ENGINE_BLOCKS_MAX);
	gpu_need(kv_data_init(&e->data, seed, GPU_ENGINE_LAYERS, HEADS, HEAD_DIM, TOKENS,
			      SKVC_DTYPE_BF16) == 0);
	gpu_need(e->data.block_bytes == (size_t)SEGMENTS * SEGMENT_BYTES);
	e->block = malloc(e->data.block_bytes);
	gpu_need(e->block);
	session_open(e, socket);
	layout_make(e);
	memories_make(e, kind);
	gpu_engine_exports(e, exports);
	r = gpu_engine_register(e, exports, blocks, &e->region);
	if (r < 0)
		gpu_side_die(__FILE__, __LINE__, skvc_last_error(e->session));
	return 0;
}

void gpu_engine_close(struct gpu_engine *e)
{
	skvc_close(e->session);
	for (uint32_t i = 0; i < e->memories; i++)
		if (e->memory[i].address)
			gpu_side_memory_free(&e->side, &e->memory[i]);
	/* Images are pinned memory, which goes with the process. */
	if (e->side.sim)
		for (uint32_t i = 0; i < e->memories; i++)
			free(e->image[i]);
	free(e->block);
	kv_data_deinit(&e->data);
	gpu_side_close(&e->side);
}

/* ---- pages ---- */

static uint8_t *image_at(struct gpu_engine *e, uint32_t segment, uint32_t page)
{
	const struct skvc_gpu_stride *s = &e->stride[segment];

	return e->image[s->memory] + s->off + page * s->block_stride;
}

void gpu_engine_image(struct gpu_engine *e, uint64_t chain, uint32_t count)
{
	for (uint32_t page = 0; page < count; page++) {
		kv_data_fill(&e->data, engine_block(chain, page), e->block);
		for (uint32_t i = 0; i < SEGMENTS; i++)
			memcpy(image_at(e, i, page), e->block + (size_t)i * SEGMENT_BYTES,
			       SEGMENT_BYTES);
	}
}

void gpu_engine_write(struct gpu_engine *e)
{
	for (uint32_t i = 0; i < e->memories; i++)
		gpu_side_write(&e->side, &e->memory[i], e->image[i]);
}

void gpu_engine_poison(struct gpu_engine *e, uint8_t value)
{
	for (uint32_t i = 0; i < e->memories; i++)
		gpu_side_fill(&e->side, &e->memory[i], value);
}

static void page_check(struct gpu_engine *e, uint64_t chain, uint32_t page)
{
	kv_data_fill(&e->data, engine_block(chain, page), e->block);
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		uint8_t *at = image_at(e, i, page);

		if (memcmp(at, e->block + (size_t)i * SEGMENT_BYTES, SEGMENT_BYTES) != 0) {
			(void)fprintf(stderr, "WRONG BYTES: chain %llu block %u segment %u\n",
				      (unsigned long long)chain, page, i);
			gpu_side_die(__FILE__, __LINE__, "a block that is reported as exact is");
		}
	}
}

static void page_forget(struct gpu_engine *e, uint32_t page, uint8_t other)
{
	for (uint32_t i = 0; i < SEGMENTS; i++)
		memset(image_at(e, i, page), other, SEGMENT_BYTES);
}

static void all_is(struct gpu_engine *e, uint8_t other)
{
	for (uint32_t m = 0; m < e->memories; m++) {
		const uint8_t *at = e->image[m];
		uint64_t bytes = e->memory[m].bytes, i = 0;

		if (at[0] == other && memcmp(at, at + 1, bytes - 1u) == 0)
			continue;
		while (at[i] == other)
			i++;
		(void)fprintf(stderr, "allocation %u, byte %llu: %02x, not %02x\n", m,
			      (unsigned long long)i, at[i], other);
		gpu_side_die(__FILE__, __LINE__, "nothing else is written");
	}
}

void gpu_engine_check(struct gpu_engine *e, uint64_t chain, uint32_t count, const uint64_t *bitmap,
		      uint8_t other)
{
	for (uint32_t i = 0; i < e->memories; i++)
		gpu_side_read(&e->side, &e->memory[i], e->image[i]);
	for (uint32_t page = 0; page < count; page++) {
		if (bitmap && bitmap[page / 64] >> (page % 64) & 1)
			page_check(e, chain, page);
		/* What a block that failed leaves behind is anyone's. */
		page_forget(e, page, other);
	}
	all_is(e, other);
}

/* ---- jobs ---- */

static void names_make(const struct gpu_engine *e, uint64_t chain, uint32_t count,
		       struct skvc_key *keys, uint32_t *pages)
{
	for (uint32_t i = 0; i < count; i++) {
		keys[i] = kv_data_key(e->seed, engine_block(chain, i));
		pages[i] = i;
	}
}

int gpu_engine_submit_store(struct gpu_engine *e, uint64_t chain, uint32_t count, uint32_t event,
			    uint64_t *ret_job)
{
	struct skvc_key keys[GPU_ENGINE_BLOCKS_MAX];
	uint32_t pages[GPU_ENGINE_BLOCKS_MAX];
	struct skvc_store args = { .ns = e->ns,
				   .region = e->region,
				   .count = count,
				   .keys = keys,
				   .blocks = pages,
				   .ready_event = event };

	names_make(e, chain, count, keys, pages);
	return skvc_store(e->session, &args, ret_job);
}

int gpu_engine_submit_load(struct gpu_engine *e, uint64_t lease, uint32_t count, uint32_t ready,
			   uint32_t done, uint64_t *ret_bitmap, uint64_t *ret_job)
{
	uint32_t pages[GPU_ENGINE_BLOCKS_MAX];
	struct skvc_load args = { .lease = lease,
				  .region = e->region,
				  .count = count,
				  .blocks = pages,
				  .ready_event = ready,
				  .done_event = done,
				  .ret_bitmap = ret_bitmap };

	for (uint32_t i = 0; i < count; i++)
		pages[i] = i;
	return skvc_load(e->session, &args, ret_job);
}

int gpu_engine_finish(struct gpu_engine *e, uint64_t job, struct skvc_completion *ret)
{
	int r = skvc_wait(e->session, &job, 1, WAIT_NS);

	return r < 0 ? r : skvc_result(e->session, job, ret);
}

static int lease_ready(struct gpu_engine *e, uint64_t lease)
{
	uint64_t until = private_daemon_now_ns() + WAIT_NS;
	struct skvc_lease_status s;
	int r;

	while ((r = skvc_lease_poll(e->session, lease, &s)) == 0 &&
	       s.blocks_ready + s.blocks_lost < s.blocks_hit) {
		if (private_daemon_now_ns() > until)
			return -ETIME;
		private_daemon_sleep_ms(1);
	}
	return r;
}

int gpu_engine_lookup(struct gpu_engine *e, uint64_t chain, uint32_t count,
		      struct skvc_completion *ret)
{
	struct skvc_key keys[GPU_ENGINE_BLOCKS_MAX];
	uint32_t pages[GPU_ENGINE_BLOCKS_MAX];
	struct skvc_lookup args = { .ns = e->ns, .count = count, .keys = keys };
	uint64_t job;
	int r;

	*ret = (struct skvc_completion){ 0 };
	names_make(e, chain, count, keys, pages);
	r = skvc_lookup(e->session, &args, &job);
	if (r == 0)
		r = gpu_engine_finish(e, job, ret);
	if (r == 0)
		r = ret->res;
	if (r == 0 && ret->count == 0)
		r = -ENOENT;
	return r < 0 ? r : lease_ready(e, ret->lease);
}

void gpu_engine_release(struct gpu_engine *e, uint64_t lease)
{
	struct skvc_completion c;
	uint64_t job;

	gpu_need(skvc_release(e->session, lease, &job) == 0);
	gpu_need(gpu_engine_finish(e, job, &c) == 0);
	gpu_need(c.res == 0 || c.res == -ESTALE);
}

int gpu_engine_store(struct gpu_engine *e, uint64_t chain, uint32_t count)
{
	struct skvc_completion c = { 0 };
	uint64_t job;
	int r;

	gpu_engine_image(e, chain, count);
	gpu_engine_write(e);
	r = gpu_engine_submit_store(e, chain, count, 0, &job);
	if (r == 0)
		r = gpu_engine_finish(e, job, &c);
	return r < 0 ? r : c.res;
}

int gpu_engine_fetch(struct gpu_engine *e, uint64_t chain, uint32_t count)
{
	uint64_t bitmap[GPU_ENGINE_BLOCKS_MAX / 64] = { 0 }, job;
	struct skvc_completion found, c = { 0 };
	int r = gpu_engine_lookup(e, chain, count, &found);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	gpu_engine_poison(e, GPU_ENGINE_POISON);
	r = gpu_engine_submit_load(e, found.lease, found.count, 0, 0, bitmap, &job);
	if (r == 0)
		r = gpu_engine_finish(e, job, &c);
	if (r < 0)
		return r;
	if (c.res == 0)
		gpu_need(c.count == found.count);
	gpu_need(c.count == (uint32_t)__builtin_popcountll(bitmap[0]));
	gpu_engine_check(e, chain, found.count, bitmap, GPU_ENGINE_POISON);
	gpu_engine_release(e, found.lease);
	return c.count ? (int)c.count : c.res;
}
