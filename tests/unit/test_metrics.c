/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_metrics.c - the text that Prometheus reads: every entry of the table under the right name, with the
 * value that the bus gives; durations as buckets that rise; labels that cannot break a line; and the manual,
 * which has them all.  tests/e2e/test_metrics asks a strict reader.
 */
#include "daemon/metrics.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/control_rig.h"
#include "tests/lib/raw_client.h"
#include "tools/skvcctl.h"

static struct control_rig rig;
static struct skvcctl_source source;
static char err[SKVCCTL_ERR_BYTES];

static int setup(void **state)
{
	static const char *const overrides[] = { "limits.quota=1G", NULL };

	(void)state;
	control_rig_start(&rig, overrides);
	source = (struct skvcctl_source){ .path = rig.config.bus_socket };
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(control_rig_stop(&rig), 0);
	return 0;
}

static void test_names(void **state)
{
	char name[METRICS_NAME_BYTES], other[METRICS_NAME_BYTES];

	(void)state;
	metrics_name(&stats_info[STAT_ENCODE_NS], name);
	assert_string_equal(name, "skvcd_encode_seconds_total");
	metrics_name(&stats_info[STAT_OPS], name);
	assert_string_equal(name, "skvcd_ops_total");
	metrics_name(&stats_info[STAT_POOL_BYTES], name);
	assert_string_equal(name, "skvcd_pool_bytes");
	for (unsigned i = 0; i < STAT_COUNT; i++) {
		const char *end;

		metrics_name(&stats_info[i], name);
		end = name + strlen(name);
		assert_int_equal(!strcmp(end - 6, "_total"), stats_info[i].kind == 'C');
		assert_null(strstr(name, "_ns")); /* base units only */
		if (!strcmp(stats_info[i].unit, "bytes"))
			assert_non_null(strstr(name, "_bytes"));
		for (unsigned k = 0; k < i; k++) {
			metrics_name(&stats_info[k], other);
			assert_string_not_equal(name, other);
		}
	}
}

static void test_label(void **state)
{
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);

	(void)state;
	metrics_label(out, "a\"b\\c\nd");
	assert_int_equal(fclose(out), 0);
	assert_string_equal(text, "\"a\\\"b\\\\c\\nd\"");
	free(text);
}

/* Where the line of this sample has its value. */
static const char *sample(const char *text, const char *name)
{
	size_t len = strlen(name);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, len) && line[len] == ' ')
			return line + len + 1;
	}
	fail_msg("no sample %s in:\n%s", name, text);
	return NULL;
}

/* A client that stores nothing still moves counters, and is a tenant with a namespace. */
static void test_text(void **state)
{
	struct skvcctl_picture p = { 0 };
	char *text = NULL, name[METRICS_NAME_BYTES], line[512];
	struct raw_client c;
	uint32_t ns, region;
	uint8_t *arena;

	(void)state;
	assert_int_equal(raw_client_open(&c, rig.config.socket, 8), 0);
	assert_int_equal(raw_client_memory(&c, &ns, &region, &arena), 0);
	assert_int_equal(skvcctl_fetch(&source, SKVCCTL_GET_ALL, &p, err, sizeof(err)), SKVCCTL_OK);
	assert_int_equal(skvcctl_metrics(&source, &text, err, sizeof(err)), SKVCCTL_OK);
	for (unsigned i = 0; i < STAT_COUNT; i++) {
		bool counter = stats_info[i].kind == 'C';

		metrics_name(&stats_info[i], name);
		(void)snprintf(line, sizeof(line), "# HELP %s %s\n# TYPE %s %s\n%s ", name,
			       stats_info[i].text, name, counter ? "counter" : "gauge", name);
		if (!strstr(text, line))
			fail_msg("not in the text: %s", line);
		if (strcmp(stats_info[i].unit, "ns") != 0 && i != STAT_WAKEUPS)
			assert_int_equal(strtoull(sample(text, name), NULL, 10),
					 skvcctl_value(&p,
						       counter ? SKVCCTL_COUNTER : SKVCCTL_GAUGE,
						       stats_info[i].name));
	}
	(void)snprintf(line, sizeof(line), "skvcd_tenant_quota_bytes{tenant=\"%s\"}",
		       p.tenants[0].name);
	assert_int_equal(strtoull(sample(text, line), NULL, 10), 1ull << 30);
	(void)snprintf(line, sizeof(line),
		       "skvcd_namespace_blocks{namespace=\"0\",tenant=\"%s\",model=\"raw\"}",
		       p.tenants[0].name);
	assert_int_equal(strtoull(sample(text, line), NULL, 10), 0);
	assert_int_equal(
		strtoull(sample(text, "skvcd_refusals_total{reason=\"pool-full\"}"), NULL, 10), 0);
	skvcctl_picture_deinit(&p);
	free(text);
	raw_client_close(&c);
}

