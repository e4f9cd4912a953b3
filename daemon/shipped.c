/* SPDX-License-Identifier: Apache-2.0 */
/* shipped.c - see shipped.h. */
#include "daemon/shipped.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "gpu/model/file.h"
#include "gpu/model/report.h"

#define SHIPPED_SUFFIX ".skvp"

static void directory_of(const struct config *config, char *ret, size_t bytes)
{
	if (config->profile_directory[0])
		(void)snprintf(ret, bytes, "%s", config->profile_directory);
	else
		(void)snprintf(ret, bytes, "%s/profiles", config->state_dir);
}

/* NULL: not for this geometry, or not a profile, which is logged. */
static struct codec_profile *read_profile(const struct config *config,
					  const struct codec_geometry *g, const char *path)
{
	char err[REPORT_BYTES] = "", *bytes = NULL;
	const struct report report = { .subject = path, .err = err, .err_bytes = sizeof(err) };
	struct codec_profile *p = NULL;
	size_t count;
	int r = file_read(&report, path, config->profile_bytes_max, &bytes, &count);

	if (r < 0) {
		if (r != -ENOENT)
			log_line(LOG_LEVEL_WARNING, "%s", err);
		return NULL;
	}
	r = codec_profile_parse(g, bytes, count, &p);
	free(bytes);
	if (r == -EBADMSG)
		log_line(
			LOG_LEVEL_WARNING,
			"%s: not a profile, or a damaged one; make it again with skvc-bench calibrate",
			path);
	else if (r < 0 && r != -ESTALE)
		log_line(LOG_LEVEL_WARNING, "%s: %s", path, strerror(-r));
	return p;
}

/*
 * The namespace's model as files and models are called after it, and again without its revision, which stands behind
 * an '@'.  Returns how many names that are.
 */
static unsigned names_of(const struct namespace *ns, char ret[2][sizeof(ns->model)])
{
	const char *at = strchr(ns->model, '@');

	for (unsigned i = 0; i < 2; i++) {
		memcpy(ret[i], ns->model, sizeof(ns->model));
		if (i && at)
			ret[i][at - ns->model] = '\0';
		for (char *c = ret[i]; *c; c++)
			if (!isalnum((unsigned char)*c) && *c != '.' && *c != '-')
				*c = '_';
	}
	return at ? 2 : 1;
}

static struct codec_profile *read_named(const struct config *config, const struct namespace *ns,
					const char *directory, char *path, size_t path_bytes)
{
	char names[2][sizeof(ns->model)];
	struct codec_profile *p = NULL;

	for (unsigned i = 0, n = names_of(ns, names); i < n && !p; i++) {
		(void)snprintf(path, path_bytes, "%s/%s" SHIPPED_SUFFIX, directory, names[i]);
		p = read_profile(config, &ns->geom, path);
	}
	return p;
}

static int is_profile(const struct dirent *entry)
{
	size_t n = strlen(entry->d_name), suffix = strlen(SHIPPED_SUFFIX);

	return n > suffix && !strcmp(entry->d_name + n - suffix, SHIPPED_SUFFIX);
}

/* path: of the file, when there is one. */
static struct codec_profile *find(const struct config *config, const struct namespace *ns,
				  char *path, size_t path_bytes)
{
	char directory[PATH_MAX + 16];
	struct dirent **entries = NULL;
	struct codec_profile *p;
	int n;

	directory_of(config, directory, sizeof(directory));
	p = read_named(config, ns, directory, path, path_bytes);
	if (p)
		return p;
	n = scandir(directory, &entries, is_profile, alphasort);
	for (int i = 0; i < n; i++) {
		if (!p) {
			(void)snprintf(path, path_bytes, "%s/%s", directory, entries[i]->d_name);
			p = read_profile(config, &ns->geom, path);
		}
		free(entries[i]);
	}
	free((void *)entries);
	return p;
}

static void attach(const struct models *models, const struct namespace *ns, struct codec_profile *p,
		   const char *path)
{
	const struct codec_model_info wants = codec_profile_model(p);
	const struct mspec_model *m = models_find(models, wants.digest);
	int r;

	if (!wants.vocab || !m)
		return;
	r = codec_profile_attach_model(p, m);
	if (r < 0)
		log_line(LOG_LEVEL_WARNING, "%s: its part for the model cannot be used: %s", path,
			 r == -EBADMSG ? "it is damaged" : strerror(-r));
	else
		log_line(LOG_LEVEL_INFO, "namespace %u (%s): %s has its model", ns->id, ns->model,
			 path);
}

/* For a fit of the daemon's own. */
static void offer_model(const struct models *models, struct namespace *ns)
{
	const struct mspec_model *m = NULL;
	char names[2][sizeof(ns->model)];

	for (unsigned i = 0, n = names_of(ns, names); i < n && !m; i++)
		m = models_named(models, names[i]);
	atomic_store_explicit(&ns->fit_model, m, memory_order_release);
}

static void offer(struct namespace *ns, struct codec_profile *p)
{
	/* One that the lane has not taken yet is ours still. */
	codec_profile_free(atomic_exchange_explicit(&ns->shipped, p, memory_order_acq_rel));
}

void shipped_offer(const struct config *config, const struct models *models, struct namespace *ns)
{
	char path[2 * PATH_MAX];
	struct codec_profile *p;

	if (config->speculator < CONFIG_SPECULATOR_CHANNEL)
		return;
	offer_model(models, ns);
	p = find(config, ns, path, sizeof(path));
	if (!p)
		return;
	log_line(LOG_LEVEL_INFO, "namespace %u (%s): its profile is %s", ns->id, ns->model, path);
	attach(models, ns, p, path);
	offer(ns, p);
}

void shipped_offer_model(const struct config *config, const struct models *models,
			 struct registry *registry, const uint8_t *digest)
{
	char path[2 * PATH_MAX];

	if (config->speculator < CONFIG_SPECULATOR_CHANNEL)
		return;
	for (uint32_t i = 0; i < registry->namespaces_count; i++) {
		struct namespace *ns = registry->namespaces[i];
		struct codec_profile *p = find(config, ns, path, sizeof(path));
		struct codec_model_info wants = { 0 };

		offer_model(models, ns);
		if (!p)
			continue;
		wants = codec_profile_model(p);
		if (!wants.vocab || memcmp(wants.digest, digest, sizeof(wants.digest)) != 0) {
			codec_profile_free(p);
			continue;
		}
		attach(models, ns, p, path);
		offer(ns, p);
	}
}
