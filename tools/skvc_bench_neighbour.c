/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_neighbour.c - `skvc-bench neighbour`: what it costs an engine when KV blocks are stored and loaded
 * on its GPU all the time, as fast as the bus goes.  The engine is a process of its own that computes and
 * times its steps; this one offloads through a daemon, or only copies, for comparison.
 */
#include "tools/output.h"
#include "tools/skvc_bench.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench_engine.h"
#include "tools/bench_offload.h"
#include "tools/progress.h"

#define CALL_BLOCKS 64u	     /* of a store or a load */
#define CALLS 4u	     /* of each in flight */
#define BEFORE_NS 300000000u /* the load is on before the engine's clock runs */
#define ANSWER_NS_MAX 60000000000u
#define DONE_MAX 32u

enum mode {
	ALONE,
	COPY_OUT,
	COPY_IN,
	COPY_BOTH,
	STORE,
	LOAD,
	STORE_LOAD,
	ALONE_AGAIN, /* what the machine itself drifts */
	MODE_COUNT
};

static const char *const mode_names[MODE_COUNT] = {
	"alone", "copy_out", "copy_in",	       "copy_both",
	"store", "load",     "store_and_load", "alone_again",
};

enum call_state { IDLE, STORING, DROPPING, LOADING };

struct call { /* IDLE -> STORING -> DROPPING -> IDLE; IDLE -> LOADING -> IDLE */
	enum call_state state;
	bool loads;
	uint32_t first; /* of its blocks */
	uint64_t job;
	struct skvc_key *keys; /* owned; of a store */
};

struct outcome {
	struct engine_steps steps;
	double out_gbps, in_gbps; /* of raw bytes, meanwhile */
};

struct neighbour_bench {
	struct offload_options o;
	double seconds;
	bool json, mps;
	struct engine engine;
	struct offload f;
	uint32_t call_blocks;
	struct call calls[2u * CALLS]; /* stores, then loads */
	uint64_t lease;		       /* what is loaded, again and again */
	uint64_t out_bytes, in_bytes;  /* moved so far */
	struct outcome outcomes[MODE_COUNT][ENGINE_LOOP_COUNT];
};

/* ---- the load on the bus ---- */

static int call_begin(struct neighbour_bench *b, struct call *c)
{
	int r;

	if (c->loads) {
		c->state = LOADING;
		return offload_load_begin(&b->f, b->lease, c->first, b->call_blocks, &c->job);
	}
	c->state = STORING;
	offload_keys(&b->f, c->keys, b->call_blocks);
	r = offload_store_begin(&b->f, c->keys, c->first, b->call_blocks, &c->job);
	return r;
}

static int call_done(struct neighbour_bench *b, struct call *c, const struct skvc_completion *done)
{
	int r;

	switch (c->state) {
	case STORING:
		r = offload_check(&b->f, done, b->call_blocks, "store");
		if (r < 0)
			return r;
		b->out_bytes += b->call_blocks * b->f.raw_bytes;
		c->state = DROPPING;
		return offload_drop_begin(&b->f, c->keys, b->call_blocks, &c->job);
	case LOADING:
		r = offload_check(&b->f, done, b->call_blocks, "load");
		b->in_bytes += b->call_blocks * b->f.raw_bytes;
		c->state = IDLE;
		return r;
	case DROPPING:
		c->state = IDLE;
		return done->res < 0
			       ? report_fail(&b->f.r, done->res, "drop: %s", strerror(-done->res))
			       : 0;
	case IDLE:
		break;
	}
	return report_fail(&b->f.r, -EPROTO, "a completion of no call");
}

static int calls_harvest(struct neighbour_bench *b)
{
	struct skvc_completion done[DONE_MAX];
	int n = skvc_poll(b->f.session, done, DONE_MAX), r = 0;

	if (n < 0)
		return bench_session_fail(&b->f.r, n, "skvc_poll", b->f.session);
	for (int i = 0; i < n && r == 0; i++) {
		if (done[i].event != SKVC_EVENT_DONE)
			continue;
		for (unsigned k = 0; k < 2u * CALLS; k++)
			if (b->calls[k].state != IDLE && b->calls[k].job == done[i].job) {
				r = call_done(b, &b->calls[k], &done[i]);
				break;
			}
	}
	if (n == 0)
		(void)sched_yield();
	return r;
}

