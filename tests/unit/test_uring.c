/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_uring.c - the lane's ring on a real file, a FIFO that never answers, and eventfds; and each
 * injected fault, seen from outside to be what it says.
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
#include <pthread.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/uring.h"
#include "daemon/util/clock.h"
#include "tests/lib/rng.h"

#define ENTRIES 32u
#define SLOT_BYTES 65536u
#define FILE_BYTES (ENTRIES * SLOT_BYTES)
#define MS CLOCK_NS_PER_MS

#ifdef SKVCD_SAN
#define SLOW 10u
#else
#define SLOW 1u
#endif

/* A ring with a file of FILE_BYTES and one registered buffer of the same size. */
struct rig {
	struct uring *u;
	uint8_t *buf;
	int fd;
	char path[64];
};

struct test_op {
	struct uring_op op;
	int32_t res;
	unsigned done;
	uint64_t done_ns;
};

static void op_done(struct uring_op *op, int32_t res)
{
	struct test_op *t = (struct test_op *)op;

	t->res = res;
	t->done++;
	t->done_ns = clock_now_ns();
}

static struct uring *ring(const char *fault)
{
	struct uring *u;
	int r = uring_new(ENTRIES, fault, &u);

	if (r == -EPERM || r == -ENOSYS || r == -ENOMEM) {
		print_message("%s\n", uring_hint(r));
		skip();
	}
	assert_int_equal(r, 0);
	return u;
}

static void setup(struct rig *rig, const char *fault)
{
	const char *dir = getenv("TMPDIR");
	struct iovec iov;

	rig->u = ring(fault);
	(void)snprintf(rig->path, sizeof(rig->path), "%s/skvcd-uring-XXXXXX", dir ? dir : ".");
	rig->fd = mkstemp(rig->path);
	assert_true(rig->fd >= 0);
	(void)fcntl(rig->fd, F_SETFL, O_DIRECT); /* where the filesystem has it */
	assert_int_equal(ftruncate(rig->fd, FILE_BYTES), 0);
	assert_int_equal(uring_register_file(rig->u, rig->fd), 0);
	rig->buf = aligned_alloc(4096, FILE_BYTES);
	assert_non_null(rig->buf);
	memset(rig->buf, 0, FILE_BYTES);
	iov = (struct iovec){ rig->buf, FILE_BYTES };
	assert_int_equal(uring_register_buffers(rig->u, &iov, 1), 0);
}

static void teardown(struct rig *rig)
{
	assert_int_equal(uring_inflight(rig->u), 0);
	uring_free(rig->u);
	(void)close(rig->fd);
	(void)unlink(rig->path);
	free(rig->buf);
}

/* Until nothing is in flight; not for ever. */
static void drain(struct uring *u)
{
	const uint64_t until_ns = clock_now_ns() + 20000 * MS;

	while (uring_inflight(u) && clock_now_ns() < until_ns) {
		assert_int_equal(uring_sleep(u, 100 * MS), 0);
		(void)uring_reap(u, 16);
	}
	assert_int_equal(uring_inflight(u), 0);
}

static void fill(uint8_t *p, size_t bytes, uint64_t seed)
{
	struct rng rng;

	rng_init(&rng, seed);
	rng_fill(&rng, p, bytes);
}

/* Write ENTRIES slots, read them back elsewhere, compare; all of them are in flight at once. */
static void round_trip(struct rig *rig, unsigned buf_index, uint32_t bytes)
{
	struct test_op ops[ENTRIES] = { 0 };
	uint8_t *wanted = malloc(FILE_BYTES);

	fill(wanted, FILE_BYTES, bytes);
	memcpy(rig->buf, wanted, FILE_BYTES);
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < ENTRIES; i++) {
			uint64_t off = (uint64_t)i * SLOT_BYTES;
			int r;

			ops[i] = (struct test_op){ .op.done = op_done };
			r = pass ? uring_read(rig->u, &ops[i].op, buf_index, rig->buf + off, bytes,
					      off, URING_NEVER)
				 : uring_write(rig->u, &ops[i].op, buf_index, rig->buf + off, bytes,
					       off, URING_NEVER);
			assert_int_equal(r, 0);
		}
		assert_int_equal(uring_inflight(rig->u), ENTRIES);
		drain(rig->u);
		for (unsigned i = 0; i < ENTRIES; i++) {
			assert_int_equal(ops[i].done, 1);
			assert_int_equal(ops[i].res, (int32_t)bytes);
		}
		if (!pass)
			memset(rig->buf, 0xee, FILE_BYTES);
	}
	for (unsigned i = 0; i < ENTRIES; i++)
		assert_memory_equal(rig->buf + i * SLOT_BYTES, wanted + i * SLOT_BYTES, bytes);
	free(wanted);
}

