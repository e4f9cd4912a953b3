/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_registry.c - who is whose tenant, what makes two namespaces one, and how the secret is kept.
 */
#include "daemon/registry.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static struct config config;
static const uint8_t secret[SECRET_BYTES] = { 1, 2, 3 };

static struct registry *make(const uint8_t *with)
{
	struct registry *r = NULL;

	assert_int_equal(registry_new(&config, with, &r), 0);
	return r;
}

static struct tenant *tenant_of(struct registry *r, uid_t uid)
{
	struct tenant *t = NULL;

	assert_int_equal(registry_tenant(r, uid, &t), 0);
	return t;
}

static int setup(void **state)
{
	char err[256];

	(void)state;
	config_default(&config);
	return config_set(&config, "tenant team.uid=1000-1009", err, sizeof(err)) ||
	       config_set(&config, "tenant team.quota=7G", err, sizeof(err)) ||
	       config_set(&config, "limits.quota=3G", err, sizeof(err)) ||
	       config_set(&config, "daemon.namespaces_max=6", err, sizeof(err)) ||
	       config_set(&config, "limits.namespaces_per_tenant=6", err, sizeof(err));
}

static void test_tenants(void **state)
{
	struct registry *r = make(secret);
	struct tenant *team, *alone;

	(void)state;
	team = tenant_of(r, 1000);
	assert_ptr_equal(tenant_of(r, 1009), team);
	assert_string_equal(team->name, "team");
	assert_int_equal(team->quota_bytes, 7ull << 30);
	alone = tenant_of(r, 1010);
	assert_ptr_not_equal(alone, team);
	assert_string_equal(alone->name, "uid-1010");
	assert_int_equal(alone->quota_bytes, 3ull << 30);
	assert_ptr_equal(tenant_of(r, 1010), alone);
	assert_ptr_not_equal(tenant_of(r, 999), alone);
	assert_string_equal(tenant_of(r, 4294967294u)->name, "uid-4294967294");
	assert_memory_not_equal(team->salt, alone->salt, sizeof(team->salt));
	assert_int_equal(r->tenants_count, 4);
	for (uint32_t i = 0; i < r->tenants_count; i++)
		assert_int_equal(r->tenants[i]->id, i);
	registry_free(r);
}

static void test_tenants_are_bounded(void **state)
{
	struct registry *r = make(secret);
	struct tenant *t;

	(void)state;
	for (uid_t uid = 5000; uid < 5000 + REGISTRY_TENANTS_MAX; uid++)
		(void)tenant_of(r, uid);
	assert_int_equal(registry_tenant(r, 1, &t), -EUSERS);
	assert_non_null(tenant_of(r, 5000));
	registry_free(r);
}

static void test_salts_come_from_the_secret(void **state)
{
	uint8_t other_secret[SECRET_BYTES] = { 1, 2, 4 };
	struct registry *a = make(secret), *b = make(secret), *c = make(other_secret);

	(void)state;
	assert_memory_equal(tenant_of(a, 5)->salt, tenant_of(b, 5)->salt, 32);
	assert_memory_not_equal(tenant_of(a, 5)->salt, tenant_of(c, 5)->salt, 32);
	registry_free(a);
	registry_free(b);
	registry_free(c);
}

static struct namespace *open_ns(struct registry *r, uid_t uid, const char *model, const char *salt,
				 uint32_t tokens, int *ret)
{
	struct codec_segment segment = {
		.kind = CODEC_KIND_K, .dtype = CODEC_DTYPE_BF16, .heads = 2, .head_dim = 64
	};
	struct registry_ns_key key = { .tenant = tenant_of(r, uid),
				       .model = model,
				       .salt = salt,
				       .salt_bytes = strlen(salt) };
	struct codec_geometry geom = { 0 };
	struct namespace *ns = NULL;

	assert_int_equal(codec_geometry_init(&geom, tokens, &segment, 1), 0);
	*ret = registry_namespace(r, &key, &geom, &ns);
	codec_geometry_deinit(&geom);
	return ns;
}

