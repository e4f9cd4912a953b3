/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_gc.c - segments are taken back before the last free one is needed: what is worth keeping of one is copied to
 * the head of the log, the rest is given up.  Lane-only.
 *
 *	IDLE -> COPY	few segments are free, and one was chosen: few live bytes that are worth keeping, and old
 *	COPY -> FLUSH	all copies have ended; what was not copied was given up
 *	FLUSH -> IDLE	the copies are on the media (with keep): the segment is free
 *
 * A block's old place is the good one until its copy, and the header of the segment that this lies in, are written;
 * the segment is not used again before a flush.  So a crash finds the one, or the other, or both: then the one
 * with the higher sequence counts, as with any block that is written twice.  A copy goes out with another sequence
 * in its header, and only when its checksums say that it is the record that was written.
 *
 * What copies may cost is bounded: so many percent of what was appended, saved up for a few segments at most.  What
 * that is not enough for is given up; of one segment that is what was written into it first: children, mostly.
 *
 * Free segments are used first come, first served: so an old place is overwritten before its copy's can be, and what
 * was forgotten where the copy lay is not found again where it came from.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/nvme_state.h"
#include "daemon/record.h"
#include "daemon/util/clock.h"

#define SEGMENTS_MIN 8u	  /* with fewer, what is kept free would be too much of the file */
#define FREE_SHARE 32u	  /* one of so many is kept free */
#define FREE_MIN 2u	  /* the log's head moves on while one is cleaned */
#define FREE_MAX 8u	  /* and no more than this */
#define CANDIDATES 4u	  /* segments whose blocks are looked at before one is chosen */
#define SAVED_SEGMENTS 4u /* what may be saved up for copies, in segments */

static uint32_t free_wanted(const struct nvme_log *log)
{
	uint32_t n = log->segments / FREE_SHARE;

	return n < FREE_MIN ? FREE_MIN : n > FREE_MAX ? FREE_MAX : n;
}

void nvme_gc_appended(struct nvme_log *log, uint32_t bytes)
{
	const uint64_t max = SAVED_SEGMENTS * log->options.segment_bytes;
	uint64_t n = (uint64_t)bytes * log->options.copy_percent / 100 + log->gc.allowance_bytes;

	log->gc.allowance_bytes = n < max ? n : max;
	stats_add(log->stats, STAT_NVME_STORED_BYTES, bytes);
}

/* ---- the segment ---- */

static uint64_t worth_bytes(const struct nvme_log *log, uint32_t segment)
{
	const struct segment *s = &log->segment[segment];
	uint32_t block = s->blocks ? s->head : NVME_NONE;
	uint64_t bytes = 0;

	for (; block != NVME_NONE; block = log->entry[block].next)
		if (log->options.keeps(log->options.user, block))
			bytes += (uint64_t)log->entry[block].sectors * NVME_SECTOR_BYTES;
	return bytes;
}

/* Least harm first; NVME_NONE behind the last. */
static void candidates(const struct nvme_log *log, uint32_t best[CANDIDATES])
{
	double harm[CANDIDATES];
	unsigned n = 0, at;

	for (uint32_t id = log->full_head; id != NVME_NONE; id = log->segment[id].next) {
		const struct segment *s = &log->segment[id];
		double h = nvme_segment_harm(log, id);

		if (s->ops || nvme_lists_needed(log, s) || (n == CANDIDATES && h >= harm[n - 1]))
			continue;
		n += n < CANDIDATES;
		for (at = n - 1; at > 0 && harm[at - 1] > h; at--) {
			harm[at] = harm[at - 1];
			best[at] = best[at - 1];
		}
		harm[at] = h;
		best[at] = id;
	}
	while (n < CANDIDATES)
		best[n++] = NVME_NONE;
}

/* What is won, of what is read and written for it, times how long it was left alone (LFS's cleaner, SOSP 1991). */
static double gain(const struct nvme_log *log, uint32_t id)
{
	double all = (double)log->options.segment_bytes, worth = (double)worth_bytes(log, id);

	return (all - worth) / (all + worth) *
	       (double)(*log->sequence + 1 - log->segment[id].sequence);
}

