/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_frontier.c - `skvc-bench frontier`: every speculator on the same KV cache, its ratio against what its
 * guess costs of a prefill and against its speed on one core of this machine; as a table, JSON or a picture.
 * What is measured elsewhere (`model`, on another machine) comes from a file.
 */
#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bench_coder.h"
#include "tools/bench_cost.h"
#include "tools/bench_fit.h"
#include "tools/bench_frontier.h"
#include "tools/bench_model_point.h"
#include "gpu/model/file.h"
#include "gpu/model/report.h"
#include "tools/output.h"
#include "tools/skvc_bench.h"

#define PREVIOUS_MAX 6u
#define MODEL_TOKENS 4096u /* that `model` is fitted on */
#define DRAFT_STEP 2u	   /* from one number of layers back to the next */
#define POINTS_BYTES_MAX (1u << 20)

struct options {
	const char *kv, *calibrate, *model, *draft, *points, *svg;
	uint32_t previous_max, block_tokens;
	double seconds;
	bool json;
};

struct frontier_bench {
	struct options o;
	struct kv_dump kv, calibration;
	struct codec_profile *base; /* the statistics of `channel` */
	struct coder_bench c;
	double target_macs;
	struct frontier f;
	char title[256];
};

static void print_point(const struct frontier_point *p)
{
	(void)printf("%-22s %8.3f ", p->name, p->ratio);
	if (p->x >= 0)
		(void)printf("%8.4f ", p->x);
	else
		(void)printf("%8s ", "?");
	(void)printf("%14.4g %14.4g\n", p->encode_gbps, p->decode_gbps);
	(void)fflush(stdout); /* the next one may take a minute */
}

static void point_add(struct frontier_bench *b, const struct frontier_point *p)
{
	if (b->f.count == FRONTIER_POINTS_MAX)
		return;
	b->f.point[b->f.count++] = *p;
	if (!b->o.json)
		print_point(p);
}

static double rate(const struct frontier_bench *b, double s)
{
	return s > 0 ? (double)b->c.count * (double)b->kv.g.raw_bytes * 1e-9 / s : 0;
}

static int yardsticks_measure(struct frontier_bench *b)
{
	double raw = (double)b->c.count * (double)b->kv.g.raw_bytes;
	int r = coder_bench_memcpy(&b->c);

	if (r == 0)
		point_add(b, &(struct frontier_point){ .name = "raw",
						       .ratio = 1,
						       .encode_gbps = rate(b, b->c.memcpy_s),
						       .decode_gbps = rate(b, b->c.memcpy_s) });
	for (int level = 1; r == 0 && level <= 19; level += 18) {
		struct frontier_point p = { 0 };

		r = coder_bench_zstd(&b->c, level);
		(void)snprintf(p.name, sizeof(p.name), "zstd -%d, byte planes", level);
		p.ratio = raw / (double)b->c.zstd_total;
		p.encode_gbps = rate(b, b->c.zstd_encode_s);
		p.decode_gbps = rate(b, b->c.zstd_decode_s);
		if (r == 0)
			point_add(b, &p);
	}
	return r;
}

/* With the profile p, for the scales of the measured dump; p is the caller's. */
static int speculator_measure(struct frontier_bench *b, uint8_t speculator,
			      const struct codec_profile *p, const char *name)
{
	struct frontier_point at = { .x = 0 };
	uint64_t products = codec_profile_layer(p).products;
	int r;

	b->c.profile = p;
	b->c.speculator = speculator;
	r = coder_bench_codec(&b->c, false);
	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench frontier: %s: %s\n", name, strerror(-r));
		return r;
	}
	(void)snprintf(at.name, sizeof(at.name), "%s", name);
	at.ratio = (double)b->c.count * (double)b->kv.g.raw_bytes / (double)b->c.encoded_total;
	if (speculator == CODEC_SPEC_LAYER && products > 0)
		at.x = b->target_macs > 0 ? bench_cost_share(products, b->target_macs) : -1;
	at.encode_gbps = rate(b, b->c.encode_s);
	at.decode_gbps = rate(b, b->c.decode_s);
	point_add(b, &at);
	return 0;
}

