/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sim_device.c - the simulated GPU from a lane's and an engine's side: imports, staging, moves, ready
 * events, cancelling, the background share, death.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gpu/sim_handles.h"

#define BLOCKS 8u
#define TASKS 64u
#define MEMORY_BYTES ((uint64_t)4 * BLOCKS * 4096u)
#define POOL_BYTES (1u << 20)

struct fixture {
	struct codec_geometry g;
	struct codec_profile *profile;
	int wake_fd, src_fd, dst_fd, event_fd;
	struct device *dev;
	uint8_t *src_mem, *dst_mem; /* the engine's own mappings */
	struct device_memory *src_memory, *dst_memory;
	struct device_region src, dst;
	struct sim_event_words *event_words;
	struct device_event *event;
	uint8_t *pool; /* an address of the device */
	struct device_task task[TASKS];
	uint8_t *host[TASKS];
	unsigned completions[TASKS];
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

static void memory_fill(uint8_t *mem, size_t bytes)
{
	uint64_t x = 88172645463325252u;

	/* bf16 of magnitude about one: the top byte of each element is narrow. */
	for (size_t i = 0; i + 1 < bytes; i += 2) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		mem[i] = (uint8_t)x;
		mem[i + 1] = (uint8_t)(0x3f - (x >> 8 & 1) + (x >> 2 & 0x80));
	}
}

