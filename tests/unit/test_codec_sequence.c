/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec_sequence.c - blocks that the `model` speculator codes, through the block format: a chain comes back byte
 * by byte in its order; whatever does not suit is refused with the right word, and leaves no trace in the prefix.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "gpu/codec/format.h"
#include "gpu/device.h"
#include "tests/lib/sequence_rig.h"
#include "tools/model_threads.h"

#define T SEQUENCE_RIG_TOKENS
#define BLOCKS SEQUENCE_RIG_BLOCKS

static void must_decode(struct sequence_rig *r, const struct codec_profile *p,
			struct codec_sequence *s, uint32_t b)
{
	assert_int_equal(sequence_rig_decode(r, p, s, b), 0);
	assert_memory_equal(r->back, r->block[b], r->g.raw_bytes);
	if (s)
		assert_int_equal(codec_sequence_position(s), (b + 1u) * T);
}

/* All blocks by MODEL, after one another. */
static void encode_all(struct sequence_rig *r)
{
	struct codec_sequence *s = sequence_rig_sequence(r, r->model);

	for (uint32_t b = 0; b < BLOCKS; b++) {
		assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, 0, s, b), 0);
		assert_int_equal(r->info[b].speculator, CODEC_SPEC_MODEL);
	}
	codec_sequence_free(s);
}

static void check_tokens(struct sequence_rig *r, const struct codec_profile *p, uint32_t b,
			 bool there)
{
	int32_t ids[T] = { 0 };
	int res = codec_payload_tokens(&r->g, p, r->coded[b], r->info[b].encoded_bytes, ids);

	assert_int_equal(res, there ? 0 : -ENODATA);
	if (there)
		assert_memory_equal(ids, r->ids + b * T, sizeof(ids));
}

static void check_chain(uint32_t kind, uint8_t dtype, bool ids, bool reversed)
{
	struct sequence_rig *r = sequence_rig_new(kind, dtype, ids, reversed);
	struct codec_profile *again = sequence_rig_again(r, r->model, r->m);
	struct codec_sequence *s = sequence_rig_sequence(r, r->model);
	struct codec_sequence *other = sequence_rig_sequence(r, again);

	for (uint32_t b = 0; b < BLOCKS; b++) {
		const unsigned flags = b % 2u ? CODEC_ENCODE_VERIFY : 0;

		assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, flags, s, b),
				 0);
		assert_int_equal(r->info[b].speculator, CODEC_SPEC_MODEL);
		assert_true(r->info[b].ideal_bits > 0);
		assert_int_equal(codec_sequence_position(s), (b + 1u) * T);
		assert_int_equal(
			codec_payload_needs_cpu(&r->g, r->coded[b], r->info[b].encoded_bytes), 1);
		must_decode(r, again, other, b);
		check_tokens(r, again, b, ids);
	}
	assert_true(codec_sequence_bytes(s) > sizeof(void *));
	/* From any earlier point, once more. */
	assert_int_equal(codec_sequence_truncate(other, BLOCKS * T + 1u), -EINVAL);
	assert_int_equal(codec_sequence_truncate(other, 2u * T), 0);
	must_decode(r, again, other, 2);
	codec_sequence_free(s);
	codec_sequence_free(other);
	codec_profile_free(again);
	sequence_rig_free(r);
}

static void test_chain(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++)
		for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++)
			check_chain(kind, (uint8_t)dtype, (kind + dtype) % 2u, dtype % 2u);
}

/* It is there to be smaller than the others. */
static void test_size(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);
	uint64_t by_model, by_layer;

	(void)state;
	encode_all(r);
	by_model = r->info[3].encoded_bytes;
	assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, 0, NULL, 3), 0);
	assert_int_equal(r->info[3].speculator, CODEC_SPEC_LAYER);
	by_layer = r->info[3].encoded_bytes;
	must_decode(r, r->model, NULL, 3);
	assert_true(by_model < by_layer);
	sequence_rig_free(r);
}

