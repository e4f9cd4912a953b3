/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mailbox.h - messages between two threads: a bounded single-producer single-consumer ring and an
 * eventfd that is written only when the reader sleeps.  Nothing else crosses a thread border.
 *
 * Before it sleeps, the reader arms; when that says that mail is there, it reads on instead.  After it
 * woke, for whatever reason, it disarms and receives.  A wake-up without mail can happen.
 */
#ifndef SKVCD_DAEMON_MAILBOX_H
#define SKVCD_DAEMON_MAILBOX_H

#include <stdatomic.h>
#include <stdint.h>

#define MAILBOX_ENTRIES 1024u /* power of two */

struct mail {
	uint32_t type; /* enum lane_mail */
	int32_t res;
	uint64_t value;
	void *subject; /* whose ownership passes, or which is borrowed: see lane.h */
	void *object;
};

/* Aligned to 64: allocate what embeds it with aligned_alloc(), not malloc(). */
struct mailbox {
	int fd;				    /* owned eventfd, nonblocking */
	_Alignas(64) _Atomic uint32_t tail; /* written by the producer */
	_Alignas(64) _Atomic uint32_t head; /* written by the consumer */
	_Alignas(64) _Atomic uint32_t
		wait; /* consumer sleeps: producer exchanges to 0 and writes fd */
	_Alignas(64) struct mail entries[MAILBOX_ENTRIES];
};

int mailbox_init(struct mailbox *m);
void mailbox_deinit(struct mailbox *m);
int mailbox_send(struct mailbox *m, const struct mail *mail); /* 0, -EAGAIN when full */
int mailbox_recv(struct mailbox *m, struct mail *ret_mail);   /* 1, or 0 when empty */
int mailbox_arm(struct mailbox *m);	/* 1: may sleep on fd; 0: mail is there */
void mailbox_disarm(struct mailbox *m); /* and empties the eventfd when it was written */

#endif
