/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.h - the daemon says things once, where it decides: to the journal with fields when there is one,
 * else to stderr as one line.  Any thread may call; lines that clients can cause are rate limited.
 */
#ifndef SKVCD_DAEMON_LOG_H
#define SKVCD_DAEMON_LOG_H

#include <stdint.h>

struct session;

enum log_level {
	LOG_LEVEL_ERR = 3,
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_NOTICE = 5,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7
};

void log_init(int debug);
void log_set_debug(int debug); /* at any time */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* About a client: adds pid, uid, session and reason fields; at most 10 a second, says how many it kept back. */
void log_client(enum log_level level, const struct session *session, uint16_t reason,
		const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
