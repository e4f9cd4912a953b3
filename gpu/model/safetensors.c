/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors.c - read and write .safetensors files (layout in the format's own documentation):
 * a little-endian u64 header length, that many bytes of JSON, then the tensors' bytes, no holes.
 *
 * Runs in the caller's thread; keeps no state outside struct safetensors.
 */
#include "gpu/model/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "gpu/model/report.h"

#define LENGTH_BYTES 8u			    /* of the u64 before the header */
#define JSON_INTEGER_MAX 9007199254740992.0 /* 2^53: beyond it a JSON double is not exact */

struct safetensors {
	void *map; /* owned; NULL when the bytes are borrowed */
	size_t map_bytes;
	cJSON *header;				   /* owned; holds every name and the metadata */
	struct safetensors_tensor *tensors;	   /* owned; by offset */
	const struct safetensors_tensor **by_name; /* owned; the same tensors by strcmp of name */
	size_t count;
};

static const struct {
	const char *name;
	uint32_t bytes;
} dtypes[] = {
	{ "BF16", 2 },	  { "BOOL", 1 },    { "F16", 2 }, { "F32", 4 }, { "F64", 8 },
	{ "F8_E4M3", 1 }, { "F8_E5M2", 1 }, { "I16", 2 }, { "I32", 4 }, { "I64", 8 },
	{ "I8", 1 },	  { "U16", 2 },	    { "U32", 4 }, { "U64", 8 }, { "U8", 1 },
};

static const char *dtype_intern(const char *name, uint32_t *ret_bytes)
{
	for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
		if (strcmp(dtypes[i].name, name) == 0) {
			*ret_bytes = dtypes[i].bytes;
			return dtypes[i].name;
		}
	}
	return NULL;
}

uint32_t safetensors_dtype_bytes(const char *dtype)
{
	uint32_t bytes = 0;

	(void)dtype_intern(dtype, &bytes);
	return bytes;
}

/* A JSON number that is an exact integer in 0..2^53. */
static bool json_u64(const cJSON *json, uint64_t *ret)
{
	double d;

	if (!cJSON_IsNumber(json))
		return false;
	d = json->valuedouble;
	if (!(d >= 0 && d <= JSON_INTEGER_MAX) || (double)(uint64_t)d != d)
		return false;
	*ret = (uint64_t)d;
	return true;
}

static bool tensor_bytes(const struct safetensors_tensor *t, uint64_t *ret)
{
	uint64_t bytes = safetensors_dtype_bytes(t->dtype);

	for (uint32_t i = 0; i < t->dims_count; i++)
		if (__builtin_mul_overflow(bytes, t->dims[i], &bytes))
			return false;
	*ret = bytes;
	return true;
}

static int parse_shape(const struct report *r, const cJSON *shape, struct safetensors_tensor *t)
{
	const cJSON *dim;

	if (!cJSON_IsArray(shape))
		return report_fail(r, -EINVAL, "tensor %.64s: no \"shape\" array", t->name);
	cJSON_ArrayForEach(dim, shape) {
		if (t->dims_count == SAFETENSORS_DIMS_MAX)
			return report_fail(r, -EINVAL, "tensor %.64s: more than %u dimensions",
					   t->name, SAFETENSORS_DIMS_MAX);
		if (!json_u64(dim, &t->dims[t->dims_count]))
			return report_fail(r, -EINVAL, "tensor %.64s: dimension %u is not a size",
					   t->name, t->dims_count);
		t->dims_count++;
	}
	return 0;
}

/* One entry of the header; data becomes base + begin, bytes becomes end - begin. */
static int parse_tensor(const struct report *r, const cJSON *entry, const uint8_t *base,
			uint64_t base_bytes, struct safetensors_tensor *t)
{
	const cJSON *dtype, *range;
	uint64_t begin, end, want;
	uint32_t dtype_bytes;
	int rc;

	t->name = entry->string;
	if (!cJSON_IsObject(entry))
		return report_fail(r, -EINVAL, "tensor %.64s: its header entry is not an object",
				   t->name);
	dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
	if (!cJSON_IsString(dtype))
		return report_fail(r, -EINVAL, "tensor %.64s: no \"dtype\"", t->name);
	t->dtype = dtype_intern(dtype->valuestring, &dtype_bytes);
	if (!t->dtype)
		return report_fail(r, -EINVAL, "tensor %.64s: unknown dtype %.16s", t->name,
				   dtype->valuestring);
	rc = parse_shape(r, cJSON_GetObjectItemCaseSensitive(entry, "shape"), t);
	if (rc < 0)
		return rc;
	range = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
	if (!cJSON_IsArray(range) || cJSON_GetArraySize(range) != 2 ||
	    !json_u64(range->child, &begin) || !json_u64(range->child->next, &end) || begin > end)
		return report_fail(r, -EINVAL, "tensor %.64s: \"data_offsets\" is not [begin, end]",
				   t->name);
	if (end > base_bytes)
		return report_fail(
			r, -EINVAL, "tensor %.64s: ends at byte %llu of %llu: file cut short?",
			t->name, (unsigned long long)end, (unsigned long long)base_bytes);
	if (!tensor_bytes(t, &want) || want != end - begin)
		return report_fail(r, -EINVAL,
				   "tensor %.64s: shape and dtype do not make %llu bytes", t->name,
				   (unsigned long long)(end - begin));
	t->data = base + begin;
	t->bytes = want;
	return 0;
}

