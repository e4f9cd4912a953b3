/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_control_shares.c - what one user can take of what all users share: sessions and namespaces.  Clients connect as
 * other users for a moment, which only root can; others see their own share end.
 */
#include "tests/lib/control_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/raw_client.h"

#define WAIT_MS 10000

static struct control_rig rig;

static int setup(void **state)
{
	static const char *const few[] = { "daemon.sessions_max=4",   "daemon.namespaces_max=4",
					   "daemon.socket_mode=0666", "host.arena_session=3M",
					   "host.arena_total=8M",     NULL };

	(void)state;
	control_rig_start(&rig, few);
	assert_int_equal(chmod(rig.dir, 0711), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_true(control_rig_wait_sessions(&rig, 0, WAIT_MS) >= 0);
	assert_int_equal(control_rig_stop(&rig), 0);
	return 0;
}

static void open_client(struct raw_client *c)
{
	int r = raw_client_open(c, rig.config.socket, 8);

	if (r < 0)
		fail_msg("no session: %s", strerror(-r));
}

static void close_client(struct raw_client *c, uint64_t left)
{
	raw_client_close(c);
	assert_true(control_rig_wait_sessions(&rig, left, WAIT_MS) >= 0);
}

static void assert_refused(const struct raw_client *c, uint16_t reason, const char *key)
{
	assert_int_equal(c->answer.h.type, CTL_ERROR);
	assert_int_equal(c->answer.error.res, -EUSERS);
	assert_int_equal(c->answer.error.reason, reason);
	assert_non_null(strstr((const char *)c->answer.error.text, key));
}

static int ask_ns(struct raw_client *c, const char *model)
{
	union {
		struct ctl_ns_open m;
		uint8_t bytes[sizeof(struct ctl_ns_open) + sizeof(struct skvc_abi_segment)];
	} o = { .m = { .block_tokens = 16, .segments_count = 1 } };

	o.m.segments[0] = (struct skvc_abi_segment){ 1, 1, 0, 2, 64 };
	(void)snprintf((char *)o.m.model, sizeof(o.m.model), "%s", model);
	return raw_client_request(c, &o, CTL_NS_OPEN, sizeof(o));
}

/* Of this thread alone, as the kernel has it: the daemon's go on as they are. */
static void become(uid_t uid)
{
	const uid_t root = 0;

	if (geteuid() != uid &&
	    (syscall(SYS_setresuid, -1, root, -1) != 0 || syscall(SYS_setresuid, -1, uid, -1) != 0))
		fail_msg("user %u: %s", (unsigned)uid, strerror(errno));
}

static void test_one_user_leaves_sessions_to_others(void **state)
{
	const uid_t root = geteuid(), greedy = root ? root : 70001;
	struct raw_client c[2], refused, other;

	(void)state;
	become(greedy);
	open_client(&c[0]);
	open_client(&c[1]);
	assert_true(raw_client_open(&refused, rig.config.socket, 8) < 0);
	assert_refused(&refused, SKVC_ABI_REASON_USER_SESSIONS, "[limits] sessions_per_user");
	raw_client_close(&refused);
	/* A place that came free is his again. */
	close_client(&c[1], 1);
	open_client(&c[1]);
	if (!root) { /* else there is no other user to be had */
		become(70002);
		open_client(&other);
		close_client(&other, 2);
		become(0);
		open_client(&other); /* root may have them all, but no more than there are */
		open_client(&refused);
		raw_client_close(&refused);
		raw_client_close(&other);
	}
	raw_client_close(&c[0]);
	raw_client_close(&c[1]);
}

static void test_one_tenant_leaves_namespaces_to_others(void **state)
{
	const uid_t root = geteuid(), greedy = root ? root : 70001;
	struct raw_client c;

	(void)state;
	become(greedy);
	open_client(&c);
	assert_int_equal(ask_ns(&c, "a"), CTL_NS);
	assert_int_equal(ask_ns(&c, "b"), CTL_NS);
	assert_int_equal(ask_ns(&c, "c"), CTL_ERROR);
	assert_refused(&c, SKVC_ABI_REASON_TENANT_NAMESPACES, "[limits] namespaces_per_tenant");
	assert_int_equal(ask_ns(&c, "a"), CTL_NS); /* what is there is no new one */
	raw_client_close(&c);
	become(root);
	if (root)
		return;
	open_client(&c);
	assert_int_equal(ask_ns(&c, "c"), CTL_NS);
	assert_int_equal(ask_ns(&c, "d"), CTL_NS);
	assert_int_equal(ask_ns(&c, "e"), CTL_ERROR);
	assert_refused(&c, SKVC_ABI_REASON_NAMESPACES_FULL, "[daemon] namespaces_max");
	raw_client_close(&c);
}

static int ask_arena(struct raw_client *c, uint64_t bytes)
{
	struct ctl_arena_new m = { .bytes = bytes };

	return raw_client_request(c, &m, CTL_ARENA_NEW, sizeof(m));
}

static void test_one_user_leaves_arenas_to_others(void **state)
{
	const uid_t root = geteuid(), greedy = root ? root : 70001;
	struct raw_client c[2], other;

	(void)state;
	become(greedy);
	open_client(&c[0]);
	open_client(&c[1]);
	assert_int_equal(ask_arena(&c[0], 3 << 20), CTL_ARENA);
	assert_int_equal(ask_arena(&c[1], 2 << 20), CTL_ERROR);
	assert_int_equal(c[1].answer.error.res, -EDQUOT);
	assert_int_equal(c[1].answer.error.reason, SKVC_ABI_REASON_MEMORY_LIMIT);
	assert_non_null(strstr((const char *)c[1].answer.error.text, "[limits] arenas_per_user"));
	assert_int_equal(ask_arena(&c[1], 1 << 20), CTL_ARENA);
	if (!root) { /* else there is no other user to be had */
		become(70002);
		open_client(&other);
		assert_int_equal(ask_arena(&other, 3 << 20), CTL_ARENA);
		become(0);
		raw_client_close(&c[0]);
		assert_true(control_rig_wait_sessions(&rig, 2, WAIT_MS) >= 0);
		open_client(&c[0]);
		assert_int_equal(ask_arena(&c[0], 3 << 20), CTL_ARENA);
		raw_client_close(&other);
	}
	raw_client_close(&c[0]);
	raw_client_close(&c[1]);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_one_user_leaves_sessions_to_others),
		TEST(test_one_user_leaves_arenas_to_others),
		TEST(test_one_tenant_leaves_namespaces_to_others),
	};

	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("control_shares", tests, NULL, NULL);
}
