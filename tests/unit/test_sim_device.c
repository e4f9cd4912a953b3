/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_sim_device.c - the simulated GPU from a lane's side: staging, moves, ready events, cancelling, the
 * background share, death.  Its imports are test_sim_import.c's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/util/clock.h"
#include "tests/lib/sim_rig.h"

static void test_staged_round_trip(void **state)
{
	struct sim_rig f;

	(void)state;
	sim_rig_setup(&f, SIM_RIG_TASKS, 100, NULL);
	for (unsigned round = 0; round < 10; round++) {
		memset(f.dst_mem, 0xee, SIM_RIG_MEMORY_BYTES);
		for (unsigned i = 0; i < SIM_RIG_TASKS; i++)
			sim_rig_start(&f, sim_rig_encode(&f, i));
		sim_rig_collect(&f, SIM_RIG_TASKS);
		sim_rig_all_ok(&f, 0, SIM_RIG_TASKS);
		for (unsigned i = 0; i < SIM_RIG_TASKS; i++) {
			assert_int_equal(f.task[i].info.speculator, CODEC_SPEC_CHANNEL);
			assert_int_equal(f.task[i].info.chunks_raw, 0);
			sim_rig_start(&f, sim_rig_move(&f, i, f.host[i], DEVICE_PLACE_HOST));
		}
		sim_rig_collect(&f, SIM_RIG_TASKS);
		sim_rig_all_ok(&f, 0, SIM_RIG_TASKS);
		for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++) {
			assert_int_equal(f.dev->ops->can_decode(f.dev, &f.g, f.profile, f.host[i],
								f.task[i].info.encoded_bytes),
					 1);
			sim_rig_start(&f, sim_rig_decode(&f, i, f.host[i], DEVICE_PLACE_HOST));
		}
		sim_rig_collect(&f, SIM_RIG_BLOCKS);
		sim_rig_all_ok(&f, 0, SIM_RIG_BLOCKS);
		assert_int_equal(atomic_load(&f.task[0].segments_done), 4);
		assert_memory_equal(f.src_mem, f.dst_mem, SIM_RIG_MEMORY_BYTES);
		for (unsigned i = 0; i < SIM_RIG_TASKS; i++)
			f.dev->ops->unstage(f.dev, f.task[i].staged);
	}
	sim_rig_teardown(&f);
}

static void test_pool_memory(void **state)
{
	struct sim_rig f;
	void *more = NULL;

	(void)state;
	sim_rig_setup(&f, SIM_RIG_BLOCKS, 100, NULL);
	for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++)
		sim_rig_start(&f, sim_rig_encode(&f, i));
	sim_rig_collect(&f, SIM_RIG_BLOCKS);
	sim_rig_all_ok(&f, 0, SIM_RIG_BLOCKS);
	for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++)
		sim_rig_start(&f, sim_rig_move(&f, i, f.pool + i * 65536u, DEVICE_PLACE_DEVICE));
	sim_rig_collect(&f, SIM_RIG_BLOCKS);
	sim_rig_all_ok(&f, 0, SIM_RIG_BLOCKS);
	for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++)
		f.dev->ops->unstage(f.dev, f.task[i].staged);
	for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++)
		sim_rig_start(&f, sim_rig_decode(&f, i, f.pool + i * 65536u, DEVICE_PLACE_DEVICE));
	sim_rig_collect(&f, SIM_RIG_BLOCKS);
	sim_rig_all_ok(&f, 0, SIM_RIG_BLOCKS);
	assert_memory_equal(f.src_mem, f.dst_mem, SIM_RIG_MEMORY_BYTES);
	/* Within the device, and out of it. */
	f.task[0] = (struct device_task){ .op = DEVICE_MOVE, .user = &f.completions[0] };
	f.task[0].copies_count = 2;
	f.task[0].copy[0] = (struct device_copy){ .in = f.pool,
						  .out = f.pool + 600000,
						  .bytes = 5000,
						  .in_place = DEVICE_PLACE_DEVICE,
						  .out_place = DEVICE_PLACE_DEVICE };
	f.task[0].copy[1] = (struct device_copy){ .in = f.pool + 65536,
						  .out = f.host[1],
						  .bytes = 5000,
						  .in_place = DEVICE_PLACE_DEVICE,
						  .out_place = DEVICE_PLACE_HOST };
	sim_rig_start(&f, &f.task[0]);
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 0, 1);
	assert_memory_equal(sim_host(f.pool + 600000), sim_host(f.pool), 5000);
	assert_memory_equal(sim_host(f.pool + 65536), f.host[1], 5000);
	assert_int_equal(f.dev->ops->pool_memory(f.dev, f.dev->facts->memory_bytes, &more),
			 -ENOMEM);
	assert_int_equal(f.dev->ops->pool_memory(f.dev, 0, &more), -EINVAL);
	assert_null(more);
	sim_rig_teardown(&f);
}

