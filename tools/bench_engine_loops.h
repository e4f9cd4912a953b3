/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_engine_loops.h - what an engine's GPU does all day: large matrix products (prefill) or rows of
 * narrow ones (decode), one step after the other without a gap, each timed by the GPU's own clock.
 */
#ifndef SKVCD_TOOLS_BENCH_ENGINE_LOOPS_H
#define SKVCD_TOOLS_BENCH_ENGINE_LOOPS_H

#include "tools/bench_engine.h"

struct engine_loops;

/* gpu: an ordinal; NULL: the loops run on the CPU, for tests.  -ENODEV: no GPU or no cuBLAS. */
int engine_loops_new(const char *gpu, struct engine_loops **ret, const struct report *r);
struct engine_loops *engine_loops_free(struct engine_loops *l);
const char *engine_loops_text(const struct engine_loops *l);
int engine_loops_run(struct engine_loops *l, enum engine_loop loop, double seconds,
		     struct engine_steps *ret, const struct report *r);

#endif
