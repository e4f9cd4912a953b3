/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_policy.c - the policy against a naive reference under random operations: what goes is a leaf that nobody holds
 * and that may go, and there is one whenever there is one; then what it learns.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "daemon/policy.h"
#include "daemon/policy_worth.h"

#define IDS 200u
#define STEPS 200000u

static uint64_t seed;

static uint32_t rnd(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)((seed >> 32) % below);
}

static uint64_t hash_of(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* ---- the reference ---- */

struct block {
	int there, held, pinned;
	uint32_t parent; /* POLICY_NONE when that has gone */
	uint64_t hash;
};

struct reference {
	struct policy *p;
	struct block b[IDS];
	uint32_t count, victims, refused;
};

static uint32_t children(const struct reference *m, uint32_t id)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < IDS; i++)
		n += m->b[i].there && m->b[i].parent == id;
	return n;
}

static bool may_go(void *user, uint32_t id)
{
	return !((struct reference *)user)->b[id].pinned;
}

static int is_victim(const struct reference *m, uint32_t id)
{
	return m->b[id].there && !m->b[id].held && !m->b[id].pinned && !children(m, id);
}

/* The id can be another block's then, so nobody names it any more. */
static void leave(struct reference *m, uint32_t id)
{
	policy_remove(m->p, id, m->b[id].parent, m->b[id].hash);
	for (uint32_t i = 0; i < IDS; i++)
		if (m->b[i].there && m->b[i].parent == id)
			m->b[i].parent = POLICY_NONE;
	m->b[id] = (struct block){ 0 };
	policy_reset(m->p, id);
	m->count--;
}

static void come(struct reference *m, uint32_t id)
{
	struct block *b = &m->b[id];
	uint32_t parent = rnd(IDS);

	*b = (struct block){ .there = 1, .held = 1, .hash = hash_of(rnd(1000)) };
	b->parent = parent != id && m->b[parent].there && rnd(4) ? parent : POLICY_NONE;
	policy_insert(m->p, id, 0, b->parent, b->hash, rnd(2));
	m->count++;
}

static void find_victim(struct reference *m)
{
	uint32_t id = policy_victim(m->p, POLICY_ALL, POLICY_ALL, may_go, m), there_are = 0;

	if (id != POLICY_NONE) {
		assert_true(is_victim(m, id));
		m->victims++;
		leave(m, id);
		return;
	}
	for (uint32_t i = 0; i < IDS; i++)
		there_are += is_victim(m, i) != 0;
	assert_int_equal(there_are, 0);
	m->refused++;
}

/* A parent that no child of it is above. */
static void link_orphan(struct reference *m, uint32_t id)
{
	uint32_t parent = rnd(IDS), up = parent;

	if (!m->b[id].there || m->b[id].parent != POLICY_NONE || !m->b[parent].there)
		return;
	while (up != POLICY_NONE && up != id)
		up = m->b[up].parent;
	if (up == id)
		return;
	m->b[id].parent = parent;
	policy_link(m->p, id, parent);
}

static void step(struct reference *m)
{
	uint32_t id = rnd(IDS);
	struct block *b = &m->b[id];

	switch (rnd(12)) {
	case 0:
	case 1:
	case 2:
		if (!b->there)
			come(m, id);
		break;
	case 3:
		if (b->there && !rnd(8))
			leave(m, id); /* dropped, with children or without */
		break;
	case 4:
		find_victim(m);
		break;
	case 5:
		if (b->there)
			policy_hold(m->p, id);
		b->held = b->there;
		break;
	case 6:
		b->pinned = b->there && !rnd(4);
		break;
	case 7:
		link_orphan(m, id);
		break;
	case 8:
	case 9:
		if (b->there)
			policy_use(m->p, id, b->hash, rnd(2));
		break;
	default:
		if (b->there)
			policy_unhold(m->p, id);
		b->held = 0;
	}
	assert_int_equal(policy_has(m->p, id), m->b[id].there);
	assert_int_equal(policy_children(m->p, id), children(m, id));
	assert_int_equal(policy_count(m->p), m->count);
}

