/* SPDX-License-Identifier: Apache-2.0 */
/*
 * daemon_stats.c - skvcctl as a child process, its JSON kept until the next reading.
 */
#include "tests/lib/daemon_stats.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#define OUTPUT_BYTES_MAX (4u << 20)

static cJSON *root; /* owned; of the last reading */

int daemon_stats_read(const struct private_daemon *d)
{
	char command[700];
	char *text = malloc(OUTPUT_BYTES_MAX);
	size_t n;
	FILE *f;
	int status;

	if (!text)
		return -ENOMEM;
	(void)snprintf(command, sizeof(command), "'%s' --socket '%s' stats --json",
		       private_daemon_program("skvcctl"), d->bus);
	f = popen(command, "r");
	if (!f) {
		free(text);
		return -errno;
	}
	n = fread(text, 1, OUTPUT_BYTES_MAX - 1, f);
	text[n] = '\0';
	status = pclose(f);
	cJSON_Delete(root);
	root = status == 0 ? cJSON_Parse(text) : NULL;
	if (!root)
		fprintf(stderr, "%s: status 0x%x, said: %.400s\n", command, (unsigned)status, text);
	free(text);
	return root ? 0 : -EPROTO;
}

/* Depth is bounded by what skvcctl nests, a handful. */
static const cJSON *find_number(const cJSON *at, const char *name)
{
	for (const cJSON *item = at ? at->child : NULL; item; item = item->next) {
		const cJSON *deeper;

		if (item->string && !strcmp(item->string, name) && cJSON_IsNumber(item))
			return item;
		deeper = find_number(item, name);
		if (deeper)
			return deeper;
	}
	return NULL;
}

uint64_t daemon_stats_get(const char *name)
{
	const cJSON *item = find_number(root, name);

	if (!item) {
		fprintf(stderr, "skvcctl stats --json has no number called %s\n", name);
		abort();
	}
	return (uint64_t)item->valuedouble;
}

uint64_t daemon_stats_reason(const char *word)
{
	const cJSON *item = find_number(root, word);

	return item ? (uint64_t)item->valuedouble : 0;
}

uint64_t daemon_stats_now(const struct private_daemon *d, const char *name)
{
	if (daemon_stats_read(d) < 0)
		abort();
	return daemon_stats_get(name);
}

int daemon_stats_wait(const struct private_daemon *d, const char *name, uint64_t value,
		      unsigned limit_ms)
{
	uint64_t start = private_daemon_now_ns(), now, got = 0;

	do {
		/* A reading shows the state of its own moment: the time before it is what counts. */
		now = (private_daemon_now_ns() - start) / 1000000;
		if (daemon_stats_read(d) < 0)
			return -EPROTO;
		got = daemon_stats_get(name);
		if (got == value)
			return (int)now;
	} while (now < limit_ms);
	fprintf(stderr, "%s is %llu after %u ms, not %llu\n", name, (unsigned long long)got,
		limit_ms, (unsigned long long)value);
	return -ETIMEDOUT;
}
