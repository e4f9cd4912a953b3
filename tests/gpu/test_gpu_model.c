/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu_model.c - the `model` speculator's pass on a real GPU against the CPU's: every guess of every segment, and
 * its digest, over sequences of several lengths in batches cut anywhere.
 *
 *   test_gpu_model                 tiny models of every kind, every element type, every precision
 *   test_gpu_model --model FOLDER  that model: the same check on --check tokens, then speed over --sequences of
 *                                  --tokens each
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
#include "gpu/codec/cuda_model.h"
#include "gpu/codec/model_internal.h"
#include "tests/lib/rng.h"
#include "tests/lib/tiny_model.h"
#include "tools/model_threads.h"

#define SEQUENCES_MAX 64u
#define THREADS 16u

struct sequence {
	uint32_t count;
	int32_t *ids;
	uint8_t **patterns; /* of each segment */
	int32_t **mu;	    /* the CPU's */
	uint32_t digest;
};

struct rig {
	struct rng rng;
	struct mspec_model *m;
	struct mspec_params *p;
	const struct model_config *c;
	uint32_t segments, kv;
	size_t element;
	struct sequence s[SEQUENCES_MAX];
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

/* ---- parameters ---- */

/* Weights of about 2^log2 at most. */
static void random_matrix(struct rng *rng, struct mspec_matrix *m, int log2)
{
	for (uint32_t o = 0; o < m->outs; o++) {
		rng_fill(rng, m->high + (size_t)o * m->pitch, m->depth);
		if (m->low)
			rng_fill(rng, m->low + (size_t)o * m->pitch, m->depth);
		m->mants[o] = (uint16_t)(0x8000u + rng_below(rng, 0x8000));
		m->exps[o] = (int16_t)(log2 - 31);
	}
}

static void random_layer(struct rig *r, struct mspec_layer *l)
{
	l->k_frac = l->v_frac = 10;
	l->unit_k = l->unit_v = mspec_scale_of(ldexp(1, RESIDUAL_FRAC - MODEL_FRAC));
	l->real_v = mspec_scale_of(ldexp(1, MODEL_FRAC - 8 - l->v_frac));
	l->score =
		mspec_scale_of(ldexp(M_LOG2E / sqrt(r->c->head_dim), MODEL_EXP_BITS - l->k_frac));
	l->eps_input = l->eps_post = (uint64_t)ldexp(r->c->norm_eps, 2 * MSPEC_HIDDEN_FRAC);
	for (uint32_t i = 0; i < r->kv; i++) {
		l->bias_k[i] = (int32_t)rng_below(&r->rng, 1u << 17) - (1 << 16);
		l->bias_v[i] = (int32_t)rng_below(&r->rng, 1u << 17) - (1 << 16);
		l->sigma_k[i] = (int16_t)(30 + rng_below(&r->rng, 30));
		l->sigma_v[i] = (int16_t)(30 + rng_below(&r->rng, 30));
		l->base_k[i] = l->base_v[i] = 60;
	}
	random_matrix(&r->rng, &l->value_map, -5);
	random_matrix(&r->rng, &l->gain_k, -8);
	random_matrix(&r->rng, &l->gain_v, -8);
}

static void random_params(struct rig *r, uint32_t dtype, bool ids, struct mspec_precision precision)
{
	assert_int_equal(mspec_params_new(r->m, dtype, precision, &r->p), 0);
	r->p->ids = ids;
	for (uint32_t i = 0; i < r->c->hidden; i++)
		r->p->start[i] = (int32_t)rng_below(&r->rng, 1u << 16) - (1 << 15);
	for (uint32_t i = 0; i < r->c->layers; i++) {
		r->p->scale_k[i] = r->p->scale_v[i] = 1;
		random_layer(r, &r->p->layers[i]);
	}
}

/* ---- sequences ---- */

/* Values about as large as keys are, and with `wild` now and then any pattern at all. */
static uint32_t random_pattern(struct rig *r, struct residual_type t, bool wild)
{
	const uint64_t x = rng_next(&r->rng);
	uint32_t pattern = (uint32_t)(t.bias - 3) << t.mant_bits;

	if (wild && x >> 58 == 0)
		return (uint32_t)x & ((1u << t.bits) - 1u);
	pattern += (uint32_t)((x & 0xffffffffu) * (4u << t.mant_bits) >> 32);
	return pattern | (uint32_t)(x >> 32 & 1u) << (t.bits - 1u);
}

static void sequence_new(struct rig *r, uint32_t count, bool wild)
{
	struct sequence *s = &r->s[r->sequences_count++];
	const struct residual_type t = residual_type_of(r->p->dtype);

	assert_true(r->sequences_count <= SEQUENCES_MAX);
	*s = (struct sequence){ .count = count };
	s->ids = calloc(count, sizeof(s->ids[0]));
	s->patterns = calloc(r->segments, sizeof(s->patterns[0]));
	assert_true(s->ids && s->patterns);
	for (uint32_t i = 0; i < count; i++)
		s->ids[i] = (int32_t)rng_below(&r->rng, r->c->vocab);
	for (uint32_t i = 0; i < r->segments; i++) {
		s->patterns[i] = malloc((size_t)count * r->kv * r->element);
		assert_non_null(s->patterns[i]);
		for (size_t at = 0; at < (size_t)count * r->kv; at++) {
			const uint32_t x = random_pattern(r, t, wild);

			memcpy(s->patterns[i] + at * r->element, &x, r->element);
		}
	}
}

static void sequences_free(struct rig *r)
{
	for (uint32_t i = 0; i < r->sequences_count; i++) {
		for (uint32_t k = 0; k < r->segments; k++) {
			free(r->s[i].patterns[k]);
			if (r->s[i].mu)
				free(r->s[i].mu[k]);
		}
		free(r->s[i].patterns);
		free((void *)r->s[i].mu);
		free(r->s[i].ids);
	}
	r->sequences_count = 0;
}

/* ---- the CPU's guesses ---- */

static uint32_t digest_of(const int32_t *mu, size_t count, uint32_t segment) /* as model.c */
{
	uint32_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		uint32_t x = (uint32_t)mu[i] + (uint32_t)i * 0x9e3779b9u + segment * 0x85ebca6bu;

		x = (x ^ x >> 16) * 0x7feb352du;
		x = (x ^ x >> 15) * 0x846ca68bu;
		sum += x ^ x >> 16;
	}
	return sum;
}

