/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_tour.c - four engine processes and a daemon, and the comparison of what they report.
 *
 *  1 stores another text: the daemon sees this model for the first time and fits its statistics.
 *  2 stores: computes the prompt, generates, stores the prompt's blocks, and is gone.
 *  3 loads: a new process finds the blocks, loads them into pages of its own, computes only the rest.
 *  4 is on its own: no daemon, everything from scratch.
 *
 * Each reports a digest of every block's pages and the tokens it made.  A block counts as restored
 * byte-exact when the digest of 3's pages, which the daemon filled, equals that of 2's pages, which it
 * was stored from, and that of 4's, which were computed.
 */
#include "tools/demo_tour.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "gpu/model/file.h"
#include "gpu/model/report.h"
#include "tools/demo_daemon.h"
#include "tools/demo_run.h"
#include "tools/model.h"

#define REPORT_FILE_BYTES_MAX (16u << 20)
#define MIB 1048576.0

enum step { STEP_OTHER, STEP_STORE, STEP_LOAD, STEP_ALONE, STEP_COUNT };

struct tour {
	const struct demo_args *args; /* borrowed */
	const struct report *report;  /* borrowed */
	char model[PATH_MAX], prompt[PATH_MAX], other[PATH_MAX];
	struct demo_daemon daemon;
	cJSON *results[STEP_COUNT]; /* owned */
};

/* ---- what ships with the project ---- */

/* From the folder where make runs, or from the build tree's bin folder. */
static int find_shipped(const struct report *r, const char *name, char *ret)
{
	static const char *const places[] = { "", "/../../../" };
	char self[PATH_MAX];
	int used;

	demo_daemon_own_folder(self);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		used = snprintf(ret, PATH_MAX, "%s%stools/models/%s", i ? self : "", places[i],
				name);
		if (used > 0 && used < PATH_MAX && access(ret, R_OK) == 0)
			return 0;
	}
	return report_fail(r, -ENOENT, "tools/models/%s is not here: run it in the source folder",
			   name);
}

static int find_inputs(struct tour *t)
{
	int rc = 0;

	if (t->args->model)
		(void)snprintf(t->model, sizeof(t->model), "%s", t->args->model);
	else
		rc = find_shipped(t->report, "qwen3-7m", t->model);
	if (rc == 0 && t->args->prompt_file)
		(void)snprintf(t->prompt, sizeof(t->prompt), "%s", t->args->prompt_file);
	else if (rc == 0 && !t->args->prompt)
		rc = find_shipped(t->report, "prompt.txt", t->prompt);
	return rc == 0 ? find_shipped(t->report, "prompt-other.txt", t->other) : rc;
}

/* ---- the processes ---- */

static double number(const cJSON *json, const char *name)
{
	return cJSON_GetNumberValue(cJSON_GetObjectItemCaseSensitive(json, name));
}

static int read_result(struct tour *t, const char *path, cJSON **ret)
{
	static const char *const needed[] = {
		"prompt_tokens", "full_blocks", "block_bytes",	"restored_blocks",
		"stored_blocks", "raw_bytes",	"stored_bytes", "time_to_first_token_ms",
		"load_ms",	 "prefill_ms",	"store_ms"
	};
	char *text = NULL;
	size_t bytes = 0;
	cJSON *json;
	int rc;

	rc = file_read(t->report, path, REPORT_FILE_BYTES_MAX, &text, &bytes);
	if (rc < 0)
		return rc;
	json = cJSON_ParseWithLength(text, bytes + 1);
	free(text);
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (!cJSON_IsNumber(cJSON_GetObjectItemCaseSensitive(json, needed[i])))
			rc = -EINVAL;
	if (!cJSON_IsArray(cJSON_GetObjectItemCaseSensitive(json, "generated")) ||
	    !cJSON_IsArray(cJSON_GetObjectItemCaseSensitive(json, "block_digests")))
		rc = -EINVAL;
	if (rc < 0) {
		cJSON_Delete(json);
		return report_fail(t->report, rc, "the engine's report makes no sense");
	}
	*ret = json;
	return 0;
}

