/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_recover.c - see nvme_recover.h.  In this order: all segments' headers; the newest complete meta blob and
 * checkpoint; the records of segments that are as new as the checkpoint's tail or newer, oldest first.  Then the
 * segments are put on the lists that they belong on.  A thread of its own reads the blobs ahead.
 */
#include "daemon/nvme_recover.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "daemon/nvme_state.h"

#define WINDOW_BYTES (4u << 20)
#define HEADER_READS 128u /* times the alignment at most: a window */
#define PIECES_AHEAD 8u
#define RAW_BYTES_MAX (1u << 20) /* of a piece; more is no piece of ours */

/* Pieces on their way from the thread that reads them to the one that takes them in. */
struct pieces {
	pthread_mutex_t lock;
	pthread_cond_t moved;
	struct {
		uint8_t *raw; /* owned, RAW_BYTES_MAX */
		uint32_t bytes;
	} slot[PIECES_AHEAD];
	uint32_t put, taken; /* so many were */
	bool ended;
};

struct reading {
	struct nvme_log *log;
	const struct nvme_recover_ops *ops;
	struct nvme_recovered *ret;
	uint8_t *buf; /* owned, aligned: a part of one segment */
	uint32_t buf_bytes;
	uint32_t segment, start, end; /* which; empty: start == end */
	uint32_t damaged; /* a segment that can't be read in large parts, or NVME_NONE */
	uint32_t *order;  /* owned: segments, by sequence or by ordinal */
	struct pieces pieces;
	/* for the thread that reads a blob */
	struct blob_list list;
	struct nvme_blob_end blob_end;
	enum nvme_kind kind;
};

/* ---- reading ---- */

static int grow(struct reading *rd, uint32_t bytes)
{
	uint8_t *p;

	if (bytes <= rd->buf_bytes)
		return 0;
	p = aligned_alloc(NVME_FILE_ALIGN_BYTES_MAX, bytes);
	if (!p)
		return -ENOMEM;
	free(rd->buf);
	rd->buf = p;
	rd->buf_bytes = bytes;
	rd->start = rd->end = 0;
	return 0;
}

/* So much of it as can be read, into rd->buf. */
static void read_part(struct reading *rd, uint32_t segment, uint32_t off, uint32_t n)
{
	const struct nvme_log *log = rd->log;
	uint32_t got = 0;

	while (got < n) {
		ssize_t r =
			pread(log->file.fd, rd->buf + got, n - got,
			      (off_t)((uint64_t)segment * log->options.segment_bytes + off + got));

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			break;
		got += (uint32_t)r & ~(log->file.align_bytes - 1);
		if ((uint32_t)r & (log->file.align_bytes - 1))
			break;
	}
	rd->segment = segment;
	rd->start = off;
	rd->end = off + got;
}

/*
 * `bytes` of this segment from `off`, both aligned; NULL: they cannot be read.  A sector that can't be read costs what
 * is asked for, not what would have been read ahead with it.
 */
static const uint8_t *get(struct reading *rd, uint32_t segment, uint32_t off, uint32_t bytes)
{
	uint32_t left = (uint32_t)rd->log->options.segment_bytes - off, n;
	const uint32_t align = NVME_FILE_ALIGN_BYTES_MAX;

	if (bytes > left)
		return NULL;
	if (segment == rd->segment && off >= rd->start && off + bytes <= rd->end)
		return rd->buf + (off - rd->start);
	n = bytes > WINDOW_BYTES ? bytes : WINDOW_BYTES < left ? WINDOW_BYTES : left;
	if (grow(rd, (n + align - 1) & ~(align - 1)) < 0)
		return NULL;
	if (segment != rd->damaged)
		read_part(rd, segment, off, n);
	if (segment == rd->damaged || (rd->end - off < bytes && n > bytes)) {
		rd->damaged = segment;
		read_part(rd, segment, off, bytes);
	}
	return rd->end - off >= bytes ? rd->buf : NULL;
}

