/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_pool_restore.c - a pool written down and made again: with the same slots, the same bytes and as much room, and
 * as sound as ever whatever was written down; and the memfd that it lies in, which has to be the one that it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/pool.h"
#include "ipc/segment.h"
#include "tests/lib/rng.h"

#define MIB (1ull << 20)
#define SLOTS_MAX 8192u
#define SPANS_MAX 65536u

struct slot {
	uint32_t slot, owner;
	uint64_t bytes;
};

struct fixture {
	struct rng rng;
	struct pool *pool;
	struct slot slot[SLOTS_MAX];
	unsigned count;
};

static struct pool_options options(int fd)
{
	return (struct pool_options){ .bytes = 32 * MIB,
				      .slab_bytes = 4 * MIB,
				      .granule_bytes = 512,
				      .numa_node = -1,
				      .name = "test-pool",
				      .fd = fd };
}

static struct pool *make(int fd)
{
	struct pool_options o = options(fd);
	struct pool *pool;

	assert_int_equal(pool_new(&o, &pool), 0);
	return pool;
}

static uint64_t size(struct rng *rng)
{
	switch (rng_below(rng, 4)) {
	case 0:
		return 1 + rng_below(rng, 4096);
	case 1:
		return 60000 + rng_below(rng, 20000);
	case 2:
		return 1 + rng_below(rng, 4 * MIB);
	default:
		return 300000 + rng_below(rng, 5000);
	}
}

static void fill_slot(const struct pool *pool, const struct slot *s)
{
	uint32_t *at = pool_ptr(pool, s->slot);

	at[0] = s->owner;
	if (s->bytes >= 8)
		memcpy((uint8_t *)at + s->bytes - 4, &s->owner, 4);
}

static void check_slot(const struct pool *pool, const struct slot *s)
{
	const uint32_t *at = pool_ptr(pool, s->slot);

	assert_int_equal(pool_owner(pool, s->slot), s->owner);
	assert_true(pool_slot_bytes(pool, s->slot) >= s->bytes);
	assert_int_equal(at[0], s->owner);
	if (s->bytes >= 8)
		assert_memory_equal((const uint8_t *)at + s->bytes - 4, &s->owner, 4);
}

static void step(struct fixture *f)
{
	struct slot s = { .bytes = size(&f->rng) + 4, .owner = (uint32_t)rng_next(&f->rng) };

	if (s.bytes <= pool_largest_bytes(f->pool) && rng_below(&f->rng, 100) < 55 &&
	    f->count < SLOTS_MAX && pool_alloc(f->pool, s.bytes, s.owner, &s.slot) == 0) {
		fill_slot(f->pool, &s);
		f->slot[f->count++] = s;
	} else if (f->count) {
		unsigned i = rng_below(&f->rng, f->count);

		pool_release(f->pool, f->slot[i].slot);
		f->slot[i] = f->slot[--f->count];
	}
}

static void release_all(struct fixture *f)
{
	while (f->count)
		pool_release(f->pool, f->slot[--f->count].slot);
}

/* Empty, all of it is one whole again: nothing was lost on the way. */
static void assert_whole(struct pool *pool)
{
	uint32_t slot[8], more;

	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(pool_alloc(pool, 4 * MIB, i, &slot[i]), 0);
	assert_int_equal(pool_alloc(pool, 1, 9, &more), -ENOSPC);
	for (unsigned i = 0; i < 8; i++)
		pool_release(pool, slot[i]);
}

