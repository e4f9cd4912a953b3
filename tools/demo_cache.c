/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_cache.c - libskvc as an engine uses it: a namespace, an arena that holds the KV pages, a region
 * that says how they lie, and then lookup -> lease -> load, and store.
 *
 * Runs in the engine's thread.  Includes nothing of the project's but the public header.
 */
#include "tools/demo_cache.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sodium.h>

#include "tools/progress.h"

#define LOOKUP_WAIT_NS 1000000000u /* a prompt waits for this: better a miss than more */
#define WAIT_NS 10000000000u	   /* longer than the daemon's own deadlines */
#define LEASE_POLL_NS 200000	   /* between two looks at a lease: 0.2 ms */

__attribute__((format(printf, 2, 3))) static void give_up(struct demo_cache *c, const char *format,
							  ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(c->note, sizeof(c->note), format, args);
	va_end(args);
}

/* The call that failed, in the library's words when it has some. */
static void give_up_call(struct demo_cache *c, const char *call, int error)
{
	const char *why = c->session ? skvc_last_error(c->session) : "";

	give_up(c, "%s: %s%s%s", call, strerror(-error), why[0] ? ": " : "", why);
}

static int open_namespace(struct demo_cache *c, const struct model *m, const char *name)
{
	const struct model_config *config = c->config;
	const uint32_t count = 2 * config->layers;
	struct skvc_segment *segments = calloc(count, sizeof(segments[0]));
	char model[SKVC_KEY_BYTES * 2 + 128];
	struct skvc_geometry geometry = {
		.model = model,
		.block_tokens = MODEL_BLOCK_TOKENS,
		.segments_count = count,
		.segments = segments,
	};
	int rc;

	if (!segments)
		return -ENOMEM;
	/* A name for people, a digest for the machine: another model is never taken for this one. */
	(void)snprintf(model, 100, "%s@", name);
	sodium_bin2hex(model + strlen(model), sizeof(model) - strlen(model), model_identity(m),
		       MODEL_IDENTITY_BYTES / 2);
	for (uint32_t i = 0; i < count; i++)
		segments[i] = (struct skvc_segment){
			.kind = i % 2 ? SKVC_KIND_V : SKVC_KIND_K,
			.dtype = SKVC_DTYPE_BF16,
			.layer = (uint16_t)(i / 2),
			.heads = (uint16_t)config->kv_heads,
			.head_dim = (uint16_t)config->head_dim,
		};
	rc = skvc_namespace_open(c->session, &geometry, &c->ns);
	free(segments);
	return rc;
}

/* Tells the daemon that segment i of block b lies where model_page() says. */
static int register_pages(struct demo_cache *c, struct skvc_arena *arena)
{
	const struct model_config *config = c->config;
	const uint32_t count = 2 * config->layers;
	const uint64_t segment_bytes = model_segment_bytes(config);
	struct skvc_stride *strides = calloc(count, sizeof(strides[0]));
	int rc;

	if (!strides)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		strides[i] = (struct skvc_stride){
			.off = i * c->pages.blocks_count * segment_bytes,
			.block_stride = segment_bytes,
			.token_stride = segment_bytes / MODEL_BLOCK_TOKENS,
			.head_stride = config->head_dim * sizeof(uint16_t),
		};
	rc = skvc_register_host(c->session, c->ns, arena, 0, c->pages.blocks_count, strides,
				&c->region);
	free(strides);
	return rc;
}

/* 0, or a negative errno with its note: then the session is of no use. */
static int open_session(struct demo_cache *c, const struct model *m, const char *name,
			const char *socket)
{
	const struct skvc_options options = { .name = "skvc-demo" };
	struct skvc_arena *arena = NULL;
	int rc;

	rc = skvc_open(socket, &options, &c->session);
	if (rc < 0) {
		give_up(c, "no daemon at %s: %s", socket ? socket : SKVC_DEFAULT_SOCKET,
			strerror(-rc));
		return rc;
	}
	rc = open_namespace(c, m, name);
	if (rc < 0) {
		give_up_call(c, "skvc_namespace_open", rc);
		return rc;
	}
	rc = skvc_arena_new(c->session, model_pages_bytes(c->config, c->pages.blocks_count),
			    &arena);
	if (rc < 0) {
		give_up_call(c, "skvc_arena_new", rc);
		return rc;
	}
	rc = register_pages(c, arena);
	if (rc < 0) {
		give_up_call(c, "skvc_register_host", rc);
		return rc;
	}
	c->pages.base = skvc_arena_ptr(arena); /* freed with the session */
	return 0;
}