/* ---- segment headers ---- */

static bool header_ok(const struct nvme_log *log, uint32_t id, const struct nvme_segment_header *h)
{
	return h->magic == NVME_SEGMENT_MAGIC && h->version == NVME_FORMAT_VERSION &&
	       h->xxh3 == nvme_format_xxh3(h, sizeof(*h)) && h->log_id == log->file.log_id &&
	       h->segment == id && h->kind >= NVME_KIND_DATA && h->kind < NVME_KIND_COUNT &&
	       h->sequence && h->sequence <= *log->sequence;
}

struct header_read {
	struct uring_op op; /* first */
	struct reading *rd;
	uint8_t *buf;
	uint32_t id;
	bool busy;
};

static void header_read_done(struct uring_op *op, int32_t res)
{
	struct header_read *hr = (struct header_read *)op;
	struct segment *s = &hr->rd->log->segment[hr->id];
	struct nvme_segment_header h = { 0 };

	hr->busy = false;
	if (res < 0)
		hr->rd->ret->segments_damaged++;
	else
		memcpy(&h, hr->buf, sizeof(h));
	if (!header_ok(hr->rd->log, hr->id, &h))
		return;
	s->sequence = h.sequence;
	s->kind = (uint8_t)h.kind;
	s->blob = h.blob;
	s->ordinal = h.ordinal;
}

/* Many at a time: there may be tens of thousands, and a disk takes its time for each.  Bytes lie in rd->buf. */
static int read_all_headers(struct reading *rd, struct uring *u, struct header_read *hr)
{
	struct nvme_log *log = rd->log;
	const uint32_t align = log->file.align_bytes;
	uint32_t next = 0;
	int r = 0;

	while (r == 0 && (next < log->segments || uring_inflight(u))) {
		for (unsigned i = 0; i < HEADER_READS && next < log->segments; i++) {
			if (hr[i].busy)
				continue;
			hr[i].id = next++;
			hr[i].buf = rd->buf + (size_t)i * align;
			hr[i].busy = true;
			r = uring_read(u, &hr[i].op, URING_BUF_NONE, hr[i].buf, align,
				       nvme_segment_off(log, hr[i].id), URING_NEVER);
			if (r < 0)
				return r; /* of a ring of this size it cannot be */
		}
		r = uring_sleep(u, UINT64_MAX);
		(void)uring_reap(u, HEADER_READS);
	}
	return r;
}

/* On a ring of its own: the lane's belongs to a thread that is not there yet. */
static int read_headers(struct reading *rd)
{
	struct header_read *hr = calloc(HEADER_READS, sizeof(*hr));
	struct uring *u = NULL;
	int r = hr ? uring_new(HEADER_READS, NULL, &u) : -ENOMEM;

	for (unsigned i = 0; r == 0 && i < HEADER_READS; i++) {
		hr[i].rd = rd;
		hr[i].op.done = header_read_done;
	}
	if (r == 0)
		r = uring_register_file(u, rd->log->file.fd);
	if (r >= 0)
		r = read_all_headers(rd, u, hr);
	u = uring_free(u);
	free(hr);
	return r;
}

/* ---- blobs ---- */

static bool read_end(struct reading *rd, const struct blob_list *l, uint32_t last,
		     struct nvme_blob_end *ret)
{
	const struct nvme_log *log = rd->log;
	const uint32_t align = log->file.align_bytes;
	const uint8_t *p = get(rd, last, (uint32_t)log->options.segment_bytes - align, align);

	if (!p)
		return false;
	memcpy(ret, p, sizeof(*ret));
	return ret->magic == NVME_BLOB_END_MAGIC && ret->log_id == log->file.log_id &&
	       ret->blob == l->id && ret->segments == l->segments &&
	       ret->xxh3 == nvme_format_xxh3(ret, sizeof(*ret));
}

/* The newest blob of this kind below *below: its segments in rd->order.  -ENOENT. */
static int find_blob(struct reading *rd, enum nvme_kind kind, uint64_t *below,
		     struct blob_list *ret)
{
	const struct nvme_log *log = rd->log;
	uint64_t id = 0;

