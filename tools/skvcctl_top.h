/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_top.h - skvcctl top: pictures one after the other become rates, and rates a screen of lines.
 * skvcctl_top.c does that and knows no terminal; skvcctl_screen.c shows it with ncurses.
 */
#ifndef SKVCD_TOOLS_SKVCCTL_TOP_H
#define SKVCD_TOOLS_SKVCCTL_TOP_H

#include "tools/skvcctl.h"

#define TOP_HISTORY 240u /* samples that a sparkline can show */
#define TOP_ROWS_MAX 256u
#define TOP_LINE_BYTES 1024u

enum top_series {
	TOP_STORED, /* raw bytes a second */
	TOP_LOADED,
	TOP_LOOKED_UP, /* blocks a second */
	TOP_HIT,       /* percent of these */
	TOP_SPILLED,   /* bytes a second */
	TOP_FETCHED,
	TOP_SERIES_COUNT
};

struct top {
	struct skvcctl_picture now, last; /* owned */
	uint64_t now_ns, last_ns;	  /* 0: there is none */
	double history[TOP_SERIES_COUNT][TOP_HISTORY];
	unsigned count; /* of samples; the newest is last */
	bool utf8;
};

enum top_look { TOP_PLAIN, TOP_HEAD, TOP_ALERT };

struct top_screen {
	char line[TOP_ROWS_MAX][TOP_LINE_BYTES];
	enum top_look look[TOP_ROWS_MAX];
	unsigned count;
};

void top_take(struct top *t, struct skvcctl_picture *p, uint64_t now_ns); /* *p is taken over */
void top_deinit(struct top *t);
/* At most that many lines, none wider than that. */
void top_render(const struct top *t, unsigned rows, unsigned columns, struct top_screen *ret);
/* Blocks of eight heights, newest right, the highest of those shown is the full height; NUL behind. */
void top_sparkline(const double *values, unsigned count, unsigned columns, bool utf8, char *ret,
		   size_t ret_bytes);

/* Until q is pressed; without a terminal one text screen, or one each time with watch.  Its exit status. */
int skvcctl_top(const struct skvcctl_source *source, unsigned seconds, bool watch);

#endif
