/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_fetch.c - records come back from NVMe into host slots: those that somebody waits for, and, when there are none,
 * what lies behind in their sequence.
 *
 * What is wanted at one time mostly was stored at one time, and lies close together in the log: so of the first of
 * the list, in whatever order, those that do are read together.
 *
 * Read ahead is what an engine asks for next that asks for a prefix piece by piece: when all that it named is here and
 * the last of it had to be read, or was read ahead, then its child is, and so on, so many bytes ahead and no more.
 * Nobody holds such a block, but until it is asked for, and for a moment at most, it is pinned: as the coldest of all
 * it would be the first to go, for what is read ahead next.  A part of the pool at most is given to that.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/lane_state.h"
#include "daemon/util/clock.h"

#define FETCH_WINDOW 64u	     /* of the list, looked at in one turn */
#define FETCH_JOIN_BYTES (4u << 20)  /* of one read */
#define FETCH_ALONE_BYTES (1u << 20) /* records of this size gain nothing by company */
#define AHEAD_LOOK 64u /* records behind it in the log, of which some may be others' */

#define AHEAD_PIN_NS 2000000000ull
#define AHEAD_POOL_PART 8u /* of the pool's bytes, one in so many is read ahead in that time */

/* A block of the list, or of what is to be read ahead. */
struct fetch {
	uint32_t id, rank; /* in the list */
	const struct nvme_log *log;
	struct nvme_place place;
};

/* ---- the end of a read ---- */

static void fetch_done(struct nvme_op *nop, int res)
{
	struct lane_nvme_op *op = (struct lane_nvme_op *)nop;
	struct lane *lane = op->lane;
	uint32_t id = nop->block;
	struct block *b = index_block(lane->index, id);

	lane->fetches_inflight--;
	plan_meter_end(&lane->plan.reads, &lane->plan.machine.nvme_read, clock_now_ns(),
		       res == 0 ? b->record_bytes : 0, lane->fetches_inflight);
	lane->words_behind = 1;
	if (b->state == BLOCK_FETCHING && res < 0) {
		tier_release_host(lane, b);
		index_set_state(lane->index, id, BLOCK_NVME);
		if (res != -ETIMEDOUT) /* of the device, that says nothing of the block */
			b->flags |= BLOCK_UNREAD;
		stats_reason(&lane->stats, res == -ETIMEDOUT ? SKVC_ABI_REASON_IO_TIMEOUT
							     : SKVC_ABI_REASON_IO_ERROR);
	} else if (b->state == BLOCK_FETCHING && !persist_record_ok(lane, id, nop)) {
		stats_reason(&lane->stats, SKVC_ABI_REASON_CORRUPT);
		tier_quarantine(lane, id);
	} else if (b->state == BLOCK_FETCHING) {
		index_set_state(lane->index, id, BLOCK_RESIDENT);
		tier_policy_place(lane, id);
		stats_add(&lane->stats, STAT_FETCH_BLOCKS, 1);
		stats_add(&lane->stats, STAT_FETCH_BYTES, b->record_bytes);
		stats_record_ns(&lane->stats, STATS_HIST_NVME_READ,
				lane->now_ns - nop->io.start_ns);
	}
	tier_op_put(lane, op);
	tier_unhold(lane, id);
}

/* ---- one read ---- */

static void begun(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	if (b->flags & BLOCK_LISTED)
		tier_unlist(lane, id);
	tier_hold(lane, id);
	index_set_state(lane->index, id, BLOCK_FETCHING);
	plan_meter_begin(&lane->plan.reads, lane->now_ns, lane->fetches_inflight++);
}

/* An operation and a slot for it: 0; -EAGAIN: no operation; -ENOSPC: no slot; -EFBIG. */
static int prepare(struct lane *lane, uint32_t id, struct nvme_read *ret)
{
	struct block *b = index_block(lane->index, id);
	struct lane_nvme_op *op = tier_op_get(lane);
	int r;

	if (!op)
		return -EAGAIN;
	op->op.done = fetch_done;
	r = tier_alloc(lane, b->record_bytes, id);
	if (r < 0) {
		tier_op_put(lane, op);
		return r == -EAGAIN ? -ENOSPC : r;
	}
	*ret = (struct nvme_read){ .op = &op->op,
				   .block = id,
				   .buf_index = tier_buffer_index(lane, b->slot),
				   .buf = pool_ptr(lane->pool, b->slot) };
	return 0;
}

