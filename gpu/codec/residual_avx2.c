/* SPDX-License-Identifier: Apache-2.0 */
/*
 * residual_avx2.c - the residual coder with 8 lanes to a vector.
 */
#include "gpu/codec/internal.h"

#if defined(__x86_64__)

#include <errno.h>
#include <immintrin.h>
#include <string.h>

#include "gpu/codec/cpu_luts.h"
#include "gpu/codec/cpu_vector.h"
#include "gpu/codec/cpu_slots.inc"
#include "gpu/codec/residual_rows.h"

#define VECTORS 4u /* of a row */
#define WIDTH 8u

typedef __m256i vec;  /* of 32-bit numbers */
typedef __m256i mask; /* all ones or none, lane by lane */

/* ---- arithmetic; shifts by more than 31 give 0, also by what is negative ---- */

KERNEL vec v_set(int32_t x)
{
	return _mm256_set1_epi32(x);
}

KERNEL vec v_add(vec a, vec b)
{
	return _mm256_add_epi32(a, b);
}

KERNEL vec v_sub(vec a, vec b)
{
	return _mm256_sub_epi32(a, b);
}

KERNEL vec v_mul(vec a, vec b)
{
	return _mm256_mullo_epi32(a, b);
}

KERNEL vec v_and(vec a, vec b)
{
	return _mm256_and_si256(a, b);
}

KERNEL vec v_or(vec a, vec b)
{
	return _mm256_or_si256(a, b);
}

KERNEL vec v_xor(vec a, vec b)
{
	return _mm256_xor_si256(a, b);
}

KERNEL vec v_sll(vec a, vec n)
{
	return _mm256_sllv_epi32(a, n);
}

KERNEL vec v_srl(vec a, vec n)
{
	return _mm256_srlv_epi32(a, n);
}

KERNEL vec v_slli(vec a, unsigned n)
{
	return _mm256_slli_epi32(a, n);
}

KERNEL vec v_srli(vec a, unsigned n)
{
	return _mm256_srli_epi32(a, n);
}

KERNEL vec v_srai(vec a, unsigned n)
{
	return _mm256_srai_epi32(a, n);
}

KERNEL vec v_min(vec a, vec b)
{
	return _mm256_min_epi32(a, b);
}

KERNEL vec v_max(vec a, vec b)
{
	return _mm256_max_epi32(a, b);
}

KERNEL vec v_abs(vec a)
{
	return _mm256_abs_epi32(a);
}

/* floor(log2(a)); of 0, 0.  a < 2^31.  By way of a float, whose rounding must not reach the next power. */
KERNEL vec v_log2(vec a)
{
	vec x = v_or(_mm256_andnot_si256(v_srli(a, 1), a), v_set(1));

	return v_sub(v_srli(_mm256_castps_si256(_mm256_cvtepi32_ps(x)), 23), v_set(127));
}

KERNEL uint32_t v_sum(vec a)
{
	__m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));

	s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
	return (uint32_t)_mm_cvtsi128_si32(s) + (uint32_t)_mm_extract_epi32(s, 1);
}

/* ---- masks ---- */

KERNEL mask v_eq(vec a, vec b)
{
	return _mm256_cmpeq_epi32(a, b);
}

KERNEL mask v_gt(vec a, vec b)
{
	return _mm256_cmpgt_epi32(a, b);
}

KERNEL mask v_ge_unsigned(vec a, vec b)
{
	return v_eq(_mm256_max_epu32(a, b), a);
}

KERNEL mask m_none(void)
{
	return _mm256_setzero_si256();
}

KERNEL mask m_and(mask a, mask b)
{
	return v_and(a, b);
}

KERNEL mask m_or(mask a, mask b)
{
	return v_or(a, b);
}

KERNEL mask m_not(mask a)
{
	return v_xor(a, v_set(-1));
}

/* b without a */
KERNEL mask m_andnot(mask a, mask b)
{
	return _mm256_andnot_si256(a, b);
}

KERNEL unsigned m_bits(mask a)
{
	return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(a));
}

KERNEL int m_any(mask a)
{
	return !_mm256_testz_si256(a, a);
}

/* Of vector v of a row. */
KERNEL mask m_lanes(uint32_t lanes, unsigned v)
{
	const vec bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);

	return v_eq(v_and(v_set((int32_t)(lanes >> (WIDTH * v))), bit), bit);
}

KERNEL vec v_if(mask m, vec a)
{
	return v_and(m, a);
}

KERNEL vec v_select(mask m, vec yes, vec no)
{
	return _mm256_blendv_epi8(no, yes, m);
}

/* ---- memory ---- */

KERNEL vec v_load(const void *p)
{
	return _mm256_loadu_si256((const __m256i *)p);
}

KERNEL void v_store(void *p, vec a)
{
	_mm256_storeu_si256((__m256i *)p, a);
}

KERNEL vec v_load_u8(const void *p)
{
	return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

KERNEL vec v_load_u16(const void *p)
{
	return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}

KERNEL vec v_load_i16(const void *p)
{
	return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p));
}

