/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sequences.c - what a place for a sequence is taken to hold, on a lane made by hand: an index, a policy, lists,
 * and one place on a device that does nothing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_number_that_went_round_is_not_the_same_block,
						by_hand, by_hand_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
