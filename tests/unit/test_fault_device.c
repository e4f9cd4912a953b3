/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_fault_device.c - the fault device around a GPU (the simulated one): what it adds for devices with
 * memory of their own.  Around the CPU device it is tested in test_cpu_device.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "tests/lib/sim_rig.h"

/* Task i encoded, its payload moved to the host, decoded from there: what DECODE says. */
static int through_host(struct sim_rig *f, unsigned i)
{
	sim_rig_start(f, sim_rig_encode(f, i));
	sim_rig_collect(f, 1);
	sim_rig_all_ok(f, i, 1);
	sim_rig_start(f, sim_rig_move(f, i, f->host[i], DEVICE_PLACE_HOST));
	sim_rig_collect(f, 1);
	sim_rig_all_ok(f, i, 1);
	sim_rig_start(f, sim_rig_decode(f, i, f->host[i], DEVICE_PLACE_HOST));
	sim_rig_collect(f, 1);
	sim_rig_all_once(f, i, 1);
	return f->task[i].res;
}

/* Task i is encoded: the same, by way of the pool. */
static int through_pool(struct sim_rig *f, unsigned i)
{
	uint8_t *at = f->pool + i * 65536u;

	sim_rig_start(f, sim_rig_move(f, i, at, DEVICE_PLACE_DEVICE));
	sim_rig_collect(f, 1);
	sim_rig_all_ok(f, i, 1);
	assert_ptr_equal(f->task[i].copy[0].in, f->task[i].staged);
	assert_int_equal(f->task[i].copy[0].in_place, DEVICE_PLACE_DEVICE);
	sim_rig_start(f, sim_rig_decode(f, i, at, DEVICE_PLACE_DEVICE));
	sim_rig_collect(f, 1);
	sim_rig_all_once(f, i, 1);
	assert_ptr_equal(f->task[i].in, at);
	assert_int_equal(f->task[i].in_place, DEVICE_PLACE_DEVICE);
	return f->task[i].res;
}

static void test_forwards(void **state)
{
	struct sim_rig f;
	void *more = NULL;

	(void)state;
	sim_rig_setup(&f, 4, 100, "fit:eio");
	assert_string_equal(f.dev->ops->name, "fault");
	assert_ptr_equal(f.dev->facts, f.sim->facts);
	assert_int_equal(through_host(&f, 0), 0);
	assert_int_equal(f.dev->ops->can_encode(f.dev, &f.g, NULL, CODEC_SPEC_CHANNEL), 0);
	assert_int_equal(f.dev->ops->can_encode(f.dev, &f.g, NULL, CODEC_SPEC_RAW), 1);
	assert_int_equal(f.dev->ops->can_decode(f.dev, &f.g, f.profile, f.host[0],
						f.task[0].info.encoded_bytes),
			 1);
	assert_int_equal(f.dev->ops->host_register(f.dev, f.dst_mem + 1, 4096), -EINVAL);
	assert_int_equal(f.dev->ops->host_register(f.dev, f.dst_mem, 4096), 0);
	f.dev->ops->host_unregister(f.dev, f.dst_mem, 4096);
	assert_int_equal(f.dev->ops->pool_memory(f.dev, 4096, &more), 0);
	assert_non_null(more);
	assert_int_equal(f.dev->import->event_record(f.dev, f.event), 0);
	assert_int_equal(atomic_load(&f.event_words->records), 1);
	f.dev->ops->unstage(f.dev, f.task[0].staged);
	assert_int_equal(f.dev->ops->dead(f.dev), 0);
	sim_device_kill(f.sim);
	assert_int_equal(f.dev->ops->dead(f.dev), -EIO);
	assert_int_equal(f.dev->ops->start(f.dev, sim_rig_encode(&f, 1)), -EIO);
	sim_rig_teardown(&f);
}

static void test_cancel(void **state)
{
	struct sim_rig f;

	(void)state;
	sim_rig_setup(&f, 4, 100, "encode:eio,encode:delay_ms=60000:every=2");
	for (unsigned i = 0; i < 2; i++) {
		sim_rig_encode(&f, i)->ready = f.event;
		sim_rig_start(&f, &f.task[i]);
	}
	sim_rig_collect_none(&f, 1);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(f.dev->ops->cancel(f.dev, &f.task[i]), 1);
		assert_int_equal(f.dev->ops->cancel(f.dev, &f.task[i]), 0);
	}
	sim_rig_collect(&f, 2); /* late work is not late when nobody wants it */
	assert_int_equal(f.task[0].res, -ECANCELED);
	assert_int_equal(f.task[1].res, -ECANCELED);
	sim_rig_all_once(&f, 0, 2);
	sim_rig_teardown(&f);
}

