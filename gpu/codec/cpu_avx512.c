/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_avx512.c - the kernels with 16 lanes to a vector: masks, expand and compress in place of the
 * permutations of cpu_avx2.c.  The same bytes as cpu_scalar.c.
 */
#include "gpu/codec/internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "gpu/codec/cpu_vector.h"

#define VECTORS 2u /* of 16 lanes in a row */

struct vec_states {
	__m512i v[VECTORS];
};

/* Of a group's columns: 32 numbers of 16 bits. */
struct vec_half {
	__m512i v;
};

/* The decoder's tables of a group: first slots, and those of the next row's contexts. */
struct vec_tables {
	__m512i first[VECTORS];
	__m512i now[VECTORS];
	__m512i context; /* of an entry, in place for a slot's index; zero: contexts are not used */
};

struct vec_columns {
	__m512i top, width, flip;
};

KERNEL __m256i load256(const void *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

KERNEL struct vec_states states_load(const uint32_t *states)
{
	return (struct vec_states){ { _mm512_loadu_si512(states),
				      _mm512_loadu_si512(states + 16) } };
}

KERNEL void states_store(uint32_t *states, const struct vec_states *x)
{
	_mm512_storeu_si512(states, x->v[0]);
	_mm512_storeu_si512(states + 16, x->v[1]);
}

/* Contexts of 32 lanes by the row before. */
KERNEL __m512i contexts(const uint8_t *previous)
{
	__m512i p = _mm512_cvtepu8_epi16(load256(previous));
	__mmask32 near = _mm512_cmplt_epu16_mask(p, _mm512_set1_epi16(CODEC_CONTEXT_NEAR_TOKENS));

	p = _mm512_add_epi16(_mm512_and_si512(p, _mm512_set1_epi16(1)), _mm512_set1_epi16(1));
	return _mm512_mask_add_epi16(p, near, p, _mm512_set1_epi16(2));
}

KERNEL __m256i half_of(__m512i x, unsigned half)
{
	return half ? _mm512_extracti64x4_epi64(x, 1) : _mm512_castsi512_si256(x);
}

/* ---- entropy decoder ---- */

KERNEL void tables_load(struct vec_tables *t, const struct cursor *c)
{
	const uint8_t *previous = cursor_previous(c);
	__m512i first = _mm512_loadu_si512(cursor_table(c)), now = first;

	if (previous)
		now = _mm512_add_epi16(now, contexts(previous));
	first = _mm512_slli_epi16(first, CODEC_PROB_BITS);
	now = _mm512_slli_epi16(now, CODEC_PROB_BITS);
	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++) {
		t->first[v] = _mm512_cvtepu16_epi32(half_of(first, v));
		t->now[v] = _mm512_cvtepu16_epi32(half_of(now, v));
	}
	t->context = _mm512_set1_epi32(c->run->context ? CONTEXT_SLOTS : 0);
}

/* One row.  `context` is false when no stream at hand uses contexts. */
KERNEL void decode_row(const uint32_t *dec, struct cursor *c, struct vec_states *x,
		       struct vec_tables *t, bool context)
{
	const __m512i field = _mm512_set1_epi32(CODEC_DEC_FIELD_MASK);

	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++) {
		__m512i slot = _mm512_ternarylogic_epi32(t->now[v], x->v[v], field, 0xf8);
		__m512i e = _mm512_i32gather_epi32(slot, dec, 4), bias, w;
		__mmask16 need;

		bias = _mm512_and_si512(_mm512_srli_epi32(e, CODEC_DEC_BIAS_SHIFT), field);
		x->v[v] = _mm512_mullo_epi32(_mm512_and_si512(e, field),
					     _mm512_srli_epi32(x->v[v], CODEC_PROB_BITS));
		x->v[v] = _mm512_add_epi32(x->v[v], bias);
		if (context)
			t->now[v] = _mm512_add_epi32(
				t->first[v],
				_mm512_and_si512(_mm512_srli_epi32(e, CONTEXT_DOWN), t->context));
		need = _mm512_cmplt_epu32_mask(x->v[v], _mm512_set1_epi32(CODEC_STATE_LOW));
		w = _mm512_maskz_expand_epi32(need, _mm512_cvtepu16_epi32(load256(c->words)));
		x->v[v] = _mm512_mask_or_epi32(x->v[v], need, _mm512_slli_epi32(x->v[v], 16), w);
		c->words += 2u * (unsigned)__builtin_popcount(need);
		e = _mm512_and_si512(_mm512_srli_epi32(e, CODEC_DEC_TOKEN_SHIFT),
				     _mm512_set1_epi32(CODEC_DEC_TOKEN_MASK));
		_mm_storeu_si128((__m128i *)(void *)(c->tokens + 16u * v), _mm512_cvtepi32_epi8(e));
	}
	c->tokens += CODEC_LANES;
}

