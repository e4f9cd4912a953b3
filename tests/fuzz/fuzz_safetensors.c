/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_safetensors.c - any bytes as a safetensors file: refused with one line, or every tensor of it
 * lies inside the file, can be read, and is found by its name.
 */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "gpu/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char err[SAFETENSORS_ERR_BYTES] = "";
	struct safetensors *st = NULL;
	volatile uint8_t sink = 0;

	if (safetensors_parse(data, size, "FILE", &st, err, sizeof(err)) < 0) {
		assert(!st && err[0] && !strchr(err, '\n'));
		return 0;
	}
	for (size_t i = 0; i < safetensors_count(st); i++) {
		const struct safetensors_tensor *t = safetensors_at(st, i);
		const uint8_t *bytes = t->data;

		assert(safetensors_find(st, t->name) == t);
		assert(t->bytes <= size && safetensors_dtype_bytes(t->dtype));
		if (t->bytes)
			sink = (uint8_t)(sink ^ bytes[0] ^ bytes[t->bytes - 1]);
	}
	(void)safetensors_metadata(st, "layout");
	safetensors_close(st);
	return 0;
}
