/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_log.c - the NVMe log on a real file: random use against a reference that knows what every
 * block must read as, with and without faults; health; what it does with files that are not its own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/nvme_log.h"
#include "daemon/util/clock.h"
#include "tests/lib/rng.h"

#define MIB (1ull << 20)
#define MS CLOCK_NS_PER_MS
#define BLOCKS 512u
#define OPS 24u
#define DEPTH 16u
#define ALIGN 4096u
#define RECORD_BYTES_MAX (64u << 10)
#define RETRY_NS (30 * MS)

#ifdef SKVCD_SAN
#define RANDOM_STEPS 6000u
#define SLOW 10u
#else
#define RANDOM_STEPS 20000u
#define SLOW 1u
#endif

struct rig;

struct test_op {
	struct nvme_op op;
	struct rig *rig;
	struct test_op *next;			/* when free */
	uint8_t *buf;
	uint32_t bytes;
	uint32_t content;
	unsigned done;
	int res;
	bool busy;
};

/* What the log must know of a block. */
struct model {
	uint32_t content;			/* of the record that it holds, or is getting */
	uint32_t bytes;
	uint32_t life;				/* one more at each append, forget and eviction */
	bool writing, held;
};

struct rig {
	char dir[64], path[96], err[256];
	struct nvme_log_options options;
	struct uring *u;
	struct stats *stats;
	struct nvme_log *log;
	struct test_op ops[OPS];
	uint8_t *memory;
	struct model model[BLOCKS];
	unsigned evicted, failed, cancelled;
	uint32_t evict_forgets;			/* evict() forgets this block too, when set */
};

static void on_evict(void *user, uint32_t block)
{
	struct rig *rig = user;
	struct model *m = &rig->model[block];

	/* Not while it is being written, and not twice. */
	assert_true(m->held && !m->writing);
	assert_false(nvme_log_holds(rig->log, block));
	m->held = false;
	m->life++;
	rig->evicted++;
	if (rig->evict_forgets && rig->evict_forgets != block) {
		nvme_log_forget(rig->log, rig->evict_forgets);
		rig->model[rig->evict_forgets].held = false;
		rig->evict_forgets = 0;
	}
}

static void on_done(struct nvme_op *op, int res)
{
	struct test_op *t = (struct test_op *)op;

	assert_true(t->busy);
	t->busy = false;
	t->res = res;
	t->done++;
}

/* ---- setting up ---- */

static void make_dir(struct rig *rig)
{
	const char *base = getenv("TMPDIR");

	memset(rig, 0, sizeof(*rig));
	(void)snprintf(rig->dir, sizeof(rig->dir), "%.40s/skvcd-log-XXXXXX", base ? base : ".");
	assert_non_null(mkdtemp(rig->dir));
	(void)snprintf(rig->path, sizeof(rig->path), "%s/log", rig->dir);
	rig->options = (struct nvme_log_options){
		.path = rig->path, .bytes = 4 * MIB, .segment_bytes = MIB / 2, .queue_depth = DEPTH,
		.deadline_ns = 10000 * MS, .retry_ns = RETRY_NS, .blocks_max = BLOCKS,
		.evict = on_evict, .user = rig,
	};
	rig->stats = calloc(1, sizeof(*rig->stats));
	rig->memory = aligned_alloc(ALIGN, OPS * RECORD_BYTES_MAX);
	for (unsigned i = 0; i < OPS; i++) {
		rig->ops[i].rig = rig;
		rig->ops[i].buf = rig->memory + i * RECORD_BYTES_MAX;
		rig->ops[i].op.done = on_done;
	}
}

static void make_ring(struct rig *rig)
{
	struct iovec iov = { rig->memory, OPS * RECORD_BYTES_MAX };
	int r = uring_new(DEPTH + 1, NULL, &rig->u);

	if (r == -EPERM || r == -ENOSYS || r == -ENOMEM) {
		print_message("%s\n", uring_hint(r));
		skip();
	}
	assert_int_equal(r, 0);
	assert_int_equal(uring_register_buffers(rig->u, &iov, 1), 0);
}

static int open_log(struct rig *rig)
{
	rig->err[0] = '\0';
	return nvme_log_open(&rig->options, rig->u, rig->stats, &rig->log, rig->err, sizeof(rig->err));
}

