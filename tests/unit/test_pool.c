/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_pool.c - the pool against a reference that remembers every byte, its waste under sizes as they
 * come, and what it says when it is full, misused or misconfigured.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/pool.h"
#include "tests/lib/rng.h"

#define MIB (1ull << 20)

#ifdef SKVCD_SAN
#define RANDOM_STEPS 20000u
#else
#define RANDOM_STEPS 60000u
#endif

static struct pool *make(uint64_t bytes, uint64_t slab_bytes, uint32_t granule_bytes)
{
	const struct pool_options o = {
		.bytes = bytes,
		.slab_bytes = slab_bytes,
		.granule_bytes = granule_bytes,
		.numa_node = -1,
	};
	struct pool *pool;

	assert_int_equal(pool_new(&o, &pool), 0);
	return pool;
}

/* ---- sizes ---- */

/* As compressed blocks come: of one model, of three, all over the place (both ways of being so). */
enum sizes { ONE_MODEL, THREE_MODELS, UNIFORM, LOG_UNIFORM, SIZES_COUNT };

static const char *const sizes_name[] = { "one model", "three models", "uniform", "log-uniform" };

static double unit(struct rng *rng)
{
	return (double)(rng_next(rng) >> 11) / 9007199254740992.0;
}

/* Near enough to a normal distribution with deviation 1. */
static double bell(struct rng *rng)
{
	double x = 0;

	for (int i = 0; i < 12; i++)
		x += unit(rng);
	return x - 6;
}

static uint64_t draw(struct rng *rng, enum sizes sizes)
{
	static const double models[] = { 960e3, 610e3, 48e3 };
	double bytes = 0;

	switch (sizes) {
	case ONE_MODEL:
		bytes = 900e3 * (1 + 0.04 * bell(rng));
		break;
	case THREE_MODELS:
		bytes = models[rng_below(rng, 3)] * (1 + 0.05 * bell(rng));
		break;
	case UNIFORM:
		bytes = 32e3 + 968e3 * unit(rng);
		break;
	default:
		bytes = 32e3 * exp(log(32) * unit(rng));
	}
	return (uint64_t)bytes;
}

static void slots_are_little_larger_than_asked(void **state)
{
	static const uint32_t granules[] = { 64, 512, 4096 };

	(void)state;
	for (unsigned g = 0; g < 3; g++) {
		struct pool *pool = make(64 * MIB, 16 * MIB, granules[g]);
		uint64_t largest = pool_largest_bytes(pool), before = 0;
		uint32_t slot;

		assert_int_equal(largest, 16 * MIB);
		for (uint64_t bytes = 1; bytes <= largest; bytes += 1 + bytes / 97) {
			uint64_t slot_bytes, bound;

			assert_int_equal(pool_alloc(pool, bytes, 1, &slot), 0);
			slot_bytes = pool_slot_bytes(pool, slot);
			bound = bytes <= largest / 16  ? bytes / 16
				: bytes <= largest / 2 ? bytes / 2
						       : bytes;
			assert_true(slot_bytes >= bytes && slot_bytes >= before);
			assert_true(slot_bytes <= bytes + bound + granules[g]);
			assert_int_equal(slot_bytes % granules[g], 0);
			assert_int_equal((uintptr_t)pool_ptr(pool, slot) % granules[g], 0);
			before = slot_bytes;
			pool_release(pool, slot);
		}
		assert_int_equal(pool_alloc(pool, largest, 1, &slot), 0);
		pool_release(pool, slot);
		assert_int_equal(pool_alloc(pool, largest + 1, 1, &slot), -EFBIG);
		pool_free(pool);
	}
}

/* Fill with sizes from this distribution until one does not fit; tell how full that is. */
static void fill(struct pool *pool, enum sizes sizes, struct rng *rng, double until,
		 uint32_t *slots, uint32_t *ret_count)
{
	struct pool_usage u;
	uint32_t count = 0;

	do {
		if (pool_alloc(pool, draw(rng, sizes), count, &slots[count]) < 0)
			break;
		count++;
		pool_usage(pool, &u);
	} while ((double)u.used_bytes < until * (double)u.bytes);
	*ret_count = count;
}