static void take_back(struct lane *lane, const struct nvme_read *read)
{
	tier_release_host(lane, index_block(lane->index, read->block));
	tier_op_put(lane, (struct lane_nvme_op *)read->op);
}

static void begun_ahead(struct lane *lane, struct block *b)
{
	b->ahead = 1;
	if (!tier_pinned(lane, b))
		quota_pin(lane, b, lane->now_ns + AHEAD_PIN_NS, 1);
	lane->ahead.bytes += b->record_bytes;
	stats_add(&lane->stats, STAT_READ_AHEAD_BLOCKS, 1);
}

/* As many of these as there is room for, from the first on, with one read: how many; else -errno of the first. */
static int start(struct lane *lane, const struct fetch *f, unsigned count, int ahead)
{
	struct nvme_read reads[NVME_LOG_JOIN_MAX];
	unsigned n = 0;
	int r = 0;

	while (n < count && (r = prepare(lane, f[n].id, &reads[n])) == 0)
		n++;
	if (n == 0)
		return r;
	r = nvme_set_read_joined(lane->log, reads, n);
	for (unsigned i = 0; i < n; i++) {
		if (r < 0) {
			take_back(lane, &reads[i]);
			continue;
		}
		begun(lane, f[i].id);
		if (ahead)
			begun_ahead(lane, index_block(lane->index, f[i].id));
	}
	return r < 0 ? r : (int)n;
}

/* ---- what is wanted ---- */

void tier_want(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	if (b->state != BLOCK_NVME || b->flags & BLOCK_WANTED)
		return;
	b->flags |= BLOCK_WANTED;
	b->flags &= (uint8_t)~BLOCK_UNREAD;
	tier_waits_begin(lane, b);
	block_list_push(lane->index, &lane->fetch, id);
}

static void place_of(const struct lane *lane, struct fetch *f)
{
	f->log = nvme_set_log_of(lane->log, f->id);
	if (nvme_log_place(f->log, f->id, &f->place) < 0)
		memset(&f->place, 0, sizeof(f->place)); /* close to nothing: the read says why */
}

static unsigned fill_window(const struct lane *lane, struct fetch *w)
{
	uint32_t id = lane->fetch.head;
	unsigned n = 0;

	for (; id != BLOCK_NONE && n < FETCH_WINDOW; n++) {
		w[n] = (struct fetch){ .id = id, .rank = n };
		place_of(lane, &w[n]);
		id = block_list_next(lane->index, id);
	}
	return n;
}