static void test_copy_out_and_in(void **state)
{
	struct sim_rig f;
	struct device_task *t = &f.task[0];

	(void)state;
	sim_rig_setup(&f, 1, 100, NULL);
	*t = (struct device_task){
		.op = DEVICE_COPY_OUT,
		.region = &f.src,
		.block_index = 2,
		.out = f.host[0],
		.out_cap_bytes = f.g.raw_bytes - 1u,
		.user = &f.completions[0],
	};
	sim_rig_start(&f, t);
	sim_rig_collect(&f, 1);
	assert_int_equal(t->res, -ENOSPC);
	t->out_cap_bytes++;
	sim_rig_start(&f, t);
	sim_rig_collect(&f, 1);
	assert_int_equal(t->res, 0);
	for (unsigned s = 0; s < 4; s++)
		assert_memory_equal(f.host[0] + s * 4096u,
				    f.src_mem + (s * SIM_RIG_BLOCKS + 2) * 4096u, 4096);
	memset(f.dst_mem, 0xee, SIM_RIG_MEMORY_BYTES);
	t->op = DEVICE_COPY_IN;
	t->region = &f.dst;
	t->in = f.host[0];
	t->in_bytes = f.g.raw_bytes - 1u;
	t->skip_tokens = 5;
	sim_rig_start(&f, t);
	sim_rig_collect(&f, 1);
	assert_int_equal(t->res, -EINVAL);
	t->in_bytes++;
	sim_rig_start(&f, t);
	sim_rig_collect(&f, 1);
	assert_int_equal(t->res, 0);
	for (size_t i = 0; i < SIM_RIG_MEMORY_BYTES; i++) {
		bool written = i / 4096u % SIM_RIG_BLOCKS == 2 && i % 4096u >= 5 * 256u;

		assert_int_equal(f.dst_mem[i], written ? f.src_mem[i] : 0xee);
	}
	sim_rig_teardown(&f);
}

static void test_ready_event(void **state)
{
	struct sim_rig f;

	(void)state;
	sim_rig_setup(&f, SIM_RIG_BLOCKS, 100, NULL);
	sim_rig_encode(&f, 0)->ready = f.event;
	sim_rig_start(&f, &f.task[0]);
	for (unsigned i = 1; i < 4; i++)
		sim_rig_start(&f, sim_rig_encode(&f, i));
	sim_rig_collect(&f, 3); /* not held up by the first */
	sim_rig_all_ok(&f, 1, 3);
	sim_rig_collect_none(&f, 20);
	/* The pages change until the event. */
	memset(f.src_mem, 0x3f, 4096);
	atomic_store(&f.event_words->state, SIM_EVENT_COMPLETE);
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 0, 1);
	sim_rig_start(&f, sim_rig_move(&f, 0, f.host[0], DEVICE_PLACE_HOST));
	sim_rig_collect(&f, 1);
	f.task[0].ready = NULL;
	sim_rig_start(&f, sim_rig_decode(&f, 0, f.host[0], DEVICE_PLACE_HOST));
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[0].res, 0);
	assert_memory_equal(f.dst_mem, f.src_mem, 4096);
	/* What the device writes, and a value that means nothing. */
	assert_int_equal(atomic_load(&f.event_words->records), 0);
	assert_int_equal(f.dev->import->event_record(f.dev, f.event), 0);
	assert_int_equal(f.dev->import->event_record(f.dev, f.event), 0);
	assert_int_equal(atomic_load(&f.event_words->records), 2);
	atomic_store(&f.event_words->state, 0xdeadbeef);
	sim_rig_encode(&f, 5)->ready = f.event;
	sim_rig_start(&f, &f.task[5]);
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[5].res, 0);
	sim_rig_teardown(&f);
}

