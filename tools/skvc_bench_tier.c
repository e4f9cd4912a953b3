/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_tier.c - `skvc-bench tier`: GPU memory -> the daemon's host pool -> GPU memory, from an engine's
 * process, beside raw copies of the same bytes between GPU and pinned host memory in the same rounds.
 *
 * All rates are of raw bytes, from the median call.  Keys are new in each round and dropped after it, so that
 * nothing is stored twice.
 */
#include "tools/output.h"
#include "tools/skvc_bench.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench_offload.h"
#include "tools/bench_samples.h"

#define ROUNDS_MIN 24u
#define ROUNDS_MAX 400u
#define ROUND_BYTES (8ull << 30) /* of a size, all rounds */
#define WARM_ROUNDS 3u
#define SIZES 4u

enum measured {
	STORE_FREE,	/* until the source pages may be reused */
	STORE_DONE,	/* until the blocks can be found */
	LOAD,		/* with a lease */
	LOOKUP,		/* for that lease */
	RAW_OUT,	/* GPU to pinned memory, one copy */
	RAW_OUT_BLOCKS, /* ... one for each block */
	RAW_IN,
	RAW_IN_BLOCKS,
	MEASURED_COUNT
};

static const char *const measured_names[MEASURED_COUNT] = {
	"store_source_free", "store_committed", "load",	  "lookup",
	"raw_out",	     "raw_out_blocks",	"raw_in", "raw_in_blocks",
};

struct tier_size {
	uint32_t count; /* blocks of a call */
	uint32_t verified;
	uint64_t raw_bytes, stored_bytes; /* of all stores */
	struct samples s[MEASURED_COUNT];
};

struct tier_bench {
	struct offload_options o;
	uint32_t rounds; /* 0: by size */
	bool json;
	struct offload f;
	struct skvc_key *keys; /* owned, o.blocks */
	struct tier_size sizes[SIZES];
	uint32_t sizes_count;
};

/* ---- measuring ---- */

static int round_raw(struct tier_bench *b, struct tier_size *z, uint32_t first, bool sampled)
{
	static const struct {
		enum measured what;
		bool to_device, blocks;
	} copies[] = {
		{ RAW_OUT, false, false },
		{ RAW_OUT_BLOCKS, false, true },
		{ RAW_IN, true, false },
		{ RAW_IN_BLOCKS, true, true },
	};
	int r = 0;

	for (unsigned i = 0; i < sizeof(copies) / sizeof(copies[0]) && r == 0; i++) {
		uint64_t ns;

		r = offload_copy(&b->f, copies[i].to_device, first, z->count,
				 copies[i].blocks ? z->count : 1u, &ns);
		if (r == 0 && sampled)
			samples_add(&z->s[copies[i].what], ns);
	}
	return r;
}

static int round_store(struct tier_bench *b, struct tier_size *z, uint32_t first, bool sampled)
{
	struct offload_times times = { 0 };
	struct skvc_completion c = { 0 };
	int r;

	offload_keys(&b->f, b->keys, z->count);
	r = offload_store(&b->f, b->keys, first, z->count, &times, &c);
	if (r < 0 || !sampled)
		return r;
	samples_add(&z->s[STORE_FREE], times.source_free_ns);
	samples_add(&z->s[STORE_DONE], times.done_ns);
	z->raw_bytes += c.raw_bytes;
	z->stored_bytes += c.stored_bytes;
	return 0;
}

/* Destinations mirror the sources: block i goes to destination i. */
static int round_load(struct tier_bench *b, struct tier_size *z, uint32_t first, bool sampled)
{
	uint64_t lease, lookup_ns, load_ns;
	int r = offload_lookup(&b->f, b->keys, z->count, &lease, &lookup_ns);

	if (r == 0 && !sampled)
		r = offload_clear(&b->f, first, z->count);
	if (r == 0)
		r = offload_load(&b->f, lease, first, z->count, &load_ns);
	if (r == 0 && !sampled) {
		r = offload_verify(&b->f, first, first, z->count);
		z->verified += r == 0 ? z->count : 0;
	}
	if (r == 0)
		r = offload_release(&b->f, lease);
	if (r == 0 && sampled) {
		samples_add(&z->s[LOOKUP], lookup_ns);
		samples_add(&z->s[LOAD], load_ns);
	}
	return r;
}

static uint32_t rounds_of(const struct tier_bench *b, uint32_t count)
{
	const uint64_t rounds = ROUND_BYTES / (count * b->f.raw_bytes);

	if (b->rounds)
		return b->rounds;
	return rounds < ROUNDS_MIN   ? ROUNDS_MIN
	       : rounds > ROUNDS_MAX ? ROUNDS_MAX
				     : (uint32_t)rounds;
}