static int speculators_measure(struct frontier_bench *b)
{
	struct codec_profile *p = NULL;
	char name[FRONTIER_NAME_BYTES];
	int r;

	/* No maps: only the channels' statistics are moved to the other scales. */
	r = bench_fit_channel(&b->calibration, b->calibration.blocks_count, &p);
	if (r == 0)
		r = bench_fit_rescale(&b->calibration, &b->kv, &p);
	if (r == 0)
		r = speculator_measure(b, CODEC_SPEC_CHANNEL, p, "channel");
	codec_profile_free(p);
	for (uint32_t n = 0; r == 0 && n <= b->o.previous_max; n++) {
		p = NULL;
		(void)snprintf(name, sizeof(name), "layer %u", n);
		r = bench_fit_layer(&b->calibration, b->calibration.blocks_count, n, b->base, &p);
		if (r == 0)
			r = bench_fit_rescale(&b->calibration, &b->kv, &p);
		if (r == 0)
			r = speculator_measure(b, CODEC_SPEC_LAYER, p, name);
		codec_profile_free(p);
	}
	return r;
}

static bool has_weights(const char *folder)
{
	char path[PATH_MAX];

	(void)snprintf(path, sizeof(path), "%s/model.safetensors", folder);
	if (access(path, R_OK) == 0)
		return true;
	(void)snprintf(path, sizeof(path), "%s/model.safetensors.index.json", folder);
	return access(path, R_OK) == 0;
}

static int model_add(struct frontier_bench *b, const struct bench_model_ask *ask,
		     enum mspec_mode *ret_mode)
{
	struct frontier_point at = { 0 };
	struct bench_model_point p;
	int r = bench_model_measure(ask, &p);

	if (r < 0)
		return r;
	*ret_mode = p.mode;
	if (p.mode == MSPEC_DRAFT) {
		(void)snprintf(at.name, sizeof(at.name), "draft %u", ask->previous);
	} else if (ask->folder == b->o.draft) {
		(void)fprintf(stderr,
			      "skvc-bench: %s: of the cache's own shape, so no draft: --model\n",
			      ask->folder);
		return -EINVAL;
	} else {
		(void)snprintf(at.name, sizeof(at.name), "model%s", ask->no_ids ? ", no ids" : "");
	}
	at.ratio = (double)p.t.raw_bytes / (double)p.t.coded_bytes;
	at.x = p.x;
	at.encode_gbps = 1e-9 * (double)p.t.raw_bytes / p.t.encode_s;
	at.decode_gbps = 1e-9 * (double)p.t.raw_bytes / p.t.decode_s;
	point_add(b, &at);
	return 0;
}

/* Where there are weights to run. */
static int model_measure(struct frontier_bench *b)
{
	struct bench_model_ask ask = { .folder = b->o.model,
				       .calibrate = b->o.calibrate,
				       .kv = b->o.kv,
				       .previous = MSPEC_PREVIOUS_DEFAULT,
				       .tokens = MODEL_TOKENS,
				       .block = b->o.block_tokens };
	enum mspec_mode mode;
	int r;

	if (!b->o.model || !has_weights(b->o.model))
		return 0;
	r = model_add(b, &ask, &mode);
	if (r < 0 || mode == MSPEC_DRAFT) /* that always knows the ids */
		return r;
	ask.no_ids = true;
	return model_add(b, &ask, &mode);
}

/* Fitted, as `layer` is, on all that there is: its maps have as many inputs. */
static int draft_measure(struct frontier_bench *b)
{
	struct bench_model_ask ask = { .folder = b->o.draft,
				       .target = b->o.model,
				       .calibrate = b->o.calibrate,
				       .kv = b->o.kv,
				       .block = b->o.block_tokens };
	enum mspec_mode mode;
	int r = 0;

	for (uint32_t n = 0; r == 0 && b->o.draft && n <= b->o.previous_max; n += DRAFT_STEP) {
		ask.previous = n;
		r = model_add(b, &ask, &mode);
	}
	return r;
}

/* ---- points of others ---- */

static double number_of(const cJSON *j, const char *key, double otherwise)
{
	const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);

	return cJSON_IsNumber(v) && v->valuedouble >= 0 && v->valuedouble < 1e9 ? v->valuedouble
										: otherwise;
}