static void close_log(struct rig *rig)
{
	rig->log = nvme_log_close(rig->log);
	rig->u = uring_free(rig->u);
	memset(rig->model, 0, sizeof(rig->model));
}

static void setup_retry(struct rig *rig, uint64_t retry_ns)
{
	int r;

	make_dir(rig);
	rig->options.retry_ns = retry_ns;
	make_ring(rig);
	r = open_log(rig);
	if (r == -EOPNOTSUPP) {
		print_message("%s\n", rig->err);
		skip();
	}
	if (r < 0)
		fail_msg("%s", rig->err);
}

static void setup(struct rig *rig)
{
	setup_retry(rig, RETRY_NS);
}

static void teardown(struct rig *rig)
{
	if (rig->log)
		close_log(rig);
	rig->u = uring_free(rig->u);
	(void)unlink(rig->path);
	(void)rmdir(rig->dir);
	free(rig->memory);
	free(rig->stats);
}

static void turn(struct rig *rig, uint64_t wait_ns)
{
	assert_int_equal(uring_sleep(rig->u, wait_ns), 0);
	(void)uring_reap(rig->u, 32);
}

static void drain(struct rig *rig)
{
	const uint64_t until_ns = clock_now_ns() + 20000 * MS;

	while (nvme_log_inflight(rig->log) && clock_now_ns() < until_ns)
		turn(rig, 100 * MS);
	assert_int_equal(nvme_log_inflight(rig->log), 0);
}

static void fault(struct rig *rig, const char *spec)
{
	assert_int_equal(uring_set_fault(rig->u, spec), 0);
}

/* ---- one operation at a time ---- */

static void content_fill(uint8_t *p, uint32_t bytes, uint32_t content)
{
	uint64_t *words = (uint64_t *)(void *)p;

	for (uint32_t i = 0; i < bytes / 8; i++)
		words[i] = (uint64_t)content << 32 | i;
}

static bool content_is(const uint8_t *p, uint32_t bytes, uint32_t content)
{
	const uint64_t *words = (const uint64_t *)(const void *)p;
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < bytes / 8; i++)
		wrong |= words[i] ^ ((uint64_t)content << 32 | i);
	return !wrong;
}

static int start_append(struct rig *rig, struct test_op *t, uint32_t block, uint32_t bytes,
			uint32_t content)
{
	int r;

	assert_false(t->busy);
	content_fill(t->buf, bytes, content);
	t->bytes = bytes;
	t->content = content;
	t->done = 0;
	r = nvme_log_append(rig->log, &t->op, block, 0, t->buf, bytes);
	t->busy = r == 0;
	assert_int_equal(t->done, 0);
	return r;
}

static int start_read(struct rig *rig, struct test_op *t, uint32_t block)
{
	int r;

	assert_false(t->busy);
	memset(t->buf, 0, RECORD_BYTES_MAX);
	t->done = 0;
	r = nvme_log_read(rig->log, &t->op, block, 0, t->buf);
	t->busy = r == 0;
	assert_int_equal(t->done, 0);
	return r;
}

/* Start, wait, and what came of it. */
static int append(struct rig *rig, uint32_t block, uint32_t bytes, uint32_t content)
{
	int r = start_append(rig, &rig->ops[0], block, bytes, content);

	if (r < 0)
		return r;
	drain(rig);
	assert_int_equal(rig->ops[0].done, 1);
	if (rig->ops[0].res == 0)
		rig->model[block].held = true;
	return rig->ops[0].res;
}

static int read_back(struct rig *rig, uint32_t block)
{
	int r = start_read(rig, &rig->ops[1], block);

	if (r < 0)
		return r;
	drain(rig);
	assert_int_equal(rig->ops[1].done, 1);
	return rig->ops[1].res;
}

