/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_product [ROWS OUTPUTS K] - integer matrix products, multiplications per second of one core, for
 * each instruction set.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/product.h"
#include "tests/lib/rng.h"

#define ENOUGH_S 0.5

static double now_s(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *filled(struct rng *rng, size_t bytes)
{
	uint8_t *p = malloc(bytes);

	if (!p)
		exit(1);
	for (size_t i = 0; i < bytes; i++)
		p[i] = (uint8_t)rng_next(rng);
	return p;
}

int main(int argc, char **argv)
{
	static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
	uint32_t rows = argc > 3 ? (uint32_t)atoi(argv[1]) : 16;
	uint32_t outputs = argc > 3 ? (uint32_t)atoi(argv[2]) : 1024;
	uint32_t k = argc > 3 ? (uint32_t)atoi(argv[3]) : 2048;
	double terms = (double)rows * outputs * k;
	struct rng rng;

	rng_init(&rng, 1);
	for (size_t i = 0; i < sizeof(isas) / sizeof(isas[0]); i++) {
		int8_t *a = filled(&rng, (size_t)rows * k), *w = filled(&rng, (size_t)outputs * k);
		int32_t *out = filled(&rng, 4u * (size_t)rows * outputs);

		if (codec_isa_set(isas[i]) == 0) {
			double start = now_s(), took;
			uint32_t n = 0;

			do {
				product_i8(a, k, w, rows, outputs, k, out);
				n++;
				took = now_s() - start;
			} while (took < ENOUGH_S);
			printf("%-13s %u x %u x %u: %8.1f G terms/s\n", isas[i], rows, outputs, k,
			       terms * n / took * 1e-9);
		}
		free(a);
		free(w);
		free(out);
	}
	return 0;
}
