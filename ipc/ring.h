/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring.h - single producer, single consumer ring of 64-byte entries in shared memory.
 *
 * Each side keeps a private struct ring with its own copy of both indices; the shared words are read
 * and written only through the atomics here.  Indices are free-running u32; the entry is at
 * index & mask.  The side that owns an index stores it with release after the entries it covers; the
 * other side loads it with acquire before touching them.  A peer's index is hostile: ring_consume_ready
 * and ring_produce_room bound it by the capacity and say -EOVERFLOW when it cannot be true.
 *
 * Sleeping: the consumer sets `wait` on the index it waits for (seq_cst), checks the index once more,
 * then sleeps.  The producer publishes, then reads `wait` (seq_cst): one of the two sees the other.
 */
#ifndef SKVCD_IPC_RING_H
#define SKVCD_IPC_RING_H

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "ipc/abi.h"

#define RING_ENTRY_BYTES 64u

struct ring {
	uint8_t *entries;	     /* shared; capacity * 64 bytes */
	struct skvc_abi_index *own;  /* shared: the index this side writes */
	struct skvc_abi_index *peer; /* shared: the index the other side writes */
	uint32_t mask;
	uint32_t own_value;  /* private: last published plus what is being filled or read */
	uint32_t peer_value; /* private: last accepted value of the peer's index */
};

static inline void ring_init(struct ring *r, void *entries, uint32_t capacity,
			     struct skvc_abi_index *own, struct skvc_abi_index *peer)
{
	r->entries = entries;
	r->own = own;
	r->peer = peer;
	r->mask = capacity - 1;
	r->own_value = 0;
	r->peer_value = 0;
}

/* Consumer: how many entries can be read; -EOVERFLOW when the producer's index is impossible. */
static inline int ring_consume_ready(struct ring *r)
{
	uint32_t tail = __atomic_load_n(&r->peer->value, __ATOMIC_ACQUIRE);
	uint32_t ready = tail - r->own_value;

	if (ready > r->mask + 1)
		return -EOVERFLOW;
	r->peer_value = tail;
	return (int)ready;
}

/* Consumer: copy the next entry out (the only read of it) and step over it.  Needs ready > 0. */
static inline void ring_consume(struct ring *r, void *ret_entry)
{
	memcpy(ret_entry, r->entries + (size_t)(r->own_value & r->mask) * RING_ENTRY_BYTES,
	       RING_ENTRY_BYTES);
	/* The copy is complete before any check of it: no second fetch from shared memory. */
	__asm__ volatile("" : : "r"(ret_entry) : "memory");
	r->own_value++;
}

/* Consumer: hand the slots read so far back to the producer. */
static inline void ring_consume_done(struct ring *r)
{
	__atomic_store_n(&r->own->value, r->own_value, __ATOMIC_RELEASE);
}

/* Producer: free slots; -EOVERFLOW when the consumer's index is impossible. */
static inline int ring_produce_room(struct ring *r)
{
	uint32_t head = __atomic_load_n(&r->peer->value, __ATOMIC_ACQUIRE);
	uint32_t used = r->own_value - head;

	if (used > r->mask + 1)
		return -EOVERFLOW;
	r->peer_value = head;
	return (int)(r->mask + 1 - used);
}

/*
 * Producer: are there `want` free slots?  1, 0, -EOVERFLOW.  The consumer's index is looked at only when what
 * was last seen of it is not enough: its cache line then stays where the consumer writes it.
 */
static inline int ring_produce_has(struct ring *r, uint32_t want)
{
	int room;

	if (r->mask + 1 - (r->own_value - r->peer_value) >= want)
		return 1;
	room = ring_produce_room(r);
	return room < 0 ? room : (uint32_t)room >= want;
}

/* Producer: fill the next slot; not visible before ring_publish.  Needs room > 0. */
static inline void ring_produce(struct ring *r, const void *entry)
{
	memcpy(r->entries + (size_t)(r->own_value & r->mask) * RING_ENTRY_BYTES, entry,
	       RING_ENTRY_BYTES);
	r->own_value++;
}

/* Producer: publish.  Returns 1 when the consumer sleeps and must be woken, once per sleep. */
static inline int ring_publish(struct ring *r)
{
	__atomic_store_n(&r->own->value, r->own_value, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&r->own->wait, __ATOMIC_SEQ_CST))
		return 0;
	return (int)__atomic_exchange_n(&r->own->wait, 0, __ATOMIC_SEQ_CST);
}

/* Consumer: about to sleep.  Returns 1 when it may, 0 when entries have come (and disarms). */
static inline int ring_arm(struct ring *r)
{
	__atomic_store_n(&r->peer->wait, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&r->peer->value, __ATOMIC_SEQ_CST) == r->own_value)
		return 1;
	__atomic_store_n(&r->peer->wait, 0, __ATOMIC_RELAXED);
	return 0;
}

static inline void ring_disarm(struct ring *r)
{
	__atomic_store_n(&r->peer->wait, 0, __ATOMIC_RELAXED);
}

#endif
