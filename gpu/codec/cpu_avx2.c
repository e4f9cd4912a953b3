/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_avx2.c - the kernels with 8 lanes to a vector, 4 vectors to a row.  The same bytes as
 * cpu_scalar.c, which also does partial rows and the last words of a stream.
 *
 * The decoder's cost is the latency of one row (table gather, multiply, renormalise); the four vectors
 * of a row are independent but for the count of words, which is a sum of population counts.
 */
#include "gpu/codec/internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "gpu/codec/cpu_luts.h"
#include "gpu/codec/cpu_vector.h"
#include "gpu/codec/cpu_slots.inc"

#define VECTORS 4u /* of 8 lanes in a row */

struct vec_states {
	__m256i v[VECTORS];
};

/* Of a group's columns: 32 numbers of 16 bits. */
struct vec_half {
	__m256i v[2];
};

/* The decoder's tables of a group: first slots, and those of the next row's contexts. */
struct vec_tables {
	__m256i first[VECTORS];
	__m256i now[VECTORS];
	__m256i context; /* of an entry, in place for a slot's index; zero: contexts are not used */
};

struct vec_columns {
	struct vec_half top, width, flip;
};

KERNEL __m256i load8(const uint8_t lut[8])
{
	return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)lut));
}

KERNEL __m256i load256(const void *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

/* Context of each of 32 lanes by the row before, as bytes. */
KERNEL __m256i contexts(const uint8_t *previous)
{
	const __m256i one = _mm256_set1_epi8(1);
	__m256i p = load256(previous), near;

	near = _mm256_cmpgt_epi8(_mm256_set1_epi8(CODEC_CONTEXT_NEAR_TOKENS), p);
	return _mm256_add_epi8(_mm256_add_epi8(_mm256_and_si256(p, one), one),
			       _mm256_and_si256(near, _mm256_set1_epi8(2)));
}

/* 32 bytes to 32 numbers of 16 bits. */
KERNEL struct vec_half half_of(__m256i bytes)
{
	return (struct vec_half){ { _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes)),
				    _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1)) } };
}

KERNEL struct vec_half half_load(const uint16_t *p)
{
	return (struct vec_half){ { load256(p), load256(p + 16) } };
}

KERNEL struct vec_half half_add(struct vec_half a, struct vec_half b)
{
	return (struct vec_half){ { _mm256_add_epi16(a.v[0], b.v[0]),
				    _mm256_add_epi16(a.v[1], b.v[1]) } };
}

KERNEL struct vec_half half_left(struct vec_half a, unsigned n)
{
	return (struct vec_half){ { _mm256_slli_epi16(a.v[0], (int)n),
				    _mm256_slli_epi16(a.v[1], (int)n) } };
}

KERNEL struct vec_half half_right(struct vec_half a, unsigned n)
{
	return (struct vec_half){ { _mm256_srli_epi16(a.v[0], (int)n),
				    _mm256_srli_epi16(a.v[1], (int)n) } };
}

KERNEL struct vec_half half_or(struct vec_half a, struct vec_half b)
{
	return (struct vec_half){ { _mm256_or_si256(a.v[0], b.v[0]),
				    _mm256_or_si256(a.v[1], b.v[1]) } };
}

KERNEL struct vec_half half_and(struct vec_half a, unsigned mask)
{
	const __m256i m = _mm256_set1_epi16((short)mask);

	return (struct vec_half){ { _mm256_and_si256(a.v[0], m), _mm256_and_si256(a.v[1], m) } };
}

KERNEL struct vec_half half_zero(void)
{
	return (struct vec_half){ { _mm256_setzero_si256(), _mm256_setzero_si256() } };
}

KERNEL __m256i widen(__m256i x, unsigned half)
{
	return _mm256_cvtepu16_epi32(half ? _mm256_extracti128_si256(x, 1)
					  : _mm256_castsi256_si128(x));
}

KERNEL struct vec_states states_load(const uint32_t *states)
{
	struct vec_states x;

	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++)
		x.v[v] = load256(states + 8u * v);
	return x;
}

KERNEL void states_store(uint32_t *states, const struct vec_states *x)
{
	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++)
		_mm256_storeu_si256((__m256i *)(states + 8u * v), x->v[v]);
}

/* ---- entropy decoder ---- */

