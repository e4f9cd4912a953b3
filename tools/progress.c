/* SPDX-License-Identifier: Apache-2.0 */
/*
 * progress.c - draws over its own line with a carriage return; nothing of it stays in a log file.
 */
#include "tools/progress.h"

#include <assert.h>
#include <time.h>
#include <unistd.h>

#define BAR_CELLS 30u
#define REDRAW_NS 100000000u

uint64_t progress_now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void draw(const struct progress *p, uint64_t done)
{
	uint32_t full = (uint32_t)(done * BAR_CELLS / p->total);
	char bar[BAR_CELLS + 1];

	for (uint32_t i = 0; i < BAR_CELLS; i++)
		bar[i] = i < full ? '#' : '.';
	bar[BAR_CELLS] = '\0';
	fprintf(p->out, "\r%-22s [%s] %3u%%", p->label, bar, (uint32_t)(done * 100 / p->total));
	(void)fflush(p->out);
}

void progress_start(struct progress *p, FILE *out, const char *label, const char *unit,
		    uint64_t total)
{
	assert(total);
	*p = (struct progress){ .out = out, .label = label, .unit = unit, .total = total };
	p->terminal = out && isatty(fileno(out));
	p->start_ns = progress_now_ns();
	p->drawn_ns = p->start_ns;
	if (p->terminal)
		draw(p, 0);
}

void progress_update(struct progress *p, uint64_t done)
{
	uint64_t now_ns = progress_now_ns();

	assert(done <= p->total);
	if (!p->terminal || now_ns - p->drawn_ns < REDRAW_NS)
		return;
	p->drawn_ns = now_ns;
	draw(p, done);
}

void progress_end(struct progress *p, uint64_t done)
{
	double seconds = (double)(progress_now_ns() - p->start_ns) * 1e-9;

	if (!p->out)
		return;
	if (p->terminal)
		fprintf(p->out, "\r\033[K");
	fprintf(p->out, "%-22s %llu %s in %.3f s\n", p->label, (unsigned long long)done, p->unit,
		seconds);
	(void)fflush(p->out);
}