static void holds_what_was_written(void **state)
{
	struct rig rig;
	struct stat st;

	(void)state;
	setup(&rig);
	assert_true(nvme_log_in_service(rig.log));
	assert_true(nvme_log_epoch(rig.log) != 0);
	assert_int_equal(nvme_log_align_bytes(rig.log) % ALIGN, 0);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_size, rig.options.bytes);
	assert_true((uint64_t)st.st_blocks * 512 >= rig.options.bytes);	/* all of it, now */
	assert_int_equal(st.st_mode & 07777, 0600);

	assert_int_equal(read_back(&rig, 7), -ENOENT);
	assert_int_equal(nvme_log_record_bytes(rig.log, 7), 0);
	assert_int_equal(append(&rig, 7, 20480, 1), 0);
	assert_true(nvme_log_holds(rig.log, 7));
	assert_int_equal(nvme_log_record_bytes(rig.log, 7), 20480);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_LIVE_BYTES), 20480);
	assert_int_equal(append(&rig, 7, 20480, 1), -EEXIST);
	assert_int_equal(read_back(&rig, 7), 0);
	assert_true(content_is(rig.ops[1].buf, 20480, 1));
	nvme_log_forget(rig.log, 7);
	nvme_log_forget(rig.log, 7);
	assert_false(nvme_log_holds(rig.log, 7));
	assert_int_equal(read_back(&rig, 7), -ENOENT);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_LIVE_BYTES), 0);
	assert_int_equal(append(&rig, 7, 4096, 2), 0);
	assert_int_equal(read_back(&rig, 7), 0);
	assert_true(content_is(rig.ops[1].buf, 4096, 2));
	assert_int_equal(nvme_log_append(rig.log, &rig.ops[0].op, 8, 0, rig.memory,
					 nvme_log_record_bytes_max(rig.log) + ALIGN), -EFBIG);
	teardown(&rig);
}

/* ---- random use ---- */

static void finish(struct rig *rig, struct test_op *t, uint32_t life)
{
	struct model *m = &rig->model[t->op.block];
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
		assert_true(content_is(t->buf, t->bytes, t->content));
	} else {
		rig->failed++;
	}
}