KERNEL void tables_load(struct vec_tables *t, const struct cursor *c)
{
	const uint8_t *previous = cursor_previous(c);
	struct vec_half first = half_load(cursor_table(c)), now = first;

	if (previous)
		now = half_add(now, half_of(contexts(previous)));
	first = half_left(first, CODEC_PROB_BITS);
	now = half_left(now, CODEC_PROB_BITS);
	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++) {
		t->first[v] = widen(first.v[v / 2u], v % 2u);
		t->now[v] = widen(now.v[v / 2u], v % 2u);
	}
	t->context = _mm256_set1_epi32(c->run->context ? CONTEXT_SLOTS : 0);
}

KERNEL const uint8_t *decode_renormalise(const uint8_t *words, __m256i *x)
{
	__m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)words));
	__m256i need = _mm256_cmpeq_epi32(_mm256_srli_epi32(*x, 16), _mm256_setzero_si256());
	unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(need));

	w = _mm256_permutevar8x32_epi32(w, load8(lut_expand[mask]));
	*x = _mm256_blendv_epi8(*x, _mm256_or_si256(_mm256_slli_epi32(*x, 16), w), need);
	return words + 2u * (unsigned)__builtin_popcount(mask);
}

KERNEL void tokens_store(uint8_t *tokens, const __m256i *t)
{
	__m256i a = _mm256_packus_epi32(t[0], t[1]), b = _mm256_packus_epi32(t[2], t[3]);

	a = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b),
					_mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
	_mm256_storeu_si256((__m256i *)tokens, a);
}

/* One row.  `context` is false when no stream at hand uses contexts. */
KERNEL void decode_row(const uint32_t *dec, struct cursor *c, struct vec_states *x,
		       struct vec_tables *t, bool context)
{
	const __m256i field = _mm256_set1_epi32(CODEC_DEC_FIELD_MASK);
	__m256i tokens[VECTORS];

	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++) {
		__m256i slot = _mm256_or_si256(t->now[v], _mm256_and_si256(x->v[v], field));
		__m256i e = slots8(dec, slot), bias;

		bias = _mm256_and_si256(_mm256_srli_epi32(e, CODEC_DEC_BIAS_SHIFT), field);
		x->v[v] = _mm256_mullo_epi32(_mm256_and_si256(e, field),
					     _mm256_srli_epi32(x->v[v], CODEC_PROB_BITS));
		x->v[v] = _mm256_add_epi32(x->v[v], bias);
		if (context)
			t->now[v] = _mm256_add_epi32(
				t->first[v],
				_mm256_and_si256(_mm256_srli_epi32(e, CONTEXT_DOWN), t->context));
		tokens[v] = _mm256_and_si256(_mm256_srli_epi32(e, CODEC_DEC_TOKEN_SHIFT),
					     _mm256_set1_epi32(CODEC_DEC_TOKEN_MASK));
	}
	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++)
		c->words = decode_renormalise(c->words, &x->v[v]);
	tokens_store(c->tokens, tokens);
	c->tokens += CODEC_LANES;
}

/* ---- entropy encoder ---- */

/* floor(a * b / 2^32), lane by lane. */
KERNEL __m256i mulhi_epu32(__m256i a, __m256i b)
{
	__m256i even = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
	__m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));

	return _mm256_blend_epi32(even, odd, 0xaa);
}

/* Two entries side by side. */
KERNEL __m128 entry_pair(const uint64_t *enc, uint32_t i, uint32_t j)
{
	__m128 x = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(enc + i)));

	return _mm_loadh_pi(x, (const __m64 *)(const void *)(enc + j));
}

/* Eight entries by 16-bit index, taken apart into frequency | start << 16 and reciprocal. */
KERNEL __m256i entries(const uint64_t *enc, __m128i index, __m256i *ret_rcp)
{
	uint64_t low = (uint64_t)_mm_cvtsi128_si64(index);
	uint64_t high = (uint64_t)_mm_extract_epi64(index, 1);
	__m128 q0 = entry_pair(enc, (uint16_t)low, (uint16_t)(low >> 16));
	__m128 q1 = entry_pair(enc, (uint16_t)(low >> 32), (uint16_t)(low >> 48));
	__m128 q2 = entry_pair(enc, (uint16_t)high, (uint16_t)(high >> 16));
	__m128 q3 = entry_pair(enc, (uint16_t)(high >> 32), (uint16_t)(high >> 48));
	__m256 a = _mm256_insertf128_ps(_mm256_castps128_ps256(q0), q2, 1);
	__m256 b = _mm256_insertf128_ps(_mm256_castps128_ps256(q1), q3, 1);

	*ret_rcp = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
	return _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
}

