/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec.c - what goes in comes out, for every bit pattern, element type, shape, layout and
 * instruction set; the same bytes whichever kernels made them; sizes near the entropy.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/core.h"
#include "tests/lib/codec_rig.h"

static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
#define ISAS (sizeof(isas) / sizeof(isas[0]))

#define KV(k, d, h, n)                                                                          \
	{                                                                                       \
		.kind = CODEC_KIND_##k, .dtype = CODEC_DTYPE_##d, .heads = (h), .head_dim = (n) \
	}

/*
 * Encode under every instruction set there is here, compare the bytes, decode each with each.
 * Returns the encoded bytes.
 */
static size_t round_trip(struct codec_rig *r, uint8_t speculator)
{
	uint8_t *first = malloc(r->cap);
	size_t bytes = 0;

	assert_non_null(first);
	for (size_t e = 0; e < ISAS; e++) {
		if (codec_isa_set(isas[e]) < 0)
			continue;
		memset(r->coded, 0x5a, r->cap);
		assert_int_equal(codec_rig_encode(r, speculator, e ? CODEC_ENCODE_VERIFY : 0), 0);
		if (bytes == 0) {
			bytes = r->info.encoded_bytes;
			memcpy(first, r->coded, bytes);
		}
		assert_int_equal(r->info.encoded_bytes, bytes);
		assert_memory_equal(r->coded, first, bytes);
		for (size_t d = 0; d < ISAS; d++) {
			if (codec_isa_set(isas[d]) < 0)
				continue;
			assert_int_equal(codec_rig_decode(r), 0);
			assert_memory_equal(r->back, r->block, r->g.raw_bytes);
		}
	}
	assert_int_equal(codec_isa_set(NULL), 0);
	free(first);
	return bytes;
}

/* An instruction set that is missing here is said to be, so that a green run cannot hide it. */
static void test_isa(void **state)
{
	const char *name = *state;

	if (codec_isa_set(name) < 0) {
		print_message("%s: this processor lacks it, not tested here\n", name);
		skip();
	}
	assert_string_equal(codec_isa_name(), name);
	assert_int_equal(codec_isa_set("no such thing"), -ENOTSUP);
	assert_string_equal(codec_isa_name(), name);
	assert_int_equal(codec_isa_set(NULL), 0);
}

/* Every pattern of 16 and 8 bits, against statistics that expect something else. */
static void test_every_pattern(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128), KV(V, FP16, 8, 128),
						    KV(K, E4M3, 8, 128), KV(V, E5M2, 8, 128) };
	struct codec_rig r;

	(void)state;
	codec_rig_init(&r, 64, seg, 4, 1, 2);
	for (uint32_t i = 0; i < 65536; i++)
		for (uint32_t s = 0; s < 2; s++) {
			uint16_t v = (uint16_t)(i * 40503u); /* odd: a permutation */

			memcpy(r.block + r.g.segment_off[s] + 2u * i, &v, 2);
		}
	for (uint32_t i = 0; i < 65536; i++)
		for (uint32_t s = 2; s < 4; s++)
			r.block[r.g.segment_off[s] + i] = (uint8_t)(i * 167u + i / 256u);
	(void)round_trip(&r, CODEC_SPEC_CHANNEL);
	(void)round_trip(&r, CODEC_SPEC_GENERIC);
	(void)round_trip(&r, CODEC_SPEC_RAW);
	codec_rig_deinit(&r);
}

/* Ordinary values with NaN, infinity, -0, zero and subnormals strewn in: still coded by `channel`. */
static void test_strange_values_among_ordinary(void **state)
{
	static const uint16_t strange[] = { 0x7fc0, 0xffc1, 0x7f80, 0xff80, 0x8000, 0x0000,
					    0x0001, 0x807f, 0x7f7f, 0xff7f, 0x7f81, 0xffff };
	static const struct codec_segment seg[] = { KV(K, BF16, 2, 64), KV(V, BF16, 2, 64),
						    KV(K, BF16, 8, 64), KV(V, BF16, 8, 64) };
	struct codec_rig r;
	struct rng rng;

	(void)state;
	rng_init(&rng, rng_seed_env(20));
	codec_rig_init(&r, 16, seg, 4, 2, 16);
	for (unsigned i = 0; i < 100; i++)
		memcpy(r.block + 2u * rng_below(&rng, (uint32_t)r.g.raw_bytes / 2u),
		       &strange[i % (sizeof(strange) / 2u)], 2);
	(void)round_trip(&r, CODEC_SPEC_CHANNEL);
	assert_int_equal(r.info.chunks_raw, 0);
	assert_true(r.info.escapes >= 50);
	codec_rig_deinit(&r);
}