static void run_threads(void *self, uint32_t items, void (*fn)(void *, uint32_t, uint32_t),
			void *context)
{
	model_threads_run(self, items, fn, context);
}

/* Several threads, the same bytes. */
static void test_threads(void **state)
{
	struct sequence_rig *r = sequence_rig_new(1, CODEC_DTYPE_E4M3, true, false);
	struct model_threads *threads = NULL;
	struct mspec_runner runner = { .run = run_threads, .threads = 3 };
	struct codec_sequence *s = NULL;
	uint8_t *one = malloc(r->cap);

	(void)state;
	assert_non_null(one);
	assert_int_equal(model_threads_new(3, &threads), 0);
	runner.self = threads;
	encode_all(r);
	assert_int_equal(codec_sequence_new(&r->g, r->model, &runner, &s), 0);
	for (uint32_t b = 0; b < BLOCKS; b++) {
		const size_t bytes = r->info[b].encoded_bytes;

		memcpy(one, r->coded[b], bytes);
		assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, 0, s, b), 0);
		assert_int_equal(r->info[b].encoded_bytes, bytes);
		assert_memory_equal(one, r->coded[b], bytes);
	}
	codec_sequence_free(s);
	model_threads_free(threads);
	free(one);
	sequence_rig_free(r);
}

/* Blocks that are coded some other way are part of the prefix: with the sequence in the call, or told after it. */
static void test_between(void **state)
{
	static const uint8_t by[BLOCKS] = { CODEC_SPEC_CHANNEL, CODEC_SPEC_MODEL, CODEC_SPEC_LAYER,
					    CODEC_SPEC_RAW, CODEC_SPEC_MODEL };
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, true);
	struct codec_sequence *s = sequence_rig_sequence(r, r->model);

	(void)state;
	for (uint32_t b = 0; b < BLOCKS; b++) {
		assert_int_equal(sequence_rig_encode(r, r->model, by[b], CODEC_ENCODE_VERIFY, s, b),
				 0);
		assert_int_equal(r->info[b].speculator, by[b]);
		assert_int_equal(codec_sequence_position(s), (b + 1u) * T);
	}
	assert_int_equal(codec_sequence_truncate(s, 0), 0);
	for (uint32_t b = 0; b < BLOCKS; b++)
		must_decode(r, r->model, s, b);
	assert_int_equal(codec_sequence_truncate(s, 0), 0);
	for (uint32_t b = 0; b < BLOCKS; b++) {
		const struct codec_view v = { .base = r->back };

		if (by[b] == CODEC_SPEC_MODEL) {
			must_decode(r, r->model, s, b);
			continue;
		}
		must_decode(r, r->model, NULL, b);
		assert_int_equal(codec_sequence_append(s, &v), 0);
	}
	/* Skipped tokens are not written, and count all the same. */
	for (uint32_t b = 0; b < BLOCKS; b++) {
		const struct codec_view v = { .base = r->back, .position = b * T, .sequence = s };

		if (b == 0)
			assert_int_equal(codec_sequence_truncate(s, 0), 0);
		assert_int_equal(codec_decode_from(r->ws, &r->g, r->model, r->coded[b],
						   r->info[b].encoded_bytes, NULL, &v, T, NULL),
				 0);
	}
	codec_sequence_free(s);
	sequence_rig_free(r);
}

static void refuse(struct sequence_rig *r, const struct codec_profile *p, struct codec_sequence *s,
		   uint32_t b, int res, enum codec_refusal why)
{
	const uint32_t before = s ? codec_sequence_position(s) : 0;

	assert_int_equal(sequence_rig_decode(r, p, s, b), res);
	assert_int_equal(codec_refusal(r->ws), why);
	assert_true(strlen(codec_refusal_name(why)) > 0);
	if (s)
		assert_int_equal(codec_sequence_position(s), before);
}

