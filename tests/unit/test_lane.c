/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_lane.c - the data path driven step by step, without processes: what is stored comes back exact,
 * everything completes exactly once, room is made in the right order, nothing survives its owner.
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
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/util/clock.h"

static uint64_t counter(struct rig *rig, enum stats_id id)
{
	return stats_get(lane_stats(rig->lane), id);
}

/* A counter that the lane changes some time after the completion. */
static void eventually(struct rig *rig, enum stats_id id, uint64_t want)
{
	uint64_t start_ns = clock_now_ns();

	while (counter(rig, id) != want) {
		if (clock_now_ns() - start_ns > RIG_WAIT_NS)
			fail_msg("%s is %llu, not %llu", stats_info[id].name,
				 (unsigned long long)counter(rig, id), (unsigned long long)want);
		usleep(1000);
	}
}

static struct skvc_abi_cqe store_once(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe;

	for (uint32_t i = 0; i < count; i++)
		lane_rig_fill(rs, (first + i) % RIG_PAGES, first + i);
	lane_rig_store(rs, first, count, 7);
	cqe = lane_rig_complete(rs);
	if (cqe.res == -EAGAIN) /* there is no room, and so nothing was taken */
		return cqe;
	assert_int_equal(cqe.kind, SKVC_ABI_CQE_SOURCE_FREE);
	assert_int_equal(cqe.user_data, 7);
	for (uint32_t i = 0; i < count;
	     i++) /* the source may be reused: nothing must read it now */
		memset(lane_rig_page(rs, (first + i) % RIG_PAGES), 0xee,
		       rs->rig->ns.geom.raw_bytes);
	cqe = lane_rig_complete(rs);
	assert_int_equal(cqe.kind, SKVC_ABI_CQE_DONE);
	return cqe;
}

static void store_all(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	const struct skvc_abi_cqe cqe = store_once(rs, first, count);

	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	assert_int_equal(cqe.raw_bytes, count * rs->rig->ns.geom.raw_bytes);
	assert_true(cqe.stored_bytes > 0 && cqe.stored_bytes < cqe.raw_bytes);
}

/* Ahead of a disk that is busy with others, the pool may be full for a while: ask again, as engines do. */
static void store_patiently(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	for (unsigned tries = 0; tries < 50; tries++) {
		const int32_t r = store_once(rs, first, count).res;

		if (r == 0)
			return;
		assert_int_equal(r, -EAGAIN);
		usleep(100000);
	}
	fail_msg("blocks %u and on were refused 50 times", first);
}

static void load_all(struct lane_rig_session *rs, uint32_t first, uint32_t count)
{
	struct skvc_abi_cqe cqe = lane_rig_lookup(rs, first, count);
	uint64_t lease = cqe.lease;

	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	for (uint32_t i = 0; i < count; i++)
		memset(lane_rig_page(rs, i), 0x11, rs->rig->ns.geom.raw_bytes);
	lane_rig_load(rs, lease, 0, count, 8);
	cqe = lane_rig_complete(rs);
	assert_int_equal(cqe.kind, SKVC_ABI_CQE_DONE);
	assert_int_equal(cqe.user_data, 8);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, count);
	for (uint32_t i = 0; i < count; i++)
		assert_true(lane_rig_page_is(rs, i, first + i));
	assert_int_equal(lane_rig_release(rs, lease).res, 0);
}

static void what_goes_in_comes_out(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	store_all(&rs, 0, 64); /* samples, the first profile, and blocks coded with it */
	load_all(&rs, 0, 64);
	store_all(&rs, 64, 32);
	load_all(&rs, 0, 96);
	assert_int_equal(counter(&rig, STAT_STORE_BLOCKS), 96);
	assert_int_equal(counter(&rig, STAT_LOAD_BLOCKS), 64 + 96);
	assert_int_equal(counter(&rig, STAT_CHECKSUM_FAILURES), 0);
	eventually(&rig, STAT_PROFILES_FITTED, 1);
	lane_rig_session_close(&rs);
	assert_int_equal(counter(&rig, STAT_SESSIONS), 0);
	lane_rig_stop(&rig);
}