/* What the transform alone does, for every pattern, shift and top: the identity, or an escape. */
static void test_core_is_a_bijection(void **state)
{
	(void)state;
	for (unsigned shift = 0; shift <= CODEC_SHIFT_MAX; shift += 4)
		for (uint32_t top = 0; top < 1u << 15 >> shift; top += 97)
			for (uint32_t x = 0; x < 65536; x += 7) {
				uint32_t t = codec_token_of(x, 16, shift, top, CODEC_WIDTH_MAX,
							    x & 1u);

				assert_true(t <= CODEC_TOKEN_ESC);
				if (t != CODEC_TOKEN_ESC)
					assert_int_equal(codec_pattern_of(t,
									  x & ((1u << shift) - 1u),
									  16, shift, top, x & 1u),
							 x);
			}
	for (uint32_t top = 0; top < 128; top++)
		for (uint32_t x = 0; x < 256; x++) {
			uint32_t t = codec_token_of(x, 8, 0, top, CODEC_WIDTH_MAX, 1);

			if (t != CODEC_TOKEN_ESC)
				assert_int_equal(codec_pattern_of(t, 0, 8, 0, top, 1), x);
		}
}

/* The encoder's reciprocal gives the quotient or one less, for every frequency. */
static void test_reciprocal(void **state)
{
	struct rng rng;

	(void)state;
	rng_init(&rng, rng_seed_env(21));
	for (uint32_t f = 1; f < CODEC_PROB_SUM; f++)
		for (unsigned i = 0; i < 200; i++) {
			uint32_t limit = f << (32u - CODEC_PROB_BITS), x = (uint32_t)rng_next(&rng);
			uint32_t rcp = (uint32_t)(codec_enc_entry(f, 0) >> 32), q;

			x = i == 0   ? limit - 1u
			    : i == 1 ? CODEC_STATE_LOW
			    : i == 2 ? f * (x % 4000000u)
				     : x;
			x = x % limit;
			q = (uint32_t)((uint64_t)x * rcp >> 32);
			assert_in_range(x / f - q, 0, 1);
		}
}

static void shape(const struct codec_segment *seg, uint32_t n, uint32_t block_tokens)
{
	struct codec_rig r;

	codec_rig_init(&r, block_tokens, seg, n, 3 + n + block_tokens, 4);
	(void)round_trip(&r, CODEC_SPEC_CHANNEL);
	(void)round_trip(&r, CODEC_SPEC_GENERIC);
	codec_rig_deinit(&r);
}

static void test_shapes(void **state)
{
	static const struct codec_segment one[] = { KV(K, BF16, 1, 1) };
	static const struct codec_segment odd[] = { KV(K, BF16, 3, 37), KV(V, E4M3, 1, 31),
						    KV(V, FP16, 5, 33), KV(K, E5M2, 1, 65) };
	static const struct codec_segment latent[] = { KV(LATENT, BF16, 1, 576),
						       KV(LATENT, E4M3, 1, 576),
						       KV(LATENT, FP16, 1, 576) };
	static const struct codec_segment mixed[] = {
		KV(K, BF16, 8, 128), KV(OPAQUE, U8, 1, 100),  KV(V, BF16, 8, 128),
		KV(K, U8, 2, 7),     KV(OPAQUE, BF16, 2, 64), KV(K, E4M3, 8, 128)
	};
	static const struct codec_segment bytes[] = { KV(OPAQUE, U8, 1, 1) };
	struct codec_segment many[200];

	(void)state;
	for (unsigned i = 0; i < 200; i++)
		many[i] = (struct codec_segment)KV(K, BF16, 1, 40);
	shape(one, 1, 1);
	shape(one, 1, 16);
	shape(odd, 4, 16);
	shape(odd, 4, 129);
	shape(latent, 3, 16);
	shape(mixed, 6, 16);
	shape(bytes, 1, 1);
	shape(many, 200, 16);
	shape(many, 199, 3);
}