static int by_place(const void *a, const void *b)
{
	const struct fetch *x = a, *y = b;

	if (x->log != y->log)
		return (uintptr_t)x->log < (uintptr_t)y->log ? -1 : 1;
	if (x->place.sequence != y->place.sequence)
		return x->place.sequence < y->place.sequence ? -1 : 1;
	if (x->place.off_sectors != y->place.off_sectors)
		return x->place.off_sectors < y->place.off_sectors ? -1 : 1;
	return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* How many, from the first on, are one read.  They are sorted. */
static unsigned run_length(const struct lane *lane, const struct fetch *f, unsigned count)
{
	uint64_t bytes = 0;
	unsigned n = 0;

	for (; n < count && n < NVME_LOG_JOIN_MAX; n++) {
		uint32_t its = index_block(lane->index, f[n].id)->record_bytes;

		if (n && (f[n].log != f[n - 1].log || its >= FETCH_ALONE_BYTES ||
			  bytes + its > FETCH_JOIN_BYTES || !f[n].place.sectors ||
			  !nvme_log_adjoins(&f[n - 1].place, &f[n].place)))
			break;
		bytes += its;
	}
	return n;
}

/* 1: one or more are under way, or the first has failed for good; 0: later. */
static int start_wanted(struct lane *lane, const struct fetch *f, unsigned count)
{
	uint64_t waits_ns = tier_waits_ns(lane, index_block(lane->index, f->id));
	int r = start(lane, f, count, 0);

	if (r == -EAGAIN || (r == -ENOSPC && waits_ns <= lane->config.store_wait_ns))
		return 0;
	if (r < 0) {
		tier_unlist(lane, f->id);
		lane->words_behind = 1;
	}
	return 1;
}

static int has_first(const struct fetch *f, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (f[i].rank == 0)
			return 1;
	return 0;
}

/* The read with the first of the list goes before the others: nothing waits for ever. */
static unsigned run_wanted(struct lane *lane)
{
	struct fetch w[FETCH_WINDOW];
	unsigned count = fill_window(lane, w), n = 0;

	qsort(w, count, sizeof(*w), by_place);
	for (int first = 1; first >= 0; first--)
		for (unsigned i = 0, run; i < count; i += run) {
			run = run_length(lane, w + i, count - i);
			if (has_first(w + i, run) != first)
				continue;
			if (!start_wanted(lane, w + i, run))
				return n;
			n += run;
		}
	return n;
}

/* ---- read ahead ---- */

void tier_ahead(struct lane *lane, uint32_t id)
{
	struct lane_ahead *a = &lane->ahead;
	uint64_t left = lane->config.nvme_read_ahead_bytes;
	uint32_t at = id;

	if (!lane->log || !left || lane->ns[index_block(lane->index, id)->ns]->plan_drops)
		return; /* or its engine computes sooner what comes next */
	for (unsigned n = 0; n < AHEAD_LOOK && a->count < LANE_AHEAD_MAX; n++) {
		const struct block *b;

		at = nvme_set_after(lane->log, at);
		if (at == NVME_LOG_NONE)
			return;
		b = index_block(lane->index, at);
		if (index_parent(lane->index, at) != id)
			continue;
		if (b->record_bytes > left)
			return;
		left -= b->record_bytes;
		id = at;
		if (b->state == BLOCK_NVME && !b->refs)
			a->entry[a->count++] = (struct sequence_step){ at, b->generation };
	}
}

void tier_asked(struct lane *lane, struct block *b)
{
	struct lane_ahead *a = &lane->ahead;

	if (b->ahead) { /* as much more may be read */
		stats_add(&lane->stats, STAT_READ_AHEAD_USED_BLOCKS, 1);
		a->bytes -= b->record_bytes < a->bytes ? b->record_bytes : a->bytes;
		b->ahead = 0;
	}
	if (b->ahead_pins)
		quota_pin(lane, b, 0, 0);
}

/* Has nobody wanted it, or something in its place, since? */
static int ahead_still(const struct lane *lane, const struct sequence_step *s)
{
	const struct block *b = index_block(lane->index, s->block);

	return b->generation == s->generation && b->state == BLOCK_NVME && !b->refs;
}

/* What is still to be read, in its order; the list has no others then. */
static unsigned fill_ahead(struct lane *lane, struct fetch *f)
{
	struct lane_ahead *a = &lane->ahead;
	unsigned count = 0;

	for (unsigned i = 0; i < a->count; i++) {
		if (!ahead_still(lane, &a->entry[i]))
			continue;
		f[count] = (struct fetch){ .id = a->entry[i].block, .rank = count };
		a->entry[count] = a->entry[i];
		place_of(lane, &f[count++]);
	}
	a->count = count;
	return count;
}

static int ahead_allowed(struct lane *lane)
{
	struct lane_ahead *a = &lane->ahead;

	if (lane->now_ns - a->since_ns >= AHEAD_PIN_NS) {
		a->since_ns = lane->now_ns;
		a->bytes = 0;
	}
	return !lane->stopping && a->bytes < lane->config.pool_bytes / AHEAD_POOL_PART;
}

/* One read at a time, and none beside what somebody waits for.  What finds no room is let go. */
static unsigned run_ahead(struct lane *lane)
{
	struct lane_ahead *a = &lane->ahead;
	struct fetch f[LANE_AHEAD_MAX];
	unsigned count;
	int r;

	if (!a->count || lane->fetch.count || lane->fetches_inflight)
		return 0;
	count = fill_ahead(lane, f);
	if (!count)
		return 0;
	r = ahead_allowed(lane) ? start(lane, f, run_length(lane, f, count), 1) : -EAGAIN;
	if (r < 0) {
		a->count = 0;
		return 0;
	}
	a->count -= (unsigned)r;
	memmove(a->entry, a->entry + r, a->count * sizeof(*a->entry));
	return 1;
}

unsigned tier_fetch_run(struct lane *lane)
{
	return run_wanted(lane) + run_ahead(lane);
}
