/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane.c - the data path's thread.  One turn of its loop takes mail, ring entries, device and NVMe
 * completions, starts what can be started, and moves records between tiers; every part is bounded, so one
 * client cannot starve another.  After spin_ns without work it sleeps in the ring until an eventfd, an I/O
 * or a deadline wakes it.  Nothing in a turn blocks.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "daemon/lane_state.h"
#include "daemon/recode.h"
#include "daemon/log.h"
#include "daemon/warm.h"
#include "daemon/sequences.h"
#include "daemon/util/lazy.h"

#define LANE_REAP_BATCH 64u
#define LANE_GPU_POLL_NS 100000ull /* for what a GPU does not announce: an engine's event, say */
#define LANE_POLL_NS 10000000ull   /* for what nobody wakes us for: a full CQ, waiting for room */
#define LANE_URING_ENTRIES 2048u   /* nvme_queue_depth at most, watches and cancels */
#define LANE_REST_NS 20000u
#define LANE_STAGING_SLACK_BYTES (1ull << 20)
#define LANE_STOP_FITS_NS 50000000ull /* a fit gets so long to end */

/* ---- mail ---- */

static void answer(struct lane *lane, const struct mail *mail, int32_t res)
{
	struct mail a = *mail;
	int r;

	a.res = res;
	r = mailbox_send(&lane->outbox, &a);
	assert(r == 0); /* one answer per request, requests are bounded by sessions_max */
}

static void sq_woken(struct uring_op *op, int32_t res)
{
	struct session *s = (struct session *)((uint8_t *)op - offsetof(struct session, sq_watch));

	if (res < 0)
		s->sq_watched = 0; /* unwatched, or the fd is broken: its ring is still polled */
}

static int session_add(struct lane *lane, struct session *s)
{
	struct skvc_abi_header *h = (struct skvc_abi_header *)s->segment;

	assert(s->slot < lane->config.sessions_max && !lane->session[s->slot]);
	ring_init(&s->sq, s->segment + s->layout.sq_off, s->layout.sq_entries, &h->sq_head,
		  &h->sq_tail);
	ring_init(&s->cq, s->segment + s->layout.cq_off, s->layout.cq_entries, &h->cq_tail,
		  &h->cq_head);
	s->sq_watch.done = sq_woken;
	if (uring_watch(lane->uring, &s->sq_watch, s->sq_fd) < 0)
		return -EAGAIN;
	s->sq_watched = 1;
	s->state = SESSION_OPEN;
	lane->session[s->slot] = s;
	lane->sessions_count++;
	stats_add(&lane->stats, STAT_SESSIONS_OPENED, 1);
	stats_set(&lane->stats, STAT_SESSIONS, lane->sessions_count);
	return 0;
}

static int ns_add(struct lane *lane, struct session *s, struct namespace *ns, uint64_t handle)
{
	int r = 0;

	assert(handle >= 1 && handle <= SESSION_NS_MAX && ns->id < lane->config.namespaces_max);
	if (!ns->opened) {
		profiles_take_shipped(lane, ns);
		r = profiler_ns_init(lane, ns);
		if (r < 0)
			return r;
		ns->opened = 1;
		quota_know(lane, ns->tenant);
		lane->ns[ns->id] = ns;
		if (ns->id >= lane->ns_end)
			lane->ns_end = ns->id + 1;
	}
	s->ns[handle] = ns;
	return 0;
}

/* Regions that control wants back are answered when no job uses them any more. */
static void region_settle(struct lane *lane, struct session *s, uint32_t handle)
{
	struct region *r = s->region[handle];

	if (!r || !r->closing || r->users)
		return;
	s->region[handle] = NULL;
	s->regions_closing--;
	answer(lane,
	       &(struct mail){
		       .type = LANE_REGION_END, .subject = s, .object = r, .value = handle },
	       0);
}

