/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cpu_device.c - the CPU device, the region check and the fault device, from a lane's side: every
 * started task completes exactly once, sleeping lanes are woken, free drains.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/util/clock.h"
#include "gpu/device.h"
#include "tests/lib/kv_data.h"

#define BLOCKS 8u
#define TASKS 64u
#define WAIT_MS 120000u /* a machine may be busy */

struct fixture {
	struct codec_geometry g;
	struct codec_stride stride[4];
	uint64_t block_stride[4];
	struct device_region src, dst;
	uint8_t *src_mem, *dst_mem;
	size_t mem_bytes;
	int wake_fd;
	struct device *dev;
	struct device_task task[TASKS];
	uint8_t *out[TASKS];
	unsigned completions[TASKS];
};

static void device_setup(struct fixture *f, unsigned workers, uint64_t spin_ns)
{
	struct codec_segment seg[4];

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
	/* [segment][block][token][head][dim], as a paged cache lies. */
	for (unsigned i = 0; i < 4; i++) {
		f->stride[i] = (struct codec_stride){
			.off = (uint64_t)i * BLOCKS * 4096u,
			.token_stride = 256,
			.head_stride = 128,
		};
		f->block_stride[i] = 4096;
	}
	f->mem_bytes = (size_t)4 * BLOCKS * 4096;
	f->src_mem = malloc(f->mem_bytes);
	f->dst_mem = calloc(1, f->mem_bytes);
	assert_true(f->src_mem && f->dst_mem);
	kv_data_fill_any(f->src_mem, f->mem_bytes);
	assert_int_equal(device_region_init(&f->src, &f->g, f->src_mem, f->mem_bytes, BLOCKS,
					    f->stride, f->block_stride),
			 0);
	assert_int_equal(device_region_init(&f->dst, &f->g, f->dst_mem, f->mem_bytes, BLOCKS,
					    f->stride, f->block_stride),
			 0);
	for (unsigned i = 0; i < TASKS; i++) {
		f->out[i] = malloc(codec_bound(&f->g));
		assert_non_null(f->out[i]);
	}
	f->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	assert_true(f->wake_fd >= 0);
	assert_int_equal(cpu_device_new(workers, TASKS, f->wake_fd, spin_ns, &f->dev), 0);
}

static void device_teardown(struct fixture *f)
{
	if (f->dev)
		f->dev->ops->free(f->dev);
	for (unsigned i = 0; i < TASKS; i++)
		free(f->out[i]);
	device_region_deinit(&f->src);
	device_region_deinit(&f->dst);
	codec_geometry_deinit(&f->g);
	free(f->src_mem);
	free(f->dst_mem);
	close(f->wake_fd);
}

static struct device_task *encode_task(struct fixture *f, unsigned i)
{
	struct device_task *t = &f->task[i];

	*t = (struct device_task){
		.op = DEVICE_ENCODE,
		.region = &f->src,
		.block_index = i % BLOCKS,
		.speculator = CODEC_SPEC_CHANNEL,
		.verify = 1,
		.out = f->out[i],
		.out_cap_bytes = codec_bound(&f->g),
		.user = &f->completions[i],
	};
	return t;
}

static struct device_task *decode_task(struct fixture *f, unsigned i)
{
	struct device_task *t = &f->task[i];
	struct codec_info info = t->info;

	*t = (struct device_task){
		.op = DEVICE_DECODE,
		.region = &f->dst,
		.block_index = i % BLOCKS,
		.in = f->out[i],
		.in_bytes = info.encoded_bytes,
		.expect_xxh3 = info.raw_xxh3,
		.user = &f->completions[i],
	};
	return t;
}

