/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_blob.c - writes a stream into segments of its own: compressed pieces, one a turn, a flush, the block that
 * says that it is complete, another flush; only then the blob before it is given up.  Lane-only.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "daemon/nvme_state.h"
#include "daemon/util/clock.h"

#define PIECE_BYTES_MAX (128u << 10)
#define SEGMENTS_MIN 8u	  /* with fewer, blobs would take too much of the file */
#define SEGMENTS_SHARE 4u /* at most every fourth segment is one blob's */
#define ZSTD_LEVEL 1

static uint32_t raw_max(const struct nvme_log *log)
{
	uint64_t n = log->options.segment_bytes / 8;

	return n < PIECE_BYTES_MAX ? (uint32_t)n : PIECE_BYTES_MAX;
}

static uint32_t aligned(const struct nvme_log *log, size_t bytes)
{
	return (uint32_t)((bytes + log->file.align_bytes - 1) &
			  ~(size_t)(log->file.align_bytes - 1));
}

static uint32_t out_max(const struct nvme_log *log)
{
	return aligned(log, sizeof(struct nvme_piece) + ZSTD_compressBound(raw_max(log)));
}

static int make_buffers(struct nvme_log *log)
{
	struct blob_writer *w = &log->writer;

	if (w->zstd)
		return 0;
	if (!w->raw)
		w->raw = malloc(raw_max(log));
	if (!w->out)
		w->out = aligned_alloc(log->file.align_bytes, out_max(log));
	if (w->raw && w->out)
		w->zstd = ZSTD_createCCtx();
	return w->zstd ? 0 : -ENOMEM;
}

void nvme_blob_list_free(struct nvme_log *log, struct blob_list *l)
{
	while (l->head != NVME_NONE) {
		uint32_t id = l->head;

		l->head = log->segment[id].next;
		nvme_free_push(log, id);
	}
	*l = (struct blob_list){ .head = NVME_NONE };
}

/* ---- the end ---- */

static bool headers_pending(const struct nvme_log *log, bool *ret_failed)
{
	const struct blob_list *l = &log->writer.list;
	bool pending = false;

	for (uint32_t id = l->head; id != NVME_NONE; id = log->segment[id].next) {
		pending |= log->segment[id].ops != 0;
		*ret_failed |= log->segment[id].header == HEADER_FAILED;
	}
	return pending;
}

static void finish(struct nvme_log *log, int res)
{
	struct blob_writer *w = &log->writer;
	struct blob_list *now = &log->blob[w->kind];

	w->step = BLOB_IDLE;
	w->error = 0;
	if (res < 0) {
		nvme_blob_list_free(log, &w->list);
	} else {
		uint64_t tail = now->tail;

		nvme_blob_list_free(log, now);
		*now = w->list;
		w->list.head = NVME_NONE;
		if (w->kind == NVME_KIND_CHECKPOINT && now->tail != tail) {
			uint32_t next;

			/* Lists that were waiting for this. */
			for (uint32_t id = log->full_head; id != NVME_NONE; id = next) {
				next = log->segment[id].next;
				nvme_segment_settle(log, id);
			}
			stats_add(log->stats, STAT_NVME_CHECKPOINTS, 1);
		}
	}
	w->source.done(w->source.user, res);
}

/* It cannot go on; over once nothing of it is in flight. */
static void fail(struct nvme_log *log, int error)
{
	if (!log->writer.error)
		log->writer.error = error;
}

/* ---- pieces ---- */

static void op_done(struct uring_op *op, int32_t res)
{
	struct nvme_log *log = op->user;
	struct blob_writer *w = &log->writer;

	log->others--;
	w->busy = false;
	if (res < 0) {
		nvme_note_failure(log, res);
		fail(log, res);
		return;
	}
	if (w->step == BLOB_FLUSH)
		w->step = BLOB_END;
	else if (w->step == BLOB_END)
		w->step = BLOB_FLUSH_END;
	else if (w->step == BLOB_FLUSH_END)
		finish(log, 0);
}

