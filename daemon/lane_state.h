/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane_state.h - the lane's own state, shared by the files that run on its thread and by nobody else:
 *
 *	lane.c		the thread: start, loop, sleep, mail, stop
 *	intake.c	session rings -> checked private entries -> one handler per operation
 *	request.c	jobs (load, store): life, completions, abort, what to start next
 *	lookup.c	lookup, touch, drop, pin
 *	lease.c		leases: grant, words, deadlines
 *	args.c		argument memory and jobs: each tenant his share
 *	store.c		begin -> gather and encode -> place -> publish -> complete
 *	load.c		wait for the record -> decode into the engine's pages -> complete
 *	tier.c		room in the pool, spill
 *	tier_fetch.c	what comes back from NVMe: wanted, or read ahead
 *	tier_drop.c	what is given up instead of being written to NVMe
 *	tier_log.c	the NVMe log: made, and told what is worth keeping
 *	tier_policy.c	which block goes first: what policy.c is told and asked
 *	tier_memory.c	making the host pool
 *	persist.c	what is written to NVMe beside the records, so that they are found again
 *	restore.c	and finding them
 *	warm_restore.c	finding what the last life left in host memory (warm.h)
 *	tier_gpu.c	the GPU pool: room in it, what moves from it to the host pool, its loss
 *	lane_gpu.c	the GPU: made at start, its tasks, events, staging in host memory, its death
 *	profiler.c	samples of new namespaces -> fit -> profile
 *	profiles.c	profiles of a namespace: the newest, who uses the others, drift
 *	sequences.c	prefixes that blocks are coded after with model
 *	model_fit.c	parameters for model, fitted on what is stored
 *	find.c		where a block is, for an operator
 *	plan.c		what things cost: rates, room, and which speculator follows
 *	recode.c	blocks coded again with a stronger speculator when there is time
 *	recode_chain.c	the same with model, many blocks of a sequence in order
 *	quota.c		compressed bytes charged to tenants
 *	evict.c		blocks that an operator wants gone
 *
 * Order inside one turn of the loop: mail, rings, device, NVMe, requests, tiers, deadlines.
 */
#ifndef SKVCD_DAEMON_LANE_STATE_H
#define SKVCD_DAEMON_LANE_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "daemon/config.h"
#include "daemon/index.h"
#include "daemon/lane.h"
#include "daemon/mailbox.h"
#include "daemon/nvme_set.h"
#include "daemon/planner.h"
#include "daemon/policy.h"
#include "daemon/pool.h"
#include "daemon/quota.h"
#include "daemon/session.h"
#include "daemon/stats.h"
#include "daemon/turns.h"
#include "daemon/uring.h"
#include "daemon/util/clock.h"
#include "gpu/device.h"

#define LANE_JOBS_MAX 4096u
#define LANE_ARGS_BYTES (256ull << 20) /* private copies of argument lists; used as needed */
#define LANE_INTAKE_BATCH 32u	       /* entries taken of one session per turn */
#define LANE_NVME_OPS 256u
#define LANE_GPU_TASKS 1024u
#define LANE_REGISTERED_MAX 264u	/* a pool of 16 TiB in pieces, and what is small */
#define LANE_EVENTS_WAITING_MAX 8u	/* jobs of one session whose tasks wait for an event */
#define LANE_SLEEP_MAX_NS 1000000000ull /* the heartbeat's slowest beat */

/* ---- jobs ---- */

/*
 *	QUEUED -> RUNNING	first item started
 *	QUEUED, RUNNING -> ENDING	all items over, or aborted: waits for tasks in flight
 *	ENDING -> (freed)	DONE was published
 */
enum job_state { JOB_FREE, JOB_QUEUED, JOB_RUNNING, JOB_ENDING };

/*
 * A job with a ready event lets one task wait for it; the others start when that one is through, so that an
 * event that never comes costs one task.
 *
 *	DUE -> WAITING		the task that waits was started
 *	WAITING -> PASSED	it was run
 *	WAITING -> DUE		it failed without having been run
 */
enum job_event { JOB_EVENT_NONE, JOB_EVENT_DUE, JOB_EVENT_WAITING, JOB_EVENT_PASSED };

struct job_item {
	uint32_t block; /* id in the index; BLOCK_NONE: nothing to do for this one */
	uint32_t page;	/* block index in the region; checked */
};

