/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.h - the inside of libskvc.  One session is used by one thread at a time, so nothing here is
 * locked; the only words that another party writes are those of the shared segment, and they are read
 * through ipc/ring.h and the __atomic loads in wait.c.
 *
 *	skvc_open -> [connected] -- daemon gone, nonsense from it --> [gone] -- skvc_reconnect --> [connected]
 *
 * Handles that the caller holds (namespaces, regions, jobs) are this library's own and survive a
 * reconnect; each table entry carries the daemon's handle of the present connection.
 */
#ifndef SKVCD_CLIENT_LIB_CLIENT_H
#define SKVCD_CLIENT_LIB_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "client-lib/skvc.h"
#include "ipc/abi.h"
#include "ipc/ctl_msg.h"
#include "ipc/ring.h"

#define CLIENT_NONE UINT32_MAX /* end of a list of indices */
#define CLIENT_ERROR_BYTES 256u
#define CLIENT_ARGS_UNIT_BYTES 64u	  /* results of two jobs never share a cache line */
#define CLIENT_ALIVE_CHECK_NS 10000000ull /* look at the socket this often while nothing comes */
#define CLIENT_SLEEP_NS_MAX 50000000ull	  /* and wake up this often to look at daemon_state */
#define CLIENT_TIMEOUT_NS (60ull * 1000000000ull) /* skvc_options.timeout_ns, when not given */
#define CLIENT_ARENA_NS_PER_GIB 1000000000ull	  /* beside that: touching its pages takes long */
#define CLIENT_CLOSE_TIMEOUT_NS (5ull * 1000000000ull)
#define CLIENT_NAMESPACES_MAX 256u
#define CLIENT_REGIONS_MAX 4096u

/* ---- argument area: which bytes are free; the map itself is private memory ---- */

struct client_extent {
	uint32_t off;
	uint32_t bytes;
};

struct client_args {
	struct client_extent *free; /* owned; sorted by off, never adjacent */
	uint32_t free_count;
	uint32_t free_max; /* one more than jobs, so that freeing cannot fail */
	uint32_t total_bytes;
};

int client_args_init(struct client_args *a, uint32_t jobs_max);
void client_args_deinit(struct client_args *a);
void client_args_reset(struct client_args *a, uint32_t total_bytes); /* everything is free */
/* First fit.  `bytes` > 0 is rounded up to units.  0, or -EAGAIN when no hole is large enough. */
int client_args_alloc(struct client_args *a, uint32_t bytes, uint32_t *ret_off);
void client_args_free(struct client_args *a, uint32_t off, uint32_t bytes);

/* ---- jobs ---- */

/*
 *	FREE -- submit --> LIVE -- DONE, or the daemon is gone --> DONE -- its DONE is taken --> FREE
 *
 * LIVE: the daemon may touch the job's pages and its bytes of the argument area.  A job whose untaken
 * events are not empty is on the ready list, unless it is internal.
 */
enum client_job_state { CLIENT_JOB_FREE, CLIENT_JOB_LIVE, CLIENT_JOB_DONE };

#define CLIENT_EVENT_SOURCE_FREE 0x1u
#define CLIENT_EVENT_DONE 0x2u

struct client_job {
	uint32_t generation; /* of the present handle; never 0 */
	uint8_t state;	     /* enum client_job_state */
	uint8_t op;	     /* enum skvc_abi_op */
	uint8_t internal;    /* of a synchronous call: never shown to the caller */
	uint8_t orphan;	     /* internal, and nobody waits any more: freed when its DONE comes */
	uint8_t untaken;     /* CLIENT_EVENT_* */
	uint8_t source_free_seen;
	uint32_t next, prev; /* in the free, ready or progress list */
	uint32_t count;	     /* blocks */
	uint32_t region;     /* the caller's handle, 0: none; so are the events */
	uint32_t ready_event, done_event;
	uint64_t abort_job;	       /* the latest one that is to cancel this, 0: none */
	uint32_t segments_count;       /* bound of the progress word */
	uint32_t args_off, args_bytes; /* extent of the argument area; 0 bytes: none */
	uint32_t result_rel;	       /* bitmap words, then the progress word */
	uint64_t *ret_bitmap;	       /* borrowed until DONE, or NULL */
	uint32_t *ret_segments_ready;  /* borrowed until DONE, or NULL */
	struct skvc_completion source_free;
	struct skvc_completion done;
};

struct client_list {
	uint32_t first, last;
};

/* ---- what the caller registered, kept so that it can be registered again ---- */

struct client_namespace {
	uint32_t handle; /* the daemon's, in the present connection */
	uint32_t block_tokens;
	uint32_t segments_count;
	uint64_t block_raw_bytes;
	uint64_t prefill_tokens_per_s;	 /* 0: not said */
	struct ctl_ns_open *packet;	 /* owned */
	struct skvc_arena *simple_arena; /* of skvc_put and skvc_get; NULL until the first one */
	uint32_t simple_region;
	uint64_t
		simple_job; /* the last one in simple_arena; it may be at work there until it is over */
};

