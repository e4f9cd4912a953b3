/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reload.h - a configuration that was read again, beside the one that is in force: what can change while the
 * daemon runs does, what cannot is named.  Control thread.
 */
#ifndef SKVCD_DAEMON_RELOAD_H
#define SKVCD_DAEMON_RELOAD_H

#include <stddef.h>

#include "daemon/config.h"

#define RELOAD_TEXT_BYTES 2048u

struct reload {
	unsigned changed; /* keys that are in force now */
	unsigned waiting; /* keys that need a restart */
	/* A line for each: "[host] full_percent = 90", "[host] pool = 4G: needs a restart" */
	char text[RELOAD_TEXT_BYTES];
};

/* Takes into `now` what may change of what `next`, which was checked, has otherwise. */
void reload_take(struct config *now, const struct config *next, struct reload *ret);
/* The same, then `tell`s of it.  When that fails `now` is as it was, and its result is handed on. */
int reload_try(struct config *now, const struct config *next, int (*tell)(void *user), void *user,
	       struct reload *ret);

#endif