static void test_wrong_prefix(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);
	struct codec_profile *bare = sequence_rig_again(r, r->model, NULL);
	struct codec_sequence *s = sequence_rig_sequence(r, r->model), *none = NULL;
	struct codec_view v = { .base = r->block[3] };

	(void)state;
	encode_all(r);
	refuse(r, r->model, NULL, 0, -ESTALE, CODEC_REFUSAL_PREFIX);
	refuse(r, r->model, s, 1, -ESTALE, CODEC_REFUSAL_PREFIX);
	refuse(r, bare, NULL, 0, -ENODEV, CODEC_REFUSAL_MODEL);
	refuse(r, bare, s, 0, -ENODEV, CODEC_REFUSAL_MODEL);
	refuse(r, r->layer, NULL, 0, -ESTALE, CODEC_REFUSAL_PROFILE);
	refuse(r, r->layer, s, 0, -ESTALE, CODEC_REFUSAL_PROFILE);
	refuse(r, NULL, s, 0, -ESTALE, CODEC_REFUSAL_PROFILE);
	assert_int_equal(codec_sequence_new(&r->g, bare, NULL, &none), -ENODEV);
	assert_int_equal(codec_sequence_new(&r->g, r->layer, NULL, &none), -ENODATA);
	assert_null(none);
	/* The right length and the wrong values. */
	assert_int_equal(codec_sequence_append(s, &v), 0);
	refuse(r, r->model, s, 1, -ESTALE, CODEC_REFUSAL_GUESSES);
	assert_int_equal(codec_sequence_truncate(s, 0), 0);
	must_decode(r, r->model, s, 0);
	must_decode(r, r->model, s, 1);
	refuse(r, r->model, s, 1, -ESTALE, CODEC_REFUSAL_PREFIX);
	refuse(r, r->model, s, 3, -ESTALE, CODEC_REFUSAL_PREFIX);
	/* The caller's idea of the position. */
	v.base = r->back;
	v.sequence = s;
	v.position = 3u * T;
	assert_int_equal(codec_decode(r->ws, &r->g, r->model, r->coded[2], r->info[2].encoded_bytes,
				      NULL, &v),
			 -ESTALE);
	assert_int_equal(codec_refusal(r->ws), CODEC_REFUSAL_PREFIX);
	must_decode(r, r->model, s, 2);
	assert_int_equal(codec_refusal(r->ws), CODEC_REFUSAL_NONE);
	codec_sequence_free(s);
	codec_profile_free(bare);
	sequence_rig_free(r);
}

/* A profile with other parameters, of the same model: its blocks are not ours. */
static void test_other_parameters(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_E4M3, false, false);
	const float k[] = { 0.5f, 2, 1 }, v[] = { 1, 1, 4 };
	struct mspec_params *params = NULL;
	struct codec_profile *p = NULL;
	struct codec_sequence *s, *other;

	(void)state;
	encode_all(r);
	assert_int_equal(mspec_params_rescale(r->params, k, v, &params), 0);
	assert_int_equal(codec_profile_with_model(&r->g, r->model, params, 3.5, &p, NULL, 0), 0);
	mspec_params_free(params);
	assert_memory_not_equal(codec_profile_digest(p), codec_profile_digest(r->model),
				CODEC_DIGEST_BYTES);
	assert_true(codec_profile_model(p).expected_bits == 3.5);
	assert_int_equal(codec_profile_layer(p).previous, codec_profile_layer(r->layer).previous);
	s = sequence_rig_sequence(r, r->model);
	other = sequence_rig_sequence(r, p);
	refuse(r, p, other, 0, -ESTALE, CODEC_REFUSAL_PROFILE);
	refuse(r, r->model, other, 0, -ESTALE, CODEC_REFUSAL_PREFIX);
	/* With a sequence of another profile MODEL is not possible, and the rest is. */
	assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, 0, other, 0), 0);
	assert_int_equal(r->info[0].speculator, CODEC_SPEC_LAYER);
	must_decode(r, r->model, s, 0);
	assert_int_equal(codec_sequence_position(other), T);
	codec_sequence_free(s);
	codec_sequence_free(other);
	codec_profile_free(p);
	sequence_rig_free(r);
}

/* ---- damage ---- */