static void handle_mail(struct lane *lane, const struct mail *m)
{
	struct session *s = m->subject;
	struct region *r = m->object;

	switch (m->type) {
	case LANE_SESSION_ADD:
		answer(lane, m, session_add(lane, s));
		break;
	case LANE_SESSION_END:
		session_drain(lane, s, (uint16_t)m->value);
		s->end_requested = 1;
		break;
	case LANE_NS_ADD:
		answer(lane, m, ns_add(lane, s, m->object, m->value));
		break;
	case LANE_REGION_ADD:
		assert(m->value >= 1 && m->value <= SESSION_REGIONS_MAX && !s->region[m->value]);
		/* A lane without a GPU keeps regions in GPU memory and serves none (gpu_refuses). */
		assert(!r->device || !lane->gpu || r->device == lane->gpu);
		s->region[m->value] = r;
		answer(lane, m, 0);
		break;
	case LANE_REGION_END:
		assert(m->value >= 1 && m->value <= SESSION_REGIONS_MAX &&
		       s->region[m->value] == r);
		r->closing = 1;
		s->regions_closing++;
		break;
	case LANE_EVICT:
		evict_begin(lane, m);
		break;
	case LANE_FIND:
		find_answer(lane, m->subject);
		answer(lane, m, 0);
		break;
	case LANE_CONFIG:
		config_copy_live(&lane->config, m->subject);
		quota_configured(lane, m->subject);
		free(m->subject);
		break;
	case LANE_TRIM:
		lane->evict.trim = 1;
		break;
	case LANE_STOP:
		lane->stopping = 1;
		lane->may_leave = m->value != 0;
		lane->stop_ns = lane->now_ns;
		break;
	default:
		assert(!"control sends no other mail");
	}
}

static unsigned run_mail(struct lane *lane)
{
	struct mail m;
	unsigned n = 0;

	while (n < MAILBOX_ENTRIES && mailbox_recv(&lane->inbox, &m)) {
		handle_mail(lane, &m);
		n++;
	}
	return n;
}

/* An operator's wish goes on in each turn until it is answered. */
static unsigned run_evict(struct lane *lane)
{
	const struct lane_evict *e = &lane->evict;
	unsigned n = evict_run(lane);

	if (n && !e->running)
		answer(lane,
		       &(struct mail){ .type = LANE_EVICT,
				       .value = e->blocks,
				       .object = (void *)(uintptr_t)e->bytes },
		       e->kept < INT32_MAX ? (int32_t)e->kept : INT32_MAX);
	return n + evict_trim(lane);
}

/* ---- sessions ---- */

static void session_settle(struct lane *lane, struct session *s)
{
	for (uint32_t h = 1; s->regions_closing && h <= SESSION_REGIONS_MAX; h++)
		region_settle(lane, s, h);
	if (s->state != SESSION_DRAINING || !s->end_requested || s->jobs_live)
		return;
	if (s->sq_watched) {
		if (!s->sq_unwatching)
			uring_unwatch(lane->uring, &s->sq_watch);
		s->sq_unwatching = 1;
		return;
	}
	session_closed(s);
	s->state = SESSION_GONE;
	lane->session[s->slot] = NULL;
	lane->sessions_count--;
	stats_set(&lane->stats, STAT_SESSIONS, lane->sessions_count);
	answer(lane, &(struct mail){ .type = LANE_SESSION_GONE, .subject = s }, 0);
}

static unsigned run_sessions(struct lane *lane)
{
	unsigned n = 0;

	lane->cq_blocked = 0;
	for (uint32_t i = 0, seen = 0, all = lane->sessions_count; seen < all; i++) {
		struct session *s = lane->session[i];

		if (!s)
			continue;
		seen++;
		n += intake_run(lane, s);
		lane->cq_blocked |= s->cq_blocked;
		session_settle(lane, s);
	}
	return n;
}

/* ---- sleeping ---- */

static uint64_t sleep_ns(const struct lane *lane)
{
	uint64_t ns = LANE_SLEEP_MAX_NS;

	if (lane->leases_next_ns < lane->now_ns + ns)
		ns = lane->leases_next_ns > lane->now_ns ? lane->leases_next_ns - lane->now_ns : 1;
	if (lane->cq_blocked || lane->room.count || lane->fetch.count || tier_busy(lane) ||
	    lane->turn[TURN_LOADS].first || lane->stopping || recode_waits(lane) ||
	    (lane->log && nvme_set_in_service(lane->log) < nvme_set_logs(lane->log)))
		ns = ns < LANE_POLL_NS ? ns : LANE_POLL_NS;
	/* With jobs on the GPU and nothing in the air: they wait for an event, their share or staging. */
	if (lane->events_waiting || (lane->gpu && lane->jobs_count))
		ns = ns < LANE_GPU_POLL_NS ? ns : LANE_GPU_POLL_NS;
	return ns;
}

