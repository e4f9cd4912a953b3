/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_log.c - segments, the records in them, and the health of the tier.  Lane-only.  Opening the file is
 * in nvme_file.c, the I/O in uring.c; may not know what a record means.
 *
 * A segment:
 *	FREE -> OPEN	the next record begins it
 *	OPEN -> FULL	a record did not fit any more
 *	FULL -> FREE	nothing in it lives and nothing is in flight, or it is the oldest and reclaimed
 *
 * A block:
 *	NONE -> WRITING	appended: it has a place
 *	WRITING -> HELD	written		WRITING -> NONE	write failed, or forgotten meanwhile
 *	HELD -> NONE	forgotten, or its segment was reclaimed
 *
 * A segment with I/O in flight is never reclaimed.  So a place (segment, offset) is not given out twice
 * while an operation on it is under way, and names that operation's record for certain: this is how a
 * write finds, when it completes, that its block was forgotten and has been appended anew elsewhere.
 *
 * Health: see nvme_log.h.  The probe writes a block of the header that nothing else uses, and reads it back.
 */
#include "daemon/nvme_log.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/nvme_file.h"
#include "daemon/util/clock.h"

#define SECTOR_BYTES 512u
#define SEGMENT_BYTES_MIN (128u << 10) /* the first one also holds the header */
#define SEGMENT_BYTES_MAX (1u << 30)
#define NONE UINT32_MAX

enum block_place { PLACE_NONE, PLACE_WRITING, PLACE_HELD };

/* Per block id; all zero: not in the log. */
struct entry {
	uint32_t prev, next; /* of the segment's list */
	uint32_t segment;
	uint32_t off_sectors;
	uint32_t sectors : 30;
	uint32_t place : 2; /* enum block_place */
};

_Static_assert(sizeof(struct entry) <= 24, "memory per block id");

enum segment_state { SEGMENT_FREE, SEGMENT_OPEN, SEGMENT_FULL, SEGMENT_RECLAIMING };

struct segment {
	uint32_t prev, next; /* FULL: by age.  FREE: next only */
	uint32_t head;	     /* its blocks, WRITING or HELD */
	uint32_t blocks;
	uint32_t ops; /* reads and writes in flight */
	enum segment_state state;
};

enum probe { PROBE_IDLE, PROBE_WRITING, PROBE_READING };

struct nvme_log {
	struct nvme_log_options options; /* path is not kept */
	struct nvme_file file;		 /* owned */
	struct uring *uring;		 /* borrowed until closed */
	struct stats *stats;		 /* borrowed until closed */
	struct entry *entry;		 /* owned; mapped, touched as used */
	size_t entry_bytes;
	struct segment *segment; /* owned */
	uint32_t segments;
	uint32_t free;		       /* list of free segments */
	uint32_t full_head, full_tail; /* oldest first */
	uint32_t open;		       /* or NONE */
	uint32_t cursor;	       /* in it */
	uint32_t inflight;	       /* without the probe */
	uint32_t held_count;
	uint64_t live_bytes; /* HELD */

	bool in_service;
	uint32_t errors; /* in a row */
	int error;	 /* the last one */
	uint64_t out_ns; /* since when, or of the last probe */
	struct uring_op probe;
	enum probe probe_state;
	uint64_t probe_number;
	uint8_t *probe_buf; /* owned; align_bytes */
};

/* ---- places ---- */

static uint32_t segment_first(uint32_t segment)
{
	return segment == 0 ? NVME_FILE_HEADER_BYTES : 0;
}

static void gauges(struct nvme_log *log)
{
	stats_set(log->stats, STAT_NVME_LIVE_BYTES, log->live_bytes);
	stats_set(log->stats, STAT_NVME_INFLIGHT, nvme_log_inflight(log));
}

static void full_push(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];

	s->prev = log->full_tail;
	s->next = NONE;
	if (log->full_tail != NONE)
		log->segment[log->full_tail].next = id;
	else
		log->full_head = id;
	log->full_tail = id;
	s->state = SEGMENT_FULL;
}

static void full_remove(struct nvme_log *log, uint32_t id)
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

static void free_push(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];

	assert(s->ops == 0 && s->blocks == 0);
	s->state = SEGMENT_FREE;
	s->next = log->free;
	log->free = id;
}

/* A full segment in which nothing lives and nothing moves costs nothing to take back. */
static void segment_settle(struct nvme_log *log, uint32_t id)
{
	struct segment *s = &log->segment[id];

	if (s->state != SEGMENT_FULL || s->ops || s->blocks)
		return;
	full_remove(log, id);
	free_push(log, id);
	stats_add(log->stats, STAT_NVME_RECLAIMED_SEGMENTS, 1);
}