static void waste_is_small(void **state)
{
	const uint64_t seed = rng_seed_env(0x706f6f6c);
	uint32_t *slots = calloc(100000, sizeof(*slots));

	(void)state;
	for (enum sizes sizes = 0; sizes < SIZES_COUNT; sizes++) {
		struct pool *pool = make(1024 * MIB, 0, 4096);
		struct pool_usage half, full;
		struct rng rng;
		uint32_t count, more;
		double waste, fill_share;

		rng_init(&rng, seed);
		fill(pool, sizes, &rng, 0.5, slots, &count);
		pool_usage(pool, &half);
		fill(pool, sizes, &rng, 1, slots + count, &more);
		pool_usage(pool, &full);
		waste = 1 - (double)half.used_bytes / (double)half.slot_bytes;
		fill_share = (double)full.used_bytes / (double)full.bytes;
		print_message(
			"%-12s waste %.1f %% half full; %.1f %% full, waste %.1f %%, when the first "
			"does not fit\n",
			sizes_name[sizes], 100 * waste, 100 * fill_share,
			100 - 100 * (double)full.used_bytes / (double)full.slot_bytes);
		assert_true(waste <= 0.05);
		assert_true(fill_share >= (sizes <= THREE_MODELS ? 0.8 : 0.65));
		for (uint32_t i = 0; i < count + more; i++)
			pool_release(pool, slots[i]);
		pool_free(pool);
	}
	free(slots);
}

/* ---- against a reference ---- */

struct held {
	uint64_t bytes;
	uint32_t slot, owner;
	uint64_t seed;
};

/* The whole slot, so that two that overlap in a single word are found out. */
static void stamp(const struct pool *pool, const struct held *h)
{
	uint64_t *words = pool_ptr(pool, h->slot), count = pool_slot_bytes(pool, h->slot) / 8;

	for (uint64_t i = 0; i < count; i++)
		words[i] = h->seed + i;
}

static void check_stamp(const struct pool *pool, const struct held *h)
{
	const uint64_t *words = pool_ptr(pool, h->slot), count = pool_slot_bytes(pool, h->slot) / 8;
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < count; i++)
		wrong |= words[i] ^ (h->seed + i);
	assert_int_equal(wrong, 0);
	assert_int_equal(pool_owner(pool, h->slot), h->owner);
}

static void check_usage(const struct pool *pool, const struct held *held, uint32_t count)
{
	uint64_t used = 0, slot_bytes = 0;
	struct pool_usage u;

	for (uint32_t i = 0; i < count; i++) {
		used += held[i].bytes;
		slot_bytes += pool_slot_bytes(pool, held[i].slot);
	}
	pool_usage(pool, &u);
	assert_int_equal(u.slots, count);
	assert_int_equal(u.used_bytes, used);
	assert_int_equal(u.slot_bytes, slot_bytes);
	assert_true(u.slab_bytes >= u.slot_bytes && u.slab_bytes <= u.bytes);
}

/* Whatever was done to it before: when all is returned, all of it can be had in the largest pieces. */
static void check_whole(struct pool *pool)
{
	uint32_t slots[64], count = 0;
	struct pool_usage u;

	pool_usage(pool, &u);
	assert_int_equal(u.slots + u.used_bytes + u.slot_bytes + u.slab_bytes, 0);
	while (pool_alloc(pool, pool_largest_bytes(pool), 0, &slots[count]) == 0)
		count++;
	assert_int_equal(count, u.bytes / pool_largest_bytes(pool));
	while (count > 0)
		pool_release(pool, slots[--count]);
}

static uint64_t random_bytes(struct rng *rng, uint64_t slab_bytes)
{
	/* Small ones often, large ones sometimes, the extremes now and then. */
	uint64_t bytes = 1 + (slab_bytes >> rng_below(rng, 14));

	if (rng_one_in(rng, 50))
		return rng_one_in(rng, 2) ? 1 : slab_bytes;
	bytes = bytes / 2 + rng_below(rng, (uint32_t)(bytes / 2 + 1));
	return bytes ? bytes : 1;
}

