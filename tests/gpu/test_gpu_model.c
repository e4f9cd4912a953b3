/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu_model.c - the `model` speculator's pass on a real GPU against the CPU's: every guess of every segment, and
 * its digest, over sequences of several lengths in batches cut anywhere.
 *
 *   test_gpu_model                 tiny models of every kind, every element type, every precision; drafts too
 *   test_gpu_model --model FOLDER  that model: the same check on --check tokens, then speed over --sequences of
 *                                  --tokens each: of the pass, and of coding blocks of each --block (values are
 *                                  made from the guesses and some noise), in up to --lanes batches at a time
 *
 * Parameters are random, not fitted: what is compared does not care.  Exits 77 where there is no GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cuda_runtime_api.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/cuda_model_code.h"
#include "gpu/codec/model_internal.h"
#include "tests/lib/guess_rig.h"
#include "tests/lib/random_params.h"
#include "tests/lib/rng.h"
#include "tests/lib/tiny_model.h"
#include "tools/model_threads.h"

#define SEQUENCES_MAX 64u
#define THREADS 16u

struct rig {
	struct rng rng;
	struct mspec_model *m;
	struct mspec_params *p;
	const struct model_config *c;
	uint32_t segments, kv;
	size_t element;
	struct guess_sequence s[SEQUENCES_MAX];
	uint32_t sequences_count;
	cudaStream_t stream;
	struct cuda_model *gpu;
	struct mspec_runner runner;
};

static void good(int cuda)
{
	if (cuda)
		fail_msg("CUDA: %s", cudaGetErrorString((cudaError_t)cuda));
}

static double now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- sequences ---- */

static void sequence_new(struct rig *r, uint32_t count, bool wild)
{
	assert_true(r->sequences_count < SEQUENCES_MAX);
	guess_sequence_init(&r->s[r->sequences_count++], &r->rng, r->p, count, wild);
}

static void sequences_free(struct rig *r)
{
	while (r->sequences_count)
		guess_sequence_deinit(&r->s[--r->sequences_count], r->p);
}

static void sequences_guess(struct rig *r)
{
	for (uint32_t i = 0; i < r->sequences_count; i++)
		guess_sequence_run(&r->s[i], r->p, &r->runner);
}

/* ---- the GPU's guesses ---- */

/* Rows of all parts of a batch, segment by segment, in device memory. */
struct device_rows {
	uint8_t *patterns;
	size_t segment_bytes;
	int32_t *mu; /* host: of one segment */
};

static void rows_put(struct rig *r, const uint32_t *first, const uint32_t *count, uint32_t rows,
		     struct device_rows *d)
{
	d->segment_bytes = (size_t)rows * r->kv * r->element;
	good((int)cudaMalloc((void **)&d->patterns, d->segment_bytes * r->segments));
	for (uint32_t k = 0; k < r->segments; k++) {
		uint8_t *to = d->patterns + k * d->segment_bytes;

		for (uint32_t i = 0; i < r->sequences_count; i++) {
			const size_t row = r->kv * r->element;

			if (count[i])
				good((int)cudaMemcpy(to, r->s[i].patterns[k] + first[i] * row,
						     count[i] * row, cudaMemcpyHostToDevice));
			to += count[i] * row;
		}
	}
	d->mu = malloc((size_t)rows * r->kv * sizeof(int32_t) + 1u); /* never of 0 bytes */
	assert_non_null(d->mu);
}

static void rows_drop(struct device_rows *d)
{
	good((int)cudaFree(d->patterns));
	free(d->mu);
}

static void compare(struct rig *r, uint32_t segment, const uint32_t *first, const uint32_t *count,
		    const int32_t *mu)
{
	for (uint32_t i = 0; i < r->sequences_count; i++) {
		const size_t scalars = (size_t)count[i] * r->kv;
		const int32_t *expect = r->s[i].mu[segment] + (size_t)first[i] * r->kv;

		for (size_t n = 0; n < scalars; n++)
			if (mu[n] != expect[n])
				fail_msg("segment %u sequence %u token %zu column %zu: %d, not %d",
					 segment, i, first[i] + n / r->kv, n % r->kv, mu[n],
					 expect[n]);
		mu += scalars;
	}
}

