/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_planner.c - rates follow what is measured, demand fades, and the cheapest way is the one that the numbers
 * say: the quick decoder where there is room, the small blocks where there is none.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/planner.h"

#define MIB (1ull << 20)
#define S 1000000000ull

#define WAYS (1u << CODEC_SPEC_CHANNEL | 1u << CODEC_SPEC_LAYER)

/* 1 GB/s is 1 ns per byte. */
static void set(struct plan_rate *r, double gb_per_s)
{
	*r = (struct plan_rate){ .ns_per_byte = 1 / gb_per_s, .samples = PLAN_TRIES };
}

static void machine(struct plan_machine *m)
{
	planner_init(m, 4);
	set(&m->code[PLAN_CPU][PLAN_DECODE][CODEC_SPEC_CHANNEL], 1);
	set(&m->code[PLAN_CPU][PLAN_DECODE][CODEC_SPEC_LAYER], 0.25);
	set(&m->code[PLAN_CPU][PLAN_ENCODE][CODEC_SPEC_LAYER], 0.125);
	set(&m->nvme_read, 2);
}

static const struct plan_blocks blocks = {
	.device = PLAN_CPU,
	.raw_bytes = MIB,
	.tokens = 16,
	.ratio = { [CODEC_SPEC_CHANNEL] = 0.64, [CODEC_SPEC_LAYER] = 0.5 },
};

static void rates(void **state)
{
	struct plan_machine m;
	struct plan_rate *r = &m.copy;

	(void)state;
	planner_init(&m, 0);
	assert_int_equal(m.workers[PLAN_CPU], 1);
	assert_int_equal(r->samples, 0);
	assert_true(r->ns_per_byte > 0);
	plan_rate_seen(r, 0, 5);
	plan_rate_seen(r, 5, 0);
	assert_int_equal(r->samples, 0);
	plan_rate_seen(r, 1000, 3000); /* the first sample ends the assumption */
	assert_true(fabs(r->ns_per_byte - 3) < 1e-9);
	for (unsigned i = 0; i < 200; i++)
		plan_rate_seen(r, 1000, 7000);
	assert_true(fabs(r->ns_per_byte - 7) < 0.01);
	plan_rate_seen(r, 1000, 1000000000); /* one that was held up does not spoil it for long */
	for (unsigned i = 0; i < 300; i++)
		plan_rate_seen(r, 1000, 7000);
	assert_true(fabs(r->ns_per_byte - 7) < 0.1);
	for (unsigned d = 0; d < PLAN_DEVICES; d++)
		for (unsigned o = 0; o < PLAN_OPS; o++)
			for (unsigned s = 0; s < CODEC_SPEC_COUNT; s++)
				assert_true(m.code[d][o][s].ns_per_byte > 0);
}

/* Ten reads of 1 MiB that overlap, 1 ms in all: their common rate, not that of one. */
static void meters(void **state)
{
	struct plan_rate r = { .ns_per_byte = 1 };
	struct plan_meter meter = { 0 };

	(void)state;
	for (unsigned i = 0; i < 10; i++)
		plan_meter_begin(&meter, S + i, i);
	for (unsigned i = 10; i-- > 0;)
		plan_meter_end(&meter, &r, S + 1000000, MIB, i);
	assert_int_equal(r.samples, 1);
	assert_true(fabs(r.ns_per_byte - 1e6 / (10.0 * MIB)) < 1e-9);
	plan_meter_begin(&meter, 2 * S, 0);
	plan_meter_end(&meter, &r, 2 * S + 100000, 4096, 0); /* that is a latency */
	assert_int_equal(r.samples, 1);
	plan_meter_begin(&meter, 3 * S, 0);
	plan_meter_end(&meter, &r, 3 * S + 100000, 0, 0); /* failed */
	assert_int_equal(r.samples, 1);
}