/* By position, empty tensors before the one that starts at the same byte. */
static int compare_place(const void *a, const void *b)
{
	const struct safetensors_tensor *x = a, *y = b;
	const uint8_t *xd = x->data, *yd = y->data;

	if (xd != yd)
		return xd < yd ? -1 : 1;
	return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int compare_name(const void *a, const void *b)
{
	const struct safetensors_tensor *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

/* Every byte belongs to exactly one tensor and every name is unique. */
static int check_layout(const struct report *r, struct safetensors *st, const uint8_t *base,
			uint64_t base_bytes)
{
	const uint8_t *next = base;

	qsort(st->tensors, st->count, sizeof(st->tensors[0]), compare_place);
	for (size_t i = 0; i < st->count; i++) {
		const struct safetensors_tensor *t = &st->tensors[i];

		if (t->data != next)
			return report_fail(r, -EINVAL, "tensor %.64s: %s before it", t->name,
					   (const uint8_t *)t->data < next ? "overlaps the tensor"
									   : "unused bytes");
		next += t->bytes;
		st->by_name[i] = t;
	}
	if (next != base + base_bytes)
		return report_fail(r, -EINVAL, "%llu bytes after the last tensor",
				   (unsigned long long)(base + base_bytes - next));
	qsort(st->by_name, st->count, sizeof(struct safetensors_tensor *), compare_name);
	for (size_t i = 1; i < st->count; i++)
		if (strcmp(st->by_name[i - 1]->name, st->by_name[i]->name) == 0)
			return report_fail(r, -EINVAL, "tensor %.64s: named twice",
					   st->by_name[i]->name);
	return 0;
}

static int check_metadata(const struct report *r, const cJSON *meta)
{
	const cJSON *item;

	if (!cJSON_IsObject(meta))
		return report_fail(r, -EINVAL, "__metadata__ is not an object");
	cJSON_ArrayForEach(item, meta)
		if (!cJSON_IsString(item))
			return report_fail(r, -EINVAL, "__metadata__: %.64s is not a string",
					   item->string);
	return 0;
}

static int parse_entries(const struct report *r, struct safetensors *st, const uint8_t *base,
			 uint64_t base_bytes)
{
	size_t entries = 0;
	const cJSON *entry;
	int rc;

	cJSON_ArrayForEach(entry, st->header)
		entries++;
	st->tensors = calloc(entries + 1, sizeof(st->tensors[0]));
	st->by_name = calloc(entries + 1, sizeof(struct safetensors_tensor *));
	if (!st->tensors || !st->by_name)
		return report_fail(r, -ENOMEM, "no memory for %zu tensors", entries);
	cJSON_ArrayForEach(entry, st->header) {
		if (strcmp(entry->string, "__metadata__") == 0)
			rc = check_metadata(r, entry);
		else
			rc = parse_tensor(r, entry, base, base_bytes, &st->tensors[st->count++]);
		if (rc < 0)
			return rc;
	}
	return check_layout(r, st, base, base_bytes);
}

/* The header as JSON, from a NUL-terminated copy: cJSON may look one byte past its length. */
static int parse_header(const struct report *r, const uint8_t *text, size_t text_bytes, cJSON **ret)
{
	const char *end = NULL;
	cJSON *json;
	char *copy;

	copy = malloc(text_bytes + 1);
	if (!copy)
		return report_fail(r, -ENOMEM, "no memory for a header of %zu bytes", text_bytes);
	memcpy(copy, text, text_bytes);
	copy[text_bytes] = '\0';
	json = cJSON_ParseWithLengthOpts(copy, text_bytes + 1, &end, false);
	if (json)
		while (end < copy + text_bytes && *end == ' ')
			end++;
	if (!cJSON_IsObject(json) || end != copy + text_bytes) {
		cJSON_Delete(json);
		free(copy);
		return report_fail(r, -EINVAL, "the header is not one JSON object");
	}
	free(copy);
	*ret = json;
	return 0;
}

static int parse(const struct report *r, struct safetensors *st, const void *buf, size_t bytes)
{
	const uint8_t *p = buf;
	uint64_t header_bytes = 0;
	int rc;

	if (bytes < LENGTH_BYTES)
		return report_fail(r, -EINVAL, "only %zu bytes: not a safetensors file", bytes);
	for (uint32_t i = 0; i < LENGTH_BYTES; i++)
		header_bytes |= (uint64_t)p[i] << (8 * i);
	if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX || header_bytes > bytes - LENGTH_BYTES)
		return report_fail(r, -EINVAL,
				   "header of %llu bytes in a file of %zu: not a safetensors file",
				   (unsigned long long)header_bytes, bytes);
	rc = parse_header(r, p + LENGTH_BYTES, (size_t)header_bytes, &st->header);
	if (rc < 0)
		return rc;
	return parse_entries(r, st, p + LENGTH_BYTES + header_bytes,
			     bytes - LENGTH_BYTES - header_bytes);
}

int safetensors_parse(const void *buf, size_t bytes, const char *name, struct safetensors **ret,
		      char *err, size_t err_bytes)
{
	const struct report r = { .subject = name, .err = err, .err_bytes = err_bytes };
	struct safetensors *st;
	int rc;

	st = calloc(1, sizeof(*st));
	if (!st)
		return report_fail(&r, -ENOMEM, "no memory");
	rc = parse(&r, st, buf, bytes);
	if (rc < 0) {
		safetensors_close(st);
		return rc;
	}
	*ret = st;
	return 0;
}

static int map_file(const struct report *r, const char *path, void **ret_map, size_t *ret_bytes)
{
	struct stat sb;
	void *map;
	int fd, rc;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return report_fail(r, -errno, "%s", strerror(errno));
	if (fstat(fd, &sb) < 0) {
		rc = report_fail(r, -errno, "%s", strerror(errno));
	} else if (!S_ISREG(sb.st_mode)) {
		rc = report_fail(r, -EINVAL, "not a regular file");
	} else if (sb.st_size < (off_t)LENGTH_BYTES) {
		rc = report_fail(r, -EINVAL, "only %lld bytes: not a safetensors file",
				 (long long)sb.st_size);
	} else {
		map = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED) {
			rc = report_fail(r, -errno, "mmap: %s", strerror(errno));
		} else {
			*ret_map = map;
			*ret_bytes = (size_t)sb.st_size;
			rc = 0;
		}
	}
	(void)close(fd);
	return rc;
}