static void entry_link(struct nvme_log *log, uint32_t block, uint32_t segment, uint32_t off,
		       uint32_t bytes)
{
	struct entry *e = &log->entry[block];
	struct segment *s = &log->segment[segment];

	assert(e->place == PLACE_NONE);
	e->segment = segment;
	e->off_sectors = off / SECTOR_BYTES;
	e->sectors = bytes / SECTOR_BYTES;
	e->place = PLACE_WRITING;
	e->prev = NONE;
	e->next = s->blocks ? s->head : NONE;
	if (e->next != NONE)
		log->entry[e->next].prev = block;
	s->head = block;
	s->blocks++;
}

static void entry_unlink(struct nvme_log *log, uint32_t block)
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
	if (e->place == PLACE_HELD) {
		assert(log->held_count > 0);
		log->held_count--;
		log->live_bytes -= (uint64_t)e->sectors * SECTOR_BYTES;
	}
	e->place = PLACE_NONE;
}

/* The oldest full segment without I/O gives up what lives in it.  NONE: all of them have some. */
static uint32_t reclaim(struct nvme_log *log)
{
	uint32_t id = log->full_head;
	struct segment *s;

	/* As many steps as operations are in flight, at most. */
	while (id != NONE && log->segment[id].ops)
		id = log->segment[id].next;
	if (id == NONE)
		return NONE;
	s = &log->segment[id];
	full_remove(log, id);
	s->state = SEGMENT_RECLAIMING;
	/* evict() may forget other blocks, of this segment too: take the head again each time. */
	while (s->blocks) {
		uint32_t block = s->head;

		entry_unlink(log, block);
		log->options.evict(log->options.user, block);
		assert(s->state == SEGMENT_RECLAIMING);
	}
	stats_add(log->stats, STAT_NVME_RECLAIMED_SEGMENTS, 1);
	return id;
}

/* Room for `bytes` at the cursor of the open segment: 0 or -EAGAIN. */
static int make_room(struct nvme_log *log, uint32_t bytes)
{
	uint32_t id;

	if (log->open != NONE) {
		if (bytes <= log->options.segment_bytes - log->cursor)
			return 0;
		id = log->open;
		log->open = NONE;
		full_push(log, id);
		segment_settle(log, id);
	}
	id = log->free;
	if (id != NONE)
		log->free = log->segment[id].next;
	else
		id = reclaim(log);
	if (id == NONE)
		return -EAGAIN;
	log->segment[id].state = SEGMENT_OPEN;
	log->open = id;
	log->cursor = segment_first(id);
	return 0;
}

/* ---- health ---- */

static void go_out(struct nvme_log *log)
{
	if (!log->in_service)
		return;
	log->in_service = false;
	log->out_ns = clock_now_ns();
	stats_set(log->stats, STAT_NVME_HEALTH, 2);
}

static void note_failure(struct nvme_log *log, int error)
{
	assert(error < 0);
	log->error = error;
	log->errors++;
	stats_add(log->stats, STAT_NVME_ERRORS, 1);
	if (error == -ETIMEDOUT || log->errors >= NVME_LOG_ERRORS_MAX)
		go_out(log);
}

/* A device that does not answer is out before its operations end: they may not for a long time. */
static bool serves(struct nvme_log *log)
{
	if (log->in_service && uring_overdue(log->uring)) {
		log->error = -ETIMEDOUT;
		go_out(log);
	}
	return log->in_service;
}

/* What the probe's block holds: a number that was not there before, all over it. */
static void probe_fill(struct nvme_log *log)
{
	uint64_t word = log->file.epoch ^ (++log->probe_number * 0x9e3779b97f4a7c15ull);

	for (uint32_t i = 0; i < log->file.align_bytes; i += sizeof(word))
		memcpy(log->probe_buf + i, &word, sizeof(word));
}

static bool probe_equal(const struct nvme_log *log)
{
	uint64_t word = log->file.epoch ^ (log->probe_number * 0x9e3779b97f4a7c15ull);

	for (uint32_t i = 0; i < log->file.align_bytes; i += sizeof(word))
		if (memcmp(log->probe_buf + i, &word, sizeof(word)) != 0)
			return false;
	return true;
}

static void probe_end(struct nvme_log *log, int r)
{
	log->probe_state = PROBE_IDLE;
	gauges(log);
	if (r < 0) {
		log->error = r;
		log->out_ns = clock_now_ns();
		stats_add(log->stats, STAT_NVME_ERRORS, 1);
		return;
	}
	log->in_service = true;
	log->errors = 0;
	stats_set(log->stats, STAT_NVME_HEALTH, 1);
}

