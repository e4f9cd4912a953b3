/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_plan.c - what the daemon measured, and what follows from it for each namespace: as tables and as JSON; and
 * where a block is.
 */
#include "tools/skvcctl_plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void print_rates(const struct skvcctl_picture *p, FILE *out)
{
	unsigned assumed = 0;

	(void)fprintf(out, "%-24s %10s %10s\n", "measured", "GB/s", "samples");
	for (size_t i = 0; i < p->rates_count; i++) {
		const struct skvcctl_rate *r = &p->rates[i];

		if (r->samples)
			(void)fprintf(out, "%-24s %10.3f %10" PRIu64 "\n", r->name,
				      (double)r->bytes_per_s / 1e9, r->samples);
		else
			assumed++;
	}
	(void)fprintf(out, "%u more are assumed: nothing of the kind was done yet.\n", assumed);
}

static void print_namespace(const struct skvcctl_way *w, FILE *out)
{
	(void)fprintf(out, "\n%" PRIu32 "  %s, tenant %s\n", w->ns, w->model, w->tenant);
	if (w->prefill_tokens_per_s)
		(void)fprintf(out, "   its engine computes %" PRIu64 " tokens a second\n",
			      w->prefill_tokens_per_s);
	else
		(void)fprintf(
			out,
			"   its engine has not said how fast it computes: taken as 8 times the "
			"slowest restore\n");
	(void)fprintf(out, "     %-9s %6s %9s %9s %10s %10s %10s %10s\n", "", "ratio", "in memory",
		      "on NVMe", "memory", "NVMe", "computed", "expected");
}

static void print_way(const struct skvcctl_way *w, FILE *out)
{
	char host[16], nvme[16], gone[16], expected[16];

	(void)fprintf(out, "   %c %-9s %6.2f %7.1f %% %7.1f %% %10s %10s %10s %10s%s\n",
		      w->chosen ? '*' : ' ', w->speculator, 1000.0 / (double)w->ratio_milli,
		      (double)w->host_milli / 10, (double)w->nvme_milli / 10,
		      skvcctl_format_ns(w->host_ns, host), skvcctl_format_ns(w->nvme_ns, nvme),
		      skvcctl_format_ns(w->gone_ns, gone),
		      skvcctl_format_ns(w->expected_ns, expected), w->assumed ? "  (assumed)" : "");
}

static const struct skvcctl_place *place_of(const struct skvcctl_picture *p, uint32_t ns)
{
	for (size_t i = 0; i < p->places_count; i++)
		if (p->places[i].ns == ns)
			return &p->places[i];
	return NULL;
}

static void print_place(const struct skvcctl_place *place, FILE *out)
{
	char nvme[16], prefill[16];

	if (!place->prefill_ns)
		(void)fprintf(out, "written to NVMe, if there is one");
	else
		(void)fprintf(out, "%s: from NVMe it takes %s, computing it %s",
			      place->dropped ? "given up" : "written to NVMe, if there is one",
			      skvcctl_format_ns(place->nvme_ns, nvme),
			      skvcctl_format_ns(place->prefill_ns, prefill));
}

/* In the words of both: what becomes of a block of NVMe that is asked for. */
static void print_promotion(bool promoted, uint64_t nvme_ns, uint64_t host_ns, FILE *out)
{
	char nvme[16], host[16];

	(void)fprintf(out, "promote, from NVMe to memory: %s from NVMe, %s from memory: %s\n",
		      skvcctl_format_ns(nvme_ns, nvme), skvcctl_format_ns(host_ns, host),
		      promoted ? "read when it is asked for, and kept until others are worth more"
			       : "left where it is, for its engine computes it sooner");
}

static void print_short(const struct skvcctl_picture *p, uint32_t ns, FILE *out)
{
	const struct skvcctl_place *place = place_of(p, ns);

	if (!place)
		return;
	(void)fprintf(out, "   when memory is short, a block is ");
	print_place(place, out);
	(void)fprintf(out, "\n   ");
	print_promotion(place->promoted, place->nvme_ns, place->host_ns, out);
}

void skvcctl_print_plan(const struct skvcctl_picture *p, FILE *out)
{
	print_rates(p, out);
	for (size_t i = 0; i < p->ways_count; i++) {
		if (!i || p->ways[i].ns != p->ways[i - 1].ns)
			print_namespace(&p->ways[i], out);
		print_way(&p->ways[i], out);
		if (i + 1 == p->ways_count || p->ways[i].ns != p->ways[i + 1].ns)
			print_short(p, p->ways[i].ns, out);
	}
	if (!p->ways_count)
		(void)fprintf(out, "\nNothing was stored yet that could be planned for.\n");
	else
		(void)fprintf(
			out,
			"\nTimes are of one block: from host memory, from NVMe, computed again; "
			"and on average,\nwere all blocks coded that way. * is what they are "
			"coded with when there is time.\n");
}

static void add_places(cJSON *plan, const struct skvcctl_picture *p)
{
	cJSON *places = cJSON_AddArrayToObject(plan, "places");

	for (size_t i = 0; i < p->places_count; i++) {
		cJSON *row = cJSON_CreateObject();

		(void)cJSON_AddNumberToObject(row, "namespace", p->places[i].ns);
		(void)cJSON_AddBoolToObject(row, "dropped", p->places[i].dropped);
		(void)cJSON_AddBoolToObject(row, "promoted", p->places[i].promoted);
		(void)cJSON_AddNumberToObject(row, "nvme_ns", (double)p->places[i].nvme_ns);
		(void)cJSON_AddNumberToObject(row, "host_ns", (double)p->places[i].host_ns);
		(void)cJSON_AddNumberToObject(row, "prefill_ns", (double)p->places[i].prefill_ns);
		(void)cJSON_AddItemToArray(places, row);
	}
}

