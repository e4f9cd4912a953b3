/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokenizer.c - reads tokenizer.json, then encodes and decodes.
 *
 * Such a file spells every byte of a token as one printable character (an old habit of GPT-2); here
 * tokens are plain bytes from the moment they are read.  Runs in the caller's thread, no state but
 * struct tokenizer; an encode has scratch of its own.
 */
#include "tools/tokenizer.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"
#include "tools/tokenizer_split.h"
#include "tools/tokenizer_unicode.h"

#define NO_ID UINT32_MAX
#define SPELLED_MAX 324u /* characters that spell a byte are below this */

struct token {
	uint8_t *text; /* owned; NULL where the id is not a token */
	uint32_t bytes;
	bool added; /* matched in the text before it is split */
};

struct merge {
	uint32_t left, right;
	uint32_t rank;	/* the lowest goes first; NO_ID: the slot is empty */
	uint32_t whole; /* the token that both together make */
};

struct tokenizer {
	struct token *tokens; /* owned; ids_count of them */
	uint32_t ids_count;
	uint32_t *by_text; /* owned; open addressing: id, or NO_ID */
	uint32_t by_text_mask;
	struct merge *merges; /* owned; open addressing */
	uint32_t merges_mask;
	uint32_t byte_ids[256]; /* the token of each single byte */
	bool added_first[256];	/* bytes that an added token begins with */
	uint32_t *added;	/* owned; ids of the added tokens */
	uint32_t added_count;
	enum tokenizer_split split;
	bool whole_words; /* a piece that is a token is not cut at all */
};

static uint32_t hash_bytes(const uint8_t *p, size_t bytes)
{
	uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */

	for (size_t i = 0; i < bytes; i++)
		h = (h ^ p[i]) * 0x100000001b3u;
	return (uint32_t)(h ^ h >> 32);
}

static uint32_t hash_pair(uint32_t left, uint32_t right)
{
	uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;

	return (uint32_t)(h >> 32);
}

/* A power of two of at least twice the entries, so that a probe always meets an empty slot. */
static uint32_t table_slots(uint32_t entries)
{
	uint32_t slots = 16;

	while (slots < 2 * entries)
		slots *= 2;
	return slots;
}

static uint32_t find_text(const struct tokenizer *tok, const uint8_t *text, size_t bytes)
{
	uint32_t at = hash_bytes(text, bytes) & tok->by_text_mask;

	for (uint32_t id; (id = tok->by_text[at]) != NO_ID; at = (at + 1) & tok->by_text_mask)
		if (tok->tokens[id].bytes == bytes && !memcmp(tok->tokens[id].text, text, bytes))
			return id;
	return NO_ID;
}

static void add_text(struct tokenizer *tok, uint32_t id)
{
	uint32_t at = hash_bytes(tok->tokens[id].text, tok->tokens[id].bytes) & tok->by_text_mask;

	while (tok->by_text[at] != NO_ID)
		at = (at + 1) & tok->by_text_mask;
	tok->by_text[at] = id;
}

/* The slot of a pair: its merge, or the empty slot where it belongs. */
static struct merge *find_merge(const struct tokenizer *tok, uint32_t left, uint32_t right)
{
	uint32_t at = hash_pair(left, right) & tok->merges_mask;

	while (tok->merges[at].rank != NO_ID &&
	       (tok->merges[at].left != left || tok->merges[at].right != right))
		at = (at + 1) & tok->merges_mask;
	return &tok->merges[at];
}

/*
 * The byte that a character spells, or -1.  Printable Latin-1 characters spell themselves; the
 * other 68 bytes, in ascending order, are spelled by U+0100 and on.
 */
