/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_frontier.h - the points of `skvc-bench frontier`, and their picture.
 */
#ifndef SKVCD_TOOLS_BENCH_FRONTIER_H
#define SKVCD_TOOLS_BENCH_FRONTIER_H

#include <stdint.h>
#include <stdio.h>

#define FRONTIER_POINTS_MAX 64u
#define FRONTIER_NAME_BYTES 48u

struct frontier_point {
	char name[FRONTIER_NAME_BYTES];
	double ratio;
	double x;			 /* of a bf16 prefill; 0: no guess; < 0: not known */
	double encode_gbps, decode_gbps; /* of raw bytes; 0: not known */
};

struct frontier {
	struct frontier_point point[FRONTIER_POINTS_MAX];
	uint32_t count;
	const char *title; /* borrowed: what was measured */
};

/* A picture of its own: two panels, light or dark as the reader's page. */
void frontier_svg(const struct frontier *f, FILE *out);

#endif
