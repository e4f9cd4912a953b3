/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tier_policy.c - who leaves: first on a lane made by hand, which has an index, a policy and lists and nothing
 * else; then through a real one, with a tenant's quota, a full index, and pins, over memory and NVMe.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <sodium.h>

#include "daemon/lane_state.h"
#include "tests/lib/lane_rig.h"

#define BLOCKS 2000u

static struct lane lane;
static struct namespace ns[2];
static struct namespace *ns_of_lane[2] = { &ns[0], &ns[1] };
static struct tenant tenant[2];

static int by_hand(void **state)
{
	(void)state;
	assert_true(sodium_init() >= 0);
	memset(&lane, 0, sizeof(lane));
	memset(ns, 0, sizeof(ns));
	for (uint32_t i = 0; i < 2; i++) {
		tenant[i].id = i;
		ns[i].id = i;
		ns[i].tenant = &tenant[i];
	}
	lane.ns = ns_of_lane;
	lane.ns_end = 2;
	lane.now_ns = 1000;
	block_list_init(&lane.clean);
	block_list_init(&lane.dirty);
	block_list_init(&lane.droppable);
	block_list_init(&lane.gpu_cold);
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

static struct block *block(uint32_t id)
{
	return index_block(lane.index, id);
}

/* One that is published, as tier_publish() does it. */
static uint32_t make(uint32_t its_ns, uint32_t key, uint32_t parent)
{
	struct skvc_abi_key k = lane_rig_key(key);
	uint32_t id;

	assert_int_equal(index_insert(lane.index, its_ns, &k, &id), 0);
	if (parent != BLOCK_NONE)
		tier_link(&lane, id, parent);
	index_set_state(lane.index, id, BLOCK_RESIDENT);
	tier_policy_enter(&lane, id, 0);
	block_list_push(lane.index, &lane.dirty, id);
	policy_unhold(lane.policy, id);
	return id;
}

/* Written, and given up: as evict() in tier.c. */
static void to_nvme(uint32_t id)
{
	block_list_remove(lane.index, &lane.dirty, id);
	policy_hold(lane.policy, id);
	block(id)->flags |= BLOCK_CLEAN;
	index_set_state(lane.index, id, BLOCK_NVME);
	tier_policy_place(&lane, id);
	tier_policy_settle(&lane, id);
}

static void lose(uint32_t id)
{
	uint32_t parent = index_parent(lane.index, id);

	if (block(id)->flags & BLOCK_LISTED)
		block_list_remove(lane.index, &lane.dirty, id);
	tier_policy_leave(&lane, id);
	index_unlink(lane.index, id);
	if (parent != BLOCK_NONE)
		tier_policy_settle(&lane, parent);
	policy_reset(lane.policy, id);
	index_release(lane.index, id);
}

/* Half of a chain lies on NVMe: what is lost is lost from its end, wherever that is. */
static void a_chain_is_lost_from_its_end(void **state)
{
	uint32_t id[8];

	(void)state;
	for (uint32_t i = 0; i < 8; i++)
		id[i] = make(0, i, i ? id[i - 1] : BLOCK_NONE);
	for (uint32_t i = 0; i < 4; i++)
		to_nvme(id[2 * i]);
	for (uint32_t i = 8; i-- > 0;) {
		assert_int_equal(tier_victim_lost(&lane, NULL), id[i]);
		lose(id[i]);
	}
	assert_int_equal(tier_victim_lost(&lane, NULL), BLOCK_NONE);
}

/* Of a chain that a store is making longer something goes, when there is nothing else. */
static void a_growing_chain_gives_way_to_itself(void **state)
{
	uint32_t parent = make(0, 1, make(0, 0, BLOCK_NONE)), id;
	struct skvc_abi_key key = lane_rig_key(2);

	(void)state;
	assert_int_equal(index_insert(lane.index, 0, &key, &id), 0);
	tier_link(&lane, id, parent);
	assert_int_equal(tier_victim(&lane, TIER_PLACE_DIRTY), parent);
	assert_int_equal(tier_victim_lost(&lane, NULL), parent);
	block(parent)->refs++;
	assert_int_equal(tier_victim_lost(&lane, NULL), BLOCK_NONE);
}

/* A hold by recode alone is none; with somebody else's it is one. */
static void what_recode_holds_may_go(void **state)
{
	uint32_t id = make(0, 1, BLOCK_NONE);

	(void)state;
	block_list_remove(lane.index, &lane.dirty, id);
	policy_hold(lane.policy, id);
	block(id)->refs = 1;
	assert_int_equal(tier_victim_lost(&lane, NULL), BLOCK_NONE);
	lane.recode.step = RECODE_ENCODE;
	lane.recode.block = id;
	tier_policy_lets_go(&lane, id);
	assert_int_equal(tier_victim(&lane, TIER_PLACE_DIRTY), id);
	block(id)->refs = 2;
	assert_int_equal(tier_victim(&lane, TIER_PLACE_DIRTY), BLOCK_NONE);
	block(id)->refs = 0;
}

/* A tenant's victims are its own, however few they are among the others'. */
static void tenants_have_victims_of_their_own(void **state)
{
	uint32_t own = BLOCK_NONE;

	(void)state;
	for (uint32_t i = 0; i < BLOCKS; i++) {
		uint32_t id = make(i == 1000, i, BLOCK_NONE);

		if (i == 1000)
			own = id;
	}
	for (uint32_t i = 0; i < 100; i++)
		tier_use(&lane, own, 0);
	assert_int_equal(tier_victim_lost(&lane, &tenant[1]), own);
	assert_int_not_equal(tier_victim_lost(&lane, &tenant[0]), own);
	lose(own);
	assert_int_equal(tier_victim_lost(&lane, &tenant[1]), BLOCK_NONE);
}

static void pins_end(void **state)
{
	uint32_t id = make(0, 1, BLOCK_NONE);

	(void)state;
	tier_pin(block(id), lane.now_ns + 10);
	assert_int_equal(tier_victim(&lane, TIER_PLACE_DIRTY), BLOCK_NONE);
	lane.now_ns += 9;
	assert_true(tier_pinned(&lane, block(id))); /* not a moment less than was asked for, */
	lane.now_ns += 1 + (1u << 26);
	assert_false(tier_pinned(&lane, block(id))); /* and little more */
	assert_int_equal(tier_victim(&lane, TIER_PLACE_DIRTY), id);
}

/* After a restart it is pinned again until then; what is too far away is as far as there is. */
static void pins_are_saved_and_do_not_wrap(void **state)
{
	struct block b = { 0 };

	(void)state;
	tier_pin(&b, 12345678901234567ull);
	assert_in_range(tier_pin_until_ns(&b), 12345678901234567ull,
			12345678901234567ull + (1u << 26));
	tier_pin(&b, tier_pin_until_ns(&b));
	assert_true(tier_pin_until_ns(&b) <= 12345678901234567ull + (1u << 26));
	tier_pin(&b, UINT64_MAX);
	assert_true(tier_pin_until_ns(&b) > 9 * 365 * 86400ull * 1000000000ull);
	assert_true(tier_pinned(&lane, &b));
	tier_pin(&b, 0);
	assert_false(tier_pinned(&lane, &b));
	assert_int_equal(tier_pinned_ns(&lane, &b), 0);
}

/* A clock of 16 bits, and from any point of its: what waits for as long as store_wait may be is seen to. */
static void waits_are_told_at_any_time(void **state)
{
	uint64_t before_ns = lane.now_ns;
	struct block b = { 0 };

	(void)state;
	for (uint64_t start_ns = 0; start_ns < 300000000000ull; start_ns += 17000000000ull) {
		lane.now_ns = start_ns;
		tier_waits_begin(&lane, &b);
		for (uint64_t waits = 0; waits <= 61000000000ull; waits += 500000000) {
			lane.now_ns = start_ns + waits;
			assert_in_range(tier_waits_ns(&lane, &b) + (1u << 22), waits,
					waits + (2u << 22));
		}
	}
	lane.now_ns = before_ns;
}

/* Behind a pinned leaf everything stays: without what comes before it, it could not be found. */
static void a_pinned_leaf_keeps_its_chain(void **state)
{
	uint32_t id[4];

	(void)state;
	for (uint32_t i = 0; i < 4; i++)
		id[i] = make(0, i, i ? id[i - 1] : BLOCK_NONE);
	tier_pin(block(id[3]), UINT64_MAX);
	assert_int_equal(tier_victim(&lane, TIER_PLACE_DIRTY), BLOCK_NONE);
	assert_int_equal(tier_victim_lost(&lane, NULL), BLOCK_NONE);
	tier_pin(block(id[3]), 0);
	assert_int_equal(tier_victim_lost(&lane, NULL), id[3]);
}

/*
 * Of blocks that were used once long ago and blocks that are used again and again, the first are not written again; of
 * blocks that are all the same, one in five is, and not a child whose parent is not.
 */
static void nvme_keeps_the_best(void **state)
{
	uint32_t id[1000], kept = 0, kept_used = 0;

	(void)state;
	for (uint32_t i = 0; i < 1000; i++) {
		id[i] = make(0, i, i % 10 ? id[i - 1] : BLOCK_NONE);
		block(id[i])->position = i % 10 * 16;
	}
	for (uint32_t i = 0; i < 1000; i++)
		to_nvme(id[i]);
	for (uint32_t n = 0; n < 20; n++) {
		kept = 0;
		for (uint32_t i = 0; i < 1000; i++)
			kept += tier_policy_keeps(&lane, id[i]) != 0;
	}
	print_message("%u of 1000 equal ones are kept\n", kept);
	assert_in_range(kept, 150, 250);
	for (uint32_t n = 0; n < 100; n++) /* ten chains are used, for a long time */
		for (uint32_t i = 0; i < 100; i++)
			tier_use(&lane, id[i], 0);
	for (uint32_t n = 0; n < 20; n++) {
		kept = kept_used = 0;
		for (uint32_t i = 0; i < 1000; i++) {
			int keeps = tier_policy_keeps(&lane, id[i]);

			kept += keeps != 0;
			kept_used += keeps && i < 100;
		}
	}
	print_message("%u of 1000, of these %u of the 100 that are used\n", kept, kept_used);
	assert_true(kept_used >= 90);
	assert_true(kept <= 250);
	tier_pin(block(id[999]), UINT64_MAX);
	assert_true(tier_policy_keeps(&lane, id[999]));
	lose(id[989]);
	assert_false(tier_policy_keeps(&lane, id[989]));
}

/* ---- a real lane ---- */

#define PATH_BYTES 64u

static struct rig rig;
static struct lane_rig_session rs;
static char path[PATH_BYTES];

static void session_open(void)
{
	lane_rig_session_open(&rig, &rs);
	for (uint32_t page = 0; page < 50; page++)
		lane_rig_fill(&rs, page, page);
}

static void nvme_config(struct config *c)
{
	int fd;

	(void)snprintf(path, sizeof(path), "./skvcd-test-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	(void)snprintf(c->nvme_path, sizeof(c->nvme_path), "%s", path);
	c->nvme_bytes = 128u << 20;
	c->nvme_segment_bytes = 4u << 20;
}

static void rig_start(struct config *c)
{
	nvme_config(c);
	lane_rig_start(&rig, c);
	session_open();
}

static int rig_stop(void **state)
{
	(void)state;
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	(void)unlink(path);
	return 0;
}

static uint64_t stat(enum stats_id id)
{
	return stats_get(lane_stats(rig.lane), id);
}

/* A chain of so many, from this key on; the disk may be behind. */
static void store(uint32_t first, uint32_t count)
{
	for (unsigned tries = 0; tries < 100; tries++) {
		struct skvc_abi_cqe cqe;

		lane_rig_store_at(&rs, first, count, 0, 1);
		cqe = lane_rig_done(&rs);
		if (cqe.res == 0)
			return;
		assert_int_equal(cqe.res, -EAGAIN);
		(void)usleep(50000);
	}
	fail_msg("blocks %u and on were refused 100 times", first);
}

static uint32_t found(uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(&rs, first, count);

	if (cqe.count)
		assert_int_equal(lane_rig_release(&rs, cqe.lease).res, 0);
	return cqe.count;
}

/* Four of five of a tenant's blocks are on NVMe only: a smaller quota takes those that were not used. */
static void a_quota_takes_what_lies_on_nvme(void **state)
{
	struct mail trim = { .type = LANE_TRIM };
	struct config c;
	uint64_t charged;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = 16u << 20;
	rig_start(&c);
	for (uint32_t first = 0; first < 2000; first += 50)
		store(first, 50);
	assert_int_equal(stat(STAT_EVICTED_BLOCKS), 0);
	for (unsigned n = 0; n < 3; n++)
		assert_int_equal(found(0, 50), 50); /* the oldest of all, and used */
	charged = atomic_load(&rig.tenant.charged_bytes);
	assert_true(charged > 2 * c.pool_bytes);
	atomic_store(&rig.tenant.quota_bytes, charged / 2);
	assert_int_equal(mailbox_send(lane_inbox(rig.lane), &trim), 0);
	for (unsigned tries = 0; atomic_load(&rig.tenant.charged_bytes) > charged / 2; tries++) {
		assert_true(tries < 20000);
		(void)usleep(1000);
	}
	assert_true(atomic_load(&rig.tenant.charged_bytes) > charged / 4);
	assert_int_equal(found(0, 50), 50);
	assert_int_equal(found(1950, 50), 50); /* the newest, in memory */
	assert_true(found(50, 50) <
		    25); /* cold chains become shorter in turn: of one a beginning may be left */
}

/* No entry is left, and nearly all blocks are on NVMe only: what is stored takes the place of the oldest. */
static void a_full_index_gives_up_what_lies_on_nvme(void **state)
{
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = 16u << 20;
	c.blocks_max = 1500;
	rig_start(&c);
	for (uint32_t first = 0; first < 3000; first += 50)
		store(first, 50);
	/* One for one; the entry of one that is being coded again comes free later, and another one goes instead. */
	assert_in_range(stat(STAT_EVICTED_BLOCKS), 1500, 1550);
	assert_in_range(stat(STAT_BLOCKS), 1450, 1500);
	assert_int_equal(found(2950, 50), 50);
	assert_true(found(0, 50) < 25); /* as above */
}

/* One block behind the one before it, which is here. */
static struct skvc_abi_cqe store_behind(uint32_t n)
{
	uint8_t *at = rs.s.segment + rs.s.layout.args_off + 8192;
	const uint32_t keys = n ? 2 : 1, page = 0;

	for (uint32_t i = 0; i < keys; i++) {
		struct skvc_abi_key key = lane_rig_key(n + 1 - keys + i);

		memcpy(at + i * sizeof(key), &key, sizeof(key));
	}
	memcpy(at + keys * sizeof(struct skvc_abi_key), &page, sizeof(page));
	lane_rig_submit(&rs, &(struct skvc_abi_sqe){
				     .opcode = SKVC_ABI_OP_STORE,
				     .flags = n ? SKVC_ABI_SQE_PARENT : 0,
				     .ns = 1,
				     .region = rs.handle,
				     .arg = rs.arg,
				     .count = 1,
				     .args_rel = 8192,
				     .args_bytes = keys * (uint32_t)sizeof(struct skvc_abi_key) +
						   (uint32_t)sizeof(page) });
	return lane_rig_done(&rs);
}

/* Its end is what the next block is to hang on: it does not make room for it, and nothing else can. */
static void a_chain_as_long_as_the_index(void **state)
{
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.blocks_max = 100;
	c.speculator =
		CONFIG_SPECULATOR_GENERIC; /* the entry of one that is being coded again comes free later */
	lane_rig_start(&rig, &c);
	session_open();
	for (uint32_t n = 0; n < 100; n++)
		assert_int_equal(store_behind(n).res, 0);
	for (uint32_t n = 100; n < 110; n++) {
		struct skvc_abi_cqe cqe = store_behind(100);

		assert_int_equal(cqe.res, -EAGAIN);
		assert_int_equal(cqe.reason, SKVC_ABI_REASON_INDEX_FULL);
	}
	assert_int_equal(found(0, 100), 100);
	assert_int_equal(stat(STAT_EVICTED_BLOCKS), 0);
	store(5000, 50);
	assert_int_equal(found(5000, 50), 50);
	assert_int_equal(found(0, 100), 50);
}

static void pin(uint32_t count, uint64_t ttl_ns)
{
	assert_int_equal(lane_rig_pin(&rs, 0, count, ttl_ns).count, count);
}

/* What was found at a start is on NVMe only, and the first to go, unless it is used then. */
static void what_was_found_again_goes_first(void **state)
{
	uint32_t left = 0;
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.spill_percent = 1;
	c.blocks_max = 1500;
	c.speculator = CONFIG_SPECULATOR_GENERIC;
	nvme_config(&c);
	lane_rig_start_again(&rig, &c);
	session_open();
	store(0, 50);
	for (uint32_t first = 50; first < 1000; first += 50)
		store(first, 50);
	for (unsigned tries = 0; stat(STAT_SPILL_BLOCKS) < 990; tries++) {
		assert_true(tries < 60000);
		(void)usleep(1000);
	}
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	lane_rig_start_again(&rig, &c);
	session_open();
	assert_true(stat(STAT_NVME_RESTORED_BLOCKS) >= 990);
	assert_int_equal(found(0, 50), 50);
	for (uint32_t first = 5000; first < 6400; first += 50)
		store(first, 50);
	assert_true(stat(STAT_EVICTED_BLOCKS) > 0);
	assert_int_equal(found(0, 50), 50);
	for (uint32_t first = 50; first < 1000; first += 50)
		left += found(first, 50);
	assert_in_range(left, 0, 100);
	for (uint32_t first = 5000; first < 6400; first += 50)
		assert_int_equal(found(first, 50), 50);
}

/* No pin is longer than [limits] lease_ttl_max: then an operator's wish takes the block. */
static void pins_are_not_for_ever(void **state)
{
	struct mail m = { .type = LANE_EVICT };
	struct config c;
	unsigned tries = 0;

	(void)state;
	lane_rig_config(&c);
	c.lease_ttl_ns = 1000000;
	c.lease_ttl_max_ns = 20000000;
	rig_start(&c);
	store(0, 10);
	pin(10, 3600000000000ull);
	do {
		assert_int_equal(mailbox_send(lane_inbox(rig.lane), &m), 0);
		(void)usleep(1000);
		assert_true(++tries < 20000);
	} while (lane_rig_mail(&rig, LANE_EVICT).res > 0);
	assert_int_equal(stat(STAT_BLOCKS), 0);
}

static uint64_t hash_of(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

#define CACHE 1000u
#define LOOP 600u

/* What a lane would see in some 100,000 stores: LOOP blocks that are used again and again, others that never are. */
static void learn(struct policy *p)
{
	uint64_t name[CACHE], fresh = LOOP;

	for (uint32_t id = 0; id < CACHE; id++)
		name[id] = id < LOOP ? id : fresh++;
	for (uint32_t id = 0; id < CACHE; id++) {
		policy_insert(p, id, 0, POLICY_NONE, hash_of(name[id] + 1), false);
		policy_unhold(p, id);
	}
	for (uint32_t n = 0; n < 40 * LOOP; n++) {
		policy_use(p, n % LOOP, hash_of(name[n % LOOP] + 1), false);
		for (uint32_t k = 0; k < 3; k++) {
			uint32_t id = policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL);

			policy_remove(p, id, POLICY_NONE, hash_of(name[id] + 1));
			policy_reset(p, id);
			name[id] = id < LOOP ? id : fresh++;
			policy_insert(p, id, 0, POLICY_NONE, hash_of(name[id] + 1), false);
			policy_unhold(p, id);
		}
	}
	for (uint32_t id = 0; id < CACHE; id++) {
		policy_remove(p, id, POLICY_NONE, hash_of(name[id] + 1));
		policy_reset(p, id);
	}
}

/* What hardly ever comes again is refused, with what hangs on it, if that is wanted; one that comes again is not. */
static void what_never_comes_again_is_refused_if_wanted(void **state)
{
	struct skvc_abi_cqe cqe;
	struct config c, *next = malloc(sizeof(*next));
	struct mail m = { .type = LANE_CONFIG, .subject = next };

	(void)state;
	assert_non_null(next);
	lane_rig_config(&c);
	c.admission = 1;
	lane_rig_start(&rig, &c);
	learn(rig.lane->policy); /* the lane has nothing to do yet */
	session_open();
	lane_rig_store_at(&rs, 0, 10, 0, 1);
	cqe = lane_rig_done(&rs);
	assert_int_equal(cqe.res, -EAGAIN);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_NOT_ADMITTED);
	assert_int_equal(cqe.count, 0);
	assert_int_equal(stat(STAT_STORE_REFUSED_BLOCKS), 10);
	lane_rig_store_at(&rs, 0, 10, 0,
			  1); /* the second time: the first is known, the others not */
	cqe = lane_rig_done(&rs);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_NOT_ADMITTED);
	assert_int_equal(cqe.count, 1);
	assert_int_equal(found(0, 10), 1);
	*next = c;
	next->admission = 0;
	assert_int_equal(mailbox_send(lane_inbox(rig.lane), &m), 0);
	store(0, 10);
	assert_int_equal(found(0, 10), 10);
}