static void test_geometry_bounds(void **state)
{
	struct codec_segment s = KV(K, BF16, 8, 128);
	struct codec_geometry g;

	(void)state;
	assert_int_equal(codec_geometry_init(&g, 0, &s, 1), -EINVAL);
	assert_int_equal(codec_geometry_init(&g, CODEC_BLOCK_TOKENS_MAX + 1, &s, 1), -EINVAL);
	assert_int_equal(codec_geometry_init(&g, 16, &s, 0), -EINVAL);
	assert_int_equal(codec_geometry_init(&g, 16, &s, CODEC_SEGMENTS_MAX + 1), -EINVAL);
	s.heads = 0;
	assert_int_equal(codec_geometry_init(&g, 16, &s, 1), -EINVAL);
	s.heads = 65535;
	assert_int_equal(codec_geometry_init(&g, 16, &s, 1), -EINVAL);
	s = (struct codec_segment)KV(K, BF16, 512, 128);
	assert_int_equal(codec_geometry_init(&g, 1024, &s, 1), -EINVAL); /* 128 MiB */
	s.dtype = CODEC_DTYPE_COUNT;
	assert_int_equal(codec_geometry_init(&g, 16, &s, 1), -EINVAL);
	s = (struct codec_segment)KV(K, BF16, 8, 128);
	s.kind = CODEC_KIND_COUNT;
	assert_int_equal(codec_geometry_init(&g, 16, &s, 1), -EINVAL);
}

/* Two layouts of the same block: [block][head][token][dim] in, [block][token][segment][head] out. */
static void test_strided_views(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 4, 64), KV(V, BF16, 4, 64) };
	struct codec_stride in[2], out[2];
	const uint64_t in_block[2] = { 65536, 65536 }, out_block[2] = { 32768, 32768 };
	uint8_t *src = malloc(65536 * 3), *dst = calloc(1, 32768 * 4);
	struct codec_view from = {
		.base = src, .stride = in, .block_index = 1, .block_stride = in_block
	};
	struct codec_view to = {
		.base = dst, .stride = out, .block_index = 2, .block_stride = out_block
	};
	struct codec_rig r;

	(void)state;
	assert_true(src && dst);
	codec_rig_init(&r, 16, seg, 2, 5, 4);
	memset(src, 0xcc, 65536 * 3);
	for (uint64_t s = 0; s < 2; s++) {
		in[s] = (struct codec_stride){ .off = s * 8192,
					       .token_stride = 128,
					       .head_stride = 16384 };
		out[s] = (struct codec_stride){ .off = s * 512,
						.token_stride = 1024,
						.head_stride = 128 };
		for (uint64_t t = 0; t < 16; t++)
			for (uint64_t h = 0; h < 4; h++)
				memcpy(src + 65536 + in[s].off + t * 128 + h * 16384,
				       r.block + s * 8192 + t * 512 + h * 128, 128);
	}
	assert_int_equal(codec_encode(r.ws, &r.g, r.profile, CODEC_SPEC_CHANNEL, 0, &from, r.coded,
				      r.cap, &r.info),
			 0);
	assert_int_equal(codec_rig_decode(&r), 0);
	assert_memory_equal(r.back, r.block, r.g.raw_bytes);
	assert_int_equal(
		codec_decode(r.ws, &r.g, r.profile, r.coded, r.info.encoded_bytes, NULL, &to), 0);
	for (uint64_t s = 0; s < 2; s++)
		for (uint64_t t = 0; t < 16; t++)
			assert_memory_equal(dst + 65536 + out[s].off + t * 1024,
					    r.block + s * 8192 + t * 512, 512);
	for (size_t i = 0; i < 65536; i++)
		assert_int_equal(dst[i], 0); /* no other block was touched */
	codec_copy_out(&r.g, &from, r.back);
	assert_memory_equal(r.back, r.block, r.g.raw_bytes);
	codec_rig_deinit(&r);
	free(src);
	free(dst);
}

