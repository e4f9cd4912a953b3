/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer.h - byte-level BPE from a Hugging Face tokenizer.json: text to token ids and back.
 *
 * What is implemented: model type BPE over bytes (GPT-2, Qwen, Llama 3), merges as pairs or as
 * "a b", added tokens found in the text before anything else, and the three usual splits: GPT-2's
 * (ByteLevel with use_regex), Qwen 2's and Llama 3's.  Any other model, split or option is refused
 * with a line that names it.
 * What differs from the reference: text is never normalised (a file that asks for NFC gets its text
 * as it is, which is the same for text that already is NFC), and bytes that are no UTF-8 are taken
 * as symbols of their own instead of being refused or replaced.  So decode(encode(x)) == x always.
 *
 * A tokenizer is immutable once open: any number of threads may use it.  Knows nothing of models.
 */
#ifndef SKVCD_TOOLS_TOKENIZER_H
#define SKVCD_TOOLS_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#define TOKENIZER_FILE_BYTES_MAX (64u << 20)
#define TOKENIZER_IDS_MAX (1u << 22) /* ids are below this */
#define TOKENIZER_TEXT_BYTES_MAX (1u << 30)

struct tokenizer;

/**
 * tokenizer_open() - read a tokenizer.json.
 * @err: one line saying what is wrong and where, on failure only.
 *
 * Return: 0; -EINVAL for content that is wrong or not implemented; -EFBIG; -ENOMEM; or the errno of
 * open and read.
 */
int tokenizer_open(const char *path, struct tokenizer **ret, char *err, size_t err_bytes);

/* The same for the text of such a file, borrowed for the call; @name is the path in @err. */
int tokenizer_parse(const void *json, size_t bytes, const char *name, struct tokenizer **ret,
		    char *err, size_t err_bytes);

/* Accepts NULL, returns NULL. */
struct tokenizer *tokenizer_close(struct tokenizer *tok);

/* All ids are below this number; not every one needs to be a token. */
uint32_t tokenizer_ids_count(const struct tokenizer *tok);

/**
 * tokenizer_encode() - cut a text into tokens.
 * @ret_ids: to be freed by the caller; never NULL on success, even for an empty text.
 *
 * Return: 0; -E2BIG for more than TOKENIZER_TEXT_BYTES_MAX; -ENOMEM.
 */
int tokenizer_encode(const struct tokenizer *tok, const void *text, size_t bytes, int32_t **ret_ids,
		     size_t *ret_count);

/**
 * tokenizer_decode() - the bytes that tokens stand for.
 * @ret_text: to be freed by the caller; a NUL follows its @ret_bytes bytes.  It need not be UTF-8:
 *            a token may end inside a character.
 *
 * Return: 0; -EINVAL for an id that is not a token; -ENOMEM.
 */
int tokenizer_decode(const struct tokenizer *tok, const int32_t *ids, size_t count, char **ret_text,
		     size_t *ret_bytes);

#endif
