/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_reload.c - of two configurations, what may change goes over and the rest is named; nothing else moves.
 */
#include "daemon/reload.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static struct config now, next;
static struct reload result;

static void set(struct config *c, const char *assignment)
{
	char err[512] = "";

	if (config_set(c, assignment, err, sizeof(err)))
		fail_msg("%s", err);
}

static int setup(void **state)
{
	(void)state;
	config_default(&now);
	set(&now, "tenant a.uid=1000-1009");
	set(&now, "tenant a.quota=1G");
	set(&now, "tenant b.uid=2000");
	next = now;
	return 0;
}

static void test_nothing(void **state)
{
	struct config before = now;

	(void)state;
	reload_take(&now, &next, &result);
	assert_int_equal(result.changed + result.waiting, 0);
	assert_string_equal(result.text, "");
	assert_memory_equal(&now, &before, sizeof(now));
}

static void test_keys(void **state)
{
	struct config want = now;

	(void)state;
	set(&next, "host.full_percent=95");
	set(&next, "limits.store_wait=5s");
	set(&next, "limits.quota=7G");
	set(&next, "daemon.log=debug");
	set(&next, "host.pool=4G");
	set(&next, "nvme.path=/tmp/x");
	set(&next, "codec.fit_tokens=16, 32");
	reload_take(&now, &next, &result);
	assert_int_equal(result.changed, 4);
	assert_int_equal(result.waiting, 3);
	assert_string_equal(result.text, "[daemon] log = debug\n"
					 "[host] pool = 4G: needs a restart\n"
					 "[host] full_percent = 95\n"
					 "[nvme] path = /tmp/x: needs a restart\n"
					 "[codec] fit_tokens = 16, 32: needs a restart\n"
					 "[limits] store_wait = 5s\n"
					 "[limits] quota = 7G\n");
	config_copy_live(&want, &next);
	assert_memory_equal(&now, &want, sizeof(now));
	assert_int_equal(now.full_percent, 95);
	assert_int_equal(now.pool_bytes, 1 << 30);
	/* What waits is named each time, what has changed once. */
	reload_take(&now, &next, &result);
	assert_int_equal(result.changed, 0);
	assert_int_equal(result.waiting, 3);
}

static void test_tenants(void **state)
{
	(void)state;
	set(&next, "tenant a.quota=2G");
	set(&next, "tenant c.uid=3000");
	next.tenants[1] = next.tenants[2]; /* b is gone */
	next.tenants_count = 2;
	reload_take(&now, &next, &result);
	assert_int_equal(result.changed, 1);
	assert_int_equal(result.waiting, 2);
	assert_string_equal(result.text, "[tenant a] quota = 2048M\n"
					 "[tenant c] uid: needs a restart\n"
					 "[tenant b] is gone: needs a restart\n");
	assert_int_equal(now.tenants_count, 2);
	assert_int_equal(now.tenants[0].quota_bytes, 2ull << 30);
	assert_string_equal(now.tenants[1].name, "b");
	set(&next, "tenant a.uid=1000-1010");
	set(&next, "tenant a.quota=3G");
	reload_take(&now, &next, &result);
	assert_int_equal(now.tenants[0].quota_bytes, 2ull << 30);
	assert_int_equal(now.tenants[0].uid_last, 1009);
}

/* More lines than fit: cut, and still text. */
static void test_long(void **state)
{
	char name[64];

	(void)state;
	for (unsigned i = 0; i < CONFIG_TENANTS_MAX - 2; i++) {
		(void)snprintf(name, sizeof(name), "tenant a-rather-long-name-of-it-%u.uid=%u", i,
			       5000 + i);
		set(&next, name);
	}
	reload_take(&now, &next, &result);
	assert_int_equal(result.waiting, CONFIG_TENANTS_MAX - 2);
	assert_true(strlen(result.text) < sizeof(result.text));
}

static int tell(void *user)
{
	assert_int_equal(now.full_percent, 95); /* as the lane would be told it */
	return *(const int *)user;
}

/* "The old one stays" when nobody can be told of the new one, for those, too, who read it where it lies. */
static void test_nobody_to_tell(void **state)
{
	const struct config before = now;
	int answer = -EAGAIN;

	(void)state;
	set(&next, "host.full_percent=95");
	set(&next, "tenant a.quota=2G");
	assert_int_equal(reload_try(&now, &next, tell, &answer, &result), -EAGAIN);
	assert_memory_equal(&now, &before, sizeof(now));
	answer = 0;
	assert_int_equal(reload_try(&now, &next, tell, &answer, &result), 0);
	assert_int_equal(result.changed, 2);
	assert_int_equal(now.tenants[0].quota_bytes, 2ull << 30);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_nothing, setup),
		cmocka_unit_test_setup(test_keys, setup),
		cmocka_unit_test_setup(test_tenants, setup),
		cmocka_unit_test_setup(test_long, setup),
		cmocka_unit_test_setup(test_nobody_to_tell, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
