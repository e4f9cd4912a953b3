/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_set.c - several files as one NVMe tier: blocks are spread over them, one that fails takes only its own
 * blocks out of service, and what may be a member of what when they are opened again, also after a power cut.
 *
 * test_nvme_set [--seconds N]: power cuts, round after round, each with a seed of its own.
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
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cmocka.h>

#include "daemon/nvme_recover.h"
#include "daemon/nvme_set.h"
#include "daemon/record.h"
#include "tests/lib/log_rig.h"
#include "tests/lib/power_file.h"
#include "tests/lib/rng.h"

#define FILES 3u
#define BYTES (32u << 10)

struct world {
	struct log_rig rig; /* ring, memory, folder */
	char path[FILES][112];
	struct nvme_set_options options;
	struct nvme_set *set;
	struct nvme_log *reading;
	uint8_t held[LOG_RIG_BLOCKS];
	unsigned evicted, copied;
	struct power_file power[2];
	uint64_t done_at[LOG_RIG_BLOCKS]; /* event of its file's power model */
	uint64_t skew_ns;		  /* the log's time runs faster */
	bool may_refuse;
	int res;
	bool busy;
};

static void on_evict(void *user, uint32_t key)
{
	struct world *w = user;

	assert_true(w->held[key]);
	w->held[key] = 0;
	w->evicted++;
}

static void on_done(struct nvme_op *op, int res)
{
	struct world *w = op->user;

	w->res = res;
	w->busy = false;
}

static int open_set(struct world *w)
{
	if (!w->rig.u)
		log_rig_ring(&w->rig);
	w->rig.err[0] = '\0';
	return nvme_set_open(&w->options, w->rig.u, w->rig.stats, &w->set, w->rig.err,
			     sizeof(w->rig.err));
}

static void setup(struct world *w, unsigned files)
{
	int r;

	memset(w, 0, sizeof(*w));
	log_rig_dir(&w->rig);
	w->options.log = w->rig.options;
	w->options.log.segment_bytes = MIB / 4;
	w->options.log.keep = 1;
	w->options.log.evict = on_evict;
	w->options.log.user = w;
	w->options.devices = files;
	for (unsigned i = 0; i < FILES; i++) {
		(void)snprintf(w->path[i], sizeof(w->path[i]), "%s/%c", w->rig.dir, 'a' + (int)i);
		w->options.device[i] = (struct nvme_set_device){ w->path[i], (i + 2) * 2 * MIB };
	}
	w->rig.ops[0].op.done = w->rig.ops[1].op.done = on_done;
	w->rig.ops[0].op.user = w->rig.ops[1].op.user = w;
	r = open_set(w);
	if (r == -EOPNOTSUPP) {
		print_message("%s\n", w->rig.err);
		skip();
	}
	assert_int_equal(r, 0);
}

static void turn(struct world *w)
{
	log_rig_turn(&w->rig, MS);
	nvme_set_tick(w->set, clock_now_ns() + w->skew_ns);
}

static void wait(struct world *w)
{
	w->busy = true;
	while (w->busy)
		turn(w);
}

/* As after a kill: what is not written is not. */
static void close_set(struct world *w)
{
	while (w->set && (nvme_set_inflight(w->set) || nvme_set_notes(w->set)))
		turn(w);
	w->set = nvme_set_close(w->set);
	w->rig.u = uring_free(w->rig.u);
	assert_int_equal(stats_get(w->rig.stats, STAT_NVME_BYTES), 0);
	assert_int_equal(stats_get(w->rig.stats, STAT_NVME_LIVE_BYTES), 0);
}

static void teardown(struct world *w)
{
	close_set(w);
	for (unsigned i = 0; i < FILES; i++)
		(void)unlink(w->path[i]);
	log_rig_teardown(&w->rig);
}

static int append(struct world *w, uint32_t key)
{
	struct log_rig_op *t = &w->rig.ops[0];
	uint64_t log_id, sequence;
	int r = nvme_set_room(w->set, BYTES, &log_id, &sequence);

	if (r < 0)
		return r;
	log_rig_make_record(t->buf, BYTES, key, log_id, sequence);
	r = nvme_set_append(w->set, &t->op, key, 0, t->buf, BYTES);
	if (r < 0)
		return r;
	wait(w);
	w->held[key] = w->res == 0;
	return w->res;
}

