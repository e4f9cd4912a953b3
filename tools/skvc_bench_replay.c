/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_replay.c - `skvc-bench replay`: a trace of requests against caches of several sizes, without data: how
 * many blocks the daemon's policy finds, beside LRU, S3-FIFO, ARC and what can be found at all; or with data, through
 * a daemon.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/model/report.h"
#include "tools/replay_data.h"
#include "tools/replay_table.h"
#include "tools/skvc_bench.h"

#define BLOCK_TOKENS 512u /* of the traces that are published */

struct options {
	const char *trace, *svg;
	uint64_t token_bytes; /* of a model's KV cache; 0: not known */
	uint32_t block_tokens, segment_blocks;
	bool json;
	struct replay_data_options data; /* used with --kv */
	const char *only_without;	 /* data: an option that was given; or NULL */
	uint32_t scale, requests;	 /* requests: 0: all */
};

/* KV cache of one token in bf16: layers * KV heads * head dim * 2 (K, V) * 2 bytes. */
static const struct model_size {
	const char *name;
	uint64_t token_bytes;
} model_sizes[] = {
	{ "llama-3.1-8b", 32 * 8 * 128 * 4 },
	{ "llama-3.1-70b", 80 * 8 * 128 * 4 },
	{ "qwen3-8b", 36 * 8 * 128 * 4 },
	{ "qwen3-32b", 64 * 8 * 128 * 4 },
};

static const char usage_text[] =
	"Usage: skvc-bench replay --trace FILE [OPTION]...\n"
	"\n"
	"  --trace FILE        requests, one JSON object a line, with a list hash_ids\n"
	"  --policy LIST       of lru, s3fifo, arc, default, optimum (all): `lru,default`\n"
	"  --capacity LIST     of the cache, in %% of the blocks of the trace (5,10,20,30,40,50)\n"
	"  --nvme-capacity P   a second tier behind it, in %% of the same\n"
	"  --segment-blocks N  blocks in a segment of its log (8)\n"
	"  --model-size NAME   for sizes in bytes: llama-3.1-8b, llama-3.1-70b, qwen3-8b, qwen3-32b\n"
	"  --block-tokens N    tokens of a block of the trace, for the same (512)\n"
	"  --block-bytes SIZE  bytes of a block, instead of both\n"
	"  --svg OUT           write a picture\n"
	"  --requests N        only the first N of the trace\n"
	"\n"
	"  --kv FILE           with data: real KV cache (safetensors), through a skvcd that is started; capacities\n"
	"                      and --nvme-capacity are then of the raw bytes of all different blocks\n"
	"  --scale N           a block has 1/N of the trace's tokens (32)\n"
	"  --geometry NAME     of a block: file (default), as in --kv; llama, qwen3-8b: made of it\n"
	"  --step N            an engine that asks for N blocks at a time; without: for all of a request\n"
	"  -o KEY=VALUE        another setting of that skvcd, section.key=value; may be repeated\n"
	"  --json              one JSON object\n";

/* ---- options ---- */

static int policies_parse(const char *text, bool wanted[REPLAY_POLICIES])
{
	for (uint32_t p = 0; p < REPLAY_POLICIES; p++)
		wanted[p] = false;
	while (*text) {
		size_t n = strcspn(text, ",");
		uint32_t p = 0;

		while (p < REPLAY_POLICIES && (strlen(replay_policies[p].name) != n ||
					       strncmp(replay_policies[p].name, text, n) != 0))
			p++;
		if (p == REPLAY_POLICIES)
			return -EINVAL;
		wanted[p] = true;
		text += n;
		if (*text == ',' && !*++text)
			return -EINVAL;
	}
	return 0;
}

static int percent_parse(const char *text, char **ret_end, double *ret_percent)
{
	double percent = strtod(text, ret_end);

	if (*ret_end == text || !(percent > 0 && percent <= 100))
		return -EINVAL;
	*ret_percent = percent;
	return 0;
}

static int capacities_parse(const char *text, struct replay_table *t)
{
	char *end;

	for (t->capacities = 0; t->capacities < REPLAY_CAPACITIES_MAX; text = end + 1) {
		if (percent_parse(text, &end, &t->percent[t->capacities++]) < 0)
			return -EINVAL;
		if (*end != ',')
			return *end ? -EINVAL : 0;
	}
	return -EINVAL;
}

static int model_parse(const char *name, struct options *o)
{
	for (size_t i = 0; i < sizeof(model_sizes) / sizeof(model_sizes[0]); i++)
		if (!strcmp(model_sizes[i].name, name)) {
			o->token_bytes = model_sizes[i].token_bytes;
			return 0;
		}
	return -EINVAL;
}

