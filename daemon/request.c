/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request.c - jobs: the operations that take time (load, store).  A job owns a private copy of its
 * arguments, holds its region, owes its session at most two completions (reserved at intake) and ends
 * exactly once, in job_settle().  Items of a job are started in order; tenants, their sessions, and the jobs of
 * these each have their turn (turns.h), loads first.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/args.h"
#include "daemon/lane_state.h"
#include "daemon/recode.h"
#include "daemon/record.h"
#include "daemon/sequences.h"
#include "ipc/wake.h"

#define REQUEST_POLL_BATCH 64u

/* ---- completions ---- */

static void wake_client(struct session *s)
{
	if (ring_publish(&s->cq))
		wake_send(s->cq_fd);
}

/* The caller holds a reservation for this entry: intake took the operation only with room for it. */
void request_cqe(struct lane *lane, struct session *s, const struct skvc_abi_cqe *cqe)
{
	assert(s->cq_reserved > 0);
	s->cq_reserved--;
	if (cqe->reason != SKVC_ABI_REASON_NONE)
		stats_reason(&lane->stats, cqe->reason);
	if (cqe->res < 0)
		stats_add(&lane->stats, STAT_OPS_REFUSED, 1);
	if (ring_produce_has(&s->cq, 1) <=
	    0) /* its head ran backwards: it has lied about reading */
		return;
	ring_produce(&s->cq, cqe);
	wake_client(s);
}

/* ---- tasks ---- */

void task_queue_push(struct task_queue *q, struct task *t)
{
	t->next = NULL;
	if (q->tail)
		q->tail->next = t;
	else
		q->head = t;
	q->tail = t;
	q->count++;
}

struct task *task_queue_pop(struct task_queue *q)
{
	struct task *t = q->head;

	if (!t)
		return NULL;
	q->head = t->next;
	if (!q->head)
		q->tail = NULL;
	q->count--;
	t->next = NULL;
	return t;
}

struct task *task_get(struct lane *lane)
{
	return task_queue_pop(&lane->tasks_free);
}

void task_put(struct lane *lane, struct task *t)
{
	struct task_queue *q = t->of_gpu ? &lane->gpu_tasks_free : &lane->tasks_free;

	assert(!t->device && !t->staged && !t->sample && !t->waits && !t->reads_pages &&
	       !t->sequence && t->raw_slot == POOL_NONE);
	profiles_drop(lane, t->profile);
	t->profile = NULL;
	t->job = NULL;
	t->room_deadline_ns = 0;
	t->next = q->head; /* the last used first: its memory is warm */
	q->head = t;
	if (!q->tail)
		q->tail = t;
	q->count++;
}

uint8_t block_speculator(const struct block *b)
{
	if (b->model)
		return CODEC_SPEC_MODEL;
	if (b->layer)
		return CODEC_SPEC_LAYER;
	return b->profile ? CODEC_SPEC_CHANNEL : CODEC_SPEC_GENERIC;
}

uint64_t block_payload_off(const struct lane *lane, const struct block *b)
{
	return record_payload_off(b->flags & BLOCK_HAS_TOKENS ? lane->ns[b->ns]->geom.block_tokens
							      : 0);
}

const int32_t *block_tokens(const struct block *b, const void *record)
{
	return b->flags & BLOCK_HAS_TOKENS
		       ? (const int32_t *)((const struct record_header *)record + 1)
		       : NULL;
}

void task_decodes(const struct lane *lane, struct device_task *d, const struct block *b,
		  const void *record)
{
	uint64_t off = block_payload_off(lane, b);

	d->op = DEVICE_DECODE;
	d->in = (const uint8_t *)record + off;
	d->in_bytes = b->record_bytes - b->padding_bytes - off;
	d->profile = b->profile ? profiles_of_block(lane, b)->p : NULL;
	d->expect_xxh3 = b->raw_xxh3;
	d->position = b->position;
	d->tokens = block_tokens(b, record);
}

int task_start(struct lane *lane, struct task *t, struct device *device)
{
	int r = device->ops->start(device, &t->dev);

	if (r < 0)
		return r;
	t->device = device;
	stats_add(&lane->stats, STAT_DEVICE_INFLIGHT, 1);
	return 0;
}

/* ---- whose turn it is ---- */

static enum turn_kind kind_of(const struct job *job)
{
	return job->op == SKVC_ABI_OP_LOAD ? TURN_LOADS : TURN_STORES;
}

#define TURN_LEVELS 3u

