/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_layer_hostile.c - profiles with a `layer` section and blocks coded by it, as they come back from a
 * disk that lies, and of versions that are not ours: refused with the right error, or harmless.  The seed is
 * printed; SEED=N repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "tests/lib/layer_rig.h"
#include "tests/lib/rng.h"

struct hostile {
	struct layer_rig r;
	struct rng rng;
	uint8_t *bytes; /* owned: of the profile, or of a block */
	size_t bytes_count;
	size_t section; /* in a profile */
};

static void setup(struct hostile *h, uint64_t seed)
{
	struct layer_rig_options o = layer_rig_defaults();

	*h = (struct hostile){ 0 };
	rng_init(&h->rng, rng_seed_env(seed));
	o.fitted = 16;
	o.blocks = 17;
	o.layers = 2;
	layer_rig_init(&h->r, &o);
}

static void profile_take(struct hostile *h)
{
	const uint8_t *p = codec_profile_bytes(h->r.profile, &h->bytes_count);

	h->bytes = malloc(h->bytes_count);
	assert_non_null(h->bytes);
	memcpy(h->bytes, p, h->bytes_count);
	h->section = (size_t)((const uint8_t *)h->r.profile->layer->section - p);
}

static void block_take(struct hostile *h)
{
	assert_int_equal(layer_rig_encode(&h->r, layer_rig_block(&h->r, 16), h->r.positions[16], 0),
			 0);
	assert_int_equal(h->r.info.speculator, CODEC_SPEC_LAYER);
	h->bytes_count = h->r.info.encoded_bytes;
	h->bytes = malloc(h->bytes_count); /* its size, so that a sanitizer sees its end */
	assert_non_null(h->bytes);
	memcpy(h->bytes, h->r.coded, h->bytes_count);
}

static void teardown(struct hostile *h)
{
	assert_int_equal(codec_isa_set(NULL), 0);
	free(h->bytes);
	layer_rig_deinit(&h->r);
}

/* ---- profiles ---- */

/* Parse it; when that goes well, a block has to come back through it, verified or not. */
static int parse_and_use(struct hostile *h, size_t bytes_count)
{
	struct codec_profile *own = h->r.profile, *p = NULL;
	int r = codec_profile_parse(&h->r.g, h->bytes, bytes_count, &p);

	if (r < 0) {
		assert_null(p);
		return r;
	}
	h->r.profile = p;
	assert_int_equal(layer_rig_encode(&h->r, layer_rig_block(&h->r, 16), h->r.positions[16], 0),
			 0);
	assert_int_equal(layer_rig_decode(&h->r), 0);
	assert_memory_equal(h->r.back, layer_rig_block(&h->r, 16), h->r.g.raw_bytes);
	h->r.profile = own;
	codec_profile_free(p);
	return 0;
}

static void test_flipped_profiles(void **state)
{
	size_t tested = 0, harmless = 0, step;
	struct hostile h;

	(void)state;
	setup(&h, 31);
	profile_take(&h);
	assert_int_equal(parse_and_use(&h, h.bytes_count), 0);
	/* All of the header, then here and there. */
	for (size_t bit = 8u * h.section; bit < 8u * h.bytes_count; bit += step) {
		int r;

		h.bytes[bit / 8u] ^= (uint8_t)(1u << bit % 8u);
		r = parse_and_use(&h, h.bytes_count);
		assert_true(r == 0 || r == -EBADMSG || r == -ESTALE);
		harmless += r == 0;
		tested++;
		h.bytes[bit / 8u] ^= (uint8_t)(1u << bit % 8u);
		step = bit < 8u * (h.section + sizeof(struct layer_section))
			       ? 1u
			       : 1u + rng_below(&h.rng, 900);
	}
	print_message("%zu flips, %zu of them harmless\n", tested, harmless);
	assert_true(tested > 500);
	teardown(&h);
}

static void test_nonsense_in_sections(void **state)
{
	struct hostile h;

	(void)state;
	setup(&h, 32);
	profile_take(&h);
	for (uint32_t i = 0; i < 600; i++) {
		size_t at = h.section + rng_below(&h.rng, (uint32_t)(h.bytes_count - h.section));
		size_t n = 1u + rng_below(&h.rng, 64);
		int r;

		if (i % 3u == 0) /* the part with the small numbers */
			at = h.section + rng_below(&h.rng, 256);
		if (n > h.bytes_count - at)
			n = h.bytes_count - at;
		rng_fill(&h.rng, h.bytes + at, n);
		r = parse_and_use(&h, h.bytes_count);
		assert_true(r == 0 || r == -EBADMSG || r == -ESTALE);
		memcpy(h.bytes + at, h.r.profile->serial + at, n);
	}
	teardown(&h);
}

static void test_cut_profiles(void **state)
{
	struct hostile h;

	(void)state;
	setup(&h, 33);
	profile_take(&h);
	for (size_t n = 0; n < h.bytes_count; n += n < 200 || n + 200 > h.bytes_count ? 1u : 97u) {
		uint8_t *all = h.bytes;

		h.bytes = malloc(n ? n : 1u);
		assert_non_null(h.bytes);
		memcpy(h.bytes, all, n);
		assert_int_equal(parse_and_use(&h, n), -EBADMSG);
		free(h.bytes);
		h.bytes = all;
	}
	teardown(&h);
}

