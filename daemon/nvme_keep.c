/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_keep.c - what makes records last beyond the process: the header of each segment, lists of what was
 * forgotten, flushes.  Lane-only.
 *
 * A record is reported as written when the header of its segment is written too: without that nobody would look
 * for it.  What is forgotten is noted by place; the notes are written, a block of them at a time, into the open
 * segment like a record.  They are needed until a checkpoint covers them.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/nvme_state.h"
#include "daemon/util/clock.h"

#define SYNC_NS 1000000000ull
#define TOMBS_ROOM_MAX (1u << 20)

/* ---- segment headers ---- */

static void header_done(struct uring_op *op, int32_t res)
{
	struct header_io *io = (struct header_io *)op;
	struct nvme_log *log = io->log;
	struct segment *s = &log->segment[io->segment];
	struct nvme_op *next;

	io->busy = false;
	log->others--;
	s->ops--;
	s->header = res < 0 ? HEADER_FAILED : HEADER_WRITTEN;
	log->unsynced = true;
	if (res < 0) {
		nvme_note_failure(log, res);
		if (log->open == io->segment)
			nvme_open_close(log);
	}
	for (struct nvme_op *w = s->waiting; w; w = next) {
		next = w->next;
		/* Before the last one ends: that may settle the segment. */
		s->waiting = next;
		nvme_op_end(log, w, res < 0 ? -EIO : 0);
	}
	nvme_segment_settle(log, io->segment);
	nvme_gauges(log);
}

bool nvme_header_can(const struct nvme_log *log)
{
	for (unsigned i = 0; i < NVME_HEADER_IOS; i++)
		if (!log->header_io[i].busy)
			return true;
	return false;
}

int nvme_header_write(struct nvme_log *log, uint32_t segment)
{
	struct segment *s = &log->segment[segment];
	struct nvme_segment_header h = {
		.magic = NVME_SEGMENT_MAGIC,
		.version = NVME_FORMAT_VERSION,
		.kind = s->kind,
		.log_id = log->file.log_id,
		.sequence = s->sequence,
		.blob = s->blob,
		.ordinal = s->ordinal,
		.segment = segment,
	};
	struct header_io *io = log->header_io;
	int r;

	while (io < log->header_io + NVME_HEADER_IOS && io->busy)
		io++;
	if (io == log->header_io + NVME_HEADER_IOS)
		return -EAGAIN;
	h.xxh3 = nvme_format_xxh3(&h, sizeof(h));
	memset(io->buf, 0, log->file.align_bytes);
	memcpy(io->buf, &h, sizeof(h));
	io->segment = segment;
	io->op.done = header_done;
	r = nvme_write(log, &io->op, URING_BUF_NONE, io->buf, log->file.align_bytes,
		       nvme_segment_off(log, segment));
	if (r < 0)
		return r;
	io->busy = true;
	log->others++;
	s->ops++; /* its place is not given to anybody else meanwhile */
	s->header = HEADER_PENDING;
	stats_add(log->stats, STAT_NVME_WRITTEN_BYTES, log->file.align_bytes);
	return 0;
}

/* ---- what was forgotten ---- */

/* Of a place in a segment as it is used now. */
struct nvme_tomb nvme_tomb_of(const struct nvme_log *log, uint32_t segment, uint32_t off_sectors)
{
	return (struct nvme_tomb){ .sequence = log->segment[segment].sequence,
				   .segment = segment,
				   .off_sectors = off_sectors };
}

/* The record there may be found by whoever opens the file: note that it is not to be. */
void nvme_tomb_add(struct nvme_log *log, struct nvme_tomb tomb)
{
	if (!log->options.keep || log->closing)
		return;
	if (log->tombs_count == log->tombs_room) {
		uint32_t room = log->tombs_room ? 2 * log->tombs_room : 256;
		struct nvme_tomb *t = room > TOMBS_ROOM_MAX ? NULL
							    : realloc(log->tomb, room * sizeof(*t));

		if (!t) /* a cache: that it comes back is not nice, and no harm */
			return;
		log->tomb = t;
		log->tombs_room = room;
	}
	log->tomb[log->tombs_count++] = tomb;
}

