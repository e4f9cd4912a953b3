/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_index.c - the block table against a small reference: random inserts, parents, unlinks and reuse.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>

#include <cmocka.h>

#include "daemon/index.h"
#include "daemon/policy.h"

#define BLOCKS 256u
#define KEYS 512u

static struct skvc_abi_key make_key(uint32_t n)
{
	struct skvc_abi_key key = { .len = 16 + n % 17, .group = n % 3 };

	memcpy(key.bytes, &n, sizeof(n));
	return key;
}

static void finds_what_was_inserted(void **state)
{
	struct skvc_abi_key a = make_key(1), b = make_key(2);
	struct index *ix;
	uint32_t id, other;

	(void)state;
	assert_int_equal(index_new(BLOCKS, &ix), 0);
	assert_int_equal(index_find(ix, 0, &a), BLOCK_NONE);
	assert_int_equal(index_insert(ix, 0, &a, &id), 0);
	assert_int_equal(index_find(ix, 0, &a), id);
	assert_int_equal(index_find(ix, 1, &a), BLOCK_NONE); /* another namespace */
	assert_int_equal(index_find(ix, 0, &b), BLOCK_NONE);
	b = a;
	b.group++;
	assert_int_equal(index_find(ix, 0, &b), BLOCK_NONE); /* another group */
	b = a;
	b.len++; /* a longer key with a zero tail */
	assert_int_equal(index_find(ix, 0, &b), BLOCK_NONE);
	assert_int_equal(index_insert(ix, 0, &b, &other), 0);
	assert_int_not_equal(id, other);
	index_free(ix);
}

static void a_full_table_says_so_and_reuses(void **state)
{
	struct index *ix;
	uint32_t id, generation;
	struct skvc_abi_key key;

	(void)state;
	assert_int_equal(index_new(BLOCKS, &ix), 0);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		key = make_key(i);
		assert_int_equal(index_insert(ix, 0, &key, &id), 0);
	}
	key = make_key(BLOCKS);
	assert_int_equal(index_insert(ix, 0, &key, &id), -ENOSPC);
	key = make_key(7);
	id = index_find(ix, 0, &key);
	generation = index_block(ix, id)->generation;
	index_unlink(ix, id);
	index_release(ix, id);
	assert_int_equal(index_count(ix), BLOCKS - 1);
	key = make_key(BLOCKS);
	assert_int_equal(index_insert(ix, 0, &key, &id), 0);
	assert_int_equal(index_block(ix, id)->generation, generation + 1);
	index_free(ix);
}

static void a_parent_that_went_is_not_a_parent(void **state)
{
	struct skvc_abi_key a = make_key(1), b = make_key(2), c = make_key(3), d = make_key(4);
	uint32_t parent, child, next, last;
	struct index *ix;

	(void)state;
	assert_int_equal(index_new(BLOCKS, &ix), 0);
	assert_int_equal(index_insert(ix, 0, &a, &parent), 0);
	assert_int_equal(index_insert(ix, 0, &b, &child), 0);
	index_set_parent(ix, child, parent);
	assert_int_equal(index_parent(ix, child), parent);
	assert_int_equal(index_block(ix, parent)->children, 1);
	index_unlink(ix, parent);
	index_release(ix, parent);
	assert_int_equal(index_parent(ix, child), BLOCK_NONE);
	assert_int_equal(index_insert(ix, 0, &c, &next), 0);
	assert_int_not_equal(next, parent); /* or it would be the parent of a stranger */
	index_set_parent(ix, child, next);
	assert_int_equal(index_insert(ix, 0, &d, &last), 0);
	assert_int_equal(last, parent); /* nobody names it any more */
	index_unlink(ix, child);
	assert_int_equal(index_block(ix, next)->children, 0);
	assert_int_equal(index_block(ix, last)->children, 0);
	index_free(ix);
}