static void test_errors_give_staging_back(void **state)
{
	struct sim_rig f;
	unsigned ok = 0;

	(void)state;
	/* Room for two payloads: errors that kept theirs would soon stop everything. */
	sim_rig_setup(&f, 2, 100, "encode:enomem:every=2,encode:corrupt:every=4,move:eio:every=3");
	for (unsigned i = 0; i < 24; i++) {
		sim_rig_start(&f, sim_rig_encode(&f, i));
		sim_rig_collect(&f, 1);
		if (f.task[i].res < 0) {
			assert_int_equal(f.task[i].res, -ENOMEM);
			assert_null(f.task[i].staged);
			continue;
		}
		sim_rig_start(&f, sim_rig_move(&f, i, f.host[i], DEVICE_PLACE_HOST));
		sim_rig_collect(&f, 1);
		assert_int_equal(f.task[i].res, ++ok % 3u == 0 ? -EIO : 0);
		f.dev->ops->unstage(f.dev, f.task[i].staged);
	}
	assert_int_equal(ok, 12);
	sim_rig_teardown(&f);
}

static void test_corrupt_encode(void **state)
{
	struct sim_rig f;
	unsigned i;

	(void)state;
	sim_rig_setup(&f, 8, 100, "encode:corrupt:every=2");
	assert_int_equal(through_host(&f, 0), 0);
	assert_int_equal(through_host(&f, 1), -EBADMSG);
	/* What is staged is right; only that move was not. */
	sim_rig_start(&f, sim_rig_move(&f, 1, f.host[1], DEVICE_PLACE_HOST));
	sim_rig_collect(&f, 1);
	sim_rig_start(&f, sim_rig_decode(&f, 1, f.host[1], DEVICE_PLACE_HOST));
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[1].res, 0);
	f.completions[1] = 0;
	for (i = 2; i < 4; i++) { /* into the pool it goes spoilt as well */
		sim_rig_start(&f, sim_rig_encode(&f, i));
		sim_rig_collect(&f, 1);
		sim_rig_all_ok(&f, i, 1);
		assert_int_equal(through_pool(&f, i), i == 3 ? -EBADMSG : 0);
	}
	/* Given back without a move: the mark goes with it, whoever gets that memory next. */
	for (; i < 6; i++) {
		sim_rig_start(&f, sim_rig_encode(&f, i));
		sim_rig_collect(&f, 1);
		f.dev->ops->unstage(f.dev, f.task[i].staged);
		f.completions[i] = 0;
	}
	assert_int_equal(through_host(&f, 6), 0);
	sim_rig_teardown(&f);
}

static void test_corrupt_inputs(void **state)
{
	struct sim_rig f;
	struct device_task *t = &f.task[9];

	(void)state;
	sim_rig_setup(&f, 8, 100, "decode:corrupt:every=2,move:corrupt:every=4,copy_in:corrupt");
	assert_int_equal(through_host(&f, 0), 0);
	assert_int_equal(through_host(&f, 1), -EBADMSG);
	assert_ptr_equal(f.task[1].in, f.host[1]);
	sim_rig_start(&f, sim_rig_encode(&f, 2));
	sim_rig_start(&f, sim_rig_encode(&f, 3));
	sim_rig_collect(&f, 2);
	sim_rig_all_ok(&f, 2, 2);
	assert_int_equal(through_pool(&f, 2), 0);
	/* The fourth decode: its input is in the device, and stays as it is. */
	sim_rig_start(&f, &f.task[2]);
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[2].res, -EBADMSG);
	assert_ptr_equal(f.task[2].in, f.pool + 2 * 65536u);
	/* The fourth move: what lies in the pool is spoilt. */
	assert_int_equal(through_pool(&f, 3), -EBADMSG);
	sim_rig_start(&f, sim_rig_decode(&f, 2, f.pool + 2 * 65536u, DEVICE_PLACE_DEVICE));
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[2].res, -EBADMSG); /* the sixth decode */
	sim_rig_start(&f, &f.task[2]);
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[2].res, 0);

	memset(f.host[9], 0, f.g.raw_bytes);
	*t = (struct device_task){ .op = DEVICE_COPY_IN,
				   .region = &f.dst,
				   .block_index = 7,
				   .in = f.host[9],
				   .in_bytes = f.g.raw_bytes,
				   .user = &f.completions[9] };
	sim_rig_start(&f, t);
	sim_rig_collect(&f, 1);
	assert_int_equal(t->res, 0);
	assert_ptr_equal(t->in, f.host[9]);
	assert_int_equal(f.host[9][f.g.raw_bytes / 2u], 0);
	assert_int_equal(f.dst_mem[(2u * SIM_RIG_BLOCKS + 7u) * 4096u], 0x10);
	sim_rig_teardown(&f);
}