static void *engine_reaches_event(void *arg)
{
	struct sim_event_words *w = arg;
	struct timespec ts = { .tv_nsec = 30000000 };

	nanosleep(&ts, NULL);
	atomic_store(&w->state, SIM_EVENT_COMPLETE);
	return NULL;
}

/* sim_rig_collect() sleeps on the wake fd, and nothing else is under way that would write it. */
static void test_sleeping_lane_sees_event(void **state)
{
	struct sim_rig f;
	pthread_t engine;

	(void)state;
	sim_rig_setup(&f, 1, 100, NULL);
	sim_rig_encode(&f, 0)->ready = f.event;
	sim_rig_start(&f, &f.task[0]);
	assert_int_equal(f.dev->ops->arm(f.dev), 1);
	f.dev->ops->disarm(f.dev);
	assert_int_equal(pthread_create(&engine, NULL, engine_reaches_event, f.event_words), 0);
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 0, 1);
	pthread_join(engine, NULL);
	sim_rig_teardown(&f);
}

static void test_arm(void **state)
{
	struct sim_rig f;
	struct device_task *done[2];

	(void)state;
	sim_rig_setup(&f, 1, 100, NULL);
	assert_int_equal(f.dev->ops->arm(f.dev), 1);
	f.dev->ops->disarm(f.dev);
	sim_rig_start(&f, sim_rig_encode(&f, 0));
	sim_rig_start(&f, sim_rig_encode(&f, 1));
	/* Only poll() launches: until then nobody would signal. */
	assert_int_equal(f.dev->ops->arm(f.dev), 0);
	sim_rig_collect(&f, 1);
	/* The second has no room in the staging memory; giving it back is the lane's own doing. */
	assert_int_equal(f.dev->ops->poll(f.dev, done, 2), 0);
	assert_int_equal(f.dev->ops->arm(f.dev), 1);
	f.dev->ops->disarm(f.dev);
	f.dev->ops->unstage(f.dev, f.task[0].staged);
	assert_int_equal(f.dev->ops->arm(f.dev), 0);
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 0, 2);
	sim_rig_teardown(&f);
}

static void test_cancel(void **state)
{
	struct sim_rig f;
	struct device_task *done[4];

	(void)state;
	sim_rig_setup(&f, SIM_RIG_BLOCKS, 100, NULL);
	for (unsigned i = 0; i < 4; i++) {
		sim_rig_encode(&f, i)->ready = f.event;
		sim_rig_start(&f, &f.task[i]);
	}
	f.task[3].ready = NULL;
	assert_int_equal(f.dev->ops->poll(f.dev, done, 4), 0); /* launches the last */
	assert_int_equal(f.dev->ops->cancel(f.dev, &f.task[3]), 0);
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 3, 1);
	assert_int_equal(f.dev->ops->cancel(f.dev, &f.task[1]), 1);
	assert_int_equal(f.dev->ops->cancel(f.dev, &f.task[1]), 0); /* it is on its way */
	assert_int_equal(f.dev->ops->cancel(f.dev, &f.task[2]), 1);
	assert_int_equal(f.dev->ops->arm(f.dev), 0);
	sim_rig_collect(&f, 2);
	assert_int_equal(f.task[1].res, -ECANCELED);
	assert_int_equal(f.task[2].res, -ECANCELED);
	assert_null(f.task[1].staged);
	sim_rig_all_once(&f, 1, 2);
	/* The queue is whole: what was before and what comes after still runs. */
	sim_rig_start(&f, sim_rig_encode(&f, 4));
	sim_rig_collect(&f, 1);
	atomic_store(&f.event_words->state, SIM_EVENT_COMPLETE);
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 4, 1);
	sim_rig_all_ok(&f, 0, 1);
	sim_rig_teardown(&f);
}

