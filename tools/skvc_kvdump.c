/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_kvdump.c - writes the KV cache of a model over some tokens to a safetensors file, as sample
 * data for the codec: what `skvc-bench codec` reads.
 *
 * The file: tokens I32 [T]; seq_start I32 [S + 1], sequence s being tokens seq_start[s] to
 * seq_start[s + 1] with positions from 0; k.<layer> and v.<layer> [T, kv_heads, head_dim] in BF16, K
 * after rope.  With --fp8 they are F8_E4M3, and scale.k and scale.v F32 [layers] hold the factor of
 * each layer: stored value * scale = value.
 *
 * One thread, and the engine's own.
 */
#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"
#include "gpu/model/safetensors.h"
#include "tools/e4m3.h"
#include "tools/model.h"
#include "tools/model_kernels.h"
#include "tools/npy.h"
#include "tools/progress.h"
#include "tools/tokenizer.h"

#define INPUT_BYTES_MAX (1u << 30)
#define COUNT_MAX (1u << 24) /* tokens; 2^24 of a 3 KiB cache are 48 GiB already */
#define SCALE_LEAST 1e-12    /* of a layer that is all zero */

struct args {
	const char *model, *tokens_npy, *text, *out;
	uint32_t start, count, seq_len, threads;
	bool fp8;
};

/* What goes to the file.  Tensor 2 * layer is K, 2 * layer + 1 is V. */
struct dump {
	struct model *model; /* owned */
	int32_t *tokens;     /* owned; count */
	int32_t *seq_start;  /* owned; sequences + 1 */
	uint32_t sequences;
	uint16_t **tensors;		 /* owned, each too; [count][kv_heads * head_dim] */
	float *scales;			 /* owned; 2 * layers, K of all layers first */
	struct safetensors_tensor *list; /* owned */
	char *names;			 /* owned; 16 bytes for each of the tensors */
};

static const char help[] =
	"usage: skvc-kvdump --model DIR (--tokens-npy FILE | --text FILE) --out FILE [options]\n"
	"\n"
	"Run a Qwen3 or Llama model over some tokens on the CPU and write its KV cache to a\n"
	"safetensors file: tokens, seq_start, k.<layer>, v.<layer>.\n"
	"\n"
	"  --model DIR        Hugging Face folder: config.json, model.safetensors, tokenizer.json\n"
	"  --tokens-npy FILE  token ids, a NumPy array of one dimension\n"
	"  --text FILE        text, cut into tokens by the model's tokenizer\n"
	"  --start N          first token of the input to use (0)\n"
	"  --count N          number of tokens (1024)\n"
	"  --seq-len N        cut them into independent sequences of this length (1024)\n"
	"  --fp8              write F8_E4M3 with one scale for each layer's K and V\n"
	"  --threads N        (one per processor, at most 8)\n"
	"  --out FILE         written whole or not at all\n"
	"  --help, --version\n";

__attribute__((format(printf, 1, 2))) static int usage_error(const char *format, ...)
{
	va_list list;

	fputs("skvc-kvdump: ", stderr);
	va_start(list, format);
	(void)vfprintf(stderr, format, list);
	va_end(list);
	fputs(" (--help lists the options)\n", stderr);
	return -EINVAL;
}

static int parse_number(const char *name, const char *text, uint32_t least, uint32_t most,
			uint32_t *ret)
{
	unsigned long v;
	char *end;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || v < least || v > most)
		return usage_error("--%s %s: not a number in %u..%u", name, text, least, most);
	*ret = (uint32_t)v;
	return 0;
}