struct skvc_arena {
	struct skvc_session *session; /* borrowed; outlives the arena */
	struct skvc_arena *next;
	void *ptr; /* mapped until the arena is freed */
	uint64_t bytes;
	uint32_t handle; /* the daemon's */
};

struct client_gpu_memory {
	struct ctl_memory_gpu packet;
	int fd;		 /* owned duplicate of an exported fd, or -1 */
	uint32_t handle; /* the daemon's, while a region is being made */
};

struct client_region {
	uint32_t generation; /* 16 bits, never 0 while used */
	bool used;
	uint32_t handle; /* the daemon's */
	uint32_t ns;	 /* the caller's handle; 0 for an event */
	uint32_t blocks_count;
	struct skvc_arena *arena; /* borrowed; NULL: GPU memory or an event */
	/* owned: the request, header first; of GPU memory with indices + 1 of memories[] for handles */
	void *packet;
	uint32_t packet_bytes;
	struct client_gpu_memory *memories; /* owned */
	uint32_t memories_count;
};

/* ---- connection ---- */

struct client_link {
	int sock;
	int sq_fd; /* eventfd: we write */
	int cq_fd; /* we sleep on it */
	uint8_t *segment;
	struct skvc_abi_header *header; /* the start of it */
	struct skvc_abi_header layout;	/* private copy, checked */
	uint32_t seq;			/* of the last request */
};

struct skvc_session {
	/* set once by skvc_open */
	uint32_t *owner_mark; /* a page that reads zero in a forked child; or NULL */
	pid_t owner_pid;      /* used when owner_mark is NULL */
	char path[108];
	char name[CTL_NAME_BYTES];
	uint32_t role;
	uint32_t sq_entries;
	uint64_t args_bytes;
	uint64_t connect_timeout_ns;
	uint64_t timeout_ns; /* UINT64_MAX: none */
	uint64_t spin_ns;
	void (*log)(void *user, const char *line);
	void *log_user;
	int event_fd; /* epoll over link.cq_fd and link.sock */

	struct client_link link;
	struct ring sq, cq;
	bool gone;
	bool silent; /* gone because it did not answer: it may be alive */
	bool armed;  /* cq_tail.wait may be set by us */
	uint64_t alive_checked_ns;
	bool heard;	     /* completions came since then: the daemon lives */
	uint64_t late_lease; /* of a lookup that nobody waited for any more; 0: none (simple.c) */

	struct client_args args;
	struct client_job *jobs; /* owned; jobs_max */
	uint32_t jobs_max;
	uint32_t jobs_used;	/* not FREE */
	uint32_t jobs_internal; /* of these */
	struct client_list jobs_free;
	struct client_list jobs_ready;
	struct client_list jobs_progress; /* LIVE loads that count segments */

	struct client_namespace *namespaces; /* owned; handle h is [h - 1] */
	uint32_t namespaces_count;
	struct client_region *regions; /* owned */
	uint32_t regions_count;
	struct skvc_arena *arenas; /* owned list */

	char error[CLIENT_ERROR_BYTES];
};

