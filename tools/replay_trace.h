/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_trace.h - a trace of requests, each a list of prefix blocks, for `skvc-bench replay`.
 */
#ifndef SKVCD_TOOLS_REPLAY_TRACE_H
#define SKVCD_TOOLS_REPLAY_TRACE_H

#include <stdint.h>

struct report;

/* Blocks are numbered from 0 in the order in which they were first named. */
struct replay_trace {
	uint32_t *block; /* owned; all requests', one behind the other */
	uint32_t *first; /* owned; of request i in block[], requests + 1 of them */
	uint32_t requests;
	uint32_t blocks; /* different ones: the working set */
};

/*
 * One JSON object a line, with hash_ids, a list of numbers; what else is in it does not matter.
 * 0; -EINVAL (the report says which line); -EFBIG; -ENOMEM; -errno.
 */
int replay_trace_read(const struct report *report, const char *path, struct replay_trace *t);
/* Of count lists of ids, each closed by a number < 0. */
int replay_trace_make(const int64_t *ids, uint32_t count, struct replay_trace *t);
/* Only the first requests, if there are more. */
void replay_trace_cut(struct replay_trace *t, uint32_t requests);
void replay_trace_deinit(struct replay_trace *t);

#endif
