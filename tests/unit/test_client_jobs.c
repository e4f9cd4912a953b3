/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_client_jobs.c - operations, completions exactly once, waiting, aborting, full tables, the simple
 * calls; and completions that a broken daemon invents.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client-lib/client.h"
#include "tests/lib/client_rig.h"
#include "tests/lib/rng.h"

#define SECOND_NS 1000000000ull

/* Take one completion, waiting for it. */
static struct skvc_completion next(struct rig *rig)
{
	uint64_t deadline_ns = rig_now_ns() + 5 * SECOND_NS;
	struct skvc_completion c;
	int n;

	do {
		n = skvc_poll(rig->session, &c, 1);
		assert_true(n >= 0 && rig_now_ns() < deadline_ns);
	} while (!n);
	return c;
}

static void stores_and_loads(void **state)
{
	struct skvc_key keys[RIG_BLOCKS], parent = rig_key(1000);
	uint32_t tokens[RIG_BLOCKS * RIG_BLOCK_TOKENS], blocks[RIG_BLOCKS], segments = 99;
	uint64_t job, lease, bitmap = UINT64_MAX;
	struct skvc_store store = { .keys = keys, .blocks = blocks, .tokens = tokens, .count = 5 };
	struct skvc_load load = { .blocks = blocks, .count = 3, .first = 2 };
	struct skvc_lease_status status;
	struct skvc_completion c;
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	for (uint32_t i = 0; i < RIG_BLOCKS; i++) {
		keys[i] = rig_key(i);
		blocks[i] = RIG_BLOCKS - 1 - i;
		rig_fill(&rig, blocks[i], i);
	}
	memset(tokens, 1, sizeof(tokens));
	store.ns = rig.ns;
	store.region = rig.region;
	store.parent = &parent;
	store.ret_bitmap = &bitmap;
	assert_int_equal(skvc_store(rig.session, &store, &job), 0);
	assert_int_equal(skvc_pending(rig.session), 1);
	c = next(&rig);
	assert_int_equal(c.event, SKVC_EVENT_SOURCE_FREE);
	assert_true(c.job == job);
	c = next(&rig);
	assert_int_equal(c.event, SKVC_EVENT_DONE);
	assert_true(c.job == job && c.res == 0 && c.count == 5);
	assert_true(c.raw_bytes == 5 * RIG_BLOCK_BYTES);
	assert_true(bitmap == 0x1f);
	assert_int_equal(skvc_pending(rig.session), 0);
	assert_int_equal(skvc_result(rig.session, job, &c), -ESTALE);

	lease = rig_lease(&rig, 5);
	assert_int_equal(skvc_lease_poll(rig.session, lease, &status), 0);
	assert_true(status.blocks_hit == 5 && status.blocks_ready == 5 &&
		    status.deadline_ns == 12345);
	assert_int_equal(skvc_lease_poll(rig.session, lease + (1ull << 32), &status), -ESTALE);
	assert_int_equal(skvc_lease_poll(rig.session, lease | 0xffff, &status), -ESTALE);
	memset(skvc_arena_ptr(rig.arena), 0, RIG_BLOCKS * RIG_BLOCK_BYTES);
	load.region = rig.region;
	load.lease = lease;
	load.ret_bitmap = &bitmap;
	load.ret_segments_ready = &segments;
	assert_int_equal(skvc_load(rig.session, &load, &job), 0);
	c = rig_finish(&rig, job);
	assert_true(c.res == 0 && c.count == 3 && bitmap == 7 && segments == RIG_SEGMENTS);
	for (uint32_t i = 0; i < 3; i++)
		assert_true(rig_is_filled(&rig, blocks[i], i + 2));
	assert_int_equal(skvc_release(rig.session, lease, &job), 0);
	assert_int_equal(rig_finish(&rig, job).res, 0);
	assert_int_equal(skvc_lease_poll(rig.session, lease, &status), -ESTALE);
	assert_int_equal(skvc_release(rig.session, lease, &job), 0);
	c = rig_finish(&rig, job);
	assert_int_equal(c.res, -ESTALE);
	assert_string_equal(skvc_reason_name(c.reason), "lease-gone");
	rig_deinit(&rig);
}

