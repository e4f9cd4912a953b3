/* SPDX-License-Identifier: Apache-2.0 */
/*
 * models.h - the models that the `model` speculator runs: loaded from folders on a thread of their own, known by
 * their digest, kept in a folder of links so that the next start has them again.  Control thread.
 *
 *	QUEUED -> LOADING	the loader is free
 *	LOADING -> READY	in memory, as long as the daemon lives: profiles borrow it
 *	LOADING -> FAILED	err says why; the name may be used again
 *	READY -> REMOVED	no profile gets it any more
 */
#ifndef SKVCD_DAEMON_MODELS_H
#define SKVCD_DAEMON_MODELS_H

#include <limits.h>
#include <stdint.h>

#include "daemon/config.h"
#include "gpu/codec/model.h"

#define MODELS_MAX 32u
#define MODELS_NAME_BYTES 65u
#define MODELS_ERR_BYTES (MODEL_ERR_BYTES + 64u)

struct sd_event;
struct models;

enum model_state {
	MODEL_QUEUED,
	MODEL_LOADING,
	MODEL_READY,
	MODEL_FAILED,
	MODEL_REMOVED,
	MODEL_STATE_COUNT
};

struct model_entry {
	char name[MODELS_NAME_BYTES];
	char folder[PATH_MAX];
	enum model_state state;
	struct mspec_model *model; /* owned; READY and REMOVED */
	char err[MODELS_ERR_BYTES];
};

/* Told in the event loop about each load that has ended, well or not. */
typedef void (*models_loaded_fn)(void *user, const struct model_entry *entry);

/* Begins to load what state_dir/models names.  config: borrowed. */
int models_new(struct sd_event *event, const struct config *config, models_loaded_fn loaded,
	       void *user, struct models **ret);
/* Waits for a load that is under way.  Nobody may have a profile with one of its models any more. */
struct models *models_free(struct models *m);
/* No event comes after this. */
void models_stop(struct models *m);

/*
 * Begin to load a folder under a name.  0: models_loaded_fn follows; -EINVAL: not a name (letters, digits, '.', '_',
 * '-', 64 at most, no '.' in front), or the folder is no absolute path; -EEXIST: the name is taken; -ENOSPC.
 */
int models_add(struct models *m, const char *name, const char *folder, char *err, size_t err_bytes);
/* Not for new profiles, and not after the next start.  -ENOENT. */
int models_remove(struct models *m, const char *name);

const struct model_entry *models_at(const struct models *m, unsigned i); /* NULL: no more */
/* READY with this digest, or NULL. */
/* READY and of this name, or NULL.  m: NULL is none, here and below. */
const struct mspec_model *models_named(const struct models *m, const char *name);
const struct mspec_model *models_find(const struct models *m, const uint8_t *digest);
const char *model_state_name(enum model_state state);

#endif
