/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec_model_profile.c - a profile's `model` section: it goes through bytes with and without the others, with and
 * without its model; damage, other versions and other shapes are refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/format.h"
#include "gpu/codec/model_profile.h"
#include "tests/lib/sequence_rig.h"

static const uint8_t *serial_of(const struct codec_profile *p, size_t *ret_bytes)
{
	return codec_profile_bytes(p, ret_bytes);
}

static uint32_t version_of(const struct codec_profile *p)
{
	struct format_profile_header h;
	size_t bytes;

	memcpy(&h, serial_of(p, &bytes), sizeof(h));
	return h.version;
}

static void check_info(const struct sequence_rig *r, const struct codec_profile *p, int attached)
{
	struct codec_model_info info = codec_profile_model(p);

	assert_memory_equal(info.digest, mspec_model_digest(r->m), sizeof(info.digest));
	assert_int_equal(info.attached, attached);
	assert_int_equal(info.ids, mspec_params_ids(r->params));
	assert_false(info.draft);
	assert_int_equal(info.vocab, r->c->vocab);
	assert_true(info.expected_bits > r->bits - 0.001 && info.expected_bits <= r->bits);
	assert_true(info.params_bytes > 0);
	assert_int_equal(info.products,
			 mspec_model_products(r->m, mspec_params_precision(r->params)));
}

/* All that a profile can have of sections. */
static void test_sections(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);
	struct codec_profile *alone = NULL, *again;
	size_t a, b;

	(void)state;
	assert_int_equal(
		codec_profile_with_model(&r->g, r->channel, r->params, r->bits, &alone, NULL, 0),
		0);
	assert_int_equal(version_of(r->channel), FORMAT_PROFILE_VERSION);
	assert_int_equal(version_of(r->layer), FORMAT_PROFILE_VERSION_LAYER);
	assert_int_equal(version_of(r->model), FORMAT_PROFILE_VERSION_MODEL);
	assert_int_equal(version_of(alone), FORMAT_PROFILE_VERSION_MODEL);
	assert_int_equal(codec_profile_layer(alone).previous, 0);
	assert_int_equal(codec_profile_layer(r->model).previous, 1);
	check_info(r, r->model, 1);
	check_info(r, alone, 1);
	assert_int_equal(codec_profile_model(r->layer).vocab, 0);
	for (uint32_t i = 0; i < 4; i++) {
		const struct codec_profile *p = i == 0	 ? r->channel
						: i == 1 ? r->layer
						: i == 2 ? r->model
							 : alone;

		again = sequence_rig_again(r, p, i < 2 ? NULL : r->m);
		assert_memory_equal(codec_profile_digest(p), codec_profile_digest(again),
				    CODEC_DIGEST_BYTES);
		assert_int_equal(codec_profile_layer(p).products,
				 codec_profile_layer(again).products);
		if (i >= 2)
			check_info(r, again, 1);
		codec_profile_free(again);
	}
	/* The other way round it is the same profile; a second time replaces the first. */
	again = NULL;
	assert_int_equal(
		codec_profile_with_model(&r->g, r->model, r->params, r->bits, &again, NULL, 0), 0);
	(void)serial_of(r->model, &a);
	(void)serial_of(again, &b);
	assert_int_equal(a, b);
	assert_memory_equal(codec_profile_digest(r->model), codec_profile_digest(again),
			    CODEC_DIGEST_BYTES);
	codec_profile_free(again);
	codec_profile_free(alone);
	sequence_rig_free(r);
}

/* Other profiles made from one keep its parameters. */
static void test_kept(void **state)
{
	struct sequence_rig *r = sequence_rig_new(2, CODEC_DTYPE_E4M3, false, true);
	double ratio[SEQUENCE_RIG_SEGMENTS + 1u];
	struct codec_profile *p = NULL;

	(void)state;
	for (uint32_t i = 0; i < r->g.segments_count; i++)
		ratio[i] = 2;
	assert_int_equal(codec_profile_rescale(&r->g, r->model, ratio, &p), 0);
	check_info(r, p, 0);
	assert_int_equal(codec_profile_attach_model(p, r->m), 0);
	assert_int_equal(codec_profile_attach_model(p, r->m), -EALREADY);
	check_info(r, p, 1);
	codec_profile_free(p);
	sequence_rig_free(r);
}