static void tombs_done(struct uring_op *op, int32_t res)
{
	struct nvme_log *log = op->user;
	struct segment *s = &log->segment[log->tombs_segment];

	s->ops--;
	log->others--;
	log->unsynced = true;
	if (res < 0) {
		nvme_note_failure(log, res);
	} else {
		log->tombs_count -= log->tombs_writing;
		memmove(log->tomb, log->tomb + log->tombs_writing,
			log->tombs_count * sizeof(*log->tomb));
	}
	log->tombs_writing = 0;
	nvme_segment_settle(log, log->tombs_segment);
	nvme_gauges(log);
}

static void tombs_fill(struct nvme_log *log, uint32_t n)
{
	const uint32_t align = log->file.align_bytes;
	struct nvme_tombs h = {
		.magic = NVME_TOMBS_MAGIC,
		.count = n,
		.log_id = log->file.log_id,
		.sequence = log->segment[log->open].sequence,
	};

	memset(log->tombs_buf, 0, align);
	memcpy(log->tombs_buf, &h, sizeof(h));
	memcpy(log->tombs_buf + sizeof(h), log->tomb, n * sizeof(*log->tomb));
	h.xxh3 = nvme_format_tombs_xxh3(log->tombs_buf, align);
	memcpy(log->tombs_buf, &h, sizeof(h));
}

static void tombs_write(struct nvme_log *log)
{
	const uint32_t align = log->file.align_bytes;
	uint32_t n = (align - (uint32_t)sizeof(struct nvme_tombs)) / sizeof(struct nvme_tomb);
	struct segment *s;

	if (n > log->tombs_count)
		n = log->tombs_count;
	if (nvme_make_room(log, align) < 0)
		return;
	s = &log->segment[log->open];
	if (s->header != HEADER_WRITTEN) /* nobody would find them if it cannot be */
		return;
	tombs_fill(log, n);
	log->tombs_op.done = tombs_done;
	log->tombs_op.user = log;
	if (nvme_write(log, &log->tombs_op, URING_BUF_NONE, log->tombs_buf, align,
		       (uint64_t)log->open * log->options.segment_bytes + log->cursor) < 0)
		return;
	log->tombs_segment = log->open;
	log->tombs_writing = n;
	log->cursor += align;
	log->others++;
	s->tombs++;
	s->ops++;
	stats_add(log->stats, STAT_NVME_WRITTEN_BYTES, align);
}

/* ---- flushes ---- */

static void sync_done(struct uring_op *op, int32_t res)
{
	struct nvme_log *log = op->user;

	log->others--;
	log->syncing = false;
	if (res < 0) {
		log->unsynced = true;
		nvme_note_failure(log, res);
	}
}

static void sync_start(struct nvme_log *log, uint64_t now_ns)
{
	log->sync_op.done = sync_done;
	log->sync_op.user = log;
	if (nvme_sync(log, &log->sync_op) < 0)
		return;
	log->others++;
	log->syncing = true;
	log->unsynced = false;
	log->sync_ns = now_ns;
}

void nvme_keep_tick(struct nvme_log *log, uint64_t now_ns)
{
	if (!log->in_service || nvme_overdue(log))
		return;
	if (log->tombs_count && !log->tombs_writing)
		tombs_write(log);
	if (log->unsynced && !log->syncing && now_ns >= clock_add_ns(log->sync_ns, SYNC_NS))
		sync_start(log, now_ns);
}

void nvme_log_closing(struct nvme_log *log)
{
	log->closing = true;
}

uint32_t nvme_log_notes(const struct nvme_log *log)
{
	return log->tombs_count;
}

/* ---- start and stop ---- */

int nvme_keep_start(struct nvme_log *log)
{
	const uint32_t align = log->file.align_bytes;

	if (!log->options.keep)
		return 0;
	log->tombs_buf = aligned_alloc(align, align);
	if (!log->tombs_buf)
		return -ENOMEM;
	for (unsigned i = 0; i < NVME_HEADER_IOS; i++) {
		log->header_io[i].log = log;
		log->header_io[i].buf = aligned_alloc(align, align);
		if (!log->header_io[i].buf)
			return -ENOMEM;
	}
	return 0;
}

void nvme_keep_stop(struct nvme_log *log)
{
	for (unsigned i = 0; i < NVME_HEADER_IOS; i++)
		free(log->header_io[i].buf);
	free(log->tombs_buf);
	free(log->tomb);
}
