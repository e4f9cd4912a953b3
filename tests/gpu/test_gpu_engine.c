/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu_engine.c - engines with pages in GPU memory against a real daemon: both kinds of memory, layouts,
 * events, bad input, all tiers, engines that die or free what they lent, waiting and aborting, faults.
 *
 * This process is no engine and never touches the GPU: engines are processes of their own, this program
 * again with the name of what to do (gpu_roles.h).  $SKVC_TEST_DEVICE=sim runs all of it over the
 * simulated GPU.  Exits 77 where there is no GPU, or no shared object for it.
 */
#include "tests/lib/e2e.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/gpu_codec_rig.h"
#include "tests/lib/gpu_roles.h"

#define ROLE_MS_MAX (60000u * E2E_SLOW)
#define KILLS 100u
#define KILLS_WAVE 5u
#define RELEASE_MS_MAX (5000u * E2E_SLOW)
#define GROWTH_BYTES_MAX ((uint64_t)64 << 20)

static struct private_daemon daemon_;
static int news[2]; /* roles write here */

/* ---- a daemon for each test ---- */

static void start_with(const char *const *more, uint64_t nvme_bytes)
{
	char device[32], library[600];
	/* No work of the daemon's own in idle time: what is in flight is somebody's. */
	const char *overrides[16] = { device,
				      library,
				      "gpu.staging=64M",
				      "host.pool=64M",
				      "codec.speculator=channel",
				      "profile.priority=normal" };
	unsigned n = 6;

	(void)snprintf(device, sizeof(device), "gpu.device=%s",
		       gpu_codec_rig_sim() ? "sim" : "auto");
	(void)snprintf(library, sizeof(library), "gpu.library=%s", gpu_codec_rig_library());
	for (; more && *more; more++)
		overrides[n++] = *more;
	assert_ok(private_daemon_start(&daemon_, nvme_bytes, overrides));
	assert_int_equal(daemon_stats_now(&daemon_, "gpu_health"), 1);
}

/* Nothing of anybody is left in it, and it ends as it should. */
static void stop_clean(void)
{
	assert_false(private_daemon_died(&daemon_));
	assert_true(daemon_stats_wait(&daemon_, "sessions", 0, RELEASE_MS_MAX) >= 0);
	assert_true(daemon_stats_wait(&daemon_, "jobs", 0, RELEASE_MS_MAX) >= 0);
	assert_true(daemon_stats_wait(&daemon_, "leases", 0, RELEASE_MS_MAX) >= 0);
	assert_true(daemon_stats_wait(&daemon_, "device_inflight", 0, RELEASE_MS_MAX) >= 0);
	assert_ok(private_daemon_stop(&daemon_));
}

/* ---- engines ---- */

static pid_t spawn(const char *role, const char *a, const char *b)
{
	pid_t parent = getpid(), pid;
	char fd[16];

	(void)snprintf(fd, sizeof(fd), "%d", news[1]);
	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid > 0)
		return pid;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || fcntl(news[1], F_SETFD, 0) < 0)
		_exit(126);
	(void)execl("/proc/self/exe", "test_gpu_engine", role, daemon_.socket, fd, a, b, NULL);
	_exit(127);
}

/* Its exit status; fails when it hangs or is killed. */
static int ended(pid_t pid, const char *role)
{
	uint64_t until = private_daemon_now_ns() + ROLE_MS_MAX * 1000000ull;
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (private_daemon_now_ns() > until) {
			(void)kill(pid, SIGKILL);
			(void)waitpid(pid, &status, 0);
			private_daemon_print_log(&daemon_);
			fail_msg("%s hangs", role);
		}
		private_daemon_sleep_ms(2);
	}
	if (!WIFEXITED(status))
		fail_msg("%s was ended: status 0x%x", role, (unsigned)status);
	return WEXITSTATUS(status);
}

static void run_role(const char *role, const char *a, const char *b)
{
	int status = ended(spawn(role, a, b), role);

	if (status)
		private_daemon_print_log(&daemon_);
	if (status)
		fail_msg("%s %s %s: exit status %d", role, a, b, status);
	assert_false(private_daemon_died(&daemon_));
}

static uint64_t hear(void)
{
	struct pollfd p = { .fd = news[0], .events = POLLIN };
	uint64_t value = 0;

	assert_int_equal(poll(&p, 1, (int)ROLE_MS_MAX), 1);
	assert_int_equal(read(news[0], &value, sizeof(value)), sizeof(value));
	return value;
}

static void test_layouts(void **state)
{
	static const char *const kinds[] = { "ipc", "vmm" }, *const layouts[] = { "layer",
										  "cross" };

	(void)state;
	start_with(NULL, 0);
	for (unsigned k = 0; k < 2; k++)
		for (unsigned l = 0; l < 2; l++)
			run_role("roundtrip", kinds[k], layouts[l]);
	assert_true(daemon_stats_now(&daemon_, "gpu_encode_ns") > 0);
	assert_true(daemon_stats_get("gpu_decode_ns") > 0);
	assert_int_equal(daemon_stats_get("gpu_failed"), 0);
	stop_clean();
}

