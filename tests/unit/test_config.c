/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_config.c - skvcd.conf: every key at and beyond its bounds, every way a file can be wrong, and that
 * the manual, the example and the help speak of the same keys.
 */
#include "daemon/config.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char err[1024];

static int load(const char *text, struct config *ret)
{
	err[0] = '\0';
	return config_load_bytes("FILE", text, strlen(text), ret, err, sizeof(err));
}

static int set(struct config *c, const char *assignment)
{
	err[0] = '\0';
	return config_set(c, assignment, err, sizeof(err));
}

/* One line, from where to what, ending in what would be right. */
static void assert_says(const char *what)
{
	if (!strstr(err, what))
		fail_msg("\"%s\" does not say \"%s\"", err, what);
	assert_null(strchr(err, '\n'));
}

static int64_t field(const struct config *c, const struct config_key *k)
{
	const uint8_t *p = (const uint8_t *)c + k->off;

	return k->field_bytes == 8 ? (int64_t) * (const uint64_t *)p : *(const int32_t *)p;
}

static void test_defaults_are_good(void **state)
{
	struct config c;

	(void)state;
	config_default(&c);
	assert_int_equal(config_check(&c, err, sizeof(err)), 0);
	assert_string_equal(c.socket, "/run/skvcd/skvcd.sock");
	assert_int_equal(c.socket_mode, 0660);
	assert_int_equal(c.pool_bytes, 1ull << 30);
	assert_int_equal(c.spin_ns, 50000);
	assert_int_equal(c.numa_node, -1);
	assert_int_equal(c.lock_memory, 1);
	assert_int_equal(c.verify, 1);
	assert_int_equal(c.speculator, CONFIG_SPECULATOR_AUTO);
	assert_int_equal(c.lease_ttl_ns, 30000000000ull);
	assert_true(c.fit_tokens[0] > 0 && c.fit_tokens[0] < c.fit_tokens[1]);
	assert_string_equal(c.nvme_path, "");
}

/* A number as one writes it for this key. */
static void write_number(const struct config_key *k, int64_t v, char *buf, size_t buf_bytes)
{
	(void)snprintf(buf, buf_bytes,
		       k->type == CONFIG_MODE	     ? "%" PRIo64
		       : k->type == CONFIG_TIME && v ? "%" PRId64 "ns"
						     : "%" PRId64,
		       v);
}

static void try_number(const struct config_key *k, int64_t v, int good)
{
	char assignment[128], number[32];
	struct config c;

	config_default(&c);
	write_number(k, v, number, sizeof(number));
	(void)snprintf(assignment, sizeof(assignment), "%s.%s=%s", k->section, k->key, number);
	if (good) {
		if (set(&c, assignment))
			fail_msg("%s", err);
		assert_int_equal(field(&c, k), v);
	} else {
		struct config before = c;
		char want[128];

		assert_int_equal(set(&c, assignment), -EINVAL);
		(void)snprintf(want, sizeof(want), "-o: [%s] %s: ", k->section, k->key);
		assert_says(want);
		assert_says("; allowed: ");
		assert_memory_equal(&c, &before, sizeof(c));
	}
}

static void try_text(const struct config_key *k)
{
	char assignment[PATH_MAX + 128];
	struct config c;
	int n = snprintf(assignment, sizeof(assignment), "%s.%s=", k->section, k->key);

	config_default(&c);
	assert_int_equal(set(&c, assignment), k->min ? -EINVAL : 0);
	memset(assignment + n, 'x', (size_t)k->max + 1);
	assignment[n + k->max + 1] = '\0';
	assert_int_equal(set(&c, assignment), -EINVAL);
	assert_says("too long");
	assignment[n + k->max] = '\0';
	assert_int_equal(set(&c, assignment), 0);
	assert_int_equal(strlen((const char *)&c + k->off), k->max);
	assignment[n] = '\t';
	assert_int_equal(set(&c, assignment), -EINVAL);
	assert_says("control character");
}

