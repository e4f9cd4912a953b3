/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_cost.c - see bench_cost.h.
 */
#include "tools/bench_cost.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"

#define CONFIG_BYTES_MAX (1u << 20)

/* 0 where the key is no sensible count. */
static double count_of(const cJSON *j, const char *key)
{
	const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);

	return cJSON_IsNumber(v) && v->valuedouble >= 1 && v->valuedouble <= 1e7 ? v->valuedouble
										 : 0;
}

static double macs_of(const cJSON *j)
{
	double hidden = count_of(j, "hidden_size"), layers = count_of(j, "num_hidden_layers");
	double heads = count_of(j, "num_attention_heads");
	double kv = count_of(j, "num_key_value_heads"), dim = count_of(j, "head_dim");

	if (kv == 0)
		kv = heads;
	if (dim == 0 && heads > 0)
		dim = hidden / heads;
	return layers * hidden * (2 * (heads + kv) * dim + 3 * count_of(j, "intermediate_size"));
}

int bench_cost_target(const char *folder, double *ret_macs)
{
	char err[REPORT_BYTES] = "", path[4096], *text = NULL;
	const struct report report = { path, err, sizeof(err) };
	size_t bytes;
	cJSON *j;
	int r;

	if (snprintf(path, sizeof(path), "%s/config.json", folder) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	r = file_read(&report, path, CONFIG_BYTES_MAX, &text, &bytes);
	if (r < 0) {
		(void)fprintf(stderr, "skvc-bench: %s\n", err);
		return r;
	}
	j = cJSON_ParseWithLength(text, bytes);
	*ret_macs = j ? macs_of(j) : 0;
	cJSON_Delete(j);
	free(text);
	if (*ret_macs > 0)
		return 0;
	(void)fprintf(stderr,
		      "skvc-bench: %s: no model with hidden_size, num_hidden_layers, "
		      "num_attention_heads and intermediate_size\n",
		      path);
	return -EINVAL;
}

double bench_cost_share(uint64_t int8_products, double target_macs)
{
	return target_macs > 0 ? (double)int8_products / 2 / target_macs : 0;
}