/* Between two uses of some chains come more blocks that never come again than there is room: LRU would have no hit. */
static void what_is_used_outlasts_a_scan(void **state)
{
	uint32_t fresh = 100000, hits = 0;
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = 16u << 20;
	c.speculator = CONFIG_SPECULATOR_GENERIC;
	lane_rig_start(&rig, &c);
	session_open();
	for (uint32_t round = 0; round < 25; round++) {
		for (uint32_t chain = 0; chain < 6; chain++) {
			uint32_t n = found(chain * 50, 50);

			hits += round >= 20 ? n : 0;
			store(chain * 50, 50);
		}
		for (uint32_t n = 0; n < 16; n++, fresh += 50)
			store(fresh, 50);
	}
	print_message("%u of %u found\n", hits, 5 * 6 * 50);
	assert_true(hits > 5 * 6 * 50 * 3 / 4);
}

/* Of a chain whose blocks may have to be read: how many had to. */
static uint64_t fetched(uint32_t first, uint32_t count)
{
	const uint64_t before = stat(STAT_FETCH_BLOCKS);
	struct skvc_abi_cqe cqe = lane_rig_lookup(&rs, first, count), load;

	assert_int_equal(cqe.count, count);
	lane_rig_load(&rs, cqe.lease, 0, count, 1);
	load = lane_rig_done(&rs);
	assert_int_equal(load.res, 0);
	assert_int_equal(lane_rig_release(&rs, cqe.lease).res, 0);
	return stat(STAT_FETCH_BLOCKS) - before;
}

