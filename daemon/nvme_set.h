/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_set.h - the NVMe tier over several files or devices: a log each, and blocks are in one of them.  Records go to
 * one until its segment is full, then to the next, by what each can hold.  A device that fails is out of service by
 * itself: its blocks are misses until it is back, and nothing is written to it.
 *
 * Which files belong together is in their superblocks: a set's id, a number each.  When it is opened:
 *	- a file of another set, or the same member twice: refused, nothing is changed in any
 *	- a blank file joins, with a number of its own
 *	- a member that is not named, or cannot be read: the others are used without it, and its blocks are misses
 *	- a member that was away when the others were used: begins anew, for what was forgotten meanwhile is in it
 * Lane-only, as the log.
 */
#ifndef SKVCD_DAEMON_NVME_SET_H
#define SKVCD_DAEMON_NVME_SET_H

#include <stdint.h>

#include "daemon/nvme_log.h"

#define NVME_SET_MAX 8u

struct nvme_set;

struct nvme_set_device {
	const char *path;
	uint64_t bytes;
};

struct nvme_set_options {
	struct nvme_log_options log; /* of each; path and bytes are not looked at */
	struct nvme_set_device device[NVME_SET_MAX];
	unsigned devices;
	int iopoll, sqpoll; /* of a ring for it, if all of them can; then sqpoll is that ring's */
};

/* 0, or -errno with one line in err, as nvme_log_open(). */
int nvme_set_open(const struct nvme_set_options *options, struct uring *uring, struct stats *stats,
		  struct nvme_set **ret_set, char *err, unsigned err_bytes);
struct nvme_set *nvme_set_close(struct nvme_set *set);
unsigned nvme_set_logs(const struct nvme_set *set);
struct nvme_log *nvme_set_log(const struct nvme_set *set, unsigned i); /* i < nvme_set_logs() */
uint32_t nvme_set_align_bytes(const struct nvme_set *set);	       /* the largest of them */

uint32_t nvme_set_record_bytes_max(
	const struct nvme_set *set); /* any of them takes a record of so many */

/* As those of the log, which is chosen by room() and stays the same for the next append. */
int nvme_set_room(struct nvme_set *set, uint32_t bytes, uint64_t *ret_log_id,
		  uint64_t *ret_sequence);
int nvme_set_append(struct nvme_set *set, struct nvme_op *op, uint32_t block, unsigned buf_index,
		    const void *buf, uint32_t bytes);
int nvme_set_read(struct nvme_set *set, struct nvme_op *op, uint32_t block, unsigned buf_index,
		  void *buf);
/* All of the log that holds the first. */
int nvme_set_read_joined(struct nvme_set *set, const struct nvme_read *reads, unsigned count);
uint32_t nvme_set_after(const struct nvme_set *set, uint32_t block);
struct nvme_log *nvme_set_log_of(const struct nvme_set *set, uint32_t block); /* if any holds it */
int nvme_set_place(const struct nvme_set *set, uint32_t block, struct nvme_place *ret);
void nvme_set_forget(struct nvme_set *set, uint32_t block);
/* While this log is recovered: blocks are restored to it. */
int nvme_set_restore(struct nvme_set *set, struct nvme_log *log, uint32_t block,
		     const struct nvme_place *place);

unsigned nvme_set_in_service(const struct nvme_set *set); /* how many are */
void nvme_set_tick(struct nvme_set *set, uint64_t now_ns);
unsigned nvme_set_inflight(const struct nvme_set *set);
uint32_t nvme_set_notes(const struct nvme_set *set);
int nvme_set_blob_busy(const struct nvme_set *set);
void nvme_set_closing(struct nvme_set *set);

#endif