static void demand_fades(void **state)
{
	struct plan_demand d = { 0 };
	struct plan_machine m;
	double busy;

	(void)state;
	machine(&m);
	plan_demand_stored(&d, S, 100 * MIB);
	plan_demand_dropped(&d, S, 50 * MIB);
	assert_true(fabs(plan_demand_wanted(&d, S, 10 * MIB) - 160.0 * MIB) < 1);
	/* 100 MiB in 5 s by four workers of 1/8 GB/s. */
	busy = plan_demand_busy(&d, &m, PLAN_CPU, CODEC_SPEC_LAYER, S);
	assert_true(fabs(busy - 100.0 * MIB / 5e9 * 8 / 4) < 1e-6);
	assert_true(plan_demand_busy(&d, &m, PLAN_CPU, CODEC_SPEC_LAYER, 60 * S) < busy / 1000);
	assert_true(plan_demand_wanted(&d, S + PLAN_HORIZON_NS, 0) < 56.0 * MIB);
	assert_true(plan_demand_wanted(&d, S + 100 * PLAN_HORIZON_NS, 7) < 8);
	/* A clock that stands still, or goes back, is no reason for more. */
	assert_true(plan_demand_wanted(&d, S, 7) < 8);
}

static void weights(void **state)
{
	const struct plan_room room = { .host_bytes = 64 * MIB,
					.nvme_bytes = 128 * MIB,
					.wanted_bytes = 400.0 * MIB };
	struct plan_blocks b = blocks;
	struct plan_machine m;
	struct plan_weight w;

	(void)state;
	machine(&m);
	assert_false(plan_weigh(&m, &room, &b, CODEC_SPEC_MODEL, &w));
	assert_true(plan_weigh(&m, &room, &b, CODEC_SPEC_CHANNEL, &w));
	assert_true(fabs(w.host_share - 0.25) < 1e-9); /* of 256 MiB coded */
	assert_true(fabs(w.nvme_share - 0.25) < 1e-9); /* 128, half of which are in both */
	assert_true(fabs(w.host_ns - MIB / 4.0) < 1e-6);
	assert_true(fabs(w.nvme_ns - MIB * 0.64 / 2) <
		    1e-6); /* the drive is slower than the workers */
	assert_true(fabs(w.gone_ns - PLAN_GONE_FACTOR * (double)MIB) < 1e-6); /* of `layer` */
	assert_true(fabs(w.expected_ns - (0.25 * w.host_ns + 0.25 * w.nvme_ns + 0.5 * w.gone_ns)) <
		    1e-6);
	assert_false(w.assumed);
	b.prefill_tokens_per_s = 16000;
	assert_true(plan_weigh(&m, &room, &b, CODEC_SPEC_LAYER, &w));
	assert_true(fabs(w.gone_ns - 1e6) < 1e-6);
	assert_true(fabs(w.nvme_ns - w.host_ns) < 1e-6); /* here the workers are slower */
	b.device = PLAN_GPU;				 /* the link carries what is coded */
	set(&m.link, 50);
	set(&m.code[PLAN_GPU][PLAN_DECODE][CODEC_SPEC_LAYER], 500);
	assert_true(plan_weigh(&m, &room, &b, CODEC_SPEC_LAYER, &w));
	assert_true(fabs(w.host_ns - MIB * 0.5 / 50) < 1e-6);
}

static void choices(void **state)
{
	struct plan_room room = { .host_bytes = 1000 * MIB, .wanted_bytes = 100.0 * MIB };
	struct plan_blocks b = blocks;
	struct plan_machine m;

	(void)state;
	machine(&m);
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_CHANNEL), CODEC_SPEC_CHANNEL);
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_LAYER), CODEC_SPEC_CHANNEL);
	room.host_bytes = 30 * MIB; /* what does not fit is dear */
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_CHANNEL), CODEC_SPEC_LAYER);
	b.prefill_tokens_per_s =
		100000000; /* an engine that computes it sooner than we decode it */
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_LAYER), CODEC_SPEC_CHANNEL);
	b = blocks;
	assert_int_equal(plan_best(&m, &room, &b, 1u << CODEC_SPEC_CHANNEL, CODEC_SPEC_CHANNEL),
			 CODEC_SPEC_CHANNEL);
	/* About equal: what is used stays. */
	room.host_bytes = 1000 * MIB;
	set(&m.code[PLAN_CPU][PLAN_DECODE][CODEC_SPEC_LAYER], 0.98);
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_LAYER), CODEC_SPEC_LAYER);
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_CHANNEL), CODEC_SPEC_CHANNEL);
	/* One that was never measured is tried. */
	m.code[PLAN_CPU][PLAN_DECODE][CODEC_SPEC_LAYER] = (struct plan_rate){ .ns_per_byte = 1000 };
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_CHANNEL), CODEC_SPEC_LAYER);
	for (unsigned s = 0; s < CODEC_SPEC_COUNT; s++)
		b.ratio[s] = 0;
	assert_int_equal(plan_best(&m, &room, &b, WAYS, CODEC_SPEC_CHANNEL), CODEC_SPEC_RAW);
}

