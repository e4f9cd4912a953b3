/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control_rig.h - the daemon's control thread, its bus and a real lane, inside the test's own process: so
 * that sanitizers see both sides, and the test sees what a client's end left behind.
 */
#ifndef SKVCD_TESTS_LIB_CONTROL_RIG_H
#define SKVCD_TESTS_LIB_CONTROL_RIG_H

#include <pthread.h>
#include <stdint.h>

#include "daemon/bus.h"
#include "daemon/control.h"

struct control_rig {
	char dir[64]; /* of the sockets and the secret; removed at the end */
	struct config config;
	struct listener listener;
	struct registry *registry;
	struct lane *lane;
	struct control *control; /* the rig's thread's, like event and bus */
	struct bus *bus;
	struct sd_event *event;
	int stop_fd;
	int result; /* of the event loop */
	pthread_t thread;
};

/* overrides: "section.key=value", NULL-terminated, or NULL.  Fails the test when it cannot start. */
void control_rig_start(struct control_rig *rig, const char *const *overrides);
/* As SIGTERM would; returns what the event loop returned.  Frees everything. */
int control_rig_stop(struct control_rig *rig);
/* The first half of it, for a look at what clients see: everything is still mapped here. */
void control_rig_stop_begin(struct control_rig *rig);

/* A connection to its bus socket, and one with a handshake begun: the caller's to close. */
int control_rig_bus_socket(const struct control_rig *rig);
struct sd_bus *control_rig_bus(const struct control_rig *rig);

/* Wait until that many sessions are with the lane; the milliseconds it took, or -1 after limit_ms. */
int control_rig_wait_sessions(struct control_rig *rig, uint64_t count, unsigned limit_ms);

unsigned control_rig_open_fds(void); /* of this process */
unsigned control_rig_fds_left(
	unsigned want); /* once it is no more than that; what was passed is closed aside */
unsigned control_rig_mappings(const char *name); /* of this process, whose path has `name` in it */

#endif
