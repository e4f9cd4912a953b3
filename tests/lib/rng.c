/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rng.c - seeds from the environment, and bulk.
 */
#include "tests/lib/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t rng_seed_env(uint64_t otherwise)
{
	const char *text = getenv("SEED");
	uint64_t seed = text && *text ? strtoull(text, NULL, 0) : otherwise;

	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	(void)fflush(stdout);
	return seed;
}

void rng_init(struct rng *r, uint64_t seed)
{
	r->state = rng_mix(seed);
}

void rng_fill(struct rng *r, void *buf, size_t bytes)
{
	uint8_t *p = buf;

	while (bytes) {
		uint64_t v = rng_next(r);
		size_t n = bytes < sizeof(v) ? bytes : sizeof(v);

		memcpy(p, &v, n);
		p += n;
		bytes -= n;
	}
}
