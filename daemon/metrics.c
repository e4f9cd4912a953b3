/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics.c - one family per entry of the table, and some with labels: refusals by reason, tenants,
 * namespaces, durations.  Control thread.
 *
 * Names follow Prometheus' habits: skvcd_ before them, seconds and bytes as units, _total behind what only
 * grows.  Labels are bounded: reasons by the protocol, tenants and namespaces by the registry.
 */
#include "daemon/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1e9
/* Buckets end at powers of two, from 1 us to 69 s: each is four of the daemon's own. */
#define METRICS_OCTAVE_FIRST 10u
#define METRICS_OCTAVE_LAST 36u

_Static_assert(4 * METRICS_OCTAVE_LAST < STATS_BUCKETS, "each ends where one of ours does");

/* One label's worth of a tenant or a namespace. */
struct metrics_row {
	const char *name, *kind, *text;
};

static const struct metrics_row tenant_rows[] = {
	{ "skvcd_tenant_charged_bytes", "gauge", "compressed bytes that a tenant's blocks take" },
	{ "skvcd_tenant_quota_bytes", "gauge", "what they may take; 0: no limit" },
};

static const struct metrics_row namespace_rows[] = {
	{ "skvcd_namespace_blocks", "gauge", "blocks of a namespace in the index" },
	{ "skvcd_namespace_raw_bytes", "gauge", "raw bytes of these blocks" },
	{ "skvcd_namespace_coded_bytes", "gauge", "compressed bytes of these blocks" },
	{ "skvcd_namespace_hit_blocks_total", "counter", "keys of a namespace that were found" },
	{ "skvcd_namespace_missed_blocks_total", "counter", "keys that were not" },
};

static const struct metrics_row refusals_row = { "skvcd_refusals_total", "counter",
						 "requests and blocks refused, by reason" };
static const struct metrics_row build_row = { "skvcd_build_info", "gauge",
					      "1; the label is the version" };

#define ROWS(rows) (sizeof(rows) / sizeof((rows)[0]))

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && !strcmp(s + n - m, end);
}

void metrics_name(const struct stats_info *info, char ret_name[METRICS_NAME_BYTES])
{
	size_t stem = strlen(info->name);
	bool ns = !strcmp(info->unit, "ns") && ends_with(info->name, "_ns");

	if (ns)
		stem -= 3;
	(void)snprintf(ret_name, METRICS_NAME_BYTES, "skvcd_%.*s%s%s", (int)stem, info->name,
		       ns ? "_seconds" : "", info->kind == 'C' ? "_total" : "");
}

void metrics_label(FILE *out, const char *value)
{
	(void)fputc('"', out);
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			(void)fputc('\\', out);
		if (*value == '\n')
			(void)fputs("\\n", out);
		else
			(void)fputc(*value, out);
	}
	(void)fputc('"', out);
}

static void head(FILE *out, const struct metrics_row *row)
{
	(void)fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", row->name, row->text, row->name,
		      row->kind);
}

static void histogram_row(unsigned hist, char name[METRICS_NAME_BYTES], struct metrics_row *ret)
{
	(void)snprintf(name, METRICS_NAME_BYTES, "skvcd_%s_duration_seconds",
		       stats_hist_name[hist]);
	*ret = (struct metrics_row){ name, "histogram", stats_hist_text[hist] };
}

static void table_row(const struct stats_info *info, char name[METRICS_NAME_BYTES],
		      struct metrics_row *ret)
{
	metrics_name(info, name);
	*ret = (struct metrics_row){ name, info->kind == 'C' ? "counter" : "gauge", info->text };
}

/* ---- values ---- */

static void add_table(FILE *out, const struct control *control)
{
	char name[METRICS_NAME_BYTES];
	struct metrics_row row;

	for (unsigned i = 0; i < STAT_COUNT; i++) {
		uint64_t value = control_stat(control, i);

		table_row(&stats_info[i], name, &row);
		head(out, &row);
		if (!strcmp(stats_info[i].unit, "ns"))
			(void)fprintf(out, "%s %.9f\n", name, (double)value / NS_PER_S);
		else
			(void)fprintf(out, "%s %" PRIu64 "\n", name, value);
	}
}