static void cpu_segment(struct rig *r, struct sequence *s, struct mspec_pass *pass,
			uint32_t segment, int16_t *kept)
{
	const struct residual_type t = residual_type_of(r->p->dtype);
	const size_t scalars = (size_t)s->count * r->kv;
	const bool value = segment % 2u;

	s->mu[segment] = malloc(scalars * sizeof(int32_t));
	assert_non_null(s->mu[segment]);
	memcpy(s->mu[segment], value ? pass->mu_v : pass->mu_k, scalars * sizeof(int32_t));
	s->digest += digest_of(s->mu[segment], scalars, segment);
	mspec_pass_error(pass, t, value, s->patterns[segment]);
	mspec_kv_store(r->c, t, s->patterns[segment], s->count,
		       value ? pass->layer->v_frac : pass->layer->k_frac, kept, s->count, 0);
}

static void cpu_guess(struct rig *r, struct sequence *s)
{
	int16_t *k = malloc((size_t)s->count * r->kv * 2u),
		*v = malloc((size_t)s->count * r->kv * 2u);
	struct mspec_pass pass;

	s->mu = calloc(r->segments, sizeof(s->mu[0]));
	assert_true(k && v && s->mu);
	assert_int_equal(mspec_pass_init(&pass, r->m, &r->runner, s->count), 0);
	pass.precision = r->p->precision;
	pass.coarse_rope = r->p->coarse_rope;
	assert_int_equal(mspec_pass_start(&pass, 0, s->count), 0);
	assert_int_equal(mspec_pass_embed(&pass, r->p->ids ? s->ids : NULL, r->p->start), 0);
	for (uint32_t l = 0; l < r->c->layers; l++) {
		pass.layer = &r->p->layers[l];
		pass.w = &r->m->layers[l];
		pass.k = k;
		pass.v = v;
		pass.capacity = s->count;
		mspec_pass_guess_k(&pass);
		cpu_segment(r, s, &pass, 2u * l, k);
		mspec_pass_guess_v(&pass);
		cpu_segment(r, s, &pass, 2u * l + 1u, v);
		if (l + 1u < r->c->layers) {
			mspec_pass_gain(&pass);
			mspec_pass_finish(&pass);
		}
	}
	mspec_pass_deinit(&pass);
	free(k);
	free(v);
}

/* ---- the GPU's ---- */

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

static void rig_open(struct rig *r, const char *folder, bool low, uint32_t dtype, bool ids,
		     struct mspec_precision precision)
{
	struct model_threads *threads = NULL;
	char err[MODEL_ERR_BYTES] = "";

	*r = (struct rig){ .element = residual_type_of(dtype).bits / 8u };
	rng_init(&r->rng, 99 + dtype);
	assert_int_equal(model_threads_new(THREADS, &threads), 0);
	r->runner =
		(struct mspec_runner){ .run = run_threads, .self = threads, .threads = THREADS };
	if (mspec_model_load(folder, low, &r->m, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	r->c = mspec_model_config(r->m);
	r->segments = 2u * r->c->layers;
	r->kv = mspec_kv_width(r->c);
	random_params(r, dtype, ids, precision);
	good((int)cudaStreamCreate(&r->stream));
	good(cuda_model_new(r->p, r->stream, &r->gpu));
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

static void check_tiny(uint32_t kind, uint32_t dtype, bool ids, struct mspec_precision precision)
{
	struct tiny_model *tiny = tiny_model_new(kind);
	struct rig r;

	rig_open(&r, tiny_model_folder(tiny), true, dtype, ids, precision);
	sequence_new(&r, 1, true);
	sequence_new(&r, 200, true);
	sequence_new(&r, 65, false);
	sequence_new(&r, 131, true);
	for (uint32_t i = 0; i < r.sequences_count; i++)
		cpu_guess(&r, &r.s[i]);
	gpu_check(&r, 1);
	gpu_check(&r, 5);
	rig_close(&r);
	tiny_model_free(tiny);
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

struct options {
	const char *model;
	uint32_t check, sequences, tokens, repeats;
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
		for (uint32_t i = 0; i < r.sequences_count; i++)
			cpu_guess(&r, &r.s[i]);
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
	r.sequences_count = o->sequences ? 1 : 0;
	rig_close(&r);
	return 0;
}

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "model", 1, NULL, 'm' },   { "check", 1, NULL, 'c' },
		{ "tokens", 1, NULL, 't' },  { "sequences", 1, NULL, 's' },
		{ "repeats", 1, NULL, 'r' }, { NULL, 0, NULL, 0 },
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
		else
			return -EINVAL;
	}
	return o->sequences > SEQUENCES_MAX ? -EINVAL : 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tiny),
		cmocka_unit_test(test_precisions),
	};
	struct options o = { .sequences = 8, .tokens = 1024, .repeats = 5 };
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
