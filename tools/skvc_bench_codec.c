/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvc_bench_codec.c - `skvc-bench codec`: how small and how fast the codec makes real KV cache.
 *
 * Reads dumps of KV cache (safetensors; tensors k.<layer> and v.<layer> of [tokens, heads, dim]), cuts
 * them into blocks as the daemon does, fits a profile on one file or half, and measures on another.
 * Every decoded block is compared with its source.  One thread, pinned to its processor; times are
 * that thread's processor time, the median of several passes; zstd -1 on split byte planes and memcpy
 * run in the same process as the yardsticks.
 */
#include "tools/skvc_bench.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

#include "gpu/codec/codec.h"
#include "tools/bench_codec.h"
#include "tools/bench_kv.h"
#include "tools/bench_samples.h"
#include "tools/report.h"

#define PASSES_MIN 5u
#define PASSES_MAX 1000u
#define RESHAPED_BLOCKS 64u	/* of 2 MiB, say */
#define CALIBRATION_BLOCKS 256u /* 4096 tokens */
#define MADE_BLOCKS 2u		/* that suit a profile nobody fitted */

struct options {
	const char *kv;
	const char *calibrate; /* NULL: the first half of kv */
	const char *isa;       /* NULL: the best */
	uint8_t speculator;
	uint32_t previous; /* layers that `layer` looks back */
	uint32_t block_tokens;
	double seconds; /* for each thing measured */
	enum kv_shape shape;
	bool gpu; /* after the CPU, as `device` says */
	struct codec_gpu_options device;
	bool json;
};

struct codec_bench {
	struct options o;
	struct kv_dump kv, calibration; /* calibration.blocks NULL: none was read */
	uint32_t first;			/* of the evaluated blocks of kv */
	uint32_t count;
	struct codec_workspace *ws;
	struct codec_profile *profile;
	uint64_t fitted_tokens;
	uint8_t *coded; /* count * cap */
	size_t cap;
	size_t *coded_bytes;
	uint8_t *back; /* one block, or all when copying */
	/* results */
	uint64_t encoded_total, escapes, chunks_raw;
	uint32_t verified;
	double encode_s, encode_verify_s, decode_s, memcpy_s;
	double zstd_encode_s, zstd_decode_s;
	uint64_t zstd_total;
	struct codec_gpu_results gpu;
	cpu_set_t cpus; /* before this thread was pinned */
};