static void reports_partial_success(void **state)
{
	uint32_t blocks[RIG_BLOCKS], segments;
	struct skvc_key keys[RIG_BLOCKS];
	uint64_t job, bitmap;
	struct skvc_store store = {
		.keys = keys, .blocks = blocks, .count = 4, .ret_bitmap = &bitmap
	};
	struct skvc_load load = {
		.blocks = blocks, .count = 4, .ret_bitmap = &bitmap, .ret_segments_ready = &segments
	};
	struct skvc_completion c;
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
	for (uint32_t i = 0; i < RIG_BLOCKS; i++) {
		keys[i] = rig_key(i);
		blocks[i] = i;
	}
	store.ns = rig.ns;
	store.region = load.region = rig.region;
	fake_daemon_fault(rig.daemon, FAKE_PARTIAL);
	assert_int_equal(skvc_store(rig.session, &store, &job), 0);
	c = rig_finish(&rig, job);
	assert_true(c.res == 0 && c.count == 3 && bitmap == 0xe);
	assert_string_equal(skvc_reason_name(c.reason), "pool-full");
	fake_daemon_fault(rig.daemon, FAKE_NO_SOURCE_FREE);
	assert_int_equal(skvc_store(rig.session, &store, &job), 0);
	c = next(&rig);
	assert_true(c.event == SKVC_EVENT_DONE && c.count == 4); /* without SOURCE_FREE before it */
	load.lease = rig_lease(&rig, 4);
	fake_daemon_fault(rig.daemon, FAKE_PARTIAL);
	assert_int_equal(skvc_load(rig.session, &load, &job), 0);
	c = rig_finish(&rig, job);
	assert_true(c.res == -ENODATA && c.count == 3 && bitmap == 0xe);
	fake_daemon_fault(rig.daemon, FAKE_BITMAP_WILD);
	assert_int_equal(skvc_load(rig.session, &load, &job), 0);
	assert_int_equal(rig_finish(&rig, job).res, 0);
	assert_true(bitmap == 0xf);
	/* A progress word gone wild stays within the segments. */
	fake_daemon_fault(rig.daemon, FAKE_PROGRESS_WILD);
	fake_daemon_hold(rig.daemon, true);
	assert_int_equal(skvc_load(rig.session, &load, &job), 0);
	assert_int_equal(skvc_wait(rig.session, &job, 1, 20000000), -ETIME);
	assert_int_equal(segments, RIG_SEGMENTS);
	fake_daemon_fault(rig.daemon, FAKE_NONE);
	fake_daemon_hold(rig.daemon, false);
	assert_int_equal(rig_finish(&rig, job).res, 0);
	rig_deinit(&rig);
}

static void shows_progress_while_it_loads(void **state)
{
	uint32_t blocks[1] = { 0 }, segments = 9;
	struct skvc_load load = { .blocks = blocks, .count = 1, .ret_segments_ready = &segments };
	struct rig rig;
	uint64_t job;

	(void)state;
	rig_init(&rig, NULL);
	rig_store(&rig, 1);
	load.lease = rig_lease(&rig, 1);
	load.region = rig.region;
	fake_daemon_hold(rig.daemon, true);
	assert_int_equal(skvc_load(rig.session, &load, &job), 0);
	assert_int_equal(segments, 0);
	while (segments != 1)
		assert_int_equal(skvc_poll(rig.session, NULL, 0), 0);
	fake_daemon_hold(rig.daemon, false);
	assert_int_equal(rig_finish(&rig, job).res, 0);
	assert_int_equal(segments, RIG_SEGMENTS);
	rig_deinit(&rig);
}

static void the_other_calls(void **state)
{
	struct skvc_key keys[4];
	struct rig rig;
	uint64_t job;

	(void)state;
	rig_init(&rig, NULL);
	rig_store(&rig, 3);
	for (uint32_t i = 0; i < 4; i++)
		keys[i] = rig_key(i);
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 4, &job), 0);
	assert_int_equal(rig_finish(&rig, job).count, 3);
	assert_int_equal(skvc_pin(rig.session, rig.ns, keys, 2, 3600 * SECOND_NS, &job), 0);
	assert_int_equal(rig_finish(&rig, job).count, 2);
	assert_int_equal(skvc_pin(rig.session, rig.ns, keys, 2, 25 * 3600 * SECOND_NS, &job),
			 -EINVAL);
	assert_int_equal(skvc_drop(rig.session, rig.ns, keys, 1, &job), 0);
	assert_int_equal(rig_finish(&rig, job).count, 1);
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 4, &job), 0);
	assert_int_equal(rig_finish(&rig, job).count, 2);
	rig_deinit(&rig);
}

