/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu_layer.c - `layer` on a real GPU against the CPU's, byte for byte: every element type, contents that suit
 * the profile and contents that do not, keys turned either way, one and two layers looked back and none, layouts,
 * skipped tokens, damaged payloads, batches of many blocks.
 *
 * $SKVC_TEST_DEVICE=sim runs it over the simulated GPU.  Exits 77 where there is no GPU, or no shared object for it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/gpu_codec_rig.h"
#include "tests/lib/gpu_kv.h"
#include "tests/lib/gpu_place.h"

#define STAGING_BYTES (256ull << 20)
#define MEMORY_BYTES (256ull << 20)
#define MADE 4u /* blocks that suit the profile; the rest are gpu_kv's contents */
#define BLOCKS (MADE + GPU_KV_CONTENT_COUNT)
#define MANY \
	130u /* an odd number of pieces of rows, and more tiles of products than multiprocessors */
#define MANY_SIM 20u /* the CPU has no pieces of rows, and takes its time under a sanitizer */
#define FLIPS 260u

static struct gpu_codec_rig rig;
static struct gpu_job jobs[MANY];

struct trial { /* a profile, blocks, and what the CPU makes of them */
	struct gpu_kv kv;
	struct codec_profile *profile;
	uint32_t position[BLOCKS];
	uint8_t *raw[BLOCKS], *coded[BLOCKS], *made;
	struct codec_info info[BLOCKS];
};

/* The device remembers profiles by their addresses: they stay until it is gone. */
static struct trial *trials[64];
static unsigned trials_count;

static void *allocate(uint64_t bytes)
{
	void *p = malloc(bytes);

	assert_non_null(p);
	return p;
}

static struct trial *trial_new(enum gpu_kv_shape shape, uint8_t dtype, uint32_t previous,
			       int interleaved)
{
	struct trial *t = calloc(1, sizeof(*t));

	assert_true(t && trials_count < sizeof(trials) / sizeof(trials[0]));
	trials[trials_count++] = t;
	gpu_kv_init(&t->kv, shape, dtype, 77u + trials_count);
	t->made = allocate(MADE * t->kv.g.raw_bytes);
	memset(t->made, 0x11, MADE * t->kv.g.raw_bytes);
	for (uint32_t i = 0; i < BLOCKS; i++)
		t->position[i] = i * 4099u * t->kv.g.block_tokens;
	t->position[1] = CODEC_POSITION_UNKNOWN - 5u; /* turns wrap */
	assert_int_equal(codec_profile_made(&t->kv.g, previous, interleaved, 5u + trials_count,
					    t->position, MADE, t->made, &t->profile),
			 0);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		struct codec_view v = { .position = t->position[i] };

		t->raw[i] = i < MADE ? t->made + i * t->kv.g.raw_bytes : t->kv.raw[i - MADE];
		t->coded[i] = allocate(t->kv.cap);
		v.base = t->raw[i];
		assert_int_equal(codec_encode(t->kv.ws, &t->kv.g, t->profile, CODEC_SPEC_LAYER,
					      CODEC_ENCODE_VERIFY, &v, t->coded[i], t->kv.cap,
					      &t->info[i]),
				 0);
	}
	return t;
}

static int setup(void **state)
{
	char why[DEVICE_ERR_BYTES];
	int r = gpu_codec_rig_open(&rig, STAGING_BYTES, MEMORY_BYTES, why);

	(void)state;
	if (r < 0)
		print_error("no device: %s\n", why);
	return r;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(rig.staged, 0);
	gpu_codec_rig_close(&rig);
	while (trials_count > 0) {
		struct trial *t = trials[--trials_count];

		for (uint32_t i = 0; i < BLOCKS; i++)
			free(t->coded[i]);
		free(t->made);
		codec_profile_free(t->profile);
		gpu_kv_deinit(&t->kv);
		free(t);
	}
	return 0;
}

static void run_ok(unsigned count, const char *what)
{
	gpu_codec_rig_run(&rig, jobs, count);
	for (unsigned i = 0; i < count; i++)
		if (jobs[i].start_res || jobs[i].task.res)
			fail_msg("%s: task %u: start %d, result %d", what, i, jobs[i].start_res,
				 jobs[i].task.res);
	assert_int_equal(rig.d->ops->dead(rig.d), 0);
}

static void job_encode(unsigned i, const struct trial *t, const struct gpu_place *from,
		       uint32_t block, uint32_t position, bool verify)
{
	jobs[i] = (struct gpu_job){
		.keep = gpu_codec_rig_host(&rig, t->kv.cap),
		.task = { .op = DEVICE_ENCODE,
			  .region = &from->region,
			  .block_index = block,
			  .profile = t->profile,
			  .speculator = CODEC_SPEC_LAYER,
			  .position = position,
			  .verify = verify,
			  .out_cap_bytes = t->kv.cap },
	};
}

