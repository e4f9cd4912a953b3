/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cuda_device.c - the CUDA device's host code over a runtime that is not one: every task completes
 * exactly once with its own bytes, staging comes back, waiting and cancelled tasks hold up nobody, a
 * refusal is its own task's, a lost device completes everything, and nothing is leaked.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gpu/device.h"
#include "tests/lib/fake_cuda.h"

#define SEGMENTS 8u
#define BLOCKS 64u
#define STAGING (16u << 20)
#define POLLS_MAX 100000u
#define PROFILE ((const struct codec_profile *)&profile_stand_in)

static const char profile_stand_in; /* the fake looks at its address only */

int skvcd_cuda_device_new_v1(const struct gpu_device_options *options, struct device **ret_device,
			     char *err);

struct fixture {
	struct codec_geometry g;
	struct device_region region;
	uint8_t *pages, *host;
	size_t pitch; /* from one block to the next at host */
	struct device *dev;
	struct device_task task[BLOCKS], move[BLOCKS];
	unsigned completions[BLOCKS];
};

static int device_new(const char *which, struct device **ret_device, char *err)
{
	const struct gpu_device_options o = {
		.which = which,
		.tasks_max = 2u * BLOCKS,
		.wake_fd = -1,
		.staging_bytes = STAGING,
		.share_percent = 100,
		.background_percent = 50,
	};

	return skvcd_cuda_device_new_v1(&o, ret_device, err);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct codec_segment segments[SEGMENTS];
	struct codec_stride stride[SEGMENTS];
	uint64_t block_stride[SEGMENTS];
	char err[DEVICE_ERR_BYTES];

	assert_non_null(f);
	for (unsigned i = 0; i < SEGMENTS; i++)
		segments[i] = (struct codec_segment){
			.kind = CODEC_KIND_K,
			.dtype = CODEC_DTYPE_BF16,
			.layer = (uint16_t)i,
			.heads = 8,
			.head_dim = 128,
		};
	assert_int_equal(codec_geometry_init(&f->g, 16, segments, SEGMENTS), 0);
	for (unsigned i = 0; i < SEGMENTS; i++) {
		stride[i] = (struct codec_stride){
			.off = f->g.segment_off[i],
			.token_stride = 2048,
			.head_stride = 256,
		};
		block_stride[i] = f->g.raw_bytes;
	}
	f->pitch = (codec_bound(&f->g) + 63u) & ~(size_t)63u;
	f->pages = malloc(BLOCKS * f->g.raw_bytes);
	f->host = aligned_alloc(64, BLOCKS * f->pitch);
	assert_true(f->pages && f->host);
	srand(3);
	for (uint64_t i = 0; i < BLOCKS * f->g.raw_bytes; i++)
		f->pages[i] = (uint8_t)(rand() >> 7);
	assert_int_equal(device_region_init(&f->region, &f->g, f->pages, BLOCKS * f->g.raw_bytes,
					    BLOCKS, stride, block_stride),
			 0);
	fake_cuda = (struct fake_cuda){ .delay = 2 };
	assert_int_equal(device_new("auto", &f->dev, err), 0);
	assert_int_equal(f->dev->import->region_open(f->dev, &f->region), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	f->dev->import->region_close(f->dev, &f->region);
	assert_null(f->dev->ops->free(f->dev));
	assert_int_equal(fake_cuda.live, 0);
	device_region_deinit(&f->region);
	codec_geometry_deinit(&f->g);
	free(f->pages);
	free(f->host);
	free(f);
	return 0;
}

static void start(struct fixture *f, struct device_task *t)
{
	assert_int_equal(f->dev->ops->start(f->dev, t), 0);
}

/* Poll a number of times; how many tasks came back. */
static unsigned poll_times(struct fixture *f, unsigned times)
{
	struct device_task *done[8];
	unsigned n = 0;

	while (times-- > 0)
		n += f->dev->ops->poll(f->dev, done, 8);
	return n;
}

static void poll_until(struct fixture *f, unsigned tasks)
{
	unsigned n = 0;

	for (unsigned i = 0; n < tasks; i++) {
		assert_true(i < POLLS_MAX);
		n += poll_times(f, 1);
	}
	assert_int_equal(n, tasks);
}

static struct device_task encode_of(struct fixture *f, unsigned block)
{
	return (struct device_task){
		.op = DEVICE_ENCODE,
		.region = &f->region,
		.block_index = block,
		.speculator = CODEC_SPEC_CHANNEL,
		.profile = PROFILE,
		.verify = 1,
	};
}

/* Encode every block, move each payload out when it is there, give its place back. */
static void store_all(struct fixture *f)
{
	unsigned stored = 0;

	for (unsigned i = 0; i < BLOCKS; i++) {
		f->task[i] = encode_of(f, i);
		start(f, &f->task[i]);
	}
	for (unsigned polls = 0; stored < BLOCKS; polls++) {
		struct device_task *done[8];
		unsigned n = f->dev->ops->poll(f->dev, done, 8);

		assert_true(polls < POLLS_MAX);
		for (unsigned i = 0; i < n; i++) {
			struct device_task *t = done[i];

			assert_int_equal(t->res, 0);
			if (t->op == DEVICE_MOVE) {
				f->dev->ops->unstage(f->dev,
						     ((struct device_task *)t->user)->staged);
				stored++;
				continue;
			}
			f->completions[t->block_index]++;
			assert_non_null(t->staged);
			f->move[t->block_index] = (struct device_task){
				.op = DEVICE_MOVE,
				.copies_count = 1,
				.copy[0] = { .in = t->staged,
					     .out = f->host + t->block_index * f->pitch,
					     .bytes = t->info.encoded_bytes,
					     .in_place = DEVICE_PLACE_DEVICE,
					     .out_place = DEVICE_PLACE_HOST },
				.user = t,
			};
			start(f, &f->move[t->block_index]);
		}
	}
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(f->completions[i], 1);
}

static void test_store_and_load(void **state)
{
	struct fixture *f = *state;
	uint64_t bytes = f->g.raw_bytes;
	uint8_t *before = malloc(BLOCKS * bytes);
	bool progress = false;

	assert_non_null(before);
	memcpy(before, f->pages, BLOCKS * bytes);
	store_all(f);
	assert_true(fake_cuda.batch_tasks_most > 4); /* together */
	assert_int_equal(f->dev->ops->arm(f->dev), 1);
	memset(f->pages, 0, BLOCKS * bytes);
	for (unsigned i = 0; i < BLOCKS; i++) {
		uint64_t hash = f->task[i].info.raw_xxh3;

		f->task[i] = (struct device_task){
			.op = DEVICE_DECODE,
			.region = &f->region,
			.block_index = i,
			.profile = PROFILE,
			.in = f->host + i * f->pitch,
			.in_bytes = bytes,
			.expect_xxh3 = i == 7 ? hash + 1 : hash, /* one is corrupt */
		};
		start(f, &f->task[i]);
	}
	for (unsigned done = 0, polls = 0; done < BLOCKS; polls++) {
		uint32_t segments = atomic_load(&f->task[0].segments_done);

		assert_true(polls < POLLS_MAX);
		progress |= segments > 0 && segments < SEGMENTS;
		done += poll_times(f, 1);
	}
	assert_true(progress);
	for (unsigned i = 0; i < BLOCKS; i++) {
		assert_int_equal(f->task[i].res, i == 7 ? -EBADMSG : 0);
		assert_true(f->task[i].busy_ns > 0);
	}
	assert_memory_equal(f->pages, before, BLOCKS * bytes);
	free(before);
}

/* What comes one by one while two batches are under way makes one batch, not one each. */
static void test_batches_grow(void **state)
{
	struct fixture *f = *state;

	fake_cuda.delay = 100;
	for (unsigned i = 0; i < 8; i++) {
		f->task[i] = encode_of(f, i);
		start(f, &f->task[i]);
		assert_int_equal(poll_times(f, 1), 0);
		assert_int_equal(fake_cuda.batches, i < 2 ? i + 1 : 2);
	}
	assert_int_equal(f->dev->ops->arm(f->dev), 0); /* nobody may sleep on them */
	poll_until(f, 8);
	assert_int_equal(fake_cuda.batches, 3);
	assert_int_equal(fake_cuda.batch_tasks_most, 6);
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(f->task[i].res, 0);
		f->dev->ops->unstage(f->dev, f->task[i].staged);
	}
}

