/* SPDX-License-Identifier: Apache-2.0 */
/*
 * metrics_http.h - GET /metrics, for Prometheus.  In the control thread's loop; off by default.
 */
#ifndef SKVCD_DAEMON_METRICS_HTTP_H
#define SKVCD_DAEMON_METRICS_HTTP_H

#include <stddef.h>

#include "daemon/control.h"

struct metrics_http;
struct sd_event;

/*
 * Listens where the configuration says.  0, with *ret NULL when it says nowhere; -errno with one line in err.
 * control: borrowed until metrics_http_free().
 */
int metrics_http_new(struct sd_event *event, const struct control *control,
		     struct metrics_http **ret, char *err, size_t err_bytes);
struct metrics_http *metrics_http_free(struct metrics_http *http); /* returns NULL */

#endif
