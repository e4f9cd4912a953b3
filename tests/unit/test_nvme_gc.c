/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_gc.c - segments of the NVMe log that are used again: what is worth it is copied, whole and within the
 * bound, and nothing else is; what is damaged is not; and a device with errors changes none of that.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/nvme_recover.h"
#include "daemon/record.h"
#include "daemon/uring_fault.h"
#include "tests/lib/log_rig.h"

#define HOT 12u /* keys below are worth a copy */
#define BYTES (32u << 10)

struct world {
	struct log_rig rig;
	uint32_t hot; /* keys below are worth a copy */
	uint8_t held[LOG_RIG_BLOCKS];
	uint32_t next; /* of the cold keys */
	unsigned moved, hot_evicted;
	int res;
	bool busy;
	uint32_t late_key;   /* the first copies of this one fail, and are there; */
	unsigned late, lost; /* so many more fail, and are not */
	unsigned copies;
};

static int on_keeps(void *user, uint32_t key)
{
	const struct world *w = user;

	return key < w->hot;
}

static void on_moved(void *user, uint32_t key)
{
	struct world *w = user;

	assert_true(key < w->hot && w->held[key]);
	w->moved++;
}

static void on_evict(void *user, uint32_t key)
{
	struct world *w = user;

	assert_true(w->held[key]);
	w->held[key] = 0;
	w->hot_evicted += key < w->hot;
}

static void on_done(struct nvme_op *op, int res)
{
	struct world *w = op->user;

	w->res = res;
	w->busy = false;
}

static void setup(struct world *w, int keep)
{
	int r;

	memset(w, 0, sizeof(*w));
	log_rig_dir(&w->rig);
	w->hot = HOT;
	w->next = HOT;
	w->rig.options.bytes = 6 * MIB;
	w->rig.options.segment_bytes = MIB / 4;
	w->rig.options.keep = keep;
	w->rig.options.copy_percent = 50;
	w->rig.options.keeps = on_keeps;
	w->rig.options.moved = on_moved;
	w->rig.options.evict = on_evict;
	w->rig.options.user = w;
	log_rig_ring(&w->rig);
	r = log_rig_open(&w->rig);
	if (r == -EOPNOTSUPP) {
		print_message("%s\n", w->rig.err);
		skip();
	}
	assert_int_equal(r, 0);
	w->rig.ops[0].op.done = w->rig.ops[1].op.done = on_done;
	w->rig.ops[0].op.user = w->rig.ops[1].op.user = w;
}

static void turn(struct world *w)
{
	log_rig_turn(&w->rig, MS);
	nvme_log_tick(w->rig.log, clock_now_ns());
}

static void wait(struct world *w)
{
	w->busy = true;
	while (w->busy)
		turn(w);
}

/* Until nothing is copied any more. */
static void settle(struct world *w)
{
	for (unsigned quiet = 0; quiet < 8; quiet++) {
		turn(w);
		if (nvme_log_inflight(w->rig.log))
			quiet = 0;
	}
}

/* 0, or what append or its operation said. */
static int append(struct world *w, uint32_t key)
{
	struct log_rig_op *t = &w->rig.ops[0];
	uint64_t sequence;
	int r = nvme_log_room(w->rig.log, BYTES, &sequence);

	if (r < 0)
		return r;
	log_rig_make_record(t->buf, BYTES, key, nvme_log_id(w->rig.log), sequence);
	r = nvme_log_append(w->rig.log, &t->op, key, 0, t->buf, BYTES);
	if (r < 0)
		return r;
	wait(w);
	if (w->res == 0)
		w->held[key] = 1;
	return w->res;
}

/* Cold keys, one after the other, until so many bytes were written. */
static void write_cold(struct world *w, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += BYTES) {
		uint32_t key = w->next;

		w->next = key + 1 < LOG_RIG_BLOCKS ? key + 1 : HOT;
		if (w->held[key]) {
			nvme_log_forget(w->rig.log, key);
			w->held[key] = 0;
		}
		for (unsigned i = 0; append(w, key) < 0 && i < 1000; i++)
			turn(w);
	}
}

/* Among cold ones: a segment of nothing but hot ones is left alone. */
static void write_hot(struct world *w)
{
	for (uint32_t key = 0; key < HOT; key++) {
		assert_int_equal(append(w, key), 0);
		write_cold(w, 3 * BYTES);
	}
}

static int read_back(struct world *w, uint32_t key)
{
	struct log_rig_op *t = &w->rig.ops[1];
	const struct record_header *h = (const struct record_header *)(const void *)t->buf;
	int r = nvme_log_read(w->rig.log, &t->op, key, 0, t->buf);

	if (r < 0)
		return r;
	wait(w);
	if (w->res < 0)
		return w->res;
	assert_int_equal(record_check_whole(t->buf, BYTES), 0);
	assert_int_equal(h->sequence, t->op.sequence);
	return log_rig_is_record(t->buf, BYTES, key) ? 0 : -EBADMSG;
}