static void gpu_block(struct rig *r, struct cuda_model_batch *b,
		      struct cuda_model_context **contexts, const uint32_t *first,
		      const uint32_t *count, uint32_t *digests)
{
	struct cuda_model_part parts[SEQUENCES_MAX] = { 0 };
	uint32_t parts_count = 0, rows = 0, sums[SEQUENCES_MAX] = { 0 }, of[SEQUENCES_MAX] = { 0 };
	struct device_rows d;

	for (uint32_t i = 0; i < r->sequences_count; i++)
		if (count[i]) {
			of[parts_count] = i;
			parts[parts_count++] =
				(struct cuda_model_part){ .context = contexts[i],
							  .ids = r->s[i].ids + first[i],
							  .count = count[i] };
			rows += count[i];
		}
	rows_put(r, first, count, rows, &d);
	good(cuda_model_start(b, parts, parts_count, r->stream));
	for (uint32_t k = 0; k < r->segments; k++) {
		const int32_t *mu = NULL;

		good(cuda_model_guess(b, k, r->stream, &mu));
		good((int)cudaMemcpyAsync(d.mu, mu, (size_t)rows * r->kv * sizeof(int32_t),
					  cudaMemcpyDeviceToHost, r->stream));
		good((int)cudaStreamSynchronize(r->stream));
		compare(r, k, first, count, d.mu);
		good(cuda_model_known(b, k, d.patterns + k * d.segment_bytes, r->stream));
	}
	good(cuda_model_digests(b, r->stream, sums));
	for (uint32_t i = 0; i < parts_count; i++)
		digests[of[i]] += sums[i];
	cuda_model_end(b);
	rows_drop(&d);
}

/* All sequences, in `blocks` batches cut anywhere. */
static void gpu_check(struct rig *r, uint32_t blocks)
{
	struct cuda_model_context *contexts[SEQUENCES_MAX] = { NULL };
	uint32_t first[SEQUENCES_MAX] = { 0 }, count[SEQUENCES_MAX] = { 0 },
		 digests[SEQUENCES_MAX] = { 0 };
	struct cuda_model_batch *b = NULL;
	uint32_t rows = 0, longest = 0;

	for (uint32_t i = 0; i < r->sequences_count; i++) {
		good(cuda_model_context_new(r->gpu, r->s[i].count, r->stream, &contexts[i]));
		rows += r->s[i].count;
		longest = r->s[i].count > longest ? r->s[i].count : longest;
	}
	good(cuda_model_batch_new(r->gpu, rows, r->sequences_count, longest, r->stream, &b));
	for (uint32_t n = 0; n < blocks; n++) {
		uint32_t sum = 0;

		for (uint32_t i = 0; i < r->sequences_count; i++) {
			const uint32_t left = r->s[i].count - first[i];

			count[i] = n + 1u == blocks ? left : rng_below(&r->rng, left + 1u);
			sum += count[i];
		}
		if (sum)
			gpu_block(r, b, contexts, first, count, digests);
		for (uint32_t i = 0; i < r->sequences_count; i++)
			first[i] += count[i];
	}
	for (uint32_t i = 0; i < r->sequences_count; i++) {
		assert_int_equal(digests[i], r->s[i].digest);
		cuda_model_context_free(contexts[i]);
	}
	cuda_model_batch_free(b);
}

/* ---- rigs ---- */

static void run_threads(void *self, uint32_t items, void (*fn)(void *, uint32_t, uint32_t),
			void *context)
{
	model_threads_run(self, items, fn, context);
}