static void reads_what_was_written(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig, NULL);
	round_trip(&rig, 0, SLOT_BYTES);
	round_trip(&rig, 0, 4096);
	round_trip(&rig, URING_BUF_NONE, SLOT_BYTES);
	teardown(&rig);
}

static void short_transfers_go_on(void **state)
{
	struct rig rig;

	(void)state;
	setup(&rig, "write:short:every=2,read:short:every=1");
	round_trip(&rig, 0, SLOT_BYTES);
	round_trip(&rig, 0, 3 * 4096);
	round_trip(&rig, 0, 4096); /* one sector: nothing to cut */
	teardown(&rig);
}

/* One range of the file, into pieces of the slots from the last to the first. */
static void read_in_pieces(const char *fault)
{
	static uint8_t wanted[ENTRIES * 8192];
	struct test_op op = { .op.done = op_done };
	struct iovec iov[ENTRIES];
	struct rig rig;

	setup(&rig, fault);
	fill(wanted, sizeof(wanted), 7);
	memcpy(rig.buf, wanted, sizeof(wanted));
	assert_int_equal(uring_write(rig.u, &op.op, 0, rig.buf, sizeof(wanted), 4096, URING_NEVER),
			 0);
	drain(rig.u);
	memset(rig.buf, 0xee, FILE_BYTES);
	for (unsigned i = 0; i < ENTRIES; i++)
		iov[i] = (struct iovec){ rig.buf + (ENTRIES - 1 - i) * SLOT_BYTES, 8192 };
	assert_int_equal(uring_readv(rig.u, &op.op, iov, ENTRIES, 4096, URING_NEVER), 0);
	drain(rig.u);
	assert_int_equal(op.res, sizeof(wanted));
	for (unsigned i = 0; i < ENTRIES; i++) {
		const uint8_t *piece = rig.buf + (ENTRIES - 1 - i) * SLOT_BYTES;

		assert_memory_equal(piece, wanted + i * 8192, 8192);
		assert_int_equal(piece[8192], 0xee);
	}
	teardown(&rig);
}

static void one_read_fills_many_pieces(void **state)
{
	(void)state;
	read_in_pieces(NULL);
	read_in_pieces("read:short:every=1");
}

static void the_end_of_the_file_is_an_error(void **state)
{
	struct test_op op = { .op.done = op_done };
	struct rig rig;

	(void)state;
	setup(&rig, NULL);
	assert_int_equal(
		uring_read(rig.u, &op.op, 0, rig.buf, 8192, FILE_BYTES - 4096, URING_NEVER), 0);
	drain(rig.u);
	assert_int_equal(op.res, -EIO);
	teardown(&rig);
}

static void a_full_queue_says_so(void **state)
{
	struct test_op ops[ENTRIES + 1] = { 0 };
	struct rig rig;

	(void)state;
	setup(&rig, NULL);
	for (unsigned i = 0; i < ENTRIES + 1; i++) {
		ops[i].op.done = op_done;
		assert_int_equal(uring_write(rig.u, &ops[i].op, 0, rig.buf, 4096, 0, URING_NEVER),
				 i < ENTRIES ? 0 : -EAGAIN);
		assert_int_equal(ops[i].done, 0); /* never inside */
	}
	drain(rig.u);
	assert_int_equal(ops[0].done, 1);
	assert_int_equal(ops[ENTRIES].done, 0);
	assert_int_equal(uring_write(rig.u, &ops[ENTRIES].op, 0, rig.buf, 4096, 0, URING_NEVER), 0);
	drain(rig.u);
	assert_int_equal(ops[ENTRIES].done, 1);
	teardown(&rig);
}

