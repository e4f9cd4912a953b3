/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_link.h - one connection to a daemon, and what to tell a person who gets none.
 */
#ifndef SKVCD_TOOLS_SKVCCTL_LINK_H
#define SKVCD_TOOLS_SKVCCTL_LINK_H

#include <stddef.h>

#include <systemd/sd-bus.h>

#include "tools/skvcctl.h"

#define BUS_NAME "org.skvcd.Skvcd1"
#define BUS_PATH "/org/skvcd/Skvcd1"

struct skvcctl_link {
	sd_bus *bus;			     /* owned */
	const char *destination;	     /* NULL: peer to peer */
	const struct skvcctl_source *source; /* borrowed */
	char *err;			     /* borrowed */
	size_t err_bytes;
};

/* What does not come back with SKVCCTL_OK has one line in err.  bus: the caller's to close, in any case. */
enum skvcctl_exit skvcctl_link_open(struct skvcctl_link *l);
/* A method without arguments.  *ret_reply: to be unreferenced. */
enum skvcctl_exit skvcctl_link_call(struct skvcctl_link *l, const char *method,
				    sd_bus_message **ret_reply);
/* SKVCCTL_FAILURE; error: -errno. */
enum skvcctl_exit skvcctl_link_failed(struct skvcctl_link *l, int error, const char *what);

#endif
