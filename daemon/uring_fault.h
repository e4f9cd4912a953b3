/* SPDX-License-Identifier: Apache-2.0 */
/*
 * uring_fault.h - which operation is to fail, and how: the rules behind uring_set_fault().  Pure; decides
 * by counting, so that a test knows what it gets.
 */
#ifndef SKVCD_DAEMON_URING_FAULT_H
#define SKVCD_DAEMON_URING_FAULT_H

#include <stdint.h>

#define URING_FAULT_RULES_MAX 8u

enum uring_kind { URING_READ, URING_WRITE, URING_SYNC, URING_WATCH };

enum uring_fault {
	URING_FAULT_NONE,
	URING_FAULT_EIO,
	URING_FAULT_ENOSPC,
	URING_FAULT_SHORT,
	URING_FAULT_STALL,
	URING_FAULT_HANG,
	URING_FAULT_FLIP,
	URING_FAULT_LATE,
	URING_FAULT_COUNT
};

struct uring_fault_rule {
	enum uring_kind kind;
	enum uring_fault fault;
	uint64_t hold_ns;
	uint32_t every;
	uint32_t file; /* + 1; 0: any */
	uint32_t seen;
	uint64_t at; /* byte that it has to move, + 1; 0: any */
};

struct uring_faults {
	struct uring_fault_rule rules[URING_FAULT_RULES_MAX];
	unsigned count;
};

/* 0 or -EINVAL; ret untouched then.  NULL or empty: no rules. */
int uring_fault_parse(const char *spec, struct uring_faults *ret);

/* What happens to the next operation of this kind on these bytes of this file. */
enum uring_fault uring_fault_next(struct uring_faults *f, enum uring_kind kind, unsigned file,
				  uint64_t off, uint32_t bytes, uint64_t *ret_hold_ns);

#endif
