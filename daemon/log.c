/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.c - one line per event: structured to the journal when stderr is one, else plain to stderr.
 *
 * Any thread.  No lock: a line is composed on the stack and leaves in one call; the limiter for lines
 * that clients can cause is one atomic word.
 */
#include "daemon/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include "daemon/session.h"
#include "daemon/stats.h"
#include "daemon/util/clock.h"

#define LOG_LINE_BYTES 768u
#define LOG_CLIENT_LINES_PER_S 10u
#define LOG_USERS 16u /* by uid, modulo */
#define LOG_FIELDS_MAX 12u
#define LOG_FIELD_BYTES (LOG_LINE_BYTES + 16u)

static _Atomic int
	log_debug;	 /* control writes, any thread reads: a line more or less does no harm */
static bool log_journal; /* set once by log_init(), before there are threads */
/*
 * Chatter and warnings are limited apart, so that the one cannot drown the other, and users apart, so that none can
 * drown the others.  Any thread.
 */
static struct limit {
	_Atomic uint64_t window;    /* second << 32 | lines in it; by compare and exchange */
	_Atomic uint64_t kept_back; /* lines since the last that was said */
} limits[2][LOG_USERS];

static const struct {
	const char *word, *id;
} events[LOG_EVENT_COUNT] = {
#define LOG_EVENT_ENTRY(name, word_, id_, text) [LOG_EVENT_##name] = { (word_), (id_) },
	LOG_EVENTS(LOG_EVENT_ENTRY)
#undef LOG_EVENT_ENTRY
};

/* systemd names the stream it connected to stderr: anything else is a terminal, a file or a pipe. */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	if (!stream || sscanf(stream, "%llu:%llu", &dev, &ino) != 2 ||
	    fstat(STDERR_FILENO, &st) < 0)
		return false;
	return st.st_dev == dev && st.st_ino == ino;
}

void log_set_debug(int debug)
{
	atomic_store_explicit(&log_debug, debug, memory_order_relaxed);
}

static bool says(enum log_level level)
{
	return level < LOG_LEVEL_DEBUG || atomic_load_explicit(&log_debug, memory_order_relaxed);
}

void log_init(int debug)
{
	log_set_debug(debug);
	log_journal = stderr_is_journal();
}

static const char *level_word(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERR:
		return "error: ";
	case LOG_LEVEL_WARNING:
		return "warning: ";
	case LOG_LEVEL_DEBUG:
		return "debug: ";
	default:
		return "";
	}
}

/* Client text was cleaned where it was taken; this is the last guard for "one line is one line". */
static void clean(char *line)
{
	for (; *line; line++)
		if ((unsigned char)*line < ' ' || *line == 0x7f)
			*line = '?';
}

static void write_stderr(enum log_level level, const char *text)
{
	char line[LOG_LINE_BYTES + 32];
	int n;

	n = snprintf(line, sizeof(line), "skvcd: %s%s\n", level_word(level), text);
	if (n < 0)
		return;
	if ((size_t)n >= sizeof(line)) {
		n = sizeof(line) - 1;
		line[n - 1] = '\n';
	}
	/* Nowhere to report a failure to; a short write loses the line's tail only. */
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return;
}

/* ---- to the journal: one field a line ---- */

struct fields {
	struct iovec v[LOG_FIELDS_MAX];
	int count;
	char bytes[LOG_FIELD_BYTES + LOG_FIELDS_MAX * 64];
	size_t used;
};