	for (uint32_t i = 0; i < log->segments; i++)
		if (log->segment[i].kind == kind && log->segment[i].blob < *below &&
		    log->segment[i].blob > id)
			id = log->segment[i].blob;
	if (!id)
		return -ENOENT;
	*below = id;
	*ret = (struct blob_list){ .head = NVME_NONE, .id = id };
	for (uint32_t i = 0; i < log->segments; i++)
		rd->order[i] = NVME_NONE;
	for (uint32_t i = 0; i < log->segments; i++) {
		const struct segment *s = &log->segment[i];

		if (s->kind != kind || s->blob != id)
			continue;
		ret->segments++;
		if (s->ordinal < log->segments)
			rd->order[s->ordinal] = i;
	}
	return 0;
}

/* All of its segments are there, and its end. */
static bool is_complete(struct reading *rd, struct blob_list *l, struct nvme_blob_end *ret_end)
{
	for (uint32_t i = 0; i < l->segments; i++)
		if (rd->order[i] == NVME_NONE)
			return false;
	if (!read_end(rd, l, rd->order[l->segments - 1], ret_end))
		return false;
	l->tail = ret_end->tail;
	return true;
}

static uint8_t *free_slot(struct pieces *q)
{
	pthread_mutex_lock(&q->lock);
	while (q->put - q->taken == PIECES_AHEAD)
		pthread_cond_wait(&q->moved, &q->lock);
	pthread_mutex_unlock(&q->lock);
	return q->slot[q->put % PIECES_AHEAD].raw;
}

static void put_slot(struct pieces *q, uint32_t bytes)
{
	pthread_mutex_lock(&q->lock);
	q->slot[q->put++ % PIECES_AHEAD].bytes = bytes;
	pthread_cond_signal(&q->moved);
	pthread_mutex_unlock(&q->lock);
}

/* Bytes to the next piece; 0: there is none here. */
static uint32_t read_piece(struct reading *rd, uint32_t segment, uint32_t off, uint32_t *number)
{
	const struct blob_list *l = &rd->list;
	const uint32_t align = rd->log->file.align_bytes;
	const uint8_t *p = get(rd, segment, off, align);
	struct nvme_piece h;
	uint32_t bytes;
	size_t n;

	if (!p)
		return 0;
	memcpy(&h, p, sizeof(h));
	if (h.magic != NVME_PIECE_MAGIC || h.log_id != rd->log->file.log_id || h.blob != l->id ||
	    h.xxh3 != nvme_format_xxh3(&h, sizeof(h)) || h.raw_bytes > RAW_BYTES_MAX ||
	    h.stored_bytes > 2 * RAW_BYTES_MAX)
		return 0;
	bytes = ((uint32_t)sizeof(h) + h.stored_bytes + align - 1) & ~(align - 1);
	p = get(rd, segment, off, bytes);
	if (!p || XXH3_64bits(p + sizeof(h), h.stored_bytes) != h.stored_xxh3)
		return 0;
	n = ZSTD_decompress(free_slot(&rd->pieces), RAW_BYTES_MAX, p + sizeof(h), h.stored_bytes);
	if (ZSTD_isError(n) || n != h.raw_bytes || h.number < *number)
		return 0;
	rd->ret->pieces_damaged += h.number - *number;
	*number = h.number + 1;
	put_slot(&rd->pieces, (uint32_t)n);
	if (rd->kind == NVME_KIND_CHECKPOINT)
		rd->ret->checkpoint_bytes += bytes;
	return bytes;
}