static void rig_load(struct rig *r, const char *folder, bool low, uint64_t seed)
{
	struct model_threads *threads = NULL;
	char err[MODEL_ERR_BYTES] = "";

	*r = (struct rig){ .m = NULL };
	rng_init(&r->rng, seed);
	assert_int_equal(model_threads_new(THREADS, &threads), 0);
	r->runner =
		(struct mspec_runner){ .run = run_threads, .self = threads, .threads = THREADS };
	if (mspec_model_load(folder, low, &r->m, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	r->c = mspec_model_config(r->m);
}

/* p becomes the rig's. */
static void rig_use(struct rig *r, struct mspec_params *p)
{
	const struct mspec_shape cache = mspec_params_shape(p);

	r->p = p;
	r->element = residual_type_of(p->dtype).bits / 8u;
	r->segments = 2u * cache.layers;
	r->kv = mspec_shape_kv(cache);
	good((int)cudaStreamCreate(&r->stream));
	good(cuda_model_new(r->p, r->stream, &r->gpu));
}

static void rig_open(struct rig *r, const char *folder, bool low, uint32_t dtype, bool ids,
		     struct mspec_precision precision)
{
	rig_load(r, folder, low, 99 + dtype);
	rig_use(r, random_params_new(&r->rng, r->m, dtype, ids, precision));
}

static void rig_close(struct rig *r)
{
	sequences_free(r);
	cuda_model_free(r->gpu);
	mspec_params_free(r->p);
	mspec_model_free(r->m);
	model_threads_free(r->runner.self);
	good((int)cudaStreamDestroy(r->stream));
}

static void check_lengths(struct rig *r)
{
	sequence_new(r, 1, true);
	sequence_new(r, 200, true);
	sequence_new(r, 65, false);
	sequence_new(r, 131, true);
	sequences_guess(r);
	gpu_check(r, 1);
	gpu_check(r, 5);
}

static void check_tiny(uint32_t kind, uint32_t dtype, bool ids, struct mspec_precision precision)
{
	struct tiny_model *tiny = tiny_model_new(kind);
	struct rig r;

	rig_open(&r, tiny_model_folder(tiny), true, dtype, ids, precision);
	check_lengths(&r);
	rig_close(&r);
	tiny_model_free(tiny);
}

/* Half of the sequences' tokens are not coded, only told of. */
static void check_follow(struct rig *r)
{
	const struct guess_sequence *s = &r->s[1];
	struct cuda_model_context *contexts[SEQUENCES_MAX] = { NULL };
	uint32_t first[SEQUENCES_MAX] = { 0 }, count[SEQUENCES_MAX] = { 0 },
		 digests[SEQUENCES_MAX] = { 0 };
	struct cuda_model_batch *b = NULL;

	first[1] = s->count / 2u;
	count[1] = s->count - first[1];
	good(cuda_model_context_new(r->gpu, s->count, r->stream, &contexts[1]));
	good(cuda_model_batch_new(r->gpu, s->count, 1, s->count, r->stream, &b));
	assert_int_equal(cuda_model_append(b, contexts[1], first[1], NULL, NULL, r->stream),
			 cudaErrorNotSupported);
	good(cuda_model_follow(b, contexts[1], s->ids, first[1], r->stream));
	gpu_block(r, b, contexts, first, count, digests);
	assert_int_equal(cuda_model_context_count(contexts[1]), s->count);
	cuda_model_batch_free(b);
	cuda_model_context_free(contexts[1]);
}

static void check_draft(uint32_t kind, uint32_t dtype, struct mspec_shape cache, uint32_t previous,
			bool coarse, struct mspec_precision precision)
{
	struct tiny_model *tiny = tiny_model_new(kind);
	struct rig r;
	struct mspec_params *p;

	rig_load(&r, tiny_model_folder(tiny), true, 7 + dtype);
	p = random_params_new_draft(&r.rng, r.m, cache, previous, dtype, precision);
	p->coarse_rope = coarse;
	rig_use(&r, p);
	check_lengths(&r);
	check_follow(&r);
	rig_close(&r);
	tiny_model_free(tiny);
}

static void test_drafts(void **state)
{
	static const struct mspec_shape caches[] = { { 3, 2, 64 }, { 5, 1, 32 }, { 2, 3, 128 } };
	struct mspec_precision all;

	(void)state;
	memset(all.wide, 3, sizeof(all.wide));
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++)
		for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++)
			check_draft(kind, dtype, caches[(kind + dtype) % 3u], dtype % 4u, kind == 1,
				    kind == 2 ? all : mspec_precision_default());
}

static void test_tiny(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind < TINY_KINDS; kind++)
		for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++)
			check_tiny(kind, dtype, dtype % 2u, mspec_precision_default());
}

static void test_precisions(void **state)
{
	(void)state;
	for (uint32_t wide = 0; wide < 4; wide++) {
		struct mspec_precision p;

		memset(p.wide, (int)wide, sizeof(p.wide));
		check_tiny(wide % TINY_KINDS, CODEC_DTYPE_BF16, true, p);
	}
}

/* ---- speed ---- */