static void try_choices(const struct config_key *k)
{
	char assignment[128];
	struct config c;

	config_default(&c);
	for (unsigned i = 0; k->choices[i]; i++) {
		(void)snprintf(assignment, sizeof(assignment), "%s.%s=%s", k->section, k->key,
			       k->choices[i]);
		assert_int_equal(set(&c, assignment), 0);
		assert_int_equal(field(&c, k), i);
	}
	(void)snprintf(assignment, sizeof(assignment), "%s.%s=perhaps", k->section, k->key);
	assert_int_equal(set(&c, assignment), -EINVAL);
	for (unsigned i = 0; k->choices[i]; i++)
		assert_says(k->choices[i]);
}

static void test_every_key_at_its_bounds(void **state)
{
	size_t n = 0;

	(void)state;
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k), n++) {
		if (k->type == CONFIG_TEXT) {
			try_text(k);
			continue;
		}
		if (k->type == CONFIG_CHOICE) {
			try_choices(k);
			continue;
		}
		try_number(k, k->min, 1);
		try_number(k, k->max, 1);
		try_number(k, k->max + 1, 0);
		if (k->min > 0 && !(k->flags & CONFIG_OR_ZERO && k->min == 1))
			try_number(k, k->min - 1, 0);
		if (k->min > 1)
			try_number(k, 0, !!(k->flags & CONFIG_OR_ZERO));
		if (k->type == CONFIG_INT)
			try_number(k, k->min - 1, 0);
	}
	assert_true(n > 30);
}

static void test_units(void **state)
{
	struct config c;

	(void)state;
	config_default(&c);
	assert_int_equal(set(&c, "host.pool=64M"), 0);
	assert_int_equal(c.pool_bytes, 64u << 20);
	assert_int_equal(set(&c, "host.pool=2 T"), 0);
	assert_int_equal(c.pool_bytes, 2ull << 40);
	assert_int_equal(set(&c, "host.pool=33554432"), 0);
	assert_int_equal(c.pool_bytes, 32u << 20);
	assert_int_equal(set(&c, "daemon.spin=7us"), 0);
	assert_int_equal(c.spin_ns, 7000);
	assert_int_equal(set(&c, "daemon.spin=0"), 0);
	assert_int_equal(c.spin_ns, 0);
	for (unsigned i = 0; i < 8; i++) {
		static const char *const bad[] = {
			"host.pool=64Q",
			"host.pool=",
			"host.pool=-64M",
			"host.pool=0x4000000",
			"host.pool=99999999999999999999",
			"host.pool=18446744073709551615T",
			"daemon.spin=50",
			"daemon.spin=1.5ms",
		};

		assert_int_equal(set(&c, bad[i]), -EINVAL);
		assert_says("; allowed: ");
	}
}

static void test_fit_tokens(void **state)
{
	struct config c;

	(void)state;
	config_default(&c);
	assert_int_equal(set(&c, "codec.fit_tokens= 16 ,32,64, 128"), 0);
	assert_int_equal(c.fit_tokens[0], 16);
	assert_int_equal(c.fit_tokens[3], 128);
	assert_int_equal(set(&c, "codec.fit_tokens=4096"), 0);
	assert_int_equal(c.fit_tokens[0], 4096);
	assert_int_equal(c.fit_tokens[1], 0);
	assert_int_equal(set(&c, "codec.fit_tokens=1000,1000"), -EINVAL);
	assert_says("not rising");
	assert_int_equal(set(&c, "codec.fit_tokens=16,32,64,128,256"), -EINVAL);
	assert_says("too many");
	assert_int_equal(set(&c, "codec.fit_tokens=16;32"), -EINVAL);
	assert_int_equal(set(&c, "codec.fit_tokens="), -EINVAL);
	assert_int_equal(c.fit_tokens[0], 4096);
}