/* Buckets rise, end at the count, and hold what is below their bound and no more. */
static void test_durations(void **state)
{
	/* The lane's own, which does nothing here: the test may write it. */
	struct stats *stats = (struct stats *)lane_stats(rig.lane);
	char *text = NULL;

	(void)state;
	stats_record_ns(stats, STATS_HIST_LOAD, 900);
	stats_record_ns(stats, STATS_HIST_LOAD, 1500);
	stats_record_ns(stats, STATS_HIST_LOAD, 1000000);
	stats_record_ns(stats, STATS_HIST_LOAD, UINT64_C(1) << 39);
	assert_int_equal(skvcctl_metrics(&source, &text, err, sizeof(err)), SKVCCTL_OK);
#define LOAD(rest) strtoull(sample(text, "skvcd_load_duration_seconds" rest), NULL, 10)
	assert_int_equal(LOAD("_bucket{le=\"1.024e-06\"}"), 1);
	assert_int_equal(LOAD("_bucket{le=\"2.048e-06\"}"), 2);
	assert_int_equal(LOAD("_bucket{le=\"0.000524288\"}"), 2);
	assert_int_equal(LOAD("_bucket{le=\"0.001048576\"}"), 3);
	assert_int_equal(LOAD("_bucket{le=\"68.719476736\"}"), 3);
	assert_int_equal(LOAD("_bucket{le=\"+Inf\"}"), 4);
	assert_int_equal(LOAD("_count"), 4);
	assert_int_equal(LOAD("_sum"), 549);
	for (unsigned i = 0; i < STATS_HIST_COUNT; i++) {
		char line[256];

		(void)snprintf(line, sizeof(line),
			       "# HELP skvcd_%s_duration_seconds %s\n"
			       "# TYPE skvcd_%s_duration_seconds histogram\n",
			       stats_hist_name[i], stats_hist_text[i], stats_hist_name[i]);
		assert_non_null(strstr(text, line));
	}
	free(text);
}

static char *read_text(const char *path)
{
	char *text = calloc(1, 1 << 20);
	FILE *f = fopen(path, "re");

	assert_non_null(text);
	if (!f) {
		free(text);
		return NULL;
	}
	(void)!fread(text, 1, (1 << 20) - 1, f);
	(void)fclose(f);
	return text;
}

/* skvcd-metrics(7) is what --help-metrics prints, in the manual's marks: no more and no less. */
static void test_manual_agrees(void **state)
{
	char *man = read_text("daemon/man/skvcd-metrics.7.scd"), *help = NULL, *next;
	size_t bytes, entries = 0, listed = 0;
	FILE *out;

	(void)state;
	if (!man) {
		print_message(
			"daemon/man/skvcd-metrics.7.scd is not below the working directory\n");
		skip();
	}
	out = open_memstream(&help, &bytes);
	metrics_print_help(out);
	assert_int_equal(fclose(out), 0);
	for (char *line = help; *line; line = next) {
		char *end = strchr(line, '\n'), want[512];
		const char *about = end + 2; /* behind the tab */

		next = strchr(about, '\n') + 1;
		(void)snprintf(want, sizeof(want), "\n*%.*s*", (int)strcspn(line, "{\n"), line);
		if (!strstr(man, want))
			fail_msg("the manual lacks %s", want);
		about = strchr(about, ':') + 2;
		(void)snprintf(want, sizeof(want), "%.*s", (int)(next - 1 - about), about);
		if (!strstr(man, want))
			fail_msg("the manual lacks \"%s\"", want);
		entries++;
	}
	for (const char *p = man; (p = strstr(p, "\n*skvcd_")); p++)
		listed++;
	assert_int_equal(listed, entries);
	free(help);
	free(man);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_label),
		cmocka_unit_test_setup_teardown(test_text, setup, teardown),
		cmocka_unit_test_setup_teardown(test_durations, setup, teardown),
		cmocka_unit_test(test_manual_agrees),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