static int memfd_new(uint64_t bytes, unsigned seals)
{
	int fd = memfd_create("engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static void *memfd_view(int fd, uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static void handle_fill(uint8_t *handle, uint32_t magic, int pid, int fd)
{
	struct sim_handle h = { .magic = magic, .pid = pid, .fd = fd };

	memcpy(handle, &h, sizeof(h));
}

static struct device_import import_of(int fd)
{
	struct device_import im = {
		.type = DEVICE_MEMORY_POSIX_FD,
		.fd = fd,
		.allocation_bytes = MEMORY_BYTES,
	};

	memcpy(im.uuid, SIM_UUID, DEVICE_UUID_BYTES);
	return im;
}

/* [segment][block][token][head][dim], as a paged cache lies. */
static void region_make(struct fixture *f, struct device_region *r, const struct device_import *im,
			struct device_memory **ret_memory)
{
	struct codec_stride stride[4];
	uint64_t block_stride[4];
	char err[DEVICE_ERR_BYTES] = "";
	void *base = NULL;

	assert_int_equal(f->dev->import->memory_open(f->dev, im, ret_memory, &base, err), 0);
	for (unsigned i = 0; i < 4; i++) {
		stride[i] = (struct codec_stride){
			.off = (uint64_t)i * BLOCKS * 4096u,
			.token_stride = 256,
			.head_stride = 128,
		};
		block_stride[i] = 4096;
	}
	assert_int_equal(device_region_init(r, &f->g, base, MEMORY_BYTES, BLOCKS, stride,
					    block_stride),
			 0);
	assert_int_equal(f->dev->import->region_open(f->dev, r), 0);
}

static void region_drop(struct fixture *f, struct device_region *r, struct device_memory *memory)
{
	f->dev->import->region_close(f->dev, r);
	device_region_deinit(r);
	f->dev->import->memory_close(f->dev, memory);
}

static void profile_make(struct fixture *f)
{
	struct codec_fit *fit = NULL;

	assert_int_equal(codec_fit_new(&f->g, &fit), 0);
	for (unsigned i = 0; i < BLOCKS; i++) {
		struct codec_view v = { .base = f->src_mem, .block_index = i };

		codec_fit_add(fit, &v);
	}
	assert_int_equal(codec_fit_finish(fit, &f->profile), 0);
	codec_fit_free(fit);
}

static void event_make(struct fixture *f)
{
	uint8_t handle[DEVICE_HANDLE_BYTES];
	char err[DEVICE_ERR_BYTES] = "";

	f->event_fd = memfd_new(SIM_EVENT_BYTES, F_SEAL_SHRINK);
	f->event_words = memfd_view(f->event_fd, SIM_EVENT_BYTES);
	handle_fill(handle, SIM_EVENT_MAGIC, getpid(), f->event_fd);
	assert_int_equal(f->dev->import->event_open(f->dev, handle, &f->event, err), 0);
}

static void setup(struct fixture *f, unsigned staged_blocks, unsigned background_percent)
{
	struct gpu_device_options o = { .which = "auto", .tasks_max = TASKS };
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
	f->src_fd = memfd_new(MEMORY_BYTES, F_SEAL_SHRINK | F_SEAL_GROW);
	f->dst_fd = memfd_new(MEMORY_BYTES, F_SEAL_SHRINK);
	f->src_mem = memfd_view(f->src_fd, MEMORY_BYTES);
	f->dst_mem = memfd_view(f->dst_fd, MEMORY_BYTES);
	memory_fill(f->src_mem, MEMORY_BYTES);
	im = import_of(f->src_fd);
	region_make(f, &f->src, &im, &f->src_memory);
	im = import_of(f->dst_fd);
	region_make(f, &f->dst, &im, &f->dst_memory);
	profile_make(f);
	event_make(f);
	assert_int_equal(f->dev->ops->pool_memory(f->dev, POOL_BYTES, &pool), 0);
	f->pool = pool;
	for (unsigned i = 0; i < TASKS; i++) {
		f->host[i] = calloc(1, codec_bound(&f->g));
		assert_non_null(f->host[i]);
	}
}

static void teardown(struct fixture *f)
{
	region_drop(f, &f->src, f->src_memory);
	region_drop(f, &f->dst, f->dst_memory);
	f->dev->import->event_close(f->dev, f->event);
	f->dev->ops->free(f->dev);
	for (unsigned i = 0; i < TASKS; i++)
		free(f->host[i]);
	munmap(f->src_mem, MEMORY_BYTES);
	munmap(f->dst_mem, MEMORY_BYTES);
	munmap(f->event_words, SIM_EVENT_BYTES);
	close(f->src_fd);
	close(f->dst_fd);
	close(f->event_fd);
	close(f->wake_fd);
	codec_profile_free(f->profile);
	codec_geometry_deinit(&f->g);
}

static struct device_task *encode_task(struct fixture *f, unsigned i)
{
	f->task[i] = (struct device_task){
		.op = DEVICE_ENCODE,
		.region = &f->src,
		.block_index = i % BLOCKS,
		.profile = f->profile,
		.speculator = CODEC_SPEC_CHANNEL,
		.verify = 1,
		.user = &f->completions[i],
	};
	return &f->task[i];
}

/* Task i, an ENCODE, has completed: its payload goes to memory of the host. */
static struct device_task *move_task(struct fixture *f, unsigned i, void *out, uint8_t out_place)
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

static struct device_task *decode_task(struct fixture *f, unsigned i, const void *in,
				       uint8_t in_place)
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

static void start(struct fixture *f, struct device_task *t)
{
	assert_int_equal(f->dev->ops->start(f->dev, t), 0);
}

/* Poll, sleeping as a lane does, until n tasks came back. */
static void collect(struct fixture *f, unsigned n)
{
	uint64_t until = now_ms() + 20000;

	while (n > 0) {
		struct device_task *done[7];
		unsigned got = f->dev->ops->poll(f->dev, done, 7);

		for (unsigned i = 0; i < got; i++)
			(*(unsigned *)done[i]->user)++;
		assert_true(got <= n);
		n -= got;
		assert_true(now_ms() < until);
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
static void collect_none(struct fixture *f, unsigned ms)
{
	uint64_t until = now_ms() + ms;

	while (now_ms() < until) {
		struct device_task *done[1];

		assert_int_equal(f->dev->ops->poll(f->dev, done, 1), 0);
	}
}

static void all_once(struct fixture *f, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++) {
		assert_int_equal(f->completions[i], 1);
		f->completions[i] = 0;
	}
	collect_none(f, 0);
}

static void all_ok(struct fixture *f, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		assert_int_equal(f->task[i].res, 0);
	all_once(f, first, n);
}

static void test_staged_round_trip(void **state)
{
	struct fixture f;

	(void)state;
	setup(&f, TASKS, 100);
	for (unsigned round = 0; round < 10; round++) {
		memset(f.dst_mem, 0xee, MEMORY_BYTES);
		for (unsigned i = 0; i < TASKS; i++)
			start(&f, encode_task(&f, i));
		collect(&f, TASKS);
		all_ok(&f, 0, TASKS);
		for (unsigned i = 0; i < TASKS; i++) {
			assert_int_equal(f.task[i].info.speculator, CODEC_SPEC_CHANNEL);
			assert_int_equal(f.task[i].info.chunks_raw, 0);
			start(&f, move_task(&f, i, f.host[i], DEVICE_PLACE_HOST));
		}
		collect(&f, TASKS);
		all_ok(&f, 0, TASKS);
		for (unsigned i = 0; i < BLOCKS; i++) {
			assert_int_equal(f.dev->ops->can_decode(f.dev, &f.g, f.profile, f.host[i],
								f.task[i].info.encoded_bytes),
					 1);
			start(&f, decode_task(&f, i, f.host[i], DEVICE_PLACE_HOST));
		}
		collect(&f, BLOCKS);
		all_ok(&f, 0, BLOCKS);
		assert_int_equal(atomic_load(&f.task[0].segments_done), 4);
		assert_memory_equal(f.src_mem, f.dst_mem, MEMORY_BYTES);
		for (unsigned i = 0; i < TASKS; i++)
			f.dev->ops->unstage(f.dev, f.task[i].staged);
	}
	teardown(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_staged_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