/* 1: help or version was asked for and printed. */
static int parse_args(int argc, char **argv, struct args *a)
{
	static const struct option options[] = {
		{ "count", required_argument, NULL, 'c' },
		{ "fp8", no_argument, NULL, '8' },
		{ "help", no_argument, NULL, 'h' },
		{ "model", required_argument, NULL, 'm' },
		{ "out", required_argument, NULL, 'o' },
		{ "seq-len", required_argument, NULL, 'l' },
		{ "start", required_argument, NULL, 's' },
		{ "text", required_argument, NULL, 't' },
		{ "threads", required_argument, NULL, 'j' },
		{ "tokens-npy", required_argument, NULL, 'n' },
		{ "version", no_argument, NULL, 'v' },
		{ 0 },
	};
	int c, rc = 0;

	while (rc == 0 && (c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) { /* flat switch */
		case 'c':
			rc = parse_number("count", optarg, 1, COUNT_MAX, &a->count);
			break;
		case '8':
			a->fp8 = true;
			break;
		case 'h':
			fputs(help, stdout);
			return 1;
		case 'm':
			a->model = optarg;
			break;
		case 'o':
			a->out = optarg;
			break;
		case 'l':
			rc = parse_number("seq-len", optarg, 1, 1u << 20, &a->seq_len);
			break;
		case 's':
			rc = parse_number("start", optarg, 0, INT32_MAX, &a->start);
			break;
		case 't':
			a->text = optarg;
			break;
		case 'j':
			rc = parse_number("threads", optarg, 1, 64, &a->threads);
			break;
		case 'n':
			a->tokens_npy = optarg;
			break;
		case 'v':
			printf("skvc-kvdump %s\n", SKVCD_VERSION);
			return 1;
		default:
			return -EINVAL; /* getopt_long has said why */
		}
	}
	if (rc < 0)
		return rc;
	if (optind < argc)
		return usage_error("%s: not an option", argv[optind]);
	if (!a->model || !a->out || !a->tokens_npy == !a->text)
		return usage_error("--model, --out and one of --tokens-npy and --text are needed");
	return 0;
}

/* ids start..start + count - 1 of the text's tokens. */
static int tokens_of_text(const struct report *r, const struct args *a, const char *text,
			  size_t bytes, int32_t *ret)
{
	struct tokenizer *tok = NULL;
	int32_t *ids = NULL;
	char path[4096];
	size_t count = 0;
	int rc;

	(void)snprintf(path, sizeof(path), "%s/tokenizer.json", a->model);
	rc = tokenizer_open(path, &tok, r->err, r->err_bytes);
	if (rc < 0)
		return rc;
	rc = tokenizer_encode(tok, text, bytes, &ids, &count);
	if (rc < 0)
		rc = report_fail(r, rc, "%s", strerror(-rc));
	else if (a->start > count || a->count > count - a->start)
		rc = report_fail(r, -EINVAL, "has %zu tokens, %u from %u on were asked for", count,
				 a->count, a->start);
	else
		memcpy(ret, ids + a->start, a->count * sizeof(ids[0]));
	free(ids);
	tokenizer_close(tok);
	return rc;
}

static int read_tokens(const struct args *a, struct dump *d, char *err, size_t err_bytes)
{
	const struct report r = { .subject = a->text ? a->text : a->tokens_npy,
				  .err = err,
				  .err_bytes = err_bytes };
	char *text = NULL;
	size_t bytes = 0;
	int rc;

	d->tokens = calloc(a->count, sizeof(d->tokens[0]));
	if (!d->tokens)
		return report_fail(&r, -ENOMEM, "no memory");
	rc = file_read(&r, r.subject, INPUT_BYTES_MAX, &text, &bytes);
	if (rc == 0 && a->text)
		rc = tokens_of_text(&r, a, text, bytes, d->tokens);
	else if (rc == 0)
		rc = npy_tokens(&r, text, bytes, a->start, a->count, d->tokens);
	free(text);
	for (uint32_t i = 0; i < a->count && rc == 0; i++)
		if ((uint32_t)d->tokens[i] >= model_config(d->model)->vocab)
			rc = report_fail(&r, -EINVAL, "token %u is %d, the model has %u", i,
					 d->tokens[i], model_config(d->model)->vocab);
	return rc;
}