static int run_engine(struct tour *t, enum step step)
{
	static const char *const titles[STEP_COUNT] = {
		"another text: the daemon meets this model and fits its statistics",
		"the prompt: not in the cache yet, so computes, then stores",
		"a new one, the same prompt: loads what process 2 stored",
		"without skvcd: everything from scratch",
	};
	static const char *const modes[STEP_COUNT] = { "--store", "--store", "--load",
						       "--no-cache" };
	const bool text = t->args->prompt && step != STEP_OTHER;
	char output[DEMO_PATH_BYTES], tokens[16], threads[16];
	const char *argv[20] = { NULL,	     "--json", modes[step], "--model",	     t->model,
				 "--tokens", tokens,   "--socket",  t->daemon.socket };
	uint32_t argc = 9;
	int rc;

	printf("process %d, %s\n", (int)step + 1, titles[step]);
	(void)snprintf(output, sizeof(output), "%s/process%d", t->daemon.dir, (int)step + 1);
	(void)snprintf(tokens, sizeof(tokens), "%u", t->args->tokens);
	(void)snprintf(threads, sizeof(threads), "%u", t->args->threads);
	argv[argc++] = text ? "--prompt" : "--prompt-file";
	argv[argc++] = text ? t->args->prompt : step == STEP_OTHER ? t->other : t->prompt;
	if (t->args->threads) {
		argv[argc++] = "--threads";
		argv[argc++] = threads;
	}
	assert(argc < sizeof(argv) / sizeof(argv[0]));
	rc = demo_daemon_run(argv, output);
	if (rc == -EINTR)
		return report_fail(t->report, rc, "stopped");
	if (rc != 0) /* it has said why, on the same stderr */
		return report_fail(t->report, -ECHILD, "process %d failed", (int)step + 1);
	return read_result(t, output, &t->results[step]);
}

/* ---- what they said ---- */

static void say_time(const cJSON *json)
{
	printf("  time to first token  %.1f ms (load %.1f, compute %.1f)\n",
	       number(json, "time_to_first_token_ms"), number(json, "load_ms"),
	       number(json, "prefill_ms"));
}

static void say_stored(const cJSON *json)
{
	const double raw = number(json, "raw_bytes"), stored = number(json, "stored_bytes");

	printf("  stored               %.0f of %.0f blocks, committed in %.1f ms\n",
	       number(json, "stored_blocks"), number(json, "full_blocks"),
	       number(json, "store_ms"));
	printf("  compression          %.2f MiB to %.2f MiB: ratio %.3f\n", raw / MIB, stored / MIB,
	       stored > 0 ? raw / stored : 0);
}

/* The first line of trouble of a process's cache, as a failure of the tour. */
static int check_cache(const struct tour *t, enum step step, const char *count, double want)
{
	const cJSON *json = t->results[step];
	const char *note =
		cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "cache_note"));

	if (note && note[0])
		return report_fail(t->report, -EBADMSG, "process %d: %s", (int)step + 1, note);
	if (number(json, count) != want)
		return report_fail(t->report, -EBADMSG, "process %d: %s is %.0f, not %.0f",
				   (int)step + 1, count, number(json, count), want);
	return 0;
}

/* Leading elements that are equal in the lists of all who had this prompt. */
static uint32_t count_equal(const struct tour *t, const char *list)
{
	const cJSON *at[STEP_COUNT];
	uint32_t equal = 0;

	for (uint32_t i = STEP_STORE; i < STEP_COUNT; i++)
		at[i] = cJSON_GetObjectItemCaseSensitive(t->results[i], list)->child;
	while (at[STEP_STORE] && at[STEP_LOAD] && at[STEP_ALONE] &&
	       cJSON_Compare(at[STEP_STORE], at[STEP_LOAD], true) &&
	       cJSON_Compare(at[STEP_STORE], at[STEP_ALONE], true)) {
		for (uint32_t i = STEP_STORE; i < STEP_COUNT; i++)
			at[i] = at[i]->next;
		equal++;
	}
	return equal;
}

static bool same_length(const struct tour *t, const char *list, uint32_t length)
{
	for (uint32_t i = STEP_STORE; i < STEP_COUNT; i++)
		if ((uint32_t)cJSON_GetArraySize(
			    cJSON_GetObjectItemCaseSensitive(t->results[i], list)) != length)
			return false;
	return true;
}