static void victims_are_leaves_that_may_go(void **state)
{
	static struct reference m;

	(void)state;
	seed = (uint64_t)time(NULL) * 0x9e3779b97f4a7c15ull | 1;
	print_message("seed %llu\n", (unsigned long long)seed);
	m = (struct reference){ 0 };
	for (uint32_t i = 0; i < IDS; i++)
		m.b[i].parent = POLICY_NONE;
	assert_int_equal(policy_new(IDS, IDS / 2, &m.p), 0);
	for (uint32_t i = 0; i < STEPS; i++)
		step(&m);
	assert_true(m.victims > STEPS / 100);
	/* Once nothing is held or pinned, all go, children first. */
	for (uint32_t i = 0; i < IDS; i++) {
		if (m.b[i].there)
			policy_unhold(m.p, i);
		m.b[i].held = m.b[i].pinned = 0;
	}
	while (m.count)
		find_victim(&m);
	assert_int_equal(policy_victim(m.p, POLICY_ALL, POLICY_ALL, NULL, NULL), POLICY_NONE);
	policy_free(m.p);
}

/* ---- by hand ---- */

static void insert(struct policy *p, uint32_t id, uint32_t parent)
{
	policy_insert(p, id, 0, parent, hash_of(id), false);
}

static void a_chain_goes_from_its_end(void **state)
{
	struct policy *p;

	(void)state;
	assert_int_equal(policy_new(16, 16, &p), 0);
	for (uint32_t i = 0; i < 16; i++)
		insert(p, i, i ? i - 1 : POLICY_NONE);
	assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL),
			 POLICY_NONE); /* all are held */
	for (uint32_t i = 0; i < 16; i++)
		policy_unhold(p, i);
	for (uint32_t i = 0; i < 100; i++)
		policy_use(p, 15, hash_of(15), false); /* however often it is used */
	for (uint32_t i = 16; i-- > 0;) {
		assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL), i);
		policy_remove(p, i, i ? i - 1 : POLICY_NONE, hash_of(i));
		policy_reset(p, i);
	}
	assert_int_equal(policy_count(p), 0);
	policy_free(p);
}

static void a_held_leaf_keeps_its_parents(void **state)
{
	struct policy *p;

	(void)state;
	assert_int_equal(policy_new(4, 4, &p), 0);
	insert(p, 0, POLICY_NONE);
	insert(p, 1, 0);
	policy_unhold(p, 0);
	assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL), POLICY_NONE);
	policy_unhold(p, 1);
	assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL), 1);
	policy_hold(p, 1);
	assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL), POLICY_NONE);
	policy_remove(p, 1, 0, hash_of(1)); /* dropped while it was held */
	policy_reset(p, 1);
	assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL), 0);
	policy_free(p);
}

/* A parent that left one tier and not the other comes back: its children still count. */
static void a_parent_comes_back(void **state)
{
	struct policy *p;

	(void)state;
	assert_int_equal(policy_new(4, 4, &p), 0);
	insert(p, 0, POLICY_NONE);
	insert(p, 1, 0);
	policy_remove(p, 0, POLICY_NONE, hash_of(0));
	insert(p, 0, POLICY_NONE);
	policy_unhold(p, 0);
	assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL), POLICY_NONE);
	policy_remove(p, 1, 0, hash_of(1));
	assert_int_equal(policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL), 0);
	policy_free(p);
}

/* Before anything is known the oldest goes first, to within an epoch (an eighth of the cache). */
static void it_begins_as_lru(void **state)
{
	struct policy *p;
	uint32_t last = 0;

	(void)state;
	assert_int_equal(policy_new(320, 320, &p), 0);
	for (uint32_t i = 0; i < 320; i++) {
		insert(p, i, POLICY_NONE);
		policy_unhold(p, i);
	}
	for (uint32_t i = 0; i < 320; i++) {
		uint32_t id = policy_victim(p, POLICY_ALL, POLICY_ALL, NULL, NULL);

		assert_true(id + 41 >= last);
		last = id;
		policy_remove(p, id, POLICY_NONE, hash_of(id));
	}
	policy_free(p);
}

/* ---- places and groups ---- */

static uint32_t victim(struct policy *p, uint32_t places, uint32_t groups)
{
	return policy_victim(p, places, groups, NULL, NULL);
}