static void test_a_whole_file(void **state)
{
	struct config c;

	(void)state;
	assert_int_equal(load("\xef\xbb\xbf# comment\n"
			      "; another\n"
			      "\n"
			      "[daemon]\n"
			      "socket = /tmp/s   ; where\n"
			      "  sessions_max=5\r\n"
			      "[tenant team.a]\n"
			      "uid = 1000-1999\n"
			      "quota = 10G\n"
			      "[tenant b]\n"
			      "uid = 7\n"
			      "[daemon]\n"
			      "socket_mode = 0600",
			      &c),
			 0);
	assert_int_equal(config_check(&c, err, sizeof(err)), 0);
	assert_string_equal(c.socket, "/tmp/s");
	assert_int_equal(c.sessions_max, 5);
	assert_int_equal(c.socket_mode, 0600);
	assert_int_equal(c.tenants_count, 2);
	assert_string_equal(c.tenants[0].name, "team.a");
	assert_int_equal(c.tenants[0].uid_first, 1000);
	assert_int_equal(c.tenants[0].uid_last, 1999);
	assert_int_equal(c.tenants[0].quota_bytes, 10ull << 30);
	assert_int_equal(c.tenants[1].uid_first, 7);
	assert_int_equal(c.tenants[1].uid_last, 7);
	assert_int_equal(c.pool_bytes, 1ull << 30);
	assert_int_equal(load("", &c), 0);
}

static void test_errors_name_the_line(void **state)
{
	static const struct {
		const char *text, *says;
	} bad[] = {
		{ "[daemon]\nsocket=/a\nsokcet=/b\n",
		  "FILE:3: [daemon] sokcet: unknown key; allowed: socket, " },
		{ "\n\n[deamon]\n",
		  "FILE:3: [deamon]: unknown section; allowed: [daemon] [host] " },
		{ "[daemon]\nsessions_max = 0\n",
		  "FILE:2: [daemon] sessions_max: \"0\" is out of range; "
		  "allowed: 1.." },
		{ "socket = /a\n", "FILE:1: key before the first section" },
		{ "[daemon]\nnonsense\n",
		  "FILE:2: not understood; allowed: [section], key = value" },
		{ "[daemon\nsocket=/a\n", "FILE:1: not a section header" },
		{ "[daemon] x\n", "FILE:1: text after a section header" },
		{ "[daemon]\nsocket=/a\n[host]\npool=1G\n[daemon]\nsocket=/b\n",
		  "FILE:6: [daemon] socket: given "
		  "twice" },
		{ "[tenant a]\nuid=1\n[tenant b]\nuid=2\n[tenant a]\nuid=3\n",
		  "FILE:6: [tenant a] uid: given "
		  "twice" },
		{ "[tenant a]\nuid=5-4\n", "FILE:2: [tenant a] uid: not a user id" },
		{ "[tenant a]\nuid=4294967295\n", "FILE:2: [tenant a] uid: not a user id" },
		{ "[tenant a]\nquota=lots\n", "FILE:2: [tenant a] quota: not a size" },
		{ "[tenant a]\ngid=4\n",
		  "FILE:2: [tenant a] gid: unknown key; allowed: uid, quota" },
		{ "[tenant a b]\n", "FILE:1: [tenant a b]: bad tenant name" },
		{ "[tenant ]\n", "bad tenant name" },
		{ "[tenant uid-1000]\n",
		  "FILE:1: [tenant uid-1000]: tenant names that start with uid-" },
		{ "[host]\npool = 1G\n\tpool = 2G\n", "FILE:3: [host] pool: given twice" },
	};
	struct config c, before;

	(void)state;
	memset(&c, 0xa5, sizeof(c));
	before = c;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(load(bad[i].text, &c), -EINVAL);
		assert_says(bad[i].says);
		assert_memory_equal(&c, &before, sizeof(c));
	}
}

