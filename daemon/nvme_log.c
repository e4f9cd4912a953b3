/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_log.c - segments and the records in them.  Lane-only.  Opening the file is in nvme_file.c, the I/O in
 * uring.c; may not know what a record means.
 *
 * A block:
 *	NONE -> WRITING	appended: it has a place
 *	WRITING -> HELD	written		WRITING -> NONE	write failed, or forgotten meanwhile
 *	HELD -> NONE	forgotten, or its segment was reclaimed
 *
 * A segment with I/O in flight is never reclaimed.  So a place (segment, offset) is not given out twice
 * while an operation on it is under way, and names that operation's record for certain: this is how a
 * write finds, when it completes, that its block was forgotten and has been appended anew elsewhere.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/nvme_state.h"
#include "daemon/util/clock.h"

#define SEGMENT_BYTES_MIN (128u << 10) /* the first one also holds the header */
#define SEGMENT_BYTES_MAX (1u << 30)
#define NONE NVME_NONE

/* ---- places ---- */

uint64_t nvme_segment_off(const struct nvme_log *log, uint32_t segment)
{
	return (uint64_t)segment * log->options.segment_bytes +
	       (segment == 0 ? NVME_FILE_HEADER_BYTES : 0);
}

uint32_t nvme_segment_first(const struct nvme_log *log, uint32_t segment)
{
	return (segment == 0 ? NVME_FILE_HEADER_BYTES : 0) +
	       (log->options.keep ? log->file.align_bytes : 0);
}

void nvme_gauges(struct nvme_log *log)
{
	const uint64_t inflight = nvme_log_inflight(log);

	/* Of several logs: each its part. */
	stats_add(log->stats, STAT_NVME_LIVE_BYTES, log->live_bytes - log->told_live_bytes);
	stats_add(log->stats, STAT_NVME_INFLIGHT, inflight - log->told_inflight);
	log->told_live_bytes = log->live_bytes;
	log->told_inflight = inflight;
}

/* By age: mostly it is the youngest. */
void nvme_full_push(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];
	uint32_t after = log->full_tail;

	while (after != NONE && log->segment[after].sequence > s->sequence)
		after = log->segment[after].prev;
	s->prev = after;
	s->next = after == NONE ? log->full_head : log->segment[after].next;
	if (after == NONE)
		log->full_head = id;
	else
		log->segment[after].next = id;
	if (s->next == NONE)
		log->full_tail = id;
	else
		log->segment[s->next].prev = id;
	s->state = SEGMENT_FULL;
}

void nvme_full_remove(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];

	assert(s->state == SEGMENT_FULL);
	if (s->prev != NONE)
		log->segment[s->prev].next = s->next;
	else
		log->full_head = s->next;
	if (s->next != NONE)
		log->segment[s->next].prev = s->prev;
	else
		log->full_tail = s->prev;
}

void nvme_free_push(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];

	assert(s->ops == 0 && s->blocks == 0);
	s->state = SEGMENT_FREE;
	s->next = NONE;
	if (log->free == NONE)
		log->free = id;
	else
		log->segment[log->free_tail].next = id;
	log->free_tail = id;
	log->free_count++;
}

/* What was forgotten would be found again after a crash, were its lists not there. */
bool nvme_lists_needed(const struct nvme_log *log, const struct segment *s)
{
	return s->tombs && s->sequence >= log->blob[NVME_KIND_CHECKPOINT].tail;
}

/* A full segment in which nothing lives and nothing moves costs nothing to take back. */
void nvme_segment_settle(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];

	if (s->state != SEGMENT_FULL || s->ops || s->blocks || nvme_lists_needed(log, s))
		return;
	nvme_full_remove(log, id);
	nvme_free_push(log, id);
	stats_add(log->stats, STAT_NVME_RECLAIMED_SEGMENTS, 1);
}

