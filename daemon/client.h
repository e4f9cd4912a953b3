/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.h - one connection on the control socket, from accept to the last byte freed.  Control thread.
 *
 *	HELLO    -> ADDING	a good handshake came; SESSION_ADD is out
 *	ADDING   -> IDLE	the lane took it: WELCOME was sent
 *	IDLE     -> ASKING	a request needs the lane: its mail is out, nothing more is read
 *	ASKING   -> IDLE	the lane answered, and so did we
 *	IDLE     -> LEAVING	BYE; SESSION_END is out
 *	any      -> ENDING	death, garbage, silence, shutdown: nothing is read any more, SESSION_END goes out
 *				as soon as the lane knows the session
 *	ENDING, LEAVING -> OVER	SESSION_GONE: the socket closes, memory is unmapped and freed
 *	HELLO    -> OVER	refused, or nothing came
 *
 * The event loop is control.c's: it calls in here, then asks client_wants_input(), client_deadline_ns()
 * and the state what to do next.  Nothing here blocks.
 */
#ifndef SKVCD_DAEMON_CLIENT_H
#define SKVCD_DAEMON_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/arena.h"
#include "daemon/lane.h"
#include "daemon/listener.h"
#include "daemon/registry.h"
#include "daemon/session.h"
#include "daemon/stats.h"
#include "ipc/ctl_msg.h"

#define CLIENT_HELLO_NS 5000000000ull /* a connection must say hello in this time */
#define CLIENT_REQUESTS_PER_S 512u    /* more wait in the client's own socket */

enum client_state {
	CLIENT_HELLO,
	CLIENT_ADDING,
	CLIENT_IDLE,
	CLIENT_ASKING,
	CLIENT_LEAVING,
	CLIENT_ENDING,
	CLIENT_OVER,
	CLIENT_STATE_COUNT
};

struct client;
struct models;
struct sd_event_source;

/* What all clients share; control.c owns it. */
struct client_host {
	const struct config *config; /* borrowed */
	struct lane *lane;	     /* borrowed */
	struct registry *registry;   /* borrowed */
	const struct models *models; /* borrowed */
	struct stats *stats;	     /* borrowed: the control thread's own counters */
	struct device *gpu; /* borrowed, lane_gpu(): only its import calls and dead(); or NULL */
	struct client **by_slot; /* owned, [config->sessions_max]; NULL: free */
	uint32_t sessions_count;
	bool draining;		/* nobody new is taken */
	uint32_t sessions_made; /* ids go on from here */
	uint64_t arenas_bytes;	/* of all sessions */
	uint8_t *packet;	/* owned, CTL_MSG_BYTES_MAX: the packet at hand */
	/* Mail that did not fit the lane's box; at most two letters a session are ever on their way. */
	struct mail *late; /* owned, [late_max] */
	uint32_t late_count, late_max;
};

/* An allocation of the client's GPU memory, opened by the device. */
struct client_memory {
	struct device_memory *memory; /* owned */
	void *base;		      /* an address of the device */
	uint64_t bytes;
	uint32_t holds; /* its own handle, and regions that lie in it; closed at 0 */
};

struct client {
	struct client_host *host; /* borrowed */
	enum client_state state;
	int sock;	      /* owned; -1: closed */
	int pidfd;	      /* owned; -1: none */
	bool drop_socket;     /* control.c: close both as soon as they are not watched */
	uint64_t deadline_ns; /* of the handshake, or the end of a pause; 0: none */
	uint64_t window_ns;   /* requests are counted from here */
	uint32_t window_requests;
	uint16_t end_reason;
	uint8_t mails_out; /* answers that the lane owes, without SESSION_GONE */
	bool end_sent;	   /* SESSION_END is with the lane */
	/* the request at hand */
	uint32_t seq;
	uint16_t type;
	uint32_t handle;       /* that it is about, or will make */
	struct region *region; /* a new region or event: owned until the lane has it */
	/* what it has; handles start at 1 */
	struct session session; /* the lane's from SESSION_ADD to SESSION_GONE */
	int segment_fd;		/* owned until WELCOME was sent, as is ... */
	int wake_fd;		/* the client's end of session.cq_fd */
	struct arena arena[SESSION_ARENAS_MAX + 1];
	struct region *regions[SESSION_REGIONS_MAX + 1]; /* owned */
	struct namespace *ns[SESSION_NS_MAX + 1];	 /* borrowed */
	uint64_t arenas_bytes;
	uint32_t memories_count; /* GPU allocations that are open */
	uint32_t strides_count;	 /* of all regions */
	/* control.c's */
	void *loop; /* borrowed: whose loop it is in */
	struct sd_event_source *sock_source, *pidfd_source, *timer_source;
	uint32_t index; /* in its table */
};

int client_host_init(struct client_host *host, const struct config *config, struct lane *lane,
		     struct registry *registry, struct stats *stats);
void client_host_deinit(struct client_host *host);
/* To the lane; kept and sent later when its box is full. */
void client_host_post(struct client_host *host, uint32_t type, void *subject, void *object,
		      uint64_t value);
void client_host_flush(struct client_host *host);

/* Takes sock and peer->pidfd over, also when it fails. */
int client_new(struct client_host *host, int sock, const struct listener_peer *peer,
	       struct client **ret_client);
struct client *client_free(struct client *c); /* OVER, and not watched any more */

void client_input(struct client *c);	/* the socket is readable: takes one packet */
void client_gone(struct client *c);	/* the process ended, or its socket hung up */
void client_deadline(struct client *c); /* deadline_ns has passed */
void client_shutdown(struct client *c); /* the daemon stops */
void client_mail(struct client *c, const struct mail *mail); /* from the lane, about this session */

bool client_wants_input(const struct client *c);
void client_close(struct client *c); /* control.c: sources are gone, close the fds */

/* For client_request.c: */
/* Sends a message whose header is filled in here; fds are borrowed.  A client that cannot take it is ended. */
void client_answer(struct client *c, uint16_t type, void *message, uint32_t bytes, const int *fds,
		   unsigned fds_count);
/* The request is answered with an error, the session goes on. */
void client_refuse(struct client *c, int res, uint16_t reason, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
void client_ask(struct client *c, enum lane_mail type, void *object,
		uint32_t handle); /* -> ASKING */

/* client_request.c: one request of an open session; a copy that was checked.  fd: borrowed, or -1. */
void client_request(struct client *c, const void *packet, int fd);
void client_request_done(struct client *c, const struct mail *mail); /* the lane's answer to it */
void client_request_drop(struct client *c); /* forget the request at hand */
/* A free handle, or 0 after a refusal; room: also for a region's strides. */
uint32_t client_region_slot(struct client *c);
uint32_t client_region_room(struct client *c, uint32_t strides_count);
/* The lane does not know it (any more): undo what was made of it, and free it. */
void client_region_delete(struct client *c, struct region *region);
/* [block][segment][token][head][element], as a canonical block lies. */
void client_packed_strides(const struct codec_geometry *g, struct codec_stride *ret_strides,
			   uint64_t *ret_block_strides);

/* client_gpu.c: the same for what lies on the GPU.  Each answers, or asks the lane. */
void client_gpu_memory(struct client *c, const struct ctl_memory_gpu *m, int fd);
void client_gpu_region(struct client *c, const struct ctl_region_gpu *m);
void client_gpu_event(struct client *c, const struct ctl_event_gpu *m);
/* false: the handle is no allocation's.  Else its own hold is dropped and the client has its answer. */
bool client_gpu_memory_free(struct client *c, uint32_t handle);
void client_gpu_close(struct client *c, struct region *region); /* of client_region_delete() */

#endif
