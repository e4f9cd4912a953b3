/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus_internal.h - what bus*.c share: the bus, and how a call is answered.
 */
#ifndef SKVCD_DAEMON_BUS_INTERNAL_H
#define SKVCD_DAEMON_BUS_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "daemon/bus.h"
#include "daemon/listener.h"
#include "daemon/util/clock.h"

#define BUS_NAME "org.skvcd.Skvcd1"
#define BUS_PATH "/org/skvcd/Skvcd1"
#define BUS_PEERS_MAX 16u
#define BUS_PEERS_KEPT 4u     /* of these, for root and the daemon's own user */
#define BUS_PEERS_PER_USER 4u /* of others */
#define BUS_WAITING_MAX 32u   /* for a place */
#define BUS_WAITING_KEPT 8u
#define BUS_WAITING_PER_USER 4u
#define BUS_WAIT_NS (2 * CLOCK_NS_PER_S) /* less than skvcctl waits for an answer */

struct bus_peer {
	sd_bus *bus; /* NULL: free */
	uid_t uid;
};

struct bus_waiting {
	int sock; /* owned; nothing was read from it */
	uid_t uid;
	uint64_t until_ns;
};

struct bus {
	sd_event *event;	 /* borrowed */
	struct control *control; /* borrowed */
	struct listener listener;
	sd_event_source *accept_source;
	sd_bus *system;	      /* NULL: there is none */
	unsigned looks_alone; /* at which there was none */
	struct bus_peer peers[BUS_PEERS_MAX];
	struct bus_waiting waiting[BUS_WAITING_MAX]; /* in the order they came */
	unsigned waiting_count;
	sd_event_source *wait_source; /* for the end of the first one's time */
	sd_event_source *look_source; /* once a second: has a property changed? */
	const char *health;	      /* as it was last told; static text */
	bool draining;
};

extern const sd_bus_vtable bus_vtable[];
int bus_attach(struct bus *bus, sd_bus *sd);

/* bus_peers.c: -errno with one line in err when the socket cannot be had; 0: it serves, or none is wanted. */
int bus_peers_start(struct bus *bus, char *err, size_t err_bytes);
void bus_peers_look(struct bus *bus); /* once a second */
void bus_peers_stop(struct bus *bus); /* also after it failed */

/* -ENOBUFS: the peer does not read its answers; its connection is closed. */
int bus_may_answer(sd_bus_message *call);
int bus_reply_new(sd_bus_message *call, sd_bus_message **ret_reply);
/* Sends and drops a reply that was built, or drops it and hands the error on. */
int bus_reply_send(sd_bus_message *reply, int r);

/* bus_lists.c: sd_bus_message_handler_t; user is the bus. */
int bus_on_list_namespaces(sd_bus_message *call, void *user, sd_bus_error *error);
int bus_on_list_profiles(sd_bus_message *call, void *user, sd_bus_error *error);
int bus_on_list_sessions(sd_bus_message *call, void *user, sd_bus_error *error);
int bus_on_list_tenants(sd_bus_message *call, void *user, sd_bus_error *error);
/* An array of what `append` makes of each namespace; and as all of a reply. */
int bus_append_namespaces(sd_bus_message *m, const struct bus *bus, const char *contents,
			  int (*append)(sd_bus_message *m, const struct namespace *ns));
int bus_reply_namespaces(sd_bus_message *call, const struct bus *bus, const char *contents,
			 int (*append)(sd_bus_message *m, const struct namespace *ns));
int bus_on_get_plan(sd_bus_message *call, void *user, sd_bus_error *error); /* bus_plan.c */
int bus_on_get_placement(sd_bus_message *call, void *user, sd_bus_error *error);
int bus_on_find_block(sd_bus_message *call, void *user, sd_bus_error *error);
int bus_on_list_models(sd_bus_message *call, void *user, sd_bus_error *error);

#endif