void nvme_entry_link(struct nvme_log *log, uint32_t block, uint32_t segment, uint32_t off,
		     uint32_t bytes)
{
	struct entry *e = &log->entry[block];
	struct segment *s = &log->segment[segment];

	assert(e->place == PLACE_NONE);
	e->segment = segment;
	e->off_sectors = off / NVME_SECTOR_BYTES;
	e->sectors = bytes / NVME_SECTOR_BYTES;
	e->place = PLACE_WRITING;
	e->prev = NONE;
	e->next = s->blocks ? s->head : NONE;
	if (e->next != NONE)
		log->entry[e->next].prev = block;
	s->head = block;
	s->blocks++;
	s->live_bytes += bytes;
}

void nvme_entry_held(struct nvme_log *log, uint32_t block)
{
	struct entry *e = &log->entry[block];

	assert(e->place == PLACE_WRITING);
	e->place = PLACE_HELD;
	log->held_count++;
	log->live_bytes += (uint64_t)e->sectors * NVME_SECTOR_BYTES;
}

void nvme_entry_unlink(struct nvme_log *log, uint32_t block)
{
	struct entry *e = &log->entry[block];
	struct segment *s = &log->segment[e->segment];

	assert(e->place != PLACE_NONE && s->blocks > 0);
	if (e->prev != NONE)
		log->entry[e->prev].next = e->next;
	else
		s->head = e->next;
	if (e->next != NONE)
		log->entry[e->next].prev = e->prev;
	s->blocks--;
	s->live_bytes -= (uint64_t)e->sectors * NVME_SECTOR_BYTES;
	if (e->place == PLACE_HELD) {
		assert(log->held_count > 0);
		log->held_count--;
		log->live_bytes -= (uint64_t)e->sectors * NVME_SECTOR_BYTES;
	}
	e->place = PLACE_NONE;
}

/* ---- segments ---- */

double nvme_segment_harm(const struct nvme_log *log, uint32_t id)
{
	const struct segment *s = &log->segment[id];

	return (double)s->live_bytes / (double)(*log->sequence + 1 - s->sequence);
}

/*
 * The one that is lost with the least harm: few live bytes, and old, which nobody has asked for in a long time;
 * of equals the oldest.  NONE: all have I/O in flight, or lists that are needed and must not go.
 */
static uint32_t choose(const struct nvme_log *log, bool with_lists)
{
	uint32_t best = NONE;
	double best_harm = 0;

	for (uint32_t id = log->full_head; id != NONE; id = log->segment[id].next) {
		const struct segment *s = &log->segment[id];
		double harm = nvme_segment_harm(log, id);

		if (s->ops || (!with_lists && nvme_lists_needed(log, s)))
			continue;
		if (best == NONE || harm < best_harm) {
			best = id;
			best_harm = harm;
		}
	}
	return best;
}

void nvme_segment_give_up(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];
	uint8_t state = s->state;

	assert(s->ops == 0 && (state == SEGMENT_RECLAIMING || state == SEGMENT_CLEANING));
	stats_add(log->stats, STAT_NVME_EVICTED_BYTES, s->live_bytes);
	/* evict() may forget other blocks, of this segment too: take the head again each time. */
	while (s->blocks) {
		uint32_t block = s->head;

		nvme_entry_unlink(log, block);
		log->options.evict(log->options.user, block);
		assert(s->state == state);
	}
}

/* A full segment without I/O gives up what lives in it.  NONE: there is none. */
static uint32_t reclaim(struct nvme_log *log)
{
	uint32_t id = choose(log, false);
	struct segment *s;

	if (id == NONE) /* better what was forgotten comes back than that nothing can be written */
		id = choose(log, true);
	if (id == NONE)
		return NONE;
	s = &log->segment[id];
	stats_add(log->stats, STAT_NVME_NOTES_LOST, nvme_lists_needed(log, s));
	nvme_full_remove(log, id);
	s->state = SEGMENT_RECLAIMING;
	nvme_segment_give_up(log, id);
	stats_add(log->stats, STAT_NVME_RECLAIMED_SEGMENTS, 1);
	return id;
}