static double pass_seconds(struct rig *r, struct cuda_model_batch *b,
			   const struct cuda_model_part *parts, const struct device_rows *d)
{
	const double begin = now();

	good(cuda_model_start(b, parts, r->sequences_count, r->stream));
	for (uint32_t k = 0; k < r->segments; k++) {
		const int32_t *mu;

		good(cuda_model_guess(b, k, r->stream, &mu));
		good(cuda_model_known(b, k, d->patterns + k * d->segment_bytes, r->stream));
	}
	good((int)cudaStreamSynchronize(r->stream));
	return now() - begin;
}

static void bench(struct rig *r, uint32_t repeats)
{
	struct cuda_model_part parts[SEQUENCES_MAX] = { 0 };
	uint32_t first[SEQUENCES_MAX] = { 0 }, count[SEQUENCES_MAX] = { 0 }, rows = 0;
	struct cuda_model_batch *b = NULL;
	struct device_rows d;
	double best = 1e9, worst = 0;

	for (uint32_t i = 0; i < r->sequences_count; i++) {
		struct cuda_model_context *c = NULL;

		good(cuda_model_context_new(r->gpu, r->s[i].count, r->stream, &c));
		count[i] = r->s[i].count;
		parts[i] = (struct cuda_model_part){ .context = c,
						     .ids = r->s[i].ids,
						     .count = count[i] };
		rows += count[i];
	}
	good(cuda_model_batch_new(r->gpu, rows, r->sequences_count, count[0], r->stream, &b));
	rows_put(r, first, count, rows, &d);
	for (uint32_t n = 0; n < repeats + 1u; n++) {
		const double t = pass_seconds(r, b, parts, &d);

		if (n == 0)
			continue; /* warm */
		best = t < best ? t : best;
		worst = t > worst ? t : worst;
	}
	if (repeats)
		(void)printf(
			"gpu pass: %u sequences of %u tokens, %u layers: %.3f ms (worst %.3f), %.0f tokens/s, "
			"%.0f token layers/s, %.2f GB/s of raw KV\n",
			r->sequences_count, count[0], r->c->layers, 1e3 * best, 1e3 * worst,
			rows / best, rows / best * r->c->layers,
			1e-9 * (double)d.segment_bytes * r->segments / best);
	for (uint32_t i = 0; i < r->sequences_count; i++)
		cuda_model_context_free(parts[i].context);
	cuda_model_batch_free(b);
	rows_drop(&d);
}

/* ---- speed of coding ---- */

/* A segment of the first sequence: guesses, a step of noise away; and what its columns' scales are then. */
static void make_segment(struct rig *r, uint32_t segment, const int32_t *mu)
{
	struct mspec_layer *l = &r->p->layers[segment / 2u];
	int16_t *base = segment % 2u ? l->base_v : l->base_k;
	const size_t scalars = (size_t)r->s[0].count * r->kv;
	double squares = 0, sigma;
	int32_t scale;

	for (size_t i = 0; i < scalars; i++)
		squares += (double)mu[i] * mu[i];
	sigma = sqrt(squares / (double)scalars) / 64 + 64;
	scale = (int32_t)lround(4 * log2(sigma));
	scale = scale > MSPEC_BASE_MAX ? MSPEC_BASE_MAX : scale;
	for (uint32_t c = 0; c < r->kv; c++)
		base[c] = (int16_t)scale;
	for (size_t i = 0; i < scalars; i++) {
		double noise = -6;
		uint32_t bits;
		float x;

		for (uint32_t k = 0; k < 12; k++)
			noise += rng_below(&r->rng, 1u << 20) / 1048576.0;
		x = (float)ldexp(mu[i] + sigma * noise, -RESIDUAL_FRAC);
		memcpy(&bits, &x, sizeof(bits));
		bits = (bits + 0x8000u) >> 16;
		memcpy(r->s[0].patterns[segment] + 2u * i, &bits, 2);
	}
}

/* The first sequence's values by way of the pass, and tables that suit them. */
/* As model_profile.c says. */
static uint32_t streams_of(const struct rig *r, uint32_t block)
{
	return residual_streams((uint64_t)r->segments * r->kv * block, r->kv,
				RESIDUAL_STREAM_SCALARS, RESIDUAL_TAU_GROUPS);
}