/* Poll, sleeping as a lane does, until n tasks came back. */
static void collect(struct fixture *f, unsigned n)
{
	uint64_t until = clock_now_ns() / CLOCK_NS_PER_MS + WAIT_MS;

	while (n > 0) {
		struct device_task *done[7];
		unsigned got = f->dev->ops->poll(f->dev, done, 7);

		for (unsigned i = 0; i < got; i++)
			(*(unsigned *)done[i]->user)++;
		assert_true(got <= n);
		n -= got;
		assert_true(clock_now_ns() / CLOCK_NS_PER_MS < until);
		if (got == 0 && f->dev->ops->arm(f->dev)) {
			struct pollfd p = { .fd = f->wake_fd, .events = POLLIN };
			uint64_t v;

			assert_int_equal(poll(&p, 1, (int)WAIT_MS), 1);
			assert_int_equal(read(f->wake_fd, &v, 8), 8);
			f->dev->ops->disarm(f->dev);
		}
	}
}

static void all_once(struct fixture *f, unsigned n)
{
	struct device_task *done[4];

	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(f->completions[i], 1);
		f->completions[i] = 0;
	}
	assert_int_equal(f->dev->ops->poll(f->dev, done, 4), 0);
}

static void test_round_trip(void **state)
{
	struct fixture f;

	(void)state;
	device_setup(&f, 2, 20000);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < TASKS; i++)
			assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, i)), 0);
		collect(&f, TASKS);
		all_once(&f, TASKS);
		for (unsigned i = 0; i < TASKS; i++)
			assert_int_equal(f.task[i].res, 0);
		memset(f.dst_mem, 0xee, f.mem_bytes);
		for (unsigned i = 0; i < BLOCKS; i++)
			assert_int_equal(f.dev->ops->start(f.dev, decode_task(&f, i)), 0);
		collect(&f, BLOCKS);
		all_once(&f, BLOCKS);
		for (unsigned i = 0; i < BLOCKS; i++) {
			assert_int_equal(f.task[i].res, 0);
			assert_int_equal(atomic_load(&f.task[i].segments_done), 4);
		}
		assert_memory_equal(f.src_mem, f.dst_mem, f.mem_bytes);
	}
	device_teardown(&f);
}

static void test_full_is_refused(void **state)
{
	struct fixture f;
	struct device_task extra = { .op = DEVICE_OP_COUNT };

	(void)state;
	device_setup(&f, 1, 0);
	assert_int_equal(f.dev->ops->start(f.dev, &extra), -EINVAL);
	for (unsigned i = 0; i < TASKS; i++)
		assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, i)), 0);
	extra.op = DEVICE_ENCODE;
	extra.region = &f.src;
	assert_int_equal(f.dev->ops->start(f.dev, &extra), -EAGAIN);
	collect(&f, TASKS);
	all_once(&f, TASKS);
	device_teardown(&f);
}

static void test_arm_sees_what_is_done(void **state)
{
	struct fixture f;
	struct device_task *done[1];
	uint64_t until = clock_now_ns() / CLOCK_NS_PER_MS + WAIT_MS;
	int armed;

	(void)state;
	device_setup(&f, 1, 0);
	assert_int_equal(f.dev->ops->arm(f.dev), 1);
	f.dev->ops->disarm(f.dev);
	assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, 0)), 0);
	/* Not armed: no signal, however long ago it completed; then arm() must refuse to sleep. */
	do {
		armed = f.dev->ops->arm(f.dev);
		if (armed)
			f.dev->ops->disarm(f.dev);
		assert_true(clock_now_ns() / CLOCK_NS_PER_MS < until);
	} while (armed);
	assert_int_equal(f.dev->ops->arm(f.dev), 0);
	assert_int_equal(f.dev->ops->poll(f.dev, done, 1), 1);
	assert_int_equal(f.dev->ops->arm(f.dev), 1);
	device_teardown(&f);
}

static void test_free_drains(void **state)
{
	struct fixture f;

	(void)state;
	device_setup(&f, 2, 0);
	for (unsigned i = 0; i < TASKS; i++)
		assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, i)), 0);
	f.dev = f.dev->ops->free(f.dev);
	assert_null(f.dev);
	for (unsigned i = 0; i < TASKS; i++) {
		assert_int_equal(f.task[i].res, 0);
		assert_true(f.task[i].info.encoded_bytes > 0);
	}
	device_teardown(&f);
}

