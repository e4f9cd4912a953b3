/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_pins.c - what is counted as pinned, against a list of all pins: never less than what is pinned, and never more
 * than what was pinned 17 s ago.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/pins.h"
#include "tests/lib/rng.h"

#define PINS 500u
#define STEPS 200000u
#define DAY ((uint32_t)((24ull * 3600 * 1000000000) >> PINS_UNIT_SHIFT))

static struct pins pins;
static struct pin {
	uint32_t until; /* 0: none */
	uint64_t bytes;
} pin[PINS];

static uint64_t pinned_at(uint32_t now)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < PINS; i++)
		if (pin[i].until > now)
			bytes += pin[i].bytes;
	return bytes;
}

static void check(uint32_t now)
{
	const uint32_t place = 1u << PINS_PLACE_SHIFT;

	assert_true(pins.bytes >= pinned_at(now));
	assert_true(pins.bytes <= pinned_at(now > place ? now - place : 0));
}

static uint32_t some_time(struct rng *r)
{
	static const uint32_t most[] = { 3, 1000, 100000, DAY + 1 };

	return 1 + (uint32_t)rng_below(r, most[rng_below(r, 4)]);
}

static void any_order(void **state)
{
	uint32_t now = 7000000; /* the machine has run for five days */
	struct rng r;

	(void)state;
	rng_init(&r, 5);
	for (unsigned step = 0; step < STEPS; step++) {
		struct pin *p = &pin[rng_below(&r, PINS)];

		if (rng_below(&r, 50) == 0)
			now += some_time(&r); /* whatever ends in between */
		pins_expire(&pins, now);
		if (p->until)
			pins_sub(&pins, p->until, p->bytes);
		*p = (struct pin){ 0 };
		if (rng_below(&r, 3))
			*p = (struct pin){ .until = now + some_time(&r),
					   .bytes = rng_below(&r, 1u << 20) };
		if (p->until)
			pins_add(&pins, p->until, p->bytes);
		if (step % 64 == 0)
			check(now);
	}
	pins_expire(&pins, now + DAY + (1u << PINS_PLACE_SHIFT) + 1);
	assert_int_equal(pins.bytes, 0);
	for (unsigned i = 0; i < PINS_PLACES; i++)
		assert_int_equal(pins.place[i], 0);
}

/* Of all that was added nothing is left when it is taken away, whenever that is. */
static void after_its_end(void **state)
{
	(void)state;
	memset(&pins, 0, sizeof(pins));
	pins_expire(&pins, 1000000);
	pins_add(&pins, 1000001, 5);
	pins_add(&pins, 1000000 + DAY, 7);
	assert_int_equal(pins.bytes, 12);
	pins_expire(&pins, 1001000);
	assert_int_equal(pins.bytes, 7);
	pins_sub(&pins, 1000001, 5); /* over long ago */
	assert_int_equal(pins.bytes, 7);
	pins_sub(&pins, 1000000 + DAY, 7);
	assert_int_equal(pins.bytes, 0);
	pins_expire(&pins, UINT32_MAX);
	pins_add(&pins, UINT32_MAX, 3); /* the end of time never comes */
	assert_int_equal(pins.bytes, 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_order),
		cmocka_unit_test(after_its_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
