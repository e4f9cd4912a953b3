/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_lane_layer.c - profiles with maps from layer to layer, driven step by step: where blocks stand, from the
 * sample to the maps, blocks that are coded again and what stops that, profiles that go with their last
 * block, data that changes.
 */
#include "tests/lib/lane_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/lane_state.h"
#include "daemon/util/clock.h"

#define COLUMNS (RIG_HEADS * RIG_DIM)
#define SCALARS (RIG_LAYERS * 2u * RIG_TOKENS * COLUMNS)
#define FIRST_BLOCKS 80u /* enough for both fits */

static uint64_t counter(struct rig *rig, enum stats_id id)
{
	return stats_get(lane_stats(rig->lane), id);
}

static void at_least(struct rig *rig, enum stats_id id, uint64_t want)
{
	uint64_t start_ns = clock_now_ns();

	while (counter(rig, id) < want) {
		if (clock_now_ns() - start_ns > RIG_WAIT_NS)
			fail_msg("%s is %llu, not %llu", stats_info[id].name,
				 (unsigned long long)counter(rig, id), (unsigned long long)want);
		usleep(1000);
	}
}

/* ---- data: each layer is the one before, mixed, and a little of its own ---- */

static float uniform(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (float)(*state >> 40) / 16777216.0f - 0.5f;
}

