/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_state.h - the NVMe log's own state, shared by its files and by nobody else:
 *
 *	nvme_log.c	segments, the records in them, reads and writes; open and close
 *	nvme_join.c	several records with one read
 *	nvme_health.c	what failed, out of service and back
 *	nvme_gc.c	segments taken back, what is worth it copied first
 *	nvme_keep.c	what makes records last: segment headers, lists of what was forgotten, flushes
 *	nvme_blob.c	writes a stream (checkpoint, meta) into segments of its own
 *	nvme_recover.c	reads all of that when the file is opened again
 *
 * Lane-only, but nvme_recover.c, which runs before the lane's thread does.
 */
#ifndef SKVCD_DAEMON_NVME_STATE_H
#define SKVCD_DAEMON_NVME_STATE_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/nvme_file.h"
#include "daemon/nvme_format.h"
#include "daemon/nvme_log.h"

#define NVME_SECTOR_BYTES 512u
#define NVME_NONE UINT32_MAX
#define NVME_HEADER_IOS 4u

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

/*
 *	FREE -> OPEN	the next record begins it
 *	OPEN -> FULL	a record did not fit any more, or its header could not be written
 *	FULL -> FREE	nothing in it lives, nothing is in flight, and no list in it is needed
 *	FULL -> RECLAIMING -> OPEN, BLOB	chosen, and what lived in it is given up
 *	FULL -> CLEANING -> FREE	what is worth it is copied first (nvme_gc.c)
 *	FREE -> BLOB	a blob goes on in it
 *	BLOB -> FREE	another blob has taken that one's place, or it was given up
 */
enum segment_state {
	SEGMENT_FREE,
	SEGMENT_OPEN,
	SEGMENT_FULL,
	SEGMENT_RECLAIMING,
	SEGMENT_CLEANING,
	SEGMENT_BLOB
};

enum segment_header { HEADER_WRITTEN, HEADER_PENDING, HEADER_FAILED };

struct segment {
	uint32_t prev, next; /* FULL: by age.  FREE, BLOB: next only */
	uint32_t head;	     /* its blocks, WRITING or HELD */
	uint32_t blocks;
	uint32_t ops;	     /* reads and writes in flight, and written ones in `waiting` */
	uint32_t tombs;	     /* lists of what was forgotten, in it */
	uint64_t live_bytes; /* of its blocks */
	uint64_t sequence;   /* of this use, or of the last; 0: it has never been used */
	uint64_t blob;
	uint32_t ordinal;
	uint8_t state, header;	 /* enum segment_state, enum segment_header */
	uint8_t kind;		 /* enum nvme_kind; 0: nothing was found in it */
	struct nvme_op *waiting; /* their records are written, the segment's header is not */
};

enum probe { PROBE_IDLE, PROBE_WRITING, PROBE_READING };

/* Writing a segment's header. */
struct header_io {
	struct uring_op op; /* first */
	struct nvme_log *log;
	uint32_t segment;
	bool busy;
	uint8_t *buf; /* owned; align_bytes */
};

/*
 *	IDLE -> PIECES		started
 *	PIECES -> FLUSH		the source has no more
 *	FLUSH -> END		all of it is on the media
 *	END -> FLUSH_END	its last block is written
 *	FLUSH_END -> IDLE	it is complete, and takes the place of the one before it
 *	any -> IDLE		failed, or given up
 */
enum blob_step { BLOB_IDLE, BLOB_PIECES, BLOB_FLUSH, BLOB_END, BLOB_FLUSH_END };

struct blob_list {
	uint32_t head; /* segments, through next; NVME_NONE */
	uint32_t segments;
	uint64_t id;   /* 0: none */
	uint64_t tail; /* see struct nvme_blob_end */
	uint64_t bytes;
};

struct blob_writer {
	struct nvme_blob_source source;
	struct uring_op op;
	enum blob_step step;
	bool busy; /* op is in flight */
	int error;
	enum nvme_kind kind;
	struct blob_list list; /* so far */
	uint32_t segment;      /* the last one, or NVME_NONE */
	uint32_t cursor;
	uint32_t pieces;
	uint64_t raw_bytes;
	uint8_t *raw, *out; /* owned; NULL until first used */
	void *zstd;	    /* owned ZSTD_CCtx */
};

