/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sequences.c - what a place for a sequence is taken to hold, and who gets which, on a lane made by hand: an
 * index, a policy, lists, and places on devices that do nothing.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/lane_state.h"
#include "daemon/sequences.h"
#include "tests/lib/lane_rig.h"

#define BLOCKS 2u /* of the index: a number that is given back is the next one soon */
#define TOKENS 16u
#define GENERATIONS 65536u

static struct lane lane;
static struct tenant tenant;
static struct namespace ns;
static struct namespace *ns_of_lane[1] = { &ns };
static struct ns_profile profile;
static struct lane_sequence place;
static struct sequence_block holds[4], path[4];
static struct task task;
static unsigned cuts;

static void sequence_truncate(struct device_sequence *s, uint32_t position)
{
	(void)s;
	assert_int_equal(position, 0);
	cuts++;
}

static uint64_t sequence_bytes(const struct device_sequence *s)
{
	(void)s;
	return 0;
}

static const struct device_ops ops = { .sequence_truncate = sequence_truncate,
				       .sequence_bytes = sequence_bytes };
static struct device device = { .ops = &ops, .sequence_tasks = 1 };

static int by_hand(void **state)
{
	(void)state;
	memset(&lane, 0, sizeof(lane));
	memset(&ns, 0, sizeof(ns));
	cuts = 0;
	ns.tenant = &tenant;
	ns.geom.block_tokens = TOKENS;
	lane.ns = ns_of_lane;
	lane.ns_end = 1;
	lane.now_ns = 1000;
	lane.config.model_tokens_max = 4 * TOKENS;
	lane.config.model_sequences = 1;
	block_list_init(&lane.fetch);
	place = (struct lane_sequence){ .s = (struct device_sequence *)(void *)&place,
					.device = &device,
					.ns = &ns,
					.profile = &profile,
					.holds = holds,
					.wanted = BLOCK_NONE,
					.task = &task,
					.steps_max = 1 };
	lane.sequence = &place;
	lane.path = path;
	assert_int_equal(index_new(BLOCKS, &lane.index), 0);
	return policy_new(BLOCKS, BLOCKS, &lane.policy);
}

static int by_hand_end(void **state)
{
	(void)state;
	lane.policy = policy_free(lane.policy);
	lane.index = index_free(lane.index);
	return 0;
}

/* On NVMe: who wants its bytes has to wait. */
static uint32_t make(uint32_t key, uint32_t parent, uint64_t raw_xxh3)
{
	struct skvc_abi_key k = lane_rig_key(key);
	struct block *b;
	uint32_t id;

	assert_int_equal(index_insert(lane.index, 0, &k, &id), 0);
	b = index_block(lane.index, id);
	b->position = parent == BLOCK_NONE ? 0 : TOKENS;
	b->raw_xxh3 = raw_xxh3;
	if (parent != BLOCK_NONE)
		tier_link(&lane, id, parent);
	index_set_state(lane.index, id, BLOCK_NVME);
	tier_policy_enter(&lane, id, 0);
	policy_unhold(lane.policy, id);
	return id;
}

static void lose(uint32_t id)
{
	uint32_t parent = index_parent(lane.index, id);

	tier_policy_leave(&lane, id);
	index_unlink(lane.index, id);
	if (parent != BLOCK_NONE)
		tier_policy_settle(&lane, parent);
	policy_reset(lane.policy, id);
	index_release(lane.index, id);
}

/* The first block's bytes are others, its number is the same, and so are the 16 bits that count its lives. */
static void a_number_that_went_round_is_not_the_same_block(void **state)
{
	struct lane_sequence *q = NULL;
	uint32_t first = make(0, BLOCK_NONE, 1), id = first, next = make(1, first, 2);
	const uint16_t generation = index_block(lane.index, first)->generation;

	(void)state;
	assert_int_equal(sequences_take(&lane, &q, first, &profile, 0), 1);
	sequences_begin(&lane, q, first);
	sequences_end(&lane, q, first, 0);
	assert_int_equal(sequences_take(&lane, &q, next, &profile, 0), 1);

	lose(next);
	for (unsigned lives = 0;
	     lives == 0 || id != first || index_block(lane.index, id)->generation != generation;
	     lives++) {
		assert_true(lives <= BLOCKS * GENERATIONS);
		lose(id);
		id = make(lives + 2, BLOCK_NONE, 3);
	}
	next = make(1, first, 2);
	assert_int_equal(sequences_take(&lane, &q, next, &profile, 0), 0);
	assert_int_equal(cuts, 1);
	assert_int_equal(q->count, 0);
	assert_int_equal(q->wanted, first);
	sequences_give_back(&lane, &q);
}

/* ---- a GPU without memory ---- */

#define PLACES 2u

static struct lane_sequence places[PLACES];

static int never_dead(struct device *dev)
{
	(void)dev;
	return 0;
}

static int sequence_new(struct device *dev, const struct codec_geometry *g,
			const struct codec_profile *p, struct device_sequence **ret)
{
	(void)dev;
	(void)g;
	(void)p;
	*ret = (struct device_sequence *)(void *)&places; /* nobody looks into it */
	return 0;
}

static struct device_sequence *sequence_free(struct device_sequence *s)
{
	(void)s;
	return NULL;
}

static void truncate_any(struct device_sequence *s, uint32_t position)
{
	(void)s;
	(void)position;
}

static const struct device_ops many_ops = { .dead = never_dead,
					    .sequence_new = sequence_new,
					    .sequence_free = sequence_free,
					    .sequence_truncate = truncate_any,
					    .sequence_bytes = sequence_bytes };
