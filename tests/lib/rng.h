/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rng.h - the tests' source of chance: the same seed gives the same test.
 */
#ifndef SKVCD_TESTS_LIB_RNG_H
#define SKVCD_TESTS_LIB_RNG_H

#include <stddef.h>
#include <stdint.h>

struct rng {
	uint64_t state;
};

/* $SEED when it is set (decimal or 0x...), else `otherwise`.  Prints it, so that a failure can be repeated. */
uint64_t rng_seed_env(uint64_t otherwise);

void rng_init(struct rng *r, uint64_t seed);
void rng_fill(struct rng *r, void *buf, size_t bytes);

/* splitmix64: every state is as good as any other. */
static inline uint64_t rng_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static inline uint64_t rng_next(struct rng *r)
{
	uint64_t v = rng_mix(r->state);

	r->state += 0x9e3779b97f4a7c15u;
	return v;
}

/* 0 <= result < limit; limit > 0.  The bias of 2^-32 does not matter to a test. */
static inline uint32_t rng_below(struct rng *r, uint32_t limit)
{
	return (uint32_t)(((rng_next(r) >> 32) * limit) >> 32);
}

/* True once in n. */
static inline int rng_one_in(struct rng *r, uint32_t n)
{
	return rng_below(r, n) == 0;
}

#endif