static void make_values(struct rig *r, uint32_t block, uint32_t streams)
{
	struct residual_counts *counts = calloc(2, sizeof(*counts));
	const size_t scalars = (size_t)r->s[0].count * r->kv;
	int32_t *mu = malloc(scalars * sizeof(*mu));
	struct cuda_model_part part = { .ids = r->s[0].ids, .count = r->s[0].count };
	struct cuda_model_batch *b = NULL;
	uint8_t *dev = NULL;

	assert_true(counts && mu);
	good(cuda_model_context_new(r->gpu, part.count, r->stream, &part.context));
	good(cuda_model_batch_new(r->gpu, part.count, 1, part.count, r->stream, &b));
	good((int)cudaMalloc((void **)&dev, scalars * r->element));
	good(cuda_model_start(b, &part, 1, r->stream));
	for (uint32_t k = 0; k < r->segments; k++) {
		const struct mspec_layer *l = &r->p->layers[k / 2u];
		const int32_t *dev_mu = NULL;

		good(cuda_model_guess(b, k, r->stream, &dev_mu));
		good((int)cudaStreamSynchronize(r->stream));
		good((int)cudaMemcpy(mu, dev_mu, scalars * sizeof(*mu), cudaMemcpyDeviceToHost));
		make_segment(r, k, mu);
		good((int)cudaMemcpy(dev, r->s[0].patterns[k], scalars * r->element,
				     cudaMemcpyHostToDevice));
		good(cuda_model_known(b, k, dev, r->stream));
		const struct residual_segment s = { .tokens_count = block,
						    .columns = r->kv,
						    .type = residual_type_of(r->p->dtype),
						    .base = k % 2u ? l->base_v : l->base_k,
						    .mu = mu };

		residual_count(&counts[k % 2u], &s, r->s[0].patterns[k], streams);
	}
	good((int)cudaStreamSynchronize(r->stream));
	for (uint32_t i = 0; i < 2; i++) {
		residual_freqs_fit(&counts[i], &r->p->freqs[i]);
		assert_int_equal(residual_tables_build(&r->p->freqs[i], &r->p->tables[i]), 0);
	}
	good((int)cudaFree(dev));
	cuda_model_batch_free(b);
	cuda_model_context_free(part.context);
	free(counts);
	free(mu);
}

#define LANES_MAX 4u

struct code_bench { /* a share of the sequences, with a stream of its own */
	cudaStream_t stream;
	struct cuda_model_coder *coder;
	struct cuda_model_part parts[SEQUENCES_MAX];
	struct cuda_model_block *blocks;
	struct cuda_model_result *results;
	uint8_t *pages, *payloads; /* device */
	uint64_t block_bytes;	   /* raw */
	uint32_t sequences, blocks_count, of_each;
};

static void code_bench_pages(struct rig *r, struct code_bench *b)
{
	const uint64_t segment = b->block_bytes / r->segments;

	good((int)cudaMalloc((void **)&b->pages, b->blocks_count * b->block_bytes));
	good((int)cudaMalloc((void **)&b->payloads, b->blocks_count * b->block_bytes));
	for (uint32_t i = 0; i < b->blocks_count; i++) {
		uint8_t *page = b->pages + i * b->block_bytes;

		b->blocks[i] =
			(struct cuda_model_block){ .base = (uint64_t)b->pages,
						   .index = i,
						   .payload = b->payloads + i * b->block_bytes };
		for (uint32_t k = 0; k < r->segments; k++)
			good((int)cudaMemcpy(page + k * segment,
					     r->s[0].patterns[k] + i % b->of_each * segment,
					     segment, cudaMemcpyHostToDevice));
	}
}

