/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_tokenizer.c - ids equal those of the reference library (literals below were made with it, from
 * the same tokenizer.json), any bytes survive a round trip, and what is not implemented is refused.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/model/report.h"
#include "tests/lib/rng.h"
#include "tools/tokenizer.h"
#include "tools/tokenizer_split.h"
#include "tools/tokenizer_unicode.h"

#define MODEL_TOKENIZER "tools/models/qwen3-7m/tokenizer.json"

/* A tokenizer.json of the 256 byte tokens, ids 0..255, and a few merges; to be freed. */
struct maker {
	const char *extra_vocab; /* ",\"ab\":256" */
	const char *merges;
	const char *pre_tokenizer;
	const char *model_options; /* "\"ignore_merges\":true," */
	const char *rest;	   /* ",\"added_tokens\":[...]" */
};

#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define SPLIT(pattern)                                                                                    \
	"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern \
	"\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","                        \
	"\"add_prefix_space\":false,\"use_regex\":false}]}"
#define MODERN(digits)                                                                       \
	SPLIT("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" digits \
	      "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+")
#define QWEN2 MODERN("\\\\p{N}")
#define LLAMA3 MODERN("\\\\p{N}{1,3}")

static char *make_json(const struct maker *m)
{
	char *json = malloc(16384);
	size_t at = 0, others = 256;

	assert_non_null(json);
	at += (size_t)sprintf(json, "{\"pre_tokenizer\":%s%s,\"model\":{%s\"vocab\":{",
			      m->pre_tokenizer ? m->pre_tokenizer : BYTE_LEVEL,
			      m->rest ? m->rest : "", m->model_options ? m->model_options : "");
	for (int b = 0; b < 256; b++) {
		int plain = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;

		at += (size_t)sprintf(json + at, "%s\"\\u%04x\":%d", b ? "," : "",
				      plain ? (unsigned)b : (unsigned)others, b);
		others += !plain;
	}
	(void)sprintf(json + at, "%s},\"merges\":[%s]}}", m->extra_vocab ? m->extra_vocab : "",
		      m->merges ? m->merges : "");
	return json;
}

static int parse_made(const struct maker *m, struct tokenizer **ret, char *err)
{
	char *json = make_json(m);
	int rc;

	err[0] = '\0';
	rc = tokenizer_parse(json, strlen(json), "FILE", ret, err, REPORT_BYTES);
	free(json);
	return rc;
}

static struct tokenizer *open_made(const struct maker *m)
{
	struct tokenizer *tok = NULL;
	char err[REPORT_BYTES];

	if (parse_made(m, &tok, err) < 0)
		fail_msg("%s", err);
	return tok;
}

static struct tokenizer *open_shipped(void)
{
	struct tokenizer *tok = NULL;
	char err[REPORT_BYTES];

	if (tokenizer_open(MODEL_TOKENIZER, &tok, err, sizeof(err)) < 0)
		fail_msg("%s", err);
	return tok;
}

static void expect_ids(const struct tokenizer *tok, const char *text, size_t bytes,
		       const int32_t *want, size_t want_count)
{
	int32_t *ids = NULL;
	size_t count = 0, back_bytes = 0;
	char *back = NULL;

	assert_int_equal(tokenizer_encode(tok, text, bytes, &ids, &count), 0);
	for (size_t i = 0; i < count && i < want_count; i++)
		if (ids[i] != want[i])
			fail_msg("\"%s\": token %zu is %d, not %d", text, i, ids[i], want[i]);
	assert_int_equal(count, want_count);
	assert_int_equal(tokenizer_decode(tok, ids, count, &back, &back_bytes), 0);
	assert_int_equal(back_bytes, bytes);
	assert_memory_equal(back, text, bytes);
	free(ids);
	free(back);
}

#define EXPECT_IDS(tok, text, ...)                                                                \
	do {                                                                                      \
		const int32_t want_[] = { __VA_ARGS__ };                                          \
		expect_ids(tok, text, sizeof(text) - 1, want_, sizeof(want_) / sizeof(want_[0])); \
	} while (0)

