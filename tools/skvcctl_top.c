/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_top.c - rates between two pictures, their history, and how it is laid out.
 */
#include "tools/skvcctl_top.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define COUNTER(p, name) skvcctl_value((p), SKVCCTL_COUNTER, (name))
#define GAUGE(p, name) skvcctl_value((p), SKVCCTL_GAUGE, (name))
#define LATENCY(p, name) skvcctl_value((p), SKVCCTL_LATENCY, (name))

#define TOP_LABEL_COLUMNS 28u /* of a line with a sparkline, before it */
#define TOP_BAR_COLUMNS 20u
#define TOP_SORT_MAX 1024u /* as many tenants as a daemon has */

/* ---- rates ---- */

static double rate(const struct top *t, const char *name)
{
	uint64_t now = COUNTER(&t->now, name), last = COUNTER(&t->last, name);

	/* A daemon that was started again counts from 0. */
	if (!t->last_ns || now < last || t->now_ns <= t->last_ns)
		return 0.0;
	return (double)(now - last) * 1e9 / (double)(t->now_ns - t->last_ns);
}

static void push(struct top *t, const double sample[TOP_SERIES_COUNT])
{
	if (t->count == TOP_HISTORY) {
		for (unsigned i = 0; i < TOP_SERIES_COUNT; i++)
			memmove(t->history[i], t->history[i] + 1,
				(TOP_HISTORY - 1) * sizeof(double));
		t->count--;
	}
	for (unsigned i = 0; i < TOP_SERIES_COUNT; i++)
		t->history[i][t->count] = sample[i];
	t->count++;
}

void top_take(struct top *t, struct skvcctl_picture *p, uint64_t now_ns)
{
	double sample[TOP_SERIES_COUNT], hits;

	skvcctl_picture_deinit(&t->last);
	t->last = t->now;
	t->last_ns = t->now_ns;
	t->now = *p;
	t->now_ns = now_ns;
	memset(p, 0, sizeof(*p));
	if (!t->last_ns)
		return;
	hits = rate(t, "hit_blocks_gpu") + rate(t, "hit_blocks_host") + rate(t, "hit_blocks_nvme");
	sample[TOP_STORED] = rate(t, "store_raw_bytes");
	sample[TOP_LOADED] = rate(t, "load_raw_bytes");
	sample[TOP_LOOKED_UP] = rate(t, "lookup_blocks");
	sample[TOP_HIT] = sample[TOP_LOOKED_UP] > 0.0 ? 100.0 * hits / sample[TOP_LOOKED_UP] : 0.0;
	sample[TOP_SPILLED] = rate(t, "spill_bytes");
	sample[TOP_FETCHED] = rate(t, "fetch_bytes");
	push(t, sample);
}

void top_deinit(struct top *t)
{
	skvcctl_picture_deinit(&t->now);
	skvcctl_picture_deinit(&t->last);
	memset(t, 0, sizeof(*t));
}

/* ---- lines ---- */

struct page {
	struct top_screen *to;
	unsigned rows, columns;
};