static void all_as_told(struct world *w)
{
	for (uint32_t key = 0; key < LOG_RIG_BLOCKS; key++) {
		assert_int_equal(nvme_log_holds(w->rig.log, key), w->held[key]);
		if (w->held[key])
			assert_int_equal(read_back(w, key), 0);
	}
}

static uint64_t stat(const struct world *w, enum stats_id id)
{
	return stats_get(w->rig.stats, id);
}

static void used_ones_stay(void **state)
{
	static const int keeps[] = { 1, 0 };

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct world w;

		setup(&w, keeps[i]);
		write_hot(&w);
		write_cold(&w, 4 * w.rig.options.bytes);
		settle(&w);
		assert_int_equal(w.hot_evicted, 0);
		assert_true(w.moved >= 2 * HOT);
		assert_int_equal(stat(&w, STAT_NVME_COPIED_BLOCKS), w.moved);
		assert_true(stat(&w, STAT_NVME_COPIED_BYTES) >= (uint64_t)w.moved * BYTES);
		assert_in_range(stat(&w, STAT_NVME_WRITE_AMPLIFICATION), 101, 150);
		all_as_told(&w);
		log_rig_teardown(&w.rig);
	}
}

static void copies_are_bounded(void **state)
{
	struct world w;
	uint64_t stored;

	(void)state;
	setup(&w, 0);
	w.hot = LOG_RIG_BLOCKS;
	write_cold(&w, 4 * w.rig.options.bytes);
	settle(&w);
	stored = stat(&w, STAT_NVME_WRITTEN_BYTES) - stat(&w, STAT_NVME_COPIED_BYTES);
	assert_true(stat(&w, STAT_NVME_COPIED_BYTES) > 0);
	assert_true(stat(&w, STAT_NVME_COPIED_BYTES) <= stored / 2);
	assert_true(w.hot_evicted > 0);
	all_as_told(&w);
	log_rig_teardown(&w.rig);
}

static void nothing_is_copied_when_told_so(void **state)
{
	struct world w;

	(void)state;
	setup(&w, 0);
	log_rig_close(&w.rig);
	w.rig.options.copy_percent = 0;
	log_rig_ring(&w.rig);
	assert_int_equal(log_rig_open(&w.rig), 0);
	assert_int_equal(append(&w, 0), 0);
	write_cold(&w, 3 * w.rig.options.bytes);
	assert_int_equal(stat(&w, STAT_NVME_COPIED_BYTES), 0);
	assert_int_equal(w.hot_evicted, 1);
	log_rig_teardown(&w.rig);
}

static void damage_is_not_copied(void **state)
{
	struct nvme_place place;
	struct world w;
	uint8_t byte = 0x5a;
	int fd;

	(void)state;
	setup(&w, 1);
	write_hot(&w);
	assert_int_equal(nvme_log_place(w.rig.log, 3, &place), 0);
	fd = open(w.rig.path, O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, &byte, 1,
				(off_t)(place.segment * w.rig.options.segment_bytes +
					place.off_sectors * 512ull + 20000)),
			 1);
	assert_int_equal(close(fd), 0);
	write_cold(&w, 2 * w.rig.options.bytes);
	settle(&w);
	assert_int_equal(w.hot_evicted, 1);
	assert_false(w.held[3]);
	assert_true(stat(&w, STAT_NVME_ERRORS) > 0);
	all_as_told(&w);
	log_rig_teardown(&w.rig);
}

static void errors_lose_nothing_wrongly(void **state)
{
	static const char *const faults[] = { "write:eio:every=9", "read:eio:every=5",
					      "write:short:every=2,read:short:every=2",
					      "write:eio:every=4,read:eio:every=3" };

	(void)state;
	for (unsigned i = 0; i < sizeof(faults) / sizeof(*faults); i++) {
		struct world w;

		setup(&w, 1);
		write_hot(&w);
		log_rig_fault(&w.rig, faults[i]);
		write_cold(&w, 2 * w.rig.options.bytes);
		log_rig_fault(&w.rig, NULL);
		for (unsigned n = 0; !nvme_log_in_service(w.rig.log) && n < 20000; n++)
			turn(&w);
		settle(&w);
		print_message("%-40s %u moved, %u of %u lost\n", faults[i], w.moved, w.hot_evicted,
			      HOT);
		assert_true(w.moved > 0);
		all_as_told(&w);
		log_rig_teardown(&w.rig);
	}
}

/* ---- copies that failed, and came all the same ---- */

