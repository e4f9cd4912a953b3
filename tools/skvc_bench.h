/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench.h - the benchmarks behind skvc-bench.  Each takes argv with its own name first, prints to
 * stdout and errors to stderr, and returns the exit status: 0 done, 1 failure, 2 wrong usage.
 */
#ifndef SKVCD_TOOLS_SKVC_BENCH_H
#define SKVCD_TOOLS_SKVC_BENCH_H

#include <stdint.h>
#include <stdio.h>

int bench_calibrate_main(int argc, char **argv); /* skvc_bench_calibrate.c */
int bench_codec_main(int argc, char **argv);	 /* skvc_bench_codec.c */
int bench_engine_main(int argc, char **argv);	 /* bench_engine.c: started by `neighbour` */
int bench_frontier_main(int argc, char **argv);	 /* skvc_bench_frontier.c */
int bench_ipc_main(int argc, char **argv);	 /* skvc_bench_ipc.c */
int bench_model_main(int argc, char **argv);	 /* skvc_bench_model.c */
int bench_neighbour_main(int argc, char **argv); /* skvc_bench_neighbour.c */
int bench_nvme_main(int argc, char **argv);	 /* skvc_bench_nvme.c */
int bench_replay_main(int argc, char **argv);	 /* skvc_bench_replay.c */
int bench_tier_main(int argc, char **argv);	 /* skvc_bench_tier.c */

/* "64M", "4G", "2097152": K, M, G and T are powers of 1024.  -EINVAL; 0 bytes is no size. */
int bench_size_parse(const char *text, uint64_t *ret_bytes);
/* A decimal number from least to most, 1 <= least; else -EINVAL. */
int bench_count_parse(const char *text, uint32_t least, uint32_t most, uint32_t *ret_count);
/* Seconds, from least to 60; else -EINVAL. */
int bench_seconds_parse(const char *text, double least, double *ret_seconds);
/* Says "skvc-bench BENCHMARK: whatvalue" and where the help is.  Returns 2, the exit status. */
int bench_usage_error(const char *benchmark, const char *what, const char *value);

/* A file that draw() fills.  0, or -errno after a line on stderr. */
int bench_file_write(const char *path, void (*draw)(void *user, FILE *out), void *user);

#endif