/* Both directions at once when both are asked for; a few pieces in each queue. */
static int copies_turn(struct neighbour_bench *b, bool out, bool in)
{
	const uint64_t bytes = b->call_blocks * b->f.raw_bytes;
	const uint64_t half = b->o.blocks * b->f.raw_bytes;
	struct bench_gpu *g = &b->f.gpu;
	int r = 0;

	for (unsigned i = 0; i < CALLS && r == 0; i++) {
		const uint64_t off = b->calls[i].first * b->f.raw_bytes;

		if (out)
			r = g->ops->copy(g, false, b->f.memory.address + off,
					 b->f.host + half + off, bytes);
		if (in && r == 0)
			r = g->ops->copy(g, true, b->f.memory.address + half + off, b->f.host + off,
					 bytes);
	}
	if (r == 0 && out)
		r = g->ops->sync(g, false);
	if (r == 0 && in)
		r = g->ops->sync(g, true);
	b->out_bytes += out ? CALLS * bytes : 0;
	b->in_bytes += in ? CALLS * bytes : 0;
	return r;
}

/* A little of the load; never waits for long. */
static int turn(struct neighbour_bench *b, enum mode mode)
{
	const bool stores = mode == STORE || mode == STORE_LOAD;
	const bool loads = mode == LOAD || mode == STORE_LOAD;
	int r = 0;

	if (mode == COPY_OUT || mode == COPY_IN || mode == COPY_BOTH)
		return copies_turn(b, mode != COPY_IN, mode != COPY_OUT);
	for (unsigned i = 0; i < 2u * CALLS && r == 0; i++)
		if (b->calls[i].state == IDLE && (b->calls[i].loads ? loads : stores))
			r = call_begin(b, &b->calls[i]);
	return r == 0 && (stores || loads) ? calls_harvest(b) : r;
}

static int settle(struct neighbour_bench *b)
{
	const uint64_t until_ns = progress_now_ns() + ANSWER_NS_MAX;
	int r = 0;

	while (r == 0 && skvc_pending(b->f.session) > 0) {
		r = calls_harvest(b);
		if (r == 0 && progress_now_ns() > until_ns)
			r = report_fail(&b->f.r, -ETIMEDOUT, "a call does not complete");
	}
	return r;
}

/* ---- measuring ---- */

static int measure(struct neighbour_bench *b, enum mode mode, enum engine_loop loop)
{
	struct outcome *o = &b->outcomes[mode][loop];
	const bool quiet = mode == ALONE || mode == ALONE_AGAIN;
	uint64_t begin_ns = progress_now_ns(), out, in;
	int r = 0, answered = 0;
	double s;

	while (r == 0 && progress_now_ns() - begin_ns < BEFORE_NS && !quiet)
		r = turn(b, mode);
	if (r == 0)
		r = engine_begin(&b->engine, loop, b->seconds, &b->f.r);
	begin_ns = progress_now_ns();
	out = b->out_bytes;
	in = b->in_bytes;
	while (r == 0 && answered == 0) {
		r = turn(b, mode);
		if (r == 0)
			answered = engine_answer(&b->engine, quiet ? 10 : 0, &o->steps, &b->f.r);
		if (answered < 0)
			r = answered;
		if (r == 0 && progress_now_ns() - begin_ns > ANSWER_NS_MAX)
			r = report_fail(&b->f.r, -ETIMEDOUT, "the engine's process is stuck");
	}
	s = (double)(progress_now_ns() - begin_ns) * 1e-9;
	o->out_gbps = (double)(b->out_bytes - out) * 1e-9 / s;
	o->in_gbps = (double)(b->in_bytes - in) * 1e-9 / s;
	return r == 0 ? settle(b) : r;
}

