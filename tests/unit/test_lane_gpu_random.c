/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_lane_gpu_random.c - everything at once, at random, with many operations in flight: stores and loads
 * of GPU and host memory, with and without events, drops, aborts, small pools, a GPU that stumbles.  A key's
 * block is always the same, so that whatever is reported as restored can be checked.
 */
#include "tests/lib/gpu_lane.h"

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

#include "daemon/util/clock.h"
#include "tests/lib/rng.h"

#define SLOTS 14u /* operations in flight; each has its own pages */
#define SLOT_PAGES (RIG_PAGES / 16u)
#define KEYS 1500u
#define EVENTS 3u
#define ABORTS 1000u /* user_data of what is not a slot's */
#define DROPS 1001u
#define RELEASES 1002u

enum what { IDLE, STORE, LOOKUP, LOAD };

struct slot {
	enum what what;
	uint32_t handle; /* of its region: 1 host, 2 GPU */
	uint32_t first, count;
	uint64_t lease;
	uint32_t result_rel;
	int source_free;
};

struct chaos {
	struct gpu_lane f;
	struct gpu_rig_event event[EVENTS];
	struct slot slot[SLOTS];
	struct rng rng;
	uint64_t loaded, stored;
};

static uint32_t page_of(uint32_t slot)
{
	return slot * SLOT_PAGES;
}

static void fill(struct chaos *c, uint32_t i)
{
	struct slot *s = &c->slot[i];

	for (uint32_t k = 0; k < s->count; k++) {
		if (s->handle == 1)
			lane_rig_fill(&c->f.rs, page_of(i) + k, s->first + k);
		else
			gpu_rig_fill(&c->f.g, page_of(i) + k, s->first + k);
	}
}

static int page_is(struct chaos *c, uint32_t handle, uint32_t page, uint32_t seed)
{
	return handle == 1 ? lane_rig_page_is(&c->f.rs, page, seed)
			   : gpu_rig_is(&c->f.g, page, seed);
}

/* Of a third of what is done to GPU memory. */
static uint64_t some_events(struct chaos *c, uint32_t handle)
{
	if (handle == 1 || rng_below(&c->rng, 3))
		return 0;
	return skvc_abi_events(c->event[rng_below(&c->rng, EVENTS)].handle, 0);
}

static void begin_store(struct chaos *c, uint32_t i)
{
	struct slot *s = &c->slot[i];

	s->what = STORE;
	s->source_free = 0;
	fill(c, i);
	c->f.rs.handle = s->handle;
	c->f.rs.arg = some_events(c, s->handle);
	lane_rig_store_at(&c->f.rs, s->first, s->count, page_of(i), i);
	c->f.rs.arg = 0;
}

static void begin(struct chaos *c, uint32_t i)
{
	struct slot *s = &c->slot[i];

	s->handle = 1 + (rng_below(&c->rng, 4) != 0);
	s->count = 1 + (uint32_t)rng_below(&c->rng, SLOT_PAGES);
	s->first = (uint32_t)rng_below(&c->rng, KEYS - SLOT_PAGES);
	if (rng_below(&c->rng, 2)) {
		begin_store(c, i);
	} else {
		s->what = LOOKUP;
		lane_rig_lookup_begin(&c->f.rs, s->first, s->count, i);
	}
}

static void found(struct chaos *c, uint32_t i, const struct skvc_abi_cqe *cqe)
{
	struct slot *s = &c->slot[i];

	s->what = IDLE;
	if (cqe->res < 0)
		return;
	s->what = LOAD;
	s->count = cqe->count;
	s->lease = cqe->lease;
	c->f.rs.handle = s->handle;
	c->f.rs.arg = some_events(c, s->handle);
	lane_rig_load(&c->f.rs, s->lease, page_of(i), s->count, i);
	s->result_rel = c->f.rs.result_rel;
	c->f.rs.arg = 0;
}

static void loaded(struct chaos *c, uint32_t i, const struct skvc_abi_cqe *cqe)
{
	struct slot *s = &c->slot[i];
	uint64_t map = lane_rig_bitmap(&c->f.rs, s->result_rel);

	if (cqe->count || cqe->res == 0) {
		assert_int_equal(cqe->count, __builtin_popcountll(map));
		for (uint32_t k = 0; k < s->count; k++)
			if (map >> k & 1 && !page_is(c, s->handle, page_of(i) + k, s->first + k))
				fail_msg("block %u is not what it was", s->first + k);
	}
	c->loaded += cqe->count;
	lane_rig_submit(&c->f.rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_RELEASE,
							  .lease = s->lease,
							  .user_data = RELEASES });
	s->what = IDLE;
}

