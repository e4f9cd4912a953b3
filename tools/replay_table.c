/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_table.c - the hit ratios of `skvc-bench replay` as a table, JSON or an SVG without scripts, fonts or links.
 */
#include "tools/replay_table.h"
#include "tools/output.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <string.h>

static double ratio(const struct replay_table *t, uint64_t hits)
{
	return t->named ? (double)hits / t->named : 0;
}

/* Of what the optimum has at this capacity; < 0: not known. */
static double of_optimum(const struct replay_table *t, uint32_t policy, uint32_t capacity)
{
	uint64_t most = t->point[REPLAY_OPTIMUM][capacity].all.hits;

	if (!t->wanted[REPLAY_OPTIMUM] || !most)
		return -1;
	return (double)t->point[policy][capacity].all.hits / (double)most;
}

static double rate(const struct replay_table *t, const struct replay_result *r)
{
	return r->seconds > 0 ? t->named / r->seconds : 0;
}

/* ---- the table ---- */

static void print_head(const struct replay_table *t, FILE *out)
{
	(void)fprintf(out, "file         %s\n", t->file);
	(void)fprintf(out, "requests     %u, with %u blocks, %u of them different (working set",
		      t->requests, t->named, t->working_set);
	if (t->block_bytes)
		(void)fprintf(out, ", %.1f GiB",
			      (double)t->working_set * (double)t->block_bytes / (1u << 30));
	(void)fprintf(out, ")\n");
	if (t->nvme_percent > 0)
		(void)fprintf(out, "tiers        host of the capacity given, NVMe of %g %%\n",
			      t->nvme_percent);
	(void)fprintf(out, "\n%-10s", "capacity");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, " %7g%%", t->percent[c]);
	(void)fprintf(out, "\n%-10s", "blocks");
	for (uint32_t c = 0; c < t->capacities; c++)
		for (uint32_t p = 0; p < REPLAY_POLICIES; p++)
			if (t->wanted[p]) {
				(void)fprintf(out, " %8u", t->point[p][c].blocks);
				break;
			}
	if (t->block_bytes) {
		(void)fprintf(out, "\n%-10s", "GiB");
		for (uint32_t c = 0; c < t->capacities; c++)
			(void)fprintf(out, " %8.1f",
				      t->percent[c] / 100 * t->working_set *
					      (double)t->block_bytes / (1u << 30));
	}
	(void)fprintf(out, "\n\nhit ratio\n");
}

static void print_row(const struct replay_table *t, uint32_t policy, FILE *out)
{
	const struct replay_point *p = t->point[policy];

	(void)fprintf(out, "%-10s", replay_policies[policy].title);
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, "   %.4f", ratio(t, p[c].all.hits));
	(void)fprintf(out, "\n");
	if (t->nvme_percent > 0) {
		(void)fprintf(out, "%-10s", "  of host");
		for (uint32_t c = 0; c < t->capacities; c++)
			(void)fprintf(out, "   %.4f", ratio(t, p[c].host.hits));
		(void)fprintf(out, "\n");
	}
	if (of_optimum(t, policy, 0) >= 0 && policy != REPLAY_OPTIMUM) {
		(void)fprintf(out, "%-10s", "  optimum");
		for (uint32_t c = 0; c < t->capacities; c++)
			(void)fprintf(out, "  %5.1f %%", 100 * of_optimum(t, policy, c));
		(void)fprintf(out, "\n");
	}
}

static double amplification(const struct replay_log_result *r)
{
	return r->stored ? (double)(r->stored + r->copied) / (double)r->stored : 0;
}

/* What the log itself keeps, which cannot take a block out of its segment. */
static void print_log(const struct replay_table *t, FILE *out)
{
	(void)fprintf(out, "\nthe NVMe log, %u blocks a segment, behind an LRU host\n%-10s",
		      t->segment_blocks, "hit ratio");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, "   %.4f", ratio(t, t->log[c].hits));
	(void)fprintf(out, "\n%-10s", " no copies");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, "   %.4f", ratio(t, t->no_copies[c].hits));
	(void)fprintf(out, "\n%-10s", "amplified");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, "   %.4f", amplification(&t->log[c]));
	(void)fprintf(out, "\n");
}

