/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu.c - picks the kind of GPU.
 */
#include "tools/bench_gpu.h"

#include <errno.h>
#include <string.h>

int bench_gpu_kind_parse(const char *name, enum bench_gpu_kind *ret_kind)
{
	static const char *const names[] = { "gpu", "sim", "host" };

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(name, names[i])) {
			*ret_kind = (enum bench_gpu_kind)i;
			return 0;
		}
	return -EINVAL;
}

int bench_gpu_open(enum bench_gpu_kind kind, const char *which, const struct report *r,
		   struct bench_gpu *ret)
{
	*ret = (struct bench_gpu){ .r = r };
	switch (kind) {
	case BENCH_GPU_CUDA:
		return bench_gpu_cuda_open(ret, which);
	case BENCH_GPU_SIM:
		return bench_gpu_sim_open(ret);
	case BENCH_GPU_HOST:
		return bench_gpu_host_open(ret);
	}
	return -EINVAL;
}

void bench_gpu_close(struct bench_gpu *g)
{
	if (g->ops)
		g->ops->free(g);
	*g = (struct bench_gpu){ 0 };
}

int bench_session_fail(const struct report *r, int error, const char *call,
		       const struct skvc_session *s)
{
	const char *why = s ? skvc_last_error(s) : "";

	return report_fail(r, error, "%s: %s%s%s", call, strerror(-error), why[0] ? ": " : "", why);
}
