/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_safetensors.c - files written come back equal; everything a header can get wrong is refused
 * with a line that names it.
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

#include "gpu/model/safetensors.h"
#include "tests/lib/rng.h"

/* Without the NUL. */
static void put(uint8_t *at, const char *text)
{
	while (*text)
		*at++ = (uint8_t)*text++;
}

/* Length, header, data_bytes of data; to be freed. */
static uint8_t *make_file(const char *header, size_t data_bytes, size_t *ret_bytes)
{
	size_t header_bytes = strlen(header), bytes = 8 + header_bytes + data_bytes;
	uint8_t *file = calloc(1, bytes);

	assert_non_null(file);
	for (int i = 0; i < 8; i++)
		file[i] = (uint8_t)((uint64_t)header_bytes >> (8 * i));
	put(file + 8, header);
	for (size_t i = 0; i < data_bytes; i++)
		file[8 + header_bytes + i] = (uint8_t)(i * 7 + 1);
	*ret_bytes = bytes;
	return file;
}

/* Unaligned on purpose: one byte into an allocation of the exact size. */
static int parse_header(const char *header, size_t data_bytes, struct safetensors **ret,
			uint8_t **ret_file, char *err)
{
	size_t bytes;
	uint8_t *file = make_file(header, data_bytes, &bytes), *moved = malloc(bytes + 1);
	int rc;

	assert_non_null(moved);
	memcpy(moved + 1, file, bytes);
	free(file);
	err[0] = '\0';
	rc = safetensors_parse(moved + 1, bytes, "FILE", ret, err, SAFETENSORS_ERR_BYTES);
	*ret_file = moved;
	return rc;
}

static void test_reads_what_is_there(void **state)
{
	const char *header =
		"{\"__metadata__\":{\"layout\":\"token,head,dim\"},"
		"\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[12,16]},"
		"\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
		"\"none\":{\"dtype\":\"I64\",\"shape\":[4,0],\"data_offsets\":[12,12]}}  ";
	const struct safetensors_tensor *t;
	char err[SAFETENSORS_ERR_BYTES];
	struct safetensors *st = NULL;
	uint8_t *file;

	(void)state;
	assert_int_equal(parse_header(header, 16, &st, &file, err), 0);
	assert_int_equal(safetensors_count(st), 3);
	assert_string_equal(safetensors_at(st, 0)->name, "a");
	assert_string_equal(safetensors_at(st, 1)->name, "none");
	assert_string_equal(safetensors_at(st, 2)->name, "b");
	t = safetensors_find(st, "a");
	assert_non_null(t);
	assert_string_equal(t->dtype, "BF16");
	assert_int_equal(t->dims_count, 2);
	assert_int_equal(t->dims[0], 2);
	assert_int_equal(t->dims[1], 3);
	assert_int_equal(t->bytes, 12);
	assert_int_equal(*(const uint8_t *)t->data, 1);
	assert_int_equal(safetensors_find(st, "b")->dims_count, 0);
	assert_null(safetensors_find(st, "c"));
	assert_null(safetensors_find(st, "__metadata__"));
	assert_string_equal(safetensors_metadata(st, "layout"), "token,head,dim");
	assert_null(safetensors_metadata(st, "rope"));
	st = safetensors_close(st);
	assert_null(st);
	free(file);
}

static const struct {
	const char *header;
	size_t data_bytes;
	const char *says; /* part of the line */
} wrong[] = {
	{ "", 0, "not one JSON object" },
	{ "[]", 0, "not one JSON object" },
	{ "{", 0, "not one JSON object" },
	{ "{} {}", 0, "not one JSON object" },
	{ "{}", 1, "1 bytes after the last tensor" },
	{ "{\"__metadata__\":[]}", 0, "__metadata__ is not an object" },
	{ "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__: a is not a string" },
	{ "{\"x\":1}", 0, "tensor x: its header entry is not an object" },
	{ "{\"x\":{}}", 0, "tensor x: no \"dtype\"" },
	{ "{\"x\":{\"dtype\":\"F7\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
	  "unknown dtype F7" },
	{ "{\"x\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "tensor x: no \"shape\"" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1,
	  "dimension 0 is not a size" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", 1,
	  "dimension 0 is not a size" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1e300],\"data_offsets\":[0,1]}}", 1,
	  "dimension 0 is not a size" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
	  "more than 8 dimensions" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "is not [begin, end]" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1,
	  "is not [begin, end]" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 1,
	  "is not [begin, end]" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,\"1\"]}}", 1,
	  "is not [begin, end]" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 1,
	  "tensor x: ends at byte 2 of 1" },
	{ "{\"x\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
	  "shape and dtype do not make 1 bytes" },
	/* 2^32 * 2^32 * 1 wraps to 0, 2^63 * 2 too */
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
	  "shape and dtype do not make 0 bytes" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
	  "\"y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
	  1, "overlaps" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2,
	  "unused bytes before it" },
	{ "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
	  "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
	  2, "named twice" },
	{ "{\"a\\nb\":1}", 0, "tensor a?b:" },
};

static void test_says_what_is_wrong(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct safetensors *const untouched = (void *)&wrong, *st = untouched;
		char err[SAFETENSORS_ERR_BYTES];
		uint8_t *file;

		assert_int_equal(
			parse_header(wrong[i].header, wrong[i].data_bytes, &st, &file, err),
			-EINVAL);
		assert_ptr_equal(st, untouched);
		if (strncmp(err, "FILE: ", 6) != 0 || !strstr(err, wrong[i].says))
			fail_msg("header %s: says \"%s\"", wrong[i].header, err);
		assert_null(strchr(err, '\n'));
		free(file);
	}
}