static void places_and_groups_have_victims_of_their_own(void **state)
{
	struct policy *p;

	(void)state;
	assert_int_equal(policy_new(1024, 1024, &p), 0);
	for (uint32_t i = 0; i < 1024; i++) {
		policy_insert(p, i, i % 2 ? 7 : 3, POLICY_NONE, hash_of(i), false);
		if (i >= 600)
			policy_move(p, i, POLICY_NONE, i >= 1000 ? POLICY_BELOW : 1);
		policy_unhold(p, i);
	}
	assert_int_equal(policy_count(p), 1000);
	for (uint32_t i = 0; i < 12; i++) { /* the last ones of one group: none is asked in vain */
		uint32_t below = victim(p, 1u << POLICY_BELOW, 1u << 7);

		assert_true(below >= 1000 && below % 2 == 1);
		policy_remove(p, below, POLICY_NONE, hash_of(below));
	}
	assert_int_equal(victim(p, 1u << POLICY_BELOW, 1u << 7), POLICY_NONE);
	assert_int_equal(victim(p, 1u << 2, POLICY_ALL), POLICY_NONE);
	assert_int_equal(victim(p, POLICY_ALL, 1u << 4), POLICY_NONE);
	assert_int_equal(policy_place(p, victim(p, 1u << 1, POLICY_ALL)), 1);
	assert_true(victim(p, POLICY_ALL, POLICY_ALL) < 600); /* the oldest of all */
	policy_free(p);
}

/* In the cache it has the parent that lies below; below it has none that counts. */
static void below_nobody_is_a_child(void **state)
{
	struct policy *p;

	(void)state;
	assert_int_equal(policy_new(4, 4, &p), 0);
	insert(p, 0, POLICY_NONE);
	insert(p, 1, 0);
	policy_unhold(p, 0);
	policy_unhold(p, 1);
	assert_int_equal(victim(p, 1, POLICY_ALL), 1);
	policy_move(p, 0, POLICY_NONE, POLICY_BELOW);
	assert_int_equal(victim(p, 1u << POLICY_BELOW, POLICY_ALL), POLICY_NONE);
	policy_move(p, 1, 0, POLICY_BELOW);
	assert_int_equal(policy_children(p, 0), 0);
	assert_int_equal(victim(p, 1u << POLICY_BELOW, POLICY_ALL), 0);
	policy_move(p, 1, 0, 2);
	assert_int_equal(policy_children(p, 0), 1);
	policy_remove(p, 1, 0, hash_of(1));
	assert_int_equal(policy_children(p, 0), 0);
	policy_reset(p, 1);
	policy_found(p, 1, 0);
	policy_link(p, 1, 0);
	assert_int_equal(policy_children(p, 0), 0);
	policy_remove(p, 1, 0, hash_of(1));
	policy_remove(p, 0, POLICY_NONE, hash_of(0));
	assert_int_equal(policy_count(p), 0);
	policy_free(p);
}

/* What is used below keeps that when it comes back. */
static void uses_below_count(void **state)
{
	struct policy *p;

	(void)state;
	assert_int_equal(policy_new(64, 64, &p), 0);
	for (uint32_t i = 0; i < 64; i++) {
		insert(p, i, POLICY_NONE);
		policy_move(p, i, POLICY_NONE, POLICY_BELOW);
		policy_unhold(p, i);
	}
	for (uint32_t i = 0; i < 60; i++)
		policy_use(p, i, hash_of(i), false);
	assert_true(victim(p, 1u << POLICY_BELOW, POLICY_ALL) >= 60);
	policy_free(p);
}

static uint32_t asked;

static bool only_the_last(void *user, uint32_t id)
{
	asked++;
	return id == *(uint32_t *)user;
}

/* More that may not go than are asked about at once: they do not hide the others for ever. */
static void who_may_not_go_is_passed(void **state)
{
	uint32_t last = 1999, searches = 0;
	struct policy *p;

	(void)state;
	assert_int_equal(policy_new(2000, 2000, &p), 0);
	for (uint32_t i = 0; i < 2000; i++) {
		insert(p, i, POLICY_NONE);
		policy_unhold(p, i);
	}
	for (uint32_t i = 0; i < 5000; i++) /* so that all of them are of older epochs */
		policy_use(p, 0, hash_of(0), false);
	while (policy_victim(p, POLICY_ALL, POLICY_ALL, only_the_last, &last) != last)
		assert_true(++searches < 20);
	assert_true(asked <= 20 * 256);
	policy_free(p);
}