static void random_step(struct rig *rig, struct test_op *t, struct rng *rng, uint32_t *content)
{
	uint32_t block = rng_below(rng, BLOCKS), what = rng_below(rng, 100);
	struct model *m = &rig->model[block];
	int r;

	if (what < 10) {
		/* Half the time one that something is in flight for, or was. */
		const struct test_op *other = &rig->ops[rng_below(rng, OPS)];

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
		uint32_t bytes = ALIGN * (1 + rng_below(rng, RECORD_BYTES_MAX / ALIGN));

		r = start_append(rig, t, block, bytes, *content);
		if (m->held || m->writing)
			assert_true(r == -EEXIST || r == -EIO);
		else
			assert_true(r == 0 || r == -EAGAIN || r == -EIO);
		if (r < 0)
			return;
		*m = (struct model){ .content = (*content)++, .bytes = bytes, .life = m->life + 1,
				     .writing = true };
		t->op.user = (void *)(uintptr_t)m->life;
		return;
	}
	r = start_read(rig, t, block);
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

static void random_use(const char *spec, uint64_t seed, bool expect_failures)
{
	uint32_t content = 1;
	struct rng rng;
	struct rig rig;

	setup_retry(&rig, MS / 2);		/* out of service often, but not for long */
	fault(&rig, spec);
	rng_init(&rng, seed);
	for (uint32_t step = 0; step < RANDOM_STEPS; step++) {
		struct test_op *t = &rig.ops[rng_below(&rng, OPS)];

		if (!t->busy)
			random_step(&rig, t, &rng, &content);
		if (rng_one_in(&rng, 4)) {
			turn(&rig, rng_one_in(&rng, 4) ? 1 * MS : 0);
			nvme_log_tick(rig.log, clock_now_ns());
		}
		for (unsigned i = 0; i < OPS; i++) {
			if (!rig.ops[i].done)
				continue;
			rig.ops[i].done = 0;
			finish(&rig, &rig.ops[i], (uint32_t)(uintptr_t)rig.ops[i].op.user);
		}
		assert_true(nvme_log_inflight(rig.log) <= DEPTH + 1);
	}
	fault(&rig, NULL);
	drain(&rig);
	for (unsigned i = 0; i < OPS; i++)
		if (rig.ops[i].done)
			finish(&rig, &rig.ops[i], (uint32_t)(uintptr_t)rig.ops[i].op.user);
	while (!nvme_log_in_service(rig.log)) {
		turn(&rig, MS);
		nvme_log_tick(rig.log, clock_now_ns());
	}
	/* Everything that it says it holds is there, and nothing else. */
	for (uint32_t block = 0; block < BLOCKS; block++) {
		const struct model *m = &rig.model[block];

		assert_int_equal(nvme_log_holds(rig.log, block), m->held);
		assert_int_equal(read_back(&rig, block), m->held ? 0 : -ENOENT);
		if (m->held)
			assert_true(content_is(rig.ops[1].buf, m->bytes, m->content));
	}
	print_message("%-38s %u appended, %u evicted, %u segments reclaimed, %u failed, %u cancelled\n",
		      spec ? spec : "no faults", content - 1, rig.evicted,
		      (unsigned)stats_get(rig.stats, STAT_NVME_RECLAIMED_SEGMENTS), rig.failed,
		      rig.cancelled);
	assert_true(rig.evicted > 0 && rig.cancelled > 0 && content > RANDOM_STEPS / 50);
	assert_int_equal(rig.failed > 0, expect_failures);
	teardown(&rig);
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
	struct rig rig;

	(void)state;
	setup(&rig);
	/* 8 blocks to a segment, 7 to the first one: blocks 1..63 fill the file. */
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(append(&rig, block, RECORD_BYTES_MAX, block), 0);
	assert_int_equal(rig.evicted, 0);
	rig.evict_forgets = 3;				/* lies in the segment that is reclaimed */
	assert_int_equal(append(&rig, 100, RECORD_BYTES_MAX, 100), 0);
	assert_int_equal(rig.evicted, 6);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(nvme_log_holds(rig.log, block), block > 7);
	assert_int_equal(read_back(&rig, 100), 0);
	assert_true(content_is(rig.ops[1].buf, RECORD_BYTES_MAX, 100));
	teardown(&rig);
}

/* A segment of which nothing lives is used again before one that would cost live blocks. */
static void empty_segments_cost_nothing(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(append(&rig, block, RECORD_BYTES_MAX, block), 0);
	for (uint32_t block = 24; block < 32; block++)	/* the fourth */
		nvme_log_forget(rig.log, block);
	for (uint32_t block = 200; block < 208; block++)
		assert_int_equal(append(&rig, block, RECORD_BYTES_MAX, block), 0);
	assert_int_equal(rig.evicted, 0);
	assert_int_equal(append(&rig, 208, RECORD_BYTES_MAX, 208), 0);
	assert_int_equal(rig.evicted, 7);
	teardown(&rig);
}

/* What is being read is not reclaimed under the reader. */
static void segments_in_use_are_left_alone(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(append(&rig, block, RECORD_BYTES_MAX, block), 0);
	fault(&rig, "read:stall_ms=300:every=1");
	assert_int_equal(start_read(&rig, &rig.ops[5], 1), 0);		/* in the oldest segment */
	nvme_log_forget(rig.log, 1);
	for (uint32_t block = 100; block < 108; block++) {
		assert_int_equal(start_append(&rig, &rig.ops[6], block, RECORD_BYTES_MAX, block), 0);
		while (rig.ops[6].busy)
			turn(&rig, MS);
		rig.model[block].held = true;
	}
	assert_true(nvme_log_holds(rig.log, 2));
	assert_false(nvme_log_holds(rig.log, 8));			/* the next oldest went */
	assert_int_equal(rig.evicted, 8);
	for (uint32_t block = 2; block < 8; block++)			/* not even when it is empty */
		nvme_log_forget(rig.log, block);
	for (uint32_t block = 108; block < 116; block++) {
		assert_int_equal(start_append(&rig, &rig.ops[6], block, RECORD_BYTES_MAX, block), 0);
		while (rig.ops[6].busy)
			turn(&rig, MS);
	}
	assert_true(rig.ops[5].busy);
	assert_int_equal(rig.evicted, 16);
	drain(&rig);
	assert_int_equal(rig.ops[5].res, 0);
	assert_true(content_is(rig.ops[5].buf, RECORD_BYTES_MAX, 1));
	teardown(&rig);
}

/* A forgotten block may be written again while its first write is still under way. */
static void a_block_is_written_twice_at_once(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig);
	fault(&rig, "write:stall_ms=60:every=2");	/* the second of the two is the later one */
	assert_int_equal(append(&rig, 9, 4096, 1), 0);
	assert_int_equal(start_append(&rig, &rig.ops[2], 5, 8192, 2), 0);	/* stalls */
	assert_int_equal(start_append(&rig, &rig.ops[3], 5, 8192, 3), -EEXIST);
	nvme_log_forget(rig.log, 5);
	assert_int_equal(start_append(&rig, &rig.ops[3], 5, 4096, 3), 0);
	while (rig.ops[3].busy)
		turn(&rig, MS);
	assert_int_equal(rig.ops[3].res, 0);
	assert_true(rig.ops[2].busy && nvme_log_holds(rig.log, 5));
	drain(&rig);
	assert_int_equal(rig.ops[2].res, -ECANCELED);
	assert_int_equal(nvme_log_record_bytes(rig.log, 5), 4096);
	assert_int_equal(read_back(&rig, 5), 0);
	assert_true(content_is(rig.ops[1].buf, 4096, 3));
	teardown(&rig);
}