/* The first rounds warm up and verify; the others are measured. */
static int size_measure(struct tier_bench *b, struct tier_size *z)
{
	const uint32_t rounds = rounds_of(b, z->count);
	int r = 0;

	for (unsigned i = 0; i < MEASURED_COUNT && r == 0; i++)
		r = samples_init(&z->s[i], rounds);
	for (uint32_t i = 0; i < WARM_ROUNDS + rounds && r == 0; i++) {
		const uint32_t first = i % (b->o.blocks / z->count) * z->count;
		const bool sampled = i >= WARM_ROUNDS;

		r = round_store(b, z, first, sampled);
		if (r == 0)
			r = round_load(b, z, first, sampled);
		if (r == 0)
			r = offload_drop(&b->f, b->keys, z->count);
		if (r == 0)
			r = round_raw(b, z, first, sampled);
	}
	for (unsigned i = 0; i < MEASURED_COUNT; i++)
		samples_sort(&z->s[i]);
	return r;
}

static int bench_run(struct tier_bench *b)
{
	static const uint32_t counts[SIZES] = { 1, 8, 64, 512 };
	int r = offload_start(&b->f, &b->o);

	b->keys = calloc(b->o.blocks, sizeof(*b->keys));
	if (r == 0 && !b->keys)
		r = report_fail(&b->f.r, -ENOMEM, "out of memory");
	if (r == 0)
		r = offload_fit(&b->f);
	for (unsigned i = 0; i < SIZES && r == 0; i++) {
		if (counts[i] > b->o.blocks)
			continue;
		b->sizes[b->sizes_count].count = counts[i];
		r = size_measure(b, &b->sizes[b->sizes_count++]);
	}
	return r;
}

/* ---- result ---- */

static double p50_us(const struct tier_size *z, enum measured what)
{
	return (double)samples_percentile(&z->s[what], 50) * 1e-3;
}

static double p99_us(const struct tier_size *z, enum measured what)
{
	return (double)samples_percentile(&z->s[what], 99) * 1e-3;
}

static double rate(const struct tier_bench *b, const struct tier_size *z, enum measured what)
{
	const double us = p50_us(z, what);

	return us > 0 ? (double)z->count * (double)b->f.raw_bytes * 1e-3 / us : 0;
}

/* Against the better of the two ways to copy, each time. */
static double raw_rate(const struct tier_bench *b, const struct tier_size *z, enum measured one)
{
	const double whole = rate(b, z, one), blocks = rate(b, z, (enum measured)(one + 1));

	return whole > blocks ? whole : blocks;
}

static double against(double ours, double raw)
{
	return raw > 0 ? ours / raw : 0;
}

static void print_text(const struct tier_bench *b)
{
	(void)printf("GPU         %s; blocks of %.0f bytes, %u segments, %s\n", b->f.gpu.model,
		     (double)b->f.raw_bytes, b->f.tile.g.segments_count, b->f.kv.dtype);
	(void)printf("profile     after %.0f blocks, ratio %.3f\n\n", (double)b->f.fitted_blocks,
		     b->f.ratio);
	(void)printf("%-20s %10s %10s %8s   (rounds, restored byte-exact)\n", "blocks a call",
		     "p50 us", "p99 us", "GB/s");
	for (uint32_t i = 0; i < b->sizes_count; i++) {
		const struct tier_size *z = &b->sizes[i];

		for (unsigned m = 0; m < MEASURED_COUNT; m++) {
			(void)printf("%4u %-17s %9.1f %10.1f", z->count, measured_names[m],
				     p50_us(z, m), p99_us(z, m));
			if (m != LOOKUP)
				(void)printf(" %8.2f", rate(b, z, m));
			(void)printf(m == 0 ? "   (%u, %u)\n" : "\n", z->s[0].count, z->verified);
		}
		(void)printf(
			"     store / raw %.2f (committed %.2f), load / raw %.2f, ratio %.3f\n\n",
			against(rate(b, z, STORE_FREE), raw_rate(b, z, RAW_OUT)),
			against(rate(b, z, STORE_DONE), raw_rate(b, z, RAW_OUT)),
			against(rate(b, z, LOAD), raw_rate(b, z, RAW_IN)),
			z->stored_bytes ? (double)z->raw_bytes / (double)z->stored_bytes : 0);
	}
	(void)printf("load p50 of one block minus a raw copy of it: %.1f us\n",
		     p50_us(&b->sizes[0], LOAD) - p50_us(&b->sizes[0], RAW_IN));
}