static uint32_t choose(const struct nvme_log *log)
{
	uint32_t best[CANDIDATES], chosen = NVME_NONE;
	double most = -1;

	candidates(log, best);
	for (unsigned i = 0; i < CANDIDATES && best[i] != NVME_NONE; i++) {
		double g = gain(log, best[i]);

		if (g > most) {
			most = g;
			chosen = best[i];
		}
	}
	return chosen;
}

/* What is to be copied, newest first, as far as the allowance goes: into gc.block. */
static void list_blocks(struct nvme_log *log)
{
	struct nvme_gc *gc = &log->gc;
	const struct segment *s = &log->segment[gc->segment];
	uint32_t block = s->blocks ? s->head : NVME_NONE;
	uint64_t left = gc->allowance_bytes;

	gc->count = gc->next = 0;
	for (; block != NVME_NONE && gc->count < gc->room; block = log->entry[block].next) {
		uint64_t bytes = (uint64_t)log->entry[block].sectors * NVME_SECTOR_BYTES;

		if (bytes > left || !log->options.keeps(log->options.user, block))
			continue;
		left -= bytes;
		gc->block[gc->count++] = block;
	}
}

static void begin(struct nvme_log *log)
{
	struct nvme_gc *gc = &log->gc;
	uint32_t id = choose(log);

	if (id == NVME_NONE)
		return;
	gc->segment = id;
	list_blocks(log);
	nvme_full_remove(log, id);
	log->segment[id].state = SEGMENT_CLEANING;
	gc->copied = false;
	gc->step = GC_COPY;
}

/* ---- copies ---- */

/* Is the block still where it is copied from? */
static bool is_there(const struct nvme_log *log, uint32_t block)
{
	const struct entry *e = &log->entry[block];

	return e->place == PLACE_HELD && e->segment == log->gc.segment;
}

static void copy_over(struct gc_copy *c)
{
	c->step = COPY_IDLE;
}

static bool grow(struct gc_copy *c, uint32_t bytes)
{
	uint8_t *p;

	if (bytes <= c->buf_bytes)
		return true;
	p = aligned_alloc(NVME_FILE_ALIGN_BYTES_MAX, (bytes + NVME_FILE_ALIGN_BYTES_MAX - 1) &
							     ~(NVME_FILE_ALIGN_BYTES_MAX - 1));
	if (!p)
		return false;
	free(c->buf);
	c->buf = p;
	c->buf_bytes = bytes;
	return true;
}

static void read_done(struct uring_op *op, int32_t res)
{
	struct gc_copy *c = (struct gc_copy *)op;
	struct nvme_log *log = c->log;
	struct record_header *h = (struct record_header *)(void *)c->buf;

	log->others--;
	log->segment[c->from].ops--;
	c->step = COPY_READY;
	if (res < 0) {
		nvme_note_failure(log, res);
		copy_over(c);
	} else if (record_check_whole(c->buf, c->bytes) < 0 || h->log_id != log->file.log_id ||
		   h->sequence != log->segment[c->from].sequence) {
		stats_add(log->stats, STAT_NVME_ERRORS, 1);
		copy_over(c);
	}
}

/* 0 or -EAGAIN. */
static int copy_read(struct nvme_log *log, struct gc_copy *c, uint32_t block)
{
	const struct entry *e = &log->entry[block];
	int r;

	c->block = block;
	c->from = e->segment;
	c->off_sectors = e->off_sectors;
	c->bytes = e->sectors * NVME_SECTOR_BYTES;
	c->tries = 0;
	c->op.done = read_done;
	if (!grow(c, c->bytes))
		return -EAGAIN;
	r = nvme_read(log, &c->op, URING_BUF_NONE, c->buf, c->bytes,
		      (uint64_t)c->from * log->options.segment_bytes +
			      (uint64_t)c->off_sectors * NVME_SECTOR_BYTES);
	if (r < 0)
		return r;
	log->segment[c->from].ops++;
	log->others++;
	c->step = COPY_READ;
	return 0;
}

static void write_done(struct uring_op *op, int32_t res)
{
	struct gc_copy *c = (struct gc_copy *)op;
	struct nvme_log *log = c->log;

	log->others--;
	log->unsynced = true;
	c->step = COPY_WRITTEN;
	c->failed = res < 0;
	if (res < 0)
		nvme_note_failure(log, res);
}

/* Without giving anything up for it. */
static bool has_room(const struct nvme_log *log, uint32_t bytes)
{
	return (log->open != NVME_NONE && bytes <= log->options.segment_bytes - log->cursor) ||
	       log->free != NVME_NONE;
}

