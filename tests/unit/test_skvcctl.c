/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_skvcctl.c - the bus and its reader, both ends real: what the daemon counts is what skvcctl prints,
 * as JSON with keys that stay, and as tables that fit a screen.
 */
#include "tools/skvcctl.h"
#include "tools/skvcctl_explain.h"

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
#include <sys/un.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "daemon/stats.h"
#include "tests/lib/control_rig.h"
#include "tests/lib/raw_client.h"

#define COLUMNS_MAX 100u

static struct control_rig rig;
static struct skvcctl_source source;
static char err[SKVCCTL_ERR_BYTES];
static unsigned fds_before;

static int setup(void **state)
{
	static const char *const overrides[] = { "limits.quota=1G", NULL };

	(void)state;
	fds_before = control_rig_open_fds();
	control_rig_start(&rig, overrides);
	source = (struct skvcctl_source){ .path = rig.config.bus_socket };
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(control_rig_stop(&rig), 0);
	assert_int_equal(control_rig_fds_left(fds_before), fds_before);
	return 0;
}

static struct skvcctl_picture fetch(unsigned what)
{
	struct skvcctl_picture p = { 0 };

	if (skvcctl_fetch(&source, what, &p, err, sizeof(err)) != SKVCCTL_OK)
		fail_msg("%s", err);
	return p;
}

/* One client with one namespace; the caller closes it. */
static void with_client(struct raw_client *c, uint32_t *ret_ns)
{
	uint32_t region;
	uint8_t *arena;

	assert_int_equal(raw_client_open(c, rig.config.socket, 8), 0);
	assert_int_equal(raw_client_memory(c, ret_ns, &region, &arena), 0);
}

/* Both ways to say it have the kind of a profile's part for a model. */
static void test_part_for_a_model(void **state)
{
	static const char *const kinds[] = { "none", "copy", "draft", "other" };

	(void)state;
	for (uint32_t i = 0; i < 4; i++) {
		struct skvcctl_profile f = { .version = 1, .model_part = i };
		struct skvcctl_picture p = { .profiles = &f, .profiles_count = 1 };
		char text[2048] = "", want[64];
		FILE *out = fmemopen(text, sizeof(text), "w");

		skvcctl_print_profiles(&p, out);
		(void)fflush(out);
		(void)snprintf(want, sizeof(want), ", model (%s)", kinds[i]);
		assert_int_equal(strstr(text, want) != NULL, i > 0);
		assert_int_equal(skvcctl_print_json(&p, SKVCCTL_GET_PROFILES, out), 0);
		(void)fclose(out);
		(void)snprintf(want, sizeof(want), "\"model_part\":\t\"%s\"", kinds[i]);
		assert_non_null(strstr(text, want));
	}
}

static void test_ping(void **state)
{
	struct skvcctl_picture p = fetch(SKVCCTL_GET_VERSION);

	(void)state;
	assert_string_equal(p.version, SKVCD_VERSION);
	assert_string_equal(p.health, "ok");
	assert_non_null(strstr(p.status, "0 sessions"));
	assert_true(p.ping_ns > 0);
	skvcctl_picture_deinit(&p);
}

/* Both directions: everything that the daemon has arrives, and nothing else does. */
static void test_every_counter_arrives(void **state)
{
	struct skvcctl_picture p = fetch(SKVCCTL_GET_STATS);
	size_t kinds[4] = { 0 };

	(void)state;
	for (size_t i = 0; i < p.stats_count; i++)
		kinds[p.stats[i].kind]++;
	for (unsigned i = 0; i < STAT_COUNT; i++) {
		enum skvcctl_kind kind = stats_info[i].kind == 'C' ? SKVCCTL_COUNTER
								   : SKVCCTL_GAUGE;
		size_t found = 0;

		for (size_t k = 0; k < p.stats_count; k++)
			found += p.stats[k].kind == kind &&
				 !strcmp(p.stats[k].name, stats_info[i].name);
		if (found != 1)
			fail_msg("%s: %zu times", stats_info[i].name, found);
	}
	assert_int_equal(kinds[SKVCCTL_COUNTER] + kinds[SKVCCTL_GAUGE], STAT_COUNT);
	assert_int_equal(kinds[SKVCCTL_REASON], SKVC_ABI_REASON_COUNT - 1);
	assert_int_equal(kinds[SKVCCTL_LATENCY], 4 * STATS_HIST_COUNT);
	assert_int_equal(skvcctl_value(&p, SKVCCTL_GAUGE, "pool_bytes"),
			 stats_get(lane_stats(rig.lane), STAT_POOL_BYTES));
	assert_true(skvcctl_value(&p, SKVCCTL_GAUGE, "pool_bytes") > 0);
	skvcctl_picture_deinit(&p);
}