static void test_skip_tokens(void **state)
{
	struct fixture f;

	(void)state;
	device_setup(&f, 1, 0);
	assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, 0)), 0);
	collect(&f, 1);
	memset(f.dst_mem, 0xee, f.mem_bytes);
	decode_task(&f, 0)->skip_tokens = 5;
	assert_int_equal(f.dev->ops->start(f.dev, &f.task[0]), 0);
	collect(&f, 1);
	assert_int_equal(f.task[0].res, 0);
	for (unsigned s = 0; s < 4; s++)
		for (unsigned i = 0; i < 4096; i++) {
			size_t at = f.stride[s].off + i;

			assert_int_equal(f.dst_mem[at], i < 5 * 256 ? 0xee : f.src_mem[at]);
		}
	device_teardown(&f);
}

static void test_fit_then_channel(void **state)
{
	struct fixture f;
	struct codec_fit *fit = NULL;
	struct device_task t = { .op = DEVICE_FIT };
	uint8_t *sample;
	unsigned once = 0;

	(void)state;
	device_setup(&f, 2, 0);
	sample = malloc(f.g.raw_bytes * BLOCKS);
	assert_non_null(sample);
	for (unsigned i = 0; i < BLOCKS; i++) {
		f.task[i] = (struct device_task){
			.op = DEVICE_COPY_OUT,
			.region = &f.src,
			.block_index = i,
			.out = sample + i * f.g.raw_bytes,
			.out_cap_bytes = f.g.raw_bytes,
			.user = &f.completions[i],
		};
		assert_int_equal(f.dev->ops->start(f.dev, &f.task[i]), 0);
	}
	collect(&f, BLOCKS);
	all_once(&f, BLOCKS);
	for (unsigned b = 0; b < BLOCKS; b++)
		for (unsigned s = 0; s < 4; s++)
			assert_memory_equal(sample + b * f.g.raw_bytes + s * 4096u,
					    f.src_mem + (s * BLOCKS + b) * 4096u, 4096);
	assert_int_equal(codec_fit_new(&f.g, &fit), 0);
	t.geom = &f.g;
	t.fit = fit;
	t.in = sample;
	t.in_bytes = f.g.raw_bytes * BLOCKS;
	t.samples_count = BLOCKS;
	t.fit_finish = 1;
	t.user = &once;
	assert_int_equal(f.dev->ops->start(f.dev, &t), 0);
	collect(&f, 1);
	assert_int_equal(once, 1);
	assert_int_equal(t.res, 0);
	assert_non_null(t.ret_profile);
	assert_int_equal(codec_fit_tokens(fit), 16 * BLOCKS);

	encode_task(&f, 0)->profile = t.ret_profile;
	assert_int_equal(f.dev->ops->start(f.dev, &f.task[0]), 0);
	collect(&f, 1);
	assert_int_equal(f.task[0].res, 0);
	assert_int_equal(f.task[0].info.speculator, CODEC_SPEC_CHANNEL);
	assert_int_equal(f.task[0].info.chunks_raw, 0);
	decode_task(&f, 0)->profile = t.ret_profile;
	assert_int_equal(f.dev->ops->start(f.dev, &f.task[0]), 0);
	collect(&f, 1);
	assert_int_equal(f.task[0].res, 0);
	codec_profile_free(t.ret_profile);
	codec_fit_free(fit);
	free(sample);
	device_teardown(&f);
}

