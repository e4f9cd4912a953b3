/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_doctor.c - machines that are not there: each thing that can be wrong is said, and so is what to type;
 * and this machine, which is looked at for real.
 */
#include "tools/skvcctl_doctor.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

static struct doctor_facts good(void)
{
	return (struct doctor_facts){
		.config = { .file = "/etc/skvcd/skvcd.conf",
			    .pool_bytes = 64ull << 30,
			    .nvme_bytes = 500ull << 30,
			    .numa_node = 0,
			    .lock_memory = true,
			    .nvme_path = "/var/lib/skvcd/spill",
			    .gpu_device = "auto",
			    .socket = "/run/skvcd/skvcd.sock",
			    .bus_socket = "/run/skvcd/bus",
			    .state_dir = "/var/lib/skvcd" },
		.user = "ann",
		.daemon_pid = 42,
		.health = "ok",
		.version = "0.1.0",
		.kernel = "6.8.0",
		.kernel_major = 6,
		.kernel_minor = 8,
		.memlock_bytes = UINT64_MAX,
		.memlock_of_daemon = true,
		.service = true,
		.store_fds = 2,
		.memory_bytes = 256ull << 30,
		.available_bytes = 128ull << 30,
		.huge_pages = "always [madvise] never",
		.shared_huge_pages = "always within_size [advise] never deny force",
		.nodes = 2,
		.node_exists = true,
		.nvme_dir = "/var/lib/skvcd",
		.nvme_free_bytes = 900ull << 30,
		.driver = "NVRM version: 570",
		.gpus = 8,
		.gpu_library = true,
		.mps = DOCTOR_MPS_SHARED,
		.mps_dir = "/run/nvidia-mps",
		.socket_group = "skvcd",
		.socket_mode = 0660,
		.same_ipc = 1,
		.same_pid = 1,
		.state_dir_mode = 0700,
	};
}

static void test_good(void **state)
{
	struct doctor_facts f = good();
	struct doctor_report r;

	(void)state;
	doctor_judge(&f, &r);
	for (unsigned i = 0; i < r.count; i++)
		if (r.line[i].state != DOCTOR_OK || r.line[i].fix[0])
			fail_msg("%s: %s", r.line[i].check, r.line[i].says);
	assert_int_equal(doctor_worst(&r), DOCTOR_OK);
	assert_true(r.count >= 14);
}

/* Just this line is worse than ok, so bad, and says how to mend it in these words. */
static void expect(const struct doctor_facts *f, enum doctor_state state, const char *check,
		   const char *fix)
{
	struct doctor_report r;
	unsigned found = 0;

	doctor_judge(f, &r);
	for (unsigned i = 0; i < r.count; i++) {
		const struct doctor_line *l = &r.line[i];

		if (l->state == DOCTOR_OK)
			continue;
		if (strcmp(l->check, check) != 0 || l->state != state)
			fail_msg("%s is %d: %s", l->check, (int)l->state, l->says);
		if (!strstr(l->fix, fix))
			fail_msg("%s: \"%s\" is not in \"%s\"", check, fix, l->fix);
		assert_true(l->says[0] != '\0');
		found++;
	}
	assert_int_equal(found, 1);
	assert_int_equal(doctor_worst(&r), state);
}

