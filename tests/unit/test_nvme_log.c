/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_log.c - the NVMe log on a real file: random use against a reference that knows what every
 * block must read as, with and without faults; what is reclaimed when; health.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/lib/log_rig.h"
#include "tests/lib/rng.h"

#ifdef SKVCD_SAN
#define RANDOM_STEPS 6000u
#else
#define RANDOM_STEPS 20000u
#endif

static void holds_what_was_written(void **state)
{
	struct log_rig rig;
	struct stat st;

	(void)state;
	log_rig_setup(&rig);
	assert_true(nvme_log_in_service(rig.log));
	assert_true(nvme_log_epoch(rig.log) != 0);
	assert_int_equal(nvme_log_align_bytes(rig.log) % LOG_RIG_ALIGN, 0);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_size, rig.options.bytes);
	assert_true((uint64_t)st.st_blocks * 512 >= rig.options.bytes); /* all of it, now */
	assert_int_equal(st.st_mode & 07777, 0600);

	assert_int_equal(log_rig_read(&rig, 7), -ENOENT);
	assert_int_equal(nvme_log_record_bytes(rig.log, 7), 0);
	assert_int_equal(log_rig_append(&rig, 7, 20480, 1), 0);
	assert_true(nvme_log_holds(rig.log, 7));
	assert_int_equal(nvme_log_record_bytes(rig.log, 7), 20480);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_LIVE_BYTES), 20480);
	assert_int_equal(log_rig_append(&rig, 7, 20480, 1), -EEXIST);
	assert_int_equal(log_rig_read(&rig, 7), 0);
	assert_true(log_rig_is(rig.ops[1].buf, 20480, 1));
	nvme_log_forget(rig.log, 7);
	nvme_log_forget(rig.log, 7);
	assert_false(nvme_log_holds(rig.log, 7));
	assert_int_equal(log_rig_read(&rig, 7), -ENOENT);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_LIVE_BYTES), 0);
	assert_int_equal(log_rig_append(&rig, 7, 4096, 2), 0);
	assert_int_equal(log_rig_read(&rig, 7), 0);
	assert_true(log_rig_is(rig.ops[1].buf, 4096, 2));
	assert_int_equal(nvme_log_append(rig.log, &rig.ops[0].op, 8, 0, rig.memory,
					 nvme_log_record_bytes_max(rig.log) + LOG_RIG_ALIGN),
			 -EFBIG);
	log_rig_teardown(&rig);
}

/* ---- random use ---- */

static void finish(struct log_rig *rig, struct log_rig_op *t, uint32_t life)
{
	struct log_rig_block *m = &rig->model[t->op.block];
	bool current = m->life == life;

	if (t->op.is_write && t->res == 0) {
		assert_true(current && m->writing);
		m->writing = false;
		m->held = true;
		assert_true(nvme_log_holds(rig->log, t->op.block));
	} else if (t->op.is_write) {
		assert_false(current && t->res == -ECANCELED);
		rig->cancelled += t->res == -ECANCELED;
		rig->failed += t->res != -ECANCELED;
		if (current) {
			m->writing = false;
			m->life++;
			assert_false(nvme_log_holds(rig->log, t->op.block));
		}
	} else if (t->res == 0) {
		/* Also when it was forgotten meanwhile: then it is what it was. */
		assert_true(log_rig_is(t->buf, t->bytes, t->content));
	} else {
		rig->failed++;
	}
}