static void test_profiles_of_other_versions(void **state)
{
	struct hostile h;
	uint16_t version;

	(void)state;
	setup(&h, 34);
	profile_take(&h);
	version = LAYER_SECTION_VERSION + 1u;
	memcpy(h.bytes + h.section + offsetof(struct layer_section, version), &version, 2);
	assert_int_equal(parse_and_use(&h, h.bytes_count), -ESTALE);
	version = LAYER_SECTION_VERSION;
	memcpy(h.bytes + h.section + offsetof(struct layer_section, version), &version, 2);
	assert_int_equal(parse_and_use(&h, h.bytes_count), 0);
	version = FORMAT_PROFILE_VERSION_MODEL + 1u;
	memcpy(h.bytes + offsetof(struct format_profile_header, version), &version, 2);
	assert_int_equal(parse_and_use(&h, h.bytes_count), -ESTALE);
	teardown(&h);
}

/* ---- blocks ---- */

static int decode(struct hostile *h, size_t bytes_count)
{
	struct codec_view v = { .base = h->r.back };
	int r = codec_decode(h->r.ws, &h->r.g, h->r.profile, h->bytes, bytes_count, NULL, &v);

	assert_true(r == 0 || r == -EBADMSG || r == -ESTALE);
	if (r == 0)
		assert_memory_equal(h->r.back, layer_rig_block(&h->r, 16), h->r.g.raw_bytes);
	return r;
}

static void next_isa(struct hostile *h)
{
	static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };

	(void)codec_isa_set(isas[rng_below(&h->rng, 4)]); /* missing: stays with the last one */
}

static void test_flipped_blocks(void **state)
{
	const size_t payload = sizeof(struct format_block_header);
	size_t tested = 0, harmless = 0;
	struct hostile h;

	(void)state;
	setup(&h, 35);
	block_take(&h);
	assert_int_equal(decode(&h, h.bytes_count), 0);
	for (size_t bit = 0; bit < 8u * h.bytes_count; tested++) {
		int r;

		next_isa(&h);
		h.bytes[bit / 8u] ^= (uint8_t)(1u << bit % 8u);
		r = decode(&h, h.bytes_count);
		harmless += r == 0;
		if (bit / 8u >= payload) /* behind the header nothing can be of something else */
			assert_int_not_equal(r, -ESTALE);
		h.bytes[bit / 8u] ^= (uint8_t)(1u << bit % 8u);
		bit += bit < 8u * 256u ? 1u : 1u + rng_below(&h.rng, 20);
	}
	print_message("%zu flips, %zu of them harmless\n", tested, harmless);
	assert_true(harmless * 100u < tested);
	teardown(&h);
}

static void test_cut_blocks(void **state)
{
	struct hostile h;

	(void)state;
	setup(&h, 36);
	block_take(&h);
	for (size_t n = 0; n < h.bytes_count; n++) {
		uint8_t *all = h.bytes;

		h.bytes = malloc(n ? n : 1u);
		assert_non_null(h.bytes);
		memcpy(h.bytes, all, n);
		next_isa(&h);
		assert_int_equal(decode(&h, n), -EBADMSG);
		if (n >= sizeof(struct format_block_header)) { /* and with a header that agrees */
			uint32_t claimed = (uint32_t)n;

			memcpy(h.bytes + offsetof(struct format_block_header, encoded_bytes),
			       &claimed, 4);
			assert_int_equal(decode(&h, n), -EBADMSG);
		}
		free(h.bytes);
		h.bytes = all;
	}
	teardown(&h);
}

/* A miss, but not a corrupt block: the daemon tells the two apart. */
static void test_blocks_of_newer_versions(void **state)
{
	struct hostile h;
	uint16_t version = FORMAT_BLOCK_VERSION + 1u;

	(void)state;
	setup(&h, 37);
	block_take(&h);
	memcpy(h.bytes + offsetof(struct format_block_header, version), &version, 2);
	assert_int_equal(decode(&h, h.bytes_count), -ESTALE);
	h.bytes[offsetof(struct format_block_header, reserved)] =
		1; /* may mean something by then */
	assert_int_equal(decode(&h, h.bytes_count), -ESTALE);
	assert_int_equal(codec_payload_needs_cpu(&h.r.g, h.bytes, h.bytes_count), 1);
	version = 0;
	memcpy(h.bytes + offsetof(struct format_block_header, version), &version, 2);
	assert_int_equal(decode(&h, h.bytes_count), -EBADMSG);
	teardown(&h);
}

static void test_other_profiles_are_stale(void **state)
{
	struct hostile h, other;

	(void)state;
	setup(&h, 38);
	block_take(&h);
	setup(&other, 39);
	profile_take(&other);
	other.bytes[other.bytes_count - 1u] ^= 1u; /* a weight, or the padding behind them */
	assert_int_equal(decode(&h, h.bytes_count), 0);
	codec_profile_free(h.r.profile);
	assert_int_equal(codec_profile_parse(&h.r.g, other.bytes, other.bytes_count, &h.r.profile),
			 0);
	assert_int_equal(decode(&h, h.bytes_count), -ESTALE);
	teardown(&other);
	teardown(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flipped_profiles),
		cmocka_unit_test(test_nonsense_in_sections),
		cmocka_unit_test(test_cut_profiles),
		cmocka_unit_test(test_profiles_of_other_versions),
		cmocka_unit_test(test_flipped_blocks),
		cmocka_unit_test(test_cut_blocks),
		cmocka_unit_test(test_blocks_of_newer_versions),
		cmocka_unit_test(test_other_profiles_are_stale),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