static void run_random(uint64_t bytes, uint64_t slab_bytes, uint32_t granule_bytes, uint64_t seed)
{
	struct pool *pool = make(bytes, slab_bytes, granule_bytes);
	struct held *held = calloc(65536, sizeof(*held));
	uint32_t count = 0, full = 0;
	struct rng rng;

	rng_init(&rng, seed);
	for (uint32_t step = 0; step < RANDOM_STEPS; step++) {
		/* Grows for a while, shrinks for a while. */
		int grow = rng_below(&rng, 100) < (step / 2000 % 2 ? 40 : 60);

		if (grow && count < 65536) {
			struct held h = { .bytes = random_bytes(&rng, slab_bytes),
					  .owner = step,
					  .seed = rng_next(&rng) };
			int r = pool_alloc(pool, h.bytes, h.owner, &h.slot);

			assert_true(r == 0 || r == -ENOSPC);
			full += r < 0;
			if (r < 0)
				continue;
			stamp(pool, &h);
			held[count++] = h;
		} else if (count) {
			uint32_t i = rng_below(&rng, count);

			check_stamp(pool, &held[i]);
			pool_release(pool, held[i].slot);
			held[i] = held[--count];
		}
		if (step % 1000 == 0)
			check_usage(pool, held, count);
	}
	print_message("granule %u: %u steps, %u slots at the end, %u times full\n", granule_bytes,
		      RANDOM_STEPS, count, full);
	assert_true(full > 0);
	while (count > 0) {
		check_stamp(pool, &held[--count]);
		pool_release(pool, held[count].slot);
	}
	check_whole(pool);
	pool_free(pool);
	free(held);
}

static void random_use_matches_a_reference(void **state)
{
	const uint64_t seed = rng_seed_env(0x736c6f74);

	(void)state;
	run_random(8 * MIB, 1 * MIB, 64, seed);
	run_random(16 * MIB, 2 * MIB, 512, seed + 1);
	run_random(16 * MIB, 1 * MIB, 4096, seed + 2);
	run_random(4 * MIB, 64 << 10, 4096, seed + 3); /* 16 granules to a slab: less than a unit */
	run_random(256 << 10, 4096, 4096, seed + 4);   /* one */
}

/* ---- full ---- */

static void one_size_uses_all_of_it(void **state)
{
	static const uint64_t sizes[] = { 4096, 8192, 12288, 100000, 1000000, 16 * MIB };
	uint32_t *slots = calloc(65536, sizeof(*slots));

	(void)state;
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		struct pool *pool = make(256 * MIB, 16 * MIB, 4096);
		struct pool_usage u;
		uint32_t count = 0, again;

		while (pool_alloc(pool, sizes[i], 0, &slots[count]) == 0)
			count++;
		pool_usage(pool, &u);
		assert_int_equal(u.slab_bytes, u.bytes);
		/* Nothing of the arena is lost but the ends of spans, less than one slot in 17 each. */
		assert_true(u.slot_bytes >= u.bytes - u.bytes / 16);
		assert_int_equal(pool_accepts(pool, 97, 92), 0);
		/* What one gives back the next one gets. */
		pool_release(pool, slots[count / 2]);
		assert_int_equal(pool_alloc(pool, sizes[i], 0, &again), 0);
		assert_int_equal(again, slots[count / 2]);
		while (count > 0)
			pool_release(pool, slots[--count]);
		check_whole(pool);
		pool_free(pool);
	}
	free(slots);
}

static void sparse_owners_make_room(void **state)
{
	const uint64_t seed = rng_seed_env(0x73706172);
	struct pool *pool = make(256 * MIB, 16 * MIB, 4096);
	uint32_t *slots = calloc(65536, sizeof(*slots)), owners[64], count = 0, slot, gone = 0;
	struct rng rng;

	(void)state;
	rng_init(&rng, seed);
	while (pool_alloc(pool, 20000 + rng_below(&rng, 100000), count, &slots[count]) == 0)
		count++;
	/* Every second one leaves: half of it is free, and nowhere in one piece. */
	for (uint32_t i = 0; i < count; i += 2) {
		pool_release(pool, slots[i]);
		slots[i] = POOL_NONE;
	}
	assert_int_equal(pool_alloc(pool, 8 * MIB, 0, &slot), -ENOSPC);
	while (pool_alloc(pool, 8 * MIB, 0, &slot) == -ENOSPC) {
		unsigned n = pool_sparse_owners(pool, 8 * MIB, owners, 64);

		assert_in_range(n, 1, 64);
		for (unsigned i = 0; i < n; i++) {
			assert_true(owners[i] < count && slots[owners[i]] != POOL_NONE);
			pool_release(pool, slots[owners[i]]);
			slots[owners[i]] = POOL_NONE;
			gone++;
		}
	}
	print_message("%u of %u left for 8 MiB\n", gone, count / 2);
	/* A slab's worth of those that were left, not more. */
	assert_true(gone <= count / 2 / 8);
	pool_release(pool, slot);
	for (uint32_t i = 0; i < count; i++)
		if (slots[i] != POOL_NONE)
			pool_release(pool, slots[i]);
	assert_int_equal(pool_sparse_owners(pool, 4096, owners, 64), 0);
	pool_free(pool);
	free(slots);
}

