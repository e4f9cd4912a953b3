/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu_codec.c - the codec of a real GPU against the CPU's, bit for bit, through the interface a lane uses:
 * every element type, content, geometry and layout; damaged payloads; batches of all operations mixed;
 * sources that change under the kernels; staging that is full.
 *
 * $SKVC_TEST_DEVICE=sim runs it over the simulated GPU, which tries the test itself.  Exits 77 where there
 * is no GPU, or no shared object for it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/sim_handles.h"
#include "tests/lib/gpu_codec_rig.h"
#include "tests/lib/gpu_kv.h"
#include "tests/lib/gpu_place.h"
#include "tools/bench_cuda.h"

#define STAGING_BYTES (96ull << 20)
#define MEMORY_BYTES (128ull << 20)
#define JOBS_MAX 300u
#define FLIPS 500u
#define CONTENTS GPU_KV_CONTENT_COUNT

static struct gpu_codec_rig rig;
static struct gpu_job jobs[JOBS_MAX];

static void put_contents(const struct gpu_kv *kv, struct gpu_place *p)
{
	for (uint32_t c = 0; c < CONTENTS; c++)
		gpu_kv_scatter(&p->region, c, 0, kv->raw[c], p->image);
	gpu_place_put(p);
}

static void is_alive(void)
{
	assert_int_equal(rig.d->ops->dead(rig.d), 0);
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
	return 0;
}

/* ---- tasks ---- */

static struct device_task *job_encode(unsigned i, const struct gpu_kv *kv, unsigned profile,
				      const struct gpu_place *from, uint32_t block, void *keep)
{
	jobs[i] = (struct gpu_job){
		.keep = keep,
		.task = { .op = DEVICE_ENCODE,
			  .region = &from->region,
			  .block_index = block,
			  .profile = kv->profile[profile],
			  .speculator = CODEC_SPEC_CHANNEL,
			  .verify = 1,
			  .out_cap_bytes = kv->cap },
	};
	return &jobs[i].task;
}

static struct device_task *job_decode(unsigned i, const struct gpu_kv *kv, unsigned profile,
				      enum gpu_kv_content content, const struct gpu_place *to,
				      uint32_t block, const void *payload)
{
	jobs[i] = (struct gpu_job){
		.task = { .op = DEVICE_DECODE,
			  .region = &to->region,
			  .block_index = block,
			  .profile = kv->profile[profile],
			  .in = payload,
			  .in_bytes = kv->info[profile][content].encoded_bytes,
			  .expect_xxh3 = kv->info[profile][content].raw_xxh3 },
	};
	return &jobs[i].task;
}

static struct device_task *job_copy(unsigned i, const struct gpu_kv *kv, enum device_op op,
				    const struct gpu_place *at, uint32_t block, uint8_t *raw)
{
	jobs[i] = (struct gpu_job){
		.task = { .op = op, .region = &at->region, .block_index = block },
	};
	if (op == DEVICE_COPY_OUT) {
		jobs[i].task.out = raw;
		jobs[i].task.out_cap_bytes = kv->g.raw_bytes;
	} else {
		jobs[i].task.in = raw;
		jobs[i].task.in_bytes = kv->g.raw_bytes;
	}
	return &jobs[i].task;
}

static void run_ok(unsigned count, const char *what)
{
	gpu_codec_rig_run(&rig, jobs, count);
	for (unsigned i = 0; i < count; i++)
		if (jobs[i].start_res || jobs[i].task.res)
			fail_msg("%s: task %u (op %d): start %d, result %d", what, i,
				 (int)jobs[i].task.op, jobs[i].start_res, jobs[i].task.res);
}

static uint8_t *host_copy(const void *bytes, uint64_t count)
{
	return memcpy(gpu_codec_rig_host(&rig, count), bytes, count);
}

/* ---- each geometry, element type, content and layout ---- */

static struct gpu_kv kvs[(size_t)GPU_KV_SHAPE_COUNT * CODEC_DTYPE_COUNT];
static unsigned kvs_count;

static unsigned payloads_same, payloads_alike; /* of this test */

