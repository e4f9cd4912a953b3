/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.h - what the control thread and the lane share about a client: tenants, namespaces, regions,
 * sessions.  The control thread makes and frees all of them; the lane uses them between the *_ADD and the
 * answer to the *_END mail (lane.h).  Each field says who writes it after the hand-over.
 *
 *	control: CONNECTED -> hello -> SESSION_ADD ---> lane: OPEN
 *	control: socket closed, pidfd readable, bad message, shutdown -> SESSION_END ---> lane: DRAINING
 *	lane: garbage in the ring -> DRAINING by itself, mails SESSION_FAILED -> control answers SESSION_END
 *	lane: nothing in flight any more -> SESSION_GONE ---> control: unmaps, frees
 */
#ifndef SKVCD_DAEMON_SESSION_H
#define SKVCD_DAEMON_SESSION_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/pins.h"
#include "daemon/turns.h"
#include "daemon/uring.h"
#include "gpu/device.h"
#include "ipc/abi.h"
#include "ipc/ring.h"

#define SESSION_NS_MAX 16u
#define SESSION_REGIONS_MAX 1024u /* regions, GPU allocations and events share the numbers */
#define SESSION_STRIDES_MAX \
	65536u /* of all regions of a session: bounds their descriptions to 2 MiB */
#define SESSION_ARENAS_MAX 64u
#define NS_PROFILES_MAX 8u /* 15 fit into a block */
#define NS_PREVIOUS_NONE UINT8_MAX

struct tenant {
	uint32_t id;			/* index in the control thread's table; immutable */
	char name[32];			/* "uid-1000", or the section's name; immutable */
	uint8_t salt[32];		/* the daemon's own, derived from its secret; immutable */
	_Atomic uint64_t quota_bytes;	/* 0: none; control writes */
	_Atomic uint64_t charged_bytes; /* lane writes */
	/* lane only */
	struct tenant *next;	      /* of those that the lane knows */
	uint64_t args_bytes;	      /* of the lane's argument memory, args.c's own, as are ... */
	uint32_t jobs;		      /* of its jobs */
	struct turn turn[TURN_KINDS]; /* of its sessions; request.c's own */
	uint64_t held_bytes[2]; /* of blocks that somebody holds, in memory and in the GPU pool */
	struct pins pins;	/* its own, wherever they lie */
	uint8_t known;
	uint8_t stuck; /* in quota_return(): nothing of it can go now */
};

/*
 * One frozen profile.  It lives until nobody uses it: the blocks that name it, tasks that have it, and the
 * namespace while it is the newest.  Lane only, but for what control reads.
 */
struct ns_profile {
	struct codec_profile *p;       /* owned; NULL: the slot is free */
	struct codec_profile *retired; /* owned: the same without its model, still in use */
	uint32_t users;
	uint32_t number;      /* counts up in the namespace, from 1 */
	uint8_t can_layer;    /* it has maps from layer to layer */
	uint8_t can_model;    /* it has a model's part, and the model */
	uint8_t wants_ids;    /* that codes blocks with token ids only */
	uint64_t promised[3]; /* of `channel`, `layer`, `model`: bits a scalar * 1000 */
	uint64_t seen_blocks[3], seen_bytes[3]; /* since the last look: what blocks take really */
	uint32_t saved_in; /* the meta blob with its bytes (persist.c); 0: none */
	/* lane writes, control reads; version is 0 while the others change */
	_Atomic uint32_t version;
	_Atomic uint64_t digest; /* its first 8 bytes */
	_Atomic uint64_t bytes, tokens, blocks;
	_Atomic uint64_t expected_milli, measured_milli;
	_Atomic uint32_t layer, previous, rotary_pairs, newest;
	_Atomic uint32_t
		model; /* its part for one: 0, none that can be used; 1, a copy; 2, a draft */
};

