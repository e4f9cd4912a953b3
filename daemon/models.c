/* SPDX-License-Identifier: Apache-2.0 */
/*
 * models.c - see models.h.  The loader thread has one folder at a time, and its result in struct load, which the
 * control thread looks at after it has joined the thread.
 */
#include "daemon/models.h"

#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <systemd/sd-event.h>

#include "daemon/log.h"

struct load { /* the thread's while it runs */
	char folder[PATH_MAX];
	struct mspec_model *model;
	char err[MODELS_ERR_BYTES];
	int fd; /* borrowed: told when it is over */
};

struct models {
	sd_event_source *source;
	models_loaded_fn loaded;
	void *user;			       /* borrowed */
	char folder[PATH_MAX + 8];	       /* of the links */
	struct model_entry *entry[MODELS_MAX]; /* owned */
	unsigned count;
	struct model_entry *loading; /* whose folder the thread has; NULL: there is none */
	struct load load;
	pthread_t thread;
	int fd; /* owned eventfd: the thread has ended */
};

const char *model_state_name(enum model_state state)
{
	static const char *const names[MODEL_STATE_COUNT] = {
		[MODEL_QUEUED] = "queued", [MODEL_LOADING] = "loading", [MODEL_READY] = "ready",
		[MODEL_FAILED] = "failed", [MODEL_REMOVED] = "removed",
	};

	assert(state < MODEL_STATE_COUNT);
	return names[state];
}

/* ---- the links ---- */

static void link_path(const struct models *m, const char *name, char *ret, size_t bytes)
{
	(void)snprintf(ret, bytes, "%s/%s", m->folder, name);
}

static void link_make(const struct models *m, const struct model_entry *e)
{
	char path[PATH_MAX + 300], old[PATH_MAX];
	ssize_t n;

	(void)mkdir(m->folder, 0700);
	link_path(m, e->name, path, sizeof(path));
	n = readlink(path, old, sizeof(old) - 1);
	if (n > 0) {
		old[n] = '\0';
		if (!strcmp(old, e->folder))
			return;
		(void)unlink(path);
	}
	if (symlink(e->folder, path) < 0)
		log_line(LOG_LEVEL_WARNING, "%s: %s; the next start will not have model %s", path,
			 strerror(errno), e->name);
}

/* ---- loading ---- */

static void *load_main(void *user)
{
	struct load *l = user;
	const uint64_t one = 1;

	/* With all planes: parameters may be fitted for it. */
	if (mspec_model_load(l->folder, true, &l->model, l->err, sizeof(l->err)) < 0 && !l->err[0])
		(void)snprintf(l->err, sizeof(l->err), "%.256s: no memory", l->folder);
	(void)!write(l->fd, &one, sizeof(one));
	return NULL;
}

static void load_next(struct models *m)
{
	for (unsigned i = 0; i < m->count && !m->loading; i++) {
		struct model_entry *e = m->entry[i];
		int r;

		if (e->state != MODEL_QUEUED)
			continue;
		e->state = MODEL_LOADING;
		m->loading = e;
		m->load = (struct load){ .fd = m->fd };
		memcpy(m->load.folder, e->folder, sizeof(m->load.folder));
		r = pthread_create(&m->thread, NULL, load_main, &m->load);
		if (r) {
			m->loading = NULL;
			e->state = MODEL_FAILED;
			(void)snprintf(e->err, sizeof(e->err), "no thread to load it: %s",
				       strerror(r));
			m->loaded(m->user, e);
		}
	}
}

static int on_loaded(sd_event_source *source, int fd, uint32_t events, void *user)
{
	struct models *m = user;
	struct model_entry *e = m->loading;
	uint64_t n;

	(void)source;
	(void)events;
	(void)!read(fd, &n, sizeof(n));
	if (!e)
		return 0;
	(void)pthread_join(m->thread, NULL);
	m->loading = NULL;
	e->model = m->load.model;
	memcpy(e->err, m->load.err, sizeof(e->err));
	e->state = e->model ? MODEL_READY : MODEL_FAILED;
	if (e->model)
		link_make(m, e);
	m->loaded(m->user, e);
	load_next(m);
	return 0;
}

/* ---- names ---- */

static bool name_good(const char *name)
{
	size_t n = strlen(name);

	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
			return false;
	return n > 0 && n < MODELS_NAME_BYTES && name[0] != '.';
}

