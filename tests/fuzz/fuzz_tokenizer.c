/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_tokenizer.c - any bytes as a tokenizer.json; when it is one, any bytes (those of the file
 * itself) as a text for it: what is encoded must decode to itself.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/model/report.h"
#include "tools/tokenizer.h"
#include "tools/tokenizer_split.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_splits(const uint8_t *data, size_t size)
{
	for (uint32_t split = 0; split < TOKENIZER_SPLIT_COUNT; split++)
		for (size_t at = 0; at < size;)
			at += tokenizer_split_next((enum tokenizer_split)split, data + at,
						   size - at);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tokenizer *tok = NULL;
	char err[REPORT_BYTES] = "", *text = NULL;
	size_t count = 0, bytes = 0;
	int32_t *ids = NULL;

	check_splits(data, size < 4096 ? size : 4096);
	if (tokenizer_parse(data, size, "FILE", &tok, err, sizeof(err)) < 0) {
		assert(!tok && err[0] && !strchr(err, '\n'));
		return 0;
	}
	if (tokenizer_encode(tok, data, size, &ids, &count) == 0) {
		for (size_t i = 0; i < count; i++)
			assert((uint32_t)ids[i] < tokenizer_ids_count(tok));
		if (tokenizer_decode(tok, ids, count, &text, &bytes) == 0)
			assert(bytes == size && memcmp(text, data, size) == 0);
	}
	free(ids);
	free(text);
	tokenizer_close(tok);
	return 0;
}
