/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wake.h - how the daemon wakes a client that sleeps: one end of a socket that the client polls.
 *
 * It is no eventfd: O_NONBLOCK belongs to the open file, which a descriptor that was passed on shares, so a
 * client could fill an eventfd, make it block, and have stopped whoever writes to it next.  Nor is it a pipe,
 * whose reader holds a lock while it copies into memory that may be long in coming.
 */
#ifndef SKVCD_IPC_WAKE_H
#define SKVCD_IPC_WAKE_H

/* The end that stays, for wake_send(), and the one that is passed on.  0, -errno. */
int wake_pair(int *ret_fd, int *ret_peer_fd);

/* Readable is all that the other end becomes, and it is if that cannot be done.  Never blocks, no signal. */
void wake_send(int fd);

#endif
