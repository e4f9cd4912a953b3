/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_recover.h - what an NVMe log that was opened with `keep` still holds.  Once, after nvme_log_open() and before
 * the lane's thread runs; reads with blocking calls.
 *
 * Everything in the file is hostile: what is not whole, or not of this log and of this use of its segment, is
 * refused by itself, and the rest is taken.
 */
#ifndef SKVCD_DAEMON_NVME_RECOVER_H
#define SKVCD_DAEMON_NVME_RECOVER_H

#include "daemon/nvme_log.h"
#include "daemon/record.h"

struct nvme_recover_ops {
	/* A piece of the newest complete blob, in order: all of META come before the first of CHECKPOINT. */
	void (*piece)(void *user, enum nvme_blob kind, const uint8_t *bytes, uint32_t count);
	/*
	 * A whole record that the checkpoint may not have, in the order in which they were written.  0: the
	 * block was made, and given back to the log with nvme_log_restore(); else it is counted as refused.
	 */
	int (*record)(void *user, const struct record_header *h, const struct nvme_place *place);
	/* The log has forgotten this block, and so had its last life. */
	void (*forgotten)(void *user, uint32_t block);
	void *user;
};

struct nvme_recovered {
	uint64_t records;	   /* read one by one */
	uint64_t records_refused;  /* damaged, or refused by record() */
	uint64_t forgotten;	   /* blocks that were */
	uint64_t pieces_damaged;   /* of blobs */
	uint64_t tail_bytes;	   /* read for the records */
	uint64_t checkpoint_bytes; /* and for the checkpoint */
	uint32_t segments_damaged; /* could not be read */
	int has_checkpoint;
};

/* 0, -ENOMEM, or what a ring says.  Without keep, or in a new file, there is nothing. */
int nvme_log_recover(struct nvme_log *log, const struct nvme_recover_ops *ops,
		     struct nvme_recovered *ret);

/* Which will need these soon: for many of them step 0, then step 1. */
void nvme_log_prefetch(const struct nvme_log *log, uint32_t segment, unsigned step);

#endif
