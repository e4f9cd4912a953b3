/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer_unicode.h - what the pre-tokeniser needs to know of a character.  Pure functions.
 */
#ifndef SKVCD_TOOLS_TOKENIZER_UNICODE_H
#define SKVCD_TOOLS_TOKENIZER_UNICODE_H

#include <stddef.h>
#include <stdint.h>

enum tokenizer_class {
	TOKENIZER_OTHER,
	TOKENIZER_LETTER,
	TOKENIZER_NUMBER,
	TOKENIZER_SPACE,
	TOKENIZER_CLASS_COUNT
};

/* The class of a code point of Unicode 14.0; anything else is TOKENIZER_OTHER. */
enum tokenizer_class tokenizer_classify(uint32_t c);

/* The character at @p (bytes >= 1) and its length 1..4; 0 when the bytes are not UTF-8. */
uint32_t tokenizer_utf8(const uint8_t *p, size_t bytes, uint32_t *ret_char);

#endif