/* [{"name": "model copy", "ratio": 4.0, "x": 0.6, "encode_gbps": 1, "decode_gbps": 2}, ...] */
static int points_read(struct frontier_bench *b)
{
	char err[REPORT_BYTES] = "", *text = NULL;
	const struct report report = { b->o.points, err, sizeof(err) };
	const cJSON *at;
	size_t bytes;
	cJSON *j;
	int r = file_read(&report, b->o.points, POINTS_BYTES_MAX, &text, &bytes);

	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench: %s\n", err);
		return r;
	}
	j = cJSON_ParseWithLength(text, bytes);
	free(text);
	r = cJSON_IsArray(j) ? 0 : -EINVAL;
	cJSON_ArrayForEach(at, j) {
		const char *name =
			cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(at, "name"));
		struct frontier_point p = { .ratio = number_of(at, "ratio", 0),
					    .x = number_of(at, "x", -1),
					    .encode_gbps = number_of(at, "encode_gbps", 0),
					    .decode_gbps = number_of(at, "decode_gbps", 0) };

		if (!name || p.ratio < 1) {
			r = -EINVAL;
			break;
		}
		(void)snprintf(p.name, sizeof(p.name), "%s", name);
		point_add(b, &p);
	}
	cJSON_Delete(j);
	if (r < 0)
		(void)fprintf(stderr, "skvc-bench: %s: no list of points with a name and a ratio\n",
			      b->o.points);
	return r;
}

/* ---- what came of it ---- */

static void print_head(const struct frontier_bench *b)
{
	(void)printf("file        %s\n", b->o.kv);
	(void)printf("calibrated  on %.0f tokens of %s\n", (double)b->calibration.tokens,
		     b->o.calibrate);
	(void)printf(
		"shape       %u layers, %s, blocks of %u tokens; %u blocks measured, every one "
		"compared\n",
		b->kv.layers, b->kv.dtype, b->kv.g.block_tokens, b->c.count);
	(void)printf("codec       %s, one thread\n", codec_isa_name());
	(void)printf("\n%-22s %8s %8s %14s %14s\n", "", "ratio", "x", "encode GB/s", "decode GB/s");
}

static int print_json(const struct frontier_bench *b)
{
	cJSON *j = cJSON_CreateObject(), *points;

	cJSON_AddStringToObject(j, "file", b->o.kv);
	cJSON_AddStringToObject(j, "calibrated_on", b->o.calibrate);
	cJSON_AddNumberToObject(j, "calibrated_tokens", (double)b->calibration.tokens);
	cJSON_AddStringToObject(j, "dtype", b->kv.dtype);
	cJSON_AddStringToObject(j, "isa", codec_isa_name());
	cJSON_AddNumberToObject(j, "block_tokens", b->kv.g.block_tokens);
	points = cJSON_AddArrayToObject(j, "points");
	for (uint32_t i = 0; i < b->f.count; i++) {
		const struct frontier_point *p = &b->f.point[i];
		cJSON *o = cJSON_CreateObject();

		cJSON_AddStringToObject(o, "name", p->name);
		cJSON_AddNumberToObject(o, "ratio", p->ratio);
		if (p->x >= 0)
			cJSON_AddNumberToObject(o, "x", p->x);
		cJSON_AddNumberToObject(o, "encode_gbps", p->encode_gbps);
		cJSON_AddNumberToObject(o, "decode_gbps", p->decode_gbps);
		cJSON_AddItemToArray(points, o);
	}
	return output_json(j, stdout);
}

static void draw(void *user, FILE *out)
{
	struct frontier_bench *b = user;
	const char *name = strrchr(b->o.kv, '/');

	(void)snprintf(b->title, sizeof(b->title), "%s, blocks of %u tokens",
		       name ? name + 1 : b->o.kv, b->kv.g.block_tokens);
	b->f.title = b->title;
	frontier_svg(&b->f, out);
}

static const char usage_text[] =
	"Usage: skvc-bench frontier --kv FILE --calibrate FILE [OPTION]...\n"
	"\n"
	"  --kv FILE            KV cache to measure on (safetensors: k.<layer>, v.<layer>)\n"
	"  --calibrate FILE     KV cache of other tokens to fit on\n"
	"  --model DIR          the target model, for x; config.json is enough for that.  With its\n"
	"                       weights, and token ids in both files, `model` is measured, too\n"
	"  --draft DIR          a smaller model with the same vocabulary: `model` in its draft mode, too\n"
	"  --points FILE        JSON list of points measured elsewhere: name, ratio, x, encode_gbps,\n"
	"                       decode_gbps\n"
	"  --previous-max N     `layer` looks back up to so many layers, 1 to 6 (6)\n"
	"  --block-tokens N     tokens of a block, 1 to 1024 (16)\n"
	"  --seconds S          time for each thing measured, 0 to 60 (1)\n"
	"  --svg OUT            write a picture\n"
	"  --json               one JSON object\n";