/* Layer 1 is layer 0, mixed, and a little noise; enough samples, and the fit sees it. */
static void fill_samples(uint16_t *out, uint32_t blocks)
{
	uint64_t state = 88172645463325252u;

	for (uint32_t b = 0; b < blocks; b++, out += 4u * 16u * 128u)
		for (uint32_t i = 0; i < 4u * 16u * 128u; i++) {
			uint32_t bits, row = i / 128u, c = i % 128u;
			float v, before;

			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			v = (float)(state >> 40) / 8388608.0f - 1.0f;
			if (row >= 32u) { /* the second layer */
				bits = (uint32_t)out[i - 32u * 128u - c + (c * 5u + 3u) % 128u]
				       << 16;
				memcpy(&before, &bits, sizeof(before));
				v = before + 0.02f * v;
			}
			memcpy(&bits, &v, sizeof(bits));
			out[i] = (uint16_t)(bits >> 16);
		}
}

static void layer_task(struct fixture *f, struct device_task *t, const struct codec_profile *base,
		       const void *samples, uint32_t *positions, uint32_t count, unsigned *once)
{
	*t = (struct device_task){
		.op = DEVICE_FIT_LAYER,
		.geom = &f->g,
		.profile = base,
		.in = samples,
		.in_bytes = f->g.raw_bytes * count,
		.samples_count = count,
		.positions = positions,
		.previous = 1,
		.user = once,
	};
}

static void test_layer_maps_are_fitted(void **state)
{
	enum { SAMPLES = 80 };
	static uint32_t positions[SAMPLES];
	struct codec_segment seg[4];
	struct codec_profile *base;
	struct codec_fit *fit = NULL;
	struct device_task t = { .op = DEVICE_FIT };
	struct fixture f;
	unsigned once = 0;
	uint8_t *samples;

	(void)state;
	device_setup(&f, 1, 0);
	/* To find how keys were turned takes seconds, however few there are: let there be none. */
	memcpy(seg, f.g.segments, sizeof(seg));
	seg[0].kind = seg[2].kind = CODEC_KIND_V;
	codec_geometry_deinit(&f.g);
	assert_int_equal(codec_geometry_init(&f.g, 16, seg, 4), 0);
	cpu_device_priority(f.dev, DEVICE_PRIORITY_NORMAL);
	samples = malloc(SAMPLES * f.g.raw_bytes);
	assert_non_null(samples);
	fill_samples((uint16_t *)samples, SAMPLES);
	for (uint32_t i = 0; i < SAMPLES; i++)
		positions[i] = i % 8 == 7 ? CODEC_POSITION_UNKNOWN : i * 16;
	assert_int_equal(codec_fit_new(&f.g, &fit), 0);
	t.geom = &f.g;
	t.fit = fit;
	t.in = samples;
	t.in_bytes = f.g.raw_bytes * SAMPLES;
	t.samples_count = SAMPLES;
	t.positions = positions;
	t.fit_finish = 1;
	t.user = &once;
	assert_int_equal(f.dev->ops->start(f.dev, &t), 0);
	collect(&f, 1);
	assert_int_equal(t.res, 0);
	assert_non_null(t.ret_profile);
	assert_true(t.bits_channel > 1 && t.bits_channel < 17);
	assert_int_equal(t.samples_kept, SAMPLES - SAMPLES / 8); /* and these moved together */
	for (uint32_t i = 0; i < t.samples_kept; i++)
		assert_int_equal(positions[i], (i + i / 7) * 16);
	base = t.ret_profile;

	layer_task(&f, &t, base, samples, positions, SAMPLES - SAMPLES / 8, &once);
	assert_int_equal(f.dev->ops->start(f.dev, &t), 0);
	collect(&f, 1);
	assert_int_equal(t.res, 0);
	assert_non_null(t.ret_profile);
	assert_true(t.bits_layer < t.bits_channel - 0.5);
	assert_int_equal(codec_profile_layer(t.ret_profile).previous, 1);
	codec_profile_free(t.ret_profile);

	/* Told to stop, and told of too little. */
	layer_task(&f, &t, base, samples, positions, SAMPLES - SAMPLES / 8, &once);
	atomic_store(&t.cancel, 1);
	assert_int_equal(f.dev->ops->start(f.dev, &t), 0);
	collect(&f, 1);
	assert_int_equal(t.res, -ECANCELED);
	assert_null(t.ret_profile);
	layer_task(&f, &t, base, samples, positions, 3, &once);
	assert_int_equal(f.dev->ops->start(f.dev, &t), 0);
	collect(&f, 1);
	assert_int_equal(t.res, -ENODATA);
	codec_profile_free(base);
	codec_fit_free(fit);
	free(samples);
	device_teardown(&f);
}