static void test_rows(void **state)
{
	struct skvcctl_picture p;
	struct raw_client c;
	uint32_t ns;

	(void)state;
	with_client(&c, &ns);
	p = fetch(SKVCCTL_GET_ALL);
	assert_int_equal(p.sessions_count, 1);
	assert_int_equal(p.sessions[0].id, c.layout.session_id);
	assert_int_equal(p.sessions[0].pid, getpid());
	assert_int_equal(p.sessions[0].uid, geteuid());
	assert_string_equal(p.sessions[0].role, "worker");
	assert_string_equal(p.sessions[0].name, "raw");
	assert_true(p.sessions[0].age_ns > 0);
	assert_int_equal(p.namespaces_count, 1);
	assert_int_equal(p.namespaces[0].id, 0);
	assert_int_equal(p.namespaces[0].block_tokens, 16);
	assert_int_equal(p.namespaces[0].segments_count, 1);
	assert_int_equal(p.namespaces[0].block_raw_bytes, 1024);
	assert_int_equal(strlen(p.namespaces[0].digest), 64);
	assert_int_equal(strspn(p.namespaces[0].digest, "0123456789abcdef"), 64);
	assert_int_equal(p.tenants_count, 1);
	assert_string_equal(p.tenants[0].name, p.sessions[0].tenant);
	assert_int_equal(p.tenants[0].quota_bytes, 1ull << 30);
	assert_int_equal(skvcctl_value(&p, SKVCCTL_GAUGE, "sessions"), 1);
	assert_int_equal(skvcctl_value(&p, SKVCCTL_COUNTER, "sessions_opened"), 1);
	skvcctl_picture_deinit(&p);
	/* A client that breaks the protocol is counted by the control thread, and shows all the same. */
	assert_int_equal(raw_client_send(&c, "x", 1, NULL, 0), 0);
	while (raw_client_recv(&c, 5000) > 0)
		;
	raw_client_close(&c);
	assert_true(control_rig_wait_sessions(&rig, 0, 5000) >= 0);
	p = fetch(SKVCCTL_GET_ALL);
	assert_int_equal(p.sessions_count, 0);
	assert_int_equal(p.namespaces_count, 1);
	assert_int_equal(skvcctl_value(&p, SKVCCTL_COUNTER, "sessions_failed"), 1);
	assert_int_equal(skvcctl_value(&p, SKVCCTL_REASON, "bad-message"), 1);
	skvcctl_picture_deinit(&p);
}

/* ---- printing ---- */

static char *to_text(const struct skvcctl_picture *p,
		     void (*print)(const struct skvcctl_picture *, FILE *))
{
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);

	assert_non_null(out);
	print(p, out);
	assert_int_equal(fclose(out), 0);
	return text;
}

static cJSON *to_json(const struct skvcctl_picture *p, unsigned what)
{
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);
	cJSON *root;

	assert_non_null(out);
	assert_int_equal(skvcctl_print_json(p, what, out), 0);
	assert_int_equal(fclose(out), 0);
	root = cJSON_Parse(text);
	if (!root)
		fail_msg("not JSON: %s", text);
	free(text);
	return root;
}

static const cJSON *at(const cJSON *object, const char *key)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

	if (!item)
		fail_msg("no key \"%s\"", key);
	return item;
}

