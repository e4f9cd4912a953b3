/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench.h - the benchmarks behind skvc-bench.  Each takes argv with its own name first, prints to
 * stdout and errors to stderr, and returns the exit status: 0 done, 1 failure, 2 wrong usage.
 */
#ifndef SKVCD_TOOLS_SKVC_BENCH_H
#define SKVCD_TOOLS_SKVC_BENCH_H

int bench_codec_main(int argc, char **argv); /* skvc_bench_codec.c */
int bench_ipc_main(int argc, char **argv);   /* skvc_bench_ipc.c */

#endif
