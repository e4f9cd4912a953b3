/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_file.h - the file or block device under the NVMe log: that it is ours, locked, of the right size,
 * and how it wants to be accessed.  Start-up only; does not know what lies behind the header.
 */
#ifndef SKVCD_DAEMON_NVME_FILE_H
#define SKVCD_DAEMON_NVME_FILE_H

#include <stdint.h>

#define NVME_FILE_HEADER_BYTES 65536u /* superblock and probe area; records lie behind */
#define NVME_FILE_PROBE_OFF 32768u
#define NVME_FILE_ALIGN_BYTES_MAX 32768u

/* Which part of which set of files it is; see nvme_set.h. */
struct nvme_member {
	uint8_t set[16];
	uint32_t number, count;
	uint64_t present; /* of the set, at the opening `epoch`: a bit for each number */
	uint64_t epoch;	  /* of the last opening; 0: the file is blank */
};

struct nvme_file {
	int fd;		      /* owned */
	uint32_t align_bytes; /* power of two, 4096..NVME_FILE_ALIGN_BYTES_MAX */
	uint64_t epoch;	      /* of this opening: one more than the last */
	uint64_t log_id;      /* of this file, for as long as what is in it is kept; never 0 */
	int direct;
	int fresh;	     /* nothing in it is of this log_id */
	int created, device; /* by us, just now; a block device */
	uint64_t size_bytes; /* as found */
	uint8_t uuid[16];    /* of what is in it */
	struct nvme_member member;
};

struct nvme_file_options {
	const char *path;
	uint64_t bytes;
	uint64_t segment_bytes;
	int allow_buffered;
	int keep; /* what is in it: then it must have these sizes.  0: all of it is forgotten */
};

/* 0; -errno with one line in err.  -EBUSY: locked by another process, or a device in use; -EEXIST: it
 * holds something that is not ours, or not made like this; -ENOSPC; -EOPNOTSUPP: no O_DIRECT or no fallocate. */
int nvme_file_find(const struct nvme_file_options *options, struct nvme_file *ret, char *err,
		   unsigned err_bytes);
/*
 * Then this: it is written that the file is this member from now on, and its space is taken.  `forget`: what was in
 * it is never found again.  On failure the file is closed, and gone if it was made just now.
 */
int nvme_file_claim(const struct nvme_file_options *options, struct nvme_file *file,
		    const struct nvme_member *member, int forget, char *err, unsigned err_bytes);
void nvme_file_give_up(const struct nvme_file_options *options, struct nvme_file *file);
/* Both, for a log of one file. */
int nvme_file_open(const struct nvme_file_options *options, struct nvme_file *ret, char *err,
		   unsigned err_bytes);
void nvme_file_close(struct nvme_file *f);

#endif