/* Same bytes where the CPU used no zstd; else bytes that mean the same. */
static void payload_check(struct gpu_kv *kv, unsigned profile, enum gpu_kv_content content,
			  const struct gpu_job *j, const char *what)
{
	const struct codec_info *cpu = &kv->info[profile][content], *gpu = &j->task.info;
	const uint8_t *coded = kv->coded[profile][content];

	assert_int_equal(gpu->raw_xxh3, cpu->raw_xxh3);
	if (codec_payload_needs_cpu(&kv->g, coded, cpu->encoded_bytes)) {
		if (!gpu_kv_decodes(kv, profile, j->keep, gpu->encoded_bytes, content))
			fail_msg("%s: the CPU does not restore the block from it", what);
		payloads_alike++;
		return;
	}
	if (gpu->encoded_bytes != cpu->encoded_bytes ||
	    memcmp(j->keep, coded, cpu->encoded_bytes) != 0)
		fail_msg("%s: %llu bytes, the CPU makes %llu; or others", what,
			 (unsigned long long)gpu->encoded_bytes,
			 (unsigned long long)cpu->encoded_bytes);
	assert_int_equal(gpu->escapes, cpu->escapes);
	assert_int_equal(gpu->chunks_raw, cpu->chunks_raw);
	payloads_same++;
}

/* Payloads that the device takes, into blocks with some tokens left alone. */
static void decode_all(struct gpu_kv *kv, unsigned profile, struct gpu_place *to, bool skip,
		       const char *what)
{
	uint32_t tokens = kv->g.block_tokens;
	unsigned n = 0;

	gpu_place_poison(to);
	for (uint32_t c = 0; c < CONTENTS; c++) {
		const uint8_t *coded = kv->coded[profile][c];
		uint64_t bytes = kv->info[profile][c].encoded_bytes;
		uint32_t left = skip ? c * tokens / (CONTENTS - 1u) : 0; /* none .. all */

		if (!rig.d->ops->can_decode(rig.d, &kv->g, kv->profile[profile], coded, bytes)) {
			/* Only for a reason. */
			assert_true(codec_payload_needs_cpu(&kv->g, coded, bytes));
			continue;
		}
		job_decode(n, kv, profile, (enum gpu_kv_content)c, to, c, host_copy(coded, bytes))
			->skip_tokens = left;
		gpu_kv_scatter(&to->region, c, left, kv->raw[c], to->image);
		n++;
	}
	if (n == 0)
		return;
	run_ok(n, what);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(jobs[i].task.segments_done, kv->g.segments_count);
	gpu_place_check(to, what);
}

static void encode_all(struct gpu_kv *kv, unsigned profile, struct gpu_place *from,
		       const char *what)
{
	char line[160];

	for (uint32_t c = 0; c < CONTENTS; c++)
		job_encode(c, kv, profile, from, c, gpu_codec_rig_host(&rig, kv->cap));
	run_ok(CONTENTS, what);
	for (uint32_t c = 0; c < CONTENTS; c++) {
		(void)snprintf(line, sizeof(line), "%s, %s, profile %u", what,
			       gpu_kv_content_name((enum gpu_kv_content)c), profile);
		payload_check(kv, profile, (enum gpu_kv_content)c, &jobs[c], line);
	}
	gpu_place_check(from, what); /* a source is only read */
}

/* What was just encoded, by the device itself, with as many escapes as it likes. */
static void decode_own(struct gpu_kv *kv, unsigned profile, struct gpu_place *to, const char *what)
{
	gpu_place_poison(to);
	for (uint32_t c = 0; c < CONTENTS; c++) {
		void *payload = jobs[c].keep;
		uint64_t bytes = jobs[c].task.info.encoded_bytes;

		assert_int_equal(
			rig.d->ops->can_decode(rig.d, &kv->g, kv->profile[profile], payload, bytes),
			1);
		job_decode(c, kv, profile, (enum gpu_kv_content)c, to, c, payload)->in_bytes =
			bytes;
		gpu_kv_scatter(&to->region, c, 0, kv->raw[c], to->image);
	}
	run_ok(CONTENTS, what);
	gpu_place_check(to, what);
}

