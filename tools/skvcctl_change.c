/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_change.c - the commands that change a daemon: model, quota, evict, drain, reload.  Each checks its
 * words, calls, and says what came of it.
 */
#include "tools/skvcctl_change.h"
#include "tools/output.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct timespec wait_pause = { .tv_nsec = 100000000 };

static int say(enum skvcctl_exit e, const char *err)
{
	if (e != SKVCCTL_OK)
		(void)fprintf(stderr, "skvcctl: %s\n", err);
	return output_end() < 0 ? SKVCCTL_FAILURE : (int)e;
}

static int usage(const char *what)
{
	(void)fprintf(stderr, "skvcctl: %s\nTry 'skvcctl --help'.\n", what);
	return SKVCCTL_USAGE;
}

/* ---- model add, model remove ---- */

static const struct skvcctl_model *model_named(const struct skvcctl_picture *p, const char *name)
{
	for (size_t i = 0; i < p->models_count; i++)
		if (!strcmp(p->models[i].name, name) && strcmp(p->models[i].state, "removed") != 0)
			return &p->models[i];
	return NULL;
}

/* Until it is loaded, or is not: that takes as long as reading the weights does. */
static enum skvcctl_exit model_wait(const struct skvcctl_source *source, const char *name,
				    char *err, size_t err_bytes)
{
	for (;;) {
		struct skvcctl_picture p = { 0 };
		const struct skvcctl_model *m;
		enum skvcctl_exit e = skvcctl_fetch(source, SKVCCTL_GET_MODELS, &p, err, err_bytes);
		bool ready, failed;

		if (e != SKVCCTL_OK)
			return e;
		m = model_named(&p, name);
		ready = m && !strcmp(m->state, "ready");
		failed = !m || !strcmp(m->state, "failed");
		if (ready)
			(void)printf("%s: %" PRIu32 " layers, digest %.16s\n", name, m->layers,
				     m->digest);
		if (failed)
			(void)snprintf(err, err_bytes, "%.400s", m ? m->err : "it was removed");
		skvcctl_picture_deinit(&p);
		if (ready || failed)
			return ready ? SKVCCTL_OK : SKVCCTL_FAILURE;
		(void)nanosleep(&wait_pause, NULL);
	}
}

static int model(const struct skvcctl_source *source, int count, char **words)
{
	char err[SKVCCTL_ERR_BYTES] = "";
	enum skvcctl_exit e;

	if (count == 3 && !strcmp(words[0], "add")) {
		e = skvcctl_model_add(source, words[1], words[2], err, sizeof(err));
		if (e == SKVCCTL_OK)
			e = model_wait(source, words[1], err, sizeof(err));
	} else if (count == 2 && !strcmp(words[0], "remove")) {
		e = skvcctl_model_remove(source, words[1], err, sizeof(err));
	} else {
		return usage("model add NAME FOLDER, or model remove NAME");
	}
	return say(e, err);
}

/* ---- quota, evict, drain, reload ---- */

static int quota(const struct skvcctl_source *source, int count, char **words)
{
	char err[SKVCCTL_ERR_BYTES] = "";
	uint64_t bytes = 0;

	if (count != 2 ||
	    (strcmp(words[1], "none") != 0 && skvcctl_parse_bytes(words[1], &bytes) < 0))
		return usage("quota TENANT SIZE, as 20G; or quota TENANT none");
	return say(skvcctl_set_quota(source, words[0], bytes, err, sizeof(err)), err);
}

/* Digits alone, and no number that means all of them. */
static int parse_ns(const char *word, uint32_t *ret_ns)
{
	unsigned long long ns;
	char *end;

	if (word[0] < '0' || word[0] > '9')
		return -EINVAL;
	errno = 0;
	ns = strtoull(word, &end, 10);
	if (errno || *end || ns >= SKVCCTL_NS_ANY)
		return -EINVAL;
	*ret_ns = (uint32_t)ns;
	return 0;
}

static int evict(const struct skvcctl_source *source, int count, char **words)
{
	struct skvcctl_evicted gone = { 0 };
	char err[SKVCCTL_ERR_BYTES] = "", bytes[16];
	const char *tenant = "";
	uint32_t ns = SKVCCTL_NS_ANY;
	enum skvcctl_exit e;

	if (count == 2 && !strcmp(words[0], "tenant") && words[1][0]) {
		tenant = words[1];
	} else if (count == 2 && !strcmp(words[0], "namespace")) {
		if (parse_ns(words[1], &ns) < 0)
			return usage("evict namespace takes a number of skvcctl namespaces");
	} else if (count != 1 || strcmp(words[0], "all") != 0) {
		return usage("evict tenant NAME, evict namespace ID, or evict all");
	}
	e = skvcctl_evict(source, tenant, ns, &gone, err, sizeof(err));
	if (e == SKVCCTL_OK)
		(void)printf("%" PRIu64 " blocks of %s are gone, %" PRIu64 " are in use and stay\n",
			     gone.blocks, skvcctl_format_bytes(gone.bytes, bytes), gone.kept);
	return say(e, err);
}

/* Until nobody is connected. */
static enum skvcctl_exit drain_wait(const struct skvcctl_source *source, char *err,
				    size_t err_bytes)
{
	for (;;) {
		struct skvcctl_picture p = { 0 };
		enum skvcctl_exit e = skvcctl_fetch(source, SKVCCTL_GET_SESSIONS, &p, err,
						    err_bytes);
		size_t sessions = p.sessions_count;

		if (e != SKVCCTL_OK)
			return e;
		skvcctl_picture_deinit(&p);
		if (!sessions)
			return e;
		(void)nanosleep(&wait_pause, NULL);
	}
}

static int drain(const struct skvcctl_source *source, int count, char **words)
{
	bool off = count == 1 && !strcmp(words[0], "off");
	bool wait = count == 1 && !strcmp(words[0], "wait");
	char err[SKVCCTL_ERR_BYTES] = "";
	enum skvcctl_exit e;

	if (count && !off && !wait)
		return usage("drain, drain wait, or drain off");
	e = skvcctl_drain(source, !off, err, sizeof(err));
	if (e == SKVCCTL_OK && wait)
		e = drain_wait(source, err, sizeof(err));
	return say(e, err);
}

static int reload(const struct skvcctl_source *source, int count, char **words)
{
	char err[SKVCCTL_ERR_BYTES] = "", text[4096] = "";
	enum skvcctl_exit e;

	(void)words;
	if (count)
		return usage("reload takes nothing behind it");
	e = skvcctl_reload(source, text, sizeof(text), err, sizeof(err));
	if (e == SKVCCTL_OK)
		(void)printf("%s", text[0] ? text : "nothing has changed\n");
	return say(e, err);
}

int skvcctl_change(const struct skvcctl_source *source, int count, char **words)
{
	static const struct {
		const char *name;
		int (*run)(const struct skvcctl_source *source, int count, char **words);
	} commands[] = {
		{ "model", model }, { "quota", quota },	  { "evict", evict },
		{ "drain", drain }, { "reload", reload },
	};

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, words[0]))
			return commands[i].run(source, count - 1, words + 1);
	return -1;
}