static void a_lookup_counts_the_leading_hits(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	cqe = lane_rig_lookup(&rs, 0, 4);
	assert_int_equal(cqe.res, -ENOENT);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_MISS);
	store_all(&rs, 0, 5);
	cqe = lane_rig_lookup(&rs, 0, 8);
	assert_int_equal(cqe.count, 5);
	assert_int_equal(cqe.pending, 0);
	assert_int_equal(lane_rig_release(&rs, cqe.lease).res, 0);
	assert_int_equal(lane_rig_release(&rs, cqe.lease).res, -ESTALE);
	lane_rig_load(&rs, cqe.lease, 0, 5, 9);
	cqe = lane_rig_complete(&rs);
	assert_int_equal(cqe.res, -ESTALE);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_LEASE_GONE);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

static void a_duplicate_is_done_without_work(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	store_all(&rs, 0, 8);
	lane_rig_store(&rs, 0, 8, 7);
	cqe = lane_rig_done(&rs);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, 8);
	assert_int_equal(cqe.stored_bytes, 0);
	assert_int_equal(counter(&rig, STAT_STORE_DUPLICATE_BLOCKS), 8);
	assert_int_equal(counter(&rig, STAT_STORE_BLOCKS), 8);
	load_all(&rs, 0, 8);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

/* More blocks than the pool holds: the coldest go, the newest stay and are right. */
static void room_is_made_by_evicting_the_coldest(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;
	uint32_t first;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = 16u << 20;
	c.speculator = CONFIG_SPECULATOR_GENERIC; /* a block that is coded again just now stays */
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	for (first = 0; first < 1200; first += 50)
		store_all(&rs, first, 50);
	assert_true(counter(&rig, STAT_EVICTED_BLOCKS) > 0);
	assert_true(counter(&rig, STAT_POOL_SLOT_BYTES) <= c.pool_bytes);
	cqe = lane_rig_lookup(&rs, 0, 1);
	assert_int_equal(cqe.res, -ENOENT);
	load_all(&rs, 1150, 50);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

/* Leased blocks are never evicted: when everything is leased, a store is refused with a reason. */
static void a_lease_keeps_its_blocks(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;
	uint64_t lease[1024];
	uint32_t leases = 0;

	(void)state;
	lane_rig_config(&c);
	c.pool_bytes = 16u << 20;
	c.leases_max = 1024;
	c.store_wait_ns = 20000000;
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	while (leases < 1024) {
		lane_rig_fill(&rs, leases % RIG_PAGES, leases);
		lane_rig_store(&rs, leases, 1, 7);
		cqe = lane_rig_done(&rs);
		if (cqe.res)
			break;
		cqe = lane_rig_lookup(&rs, leases, 1);
		assert_int_equal(cqe.count, 1);
		lease[leases++] = cqe.lease;
	}
	assert_int_equal(cqe.res, -EAGAIN);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_POOL_FULL);
	assert_int_equal(counter(&rig, STAT_EVICTED_BLOCKS), 0);
	for (uint32_t i = 0; i < leases; i++) {
		lane_rig_load(&rs, lease[i], 0, 1, 8);
		assert_int_equal(lane_rig_complete(&rs).count, 1);
		assert_true(lane_rig_page_is(&rs, 0, i));
		assert_int_equal(lane_rig_release(&rs, lease[i]).res, 0);
	}
	store_all(&rs, 5000, 16); /* room again, and accepted again */
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

static void a_lease_ends_at_its_deadline(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	c.lease_ttl_ns = 30000000;
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	store_all(&rs, 0, 4);
	cqe = lane_rig_lookup(&rs, 0, 4);
	assert_int_equal(counter(&rig, STAT_LEASES), 1);
	eventually(&rig, STAT_LEASES, 0);
	assert_int_equal(counter(&rig, STAT_LEASES_EXPIRED), 1);
	assert_int_equal(lane_rig_release(&rs, cqe.lease).res, -ESTALE);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

/* The owner goes with work in flight: everything it held is free, its blocks stay. */
static void a_session_that_ends_holds_nothing(void **state)
{
	struct lane_rig_session a, b;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &a);
	lane_rig_session_open(&rig, &b);
	store_all(&a, 0, 40);
	lane_rig_lookup(&a, 0, 40);
	for (uint32_t i = 0; i < 100; i++)
		lane_rig_fill(&a, (500 + i) % RIG_PAGES, 500 + i);
	lane_rig_store(&a, 500, 100, 7);
	lane_rig_session_close(&a);
	assert_int_equal(counter(&rig, STAT_LEASES), 0);
	assert_int_equal(counter(&rig, STAT_JOBS), 0);
	load_all(&b, 0, 40);
	for (uint32_t i = 0; i < 100; i++)
		lane_rig_fill(&b, (500 + i) % RIG_PAGES, 500 + i);
	lane_rig_store(&b, 500, 100, 7); /* keys that were begun and given up can be stored again */
	cqe = lane_rig_done(&b);
	assert_int_equal(cqe.res, 0);
	assert_int_equal(cqe.count, 100);
	load_all(&b, 500, 100);
	lane_rig_session_close(&b);
	lane_rig_stop(&rig);
}

static void an_aborted_job_completes_once(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;
	unsigned dones = 0, answers = 0;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	for (uint32_t i = 0; i < 200; i++)
		lane_rig_fill(&rs, i, i);
	lane_rig_store(&rs, 0, 200, 7);
	lane_rig_submit(&rs, &(struct skvc_abi_sqe){
				     .opcode = SKVC_ABI_OP_ABORT, .user_data = 55, .arg = 7 });
	while (!dones || !answers) {
		cqe = lane_rig_complete(&rs);
		answers += cqe.user_data == 55;
		if (cqe.user_data == 7 && cqe.kind == SKVC_ABI_CQE_DONE) {
			dones++;
			assert_true(cqe.res == -ECANCELED || cqe.count == 200);
		}
	}
	lane_rig_submit(&rs, &(struct skvc_abi_sqe){
				     .opcode = SKVC_ABI_OP_ABORT, .user_data = 56, .arg = 7 });
	cqe = lane_rig_complete(&rs);
	assert_int_equal(cqe.user_data, 56); /* and no second DONE before it */
	assert_int_equal(cqe.res, -ESTALE);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_NO_SUCH_JOB);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

/* Each of these ends the session with its own reason, and nobody else notices. */
static void nonsense_ends_the_session(void **state)
{
	static const struct {
		struct skvc_abi_sqe sqe;
		uint16_t reason;
	} nonsense[] = {
		{ { .opcode = 200 }, SKVC_ABI_REASON_BAD_OPCODE },
		{ { .opcode = SKVC_ABI_OP_NOP, .flags = 1 }, SKVC_ABI_REASON_BAD_FLAGS },
		{ { .opcode = SKVC_ABI_OP_NOP, .reserved0 = 1 }, SKVC_ABI_REASON_BAD_RESERVED },
		{ { .opcode = SKVC_ABI_OP_TOUCH, .ns = 1 }, SKVC_ABI_REASON_BAD_COUNT },
		{ { .opcode = SKVC_ABI_OP_TOUCH,
		    .ns = 1,
		    .count = 1,
		    .args_bytes = 40,
		    .args_rel = RIG_ARGS_BYTES },
		  SKVC_ABI_REASON_BAD_ARGS },
		{ { .opcode = SKVC_ABI_OP_TOUCH,
		    .ns = 1,
		    .count = 1,
		    .args_bytes = 40,
		    .args_rel = 4096 },
		  SKVC_ABI_REASON_BAD_KEY }, /* a key of zeros: length 0 */
	};
	struct lane_rig_session good;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	c.sessions_max = 16;
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &good);
	store_all(&good, 0, 4);
	for (unsigned i = 0; i < sizeof(nonsense) / sizeof(nonsense[0]); i++) {
		struct lane_rig_session bad;
		struct mail m;

		lane_rig_session_open(&rig, &bad);
		lane_rig_submit(&bad, &nonsense[i].sqe);
		m = lane_rig_mail(&rig, LANE_SESSION_FAILED);
		assert_ptr_equal(m.subject, &bad.s);
		assert_int_equal(m.value, nonsense[i].reason);
		assert_int_equal(((struct skvc_abi_header *)bad.s.segment)->end_reason,
				 nonsense[i].reason);
		lane_rig_session_close(&bad);
	}
	load_all(&good, 0, 4);
	lane_rig_session_close(&good);
	lane_rig_stop(&rig);
}

