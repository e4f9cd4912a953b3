/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec_hostile.c - encoded blocks and profiles as they come back from a disk that lies: cut,
 * flipped, spliced.  A decode may fail; it may not succeed with other bytes, nor leave its buffers
 * (the sanitizer flavours watch that).  The seed is printed; SEED=N repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "tests/lib/codec_rig.h"

#define KV(k, d, h, n)                                                                          \
	{                                                                                       \
		.kind = CODEC_KIND_##k, .dtype = CODEC_DTYPE_##d, .heads = (h), .head_dim = (n) \
	}

static const struct codec_segment segments[] = { KV(K, BF16, 4, 64), KV(V, BF16, 3, 37),
						 KV(OPAQUE, U8, 1, 50), KV(K, E4M3, 4, 64),
						 KV(V, FP16, 1, 64) };
#define SEGMENTS (sizeof(segments) / sizeof(segments[0]))

static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };

struct hostile {
	struct codec_rig r;
	struct rng rng;
	uint8_t *copy; /* exact size, so that a sanitizer sees its end */
	size_t bytes;
};

static void hostile_setup(struct hostile *h, uint8_t speculator)
{
	rng_init(&h->rng, rng_seed_env(0x5eed));
	codec_rig_init(&h->r, 16, segments, SEGMENTS, 31, 8);
	assert_int_equal(codec_rig_encode(&h->r, speculator, 0), 0);
	h->bytes = h->r.info.encoded_bytes;
	h->copy = malloc(h->bytes);
	assert_non_null(h->copy);
	memcpy(h->copy, h->r.coded, h->bytes);
}

static void hostile_teardown(struct hostile *h)
{
	assert_int_equal(codec_isa_set(NULL), 0);
	free(h->copy);
	codec_rig_deinit(&h->r);
}

/* Decode what is in copy; success means the right bytes. */
static int decode(struct hostile *h, const uint8_t *in, size_t bytes)
{
	struct codec_view v = { .base = h->r.back };
	int res;

	memset(h->r.back, 0xa5, h->r.g.raw_bytes);
	res = codec_decode(h->r.ws, &h->r.g, h->r.profile, in, bytes, NULL, &v);
	assert_true(res == 0 || res == -EBADMSG || res == -ESTALE);
	if (res == 0)
		assert_memory_equal(h->r.back, h->r.block, h->r.g.raw_bytes);
	return res;
}

static void next_isa(struct hostile *h)
{
	(void)codec_isa_set(isas[rng_below(&h->rng, 4)]); /* missing: stays with the last one */
}

static void test_truncated(void **state)
{
	struct hostile h;

	(void)state;
	hostile_setup(&h, CODEC_SPEC_CHANNEL);
	assert_int_equal(decode(&h, h.copy, h.bytes), 0);
	for (size_t n = 0; n < h.bytes; n += n < 200 || n + 200 > h.bytes ? 1 : 61) {
		uint8_t *cut = malloc(n ? n : 1);

		assert_non_null(cut);
		memcpy(cut, h.copy, n);
		next_isa(&h);
		assert_int_equal(decode(&h, cut, n), -EBADMSG);
		if (n >= 12) { /* and with a header that agrees */
			uint32_t claimed = (uint32_t)n;

			memcpy(cut + 8, &claimed, 4);
			assert_int_equal(decode(&h, cut, n), -EBADMSG);
		}
		free(cut);
	}
	hostile_teardown(&h);
}

/*
 * Nearly every bit matters; the few that do not (the low bits of an escaped pattern's planes, what zstd
 * does not read of its header) leave the decoded bytes right.
 */
static void flip(uint8_t speculator)
{
	struct hostile h;
	size_t tested = 0, harmless = 0;

	hostile_setup(&h, speculator);
	for (size_t bit = 0; bit < 8 * h.bytes; tested++) {
		next_isa(&h);
		h.copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
		harmless += decode(&h, h.copy, h.bytes) == 0;
		h.copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
		bit += bit < 8 * 256 ? 1 : 1 + rng_below(&h.rng, 150);
	}
	assert_int_equal(decode(&h, h.copy, h.bytes), 0);
	assert_true(tested > 2000);
	assert_true(harmless * 100 < tested);
	hostile_teardown(&h);
}

