/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_run.c - the life of one prompt.  Top to bottom: read it, find its prefix in the cache, compute
 * what is missing, generate, store what is new, report.
 *
 * At least one token of the prompt is always computed, for it is its logits that the first new token
 * comes from; blocks are whole, so that it is the last 1..16 tokens.
 *
 * Time to first token: from the prompt as text to the first new token as a number.  It has the
 * tokenizer, the lookup, the load and the rest of the prefill in it; it does not have the start of the
 * process, the weights or the connection, which an engine pays once.
 */
#include "tools/demo_run.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <sodium.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"
#include "tools/demo_cache.h"
#include "tools/model.h"
#include "tools/model_kernels.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/tokenizer.h"
#include "tools/tokenizer_unicode.h"

#define DIGEST_BYTES 16u

struct run {
	const struct demo_args *args; /* borrowed */
	const struct report *report;  /* borrowed */
	FILE *bars;		      /* borrowed: where progress is drawn */
	char name[128];		      /* of the model */
	char *prompt;		      /* owned */
	size_t prompt_bytes;
	struct tokenizer *tok; /* owned */
	struct model *model;   /* owned */
	struct demo_cache cache;

	int32_t *ids; /* owned; the prompt, then what is generated */
	uint32_t prompt_tokens;
	uint32_t tokens;      /* all so far */
	uint32_t full_blocks; /* of the prompt */
	uint32_t table[DEMO_BLOCKS_MAX];
	struct skvc_key *keys; /* owned; of the full blocks */
	float *logits;	       /* owned */

	uint64_t first_token_ns; /* the whole way, and its parts: */
	uint64_t load_ns, prefill_ns;
	uint64_t decode_ns, store_ns;
};

/* ---- before the clock runs ---- */

static void name_of(const char *folder, char *ret, size_t bytes)
{
	size_t end = strlen(folder), start, length;

	while (end > 1 && folder[end - 1] == '/')
		end--;
	start = end;
	while (start && folder[start - 1] != '/')
		start--;
	length = end - start < bytes - 1 ? end - start : bytes - 1;
	memcpy(ret, folder + start, length);
	ret[length] = '\0';
}

static int read_prompt(struct run *run)
{
	struct report r = *run->report;
	int rc;

	if (run->args->prompt) {
		run->prompt = strdup(run->args->prompt);
		if (!run->prompt)
			return report_fail(&r, -ENOMEM, "no memory");
		run->prompt_bytes = strlen(run->prompt);
		r.subject = "--prompt";
	} else {
		r.subject = run->args->prompt_file;
		rc = file_read(&r, r.subject, DEMO_PROMPT_BYTES_MAX, &run->prompt,
			       &run->prompt_bytes);
		if (rc < 0)
			return rc;
	}
	if (!run->prompt_bytes)
		return report_fail(&r, -EINVAL, "the prompt is empty");
	return 0;
}

static int open_model(struct run *run)
{
	const struct model_options options = {
		.threads = run->args->threads,
		.context_tokens = DEMO_BLOCKS_MAX * MODEL_BLOCK_TOKENS,
	};
	const size_t path_bytes = strlen(run->args->model) + sizeof("/tokenizer.json");
	struct report r = *run->report;
	char *path;
	int rc;

	name_of(run->args->model, run->name, sizeof(run->name));
	rc = model_open(run->args->model, &options, &run->model, r.err, r.err_bytes);
	if (rc < 0)
		return rc;
	path = malloc(path_bytes);
	run->logits = malloc(model_config(run->model)->vocab * sizeof(run->logits[0]));
	if (!path || !run->logits) {
		free(path);
		return report_fail(&r, -ENOMEM, "no memory");
	}
	(void)snprintf(path, path_bytes, "%s/tokenizer.json", run->args->model);
	r.subject = path;
	rc = tokenizer_open(path, &run->tok, r.err, r.err_bytes);
	if (rc == 0 && tokenizer_ids_count(run->tok) > model_config(run->model)->vocab)
		rc = report_fail(&r, -EINVAL, "has ids up to %u, the model has %u tokens",
				 tokenizer_ids_count(run->tok) - 1,
				 model_config(run->model)->vocab);
	free(path);
	return rc;
}

