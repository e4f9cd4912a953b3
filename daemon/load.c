/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - a restore, from top to bottom: lease check -> wait until the record is in a slot that the device
 * can read -> decode into the engine's pages and compare the raw checksum, on the device -> complete.
 *
 * Into GPU memory the GPU decodes, from host slots and from its own pool.  What it cannot decode the CPU, or who runs
 * the block's model, decodes into host memory, and the GPU copies that in.
 *
 * A block that cannot be restored exactly is reported as not done, and when its bytes were wrong it
 * leaves the index at once.  Nothing wrong is ever reported as done.
 */
#include <assert.h>
#include <errno.h>

#include "daemon/lane_state.h"
#include "daemon/sequences.h"

void load_begin(struct lane *lane, struct session *s, const struct job_regions *regions,
		const struct skvc_abi_sqe *sqe, const uint32_t *pages, struct skvc_abi_cqe *cqe,
		int *ret_async)
{
	struct lease *l = lease_find(lane, s, sqe->lease);
	int same_ns = l && l->ns == regions->pages->ns;
	struct job *job;

	if (!same_ns || sqe->first >= l->count || sqe->count > l->count - sqe->first) {
		cqe->res = same_ns ? -EINVAL : -ESTALE;
		cqe->reason = same_ns ? SKVC_ABI_REASON_BAD_COUNT
			      : l     ? SKVC_ABI_REASON_BAD_REGION
				      : SKVC_ABI_REASON_LEASE_GONE;
		return;
	}
	if (sqe->skip_tokens >= l->ns->geom.block_tokens) {
		cqe->res = -EINVAL;
		cqe->reason = SKVC_ABI_REASON_BAD_COUNT;
		return;
	}
	job = job_new(lane, s, sqe, l->ns, regions, 0);
	if (!job) {
		cqe->res = -EAGAIN;
		cqe->reason = SKVC_ABI_REASON_JOBS_FULL;
		return;
	}
	*ret_async = 1;
	for (uint32_t i = 0; i < job->count; i++) {
		job->items[i] = (struct job_item){ .block = l->blocks[sqe->first + i],
						   .page = pages[i] };
		tier_hold(lane, job->items[i].block); /* the lease may end before the load does */
	}
}

static void item_over(struct lane *lane, struct job *job, uint32_t i)
{
	uint32_t id = job->items[i].block;

	job->items[i].block = BLOCK_NONE;
	tier_unhold(lane, id);
}

static void fail_item(struct lane *lane, struct job *job, uint32_t i, int32_t res, uint16_t reason)
{
	job_note(job, res, reason);
	stats_add(&lane->stats, STAT_LOAD_FAILED_BLOCKS, 1);
	item_over(lane, job, i);
}

/* ---- start ---- */

/* The payload of the block's record, wherever that lies. */
static void read_payload(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	const struct block *b = index_block(lane->index, job->items[t->item].block);
	uint32_t gpu_slot = index_gpu_slot(lane->index, b);
	int on_gpu = t->of_gpu && gpu_slot != POOL_NONE;

	task_decodes(lane, &t->dev, b,
		     on_gpu ? pool_ptr(lane->gpu_pool, gpu_slot) : pool_ptr(lane->pool, b->slot));
	t->dev.in_place = on_gpu ? DEVICE_PLACE_DEVICE : DEVICE_PLACE_HOST;
	if (b->model)
		t->dev.sequence = job->sequence->s;
}

/* Into host memory; a block that is coded after others goes on from these, where they are. */
static int start_on_host(struct lane *lane, struct task *t)
{
	struct lane_sequence *q = t->dev.sequence ? t->job->sequence : NULL;
	int r = task_start(lane, t, q ? q->device : lane->device);

	if (r == 0 && q) {
		t->sequence = q;
		sequences_begin(lane, q, t->job->items[t->item].block);
	}
	return r;
}

static int start_decode(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	int r;

	t->kind = TASK_DECODE;
	t->dev = (struct device_task){
		.op = DEVICE_DECODE,
		.region = &job->region->dev,
		.block_index = job->items[t->item].page,
		.skip_tokens = t->item == 0 ? job->skip_tokens : 0,
	};
	read_payload(lane, t);
	if (!t->of_gpu)
		return start_on_host(lane, t);
	gpu_event_begin(lane, t);
	r = task_start(lane, t, lane->gpu);
	if (r < 0) {
		t->dev.res = r;
		gpu_event_end(lane, t);
	}
	return r;
}

/*
 * On the CPU, all of the block, so that it is checked before the GPU copies from it.  That copy is what waits
 * for the job's event, but the task counts as waiting from here on, with the memory that it takes: else one
 * session's jobs, many of them decoded before any waits, could take all there is.
 */