/*
 * Between two uses of some chains more blocks come from NVMe than there is room, each once.  That what is used twice is
 * not always used again has to be learnt; then those chains are not read from NVMe.
 */
static void what_is_used_outlasts_promotions(void **state)
{
	uint64_t read = 0, promoted = 0;
	struct config c;

	(void)state;
	lane_rig_config(&c);
	nvme_config(&c);
	c.pool_bytes = 16u << 20;
	c.nvme_bytes = 512u << 20;
	c.blocks_max = 32768;
	c.speculator = CONFIG_SPECULATOR_GENERIC;
	lane_rig_start(&rig, &c);
	session_open();
	for (uint32_t round = 0; round < 32; round++) {
		for (uint32_t chain = 0; chain < 6; chain++) {
			uint64_t n;

			store(chain * 50, 50);
			n = fetched(chain * 50, 50);
			read += round >= 26 ? n : 0;
		}
		for (uint32_t chain = round * 16; chain < (round + 1) * 16; chain++)
			if (round < 20)
				store(100000 + chain * 50, 50);
			else /* of the oldest */
				promoted += fetched(100000 + (chain - 20 * 16) * 50, 50);
	}
	print_message("%llu and %llu blocks were read\n", (unsigned long long)read,
		      (unsigned long long)promoted);
	assert_true(promoted > 12 * 16 * 50 * 9 / 10);
	assert_true(read < 6 * 6 * 50 / 4);
}