static void test_shipped_against_reference(void **state)
{
	struct tokenizer *tok = open_shipped();

	(void)state;
	assert_int_equal(tokenizer_ids_count(tok), 8192);
	EXPECT_IDS(tok, "Hello, world!", 40, 522, 79, 12, 944, 1);
	EXPECT_IDS(tok, "It's the king's  own\n\n  horse; they'll see.", 843, 381, 261, 1764, 381,
		   221, 711, 199, 199, 221, 1775, 27, 433, 964, 622, 14);
	EXPECT_IDS(tok, "Été à 12:34 — naïve ½ Ⅷ 日本語", 128, 232, 84, 2897, 221, 128, 255, 1289,
		   18, 26, 19, 20, 1364, 296, 65, 128, 108, 310, 221, 127, 122, 221, 159, 228, 101,
		   221, 163, 246, 99, 163, 251, 106, 165, 104, 253);
	EXPECT_IDS(tok, "a<|endoftext|>b", 65, 0, 66);
	EXPECT_IDS(tok, "\u3000\u00a0x \r\n\t y'S", 160, 223, 223, 127, 255, 88, 221, 202, 199, 198,
		   325, 7, 51);
	expect_ids(tok, "", 0, NULL, 0);
	tokenizer_close(tok);
}

/* With no merges an id is a byte, and only added tokens and the cut between pieces matter. */
static void test_any_bytes_come_back(void **state)
{
	static const char *const pre[] = { BYTE_LEVEL, QWEN2, LLAMA3 };
	struct tokenizer *shipped = open_shipped();
	uint8_t text[512];
	struct rng rng;

	(void)state;
	rng_init(&rng, rng_seed_env(7));
	for (uint32_t round = 0; round < 600; round++) {
		struct maker m = { .pre_tokenizer = pre[round % 3] };
		struct tokenizer *tok = round % 20 < 3 ? open_made(&m) : shipped;
		uint32_t bytes = rng_below(&rng, sizeof(text) + 1);
		size_t count = 0, back_bytes = 0;
		int32_t *ids = NULL;
		char *back = NULL;

		rng_fill(&rng, text, bytes);
		for (uint32_t i = 0; i < bytes && round % 2; i++) /* half of them mostly ASCII */
			text[i] = rng_one_in(&rng, 8) ? text[i]
						      : (uint8_t) " a1'.\n\tS"[text[i] % 8];
		assert_int_equal(tokenizer_encode(tok, text, bytes, &ids, &count), 0);
		assert_int_equal(tokenizer_decode(tok, ids, count, &back, &back_bytes), 0);
		assert_int_equal(back_bytes, bytes);
		assert_memory_equal(back, text, bytes);
		for (size_t i = 0; i < count && tok != shipped; i++)
			assert_int_equal(ids[i], text[i]);
		free(ids);
		free(back);
		if (tok != shipped)
			tokenizer_close(tok);
	}
	tokenizer_close(shipped);
}

/* The pieces of a text as lengths, checked against what the regular expressions give. */
static void expect_pieces(enum tokenizer_split split, const char *text, const char *const *pieces)
{
	size_t left = strlen(text);

	for (; *pieces; pieces++) {
		size_t bytes;

		assert_true(left > 0);
		bytes = tokenizer_split_next(split, (const uint8_t *)text, left);
		if (bytes != strlen(*pieces) || memcmp(text, *pieces, bytes) != 0)
			fail_msg("split %d: \"%.*s\" instead of \"%s\"", (int)split, (int)bytes,
				 text, *pieces);
		text += bytes;
		left -= bytes;
	}
	assert_int_equal(left, 0);
}

#define EXPECT_PIECES(split, text, ...)                              \
	do {                                                         \
		const char *const pieces_[] = { __VA_ARGS__, NULL }; \
		expect_pieces(split, text, pieces_);                 \
	} while (0)