/* A place for it: a failed one of that name, or a new one. */
static int place(struct models *m, const char *name, struct model_entry **ret)
{
	struct model_entry *e = NULL;

	for (unsigned i = 0; i < m->count; i++) {
		if (m->entry[i]->state == MODEL_FAILED && (!e || !strcmp(m->entry[i]->name, name)))
			e = m->entry[i];
		else if (m->entry[i]->state != MODEL_REMOVED && !strcmp(m->entry[i]->name, name))
			return -EEXIST;
	}
	if (!e) {
		if (m->count == MODELS_MAX)
			return -ENOSPC;
		e = calloc(1, sizeof(*e));
		if (!e)
			return -ENOMEM;
		m->entry[m->count++] = e;
	}
	*ret = e;
	return 0;
}

int models_add(struct models *m, const char *name, const char *folder, char *err, size_t err_bytes)
{
	struct model_entry *e;
	int r;

	if (!name_good(name) || folder[0] != '/' || strlen(folder) >= sizeof(e->folder)) {
		(void)snprintf(
			err, err_bytes,
			"%s: a name has letters, digits, '.', '_' and '-', at most 64, and the "
			"folder is an absolute path",
			name_good(name) ? folder : name);
		return -EINVAL;
	}
	r = place(m, name, &e);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "%s: %s", name,
			       r == -EEXIST   ? "there is a model of this name"
			       : r == -ENOSPC ? "too many models were added; restart the daemon"
					      : "no memory");
		return r;
	}
	*e = (struct model_entry){ .state = MODEL_QUEUED };
	memcpy(e->name, name, strlen(name) + 1);
	memcpy(e->folder, folder, strlen(folder) + 1);
	load_next(m);
	return 0;
}

int models_remove(struct models *m, const char *name)
{
	char path[PATH_MAX + 300];

	for (unsigned i = 0; i < m->count; i++) {
		struct model_entry *e = m->entry[i];

		if (strcmp(e->name, name) != 0 ||
		    (e->state != MODEL_READY && e->state != MODEL_FAILED))
			continue;
		if (e->state == MODEL_READY)
			e->state = MODEL_REMOVED;
		link_path(m, e->name, path, sizeof(path));
		(void)unlink(path);
		return 0;
	}
	return -ENOENT;
}

/* ---- to look at ---- */

const struct model_entry *models_at(const struct models *m, unsigned i)
{
	return i < m->count ? m->entry[i] : NULL;
}

const struct mspec_model *models_find(const struct models *m, const uint8_t *digest)
{
	for (unsigned i = 0; m && i < m->count; i++)
		if (m->entry[i]->state == MODEL_READY &&
		    !memcmp(mspec_model_digest(m->entry[i]->model), digest, MODEL_DIGEST_BYTES))
			return m->entry[i]->model;
	return NULL;
}

const struct mspec_model *models_named(const struct models *m, const char *name)
{
	for (unsigned i = 0; m && i < m->count; i++)
		if (m->entry[i]->state == MODEL_READY && !strcmp(m->entry[i]->name, name))
			return m->entry[i]->model;
	return NULL;
}

/* ---- start and stop ---- */

static void add_linked(struct models *m)
{
	char path[PATH_MAX + 300], folder[PATH_MAX], err[MODELS_ERR_BYTES];
	DIR *d = opendir(m->folder);
	const struct dirent *entry;

	while (d && (entry = readdir(d)) != NULL) {
		ssize_t n;

		if (!name_good(entry->d_name))
			continue;
		link_path(m, entry->d_name, path, sizeof(path));
		n = readlink(path, folder, sizeof(folder) - 1);
		if (n <= 0)
			continue;
		folder[n] = '\0';
		if (models_add(m, entry->d_name, folder, err, sizeof(err)) < 0)
			log_line(LOG_LEVEL_WARNING, "model %s", err);
	}
	if (d)
		(void)closedir(d);
}

int models_new(sd_event *event, const struct config *config, models_loaded_fn loaded, void *user,
	       struct models **ret)
{
	struct models *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	m->loaded = loaded;
	m->user = user;
	(void)snprintf(m->folder, sizeof(m->folder), "%s/models", config->state_dir);
	m->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = m->fd < 0 ? -errno : sd_event_add_io(event, &m->source, m->fd, EPOLLIN, on_loaded, m);
	if (r < 0) {
		models_free(m);
		return r;
	}
	add_linked(m);
	*ret = m;
	return 0;
}

void models_stop(struct models *m)
{
	if (m)
		m->source = sd_event_source_disable_unref(m->source);
}

struct models *models_free(struct models *m)
{
	if (!m)
		return NULL;
	models_stop(m);
	if (m->loading) {
		(void)pthread_join(m->thread, NULL);
		mspec_model_free(m->load.model);
	}
	for (unsigned i = 0; i < m->count; i++) {
		mspec_model_free(m->entry[i]->model);
		free(m->entry[i]);
	}
	if (m->fd >= 0)
		(void)close(m->fd);
	free(m);
	return NULL;
}