int safetensors_open(const char *path, struct safetensors **ret, char *err, size_t err_bytes)
{
	const struct report r = { .subject = path, .err = err, .err_bytes = err_bytes };
	struct safetensors *st = NULL;
	void *map = NULL;
	size_t bytes = 0;
	int rc;

	rc = map_file(&r, path, &map, &bytes);
	if (rc < 0)
		return rc;
	rc = safetensors_parse(map, bytes, path, &st, err, err_bytes);
	if (rc < 0) {
		(void)munmap(map, bytes);
		return rc;
	}
	assert(st);
	st->map = map;
	st->map_bytes = bytes;
	*ret = st;
	return 0;
}

struct safetensors *safetensors_close(struct safetensors *st)
{
	if (!st)
		return NULL;
	if (st->map)
		(void)munmap(st->map, st->map_bytes);
	cJSON_Delete(st->header);
	free(st->tensors);
	free(st->by_name);
	free(st);
	return NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name)
{
	const struct safetensors_tensor key = { .name = name }, *want = &key;
	const struct safetensors_tensor **hit;

	hit = bsearch(&want, st->by_name, st->count, sizeof(struct safetensors_tensor *),
		      compare_name);
	return hit ? *hit : NULL;
}

size_t safetensors_count(const struct safetensors *st)
{
	return st->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *st, size_t i)
{
	assert(i < st->count);
	return &st->tensors[i];
}

const char *safetensors_metadata(const struct safetensors *st, const char *key)
{
	const cJSON *meta = cJSON_GetObjectItemCaseSensitive(st->header, "__metadata__");

	return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(meta, key));
}

