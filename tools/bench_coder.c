/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_coder.c - the stopwatch of the codec's benchmarks.  The calling thread's processor time, so that a
 * busy machine costs time and not truth.
 */
#include "tools/bench_coder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

#include "tools/bench_samples.h"

#define PASSES_MIN 5u
#define PASSES_MAX 1000u

static double cpu_s(void)
{
	struct timespec ts = { 0 };

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}
/* Median processor time of one pass over all measured blocks; just one pass when nobody wants the time. */
static int measure(struct coder_bench *b, int (*pass)(struct coder_bench *), double *ret_s)
{
	double *s = malloc(PASSES_MAX * sizeof(*s)), spent = 0;
	unsigned n = 0, least = b->seconds > 0 ? PASSES_MIN : 1;
	int r = s ? 0 : -ENOMEM;

	if (r == 0 && b->seconds > 0)
		r = pass(b); /* once for the caches and the page tables */
	while (r == 0 && n < PASSES_MAX && (n < least || spent < b->seconds)) {
		double begin = cpu_s();

		r = pass(b);
		s[n] = cpu_s() - begin;
		spent += s[n++];
	}
	if (r == 0)
		*ret_s = median(s, n);
	free(s);
	return r;
}

static struct codec_view block_view(const struct coder_bench *b, uint32_t i)
{
	return (struct codec_view){ .base = b->kv->blocks,
				    .block_index = b->first + i,
				    .position = b->kv->positions[b->first + i] };
}

static int encode_all(struct coder_bench *b, unsigned flags)
{
	b->encoded_total = b->escapes = b->chunks_raw = 0;
	b->fallbacks = 0;
	for (uint32_t i = 0; i < b->count; i++) {
		struct codec_view v = block_view(b, i);
		struct codec_info info;
		int r = codec_encode(b->ws, &b->kv->g, b->profile, b->speculator, flags, &v,
				     b->coded + i * b->cap, b->cap, &info);

		if (r < 0)
			return r;
		b->coded_bytes[i] = info.encoded_bytes;
		b->encoded_total += info.encoded_bytes;
		b->escapes += info.escapes;
		b->fallbacks += info.speculator != b->speculator;
		b->chunks_raw += info.chunks_raw;
	}
	return 0;
}

static int pass_encode(struct coder_bench *b)
{
	return encode_all(b, 0);
}

static int pass_encode_verify(struct coder_bench *b)
{
	return encode_all(b, CODEC_ENCODE_VERIFY);
}

static int pass_decode(struct coder_bench *b)
{
	for (uint32_t i = 0; i < b->count; i++) {
		struct codec_view v = { .base = b->back, .block_index = i };
		int r = codec_decode(b->ws, &b->kv->g, b->profile, b->coded + i * b->cap,
				     b->coded_bytes[i], NULL, &v);

		if (r < 0)
			return r;
	}
	return 0;
}

static int pass_memcpy(struct coder_bench *b)
{
	for (uint32_t i = 0; i < b->count; i++)
		memcpy(b->back + i * b->kv->g.raw_bytes,
		       b->kv->blocks + (b->first + i) * b->kv->g.raw_bytes, b->kv->g.raw_bytes);
	return 0;
}

/* Segment by segment: low bytes to the front half, high bytes to the back half. */
static size_t planes_split(const struct codec_geometry *g, const uint8_t *raw, uint8_t *low,
			   uint8_t *high)
{
	size_t n = 0, off = 0, h = 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		size_t scalars = (size_t)s->heads * s->head_dim * g->block_tokens;

		if (codec_dtype_bytes(s->dtype) == 1) {
			memcpy(low + n, raw + off, scalars);
			off += scalars;
		} else {
			for (size_t j = 0; j < scalars; j++) {
				low[n + j] = raw[off + 2u * j];
				high[h + j] = raw[off + 2u * j + 1u];
			}
			off += 2u * scalars;
			h += scalars;
		}
		n += scalars;
	}
	return h;
}

static size_t planes_join(const struct codec_geometry *g, uint8_t *raw, const uint8_t *low,
			  const uint8_t *high)
{
	size_t n = 0, off = 0, h = 0;

	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		size_t scalars = (size_t)s->heads * s->head_dim * g->block_tokens;

		if (codec_dtype_bytes(s->dtype) == 1) {
			memcpy(raw + off, low + n, scalars);
			off += scalars;
		} else {
			for (size_t j = 0; j < scalars; j++) {
				raw[off + 2u * j] = low[n + j];
				raw[off + 2u * j + 1u] = high[h + j];
			}
			off += 2u * scalars;
			h += scalars;
		}
		n += scalars;
	}
	return off;
}

/* The yardstick's state; zstd contexts are kept, as a careful user of zstd would. */
struct zstd_bench {
	ZSTD_CCtx *c;
	ZSTD_DCtx *d;
	uint8_t *planes; /* one block */
	uint8_t *coded;	 /* count * cap */
	size_t cap;
	size_t (*bytes)[2]; /* low and high frame of each block */
	size_t high;	    /* high bytes of a block */
	int level;
};

static struct zstd_bench zstd; /* of the one thread that measures */

