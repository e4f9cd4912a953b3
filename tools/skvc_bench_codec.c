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
#include "tools/output.h"
#include "tools/skvc_bench.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/codec.h"
#include "gpu/model/report.h"
#include "tools/bench_codec.h"
#include "tools/bench_coder.h"
#include "tools/bench_cost.h"
#include "tools/bench_fit.h"

#define RESHAPED_BLOCKS 64u	/* of 2 MiB, say */
#define CALIBRATION_BLOCKS 256u /* 4096 tokens */
#define MADE_BLOCKS 2u		/* that suit a profile nobody fitted */

struct options {
	const char *kv;
	const char *calibrate; /* NULL: the first half of kv */
	const char *profile;   /* NULL: one is fitted */
	const char *model;     /* folder of the target; NULL: nothing is said of its cost */
	const char *target;    /* folder of it, when `model` is a draft */
	const char *isa;       /* NULL: the best */
	uint8_t speculator;
	uint32_t previous; /* layers that `layer` looks back */
	uint32_t block_tokens;
	double seconds; /* for each thing measured */
	enum kv_shape shape;
	bool gpu; /* after the CPU, as `device` says */
	uint32_t gpu_tokens;
	struct codec_gpu_options device;
	uint32_t model_tokens; /* of `calibrate`, for `model` */
	bool json, verbose, no_ids;
};

struct codec_bench {
	struct options o;
	struct kv_dump kv, calibration; /* calibration.blocks NULL: none was read */
	struct coder_bench c;
	struct codec_profile *profile;
	uint64_t fitted_tokens;
	double segment_bits[CODEC_SEGMENTS_MAX]; /* LAYER: of all measured blocks, ideal */
	double target_macs;			 /* multiply-adds a token; 0: not known */
	struct codec_gpu_results gpu;
	cpu_set_t cpus; /* before this thread was pinned */
};

/* ---- the benchmark ---- */

static int profile_fit(struct codec_bench *b)
{
	struct kv_dump *d = b->calibration.blocks ? &b->calibration : &b->kv;
	uint32_t n = b->calibration.blocks ? d->blocks_count : b->c.first;
	struct codec_profile *with;
	int r;

	if (b->o.profile)
		return bench_profile_read(&b->kv.g, b->o.profile, &b->profile);
	r = bench_fit_channel(d, n, &b->profile);
	b->fitted_tokens = (uint64_t)n * d->g.block_tokens;
	if (r == 0 && b->o.speculator == CODEC_SPEC_LAYER) {
		r = bench_fit_layer(d, n, b->o.previous, b->profile, &with);
		if (r == 0) {
			codec_profile_free(b->profile);
			b->profile = with;
		}
	}
	return r == 0 && d != &b->kv ? bench_fit_rescale(d, &b->kv, &b->profile) : r;
}

/* Bits of each segment, over all measured blocks. */
static int segments_measure(struct codec_bench *b)
{
	int r = 0;

	if (b->o.speculator != CODEC_SPEC_LAYER ||
	    codec_profile_layer(b->profile).expected_bits <= 0)
		return 0;
	for (uint32_t i = b->c.first; r == 0 && i < b->kv.blocks_count; i++)
		r = bench_segment_bits(&b->kv.g, b->profile, b->kv.blocks + i * b->kv.g.raw_bytes,
				       b->kv.positions[i], b->segment_bits);
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
	bool half;
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
	half = b->o.speculator >= CODEC_SPEC_CHANNEL && !b->o.calibrate && !b->o.profile &&
	       !made(b);
	r = coder_bench_init(&b->c, &b->kv, half ? b->kv.blocks_count / 2u : 0, b->o.seconds);
	if (r == 0 && b->o.speculator >= CODEC_SPEC_CHANNEL)
		r = made(b) ? profile_made(b) : profile_fit(b);
	if (r == 0 && b->o.model)
		r = bench_cost_target(b->o.model, &b->target_macs);
	b->c.profile = b->profile;
	b->c.speculator = b->o.speculator;
	return r;
}