static void test_launch(void **state)
{
	struct sim_rig f;
	unsigned started = 0;

	(void)state;
	sim_rig_setup(&f, 8, 100, "encode:launch:every=3");
	for (unsigned i = 0; i < 9; i++) {
		int r = f.dev->ops->start(f.dev, sim_rig_encode(&f, i));

		assert_int_equal(r, i % 3 == 2 ? -EIO : 0);
		started += r == 0;
	}
	assert_int_equal(started, 6);
	sim_rig_collect(&f, started);
	sim_rig_collect_none(&f, 5);
	for (unsigned i = 0; i < 9; i++)
		assert_int_equal(f.completions[i], i % 3 != 2);
	assert_int_equal(f.dev->ops->dead(f.dev), 0);
	sim_rig_teardown(&f);
}

static void test_dead(void **state)
{
	struct sim_rig f;
	void *staged;

	(void)state;
	/* Task 0 is staged, 1 is done and late, 2 waits for an event, 3 is cancelled, 4 runs, 5 kills. */
	sim_rig_setup(&f, 8, 100, "encode:delay_ms=600000:every=2,decode:dead");
	sim_rig_start(&f, sim_rig_encode(&f, 0));
	sim_rig_collect(&f, 1);
	sim_rig_all_ok(&f, 0, 1);
	staged = f.task[0].staged;
	sim_rig_start(&f, sim_rig_encode(&f, 1));
	sim_rig_collect_none(&f, 20);
	for (unsigned i = 2; i < 4; i++) {
		sim_rig_encode(&f, i)->ready = f.event;
		sim_rig_start(&f, &f.task[i]);
	}
	assert_int_equal(f.dev->ops->cancel(f.dev, &f.task[3]), 1);
	sim_rig_start(&f, sim_rig_encode(&f, 4));
	sim_rig_collect(&f, 1);
	assert_int_equal(f.task[3].res, -ECANCELED);
	f.task[5] = f.task[0];
	f.task[5].user = &f.completions[5];
	sim_rig_start(&f, sim_rig_decode(&f, 5, f.host[5], DEVICE_PLACE_HOST));
	assert_int_equal(f.completions[5], 0);
	assert_int_equal(f.dev->ops->dead(f.dev), -EIO);
	assert_int_equal(f.dev->ops->start(f.dev, sim_rig_encode(&f, 6)), -EIO);
	assert_int_equal(f.dev->import->event_record(f.dev, f.event), -EIO);
	sim_rig_collect(&f, 4);
	for (unsigned i = 1; i < 6; i++) {
		assert_int_equal(f.task[i].res, i == 3 ? -ECANCELED : -EIO);
		if (i < 5)
			assert_null(f.task[i].staged);
	}
	sim_rig_all_once(&f, 1, 5);
	assert_int_equal(f.completions[6], 0);
	f.dev->ops->unstage(f.dev, staged);
	sim_rig_teardown(&f);
}

/* Dying while the input of a spoilt DECODE is being fetched. */
static void test_dead_while_fetching(void **state)
{
	struct sim_rig f;

	(void)state;
	sim_rig_setup(&f, 8, 100, "decode:corrupt,copy_in:dead");
	sim_rig_start(&f, sim_rig_encode(&f, 0));
	sim_rig_collect(&f, 1);
	sim_rig_start(&f, sim_rig_move(&f, 0, f.pool, DEVICE_PLACE_DEVICE));
	sim_rig_collect(&f, 1);
	f.dev->ops->unstage(f.dev, f.task[0].staged);
	f.completions[0] = 0;
	sim_rig_start(&f, sim_rig_decode(&f, 0, f.pool, DEVICE_PLACE_DEVICE));
	f.task[1] = (struct device_task){ .op = DEVICE_COPY_IN,
					  .region = &f.dst,
					  .in = f.host[0],
					  .in_bytes = f.g.raw_bytes,
					  .user = &f.completions[1] };
	sim_rig_start(&f, &f.task[1]);
	sim_rig_collect(&f, 2);
	assert_int_equal(f.task[0].res, -EIO);
	assert_int_equal(f.task[1].res, -EIO);
	assert_ptr_equal(f.task[0].in, f.pool);
	sim_rig_all_once(&f, 0, 2);
	sim_rig_teardown(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_forwards),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_errors_give_staging_back),
		cmocka_unit_test(test_corrupt_encode),
		cmocka_unit_test(test_corrupt_inputs),
		cmocka_unit_test(test_launch),
		cmocka_unit_test(test_dead),
		cmocka_unit_test(test_dead_while_fetching),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