int demo_cache_open(struct demo_cache *c, const struct model *m, const char *name,
		    uint32_t blocks_count, bool use_daemon, const char *socket)
{
	assert(blocks_count && blocks_count <= DEMO_BLOCKS_MAX);
	*c = (struct demo_cache){ .config = model_config(m) };
	c->pages.blocks_count = blocks_count;
	if (use_daemon && open_session(c, m, name, socket) < 0)
		c->session = skvc_close(c->session);
	if (c->pages.base)
		return 0;
	c->memory = calloc(1, model_pages_bytes(c->config, blocks_count));
	c->pages.base = c->memory;
	return c->memory ? 0 : -ENOMEM;
}

void demo_cache_close(struct demo_cache *c)
{
	c->session = skvc_close(c->session);
	free(c->memory);
	c->memory = NULL;
	c->pages.base = NULL;
}

void demo_cache_keys(const struct model *m, const int32_t *ids, uint32_t blocks_count,
		     struct skvc_key *ret_keys)
{
	const uint8_t *parent = model_identity(m);
	crypto_generichash_state state;

	for (uint32_t i = 0; i < blocks_count; i++) {
		ret_keys[i] = (struct skvc_key){ .len = SKVC_KEY_BYTES };
		crypto_generichash_init(&state, NULL, 0, SKVC_KEY_BYTES);
		crypto_generichash_update(&state, parent, SKVC_KEY_BYTES);
		crypto_generichash_update(&state, (const uint8_t *)(ids + i * MODEL_BLOCK_TOKENS),
					  MODEL_BLOCK_TOKENS * sizeof(ids[0]));
		crypto_generichash_final(&state, ret_keys[i].bytes, SKVC_KEY_BYTES);
		parent = ret_keys[i].bytes;
	}
}

/*
 * A daemon that does not answer may still hold the arena and write there when it comes to: the pages
 * go to memory of our own, as they are, and the session ends (skvc_close waits 5 s at most).
 */
static void abandon(struct demo_cache *c)
{
	const uint64_t bytes = model_pages_bytes(c->config, c->pages.blocks_count);

	c->memory = malloc(bytes);
	if (!c->memory) {
		/* There is no other place where this engine's pages would be safe. */
		fprintf(stderr, "skvc-demo: skvcd does not answer, and no memory to go on alone\n");
		exit(EXIT_FAILURE);
	}
	memcpy(c->memory, c->pages.base, bytes);
	c->pages.base = c->memory;
	c->session = skvc_close(c->session);
}

/* Waits for a job and takes its end.  The completion's own result comes back. */
static int finish(struct demo_cache *c, const char *call, uint64_t job, uint64_t wait_ns,
		  struct skvc_completion *ret)
{
	int rc = skvc_wait(c->session, &job, 1, wait_ns);

	if (rc == -ETIME) {
		give_up(c, "%s: no answer within %.0f s", call, (double)wait_ns * 1e-9);
		abandon(c);
		return rc;
	}
	if (rc == 0 || rc == -EPIPE)
		rc = skvc_result(c->session, job, ret);
	if (rc < 0) {
		give_up_call(c, call, rc);
		return rc;
	}
	if (ret->res < 0 && ret->res != -ENOENT)
		give_up(c, "%s: %s", call, skvc_reason_text(ret->reason));
	return ret->res;
}

