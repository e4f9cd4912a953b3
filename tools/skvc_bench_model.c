/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_model.c - `skvc-bench model`: what the `model` speculator makes of dumps of KV cache.
 *
 * Fits on some dumps, codes others in blocks of several lengths through the codec, decodes every block again and
 * compares.  Sequences start at position 0, and a block's context is the sequence's earlier tokens.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/model.h"
#include "gpu/model/file.h"
#include "gpu/model/report.h"
#include "tools/bench_cost.h"
#include "tools/bench_model.h"
#include "tools/model_threads.h"
#include "tools/skvc_bench.h"

#define FILES_MAX 16u
#define BLOCKS_MAX 8u

struct options {
	const char *model, *target, *calibrate[FILES_MAX], *kv[FILES_MAX], *save, *load;
	uint32_t calibrate_count, kv_count, blocks[BLOCKS_MAX], blocks_count, threads, tokens_max;
	uint32_t previous;
	bool no_ids, verbose;
	struct mspec_precision precision;
};

static const char usage_text[] =
	"Usage: skvc-bench model --model FOLDER --calibrate FILE --kv FILE [OPTION]...\n"
	"\n"
	"Fits the model speculator on dumps with token ids and codes others with it.\n"
	"\n"
	"  --model FOLDER     the model that made the dumps (Hugging Face layout), or, when they are of\n"
	"                     another shape, a smaller one with the same vocabulary: a draft\n"
	"  --target FOLDER    of a draft: the model that made the dumps (config.json), for x\n"
	"  --previous N       of a draft: layers looked back, 0 to 6 (2)\n"
	"  --calibrate FILE   a dump to fit on; may be repeated\n"
	"  --kv FILE          a dump to code; may be repeated\n"
	"  --block N          tokens of a block; may be repeated (16 and 256)\n"
	"  --tokens N         of each calibration file, at most (all)\n"
	"  --no-ids           the coder does not know the token ids\n"
	"  --wide LIST        products in two planes: rows r, weights w, both b, of kv, q, o, gate,\n"
	"                     down, maps: \"kv=b,maps=r\" is the default\n"
	"  --threads N        (as many as cores, at most 64)\n"
	"  --save FILE        the fitted parameters go there\n"
	"  --load FILE        parameters saved before, instead of --calibrate\n"
	"  --verbose          errors of each layer\n";

static double now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- fitting ---- */

static void run_threads(void *self, uint32_t items, void (*fn)(void *, uint32_t, uint32_t),
			void *context)
{
	model_threads_run(self, items, fn, context);
}

static void print_layer(void *user, uint32_t layer, const double *rms)
{
	(void)user;
	(void)printf("layer %3u  K %9.4f error %9.5f  V %9.4f error %9.5f  hidden %9.4f error "
		     "%9.5f, %9.5f after\n",
		     layer, rms[MSPEC_RMS_K], rms[MSPEC_RMS_K_ERR], rms[MSPEC_RMS_V],
		     rms[MSPEC_RMS_V_ERR], rms[MSPEC_RMS_HIDDEN], rms[MSPEC_RMS_HIDDEN_ERR],
		     rms[MSPEC_RMS_HIDDEN_AFTER]);
	(void)fflush(stdout);
}

static int fit(const struct options *o, const struct mspec_model *m,
	       const struct mspec_runner *runner, const struct bench_dump *dumps,
	       struct mspec_params **ret, double *ret_bits)
{
	const struct mspec_fit_options fo = { .ids = !o->no_ids,
					      .previous = o->previous,
					      .precision = o->precision,
					      .runner = runner,
					      .layer_done = o->verbose ? print_layer : NULL };

	return bench_model_fit(m, dumps, o->calibrate_count, o->tokens_max, &fo, ret, ret_bits);
}

/* ---- coding ---- */

static void print_totals(const struct bench_dump *d, uint32_t block,
			 const struct bench_model_totals *t)
{
	const char *slash = strrchr(d->path, '/');

	(void)printf("%-44.44s %5u  ideal %6.3f  coded %6.3f b  ratio %6.3f  encode %.4f GB/s "
		     "decode %.4f GB/s  escapes %.1e  blocks %llu, %llu not by model\n",
		     slash ? slash + 1 : d->path, block, t->ideal_bits / (double)t->scalars,
		     8.0 * (double)t->coded_bytes / (double)t->scalars,
		     (double)t->raw_bytes / (double)t->coded_bytes,
		     1e-9 * (double)t->raw_bytes / t->encode_s,
		     1e-9 * (double)t->raw_bytes / t->decode_s,
		     (double)t->escapes / (double)t->scalars, (unsigned long long)t->blocks,
		     (unsigned long long)t->fallbacks);
	(void)fflush(stdout);
}