/* The blocks that are loaded are stored once and stay under a lease. */
static int calls_prepare(struct neighbour_bench *b)
{
	struct offload_times times = { 0 };
	struct skvc_completion c = { 0 };
	struct skvc_key *keys;
	uint64_t ns;
	int r;

	b->call_blocks = b->o.blocks / CALLS < CALL_BLOCKS ? b->o.blocks / CALLS : CALL_BLOCKS;
	for (unsigned i = 0; i < 2u * CALLS; i++) {
		b->calls[i].loads = i >= CALLS;
		b->calls[i].first = i % CALLS * b->call_blocks;
		b->calls[i].keys = calloc(b->call_blocks, sizeof(struct skvc_key));
		if (!b->calls[i].keys)
			return report_fail(&b->f.r, -ENOMEM, "out of memory");
	}
	keys = b->calls[CALLS].keys;
	offload_keys(&b->f, keys, b->call_blocks);
	r = offload_store(&b->f, keys, 0, b->call_blocks, &times, &c);
	return r == 0 ? offload_lookup(&b->f, keys, b->call_blocks, &b->lease, &ns) : r;
}

static int bench_run(struct neighbour_bench *b)
{
	/* offload_start() empties f: errors of the engine's start go there all the same. */
	char err[REPORT_BYTES] = "";
	const struct report report = { "skvc-bench", err, sizeof(err) };
	int r = engine_start(&b->engine, b->o.which, b->o.kind != BENCH_GPU_CUDA, &report);

	if (r < 0) {
		memcpy(b->f.err, err, sizeof(b->f.err));
		return r;
	}
	r = offload_start(&b->f, &b->o);
	if (r == 0)
		r = offload_fit(&b->f);
	if (r == 0)
		r = calls_prepare(b);
	for (unsigned mode = 0; mode < MODE_COUNT; mode++)
		for (unsigned loop = 0; loop < ENGINE_LOOP_COUNT && r == 0; loop++)
			r = measure(b, mode, loop);
	/* What came in last, beside all that traffic, is what was stored. */
	if (r == 0)
		r = offload_verify(&b->f, 0, (CALLS - 1u) * b->call_blocks, b->call_blocks);
	return r;
}

/* ---- result ---- */

static double slowdown_percent(const struct neighbour_bench *b, unsigned mode, unsigned loop)
{
	return 100.0 *
	       (b->outcomes[mode][loop].steps.mean_us / b->outcomes[ALONE][loop].steps.mean_us -
		1.0);
}

static double p99_ratio(const struct neighbour_bench *b, unsigned mode, unsigned loop)
{
	return b->outcomes[mode][loop].steps.p99_us / b->outcomes[ALONE][loop].steps.p99_us;
}

static void print_text(const struct neighbour_bench *b)
{
	(void)printf("engine      %s; MPS %s; blocks of %.0f bytes, calls of %u, ratio %.3f\n\n",
		     b->engine.text, b->mps ? "on" : "off", (double)b->f.raw_bytes, b->call_blocks,
		     b->f.ratio);
	(void)printf("%-8s %-15s %9s %9s %9s %9s %7s %8s %8s\n", "loop", "beside", "mean us",
		     "p50 us", "p99 us", "slower %", "p99 x", "out GB/s", "in GB/s");
	for (unsigned loop = 0; loop < ENGINE_LOOP_COUNT; loop++)
		for (unsigned mode = 0; mode < MODE_COUNT; mode++) {
			const struct outcome *o = &b->outcomes[mode][loop];

			(void)printf("%-8s %-15s %9.1f %9.1f %9.1f %9.2f %7.3f %8.2f %8.2f\n",
				     engine_loop_names[loop], mode_names[mode], o->steps.mean_us,
				     o->steps.p50_us, o->steps.p99_us,
				     slowdown_percent(b, mode, loop), p99_ratio(b, mode, loop),
				     o->out_gbps, o->in_gbps);
		}
}

static void add_outcome(const struct neighbour_bench *b, unsigned mode, unsigned loop, cJSON *list)
{
	const struct outcome *o = &b->outcomes[mode][loop];
	cJSON *j = cJSON_CreateObject();

	(void)cJSON_AddItemToArray(list, j);
	(void)cJSON_AddStringToObject(j, "loop", engine_loop_names[loop]);
	(void)cJSON_AddStringToObject(j, "beside", mode_names[mode]);
	(void)cJSON_AddNumberToObject(j, "steps", (double)o->steps.count);
	(void)cJSON_AddNumberToObject(j, "mean_us", o->steps.mean_us);
	(void)cJSON_AddNumberToObject(j, "p50_us", o->steps.p50_us);
	(void)cJSON_AddNumberToObject(j, "p99_us", o->steps.p99_us);
	(void)cJSON_AddNumberToObject(j, "slowdown_percent", slowdown_percent(b, mode, loop));
	(void)cJSON_AddNumberToObject(j, "p99_ratio", p99_ratio(b, mode, loop));
	(void)cJSON_AddNumberToObject(j, "out_gbps", o->out_gbps);
	(void)cJSON_AddNumberToObject(j, "in_gbps", o->in_gbps);
}

