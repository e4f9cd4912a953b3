/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_samples.h - times of the benchmarks, their percentiles and medians.
 */
#ifndef SKVCD_TOOLS_BENCH_SAMPLES_H
#define SKVCD_TOOLS_BENCH_SAMPLES_H

#include <stdint.h>

struct samples {
	uint64_t *ns; /* owned */
	uint32_t count, max;
};

/* -ENOMEM.  max > 0. */
int samples_init(struct samples *s, uint32_t max);
void samples_deinit(struct samples *s); /* zero-initialised is fine */
/* Beyond max they are not kept. */
void samples_add(struct samples *s, uint64_t ns);
void samples_sort(struct samples *s);
/* Of sorted samples, nearest rank; 0 of none. */
uint64_t samples_percentile(const struct samples *s, unsigned percent);

/* Sorts; count > 0. */
double median(double *values, uint32_t count);

#endif