uint32_t nvme_segment_take(struct nvme_log *log, enum nvme_kind kind, uint64_t blob,
			   uint32_t ordinal)
{
	uint32_t id = log->free;
	struct segment *s;

	if (log->options.keep && !nvme_header_can(log)) /* before anything is given up for it */
		return NONE;
	if (id != NONE) {
		log->free = log->segment[id].next;
		log->free_count--;
	} else {
		id = reclaim(log);
	}
	if (id == NONE)
		return NONE;
	s = &log->segment[id];
	s->sequence = ++*log->sequence;
	s->kind = (uint8_t)kind;
	s->blob = kind == NVME_KIND_DATA ? 0 : blob ? blob : s->sequence;
	s->ordinal = ordinal;
	s->tombs = 0;
	s->header = HEADER_WRITTEN;
	if (log->options.keep && nvme_header_write(log, id) < 0) {
		nvme_free_push(log, id);
		return NONE;
	}
	s->state = kind == NVME_KIND_DATA ? SEGMENT_OPEN : SEGMENT_BLOB;
	return id;
}

void nvme_open_close(struct nvme_log *log)
{
	uint32_t id = log->open;

	if (id == NONE)
		return;
	log->open = NONE;
	nvme_full_push(log, id);
	nvme_segment_settle(log, id);
}

int nvme_make_room(struct nvme_log *log, uint32_t bytes)
{
	if (log->open != NONE && bytes <= log->options.segment_bytes - log->cursor)
		return 0;
	nvme_open_close(log);
	log->open = nvme_segment_take(log, NVME_KIND_DATA, 0, 0);
	if (log->open == NONE)
		return -EAGAIN;
	log->cursor = nvme_segment_first(log, log->open);
	return 0;
}

/* ---- reads and writes ---- */

int nvme_read(struct nvme_log *log, struct uring_op *op, unsigned buf_index, void *dst,
	      uint32_t bytes, uint64_t off)
{
	op->file = log->file_index;
	return uring_read(log->uring, op, buf_index, dst, bytes, off,
			  clock_add_ns(clock_now_ns(), log->options.deadline_ns));
}

int nvme_write(struct nvme_log *log, struct uring_op *op, unsigned buf_index, const void *src,
	       uint32_t bytes, uint64_t off)
{
	op->file = log->file_index;
	return uring_write(log->uring, op, buf_index, src, bytes, off,
			   clock_add_ns(clock_now_ns(), log->options.deadline_ns));
}

int nvme_sync(struct nvme_log *log, struct uring_op *op)
{
	op->file = log->file_index;
	return uring_sync(log->uring, op);
}

bool nvme_overdue(const struct nvme_log *log)
{
	return uring_file_overdue(log->uring, log->file_index) != 0;
}

/* For a record.  With few free segments left it waits for the cleaner, rather than that all of one is given up. */
static int record_room(struct nvme_log *log, uint32_t bytes)
{
	if (!nvme_log_fits(log, bytes) && !nvme_gc_spares(log))
		return -EAGAIN;
	return nvme_make_room(log, bytes);
}

int nvme_log_room(struct nvme_log *log, uint32_t bytes, uint64_t *ret_sequence)
{
	int r;

	if (!nvme_serves(log))
		return -EIO;
	if (bytes > nvme_log_record_bytes_max(log))
		return -EFBIG;
	r = record_room(log, bytes);
	if (r == 0)
		*ret_sequence = log->segment[log->open].sequence;
	return r;
}

uint64_t nvme_op_off(const struct nvme_log *log, const struct nvme_op *op)
{
	return (uint64_t)op->segment * log->options.segment_bytes +
	       (uint64_t)op->off_sectors * NVME_SECTOR_BYTES;
}

void nvme_op_begin(struct nvme_log *log, const struct nvme_read *what, bool is_write)
{
	const struct entry *e = &log->entry[what->block];
	struct nvme_op *op = what->op;

	op->log = log;
	op->block = what->block;
	op->segment = e->segment;
	op->sequence = log->segment[e->segment].sequence;
	op->off_sectors = e->off_sectors;
	op->is_write = is_write;
	op->buf_index = what->buf_index;
	op->buf = what->buf;
	op->bytes = e->sectors * NVME_SECTOR_BYTES;
}

void nvme_op_started(struct nvme_log *log, struct nvme_op *op)
{
	log->segment[op->segment].ops++;
	log->inflight++;
	nvme_gauges(log);
}

bool nvme_queue_has_room(const struct nvme_log *log)
{
	return log->inflight - log->passengers < log->options.queue_depth;
}