static void the_queue_is_bounded(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig);
	fault(&rig, "write:stall_ms=50:every=1");
	for (unsigned i = 0; i < DEPTH + 1; i++)
		assert_int_equal(start_append(&rig, &rig.ops[i], i, 4096, i), i < DEPTH ? 0 : -EAGAIN);
	assert_int_equal(nvme_log_inflight(rig.log), DEPTH);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_INFLIGHT), DEPTH);
	drain(&rig);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_INFLIGHT), 0);
	teardown(&rig);
}

/* Every segment with I/O in flight: nothing can be had, and nothing is lost. */
static void nothing_to_reclaim_is_not_an_error(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig);
	for (uint32_t block = 1; block < 64; block++)
		assert_int_equal(append(&rig, block, RECORD_BYTES_MAX, block), 0);
	fault(&rig, "read:stall_ms=50:every=1");
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(start_read(&rig, &rig.ops[i], i ? 8 * i : 1), 0);
	assert_int_equal(start_append(&rig, &rig.ops[10], 100, RECORD_BYTES_MAX, 1), -EAGAIN);
	assert_int_equal(rig.evicted, 0);
	drain(&rig);
	assert_int_equal(start_append(&rig, &rig.ops[10], 100, RECORD_BYTES_MAX, 1), 0);
	drain(&rig);
	assert_int_equal(rig.ops[10].res, 0);
	teardown(&rig);
}

/* ---- health ---- */

static void tick_until(struct rig *rig, bool in_service)
{
	const uint64_t until_ns = clock_now_ns() + 20000 * MS;

	while ((bool)nvme_log_in_service(rig->log) != in_service && clock_now_ns() < until_ns) {
		turn(rig, MS);
		nvme_log_tick(rig->log, clock_now_ns());
	}
	assert_int_equal(nvme_log_in_service(rig->log), in_service);
}

static void errors_in_a_row_take_it_out(const char *spec, int error)
{
	uint64_t out_ns;
	struct rig rig;

	setup(&rig);
	assert_int_equal(append(&rig, 1, 4096, 1), 0);
	/* With successes in between it stays. */
	for (unsigned i = 0; i < 10; i++) {
		fault(&rig, spec);
		assert_int_equal(append(&rig, 100 + i, 4096, i), error);
		assert_false(nvme_log_holds(rig.log, 100 + i));
		fault(&rig, NULL);
		assert_int_equal(append(&rig, 200 + i, 4096, i), 0);
	}
	assert_true(nvme_log_in_service(rig.log));
	assert_int_equal(stats_get(rig.stats, STAT_NVME_ERRORS), 10);
	fault(&rig, spec);
	for (unsigned i = 0; i < NVME_LOG_ERRORS_MAX; i++) {
		assert_true(nvme_log_in_service(rig.log));
		assert_int_equal(append(&rig, 300 + i, 4096, i), error);
	}
	out_ns = clock_now_ns();
	assert_false(nvme_log_in_service(rig.log));
	assert_int_equal(nvme_log_error(rig.log), error);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_HEALTH), 2);
	assert_int_equal(append(&rig, 310, 4096, 1), -EIO);
	assert_int_equal(read_back(&rig, 1), -EIO);
	assert_true(nvme_log_holds(rig.log, 1));
	/* The probe fails too, as long as the disk does. */
	while (clock_now_ns() < out_ns + 5 * RETRY_NS) {
		nvme_log_tick(rig.log, clock_now_ns());
		turn(&rig, MS);
		assert_false(nvme_log_in_service(rig.log));
	}
	assert_true(stats_get(rig.stats, STAT_NVME_ERRORS) >= 10 + NVME_LOG_ERRORS_MAX + 2);
	fault(&rig, NULL);
	tick_until(&rig, true);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_HEALTH), 1);
	assert_int_equal(read_back(&rig, 1), 0);
	assert_true(content_is(rig.ops[1].buf, 4096, 1));
	assert_int_equal(append(&rig, 310, 4096, 1), 0);
	drain(&rig);
	teardown(&rig);
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
	struct rig rig;

	(void)state;
	setup(&rig);
	fault(&rig, "write:eio:every=1");
	for (unsigned i = 0; i < NVME_LOG_ERRORS_MAX; i++)
		assert_int_equal(append(&rig, i, 4096, i), -EIO);
	fault(&rig, "read:flip:every=1");
	until_ns = clock_now_ns() + 5 * RETRY_NS;
	while (clock_now_ns() < until_ns) {
		nvme_log_tick(rig.log, clock_now_ns());
		turn(&rig, MS);
		assert_false(nvme_log_in_service(rig.log));
	}
	fault(&rig, NULL);
	tick_until(&rig, true);
	teardown(&rig);
}