static void append_all(struct world *w, uint32_t from, uint32_t to)
{
	for (uint32_t key = from; key < to; key++)
		assert_int_equal(append(w, key), 0);
}

static int read_back(struct world *w, uint32_t key)
{
	struct log_rig_op *t = &w->rig.ops[1];
	const struct record_header *h = (const struct record_header *)(const void *)t->buf;
	int r = nvme_set_read(w->set, &t->op, key, 0, t->buf);

	if (r < 0)
		return r;
	wait(w);
	if (w->res < 0)
		return w->res;
	assert_int_equal(h->log_id, nvme_log_id(t->op.log));
	assert_true(log_rig_is_record(t->buf, BYTES, key));
	return 0;
}

static void all_as_told(struct world *w)
{
	for (uint32_t key = 0; key < LOG_RIG_BLOCKS; key++) {
		uint8_t held = w->held[key];
		int r = read_back(w, key);

		if (w->held[key] == held) /* else its segment was taken back meanwhile */
			assert_int_equal(r, held ? 0 : -ENOENT);
	}
}

static unsigned in_log(const struct world *w, unsigned i)
{
	const struct nvme_log *log = nvme_set_log(w->set, i);
	unsigned n = 0;

	for (uint32_t key = 0; key < LOG_RIG_BLOCKS; key++)
		n += nvme_set_log_of(w->set, key) == log && nvme_log_holds(log, key);
	return n;
}

/* ---- what is found again ---- */

static void on_piece(void *user, enum nvme_blob kind, const uint8_t *bytes, uint32_t count)
{
	(void)user;
	(void)kind;
	(void)bytes;
	(void)count;
}

static int on_record(void *user, const struct record_header *h, const struct nvme_place *place)
{
	struct world *w = user;
	struct nvme_place is;
	uint32_t key;

	memcpy(&key, h->key, sizeof(key));
	if (nvme_set_place(w->set, key, &is) == 0) {
		assert_true(is.sequence != place->sequence || is.off_sectors != place->off_sectors);
		if (is.sequence > place->sequence)
			return 0;
		nvme_set_forget(w->set, key);
	}
	assert_int_equal(nvme_set_restore(w->set, w->reading, key, place), 0);
	w->held[key] = 1;
	return 0;
}

static void on_forgotten(void *user, uint32_t key)
{
	struct world *w = user;

	w->held[key] = 0;
}

static unsigned recover(struct world *w)
{
	const struct nvme_recover_ops ops = {
		.piece = on_piece, .record = on_record, .forgotten = on_forgotten, .user = w
	};
	struct nvme_recovered found;
	unsigned n = 0;

	memset(w->held, 0, sizeof(w->held));
	for (unsigned i = 0; i < nvme_set_logs(w->set); i++) {
		w->reading = nvme_set_log(w->set, i);
		assert_int_equal(nvme_log_recover(w->reading, &ops, &found), 0);
		assert_true(w->may_refuse || !found.records_refused);
	}
	for (uint32_t key = 0; key < LOG_RIG_BLOCKS; key++)
		n += w->held[key];
	return n;
}

static void again(struct world *w)
{
	close_set(w);
	if (open_set(w) < 0)
		fail_msg("%s", w->rig.err);
}

static void refused(struct world *w, const char *word)
{
	close_set(w);
	assert_int_equal(open_set(w), -EEXIST);
	if (!strstr(w->rig.err, word))
		fail_msg("\"%s\" has no \"%s\"", w->rig.err, word);
	assert_null(w->set);
}

/* ---- tests ---- */

static void spread_by_what_they_hold(void **state)
{
	unsigned n[FILES];
	struct world w;

	(void)state;
	setup(&w, FILES); /* of 4, 6 and 8 MiB */
	append_all(&w, 0, 400);
	for (unsigned i = 0; i < FILES; i++)
		n[i] = in_log(&w, i);
	print_message("400 blocks: %u, %u, %u; %u evicted\n", n[0], n[1], n[2], w.evicted);
	assert_true(n[0] > 60 && n[0] < n[1] && n[1] < n[2]);
	assert_int_equal(stats_get(w.rig.stats, STAT_NVME_BYTES), 18 * MIB);
	assert_int_equal(stats_get(w.rig.stats, STAT_NVME_LIVE_BYTES),
			 (uint64_t)(n[0] + n[1] + n[2]) * BYTES);
	all_as_told(&w);
	again(&w);
	assert_int_equal(recover(&w), 400 - w.evicted);
	all_as_told(&w);
	teardown(&w);
}

