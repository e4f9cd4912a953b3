/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec_format.c - the bytes are those that core.h and format.h describe.  A second reader, slow
 * and written from their text alone (it uses none of the codec's functions, tables or constants),
 * takes payloads apart lane by lane and bit by bit, and builds the checksum's tree from gathered
 * bytes.  The vector kernels must agree with it in every shape, and so must other devices.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "gpu/codec/checksum.h"
#include "gpu/codec/internal.h"
#include "tests/lib/codec_rig.h"

#define KV(k, d, h, n)                                                                          \
	{                                                                                       \
		.kind = CODEC_KIND_##k, .dtype = CODEC_DTYPE_##d, .heads = (h), .head_dim = (n) \
	}

static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
#define ISAS (sizeof(isas) / sizeof(isas[0]))
#define CHECKSUM_GOLDEN 0x90a2e5b94c4b2ea6ull

/* ---- the second reader ---- */

static unsigned u16_at(const uint8_t *p)
{
	return p[0] | (unsigned)p[1] << 8;
}

static uint32_t u32_at(const uint8_t *p)
{
	return u16_at(p) | (uint32_t)u16_at(p + 2) << 16;
}

struct second { /* a chunk, taken apart */
	const struct codec_geometry *g;
	const uint8_t *profile; /* serialised */
	const uint8_t *channels, *tables;
	uint32_t first, end; /* segments */
	const uint8_t *low, *words, *words_end, *escapes, *escapes_end;
	uint64_t stored_bits, bits;
	uint32_t state[32];
	uint8_t *tokens; /* owned, in coded order, 32 to a row */
};

static uint32_t columns_of(const struct codec_segment *s)
{
	return (uint32_t)s->heads * s->head_dim;
}

static unsigned size_of(const struct codec_segment *s)
{
	return s->dtype == CODEC_DTYPE_BF16 || s->dtype == CODEC_DTYPE_FP16 ? 2 : 1;
}

static int coded(const struct codec_segment *s)
{
	return s->kind != CODEC_KIND_OPAQUE && s->dtype != CODEC_DTYPE_U8;
}

static const uint8_t *segment_entry(const struct second *x, uint32_t segment)
{
	return x->profile + 64 + 4u * segment;
}

static uint32_t first_channel(const struct second *x, uint32_t segment)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < segment; i++)
		n += coded(&x->g->segments[i]) ? columns_of(&x->g->segments[i]) : 0;
	return n;
}

static uint32_t groups_of(const struct codec_segment *s)
{
	return (columns_of(s) + 31) / 32;
}

static void second_begin(struct second *x, const struct codec_geometry *g,
			 const struct codec_profile *p, uint32_t chunk, const uint8_t *payload,
			 size_t bytes, size_t escape_bytes)
{
	size_t serial_bytes, rows = 0, low_bytes;

	*x = (struct second){ .g = g, .profile = codec_profile_bytes(p, &serial_bytes) };
	x->first = g->chunk_first_segment[chunk];
	x->end = g->chunk_first_segment[chunk + 1];
	x->channels = x->profile + 64 + 4u * g->segments_count;
	x->tables = x->channels + 4u * first_channel(x, g->segments_count);
	for (uint32_t i = x->first; i < x->end; i++) {
		size_t n = (size_t)groups_of(&g->segments[i]) * g->block_tokens;

		rows += n;
		x->bits += n * segment_entry(x, i)[1];
	}
	x->stored_bits = x->bits < 16 ? 0 : x->bits - 16;
	low_bytes = x->stored_bits / 32 * 128;
	if (x->stored_bits % 32 > 0)
		low_bytes += x->stored_bits % 32 <= 16 ? 64 : 128;
	for (unsigned l = 0; l < 32; l++)
		x->state[l] = u32_at(payload + 4u * l);
	x->low = payload + 128;
	x->words = x->low + low_bytes;
	x->escapes_end = payload + bytes;
	x->escapes = x->words_end = x->escapes_end - escape_bytes;
	assert_true(x->words <= x->words_end);
	x->tokens = calloc(rows + 1, 32);
	assert_non_null(x->tokens);
}