/* A sample of exactly 2^n ns counts as longer than that: a nanosecond that no scale shows. */
static void add_histogram(FILE *out, const struct stats *stats, unsigned hist)
{
	uint64_t count[STATS_BUCKETS], sum = 0;
	char name[METRICS_NAME_BYTES];
	struct metrics_row row;
	unsigned i = 0;

	stats_hist_copy(stats, hist, count);
	histogram_row(hist, name, &row);
	head(out, &row);
	for (unsigned octave = METRICS_OCTAVE_FIRST; octave <= METRICS_OCTAVE_LAST; octave++) {
		for (; i < 4 * octave; i++)
			sum += count[i];
		(void)fprintf(out, "%s_bucket{le=\"%.12g\"} %" PRIu64 "\n", name,
			      (double)(UINT64_C(1) << octave) / NS_PER_S, sum);
	}
	for (; i < STATS_BUCKETS; i++)
		sum += count[i];
	(void)fprintf(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, sum);
	(void)fprintf(
		out, "%s_sum %.9f\n", name,
		(double)atomic_load_explicit(&stats->hist_sum_ns[hist], memory_order_relaxed) /
			NS_PER_S);
	(void)fprintf(out, "%s_count %" PRIu64 "\n", name, sum);
}

static void add_refusals(FILE *out, const struct control *control)
{
	head(out, &refusals_row);
	for (unsigned i = 1; i < SKVC_ABI_REASON_COUNT; i++)
		(void)fprintf(out, "%s{reason=\"%s\"} %" PRIu64 "\n", refusals_row.name,
			      stats_reason_word((uint16_t)i), control_reason(control, (uint16_t)i));
}

static void add_tenants(FILE *out, const struct registry *registry)
{
	for (size_t k = 0; k < ROWS(tenant_rows); k++) {
		if (registry->tenants_count)
			head(out, &tenant_rows[k]);
		for (uint32_t i = 0; i < registry->tenants_count; i++) {
			const struct tenant *t = registry->tenants[i];
			const _Atomic uint64_t *value = k ? &t->quota_bytes : &t->charged_bytes;

			(void)fprintf(out, "%s{tenant=", tenant_rows[k].name);
			metrics_label(out, t->name);
			(void)fprintf(out, "} %" PRIu64 "\n",
				      atomic_load_explicit(value, memory_order_relaxed));
		}
	}
}

static uint64_t namespace_value(const struct namespace *ns, size_t row)
{
	const _Atomic uint64_t *const of[] = { &ns->blocks, &ns->raw_bytes, &ns->coded_bytes,
					       &ns->hits, &ns->misses };

	_Static_assert(ROWS(of) == ROWS(namespace_rows), "in the same order");
	return atomic_load_explicit(of[row], memory_order_relaxed);
}

static void add_namespaces(FILE *out, const struct registry *registry)
{
	for (size_t k = 0; k < ROWS(namespace_rows); k++) {
		if (registry->namespaces_count)
			head(out, &namespace_rows[k]);
		for (uint32_t i = 0; i < registry->namespaces_count; i++) {
			const struct namespace *ns = registry->namespaces[i];

			(void)fprintf(out, "%s{namespace=\"%" PRIu32 "\",tenant=",
				      namespace_rows[k].name, ns->id);
			metrics_label(out, ns->tenant->name);
			(void)fputs(",model=", out);
			metrics_label(out, ns->model);
			(void)fprintf(out, "} %" PRIu64 "\n", namespace_value(ns, k));
		}
	}
}

int metrics_text(const struct control *control, char **ret_text, size_t *ret_bytes)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	bool failed;

	if (!out)
		return -ENOMEM;
	head(out, &build_row);
	(void)fprintf(out, "%s{version=\"" SKVCD_VERSION "\"} 1\n", build_row.name);
	add_table(out, control);
	for (unsigned i = 0; i < STATS_HIST_COUNT; i++)
		add_histogram(out, control_lane_stats(control), i);
	add_refusals(out, control);
	add_tenants(out, control_registry(control));
	add_namespaces(out, control_registry(control));
	failed = ferror(out) != 0;
	failed |= fclose(out) != 0;
	if (failed) {
		free(text);
		return -ENOMEM;
	}
	*ret_text = text;
	*ret_bytes = bytes;
	return 0;
}

/* ---- names ---- */

static void help_row(FILE *out, const struct metrics_row *row, const char *labels)
{
	(void)fprintf(out, "%s%s\n\t%s: %s\n", row->name, labels, row->kind, row->text);
}

void metrics_print_help(FILE *out)
{
	char name[METRICS_NAME_BYTES];
	struct metrics_row row;

	help_row(out, &build_row, "{version}");
	for (unsigned i = 0; i < STAT_COUNT; i++) {
		table_row(&stats_info[i], name, &row);
		help_row(out, &row, "");
	}
	for (unsigned i = 0; i < STATS_HIST_COUNT; i++) {
		histogram_row(i, name, &row);
		help_row(out, &row, "");
	}
	help_row(out, &refusals_row, "{reason}");
	for (size_t i = 0; i < ROWS(tenant_rows); i++)
		help_row(out, &tenant_rows[i], "{tenant}");
	for (size_t i = 0; i < ROWS(namespace_rows); i++)
		help_row(out, &namespace_rows[i], "{namespace,tenant,model}");
}