static int spelled_byte(uint32_t c)
{
	uint32_t others = 256;

	if ((c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff))
		return (int)c;
	if (c < 256 || c >= SPELLED_MAX)
		return -1;
	for (uint32_t b = 0; b < 256; b++) {
		if ((b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae)
			continue;
		if (others++ == c)
			return (int)b;
	}
	return -1;
}

/* Writes at most strlen(spelled) bytes; false when a character spells no byte. */
static bool unspell(const char *spelled, uint8_t *text, uint32_t *ret_bytes)
{
	const uint8_t *p = (const uint8_t *)spelled;
	size_t left = strlen(spelled);
	uint32_t bytes = 0, c, used;
	int b;

	while (left) {
		used = tokenizer_utf8(p, left, &c);
		b = used ? spelled_byte(c) : -1;
		if (b < 0)
			return false;
		text[bytes++] = (uint8_t)b;
		p += used;
		left -= used;
	}
	*ret_bytes = bytes;
	return true;
}

static bool json_id(const cJSON *json, uint32_t *ret)
{
	double d;

	if (!cJSON_IsNumber(json))
		return false;
	d = json->valuedouble;
	if (!(d >= 0 && d < TOKENIZER_IDS_MAX) || (double)(uint32_t)d != d)
		return false;
	*ret = (uint32_t)d;
	return true;
}

static bool json_is_set(const cJSON *object, const char *name)
{
	return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name));
}

/* Takes a copy of text. */
static int set_token(struct tokenizer *tok, uint32_t id, const uint8_t *text, uint32_t bytes)
{
	struct token *token = &tok->tokens[id];

	assert(id < tok->ids_count && !token->text);
	token->text = malloc(bytes + 1);
	if (!token->text)
		return -ENOMEM;
	memcpy(token->text, text, bytes);
	token->bytes = bytes;
	return 0;
}

/* Highest id of vocabulary and added tokens, plus one; also the shape check of both. */
static int count_ids(const struct report *r, const cJSON *vocab, const cJSON *added,
		     struct tokenizer *tok)
{
	const cJSON *item;
	uint32_t id;

	cJSON_ArrayForEach(item, vocab) {
		if (!json_id(item, &id))
			return report_fail(r, -EINVAL, "vocab: the id of %.40s is not in 0..%u",
					   item->string, TOKENIZER_IDS_MAX - 1);
		if (id >= tok->ids_count)
			tok->ids_count = id + 1;
	}
	cJSON_ArrayForEach(item, added) {
		const cJSON *content = cJSON_GetObjectItemCaseSensitive(item, "content");

		if (!json_id(cJSON_GetObjectItemCaseSensitive(item, "id"), &id) ||
		    !cJSON_IsString(content) || !content->valuestring[0])
			return report_fail(r, -EINVAL, "added_tokens[%u]: no id or no content",
					   tok->added_count);
		if (json_is_set(item, "lstrip") || json_is_set(item, "rstrip") ||
		    json_is_set(item, "single_word"))
			return report_fail(r, -EINVAL,
					   "added token %.40s: stripping and whole words "
					   "are not implemented",
					   content->valuestring);
		if (id >= tok->ids_count)
			tok->ids_count = id + 1;
		tok->added_count++;
	}
	return 0;
}

static int read_added(const struct report *r, const cJSON *added, struct tokenizer *tok)
{
	uint32_t at = 0, id = 0;
	const cJSON *item;

	tok->added = calloc(tok->added_count + 1, sizeof(tok->added[0]));
	if (!tok->added)
		return report_fail(r, -ENOMEM, "no memory");
	cJSON_ArrayForEach(item, added) {
		const char *text = cJSON_GetObjectItemCaseSensitive(item, "content")->valuestring;

		(void)json_id(cJSON_GetObjectItemCaseSensitive(item, "id"), &id);
		if (tok->tokens[id].text)
			return report_fail(r, -EINVAL, "added token %.40s: id %u is taken", text,
					   id);
		if (set_token(tok, id, (const uint8_t *)text, (uint32_t)strlen(text)) < 0)
			return report_fail(r, -ENOMEM, "no memory");
		tok->tokens[id].added = true;
		tok->added_first[(uint8_t)text[0]] = true;
		tok->added[at++] = id;
	}
	return 0;
}