/* The token of one lane by its table; slots are searched from the start. */
static unsigned lane_decode(struct second *x, unsigned lane, unsigned table)
{
	uint32_t *state = &x->state[lane], slot = *state % 1024, start = 0;
	unsigned token = 0, freq;

	for (;; token++) {
		assert_true(token < 127);
		freq = u16_at(x->tables + 254u * table + 2u * token);
		if (slot < start + freq)
			break;
		start += freq;
	}
	*state = freq * (*state / 1024) + slot - start;
	if (*state < 65536) {
		assert_true(x->words < x->words_end);
		*state = *state * 65536 + u16_at(x->words);
		x->words += 2;
	}
	return token;
}

static void second_tokens(struct second *x)
{
	uint8_t *row = x->tokens;

	for (uint32_t i = x->first; i < x->end; i++) {
		const struct codec_segment *s = &x->g->segments[i];
		const uint8_t *channel = x->channels + 4u * first_channel(x, i);

		for (uint32_t r = 0; r < groups_of(s); r++)
			for (uint32_t t = 0; t < x->g->block_tokens; t++, row += 32)
				for (uint32_t l = 0; l < 32 && 32 * r + l < columns_of(s); l++) {
					unsigned table = channel[4u * (32 * r + l) + 3] & 127u;

					if (segment_entry(x, i)[2] && t > 0) {
						unsigned last = row[(int)l - 32];

						table += 1 + last % 2 + (last < 22 ? 2 : 0);
					}
					row[l] = (uint8_t)lane_decode(x, l, table);
				}
	}
	assert_ptr_equal(x->words, x->words_end);
	for (unsigned l = 0; l < 32; l++) {
		assert_int_equal(x->state[l] >> 16, 1);
		if (x->bits < 16)
			assert_int_equal(x->state[l] % 65536 >> x->bits, 0);
	}
}

/* One bit of a lane's stream, wherever it lies. */
static unsigned low_bit(const struct second *x, unsigned lane, uint64_t bit)
{
	const uint8_t *row = x->low + bit / 32 * 128;

	assert_true(bit < x->bits);
	if (bit >= x->stored_bits)
		return x->state[lane] >> (bit - x->stored_bits) & 1u;
	if (bit / 32 == x->stored_bits / 32 && x->stored_bits % 32 <= 16)
		return u16_at(row + 2u * lane) >> bit % 32 & 1u;
	return u32_at(row + 4u * lane) >> bit % 32 & 1u;
}

/* Every lane's patterns, to canonical bytes. */
static void second_patterns(struct second *x, uint8_t *out)
{
	const uint8_t *row = x->tokens;
	uint64_t bit = 0;

	for (uint32_t i = x->first; i < x->end; i++) {
		const struct codec_segment *s = &x->g->segments[i];
		unsigned size = size_of(s), shift = segment_entry(x, i)[1];
		uint32_t r, t, l, sign = size == 2 ? 0x8000 : 0x80;

		for (r = 0; r < groups_of(s); r++)
			for (t = 0; t < x->g->block_tokens; t++, row += 32, bit += shift)
				for (l = 0; l < 32; l++) {
					const uint8_t *c = x->channels +
							   4u * (first_channel(x, i) + 32 * r + l);
					size_t at = ((size_t)t * columns_of(s) + 32 * r + l) * size;
					uint32_t v = 0;

					for (unsigned k = 0; k < shift; k++)
						v |= low_bit(x, l, bit + k) << k;
					if (32 * r + l >= columns_of(s)) {
						assert_int_equal(v, 0);
						continue;
					}
					v |= (u16_at(c) - row[l] / 2) << shift & (sign - 1);
					v |= (row[l] % 2 != c[3] >> 7) ? sign : 0;
					if (row[l] == 126) {
						assert_true(x->escapes + size <= x->escapes_end);
						v = size == 2 ? u16_at(x->escapes) : *x->escapes;
						x->escapes += size;
					} else {
						assert_true(row[l] / 2 < c[2]);
					}
					out[at] = (uint8_t)v;
					if (size == 2)
						out[at + 1] = (uint8_t)(v >> 8);
				}
		out += (size_t)x->g->block_tokens * columns_of(s) * size;
	}
	assert_int_equal(bit, x->bits);
	assert_ptr_equal(x->escapes, x->escapes_end);
}