static void test_splits(void **state)
{
	const enum tokenizer_split g = TOKENIZER_SPLIT_GPT2, q = TOKENIZER_SPLIT_QWEN2,
				   l = TOKENIZER_SPLIT_LLAMA3;

	(void)state;
	EXPECT_PIECES(g, "I'll say 'stop'   now  ", "I", "'ll", " say", " '", "stop", "'", "  ",
		      " now", "  ");
	EXPECT_PIECES(g, "it'S 1234abc--é\n\nx", "it", "'", "S", " 1234", "abc", "--", "é", "\n",
		      "\n", "x");
	EXPECT_PIECES(g, "'re're've'm'd't's", "'re", "'re", "'ve", "'m", "'d", "'t", "'s");
	EXPECT_PIECES(q, "it'S 1234 (abc)", "it", "'S", " ", "1", "2", "3", "4", " (", "abc", ")");
	EXPECT_PIECES(q, "a  \n\n  b!\n\nc", "a", "  \n\n", " ", " b", "!\n\n", "c");
	EXPECT_PIECES(q, "\tx\u00a0y \n", "\tx", "\u00a0y", " \n");
	EXPECT_PIECES(l, "12345 67", "123", "45", " ", "67");
	EXPECT_PIECES(l, "we'LL\r\n  go", "we", "'LL", "\r\n", " ", " go");
}

static void test_classes(void **state)
{
	uint32_t c = 0;

	(void)state;
	assert_int_equal(tokenizer_classify('z'), TOKENIZER_LETTER);
	assert_int_equal(tokenizer_classify(0xaa), TOKENIZER_LETTER);
	assert_int_equal(tokenizer_classify(0x3134a), TOKENIZER_LETTER);
	assert_int_equal(tokenizer_classify('7'), TOKENIZER_NUMBER);
	assert_int_equal(tokenizer_classify(0xbd), TOKENIZER_NUMBER);
	assert_int_equal(tokenizer_classify(0x2167), TOKENIZER_NUMBER);
	assert_int_equal(tokenizer_classify(0x2003), TOKENIZER_SPACE);
	assert_int_equal(tokenizer_classify('_'), TOKENIZER_OTHER);
	assert_int_equal(tokenizer_classify(0x301), TOKENIZER_OTHER);
	assert_int_equal(tokenizer_utf8((const uint8_t *)"\xe2\x82\xac", 3, &c), 3);
	assert_int_equal(c, 0x20ac);
	assert_int_equal(tokenizer_utf8((const uint8_t *)"\xe2\x82", 2, &c), 0);
	assert_int_equal(tokenizer_utf8((const uint8_t *)"\xc0\x80", 2, &c), 0);     /* overlong */
	assert_int_equal(tokenizer_utf8((const uint8_t *)"\xed\xa0\x80", 3, &c), 0); /* surrogate */
	assert_int_equal(tokenizer_utf8((const uint8_t *)"\xf4\x90\x80\x80", 4, &c), 0);
	assert_int_equal(tokenizer_utf8((const uint8_t *)"\xf4\x8f\xbf\xbf", 4, &c), 4);
}

/* The lowest rank goes first wherever it stands; both notations; a piece that is a token. */
static void test_merges(void **state)
{
	static const char *const merges[] = {
		"[\"b\",\"c\"],[\"a\",\"b\"],[\"a\",\"bc\"]",
		"\"b c\",\"a b\",\"a bc\"",
	};
	struct maker m = { .extra_vocab = ",\"bc\":300,\"ab\":301,\"abc\":302,\"cab\":303" };
	struct tokenizer *tok;

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		m.merges = merges[i];
		tok = open_made(&m);
		EXPECT_IDS(tok, "abc", 302);
		EXPECT_IDS(tok, "abab", 301, 301);
		EXPECT_IDS(tok, "aabcb", 'a', 302, 'b');
		EXPECT_IDS(tok, "cab", 'c', 301);
		EXPECT_IDS(tok, "a b c", 'a', ' ', 'b', ' ', 'c');
		tokenizer_close(tok);
	}
	m.model_options = "\"ignore_merges\":true,";
	tok = open_made(&m);
	EXPECT_IDS(tok, "cab", 303);
	EXPECT_IDS(tok, "cabs", 'c', 301, 's');
	tokenizer_close(tok);
}

static void test_added_tokens(void **state)
{
	const struct maker m = {
		.rest = ",\"added_tokens\":[{\"id\":400,\"content\":\"<a>\"},"
			"{\"id\":401,\"content\":\"<a>b\"},{\"id\":65,\"content\":\"A\"}]",
	};
	struct tokenizer *tok = open_made(&m);
	int32_t hole = 399;
	size_t bytes;
	char *text;

	(void)state;
	EXPECT_IDS(tok, "x<a>y", 'x', 400, 'y');
	EXPECT_IDS(tok, "<a>b<a>", 401, 400); /* the longest */
	EXPECT_IDS(tok, "<a", '<', 'a');
	EXPECT_IDS(tok, "A", 'A');
	assert_int_equal(tokenizer_ids_count(tok), 402);
	assert_int_equal(tokenizer_decode(tok, &hole, 1, &text, &bytes), -EINVAL);
	hole = 402;
	assert_int_equal(tokenizer_decode(tok, &hole, 1, &text, &bytes), -EINVAL);
	hole = -1;
	assert_int_equal(tokenizer_decode(tok, &hole, 1, &text, &bytes), -EINVAL);
	tokenizer_close(tok);
}