/* What is forgotten and stored again elsewhere is found there. */
static void the_newest_counts(void **state)
{
	struct world w;

	(void)state;
	setup(&w, 2);
	append_all(&w, 0, 60);
	for (uint32_t key = 0; key < 40; key++) {
		nvme_set_forget(w.set, key);
		w.held[key] = 0;
	}
	append_all(&w, 10, 30);
	again(&w);
	assert_int_equal(recover(&w), 40);
	for (uint32_t key = 0; key < 60; key++)
		assert_int_equal(w.held[key], (key >= 10 && key < 30) || key >= 40);
	all_as_told(&w);
	teardown(&w);
}

static void one_that_fails_takes_only_its_own(void **state)
{
	unsigned before, missed = 0, served = 0;
	struct world w;

	(void)state;
	setup(&w, 2);
	append_all(&w, 0, 100);
	before = in_log(&w, 1);
	assert_true(before > 0 && in_log(&w, 0) > 0);
	log_rig_fault(&w.rig, "write:eio:every=1:file=1,read:eio:every=1:file=1");
	for (uint32_t key = 100; key < 150; key++)
		for (unsigned n = 0; append(&w, key) < 0 && n < 100; n++)
			turn(&w);
	assert_int_equal(nvme_set_in_service(w.set), 1);
	for (uint32_t key = 0; key < 150; key++) {
		int r = w.held[key] ? read_back(&w, key) : -ENOENT;

		if (nvme_set_log_of(w.set, key) == nvme_set_log(w.set, 0) && w.held[key]) {
			assert_int_equal(r, 0);
			served++;
		} else if (w.held[key]) {
			assert_int_equal(r, -EIO);
			missed++;
		}
	}
	assert_true(missed >= before && served >= 50);
	log_rig_fault(&w.rig, NULL);
	for (unsigned n = 0; nvme_set_in_service(w.set) < 2 && n < 20000; n++)
		turn(&w);
	assert_int_equal(nvme_set_in_service(w.set), 2);
	all_as_told(&w);
	teardown(&w);
}

static void a_device_that_hangs_does_not_hold_up_the_other(void **state)
{
	struct world w;

	(void)state;
	setup(&w, 2);
	close_set(&w);
	w.options.log.deadline_ns = 20 * MS;
	log_rig_ring(&w.rig);
	assert_int_equal(open_set(&w), 0);
	(void)recover(&w);
	log_rig_fault(&w.rig, "write:hang_ms=300:every=1:file=1");
	for (uint32_t key = 0; key < 40; key++)
		for (unsigned n = 0; append(&w, key) < 0 && n < 100; n++)
			turn(&w);
	log_rig_fault(&w.rig, NULL);
	assert_int_equal(nvme_log_in_service(nvme_set_log(w.set, 0)), 1);
	assert_true(in_log(&w, 0) >= 30);
	for (unsigned n = 0; nvme_set_in_service(w.set) < 2 && n < 20000; n++)
		turn(&w);
	all_as_told(&w);
	teardown(&w);
}

static void others_are_refused(void **state)
{
	struct world w, other;

	(void)state;
	setup(&w, 2);
	append_all(&w, 0, 50);
	setup(&other, 1);
	close_set(&other);
	w.options.devices = 3;
	w.options.device[2] = (struct nvme_set_device){ other.path[0], 4 * MIB };
	refused(&w, "another set");
	w.options.devices = 2;
	assert_int_equal(open_set(&w), 0); /* nothing was changed */
	assert_int_equal(recover(&w), 50);
	all_as_told(&w);
	log_rig_ring(&other.rig);
	teardown(&other);
	teardown(&w);
}

static void copy_file(const char *from, const char *to)
{
	char command[700];

	(void)snprintf(command, sizeof(command), "cp '%s' '%s'", from, to);
	assert_int_equal(system(command), 0);
}