static void copy_all(struct gpu_kv *kv, struct gpu_place *from, struct gpu_place *to,
		     const char *what)
{
	uint8_t *raw[CONTENTS];

	for (uint32_t c = 0; c < CONTENTS; c++) {
		raw[c] = gpu_codec_rig_host(&rig, kv->g.raw_bytes);
		job_copy(c, kv, DEVICE_COPY_OUT, from, c, raw[c]);
	}
	run_ok(CONTENTS, what);
	for (uint32_t c = 0; c < CONTENTS; c++)
		if (memcmp(raw[c], kv->raw[c], kv->g.raw_bytes) != 0)
			fail_msg("%s: COPY_OUT of block %u", what, c);
	gpu_place_poison(to);
	for (uint32_t c = 0; c < CONTENTS; c++) {
		job_copy(c, kv, DEVICE_COPY_IN, to, c, raw[c])->skip_tokens = c;
		gpu_kv_scatter(&to->region, c, c, kv->raw[c], to->image);
	}
	run_ok(CONTENTS, what);
	gpu_place_check(to, what);
}

static void try_layout(struct gpu_kv *kv, enum gpu_kv_layout layout, const char *name)
{
	struct gpu_place from, to;
	char what[96];

	gpu_codec_rig_forget(&rig);
	(void)snprintf(what, sizeof(what), "%s, %s", name, gpu_kv_layout_name(layout));
	gpu_place_make(&rig, &from, kv, layout, CONTENTS);
	gpu_place_make(&rig, &to, kv, layout, CONTENTS);
	put_contents(kv, &from);
	copy_all(kv, &from, &to, what);
	for (unsigned p = 0; p < 2; p++) {
		int can = rig.d->ops->can_encode(rig.d, &kv->g, kv->profile[p], CODEC_SPEC_CHANNEL);

		/* The simulated one takes more. */
		if (!rig.sim || kv->regular)
			assert_int_equal(can, kv->regular);
		if (!can)
			continue;
		encode_all(kv, p, &from, what);
		decode_own(kv, p, &to, what);
		decode_all(kv, p, &to, false, what);
		decode_all(kv, p, &to, true, what);
	}
	gpu_place_drop(&from);
	gpu_place_drop(&to);
	is_alive();
}

/* The device remembers profiles by their addresses: they stay until it is gone. */
static struct gpu_kv *kv_new(enum gpu_kv_shape shape, uint8_t dtype)
{
	struct gpu_kv *kv = &kvs[kvs_count];

	assert_true(kvs_count < sizeof(kvs) / sizeof(kvs[0]));
	gpu_kv_init(kv, shape, dtype, 1000u + kvs_count++);
	return kv;
}

static int teardown_kvs(void **state)
{
	int r = teardown(state);

	while (kvs_count > 0)
		gpu_kv_deinit(&kvs[--kvs_count]);
	return r;
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
	const struct type *type = *state;

	payloads_same = payloads_alike = 0;
	for (unsigned s = 0; s < GPU_KV_SHAPE_COUNT; s++) {
		enum gpu_kv_shape shape = (enum gpu_kv_shape)s;
		struct gpu_kv *kv;
		char what[64];

		if (gpu_kv_shape_is_mixed(shape) && type->dtype != CODEC_DTYPE_BF16)
			continue;
		kv = kv_new(shape, type->dtype);
		(void)snprintf(what, sizeof(what), "%s, %s", type->name, gpu_kv_shape_name(shape));
		for (unsigned l = 0; l < GPU_KV_LAYOUT_COUNT; l++)
			try_layout(kv, (enum gpu_kv_layout)l, what);
	}
	print_message("%s: %u payloads are the CPU's, %u mean the same\n", type->name,
		      payloads_same, payloads_alike);
	assert_true(payloads_same > payloads_alike / 2);
}

/* ---- what it says it can do ---- */

