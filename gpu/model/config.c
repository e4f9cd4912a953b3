/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_config.c - reads config.json.  What would change the arithmetic and is not implemented is
 * refused by name; a model that runs is a model that runs right.
 */
#include "gpu/model/config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"

#define CONFIG_BYTES_MAX (1u << 20)

static const char *const arch_names[MODEL_ARCH_COUNT] = {
	[MODEL_QWEN3] = "Qwen3ForCausalLM",
	[MODEL_LLAMA] = "LlamaForCausalLM",
};

const char *model_arch_name(enum model_arch arch)
{
	return arch_names[arch];
}

static const cJSON *get(const cJSON *json, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);

	return cJSON_IsNull(item) ? NULL : item; /* null means absent in these files */
}

/* An integer in least..most, a multiple of step; when it is not there: @absent, or 0: required. */
static int get_u32(const struct report *r, const cJSON *json, const char *name, uint32_t least,
		   uint32_t most, uint32_t step, uint32_t absent, uint32_t *ret)
{
	const cJSON *item = get(json, name);
	double d;

	if (!item && absent) {
		*ret = absent;
		return 0;
	}
	if (!item)
		return report_fail(r, -EINVAL, "no \"%s\"", name);
	d = cJSON_IsNumber(item) ? item->valuedouble : -1;
	if (!(d >= least && d <= most) || (double)(uint32_t)d != d || (uint32_t)d % step != 0) {
		if (step > 1)
			return report_fail(r, -EINVAL, "\"%s\" is not a multiple of %u in %u..%u",
					   name, step, least, most);
		return report_fail(r, -EINVAL, "\"%s\" is not an integer in %u..%u", name, least,
				   most);
	}
	*ret = (uint32_t)d;
	return 0;
}

static int get_real(const struct report *r, const cJSON *json, const char *name, double above,
		    double most, double absent, double *ret)
{
	const cJSON *item = get(json, name);
	double d;

	d = !item ? absent : cJSON_IsNumber(item) ? item->valuedouble : -1;
	if (!(d > above && d <= most))
		return report_fail(r, -EINVAL, "\"%s\" is not a number above %g, at most %g", name,
				   above, most);
	*ret = d;
	return 0;
}

static int read_arch(const struct report *r, const cJSON *json, struct model_config *c)
{
	const cJSON *list = get(json, "architectures");
	const char *name = cJSON_GetStringValue(cJSON_GetArrayItem(list, 0));

	if (!cJSON_IsArray(list) || !name)
		return report_fail(r, -EINVAL, "no \"architectures\"");
	for (uint32_t arch = 0; arch < MODEL_ARCH_COUNT; arch++) {
		if (strcmp(arch_names[arch], name) == 0) {
			c->arch = (enum model_arch)arch;
			return 0;
		}
	}
	return report_fail(r, -EINVAL, "architecture %.40s: only %s and %s are implemented", name,
			   arch_names[MODEL_QWEN3], arch_names[MODEL_LLAMA]);
}

/* Things that change the arithmetic; each is refused by its name. */
static int refuse_others(const struct report *r, const cJSON *json)
{
	static const char *const flags[] = { "attention_bias", "mlp_bias", "use_sliding_window" };
	const char *act = cJSON_GetStringValue(get(json, "hidden_act"));

	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
		if (cJSON_IsTrue(get(json, flags[i])))
			return report_fail(r, -EINVAL, "\"%s\" is not implemented", flags[i]);
	if (act && strcmp(act, "silu") != 0)
		return report_fail(r, -EINVAL, "\"hidden_act\" %.40s: only silu is implemented",
				   act);
	if (get(json, "quantization_config"))
		return report_fail(r, -EINVAL, "quantised weights are not implemented");
	return 0;
}

/* In newer files all of rope lies in one object, in older ones theta stands by itself. */
static int read_rope(const struct report *r, const cJSON *json, struct model_config *c)
{
	static const char *const objects[] = { "rope_parameters", "rope_scaling" };
	const cJSON *holder = json;

	for (size_t i = 0; i < sizeof(objects) / sizeof(objects[0]); i++) {
		const cJSON *rope = get(json, objects[i]);
		const cJSON *type = get(rope, "rope_type");
		const char *name;

		if (!rope)
			continue;
		name = cJSON_GetStringValue(type ? type : get(rope, "type"));
		if (!cJSON_IsObject(rope) || (name && strcmp(name, "default") != 0))
			return report_fail(r, -EINVAL,
					   "\"%s\" of type %.40s: only the default rope "
					   "is implemented",
					   objects[i], name ? name : "unknown");
		if (get(rope, "rope_theta"))
			holder = rope;
	}
	return get_real(r, holder, "rope_theta", 1.0, 1e12, 1e4, &c->rope_theta);
}