static int pass_zstd_encode(struct coder_bench *b)
{
	size_t raw = b->kv->g.raw_bytes, low = raw - zstd.high;

	b->zstd_total = 0;
	for (uint32_t i = 0; i < b->count; i++) {
		uint8_t *out = zstd.coded + i * zstd.cap;
		size_t x, y = 0;

		(void)planes_split(&b->kv->g, b->kv->blocks + (b->first + i) * raw, zstd.planes,
				   zstd.planes + low);
		x = ZSTD_compressCCtx(zstd.c, out, zstd.cap, zstd.planes, low, zstd.level);
		if (!ZSTD_isError(x) && zstd.high > 0)
			y = ZSTD_compressCCtx(zstd.c, out + x, zstd.cap - x, zstd.planes + low,
					      zstd.high, zstd.level);
		if (ZSTD_isError(x) || ZSTD_isError(y))
			return -EIO;
		zstd.bytes[i][0] = x;
		zstd.bytes[i][1] = y;
		b->zstd_total += x + y;
	}
	return 0;
}

static int pass_zstd_decode(struct coder_bench *b)
{
	size_t raw = b->kv->g.raw_bytes, low = raw - zstd.high;

	for (uint32_t i = 0; i < b->count; i++) {
		const uint8_t *in = zstd.coded + i * zstd.cap;
		size_t x = ZSTD_decompressDCtx(zstd.d, zstd.planes, low, in, zstd.bytes[i][0]),
		       y = 0;

		if (zstd.high > 0)
			y = ZSTD_decompressDCtx(zstd.d, zstd.planes + low, zstd.high,
						in + zstd.bytes[i][0], zstd.bytes[i][1]);
		if (x != low || y != zstd.high)
			return -EIO;
		(void)planes_join(&b->kv->g, b->back + i * raw, zstd.planes, zstd.planes + low);
	}
	return 0;
}

static int blocks_compare(const struct coder_bench *b, uint32_t *ret_equal)
{
	size_t raw = b->kv->g.raw_bytes;

	*ret_equal = 0;
	for (uint32_t i = 0; i < b->count; i++)
		*ret_equal += !memcmp(b->back + i * raw, b->kv->blocks + (b->first + i) * raw, raw);
	return *ret_equal == b->count ? 0 : -EBADMSG;
}

int coder_bench_zstd(struct coder_bench *b, int level)
{
	size_t raw = b->kv->g.raw_bytes;
	uint32_t equal;
	int r = -ENOMEM;

	zstd.level = level;
	zstd.c = ZSTD_createCCtx();
	zstd.d = ZSTD_createDCtx();
	zstd.planes = malloc(2u * raw);
	zstd.cap = ZSTD_compressBound(raw) + ZSTD_compressBound(0);
	zstd.coded = malloc(b->count * zstd.cap);
	zstd.bytes = calloc(b->count, sizeof(*zstd.bytes));
	if (zstd.c && zstd.d && zstd.planes && zstd.coded && zstd.bytes) {
		zstd.high = planes_split(&b->kv->g, b->kv->blocks, zstd.planes, zstd.planes + raw);
		r = measure(b, pass_zstd_encode, &b->zstd_encode_s);
	}
	if (r == 0)
		r = measure(b, pass_zstd_decode, &b->zstd_decode_s);
	if (r == 0)
		r = blocks_compare(b, &equal);
	ZSTD_freeCCtx(zstd.c);
	ZSTD_freeDCtx(zstd.d);
	free(zstd.planes);
	free(zstd.coded);
	free(zstd.bytes);
	zstd = (struct zstd_bench){ 0 };
	return r;
}

int coder_bench_init(struct coder_bench *b, const struct kv_dump *kv, uint32_t first,
		     double seconds)
{
	*b = (struct coder_bench){ .kv = kv,
				   .first = first,
				   .count = kv->blocks_count - first,
				   .seconds = seconds,
				   .cap = codec_bound(&kv->g) };
	b->coded = malloc(b->count * b->cap);
	b->coded_bytes = calloc(b->count, sizeof(*b->coded_bytes));
	b->back = calloc(b->count, kv->g.raw_bytes);
	return b->coded && b->coded_bytes && b->back ? codec_workspace_new(&b->ws) : -ENOMEM;
}

void coder_bench_deinit(struct coder_bench *b)
{
	codec_workspace_free(b->ws);
	free(b->coded);
	free(b->coded_bytes);
	free(b->back);
	*b = (struct coder_bench){ 0 };
}

int coder_bench_codec(struct coder_bench *b, bool verify)
{
	int r = verify ? measure(b, pass_encode_verify, &b->encode_verify_s) : 0;

	if (r == 0)
		r = measure(b, pass_encode, &b->encode_s);
	if (r < 0)
		return r;
	memset(b->back, 0, b->count * b->kv->g.raw_bytes);
	r = measure(b, pass_decode, &b->decode_s);
	if (r == 0)
		r = blocks_compare(b, &b->verified);
	return r;
}

int coder_bench_memcpy(struct coder_bench *b)
{
	return measure(b, pass_memcpy, &b->memcpy_s);
}

double coder_bench_scalars(const struct coder_bench *b)
{
	double row = 0;

	for (uint32_t i = 0; i < b->kv->g.segments_count; i++)
		row += (double)b->kv->g.segments[i].heads * b->kv->g.segments[i].head_dim;
	return row * (double)b->count * b->kv->g.block_tokens;
}