static void test_answers(void **state)
{
	struct gpu_kv *kv = kv_new(GPU_KV_2X4X64, CODEC_DTYPE_BF16);
	const struct device_ops *ops = rig.d->ops;
	const uint8_t *coded = kv->coded[0][GPU_KV_REAL];
	uint64_t bytes = kv->info[0][GPU_KV_REAL].encoded_bytes;
	struct codec_view v = { .base = kv->raw[GPU_KV_REAL] };
	uint8_t *generic = malloc(kv->cap);
	struct codec_info info;

	(void)state;
	assert_non_null(generic);
	assert_int_equal(codec_encode(kv->ws, &kv->g, NULL, CODEC_SPEC_GENERIC, 0, &v, generic,
				      kv->cap, &info),
			 0);
	assert_true(codec_payload_needs_cpu(&kv->g, generic, info.encoded_bytes));
	assert_int_equal(ops->can_encode(rig.d, &kv->g, kv->profile[0], CODEC_SPEC_CHANNEL), 1);
	assert_int_equal(ops->can_encode(rig.d, &kv->g, NULL, CODEC_SPEC_RAW), 1);
	assert_int_equal(ops->can_encode(rig.d, &kv->g, NULL, CODEC_SPEC_CHANNEL), 0);
	assert_int_equal(ops->can_encode(rig.d, &kv->g, kv->profile[0], CODEC_SPEC_GENERIC), 0);
	assert_int_equal(ops->can_decode(rig.d, &kv->g, kv->profile[0], coded, bytes), 1);
	assert_int_equal(
		ops->can_decode(rig.d, &kv->g, kv->profile[0], generic, info.encoded_bytes), 0);
	assert_int_equal(ops->can_decode(rig.d, &kv->g, kv->profile[0], coded, 63), 0);
	free(generic);
}

/* RAW blocks need no profile, in either direction. */
static void test_raw(void **state)
{
	struct gpu_kv *kv = kv_new(GPU_KV_2X4X64, CODEC_DTYPE_BF16);
	struct gpu_place from, to;
	struct device_task *t;
	void *payload;

	(void)state;
	gpu_codec_rig_forget(&rig);
	gpu_place_make(&rig, &from, kv, GPU_KV_NHD, 1);
	gpu_place_make(&rig, &to, kv, GPU_KV_HND, 1);
	gpu_kv_scatter(&from.region, 0, 0, kv->raw[GPU_KV_REAL], from.image);
	gpu_place_put(&from);
	payload = gpu_codec_rig_host(&rig, kv->cap);
	t = job_encode(0, kv, 0, &from, 0, payload);
	t->profile = NULL;
	t->speculator = CODEC_SPEC_RAW;
	run_ok(1, "raw");
	assert_true(t->info.encoded_bytes > kv->g.raw_bytes);
	assert_int_equal(t->info.chunks_raw, kv->g.chunks_count);
	assert_true(gpu_kv_decodes(kv, 0, payload, t->info.encoded_bytes, GPU_KV_REAL));
	kv->info[0][GPU_KV_REAL].encoded_bytes = t->info.encoded_bytes;
	gpu_place_poison(&to);
	job_decode(0, kv, 0, GPU_KV_REAL, &to, 0, payload)->profile = NULL;
	gpu_kv_scatter(&to.region, 0, 0, kv->raw[GPU_KV_REAL], to.image);
	run_ok(1, "raw");
	gpu_place_check(&to, "raw");
	gpu_place_drop(&from);
	gpu_place_drop(&to);
}

/* ---- payloads that are not what they were ---- */

/* The block is whole, or the task failed and wrote nowhere but in the block. */
static void damaged_check(struct gpu_kv *kv, struct gpu_place *to, unsigned count)
{
	unsigned refused = 0;

	for (unsigned i = 0; i < count; i++) {
		int r = jobs[i].start_res ? jobs[i].start_res : jobs[i].task.res;

		if (r != 0 && r != -EBADMSG && r != -ESTALE)
			fail_msg("flip %u: %s", i, strerror(-r));
		refused += r != 0;
	}
	assert_true(refused >= count / 2);
	gpu_codec_rig_get(&rig, to->seen, to->base, to->bytes);
	for (unsigned i = 0; i < count; i++) {
		uint8_t *raw = kv->back;

		if (!jobs[i].start_res && !jobs[i].task.res) {
			gpu_kv_scatter(&to->region, i, 0, kv->raw[GPU_KV_REAL], to->image);
			continue;
		}
		/* Whatever is there of a failed block is as it is: taken over. */
		codec_copy_out(&kv->g,
			       &(struct codec_view){ .base = to->seen,
						     .stride = to->region.stride,
						     .block_index = i,
						     .block_stride = to->region.block_stride },
			       raw);
		gpu_kv_scatter(&to->region, i, 0, raw, to->image);
	}
	gpu_place_check(to, "a damaged payload");
	is_alive();
}