/* ---- entropy encoder ---- */

/* floor(a * b / 2^32), lane by lane. */
KERNEL __m512i mulhi_epu32(__m512i a, __m512i b)
{
	__m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a, b), 32);
	__m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));

	return _mm512_mask_blend_epi32(0xaaaa, even, odd);
}

KERNEL uint16_t *encode_step(const uint64_t *enc, __m512i index, __m512i *x, uint16_t *end)
{
	const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,
					       28, 30);
	const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
	__m512i a = _mm512_i32gather_epi64(half_of(index, 0), enc, 8);
	__m512i b = _mm512_i32gather_epi64(half_of(index, 1), enc, 8);
	__m512i e = _mm512_permutex2var_epi32(a, even, b),
		rcp = _mm512_permutex2var_epi32(a, odd, b);
	__m512i freq = _mm512_and_si512(e, _mm512_set1_epi32(0xffff)), q, r, w;
	__mmask16 spill, more;
	unsigned n;

	spill = _mm512_cmpge_epu32_mask(*x, _mm512_slli_epi32(freq, 32 - CODEC_PROB_BITS));
	n = (unsigned)__builtin_popcount(spill);
	w = _mm512_maskz_compress_epi32(spill, *x);
	end -= n;
	_mm256_mask_storeu_epi16(end, (__mmask16)((1u << n) - 1u), _mm512_cvtepi32_epi16(w));
	*x = _mm512_mask_srli_epi32(*x, spill, *x, 16);

	/* The reciprocal gives the quotient or one less. */
	q = mulhi_epu32(*x, rcp);
	r = _mm512_sub_epi32(*x, _mm512_mullo_epi32(q, freq));
	more = _mm512_cmpge_epu32_mask(r, freq);
	q = _mm512_mask_add_epi32(q, more, q, _mm512_set1_epi32(1));
	r = _mm512_mask_sub_epi32(r, more, r, freq);
	*x = _mm512_add_epi32(_mm512_slli_epi32(q, CODEC_PROB_BITS),
			      _mm512_add_epi32(r, _mm512_srli_epi32(e, 16)));
	return end;
}

KERNEL struct vec_half entries_first(const uint16_t *table)
{
	return (struct vec_half){ _mm512_slli_epi16(_mm512_loadu_si512(table), TOKENS_BITS) };
}

KERNEL uint16_t *encode_row(const uint64_t *enc, struct vec_half first, const uint8_t *previous,
			    const uint8_t *tokens, struct vec_states *x, uint16_t *end)
{
	__m512i index = _mm512_add_epi16(first.v, _mm512_cvtepu8_epi16(load256(tokens)));

	if (previous)
		index = _mm512_add_epi16(index, _mm512_slli_epi16(contexts(previous), TOKENS_BITS));
	UNROLLED
	for (unsigned v = VECTORS; v-- > 0;)
		end = encode_step(enc, _mm512_cvtepu16_epi32(half_of(index, v)), &x->v[v], end);
	return end;
}

/* ---- patterns to tokens and low bits, and back ---- */

KERNEL struct vec_half half_zero(void)
{
	return (struct vec_half){ _mm512_setzero_si512() };
}

KERNEL struct vec_half half_left(struct vec_half a, unsigned n)
{
	return (struct vec_half){ _mm512_slli_epi16(a.v, n) };
}

KERNEL struct vec_half half_right(struct vec_half a, unsigned n)
{
	return (struct vec_half){ _mm512_srli_epi16(a.v, n) };
}

KERNEL struct vec_half half_or(struct vec_half a, struct vec_half b)
{
	return (struct vec_half){ _mm512_or_si512(a.v, b.v) };
}

