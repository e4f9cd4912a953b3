/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_predictor.c - gpu/predictor.c with the codec behind it: what predictor_rig.h asks of all, then its queues.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/lib/predictor_rig.h"

static struct predictor_rig *rig;
static int wake_fd = -1;

static void use(uint32_t batch_tokens, unsigned tasks_max)
{
	const struct predictor_options o = { .tasks_max = tasks_max,
					     .wake_fd = wake_fd,
					     .batch_tokens = batch_tokens,
					     .positions_max = 4096,
					     .background_percent = 50 };
	struct device *d = NULL;

	assert_int_equal(sim_predictor_new(&o, &d), 0);
	predictor_rig_use(rig, d);
}

static int setup(void **state)
{
	(void)state;
	wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	rig = predictor_rig_new(&predictor_rig_shape, 1);
	return wake_fd < 0 ? -1 : 0;
}

static int teardown(void **state)
{
	(void)state;
	rig = predictor_rig_free(rig);
	return close(wake_fd);
}

static void test_encode(void **state)
{
	(void)state;
	use(64, 64);
	predictor_rig_check_encode(rig);
	use(1, 64); /* each block alone */
	predictor_rig_check_encode(rig);
}

static void test_decode(void **state)
{
	(void)state;
	use(64, 64);
	predictor_rig_check_decode(rig);
	predictor_rig_check_prefix_only(rig);
}

static void test_damage(void **state)
{
	(void)state;
	use(32, 64);
	predictor_rig_check_damage(rig);
	use(1024, 64);
	predictor_rig_check_damage(rig);
	predictor_rig_check_refusals(rig);
}

/* A lane that sleeps is woken once, and only when it was armed. */
static void test_wake(void **state)
{
	struct pollfd p = { .fd = wake_fd, .events = POLLIN };
	struct device *d;
	uint64_t n;

	(void)state;
	use(64, 64);
	d = rig->d;
	predictor_rig_sequences(rig);
	assert_int_equal(d->ops->arm(d), 1); /* nothing is under way, and nothing will come */
	predictor_rig_decode(rig, 0, 0);
	if (d->ops->arm(d))
		assert_int_equal(poll(&p, 1, 60000), 1);
	predictor_rig_wait(rig, 1);
	while (read(wake_fd, &n, sizeof(n)) > 0)
		;
	d->ops->disarm(d);
	predictor_rig_decode(rig, 0, 1);
	predictor_rig_wait(rig, 1);
	assert_int_equal(poll(&p, 1, 0), 0);
	predictor_rig_drop(rig);
}

/* No more than it was made for; and what was started is run before it ends. */
static void test_full(void **state)
{
	struct device_task more;

	(void)state;
	use(16, 4);
	predictor_rig_sequences(rig);
	for (uint32_t b = 0; b < 4; b++)
		predictor_rig_decode(rig, 0, b);
	more = rig->task[0][3];
	assert_int_equal(rig->d->ops->start(rig->d, &more), -EAGAIN);
	predictor_rig_wait(rig, 4);
	predictor_rig_drop(rig);
	assert_int_equal(rig->d->ops->dead(rig->d), 0);
	assert_int_equal(rig->d->ops->busy_since(rig->d), 0);
}

/* What may wait is done too, in the order of each sequence. */
static void test_background(void **state)
{
	(void)state;
	use(32, 64);
	predictor_rig_sequences(rig);
	for (uint32_t b = 0; b < rig->r->s[1].blocks; b++) {
		predictor_rig_decode(rig, 0, b);
		predictor_rig_wait(rig, 1); /* the task that is started again below */
	}
	rig->d->ops->sequence_truncate(rig->s[0], 0);
	for (uint32_t b = 0; b < rig->r->s[1].blocks; b++) {
		rig->task[0][b].background = 1;
		assert_int_equal(rig->d->ops->start(rig->d, &rig->task[0][b]), 0);
		predictor_rig_decode(rig, 1, b);
	}
	predictor_rig_wait(rig, 2u * rig->r->s[1].blocks);
	for (uint32_t b = 0; b < rig->r->s[1].blocks; b++) {
		assert_int_equal(rig->task[0][b].res, 0);
		assert_int_equal(rig->task[1][b].res, 0);
		assert_true(rig->task[1][b].busy_ns > 0);
	}
	predictor_rig_drop(rig);
}

/* What waits is given back at once, and what is behind it. */
static void test_cancel(void **state)
{
	struct device_task ready = { .op = DEVICE_PREPARE };
	unsigned cancelled = 0;

	(void)state;
	use(16, 64);
	predictor_rig_sequences(rig);
	ready.sequence = rig->s[0];
	assert_int_equal(rig->d->ops->start(rig->d, &ready), 0);
	predictor_rig_wait(rig, 1);
	assert_int_equal(ready.res, 0);
	for (uint32_t b = 0; b < 6; b++)
		predictor_rig_decode(rig, 0, b);
	for (uint32_t b = 6; b-- > 0;)
		cancelled += (unsigned)rig->d->ops->cancel(rig->d, &rig->task[0][b]);
	for (unsigned left = 6; left > 0;) {
		struct device_task *done[4];

		left -= rig->d->ops->poll(rig->d, done, 4);
	}
	for (uint32_t b = 0; b < 6; b++)
		assert_true(rig->task[0][b].res == 0 || rig->task[0][b].res == -ECANCELED);
	for (uint32_t b = 6 - (cancelled < 6 ? cancelled : 6); b < 6; b++)
		assert_int_equal(rig->task[0][b].res, -ECANCELED);
	rig->d->ops->sequence_truncate(rig->s[0], 0);
	predictor_rig_decode(rig, 0, 0);
	predictor_rig_wait(rig, 1);
	assert_int_equal(rig->task[0][0].res, 0);
	predictor_rig_drop(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_encode), cmocka_unit_test(test_decode),
		cmocka_unit_test(test_damage), cmocka_unit_test(test_wake),
		cmocka_unit_test(test_full),   cmocka_unit_test(test_background),
		cmocka_unit_test(test_cancel),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