static void job_decode(unsigned i, const struct trial *t, const struct gpu_place *to,
		       uint32_t block, uint32_t which)
{
	uint64_t bytes = t->info[which].encoded_bytes;
	uint8_t *in = gpu_codec_rig_host(&rig, bytes);

	memcpy(in, t->coded[which], bytes);
	jobs[i] = (struct gpu_job){
		.task = { .op = DEVICE_DECODE,
			  .region = &to->region,
			  .block_index = block,
			  .profile = t->profile,
			  .in = in,
			  .in_bytes = bytes,
			  .expect_xxh3 = t->info[which].raw_xxh3 },
	};
}

static unsigned same, alike, by_layer; /* payloads of this test */

static void payload_check(struct trial *t, uint32_t i, const struct gpu_job *j, const char *what)
{
	const struct codec_info *cpu = &t->info[i], *gpu = &j->task.info;

	assert_int_equal(gpu->raw_xxh3, cpu->raw_xxh3);
	if (codec_payload_needs_cpu(&t->kv.g, t->coded[i], cpu->encoded_bytes)) {
		struct codec_view v = { .base = t->kv.back };

		assert_int_equal(codec_decode(t->kv.ws, &t->kv.g, t->profile, j->keep,
					      gpu->encoded_bytes, &cpu->raw_xxh3, &v),
				 0);
		alike++;
		return;
	}
	if (gpu->encoded_bytes != cpu->encoded_bytes || gpu->speculator != cpu->speculator)
		fail_msg("%s, block %u: %llu bytes by %s, the CPU makes %llu by %s", what, i,
			 (unsigned long long)gpu->encoded_bytes,
			 codec_speculator_name(gpu->speculator),
			 (unsigned long long)cpu->encoded_bytes,
			 codec_speculator_name(cpu->speculator));
	for (uint64_t k = 0; k < cpu->encoded_bytes; k++)
		if (((const uint8_t *)j->keep)[k] != t->coded[i][k])
			fail_msg("%s, block %u: byte %llu of %llu differs", what, i,
				 (unsigned long long)k, (unsigned long long)cpu->encoded_bytes);
	assert_int_equal(gpu->escapes, cpu->escapes);
	assert_int_equal(gpu->chunks_raw, cpu->chunks_raw);
	same++;
	by_layer += cpu->speculator == CODEC_SPEC_LAYER;
}

static void decode_check(struct trial *t, struct gpu_place *to, bool skip, const char *what)
{
	uint32_t tokens = t->kv.g.block_tokens;
	unsigned n = 0;

	gpu_place_poison(to);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		uint32_t left = skip ? i * tokens / (BLOCKS - 1u) : 0;

		if (codec_payload_needs_cpu(&t->kv.g, t->coded[i], t->info[i].encoded_bytes))
			continue;
		assert_int_equal(rig.d->ops->can_decode(rig.d, &t->kv.g, t->profile, t->coded[i],
							t->info[i].encoded_bytes),
				 1);
		job_decode(n, t, to, i, i);
		jobs[n++].task.skip_tokens = left;
		gpu_kv_scatter(&to->region, i, left, t->raw[i], to->image);
	}
	run_ok(n, what);
	gpu_place_check(to, what);
}

static void trial_run(struct trial *t, enum gpu_kv_layout layout, const char *what)
{
	struct gpu_place from, to;

	gpu_codec_rig_forget(&rig);
	gpu_place_make(&rig, &from, &t->kv, layout, BLOCKS);
	gpu_place_make(&rig, &to, &t->kv, layout, BLOCKS);
	for (uint32_t i = 0; i < BLOCKS; i++)
		gpu_kv_scatter(&from.region, i, 0, t->raw[i], from.image);
	gpu_place_put(&from);
	decode_check(t, &to, false, what);
	decode_check(t, &to, true, what);
	for (unsigned verify = 0; verify < 2; verify++) {
		for (uint32_t i = 0; i < BLOCKS; i++)
			job_encode(i, t, &from, i, t->position[i], verify);
		run_ok(BLOCKS, what);
		for (uint32_t i = 0; i < BLOCKS; i++)
			payload_check(t, i, &jobs[i], what);
	}
	gpu_place_check(&from, what);
	gpu_place_drop(&from);
	gpu_place_drop(&to);
}

static struct type {
	uint8_t dtype;
	const char *name;
} types[] = { { CODEC_DTYPE_BF16, "bf16" },
	      { CODEC_DTYPE_FP16, "fp16" },
	      { CODEC_DTYPE_E4M3, "e4m3" },
	      { CODEC_DTYPE_E5M2, "e5m2" } };

