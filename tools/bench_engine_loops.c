/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_engine_loops.c - bf16 products through cuBLAS, found at run time like the driver.
 *
 * Steps are queued a few ahead, so that the GPU never waits for this thread, and an event between each two
 * tells how long a step took.
 */
#include "tools/bench_engine_loops.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench_cuda.h"
#include "tools/bench_samples.h"
#include "tools/progress.h"

#define WIDTH 8192u  /* of the model: weights are WIDTH x WIDTH, 128 MiB of bf16 */
#define WEIGHTS 4u   /* different ones: more than any cache holds */
#define TOKENS 8192u /* of a prefill step */
#define BATCH 16u    /* sequences of a decode step */
#define PRODUCTS 60u /* of a decode step */
#define AHEAD 4u     /* steps queued */
#define EVENTS (AHEAD + 2u)
#define STEPS_MAX 1000000u
#define WARM_NS 300000000u

/* cuBLAS: its enums are ints, its handle a pointer. */
#define CUBLAS_BF16 14	    /* CUDA_R_16BF */
#define CUBLAS_FP32 68	    /* CUBLAS_COMPUTE_32F */
#define CUBLAS_DEFAULT (-1) /* CUBLAS_GEMM_DEFAULT */

typedef struct cublasContext *cublas_handle;
typedef int (*cublas_create_fn)(cublas_handle *handle);
typedef int (*cublas_destroy_fn)(cublas_handle handle);
typedef int (*cublas_stream_fn)(cublas_handle handle, cuda_stream stream);
typedef int (*cublas_gemm_fn)(cublas_handle handle, int transa, int transb, int m, int n, int k,
			      const void *alpha, const void *a, int atype, int lda, const void *b,
			      int btype, int ldb, const void *beta, void *c, int ctype, int ldc,
			      int compute, int algorithm);

struct engine_loops {
	bool gpu;
	char text[64];
	struct samples steps;
	struct cuda_driver c;
	cublas_destroy_fn destroy;
	cublas_gemm_fn gemm;
	cublas_handle blas;
	cuda_stream stream;
	cuda_event events[EVENTS];
	uint64_t weights[WEIGHTS], in, out;
};

/* ---- on the CPU ---- */

static void cpu_step(enum engine_loop loop)
{
	const unsigned turns = loop == ENGINE_PREFILL ? 400000u : 100000u;
	volatile uint32_t x = 1;

	for (unsigned i = 0; i < turns; i++)
		x = x * 1664525u + 1013904223u;
}

static void cpu_run(struct engine_loops *l, enum engine_loop loop, uint64_t until_ns)
{
	uint64_t now_ns = progress_now_ns();

	do {
		uint64_t begin_ns = now_ns;

		cpu_step(loop);
		now_ns = progress_now_ns();
		samples_add(&l->steps, now_ns - begin_ns);
	} while (now_ns < until_ns);
}

/* ---- on the GPU ---- */

static int blas_open(struct engine_loops *l, const struct report *r)
{
	const char *const names[] = {
		getenv("SKVC_CUBLAS"),
		"libcublas.so.13",
		"libcublas.so.12",
		"/usr/local/cuda/lib64/libcublas.so.13",
		"/usr/local/cuda/lib64/libcublas.so",
	};
	cublas_create_fn create;
	cublas_stream_fn set_stream;
	void *library = NULL;
	int status;

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]) && !library; i++)
		if (names[i] && names[i][0])
			library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
	if (!library)
		return report_fail(r, -ENODEV, "no cuBLAS (%s); SKVC_CUBLAS= names one", dlerror());
	*(void **)&create = dlsym(library, "cublasCreate_v2");
	*(void **)&set_stream = dlsym(library, "cublasSetStream_v2");
	*(void **)&l->destroy = dlsym(library, "cublasDestroy_v2");
	*(void **)&l->gemm = dlsym(library, "cublasGemmEx");
	if (!create || !set_stream || !l->destroy || !l->gemm)
		return report_fail(r, -ENODEV, "this cuBLAS has no cublasGemmEx");
	status = create(&l->blas);
	if (status != 0) {
		l->blas = NULL;
		return report_fail(r, -EIO, "cublasCreate: %d", status);
	}
	status = set_stream(l->blas, l->stream);
	return status != 0 ? report_fail(r, -EIO, "cublasSetStream: %d", status) : 0;
}