#define EXPECT(change, state, check, fix)                   \
	do {                                                \
		struct doctor_facts f = good();             \
                                                            \
		change;                                     \
		expect(&f, DOCTOR_##state, (check), (fix)); \
	} while (0)

static void test_daemon(void **state)
{
	(void)state;
	EXPECT(strcpy(f.config.wrong, "skvcd.conf:3: [host] pol: unknown key"), FAILURE,
	       "configuration", "skvcd --check-config");
	EXPECT(strcpy(f.health, "degraded"), WARNING, "daemon", "journalctl -u skvcd");
	EXPECT((f.bus = SKVCCTL_NO_DAEMON, f.daemon_pid = 0), WARNING, "daemon",
	       "systemctl enable --now skvcd");
	EXPECT((f.bus = SKVCCTL_FAILURE, strcpy(f.bus_error, "not permitted")), FAILURE, "daemon",
	       "sudo skvcctl doctor");
}

static void test_kernel(void **state)
{
	(void)state;
	EXPECT((f.kernel_major = 5, f.kernel_minor = 10), FAILURE, "kernel", "6.1 or newer");
	EXPECT((f.kernel_major = 5, f.kernel_minor = 15), NOTE, "kernel", "6.5");
	EXPECT((f.uring_error = EPERM, f.uring_disabled = 2), FAILURE, "io_uring",
	       "sysctl -w kernel.io_uring_disabled=0");
	EXPECT((f.uring_error = EPERM, f.uring_disabled = 0), FAILURE, "io_uring", "seccomp");
	EXPECT((f.uring_error = ENOSYS, f.uring_disabled = -1), FAILURE, "io_uring", "seccomp");
	EXPECT((f.uring_error = ENOMEM), FAILURE, "io_uring", "LimitMEMLOCK=infinity");
}

/* The pool is no shared memory then. */
static void no_persist_wants_no_shared_pages(void)
{
	struct doctor_facts f = good();
	struct doctor_report r;
	unsigned found = 0;

	(void)strcpy(f.shared_huge_pages, "always [never]");
	f.config.no_persist = true;
	doctor_judge(&f, &r);
	for (unsigned i = 0; i < r.count; i++)
		found += !strcmp(r.line[i].check, "huge pages") && r.line[i].state == DOCTOR_OK;
	assert_int_equal(found, 1);
}

static void test_memory(void **state)
{
	(void)state;
	EXPECT(f.memlock_bytes = 8 << 20, FAILURE, "memlock", "LimitMEMLOCK=infinity");
	EXPECT((f.memlock_bytes = 8 << 20, f.memlock_of_daemon = false), NOTE, "memlock",
	       "systemctl show skvcd -p LimitMEMLOCK");
	EXPECT(f.memlock_bytes = 100ull << 30, WARNING, "memlock", "LimitMEMLOCK=infinity");
	EXPECT(f.available_bytes = 32ull << 30, FAILURE, "memory", "[host] pool = 16384M");
	EXPECT(strcpy(f.huge_pages, "always madvise [never]"), WARNING, "huge pages",
	       "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
	EXPECT(strcpy(f.shared_huge_pages, "always within_size advise [never] deny force"), NOTE,
	       "huge pages", "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
	no_persist_wants_no_shared_pages();
	EXPECT(f.huge_pages[0] = '\0', NOTE, "huge pages", "CONFIG_TRANSPARENT_HUGEPAGE");
	EXPECT((f.config.numa_node = 7, f.node_exists = false), FAILURE, "NUMA",
	       "numactl --hardware");
	EXPECT((f.config.numa_node = -1, f.driver[0] = '\0', f.gpus = 0), NOTE, "NUMA",
	       "[host] numa_node");
}

static void test_memory_that_will_do(void **state)
{
	struct doctor_facts f = good();
	struct doctor_report r;

	(void)state;
	/* No limit holds for whoever has the capability, and a pool that is there already counts. */
	f.memlock_bytes = 8 << 20;
	f.memlock_privileged = true;
	f.available_bytes = 10ull << 30;
	f.locked_bytes = 60ull << 30;
	f.config.numa_node = -1; /* the GPU's */
	doctor_judge(&f, &r);
	assert_int_equal(doctor_worst(&r), DOCTOR_OK);
	f.memlock_privileged = false;
	f.config.lock_memory = false;
	doctor_judge(&f, &r);
	assert_int_equal(doctor_worst(&r), DOCTOR_OK);
}

static void test_nvme(void **state)
{
	(void)state;
	EXPECT(f.nvme_dir_error = ENOENT, FAILURE, "NVMe",
	       "install -d -o skvcd -g skvcd -m 700 /var/lib/skvcd");
	EXPECT(f.nvme_dir_error = EACCES, FAILURE, "NVMe", "sudo skvcctl doctor");
	EXPECT(f.nvme_direct_error = EINVAL, FAILURE, "O_DIRECT", "ext4 or xfs");
	EXPECT(f.nvme_free_bytes = 100ull << 30, FAILURE, "NVMe", "[nvme] size = 96000M");
}

static void test_gpu(void **state)
{
	(void)state;
	EXPECT(f.gpu_node_error = EACCES, FAILURE, "GPU", "nvidia-modprobe -u -c 0");
	EXPECT((f.gpus = -1, strcpy(f.cuda_error, "cuInit: error 999")), FAILURE, "GPU",
	       "nvidia-smi");
	EXPECT(f.gpu_library = false, FAILURE, "GPU", "skvcd-cuda");
	EXPECT((f.driver[0] = '\0', strcpy(f.config.gpu_device, "0")), FAILURE, "GPU",
	       "modprobe nvidia");
	EXPECT(f.mps = DOCTOR_MPS_NONE, NOTE, "MPS", "nvidia-cuda-mps-control -d");
	EXPECT((f.mps = DOCTOR_MPS_PRIVATE, strcpy(f.mps_dir, "/tmp/nvidia-mps")), WARNING, "MPS",
	       "CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps");
}

static void test_clients(void **state)
{
	(void)state;
	EXPECT(f.socket_error = EACCES, FAILURE, "socket", "usermod -aG skvcd ann");
	EXPECT((f.socket_error = EACCES, strcpy(f.socket_group, "root")), FAILURE, "socket",
	       "Group=skvcd"); /* nobody is told to join root */
	EXPECT(f.bus_socket_error = EACCES, FAILURE, "bus socket", "usermod -aG skvcd ann");
	EXPECT(f.socket_error = ENOENT, FAILURE, "socket", "systemctl restart");
	EXPECT(f.same_ipc = 0, WARNING, "IPC", "--ipc=host");
	EXPECT(f.same_pid = 0, NOTE, "IPC", "--pid=host");
	EXPECT(f.state_dir_mode = 0777, FAILURE, "state", "chmod 700 /var/lib/skvcd");
	EXPECT(f.state_dir_error = ENOENT, NOTE, "state", "install -d");
}

static void test_restart(void **state)
{
	(void)state;
	EXPECT(f.store_fds = 0, WARNING, "restart", "FileDescriptorStoreMax=2");
	EXPECT(f.config.no_persist = true, NOTE, "restart", "persist = yes");
	EXPECT(f.service = false, NOTE, "restart", "kill -USR2 42");
}

/* ---- this machine ---- */

static void test_look(void **state)
{
	static const struct skvcctl_source source = { .path = "/nonexistent/bus" };
	char path[] = "/tmp/skvcd-doctor-XXXXXX", text[] = "[daemon]\nsocket = /nonexistent/sock\n"
							   "[host]\npool=32M ; small\n"
							   "numa_node = -1\nlock_memory = no\n"
							   "[nvme]\n  path = /tmp/x\nsize = 1 G\n";
	struct doctor_report r;
	struct doctor_facts f;
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	(void)close(fd);
	doctor_look(&source, path, &f);
	(void)unlink(path);
	assert_int_equal(f.config.pool_bytes, 32 << 20);
	assert_int_equal(f.config.nvme_bytes, 1 << 30);
	assert_int_equal(f.config.numa_node, -1);
	assert_false(f.config.lock_memory);
	assert_string_equal(f.config.nvme_path, "/tmp/x");
	assert_string_equal(f.nvme_dir, "/tmp");
	assert_string_equal(f.config.bus_socket, "/nonexistent/bus");
	assert_int_equal(f.bus, SKVCCTL_NO_DAEMON);
	assert_int_equal(f.daemon_pid, 0);
	assert_true(f.kernel_major >= 4 && f.memory_bytes > 0 && f.available_bytes > 0);
	assert_true(f.nodes >= 1 && f.node_exists == false);
	assert_true(f.nvme_free_bytes > 0 && f.user[0]);
	doctor_judge(&f, &r);
	for (unsigned i = 0; i < r.count; i++)
		assert_true(r.line[i].state == DOCTOR_OK || r.line[i].fix[0]);
}

static void test_print(void **state)
{
	struct doctor_facts f = good();
	struct doctor_report r;
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);
	cJSON *root;

	(void)state;
	f.memlock_bytes = 8 << 20;
	doctor_judge(&f, &r);
	doctor_print(&r, false, out);
	(void)fclose(out);
	assert_non_null(strstr(text, "FAILED   memlock"));
	assert_non_null(strstr(text, "-> systemctl edit skvcd"));
	assert_non_null(strstr(text, "1 failed, 0 warnings, 0 notes"));
	assert_null(strchr(text, '\033'));
	free(text);
	out = open_memstream(&text, &bytes);
	assert_int_equal(doctor_print_json(&r, out), 0);
	(void)fclose(out);
	root = cJSON_Parse(text);
	assert_non_null(root);
	assert_string_equal(cJSON_GetObjectItem(root, "worst")->valuestring, "failed");
	assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(root, "checks")), r.count);
	cJSON_Delete(root);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good),
		cmocka_unit_test(test_daemon),
		cmocka_unit_test(test_kernel),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_memory_that_will_do),
		cmocka_unit_test(test_nvme),
		cmocka_unit_test(test_gpu),
		cmocka_unit_test(test_clients),
		cmocka_unit_test(test_restart),
		cmocka_unit_test(test_look),
		cmocka_unit_test(test_print),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
