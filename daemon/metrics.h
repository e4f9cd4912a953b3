/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics.h - the counters as Prometheus reads them: text exposition format 0.0.4, made from the table of
 * stats.h.  Control thread; the lane's counters are atomics that are read where they lie.
 */
#ifndef SKVCD_DAEMON_METRICS_H
#define SKVCD_DAEMON_METRICS_H

#include <stddef.h>
#include <stdio.h>

#include "daemon/control.h"

#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define METRICS_NAME_BYTES 96u

/* Owned text in *ret_text, NUL behind it.  0 or -ENOMEM. */
int metrics_text(const struct control *control, char **ret_text, size_t *ret_bytes);
/* "skvcd_encode_seconds_total": the name and the unit that one entry of the table is shown with. */
void metrics_name(const struct stats_info *info, char ret_name[METRICS_NAME_BYTES]);
/* A label's value between quotes, with its own quotes, backslashes and newlines escaped. */
void metrics_label(FILE *out, const char *value);
/* Name, kind and meaning of each, without a daemon: for skvcd --help-metrics and the manual's check. */
void metrics_print_help(FILE *out);

#endif