struct job {
	struct turn turn; /* first; on its session's list */
	enum job_state state;
	uint8_t op; /* SKVC_ABI_OP_LOAD or _STORE */
	uint8_t flags;
	uint8_t aborted;
	uint8_t source_free_sent;
	uint8_t event; /* enum job_event */
	uint16_t abort_reason;
	uint16_t reason; /* first cause that was not plain success */
	int32_t res;	 /* its errno */
	struct session *session;
	struct namespace *ns;
	struct region *region;	 /* users is held, as of the two below */
	struct region *ready;	 /* event: pages may be touched after it; NULL: now */
	struct region *finished; /* load: event to record when nothing touches the pages any more */
	uint64_t user_data;
	uint64_t intake_ns;
	uint32_t count;
	uint32_t next;	      /* first item that was not started */
	uint32_t inflight;    /* tasks of this job: on the device, or waiting for room */
	uint32_t encoding;    /* of these, tasks that still read the engine's pages */
	uint32_t done;	      /* items that succeeded */
	uint32_t skip_tokens; /* load: of item 0 */
	uint32_t progress;    /* load: scratch of load_progress() */
	uint64_t raw_bytes, stored_bytes;
	uint32_t result_rel, result_bytes;
	uint32_t args_slot; /* in lane->args: items, then bitmap, then tokens */
	struct job_item *items;
	struct lane_sequence *sequence; /* load: taken, for blocks that are coded after others */
	uint64_t *bitmap;
	uint32_t *tokens; /* store with tokens: count * block_tokens; else NULL */
	struct job *next_free;
};

/* ---- device tasks ---- */

enum task_kind {
	TASK_COPY_OUT, /* GPU pages -> lane->stage */
	TASK_SAMPLE,
	TASK_ENCODE,
	TASK_PLACE, /* staged payload -> slot */
	TASK_DECODE,
	TASK_DECODE_STAGE, /* record -> lane->stage */
	TASK_COPY_IN,	   /* lane->stage -> GPU pages */
	TASK_DEMOTE,	   /* GPU slot -> host slot */
	TASK_FIT,
	TASK_FIT_LAYER,
	TASK_FIT_MODEL,
	TASK_SEQUENCE, /* a block -> a prefix */
	TASK_GATHER,   /* a block -> lane->model_fit.raw */
	TASK_RECODE,   /* a block -> lane->recode.raw -> its staging, and back to see */
	TASK_CHAIN     /* the same of one of a chain of blocks: lane->chain */
};

/*
 * Tasks of host regions have room for a whole record.  Those of GPU regions have it for header and token
 * ids, and take what more they need from lane->stage.
 */
struct task {
	struct device_task dev; /* first: poll() hands back this address */
	enum task_kind kind;
	uint8_t of_gpu;	     /* one of lane->gpu_task */
	uint8_t waits;	     /* it carries the ready event of its job */
	uint8_t reads_pages; /* store: counted in job->encoding */
	struct job *job;
	uint32_t item;
	uint32_t block;	       /* TASK_DEMOTE */
	struct namespace *ns;  /* TASK_FIT, TASK_FIT_LAYER */
	struct device *device; /* where it runs, or ran last */
	uint8_t *staging;      /* record under construction; borrowed from lane->gpu_headers, or an
			       * owned mapping of lane->staging_bytes */
	uint32_t raw_slot;     /* in lane->stage: a canonical raw block; POOL_NONE: none */
	struct device_region packed; /* that block as a region; owns nothing */
	uint8_t *sample;	     /* reserved of the profiler; NULL: none */
	struct lane_sequence
		*sequence; /* busy with this task, or this is a step of its; NULL: none */
	/* store, once encoded: */
	void *staged; /* the payload on the GPU, to be given back; NULL: it lies in staging */
	struct codec_info info;
	uint8_t asked;		    /* enum codec_speculator */
	struct ns_profile *profile; /* that codes it; used (profiles.c); NULL: none */
	uint64_t room_deadline_ns;  /* waiting for room until then */
	struct task *next;	    /* free list or waiting list */
};

struct task_queue {
	struct task *head, *tail;
	unsigned count;
};

/* ---- sequences ---- */

#define SEQUENCE_BLOCKS_MAX 65536u
#define SEQUENCE_STEPS_MAX 64u

struct sequence_step {
	uint32_t block, generation;
};

/* A place for one sequence's prefix. */
struct lane_sequence {
	struct device_sequence *s; /* owned; NULL: the place is free */
	struct device *device;	   /* whose s is: the predictor, or the CPU device */
	struct namespace *ns;
	struct ns_profile *profile; /* used */
	uint8_t taken;		    /* by a load, or by recode */
	uint8_t background;	    /* it catches up when there is time */
	uint8_t broken;	   /* one of the tasks has failed: none is begun before all are over */
	uint8_t no_memory; /* its GPU had not enough to go on */
	unsigned busy;	   /* tasks of theirs that have it */
	int32_t failed;	   /* why catching up did */
	uint32_t count;	   /* blocks that it holds */
	uint32_t ahead;	   /* and with those that tasks are about to add */
	struct sequence_block *holds; /* owned, [sequences_blocks_max()]; `ahead` are good */
	uint32_t wanted;   /* the block to come next, held until it is in reach; or BLOCK_NONE */
	struct task *task; /* owned, [steps_max]: blocks, held, that are on their way in */
	unsigned steps, steps_max; /* of these under way */
	uint8_t *raw;		   /* owned mapping: where they are decoded to */
	uint64_t raw_bytes;
	struct device_region packed; /* that as a region; owns nothing */
	uint64_t bytes;		     /* of s */
	uint64_t used_ns;	     /* when it was given back */
};

/* ---- leases ---- */