static void test_json_keys(void **state)
{
	static const char *const latency[] = { "count", "sum_ns", "p50_ns", "p99_ns" };
	struct skvcctl_picture p;
	struct raw_client c;
	cJSON *root;
	uint32_t ns;

	(void)state;
	with_client(&c, &ns);
	p = fetch(SKVCCTL_GET_ALL);
	root = to_json(&p, SKVCCTL_GET_ALL);
	for (unsigned i = 0; i < STAT_COUNT; i++)
		assert_true(cJSON_IsNumber(
			at(at(root, stats_info[i].kind == 'C' ? "counters" : "gauges"),
			   stats_info[i].name)));
	for (unsigned i = 1; i < SKVC_ABI_REASON_COUNT; i++)
		assert_true(
			cJSON_IsNumber(at(at(root, "reasons"), stats_reason_word((uint16_t)i))));
	for (unsigned i = 0; i < STATS_HIST_COUNT; i++)
		for (unsigned k = 0; k < 4; k++)
			assert_true(cJSON_IsNumber(
				at(at(at(root, "latency"), stats_hist_name[i]), latency[k])));
	assert_string_equal(at(root, "version")->valuestring, SKVCD_VERSION);
	assert_int_equal(cJSON_GetArraySize(at(root, "sessions")), 1);
	assert_int_equal(cJSON_GetArraySize(at(root, "tenants")), 1);
	assert_int_equal(cJSON_GetArraySize(at(root, "namespaces")), 1);
	assert_string_equal(
		at(cJSON_GetArrayItem(at(root, "namespaces"), 0), "digest")->valuestring,
		p.namespaces[0].digest);
	assert_int_equal(at(cJSON_GetArrayItem(at(root, "sessions"), 0), "pid")->valueint,
			 getpid());
	cJSON_Delete(root);
	root = to_json(&p, SKVCCTL_GET_TENANTS);
	assert_int_equal(cJSON_GetArraySize(root), 1);
	cJSON_Delete(root);
	skvcctl_picture_deinit(&p);
	raw_client_close(&c);
}

/* Numbers above 2^53 would lose their last digits in a double. */
static void test_json_keeps_large_numbers(void **state)
{
	struct skvcctl_stat stat = { .kind = SKVCCTL_COUNTER,
				     .name = "ops",
				     .value = UINT64_MAX - 1 };
	struct skvcctl_picture p = { .stats = &stat, .stats_count = 1 };
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);

	(void)state;
	assert_int_equal(skvcctl_print_json(&p, SKVCCTL_GET_STATS, out), 0);
	(void)fclose(out);
	assert_non_null(strstr(text, "18446744073709551614"));
	free(text);
}

static void assert_fits(const char *text, size_t lines_max)
{
	size_t lines = 0;

	while (*text) {
		const char *end = strchr(text, '\n');

		assert_non_null(end); /* the last line ends, too */
		if ((size_t)(end - text) > COLUMNS_MAX)
			fail_msg("too wide: %.*s", (int)(end - text), text);
		text = end + 1;
		lines++;
	}
	assert_true(lines <= lines_max);
}

static struct skvcctl_stat full_stats[] = {
	{ SKVCCTL_GAUGE, "raw_bytes", 3ull << 40 },
	{ SKVCCTL_GAUGE, "coded_bytes", 2ull << 40 },
	{ SKVCCTL_GAUGE, "pool_bytes", 100ull << 30 },
	{ SKVCCTL_GAUGE, "pool_slab_bytes", 50ull << 30 },
	{ SKVCCTL_GAUGE, "pool_slot_bytes", 40ull << 30 },
	{ SKVCCTL_GAUGE, "pool_used_bytes", 39ull << 30 },
	{ SKVCCTL_GAUGE, "nvme_health", 2 },
	{ SKVCCTL_GAUGE, "blocks", 12345678 },
	{ SKVCCTL_COUNTER, "lookup_blocks", 1000 },
	{ SKVCCTL_COUNTER, "hit_blocks_host", 700 },
	{ SKVCCTL_COUNTER, "hit_blocks_nvme", 200 },
	{ SKVCCTL_COUNTER, "store_raw_bytes", 3ull << 40 },
	{ SKVCCTL_COUNTER, "store_coded_bytes", 2ull << 40 },
	{ SKVCCTL_LATENCY, "load.count", 123456789 },
	{ SKVCCTL_LATENCY, "load.p50_ns", 12345 },
	{ SKVCCTL_LATENCY, "load.p99_ns", 987654321 },
	{ SKVCCTL_REASON, "pool-full", 3 },
	{ SKVCCTL_REASON, "quota", 0 },
};