/* Arm every source of work; 0 when one has some already. */
static int arm(struct lane *lane)
{
	if (!mailbox_arm(&lane->inbox) || !lane->device->ops->arm(lane->device) ||
	    (lane->predictor && !lane->predictor->ops->arm(lane->predictor)) ||
	    (lane->gpu && !lane->gpu->ops->arm(lane->gpu)))
		return 0;
	for (uint32_t i = 0, seen = 0; seen < lane->sessions_count; i++) {
		struct session *s = lane->session[i];

		if (!s)
			continue;
		seen++;
		/* A session that is not served for want of room in its CQ has entries: do not spin on them. */
		if (s->state == SESSION_OPEN && !s->cq_blocked && !ring_arm(&s->sq))
			return 0;
	}
	return 1;
}

static void disarm(struct lane *lane)
{
	mailbox_disarm(&lane->inbox);
	lane->device->ops->disarm(lane->device);
	if (lane->predictor)
		lane->predictor->ops->disarm(lane->predictor);
	if (lane->gpu)
		lane->gpu->ops->disarm(lane->gpu);
	for (uint32_t i = 0, seen = 0; seen < lane->sessions_count; i++) {
		if (!lane->session[i])
			continue;
		seen++;
		ring_disarm(&lane->session[i]->sq);
	}
}

static void lane_sleep(struct lane *lane)
{
	uint64_t until_ns = UINT64_MAX;

	if (arm(lane)) {
		uint64_t ns = sleep_ns(lane);

		until_ns = clock_now_ns() + ns;
		(void)uring_sleep(lane->uring, ns);
		stats_add(&lane->stats, STAT_WAKEUPS, 1);
	}
	disarm(lane);
	lane->work_ns = clock_now_ns(); /* whoever woke us gets a full spin */
	/* ... but a clock gets one look, or waiting for events would be spinning half of the time. */
	if (lane->work_ns >= until_ns && lane->work_ns >= lane->config.spin_ns)
		lane->work_ns -= lane->config.spin_ns;
}

/* ---- the loop ---- */

/* Is anything under way beside entries that are answered as they are taken? */
static int under_way(const struct lane *lane)
{
	return lane->jobs_count || lane->fit_busy || lane->words_behind || lane->fetch.count ||
	       lane->ahead.count || tier_busy(lane);
}

/* Work that has a deadline or moves by itself: in every turn while anything is under way, else now and then,
 * so that small operations do not wait behind it. */
static unsigned run_rest(struct lane *lane)
{
	unsigned n;

	lane->rest_ns = lane->now_ns;
	n = request_poll(lane);
	n += gpu_run(lane);
	n += store_room_run(lane);
	profiler_run(lane);
	n += request_run(lane);
	n += tier_run(lane);
	n += lease_run(lane);
	n += recode_run(lane);
	n += model_fit_run(lane);
	sequences_run(lane);
	return n;
}

static unsigned turn(struct lane *lane)
{
	unsigned n;

	lane->now_ns = clock_now_ns();
	n = run_mail(lane);
	n += run_evict(lane);
	n += run_sessions(lane);
	n += uring_reap(lane->uring, LANE_REAP_BATCH);
	if (under_way(lane) || lane->now_ns - lane->rest_ns >= LANE_REST_NS)
		n += run_rest(lane);
	(void)uring_submit(lane->uring);
	return n;
}

/*
 * An I/O that the kernel neither finishes nor cancels owns its memory for ever: after its deadline and as
 * long again there is nothing left to wait for, and nothing that may be freed.
 */
static void stop_late(const struct lane *lane)
{
	if (!lane->stopping || !tier_busy(lane) || persist_progresses(lane) ||
	    lane->now_ns - lane->stop_ns < 2 * lane->config.nvme_deadline_ns)
		return;
	log_line(LOG_LEVEL_ERR,
		 "a device does not answer: the daemon ends without waiting for %u operations",
		 tier_busy(lane));
	_exit(1);
}

/* Seconds of work for nothing: statistics, or what was canceled in the midst of a product of large matrices. */
static int fits_run(const struct lane *lane)
{
	return lane->fit_busy || lane->layer_busy || lane->model_fit.running;
}