struct lease {
	uint32_t generation; /* of the handle; bumped at release */
	uint32_t session_slot;
	struct session *session; /* NULL: free */
	struct namespace *ns;
	uint64_t deadline_ns;
	uint32_t count;
	uint32_t ready; /* cursor: leading blocks resolved */
	uint32_t lost;
	uint32_t args_slot;
	uint32_t *blocks;	   /* ids, each holding a reference */
	struct lease *prev, *next; /* live list */
};

/* ---- NVMe operations ---- */

struct lane_nvme_op {
	struct nvme_op op; /* first */
	struct lane *lane;
	struct lane_nvme_op *next;
};

#define LANE_AHEAD_MAX 64u

/* What may be read from NVMe when nobody waits for anything of it. */
struct lane_ahead {
	struct sequence_step entry[LANE_AHEAD_MAX];
	unsigned count;
	uint64_t bytes, since_ns; /* so many were read, since then */
};

/* ---- fitting a model ---- */

enum model_fit_step { MODEL_FIT_NONE, MODEL_FIT_SCAN_INDEX, MODEL_FIT_GATHER, MODEL_FIT_FIT };

struct model_fit {
	enum model_fit_step step;
	uint8_t running; /* a task of the step's */
	struct namespace *ns;
	uint32_t turn;		     /* of the namespaces: the last that was looked at */
	uint32_t goal, count, next;  /* blocks: wanted, found, decoded */
	uint32_t scan;		     /* entries of the index that were looked at */
	struct sequence_step *entry; /* owned, [goal], like the two below */
	uint32_t *positions;
	int32_t *ids; /* [goal * block_tokens] */
	uint8_t *raw; /* owned mapping: the blocks */
	uint64_t raw_bytes, look_ns;
	struct device_region packed; /* the block at hand; owns nothing */
	struct task task;	     /* that decodes it */
};

/* ---- coding again ---- */

/*
 *	NONE -> DECODE		a block was found, and held
 *	DECODE -> ENCODE	its raw bytes are here
 *	ENCODE -> CHECK		another record is here; is it smaller, and does it come back exact?
 *	CHECK -> NONE		the block has that record, or keeps its own
 *	any -> NONE		somebody else wants the block, or the machine
 */
enum recode_step { RECODE_NONE, RECODE_DECODE, RECODE_ENCODE, RECODE_CHECK };

struct recode_place { /* where a block stood on its list */
	uint32_t prev, next, prev_generation, next_generation;
};

struct recode {
	enum recode_step step;
	uint8_t running;    /* the step's task is on the device */
	uint8_t speculator; /* enum codec_speculator: what the block is to be coded with */
	uint8_t look;	    /* there may be blocks that are worth it */
	uint32_t block;	    /* held while step is not NONE */
	struct recode_place place;
	uint32_t next, left; /* the search through the index: where, and how much of it is left */
	uint64_t begin_ns;   /* when the block was taken */
	uint64_t busy_ns;    /* when somebody else last wanted the machine */
	uint8_t *raw;	     /* owned mapping of lane->staging_bytes */
	struct device_region packed; /* that as a region; owns nothing */
	struct task task;
};

/* ---- coding a chain again, with `model` ---- */

#define RECODE_CHAIN_MAX 64u

struct recode_link {
	uint32_t block; /* held */
	uint8_t better; /* a smaller record is in the task's staging */
	int32_t res;	/* of its task, once that is over */
	struct recode_place place;
	uint8_t *raw;		     /* owned mapping of lane->staging_bytes, like task.staging */
	struct device_region packed; /* that as a region; owns nothing */
	struct task task;
};

/* Steps as above, each of all links before the next. */
struct recode_chain {
	enum recode_step step;
	unsigned count, next, running;	/* links: in it, begun in this step, on a device */
	struct ns_profile *profile;	/* used */
	struct lane_sequence *sequence; /* taken; NULL: none */
	uint64_t begin_ns;
	uint64_t not_before_ns; /* the machine has failed the last one */
	uint8_t abandoned;	/* it is over when its tasks are */
	struct recode_link link[RECODE_CHAIN_MAX];
};

/* ---- evicting for an operator ---- */

struct lane_evict {
	int trim; /* tenants may be above their quotas */
	int running;
	struct tenant *tenant; /* NULL: anybody's */
	struct namespace *ns;  /* NULL: any */
	uint64_t id;	       /* of the letter */
	uint32_t next;	       /* entry of the index */
	uint32_t kept;	       /* somebody holds them */
	uint64_t blocks, bytes;
};

/* ---- what is kept on NVMe beside the records ---- */

#define PERSIST_ENTRIES_MAX 1400u

