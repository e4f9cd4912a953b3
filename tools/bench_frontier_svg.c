/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_frontier_svg.c - the frontier as an SVG without scripts, fonts or links: ratio against the cost of the
 * guess, and against the speed of decoding, all axes logarithmic.
 */
#include "tools/bench_frontier.h"

#include <math.h>
#include <string.h>

#define WIDTH 920
#define HEIGHT 400
#define PLOT_WIDTH 360.0
#define PLOT_HEIGHT 270.0
#define PLOT_TOP 60.0
#define ZERO_WIDTH 40.0 /* of a strip for x = 0, left of the axis */

struct panel {
	double left;	 /* of the plot */
	double from, to; /* of the horizontal axis */
	double ratio_to; /* of the vertical axis, which begins at 1 */
	double strip;	 /* ZERO_WIDTH or 0 */
};

static const char style[] =
	"<style>\n"
	".b{fill:#fff}.t{fill:#24292f}.m{fill:#57606a}.g{stroke:#d0d7de}.a{stroke:#57606a}\n"
	".p0{fill:#8c959f}.p1{fill:#0969da}.p2{fill:#bc4c00}.p3{fill:#1a7f37}.p4{fill:#8250df}\n"
	".l{stroke:#bc4c00}.d{stroke:#8250df}\n"
	"@media (prefers-color-scheme: dark){.b{fill:#0d1117}.t{fill:#e6edf3}.m{fill:#9198a1}\n"
	".g{stroke:#30363d}.a{stroke:#9198a1}.p0{fill:#6e7681}.p1{fill:#58a6ff}.p2{fill:#f0883e}\n"
	".p3{fill:#3fb950}.p4{fill:#ab7df8}.l{stroke:#f0883e}.d{stroke:#ab7df8}}\n"
	"text{font-family:system-ui,sans-serif;font-size:12px}\n"
	"</style>\n";

static double place_x(const struct panel *p, double v)
{
	if (v <= 0)
		return p->left + ZERO_WIDTH / 2;
	return p->left + p->strip +
	       (PLOT_WIDTH - p->strip) * log(v / p->from) / log(p->to / p->from);
}

static double place_y(const struct panel *p, double ratio)
{
	return PLOT_TOP + PLOT_HEIGHT * (1 - log(ratio) / log(p->ratio_to));
}

static void text(FILE *out, double x, double y, const char *anchor, const char *class,
		 const char *what)
{
	(void)fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y,
		      anchor, class);
	for (; *what; what++) /* names come from files */
		switch (*what) {
		case '<':
			(void)fputs("&lt;", out);
			break;
		case '&':
			(void)fputs("&amp;", out);
			break;
		default:
			(void)fputc(*what, out);
		}
	(void)fputs("</text>\n", out);
}

static void line(FILE *out, double x0, double y0, double x1, double y1, const char *class)
{
	(void)fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n",
		      x0, y0, x1, y1, class);
}

static void axes(const struct panel *p, const char *title, const char *label, FILE *out)
{
	static const double ratios[] = { 1, 1.2, 1.5, 2, 3, 4, 6, 8, 10 };
	double bottom = PLOT_TOP + PLOT_HEIGHT, right = p->left + PLOT_WIDTH;
	/* Over many decades there is room for these alone. */
	int all = log10(p->to / p->from) < 3;
	char number[32];

	text(out, p->left, PLOT_TOP - 12, "start", "t", title);
	text(out, p->left + PLOT_WIDTH / 2, bottom + 40, "middle", "m", label);
	for (size_t i = 0; i < sizeof(ratios) / sizeof(ratios[0]); i++) {
		if (ratios[i] > p->ratio_to)
			break;
		line(out, p->left, place_y(p, ratios[i]), right, place_y(p, ratios[i]), "g");
		(void)snprintf(number, sizeof(number), "%g", ratios[i]);
		text(out, p->left - 8, place_y(p, ratios[i]) + 4, "end", "m", number);
	}
	for (int e = (int)floor(log10(p->from)); e <= (int)ceil(log10(p->to)); e++)
		for (int k = 1; k < 10; k += k == 1 ? 1 : k == 2 ? 3 : 5) {
			double v = pow(10, e) * k; /* 1, 2 and 5 of each decade */

			if (v < p->from || v > p->to || (k > 1 && !all))
				continue;
			line(out, place_x(p, v), PLOT_TOP, place_x(p, v), bottom, "g");
			(void)snprintf(number, sizeof(number), "%g", v);
			text(out, place_x(p, v), bottom + 18, "middle", "m", number);
		}
	if (p->strip > 0) {
		line(out, p->left + p->strip, PLOT_TOP, p->left + p->strip, bottom, "a");
		text(out, place_x(p, 0), bottom + 18, "middle", "m", "0");
	}
	line(out, p->left, bottom, right, bottom, "a");
	line(out, p->left, PLOT_TOP, p->left, bottom, "a");
}

static const char *class_of(const char *name)
{
	return !strncmp(name, "channel", 7) ? "p1"
	       : !strncmp(name, "layer", 5) ? "p2"
	       : !strncmp(name, "model", 5) ? "p3"
	       : !strncmp(name, "draft", 5) ? "p4"
					    : "p0";
}