static int decode_copy(struct sequence_rig *r, struct codec_sequence *s, const uint8_t *bytes,
		       size_t count)
{
	const struct codec_view v = { .base = r->back, .position = T, .sequence = s };

	return codec_decode(r->ws, &r->g, r->model, bytes, count, NULL, &v);
}

static size_t payload_off(const struct sequence_rig *r)
{
	return sizeof(struct format_block_header) +
	       r->g.chunks_count * sizeof(struct format_chunk_entry);
}

/* What an attacker would do: the payload's own checksum made right again. */
static void forge(const struct sequence_rig *r, uint8_t *bytes)
{
	struct format_chunk_entry e;
	uint8_t *payload = bytes + payload_off(r);
	uint32_t check;

	memcpy(&e, bytes + sizeof(struct format_block_header), sizeof(e));
	check = (uint32_t)XXH3_64bits(payload + 4, e.payload_bytes - 4u);
	memcpy(payload, &check, sizeof(check));
}

static void check_damage(struct sequence_rig *r, struct codec_sequence *s, bool forged)
{
	const size_t count = r->info[1].encoded_bytes, begin = forged ? payload_off(r) + 4u : 0;
	struct format_chunk_entry e;
	uint8_t *bytes = malloc(count);

	assert_non_null(bytes);
	memcpy(&e, r->coded[1] + sizeof(struct format_block_header), sizeof(e));
	for (size_t at = begin; at < (forged ? payload_off(r) + e.payload_bytes : count); at++) {
		int res;

		memcpy(bytes, r->coded[1], count);
		bytes[at] ^= (uint8_t)(1u << rng_below(&r->rng, 8));
		if (forged)
			forge(r, bytes);
		res = decode_copy(r, s, bytes, count);
		if (res != -EBADMSG && res != -ESTALE)
			fail_msg("byte %zu: %d", at, res);
		if (!forged && at >= payload_off(r))
			assert_int_equal(res, -EBADMSG);
		assert_int_equal(codec_sequence_position(s), T);
	}
	free(bytes);
}

static void test_damage(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		struct sequence_rig *r =
			sequence_rig_new(2, i ? CODEC_DTYPE_E4M3 : CODEC_DTYPE_BF16, i, false);
		struct codec_sequence *s = sequence_rig_sequence(r, r->model);
		size_t count;

		encode_all(r);
		count = r->info[1].encoded_bytes;
		must_decode(r, r->model, s, 0);
		check_damage(r, s, false);
		check_damage(r, s, true);
		for (size_t cut = 0; cut < count; cut += 1u + cut / 9u) {
			uint8_t *bytes = malloc(cut + 1u);

			assert_non_null(bytes);
			memcpy(bytes, r->coded[1], cut);
			assert_int_equal(decode_copy(r, s, bytes, cut), -EBADMSG);
			free(bytes);
		}
		/* No trace of all that. */
		must_decode(r, r->model, s, 1);
		must_decode(r, r->model, s, 2);
		codec_sequence_free(s);
		sequence_rig_free(r);
	}
}

/* A coded chunk that goes its own way would leave other values in the prefix than in the pages. */
static void test_mixed_methods(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);
	struct codec_sequence *s = sequence_rig_sequence(r, r->model);
	struct format_chunk_entry e;
	uint8_t *at;

	(void)state;
	encode_all(r);
	must_decode(r, r->model, s, 0);
	at = r->coded[1] + sizeof(struct format_block_header);
	for (uint32_t method = 0; method < FORMAT_METHOD_COUNT + 1u; method++) {
		memcpy(&e, at, sizeof(e));
		e.method = (uint8_t)method;
		memcpy(at, &e, sizeof(e));
		assert_int_equal(sequence_rig_decode(r, r->model, s, 1),
				 method == FORMAT_METHOD_RESIDUAL ? 0 : -EBADMSG);
		assert_int_equal(codec_sequence_truncate(s, T), 0);
	}
	codec_sequence_free(s);
	sequence_rig_free(r);
}

/* ---- when it can't be done ---- */