static void test_flipped_channel(void **state)
{
	(void)state;
	flip(CODEC_SPEC_CHANNEL);
}

static void test_flipped_generic(void **state)
{
	(void)state;
	flip(CODEC_SPEC_GENERIC);
}

static void test_flipped_raw(void **state)
{
	(void)state;
	flip(CODEC_SPEC_RAW);
}

/* Damage in several places, index entries replaced by nonsense, ranges overwritten. */
static void test_mutated(void **state)
{
	struct hostile h;
	unsigned rounds = 3000;

	(void)state;
	hostile_setup(&h, CODEC_SPEC_CHANNEL);
	for (unsigned i = 0; i < rounds; i++) {
		unsigned edits = 1 + rng_below(&h.rng, 4);

		memcpy(h.copy, h.r.coded, h.bytes);
		for (unsigned k = 0; k < edits; k++) {
			size_t at = rng_below(&h.rng,
					      rng_one_in(&h.rng, 2) ? 128 : (uint32_t)h.bytes);
			size_t n = 1 + rng_below(&h.rng, 8);

			if (at + n > h.bytes)
				n = h.bytes - at;
			if (rng_one_in(&h.rng, 3))
				memset(h.copy + at, rng_one_in(&h.rng, 2) ? 0 : 0xff, n);
			else
				rng_fill(&h.rng, h.copy + at, n);
		}
		next_isa(&h);
		(void)decode(&h, h.copy, h.bytes);
	}
	hostile_teardown(&h);
}

static void test_expected_checksum(void **state)
{
	struct hostile h;
	struct codec_view v;
	uint64_t wrong;

	(void)state;
	hostile_setup(&h, CODEC_SPEC_CHANNEL);
	v = (struct codec_view){ .base = h.r.back };
	wrong = h.r.info.raw_xxh3 ^ 1u;
	assert_int_equal(codec_decode(h.r.ws, &h.r.g, h.r.profile, h.copy, h.bytes, &wrong, &v),
			 -EBADMSG);
	assert_int_equal(
		codec_decode(h.r.ws, &h.r.g, h.r.profile, h.copy, h.bytes, &h.r.info.raw_xxh3, &v),
		0);
	hostile_teardown(&h);
}

static void test_stale(void **state)
{
	struct codec_segment other[SEGMENTS];
	struct codec_rig o;
	struct hostile h;
	struct codec_view v;

	(void)state;
	hostile_setup(&h, CODEC_SPEC_CHANNEL);
	v = (struct codec_view){ .base = h.r.back };
	/* The same shape under another meaning; and the same geometry under another profile. */
	memcpy(other, segments, sizeof(other));
	other[0].layer = 9;
	codec_rig_init(&o, 16, other, SEGMENTS, 31, 8);
	assert_int_equal(codec_decode(h.r.ws, &o.g, o.profile, h.copy, h.bytes, NULL, &v), -ESTALE);
	assert_int_equal(codec_decode(h.r.ws, &h.r.g, o.profile, h.copy, h.bytes, NULL, &v),
			 -ESTALE);
	assert_int_equal(codec_decode(h.r.ws, &h.r.g, NULL, h.copy, h.bytes, NULL, &v), -ESTALE);
	codec_rig_deinit(&o);
	codec_rig_init(&o, 16, segments, SEGMENTS, 32, 8);
	assert_int_equal(codec_decode(h.r.ws, &h.r.g, o.profile, h.copy, h.bytes, NULL, &v),
			 -ESTALE);
	codec_rig_deinit(&o);
	hostile_teardown(&h);
}

/* A profile that was accepted must be safe to code with, whatever is in it. */
static void profile_use(struct hostile *h, struct codec_profile *p)
{
	struct codec_view src = { .base = h->r.block }, dst = { .base = h->r.back };
	struct codec_info info;

	assert_int_equal(codec_encode(h->r.ws, &h->r.g, p, CODEC_SPEC_CHANNEL, CODEC_ENCODE_VERIFY,
				      &src, h->r.coded, h->r.cap, &info),
			 0);
	assert_int_equal(codec_decode(h->r.ws, &h->r.g, p, h->r.coded, info.encoded_bytes,
				      &info.raw_xxh3, &dst),
			 0);
	assert_memory_equal(h->r.back, h->r.block, h->r.g.raw_bytes);
}