static void test_skip_tokens(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 2, 64), KV(V, BF16, 2, 64) };
	struct codec_rig r;
	_Atomic(uint32_t) done = 77;

	(void)state;
	codec_rig_init(&r, 16, seg, 2, 6, 4);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_CHANNEL, 0), 0);
	for (uint32_t skip = 0; skip <= 17; skip++) {
		struct codec_view v = { .base = r.back };
		int res;

		memset(r.back, 0x11, r.g.raw_bytes);
		res = codec_decode_from(r.ws, &r.g, r.profile, r.coded, r.info.encoded_bytes, NULL,
					&v, skip, &done);
		assert_int_equal(res, skip <= 16 ? 0 : -EINVAL);
		for (size_t i = 0; i < r.g.raw_bytes; i++)
			assert_int_equal(r.back[i], i % 4096 / 256 < skip ? 0x11 : r.block[i]);
		assert_int_equal(atomic_load(&done), 2);
	}
	codec_rig_deinit(&r);
}

/* Chunks are judged one by one: noise stays raw, zeros shrink to nothing, the rest is coded. */
static void test_fallback_by_chunk(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128), KV(V, BF16, 8, 128),
						    KV(K, BF16, 8, 128), KV(V, BF16, 8, 128) };
	struct codec_rig r;
	struct rng rng;
	size_t whole, bytes;

	(void)state;
	rng_init(&rng, rng_seed_env(22));
	codec_rig_init(&r, 16, seg, 4, 7, 8);
	assert_int_equal(r.g.chunks_count, 4);
	whole = round_trip(&r, CODEC_SPEC_CHANNEL);
	assert_int_equal(r.info.chunks_raw, 0);
	rng_fill(&rng, r.block + r.g.segment_off[1], 32768);
	bytes = round_trip(&r, CODEC_SPEC_CHANNEL);
	assert_int_equal(r.info.chunks_raw, 1);
	assert_in_range(bytes, whole, whole + 32768);
	memset(r.block + r.g.segment_off[1], 0, 32768);
	bytes = round_trip(&r, CODEC_SPEC_CHANNEL);
	assert_int_equal(r.info.chunks_raw, 0);
	assert_true(bytes < whole * 4 / 5);
	rng_fill(&rng, r.block, r.g.raw_bytes);
	bytes = round_trip(&r, CODEC_SPEC_CHANNEL);
	assert_int_equal(r.info.chunks_raw, 4);
	assert_true(bytes <= codec_bound(&r.g));
	codec_rig_deinit(&r);
}

static void test_without_profile(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128), KV(V, BF16, 8, 128) };
	static const struct codec_segment other[] = { KV(K, BF16, 8, 128), KV(K, BF16, 8, 128) };
	struct codec_rig r, o;

	(void)state;
	codec_rig_init(&r, 16, seg, 2, 8, 4);
	codec_rig_init(&o, 16, other, 2, 8, 4);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_COUNT, 0), -EINVAL);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_CHANNEL, 0), 0);
	assert_int_equal(r.info.speculator, CODEC_SPEC_CHANNEL);
	r.profile = codec_profile_free(r.profile);
	assert_int_equal(codec_rig_decode(&r), -ESTALE);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_CHANNEL, 0), 0);
	assert_int_equal(r.info.speculator, CODEC_SPEC_GENERIC);
	assert_int_equal(codec_rig_decode(&r), 0);
	assert_memory_equal(r.back, r.block, r.g.raw_bytes);
	/* A profile of another geometry is as good as none. */
	r.profile = o.profile;
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_CHANNEL, 0), 0);
	assert_int_equal(r.info.speculator, CODEC_SPEC_GENERIC);
	r.profile = NULL;
	codec_rig_deinit(&r);
	codec_rig_deinit(&o);
}

static void test_small_output(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128), KV(OPAQUE, U8, 1, 64),
						    KV(V, BF16, 8, 128) };
	struct codec_rig r;
	size_t need, cap;

	(void)state;
	codec_rig_init(&r, 16, seg, 3, 9, 4);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_CHANNEL, CODEC_ENCODE_VERIFY), 0);
	need = r.info.encoded_bytes;
	cap = r.cap;
	for (size_t c = 0; c <= need; c += c + 97 < need ? 97 : 1) {
		uint8_t *exact = malloc(c ? c : 1);
		struct codec_view v = { .base = r.block };
		struct codec_info info;
		int res;

		assert_non_null(exact);
		res = codec_encode(r.ws, &r.g, r.profile, CODEC_SPEC_CHANNEL, CODEC_ENCODE_VERIFY,
				   &v, exact, c, &info);
		assert_int_equal(res, c < need ? -ENOSPC : 0);
		free(exact);
	}
	r.cap = cap;
	codec_rig_deinit(&r);
}