static void test_events(void **state)
{
	(void)state;
	start_with(NULL, 0);
	run_role("events", "ipc", "layer");
	run_role("events", "vmm", "cross");
	stop_clean();
}

static void test_bad_input(void **state)
{
	(void)state;
	start_with(NULL, 0);
	run_role("bad", "ipc", "layer");
	run_role("bad", "vmm", "cross");
	assert_int_equal(daemon_stats_now(&daemon_, "gpu_health"), 1);
	stop_clean();
}

/* After skvc_wait() and skvc_abort() the pages are the engine's. */
static void test_pages_are_the_engines_again(void **state)
{
	(void)state;
	start_with(NULL, 0);
	run_role("overwrite", "ipc", "layer");
	run_role("overwrite", "vmm", "cross");
	stop_clean();
}

/* Without one the CPU codes, into host memory. */
static void wait_for_profile(void)
{
	uint64_t until = private_daemon_now_ns() + ROLE_MS_MAX * 1000000ull;

	while (!daemon_stats_now(&daemon_, "profiles")) {
		assert_true(private_daemon_now_ns() < until);
		private_daemon_sleep_ms(5);
	}
}

static void test_all_tiers(void **state)
{
	/* As small as it may be: blocks move on after the first ten megabytes. */
	static const char *const more[] = { "gpu.pool=16M", "host.pool=16M", NULL };

	(void)state;
	start_with(more, 256u << 20);
	run_role("roundtrip", "ipc", "layer");
	wait_for_profile();
	run_role("tiers", "ipc", "layer");
	assert_ok(daemon_stats_read(&daemon_));
	print_message("demoted %llu, found %llu on the GPU, %llu in host memory, %llu on NVMe\n",
		      (unsigned long long)daemon_stats_get("gpu_demoted_blocks"),
		      (unsigned long long)daemon_stats_get("hit_blocks_gpu"),
		      (unsigned long long)daemon_stats_get("hit_blocks_host"),
		      (unsigned long long)daemon_stats_get("hit_blocks_nvme"));
	assert_true(daemon_stats_get("gpu_demoted_blocks") > 0);
	assert_true(daemon_stats_get("hit_blocks_gpu") > 0);
	/* Once the disk has a block, host memory may drop it: both are below the GPU. */
	assert_true(daemon_stats_get("hit_blocks_host") + daemon_stats_get("hit_blocks_nvme") > 0);
	assert_int_equal(daemon_stats_get("checksum_failures"), 0);
	stop_clean();
}

/* What becomes of that store is undefined; of the daemon and of others it is not. */
static void test_memory_freed_under_a_store(void **state)
{
	(void)state;
	start_with(NULL, 0);
	for (unsigned i = 0; i < 3; i++) {
		run_role("freeing", i % 2 ? "vmm" : "ipc", i % 2 ? "cross" : "layer");
		run_role("roundtrip", i % 2 ? "ipc" : "vmm", "layer");
	}
	assert_int_equal(daemon_stats_now(&daemon_, "gpu_health"), 1);
	stop_clean();
}

/* ---- kill -9 ---- */

static unsigned count_entries(const char *name)
{
	char path[64];
	unsigned n = 0;
	DIR *dir;

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)daemon_.pid, name);
	dir = opendir(path);
	assert_non_null(dir);
	while (readdir(dir))
		n++;
	(void)closedir(dir);
	return n;
}

struct footprint {
	uint64_t rss_bytes, gpu_free_bytes;
	unsigned fds, maps;
};

static struct footprint footprint(void)
{
	struct footprint f = { .rss_bytes = private_daemon_memory(&daemon_, "VmRSS"),
			       .fds = count_entries("fd"),
			       .maps = count_entries("map_files") };
	pid_t pid = spawn("probe", "", "");

	f.gpu_free_bytes = hear();
	assert_int_equal(ended(pid, "probe"), 0);
	return f;
}

static void kill_wave(struct rng *r, unsigned first)
{
	static const char *const modes[] = { "store", "load" }, *const kinds[] = { "ipc", "vmm" };
	pid_t pid[KILLS_WAVE];

	for (unsigned i = 0; i < KILLS_WAVE; i++)
		pid[i] = spawn("busy", kinds[(first + i) / 2 % 2], modes[(first + i) % 2]);
	for (unsigned i = 0; i < KILLS_WAVE; i++)
		(void)hear();
	for (unsigned i = 0; i < KILLS_WAVE; i++) {
		int status;

		private_daemon_sleep_ms(rng_below(r, 15));
		assert_int_equal(kill(pid[i], SIGKILL), 0);
		assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			fail_msg("an engine ended by itself: status 0x%x", (unsigned)status);
	}
	/* The survivor is the one that is left. */
	assert_true(daemon_stats_wait(&daemon_, "sessions", 1, RELEASE_MS_MAX) >= 0);
	assert_false(private_daemon_died(&daemon_));
}