/* One entry of the vocabulary; buf holds TOKENIZER_FILE_BYTES_MAX at worst, as the name does. */
static int read_vocab_item(const struct report *r, const cJSON *item, uint8_t *buf,
			   struct tokenizer *tok)
{
	uint32_t id = 0, bytes;
	struct token *token;

	(void)json_id(item, &id);
	token = &tok->tokens[id];
	if (token->added) { /* spelled plainly, in both places */
		if (strlen(item->string) != token->bytes ||
		    memcmp(item->string, token->text, token->bytes) != 0)
			return report_fail(r, -EINVAL,
					   "vocab: id %u is %.40s here, another token "
					   "in added_tokens",
					   id, item->string);
		if (find_text(tok, token->text, token->bytes) == NO_ID)
			add_text(tok, id); /* it may be the token of a byte, or a half of a merge */
		return 0;
	}
	if (token->text)
		return report_fail(r, -EINVAL, "vocab: %.40s: id %u is taken", item->string, id);
	if (!unspell(item->string, buf, &bytes) || !bytes)
		return report_fail(r, -EINVAL,
				   "vocab: token %u %.40s is not bytes: only byte-level "
				   "BPE is implemented",
				   id, item->string);
	if (find_text(tok, buf, bytes) != NO_ID)
		return report_fail(r, -EINVAL, "vocab: %.40s is there twice", item->string);
	if (set_token(tok, id, buf, bytes) < 0)
		return report_fail(r, -ENOMEM, "no memory");
	add_text(tok, id);
	return 0;
}

static int read_vocab(const struct report *r, const cJSON *vocab, uint8_t *buf,
		      struct tokenizer *tok)
{
	uint32_t entries = 0;
	const cJSON *item;
	int rc;

	cJSON_ArrayForEach(item, vocab)
		entries++;
	tok->by_text_mask = table_slots(entries) - 1;
	tok->by_text = malloc((tok->by_text_mask + 1) * sizeof(tok->by_text[0]));
	if (!tok->by_text)
		return report_fail(r, -ENOMEM, "no memory");
	memset(tok->by_text, 0xff, (tok->by_text_mask + 1) * sizeof(tok->by_text[0]));
	cJSON_ArrayForEach(item, vocab) {
		rc = read_vocab_item(r, item, buf, tok);
		if (rc < 0)
			return rc;
	}
	for (uint32_t b = 0; b < 256; b++) {
		const uint8_t text = (uint8_t)b;

		tok->byte_ids[b] = find_text(tok, &text, 1);
		if (tok->byte_ids[b] == NO_ID)
			return report_fail(r, -EINVAL,
					   "vocab: no token for byte 0x%02x: only "
					   "byte-level BPE is implemented",
					   b);
	}
	return 0;
}

/*
 * The two halves of a merge in either notation, as bytes one after the other in buf.  A name in a
 * merge is a string of the file, so both together fit where the file's text fits.
 */
static bool read_halves(const cJSON *item, uint8_t *buf, uint32_t *ret_left, uint32_t *ret_right)
{
	const char *left, *right;
	char *space;
	bool ok;

	if (cJSON_IsArray(item) && cJSON_GetArraySize(item) == 2) {
		left = cJSON_GetStringValue(item->child);
		right = cJSON_GetStringValue(item->child->next);
		return left && right && unspell(left, buf, ret_left) &&
		       unspell(right, buf + *ret_left, ret_right);
	}
	if (!cJSON_IsString(item))
		return false;
	space = strchr(item->valuestring, ' ');
	if (!space)
		return false;
	*space = '\0';
	ok = unspell(item->valuestring, buf, ret_left) &&
	     unspell(space + 1, buf + *ret_left, ret_right);
	*space = ' ';
	return ok;
}

static int read_merges(const struct report *r, const cJSON *merges, uint8_t *buf,
		       struct tokenizer *tok)
{
	uint32_t rank = 0, left_bytes, right_bytes;
	struct merge merge, *slot;
	const cJSON *item;