static void refuses_bad_arguments(void **state)
{
	uint32_t blocks[2] = { 0, RIG_BLOCKS };
	struct skvc_key keys[2] = { rig_key(0), rig_key(1) };
	uint64_t job = 42;
	struct rig rig;

	(void)state;
	rig_init(&rig, NULL);
#define LOOKUP(n, ...) \
	skvc_lookup(rig.session, &(struct skvc_lookup){ .ns = (n), __VA_ARGS__ }, &job)
#define LOAD(l, r, ...)                                                                         \
	skvc_load(rig.session, &(struct skvc_load){ .lease = (l), .region = (r), __VA_ARGS__ }, \
		  &job)
#define STORE(r, ...)                                                                            \
	skvc_store(rig.session,                                                                  \
		   &(struct skvc_store){                                                         \
			   .ns = rig.ns, .region = (r), .keys = keys, .count = 1, __VA_ARGS__ }, \
		   &job)
	assert_int_equal(LOOKUP(rig.ns, .count = 1), -EINVAL);
	assert_int_equal(LOOKUP(rig.ns, .count = 0, .keys = keys), -EINVAL);
	assert_int_equal(LOOKUP(rig.ns, .count = 4097, .keys = keys), -E2BIG);
	assert_int_equal(LOOKUP(2, .count = 1, .keys = keys), -EINVAL);
	assert_int_equal(LOOKUP(rig.ns, .count = 1, .keys = keys, .lease_ttl_ns = UINT64_MAX),
			 -EINVAL);
	assert_int_equal(skvc_lookup(rig.session, NULL, &job), -EINVAL);
	assert_int_equal(LOAD(1, rig.region, .count = 1), -EINVAL);
	assert_int_equal(LOAD(1, rig.region, .count = 2, .blocks = blocks), -EINVAL);
	assert_int_equal(LOAD(0, rig.region, .count = 1, .blocks = blocks), -EINVAL);
	assert_int_equal(LOAD(1, 99, .count = 1, .blocks = blocks), -ESTALE);
	assert_int_equal(LOAD(1, rig.region, .count = 1, .blocks = blocks, .first = 4096), -EINVAL);
	assert_int_equal(LOAD(1, rig.region, .count = 1, .blocks = blocks, .skip_tokens = 16),
			 -EINVAL);
	assert_int_equal(LOAD(1, rig.region, .count = 1, .blocks = blocks, .ready_event = 1),
			 -ESTALE);
	assert_int_equal(LOAD(1, rig.region, .count = 1, .blocks = blocks, .done_event = 1),
			 -ESTALE);
	assert_int_equal(STORE(rig.region, .blocks = NULL), -EINVAL);
	assert_int_equal(STORE(rig.region, .blocks = blocks + 1), -EINVAL);
	assert_int_equal(STORE(0, .blocks = blocks), -ESTALE);
	assert_int_equal(STORE(rig.region, .blocks = blocks, .ready_event = 1), -ESTALE);
	keys[0].len = 15;
	assert_int_equal(STORE(rig.region, .blocks = blocks), -EINVAL);
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 1, &job), -EINVAL);
	keys[0] = rig_key(0);
	keys[0].len = 16; /* with bytes after it */
	assert_int_equal(skvc_drop(rig.session, rig.ns, keys, 1, &job), -EINVAL);
	assert_int_equal(LOOKUP(rig.ns, .count = 1, .keys = keys + 1, .parent = keys), -EINVAL);
#undef LOOKUP
#undef LOAD
#undef STORE
	assert_int_equal(skvc_release(rig.session, 0, &job), -EINVAL);
	assert_int_equal(skvc_nop(rig.session, NULL), -EINVAL);
	assert_true(job == 42);
	assert_int_equal(skvc_pending(rig.session), 0);
	rig_deinit(&rig);
}

