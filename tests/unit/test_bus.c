/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_bus.c - what an operator may ask over the bus, from skvcctl's side of it: quotas, eviction, draining,
 * reloading; who may; what is told by itself; and the manual, which has every method and property.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <systemd/sd-bus.h>

#include "tests/lib/control_rig.h"
#include "tests/lib/raw_client.h"
#include "tools/skvcctl.h"
#include "tools/skvcctl_change.h"

#define NAME "org.skvcd.Skvcd1"
#define PATH "/org/skvcd/Skvcd1"

static struct control_rig rig;
static struct skvcctl_source source;
static char err[SKVCCTL_ERR_BYTES];

static int setup(void **state)
{
	(void)state;
	control_rig_start(&rig, NULL);
	source = (struct skvcctl_source){ .path = rig.config.bus_socket };
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(control_rig_stop(&rig), 0);
	return 0;
}

static void open_client(struct raw_client *c)
{
	uint32_t ns, region;
	uint8_t *arena;

	assert_int_equal(raw_client_open(c, rig.config.socket, 8), 0);
	assert_int_equal(raw_client_memory(c, &ns, &region, &arena), 0);
}

static int run(const char *a, const char *b, const char *c)
{
	char *words[] = { (char *)a, (char *)b, (char *)c };

	return skvcctl_change(&source, c ? 3 : b ? 2 : 1, words);
}

static void test_quota(void **state)
{
	struct skvcctl_picture p = { 0 };
	struct raw_client c;
	char name[32];

	(void)state;
	open_client(&c);
	(void)snprintf(name, sizeof(name), "uid-%u", (unsigned)geteuid());
	assert_int_equal(run("quota", name, "20G"), SKVCCTL_OK);
	assert_int_equal(skvcctl_fetch(&source, SKVCCTL_GET_TENANTS, &p, err, sizeof(err)),
			 SKVCCTL_OK);
	assert_int_equal(p.tenants[0].quota_bytes, 20ull << 30);
	skvcctl_picture_deinit(&p);
	assert_int_equal(run("quota", name, "none"), SKVCCTL_OK);
	assert_int_equal(skvcctl_set_quota(&source, "nobody", 1, err, sizeof(err)),
			 SKVCCTL_FAILURE);
	assert_string_equal(err, "nobody: nobody has connected as this tenant");
	/* What a terminal would act on, in seven bits and in eight, is not shown. */
	assert_int_equal(
		skvcctl_set_quota(&source, "\033[31m\302\233\302\240", 1, err, sizeof(err)),
		SKVCCTL_FAILURE);
	assert_string_equal(err, "?[31m??\302\240: nobody has connected as this tenant");
	assert_int_equal(skvcctl_set_quota(&source, name, UINT64_MAX, err, sizeof(err)),
			 SKVCCTL_FAILURE);
	assert_int_equal(run("quota", name, NULL), SKVCCTL_USAGE);
	assert_int_equal(run("quota", name, "much"), SKVCCTL_USAGE);
	assert_int_equal(run("quota", name, "-1G"), SKVCCTL_USAGE);
	assert_int_equal(run("quota", name, "20GB"), SKVCCTL_USAGE);
	assert_int_equal(run("quota", name, "99999999999999T"), SKVCCTL_USAGE);
	raw_client_close(&c);
}

static void test_evict(void **state)
{
	struct skvcctl_evicted gone = { .blocks = 1, .bytes = 1, .kept = 1 };
	struct raw_client c;

	(void)state;
	assert_int_equal(skvcctl_evict(&source, "", 0, &gone, err, sizeof(err)), SKVCCTL_FAILURE);
	assert_string_equal(err, "there is no such tenant, or no such namespace");
	open_client(&c);
	assert_int_equal(skvcctl_evict(&source, "", 0, &gone, err, sizeof(err)), SKVCCTL_OK);
	assert_int_equal(gone.blocks + gone.bytes + gone.kept, 0);
	assert_int_equal(skvcctl_evict(&source, "x", SKVCCTL_NS_ANY, &gone, err, sizeof(err)),
			 SKVCCTL_FAILURE);
	assert_int_equal(run("evict", "all", NULL), SKVCCTL_OK);
	assert_int_equal(run("evict", NULL, NULL), SKVCCTL_USAGE);
	assert_int_equal(run("evict", "everything", NULL), SKVCCTL_USAGE);
	assert_int_equal(run("evict", "namespace", "x"), SKVCCTL_USAGE);
	assert_int_equal(run("evict", "namespace", "7"), SKVCCTL_FAILURE);
	/* Any namespace's number on the bus, none here: a slip would empty everybody's; nor does a number wrap. */
	assert_int_equal(run("evict", "namespace", "4294967295"), SKVCCTL_USAGE);
	assert_int_equal(run("evict", "namespace", "4294967296"), SKVCCTL_USAGE);
	assert_int_equal(run("evict", "namespace", "99999999999999999999"), SKVCCTL_USAGE);
	assert_int_equal(run("evict", "namespace", " -1"), SKVCCTL_USAGE);
	raw_client_close(&c);
}