static void started(struct nvme_log *log, int r)
{
	if (r == -EAGAIN)
		return;
	if (r < 0) {
		fail(log, r);
		return;
	}
	log->others++;
	log->writer.busy = true;
}

static int write_at(struct nvme_log *log, uint32_t off, uint32_t bytes)
{
	struct blob_writer *w = &log->writer;
	int r;

	w->op.done = op_done;
	w->op.user = log;
	r = nvme_write(log, &w->op, URING_BUF_NONE, w->out, bytes,
		       (uint64_t)w->segment * log->options.segment_bytes + off);
	if (r == 0)
		stats_add(log->stats, STAT_NVME_WRITTEN_BYTES, bytes);
	return r;
}

static void flush(struct nvme_log *log)
{
	log->writer.op.done = op_done;
	log->writer.op.user = log;
	started(log, nvme_sync(log, &log->writer.op));
}

/* Another segment: 0, -EAGAIN, -EFBIG. */
static int grow(struct nvme_log *log)
{
	struct blob_writer *w = &log->writer;
	uint32_t id;

	if (w->list.segments >= log->segments / SEGMENTS_SHARE)
		return -EFBIG;
	id = nvme_segment_take(log, w->kind, w->list.id, w->list.segments);
	if (id == NVME_NONE)
		return -EAGAIN;
	if (!w->list.id)
		w->list.id = log->segment[id].sequence;
	log->segment[id].next = w->list.head;
	w->list.head = id;
	w->list.segments++;
	w->segment = id;
	w->cursor = nvme_segment_first(log, id);
	return 0;
}

/* w->raw holds `raw_bytes` of the stream: the piece of them into w->out.  Its bytes, or negative errno. */
static int64_t make_piece(struct nvme_log *log, uint32_t raw_bytes)
{
	struct blob_writer *w = &log->writer;
	struct nvme_piece h = {
		.magic = NVME_PIECE_MAGIC,
		.number = w->pieces,
		.log_id = log->file.log_id,
		.blob = w->list.id,
		.raw_bytes = raw_bytes,
	};
	size_t n = ZSTD_compressCCtx(w->zstd, w->out + sizeof(h), out_max(log) - sizeof(h), w->raw,
				     raw_bytes, ZSTD_LEVEL);
	uint32_t bytes;

	if (ZSTD_isError(n))
		return -ENOMEM;
	h.stored_bytes = (uint32_t)n;
	h.stored_xxh3 = XXH3_64bits(w->out + sizeof(h), n);
	h.xxh3 = nvme_format_xxh3(&h, sizeof(h));
	memcpy(w->out, &h, sizeof(h));
	bytes = aligned(log, sizeof(h) + n);
	memset(w->out + sizeof(h) + n, 0, bytes - sizeof(h) - n);
	return bytes;
}

/* The last block of each segment is kept free: in the last segment it is the end of the blob. */
static uint32_t pieces_end(const struct nvme_log *log)
{
	return (uint32_t)log->options.segment_bytes - log->file.align_bytes;
}

static void next_piece(struct nvme_log *log)
{
	struct blob_writer *w = &log->writer;
	uint32_t raw_bytes;
	int64_t bytes;
	int r;

	/* Room first: what the source gave cannot be given back. */
	if (w->segment == NVME_NONE || out_max(log) > pieces_end(log) - w->cursor) {
		r = grow(log);
		if (r < 0) {
			if (r != -EAGAIN)
				fail(log, r);
			return;
		}
	}
	raw_bytes = w->source.next(w->source.user, w->raw, raw_max(log));
	assert(raw_bytes <= raw_max(log));
	if (!raw_bytes) {
		w->step = BLOB_FLUSH;
		return;
	}
	bytes = make_piece(log, raw_bytes);
	/* The piece is made: with no room in the ring it is lost, and so the blob. */
	r = bytes < 0 ? (int)bytes : write_at(log, w->cursor, (uint32_t)bytes);
	started(log, r == -EAGAIN ? -EBUSY : r);
	if (r < 0)
		return;
	w->cursor += (uint32_t)bytes;
	w->list.bytes += (uint64_t)bytes;
	w->raw_bytes += raw_bytes;
	w->pieces++;
}

