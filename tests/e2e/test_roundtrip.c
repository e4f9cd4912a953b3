/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_roundtrip.c - what goes in comes out byte-exact: through the host pool and through NVMe, in every
 * element type and layout, by the asynchronous calls and by the simple ones, across sessions and roles.
 */
#include "tests/lib/e2e.h"

#define TIER_BYTES (128u << 20)

static struct private_daemon daemon_;
static uint64_t seed;

static int start_plain(void **state)
{
	(void)state;
	return private_daemon_start(&daemon_, 0, NULL);
}

static int stop(void **state)
{
	(void)state;
	return private_daemon_died(&daemon_) ? -1 : private_daemon_stop(&daemon_);
}

static void open_engine(struct engine *e, const char *model)
{
	struct engine_options o = { .seed = seed, .model = model };

	assert_ok(engine_open(e, daemon_.socket, &o));
}

static void test_store_then_load(void **state)
{
	struct skvc_completion c;
	struct engine e;

	(void)state;
	open_engine(&e, "plain");
	assert_int_equal(engine_fetch(&e, 1, 16), 0);
	assert_ok(engine_store(&e, 1, 0, 16, &c));
	assert_int_equal(c.count, 16);
	assert_int_equal(c.raw_bytes, 16 * e.data.block_bytes);
	assert_true(c.stored_bytes > 0 && c.stored_bytes < c.raw_bytes);
	assert_int_equal(engine_fetch(&e, 1, 16), 16);
	engine_close(&e);
}

static void test_a_prefix_is_found_as_far_as_it_goes(void **state)
{
	struct skvc_completion c;
	struct engine e;

	(void)state;
	open_engine(&e, "prefix");
	assert_ok(engine_store(&e, 1, 0, 5, &c));
	assert_ok(engine_store(&e, 1, 7, 2, &c)); /* a hole at 5 and 6 */
	assert_ok(engine_lookup(&e, 1, 12, &c));
	assert_int_equal(c.count, 5);
	assert_int_equal(c.pending, 0);
	assert_ok(engine_release(&e, c.lease));
	assert_res(engine_release(&e, c.lease), -ESTALE);
	assert_int_equal(engine_fetch(&e, 1, 12), 5);
	assert_ok(engine_store(&e, 1, 5, 2, &c));
	assert_int_equal(engine_fetch(&e, 1, 12), 9);
	engine_close(&e);
}

static void test_storing_twice_keeps_one(void **state)
{
	struct skvc_completion c;
	struct engine e;
	uint64_t blocks;

	(void)state;
	open_engine(&e, "twice");
	assert_ok(engine_store(&e, 1, 0, 8, &c));
	blocks = daemon_stats_now(&daemon_, "blocks");
	assert_ok(engine_store(&e, 1, 0, 8, &c));
	assert_int_equal(c.count, 8);
	assert_int_equal(daemon_stats_now(&daemon_, "blocks"), blocks);
	assert_true(daemon_stats_get("store_duplicate_blocks") >= 8);
	assert_int_equal(engine_fetch(&e, 1, 8), 8);
	engine_close(&e);
}

static void test_every_element_type(void **state)
{
	static const enum skvc_dtype types[] = { SKVC_DTYPE_U8, SKVC_DTYPE_BF16, SKVC_DTYPE_FP16,
						 SKVC_DTYPE_E4M3, SKVC_DTYPE_E5M2 };
	struct skvc_completion c;

	(void)state;
	for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		struct engine_options o = {
			.seed = seed, .model = "types", .dtype = types[i], .blocks = 64
		};
		struct engine e;

		assert_ok(engine_open(&e, daemon_.socket, &o));
		/* Long enough for a profile to be fitted in between: 512 tokens are 32 blocks. */
		for (uint32_t run = 0; run < 3; run++)
			assert_ok(engine_store(&e, run, 0, 64, &c));
		for (uint32_t run = 0; run < 3; run++)
			assert_int_equal(engine_fetch(&e, run, 64), 64);
		engine_close(&e);
	}
}