static void flip_bits(enum gpu_kv_shape shape, uint8_t dtype, unsigned flips)
{
	struct gpu_kv *kv = kv_new(shape, dtype);
	uint64_t bytes = kv->info[0][GPU_KV_REAL].encoded_bytes;
	struct gpu_place to;
	struct rng r;

	gpu_codec_rig_forget(&rig);
	rng_init(&r, 77u + dtype);
	gpu_place_make(&rig, &to, kv, GPU_KV_GAPS, flips);
	gpu_place_poison(&to);
	for (unsigned i = 0; i < flips; i++) {
		uint8_t *coded = host_copy(kv->coded[0][GPU_KV_REAL], bytes);
		/* A third of them in the headers, where more can go wrong. */
		uint64_t at = rng_below(&r, i % 3 ? (uint32_t)bytes : 128u);

		coded[at] ^= (uint8_t)(1u << rng_below(&r, 8));
		job_decode(i, kv, 0, GPU_KV_REAL, &to, i, coded);
	}
	gpu_codec_rig_run(&rig, jobs, flips);
	damaged_check(kv, &to, flips);
	gpu_place_drop(&to);
}

static void test_bit_flips(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++)
		flip_bits(GPU_KV_2X4X64, types[i].dtype, FLIPS / 4u);
}

static void test_truncated(void **state)
{
	struct gpu_kv *kv = kv_new(GPU_KV_2X4X64, CODEC_DTYPE_BF16);
	uint64_t whole = kv->info[0][GPU_KV_REAL].encoded_bytes;
	const uint64_t bytes[] = { 0,  1,	  7,	     63,	64,	   65,
				   72, whole / 2, whole - 8, whole - 1, whole + 8, kv->cap + 64 };
	const unsigned count = sizeof(bytes) / sizeof(bytes[0]);
	struct gpu_place to;

	(void)state;
	gpu_codec_rig_forget(&rig);
	gpu_place_make(&rig, &to, kv, GPU_KV_NHD, count);
	gpu_place_poison(&to);
	for (unsigned i = 0; i < count; i++) {
		uint8_t *coded = gpu_codec_rig_host(&rig, kv->cap + 64);

		memset(coded, 0, kv->cap + 64);
		memcpy(coded, kv->coded[0][GPU_KV_REAL], bytes[i] < whole ? bytes[i] : whole);
		job_decode(i, kv, 0, GPU_KV_REAL, &to, i, coded)->in_bytes = bytes[i];
	}
	gpu_codec_rig_run(&rig, jobs, count);
	for (unsigned i = 0; i < count; i++) {
		int r = jobs[i].start_res ? jobs[i].start_res : jobs[i].task.res;

		if (r >= 0)
			fail_msg("a payload of %llu bytes, cut to %llu: taken",
				 (unsigned long long)whole, (unsigned long long)bytes[i]);
	}
	is_alive();
	gpu_place_drop(&to);
}

/* The checksum that the index has is not that of the bytes; the profile is another. */
static void test_another_checksum(void **state)
{
	struct gpu_kv *kv = kv_new(GPU_KV_2X4X64, CODEC_DTYPE_BF16);
	struct gpu_place to;

	(void)state;
	gpu_codec_rig_forget(&rig);
	gpu_place_make(&rig, &to, kv, GPU_KV_NHD, 2);
	for (unsigned i = 0; i < 2; i++)
		job_decode(i, kv, 0, GPU_KV_REAL, &to, i,
			   host_copy(kv->coded[0][GPU_KV_REAL],
				     kv->info[0][GPU_KV_REAL].encoded_bytes))
			->expect_xxh3 ^= i;
	gpu_codec_rig_run(&rig, jobs, 2);
	assert_int_equal(jobs[0].task.res, 0);
	assert_int_equal(jobs[1].task.res, -EBADMSG);
	job_decode(0, kv, 0, GPU_KV_REAL, &to, 0, jobs[0].task.in)->profile = kv->profile[1];
	gpu_codec_rig_run(&rig, jobs, 1);
	assert_int_equal(jobs[0].task.res, -ESTALE);
	is_alive();
	gpu_place_drop(&to);
}

/* ---- batches ---- */