/* Those that are here go on, others are told why not, and afterwards everything is as it was. */
static void test_drain(void **state)
{
	struct raw_client here, late;
	struct ctl_hello hello = raw_client_hello(8);

	(void)state;
	open_client(&here);
	assert_int_equal(run("drain", NULL, NULL), SKVCCTL_OK);
	assert_int_equal(raw_client_connect(&late, rig.config.socket), 0);
	assert_int_equal(raw_client_request(&late, &hello, CTL_HELLO, sizeof(hello)), CTL_ERROR);
	assert_int_equal(late.answer.error.res, -ESHUTDOWN);
	assert_int_equal(late.answer.error.reason, SKVC_ABI_REASON_SHUTDOWN);
	raw_client_close(&late);
	assert_int_equal(control_rig_wait_sessions(&rig, 1, 1000) >= 0, 1);
	raw_client_close(&here);
	assert_int_equal(run("drain", "wait", NULL), SKVCCTL_OK);
	assert_int_equal(run("drain", "off", NULL), SKVCCTL_OK);
	open_client(&here);
	raw_client_close(&here);
	assert_int_equal(run("drain", "on", NULL), SKVCCTL_USAGE);
}

static int reload_good(void *user, char *ret_text, size_t text_bytes)
{
	(void)user;
	rig.config.quota_bytes = 5ull << 30;
	(void)snprintf(ret_text, text_bytes, "[limits] quota = 5G\n\033]0;x\n");
	return control_config_changed(rig.control);
}

static int reload_bad(void *user, char *ret_text, size_t text_bytes)
{
	(void)user;
	(void)snprintf(ret_text, text_bytes, "/etc/x:3: [host] pol: unknown key");
	return -EINVAL;
}

static void test_reload(void **state)
{
	struct skvcctl_picture p = { 0 };
	struct raw_client c;
	char text[256] = "";

	(void)state;
	open_client(&c);
	assert_int_equal(skvcctl_reload(&source, text, sizeof(text), err, sizeof(err)),
			 SKVCCTL_FAILURE); /* the rig has no file */
	control_on_reload(rig.control, reload_bad, NULL);
	assert_int_equal(skvcctl_reload(&source, text, sizeof(text), err, sizeof(err)),
			 SKVCCTL_FAILURE);
	assert_string_equal(err, "/etc/x:3: [host] pol: unknown key");
	control_on_reload(rig.control, reload_good, NULL);
	assert_int_equal(skvcctl_reload(&source, text, sizeof(text), err, sizeof(err)), SKVCCTL_OK);
	assert_string_equal(text, "[limits] quota = 5G\n?]0;x\n");
	assert_int_equal(skvcctl_fetch(&source, SKVCCTL_GET_TENANTS, &p, err, sizeof(err)),
			 SKVCCTL_OK);
	assert_int_equal(p.tenants[0].quota_bytes, 5ull << 30);
	skvcctl_picture_deinit(&p);
	raw_client_close(&c);
}

/* ---- the interface itself ---- */

static int on_changed(sd_bus_message *m, void *user, sd_bus_error *error)
{
	const char *interface, *name, *type;
	unsigned *seen = user;

	(void)error;
	assert_true(sd_bus_message_read(m, "s", &interface) > 0);
	assert_string_equal(interface, NAME);
	assert_true(sd_bus_message_enter_container(m, 'a', "{sv}") > 0);
	while (sd_bus_message_enter_container(m, 'e', "sv") > 0) {
		assert_true(sd_bus_message_read(m, "s", &name) > 0);
		assert_true(sd_bus_message_peek_type(m, NULL, &type) > 0);
		if (!strcmp(name, "Health")) {
			const char *health;

			assert_true(sd_bus_message_read(m, "v", "s", &health) > 0);
			*seen |= !strcmp(health, "draining") ? 1 : 0;
		} else {
			int draining;

			assert_string_equal(name, "Draining");
			assert_true(sd_bus_message_read(m, "v", "b", &draining) > 0);
			*seen |= draining ? 2 : 0;
		}
		assert_true(sd_bus_message_exit_container(m) > 0);
	}
	return 0;
}