struct persist {
	uint8_t meta_due; /* a block on its way needs a namespace or a profile that is not saved */
	uint8_t dirty;	  /* a bit for each log whose checkpoint is behind */
	uint8_t stop_tried, stop_done;	   /* metas; checkpoints, a bit for each log */
	uint8_t log;			   /* of the blob under way: which one it is for */
	uint32_t meta_number;		   /* of the meta blob that was begun last */
	uint32_t meta_done;		   /* and of the last complete one */
	uint64_t next_ns, meta_next_ns;	   /* not looked at before; meta */
	uint64_t changed_ns;		   /* when it last became dirtier */
	uint64_t written_ns[NVME_SET_MAX]; /* when its last checkpoint was begun */
	/* of the blob under way */
	uint32_t ns, slot; /* meta: which namespace, and 1 + which of its profiles; 0: itself */
	struct ns_profile *profile; /* used while its parts are written */
	uint64_t part_off;
	uint32_t cursor; /* checkpoint: the next block */
	uint32_t id[PERSIST_ENTRIES_MAX];
};

/* ---- what things cost ---- */

struct lane_plan {
	struct plan_machine machine;
	struct plan_demand demand;
	struct plan_meter reads, writes; /* of NVMe */
	struct plan_shown_rate shown[PLAN_SHOWN_RATES];
};

struct lane_registered {
	void *base;
	uint64_t bytes;
};

struct lane {
	struct config config; /* private copy */
	pthread_t thread;
	int ended; /* the thread was joined */
	int left;  /* it ended before a fit did; lane writes, read when it was joined */
	struct mailbox inbox, outbox;
	struct stats stats;
	_Atomic uint64_t heartbeat;
	/* everything below: lane thread only, once started */
	uint64_t now_ns;  /* read once per turn */
	uint64_t rest_ns; /* when the slower half of a turn last ran */
	uint64_t work_ns; /* when the loop last found something to do */
	int stopping;
	int may_leave;	       /* LANE_STOP said so */
	uint64_t stop_ns;      /* when LANE_STOP came */
	int cq_blocked;	       /* a session's completion ring is full: look again soon */
	uint32_t words_behind; /* a block became ready or was lost: lease words are behind */

	struct uring *uring;
	struct device *device; /* the CPU device: host regions, fits, what the GPU cannot code */
	struct device *gpu;    /* NULL: none; GPU regions, moves */
	int gpu_dead;	       /* its sticky errno; nothing is asked of it any more */
	int device_fd;	       /* both wake the lane through it */
	struct uring_op inbox_watch, device_watch;
	unsigned watches;

	struct session **session; /* [sessions_max] by slot */
	uint32_t sessions_count;
	struct namespace **ns;	      /* [namespaces_max] by id, as far as known to the lane */
	uint32_t ns_end;	      /* 1 + the highest id known */
	struct tenant *tenants;	      /* of these namespaces; borrowed */
	uint64_t held_bytes[2];	      /* as a tenant's, of all */
	uint64_t absent_quotas_bytes; /* of tenants that are configured and have none */

	struct index *index;
	struct policy *policy; /* of all that is published */
	struct pool *pool;
	struct nvme_set *log; /* NULL: no tier */
	struct lane_restore restore;
	struct persist persist;
	uint32_t granule_bytes;
	struct pool *gpu_pool; /* over GPU memory; NULL: none */
	int pool_registered;   /* with io_uring, as fixed buffers */
	int pool_kept;	       /* it lies in memory that an earlier life left */
	/* RESIDENT and held by nobody, coldest first: with a copy on NVMe, without, and not worth one */
	struct block_list clean, dirty, droppable;
	uint64_t clean_bytes, dirty_bytes, droppable_bytes;
	uint32_t sort_next,
		sorts;	      /* entry of the index whose list may be another now; is there one? */
	uint32_t keeps_asked; /* tier_policy_keeps(): how often, and where its bar is */
	float keeps_bar;
	struct block_list fetch;    /* NVME and WANTED */
	struct block_list gpu_cold; /* RESIDENT in the GPU pool and held by nobody */
	unsigned demotes_inflight;
	uint64_t demote_after_ns; /* one failed, or found no room: not before */
	uint32_t lost_next;	  /* ids below were looked at since the GPU died */
	struct lane_nvme_op nvme_op[LANE_NVME_OPS];
	struct lane_nvme_op *nvme_free;
	unsigned spills_inflight, fetches_inflight;
	uint32_t spilled_last; /* block, or BLOCK_NONE */
	struct lane_ahead ahead;
	int nvme_health;     /* as the gauge */
	int accepting;	     /* hysteresis of the pool */
	uint64_t no_room_ns; /* when a slot was last asked for and not to be had; 0: never */

	struct pool *args;    /* argument memory of jobs and leases: through args.h */
	uint64_t args_bytes;  /* of its slots that are taken */
	uint8_t *scratch;     /* SKVC_ABI_ARGS_BYTES_MAX: the list of the entry at hand */
	struct job *job;      /* [LANE_JOBS_MAX] */
	struct job *job_free; /* through next_free */
	uint32_t jobs_count;
	struct turn turn[TURN_KINDS]; /* of tenants that have jobs with items to start */
	uint64_t runs;		      /* of request_run() */