/* The one place in the slab with little in it is found, not just any. */
static void the_emptiest_place_is_chosen(void **state)
{
	struct pool *pool = make(16 * MIB, 16 * MIB, 4096);
	uint32_t slots[512], owners[64], count = 0, lonely = POOL_NONE;
	struct iovec iov;

	(void)state;
	assert_int_equal(pool_iovecs(pool, &iov, 1), 1);
	while (pool_alloc(pool, 64 << 10, count, &slots[count]) == 0)
		count++;
	assert_int_equal(count, 256);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t off =
			(uint64_t)((uint8_t *)pool_ptr(pool, slots[i]) - (uint8_t *)iov.iov_base);

		/* In the sixth and seventh MiB, one stays; elsewhere one of four. */
		if (off / (2 * MIB) == 3 && lonely == POOL_NONE)
			lonely = i;
		else if (off / (2 * MIB) == 3 || i % 4) {
			pool_release(pool, slots[i]);
			slots[i] = POOL_NONE;
		}
	}
	assert_int_equal(pool_sparse_owners(pool, 50 << 10, owners, 64), 1);
	assert_int_equal(owners[0], lonely);
	for (uint32_t i = 0; i < count; i++)
		if (slots[i] != POOL_NONE)
			pool_release(pool, slots[i]);
	pool_free(pool);
}

/* With nothing else left, a slot that is up to 1/8 too large is taken, but not a larger one. */
static void borrows_when_it_must(void **state)
{
	struct pool *pool = make(1 * MIB, 1 * MIB, 64);
	uint32_t slots[32], count = 0, slot;

	(void)state;
	while (count < 32 && pool_alloc(pool, 32768, count, &slots[count]) == 0)
		count++;
	assert_int_equal(count, 32);
	assert_int_equal(pool_alloc(pool, 30000, 0, &slot), -ENOSPC);
	pool_release(pool, slots[5]);
	assert_int_equal(pool_alloc(pool, 32768 * 3 / 4, 0, &slot), -ENOSPC);
	assert_int_equal(pool_alloc(pool, 30000, 0, &slot), 0);
	assert_int_equal(slot, slots[5]);
	while (count > 0)
		pool_release(pool, slots[--count]);
	pool_free(pool);
}

/* When no span of the right size is left, a smaller one that takes a slot at all is better than none. */
static void small_spans_serve_at_last(void **state)
{
	struct pool *pool = make(1 * MIB, 1 * MIB, 64);
	uint32_t slots[256], count = 0, slot;

	(void)state;
	while (count < 256 && pool_alloc(pool, 4096, count, &slots[count]) == 0)
		count++;
	assert_int_equal(count, 256);
	/* 32 slots, one span of 128 KiB. */
	for (uint32_t i = 64; i < 96; i++)
		pool_release(pool, slots[i]);
	assert_int_equal(pool_alloc(pool, 200 << 10, 0, &slot), -ENOSPC);
	assert_int_equal(pool_alloc(pool, 100 << 10, 0, &slot), 0);
	memset(pool_ptr(pool, slot), 1, 100 << 10);
	pool_release(pool, slot);
	for (uint32_t i = 0; i < 256; i++)
		if (i < 64 || i >= 96)
			pool_release(pool, slots[i]);
	check_whole(pool);
	pool_free(pool);
}

static void refuses_with_hysteresis(void **state)
{
	struct pool *pool = make(64 * MIB, 1 * MIB, 4096);
	uint32_t slots[64];

	(void)state;
	for (uint32_t i = 0; i < 64; i++) {
		assert_int_equal(pool_accepts(pool, 90, 75), i < 58); /* 58 / 64 = 90.6 % */
		assert_int_equal(pool_alloc(pool, 1 * MIB, i, &slots[i]), 0);
	}
	for (uint32_t i = 64; i-- > 0;) {
		pool_release(pool, slots[i]);
		assert_int_equal(pool_accepts(pool, 90, 75), i < 48); /* 48 / 64 = 75 % */
	}
	pool_free(pool);
}

/* ---- making ---- */