static void test_header_length(void **state)
{
	static const uint64_t lengths[] = { 3, 4, SAFETENSORS_HEADER_BYTES_MAX + 1ull,
					    UINT64_MAX - 7, UINT64_MAX };
	uint8_t file[8 + 2];
	struct safetensors *st = NULL;
	char err[SAFETENSORS_ERR_BYTES];

	(void)state;
	for (size_t bytes = 0; bytes < 8; bytes++)
		assert_int_equal(
			safetensors_parse("{}      ", bytes, "FILE", &st, err, sizeof(err)),
			-EINVAL);
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		for (int b = 0; b < 8; b++)
			file[b] = (uint8_t)(lengths[i] >> (8 * b));
		put(file + 8, "{}");
		assert_int_equal(
			safetensors_parse(file, sizeof(file), "FILE", &st, err, sizeof(err)),
			-EINVAL);
		assert_non_null(strstr(err, "header of "));
	}
	assert_null(st);
}

/* Every truncation of a good file is refused, and every flipped bit is refused or harmless. */
static void test_damage(void **state)
{
	const char *header = "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
			     "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[12,16]}}";
	char err[SAFETENSORS_ERR_BYTES];
	struct safetensors *st = NULL;
	size_t bytes, accepted = 0;
	uint8_t *file, *copy;

	(void)state;
	file = make_file(header, 16, &bytes);
	for (size_t cut = 0; cut < bytes; cut++) {
		copy = malloc(cut ? cut : 1);
		assert_non_null(copy);
		memcpy(copy, file, cut);
		assert_int_equal(safetensors_parse(copy, cut, "FILE", &st, err, sizeof(err)),
				 -EINVAL);
		free(copy);
	}
	for (size_t bit = 0; bit < 8 * bytes; bit++) {
		file[bit / 8] ^= (uint8_t)(1u << bit % 8);
		if (safetensors_parse(file, bytes, "FILE", &st, err, sizeof(err)) == 0) {
			for (size_t i = 0; i < safetensors_count(st); i++) {
				const struct safetensors_tensor *t = safetensors_at(st, i);

				assert_true((const uint8_t *)t->data >= file);
				assert_true((const uint8_t *)t->data + t->bytes <= file + bytes);
			}
			accepted++;
			st = safetensors_close(st);
		}
		file[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_true(accepted >= 16 * 8); /* the data's own bits are nobody's business */
	free(file);
}

static void test_write_then_open(void **state)
{
	char path[] = "/tmp/test_safetensors.XXXXXX", err[SAFETENSORS_ERR_BYTES];
	const char *meta[] = { "model", "m \"quoted\"", "layout", "token" };
	uint16_t halves[2 * 3 * 5];
	uint8_t bytes[7];
	struct safetensors_tensor tensors[3] = {
		{ "k.0", "BF16", 3, { 2, 3, 5 }, halves, sizeof(halves) },
		{ "odd", "U8", 1, { 7 }, bytes, sizeof(bytes) },
		{ "k.1", "BF16", 3, { 2, 3, 5 }, halves, sizeof(halves) },
	};
	struct safetensors *st = NULL;
	struct rng rng;
	int fd;

	(void)state;
	rng_init(&rng, 1);
	rng_fill(&rng, halves, sizeof(halves));
	rng_fill(&rng, bytes, sizeof(bytes));
	fd = mkstemp(path);
	assert_true(fd >= 0);
	(void)close(fd);
	assert_int_equal(safetensors_write(path, tensors, 3, meta, 2, err, sizeof(err)), 0);
	assert_int_equal(safetensors_open(path, &st, err, sizeof(err)), 0);
	assert_int_equal(safetensors_count(st), 3);
	for (size_t i = 0; i < 3; i++) {
		const struct safetensors_tensor *t = safetensors_at(st, i);

		assert_string_equal(t->name, tensors[i].name);
		assert_string_equal(t->dtype, tensors[i].dtype);
		assert_int_equal(t->dims_count, tensors[i].dims_count);
		assert_memory_equal(t->dims, tensors[i].dims, t->dims_count * sizeof(t->dims[0]));
		assert_int_equal(t->bytes, tensors[i].bytes);
		assert_memory_equal(t->data, tensors[i].data, t->bytes);
	}
	assert_string_equal(safetensors_metadata(st, "model"), "m \"quoted\"");
	st = safetensors_close(st);

	tensors[1].bytes = 6;
	assert_int_equal(safetensors_write(path, tensors, 3, meta, 2, err, sizeof(err)), -EINVAL);
	assert_non_null(strstr(err, "tensor odd"));
	assert_int_equal(safetensors_open(path, &st, err, sizeof(err)), 0); /* the old one */
	st = safetensors_close(st);
	assert_int_equal(unlink(path), 0);
}

static void test_open_errors(void **state)
{
	struct safetensors *st = NULL;
	char err[SAFETENSORS_ERR_BYTES], tiny[8];

	(void)state;
	assert_int_equal(safetensors_open("/nonexistent/x", &st, err, sizeof(err)), -ENOENT);
	assert_string_equal(err, "/nonexistent/x: No such file or directory");
	assert_int_equal(safetensors_open("/tmp", &st, err, sizeof(err)), -EINVAL);
	assert_string_equal(err, "/tmp: not a regular file");
	assert_int_equal(safetensors_open("/dev/null", &st, tiny, sizeof(tiny)), -EINVAL);
	assert_int_equal(strlen(tiny), sizeof(tiny) - 1);
	assert_int_equal(safetensors_open("/dev/null", &st, NULL, 0), -EINVAL);
	assert_null(st);
	assert_null(safetensors_close(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads_what_is_there),
		cmocka_unit_test(test_says_what_is_wrong),
		cmocka_unit_test(test_header_length),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_write_then_open),
		cmocka_unit_test(test_open_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
