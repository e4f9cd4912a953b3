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
	LANE_CONFIG, /* subject a struct config, checked: the lane takes what may change, and frees it; no answer */
	LANE_TRIM, /* a quota may be below what is charged: evict down to it; no answer */
	LANE_STOP, /* drain everything; the thread ends (lane_join) */
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

/* How blocks that are found on NVMe get their namespaces back; called by lane_start() only. */
struct lane_restore {
	int (*ns)(void *user, const struct lane_saved_ns *saved, struct namespace **ret_ns);
	void *user;
};

/*
 * restore: NULL: what is on NVMe is forgotten.
 * Make pool, index, ring, device and NVMe log as configured, then start the thread.  0, or -errno with one
 * line in err that says what failed and what to do.
 */
int lane_start(const struct config *config, const struct lane_restore *restore,
	       struct lane **ret_lane, char *err, unsigned err_bytes);
/* After LANE_STOP was sent: wait for the thread, free everything.  Returns NULL. */
struct lane *lane_join(struct lane *lane);

struct mailbox *lane_inbox(struct lane *lane);	/* control sends */
struct mailbox *lane_outbox(struct lane *lane); /* control receives */
const struct stats *lane_stats(const struct lane *lane);
uint64_t lane_block_bytes_max(
	const struct lane *lane); /* the largest raw block a namespace may have */
/* The GPU, or NULL.  Control may use its import calls; everything else is the lane's. */
struct device *lane_gpu(const struct lane *lane);
/* Grows while the lane makes progress or sleeps with nothing to do: what a watchdog may rely on. */
uint64_t lane_heartbeat(const struct lane *lane);

#endif