/* What coding a namespace's blocks one way would mean; lane writes, control reads. */
struct plan_shown_way {
	_Atomic uint64_t ratio_milli;		 /* coded / raw; 0: cannot be had */
	_Atomic uint64_t host_milli, nvme_milli; /* shares that the tiers would hold */
	_Atomic uint64_t host_ns, nvme_ns, gone_ns, expected_ns; /* of a block */
	_Atomic uint64_t assumed; /* nothing was decoded that way yet */
};

/* What becomes of a namespace's blocks when host memory is short, and why; lane writes, control reads. */
struct plan_shown_place {
	_Atomic uint64_t looked; /* 0: not yet */
	_Atomic uint64_t drops;	 /* 1: given up; 0: written to NVMe, where there is one */
	_Atomic uint64_t nvme_ns, prefill_ns; /* of a block; prefill 0: its engine has not said */
	_Atomic uint64_t
		promotes;	  /* one that is on NVMe is read into memory when it is asked for */
	_Atomic uint64_t host_ns; /* from there */
};

/*
 *	IDLE -> SAMPLING	a new namespace, or another sample is wanted (drift, memory came free)
 *	SAMPLING -> DUE		enough tokens, or no room for more
 *	DUE -> FITTING		the background thread is free
 *	FITTING -> SAMPLING	statistics were added, or a profile was frozen and more are to come
 *	FITTING -> LAYER_DUE	... and maps from layer to layer are wanted too
 *	LAYER_DUE -> LAYER	the other background thread is free
 *	LAYER -> SAMPLING	more are to come
 *	FITTING, LAYER -> IDLE	that was the last
 */
enum ns_fit {
	NS_FIT_IDLE,
	NS_FIT_SAMPLING,
	NS_FIT_DUE,
	NS_FIT_FITTING,
	NS_FIT_LAYER_DUE,
	NS_FIT_LAYER,
	NS_FIT_COUNT
};

struct namespace
{
	uint32_t id; /* index in the control thread's table; immutable, as all down to geom */
	struct tenant *tenant; /* borrowed; lives as long as the daemon */
	uint8_t digest[32];    /* BLAKE2b of tenant salt, model, client's salt, geometry digest */
	char model[256];
	struct codec_geometry geom;
	uint8_t restored; /* control's: found on NVMe, and nobody has opened it since */
	_Atomic(struct codec_profile *) shipped; /* control gives one, the lane takes it; owned */
	_Atomic(const struct mspec_model *)
		fit_model; /* control sets it: the one of its name; borrowed */
	/* lane only */
	struct ns_profile profile[NS_PROFILES_MAX];
	struct ns_profile *newest; /* NULL: none yet */
	uint32_t profiles_made;
	uint32_t saved_in;     /* the meta blob that names it (persist.c); 0: none */
	uint8_t opened;	       /* by a client; else it was only found on NVMe */
	uint8_t fit_state;     /* enum ns_fit */
	struct codec_fit *fit; /* owned; used by one FIT task at a time */
	uint8_t *sample;       /* owned mapping: canonical raw blocks */
	uint64_t sample_bytes; /* of the mapping */
	uint32_t *positions;   /* owned, of each of them; NULL: they are not kept once fitted */
	uint32_t sample_blocks, sample_blocks_max;
	uint32_t sample_fitted;	 /* the first ones are in the statistics */
	uint32_t sample_copying; /* COPY_OUT tasks in flight */
	uint8_t sample_failed;	 /* one of them failed */
	uint8_t sample_again;	 /* take another, when there is memory */
	uint64_t fitted_tokens;
	uint64_t fit_wanted_ns;	  /* since when it is due */
	uint8_t fit_next;	  /* index into config fit_tokens */
	uint8_t previous;	  /* layers to look back; NS_PREVIOUS_NONE: no maps */
	uint8_t drifts;		  /* that another profile did not cure, so far */
	uint8_t model_fit_failed; /* no use in trying again */
	struct codec_profile
		*base; /* owned: statistics that maps are being added to; NULL: newest's */
	uint64_t base_promised;
	double plan_ratio[CODEC_SPEC_COUNT]; /* coded / raw bytes, lately; 0: no block yet */
	/* what follows is the plan's answer until then, and to this rate */
	uint64_t plan_until_ns, plan_prefill;
	uint8_t plan_speculator;
	uint8_t plan_drops;		       /* NVMe brings a block back later than its engine */
	uint8_t plan_squeezed;		       /* `channel` would not leave room for all */
	_Atomic uint64_t prefill_tokens_per_s; /* control writes, lane reads; 0: not said */
	/* lane writes, control reads */
	struct plan_shown_way plan_shown[CODEC_SPEC_COUNT];
	struct plan_shown_place plan_place;
	_Atomic uint8_t plan_chosen; /* CODEC_SPEC_RAW: not looked at yet */
	_Atomic uint64_t blocks, raw_bytes, coded_bytes;
	_Atomic uint64_t hits, misses;	     /* blocks, of lookups */
	_Atomic uint32_t profile_version;    /* 0: none yet */
	_Atomic uint64_t profile_bits_milli; /* expected bits per scalar * 1000 */
	_Atomic uint32_t fit_shown;	     /* enum ns_fit */
	_Atomic uint64_t sample_tokens;	     /* in hand */
};

