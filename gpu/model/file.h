/* SPDX-License-Identifier: Apache-2.0 */
/*
 * file.h - read a whole small file, for the tools.  Knows nothing of its content.
 */
#ifndef SKVCD_GPU_MODEL_FILE_H
#define SKVCD_GPU_MODEL_FILE_H

#include <stddef.h>

struct report;

/**
 * file_read() - the bytes of a regular file, with a NUL after them.
 * @r: where the one line about a failure goes.
 * @ret_text: to be freed by the caller.
 *
 * Return: 0; -EFBIG beyond @bytes_max; -EINVAL when it is no regular file; -ENOMEM; or the errno of
 * open, fstat or read.
 */
int file_read(const struct report *r, const char *path, size_t bytes_max, char **ret_text,
	      size_t *ret_bytes);

#endif