/* The thread that reads: checksums and decompression take as long as what is done with the pieces. */
static void *read_pieces(void *arg)
{
	struct reading *rd = arg;
	const uint32_t align = rd->log->file.align_bytes, pieces = rd->blob_end.pieces;
	const uint32_t last = (uint32_t)rd->log->options.segment_bytes - align;
	uint32_t number = 0;

	for (uint32_t i = 0; i < rd->list.segments; i++) {
		uint32_t off = nvme_segment_first(rd->log, rd->order[i]);

		/* Behind a damaged one the next is looked for; behind the last nothing is. */
		while (off < last && number < pieces) {
			uint32_t bytes = read_piece(rd, rd->order[i], off, &number);

			rd->list.bytes += bytes;
			off += bytes ? bytes : align;
		}
	}
	rd->ret->pieces_damaged += pieces > number ? pieces - number : 0;
	pthread_mutex_lock(&rd->pieces.lock);
	rd->pieces.ended = true;
	pthread_cond_signal(&rd->pieces.moved);
	pthread_mutex_unlock(&rd->pieces.lock);
	return NULL;
}

/* 1: there is another one; 0: that was all. */
static int wait_piece(struct pieces *q)
{
	int more;

	pthread_mutex_lock(&q->lock);
	while (q->put == q->taken && !q->ended)
		pthread_cond_wait(&q->moved, &q->lock);
	more = q->put != q->taken;
	pthread_mutex_unlock(&q->lock);
	return more;
}

static int take_pieces(struct reading *rd)
{
	struct pieces *q = &rd->pieces;
	pthread_t thread;
	int r;

	q->put = q->taken = 0;
	q->ended = false;
	r = -pthread_create(&thread, NULL, read_pieces, rd);
	if (r < 0)
		return r;
	while (wait_piece(q)) {
		uint32_t i = q->taken % PIECES_AHEAD;

		rd->ops->piece(rd->ops->user, (enum nvme_blob)rd->kind, q->slot[i].raw,
			       q->slot[i].bytes);
		pthread_mutex_lock(&q->lock);
		q->taken++;
		pthread_cond_signal(&q->moved);
		pthread_mutex_unlock(&q->lock);
	}
	(void)pthread_join(thread, NULL);
	return 0;
}

static int read_blob(struct reading *rd, enum nvme_kind kind)
{
	struct nvme_log *log = rd->log;
	uint64_t below = UINT64_MAX;
	struct blob_list *l = &rd->list;
	int r;

	rd->kind = kind;
	while (find_blob(rd, kind, &below, l) == 0) {
		if (!is_complete(rd, l, &rd->blob_end))
			continue;
		r = take_pieces(rd);
		if (r < 0)
			return r;
		for (uint32_t i = l->segments; i-- > 0;) {
			log->segment[rd->order[i]].state = SEGMENT_BLOB;
			log->segment[rd->order[i]].next = l->head;
			l->head = rd->order[i];
		}
		log->blob[kind] = *l;
		if (kind == NVME_KIND_CHECKPOINT)
			rd->ret->has_checkpoint = 1;
		return 0;
	}
	return 0;
}

/* ---- records ---- */

static bool place_ok(const struct nvme_log *log, const struct nvme_place *p)
{
	const uint32_t unit = log->file.align_bytes / NVME_SECTOR_BYTES;
	uint64_t end = ((uint64_t)p->off_sectors + p->sectors) * NVME_SECTOR_BYTES;

	return p->segment < log->segments && p->sectors && p->sectors % unit == 0 &&
	       p->off_sectors % unit == 0 && end <= log->options.segment_bytes &&
	       (uint64_t)p->off_sectors * NVME_SECTOR_BYTES >= nvme_segment_first(log, p->segment);
}

int nvme_log_restore(struct nvme_log *log, uint32_t block, const struct nvme_place *place)
{
	const struct segment *s;

	assert(block < log->options.blocks_max);
	if (!place_ok(log, place))
		return -EBADMSG;
	s = &log->segment[place->segment];
	if (s->kind != NVME_KIND_DATA || s->sequence != place->sequence)
		return -ESTALE;
	if (log->entry[block].place != PLACE_NONE)
		return -EEXIST;
	nvme_entry_link(log, block, place->segment, place->off_sectors * NVME_SECTOR_BYTES,
			place->sectors * NVME_SECTOR_BYTES);
	nvme_entry_held(log, block);
	return 0;
}

