/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer_split.c - the three splits.  Each function below is one alternative of the regular
 * expression and says how many bytes it takes at the start of the text, 0 for none; the first one
 * that takes something wins, as in the expression.
 */
#include "tools/tokenizer_split.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "tools/tokenizer_unicode.h"

static const char *const patterns[TOKENIZER_SPLIT_COUNT] = {
	[TOKENIZER_SPLIT_GPT2] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|"
				 " ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
	[TOKENIZER_SPLIT_QWEN2] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
				  "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
				  "\\s+(?!\\S)|\\s+",
	[TOKENIZER_SPLIT_LLAMA3] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
				   "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
				   "\\s+(?!\\S)|\\s+",
};

enum tokenizer_split tokenizer_split_by_pattern(const char *pattern)
{
	uint32_t split = 0;

	while (split < TOKENIZER_SPLIT_COUNT && strcmp(patterns[split], pattern) != 0)
		split++;
	return (enum tokenizer_split)split;
}

/* A byte that is not UTF-8 is one character of class OTHER. */
static uint32_t char_at(const uint8_t *p, size_t bytes, enum tokenizer_class *ret_class)
{
	uint32_t c, used;

	used = tokenizer_utf8(p, bytes, &c);
	*ret_class = used ? tokenizer_classify(c) : TOKENIZER_OTHER;
	return used ? used : 1;
}

/* Bytes of the run of characters of one class, chars_max characters at most. */
static size_t run(const uint8_t *p, size_t bytes, enum tokenizer_class class, size_t chars_max)
{
	enum tokenizer_class here;
	size_t used = 0;

	for (size_t i = 0; i < chars_max && used < bytes; i++) {
		uint32_t one = char_at(p + used, bytes - used, &here);

		if (here != class)
			break;
		used += one;
	}
	return used;
}

static bool is_newline(uint8_t c)
{
	return c == '\r' || c == '\n';
}

static size_t contraction(const uint8_t *p, size_t bytes, bool any_case)
{
	static const char *const tails[] = { "s", "t", "re", "ve", "m", "ll", "d" };
	uint8_t fold = any_case ? 0x20 : 0;

	if (p[0] != '\'')
		return 0;
	for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
		size_t tail_bytes = strlen(tails[i]), same = 0;

		while (same < tail_bytes && same + 1 < bytes &&
		       (p[same + 1] | fold) == (uint8_t)tails[i][same])
			same++;
		if (same == tail_bytes)
			return tail_bytes + 1;
	}
	return 0;
}

/* \s*[\r\n]+ : spaces up to and with the last newline among them. */
static size_t spaces_to_newline(const uint8_t *p, size_t bytes)
{
	size_t used = run(p, bytes, TOKENIZER_SPACE, bytes);

	while (used && !is_newline(p[used - 1]))
		used--;
	return used;
}

/* \s+(?!\S)|\s+ : all spaces at the end of the text; elsewhere all but the last, if several. */
static size_t spaces(const uint8_t *p, size_t bytes)
{
	size_t used = run(p, bytes, TOKENIZER_SPACE, bytes), last = 0;
	enum tokenizer_class class;

	if (used == bytes)
		return used;
	for (size_t at = 0; at < used; at += char_at(p + at, bytes - at, &class))
		last = at;
	return last ? last : used;
}

static size_t next_gpt2(const uint8_t *p, size_t bytes)
{
	size_t lead = p[0] == ' ' && bytes > 1, used;
	enum tokenizer_class class;

	used = contraction(p, bytes, false);
	if (used)
		return used;
	(void)char_at(p + lead, bytes - lead, &class);
	if (class == TOKENIZER_SPACE)
		return spaces(p, bytes);
	return lead + run(p + lead, bytes - lead, class, bytes);
}

static size_t next_modern(const uint8_t *p, size_t bytes, size_t digits_max)
{
	enum tokenizer_class class, second = TOKENIZER_OTHER;
	size_t one, used, lead;

	used = contraction(p, bytes, true);
	if (used)
		return used;
	one = char_at(p, bytes, &class);
	if (class == TOKENIZER_LETTER)
		return run(p, bytes, TOKENIZER_LETTER, bytes);
	if (class == TOKENIZER_NUMBER)
		return run(p, bytes, TOKENIZER_NUMBER, digits_max);
	if (one < bytes)
		(void)char_at(p + one, bytes - one, &second);
	if (!is_newline(p[0]) && one < bytes && second == TOKENIZER_LETTER)
		return one + run(p + one, bytes - one, TOKENIZER_LETTER, bytes);
	lead = p[0] == ' ';
	used = run(p + lead, bytes - lead, TOKENIZER_OTHER, bytes);
	if (used) {
		used += lead;
		while (used < bytes && is_newline(p[used]))
			used++;
		return used;
	}
	used = spaces_to_newline(p, bytes);
	return used ? used : spaces(p, bytes);
}

size_t tokenizer_split_next(enum tokenizer_split split, const uint8_t *text, size_t bytes)
{
	size_t used;

	assert(bytes && split < TOKENIZER_SPLIT_COUNT);
	if (split == TOKENIZER_SPLIT_GPT2)
		used = next_gpt2(text, bytes);
	else
		used = next_modern(text, bytes, split == TOKENIZER_SPLIT_LLAMA3 ? 3 : 1);
	assert(used && used <= bytes);
	return used;
}
