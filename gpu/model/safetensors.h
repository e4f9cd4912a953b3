/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors.h - read and write .safetensors files: named tensors behind a JSON header.
 *
 * Owns the mapping of the file and the list of its tensors.  A file is hostile input: everything is
 * checked once when it is opened (header bound, every dtype and dim against its byte range, no
 * hole, no overlap, no byte beyond the file), and what the list says afterwards may be trusted.
 *
 * The file must not be truncated by another process while it is open: the mapping would fault.
 * An open file is immutable, so any number of threads may read it.
 * Knows nothing of models, codecs or the daemon.
 */
#ifndef SKVCD_GPU_MODEL_SAFETENSORS_H
#define SKVCD_GPU_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_DIMS_MAX 8u
#define SAFETENSORS_HEADER_BYTES_MAX (100u << 20) /* the limit of the format's own library */
#define SAFETENSORS_ERR_BYTES 256u		  /* enough for every message of this file */

struct safetensors;

struct safetensors_tensor {
	const char *name;    /* borrowed from the file's list */
	const char *dtype;   /* "BF16", "F32", "I32", ...: a static string */
	uint32_t dims_count; /* 0 is a scalar */
	uint64_t dims[SAFETENSORS_DIMS_MAX];
	const void *data; /* little endian, NOT aligned: memcpy or byte loads */
	uint64_t bytes;
};

/**
 * safetensors_open() - map a file read-only and check all of it but the values.
 * @path: borrowed for the call.
 * @ret: the open file; safetensors_close() it.
 * @err: one line naming the file, the tensor and what is wrong; written on failure only.
 * @err_bytes: size of @err; SAFETENSORS_ERR_BYTES is enough.
 *
 * Return: 0; -EINVAL when the content is wrong; -ENOMEM; or the errno of open, fstat or mmap.
 */
int safetensors_open(const char *path, struct safetensors **ret, char *err, size_t err_bytes);

/* The same for bytes in memory, borrowed until safetensors_close(); @name is the file in @err. */
int safetensors_parse(const void *buf, size_t bytes, const char *name, struct safetensors **ret,
		      char *err, size_t err_bytes);

/* Unmaps; every tensor of the file is gone.  Accepts NULL, returns NULL. */
struct safetensors *safetensors_close(struct safetensors *st);

/* By exact name, or NULL. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name);

/* Number of tensors, and the i-th of them in the order of their bytes in the file (i < count). */
size_t safetensors_count(const struct safetensors *st);
const struct safetensors_tensor *safetensors_at(const struct safetensors *st, size_t i);

/* The value of a key of the header's __metadata__, or NULL. */
const char *safetensors_metadata(const struct safetensors *st, const char *key);

/* Bytes of one element of a dtype name; 0 when the name is not one of the format's. */
uint32_t safetensors_dtype_bytes(const char *dtype);

/**
 * safetensors_write() - write a whole file; it appears under its name only when complete.
 * @tensors: in the order wanted in the file; dims x dtype must equal bytes.
 * @meta: meta_count pairs: key, value, key, value...; may be NULL when meta_count is 0.
 *
 * Return: 0; -EINVAL for a tensor that contradicts itself; -ENOMEM; or the errno of the I/O.
 */
int safetensors_write(const char *path, const struct safetensors_tensor *tensors, size_t count,
		      const char *const *meta, size_t meta_count, char *err, size_t err_bytes);

#endif
