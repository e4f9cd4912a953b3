/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw_client.h - a client without libskvc, which may therefore break every rule: it writes any packet to the
 * control socket and any bytes to the shared segment.
 */
#ifndef SKVCD_TESTS_LIB_RAW_CLIENT_H
#define SKVCD_TESTS_LIB_RAW_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "ipc/abi.h"
#include "ipc/ctl_msg.h"
#include "ipc/ring.h"

struct raw_client {
	int sock; /* -1: none */
	int sq_fd, cq_fd;
	uint8_t *segment; /* NULL before the handshake */
	uint64_t segment_bytes;
	struct skvc_abi_header layout; /* copied once */
	struct ring sq, cq;
	uint32_t seq;
	union {
		struct ctl_header h;
		struct ctl_welcome welcome;
		struct ctl_ns ns;
		struct ctl_arena arena;
		struct ctl_region region;
		struct ctl_error error;
		uint8_t bytes[512];
	} answer;	   /* of the last request */
	int answer_fds[4]; /* of the last request; closed by the next */
	unsigned answer_fds_count;
};

/* Connect, nothing more.  0 or -errno. */
int raw_client_connect(struct raw_client *c, const char *socket);
void raw_client_close(struct raw_client *c);
void raw_client_close_all(void); /* those that a failed test left open */

/* Send any bytes, with any descriptors.  0 or -errno. */
int raw_client_send(struct raw_client *c, const void *packet, size_t bytes, const int *fds,
		    unsigned fds_count);
/* Wait for one packet, at most ms.  Its length; 0: the daemon closed; -ETIMEDOUT; -errno. */
int raw_client_recv(struct raw_client *c, int ms);
/* Both; the header is filled in.  Returns the answer's type, 0 when the daemon closed instead. */
int raw_client_request(struct raw_client *c, void *packet, uint16_t type, size_t bytes);

/* A HELLO that every daemon takes. */
struct ctl_hello raw_client_hello(uint32_t sq_entries);
/* Connect, say hello, map the segment.  0 or -errno. */
int raw_client_open(struct raw_client *c, const char *socket, uint32_t sq_entries);
/* A small namespace (1 segment of 64 x 1 u8, 16 tokens: blocks of 1 KiB), an arena of 64 KiB that is
 * mapped at *ret_arena and a packed region of 64 blocks.  Handles may be NULL. */
int raw_client_memory(struct raw_client *c, uint32_t *ret_ns, uint32_t *ret_region,
		      uint8_t **ret_arena);

/* Publish one entry and wake the daemon if it sleeps.  -EAGAIN: no room. */
int raw_client_submit(struct raw_client *c, const struct skvc_abi_sqe *sqe);
void raw_client_wake(struct raw_client *c);
/* One completion, waiting at most ms; -ETIMEDOUT, -EPIPE when the session was closed. */
int raw_client_complete(struct raw_client *c, struct skvc_abi_cqe *ret, int ms);
/* Wait until the daemon has ended this session: its reason, or -ETIMEDOUT. */
int raw_client_end_reason(struct raw_client *c, int ms);

/* A connection whose last close() takes an hour: what was sent has no room at its other end, *ret_peer.  Or -errno. */
int raw_lingering_socket(int *ret_peer);

#endif