	struct task *task; /* [tasks_max] */
	uint32_t tasks_count;
	struct task_queue tasks_free;
	struct task_queue room; /* encoded, waiting for a slot in the pool */
	struct task *gpu_task;	/* [LANE_GPU_TASKS], or NULL */
	struct task_queue gpu_tasks_free;
	struct task_queue cpu_wait; /* copied out of GPU pages, waiting for a task with staging */
	uint8_t *gpu_headers;	    /* records' first bytes, of each gpu_task */
	uint64_t gpu_header_bytes;
	struct pool *stage; /* host memory that the GPU reads and writes: raw blocks on their way */
	uint64_t stage_waiting_bytes; /* of it, behind events that have not come */
	unsigned events_waiting;      /* tasks that carry an event */
	uint64_t events_next_ns;      /* next look at the deadlines of events */
	unsigned progress_jobs;	      /* loads that want layer progress */
	struct lane_registered registered[LANE_REGISTERED_MAX]; /* with the GPU's driver */
	unsigned registered_count;
	uint64_t gpu_make_ns;
	struct task fit_task; /* one fit at a time, on the device's background thread */
	uint8_t fit_busy;
	struct task layer_task; /* the same for maps from layer to layer, which take minutes */
	uint8_t layer_busy;
	uint64_t sample_bytes; /* set aside for samples of all namespaces */
	struct recode recode;
	struct recode_chain chain;
	struct lane_plan plan;
	struct lane_evict evict;
	struct model_fit model_fit;
	struct lane_sequence *sequence; /* owned, [model_sequences] */
	struct sequence_block *path;	/* owned, [SEQUENCE_BLOCKS_MAX]: scratch */
	uint64_t sequences_bytes;
	unsigned sequence_steps;    /* on the device */
	struct device *predictor;   /* owned; runs models on the GPU; NULL: the CPU device does */
	uint64_t predictor_full_ns; /* until then it has no memory for more places */
	uint32_t predictor_full_blocks; /* nor for as long a prefix as this */
	uint64_t staging_bytes;
	unsigned cpu_workers;

	struct lease *lease;	  /* [sessions_max * leases_max] */
	struct lease leases_live; /* list head */
	uint64_t leases_next_ns;  /* earliest deadline seen by the last sweep */
};

/* intake.c */
unsigned intake_run(struct lane *lane, struct session *s);
void session_fail(struct lane *lane, struct session *s, uint16_t reason);
void session_drain(struct lane *lane, struct session *s, uint16_t reason);
void session_closed(struct session *s);

/* request.c */
/* What a load or store works on, looked up in its session. */
struct job_regions {
	struct region *pages;
	struct region *ready;	 /* event, or NULL */
	struct region *finished; /* event, or NULL */
};

struct job *job_new(struct lane *lane, struct session *s, const struct skvc_abi_sqe *sqe,
		    struct namespace *ns, const struct job_regions *regions, uint32_t tokens_count);
void job_note(struct job *job, int32_t res, uint16_t reason); /* remember the first cause */
void job_item_done(struct lane *lane, struct job *job, uint32_t item, uint64_t raw_bytes,
		   uint64_t stored_bytes);
void job_settle(struct lane *lane, struct job *job); /* ends it if nothing is left; may free it */
void job_cancel(struct lane *lane, struct job *job, uint16_t reason); /* may free it */
int job_abort(struct lane *lane, struct session *s, uint64_t user_data, uint16_t reason);
void job_abort_all(struct lane *lane, struct session *s, uint16_t reason);
void job_source_free(struct lane *lane, struct job *job);
void request_cqe(struct lane *lane, struct session *s, const struct skvc_abi_cqe *cqe);
unsigned request_run(struct lane *lane);  /* start what can be started */
unsigned request_poll(struct lane *lane); /* take what the device finished */
struct task *task_get(struct lane *lane);
void task_put(struct lane *lane, struct task *task); /* nothing of it is in use any more */
int task_start(struct lane *lane, struct task *task, struct device *device); /* as device's start */
/* Bytes before the payload in the block's record: the index knows all that its header says. */
uint64_t block_payload_off(const struct lane *lane, const struct block *b);
const int32_t *block_tokens(const struct block *b, const void *record); /* NULL: it has none */
/* The strongest that its chunks need; one that is kept raw counts as generic. */
uint8_t block_speculator(const struct block *b);
/* d is to decode the block, whose record lies at `record`: in its slot of the host pool, or of the GPU's. */
void task_decodes(const struct lane *lane, struct device_task *d, const struct block *b,
		  const void *record);
void task_queue_push(struct task_queue *q, struct task *task);
struct task *task_queue_pop(struct task_queue *q); /* NULL: empty */

/* lane_gpu.c */
int gpu_start(struct lane *lane, char *err,
	      unsigned err_bytes); /* device and tasks; 0: also without */