static void test_type(void **state)
{
	static const enum gpu_kv_shape shapes[] = { GPU_KV_2X4X64, GPU_KV_3X8X128, GPU_KV_TOKENS64,
						    GPU_KV_TOKENS128, GPU_KV_OPAQUE };
	const struct type *type = *state;

	same = alike = by_layer = 0;
	for (unsigned s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
		for (uint32_t previous = 0; previous < 3; previous++) {
			struct trial *t = trial_new(shapes[s], type->dtype, previous,
						    previous == 2);
			char what[96];

			(void)snprintf(what, sizeof(what), "%s, %s, %u layers back", type->name,
				       gpu_kv_shape_name(shapes[s]), previous);
			assert_int_equal(rig.d->ops->can_encode(rig.d, &t->kv.g, t->profile,
								CODEC_SPEC_LAYER),
					 1);
			trial_run(t, GPU_KV_NHD, what);
			trial_run(t, previous == 1 ? GPU_KV_ODD : GPU_KV_HND, what);
		}
	print_message("%s: %u payloads are the CPU's (%u by layer), %u mean the same\n", type->name,
		      same, by_layer, alike);
	assert_true(by_layer > 0);
}

/* More rows than one piece, positions unknown among them. */
static void test_many(void **state)
{
	const uint32_t many = gpu_codec_rig_sim() ? MANY_SIM : MANY;
	struct trial *t = trial_new(GPU_KV_3X8X128, CODEC_DTYPE_BF16, 1, 0);
	struct gpu_place from, to;

	(void)state;
	gpu_place_make(&rig, &from, &t->kv, GPU_KV_NHD, many);
	gpu_place_make(&rig, &to, &t->kv, GPU_KV_NHD, many);
	for (uint32_t i = 0; i < many; i++)
		gpu_kv_scatter(&from.region, i, 0, t->raw[i % MADE], from.image);
	gpu_place_put(&from);
	for (uint32_t i = 0; i < many; i++)
		job_encode(i, t, &from, i,
			   i % 10u == 9u ? CODEC_POSITION_UNKNOWN : t->position[i % MADE], true);
	run_ok(many, "many");
	for (uint32_t i = 0; i < many; i++) {
		if (i % 10u != 9u)
			payload_check(t, i % MADE, &jobs[i], "many");
		else
			assert_int_equal(jobs[i].task.info.speculator, CODEC_SPEC_CHANNEL);
	}
	gpu_place_poison(&to);
	for (uint32_t i = 0; i < many; i++) {
		job_decode(i, t, &to, i, i % MADE);
		gpu_kv_scatter(&to.region, i, 0, t->raw[i % MADE], to.image);
	}
	run_ok(many, "many");
	gpu_place_check(&to, "many");
	gpu_place_drop(&from);
	gpu_place_drop(&to);
}

/* Whatever is wrong with a payload, the pages may be anything and the device lives. */
static void test_damaged(void **state)
{
	struct trial *t = trial_new(GPU_KV_2X4X64, CODEC_DTYPE_BF16, 1, 0);
	struct gpu_place to;
	struct rng r;

	(void)state;
	rng_init(&r, 99);
	for (unsigned round = 0; round < FLIPS / MANY; round++) {
		gpu_codec_rig_forget(&rig);
		gpu_place_make(&rig, &to, &t->kv, GPU_KV_NHD, MANY);
		for (uint32_t i = 0; i < MANY; i++) {
			uint8_t *in;

			job_decode(i, t, &to, i, 0);
			in = (uint8_t *)(uintptr_t)jobs[i].task.in;
			in[rng_below(&r, jobs[i].task.in_bytes)] ^= (uint8_t)(1u
									      << rng_below(&r, 8));
		}
		gpu_codec_rig_run(&rig, jobs, MANY);
		for (uint32_t i = 0; i < MANY; i++) {
			assert_int_equal(jobs[i].start_res, 0);
			assert_true(jobs[i].task.res == -EBADMSG || jobs[i].task.res == -ESTALE);
		}
		assert_int_equal(rig.d->ops->dead(rig.d), 0);
		gpu_place_drop(&to);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		{ "test_bf16", test_type, setup, teardown, &types[0] },
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
		{ "test_fp16", test_type, setup, teardown, &types[1] },
		{ "test_e4m3", test_type, setup, teardown, &types[2] },
		{ "test_e5m2", test_type, setup, teardown, &types[3] },
	};
	char why[DEVICE_ERR_BYTES];
	int r = gpu_codec_rig_open(&rig, STAGING_BYTES, MEMORY_BYTES, why);

	if (r == -ENOENT) {
		printf("no GPU to test: %s\n", why);
		return 77;
	}
	if (r == 0) /* else each test says what is wrong */
		gpu_codec_rig_close(&rig);
	return cmocka_run_group_tests_name("gpu-layer", tests, NULL, NULL);
}
