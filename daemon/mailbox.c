/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mailbox.c - the ring between the control thread and the lane, and the question whether the reader
 * sleeps.  Each function says which of the two threads may call it.
 *
 * Why no wake-up is lost: the producer stores tail and then loads wait, the consumer stores wait and then
 * loads tail, all four sequentially consistent.  In their one total order at least one of the loads comes
 * after the other side's store: either the producer sees a sleeper, or the consumer sees the mail.
 */
#include "daemon/mailbox.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static_assert((MAILBOX_ENTRIES & (MAILBOX_ENTRIES - 1)) == 0, "indices wrap by masking");

/* Before either thread uses it. */
int mailbox_init(struct mailbox *m)
{
	int fd;

	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	memset(m->entries, 0, sizeof(m->entries));
	m->fd = fd;
	atomic_init(&m->tail, 0);
	atomic_init(&m->head, 0);
	atomic_init(&m->wait, 0);
	return 0;
}

/* After both threads have let go of it.  Mail that was not received is forgotten. */
void mailbox_deinit(struct mailbox *m)
{
	if (m->fd < 0)
		return;
	(void)close(m->fd);
	m->fd = -1;
}

static void wake(struct mailbox *m)
{
	const uint64_t one = 1;
	ssize_t n;

	/*
	 * The write can fail only when the counter is at its limit, that is, when the reader's poll is
	 * ready anyway.
	 */
	do
		n = write(m->fd, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
}

/* Producer. */
int mailbox_send(struct mailbox *m, const struct mail *mail)
{
	uint32_t tail = atomic_load_explicit(&m->tail, memory_order_relaxed);
	/* Acquire: the consumer has finished reading an entry before head says that it is free. */
	uint32_t head = atomic_load_explicit(&m->head, memory_order_acquire);

	assert(tail - head <= MAILBOX_ENTRIES);
	if (tail - head == MAILBOX_ENTRIES)
		return -EAGAIN;
	m->entries[tail & (MAILBOX_ENTRIES - 1)] = *mail;
	atomic_store(&m->tail, tail + 1);
	/* Look first: an exchange would take the cache line from a consumer that does not sleep. */
	if (atomic_load(&m->wait) && atomic_exchange(&m->wait, 0))
		wake(m);
	return 0;
}

/* Consumer. */
int mailbox_recv(struct mailbox *m, struct mail *ret_mail)
{
	uint32_t head = atomic_load_explicit(&m->head, memory_order_relaxed);
	/* Acquire: the entry was written before tail says that it is there. */
	uint32_t tail = atomic_load_explicit(&m->tail, memory_order_acquire);

	assert(tail - head <= MAILBOX_ENTRIES);
	if (tail == head)
		return 0;
	*ret_mail = m->entries[head & (MAILBOX_ENTRIES - 1)];
	atomic_store_explicit(&m->head, head + 1, memory_order_release);
	return 1;
}

/* Consumer. */
int mailbox_arm(struct mailbox *m)
{
	atomic_store(&m->wait, 1);
	if (atomic_load(&m->tail) == atomic_load_explicit(&m->head, memory_order_relaxed))
		return 1;
	mailbox_disarm(m);
	return 0;
}

/*
 * Consumer.  When the producer has taken the flag, its write may still be on the way: then the read finds
 * nothing, and a later sleep ends at once for no reason, which costs one turn of the loop.
 */
void mailbox_disarm(struct mailbox *m)
{
	uint64_t count;
	ssize_t n;

	if (atomic_exchange(&m->wait, 0))
		return;
	do
		n = read(m->fd, &count, sizeof(count));
	while (n < 0 && errno == EINTR);
}