static void test_odd_bytes(void **state)
{
	char line[400] = "[daemon]\nsocket=";
	struct config c;

	(void)state;
	err[0] = '\0';
	assert_int_equal(
		config_load_bytes("FILE", "[daemon]\nso\0ck=1\n", 17, &c, err, sizeof(err)),
		-EINVAL);
	assert_says("FILE:2: has a NUL byte");
	memset(line + 16, 'x', 300);
	assert_int_equal(load(line, &c), -EINVAL);
	assert_says("FILE:2: line too long");
	/* Whatever the file holds, the error is one printable line. */
	assert_int_equal(load("[da\x1b[31memon]\n", &c), -EINVAL);
	assert_null(strchr(err, '\x1b'));
	assert_int_equal(load("[host]\npool=\x07\n", &c), -EINVAL);
	assert_null(strchr(err, '\x07'));
	/* A small buffer is not overrun. */
	memset(err, 'z', sizeof(err));
	assert_int_equal(config_load_bytes("FILE", "[x]\n", 4, &c, err, 8), -EINVAL);
	assert_int_equal(strnlen(err, 8), 7);
	assert_int_equal(err[8], 'z');
}

static void test_too_many_tenants(void **state)
{
	struct config c;
	char text[64 * (CONFIG_TENANTS_MAX + 1)] = "";
	size_t n = 0;

	(void)state;
	for (unsigned i = 0; i <= CONFIG_TENANTS_MAX; i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n, "[tenant t%u]\nuid=%u\n", i, i);
	assert_int_equal(load(text, &c), -EINVAL);
	assert_says("too many tenant sections");
	assert_says("FILE:129: ");
	*strstr(text, "[tenant t64]") = '\0';
	assert_int_equal(load(text, &c), 0);
	assert_int_equal(c.tenants_count, CONFIG_TENANTS_MAX);
}

static void test_cross_checks(void **state)
{
	static const struct {
		const char *set[3], *says;
	} bad[] = {
		{ { "host.accept_percent=97" }, "[host] accept_percent" },
		{ { "host.spill_percent=98" }, "[host] spill_percent" },
		{ { "host.arena_total=1G" }, "[host] arena_session" },
		{ { "nvme.segment=3M" }, "[nvme] segment" },
		{ { "nvme.path=/x", "nvme.size=192M" }, "[nvme] size" },
		{ { "nvme.path=/x", "nvme.size=300M" }, "[nvme] size" },
		{ { "nvme.path=/x, /y 300M" }, "[nvme] size" },
		{ { "nvme.path=/x, /x" }, "[nvme] path" },
		{ { "nvme.path=/x,, /y" }, "[nvme] path" },
		{ { "nvme.path=1,2,3,4,5,6,7,8,9" }, "[nvme] path" },
		{ { "limits.lease_ttl_max=1s" }, "[limits] lease_ttl" },
		{ { "daemon.bus_socket=/run/skvcd/skvcd.sock" }, "[daemon] bus_socket" },
		{ { "tenant a.quota=1G" }, "[tenant a] uid: missing" },
		{ { "tenant a.uid=10-20", "tenant b.uid=20-30" },
		  "[tenant b] uid: 20-30 overlaps [tenant a]'s 10-20" },
		{ { "tenant a.uid=10-20", "tenant b.uid=0-100" }, "overlaps" },
	};
	struct config c;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		config_default(&c);
		for (unsigned k = 0; k < 3 && bad[i].set[k]; k++)
			assert_int_equal(set(&c, bad[i].set[k]), 0);
		assert_int_equal(config_check(&c, err, sizeof(err)), -EINVAL);
		assert_says(bad[i].says);
		assert_says("; allowed: ");
	}
	config_default(&c);
	assert_int_equal(set(&c, "nvme.size=192M"), 0); /* unused without a path */
	assert_int_equal(config_check(&c, err, sizeof(err)), 0);
	assert_int_equal(set(&c, "tenant a.uid=10-20"), 0);
	assert_int_equal(set(&c, "tenant b.uid=21"), 0);
	assert_int_equal(config_check(&c, err, sizeof(err)), 0);
}

