/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_table.c - the picture for a person: one screen of 80 columns, what matters most on top.
 */
#include "tools/skvcctl.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define COUNTER(p, name) skvcctl_value((p), SKVCCTL_COUNTER, (name))
#define GAUGE(p, name) skvcctl_value((p), SKVCCTL_GAUGE, (name))
#define LATENCY(p, name) skvcctl_value((p), SKVCCTL_LATENCY, (name))

#define TABLE_ROWS 6u /* of sessions and tenants below the counters; then "..." */
#define TABLE_COLUMNS 78u

int skvcctl_parse_bytes(const char *text, uint64_t *ret)
{
	static const char units[] = "KMGT";
	const char *unit;
	uint64_t v = 0;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	for (; *text >= '0' && *text <= '9'; text++)
		if (__builtin_mul_overflow(v, 10, &v) ||
		    __builtin_add_overflow(v, (unsigned)(*text - '0'), &v))
			return -EINVAL;
	while (*text == ' ')
		text++;
	unit = *text ? strchr(units, *text) : NULL;
	if (*text && (!unit || text[1]))
		return -EINVAL;
	if (unit && __builtin_mul_overflow(v, UINT64_C(1) << (10 * (unit - units + 1)), &v))
		return -EINVAL;
	*ret = v;
	return 0;
}

const char *skvcctl_format_bytes(uint64_t bytes, char buf[16])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double v = (double)bytes;
	unsigned u = 0;

	while (v >= 999.5 && u + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1024.0;
		u++;
	}
	(void)snprintf(buf, 16, "%.*f %s", !u || v >= 99.95 ? 0 : v >= 9.995 ? 1 : 2, v, units[u]);
	return buf;
}

const char *skvcctl_model_part(const struct skvcctl_profile *f)
{
	static const char *const names[] = { "none", "copy", "draft" };

	return f->model_part < sizeof(names) / sizeof(names[0]) ? names[f->model_part] : "other";
}

const char *skvcctl_format_ns(uint64_t ns, char buf[16])
{
	static const char *const units[] = { "ns", "us", "ms", "s" };
	double v = (double)ns;
	unsigned u = 0;

	while (v >= 999.5 && u + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1000.0;
		u++;
	}
	(void)snprintf(buf, 16, "%.*f %s", !u || v >= 99.95 ? 0 : v >= 9.995 ? 1 : 2, v, units[u]);
	return buf;
}

static double ratio(uint64_t a, uint64_t b)
{
	return b ? (double)a / (double)b : 0.0;
}

static double percent(uint64_t part, uint64_t whole)
{
	return 100.0 * ratio(part, whole);
}

/* "1.523", or "-" where there is nothing to compare. */
static const char *format_ratio(uint64_t raw, uint64_t coded, char buf[16])
{
	if (coded)
		(void)snprintf(buf, 16, "%.3f", ratio(raw, coded));
	else
		(void)snprintf(buf, 16, "-");
	return buf;
}

/* What the log costs beside the records, and what its reuse of segments has cost. */
static void print_log(const struct skvcctl_picture *p, FILE *out)
{
	uint64_t spilled = COUNTER(p, "spill_bytes"), written = COUNTER(p, "nvme_written_bytes");
	char a[16], b[16], c[16], d[16];

	(void)fprintf(out,
		      "NVMe log   %s written for %s of records (%s), %" PRIu64 " checkpoints\n",
		      skvcctl_format_bytes(written, a), skvcctl_format_bytes(spilled, b),
		      format_ratio(written, spilled, d), COUNTER(p, "nvme_checkpoints"));
	(void)fprintf(out,
		      "           %" PRIu64 " segments reused, %s copied on, %s evicted; %" PRIu64
		      " blocks found at start\n",
		      COUNTER(p, "nvme_reclaimed_segments"),
		      skvcctl_format_bytes(COUNTER(p, "nvme_copied_bytes"), d),
		      skvcctl_format_bytes(COUNTER(p, "nvme_evicted_bytes"), c),
		      COUNTER(p, "nvme_restored_blocks"));
}

