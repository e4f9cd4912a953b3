/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_model_point.h - the `model` speculator measured once: fitted on one dump, another coded and compared.
 */
#ifndef SKVCD_TOOLS_BENCH_MODEL_POINT_H
#define SKVCD_TOOLS_BENCH_MODEL_POINT_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/bench_model.h"

struct bench_model_ask {    /* all borrowed */
	const char *folder; /* the model, Hugging Face layout */
	const char *target; /* of a draft: the model that made the cache; NULL: x is not known */
	const char *calibrate, *kv;
	uint32_t previous; /* a draft's: layers looked back */
	uint32_t tokens;   /* of calibrate, to fit on; 0: all */
	uint32_t block;
	bool no_ids;
	const struct bench_predictor_options *gpu; /* NULL: the CPU alone */
};

struct bench_model_point {
	struct bench_model_totals t;
	const char *dtype; /* static */
	uint32_t layers, fitted_tokens;
	double expected_bits;
	double operations; /* int8, of one token: two for each product */
	double x;	   /* of one bf16 prefill of the model that made the cache; -1: not known */
	enum mspec_mode mode;
};

/* 0, or -errno after a line on stderr. */
int bench_model_measure(const struct bench_model_ask *ask, struct bench_model_point *ret);

#endif