static void test_fallbacks(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);
	struct codec_sequence *s = sequence_rig_sequence(r, r->model);
	struct codec_view v = { .base = r->block[0], .sequence = s };
	int32_t ids[T];

	(void)state;
	/* No ids, or wrong ones. */
	assert_int_equal(codec_encode(r->ws, &r->g, r->model, CODEC_SPEC_MODEL, 0, &v, r->coded[0],
				      r->cap, &r->info[0]),
			 0);
	assert_int_equal(r->info[0].speculator, CODEC_SPEC_LAYER);
	assert_int_equal(codec_sequence_position(s), T);
	memcpy(ids, r->ids, sizeof(ids));
	ids[5] = (int32_t)r->c->vocab;
	v.tokens = ids;
	v.base = r->block[1];
	v.position = T;
	assert_int_equal(codec_encode(r->ws, &r->g, r->model, CODEC_SPEC_MODEL, 0, &v, r->coded[1],
				      r->cap, &r->info[1]),
			 0);
	assert_int_equal(r->info[1].speculator, CODEC_SPEC_LAYER);
	assert_int_equal(codec_sequence_position(s), 2u * T);
	/* A wrong position is a caller's mistake; a buffer too small leaves the prefix alone. */
	assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, 0, s, 1), -EINVAL);
	v.base = r->block[2];
	v.position = 2u * T;
	v.tokens = r->ids + 2u * T;
	assert_int_equal(codec_encode(r->ws, &r->g, r->model, CODEC_SPEC_MODEL, 0, &v, r->coded[2],
				      200, &r->info[2]),
			 -ENOSPC);
	assert_int_equal(codec_sequence_position(s), 2u * T);
	/* No layer part, no sequence. */
	assert_int_equal(sequence_rig_encode(r, r->channel, CODEC_SPEC_MODEL, 0, NULL, 2), 0);
	assert_int_equal(r->info[2].speculator, CODEC_SPEC_CHANNEL);
	assert_int_equal(sequence_rig_encode(r, NULL, CODEC_SPEC_MODEL, 0, NULL, 2), 0);
	assert_int_equal(r->info[2].speculator, CODEC_SPEC_GENERIC);
	/* As good as before, after all this. */
	assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL, 0, s, 2), 0);
	assert_int_equal(r->info[2].speculator, CODEC_SPEC_MODEL);
	assert_int_equal(codec_sequence_truncate(s, 0), 0);
	for (uint32_t b = 0; b < 3; b++)
		must_decode(r, r->model, s, b);
	codec_sequence_free(s);
	sequence_rig_free(r);
}

/* Data that is not the model's: never larger than raw, exact, and the next block follows it. */
static void test_strange_data(void **state)
{
	(void)state;
	for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++) {
		struct sequence_rig *r = sequence_rig_new(1, (uint8_t)dtype, dtype % 2u, true);
		struct codec_sequence *s = sequence_rig_sequence(r, r->model);

		rng_fill(&r->rng, r->block[0], r->g.raw_bytes); /* NaN, infinities, anything */
		memset(r->block[1], 0, r->g.raw_bytes);
		memset(r->block[2], 0xff, r->g.raw_bytes);
		for (uint32_t b = 0; b < BLOCKS; b++) {
			assert_int_equal(sequence_rig_encode(r, r->model, CODEC_SPEC_MODEL,
							     b % 2u ? 0 : CODEC_ENCODE_VERIFY, s,
							     b),
					 0);
			assert_true(r->info[b].encoded_bytes <= r->cap);
			assert_int_equal(codec_sequence_position(s), (b + 1u) * T);
		}
		assert_int_not_equal(r->info[0].speculator, CODEC_SPEC_MODEL);
		assert_int_equal(codec_sequence_truncate(s, 0), 0);
		for (uint32_t b = 0; b < BLOCKS; b++)
			must_decode(r, r->model, s, b);
		codec_sequence_free(s);
		sequence_rig_free(r);
	}
}

/* ---- as tasks of the CPU device ---- */