static int start_decode_stage(struct lane *lane, struct task *t)
{
	int r = gpu_raw_get(lane, t);

	if (r < 0)
		return r;
	t->kind = TASK_DECODE_STAGE;
	gpu_event_begin(lane, t);
	t->dev = (struct device_task){ .op = DEVICE_DECODE, .region = &t->packed };
	read_payload(lane, t);
	r = start_on_host(lane, t);
	if (r < 0) {
		t->dev.res = r;
		gpu_event_end(lane, t);
		gpu_raw_put(lane, t);
	}
	return r;
}

static int start_gpu(struct lane *lane, struct task *t)
{
	const struct codec_geometry *g = &t->job->ns->geom;

	t->dev = (struct device_task){ .op = DEVICE_DECODE };
	read_payload(lane, t);
	/* What lies in the GPU's pool was coded by it, and nobody else can look into that. */
	if (t->dev.in_place == DEVICE_PLACE_DEVICE ||
	    lane->gpu->ops->can_decode(lane->gpu, g, t->dev.profile, t->dev.in, t->dev.in_bytes))
		return start_decode(lane, t);
	return start_decode_stage(lane, t);
}

/* The record is whole in a slot that the region's device can read. */
static int start_item(struct lane *lane, struct job *job, uint32_t i)
{
	int gpu = job->region->device != NULL, r;
	struct task *t;

	if (gpu && !gpu_event_allows(lane, job))
		return 0;
	t = gpu ? gpu_task_get(lane) : task_get(lane);
	if (!t)
		return 0;
	t->job = job;
	t->item = i;
	r = gpu ? start_gpu(lane, t) : start_decode(lane, t);
	if (r < 0) {
		task_put(lane, t);
		if (r == -EAGAIN)
			return 0;
		job->next++;
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		return 1;
	}
	job->next++;
	job->inflight++;
	return 1;
}

/* In the GPU's pool, and wanted in host memory: it has to be moved first. */
static int start_moved(struct lane *lane, struct job *job, uint32_t i)
{
	int r = tier_gpu_want_host(lane, job->items[i].block);

	if (r > 0)
		return start_item(lane, job, i);
	if (r == 0)
		return 0;
	job->next++;
	if (r == -ENOSPC)
		fail_item(lane, job, i, -EAGAIN, SKVC_ABI_REASON_POOL_FULL);
	else
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
	return 1;
}

static void no_prefix(struct lane *lane, struct job *job, uint32_t i, int r)
{
	switch (r) {
	case -ENODEV:
		fail_item(lane, job, i, -ENODATA, SKVC_ABI_REASON_MODEL_GONE);
		break;
	case -ENODATA:
	case -ESTALE:
	case -EBADMSG:
	case -E2BIG:
		fail_item(lane, job, i, -ENODATA, SKVC_ABI_REASON_PREFIX_GONE);
		break;
	default:
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		break;
	}
}

/* A block that `model` coded: the blocks before it come first, whoever has asked for them. */
static int start_after_prefix(struct lane *lane, struct job *job, uint32_t i)
{
	const struct block *b = index_block(lane->index, job->items[i].block);
	int r = sequences_take(lane, &job->sequence, job->items[i].block,
			       profiles_of_block(lane, b), 0);

	if (r > 0)
		return start_item(lane, job, i);
	if (r == 0)
		return 0;
	job->next++;
	no_prefix(lane, job, i, r);
	return 1;
}

static int start_whole(struct lane *lane, struct job *job, uint32_t i)
{
	const struct block *b = index_block(lane->index, job->items[i].block);

	if (tier_gpu_lost(lane, b) || (job->region->device && lane->gpu_dead)) {
		job->next++;
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		return 1;
	}
	if (b->model)
		return start_after_prefix(lane, job, i);
	return job->region->device ? start_item(lane, job, i) : start_moved(lane, job, i);
}

/* 1: progress was made on the job's next item; 0: it has to wait (for NVMe, a move, or a free task). */
int load_start_item(struct lane *lane, struct job *job)
{
	uint32_t i = job->next;
	const struct block *b = index_block(lane->index, job->items[i].block);

	switch (b->state) {
	case BLOCK_RESIDENT:
		return start_whole(lane, job, i);
	case BLOCK_FETCHING:
		return 0;
	case BLOCK_NVME:
		if (b->flags & BLOCK_WANTED)
			return 0;
		job->next++;
		fail_item(lane, job, i, -ENODATA, SKVC_ABI_REASON_IO_ERROR);
		return 1;
	case BLOCK_DEAD:
		if (b->flags & BLOCK_READABLE) /* dropped since; a lease is still a lease */
			return start_whole(lane, job, i);
		job->next++;
		fail_item(lane, job, i, -ENODATA,
			  b->flags & BLOCK_CORRUPT ? SKVC_ABI_REASON_CORRUPT
						   : SKVC_ABI_REASON_MISS);
		return 1;
	default:
		assert(!"a leased block is in one of the states above");
		return 0;
	}
}

/* ---- completion ---- */