/* Those that only are of use with data. */
static int data_option(int c, const char *value, struct options *o)
{
	switch (c) {
	case OFFLOAD_KV:
	case OFFLOAD_GEOMETRY:
	case 'o':
		return offload_option(&o->data.offload, c, value, "replay") < 0 ? 2 : 0;
	case 'S':
		if (bench_count_parse(value, 1, 1u << 20, &o->scale) < 0)
			return bench_usage_error("replay", "no number: ", value);
		return 0;
	case 'B':
		if (bench_count_parse(value, 1, SKVC_BLOCKS_MAX, &o->data.step) < 0)
			return bench_usage_error("replay", "no number of blocks: ", value);
		return 0;
	default:
		return 2;
	}
}

static int option(int c, const char *value, struct options *o, struct replay_table *t)
{
	char *end;

	/* flat switch */
	switch (c) {
	case 't':
		o->trace = value;
		return 0;
	case 'p':
		if (policies_parse(value, t->wanted) < 0)
			return bench_usage_error("replay", "no list of policies: ", value);
		o->only_without = "--policy";
		return 0;
	case 'c':
		if (capacities_parse(value, t) < 0)
			return bench_usage_error("replay", "no list of percentages: ", value);
		return 0;
	case 'n':
		if (percent_parse(value, &end, &t->nvme_percent) < 0 || *end)
			return bench_usage_error("replay", "no percentage: ", value);
		return 0;
	case 'g':
		if (bench_count_parse(value, 1, 1u << 20, &o->segment_blocks) < 0)
			return bench_usage_error("replay", "no number of blocks: ", value);
		return 0;
	case 'm':
		if (model_parse(value, o) < 0)
			return bench_usage_error("replay", "unknown model: ", value);
		return 0;
	case 'k':
		if (bench_count_parse(value, 1, 1u << 20, &o->block_tokens) < 0)
			return bench_usage_error("replay", "no number of tokens: ", value);
		return 0;
	case 'b':
		if (bench_size_parse(value, &t->block_bytes) < 0)
			return bench_usage_error("replay", "no size: ", value);
		return 0;
	case 's':
		o->svg = value;
		o->only_without = "--svg";
		return 0;
	case 'r':
		if (bench_count_parse(value, 1, UINT32_MAX, &o->requests) < 0)
			return bench_usage_error("replay", "no number of requests: ", value);
		return 0;
	case 'j':
		o->json = true;
		return 0;
	case 'h':
		(void)fputs(usage_text, stdout);
		return -1;
	default:
		return data_option(c, value, o);
	}
}