static void bad_options_are_refused(void **state)
{
	const struct pool_options good = {
		.bytes = 64 * MIB, .slab_bytes = 1 * MIB, .granule_bytes = 4096, .numa_node = -1
	};
	struct pool_options o;
	struct pool *pool = (void *)&o;

	(void)state;
#define REFUSED(field, value)                                   \
	do {                                                    \
		o = good;                                       \
		o.field = (value);                              \
		assert_int_equal(pool_new(&o, &pool), -EINVAL); \
	} while (0)
	REFUSED(bytes, 0);
	REFUSED(bytes, 1 * MIB - 1);
	REFUSED(slab_bytes, 3 * MIB);
	REFUSED(slab_bytes, 2048);
	REFUSED(slab_bytes, 2048 * MIB);
	REFUSED(granule_bytes, 0);
	REFUSED(granule_bytes, 32);
	REFUSED(granule_bytes, 4095);
	REFUSED(numa_node, -2);
	REFUSED(numa_node, 1000000);
	o = good;
	o.granule_bytes = 64;
	o.bytes = 64ull << 32; /* more slots than handles */
	assert_int_equal(pool_new(&o, &pool), -EINVAL);
	assert_ptr_equal(pool, (void *)&o); /* untouched by failures */
	assert_null(pool_free(NULL));

	o = good;
	o.bytes = 64 * MIB + 12345;
	assert_int_equal(pool_new(&o, &pool), 0);
	assert_int_equal(pool_largest_bytes(pool), 1 * MIB);
	check_whole(pool);
	pool_free(pool);
}

static void slabs_are_a_share_of_the_arena(void **state)
{
	static const uint64_t cases[][2] = {
		/* arena, slab; in MiB */
		{ 16, 1 }, { 127, 1 }, { 128, 2 }, { 1024, 16 }, { 4096, 64 }, { 65536, 64 },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct pool *pool = make(cases[i][0] * MIB, 0, 4096);

		assert_int_equal(pool_largest_bytes(pool), cases[i][1] * MIB);
		pool_free(pool);
	}
}

static size_t resident_pages(void *base, size_t bytes)
{
	unsigned char *map = malloc(bytes / 4096);
	size_t pages = 0;

	assert_int_equal(mincore(base, bytes, map), 0);
	for (size_t i = 0; i < bytes / 4096; i++)
		pages += map[i] & 1;
	free(map);
	return pages;
}

static void memory_is_touched_when_used(void **state)
{
	struct pool_options o = { .bytes = 64 * MIB, .granule_bytes = 4096, .numa_node = 0 };
	struct iovec iov;
	struct pool *pool;
	uint32_t slot;

	(void)state;
	for (int named = 0; named < 2; named++) {
		o.name = named ? "test-pool" : NULL;
		assert_int_equal(pool_new(&o, &pool), 0);
		assert_int_equal(pool_iovecs(pool, &iov, 1), 1);
		assert_int_equal(iov.iov_len, o.bytes);
		assert_int_equal(resident_pages(iov.iov_base, iov.iov_len), 0);
		assert_int_equal(pool_alloc(pool, 100000, 0, &slot), 0);
		memset(pool_ptr(pool, slot), 1, 100000);
		assert_in_range(resident_pages(iov.iov_base, iov.iov_len), 25, 2 * 512);
		pool_release(pool, slot);
		pool_free(pool);
	}
}

static void pieces_cover_the_arena(void **state)
{
	const uint64_t bytes = 2560 * MIB;
	struct pool *pool = make(bytes, 64 * MIB, 4096);
	struct iovec iov[4] = { 0 };
	uint32_t slots[40];

	(void)state;
	assert_int_equal(pool_iovecs(pool, iov, 0), 3);
	assert_int_equal(pool_iovecs(pool, iov, 2), 3);
	assert_null(iov[2].iov_base);
	assert_int_equal(pool_iovecs(pool, iov, 4), 3);
	assert_int_equal(iov[0].iov_len + iov[1].iov_len + iov[2].iov_len, bytes);
	for (uint32_t i = 0; i < 40; i++) {
		const struct iovec *piece;
		uint8_t *p;

		assert_int_equal(pool_alloc(pool, 64 * MIB, i, &slots[i]), 0);
		piece = &iov[pool_iovec_index(pool, slots[i])];
		p = pool_ptr(pool, slots[i]);
		assert_true(p >= (uint8_t *)piece->iov_base);
		assert_true(p + 64 * MIB <= (uint8_t *)piece->iov_base + piece->iov_len);
	}
	for (uint32_t i = 0; i < 40; i++)
		pool_release(pool, slots[i]);
	pool_free(pool);
}