/*
 * What failed may be there all the same, and would be found as the block's newest place, whatever becomes of its old
 * one.  So with its last copy the block is given up, as any that is not copied, and all of its places are noted.
 */
static void copy_give_up(struct nvme_log *log, struct gc_copy *c)
{
	const uint32_t block = c->block;

	if (c->tries && is_there(log, block)) {
		stats_add(log->stats, STAT_NVME_EVICTED_BYTES, c->bytes);
		nvme_log_forget(log, block);
		log->options.evict(log->options.user, block);
	}
	copy_over(c);
}

static void copy_write(struct nvme_log *log, struct gc_copy *c)
{
	struct record_header *h = (struct record_header *)(void *)c->buf;
	int r;

	if (!is_there(log, c->block) || !has_room(log, c->bytes)) {
		copy_give_up(log, c);
		return;
	}
	if (nvme_make_room(log, c->bytes) < 0)
		return;
	c->to = log->open;
	c->to_sectors = log->cursor / NVME_SECTOR_BYTES;
	h->sequence = log->segment[c->to].sequence;
	record_seal_header(h);
	c->op.done = write_done;
	r = nvme_write(log, &c->op, URING_BUF_NONE, c->buf, c->bytes,
		       (uint64_t)c->to * log->options.segment_bytes + log->cursor);
	if (r < 0)
		return;
	log->cursor += c->bytes;
	log->segment[c->to].ops++;
	log->others++;
	log->gc.allowance_bytes -= c->bytes < log->gc.allowance_bytes ? c->bytes
								      : log->gc.allowance_bytes;
	stats_add(log->stats, STAT_NVME_WRITTEN_BYTES, c->bytes);
	stats_add(log->stats, STAT_NVME_COPIED_BYTES, c->bytes);
	c->step = COPY_WRITE;
}

static void note_lost(struct nvme_log *log, const struct gc_copy *c)
{
	for (unsigned i = 0; i < c->tries; i++)
		nvme_tomb_add(log, c->lost[i]);
}

/* Not before the copy is on the media: if only the note were, the block would be found nowhere. */
static void note_moved(struct nvme_log *log)
{
	for (unsigned i = 0; i < NVME_GC_COPIES; i++) {
		struct gc_copy *c = &log->gc.copy[i];

		if (c->step != COPY_MOVED)
			continue;
		note_lost(log, c); /* these may outlive this one */
		copy_over(c);
	}
}

/* Its bytes are written: the block lies there from now on, if it is still the same one. */
static void copy_end(struct nvme_log *log, struct gc_copy *c)
{
	struct segment *to = &log->segment[c->to];
	uint32_t block = c->block;

	if (to->header == HEADER_PENDING)
		return;
	to->ops--;
	if (c->failed || to->header == HEADER_FAILED) {
		c->lost[c->tries++] = nvme_tomb_of(log, c->to, c->to_sectors);
		c->step = COPY_READY;
		if (c->tries == NVME_GC_TRIES)
			copy_give_up(log, c);
		nvme_segment_settle(log, c->to);
		return;
	}
	copy_over(c);
	if (is_there(log, block) && log->entry[block].off_sectors == c->off_sectors) {
		c->step = c->tries ? COPY_MOVED : COPY_IDLE;
		nvme_entry_unlink(log, block);
		nvme_entry_link(log, block, c->to, c->to_sectors * NVME_SECTOR_BYTES, c->bytes);
		nvme_entry_held(log, block);
		log->gc.copied = true;
		stats_add(log->stats, STAT_NVME_COPIED_BLOCKS, 1);
		if (log->options.moved)
			log->options.moved(log->options.user, block);
	}
	nvme_segment_settle(log, c->to);
}

/* Its copies may be found by whoever opens the file. */
void nvme_gc_forgets(struct nvme_log *log, uint32_t block)
{
	for (unsigned i = 0; i < NVME_GC_COPIES; i++) {
		struct gc_copy *c = &log->gc.copy[i];

		if (c->step == COPY_IDLE || c->block != block ||
		    (c->step != COPY_MOVED && !is_there(log, block)))
			continue;
		note_lost(log, c);
		if (c->step == COPY_WRITE || c->step == COPY_WRITTEN)
			nvme_tomb_add(log, nvme_tomb_of(log, c->to, c->to_sectors));
		if (c->step == COPY_MOVED)
			copy_over(c);
	}
}