/* What is stored beyond the last bit must be zero. */
static void second_slack(const struct second *x)
{
	unsigned rest = x->stored_bits % 32;
	const uint8_t *row = x->low + x->stored_bits / 32 * 128;

	for (unsigned l = 0; rest > 0 && l < 32; l++)
		if (rest <= 16)
			assert_int_equal(u16_at(row + 2u * l) >> rest, 0);
		else
			assert_int_equal(u32_at(row + 4u * l) >> rest, 0);
}

/* ---- chunks ---- */

/*
 * Code every chunk of the rig's block with `channel`, whether it shrinks or not, under each
 * instruction set: the same bytes, which the second reader and the codec turn back into the block.
 * Returns the chunks that `channel` took.
 */
static unsigned chunks_check(struct codec_rig *r)
{
	unsigned taken = 0;
	uint8_t *first = malloc(4u * r->g.raw_bytes + 65536), *out = malloc(r->g.raw_bytes);

	assert_true(first && out);
	for (uint32_t c = 0; c < r->g.chunks_count; c++) {
		size_t raw = codec_chunk_bytes(&r->g, c), bytes = 0;
		const uint8_t *block = r->block + r->g.segment_off[r->g.chunk_first_segment[c]];
		uint32_t escapes = 0, escape_bytes = 0;
		struct codec_slot *slot = &r->ws->slot[0];
		int want = 1;

		if (!coded(&r->g.segments[r->g.chunk_first_segment[c]]))
			continue;
		for (size_t e = 0; e < ISAS; e++) {
			size_t n = 0;
			int res;

			if (codec_isa_set(isas[e]) < 0)
				continue;
			assert_int_equal(
				codec_workspace_grow((void **)&slot->raw, &slot->raw_cap, raw), 0);
			memcpy(slot->raw, block, raw);
			res = codec_channel_encode(r->ws, slot, &r->g, r->profile, c, &n, &escapes,
						   &escape_bytes);
			assert_true(res == 0 || res == -E2BIG);
			if (want == 1) {
				want = res;
				bytes = n;
				memcpy(first, r->ws->coded, n);
			}
			assert_int_equal(res, want);
			assert_int_equal(n, bytes);
			assert_memory_equal(r->ws->coded, first, bytes);
		}
		if (want == 0) {
			struct second x;

			second_begin(&x, &r->g, r->profile, c, first, bytes, escape_bytes);
			second_tokens(&x);
			second_slack(&x);
			second_patterns(&x, out);
			free(x.tokens);
			assert_memory_equal(out, block, raw);
			taken++;
		}
		for (size_t d = 0; want == 0 && d < ISAS; d++) {
			struct codec_stream stream;

			if (codec_isa_set(isas[d]) < 0)
				continue;
			memset(out, 0x77, raw);
			assert_int_equal(codec_channel_open(slot, &r->g, r->profile, c, first,
							    bytes, escape_bytes, &stream),
					 0);
			codec_kernels_get()->decode(r->profile, &stream, 1);
			assert_int_equal(codec_channel_close(slot, &r->g, r->profile, c,
							     escape_bytes, &stream, out),
					 0);
			assert_memory_equal(out, block, raw);
		}
	}
	assert_int_equal(codec_isa_set(NULL), 0);
	free(first);
	free(out);
	return taken;
}

/* ---- the checksum ---- */

/* A segment's bytes as its leaves take them: one by one. */
static size_t bytes_gather(const struct codec_geometry *g, uint32_t segment, const uint8_t *raw,
			   uint8_t *out)
{
	const struct codec_segment *s = &g->segments[segment];
	size_t size = size_of(s), columns = columns_of(s), n = 0;

	if (!coded(s)) {
		memcpy(out, raw, g->block_tokens * columns * size);
		return g->block_tokens * columns * size;
	}
	for (size_t r = 0; 32 * r < columns; r++)
		for (size_t t = 0; t < g->block_tokens; t++)
			for (size_t c = 32 * r; c < 32 * r + 32 && c < columns; c++)
				for (size_t k = 0; k < size; k++)
					out[n++] = raw[(t * columns + c) * size + k];
	return n;
}