/* ---- in a child process: what ends it, or changes its rights ---- */

static int in_child(int (*run)(void))
{
	int status;
	pid_t pid;

	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (!freopen("/dev/null", "w", stderr))
			_exit(2);
		_exit(run());
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int lock_works(void)
{
	const struct pool_options o = {
		.bytes = 2 * MIB, .granule_bytes = 64, .numa_node = -1, .lock = 1
	};
	struct pool *pool;
	struct iovec iov;

	if (pool_new(&o, &pool) < 0)
		return 77;
	(void)pool_iovecs(pool, &iov, 1);
	if (resident_pages(iov.iov_base, iov.iov_len) != iov.iov_len / 4096)
		return 1;
	pool_free(pool);
	return 0;
}

static int lock_beyond_the_limit_fails(void)
{
	const struct pool_options o = {
		.bytes = 2 * MIB, .granule_bytes = 64, .numa_node = -1, .lock = 1
	};
	const struct rlimit none = { 0, 0 };
	struct pool *pool = NULL;
	int r;

	if (geteuid() == 0 && seteuid(65534) < 0)
		return 77;
	if (setrlimit(RLIMIT_MEMLOCK, &none) < 0)
		return 77;
	r = pool_new(&o, &pool);
	if (pool || (r != -EPERM && r != -ENOMEM && r != -EAGAIN))
		return 1;
	return 0;
}

static void locking_works_or_says_why_not(void **state)
{
	int r;

	(void)state;
#ifdef SKVCD_SAN
	skip(); /* the sanitizers answer mlock() themselves */
#endif
	r = in_child(lock_beyond_the_limit_fails);
	assert_true(r == 0 || r == 77);
	r = in_child(lock_works);
	if (r == 77)
		print_message(
			"mlock of 2 MiB is not permitted here: that it populates was not seen\n");
	else
		assert_int_equal(r, 0);
}

static int releases_twice(void)
{
	struct pool *pool = make(4 * MIB, 1 * MIB, 64);
	uint32_t a, b;

	(void)pool_alloc(pool, 1000, 1, &a);
	(void)pool_alloc(pool, 1000, 1, &b);
	pool_release(pool, a);
	pool_release(pool, a);
	return 0;
}

static int releases_the_middle_of_a_slot(void)
{
	struct pool *pool = make(4 * MIB, 1 * MIB, 64);
	uint32_t a;

	(void)pool_alloc(pool, 1000, 1, &a);
	pool_release(pool, a + 1);
	return 0;
}

static int looks_at_none(void)
{
	struct pool *pool = make(4 * MIB, 1 * MIB, 64);

	return pool_ptr(pool, POOL_NONE) != NULL;
}

static int looks_where_nothing_was(void)
{
	struct pool *pool = make(4 * MIB, 1 * MIB, 64);

	return pool_ptr(pool, 12345) != NULL;
}

static int leaks(void)
{
	struct pool *pool = make(4 * MIB, 1 * MIB, 64);
	uint32_t a;

	(void)pool_alloc(pool, 1000, 1, &a);
	pool_free(pool);
	return 0;
}

static void misuse_is_a_bug(void **state)
{
	(void)state;
	assert_int_equal(in_child(releases_twice), -SIGABRT);
	assert_int_equal(in_child(releases_the_middle_of_a_slot), -SIGABRT);
	assert_int_equal(in_child(looks_at_none), -SIGABRT);
	assert_int_equal(in_child(looks_where_nothing_was), -SIGABRT);
	assert_int_equal(in_child(leaks), -SIGABRT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(slots_are_little_larger_than_asked),
		cmocka_unit_test(waste_is_small),
		cmocka_unit_test(random_use_matches_a_reference),
		cmocka_unit_test(one_size_uses_all_of_it),
		cmocka_unit_test(sparse_owners_make_room),
		cmocka_unit_test(the_emptiest_place_is_chosen),
		cmocka_unit_test(borrows_when_it_must),
		cmocka_unit_test(small_spans_serve_at_last),
		cmocka_unit_test(refuses_with_hysteresis),
		cmocka_unit_test(bad_options_are_refused),
		cmocka_unit_test(slabs_are_a_share_of_the_arena),
		cmocka_unit_test(memory_is_touched_when_used),
		cmocka_unit_test(pieces_cover_the_arena),
		cmocka_unit_test(locking_works_or_says_why_not),
		cmocka_unit_test(misuse_is_a_bug),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