KERNEL uint16_t *encode_step(const uint64_t *enc, __m128i index, __m256i *x, uint16_t *end)
{
	__m256i rcp, e = entries(enc, index, &rcp), freq, limit, spill, w, q, r, less;
	unsigned mask;

	freq = _mm256_and_si256(e, _mm256_set1_epi32(0xffff));
	limit = _mm256_slli_epi32(freq, 32 - CODEC_PROB_BITS);
	spill = _mm256_cmpeq_epi32(_mm256_max_epu32(*x, limit), *x);
	mask = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(spill));
	w = _mm256_and_si256(*x, _mm256_set1_epi32(0xffff));
	w = _mm256_permutevar8x32_epi32(w, load8(lut_compress[mask]));
	/* The words of this step end at `end`; what is below them is written over later. */
	_mm_storeu_si128(
		(__m128i *)(void *)(end - 8),
		_mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
	end -= __builtin_popcount(mask);
	*x = _mm256_blendv_epi8(*x, _mm256_srli_epi32(*x, 16), spill);

	/* The reciprocal gives the quotient or one less. */
	q = mulhi_epu32(*x, rcp);
	r = _mm256_sub_epi32(*x, _mm256_mullo_epi32(q, freq));
	less = _mm256_cmpgt_epi32(freq, r);
	q = _mm256_add_epi32(q, _mm256_add_epi32(less, _mm256_set1_epi32(1)));
	r = _mm256_sub_epi32(r, _mm256_andnot_si256(less, freq));
	*x = _mm256_add_epi32(_mm256_slli_epi32(q, CODEC_PROB_BITS),
			      _mm256_add_epi32(r, _mm256_srli_epi32(e, 16)));
	return end;
}

KERNEL struct vec_half entries_first(const uint16_t *table)
{
	return half_left(half_load(table), TOKENS_BITS);
}

KERNEL uint16_t *encode_row(const uint64_t *enc, struct vec_half first, const uint8_t *previous,
			    const uint8_t *tokens, struct vec_states *x, uint16_t *end)
{
	struct vec_half index = half_add(first, half_of(load256(tokens)));

	if (previous)
		index = half_add(index, half_left(half_of(contexts(previous)), TOKENS_BITS));
	UNROLLED
	for (unsigned half = 2; half-- > 0;) {
		end = encode_step(enc, _mm256_extracti128_si256(index.v[half], 1),
				  &x->v[2u * half + 1u], end);
		end = encode_step(enc, _mm256_castsi256_si128(index.v[half]), &x->v[2u * half],
				  end);
	}
	return end;
}

/* ---- patterns to tokens and low bits, and back ---- */

/* A row of words from and to its low and high halves. */
KERNEL void words_join(uint32_t *row, struct vec_half low, struct vec_half high)
{
	UNROLLED
	for (unsigned i = 0; i < 2; i++) {
		__m256i a = _mm256_unpacklo_epi16(low.v[i], high.v[i]);
		__m256i b = _mm256_unpackhi_epi16(low.v[i], high.v[i]);

		_mm256_storeu_si256((__m256i *)(row + 16u * i),
				    _mm256_permute2x128_si256(a, b, 0x20));
		_mm256_storeu_si256((__m256i *)(row + 16u * i + 8u),
				    _mm256_permute2x128_si256(a, b, 0x31));
	}
}

KERNEL void words_split(const uint32_t *row, struct vec_half *ret_low, struct vec_half *ret_high)
{
	const __m256i half = _mm256_set1_epi32(0xffff);

	UNROLLED
	for (unsigned i = 0; i < 2; i++) {
		__m256i a = load256(row + 16u * i), b = load256(row + 16u * i + 8u);

		ret_low->v[i] = _mm256_packus_epi32(_mm256_and_si256(a, half),
						    _mm256_and_si256(b, half));
		ret_low->v[i] = _mm256_permute4x64_epi64(ret_low->v[i], 0xd8);
		ret_high->v[i] = _mm256_packus_epi32(_mm256_srli_epi32(a, 16),
						     _mm256_srli_epi32(b, 16));
		ret_high->v[i] = _mm256_permute4x64_epi64(ret_high->v[i], 0xd8);
	}
}