static void test_namespaces(void **state)
{
	struct registry *r = make(secret);
	struct namespace *all[6];
	int res;

	(void)state;
	all[0] = open_ns(r, 1, "model", "", 16, &res);
	assert_int_equal(res, 0);
	assert_ptr_equal(open_ns(r, 1, "model", "", 16, &res), all[0]);
	/* Whatever differs, it is another one: user, model, salt, geometry, and where one part ends. */
	all[1] = open_ns(r, 2, "model", "", 16, &res);
	all[2] = open_ns(r, 1, "model2", "", 16, &res);
	all[3] = open_ns(r, 1, "model", "2", 16, &res);
	all[4] = open_ns(r, 1, "model", "", 32, &res);
	all[5] = open_ns(r, 1, "mode", "l", 16, &res);
	assert_int_equal(res, 0);
	for (unsigned i = 0; i < 6; i++) {
		assert_int_equal(all[i]->id, i);
		for (unsigned k = 0; k < i; k++)
			assert_memory_not_equal(all[i]->digest, all[k]->digest, 32);
	}
	assert_int_equal(all[0]->geom.raw_bytes, 16 * 2 * 64 * 2);
	assert_string_equal(all[5]->model, "mode");
	/* Two users of one tenant share. */
	assert_null(open_ns(r, 1000, "model", "", 16, &res));
	assert_int_equal(res, -EUSERS);
	assert_ptr_equal(open_ns(r, 1, "mode", "l", 16, &res), all[5]);
	registry_free(r);
	r = make(secret);
	all[0] = open_ns(r, 1000, "model", "", 16, &res);
	assert_ptr_equal(open_ns(r, 1001, "model", "", 16, &res), all[0]);
	registry_free(r);
}

/* ---- the secret's file ---- */

static char dir[64], err[512];

static int dir_setup(void **state)
{
	(void)state;
	(void)snprintf(dir, sizeof(dir), "/tmp/skvcd-secret-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static void path_of(const char *name, char ret[128])
{
	(void)snprintf(ret, 128, "%s/%s", dir, name);
}

static int dir_teardown(void **state)
{
	static const char *const names[] = { "state/secret", "secret", "target" };
	char path[128];

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		path_of(names[i], path);
		(void)unlink(path);
	}
	path_of("state", path);
	(void)rmdir(path);
	return rmdir(dir);
}

static void test_secret_is_made_once(void **state)
{
	uint8_t a[SECRET_BYTES] = { 0 }, b[SECRET_BYTES] = { 0 };
	char state_dir[128], path[128];
	struct stat st;

	(void)state;
	path_of("state", state_dir);
	assert_int_equal(secret_load(state_dir, a, err, sizeof(err)), 0);
	assert_int_equal(secret_load(state_dir, b, err, sizeof(err)), 0);
	assert_memory_equal(a, b, sizeof(a));
	memset(b, 0, sizeof(b));
	assert_memory_not_equal(a, b, sizeof(a));
	assert_int_equal(stat(state_dir, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	path_of("state/secret", path);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(st.st_size, SECRET_BYTES);
	assert_int_equal(st.st_nlink, 1);
}

static void test_bad_secrets(void **state)
{
	uint8_t out[SECRET_BYTES];
	char path[128], target[128];
	int fd;

	(void)state;
	path_of("secret", path);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "short", 5), 5);
	assert_int_equal(secret_load(dir, out, err, sizeof(err)), -EBADMSG);
	assert_non_null(strstr(err, "not 32 bytes"));
	assert_int_equal(ftruncate(fd, 33), 0);
	assert_int_equal(secret_load(dir, out, err, sizeof(err)), -EBADMSG);
	assert_int_equal(ftruncate(fd, 32), 0);
	assert_int_equal(fchmod(fd, 0640), 0);
	assert_int_equal(secret_load(dir, out, err, sizeof(err)), -EPERM);
	assert_non_null(strstr(err, "chmod"));
	(void)close(fd);
	/* A link is not followed, wherever it leads. */
	path_of("target", target);
	assert_int_equal(rename(path, target), 0);
	assert_int_equal(chmod(target, 0600), 0);
	assert_int_equal(symlink(target, path), 0);
	assert_true(secret_load(dir, out, err, sizeof(err)) < 0);
	(void)unlink(path);
	assert_int_equal(chmod(dir, 0777), 0);
	assert_int_equal(secret_load(dir, out, err, sizeof(err)), -EPERM);
	assert_non_null(strstr(err, "others may write"));
	assert_int_equal(secret_load("/nonexistent/state", out, err, sizeof(err)), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_tenants, setup),
		cmocka_unit_test_setup(test_tenants_are_bounded, setup),
		cmocka_unit_test_setup(test_salts_come_from_the_secret, setup),
		cmocka_unit_test_setup(test_namespaces, setup),
		cmocka_unit_test_setup_teardown(test_secret_is_made_once, dir_setup, dir_teardown),
		cmocka_unit_test_setup_teardown(test_bad_secrets, dir_setup, dir_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