static void code_bench_open(struct rig *r, struct code_bench *b, uint32_t sequences, uint32_t block)
{
	const uint32_t streams = streams_of(r, block);
	const uint64_t segment = (uint64_t)block * r->kv * r->element;
	struct cuda_model_place *places = calloc(r->segments, sizeof(*places));
	struct cuda_model_shape s = { .block_tokens = block,
				      .streams_count = streams,
				      .parts_max = sequences,
				      .positions_max = r->s[0].count,
				      .encodes = 1,
				      .places = places };

	*b = (struct code_bench){ .block_bytes = r->segments * segment,
				  .sequences = sequences,
				  .of_each = r->s[0].count / block };
	b->blocks_count = s.blocks_max = sequences * b->of_each;
	b->blocks = calloc(b->blocks_count, sizeof(b->blocks[0]));
	b->results = calloc(b->blocks_count, sizeof(b->results[0]));
	assert_true(places && b->blocks && b->results);
	for (uint32_t i = 0; i < r->segments; i++)
		places[i] = (struct cuda_model_place){ .off = i * segment,
						       .block_stride = b->block_bytes,
						       .token_stride = r->kv * r->element,
						       .head_stride = r->c->head_dim * r->element };
	good((int)cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
	good(cuda_model_coder_new(r->gpu, &s, b->stream, &b->coder));
	code_bench_pages(r, b);
	for (uint32_t i = 0; i < sequences; i++) {
		b->parts[i] = (struct cuda_model_part){ .ids = r->s[0].ids,
							.count = b->of_each * block };
		good(cuda_model_context_new(r->gpu, b->parts[i].count, b->stream,
					    &b->parts[i].context));
	}
	free(places);
}

static void code_bench_close(struct code_bench *b)
{
	for (uint32_t i = 0; i < b->sequences; i++)
		cuda_model_context_free(b->parts[i].context);
	good((int)cudaFree(b->pages));
	good((int)cudaFree(b->payloads));
	cuda_model_coder_free(b->coder);
	good((int)cudaStreamDestroy(b->stream));
	free(b->blocks);
	free(b->results);
}

static double code_seconds(struct code_bench *b, uint32_t lanes, bool encode)
{
	double begin;

	for (uint32_t l = 0; l < lanes; l++) {
		for (uint32_t i = 0; i < b[l].sequences; i++)
			cuda_model_context_reset(b[l].parts[i].context);
		for (uint32_t i = 0; i < b[l].blocks_count; i++)
			b[l].blocks[i].payload_bytes = encode ? (uint32_t)b[l].block_bytes
							      : b[l].results[i].payload_bytes;
	}
	good((int)cudaDeviceSynchronize());
	begin = now();
	for (uint32_t l = 0; l < lanes; l++)
		good((encode ? cuda_model_encode : cuda_model_decode)(
			b[l].coder, b[l].parts, b[l].sequences, b[l].blocks, b[l].stream));
	for (uint32_t l = 0; l < lanes; l++)
		good(cuda_model_coded(b[l].coder, b[l].stream, b[l].results));
	begin = now() - begin;
	for (uint32_t l = 0; l < lanes; l++)
		for (uint32_t i = 0; i < b[l].blocks_count; i++)
			assert_int_equal(b[l].results[i].res, 0);
	return begin;
}

/* The last block's pages are what was coded. */
static void code_check(struct rig *r, const struct code_bench *b)
{
	const uint64_t segment = b->block_bytes / r->segments;
	uint8_t *got = malloc(b->block_bytes);

	assert_non_null(got);
	good((int)cudaMemcpy(got, b->pages + (b->blocks_count - 1u) * b->block_bytes,
			     b->block_bytes, cudaMemcpyDeviceToHost));
	for (uint32_t k = 0; k < r->segments; k++)
		assert_memory_equal(got + k * segment,
				    r->s[0].patterns[k] + (b->of_each - 1u) * segment, segment);
	free(got);
}

static void code_bench(struct rig *r, uint32_t block, uint32_t lanes, uint32_t repeats)
{
	struct code_bench b[LANES_MAX];
	double best[2] = { 1e9, 1e9 }, bytes = 0, raw = 0, tokens = 0;

	for (uint32_t l = 0; l < lanes; l++)
		code_bench_open(r, &b[l], r->sequences_count / lanes, block);
	for (uint32_t way = 0; way < 2; way++) { /* encode, decode */
		for (uint32_t l = 0; way == 1 && l < lanes; l++)
			good((int)cudaMemset(b[l].pages, 0x5a,
					     b[l].blocks_count * b[l].block_bytes));
		for (uint32_t n = 0; n <= repeats; n++) {
			const double t = code_seconds(b, lanes, way == 0);

			if (n > 0) /* the first is to warm up */
				best[way] = t < best[way] ? t : best[way];
		}
	}
	for (uint32_t l = 0; l < lanes; l++) {
		code_check(r, &b[l]);
		raw += (double)(b[l].blocks_count * b[l].block_bytes);
		tokens += b[l].blocks_count * block;
		for (uint32_t i = 0; i < b[l].blocks_count; i++)
			bytes += b[l].results[i].payload_bytes;
		code_bench_close(&b[l]);
	}
	for (uint32_t i = 0; repeats && i < 2; i++)
		(void)printf("gpu %s: blocks of %u tokens, %u at a time: %.3f ms, %.0f tokens/s, "
			     "%.2f GB/s of raw KV, ratio %.2f\n",
			     i ? "decode" : "encode", block, lanes, 1e3 * best[i], tokens / best[i],
			     1e-9 * raw / best[i], raw / bytes);
}

static void code_benches(struct rig *r, uint32_t block, uint32_t lanes, uint32_t repeats)
{
	make_values(r, block, streams_of(r, block));
	for (uint32_t l = 1; l <= lanes; l *= 2u)
		code_bench(r, block, l, repeats);
}

struct options {
	const char *model;
	uint32_t check, sequences, tokens, repeats;
	uint32_t block[4], blocks; /* tokens */
	uint32_t lanes;		   /* batches at a time, at most */
};

static int model_main(const struct options *o)
{
	const double begin = now();
	struct rig r;

	rig_open(&r, o->model, false, CODEC_DTYPE_BF16, true, mspec_precision_default());
	(void)printf("%s: loaded in %.1f s, %zu bytes on the GPU\n", o->model, now() - begin,
		     cuda_model_bytes(r.gpu));
	if (o->check) {
		sequence_new(&r, o->check, false);
		sequence_new(&r, o->check / 3u + 1u, false);
		sequences_guess(&r);
		gpu_check(&r, 1);
		gpu_check(&r, 3);
		(void)printf("mu and digests of %u tokens equal the CPU's\n",
			     o->check + o->check / 3u + 1u);
		sequences_free(&r);
	}
	for (uint32_t i = 0; i < o->sequences; i++) {
		if (i == 0) {
			sequence_new(&r, o->tokens, false);
			continue;
		}
		r.s[i] = r.s[0]; /* the GPU does not know */
		r.sequences_count++;
	}
	if (o->sequences)
		bench(&r, o->repeats);
	for (uint32_t i = 0; o->sequences && i < o->blocks; i++)
		code_benches(&r, o->block[i], o->lanes, o->repeats);
	r.sequences_count = o->sequences ? 1 : 0;
	rig_close(&r);
	return 0;
}

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "model", 1, NULL, 'm' },   { "check", 1, NULL, 'c' },
		{ "tokens", 1, NULL, 't' },  { "sequences", 1, NULL, 's' },
		{ "repeats", 1, NULL, 'r' }, { "block", 1, NULL, 'b' },
		{ "lanes", 1, NULL, 'l' },   { NULL, 0, NULL, 0 },
	};
	int opt;

	while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		const uint32_t n = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;

		if (opt == 'm')
			o->model = optarg;
		else if (opt == 'c')
			o->check = n;
		else if (opt == 't')
			o->tokens = n;
		else if (opt == 's')
			o->sequences = n;
		else if (opt == 'r')
			o->repeats = n;
		else if (opt == 'b' && n > 0 && o->blocks < 4u)
			o->block[o->blocks++] = n;
		else if (opt == 'l' && n > 0 && n <= LANES_MAX)
			o->lanes = n;
		else
			return -EINVAL;
	}
	for (uint32_t i = 0; i < o->blocks; i++)
		if (o->block[i] > o->tokens)
			return -EINVAL;
	return o->sequences > SEQUENCES_MAX || (o->sequences && o->sequences < o->lanes) ? -EINVAL
											 : 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tiny),
		cmocka_unit_test(test_precisions),
		cmocka_unit_test(test_drafts),
	};
	struct options o = { .sequences = 8, .tokens = 1024, .repeats = 5, .lanes = 1 };
	int devices = 0;

	if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
	    getenv("SKVC_TEST_DEVICE")) {
		(void)printf("no GPU\n");
		return 77;
	}
	if (parse(argc, argv, &o) < 0)
		return 2;
	return o.model ? model_main(&o) : cmocka_run_group_tests(tests, NULL, NULL);
}