int gpu_start_memory(struct lane *lane, char *err, unsigned err_bytes); /* needs the host pool */
void gpu_stop(struct lane *lane);
struct task *gpu_task_get(struct lane *lane);
int gpu_raw_get(struct lane *lane, struct task *task); /* 0: raw_slot and packed are set; -EAGAIN */
void gpu_raw_put(struct lane *lane, struct task *task);
uint8_t *gpu_raw_ptr(const struct lane *lane, const struct task *task);
int gpu_event_allows(const struct lane *lane, const struct job *job); /* may an item start? */
void gpu_event_begin(struct lane *lane, struct task *task); /* before a task that touches pages */
void gpu_event_end(struct lane *lane, struct task *task);   /* it is back, or did not start */
void gpu_cancel_job(struct lane *lane, const struct job *job); /* what has not touched pages yet */
void gpu_unstage(struct lane *lane, struct task *task);
unsigned gpu_run(struct lane *lane); /* health, deadlines of events */
int gpu_refuses(const struct lane *lane, const struct region *region); /* the GPU is dead */

/* lookup.c: each answers through *cqe (res, reason, ...) */
void lookup_run(struct lane *lane, struct session *s, struct namespace *ns,
		const struct skvc_abi_sqe *sqe, const struct skvc_abi_key *parent,
		const struct skvc_abi_key *keys, const uint32_t *tokens, struct skvc_abi_cqe *cqe);
void lookup_touch(struct lane *lane, struct namespace *ns, const struct skvc_abi_key *keys,
		  uint32_t count, struct skvc_abi_cqe *cqe);
void lookup_drop(struct lane *lane, struct namespace *ns, const struct skvc_abi_key *keys,
		 uint32_t count, struct skvc_abi_cqe *cqe);
void lookup_pin(struct lane *lane, struct namespace *ns, const struct skvc_abi_key *keys,
		uint32_t count, uint64_t ttl_ns, struct skvc_abi_cqe *cqe);
int lookup_visible(const struct block *b);
uint64_t lookup_token_hash(const struct namespace *ns, const uint32_t *tokens);

/* lease.c */
int lease_new(struct lane *lane, struct session *s, struct namespace *ns, uint32_t count,
	      uint64_t ttl_ns, struct lease **ret_lease); /* -EAGAIN */
void lease_grant(struct lane *lane, struct lease *lease, uint64_t *ret_handle);
struct lease *lease_find(struct lane *lane, const struct session *s, uint64_t handle);
void lease_release(struct lane *lane, struct lease *lease);
void lease_release_all(struct lane *lane, struct session *s);
unsigned lease_run(struct lane *lane); /* words that changed, deadlines that passed */

/* store.c */
void store_begin(struct lane *lane, struct session *s, struct namespace *ns,
		 const struct job_regions *regions, const struct skvc_abi_sqe *sqe,
		 const struct skvc_abi_key *parent, const struct skvc_abi_key *keys,
		 const uint32_t *pages, const uint32_t *tokens, struct skvc_abi_cqe *cqe,
		 int *ret_async);
int store_start_item(struct lane *lane, struct job *job); /* 1 started, 0 nothing now */
void store_task_done(struct lane *lane, struct task *task);
unsigned store_room_run(struct lane *lane); /* retry those that wait for room, or for a task */
void store_cancel_item(struct lane *lane, struct job *job, uint32_t item);

/* load.c */
void load_begin(struct lane *lane, struct session *s, const struct job_regions *regions,
		const struct skvc_abi_sqe *sqe, const uint32_t *pages, struct skvc_abi_cqe *cqe,
		int *ret_async);
int load_start_item(struct lane *lane, struct job *job);
void load_task_done(struct lane *lane, struct task *task);
void load_progress(struct lane *lane); /* layer progress words of running loads */

/* tier.c */
int tier_start(struct lane *lane, char *err, unsigned err_bytes);
void tier_stop(struct lane *lane);
int tier_alloc(struct lane *lane, uint64_t bytes,
	       uint32_t block); /* sets its slot; -EAGAIN, -EFBIG */
int tier_evict_for_tenant(struct lane *lane,
			  const struct tenant *tenant); /* one block; 1 when it did */
int tier_evict_pinned(struct lane *lane,
		      const struct tenant *tenant); /* the same, or a pinned one */
int tier_evict_one(struct lane *lane);
void tier_hold(struct lane *lane, uint32_t block);
void tier_unhold(struct lane *lane, uint32_t block);
/* It was held, but not used: back between the two that it stood between on the list of dirty ones. */
void tier_unhold_unused(struct lane *lane, uint32_t block, uint32_t prev, uint32_t next);
/* STORING, slot filled -> RESIDENT.  last: of its request. */
void tier_publish(struct lane *lane, uint32_t block, int last);
void tier_forget(struct lane *lane, uint32_t block); /* out of the index and all tiers */
void tier_quarantine(struct lane *lane, uint32_t block);
unsigned tier_run(struct lane *lane); /* fetches, spills, watermarks */
int tier_has_nvme(const struct lane *lane);
void tier_unplace(struct lane *lane,
		  uint32_t block); /* STORING: its slot is not needed after all */
void tier_release_host(struct lane *lane, struct block *b);
unsigned tier_busy(const struct lane *lane);	     /* operations that must end before a stop */
int tier_restore(struct lane *lane, uint32_t block); /* STORING -> NVME; -EDQUOT: left as it is */
/* STORING, or NVME, and its host slot is set: -> RESIDENT; -EDQUOT: left as it is. */
int tier_restore_host(struct lane *lane, uint32_t block);