/* More pins at the cold end than are looked at at once do not stop stores, and hold. */
static void many_pins_do_not_stop_stores(void **state)
{
	struct config c;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = 32u << 20;
	c.speculator = CONFIG_SPECULATOR_GENERIC;
	lane_rig_start(&rig, &c);
	session_open();
	for (uint32_t first = 0; first < 600; first += 50)
		store(first, 50);
	pin(600, 3600000000000ull);
	for (uint32_t first = 600; first < 3000; first += 50)
		store(first, 50);
	assert_true(stat(STAT_EVICTED_BLOCKS) > 0);
	for (uint32_t first = 0; first < 600; first += 50)
		assert_int_equal(found(first, 50), 50);
	assert_int_equal(found(2950, 50), 50);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_chain_is_lost_from_its_end, by_hand, by_hand_end),
		cmocka_unit_test_setup_teardown(a_growing_chain_gives_way_to_itself, by_hand,
						by_hand_end),
		cmocka_unit_test_setup_teardown(what_recode_holds_may_go, by_hand, by_hand_end),
		cmocka_unit_test_setup_teardown(tenants_have_victims_of_their_own, by_hand,
						by_hand_end),
		cmocka_unit_test_setup_teardown(pins_end, by_hand, by_hand_end),
		cmocka_unit_test_setup_teardown(pins_are_saved_and_do_not_wrap, by_hand,
						by_hand_end),
		cmocka_unit_test_setup_teardown(waits_are_told_at_any_time, by_hand, by_hand_end),
		cmocka_unit_test_setup_teardown(a_pinned_leaf_keeps_its_chain, by_hand,
						by_hand_end),
		cmocka_unit_test_setup_teardown(nvme_keeps_the_best, by_hand, by_hand_end),
		cmocka_unit_test_teardown(a_quota_takes_what_lies_on_nvme, rig_stop),
		cmocka_unit_test_teardown(a_full_index_gives_up_what_lies_on_nvme, rig_stop),
		cmocka_unit_test_teardown(a_chain_as_long_as_the_index, rig_stop),
		cmocka_unit_test_teardown(what_was_found_again_goes_first, rig_stop),
		cmocka_unit_test_teardown(pins_are_not_for_ever, rig_stop),
		cmocka_unit_test_teardown(what_never_comes_again_is_refused_if_wanted, rig_stop),
		cmocka_unit_test_teardown(what_is_used_outlasts_a_scan, rig_stop),
		cmocka_unit_test_teardown(what_is_used_outlasts_promotions, rig_stop),
		cmocka_unit_test_teardown(many_pins_do_not_stop_stores, rig_stop),
	};

	return cmocka_run_group_tests_name("tier_policy", tests, NULL, NULL);
}
