/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_kernels_avx2.c - the engine's arithmetic with AVX2 and FMA, equal in every bit to the
 * scalar twin.
 *
 * Every multiply that is followed by an add is an explicit FMA: what the compiler would be free to
 * fuse or not would differ between builds.  16 bf16 in one register become two of 8 floats by a
 * shift (the even ones) and a mask (the odd ones).
 */
#include "tools/model_kernels.h"

#ifdef __x86_64__

#include <assert.h>
#include <immintrin.h>

/* Without it gcc -O2 keeps an array of accumulators in memory: 5 times slower, measured. */
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 6")
#endif

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX2_INLINE static inline __attribute__((target("avx2,fma"), always_inline))

AVX2_INLINE __m256 even_of(__m256i pairs)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

AVX2_INLINE __m256 odd_of(__m256i pairs)
{
	return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}

/* Unrolled for one number of rows, so that the accumulators stay in registers: 2 * 6 of the 16. */
AVX2_INLINE void panel_rows(const float *x, size_t x_stride, const uint32_t rows, uint32_t inner,
			    const uint16_t *w, size_t w_stride, float *y, size_t y_stride)
{
	__m256 even[MODEL_ROWS_MAX], odd[MODEL_ROWS_MAX];

	UNROLL
	for (uint32_t r = 0; r < rows; r++) {
		__m256 a = _mm256_loadu_ps(y + r * y_stride);
		__m256 b = _mm256_loadu_ps(y + r * y_stride + 8);
		__m256 low = _mm256_permute2f128_ps(a, b, 0x20);
		__m256 high = _mm256_permute2f128_ps(a, b, 0x31);

		even[r] = _mm256_shuffle_ps(low, high, 0x88);
		odd[r] = _mm256_shuffle_ps(low, high, 0xdd);
	}
	for (uint32_t i = 0; i < inner; i++) {
		__m256i pairs =
			_mm256_loadu_si256((const __m256i *)(const void *)(w + i * w_stride));
		__m256 we = even_of(pairs), wo = odd_of(pairs);

		UNROLL
		for (uint32_t r = 0; r < rows; r++) {
			__m256 xi = _mm256_broadcast_ss(x + r * x_stride + i);

			even[r] = _mm256_fmadd_ps(xi, we, even[r]);
			odd[r] = _mm256_fmadd_ps(xi, wo, odd[r]);
		}
	}
	UNROLL
	for (uint32_t r = 0; r < rows; r++) {
		__m256 low = _mm256_unpacklo_ps(even[r], odd[r]);
		__m256 high = _mm256_unpackhi_ps(even[r], odd[r]);

		_mm256_storeu_ps(y + r * y_stride, _mm256_permute2f128_ps(low, high, 0x20));
		_mm256_storeu_ps(y + r * y_stride + 8, _mm256_permute2f128_ps(low, high, 0x31));
	}
}

AVX2 static void panel_avx2(const float *x, size_t x_stride, uint32_t rows, uint32_t inner,
			    const uint16_t *w, size_t w_stride, float *y, size_t y_stride)
{
	switch (rows) {
	case 1:
		panel_rows(x, x_stride, 1, inner, w, w_stride, y, y_stride);
		break;
	case 2:
		panel_rows(x, x_stride, 2, inner, w, w_stride, y, y_stride);
		break;
	case 3:
		panel_rows(x, x_stride, 3, inner, w, w_stride, y, y_stride);
		break;
	case 4:
		panel_rows(x, x_stride, 4, inner, w, w_stride, y, y_stride);
		break;
	case 5:
		panel_rows(x, x_stride, 5, inner, w, w_stride, y, y_stride);
		break;
	default:
		assert(rows == MODEL_ROWS_MAX);
		panel_rows(x, x_stride, MODEL_ROWS_MAX, inner, w, w_stride, y, y_stride);
		break;
	}
}

AVX2_INLINE __m256 dot_lanes(const float *q, uint32_t dim, const uint16_t *k)
{
	__m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();

	for (uint32_t d = 0; d < dim; d += 16) {
		__m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)(k + d));

		even = _mm256_fmadd_ps(_mm256_loadu_ps(q + d), even_of(pairs), even);
		odd = _mm256_fmadd_ps(_mm256_loadu_ps(q + d + 8), odd_of(pairs), odd);
	}
	return _mm256_add_ps(even, odd);
}

/* MODEL_SUM8 of four registers at once: hadd adds neighbours, twice, then the halves are added. */
AVX2_INLINE __m128 sum8_of4(__m256 a, __m256 b, __m256 c, __m256 d)
{
	__m256 four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));

	return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}