/* Every job's DONE is seen once, by whichever way it is taken, and every store's SOURCE_FREE before it. */
static void completes_exactly_once(void **state)
{
	const struct skvc_options options = { .sq_entries = 16, .args_bytes = 65536 };
	struct rng rng = { .state = 7 };
	struct skvc_completion c[8];
	uint64_t job[31], done = 0, submitted = 0;
	uint32_t live = 0, blocks[4];
	struct skvc_key keys[4];
	struct rig rig;

	(void)state;
	rig_init(&rig, &options);
	while (done < 20000) {
		uint32_t n = 1 + rng_below(&rng, 4);
		struct skvc_store store = { .ns = rig.ns,
					    .region = rig.region,
					    .count = n,
					    .keys = keys,
					    .blocks = blocks };

		for (uint32_t i = 0; i < 4; i++) {
			keys[i] = rig_key(rng_below(&rng, 200));
			blocks[i] = rng_below(&rng, RIG_BLOCKS);
		}
		if (live < 31 && rng_one_in(&rng, 2)) {
			int r = rng_one_in(&rng, 3) ? skvc_store(rig.session, &store, &job[live])
				: rng_one_in(&rng, 2)
					? skvc_touch(rig.session, rig.ns, keys, n, &job[live])
					: skvc_nop(rig.session, &job[live]);

			assert_true(!r || r == -EAGAIN);
			live += !r;
			submitted += !r;
		} else if (live && rng_one_in(&rng, 4)) {
			uint32_t at = rng_below(&rng, live);

			assert_int_equal(rig_finish(&rig, job[at]).res, 0);
			assert_int_equal(skvc_result(rig.session, job[at], c), -ESTALE);
			assert_int_equal(skvc_wait(rig.session, &job[at], 1, 0), -ESTALE);
			job[at] = job[--live];
			done++;
		} else {
			int count = skvc_poll(rig.session, c, 1 + rng_below(&rng, 8));

			assert_true(count >= 0);
			for (int i = 0; i < count; i++) {
				uint32_t at = 0;

				while (at < live && job[at] != c[i].job)
					at++;
				assert_true(at < live); /* known, and not done before */
				if (c[i].event == SKVC_EVENT_SOURCE_FREE)
					continue;
				job[at] = job[--live];
				done++;
			}
		}
		assert_int_equal(skvc_pending(rig.session), live);
	}
	assert_int_equal(skvc_wait(rig.session, job, live, 5 * SECOND_NS), 0);
	assert_true(done + live == submitted);
	assert_true(fake_daemon_taken(rig.daemon) == submitted);
	rig_deinit(&rig);
}

/* All four indices pass through 2^32. */
static void indices_wrap(void **state)
{
	const struct skvc_options options = { .sq_entries = 8 };
	const uint32_t start = UINT32_MAX - 20;
	struct rig rig;

	(void)state;
	rig_init(&rig, &options);
	assert_null(skvc_close(rig.session));
	fake_daemon_ring_start(rig.daemon, start);
	assert_int_equal(skvc_open(fake_daemon_path(rig.daemon), &options, &rig.session), 0);
	rig.session->sq.own_value = rig.session->sq.peer_value = start;
	rig.session->cq.own_value = rig.session->cq.peer_value = start;
	for (int i = 0; i < 100; i++) {
		uint64_t jobs[5];

		for (int k = 0; k < 5; k++)
			jobs[k] = rig_nop(&rig);
		assert_int_equal(skvc_wait(rig.session, jobs, 5, SECOND_NS), 0);
		for (int k = 0; k < 5; k++)
			assert_int_equal(rig_finish(&rig, jobs[k]).res, 0);
	}
	assert_true(rig.session->sq.own_value == start + 500 &&
		    rig.session->cq.own_value == start + 500);
	rig_deinit(&rig);
}

static void says_again_when_full(void **state)
{
	const struct skvc_options options = { .sq_entries = 8, .args_bytes = 65536 };
	uint64_t jobs[16], job;
	struct skvc_completion c[64];
	struct skvc_key *keys = calloc(SKVC_BLOCKS_MAX, sizeof(*keys));
	unsigned count = 0;
	struct rig rig;

	(void)state;
	assert_non_null(keys);
	rig_init(&rig, &options);
	/* The ring: nobody takes anything. */
	fake_daemon_stall(rig.daemon, true);
	usleep(10000);
	for (count = 0; !skvc_nop(rig.session, &jobs[count]); count++)
		assert_true(count < 8);
	assert_int_equal(count, 8);
	assert_int_equal(skvc_nop(rig.session, &job), -EAGAIN);
	fake_daemon_stall(rig.daemon, false);
	assert_int_equal(skvc_wait(rig.session, jobs, 8, SECOND_NS), 0);
	/* The job table: 15 for the caller, one kept for skvc_abort(). */
	for (; !skvc_nop(rig.session, &jobs[count]); count++) {
		assert_true(count < 15);
		assert_int_equal(skvc_wait(rig.session, &jobs[count], 1, SECOND_NS), 0);
	}
	assert_int_equal(count, 15);
	assert_int_equal(skvc_nop(rig.session, &job), -EAGAIN);
	assert_int_equal(skvc_poll(rig.session, c, 64), 15);
	/* The argument area: 1500 keys fill it. */
	for (uint32_t i = 0; i < SKVC_BLOCKS_MAX; i++)
		keys[i] = rig_key(i);
	fake_daemon_hold(rig.daemon, true);
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 1500, &jobs[0]), 0);
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 1500, &jobs[1]), -EAGAIN);
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 4096, &jobs[1]), -E2BIG);
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 10, &jobs[1]), 0);
	fake_daemon_hold(rig.daemon, false);
	usleep(20000);
	/* Nobody looked, but the completion that makes room is there: submitting finds it. */
	assert_int_equal(skvc_touch(rig.session, rig.ns, keys, 1500, &jobs[2]), 0);
	assert_int_equal(rig_finish(&rig, jobs[0]).res, 0);
	assert_int_equal(skvc_wait(rig.session, jobs + 1, 2, SECOND_NS), 0);
	free(keys);
	rig_deinit(&rig);
}