static void random_step(struct log_rig *rig, struct log_rig_op *t, struct rng *rng,
			uint32_t *content)
{
	uint32_t block = rng_below(rng, LOG_RIG_BLOCKS), what = rng_below(rng, 100);
	struct log_rig_block *m = &rig->model[block];
	int r;

	if (what < 10) {
		/* Half the time one that something is in flight for, or was. */
		const struct log_rig_op *other = &rig->ops[rng_below(rng, LOG_RIG_OPS)];

		if (rng_one_in(rng, 2) && other->op.log) {
			block = other->op.block;
			m = &rig->model[block];
		}
		nvme_log_forget(rig->log, block);
		if (m->held || m->writing)
			m->life++;
		m->held = m->writing = false;
		return;
	}
	if (what < 60) {
		uint32_t bytes = LOG_RIG_ALIGN *
				 (1 + rng_below(rng, LOG_RIG_RECORD_BYTES / LOG_RIG_ALIGN));

		r = log_rig_start_append(rig, t, block, bytes, *content);
		if (m->held || m->writing)
			assert_true(r == -EEXIST || r == -EIO);
		else
			assert_true(r == 0 || r == -EAGAIN || r == -EIO);
		if (r < 0)
			return;
		*m = (struct log_rig_block){ .content = (*content)++,
					     .bytes = bytes,
					     .life = m->life + 1,
					     .writing = true };
		t->op.user = (void *)(uintptr_t)m->life;
		return;
	}
	r = log_rig_start_read(rig, t, block);
	if (!m->held)
		assert_true(r == -ENOENT);
	else
		assert_true(r == 0 || r == -EAGAIN || r == -EIO);
	if (r == 0) {
		t->content = m->content;
		t->bytes = m->bytes;
		t->op.user = (void *)(uintptr_t)m->life;
	}
}

static bool is_much(const struct log_rig *rig, uint32_t content)
{
	return rig->evicted > 0 && rig->cancelled > 0 && content > RANDOM_STEPS / 50;
}

static void random_use(const char *spec, uint64_t seed, bool expect_failures)
{
	uint32_t content = 1;
	struct rng rng;
	struct log_rig rig;

	log_rig_setup_retry(&rig, MS / 2); /* out of service often, but not for long */
	log_rig_fault(&rig, spec);
	rng_init(&rng, seed);
	/* On a busy machine a tier that fails is out of service for most of the steps: then there are more. */
	for (uint32_t step = 0;
	     step < RANDOM_STEPS || (step < 100 * RANDOM_STEPS && !is_much(&rig, content));
	     step++) {
		struct log_rig_op *t = &rig.ops[rng_below(&rng, LOG_RIG_OPS)];

		if (!t->busy)
			random_step(&rig, t, &rng, &content);
		if (rng_one_in(&rng, 4)) {
			log_rig_turn(&rig, rng_one_in(&rng, 4) ? 1 * MS : 0);
			nvme_log_tick(rig.log, clock_now_ns());
		}
		for (unsigned i = 0; i < LOG_RIG_OPS; i++) {
			if (!rig.ops[i].done)
				continue;
			rig.ops[i].done = 0;
			finish(&rig, &rig.ops[i], (uint32_t)(uintptr_t)rig.ops[i].op.user);
		}
		assert_true(nvme_log_inflight(rig.log) <= LOG_RIG_DEPTH + 1);
	}
	log_rig_fault(&rig, NULL);
	log_rig_drain(&rig);
	for (unsigned i = 0; i < LOG_RIG_OPS; i++)
		if (rig.ops[i].done)
			finish(&rig, &rig.ops[i], (uint32_t)(uintptr_t)rig.ops[i].op.user);
	while (!nvme_log_in_service(rig.log)) {
		log_rig_turn(&rig, MS);
		nvme_log_tick(rig.log, clock_now_ns());
	}
	/* Everything that it says it holds is there, and nothing else. */
	for (uint32_t block = 0; block < LOG_RIG_BLOCKS; block++) {
		const struct log_rig_block *m = &rig.model[block];

		assert_int_equal(nvme_log_holds(rig.log, block), m->held);
		assert_int_equal(log_rig_read(&rig, block), m->held ? 0 : -ENOENT);
		if (m->held)
			assert_true(log_rig_is(rig.ops[1].buf, m->bytes, m->content));
	}
	print_message(
		"%-38s %u appended, %u evicted, %u segments reclaimed, %u failed, %u cancelled\n",
		spec ? spec : "no faults", content - 1, rig.evicted,
		(unsigned)stats_get(rig.stats, STAT_NVME_RECLAIMED_SEGMENTS), rig.failed,
		rig.cancelled);
	assert_true(is_much(&rig, content));
	assert_int_equal(rig.failed > 0, expect_failures);
	log_rig_teardown(&rig);
}