static void grown_little(const struct footprint *before)
{
	struct footprint now = { 0 };
	uint64_t grown = 0;

	/* What the driver gives back, it may give back late. */
	for (unsigned i = 0; i < 20; i++) {
		now = footprint();
		grown = before->gpu_free_bytes > now.gpu_free_bytes
				? before->gpu_free_bytes - now.gpu_free_bytes
				: 0;
		if (grown < GROWTH_BYTES_MAX && now.fds <= before->fds)
			break;
		private_daemon_sleep_ms(200);
	}
	print_message("resident %+lld KiB, GPU memory %+lld KiB, descriptors %+d, mappings %+d\n",
		      (long long)(now.rss_bytes - before->rss_bytes) / 1024,
		      (long long)(before->gpu_free_bytes - now.gpu_free_bytes) / 1024,
		      (int)(now.fds - before->fds), (int)(now.maps - before->maps));
	assert_true(grown < GROWTH_BYTES_MAX);
	assert_true(now.rss_bytes < before->rss_bytes + GROWTH_BYTES_MAX * E2E_SLOW);
	assert_true(now.fds <= before->fds + 8);
	assert_true(now.maps <= before->maps + 64);
}

static void test_kill(void **state)
{
	struct footprint before;
	pid_t survivor;
	struct rng r;

	(void)state;
	rng_init(&r, rng_seed_env(1));
	start_with(NULL, 0);
	survivor = spawn("survivor", "vmm", "layer");
	(void)hear();
	kill_wave(&r, 0);
	before = footprint();
	for (unsigned kills = KILLS_WAVE; kills < KILLS; kills += KILLS_WAVE)
		kill_wave(&r, kills);
	grown_little(&before);
	assert_int_equal(kill(survivor, SIGTERM), 0);
	assert_int_equal(ended(survivor, "survivor"), 0);
	assert_true(hear() > 0);
	assert_int_equal(daemon_stats_now(&daemon_, "gpu_health"), 1);
	assert_int_equal(daemon_stats_get("checksum_failures"), 0);
	stop_clean();
}

/* ---- [fault] gpu ---- */

static void run_faults(const char *spec, const char *role)
{
	char fault[64];
	const char *more[] = { fault, "gpu.pool=16M", NULL };

	(void)snprintf(fault, sizeof(fault), "fault.gpu=%s", spec);
	print_message("%s\n", spec);
	start_with(more, 0);
	run_role(role, "ipc", "layer");
	if (!strstr(spec, "delay"))
		assert_true(daemon_stats_now(&daemon_, "gpu_failed") > 0);
	assert_int_equal(daemon_stats_now(&daemon_, "gpu_health"),
			 strcmp(role, "dead") == 0 ? 2 : 1);
	stop_clean();
}

static void test_faults(void **state)
{
	(void)state;
	run_faults("encode:eio:every=3", "faulty");
	run_faults("decode:eio:every=5", "faulty");
	run_faults("move:delay_ms=20", "faulty");
	run_faults("move:eio:every=7,decode:enomem:every=9", "faulty");
}

static void test_death(void **state)
{
	(void)state;
	run_faults("encode:dead:every=40", "dead");
	run_faults("decode:dead:every=30", "dead");
}

/* Neither an end nor an error: the daemon goes, rather than give pages back that may be written yet. */
static void test_hang(void **state)
{
	static const char *const more[] = { "fault.gpu=encode:delay_ms=60000", "limits.gpu_wait=1s",
					    NULL };
	uint64_t start_ns = private_daemon_now_ns();

	(void)state;
	start_with(more, 0);
	assert_int_equal(ended(spawn("hung", "ipc", "layer"), "hung"), 0);
	assert_true(private_daemon_now_ns() - start_ns >= 1000000000u);
	while (!private_daemon_died(&daemon_)) {
		assert_true(private_daemon_now_ns() - start_ns < ROLE_MS_MAX * 1000000ull);
		private_daemon_sleep_ms(5);
	}
	assert_true(private_daemon_logged(&daemon_, "the GPU hangs"));
	assert_ok(private_daemon_stop(&daemon_));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layouts),
		cmocka_unit_test(test_events),
		cmocka_unit_test(test_bad_input),
		cmocka_unit_test(test_pages_are_the_engines_again),
		cmocka_unit_test(test_all_tiers),
		cmocka_unit_test(test_memory_freed_under_a_store),
		cmocka_unit_test(test_kill),
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_death),
		cmocka_unit_test(test_hang),
	};
	int status;

	if (argc == 6)
		return gpu_roles_run(argv + 1);
	if (!gpu_codec_rig_sim() && access(gpu_codec_rig_library(), F_OK) < 0) {
		printf("no GPU to test: %s was not built\n", gpu_codec_rig_library());
		return 77;
	}
	if (pipe2(news, O_CLOEXEC) < 0)
		return 1;
	status = ended(spawn("probe", "", ""), "probe");
	if (status == 0)
		(void)hear();
	return status ? status : cmocka_run_group_tests_name("gpu-engine", tests, NULL, NULL);
}
