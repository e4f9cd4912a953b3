/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_fault.c - reading fault rules and counting operations against them.  Lane-only; knows no ring.
 */
#include "daemon/uring_fault.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/util/clock.h"

#define RULE_BYTES 64u
#define HOLD_MS_MAX 3600000u
#define EVERY_MAX 1000000000u

static const struct {
	const char *name;
	enum uring_fault fault;
} fault_names[] = {
	{ "eio", URING_FAULT_EIO },	 { "enospc", URING_FAULT_ENOSPC },
	{ "short", URING_FAULT_SHORT },	 { "stall_ms", URING_FAULT_STALL },
	{ "hang_ms", URING_FAULT_HANG }, { "flip", URING_FAULT_FLIP },
	{ "late", URING_FAULT_LATE },
};

static int parse_number(const char *text, uint32_t max, uint32_t *ret)
{
	unsigned long v;
	char *end;

	if (!text || *text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || v < 1 || v > max)
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

/* "eio", "stall_ms=200" */
static int parse_fault(char *text, struct uring_fault_rule *rule)
{
	char *value = strchr(text, '=');
	uint32_t ms;

	if (value)
		*value++ = '\0';
	for (unsigned i = 0; i < sizeof(fault_names) / sizeof(*fault_names); i++)
		if (!strcmp(text, fault_names[i].name))
			rule->fault = fault_names[i].fault;

	switch (rule->fault) {
	case URING_FAULT_STALL:
	case URING_FAULT_HANG:
		if (parse_number(value, HOLD_MS_MAX, &ms) < 0)
			return -EINVAL;
		rule->hold_ns = ms * CLOCK_NS_PER_MS;
		return 0;
	case URING_FAULT_FLIP:
		return value || rule->kind != URING_READ ? -EINVAL : 0;
	case URING_FAULT_NONE:
		return -EINVAL;
	default:
		return value ? -EINVAL : 0;
	}
}

/* "file=1", "at=4096" */
static int parse_where(const char *text, struct uring_fault_rule *rule)
{
	uint32_t at;

	if (!strncmp(text, "file=", 5) && text[5] >= '0' && text[5] <= '7' && !text[6]) {
		rule->file = (uint32_t)(text[5] - '0') + 1;
		return 0;
	}
	if (strncmp(text, "at=", 3) != 0 || parse_number(text + 3, UINT32_MAX, &at) < 0)
		return -EINVAL;
	rule->at = (uint64_t)at + 1;
	return 0;
}

/* "write:eio:every=3", "write:eio:every=3:file=1" */
static int parse_rule(char *text, struct uring_fault_rule *ret)
{
	struct uring_fault_rule rule = { .fault = URING_FAULT_NONE };
	char *fault = strchr(text, ':'), *every, *where;
	int r;

	if (!fault)
		return -EINVAL;
	*fault++ = '\0';
	every = strchr(fault, ':');
	if (!every)
		return -EINVAL;
	*every++ = '\0';
	for (where = strchr(every, ':'); where;) {
		char *next = strchr(where + 1, ':');

		*where++ = '\0';
		if (next)
			*next = '\0';
		if (parse_where(where, &rule) < 0)
			return -EINVAL;
		where = next;
	}

	if (!strcmp(text, "read"))
		rule.kind = URING_READ;
	else if (!strcmp(text, "write"))
		rule.kind = URING_WRITE;
	else
		return -EINVAL;
	r = parse_fault(fault, &rule);
	if (r < 0)
		return r;
	if (strncmp(every, "every=", 6) != 0 || parse_number(every + 6, EVERY_MAX, &rule.every) < 0)
		return -EINVAL;
	*ret = rule;
	return 0;
}

int uring_fault_parse(const char *spec, struct uring_faults *ret)
{
	struct uring_faults faults = { .count = 0 };
	char text[RULE_BYTES];
	int r;

	if (!spec)
		spec = "";
	while (*spec) {
		size_t bytes = strcspn(spec, ",");

		if (bytes >= sizeof(text) || faults.count == URING_FAULT_RULES_MAX)
			return -EINVAL;
		memcpy(text, spec, bytes);
		text[bytes] = '\0';
		r = parse_rule(text, &faults.rules[faults.count]);
		if (r < 0)
			return r;
		faults.count++;
		spec += bytes;
		if (*spec == ',' && !*++spec)
			return -EINVAL; /* a comma and nothing behind it */
	}
	*ret = faults;
	return 0;
}

static bool concerns(const struct uring_fault_rule *rule, enum uring_kind kind, unsigned file,
		     uint64_t off, uint32_t bytes)
{
	return rule->kind == kind && (!rule->file || rule->file == file + 1) &&
	       (!rule->at || rule->at - 1 - off < bytes);
}

enum uring_fault uring_fault_next(struct uring_faults *f, enum uring_kind kind, unsigned file,
				  uint64_t off, uint32_t bytes, uint64_t *ret_hold_ns)
{
	enum uring_fault fault = URING_FAULT_NONE;

	/* All rules of the kind count each operation, also those that an earlier rule took. */
	for (unsigned i = 0; i < f->count; i++) {
		struct uring_fault_rule *rule = &f->rules[i];

		if (!concerns(rule, kind, file, off, bytes) || ++rule->seen % rule->every != 0 ||
		    fault != URING_FAULT_NONE)
			continue;
		fault = rule->fault;
		*ret_hold_ns = rule->hold_ns;
	}
	return fault;
}