static void write_end(struct nvme_log *log)
{
	struct blob_writer *w = &log->writer;
	struct nvme_blob_end h = {
		.magic = NVME_BLOB_END_MAGIC,
		.segments = w->list.segments,
		.log_id = log->file.log_id,
		.blob = w->list.id,
		.tail = w->list.tail,
		.raw_bytes = w->raw_bytes,
		.pieces = w->pieces,
	};

	h.xxh3 = nvme_format_xxh3(&h, sizeof(h));
	memset(w->out, 0, log->file.align_bytes);
	memcpy(w->out, &h, sizeof(h));
	started(log, write_at(log, pieces_end(log), log->file.align_bytes));
}

void nvme_blob_tick(struct nvme_log *log)
{
	struct blob_writer *w = &log->writer;
	bool failed = false, pending;

	if (w->step == BLOB_IDLE || w->busy)
		return;
	if (!nvme_log_in_service(log))
		fail(log, -EIO);
	if (w->error || w->step == BLOB_FLUSH) {
		pending = headers_pending(log, &failed);
		if (failed)
			fail(log, -EIO);
		if (pending)
			return;
	}
	if (w->error)
		finish(log, w->error);
	else if (w->step == BLOB_PIECES)
		next_piece(log);
	else if (w->step == BLOB_END)
		write_end(log);
	else
		flush(log);
}

/* ---- for the owner of the log ---- */

/* All records of lower sequences are held by now, or never will be. */
static uint64_t tail_now(const struct nvme_log *log)
{
	uint64_t tail = log->open != NVME_NONE ? log->segment[log->open].sequence
					       : *log->sequence + 1;

	for (uint32_t id = log->full_head; id != NVME_NONE; id = log->segment[id].next)
		if (log->segment[id].ops && log->segment[id].sequence < tail)
			tail = log->segment[id].sequence;
	return tail;
}

int nvme_log_blob_start(struct nvme_log *log, enum nvme_blob kind,
			const struct nvme_blob_source *source)
{
	struct blob_writer *w = &log->writer;
	int r;

	if (!log->options.keep || log->segments < SEGMENTS_MIN)
		return -ENOTSUP;
	if (w->step != BLOB_IDLE)
		return -EBUSY;
	if (!nvme_serves(log))
		return -EIO;
	r = make_buffers(log);
	if (r < 0)
		return r;
	w->source = *source;
	w->kind = (enum nvme_kind)kind;
	w->list = (struct blob_list){ .head = NVME_NONE, .tail = tail_now(log) };
	w->segment = NVME_NONE;
	w->pieces = 0;
	w->raw_bytes = 0;
	w->error = 0;
	w->step = BLOB_PIECES;
	return 0;
}

int nvme_log_blob_busy(const struct nvme_log *log)
{
	return log->writer.step != BLOB_IDLE;
}

uint64_t nvme_log_blob_bytes(const struct nvme_log *log, enum nvme_blob kind)
{
	return log->blob[kind].bytes;
}

uint64_t nvme_log_tail_bytes(const struct nvme_log *log)
{
	const uint64_t tail = log->blob[NVME_KIND_CHECKPOINT].tail;
	uint64_t bytes = log->open == NVME_NONE ? 0 : log->cursor;

	for (uint32_t id = log->full_tail; id != NVME_NONE; id = log->segment[id].prev)
		if (log->segment[id].sequence >= tail)
			bytes += log->options.segment_bytes;
		else
			break;
	return bytes;
}

void nvme_blob_stop(struct nvme_log *log)
{
	struct blob_writer *w = &log->writer;

	ZSTD_freeCCtx(w->zstd);
	free(w->raw);
	free(w->out);
}