KERNEL struct vec_columns columns_load(const struct codec_run *run, uint32_t column)
{
	return (struct vec_columns){
		.top = half_load(run->top + column),
		.width = half_load(run->width + column),
		.flip = half_load(run->flip + column),
	};
}

KERNEL __m256i pack_bytes(__m256i a, __m256i b)
{
	return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
}

KERNEL uint32_t tokenize_row(const struct vec_columns *c, const uint8_t *raw, uint8_t *tokens,
			     int bits, unsigned shift, struct vec_half *ret_patterns)
{
	const __m256i mask = _mm256_set1_epi16((short)((1 << (bits - 1)) - 1));
	struct vec_half x, token;
	__m256i t;

	if (bits == 16)
		x = (struct vec_half){ { load256(raw), load256(raw + 32) } };
	else
		x = half_of(load256(raw));
	UNROLLED
	for (unsigned i = 0; i < 2; i++) {
		__m256i magnitude = _mm256_and_si256(x.v[i], mask), distance, outside, sign;

		distance = _mm256_sub_epi16(c->top.v[i], _mm256_srli_epi16(magnitude, (int)shift));
		outside = _mm256_cmpeq_epi16(_mm256_max_epu16(distance, c->width.v[i]), distance);
		sign = _mm256_xor_si256(_mm256_srli_epi16(x.v[i], bits - 1), c->flip.v[i]);
		token.v[i] = _mm256_add_epi16(_mm256_slli_epi16(distance, 1), sign);
		token.v[i] = _mm256_blendv_epi8(token.v[i], _mm256_set1_epi16(CODEC_TOKEN_ESC),
						outside);
	}
	t = pack_bytes(token.v[0], token.v[1]);
	_mm256_storeu_si256((__m256i *)tokens, t);
	*ret_patterns = x;
	t = _mm256_cmpeq_epi8(t, _mm256_set1_epi8(CODEC_TOKEN_ESC));
	return (uint32_t)__builtin_popcount((unsigned)_mm256_movemask_epi8(t));
}

KERNEL unsigned rebuild_row(const struct vec_columns *c, const uint8_t *tokens, struct vec_half low,
			    uint8_t *raw, int bits, unsigned shift)
{
	const __m256i mask = _mm256_set1_epi16((short)((1 << (bits - 1)) - 1));
	__m256i t = load256(tokens);
	struct vec_half token = half_of(t), x;

	UNROLLED
	for (unsigned i = 0; i < 2; i++) {
		__m256i cell, sign = _mm256_and_si256(token.v[i], _mm256_set1_epi16(1));

		cell = _mm256_sub_epi16(c->top.v[i], _mm256_srli_epi16(token.v[i], 1));
		sign = _mm256_slli_epi16(_mm256_xor_si256(sign, c->flip.v[i]), bits - 1);
		x.v[i] = _mm256_or_si256(_mm256_slli_epi16(cell, (int)shift), low.v[i]);
		x.v[i] = _mm256_or_si256(_mm256_and_si256(x.v[i], mask), sign);
	}
	if (bits == 16) {
		_mm256_storeu_si256((__m256i *)raw, x.v[0]);
		_mm256_storeu_si256((__m256i *)(raw + 32), x.v[1]);
	} else {
		_mm256_storeu_si256((__m256i *)raw, pack_bytes(x.v[0], x.v[1]));
	}
	t = _mm256_cmpeq_epi8(t, _mm256_set1_epi8(CODEC_TOKEN_ESC));
	return (unsigned)_mm256_movemask_epi8(t);
}

#include "gpu/codec/cpu_drive.inc"

static bool avx2_supported(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
	       __builtin_cpu_supports("popcnt");
}

const struct codec_kernels codec_kernels_avx2 = {
	.name = "avx2",
	.supported = avx2_supported,
	.tokenize = drive_tokenize,
	.encode = drive_encode,
	.decode = drive_decode,
	.rebuild = drive_rebuild,
	.leaves = drive_leaves,
	.residual_errors = residual_avx2_errors,
	.residual_symbols = residual_avx2_symbols,
	.residual_code = residual_avx2_code,
	.residual_decode = residual_avx2_decode,
	.layer_values = layer_avx2_values,
	.layer_inputs = layer_avx2_inputs,
	.layer_outputs = layer_avx2_outputs,
	.layer_turn = layer_avx2_turn,
	.product_i8 = product_avx2_i8,
};

#endif