static void test_copies(void **state)
{
	struct fixture *f = *state;
	uint64_t bytes = f->g.raw_bytes;

	for (unsigned i = 0; i < BLOCKS / 2; i++) {
		f->task[i] = (struct device_task){ .op = DEVICE_COPY_OUT,
						   .region = &f->region,
						   .block_index = i,
						   .out = f->host + i * f->pitch,
						   .out_cap_bytes = bytes };
		start(f, &f->task[i]);
	}
	poll_until(f, BLOCKS / 2);
	for (unsigned i = 0; i < BLOCKS / 2; i++) {
		assert_int_equal(f->task[i].res, 0);
		assert_memory_equal(f->host + i * f->pitch, f->pages + i * bytes, bytes);
		f->task[i] = (struct device_task){ .op = DEVICE_COPY_IN,
						   .region = &f->region,
						   .block_index = BLOCKS / 2 + i,
						   .in = f->host + i * f->pitch,
						   .background = 1 };
		start(f, &f->task[i]);
	}
	/* Within their share: it takes some time, but they all come. */
	for (unsigned done = 0, naps = 0; done < BLOCKS / 2; naps++) {
		assert_true(naps < 5000);
		done += poll_times(f, 10);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	assert_memory_equal(f->pages, f->pages + BLOCKS / 2 * bytes, BLOCKS / 2 * bytes);
	f->task[0] = (struct device_task){ .op = DEVICE_COPY_OUT,
					   .region = &f->region,
					   .out = f->host,
					   .out_cap_bytes = bytes - 1 };
	assert_int_equal(f->dev->ops->start(f->dev, &f->task[0]), -ENOSPC);
}

/* A payload in device memory is decoded where it lies, or copied when the kernels can not read it. */
static void test_decode_from_device(void **state)
{
	struct fixture *f = *state;
	uint64_t hash = fake_cuda_hash(f->pages, f->g.raw_bytes);

	for (unsigned off = 0; off < 2; off++) {
		memcpy(f->host + off, f->pages, f->g.raw_bytes);
		fake_cuda.copies = 0;
		f->task[0] = (struct device_task){ .op = DEVICE_DECODE,
						   .region = &f->region,
						   .block_index = 5,
						   .in = f->host + off,
						   .in_bytes = f->g.raw_bytes,
						   .in_place = DEVICE_PLACE_DEVICE,
						   .expect_xxh3 = hash };
		start(f, &f->task[0]);
		poll_until(f, 1);
		assert_int_equal(f->task[0].res, 0);
		assert_int_equal(fake_cuda.copies, off);
	}
}

static void test_refusals(void **state)
{
	struct fixture *f = *state;
	struct device_copy good = { .in = f->pages, .out = f->host, .bytes = 64, .in_place = 1 };

	for (unsigned i = 0; i < 3; i++) {
		f->move[i] = (struct device_task){ .op = DEVICE_MOVE, .copies_count = 1 };
		f->move[i].copy[0] = good;
		if (i == 1)
			f->move[i].copy[0].in = NULL;
		start(f, &f->move[i]);
	}
	poll_until(f, 3);
	assert_int_equal(f->move[0].res, 0);
	assert_int_equal(f->move[1].res, -EINVAL);
	assert_int_equal(f->move[2].res, 0);
	f->move[0].copy[0].in_place = DEVICE_PLACE_HOST;
	assert_int_equal(f->dev->ops->start(f->dev, &f->move[0]), -EINVAL);

	fake_cuda.launch_error = 701; /* cudaErrorLaunchOutOfResources */
	f->task[0] = encode_of(f, 0);
	start(f, &f->task[0]);
	poll_until(f, 1);
	assert_int_equal(f->task[0].res, -ENOMEM);
	assert_null(f->task[0].staged);
	assert_int_equal(f->dev->ops->dead(f->dev), 0);
	fake_cuda.launch_error = 0;
	f->task[0].speculator = CODEC_SPEC_GENERIC;
	assert_int_equal(f->dev->ops->start(f->dev, &f->task[0]), -EOPNOTSUPP);
	assert_int_equal(f->dev->ops->can_encode(f->dev, &f->g, PROFILE, CODEC_SPEC_GENERIC), 0);
	assert_int_equal(f->dev->ops->can_encode(f->dev, &f->g, NULL, CODEC_SPEC_CHANNEL), 0);
	assert_int_equal(f->dev->ops->can_encode(f->dev, &f->g, PROFILE, CODEC_SPEC_CHANNEL), 1);
	assert_int_equal(f->dev->ops->can_encode(f->dev, &f->g, NULL, CODEC_SPEC_RAW), 1);
	for (unsigned i = 0; i < f->dev->tasks_max; i++) {
		struct device_task *t = i < BLOCKS ? &f->task[i] : &f->move[i - BLOCKS];

		*t = encode_of(f, i % BLOCKS);
		start(f, t);
	}
	f->move[0].op = DEVICE_MOVE;
	assert_int_equal(f->dev->ops->start(f->dev, &(struct device_task){ .op = DEVICE_MOVE }),
			 -EINVAL);
	assert_int_equal(f->dev->ops->start(f->dev, &(struct device_task){ .op = DEVICE_MOVE,
									   .copies_count = 1,
									   .copy[0] = good }),
			 -EAGAIN);
}

static void test_ready_and_cancel(void **state)
{
	struct fixture *f = *state;
	const uint8_t handle[DEVICE_HANDLE_BYTES] = { 'e' };
	const uint8_t nonsense[DEVICE_HANDLE_BYTES] = { 'n' };
	char err[DEVICE_ERR_BYTES];
	struct device_event *ev;

	assert_int_equal(f->dev->import->event_open(f->dev, nonsense, &ev, err), -EINVAL);
	assert_int_equal(f->dev->import->event_open(f->dev, handle, &ev, err), 0);
	for (unsigned i = 0; i < 4; i++) {
		f->task[i] = encode_of(f, i);
		f->task[i].ready = i < 3 ? ev : NULL;
		start(f, &f->task[i]);
	}
	assert_int_equal(f->dev->ops->arm(f->dev), 0);
	/* Only the last one runs; then nothing is in the air and a lane may sleep. */
	assert_int_equal(poll_times(f, 50), 1);
	assert_non_null(f->task[3].staged);
	assert_int_equal(f->dev->ops->arm(f->dev), 1);
	assert_int_equal(f->dev->ops->cancel(f->dev, &f->task[1]), 1);
	assert_int_equal(f->dev->ops->arm(f->dev), 0);
	assert_int_equal(poll_times(f, 1), 1);
	assert_int_equal(f->task[1].res, -ECANCELED);
	assert_int_equal(f->dev->import->event_record(f->dev, ev), 0);
	poll_until(f, 2);
	assert_int_equal(f->task[0].res, 0);
	assert_int_equal(f->task[2].res, 0);
	for (unsigned i = 0; i < 4; i++)
		if (i != 1)
			f->dev->ops->unstage(f->dev, f->task[i].staged);

	/* What was launched runs to its end; what no poll has seen does not begin. */
	f->task[0] = encode_of(f, 0);
	start(f, &f->task[0]);
	assert_int_equal(poll_times(f, 1), 0);
	assert_int_equal(f->dev->ops->cancel(f->dev, &f->task[0]), 0);
	f->task[1] = encode_of(f, 1);
	start(f, &f->task[1]);
	assert_int_equal(f->dev->ops->cancel(f->dev, &f->task[1]), 1);
	poll_until(f, 2);
	assert_int_equal(f->task[0].res, 0);
	assert_int_equal(f->task[1].res, -ECANCELED);
	f->dev->ops->unstage(f->dev, f->task[0].staged);

	/* The last of an event's tasks taken out: the event may be closed. */
	(void)f->dev->import->event_close(f->dev, ev);
	assert_int_equal(f->dev->import->event_open(f->dev, handle, &ev, err), 0);
	f->task[0].ready = ev;
	start(f, &f->task[0]);
	assert_int_equal(f->dev->ops->cancel(f->dev, &f->task[0]), 1);
	f->dev->import->event_close(f->dev, ev);
	poll_until(f, 1);
}

/* Payloads that nobody fetches fill their area and no other; giving one back lets work go on. */
static void test_staging_full(void **state)
{
	struct fixture *f = *state;
	unsigned done, left = 0;

	for (unsigned i = 0; i < BLOCKS; i++) {
		f->task[i] = encode_of(f, i);
		start(f, &f->task[i]);
	}
	done = poll_times(f, 200);
	assert_true(done > 4 && done < BLOCKS);
	assert_int_equal(f->dev->ops->arm(f->dev), 1);
	f->move[0] =
		(struct device_task){ .op = DEVICE_COPY_IN, .region = &f->region, .in = f->host };
	start(f, &f->move[0]);
	poll_until(f, 1);
	while (done < BLOCKS) {
		unsigned more;

		for (; f->task[left].staged; left++)
			f->dev->ops->unstage(f->dev, f->task[left].staged);
		more = poll_times(f, 50);
		assert_true(more > 0);
		done += more;
	}
}

static void test_lost(void **state)
{
	struct fixture *f = *state;
	const uint8_t handle[DEVICE_HANDLE_BYTES] = { 'e' };
	char err[DEVICE_ERR_BYTES];
	struct device_event *ev;
	struct device_task staged = encode_of(f, 0);

	assert_int_equal(f->dev->import->event_open(f->dev, handle, &ev, err), 0);
	start(f, &staged);
	poll_until(f, 1);
	fake_cuda.delay = 1000;
	for (unsigned i = 0; i < BLOCKS; i++) {
		f->task[i] = encode_of(f, i);
		f->task[i].ready = i % 5 == 0 ? ev : NULL;
		if (i % 2)
			f->task[i] = (struct device_task){ .op = DEVICE_COPY_IN,
							   .region = &f->region,
							   .in = f->host };
		start(f, &f->task[i]);
	}
	assert_int_equal(poll_times(f, 1), 0);
	fake_cuda.query_error = 700; /* cudaErrorIllegalAddress */
	assert_int_equal(poll_times(f, 10), BLOCKS);
	for (unsigned i = 0; i < BLOCKS; i++) {
		assert_int_equal(f->task[i].res, -EIO);
		assert_null(f->task[i].staged);
	}
	assert_int_equal(f->dev->ops->dead(f->dev), -EIO);
	assert_int_equal(f->dev->ops->start(f->dev, &f->task[0]), -EIO);
	assert_int_equal(f->dev->ops->arm(f->dev), 1);
	f->dev->ops->unstage(f->dev, staged.staged); /* still takes it */
	f->dev->import->event_close(f->dev, ev);
}

/* Work of which nobody can say when it ends is waited for before its memory is given back. */
static void abandoned(struct fixture *f, const struct device_task *t, int record_error,
		      int wait_error)
{
	char err[DEVICE_ERR_BYTES];
	struct device *first = f->dev;

	assert_int_equal(device_new("auto", &f->dev, err), 0);
	f->task[0] = *t;
	start(f, &f->task[0]);
	fake_cuda.delay = 1000;
	fake_cuda.record_error = record_error;
	fake_cuda.wait_error = wait_error;
	fake_cuda.synchronized = 0;
	assert_int_equal(poll_times(f, 1), 1);
	assert_true(f->task[0].res < 0);
	assert_null(f->task[0].staged);
	assert_true(fake_cuda.synchronized > 0);
	fake_cuda.record_error = fake_cuda.wait_error = 0;
	assert_int_equal(f->dev->ops->dead(f->dev), -EIO);
	assert_null(f->dev->ops->free(f->dev));
	f->dev = first;
}

static void test_abandoned(void **state)
{
	struct fixture *f = *state;
	const struct device_task encode = encode_of(f, 0);
	const struct device_task out = { .op = DEVICE_COPY_OUT,
					 .region = &f->region,
					 .out = f->host,
					 .out_cap_bytes = f->g.raw_bytes };
	const struct device_task in = { .op = DEVICE_COPY_IN, .region = &f->region, .in = f->host };
	const struct device_task move = {
		.op = DEVICE_MOVE,
		.copies_count = 1,
		.copy[0] = { .in = f->pages, .out = f->host, .bytes = 64, .in_place = 1 },
	};

	abandoned(f, &encode, 1, 0); /* cudaErrorInvalidValue */
	abandoned(f, &out, 1, 0);
	abandoned(f, &out, 0, 1);
	abandoned(f, &in, 1, 0);
	abandoned(f, &in, 0, 1);
	abandoned(f, &move, 1, 0);
}

/* free() with work in the air: it waits for it. */
static void test_free_drains(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < BLOCKS; i++) {
		f->task[i] = encode_of(f, i);
		start(f, &f->task[i]);
	}
	assert_int_equal(poll_times(f, 1), 0);
}

