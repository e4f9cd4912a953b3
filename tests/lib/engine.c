/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.c - see engine.h.  Not thread-safe: one engine, one thread.
 */
#include "tests/lib/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/lib/private_daemon.h"

#define WAIT_NS 30000000000ull

static int complain(const struct engine *e, const char *what, int r)
{
	fprintf(stderr, "%s: %s: %s\n", what, strerror(-r),
		e->session ? skvc_last_error(e->session) : "");
	return r;
}

static uint32_t either(uint32_t given, uint32_t otherwise)
{
	return given ? given : otherwise;
}

int engine_open(struct engine *e, const char *socket, const struct engine_options *o)
{
	struct skvc_options options = {
		.role = o->role,
		.sq_entries = o->sq_entries,
		.spin_ns = o->spin_ns,
		.timeout_ns = o->timeout_ns,
		.connect_timeout_ns = o->timeout_ns,
		.name = o->name ? o->name : "engine",
	};
	struct skvc_geometry geometry;
	int r;

	memset(e, 0, sizeof(*e));
	e->blocks = either(o->blocks, 32);
	e->salt = o->seed;
	r = kv_data_init(&e->data, o->seed, either(o->layers, 2), (uint16_t)either(o->heads, 2),
			 (uint16_t)either(o->head_dim, 64), either(o->block_tokens, 16),
			 (enum skvc_dtype)either(o->dtype, SKVC_DTYPE_BF16));
	e->data.follows = o->follows;
	if (r < 0)
		return r;
	r = skvc_open(socket, &options, &e->session);
	if (r < 0)
		return complain(e, "skvc_open", r);
	geometry = kv_data_geometry(&e->data, o->model ? o->model : "test");
	r = skvc_namespace_open(e->session, &geometry, &e->ns);
	if (r < 0)
		return complain(e, "skvc_namespace_open", r);
	if (o->role == SKVC_ROLE_SCHEDULER)
		return 0;
	r = skvc_arena_new(e->session, (uint64_t)e->blocks * e->data.block_bytes, &e->arena);
	if (r < 0)
		return complain(e, "skvc_arena_new", r);
	e->pages = skvc_arena_ptr(e->arena);
	r = skvc_register_host(e->session, e->ns, e->arena, 0, e->blocks, NULL, &e->region);
	return r < 0 ? complain(e, "skvc_register_host", r) : 0;
}

void engine_close(struct engine *e)
{
	e->session = skvc_close(e->session);
	kv_data_deinit(&e->data);
	e->arena = NULL;
	e->pages = NULL;
}

struct skvc_key engine_key(const struct engine *e, uint64_t chain, uint32_t position)
{
	return kv_data_key(e->salt, engine_block(chain, position));
}

uint8_t *engine_page(const struct engine *e, uint32_t page)
{
	return e->pages + (size_t)page * e->data.block_bytes;
}

static void make_keys(const struct engine *e, uint64_t chain, uint32_t first, uint32_t count,
		      struct skvc_key *ret)
{
	for (uint32_t i = 0; i < count; i++)
		ret[i] = engine_key(e, chain, first + i);
}

static void make_pages(uint32_t count, uint32_t *ret)
{
	for (uint32_t i = 0; i < count; i++)
		ret[i] = i;
}

int engine_submit_store(struct engine *e, uint64_t chain, uint32_t first, uint32_t count,
			uint64_t *ret_job)
{
	struct skvc_key keys[ENGINE_BLOCKS_MAX], parent;
	uint32_t pages[ENGINE_BLOCKS_MAX];
	struct skvc_store args = {
		.ns = e->ns,
		.region = e->region,
		.count = count,
		.keys = keys,
		.blocks = pages,
	};

	if (count > e->blocks || count > ENGINE_BLOCKS_MAX)
		return -E2BIG;
	make_keys(e, chain, first, count, keys);
	make_pages(count, pages);
	if (first > 0) {
		parent = engine_key(e, chain, first - 1);
		args.parent = &parent;
	}
	for (uint32_t i = 0; i < count; i++)
		kv_data_fill(&e->data, engine_block(chain, first + i), engine_page(e, i));
	return skvc_store(e->session, &args, ret_job);
}

int engine_submit_lookup(struct engine *e, uint64_t chain, uint32_t count, uint64_t *ret_job)
{
	struct skvc_key keys[ENGINE_BLOCKS_MAX];
	struct skvc_lookup args = { .ns = e->ns, .count = count, .keys = keys };

	if (count > ENGINE_BLOCKS_MAX)
		return -E2BIG;
	make_keys(e, chain, 0, count, keys);
	return skvc_lookup(e->session, &args, ret_job);
}