KERNEL void v_store_u16(void *p, const vec *a)
{
	uint8_t *to = p;

	v_store(to, _mm256_permute4x64_epi64(_mm256_packus_epi32(a[0], a[1]), 0xd8));
	v_store(to + 32, _mm256_permute4x64_epi64(_mm256_packus_epi32(a[2], a[3]), 0xd8));
}

KERNEL void v_store_u8(void *p, const vec *a)
{
	vec x = _mm256_packus_epi16(_mm256_packus_epi32(a[0], a[1]),
				    _mm256_packus_epi32(a[2], a[3]));

	v_store(p, _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

/* base[index] */
KERNEL vec v_lookup(const uint32_t *base, vec index)
{
	return slots8(base, index);
}

/* ---- what the coder needs ---- */

KERNEL vec scaled_even(vec d, vec root, vec sh, int left)
{
	const vec low = _mm256_set1_epi64x(0xffffffff);
	vec p = _mm256_mul_epu32(d, root), most = _mm256_set1_epi64x(RESIDUAL_ERROR_MAX);
	vec x = _mm256_srlv_epi64(p, v_and(sh, low));

	if (left)
		x = v_or(x, _mm256_sllv_epi64(p, v_and(v_sub(v_set(0), sh), low)));
	return v_select(_mm256_cmpeq_epi64(_mm256_srli_epi64(x, 14), v_set(0)), x, most);
}

static_assert(RESIDUAL_ERROR_MAX == 1u << 14, "scaled_even");

/* d * root / 2^sh, at most RESIDUAL_ERROR_MAX, by 64 bits. */
KERNEL vec v_scaled(vec d, vec root, vec sh, int left)
{
	vec even = scaled_even(d, root, sh, left);
	vec odd = scaled_even(_mm256_srli_epi64(d, 32), _mm256_srli_epi64(root, 32),
			      _mm256_srli_epi64(sh, 32), left);

	return v_or(even, _mm256_slli_epi64(odd, 32));
}

/* x / freq, one off at most when it is below 2^22. */
KERNEL vec v_quotient(vec x, vec freq)
{
	__m256 r = _mm256_div_ps(_mm256_set1_ps(1), _mm256_cvtepi32_ps(freq));
	__m256 high = _mm256_cvtepi32_ps(v_srli(x, 16));
	__m256 low = _mm256_cvtepi32_ps(v_and(x, v_set(0xffff)));

	return _mm256_cvttps_epi32(
		_mm256_mul_ps(_mm256_fmadd_ps(high, _mm256_set1_ps(65536), low), r));
}

KERNEL vec order_of(const uint8_t lut[8])
{
	return v_load_u8(lut);
}

/* The low words of the lanes go below end, and the lanes' states down. */
KERNEL uint16_t *v_spill(vec *x, const mask *m, uint16_t *end)
{
	UNROLLED
	for (unsigned v = VECTORS; v-- > 0;) {
		unsigned lanes = m_bits(m[v]);
		vec w = _mm256_permutevar8x32_epi32(v_and(x[v], v_set(0xffff)),
						    order_of(lut_compress[lanes]));

		/* They end at `end`; what is below them is written over later. */
		_mm_storeu_si128((__m128i *)(void *)(end - 8),
				 _mm_packus_epi32(_mm256_castsi256_si128(w),
						  _mm256_extracti128_si256(w, 1)));
		end -= __builtin_popcount(lanes);
		x[v] = v_select(m[v], v_srli(x[v], 16), x[v]);
	}
	return end;
}

/* States below 2^16 take a word each; returns how many there were. */
KERNEL uint32_t v_refill(vec *x, const uint8_t *words)
{
	const uint8_t *at = words;

	UNROLLED
	for (unsigned v = 0; v < VECTORS; v++) {
		mask need = v_eq(v_srli(x[v], 16), v_set(0));
		unsigned lanes = m_bits(need);
		vec w = _mm256_permutevar8x32_epi32(v_load_u16(at), order_of(lut_expand[lanes]));

		x[v] = v_select(need, v_or(v_slli(x[v], 16), w), x[v]);
		at += 2u * (unsigned)__builtin_popcount(lanes);
	}
	return (uint32_t)(at - words) / 2u;
}

#include "gpu/codec/residual_vector.inc"

#define NAME(x) residual_avx2_##x

void NAME(errors)(const struct residual_segment *s, uint32_t group, const uint8_t *patterns,
		  uint64_t *sums)
{
	vector_errors(s, group, patterns, sums);
}

void NAME(symbols)(const struct residual_segment *s, uint32_t group, const uint8_t *patterns,
		   const uint8_t *tau, struct residual_list *list, struct residual_weight *weight)
{
	vector_symbols(s, group, patterns, tau, list, weight);
}

uint16_t *NAME(code)(const struct residual_list *list, uint32_t *state, uint16_t *end)
{
	return vector_code(list, state, end);
}

int NAME(decode)(struct residual_stream *st, const struct residual_segment *s, uint32_t group,
		 const uint8_t *tau, uint8_t *patterns)
{
	return vector_decode(st, s, group, tau, patterns);
}

#endif
