/* SPDX-License-Identifier: Apache-2.0 */
/*
 * daemon_stats.h - the counters of a private daemon, as numbers by name, over the bus that skvcctl uses.
 */
#ifndef SKVCD_TESTS_LIB_DAEMON_STATS_H
#define SKVCD_TESTS_LIB_DAEMON_STATS_H

#include <stdint.h>

#include "tests/lib/private_daemon.h"

/* Ask for all of them at one moment.  0, or a negative errno after printing why. */
int daemon_stats_read(const struct private_daemon *d);

/* The number called `name` in the last daemon_stats_read(); prints and aborts when
 * there is none: a misspelt counter must not pass for zero. */
uint64_t daemon_stats_get(const char *name);

/* Both in one. */
uint64_t daemon_stats_now(const struct private_daemon *d, const char *name);

/* How often a cause of refusal was counted ("ring-overrun"). */
uint64_t daemon_stats_reason(const char *word);

/* All that is not zero, for a test that is about to fail. */
void daemon_stats_print(void);

/* Read again and again until `name` has this value.  Returns the milliseconds it took, or -ETIMEDOUT
 * after limit_ms, having printed what it had. */
int daemon_stats_wait(const struct private_daemon *d, const char *name, uint64_t value,
		      unsigned limit_ms);

#endif