static void no_probe_before_its_time(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig);
	fault(&rig, "write:eio:every=1");
	for (unsigned i = 0; i < NVME_LOG_ERRORS_MAX; i++)
		assert_int_equal(append(&rig, i, 4096, i), -EIO);
	fault(&rig, NULL);
	nvme_log_tick(rig.log, 0);
	assert_int_equal(nvme_log_inflight(rig.log), 0);
	nvme_log_tick(rig.log, clock_now_ns() + RETRY_NS);
	assert_int_equal(nvme_log_inflight(rig.log), 1);
	nvme_log_tick(rig.log, clock_now_ns() + RETRY_NS);	/* one at a time */
	assert_int_equal(nvme_log_inflight(rig.log), 1);
	drain(&rig);
	assert_true(nvme_log_in_service(rig.log));
	teardown(&rig);
}

static void a_stall_takes_it_out_at_the_deadline(const char *spec, uint64_t hang_ns)
{
	uint64_t start_ns;
	struct rig rig;

	make_dir(&rig);
	rig.options.deadline_ns = 50 * MS;
	make_ring(&rig);
	if (open_log(&rig) < 0)
		fail_msg("%s", rig.err);
	assert_int_equal(append(&rig, 1, 4096, 1), 0);
	fault(&rig, spec);
	start_ns = clock_now_ns();
	assert_int_equal(start_append(&rig, &rig.ops[2], 2, 4096, 2), 0);
	while (nvme_log_in_service(rig.log) && clock_now_ns() < start_ns + 10000 * MS) {
		turn(&rig, 1000 * MS);			/* the deadline ends the sleep */
		nvme_log_tick(rig.log, clock_now_ns());
	}
	assert_in_range(clock_now_ns() - start_ns, 50 * MS, 250 * SLOW * MS);
	assert_int_equal(rig.ops[2].busy, hang_ns != 0);
	assert_int_equal(start_append(&rig, &rig.ops[3], 3, 4096, 3), -EIO);
	assert_int_equal(stats_get(rig.stats, STAT_NVME_HEALTH), 2);
	assert_int_equal(nvme_log_error(rig.log), -ETIMEDOUT);
	fault(&rig, NULL);
	while (rig.ops[2].busy) {
		nvme_log_tick(rig.log, clock_now_ns());
		turn(&rig, MS);
		assert_false(nvme_log_in_service(rig.log));
		/* No probe while one is missing. */
		assert_true(nvme_log_inflight(rig.log) <= 1);
	}
	assert_int_equal(rig.ops[2].res, -ETIMEDOUT);
	assert_true(clock_now_ns() - start_ns >= hang_ns);
	assert_false(nvme_log_holds(rig.log, 2));
	tick_until(&rig, true);
	assert_int_equal(read_back(&rig, 1), 0);
	assert_int_equal(append(&rig, 2, 4096, 4), 0);
	teardown(&rig);
}

static void a_stall_takes_it_out(void **state)
{
	(void)state;
	a_stall_takes_it_out_at_the_deadline("write:stall_ms=5000:every=1", 0);
}

static void a_hang_takes_it_out_before_it_ends(void **state)
{
	(void)state;
	a_stall_takes_it_out_at_the_deadline("write:hang_ms=400:every=1", 400 * MS);
}

/* ---- files ---- */

static void write_file(const char *path, const void *data, size_t bytes)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, bytes), bytes);
	(void)close(fd);
}