/* What tier_fetch.c needs of tier.c. */
struct lane_nvme_op *tier_op_get(struct lane *lane); /* NULL: all are in use */
void tier_op_put(struct lane *lane, struct lane_nvme_op *op);
unsigned tier_buffer_index(const struct lane *lane, uint32_t slot);
void tier_unlist(struct lane *lane, uint32_t block); /* off the list it is on */
void tier_relist(struct lane *lane, uint32_t block); /* listed: on the one that is right now */

/* tier_drop.c */
void tier_sort(struct lane *lane); /* whether blocks are worth a place on NVMe has changed */
unsigned tier_sort_run(struct lane *lane);
unsigned tier_sort_one(struct lane *lane, uint32_t block);	/* 1: it is on another list now */
int tier_drops(const struct lane *lane, const struct block *b); /* is it not worth a place there? */

/* tier_fetch.c */
void tier_want(struct lane *lane, uint32_t block);   /* NVME: queue a fetch */
void tier_ahead(struct lane *lane, uint32_t block);  /* its descendants may be asked for next */
void tier_asked(struct lane *lane, struct block *b); /* it was */
unsigned tier_fetch_run(struct lane *lane);

/* tier_memory.c */
int tier_start_pool(struct lane *lane, char *err, unsigned err_bytes);

/* persist.c */
void persist_spills(struct lane *lane,
		    const struct block *b); /* what its record needs has to be saved */
void persist_changed(struct lane *lane);    /* a block came to NVMe, or left it */
struct record_header;
void persist_name_parent(const struct lane *lane, uint32_t block, struct record_header *h);
int persist_record_ok(const struct lane *lane, uint32_t block,
		      const struct nvme_op *op); /* fetched by it: is it the one? */
void persist_health_changed(struct lane *lane);	 /* of a device */
int persist_keeps(const struct lane *lane);	 /* is NVMe to be found again? */
unsigned persist_run(struct lane *lane);
int persist_may_stop(struct lane *lane); /* the last checkpoint is written, or will not be */
int persist_progresses(const struct lane *lane); /* at the stop: it is not a device that hangs */

/* restore.c */
int restore_run(struct lane *lane, char *err, unsigned err_bytes);
/* Namespaces and profiles out of pieces, which may come in parts (persist.h). */
struct restore_meta {
	struct lane *lane;
	const char *where; /* they come from: for the log */
	uint8_t *profile;  /* owned: parts of one so far */
	uint8_t profile_digest[32];
	uint64_t profile_bytes, profile_total;
	int error; /* -ENOMEM */
};
void restore_meta_take(struct restore_meta *rm, const uint8_t *bytes, uint32_t count);
void restore_meta_end(struct restore_meta *rm);
struct namespace *restore_find_ns(const struct lane *lane, const uint8_t *digest); /* or NULL */

/* tier_policy.c */
enum tier_place { TIER_PLACE_DIRTY, TIER_PLACE_CLEAN, TIER_PLACE_GPU, TIER_PLACE_NVME };

/* Held by nobody and not pinned; BLOCK_NONE: there is none.  What is clean may have children that are on NVMe. */
uint32_t tier_victim(const struct lane *lane, enum tier_place place);
/* Of all tiers, for good.  tenant: NULL: anybody's. */
uint32_t tier_victim_lost(const struct lane *lane, const struct tenant *tenant);
uint32_t tier_victim_pinned(const struct lane *lane,
			    const struct tenant *tenant); /* or not pinned */
/* Is it worth to be written again, when the place where it lies on NVMe is needed?  About one in five is. */
int tier_policy_keeps(struct lane *lane, uint32_t block);
void tier_pin(struct block *b, uint64_t until_ns); /* 0: no more */
uint64_t tier_pin_until_ns(const struct block *b);
uint64_t tier_pinned_ns(const struct lane *lane,
			const struct block *b); /* for so long; 0: it is not */
int tier_pinned(const struct lane *lane, const struct block *b);
/* For a fetch, or for a move: since now, and how long it has. */
void tier_waits_begin(const struct lane *lane, struct block *b);
uint64_t tier_waits_ns(const struct lane *lane, const struct block *b);
/* Somebody asked for it.  last: of his request, which a longer one may replace. */
void tier_use(struct lane *lane, uint32_t block, int last);
void tier_policy_enter(struct lane *lane, uint32_t block, int last); /* published */
void tier_policy_found(struct lane *lane, uint32_t block);	     /* on NVMe, at the start */
void tier_policy_leave(struct lane *lane, uint32_t block);	     /* is being forgotten */
void tier_policy_place(struct lane *lane, uint32_t block);	     /* it may lie elsewhere now */
void tier_policy_settle(struct lane *lane, uint32_t block); /* its holders or children are others */
void tier_policy_lets_go(struct lane *lane, uint32_t block);	    /* though recode holds it */
void tier_link(struct lane *lane, uint32_t block, uint32_t parent); /* in the index, too */
int tier_may_link(const struct lane *lane, uint32_t block, uint32_t parent); /* makes no ring */