void nvme_log_prefetch(const struct nvme_log *log, uint32_t segment, unsigned step)
{
	const struct segment *s = &log->segment[segment];

	if (segment >= log->segments)
		return;
	if (step == 0)
		__builtin_prefetch(s);
	else if (s->blocks)
		__builtin_prefetch(&log->entry[s->head], 1);
}

static void forget_at(struct reading *rd, const struct nvme_tomb *t)
{
	struct nvme_log *log = rd->log;
	const struct segment *s;
	uint32_t block;

	if (t->segment >= log->segments)
		return;
	s = &log->segment[t->segment];
	if (s->sequence != t->sequence || s->kind != NVME_KIND_DATA)
		return;
	block = s->blocks ? s->head : NVME_NONE;
	while (block != NVME_NONE && log->entry[block].off_sectors != t->off_sectors)
		block = log->entry[block].next;
	if (block == NVME_NONE)
		return;
	nvme_log_forget(log, block);
	rd->ret->forgotten++;
	rd->ops->forgotten(rd->ops->user, block);
}

static bool take_tombs(struct reading *rd, uint32_t segment, const uint8_t *p)
{
	const struct nvme_log *log = rd->log;
	const uint32_t align = log->file.align_bytes;
	struct nvme_tombs h;
	struct nvme_tomb t;

	memcpy(&h, p, sizeof(h));
	if (h.log_id != log->file.log_id || h.sequence != log->segment[segment].sequence ||
	    h.count > (align - sizeof(h)) / sizeof(t))
		return false;
	if (h.xxh3 != nvme_format_tombs_xxh3(p, align))
		return false;
	for (uint32_t i = 0; i < h.count; i++) {
		memcpy(&t, p + sizeof(h) + i * sizeof(t), sizeof(t));
		forget_at(rd, &t);
	}
	rd->log->segment[segment].tombs++;
	return true;
}

/* Bytes to what comes behind it; 0: it is no record of this use of the segment. */
static uint32_t take_record(struct reading *rd, uint32_t segment, uint32_t off,
			    const struct record_header *h)
{
	const struct nvme_log *log = rd->log;
	const uint32_t align = log->file.align_bytes;
	uint64_t bytes;
	const uint8_t *p;
	struct nvme_place place = { .segment = segment,
				    .sequence = log->segment[segment].sequence,
				    .off_sectors = off / NVME_SECTOR_BYTES };

	if (record_check_header(h) < 0 || h->log_id != log->file.log_id ||
	    h->sequence != place.sequence)
		return 0;
	bytes = (record_bytes(h) + align - 1) & ~(uint64_t)(align - 1);
	if (bytes > log->options.segment_bytes - off)
		return 0;
	rd->ret->records++;
	place.sectors = (uint32_t)(bytes / NVME_SECTOR_BYTES);
	p = get(rd, segment, off, (uint32_t)bytes);
	if (!p || record_check_whole(p, bytes) < 0 ||
	    rd->ops->record(rd->ops->user, (const struct record_header *)(const void *)p, &place) <
		    0)
		rd->ret->records_refused++;
	return (uint32_t)bytes;
}

static void read_records(struct reading *rd, uint32_t segment)
{
	const struct nvme_log *log = rd->log;
	const uint32_t align = log->file.align_bytes, end = (uint32_t)log->options.segment_bytes;
	uint32_t off = nvme_segment_first(log, segment);

	while (off < end) {
		const uint8_t *p = get(rd, segment, off, align);
		struct record_header h = { 0 };
		uint32_t bytes = 0;

		if (p)
			memcpy(&h, p, sizeof(h));
		if (h.magic == NVME_TOMBS_MAGIC)
			(void)take_tombs(rd, segment, p);
		else if (h.magic == RECORD_MAGIC)
			bytes = take_record(rd, segment, off, &h);
		off += bytes ? bytes : align;
	}
	rd->ret->tail_bytes += end;
}