static uint64_t tree_of(const struct codec_geometry *g, const uint8_t *block)
{
	uint64_t *leaves = calloc(g->raw_bytes / 1024 + g->segments_count + 128, 8), sum;
	uint8_t *bytes = malloc(g->raw_bytes + 1024);
	size_t n = 0;

	assert_true(leaves && bytes);
	for (uint32_t i = 0; i < g->segments_count; i++) {
		size_t m = bytes_gather(g, i, block + g->segment_off[i], bytes);

		memset(bytes + m, 0, 1024);
		for (size_t at = 0; at < m; at += 1024)
			leaves[n++] = XXH3_64bits(bytes + at, 1024);
		assert_int_equal(checksum_segment_leaves(g, i), (m + 1023) / 1024);
	}
	assert_int_equal(checksum_block_leaves(g), n);
	sum = XXH3_64bits(leaves, (8 * n + 1023) / 1024 * 1024);
	assert_int_equal(checksum_root_bytes(g), (8 * n + 1023) / 1024 * 1024);
	assert_true(checksum_root(leaves, checksum_root_bytes(g)) == sum);
	free(leaves);
	free(bytes);
	return sum;
}

static void checksum_check(struct codec_rig *r)
{
	static const uint8_t ways[] = { CODEC_SPEC_CHANNEL, CODEC_SPEC_GENERIC, CODEC_SPEC_RAW };
	uint64_t want = tree_of(&r->g, r->block), sum;
	struct codec_view v = { .base = r->block };

	for (size_t i = 0; i < ISAS; i++) {
		if (codec_isa_set(isas[i]) < 0)
			continue;
		assert_int_equal(codec_checksum(r->ws, &r->g, &v, &sum), 0);
		assert_true(sum == want);
		for (size_t w = 0; w < sizeof(ways); w++) {
			assert_int_equal(codec_rig_encode(r, ways[w], CODEC_ENCODE_VERIFY), 0);
			assert_true(r->info.raw_xxh3 == want);
			assert_int_equal(memcmp(r->coded + 24, &want, 8), 0);
			assert_int_equal(codec_rig_decode(r), 0);
			assert_memory_equal(r->back, r->block, r->g.raw_bytes);
		}
	}
	assert_int_equal(codec_isa_set(NULL), 0);
	r->block[r->g.raw_bytes - 1] ^= 1u;
	assert_int_equal(codec_checksum(r->ws, &r->g, &v, &sum), 0);
	assert_true(sum != want);
	r->block[r->g.raw_bytes - 1] ^= 1u;
}

/* ---- what they are tried on ---- */

/* NaN with payloads, infinities, -0, the smallest and largest subnormals, the largest numbers. */
static void strange_strew(struct codec_rig *r, struct rng *rng, uint32_t one_in)
{
	static const uint16_t two[] = { 0x7fc1, 0xffa5, 0x7f80, 0xff80, 0x8000, 0x0000, 0x0001,
					0x807f, 0x7f7f, 0xff7f, 0x7c00, 0xfc00, 0x7e55, 0x83ff };
	static const uint8_t one[] = { 0x7f, 0xff, 0x80, 0x00, 0x01, 0x87,
				       0x7c, 0xfc, 0x7d, 0xfe, 0x03, 0x83 };

	for (uint32_t i = 0; i < r->g.segments_count; i++) {
		const struct codec_segment *s = &r->g.segments[i];
		uint32_t n = r->g.block_tokens * columns_of(s);

		for (uint32_t k = 0; k < n; k++) {
			uint8_t *at = r->block + r->g.segment_off[i] + (size_t)k * size_of(s);

			if (!rng_one_in(rng, one_in))
				continue;
			if (size_of(s) == 2)
				memcpy(at, &two[rng_below(rng, sizeof(two) / 2u)], 2);
			else
				*at = one[rng_below(rng, sizeof(one))];
		}
	}
}

static uint64_t seed; /* printed once, not by every shape */

