/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_nvme_file.c - what the NVMe log does with the file or device that it is given: its own of another
 * time, in use, somebody else's, too small.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/log_rig.h"

static void write_file(const char *path, const void *data, size_t bytes)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, bytes), bytes);
	(void)close(fd);
}

static void poke(const char *path, off_t off, uint8_t xor)
{
	int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, off), 1);
	byte ^= xor;
	assert_int_equal(pwrite(fd, &byte, 1, off), 1);
	(void)close(fd);
}

static void refused(struct log_rig *rig, int error, const char *word)
{
	struct nvme_log *before = rig->log;
	int r = log_rig_open(rig);

	if (r != error || !strstr(rig->err, word) || strchr(rig->err, '\n'))
		fail_msg("%d (not %d): \"%s\" (no \"%s\")", r, error, rig->err, word);
	assert_ptr_equal(rig->log, before);
}

static void every_opening_has_its_epoch(void **state)
{
	uint64_t epoch;
	struct stat st;
	struct log_rig rig;

	(void)state;
	log_rig_setup(&rig);
	epoch = nvme_log_epoch(rig.log);
	assert_int_equal(log_rig_append(&rig, 1, 4096, 1), 0);
	log_rig_close(&rig);
	log_rig_ring(&rig);
	assert_int_equal(log_rig_open(&rig), 0);
	assert_int_equal(nvme_log_epoch(rig.log), epoch + 1);
	assert_false(nvme_log_holds(rig.log, 1)); /* forgotten, in this version */
	log_rig_close(&rig);

	/* Another geometry, where nothing is to be kept: made anew.  A damaged superblock: there is another one. */
	rig.options.bytes = 2 * MIB;
	log_rig_ring(&rig);
	assert_int_equal(log_rig_open(&rig), 0);
	assert_int_equal(nvme_log_epoch(rig.log), epoch + 2);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_size, 2 * MIB);
	log_rig_close(&rig);
	poke(rig.path, 33, 1);
	log_rig_ring(&rig);
	assert_int_equal(log_rig_open(&rig), 0);
	assert_int_equal(nvme_log_epoch(rig.log), epoch + 3);
	log_rig_teardown(&rig);
}

/* What may be wanted again is not made anew: who says so names what to do. */
static void what_is_kept_is_refused_when_it_does_not_fit(void **state)
{
	struct log_rig rig;
	struct stat st;
	uint64_t id;

	(void)state;
	log_rig_dir(&rig);
	rig.options.keep = 1;
	log_rig_ring(&rig);
	if (log_rig_open(&rig) < 0)
		fail_msg("%s", rig.err);
	id = nvme_log_id(rig.log);
	log_rig_close(&rig);

	log_rig_ring(&rig);
	rig.options.bytes = 2 * MIB;
	refused(&rig, -EEXIST, "made with size = 4096K and segment = 512K");
	refused(&rig, -EEXIST, "configure it as it was, or remove the file");
	rig.options.bytes = 4 * MIB;
	rig.options.segment_bytes = MIB;
	refused(&rig, -EEXIST, "configured are 4096K and 1024K");
	rig.options.segment_bytes = MIB / 2;
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_size, 4 * MIB);

	poke(rig.path, 40, 1);
	assert_int_equal(log_rig_open(&rig), 0); /* the second copy */
	assert_true(nvme_log_id(rig.log) == id);
	log_rig_close(&rig);
	log_rig_ring(&rig);
	poke(rig.path, 40, 1);
	poke(rig.path, 16384 + 40, 1);
	refused(&rig, -EEXIST, "its first block is damaged: remove the file");
	rig.options.keep = 0;
	assert_int_equal(log_rig_open(&rig), 0);
	assert_true(nvme_log_id(rig.log) != id);
	log_rig_teardown(&rig);
}

/* Cut off: what is missing is zero, and the rest goes on. */
static void a_truncated_file_is_whole_again(void **state)
{
	struct log_rig rig;
	struct stat st;

	(void)state;
	log_rig_dir(&rig);
	rig.options.keep = 1;
	log_rig_ring(&rig);
	if (log_rig_open(&rig) < 0)
		fail_msg("%s", rig.err);
	log_rig_close(&rig);
	assert_int_equal(truncate(rig.path, 100000), 0);
	log_rig_ring(&rig);
	assert_int_equal(log_rig_open(&rig), 0);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_size, 4 * MIB);
	log_rig_teardown(&rig);
}

