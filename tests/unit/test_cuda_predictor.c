/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_cuda_predictor.c - gpu/cuda_predictor.c over a CUDA that is not one (tests/lib/fake_cuda.h): what
 * predictor_rig.h asks of all predictors, and the errors that only this one has.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>

#include "gpu/predictor.h"
#include "tests/lib/fake_cuda.h"
#include "tests/lib/predictor_rig.h"

#define OUT_OF_MEMORY 2 /* cudaErrorMemoryAllocation */
#define LOST 700	/* cudaErrorIllegalAddress: the context is gone */

int skvcd_cuda_predictor_new_v1(const struct predictor_options *options, struct device **ret_device,
				char *err);

static struct predictor_rig *rig;

static void use(uint32_t batch_tokens, uint32_t positions_max)
{
	const struct predictor_options o = { .which = "auto",
					     .tasks_max = 64,
					     .wake_fd = -1,
					     .batch_tokens = batch_tokens,
					     .positions_max = positions_max,
					     .background_percent = 100 };
	char err[DEVICE_ERR_BYTES] = "";
	struct device *d = NULL;

	predictor_rig_unuse(rig); /* fake_cuda is one thread's at a time */
	assert_int_equal(skvcd_cuda_predictor_new_v1(&o, &d, err), 0);
	predictor_rig_use(rig, d);
}

static void rig_of(uint32_t draft, uint32_t others)
{
	struct code_rig_shape shape = predictor_rig_shape;

	shape.draft = draft;
	fake_cuda = (struct fake_cuda){ 0 };
	rig = predictor_rig_new(&shape, others);
	fake_cuda.model_geometry = &rig->r->g;
	fake_cuda.model_profile = rig->r->profile;
}

static int setup(void **state)
{
	(void)state;
	rig_of(0, 1);
	return 0;
}

static int setup_all_model(void **state)
{
	(void)state;
	rig_of(0, UINT32_MAX);
	return 0;
}

static int setup_draft(void **state)
{
	(void)state;
	rig_of(2, 1);
	return 0;
}

/* Nothing is left, whatever has failed. */
static int teardown(void **state)
{
	(void)state;
	fake_cuda.model_geometry = NULL;
	rig = predictor_rig_free(rig);
	return fake_cuda.live ? -1 : 0;
}

static void test_encode(void **state)
{
	(void)state;
	use(64, 4096);
	predictor_rig_check_encode(rig);
	assert_true(fake_cuda.model_blocks_most > 1);
}

static void test_decode(void **state)
{
	(void)state;
	use(64, 4096);
	predictor_rig_check_decode(rig);
	assert_in_range(fake_cuda.model_blocks_most, 2, 4);
	predictor_rig_check_prefix_only(rig);
	use(16, 4096);
	predictor_rig_check_decode(rig);
}

/* What a draft did not code goes into its prefix by its ids, or not at all. */
static void test_draft(void **state)
{
	(void)state;
	use(64, 4096);
	predictor_rig_check_encode(rig);
	predictor_rig_check_decode(rig);
	predictor_rig_sequences(rig);
	predictor_rig_decode(rig, 0, 0);
	predictor_rig_wait(rig, 1);
	assert_int_equal(rig->task[0][0].res, 0);
	rig->task[0][1] = (struct device_task){ .op = DEVICE_DECODE,
						.region = &rig->region[0][1],
						.position = predictor_rig_shape.block_tokens,
						.sequence = rig->s[0],
						.profile = rig->r->profile,
						.in = rig->coded[0][1],
						.in_bytes = rig->info[0][1].encoded_bytes,
						.expect_xxh3 = rig->info[0][1].raw_xxh3 };
	assert_int_equal(rig->d->ops->start(rig->d, &rig->task[0][1]), 0);
	predictor_rig_wait(rig, 1);
	assert_int_equal(rig->task[0][1].res, -ENODATA);
	assert_int_equal(rig->d->ops->sequence_position(rig->s[0]),
			 predictor_rig_shape.block_tokens);
	predictor_rig_drop(rig);
}