	cJSON_ArrayForEach(item, merges)
		rank++;
	tok->merges_mask = table_slots(rank) - 1;
	tok->merges = malloc((tok->merges_mask + 1) * sizeof(tok->merges[0]));
	if (!tok->merges)
		return report_fail(r, -ENOMEM, "no memory");
	memset(tok->merges, 0xff, (tok->merges_mask + 1) * sizeof(tok->merges[0]));
	rank = 0;
	cJSON_ArrayForEach(item, merges) {
		if (!read_halves(item, buf, &left_bytes, &right_bytes))
			return report_fail(r, -EINVAL, "merges[%u]: not a pair of tokens", rank);
		merge.left = find_text(tok, buf, left_bytes);
		merge.right = find_text(tok, buf + left_bytes, right_bytes);
		merge.whole = find_text(tok, buf, left_bytes + right_bytes);
		if (merge.left == NO_ID || merge.right == NO_ID || merge.whole == NO_ID)
			return report_fail(r, -EINVAL, "merges[%u]: %s is not in the vocabulary",
					   rank, merge.whole == NO_ID ? "the result" : "a half");
		merge.rank = rank++;
		slot = find_merge(tok, merge.left, merge.right);
		*slot = merge;
	}
	return 0;
}

/* Whether this is a "ByteLevel" step, with or without the split of its own, and nothing else. */
static bool byte_level_ok(const cJSON *json, bool want_regex)
{
	const cJSON *type = cJSON_GetObjectItemCaseSensitive(json, "type");
	const cJSON *regex = cJSON_GetObjectItemCaseSensitive(json, "use_regex");
	bool uses_regex = !regex || cJSON_IsTrue(regex); /* absent means true */

	return cJSON_IsString(type) && strcmp(type->valuestring, "ByteLevel") == 0 &&
	       uses_regex == want_regex && !json_is_set(json, "add_prefix_space");
}

static int read_split(const struct report *r, const cJSON *json, struct tokenizer *tok)
{
	const cJSON *steps, *type, *pattern, *behavior;

	tok->split = TOKENIZER_SPLIT_GPT2;
	if (byte_level_ok(json, true))
		return 0;
	steps = cJSON_GetObjectItemCaseSensitive(json, "pretokenizers");
	if (!cJSON_IsArray(steps) || cJSON_GetArraySize(steps) != 2 ||
	    !byte_level_ok(steps->child->next, false))
		return report_fail(r, -EINVAL,
				   "pre_tokenizer: neither ByteLevel nor Split and "
				   "ByteLevel without a prefix space");
	type = cJSON_GetObjectItemCaseSensitive(steps->child, "type");
	behavior = cJSON_GetObjectItemCaseSensitive(steps->child, "behavior");
	pattern = cJSON_GetObjectItemCaseSensitive(
		cJSON_GetObjectItemCaseSensitive(steps->child, "pattern"), "Regex");
	if (!cJSON_IsString(type) || strcmp(type->valuestring, "Split") != 0 ||
	    !cJSON_IsString(behavior) || strcmp(behavior->valuestring, "Isolated") != 0 ||
	    json_is_set(steps->child, "invert") || !cJSON_IsString(pattern))
		return report_fail(r, -EINVAL,
				   "pre_tokenizer: this kind of Split is not implemented");
	tok->split = tokenizer_split_by_pattern(pattern->valuestring);
	if (tok->split == TOKENIZER_SPLIT_COUNT)
		return report_fail(r, -EINVAL, "pre_tokenizer: this pattern is not implemented");
	return 0;
}

/* What would change tokens and is not implemented must be absent. */
static int check_options(const struct report *r, const cJSON *json, const cJSON *model)
{
	const cJSON *type = cJSON_GetObjectItemCaseSensitive(model, "type");
	const cJSON *normalizer = cJSON_GetObjectItemCaseSensitive(json, "normalizer");
	static const char *const texts[] = { "continuing_subword_prefix", "end_of_word_suffix" };

	if (type && (!cJSON_IsString(type) || strcmp(type->valuestring, "BPE") != 0))
		return report_fail(r, -EINVAL, "model.type: only BPE is implemented");
	if (json_is_set(model, "byte_fallback"))
		return report_fail(r, -EINVAL,
				   "model.byte_fallback: only byte-level BPE is "
				   "implemented");
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		const char *text =
			cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(model, texts[i]));

		if (text && text[0])
			return report_fail(r, -EINVAL, "model.%s is not implemented", texts[i]);
	}
	if (normalizer && !cJSON_IsNull(normalizer)) {
		type = cJSON_GetObjectItemCaseSensitive(normalizer, "type");
		if (!cJSON_IsString(type) || strcmp(type->valuestring, "NFC") != 0)
			return report_fail(r, -EINVAL,
					   "normalizer: only none and NFC are implemented");
	}
	return 0;
}