static void another_opener_is_refused(void **state)
{
	struct log_rig rig, other;

	(void)state;
	log_rig_setup(&rig);
	log_rig_dir(&other);
	log_rig_ring(&other);
	other.options.path = rig.path;
	refused(&other, -EBUSY, "in use by another process");
	assert_int_equal(log_rig_append(&rig, 1, 4096, 1), 0);
	rig.log = nvme_log_close(rig.log);
	assert_int_equal(log_rig_open(&other),
			 0); /* free, although a ring still has the file registered */
	log_rig_teardown(&other);
	log_rig_teardown(&rig);
}

/* Who has it removes it and lets go, while somebody waits for it. */
static void *remove_it(void *arg)
{
	struct log_rig *rig = arg;

	usleep(200000);
	(void)unlink(rig->path);
	rig->log = nvme_log_close(rig->log);
	return NULL;
}

/* What is written to a file that has no name any more nobody finds again. */
static void a_file_that_was_removed_meanwhile_is_made_anew(void **state)
{
	struct log_rig rig, other;
	struct stat st;
	pthread_t thread;

	(void)state;
	log_rig_setup(&rig);
	log_rig_dir(&other);
	log_rig_ring(&other);
	other.options.path = rig.path;
	assert_int_equal(pthread_create(&thread, NULL, remove_it, &rig), 0);
	assert_int_equal(log_rig_open(&other), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_size, 4 * MIB);
	assert_int_equal(nvme_log_epoch(other.log), 1);
	log_rig_teardown(&other);
	log_rig_teardown(&rig);
}

static void foreign_files_are_left_alone(void **state)
{
	static const char text[] = "somebody's thesis";
	static const uint8_t zeros[65536];
	struct log_rig rig;
	struct stat st;
	char back[64];
	int fd;

	(void)state;
	log_rig_dir(&rig);
	log_rig_ring(&rig);
	write_file(rig.path, text, sizeof(text));
	refused(&rig, -EEXIST, "holds something else");
	fd = open(rig.path, O_RDONLY);
	assert_int_equal(read(fd, back, sizeof(back)), sizeof(text));
	assert_memory_equal(back, text, sizeof(text));
	(void)close(fd);
	assert_int_equal(stat(rig.path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0644);

	/* A disk image may well begin with zeros. */
	write_file(rig.path, zeros, sizeof(zeros));
	refused(&rig, -EEXIST, "holds something else");
	/* One block of them is what a power cut while it was made leaves. */
	write_file(rig.path, zeros, 4096);
	assert_int_equal(log_rig_open(&rig), 0);
	log_rig_close(&rig);

	/* Of a later version. */
	poke(rig.path, 8, 4);
	poke(rig.path, 16384 + 8, 4);
	log_rig_ring(&rig);
	refused(&rig, -EEXIST, "newer version");
	(void)unlink(rig.path);

	assert_int_equal(mkdir(rig.path, 0700), 0);
	refused(&rig, -EINVAL, "neither a regular file nor a block device");
	(void)rmdir(rig.path);
	rig.options.path = "/nonexistent/folder/log";
	refused(&rig, -ENOENT, "/nonexistent/folder/log: cannot open");
	rig.options.path = rig.path;
	log_rig_teardown(&rig);
}

static void bad_sizes_are_refused(void **state)
{
	static const uint64_t bad[][2] = {
		/* file, segment */
		{ 0, MIB },	      { MIB, MIB },   { 3 * MIB + 1, MIB },
		{ 4 * MIB, 3 * MIB }, { MIB, 65536 }, { 8192 * MIB, 2048 * MIB },
		{ 4 * MIB, 0 },
	};
	struct log_rig rig;

	(void)state;
	log_rig_dir(&rig);
	log_rig_ring(&rig);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		rig.options.bytes = bad[i][0];
		rig.options.segment_bytes = bad[i][1];
		refused(&rig, -EINVAL, "sizes");
	}
	assert_int_equal(access(rig.path, F_OK), -1);
	log_rig_teardown(&rig);
}

