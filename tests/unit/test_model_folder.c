/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_model_folder.c - a wrong model folder is refused with one line that says what is wrong and
 * where: config.json field by field, then the files of the folder.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu/model/config.h"
#include "gpu/model/report.h"
#include "tests/lib/tiny_model.h"
#include "tools/model.h"
#include "tools/npy.h"

#define REQUIRED                                                                \
	"\"num_hidden_layers\":2,\"hidden_size\":64,\"intermediate_size\":128," \
	"\"vocab_size\":100,\"max_position_embeddings\":512"
#define LLAMA "\"architectures\":[\"LlamaForCausalLM\"],"

static int parse(const char *text, struct model_config *ret, char *err)
{
	const struct report r = { .subject = "FILE", .err = err, .err_bytes = REPORT_BYTES };

	err[0] = '\0';
	return model_config_parse(&r, text, strlen(text), ret);
}

static void test_defaults(void **state)
{
	struct model_config c;
	char err[REPORT_BYTES];

	(void)state;
	assert_int_equal(parse("{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"head_dim\":null,"
			       "\"rope_scaling\":null,\"eos_token_id\":null}",
			       &c, err),
			 0);
	assert_int_equal(c.arch, MODEL_LLAMA);
	assert_int_equal(c.head_dim, 16);
	assert_int_equal(c.kv_heads, 4);
	assert_true(c.rope_theta == 1e4);
	assert_int_equal(c.tied, 0);
	assert_int_equal(c.eos_count, 0);
	assert_int_equal(
		parse("{\"architectures\":[\"Qwen3ForCausalLM\"]," REQUIRED
		      ",\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,"
		      "\"rope_theta\":5,\"rope_parameters\":{\"rope_type\":\"default\","
		      "\"rope_theta\":1e6},\"eos_token_id\":[7,9],"
		      "\"tie_word_embeddings\":true,\"rms_norm_eps\":1e-5}",
		      &c, err),
		0);
	assert_int_equal(c.arch, MODEL_QWEN3);
	assert_int_equal(c.head_dim, 32);
	assert_int_equal(c.kv_heads, 2);
	assert_true(c.rope_theta == 1e6);
	assert_true(c.norm_eps == 1e-5f);
	assert_int_equal(c.tied, 1);
	assert_int_equal(c.eos_count, 2);
	assert_int_equal(c.eos[1], 9);
}

static void test_says_which_field(void **state)
{
	static const struct {
		const char *text, *says;
	} wrong[] = {
		{ "", "not a JSON object" },
		{ "[1]", "not a JSON object" },
		{ "{}", "no \"architectures\"" },
		{ "{\"architectures\":[\"GPT2LMHeadModel\"]}", "architecture GPT2LMHeadModel" },
		{ "{" LLAMA "\"hidden_size\":64}", "no \"num_hidden_layers\"" },
		{ "{" LLAMA "\"num_hidden_layers\":0}",
		  "\"num_hidden_layers\" is not an integer in" },
		{ "{" LLAMA "\"num_hidden_layers\":1.5}",
		  "\"num_hidden_layers\" is not an integer" },
		{ "{" LLAMA "\"num_hidden_layers\":\"2\"}",
		  "\"num_hidden_layers\" is not an integer" },
		{ "{" LLAMA "\"num_hidden_layers\":2,\"hidden_size\":40}",
		  "\"hidden_size\" is not a multiple of 16" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":3}", "no \"head_dim\"" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"num_key_value_heads\":3}",
		  "\"num_key_value_heads\" 3 does not divide" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"head_dim\":24}",
		  "\"head_dim\" is not a multiple of 16" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"attention_bias\":true}",
		  "\"attention_bias\"" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"hidden_act\":\"gelu\"}",
		  "gelu" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"quantization_config\":{}}",
		  "quantised" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,"
		  "\"rope_scaling\":{\"rope_type\":\"llama3\"}}",
		  "\"rope_scaling\" of type llama3" },
		{ "{" LLAMA REQUIRED
		  ",\"num_attention_heads\":4,\"rope_scaling\":{\"type\":\"yarn\"}}",
		  "\"rope_scaling\" of type yarn" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"rope_theta\":-1}",
		  "\"rope_theta\"" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"rms_norm_eps\":0}",
		  "\"rms_norm_eps\"" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,\"eos_token_id\":100}",
		  "\"eos_token_id\"" },
		{ "{" LLAMA REQUIRED ",\"num_attention_heads\":4,"
		  "\"eos_token_id\":[1,1,1,1,1,1,1,1,1]}",
		  "more than 8" },
	};
	struct model_config c;
	char err[REPORT_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		int rc = parse(wrong[i].text, &c, err);

		if (rc != -EINVAL || strncmp(err, "FILE: ", 6) != 0 || !strstr(err, wrong[i].says))
			fail_msg("%s: %d, \"%s\"", wrong[i].text, rc, err);
	}
}

static void expect_refused(const char *folder, int error, const char *says)
{
	struct model *m = NULL;
	char err[REPORT_BYTES] = "";
	int rc = model_open(folder, NULL, &m, err, sizeof(err));

	if (rc != error || !strstr(err, folder) || !strstr(err, says))
		fail_msg("%s: %d, \"%s\"", says, rc, err);
	assert_null(m);
}