static int region(struct fixture *f, uint64_t bytes, uint32_t blocks)
{
	struct device_region r;
	int res = device_region_init(&r, &f->g, f->src_mem, bytes, blocks, f->stride,
				     f->block_stride);

	if (res == 0)
		device_region_deinit(&r);
	return res;
}

static void test_region_bounds(void **state)
{
	struct fixture f;

	(void)state;
	device_setup(&f, 1, 0);
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), 0);
	assert_int_equal(region(&f, f.mem_bytes - 1, BLOCKS), -ERANGE);
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS + 1), -ERANGE);
	/* Long enough, but each segment runs into the next. */
	assert_int_equal(region(&f, f.mem_bytes + 4096, BLOCKS + 1), -EINVAL);
	assert_int_equal(region(&f, f.mem_bytes, 0), -EINVAL);
	assert_int_equal(region(&f, 0, BLOCKS), -EINVAL);
	f.stride[3].off += 1;
	assert_int_equal(region(&f, f.mem_bytes + 64, BLOCKS), -EINVAL);
	f.stride[3].off += 1;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -ERANGE);
	assert_int_equal(region(&f, f.mem_bytes + 2, BLOCKS), 0);
	f.stride[3].off = UINT64_MAX - 1;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -ERANGE);
	f.stride[3].off = 0;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -EINVAL); /* twice the same bytes */
	f.stride[3].off = 3 * BLOCKS * 4096u;
	f.stride[3].token_stride = 254;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -EINVAL); /* rows overlap */
	f.stride[3].token_stride = 0;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -EINVAL);
	f.stride[3].token_stride = UINT64_MAX - 1;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -ERANGE);
	f.stride[3].token_stride = UINT64_MAX / 15 + 1; /* 15 of them wrap to 14 */
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -ERANGE);
	f.stride[3].token_stride = 256;
	f.block_stride[3] = 4094;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -EINVAL);
	device_teardown(&f);
}

/* Layouts that engines use: all segments of a block together; K and V interleaved by token or head. */
static void test_region_layouts(void **state)
{
	struct fixture f;

	(void)state;
	device_setup(&f, 1, 0);
	for (unsigned i = 0; i < 4; i++) {
		f.stride[i].off = i * 4096u;
		f.block_stride[i] = 4 * 4096;
	}
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), 0);
	for (unsigned i = 0; i < 4; i++) { /* [block][token][segment][head][dim] */
		f.stride[i].off = i * 256u;
		f.stride[i].token_stride = 1024;
	}
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), 0);
	f.stride[2].off -= 2;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -EINVAL);
	f.stride[2].off += 2;
	for (unsigned i = 0; i < 4; i++) { /* [block][token][head][segment][dim] */
		f.stride[i].off = i * 128u;
		f.stride[i].head_stride = 512;
	}
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), 0);
	for (unsigned i = 0; i < 4; i++) /* blocks so close that the last rows meet */
		f.block_stride[i] = 15 * 1024 + 512 + 128;
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), -EINVAL);
	for (unsigned i = 0; i < 4; i++) { /* [block][segment][head][token][dim] */
		f.stride[i].off = i * 4096u;
		f.stride[i].head_stride = 16 * 128;
		f.stride[i].token_stride = 128;
		f.block_stride[i] = 4 * 4096;
	}
	assert_int_equal(region(&f, f.mem_bytes, BLOCKS), 0);
	device_teardown(&f);
}