static void test_import(void **state)
{
	struct fixture *f = *state;
	const struct device_import_ops *ops = f->dev->import;
	struct device_import im = { .type = DEVICE_MEMORY_IPC_HANDLE,
				    .allocation_bytes = 1u << 20 };
	struct device_memory *m, *again;
	void *base, *base_again;
	char err[DEVICE_ERR_BYTES];

	memcpy(im.uuid, f->dev->facts->uuid, sizeof(im.uuid));
	im.handle[0] = 'a';
	assert_int_equal(ops->memory_open(f->dev, &im, &m, &base, err), 0);
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), 0);
	assert_ptr_equal(base, base_again);
	im.allocation_bytes++;
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), -ERANGE);
	im.handle[0] = 'b';
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), -ERANGE);
	im.handle[0] = 'n';
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), -EINVAL);
	im.handle[0] = 's';
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), -EINVAL);
	im.type = DEVICE_MEMORY_POSIX_FD;
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), -EINVAL);
	im.type = 9;
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), -EINVAL);
	im.uuid[0]++;
	im.type = DEVICE_MEMORY_IPC_HANDLE;
	assert_int_equal(ops->memory_open(f->dev, &im, &again, &base_again, err), -ENODEV);
	ops->memory_close(f->dev, m);
	memset(base, 1, 1u << 20); /* the other user's still */
	ops->memory_close(f->dev, m);
	ops->memory_close(f->dev, NULL);
}