static void random_use_matches_a_reference(void **state)
{
	const uint64_t seed = rng_seed_env(0x6e766d65);

	(void)state;
	random_use(NULL, seed, false);
	random_use("write:short:every=3,read:short:every=2", seed + 1, false);
	random_use("write:eio:every=5,read:eio:every=7", seed + 2, true);
	random_use("write:enospc:every=2,read:eio:every=3", seed + 3, true);
	random_use("write:stall_ms=3:every=50,read:stall_ms=2:every=40", seed + 4, false);
}

static void evict_may_forget_others(void **state)
{
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	/* 8 blocks to a segment, 7 to the first one: blocks 1..63 fill the file. */
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(log_rig_append(&rig, block, LOG_RIG_RECORD_BYTES, block), 0);
	assert_int_equal(rig.evicted, 0);
	rig.evict_forgets = 3; /* lies in the segment that is reclaimed */
	assert_int_equal(log_rig_append(&rig, 100, LOG_RIG_RECORD_BYTES, 100), 0);
	assert_int_equal(rig.evicted, 6);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(nvme_log_holds(rig.log, block), block > 7);
	assert_int_equal(log_rig_read(&rig, 100), 0);
	assert_true(log_rig_is(rig.ops[1].buf, LOG_RIG_RECORD_BYTES, 100));
	log_rig_teardown(&rig);
}

/* A segment of which nothing lives is used again before one that would cost live blocks. */
static void empty_segments_cost_nothing(void **state)
{
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(log_rig_append(&rig, block, LOG_RIG_RECORD_BYTES, block), 0);
	for (uint32_t block = 24; block < 32; block++) /* the fourth */
		nvme_log_forget(rig.log, block);
	for (uint32_t block = 200; block < 208; block++)
		assert_int_equal(log_rig_append(&rig, block, LOG_RIG_RECORD_BYTES, block), 0);
	assert_int_equal(rig.evicted, 0);
	assert_int_equal(log_rig_append(&rig, 208, LOG_RIG_RECORD_BYTES, 208), 0);
	assert_int_equal(rig.evicted, 7);
	log_rig_teardown(&rig);
}

/* What is being read is not reclaimed under the reader. */
static void segments_in_use_are_left_alone(void **state)
{
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(log_rig_append(&rig, block, LOG_RIG_RECORD_BYTES, block), 0);
	log_rig_fault(&rig, "read:stall_ms=300:every=1");
	assert_int_equal(log_rig_start_read(&rig, &rig.ops[5], 1), 0); /* in the oldest segment */
	nvme_log_forget(rig.log, 1);
	for (uint32_t block = 100; block < 108; block++) {
		assert_int_equal(
			log_rig_start_append(&rig, &rig.ops[6], block, LOG_RIG_RECORD_BYTES, block),
			0);
		while (rig.ops[6].busy)
			log_rig_turn(&rig, MS);
		rig.model[block].held = true;
	}
	assert_true(nvme_log_holds(rig.log, 2));
	assert_false(nvme_log_holds(rig.log, 8)); /* the next oldest went */
	assert_int_equal(rig.evicted, 8);
	for (uint32_t block = 2; block < 8; block++) /* not even when it is empty */
		nvme_log_forget(rig.log, block);
	for (uint32_t block = 108; block < 116; block++) {
		assert_int_equal(
			log_rig_start_append(&rig, &rig.ops[6], block, LOG_RIG_RECORD_BYTES, block),
			0);
		while (rig.ops[6].busy)
			log_rig_turn(&rig, MS);
	}
	assert_true(rig.ops[5].busy);
	assert_int_equal(rig.evicted, 16);
	log_rig_drain(&rig);
	assert_int_equal(rig.ops[5].res, 0);
	assert_true(log_rig_is(rig.ops[5].buf, LOG_RIG_RECORD_BYTES, 1));
	log_rig_teardown(&rig);
}

