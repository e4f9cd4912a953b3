/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_join.c - several records of the log with one read: what it costs, and that each of them fails alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <errno.h>

#include <cmocka.h>

#include "tests/lib/log_rig.h"
#include "tests/lib/rng.h"

#ifdef SKVCD_SAN
#define RANDOM_STEPS 1500u
#else
#define RANDOM_STEPS 6000u
#endif

#define RECORD 16384u

/* Blocks 1 to count, one behind the other, block n with content n. */
static void append_some(struct log_rig *rig, uint32_t count)
{
	for (uint32_t i = 1; i <= count; i++)
		assert_int_equal(log_rig_append(rig, i, RECORD, i), 0);
}

/* Each with the operation of its number. */
static int start(struct log_rig *rig, const uint32_t *blocks, unsigned count)
{
	struct nvme_read reads[LOG_RIG_OPS] = { 0 };
	int r;

	for (unsigned i = 0; i < count; i++) {
		struct log_rig_op *t = &rig->ops[i];

		memset(t->buf, 0xee, LOG_RIG_RECORD_BYTES);
		t->done = 0;
		reads[i] = (struct nvme_read){
			.op = &t->op, .block = blocks[i], .buf_index = 0, .buf = t->buf
		};
	}
	r = nvme_log_read_joined(rig->log, reads, count);
	for (unsigned i = 0; i < count; i++) {
		rig->ops[i].busy = r == 0;
		assert_int_equal(rig->ops[i].done, 0);
	}
	return r;
}

static void expect(struct log_rig *rig, unsigned i, int res, uint32_t content)
{
	const struct log_rig_op *t = &rig->ops[i];

	assert_int_equal(t->done, 1);
	assert_int_equal(t->res, res);
	if (res == 0)
		assert_true(log_rig_is(t->buf, RECORD, content));
	for (uint32_t at = RECORD; res == 0 && at < LOG_RIG_RECORD_BYTES; at++)
		assert_int_equal(t->buf[at], 0xee);
}

static uint64_t file_off(const struct log_rig *rig, uint32_t block)
{
	struct nvme_place p;

	assert_int_equal(nvme_log_place(rig->log, block, &p), 0);
	return p.segment * rig->options.segment_bytes + p.off_sectors * 512ull;
}

static void one_read_serves_all(void **state)
{
	const uint32_t blocks[] = { 1, 2, 3, 4, 5, 6, 7, 8 };
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	append_some(&rig, 8);
	assert_int_equal(start(&rig, blocks, 8), 0);
	assert_int_equal(nvme_log_inflight(rig.log), 8);
	assert_int_equal(uring_inflight(rig.u), 1);
	log_rig_drain(&rig);
	for (unsigned i = 0; i < 8; i++)
		expect(&rig, i, 0, blocks[i]);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_READS), 1);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_JOINED_BLOCKS), 8);
	assert_int_equal(start(&rig, blocks + 2, 1), 0); /* one is no company */
	log_rig_drain(&rig);
	expect(&rig, 0, 0, 3);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_READS), 2);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_JOINED_BLOCKS), 8);
	log_rig_teardown(&rig);
}

static void what_lies_between_is_passed_over(void **state)
{
	const uint32_t blocks[] = { 1, 3, 4, 8 };
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	append_some(&rig, 8);
	nvme_log_forget(rig.log, 2);
	assert_int_equal(start(&rig, blocks, 4), 0);
	assert_int_equal(uring_inflight(rig.u), 1);
	log_rig_drain(&rig);
	for (unsigned i = 0; i < 4; i++)
		expect(&rig, i, 0, blocks[i]);
	log_rig_teardown(&rig);
}