/* With parameters of the dump's own scales. */
static int code_lengths(const struct options *o, const struct bench_dump *d,
			const struct mspec_params *p, struct bench_model_coding *coding)
{
	struct mspec_params *own = NULL;
	int r = mspec_params_rescale(p, d->scale_k, d->scale_v, &own);

	coding->params = own;
	for (uint32_t b = 0; r == 0 && b < o->blocks_count; b++) {
		struct bench_model_totals t;

		coding->block = o->blocks[b];
		r = bench_model_code(d, coding, &t);
		if (r == 0 && t.blocks > 0)
			print_totals(d, coding->block, &t);
	}
	mspec_params_free(own);
	return r;
}

static int code_all(const struct options *o, const struct mspec_params *p,
		    struct bench_model_coding *coding)
{
	const struct mspec_shape shape = mspec_params_shape(p);
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < o->kv_count; i++) {
		struct bench_dump d = { .path = NULL };

		r = bench_dump_open(o->kv[i], &shape, &d);
		if (r == 0 && d.dtype != mspec_params_dtype(p))
			r = bench_dump_bad(&d, "of another type than the calibration", "");
		if (r == 0)
			r = code_lengths(o, &d, p, coding);
		bench_dump_close(&d);
	}
	return r;
}

/* ---- the program ---- */

static int save(const char *path, const uint8_t *bytes, size_t count)
{
	FILE *f = fopen(path, "wb");
	bool good = f && fwrite(bytes, 1, count, f) == count;

	if (f && fclose(f) != 0)
		good = false;
	if (!good)
		(void)fprintf(stderr, "skvc-bench model: %s: %s\n", path, strerror(errno));
	return good ? 0 : -EIO;
}

static int load(const char *path, const struct mspec_model *m, struct mspec_params **ret)
{
	char err[REPORT_BYTES] = "";
	const struct report report = { .subject = path, .err = err, .err_bytes = sizeof(err) };
	char *bytes = NULL;
	size_t count = 0;
	int r = file_read(&report, path, 1u << 30, &bytes, &count);

	if (r < 0)
		(void)fprintf(stderr, "skvc-bench model: %s\n", err);
	else
		r = mspec_params_parse(m, (const uint8_t *)bytes, count, ret);
	free(bytes);
	return r;
}

/* What is coded with comes out of the serial form, as it would in a daemon. */
static int through_form(const struct options *o, const struct mspec_model *m,
			struct mspec_params **p)
{
	struct mspec_params *again = NULL;
	uint8_t *bytes = NULL;
	size_t count = 0;
	int r = mspec_params_serialise(*p, &bytes, &count);

	if (r == 0 && o->save)
		r = save(o->save, bytes, count);
	if (r == 0)
		r = mspec_params_parse(m, bytes, count, &again);
	if (r == 0) {
		(void)printf("parameters: %zu bytes\n", count);
		mspec_params_free(*p);
		*p = again;
	}
	free(bytes);
	return r;
}

static int print_cost(const struct options *o, const struct mspec_params *p)
{
	const uint64_t products = mspec_params_products(p);
	const bool draft = mspec_params_mode(p) == MSPEC_DRAFT;
	const char *folder = draft ? o->target : o->model;
	double target = 0;
	int r = folder ? bench_cost_target(folder, &target) : 0;

	(void)printf("mode %s, %.0f int8 operations a token\n",
		     mspec_mode_name(mspec_params_mode(p)), 2.0 * (double)products);
	if (r == 0 && folder)
		(void)printf("x %.3f of a bf16 prefill (int8 products count half, attention left "
			     "out)\n",
			     bench_cost_share(products, target));
	else if (r == 0)
		(void)printf("x is known with --target: a draft does not say whose cache it is\n");
	return r;
}

/* Parameters to code with: from a file, or a fit that goes through its serial form. */
static int params_get(const struct options *o, const struct mspec_model *m,
		      const struct bench_dump *dumps, struct bench_model_coding *coding,
		      struct mspec_params **ret)
{
	double begin = now();
	int r = o->load ? load(o->load, m, ret)
			: fit(o, m, coding->runner, dumps, ret, &coding->expected_bits);

	if (r < 0)
		return r;
	(void)printf("%s in %.1f s\n", o->load ? "read" : "fitted", now() - begin);
	r = print_cost(o, *ret);
	return r < 0 ? r : through_form(o, m, ret);
}

static int work(const struct options *o, const struct mspec_model *m,
		const struct mspec_runner *runner)
{
	struct bench_dump dumps[FILES_MAX] = { { .path = NULL } };
	struct bench_model_coding coding = { .runner = runner };
	struct mspec_params *p = NULL;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < o->calibrate_count; i++)
		r = bench_dump_open(o->calibrate[i], i ? &dumps[0].shape : NULL, &dumps[i]);
	if (r == 0)
		r = params_get(o, m, dumps, &coding, &p);
	coding.channel_on = o->calibrate_count ? &dumps[0] : NULL;
	if (r == 0)
		r = code_all(o, p, &coding);
	mspec_params_free(p);
	for (uint32_t i = 0; i < o->calibrate_count; i++)
		bench_dump_close(&dumps[i]);
	return r;
}