static void a_copy_is_refused(void **state)
{
	struct world w;

	(void)state;
	setup(&w, 1);
	append_all(&w, 0, 10);
	close_set(&w);
	copy_file(w.path[0], w.path[2]);
	w.options.devices = 2;
	w.options.device[1] = (struct nvme_set_device){ w.path[2], 4 * MIB };
	refused(&w, "same member");
	w.options.devices = 1;
	assert_int_equal(open_set(&w), 0);
	assert_int_equal(recover(&w), 10);
	teardown(&w);
}

static void members_come_and_go(void **state)
{
	struct nvme_set_device second;
	unsigned first_has;
	struct world w;

	(void)state;
	setup(&w, 1);
	append_all(&w, 0, 20);
	w.options.devices = 2; /* another one joins */
	again(&w);
	assert_int_equal(recover(&w), 20);
	append_all(&w, 20, 60);
	assert_true(in_log(&w, 1) > 0);
	all_as_told(&w);
	again(&w);
	assert_int_equal(recover(&w), 60);
	first_has = in_log(&w, 0);

	/* Without the second: its blocks are misses. */
	second = w.options.device[1];
	w.options.devices = 1;
	again(&w);
	assert_int_equal(recover(&w), first_has);
	all_as_told(&w);

	/* It comes back, and has missed what was forgotten: it begins anew. */
	w.options.devices = 2;
	w.options.device[1] = second;
	again(&w);
	assert_int_equal(recover(&w), first_has);
	append_all(&w, 100, 150);
	again(&w);
	assert_int_equal(recover(&w), first_has + 50);
	all_as_told(&w);

	/* In the other order. */
	w.options.device[1] = w.options.device[0];
	w.options.device[0] = second;
	again(&w);
	assert_int_equal(recover(&w), first_has + 50);
	all_as_told(&w);
	teardown(&w);
}

/* What version 2 wrote: a superblock up to the uuid, and its checksum. */
static void make_version_2(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t sb[96], zero[96] = { 0 };
	uint32_t version = 2;
	uint64_t xxh3;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, sb, sizeof(sb), 0), sizeof(sb));
	memcpy(sb + 8, &version, sizeof(version));
	memset(sb + 56, 0, sizeof(sb) - 56);
	xxh3 = XXH3_64bits(sb, 64);
	memcpy(sb + 56, &xxh3, sizeof(xxh3));
	assert_int_equal(pwrite(fd, sb, sizeof(sb), 0), sizeof(sb));
	assert_int_equal(pwrite(fd, zero, sizeof(zero), 16384), sizeof(zero));
	assert_int_equal(close(fd), 0);
}

static void version_2_is_read(void **state)
{
	struct world w;

	(void)state;
	setup(&w, 1);
	append_all(&w, 0, 30);
	close_set(&w);
	make_version_2(w.path[0]);
	w.options.devices = 2;
	assert_int_equal(open_set(&w), 0);
	assert_int_equal(recover(&w), 30);
	all_as_told(&w);
	append_all(&w, 30, 60);
	again(&w);
	assert_int_equal(recover(&w), 60);
	all_as_told(&w);
	teardown(&w);
}

/* The daemon died between the claims of an opening: nobody was away. */
static void an_opening_cut_short(void **state)
{
	char first[120], second[300];
	struct world w;

	(void)state;
	setup(&w, 2);
	append_all(&w, 0, 60);
	close_set(&w);
	(void)snprintf(first, sizeof(first), "%s/old", w.rig.dir);
	copy_file(w.path[1], first);
	assert_int_equal(open_set(&w), 0);
	close_set(&w);
	(void)snprintf(second, sizeof(second), "mv '%s' '%s'", first, w.path[1]);
	assert_int_equal(system(second), 0);
	assert_int_equal(open_set(&w), 0);
	assert_int_equal(recover(&w), 60);
	all_as_told(&w);
	teardown(&w);
}

/* ---- the power goes ---- */

static void tap_both(void *user, const struct uring_op *op, int done)
{
	struct world *w = user;

	assert_true(op->file < 2);
	power_file_tap(&w->power[op->file], op, done);
}

static int on_keeps(void *user, uint32_t key)
{
	(void)user;
	return key % 4 == 0;
}