#define NVME_GC_COPIES 8u
#define NVME_GC_TRIES 3u /* to write one copy */

/*
 *	IDLE -> READ		a block is worth it
 *	READ -> READY		its record is here, and whole
 *	READY -> WRITE		there is room for it
 *	WRITE -> WRITTEN	and the header of that segment may not be yet
 *	WRITTEN -> READY	it failed, and is tried again
 *	WRITTEN -> MOVED	it is there, after tries that failed
 *	any -> IDLE		done, or given up; MOVED: flushed
 */
enum copy_step { COPY_IDLE, COPY_READ, COPY_READY, COPY_WRITE, COPY_WRITTEN, COPY_MOVED };

struct gc_copy {
	struct uring_op op; /* first */
	struct nvme_log *log;
	enum copy_step step;
	bool failed;   /* WRITTEN */
	uint8_t tries; /* that failed; where those went, for they may be there all the same: */
	struct nvme_tomb lost[NVME_GC_TRIES];
	uint32_t block, bytes;
	uint32_t from, off_sectors; /* where it lies */
	uint32_t to,
		to_sectors; /* WRITE, WRITTEN: where its copy will; a count in that one's ops */
	uint8_t *buf;	    /* owned; grows with what comes */
	uint32_t buf_bytes;
};

enum gc_step { GC_IDLE, GC_COPY, GC_FLUSH };

struct nvme_gc {
	enum gc_step step;
	uint32_t segment; /* that is taken back, or NVME_NONE */
	uint32_t *block;  /* owned; [room]: what is to be copied; NULL: nothing ever is */
	uint32_t room, count, next;
	uint64_t allowance_bytes; /* so much may be copied now */
	bool copied, flushing;	  /* something was that no flush covers */
	struct uring_op sync_op;
	struct gc_copy copy[NVME_GC_COPIES];
};

struct nvme_log {
	struct nvme_log_options options; /* path is not kept */
	struct nvme_file file;		 /* owned */
	struct uring *uring;		 /* borrowed until closed */
	uint8_t file_index;		 /* of its file there */
	struct stats *stats;		 /* borrowed until closed */
	struct entry *entry;		 /* owned; mapped, touched as used */
	size_t entry_bytes;
	struct segment *segment; /* owned */
	uint32_t segments;
	uint32_t free, free_tail; /* list of free segments: the first is used next */
	uint32_t free_count;
	uint32_t full_head, full_tail; /* oldest first */
	uint32_t open;		       /* or NVME_NONE */
	uint32_t cursor;	       /* in it */
	uint32_t inflight;	       /* operations on blocks */
	uint32_t passengers;	       /* of these, in another one's I/O (nvme_join.c) */
	struct nvme_joins *joins;      /* owned */
	uint32_t others;	       /* headers, lists, pieces and flushes in flight */
	uint32_t held_count;
	uint64_t live_bytes; /* HELD */
	uint64_t *sequence;  /* borrowed or own: of the last use of a segment */
	uint64_t own_sequence;
	uint64_t told_live_bytes, told_inflight; /* what of the gauges is this log's */

	bool in_service;
	uint32_t errors; /* in a row */
	int error;	 /* the last one */
	uint64_t out_ns; /* since when, or of the last probe */
	struct uring_op probe;
	enum probe probe_state;
	uint64_t probe_number;
	uint8_t *probe_buf; /* owned; align_bytes */

	struct header_io header_io[NVME_HEADER_IOS];
	struct nvme_tomb *tomb; /* owned; [tombs_room]: not on the device yet */
	uint32_t tombs_count, tombs_room;
	uint32_t tombs_writing; /* the first ones are in flight */
	uint32_t tombs_segment; /* where to */
	uint8_t *tombs_buf;	/* owned; align_bytes */
	struct uring_op tombs_op, sync_op;
	bool syncing;
	bool unsynced;	  /* something was written since the last flush began */
	uint64_t sync_ns; /* when that was */
	struct nvme_gc gc;
	struct blob_writer writer;
	struct blob_list blob[NVME_KIND_COUNT];
	bool closing; /* what is forgotten now stays on the device */
};