static void test_overrides(void **state)
{
	static const char *const bad[] = { "",	       "=",	  "pool=1G", "host.pool",
					   ".pool=1G", "host.=1", "x.y=1" };
	struct config c;

	(void)state;
	config_default(&c);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(set(&c, bad[i]), -EINVAL);
	assert_int_equal(set(&c, "tenant a.b.c.uid=3"), 0);
	assert_string_equal(c.tenants[0].name, "a.b.c");
	assert_int_equal(set(&c, "nvme.path=/a=b.c"), 0);
	assert_string_equal(c.nvme_path, "/a=b.c");
	assert_int_equal(set(&c, "host.pool=32M"), 0);
	assert_int_equal(set(&c, "host.pool=64M"), 0);
	assert_int_equal(c.pool_bytes, 64u << 20);
}

/* One path is what it always was; of several each may have its size. */
static void test_nvme_devices(void **state)
{
	struct config_nvme_device d[CONFIG_NVME_DEVICES_MAX];
	struct config c;

	(void)state;
	config_default(&c);
	assert_int_equal(config_nvme_devices(&c, d), 0);
	assert_int_equal(config_nvme_bytes(&c), 0);
	assert_int_equal(set(&c, "nvme.path=/a file/of mine"), 0);
	assert_int_equal(config_nvme_devices(&c, d), 1);
	assert_string_equal(d[0].path, "/a file/of mine");
	assert_int_equal(set(&c, "nvme.path=/a, /b c  500G ,/dev/d"), 0);
	assert_int_equal(set(&c, "nvme.size=2G"), 0);
	assert_int_equal(config_nvme_devices(&c, d), 3);
	assert_string_equal(d[0].path, "/a");
	assert_string_equal(d[1].path, "/b c");
	assert_string_equal(d[2].path, "/dev/d");
	assert_int_equal(d[0].bytes, 2ull << 30);
	assert_int_equal(d[1].bytes, 500ull << 30);
	assert_int_equal(config_nvme_bytes(&c), 504ull << 30);
}

static void test_files(void **state)
{
	char path[] = "/tmp/skvcd-test-conf-XXXXXX";
	int fd = mkstemp(path);
	struct config c;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "[host]\npool=32M\n", 16), 16);
	assert_int_equal(config_load(path, &c, err, sizeof(err)), 0);
	assert_int_equal(c.pool_bytes, 32u << 20);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	assert_int_equal(config_load(path, &c, err, sizeof(err)), -EINVAL);
	assert_says("too long");
	(void)close(fd);
	(void)unlink(path);
	assert_int_equal(config_load(path, &c, err, sizeof(err)), -ENOENT);
	assert_says(path);
	assert_int_equal(config_load("/", &c, err, sizeof(err)), -EISDIR);
}

static char *read_text(const char *path)
{
	FILE *f = fopen(path, "r");
	char *text;
	size_t n;

	if (!f)
		return NULL;
	text = calloc(1, 128 << 10);
	assert_non_null(text);
	n = fread(text, 1, (128 << 10) - 1, f);
	(void)fclose(f);
	assert_true(n < (128 << 10) - 1);
	return text;
}

/* The help is a configuration itself: with every comment mark before a key taken away, it must load. */
static void test_help_is_a_configuration(void **state)
{
	char *text = NULL, *plain;
	size_t bytes, n = 0;
	FILE *out = open_memstream(&text, &bytes);
	struct config c, defaults;

	(void)state;
	config_print_help(out);
	(void)fclose(out);
	plain = calloc(1, bytes + 1);
	assert_non_null(plain);
	for (size_t i = 0; i < bytes; i++)
		if (!(text[i] == '#' && (!i || text[i - 1] == '\n') && text[i + 1] != ' '))
			plain[n++] = text[i];
	if (load(plain, &c))
		fail_msg("%s", err);
	config_default(&defaults);
	assert_int_equal(c.tenants_count, 1);
	c.tenants_count = 0;
	memset(c.tenants, 0, sizeof(c.tenants));
	assert_memory_equal(&c, &defaults, sizeof(c));
	free(plain);
	free(text);
}