static double cpu_s(void)
{
	struct timespec ts = { 0 };

	(void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* ---- measuring ---- */

/* Median processor time of one pass over all evaluated blocks. */
static int measure(struct codec_bench *b, int (*pass)(struct codec_bench *), double *ret_s)
{
	double *s = malloc(PASSES_MAX * sizeof(*s)), spent = 0;
	unsigned n = 0;
	int r = s ? pass(b) : -ENOMEM; /* once for the caches and the page tables */

	while (r == 0 && n < PASSES_MAX && (n < PASSES_MIN || spent < b->o.seconds)) {
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

static struct codec_view block_view(const struct codec_bench *b, uint32_t i)
{
	return (struct codec_view){ .base = b->kv.blocks,
				    .block_index = b->first + i,
				    .position = b->kv.positions[b->first + i] };
}

static int encode_all(struct codec_bench *b, unsigned flags)
{
	b->encoded_total = b->escapes = b->chunks_raw = 0;
	for (uint32_t i = 0; i < b->count; i++) {
		struct codec_view v = block_view(b, i);
		struct codec_info info;
		int r = codec_encode(b->ws, &b->kv.g, b->profile, b->o.speculator, flags, &v,
				     b->coded + i * b->cap, b->cap, &info);

		if (r < 0)
			return r;
		b->coded_bytes[i] = info.encoded_bytes;
		b->encoded_total += info.encoded_bytes;
		b->escapes += info.escapes;
		b->chunks_raw += info.chunks_raw;
	}
	return 0;
}

static int pass_encode(struct codec_bench *b)
{
	return encode_all(b, 0);
}

static int pass_encode_verify(struct codec_bench *b)
{
	return encode_all(b, CODEC_ENCODE_VERIFY);
}

static int pass_decode(struct codec_bench *b)
{
	for (uint32_t i = 0; i < b->count; i++) {
		struct codec_view v = { .base = b->back, .block_index = i };
		int r = codec_decode(b->ws, &b->kv.g, b->profile, b->coded + i * b->cap,
				     b->coded_bytes[i], NULL, &v);

		if (r < 0)
			return r;
	}
	return 0;
}

static int pass_memcpy(struct codec_bench *b)
{
	for (uint32_t i = 0; i < b->count; i++)
		memcpy(b->back + i * b->kv.g.raw_bytes,
		       b->kv.blocks + (b->first + i) * b->kv.g.raw_bytes, b->kv.g.raw_bytes);
	return 0;
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
};

static struct zstd_bench zstd; /* of the one thread that measures */

static int pass_zstd_encode(struct codec_bench *b)
{
	size_t raw = b->kv.g.raw_bytes, low = raw - zstd.high;

	b->zstd_total = 0;
	for (uint32_t i = 0; i < b->count; i++) {
		uint8_t *out = zstd.coded + i * zstd.cap;
		size_t x, y = 0;

		(void)bench_planes_split(&b->kv.g, b->kv.blocks + (b->first + i) * raw, zstd.planes,
					 zstd.planes + low);
		x = ZSTD_compressCCtx(zstd.c, out, zstd.cap, zstd.planes, low, 1);
		if (!ZSTD_isError(x) && zstd.high > 0)
			y = ZSTD_compressCCtx(zstd.c, out + x, zstd.cap - x, zstd.planes + low,
					      zstd.high, 1);
		if (ZSTD_isError(x) || ZSTD_isError(y))
			return -EIO;
		zstd.bytes[i][0] = x;
		zstd.bytes[i][1] = y;
		b->zstd_total += x + y;
	}
	return 0;
}

static int pass_zstd_decode(struct codec_bench *b)
{
	size_t raw = b->kv.g.raw_bytes, low = raw - zstd.high;

	for (uint32_t i = 0; i < b->count; i++) {
		const uint8_t *in = zstd.coded + i * zstd.cap;
		size_t x = ZSTD_decompressDCtx(zstd.d, zstd.planes, low, in, zstd.bytes[i][0]),
		       y = 0;

		if (zstd.high > 0)
			y = ZSTD_decompressDCtx(zstd.d, zstd.planes + low, zstd.high,
						in + zstd.bytes[i][0], zstd.bytes[i][1]);
		if (x != low || y != zstd.high)
			return -EIO;
		(void)bench_planes_join(&b->kv.g, b->back + i * raw, zstd.planes,
					zstd.planes + low);
	}
	return 0;
}

static int blocks_compare(const struct codec_bench *b, uint32_t *ret_equal)
{
	size_t raw = b->kv.g.raw_bytes;

	*ret_equal = 0;
	for (uint32_t i = 0; i < b->count; i++)
		*ret_equal += !memcmp(b->back + i * raw, b->kv.blocks + (b->first + i) * raw, raw);
	return *ret_equal == b->count ? 0 : -EBADMSG;
}

static int zstd_measure(struct codec_bench *b)
{
	size_t raw = b->kv.g.raw_bytes;
	uint32_t equal;
	int r = -ENOMEM;

	zstd.c = ZSTD_createCCtx();
	zstd.d = ZSTD_createDCtx();
	zstd.planes = malloc(2u * raw);
	zstd.cap = ZSTD_compressBound(raw) + ZSTD_compressBound(0);
	zstd.coded = malloc(b->count * zstd.cap);
	zstd.bytes = calloc(b->count, sizeof(*zstd.bytes));
	if (zstd.c && zstd.d && zstd.planes && zstd.coded && zstd.bytes) {
		zstd.high = bench_planes_split(&b->kv.g, b->kv.blocks, zstd.planes,
					       zstd.planes + raw);
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

/* ---- the benchmark ---- */

/* The profile's maps, for the scales that the evaluated dump is stored with. */
static int layer_fit(struct codec_bench *b, const struct kv_dump *d, uint32_t blocks)
{
	struct codec_profile *with = NULL, *scaled = NULL;
	double ratio[CODEC_SEGMENTS_MAX];
	int r = codec_profile_fit_layer(&b->kv.g, b->profile, d->blocks, d->positions, blocks,
					b->o.previous, &with);

	for (uint32_t i = 0; r == 0 && i < b->kv.g.segments_count; i++)
		ratio[i] = b->kv.scales[i] / d->scales[i];
	if (r == 0)
		r = codec_profile_rescale(&b->kv.g, with, ratio, &scaled);
	if (r == 0) {
		codec_profile_free(b->profile);
		b->profile = scaled;
	}
	codec_profile_free(with);
	return r;
}

static int profile_fit(struct codec_bench *b)
{
	struct kv_dump *d = b->calibration.blocks ? &b->calibration : &b->kv;
	uint32_t n = b->calibration.blocks ? d->blocks_count : b->first;
	struct codec_fit *fit;
	int r = codec_fit_new(&b->kv.g, &fit);

	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n; i++) {
		struct codec_view v = { .base = d->blocks, .block_index = i };

		codec_fit_add(fit, &v);
	}
	b->fitted_tokens = codec_fit_tokens(fit);
	r = codec_fit_finish(fit, &b->profile);
	codec_fit_free(fit);
	if (r == 0 && b->o.speculator == CODEC_SPEC_LAYER)
		r = layer_fit(b, d, n);
	return r;
}

/* No KV cache of this shape is at hand that earlier layers would say anything about. */
static bool made(const struct codec_bench *b)
{
	return b->o.speculator == CODEC_SPEC_LAYER && b->o.shape != KV_SHAPE_FILE;
}

static int profile_made(struct codec_bench *b)
{
	for (uint32_t i = 0; i < b->kv.blocks_count; i++)
		b->kv.positions[i] = i * b->kv.g.block_tokens;
	b->fitted_tokens = b->kv.tokens;
	return codec_profile_made(&b->kv.g, b->o.previous, 0, 1, b->kv.positions,
				  b->kv.blocks_count, b->kv.blocks, &b->profile);
}

static int bench_prepare(struct codec_bench *b)
{
	size_t raw;
	int r = kv_dump_read(b->o.kv, b->o.block_tokens, &b->kv);

	if (r == 0 && b->o.calibrate && !made(b))
		r = kv_dump_read(b->o.calibrate, b->o.block_tokens, &b->calibration);
	if (r == 0)
		r = kv_dump_reshape(&b->kv, b->o.shape, made(b) ? MADE_BLOCKS : RESHAPED_BLOCKS,
				    !b->o.calibrate && !made(b));
	if (r == 0 && b->o.calibrate && !made(b))
		r = kv_dump_reshape(&b->calibration, b->o.shape, CALIBRATION_BLOCKS, false);
	if (r < 0)
		return r;
	if (b->calibration.blocks &&
	    memcmp(b->calibration.g.digest, b->kv.g.digest, CODEC_DIGEST_BYTES) != 0) {
		(void)fprintf(stderr, "skvc-bench: %s: not the layers, heads, dim and type of %s\n",
			      b->o.calibrate, b->o.kv);
		return -EINVAL;
	}
	raw = b->kv.g.raw_bytes;
	b->first = b->o.speculator >= CODEC_SPEC_CHANNEL && !b->o.calibrate && !made(b)
			   ? b->kv.blocks_count / 2u
			   : 0;
	b->count = b->kv.blocks_count - b->first;
	b->cap = codec_bound(&b->kv.g);
	b->coded = malloc(b->count * b->cap);
	b->coded_bytes = calloc(b->count, sizeof(*b->coded_bytes));
	b->back = calloc(b->count, raw);
	if (!b->coded || !b->coded_bytes || !b->back)
		return -ENOMEM;
	r = codec_workspace_new(&b->ws);
	if (r == 0 && b->o.speculator >= CODEC_SPEC_CHANNEL)
		r = made(b) ? profile_made(b) : profile_fit(b);
	return r;
}

static int bench_measure(struct codec_bench *b)
{
	int r;

	if (made(b)) /* once, for its bytes: the CPU takes seconds for a block */
		return pass_encode(b);
	r = measure(b, pass_encode_verify, &b->encode_verify_s);
	if (r == 0)
		r = measure(b, pass_encode, &b->encode_s);
	if (r == 0)
		r = measure(b, pass_memcpy, &b->memcpy_s);
	if (r == 0)
		r = zstd_measure(b);
	if (r < 0)
		return r;
	memset(b->back, 0, b->count * b->kv.g.raw_bytes);
	r = measure(b, pass_decode, &b->decode_s);
	if (r == 0)
		r = blocks_compare(b, &b->verified);
	return r;
}

/* The same blocks again, as often as it takes to fill a GPU. */
static int gpu_measure(struct codec_bench *b)
{
	const struct codec_gpu_input in = {
		.g = &b->kv.g,
		.profile = b->profile,
		.speculator = b->o.speculator,
		.positions = b->kv.positions + b->first,
		.blocks = b->kv.blocks + b->first * b->kv.g.raw_bytes,
		.count = b->count,
		.coded = b->coded,
		.coded_bytes = b->coded_bytes,
		.cap = b->cap,
	};
	char err[REPORT_BYTES] = "";
	const struct report report = { "skvc-bench codec", err, sizeof(err) };
	int r;

	(void)sched_setaffinity(0, sizeof(b->cpus), &b->cpus); /* the device's threads inherit it */
	r = bench_codec_gpu(&b->o.device, &in, &b->gpu, &report);
	if (r < 0)
		(void)fprintf(stderr, "%s\n", err[0] ? err : strerror(-r));
	return r;
}

/* GB/s of raw bytes on the GPU. */
static double gpu_rate(const struct codec_bench *b, double s)
{
	return s > 0 ? (double)b->gpu.raw_bytes * 1e-9 / s : 0;
}

struct results {
	double raw_gb, ratio, bits, expected_bits, escapes, zstd_ratio;
	double encode, encode_verify, decode, copy, zstd_encode,
		zstd_decode; /* GB/s of raw bytes */
};

static struct results results_of(const struct codec_bench *b)
{
	double raw = (double)b->count * (double)b->kv.g.raw_bytes, scalars = 0;
	struct results r = { .raw_gb = raw * 1e-9 };

	for (uint32_t i = 0; i < b->kv.g.segments_count; i++)
		scalars += (double)b->kv.g.segments[i].heads * b->kv.g.segments[i].head_dim;
	scalars *= (double)b->count * b->kv.g.block_tokens;
	r.ratio = raw / (double)b->encoded_total;
	r.bits = (double)b->encoded_total * 8.0 / scalars;
	r.expected_bits = b->profile ? codec_profile_expected_bits(b->profile) : 0;
	r.escapes = (double)b->escapes / scalars;
	r.zstd_ratio = raw / (double)b->zstd_total;
	r.encode = r.raw_gb / b->encode_s;
	r.encode_verify = r.raw_gb / b->encode_verify_s;
	r.decode = r.raw_gb / b->decode_s;
	r.copy = r.raw_gb / b->memcpy_s;
	r.zstd_encode = r.raw_gb / b->zstd_encode_s;
	r.zstd_decode = r.raw_gb / b->zstd_decode_s;
	return r;
}

static void print_gpu_row(const char *name, double ratio, double encode, double verify,
			  double decode)
{
	(void)printf("%-22s %8.3f %14.2f %16.2f %12.2f\n", name, ratio, encode, verify, decode);
}

static void print_gpu(const struct codec_bench *b)
{
	const struct codec_gpu_results *g = &b->gpu;
	double ratio = (double)g->raw_bytes / (double)g->encoded_bytes;

	print_gpu_row("GPU, its own time", ratio, gpu_rate(b, g->encode.busy_s),
		      gpu_rate(b, g->encode_verify.busy_s), gpu_rate(b, g->decode.busy_s));
	print_gpu_row("GPU, seen from outside", ratio, gpu_rate(b, g->encode.wall_s),
		      gpu_rate(b, g->encode_verify.wall_s), gpu_rate(b, g->decode.wall_s));
	(void)printf("\nGPU         %s (%s), %u blocks, %.3f GB; %u restored byte-exact; "
		     "%u of %u payloads are the CPU's\n",
		     g->model, g->name, g->blocks, (double)g->raw_bytes * 1e-9, g->verified,
		     g->identical, g->compared);
	(void)printf("            staging %.0f MiB, footprint %.0f MiB beside the pool\n",
		     (double)g->staging_bytes / 1048576.0, (double)g->footprint_bytes / 1048576.0);
}

static void print_text(const struct codec_bench *b)
{
	struct results r = results_of(b);
	size_t profile_bytes = 0;

	(void)printf("file        %s\n", b->o.kv);
	(void)printf("shape       %u layers, %u x %u, %s; blocks of %u tokens, %.0f bytes\n",
		     b->kv.layers, b->kv.g.segments[0].heads, b->kv.g.segments[0].head_dim,
		     b->kv.dtype, b->kv.g.block_tokens, (double)b->kv.g.raw_bytes);
	if (b->profile) {
		(void)codec_profile_bytes(b->profile, &profile_bytes);
		(void)printf("calibrated  on %.0f tokens of %s; profile %zu bytes\n",
			     (double)b->fitted_tokens,
			     b->o.calibrate ? b->o.calibrate : "the same file, its first half",
			     profile_bytes);
	}
	(void)printf("evaluated   %u blocks%s, %u restored byte-exact\n", b->count,
		     b->first ? ", the second half" : "", b->verified);
	(void)printf("codec       %s, %s, one thread\n", codec_speculator_name(b->o.speculator),
		     codec_isa_name());
	(void)printf("\n%-22s %8s %14s %16s %12s\n", "", "ratio", "encode GB/s", "+ verify GB/s",
		     "decode GB/s");
	(void)printf("%-22s %8.3f %14.2f %16.2f %12.2f\n", codec_speculator_name(b->o.speculator),
		     r.ratio, r.encode, r.encode_verify, r.decode);
	(void)printf("%-22s %8.3f %14.2f %16s %12.2f\n", "zstd -1, byte planes", r.zstd_ratio,
		     r.zstd_encode, "", r.zstd_decode);
	(void)printf("%-22s %8.3f %14.2f %16s %12.2f\n", "memcpy", 1.0, r.copy, "", r.copy);
	(void)printf("%-22s %8.3f %14.2f %16s %12.2f\n", "against zstd", r.ratio / r.zstd_ratio,
		     r.encode / r.zstd_encode, "", r.decode / r.zstd_decode);
	if (b->o.gpu)
		print_gpu(b);
	(void)printf("\nbits per scalar %.3f", r.bits);
	if (b->profile)
		(void)printf(", expected from the calibration %.3f", r.expected_bits);
	(void)printf("; escapes %.5f per scalar; raw chunks %.0f\n", r.escapes,
		     (double)b->chunks_raw);
}

static void add_gpu_time(const struct codec_bench *b, cJSON *j, const char *name,
			 const struct codec_gpu_time *t)
{
	cJSON *o = cJSON_AddObjectToObject(j, name);

	cJSON_AddNumberToObject(o, "gbps", gpu_rate(b, t->busy_s));
	cJSON_AddNumberToObject(o, "wall_gbps", gpu_rate(b, t->wall_s));
	cJSON_AddNumberToObject(o, "busy_s", t->busy_s);
	cJSON_AddNumberToObject(o, "wall_s", t->wall_s);
	cJSON_AddNumberToObject(o, "passes", t->passes);
}

static void add_gpu(const struct codec_bench *b, cJSON *j)
{
	const struct codec_gpu_results *g = &b->gpu;
	cJSON *o = cJSON_AddObjectToObject(j, "gpu");

	cJSON_AddStringToObject(o, "device", g->name);
	cJSON_AddStringToObject(o, "model", g->model);
	cJSON_AddNumberToObject(o, "blocks", g->blocks);
	cJSON_AddNumberToObject(o, "verified_blocks", g->verified);
	cJSON_AddNumberToObject(o, "compared_payloads", g->compared);
	cJSON_AddNumberToObject(o, "identical_payloads", g->identical);
	cJSON_AddNumberToObject(o, "raw_bytes", (double)g->raw_bytes);
	cJSON_AddNumberToObject(o, "encoded_bytes", (double)g->encoded_bytes);
	cJSON_AddNumberToObject(o, "ratio", (double)g->raw_bytes / (double)g->encoded_bytes);
	cJSON_AddNumberToObject(o, "escapes", (double)g->escapes);
	cJSON_AddNumberToObject(o, "raw_chunks", (double)g->chunks_raw);
	cJSON_AddNumberToObject(o, "staging_bytes", (double)g->staging_bytes);
	cJSON_AddNumberToObject(o, "footprint_bytes", (double)g->footprint_bytes);
	add_gpu_time(b, o, "encode", &g->encode);
	add_gpu_time(b, o, "encode_verify", &g->encode_verify);
	add_gpu_time(b, o, "decode", &g->decode);
}

static int print_json(const struct codec_bench *b)
{
	struct results r = results_of(b);
	cJSON *j = cJSON_CreateObject();
	char *text;

	cJSON_AddStringToObject(j, "file", b->o.kv);
	cJSON_AddStringToObject(j, "calibrated_on",
				!b->profile	 ? "nothing"
				: b->o.calibrate ? b->o.calibrate
						 : "first half of the same file");
	cJSON_AddNumberToObject(j, "calibrated_tokens", (double)b->fitted_tokens);
	cJSON_AddStringToObject(j, "speculator", codec_speculator_name(b->o.speculator));
	cJSON_AddStringToObject(j, "device", !b->o.gpu ? "cpu" : b->o.device.sim ? "sim" : "gpu");
	cJSON_AddStringToObject(j, "isa", codec_isa_name());
	cJSON_AddStringToObject(j, "dtype", b->kv.dtype);
	cJSON_AddNumberToObject(j, "block_tokens", b->kv.g.block_tokens);
	cJSON_AddNumberToObject(j, "blocks", b->count);
	cJSON_AddNumberToObject(j, "verified_blocks", b->verified);
	cJSON_AddNumberToObject(j, "raw_bytes", (double)b->count * (double)b->kv.g.raw_bytes);
	cJSON_AddNumberToObject(j, "encoded_bytes", (double)b->encoded_total);
	cJSON_AddNumberToObject(j, "ratio", r.ratio);
	cJSON_AddNumberToObject(j, "bits_per_scalar", r.bits);
	cJSON_AddNumberToObject(j, "expected_bits_per_scalar", r.expected_bits);
	cJSON_AddNumberToObject(j, "escapes_per_scalar", r.escapes);
	cJSON_AddNumberToObject(j, "raw_chunks", (double)b->chunks_raw);
	cJSON_AddNumberToObject(j, "encode_gbps", r.encode);
	cJSON_AddNumberToObject(j, "encode_verify_gbps", r.encode_verify);
	cJSON_AddNumberToObject(j, "decode_gbps", r.decode);
	cJSON_AddNumberToObject(j, "memcpy_gbps", r.copy);
	cJSON_AddNumberToObject(j, "zstd1_planes_ratio", r.zstd_ratio);
	cJSON_AddNumberToObject(j, "zstd1_planes_encode_gbps", r.zstd_encode);
	cJSON_AddNumberToObject(j, "zstd1_planes_decode_gbps", r.zstd_decode);
	cJSON_AddNumberToObject(j, "ratio_against_zstd1", r.ratio / r.zstd_ratio);
	cJSON_AddNumberToObject(j, "encode_against_zstd1", r.encode / r.zstd_encode);
	cJSON_AddNumberToObject(j, "decode_against_zstd1", r.decode / r.zstd_decode);
	if (b->o.gpu)
		add_gpu(b, j);
	text = cJSON_Print(j);
	if (text)
		(void)printf("%s\n", text);
	cJSON_free(text);
	cJSON_Delete(j);
	return text ? 0 : -ENOMEM;
}

static const char usage_text[] =
	"Usage: skvc-bench codec --kv FILE [OPTION]...\n"
	"\n"
	"  --kv FILE            KV cache to measure on (safetensors: k.<layer>, v.<layer>)\n"
	"  --calibrate FILE     KV cache of other tokens to fit the statistics on; without it the\n"
	"                       first half of --kv is fitted and the second half measured\n"
	"  --speculator NAME    channel (default), layer, generic or raw\n"
	"  --previous N         layers that `layer` looks back, 0 to 6 (2); 0: means\n"
	"  --device NAME        cpu (default), gpu or sim, a GPU played by the CPU; the GPU's numbers\n"
	"                       stand beside the CPU's\n"
	"  --gpu WHICH          ordinal or UUID of the GPU; the first one\n"
	"  --library PATH       the CUDA device; ../lib/skvcd/libskvcd-cuda.so beside this program\n"
	"  --bytes SIZE         raw bytes on the GPU, at least (1G)\n"
	"  --copies N           or so many copies of the measured blocks\n"
	"  --staging SIZE       GPU memory for work in flight, at most (4G)\n"
	"  --geometry NAME      file (default), or llama: 32 layers of 8 x 128 made of the file's,\n"
	"                       or qwen3-8b: 36 of them.  With `layer` these two have random maps\n"
	"                       and values that suit them: for speed, sizes say nothing\n"
	"  --block-tokens N     tokens of a block, 1 to 1024 (16)\n"
	"  --isa NAME           scalar, avx2, avx512 or avx512-loads instead of the best\n"
	"  --seconds S          time for each thing measured, 0 to 60 (1)\n"
	"  --json               one JSON object\n";

static int speculator_parse(const char *name, uint8_t *ret_speculator)
{
	for (unsigned i = 0; i <= (unsigned)CODEC_SPEC_LAYER; i++)
		if (!strcmp(name, codec_speculator_name((uint8_t)i))) {
			*ret_speculator = (uint8_t)i;
			return 0;
		}
	return -EINVAL;
}

/* 0, or an exit status; -1: help was printed.  A flat option switch. */
static int options_parse(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {
		{ "kv", required_argument, NULL, 'k' },
		{ "calibrate", required_argument, NULL, 'c' },
		{ "speculator", required_argument, NULL, 's' },
		{ "previous", required_argument, NULL, 'p' },
		{ "device", required_argument, NULL, 'd' },
		{ "gpu", required_argument, NULL, 'u' },
		{ "library", required_argument, NULL, 'l' },
		{ "bytes", required_argument, NULL, 'B' },
		{ "copies", required_argument, NULL, 'n' },
		{ "staging", required_argument, NULL, 'S' },
		{ "geometry", required_argument, NULL, 'g' },
		{ "block-tokens", required_argument, NULL, 'b' },
		{ "isa", required_argument, NULL, 'i' },
		{ "seconds", required_argument, NULL, 't' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	char *end;
	int c;

	/* flat switch */
	optind = 0; /* the caller's argv is not ours to go on with */
	while ((c = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (c) {
		case 'k':
			o->kv = optarg;
			break;
		case 'c':
			o->calibrate = optarg;
			break;
		case 's':
			if (speculator_parse(optarg, &o->speculator) < 0)
				return bench_usage_error("codec", "no such speculator: ", optarg);
			break;
		case 'p':
			if (bench_count_parse(optarg, 0, 6, &o->previous) < 0)
				return bench_usage_error("codec", "not 0 to 6 layers: ", optarg);
			break;
		case 'd':
			o->gpu = strcmp(optarg, "cpu") != 0;
			o->device.sim = !strcmp(optarg, "sim");
			if (o->gpu && !o->device.sim && strcmp(optarg, "gpu") != 0)
				return bench_usage_error("codec", "no such device: ", optarg);
			break;
		case 'u':
			o->device.which = optarg;
			break;
		case 'l':
			o->device.library = optarg;
			break;
		case 'B':
			if (bench_size_parse(optarg, &o->device.bytes) < 0)
				return bench_usage_error("codec", "not a size: ", optarg);
			break;
		case 'n':
			o->device.copies = strtoul(optarg, &end, 10);
			if (*end || end == optarg || o->device.copies == 0)
				return bench_usage_error("codec",
							 "not a number of copies: ", optarg);
			break;
		case 'S':
			if (bench_size_parse(optarg, &o->device.staging_bytes) < 0)
				return bench_usage_error("codec", "not a size: ", optarg);
			break;
		case 'g':
			if (kv_shape_parse(optarg, &o->shape) < 0)
				return bench_usage_error("codec", "no such geometry: ", optarg);
			break;
		case 'b':
			if (bench_count_parse(optarg, 1, CODEC_BLOCK_TOKENS_MAX, &o->block_tokens) <
			    0)
				return bench_usage_error("codec", "not 1 to 1024 tokens: ", optarg);
			break;
		case 'i':
			o->isa = optarg;
			break;
		case 't':
			o->seconds = strtod(optarg, &end);
			if (*end || end == optarg || !(o->seconds >= 0 && o->seconds <= 60))
				return bench_usage_error("codec", "not 0 to 60 seconds: ", optarg);
			break;
		case 'j':
			o->json = true;
			break;
		case 'h':
			(void)fputs(usage_text, stdout);
			return -1;
		default:
			return 2;
		}
	}
	if (optind < argc)
		return bench_usage_error("codec", "too many arguments: ", argv[optind]);
	return o->kv ? 0 : bench_usage_error("codec", "--kv FILE is missing", "");
}

static void pin_thread(struct codec_bench *b)
{
	cpu_set_t set;
	int cpu = sched_getcpu();

	(void)sched_getaffinity(0, sizeof(b->cpus), &b->cpus);
	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	(void)sched_setaffinity(0, sizeof(set), &set); /* not allowed: measures all the same */
}

int bench_codec_main(int argc, char **argv)
{
	struct codec_bench b = {
		.o = { .speculator = CODEC_SPEC_CHANNEL,
		       .previous = 2,
		       .block_tokens = 16,
		       .seconds = 1,
		       .device = { .bytes = 1ull << 30, .staging_bytes = 4ull << 30 } },
	};
	int r = options_parse(argc, argv, &b.o);

	if (r != 0)
		return r < 0 ? 0 : r;
	if (codec_isa_set(b.o.isa) < 0)
		return bench_usage_error("codec", "this processor cannot do ", b.o.isa);
	pin_thread(&b);
	b.o.device.seconds = b.o.seconds;
	r = bench_prepare(&b);
	if (r == 0) {
		r = bench_measure(&b);
		if (r < 0)
			(void)fprintf(stderr, "skvc-bench: %s: %u of %u blocks restored: %s\n",
				      b.o.kv, b.verified, b.count, strerror(-r));
	}
	if (r == 0 && b.o.gpu)
		r = gpu_measure(&b);
	if (r == 0) {
		if (b.o.json)
			r = print_json(&b);
		else
			print_text(&b);
	}
	codec_profile_free(b.profile);
	codec_workspace_free(b.ws);
	kv_dump_deinit(&b.kv);
	kv_dump_deinit(&b.calibration);
	free(b.coded);
	free(b.coded_bytes);
	free(b.back);
	if (r == 0 && b.gpu.identical != b.gpu.compared) {
		(void)fprintf(stderr, "skvc-bench codec: the GPU's payloads are not the CPU's\n");
		return 1;
	}
	return r == 0 ? 0 : 1;
}