/* What lies on NVMe comes to memory first; a lookup has started that. */
static int wait_ready(struct demo_cache *c, uint64_t lease, uint32_t *ret_ready)
{
	const struct timespec pause = { .tv_nsec = LEASE_POLL_NS };
	const uint64_t until_ns = progress_now_ns() + WAIT_NS;
	struct skvc_lease_status status;
	int rc;

	for (;;) {
		rc = skvc_lease_poll(c->session, lease, &status);
		if (rc < 0)
			break;
		if (status.blocks_ready + status.blocks_lost >= status.blocks_hit) {
			*ret_ready = status.blocks_hit;
			return 0;
		}
		if (progress_now_ns() > until_ns) {
			rc = -ETIME;
			break;
		}
		(void)nanosleep(&pause, NULL);
	}
	give_up_call(c, "skvc_lease_poll", rc);
	return rc;
}

static void load_lease(struct demo_cache *c, uint64_t lease, const uint32_t *table, uint32_t count)
{
	uint64_t bitmap[DEMO_BLOCKS_MAX / 64] = { 0 }, job;
	const struct skvc_load args = {
		.lease = lease,
		.region = c->region,
		.count = count,
		.blocks = table,
		.ret_bitmap = bitmap,
	};
	struct skvc_completion done = { .res = 0 };
	int rc;

	rc = skvc_load(c->session, &args, &job);
	if (rc < 0) {
		give_up_call(c, "skvc_load", rc);
		return;
	}
	/* Some blocks may be exact even when the job as a whole has failed: but not without an end. */
	if (finish(c, "skvc_load", job, WAIT_NS, &done) == -ETIME)
		return;
	while (c->restored_blocks < count &&
	       bitmap[c->restored_blocks / 64] >> c->restored_blocks % 64 & 1)
		c->restored_blocks++;
}

void demo_cache_load(struct demo_cache *c, const struct skvc_key *keys, const int32_t *ids,
		     const uint32_t *table, uint32_t count)
{
	const struct skvc_lookup args = {
		.ns = c->ns,
		.count = count,
		.keys = keys,
		.tokens = (const uint32_t *)ids,
	};
	struct skvc_completion found = { .res = 0 };
	uint32_t ready = 0;
	uint64_t job;
	int rc;

	c->hit_blocks = 0;
	c->restored_blocks = 0;
	if (!c->session || !count)
		return;
	rc = skvc_lookup(c->session, &args, &job);
	if (rc < 0) {
		give_up_call(c, "skvc_lookup", rc);
		return;
	}
	if (finish(c, "skvc_lookup", job, LOOKUP_WAIT_NS, &found) < 0 || !found.count)
		return;
	c->hit_blocks = found.count;
	if (!found.pending || wait_ready(c, found.lease, &ready) == 0)
		load_lease(c, found.lease, table, found.count);
	/* Its end is nobody's concern: the lease has a deadline of its own. */
	if (c->session)
		(void)skvc_release(c->session, found.lease, &job);
}

static uint32_t count_bits(const uint64_t *bitmap, uint32_t count)
{
	uint32_t bits = 0;

	for (uint32_t i = 0; i < count; i++)
		bits += bitmap[i / 64] >> i % 64 & 1;
	return bits;
}

void demo_cache_store(struct demo_cache *c, const struct skvc_key *keys, const int32_t *ids,
		      const uint32_t *table, uint32_t first, uint32_t count)
{
	uint64_t bitmap[DEMO_BLOCKS_MAX / 64] = { 0 }, job;
	const struct skvc_store args = {
		.ns = c->ns,
		.region = c->region,
		.count = count,
		.keys = keys + first,
		.parent = first ? &keys[first - 1] : NULL,
		.tokens = (const uint32_t *)ids + (size_t)first * MODEL_BLOCK_TOKENS,
		.blocks = table + first,
		.ret_bitmap = bitmap,
	};
	struct skvc_completion done = { .res = 0 };
	int rc;

	c->stored_blocks = 0;
	c->raw_bytes = 0;
	c->stored_bytes = 0;
	if (!c->session || !count)
		return;
	rc = skvc_store(c->session, &args, &job);
	if (rc < 0) {
		give_up_call(c, "skvc_store", rc);
		return;
	}
	/* DONE is COMMITTED; that the pages are free earlier does not matter to us. */
	(void)finish(c, "skvc_store", job, WAIT_NS, &done);
	c->stored_blocks = count_bits(bitmap, count);
	c->raw_bytes = done.raw_bytes;
	c->stored_bytes = done.stored_bytes;
}
