/* SPDX-License-Identifier: Apache-2.0 */
/*
 * folder.h - the weight files of a Hugging Face folder: model.safetensors, or the shards that
 * model.safetensors.index.json names.
 *
 * Owns the mappings; the tensors that it hands out are borrowed until it is closed.  Everything in the
 * folder is hostile.  Immutable once open, so that any number of threads may read it.
 */
#ifndef SKVCD_GPU_MODEL_FOLDER_H
#define SKVCD_GPU_MODEL_FOLDER_H

#include <stdint.h>

#include "gpu/model/report.h"
#include "gpu/model/safetensors.h"

#define MODEL_SHARDS_MAX 512u
#define MODEL_PATH_BYTES_MAX 4096u

struct model_folder;

/* @r: where the one line about a failure goes; it must outlive the folder. */
int model_folder_open(const struct report *r, const char *folder, struct model_folder **ret);

/* Accepts NULL, returns NULL. */
struct model_folder *model_folder_close(struct model_folder *f);

/* The tensor [rows][columns], or [columns] for rows = 0.  -EINVAL: missing, or of another shape. */
int model_folder_tensor(const struct model_folder *f, const char *name, uint32_t rows,
			uint32_t columns, const struct safetensors_tensor **ret);

/* "folder/name" into MODEL_PATH_BYTES_MAX bytes.  -ENAMETOOLONG. */
int model_folder_path(const struct report *r, const char *folder, const char *name, char *ret);

#endif
