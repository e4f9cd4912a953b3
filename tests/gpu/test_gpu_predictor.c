/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu_predictor.c - models on a real GPU, as the daemon uses them: what predictor_rig.h asks of all predictors,
 * for models, types and sizes of blocks that kernels care about.  The CPU makes what it is compared with.
 *
 * $SKVC_TEST_DEVICE=sim runs it over the codec.  Exits 77 where there is no GPU, or no shared object for it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/gpu_codec_rig.h"
#include "tests/lib/predictor_rig.h"

#define OTHERS_NONE UINT32_MAX

static int make(uint32_t batch_tokens, struct device **ret)
{
	const char *which = getenv("SKVC_TEST_DEVICE");
	const struct predictor_options o = { .which = "auto",
					     .tasks_max = 256,
					     .wake_fd = -1,
					     .batch_tokens = batch_tokens,
					     .positions_max = 4096,
					     .background_percent = 100 };
	char err[DEVICE_ERR_BYTES] = "";
	int r;

	if (which && strcmp(which, "sim") == 0)
		return sim_predictor_new(&o, ret);
	r = cuda_load_predictor(gpu_codec_rig_library(), &o, ret, err);
	if (r < 0)
		(void)fprintf(stderr, "%s\n", err);
	return r;
}

static void check(const struct code_rig_shape *shape, uint32_t others)
{
	static const uint32_t batches[] = { 16, 100, 4096 };
	struct predictor_rig *rig = predictor_rig_new(shape, others);

	for (unsigned i = 0; i < sizeof(batches) / sizeof(batches[0]); i++) {
		struct device *d = NULL;

		assert_int_equal(make(batches[i], &d), 0);
		predictor_rig_use(rig, d);
		predictor_rig_check_encode(rig);
		predictor_rig_check_decode(rig);
		predictor_rig_check_damage(rig);
	}
	predictor_rig_check_prefix_only(rig);
	predictor_rig_check_refusals(rig);
	predictor_rig_free(rig);
}

static void test_types(void **state)
{
	(void)state;
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++)
		check(&(struct code_rig_shape){ .kind = 1,
						.dtype = (uint8_t)dtype,
						.ids = dtype % 2u == 0,
						.wild = dtype % 2u == 1,
						.block_tokens = 16,
						.streams_count = 1,
						.blocks = { 12, 3, 0, 7 } },
		      2);
}

static void test_blocks(void **state)
{
	(void)state;
	for (uint32_t tokens = 16; tokens <= 128; tokens *= 2)
		check(&(struct code_rig_shape){ .kind = tokens == 64 ? TINY_WIDE : 0,
						.dtype = CODEC_DTYPE_BF16,
						.ids = true,
						.wild = true,
						.block_tokens = tokens,
						.streams_count = tokens == 64 ? 2 : 1,
						.blocks = { 9, 4, 2, 1 } },
		      tokens == 32 ? 0 : OTHERS_NONE);
}

static void test_drafts(void **state)
{
	(void)state;
	check(&(struct code_rig_shape){ .kind = TINY_WIDE,
					.draft = 1,
					.dtype = CODEC_DTYPE_BF16,
					.ids = true,
					.block_tokens = 16,
					.streams_count = 2,
					.blocks = { 7, 3, 0, 4 } },
	      2);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_types),
					    cmocka_unit_test(test_blocks),
					    cmocka_unit_test(test_drafts) };
	struct device *d = NULL;
	int r = make(16, &d);

	if (r == -ENOENT || r == -ENODEV)
		return 77;
	if (r < 0)
		return 1;
	d->ops->free(d);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