/* A flat option switch. */
static int options_parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "kv", required_argument, NULL, 'k' },
		{ "calibrate", required_argument, NULL, 'c' },
		{ "model", required_argument, NULL, 'M' },
		{ "draft", required_argument, NULL, 'D' },
		{ "points", required_argument, NULL, 'P' },
		{ "previous-max", required_argument, NULL, 'p' },
		{ "block-tokens", required_argument, NULL, 'b' },
		{ "seconds", required_argument, NULL, 't' },
		{ "svg", required_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	/* flat switch */
	optind = 0; /* the caller's argv is not ours to go on with */
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'k':
			o->kv = optarg;
			break;
		case 'c':
			o->calibrate = optarg;
			break;
		case 'M':
			o->model = optarg;
			break;
		case 'D':
			o->draft = optarg;
			break;
		case 'P':
			o->points = optarg;
			break;
		case 'p':
			if (bench_count_parse(optarg, 1, PREVIOUS_MAX, &o->previous_max) < 0)
				return bench_usage_error("frontier", "not 1 to 6 layers: ", optarg);
			break;
		case 'b':
			if (bench_count_parse(optarg, 1, CODEC_BLOCK_TOKENS_MAX, &o->block_tokens) <
			    0)
				return bench_usage_error("frontier",
							 "not 1 to 1024 tokens: ", optarg);
			break;
		case 't':
			if (bench_seconds_parse(optarg, 0, &o->seconds) < 0)
				return bench_usage_error("frontier",
							 "not 0 to 60 seconds: ", optarg);
			break;
		case 's':
			o->svg = optarg;
			break;
		case 'j':
			o->json = true;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return -1;
		default:
			return 2;
		}
	}
	if (optind < argc)
		return bench_usage_error("frontier", "too many arguments: ", argv[optind]);
	if (!o->kv || !o->calibrate)
		return bench_usage_error("frontier", "--kv FILE or --calibrate FILE is missing",
					 "");
	return 0;
}

static int bench_run(struct frontier_bench *b)
{
	int r = kv_dump_read(b->o.kv, b->o.block_tokens, &b->kv);

	if (r == 0)
		r = kv_dump_read(b->o.calibrate, b->o.block_tokens, &b->calibration);
	if (r == 0 && memcmp(b->calibration.g.digest, b->kv.g.digest, CODEC_DIGEST_BYTES) != 0) {
		(void)fprintf(stderr, "skvc-bench: %s: not the layers, heads, dim and type of %s\n",
			      b->o.calibrate, b->o.kv);
		r = -EINVAL;
	}
	if (r == 0 && b->o.model)
		r = bench_cost_target(b->o.model, &b->target_macs);
	if (r == 0)
		r = bench_fit_channel(&b->calibration, b->calibration.blocks_count, &b->base);
	if (r == 0)
		r = coder_bench_init(&b->c, &b->kv, 0, b->o.seconds);
	if (r == 0 && !b->o.json)
		print_head(b);
	if (r == 0)
		r = yardsticks_measure(b);
	if (r == 0)
		r = speculators_measure(b);
	if (r == 0)
		r = model_measure(b);
	if (r == 0)
		r = draft_measure(b);
	if (r == 0 && b->o.points)
		r = points_read(b);
	return r;
}

int bench_frontier_main(int argc, char **argv)
{
	struct frontier_bench b = {
		.o = { .previous_max = PREVIOUS_MAX, .block_tokens = 16, .seconds = 1 },
	};
	int r = options_parse(argc, argv, &b.o);

	if (r != 0)
		return r < 0 ? 0 : r;
	r = bench_run(&b);
	if (r == 0 && b.o.json)
		r = print_json(&b);
	if (r == 0 && b.o.svg)
		r = bench_file_write(b.o.svg, draw, &b);
	codec_profile_free(b.base);
	coder_bench_deinit(&b.c);
	kv_dump_deinit(&b.kv);
	kv_dump_deinit(&b.calibration);
	return r == 0 ? 0 : 1;
}
