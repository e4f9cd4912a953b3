/* SPDX-License-Identifier: Apache-2.0 */
/*
 * warm.h - the host pool outlives the daemon: its memfd is kept by whoever started it (systemd's fd store), and an
 * index of what lies in it is written beside it at an orderly stop.
 *
 * An index is good for one start: it is marked as used before the lane runs.  After a crash there is none, and the
 * pool, of which only its memory is left, starts empty.
 */
#ifndef SKVCD_DAEMON_WARM_H
#define SKVCD_DAEMON_WARM_H

#include <stdint.h>

#include "daemon/warm_format.h"

struct lane;

/* ---- warm_index.c: the bytes ---- */

/* Borrows the bytes that it was made of, unless warm_read() made them. */
struct warm_index {
	struct warm_header h;
	const struct warm_span *spans;
	const struct warm_block *blocks;
	const uint8_t *metas;
	void *map; /* owned by warm_read() */
	uint64_t map_bytes;
};

/* -EBADMSG: damaged; -ENODATA: incomplete, or used; -EPROTONOSUPPORT: of another version.  bytes: aligned to 8. */
int warm_parse(const uint8_t *bytes, uint64_t count, struct warm_index *ret);
/* A piece (struct persist_meta and what is behind it) at *cursor, 0 at first: 1; 0: that was the last. */
int warm_next_meta(const struct warm_index *index, uint64_t *cursor, const uint8_t **ret_bytes,
		   uint32_t *ret_count);
/* A private copy of what the memfd holds, parsed.  As warm_parse(); -ESTALE: no memfd of ours; -ENOMEM, -errno. */
int warm_read(int fd, struct warm_index *ret);
void warm_index_end(struct warm_index *index); /* zeroed: fine */
int warm_use(int fd);			       /* it says nothing any more */

/* ---- warm_save.c ---- */

/* The lane has ended, and still has everything: a new memfd with the index of its pool, for the caller.  -errno. */
int warm_save(struct lane *lane, int *ret_fd);

/* ---- warm_restore.c ---- */

/* The lane has no pool in the memory that was passed: say so, and let everybody let go of it. */
void warm_refuse_pool(struct lane *lane);

struct warm_restore;

/* What lane->restore.index_fd says of namespaces and profiles; *ret is NULL when there is nothing to be found.  0: also
 * when it is of no use, which is logged; -ENOMEM. */
int warm_restore_begin(struct lane *lane, struct warm_restore **ret);
void warm_restore_blocks(struct warm_restore *w); /* takes NULL, as the next */
struct warm_restore *warm_restore_end(struct warm_restore *w);

#endif