/* session.c: every public call starts here.  0, -EINVAL (no session), -EOWNERDEAD. */
int client_enter(struct skvc_session *s);
bool client_is_owner(const struct skvc_session *s);
uint64_t client_now_ns(void);
/* So many nanoseconds from now, and what is left of them; UINT64_MAX stays what it is. */
uint64_t client_deadline_ns(uint64_t timeout_ns);
uint64_t client_left_ns(uint64_t deadline_ns);
/* Say what was wrong, for skvc_last_error(). */
void client_say(struct skvc_session *s, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* The same, and return res: a macro, so that an analyser sees what comes out. */
#define client_error(s, res, ...) (client_say((s), __VA_ARGS__), (res))
void client_log(const struct skvc_session *s, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* link.c: the socket and the segment */
void client_link_clear(struct client_link *link); /* a link that holds nothing */
int client_link_open(struct skvc_session *s, struct client_link *ret_link);
void client_link_close(struct client_link *link, bool owner);
/*
 * Wait until nothing of the daemon touches what was registered over this link, which is not used any more.
 * 0 or -ETIMEDOUT.
 */
int client_link_let_go(const struct client_link *link, uint64_t timeout_ns);

union client_answer {
	struct ctl_header h;
	struct ctl_welcome welcome;
	struct ctl_ns ns;
	struct ctl_arena arena;
	struct ctl_region region;
	struct ctl_ok ok;
	struct ctl_error error;
};

/*
 * One request, one answer.  `packet` starts with a struct ctl_header, which is filled in here; fd is
 * borrowed, or -1.  ret_fds takes exactly fds_count descriptors.  timeout_ns 0: the session's.  0; the
 * daemon's own error; -ETIMEDOUT, -EPROTO, -EPIPE: the link is of no use any more.
 */
struct client_request {
	uint16_t type;
	uint16_t expected;
	void *packet;
	uint32_t packet_bytes;
	int fd;
	uint64_t timeout_ns;
	int *ret_fds;
	unsigned fds_count;
};

int client_link_request(struct skvc_session *s, struct client_link *link,
			const struct client_request *request, union client_answer *ret_answer,
			bool *ret_link_broken);
/* The same on the session's own link; when that breaks the session is gone: -ETIMEDOUT or else -EPIPE. */
int client_control(struct skvc_session *s, struct client_request *request,
		   union client_answer *ret_answer);
/* On the session's own link, as client_control(); else on one that is not in use yet. */
int client_request_on(struct skvc_session *s, struct client_link *link,
		      struct client_request *request, union client_answer *ret_answer);

/* jobs.c */
void client_jobs_init(struct skvc_session *s);
struct client_job *client_job_new(struct skvc_session *s, uint8_t op, bool internal);
void client_job_free(struct skvc_session *s, struct client_job *job);
struct client_job *client_job_find(const struct skvc_session *s, uint64_t handle);
uint64_t client_job_handle(const struct skvc_session *s, const struct client_job *job);
void client_list_append(struct skvc_session *s, struct client_list *list, struct client_job *job);
void client_list_remove(struct skvc_session *s, struct client_list *list, struct client_job *job);

/* submit.c: one entry of any kind */
struct client_op {
	struct skvc_abi_sqe sqe; /* handles are the daemon's; areas are filled in by submit */
	const struct skvc_key *parent;
	const struct skvc_key *keys;
	const uint32_t *blocks;
	const uint32_t *tokens;
	uint32_t block_tokens;	 /* with tokens */
	uint32_t segments_count; /* with ret_segments_ready */
	uint32_t region;	 /* the caller's handle; so are the events */
	uint32_t ready_event, done_event;
	bool internal;
	uint64_t *ret_bitmap;
	uint32_t *ret_segments_ready;
};

int client_submit(struct skvc_session *s, const struct client_op *op, uint64_t *ret_job);
int client_submit_lookup(struct skvc_session *s, const struct skvc_lookup *args, bool internal,
			 uint64_t *ret_job);
int client_submit_load(struct skvc_session *s, const struct skvc_load *args, bool internal,
		       uint64_t *ret_job);
int client_submit_store(struct skvc_session *s, const struct skvc_store *args, bool internal,
			uint64_t *ret_job);
int client_submit_release(struct skvc_session *s, uint64_t lease, bool internal, uint64_t *ret_job);

/* wait.c */
typedef bool (*client_condition)(struct skvc_session *s, void *user);

unsigned client_reap(struct skvc_session *s); /* completions taken off the ring */
/* The connection is of no use: complete every LIVE job with -EPIPE.  Idempotent. */
void client_fail(struct skvc_session *s, const char *why);
/* The same, because the daemon did not answer in time. */
void client_give_up(struct skvc_session *s, const char *why);
void client_check_alive(struct skvc_session *s, uint64_t now_ns);
/* Reap until condition() holds; it must hold once the session is gone.  0 or -ETIME. */
int client_wait(struct skvc_session *s, client_condition condition, void *user,
		uint64_t timeout_ns);
/* Wait for one internal job and free it.  0; -ETIME: it goes on, and is freed when it is done. */
int client_finish(struct skvc_session *s, uint64_t handle, uint64_t timeout_ns,
		  struct skvc_completion *ret);
bool client_job_is_over(struct skvc_session *s, void *user); /* a condition; user: its handle */

/* memory.c */
struct client_namespace *client_namespace_find(struct skvc_session *s, uint32_t ns);
struct client_region *client_region_find(struct skvc_session *s, uint32_t region);
void client_region_clear(struct client_region *region); /* free what it owns; its handle is over */
/* Send `packet` and remember it under a new handle.  packet and memories are handed over, also on failure. */
int client_region_add(struct skvc_session *s, struct client_region *region, uint32_t *ret_region);
/* gpu_export.c: allocations, the region in them, and the allocations' handles given back. */
int client_gpu_region_send(struct skvc_session *s, struct client_link *link,
			   struct client_region *region, uint32_t *ret_handle);
/* 0, or -EOPNOTSUPP: the daemon is older than GPU memory. */
int client_gpu_known(struct skvc_session *s);
int client_memory_reopen(struct skvc_session *s, struct client_link *link);
void client_memory_deinit(struct skvc_session *s);

#endif
