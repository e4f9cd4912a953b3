/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_codec_model.c - `skvc-bench codec --speculator model`: blocks that are coded after their prefix have an
 * order, so they are measured sequence by sequence, each once.
 */
#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>

#include "tools/bench_codec.h"
#include "tools/output.h"

static void print_text(const struct bench_model_ask *ask, const struct bench_model_point *p)
{
	const struct bench_model_totals *t = &p->t;
	const double raw = (double)t->raw_bytes, scalars = (double)t->scalars;

	(void)printf("file        %s\n", ask->kv);
	(void)printf("shape       %u layers, %s; blocks of %u tokens, %.0f bytes\n", p->layers,
		     p->dtype, ask->block, raw / (double)t->blocks);
	(void)printf("model       %s, %s, %s token ids\n", ask->folder, mspec_mode_name(p->mode),
		     ask->no_ids ? "without" : "with");
	(void)printf("calibrated  on %u tokens of %s\n", p->fitted_tokens, ask->calibrate);
	(void)printf("evaluated   %llu blocks, all restored byte-exact; %llu not by model\n",
		     (unsigned long long)t->blocks, (unsigned long long)t->fallbacks);
	(void)printf("codec       model, %s, one thread\n", codec_isa_name());
	(void)printf("\n%-22s %8s %14s %12s\n", "", "ratio", "encode GB/s", "decode GB/s");
	(void)printf("%-22s %8.3f %14.4f %12.4f\n", "model", raw / (double)t->coded_bytes,
		     1e-9 * raw / t->encode_s, 1e-9 * raw / t->decode_s);
	(void)printf("\nbits per scalar %.3f, expected from the calibration %.3f; escapes %.5f per "
		     "scalar\n",
		     8.0 * (double)t->coded_bytes / scalars, p->expected_bits,
		     (double)t->escapes / scalars);
	(void)printf("ideal       %.3f bits per scalar; coded, headers, ids and states included: "
		     "%+.2f %%\n",
		     t->ideal_bits / scalars,
		     100 * (8.0 * (double)t->coded_bytes / t->ideal_bits - 1));
	(void)printf("predictor   %.0f int8 operations per token; ", p->operations);
	if (p->x >= 0)
		(void)printf("x = %.4f of a bf16 prefill\n", p->x);
	else
		(void)printf("x is known with --target\n");
}

static void print_gpu(const struct bench_model_ask *ask, const struct bench_model_point *p)
{
	const struct bench_predictor_results *g = &p->t.gpu;
	const double raw = 1e-9 * (double)g->raw_bytes;
	const double tokens = (double)g->blocks * ask->block;

	(void)printf(
		"GPU         %s: %u sequences together, %u blocks, %.3f GB, %u tokens at a time; %u payloads "
		"are the CPU's, %u blocks restored byte-exact\n",
		g->name, g->sequences, g->blocks, raw, ask->gpu->tokens, g->identical, g->verified);
	(void)printf(
		"            encode %.2f GB/s (%.0f tokens/s), decode %.2f GB/s (%.0f tokens/s), as a prefix "
		"alone %.2f GB/s; host memory to host memory\n",
		raw / g->encode_s, tokens / g->encode_s, raw / g->decode_s, tokens / g->decode_s,
		raw / g->prefix_s);
}

static void json_gpu(cJSON *j, const struct bench_predictor_results *g)
{
	const double raw = 1e-9 * (double)g->raw_bytes;
	cJSON *o = cJSON_AddObjectToObject(j, "gpu");

	cJSON_AddStringToObject(o, "device", g->name);
	cJSON_AddNumberToObject(o, "sequences", g->sequences);
	cJSON_AddNumberToObject(o, "blocks", g->blocks);
	cJSON_AddNumberToObject(o, "raw_bytes", (double)g->raw_bytes);
	cJSON_AddNumberToObject(o, "identical_payloads", g->identical);
	cJSON_AddNumberToObject(o, "verified_blocks", g->verified);
	cJSON_AddNumberToObject(o, "encode_gbps", raw / g->encode_s);
	cJSON_AddNumberToObject(o, "decode_gbps", raw / g->decode_s);
	cJSON_AddNumberToObject(o, "prefix_gbps", raw / g->prefix_s);
}

static int print_json(const struct bench_model_ask *ask, const struct bench_model_point *p)
{
	const struct bench_model_totals *t = &p->t;
	const double raw = (double)t->raw_bytes, scalars = (double)t->scalars;
	cJSON *j = cJSON_CreateObject();

	cJSON_AddStringToObject(j, "file", ask->kv);
	cJSON_AddStringToObject(j, "calibrated_on", ask->calibrate);
	cJSON_AddNumberToObject(j, "calibrated_tokens", p->fitted_tokens);
	cJSON_AddStringToObject(j, "speculator", "model");
	cJSON_AddStringToObject(j, "device", "cpu");
	cJSON_AddStringToObject(j, "isa", codec_isa_name());
	cJSON_AddStringToObject(j, "model", ask->folder);
	cJSON_AddStringToObject(j, "mode", mspec_mode_name(p->mode));
	cJSON_AddBoolToObject(j, "token_ids", !ask->no_ids);
	cJSON_AddStringToObject(j, "dtype", p->dtype);
	cJSON_AddNumberToObject(j, "block_tokens", ask->block);
	cJSON_AddNumberToObject(j, "blocks", (double)t->blocks);
	cJSON_AddNumberToObject(j, "verified_blocks", (double)t->blocks);
	cJSON_AddNumberToObject(j, "fallback_blocks", (double)t->fallbacks);
	cJSON_AddNumberToObject(j, "raw_bytes", raw);
	cJSON_AddNumberToObject(j, "encoded_bytes", (double)t->coded_bytes);
	cJSON_AddNumberToObject(j, "ratio", raw / (double)t->coded_bytes);
	cJSON_AddNumberToObject(j, "bits_per_scalar", 8.0 * (double)t->coded_bytes / scalars);
	cJSON_AddNumberToObject(j, "expected_bits_per_scalar", p->expected_bits);
	cJSON_AddNumberToObject(j, "ideal_bits_per_scalar", t->ideal_bits / scalars);
	cJSON_AddNumberToObject(j, "escapes_per_scalar", (double)t->escapes / scalars);
	cJSON_AddNumberToObject(j, "encode_gbps", 1e-9 * raw / t->encode_s);
	cJSON_AddNumberToObject(j, "decode_gbps", 1e-9 * raw / t->decode_s);
	cJSON_AddNumberToObject(j, "operations_per_token", p->operations);
	if (p->x >= 0)
		cJSON_AddNumberToObject(j, "x", p->x);
	if (ask->gpu)
		json_gpu(j, &t->gpu);
	return output_json(j, stdout);
}

int bench_codec_model(const struct bench_model_ask *ask, bool json)
{
	struct bench_model_point p;
	int r = bench_model_measure(ask, &p);

	if (r < 0)
		return r;
	if (json)
		return print_json(ask, &p);
	print_text(ask, &p);
	if (ask->gpu)
		print_gpu(ask, &p);
	return 0;
}