static void an_impossible_index_ends_the_session(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	__atomic_store_n(&rs.sq.own->value, 1000000, __ATOMIC_RELEASE);
	eventfd_write(rs.s.sq_fd, 1);
	assert_int_equal(lane_rig_mail(&rig, LANE_SESSION_FAILED).value,
			 SKVC_ABI_REASON_RING_OVERRUN);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

/* A client that never reads its completions is not served beyond its ring, and costs others nothing. */
static void who_does_not_read_is_not_served(void **state)
{
	struct skvc_abi_sqe nop = { .opcode = SKVC_ABI_OP_NOP };
	struct lane_rig_session deaf, good;
	struct skvc_abi_cqe cqe = { .res = -EINVAL };
	struct config c;
	struct rig rig;
	uint64_t ops;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &deaf);
	lane_rig_session_open(&rig, &good);
	/* As many as its completion ring takes, and a full submission ring that nobody looks at. */
	for (unsigned i = 0; i < deaf.s.layout.cq_entries - 1 + deaf.s.layout.sq_entries; i++) {
		uint64_t start_ns = clock_now_ns();

		while (ring_produce_room(&deaf.sq) == 0)
			assert_true(clock_now_ns() - start_ns < RIG_WAIT_NS);
		lane_rig_submit(&deaf, &nop);
	}
	usleep(50000);
	ops = counter(&rig, STAT_OPS);
	assert_int_equal(ops, deaf.s.layout.cq_entries - 1);
	store_all(&good, 0, 16);
	load_all(&good, 0, 16);
	for (unsigned i = 0; i < deaf.s.layout.cq_entries; i++) /* reads at last: served again */
		cqe = lane_rig_complete(&deaf);
	assert_int_equal(cqe.res, 0);
	lane_rig_session_close(&deaf);
	lane_rig_session_close(&good);
	lane_rig_stop(&rig);
}

