/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus.h - what the daemon tells about itself and what an operator may ask of it, over D-Bus: peer to peer on a
 * Unix socket of its own, so that no bus daemon is needed, and on the system bus when there is one.  Control
 * thread.
 */
#ifndef SKVCD_DAEMON_BUS_H
#define SKVCD_DAEMON_BUS_H

#include <stddef.h>

#include "daemon/control.h"

struct bus;
struct sd_event;

/* -errno with one line in err when the socket cannot be had; a missing system bus is no error. */
int bus_new(struct sd_event *event, struct control *control, struct bus **ret_bus, char *err,
	    size_t err_bytes);
struct bus *bus_free(struct bus *bus);

#endif
