/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_log.h - the NVMe tier: records appended to segments of one preallocated file (O_DIRECT).  Knows
 * block ids and byte ranges, not what a record means (record.h does), nor when to spill or what to evict.
 * When few segments are free, one with little that lives in it, and old, is taken back: of its live records those
 * that are worth it are copied to the head (nvme_gc.c), the others are given up through `evict`.  Bounded size
 * always, and so are the copies.  Lane-only.
 *
 * With `keep`, what a file holds is found again when it is opened: nvme_recover.h.  What that promises:
 *	- the process was killed: each record whose done() said 0
 *	- power was lost: of these, all that were written before the last flush, which comes once a second while
 *	  there are writes, and around each blob; of later ones those that happen to be whole
 *	- what was forgotten stays so from the next turns of the loop on (a list of it is written), by the same rules
 * Without `keep` the file gets another identity, and what it held is forgotten.
 *
 * Counted here: NVME_ERRORS, NVME_RECLAIMED_SEGMENTS, NVME_WRITTEN_BYTES, NVME_EVICTED_BYTES, NVME_COPIED_*,
 * NVME_WRITE_AMPLIFICATION, NVME_BYTES, _LIVE_BYTES, _HEALTH and _INFLIGHT; what was spilled and fetched is counted
 * by whoever decides that.
 */
#ifndef SKVCD_DAEMON_NVME_LOG_H
#define SKVCD_DAEMON_NVME_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/stats.h"
#include "daemon/uring.h"

#define NVME_LOG_SEGMENTS_MIN 2u
#define NVME_LOG_JOIN_MAX 32u	  /* records that one read may serve */
#define NVME_LOG_GAP_BYTES 65536u /* between two of them, at most */
#define NVME_LOG_ERRORS_MAX 3u	  /* failures in a row that take the tier out of service */

struct nvme_file;
struct nvme_log;

struct nvme_log_options {
	const char *path;	/* a file, made when it is not there; or a block device */
	uint64_t bytes;		/* multiple of segment_bytes, at least two of them */
	uint64_t segment_bytes; /* power of two, 128 KiB..1 GiB */
	uint32_t queue_depth;	/* reads and writes in flight; the ring needs one more entry */
	uint64_t deadline_ns;	/* per I/O, from when it is queued */
	uint64_t retry_ns;
	uint32_t blocks_max; /* block ids are < this */
	int allow_buffered;  /* tests: go on without O_DIRECT where the filesystem has none */
	int keep;	     /* see above */
	uint64_t *sequence;  /* shared by the logs of a set; NULL: its own */
	/* Of the records appended, so many percent of the bytes may be copied; 0: nothing is. */
	uint32_t copy_percent;
	/* Is its record worth a copy?  NULL: none is.  From append and tick, as evict and moved. */
	int (*keeps)(void *user, uint32_t block);
	void (*moved)(void *user, uint32_t block); /* it was copied: its place is another one */
	/* The log no longer holds this block.  Must not call the log for it, nor append; may forget others. */
	void (*evict)(void *user, uint32_t block);
	void *user;
};

/* One read or write of one block.  Owned by the caller until done(). */
struct nvme_op {
	struct uring_op io;
	void (*done)(struct nvme_op *op, int res); /* 0 or negative errno */
	struct nvme_log *log;
	uint32_t block;
	uint32_t segment;
	uint32_t off_sectors;
	uint64_t sequence; /* of that segment: the block may have moved since */
	uint8_t is_write;
	unsigned buf_index;
	void *buf; /* borrowed until done() */
	uint32_t bytes;
	struct nvme_op *next; /* the log's own */
	void *user;
};

/* 0; -EINVAL: they do not fit together. */
int nvme_log_check(const struct nvme_log_options *options);
/* Opens or creates, fallocates, takes an exclusive lock (-EBUSY: another daemon's), finds the alignment,
 * registers the file with the ring.  -errno with one line in err.  A file that holds something else is
 * left alone: -EEXIST. */
int nvme_log_open(const struct nvme_log_options *options, struct uring *uring, struct stats *stats,
		  struct nvme_log **ret_log, char *err, unsigned err_bytes);
/* The same, with a file that was found and claimed: taken over, also on failure.  path is not looked at. */
int nvme_log_open_file(const struct nvme_log_options *options, struct nvme_file *file,
		       struct uring *uring, struct stats *stats, struct nvme_log **ret_log,
		       char *err, unsigned err_bytes);
struct nvme_log *nvme_log_close(struct nvme_log *log);	   /* nothing may be in flight */
uint32_t nvme_log_align_bytes(const struct nvme_log *log); /* of memory, offset and length */
uint64_t nvme_log_bytes(const struct nvme_log *log);	   /* of the file */
uint64_t nvme_log_epoch(const struct nvme_log *log);	   /* of this opening; never 0 */
uint64_t nvme_log_id(const struct nvme_log *log); /* of the file; for the records; never 0 */
int nvme_log_direct(const struct nvme_log *log);  /* 0: through the page cache (allow_buffered) */
uint32_t nvme_log_record_bytes_max(const struct nvme_log *log); /* longer ones are -EFBIG */