void tier_log_evicts(void *user, uint32_t block); /* the log gave its record up */

/* tier_log.c */
int tier_log_start(struct lane *lane, char *err, unsigned err_bytes);

/* tier_gpu.c */
int tier_gpu_start(struct lane *lane, char *err, unsigned err_bytes);
int tier_gpu_alloc(struct lane *lane, uint64_t bytes, uint32_t block); /* sets gpu_slot; -ENOSPC */
void tier_gpu_release(struct lane *lane, struct block *b);
int tier_gpu_lost(const struct lane *lane,
		  const struct block *b); /* its only copy went with the GPU */
int tier_gpu_want_host(struct lane *lane,
		       uint32_t block); /* 1 in a host slot, 0 later, -errno never */
void tier_gpu_moved(struct lane *lane, struct task *task);
unsigned tier_gpu_run(struct lane *lane);

/* profiler.c */
int profiler_wants(struct lane *lane, struct namespace *ns); /* sample the next block? */
uint8_t *profiler_reserve(struct namespace *ns, uint32_t position);
void profiler_sampled(struct lane *lane, struct namespace *ns, int ok);
void profiler_note(struct lane *lane, struct namespace *ns, enum profile_note note, int32_t res);
int profiler_parks(const struct lane *lane,
		   const struct namespace *ns); /* stores wait for the first fit */
void profiler_run(struct lane *lane);
void profiler_fit_done(struct lane *lane, struct task *task);
void profiler_layer_done(struct lane *lane, struct task *task);
int profiler_ns_init(struct lane *lane, struct namespace *ns);
void profiler_ns_deinit(struct lane *lane, struct namespace *ns);

/* profiles.c */
uint64_t profiles_milli(double bits);
struct ns_profile *profiles_use(struct ns_profile *np); /* returns it; takes NULL, as drop does */
void profiles_drop(struct lane *lane, struct ns_profile *np);
int profiles_room(const struct namespace *ns);
void profiles_install(struct lane *lane, struct namespace *ns, struct codec_profile *p,
		      uint64_t tokens, uint64_t channel_milli, uint64_t layer_milli);
/* One that was saved; used once, for the caller.  -ENOSPC: no room; -EEXIST: it is there. */
struct profile_saved {
	uint32_t number;
	uint8_t newest;
	uint64_t tokens, promised[2];
};
int profiles_restore(struct lane *lane, struct namespace *ns, struct codec_profile *p,
		     const struct profile_saved *saved, struct ns_profile **ret);
struct ns_profile *profiles_find(struct namespace *ns, const uint8_t *digest); /* or NULL */
void profiles_ns_deinit(struct namespace *ns);
struct ns_profile *profiles_of_block(const struct lane *lane, const struct block *b); /* or NULL */
void profiles_set_block(struct lane *lane, struct block *b, struct ns_profile *np);
/* Coded / raw bytes that the newest promises; `channel`, `layer` or `model`. */
double profiles_promised_ratio(const struct namespace *ns, uint8_t speculator);
uint8_t profiles_mark(const struct ns_profile *np);
void profiles_seen(struct lane *lane, struct namespace *ns, struct ns_profile *np, uint8_t asked,
		   uint64_t bytes);

void profiles_take_shipped(struct lane *lane, struct namespace *ns); /* if there is one */

/* find.c */
void find_answer(const struct lane *lane, struct lane_question *question);

/* plan.c */
void plan_start(struct lane *lane);
void plan_task_done(struct lane *lane, const struct task *task); /* before its kind's own */
void plan_block_coded(struct namespace *ns, uint8_t speculator, uint64_t coded_bytes);
void plan_look(struct lane *lane, struct namespace *ns); /* again, when it is a while ago */
void plan_stored(struct lane *lane, struct namespace *ns);
void plan_evicted(struct lane *lane, uint32_t block); /* for room */
uint8_t plan_speculator(struct lane *lane,
			struct namespace *ns); /* for blocks that may take their time */
uint8_t plan_store_speculator(struct lane *lane, struct namespace *ns);
/* What it is expected to take to restore the block, and to compute it again. */
void plan_of_block(const struct lane *lane, const struct namespace *ns, const struct block *b,
		   struct lane_found *ret);
/* Of a prefix's blocks, how many are sooner restored than computed; all when the engine has not said its rate. */
uint32_t plan_worth_restoring(const struct lane *lane, const struct namespace *ns,
			      const uint32_t *blocks, uint32_t count);

/* model_fit.c */
void model_fit_start(struct lane *lane);
void model_fit_stop(struct lane *lane);
unsigned model_fit_run(struct lane *lane);
void model_fit_gathered(struct lane *lane, struct task *task);
void model_fit_done(struct lane *lane, struct task *task);

/* evict.c */
void evict_begin(struct lane *lane, const struct mail *mail);
unsigned evict_run(struct lane *lane); /* 1: it did something; running is 0 when that was all */

unsigned evict_trim(struct lane *lane); /* a bounded part of bringing tenants below their quotas */

#endif
