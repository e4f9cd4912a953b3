/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_log.h - the NVMe tier: records appended to segments of one preallocated file (O_DIRECT).  Knows
 * block ids and byte ranges, not what a record means (record.h does), nor when to spill or what to evict.
 * When no segment is free the oldest is reclaimed: its live records are given up through `evict`.
 * Bounded size always.  Lane-only.
 *
 * This version forgets what the file held when it is opened again.  Every opening has another epoch,
 * which belongs in the records: one that was left by an earlier life cannot be taken for a current one.
 * No flush is sent to the device, since nothing is promised across a power cut.
 *
 * Counted here: NVME_ERRORS, NVME_RECLAIMED_SEGMENTS, NVME_BYTES, _LIVE_BYTES, _HEALTH and _INFLIGHT; what
 * was spilled and fetched is counted by whoever decides that.
 */
#ifndef SKVCD_DAEMON_NVME_LOG_H
#define SKVCD_DAEMON_NVME_LOG_H

#include <stdint.h>

#include "daemon/stats.h"
#include "daemon/uring.h"

#define NVME_LOG_SEGMENTS_MIN 2u
#define NVME_LOG_ERRORS_MAX 3u /* failures in a row that take the tier out of service */

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
	void (*evict)(void *user,
		      uint32_t block); /* the log no longer holds this block; may be called
							 * from append only; must not call the log for `block`,
							 * nor append; may forget others */
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
	uint8_t is_write;
	void *user;
};

/* Opens or creates, fallocates, takes an exclusive lock (-EBUSY: another daemon's), finds the alignment,
 * registers the file with the ring.  -errno with one line in err.  A file that holds something else is
 * left alone: -EEXIST. */
int nvme_log_open(const struct nvme_log_options *options, struct uring *uring, struct stats *stats,
		  struct nvme_log **ret_log, char *err, unsigned err_bytes);
struct nvme_log *nvme_log_close(struct nvme_log *log);	   /* nothing may be in flight */
uint32_t nvme_log_align_bytes(const struct nvme_log *log); /* of memory, offset and length */
uint64_t nvme_log_epoch(const struct nvme_log *log);	   /* of this opening; never 0 */
int nvme_log_direct(const struct nvme_log *log); /* 0: through the page cache (allow_buffered) */
uint32_t nvme_log_record_bytes_max(const struct nvme_log *log); /* longer ones are -EFBIG */

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
int nvme_log_holds(const struct nvme_log *log, uint32_t block); /* written; the host copy may go */
uint32_t nvme_log_record_bytes(const struct nvme_log *log,
			       uint32_t block);		    /* aligned; 0: not held */
void nvme_log_forget(struct nvme_log *log, uint32_t block); /* drop the copy, if any */

/*
 * In service until NVME_LOG_ERRORS_MAX operations failed in a row, or one passed its deadline; then
 * nothing is taken, what is held stays, and after retry_ns a probe decides.
 */
int nvme_log_in_service(const struct nvme_log *log);
int nvme_log_error(const struct nvme_log *log); /* the last failure's errno; 0: none yet */
void nvme_log_tick(struct nvme_log *log, uint64_t now_ns); /* every turn of the loop: cheap */
unsigned nvme_log_inflight(const struct nvme_log *log);	   /* a probe counts */

#endif