/* Blocks are given out in descending order: that the pages lie in order is nobody's right. */
static int open_cache(struct run *run)
{
	const uint32_t room = (uint32_t)(run->prompt_bytes < DEMO_BLOCKS_MAX * MODEL_BLOCK_TOKENS
						 ? run->prompt_bytes
						 : DEMO_BLOCKS_MAX * MODEL_BLOCK_TOKENS);
	uint32_t blocks = (room + run->args->tokens + MODEL_BLOCK_TOKENS - 1) / MODEL_BLOCK_TOKENS;
	int rc;

	blocks = blocks < DEMO_BLOCKS_MAX ? blocks : DEMO_BLOCKS_MAX;
	for (uint32_t i = 0; i < blocks; i++)
		run->table[i] = blocks - 1 - i;
	rc = demo_cache_open(&run->cache, run->model, run->name, blocks,
			     run->args->mode != DEMO_NO_CACHE, run->args->socket);
	return rc < 0 ? report_fail(run->report, rc, "no memory for %u pages", blocks) : 0;
}

/* ---- to the first token ---- */

static int encode_prompt(struct run *run)
{
	const uint32_t room = run->cache.pages.blocks_count * MODEL_BLOCK_TOKENS;
	size_t count = 0;
	int32_t *more;
	int rc;

	rc = tokenizer_encode(run->tok, run->prompt, run->prompt_bytes, &run->ids, &count);
	if (rc < 0)
		return report_fail(run->report, rc, "tokenizer: %s", strerror(-rc));
	if (count + run->args->tokens > room)
		return report_fail(run->report, -E2BIG,
				   "a prompt of %zu tokens and %u new ones are more than %u", count,
				   run->args->tokens, room);
	more = realloc(run->ids, (count + run->args->tokens) * sizeof(more[0]));
	if (!more)
		return report_fail(run->report, -ENOMEM, "no memory");
	run->ids = more;
	run->prompt_tokens = (uint32_t)count;
	run->tokens = run->prompt_tokens;
	run->full_blocks = run->prompt_tokens / MODEL_BLOCK_TOKENS;
	run->keys = calloc(run->full_blocks + 1, sizeof(run->keys[0]));
	if (!run->keys)
		return report_fail(run->report, -ENOMEM, "no memory");
	demo_cache_keys(run->model, run->ids, run->full_blocks, run->keys);
	return 0;
}

static int forward(struct run *run, uint32_t first, uint32_t count, float *logits)
{
	int rc = model_forward(run->model, &run->cache.pages, run->table, first, run->ids + first,
			       count, logits);

	return rc < 0 ? report_fail(run->report, rc, "model: %s", strerror(-rc)) : 0;
}

static int prefill(struct run *run, uint32_t first)
{
	const uint32_t end = run->prompt_tokens;
	struct progress bar;
	int rc = 0;

	progress_start(&bar, run->bars, "prefill", "tokens", end - first);
	for (uint32_t at = first; at < end && rc == 0; at += MODEL_BATCH_TOKENS) {
		uint32_t count = end - at < MODEL_BATCH_TOKENS ? end - at : MODEL_BATCH_TOKENS;

		rc = forward(run, at, count, at + count == end ? run->logits : NULL);
		progress_update(&bar, at + count - first);
	}
	progress_end(&bar, rc == 0 ? end - first : 0);
	return rc;
}

static int take_token(struct run *run)
{
	int32_t id = model_greedy(run->model, run->logits);

	if (id < 0)
		return report_fail(run->report, -EDOM, "the model's logits are no numbers");
	run->ids[run->tokens++] = id;
	return 0;
}

static int first_token(struct run *run)
{
	const bool load = run->args->mode == DEMO_LOAD_AND_STORE || run->args->mode == DEMO_LOAD;
	const uint64_t start_ns = progress_now_ns();
	uint64_t loaded_ns;
	int rc;

	rc = encode_prompt(run);
	if (rc < 0)
		return rc;
	loaded_ns = progress_now_ns();
	if (load)
		demo_cache_load(&run->cache, run->keys, run->ids, run->table,
				(run->prompt_tokens - 1) / MODEL_BLOCK_TOKENS);
	run->load_ns = progress_now_ns() - loaded_ns;
	loaded_ns += run->load_ns;
	rc = prefill(run, run->cache.restored_blocks * MODEL_BLOCK_TOKENS);
	run->prefill_ns = progress_now_ns() - loaded_ns;
	if (rc == 0)
		rc = take_token(run);
	run->first_token_ns = progress_now_ns() - start_ns;
	return rc;
}