static void job_mixed(unsigned i, struct gpu_kv *kv, struct gpu_place *from, struct gpu_place *to)
{
	uint32_t c = i % CONTENTS;
	const uint8_t *coded = kv->coded[1][c];
	uint64_t bytes = kv->info[1][c].encoded_bytes;

	switch (i / CONTENTS % 4) {
	case 0:
		job_encode(i, kv, 1, from, c, gpu_codec_rig_host(&rig, kv->cap));
		break;
	case 1:
		if (rig.d->ops->can_decode(rig.d, &kv->g, kv->profile[1], coded, bytes)) {
			job_decode(i, kv, 1, (enum gpu_kv_content)c, to, i,
				   host_copy(coded, bytes));
			gpu_kv_scatter(&to->region, i, 0, kv->raw[c], to->image);
			break;
		}
		/* fall through */
	case 2:
		job_copy(i, kv, DEVICE_COPY_IN, to, i, host_copy(kv->raw[c], kv->g.raw_bytes));
		gpu_kv_scatter(&to->region, i, 0, kv->raw[c], to->image);
		break;
	default:
		job_copy(i, kv, DEVICE_COPY_OUT, from, c,
			 gpu_codec_rig_host(&rig, kv->g.raw_bytes));
	}
	jobs[i].task.background = i % 7 == 6;
}

static void run_mixed(struct gpu_kv *kv, unsigned count)
{
	struct gpu_place from, to;
	char what[32];

	gpu_codec_rig_forget(&rig);
	(void)snprintf(what, sizeof(what), "a batch of %u", count);
	gpu_place_make(&rig, &from, kv, GPU_KV_NHD, CONTENTS);
	gpu_place_make(&rig, &to, kv, GPU_KV_HND, count);
	put_contents(kv, &from);
	gpu_place_poison(&to);
	for (unsigned i = 0; i < count; i++)
		job_mixed(i, kv, &from, &to);
	run_ok(count, what);
	for (unsigned i = 0; i < count; i++) {
		uint32_t c = i % CONTENTS;

		if (jobs[i].task.op == DEVICE_ENCODE)
			payload_check(kv, 1, (enum gpu_kv_content)c, &jobs[i], what);
		if (jobs[i].task.op == DEVICE_COPY_OUT)
			assert_memory_equal(jobs[i].task.out, kv->raw[c], kv->g.raw_bytes);
	}
	gpu_place_check(&to, what);
	gpu_place_drop(&from);
	gpu_place_drop(&to);
}

static void test_batches(void **state)
{
	static const unsigned counts[] = { 1, 3, 64, 300 };
	struct gpu_kv *kv = kv_new(GPU_KV_2X4X64, CODEC_DTYPE_BF16);

	(void)state;
	for (unsigned i = 0; i < 4; i++)
		run_mixed(kv, counts[i]);
	is_alive();
}

/* What lies in the GPU's pool is decoded where it lies, or copied first when it lies badly. */
static void test_from_the_pool(void **state)
{
	struct gpu_kv *kv = kv_new(GPU_KV_3X8X128, CODEC_DTYPE_BF16);
	uint64_t bytes = kv->info[0][GPU_KV_REAL].encoded_bytes;
	struct gpu_place to;
	uint8_t *at, *coded;

	(void)state;
	gpu_codec_rig_forget(&rig);
	gpu_place_make(&rig, &to, kv, GPU_KV_NHD, 4);
	gpu_place_poison(&to);
	at = gpu_codec_rig_memory(&rig, 4 * (bytes + 256u));
	coded = host_copy(kv->coded[0][GPU_KV_REAL], bytes);
	for (unsigned i = 0; i < 4; i++) {
		static const uint64_t off[] = { 0, 64, 8, 1 };
		uint8_t *in = at + i * ((bytes + 511u) & ~255ull) + off[i];

		gpu_codec_rig_put(&rig, in, coded, bytes);
		job_decode(i, kv, 0, GPU_KV_REAL, &to, i, in)->in_place = DEVICE_PLACE_DEVICE;
		gpu_kv_scatter(&to.region, i, 0, kv->raw[GPU_KV_REAL], to.image);
	}
	run_ok(4, "from the pool");
	gpu_place_check(&to, "from the pool");
	gpu_place_drop(&to);
}

