/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client_rig.c - see client_rig.h.
 */
#include "tests/lib/client_rig.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static void keep_line(void *user, const char *line)
{
	struct rig *rig = user;

	rig->log_lines++;
	(void)snprintf(rig->log_last, sizeof(rig->log_last), "%s", line);
}

int rig_namespace(struct skvc_session *session, const char *model, uint32_t *ret_ns)
{
	struct skvc_segment segments[RIG_SEGMENTS];
	const struct skvc_geometry geometry = {
		.model = model,
		.salt = "salt",
		.salt_bytes = 4,
		.block_tokens = RIG_BLOCK_TOKENS,
		.segments_count = RIG_SEGMENTS,
		.segments = segments,
	};

	for (uint16_t i = 0; i < RIG_SEGMENTS; i++)
		segments[i] = (struct skvc_segment){
			.kind = i % 2 ? SKVC_KIND_V : SKVC_KIND_K,
			.dtype = SKVC_DTYPE_BF16,
			.layer = i / 2,
			.heads = 2,
			.head_dim = 8,
		};
	return skvc_namespace_open(session, &geometry, ret_ns);
}

void rig_init(struct rig *rig, const struct skvc_options *options)
{
	struct skvc_options o = { 0 };

	memset(rig, 0, sizeof(*rig));
	if (options)
		o = *options;
	o.log = keep_line;
	o.log_user = rig;
	rig->daemon = fake_daemon_new();
	assert_int_equal(skvc_open(fake_daemon_path(rig->daemon), &o, &rig->session), 0);
	assert_int_equal(rig_namespace(rig->session, "model", &rig->ns), 0);
	assert_int_equal(skvc_arena_new(rig->session, RIG_BLOCKS * RIG_BLOCK_BYTES, &rig->arena),
			 0);
	assert_int_equal(skvc_register_host(rig->session, rig->ns, rig->arena, 0, RIG_BLOCKS, NULL,
					    &rig->region),
			 0);
}

void rig_deinit(struct rig *rig)
{
	assert_null(skvc_close(rig->session));
	assert_int_equal(fake_daemon_bad_entries(rig->daemon), 0);
	rig->daemon = fake_daemon_free(rig->daemon);
}

struct skvc_key rig_key(uint32_t n)
{
	struct skvc_key key = { .len = 32, .group = n % 2 };

	memset(key.bytes, 0x5a, sizeof(key.bytes));
	memcpy(key.bytes, &n, sizeof(n));
	return key;
}

uint8_t *rig_page(const struct rig *rig, uint32_t block)
{
	return (uint8_t *)skvc_arena_ptr(rig->arena) + (size_t)block * RIG_BLOCK_BYTES;
}

static uint8_t byte_of(uint32_t seed, uint32_t i)
{
	return (uint8_t)((seed * 2654435761u) >> 13 ^ i * 7);
}

void rig_fill(const struct rig *rig, uint32_t block, uint32_t seed)
{
	uint8_t *page = rig_page(rig, block);

	for (uint32_t i = 0; i < RIG_BLOCK_BYTES; i++)
		page[i] = byte_of(seed, i);
}

int rig_is_filled(const struct rig *rig, uint32_t block, uint32_t seed)
{
	const uint8_t *page = rig_page(rig, block);

	for (uint32_t i = 0; i < RIG_BLOCK_BYTES; i++)
		if (page[i] != byte_of(seed, i))
			return 0;
	return 1;
}

struct skvc_completion rig_finish(struct rig *rig, uint64_t job)
{
	struct skvc_completion done = { 0 };

	assert_int_equal(skvc_wait(rig->session, &job, 1, 5000000000ull), 0);
	assert_int_equal(skvc_result(rig->session, job, &done), 0);
	assert_true(done.job == job);
	return done;
}

uint64_t rig_nop(struct rig *rig)
{
	uint64_t job = 0;

	assert_int_equal(skvc_nop(rig->session, &job), 0);
	return job;
}

void rig_store(struct rig *rig, uint32_t count)
{
	struct skvc_key keys[RIG_BLOCKS];
	uint32_t blocks[RIG_BLOCKS];
	const struct skvc_store store = {
		.ns = rig->ns, .region = rig->region, .count = count, .keys = keys, .blocks = blocks
	};
	struct skvc_completion done;
	uint64_t job;

	for (uint32_t i = 0; i < count; i++) {
		keys[i] = rig_key(i);
		blocks[i] = i;
		rig_fill(rig, i, i);
	}
	assert_int_equal(skvc_store(rig->session, &store, &job), 0);
	done = rig_finish(rig, job);
	assert_int_equal(done.res, 0);
	assert_int_equal(done.count, count);
}

uint64_t rig_lease(struct rig *rig, uint32_t count)
{
	struct skvc_key keys[RIG_BLOCKS];
	const struct skvc_lookup lookup = { .ns = rig->ns, .count = count, .keys = keys };
	struct skvc_completion done;
	uint64_t job;

	for (uint32_t i = 0; i < count; i++)
		keys[i] = rig_key(i);
	assert_int_equal(skvc_lookup(rig->session, &lookup, &job), 0);
	done = rig_finish(rig, job);
	assert_int_equal(done.res, 0);
	assert_int_equal(done.count, count);
	return done.lease;
}

uint64_t rig_now_ns(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

unsigned rig_open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	(void)closedir(dir);
	return count;
}
