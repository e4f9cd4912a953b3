/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvme_join.c - records that lie close to each other in a segment, read with one operation into where each of them is
 * wanted.  Lane-only.  For the log each is a read of its own, with its own end; what they share is the I/O.
 *
 * When that fails, each is read again by itself, until the deadline that it had: so that a sector that can't be read
 * costs the record that it is in.  A device that does not answer in time is not asked again.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/nvme_state.h"
#include "daemon/util/clock.h"

#define JOINS_MAX 64u
#define PIECES_MAX (2 * NVME_LOG_JOIN_MAX) /* a record, and what lies before it that nobody wants */

struct nvme_join {
	struct uring_op io; /* first */
	struct nvme_log *log;
	struct nvme_join *next; /* free list */
	unsigned count;
	uint64_t deadline_ns;
	struct nvme_op *op[NVME_LOG_JOIN_MAX];
	struct iovec iov[PIECES_MAX];
};

struct nvme_joins {
	struct nvme_join *free;
	uint8_t *gap; /* owned: read and thrown away, by all at once */
	struct nvme_join join[];
};

int nvme_join_start(struct nvme_log *log)
{
	unsigned count = log->options.queue_depth < JOINS_MAX ? log->options.queue_depth
							      : JOINS_MAX;

	log->joins = calloc(1, sizeof(*log->joins) + count * sizeof(log->joins->join[0]));
	if (!log->joins)
		return -ENOMEM;
	log->joins->gap = aligned_alloc(log->file.align_bytes, NVME_LOG_GAP_BYTES);
	if (!log->joins->gap)
		return -ENOMEM;
	for (unsigned i = 0; i < count; i++) {
		log->joins->join[i].log = log;
		log->joins->join[i].next = log->joins->free;
		log->joins->free = &log->joins->join[i];
	}
	return 0;
}

void nvme_join_stop(struct nvme_log *log)
{
	if (log->joins)
		free(log->joins->gap);
	free(log->joins);
	log->joins = NULL;
}

static void join_put(struct nvme_join *j)
{
	j->next = j->log->joins->free;
	j->log->joins->free = j;
}

static void alone_done(struct uring_op *io, int32_t res)
{
	struct nvme_op *op = (struct nvme_op *)((char *)io - offsetof(struct nvme_op, io));

	nvme_op_end(op->log, op, res < 0 ? res : 0);
}

static void read_alone(struct nvme_log *log, struct nvme_op *op, uint64_t deadline_ns)
{
	int r;

	op->io.done = alone_done;
	op->io.file = log->file_index;
	r = uring_read(log->uring, &op->io, op->buf_index, op->buf, op->bytes, nvme_op_off(log, op),
		       deadline_ns);
	if (r < 0)
		nvme_op_end(log, op, r == -EAGAIN ? -EIO : r);
}

static void join_done(struct uring_op *io, int32_t res)
{
	struct nvme_join *j = (struct nvme_join *)io, copy = *j;
	struct nvme_log *log = j->log;
	bool again = res < 0 && res != -ETIMEDOUT;

	log->passengers -= copy.count - 1;
	stats_add(log->stats, STAT_NVME_PARTED_READS, again);
	join_put(j); /* the ends may begin others */
	for (unsigned i = 0; i < copy.count; i++) {
		if (again)
			read_alone(log, copy.op[i], copy.deadline_ns);
		else
			nvme_op_end(log, copy.op[i], res < 0 ? res : 0);
	}
}

bool nvme_log_adjoins(const struct nvme_place *a, const struct nvme_place *b)
{
	uint64_t end = (uint64_t)a->off_sectors + a->sectors;

	return a->sequence == b->sequence && a->segment == b->segment && end <= b->off_sectors &&
	       (b->off_sectors - end) * NVME_SECTOR_BYTES <= NVME_LOG_GAP_BYTES;
}

/* Of the file, from the first record to the end of the last. */
static void fill_pieces(struct nvme_join *j, unsigned *ret_pieces)
{
	uint64_t at = nvme_op_off(j->log, j->op[0]);
	unsigned n = 0;

	for (unsigned i = 0; i < j->count; i++) {
		const struct nvme_op *op = j->op[i];
		uint64_t off = nvme_op_off(j->log, op);

		assert(off >= at && off - at <= NVME_LOG_GAP_BYTES);
		if (off > at)
			j->iov[n++] = (struct iovec){ j->log->joins->gap, off - at };
		j->iov[n++] = (struct iovec){ op->buf, op->bytes };
		at = off + op->bytes;
	}
	assert(n <= PIECES_MAX);
	*ret_pieces = n;
}

static int read_joined(struct nvme_log *log, struct nvme_join *j, const struct nvme_read *reads,
		       unsigned count)
{
	unsigned pieces;
	int r;

	j->count = count;
	for (unsigned i = 0; i < count; i++) {
		j->op[i] = reads[i].op;
		nvme_op_begin(log, &reads[i], false);
	}
	fill_pieces(j, &pieces);
	j->io.done = join_done;
	j->io.file = log->file_index;
	j->deadline_ns = clock_add_ns(clock_now_ns(), log->options.deadline_ns);
	r = uring_readv(log->uring, &j->io, j->iov, pieces, nvme_op_off(log, j->op[0]),
			j->deadline_ns);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < count; i++) {
		j->op[i]->io.start_ns = j->io.start_ns;
		nvme_op_started(log, j->op[i]);
	}
	log->passengers += count - 1;
	stats_add(log->stats, STAT_NVME_READS, 1);
	stats_add(log->stats, STAT_NVME_JOINED_BLOCKS, count);
	return 0;
}

int nvme_log_read_joined(struct nvme_log *log, const struct nvme_read *reads, unsigned count)
{
	struct nvme_join *j = log->joins->free;
	int r;

	assert(count >= 1 && count <= NVME_LOG_JOIN_MAX);
	if (count == 1)
		return nvme_log_read(log, reads[0].op, reads[0].block, reads[0].buf_index,
				     reads[0].buf);
	for (unsigned i = 0; i < count; i++) {
		assert(reads[i].op->done && (uintptr_t)reads[i].buf % log->file.align_bytes == 0);
		if (!nvme_log_holds(log, reads[i].block))
			return -ENOENT;
	}
	if (!nvme_serves(log))
		return -EIO;
	if (!j || !nvme_queue_has_room(log))
		return -EAGAIN;
	log->joins->free = j->next;
	r = read_joined(log, j, reads, count);
	if (r < 0)
		join_put(j);
	return r;
}
