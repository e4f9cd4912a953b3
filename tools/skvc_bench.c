/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench.c - the door to the benchmarks; each is a program of its own behind one name.
 */
#include "tools/skvc_bench.h"
#include "tools/output.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage_text[] =
	"Usage: skvc-bench BENCHMARK [OPTION]...\n"
	"\n"
	"Benchmarks:\n"
	"  calibrate  fits a profile on a file of KV cache and writes it\n"
	"  codec      ratio, bits per scalar and speed of the codec on a file of KV cache\n"
	"  frontier   ratio of every speculator against what it costs and how fast it is\n"
	"  ipc        round trip through the shared-memory rings, against a Unix socket\n"
	"  model      the model speculator: what it makes of dumps with token ids\n"
	"  neighbour  what offloading costs an engine on the same GPU\n"
	"  nvme       records through the daemon's NVMe log, next to fio on the same file\n"
	"  replay     hits of the daemon's policy on a trace, against LRU, S3-FIFO, ARC, the optimum\n"
	"  tier       storing from and loading into GPU memory, against raw copies\n"
	"\n"
	"skvc-bench BENCHMARK --help tells the options of one.  -V, --version: the version.\n"
	"Exit status: 0 done, 1 failure, 2 wrong usage.\n";

static const struct benchmark {
	const char *name;
	int (*run)(int argc, char **argv);
} benchmarks[] = {
	{ "calibrate", bench_calibrate_main },
	{ "codec", bench_codec_main },
	{ "frontier", bench_frontier_main },
	{ "ipc", bench_ipc_main },
	{ "model", bench_model_main },
	{ "neighbour", bench_neighbour_main },
	{ "neighbour-engine", bench_engine_main }, /* not for people: the other process */
	{ "nvme", bench_nvme_main },
	{ "replay", bench_replay_main },
	{ "tier", bench_tier_main },
};

int bench_size_parse(const char *text, uint64_t *ret_bytes)
{
	static const char units[] = "KMGT";
	unsigned long long n;
	const char *unit;
	unsigned shift = 0;
	char *end;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno || end == text || text[0] == '-')
		return -EINVAL;
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		shift = 10u * (unsigned)(unit - units + 1);
		end++;
	}
	if (*end || n == 0 || n > UINT64_MAX >> shift)
		return -EINVAL;
	*ret_bytes = (uint64_t)n << shift;
	return 0;
}

int bench_count_parse(const char *text, uint32_t least, uint32_t most, uint32_t *ret_count)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*end || end == text || n < least || n > most)
		return -EINVAL;
	*ret_count = (uint32_t)n;
	return 0;
}

int bench_seconds_parse(const char *text, double least, double *ret_seconds)
{
	char *end;
	double s = strtod(text, &end);

	if (*end || end == text || !(s >= least && s <= 60))
		return -EINVAL;
	*ret_seconds = s;
	return 0;
}

int bench_usage_error(const char *benchmark, const char *what, const char *value)
{
	(void)fprintf(stderr, "skvc-bench %s: %s%s\nTry 'skvc-bench %s --help'.\n", benchmark, what,
		      value, benchmark);
	return 2;
}

int bench_file_write(const char *path, void (*draw)(void *user, FILE *out), void *user)
{
	FILE *out = fopen(path, "w");
	int r = 0;

	if (out) {
		draw(user, out);
		if (ferror(out))
			r = -EIO;
		if (fclose(out) != 0)
			r = -errno;
	} else {
		r = -errno;
	}
	if (r < 0)
		(void)fprintf(stderr, "skvc-bench: %s: %s\n", path, strerror(-r));
	return r;
}

static int run(const struct benchmark *b, int argc, char **argv)
{
	int status = b->run(argc, argv);

	return output_end() < 0 && status == 0 ? 1 : status;
}

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
			return run(&benchmarks[i], argc - 1, argv + 1);
	(void)fprintf(stderr, "skvc-bench: %s%s\nTry 'skvc-bench --help'.\n",
		      name[0] ? "unknown benchmark: " : "a benchmark is missing", name);
	return 2;
}