static void add(struct fields *f, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add(struct fields *f, const char *format, ...)
{
	size_t room = sizeof(f->bytes) - f->used;
	char *at = f->bytes + f->used;
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(at, room, format, args);
	va_end(args);
	if (n < 0 || (size_t)n >= room || f->count == LOG_FIELDS_MAX)
		return;
	f->v[f->count++] = (struct iovec){ at, (size_t)n };
	f->used += (size_t)n;
}

static void write_journal(enum log_event event, enum log_level level, const struct session *session,
			  uint16_t reason, const char *text)
{
	struct fields f = { .count = 0 };

	add(&f, "MESSAGE=%s", text);
	add(&f, "PRIORITY=%d", (int)level);
	add(&f, "SYSLOG_IDENTIFIER=skvcd");
	if (event) {
		add(&f, "MESSAGE_ID=%s", events[event].id);
		add(&f, "SKVCD_EVENT=%s", events[event].word);
	}
	if (session) {
		add(&f, "SKVCD_SESSION=%" PRIu32, session->id);
		add(&f, "SKVCD_PID=%d", (int)session->pid);
		add(&f, "SKVCD_UID=%u", (unsigned)session->uid);
		add(&f, "SKVCD_REASON=%s", stats_reason_word(reason));
		if (session->tenant)
			add(&f, "SKVCD_TENANT=%s", session->tenant->name);
		if (session->name[0])
			add(&f, "SKVCD_CLIENT=%s", session->name);
	}
	(void)sd_journal_sendv(f.v, f.count);
}

static void say(enum log_event event, enum log_level level, const char *format, va_list args)
	__attribute__((format(printf, 3, 0)));

static void say(enum log_event event, enum log_level level, const char *format, va_list args)
{
	char text[LOG_LINE_BYTES];

	if (!says(level))
		return;
	(void)vsnprintf(text, sizeof(text), format, args);
	clean(text);
	if (log_journal)
		write_journal(event, level, NULL, 0, text);
	else
		write_stderr(level, text);
}

void log_line(enum log_level level, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(LOG_EVENT_NONE, level, format, args);
	va_end(args);
}

void log_event(enum log_event event, enum log_level level, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(event, level, format, args);
	va_end(args);
}

/* ---- about clients ---- */

/* 1: say it. */
static bool may_log(struct limit *limit)
{
	uint64_t now_s = clock_now_ns() / CLOCK_NS_PER_S;
	uint64_t old = atomic_load_explicit(&limit->window, memory_order_relaxed), new;

	do {
		uint64_t lines = old >> 32 == (now_s & UINT32_MAX) ? old & UINT32_MAX : 0;

		if (lines >= LOG_CLIENT_LINES_PER_S) {
			atomic_fetch_add_explicit(&limit->kept_back, 1, memory_order_relaxed);
			return false;
		}
		new = now_s << 32 | (lines + 1);
	} while (!atomic_compare_exchange_weak_explicit(
		&limit->window, &old, new, memory_order_relaxed, memory_order_relaxed));
	return true;
}

void log_client(enum log_event event, enum log_level level, const struct session *session,
		uint16_t reason, const char *format, ...)
{
	struct limit *limit = &limits[level <= LOG_LEVEL_WARNING][session->uid % LOG_USERS];
	char text[LOG_LINE_BYTES], line[LOG_LINE_BYTES + 128];
	uint64_t kept_back;
	va_list args;

	if (!says(level))
		return;
	if (!may_log(limit))
		return;
	kept_back = atomic_exchange_explicit(&limit->kept_back, 0, memory_order_relaxed);
	if (kept_back)
		log_event(LOG_EVENT_KEPT_BACK, LOG_LEVEL_WARNING,
			  "%" PRIu64 " lines about clients of uid %u were kept back", kept_back,
			  (unsigned)session->uid);
	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	clean(text);
	if (log_journal) {
		write_journal(event, level, session, reason, text);
		return;
	}
	(void)snprintf(line, sizeof(line), "session %" PRIu32 " (pid %d, uid %u%s%s): %s%s%s%s",
		       session->id, (int)session->pid, (unsigned)session->uid,
		       session->name[0] ? ", " : "", session->name, text, reason ? " [" : "",
		       reason ? stats_reason_word(reason) : "", reason ? "]" : "");
	write_stderr(level, line);
}