/* ---- after it ---- */

static bool is_end(const struct run *run)
{
	const struct model_config *c = model_config(run->model);

	for (uint32_t i = 0; i < c->eos_count; i++)
		if (run->ids[run->tokens - 1] == (int32_t)c->eos[i])
			return true;
	return false;
}

static int generate(struct run *run)
{
	const uint32_t end = run->prompt_tokens + run->args->tokens;
	const uint64_t start_ns = progress_now_ns();
	struct progress bar;
	int rc = 0;

	progress_start(&bar, run->bars, "generate", "tokens", run->args->tokens);
	while (run->tokens < end && rc == 0 && !is_end(run)) {
		rc = forward(run, run->tokens - 1, 1, run->logits);
		if (rc == 0)
			rc = take_token(run);
		progress_update(&bar, run->tokens - run->prompt_tokens);
	}
	progress_end(&bar, run->tokens - run->prompt_tokens);
	run->decode_ns = progress_now_ns() - start_ns;
	return rc;
}

static void store(struct run *run)
{
	const uint32_t first = run->cache.restored_blocks;
	const uint64_t start_ns = progress_now_ns();

	if (run->args->mode == DEMO_LOAD || run->args->mode == DEMO_NO_CACHE)
		return;
	demo_cache_store(&run->cache, run->keys, run->ids, run->table, first,
			 run->full_blocks - first);
	run->store_ns = progress_now_ns() - start_ns;
}

/* BLAKE2b-128 of the pages of a block, all segments: what two runs compare. */
static void digest_block(const struct run *run, uint32_t index, char *ret_hex)
{
	const struct model_config *c = model_config(run->model);
	uint8_t digest[DIGEST_BYTES];
	crypto_generichash_state state;

	crypto_generichash_init(&state, NULL, 0, sizeof(digest));
	for (uint32_t segment = 0; segment < 2 * c->layers; segment++) {
		const uint16_t *page = model_page(c, &run->cache.pages, segment, run->table[index]);

		crypto_generichash_update(&state, (const uint8_t *)page, model_segment_bytes(c));
	}
	crypto_generichash_final(&state, digest, sizeof(digest));
	sodium_bin2hex(ret_hex, 2 * DIGEST_BYTES + 1, digest, sizeof(digest));
}

/* ---- the report ---- */

static double ms(uint64_t ns)
{
	return (double)ns * 1e-6;
}

static double decode_ms(const struct run *run)
{
	const uint32_t steps = run->tokens - run->prompt_tokens - 1;

	return steps ? ms(run->decode_ns) / steps : 0;
}

static bool json_numbers(const struct run *run, cJSON *json)
{
	const struct demo_cache *c = &run->cache;
	const struct {
		const char *name;
		double value;
	} numbers[] = {
		{ "prompt_tokens", run->prompt_tokens },
		{ "full_blocks", run->full_blocks },
		{ "block_bytes", (double)model_block_bytes(c->config) },
		{ "hit_blocks", c->hit_blocks },
		{ "restored_blocks", c->restored_blocks },
		{ "stored_blocks", c->stored_blocks },
		{ "raw_bytes", (double)c->raw_bytes },
		{ "stored_bytes", (double)c->stored_bytes },
		{ "time_to_first_token_ms", ms(run->first_token_ns) },
		{ "load_ms", ms(run->load_ns) },
		{ "prefill_ms", ms(run->prefill_ns) },
		{ "decode_ms_per_token", decode_ms(run) },
		{ "store_ms", ms(run->store_ns) },
	};
	bool ok = true;

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		ok = cJSON_AddNumberToObject(json, numbers[i].name, numbers[i].value) && ok;
	return ok;
}

static bool json_lists(const struct run *run, cJSON *json)
{
	cJSON *generated = cJSON_AddArrayToObject(json, "generated");
	cJSON *digests = cJSON_AddArrayToObject(json, "block_digests");
	char hex[2 * DIGEST_BYTES + 1];
	bool ok = generated && digests;

	for (uint32_t i = run->prompt_tokens; i < run->tokens && ok; i++)
		ok = cJSON_AddItemToArray(generated, cJSON_CreateNumber(run->ids[i]));
	for (uint32_t i = 0; i < run->full_blocks && ok; i++) {
		digest_block(run, i, hex);
		ok = cJSON_AddItemToArray(digests, cJSON_CreateString(hex));
	}
	return ok;
}