static void probe_done(struct uring_op *op, int32_t res)
{
	struct nvme_log *log = (struct nvme_log *)((char *)op - offsetof(struct nvme_log, probe));
	uint64_t deadline_ns = clock_add_ns(clock_now_ns(), log->options.deadline_ns);
	int r = res < 0 ? res : 0;

	if (r == 0 && log->probe_state == PROBE_WRITING) {
		memset(log->probe_buf, 0, log->file.align_bytes);
		r = uring_read(log->uring, op, URING_BUF_NONE, log->probe_buf,
			       log->file.align_bytes, NVME_FILE_PROBE_OFF, deadline_ns);
		log->probe_state = PROBE_READING;
		if (r == 0)
			return;
	} else if (r == 0 && !probe_equal(log)) {
		r = -EIO;
	}
	probe_end(log, r);
}

void nvme_log_tick(struct nvme_log *log, uint64_t now_ns)
{
	int r;

	if (serves(log) || log->probe_state != PROBE_IDLE || uring_overdue(log->uring))
		return;
	if (now_ns < clock_add_ns(log->out_ns, log->options.retry_ns))
		return;
	probe_fill(log);
	log->probe.done = probe_done;
	r = uring_write(log->uring, &log->probe, URING_BUF_NONE, log->probe_buf,
			log->file.align_bytes, NVME_FILE_PROBE_OFF,
			clock_add_ns(now_ns, log->options.deadline_ns));
	if (r == 0)
		log->probe_state = PROBE_WRITING;
	gauges(log);
}

int nvme_log_in_service(const struct nvme_log *log)
{
	return log->in_service && !uring_overdue(log->uring);
}

int nvme_log_error(const struct nvme_log *log)
{
	return log->error;
}

/* ---- reads and writes ---- */

static uint64_t file_off(const struct nvme_log *log, const struct nvme_op *op)
{
	return (uint64_t)op->segment * log->options.segment_bytes +
	       (uint64_t)op->off_sectors * SECTOR_BYTES;
}

static void op_begin(struct nvme_log *log, struct nvme_op *op, uint32_t block, bool is_write)
{
	const struct entry *e = &log->entry[block];

	op->log = log;
	op->block = block;
	op->segment = e->segment;
	op->off_sectors = e->off_sectors;
	op->is_write = is_write;
}

static void op_started(struct nvme_log *log, struct nvme_op *op)
{
	log->segment[op->segment].ops++;
	log->inflight++;
	gauges(log);
}

/* Does the log still mean this operation's record when it says `block`? */
static bool op_current(const struct nvme_log *log, const struct nvme_op *op)
{
	const struct entry *e = &log->entry[op->block];

	return e->place != PLACE_NONE && e->segment == op->segment &&
	       e->off_sectors == op->off_sectors;
}

static void op_done(struct uring_op *io, int32_t res)
{
	struct nvme_op *op = (struct nvme_op *)((char *)io - offsetof(struct nvme_op, io));
	struct nvme_log *log = op->log;
	struct segment *s = &log->segment[op->segment];
	int r = res < 0 ? res : 0;

	assert(s->ops > 0 && log->inflight > 0);
	assert(s->state == SEGMENT_OPEN || s->state == SEGMENT_FULL);
	s->ops--;
	log->inflight--;
	if (r < 0) {
		note_failure(log, r);
		if (op->is_write && op_current(log, op))
			entry_unlink(log, op->block);
	} else {
		log->errors = 0;
		if (op->is_write && op_current(log, op)) {
			struct entry *e = &log->entry[op->block];

			assert(e->place == PLACE_WRITING);
			e->place = PLACE_HELD;
			log->held_count++;
			log->live_bytes += (uint64_t)e->sectors * SECTOR_BYTES;
		} else if (op->is_write) {
			r = -ECANCELED;
		}
	}
	segment_settle(log, op->segment);
	gauges(log);
	op->done(op, r);
}