static void poke(const char *path, off_t off, uint8_t xor)
{
	int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, off), 1);
	byte ^= xor;
	assert_int_equal(pwrite(fd, &byte, 1, off), 1);
	(void)close(fd);
}

static void refused(struct rig *rig, int error, const char *word)
{
	struct nvme_log *before = rig->log;
	int r = open_log(rig);

	if (r != error || !strstr(rig->err, word) || strchr(rig->err, '\n'))
		fail_msg("%d (not %d): \"%s\" (no \"%s\")", r, error, rig->err, word);
	assert_ptr_equal(rig->log, before);
}

static void every_opening_has_its_epoch(void **state)
{
	uint64_t epoch;
	struct stat st;
	struct rig rig;

	(void)state;
	setup(&rig);
	epoch = nvme_log_epoch(rig.log);
	assert_int_equal(append(&rig, 1, 4096, 1), 0);
	close_log(&rig);
	make_ring(&rig);
	assert_int_equal(open_log(&rig), 0);
	assert_int_equal(nvme_log_epoch(rig.log), epoch + 1);
	assert_false(nvme_log_holds(rig.log, 1));		/* forgotten, in this version */
	close_log(&rig);

	/* Another geometry; then a damaged superblock: made anew, and its epoch is none that was. */
	rig.options.bytes = 2 * MIB;
	make_ring(&rig);
	assert_int_equal(open_log(&rig), 0);
	assert_int_equal(nvme_log_epoch(rig.log), epoch + 2);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_size, 2 * MIB);
	close_log(&rig);
	poke(rig.path, 33, 1);
	make_ring(&rig);
	assert_int_equal(open_log(&rig), 0);
	assert_true(nvme_log_epoch(rig.log) > epoch + 1000 || nvme_log_epoch(rig.log) < epoch);
	teardown(&rig);
}

static void another_opener_is_refused(void **state)
{
	struct rig rig, other;

	(void)state;
	setup(&rig);
	make_dir(&other);
	make_ring(&other);
	other.options.path = rig.path;
	refused(&other, -EBUSY, "in use by another process");
	assert_int_equal(append(&rig, 1, 4096, 1), 0);
	rig.log = nvme_log_close(rig.log);
	assert_int_equal(open_log(&other), 0);	/* free, although a ring still has the file registered */
	teardown(&other);
	teardown(&rig);
}

static void foreign_files_are_left_alone(void **state)
{
	static const char text[] = "somebody's thesis";
	static const uint8_t zeros[65536];
	struct rig rig;
	struct stat st;
	char back[64];
	int fd;

	(void)state;
	make_dir(&rig);
	make_ring(&rig);
	write_file(rig.path, text, sizeof(text));
	refused(&rig, -EEXIST, "holds something else");
	fd = open(rig.path, O_RDONLY);
	assert_int_equal(read(fd, back, sizeof(back)), sizeof(text));
	assert_memory_equal(back, text, sizeof(text));
	(void)close(fd);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0644);

	/* A disk image may well begin with zeros. */
	write_file(rig.path, zeros, sizeof(zeros));
	refused(&rig, -EEXIST, "holds something else");
	/* One block of them is what a power cut while it was made leaves. */
	write_file(rig.path, zeros, 4096);
	assert_int_equal(open_log(&rig), 0);
	close_log(&rig);

	/* Of a later version. */
	poke(rig.path, 8, 2);
	make_ring(&rig);
	refused(&rig, -EEXIST, "newer version");
	(void)unlink(rig.path);

	assert_int_equal(mkdir(rig.path, 0700), 0);
	refused(&rig, -EINVAL, "neither a regular file nor a block device");
	(void)rmdir(rig.path);
	rig.options.path = "/nonexistent/folder/log";
	refused(&rig, -ENOENT, "/nonexistent/folder/log: cannot open");
	rig.options.path = rig.path;
	teardown(&rig);
}

static void bad_sizes_are_refused(void **state)
{
	static const uint64_t bad[][2] = {		/* file, segment */
		{ 0, MIB }, { MIB, MIB }, { 3 * MIB + 1, MIB }, { 4 * MIB, 3 * MIB }, { MIB, 65536 },
		{ 8192 * MIB, 2048 * MIB }, { 4 * MIB, 0 },
	};
	struct rig rig;

	(void)state;
	make_dir(&rig);
	make_ring(&rig);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		rig.options.bytes = bad[i][0];
		rig.options.segment_bytes = bad[i][1];
		refused(&rig, -EINVAL, "sizes");
	}
	assert_int_equal(access(rig.path, F_OK), -1);
	teardown(&rig);
}