/* Ordinary values, some strange ones, constants, noise. */
static void block_check(const struct codec_segment *seg, uint32_t n, uint32_t block_tokens)
{
	struct codec_rig r;
	struct rng rng;

	rng_init(&rng, seed);
	codec_rig_init(&r, block_tokens, seg, n, 40u + n + block_tokens, 1 + 64 / block_tokens);
	(void)chunks_check(&r);
	checksum_check(&r);
	strange_strew(&r, &rng, 40);
	(void)chunks_check(&r);
	checksum_check(&r);
	memset(r.block, 0, r.g.raw_bytes);
	(void)chunks_check(&r);
	memset(r.block, 0x3c, r.g.raw_bytes);
	(void)chunks_check(&r);
	rng_fill(&rng, r.block, r.g.raw_bytes);
	(void)chunks_check(&r);
	checksum_check(&r);
	codec_rig_deinit(&r);
}

static const uint32_t tokens_tried[] = { 1, 3, 16, 17, 64 };
#define TOKENS_TRIED (sizeof(tokens_tried) / sizeof(tokens_tried[0]))

static void test_one_segment(void **state)
{
	static const uint16_t columns[] = { 1, 31, 32, 33, 64, 65, 111, 128 };
	static const struct codec_segment types[] = { KV(K, BF16, 1, 1), KV(V, FP16, 1, 1),
						      KV(K, E4M3, 1, 1), KV(LATENT, E5M2, 1, 1) };

	(void)state;
	for (size_t d = 0; d < sizeof(types) / sizeof(types[0]); d++)
		for (size_t c = 0; c < sizeof(columns) / sizeof(columns[0]); c++)
			for (size_t t = 0; t < TOKENS_TRIED; t++) {
				struct codec_segment s = types[d];

				s.head_dim = columns[c];
				block_check(&s, 1, tokens_tried[t]);
			}
}

/* Segments of unlike shifts in one chunk: a run begins in the middle of a word, and in a carried one. */
static void test_many_segments(void **state)
{
	static const struct codec_segment odd[] = { KV(K, BF16, 3, 37), KV(V, E4M3, 1, 31),
						    KV(V, FP16, 5, 33), KV(K, E5M2, 1, 65),
						    KV(K, E4M3, 1, 5),	KV(V, E5M2, 2, 3) };
	static const struct codec_segment even[] = { KV(K, BF16, 2, 64), KV(V, BF16, 2, 64),
						     KV(K, E4M3, 2, 64), KV(OPAQUE, U8, 1, 1300),
						     KV(V, FP16, 2, 64), KV(V, U8, 3, 32) };

	(void)state;
	for (size_t t = 0; t < TOKENS_TRIED; t++) {
		block_check(odd, 6, tokens_tried[t]);
		block_check(even, 6, tokens_tried[t]);
	}
}

/* `channel` must have taken what the checks above say they checked. */
static void test_taken(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 1, 65), KV(V, FP16, 1, 65),
						    KV(K, E4M3, 1, 65), KV(V, E5M2, 1, 65) };
	struct codec_rig r;
	struct rng rng;

	(void)state;
	rng_init(&rng, rng_seed_env(41));
	for (size_t i = 0; i < 4; i++) {
		codec_rig_init(&r, 16, &seg[i], 1, 42, 8);
		assert_int_equal(chunks_check(&r), 1);
		strange_strew(&r, &rng, 40);
		assert_int_equal(chunks_check(&r), 1);
		rng_fill(&rng, r.block, r.g.raw_bytes);
		assert_int_equal(chunks_check(&r), 0);
		codec_rig_deinit(&r);
	}
}

/*
 * A chunk small enough to be followed by hand: fp16 (shift 8), 2 tokens, 33 columns.  Four rows of 8 low
 * bits: 32 bits a lane, of which 16 are stored, one row of 32 half words.
 */