/* 0, or the exit status; < 0: that is 0. */
static int options_parse(int argc, char **argv, struct options *o, struct replay_table *t)
{
	static const struct option longs[] = {
		{ "trace", required_argument, NULL, 't' },
		{ "policy", required_argument, NULL, 'p' },
		{ "capacity", required_argument, NULL, 'c' },
		{ "nvme-capacity", required_argument, NULL, 'n' },
		{ "segment-blocks", required_argument, NULL, 'g' },
		{ "model-size", required_argument, NULL, 'm' },
		{ "block-tokens", required_argument, NULL, 'k' },
		{ "block-bytes", required_argument, NULL, 'b' },
		{ "svg", required_argument, NULL, 's' },
		{ "requests", required_argument, NULL, 'r' },
		{ "kv", required_argument, NULL, OFFLOAD_KV },
		{ "geometry", required_argument, NULL, OFFLOAD_GEOMETRY },
		{ "scale", required_argument, NULL, 'S' },
		{ "step", required_argument, NULL, 'B' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c, r;

	optind = 0; /* the caller's argv is not ours to go on with */
	while ((c = getopt_long(argc, argv, "ho:", longs, NULL)) != -1) {
		r = option(c, optarg, o, t);
		if (r != 0)
			return r;
	}
	if (optind < argc)
		return bench_usage_error("replay", "too many arguments: ", argv[optind]);
	if (!o->trace)
		return bench_usage_error("replay", "--trace FILE is missing", "");
	if (o->data.offload.kv && o->only_without)
		return bench_usage_error("replay", "not with --kv: ", o->only_without);
	o->data.offload.block_tokens = o->block_tokens / o->scale;
	if (o->data.offload.kv && !o->data.offload.block_tokens)
		return bench_usage_error(
			"replay", "a block has no token: --scale is more than --block-tokens", "");
	if (!t->block_bytes)
		t->block_bytes = o->token_bytes * o->block_tokens;
	return 0;
}

/* ---- the runs ---- */

static uint32_t blocks_of(const struct replay_table *t, double percent)
{
	double blocks = floor(t->working_set * percent / 100);

	return blocks < 1 ? 1 : (uint32_t)blocks;
}

/*
 * What both tiers hold together is what the policy keeps at the sum of their sizes, and the host holds what
 * it keeps at the host's: so a block that leaves the host lies on NVMe until it leaves that.
 */
static int point_measure(const struct replay_trace *trace, const struct replay_policy *policy,
			 const struct replay_table *t, double percent, struct replay_point *p)
{
	int r;

	p->blocks = blocks_of(t, percent);
	r = policy->run(trace, p->blocks, &p->host);
	p->all = p->host;
	if (r == 0 && t->nvme_percent > 0) {
		p->nvme_blocks = blocks_of(t, t->nvme_percent);
		r = policy->run(trace, p->blocks + p->nvme_blocks, &p->all);
	}
	return r;
}

/* 0 also when the NVMe tier is too small for a log. */
static int log_measure(const struct replay_trace *trace, struct replay_table *t,
		       uint32_t segment_blocks)
{
	struct replay_log_options o = { .nvme_blocks = blocks_of(t, t->nvme_percent),
					.segment_blocks = segment_blocks };
	int r = 0;

	for (uint32_t c = 0; r == 0 && c < t->capacities; c++) {
		o.host_blocks = blocks_of(t, t->percent[c]);
		o.copy_percent = REPLAY_LOG_COPY_PERCENT;
		r = replay_log(trace, &o, &t->log[c]);
		o.copy_percent = 0;
		if (r == 0)
			r = replay_log(trace, &o, &t->no_copies[c]);
	}
	if (r == 0)
		t->segment_blocks = segment_blocks;
	return r == -EINVAL ? 0 : r;
}

static int promotions_measure(const struct replay_trace *trace, struct replay_table *t)
{
	int r = 0;

	for (uint32_t rule = 0; rule < REPLAY_PROMOTIONS; rule++)
		for (uint32_t c = 0; r == 0 && c < t->capacities; c++)
			r = replay_promote(trace, (enum replay_promotion)rule,
					   blocks_of(t, t->percent[c]),
					   blocks_of(t, t->nvme_percent), &t->promote[rule][c]);
	return r;
}

static int measure(const struct replay_trace *trace, struct replay_table *t,
		   uint32_t segment_blocks)
{
	int r = 0;

	t->requests = trace->requests;
	t->working_set = trace->blocks;
	t->named = trace->first[trace->requests];
	for (uint32_t p = 0; r == 0 && p < REPLAY_POLICIES; p++)
		for (uint32_t c = 0; r == 0 && t->wanted[p] && c < t->capacities; c++)
			r = point_measure(trace, &replay_policies[p], t, t->percent[c],
					  &t->point[p][c]);
	if (r == 0 && t->nvme_percent > 0)
		r = log_measure(trace, t, segment_blocks);
	if (r == 0 && t->wanted[REPLAY_DEFAULT] && t->nvme_percent > 0)
		r = promotions_measure(trace, t);
	if (r < 0)
		(void)fprintf(stderr, "skvc-bench replay: %s\n", strerror(-r));
	return r;
}

/* A daemon for each capacity. */
static int data_measure(const struct replay_trace *trace, const struct replay_table *t,
			struct options *o)
{
	struct replay_data_result result[REPLAY_CAPACITIES_MAX];
	char err[REPORT_BYTES] = "";
	int r = 0;

	o->data.nvme_percent = t->nvme_percent;
	for (uint32_t c = 0; r == 0 && c < t->capacities; c++) {
		o->data.percent = t->percent[c];
		r = replay_data_run(trace, &o->data, &result[c], err);
	}
	if (r < 0)
		(void)fprintf(stderr, "skvc-bench replay: %s\n", err);
	else if (o->json)
		r = replay_data_json(result, t->capacities, stdout);
	else
		replay_data_print(result, t->capacities, stdout);
	return r;
}

static void draw(void *user, FILE *out)
{
	replay_table_svg(user, out);
}

static int table_measure(const struct replay_trace *trace, struct replay_table *t,
			 const struct options *o)
{
	int r = measure(trace, t, o->segment_blocks);

	if (r == 0 && o->json)
		r = replay_table_json(t, stdout);
	else if (r == 0)
		replay_table_print(t, stdout);
	if (r == 0 && o->svg)
		r = bench_file_write(o->svg, draw, t);
	return r;
}

int bench_replay_main(int argc, char **argv)
{
	static struct replay_table t; /* of some 40 KiB */
	struct options o = { .block_tokens = BLOCK_TOKENS, .segment_blocks = 8, .scale = 32 };
	struct replay_trace trace;
	char err[REPORT_BYTES] = "";
	int r;

	t = (struct replay_table){ .capacities = 6, .percent = { 5, 10, 20, 30, 40, 50 } };
	for (uint32_t p = 0; p < REPLAY_POLICIES; p++)
		t.wanted[p] = true;
	o.data.offload = offload_defaults();
	o.data.offload.shape = KV_SHAPE_FILE;
	o.data.offload.unlocked = true;
	r = options_parse(argc, argv, &o, &t);
	if (r != 0)
		return r < 0 ? 0 : r;
	t.file = o.trace;
	r = replay_trace_read(&(struct report){ o.trace, err, sizeof(err) }, o.trace, &trace);
	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench: %s\n", err);
		return 1;
	}
	if (o.requests)
		replay_trace_cut(&trace, o.requests);
	r = o.data.offload.kv ? data_measure(&trace, &t, &o) : table_measure(&trace, &t, &o);
	replay_trace_deinit(&trace);
	return r == 0 ? 0 : 1;
}