/* Half of all ids, at most: each has a child that lives. */
static void ids_of_parents_that_went_come_back_with_the_last_child(void **state)
{
	uint32_t id[BLOCKS], again;
	struct skvc_abi_key key;
	struct index *ix;

	(void)state;
	assert_int_equal(index_new(BLOCKS, &ix), 0);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		key = make_key(i);
		assert_int_equal(index_insert(ix, 0, &key, &id[i]), 0);
		if (i % 2)
			index_set_parent(ix, id[i], id[i - 1]);
	}
	for (uint32_t i = 0; i < BLOCKS; i += 2) {
		index_unlink(ix, id[i]);
		index_release(ix, id[i]);
	}
	key = make_key(BLOCKS);
	assert_int_equal(index_insert(ix, 0, &key, &again), -ENOSPC);
	for (uint32_t i = 1; i < BLOCKS; i += 2) {
		index_unlink(ix, id[i]);
		index_release(ix, id[i]);
	}
	assert_int_equal(index_count(ix), 0);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		key = make_key(i);
		assert_int_equal(index_insert(ix, 0, &key, &again), 0);
	}
	assert_int_equal(index_count(ix), BLOCKS);
	index_free(ix);
}

static void random_use_matches_a_reference(void **state)
{
	const char *env = getenv("SEED");
	unsigned seed = env ? (unsigned)strtoul(env, NULL, 0) : 20261123u;
	uint32_t where[KEYS];
	struct index *ix;
	uint32_t live = 0;

	(void)state;
	print_message("seed %u\n", seed);
	memset(where, 0xff, sizeof(where));
	assert_int_equal(index_new(BLOCKS, &ix), 0);
	for (unsigned step = 0; step < 200000; step++) {
		uint32_t n = (uint32_t)rand_r(&seed) % KEYS;
		struct skvc_abi_key key = make_key(n);
		uint32_t id = index_find(ix, n % 2, &key);

		assert_int_equal(id, where[n]);
		if (id != BLOCK_NONE) {
			index_unlink(ix, id);
			index_release(ix, id);
			where[n] = BLOCK_NONE;
			live--;
		} else {
			int r = index_insert(ix, n % 2, &key, &where[n]);

			assert_int_equal(r, live < BLOCKS ? 0 : -ENOSPC);
			live += r == 0;
		}
		assert_int_equal(index_count(ix), live);
	}
	index_free(ix);
}

static void lists_keep_their_order(void **state)
{
	struct block_list l;
	struct index *ix;
	uint32_t id[4];

	(void)state;
	assert_int_equal(index_new(BLOCKS, &ix), 0);
	block_list_init(&l);
	for (uint32_t i = 0; i < 4; i++) {
		struct skvc_abi_key key = make_key(i);

		assert_int_equal(index_insert(ix, 0, &key, &id[i]), 0);
		block_list_push(ix, &l, id[i]);
	}
	block_list_remove(ix, &l, id[1]);
	block_list_remove(ix, &l, id[3]);
	block_list_push(ix, &l, id[1]);
	assert_int_equal(l.count, 3);
	assert_int_equal(l.head, id[0]);
	assert_int_equal(block_list_next(ix, id[0]), id[2]);
	assert_int_equal(block_list_next(ix, id[2]), id[1]);
	assert_int_equal(block_list_next(ix, id[1]), BLOCK_NONE);
	assert_int_equal(l.tail, id[1]);
	assert_int_equal(block_list_prev(ix, id[1]), id[2]);
	assert_int_equal(block_list_prev(ix, id[0]), BLOCK_NONE);
	index_free(ix);
}

/* Ten million, and sizes at which the hash table is the largest and the smallest for what it holds. */
static void memory_is_bounded(void **state)
{
	static const uint32_t sizes[] = { 10000000, 1u << 23, (1u << 24) - 1, 1u << 24 };
	struct policy *p;
	struct index *ix;

	(void)state;
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		assert_int_equal(policy_new(sizes[i], sizes[i], &p),
				 0); /* mapped or zeroed lazily */
		assert_int_equal(index_new(sizes[i], &ix), 0);
		print_message("%.1f + %.1f bytes a block\n", (double)index_bytes(ix) / sizes[i],
			      (double)policy_bytes(p) / sizes[i]);
		assert_true(policy_bytes(p) <= 22.5 * sizes[i]);
		assert_true(index_bytes(ix) + policy_bytes(p) <= 128ull * sizes[i]);
		policy_free(p);
		index_free(ix);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(finds_what_was_inserted),
		cmocka_unit_test(a_full_table_says_so_and_reuses),
		cmocka_unit_test(a_parent_that_went_is_not_a_parent),
		cmocka_unit_test(ids_of_parents_that_went_come_back_with_the_last_child),
		cmocka_unit_test(random_use_matches_a_reference),
		cmocka_unit_test(lists_keep_their_order),
		cmocka_unit_test(memory_is_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
