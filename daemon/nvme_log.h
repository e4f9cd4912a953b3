/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_log.h - the NVMe tier: records appended to segments of one preallocated file (O_DIRECT).  Knows
 * block ids and byte ranges, not what a record means (record.h does), nor when to spill or what to evict.
 * When no segment is free the oldest is reclaimed: its live records are given up through `evict`.
 * Bounded size always.  Lane-only.
 */
#ifndef SKVCD_DAEMON_NVME_LOG_H
#define SKVCD_DAEMON_NVME_LOG_H

#include <stdint.h>

#include "daemon/stats.h"
#include "daemon/uring.h"

struct nvme_log;

struct nvme_log_options {
	const char *path;
	uint64_t bytes;
	uint64_t segment_bytes;
	uint32_t queue_depth;
	uint64_t deadline_ns;
	uint64_t retry_ns;
	uint32_t blocks_max;			/* block ids are < this */
	void (*evict)(void *user, uint32_t block);	/* the log no longer holds this block; may be called
							 * from append only; must not call the log for `block` */
	void *user;
};

/* One read or write of one block.  Owned by the caller until done(). */
struct nvme_op {
	struct uring_op io;
	void (*done)(struct nvme_op *op, int res);	/* 0 or negative errno */
	struct nvme_log *log;
	uint32_t block;
	uint32_t segment;
	uint8_t is_write;
	void *user;
};

/* Opens or creates, fallocates, takes an exclusive lock (-EBUSY: another daemon's), finds the alignment.
 * -errno with one line in err. */
int nvme_log_open(const struct nvme_log_options *options, struct uring *uring, struct stats *stats,
		  struct nvme_log **ret_log, char *err, unsigned err_bytes);
struct nvme_log *nvme_log_close(struct nvme_log *log);	/* nothing may be in flight */
uint32_t nvme_log_align_bytes(const struct nvme_log *log);	/* of memory, offset and length */

/* Queue a write of block's record: buf and bytes aligned.  0 (done() will come), -EAGAIN (queue full or
 * no segment can be had now), -EIO (tier out of service), -EFBIG, -EEXIST (has a copy already). */
int nvme_log_append(struct nvme_log *log, struct nvme_op *op, uint32_t block, unsigned buf_index,
		    const void *buf, uint32_t bytes);
/* Queue a read of the whole record into buf.  0, -EAGAIN, -ENOENT, -EIO. */
int nvme_log_read(struct nvme_log *log, struct nvme_op *op, uint32_t block, unsigned buf_index, void *buf);
int nvme_log_holds(const struct nvme_log *log, uint32_t block);		/* durable copy there */
uint32_t nvme_log_record_bytes(const struct nvme_log *log, uint32_t block);	/* aligned; 0: none */
void nvme_log_forget(struct nvme_log *log, uint32_t block);		/* drop the copy, if any */

int nvme_log_in_service(const struct nvme_log *log);
void nvme_log_tick(struct nvme_log *log, uint64_t now_ns);	/* brings an ailing tier back after retry_ns */
unsigned nvme_log_inflight(const struct nvme_log *log);

#endif