/*
 * Normal data must come close to its entropy.  For spread s that is log2(s) + 0.5 log2(2 pi e) less the
 * mean of log2 of a code's width, which is 2^(floor(log2 |x|) - 7).  Mean 0: E log2 |x| = log2(s) - 0.916,
 * and the floor takes 0.5 on average over s: 2.047 + 1.416 + 7 = 10.46 bits.  Mean 4 s, one channel in 16:
 * 2.047 - 1.5 + 7 = 7.5.  Together 10.28; 10.15 cannot be had without a loss, and cells, tables, escapes
 * and states together may cost 0.17.
 */
static void test_size_near_entropy(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128), KV(V, BF16, 8, 128) };
	struct codec_rig r;
	double bits, expected;

	(void)state;
	codec_rig_init(&r, 16, seg, 2, 10, 64);
	bits = (double)round_trip(&r, CODEC_SPEC_CHANNEL) * 8.0 / 32768.0;
	expected = codec_profile_expected_bits(r.profile);
	print_message("normal bf16: %.3f bits per scalar, expected %.3f\n", bits, expected);
	assert_true(bits > 10.15 && bits < 10.45);
	assert_true(fabs(bits - expected) < 0.1);
	codec_rig_deinit(&r);
}

/* A channel that turns slowly, as keys do after RoPE, must gain from its last token; white noise not. */
static void test_context_pays(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128) };
	struct codec_rig r;
	struct codec_fit *fit;
	double sum[2] = { 0, 0 };

	(void)state;
	codec_rig_init(&r, 16, seg, 1, 11, 1);
	for (unsigned slow = 0; slow < 2; slow++) {
		struct rng rng;

		rng_init(&rng, 12);
		assert_int_equal(codec_fit_new(&r.g, &fit), 0);
		for (unsigned b = 0; b < 64; b++) {
			struct codec_view v = { .base = r.block };

			for (uint32_t c = 0; c < 1024; c++) {
				double phase = (double)rng_below(&rng, 1000) * 0.00628;

				for (uint32_t t = 0; t < 16; t++) {
					double noise = (double)rng_below(&rng, 2000) * 0.0002 - 0.2;
					uint16_t x;

					if (!slow)
						phase = (double)rng_below(&rng, 1000) * 0.00628;
					x = codec_rig_element(
						CODEC_DTYPE_BF16,
						(float)(sin(phase + t * 0.1) + noise));
					memcpy(r.block + ((size_t)t * 1024 + c) * 2u, &x, 2);
				}
			}
			codec_fit_add(fit, &v);
		}
		codec_profile_free(r.profile);
		assert_int_equal(codec_fit_finish(fit, &r.profile), 0);
		codec_fit_free(fit);
		sum[slow] = codec_profile_expected_bits(r.profile);
		(void)round_trip(&r, CODEC_SPEC_CHANNEL);
	}
	print_message("slow channels: %.3f bits, white: %.3f bits\n", sum[1], sum[0]);
	assert_true(sum[1] < sum[0] - 0.5);
	codec_rig_deinit(&r);
}

struct scribbler {
	uint8_t *block;
	size_t bytes;
	_Atomic(int) stop;
};

static void *scribble(void *arg)
{
	struct scribbler *s = arg;
	struct rng rng;

	rng_init(&rng, 99);
	while (!atomic_load(&s->stop))
		__atomic_store_n(&s->block[rng_below(&rng, (uint32_t)s->bytes)],
				 (uint8_t)rng_next(&rng), __ATOMIC_RELAXED);
	return NULL;
}

/*
 * A client writes its pages while they are stored: what was stored decodes, to some state of them,
 * with the checksum that was returned.
 */
static void test_source_changes(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128), KV(V, BF16, 8, 128) };
	struct scribbler s;
	struct codec_rig r;
	pthread_t thread;

	(void)state;
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
	skip(); /* the race is the point of it */