/* A forgotten block may be written again while its first write is still under way. */
static void a_block_is_written_twice_at_once(void **state)
{
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	log_rig_fault(&rig,
		      "write:stall_ms=60:every=2"); /* the second of the two is the later one */
	assert_int_equal(log_rig_append(&rig, 9, 4096, 1), 0);
	assert_int_equal(log_rig_start_append(&rig, &rig.ops[2], 5, 8192, 2), 0); /* stalls */
	assert_int_equal(log_rig_start_append(&rig, &rig.ops[3], 5, 8192, 3), -EEXIST);
	nvme_log_forget(rig.log, 5);
	assert_int_equal(log_rig_start_append(&rig, &rig.ops[3], 5, 4096, 3), 0);
	while (rig.ops[3].busy)
		log_rig_turn(&rig, MS);
	assert_int_equal(rig.ops[3].res, 0);
	assert_true(rig.ops[2].busy && nvme_log_holds(rig.log, 5));
	log_rig_drain(&rig);
	assert_int_equal(rig.ops[2].res, -ECANCELED);
	assert_int_equal(nvme_log_record_bytes(rig.log, 5), 4096);
	assert_int_equal(log_rig_read(&rig, 5), 0);
	assert_true(log_rig_is(rig.ops[1].buf, 4096, 3));
	log_rig_teardown(&rig);
}

static void the_queue_is_bounded(void **state)
{
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	log_rig_fault(&rig, "write:stall_ms=50:every=1");
	for (unsigned i = 0; i < LOG_RIG_DEPTH + 1; i++)
		assert_int_equal(log_rig_start_append(&rig, &rig.ops[i], i, 4096, i),
				 i < LOG_RIG_DEPTH ? 0 : -EAGAIN);
	assert_int_equal(nvme_log_inflight(rig.log), LOG_RIG_DEPTH);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_INFLIGHT), LOG_RIG_DEPTH);
	log_rig_drain(&rig);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_INFLIGHT), 0);
	log_rig_teardown(&rig);
}

/* Every segment with I/O in flight: nothing can be had, and nothing is lost. */
static void nothing_to_reclaim_is_not_an_error(void **state)
{
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(log_rig_append(&rig, block, LOG_RIG_RECORD_BYTES, block), 0);
	log_rig_fault(&rig, "read:stall_ms=50:every=1");
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(log_rig_start_read(&rig, &rig.ops[i], i ? 8 * i : 1), 0);
	assert_int_equal(log_rig_start_append(&rig, &rig.ops[10], 100, LOG_RIG_RECORD_BYTES, 1),
			 -EAGAIN);
	assert_int_equal(rig.evicted, 0);
	log_rig_drain(&rig);
	assert_int_equal(log_rig_start_append(&rig, &rig.ops[10], 100, LOG_RIG_RECORD_BYTES, 1), 0);
	log_rig_drain(&rig);
	assert_int_equal(rig.ops[10].res, 0);
	log_rig_teardown(&rig);
}

/* ---- health ---- */

static void tick_until(struct log_rig *rig, bool in_service)
{
	const uint64_t until_ns = clock_now_ns() + 20000 * MS;

	while ((bool)nvme_log_in_service(rig->log) != in_service && clock_now_ns() < until_ns) {
		log_rig_turn(rig, MS);
		nvme_log_tick(rig->log, clock_now_ns());
	}
	assert_int_equal(nvme_log_in_service(rig->log), in_service);
}