/* A block device made of a file: its fd, which takes the device away when it is closed; or -errno. */
static int loop_device(const char *backing, char *ret_path, size_t path_bytes)
{
	struct loop_config config = { .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC), n, fd, r;

	if (ctl < 0)
		return -errno;
	n = ioctl(ctl, LOOP_CTL_GET_FREE);
	(void)close(ctl);
	if (n < 0)
		return -ENODEV;
	(void)snprintf(ret_path, path_bytes, "/dev/loop%d", n);
	fd = open(ret_path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	config.fd = (uint32_t)open(backing, O_RDWR | O_CLOEXEC);
	r = ioctl(fd, LOOP_CONFIGURE, &config) < 0 ? -errno : fd;
	(void)close((int)config.fd);
	if (r < 0)
		(void)close(fd);
	return r;
}

static void a_block_device_will_do(void **state)
{
	char backing[128], device[32];
	struct rig rig;
	uint64_t epoch;
	int fd, loop;

	(void)state;
	make_dir(&rig);
	make_ring(&rig);
	(void)snprintf(backing, sizeof(backing), "%s/device", rig.dir);
	fd = open(backing, O_CREAT | O_RDWR, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	loop = loop_device(backing, device, sizeof(device));
	(void)unlink(backing);
	if (loop < 0) {
		print_message("no loop device to be had: %s\n", strerror(-loop));
		(void)close(fd);
		teardown(&rig);
		skip();
	}
	rig.options.path = device;
	rig.options.bytes = 16 * MIB;
	refused(&rig, -ENOSPC, "the device has 8388608 bytes, 16777216 are configured");
	rig.options.bytes = 8 * MIB;
	/* A filesystem whose first block is zero is still a filesystem. */
	assert_int_equal(pwrite(loop, "_BHRfS_M", 8, 65600), 8);
	assert_int_equal(fsync(loop), 0);
	refused(&rig, -EEXIST, "the device holds something else");
	assert_int_equal(pwrite(loop, "\0\0\0\0\0\0\0\0", 8, 65600), 8);
	assert_int_equal(fsync(loop), 0);

	if (open_log(&rig) < 0)
		fail_msg("%s", rig.err);
	epoch = nvme_log_epoch(rig.log);
	for (uint32_t block = 0; block < 200; block++) {
		assert_int_equal(append(&rig, block, RECORD_BYTES_MAX, block), 0);
		assert_int_equal(read_back(&rig, block), 0);
		assert_true(content_is(rig.ops[1].buf, RECORD_BYTES_MAX, block));
	}
	assert_true(rig.evicted > 0);
	close_log(&rig);
	make_ring(&rig);
	if (open_log(&rig) < 0)			/* at once: the old ring lets go of it a little later */
		fail_msg("%s", rig.err);
	assert_int_equal(nvme_log_epoch(rig.log), epoch + 1);
	teardown(&rig);
	(void)close(loop);
	(void)close(fd);
}

/* In a child with a mount of its own: a filesystem that is too small. */
static int no_room(struct rig *rig)
{
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", rig->dir, "tmpfs", 0, "size=2m") < 0)
		return 77;
	rig->options.allow_buffered = 1;
	if (open_log(rig) != -ENOSPC || !strstr(rig->err, "cannot take 4194304 bytes of space"))
		return 1;
	return access(rig->path, F_OK) == 0 ? 2 : 0;		/* and nothing is left behind */
}

static void a_full_disk_is_found_out_at_the_start(void **state)
{
	struct rig rig;
	int status;
	pid_t pid;

	(void)state;
	make_dir(&rig);
	make_ring(&rig);
	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(no_room(&rig));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	teardown(&rig);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		print_message("no right to mount a small filesystem\n");
		skip();
	}
	assert_int_equal(status, 0);
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
		cmocka_unit_test(every_opening_has_its_epoch),
		cmocka_unit_test(another_opener_is_refused),
		cmocka_unit_test(foreign_files_are_left_alone),
		cmocka_unit_test(bad_sizes_are_refused),
		cmocka_unit_test(a_block_device_will_do),
		cmocka_unit_test(a_full_disk_is_found_out_at_the_start),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
