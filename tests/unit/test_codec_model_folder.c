/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_codec_model_folder.c - the model speculator loads no wrong weights: what is wrong is said in one line
 * with the tensor's name.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu/codec/model.h"
#include "gpu/model/safetensors.h"
#include "tests/lib/tiny_model.h"

#define TENSORS_MAX 64u

enum edit { DROP, RESHAPE, POISON, INTEGERS, WIDEN };

static void path_in(const struct tiny_model *t, const char *file, char *ret)
{
	(void)snprintf(ret, 256, "%s/%s", tiny_model_folder(t), file);
}

/* The same bf16 numbers as F32. */
static void widen(struct safetensors_tensor *t, void **ret_owned)
{
	const size_t count = t->bytes / 2u;
	uint32_t *to = malloc(count * sizeof(*to));

	assert_non_null(to);
	for (size_t i = 0; i < count; i++) {
		uint16_t x;

		memcpy(&x, (const uint8_t *)t->data + 2u * i, sizeof(x));
		to[i] = (uint32_t)x << 16;
	}
	t->dtype = "F32";
	t->data = *ret_owned = to;
	t->bytes = count * sizeof(*to);
}

/* One tensor of a file changed; what the file was mapped from is replaced, not written to. */
static void rewrite(const struct tiny_model *t, const char *file, const char *name, enum edit edit)
{
	struct safetensors_tensor tensors[TENSORS_MAX];
	char path[256], err[SAFETENSORS_ERR_BYTES];
	struct safetensors *st = NULL;
	void *owned = NULL;
	size_t count = 0;

	path_in(t, file, path);
	assert_int_equal(safetensors_open(path, &st, err, sizeof(err)), 0);
	for (size_t i = 0; i < safetensors_count(st); i++) {
		struct safetensors_tensor *to = &tensors[count];

		assert_true(count < TENSORS_MAX);
		*to = *safetensors_at(st, i);
		if (strcmp(to->name, name) == 0) {
			if (edit == DROP)
				continue;
			if (edit == RESHAPE) {
				to->dims[0] /= 2u;
				to->bytes /= 2u;
			} else if (edit == POISON) {
				owned = malloc(to->bytes);
				assert_non_null(owned);
				memcpy(owned, to->data, to->bytes);
				memcpy((uint8_t *)owned + to->bytes - 2u, "\xc0\x7f", 2);
				to->data = owned;
			} else if (edit == INTEGERS) {
				to->dtype = "I16";
			} else {
				widen(to, &owned);
			}
		}
		count++;
	}
	assert_int_equal(safetensors_write(path, tensors, count, NULL, 0, err, sizeof(err)), 0);
	safetensors_close(st);
	free(owned);
}

static void expect_refused(const char *folder, const char *says)
{
	struct mspec_model *m = NULL;
	char err[MODEL_ERR_BYTES] = "";
	int r = mspec_model_load(folder, false, &m, err, sizeof(err));

	if (r >= 0 || !strstr(err, says))
		fail_msg("%s: %d, \"%s\"", says, r, err);
	assert_null(m);
}

static void check_edit(const char *name, enum edit edit, const char *says)
{
	struct tiny_model *t = tiny_model_new(0);

	rewrite(t, "model.safetensors", name, edit);
	expect_refused(tiny_model_folder(t), says);
	tiny_model_free(t);
}

static void test_wrong_tensors(void **state)
{
	(void)state;
	check_edit("model.layers.1.self_attn.k_proj.weight", DROP,
		   "no tensor model.layers.1.self_attn.k_proj.weight");
	check_edit("model.layers.2.self_attn.q_norm.weight", DROP,
		   "no tensor model.layers.2.self_attn.q_norm.weight");
	check_edit("model.layers.1.mlp.down_proj.weight", RESHAPE,
		   "tensor model.layers.1.mlp.down_proj.weight: its shape is not the [48, 80]");
	check_edit("model.layers.0.input_layernorm.weight", RESHAPE,
		   "tensor model.layers.0.input_layernorm.weight: its shape is not the [1, 48]");
	check_edit("model.layers.0.self_attn.o_proj.weight", POISON,
		   "tensor model.layers.0.self_attn.o_proj.weight: row 47 is not finite");
	check_edit("model.embed_tokens.weight", POISON,
		   "tensor model.embed_tokens.weight: row 95 is not finite");
	check_edit("model.layers.0.post_attention_layernorm.weight", POISON,
		   "tensor model.layers.0.post_attention_layernorm.weight: 47 is not a norm's");
	check_edit("model.layers.0.mlp.up_proj.weight", INTEGERS,
		   "tensor model.layers.0.mlp.up_proj.weight: dtype I16");
}

/* Weights in F32 are as good; the digest tells them from others. */
static void test_other_types(void **state)
{
	struct tiny_model *t = tiny_model_new(2);
	struct mspec_model *a = NULL, *b = NULL;
	char err[MODEL_ERR_BYTES] = "";

	(void)state;
	assert_int_equal(mspec_model_load(tiny_model_folder(t), false, &a, err, sizeof(err)), 0);
	rewrite(t, "model.safetensors", "model.layers.0.mlp.up_proj.weight", WIDEN);
	assert_int_equal(mspec_model_load(tiny_model_folder(t), false, &b, err, sizeof(err)), 0);
	assert_memory_not_equal(mspec_model_digest(a), mspec_model_digest(b), MODEL_DIGEST_BYTES);
	mspec_model_free(a);
	mspec_model_free(b);
	tiny_model_free(t);
}

static void test_wrong_files(void **state)
{
	struct tiny_model *t = tiny_model_new(1);
	char path[256];
	FILE *f;

	(void)state;
	path_in(t, "b.safetensors", path);
	assert_int_equal(truncate(path, 5000), 0);
	expect_refused(tiny_model_folder(t), "b.safetensors: ");
	assert_int_equal(unlink(path), 0);
	expect_refused(tiny_model_folder(t), "b.safetensors: No such file");
	path_in(t, "config.json", path);
	f = fopen(path, "w");
	assert_non_null(f);
	(void)fputs("{\"architectures\":[\"GPT2LMHeadModel\"]}", f);
	assert_int_equal(fclose(f), 0);
	expect_refused(tiny_model_folder(t), "architecture GPT2LMHeadModel");
	tiny_model_free(t);
	expect_refused("/nonexistent", "/nonexistent/config.json: No such file");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_wrong_tensors),
		cmocka_unit_test(test_other_types),
		cmocka_unit_test(test_wrong_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