/* Does the log still mean this operation's record when it says `block`? */
static bool op_current(const struct nvme_log *log, const struct nvme_op *op)
{
	const struct entry *e = &log->entry[op->block];

	return e->place != PLACE_NONE && e->segment == op->segment &&
	       e->off_sectors == op->off_sectors;
}

void nvme_op_end(struct nvme_log *log, struct nvme_op *op, int r)
{
	struct segment *s = &log->segment[op->segment];

	assert(s->ops > 0 && log->inflight > 0);
	assert(s->state == SEGMENT_OPEN || s->state == SEGMENT_FULL ||
	       s->state == SEGMENT_CLEANING);
	s->ops--;
	log->inflight--;
	if (r < 0) {
		nvme_note_failure(log, r);
		if (op->is_write && op_current(log, op)) {
			/* It may be there all the same. */
			nvme_tomb_add(log, nvme_tomb_of(log, op->segment, op->off_sectors));
			nvme_entry_unlink(log, op->block);
		}
	} else {
		log->errors = 0;
		if (op->is_write && op_current(log, op))
			nvme_entry_held(log, op->block);
		else if (op->is_write)
			r = -ECANCELED;
	}
	nvme_segment_settle(log, op->segment);
	nvme_gauges(log);
	op->done(op, r);
}

static void op_done(struct uring_op *io, int32_t res)
{
	struct nvme_op *op = (struct nvme_op *)((char *)io - offsetof(struct nvme_op, io));
	struct nvme_log *log = op->log;
	struct segment *s = &log->segment[op->segment];

	if (op->is_write && res >= 0) {
		log->unsynced = true;
		if (s->header == HEADER_PENDING) { /* nobody would find the record yet */
			op->next = s->waiting;
			s->waiting = op;
			return;
		}
		if (s->header == HEADER_FAILED)
			res = -EIO;
	}
	nvme_op_end(log, op, res < 0 ? res : 0);
}

int nvme_log_append(struct nvme_log *log, struct nvme_op *op, uint32_t block, unsigned buf_index,
		    const void *buf, uint32_t bytes)
{
	int r;

	assert(block < log->options.blocks_max && op->done);
	assert(bytes > 0 && bytes % log->file.align_bytes == 0);
	assert((uintptr_t)buf % log->file.align_bytes == 0);
	if (!nvme_serves(log))
		return -EIO;
	if (bytes > nvme_log_record_bytes_max(log))
		return -EFBIG;
	if (log->entry[block].place != PLACE_NONE)
		return -EEXIST;
	if (!nvme_queue_has_room(log))
		return -EAGAIN;
	r = record_room(log, bytes);
	if (r < 0)
		return r;

	nvme_entry_link(log, block, log->open, log->cursor, bytes);
	nvme_op_begin(log, &(struct nvme_read){ .op = op, .block = block, .buf_index = buf_index },
		      true);
	op->io.done = op_done;
	r = nvme_write(log, &op->io, buf_index, buf, bytes, nvme_op_off(log, op));
	if (r < 0) {
		nvme_entry_unlink(log, block);
		return r;
	}
	log->cursor += bytes;
	stats_add(log->stats, STAT_NVME_WRITTEN_BYTES, bytes);
	nvme_gc_appended(log, bytes);
	nvme_op_started(log, op);
	return 0;
}

int nvme_log_read(struct nvme_log *log, struct nvme_op *op, uint32_t block, unsigned buf_index,
		  void *buf)
{
	int r;

	assert(block < log->options.blocks_max && op->done);
	assert((uintptr_t)buf % log->file.align_bytes == 0);
	if (!nvme_log_holds(log, block))
		return -ENOENT;
	if (!nvme_serves(log))
		return -EIO;
	if (!nvme_queue_has_room(log))
		return -EAGAIN;
	nvme_op_begin(
		log,
		&(struct nvme_read){ .op = op, .block = block, .buf_index = buf_index, .buf = buf },
		false);
	op->io.done = op_done;
	r = nvme_read(log, &op->io, buf_index, buf, op->bytes, nvme_op_off(log, op));
	if (r < 0)
		return r;
	stats_add(log->stats, STAT_NVME_READS, 1);
	nvme_op_started(log, op);
	return 0;
}