/* nvme_log.c */
int nvme_read(struct nvme_log *log, struct uring_op *op, unsigned buf_index, void *dst,
	      uint32_t bytes, uint64_t off);
int nvme_write(struct nvme_log *log, struct uring_op *op, unsigned buf_index, const void *src,
	       uint32_t bytes, uint64_t off);
int nvme_sync(struct nvme_log *log, struct uring_op *op);
bool nvme_overdue(const struct nvme_log *log);
uint32_t nvme_segment_first(const struct nvme_log *log, uint32_t segment); /* behind its header */
uint64_t nvme_segment_off(const struct nvme_log *log, uint32_t segment);   /* in the file */
void nvme_gauges(struct nvme_log *log);
void nvme_full_push(struct nvme_log *log, uint32_t id);
void nvme_full_remove(struct nvme_log *log, uint32_t id);
void nvme_free_push(struct nvme_log *log, uint32_t id);
void nvme_segment_settle(struct nvme_log *log, uint32_t id);
void nvme_segment_give_up(struct nvme_log *log, uint32_t id);	   /* what lives in it */
double nvme_segment_harm(const struct nvme_log *log, uint32_t id); /* of giving it up */
bool nvme_lists_needed(const struct nvme_log *log, const struct segment *s);
/* A segment for this kind, its header on the way: NVME_NONE when none can be had now. */
uint32_t nvme_segment_take(struct nvme_log *log, enum nvme_kind kind, uint64_t blob,
			   uint32_t ordinal);
int nvme_make_room(struct nvme_log *log, uint32_t bytes); /* at the cursor: 0, -EAGAIN */
void nvme_open_close(struct nvme_log *log);		  /* the open segment, if any, is full */
void nvme_op_end(struct nvme_log *log, struct nvme_op *op, int r);
void nvme_entry_link(struct nvme_log *log, uint32_t block, uint32_t segment, uint32_t off,
		     uint32_t bytes);
void nvme_entry_held(struct nvme_log *log, uint32_t block);
void nvme_entry_unlink(struct nvme_log *log, uint32_t block);

void nvme_op_begin(struct nvme_log *log, const struct nvme_read *what, bool is_write);
void nvme_op_started(struct nvme_log *log, struct nvme_op *op);
uint64_t nvme_op_off(const struct nvme_log *log, const struct nvme_op *op); /* in the file */
bool nvme_queue_has_room(const struct nvme_log *log);

/* nvme_join.c */
int nvme_join_start(struct nvme_log *log);
void nvme_join_stop(struct nvme_log *log);

/* nvme_gc.c */
int nvme_gc_start(struct nvme_log *log);
void nvme_gc_stop(struct nvme_log *log);
void nvme_gc_tick(struct nvme_log *log);
bool nvme_gc_spares(struct nvme_log *log); /* a segment, for a record? */
void nvme_gc_appended(struct nvme_log *log, uint32_t bytes);
void nvme_gc_forgets(struct nvme_log *log, uint32_t block); /* is about to be forgotten */

/* nvme_health.c */
void nvme_note_failure(struct nvme_log *log, int error);
bool nvme_serves(struct nvme_log *log);
void nvme_health_tick(struct nvme_log *log, uint64_t now_ns);

/* nvme_keep.c */
int nvme_keep_start(struct nvme_log *log);
void nvme_keep_stop(struct nvme_log *log);
bool nvme_header_can(const struct nvme_log *log);	       /* one more at this time? */
int nvme_header_write(struct nvme_log *log, uint32_t segment); /* 0, -EAGAIN */
void nvme_tomb_add(struct nvme_log *log, struct nvme_tomb tomb);
struct nvme_tomb nvme_tomb_of(const struct nvme_log *log, uint32_t segment, uint32_t off_sectors);
void nvme_keep_tick(struct nvme_log *log, uint64_t now_ns);

/* nvme_blob.c */
void nvme_blob_tick(struct nvme_log *log);
void nvme_blob_stop(struct nvme_log *log);
void nvme_blob_list_free(struct nvme_log *log, struct blob_list *l);

#endif