static void add_size(const struct tier_bench *b, const struct tier_size *z, cJSON *list)
{
	cJSON *o = cJSON_CreateObject();

	(void)cJSON_AddItemToArray(list, o);
	(void)cJSON_AddNumberToObject(o, "blocks", z->count);
	(void)cJSON_AddNumberToObject(o, "rounds", z->s[0].count);
	(void)cJSON_AddNumberToObject(o, "verified_blocks", z->verified);
	(void)cJSON_AddNumberToObject(
		o, "ratio", z->stored_bytes ? (double)z->raw_bytes / (double)z->stored_bytes : 0);
	for (unsigned m = 0; m < MEASURED_COUNT; m++) {
		cJSON *one = cJSON_AddObjectToObject(o, measured_names[m]);

		(void)cJSON_AddNumberToObject(one, "p50_us", p50_us(z, m));
		(void)cJSON_AddNumberToObject(one, "p99_us", p99_us(z, m));
		if (m != LOOKUP)
			(void)cJSON_AddNumberToObject(one, "gbps", rate(b, z, m));
	}
	(void)cJSON_AddNumberToObject(o, "store_against_raw",
				      against(rate(b, z, STORE_FREE), raw_rate(b, z, RAW_OUT)));
	(void)cJSON_AddNumberToObject(o, "store_committed_against_raw",
				      against(rate(b, z, STORE_DONE), raw_rate(b, z, RAW_OUT)));
	(void)cJSON_AddNumberToObject(o, "load_against_raw",
				      against(rate(b, z, LOAD), raw_rate(b, z, RAW_IN)));
}

static int print_json(const struct tier_bench *b)
{
	cJSON *root = cJSON_CreateObject(), *list;

	(void)cJSON_AddStringToObject(root, "benchmark", "tier");
	(void)cJSON_AddStringToObject(root, "version", skvc_version());
	(void)cJSON_AddStringToObject(root, "file", b->o.kv);
	(void)cJSON_AddStringToObject(root, "gpu", b->f.gpu.model);
	(void)cJSON_AddStringToObject(root, "dtype", b->f.kv.dtype);
	(void)cJSON_AddNumberToObject(root, "block_bytes", (double)b->f.raw_bytes);
	(void)cJSON_AddNumberToObject(root, "block_tokens", b->f.tile.g.block_tokens);
	(void)cJSON_AddBoolToObject(root, "events", b->o.events);
	(void)cJSON_AddNumberToObject(root, "fitted_blocks", (double)b->f.fitted_blocks);
	(void)cJSON_AddNumberToObject(root, "fitted_ratio", b->f.ratio);
	(void)cJSON_AddNumberToObject(root, "load_minus_raw_us",
				      p50_us(&b->sizes[0], LOAD) - p50_us(&b->sizes[0], RAW_IN));
	list = cJSON_AddArrayToObject(root, "sizes");
	for (uint32_t i = 0; i < b->sizes_count; i++)
		add_size(b, &b->sizes[i], list);
	return output_json(root, stdout);
}

/* ---- the program ---- */

static const char usage_text[] =
	"Usage: skvc-bench tier --kv FILE [OPTION]...\n"
	"\n"
	"Stores blocks from GPU memory and loads them back through a skvcd, in calls of 1, 8, 64 and 512\n"
	"blocks, beside raw copies of the same bytes.  Loaded bytes are compared.  Starts a skvcd of its\n"
	"own unless told of one.\n"
	"\n" OFFLOAD_OPTIONS_TEXT "  --blocks N           the largest call, 1 to 4096 (512)\n"
	"  --rounds N           of each size, instead of what takes a few seconds\n"
	"  --json               one JSON object\n";

/* 0, or an exit status; -1: help was printed. */
static int options_parse(struct tier_bench *b, int argc, char **argv)
{
	static const struct option longs[] = {
		OFFLOAD_LONG_OPTIONS,
		{ "blocks", required_argument, NULL, 'b' },
		{ "rounds", required_argument, NULL, 'n' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	optind = 0; /* the caller's argv is not ours to go on with */
	while ((c = getopt_long(argc, argv, "ho:", longs, NULL)) != -1) {
		switch (c) {
		case 'b':
			if (bench_count_parse(optarg, 1, SKVC_BLOCKS_MAX, &b->o.blocks) < 0)
				return bench_usage_error("tier", "not 1 to 4096 blocks: ", optarg);
			break;
		case 'n':
			if (bench_count_parse(optarg, 1, 1000000, &b->rounds) < 0)
				return bench_usage_error("tier",
							 "not a number of rounds: ", optarg);
			break;
		case 'j':
			b->json = true;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return -1;
		default:
			if (offload_option(&b->o, c, optarg, "tier") < 0)
				return 2;
		}
	}
	if (optind < argc)
		return bench_usage_error("tier", "too many arguments: ", argv[optind]);
	return b->o.kv ? 0 : bench_usage_error("tier", "--kv FILE is missing", "");
}

int bench_tier_main(int argc, char **argv)
{
	struct tier_bench b = { .o = offload_defaults() };
	int r = options_parse(&b, argc, argv);

	if (r != 0)
		return r < 0 ? 0 : r;
	r = bench_run(&b);
	if (r < 0) {
		(void)fprintf(stderr, "%s\n", b.f.err[0] ? b.f.err : strerror(-r));
		demo_daemon_print_log(&b.f.daemon);
	} else if (b.json) {
		r = print_json(&b);
	} else {
		print_text(&b);
	}
	offload_stop(&b.f);
	for (unsigned i = 0; i < SIZES; i++)
		for (unsigned m = 0; m < MEASURED_COUNT; m++)
			samples_deinit(&b.sizes[i].s[m]);
	free(b.keys);
	return r < 0;
}