static void on_write(void *user, const struct uring_op *op, int done)
{
	const struct record_header *h = (const struct record_header *)(const void *)op->data;
	struct world *w = user;
	uint32_t key;

	if (done || op->kind != URING_WRITE || op->bytes != BYTES || h->magic != RECORD_MAGIC)
		return;
	memcpy(&key, h->key, sizeof(key));
	if (key != w->late_key || w->copies++ >= w->late + w->lost)
		return;
	((struct uring_op *)(uintptr_t)op)->fault = w->copies <= w->late ? URING_FAULT_LATE
									 : URING_FAULT_EIO;
}

static int on_record(void *user, const struct record_header *h, const struct nvme_place *place)
{
	struct world *w = user;
	struct nvme_place is;
	uint32_t key;

	memcpy(&key, h->key, sizeof(key));
	if (nvme_log_place(w->rig.log, key, &is) == 0) {
		assert_true(is.sequence <= place->sequence);
		nvme_log_forget(w->rig.log, key);
	}
	w->held[key] = 1;
	return nvme_log_restore(w->rig.log, key, place);
}

static void on_forgotten(void *user, uint32_t key)
{
	struct world *w = user;

	w->held[key] = 0;
}

/* The process is killed, and another one opens the file. */
static void again(struct world *w)
{
	const struct nvme_recover_ops ops = { .record = on_record,
					      .forgotten = on_forgotten,
					      .user = w };
	struct nvme_recovered found;

	uring_set_tap(w->rig.u, NULL, NULL);
	log_rig_drain(&w->rig);
	log_rig_close(&w->rig);
	memset(w->held, 0, sizeof(w->held));
	log_rig_ring(&w->rig);
	assert_int_equal(log_rig_open(&w->rig), 0);
	assert_int_equal(nvme_log_recover(w->rig.log, &ops, &found), 0);
}

static void drop(struct world *w, uint32_t key)
{
	nvme_log_forget(w->rig.log, key);
	w->held[key] = 0;
	do
		settle(w);
	while (nvme_log_notes(w->rig.log));
}

/* Of the copies of one block some fail; it is dropped when so many have begun.  0: never. */
static void copies_fail(struct world *w, unsigned late, unsigned lost, unsigned drop_at)
{
	setup(w, 1);
	write_hot(w);
	w->late_key = 5;
	w->late = late;
	w->lost = lost;
	uring_set_tap(w->rig.u, on_write, w);
	while (w->copies < (drop_at ? drop_at : late + lost + 1)) {
		assert_true(w->held[w->late_key]);
		write_cold(w, BYTES);
	}
	if (drop_at)
		drop(w, w->late_key);
	settle(w);
	assert_true(w->hot_evicted == 0 || late + lost == 3);
	again(w);
	for (uint32_t key = 0; key < HOT; key++)
		assert_int_equal(w->held[key], key != w->late_key || !drop_at);
	all_as_told(w);
	log_rig_teardown(&w->rig);
}

static void a_block_is_found_whose_copy_failed_and_came(void **state)
{
	struct world w;

	(void)state;
	copies_fail(&w, 1, 0, 0);
	copies_fail(&w, 1, 1, 0);
	copies_fail(&w, 2, 0, 0);
}

/* While its copy is written, while it is written again, and when it has been moved. */
static void a_dropped_block_does_not_come_back_with_a_late_copy(void **state)
{
	struct world w;

	(void)state;
	for (unsigned late = 1; late <= 2; late++)
		for (unsigned lost = 0; late + lost <= 2; lost++)
			for (unsigned drop_at = 1; drop_at <= late + lost + 1; drop_at++)
				copies_fail(&w, late, lost, drop_at);
	copies_fail(&w, 1, 2, 3); /* while the last is written that will be */
}

/* It is given up, and so it is not there, nor any copy of it. */
static void a_block_all_of_whose_copies_failed_is_gone(void **state)
{
	struct world w;

	(void)state;
	setup(&w, 1);
	write_hot(&w);
	w.late_key = 5;
	w.late = 100;
	uring_set_tap(w.rig.u, on_write, &w);
	while (w.held[w.late_key])
		write_cold(&w, BYTES);
	settle(&w);
	assert_int_equal(w.copies, 3);
	assert_int_equal(w.hot_evicted, 1);
	drop(&w, w.late_key);
	again(&w);
	for (uint32_t key = 0; key < HOT; key++)
		assert_int_equal(w.held[key], key != w.late_key);
	all_as_told(&w);
	log_rig_teardown(&w.rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(used_ones_stay),
		cmocka_unit_test(copies_are_bounded),
		cmocka_unit_test(nothing_is_copied_when_told_so),
		cmocka_unit_test(damage_is_not_copied),
		cmocka_unit_test(errors_lose_nothing_wrongly),
		cmocka_unit_test(a_block_is_found_whose_copy_failed_and_came),
		cmocka_unit_test(a_dropped_block_does_not_come_back_with_a_late_copy),
		cmocka_unit_test(a_block_all_of_whose_copies_failed_is_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