static int may_stop(struct lane *lane)
{
	if (!lane->stopping || lane->sessions_count || lane->jobs_count || recode_busy(lane) ||
	    lane->sequence_steps || tier_busy(lane))
		return 0;
	if (fits_run(lane) &&
	    (!lane->may_leave || lane->now_ns - lane->stop_ns < LANE_STOP_FITS_NS))
		return 0;
	return persist_may_stop(lane);
}

static void *lane_main(void *arg)
{
	struct lane *lane = arg;
	uint64_t beat = 0;

	(void)prctl(PR_SET_NAME, "skvcd-lane");
	lane->work_ns = clock_now_ns();
	while (!may_stop(lane)) {
		if (turn(lane))
			lane->work_ns = lane->now_ns;
		else if (lane->now_ns - lane->work_ns >= lane->config.spin_ns && !run_rest(lane))
			lane_sleep(lane);
		stop_late(lane);
		atomic_store_explicit(&lane->heartbeat, ++beat, memory_order_relaxed);
	}
	lane->left = fits_run(lane);
	uring_unwatch(lane->uring, &lane->inbox_watch);
	uring_unwatch(lane->uring, &lane->device_watch);
	while (lane->watches) {
		(void)uring_sleep(lane->uring, LANE_POLL_NS);
		(void)uring_reap(lane->uring, LANE_REAP_BATCH);
	}
	return NULL;
}

/* ---- start and stop ---- */

static void fd_woken(struct uring_op *op, int32_t res)
{
	struct lane *lane = op->user;

	if (res < 0)
		lane->watches--;
}

static int watch(struct lane *lane, struct uring_op *op, int fd)
{
	int r;

	op->done = fd_woken;
	op->user = lane;
	r = uring_watch(lane->uring, op, fd);
	if (r == 0)
		lane->watches++;
	return r;
}

static uint32_t auto_blocks(const struct config *c)
{
	uint64_t n = (c->pool_bytes + config_nvme_bytes(c)) / (16u << 10);

	n = n < 4096 ? 4096 : n > (16u << 20) ? 16u << 20 : n;
	return c->blocks_max ? c->blocks_max : (uint32_t)n;
}

static unsigned auto_workers(const struct config *c)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (c->cpu_workers)
		return c->cpu_workers;
	return cores <= 2 ? 1 : cores > 17 ? 16 : (unsigned)cores - 1;
}

/* The GPU's tasks may come to the CPU with what it cannot code. */
static int start_device(struct lane *lane, char *err, unsigned err_bytes)
{
	unsigned workers = auto_workers(&lane->config);
	struct device *d = NULL;
	int r;

	lane->cpu_workers = workers;
	lane->tasks_count = 2 * workers + 2;
	r = cpu_device_new(workers,
			   lane->tasks_count + 4 + lane->config.model_sequences + RECODE_CHAIN_MAX +
				   (lane->gpu ? LANE_GPU_TASKS : 0),
			   lane->device_fd, lane->config.spin_ns, &d);
	if (r < 0) {
		snprintf(err, err_bytes, "compute device with %u workers: %s", workers,
			 strerror(-r));
		return r;
	}
	cpu_device_priority(d, (enum device_priority)lane->config.profile_priority);
	lane->device = d;
	if (!lane->config.fault_device[0])
		return 0;
	r = fault_device_new(d, lane->config.fault_device, &lane->device);
	if (r < 0)
		snprintf(err, err_bytes, "[fault] device = %s: %s", lane->config.fault_device,
			 strerror(-r));
	return r;
}

static int start_tasks(struct lane *lane)
{
	int r;

	lane->staging_bytes = lane_block_bytes_max(lane) + LANE_STAGING_SLACK_BYTES;
	lane->task = calloc(lane->tasks_count, sizeof(*lane->task));
	if (!lane->task)
		return -ENOMEM;
	for (uint32_t i = 0; i < lane->tasks_count; i++) {
		lane->task[i].raw_slot = POOL_NONE;
		lane->task[i].staging = map_lazily(lane->staging_bytes);
		if (!lane->task[i].staging)
			return -ENOMEM;
		task_put(lane, &lane->task[i]);
	}
	model_fit_start(lane);
	r = sequences_start(lane);
	return r < 0 ? r : recode_start(lane);
}