static void test_signals(void **state)
{
	unsigned seen = 0;
	sd_bus *bus;

	(void)state;
	bus = control_rig_bus(&rig);
	assert_true(sd_bus_match_signal(bus, NULL, NULL, PATH, "org.freedesktop.DBus.Properties",
					"PropertiesChanged", on_changed, &seen) >= 0);
	assert_true(sd_bus_call_method(bus, NULL, PATH, NAME, "Ping", NULL, NULL, NULL) >= 0);
	assert_int_equal(skvcctl_drain(&source, true, err, sizeof(err)), SKVCCTL_OK);
	for (unsigned tries = 0; seen != 3 && tries < 3000; tries++) {
		while (sd_bus_process(bus, NULL) > 0)
			;
		(void)sd_bus_wait(bus, 10000);
	}
	assert_int_equal(seen, 3);
	assert_int_equal(skvcctl_drain(&source, false, err, sizeof(err)), SKVCCTL_OK);
	(void)sd_bus_flush_close_unref(bus);
}

/* Names between these marks in the introspection data, each of which the manual must have. */
static unsigned names(const char *xml, const char *element, const char *man, const char *format)
{
	unsigned n = 0;

	xml = strstr(xml, "<interface name=\"" NAME "\">");
	assert_non_null(xml);
	for (const char *p = xml; (p = strstr(p, element)) && p < strstr(xml, "</interface>");) {
		char want[128];

		p += strlen(element);
		(void)snprintf(want, sizeof(want), format, (int)strcspn(p, "\""), p);
		if (!strstr(man, want))
			fail_msg("the manual lacks %s", want);
		n++;
	}
	return n;
}

static void test_manual_agrees(void **state)
{
	static char man[1 << 16];
	FILE *f = fopen("daemon/man/org.skvcd.Skvcd1.5.scd", "re");
	sd_bus_message *reply = NULL;
	const char *xml, *change;
	sd_bus *bus;

	(void)state;
	if (!f) {
		print_message("the manual is not below the working directory\n");
		skip();
	}
	(void)!fread(man, 1, sizeof(man) - 1, f);
	(void)fclose(f);
	bus = control_rig_bus(&rig);
	assert_true(sd_bus_call_method(bus, NULL, PATH, "org.freedesktop.DBus.Introspectable",
				       "Introspect", NULL, &reply, NULL) >= 0);
	assert_true(sd_bus_message_read(reply, "s", &xml) > 0);
	assert_int_equal(names(xml, "<method name=\"", man, "\n*%.*s*("), 19);
	assert_int_equal(names(xml, "<property name=\"", man, "*%.*s* "), 5);
	/* Privileged methods, and only these, stand below CHANGE. */
	change = strstr(man, "\n# CHANGE\n");
	for (const char *p = xml; (p = strstr(p, "<method name=\""));) {
		const char *end = strstr(p, "</method>"), *empty = strstr(p, "/>");
		const char *note = strstr(p, "org.freedesktop.systemd1.Privileged");
		char want[128];

		p += strlen("<method name=\"");
		(void)empty;
		if (p < strstr(xml, "<interface name=\"" NAME "\">"))
			continue;
		(void)snprintf(want, sizeof(want), "\n*%.*s*(", (int)strcspn(p, "\""), p);
		if (note && end && note < end)
			assert_true(strstr(man, want) > change);
		else
			assert_true(strstr(man, want) < change);
	}
	sd_bus_message_unref(reply);
	(void)sd_bus_flush_close_unref(bus);
}