int nvme_log_append(struct nvme_log *log, struct nvme_op *op, uint32_t block, unsigned buf_index,
		    const void *buf, uint32_t bytes)
{
	int r;

	assert(block < log->options.blocks_max && op->done);
	assert(bytes > 0 && bytes % log->file.align_bytes == 0);
	assert((uintptr_t)buf % log->file.align_bytes == 0);
	if (!serves(log))
		return -EIO;
	if (bytes > nvme_log_record_bytes_max(log))
		return -EFBIG;
	if (log->entry[block].place != PLACE_NONE)
		return -EEXIST;
	if (log->inflight >= log->options.queue_depth)
		return -EAGAIN;
	r = make_room(log, bytes);
	if (r < 0)
		return r;

	entry_link(log, block, log->open, log->cursor, bytes);
	op_begin(log, op, block, true);
	op->io.done = op_done;
	r = uring_write(log->uring, &op->io, buf_index, buf, bytes, file_off(log, op),
			clock_add_ns(clock_now_ns(), log->options.deadline_ns));
	if (r < 0) {
		entry_unlink(log, block);
		return r;
	}
	log->cursor += bytes;
	op_started(log, op);
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
	if (!serves(log))
		return -EIO;
	if (log->inflight >= log->options.queue_depth)
		return -EAGAIN;
	op_begin(log, op, block, false);
	op->io.done = op_done;
	r = uring_read(log->uring, &op->io, buf_index, buf, nvme_log_record_bytes(log, block),
		       file_off(log, op), clock_add_ns(clock_now_ns(), log->options.deadline_ns));
	if (r < 0)
		return r;
	op_started(log, op);
	return 0;
}

int nvme_log_holds(const struct nvme_log *log, uint32_t block)
{
	assert(block < log->options.blocks_max);
	return log->entry[block].place == PLACE_HELD;
}

uint32_t nvme_log_record_bytes(const struct nvme_log *log, uint32_t block)
{
	return nvme_log_holds(log, block) ? log->entry[block].sectors * SECTOR_BYTES : 0;
}

uint32_t nvme_log_record_bytes_max(const struct nvme_log *log)
{
	return (uint32_t)log->options.segment_bytes - NVME_FILE_HEADER_BYTES;
}

void nvme_log_forget(struct nvme_log *log, uint32_t block)
{
	uint32_t segment;

	assert(block < log->options.blocks_max);
	if (log->entry[block].place == PLACE_NONE)
		return;
	segment = log->entry[block].segment;
	entry_unlink(log, block);
	segment_settle(log, segment);
	gauges(log);
}

/* ---- opening and closing ---- */

static int check_options(const struct nvme_log_options *o)
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
	log->free = log->open = log->full_head = log->full_tail = NONE;
	for (uint32_t i = log->segments; i-- > 0;)
		free_push(log, i);
	return 0;
}

static void destroy(struct nvme_log *log)
{
	nvme_file_close(&log->file);
	if (log->entry)
		(void)munmap(log->entry, log->entry_bytes);
	free(log->segment);
	free(log->probe_buf);
	free(log);
}

int nvme_log_open(const struct nvme_log_options *options, struct uring *uring, struct stats *stats,
		  struct nvme_log **ret_log, char *err, unsigned err_bytes)
{
	const struct nvme_file_options file_options = {
		.path = options->path,
		.bytes = options->bytes,
		.segment_bytes = options->segment_bytes,
		.allow_buffered = options->allow_buffered,
	};
	struct nvme_log *log;
	int r;

	r = check_options(options);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "NVMe log: sizes do not fit together");
		return r;
	}
	log = calloc(1, sizeof(*log));
	if (!log) {
		(void)snprintf(err, err_bytes, "NVMe log: out of memory");
		return -ENOMEM;
	}
	log->options = *options;
	log->options.path = NULL;
	log->uring = uring;
	log->stats = stats;
	log->file.fd = -1;
	r = nvme_file_open(&file_options, &log->file, err, err_bytes);
	if (r < 0)
		goto fail;
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
	log->in_service = true;
	stats_set(stats, STAT_NVME_BYTES, options->bytes);
	stats_set(stats, STAT_NVME_HEALTH, 1);
	gauges(log);
	*ret_log = log;
	return 0;
fail:
	destroy(log);
	return r;
}

struct nvme_log *nvme_log_close(struct nvme_log *log)
{
	if (!log)
		return NULL;
	assert(log->inflight == 0 && log->probe_state == PROBE_IDLE);
	stats_set(log->stats, STAT_NVME_HEALTH, 0);
	destroy(log);
	return NULL;
}

uint32_t nvme_log_align_bytes(const struct nvme_log *log)
{
	return log->file.align_bytes;
}

uint64_t nvme_log_epoch(const struct nvme_log *log)
{
	return log->file.epoch;
}

int nvme_log_direct(const struct nvme_log *log)
{
	return log->file.direct;
}

unsigned nvme_log_inflight(const struct nvme_log *log)
{
	return log->inflight + (log->probe_state != PROBE_IDLE);
}