struct client_memory; /* control's */

/*
 * What a region handle names: engine pages in host memory (an arena), engine pages in GPU memory, an engine's
 * GPU allocation by itself, or an event.  Only the first two have a namespace and take jobs; the lane
 * never sees an allocation.
 */
struct region {
	struct device_region dev; /* built by control, immutable; pages only */
	struct namespace *ns;	  /* borrowed; NULL: an allocation or an event */
	struct device *device; /* borrowed: who can touch it; NULL: host memory, the CPU device */
	struct device_event *event; /* an event: owned by control, used by the lane */
	/* control's: the GPU allocations that it holds open; array owned, at most one a segment */
	struct client_memory **memories;
	uint32_t memories_count;
	uint32_t arena;	 /* control's: index of the arena it lies in; 0: none */
	uint32_t users;	 /* lane only: jobs that touch it */
	uint8_t closing; /* lane only: REGION_END came; answered when users is 0 */
};

enum session_state { SESSION_OPEN, SESSION_DRAINING, SESSION_GONE };

struct session {
	/* immutable after SESSION_ADD */
	uint32_t id;   /* unique in the daemon's life; never 0 */
	uint32_t slot; /* index in both threads' tables */
	pid_t pid;
	uid_t uid;
	gid_t gid;
	uint32_t role;
	char name[64]; /* printable ASCII: control cleans it */
	struct tenant *tenant;
	uint8_t *segment; /* mapped, shared with the client */
	uint64_t segment_bytes;
	struct skvc_abi_header layout; /* private copy of what control wrote: never read back */
	int sq_fd;		       /* eventfd: client wakes the lane, which never reads it */
	int cq_fd;		       /* wake.h: lane wakes the client */
	uint64_t opened_ns;
	/* lane only */
	enum session_state state;
	struct ring sq, cq;
	uint32_t cq_reserved; /* completions owed to live jobs */
	uint32_t jobs_live;
	struct turn turn[TURN_KINDS]; /* of its jobs with items to start; request.c's own */
	uint32_t leases_live;
	uint32_t regions_closing;		  /* REGION_END came, not answered yet */
	uint32_t events_waiting;		  /* jobs of which a task waits for an event */
	uint8_t cq_blocked;			  /* not served: no room for completions */
	struct namespace *ns[SESSION_NS_MAX + 1]; /* by handle; [0] unused */
	struct region *region[SESSION_REGIONS_MAX + 1]; /* by handle; [0] unused */
	struct uring_op sq_watch;
	uint8_t sq_watched;
	uint8_t sq_unwatching;
	uint8_t end_requested; /* control sent SESSION_END */
	uint16_t end_reason;
	/* lane writes, control reads */
	_Atomic uint64_t ops, store_blocks, load_blocks, lookup_blocks;
	_Atomic uint32_t jobs, leases;
};

#endif
