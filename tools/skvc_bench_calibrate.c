/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_calibrate.c - `skvc-bench calibrate`: what a daemon would learn from a namespace, learnt from a
 * dump and written as a profile that can be shipped.  The file is the profile's serial bytes and nothing else.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/layer_code.h"
#include "gpu/codec/model.h"
#include "tools/bench_fit.h"
#include "tools/bench_model.h"
#include "tools/skvc_bench.h"

#define COPY_TOKENS 4096u /* that tell all of a copy; a draft's maps want more */

struct options {
	const char *kv, *out, *model;
	uint32_t previous, block_tokens, model_tokens;
	bool scan, no_ids;
};

static void print_rotary(const struct layer_profile *p)
{
	double turns;

	if (p->pairs == 0) {
		(void)printf("rotary      none found: keys are taken as they are\n");
		return;
	}
	turns = p->pairs > 1 ? (double)p->freq[1] / (double)p->freq[0] : 0;
	(void)printf("rotary      %u pairs, %s, base %.0f, tables %s\n", p->pairs,
		     p->interleaved ? "interleaved" : "halves",
		     p->pairs > 1 ? pow(turns, -(double)p->pairs) : 0,
		     p->turn_round_bf16 ? "rounded to bf16" : "exact");
}

static void print_row(const struct codec_profile *p)
{
	struct codec_layer_info i = codec_profile_layer(p);
	size_t bytes;

	(void)codec_profile_bytes(p, &bytes);
	(void)printf("%8u %16.3f %16.2f %18.0f %14zu\n", i.previous, i.expected_bits,
		     (double)i.weights_bytes * 1e-6, 2.0 * (double)i.products, bytes);
	(void)fflush(stdout);
}

/* Parameters for the model, fitted on the dump's first tokens. */
static int params_fit(const struct options *o, const struct mspec_model *m,
		      struct mspec_params **ret, double *ret_bits)
{
	const struct mspec_fit_options fo = { .ids = !o->no_ids,
					      .previous = o->previous,
					      .precision = mspec_precision_default() };
	struct bench_dump dump = { .path = NULL };
	uint32_t tokens = o->model_tokens;
	int r = bench_dump_open(o->kv, NULL, &dump);

	if (r == 0 && !tokens && mspec_mode_for(m, dump.shape) == MSPEC_COPY)
		tokens = COPY_TOKENS;
	if (r == 0)
		r = bench_model_fit(m, &dump, 1, tokens, &fo, ret, ret_bits);
	bench_dump_close(&dump);
	return r;
}

/* *p is the same profile with the model's part. */
static int model_add(const struct options *o, const struct kv_dump *d, struct codec_profile **p,
		     struct mspec_model **ret_m)
{
	char err[MODEL_ERR_BYTES] = "", err2[CODEC_ERR_BYTES] = "";
	struct codec_profile *with = NULL;
	struct mspec_params *params = NULL;
	struct mspec_model *m = NULL;
	double bits = 0;
	int r = mspec_model_load(o->model, true, &m, err, sizeof(err));

	if (r == 0)
		r = params_fit(o, m, &params, &bits);
	if (r == 0)
		r = codec_profile_with_model(&d->g, *p, params, bits, &with, err2, sizeof(err2));
	if (r == 0) {
		(void)printf("model       %s, %.3f bits expected, %s token ids\n",
			     mspec_mode_name(mspec_params_mode(params)), bits,
			     o->no_ids ? "without" : "with");
		codec_profile_free(*p);
		*p = with;
	} else {
		(void)fprintf(stderr, "skvc-bench calibrate: %s: %s\n", o->model,
			      err[0]	? err
			      : err2[0] ? err2
					: strerror(-r));
	}
	*ret_m = m;
	mspec_params_free(params);
	return r;
}