static int read_all(const struct report *r, const cJSON *json, uint8_t *buf, struct tokenizer *tok)
{
	const cJSON *model = cJSON_GetObjectItemCaseSensitive(json, "model");
	const cJSON *added = cJSON_GetObjectItemCaseSensitive(json, "added_tokens");
	const cJSON *vocab = cJSON_GetObjectItemCaseSensitive(model, "vocab");
	const cJSON *merges = cJSON_GetObjectItemCaseSensitive(model, "merges");
	int rc;

	if (!cJSON_IsObject(vocab) || !cJSON_IsArray(merges))
		return report_fail(r, -EINVAL, "no model.vocab object or no model.merges array");
	if (added && !cJSON_IsArray(added))
		return report_fail(r, -EINVAL, "added_tokens is not an array");
	rc = check_options(r, json, model);
	if (rc == 0)
		rc = read_split(r, cJSON_GetObjectItemCaseSensitive(json, "pre_tokenizer"), tok);
	if (rc == 0)
		rc = count_ids(r, vocab, added, tok);
	if (rc < 0)
		return rc;
	tok->tokens = calloc(tok->ids_count + 1, sizeof(tok->tokens[0]));
	if (!tok->tokens)
		return report_fail(r, -ENOMEM, "no memory for %u tokens", tok->ids_count);
	tok->whole_words = json_is_set(model, "ignore_merges");
	rc = read_added(r, added, tok);
	if (rc == 0)
		rc = read_vocab(r, vocab, buf, tok);
	if (rc == 0)
		rc = read_merges(r, merges, buf, tok);
	return rc;
}

int tokenizer_parse(const void *json, size_t bytes, const char *name, struct tokenizer **ret,
		    char *err, size_t err_bytes)
{
	const struct report r = { .subject = name, .err = err, .err_bytes = err_bytes };
	struct tokenizer *tok;
	cJSON *root = NULL;
	char *copy;
	int rc;

	if (bytes > TOKENIZER_FILE_BYTES_MAX)
		return report_fail(&r, -EFBIG, "larger than %u bytes", TOKENIZER_FILE_BYTES_MAX);
	tok = calloc(1, sizeof(*tok));
	copy = malloc(bytes + 1);
	if (!tok || !copy) {
		rc = report_fail(&r, -ENOMEM, "no memory");
	} else {
		memcpy(copy, json, bytes);
		copy[bytes] = '\0';
		root = cJSON_ParseWithLength(copy, bytes + 1);
		/* From here on the copy is scratch: no token or pair is longer than the file. */
		if (cJSON_IsObject(root))
			rc = read_all(&r, root, (uint8_t *)copy, tok);
		else
			rc = report_fail(&r, -EINVAL, "not a JSON object");
	}
	cJSON_Delete(root);
	free(copy);
	if (rc < 0)
		tokenizer_close(tok);
	else
		*ret = tok;
	return rc;
}

int tokenizer_open(const char *path, struct tokenizer **ret, char *err, size_t err_bytes)
{
	const struct report r = { .subject = path, .err = err, .err_bytes = err_bytes };
	char *text = NULL;
	size_t bytes = 0;
	int rc;

	rc = file_read(&r, path, TOKENIZER_FILE_BYTES_MAX, &text, &bytes);
	if (rc < 0)
		return rc;
	rc = tokenizer_parse(text, bytes, path, ret, err, err_bytes);
	free(text);
	return rc;
}