static void region_over(const struct codec_geometry *g, uint8_t *base, struct device_region *ret)
{
	struct codec_stride stride[SEQUENCE_RIG_SEGMENTS + 1u];
	uint64_t block_stride[SEQUENCE_RIG_SEGMENTS + 1u];

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		const uint64_t head = (uint64_t)s->head_dim * codec_dtype_bytes(s->dtype);

		stride[i] = (struct codec_stride){ g->segment_off[i], head * s->heads, head };
		block_stride[i] = g->raw_bytes;
	}
	assert_int_equal(device_region_init(ret, g, base, BLOCKS * g->raw_bytes, BLOCKS, stride,
					    block_stride),
			 0);
}

static int32_t run_task(struct device *d, struct device_task *t)
{
	struct device_task *done = NULL;

	assert_int_equal(d->ops->start(d, t), 0);
	while (d->ops->poll(d, &done, 1) == 0)
		;
	assert_ptr_equal(done, t);
	return t->res;
}

static void test_device(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, true);
	uint8_t *pages = malloc(BLOCKS * r->g.raw_bytes);
	struct device_sequence *s = NULL;
	struct device_region region;
	struct device *d = NULL;

	(void)state;
	assert_non_null(pages);
	region_over(&r->g, pages, &region);
	assert_int_equal(cpu_device_new(2, 8, -1, 0, &d), 0);
	assert_int_equal(d->sequence_tasks, 1);
	assert_int_equal(d->ops->sequence_new(d, &r->g, r->channel, &s), -ENODATA);
	assert_int_equal(d->ops->sequence_new(d, &r->g, r->model, &s), 0);
	for (uint32_t b = 0; b < BLOCKS; b++) {
		struct device_task t = { .op = DEVICE_ENCODE,
					 .region = &region,
					 .block_index = b,
					 .speculator = CODEC_SPEC_MODEL,
					 .position = b * T,
					 .sequence = s,
					 .tokens = r->ids + b * T,
					 .profile = r->model,
					 .verify = 1,
					 .out = r->coded[b],
					 .out_cap_bytes = r->cap };

		memcpy(pages + b * r->g.raw_bytes, r->block[b], r->g.raw_bytes);
		assert_int_equal(run_task(d, &t), 0);
		assert_int_equal(t.info.speculator, CODEC_SPEC_MODEL);
		r->info[b] = t.info;
	}
	memset(pages, 0xa5, BLOCKS * r->g.raw_bytes);
	assert_int_equal(d->ops->sequence_position(s), SEQUENCE_RIG_ALL);
	assert_true(d->ops->sequence_bytes(s) > 0);
	d->ops->sequence_truncate(s, 0);
	for (uint32_t b = 0; b < BLOCKS; b++) {
		struct device_task t = { .op = DEVICE_DECODE,
					 .region = &region,
					 .block_index = b,
					 .position = b * T,
					 .profile = r->model,
					 .in = r->coded[b],
					 .in_bytes = r->info[b].encoded_bytes,
					 .expect_xxh3 = r->info[b].raw_xxh3 };

		assert_int_equal(run_task(d, &t), -ESTALE);
		assert_int_equal(t.refusal, CODEC_REFUSAL_PREFIX);
		t.sequence = s;
		assert_int_equal(run_task(d, &t), 0);
		assert_int_equal(t.refusal, CODEC_REFUSAL_NONE);
		assert_memory_equal(pages + b * r->g.raw_bytes, r->block[b], r->g.raw_bytes);
	}
	d->ops->sequence_free(s);
	d->ops->free(d);
	device_region_deinit(&region);
	free(pages);
	sequence_rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_chain),	     cmocka_unit_test(test_size),
		cmocka_unit_test(test_threads),	     cmocka_unit_test(test_between),
		cmocka_unit_test(test_wrong_prefix), cmocka_unit_test(test_other_parameters),
		cmocka_unit_test(test_damage),	     cmocka_unit_test(test_mixed_methods),
		cmocka_unit_test(test_fallbacks),    cmocka_unit_test(test_strange_data),
		cmocka_unit_test(test_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