int nvme_log_fits(const struct nvme_log *log, uint32_t bytes)
{
	return log->open != NONE && bytes <= log->options.segment_bytes - log->cursor;
}

int nvme_log_has(const struct nvme_log *log, uint32_t block)
{
	assert(block < log->options.blocks_max);
	return log->entry[block].place != PLACE_NONE;
}

int nvme_log_holds(const struct nvme_log *log, uint32_t block)
{
	assert(block < log->options.blocks_max);
	return log->entry[block].place == PLACE_HELD;
}

uint32_t nvme_log_record_bytes(const struct nvme_log *log, uint32_t block)
{
	return nvme_log_holds(log, block) ? log->entry[block].sectors * NVME_SECTOR_BYTES : 0;
}

uint32_t nvme_log_after(const struct nvme_log *log, uint32_t block)
{
	assert(block < log->options.blocks_max);
	return log->entry[block].place == PLACE_NONE ? NONE : log->entry[block].prev;
}

uint64_t nvme_log_sequence(const struct nvme_log *log, uint32_t block)
{
	assert(log->entry[block].place != PLACE_NONE);
	return log->segment[log->entry[block].segment].sequence;
}

int nvme_log_place(const struct nvme_log *log, uint32_t block, struct nvme_place *ret)
{
	const struct entry *e = &log->entry[block];

	assert(block < log->options.blocks_max);
	if (e->place != PLACE_HELD)
		return -ENOENT;
	*ret = (struct nvme_place){ .sequence = log->segment[e->segment].sequence,
				    .segment = e->segment,
				    .off_sectors = e->off_sectors,
				    .sectors = e->sectors };
	return 0;
}

uint32_t nvme_log_record_bytes_max(const struct nvme_log *log)
{
	return (uint32_t)log->options.segment_bytes - nvme_segment_first(log, 0);
}

void nvme_log_forget(struct nvme_log *log, uint32_t block)
{
	uint32_t segment;

	assert(block < log->options.blocks_max);
	if (log->entry[block].place == PLACE_NONE)
		return;
	segment = log->entry[block].segment;
	nvme_gc_forgets(log, block);
	nvme_tomb_add(log, nvme_tomb_of(log, segment, log->entry[block].off_sectors));
	nvme_entry_unlink(log, block);
	nvme_segment_settle(log, segment);
	nvme_gauges(log);
}

/* ---- opening and closing ---- */

int nvme_log_check(const struct nvme_log_options *o)
{
	if (o->segment_bytes < SEGMENT_BYTES_MIN || o->segment_bytes > SEGMENT_BYTES_MAX ||
	    (o->segment_bytes & (o->segment_bytes - 1)))
		return -EINVAL;
	if (o->bytes % o->segment_bytes || o->bytes / o->segment_bytes < NVME_LOG_SEGMENTS_MIN ||
	    o->bytes / o->segment_bytes >= NONE)
		return -EINVAL;
	if (!o->path || !o->evict || !o->blocks_max || !o->queue_depth || !o->deadline_ns)
		return -EINVAL;
	return 0;
}