/* ---- the end ---- */

static const struct segment *compare_table;

static int by_sequence(const void *a, const void *b)
{
	uint64_t x = compare_table[*(const uint32_t *)a].sequence;
	uint64_t y = compare_table[*(const uint32_t *)b].sequence;

	return x < y ? -1 : x > y;
}

/* Segments of data into rd->order, oldest first.  How many. */
static uint32_t sort_data(struct reading *rd)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < rd->log->segments; i++)
		if (rd->log->segment[i].kind == NVME_KIND_DATA)
			rd->order[n++] = i;
	compare_table = rd->log->segment;
	qsort(rd->order, n, sizeof(*rd->order), by_sequence);
	return n;
}

/* The oldest are used first: what was copied out of them must not outlive its copy (nvme_gc.c). */
static void put_free(struct reading *rd, uint32_t data_count)
{
	struct nvme_log *log = rd->log;

	for (uint32_t i = 0; i < data_count; i++)
		if (log->segment[rd->order[i]].state == SEGMENT_FREE)
			nvme_free_push(log, rd->order[i]);
	for (uint32_t i = 0; i < log->segments; i++)
		if (log->segment[i].state == SEGMENT_FREE && log->segment[i].kind != NVME_KIND_DATA)
			nvme_free_push(log, i);
}

static void put_on_lists(struct reading *rd, uint32_t data_count)
{
	struct nvme_log *log = rd->log;

	log->free = log->free_tail = log->full_head = log->full_tail = NVME_NONE;
	log->free_count = 0;
	for (uint32_t i = 0; i < data_count; i++) {
		struct segment *s = &log->segment[rd->order[i]];

		if (s->blocks || s->tombs)
			nvme_full_push(log, rd->order[i]);
	}
	put_free(rd, data_count);
	nvme_gauges(log);
}

static int start_reading(struct reading *rd)
{
	pthread_mutex_init(&rd->pieces.lock, NULL);
	pthread_cond_init(&rd->pieces.moved, NULL);
	for (unsigned i = 0; i < PIECES_AHEAD; i++) {
		rd->pieces.slot[i].raw = malloc(RAW_BYTES_MAX);
		if (!rd->pieces.slot[i].raw)
			return -ENOMEM;
	}
	rd->order = calloc(rd->log->segments, sizeof(*rd->order));
	return rd->order ? grow(rd, WINDOW_BYTES) : -ENOMEM;
}

static void end_reading(struct reading *rd)
{
	pthread_mutex_destroy(&rd->pieces.lock);
	pthread_cond_destroy(&rd->pieces.moved);
	for (unsigned i = 0; i < PIECES_AHEAD; i++)
		free(rd->pieces.slot[i].raw);
	free(rd->buf);
	free(rd->order);
}

int nvme_log_recover(struct nvme_log *log, const struct nvme_recover_ops *ops,
		     struct nvme_recovered *ret)
{
	struct reading rd = { .log = log, .ops = ops, .ret = ret, .damaged = NVME_NONE };
	uint32_t n;
	int r;

	*ret = (struct nvme_recovered){ 0 };
	if (!log->options.keep || log->file.fresh)
		return 0;
	log->closing = true; /* nothing of this is noted again */
	r = start_reading(&rd);
	if (r == 0)
		r = read_headers(&rd);
	if (r == 0)
		r = read_blob(&rd, NVME_KIND_META);
	if (r == 0)
		r = read_blob(&rd, NVME_KIND_CHECKPOINT);
	if (r == 0) {
		n = sort_data(&rd);
		for (uint32_t i = 0; i < n; i++)
			if (log->segment[rd.order[i]].sequence >=
			    log->blob[NVME_KIND_CHECKPOINT].tail)
				read_records(&rd, rd.order[i]);
		put_on_lists(&rd, n);
	}
	log->closing = false;
	end_reading(&rd);
	return r;
}