static const char *line_of(const char *name)
{
	return !strncmp(name, "draft", 5) ? "d" : "l";
}

/* Of names with a number behind a word, such as "layer 2": the word's length with the space; of others 0. */
static size_t series_of(const char *name)
{
	static const char *const words[] = { "layer ", "draft " };

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (!strncmp(name, words[i], strlen(words[i])))
			return strlen(words[i]);
	return 0;
}

/* Does this point go on with the series of the one before? */
static int follows(const struct frontier_point *point, uint32_t i)
{
	const size_t n = series_of(point[i].name);

	return n > 0 && i > 0 && !strncmp(point[i].name, point[i - 1u].name, n);
}

/* Settings of a series lie close together: a number is enough beside the first one's name. */
static const char *label_of(const struct frontier *f, uint32_t i)
{
	return f->point[i].name + (follows(f->point, i) ? series_of(f->point[i].name) : 0);
}

#define LINE_HEIGHT 13.0
#define LETTER_WIDTH 6.6

struct labels { /* what has been written, so that nothing is written over it */
	struct {
		double from, to, y;
	} at[FRONTIER_POINTS_MAX];
	uint32_t count;
};

static int label_free(const struct labels *l, double from, double to, double y)
{
	for (uint32_t i = 0; i < l->count; i++)
		if (from < l->at[i].to && to > l->at[i].from && fabs(y - l->at[i].y) < LINE_HEIGHT)
			return 0;
	return 1;
}

/* A label at x or, where there is one already, a few lines above or below; one above its point only higher. */
static void label(struct labels *l, double x, double y, const char *anchor, const char *what,
		  FILE *out)
{
	double width = LETTER_WIDTH * (double)strlen(what);
	double from = !strcmp(anchor, "start") ? x
		      : !strcmp(anchor, "end") ? x - width
					       : x - width / 2;
	int above = !strcmp(anchor, "middle");
	double step = 0;

	for (int k = 1; k < 12 && !label_free(l, from, from + width, y + step); k++) {
		int lines = (k + 1) / 2;

		step = (above ? -k : k % 2 ? -lines : lines) * LINE_HEIGHT;
	}
	text(out, x, y + step, anchor, "t", what);
	if (l->count < FRONTIER_POINTS_MAX) {
		l->at[l->count].from = from;
		l->at[l->count].to = from + width;
		l->at[l->count++].y = y + step;
	}
}

static void points(const struct frontier *f, const struct panel *p, int by_speed, FILE *out)
{
	struct labels labels = { .count = 0 };
	double last_x = 0, last_y = 0;

	for (uint32_t i = 0; i < f->count; i++) {
		const struct frontier_point *at = &f->point[i];
		double v = by_speed ? at->decode_gbps : at->x, x, y;

		if (by_speed ? v <= 0 : v < 0)
			continue;
		x = place_x(p, v);
		y = place_y(p, at->ratio);
		if (follows(f->point, i) && last_x > 0)
			line(out, last_x, last_y, x, y, line_of(at->name));
		last_x = series_of(at->name) ? x : 0;
		last_y = y;
		(void)fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" class=\"%s\"/>\n", x, y,
			      class_of(at->name));
		if (label_of(f, i) != at->name)
			label(&labels, x, y - 9, "middle", label_of(f, i), out);
		else if (x > p->left + PLOT_WIDTH - 90)
			label(&labels, x - 8, y + 4, "end", at->name, out);
		else
			label(&labels, x + 8, y + 4, "start", at->name, out);
	}
}

static struct panel panel_of(const struct frontier *f, double left, int by_speed)
{
	struct panel p = {
		.left = left, .from = INFINITY, .ratio_to = 2.2, .strip = by_speed ? 0 : ZERO_WIDTH
	};

	for (uint32_t i = 0; i < f->count; i++) {
		double v = by_speed ? f->point[i].decode_gbps : f->point[i].x;

		p.ratio_to = fmax(p.ratio_to, 1.15 * f->point[i].ratio);
		if (v <= 0)
			continue;
		p.from = fmin(p.from, v / 1.6);
		p.to = fmax(p.to, v * 1.6);
	}
	if (!isfinite(p.from)) {
		p.from = 0.01;
		p.to = 1;
	}
	return p;
}

void frontier_svg(const struct frontier *f, FILE *out)
{
	struct panel cost = panel_of(f, 60, 0), speed = panel_of(f, 520, 1);

	(void)fprintf(out,
		      "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
		      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
		      "width=\"%d\" height=\"%d\" role=\"img\">\n",
		      WIDTH, HEIGHT, WIDTH, HEIGHT);
	(void)fputs("<title>Lossless ratio of KV cache against cost and speed</title>\n", out);
	(void)fputs(style, out);
	(void)fprintf(out, "<rect width=\"%d\" height=\"%d\" class=\"b\"/>\n", WIDTH, HEIGHT);
	text(out, 60, 24, "start", "m", f->title);
	axes(&cost, "ratio against the cost of the guess", "x, share of one bf16 prefill", out);
	points(f, &cost, 0, out);
	axes(&speed, "ratio against the speed of decoding", "GB/s of raw bytes, one core", out);
	points(f, &speed, 1, out);
	(void)fputs("</svg>\n", out);
}