static struct device cpu = { .ops = &many_ops, .sequence_tasks = 1 };
static struct device gpu = { .ops = &many_ops, .sequence_tasks = 1 };

/* Two places, both on the GPU. */
static int two_on_gpu(void **state)
{
	int r = by_hand(state);

	if (r < 0)
		return r;
	memset(places, 0, sizeof(places));
	ns.geom.raw_bytes = 4096;
	profile.p = (struct codec_profile *)(void *)&profile; /* nobody looks into it */
	profile.users = 10;
	lane.config.model_sequences = PLACES;
	lane.config.model_idle_ns = 1000000000;
	lane.sequence = places;
	lane.device = &cpu;
	lane.predictor = &gpu;
	stats_add(&lane.stats, STAT_SEQUENCES, 2);
	stats_add(&lane.stats, STAT_SEQUENCES_GPU, 2);
	for (unsigned i = 0; i < PLACES; i++) {
		places[i].wanted = BLOCK_NONE;
		places[i].s = (struct device_sequence *)(void *)&places;
		places[i].device = &gpu;
		places[i].ns = &ns;
		places[i].profile = &profile;
		places[i].holds = calloc(4, sizeof(struct sequence_block));
		places[i].task = calloc(1, sizeof(struct task));
		places[i].steps_max = 1;
		places[i].used_ns = i;
	}
	return places[0].holds && places[0].task && places[1].holds && places[1].task ? 0 : -1;
}

static int two_on_gpu_end(void **state)
{
	lane.stopping = 1;
	sequences_run(&lane);
	profile.p = NULL;
	lane.device = lane.predictor = NULL;
	return by_hand_end(state);
}

/* The first place's task for the block ended without memory. */
static void fail_one(uint32_t block)
{
	struct lane_sequence *q = NULL;

	assert_int_equal(sequences_take(&lane, &q, block, &profile, 0), 1);
	assert_ptr_equal(q, &places[0]);
	sequences_begin(&lane, q, block);
	sequences_end(&lane, q, block, -ENOMEM);
	assert_int_equal(sequences_take(&lane, &q, block, &profile, 0), 0);
	assert_null(q);
	assert_null(places[0].s);
}

static void what_the_gpu_holds_stays_there(void **state)
{
	struct lane_sequence *q = NULL, *other = NULL;
	uint32_t block = make(0, BLOCK_NONE, 1);

	(void)state;
	fail_one(block);
	sequences_run(&lane);
	assert_non_null(places[1].s);
	assert_true(sequences_gpu(&lane));
	assert_int_equal(sequences_take(&lane, &q, block, &profile, 0), 1);
	assert_ptr_equal(q, &places[1]);
	/* Who comes next waits for it: it is soon back, and the CPU would be slower. */
	assert_int_equal(sequences_take(&lane, &other, block, &profile, 0), 0);
	assert_null(other);
	sequences_give_back(&lane, &q);
	assert_int_equal(sequences_take(&lane, &other, block, &profile, 0), 1);
	assert_ptr_equal(other, &places[1]);
	sequences_give_back(&lane, &other);
}

static void what_it_has_no_memory_for_goes_to_the_cpu(void **state)
{
	struct lane_sequence *q = NULL, *other = NULL;
	uint32_t first = make(0, BLOCK_NONE, 1), next = make(1, first, 2);

	(void)state;
	assert_int_equal(sequences_take(&lane, &q, first, &profile, 0), 1);
	sequences_begin(&lane, q, first);
	sequences_end(&lane, q, first, 0);
	assert_int_equal(sequences_take(&lane, &q, next, &profile, 0), 1);
	sequences_begin(&lane, q, next);
	sequences_end(&lane, q, next, -ENOMEM);
	assert_int_equal(sequences_take(&lane, &q, next, &profile, 0), 0);
	assert_null(q);
	/* As long as what failed: not to the GPU again.  What is shorter: there. */
	assert_int_equal(sequences_take(&lane, &q, next, &profile, 0), 0);
	assert_ptr_equal(q->device, &cpu);
	assert_int_equal(sequences_take(&lane, &other, first, &profile, 0), 1);
	assert_ptr_equal(other, &places[1]);
	assert_ptr_equal(other->device, &gpu);
	sequences_give_back(&lane, &q);
	sequences_give_back(&lane, &other);
	/* After a while it is asked again. */
	lane.now_ns = lane.predictor_full_ns;
	assert_true(sequences_gpu(&lane));
}

static void with_none_left_there_is_the_cpu(void **state)
{
	struct lane_sequence *q = NULL;
	uint32_t block = make(0, BLOCK_NONE, 1);

	(void)state;
	fail_one(block);
	places[1].no_memory = 1;
	sequences_run(&lane);
	assert_null(places[1].s);
	assert_false(sequences_gpu(&lane));
	assert_int_equal(sequences_take(&lane, &q, block, &profile, 0), 1);
	assert_ptr_equal(q->device, &cpu);
	sequences_give_back(&lane, &q);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_number_that_went_round_is_not_the_same_block,
						by_hand, by_hand_end),
		cmocka_unit_test_setup_teardown(what_the_gpu_holds_stays_there, two_on_gpu,
						two_on_gpu_end),
		cmocka_unit_test_setup_teardown(what_it_has_no_memory_for_goes_to_the_cpu,
						two_on_gpu, two_on_gpu_end),
		cmocka_unit_test_setup_teardown(with_none_left_there_is_the_cpu, two_on_gpu,
						two_on_gpu_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
