/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_kernels.c - the loops in plain C, which define the format, and the choice of who runs them.  The vector
 * twins give the same integers: sums are exact, so their order is free.
 */
#include "gpu/codec/internal.h"
#include "gpu/codec/model_internal.h"

#include <errno.h>
#include <string.h>

#define MSPEC_PLAIN
#include "gpu/codec/model_loops.inc"

const struct mspec_kernels mspec_kernels_scalar = {
	.name = "scalar",
	.product = product_scalar_i8,
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
	if (__builtin_cpu_supports("avx2"))
		return &mspec_kernels_avx2;
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
	if (!strcmp(name, "avx2")) {
		if (!__builtin_cpu_supports("avx2"))
			return -ENOTSUP;
		forced = &mspec_kernels_avx2;
		return 0;
	}
	if (!strcmp(name, "avx512")) {
		if (!has_avx512())
			return -ENOTSUP;
		forced = &mspec_kernels_avx512;
		return 0;
	}
#endif
	return -ENOENT;
}