/* Small numbers of both signs: zeros would cost no power, and so no clock. */
static void fill_random(uint16_t *out, size_t count)
{
	uint64_t x = 88172645463325252u;

	for (size_t i = 0; i < count; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		out[i] = (uint16_t)((x & 0x8000u) | 0x3c00u | (x >> 20 & 0xffu));
	}
}

static int gpu_memory(struct engine_loops *l, const struct report *r)
{
	const size_t bytes = (size_t)WIDTH * WIDTH * 2u;
	uint16_t *host = malloc(bytes);
	int rc = host ? 0 : report_fail(r, -ENOMEM, "out of memory");

	if (host)
		fill_random(host, bytes / 2u);
	for (unsigned i = 0; i < WEIGHTS + 2u && rc == 0; i++) {
		uint64_t *at = i < WEIGHTS ? &l->weights[i] : i == WEIGHTS ? &l->in : &l->out;

		rc = cuda_check(&l->c, l->c.memory_alloc(at, bytes), "cuMemAlloc", r);
		if (rc == 0)
			rc = cuda_check(&l->c, l->c.copy_to_device(*at, host, bytes, l->stream),
					"cuMemcpyHtoD", r);
		if (rc == 0)
			rc = cuda_check(&l->c, l->c.stream_sync(l->stream), "cuStreamSynchronize",
					r);
	}
	free(host);
	return rc;
}

static int gpu_open(struct engine_loops *l, const char *gpu, const struct report *r)
{
	int rc = cuda_driver_open(&l->c, gpu, r);

	if (rc == 0)
		rc = cuda_check(&l->c, l->c.stream_new(&l->stream, CUDA_STREAM_NON_BLOCKING),
				"cuStreamCreate", r);
	for (unsigned i = 0; i < EVENTS && rc == 0; i++)
		rc = cuda_check(&l->c, l->c.event_new(&l->events[i], CUDA_EVENT_DEFAULT),
				"cuEventCreate", r);
	if (rc == 0)
		rc = gpu_memory(l, r);
	if (rc == 0)
		rc = blas_open(l, r);
	if (rc == 0)
		memcpy(l->text, l->c.model, sizeof(l->text));
	return rc;
}

/* Columns of `in`, as many as tokens, through the weights: out = W * in. */
static int product(struct engine_loops *l, unsigned weights, unsigned tokens,
		   const struct report *r)
{
	static const float one = 1, zero;
	int status = l->gemm(l->blas, 0, 0, WIDTH, (int)tokens, WIDTH, &one,
			     (const void *)(uintptr_t)l->weights[weights], CUBLAS_BF16, WIDTH,
			     (const void *)(uintptr_t)l->in, CUBLAS_BF16, WIDTH, &zero,
			     (void *)(uintptr_t)l->out, CUBLAS_BF16, WIDTH, CUBLAS_FP32,
			     CUBLAS_DEFAULT);

	return status != 0 ? report_fail(r, -EIO, "cublasGemmEx: %d", status) : 0;
}

static int gpu_step(struct engine_loops *l, enum engine_loop loop, const struct report *r)
{
	int rc = 0;

	if (loop == ENGINE_PREFILL)
		return product(l, 0, TOKENS, r);
	for (unsigned i = 0; i < PRODUCTS && rc == 0; i++)
		rc = product(l, i % WEIGHTS, BATCH, r);
	return rc;
}

