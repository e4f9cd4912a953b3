/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_trace.c - reads a trace: JSON lines as of Mooncake (FAST 2025), {"timestamp", "input_length",
 * "output_length", "hash_ids"}, of which only the last matters here.
 */
#include "tools/replay_trace.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"

#define TRACE_BYTES_MAX (1ull << 32)
#define ID_MAX 9007199254740992.0 /* 2^53: whole numbers in a double */
#define NAMED_MAX (1u << 30)

struct reader {
	struct replay_trace *t;
	uint64_t *key; /* ids + 1, open addressing; 0: empty */
	uint32_t *number;
	uint64_t slots, named, named_max, requests_max;
};

static uint64_t slot_of(const struct reader *r, uint64_t key)
{
	uint64_t slot = (key * 0x9e3779b97f4a7c15ull) >> 20 & (r->slots - 1);

	while (r->key[slot] && r->key[slot] != key)
		slot = (slot + 1) & (r->slots - 1);
	return slot;
}

static int grow(void **array, uint64_t element_bytes, uint64_t *max, uint64_t used)
{
	uint64_t wanted = *max ? *max * 2 : 1024;
	void *p;

	if (used < *max)
		return 0;
	p = realloc(*array, wanted * element_bytes);
	if (!p)
		return -ENOMEM;
	*array = p;
	*max = wanted;
	return 0;
}

/* Twice the slots when they are half full. */
static int rehash(struct reader *r)
{
	struct reader wider = *r;

	if (r->slots && r->t->blocks < r->slots / 2)
		return 0;
	wider.slots = r->slots ? r->slots * 2 : 1024;
	wider.key = calloc(wider.slots, sizeof(*wider.key));
	wider.number = calloc(wider.slots, sizeof(*wider.number));
	if (!wider.key || !wider.number) {
		free(wider.key);
		free(wider.number);
		return -ENOMEM;
	}
	for (uint64_t i = 0; i < r->slots; i++)
		if (r->key[i]) {
			uint64_t slot = slot_of(&wider, r->key[i]);

			wider.key[slot] = r->key[i];
			wider.number[slot] = r->number[i];
		}
	free(r->key);
	free(r->number);
	*r = wider;
	return 0;
}

static int add_block(struct reader *r, uint64_t id)
{
	uint64_t slot;

	if (r->named == NAMED_MAX)
		return -EFBIG;
	if (grow((void **)&r->t->block, sizeof(*r->t->block), &r->named_max, r->named) < 0 ||
	    rehash(r) < 0)
		return -ENOMEM;
	slot = slot_of(r, id + 1);
	if (!r->key[slot]) {
		r->key[slot] = id + 1;
		r->number[slot] = r->t->blocks++;
	}
	r->t->block[r->named++] = r->number[slot];
	return 0;
}

/* What was added since the last one, or since the beginning, is a request. */
static int end_request(struct reader *r)
{
	struct replay_trace *t = r->t;

	if (grow((void **)&t->first, sizeof(*t->first), &r->requests_max, t->requests + 1ull) < 0)
		return -ENOMEM;
	t->first[0] = 0;
	t->first[++t->requests] = (uint32_t)r->named;
	return 0;
}

static bool is_id(const cJSON *j)
{
	return cJSON_IsNumber(j) && j->valuedouble >= 0 && j->valuedouble < ID_MAX &&
	       j->valuedouble == floor(j->valuedouble);
}

static int read_line(struct reader *r, const char *line, size_t bytes)
{
	cJSON *j = cJSON_ParseWithLength(line, bytes);
	const cJSON *ids = cJSON_GetObjectItemCaseSensitive(j, "hash_ids"), *id;
	int e = cJSON_IsArray(ids) ? 0 : -EINVAL;

	cJSON_ArrayForEach(id, ids) {
		if (e == 0 && !is_id(id))
			e = -EINVAL;
		if (e == 0)
			e = add_block(r, (uint64_t)id->valuedouble);
	}
	cJSON_Delete(j);
	return e == 0 ? end_request(r) : e;
}

static int finish(struct reader *r, int e)
{
	free(r->key);
	free(r->number);
	if (e < 0)
		replay_trace_deinit(r->t);
	return e;
}

int replay_trace_read(const struct report *report, const char *path, struct replay_trace *t)
{
	struct reader r = { .t = t };
	char *text, *line, *end;
	unsigned long number = 0;
	size_t bytes;
	int e;

	*t = (struct replay_trace){ 0 };
	e = file_read(report, path, TRACE_BYTES_MAX, &text, &bytes);
	if (e < 0)
		return e;
	for (line = text; e == 0 && line < text + bytes; line = end + 1) {
		end = memchr(line, '\n', bytes - (size_t)(line - text));
		if (!end)
			end = text + bytes;
		number++;
		if (line + strspn(line, " \t\r") < end)
			e = read_line(&r, line, (size_t)(end - line));
	}
	free(text);
	if (e == 0 && !t->blocks) {
		e = report_fail(report, -EINVAL, "no request with blocks in it");
	} else if (e == -EINVAL) {
		e = report_fail(report, e,
				"line %lu is no JSON object with a list hash_ids of whole "
				"numbers",
				number);
	} else if (e < 0) {
		e = report_fail(report, e, "line %lu: %s", number, strerror(-e));
	}
	return finish(&r, e);
}

int replay_trace_make(const int64_t *ids, uint32_t count, struct replay_trace *t)
{
	struct reader r = { .t = t };
	int e = 0;

	*t = (struct replay_trace){ 0 };
	for (uint32_t i = 0; e == 0 && i < count; i++) {
		for (; e == 0 && *ids >= 0; ids++)
			e = add_block(&r, (uint64_t)*ids);
		if (e == 0)
			e = end_request(&r);
		ids++;
	}
	return finish(&r, e);
}

void replay_trace_cut(struct replay_trace *t, uint32_t requests)
{
	if (requests >= t->requests)
		return;
	t->requests = requests;
	t->blocks = 0;
	for (uint32_t i = 0; i < t->first[requests]; i++)
		if (t->block[i] >= t->blocks)
			t->blocks = t->block[i] + 1;
}

void replay_trace_deinit(struct replay_trace *t)
{
	free(t->block);
	free(t->first);
	*t = (struct replay_trace){ 0 };
}