/* A block device made of a file: its fd, which takes the device away when it is closed; or -errno. */
static int loop_device(const char *backing, char *ret_path, size_t path_bytes)
{
	struct loop_config config = { .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC), n, fd, r;

	if (ctl < 0)
		return -errno;
	n = ioctl(ctl, LOOP_CTL_GET_FREE);
	(void)close(ctl);
	if (n < 0)
		return -ENODEV;
	(void)snprintf(ret_path, path_bytes, "/dev/loop%d", n);
	fd = open(ret_path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	config.fd = (uint32_t)open(backing, O_RDWR | O_CLOEXEC);
	r = ioctl(fd, LOOP_CONFIGURE, &config) < 0 ? -errno : fd;
	(void)close((int)config.fd);
	if (r < 0)
		(void)close(fd);
	return r;
}

static void a_block_device_will_do(void **state)
{
	char backing[128], device[32];
	struct log_rig rig;
	uint64_t epoch;
	int fd, loop;

	(void)state;
	log_rig_dir(&rig);
	log_rig_ring(&rig);
	(void)snprintf(backing, sizeof(backing), "%s/device", rig.dir);
	fd = open(backing, O_CREAT | O_RDWR, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 8 * MIB), 0);
	loop = loop_device(backing, device, sizeof(device));
	(void)unlink(backing);
	if (loop < 0) {
		print_message("no loop device to be had: %s\n", strerror(-loop));
		(void)close(fd);
		log_rig_teardown(&rig);
		skip();
	}
	rig.options.path = device;
	rig.options.bytes = 16 * MIB;
	refused(&rig, -ENOSPC, "the device has 8388608 bytes, 16777216 are configured");
	rig.options.bytes = 8 * MIB;
	/* A filesystem whose first block is zero is still a filesystem. */
	assert_int_equal(pwrite(loop, "_BHRfS_M", 8, 65600), 8);
	assert_int_equal(fsync(loop), 0);
	refused(&rig, -EEXIST, "the device holds something else");
	assert_int_equal(pwrite(loop, "\0\0\0\0\0\0\0\0", 8, 65600), 8);
	assert_int_equal(fsync(loop), 0);

	if (log_rig_open(&rig) < 0)
		fail_msg("%s", rig.err);
	epoch = nvme_log_epoch(rig.log);
	for (uint32_t block = 0; block < 200; block++) {
		assert_int_equal(log_rig_append(&rig, block, LOG_RIG_RECORD_BYTES, block), 0);
		assert_int_equal(log_rig_read(&rig, block), 0);
		assert_true(log_rig_is(rig.ops[1].buf, LOG_RIG_RECORD_BYTES, block));
	}
	assert_true(rig.evicted > 0);
	log_rig_close(&rig);
	log_rig_ring(&rig);
	if (log_rig_open(&rig) < 0) /* at once: the old ring lets go of it a little later */
		fail_msg("%s", rig.err);
	assert_int_equal(nvme_log_epoch(rig.log), epoch + 1);
	log_rig_teardown(&rig);
	(void)close(loop);
	(void)close(fd);
}

/* In a child with a mount of its own: a filesystem that is too small. */
static int no_room(struct log_rig *rig)
{
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", rig->dir, "tmpfs", 0, "size=2m") < 0)
		return 77;
	rig->options.allow_buffered = 1;
	if (log_rig_open(rig) != -ENOSPC || !strstr(rig->err, "cannot take 4194304 bytes of space"))
		return 1;
	return access(rig->path, F_OK) == 0 ? 2 : 0; /* and nothing is left behind */
}

static void a_full_disk_is_found_out_at_the_start(void **state)
{
	struct log_rig rig;
	int status;
	pid_t pid;

	(void)state;
	log_rig_dir(&rig);
	log_rig_ring(&rig);
	(void)fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(no_room(&rig));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	log_rig_teardown(&rig);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		print_message("no right to mount a small filesystem\n");
		skip();
	}
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_opening_has_its_epoch),
		cmocka_unit_test(what_is_kept_is_refused_when_it_does_not_fit),
		cmocka_unit_test(a_truncated_file_is_whole_again),
		cmocka_unit_test(another_opener_is_refused),
		cmocka_unit_test(a_file_that_was_removed_meanwhile_is_made_anew),
		cmocka_unit_test(foreign_files_are_left_alone),
		cmocka_unit_test(bad_sizes_are_refused),
		cmocka_unit_test(a_block_device_will_do),
		cmocka_unit_test(a_full_disk_is_found_out_at_the_start),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
