/* SPDX-License-Identifier: Apache-2.0 */
/* bench_model_point.c - see bench_model_point.h. */
#include "tools/bench_model_point.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench_cost.h"

static const char *dtype_name(uint32_t dtype)
{
	return dtype == CODEC_DTYPE_BF16   ? "BF16"
	       : dtype == CODEC_DTYPE_FP16 ? "F16"
	       : dtype == CODEC_DTYPE_E4M3 ? "F8_E4M3"
					   : "F8_E5M2";
}

static uint32_t tokens_of(const struct bench_dump *d, uint32_t most)
{
	uint32_t n = 0;

	for (uint32_t s = 0; s < d->sequences_count && (!most || n < most); s++)
		n = (uint32_t)d->starts[s + 1u];
	return n;
}

/* Parameters for the scales of the dump that is coded. */
static int params_get(const struct bench_model_ask *ask, const struct mspec_model *m,
		      const struct bench_dump *on, const struct bench_dump *to,
		      struct mspec_params **ret, struct bench_model_point *point)
{
	const struct mspec_fit_options fo = { .ids = !ask->no_ids,
					      .previous = ask->previous,
					      .precision = mspec_precision_default() };
	struct mspec_params *fitted = NULL;
	int r = bench_model_fit(m, on, 1, ask->tokens, &fo, &fitted, &point->expected_bits);

	if (r == 0)
		r = mspec_params_rescale(fitted, to->scale_k, to->scale_v, ret);
	if (r < 0)
		(void)fprintf(stderr, "skvc-bench: %s: fitting the model: %s\n", on->path,
			      strerror(-r));
	mspec_params_free(fitted);
	point->fitted_tokens = tokens_of(on, ask->tokens);
	return r;
}

/* What the guesses cost. */
static int cost(const struct bench_model_ask *ask, const struct mspec_params *p,
		struct bench_model_point *point)
{
	const uint64_t products = mspec_params_products(p);
	const char *folder;
	double target = 0;
	int r = 0;

	point->mode = mspec_params_mode(p);
	point->operations = 2.0 * (double)products;
	folder = point->mode == MSPEC_DRAFT ? ask->target : ask->folder;
	if (folder)
		r = bench_cost_target(folder, &target);
	point->x = folder && r == 0 ? bench_cost_share(products, target) : -1;
	return r;
}

static int measure(const struct bench_model_ask *ask, const struct mspec_model *m,
		   struct bench_dump *on, struct bench_dump *kv, struct bench_model_point *point)
{
	struct bench_model_coding coding = { .channel_on = on,
					     .block = ask->block,
					     .gpu = ask->gpu };
	struct mspec_params *params = NULL;
	int r = bench_dump_open(ask->calibrate, NULL, on);

	if (r == 0)
		r = bench_dump_open(ask->kv, &on->shape, kv);
	if (r == 0 && kv->dtype != on->dtype)
		r = bench_dump_bad(kv, "of another type than the calibration", "");
	if (r == 0)
		r = params_get(ask, m, on, kv, &params, point);
	if (r == 0)
		r = cost(ask, params, point);
	if (r == 0) {
		point->dtype = dtype_name(kv->dtype);
		point->layers = kv->shape.layers;
		coding.params = params;
		coding.expected_bits = point->expected_bits;
		r = bench_model_code(kv, &coding, &point->t);
	}
	if (r == 0 && point->t.blocks == 0)
		r = bench_dump_bad(kv, "no whole block in a sequence", "");
	mspec_params_free(params);
	return r;
}

int bench_model_measure(const struct bench_model_ask *ask, struct bench_model_point *ret)
{
	struct bench_dump on = { .path = NULL }, kv = { .path = NULL };
	char err[MODEL_ERR_BYTES] = "";
	struct mspec_model *m = NULL;
	int r = mspec_model_load(ask->folder, true, &m, err, sizeof(err));

	*ret = (struct bench_model_point){ .dtype = "" };
	if (r == 0)
		r = measure(ask, m, &on, &kv, ret);
	else
		(void)fprintf(stderr, "skvc-bench: %s\n", err[0] ? err : strerror(-r));
	bench_dump_close(&on);
	bench_dump_close(&kv);
	mspec_model_free(m);
	return r;
}