static void on_moved(void *user, uint32_t key)
{
	struct world *w = user;

	assert_true(w->held[key]);
	w->copied++;
}

static unsigned file_of(const struct world *w, uint32_t key)
{
	return nvme_set_log_of(w->set, key) == nvme_set_log(w->set, 1);
}

static void watch_both(struct world *w)
{
	for (unsigned i = 0; i < 2; i++)
		power_file_begin(&w->power[i], w->path[i], w->options.device[i].bytes, w->rig.u);
	uring_set_tap(w->rig.u, tap_both, w);
}

static void live(struct world *w, struct rng *rng)
{
	for (unsigned i = 0; i < 500; i++) {
		uint32_t key = rng_below(rng, LOG_RIG_BLOCKS);

		w->skew_ns += 2 * MS; /* few flushes but those that copies need */
		if (w->held[key] && key % 4 && rng_one_in(rng, 2)) {
			nvme_set_forget(w->set, key);
			w->held[key] = 0;
		} else if (!w->held[key] && append(w, key) == 0) {
			w->done_at[key] = w->power[file_of(w, key)].now;
		} else {
			turn(w);
		}
	}
}

static void cut_both(struct world *w, struct rng *rng)
{
	uint8_t must[LOG_RIG_BLOCKS];

	for (uint32_t key = 0; key < LOG_RIG_BLOCKS; key++)
		must[key] = w->held[key] && w->done_at[key] <= w->power[file_of(w, key)].synced_to;
	uring_set_tap(w->rig.u, NULL, NULL);
	while (nvme_set_inflight(w->set))
		log_rig_turn(&w->rig, MS);
	w->set = nvme_set_close(w->set);
	w->rig.u = uring_free(w->rig.u);
	for (unsigned i = 0; i < 2; i++) {
		power_file_cut(&w->power[i], w->path[i], rng, 1 + rng_below(rng, 4));
		power_file_end(&w->power[i]);
	}
	assert_int_equal(open_set(w), 0);
	(void)recover(w);
	for (uint32_t key = 0; key < LOG_RIG_BLOCKS; key++)
		if (must[key] && !w->held[key])
			fail_msg("key %u: flushed, and not found after a power cut", key);
	all_as_told(w);
	memset(w->done_at, 0, sizeof(w->done_at)); /* what was found is on the media */
}

static uint64_t run_seed, run_until_ns;

static void the_power_goes(void **state)
{
	const uint64_t seed = run_seed ? run_seed : rng_seed_env(0x736574);
	unsigned copied = 0, round = 0;

	(void)state;
	for (; run_until_ns ? clock_now_ns() < run_until_ns : round < 4; round++) {
		struct world w;
		struct rng rng;

		rng_init(&rng, seed + round);
		setup(&w, 2);
		close_set(&w);
		w.may_refuse = true;
		w.options.log.copy_percent = 60;
		w.options.log.keeps = on_keeps;
		w.options.log.moved = on_moved;
		assert_int_equal(open_set(&w), 0);
		(void)recover(&w);
		for (unsigned life = 0; life < 3; life++) {
			watch_both(&w);
			live(&w, &rng);
			cut_both(&w, &rng);
		}
		copied += w.copied;
		teardown(&w);
	}
	print_message("seed %llu, %u rounds, %u copies\n", (unsigned long long)seed, round, copied);
	assert_true(copied > 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest long_test[] = { cmocka_unit_test(the_power_goes) };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(spread_by_what_they_hold),
		cmocka_unit_test(the_newest_counts),
		cmocka_unit_test(one_that_fails_takes_only_its_own),
		cmocka_unit_test(a_device_that_hangs_does_not_hold_up_the_other),
		cmocka_unit_test(others_are_refused),
		cmocka_unit_test(a_copy_is_refused),
		cmocka_unit_test(members_come_and_go),
		cmocka_unit_test(version_2_is_read),
		cmocka_unit_test(an_opening_cut_short),
		cmocka_unit_test(the_power_goes),
	};

	if (argc == 3 && !strcmp(argv[1], "--seconds")) {
		run_seed = rng_seed_env(clock_now_ns());
		run_until_ns = clock_now_ns() + strtoull(argv[2], NULL, 0) * CLOCK_NS_PER_S;
		return cmocka_run_group_tests(long_test, NULL, NULL);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