/* From the job to the lane's own: each is, or comes, on the list of the next one. */
static void path_of(struct lane *lane, struct job *job, struct turn *ret_path[TURN_LEVELS + 1])
{
	enum turn_kind kind = kind_of(job);

	ret_path[0] = &job->turn;
	ret_path[1] = &job->session->turn[kind];
	ret_path[2] = &job->session->tenant->turn[kind];
	ret_path[3] = &lane->turn[kind];
}

static void turns_enter(struct lane *lane, struct job *job)
{
	struct turn *path[TURN_LEVELS + 1];

	path_of(lane, job, path);
	for (unsigned i = 0; i < TURN_LEVELS; i++) {
		int has_others = path[i + 1]->first != NULL;

		turn_push(path[i + 1], path[i]);
		if (has_others)
			break;
	}
}

static void turns_leave(struct lane *lane, struct job *job)
{
	struct turn *path[TURN_LEVELS + 1];

	path_of(lane, job, path);
	for (unsigned i = 0; i < TURN_LEVELS; i++) {
		turn_remove(path[i + 1], path[i]);
		if (path[i + 1]->first)
			break;
	}
}

/* ---- life of a job ---- */

static size_t bitmap_words(uint32_t count)
{
	return (count + 63) / 64;
}

static int wants_progress(const struct job *job)
{
	return !!(job->flags & SKVC_ABI_SQE_LAYER_PROGRESS);
}

static void hold_regions(struct job *job, int n)
{
	struct region *all[] = { job->region, job->ready, job->finished };

	for (unsigned i = 0; i < 3; i++)
		if (all[i])
			all[i]->users += (uint32_t)n;
}

struct job *job_new(struct lane *lane, struct session *s, const struct skvc_abi_sqe *sqe,
		    struct namespace *ns, const struct job_regions *regions, uint32_t tokens_count)
{
	size_t items_bytes = (size_t)sqe->count * sizeof(struct job_item);
	size_t map_bytes = bitmap_words(sqe->count) * 8;
	struct job *job = lane->job_free;
	uint32_t slot;
	uint8_t *p;

	if (!job || args_take_job(lane, s->tenant) < 0)
		return NULL;
	if (args_take(lane, s->tenant, items_bytes + map_bytes + (size_t)tokens_count * 4, &slot)) {
		args_give_job(s->tenant);
		return NULL;
	}
	lane->job_free = job->next_free;
	p = pool_ptr(lane->args, slot);
	*job = (struct job){
		.state = JOB_QUEUED,
		.op = sqe->opcode,
		.flags = sqe->flags,
		.session = s,
		.ns = ns,
		.region = regions->pages,
		.ready = regions->ready,
		.finished = regions->finished,
		.event = regions->ready ? JOB_EVENT_DUE : JOB_EVENT_NONE,
		.user_data = sqe->user_data,
		.intake_ns = lane->now_ns,
		.count = sqe->count,
		.skip_tokens = sqe->skip_tokens,
		.progress = UINT32_MAX,
		.result_rel = sqe->result_rel,
		.result_bytes = sqe->result_bytes,
		.args_slot = slot,
		.items = (struct job_item *)p,
		.bitmap = (uint64_t *)(p + items_bytes),
		.tokens = tokens_count ? (uint32_t *)(p + items_bytes + map_bytes) : NULL,
	};
	memset(job->bitmap, 0, map_bytes);
	hold_regions(job, 1);
	lane->progress_jobs += wants_progress(job);
	s->jobs_live++;
	atomic_store_explicit(&s->jobs, s->jobs_live, memory_order_relaxed);
	lane->jobs_count++;
	stats_set(&lane->stats, STAT_JOBS, lane->jobs_count);
	turns_enter(lane, job);
	return job;
}

static void job_free(struct lane *lane, struct job *job)
{
	struct session *s = job->session;

	assert(job->inflight == 0 && job->region->users > 0 && s->jobs_live > 0);
	if (job->state == JOB_QUEUED || job->state == JOB_RUNNING)
		turns_leave(lane, job);
	hold_regions(job, -1);
	sequences_give_back(lane, &job->sequence);
	lane->progress_jobs -= (unsigned)wants_progress(job);
	args_give(lane, s->tenant, job->args_slot);
	args_give_job(s->tenant);
	s->jobs_live--;
	atomic_store_explicit(&s->jobs, s->jobs_live, memory_order_relaxed);
	lane->jobs_count--;
	stats_set(&lane->stats, STAT_JOBS, lane->jobs_count);
	job->state = JOB_FREE;
	job->session = NULL;
	job->next_free = lane->job_free;
	lane->job_free = job;
}

/* An error outweighs a remark (a duplicate), and the first of each kind stays. */
void job_note(struct job *job, int32_t res, uint16_t reason)
{
	if (job->res == 0 && (job->reason == SKVC_ABI_REASON_NONE || res < 0)) {
		job->res = res;
		job->reason = reason;
	}
}

