/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_model.c - `skvc-bench model`: what the `model` speculator makes of dumps of KV cache.
 *
 * Fits on some dumps, codes others in blocks of several lengths, decodes every block again and compares.
 * Sequences start at position 0, and a block's context is the sequence's earlier tokens.
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
#include "gpu/model/safetensors.h"
#include "tools/model_threads.h"
#include "tools/skvc_bench.h"

#define FILES_MAX 16u
#define BLOCKS_MAX 8u
#define HEADER_BYTES 64u /* of a block's own: what a container adds to the streams */

struct dump {
	const char *path;
	struct safetensors *st; /* owned */
	uint32_t dtype;
	uint32_t tokens_count;
	int32_t *ids;	 /* owned */
	int32_t *starts; /* owned; sequences_count + 1 */
	uint32_t sequences_count;
	float *scale_k, *scale_v; /* owned; NULL: 1 */
	const uint8_t **patterns; /* owned array; [2 * layers] */
	size_t row_bytes;
};

struct options {
	const char *model, *calibrate[FILES_MAX], *kv[FILES_MAX], *save, *load;
	uint32_t calibrate_count, kv_count, blocks[BLOCKS_MAX], blocks_count, threads, tokens_max;
	bool no_ids, verbose;
	struct mspec_precision precision;
};

struct totals {
	uint64_t scalars, raw_bytes, coded_bytes, escapes;
	struct residual_bits bits[2];
	double encode_s, decode_s;
};

static const char usage_text[] =
	"Usage: skvc-bench model --model FOLDER --calibrate FILE --kv FILE [OPTION]...\n"
	"\n"
	"Fits the model speculator on dumps with token ids and codes others with it.\n"
	"\n"
	"  --model FOLDER     the model that made the dumps (Hugging Face layout)\n"
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

/* ---- dumps ---- */

static void dump_close(struct dump *d)
{
	free(d->ids);
	free(d->starts);
	free(d->scale_k);
	free(d->scale_v);
	free((void *)d->patterns);
	safetensors_close(d->st);
	*d = (struct dump){ .path = NULL };
}

static int dump_bad(const struct dump *d, const char *what, const char *name)
{
	(void)fprintf(stderr, "skvc-bench model: %s: %s%s\n", d->path, what, name);
	return -EINVAL;
}

/* A copy of a vector of 4-byte elements, aligned. */
static int dump_vector(const struct dump *d, const char *name, const char *dtype, uint64_t least,
		       uint64_t most, void **ret, uint32_t *ret_count)
{
	const struct safetensors_tensor *t = safetensors_find(d->st, name);

	if (!t || strcmp(t->dtype, dtype) != 0 || t->dims_count != 1 || t->dims[0] < least ||
	    t->dims[0] > most)
		return dump_bad(d, "no vector, or one of another type or length: ", name);
	*ret = malloc(t->bytes);
	if (!*ret)
		return -ENOMEM;
	memcpy(*ret, t->data, t->bytes);
	*ret_count = (uint32_t)t->dims[0];
	return 0;
}

static int dump_segments(struct dump *d, const struct model_config *c)
{
	d->patterns = calloc(2u * c->layers, sizeof(d->patterns[0]));
	if (!d->patterns)
		return -ENOMEM;
	for (uint32_t i = 0; i < 2u * c->layers; i++) {
		const struct safetensors_tensor *t;
		char name[32];
		uint32_t dtype;

		(void)snprintf(name, sizeof(name), "%c.%u", i % 2u ? 'v' : 'k', i / 2u);
		t = safetensors_find(d->st, name);
		if (!t || t->dims_count != 3 || t->dims[0] != d->tokens_count ||
		    t->dims[1] != c->kv_heads || t->dims[2] != c->head_dim)
			return dump_bad(d, "not of this model: ", name);
		dtype = !strcmp(t->dtype, "BF16")      ? CODEC_DTYPE_BF16
			: !strcmp(t->dtype, "F16")     ? CODEC_DTYPE_FP16
			: !strcmp(t->dtype, "F8_E4M3") ? CODEC_DTYPE_E4M3
			: !strcmp(t->dtype, "F8_E5M2") ? CODEC_DTYPE_E5M2
						       : 0;
		if (dtype == 0 || (i > 0 && dtype != d->dtype))
			return dump_bad(d, "a type that is not coded: ", name);
		d->dtype = dtype;
		d->patterns[i] = t->data;
		d->row_bytes = t->bytes / d->tokens_count;
	}
	return 0;
}