static void the_largest_operation_fits(void **state)
{
	struct skvc_key *keys = calloc(SKVC_BLOCKS_MAX, sizeof(*keys));
	uint32_t *tokens = calloc(SKVC_BLOCKS_MAX * RIG_BLOCK_TOKENS, sizeof(*tokens));
	struct skvc_key parent = rig_key(5000);
	struct skvc_lookup lookup = { .count = SKVC_BLOCKS_MAX, .keys = keys, .parent = &parent };
	struct rig rig;
	uint64_t job;

	(void)state;
	assert_true(keys && tokens);
	rig_init(&rig, NULL);
	for (uint32_t i = 0; i < SKVC_BLOCKS_MAX; i++)
		keys[i] = rig_key(i);
	lookup.ns = rig.ns;
	lookup.tokens = tokens;
	assert_int_equal(skvc_lookup(rig.session, &lookup, &job), 0);
	assert_int_equal(rig_finish(&rig, job).count, 0);
	free(keys);
	free(tokens);
	rig_deinit(&rig);
}

static void waits_and_times_out(void **state)
{
	const uint64_t spins[] = { 1, 1000000, UINT64_MAX };
	struct rig rig;

	(void)state;
	for (int i = 0; i < 3; i++) {
		const struct skvc_options options = { .spin_ns = spins[i] };
		uint64_t start_ns, jobs[2];

		rig_init(&rig, &options);
		assert_int_equal(skvc_wait(rig.session, NULL, 0, 0), 0);
		fake_daemon_hold(rig.daemon, true);
		jobs[0] = rig_nop(&rig);
		jobs[1] = rig_nop(&rig);
		assert_int_equal(skvc_wait(rig.session, jobs, 2, 0), -ETIME);
		start_ns = rig_now_ns();
		assert_int_equal(skvc_wait(rig.session, jobs, 2, 30000000), -ETIME);
		assert_true(rig_now_ns() - start_ns >= 30000000);
		assert_true(rig_now_ns() - start_ns < 2 * SECOND_NS);
		assert_int_equal(skvc_result(rig.session, jobs[0], &(struct skvc_completion){ 0 }),
				 -EINPROGRESS);
		fake_daemon_hold(rig.daemon, false);
		assert_int_equal(skvc_wait(rig.session, jobs, 2, SKVC_WAIT_FOREVER), 0);
		assert_int_equal(skvc_wait(rig.session, jobs, 2, 0), 0); /* they stay to be taken */
		jobs[1] ^= 1ull << 40;
		assert_int_equal(skvc_wait(rig.session, jobs, 2, 0), -ESTALE);
		rig_deinit(&rig);
	}
}

static void aborts(void **state)
{
	const struct skvc_options options = { .sq_entries = 8 };
	uint64_t jobs[15], job;
	struct skvc_completion c;
	struct rig rig;

	(void)state;
	rig_init(&rig, &options);
	job = rig_nop(&rig);
	assert_int_equal(skvc_wait(rig.session, &job, 1, SECOND_NS), 0);
	assert_int_equal(skvc_abort(rig.session, job), 0); /* done already: its result stays */
	assert_int_equal(rig_finish(&rig, job).res, 0);
	assert_int_equal(skvc_abort(rig.session, job), -ESTALE);
	/* With the whole table held by the caller. */
	fake_daemon_hold(rig.daemon, true);
	for (int i = 0; i < 15; i++) {
		int r;

		do {
			r = skvc_nop(rig.session, &jobs[i]);
		} while (r == -EAGAIN);
		assert_int_equal(r, 0);
	}
	assert_int_equal(skvc_abort(rig.session, jobs[7]), 0);
	assert_int_equal(skvc_result(rig.session, jobs[7], &c), 0);
	assert_int_equal(c.res, -ECANCELED);
	assert_string_equal(skvc_reason_name(c.reason), "aborted");
	assert_int_equal(skvc_pending(rig.session), 14);
	fake_daemon_hold(rig.daemon, false);
	jobs[7] = jobs[14];
	assert_int_equal(skvc_wait(rig.session, jobs, 14, SECOND_NS), 0);
	rig_deinit(&rig);
}

