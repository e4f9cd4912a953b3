/* SPDX-License-Identifier: Apache-2.0 */
/*
 * npy.h - token ids from a NumPy .npy file: one dimension of integers.  Pure parsing.
 */
#ifndef SKVCD_TOOLS_NPY_H
#define SKVCD_TOOLS_NPY_H

#include <stddef.h>
#include <stdint.h>

struct report;

/**
 * npy_tokens() - the ids first..first + count - 1 of a file's bytes.
 * @text: the whole file, with a NUL after its @bytes bytes (as file_read() leaves it).
 * @ret: count ids.
 *
 * Return: 0; -EINVAL, with a line in @r, when it is no .npy of little-endian integers, has more than
 * one dimension, fewer ids, or an id that is negative or does not fit 31 bits.
 */
int npy_tokens(const struct report *r, const char *text, size_t bytes, size_t first, size_t count,
	       int32_t *ret);

#endif
