/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_log.c - lines on standard error, their limits, and events: each has an id of its own, an entry in the
 * catalog and a word in the manual.  The journal's side is tests/e2e/test_journal.
 */
#include "daemon/log.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/session.h"

static const struct {
	const char *word, *id, *text;
} events[] = {
#define EVENT(name, word_, id_, text_) { (word_), (id_), (text_) },
	LOG_EVENTS(EVENT)
#undef EVENT
};

#define EVENTS (sizeof(events) / sizeof(events[0]))

static int saved = -1, pipes[2];
static char out[1 << 16];

static int setup(void **state)
{
	(void)state;
	(void)unsetenv("JOURNAL_STREAM");
	log_init(0);
	assert_int_equal(pipe2(pipes, O_CLOEXEC | O_NONBLOCK), 0);
	saved = dup(STDERR_FILENO);
	assert_true(dup2(pipes[1], STDERR_FILENO) >= 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_true(dup2(saved, STDERR_FILENO) >= 0);
	(void)close(saved);
	(void)close(pipes[0]);
	(void)close(pipes[1]);
	return 0;
}

/* What was written since the last look. */
static const char *written(void)
{
	ssize_t n = read(pipes[0], out, sizeof(out) - 1);

	out[n > 0 ? n : 0] = '\0';
	return out;
}

static unsigned lines(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

static void test_lines(void **state)
{
	(void)state;
	log_line(LOG_LEVEL_NOTICE, "a %s", "b\nc");
	assert_string_equal(written(), "skvcd: a b?c\n");
	log_event(LOG_EVENT_STARTED, LOG_LEVEL_ERR, "x");
	assert_string_equal(written(), "skvcd: error: x\n");
	log_line(LOG_LEVEL_DEBUG, "no");
	assert_string_equal(written(), "");
	log_set_debug(1);
	log_line(LOG_LEVEL_DEBUG, "yes");
	assert_string_equal(written(), "skvcd: debug: yes\n");
	log_set_debug(0);
	log_line(LOG_LEVEL_INFO, "%5000d", 1);
	assert_int_equal(lines(written()), 1);
}

/* One user's clients cannot make more lines than this, nor keep back another's. */
static void test_limits(void **state)
{
	struct session loud = { .id = 1, .pid = 7, .uid = 1000, .name = "loud" };
	struct session other = { .id = 2, .pid = 8, .uid = 1001 };
	unsigned n;

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		log_client(LOG_EVENT_SESSION_FAILED, LOG_LEVEL_WARNING, &loud,
			   SKVC_ABI_REASON_QUOTA, "again");
	n = lines(written());
	assert_true(n >= 10 && n <= 22); /* a second may have begun meanwhile */
	assert_non_null(
		strstr(out, "skvcd: warning: session 1 (pid 7, uid 1000, loud): again [quota]\n"));
	log_client(LOG_EVENT_SESSION_FAILED, LOG_LEVEL_WARNING, &other, SKVC_ABI_REASON_QUOTA,
		   "once");
	assert_string_equal(written(),
			    "skvcd: warning: session 2 (pid 8, uid 1001): once [quota]\n");
	log_client(LOG_EVENT_SESSION_OPENED, LOG_LEVEL_INFO, &loud, SKVC_ABI_REASON_NONE, "hello");
	assert_string_equal(written(), "skvcd: session 1 (pid 7, uid 1000, loud): hello\n");
	(void)usleep(1100000);
	log_client(LOG_EVENT_SESSION_FAILED, LOG_LEVEL_WARNING, &loud, SKVC_ABI_REASON_QUOTA,
		   "later");
	assert_non_null(strstr(written(), "lines about clients of uid 1000 were kept back"));
	assert_non_null(strstr(out, "later"));
}

static char *read_text(const char *path)
{
	char *text = calloc(1, 1 << 16);
	FILE *f = fopen(path, "re");

	assert_non_null(text);
	if (!f) {
		free(text);
		return NULL;
	}
	(void)!fread(text, 1, (1 << 16) - 1, f);
	(void)fclose(f);
	return text;
}

static void test_catalog(void **state)
{
	char *catalog = read_text("daemon/skvcd.catalog"), want[128];
	char *man = read_text("daemon/man/skvcd.8.scd");
	size_t entries = 0;

	(void)state;
	if (!catalog || !man) {
		free(catalog);
		free(man);
		print_message("daemon/ is not below the working directory\n");
		skip();
		return;
	}
	for (size_t i = 0; i < EVENTS; i++) {
		assert_int_equal(strspn(events[i].id, "0123456789abcdef"), 32);
		assert_int_equal(strlen(events[i].id), 32);
		(void)snprintf(want, sizeof(want), "\n-- %s\nSubject: ", events[i].id);
		if (!strstr(catalog, want))
			fail_msg("%s is not in the catalog", events[i].word);
		(void)snprintf(want, sizeof(want), "\n*%s*\n", events[i].word);
		if (!strstr(man, want))
			fail_msg("%s is not in the manual", events[i].word);
		for (size_t k = 0; k < i; k++) {
			assert_string_not_equal(events[i].id, events[k].id);
			assert_string_not_equal(events[i].word, events[k].word);
		}
	}
	for (const char *p = catalog; (p = strstr(p, "\n-- ")); p++)
		entries++;
	assert_int_equal(entries, EVENTS);
	free(catalog);
	free(man);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_lines, setup, teardown),
		cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
		cmocka_unit_test(test_catalog),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