static int alloc_tensors(const struct args *a, struct dump *d)
{
	const struct model_config *c = model_config(d->model);
	const uint32_t count = 2 * c->layers;
	const size_t tensor_bytes = (size_t)a->count * c->kv_heads * c->head_dim * sizeof(uint16_t);

	d->sequences = (a->count + a->seq_len - 1) / a->seq_len;
	d->seq_start = calloc(d->sequences + 1, sizeof(d->seq_start[0]));
	d->tensors = calloc(count, sizeof(d->tensors[0]));
	d->scales = calloc(count, sizeof(d->scales[0]));
	d->list = calloc(count + 4, sizeof(d->list[0]));
	d->names = calloc(count, 16);
	if (!d->seq_start || !d->tensors || !d->scales || !d->list || !d->names)
		return -ENOMEM;
	for (uint32_t s = 0; s < d->sequences; s++)
		d->seq_start[s] = (int32_t)(s * a->seq_len);
	d->seq_start[d->sequences] = (int32_t)a->count;
	for (uint32_t i = 0; i < count; i++) {
		d->tensors[i] = malloc(tensor_bytes);
		if (!d->tensors[i])
			return -ENOMEM;
	}
	return 0;
}

/* The tokens first..end - 1, positions from 0, into the tensors. */
static int run_sequence(struct dump *d, const struct model_pages *pages, const uint32_t *table,
			uint32_t first, uint32_t end, struct progress *bar)
{
	const struct model_config *c = model_config(d->model);
	const size_t width = (size_t)c->kv_heads * c->head_dim;
	int rc;

	for (uint32_t at = first; at < end; at += MODEL_BATCH_TOKENS) {
		uint32_t count = end - at < MODEL_BATCH_TOKENS ? end - at : MODEL_BATCH_TOKENS;

		rc = model_forward(d->model, pages, table, at - first, d->tokens + at, count, NULL);
		if (rc < 0)
			return rc;
		progress_update(bar, at + count);
	}
	for (uint32_t t = first; t < end; t++) {
		const uint32_t position = t - first;

		for (uint32_t i = 0; i < 2 * c->layers; i++)
			memcpy(d->tensors[i] + t * width,
			       model_page(c, pages, i, table[position / MODEL_BLOCK_TOKENS]) +
				       position % MODEL_BLOCK_TOKENS * width,
			       width * sizeof(uint16_t));
	}
	return 0;
}

static int run_model(const struct args *a, struct dump *d)
{
	const struct model_config *c = model_config(d->model);
	const uint32_t longest = a->seq_len < a->count ? a->seq_len : a->count;
	const uint32_t blocks = (longest + MODEL_BLOCK_TOKENS - 1) / MODEL_BLOCK_TOKENS;
	struct model_pages pages = { .base = calloc(1, model_pages_bytes(c, blocks)),
				     .blocks_count = blocks };
	uint32_t *table = calloc(blocks, sizeof(table[0]));
	struct progress bar;
	int rc = pages.base && table ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < blocks && table; i++)
		table[i] = i;
	progress_start(&bar, stdout, "model", "tokens", a->count);
	for (uint32_t s = 0; s < d->sequences && rc == 0; s++)
		rc = run_sequence(d, &pages, table, (uint32_t)d->seq_start[s],
				  (uint32_t)d->seq_start[s + 1], &bar);
	progress_end(&bar, rc == 0 ? a->count : 0);
	free(pages.base);
	free(table);
	return rc;
}

/* In place: element i of the bytes is never behind element i of the halves it is read from. */
static float to_e4m3(uint16_t *values, size_t count)
{
	float greatest = 0, scale;

	for (size_t i = 0; i < count; i++)
		greatest = fmaxf(greatest, fabsf(model_from_bf16(values[i])));
	scale = (float)fmax((double)greatest / (double)E4M3_MAX, SCALE_LEAST);
	for (size_t i = 0; i < count; i++) {
		uint8_t byte = e4m3_from_float(model_from_bf16(values[i]) / scale);

		memcpy((uint8_t *)values + i, &byte, 1);
	}
	return scale;
}