static int start_memory(struct lane *lane)
{
	const struct config *c = &lane->config;
	struct pool_options args = {
		.bytes = LANE_ARGS_BYTES,
		.slab_bytes = 4u << 20,
		.granule_bytes = 64,
		.numa_node = -1,
	};

	lane->session = calloc(c->sessions_max, sizeof(struct session *));
	lane->ns = calloc(c->namespaces_max, sizeof(struct namespace *));
	lane->scratch = map_lazily(SKVC_ABI_ARGS_BYTES_MAX);
	lane->job = map_lazily(LANE_JOBS_MAX * sizeof(struct job));
	lane->lease = map_lazily((uint64_t)c->sessions_max * c->leases_max * sizeof(struct lease));
	if (!lane->session || !lane->ns || !lane->scratch || !lane->job || !lane->lease)
		return -ENOMEM;
	for (uint32_t i = LANE_JOBS_MAX; i-- > 0;) {
		lane->job[i].next_free = lane->job_free;
		lane->job_free = &lane->job[i];
	}
	lane->leases_live.prev = lane->leases_live.next = &lane->leases_live;
	lane->leases_next_ns = UINT64_MAX;
	return pool_new(&args, &lane->args);
}

/* With iopoll the thread is that ring's, which tier_start() makes. */
static int new_uring(struct lane *lane, const char *fault)
{
	const struct config *c = &lane->config;
	int r;

	if (!c->nvme_path[0] || !c->nvme_sqpoll || c->nvme_iopoll)
		return uring_new(LANE_URING_ENTRIES, fault, &lane->uring);
	r = uring_new_sqpoll(LANE_URING_ENTRIES, fault, &lane->uring);
	if (r != -EPERM && r != -EINVAL)
		return r;
	log_line(LOG_LEVEL_WARNING, "[nvme] sqpoll: %s: it goes on without", strerror(-r));
	return uring_new(LANE_URING_ENTRIES, fault, &lane->uring);
}

static int start_rings(struct lane *lane, char *err, unsigned err_bytes)
{
	const char *fault = lane->config.fault_nvme;
	int r = mailbox_init(&lane->inbox);

	if (r == 0)
		r = mailbox_init(&lane->outbox);
	if (r == 0) {
		lane->device_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = lane->device_fd < 0 ? -errno : 0;
	}
	if (r < 0) {
		snprintf(err, err_bytes, "eventfd: %s", strerror(-r));
		return r;
	}
	r = new_uring(lane, fault[0] ? fault : NULL);
	if (r < 0) {
		snprintf(err, err_bytes, "io_uring: %s: %s", strerror(-r), uring_hint(r));
		return r;
	}
	return 0;
}

/* The memfds that it was given, as far as nothing took them over. */
static void close_given(struct lane *lane)
{
	if (lane->restore.pool_fd)
		(void)close(lane->restore.pool_fd - 1);
	if (lane->restore.index_fd)
		(void)close(lane->restore.index_fd - 1);
	lane->restore.pool_fd = lane->restore.index_fd = 0;
}

static struct lane *lane_free(struct lane *lane)
{
	const struct config *c = &lane->config;

	sequences_stop(lane);
	if (lane->device)
		lane->device->ops->free(lane->device);
	gpu_stop(lane);
	tier_stop(lane);
	model_fit_stop(lane);
	for (uint32_t i = 0; lane->ns && i < c->namespaces_max; i++)
		if (lane->ns[i])
			profiler_ns_deinit(lane, lane->ns[i]);
	lane->uring = uring_free(lane->uring);
	mailbox_deinit(&lane->inbox);
	mailbox_deinit(&lane->outbox);
	if (lane->device_fd >= 0)
		close(lane->device_fd);
	recode_stop(lane);
	for (uint32_t i = 0; lane->task && i < lane->tasks_count; i++)
		if (lane->task[i].staging)
			munmap(lane->task[i].staging, lane->staging_bytes);
	free(lane->task);
	lane->args = pool_free(lane->args);
	lane->policy = policy_free(lane->policy);
	lane->index = index_free(lane->index);
	if (lane->lease)
		munmap(lane->lease,
		       (uint64_t)c->sessions_max * c->leases_max * sizeof(struct lease));
	if (lane->job)
		munmap(lane->job, LANE_JOBS_MAX * sizeof(struct job));
	if (lane->scratch)
		munmap(lane->scratch, SKVC_ABI_ARGS_BYTES_MAX);
	free(lane->ns);
	free(lane->session);
	close_given(lane);
	free(lane);
	return NULL;
}