static int read_eos(const struct report *r, const cJSON *json, struct model_config *c)
{
	const cJSON *eos = get(json, "eos_token_id");
	const cJSON *item = cJSON_IsArray(eos) ? eos->child : eos;

	for (; item; item = cJSON_IsArray(eos) ? item->next : NULL) {
		double d = cJSON_IsNumber(item) ? item->valuedouble : -1;

		if (!(d >= 0 && d < c->vocab) || (double)(uint32_t)d != d)
			return report_fail(r, -EINVAL, "\"eos_token_id\" is not a token");
		if (c->eos_count == MODEL_EOS_MAX)
			return report_fail(r, -EINVAL, "more than %u of \"eos_token_id\"",
					   MODEL_EOS_MAX);
		c->eos[c->eos_count++] = (uint32_t)d;
	}
	return 0;
}

static int read_shape(const struct report *r, const cJSON *json, struct model_config *c)
{
	const struct {
		const char *name;
		uint32_t least, most, step, absent;
		uint32_t *ret;
	} fields[] = {
		{ "num_hidden_layers", 1, 512, 1, 0, &c->layers },
		{ "hidden_size", 16, 65536, 16, 0, &c->hidden },
		{ "intermediate_size", 16, 1u << 20, 16, 0, &c->mlp },
		{ "num_attention_heads", 1, 1024, 1, 0, &c->heads },
		{ "vocab_size", 2, MODEL_VOCAB_MAX, 1, 0, &c->vocab },
		{ "max_position_embeddings", 1, 1u << 24, 1, 0, &c->context_max },
	};
	int rc;

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		rc = get_u32(r, json, fields[i].name, fields[i].least, fields[i].most,
			     fields[i].step, fields[i].absent, fields[i].ret);
		if (rc < 0)
			return rc;
	}
	rc = get_u32(r, json, "num_key_value_heads", 1, 1024, 1, c->heads, &c->kv_heads);
	if (rc < 0)
		return rc;
	if (c->heads % c->kv_heads != 0)
		return report_fail(r, -EINVAL,
				   "\"num_key_value_heads\" %u does not divide %u heads",
				   c->kv_heads, c->heads);
	if (!get(json, "head_dim") && (c->hidden % c->heads != 0 || c->hidden / c->heads % 16 != 0))
		return report_fail(r, -EINVAL,
				   "no \"head_dim\", and hidden / heads is no multiple of 16");
	return get_u32(r, json, "head_dim", 16, 512, 16, c->hidden / c->heads, &c->head_dim);
}

static int read_all(const struct report *r, const cJSON *json, struct model_config *c)
{
	double eps = 0;
	int rc;

	rc = read_arch(r, json, c);
	if (rc == 0)
		rc = refuse_others(r, json);
	if (rc == 0)
		rc = read_shape(r, json, c);
	if (rc == 0)
		rc = read_rope(r, json, c);
	if (rc == 0)
		rc = get_real(r, json, "rms_norm_eps", 0, 1, 1e-6, &eps);
	if (rc == 0)
		rc = read_eos(r, json, c);
	if (rc < 0)
		return rc;
	c->norm_eps = (float)eps;
	c->tied = cJSON_IsTrue(get(json, "tie_word_embeddings"));
	return 0;
}

int model_config_parse(const struct report *r, const char *text, uint64_t bytes,
		       struct model_config *ret)
{
	struct model_config c = { .layers = 0 };
	cJSON *json;
	int rc;

	json = cJSON_ParseWithLength(text, bytes + 1);
	if (cJSON_IsObject(json))
		rc = read_all(r, json, &c);
	else
		rc = report_fail(r, -EINVAL, "not a JSON object");
	cJSON_Delete(json);
	if (rc == 0)
		*ret = c;
	return rc;
}

int model_config_read(const struct report *r, const char *path, struct model_config *ret)
{
	size_t bytes = 0;
	char *text = NULL;
	int rc;

	rc = file_read(r, path, CONFIG_BYTES_MAX, &text, &bytes);
	if (rc == 0)
		rc = model_config_parse(r, text, bytes, ret);
	free(text);
	return rc;
}
