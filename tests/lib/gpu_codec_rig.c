/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_codec_rig.c - see gpu_codec_rig.h.  Runs on the test's thread, which plays the lane.
 */
#include "tests/lib/gpu_codec_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tests/lib/private_daemon.h"

#define HOST_BYTES (192u << 20)
#define ALIGN 256u
#define HANG_MS 60000u
#define POLL_MAX 32u

uint64_t gpu_codec_rig_now_ms(void)
{
	return private_daemon_now_ns() / 1000000u;
}

bool gpu_codec_rig_sim(void)
{
	const char *device = getenv("SKVC_TEST_DEVICE");

	return device && !strcmp(device, "sim");
}

const char *gpu_codec_rig_library(void)
{
	return private_daemon_program("../lib/skvcd/libskvcd-cuda.so");
}

static int memory_make(struct gpu_codec_rig *g, uint64_t memory_bytes)
{
	void *p = mmap(NULL, HOST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	int r;

	if (p == MAP_FAILED)
		return -ENOMEM;
	g->host = p;
	g->host_bytes = HOST_BYTES;
	r = g->d->ops->host_register(g->d, g->host, g->host_bytes);
	if (r < 0) {
		/* Not allowed to pin so much: the driver copies by way of its own. */
		print_message("host memory is not registered: %s\n", strerror(-r));
		g->host_bytes = 0;
	}
	r = g->d->ops->pool_memory(g->d, memory_bytes, &p);
	if (r < 0)
		return r;
	g->memory = p;
	g->memory_bytes = memory_bytes;
	return 0;
}

int gpu_codec_rig_open(struct gpu_codec_rig *g, uint64_t staging_bytes, uint64_t memory_bytes,
		       char *why)
{
	struct gpu_device_options o = {
		.which = "auto",
		.tasks_max = GPU_CODEC_RIG_TASKS,
		.staging_bytes = staging_bytes,
		.share_percent = 100,
		.background_percent = 100,
	};
	int r;

	*g = (struct gpu_codec_rig){ .sim = gpu_codec_rig_sim() };
	why[0] = '\0';
	g->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (g->wake_fd < 0)
		return -errno;
	o.wake_fd = g->wake_fd;
	r = g->sim ? sim_device_new(&o, &g->d)
		   : cuda_load_device(gpu_codec_rig_library(), &o, &g->d, why);
	if (r == 0)
		r = memory_make(g, memory_bytes);
	if (r < 0) {
		if (!why[0])
			(void)snprintf(why, DEVICE_ERR_BYTES, "%s", strerror(-r));
		gpu_codec_rig_close(g);
	}
	return r;
}

void gpu_codec_rig_close(struct gpu_codec_rig *g)
{
	if (g->d && g->host_bytes)
		g->d->ops->host_unregister(g->d, g->host, g->host_bytes);
	if (g->d)
		g->d->ops->free(g->d);
	if (g->host)
		(void)munmap(g->host, HOST_BYTES);
	(void)close(g->wake_fd);
	g->d = NULL;
	g->host = NULL;
}

void gpu_codec_rig_forget(struct gpu_codec_rig *g)
{
	g->memory_used = 0;
	g->host_used = 0;
}

static uint64_t rounded(uint64_t bytes)
{
	return (bytes + ALIGN - 1u) & ~(uint64_t)(ALIGN - 1u);
}

uint8_t *gpu_codec_rig_memory(struct gpu_codec_rig *g, uint64_t bytes)
{
	uint64_t off = g->memory_used;

	g->memory_used += rounded(bytes);
	assert_true(g->memory_used <= g->memory_bytes);
	return g->memory + off;
}

uint8_t *gpu_codec_rig_host(struct gpu_codec_rig *g, uint64_t bytes)
{
	uint64_t off = g->host_used;

	g->host_used += rounded(bytes);
	assert_true(g->host_used <= HOST_BYTES);
	return g->host + off;
}

/* ---- running ---- */

/* Sleeps as a lane does when there is nothing to do. */
static void nap(struct gpu_codec_rig *g)
{
	struct pollfd p = { .fd = g->wake_fd, .events = POLLIN };
	uint64_t v;

	if (!g->d->ops->arm(g->d))
		return;
	if (poll(&p, 1, 10) == 1)
		(void)!read(g->wake_fd, &v, sizeof(v));
	g->d->ops->disarm(g->d);
}

unsigned gpu_codec_rig_poll(struct gpu_codec_rig *g, struct device_task **ret_done, unsigned max)
{
	unsigned n = g->d->ops->poll(g->d, ret_done, max);

	for (unsigned i = 0; i < n; i++)
		if (ret_done[i]->op == DEVICE_ENCODE && ret_done[i]->res == 0) {
			assert_non_null(ret_done[i]->staged);
			g->staged++;
		}
	if (n == 0)
		nap(g);
	return n;
}

static void unstage(struct gpu_codec_rig *g, struct gpu_job *j)
{
	g->d->ops->unstage(g->d, j->task.staged);
	j->task.staged = NULL;
	assert_true(g->staged > 0);
	g->staged--;
}

static void move_out(struct gpu_codec_rig *g, struct gpu_job *j)
{
	int r;

	j->move = (struct device_task){
		.op = DEVICE_MOVE,
		.copy[0] = { .in = j->task.staged,
			     .out = j->keep,
			     .bytes = j->task.info.encoded_bytes,
			     .in_place = DEVICE_PLACE_DEVICE,
			     .out_place = DEVICE_PLACE_HOST },
		.copies_count = 1,
		.user = j,
	};
	assert_true(j->task.info.encoded_bytes <= codec_bound(j->task.region->geom));
	r = g->d->ops->start(g->d, &j->move);
	if (r < 0) { /* the device is dead: the test looks at that */
		j->task.res = r;
		unstage(g, j);
		return;
	}
	j->moving = true;
}

/* Returns 1 when the job is over. */
static unsigned job_back(struct gpu_codec_rig *g, struct device_task *t)
{
	struct gpu_job *j = t->user;

	if (t == &j->move) {
		assert_true(j->moving);
		j->moving = false;
		if (t->res < 0)
			j->task.res = t->res;
		unstage(g, j);
		return 1;
	}
	j->completions++;
	assert_int_equal(j->completions, 1);
	if (t->op != DEVICE_ENCODE || t->res < 0)
		return 1;
	if (j->keep)
		move_out(g, j);
	else
		unstage(g, j);
	return !j->moving;
}

void gpu_codec_rig_run(struct gpu_codec_rig *g, struct gpu_job *jobs, unsigned count)
{
	uint64_t until = gpu_codec_rig_now_ms() + HANG_MS;
	unsigned begun = 0, ended = 0;
	struct device_task *done[POLL_MAX];

	while (ended < count) {
		unsigned n;

		/* Each may need a second task, for its payload. */
		while (begun < count && begun - ended < GPU_CODEC_RIG_TASKS / 2u) {
			struct gpu_job *j = &jobs[begun++];

			j->completions = 0;
			j->moving = false;
			j->task.user = j;
			j->start_res = g->d->ops->start(g->d, &j->task);
			assert_int_not_equal(j->start_res, -EAGAIN);
			ended += j->start_res < 0;
		}
		n = gpu_codec_rig_poll(g, done, POLL_MAX);
		for (unsigned i = 0; i < n; i++)
			ended += job_back(g, done[i]);
		if (gpu_codec_rig_now_ms() > until)
			fail_msg("the device hangs: %u of %u tasks came back", ended, count);
	}
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(jobs[i].completions, jobs[i].start_res == 0);
	assert_int_equal(g->d->ops->poll(g->d, done, POLL_MAX), 0);
	assert_int_equal(g->staged, 0);
}

static void move(struct gpu_codec_rig *g, struct device_copy copy)
{
	struct gpu_job j = {
		.task = { .op = DEVICE_MOVE, .copy[0] = copy, .copies_count = 1 },
	};

	gpu_codec_rig_run(g, &j, 1);
	assert_int_equal(j.start_res, 0);
	assert_int_equal(j.task.res, 0);
}

void gpu_codec_rig_put(struct gpu_codec_rig *g, uint8_t *to, const void *host, uint64_t bytes)
{
	move(g, (struct device_copy){ .in = host,
				      .out = to,
				      .bytes = bytes,
				      .in_place = DEVICE_PLACE_HOST,
				      .out_place = DEVICE_PLACE_DEVICE });
}

void gpu_codec_rig_get(struct gpu_codec_rig *g, void *host, const uint8_t *from, uint64_t bytes)
{
	move(g, (struct device_copy){ .in = from,
				      .out = host,
				      .bytes = bytes,
				      .in_place = DEVICE_PLACE_DEVICE,
				      .out_place = DEVICE_PLACE_HOST });
}