static void errors_in_a_row_take_it_out(const char *spec, int error)
{
	uint64_t out_ns;
	struct log_rig rig;

	log_rig_setup(&rig);
	assert_int_equal(log_rig_append(&rig, 1, 4096, 1), 0);
	/* With successes in between it stays. */
	for (unsigned i = 0; i < 10; i++) {
		log_rig_fault(&rig, spec);
		assert_int_equal(log_rig_append(&rig, 100 + i, 4096, i), error);
		assert_false(nvme_log_holds(rig.log, 100 + i));
		log_rig_fault(&rig, NULL);
		assert_int_equal(log_rig_append(&rig, 200 + i, 4096, i), 0);
	}
	assert_true(nvme_log_in_service(rig.log));
	assert_int_equal(stats_get(rig.stats, STAT_NVME_ERRORS), 10);
	log_rig_fault(&rig, spec);
	for (unsigned i = 0; i < NVME_LOG_ERRORS_MAX; i++) {
		assert_true(nvme_log_in_service(rig.log));
		assert_int_equal(log_rig_append(&rig, 300 + i, 4096, i), error);
	}
	out_ns = clock_now_ns();
	assert_false(nvme_log_in_service(rig.log));
	assert_int_equal(nvme_log_error(rig.log), error);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_HEALTH), 2);
	assert_int_equal(log_rig_append(&rig, 310, 4096, 1), -EIO);
	assert_int_equal(log_rig_read(&rig, 1), -EIO);
	assert_true(nvme_log_holds(rig.log, 1));
	/* The probe fails too, as long as the disk does. */
	while (clock_now_ns() < out_ns + 5 * LOG_RIG_RETRY_NS) {
		nvme_log_tick(rig.log, clock_now_ns());
		log_rig_turn(&rig, MS);
		assert_false(nvme_log_in_service(rig.log));
	}
	assert_true(stats_get(rig.stats, STAT_NVME_ERRORS) >= 10 + NVME_LOG_ERRORS_MAX + 2);
	log_rig_fault(&rig, NULL);
	tick_until(&rig, true);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_HEALTH), 1);
	assert_int_equal(log_rig_read(&rig, 1), 0);
	assert_true(log_rig_is(rig.ops[1].buf, 4096, 1));
	assert_int_equal(log_rig_append(&rig, 310, 4096, 1), 0);
	log_rig_drain(&rig);
	log_rig_teardown(&rig);
}

static void eio_takes_it_out_of_service(void **state)
{
	(void)state;
	errors_in_a_row_take_it_out("write:eio:every=1", -EIO);
}

static void enospc_takes_it_out_of_service(void **state)
{
	(void)state;
	errors_in_a_row_take_it_out("write:enospc:every=1", -ENOSPC);
}

/* A disk that takes writes and gives back something else. */
static void the_probe_compares(void **state)
{
	uint64_t until_ns;
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	log_rig_fault(&rig, "write:eio:every=1");
	for (unsigned i = 0; i < NVME_LOG_ERRORS_MAX; i++)
		assert_int_equal(log_rig_append(&rig, i, 4096, i), -EIO);
	log_rig_fault(&rig, "read:flip:every=1");
	until_ns = clock_now_ns() + 5 * LOG_RIG_RETRY_NS;
	while (clock_now_ns() < until_ns) {
		nvme_log_tick(rig.log, clock_now_ns());
		log_rig_turn(&rig, MS);
		assert_false(nvme_log_in_service(rig.log));
	}
	log_rig_fault(&rig, NULL);
	tick_until(&rig, true);
	log_rig_teardown(&rig);
}

static void no_probe_before_its_time(void **state)
{
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	log_rig_fault(&rig, "write:eio:every=1");
	for (unsigned i = 0; i < NVME_LOG_ERRORS_MAX; i++)
		assert_int_equal(log_rig_append(&rig, i, 4096, i), -EIO);
	log_rig_fault(&rig, NULL);
	nvme_log_tick(rig.log, 0);
	assert_int_equal(nvme_log_inflight(rig.log), 0);
	nvme_log_tick(rig.log, clock_now_ns() + LOG_RIG_RETRY_NS);
	assert_int_equal(nvme_log_inflight(rig.log), 1);
	nvme_log_tick(rig.log, clock_now_ns() + LOG_RIG_RETRY_NS); /* one at a time */
	assert_int_equal(nvme_log_inflight(rig.log), 1);
	log_rig_drain(&rig);
	assert_true(nvme_log_in_service(rig.log));
	log_rig_teardown(&rig);
}

