/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_top.c - skvcctl top: rates between two pictures, sparklines, and screens of any size that hold what
 * matters and never a column too many.
 */
#include "tools/skvcctl_top.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct top top;
static struct top_screen screen;

static int teardown(void **state)
{
	(void)state;
	top_deinit(&top);
	return 0;
}

static void stat(struct skvcctl_picture *p, enum skvcctl_kind kind, const char *name,
		 uint64_t value)
{
	struct skvcctl_stat *s = &p->stats[p->stats_count++];

	s->kind = kind;
	(void)snprintf(s->name, sizeof(s->name), "%s", name);
	s->value = value;
}

/* After n seconds of a daemon that stores 1 GiB/s, for the sessions given. */
static struct skvcctl_picture picture(uint64_t n, size_t sessions, size_t tenants)
{
	struct skvcctl_picture p = { .version = "0.1.0", .health = "ok" };

	p.stats = calloc(32, sizeof(*p.stats));
	p.sessions = calloc(sessions + 1, sizeof(*p.sessions));
	p.tenants = calloc(tenants + 1, sizeof(*p.tenants));
	assert_true(p.stats && p.sessions && p.tenants);
	stat(&p, SKVCCTL_COUNTER, "store_raw_bytes", n << 30);
	stat(&p, SKVCCTL_COUNTER, "lookup_blocks", n * 100);
	stat(&p, SKVCCTL_COUNTER, "hit_blocks_host", n * 50);
	stat(&p, SKVCCTL_COUNTER, "hit_blocks_nvme", n * 25);
	stat(&p, SKVCCTL_GAUGE, "pool_bytes", 64ull << 30);
	stat(&p, SKVCCTL_GAUGE, "pool_slab_bytes", 16ull << 30);
	stat(&p, SKVCCTL_GAUGE, "blocks_host", 12345);
	stat(&p, SKVCCTL_GAUGE, "raw_bytes", 3ull << 40);
	stat(&p, SKVCCTL_GAUGE, "coded_bytes", 2ull << 40);
	stat(&p, SKVCCTL_GAUGE, "nvme_health", 2);
	stat(&p, SKVCCTL_GAUGE, "nvme_bytes", 1ull << 40);
	for (size_t i = 0; i < sessions; i++, p.sessions_count++) {
		p.sessions[i] = (struct skvcctl_session){ .id = (uint32_t)i + 1,
							  .pid = 4194304,
							  .ops = n * i,
							  .store_blocks = n * i * 2,
							  .age_ns = 1000000000 };
		(void)snprintf(p.sessions[i].name, sizeof(p.sessions[i].name), "engine-%zu", i);
		(void)snprintf(p.sessions[i].tenant, sizeof(p.sessions[i].tenant),
			       "a-tenant-with-a-long-name");
	}
	for (size_t i = 0; i < tenants; i++, p.tenants_count++) {
		p.tenants[i] = (struct skvcctl_tenant){ .charged_bytes = i << 30,
							.quota_bytes = i == 1 ? 1ull << 30 : 0 };
		(void)snprintf(p.tenants[i].name, sizeof(p.tenants[i].name), "tenant-%zu", i);
	}
	return p;
}

static void take(uint64_t n, size_t sessions, size_t tenants)
{
	struct skvcctl_picture p = picture(n, sessions, tenants);

	top_take(&top, &p, (n + 1) * 1000000000);
	assert_null(p.stats); /* taken over */
}

static bool has(const char *text)
{
	for (unsigned i = 0; i < screen.count; i++)
		if (strstr(screen.line[i], text))
			return true;
	return false;
}

static void test_rates(void **state)
{
	(void)state;
	take(0, 3, 2);
	assert_int_equal(top.count, 0);
	take(1, 3, 2);
	assert_int_equal(top.count, 1);
	assert_true(top.history[TOP_STORED][0] == (double)(1 << 30));
	assert_true(top.history[TOP_HIT][0] == 75.0);
	top_render(&top, 40, 120, &screen);
	assert_true(has("Stored           1.00 GiB/s"));
	assert_true(has("Looked up            100 /s"));
	assert_true(has("Hit                  75.0 %"));
	assert_true(has("[#####...............]  25.0 %"));
	assert_true(has("ratio 1.500"));
	assert_true(has("OUT OF SERVICE"));
	assert_true(has("health: ok   3 sessions"));
	/* The busiest session first, the largest tenant, and what is nearly full stands out. */
	for (unsigned i = 0; i < screen.count; i++) {
		if (strstr(screen.line[i], "SESSION")) {
			assert_non_null(strstr(screen.line[i + 1], "engine-2"));
			assert_non_null(strstr(screen.line[i + 1], "        2         4 "));
		}
		if (strstr(screen.line[i], "TENANT  ") && strstr(screen.line[i], "QUOTA")) {
			assert_non_null(strstr(screen.line[i + 1], "tenant-1"));
			assert_int_equal(screen.look[i + 1], TOP_ALERT);
		}
	}
	/* A daemon that was started again: no rate, and no negative one. */
	take(0, 3, 2);
	assert_true(top.history[TOP_STORED][1] == 0.0);
}

static void test_history_is_bounded(void **state)
{
	(void)state;
	for (uint64_t n = 0; n < TOP_HISTORY + 50; n++)
		take(n, 0, 0);
	assert_int_equal(top.count, TOP_HISTORY);
	take(TOP_HISTORY + 49, 0, 0); /* in no time: no rate, and no division by it */
	assert_true(top.history[TOP_STORED][TOP_HISTORY - 1] == 0.0);
	assert_true(top.history[TOP_STORED][TOP_HISTORY - 2] == (double)(1 << 30));
}

static void test_sparkline(void **state)
{
	static const double values[] = { 0, 0.001, 4, 8, 2 };
	char text[64];

	(void)state;
	top_sparkline(values, 5, 10, false, text, sizeof(text));
	assert_string_equal(text, " .-#.");
	top_sparkline(values, 5, 2, false, text, sizeof(text));
	assert_string_equal(text, "#.");
	top_sparkline(values, 5, 3, true, text, sizeof(text));
	assert_string_equal(text, "\u2584\u2588\u2582");
	top_sparkline(values, 0, 3, true, text, sizeof(text));
	assert_string_equal(text, "");
	top_sparkline(values, 1, 3, true, text, sizeof(text));
	assert_string_equal(text, " ");
	top_sparkline(values, 5, 5, true, text, 5); /* what fits */
	assert_true(strlen(text) < 5);
}

static unsigned columns(const char *s)
{
	unsigned n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static void test_any_size(void **state)
{
	(void)state;
	top.utf8 = true;
	for (uint64_t n = 0; n < 100; n++)
		take(n * n, 300, 300);
	for (unsigned rows = 0; rows < 80; rows += 7)
		for (unsigned cols = 0; cols < 240; cols += 13) {
			top_render(&top, rows, cols, &screen);
			assert_true(screen.count <= rows);
			for (unsigned i = 0; i < screen.count; i++)
				assert_true(columns(screen.line[i]) <= cols);
		}
	top_render(&top, 10000, 10000, &screen);
	assert_true(screen.count <= TOP_ROWS_MAX);
	/* On 24 lines tenants leave room for sessions. */
	top_render(&top, 23, 80, &screen);
	assert_true(has("TENANT") && has("SESSION") && has("tenant-299"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_rates, teardown),
		cmocka_unit_test_teardown(test_history_is_bounded, teardown),
		cmocka_unit_test(test_sparkline),
		cmocka_unit_test_teardown(test_any_size, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