static void places_adjoin_or_not(void **state)
{
	struct nvme_place a, b, far;
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	append_some(&rig, 40); /* half a MiB is one segment */
	assert_int_equal(nvme_log_place(rig.log, 1, &a), 0);
	assert_int_equal(nvme_log_place(rig.log, 2, &b), 0);
	assert_true(nvme_log_adjoins(&a, &b));
	assert_false(nvme_log_adjoins(&b, &a));
	assert_false(nvme_log_adjoins(&a, &a));
	assert_int_equal(nvme_log_place(rig.log, 2 + NVME_LOG_GAP_BYTES / RECORD, &b), 0);
	assert_true(nvme_log_adjoins(&a, &b));
	assert_int_equal(nvme_log_place(rig.log, 3 + NVME_LOG_GAP_BYTES / RECORD, &far), 0);
	assert_false(nvme_log_adjoins(&a, &far));
	assert_int_equal(nvme_log_place(rig.log, 40, &far), 0);
	assert_true(far.segment != a.segment);
	far.off_sectors = b.off_sectors;
	assert_false(nvme_log_adjoins(&a, &far));
	far = b;
	far.sequence++; /* the segment is used again */
	assert_false(nvme_log_adjoins(&a, &far));

	assert_int_equal(nvme_log_after(rig.log, 1), 2);
	nvme_log_forget(rig.log, 2);
	assert_int_equal(nvme_log_after(rig.log, 1), 3);
	assert_int_equal(nvme_log_after(rig.log, 2), NVME_LOG_NONE);
	assert_int_equal(nvme_log_after(rig.log, 40), NVME_LOG_NONE);
	log_rig_teardown(&rig);
}

static void a_bad_sector_costs_one_record(void **state)
{
	const uint32_t blocks[] = { 1, 2, 3, 4, 5 };
	struct log_rig rig;
	char spec[64];

	(void)state;
	log_rig_setup(&rig);
	append_some(&rig, 5);
	(void)snprintf(spec, sizeof(spec), "read:eio:every=1:at=%llu",
		       (unsigned long long)file_off(&rig, 3) + 5000);
	log_rig_fault(&rig, spec);
	assert_int_equal(start(&rig, blocks, 5), 0);
	log_rig_drain(&rig);
	for (unsigned i = 0; i < 5; i++)
		expect(&rig, i, i == 2 ? -EIO : 0, blocks[i]);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_PARTED_READS), 1);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_ERRORS), 1);
	assert_true(nvme_log_in_service(rig.log));
	/* Without that one nothing is amiss. */
	assert_int_equal(start(&rig, blocks, 2), 0);
	log_rig_drain(&rig);
	expect(&rig, 1, 0, 2);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_PARTED_READS), 1);
	log_rig_teardown(&rig);
}

static void short_reads_go_on(void **state)
{
	const uint32_t blocks[] = { 1, 2, 4, 5, 6, 7 };
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	append_some(&rig, 7);
	log_rig_fault(&rig, "read:short:every=1");
	assert_int_equal(start(&rig, blocks, 6), 0);
	log_rig_drain(&rig);
	for (unsigned i = 0; i < 6; i++)
		expect(&rig, i, 0, blocks[i]);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_PARTED_READS), 0);
	log_rig_teardown(&rig);
}

/* A device that does not answer is not asked for each record again. */
static void a_deadline_ends_all(void **state)
{
	const uint32_t blocks[] = { 1, 2, 3 };
	struct log_rig rig;

	(void)state;
	log_rig_dir(&rig);
	rig.options.deadline_ns = 500 * MS;
	log_rig_ring(&rig);
	if (log_rig_open(&rig) < 0)
		fail_msg("%s", rig.err);
	append_some(&rig, 3);
	log_rig_fault(&rig, "read:stall_ms=5000:every=1");
	assert_int_equal(start(&rig, blocks, 3), 0);
	log_rig_drain(&rig);
	for (unsigned i = 0; i < 3; i++)
		expect(&rig, i, -ETIMEDOUT, 0);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_PARTED_READS), 0);
	assert_false(nvme_log_in_service(rig.log));
	assert_int_equal(start(&rig, blocks, 3), -EIO);
	for (unsigned i = 0; i < 3; i++)
		assert_true(nvme_log_holds(rig.log, blocks[i]));
	log_rig_teardown(&rig);
}

static void refused_reads_never_end(void **state)
{
	const uint32_t unknown[] = { 1, 2, 9 }, blocks[] = { 1, 2 };
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	append_some(&rig, 3);
	assert_int_equal(start(&rig, unknown, 3), -ENOENT);
	assert_int_equal(nvme_log_inflight(rig.log), 0);
	for (unsigned i = 2; i < 2 + LOG_RIG_DEPTH; i++)
		assert_int_equal(log_rig_start_read(&rig, &rig.ops[i], 3), 0);
	assert_int_equal(start(&rig, blocks, 2), -EAGAIN);
	log_rig_drain(&rig);
	assert_int_equal(rig.ops[0].done + rig.ops[1].done, 0);
	assert_int_equal(start(&rig, blocks, 2), 0);
	log_rig_drain(&rig);
	expect(&rig, 1, 0, 2);
	log_rig_teardown(&rig);
}