static void test_attach(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);
	struct sequence_rig *other = sequence_rig_new(1, CODEC_DTYPE_BF16, true, false);
	struct codec_profile *p = sequence_rig_again(r, r->model, NULL);

	(void)state;
	check_info(r, p, 0);
	assert_int_equal(codec_profile_attach_model(p, other->m), -ESTALE);
	check_info(r, p, 0);
	assert_int_equal(codec_profile_attach_model(r->layer, r->m), -ENODATA);
	/* What it can do without. */
	assert_int_equal(sequence_rig_encode(r, p, CODEC_SPEC_MODEL, 0, NULL, 0), 0);
	assert_int_equal(r->info[0].speculator, CODEC_SPEC_LAYER);
	assert_int_equal(sequence_rig_decode(r, p, NULL, 0), 0);
	assert_int_equal(sequence_rig_encode(r, p, CODEC_SPEC_CHANNEL, 0, NULL, 0), 0);
	assert_int_equal(r->info[0].speculator, CODEC_SPEC_CHANNEL);
	assert_int_equal(sequence_rig_decode(r, p, NULL, 0), 0);
	assert_memory_equal(r->back, r->block[0], r->g.raw_bytes);
	assert_int_equal(codec_profile_attach_model(p, r->m), 0);
	assert_int_equal(codec_profile_attach_model(p, r->m), -EALREADY);
	codec_profile_free(p);
	sequence_rig_free(other);
	sequence_rig_free(r);
}

/* ---- shapes ---- */

static void check_geometry(struct sequence_rig *r, void (*edit)(struct codec_segment *, uint32_t *),
			   const char *why)
{
	struct codec_segment segments[SEQUENCE_RIG_SEGMENTS + 3u];
	uint32_t count = r->g.segments_count;
	struct codec_geometry g;
	struct codec_fit *fit = NULL;
	struct codec_profile *channel = NULL, *p = NULL;
	struct codec_view v = { 0 };
	char err[CODEC_ERR_BYTES] = "";

	memcpy(segments, r->g.segments, count * sizeof(segments[0]));
	edit(segments, &count);
	assert_int_equal(codec_geometry_init(&g, SEQUENCE_RIG_TOKENS, segments, count), 0);
	assert_int_equal(codec_fit_new(&g, &fit), 0);
	v.base = calloc(1, g.raw_bytes);
	assert_non_null(v.base);
	codec_fit_add(fit, &v);
	assert_int_equal(codec_fit_finish(fit, &channel), 0);
	assert_int_equal(codec_profile_with_model(&g, channel, r->params, 4, &p, err, sizeof(err)),
			 -EINVAL);
	if (!strstr(err, why))
		fail_msg("\"%s\" does not say \"%s\"", err, why);
	assert_int_equal(codec_profile_with_model(&g, channel, r->params, 4, &p, NULL, 0), -EINVAL);
	assert_null(p);
	codec_profile_free(channel);
	codec_fit_free(fit);
	codec_geometry_deinit(&g);
	free(v.base);
}

static void fewer(struct codec_segment *s, uint32_t *count)
{
	s[1] = s[*count - 1u];
	*count = *count - 1u;
}

static void more(struct codec_segment *s, uint32_t *count)
{
	s[*count] = s[0];
	s[*count].layer = 9;
	(*count)++;
}

static void twice(struct codec_segment *s, uint32_t *count)
{
	s[(*count)++] = s[0];
}

static void wider(struct codec_segment *s, uint32_t *count)
{
	(void)count;
	s[2].heads++;
}

static void typed(struct codec_segment *s, uint32_t *count)
{
	(void)count;
	s[3].dtype = CODEC_DTYPE_E4M3;
}

static void latent(struct codec_segment *s, uint32_t *count)
{
	(void)count;
	s[0].kind = CODEC_KIND_LATENT;
}