/* JSON is UTF-8, what a model says need not be: other bytes become '?', in place. */
static void make_utf8(char *text, size_t bytes)
{
	uint32_t c, used;

	for (size_t at = 0; at < bytes; at += used ? used : 1) {
		used = tokenizer_utf8((const uint8_t *)text + at, bytes - at, &c);
		if (!used || !c)
			text[at] = '?';
	}
}

static int print_json(const struct run *run, const char *text)
{
	cJSON *json = cJSON_CreateObject();

	if (json && cJSON_AddStringToObject(json, "model", run->name) &&
	    cJSON_AddStringToObject(json, "kernels", model_kernels(run->model)->name) &&
	    cJSON_AddNumberToObject(json, "threads", model_threads_used(run->model)) &&
	    cJSON_AddStringToObject(json, "cache_note", run->cache.note) &&
	    json_numbers(run, json) && json_lists(run, json) &&
	    cJSON_AddStringToObject(json, "text", text))
		return output_json(json, stdout) == 0
			       ? 0
			       : report_fail(run->report, -ENOMEM, "no memory");
	cJSON_Delete(json);
	return report_fail(run->report, -ENOMEM, "no memory");
}

static void print_cache(const struct run *run)
{
	const struct demo_cache *c = &run->cache;

	if (run->args->mode == DEMO_NO_CACHE)
		printf("%-22s off\n", "cache");
	else if (c->note[0])
		printf("%-22s %s; the engine goes on without it\n", "cache", c->note);
	if (c->session)
		printf("%-22s %u of %u blocks found, %u restored\n", "cache", c->hit_blocks,
		       run->full_blocks, c->restored_blocks);
	if (c->stored_blocks && c->stored_bytes)
		printf("%-22s %u blocks, %.2f MiB to %.2f MiB, ratio %.3f, in %.1f ms\n", "stored",
		       c->stored_blocks, (double)c->raw_bytes / 1048576,
		       (double)c->stored_bytes / 1048576,
		       (double)c->raw_bytes / (double)c->stored_bytes, ms(run->store_ns));
	else if (c->stored_blocks)
		printf("%-22s nothing new\n", "stored");
}

static int print_result(const struct run *run)
{
	const uint32_t count = run->tokens - run->prompt_tokens;
	size_t text_bytes = 0;
	char *text = NULL;
	int rc;

	rc = tokenizer_decode(run->tok, run->ids + run->prompt_tokens, count, &text, &text_bytes);
	if (rc < 0)
		return report_fail(run->report, rc, "the model made a token that is none");
	if (run->args->json) {
		make_utf8(text, text_bytes);
		rc = print_json(run, text);
	} else {
		print_cache(run);
		printf("%-22s %.1f ms (load %.1f, compute %.1f), then %.2f ms per token\n",
		       "time to first token", ms(run->first_token_ns), ms(run->load_ns),
		       ms(run->prefill_ns), decode_ms(run));
		printf("%-22s %u tokens:\n", "generated", count);
		(void)fwrite(text, 1, text_bytes, stdout);
		putchar('\n');
	}
	free(text);
	return rc;
}

static void run_free(struct run *run)
{
	demo_cache_close(&run->cache);
	free(run->prompt);
	free(run->ids);
	free(run->keys);
	free(run->logits);
	tokenizer_close(run->tok);
	model_close(run->model);
	free(run);
}

int demo_run(const struct demo_args *args, char *err, size_t err_bytes)
{
	const struct report r = { .subject = args->model, .err = err, .err_bytes = err_bytes };
	struct run *run = calloc(1, sizeof(*run));
	int rc;

	if (!run)
		return report_fail(&r, -ENOMEM, "no memory");
	run->args = args;
	run->report = &r;
	run->bars = !args->json ? stdout : isatty(STDERR_FILENO) ? stderr : NULL;
	rc = read_prompt(run);
	if (rc == 0)
		rc = open_model(run);
	if (rc == 0)
		rc = open_cache(run);
	if (rc == 0)
		rc = first_token(run);
	if (rc == 0)
		rc = generate(run);
	if (rc == 0) {
		store(run);
		rc = print_result(run);
	}
	run_free(run);
	return rc;
}