static bool header_add(cJSON *header, const struct safetensors_tensor *t, uint64_t begin)
{
	cJSON *entry, *shape, *range;
	bool ok = true;

	entry = cJSON_AddObjectToObject(header, t->name);
	if (!entry || !cJSON_AddStringToObject(entry, "dtype", t->dtype))
		return false;
	shape = cJSON_AddArrayToObject(entry, "shape");
	range = cJSON_AddArrayToObject(entry, "data_offsets");
	if (!shape || !range)
		return false;
	for (uint32_t i = 0; i < t->dims_count; i++)
		ok = cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->dims[i])) && ok;
	ok = cJSON_AddItemToArray(range, cJSON_CreateNumber((double)begin)) && ok;
	return cJSON_AddItemToArray(range, cJSON_CreateNumber((double)(begin + t->bytes))) && ok;
}

/* The header's JSON text, to be freed with cJSON_free(). */
static int header_print(const struct report *r, const struct safetensors_tensor *tensors,
			size_t count, const char *const *meta, size_t meta_count, char **ret)
{
	cJSON *header = cJSON_CreateObject();
	cJSON *pairs = cJSON_AddObjectToObject(header, "__metadata__");
	uint64_t off = 0, bytes;
	bool ok = pairs != NULL;
	char *text = NULL;
	int rc = 0;

	for (size_t i = 0; ok && i < meta_count; i++)
		ok = cJSON_AddStringToObject(pairs, meta[2 * i], meta[2 * i + 1]) != NULL;
	for (size_t i = 0; ok && rc == 0 && i < count; i++) {
		if (tensors[i].dims_count > SAFETENSORS_DIMS_MAX ||
		    !tensor_bytes(&tensors[i], &bytes) || bytes != tensors[i].bytes)
			rc = report_fail(r, -EINVAL,
					 "tensor %.64s: shape and dtype do not make its bytes",
					 tensors[i].name);
		else
			ok = header_add(header, &tensors[i], off);
		off += tensors[i].bytes;
	}
	if (ok && rc == 0)
		text = cJSON_PrintUnformatted(header);
	cJSON_Delete(header);
	if (rc < 0)
		return rc;
	if (!text)
		return report_fail(r, -ENOMEM, "no memory for the header");
	*ret = text;
	return 0;
}

static bool write_all(FILE *f, const char *text, const struct safetensors_tensor *tensors,
		      size_t count)
{
	size_t text_bytes = strlen(text), pad = -text_bytes & 7;
	uint64_t header_bytes = text_bytes + pad;
	uint8_t length[LENGTH_BYTES];

	for (uint32_t i = 0; i < LENGTH_BYTES; i++)
		length[i] = (uint8_t)(header_bytes >> (8 * i));
	if (fwrite(length, 1, sizeof(length), f) != sizeof(length) ||
	    fwrite(text, 1, text_bytes, f) != text_bytes || fwrite("       ", 1, pad, f) != pad)
		return false;
	for (size_t i = 0; i < count; i++)
		if (fwrite(tensors[i].data, 1, tensors[i].bytes, f) != tensors[i].bytes)
			return false;
	return fflush(f) == 0;
}

static int write_file(const struct report *r, const char *path, const char *text,
		      const struct safetensors_tensor *tensors, size_t count)
{
	size_t part_bytes = strlen(path) + sizeof(".part");
	char *part = malloc(part_bytes);
	FILE *f;
	int rc = 0;

	if (!part)
		return report_fail(r, -ENOMEM, "no memory");
	(void)snprintf(part, part_bytes, "%s.part", path);
	f = fopen(part, "we");
	if (!f) {
		rc = report_fail(r, -errno, "%s: %s", part, strerror(errno));
		free(part);
		return rc;
	}
	if (!write_all(f, text, tensors, count))
		rc = report_fail(r, -errno, "write: %s", strerror(errno));
	if (fclose(f) != 0 && rc == 0)
		rc = report_fail(r, -errno, "close: %s", strerror(errno));
	if (rc == 0 && rename(part, path) < 0)
		rc = report_fail(r, -errno, "rename: %s", strerror(errno));
	if (rc < 0)
		(void)unlink(part);
	free(part);
	return rc;
}

int safetensors_write(const char *path, const struct safetensors_tensor *tensors, size_t count,
		      const char *const *meta, size_t meta_count, char *err, size_t err_bytes)
{
	const struct report r = { .subject = path, .err = err, .err_bytes = err_bytes };
	char *text = NULL;
	int rc;

	rc = header_print(&r, tensors, count, meta, meta_count, &text);
	if (rc < 0)
		return rc;
	assert(text);
	rc = write_file(&r, path, text, tensors, count);
	cJSON_free(text);
	return rc;
}
