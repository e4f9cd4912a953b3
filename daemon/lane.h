/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane.h - the data path's thread, as the control thread sees it: start, stop, two mailboxes, counters.
 *
 * The lane owns the index, the pool, the NVMe log, the device, all leases and jobs, and between
 * SESSION_ADD and SESSION_GONE the session's rings.  Nothing of it is touched from another thread.
 */
#ifndef SKVCD_DAEMON_LANE_H
#define SKVCD_DAEMON_LANE_H

#include "daemon/config.h"
#include "daemon/mailbox.h"
#include "daemon/session.h"
#include "daemon/stats.h"

struct lane;

enum lane_mail {
	/* control -> lane.  subject, object and value as named; each has one answer, except CONFIG, TRIM, STOP */
	LANE_SESSION_ADD = 1, /* subject session -> answer SESSION_ADD (res 0 or -errno) */
	LANE_SESSION_END, /* subject session, value reason -> answer SESSION_GONE when drained */
	LANE_NS_ADD,	  /* subject session, object namespace, value handle -> answer NS_ADD */
	LANE_REGION_ADD,  /* subject session, object region, value handle -> answer REGION_ADD */
	LANE_REGION_END, /* subject session, object region, value handle -> answer REGION_END when unused */
	/* subject tenant or NULL, object namespace or NULL, value id -> answer EVICT when done: value the blocks
	 * that went, object their bytes (a number), res how many are held and stay.  One at a time. */
	LANE_EVICT,
	LANE_FIND, /* subject a struct lane_question -> answer FIND with it, filled in */
	LANE_CONFIG, /* subject a struct config, checked: the lane takes what may change, and frees it; no answer */
	LANE_TRIM, /* a quota may be below what is charged: evict down to it; no answer */
	LANE_STOP, /* drain everything; the thread ends (lane_join).  value 1: it need not wait for fits (lane_leave) */
	/* lane -> control, unasked */
	LANE_SESSION_FAILED, /* subject session, value reason: client broke the contract; END must follow */
	LANE_SESSION_GONE, /* subject session: the lane has forgotten it */
	LANE_PROFILE_NEW,  /* subject namespace, value version: for the log */
	LANE_PROFILE_NOTE, /* subject namespace, value enum profile_note, res: for the log */
	/* value 1 in service, 2 out, 3 some devices out: for the log and the status line; res the error */
	LANE_NVME_HEALTH,
	LANE_GPU_HEALTH, /* the GPU has failed for good, res says why: for the log and the status line */
};

enum profile_note {
	PROFILE_NOTE_PREVIOUS, /* res: layers looked back, fewer than 2; a larger profile is not allowed */
	PROFILE_NOTE_NO_LAYER,	/* not even that is allowed */
	PROFILE_NOTE_NO_SAMPLE, /* blocks are so large that a sample would not hold enough of them */
	PROFILE_NOTE_NO_BETTER, /* a fitted profile was not: the old one stays */
	PROFILE_NOTE_FAILED,	/* res: why a fit failed */
	PROFILE_NOTE_NO_SLOT, /* blocks of NS_PROFILES_MAX profiles are here: a new one was not kept */
	PROFILE_NOTE_NO_MODEL, /* res: why no parameters could be fitted for its model */
	PROFILE_NOTE_DRIFT /* blocks take more than the newest profile promised: another sample */
};

/* A namespace as it was saved on NVMe with the blocks. */
struct lane_saved_ns {
	uint8_t digest[32];
	char tenant[32];
	uint8_t tag[16]; /* registry_tag() */
	char model[256];
	uint32_t block_tokens, segments_count;
	const struct codec_segment *segments;
};

/* A rate of the planner; lane writes, control reads. */
struct plan_shown_rate {
	_Atomic uint64_t bytes_per_s;
	_Atomic uint64_t samples; /* 0: assumed */
};

/* The last ones: device, then encode or decode, then speculator. */
enum plan_shown {
	PLAN_SHOWN_COPY,
	PLAN_SHOWN_LINK,
	PLAN_SHOWN_NVME_READ,
	PLAN_SHOWN_NVME_WRITE,
	PLAN_SHOWN_CODE,
	PLAN_SHOWN_RATES = PLAN_SHOWN_CODE + 2 * 2 * CODEC_SPEC_COUNT
};

enum lane_where { LANE_WHERE_GPU, LANE_WHERE_HOST, LANE_WHERE_NVME, LANE_WHERE_FETCHING };

#define LANE_FOUND_MAX 16u

struct lane_found {
	uint32_t ns;
	uint8_t where;	    /* enum lane_where */
	uint8_t speculator; /* enum codec_speculator */
	uint8_t on_nvme;    /* there is a durable copy */
	uint32_t position;  /* CODEC_POSITION_UNKNOWN */
	uint32_t holders, children;
	uint64_t record_bytes;
	uint64_t pinned_ns;		 /* so long still; 0: not */
	uint64_t restore_ns, prefill_ns; /* expected; prefill 0: its engine has not said */
	uint64_t host_ns;		 /* and to restore it, were it in memory */
};

/* Blocks of this key, in any namespace. */
struct lane_question {
	struct skvc_abi_key key;
	uint32_t count;
	struct lane_found found[LANE_FOUND_MAX];
};

/* What an earlier life left, and how its blocks get their namespaces back; used by lane_start() only. */
struct lane_restore {
	int (*ns)(void *user, const struct lane_saved_ns *saved, struct namespace **ret_ns);
	void *user;
	/* Host memory, and its index: memfds + 1; 0: none.  Taken over in any case. */
	int pool_fd, index_fd;
	/* May be NULL.  The pool is of no use: who else has it should give it up now, before there is another one. */
	void (*pool_refused)(void *user);
};

/*
 * restore: NULL: what is on NVMe and in host memory is forgotten.
 * Make pool, index, ring, device and NVMe log as configured, then start the thread.  0, or -errno with one
 * line in err that says what failed and what to do.
 */
int lane_start(const struct config *config, const struct lane_restore *restore,
	       struct lane **ret_lane, char *err, unsigned err_bytes);
int lane_pool_fd(const struct lane *lane); /* the host pool's memfd; borrowed */
/*
 * After LANE_STOP was sent: wait for the thread, and write the index of host memory into a memfd, for the caller to be
 * given to a next lane_start() with the pool's.  -errno.
 */
int lane_save(struct lane *lane, int *ret_fd);
/*
 * After LANE_STOP with value 1, for a process that ends now: wait for the thread, and give up files and the pool.  1: a
 * fit goes on in the background, so the rest, and what was lent to the lane, stays as it is; 0: nothing was done, for
 * lane_join() has nothing to wait for.
 */
int lane_leave(struct lane *lane);
/* After LANE_STOP was sent: wait for the thread, free everything.  Returns NULL. */
struct lane *lane_join(struct lane *lane);

struct mailbox *lane_inbox(struct lane *lane);	/* control sends */
struct mailbox *lane_outbox(struct lane *lane); /* control receives */
const struct stats *lane_stats(const struct lane *lane);
uint64_t lane_block_bytes_max(
	const struct lane *lane); /* the largest raw block a namespace may have */
/* The GPU, or NULL.  Control may use its import calls; everything else is the lane's. */
struct device *lane_gpu(const struct lane *lane);
const struct plan_shown_rate *lane_plan_rates(const struct lane *lane); /* [PLAN_SHOWN_RATES] */
/* Grows while the lane makes progress or sleeps with nothing to do: what a watchdog may rely on. */
uint64_t lane_heartbeat(const struct lane *lane);

#endif