/* skvcd.conf(5) has an entry for every key, with its default and range, and for no other. */
static void test_manual_agrees(void **state)
{
	char *man = read_text("daemon/man/skvcd.conf.5.scd");
	char want[512], allowed[CONFIG_ALLOWED_BYTES];
	size_t entries = 0, keys = 0;

	(void)state;
	if (!man) {
		print_message("daemon/man/skvcd.conf.5.scd is not below the working directory\n");
		skip();
	}
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k), keys++) {
		(void)snprintf(want, sizeof(want), "\n*%s* = ", k->key);
		if (!strstr(man, want))
			fail_msg("no entry for [%s] %s", k->section, k->key);
		(void)config_key_allowed(k, allowed, sizeof(allowed));
		(void)snprintf(want, sizeof(want), "\tDefault: %s. Allowed: %s.%s\n",
			       k->value[0] ? k->value : "empty", allowed,
			       k->flags & CONFIG_LIVE ? " A reload changes it." : "");
		if (!strstr(man, want))
			fail_msg("[%s] %s: the manual lacks \"%s\"", k->section, k->key, want);
	}
	for (const char *p = man; (p = strstr(p, "\n*")); p++)
		entries += strstr(p, "* = ") && strstr(p, "* = ") < strchr(p + 1, '\n');
	assert_int_equal(entries, keys + 2); /* and the two of [tenant NAME] */
	free(man);
}

/* A value reads back as it is written, and goes over to another configuration only if it is live. */
static void test_values_and_live(void **state)
{
	struct config a, b, c;
	char text[CONFIG_VALUE_BYTES];
	unsigned live = 0;

	(void)state;
	config_default(&a);
	config_default(&b);
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k)) {
		config_key_value(&a, k, text, sizeof(text));
		assert_string_equal(text, k->value);
		memset((uint8_t *)&b + k->off, 1, k->field_bytes);
	}
	config_default(&c);
	config_copy_live(&c, &b);
	for (const struct config_key *k = config_key_at(0); k; k = config_key_next(k)) {
		const struct config *want = k->flags & CONFIG_LIVE ? &b : &a;

		assert_memory_equal((uint8_t *)&c + k->off, (const uint8_t *)want + k->off,
				    k->field_bytes);
		live += k->flags & CONFIG_LIVE ? 1 : 0;
	}
	assert_true(live >= 10);
}

static void test_example_loads(void **state)
{
	char *text = read_text("systemd/skvcd.conf");
	char *help = NULL;
	size_t bytes;
	FILE *out;
	struct config c;

	(void)state;
	if (!text) {
		print_message("systemd/skvcd.conf is not below the working directory\n");
		skip();
	}
	if (load(text, &c) || config_check(&c, err, sizeof(err)))
		fail_msg("%s", err);
	/* It is what --help-config prints, below a few lines of its own. */
	out = open_memstream(&help, &bytes);
	assert_non_null(out);
	config_print_help(out);
	(void)fclose(out);
	assert_true(strlen(text) > bytes);
	assert_string_equal(text + strlen(text) - bytes, help);
	free(help);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults_are_good),
		cmocka_unit_test(test_every_key_at_its_bounds),
		cmocka_unit_test(test_units),
		cmocka_unit_test(test_fit_tokens),
		cmocka_unit_test(test_a_whole_file),
		cmocka_unit_test(test_errors_name_the_line),
		cmocka_unit_test(test_odd_bytes),
		cmocka_unit_test(test_too_many_tenants),
		cmocka_unit_test(test_cross_checks),
		cmocka_unit_test(test_overrides),
		cmocka_unit_test(test_nvme_devices),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_help_is_a_configuration),
		cmocka_unit_test(test_manual_agrees),
		cmocka_unit_test(test_values_and_live),
		cmocka_unit_test(test_example_loads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