/* Decoded and checked in host memory: into the engine's pages with it. */
static int start_copy_in(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	t->kind = TASK_COPY_IN;
	t->dev = (struct device_task){
		.op = DEVICE_COPY_IN,
		.region = &job->region->dev,
		.block_index = job->items[t->item].page,
		.in = gpu_raw_ptr(lane, t),
		.in_bytes = job->ns->geom.raw_bytes,
		.skip_tokens = t->item == 0 ? job->skip_tokens : 0,
		.ready = t->waits ? job->ready->event : NULL,
	};
	return task_start(lane, t, lane->gpu);
}

static void loaded(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	const struct block *b = index_block(lane->index, job->items[t->item].block);

	job_item_done(lane, job, t->item, job->ns->geom.raw_bytes,
		      b->record_bytes - b->padding_bytes);
	stats_add(&lane->stats, STAT_LOAD_BLOCKS, 1);
	stats_add(&lane->stats, STAT_LOAD_RAW_BYTES, job->ns->geom.raw_bytes);
	atomic_fetch_add_explicit(&job->session->load_blocks, 1, memory_order_relaxed);
	item_over(lane, job, t->item);
}

static uint16_t refusal_reason(int32_t res, uint8_t refusal)
{
	if (res != -ESTALE)
		return SKVC_ABI_REASON_CORRUPT;
	return refusal == CODEC_REFUSAL_PREFIX || refusal == CODEC_REFUSAL_GUESSES
		       ? SKVC_ABI_REASON_PREFIX_GONE
		       : SKVC_ABI_REASON_PROFILE_GONE;
}

static void not_loaded(struct lane *lane, struct task *t, int32_t res)
{
	struct job *job = t->job;

	if (res == -EBADMSG || res == -ESTALE) {
		tier_quarantine(lane, job->items[t->item].block);
		fail_item(lane, job, t->item, -ENODATA, refusal_reason(res, t->dev.refusal));
	} else if (res == -ENODEV) {
		fail_item(lane, job, t->item, -ENODATA, SKVC_ABI_REASON_MODEL_GONE);
	} else if (res == -ECANCELED &&
		   !job->aborted) { /* the block before this one was not decoded */
		fail_item(lane, job, t->item, -ENODATA, SKVC_ABI_REASON_PREFIX_GONE);
	} else if (res == -ECANCELED) {
		fail_item(lane, job, t->item, res, job->abort_reason);
	} else {
		fail_item(lane, job, t->item, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
	}
}

void load_task_done(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	int32_t res = t->dev.res;

	stats_add(&lane->stats,
		  t->of_gpu && t->kind != TASK_DECODE_STAGE ? STAT_GPU_DECODE_NS : STAT_DECODE_NS,
		  t->dev.busy_ns);
	if (t->sequence) {
		sequences_end(lane, t->sequence, job->items[t->item].block, res);
		t->sequence = NULL;
	}
	if (res == 0 && t->kind == TASK_DECODE_STAGE) {
		res = job->aborted ? -ECANCELED : start_copy_in(lane, t);
		if (res == 0)
			return;
		t->dev.res = res;
	}
	gpu_event_end(lane, t);
	if (res == 0)
		loaded(lane, t);
	else
		not_loaded(lane, t, res);
	gpu_raw_put(lane, t);
	job->inflight--;
	task_put(lane, t);
	job_settle(lane, job);
}

/* ---- layer progress ---- */

static uint64_t *progress_word(const struct job *job)
{
	uint64_t map_bytes = (uint64_t)(job->count + 63) / 64 * 8;

	return (uint64_t *)(job->session->segment + job->session->layout.args_off +
			    job->result_rel + map_bytes);
}

/* Segments written so far by a task that is under way; of a copy, that is not known. */
static void slowest(struct task *tasks, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct task *t = &tasks[i];
		uint32_t n = 0;

		if (!t->job || !t->device)
			continue;
		if (t->kind == TASK_DECODE)
			n = atomic_load_explicit(&t->dev.segments_done, memory_order_relaxed);
		if (n < t->job->progress)
			t->job->progress = n;
	}
}

static void publish_slowest(struct task *tasks, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct job *job = tasks[i].job;

		if (!job || job->progress == UINT32_MAX)
			continue;
		if (job->op == SKVC_ABI_OP_LOAD && job->next == job->count &&
		    job->flags & SKVC_ABI_SQE_LAYER_PROGRESS)
			__atomic_store_n(progress_word(job), job->progress, __ATOMIC_RELEASE);
		job->progress = UINT32_MAX; /* for the next time */
	}
}

/* Segments that are written for every block of the job: what the slowest running task has done, once all
 * were started. */
void load_progress(struct lane *lane)
{
	uint32_t gpu_tasks = lane->gpu_task ? LANE_GPU_TASKS : 0;

	if (!lane->progress_jobs)
		return;
	slowest(lane->task, lane->tasks_count);
	slowest(lane->gpu_task, gpu_tasks);
	publish_slowest(lane->task, lane->tasks_count);
	publish_slowest(lane->gpu_task, gpu_tasks);
}