/* ---- an engine that writes while it is read ---- */

struct scribbler {
	pthread_t thread;
	struct cuda_driver cuda;
	struct gpu_place *place;
	atomic_bool stop;
	_Atomic(unsigned) writes;
};

static void *scribble(void *arg)
{
	struct scribbler *s = arg;
	cuda_stream stream = NULL;
	struct report report = { 0 };
	struct rng r;

	rng_init(&r, 5);
	if (!rig.sim && (cuda_driver_open(&s->cuda, NULL, &report) < 0 ||
			 s->cuda.stream_new(&stream, CUDA_STREAM_NON_BLOCKING) != 0))
		return NULL;
	while (!atomic_load(&s->stop)) {
		uint64_t off = rng_below(&r, (uint32_t)s->place->bytes - 4096u);
		uint8_t value = (uint8_t)rng_next(&r);

		if (rig.sim)
			memset(sim_host(s->place->base + off), value, 4096);
		else if (s->cuda.fill((uintptr_t)s->place->base + off, value, 4096, stream) != 0)
			break;
		if (!rig.sim && atomic_load(&s->writes) % 16 == 15)
			(void)s->cuda.stream_sync(stream);
		atomic_fetch_add(&s->writes, 1);
	}
	if (stream) {
		(void)s->cuda.stream_sync(stream);
		(void)s->cuda.stream_free(stream);
	}
	cuda_driver_close(&s->cuda);
	return NULL;
}

/* It may fail now, or the bytes may be a mixture that later fails to verify; never worse. */
static void changing_check(struct gpu_kv *kv, unsigned count, unsigned *ret_whole)
{
	for (unsigned i = 0; i < count; i++) {
		struct codec_view v = { .base = kv->back };
		int r;

		assert_int_equal(jobs[i].start_res, 0);
		if (jobs[i].task.res < 0)
			continue;
		r = codec_decode(kv->ws, &kv->g, kv->profile[0], jobs[i].keep,
				 jobs[i].task.info.encoded_bytes, &jobs[i].task.info.raw_xxh3, &v);
		if (r != 0 && r != -EBADMSG)
			fail_msg("a store of a changing source: %s", strerror(-r));
		*ret_whole += r == 0;
	}
}

static void test_changing_source(void **state)
{
	struct gpu_kv *kv = kv_new(GPU_KV_3X8X128, CODEC_DTYPE_BF16);
	struct scribbler s = { .writes = 0 };
	void *payload[CONTENTS];
	struct gpu_place from;
	unsigned whole = 0;

	(void)state;
	gpu_codec_rig_forget(&rig);
	gpu_place_make(&rig, &from, kv, GPU_KV_NHD, CONTENTS);
	for (uint32_t c = 0; c < CONTENTS; c++)
		payload[c] = gpu_codec_rig_host(&rig, kv->cap);
	put_contents(kv, &from);
	s.place = &from;
	assert_int_equal(pthread_create(&s.thread, NULL, scribble, &s), 0);
	for (unsigned round = 0; round < 50; round++) {
		for (uint32_t c = 0; c < CONTENTS; c++)
			job_encode(c, kv, 0, &from, c, payload[c]);
		gpu_codec_rig_run(&rig, jobs, CONTENTS);
		changing_check(kv, CONTENTS, &whole);
	}
	atomic_store(&s.stop, true);
	(void)pthread_join(s.thread, NULL);
	print_message("%u of %u stores are whole, over %u writes\n", whole, 50u * CONTENTS,
		      atomic_load(&s.writes));
	assert_true(atomic_load(&s.writes) > 0);
	is_alive();
	/* And when it holds still again, all is as before. */
	gpu_place_put(&from);
	encode_all(kv, 0, &from, "after the writer has gone");
	gpu_place_drop(&from);
}

/* ---- staging ---- */

