/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer_split.h - the pre-tokeniser: cuts a text into the pieces inside which BPE merges.
 *
 * The three splits are those regular expressions written as code, for a regular expression engine
 * with Unicode classes is a larger thing than a tokenizer.  Pure functions.
 */
#ifndef SKVCD_TOOLS_TOKENIZER_SPLIT_H
#define SKVCD_TOOLS_TOKENIZER_SPLIT_H

#include <stddef.h>
#include <stdint.h>

enum tokenizer_split {
	TOKENIZER_SPLIT_GPT2,
	TOKENIZER_SPLIT_QWEN2,	/* one digit is a piece */
	TOKENIZER_SPLIT_LLAMA3, /* up to three digits are a piece */
	TOKENIZER_SPLIT_COUNT
};

/* Length of the first piece of @text; 1..bytes for bytes >= 1. */
size_t tokenizer_split_next(enum tokenizer_split split, const uint8_t *text, size_t bytes);

/* The split that a pattern of tokenizer.json means; TOKENIZER_SPLIT_COUNT: none of ours. */
enum tokenizer_split tokenizer_split_by_pattern(const char *pattern);

#endif