void skvcctl_add_plan(cJSON *root, const struct skvcctl_picture *p)
{
	cJSON *plan = cJSON_AddObjectToObject(root, "plan");
	cJSON *rates = cJSON_AddArrayToObject(plan, "rates");
	cJSON *ways = cJSON_AddArrayToObject(plan, "ways");

	add_places(plan, p);
	for (size_t i = 0; i < p->rates_count; i++) {
		cJSON *row = cJSON_CreateObject();

		(void)cJSON_AddStringToObject(row, "name", p->rates[i].name);
		(void)cJSON_AddNumberToObject(row, "bytes_per_s", (double)p->rates[i].bytes_per_s);
		(void)cJSON_AddNumberToObject(row, "samples", (double)p->rates[i].samples);
		(void)cJSON_AddItemToArray(rates, row);
	}
	for (size_t i = 0; i < p->ways_count; i++) {
		const struct skvcctl_way *w = &p->ways[i];
		cJSON *row = cJSON_CreateObject();

		(void)cJSON_AddNumberToObject(row, "namespace", w->ns);
		(void)cJSON_AddStringToObject(row, "tenant", w->tenant);
		(void)cJSON_AddStringToObject(row, "model", w->model);
		(void)cJSON_AddNumberToObject(row, "prefill_tokens_per_s",
					      (double)w->prefill_tokens_per_s);
		(void)cJSON_AddStringToObject(row, "speculator", w->speculator);
		(void)cJSON_AddNumberToObject(row, "ratio", 1000.0 / (double)w->ratio_milli);
		(void)cJSON_AddNumberToObject(row, "host_share", (double)w->host_milli / 1000);
		(void)cJSON_AddNumberToObject(row, "nvme_share", (double)w->nvme_milli / 1000);
		(void)cJSON_AddNumberToObject(row, "host_ns", (double)w->host_ns);
		(void)cJSON_AddNumberToObject(row, "nvme_ns", (double)w->nvme_ns);
		(void)cJSON_AddNumberToObject(row, "gone_ns", (double)w->gone_ns);
		(void)cJSON_AddNumberToObject(row, "expected_ns", (double)w->expected_ns);
		(void)cJSON_AddBoolToObject(row, "assumed", w->assumed);
		(void)cJSON_AddBoolToObject(row, "chosen", w->chosen);
		(void)cJSON_AddItemToArray(ways, row);
	}
}

/* ---- one block ---- */

bool skvcctl_parse_key(const char *word, char ret_key[65], uint32_t *ret_group)
{
	size_t len = strspn(word, "0123456789abcdefABCDEF");
	unsigned long group;
	char *end;

	if (len % 2 || len < 32 || len > 64 || (word[len] && word[len] != ':'))
		return false;
	memcpy(ret_key, word, len);
	ret_key[len] = '\0';
	*ret_group = 0;
	if (!word[len])
		return true;
	errno = 0;
	group = strtoul(word + len + 1, &end, 10);
	*ret_group = (uint32_t)group;
	return !errno && !*end && word[len + 1] >= '0' && word[len + 1] <= '9' &&
	       group <= UINT32_MAX;
}

static void print_found(const struct skvcctl_picture *p, const struct skvcctl_found *f, FILE *out)
{
	const struct skvcctl_place *place = place_of(p, f->ns);
	char bytes[16], ns[16];

	(void)fprintf(out, "namespace %" PRIu32 ": in %s%s, coded with %s, %s\n", f->ns, f->where,
		      f->on_nvme && strcmp(f->where, "nvme") != 0 ? " and on nvme" : "",
		      f->speculator, skvcctl_format_bytes(f->record_bytes, bytes));
	if (f->position != UINT32_MAX)
		(void)fprintf(out, "  begins at token %" PRIu32 " of its sequence; ", f->position);
	else
		(void)fprintf(out, "  its place in its sequence is not known; ");
	(void)fprintf(out, "%" PRIu32 " blocks follow it, %" PRIu32 " hold it\n", f->children,
		      f->holders);
	if (f->pinned_ns)
		(void)fprintf(out, "  pinned for another %s\n",
			      skvcctl_format_ns(f->pinned_ns, ns));
	(void)fprintf(out, "  restoring it takes about %s", skvcctl_format_ns(f->restore_ns, ns));
	if (f->prefill_ns)
		(void)fprintf(out, ", computing it %s: %s", skvcctl_format_ns(f->prefill_ns, ns),
			      f->restore_ns <= f->prefill_ns ? "restored" : "left to the engine");
	(void)fprintf(out, "\n");
	if (!strcmp(f->where, "nvme")) {
		(void)fprintf(out, "  ");
		print_promotion(!f->prefill_ns || f->restore_ns <= f->prefill_ns, f->restore_ns,
				f->host_ns, out);
	}
	if (!place || f->on_nvme)
		return;
	(void)fprintf(out, "  when memory is short, one like it is ");
	print_place(place, out);
	(void)fprintf(out, "\n");
}

void skvcctl_print_found(const struct skvcctl_picture *p, const struct skvcctl_found *found,
			 size_t count, FILE *out)
{
	for (size_t i = 0; i < count; i++)
		print_found(p, &found[i], out);
	if (!count)
		(void)fprintf(out, "No namespace has a block of this key: it was never stored, "
				   "evicted, or is on its way.\n");
}