static int start_all(struct lane *lane, char *err, unsigned err_bytes)
{
	int r = start_rings(lane, err, err_bytes);

	if (r < 0)
		return r;
	r = start_memory(lane);
	if (r == 0)
		r = index_new(lane->config.blocks_max, &lane->index);
	if (r == 0)
		r = policy_new(lane->config.blocks_max, lane->config.blocks_max, &lane->policy);
	if (r < 0) {
		snprintf(err, err_bytes, "memory for the lane's tables: %s", strerror(-r));
		return r;
	}
	stats_set(&lane->stats, STAT_INDEX_BLOCKS_MAX, lane->config.blocks_max);
	r = gpu_start(lane, err, err_bytes); /* it says where the pool should lie */
	if (r == 0)
		r = tier_start(lane, err, err_bytes);
	if (r == 0)
		r = gpu_start_memory(lane, err, err_bytes);
	if (r == 0)
		r = start_device(lane, err, err_bytes);
	if (r < 0)
		return r;
	plan_start(lane);
	r = start_tasks(lane);
	if (r == 0)
		r = watch(lane, &lane->inbox_watch, lane->inbox.fd);
	if (r == 0)
		r = watch(lane, &lane->device_watch, lane->device_fd);
	if (r == 0 && lane->restore.index_fd)
		r = warm_use(lane->restore.index_fd - 1);
	if (r == 0)
		r = -pthread_create(&lane->thread, NULL, lane_main, lane);
	if (r < 0)
		snprintf(err, err_bytes, "starting the lane: %s", strerror(-r));
	return r;
}

int lane_start(const struct config *config, const struct lane_restore *restore,
	       struct lane **ret_lane, char *err, unsigned err_bytes)
{
	struct lane *lane = aligned_alloc(64, (sizeof(*lane) + 63) & ~63ul);
	int r;

	if (!lane) {
		snprintf(err, err_bytes, "out of memory");
		return -ENOMEM;
	}
	memset(lane, 0, sizeof(*lane));
	lane->config = *config;
	lane->config.blocks_max = auto_blocks(config);
	if (restore)
		lane->restore = *restore;
	lane->device_fd = lane->inbox.fd = lane->outbox.fd = -1;
	r = start_all(lane, err, err_bytes);
	if (r < 0) {
		lane_free(lane);
		return r;
	}
	close_given(lane);
	*ret_lane = lane;
	return 0;
}

int lane_pool_fd(const struct lane *lane)
{
	return pool_fd(lane->pool);
}

static void wait_for(struct lane *lane)
{
	if (!lane->ended)
		(void)pthread_join(lane->thread, NULL);
	lane->ended = 1;
}

int lane_save(struct lane *lane, int *ret_fd)
{
	wait_for(lane);
	return warm_save(lane, ret_fd);
}

struct lane *lane_join(struct lane *lane)
{
	if (!lane)
		return NULL;
	wait_for(lane);
	return lane_free(lane);
}

int lane_leave(struct lane *lane)
{
	wait_for(lane);
	if (!lane->left)
		return 0;
	tier_stop(lane);
	lane->uring = uring_free(lane->uring);
	return 1;
}

struct mailbox *lane_inbox(struct lane *lane)
{
	return &lane->inbox;
}

struct mailbox *lane_outbox(struct lane *lane)
{
	return &lane->outbox;
}

const struct stats *lane_stats(const struct lane *lane)
{
	return &lane->stats;
}

struct device *lane_gpu(const struct lane *lane)
{
	return lane->gpu;
}

uint64_t lane_heartbeat(const struct lane *lane)
{
	return atomic_load_explicit(&lane->heartbeat, memory_order_relaxed);
}

/* What a record of raw chunks needs beside them is far below a 32nd. */
uint64_t lane_block_bytes_max(const struct lane *lane)
{
	uint64_t largest = pool_largest_bytes(lane->pool);

	largest -= largest / 32;
	return largest < CODEC_RAW_BYTES_MAX ? largest : CODEC_RAW_BYTES_MAX;
}