/* So many blocks of two sequences, block by block; the thread begins when all wait. */
static void decode_waiting(uint32_t blocks)
{
	pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
	struct device_task ready = { .op = DEVICE_PREPARE };

	predictor_rig_sequences(rig);
	ready.sequence = rig->s[2]; /* of which there is nothing else */
	(void)pthread_mutex_lock(&gate);
	fake_cuda.gate = &gate;
	assert_int_equal(rig->d->ops->start(rig->d, &ready), 0);
	for (uint32_t b = 0; b < blocks; b++)
		for (uint32_t i = 0; i < 2; i++)
			predictor_rig_decode(rig, i, b);
	(void)pthread_mutex_unlock(&gate);
	predictor_rig_wait(rig, 1u + 2u * blocks);
	for (uint32_t b = 0; b < blocks; b++)
		for (uint32_t i = 0; i < 2; i++) {
			assert_int_equal(rig->task[i][b].res, 0);
			assert_memory_equal(rig->page[i][b], rig->r->s[i].raw[b],
					    rig->r->g.raw_bytes);
		}
}

static void leave(void)
{
	predictor_rig_drop(rig);
	predictor_rig_unuse(rig);
	fake_cuda.gate = NULL;
}

/* Three batches of each sequence, one after the other, whole sequences first. */
static void test_overlap(void **state)
{
	(void)state;
	use(16, 4096);
	decode_waiting(3);
	leave();
	assert_int_equal(fake_cuda.model_batches, 6);
	assert_int_equal(fake_cuda.model_followed, 4);
	assert_int_equal(fake_cuda.coders_peak, PREDICTOR_DEPTH_MAX);
}

static void test_whole_sequences(void **state)
{
	(void)state;
	use(48, 4096);
	decode_waiting(3);
	leave();
	assert_int_equal(fake_cuda.model_batches, 2);
	assert_int_equal(fake_cuda.model_parts_most, 1);
	assert_int_equal(fake_cuda.model_followed, 0);
}

/* No memory for more than one batch, and for one that encodes. */
static void test_one_room(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 20; round++) {
		predictor_rig_unuse(rig);
		fake_cuda.coders_most = 1 + round % 2u;
		use(16, 4096);
		if (round % 2u)
			predictor_rig_check_encode(rig);
		else
			predictor_rig_check_decode(rig);
	}
	predictor_rig_unuse(rig);
	assert_int_equal(fake_cuda.coders_peak, 2);
	assert_int_equal(fake_cuda.model_followed, 0);
}

/* Room for batches beside the first makes way for what encodes. */
static void test_rooms_make_way(void **state)
{
	uint8_t *out = calloc(1, rig->cap);

	(void)state;
	assert_non_null(out);
	fake_cuda.coders_most = PREDICTOR_DEPTH_MAX;
	use(16, 4096);
	decode_waiting(3);
	rig->d->ops->sequence_truncate(rig->s[0], 0);
	predictor_rig_encode(rig, 0, 0, out);
	predictor_rig_wait(rig, 1);
	assert_int_equal(rig->task[0][0].res, 0);
	assert_memory_equal(out, rig->coded[0][0], rig->info[0][0].encoded_bytes);
	leave();
	assert_int_equal(fake_cuda.coders_peak, PREDICTOR_DEPTH_MAX);
	free(out);
}

static void test_damage(void **state)
{
	(void)state;
	use(32, 4096);
	predictor_rig_check_damage(rig);
	use(1024, 4096);
	predictor_rig_check_damage(rig);
	predictor_rig_check_refusals(rig);
}