/* Payloads that nobody takes stop encoding and nothing else; giving them back lets it go on. */
static void staging_fill(struct gpu_kv *kv, struct gpu_place *from)
{
	uint64_t until = gpu_codec_rig_now_ms() + 60000u, quiet = 0;
	unsigned ended = 0, given = 0, stalls = 0;
	struct device_task *done[32];
	void *held[JOBS_MAX];

	for (unsigned i = 0; i < JOBS_MAX; i++) {
		job_encode(i, kv, 0, from, i % CONTENTS, NULL)->user = &jobs[i];
		assert_int_equal(rig.d->ops->start(rig.d, &jobs[i].task), 0);
	}
	while (ended < JOBS_MAX) {
		unsigned n = gpu_codec_rig_poll(&rig, done, 32);

		for (unsigned i = 0; i < n; i++) {
			struct gpu_job *j = done[i]->user;

			assert_int_equal(done[i]->res, 0);
			assert_int_equal(++j->completions, 1);
			held[ended++] = done[i]->staged;
			quiet = 0;
		}
		if (n == 0 && quiet == 0)
			quiet = gpu_codec_rig_now_ms() + 30;
		if (quiet && gpu_codec_rig_now_ms() > quiet) {
			stalls += given < ended; /* it stopped because it is full */
			for (; given < ended; given++, rig.staged--)
				rig.d->ops->unstage(rig.d, held[given]);
			quiet = 0;
		}
		assert_true(gpu_codec_rig_now_ms() < until);
	}
	for (; given < ended; given++, rig.staged--)
		rig.d->ops->unstage(rig.d, held[given]);
	print_message("it was full %u times\n", stalls);
	assert_true(stalls > 0);
}

static void test_staging_is_full(void **state)
{
	struct gpu_kv *kv = kv_new(GPU_KV_3X8X128, CODEC_DTYPE_BF16);
	uint64_t staging = 4ull << 20;
	char why[DEVICE_ERR_BYTES];
	struct gpu_place from, to;

	(void)state;
	gpu_codec_rig_close(&rig);
	for (;; staging *= 2) {
		if (gpu_codec_rig_open(&rig, staging, MEMORY_BYTES, why) < 0)
			fail_msg("staging of %llu MiB: %s", (unsigned long long)staging >> 20, why);
		if (rig.d->ops->can_encode(rig.d, &kv->g, kv->profile[0], CODEC_SPEC_CHANNEL))
			break;
		gpu_codec_rig_close(&rig);
		assert_true(staging < 64ull << 20);
	}
	gpu_place_make(&rig, &from, kv, GPU_KV_NHD, CONTENTS);
	gpu_place_make(&rig, &to, kv, GPU_KV_NHD, CONTENTS);
	put_contents(kv, &from);
	for (unsigned round = 0; round < 3; round++)
		staging_fill(kv, &from);
	encode_all(kv, 0, &from, "with little staging");
	decode_all(kv, 0, &to, false, "with little staging");
	gpu_place_drop(&from);
	gpu_place_drop(&to);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_answers, setup, teardown_kvs),
		{ "test_bf16", test_type, setup, teardown_kvs, &types[0] },
		{ "test_fp16", test_type, setup, teardown_kvs, &types[1] },
		{ "test_e4m3", test_type, setup, teardown_kvs, &types[2] },
		{ "test_e5m2", test_type, setup, teardown_kvs, &types[3] },
		cmocka_unit_test_setup_teardown(test_raw, setup, teardown_kvs),
		cmocka_unit_test_setup_teardown(test_bit_flips, setup, teardown_kvs),
		cmocka_unit_test_setup_teardown(test_truncated, setup, teardown_kvs),
		cmocka_unit_test_setup_teardown(test_another_checksum, setup, teardown_kvs),
		cmocka_unit_test_setup_teardown(test_batches, setup, teardown_kvs),
		cmocka_unit_test_setup_teardown(test_from_the_pool, setup, teardown_kvs),
		cmocka_unit_test_setup_teardown(test_changing_source, setup, teardown_kvs),
		cmocka_unit_test_setup_teardown(test_staging_is_full, setup, teardown_kvs),
	};
	char why[DEVICE_ERR_BYTES];
	int r = gpu_codec_rig_open(&rig, STAGING_BYTES, MEMORY_BYTES, why);

	if (r == -ENOENT) {
		printf("no GPU to test: %s\n", why);
		return 77;
	}
	if (r == 0) /* else each test says what is wrong */
		gpu_codec_rig_close(&rig);
	return cmocka_run_group_tests_name("gpu-codec", tests, NULL, NULL);
}