static int make_tables(struct nvme_log *log)
{
	void *p;
	int r;

	log->segments = (uint32_t)(log->options.bytes / log->options.segment_bytes);
	log->segment = calloc(log->segments, sizeof(*log->segment));
	log->probe_buf = aligned_alloc(log->file.align_bytes, log->file.align_bytes);
	if (!log->segment || !log->probe_buf)
		return -ENOMEM;
	log->entry_bytes = (size_t)log->options.blocks_max * sizeof(*log->entry);
	p = mmap(NULL, log->entry_bytes, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	log->entry = p;
	(void)madvise(p, log->entry_bytes, MADV_HUGEPAGE);
	log->free = log->free_tail = log->open = log->full_head = log->full_tail = NONE;
	for (unsigned i = 0; i < NVME_KIND_COUNT; i++)
		log->blob[i].head = NONE;
	for (uint32_t i = 0; i < log->segments; i++)
		nvme_free_push(log, i);
	/* An opening has 2^32 of them, and shares none with another one. */
	log->sequence = log->options.sequence ? log->options.sequence : &log->own_sequence;
	if (*log->sequence < log->file.epoch << 32)
		*log->sequence = log->file.epoch << 32;
	r = nvme_keep_start(log);
	if (r == 0)
		r = nvme_join_start(log);
	return r < 0 ? r : nvme_gc_start(log);
}

static void destroy(struct nvme_log *log)
{
	nvme_gc_stop(log);
	nvme_join_stop(log);
	nvme_blob_stop(log);
	nvme_keep_stop(log);
	nvme_file_close(&log->file);
	if (log->entry)
		(void)munmap(log->entry, log->entry_bytes);
	free(log->segment);
	free(log->probe_buf);
	free(log);
}

int nvme_log_open_file(const struct nvme_log_options *options, struct nvme_file *file,
		       struct uring *uring, struct stats *stats, struct nvme_log **ret_log,
		       char *err, unsigned err_bytes)
{
	struct nvme_log *log = calloc(1, sizeof(*log));
	int r = -ENOMEM;

	if (!log) {
		(void)snprintf(err, err_bytes, "NVMe log: out of memory");
		nvme_file_close(file);
		return r;
	}
	log->options = *options;
	log->options.path = NULL;
	log->uring = uring;
	log->stats = stats;
	log->file = *file;
	r = make_tables(log);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "NVMe log: out of memory");
		goto fail;
	}
	r = uring_register_file(uring, log->file.fd);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "NVMe log: %s (%s)", uring_hint(r), strerror(-r));
		goto fail;
	}
	log->file_index = (uint8_t)r;
	log->in_service = true;
	stats_add(stats, STAT_NVME_BYTES, options->bytes);
	stats_set(stats, STAT_NVME_HEALTH, 1);
	nvme_gauges(log);
	*ret_log = log;
	return 0;
fail:
	destroy(log);
	return r;
}

int nvme_log_open(const struct nvme_log_options *options, struct uring *uring, struct stats *stats,
		  struct nvme_log **ret_log, char *err, unsigned err_bytes)
{
	const struct nvme_file_options file_options = {
		.path = options->path,
		.bytes = options->bytes,
		.segment_bytes = options->segment_bytes,
		.allow_buffered = options->allow_buffered,
		.keep = options->keep,
	};
	struct nvme_file file;
	int r = nvme_log_check(options);

	if (r < 0) {
		(void)snprintf(err, err_bytes, "NVMe log: sizes do not fit together");
		return r;
	}
	r = nvme_file_open(&file_options, &file, err, err_bytes);
	if (r < 0)
		return r;
	return nvme_log_open_file(options, &file, uring, stats, ret_log, err, err_bytes);
}

struct nvme_log *nvme_log_close(struct nvme_log *log)
{
	if (!log)
		return NULL;
	assert(log->inflight == 0 && log->others == 0 && log->probe_state == PROBE_IDLE);
	log->live_bytes = 0;
	nvme_gauges(log);
	stats_sub(log->stats, STAT_NVME_BYTES, log->options.bytes);
	stats_set(log->stats, STAT_NVME_HEALTH, 0);
	destroy(log);
	return NULL;
}

uint32_t nvme_log_align_bytes(const struct nvme_log *log)
{
	return log->file.align_bytes;
}

uint64_t nvme_log_bytes(const struct nvme_log *log)
{
	return log->options.bytes;
}

uint64_t nvme_log_epoch(const struct nvme_log *log)
{
	return log->file.epoch;
}

uint64_t nvme_log_id(const struct nvme_log *log)
{
	return log->file.log_id;
}

void nvme_log_tick(struct nvme_log *log, uint64_t now_ns)
{
	nvme_health_tick(log, now_ns);
	nvme_gc_tick(log);
	if (log->options.keep) {
		nvme_keep_tick(log, now_ns);
		nvme_blob_tick(log);
	}
	nvme_gauges(log);
}

int nvme_log_direct(const struct nvme_log *log)
{
	return log->file.direct;
}

unsigned nvme_log_inflight(const struct nvme_log *log)
{
	return log->inflight + log->others + (log->probe_state != PROBE_IDLE);
}