static void test_choice(void **state)
{
	struct fixture *f = *state;
	struct device *dev;
	char err[DEVICE_ERR_BYTES];

	assert_string_equal(f->dev->facts->model, "Fake 0");
	assert_int_equal(f->dev->facts->numa_node, -1);
	assert_int_equal(device_new("2", &dev, err), -ENODEV);
	assert_int_equal(device_new("GPU-a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a2", &dev, err),
			 -ENODEV);
	assert_int_equal(device_new("some", &dev, err), -EINVAL);
	assert_int_equal(device_new("GPU-a1a1a1a1-a1a1-a1a1-a1a1-a1a1a1a1a1a1", &dev, err), 0);
	assert_string_equal(dev->facts->model, "Fake 1");
	dev->ops->free(dev);
	fake_cuda.no_device = 35; /* cudaErrorInsufficientDriver: what no driver at all is, too */
	assert_int_equal(device_new("auto", &dev, err), -ENOENT);
	fake_cuda.no_device = 999;
	assert_int_equal(device_new("auto", &dev, err), -EIO);
}

/* Pieces of host memory are registered apart, and no copy goes over two of them. */
static void test_host(void **state)
{
	struct fixture *f = *state;
	unsigned live = fake_cuda.live;
	uint8_t *base = f->host - (64ull << 30) + 4096; /* never touched but for a few pages */

	assert_int_equal(f->dev->ops->host_register(f->dev, base, 65ull << 30), 0);
	assert_int_equal(fake_cuda.live, live + 2);
	fake_cuda.copies = 0;
	f->move[0] = (struct device_task){
		.op = DEVICE_MOVE,
		.copies_count = 1,
		.copy[0] = { .in = f->pages, .out = f->host, .bytes = 8192, .in_place = 1 },
	};
	start(f, &f->move[0]);
	poll_until(f, 1);
	assert_int_equal(fake_cuda.copies, 2);
	assert_memory_equal(f->pages, f->host, 8192);
	f->dev->ops->host_unregister(f->dev, base, 65ull << 30);
	assert_int_equal(fake_cuda.live, live);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_store_and_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_batches_grow, setup, teardown),
		cmocka_unit_test_setup_teardown(test_copies, setup, teardown),
		cmocka_unit_test_setup_teardown(test_decode_from_device, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(test_ready_and_cancel, setup, teardown),
		cmocka_unit_test_setup_teardown(test_staging_full, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_abandoned, setup, teardown),
		cmocka_unit_test_setup_teardown(test_free_drains, setup, teardown),
		cmocka_unit_test_setup_teardown(test_import, setup, teardown),
		cmocka_unit_test_setup_teardown(test_choice, setup, teardown),
		cmocka_unit_test_setup_teardown(test_host, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
