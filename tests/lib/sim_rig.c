/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_rig.c - see sim_rig.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/util/clock.h"
#include "tests/lib/kv_data.h"
#include "tests/lib/sim_rig.h"

int sim_rig_memfd(uint64_t bytes, unsigned seals)
{
	int fd = memfd_create("engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

void *sim_rig_view(int fd, uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

void sim_rig_handle(uint8_t *handle, uint32_t magic, int pid, int fd)
{
	struct sim_handle h = { .magic = magic, .pid = pid, .fd = fd };

	memcpy(handle, &h, sizeof(h));
}

struct device_import sim_rig_import(int fd)
{
	struct device_import im = {
		.type = DEVICE_MEMORY_POSIX_FD,
		.fd = fd,
		.allocation_bytes = SIM_RIG_MEMORY_BYTES,
	};

	memcpy(im.uuid, SIM_UUID, DEVICE_UUID_BYTES);
	return im;
}

/* [segment][block][token][head][dim], as a paged cache lies. */
void sim_rig_region(struct sim_rig *f, struct device_region *r, const struct device_import *im,
		    struct device_memory **ret_memory)
{
	struct codec_stride stride[4];
	uint64_t block_stride[4];
	char err[DEVICE_ERR_BYTES] = "";
	void *base = NULL;

	assert_int_equal(f->dev->import->memory_open(f->dev, im, ret_memory, &base, err), 0);
	for (unsigned i = 0; i < 4; i++) {
		stride[i] = (struct codec_stride){
			.off = (uint64_t)i * SIM_RIG_BLOCKS * 4096u,
			.token_stride = 256,
			.head_stride = 128,
		};
		block_stride[i] = 4096;
	}
	assert_int_equal(device_region_init(r, &f->g, base, SIM_RIG_MEMORY_BYTES, SIM_RIG_BLOCKS,
					    stride, block_stride),
			 0);
	assert_int_equal(f->dev->import->region_open(f->dev, r), 0);
}

void sim_rig_region_drop(struct sim_rig *f, struct device_region *r, struct device_memory *memory)
{
	f->dev->import->region_close(f->dev, r);
	device_region_deinit(r);
	f->dev->import->memory_close(f->dev, memory);
}

static void profile_make(struct sim_rig *f)
{
	struct codec_fit *fit = NULL;

	assert_int_equal(codec_fit_new(&f->g, &fit), 0);
	for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++) {
		struct codec_view v = { .base = f->src_mem, .block_index = i };

		codec_fit_add(fit, &v);
	}
	assert_int_equal(codec_fit_finish(fit, &f->profile), 0);
	codec_fit_free(fit);
}

static void event_make(struct sim_rig *f)
{
	uint8_t handle[DEVICE_HANDLE_BYTES];
	char err[DEVICE_ERR_BYTES] = "";

	f->event_fd = sim_rig_memfd(SIM_EVENT_BYTES, F_SEAL_SHRINK);
	f->event_words = sim_rig_view(f->event_fd, SIM_EVENT_BYTES);
	sim_rig_handle(handle, SIM_EVENT_MAGIC, getpid(), f->event_fd);
	assert_int_equal(f->dev->import->event_open(f->dev, handle, &f->event, err), 0);
}

void sim_rig_setup(struct sim_rig *f, unsigned staged_blocks, unsigned background_percent,
		   const char *fault)
{
	struct gpu_device_options o = { .which = "auto", .tasks_max = SIM_RIG_TASKS };
	struct codec_segment seg[4];
	struct device_import im;
	void *pool = NULL;

	memset(f, 0, sizeof(*f));
	for (uint16_t i = 0; i < 4; i++)
		seg[i] = (struct codec_segment){
			.kind = i & 1u ? CODEC_KIND_V : CODEC_KIND_K,
			.dtype = CODEC_DTYPE_BF16,
			.layer = i / 2u,
			.heads = 2,
			.head_dim = 64,
		};
	assert_int_equal(codec_geometry_init(&f->g, 16, seg, 4), 0);
	f->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	assert_true(f->wake_fd >= 0);
	o.wake_fd = f->wake_fd;
	o.staging_bytes = staged_blocks * ((codec_bound(&f->g) + 255u) & ~(uint64_t)255u);
	o.background_percent = background_percent;
	assert_int_equal(sim_device_new(&o, &f->dev), 0);
	f->sim = f->dev;
	if (fault)
		assert_int_equal(fault_device_new(f->sim, fault, &f->dev), 0);
	f->src_fd = sim_rig_memfd(SIM_RIG_MEMORY_BYTES, F_SEAL_SHRINK | F_SEAL_GROW);
	f->dst_fd = sim_rig_memfd(SIM_RIG_MEMORY_BYTES, F_SEAL_SHRINK);
	f->src_mem = sim_rig_view(f->src_fd, SIM_RIG_MEMORY_BYTES);
	f->dst_mem = sim_rig_view(f->dst_fd, SIM_RIG_MEMORY_BYTES);
	kv_data_fill_any(f->src_mem, SIM_RIG_MEMORY_BYTES);
	im = sim_rig_import(f->src_fd);
	sim_rig_region(f, &f->src, &im, &f->src_memory);
	im = sim_rig_import(f->dst_fd);
	sim_rig_region(f, &f->dst, &im, &f->dst_memory);
	profile_make(f);
	event_make(f);
	assert_int_equal(f->dev->ops->pool_memory(f->dev, SIM_RIG_POOL_BYTES, &pool), 0);
	f->pool = pool;
	for (unsigned i = 0; i < SIM_RIG_TASKS; i++) {
		f->host[i] = calloc(1, codec_bound(&f->g));
		assert_non_null(f->host[i]);
	}
}

void sim_rig_teardown(struct sim_rig *f)
{
	sim_rig_region_drop(f, &f->src, f->src_memory);
	sim_rig_region_drop(f, &f->dst, f->dst_memory);
	f->dev->import->event_close(f->dev, f->event);
	f->dev->ops->free(f->dev);
	for (unsigned i = 0; i < SIM_RIG_TASKS; i++)
		free(f->host[i]);
	munmap(f->src_mem, SIM_RIG_MEMORY_BYTES);
	munmap(f->dst_mem, SIM_RIG_MEMORY_BYTES);
	munmap(f->event_words, SIM_EVENT_BYTES);
	close(f->src_fd);
	close(f->dst_fd);
	close(f->event_fd);
	close(f->wake_fd);
	codec_profile_free(f->profile);
	codec_geometry_deinit(&f->g);
}

struct device_task *sim_rig_encode(struct sim_rig *f, unsigned i)
{
	f->task[i] = (struct device_task){
		.op = DEVICE_ENCODE,
		.region = &f->src,
		.block_index = i % SIM_RIG_BLOCKS,
		.profile = f->profile,
		.speculator = CODEC_SPEC_CHANNEL,
		.verify = 1,
		.user = &f->completions[i],
	};
	return &f->task[i];
}

/* Task i, an ENCODE, has completed: its payload goes to memory of the host. */
struct device_task *sim_rig_move(struct sim_rig *f, unsigned i, void *out, uint8_t out_place)
{
	struct device_task *t = &f->task[i];

	t->op = DEVICE_MOVE;
	t->copy[0] = (struct device_copy){
		.in = t->staged,
		.out = out,
		.bytes = t->info.encoded_bytes,
		.in_place = DEVICE_PLACE_DEVICE,
		.out_place = out_place,
	};
	t->copies_count = 1;
	return t;
}

struct device_task *sim_rig_decode(struct sim_rig *f, unsigned i, const void *in, uint8_t in_place)
{
	struct device_task *t = &f->task[i];

	t->op = DEVICE_DECODE;
	t->region = &f->dst;
	t->in = in;
	t->in_bytes = t->info.encoded_bytes;
	t->in_place = in_place;
	t->expect_xxh3 = t->info.raw_xxh3;
	return t;
}

void sim_rig_start(struct sim_rig *f, struct device_task *t)
{
	assert_int_equal(f->dev->ops->start(f->dev, t), 0);
}

/* Poll, sleeping as a lane does, until n tasks came back. */
void sim_rig_collect(struct sim_rig *f, unsigned n)
{
	uint64_t until = clock_now_ns() / CLOCK_NS_PER_MS + 20000;

	while (n > 0) {
		struct device_task *done[7];
		unsigned got = f->dev->ops->poll(f->dev, done, n < 7 ? n : 7);

		for (unsigned i = 0; i < got; i++)
			(*(unsigned *)done[i]->user)++;
		assert_true(got <= n);
		n -= got;
		assert_true(clock_now_ns() / CLOCK_NS_PER_MS < until);
		if (n > 0 && got == 0 && f->dev->ops->arm(f->dev)) {
			struct pollfd p = { .fd = f->wake_fd, .events = POLLIN };
			uint64_t v;

			assert_int_equal(poll(&p, 1, 20000), 1);
			assert_int_equal(read(f->wake_fd, &v, 8), 8);
			f->dev->ops->disarm(f->dev);
		}
	}
}

/* Nothing comes back for a while. */
void sim_rig_collect_none(struct sim_rig *f, unsigned ms)
{
	uint64_t until = clock_now_ns() / CLOCK_NS_PER_MS + ms;

	while (clock_now_ns() / CLOCK_NS_PER_MS < until) {
		struct device_task *done[1];

		assert_int_equal(f->dev->ops->poll(f->dev, done, 1), 0);
	}
}

void sim_rig_all_once(struct sim_rig *f, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++) {
		assert_int_equal(f->completions[i], 1);
		f->completions[i] = 0;
	}
	sim_rig_collect_none(f, 0);
}

void sim_rig_all_ok(struct sim_rig *f, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		assert_int_equal(f->task[i].res, 0);
	sim_rig_all_once(f, first, n);
}