/* The time of the step before event `i`, once it has been reached. */
static int gpu_harvest(struct engine_loops *l, uint64_t i, const struct report *r)
{
	cuda_event to = l->events[i % EVENTS], from = l->events[(i - 1u) % EVENTS];
	float ms = 0;
	int rc = cuda_check(&l->c, l->c.event_sync(to), "cuEventSynchronize", r);

	if (rc == 0)
		rc = cuda_check(&l->c, l->c.event_elapsed(&ms, from, to), "cuEventElapsedTime", r);
	if (rc == 0)
		samples_add(&l->steps, (uint64_t)((double)ms * 1e6));
	return rc;
}

static int gpu_run(struct engine_loops *l, enum engine_loop loop, uint64_t until_ns,
		   const struct report *r)
{
	uint64_t begun = 0, ended = 0;
	int rc = cuda_check(&l->c, l->c.event_record(l->events[0], l->stream), "cuEventRecord", r);

	while (rc == 0 && (progress_now_ns() < until_ns || ended < begun)) {
		if (progress_now_ns() < until_ns && begun - ended < AHEAD) {
			rc = gpu_step(l, loop, r);
			begun++;
			if (rc == 0)
				rc = cuda_check(
					&l->c,
					l->c.event_record(l->events[begun % EVENTS], l->stream),
					"cuEventRecord", r);
		} else if (ended < begun) {
			rc = gpu_harvest(l, ++ended, r);
		}
	}
	return rc;
}

/* ---- both ---- */

int engine_loops_new(const char *gpu, struct engine_loops **ret, const struct report *r)
{
	struct engine_loops *l = calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return report_fail(r, -ENOMEM, "out of memory");
	rc = samples_init(&l->steps, STEPS_MAX);
	if (rc < 0)
		(void)report_fail(r, rc, "out of memory");
	l->gpu = gpu != NULL;
	if (rc == 0 && gpu)
		rc = gpu_open(l, gpu, r);
	else
		(void)snprintf(l->text, sizeof(l->text), "the CPU");
	if (rc < 0) {
		engine_loops_free(l);
		return rc;
	}
	*ret = l;
	return 0;
}

struct engine_loops *engine_loops_free(struct engine_loops *l)
{
	if (!l)
		return NULL;
	if (l->blas)
		(void)l->destroy(l->blas);
	/* The rest goes with the process, which ends now. */
	cuda_driver_close(&l->c);
	samples_deinit(&l->steps);
	free(l);
	return NULL;
}

const char *engine_loops_text(const struct engine_loops *l)
{
	return l->text;
}

static int run_once(struct engine_loops *l, enum engine_loop loop, uint64_t ns,
		    const struct report *r)
{
	const uint64_t until_ns = progress_now_ns() + ns;

	l->steps.count = 0;
	if (l->gpu)
		return gpu_run(l, loop, until_ns, r);
	cpu_run(l, loop, until_ns);
	return 0;
}

int engine_loops_run(struct engine_loops *l, enum engine_loop loop, double seconds,
		     struct engine_steps *ret, const struct report *r)
{
	const uint64_t ns = (uint64_t)(seconds * 1e9);
	double sum = 0;
	int rc = run_once(l, loop, ns < WARM_NS ? ns : WARM_NS, r);

	if (rc == 0)
		rc = run_once(l, loop, ns, r);
	if (rc < 0)
		return rc;
	if (l->steps.count == 0)
		return report_fail(r, -ENODATA, "not one step in %.3f s", seconds);
	for (uint32_t i = 0; i < l->steps.count; i++)
		sum += (double)l->steps.ns[i];
	samples_sort(&l->steps);
	*ret = (struct engine_steps){
		.count = l->steps.count,
		.mean_us = sum * 1e-3 / l->steps.count,
		.p50_us = (double)samples_percentile(&l->steps, 50) * 1e-3,
		.p99_us = (double)samples_percentile(&l->steps, 99) * 1e-3,
	};
	return 0;
}