static void what_is_forgotten_meanwhile_is_what_it_was(void **state)
{
	const uint32_t blocks[] = { 1, 2, 3 };
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	append_some(&rig, 3);
	assert_int_equal(start(&rig, blocks, 3), 0);
	nvme_log_forget(rig.log, 2);
	log_rig_drain(&rig);
	for (unsigned i = 0; i < 3; i++)
		expect(&rig, i, 0, blocks[i]);
	assert_false(nvme_log_holds(rig.log, 2));
	log_rig_teardown(&rig);
}

/* ---- random use ---- */

/* From `block` on, those that follow on it in the log and adjoin. */
static unsigned find_run(const struct log_rig *rig, uint32_t block, uint32_t *ret)
{
	unsigned n = 0;

	for (; n < 8 && block != NVME_LOG_NONE; block = nvme_log_after(rig->log, block)) {
		struct nvme_place last, its;

		if (nvme_log_place(rig->log, block, &its) < 0)
			break;
		if (n && (nvme_log_place(rig->log, ret[n - 1], &last) < 0 ||
			  !nvme_log_adjoins(&last, &its)))
			break;
		ret[n++] = block;
	}
	return n;
}

static void read_a_run(struct log_rig *rig, uint32_t block, unsigned counts[2])
{
	uint32_t run[8];
	unsigned n = find_run(rig, block, run);
	int r = n ? start(rig, run, n) : -ENOENT;

	if (r < 0) {
		assert_true(!n || r == -EIO);
		return;
	}
	log_rig_drain(rig);
	for (unsigned i = 0; i < n; i++) {
		const struct log_rig_block *m = &rig->model[run[i]];

		assert_int_equal(rig->ops[i].done, 1);
		counts[rig->ops[i].res == 0]++;
		if (rig->ops[i].res == 0)
			assert_true(log_rig_is(rig->ops[i].buf, m->bytes, m->content));
	}
}

static void random_runs_are_exact(void **state)
{
	const uint64_t seed = 20261126;
	unsigned counts[2] = { 0 };
	uint32_t content = 1;
	struct log_rig rig;
	struct rng rng;

	(void)state;
	log_rig_setup_retry(&rig, MS / 2);
	log_rig_fault(&rig, "read:eio:every=7,read:short:every=3");
	rng_init(&rng, seed);
	for (uint32_t step = 0; step < RANDOM_STEPS; step++) {
		uint32_t block = rng_below(&rng, LOG_RIG_BLOCKS), what = rng_below(&rng, 10);
		struct log_rig_block *m = &rig.model[block];
		uint32_t bytes = LOG_RIG_ALIGN * (1 + rng_below(&rng, 16));

		if (what < 4 && !m->held) {
			if (log_rig_append(&rig, block, bytes, content) == 0) {
				m->content = content++;
				m->bytes = bytes;
			}
		} else if (what < 5) {
			nvme_log_forget(rig.log, block);
			m->held = false;
		} else {
			read_a_run(&rig, block, counts);
		}
		nvme_log_tick(rig.log, clock_now_ns());
	}
	print_message("seed %llu: %u reads exact, %u failed, %u of %u in company\n",
		      (unsigned long long)seed, counts[1], counts[0],
		      (unsigned)stats_get(rig.stats, STAT_NVME_JOINED_BLOCKS),
		      counts[0] + counts[1]);
	assert_true(counts[1] > RANDOM_STEPS / 4 && counts[0] > 0);
	assert_true(stats_get(rig.stats, STAT_NVME_PARTED_READS) > 0);
	log_rig_teardown(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_read_serves_all),
		cmocka_unit_test(what_lies_between_is_passed_over),
		cmocka_unit_test(places_adjoin_or_not),
		cmocka_unit_test(a_bad_sector_costs_one_record),
		cmocka_unit_test(short_reads_go_on),
		cmocka_unit_test(a_deadline_ends_all),
		cmocka_unit_test(refused_reads_never_end),
		cmocka_unit_test(what_is_forgotten_meanwhile_is_what_it_was),
		cmocka_unit_test(random_runs_are_exact),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