static struct rig *again_rig;

static void done_queues_again(struct uring_op *op, int32_t res)
{
	struct test_op *t = (struct test_op *)op;

	t->res = res;
	if (++t->done < 50)
		assert_int_equal(
			uring_write(again_rig->u, op, 0, again_rig->buf, 4096, 0, URING_NEVER), 0);
}

static void done_may_queue(void **state)
{
	struct test_op ops[4] = { 0 };
	struct rig rig;

	(void)state;
	setup(&rig, "write:eio:every=7");
	again_rig = &rig;
	for (unsigned i = 0; i < 4; i++) {
		ops[i].op.done = done_queues_again;
		assert_int_equal(uring_write(rig.u, &ops[i].op, 0, rig.buf, 4096, 0, URING_NEVER),
				 0);
	}
	drain(rig.u);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(ops[i].done, 50);
	teardown(&rig);
}

/* ---- faults ---- */

#define THREE_RULES "read:eio:every=1,read:eio:every=1,read:eio:every=1"

static void bad_specs_are_refused(void **state)
{
	static const char *const bad[] = {
		"x",
		"write",
		"write:eio",
		"write:eio:",
		"write:eio:every",
		"write:eio:every=",
		"write:eio:every=0",
		"write:eio:every=-1",
		"write:eio:every=3x",
		"write:eio:every= 3",
		"erase:eio:every=1",
		"write:melt:every=1",
		"write:eio=5:every=1",
		"write:flip:every=1",
		"write:stall_ms:every=1",
		"write:stall_ms=:every=1",
		"write:stall_ms=0:every=1",
		"write:eio:every=1,",
		"write:eio:every=1:at=1x",
		"write:eio:every=1:file=1:",
		",",
		"write:eio:every=1,,read:eio:every=1",
		"write:eio:every=1;",
		"write:eio:every=99999999999",
		"write:stall_ms=99999999999:every=1",
		THREE_RULES "," THREE_RULES "," THREE_RULES,
		"write:eio:every=0000000000000000000000000000000000000000000000000000000000000000001",
	};
	struct uring *u = ring(NULL), *other = NULL;

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_int_equal(uring_set_fault(u, bad[i]), -EINVAL);
		assert_int_equal(uring_new(ENTRIES, bad[i], &other), -EINVAL);
		assert_null(other);
	}
	assert_int_equal(uring_set_fault(u, "write:stall_ms=200:every=4,read:late:every=7"), 0);
	assert_int_equal(uring_set_fault(u, ""), 0);
	assert_int_equal(uring_set_fault(u, NULL), 0);
	uring_free(u);
	assert_null(uring_free(NULL));
}

static void every_nth_fails(void **state)
{
	struct test_op op = { .op.done = op_done };
	struct rig rig;

	(void)state;
	setup(&rig, "write:eio:every=3,write:enospc:every=4,read:enospc:every=2");
	for (unsigned i = 1; i <= 24; i++) {
		int32_t expected = i % 3 == 0 ? -EIO : i % 4 == 0 ? -ENOSPC : 4096;

		fill(rig.buf, 4096, i);
		assert_int_equal(uring_write(rig.u, &op.op, 0, rig.buf, 4096, 0, URING_NEVER), 0);
		assert_int_equal(op.done, 2 * (i - 1));
		drain(rig.u);
		assert_int_equal(op.res, expected);
		assert_int_equal(uring_read(rig.u, &op.op, 0, rig.buf, 4096, 0, URING_NEVER), 0);
		drain(rig.u);
		assert_int_equal(op.res, i % 2 == 0 ? -ENOSPC : 4096);
	}
	assert_int_equal(uring_set_fault(rig.u, NULL), 0);
	assert_int_equal(uring_write(rig.u, &op.op, 0, rig.buf, 4096, 0, URING_NEVER), 0);
	drain(rig.u);
	assert_int_equal(op.res, 4096);
	teardown(&rig);
}

