/* SPDX-License-Identifier: Apache-2.0 */
/*
 * npy.c - the little of the .npy format that a list of token ids needs: magic, version, a header that
 * is a Python dictionary, then the integers.
 */
#include "tools/npy.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/model/report.h"

#define MAGIC "\x93NUMPY"
#define MAGIC_BYTES 6u

struct array {
	const uint8_t *data;
	uint64_t count;
	uint32_t item_bytes;
	bool is_signed;
};

/* Text after "'key':" in the header and its spaces, or NULL. */
static const char *value_of(const char *header, const char *key)
{
	char quoted[32];
	const char *at;

	(void)snprintf(quoted, sizeof(quoted), "'%s':", key);
	at = strstr(header, quoted);
	if (!at)
		return NULL;
	at += strlen(quoted);
	return at + strspn(at, " ");
}

static int parse_header(const struct report *r, const char *header, struct array *a)
{
	static const struct {
		const char *descr;
		uint32_t bytes;
		bool is_signed;
	} kinds[] = {
		{ "'<i4'", 4, true },  { "'<i8'", 8, true }, { "'<u4'", 4, false },
		{ "'<u8'", 8, false }, { "'<i2'", 2, true }, { "'<u2'", 2, false },
	};
	const char *descr = value_of(header, "descr"), *shape = value_of(header, "shape");
	char *end;

	for (size_t i = 0; descr && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (strncmp(descr, kinds[i].descr, strlen(kinds[i].descr)) == 0) {
			a->item_bytes = kinds[i].bytes;
			a->is_signed = kinds[i].is_signed;
		}
	}
	if (!a->item_bytes)
		return report_fail(r, -EINVAL, "npy: not of little-endian integers");
	if (!shape || *shape != '(' || shape[1] < '0' || shape[1] > '9')
		return report_fail(r, -EINVAL, "npy: no shape");
	errno = 0;
	a->count = strtoull(shape + 1, &end, 10);
	if (errno || strncmp(end, ",)", 2) != 0)
		return report_fail(r, -EINVAL, "npy: not of one dimension");
	return 0;
}

static int parse(const struct report *r, const char *text, size_t bytes, struct array *a)
{
	const uint8_t *p = (const uint8_t *)text;
	size_t length_bytes, header_bytes, data_bytes;
	char *header;
	int rc;

	if (bytes < 12 || memcmp(text, MAGIC, MAGIC_BYTES) != 0 || p[6] < 1 || p[6] > 3)
		return report_fail(r, -EINVAL, "not a .npy file");
	length_bytes = p[6] == 1 ? 2 : 4;
	header_bytes = (size_t)p[8] | (size_t)p[9] << 8;
	if (length_bytes == 4)
		header_bytes |= (size_t)p[10] << 16 | (size_t)p[11] << 24;
	if (header_bytes > bytes - 8 - length_bytes)
		return report_fail(r, -EINVAL, "npy: the header is cut short");
	header = strndup(text + 8 + length_bytes, header_bytes);
	if (!header)
		return report_fail(r, -ENOMEM, "no memory");
	rc = parse_header(r, header, a);
	free(header);
	if (rc < 0)
		return rc;
	assert(a->item_bytes);
	data_bytes = bytes - 8 - length_bytes - header_bytes;
	if (a->count != data_bytes / a->item_bytes || data_bytes % a->item_bytes != 0)
		return report_fail(r, -EINVAL, "npy: %zu bytes of data are not %llu integers",
				   data_bytes, (unsigned long long)a->count);
	a->data = p + bytes - data_bytes;
	return 0;
}

/* What is negative comes out above INT32_MAX. */
static uint64_t item(const struct array *a, size_t i)
{
	const uint8_t *p = a->data + i * a->item_bytes;
	uint64_t v = 0;

	for (uint32_t b = 0; b < a->item_bytes; b++)
		v |= (uint64_t)p[b] << (8 * b);
	if (a->is_signed && p[a->item_bytes - 1] & 0x80)
		return UINT64_MAX;
	return v;
}

int npy_tokens(const struct report *r, const char *text, size_t bytes, size_t first, size_t count,
	       int32_t *ret)
{
	struct array a = { .data = NULL };
	int rc;

	rc = parse(r, text, bytes, &a);
	if (rc < 0)
		return rc;
	if (first > a.count || count > a.count - first)
		return report_fail(r, -EINVAL, "has %llu tokens, %zu from %zu on were asked for",
				   (unsigned long long)a.count, count, first);
	for (size_t i = 0; i < count; i++) {
		uint64_t v = item(&a, first + i);

		if (v > INT32_MAX)
			return report_fail(r, -EINVAL, "token %zu is not an id", first + i);
		ret[i] = (int32_t)v;
	}
	return 0;
}