static int dump_open(const char *path, const struct model_config *c, struct dump *d)
{
	char err[SAFETENSORS_ERR_BYTES] = "";
	uint32_t n = 0;
	int r = safetensors_open(path, &d->st, err, sizeof(err));

	d->path = path;
	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench model: %s\n", err);
		return r;
	}
	r = dump_vector(d, "tokens", "I32", 1, 1u << 28, (void **)&d->ids, &d->tokens_count);
	if (r == 0)
		r = dump_vector(d, "seq_start", "I32", 2, 1u << 20, (void **)&d->starts, &n);
	if (r == 0)
		r = dump_segments(d, c);
	if (r < 0)
		return r;
	d->sequences_count = n - 1u;
	for (uint32_t i = 0; i < n; i++)
		if (d->starts[i] < (i ? d->starts[i - 1u] + 1 : 0) ||
		    (uint32_t)d->starts[i] > d->tokens_count)
			return dump_bad(d, "not ascending: ", "seq_start");
	if (!safetensors_find(d->st, "scale.k"))
		return 0;
	r = dump_vector(d, "scale.k", "F32", c->layers, c->layers, (void **)&d->scale_k, &n);
	if (r == 0)
		r = dump_vector(d, "scale.v", "F32", c->layers, c->layers, (void **)&d->scale_v,
				&n);
	return r;
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

static int fit_add(struct mspec_fit *f, const struct dump *d, const struct options *o,
		   uint32_t segments)
{
	const uint8_t **at = calloc(segments, sizeof(at[0]));
	int r = at ? 0 : -ENOMEM;

	for (uint32_t s = 0; r == 0 && s < d->sequences_count; s++) {
		if (o->tokens_max && (uint32_t)d->starts[s] >= o->tokens_max)
			break;
		for (uint32_t i = 0; i < segments; i++)
			at[i] = d->patterns[i] + (size_t)d->starts[s] * d->row_bytes;
		r = mspec_fit_add(f, d->ids + d->starts[s], at,
				  (uint32_t)(d->starts[s + 1u] - d->starts[s]));
	}
	free((void *)at);
	return r;
}

static int fit(const struct options *o, const struct mspec_model *m,
	       const struct mspec_runner *runner, struct mspec_params **ret)
{
	struct dump dumps[FILES_MAX] = { { .path = NULL } };
	const struct model_config *c = mspec_model_config(m);
	struct mspec_fit_options fo = { .ids = !o->no_ids,
					.precision = o->precision,
					.runner = runner,
					.layer_done = o->verbose ? print_layer : NULL };
	struct mspec_fit *f = NULL;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < o->calibrate_count; i++)
		r = dump_open(o->calibrate[i], c, &dumps[i]);
	fo.dtype = dumps[0].dtype;
	fo.scale_k = dumps[0].scale_k;
	fo.scale_v = dumps[0].scale_v;
	if (r == 0)
		r = mspec_fit_new(m, &fo, &f);
	for (uint32_t i = 0; r == 0 && i < o->calibrate_count; i++)
		r = dumps[i].dtype == fo.dtype ? fit_add(f, &dumps[i], o, 2u * c->layers) : -EINVAL;
	if (r == 0)
		r = mspec_fit_finish(f, ret);
	mspec_fit_free(f);
	for (uint32_t i = 0; i < o->calibrate_count; i++)
		dump_close(&dumps[i]);
	return r;
}

/* ---- coding ---- */

struct coding {
	const struct dump *d;
	uint32_t segments, kv;
	struct mspec_coder *coder;	       /* owned, like all below */
	struct mspec_context *context, *other; /* the encoder's, the decoder's */
	struct residual_encoder *e;
	struct residual_decoder *dec;
	const uint8_t **in;
	uint8_t **out;
	uint8_t *decoded, *coded;
	size_t decoded_bytes, coded_cap;
	struct totals t;
};