static void flip_changes_one_byte(void **state)
{
	struct test_op op = { .op.done = op_done };
	struct rig rig;
	unsigned flipped = 0;

	(void)state;
	setup(&rig, "read:flip:every=2");
	fill(rig.buf, SLOT_BYTES, 1);
	assert_int_equal(uring_write(rig.u, &op.op, 0, rig.buf, SLOT_BYTES, 0, URING_NEVER), 0);
	drain(rig.u);
	for (unsigned i = 1; i <= 10; i++) {
		unsigned differ = 0;

		assert_int_equal(uring_read(rig.u, &op.op, 0, rig.buf + SLOT_BYTES, SLOT_BYTES, 0,
					    URING_NEVER),
				 0);
		drain(rig.u);
		assert_int_equal(op.res, SLOT_BYTES);
		for (unsigned b = 0; b < SLOT_BYTES; b++)
			differ += rig.buf[b] != rig.buf[SLOT_BYTES + b];
		assert_int_equal(differ, i % 2 == 0);
		flipped += differ;
	}
	assert_int_equal(flipped, 5);
	teardown(&rig);
}

/* ---- deadlines ---- */

static void a_stall_ends_at_the_deadline(void **state)
{
	struct test_op late = { .op.done = op_done }, slow = { .op.done = op_done };
	uint64_t start_ns;
	struct rig rig;

	(void)state;
	setup(&rig, "read:stall_ms=400:every=1");
	start_ns = clock_now_ns();
	memset(rig.buf, 0x11, SLOT_BYTES);
	assert_int_equal(uring_read(rig.u, &slow.op, 0, rig.buf + SLOT_BYTES, 4096, 0,
				    start_ns + 10000 * MS),
			 0);
	assert_int_equal(uring_read(rig.u, &late.op, 0, rig.buf, 4096, 0, start_ns + 50 * MS), 0);
	assert_int_equal(uring_overdue(rig.u), 0);
	drain(rig.u);
	assert_int_equal(late.res, -ETIMEDOUT);
	assert_in_range(late.done_ns - start_ns, 50 * MS, 350 * SLOW * MS);
	assert_int_equal(slow.res, 4096); /* in time: only late */
	assert_true(slow.done_ns - start_ns >= 400 * MS);
	assert_int_equal(rig.buf[0], 0x11);
	teardown(&rig);
}

static void a_hang_is_known_at_once_and_reported_when_it_is_safe(void **state)
{
	struct test_op op = { .op.done = op_done };
	uint64_t start_ns;
	struct rig rig;

	(void)state;
	setup(&rig, "write:hang_ms=300:every=1");
	start_ns = clock_now_ns();
	assert_int_equal(uring_write(rig.u, &op.op, 0, rig.buf, 4096, 0, start_ns + 30 * MS), 0);
	while (!uring_overdue(rig.u) && clock_now_ns() < start_ns + 5000 * MS) {
		assert_int_equal(uring_sleep(rig.u, URING_NEVER), 0); /* the deadline ends it */
		(void)uring_reap(rig.u, 16);
	}
	assert_int_equal(uring_overdue(rig.u), 1);
	assert_int_equal(uring_inflight(rig.u), 1);
	assert_int_equal(op.done, 0);
	assert_in_range(clock_now_ns() - start_ns, 30 * MS, 290 * MS * SLOW);
	drain(rig.u);
	assert_int_equal(uring_overdue(rig.u), 0);
	assert_int_equal(op.res, -ETIMEDOUT);
	assert_true(op.done_ns - start_ns >= 300 * MS);
	teardown(&rig);
}