static void again(struct fixture *f)
{
	static struct pool_saved_span span[SPANS_MAX];
	struct pool_usage before, after;
	unsigned spans = 0;
	struct pool *next;
	int fd = dup(pool_fd(f->pool));

	assert_true(fd >= 0);
	for (uint32_t cursor = 0; pool_save_span(f->pool, &cursor, &span[spans]); spans++)
		assert_true(spans < SPANS_MAX);
	next = make(fd + 1);
	for (unsigned i = 0; i < spans; i++)
		assert_int_equal(pool_restore_span(next, &span[i]), 0);
	for (unsigned i = 0; i < f->count; i++) {
		assert_int_equal(pool_restore_slot(next, f->slot[i].slot, f->slot[i].bytes,
						   f->slot[i].owner),
				 0);
		/* Nobody gets a slot twice. */
		assert_int_equal(pool_restore_slot(next, f->slot[i].slot, 1, 1), -EBADMSG);
	}
	pool_restore_end(next);
	pool_usage(f->pool, &before);
	pool_usage(next, &after);
	assert_memory_equal(&before, &after, sizeof(before));
	for (unsigned i = 0; i < f->count; i++)
		check_slot(next, &f->slot[i]);
	for (unsigned i = 0; i < f->count; i++)
		pool_release(f->pool, f->slot[i].slot);
	(void)pool_free(f->pool);
	f->pool = next;
}

static void it_comes_back_as_it_was(void **state)
{
	static struct fixture f;

	(void)state;
	rng_init(&f.rng, 17);
	f.pool = make(0);
	for (unsigned life = 0; life < 30; life++) {
		for (unsigned i = rng_below(&f.rng, 1500); i > 0; i--)
			step(&f);
		again(&f);
		for (unsigned i = 0; i < f.count; i++)
			check_slot(f.pool, &f.slot[i]);
	}
	release_all(&f);
	assert_whole(f.pool);
	again(&f); /* of nothing */
	assert_whole(f.pool);
	(void)pool_free(f.pool);
}

static void spans_without_slots_are_free(void **state)
{
	struct pool_saved_span span;
	struct pool *a = make(0), *b = make(0);
	uint32_t slot[100], cursor = 0;
	struct pool_usage u;

	(void)state;
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(pool_alloc(a, 1000 + 600 * i, i, &slot[i]), 0);
	while (pool_save_span(a, &cursor, &span))
		assert_int_equal(pool_restore_span(b, &span), 0);
	assert_int_equal(pool_restore_slot(b, slot[50], 1000, 7), 0);
	pool_restore_end(b);
	pool_usage(b, &u);
	assert_int_equal(u.slots, 1);
	assert_int_equal(u.used_bytes, 1000);
	pool_release(b, slot[50]);
	assert_whole(b);
	for (unsigned i = 0; i < 100; i++)
		pool_release(a, slot[i]);
	(void)pool_free(a);
	(void)pool_free(b);
}

static void what_cannot_be_is_refused(void **state)
{
	struct pool *pool = make(0);
	struct pool_saved_span good;
	uint32_t slot, cursor = 0;

	(void)state;
	assert_int_equal(pool_alloc(pool, 100000, 1, &slot), 0);
	assert_int_equal(pool_save_span(pool, &cursor, &good), 1);
	pool_release(pool, slot);
	(void)pool_free(pool);

	pool = make(0);
#define REFUSED(...)                                                                        \
	assert_int_equal(pool_restore_span(pool, &(struct pool_saved_span){ __VA_ARGS__ }), \
			 -EBADMSG)
	REFUSED(good.unit, 32, good.slot_granules);
	REFUSED(good.unit, UINT32_MAX, good.slot_granules);
	REFUSED(1u << 30, 0, 1);
	REFUSED(UINT32_MAX, 0, 1);
	REFUSED(1, 1, 1); /* not aligned */
	REFUSED(0, 0, 0);
	REFUSED(0, 0, 65); /* larger than the span */
	REFUSED(good.unit, good.order, good.slot_granules + 1);
	assert_int_equal(pool_restore_slot(pool, slot, 1, 1), -EBADMSG); /* in no span */
	assert_int_equal(pool_restore_span(pool, &good), 0);
	assert_int_equal(pool_restore_span(pool, &good), -EBADMSG);
	REFUSED(good.unit, 0, 1); /* inside of it */
	REFUSED(0, 7, 1u << 13);  /* around it */
	assert_int_equal(pool_restore_slot(pool, slot + 1, 1, 1), -EBADMSG);
	assert_int_equal(pool_restore_slot(pool, slot, 0, 1), -EBADMSG);
	assert_int_equal(pool_restore_slot(pool, slot, 1 * MIB, 1), -EBADMSG);
	assert_int_equal(pool_restore_slot(pool, slot, UINT64_MAX, 1), -EBADMSG);
	assert_int_equal(pool_restore_slot(pool, POOL_NONE, 1, 1), -EBADMSG);
	assert_int_equal(pool_restore_slot(pool, 1u << 31, 1, 1), -EBADMSG);
	assert_int_equal(pool_restore_slot(pool, slot, 100000, 1), 0);
	pool_restore_end(pool);
	pool_release(pool, slot);
	assert_whole(pool);
	(void)pool_free(pool);
}