static int run(const struct options *o)
{
	struct model_threads *threads = NULL;
	struct mspec_runner runner = { .run = run_threads, .threads = o->threads };
	struct mspec_model *m = NULL;
	char err[MODEL_ERR_BYTES] = "";
	double begin = now();
	int r = model_threads_new(o->threads, &threads);

	runner.self = threads;
	if (r == 0)
		r = mspec_model_load(o->model, true, &m, err, sizeof(err));
	if (r < 0 && err[0])
		(void)fprintf(stderr, "skvc-bench model: %s\n", err);
	if (r == 0) {
		(void)printf("loaded in %.1f s\n", now() - begin);
		r = work(o, m, &runner);
	}
	if (r < 0 && !err[0])
		(void)fprintf(stderr, "skvc-bench model: %s\n", strerror(-r));
	mspec_model_free(m);
	model_threads_free(threads);
	return r < 0;
}

/* "kv=r,down=b" */
static int parse_wide(const char *text, struct mspec_precision *ret)
{
	static const char *const names[MSPEC_PRODUCTS] = { "kv", "q", "o", "gate", "down", "maps" };

	while (*text) {
		uint32_t i = 0;

		for (; i < MSPEC_PRODUCTS; i++) {
			size_t n = strlen(names[i]);

			if (!strncmp(text, names[i], n) && text[n] == '=')
				break;
		}
		if (i == MSPEC_PRODUCTS)
			return -EINVAL;
		text += strlen(names[i]) + 1;
		if (!*text || !strchr("nrwb", *text))
			return -EINVAL;
		ret->wide[i] = (uint8_t)(strchr("nrwb", *text) - "nrwb");
		text++;
		if (*text == ',')
			text++;
	}
	return 0;
}

static int take(const char **list, uint32_t *count)
{
	if (*count == FILES_MAX)
		return -EINVAL;
	list[(*count)++] = optarg;
	return 0;
}

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "model", 1, NULL, 'm' },   { "calibrate", 1, NULL, 'c' },
		{ "kv", 1, NULL, 'k' },	     { "block", 1, NULL, 'b' },
		{ "tokens", 1, NULL, 't' },  { "no-ids", 0, NULL, 'n' },
		{ "wide", 1, NULL, 'w' },    { "threads", 1, NULL, 'j' },
		{ "save", 1, NULL, 's' },    { "load", 1, NULL, 'l' },
		{ "verbose", 0, NULL, 'v' }, { "help", 0, NULL, 'h' },
		{ "target", 1, NULL, 'T' },  { "previous", 1, NULL, 'p' },
		{ NULL, 0, NULL, 0 },
	};
	int opt, r = 0;

	/* flat switch */
	while (r == 0 && (opt = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (opt) {
		case 'm':
			o->model = optarg;
			break;
		case 'c':
			r = take(o->calibrate, &o->calibrate_count);
			break;
		case 'k':
			r = take(o->kv, &o->kv_count);
			break;
		case 'b':
			r = o->blocks_count == BLOCKS_MAX
				    ? -EINVAL
				    : bench_count_parse(optarg, 1, MODEL_BLOCK_MAX,
							&o->blocks[o->blocks_count++]);
			break;
		case 't':
			r = bench_count_parse(optarg, 1, 1u << 28, &o->tokens_max);
			break;
		case 'n':
			o->no_ids = true;
			break;
		case 'w':
			r = parse_wide(optarg, &o->precision);
			break;
		case 'j':
			r = bench_count_parse(optarg, 1, MODEL_THREADS_MAX, &o->threads);
			break;
		case 'T':
			o->target = optarg;
			break;
		case 'p':
			r = bench_count_parse(optarg, 0, MSPEC_PREVIOUS_MAX, &o->previous);
			break;
		case 's':
			o->save = optarg;
			break;
		case 'l':
			o->load = optarg;
			break;
		case 'v':
			o->verbose = true;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return 1;
		default:
			return -EINVAL;
		}
	}
	return r;
}

static uint32_t cores(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : n > MODEL_THREADS_MAX ? MODEL_THREADS_MAX : (uint32_t)n;
}

int bench_model_main(int argc, char **argv)
{
	struct options o = { .threads = cores(),
			     .previous = MSPEC_PREVIOUS_DEFAULT,
			     .precision = mspec_precision_default() };
	int r = parse(argc, argv, &o);

	if (r > 0)
		return 0;
	if (r < 0 || optind < argc)
		return bench_usage_error("model", "wrong options", "");
	if (!o.model || (o.calibrate_count == 0) == !o.load)
		return bench_usage_error("model",
					 "--model and one of --calibrate, --load are needed", "");
	if (o.blocks_count == 0) {
		o.blocks[o.blocks_count++] = 16;
		o.blocks[o.blocks_count++] = 256;
	}
	return run(&o);
}