static void a_quota_is_kept_by_evicting_ones_own(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	rig.tenant.quota_bytes = 1u << 20;
	lane_rig_session_open(&rig, &rs);
	for (uint32_t first = 0; first < 200; first += 10)
		store_all(&rs, first, 10);
	assert_true(atomic_load(&rig.tenant.charged_bytes) <= rig.tenant.quota_bytes);
	assert_true(counter(&rig, STAT_EVICTED_BLOCKS) > 0);
	load_all(&rs, 190, 10);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

static void a_dropped_block_is_gone_and_uncharged(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct skvc_abi_key key = lane_rig_key(0);
	struct config c;
	struct rig rig;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	store_all(&rs, 0, 1);
	memcpy(rs.s.segment + rs.s.layout.args_off + 8192, &key, sizeof(key));
	lane_rig_submit(&rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_DROP,
						     .ns = 1,
						     .count = 1,
						     .args_rel = 8192,
						     .args_bytes = sizeof(key) });
	cqe = lane_rig_complete(&rs);
	assert_int_equal(cqe.count, 1);
	assert_int_equal(lane_rig_lookup(&rs, 0, 1).res, -ENOENT);
	assert_int_equal(atomic_load(&rig.tenant.charged_bytes), 0);
	assert_int_equal(counter(&rig, STAT_BLOCKS), 0);
	assert_int_equal(counter(&rig, STAT_POOL_USED_BYTES), 0);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

/* Dropped under a lease: gone for everybody else, still loadable for who holds it, freed at the release. */
static void a_lease_outlives_a_drop(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct skvc_abi_key key = lane_rig_key(0);
	struct config c;
	struct rig rig;
	uint64_t lease;

	(void)state;
	lane_rig_config(&c);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	store_all(&rs, 0, 1);
	lease = lane_rig_lookup(&rs, 0, 1).lease;
	memcpy(rs.s.segment + rs.s.layout.args_off + 8192, &key, sizeof(key));
	lane_rig_submit(&rs, &(struct skvc_abi_sqe){ .opcode = SKVC_ABI_OP_DROP,
						     .ns = 1,
						     .count = 1,
						     .args_rel = 8192,
						     .args_bytes = sizeof(key) });
	assert_int_equal(lane_rig_complete(&rs).count, 1);
	assert_int_equal(lane_rig_lookup(&rs, 0, 1).res, -ENOENT);
	lane_rig_load(&rs, lease, 0, 1, 8);
	cqe = lane_rig_complete(&rs);
	assert_int_equal(cqe.count, 1);
	assert_true(lane_rig_page_is(&rs, 0, 0));
	assert_int_equal(counter(&rig, STAT_BLOCKS_HOST), 1);
	assert_int_equal(lane_rig_release(&rs, lease).res, 0);
	assert_int_equal(counter(&rig, STAT_BLOCKS_HOST), 0);
	assert_int_equal(counter(&rig, STAT_POOL_USED_BYTES), 0);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

#define SPILL_PATH_BYTES 64u

static void spill_config(struct config *c, char *path, const char *fault)
{
	int fd;

	lane_rig_config(c);
	snprintf(path, SPILL_PATH_BYTES, "./skvcd-test-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	c->pool_bytes = 16u << 20;
	snprintf(c->nvme_path, sizeof(c->nvme_path), "%s", path);
	c->nvme_bytes = 128u << 20;
	c->nvme_segment_bytes = 4u << 20;
	snprintf(c->fault_nvme, sizeof(c->fault_nvme), "%s", fault ? fault : "");
}

static void what_was_spilled_comes_back(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;
	char path[SPILL_PATH_BYTES];

	(void)state;
	spill_config(&c, path, NULL);
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	for (uint32_t first = 0; first < 1000; first += 50)
		store_patiently(&rs, first, 50);
	assert_true(counter(&rig, STAT_SPILL_BLOCKS) > 0);
	assert_int_equal(counter(&rig, STAT_EVICTED_BLOCKS), 0);
	for (uint32_t first = 0; first < 1000; first += 100)
		load_all(&rs, first, 100);
	assert_true(counter(&rig, STAT_FETCH_BLOCKS) > 0);
	assert_int_equal(counter(&rig, STAT_CHECKSUM_FAILURES), 0);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	unlink(path);
}

/* Every 5th read has a flipped byte: those blocks are reported as not restored, the others are exact. */
static void wrong_bytes_from_disk_are_a_miss(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;
	char path[SPILL_PATH_BYTES];
	uint64_t bad = 0, good = 0;

	(void)state;
	spill_config(&c, path, "read:flip:every=5");
	c.nvme_read_ahead_bytes = 0; /* or some are known to be bad before they are asked for */
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	for (uint32_t first = 0; first < 1000; first += 50)
		store_patiently(&rs, first, 50);
	for (uint32_t first = 0; first < 1000; first++) {
		uint64_t lease;

		cqe = lane_rig_lookup(&rs, first, 1);
		assert_int_equal(cqe.count, 1);
		lease = cqe.lease;
		lane_rig_load(&rs, lease, 0, 1, 8);
		cqe = lane_rig_complete(&rs);
		if (cqe.count == 1) {
			assert_int_equal(cqe.res, 0);
			assert_true(lane_rig_page_is(&rs, 0, first));
			good++;
		} else {
			assert_int_equal(cqe.res, -ENODATA);
			bad++;
		}
		lane_rig_release(&rs, lease);
	}
	assert_true(bad > 0 && good > bad);
	assert_int_equal(counter(&rig, STAT_CHECKSUM_FAILURES), bad);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	unlink(path);
}

/* All writes fail: the tier goes out of service, stores go on in memory alone. */
static void a_dead_disk_takes_only_its_tier_down(void **state)
{
	struct lane_rig_session rs;
	struct config c;
	struct rig rig;
	char path[SPILL_PATH_BYTES];

	(void)state;
	spill_config(&c, path, "write:eio:every=1");
	c.nvme_retry_ns = 3600ull * 1000000000;
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	for (uint32_t first = 0; first < 1000; first += 50)
		store_all(&rs, first, 50);
	assert_int_equal(counter(&rig, STAT_NVME_HEALTH), 2);
	assert_true(counter(&rig, STAT_NVME_ERRORS) > 0);
	assert_true(counter(&rig, STAT_EVICTED_BLOCKS) > 0);
	assert_int_equal(lane_rig_mail(&rig, LANE_NVME_HEALTH).value, 2);
	load_all(&rs, 950, 50);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
	unlink(path);
}

/* Every 3rd encode fails: those blocks are refused with a reason, the others are stored. */
static void a_failing_device_refuses_blocks(void **state)
{
	struct lane_rig_session rs;
	struct skvc_abi_cqe cqe;
	struct config c;
	struct rig rig;
	uint32_t hits = 0;

	(void)state;
	lane_rig_config(&c);
	snprintf(c.fault_device, sizeof(c.fault_device), "encode:eio:every=3");
	lane_rig_start(&rig, &c);
	lane_rig_session_open(&rig, &rs);
	for (uint32_t i = 0; i < 60; i++)
		lane_rig_fill(&rs, i, i);
	lane_rig_store(&rs, 0, 60, 7);
	cqe = lane_rig_done(&rs);
	assert_int_equal(cqe.res, -EIO);
	assert_int_equal(cqe.reason, SKVC_ABI_REASON_DEVICE_ERROR);
	assert_int_equal(cqe.count, 40);
	for (uint32_t i = 0; i < 60; i++) {
		cqe = lane_rig_lookup(&rs, i, 1);
		if (cqe.count) {
			lane_rig_release(&rs, cqe.lease);
			hits++;
		}
	}
	assert_int_equal(hits, 40);
	lane_rig_session_close(&rs);
	lane_rig_stop(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_goes_in_comes_out),
		cmocka_unit_test(a_lookup_counts_the_leading_hits),
		cmocka_unit_test(a_duplicate_is_done_without_work),
		cmocka_unit_test(room_is_made_by_evicting_the_coldest),
		cmocka_unit_test(a_lease_keeps_its_blocks),
		cmocka_unit_test(a_lease_ends_at_its_deadline),
		cmocka_unit_test(a_session_that_ends_holds_nothing),
		cmocka_unit_test(an_aborted_job_completes_once),
		cmocka_unit_test(nonsense_ends_the_session),
		cmocka_unit_test(an_impossible_index_ends_the_session),
		cmocka_unit_test(who_does_not_read_is_not_served),
		cmocka_unit_test(a_quota_is_kept_by_evicting_ones_own),
		cmocka_unit_test(a_dropped_block_is_gone_and_uncharged),
		cmocka_unit_test(a_lease_outlives_a_drop),
		cmocka_unit_test(what_was_spilled_comes_back),
		cmocka_unit_test(wrong_bytes_from_disk_are_a_miss),
		cmocka_unit_test(a_dead_disk_takes_only_its_tier_down),
		cmocka_unit_test(a_failing_device_refuses_blocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