static void test_staging_runs_out(void **state)
{
	struct sim_rig f;

	(void)state;
	sim_rig_setup(&f, 3, 100, NULL);
	for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++)
		sim_rig_start(&f, sim_rig_encode(&f, i));
	sim_rig_collect(&f, 3);
	sim_rig_all_ok(&f, 0, 3);
	sim_rig_collect_none(&f, 10);
	/* Moves, decodes and copies go on. */
	sim_rig_start(&f, sim_rig_move(&f, 1, f.host[1], DEVICE_PLACE_HOST));
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 1, 1);
	sim_rig_start(&f, sim_rig_decode(&f, 1, f.host[1], DEVICE_PLACE_HOST));
	f.task[20] = (struct device_task){ .op = DEVICE_COPY_IN,
					   .region = &f.dst,
					   .in = f.host[2],
					   .in_bytes = f.g.raw_bytes,
					   .user = &f.completions[20] };
	sim_rig_start(&f, &f.task[20]);
	sim_rig_collect(&f, 2);
	sim_rig_all_ok(&f, 1, 1);
	sim_rig_all_ok(&f, 20, 1);
	for (unsigned i = 0; i < SIM_RIG_BLOCKS; i++) {
		f.dev->ops->unstage(f.dev, f.task[i].staged);
		if (i + 3 < SIM_RIG_BLOCKS) {
			sim_rig_collect(&f, 1); /* in their order */
			sim_rig_all_ok(&f, i + 3, 1);
			sim_rig_collect_none(&f, 1);
		}
	}
	sim_rig_teardown(&f);
}

static void test_no_generic_chunks(void **state)
{
	struct sim_rig f;

	(void)state;
	sim_rig_setup(&f, 2, 100, NULL);
	/* Nothing that the profile was made for, and something that zstd likes. */
	for (size_t i = 0; i < SIM_RIG_MEMORY_BYTES; i++)
		f.src_mem[i] = (uint8_t)(i / 2u * 7919u >> (i & 1u ? 4 : 0) & 0xf7u);
	sim_rig_start(&f, sim_rig_encode(&f, 0));
	sim_rig_encode(&f, 1)->speculator = CODEC_SPEC_RAW;
	sim_rig_start(&f, &f.task[1]);
	sim_rig_collect(&f, 2);
	sim_rig_all_ok(&f, 0, 2);
	assert_int_equal(f.task[1].info.speculator, CODEC_SPEC_RAW);
	for (unsigned i = 0; i < 2; i++) {
		sim_rig_start(&f, sim_rig_move(&f, i, f.host[i], DEVICE_PLACE_HOST));
		sim_rig_collect(&f, 1);
		assert_int_equal(f.dev->ops->can_decode(f.dev, &f.g, f.profile, f.host[i],
							f.task[i].info.encoded_bytes),
				 1);
		sim_rig_start(&f, sim_rig_decode(&f, i, f.host[i], DEVICE_PLACE_HOST));
		sim_rig_collect(&f, 1);
		assert_int_equal(f.task[i].res, 0);
		assert_memory_equal(f.src_mem + i * 4096u, f.dst_mem + i * 4096u, 4096);
	}
	sim_rig_teardown(&f);
}