/* Bytes that no statistics fit: extremes, NaNs, noise, all zero.  They must come back all the same. */
static void test_any_bytes(void **state)
{
	struct skvc_completion c;
	struct engine e;
	struct rng r;
	uint8_t *copy;

	(void)state;
	open_engine(&e, "any");
	rng_init(&r, seed);
	assert_ok(engine_store(&e, 1, 0, 32, &c)); /* a profile for ordinary data */
	copy = malloc(32 * e.data.block_bytes);
	assert_non_null(copy);
	for (uint32_t i = 0; i < 32; i++) {
		uint8_t *page = engine_page(&e, i);

		if (i % 4 == 0)
			memset(page, i % 8 ? 0xff : 0, e.data.block_bytes);
		else
			rng_fill(&r, page,
				 i % 4 == 1 ? e.data.block_bytes / 3 : e.data.block_bytes);
	}
	memcpy(copy, e.pages, 32 * e.data.block_bytes);
	for (uint32_t i = 0; i < 32; i++) {
		struct skvc_key key = engine_key(&e, 2, i);

		assert_ok(skvc_put(e.session, e.ns, &key, copy + i * e.data.block_bytes,
				   e.data.block_bytes));
	}
	for (uint32_t i = 0; i < 32; i++) {
		struct skvc_key key = engine_key(&e, 2, i);

		assert_ok(skvc_get(e.session, e.ns, &key, engine_page(&e, 0), e.data.block_bytes));
		assert_memory_equal(engine_page(&e, 0), copy + i * e.data.block_bytes,
				    e.data.block_bytes);
	}
	free(copy);
	engine_close(&e);
}

/* The first blocks of a namespace are what its profile is fitted on: let them be of no use for that. */
static void test_a_profile_of_nonsense(void **state)
{
	static const uint8_t fill[] = { 0x00, 0xff, 0x7f, 0x80 };
	struct engine_options o = { .seed = seed, .blocks = 64 };
	struct skvc_completion c;
	char model[32];
	struct rng r;

	(void)state;
	rng_init(&r, seed);
	for (unsigned i = 0; i < 8; i++) {
		struct engine e;

		(void)snprintf(model, sizeof(model), "nonsense %u", i);
		o.model = model;
		assert_ok(engine_open(&e, daemon_.socket, &o));
		for (uint32_t b = 0; b < 64; b++) {
			struct skvc_key key = engine_key(&e, 7, b);
			uint8_t *page = engine_page(&e, 0);

			if (i < 4)
				memset(page, fill[i], e.data.block_bytes);
			else if (i < 6) /* constant elements, of two kinds */
				for (size_t at = 0; at < e.data.block_bytes; at++)
					page[at] = at % 2   ? 0x3f
						   : i == 4 ? 0x80
							    : (uint8_t)(at >> 1 & 1);
			else
				rng_fill(&r, page, e.data.block_bytes);
			assert_ok(skvc_put(e.session, e.ns, &key, page, e.data.block_bytes));
		}
		assert_ok(engine_store(&e, 1, 0, 64, &c)); /* and now ordinary data */
		assert_int_equal(engine_fetch(&e, 1, 64), 64);
		engine_close(&e);
	}
}

static void test_put_and_get(void **state)
{
	struct skvc_key key, other;
	struct engine e;
	uint8_t *data;

	(void)state;
	open_engine(&e, "simple");
	data = malloc(e.data.block_bytes);
	assert_non_null(data);
	key = engine_key(&e, 9, 0);
	other = engine_key(&e, 9, 1);
	assert_res(skvc_get(e.session, e.ns, &key, data, e.data.block_bytes), -ENOENT);
	kv_data_fill(&e.data, 77, data);
	assert_ok(skvc_put(e.session, e.ns, &key, data, e.data.block_bytes));
	assert_res(skvc_put(e.session, e.ns, &key, data, e.data.block_bytes), -EEXIST);
	assert_res(skvc_put(e.session, e.ns, &other, data, e.data.block_bytes - 1), -EINVAL);
	memset(data, 0, e.data.block_bytes);
	assert_ok(skvc_get(e.session, e.ns, &key, data, e.data.block_bytes));
	assert_int_equal(kv_data_compare(&e.data, 77, data), 0);
	assert_res(skvc_get(e.session, e.ns, &other, data, e.data.block_bytes), -ENOENT);
	free(data);
	engine_close(&e);
}

