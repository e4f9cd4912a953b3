/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_residual [TOKENS COLUMNS SEGMENTS] - the residual coder on one core: GB/s of raw bf16 for each
 * instruction set, for good and bad guesses.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/residual_code.h"
#include "tests/lib/rng.h"

#define ENOUGH_S 0.5

struct rig {
	struct rng rng;
	struct residual_encoder *e;
	struct residual_decoder *d;
	struct residual_tables tables;
	struct residual_segment *s;
	uint8_t **in, *back, *coded;
	size_t segment_bytes, coded_cap, coded_bytes;
	uint32_t segments, streams;
};

static double now_s(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void must(int ok)
{
	if (!ok) {
		fprintf(stderr, "bench_residual: failed\n");
		exit(1);
	}
}

static double gauss(struct rng *rng)
{
	double u = (rng_below(rng, 1u << 30) + 1.0) / (1u << 30);
	double v = rng_below(rng, 1u << 30) * 6.283185307179586 / (1u << 30);

	return sqrt(-2 * log(u)) * cos(v);
}

/* Values around zero of size one, guessed with this error. */
static void fill(struct rig *r, uint32_t segment, double sigma)
{
	struct residual_segment *s = &r->s[segment];
	size_t n = (size_t)s->tokens_count * s->columns;
	int16_t *base = malloc(s->columns * sizeof(*base));
	int32_t *mu = malloc(n * sizeof(*mu));

	r->in[segment] = malloc(r->segment_bytes);
	must(base && mu && r->in[segment]);
	for (uint32_t c = 0; c < s->columns; c++)
		base[c] = (int16_t)lround(4 * log2(sigma * (1 << RESIDUAL_FRAC)));
	for (size_t i = 0; i < n; i++) {
		double m = gauss(&r->rng);
		float x = (float)(m + sigma * gauss(&r->rng));
		uint32_t u;

		mu[i] = (int32_t)lround(m * (1 << RESIDUAL_FRAC));
		memcpy(&u, &x, 4);
		u = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
		memcpy(r->in[segment] + 2u * i, &u, 2);
	}
	s->base = base;
	s->mu = mu;
}

static void fit(struct rig *r)
{
	struct residual_counts *c = calloc(1, sizeof(*c));
	struct residual_freqs f;

	must(c != NULL);
	for (uint32_t i = 0; i < r->segments; i++)
		residual_count(c, &r->s[i], r->in[i], r->streams);
	residual_freqs_fit(c, &f);
	free(c);
	must(residual_tables_build(&f, &r->tables) == 0);
}

static void encode(struct rig *r)
{
	uint64_t escapes = 0;

	residual_encoder_start(r->e, r->streams);
	for (uint32_t i = 0; i < r->segments; i++)
		must(residual_encode(r->e, &r->s[i], r->in[i], &escapes, NULL) == 0);
	must(residual_encoder_finish(r->e, r->coded, r->coded_cap, &r->coded_bytes) == 0);
}

static void decode(struct rig *r)
{
	must(residual_decoder_start(r->d, r->streams, r->coded, r->coded_bytes) == 0);
	for (uint32_t i = 0; i < r->segments; i++)
		must(residual_decode(r->d, &r->s[i], r->back) == 0);
	must(residual_decoder_finish(r->d) == 0);
}

/* Of the best pass: other processes take from the others. */
static double rate(struct rig *r, void (*f)(struct rig *))
{
	double begin = now_s(), best = 1e9, took, now = begin;

	do {
		f(r);
		took = now_s() - now;
		now += took;
		if (took < best)
			best = took;
	} while (now - begin < ENOUGH_S);
	return (double)r->segment_bytes * r->segments / best * 1e-9;
}

static void measure(struct rig *r, double sigma)
{
	static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };

	for (uint32_t i = 0; i < r->segments; i++)
		fill(r, i, sigma);
	fit(r);
	for (size_t i = 0; i < sizeof(isas) / sizeof(isas[0]); i++) {
		double enc, dec;

		if (codec_isa_set(isas[i]) < 0)
			continue;
		enc = rate(r, encode);
		dec = rate(r, decode);
		must(memcmp(r->back, r->in[r->segments - 1u], r->segment_bytes) == 0);
		printf("sigma %-8g %-13s %6.3f bits, encode %6.3f GB/s, decode %6.3f GB/s, coded %016llx\n",
		       sigma, isas[i],
		       (double)r->coded_bytes * 16 / ((double)r->segment_bytes * r->segments), enc,
		       dec, (unsigned long long)XXH3_64bits(r->coded, r->coded_bytes));
	}
	for (uint32_t i = 0; i < r->segments; i++) {
		free((void *)r->s[i].base);
		free((void *)r->s[i].mu);
		free(r->in[i]);
	}
}

int main(int argc, char **argv)
{
	struct rig *r = calloc(1, sizeof(*r));
	uint32_t tokens = argc > 3 ? (uint32_t)atoi(argv[1]) : 16;
	uint32_t columns = argc > 3 ? (uint32_t)atoi(argv[2]) : 1024;

	must(r != NULL);
	r->segments = argc > 3 ? (uint32_t)atoi(argv[3]) : 32;
	r->segment_bytes = 2u * (size_t)tokens * columns;
	r->coded_cap = 2u * r->segments * r->segment_bytes + 65536u;
	r->streams = residual_streams((uint64_t)r->segments * tokens * columns, columns,
				      RESIDUAL_STREAM_SCALARS, RESIDUAL_TAU_GROUPS);
	r->s = calloc(r->segments, sizeof(*r->s));
	r->in = calloc(r->segments, sizeof(*r->in));
	r->back = malloc(r->segment_bytes);
	r->coded = malloc(r->coded_cap);
	must(r->s && r->in && r->back && r->coded);
	must(residual_encoder_new(&r->e) == 0 && residual_decoder_new(&r->d) == 0);
	rng_init(&r->rng, 1);
	for (uint32_t i = 0; i < r->segments; i++)
		r->s[i] = (struct residual_segment){ .tokens_count = tokens,
						     .columns = columns,
						     .type = residual_type_of(CODEC_DTYPE_BF16),
						     .tables = &r->tables };
	printf("%u segments of %u tokens x %u columns, %u streams\n", r->segments, tokens, columns,
	       r->streams);
	measure(r, 0.25);
	measure(r, 1.0 / 64);
	residual_encoder_free(r->e);
	residual_decoder_free(r->d);
	free(r->s);
	free(r->in);
	free(r->back);
	free(r->coded);
	free(r);
	return 0;
}
