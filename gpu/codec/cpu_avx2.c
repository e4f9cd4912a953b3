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

#define VECTORS 4u /* of 8 lanes in a row */

struct vec_states {
	__m256i v[VECTORS];
};

struct vec_tokens {
	__m256i v[VECTORS];
};

KERNEL __m256i load8(const uint8_t lut[8])
{
	return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)lut));
}

KERNEL __m256i load256(const void *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

/* Context of each of 32 lanes, as bytes; zero without a predecessor. */
KERNEL __m256i contexts(const uint8_t *previous)
{
	const __m256i one = _mm256_set1_epi8(1);
	__m256i p, near;

	if (!previous)
		return _mm256_setzero_si256();
	p = load256(previous);
	near = _mm256_cmpgt_epi8(_mm256_set1_epi8(CODEC_CONTEXT_NEAR_TOKENS), p);
	return _mm256_add_epi8(_mm256_add_epi8(_mm256_and_si256(p, one), one),
			       _mm256_and_si256(near, _mm256_set1_epi8(2)));
}

/* First slot or entry of the table of 16 lanes: (table + context) << shift, in 16 bits. */
KERNEL __m256i tables16(const uint16_t *table, __m256i context, unsigned half, int shift)
{
	__m128i c = half ? _mm256_extracti128_si256(context, 1) : _mm256_castsi256_si128(context);
	__m256i t = _mm256_add_epi16(load256(table + 16u * half), _mm256_cvtepu8_epi16(c));

	return _mm256_slli_epi16(t, shift);
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

/*
 * base[index] for 8 lanes, by plain loads: the gather instruction is microcode that keeps the two
 * streams from overlapping, and slower yet where the gather data sampling mitigation is in force.
 */
KERNEL __m256i gather(const uint32_t *base, __m256i index)
{
	__m128i low = _mm256_castsi256_si128(index), high = _mm256_extracti128_si256(index, 1);
	uint64_t i01 = (uint64_t)_mm_cvtsi128_si64(low), i23 = (uint64_t)_mm_extract_epi64(low, 1);
	uint64_t i45 = (uint64_t)_mm_cvtsi128_si64(high),
		 i67 = (uint64_t)_mm_extract_epi64(high, 1);
	__m128i e01 = _mm_insert_epi32(_mm_cvtsi32_si128((int)base[(uint32_t)i01]),
				       (int)base[i01 >> 32], 1);
	__m128i e23 = _mm_insert_epi32(_mm_cvtsi32_si128((int)base[(uint32_t)i23]),
				       (int)base[i23 >> 32], 1);
	__m128i e45 = _mm_insert_epi32(_mm_cvtsi32_si128((int)base[(uint32_t)i45]),
				       (int)base[i45 >> 32], 1);
	__m128i e67 = _mm_insert_epi32(_mm_cvtsi32_si128((int)base[(uint32_t)i67]),
				       (int)base[i67 >> 32], 1);

	return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi64(e01, e23)),
				       _mm_unpacklo_epi64(e45, e67), 1);
}

