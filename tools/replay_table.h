/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_table.h - what came of `skvc-bench replay`, and its picture.
 */
#ifndef SKVCD_TOOLS_REPLAY_TABLE_H
#define SKVCD_TOOLS_REPLAY_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "tools/replay_log.h"
#include "tools/replay_policies.h"
#include "tools/replay_promote.h"

#define REPLAY_CAPACITIES_MAX 32u

struct replay_point {
	uint32_t blocks, nvme_blocks;
	struct replay_result host; /* of the host's capacity alone */
	struct replay_result all;  /* with NVMe behind it; the same without */
};

struct replay_table {
	const char *file; /* borrowed */
	uint32_t requests, working_set, named;
	uint64_t block_bytes; /* 0: not known */
	double nvme_percent;  /* of the working set; 0: none */
	double percent[REPLAY_CAPACITIES_MAX];
	uint32_t capacities;
	bool wanted[REPLAY_POLICIES];
	/* Of the NVMe log behind an LRU host of that capacity: by its own rules, and without copies. */
	uint32_t segment_blocks; /* 0: too few segments, or no NVMe */
	struct replay_log_result log[REPLAY_CAPACITIES_MAX], no_copies[REPLAY_CAPACITIES_MAX];
	/* With NVMe, under the daemon's policy. */
	struct replay_promote_result promote[REPLAY_PROMOTIONS][REPLAY_CAPACITIES_MAX];
	struct replay_point point[REPLAY_POLICIES][REPLAY_CAPACITIES_MAX];
};

void replay_table_print(const struct replay_table *t, FILE *out);
int replay_table_json(const struct replay_table *t, FILE *out); /* 0, -ENOMEM */
/* A picture of its own: hit ratio against capacity, light or dark as the reader's page. */
void replay_table_svg(const struct replay_table *t, FILE *out);

#endif
