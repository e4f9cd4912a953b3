/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench.c - the door to the benchmarks; each is a program of its own behind one name.
 */
#include "tools/skvc_bench.h"

#include <stdio.h>
#include <string.h>

static const char usage_text[] =
	"Usage: skvc-bench BENCHMARK [OPTION]...\n"
	"\n"
	"Benchmarks:\n"
	"  codec   ratio, bits per scalar and speed of the codec on a file of KV cache\n"
	"  ipc     round trip through the shared-memory rings, against a Unix socket\n"
	"\n"
	"skvc-bench BENCHMARK --help tells the options of one.  -V, --version: the version.\n"
	"Exit status: 0 done, 1 failure, 2 wrong usage.\n";

static const struct benchmark {
	const char *name;
	int (*run)(int argc, char **argv);
} benchmarks[] = {
	{ "codec", bench_codec_main },
	{ "ipc", bench_ipc_main },
};

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "-h") || !strcmp(name, "--help")) {
		(void)fputs(usage_text, stdout);
		return 0;
	}
	if (!strcmp(name, "-V") || !strcmp(name, "--version")) {
		(void)printf("skvc-bench " SKVCD_VERSION "\n");
		return 0;
	}
	for (size_t i = 0; i < sizeof(benchmarks) / sizeof(benchmarks[0]); i++)
		if (!strcmp(benchmarks[i].name, name))
			return benchmarks[i].run(argc - 1, argv + 1);
	(void)fprintf(stderr, "skvc-bench: %s%s\nTry 'skvc-bench --help'.\n",
		      name[0] ? "unknown benchmark: " : "a benchmark is missing", name);
	return 2;
}
