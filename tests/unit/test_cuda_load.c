/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cuda_load.c - finding the shared object with the CUDA device: what is missing, what is none, and
 * with small ones that this program compiles (where there is a compiler) what comes of a real one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/device.h"

static char folder[] = "/tmp/skvcd-cuda-load-XXXXXX";

static int load(const char *name, char *err)
{
	struct gpu_device_options o = { .which = "auto", .tasks_max = 7 };
	struct device *d = NULL;
	char path[128];
	int r;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	memset(err, 0, DEVICE_ERR_BYTES);
	r = cuda_load_device(path, &o, &d, err);
	if (r < 0) {
		assert_null(d);
		assert_true(strlen(err) > 0 && !strchr(err, '\n'));
	} else {
		assert_non_null(d);
		assert_int_equal(d->tasks_max, 7);
	}
	return r;
}

static void file_write(const char *name, const char *text)
{
	char path[128];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "w");
	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

/* NAME.c -> NAME.so.  0 when there is no compiler. */
static int compile(const char *name, const char *text, const char *flags)
{
	char source[64], command[512];

	if (system("cc --version >/dev/null 2>&1") != 0)
		return 0;
	(void)snprintf(source, sizeof(source), "%s.c", name);
	file_write(source, text);
	(void)snprintf(command, sizeof(command), "cd %s && cc -shared -fPIC -o %s.so %s.c %s",
		       folder, name, name, flags);
	assert_int_equal(system(command), 0);
	return 1;
}

static void test_missing(void **state)
{
	struct gpu_device_options o = { .which = "auto", .tasks_max = 1 };
	struct device *d = NULL;
	char err[DEVICE_ERR_BYTES];

	(void)state;
	assert_int_equal(load("none.so", err), -ENOENT);
	assert_non_null(strstr(err, "none.so"));
	assert_int_equal(load("none/none.so", err), -ENOENT);
	file_write("file", "");
	assert_int_equal(load("file/none.so", err), -ENOENT);
	assert_int_equal(cuda_load_device("libc.so.6", &o, &d, err), -EINVAL);
	assert_non_null(strstr(err, "libc.so.6"));
	assert_null(d);
}

static void test_not_a_library(void **state)
{
	char err[DEVICE_ERR_BYTES];

	(void)state;
	file_write("text.so", "this is no library\n");
	assert_int_equal(load("text.so", err), -ELIBBAD);
	assert_non_null(strstr(err, "text.so"));
	file_write("empty.so", "");
	assert_int_equal(load("empty.so", err), -ELIBBAD);
	assert_int_equal(load(".", err), -ELIBBAD);
}

static void test_another_library(void **state)
{
	char err[DEVICE_ERR_BYTES];

	(void)state;
	if (!compile("other", "int other(void) { return 3; }\n", ""))
		skip();
	assert_int_equal(load("other.so", err), -ELIBBAD);
	assert_non_null(strstr(err, CUDA_DEVICE_SYMBOL));
}

/* The offsets are those of struct device and of its options; the object needs no header of ours. */
static const char good_text[] =
	"#include <string.h>\n"
	"struct o { const char *which; unsigned tasks_max; };\n"
	"struct d { const void *ops, *import, *facts; unsigned tasks_max; };\n"
	"static struct d device;\n"
	"int " CUDA_DEVICE_SYMBOL "(const struct o *o, struct d **ret, char *err)\n"
	"{\n"
	"	if (RES < 0) {\n"
	"		strcpy(err, \"the driver says no\");\n"
	"		return RES;\n"
	"	}\n"
	"	device.tasks_max = o->tasks_max;\n"
	"	*ret = &device;\n"
	"	return 0;\n"
	"}\n";

static void test_good(void **state)
{
	char err[DEVICE_ERR_BYTES];

	(void)state;
	if (!compile("good", good_text, "-DRES=0"))
		skip();
	assert_int_equal(load("good.so", err), 0);
	assert_int_equal(load("good.so", err), 0);
}

static void test_constructor_refuses(void **state)
{
	char err[DEVICE_ERR_BYTES];

	(void)state;
	if (!compile("bad", good_text, "-DRES=-12"))
		skip();
	assert_int_equal(load("bad.so", err), -12);
	assert_string_equal(err, "the driver says no");
}

/* Linked with the driver's library, which is not there: as on a machine without a GPU. */
static void test_no_driver(void **state)
{
	char err[DEVICE_ERR_BYTES];

	(void)state;
	if (!compile("driver", "int cuInit(void) { return 0; }\n",
		     "-Wl,-soname,libcuda.so.no-such-driver") ||
	    !compile("needs", "int cuInit(void);\nint needs(void) { return cuInit(); }\n",
		     "driver.so"))
		skip();
	assert_int_equal(load("needs.so", err), -ENOENT);
	assert_non_null(strstr(err, "libcuda.so"));
}

static int folder_make(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state)
{
	char command[128];

	(void)state;
	(void)snprintf(command, sizeof(command), "rm -r %s", folder);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_missing),
		cmocka_unit_test(test_not_a_library),
		cmocka_unit_test(test_another_library),
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_constructor_refuses),
		cmocka_unit_test(test_no_driver),
	};

	return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