/* Look up and multiply out one vector; renormalisation comes when all words' places are known. */
KERNEL __m256i decode_step(const uint32_t *dec, __m256i table, __m256i *x)
{
	const __m256i field = _mm256_set1_epi32(CODEC_DEC_FIELD_MASK);
	__m256i e = gather(dec, _mm256_or_si256(table, _mm256_and_si256(*x, field)));
	__m256i bias = _mm256_and_si256(_mm256_srli_epi32(e, CODEC_DEC_BIAS_SHIFT), field);

	*x = _mm256_mullo_epi32(_mm256_and_si256(e, field), _mm256_srli_epi32(*x, CODEC_PROB_BITS));
	*x = _mm256_add_epi32(*x, bias);
	return _mm256_srli_epi32(e, CODEC_DEC_TOKEN_SHIFT);
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

KERNEL void decode_row_begin(const uint32_t *dec, const struct cursor *c, struct vec_states *x,
			     struct vec_tokens *t)
{
	__m256i context = contexts(cursor_previous(c));

	UNROLLED
	for (unsigned half = 0; half < 2; half++) {
		__m256i table = tables16(cursor_table(c), context, half, CODEC_PROB_BITS);

		t->v[2u * half] = decode_step(dec, widen(table, 0), &x->v[2u * half]);
		t->v[2u * half + 1u] = decode_step(dec, widen(table, 1), &x->v[2u * half + 1u]);
	}
}

KERNEL void decode_row_end(struct cursor *c, struct vec_states *x, const struct vec_tokens *t)
{
	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++)
		c->words = decode_renormalise(c->words, &x->v[v]);
	tokens_store(c->tokens, t->v);
	cursor_advance(c);
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

KERNEL uint16_t *encode_row(const uint64_t *enc, const uint16_t *table, const uint8_t *previous,
			    const uint8_t *tokens, struct vec_states *x, uint16_t *end)
{
	__m256i context = contexts(previous), t = load256(tokens), index;

	UNROLLED
	for (unsigned half = 2; half-- > 0;) {
		index = _mm256_cvtepu8_epi16(half ? _mm256_extracti128_si256(t, 1)
						  : _mm256_castsi256_si128(t));
		index = _mm256_or_si256(index, tables16(table, context, half, 7));
		end = encode_step(enc, _mm256_extracti128_si256(index, 1), &x->v[2u * half + 1u],
				  end);
		end = encode_step(enc, _mm256_castsi256_si128(index), &x->v[2u * half], end);
	}
	return end;
}

/* ---- patterns to tokens and planes ---- */

/* 16 patterns, zero-extended to 16 bits, to tokens in 16 bits. */
KERNEL __m256i tokens_of(__m256i x, const struct codec_run *run, uint32_t column, __m128i shift,
			 int bits)
{
	__m256i magnitude = _mm256_and_si256(x, _mm256_set1_epi16((short)((1 << (bits - 1)) - 1)));
	__m256i sign = _mm256_srli_epi16(x, bits - 1);
	__m256i distance = _mm256_sub_epi16(load256(run->top + column),
					    _mm256_srl_epi16(magnitude, shift));
	__m256i width = load256(run->width + column), outside, token;

	outside = _mm256_cmpeq_epi16(_mm256_max_epu16(distance, width), distance);
	token = _mm256_add_epi16(_mm256_slli_epi16(distance, 1),
				 _mm256_xor_si256(sign, load256(run->flip + column)));
	return _mm256_blendv_epi8(token, _mm256_set1_epi16(CODEC_TOKEN_ESC), outside);
}

KERNEL __m256i pack_bytes(__m256i a, __m256i b)
{
	return _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
}

KERNEL uint32_t tokenize_row(const struct codec_run *run, uint32_t column, const uint8_t *raw,
			     uint8_t *tokens, uint32_t *planes, int bits, unsigned shift)
{
	const __m128i count = _mm_cvtsi32_si128((int)shift);
	__m256i a, b, low, t;

	if (bits == 16) {
		const __m256i byte = _mm256_set1_epi16(0xff);

		a = load256(raw);
		b = load256(raw + 32);
		low = pack_bytes(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
	} else {
		low = load256(raw);
		a = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(low));
		b = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(low, 1));
	}
	t = pack_bytes(tokens_of(a, run, column, count, bits),
		       tokens_of(b, run, column + 16u, count, bits));
	_mm256_storeu_si256((__m256i *)tokens, t);
	/* Bit k of every byte moves to the byte's top, whatever comes along below it. */
	UNROLLED
	for (unsigned k = 0; k < shift; k++)
		planes[k] = (uint32_t)_mm256_movemask_epi8(
			_mm256_sll_epi16(low, _mm_cvtsi32_si128((int)(7u - k))));
	t = _mm256_cmpeq_epi8(t, _mm256_set1_epi8(CODEC_TOKEN_ESC));
	return (uint32_t)__builtin_popcount((unsigned)_mm256_movemask_epi8(t));
}

/* ---- tokens and planes to patterns ---- */

KERNEL __m256i patterns_of(__m256i token, __m256i low, const struct codec_run *run, uint32_t column,
			   __m128i shift, int bits)
{
	__m256i cell = _mm256_sub_epi16(load256(run->top + column), _mm256_srli_epi16(token, 1));
	__m256i sign = _mm256_xor_si256(_mm256_and_si256(token, _mm256_set1_epi16(1)),
					load256(run->flip + column));
	__m256i magnitude = _mm256_or_si256(_mm256_sll_epi16(cell, shift), low);

	magnitude = _mm256_and_si256(magnitude, _mm256_set1_epi16((short)((1 << (bits - 1)) - 1)));
	return _mm256_or_si256(magnitude, _mm256_slli_epi16(sign, bits - 1));
}

/* Spread the planes' bits over 32 lanes: the low bits of each pattern, as bytes. */
KERNEL __m256i low_bits(const uint32_t *planes, unsigned shift)
{
	const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
						0x0303030303030303);
	const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
	__m256i low = _mm256_setzero_si256();

	UNROLLED
	for (unsigned k = 0; k < shift; k++) {
		__m256i w = _mm256_shuffle_epi8(_mm256_set1_epi32((int)planes[k]), byte);

		w = _mm256_cmpeq_epi8(_mm256_and_si256(w, bit), bit);
		low = _mm256_or_si256(low, _mm256_and_si256(w, _mm256_set1_epi8((char)(1u << k))));
	}
	return low;
}

KERNEL unsigned rebuild_row(const struct codec_run *run, uint32_t column, const uint8_t *tokens,
			    const uint32_t *planes, uint8_t *raw, int bits, unsigned shift)
{
	const __m128i count = _mm_cvtsi32_si128((int)shift);
	__m256i t = load256(tokens), low = low_bits(planes, shift), a, b;

	a = patterns_of(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(t)),
			_mm256_cvtepu8_epi16(_mm256_castsi256_si128(low)), run, column, count,
			bits);
	b = patterns_of(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(t, 1)),
			_mm256_cvtepu8_epi16(_mm256_extracti128_si256(low, 1)), run, column + 16u,
			count, bits);
	if (bits == 16) {
		_mm256_storeu_si256((__m256i *)raw, a);
		_mm256_storeu_si256((__m256i *)(raw + 32), b);
	} else {
		_mm256_storeu_si256((__m256i *)raw, pack_bytes(a, b));
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
	.checksum = drive_checksum,
};

#endif