static void test_what_it_can(void **state)
{
	struct sim_rig f;
	struct codec_workspace *ws = NULL;
	struct codec_info info;
	struct codec_view v;
	struct device_ops const *ops;

	(void)state;
	sim_rig_setup(&f, 1, 100, NULL);
	ops = f.dev->ops;
	assert_int_equal(ops->can_encode(f.dev, &f.g, f.profile, CODEC_SPEC_CHANNEL), 1);
	assert_int_equal(ops->can_encode(f.dev, &f.g, NULL, CODEC_SPEC_RAW), 1);
	assert_int_equal(ops->can_encode(f.dev, &f.g, NULL, CODEC_SPEC_CHANNEL), 0);
	assert_int_equal(ops->can_encode(f.dev, &f.g, f.profile, CODEC_SPEC_GENERIC), 0);
	sim_rig_encode(&f, 0)->speculator = CODEC_SPEC_GENERIC;
	assert_int_equal(ops->start(f.dev, &f.task[0]), -EOPNOTSUPP);
	f.task[0].op = DEVICE_FIT;
	assert_int_equal(ops->start(f.dev, &f.task[0]), -EINVAL);
	f.task[0].op = DEVICE_OP_COUNT;
	assert_int_equal(ops->start(f.dev, &f.task[0]), -EINVAL);
	/* A payload of the CPU's. */
	assert_int_equal(codec_workspace_new(&ws), 0);
	v = (struct codec_view){ .base = f.src_mem };
	assert_int_equal(codec_encode(ws, &f.g, NULL, CODEC_SPEC_GENERIC, 0, &v, f.host[0],
				      codec_bound(&f.g), &info),
			 0);
	assert_int_equal(ops->can_decode(f.dev, &f.g, NULL, f.host[0], info.encoded_bytes), 0);
	assert_int_equal(ops->can_decode(f.dev, &f.g, NULL, f.host[0], 63), 0);
	codec_workspace_free(ws);
	/* Too many. */
	for (unsigned i = 0; i < SIM_RIG_TASKS; i++)
		sim_rig_start(&f, sim_rig_encode(&f, i));
	f.task[0].user = NULL;
	{
		struct device_task extra = f.task[0];

		assert_int_equal(ops->start(f.dev, &extra), -EAGAIN);
	}
	f.task[0].user = &f.completions[0];
	assert_int_equal(ops->host_register(f.dev, f.dst_mem, SIM_RIG_MEMORY_BYTES), 0);
	assert_int_equal(ops->host_register(f.dev, f.dst_mem + 1, 4096), -EINVAL);
	ops->host_unregister(f.dev, f.dst_mem, SIM_RIG_MEMORY_BYTES);
	sim_rig_teardown(&f);
}

/* One batch of at most four at a time, and nine times as long a rest after each. */
static void test_background_share(void **state)
{
	struct sim_rig f;
	uint64_t begin, busy_ns = 0, longest_ns = 0;
	unsigned left = 0;

	(void)state;
	sim_rig_setup(&f, SIM_RIG_TASKS, 10, NULL);
	begin = clock_now_ns() / CLOCK_NS_PER_MS;
	for (unsigned i = 0; i < 40; i++) {
		sim_rig_encode(&f, i)->background = 1;
		sim_rig_start(&f, &f.task[i]);
	}
	sim_rig_collect(&f, 4);
	/* What is in the foreground does not wait with them. */
	for (unsigned i = 40; i < 44; i++) {
		sim_rig_start(&f, sim_rig_encode(&f, i));
		sim_rig_collect(&f, 1);
		while (!f.completions[i])
			sim_rig_collect(&f, 1);
	}
	for (unsigned i = 0; i < 40; i++)
		left += f.completions[i] == 0;
	assert_true(left > 0);
	sim_rig_collect(&f, left);
	for (unsigned i = 0; i < 40; i++) {
		busy_ns += f.task[i].busy_ns;
		if (longest_ns < f.task[i].busy_ns)
			longest_ns = f.task[i].busy_ns;
	}
	/* Two workers: a batch takes half of its tasks' time at least.  No rest after the last. */
	busy_ns -= 4 * longest_ns < busy_ns ? 4 * longest_ns : busy_ns;
	assert_true((clock_now_ns() / CLOCK_NS_PER_MS - begin + 1) * 1000000u >=
		    busy_ns / 2u * 10u);
	sim_rig_all_ok(&f, 0, 44);
	sim_rig_teardown(&f);
}