static void test_fault_spec(void **state)
{
	static const char *const bad[] = { "",
					   ",",
					   "encode",
					   "encode:",
					   "encode:what",
					   "eject:eio",
					   "encode:eio:every=0",
					   "encode:eio:every=",
					   "encode:eio:each=2",
					   "encode:delay_ms=",
					   "encode:delay_ms=-1",
					   "decode:delay_ms=1x",
					   "fit:corrupt",
					   "encode:eio:every=2:x",
					   "copy:stall_ms=600001" };
	struct fixture f;

	(void)state;
	device_setup(&f, 1, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct device *d = NULL;

		assert_int_equal(fault_device_new(f.dev, bad[i], &d), -EINVAL);
		assert_null(d);
	}
	device_teardown(&f);
}

static void fault_setup(struct fixture *f, const char *spec)
{
	device_setup(f, 2, 0);
	assert_int_equal(fault_device_new(f->dev, spec, &f->dev), 0);
}

static void test_fault_errors(void **state)
{
	struct fixture f;
	unsigned eio = 0, enomem = 0;

	(void)state;
	fault_setup(&f, "encode:eio:every=7,encode:enomem:every=10");
	for (unsigned i = 0; i < 30; i++)
		assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, i)), 0);
	collect(&f, 30);
	all_once(&f, 30);
	for (unsigned i = 0; i < 30; i++) {
		eio += f.task[i].res == -EIO;
		enomem += f.task[i].res == -ENOMEM;
	}
	assert_int_equal(eio, 4);
	assert_int_equal(enomem, 3);
	device_teardown(&f);
}

static void test_fault_corrupt(void **state)
{
	struct fixture f;
	const void *in;

	(void)state;
	fault_setup(&f, "decode:corrupt:every=2,encode:corrupt:every=3");
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, i)), 0);
		collect(&f, 1);
		assert_int_equal(f.task[i].res, 0);
	}
	in = decode_task(&f, 0)->in;
	decode_task(&f, 1);
	decode_task(&f, 2);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(f.dev->ops->start(f.dev, &f.task[i]), 0);
		collect(&f, 1);
	}
	assert_int_equal(f.task[0].res, 0);
	assert_int_equal(f.task[1].res, -EBADMSG); /* spoilt on the way in */
	assert_int_equal(f.task[2].res, -EBADMSG); /* spoilt on the way out */
	assert_ptr_equal(f.task[0].in, in);
	assert_ptr_equal(f.task[1].in, f.out[1]);
	device_teardown(&f);
}

static void test_fault_delay_and_stall(void **state)
{
	struct fixture f;
	uint64_t begin;

	(void)state;
	fault_setup(&f, "encode:delay_ms=60,decode:stall_ms=60:every=2");
	begin = clock_now_ns() / CLOCK_NS_PER_MS;
	assert_int_equal(f.dev->ops->start(f.dev, encode_task(&f, 0)), 0);
	collect(&f, 1);
	assert_true(clock_now_ns() / CLOCK_NS_PER_MS - begin >= 60);
	assert_int_equal(f.dev->ops->start(f.dev, decode_task(&f, 0)), 0);
	collect(&f, 1);
	begin = clock_now_ns() / CLOCK_NS_PER_MS;
	f.task[0].info.encoded_bytes = f.task[0].in_bytes;
	assert_int_equal(f.dev->ops->start(f.dev, &f.task[0]), 0);
	collect(&f, 1);
	assert_true(clock_now_ns() / CLOCK_NS_PER_MS - begin >= 59);
	assert_int_equal(f.task[0].res, 0);
	device_teardown(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_full_is_refused),
		cmocka_unit_test(test_arm_sees_what_is_done),
		cmocka_unit_test(test_free_drains),
		cmocka_unit_test(test_skip_tokens),
		cmocka_unit_test(test_fit_then_channel),
		cmocka_unit_test(test_layer_maps_are_fitted),
		cmocka_unit_test(test_region_bounds),
		cmocka_unit_test(test_region_layouts),
		cmocka_unit_test(test_fault_spec),
		cmocka_unit_test(test_fault_errors),
		cmocka_unit_test(test_fault_corrupt),
		cmocka_unit_test(test_fault_delay_and_stall),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