static void test_by_hand(void **state)
{
	static const struct codec_segment seg = KV(V, FP16, 1, 33);
	uint32_t escapes, escape_bytes;
	struct codec_rig r;
	size_t bytes;
	uint16_t x[66];

	(void)state;
	codec_rig_init(&r, 2, &seg, 1, 43, 40);
	for (uint32_t i = 0; i < 66; i++)
		x[i] = (uint16_t)(codec_rig_element(CODEC_DTYPE_FP16, 0.5f) | (i + 1));
	memcpy(r.block, x, sizeof(x));
	assert_int_equal(chunks_check(&r), 1);
	memcpy(r.ws->slot[0].raw, x, sizeof(x));
	assert_int_equal(codec_channel_encode(r.ws, &r.ws->slot[0], &r.g, r.profile, 0, &bytes,
					      &escapes, &escape_bytes),
			 0);
	/* Rows (0, 0) and (0, 1): columns 0..31 of token 0, then of token 1. */
	for (uint32_t l = 0; l < 32; l++)
		assert_int_equal(u16_at(r.ws->coded + 128 + 2u * l), (l + 1) | (l + 34) << 8);
	/* Rows (1, 0) and (1, 1): column 32 in lane 0 is carried. */
	{
		struct second x2;

		second_begin(&x2, &r.g, r.profile, 0, r.ws->coded, bytes, escape_bytes);
		assert_int_equal(x2.bits, 32);
		assert_int_equal(x2.stored_bits, 16);
		second_tokens(&x2);
		assert_int_equal(x2.state[0], 0x10000 | 33 | 66 << 8);
		for (unsigned l = 1; l < 32; l++)
			assert_int_equal(x2.state[l], 0x10000);
		free(x2.tokens);
	}
	codec_rig_deinit(&r);
}

/* A decoder's entry: four fields, the last one what the token makes of the next row's table. */
static void test_decoder_entry(void **state)
{
	(void)state;
	for (uint32_t token = 0; token < 127; token++) {
		uint32_t e = codec_dec_entry(1023, 1022, token);

		assert_int_equal(e & 1023u, 1023);
		assert_int_equal(e >> 10 & 1023u, 1022);
		assert_int_equal(e >> 20 & 127u, token);
		assert_int_equal(e >> 27, 1 + token % 2 + (token < 22 ? 2 : 0));
	}
}

/* The value itself, so that the tree cannot change on both sides of a comparison. */
static void test_checksum_value(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 2, 40), KV(OPAQUE, U8, 1, 70),
						    KV(V, E4M3, 1, 33) };
	struct codec_rig r;
	struct codec_view v;
	uint64_t sum;

	(void)state;
	codec_rig_init(&r, 16, seg, 3, 44, 1);
	for (size_t i = 0; i < r.g.raw_bytes; i++)
		r.block[i] = (uint8_t)(i * 167u + i / 256u);
	v = (struct codec_view){ .base = r.block };
	assert_int_equal(codec_checksum(r.ws, &r.g, &v, &sum), 0);
	print_message("checksum 0x%016llx\n", (unsigned long long)sum);
	assert_true(sum == CHECKSUM_GOLDEN);
	checksum_check(&r);
	codec_rig_deinit(&r);
}

static int needs_cpu(struct codec_rig *r, size_t bytes)
{
	uint8_t *exact = malloc(bytes ? bytes : 1);
	int res;

	assert_non_null(exact);
	memcpy(exact, r->coded, bytes);
	res = codec_payload_needs_cpu(&r->g, exact, bytes);
	free(exact);
	return res;
}

static void test_payload_needs_cpu(void **state)
{
	static const struct codec_segment seg[] = { KV(K, BF16, 8, 128), KV(V, BF16, 8, 128),
						    KV(OPAQUE, U8, 1, 64) };
	struct codec_rig r;
	struct rng rng;
	size_t bytes;

	(void)state;
	rng_init(&rng, rng_seed_env(45));
	codec_rig_init(&r, 16, seg, 3, 45, 8);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_CHANNEL, 0), 0);
	assert_int_equal(needs_cpu(&r, r.info.encoded_bytes), 1); /* text is `generic` */
	rng_fill(&rng, r.block + r.g.segment_off[2], 1024);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_CHANNEL, 0), 0);
	assert_int_equal(r.info.chunks_raw, 1);
	bytes = r.info.encoded_bytes;
	assert_int_equal(needs_cpu(&r, bytes), 0);
	for (size_t n = 0; n < bytes; n += n < 100 ? 1 : 97)
		assert_int_equal(needs_cpu(&r, n), 1);
	/* Header and index; neither the checksum, the profile's digest nor escape bytes are its business. */
	for (size_t i = 0; i < 64 + 8 * r.g.chunks_count; i++) {
		int res;

		r.coded[i] ^= 0x40;
		res = needs_cpu(&r, bytes);
		if ((i < 24 || i >= 48) && !(i >= 64 && i % 8 / 2 == 2))
			assert_int_equal(res, 1);
		r.coded[i] ^= 0x40;
	}
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_RAW, 0), 0);
	assert_int_equal(needs_cpu(&r, r.info.encoded_bytes), 0);
	assert_int_equal(codec_rig_encode(&r, CODEC_SPEC_GENERIC, 0), 0);
	assert_int_equal(needs_cpu(&r, r.info.encoded_bytes), 1);
	codec_rig_deinit(&r);
}