static void print_capacity(const struct skvcctl_picture *p, FILE *out)
{
	uint64_t raw = GAUGE(p, "raw_bytes"), coded = GAUGE(p, "coded_bytes");
	uint64_t pool = GAUGE(p, "pool_bytes"), used = GAUGE(p, "pool_used_bytes");
	uint64_t slots = GAUGE(p, "pool_slot_bytes"), slabs = GAUGE(p, "pool_slab_bytes");
	static const char *const states[] = { "none", "in service", "OUT OF SERVICE",
					      "PARTLY OUT OF SERVICE" };
	uint64_t health = GAUGE(p, "nvme_health");
	char a[16], b[16], c[16], d[16];

	(void)fprintf(out, "Capacity   %s of KV cache held in %s: ratio %s, %s saved\n",
		      skvcctl_format_bytes(raw, a), skvcctl_format_bytes(coded, b),
		      format_ratio(raw, coded, d),
		      skvcctl_format_bytes(raw > coded ? raw - coded : 0, c));
	(void)fprintf(out,
		      "Blocks     %" PRIu64 " (host %" PRIu64 ", NVMe %" PRIu64
		      "), room for %" PRIu64 "\n",
		      GAUGE(p, "blocks"), GAUGE(p, "blocks_host"), GAUGE(p, "blocks_nvme"),
		      GAUGE(p, "index_blocks_max"));
	(void)fprintf(out, "Host pool  %.1f %% of %s in slabs, %s used, internal waste %.1f %%\n",
		      percent(slabs, pool), skvcctl_format_bytes(pool, a),
		      skvcctl_format_bytes(used, b), slots ? 100.0 - percent(used, slots) : 0.0);
	(void)fprintf(out, "NVMe       %s", states[health < 4 ? health : 2]);
	if (health)
		(void)fprintf(out, ": %s live of %s, %" PRIu64 " in flight, %" PRIu64 " errors",
			      skvcctl_format_bytes(GAUGE(p, "nvme_live_bytes"), a),
			      skvcctl_format_bytes(GAUGE(p, "nvme_bytes"), b),
			      GAUGE(p, "nvme_inflight"), COUNTER(p, "nvme_errors"));
	(void)fprintf(out, "\n");
	if (health)
		print_log(p, out);
}

static void print_traffic(const struct skvcctl_picture *p, FILE *out)
{
	uint64_t asked = COUNTER(p, "lookup_blocks");
	uint64_t host = COUNTER(p, "hit_blocks_host"), nvme = COUNTER(p, "hit_blocks_nvme");
	uint64_t raw = COUNTER(p, "store_raw_bytes"), coded = COUNTER(p, "store_coded_bytes");
	char a[16], b[16], c[16];

	(void)fprintf(out,
		      "Lookups    %" PRIu64
		      " blocks asked: %.1f %% hit in host memory, %.1f %% on NVMe, "
		      "%.1f %% missed\n",
		      asked, percent(host, asked), percent(nvme, asked),
		      asked > host + nvme ? percent(asked - host - nvme, asked) : 0.0);
	(void)fprintf(out,
		      "Stored     %s as %s in %" PRIu64 " blocks, ratio %s; %" PRIu64
		      " known already, "
		      "%" PRIu64 " refused\n",
		      skvcctl_format_bytes(raw, a), skvcctl_format_bytes(coded, b),
		      COUNTER(p, "store_blocks"), format_ratio(raw, coded, c),
		      COUNTER(p, "store_duplicate_blocks"), COUNTER(p, "store_refused_blocks"));
	(void)fprintf(out,
		      "Loaded     %s in %" PRIu64 " blocks, byte-exact; %" PRIu64
		      " failed, %" PRIu64 " checksum failures\n",
		      skvcctl_format_bytes(COUNTER(p, "load_raw_bytes"), a),
		      COUNTER(p, "load_blocks"), COUNTER(p, "load_failed_blocks"),
		      COUNTER(p, "checksum_failures"));
	(void)fprintf(out,
		      "Moved      %" PRIu64 " spilled to NVMe, %" PRIu64 " fetched, %" PRIu64
		      " evicted\n",
		      COUNTER(p, "spill_blocks"), COUNTER(p, "fetch_blocks"),
		      COUNTER(p, "evicted_blocks"));
}