void job_item_done(struct lane *lane, struct job *job, uint32_t item, uint64_t raw_bytes,
		   uint64_t stored_bytes)
{
	(void)lane;
	assert(item < job->count && !(job->bitmap[item / 64] >> (item % 64) & 1));
	job->bitmap[item / 64] |= 1ull << (item % 64);
	job->done++;
	job->raw_bytes += raw_bytes;
	job->stored_bytes += stored_bytes;
}

static struct skvc_abi_cqe job_cqe(const struct lane *lane, const struct job *job)
{
	return (struct skvc_abi_cqe){
		.user_data = job->user_data,
		.count = job->done,
		.raw_bytes = job->raw_bytes,
		.stored_bytes = job->stored_bytes,
		.elapsed_ns = lane->now_ns - job->intake_ns,
	};
}

/* Nothing reads the engine's pages for this store any more. */
void job_source_free(struct lane *lane, struct job *job)
{
	struct skvc_abi_cqe cqe = job_cqe(lane, job);

	if (job->op != SKVC_ABI_OP_STORE || job->source_free_sent || job->encoding ||
	    (job->next < job->count && !job->aborted))
		return;
	job->source_free_sent = 1;
	cqe.kind = SKVC_ABI_CQE_SOURCE_FREE;
	stats_record_ns(&lane->stats, STATS_HIST_STORE_FREE, cqe.elapsed_ns);
	request_cqe(lane, job->session, &cqe);
}

static void write_results(const struct job *job)
{
	struct session *s = job->session;
	size_t map_bytes = bitmap_words(job->count) * 8;

	uint8_t *result = s->segment + s->layout.args_off + job->result_rel;

	if (!job->result_bytes) /* else its room was checked at intake */
		return;
	memcpy(result, job->bitmap, map_bytes);
	if (job->flags & SKVC_ABI_SQE_LAYER_PROGRESS && job->done == job->count)
		__atomic_store_n((uint64_t *)(result + map_bytes), job->ns->geom.segments_count,
				 __ATOMIC_RELEASE);
}