static int print_json(const struct neighbour_bench *b)
{
	cJSON *root = cJSON_CreateObject(), *list;

	(void)cJSON_AddStringToObject(root, "benchmark", "neighbour");
	(void)cJSON_AddStringToObject(root, "version", skvc_version());
	(void)cJSON_AddStringToObject(root, "engine", b->engine.text);
	(void)cJSON_AddBoolToObject(root, "mps", b->mps);
	(void)cJSON_AddNumberToObject(root, "block_bytes", (double)b->f.raw_bytes);
	(void)cJSON_AddNumberToObject(root, "call_blocks", b->call_blocks);
	(void)cJSON_AddNumberToObject(root, "fitted_ratio", b->f.ratio);
	list = cJSON_AddArrayToObject(root, "loops");
	for (unsigned loop = 0; loop < ENGINE_LOOP_COUNT; loop++)
		for (unsigned mode = 0; mode < MODE_COUNT; mode++)
			add_outcome(b, mode, loop, list);
	return output_json(root, stdout);
}

/* ---- the program ---- */

static const char usage_text[] =
	"Usage: skvc-bench neighbour --kv FILE [OPTION]...\n"
	"\n"
	"Steps of an engine (another process, cuBLAS: SKVC_CUBLAS= or the loader's path) alone, and beside\n"
	"raw copies, stores and loads at full rate on the same GPU.\n"
	"\n" OFFLOAD_OPTIONS_TEXT "  --blocks N           in GPU memory, 4 to 4096 (256)\n"
	"  --seconds S          for each thing measured, 0.01 to 60 (2)\n"
	"  --mps                under CUDA MPS: fails when CUDA_MPS_PIPE_DIRECTORY is not set\n"
	"  --json               one JSON object\n";

/* 0, or an exit status; -1: help was printed. */
static int options_parse(struct neighbour_bench *b, int argc, char **argv)
{
	static const struct option longs[] = {
		OFFLOAD_LONG_OPTIONS,
		{ "blocks", required_argument, NULL, 'b' },
		{ "seconds", required_argument, NULL, 't' },
		{ "mps", no_argument, NULL, 'm' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	optind = 0; /* the caller's argv is not ours to go on with */
	while ((c = getopt_long(argc, argv, "ho:", longs, NULL)) != -1) {
		switch (c) {
		case 'b':
			if (bench_count_parse(optarg, CALLS, SKVC_BLOCKS_MAX, &b->o.blocks) < 0)
				return bench_usage_error("neighbour",
							 "not 4 to 4096 blocks: ", optarg);
			break;
		case 't':
			if (bench_seconds_parse(optarg, 0.01, &b->seconds) < 0)
				return bench_usage_error("neighbour",
							 "not 0.01 to 60 seconds: ", optarg);
			break;
		case 'm':
			b->mps = true;
			break;
		case 'j':
			b->json = true;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return -1;
		default:
			if (offload_option(&b->o, c, optarg, "neighbour") < 0)
				return 2;
		}
	}
	if (optind < argc)
		return bench_usage_error("neighbour", "too many arguments: ", argv[optind]);
	if (b->mps && !getenv("CUDA_MPS_PIPE_DIRECTORY"))
		return bench_usage_error(
			"neighbour", "--mps: no CUDA MPS here: CUDA_MPS_PIPE_DIRECTORY is not set",
			"");
	return b->o.kv ? 0 : bench_usage_error("neighbour", "--kv FILE is missing", "");
}

int bench_neighbour_main(int argc, char **argv)
{
	struct neighbour_bench b = { .o = offload_defaults(),
				     .seconds = 2,
				     .engine = { .to = -1 } };
	int r;

	b.o.blocks = CALLS * CALL_BLOCKS;
	r = options_parse(&b, argc, argv);
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
	engine_stop(&b.engine);
	if (b.f.o)
		offload_stop(&b.f);
	for (unsigned i = 0; i < 2u * CALLS; i++)
		free(b.calls[i].keys);
	return r < 0;
}
