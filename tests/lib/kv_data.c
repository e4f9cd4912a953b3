/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_data.c - made-up KV blocks, fast enough that making them is not what a test measures.
 */
#include "tests/lib/kv_data.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/rng.h"

#define QUANTILE_BITS 10u
#define QUANTILES (1u << QUANTILE_BITS)

/* The middle of each of 1024 equally likely slices of the normal distribution. */
static float quantile[QUANTILES];

static void quantiles_init(void)
{
	/* Bisection over erf: slow and exact enough, once per process. */
	if (quantile[0] != 0)
		return;
	for (unsigned i = 0; i < QUANTILES; i++) {
		double p = (i + 0.5) / QUANTILES, low = -5, high = 5;

		for (unsigned step = 0; step < 40; step++) {
			double mid = (low + high) / 2;

			if (0.5 * (1 + erf(mid / sqrt(2))) < p)
				low = mid;
			else
				high = mid;
		}
		quantile[i] = (float)low;
	}
}

int kv_data_init(struct kv_data *d, uint64_t seed, uint32_t layers, uint16_t heads,
		 uint16_t head_dim, uint32_t block_tokens, enum skvc_dtype dtype)
{
	uint32_t row = (uint32_t)heads * head_dim;
	struct rng r;

	memset(d, 0, sizeof(*d));
	quantiles_init();
	d->seed = seed;
	d->block_tokens = block_tokens;
	d->segments_count = 2 * layers;
	d->channels_count = d->segments_count * row;
	d->block_bytes = (size_t)d->channels_count * block_tokens *
			 (dtype == SKVC_DTYPE_BF16 || dtype == SKVC_DTYPE_FP16 ? 2 : 1);
	d->segments = calloc(d->segments_count, sizeof(*d->segments));
	d->mean = calloc(d->channels_count, sizeof(*d->mean));
	d->spread = calloc(d->channels_count, sizeof(*d->spread));
	if (!d->segments || !d->mean || !d->spread) {
		kv_data_deinit(d);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < d->segments_count; i++)
		d->segments[i] = (struct skvc_segment){
			.kind = i % 2 ? SKVC_KIND_V : SKVC_KIND_K,
			.dtype = (uint8_t)dtype,
			.layer = (uint16_t)(i / 2),
			.heads = heads,
			.head_dim = head_dim,
		};
	rng_init(&r, seed);
	for (uint32_t c = 0; c < d->channels_count; c++) {
		/* Keys have channels far from zero, values hardly any. */
		float far = c / row % 2 ? 0.1f : 2.0f;

		d->mean[c] = far * quantile[rng_below(&r, QUANTILES)];
		d->spread[c] = 0.1f + 0.4f * (float)rng_below(&r, 1000) / 1000;
	}
	return 0;
}

void kv_data_deinit(struct kv_data *d)
{
	free(d->segments);
	free(d->mean);
	free(d->spread);
	memset(d, 0, sizeof(*d));
}

struct skvc_geometry kv_data_geometry(const struct kv_data *d, const char *model)
{
	return (struct skvc_geometry){
		.model = model,
		.block_tokens = d->block_tokens,
		.segments_count = d->segments_count,
		.segments = d->segments,
	};
}

static uint16_t bf16_of(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

/* One byte with sign, exponent and mantissa where e4m3 has them; not a correct rounding. */
static uint8_t e4m3_of(float f)
{
	uint16_t b = bf16_of(f);
	int exponent = ((b >> 7) & 0xff) - 127 + 7;

	if (exponent < 0)
		return (uint8_t)(b >> 8 & 0x80);
	if (exponent > 14)
		exponent = 14;
	return (uint8_t)((b >> 8 & 0x80) | (unsigned)exponent << 3 | (b >> 4 & 7));
}

/* before, now: of this token in the layer before, and here; NULL when layers do not follow one another. */
static void fill_row(const struct kv_data *d, struct rng *r, const struct skvc_segment *s,
		     uint32_t channel, const float *before, float *now, uint8_t *out)
{
	uint32_t row = (uint32_t)s->heads * s->head_dim;
	uint64_t bits = 0;

	for (uint32_t i = 0; i < row; i++) {
		float f;

		if (i % 6 == 0)
			bits = rng_next(r);
		f = quantile[bits % QUANTILES];
		if (before && s->layer)
			f = 0.998f * before[(i * 5 + 3) % row] + 0.06f * f;
		if (now)
			now[i] = f;
		f = d->mean[channel + i] + d->spread[channel + i] * f;
		bits >>= QUANTILE_BITS;
		if (s->dtype == SKVC_DTYPE_BF16 || s->dtype == SKVC_DTYPE_FP16) {
			uint16_t v = bf16_of(f);

			memcpy(out + 2 * (size_t)i, &v, sizeof(v));
		} else if (s->dtype == SKVC_DTYPE_U8) {
			out[i] = (uint8_t)bits;
		} else {
			out[i] = e4m3_of(f);
		}
	}
}

void kv_data_fill(const struct kv_data *d, uint64_t block, void *ret_bytes)
{
	uint8_t *out = ret_bytes;
	uint32_t channel = 0;
	size_t layer = (size_t)d->channels_count / d->segments_count * d->block_tokens;
	float *z = d->follows ? calloc(4 * layer, sizeof(*z)) : NULL; /* K, V; the same of before */
	struct rng r;

	if (d->follows && !z)
		abort();
	rng_init(&r, d->seed ^ rng_mix(block));
	for (uint32_t i = 0; i < d->segments_count; i++) {
		const struct skvc_segment *s = &d->segments[i];
		uint32_t row = (uint32_t)s->heads * s->head_dim;
		size_t row_bytes = d->block_bytes / d->segments_count / d->block_tokens;

		for (uint32_t t = 0; t < d->block_tokens; t++) {
			float *now = z ? z + (i % 2) * layer + (size_t)t * row : NULL;

			fill_row(d, &r, s, channel, now ? now + 2 * layer : NULL, now, out);
			out += row_bytes;
		}
		if (z)
			memcpy(z + (2 + i % 2) * layer, z + (i % 2) * layer, layer * sizeof(*z));
		channel += row;
	}
	free(z);
}

int kv_data_compare(const struct kv_data *d, uint64_t block, const void *bytes)
{
	uint8_t *expected = malloc(d->block_bytes);
	int differ;

	if (!expected)
		abort();
	kv_data_fill(d, block, expected);
	differ = memcmp(expected, bytes, d->block_bytes) != 0;
	free(expected);
	return differ;
}

struct skvc_key kv_data_key(uint64_t salt, uint64_t block)
{
	struct skvc_key key = { .len = 32 };
	struct rng r;

	rng_init(&r, rng_mix(salt) ^ block);
	rng_fill(&r, key.bytes, key.len);
	return key;
}

void kv_data_fill_any(uint8_t *mem, size_t bytes)
{
	uint64_t x = 88172645463325252u;

	/* bf16 of magnitude about one: the top byte of each element is narrow. */
	for (size_t i = 0; i + 1 < bytes; i += 2) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		mem[i] = (uint8_t)x;
		mem[i + 1] = (uint8_t)(0x3f - (x >> 8 & 1) + (x >> 2 & 0x80));
	}
}