static void test_death(void **state)
{
	struct sim_rig f;
	struct device_task *done[1];
	unsigned eio = 0;

	(void)state;
	sim_rig_setup(&f, SIM_RIG_BLOCKS, 100, NULL);
	sim_rig_start(&f, sim_rig_encode(&f, 0));
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 0, 1);
	assert_int_equal(f.dev->ops->dead(f.dev), 0);
	for (unsigned i = 1; i < 30; i++) {
		sim_rig_encode(&f, i)->background = i > 20;
		if (i == 5)
			f.task[i].ready = f.event;
		sim_rig_start(&f, &f.task[i]);
	}
	assert_int_equal(f.dev->ops->poll(f.dev, done, 0), 0); /* launches */
	sim_device_kill(f.dev);
	assert_int_equal(f.dev->ops->dead(f.dev), -EIO);
	assert_int_equal(f.dev->ops->start(f.dev, &f.task[40]), -EIO);
	assert_int_equal(f.dev->import->event_record(f.dev, f.event), -EIO);
	sim_rig_collect(&f, 29);
	for (unsigned i = 1; i < 30; i++) {
		eio += f.task[i].res == -EIO;
		assert_null(f.task[i].staged);
	}
	assert_int_equal(eio, 29);
	sim_rig_all_once(&f, 1, 29);
	assert_int_equal(f.dev->ops->dead(f.dev), -EIO);
	f.dev->ops->unstage(f.dev, f.task[0].staged);
	sim_rig_teardown(&f);
}

static void test_options(void **state)
{
	struct gpu_device_options good = { .which = "auto",
					   .tasks_max = 4,
					   .wake_fd = -1,
					   .staging_bytes = 1u << 20,
					   .background_percent = 20 };
	struct gpu_device_options o = good;
	struct device *d = NULL;

	(void)state;
	o.tasks_max = 0;
	assert_int_equal(sim_device_new(&o, &d), -EINVAL);
	o = good;
	o.staging_bytes = 0;
	assert_int_equal(sim_device_new(&o, &d), -EINVAL);
	o = good;
	o.background_percent = 101;
	assert_int_equal(sim_device_new(&o, &d), -EINVAL);
	o = good;
	o.which = "1";
	assert_int_equal(sim_device_new(&o, &d), -ENODEV);
	assert_null(d);
	o.which = SIM_UUID_TEXT;
	assert_int_equal(sim_device_new(&o, &d), 0);
	assert_memory_equal(d->facts->uuid, SIM_UUID, DEVICE_UUID_BYTES);
	assert_int_equal(d->facts->staging_bytes, 1u << 20);
	assert_int_equal(d->tasks_max, 4);
	d->ops->free(d);
}

static void test_free_with_work_in_flight(void **state)
{
	struct sim_rig f;
	struct device_task *done[1];
	struct device *d;

	(void)state;
	sim_rig_setup(&f, SIM_RIG_TASKS, 100, NULL);
	sim_rig_encode(&f, 0)->ready = f.event;
	sim_rig_start(&f, &f.task[0]);
	for (unsigned i = 1; i < 30; i++)
		sim_rig_start(&f, sim_rig_encode(&f, i));
	assert_int_equal(f.dev->ops->poll(f.dev, done, 0), 0); /* launches the first batch */
	d = f.dev;
	f.dev->import->region_close(d, &f.src);
	f.dev->import->region_close(d, &f.dst);
	/* The engine's memory goes after the device here: it must not be touched by then. */
	assert_null(d->ops->free(d));
	assert_int_equal(f.task[0].res, -ECANCELED);
	for (unsigned i = 1; i < 30; i++)
		assert_int_equal(f.task[i].res, i <= 16 ? 0 : -ECANCELED);
	{
		struct gpu_device_options o = { .tasks_max = 1,
						.wake_fd = f.wake_fd,
						.staging_bytes = 1,
						.background_percent = 1 };

		assert_int_equal(sim_device_new(&o, &f.dev), 0); /* for sim_rig_teardown */
	}
	sim_rig_teardown(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_staged_round_trip),
		cmocka_unit_test(test_pool_memory),
		cmocka_unit_test(test_copy_out_and_in),
		cmocka_unit_test(test_ready_event),
		cmocka_unit_test(test_sleeping_lane_sees_event),
		cmocka_unit_test(test_arm),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_staging_runs_out),
		cmocka_unit_test(test_no_generic_chunks),
		cmocka_unit_test(test_what_it_can),
		cmocka_unit_test(test_background_share),
		cmocka_unit_test(test_death),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_free_with_work_in_flight),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