static int coding_init(struct coding *k, const struct mspec_params *p,
		       const struct mspec_runner *runner, uint32_t block)
{
	k->decoded_bytes = (size_t)block * k->d->row_bytes * k->segments;
	k->coded_cap = 2u * k->decoded_bytes + 65536u;
	k->in = calloc(k->segments, sizeof(k->in[0]));
	k->out = calloc(k->segments, sizeof(k->out[0]));
	k->decoded = malloc(k->decoded_bytes);
	k->coded = malloc(k->coded_cap);
	if (!k->in || !k->out || !k->decoded || !k->coded)
		return -ENOMEM;
	if (mspec_coder_new(p, runner, &k->coder) < 0 || mspec_context_new(p, &k->context) < 0 ||
	    mspec_context_new(p, &k->other) < 0 || residual_encoder_new(&k->e) < 0 ||
	    residual_decoder_new(&k->dec) < 0)
		return -ENOMEM;
	return 0;
}

static void coding_deinit(struct coding *k)
{
	mspec_coder_free(k->coder);
	mspec_context_free(k->context);
	mspec_context_free(k->other);
	residual_encoder_free(k->e);
	residual_decoder_free(k->dec);
	free((void *)k->in);
	free((void *)k->out);
	free(k->decoded);
	free(k->coded);
}

static int decode_block(struct coding *k, uint32_t first, uint32_t count, uint32_t streams,
			size_t bytes, uint32_t mu_digest)
{
	struct mspec_result result = { .escapes = 0 };
	double begin = now();
	int r;

	for (uint32_t i = 0; i < k->segments; i++)
		k->out[i] = k->decoded + (size_t)i * count * k->d->row_bytes;
	r = residual_decoder_start(k->dec, streams, k->coded, bytes);
	if (r == 0)
		r = mspec_decode(k->coder, k->other, k->d->ids + first, count, k->dec, k->out,
				 &result);
	if (r == 0)
		r = residual_decoder_finish(k->dec);
	k->t.decode_s += now() - begin;
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < k->segments; i++)
		if (memcmp(k->in[i], k->out[i], count * k->d->row_bytes) != 0)
			return dump_bad(k->d, "decoded differs", "");
	return result.mu_digest == mu_digest ? 0 : dump_bad(k->d, "the guesses differ", "");
}

static int code_block(struct coding *k, uint32_t first, uint32_t count)
{
	const uint64_t scalars = (uint64_t)count * k->segments * k->kv;
	const uint32_t streams = residual_streams(scalars, k->kv);
	struct mspec_result result;
	double begin = now();
	size_t bytes = 0;
	int r;

	for (uint32_t i = 0; i < k->segments; i++)
		k->in[i] = k->d->patterns[i] + first * k->d->row_bytes;
	residual_encoder_start(k->e, streams);
	r = mspec_encode(k->coder, k->context, k->d->ids + first, count, k->in, k->e, &result);
	if (r == 0)
		r = residual_encoder_finish(k->e, k->coded, k->coded_cap, &bytes);
	k->t.encode_s += now() - begin;
	if (r < 0)
		return r;
	k->t.scalars += scalars;
	k->t.raw_bytes += count * k->d->row_bytes * k->segments;
	k->t.coded_bytes += bytes + HEADER_BYTES;
	k->t.escapes += result.escapes;
	for (uint32_t i = 0; i < 2; i++) {
		k->t.bits[i].token += result.bits[i].token;
		k->t.bits[i].raw += result.bits[i].raw;
		k->t.bits[i].tau += result.bits[i].tau;
	}
	return decode_block(k, first, count, streams, bytes, result.mu_digest);
}