static void test_table_says_what_matters(void **state)
{
	static const char *const says[] = {
		"ratio 1.500, 1.00 TiB saved",
		"50.0 % of 100 GiB",
		"internal waste 2.5 %",
		"OUT OF SERVICE",
		"70.0 % hit in host memory, 20.0 % on NVMe, 10.0 % missed",
		"12.3 us",
		"988 ms",
		"pool-full 3",
		"health: degraded",
	};
	struct skvcctl_picture p = {
		.version = "0.1.0",
		.health = "degraded",
		.stats = full_stats,
		.stats_count = sizeof(full_stats) / sizeof(full_stats[0]),
	};
	char *text = to_text(&p, skvcctl_print_stats);

	(void)state;
	for (size_t i = 0; i < sizeof(says) / sizeof(says[0]); i++)
		if (!strstr(text, says[i]))
			fail_msg("\"%s\" is not in:\n%s", says[i], text);
	assert_null(strstr(text, "quota 0")); /* reasons that never were are not listed */
	assert_fits(text, 24);
	free(text);
}

static void test_tables_fit(void **state)
{
	static struct skvcctl_session sessions[200];
	static struct skvcctl_tenant tenants[200];
	static struct skvcctl_stat reasons[SKVC_ABI_REASON_COUNT];
	struct skvcctl_picture p = {
		.version = "0.1.0",
		.health = "ok",
		.stats = reasons,
		.stats_count = SKVC_ABI_REASON_COUNT,
		.sessions = sessions,
		.sessions_count = 200,
		.tenants = tenants,
		.tenants_count = 200,
	};
	char *text;

	(void)state;
	for (unsigned i = 0; i < SKVC_ABI_REASON_COUNT; i++) {
		reasons[i] = (struct skvcctl_stat){ .kind = SKVCCTL_REASON, .value = 123456 };
		(void)snprintf(reasons[i].name, sizeof(reasons[i].name), "%s",
			       stats_reason_word((uint16_t)i));
	}
	for (unsigned i = 0; i < 200; i++) {
		sessions[i] = (struct skvcctl_session){ .id = i,
							.pid = 4194304,
							.tenant = "a-tenant-with-a-long-name",
							.name = "engine",
							.role = "scheduler",
							.ops = 1u << 31 };
		tenants[i] = (struct skvcctl_tenant){ .name = "a-tenant-with-a-long-name-indeed",
						      .charged_bytes = 1ull << 50,
						      .quota_bytes = 1ull << 51 };
	}
	text = to_text(&p, skvcctl_print_stats);
	assert_fits(text, 48);
	assert_non_null(strstr(text, "194 more: skvcctl sessions"));
	free(text);
	text = to_text(&p, skvcctl_print_sessions);
	assert_fits(text, 201);
	free(text);
	text = to_text(&p, skvcctl_print_tenants);
	assert_fits(text, 201);
	free(text);
}

static void test_formats(void **state)
{
	char buf[16];

	(void)state;
	assert_string_equal(skvcctl_format_bytes(0, buf), "0 B");
	assert_string_equal(skvcctl_format_bytes(999, buf), "999 B");
	assert_string_equal(skvcctl_format_bytes(1000, buf), "0.98 KiB");
	assert_string_equal(skvcctl_format_bytes(1536, buf), "1.50 KiB");
	assert_string_equal(skvcctl_format_bytes(100u << 20, buf), "100 MiB");
	assert_string_equal(skvcctl_format_bytes(UINT64_MAX, buf), "16.0 EiB");
	assert_string_equal(skvcctl_format_ns(0, buf), "0 ns");
	assert_string_equal(skvcctl_format_ns(1500, buf), "1.50 us");
	assert_string_equal(skvcctl_format_ns(UINT64_MAX, buf), "18446744074 s");
}