static int check_all(const struct tour *t)
{
	const uint32_t restored = (uint32_t)number(t->results[STEP_LOAD], "restored_blocks");
	const uint32_t blocks = (uint32_t)number(t->results[STEP_LOAD], "full_blocks");
	const uint32_t exact = count_equal(t, "block_digests");
	const uint32_t tokens = count_equal(t, "generated");
	const double with = number(t->results[STEP_LOAD], "time_to_first_token_ms");
	const double without = number(t->results[STEP_ALONE], "time_to_first_token_ms");

	printf("\n%u blocks restored byte-exact, of %u restored\n",
	       exact < restored ? exact : restored, restored);
	printf("%u tokens generated by each process, %s\n", tokens,
	       same_length(t, "generated", tokens) ? "the same ones" : "then they DIFFER");
	printf("time to first token: %.1f ms without the cache, %.1f ms with it: %.1f times shorter\n",
	       without, with, without / with);
	if (exact < blocks || !same_length(t, "block_digests", blocks))
		return report_fail(t->report, -EBADMSG, "block %u differs between the processes",
				   exact);
	if (!tokens || !same_length(t, "generated", tokens))
		return report_fail(t->report, -EBADMSG, "the processes made different tokens");
	return 0;
}

/* On one line, whatever the model wrote. */
static void say_text(const cJSON *json)
{
	const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "text"));

	printf("  generated            \"");
	for (; text && *text; text++)
		putchar((unsigned char)*text < ' ' ? ' ' : *text);
	printf("\"\n");
}

/* ---- the tour ---- */

static int say_statistics(const struct tour *t)
{
	const char *argv[] = { "skvcctl", "--bus", t->daemon.bus, "stats", NULL };
	int rc;

	printf("\n$ skvcctl stats\n");
	rc = demo_daemon_run(argv, NULL);
	return rc == 0 ? 0 : report_fail(t->report, -ECHILD, "skvcctl stats failed");
}

static int run_stores(struct tour *t)
{
	const cJSON *json;
	int rc;

	rc = run_engine(t, STEP_OTHER);
	if (rc < 0)
		return rc;
	json = t->results[STEP_OTHER];
	say_time(json);
	say_stored(json);
	rc = check_cache(t, STEP_OTHER, "stored_blocks", number(json, "full_blocks"));
	if (rc == 0)
		rc = run_engine(t, STEP_STORE);
	if (rc < 0)
		return rc;
	json = t->results[STEP_STORE];
	say_time(json);
	printf("  prompt               %.0f tokens\n", number(json, "prompt_tokens"));
	say_stored(json);
	say_text(json);
	return check_cache(t, STEP_STORE, "stored_blocks", number(json, "full_blocks"));
}

static int run_loads(struct tour *t)
{
	uint32_t tokens, want;
	int rc;

	rc = run_engine(t, STEP_LOAD);
	if (rc < 0)
		return rc;
	say_time(t->results[STEP_LOAD]);
	say_text(t->results[STEP_LOAD]);
	/* The block of the prompt's last token is computed, for its logits. */
	tokens = (uint32_t)number(t->results[STEP_LOAD], "prompt_tokens");
	want = (tokens - 1) / MODEL_BLOCK_TOKENS;
	rc = check_cache(t, STEP_LOAD, "restored_blocks", want);
	if (rc == 0)
		rc = run_engine(t, STEP_ALONE);
	if (rc < 0)
		return rc;
	say_time(t->results[STEP_ALONE]);
	say_text(t->results[STEP_ALONE]);
	return 0;
}

static int walk(struct tour *t)
{
	int rc;

	rc = find_inputs(t);
	if (rc == 0)
		rc = demo_daemon_start(&t->daemon, t->report);
	if (rc < 0)
		return rc;
	printf("skvcd runs in %s, the model is %s\n\n", t->daemon.dir, t->model);
	rc = run_stores(t);
	if (rc == 0)
		rc = run_loads(t);
	if (rc == 0)
		rc = check_all(t);
	return rc == 0 ? say_statistics(t) : rc;
}

int demo_tour(const struct demo_args *args, char *err, size_t err_bytes)
{
	const struct report r = { .subject = "tour", .err = err, .err_bytes = err_bytes };
	struct tour *t = calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return report_fail(&r, -ENOMEM, "no memory");
	t->args = args;
	t->report = &r;
	demo_daemon_catch_signals();
	rc = walk(t);
	if (rc < 0 && rc != -EINTR)
		demo_daemon_print_log(&t->daemon);
	demo_daemon_stop(&t->daemon);
	for (uint32_t i = 0; i < STEP_COUNT; i++)
		cJSON_Delete(t->results[i]);
	free(t);
	return rc;
}