static bool readable(int fd, int timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, timeout_ms) == 1;
}

static void an_event_loop_sleeps_on_it(void **state)
{
	struct skvc_completion c;
	struct rig rig;
	uint64_t job;
	int fd;

	(void)state;
	rig_init(&rig, NULL);
	fd = skvc_event_fd(rig.session);
	for (int i = 0; i < 50; i++) {
		fake_daemon_hold(rig.daemon, true);
		job = rig_nop(&rig);
		assert_int_equal(skvc_arm(rig.session), 1);
		assert_false(readable(fd, i ? 0 : 50));
		fake_daemon_hold(rig.daemon, false);
		assert_true(readable(fd, 5000));
		assert_int_equal(skvc_arm(rig.session),
				 0); /* there are completions: do not sleep */
		assert_int_equal(skvc_poll(rig.session, &c, 1), 1);
		assert_true(c.job == job);
	}
	rig_deinit(&rig);
}

struct cqe_case {
	enum fake_fault fault;
	int wait_res;
	int32_t res;
	const char *says; /* to the log, or NULL */
};

static void survives_every_bad_completion(void **state)
{
	static const struct cqe_case cases[] = {
		{ FAKE_CQE_STRANGER, 0, 0, "no live job" },
		{ FAKE_CQE_TWICE, 0, 0, "no live job" },
		{ FAKE_CQE_KIND, 0, 0, "unknown kind 9" },
		{ FAKE_CQE_RES, -EPIPE, -EPIPE, "makes no sense" },
		{ FAKE_CQE_UNLISTED, 0, -EIO, "unlisted" },
		{ FAKE_CQE_COUNT, -EPIPE, -EPIPE, "makes no sense" },
		{ FAKE_CQ_INDEX, -EPIPE, -EPIPE, "index is impossible" },
		{ FAKE_SOURCE_FREE_STRAY, 0, 0, "out of place" },
		{ FAKE_CLOSED, -EPIPE, -EPIPE, "closed the session (shutdown)" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct skvc_completion c;
		struct rig rig;
		uint64_t job;
		int r;

		rig_init(&rig, NULL);
		fake_daemon_fault(rig.daemon, cases[i].fault);
		job = rig_nop(&rig);
		r = skvc_wait(rig.session, &job, 1, 5 * SECOND_NS);
		if (r != cases[i].wait_res)
			fail_msg("case %zu: %d", i, r);
		assert_int_equal(skvc_result(rig.session, job, &c), 0);
		assert_int_equal(c.res, cases[i].res);
		fake_daemon_fault(rig.daemon, FAKE_NONE);
		if (!r) {
			/* The session goes on. */
			job = rig_nop(&rig);
			assert_int_equal(rig_finish(&rig, job).res, 0);
		} else {
			assert_int_equal(skvc_poll(rig.session, &c, 1), -EPIPE);
			assert_int_equal(skvc_nop(rig.session, &job), -EPIPE);
			assert_true(readable(skvc_event_fd(rig.session), 0));
		}
		if (!strstr(rig.log_last, cases[i].says))
			fail_msg("case %zu: log says: %s", i, rig.log_last);
		rig_deinit(&rig);
	}
}

/* The index is looked at when what was last seen of it is not enough: within a ring's length. */
static void survives_a_bad_submission_index(void **state)
{
	const struct skvc_options options = { .sq_entries = 8 };
	struct skvc_completion c;
	struct rig rig;
	uint64_t job;
	int rounds = 0, r;

	(void)state;
	rig_init(&rig, &options);
	fake_daemon_fault(rig.daemon, FAKE_SQ_INDEX);
	while (!(r = skvc_nop(rig.session, &job))) {
		assert_int_equal(rig_finish(&rig, job).res, 0);
		assert_true(++rounds <= 8);
	}
	assert_int_equal(r, -EPIPE);
	assert_int_equal(skvc_poll(rig.session, &c, 1), -EPIPE);
	rig_deinit(&rig);
}

static void two_source_frees_are_one(void **state)
{
	const uint32_t block = 0;
	const struct skvc_key key = rig_key(3);
	struct skvc_store store = { .count = 1, .keys = &key, .blocks = &block };
	struct rig rig;
	uint64_t job;

	(void)state;
	rig_init(&rig, NULL);
	store.ns = rig.ns;
	store.region = rig.region;
	fake_daemon_fault(rig.daemon, FAKE_SOURCE_FREE_TWICE);
	assert_int_equal(skvc_store(rig.session, &store, &job), 0);
	assert_int_equal(skvc_wait(rig.session, &job, 1, SECOND_NS), 0);
	assert_int_equal(next(&rig).event, SKVC_EVENT_SOURCE_FREE);
	assert_int_equal(next(&rig).event, SKVC_EVENT_DONE);
	assert_int_equal(skvc_pending(rig.session), 0);
	assert_non_null(strstr(rig.log_last, "out of place"));
	rig_deinit(&rig);
}

/* A handle stays dead although its slot is used again and again. */
static void handles_are_not_reused(void **state)
{
	const struct skvc_options options = { .sq_entries = 8 };
	struct skvc_completion c;
	struct rig rig;
	uint64_t old, job;

	(void)state;
	rig_init(&rig, &options);
	old = rig_nop(&rig);
	assert_int_equal(rig_finish(&rig, old).res, 0);
	for (int i = 0; i < 100; i++) {
		job = rig_nop(&rig);
		assert_true(job != old);
		assert_int_equal(skvc_result(rig.session, old, &c), -ESTALE);
		assert_int_equal(skvc_wait(rig.session, &old, 1, 0), -ESTALE);
		assert_int_equal(rig_finish(&rig, job).res, 0);
	}
	rig_deinit(&rig);
}

static void puts_and_gets(void **state)
{
	uint8_t data[RIG_BLOCK_BYTES], back[RIG_BLOCK_BYTES];
	const struct skvc_key key = rig_key(1), other = rig_key(2);
	struct skvc_completion c;
	struct rig rig;
	uint64_t job;

	(void)state;
	rig_init(&rig, NULL);
	job = rig_nop(&rig); /* somebody's job in between is not lost */
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 31);
	assert_int_equal(skvc_put(rig.session, rig.ns, &key, data, sizeof(data)), 0);
	assert_int_equal(skvc_put(rig.session, rig.ns, &key, data, sizeof(data)), -EEXIST);
	assert_int_equal(skvc_get(rig.session, rig.ns, &key, back, sizeof(back)), 0);
	assert_memory_equal(data, back, sizeof(data));
	assert_int_equal(skvc_get(rig.session, rig.ns, &other, back, sizeof(back)), -ENOENT);
	assert_int_equal(skvc_get(rig.session, rig.ns, &key, back, sizeof(back) - 1), -EINVAL);
	assert_int_equal(skvc_get(rig.session, 9, &key, back, sizeof(back)), -EINVAL);
	assert_int_equal(skvc_put(rig.session, rig.ns, NULL, back, sizeof(back)), -EINVAL);
	fake_daemon_fault(rig.daemon, FAKE_PARTIAL);
	assert_int_equal(skvc_get(rig.session, rig.ns, &key, back, sizeof(back)), -ENOENT);
	assert_int_equal(skvc_put(rig.session, rig.ns, &other, data, sizeof(data)), -EAGAIN);
	fake_daemon_fault(rig.daemon, FAKE_NONE);
	for (int i = 0; i < 40; i++) /* more than there are leases: each get gives its own back */
		assert_int_equal(skvc_get(rig.session, rig.ns, &key, back, sizeof(back)), 0);
	assert_int_equal(skvc_pending(rig.session), 1);
	assert_int_equal(skvc_poll(rig.session, &c, 1), 1);
	assert_true(c.job == job);
	rig_deinit(&rig);
}