static void print_latency(const struct skvcctl_picture *p, FILE *out)
{
	static const struct {
		const char *key, *label;
	} rows[] = {
		{ "lookup", "lookup" },
		{ "load", "load" },
		{ "store_free", "store, source free" },
		{ "store", "store, committed" },
		{ "nvme_read", "NVMe read" },
		{ "nvme_write", "NVMe write" },
	};
	char key[64], a[16], b[16];
	bool head = false;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint64_t count, p50, p99;

		(void)snprintf(key, sizeof(key), "%s.count", rows[i].key);
		count = LATENCY(p, key);
		if (!count)
			continue;
		if (!head)
			(void)fprintf(out, "\n%-20s %12s %10s %10s\n", "Latency", "operations",
				      "p50", "p99");
		head = true;
		(void)snprintf(key, sizeof(key), "%s.p50_ns", rows[i].key);
		p50 = LATENCY(p, key);
		(void)snprintf(key, sizeof(key), "%s.p99_ns", rows[i].key);
		p99 = LATENCY(p, key);
		(void)fprintf(out, "  %-18s %12" PRIu64 " %10s %10s\n", rows[i].label, count,
			      skvcctl_format_ns(p50, a), skvcctl_format_ns(p99, b));
	}
}

static void print_refusals(const struct skvcctl_picture *p, FILE *out)
{
	size_t column = 0;

	for (size_t i = 0; i < p->stats_count; i++) {
		const struct skvcctl_stat *s = &p->stats[i];
		char text[96];
		size_t len;

		if (s->kind != SKVCCTL_REASON || !s->value)
			continue;
		(void)snprintf(text, sizeof(text), "%s %" PRIu64, s->name, s->value);
		len = strlen(text);
		if (!column || column + len + 2 > TABLE_COLUMNS) {
			(void)fprintf(out, "%s%-10s %s", column ? ",\n" : "\n",
				      column ? "" : "Refused", text);
			column = 11 + len;
		} else {
			(void)fprintf(out, ", %s", text);
			column += len + 2;
		}
	}
	if (column)
		(void)fprintf(out, "\n");
}

static void print_tenant_rows(const struct skvcctl_picture *p, size_t rows_max, FILE *out)
{
	char a[16], b[16];

	(void)fprintf(out, "%-32s %12s %12s %8s\n", "Tenant", "compressed", "quota", "used");
	for (size_t i = 0; i < p->tenants_count && i < rows_max; i++) {
		const struct skvcctl_tenant *t = &p->tenants[i];

		(void)fprintf(out, "  %-30s %12s ", t->name,
			      skvcctl_format_bytes(t->charged_bytes, a));
		if (t->quota_bytes)
			(void)fprintf(out, "%12s %6.1f %%\n",
				      skvcctl_format_bytes(t->quota_bytes, b),
				      percent(t->charged_bytes, t->quota_bytes));
		else
			(void)fprintf(out, "%12s %8s\n", "none", "-");
	}
	if (p->tenants_count > rows_max)
		(void)fprintf(out, "  ... %zu more: skvcctl tenants\n",
			      p->tenants_count - rows_max);
}

static void print_session_rows(const struct skvcctl_picture *p, size_t rows_max, FILE *out)
{
	(void)fprintf(out, "%-9s %7s %-16s %-9s %8s %8s %8s %5s\n", "Session", "pid", "tenant",
		      "role", "stored", "loaded", "asked", "jobs");
	for (size_t i = 0; i < p->sessions_count && i < rows_max; i++) {
		const struct skvcctl_session *s = &p->sessions[i];

		(void)fprintf(out,
			      "  %-7" PRIu32 " %7" PRIu32 " %-16.16s %-9s %8" PRIu64 " %8" PRIu64
			      " %8" PRIu64 " %5" PRIu32 "  %s\n",
			      s->id, s->pid, s->tenant, s->role, s->store_blocks, s->load_blocks,
			      s->lookup_blocks, s->jobs, s->name);
	}
	if (p->sessions_count > rows_max)
		(void)fprintf(out, "  ... %zu more: skvcctl sessions\n",
			      p->sessions_count - rows_max);
}

void skvcctl_print_stats(const struct skvcctl_picture *p, FILE *out)
{
	(void)fprintf(out,
		      "skvcd %s   health: %s   %" PRIu64 " sessions   %" PRIu64 " jobs   %" PRIu64
		      " leases\n\n",
		      p->version, p->health, GAUGE(p, "sessions"), GAUGE(p, "jobs"),
		      GAUGE(p, "leases"));
	print_capacity(p, out);
	print_traffic(p, out);
	print_latency(p, out);
	print_refusals(p, out);
	if (p->tenants_count) {
		(void)fprintf(out, "\n");
		print_tenant_rows(p, TABLE_ROWS, out);
	}
	if (p->sessions_count) {
		(void)fprintf(out, "\n");
		print_session_rows(p, TABLE_ROWS, out);
	}
}