struct tokenizer *tokenizer_close(struct tokenizer *tok)
{
	if (!tok)
		return NULL;
	for (uint32_t id = 0; tok->tokens && id < tok->ids_count; id++)
		free(tok->tokens[id].text);
	free(tok->tokens);
	free(tok->by_text);
	free(tok->merges);
	free(tok->added);
	free(tok);
	return NULL;
}

uint32_t tokenizer_ids_count(const struct tokenizer *tok)
{
	return tok->ids_count;
}

/*
 * One encode.  A piece of n bytes starts as n symbols in a list; symbol i keeps its place when it
 * swallows its right neighbour.  The heap holds rank << 32 | place of every pair that may merge,
 * and of some that no longer exist, which is noticed when they come up.  3 n entries are enough:
 * n - 1 at the start and two for each of at most n - 1 merges.
 */
struct encoder {
	const struct tokenizer *tok; /* borrowed for the call */
	uint32_t *symbols;	     /* owned; NO_ID: swallowed */
	uint32_t *next, *prev;	     /* owned; piece_bytes is the end, NO_ID before the start */
	uint64_t *heap;		     /* owned */
	size_t room;		     /* symbols that fit */
	size_t heap_count;
	int32_t *ids; /* owned until handed over; one per byte of text fits */
	size_t ids_count;
};