/* The model is on the GPU while a sequence has it, and comes again. */
static void test_model_lives_with_sequences(void **state)
{
	(void)state;
	use(64, 4096);
	for (unsigned i = 1; i <= 3; i++) {
		predictor_rig_sequences(rig);
		predictor_rig_decode(rig, 0, 0);
		predictor_rig_decode(rig, 1, 0);
		predictor_rig_wait(rig, 2);
		assert_int_equal(fake_cuda.models, i);
		predictor_rig_drop(rig);
	}
}

static void decodes_again(void)
{
	predictor_rig_decode(rig, 0, 0);
	predictor_rig_wait(rig, 1);
	assert_int_equal(rig->task[0][0].res, 0);
	assert_memory_equal(rig->page[0][0], rig->r->s[0].raw[0], rig->r->g.raw_bytes);
	rig->d->ops->sequence_truncate(rig->s[0], 0);
}

static void fails_with(int res)
{
	predictor_rig_decode(rig, 0, 0);
	predictor_rig_wait(rig, 1);
	assert_int_equal(rig->task[0][0].res, res);
	assert_int_equal(rig->d->ops->sequence_position(rig->s[0]), 0);
	assert_int_equal(rig->d->ops->busy_since(rig->d), 0);
}

static int prepared(void)
{
	struct device_task t = { .op = DEVICE_PREPARE, .sequence = rig->s[0] };

	assert_int_equal(rig->d->ops->start(rig->d, &t), 0);
	predictor_rig_wait(rig, 1);
	return t.res;
}

static void test_errors(void **state)
{
	(void)state;
	use(64, 4096);
	predictor_rig_sequences(rig);
	fake_cuda.model_error = OUT_OF_MEMORY;
	assert_int_equal(prepared(), -ENOMEM);
	fake_cuda.model_error = 0;
	assert_int_equal(prepared(), 0);
	assert_int_equal(fake_cuda.models, 1);
	predictor_rig_drop(rig);
	predictor_rig_sequences(rig);
	fake_cuda.model_error = OUT_OF_MEMORY;
	fails_with(-ENOMEM);
	fake_cuda.model_error = 0;
	decodes_again();
	fake_cuda.code_error = OUT_OF_MEMORY;
	fails_with(-ENOMEM);
	fake_cuda.code_error = 0;
	decodes_again();
	/* After the model, before anybody has the bytes. */
	fake_cuda.launch_error = OUT_OF_MEMORY;
	fails_with(-ENOMEM);
	fake_cuda.launch_error = 0;
	fake_cuda.bad_sums = 1;
	fails_with(-EBADMSG);
	decodes_again();
	/* The context is lost: nothing more is tried. */
	fake_cuda.coded_error = LOST;
	fails_with(-EIO);
	fake_cuda.coded_error = 0;
	assert_int_equal(rig->d->ops->dead(rig->d), -EIO);
	assert_int_equal(rig->d->ops->start(rig->d, &rig->task[0][0]), -EIO);
	predictor_rig_drop(rig);
}

static void test_too_long(void **state)
{
	(void)state;
	use(64, 3u * 16u);
	predictor_rig_sequences(rig);
	for (uint32_t b = 0; b < 4; b++) {
		predictor_rig_decode(rig, 0, b);
		predictor_rig_wait(rig, 1);
		assert_int_equal(rig->task[0][b].res, b < 3 ? 0 : -E2BIG);
	}
	predictor_rig_drop(rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_encode, setup, teardown),
		cmocka_unit_test_setup_teardown(test_decode, setup, teardown),
		cmocka_unit_test_setup_teardown(test_draft, setup_draft, teardown),
		cmocka_unit_test_setup_teardown(test_overlap, setup_all_model, teardown),
		cmocka_unit_test_setup_teardown(test_whole_sequences, setup_all_model, teardown),
		cmocka_unit_test_setup_teardown(test_one_room, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rooms_make_way, setup_all_model, teardown),
		cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_model_lives_with_sequences, setup, teardown),
		cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
		cmocka_unit_test_setup_teardown(test_too_long, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