static void list_tensors(const struct args *a, struct dump *d, size_t *ret_count)
{
	const struct model_config *c = model_config(d->model);
	const size_t scalars = (size_t)a->count * c->kv_heads * c->head_dim;
	struct safetensors_tensor *t = d->list;

	*t++ = (struct safetensors_tensor){ "tokens",	  "I32",     1,
					    { a->count }, d->tokens, a->count * sizeof(int32_t) };
	*t++ = (struct safetensors_tensor){
		"seq_start",	      "I32",	    1,
		{ d->sequences + 1 }, d->seq_start, (d->sequences + 1) * sizeof(int32_t)
	};
	for (uint32_t i = 0; i < 2 * c->layers; i++) {
		char *name = d->names + (size_t)i * 16;

		(void)snprintf(name, 16, "%c.%u", i % 2 ? 'v' : 'k', i / 2);
		*t++ = (struct safetensors_tensor){ name,
						    a->fp8 ? "F8_E4M3" : "BF16",
						    3,
						    { a->count, c->kv_heads, c->head_dim },
						    d->tensors[i],
						    scalars * (a->fp8 ? 1 : 2) };
		if (a->fp8)
			d->scales[i % 2 * c->layers + i / 2] = to_e4m3(d->tensors[i], scalars);
	}
	if (a->fp8) {
		*t++ = (struct safetensors_tensor){ "scale.k", "F32",
						    1,	       { c->layers },
						    d->scales, c->layers * sizeof(float) };
		*t++ = (struct safetensors_tensor){ "scale.v",
						    "F32",
						    1,
						    { c->layers },
						    d->scales + c->layers,
						    c->layers * sizeof(float) };
	}
	*ret_count = (size_t)(t - d->list);
}

/* The folder's own name, without slashes at its end, into a buffer of its length + 1. */
static void base_name(const char *path, char *ret)
{
	size_t end = strlen(path), start;

	while (end > 1 && path[end - 1] == '/')
		end--;
	start = end;
	while (start && path[start - 1] != '/')
		start--;
	memcpy(ret, path + start, end - start);
	ret[end - start] = '\0';
}

static int write_dump(const struct args *a, struct dump *d, char *err, size_t err_bytes)
{
	char *name = malloc(strlen(a->model) + 1);
	const char *meta[] = { "model", name, "layout", "token,head,dim", "rope", "applied" };
	size_t count;
	int rc;

	if (!name)
		return -ENOMEM;
	base_name(a->model, name);
	list_tensors(a, d, &count);
	rc = safetensors_write(a->out, d->list, count, meta, sizeof(meta) / sizeof(meta[0]) / 2,
			       err, err_bytes);
	free(name);
	if (rc == 0)
		printf("%-22s %u tokens in %u sequences, %zu tensors\n", a->out, a->count,
		       d->sequences, count);
	return rc;
}

static int dump_all(const struct args *a, struct dump *d, char *err, size_t err_bytes)
{
	const struct model_options options = { .threads = a->threads,
					       .context_tokens = a->seq_len };
	int rc;

	rc = model_open(a->model, &options, &d->model, err, err_bytes);
	if (rc == 0)
		rc = read_tokens(a, d, err, err_bytes);
	if (rc == 0)
		rc = alloc_tensors(a, d);
	if (rc == 0)
		rc = run_model(a, d);
	if (rc == 0)
		rc = write_dump(a, d, err, err_bytes);
	if (rc < 0 && !err[0])
		(void)snprintf(err, err_bytes, "%s", strerror(-rc));
	return rc;
}

static void dump_free(struct dump *d)
{
	for (uint32_t i = 0; d->tensors && i < 2 * model_config(d->model)->layers; i++)
		free(d->tensors[i]);
	free(d->tensors);
	free(d->tokens);
	free(d->seq_start);
	free(d->scales);
	free(d->list);
	free(d->names);
	model_close(d->model);
}

int main(int argc, char **argv)
{
	struct args a = { .count = 1024, .seq_len = 1024 };
	struct dump d = { .model = NULL };
	char err[REPORT_BYTES] = "";
	int rc;

	rc = parse_args(argc, argv, &a);
	if (rc != 0)
		return rc < 0;
	assert(a.model && a.out);
	rc = dump_all(&a, &d, err, sizeof(err));
	dump_free(&d);
	if (rc < 0)
		fprintf(stderr, "skvc-kvdump: %s\n", err);
	return rc < 0;
}