static void test_says_what_is_wrong(void **state)
{
	static const struct {
		struct maker maker;
		const char *says;
	} wrong[] = {
		{ { .extra_vocab = ",\"ab\":-1" }, "the id of ab is not in" },
		{ { .extra_vocab = ",\"ab\":1e9" }, "the id of ab is not in" },
		{ { .extra_vocab = ",\"ab\":65" }, "ab: id 65 is taken" },
		{ { .extra_vocab = ",\"A\":300" }, "A is there twice" },
		{ { .extra_vocab = ",\"\":300" }, "only byte-level BPE" },
		{ { .extra_vocab = ",\"\u2581the\":300" }, "only byte-level BPE" },
		{ { .merges = "[\"a\"]" }, "merges[0]: not a pair" },
		{ { .merges = "\"ab\"" }, "merges[0]: not a pair" },
		{ { .merges = "[\"a\",\"b\"]" }, "merges[0]: the result is not in the vocabulary" },
		{ { .extra_vocab = ",\"aaa\":300", .merges = "[\"a\",\"aa\"]" },
		  "merges[0]: a half is not in the vocabulary" },
		{ { .pre_tokenizer = "null" }, "pre_tokenizer" },
		{ { .pre_tokenizer = "{\"type\":\"Metaspace\"}" }, "pre_tokenizer" },
		{ { .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}" },
		  "pre_tokenizer" },
		{ { .pre_tokenizer = SPLIT("\\\\w+") }, "this pattern is not implemented" },
		{ { .model_options = "\"type\":\"Unigram\"," }, "only BPE" },
		{ { .model_options = "\"byte_fallback\":true," }, "byte_fallback" },
		{ { .model_options = "\"end_of_word_suffix\":\"</w>\"," }, "end_of_word_suffix" },
		{ { .rest = ",\"normalizer\":{\"type\":\"Lowercase\"}" }, "normalizer" },
		{ { .rest = ",\"added_tokens\":{}" }, "added_tokens is not an array" },
		{ { .rest = ",\"added_tokens\":[{\"id\":1}]" }, "added_tokens[0]" },
		{ { .rest = ",\"added_tokens\":[{\"id\":1,\"content\":\"\"}]" },
		  "added_tokens[0]" },
		{ { .rest = ",\"added_tokens\":[{\"id\":65,\"content\":\"B\"}]" },
		  "id 65 is A here" },
		{ { .rest = ",\"added_tokens\":[{\"id\":9,\"content\":\"x\",\"lstrip\":true}]" },
		  "added token x" },
	};
	struct tokenizer *tok = NULL;
	char err[REPORT_BYTES];

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		int rc = parse_made(&wrong[i].maker, &tok, err);

		if (rc != -EINVAL || strncmp(err, "FILE: ", 6) != 0 || !strstr(err, wrong[i].says))
			fail_msg("%zu (%s): %d, \"%s\"", i, wrong[i].says, rc, err);
	}
	assert_int_equal(tokenizer_parse("{", 1, "FILE", &tok, err, sizeof(err)), -EINVAL);
	assert_int_equal(tokenizer_parse("{}", 2, "FILE", &tok, err, sizeof(err)), -EINVAL);
	assert_int_equal(tokenizer_open("/nonexistent", &tok, err, sizeof(err)), -ENOENT);
	assert_string_equal(err, "/nonexistent: No such file or directory");
	assert_null(tok);
	assert_null(tokenizer_close(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shipped_against_reference),
		cmocka_unit_test(test_any_bytes_come_back),
		cmocka_unit_test(test_splits),
		cmocka_unit_test(test_classes),
		cmocka_unit_test(test_merges),
		cmocka_unit_test(test_added_tokens),
		cmocka_unit_test(test_says_what_is_wrong),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
