/* SPDX-License-Identifier: Apache-2.0 */
/*
 * folder.c - finds the weight files of a folder and tensors in them.  Runs in the caller's thread.
 */
#include "gpu/model/folder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "gpu/model/file.h"

#define INDEX_BYTES_MAX (64u << 20)

struct model_folder {
	const struct report *r;			      /* borrowed */
	const char *folder;			      /* borrowed while it is opened */
	struct safetensors *shards[MODEL_SHARDS_MAX]; /* owned */
	char *names[MODEL_SHARDS_MAX];		      /* owned */
	uint32_t shards_count;
};

int model_folder_path(const struct report *r, const char *folder, const char *name, char *ret)
{
	int used = snprintf(ret, MODEL_PATH_BYTES_MAX, "%s/%s", folder, name);

	if (used < 0 || (size_t)used >= MODEL_PATH_BYTES_MAX)
		return report_fail(r, -ENAMETOOLONG, "path too long");
	return 0;
}

/* @name is a plain file name of the folder; a shard that is open already is not opened again. */
static int open_shard(struct model_folder *f, const char *name)
{
	char path[MODEL_PATH_BYTES_MAX];
	int rc;

	for (uint32_t i = 0; i < f->shards_count; i++)
		if (strcmp(f->names[i], name) == 0)
			return 0;
	if (f->shards_count == MODEL_SHARDS_MAX)
		return report_fail(f->r, -EINVAL, "more than %u shards", MODEL_SHARDS_MAX);
	rc = model_folder_path(f->r, f->folder, name, path);
	if (rc < 0)
		return rc;
	rc = safetensors_open(path, &f->shards[f->shards_count], f->r->err, f->r->err_bytes);
	if (rc < 0)
		return rc;
	f->names[f->shards_count] = strdup(name);
	if (!f->names[f->shards_count++])
		return report_fail(f->r, -ENOMEM, "no memory");
	return 0;
}

static int open_index(struct model_folder *f, const char *path)
{
	const struct report r = { .subject = path, .err = f->r->err, .err_bytes = f->r->err_bytes };
	const cJSON *item;
	char *text = NULL;
	size_t bytes = 0;
	cJSON *json;
	int rc;

	rc = file_read(&r, path, INDEX_BYTES_MAX, &text, &bytes);
	if (rc < 0)
		return rc;
	json = cJSON_ParseWithLength(text, bytes + 1);
	free(text);
	item = cJSON_GetObjectItemCaseSensitive(json, "weight_map");
	if (!cJSON_IsObject(item) || !item->child)
		rc = report_fail(&r, -EINVAL, "no \"weight_map\" object");
	for (item = rc == 0 ? item->child : NULL; item && rc == 0; item = item->next) {
		const char *name = cJSON_GetStringValue(item);

		if (!name || !name[0] || strchr(name, '/') || name[0] == '.')
			rc = report_fail(&r, -EINVAL,
					 "weight_map: %.64s is in no file of the folder",
					 item->string);
		else
			rc = open_shard(f, name);
	}
	cJSON_Delete(json);
	return rc;
}

static int open_files(struct model_folder *f)
{
	char single[MODEL_PATH_BYTES_MAX], index[MODEL_PATH_BYTES_MAX];
	int rc;

	rc = model_folder_path(f->r, f->folder, "model.safetensors", single);
	if (rc == 0)
		rc = model_folder_path(f->r, f->folder, "model.safetensors.index.json", index);
	if (rc < 0)
		return rc;
	if (access(single, F_OK) < 0 && access(index, F_OK) == 0)
		return open_index(f, index);
	return open_shard(f, "model.safetensors");
}

int model_folder_open(const struct report *r, const char *folder, struct model_folder **ret)
{
	struct model_folder *f = calloc(1, sizeof(*f));
	int rc;

	if (!f)
		return report_fail(r, -ENOMEM, "no memory");
	f->r = r;
	f->folder = folder;
	rc = open_files(f);
	f->folder = NULL;
	if (rc < 0)
		model_folder_close(f);
	else
		*ret = f;
	return rc;
}

struct model_folder *model_folder_close(struct model_folder *f)
{
	if (!f)
		return NULL;
	for (uint32_t i = 0; i < f->shards_count; i++) {
		safetensors_close(f->shards[i]);
		free(f->names[i]);
	}
	free(f);
	return NULL;
}

int model_folder_tensor(const struct model_folder *f, const char *name, uint32_t rows,
			uint32_t columns, const struct safetensors_tensor **ret)
{
	const struct safetensors_tensor *t = NULL;
	const uint32_t dims_count = rows ? 2 : 1;

	for (uint32_t i = 0; i < f->shards_count && !t; i++)
		t = safetensors_find(f->shards[i], name);
	if (!t)
		return report_fail(f->r, -EINVAL, "no tensor %s in its safetensors", name);
	if (t->dims_count != dims_count || t->dims[dims_count - 1] != columns ||
	    (rows && t->dims[0] != rows))
		return report_fail(f->r, -EINVAL,
				   "tensor %s: its shape is not the [%u, %u] that "
				   "config.json implies",
				   name, rows ? rows : 1, columns);
	*ret = t;
	return 0;
}