/* A FIFO without a writer is a device that never answers; the kernel can cancel this one. */
static void the_kernel_cancels_and_leaves_the_memory(void **state)
{
	struct test_op op = { .op.done = op_done };
	static const uint8_t page[4096] = { 1 };
	uint8_t dst[4096];
	struct uring *u = ring(NULL);
	int fds[2];
	uint64_t start_ns = clock_now_ns();

	(void)state;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(uring_register_file(u, fds[0]), 0);
	memset(dst, 0x22, sizeof(dst));
	assert_int_equal(
		uring_read(u, &op.op, URING_BUF_NONE, dst, sizeof(dst), 0, start_ns + 50 * MS), 0);
	drain(u);
	assert_int_equal(op.done, 1);
	assert_int_equal(op.res, -ETIMEDOUT);
	assert_in_range(op.done_ns - start_ns, 50 * MS, 5000 * MS);

	/* What arrives afterwards is nobody's. */
	assert_int_equal(write(fds[1], "late", 4), 4);
	assert_int_equal(uring_sleep(u, 20 * MS), 0);
	assert_int_equal(uring_reap(u, 16), 0);
	assert_int_equal(op.done, 1);
	for (unsigned i = 0; i < sizeof(dst); i++)
		assert_int_equal(dst[i], 0x22);

	/* The op can be used again at once, and is not hit by what was meant for its former life. */
	assert_int_equal(read(fds[0], dst, sizeof(dst)), 4);
	for (unsigned i = 0; i < 20; i++) {
		bool answered = i % 2;

		start_ns = clock_now_ns();
		assert_int_equal(uring_read(u, &op.op, URING_BUF_NONE, dst, sizeof(dst), 0,
					    start_ns + (answered ? 5000 : 1) * MS),
				 0);
		assert_int_equal(uring_submit(u), 0);
		if (answered)
			assert_int_equal(write(fds[1], page, sizeof(page)), sizeof(page));
		drain(u);
		assert_int_equal(op.res, answered ? (int32_t)sizeof(page) : -ETIMEDOUT);
	}
	uring_free(u);
	(void)close(fds[0]);
	(void)close(fds[1]);
}

/* Transfers of less than a sector, again and again, are a device that does not work. */
static void no_progress_is_an_error(void **state)
{
	static const uint8_t crumb[100] = { 1 };
	struct test_op op = { .op.done = op_done };
	uint8_t dst[4096];
	struct uring *u = ring(NULL);
	unsigned crumbs = 0;
	int fds[2];

	(void)state;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(uring_register_file(u, fds[0]), 0);
	assert_int_equal(uring_read(u, &op.op, URING_BUF_NONE, dst, sizeof(dst), 0, URING_NEVER),
			 0);
	while (!op.done && crumbs < 1000) {
		assert_int_equal(write(fds[1], crumb, sizeof(crumb)), sizeof(crumb));
		crumbs++;
		assert_int_equal(uring_sleep(u, 1000 * MS), 0);
		(void)uring_reap(u, 16);
	}
	assert_int_equal(op.res, -EIO);
	assert_in_range(crumbs, 2, 100);
	uring_free(u);
	(void)close(fds[0]);
	(void)close(fds[1]);
}

/* ---- eventfds and sleeping ---- */

static void watches_until_told_not_to(void **state)
{
	struct test_op op = { .op.done = op_done }, other = { .op.done = op_done };
	struct uring *u = ring(NULL);
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
	    quiet = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	uint64_t one = 1, start_ns;

	(void)state;
	assert_int_equal(uring_watch(u, &op.op, fd), 0);
	assert_int_equal(uring_watch(u, &other.op, quiet), 0);
	assert_int_equal(uring_submit(u), 0);
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
		start_ns = clock_now_ns();
		while (op.done == i && clock_now_ns() < start_ns + 5000 * MS) {
			assert_int_equal(uring_sleep(u, 1000 * MS), 0);
			(void)uring_reap(u, 16);
		}
		assert_int_equal(op.done, i + 1);
		assert_int_equal(op.res, 1);
	}
	assert_int_equal(read(fd, &one, sizeof(one)), sizeof(one));
	assert_int_equal(one, 100); /* it was not read */
	one = 1;
	assert_int_equal(other.done, 0);
	uring_unwatch(u, &op.op);
	start_ns = clock_now_ns();
	while (op.res != -ECANCELED && clock_now_ns() < start_ns + 5000 * MS) {
		assert_int_equal(uring_sleep(u, 100 * MS), 0);
		(void)uring_reap(u, 16);
	}
	assert_int_equal(op.res, -ECANCELED);
	assert_int_equal(op.done, 101);
	assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
	assert_int_equal(uring_sleep(u, 20 * MS), 0);
	assert_int_equal(uring_reap(u, 16), 0);
	assert_int_equal(op.done, 101);
	uring_free(u);
	(void)close(fd);
	(void)close(quiet);
}