#define STALL_DEADLINE_NS (1500 * MS) /* far above what a busy machine takes for 4 KiB */

static void a_stall_takes_it_out_at_the_deadline(const char *spec, uint64_t hang_ns)
{
	uint64_t start_ns;
	struct log_rig rig;

	log_rig_dir(&rig);
	rig.options.deadline_ns = STALL_DEADLINE_NS;
	log_rig_ring(&rig);
	if (log_rig_open(&rig) < 0)
		fail_msg("%s", rig.err);
	assert_int_equal(log_rig_append(&rig, 1, 4096, 1), 0);
	log_rig_fault(&rig, spec);
	start_ns = clock_now_ns();
	assert_int_equal(log_rig_start_append(&rig, &rig.ops[2], 2, 4096, 2), 0);
	while (nvme_log_in_service(rig.log) && clock_now_ns() < start_ns + 10000 * MS) {
		log_rig_turn(&rig, 1000 * MS); /* the deadline ends the sleep */
		nvme_log_tick(rig.log, clock_now_ns());
	}
	assert_true(clock_now_ns() - start_ns >= STALL_DEADLINE_NS);
	assert_false(nvme_log_in_service(rig.log));
	assert_int_equal(rig.ops[2].busy, hang_ns != 0);
	assert_int_equal(log_rig_start_append(&rig, &rig.ops[3], 3, 4096, 3), -EIO);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_HEALTH), 2);
	assert_int_equal(nvme_log_error(rig.log), -ETIMEDOUT);
	log_rig_fault(&rig, NULL);
	while (rig.ops[2].busy) {
		nvme_log_tick(rig.log, clock_now_ns());
		log_rig_turn(&rig, MS);
		assert_false(nvme_log_in_service(rig.log));
		/* No probe while one is missing. */
		assert_true(nvme_log_inflight(rig.log) <= 1);
	}
	assert_int_equal(rig.ops[2].res, -ETIMEDOUT);
	assert_true(clock_now_ns() - start_ns >= hang_ns);
	assert_false(nvme_log_holds(rig.log, 2));
	tick_until(&rig, true);
	assert_int_equal(log_rig_read(&rig, 1), 0);
	assert_int_equal(log_rig_append(&rig, 2, 4096, 4), 0);
	log_rig_teardown(&rig);
}

static void a_stall_takes_it_out(void **state)
{
	(void)state;
	a_stall_takes_it_out_at_the_deadline("write:stall_ms=5000:every=1", 0);
}

static void a_hang_takes_it_out_before_it_ends(void **state)
{
	(void)state;
	a_stall_takes_it_out_at_the_deadline("write:hang_ms=4000:every=1", 4000 * MS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(holds_what_was_written),
		cmocka_unit_test(random_use_matches_a_reference),
		cmocka_unit_test(evict_may_forget_others),
		cmocka_unit_test(empty_segments_cost_nothing),
		cmocka_unit_test(segments_in_use_are_left_alone),
		cmocka_unit_test(a_block_is_written_twice_at_once),
		cmocka_unit_test(the_queue_is_bounded),
		cmocka_unit_test(nothing_to_reclaim_is_not_an_error),
		cmocka_unit_test(eio_takes_it_out_of_service),
		cmocka_unit_test(enospc_takes_it_out_of_service),
		cmocka_unit_test(the_probe_compares),
		cmocka_unit_test(no_probe_before_its_time),
		cmocka_unit_test(a_stall_takes_it_out),
		cmocka_unit_test(a_hang_takes_it_out_before_it_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