void skvcctl_print_namespaces(const struct skvcctl_picture *p, FILE *out)
{
	char a[16], b[16], c[16], d[16];

	if (!p->namespaces_count)
		(void)fprintf(out, "No namespace was opened yet.\n");
	for (size_t i = 0; i < p->namespaces_count; i++) {
		const struct skvcctl_namespace *n = &p->namespaces[i];

		(void)fprintf(out, "%s%" PRIu32 "  %s\n", i ? "\n" : "", n->id, n->model);
		(void)fprintf(out, "   tenant %s, digest %.16s\n", n->tenant, n->digest);
		(void)fprintf(out, "   block: %" PRIu32 " tokens, %" PRIu32 " segments, %s raw\n",
			      n->block_tokens, n->segments_count,
			      skvcctl_format_bytes(n->block_raw_bytes, a));
		(void)fprintf(out, "   held:  %" PRIu64 " blocks, %s as %s, ratio %s\n", n->blocks,
			      skvcctl_format_bytes(n->raw_bytes, b),
			      skvcctl_format_bytes(n->coded_bytes, c),
			      format_ratio(n->raw_bytes, n->coded_bytes, d));
		(void)fprintf(out, "   asked: %" PRIu64 " blocks, %.1f %% hit\n",
			      n->hits + n->misses, percent(n->hits, n->hits + n->misses));
		if (n->profile_version)
			(void)fprintf(out, "   profile %" PRIu32 ", %.3f bits a scalar expected\n",
				      n->profile_version, (double)n->profile_bits_milli / 1000.0);
		else
			(void)fprintf(out, "   no profile yet\n");
	}
}

void skvcctl_print_profiles(const struct skvcctl_picture *p, FILE *out)
{
	char size[16];

	if (!p->profiles_count)
		(void)fprintf(out, "No namespace was opened yet.\n");
	for (size_t i = 0; i < p->profiles_count; i++) {
		const struct skvcctl_profile *f = &p->profiles[i];

		if (!i || f->ns != p->profiles[i - 1].ns)
			(void)fprintf(out, "%s%" PRIu32 "  %s, tenant %s\n", i ? "\n" : "", f->ns,
				      f->model, f->tenant);
		if (!f->version) {
			(void)fprintf(out, "   no profile yet: %s\n", f->state);
			continue;
		}
		(void)fprintf(out, "   %" PRIu32 "  %s  ", f->version, f->digest);
		if (f->lookback)
			(void)fprintf(out,
				      "layer, looks back %" PRIu32 ", %" PRIu32 " rotary pairs",
				      f->lookback - 1, f->rotary_pairs);
		else
			(void)fprintf(out, "channel");
		if (f->model_part)
			(void)fprintf(out, ", model (%s)", skvcctl_model_part(f));
		(void)fprintf(out, ", %s, %s\n", skvcctl_format_bytes(f->bytes, size), f->state);
		(void)fprintf(out,
			      "      fitted on %" PRIu64 " tokens, %" PRIu64
			      " blocks, %.3f bits a scalar expected",
			      f->tokens, f->blocks, (double)f->expected_milli / 1000.0);
		if (f->measured_milli)
			(void)fprintf(out, ", %.3f measured", (double)f->measured_milli / 1000.0);
		(void)fprintf(out, "\n");
	}
}

void skvcctl_print_sessions(const struct skvcctl_picture *p, FILE *out)
{
	if (!p->sessions_count)
		(void)fprintf(out, "Nobody is connected.\n");
	else
		print_session_rows(p, p->sessions_count, out);
}

void skvcctl_print_tenants(const struct skvcctl_picture *p, FILE *out)
{
	if (!p->tenants_count)
		(void)fprintf(out, "Nobody has connected yet.\n");
	else
		print_tenant_rows(p, p->tenants_count, out);
}

void skvcctl_print_models(const struct skvcctl_picture *p, FILE *out)
{
	if (!p->models_count)
		(void)fprintf(out, "No model was added.\n");
	for (size_t i = 0; i < p->models_count; i++) {
		const struct skvcctl_model *m = &p->models[i];

		(void)fprintf(out, "%s  %s  %s\n", m->name, m->state, m->folder);
		if (m->layers)
			(void)fprintf(out,
				      "   digest %.16s, %" PRIu32 " layers, vocabulary of %" PRIu32
				      "\n",
				      m->digest, m->layers, m->vocab);
		if (m->err[0])
			(void)fprintf(out, "   %s\n", m->err);
	}
}
