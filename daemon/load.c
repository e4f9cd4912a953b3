/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.c - a restore, from top to bottom: lease check -> wait until the record is in a host slot -> decode
 * into the engine's pages and compare the raw checksum, on the device -> complete.
 *
 * A block that cannot be restored exactly is reported as not done, and when its bytes were wrong it
 * leaves the index at once.  Nothing wrong is ever reported as done.
 */
#include <assert.h>
#include <errno.h>

#include "daemon/lane_state.h"
#include "daemon/record.h"

void load_begin(struct lane *lane, struct session *s, struct region *region,
		const struct skvc_abi_sqe *sqe, const uint32_t *pages, struct skvc_abi_cqe *cqe,
		int *ret_async)
{
	struct lease *l = lease_find(lane, s, sqe->lease);
	struct job *job;

	if (!l || l->ns != region->ns || sqe->first >= l->count ||
	    sqe->count > l->count - sqe->first) {
		cqe->res = l && l->ns == region->ns ? -EINVAL : -ESTALE;
		cqe->reason = l && l->ns == region->ns ? SKVC_ABI_REASON_BAD_COUNT
			      : l		       ? SKVC_ABI_REASON_BAD_REGION
						       : SKVC_ABI_REASON_LEASE_GONE;
		return;
	}
	if (sqe->skip_tokens >= l->ns->geom.block_tokens) {
		cqe->res = -EINVAL;
		cqe->reason = SKVC_ABI_REASON_BAD_COUNT;
		return;
	}
	job = job_new(lane, s, sqe, l->ns, region, 0);
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

static int start_decode(struct lane *lane, struct job *job, uint32_t i)
{
	const struct block *b = index_block(lane->index, job->items[i].block);
	const uint8_t *record = pool_ptr(lane->pool, b->slot);
	const struct record_header *h = (const struct record_header *)record;
	struct task *t = task_get(lane);
	int r;

	if (!t)
		return 0;
	t->kind = TASK_DECODE;
	t->job = job;
	t->item = i;
	t->dev = (struct device_task){
		.op = DEVICE_DECODE,
		.region = &job->region->dev,
		.block_index = job->items[i].page,
		.profile = b->profile ? job->ns->profile[b->profile - 1] : NULL,
		.in = record + record_payload_off(h->tokens_count),
		.in_bytes = h->payload_bytes,
		.expect_xxh3 = b->raw_xxh3,
		.skip_tokens = i == 0 ? job->skip_tokens : 0,
	};
	r = lane->device->ops->start(lane->device, &t->dev);
	if (r < 0) {
		task_put(lane, t);
		if (r == -EAGAIN)
			return 0;
		job->next++;
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		return 1;
	}
	stats_add(&lane->stats, STAT_DEVICE_INFLIGHT, 1);
	job->next++;
	job->inflight++;
	return 1;
}

/* 1: progress was made on the job's next item; 0: it has to wait (for NVMe, or for a free task). */
int load_start_item(struct lane *lane, struct job *job)
{
	uint32_t i = job->next;
	const struct block *b = index_block(lane->index, job->items[i].block);

	switch (b->state) {
	case BLOCK_RESIDENT:
		return start_decode(lane, job, i);
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
			return start_decode(lane, job, i);
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

void load_task_done(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	uint32_t id = job->items[t->item].block;

	stats_add(&lane->stats, STAT_DECODE_NS, t->dev.busy_ns);
	if (t->dev.res == 0) {
		const struct block *b = index_block(lane->index, id);

		job_item_done(lane, job, t->item, job->ns->geom.raw_bytes,
			      b->record_bytes - b->padding_bytes);
		stats_add(&lane->stats, STAT_LOAD_BLOCKS, 1);
		stats_add(&lane->stats, STAT_LOAD_RAW_BYTES, job->ns->geom.raw_bytes);
		atomic_fetch_add_explicit(&job->session->load_blocks, 1, memory_order_relaxed);
		item_over(lane, job, t->item);
	} else if (t->dev.res == -EBADMSG || t->dev.res == -ESTALE) {
		tier_quarantine(lane, id);
		fail_item(lane, job, t->item, -ENODATA,
			  t->dev.res == -ESTALE ? SKVC_ABI_REASON_PROFILE_GONE
						: SKVC_ABI_REASON_CORRUPT);
	} else {
		fail_item(lane, job, t->item, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
	}
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

/* Segments that are written for every block of the job: what the slowest running task has done, once all
 * were started. */
void load_progress(struct lane *lane)
{
	for (uint32_t i = 0; i < lane->tasks_count; i++) {
		struct job *job = lane->task[i].job;
		uint32_t least = UINT32_MAX;

		if (!job || lane->task[i].kind != TASK_DECODE || job->next < job->count ||
		    !(job->flags & SKVC_ABI_SQE_LAYER_PROGRESS))
			continue;
		for (uint32_t k = 0; k < lane->tasks_count; k++) {
			uint32_t n;

			if (lane->task[k].job != job)
				continue;
			n = atomic_load_explicit(&lane->task[k].dev.segments_done,
						 memory_order_relaxed);
			least = n < least ? n : least;
		}
		__atomic_store_n(progress_word(job), least, __ATOMIC_RELEASE);
	}
}