/* How many are under way.  With all of them kept for a flush the rest is given up. */
static unsigned run_copies(struct nvme_log *log)
{
	struct nvme_gc *gc = &log->gc;
	unsigned busy = 0, moved = 0;

	for (unsigned i = 0; i < NVME_GC_COPIES; i++) {
		struct gc_copy *c = &gc->copy[i];

		if (c->step == COPY_WRITTEN)
			copy_end(log, c);
		if (c->step == COPY_READY)
			copy_write(log, c);
		while (c->step == COPY_IDLE && gc->next < gc->count) {
			uint32_t block = gc->block[gc->next];

			if (is_there(log, block) && copy_read(log, c, block) < 0)
				break;
			gc->next++;
		}
		moved += c->step == COPY_MOVED;
		busy += c->step != COPY_IDLE && c->step != COPY_MOVED;
	}
	if (moved == NVME_GC_COPIES)
		gc->next = gc->count;
	return busy;
}

/* ---- the end ---- */

static void flush_done(struct uring_op *op, int32_t res)
{
	struct nvme_log *log = op->user;

	log->others--;
	log->gc.flushing = false;
	if (res < 0)
		nvme_note_failure(log, res);
	else
		log->gc.copied = false;
}

static void end(struct nvme_log *log)
{
	struct nvme_gc *gc = &log->gc;

	if (gc->flushing)
		return;
	if (log->options.keep && gc->copied) {
		gc->sync_op.done = flush_done;
		gc->sync_op.user = log;
		if (nvme_sync(log, &gc->sync_op) == 0) {
			log->others++;
			gc->flushing = true;
		}
		return;
	}
	note_moved(log);
	nvme_free_push(log, gc->segment);
	gc->segment = NVME_NONE;
	gc->step = GC_IDLE;
	stats_add(log->stats, STAT_NVME_RECLAIMED_SEGMENTS, 1);
}

static void amplification(struct nvme_log *log)
{
	uint64_t written = stats_get(log->stats, STAT_NVME_WRITTEN_BYTES);
	uint64_t stored = stats_get(log->stats, STAT_NVME_STORED_BYTES);

	if (stored)
		stats_set(log->stats, STAT_NVME_WRITE_AMPLIFICATION, written * 100 / stored);
}

/* One is the cleaner's, while it copies; without any its flush is waited for. */
bool nvme_gc_spares(struct nvme_log *log)
{
	struct nvme_gc *gc = &log->gc;

	if (!gc->block || log->free_count > 1)
		return true;
	if (gc->step == GC_IDLE && !log->closing)
		begin(log);
	return gc->step == GC_IDLE || (gc->step == GC_FLUSH && log->free_count);
}

void nvme_gc_tick(struct nvme_log *log)
{
	struct nvme_gc *gc = &log->gc;

	if (!gc->block || !log->in_service || nvme_overdue(log))
		return;
	amplification(log);
	if (gc->step == GC_IDLE && log->free_count < free_wanted(log) && !log->closing)
		begin(log);
	if (gc->step == GC_COPY && !run_copies(log) && gc->next == gc->count &&
	    !log->segment[gc->segment].ops) {
		nvme_segment_give_up(log, gc->segment);
		gc->step = GC_FLUSH;
	}
	if (gc->step == GC_FLUSH)
		end(log);
}

/* ---- start and stop ---- */

int nvme_gc_start(struct nvme_log *log)
{
	struct nvme_gc *gc = &log->gc;

	gc->segment = NVME_NONE;
	for (unsigned i = 0; i < NVME_GC_COPIES; i++)
		gc->copy[i].log = log;
	if (!log->options.keeps || !log->options.copy_percent || log->segments < SEGMENTS_MIN)
		return 0;
	gc->room = (uint32_t)(log->options.segment_bytes / log->file.align_bytes);
	gc->block = calloc(gc->room, sizeof(*gc->block));
	return gc->block ? 0 : -ENOMEM;
}

void nvme_gc_stop(struct nvme_log *log)
{
	for (unsigned i = 0; i < NVME_GC_COPIES; i++)
		free(log->gc.copy[i].buf);
	free(log->gc.block);
}