/* The layout of engines that keep one tensor per layer and kind: [segment][block][head][token][dim]. */
static void test_strided_region(void **state)
{
	struct skvc_stride strides[4];
	struct skvc_completion c;
	uint64_t segment_bytes, bitmap = 0, job;
	uint32_t region, pages[4] = { 3, 1, 0, 2 };
	struct skvc_key keys[4];
	struct engine e;

	(void)state;
	open_engine(&e, "strided");
	segment_bytes = e.data.block_bytes / 4;
	for (uint32_t i = 0; i < 4; i++)
		strides[i] = (struct skvc_stride){
			.off = i * segment_bytes * 8,
			.block_stride = segment_bytes,
			.token_stride = (uint64_t)64 * 2,
			.head_stride = (uint64_t)64 * 2 * 16,
		};
	assert_ok(skvc_register_host(e.session, e.ns, e.arena, 0, 8, strides, &region));
	for (uint32_t i = 0; i < 4; i++)
		keys[i] = engine_key(&e, 3, i);
	for (uint32_t b = 0; b < 4; b++) {
		uint8_t *packed = malloc(e.data.block_bytes);

		assert_non_null(packed);
		kv_data_fill(&e.data, engine_block(3, b), packed);
		for (uint32_t row = 0; row < 4 * 16 * 2; row++) {
			uint32_t segment = row / 32, token = row / 2 % 16, head = row % 2;

			memcpy(e.pages + strides[segment].off + pages[b] * segment_bytes +
				       token * strides[segment].token_stride +
				       head * strides[segment].head_stride,
			       packed + (size_t)row * 128, 128);
		}
		free(packed);
	}
	assert_ok(skvc_store(e.session,
			     &(struct skvc_store){ .ns = e.ns,
						   .region = region,
						   .count = 4,
						   .keys = keys,
						   .blocks = pages,
						   .ret_bitmap = &bitmap },
			     &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_ok(c.res);
	assert_int_equal(bitmap, 0xf);
	/* What was stored from one layout is loaded into the other. */
	assert_int_equal(engine_fetch(&e, 3, 4), 4);
	assert_ok(skvc_unregister(e.session, region));
	assert_res(skvc_unregister(e.session, region), -ESTALE);
	engine_close(&e);
}

static void test_skipped_tokens_stay_untouched(void **state)
{
	const uint32_t skip = 5, rows_bytes = 2 * 64 * 2; /* heads * head_dim * bf16 */
	uint32_t page = 0;
	struct skvc_completion c;
	struct engine e;
	uint8_t *expected;
	uint64_t job;

	(void)state;
	open_engine(&e, "skip");
	assert_ok(engine_store(&e, 1, 0, 1, &c));
	assert_ok(engine_lookup(&e, 1, 1, &c));
	memset(e.pages, 0x5a, e.data.block_bytes);
	assert_ok(skvc_load(e.session,
			    &(struct skvc_load){ .lease = c.lease,
						 .region = e.region,
						 .count = 1,
						 .blocks = &page,
						 .skip_tokens = skip },
			    &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_ok(c.res);
	expected = malloc(e.data.block_bytes);
	assert_non_null(expected);
	kv_data_fill(&e.data, engine_block(1, 0), expected);
	for (uint32_t segment = 0; segment < 4; segment++)
		memset(expected + (size_t)segment * 16 * rows_bytes, 0x5a,
		       (size_t)skip * rows_bytes);
	assert_memory_equal(e.pages, expected, e.data.block_bytes);
	free(expected);
	engine_close(&e);
}

static void test_token_ids_are_checked(void **state)
{
	uint32_t tokens[2 * 16], page[2] = { 0, 1 };
	struct skvc_key keys[2];
	struct skvc_completion c;
	struct engine e;
	uint64_t job;

	(void)state;
	open_engine(&e, "tokens");
	for (uint32_t i = 0; i < 32; i++)
		tokens[i] = 100 + i;
	for (uint32_t i = 0; i < 2; i++) {
		keys[i] = engine_key(&e, 1, i);
		kv_data_fill(&e.data, engine_block(1, i), engine_page(&e, i));
	}
	assert_ok(skvc_store(e.session,
			     &(struct skvc_store){ .ns = e.ns,
						   .region = e.region,
						   .count = 2,
						   .keys = keys,
						   .tokens = tokens,
						   .blocks = page },
			     &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_ok(c.res);
	tokens[20]++; /* of the second block */
	assert_ok(skvc_lookup(
		e.session,
		&(struct skvc_lookup){ .ns = e.ns, .count = 2, .keys = keys, .tokens = tokens },
		&job));
	assert_ok(engine_finish(&e, job, &c));
	assert_int_equal(c.count, 1);
	assert_string_equal(skvc_reason_name(c.reason), "tokens-differ");
	tokens[20]--;
	assert_ok(skvc_lookup(
		e.session,
		&(struct skvc_lookup){ .ns = e.ns, .count = 2, .keys = keys, .tokens = tokens },
		&job));
	assert_ok(engine_finish(&e, job, &c));
	assert_int_equal(c.count, 2);
	engine_close(&e);
}

static void test_drop_touch_pin(void **state)
{
	struct skvc_key keys[4];
	struct skvc_completion c;
	struct engine e;
	uint64_t job;

	(void)state;
	open_engine(&e, "drop");
	assert_ok(engine_store(&e, 1, 0, 4, &c));
	for (uint32_t i = 0; i < 4; i++)
		keys[i] = engine_key(&e, 1, i);
	assert_ok(skvc_touch(e.session, e.ns, keys, 4, &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_int_equal(c.count, 4);
	assert_ok(skvc_pin(e.session, e.ns, keys, 4, 1000000000, &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_int_equal(c.count, 4);
	assert_ok(skvc_drop(e.session, e.ns, keys + 2, 2, &job));
	assert_ok(engine_finish(&e, job, &c));
	assert_int_equal(c.count, 2);
	assert_int_equal(engine_fetch(&e, 1, 4), 2);
	engine_close(&e);
}

static void test_two_clients_of_one_tenant_share(void **state)
{
	struct skvc_completion c;
	struct engine writer, reader, stranger;

	(void)state;
	open_engine(&writer, "shared");
	open_engine(&reader, "shared");
	open_engine(&stranger, "shared, another revision");
	assert_ok(engine_store(&writer, 1, 0, 16, &c));
	assert_int_equal(engine_fetch(&reader, 1, 16), 16);
	assert_int_equal(engine_fetch(&stranger, 1, 16), 0);
	engine_close(&writer);
	assert_int_equal(engine_fetch(&reader, 1, 16), 16); /* they belong to the tenant */
	engine_close(&reader);
	engine_close(&stranger);
}

static void test_scheduler_leases_workers_load(void **state)
{
	struct engine_options o = { .seed = seed, .model = "roles", .role = SKVC_ROLE_SCHEDULER };
	struct engine scheduler, rank[2];
	struct skvc_completion found, c;
	uint64_t bitmap = 0, job;
	struct skvc_arena *arena;

	(void)state;
	assert_ok(engine_open(&scheduler, daemon_.socket, &o));
	open_engine(&rank[0], "roles");
	open_engine(&rank[1], "roles");
	assert_res(skvc_arena_new(scheduler.session, 4096, &arena), -EPERM);
	assert_ok(engine_store(&rank[0], 1, 0, 8, &c));
	assert_ok(engine_lookup(&scheduler, 1, 8, &found));
	assert_int_equal(found.count, 8);
	for (unsigned i = 0; i < 2; i++) {
		memset(rank[i].pages, 0, 8 * rank[i].data.block_bytes);
		assert_ok(engine_submit_load(&rank[i], found.lease, 0, 8, &bitmap, &job));
		assert_ok(engine_finish(&rank[i], job, &c));
		assert_ok(c.res);
		assert_int_equal(bitmap, 0xff);
		for (uint32_t b = 0; b < 8; b++)
			assert_int_equal(kv_data_compare(&rank[i].data, engine_block(1, b),
							 engine_page(&rank[i], b)),
					 0);
	}
	assert_ok(engine_release(&scheduler, found.lease));
	assert_ok(engine_submit_load(&rank[0], found.lease, 0, 8, &bitmap, &job));
	assert_ok(engine_finish(&rank[0], job, &c));
	assert_res(c.res, -ESTALE);
	engine_close(&rank[1]);
	engine_close(&rank[0]);
	engine_close(&scheduler);
}

static void test_source_free_comes_before_done(void **state)
{
	struct skvc_completion c[4];
	uint64_t job, until = private_daemon_now_ns() + 10000000000ull;
	unsigned free_seen = 0, done_seen = 0;
	struct engine e;

	(void)state;
	open_engine(&e, "twostage");
	assert_ok(engine_submit_store(&e, 1, 0, 32, &job));
	while (!done_seen && private_daemon_now_ns() < until) {
		int n = skvc_poll(e.session, c, 4);

		assert_true(n >= 0);
		for (int i = 0; i < n; i++) {
			assert_int_equal(c[i].job, job);
			assert_int_equal(done_seen, 0); /* nothing after DONE */
			if (c[i].event == SKVC_EVENT_SOURCE_FREE) {
				free_seen++;
				/* From here on the pages are ours: what was stored must not change. */
				memset(e.pages, 0xee, 32 * e.data.block_bytes);
			} else {
				done_seen++;
			}
		}
	}
	assert_int_equal(free_seen, 1);
	assert_int_equal(done_seen, 1);
	assert_int_equal(skvc_pending(e.session), 0);
	assert_int_equal(engine_fetch(&e, 1, 32), 32);
	engine_close(&e);
}

/* After abort returns nothing of the daemon touches the pages: what we write there stays. */
static void test_abort_means_over(void **state)
{
	struct skvc_completion found, c;
	struct engine e;
	struct rng r;

	(void)state;
	open_engine(&e, "abort");
	rng_init(&r, seed);
	assert_ok(engine_store(&e, 1, 0, 32, &c));
	for (unsigned turn = 0; turn < 50; turn++) {
		uint64_t job, bitmap[ENGINE_BLOCKS_MAX / 64];

		assert_ok(engine_lookup(&e, 1, 32, &found));
		assert_ok(engine_submit_load(&e, found.lease, 0, 32, bitmap, &job));
		for (uint32_t spin = rng_below(&r, 20000); spin > 0; spin--)
			__asm__ volatile("" : : : "memory");
		assert_ok(skvc_abort(e.session, job));
		memset(e.pages, 0x11, 32 * e.data.block_bytes);
		assert_ok(engine_release(&e, found.lease));
		for (size_t i = 0; i < 32 * e.data.block_bytes; i++)
			if (e.pages[i] != 0x11)
				fail_msg("page byte %zu was written after the abort", i);
		assert_ok(skvc_result(e.session, job, &c));
		assert_true(c.res == 0 || c.res == -ECANCELED);
		assert_res(skvc_abort(e.session, job), -ESTALE);
	}
	engine_close(&e);
}

static void test_nvme_gives_back_what_the_pool_cannot_hold(void **state)
{
	/* 256 KiB a block, 200 of them: 50 MiB against a pool of 16. */
	struct engine_options o = {
		.seed = seed, .model = "big", .layers = 16, .heads = 4, .blocks = 40
	};
	struct skvc_completion c;
	struct engine e;

	(void)state;
	assert_ok(private_daemon_start(&daemon_, TIER_BYTES, NULL));
	assert_ok(engine_open(&e, daemon_.socket, &o));
	for (uint32_t first = 0; first < 200; first += 40)
		assert_ok(engine_store(&e, first, 0, 40, &c));
	assert_ok(daemon_stats_read(&daemon_));
	assert_int_equal(daemon_stats_get("blocks"), 200);
	assert_true(daemon_stats_get("spill_blocks") > 0);
	assert_true(daemon_stats_get("pool_used_bytes") <= 16u << 20);
	for (unsigned turn = 0; turn < 2; turn++)
		for (uint32_t first = 0; first < 200; first += 40)
			assert_int_equal(engine_fetch(&e, first, 40), 40);
	assert_ok(daemon_stats_read(&daemon_));
	assert_true(daemon_stats_get("fetch_blocks") > 0);
	assert_int_equal(daemon_stats_get("checksum_failures"), 0);
	assert_int_equal(daemon_stats_get("evicted_blocks"), 0);
	engine_close(&e);
	assert_true(daemon_stats_wait(&daemon_, "sessions", 0, 20000) >= 0);
	assert_int_equal(daemon_stats_get("leases"), 0);
	assert_int_equal(daemon_stats_get("jobs"), 0);
}

int main(void)
{
	const struct CMUnitTest shared[] = {
		cmocka_unit_test(test_store_then_load),
		cmocka_unit_test(test_a_prefix_is_found_as_far_as_it_goes),
		cmocka_unit_test(test_storing_twice_keeps_one),
		cmocka_unit_test(test_every_element_type),
		cmocka_unit_test(test_any_bytes),
		cmocka_unit_test(test_a_profile_of_nonsense),
		cmocka_unit_test(test_put_and_get),
		cmocka_unit_test(test_strided_region),
		cmocka_unit_test(test_skipped_tokens_stay_untouched),
		cmocka_unit_test(test_token_ids_are_checked),
		cmocka_unit_test(test_drop_touch_pin),
		cmocka_unit_test(test_two_clients_of_one_tenant_share),
		cmocka_unit_test(test_scheduler_leases_workers_load),
		cmocka_unit_test(test_source_free_comes_before_done),
		cmocka_unit_test(test_abort_means_over),
	};
	const struct CMUnitTest tiers[] = {
		cmocka_unit_test_teardown(test_nvme_gives_back_what_the_pool_cannot_hold, stop),
	};
	int failed;

	seed = rng_seed_env(1);
	failed = cmocka_run_group_tests_name("roundtrip", shared, start_plain, stop);
	return failed + cmocka_run_group_tests_name("roundtrip-nvme", tiers, NULL, NULL);
}