KERNEL struct vec_half half_and(struct vec_half a, unsigned mask)
{
	return (struct vec_half){ _mm512_and_si512(a.v, _mm512_set1_epi16((short)mask)) };
}

/* A row of words from and to its low and high halves. */
KERNEL void words_join(uint32_t *row, struct vec_half low, struct vec_half high)
{
	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++) {
		__m512i h = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half_of(high.v, v)), 16);

		_mm512_storeu_si512(row + 16u * v,
				    _mm512_or_si512(_mm512_cvtepu16_epi32(half_of(low.v, v)), h));
	}
}

KERNEL __m512i narrow(__m512i a, __m512i b)
{
	return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)),
				  _mm512_cvtepi32_epi16(b), 1);
}

KERNEL void words_split(const uint32_t *row, struct vec_half *ret_low, struct vec_half *ret_high)
{
	__m512i a = _mm512_loadu_si512(row), b = _mm512_loadu_si512(row + 16);

	ret_low->v = narrow(a, b);
	ret_high->v = narrow(_mm512_srli_epi32(a, 16), _mm512_srli_epi32(b, 16));
}

KERNEL struct vec_columns columns_load(const struct codec_run *run, uint32_t column)
{
	return (struct vec_columns){
		.top = _mm512_loadu_si512(run->top + column),
		.width = _mm512_loadu_si512(run->width + column),
		.flip = _mm512_loadu_si512(run->flip + column),
	};
}

KERNEL uint32_t tokenize_row(const struct vec_columns *c, const uint8_t *raw, uint8_t *tokens,
			     int bits, unsigned shift, struct vec_half *ret_patterns)
{
	__m512i x = bits == 16 ? _mm512_loadu_si512(raw) : _mm512_cvtepu8_epi16(load256(raw));
	__m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi16((short)((1 << (bits - 1)) - 1)));
	__m512i sign = _mm512_srli_epi16(x, (unsigned)bits - 1u), distance, token;
	__mmask32 outside;

	distance = _mm512_sub_epi16(c->top, _mm512_srli_epi16(magnitude, shift));
	outside = _mm512_cmpge_epu16_mask(distance, c->width);
	token = _mm512_add_epi16(_mm512_slli_epi16(distance, 1), _mm512_xor_si512(sign, c->flip));
	token = _mm512_mask_mov_epi16(token, outside, _mm512_set1_epi16(CODEC_TOKEN_ESC));
	_mm256_storeu_si256((__m256i *)tokens, _mm512_cvtepi16_epi8(token));
	ret_patterns->v = x;
	return (uint32_t)__builtin_popcount(outside);
}

KERNEL unsigned rebuild_row(const struct vec_columns *c, const uint8_t *tokens, struct vec_half low,
			    uint8_t *raw, int bits, unsigned shift)
{
	__m512i t = _mm512_cvtepu8_epi16(load256(tokens)), cell, sign, x;

	cell = _mm512_sub_epi16(c->top, _mm512_srli_epi16(t, 1));
	sign = _mm512_xor_si512(_mm512_and_si512(t, _mm512_set1_epi16(1)), c->flip);
	x = _mm512_or_si512(_mm512_slli_epi16(cell, shift), low.v);
	x = _mm512_and_si512(x, _mm512_set1_epi16((short)((1 << (bits - 1)) - 1)));
	x = _mm512_or_si512(x, _mm512_slli_epi16(sign, (unsigned)bits - 1u));
	if (bits == 16)
		_mm512_storeu_si512(raw, x);
	else
		_mm256_storeu_si256((__m256i *)raw, _mm512_cvtepi16_epi8(x));
	return _mm512_cmpeq_epi16_mask(t, _mm512_set1_epi16(CODEC_TOKEN_ESC));
}

#include "gpu/codec/cpu_drive.inc"

/* Everything that the compiler was told it may use here, not only what is used above. */
static bool avx512_supported(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
	       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
	       __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi") &&
	       __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
	       __builtin_cpu_supports("avx512vpopcntdq");
}

const struct codec_kernels codec_kernels_avx512 = {
	.name = "avx512",
	.supported = avx512_supported,
	.tokenize = drive_tokenize,
	.encode = drive_encode,
	.decode = drive_decode,
	.rebuild = drive_rebuild,
	.leaves = drive_leaves,
};

#endif