/* The engine's streams may wait for this instead of for the completion: also when the load failed. */
static void record_finished(struct lane *lane, struct job *job)
{
	int r;

	if (!job->finished)
		return;
	r = lane->gpu->import->event_record(lane->gpu, job->finished->event);
	if (r < 0)
		job_note(job, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
}

static void job_complete(struct lane *lane, struct job *job)
{
	struct skvc_abi_cqe cqe = job_cqe(lane, job);
	enum stats_hist_id hist = job->op == SKVC_ABI_OP_LOAD ? STATS_HIST_LOAD : STATS_HIST_STORE;

	job_source_free(lane, job);
	record_finished(lane, job);
	write_results(job);
	if (job->op == SKVC_ABI_OP_LOAD)
		job->session->cq_reserved--; /* the second completion that only a store needs */
	cqe.kind = SKVC_ABI_CQE_DONE;
	cqe.res = job->res;
	cqe.reason = job->reason;
	stats_record_ns(&lane->stats, hist, cqe.elapsed_ns);
	request_cqe(lane, job->session, &cqe);
	job_free(lane, job);
}

void job_settle(struct lane *lane, struct job *job)
{
	job_source_free(lane, job);
	if (job->inflight || (job->next < job->count && !job->aborted))
		return;
	job_complete(lane, job);
}

/* Give up what was not started, and what a device has not begun; what runs there runs to its end, then
 * the job settles. */
void job_cancel(struct lane *lane, struct job *job, uint16_t reason)
{
	if (job->aborted)
		return;
	if (job->next < job->count)
		job_note(job, -ECANCELED, reason);
	for (uint32_t i = job->next; i < job->count; i++) {
		if (job->op == SKVC_ABI_OP_STORE)
			store_cancel_item(lane, job, i);
		else if (job->items[i].block != BLOCK_NONE)
			tier_unhold(lane, job->items[i].block);
	}
	job->aborted = 1;
	job->abort_reason = reason;
	if (job->region->device)
		gpu_cancel_job(lane, job);
	if (job->state != JOB_ENDING) {
		turns_leave(lane, job);
		job->state = JOB_ENDING;
	}
	job_settle(lane, job);
}

int job_abort(struct lane *lane, struct session *s, uint64_t user_data, uint16_t reason)
{
	for (uint32_t i = 0; i < LANE_JOBS_MAX; i++) {
		struct job *job = &lane->job[i];

		if (job->state != JOB_FREE && job->session == s && job->user_data == user_data) {
			job_cancel(lane, job, reason);
			return 0;
		}
	}
	return -ESTALE;
}

void job_abort_all(struct lane *lane, struct session *s, uint16_t reason)
{
	for (uint32_t i = 0; i < LANE_JOBS_MAX && s->jobs_live; i++)
		if (lane->job[i].state != JOB_FREE && lane->job[i].session == s)
			job_cancel(lane, &lane->job[i], reason);
}

/* ---- what to do next ---- */

static int start_item(struct lane *lane, struct job *job)
{
	return job->op == SKVC_ABI_OP_LOAD ? load_start_item(lane, job)
					   : store_start_item(lane, job);
}

/* Of the session's jobs the first that can start its next item: 1 when one did, and is the last now. */
static int session_start(struct lane *lane, struct turn *session)
{
	for (struct turn *t = session->first; t; t = t->next) {
		struct job *job = (struct job *)t;

		if (!start_item(lane, job))
			continue;
		if (job->next < job->count) {
			job->state = JOB_RUNNING;
			turn_remove(session, t);
			turn_push(session, t);
		} else {
			turns_leave(lane, job);
			job->state = JOB_ENDING;
			job_settle(lane, job);
		}
		return 1;
	}
	return 0;
}

/* One item of one session of the tenant's, and of the tenant below: each may have left when it was his last. */
static int one_starts(struct lane *lane, struct turn *above, struct turn *t,
		      int (*start)(struct lane *lane, struct turn *t))
{
	if (t->idle == lane->runs)
		return 0;
	if (!start(lane, t)) {
		t->idle = lane->runs; /* it is looked at again in the next turn of the loop */
		return 0;
	}
	if (t->first) {
		turn_remove(above, t);
		turn_push(above, t);
	}
	return 1;
}

static int tenant_start(struct lane *lane, struct turn *tenant)
{
	for (struct turn *t = tenant->first; t; t = t->next)
		if (one_starts(lane, tenant, t, session_start))
			return 1;
	return 0;
}

/* One item of each tenant that can start one. */
static unsigned run_kind(struct lane *lane, enum turn_kind kind)
{
	struct turn *all = &lane->turn[kind], *t = all->first, *last = all->last, *next;
	unsigned started = 0;

	for (; t; t = next) {
		int was_last = t == last;

		next = t->next;
		started += (unsigned)one_starts(lane, all, t, tenant_start);
		if (was_last)
			break;
	}
	return started;
}

unsigned request_run(struct lane *lane)
{
	unsigned total = 0, started;

	lane->runs++;
	do {
		started = run_kind(lane, TURN_LOADS) + run_kind(lane, TURN_STORES);
		total += started;
	} while (started && total < REQUEST_POLL_BATCH);
	load_progress(lane);
	return total;
}

static void task_done(struct lane *lane, struct task *t)
{
	stats_sub(&lane->stats, STAT_DEVICE_INFLIGHT, 1);
	if (t->device != lane->device && t->dev.res == -EIO)
		stats_add(&lane->stats, STAT_GPU_FAILED, 1);
	plan_task_done(lane, t);
	t->device = NULL;
	switch (t->kind) {
	case TASK_COPY_OUT:
	case TASK_SAMPLE:
	case TASK_ENCODE:
	case TASK_PLACE:
		store_task_done(lane, t);
		break;
	case TASK_DECODE:
	case TASK_DECODE_STAGE:
	case TASK_COPY_IN:
		load_task_done(lane, t);
		break;
	case TASK_DEMOTE:
		tier_gpu_moved(lane, t);
		break;
	case TASK_FIT:
		profiler_fit_done(lane, t);
		break;
	case TASK_FIT_LAYER:
		profiler_layer_done(lane, t);
		break;
	case TASK_FIT_MODEL:
		model_fit_done(lane, t);
		break;
	case TASK_GATHER:
		model_fit_gathered(lane, t);
		break;
	case TASK_SEQUENCE:
		sequences_task_done(lane, t);
		break;
	case TASK_RECODE:
		recode_task_done(lane, t);
		break;
	case TASK_CHAIN:
		recode_chain_task_done(lane, t);
		break;
	}
}

static unsigned poll_device(struct lane *lane, struct device *device)
{
	struct device_task *done[REQUEST_POLL_BATCH];
	unsigned n = device->ops->poll(device, done, REQUEST_POLL_BATCH);

	for (unsigned i = 0; i < n; i++)
		task_done(lane, (struct task *)done[i]);
	return n;
}

unsigned request_poll(struct lane *lane)
{
	unsigned n = poll_device(lane, lane->device);

	if (lane->predictor)
		n += poll_device(lane, lane->predictor);
	return lane->gpu ? n + poll_device(lane, lane->gpu) : n;
}