/* ---- what it learns ---- */

#define LOOP 600u
#define CACHE 1000u

struct cache {
	struct policy *p;
	uint64_t name[CACHE]; /* of the block with this id, + 1 */
	uint32_t id_of_loop[LOOP], free_count, free[CACHE];
	uint32_t hits, refused;
};

/* One use of a block: there, stored, or refused. */
static void ask(struct cache *c, uint64_t name)
{
	uint32_t id = name < LOOP ? c->id_of_loop[name] : POLICY_NONE;

	if (id != POLICY_NONE && policy_has(c->p, id) && c->name[id] == name + 1) {
		policy_use(c->p, id, hash_of(name), false);
		c->hits++;
		return;
	}
	if (!policy_admits(c->p, hash_of(name), false)) {
		c->refused++;
		return;
	}
	if (!c->free_count) {
		id = policy_victim(c->p, POLICY_ALL, POLICY_ALL, NULL, NULL);
		policy_remove(c->p, id, POLICY_NONE, hash_of(c->name[id] - 1));
		policy_reset(c->p, id);
		c->free[c->free_count++] = id;
	}
	id = c->free[--c->free_count];
	c->name[id] = name + 1;
	if (name < LOOP)
		c->id_of_loop[name] = id;
	policy_insert(c->p, id, 0, POLICY_NONE, hash_of(name), false);
	policy_unhold(c->p, id);
}

/* A loop that fits, between blocks that never come again: LRU would have no hit at all. */
static void one_hit_wonders_do_not_stay(void **state)
{
	static struct cache c;
	uint64_t fresh = LOOP;

	(void)state;
	c = (struct cache){ 0 };
	assert_int_equal(policy_new(CACHE, CACHE, &c.p), 0);
	for (uint32_t i = 0; i < LOOP; i++)
		c.id_of_loop[i] = POLICY_NONE;
	for (uint32_t i = 0; i < CACHE; i++)
		c.free[c.free_count++] = i;
	for (uint32_t round = 0; round < 40; round++) {
		if (round == 20)
			c.hits = c.refused = 0;
		for (uint32_t i = 0; i < LOOP; i++) {
			ask(&c, i);
			for (uint32_t k = 0; k < 3; k++)
				ask(&c, fresh++);
		}
	}
	print_message("hits %u of %u, refused %u\n", c.hits, 20 * LOOP, c.refused);
	assert_true(c.hits > 20 * LOOP * 9 / 10);
	assert_true(c.refused > 20 * LOOP * 3 / 2);
	policy_free(c.p);
}

/* Keys of class 1 come again every 1000 uses, those of class 0 never. */
static void worth_follows_what_happens(void **state)
{
	struct worth *w;
	uint32_t now = 0;

	(void)state;
	assert_int_equal(worth_new(4000, &w), 0);
	for (uint32_t i = 0; i < 200000; i++) {
		worth_use(w, hash_of(i % 500), 1, ++now);
		worth_use(w, hash_of(1000000 + i), 0, ++now);
	}
	assert_true(worth_of(w, 1, 500) > 20 * worth_of(w, 0, 500));
	assert_true(worth_of(w, 1, 900) > worth_of(w, 1, 100));	 /* soon it comes */
	assert_true(worth_of(w, 1, 900) > worth_of(w, 1, 5000)); /* it should have come */
	worth_free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(victims_are_leaves_that_may_go),
		cmocka_unit_test(a_chain_goes_from_its_end),
		cmocka_unit_test(a_held_leaf_keeps_its_parents),
		cmocka_unit_test(a_parent_comes_back),
		cmocka_unit_test(it_begins_as_lru),
		cmocka_unit_test(places_and_groups_have_victims_of_their_own),
		cmocka_unit_test(below_nobody_is_a_child),
		cmocka_unit_test(uses_below_count),
		cmocka_unit_test(who_may_not_go_is_passed),
		cmocka_unit_test(one_hit_wonders_do_not_stay),
		cmocka_unit_test(worth_follows_what_happens),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
