/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_data_table.c - what came of `skvc-bench replay --kv`, for people and for programs.
 */
#include <cjson/cJSON.h>
#include <errno.h>

#include "tools/output.h"
#include "tools/replay_data.h"

static double of(double a, double b)
{
	return b > 0 ? a / b : 0;
}

/* GB of raw bytes a second of calls. */
static double rate(uint64_t blocks, uint64_t block_bytes, double seconds)
{
	return of((double)blocks * (double)block_bytes / 1e9, seconds);
}

/* What is told of a run, in the order in which it is told. */
static const struct row {
	const char *text, *name;
	int digits; /* behind the point */
} rows[] = {
	{ "host pool, MiB", "pool_mib", 0 },
	{ "NVMe, MiB", "nvme_mib", 0 },
	{ "found in memory", "hit_ratio_host", 4 },
	{ "found on NVMe", "hit_ratio_nvme", 4 },
	{ "missed", "miss_ratio", 4 },
	{ "blocks compared", "verified_blocks", 0 },
	{ "blocks lost", "lost_blocks", 0 },
	{ "blocks refused", "refused_blocks", 0 },
	{ "ratio", "ratio", 3 },
	{ "write amplification", "write_amplification", 3 },
	{ "lookup p50, us", "lookup_p50_us", 0 },
	{ "lookup p99, us", "lookup_p99_us", 0 },
	{ "load p50, ms", "load_host_p50_ms", 2 },
	{ "load p99, ms", "load_host_p99_ms", 2 },
	{ "  with NVMe p50", "load_nvme_p50_ms", 2 },
	{ "  with NVMe p99", "load_nvme_p99_ms", 2 },
	{ "store p50, ms", "store_p50_ms", 2 },
	{ "store p99, ms", "store_p99_ms", 2 },
	{ "restored GB/s", "load_gbps", 3 },
	{ "  from memory", "load_host_gbps", 3 },
	{ "  with NVMe", "load_nvme_gbps", 3 },
	{ "stored GB/s (or there already)", "store_gbps", 3 },
	{ "read ahead", "read_ahead_blocks", 0 },
	{ "  and used", "read_ahead_used_blocks", 0 },
	{ "seconds", "seconds", 1 },
	{ "  for room", "waited_seconds", 1 },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

/* In the order of rows[]. */
static void values_of(const struct replay_data_result *r, double value[ROWS])
{
	const double asked = (double)r->asked, found = (double)(r->host + r->nvme);
	const double values[ROWS] = {
		(double)r->pool_bytes / (1 << 20),
		(double)r->nvme_bytes / (1 << 20),
		of((double)r->host, asked),
		of((double)r->nvme, asked),
		1 - of(found, asked),
		(double)r->verified,
		(double)r->lost,
		(double)r->refused,
		of((double)r->stored_raw_bytes, (double)r->stored_bytes),
		of((double)r->nvme_written_bytes, (double)r->nvme_first_bytes),
		r->lookup.p50_us,
		r->lookup.p99_us,
		r->load_host.p50_us / 1e3,
		r->load_host.p99_us / 1e3,
		r->load_nvme.p50_us / 1e3,
		r->load_nvme.p99_us / 1e3,
		r->store.p50_us / 1e3,
		r->store.p99_us / 1e3,
		rate(r->load_host_blocks + r->load_nvme_blocks, r->block_bytes,
		     r->load_host.sum_s + r->load_nvme.sum_s),
		rate(r->load_host_blocks, r->block_bytes, r->load_host.sum_s),
		rate(r->load_nvme_blocks, r->block_bytes, r->load_nvme.sum_s),
		rate(r->stored, r->block_bytes, r->store.sum_s),
		(double)r->ahead,
		(double)r->ahead_used,
		r->seconds,
		r->waited_s,
	};

	for (size_t i = 0; i < ROWS; i++)
		value[i] = values[i];
}

void replay_data_print(const struct replay_data_result *r, uint32_t count, FILE *out)
{
	double value[ROWS];

	(void)fprintf(out, "%-20s", "capacity, %");
	for (uint32_t c = 0; c < count; c++)
		(void)fprintf(out, " %9g", r[c].percent);
	(void)fprintf(out, "\n");
	for (size_t i = 0; i < ROWS; i++) {
		(void)fprintf(out, "%-20s", rows[i].text);
		for (uint32_t c = 0; c < count; c++) {
			values_of(&r[c], value);
			(void)fprintf(out, " %9.*f", rows[i].digits, value[i]);
		}
		(void)fprintf(out, "\n");
	}
	(void)fprintf(out,
		      "\nCapacities are of the raw bytes of all different blocks, of %llu KiB "
		      "each; GB are of raw bytes.\n",
		      (unsigned long long)r->block_bytes >> 10);
}

int replay_data_json(const struct replay_data_result *r, uint32_t count, FILE *out)
{
	cJSON *j = cJSON_CreateObject(), *runs = cJSON_AddArrayToObject(j, "runs");
	double value[ROWS];

	cJSON_AddNumberToObject(j, "block_bytes", (double)r->block_bytes);
	for (uint32_t c = 0; c < count; c++) {
		cJSON *run = cJSON_CreateObject();

		cJSON_AddNumberToObject(run, "capacity_percent", r[c].percent);
		cJSON_AddNumberToObject(run, "blocks", (double)r[c].asked);
		cJSON_AddNumberToObject(run, "hits_host", (double)r[c].host);
		cJSON_AddNumberToObject(run, "hits_nvme", (double)r[c].nvme);
		cJSON_AddNumberToObject(run, "stored_blocks", (double)r[c].stored);
		values_of(&r[c], value);
		for (size_t i = 0; i < ROWS; i++)
			cJSON_AddNumberToObject(run, rows[i].name, value[i]);
		cJSON_AddItemToArray(runs, run);
	}
	return output_json(j, out);
}