static void sleeps_as_long_as_told(void **state)
{
	struct uring *u = ring(NULL);
	uint64_t start_ns;

	(void)state;
	for (unsigned ms = 1; ms <= 25; ms += 8) {
		start_ns = clock_now_ns();
		assert_int_equal(uring_sleep(u, ms * MS), 0);
		assert_in_range(clock_now_ns() - start_ns, ms * MS, (ms + 500 * SLOW) * MS);
	}
	start_ns = clock_now_ns();
	assert_int_equal(uring_sleep(u, 0), 0);
	assert_true(clock_now_ns() - start_ns < 500 * SLOW * MS);
	uring_free(u);
}

#define WAKES 200u

struct waker {
	int fd;
	_Atomic uint64_t written_ns;
	_Atomic unsigned go;
};

static void *wake(void *arg)
{
	struct waker *w = arg;
	const struct timespec pause = { .tv_nsec = 300000 };
	uint64_t one = 1;

	for (unsigned i = 1; i <= WAKES; i++) {
		while (w->go < i)
			(void)nanosleep(&pause, NULL);
		(void)nanosleep(&pause, NULL); /* let it fall asleep */
		w->written_ns = clock_now_ns();
		if (write(w->fd, &one, sizeof(one)) != sizeof(one))
			abort();
	}
	return NULL;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

struct sleep_test {
	struct uring *u;
	const char *problem;
};

/* Made by one thread, used by another, woken by a third. */
static const char *sleep_and_wake(struct uring *u)
{
	struct waker w = { .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC) };
	struct test_op op = { .op.done = op_done };
	uint64_t ns[WAKES], p50_ns, p99_ns;
	pthread_t thread;

	if (uring_watch(u, &op.op, w.fd) < 0 || pthread_create(&thread, NULL, wake, &w))
		return "cannot start";
	for (unsigned i = 0; i < WAKES; i++) {
		w.go = i + 1;
		while (op.done == i) {
			uint64_t start_ns = clock_now_ns();

			if (uring_sleep(u, 10000 * MS) < 0 || clock_now_ns() - start_ns > 9000 * MS)
				return "slept on";
			(void)uring_reap(u, 16);
		}
		ns[i] = op.done_ns - w.written_ns;
	}
	(void)pthread_join(thread, NULL);
	(void)close(w.fd);
	qsort(ns, WAKES, sizeof(*ns), compare_u64);
	p50_ns = ns[WAKES / 2];
	p99_ns = ns[WAKES * 99 / 100];
	print_message("from eventfd write to done(): p50 %.1f us, p99 %.1f us\n",
		      (double)p50_ns / 1e3, (double)p99_ns / 1e3);
	return p50_ns > 100 * SLOW * MS ? "woke late" : NULL;
}

static void *sleeper(void *arg)
{
	struct sleep_test *t = arg;

	t->problem = sleep_and_wake(t->u);
	return NULL;
}

static void another_thread_sleeps_and_is_woken(void **state)
{
	struct sleep_test t = { .u = ring(NULL) };
	pthread_t thread;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, sleeper, &t), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	if (t.problem)
		fail_msg("%s", t.problem);
	uring_free(t.u);
}

/* ---- rings that are polled ---- */

static void wait_for_all(struct rig *rig)
{
	const uint64_t until_ns = clock_now_ns() + 20 * CLOCK_NS_PER_S;

	while (uring_inflight(rig->u) && clock_now_ns() < until_ns) {
		assert_int_equal(uring_sleep(rig->u, CLOCK_NS_PER_S), 0);
		(void)uring_reap(rig->u, 64);
	}
	assert_int_equal(uring_inflight(rig->u), 0);
}

