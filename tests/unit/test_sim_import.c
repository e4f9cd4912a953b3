/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sim_import.c - memory and events of an engine, imported by the simulated GPU, and all that it must
 * refuse.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/sim_rig.h"

/* A process that only keeps our descriptors open: "another engine". */
static pid_t holder_new(int *ret_pipe)
{
	int fds[2];
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		char c;

		close(fds[1]);
		(void)!read(fds[0], &c, 1);
		_exit(0);
	}
	close(fds[0]);
	*ret_pipe = fds[1];
	return pid;
}

static void holder_end(pid_t pid, int pipe_fd)
{
	close(pipe_fd);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_import_by_handle(void **state)
{
	struct sim_rig f;
	struct device_import im;
	struct device_memory *memory = NULL;
	struct device_region r;
	int pipe_fd;
	pid_t pid;

	(void)state;
	sim_rig_setup(&f, 4, 100, NULL);
	pid = holder_new(&pipe_fd);
	im = sim_rig_import(-1);
	im.type = DEVICE_MEMORY_IPC_HANDLE;
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, pid, f.src_fd);
	sim_rig_region(&f, &r, &im, &memory);
	holder_end(pid, pipe_fd); /* the memory stays */
	sim_rig_encode(&f, 3)->region = &r;
	sim_rig_start(&f, &f.task[3]);
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 3, 1);
	sim_rig_start(&f, sim_rig_move(&f, 3, f.host[3], DEVICE_PLACE_HOST));
	sim_rig_collect(&f, 1);
	sim_rig_start(&f, sim_rig_decode(&f, 3, f.host[3], DEVICE_PLACE_HOST));
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[3].res, 0);
	for (unsigned i = 0; i < 4; i++)
		assert_memory_equal(f.dst_mem + (i * SIM_RIG_BLOCKS + 3) * 4096u,
				    f.src_mem + (i * SIM_RIG_BLOCKS + 3) * 4096u, 4096);
	sim_rig_region_drop(&f, &r, memory);
	sim_rig_teardown(&f);
}

static void open_fails(struct sim_rig *f, const struct device_import *im, int res)
{
	struct device_memory *memory = NULL;
	char err[DEVICE_ERR_BYTES] = "";
	void *base = NULL;

	assert_int_equal(f->dev->import->memory_open(f->dev, im, &memory, &base, err), res);
	assert_null(memory);
	assert_null(base);
	assert_true(strlen(err) > 5 && !strchr(err, '\n'));
}

static void fd_fails(struct sim_rig *f, int fd, int res)
{
	struct device_import im = sim_rig_import(fd);

	open_fails(f, &im, res);
	close(fd);
}

static void test_bad_memory(void **state)
{
	struct sim_rig f;
	struct device_import im;
	int pipe_fd;
	pid_t pid;

	(void)state;
	sim_rig_setup(&f, 1, 100, NULL);
	im = sim_rig_import(f.src_fd);
	im.uuid[3] ^= 1;
	open_fails(&f, &im, -ENODEV);
	im = sim_rig_import(f.src_fd);
	im.allocation_bytes++;
	open_fails(&f, &im, -ERANGE);
	im.allocation_bytes = 0;
	open_fails(&f, &im, -EINVAL);
	im.allocation_bytes = UINT64_MAX;
	open_fails(&f, &im, -EINVAL);
	im = sim_rig_import(f.src_fd);
	im.type = 3;
	open_fails(&f, &im, -EINVAL);
	im = sim_rig_import(-1);
	open_fails(&f, &im, -EINVAL);
	fd_fails(&f, sim_rig_memfd(SIM_RIG_MEMORY_BYTES, F_SEAL_GROW), -EINVAL);
	fd_fails(&f, sim_rig_memfd(SIM_RIG_MEMORY_BYTES, F_SEAL_SHRINK | F_SEAL_WRITE), -EINVAL);
	fd_fails(&f, sim_rig_memfd(SIM_RIG_MEMORY_BYTES - 1, F_SEAL_SHRINK), -ERANGE);
	fd_fails(&f, open("/dev/zero", O_RDWR | O_CLOEXEC), -EINVAL);
	fd_fails(&f, eventfd(0, EFD_CLOEXEC), -EINVAL);

	pid = holder_new(&pipe_fd);
	im = sim_rig_import(f.src_fd); /* a good fd does not stand in for a bad handle */
	im.type = DEVICE_MEMORY_IPC_HANDLE;
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, getpid(), f.src_fd);
	open_fails(&f, &im, -EINVAL); /* of this very process */
	sim_rig_handle(im.handle, SIM_EVENT_MAGIC, pid, f.src_fd);
	open_fails(&f, &im, -EINVAL);
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, pid, -1);
	open_fails(&f, &im, -EINVAL);
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, -1, f.src_fd);
	open_fails(&f, &im, -EINVAL);
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, pid, 9999);
	open_fails(&f, &im, -EINVAL);
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, pid, 0); /* not a memfd */
	open_fails(&f, &im, -EINVAL);
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, pid, f.event_fd); /* too small */
	open_fails(&f, &im, -ERANGE);
	sim_rig_handle(im.handle, SIM_MEMORY_MAGIC, pid, f.src_fd);
	im.handle[63] = 1;
	open_fails(&f, &im, -EINVAL);
	im.handle[63] = 0;
	holder_end(pid, pipe_fd);
	open_fails(&f, &im, -EINVAL); /* nobody's any more */
	/* A region that is not of the device's memory. */
	{
		struct device_region r = f.src;

		r.base = f.src_mem;
		assert_int_equal(f.dev->import->region_open(f.dev, &r), -EINVAL);
	}
	f.dev->import->memory_close(f.dev, NULL);
	sim_rig_teardown(&f);
}

static void event_fails(struct sim_rig *f, uint32_t magic, int pid, int fd)
{
	uint8_t handle[DEVICE_HANDLE_BYTES];
	struct device_event *event = NULL;
	char err[DEVICE_ERR_BYTES] = "";

	sim_rig_handle(handle, magic, pid, fd);
	assert_int_equal(f->dev->import->event_open(f->dev, handle, &event, err), -EINVAL);
	assert_null(event);
	assert_true(strlen(err) > 5);
}

static void test_bad_events(void **state)
{
	struct sim_rig f;
	int fd;

	(void)state;
	sim_rig_setup(&f, 1, 100, NULL);
	event_fails(&f, SIM_MEMORY_MAGIC, getpid(), f.event_fd);
	event_fails(&f, SIM_EVENT_MAGIC, 0, f.event_fd);
	event_fails(&f, SIM_EVENT_MAGIC, getpid(), f.wake_fd);
	event_fails(&f, SIM_EVENT_MAGIC, getpid(), f.src_fd); /* too large */
	event_fails(&f, SIM_EVENT_MAGIC, 1, f.event_fd); /* not open there, or another user's */
	fd = sim_rig_memfd(SIM_EVENT_BYTES, F_SEAL_GROW);
	event_fails(&f, SIM_EVENT_MAGIC, getpid(), fd);
	close(fd);
	fd = sim_rig_memfd(SIM_EVENT_BYTES - 1, F_SEAL_SHRINK);
	event_fails(&f, SIM_EVENT_MAGIC, getpid(), fd);
	close(fd);
	f.dev->import->event_close(f.dev, NULL);
	sim_rig_teardown(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_import_by_handle),
		cmocka_unit_test(test_bad_memory),
		cmocka_unit_test(test_bad_events),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