static int regular(struct codec_segment s, uint32_t block_tokens)
{
	struct codec_segment both[2] = { KV(OPAQUE, U8, 1, 7), s };
	struct codec_geometry g;
	int res;

	assert_int_equal(codec_geometry_init(&g, block_tokens, both, 2), 0);
	res = codec_geometry_regular(&g);
	codec_geometry_deinit(&g);
	return res;
}

static void test_geometry_regular(void **state)
{
	(void)state;
	assert_int_equal(regular((struct codec_segment)KV(K, BF16, 8, 128), 16), 1);
	assert_int_equal(regular((struct codec_segment)KV(K, BF16, 8, 128), 24), 0);
	assert_int_equal(regular((struct codec_segment)KV(K, BF16, 1, 576), 16), 1);
	assert_int_equal(regular((struct codec_segment)KV(K, BF16, 1, 33), 16), 0);
	assert_int_equal(regular((struct codec_segment)KV(K, E4M3, 1, 32), 16), 0);
	assert_int_equal(regular((struct codec_segment)KV(K, E4M3, 1, 64), 16), 1);
	assert_int_equal(regular((struct codec_segment)KV(K, E4M3, 1, 32), 32), 1);
	assert_int_equal(regular((struct codec_segment)KV(K, E4M3, 1, 96), 16), 0);
	assert_int_equal(regular((struct codec_segment)KV(K, FP16, 512, 128), 16), 1);
	assert_int_equal(regular((struct codec_segment)KV(OPAQUE, U8, 1, 5), 16), 1);
	assert_int_equal(regular((struct codec_segment)KV(K, U8, 1, 5), 16), 1);
	/* The second one begins at byte 21. */
	assert_int_equal(regular((struct codec_segment)KV(OPAQUE, U8, 1, 64), 3), 0);
	assert_int_equal(regular((struct codec_segment)KV(K, U8, 1, 64), 3), 0);
}

/* Wide rows in a chunk that begins at an odd byte, in a block whose every segment has a 16-byte aligned page. */
static void test_geometry_odd_chunk(void **state)
{
	const struct codec_segment s[3] = { KV(OPAQUE, U8, 1, 40003), KV(OPAQUE, U8, 1, 13),
					    KV(OPAQUE, U8, 1, 64) };
	struct codec_geometry g;

	(void)state;
	assert_int_equal(codec_geometry_init(&g, 1, s, 3), 0);
	assert_int_equal(g.segment_off[g.chunk_first_segment[1]] % 4, 3);
	assert_int_equal(g.segment_off[2] % 16, 0);
	assert_int_equal(codec_geometry_regular(&g), 0);
	codec_geometry_deinit(&g);
}

static int seed_get(void **state)
{
	(void)state;
	seed = rng_seed_env(40);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_by_hand),
		cmocka_unit_test(test_taken),
		cmocka_unit_test(test_one_segment),
		cmocka_unit_test(test_many_segments),
		cmocka_unit_test(test_decoder_entry),
		cmocka_unit_test(test_checksum_value),
		cmocka_unit_test(test_payload_needs_cpu),
		cmocka_unit_test(test_geometry_regular),
		cmocka_unit_test(test_geometry_odd_chunk),
	};

	return cmocka_run_group_tests(tests, seed_get, NULL);
}