/* Who computes a block sooner than NVMe brings it back has no use for it there; near that the last answer stands. */
static void drops(void **state)
{
	struct plan_blocks b = blocks; /* from NVMe: 16 tokens in 0.64 MiB at 2 GB/s, 0.34 ms */
	const double nvme_ns = 0.64 * MIB / 2;
	struct plan_machine m;

	(void)state;
	machine(&m);
	assert_false(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, false)); /* nothing was said */
	assert_false(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, true));
	b.prefill_tokens_per_s = (uint64_t)(16e9 / (nvme_ns * 0.85));
	m.nvme_read.samples = 0;
	assert_false(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, false)); /* it may be a faster disk */
	m.nvme_read.samples = 1;
	assert_true(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, false));
	assert_true(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, true));
	b.prefill_tokens_per_s = (uint64_t)(16e9 / nvme_ns);
	assert_false(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, false));
	assert_true(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, true));
	b.prefill_tokens_per_s = (uint64_t)(16e9 / (nvme_ns * 1.15));
	assert_false(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, false));
	assert_false(plan_drops(&m, &b, CODEC_SPEC_CHANNEL, true));
	b.prefill_tokens_per_s = 1000000000; /* of what cannot be coded so nothing is known */
	assert_false(plan_drops(&m, &b, CODEC_SPEC_MODEL, true));
}

/* Read, unless its engine computes it sooner than NVMe brings it back: that is not known before one was read. */
static void promotes(void **state)
{
	struct plan_blocks b = blocks;
	const double nvme_ns = 0.64 * MIB / 2, host_ns = MIB / 4.0;
	struct plan_machine m;

	(void)state;
	machine(&m);
	assert_true(plan_promotes(&m, &b, CODEC_SPEC_CHANNEL)); /* nothing was said */
	b.prefill_tokens_per_s = (uint64_t)(16e9 / (nvme_ns * 1.05));
	assert_true(plan_promotes(&m, &b, CODEC_SPEC_CHANNEL));
	b.prefill_tokens_per_s = (uint64_t)(16e9 / (nvme_ns * 0.95));
	assert_false(plan_promotes(&m, &b, CODEC_SPEC_CHANNEL));
	m.nvme_read.samples = 0;
	assert_true(plan_promotes(&m, &b, CODEC_SPEC_CHANNEL));
	b.prefill_tokens_per_s = (uint64_t)(16e9 / (host_ns * 0.95)); /* sooner than from memory */
	assert_false(plan_promotes(&m, &b, CODEC_SPEC_CHANNEL));
}

/* Real time, so only that everything was measured, and nothing is absurd. */
static void probe(void **state)
{
	struct plan_machine m;

	(void)state;
	planner_init(&m, 1);
	assert_int_equal(planner_probe(&m), 0);
	assert_true(m.copy.samples > 0);
	for (unsigned s = 0; s <= CODEC_SPEC_CHANNEL; s++)
		for (unsigned o = 0; o < PLAN_OPS; o++) {
			assert_true(m.code[PLAN_CPU][o][s].samples > 0);
			assert_true(m.code[PLAN_CPU][o][s].ns_per_byte > 1e-3);
			assert_true(m.code[PLAN_CPU][o][s].ns_per_byte < 1e6);
		}
	assert_int_equal(m.code[PLAN_CPU][PLAN_DECODE][CODEC_SPEC_LAYER].samples, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rates),	cmocka_unit_test(meters),
		cmocka_unit_test(demand_fades), cmocka_unit_test(weights),
		cmocka_unit_test(choices),	cmocka_unit_test(drops),
		cmocka_unit_test(promotes),	cmocka_unit_test(probe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