#endif
#endif
	codec_rig_init(&r, 16, seg, 2, 13, 8);
	s = (struct scribbler){ .block = r.block, .bytes = r.g.raw_bytes };
	assert_int_equal(pthread_create(&thread, NULL, scribble, &s), 0);
	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(codec_rig_encode(&r,
						  i & 1u ? CODEC_SPEC_CHANNEL : CODEC_SPEC_GENERIC,
						  CODEC_ENCODE_VERIFY),
				 0);
		assert_int_equal(codec_rig_decode(&r), 0);
	}
	atomic_store(&s.stop, 1);
	pthread_join(thread, NULL);
	codec_rig_deinit(&r);
}

static void test_fit_is_deterministic(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 2, 64), KV(V, E4M3, 2, 64) };
	struct codec_rig a, b;
	struct codec_profile *p;
	struct codec_fit *fit;
	const void *x, *y;
	size_t xn, yn;

	(void)state;
	codec_rig_init(&a, 16, seg, 2, 14, 40);
	codec_rig_init(&b, 16, seg, 2, 14, 40);
	x = codec_profile_bytes(a.profile, &xn);
	y = codec_profile_bytes(b.profile, &yn);
	assert_int_equal(xn, yn);
	assert_memory_equal(x, y, xn);
	assert_memory_equal(codec_profile_digest(a.profile), codec_profile_digest(b.profile), 32);
	assert_int_equal(codec_profile_parse(&a.g, x, xn, &p), 0);
	assert_memory_equal(codec_profile_digest(p), codec_profile_digest(a.profile), 32);
	codec_profile_free(p);
	assert_int_equal(codec_fit_new(&a.g, &fit), 0);
	assert_int_equal(codec_fit_finish(fit, &p), -ENODATA);
	codec_fit_free(fit);
	codec_rig_deinit(&a);
	codec_rig_deinit(&b);
}

/* Constant and all-zero channels: frequencies at their limits. */
static void test_degenerate_statistics(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 64), KV(V, FP16, 1, 64) };
	struct codec_rig r;
	struct codec_fit *fit;
	struct codec_view v;

	(void)state;
	codec_rig_init(&r, 64, seg, 2, 15, 1);
	for (unsigned round = 0; round < 2; round++) {
		memset(r.block, round ? 0x3f : 0, r.g.raw_bytes);
		v = (struct codec_view){ .base = r.block };
		assert_int_equal(codec_fit_new(&r.g, &fit), 0);
		for (unsigned i = 0; i < 8; i++)
			codec_fit_add(fit, &v);
		codec_profile_free(r.profile);
		assert_int_equal(codec_fit_finish(fit, &r.profile), 0);
		codec_fit_free(fit);
		assert_true(round_trip(&r, CODEC_SPEC_CHANNEL) < r.g.raw_bytes * 3 / 4);
		memset(r.block, 0x44, r.g.raw_bytes); /* nothing like what was fitted */
		(void)round_trip(&r, CODEC_SPEC_CHANNEL);
	}
	codec_rig_deinit(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_isa, (void *)(uintptr_t) "scalar"),
		cmocka_unit_test_prestate(test_isa, (void *)(uintptr_t) "avx2"),
		cmocka_unit_test_prestate(test_isa, (void *)(uintptr_t) "avx512"),
		cmocka_unit_test_prestate(test_isa, (void *)(uintptr_t) "avx512-loads"),
		cmocka_unit_test(test_every_pattern),
		cmocka_unit_test(test_strange_values_among_ordinary),
		cmocka_unit_test(test_core_is_a_bijection),
		cmocka_unit_test(test_reciprocal),
		cmocka_unit_test(test_shapes),
		cmocka_unit_test(test_geometry_bounds),
		cmocka_unit_test(test_strided_views),
		cmocka_unit_test(test_skip_tokens),
		cmocka_unit_test(test_fallback_by_chunk),
		cmocka_unit_test(test_without_profile),
		cmocka_unit_test(test_small_output),
		cmocka_unit_test(test_size_near_entropy),
		cmocka_unit_test(test_context_pays),
		cmocka_unit_test(test_source_changes),
		cmocka_unit_test(test_fit_is_deterministic),
		cmocka_unit_test(test_degenerate_statistics),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