static void completed(struct chaos *c, const struct skvc_abi_cqe *cqe)
{
	uint32_t i = (uint32_t)cqe->user_data;
	struct slot *s;

	if (cqe->user_data >= ABORTS)
		return;
	assert_true(i < SLOTS);
	s = &c->slot[i];
	assert_int_not_equal(s->what, IDLE);
	if (cqe->kind == SKVC_ABI_CQE_SOURCE_FREE) {
		assert_true(s->what == STORE && !s->source_free);
		s->source_free = 1;
		for (uint32_t k = 0; s->handle == 1 && k < s->count; k++)
			memset(lane_rig_page(&c->f.rs, page_of(i) + k), 0xee,
			       c->f.rig.ns.geom.raw_bytes);
	} else if (s->what == STORE) {
		c->stored += cqe->count;
		s->what = IDLE;
	} else if (s->what == LOOKUP) {
		found(c, i, cqe);
	} else {
		loaded(c, i, cqe);
	}
}

static void meddle(struct chaos *c)
{
	uint64_t dice = rng_below(&c->rng, 100);
	uint32_t i = (uint32_t)rng_below(&c->rng, SLOTS);

	if (dice < 10)
		gpu_rig_event_set(&c->event[rng_below(&c->rng, EVENTS)],
				  dice < 5 ? SIM_EVENT_PENDING : SIM_EVENT_COMPLETE);
	else if (dice < 13)
		lane_rig_submit(&c->f.rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_ABORT,
								  .arg = i,
								  .user_data = ABORTS });
	else if (dice < 16)
		lane_rig_drop(&c->f.rs, (uint32_t)rng_below(&c->rng, KEYS - 20),
			      1 + (uint32_t)rng_below(&c->rng, 20), DROPS);
}

static void take_completions(struct chaos *c)
{
	struct skvc_abi_cqe cqe;

	while (ring_produce_room(&c->f.rs.sq) > 4 && lane_rig_try_complete(&c->f.rs, &cqe))
		completed(c, &cqe); /* which may submit one more */
}

static void wait_for_all(struct chaos *c)
{
	uint64_t start_ns = clock_now_ns();

	for (unsigned i = 0; i < EVENTS; i++)
		gpu_rig_event_set(&c->event[i], SIM_EVENT_COMPLETE);
	for (uint32_t i = 0; i < SLOTS; i++)
		while (c->slot[i].what != IDLE) {
			take_completions(c);
			assert_true(clock_now_ns() - start_ns < RIG_WAIT_NS);
			usleep(100);
		}
}

static void chaos(const char *spec, unsigned ms)
{
	static struct chaos c;
	uint64_t end_ns;

	memset(&c, 0, sizeof(c));
	rng_init(&c.rng, rng_seed_env(clock_now_ns()));
	gpu_rig_config(&c.f.config);
	c.f.config.pool_bytes = 16u << 20;
	c.f.config.gpu_pool_bytes = 16u << 20;
	c.f.config.store_wait_ns = 5000000;
	c.f.config.event_wait_ns = 20000000;
	(void)snprintf(c.f.config.fault_gpu, sizeof(c.f.config.fault_gpu), "%s", spec);
	gpu_lane_start(&c.f, GPU_RIG_HND);
	for (unsigned i = 0; i < EVENTS; i++)
		gpu_rig_event_open(&c.f.rs, 3 + i, &c.event[i]);
	end_ns = clock_now_ns() + ms * 1000000ull;
	while (clock_now_ns() < end_ns) {
		uint32_t i = (uint32_t)rng_below(&c.rng, SLOTS);

		take_completions(&c);
		if (ring_produce_room(&c.f.rs.sq) > 8) {
			if (c.slot[i].what == IDLE)
				begin(&c, i);
			meddle(&c);
		}
		usleep(50);
	}
	wait_for_all(&c);
	print_message("%s: %llu blocks stored, %llu loaded, %llu moved out of the GPU pool\n", spec,
		      (unsigned long long)c.stored, (unsigned long long)c.loaded,
		      (unsigned long long)gpu_lane_counter(&c.f, STAT_GPU_DEMOTED_BLOCKS));
	assert_true(c.stored > 0 && c.loaded > 0);
	lane_rig_session_close(&c.f.rs);
	for (unsigned i = 0; i < EVENTS; i++)
		gpu_rig_event_close(&c.event[i]);
	gpu_rig_close(&c.f.g);
	assert_int_equal(gpu_lane_counter(&c.f, STAT_JOBS), 0);
	lane_rig_stop(&c.f.rig);
}

static void a_healthy_gpu(void **state)
{
	(void)state;
	chaos("", 4000);
}

static void a_gpu_that_stumbles(void **state)
{
	(void)state;
	chaos("encode:eio:every=11,move:eio:every=13,decode:delay_ms=2:every=7,"
	      "move:delay_ms=3:every=5,decode:corrupt:every=9",
	      4000);
}

static void a_gpu_that_dies(void **state)
{
	(void)state;
	chaos("move:dead:every=300", 3000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_healthy_gpu),
		cmocka_unit_test(a_gpu_that_stumbles),
		cmocka_unit_test(a_gpu_that_dies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