static void print_promotions(const struct replay_table *t, FILE *out)
{
	(void)fprintf(out, "\n%s: what is found on NVMe is kept in the host ...\n",
		      replay_policies[REPLAY_DEFAULT].title);
	for (uint32_t rule = 0; rule < REPLAY_PROMOTIONS; rule++) {
		(void)fprintf(out, "%-10s", replay_promotion_names[rule]);
		for (uint32_t c = 0; c < t->capacities; c++)
			(void)fprintf(out, "   %.4f", ratio(t, t->promote[rule][c].host));
		(void)fprintf(out, "\n%-10s", "  on NVMe");
		for (uint32_t c = 0; c < t->capacities; c++)
			(void)fprintf(out, "   %.4f", ratio(t, t->promote[rule][c].nvme));
		(void)fprintf(out, "\n");
	}
}

static void print_cost(const struct replay_table *t, FILE *out)
{
	const struct replay_point *p = t->point[REPLAY_DEFAULT];

	(void)fprintf(out, "\n%s: index and policy, one core\n%-10s",
		      replay_policies[REPLAY_DEFAULT].title, "  M ops/s");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, " %8.2f", 1e-6 * rate(t, &p[c].host));
	(void)fprintf(out, "\n%-10s", "  B/block");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, " %8.1f",
			      p[c].host.index_block_bytes + p[c].host.policy_block_bytes);
	(void)fprintf(out, "\n%-10s", "  refused");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, " %8llu", (unsigned long long)p[c].host.refused);
	(void)fprintf(out, "\n%-10s", "  policy");
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, " %8.1f", p[c].host.policy_block_bytes);
	(void)fprintf(out, "\n");
}

void replay_table_print(const struct replay_table *t, FILE *out)
{
	print_head(t, out);
	for (uint32_t p = 0; p < REPLAY_POLICIES; p++)
		if (t->wanted[p])
			print_row(t, p, out);
	if (t->segment_blocks)
		print_log(t, out);
	if (t->wanted[REPLAY_DEFAULT] && t->nvme_percent > 0)
		print_promotions(t, out);
	if (t->wanted[REPLAY_DEFAULT])
		print_cost(t, out);
}

/* ---- JSON ---- */

static cJSON *json_point(const struct replay_table *t, uint32_t policy, uint32_t c)
{
	const struct replay_point *p = &t->point[policy][c];
	double of = of_optimum(t, policy, c);
	cJSON *j = cJSON_CreateObject();

	cJSON_AddNumberToObject(j, "capacity_percent", t->percent[c]);
	cJSON_AddNumberToObject(j, "blocks", p->blocks);
	cJSON_AddNumberToObject(j, "hits", (double)p->all.hits);
	cJSON_AddNumberToObject(j, "hit_ratio", ratio(t, p->all.hits));
	if (of >= 0)
		cJSON_AddNumberToObject(j, "of_optimum", of);
	if (t->nvme_percent > 0) {
		cJSON_AddNumberToObject(j, "nvme_blocks", p->nvme_blocks);
		cJSON_AddNumberToObject(j, "hits_host", (double)p->host.hits);
		cJSON_AddNumberToObject(j, "hits_nvme", (double)p->all.hits - (double)p->host.hits);
	}
	cJSON_AddNumberToObject(j, "stores", (double)p->host.stores);
	cJSON_AddNumberToObject(j, "block_operations_per_second", rate(t, &p->host));
	if (policy == REPLAY_DEFAULT)
		cJSON_AddNumberToObject(j, "refused", (double)p->host.refused);
	if (p->host.policy_block_bytes > 0) {
		cJSON_AddNumberToObject(j, "index_bytes_per_block", p->host.index_block_bytes);
		cJSON_AddNumberToObject(j, "policy_bytes_per_block", p->host.policy_block_bytes);
	}
	return j;
}

static void json_log(const struct replay_table *t, cJSON *j)
{
	cJSON *log = cJSON_AddObjectToObject(j, "nvme_log"), *points;

	cJSON_AddNumberToObject(log, "segment_blocks", t->segment_blocks);
	cJSON_AddNumberToObject(log, "copy_percent", REPLAY_LOG_COPY_PERCENT);
	points = cJSON_AddArrayToObject(log, "points");
	for (uint32_t c = 0; c < t->capacities; c++) {
		const struct replay_log_result *r = &t->log[c];
		cJSON *p = cJSON_CreateObject();

		cJSON_AddNumberToObject(p, "capacity_percent", t->percent[c]);
		cJSON_AddNumberToObject(p, "hit_ratio", ratio(t, r->hits));
		cJSON_AddNumberToObject(p, "hit_ratio_no_copies", ratio(t, t->no_copies[c].hits));
		cJSON_AddNumberToObject(p, "stored_blocks", (double)r->stored);
		cJSON_AddNumberToObject(p, "copied_blocks", (double)r->copied);
		cJSON_AddNumberToObject(p, "given_up_blocks", (double)r->given_up);
		cJSON_AddNumberToObject(p, "write_amplification", amplification(r));
		cJSON_AddItemToArray(points, p);
	}
}

