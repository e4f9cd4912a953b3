/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_screen.c - skvcctl top on a terminal, by ncurses; and what it does where there is none.
 */
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <ncurses.h>

#include "tools/output.h"
#include "tools/skvcctl_top.h"

#define SCREEN_TEXT_ROWS 60u
#define SCREEN_TEXT_COLUMNS 100u
#define SCREEN_ALERT_PAIR 1

struct view {
	struct top top;
	struct top_screen screen;
	char err[SKVCCTL_ERR_BYTES];
	bool paused;
};

static uint64_t now_ns(void)
{
	struct timespec ts = { 0 };

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* A daemon that does not answer for a moment leaves the last picture, and why. */
static enum skvcctl_exit look(struct view *v, const struct skvcctl_source *source)
{
	struct skvcctl_picture p = { 0 };
	enum skvcctl_exit e;

	v->err[0] = '\0';
	e = skvcctl_fetch(source, SKVCCTL_GET_ALL, &p, v->err, sizeof(v->err));
	if (e == SKVCCTL_OK)
		top_take(&v->top, &p, now_ns());
	return e;
}

/* ---- without a terminal ---- */

static int print_text(struct view *v)
{
	top_render(&v->top, SCREEN_TEXT_ROWS, SCREEN_TEXT_COLUMNS, &v->screen);
	for (unsigned i = 0; i < v->screen.count; i++)
		(void)printf("%s\n", v->screen.line[i]);
	return output_end() < 0 ? SKVCCTL_FAILURE : SKVCCTL_OK;
}

static int run_text(struct view *v, const struct skvcctl_source *source, unsigned seconds,
		    bool watch)
{
	struct timespec pause = { .tv_sec = (time_t)seconds };
	int r;

	do {
		(void)nanosleep(&pause, NULL);
		r = (int)look(v, source);
		if (r != SKVCCTL_OK) {
			(void)fprintf(stderr, "skvcctl: %s\n", v->err);
			return r;
		}
		r = print_text(v);
		if (watch)
			(void)printf("\n");
	} while (watch && r == SKVCCTL_OK);
	return r;
}

/* ---- on a terminal ---- */

static void draw(struct view *v, unsigned seconds)
{
	static const chtype looks[] = {
		[TOP_PLAIN] = A_NORMAL, [TOP_HEAD] = A_REVERSE, [TOP_ALERT] = A_BOLD
	};
	unsigned rows = LINES > 2 ? (unsigned)LINES - 1 : 1;

	top_render(&v->top, rows, (unsigned)COLS, &v->screen);
	(void)erase();
	for (unsigned i = 0; i < v->screen.count; i++) {
		enum top_look look_ = v->screen.look[i];
		chtype how = looks[look_];

		if (look_ == TOP_ALERT && has_colors())
			how |= (chtype)COLOR_PAIR(SCREEN_ALERT_PAIR);
		(void)attrset((int)how);
		(void)mvaddstr((int)i, 0, v->screen.line[i]);
		if (look_ == TOP_HEAD) /* to the edge */
			(void)chgat(-1, A_NORMAL, 0, NULL);
	}
	(void)attrset(v->err[0] ? A_BOLD : A_DIM);
	if (v->err[0])
		(void)mvprintw(LINES - 1, 0, "%.*s", COLS - 1, v->err);
	else
		(void)mvprintw(LINES - 1, 0, "q quit   space %s   + - every %u s",
			       v->paused ? "go on" : "pause", seconds);
	(void)attrset(A_NORMAL);
	(void)refresh();
}

/* false: it is over. */
static bool key(struct view *v, int c, unsigned *seconds)
{
	if (c == 'q' || c == 'Q' || c == 27)
		return false;
	if (c == ' ')
		v->paused = !v->paused;
	else if (c == '+' && *seconds < 60)
		(*seconds)++;
	else if (c == '-' && *seconds > 1)
		(*seconds)--;
	return true;
}

static void run_screen(struct view *v, const struct skvcctl_source *source, unsigned seconds)
{
	uint64_t next_ns = now_ns();

	(void)cbreak();
	(void)noecho();
	(void)curs_set(0);
	if (has_colors() && start_color() == OK) {
		(void)use_default_colors();
		(void)init_pair(SCREEN_ALERT_PAIR, COLOR_RED, -1);
	}
	for (;;) {
		uint64_t now = now_ns();
		int c;

		if (now >= next_ns) {
			if (!v->paused)
				(void)look(v, source);
			next_ns = now + (uint64_t)seconds * 1000000000u;
		}
		draw(v, seconds);
		timeout((int)((next_ns - now) / 1000000 + 1));
		c = getch(); /* a resize comes as a key, too */
		if (!key(v, c, &seconds))
			return;
	}
}

int skvcctl_top(const struct skvcctl_source *source, unsigned seconds, bool watch)
{
	static struct view v; /* history and a screen: 300 KiB */
	const char *term = getenv("TERM");
	SCREEN *screen = NULL;
	int r;

	(void)setlocale(LC_CTYPE, "");
	v.top.utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
	r = (int)look(&v, source);
	if (r != SKVCCTL_OK) {
		(void)fprintf(stderr, "skvcctl: %s\n", v.err);
		return r;
	}
	if (isatty(STDOUT_FILENO) && isatty(STDIN_FILENO) && term && strcmp(term, "dumb") != 0)
		screen = newterm(NULL, stdout, stdin);
	if (screen) {
		run_screen(&v, source, seconds);
		(void)endwin();
		delscreen(screen);
	} else {
		r = run_text(&v, source, seconds, watch);
	}
	top_deinit(&v.top);
	return r;
}
