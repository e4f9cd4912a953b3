/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_kernels.c - the two heavy loops in plain C, and the choice of who runs them.  The vector twins give
 * the same integers: sums are exact, so their order is free.
 */
#include "gpu/codec/model_internal.h"

#include <errno.h>
#include <string.h>

#include "gpu/codec/model_rows.inc"

static void gemm(const int8_t *a, size_t a_pitch, uint32_t rows, const int8_t *w, size_t w_pitch,
		 const int32_t *w_sums, uint32_t outs, uint32_t depth, int32_t *acc,
		 size_t acc_pitch)
{
	(void)w_sums;
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t o = 0; o < outs; o++) {
			const int8_t *x = a + r * a_pitch, *y = w + o * w_pitch;
			int32_t sum = 0;

			for (uint32_t i = 0; i < depth; i++)
				sum += x[i] * y[i];
			acc[r * acc_pitch + o] = sum;
		}
}

static uint64_t attend(const struct mspec_attend *a)
{
	int32_t max = INT32_MIN;
	uint64_t total = 0;

	for (uint32_t j = 0; j < a->keys; j++) {
		const int16_t *k = a->k + (size_t)j * a->dim;
		int32_t sum = 0;

		for (uint32_t i = 0; i < a->dim; i++)
			sum += a->query[i] * k[i];
		a->scores[j] = sum;
		max = sum > max ? sum : max;
	}
	memset(a->sums, 0, a->dim * sizeof(a->sums[0]));
	for (uint32_t j = 0; j < a->keys; j++) {
		const int16_t *v = a->v + (size_t)j * a->dim;
		int32_t p = (int32_t)model_exp(a->exp, (uint32_t)max - (uint32_t)a->scores[j],
					       a->step);

		total += (uint64_t)p;
		for (uint32_t i = 0; i < a->dim; i++)
			a->sums[i] += p * v[i];
	}
	return total;
}

const struct mspec_kernels mspec_kernels_scalar = {
	.name = "scalar",
	.gemm = gemm,
	.attend = attend,
	MSPEC_ROW_KERNELS,
};

static const struct mspec_kernels *forced;

#if defined(__x86_64__)
static bool has_avx512(void)
{
	return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const struct mspec_kernels *mspec_kernels_pick(void)
{
	if (forced)
		return forced;
#if defined(__x86_64__)
	if (has_avx512())
		return &mspec_kernels_avx512;
#endif
	return &mspec_kernels_scalar;
}

int mspec_kernels_force(const char *name)
{
	forced = NULL;
	if (!name)
		return 0;
	if (!strcmp(name, "scalar")) {
		forced = &mspec_kernels_scalar;
		return 0;
	}
#if defined(__x86_64__)
	if (!strcmp(name, "avx512")) {
		if (!has_avx512())
			return -ENOTSUP;
		forced = &mspec_kernels_avx512;
		return 0;
	}
#endif
	return -ENOENT;
}
