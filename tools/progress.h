/* SPDX-License-Identifier: Apache-2.0 */
/*
 * progress.h - a bar for steps that take a while: drawn on a terminal, one plain line elsewhere.
 */
#ifndef SKVCD_TOOLS_PROGRESS_H
#define SKVCD_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct progress {
	FILE *out;	   /* borrowed; NULL: quiet */
	const char *label; /* borrowed */
	const char *unit;  /* borrowed; "tokens" */
	uint64_t total;
	uint64_t start_ns;
	uint64_t drawn_ns;
	bool terminal;
};

/* @total: in @unit, > 0. */
void progress_start(struct progress *p, FILE *out, const char *label, const char *unit,
		    uint64_t total);

/* Draws at most ten times a second. */
void progress_update(struct progress *p, uint64_t done);

/* The line that stays: label, what was done, in how much time. */
void progress_end(struct progress *p, uint64_t done);

/* CLOCK_MONOTONIC. */
uint64_t progress_now_ns(void);

#endif
