/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_daemon.h - a thread that speaks the daemon's side of the protocol from memory, uncompressed, so
 * that the client library is tested without skvcd; and that lies, hangs up or falls silent on demand.
 * One client at a time.  Blocks survive a client's connection, leases do not.
 */
#ifndef SKVCD_TESTS_LIB_FAKE_DAEMON_H
#define SKVCD_TESTS_LIB_FAKE_DAEMON_H

#include <stdbool.h>
#include <stdint.h>

/* What it does wrong; one at a time. */
enum fake_fault {
	FAKE_NONE,
	/* answering HELLO */
	FAKE_HELLO_SILENT,
	FAKE_HELLO_HANGUP,
	FAKE_HELLO_USERS,	   /* CTL_ERROR -EUSERS */
	FAKE_HELLO_MAJOR,	   /* another major */
	FAKE_HELLO_MINOR,	   /* 1.0, which knows no GPU */
	FAKE_HELLO_CLIENT_TOO_OLD, /* accepts only later clients */
	FAKE_HELLO_SEQ,		   /* answers another request */
	FAKE_HELLO_SHORT,	   /* half a message */
	FAKE_HELLO_FDS,		   /* one descriptor too few */
	FAKE_HELLO_FDS_MANY,	   /* one too many */
	FAKE_HELLO_UNSEALED,
	FAKE_HELLO_SMALL,   /* segment smaller than it says */
	FAKE_HELLO_OVERLAP, /* rings over each other */
	FAKE_HELLO_NOT_MEMFD,
	FAKE_HELLO_SOCKET, /* writing to what wakes it would be a SIGPIPE */
	/* answering other requests */
	FAKE_CTL_HANGUP,
	FAKE_CTL_LAST_WORDS, /* unasked CTL_ERROR, then hangs up */
	FAKE_ARENA_UNSEALED,
	FAKE_NS_BYTES,
	FAKE_MEMORY_SECOND, /* refuses an allocation while another is open: -EINVAL */
	FAKE_LAYOUT,	    /* refuses every layout in GPU memory: -ERANGE */
	FAKE_LAYOUT_HANGUP, /* hangs up instead */
	/* on the rings, at the next operation */
	FAKE_CQE_STRANGER, /* a completion for no job before the right one */
	FAKE_CQE_TWICE,
	FAKE_CQE_KIND,
	FAKE_CQE_RES,	   /* a positive result */
	FAKE_CQE_UNLISTED, /* an errno that is not on the list */
	FAKE_CQE_COUNT,	   /* more blocks than asked for */
	FAKE_CQ_INDEX,	   /* more completions than the ring holds */
	FAKE_SQ_INDEX,	   /* took entries that were never there */
	FAKE_SOURCE_FREE_TWICE,
	FAKE_SOURCE_FREE_STRAY, /* for an operation that has none */
	FAKE_NO_SOURCE_FREE,	/* a store that ends at once */
	FAKE_PARTIAL,		/* does every block but the first */
	FAKE_BITMAP_WILD,	/* sets bits of blocks that were not asked for */
	FAKE_PROGRESS_WILD,	/* progress word beyond the segments */
	FAKE_CLOSED		/* says CLOSED (SHUTDOWN), completes nothing any more */
};

struct fake_daemon;

struct fake_daemon *fake_daemon_new(void);
struct fake_daemon *fake_daemon_free(struct fake_daemon *d);
const char *fake_daemon_path(const struct fake_daemon *d);

void fake_daemon_fault(struct fake_daemon *d, enum fake_fault fault);
/* Take operations but complete none until hold(false); aborts are obeyed. */
void fake_daemon_hold(struct fake_daemon *d, bool hold);
/* Serve GPU memory: an exported fd is a memfd, an IPC handle names 1 MiB of nothing.  Off: -EOPNOTSUPP. */
void fake_daemon_gpu(struct fake_daemon *d, bool gpu);
/* Take nothing from the ring at all. */
void fake_daemon_stall(struct fake_daemon *d, bool stall);
/* kill -9: every descriptor closed, nothing said.  The blocks are kept for the next start. */
void fake_daemon_kill(struct fake_daemon *d);
void fake_daemon_restart(struct fake_daemon *d);
/* All four indices of the next connection start here instead of 0. */
void fake_daemon_ring_start(struct fake_daemon *d, uint32_t index);

/* Entries that its own checks refused: the library must never cause one. */
uint32_t fake_daemon_bad_entries(const struct fake_daemon *d);
uint32_t fake_daemon_taken(const struct fake_daemon *d);   /* entries taken off the ring */
uint32_t fake_daemon_wakeups(const struct fake_daemon *d); /* eventfd writes it read */
uint32_t fake_daemon_byes(const struct fake_daemon *d);
uint32_t fake_daemon_regions(const struct fake_daemon *d); /* registered now */
uint32_t fake_daemon_arenas(const struct fake_daemon *d);
uint32_t fake_daemon_memories(const struct fake_daemon *d); /* allocations that are open */
uint32_t fake_daemon_events(const struct fake_daemon *d);
uint32_t fake_daemon_recorded(const struct fake_daemon *d); /* done events, so far */

#endif