/*
 * Where will a record of so many bytes go?  The sequence of that segment, which belongs into it, and holds for the
 * next append if that is not longer.  0, -EAGAIN, -EIO, -EFBIG as below.
 */
int nvme_log_room(struct nvme_log *log, uint32_t bytes, uint64_t *ret_sequence);
uint64_t nvme_log_sequence(const struct nvme_log *log, uint32_t block); /* of one it has */
/*
 * Queue a write of block's record: buf and bytes aligned.  0 (done() will come), -EAGAIN (queue full or
 * no segment can be had now), -EIO (tier out of service), -EFBIG, -EEXIST (has a copy, or is getting one).
 * done() with an error: the log does not hold it; -ECANCELED: forgotten while it was being written.
 */
int nvme_log_append(struct nvme_log *log, struct nvme_op *op, uint32_t block, unsigned buf_index,
		    const void *buf, uint32_t bytes);
/*
 * Queue a read of the whole record into buf.  0, -EAGAIN, -ENOENT, -EIO.  The log keeps the record when a
 * read fails: whether to try again or to forget it is the caller's decision.
 */
int nvme_log_read(struct nvme_log *log, struct nvme_op *op, uint32_t block, unsigned buf_index,
		  void *buf);
/* One of several reads that are queued at once; as the arguments of nvme_log_read(). */
struct nvme_read {
	struct nvme_op *op;
	uint32_t block;
	unsigned buf_index;
	void *buf;
};
/*
 * Queue reads of records that lie one behind the other, each of which adjoins the one before it: one I/O for all, at
 * most NVME_LOG_JOIN_MAX.  0: each done() will come, and one may have failed without the others; else none will.
 * Errors as above.
 */
int nvme_log_read_joined(struct nvme_log *log, const struct nvme_read *reads, unsigned count);
/* The block whose record was appended behind this one's, in the same segment; NVME_LOG_NONE: none that lives. */
#define NVME_LOG_NONE UINT32_MAX
uint32_t nvme_log_after(const struct nvme_log *log, uint32_t block);
/* Does the next record of this length go behind the last one? */
int nvme_log_fits(const struct nvme_log *log, uint32_t bytes);
int nvme_log_has(const struct nvme_log *log, uint32_t block);	/* a copy, or is getting one */
int nvme_log_holds(const struct nvme_log *log, uint32_t block); /* written; the host copy may go */
uint32_t nvme_log_record_bytes(const struct nvme_log *log,
			       uint32_t block);		    /* aligned; 0: not held */
void nvme_log_forget(struct nvme_log *log, uint32_t block); /* drop the copy, if any */

/* From now on what is forgotten stays in the file: the index goes, not the blocks. */
void nvme_log_closing(struct nvme_log *log);
uint32_t nvme_log_notes(const struct nvme_log *log); /* of what was forgotten, not written yet */
/* Where it lies, for a checkpoint; only what is held. */
struct nvme_place {
	uint64_t sequence;
	uint32_t segment, off_sectors, sectors;
};
int nvme_log_place(const struct nvme_log *log, uint32_t block,
		   struct nvme_place *ret); /* -ENOENT */
/* Of one log: does b lie behind a, close enough to be read with it? */
bool nvme_log_adjoins(const struct nvme_place *a, const struct nvme_place *b);
/*
 * From the callbacks of nvme_recover.h: the block's record lies there.  0; -ESTALE: that segment has been used again
 * since; -EBADMSG: this is no place for a record; -EEXIST: the block has one.
 */
int nvme_log_restore(struct nvme_log *log, uint32_t block, const struct nvme_place *place);

/* ---- blobs: streams that are found again whole, or the one before, or not at all ---- */

enum nvme_blob { NVME_BLOB_META = 2, NVME_BLOB_CHECKPOINT = 3 };

struct nvme_blob_source {
	/* The next piece, at most cap bytes: how many; 0: the end. */
	uint32_t (*next)(void *user, uint8_t *buf, uint32_t cap);
	/* 0: complete, and on the media, instead of the one before; or negative errno: that one stays. */
	void (*done)(void *user, int res);
	void *user;
};

/* Piece by piece, in nvme_log_tick().  -EBUSY: one is being written; -EIO; -ENOTSUP: without keep. */
int nvme_log_blob_start(struct nvme_log *log, enum nvme_blob kind,
			const struct nvme_blob_source *source);
int nvme_log_blob_busy(const struct nvme_log *log);
uint64_t nvme_log_blob_bytes(const struct nvme_log *log, enum nvme_blob kind); /* in the file */
/* Bytes of records appended that a checkpoint does not cover: how much is read when it is opened again. */
uint64_t nvme_log_tail_bytes(const struct nvme_log *log);

/*
 * In service until NVME_LOG_ERRORS_MAX operations failed in a row, or one passed its deadline; then
 * nothing is taken, what is held stays, and after retry_ns a probe decides.
 */
int nvme_log_in_service(const struct nvme_log *log);
int nvme_log_error(const struct nvme_log *log); /* the last failure's errno; 0: none yet */
void nvme_log_tick(struct nvme_log *log, uint64_t now_ns); /* every turn of the loop: cheap */
unsigned nvme_log_inflight(const struct nvme_log *log);	   /* a probe counts */

#endif