static void heap_push(struct encoder *e, uint64_t entry)
{
	size_t at = e->heap_count++;

	while (at && e->heap[(at - 1) / 2] > entry) {
		e->heap[at] = e->heap[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	e->heap[at] = entry;
}

static uint64_t heap_pop(struct encoder *e)
{
	uint64_t top = e->heap[0], last = e->heap[--e->heap_count];
	size_t at = 0, child;

	while ((child = 2 * at + 1) < e->heap_count) {
		if (child + 1 < e->heap_count && e->heap[child + 1] < e->heap[child])
			child++;
		if (e->heap[child] >= last)
			break;
		e->heap[at] = e->heap[child];
		at = child;
	}
	e->heap[at] = last;
	return top;
}

static void push_pair(struct encoder *e, uint32_t left, uint32_t right)
{
	const struct merge *merge = find_merge(e->tok, e->symbols[left], e->symbols[right]);

	if (merge->rank != NO_ID)
		heap_push(e, (uint64_t)merge->rank << 32 | left);
}

static int encoder_reserve(struct encoder *e, size_t bytes)
{
	if (bytes <= e->room)
		return 0;
	free(e->symbols);
	free(e->next);
	free(e->prev);
	free(e->heap);
	e->symbols = malloc(bytes * sizeof(e->symbols[0]));
	e->next = malloc(bytes * sizeof(e->next[0]));
	e->prev = malloc(bytes * sizeof(e->prev[0]));
	e->heap = malloc(3 * bytes * sizeof(e->heap[0]));
	e->room = e->symbols && e->next && e->prev && e->heap ? bytes : 0;
	return e->room ? 0 : -ENOMEM;
}

static void encode_merges(struct encoder *e, uint32_t piece_bytes)
{
	while (e->heap_count) {
		uint64_t entry = heap_pop(e);
		uint32_t left = (uint32_t)entry, right = e->next[left];
		const struct merge *merge;

		if (e->symbols[left] == NO_ID || right == piece_bytes)
			continue;
		merge = find_merge(e->tok, e->symbols[left], e->symbols[right]);
		if (merge->rank != entry >> 32)
			continue;
		e->symbols[left] = merge->whole;
		e->symbols[right] = NO_ID;
		e->next[left] = e->next[right];
		if (e->next[left] != piece_bytes) {
			e->prev[e->next[left]] = left;
			push_pair(e, left, e->next[left]);
		}
		if (e->prev[left] != NO_ID)
			push_pair(e, e->prev[left], left);
	}
}

static int encode_piece(struct encoder *e, const uint8_t *text, size_t bytes)
{
	uint32_t piece_bytes = (uint32_t)bytes, id;

	if (bytes == 1) {
		e->ids[e->ids_count++] = (int32_t)e->tok->byte_ids[text[0]];
		return 0;
	}
	id = e->tok->whole_words ? find_text(e->tok, text, bytes) : NO_ID;
	if (id != NO_ID) {
		e->ids[e->ids_count++] = (int32_t)id;
		return 0;
	}
	if (encoder_reserve(e, bytes) < 0)
		return -ENOMEM;
	for (uint32_t i = 0; i < piece_bytes; i++) {
		e->symbols[i] = e->tok->byte_ids[text[i]];
		e->next[i] = i + 1;
		e->prev[i] = i ? i - 1 : NO_ID;
	}
	e->heap_count = 0;
	for (uint32_t i = 0; i + 1 < piece_bytes; i++)
		push_pair(e, i, i + 1);
	encode_merges(e, piece_bytes);
	for (uint32_t i = 0; i < piece_bytes; i = e->next[i])
		e->ids[e->ids_count++] = (int32_t)e->symbols[i];
	return 0;
}

/* The longest added token at the start of the text, or NO_ID. */
static uint32_t added_at(const struct tokenizer *tok, const uint8_t *text, size_t bytes)
{
	uint32_t best = NO_ID;

	if (!tok->added_first[text[0]])
		return NO_ID;
	for (uint32_t i = 0; i < tok->added_count; i++) {
		const struct token *token = &tok->tokens[tok->added[i]];

		if (token->bytes <= bytes && memcmp(token->text, text, token->bytes) == 0 &&
		    (best == NO_ID || token->bytes > tok->tokens[best].bytes))
			best = tok->added[i];
	}
	return best;
}

static int encode_all(struct encoder *e, const uint8_t *text, size_t bytes)
{
	const struct tokenizer *tok = e->tok;
	size_t at = 0, end;
	uint32_t added;
	int rc = 0;

	while (at < bytes && rc == 0) {
		added = NO_ID;
		for (end = at; end < bytes; end++) {
			added = added_at(tok, text + end, bytes - end);
			if (added != NO_ID)
				break;
		}
		while (at < end && rc == 0) {
			size_t piece = tokenizer_split_next(tok->split, text + at, end - at);

			rc = encode_piece(e, text + at, piece);
			at += piece;
		}
		if (added != NO_ID && rc == 0) {
			e->ids[e->ids_count++] = (int32_t)added;
			at += tok->tokens[added].bytes;
		}
	}
	return rc;
}

int tokenizer_encode(const struct tokenizer *tok, const void *text, size_t bytes, int32_t **ret_ids,
		     size_t *ret_count)
{
	struct encoder e = { .tok = tok };
	int rc;

	if (bytes > TOKENIZER_TEXT_BYTES_MAX)
		return -E2BIG;
	e.ids = malloc((bytes + 1) * sizeof(e.ids[0]));
	if (!e.ids)
		return -ENOMEM;
	rc = encode_all(&e, text, bytes);
	assert(e.ids_count <= bytes);
	free(e.symbols);
	free(e.next);
	free(e.prev);
	free(e.heap);
	if (rc < 0) {
		free(e.ids);
		return rc;
	}
	*ret_ids = e.ids;
	*ret_count = e.ids_count;
	return 0;
}

int tokenizer_decode(const struct tokenizer *tok, const int32_t *ids, size_t count, char **ret_text,
		     size_t *ret_bytes)
{
	size_t bytes = 0, at = 0;
	char *text;

	for (size_t i = 0; i < count; i++) {
		if (ids[i] < 0 || (uint32_t)ids[i] >= tok->ids_count || !tok->tokens[ids[i]].text)
			return -EINVAL;
		bytes += tok->tokens[ids[i]].bytes;
	}
	text = malloc(bytes + 1);
	if (!text)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		memcpy(text + at, tok->tokens[ids[i]].text, tok->tokens[ids[i]].bytes);
		at += tok->tokens[ids[i]].bytes;
	}
	text[bytes] = '\0';
	*ret_text = text;
	*ret_bytes = bytes;
	return 0;
}
