/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.h - the control thread's event loop: connections, the lane's mail, the end.  main.c makes it,
 * bus.c reads from it on the same thread.
 */
#ifndef SKVCD_DAEMON_CONTROL_H
#define SKVCD_DAEMON_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/config.h"
#include "daemon/lane.h"
#include "daemon/listener.h"
#include "daemon/models.h"
#include "daemon/registry.h"
#include "daemon/session.h"
#include "daemon/stats.h"

struct sd_event;
struct control;

/* listener, config, lane, registry: borrowed until control_free().  -errno. */
int control_new(struct sd_event *event, const struct config *config, struct lane *lane,
		struct registry *registry, struct listener *listener, struct control **ret_control);
/* Before the loop runs.  models: borrowed until control_free(), and made with control_model_loaded(). */
void control_use_models(struct control *control, struct models *models);
void control_model_loaded(void *control, const struct model_entry *entry);
struct control *control_free(struct control *control); /* after control_drained() */

/* Accept nobody any more and end every session; the event loop exits when the last one is gone, or with
 * -ETIMEDOUT after 5 s. */
void control_stop(struct control *control);

/* ---- to change, from the same thread ---- */

/* Until a reload or a restart.  -ENOENT: nobody has connected as this tenant; -EAGAIN. */
int control_set_quota(struct control *control, const char *tenant, uint64_t quota_bytes);

#define CONTROL_NS_ANY UINT32_MAX

struct control_evicted {
	uint64_t blocks, bytes; /* that went; compressed */
	uint64_t kept;		/* blocks that somebody holds */
};

/* done: called once, or with NULL when the daemon ends first. */
typedef void (*control_evict_done)(void *user, const struct control_evicted *result);

/* Blocks of a tenant ("": any) and a namespace (CONTROL_NS_ANY).  -ENOENT, -EBUSY: another one is at work. */
int control_evict(struct control *control, const char *tenant, uint32_t ns, control_evict_done done,
		  void *user);
/* done: called once, or with NULL when the daemon ends first.  result is valid during the call. */
typedef void (*control_find_done)(void *user, const struct lane_question *result);

/* -EBUSY: another question is being answered. */
int control_find(struct control *control, const struct skvc_abi_key *key, control_find_done done,
		 void *user);
/* Takes no new sessions while on; those that are here go on. */
void control_drain(struct control *control, bool on);
bool control_draining(const struct control *control);

/* Reads the configuration again: 0 with what came of it, or -errno with one line that says why the old one stays. */
typedef int (*control_reload_fn)(void *user, char *ret_text, size_t text_bytes);
void control_on_reload(struct control *control, control_reload_fn fn, void *user);
int control_reload(struct control *control, char *ret_text,
		   size_t text_bytes); /* -ENOTSUP without */
/* control_config() has other values: tell the lane and the tenants.  -EAGAIN, -ENOMEM. */
int control_config_changed(struct control *control);

/* ---- to look at, from the same thread ---- */

const struct config *control_config(const struct control *control);
struct models *control_models(const struct control *control);
const struct registry *control_registry(const struct control *control);
const struct session *control_session(const struct control *control,
				      uint32_t slot);			/* NULL: free */
uint64_t control_stat(const struct control *control, enum stats_id id); /* the lane's and our own */
uint64_t control_reason(const struct control *control, uint16_t reason);
const struct plan_shown_rate *control_plan_rates(const struct control *control);
const struct stats *control_lane_stats(const struct control *control); /* histograms */
const char *control_health(
	const struct control *control); /* "ok", "degraded", "draining" or "stopping" */
/* "2 sessions, pool 12 % of 1024 MiB, ...": one line for systemd and skvcctl. */
void control_status(const struct control *control, char *ret_line, size_t line_bytes);

#endif
