/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_demo.c - a small inference engine that uses skvcd as an outside engine would: main() and its
 * options.  The engine is model.h, what it does with a prompt demo_run.h, the tour demo_tour.h.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/model/report.h"
#include "tools/demo_run.h"
#include "tools/demo_tour.h"
#include "tools/output.h"

static const char help[] =
	"usage: skvc-demo --model DIR (--prompt TEXT | --prompt-file FILE) [options]\n"
	"       skvc-demo tour [options]\n"
	"\n"
	"Continue a text with a Qwen3 or Llama model on the CPU.  The keys and values of the\n"
	"prompt go to skvcd, and come from there when it has them.  The tour starts a skvcd of\n"
	"its own, shows that a second process goes on from the first one's cache, and compares\n"
	"every byte; it brings its own model and prompt.\n"
	"\n"
	"  --model DIR         Hugging Face folder: config.json, model.safetensors, tokenizer.json\n"
	"  --prompt TEXT       what to continue\n"
	"  --prompt-file FILE\n"
	"  --tokens N          how many to generate, 1..4096 (32)\n"
	"  --socket PATH       of skvcd ($SKVC_SOCKET, or /run/skvcd/skvcd.sock)\n"
	"  --store             load nothing, store the prompt's blocks\n"
	"  --load              load what is there, store nothing\n"
	"  --no-cache          neither: no daemon at all\n"
	"  --threads N         (one per processor, at most 8)\n"
	"  --json              the result as JSON, with a digest of each block's bytes\n"
	"  --help, --version\n"
	"\n"
	"Without a daemon, or when it fails, the engine computes everything and says so.\n";

__attribute__((format(printf, 1, 2))) static int usage_error(const char *format, ...)
{
	va_list list;

	fputs("skvc-demo: ", stderr);
	va_start(list, format);
	(void)vfprintf(stderr, format, list);
	va_end(list);
	fputs(" (--help lists the options)\n", stderr);
	return -EINVAL;
}

static int parse_number(const char *name, const char *text, uint32_t most, uint32_t *ret)
{
	unsigned long v;
	char *end;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || v < 1 || v > most)
		return usage_error("--%s %s: not a number in 1..%u", name, text, most);
	*ret = (uint32_t)v;
	return 0;
}

static int set_mode(struct demo_args *a, enum demo_mode mode)
{
	if (a->mode != DEMO_LOAD_AND_STORE)
		return usage_error("only one of --store, --load and --no-cache");
	a->mode = mode;
	return 0;
}

/* 1: help or version was asked for and printed. */
static int parse_options(int argc, char **argv, struct demo_args *a)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "json", no_argument, NULL, 'j' },
		{ "load", no_argument, NULL, 'l' },
		{ "model", required_argument, NULL, 'm' },
		{ "no-cache", no_argument, NULL, 'x' },
		{ "prompt", required_argument, NULL, 'p' },
		{ "prompt-file", required_argument, NULL, 'f' },
		{ "socket", required_argument, NULL, 'S' },
		{ "store", no_argument, NULL, 's' },
		{ "threads", required_argument, NULL, 't' },
		{ "tokens", required_argument, NULL, 'n' },
		{ "version", no_argument, NULL, 'v' },
		{ 0 },
	};
	int c, rc = 0;

	while (rc == 0 && (c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) { /* flat switch */
		case 'h':
			fputs(help, stdout);
			return 1;
		case 'j':
			a->json = true;
			break;
		case 'l':
			rc = set_mode(a, DEMO_LOAD);
			break;
		case 'm':
			a->model = optarg;
			break;
		case 'x':
			rc = set_mode(a, DEMO_NO_CACHE);
			break;
		case 'p':
			a->prompt = optarg;
			break;
		case 'f':
			a->prompt_file = optarg;
			break;
		case 'S':
			a->socket = optarg;
			break;
		case 's':
			rc = set_mode(a, DEMO_STORE);
			break;
		case 't':
			rc = parse_number("threads", optarg, 64, &a->threads);
			break;
		case 'n':
			rc = parse_number("tokens", optarg, DEMO_TOKENS_MAX, &a->tokens);
			break;
		case 'v':
			printf("skvc-demo %s\n", SKVCD_VERSION);
			return 1;
		default:
			return -EINVAL; /* getopt_long has said why */
		}
	}
	return rc;
}

static int check_options(const struct demo_args *a, int rest, char **argv, bool *ret_tour)
{
	*ret_tour = rest > 0 && strcmp(argv[0], "tour") == 0;
	if (rest > *ret_tour)
		return usage_error("%s: not an option", argv[*ret_tour]);
	if (a->prompt && a->prompt_file)
		return usage_error("--prompt or --prompt-file, not both");
	if (*ret_tour && (a->json || a->socket || a->mode != DEMO_LOAD_AND_STORE))
		return usage_error("the tour has a daemon and a way of its own: --json, --socket, "
				   "--store, --load and --no-cache are not for it");
	if (!*ret_tour && !a->model)
		return usage_error("--model is needed");
	if (!*ret_tour && !a->prompt && !a->prompt_file)
		return usage_error("--prompt or --prompt-file is needed");
	return 0;
}

int main(int argc, char **argv)
{
	struct demo_args args = { .tokens = 32 };
	char err[REPORT_BYTES] = "";
	bool tour = false;
	int rc;

	rc = parse_options(argc, argv, &args);
	if (rc == 0)
		rc = check_options(&args, argc - optind, argv + optind, &tour);
	if (rc != 0)
		return rc < 0;
	rc = tour ? demo_tour(&args, err, sizeof(err)) : demo_run(&args, err, sizeof(err));
	if (rc < 0)
		fprintf(stderr, "skvc-demo: %s\n", err);
	return output_end() < 0 || rc < 0;
}