AVX2_INLINE float sum8(__m256 v)
{
	float lanes[8];

	_mm256_storeu_ps(lanes, v);
	return MODEL_SUM8(lanes);
}

AVX2 static void dots_avx2(const float *q, uint32_t dim, const uint16_t *k, size_t k_stride,
			   uint32_t keys, float *scores)
{
	uint32_t j = 0;

	assert(dim % 16 == 0);
	for (; j + 4 <= keys; j += 4) {
		const uint16_t *row = k + j * k_stride;

		_mm_storeu_ps(scores + j,
			      sum8_of4(dot_lanes(q, dim, row), dot_lanes(q, dim, row + k_stride),
				       dot_lanes(q, dim, row + 2 * k_stride),
				       dot_lanes(q, dim, row + 3 * k_stride)));
	}
	for (; j < keys; j++)
		scores[j] = sum8(dot_lanes(q, dim, k + j * k_stride));
}

AVX2_INLINE __m256 exp8(__m256 x)
{
	__m256 n, r, p;
	__m256i scale;

	x = _mm256_max_ps(x, _mm256_set1_ps(MODEL_EXP_LOW));
	x = _mm256_min_ps(x, _mm256_set1_ps(MODEL_EXP_HIGH));
	n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(MODEL_EXP_LOG2E)),
			    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
	r = _mm256_fmadd_ps(n, _mm256_set1_ps(-MODEL_EXP_LN2_HIGH), x);
	r = _mm256_fmadd_ps(n, _mm256_set1_ps(-MODEL_EXP_LN2_LOW), r);
	p = _mm256_fmadd_ps(_mm256_set1_ps(MODEL_EXP_C6), r, _mm256_set1_ps(MODEL_EXP_C5));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MODEL_EXP_C4));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MODEL_EXP_C3));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(MODEL_EXP_C2));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
	p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
	scale = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
	return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), scale));
}

AVX2 static float softmax_avx2(float *scores, uint32_t count)
{
	const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	__m256 sum = _mm256_setzero_ps(), top;
	float greatest = scores[0];
	uint32_t j = 0;

	if (count >= 8) {
		float lanes[8];

		top = _mm256_loadu_ps(scores);
		for (j = 8; j + 8 <= count; j += 8)
			top = _mm256_max_ps(_mm256_loadu_ps(scores + j), top);
		_mm256_storeu_ps(lanes, top);
		for (uint32_t l = 0; l < 8; l++)
			greatest = lanes[l] > greatest ? lanes[l] : greatest;
	}
	for (; j < count; j++)
		greatest = scores[j] > greatest ? scores[j] : greatest;
	top = _mm256_set1_ps(greatest);
	for (j = 0; j < count; j += 8) {
		__m256i left = _mm256_set1_epi32((int)(count - j));
		__m256 live = _mm256_castsi256_ps(_mm256_cmpgt_epi32(left, index));
		__m256 e = exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + j), top));

		e = _mm256_and_ps(e, live); /* what lies behind the last score adds +0 */
		_mm256_storeu_ps(scores + j, e);
		sum = _mm256_add_ps(sum, e);
	}
	return sum8(sum);
}

AVX2 static void silu_avx2(float *gate, const float *up, size_t count)
{
	const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);

	for (size_t i = 0; i < count; i += 8) {
		__m256 g = _mm256_loadu_ps(gate + i);
		__m256 below = _mm256_add_ps(one, exp8(_mm256_xor_ps(g, sign)));

		_mm256_storeu_ps(gate + i,
				 _mm256_mul_ps(_mm256_div_ps(g, below), _mm256_loadu_ps(up + i)));
	}
}

AVX2 static float squares_avx2(const float *x, uint32_t count)
{
	__m256 sum = _mm256_setzero_ps();

	for (uint32_t i = 0; i < count; i += 8) {
		__m256 v = _mm256_loadu_ps(x + i);

		sum = _mm256_fmadd_ps(v, v, sum);
	}
	return sum8(sum);
}

const struct model_kernels *model_kernels_avx2(void)
{
	static const struct model_kernels kernels = {
		.name = "avx2",
		.panel = panel_avx2,
		.dots = dots_avx2,
		.softmax = softmax_avx2,
		.silu = silu_avx2,
		.squares = squares_avx2,
	};

	__builtin_cpu_init();
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : NULL;
}

#else

const struct model_kernels *model_kernels_avx2(void)
{
	return NULL;
}

#endif