static int profile_make(const struct options *o, const struct kv_dump *d,
			const struct codec_profile *base)
{
	struct codec_profile *best = NULL, *p = NULL;
	struct mspec_model *m = NULL;
	int r = 0;

	(void)printf("\n%8s %16s %16s %18s %14s\n", "previous", "expected bits", "weights, MB",
		     "operations/token", "file, bytes");
	for (uint32_t n = o->scan ? 0 : o->previous;
	     r == 0 && n <= (o->scan ? LAYER_PREVIOUS_MAX : o->previous); n++) {
		r = bench_fit_layer(d, d->blocks_count, n, base, &p);
		if (r < 0)
			break;
		print_row(p);
		if (n == o->previous)
			best = p;
		else
			codec_profile_free(p);
	}
	if (best) {
		(void)printf("\n");
		print_rotary(best->layer);
		if (r == 0 && o->model)
			r = model_add(o, d, &best, &m);
		if (r == 0)
			r = bench_profile_write(best, o->out);
	}
	codec_profile_free(best);
	mspec_model_free(m); /* the profile borrows it */
	return r;
}

static const char usage_text[] =
	"Usage: skvc-bench calibrate --kv FILE --out PROFILE [OPTION]...\n"
	"\n"
	"  --kv FILE            KV cache to fit on (safetensors: k.<layer>, v.<layer>), 4k to 24k tokens\n"
	"  --out PROFILE        the file to write\n"
	"  --previous N         layers that `layer` looks back, or a draft, 0 to 6 (2); 0: means\n"
	"  --block-tokens N     tokens of a block, 1 to 1024 (16): a profile is for one size\n"
	"  --scan               also say what 0 to 6 layers would bring\n"
	"  --model FOLDER       fit the model speculator too: the model that made the cache, in\n"
	"                       Hugging Face layout, or a smaller one with its vocabulary as a draft;\n"
	"                       the dump has token ids\n"
	"  --model-tokens N     on the first N tokens of the dump (4096; of a draft all)\n"
	"  --no-ids             for blocks that are stored without token ids\n";

static int options_parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "kv", required_argument, NULL, 'k' },
		{ "out", required_argument, NULL, 'o' },
		{ "previous", required_argument, NULL, 'p' },
		{ "block-tokens", required_argument, NULL, 'b' },
		{ "scan", no_argument, NULL, 's' },
		{ "model", required_argument, NULL, 'm' },
		{ "model-tokens", required_argument, NULL, 't' },
		{ "no-ids", no_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	optind = 0; /* the caller's argv is not ours to go on with */
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'k':
			o->kv = optarg;
			break;
		case 'o':
			o->out = optarg;
			break;
		case 'p':
			if (bench_count_parse(optarg, 0, LAYER_PREVIOUS_MAX, &o->previous) < 0)
				return bench_usage_error("calibrate",
							 "not 0 to 6 layers: ", optarg);
			break;
		case 'b':
			if (bench_count_parse(optarg, 1, CODEC_BLOCK_TOKENS_MAX, &o->block_tokens) <
			    0)
				return bench_usage_error("calibrate",
							 "not 1 to 1024 tokens: ", optarg);
			break;
		case 's':
			o->scan = true;
			break;
		case 'm':
			o->model = optarg;
			break;
		case 't':
			if (bench_count_parse(optarg, 256, 1u << 20, &o->model_tokens) < 0)
				return bench_usage_error("calibrate",
							 "not 256 to 1048576 tokens: ", optarg);
			break;
		case 'n':
			o->no_ids = true;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return -1;
		default:
			return 2;
		}
	}
	if (optind < argc)
		return bench_usage_error("calibrate", "too many arguments: ", argv[optind]);
	if (!o->kv || !o->out)
		return bench_usage_error("calibrate", "--kv FILE or --out PROFILE is missing", "");
	return 0;
}

int bench_calibrate_main(int argc, char **argv)
{
	struct options o = { .previous = 2, .block_tokens = 16 };
	struct codec_profile *base = NULL;
	struct kv_dump d = { 0 };
	int r = options_parse(argc, argv, &o);

	if (r != 0)
		return r < 0 ? 0 : r;
	r = kv_dump_read(o.kv, o.block_tokens, &d);
	if (r == 0)
		r = bench_fit_channel(&d, d.blocks_count, &base);
	if (r == 0) {
		(void)printf("file        %s, %.0f tokens, %u layers, %s\n", o.kv, (double)d.tokens,
			     d.layers, d.dtype);
		(void)printf("channel     %.3f bits expected\n", codec_profile_expected_bits(base));
		r = profile_make(&o, &d, base);
	}
	if (r == 0)
		(void)printf("written     %s\n", o.out);
	codec_profile_free(base);
	kv_dump_deinit(&d);
	return r == 0 ? 0 : 1;
}