int engine_submit_load(struct engine *e, uint64_t lease, uint32_t first, uint32_t count,
		       uint64_t *ret_bitmap, uint64_t *ret_job)
{
	uint32_t pages[ENGINE_BLOCKS_MAX];
	struct skvc_load args = {
		.lease = lease,
		.region = e->region,
		.first = first,
		.count = count,
		.blocks = pages,
		.ret_bitmap = ret_bitmap,
	};

	if (count > e->blocks || count > ENGINE_BLOCKS_MAX)
		return -E2BIG;
	make_pages(count, pages);
	return skvc_load(e->session, &args, ret_job);
}

int engine_finish(struct engine *e, uint64_t job, struct skvc_completion *ret)
{
	int r = skvc_wait(e->session, &job, 1, WAIT_NS);

	if (r < 0)
		return r;
	return skvc_result(e->session, job, ret);
}

int engine_store(struct engine *e, uint64_t chain, uint32_t first, uint32_t count,
		 struct skvc_completion *ret)
{
	uint64_t job = 0;
	int r = engine_submit_store(e, chain, first, count, &job);

	if (r != 0)
		return r;
	r = engine_finish(e, job, ret);
	return r != 0 ? r : ret->res;
}

int engine_lookup(struct engine *e, uint64_t chain, uint32_t count, struct skvc_completion *ret)
{
	uint64_t job = 0;
	int r = engine_submit_lookup(e, chain, count, &job);

	if (r != 0)
		return r;
	r = engine_finish(e, job, ret);
	return r != 0 ? r : ret->res;
}

int engine_release(struct engine *e, uint64_t lease)
{
	struct skvc_completion c;
	uint64_t job;
	int r = skvc_release(e->session, lease, &job);

	if (r != 0)
		return r;
	r = engine_finish(e, job, &c);
	return r != 0 ? r : c.res;
}

int engine_lease_ready(struct engine *e, uint64_t lease, struct skvc_lease_status *ret)
{
	uint64_t until = private_daemon_now_ns() + WAIT_NS;
	struct skvc_lease_status status;
	int r;

	do {
		r = skvc_lease_poll(e->session, lease, &status);
		if (r < 0)
			return r;
		if (status.blocks_ready + status.blocks_lost >= status.blocks_hit) {
			if (ret)
				*ret = status;
			return 0;
		}
		private_daemon_sleep_ms(1);
	} while (private_daemon_now_ns() < until);
	return -ETIME;
}

/* How many of the loaded blocks are exact; -EBADMSG when one that is reported as exact is not. */
static int count_exact(const struct engine *e, uint64_t chain, uint32_t count,
		       const uint64_t *bitmap)
{
	int exact = 0;

	for (uint32_t i = 0; i < count; i++) {
		if (!(bitmap[i / 64] >> (i % 64) & 1))
			continue;
		if (kv_data_compare(&e->data, engine_block(chain, i), engine_page(e, i))) {
			fprintf(stderr, "WRONG BYTES: chain %llu block %u reported as exact\n",
				(unsigned long long)chain, i);
			return -EBADMSG;
		}
		exact++;
	}
	return exact;
}

int engine_fetch(struct engine *e, uint64_t chain, uint32_t count)
{
	uint64_t bitmap[ENGINE_BLOCKS_MAX / 64] = { 0 };
	struct skvc_completion found = { 0 }, loaded = { 0 };
	uint64_t job;
	int r, exact;

	r = engine_lookup(e, chain, count, &found);
	if (r < 0 || found.count == 0)
		return r == -ENOENT ? 0 : r;
	r = engine_lease_ready(e, found.lease, NULL);
	if (r < 0)
		return r;
	memset(e->pages, 0xa5, (size_t)found.count * e->data.block_bytes);
	r = engine_submit_load(e, found.lease, 0, found.count, bitmap, &job);
	if (r == 0)
		r = engine_finish(e, job, &loaded);
	if (r < 0)
		return r;
	exact = count_exact(e, chain, found.count, bitmap);
	if (exact >= 0 && loaded.res == 0 && (uint32_t)exact != found.count) {
		fprintf(stderr, "load says success, %d of %u blocks are marked\n", exact,
			found.count);
		exact = -EBADMSG;
	}
	r = engine_release(e, found.lease);
	return r < 0 && r != -ESTALE ? r : exact;
}