static void *release_later(void *user)
{
	usleep(20000);
	fake_daemon_hold(user, false);
	return NULL;
}

/* CLOSED without a wake-up and without the end of the socket: a sleeper looks from time to time. */
static void a_sleeper_sees_that_the_session_is_closed(void **state)
{
	const struct skvc_options options = { .spin_ns = 1 };
	pthread_t thread;
	struct rig rig;
	uint64_t job;

	(void)state;
	rig_init(&rig, &options);
	fake_daemon_hold(rig.daemon, true);
	job = rig_nop(&rig);
	fake_daemon_fault(rig.daemon, FAKE_CLOSED);
	assert_int_equal(pthread_create(&thread, NULL, release_later, rig.daemon), 0);
	assert_int_equal(skvc_wait(rig.session, &job, 1, 5 * SECOND_NS), -EPIPE);
	assert_int_equal(pthread_join(thread, NULL), 0);
	rig_deinit(&rig);
}

static void unregistering_waits_for_jobs(void **state)
{
	pthread_t thread;
	struct rig rig;
	uint64_t jobs[2];
	const uint32_t block = 0;
	const struct skvc_key key = rig_key(3);
	struct skvc_store store = { .count = 1, .keys = &key, .blocks = &block };

	(void)state;
	rig_init(&rig, NULL);
	store.ns = rig.ns;
	store.region = rig.region;
	fake_daemon_hold(rig.daemon, true);
	assert_int_equal(skvc_store(rig.session, &store, &jobs[0]), 0);
	assert_int_equal(skvc_store(rig.session, &store, &jobs[1]), 0);
	assert_int_equal(pthread_create(&thread, NULL, release_later, rig.daemon), 0);
	assert_int_equal(skvc_unregister(rig.session, rig.region), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	/* Both were over before the daemon was told: they found their region. */
	assert_int_equal(skvc_wait(rig.session, jobs, 2, 0), 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(rig_finish(&rig, jobs[i]).res, 0);
	assert_int_equal(skvc_store(rig.session, &store, &jobs[1]), -ESTALE);
	rig_deinit(&rig);
}

static void names_every_reason(void **state)
{
	(void)state;
	for (unsigned reason = 0; reason < SKVC_ABI_REASON_COUNT; reason++) {
		uint16_t i = (uint16_t)reason;

		assert_true(strlen(skvc_reason_name(i)) > 1);
		assert_true(strlen(skvc_reason_text(i)) > 5);
		for (uint16_t k = 0; k < i; k++)
			assert_string_not_equal(skvc_reason_name(i), skvc_reason_name(k));
	}
	assert_string_equal(skvc_reason_name(SKVC_ABI_REASON_COUNT), "unknown");
	assert_string_equal(skvc_reason_name(UINT16_MAX), "unknown");
	assert_non_null(skvc_reason_text(UINT16_MAX));
}

/* More late lookups than there are leases: each next call gives back what the one before it had found. */
static void a_late_get_leaves_no_lease(void **state)
{
	const struct skvc_options options = { .timeout_ns = 20000000 };
	uint8_t data[RIG_BLOCK_BYTES] = { 7 }, back[RIG_BLOCK_BYTES];
	const struct skvc_key key = rig_key(1), other = rig_key(2);
	struct rig rig;
	int r;

	(void)state;
	rig_init(&rig, &options);
	do
		r = skvc_put(rig.session, rig.ns, &key, data, sizeof(data));
	while (r == -ETIME);
	assert_true(r == 0 || r == -EEXIST);
	for (unsigned i = 0; i < 40; i++) {
		fake_daemon_hold(rig.daemon, true);
		assert_int_equal(skvc_get(rig.session, rig.ns, &key, back, sizeof(back)), -ETIME);
		assert_int_equal(skvc_get(rig.session, rig.ns, &other, back, sizeof(back)), -ETIME);
		fake_daemon_hold(rig.daemon, false);
		do
			r = skvc_get(rig.session, rig.ns, &key, back, sizeof(back));
		while (r == -ETIME); /* a busy machine */
		assert_int_equal(r, 0);
		assert_memory_equal(data, back, sizeof(data));
	}
	rig_deinit(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stores_and_loads),
		cmocka_unit_test(reports_partial_success),
		cmocka_unit_test(shows_progress_while_it_loads),
		cmocka_unit_test(the_other_calls),
		cmocka_unit_test(a_late_get_leaves_no_lease),
		cmocka_unit_test(refuses_bad_arguments),
		cmocka_unit_test(completes_exactly_once),
		cmocka_unit_test(indices_wrap),
		cmocka_unit_test(says_again_when_full),
		cmocka_unit_test(the_largest_operation_fits),
		cmocka_unit_test(waits_and_times_out),
		cmocka_unit_test(aborts),
		cmocka_unit_test(an_event_loop_sleeps_on_it),
		cmocka_unit_test(survives_every_bad_completion),
		cmocka_unit_test(survives_a_bad_submission_index),
		cmocka_unit_test(two_source_frees_are_one),
		cmocka_unit_test(handles_are_not_reused),
		cmocka_unit_test(puts_and_gets),
		cmocka_unit_test(a_sleeper_sees_that_the_session_is_closed),
		cmocka_unit_test(unregistering_waits_for_jobs),
		cmocka_unit_test(names_every_reason),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