static void json_promotions(const struct replay_table *t, cJSON *j)
{
	cJSON *rules = cJSON_AddArrayToObject(j, "promotions");

	for (uint32_t rule = 0; rule < REPLAY_PROMOTIONS; rule++) {
		cJSON *row = cJSON_CreateObject(), *points;

		cJSON_AddStringToObject(row, "kept", replay_promotion_names[rule]);
		points = cJSON_AddArrayToObject(row, "points");
		for (uint32_t c = 0; c < t->capacities; c++) {
			const struct replay_promote_result *r = &t->promote[rule][c];
			cJSON *p = cJSON_CreateObject();

			cJSON_AddNumberToObject(p, "capacity_percent", t->percent[c]);
			cJSON_AddNumberToObject(p, "hits_host", (double)r->host);
			cJSON_AddNumberToObject(p, "hits_nvme", (double)r->nvme);
			cJSON_AddItemToArray(points, p);
		}
		cJSON_AddItemToArray(rules, row);
	}
}

int replay_table_json(const struct replay_table *t, FILE *out)
{
	cJSON *j = cJSON_CreateObject(), *policies;

	cJSON_AddStringToObject(j, "file", t->file);
	cJSON_AddNumberToObject(j, "requests", t->requests);
	cJSON_AddNumberToObject(j, "blocks", t->named);
	cJSON_AddNumberToObject(j, "working_set_blocks", t->working_set);
	if (t->block_bytes)
		cJSON_AddNumberToObject(j, "block_bytes", (double)t->block_bytes);
	if (t->nvme_percent > 0)
		cJSON_AddNumberToObject(j, "nvme_percent", t->nvme_percent);
	if (t->segment_blocks)
		json_log(t, j);
	if (t->wanted[REPLAY_DEFAULT] && t->nvme_percent > 0)
		json_promotions(t, j);
	policies = cJSON_AddArrayToObject(j, "policies");
	for (uint32_t p = 0; p < REPLAY_POLICIES; p++) {
		cJSON *policy, *points;

		if (!t->wanted[p])
			continue;
		policy = cJSON_CreateObject();
		cJSON_AddStringToObject(policy, "name", replay_policies[p].name);
		points = cJSON_AddArrayToObject(policy, "points");
		for (uint32_t c = 0; c < t->capacities; c++)
			cJSON_AddItemToArray(points, json_point(t, p, c));
		cJSON_AddItemToArray(policies, policy);
	}
	return output_json(j, out);
}

/* ---- the picture ---- */

#define WIDTH 620
#define HEIGHT 400
#define LEFT 60.0
#define TOP 60.0
#define PLOT_WIDTH 440.0
#define PLOT_HEIGHT 270.0

struct frame {
	double percent_to, ratio_to;
};

static const char style[] =
	"<style>\n"
	".b{fill:#fff}.t{fill:#24292f}.m{fill:#57606a}.g{stroke:#d0d7de}.a{stroke:#57606a}\n"
	".p0{stroke:#8c959f}.p1{stroke:#8250df}.p2{stroke:#bc4c00}.p3{stroke:#0969da}.p4{stroke:#1a7f37}\n"
	"@media (prefers-color-scheme: dark){.b{fill:#0d1117}.t{fill:#e6edf3}.m{fill:#9198a1}\n"
	".g{stroke:#30363d}.a{stroke:#9198a1}.p0{stroke:#6e7681}.p1{stroke:#ab7df8}.p2{stroke:#f0883e}\n"
	".p3{stroke:#58a6ff}.p4{stroke:#3fb950}}\n"
	"polyline{fill:none;stroke-width:2}.p4{stroke-dasharray:5 4}\n"
	"text{font-family:system-ui,sans-serif;font-size:12px}\n"
	"</style>\n";

static double place_x(const struct frame *f, double percent)
{
	return LEFT + PLOT_WIDTH * percent / f->percent_to;
}