static void test_geometry(void **state)
{
	struct sequence_rig *r = sequence_rig_new(0, CODEC_DTYPE_BF16, true, false);

	(void)state;
	check_geometry(r, fewer, "no segment for the values of layer 0");
	check_geometry(r, more, "of a layer that the model has not");
	check_geometry(r, twice, "twice");
	check_geometry(r, wider, "segment 2 (layer 1, 3 * 16) has not the columns");
	check_geometry(r, typed, "of another type");
	check_geometry(r, latent, "neither keys nor values");
	sequence_rig_free(r);
}

/* ---- damage ---- */

static size_t section_off(const struct codec_profile *p)
{
	size_t bytes;
	const uint8_t *serial = serial_of(p, &bytes);

	return (size_t)((const uint8_t *)p->model->section - serial);
}

/* -EBADMSG, -ESTALE, or a profile: then whether its model takes it. */
static int parse(struct sequence_rig *r, const uint8_t *bytes, size_t count)
{
	struct codec_profile *p = NULL;
	int res = codec_profile_parse(&r->g, bytes, count, &p);

	if (res < 0) {
		assert_null(p);
		assert_true(res == -EBADMSG || res == -ESTALE);
		return res;
	}
	res = codec_profile_attach_model(p, r->m);
	codec_profile_free(p);
	return res;
}

static void test_damage(void **state)
{
	struct sequence_rig *r = sequence_rig_new(2, CODEC_DTYPE_BF16, true, false);
	size_t count, off = section_off(r->model);
	const uint8_t *serial = serial_of(r->model, &count);
	uint8_t *bytes = malloc(count + 64u);

	(void)state;
	assert_non_null(bytes);
	for (size_t at = off; at < count; at++) {
		const size_t field = at - off;
		int res;

		if (field > 400 && at % 37u && at + 100u < count)
			continue;
		memcpy(bytes, serial, count);
		bytes[at] ^= (uint8_t)(1u << rng_below(&r->rng, 8));
		res = parse(r, bytes, count);
		if ((field >= offsetof(struct model_section, products) &&
		     field < offsetof(struct model_section, zeros)))
			assert_int_equal(res, 0); /* for show */
		else if (field == offsetof(struct model_section, version) ||
			 field == offsetof(struct model_section, version) + 1u)
			assert_int_equal(res, -ESTALE);
		else
			assert_int_equal(res, -EBADMSG);
	}
	for (size_t cut = 0; cut < count; cut += cut < off ? 97 : 1 + cut / 50u)
		assert_int_equal(parse(r, serial, cut), -EBADMSG);
	memcpy(bytes, serial, count);
	memset(bytes + count, 0, 64);
	assert_int_equal(parse(r, bytes, count + 64u), -EBADMSG);
	free(bytes);
	sequence_rig_free(r);
}

/* Versions and sections that do not go together. */
static void test_versions(void **state)
{
	struct sequence_rig *r = sequence_rig_new(2, CODEC_DTYPE_BF16, true, false);
	size_t count, layer_count;
	const uint8_t *serial = serial_of(r->model, &count);
	const uint8_t *layer = serial_of(r->layer, &layer_count);
	uint8_t *bytes = malloc(count);

	(void)state;
	assert_non_null(bytes);
	for (uint16_t version = 0; version < 6; version++) {
		const int known = version >= 1 && version <= 3;

		memcpy(bytes, serial, count);
		memcpy(bytes + offsetof(struct format_profile_header, version), &version,
		       sizeof(version));
		assert_int_equal(parse(r, bytes, count), version == 3 ? 0
							 : known      ? -EBADMSG
								      : -ESTALE);
		memcpy(bytes, layer, layer_count);
		memcpy(bytes + offsetof(struct format_profile_header, version), &version,
		       sizeof(version));
		assert_int_equal(parse(r, bytes, layer_count), version == 2 ? -ENODATA
							       : known	    ? -EBADMSG
									    : -ESTALE);
	}
	free(bytes);
	sequence_rig_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sections), cmocka_unit_test(test_kept),
		cmocka_unit_test(test_attach),	 cmocka_unit_test(test_geometry),
		cmocka_unit_test(test_damage),	 cmocka_unit_test(test_versions),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