static void test_profile_mutated(void **state)
{
	struct hostile h;
	const uint8_t *serial;
	uint8_t *copy;
	size_t bytes;
	unsigned taken = 0;

	(void)state;
	hostile_setup(&h, CODEC_SPEC_CHANNEL);
	serial = codec_profile_bytes(h.r.profile, &bytes);
	copy = malloc(bytes);
	assert_non_null(copy);
	for (unsigned i = 0; i < 3000; i++) {
		struct codec_profile *p = NULL;
		size_t n = rng_one_in(&h.rng, 10) ? rng_below(&h.rng, (uint32_t)bytes + 1u) : bytes;
		int res;

		memcpy(copy, serial, bytes);
		for (unsigned k = rng_below(&h.rng, 3); k-- > 0 || n == bytes;) {
			size_t at = rng_below(&h.rng,
					      rng_one_in(&h.rng, 3) ? 120 : (uint32_t)bytes);

			copy[at] = (uint8_t)(copy[at] + 1u + rng_below(&h.rng, 255));
			if (k > 2)
				break;
		}
		res = codec_profile_parse(&h.r.g, copy, n, &p);
		assert_true(res == 0 || res == -EBADMSG || res == -ESTALE);
		if (res == 0) {
			assert_int_equal(n, bytes);
			taken++;
			next_isa(&h);
			profile_use(&h, p);
			codec_profile_free(p);
		} else {
			assert_null(p);
		}
	}
	print_message("%u of 3000 damaged profiles are still profiles\n", taken);
	assert_true(taken > 0);
	free(copy);
	hostile_teardown(&h);
}

/* The header's fields, one at a time, at values that are not what they were. */
static void test_profile_header(void **state)
{
	struct hostile h;
	struct format_profile_header head;
	struct codec_profile *p = NULL;
	const uint8_t *serial;
	uint8_t *copy;
	size_t bytes;

	(void)state;
	hostile_setup(&h, CODEC_SPEC_CHANNEL);
	serial = codec_profile_bytes(h.r.profile, &bytes);
	copy = malloc(bytes + 8);
	assert_non_null(copy);
	memset(copy, 0, bytes + 8);
	memcpy(copy, serial, bytes);
	assert_int_equal(codec_profile_parse(&h.r.g, copy, bytes + 8, &p), -EBADMSG);
	assert_int_equal(codec_profile_parse(&h.r.g, copy, 0, &p), -EBADMSG);
	assert_int_equal(codec_profile_parse(&h.r.g, copy, 63, &p), -EBADMSG);
#define HEADER_WITH(field, value, error)     \
	memcpy(&head, serial, sizeof(head)); \
	head.field = (value);                \
	memcpy(copy, &head, sizeof(head));   \
	assert_int_equal(codec_profile_parse(&h.r.g, copy, bytes, &p), error)
	HEADER_WITH(magic, 0, -EBADMSG);
	HEADER_WITH(version, 0, -ESTALE);
	HEADER_WITH(prob_bits, 11, -EBADMSG);
	HEADER_WITH(contexts, 6, -EBADMSG);
	HEADER_WITH(geometry_digest[31], head.geometry_digest[31] ^ 1u, -ESTALE);
	HEADER_WITH(segments_count, 0xffffffff, -EBADMSG);
	HEADER_WITH(channels_count, 0xffffffff, -EBADMSG);
	HEADER_WITH(tables_count, 0, -EBADMSG);
	HEADER_WITH(tables_count, 0xffffffff, -EBADMSG);
	HEADER_WITH(tables_count, head.tables_count - 1u, -EBADMSG);
	assert_null(p);
	free(copy);
	hostile_teardown(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_truncated),	cmocka_unit_test(test_flipped_channel),
		cmocka_unit_test(test_flipped_generic), cmocka_unit_test(test_flipped_raw),
		cmocka_unit_test(test_mutated),		cmocka_unit_test(test_expected_checksum),
		cmocka_unit_test(test_stale),		cmocka_unit_test(test_profile_mutated),
		cmocka_unit_test(test_profile_header),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
