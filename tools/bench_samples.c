/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_samples.c - sorting, and picking from what is sorted.
 */
#include "tools/bench_samples.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int samples_init(struct samples *s, uint32_t max)
{
	*s = (struct samples){ .ns = calloc(max, sizeof(*s->ns)), .max = max };
	return s->ns ? 0 : -ENOMEM;
}

void samples_deinit(struct samples *s)
{
	free(s->ns);
	*s = (struct samples){ 0 };
}

void samples_add(struct samples *s, uint64_t ns)
{
	if (s->count < s->max)
		s->ns[s->count++] = ns;
}

static int compare_ns(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

void samples_sort(struct samples *s)
{
	if (s->count)
		qsort(s->ns, s->count, sizeof(*s->ns), compare_ns);
}

uint64_t samples_percentile(const struct samples *s, unsigned percent)
{
	uint64_t rank = ((uint64_t)s->count * percent + 99) / 100;

	return s->count ? s->ns[rank ? rank - 1 : 0] : 0;
}

static int compare_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

double median(double *values, uint32_t count)
{
	assert(count > 0);
	qsort(values, count, sizeof(*values), compare_double);
	return values[count / 2u];
}
