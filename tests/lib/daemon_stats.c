/* SPDX-License-Identifier: Apache-2.0 */
/*
 * daemon_stats.c - one bus connection and one call per reading; the answer is kept until the next one.
 */
#include "tests/lib/daemon_stats.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <systemd/sd-bus.h>

#define NUMBERS_MAX 256u

static struct {
	char name[64];
	uint64_t value;
} number[NUMBERS_MAX];
static unsigned numbers;

static int connect_to(const struct private_daemon *d, sd_bus **ret_bus)
{
	sd_bus *bus = NULL;
	char address[128];
	int r;

	(void)snprintf(address, sizeof(address), "unix:path=%s", d->bus);
	r = sd_bus_new(&bus);
	if (r >= 0)
		r = sd_bus_set_address(bus, address);
	if (r >= 0)
		r = sd_bus_start(bus);
	if (r < 0) {
		sd_bus_unref(bus);
		return r;
	}
	*ret_bus = bus;
	return 0;
}

static int take_numbers(sd_bus_message *reply)
{
	const char *name;
	uint64_t value;
	int r = sd_bus_message_enter_container(reply, 'a', "{st}");

	numbers = 0;
	while (r >= 0 && (r = sd_bus_message_read(reply, "{st}", &name, &value)) > 0) {
		if (numbers == NUMBERS_MAX)
			return -E2BIG;
		(void)snprintf(number[numbers].name, sizeof(number[0].name), "%s", name);
		number[numbers++].value = value;
	}
	return r;
}

int daemon_stats_read(const struct private_daemon *d)
{
	sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *reply = NULL;
	sd_bus *bus = NULL;
	int r = connect_to(d, &bus);

	if (r >= 0)
		r = sd_bus_call_method(bus, NULL, "/org/skvcd/Skvcd1", "org.skvcd.Skvcd1",
				       "GetStats", &error, &reply, "");
	if (r >= 0)
		r = take_numbers(reply);
	if (r < 0)
		fprintf(stderr, "GetStats on %s: %s %s\n", d->bus, strerror(-r),
			error.message ? error.message : "");
	sd_bus_message_unref(reply);
	sd_bus_error_free(&error);
	sd_bus_flush_close_unref(bus);
	return r < 0 ? r : 0;
}

uint64_t daemon_stats_get(const char *name)
{
	for (unsigned i = 0; i < numbers; i++)
		if (!strcmp(number[i].name, name))
			return number[i].value;
	fprintf(stderr, "skvcd has no counter called %s\n", name);
	abort();
}

void daemon_stats_print(void)
{
	for (unsigned i = 0; i < numbers; i++)
		if (number[i].value)
			fprintf(stderr, "%s %llu\n", number[i].name,
				(unsigned long long)number[i].value);
}

uint64_t daemon_stats_reason(const char *word)
{
	char name[64];

	(void)snprintf(name, sizeof(name), "reason.%s", word);
	return daemon_stats_get(name);
}

uint64_t daemon_stats_now(const struct private_daemon *d, const char *name)
{
	if (daemon_stats_read(d) < 0)
		abort();
	return daemon_stats_get(name);
}

int daemon_stats_wait(const struct private_daemon *d, const char *name, uint64_t value,
		      unsigned limit_ms)
{
	uint64_t start = private_daemon_now_ns(), now, got = 0;

	do {
		/* A reading shows the state of its own moment: the time before it is what counts. */
		now = (private_daemon_now_ns() - start) / 1000000;
		if (daemon_stats_read(d) < 0)
			return -EPROTO;
		got = daemon_stats_get(name);
		if (got == value)
			return (int)now;
	} while (now < limit_ms);
	fprintf(stderr, "%s is %llu after %u ms, not %llu\n", name, (unsigned long long)got,
		limit_ms, (unsigned long long)value);
	return -ETIMEDOUT;
}