/* As another user, to whom the socket was opened wide: looking is for the group, changing is not. */
static void test_not_permitted(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0) {
		print_message("not root: cannot become another user\n");
		skip();
	}
	assert_int_equal(chmod(rig.dir, 0711), 0);
	assert_int_equal(chmod(rig.config.bus_socket, 0666), 0);
	pid = fork();
	if (!pid) {
		char text[64];
		struct skvcctl_evicted gone;
		struct skvcctl_picture p = { 0 };
		bool good;

		/* The daemon's group, so that it may look, and no more. */
		if (setresgid(getegid(), getegid(), getegid()) < 0 ||
		    setresuid(65534, 65534, 65534) < 0)
			_exit(2);
		good = skvcctl_fetch(&source, SKVCCTL_GET_STATS, &p, err, sizeof(err)) ==
			       SKVCCTL_OK &&
		       skvcctl_set_quota(&source, "x", 1, err, sizeof(err)) == SKVCCTL_FAILURE &&
		       strstr(err, "not permitted") &&
		       skvcctl_drain(&source, true, err, sizeof(err)) == SKVCCTL_FAILURE &&
		       strstr(err, "not permitted") &&
		       skvcctl_evict(&source, "", SKVCCTL_NS_ANY, &gone, err, sizeof(err)) ==
			       SKVCCTL_FAILURE &&
		       strstr(err, "not permitted") &&
		       skvcctl_reload(&source, text, sizeof(text), err, sizeof(err)) ==
			       SKVCCTL_FAILURE &&
		       strstr(err, "not permitted");
		if (!good)
			(void)fprintf(stderr, "as nobody: %s\n", err);
		_exit(good ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- a system bus ---- */

struct fake_system {
	char dir[32];
	struct sockaddr_un addr;
	int listener;
};

/* The daemon of the rig uses it. */
static void system_start(struct fake_system *f)
{
	char address[128];

	*f = (struct fake_system){ .dir = "/tmp/skvcd-bus-XXXXXX",
				   .addr = { .sun_family = AF_UNIX },
				   .listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) };
	assert_non_null(mkdtemp(f->dir));
	(void)snprintf(f->addr.sun_path, sizeof(f->addr.sun_path), "%s/bus", f->dir);
	(void)snprintf(address, sizeof(address), "unix:path=%s/bus", f->dir);
	assert_int_equal(bind(f->listener, (struct sockaddr *)&f->addr, sizeof(f->addr)), 0);
	assert_int_equal(listen(f->listener, 1), 0);
	assert_int_equal(setenv("DBUS_SYSTEM_BUS_ADDRESS", address, 1), 0);
	(void)setup(NULL);
}

/* The daemon's connection, and what it says first. */
static int system_accept(const struct fake_system *f, char *ret_said, size_t bytes)
{
	int fd = accept(f->listener, NULL, NULL);

	memset(ret_said, 0, bytes);
	assert_true(recv(fd, ret_said, bytes - 1, 0) > 0);
	ret_said[0] = '-'; /* for it is 0 */
	assert_non_null(strstr(ret_said, "AUTH EXTERNAL"));
	return fd;
}

static void system_stop(struct fake_system *f)
{
	(void)alarm(20);
	(void)teardown(NULL);
	(void)alarm(0);
	(void)unsetenv("DBUS_SYSTEM_BUS_ADDRESS");
	(void)close(f->listener);
	(void)unlink(f->addr.sun_path);
	(void)rmdir(f->dir);
}

/* It is not waited for, and was not asked for other people's descriptors. */
static void test_system_bus_that_hangs(void **state)
{
	struct fake_system f;
	char said[512];
	int fd;

	(void)state;
	system_start(&f);
	fd = system_accept(&f, said, sizeof(said));
	assert_null(strstr(said, "NEGOTIATE_UNIX_FD"));
	system_stop(&f);
	(void)close(fd);
}

/* dbus is started again: so is the connection to it. */
static void test_system_bus_that_comes_back(void **state)
{
	struct fake_system f;
	char said[512];

	(void)state;
	system_start(&f);
	(void)alarm(60);
	for (unsigned i = 0; i < 3; i++)
		(void)close(system_accept(&f, said, sizeof(said)));
	(void)alarm(0);
	system_stop(&f);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_quota),
		TEST(test_evict),
		TEST(test_drain),
		TEST(test_reload),
		TEST(test_signals),
		TEST(test_manual_agrees),
		TEST(test_not_permitted),
		cmocka_unit_test(test_system_bus_that_hangs),
		cmocka_unit_test(test_system_bus_that_comes_back),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