static int bench_measure(struct codec_bench *b)
{
	int r = coder_bench_memcpy(&b->c);

	if (r == 0)
		r = coder_bench_zstd(&b->c, 1);
	if (r == 0)
		r = coder_bench_codec(&b->c, true);
	return r == 0 ? segments_measure(b) : r;
}

/* The same blocks again, as often as it takes to fill a GPU. */
static int gpu_measure(struct codec_bench *b)
{
	const struct codec_gpu_input in = {
		.g = &b->kv.g,
		.profile = b->profile,
		.speculator = b->o.speculator,
		.positions = b->kv.positions + b->c.first,
		.blocks = b->kv.blocks + b->c.first * b->kv.g.raw_bytes,
		.count = b->c.count,
		.coded = b->c.coded,
		.coded_bytes = b->c.coded_bytes,
		.cap = b->c.cap,
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
	double ideal_bits, over_percent; /* LAYER; 0 else */
	double k_bits, v_bits;		 /* of a scalar, ideal */
	struct codec_layer_info layer;
	double share; /* of a prefill of the target; 0: not known */
	double encode, encode_verify, decode, copy, zstd_encode,
		zstd_decode; /* GB/s of raw bytes */
};

/* Of one segment's scalar. */
static double segment_bits(const struct codec_bench *b, uint32_t segment)
{
	const struct codec_segment *s = &b->kv.g.segments[segment];

	return b->segment_bits[segment] /
	       ((double)s->heads * s->head_dim * b->kv.g.block_tokens * b->c.count);
}

static double kind_bits(const struct codec_bench *b, uint8_t kind)
{
	double bits = 0, n = 0;

	for (uint32_t i = 0; i < b->kv.g.segments_count; i++) {
		const struct codec_segment *s = &b->kv.g.segments[i];

		if (s->kind != kind)
			continue;
		bits += b->segment_bits[i];
		n += (double)s->heads * s->head_dim * b->kv.g.block_tokens * b->c.count;
	}
	return n > 0 ? bits / n : 0;
}

static struct results results_of(const struct codec_bench *b)
{
	double raw = (double)b->c.count * (double)b->kv.g.raw_bytes;
	double scalars = coder_bench_scalars(&b->c);
	struct results r = { .raw_gb = raw * 1e-9 };

	r.ratio = raw / (double)b->c.encoded_total;
	r.bits = (double)b->c.encoded_total * 8.0 / scalars;
	r.expected_bits = b->profile ? codec_profile_expected_bits(b->profile) : 0;
	if (b->profile && b->o.speculator == CODEC_SPEC_LAYER)
		r.layer = codec_profile_layer(b->profile);
	for (uint32_t i = 0; i < b->kv.g.segments_count; i++)
		r.ideal_bits += b->segment_bits[i] / scalars;
	if (r.ideal_bits > 0) {
		r.expected_bits = r.layer.expected_bits;
		if (b->c.fallbacks == 0)
			r.over_percent = 100 * (r.bits / r.ideal_bits - 1);
		r.share = bench_cost_share(r.layer.products, b->target_macs);
		r.k_bits = kind_bits(b, CODEC_KIND_K);
		r.v_bits = kind_bits(b, CODEC_KIND_V);
	}
	r.escapes = (double)b->c.escapes / scalars;
	r.zstd_ratio = raw / (double)b->c.zstd_total;
	r.encode = r.raw_gb / b->c.encode_s;
	r.encode_verify = r.raw_gb / b->c.encode_verify_s;
	r.decode = r.raw_gb / b->c.decode_s;
	r.copy = r.raw_gb / b->c.memcpy_s;
	r.zstd_encode = r.raw_gb / b->c.zstd_encode_s;
	r.zstd_decode = r.raw_gb / b->c.zstd_decode_s;
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

static void print_layer(const struct codec_bench *b, const struct results *r)
{
	(void)printf("ideal       %.3f bits per scalar (K %.3f, V %.3f); ", r->ideal_bits,
		     r->k_bits, r->v_bits);
	if (b->c.fallbacks > 0)
		(void)printf("%u blocks were smaller by channel\n", b->c.fallbacks);
	else
		(void)printf("coded, headers and states included, %.3f: %+.2f %%\n", r->bits,
			     r->over_percent);
	(void)printf("predictor   %u layers back, %u rotary pairs, %.2f MB of weights, %.0f int8 "
		     "operations per token",
		     r->layer.previous, r->layer.rotary_pairs,
		     (double)r->layer.weights_bytes * 1e-6, 2.0 * (double)r->layer.products);
	if (r->share > 0)
		(void)printf("; x = %.4f of a bf16 prefill (%.1f M multiply-adds)", r->share,
			     b->target_macs * 1e-6);
	(void)printf("\n");
	for (uint32_t i = 0; b->o.verbose && i < b->kv.layers; i++)
		(void)printf("layer %3u   K %.3f  V %.3f bits\n", i, segment_bits(b, 2u * i),
			     segment_bits(b, 2u * i + 1u));
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
		if (b->o.profile)
			(void)printf("profile     %s, %zu bytes\n", b->o.profile, profile_bytes);
		else
			(void)printf("calibrated  on %.0f tokens of %s; profile %zu bytes\n",
				     (double)b->fitted_tokens,
				     b->o.calibrate ? b->o.calibrate
						    : "the same file, its first half",
				     profile_bytes);
	}
	(void)printf("evaluated   %u blocks%s, %u restored byte-exact\n", b->c.count,
		     b->c.first ? ", the second half" : "", b->c.verified);
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
		     (double)b->c.chunks_raw);
	if (r.ideal_bits > 0)
		print_layer(b, &r);
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

static void add_layer(const struct codec_bench *b, const struct results *r, cJSON *j)
{
	cJSON *layers = cJSON_AddArrayToObject(j, "layers");

	cJSON_AddNumberToObject(j, "ideal_bits_per_scalar", r->ideal_bits);
	if (b->c.fallbacks == 0)
		cJSON_AddNumberToObject(j, "over_ideal_percent", r->over_percent);
	cJSON_AddNumberToObject(j, "fallback_blocks", b->c.fallbacks);
	cJSON_AddNumberToObject(j, "k_bits_per_scalar", r->k_bits);
	cJSON_AddNumberToObject(j, "v_bits_per_scalar", r->v_bits);
	cJSON_AddNumberToObject(j, "previous_layers", r->layer.previous);
	cJSON_AddNumberToObject(j, "rotary_pairs", r->layer.rotary_pairs);
	cJSON_AddNumberToObject(j, "weights_bytes", (double)r->layer.weights_bytes);
	cJSON_AddNumberToObject(j, "operations_per_token", 2.0 * (double)r->layer.products);
	if (r->share > 0) {
		cJSON_AddNumberToObject(j, "target_multiply_adds_per_token", b->target_macs);
		cJSON_AddNumberToObject(j, "x", r->share);
	}
	for (uint32_t i = 0; i < b->kv.layers; i++) {
		cJSON *o = cJSON_CreateObject();

		cJSON_AddNumberToObject(o, "k_bits", segment_bits(b, 2u * i));
		cJSON_AddNumberToObject(o, "v_bits", segment_bits(b, 2u * i + 1u));
		cJSON_AddItemToArray(layers, o);
	}
}

static int print_json(const struct codec_bench *b)
{
	struct results r = results_of(b);
	cJSON *j = cJSON_CreateObject();

	cJSON_AddStringToObject(j, "file", b->o.kv);
	cJSON_AddStringToObject(j, "calibrated_on",
				!b->profile	 ? "nothing"
				: b->o.profile	 ? b->o.profile
				: b->o.calibrate ? b->o.calibrate
						 : "first half of the same file");
	cJSON_AddNumberToObject(j, "calibrated_tokens", (double)b->fitted_tokens);
	cJSON_AddStringToObject(j, "speculator", codec_speculator_name(b->o.speculator));
	cJSON_AddStringToObject(j, "device", !b->o.gpu ? "cpu" : b->o.device.sim ? "sim" : "gpu");
	cJSON_AddStringToObject(j, "isa", codec_isa_name());
	cJSON_AddStringToObject(j, "dtype", b->kv.dtype);
	cJSON_AddNumberToObject(j, "block_tokens", b->kv.g.block_tokens);
	cJSON_AddNumberToObject(j, "blocks", b->c.count);
	cJSON_AddNumberToObject(j, "verified_blocks", b->c.verified);
	cJSON_AddNumberToObject(j, "raw_bytes", (double)b->c.count * (double)b->kv.g.raw_bytes);
	cJSON_AddNumberToObject(j, "encoded_bytes", (double)b->c.encoded_total);
	cJSON_AddNumberToObject(j, "ratio", r.ratio);
	cJSON_AddNumberToObject(j, "bits_per_scalar", r.bits);
	cJSON_AddNumberToObject(j, "expected_bits_per_scalar", r.expected_bits);
	cJSON_AddNumberToObject(j, "escapes_per_scalar", r.escapes);
	cJSON_AddNumberToObject(j, "raw_chunks", (double)b->c.chunks_raw);
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
	if (r.ideal_bits > 0)
		add_layer(b, &r, j);
	if (b->o.gpu)
		add_gpu(b, j);
	return output_json(j, stdout);
}

static const char usage_text[] =
	"Usage: skvc-bench codec --kv FILE [OPTION]...\n"
	"\n"
	"  --kv FILE            KV cache to measure on (safetensors: k.<layer>, v.<layer>)\n"
	"  --calibrate FILE     KV cache of other tokens to fit the statistics on; without it the\n"
	"                       first half of --kv is fitted and the second half measured\n"
	"  --speculator NAME    channel (default), layer, model, generic or raw\n"
	"  --previous N         layers that `layer` looks back, or a draft, 0 to 6 (2); 0: means\n"
	"  --profile FILE       a profile of `skvc-bench calibrate` instead, as it is\n"
	"  --model DIR          the target model (config.json): what the guess costs of its prefill;\n"
	"                       `model` runs it, and needs --calibrate and token ids in both files.\n"
	"                       When the cache is of another shape it is a draft for it\n"
	"  --target DIR         of a draft: the target model (config.json)\n"
	"  --model-tokens N     of --calibrate, to fit `model` on (4096); 0: all\n"
	"  --no-ids             `model` does not know the token ids\n"
	"  --verbose            bits of each layer\n"
	"  --device NAME        cpu (default), gpu or sim, a GPU played by the CPU; the GPU's numbers\n"
	"                       stand beside the CPU's\n"
	"  --gpu WHICH          ordinal or UUID of the GPU; the first one\n"
	"  --library PATH       the CUDA device; ../lib/skvcd/libskvcd-cuda.so beside this program\n"
	"  --gpu-tokens N       that go through `model` there at a time (8192)\n"
	"  --bytes SIZE         raw bytes on the GPU, at least (1G)\n"
	"  --copies N           or so many copies of the measured blocks; of `model`'s sequences (8)\n"
	"  --staging SIZE       GPU memory for work in flight, at most (4G)\n"
	"  --geometry NAME      file (default), or llama: 32 layers of 8 x 128 made of the file's,\n"
	"                       or qwen3-8b: 36 of them.  With `layer` these two have random maps\n"
	"                       and values that suit them: for speed, sizes say nothing\n"
	"  --block-tokens N     tokens of a block, 1 to 1024 (16)\n"
	"  --isa NAME           scalar, avx2, avx512 or avx512-loads instead of the best\n"
	"  --seconds S          time for each thing measured, 0 to 60 (1); 0: once, not to be trusted\n"
	"  --json               one JSON object\n";

static int speculator_parse(const char *name, uint8_t *ret_speculator)
{
	for (unsigned i = 0; i <= (unsigned)CODEC_SPEC_MODEL; i++)
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
		{ "profile", required_argument, NULL, 'P' },
		{ "model", required_argument, NULL, 'M' },
		{ "target", required_argument, NULL, 'A' },
		{ "model-tokens", required_argument, NULL, 'T' },
		{ "no-ids", no_argument, NULL, 'I' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "device", required_argument, NULL, 'd' },
		{ "gpu", required_argument, NULL, 'u' },
		{ "library", required_argument, NULL, 'l' },
		{ "gpu-tokens", required_argument, NULL, 'G' },
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
		case 'P':
			o->profile = optarg;
			break;
		case 'M':
			o->model = optarg;
			break;
		case 'A':
			o->target = optarg;
			break;
		case 'T':
			if (bench_count_parse(optarg, 0, 1u << 24, &o->model_tokens) < 0)
				return bench_usage_error("codec",
							 "not a number of tokens: ", optarg);
			break;
		case 'I':
			o->no_ids = true;
			break;
		case 'v':
			o->verbose = true;
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
		case 'G':
			if (bench_count_parse(optarg, 1, 65536, &o->gpu_tokens) < 0)
				return bench_usage_error("codec",
							 "not 1 to 65536 tokens: ", optarg);
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
			if (bench_seconds_parse(optarg, 0, &o->seconds) < 0)
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

/* Blocks that are coded one after the other go another way. */
static int model_main(const struct options *o)
{
	const struct codec_gpu_options *d = &o->device;
	const struct bench_predictor_options gpu = { .sim = d->sim,
						     .which = d->which,
						     .library = d->library,
						     .copies = d->copies ? (uint32_t)d->copies : 8,
						     .tokens = o->gpu_tokens,
						     .seconds = o->seconds };
	const struct bench_model_ask ask = { .folder = o->model,
					     .target = o->target,
					     .previous = o->previous,
					     .calibrate = o->calibrate,
					     .kv = o->kv,
					     .tokens = o->model_tokens,
					     .block = o->block_tokens,
					     .no_ids = o->no_ids,
					     .gpu = o->gpu ? &gpu : NULL };

	if (!o->model || !o->calibrate)
		return bench_usage_error("codec", "model needs --model DIR and --calibrate FILE",
					 "");
	if (o->profile || o->shape != KV_SHAPE_FILE)
		return bench_usage_error("codec", "model is measured fitted, as the file is", "");
	return bench_codec_model(&ask, o->json) < 0;
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
		       .model_tokens = 4096,
		       .gpu_tokens = 8192,
		       .seconds = 1,
		       .device = { .bytes = 1ull << 30, .staging_bytes = 4ull << 30 } },
	};
	int r = options_parse(argc, argv, &b.o);

	if (r != 0)
		return r < 0 ? 0 : r;
	if (codec_isa_set(b.o.isa) < 0)
		return bench_usage_error("codec", "this processor cannot do ", b.o.isa);
	if (b.o.speculator != CODEC_SPEC_MODEL || !b.o.gpu)
		pin_thread(&b);
	if (b.o.speculator == CODEC_SPEC_MODEL)
		return model_main(&b.o);
	b.o.device.seconds = b.o.seconds;
	r = bench_prepare(&b);
	if (r == 0) {
		r = bench_measure(&b);
		if (r < 0)
			(void)fprintf(stderr, "skvc-bench: %s: %u of %u blocks restored: %s\n",
				      b.o.kv, b.c.verified, b.c.count, strerror(-r));
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
	coder_bench_deinit(&b.c);
	kv_dump_deinit(&b.kv);
	kv_dump_deinit(&b.calibration);
	if (r == 0 && b.gpu.identical != b.gpu.compared) {
		(void)fprintf(stderr, "skvc-bench codec: the GPU's payloads are not the CPU's\n");
		return 1;
	}
	return r == 0 ? 0 : 1;
}