static void add(struct page *p, enum top_look look, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void add(struct page *p, enum top_look look, const char *format, ...)
{
	char *line = p->to->line[p->to->count];
	unsigned columns = 0;
	va_list args;

	if (p->to->count == p->rows)
		return;
	va_start(args, format);
	(void)vsnprintf(line, TOP_LINE_BYTES, format, args);
	va_end(args);
	/* A column is a byte that does not go on a UTF-8 sequence. */
	for (; *line; line++) {
		if (((unsigned char)*line & 0xc0) == 0x80)
			continue;
		if (columns++ == p->columns)
			break;
	}
	*line = '\0';
	p->to->look[p->to->count++] = look;
}

void top_sparkline(const double *values, unsigned count, unsigned columns, bool utf8, char *ret,
		   size_t ret_bytes)
{
	static const char *const blocks[] = { " ",	"\u2581", "\u2582", "\u2583", "\u2584",
					      "\u2585", "\u2586", "\u2587", "\u2588" };
	static const char *const marks[] = { " ", ".", ".", ":", "-", "=", "+", "*", "#" };
	const char *const *heights = utf8 ? blocks : marks;
	unsigned shown = count < columns ? count : columns;
	double highest = 0.0;
	size_t len = 0;

	ret[0] = '\0';
	values += count - shown;
	for (unsigned i = 0; i < shown; i++)
		highest = values[i] > highest ? values[i] : highest;
	for (unsigned i = 0; i < shown; i++) {
		unsigned h = highest > 0.0 ? (unsigned)(values[i] / highest * 8.0 + 0.5) : 0;
		size_t bytes;

		if (!h && values[i] > 0.0)
			h = 1; /* a little is not nothing */
		bytes = strlen(heights[h]);
		if (len + bytes + 1 > ret_bytes)
			return;
		memcpy(ret + len, heights[h], bytes + 1);
		len += bytes;
	}
}

static void add_series(struct page *p, const struct top *t, const char *label,
		       enum top_series series)
{
	double value = t->count ? t->history[series][t->count - 1] : 0.0;
	unsigned room = p->columns > TOP_LABEL_COLUMNS ? p->columns - TOP_LABEL_COLUMNS : 0;
	char spark[4 * TOP_HISTORY + 1], text[24], bytes[16];

	top_sparkline(t->history[series], t->count, room, t->utf8, spark, sizeof(spark));
	if (series == TOP_HIT)
		(void)snprintf(text, sizeof(text), "%.1f %%", value);
	else if (series == TOP_LOOKED_UP)
		(void)snprintf(text, sizeof(text), "%.0f /s", value);
	else
		(void)snprintf(text, sizeof(text), "%s/s",
			       skvcctl_format_bytes((uint64_t)value, bytes));
	add(p, TOP_PLAIN, "%-12s %14s %.*s", label, text, (int)sizeof(spark), spark);
}

static void add_tier(struct page *p, const char *label, uint64_t used, uint64_t all,
		     uint64_t blocks, uint64_t health)
{
	char bar[TOP_BAR_COLUMNS + 1], a[16], b[16];
	double part = all ? (double)used / (double)all : 0.0;
	unsigned full = (unsigned)(part * TOP_BAR_COLUMNS + 0.5);

	for (unsigned i = 0; i < TOP_BAR_COLUMNS; i++)
		bar[i] = i < full ? '#' : '.';
	bar[TOP_BAR_COLUMNS] = '\0';
	add(p, health >= 2 ? TOP_ALERT : TOP_PLAIN,
	    "%-12s [%s] %5.1f %%  %8s of %-8s  %9" PRIu64 " blocks%s", label, bar, 100.0 * part,
	    skvcctl_format_bytes(used, a), skvcctl_format_bytes(all, b), blocks,
	    health == 2	  ? "  OUT OF SERVICE"
	    : health == 3 ? "  PARTLY OUT OF SERVICE"
			  : "");
}

static void add_tiers(struct page *p, const struct skvcctl_picture *now)
{
	add_tier(p, "Host pool", GAUGE(now, "pool_slab_bytes"), GAUGE(now, "pool_bytes"),
		 GAUGE(now, "blocks_host"), 1);
	if (GAUGE(now, "gpu_health"))
		add_tier(p, "GPU pool", GAUGE(now, "gpu_used_bytes"), GAUGE(now, "gpu_pool_bytes"),
			 GAUGE(now, "gpu_blocks"), GAUGE(now, "gpu_health"));
	if (GAUGE(now, "nvme_health"))
		add_tier(p, "NVMe", GAUGE(now, "nvme_live_bytes"), GAUGE(now, "nvme_bytes"),
			 GAUGE(now, "blocks_nvme"), GAUGE(now, "nvme_health"));
}

static void add_traffic(struct page *p, const struct top *t)
{
	char a[16], b[16], c[16], d[16];

	add_series(p, t, "Stored", TOP_STORED);
	add_series(p, t, "Loaded", TOP_LOADED);
	add_series(p, t, "Looked up", TOP_LOOKED_UP);
	add_series(p, t, "Hit", TOP_HIT);
	if (GAUGE(&t->now, "nvme_health")) {
		add_series(p, t, "To NVMe", TOP_SPILLED);
		add_series(p, t, "From NVMe", TOP_FETCHED);
	}
	add(p, TOP_PLAIN, "Latency      load p50 %s p99 %s, store p50 %s p99 %s, since the start",
	    skvcctl_format_ns(LATENCY(&t->now, "load.p50_ns"), a),
	    skvcctl_format_ns(LATENCY(&t->now, "load.p99_ns"), b),
	    skvcctl_format_ns(LATENCY(&t->now, "store.p50_ns"), c),
	    skvcctl_format_ns(LATENCY(&t->now, "store.p99_ns"), d));
}

/* ---- tenants and sessions, the busiest first ---- */

struct row {
	double busy;
	size_t index;
};

static int busier(const void *a, const void *b)
{
	double x = ((const struct row *)a)->busy, y = ((const struct row *)b)->busy;

	return x < y ? 1 : x > y ? -1 : 0;
}

static void add_tenants(struct page *p, const struct top *t, unsigned rows_max)
{
	const struct skvcctl_picture *now = &t->now;
	struct row rows[TOP_SORT_MAX] = { { 0.0, 0 } };
	size_t count = now->tenants_count < TOP_SORT_MAX ? now->tenants_count : TOP_SORT_MAX;
	char a[16], b[16];

	for (size_t i = 0; i < count; i++)
		rows[i] = (struct row){ (double)now->tenants[i].charged_bytes, i };
	qsort(rows, count, sizeof(rows[0]), busier);
	add(p, TOP_HEAD, "%-32s %12s %12s %8s", "TENANT", "COMPRESSED", "QUOTA", "USED");
	for (size_t i = 0; i < count && i < rows_max; i++) {
		const struct skvcctl_tenant *e = &now->tenants[rows[i].index];
		double used = e->quota_bytes
				      ? 100.0 * (double)e->charged_bytes / (double)e->quota_bytes
				      : 0.0;

		add(p, used > 95.0 ? TOP_ALERT : TOP_PLAIN, "%-32s %12s %12s %6.1f %%", e->name,
		    skvcctl_format_bytes(e->charged_bytes, a),
		    e->quota_bytes ? skvcctl_format_bytes(e->quota_bytes, b) : "none", used);
	}
}

static uint64_t since(uint64_t now, uint64_t last)
{
	return now > last ? now - last : 0;
}

static double session_rate(const struct top *t, const struct skvcctl_session *s, double ret_each[3])
{
	const struct skvcctl_session none = { 0 }, *last = &none;
	double seconds = t->last_ns ? (double)(t->now_ns - t->last_ns) / 1e9 : 0.0;

	for (size_t i = 0; i < t->last.sessions_count; i++)
		if (t->last.sessions[i].id == s->id)
			last = &t->last.sessions[i];
	if (seconds <= 0.0)
		seconds = (double)s->age_ns / 1e9 + 1e-9;
	ret_each[0] = (double)since(s->store_blocks, last->store_blocks) / seconds;
	ret_each[1] = (double)since(s->load_blocks, last->load_blocks) / seconds;
	ret_each[2] = (double)since(s->lookup_blocks, last->lookup_blocks) / seconds;
	return (double)since(s->ops, last->ops) / seconds;
}

static void add_sessions(struct page *p, const struct top *t)
{
	const struct skvcctl_picture *now = &t->now;
	struct row rows[TOP_SORT_MAX] = { { 0.0, 0 } };
	size_t count = now->sessions_count < TOP_SORT_MAX ? now->sessions_count : TOP_SORT_MAX;
	double each[3];

	for (size_t i = 0; i < count; i++)
		rows[i] = (struct row){ session_rate(t, &now->sessions[i], each), i };
	qsort(rows, count, sizeof(rows[0]), busier);
	add(p, TOP_HEAD, "%7s %8s %-16s %8s %9s %9s %9s %5s %6s  %s", "SESSION", "PID", "TENANT",
	    "OPS/S", "STORED/S", "LOADED/S", "ASKED/S", "JOBS", "LEASES", "NAME");
	for (size_t i = 0; i < count; i++) {
		const struct skvcctl_session *s = &now->sessions[rows[i].index];

		(void)session_rate(t, s, each);
		add(p, TOP_PLAIN,
		    "%7" PRIu32 " %8" PRIu32 " %-16.16s %8.0f %9.0f %9.0f %9.0f %5" PRIu32
		    " %6" PRIu32 "  %s",
		    s->id, s->pid, s->tenant, rows[i].busy, each[0], each[1], each[2], s->jobs,
		    s->leases, s->name);
	}
}

void top_render(const struct top *t, unsigned rows, unsigned columns, struct top_screen *ret)
{
	struct page p = { ret, rows < TOP_ROWS_MAX ? rows : TOP_ROWS_MAX, columns };
	const struct skvcctl_picture *now = &t->now;
	uint64_t raw = GAUGE(now, "raw_bytes"), coded = GAUGE(now, "coded_bytes");
	unsigned tenants;
	char a[16], b[16];

	ret->count = 0;
	add(&p, strcmp(now->health, "ok") != 0 ? TOP_ALERT : TOP_HEAD,
	    "skvcd %s   health: %s   %zu sessions   %" PRIu64 " jobs   %" PRIu64 " leases",
	    now->version, now->health, now->sessions_count, GAUGE(now, "jobs"),
	    GAUGE(now, "leases"));
	add(&p, TOP_PLAIN, "Held         %s in %s: ratio %.3f, %" PRIu64 " blocks",
	    skvcctl_format_bytes(raw, a), skvcctl_format_bytes(coded, b),
	    coded ? (double)raw / (double)coded : 0.0, GAUGE(now, "blocks"));
	add_tiers(&p, now);
	add(&p, TOP_PLAIN, "%s", "");
	add_traffic(&p, t);
	add(&p, TOP_PLAIN, "%s", "");
	/* Sessions get what tenants leave of the screen, at least half of the rest. */
	tenants = p.rows > ret->count + 8 ? (p.rows - ret->count - 4) / 2 : 2;
	add_tenants(&p, t, tenants);
	add(&p, TOP_PLAIN, "%s", "");
	add_sessions(&p, t);
}