static void ended(struct uring_op *op, int32_t res)
{
	*(int32_t *)op->user = res;
}

/* Written, flushed, read back into other memory; and an eventfd wakes while there is nothing to poll for. */
static void write_and_read_back(struct rig *rig)
{
	struct uring_op op[8] = { 0 };
	uint8_t *other = aligned_alloc(4096, 8 * 8192);
	int32_t res[8];

	for (unsigned i = 0; i < 8; i++) {
		memset(rig->buf + i * 8192, (int)i + 1, 8192);
		op[i].done = ended;
		op[i].user = &res[i];
		assert_int_equal(uring_write(rig->u, &op[i], 0, rig->buf + i * 8192, 8192, i * 8192,
					     URING_NEVER),
				 0);
	}
	wait_for_all(rig);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(res[i], 8192);
	assert_int_equal(uring_sync(rig->u, &op[0]), 0);
	wait_for_all(rig);
	assert_int_equal(res[0], 0);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(uring_read(rig->u, &op[i], URING_BUF_NONE, other + i * 8192, 8192,
					    i * 8192, URING_NEVER),
				 0);
	wait_for_all(rig);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(res[i], 8192);
	assert_memory_equal(other, rig->buf, 8 * 8192);
	free(other);
}

static void polled(const char *fault, bool sqpoll, bool iopoll)
{
	struct rig rig;
	struct uring *plain;
	int r = 0;

	setup(&rig, fault);
	plain = rig.u;
	if (iopoll) {
		/* A hole would be read without the device. */
		assert_int_equal(pwrite(rig.fd, rig.buf, 4096, 0), 4096);
		r = uring_try_iopoll(rig.fd, rig.buf, 4096);
		if (r == 0)
			r = uring_new(ENTRIES, fault, &rig.u);
		if (r == 0)
			r = uring_add_iopoll(rig.u, sqpoll);
	} else {
		r = uring_new_sqpoll(ENTRIES, fault, &rig.u);
	}
	if (r < 0) {
		print_message("not here: %s\n", strerror(-r));
	} else {
		struct iovec iov = { rig.buf, FILE_BYTES };

		assert_int_equal(uring_register_file(rig.u, rig.fd), 0);
		assert_int_equal(uring_register_buffers(rig.u, &iov, 1), 0);
		for (unsigned i = 0; i < 20; i++)
			write_and_read_back(&rig);
		uring_free(plain);
	}
	teardown(&rig);
	if (r < 0)
		skip();
}

static void a_thread_submits(void **state)
{
	(void)state;
	polled(NULL, true, false);
	polled("write:short:every=2,read:short:every=3", true, false);
}

static void completions_are_polled_for(void **state)
{
	(void)state;
	polled(NULL, false, true);
	polled("write:short:every=2,read:short:every=3", false, true);
	polled("write:stall_ms=2:every=5", false, true);
}

static void both(void **state)
{
	(void)state;
	polled(NULL, true, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_thread_submits),
		cmocka_unit_test(completions_are_polled_for),
		cmocka_unit_test(both),
		cmocka_unit_test(reads_what_was_written),
		cmocka_unit_test(short_transfers_go_on),
		cmocka_unit_test(one_read_fills_many_pieces),
		cmocka_unit_test(the_end_of_the_file_is_an_error),
		cmocka_unit_test(a_full_queue_says_so),
		cmocka_unit_test(done_may_queue),
		cmocka_unit_test(bad_specs_are_refused),
		cmocka_unit_test(every_nth_fails),
		cmocka_unit_test(flip_changes_one_byte),
		cmocka_unit_test(a_stall_ends_at_the_deadline),
		cmocka_unit_test(a_hang_is_known_at_once_and_reported_when_it_is_safe),
		cmocka_unit_test(the_kernel_cancels_and_leaves_the_memory),
		cmocka_unit_test(no_progress_is_an_error),
		cmocka_unit_test(watches_until_told_not_to),
		cmocka_unit_test(sleeps_as_long_as_told),
		cmocka_unit_test(another_thread_sleeps_and_is_woken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