/* Whatever is taken of garbage: a sound pool. */
static void garbage_makes_a_sound_pool(void **state)
{
	static struct fixture f;

	(void)state;
	rng_init(&f.rng, 99);
	for (unsigned round = 0; round < 200; round++) {
		f.pool = make(0);
		f.count = 0;
		for (unsigned i = 0; i < 300; i++) {
			struct pool_saved_span span = {
				.unit = rng_below(&f.rng, 1100) & ~rng_below(&f.rng, 64),
				.order = rng_below(&f.rng, 9),
				.slot_granules = 1 + rng_below(&f.rng, 1u << rng_below(&f.rng, 14)),
			};

			(void)pool_restore_span(f.pool, &span);
		}
		for (unsigned i = 0; i < 3000; i++) {
			struct slot s = { .slot = rng_below(&f.rng, 70000),
					  .owner = (uint32_t)rng_next(&f.rng),
					  .bytes = 4 + rng_below(&f.rng, 20000) };

			if (f.count == SLOTS_MAX ||
			    pool_restore_slot(f.pool, s.slot, s.bytes, s.owner) < 0)
				continue;
			f.slot[f.count++] = s;
		}
		pool_restore_end(f.pool);
		for (unsigned i = 0; i < f.count; i++)
			fill_slot(f.pool, &f.slot[i]);
		for (unsigned i = 0; i < 300; i++)
			step(&f);
		for (unsigned i = 0; i < f.count; i++)
			check_slot(f.pool, &f.slot[i]);
		release_all(&f);
		assert_whole(f.pool);
		(void)pool_free(f.pool);
	}
}

static void refuse_fd(int fd)
{
	struct pool_options o = options(fd + 1);
	struct pool *pool;

	assert_true(fd >= 0);
	assert_int_equal(pool_new(&o, &pool), -ESTALE);
	assert_int_equal(close(fd), 0); /* it was left alone */
}

static void the_memfd_is_looked_at(void **state)
{
	char path[64], file[] = "/tmp/skvcd-pool-XXXXXX";
	int fd, named;

	(void)state;
	assert_int_equal(segment_create("small", 31 * MIB, &fd), 0);
	refuse_fd(fd);
	assert_int_equal(segment_create("large", 33 * MIB, &fd), 0);
	refuse_fd(fd);
	fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(fd, 32 * MIB), 0);
	refuse_fd(fd);
	assert_int_equal(segment_create("read-only", 32 * MIB, &fd), 0);
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	refuse_fd(open(path, O_RDONLY | O_CLOEXEC));
	(void)close(fd);
	named = mkstemp(file);
	(void)unlink(file);
	assert_int_equal(ftruncate(named, 32 * MIB), 0);
	refuse_fd(named);
	refuse_fd(open("/dev/null", O_RDWR | O_CLOEXEC));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_comes_back_as_it_was),
		cmocka_unit_test(spans_without_slots_are_free),
		cmocka_unit_test(what_cannot_be_is_refused),
		cmocka_unit_test(garbage_makes_a_sound_pool),
		cmocka_unit_test(the_memfd_is_looked_at),
	};

	return cmocka_run_group_tests_name("pool-restore", tests, NULL, NULL);
}
