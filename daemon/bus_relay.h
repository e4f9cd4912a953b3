/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bus_relay.h - between a peer of the bus socket and sd-bus.  What a peer sends may bring descriptors along, and
 * sd-bus, which wants none, closes them where it reads: in the control thread, which their owner then holds up
 * (aside.h).  So a thread of its own takes the bytes of each peer, and leaves the descriptors.
 */
#ifndef SKVCD_DAEMON_BUS_RELAY_H
#define SKVCD_DAEMON_BUS_RELAY_H

#include <sys/types.h>

/*
 * Takes sock, this user's, over, also when it fails.  *ret_sock, nonblocking and the caller's, is its other end from
 * now on; who the peer is cannot be asked of it.  Closing it ends the connection.  0, or -errno.
 */
int bus_relay_start(int sock, uid_t uid, int *ret_sock);

#endif