static int code_dump(const struct dump *d, const struct mspec_model *m,
		     const struct mspec_params *p, const struct mspec_runner *runner,
		     uint32_t block)
{
	const struct model_config *c = mspec_model_config(m);
	struct coding k = { .d = d, .segments = 2u * c->layers, .kv = c->kv_heads * c->head_dim };
	int r = coding_init(&k, p, runner, block);

	for (uint32_t s = 0; r == 0 && s < d->sequences_count; s++) {
		mspec_context_reset(k.context);
		mspec_context_reset(k.other);
		for (int32_t t = d->starts[s]; r == 0 && t < d->starts[s + 1u];
		     t += (int32_t)block) {
			uint32_t left = (uint32_t)(d->starts[s + 1u] - t);

			r = code_block(&k, (uint32_t)t, left < block ? left : block);
		}
	}
	if (r == 0) {
		const struct totals *t = &k.t;
		const double half = (double)t->scalars / 2;

		(void)printf("%-44.44s %5u  K %6.3f  V %6.3f (raw %.2f %.2f tau %.2f)  %6.3f b  "
			     "ratio %6.3f  encode %.4f GB/s decode %.4f GB/s  escapes %.1e\n",
			     strrchr(d->path, '/') ? strrchr(d->path, '/') + 1 : d->path, block,
			     (t->bits[0].token + t->bits[0].raw + t->bits[0].tau) / half,
			     (t->bits[1].token + t->bits[1].raw + t->bits[1].tau) / half,
			     t->bits[0].raw / half, t->bits[1].raw / half, t->bits[0].tau / half,
			     8.0 * (double)t->coded_bytes / (double)t->scalars,
			     (double)t->raw_bytes / (double)t->coded_bytes,
			     1e-9 * (double)t->raw_bytes / t->encode_s,
			     1e-9 * (double)t->raw_bytes / t->decode_s,
			     (double)t->escapes / (double)t->scalars);
		(void)fflush(stdout);
	}
	coding_deinit(&k);
	return r;
}

/* With parameters of the dump's own scales. */
static int code_lengths(const struct options *o, const struct dump *d, const struct mspec_model *m,
			const struct mspec_params *p, const struct mspec_runner *runner)
{
	struct mspec_params *own = NULL;
	int r = mspec_params_rescale(p, d->scale_k, d->scale_v, &own);

	for (uint32_t b = 0; r == 0 && b < o->blocks_count; b++)
		r = code_dump(d, m, own, runner, o->blocks[b]);
	mspec_params_free(own);
	return r;
}

static int code_all(const struct options *o, const struct mspec_model *m,
		    const struct mspec_params *p, const struct mspec_runner *runner)
{
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < o->kv_count; i++) {
		struct dump d = { .path = NULL };

		r = dump_open(o->kv[i], mspec_model_config(m), &d);
		if (r == 0 && d.dtype != mspec_params_dtype(p))
			r = dump_bad(&d, "of another type than the calibration", "");
		if (r == 0)
			r = code_lengths(o, &d, m, p, runner);
		dump_close(&d);
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

static void print_cost(const struct mspec_model *m, struct mspec_precision p)
{
	static const struct mspec_precision narrow = { .wide = { 0 } };
	const struct model_config *c = mspec_model_config(m);
	const uint64_t kv = c->kv_heads * c->head_dim;
	const uint64_t maps = c->layers * (kv * kv + 2 * kv * c->hidden);
	const double prefill = (double)(mspec_model_products(m, narrow) - maps);

	(void)printf("x %.3f of a bf16 prefill (int8 products count half, attention left out)\n",
		     (double)mspec_model_products(m, p) / 2 / prefill);
}

static int run(const struct options *o)
{
	struct model_threads *threads = NULL;
	struct mspec_runner runner = { .run = run_threads, .threads = o->threads };
	struct mspec_model *m = NULL;
	struct mspec_params *p = NULL;
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
		begin = now();
		r = o->load ? load(o->load, m, &p) : fit(o, m, &runner, &p);
	}
	if (r == 0) {
		(void)printf("%s in %.1f s\n", o->load ? "read" : "fitted", now() - begin);
		print_cost(m, mspec_params_precision(p));
		r = through_form(o, m, &p);
	}
	if (r == 0)
		r = code_all(o, m, p, &runner);
	if (r < 0 && !err[0])
		(void)fprintf(stderr, "skvc-bench model: %s\n", strerror(-r));
	mspec_params_free(p);
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
	struct options o = { .threads = cores(), .precision = mspec_precision_default() };
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