static uint16_t bf16(float v)
{
	uint32_t bits;

	memcpy(&bits, &v, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

/* own: how much of each layer is its own.  Packed as the rig's pages are: K and V of each layer in turn. */
static void make_block(uint32_t seed, float own, uint16_t *ret)
{
	float before[2][COLUMNS], now[2][COLUMNS];
	uint64_t state = 0x9e3779b97f4a7c15ull * (seed + 1);
	unsigned mix = own > 0.1f ? 11 : 5; /* other data, other maps */

	for (unsigned t = 0; t < RIG_TOKENS; t++)
		for (unsigned l = 0; l < RIG_LAYERS; l++) {
			for (unsigned c = 0; c < 2 * COLUMNS; c++) {
				unsigned kv = c / COLUMNS, i = c % COLUMNS;
				float z = uniform(&state) + uniform(&state);

				now[kv][i] = z;
				if (l)
					now[kv][i] = own * z +
						     0.7f * before[kv][(i * mix + 3) % COLUMNS] -
						     0.6f * before[!kv][(i * 7 + mix) % COLUMNS];
				ret[((l * 2 + kv) * RIG_TOKENS + t) * COLUMNS + i] =
					bf16(now[kv][i]);
			}
			memcpy(before, now, sizeof(before));
		}
}

static float own_of_all = 0.02f;

static void store_all(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe;

	for (uint32_t i = 0; i < count; i++)
		make_block(first + i, own_of_all,
			   (uint16_t *)lane_rig_page(rs, (first + i) % RIG_PAGES));
	lane_rig_store(rs, first, count, 7);
	cqe = lane_rig_done(rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
}

static void load_leased(struct lane_rig_session *rs, uint64_t lease, uint32_t first, uint32_t count)
{
	static uint16_t want[SCALARS];
	struct skvc_abi_cqe cqe;

	assert_int_equal(sizeof(want), rs->rig->ns.geom.raw_bytes);
	for (uint32_t i = 0; i < count; i++)
		memset(lane_rig_page(rs, i), 0x11, sizeof(want));
	lane_rig_load(rs, lease, 0, count, 8);
	cqe = lane_rig_complete(rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	for (uint32_t i = 0; i < count; i++) {
		make_block(first + i, own_of_all, want);
		assert_memory_equal(lane_rig_page(rs, i), want, sizeof(want));
	}
}

static void load_all(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(rs, first, count);

	assert_int_equal(cqe.count, count);
	load_leased(rs, cqe.lease, first, count);
	assert_int_equal(lane_rig_release(rs, cqe.lease).res, 0);
}

static void layer_config(struct config *c)
{
	lane_rig_config(c);
	c->fit_tokens[0] = 128;
	c->fit_tokens[1] = 1024;
	c->fit_tokens[2] = 0;
	c->profile_previous = 1;
	own_of_all = 0.02f;
}

/* The first profile, then the rest of what the second is made from: what comes while a fit runs is no sample. */
static void store_first(struct lane_rig_session *rs)
{
	store_all(rs, 0, 10);
	at_least(rs->rig, STAT_PROFILES_FITTED, 1);
	store_all(rs, 10, FIRST_BLOCKS - 10);
}

/* To find how keys were turned takes seconds, however few there are: only one test asks for it. */
static int rig_keys_too;

static void start(struct rig *rig, struct lane_rig_session *rs, const struct config *c)
{
	struct codec_segment segment[RIG_LAYERS * 2];
	uint32_t n = rig_keys_too ? 0 : RIG_LAYERS * 2;

	lane_rig_start(rig, c);
	memcpy(segment, rig->ns.geom.segments, sizeof(segment));
	for (uint32_t i = 0; i < n; i++)
		segment[i].kind = CODEC_KIND_V;
	codec_geometry_deinit(&rig->ns.geom);
	assert_int_equal(codec_geometry_init(&rig->ns.geom, RIG_TOKENS, segment, RIG_LAYERS * 2),
			 0);
	lane_rig_session_open(rig, rs);
}

static void stop(struct rig *rig, struct lane_rig_session *rs)
{
	lane_rig_session_close(rs);
	lane_rig_stop(rig);
}

/* ---- positions ---- */

static void submit_store(struct lane_rig_session *rs, const uint32_t *parent, uint32_t first,
			 uint32_t count)
{
	uint32_t keys = count + (parent != NULL), rel = 512u << 10;
	uint8_t *args = rs->s.segment + rs->s.layout.args_off + rel;

	for (uint32_t i = 0; i < keys; i++) {
		struct skvc_abi_key key = lane_rig_key(parent && !i ? *parent
								    : first + i - (parent != NULL));

		memcpy(args + i * sizeof(key), &key, sizeof(key));
	}
	for (uint32_t i = 0; i < count; i++)
		memcpy(args + keys * sizeof(struct skvc_abi_key) + i * 4, &i, 4);
	lane_rig_submit(rs, &(struct skvc_abi_sqe){
				    .opcode = SKVC_ABI_OP_STORE,
				    .flags = parent ? SKVC_ABI_SQE_PARENT : 0,
				    .ns = 1,
				    .region = 1,
				    .user_data = 7,
				    .count = count,
				    .args_rel = rel,
				    .args_bytes = keys * (uint32_t)sizeof(struct skvc_abi_key) +
						  count * 4 });
	assert_int_equal(lane_rig_done(rs).count, count);
}

static uint32_t position(struct rig *rig, uint32_t key)
{
	struct skvc_abi_key k = lane_rig_key(key);
	uint32_t id = index_find(rig->lane->index, rig->ns.id, &k);

	assert_int_not_equal(id, BLOCK_NONE);
	return index_block(rig->lane->index, id)->position;
}

/* Nothing runs in the background with `raw`, so that the index can be looked at from here. */
static void a_block_knows_where_it_stands(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;
	uint32_t parent;

	(void)state;
	layer_config(&c);
	c.speculator = CONFIG_SPECULATOR_RAW;
	start(&rig, &rs, &c);
	submit_store(&rs, NULL, 0, 4); /* a sequence's first blocks */
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(position(&rig, i), i * RIG_TOKENS);
	parent = 3;
	submit_store(&rs, &parent, 10, 3); /* go on from there */
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(position(&rig, 10 + i), (4 + i) * RIG_TOKENS);
	parent = 99;
	submit_store(&rs, &parent, 20, 2); /* a parent that is not here */
	assert_int_equal(position(&rig, 20), CODEC_POSITION_UNKNOWN);
	assert_int_equal(position(&rig, 21), CODEC_POSITION_UNKNOWN);
	parent = 21;
	submit_store(&rs, &parent, 30, 1); /* one that does not know itself */
	assert_int_equal(position(&rig, 30), CODEC_POSITION_UNKNOWN);
	parent = 12;
	submit_store(&rs, &parent, 20, 3); /* two are here already, and learn it now */
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(position(&rig, 20 + i), (7 + i) * RIG_TOKENS);
	stop(&rig, &rs);
}

/* ---- from the sample to blocks on NVMe ---- */

static void blocks_are_coded_again_when_idle(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;
	uint64_t before;

	(void)state;
	layer_config(&c);
	rig_keys_too = 1;
	start(&rig, &rs, &c);
	rig_keys_too = 0;
	store_first(&rs);
	before = counter(&rig, STAT_CODED_BYTES);
	at_least(&rig, STAT_PROFILES_LAYER, 1);
	at_least(&rig, STAT_LAYER_BLOCKS, FIRST_BLOCKS);
	assert_int_equal(counter(&rig, STAT_LAYER_BLOCKS), FIRST_BLOCKS);
	assert_true(counter(&rig, STAT_RECODE_SAVED_BYTES) > before / 8);
	assert_true(counter(&rig, STAT_CODED_BYTES) < before - before / 8);
	assert_int_equal(counter(&rig, STAT_CODED_BYTES), atomic_load(&rig.ns.coded_bytes));
	load_all(&rs, 0, FIRST_BLOCKS);
	/* The first profile went with its last block; the sample with the last fit. */
	at_least(&rig, STAT_PROFILES_FREED, 1);
	assert_int_equal(counter(&rig, STAT_PROFILES), 1);
	assert_int_equal(counter(&rig, STAT_SAMPLE_BYTES), 0);
	assert_int_equal(counter(&rig, STAT_RECODE_FAILED), 0);
	lane_rig_drop(&rs, 0, FIRST_BLOCKS, 9);
	assert_int_equal(lane_rig_complete(&rs).count, FIRST_BLOCKS);
	assert_int_equal(atomic_load(&rig.tenant.charged_bytes), 0);
	assert_int_equal(counter(&rig, STAT_POOL_USED_BYTES), 0);
	assert_int_equal(counter(&rig, STAT_CODED_BYTES), 0);
	stop(&rig, &rs);
}

static void nvme_gets_the_small_records(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;
	char path[] = "./skvcd-test-XXXXXX";
	uint32_t all = 384;
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	layer_config(&c);
	c.pool_bytes = 4u << 20;
	c.store_wait_ns = 60000000000; /* a busy machine's disk may be behind */
	c.spill_percent = 1;
	c.nvme_bytes = 128u << 20;
	c.nvme_segment_bytes = 4u << 20;
	(void)snprintf(c.nvme_path, sizeof(c.nvme_path), "%s", path);
	start(&rig, &rs, &c);
	unlink(path);
	store_first(&rs);
	at_least(&rig, STAT_PROFILES_LAYER, 1);
	for (uint32_t first = FIRST_BLOCKS; first < all; first += 16) {
		store_all(&rs, first, 16);
		/* A slow machine writes some as they are: the pool must not fill up with waiting ones. */
		at_least(&rig, STAT_LAYER_BLOCKS, (first + 16 - FIRST_BLOCKS) / 4);
	}
	at_least(&rig, STAT_BLOCKS_NVME, all);
	assert_int_equal(counter(&rig, STAT_EVICTED_BLOCKS), 0);
	assert_true(counter(&rig, STAT_BLOCKS_HOST) < all);
	for (uint32_t first = 0; first < all; first += 16)
		load_all(&rs, first, 16);
	assert_true(counter(&rig, STAT_FETCH_BLOCKS) > 0);
	assert_int_equal(counter(&rig, STAT_CHECKSUM_FAILURES), 0);
	assert_int_equal(counter(&rig, STAT_LOAD_FAILED_BLOCKS), 0);
	stop(&rig, &rs);
}

/* ---- what is worth it ---- */

static uint64_t settled(struct rig *rig, enum stats_id id)
{
	uint64_t before = counter(rig, id), now;

	for (unsigned same = 0; same < 5; before = now) {
		(void)usleep(100000);
		now = counter(rig, id);
		same = now == before ? same + 1 : 0;
	}
	return before;
}

/* With the plan on, and so many blocks stored after those that were tried to see what they take. */
static void start_planned(struct rig *rig, struct lane_rig_session *rs, uint64_t pool_bytes,
			  uint32_t all)
{
	struct config c;

	layer_config(&c);
	c.plan = 1;
	c.pool_bytes = pool_bytes;
	start(rig, rs, &c);
	store_first(rs);
	at_least(rig, STAT_PROFILES_LAYER, 1);
	at_least(rig, STAT_LAYER_BLOCKS, PLAN_TRIES);
	for (uint32_t first = FIRST_BLOCKS; first < all; first += 16)
		store_all(rs, first, 16);
}

/* There is room for everything: some are tried, to see what it takes, and the rest stays quick to load. */
static void the_plan_leaves_what_fits(void **state)
{
	struct lane_rig_session rs;
	struct rig rig;
	uint32_t all = 800;

	(void)state;
	start_planned(&rig, &rs, 256u << 20, all);
	assert_true(settled(&rig, STAT_LAYER_BLOCKS) < all / 2);
	assert_int_equal(atomic_load(&rig.ns.plan_chosen), CODEC_SPEC_CHANNEL);
	load_all(&rs, 0, 16);
	load_all(&rs, all - 16, 16);
	stop(&rig, &rs);
}

/* What does not fit would have to be computed again: everything that stays is made small. */
static void the_plan_squeezes_what_does_not(void **state)
{
	struct lane_rig_session rs;
	struct rig rig;
	uint32_t all = 800;

	(void)state;
	start_planned(&rig, &rs, 2u << 20, all);
	assert_true(counter(&rig, STAT_EVICTED_BLOCKS) > 0);
	at_least(&rig, STAT_LAYER_BLOCKS, counter(&rig, STAT_BLOCKS));
	assert_int_equal(atomic_load(&rig.ns.plan_chosen), CODEC_SPEC_LAYER);
	load_all(&rs, all - 16, 16);
	stop(&rig, &rs);
}

static void a_store_may_use_maps_at_once(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;

	(void)state;
	layer_config(&c);
	c.speculator = CONFIG_SPECULATOR_LAYER;
	start(&rig, &rs, &c);
	store_first(&rs);
	at_least(&rig, STAT_LAYER_BLOCKS, FIRST_BLOCKS);
	store_all(&rs, 200, 20);
	assert_int_equal(counter(&rig, STAT_LAYER_BLOCKS), FIRST_BLOCKS + 20);
	load_all(&rs, 200, 20);
	load_all(&rs, 0, FIRST_BLOCKS);
	stop(&rig, &rs);
}

/* Maps do not help where layers have nothing to do with one another: that is seen, and `channel` stays. */
static void maps_that_do_not_help_are_not_kept(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;

	(void)state;
	layer_config(&c);
	c.profile_previous = 2;
	start(&rig, &rs, &c);
	for (uint32_t i = 0; i < FIRST_BLOCKS; i++)
		lane_rig_fill(&rs, i, i);
	lane_rig_store(&rs, 0, 10, 7);
	assert_int_equal(lane_rig_done(&rs).count, 10);
	at_least(&rig, STAT_PROFILES_FITTED, 1);
	lane_rig_store(&rs, 10, FIRST_BLOCKS - 10, 7);
	assert_int_equal(lane_rig_done(&rs).count, FIRST_BLOCKS - 10);
	at_least(&rig, STAT_PROFILES_REJECTED, 1);
	at_least(&rig, STAT_PROFILES_FITTED, 2);
	assert_int_equal(counter(&rig, STAT_PROFILES_LAYER), 0);
	stop(&rig, &rs);
}

/* ---- what stops it ---- */

static void who_holds_a_block_keeps_its_record(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;
	uint64_t lease;

	(void)state;
	layer_config(&c);
	start(&rig, &rs, &c);
	store_all(&rs, 0, 10);
	cqe = lane_rig_lookup(&rs, 0, 10);
	assert_int_equal(cqe.count, 10);
	lease = cqe.lease;
	at_least(&rig, STAT_PROFILES_FITTED, 1);
	store_all(&rs, 10, FIRST_BLOCKS);
	at_least(&rig, STAT_PROFILES_LAYER, 1);
	at_least(&rig, STAT_LAYER_BLOCKS, FIRST_BLOCKS);
	usleep(50000);
	assert_int_equal(counter(&rig, STAT_LAYER_BLOCKS), FIRST_BLOCKS);
	load_leased(&rs, lease, 0, 10);
	assert_int_equal(lane_rig_release(&rs, lease).res, 0);
	at_least(&rig, STAT_LAYER_BLOCKS, FIRST_BLOCKS + 10);
	load_all(&rs, 0, 10 + FIRST_BLOCKS);
	stop(&rig, &rs);
}

/* Loads and stores go on while blocks are coded again: each is exact, and nothing is left behind. */
static void others_work_meanwhile(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;

	(void)state;
	layer_config(&c);
	start(&rig, &rs, &c);
	for (uint32_t round = 0; round < 40; round++) {
		store_all(&rs, round * 20, 20);
		load_all(&rs, round * 10, 20);
		if (round % 4 == 3) {
			lane_rig_drop(&rs, round * 20 - 60, 20, 9);
			assert_int_equal(lane_rig_complete(&rs).count, 20);
			store_all(&rs, round * 20 - 60, 20);
		}
	}
	load_all(&rs, 600, 200);
	stop(&rig, &rs);
}

/* One by one, and again what the fault refused. */
static void store_stubborn(struct lane_rig_session *rs)
{
	for (uint32_t i = 0; i < FIRST_BLOCKS; i++) {
		if (i == 10)
			at_least(rs->rig, STAT_PROFILES_FITTED, 1);
		do {
			make_block(i, own_of_all, (uint16_t *)lane_rig_page(rs, i));
			lane_rig_store(rs, i, 1, 7);
		} while (lane_rig_done(rs).count != 1);
	}
}

static void with_fault(const char *fault, uint64_t failed_min)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;
	uint32_t good = 0;

	layer_config(&c);
	(void)snprintf(c.fault_device, sizeof(c.fault_device), "%s", fault);
	start(&rig, &rs, &c);
	store_stubborn(&rs);
	at_least(&rig, STAT_PROFILES_LAYER, 1);
	for (uint64_t start_ns = clock_now_ns();
	     counter(&rig, STAT_LAYER_BLOCKS) + counter(&rig, STAT_RECODE_FAILED) < FIRST_BLOCKS;) {
		assert_true(clock_now_ns() - start_ns < RIG_WAIT_NS);
		usleep(1000);
	}
	assert_true(counter(&rig, STAT_RECODE_FAILED) >= failed_min);
	assert_true(counter(&rig, STAT_RECODED_BLOCKS) > 0);
	cqe = lane_rig_lookup(&rs, 0, FIRST_BLOCKS); /* none is lost */
	assert_int_equal(cqe.count, FIRST_BLOCKS);
	assert_int_equal(lane_rig_release(&rs, cqe.lease).res, 0);
	for (uint32_t i = 0; i < FIRST_BLOCKS; i++) {
		static uint16_t want[SCALARS];

		cqe = lane_rig_lookup(&rs, i, 1);
		if (!cqe.count) /* a load before was told of wrong bytes, which the fault made */
			continue;
		lane_rig_load(&rs, cqe.lease, 0, 1, 8);
		make_block(i, own_of_all, want);
		if (lane_rig_complete(&rs).count == 1) {
			assert_memory_equal(lane_rig_page(&rs, 0), want, sizeof(want));
			good++;
		}
		(void)lane_rig_release(&rs, cqe.lease);
	}
	assert_true(good > FIRST_BLOCKS / 2);
	stop(&rig, &rs);
}

static void a_failing_device_loses_no_block(void **state)
{
	(void)state;
	with_fault("encode:eio:every=81", 1);	  /* the first ones are the stores */
	with_fault("encode:corrupt:every=81", 1); /* coded wrongly: it does not come back exact */
	with_fault("decode:eio:every=7", 10);
	with_fault("decode:corrupt:every=7", 10);
	with_fault("encode:enomem:every=90,decode:delay_ms=1:every=2", 0);
}

/* Maps cannot be fitted: `channel` goes on. */
static void a_failing_fit_changes_nothing(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;

	(void)state;
	layer_config(&c);
	(void)snprintf(c.fault_device, sizeof(c.fault_device), "fit_layer:enomem");
	start(&rig, &rs, &c);
	store_first(&rs);
	at_least(&rig, STAT_PROFILES_FITTED, 2); /* the second without maps, then */
	assert_int_equal(counter(&rig, STAT_PROFILES_LAYER), 0);
	store_all(&rs, 200, 20);
	load_all(&rs, 0, FIRST_BLOCKS);
	load_all(&rs, 200, 20);
	stop(&rig, &rs);
}

/* ---- data that changes ---- */

static void other_data_gets_another_profile(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;
	uint64_t fitted;

	(void)state;
	layer_config(&c);
	c.drift_blocks = 20;
	start(&rig, &rs, &c);
	store_first(&rs);
	at_least(&rig, STAT_LAYER_BLOCKS, FIRST_BLOCKS);
	assert_int_equal(counter(&rig, STAT_PROFILE_DRIFTS), 0);
	fitted = counter(&rig, STAT_PROFILES_FITTED);
	own_of_all = 0.2f;
	store_all(&rs, 1000, 100);
	at_least(&rig, STAT_PROFILE_DRIFTS, 1);
	store_all(&rs, 2000, 100);
	store_all(&rs, 3000, 100);
	at_least(&rig, STAT_PROFILES_FITTED, fitted + 1);
	load_all(&rs, 1000, 100);
	load_all(&rs, 2000, 100);
	own_of_all = 0.02f;
	load_all(&rs, 0, FIRST_BLOCKS);
	stop(&rig, &rs);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_block_knows_where_it_stands),
		cmocka_unit_test(blocks_are_coded_again_when_idle),
		cmocka_unit_test(nvme_gets_the_small_records),
		cmocka_unit_test(the_plan_leaves_what_fits),
		cmocka_unit_test(the_plan_squeezes_what_does_not),
		cmocka_unit_test(a_store_may_use_maps_at_once),
		cmocka_unit_test(maps_that_do_not_help_are_not_kept),
		cmocka_unit_test(who_holds_a_block_keeps_its_record),
		cmocka_unit_test(others_work_meanwhile),
		cmocka_unit_test(a_failing_device_loses_no_block),
		cmocka_unit_test(a_failing_fit_changes_nothing),
		cmocka_unit_test(other_data_gets_another_profile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