/* Every reason and counter has a meaning, and no advice is for a reason that there is not. */
static void test_explain(void **state)
{
	struct skvcctl_picture p = fetch(SKVCCTL_GET_STATS | SKVCCTL_GET_TEXTS);
	char *text = NULL;
	size_t bytes, advised = 0;
	FILE *out = open_memstream(&text, &bytes);

	(void)state;
	assert_int_equal(p.texts_count, STAT_COUNT + SKVC_ABI_REASON_COUNT - 1);
	for (size_t i = 0; i < p.texts_count; i++) {
		assert_true(p.texts[i].text[0] != '\0');
		assert_int_equal(skvcctl_explain(&p, p.texts[i].name, out), 0);
		advised += skvcctl_advice(p.texts[i].name) != NULL;
	}
	assert_int_equal(advised, SKVCCTL_ADVICES);
	assert_int_equal(skvcctl_explain(&p, "nothing", out), -ENOENT);
	assert_int_equal(skvcctl_explain(&p, NULL, out), 0);
	assert_int_equal(fclose(out), 0);
	assert_non_null(strstr(text, "-> raise [host] pool"));
	assert_non_null(strstr(text, "Nothing was ever refused."));
	free(text);
	skvcctl_picture_deinit(&p);
}

/* ---- nobody there, or somebody else ---- */

static void test_no_daemon(void **state)
{
	struct skvcctl_source nobody = { .path = "/nonexistent/bus" };
	struct skvcctl_picture p;

	(void)state;
	assert_int_equal(skvcctl_fetch(&nobody, SKVCCTL_GET_VERSION, &p, err, sizeof(err)),
			 SKVCCTL_NO_DAEMON);
	assert_non_null(strstr(err, "/nonexistent/bus"));
	assert_non_null(strstr(err, "start it"));
	nobody.path = "";
	assert_int_equal(skvcctl_fetch(&nobody, SKVCCTL_GET_VERSION, &p, err, sizeof(err)),
			 SKVCCTL_FAILURE);
}

static void test_the_clients_socket(void **state)
{
	struct skvcctl_source wrong = { .path = rig.config.socket };
	struct skvcctl_picture p;

	(void)state;
	assert_int_equal(skvcctl_fetch(&wrong, SKVCCTL_GET_VERSION, &p, err, sizeof(err)),
			 SKVCCTL_FAILURE);
	assert_non_null(strstr(err, "bus_socket"));
}

static int connect_bus(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", rig.config.bus_socket);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

/* Peers that talk nonsense, or nothing: bounded, and the bus goes on. */
static void test_bad_peers(void **state)
{
	int fds[24];
	struct skvcctl_picture p;
	char garbage[4096];

	(void)state;
	memset(garbage, 'A', sizeof(garbage));
	for (unsigned i = 0; i < 24; i++) {
		fds[i] = connect_bus();
		if (i % 2)
			(void)!send(fds[i], garbage, sizeof(garbage), MSG_NOSIGNAL);
	}
	for (unsigned i = 0; i < 24; i++)
		(void)close(fds[i]);
	for (unsigned tries = 0;
	     skvcctl_fetch(&source, SKVCCTL_GET_VERSION, &p, err, sizeof(err)) != SKVCCTL_OK;
	     tries++) {
		if (tries == 100)
			fail_msg("%s", err);
		(void)usleep(20000);
	}
	skvcctl_picture_deinit(&p);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_ping),
		TEST(test_every_counter_arrives),
		TEST(test_rows),
		TEST(test_json_keys),
		cmocka_unit_test(test_json_keeps_large_numbers),
		cmocka_unit_test(test_table_says_what_matters),
		cmocka_unit_test(test_tables_fit),
		cmocka_unit_test(test_formats),
		cmocka_unit_test(test_part_for_a_model),
		TEST(test_explain),
		cmocka_unit_test(test_no_daemon),
		TEST(test_the_clients_socket),
		TEST(test_bad_peers),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
