/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_engine.h - the other process of `skvc-bench neighbour`: one that computes, as an engine does, and
 * times its own steps.  It is told what to do on its standard input, a line each:
 *
 *	prefill SECONDS		large matrix products: bound by arithmetic
 *	decode SECONDS		rows of narrow ones: bound by memory and by launches
 *
 * and answers on its standard output, a line each:
 *
 *	ready TEXT		at its start; what it computes on
 *	steps N MEAN P50 P99	microseconds
 *	failed TEXT		and then it ends
 */
#ifndef SKVCD_TOOLS_BENCH_ENGINE_H
#define SKVCD_TOOLS_BENCH_ENGINE_H

#include <stdbool.h>
#include <sys/types.h>

#include "gpu/model/report.h"

#define ENGINE_LINE_BYTES 512u

enum engine_loop { ENGINE_PREFILL, ENGINE_DECODE, ENGINE_LOOP_COUNT };

extern const char *const engine_loop_names[ENGINE_LOOP_COUNT];

struct engine {
	pid_t pid; /* 0: none */
	int to, from;
	char line[ENGINE_LINE_BYTES]; /* what of its next line has come */
	size_t line_bytes;
	char text[64]; /* what it computes on */
};

struct engine_steps {
	unsigned long count;
	double mean_us, p50_us, p99_us;
};

/* Start it, before the caller touches a GPU.  gpu: an ordinal, or NULL; no_gpu: it computes on the CPU. */
int engine_start(struct engine *e, const char *gpu, bool no_gpu, const struct report *r);
int engine_begin(struct engine *e, enum engine_loop loop, double seconds, const struct report *r);
/* 1: *ret is what the loop did; 0: not yet; or -errno.  Waits at most wait_ms. */
int engine_answer(struct engine *e, int wait_ms, struct engine_steps *ret, const struct report *r);
void engine_stop(struct engine *e); /* zero-initialised is fine */

#endif