static void replace(const char *folder, const char *name, const char *text)
{
	char path[256];
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	(void)unlink(path);
	if (!text)
		return;
	f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
	assert_int_equal(fclose(f), 0);
}

/* A copy of its config.json with one text replaced by another. */
static void edit_config(const char *folder, const char *from, const char *to)
{
	char path[256], text[2048], edited[2048], *at;
	size_t bytes;
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/config.json", folder);
	f = fopen(path, "r");
	assert_non_null(f);
	bytes = fread(text, 1, sizeof(text) - 1, f);
	(void)fclose(f);
	text[bytes] = '\0';
	at = strstr(text, from);
	assert_non_null(at);
	(void)snprintf(edited, sizeof(edited), "%.*s%s%s", (int)(at - text), text, to,
		       at + strlen(from));
	replace(folder, "config.json", edited);
}

static void test_says_which_file(void **state)
{
	struct tiny_model *t = tiny_model_new(0);
	const char *folder = tiny_model_folder(t);

	(void)state;
	edit_config(folder, "\"num_hidden_layers\":3", "\"num_hidden_layers\":4");
	expect_refused(folder, -EINVAL, "no tensor model.layers.3.self_attn.q_proj.weight");
	edit_config(folder, "\"num_hidden_layers\":4", "\"num_hidden_layers\":3");
	edit_config(folder, "\"intermediate_size\":80", "\"intermediate_size\":96");
	expect_refused(folder, -EINVAL,
		       "tensor model.layers.0.mlp.gate_proj.weight: its shape is not the [96, 48]");
	edit_config(folder, "\"intermediate_size\":96", "\"intermediate_size\":80");
	edit_config(folder, "\"tie_word_embeddings\":true", "\"tie_word_embeddings\":false");
	expect_refused(folder, -EINVAL, "no tensor lm_head.weight");
	replace(folder, "model.safetensors", "short");
	expect_refused(folder, -EINVAL, "/model.safetensors: only 5 bytes");
	replace(folder, "model.safetensors", NULL);
	expect_refused(folder, -ENOENT, "/model.safetensors: No such file");
	replace(folder, "model.safetensors.index.json", "{}");
	expect_refused(folder, -EINVAL, "/model.safetensors.index.json: no \"weight_map\"");
	replace(folder, "model.safetensors.index.json", "{\"weight_map\":{\"x\":\"../y\"}}");
	expect_refused(folder, -EINVAL, "weight_map: x is in no file of the folder");
	replace(folder, "model.safetensors.index.json", "{\"weight_map\":{\"x\":\"y\"}}");
	expect_refused(folder, -ENOENT, "/y: No such file");
	replace(folder, "config.json", NULL);
	expect_refused(folder, -ENOENT, "/config.json: No such file");
	tiny_model_free(t);
	expect_refused("/nonexistent", -ENOENT, "/nonexistent/config.json: No such file");
	assert_null(model_close(NULL));
}

static void put(char *at, const char *text)
{
	while (*text)
		*at++ = *text++;
}

static void test_npy(void **state)
{
	static const char good[] = "\x93NUMPY\x01\x00\x3b\x00"
				   "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), } \n"
				   "\x05\0\0\0\x00\x01\0\0\xff\xff\xff\x7f";
	const struct report none = { .subject = "FILE" };
	char bad[sizeof(good)];
	int32_t ids[3] = { 0 };

	(void)state;
	assert_int_equal(npy_tokens(&none, good, sizeof(good) - 1, 0, 3, ids), 0);
	assert_int_equal(ids[0], 5);
	assert_int_equal(ids[1], 256);
	assert_int_equal(ids[2], INT32_MAX);
	assert_int_equal(npy_tokens(&none, good, sizeof(good) - 1, 1, 1, ids), 0);
	assert_int_equal(ids[0], 256);
	assert_int_equal(npy_tokens(&none, good, sizeof(good) - 1, 1, 3, ids), -EINVAL);
	assert_int_equal(npy_tokens(&none, good, sizeof(good) - 1, 4, 0, ids), -EINVAL);
	for (size_t cut = 0; cut < sizeof(good) - 1; cut++) {
		char *copy = malloc(cut + 1);

		assert_non_null(copy);
		memcpy(copy, good, cut);
		copy[cut] = '\0';
		assert_int_equal(npy_tokens(&none, copy, cut, 0, 1, ids), -EINVAL);
		free(copy);
	}
	memcpy(bad, good, sizeof(good));
	bad[sizeof(good) - 2] = (char)0xff; /* the last one negative */
	assert_int_equal(npy_tokens(&none, bad, sizeof(good) - 1, 0, 3, ids), -EINVAL);
	assert_int_equal(npy_tokens(&none, bad, sizeof(good) - 1, 0, 2, ids), 0);
	memcpy(bad, good, sizeof(good));
	put(strstr(bad + 10, "<i4"), "<f4");
	assert_int_equal(npy_tokens(&none, bad, sizeof(good) - 1, 0, 1, ids), -EINVAL);
	memcpy(bad, good, sizeof(good));
	put(strstr(bad + 10, "(3,)"), "(3 )");
	assert_int_equal(npy_tokens(&none, bad, sizeof(good) - 1, 0, 1, ids), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_says_which_field),
		cmocka_unit_test(test_says_which_file),
		cmocka_unit_test(test_npy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