static double place_y(const struct frame *f, double hits)
{
	return TOP + PLOT_HEIGHT * (1 - hits / f->ratio_to);
}

static void text(FILE *out, double x, double y, const char *anchor, const char *class,
		 const char *what)
{
	(void)fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\">", x, y,
		      anchor, class);
	for (; *what; what++) /* one is the name of a file */
		if (*what == '<' || *what == '&')
			(void)fputs(*what == '<' ? "&lt;" : "&amp;", out);
		else
			(void)fputc(*what, out);
	(void)fputs("</text>\n", out);
}

static void line(FILE *out, double x0, double y0, double x1, double y1, const char *class)
{
	(void)fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n",
		      x0, y0, x1, y1, class);
}

static void axes(const struct replay_table *t, const struct frame *f, FILE *out)
{
	double step = f->ratio_to > 0.5 ? 0.1 : 0.05, right = LEFT + PLOT_WIDTH;
	double bottom = TOP + PLOT_HEIGHT;
	char number[32];

	for (int i = 0; i * step <= f->ratio_to + 1e-9; i++) {
		line(out, LEFT, place_y(f, i * step), right, place_y(f, i * step), "g");
		(void)snprintf(number, sizeof(number), "%g", i * step);
		text(out, LEFT - 8, place_y(f, i * step) + 4, "end", "m", number);
	}
	for (uint32_t c = 0; c < t->capacities; c++) {
		line(out, place_x(f, t->percent[c]), TOP, place_x(f, t->percent[c]), bottom, "g");
		(void)snprintf(number, sizeof(number), "%g", t->percent[c]);
		text(out, place_x(f, t->percent[c]), bottom + 18, "middle", "m", number);
	}
	line(out, LEFT, bottom, right, bottom, "a");
	line(out, LEFT, TOP, LEFT, bottom, "a");
	text(out, LEFT + PLOT_WIDTH / 2, bottom + 40, "middle", "m",
	     "capacity, % of the blocks of the trace");
}

static void curve(const struct replay_table *t, const struct frame *f, uint32_t policy,
		  double label_y, FILE *out)
{
	char class[4];

	(void)snprintf(class, sizeof(class), "p%u", policy);
	(void)fprintf(out, "<polyline class=\"%s\" points=\"", class);
	for (uint32_t c = 0; c < t->capacities; c++)
		(void)fprintf(out, "%s%.1f,%.1f", c ? " " : "", place_x(f, t->percent[c]),
			      place_y(f, ratio(t, t->point[policy][c].all.hits)));
	(void)fputs("\"/>\n", out);
	line(out, LEFT + PLOT_WIDTH + 14, label_y - 4, LEFT + PLOT_WIDTH + 34, label_y - 4, class);
	text(out, LEFT + PLOT_WIDTH + 40, label_y, "start", "t", replay_policies[policy].title);
}

void replay_table_svg(const struct replay_table *t, FILE *out)
{
	const char *slash = strrchr(t->file, '/');
	struct frame f = { .ratio_to = 0.05 };
	double label_y = TOP + 12;

	for (uint32_t c = 0; c < t->capacities; c++) {
		f.percent_to = fmax(f.percent_to, t->percent[c] * 1.04);
		for (uint32_t p = 0; p < REPLAY_POLICIES; p++)
			f.ratio_to = fmax(f.ratio_to, ratio(t, t->point[p][c].all.hits));
	}
	f.ratio_to = ceil(f.ratio_to * 20) / 20;
	(void)fprintf(out,
		      "<!-- SPDX-License-Identifier: Apache-2.0 -->\n"
		      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
		      "width=\"%d\" height=\"%d\" role=\"img\">\n",
		      WIDTH, HEIGHT, WIDTH, HEIGHT);
	(void)fputs("<title>Hit ratio against capacity</title>\n", out);
	(void)fputs(style, out);
	(void)fprintf(out, "<rect width=\"%d\" height=\"%d\" class=\"b\"/>\n", WIDTH, HEIGHT);
	text(out, LEFT, 24, "start", "m", slash ? slash + 1 : t->file);
	text(out, LEFT, TOP - 12, "start", "t", "blocks found, of all that were looked up");
	axes(t, &f, out);
	for (uint32_t p = REPLAY_POLICIES; p-- > 0;)
		if (t->wanted[p]) {
			curve(t, &f, p, label_y, out);
			label_y += 20;
		}
	(void)fputs("</svg>\n", out);
}
