/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lease.c - leases: a pin on a run of blocks, with an owner (the session that looked up) and a deadline.
 * It ends by release, by its deadline, or with its owner; any session of the tenant may load from it.
 * Its word in the owner's segment tells how far promotion has come.
 */
#include <assert.h>
#include <errno.h>
#include <sodium.h>
#include <stddef.h>

#include "daemon/args.h"
#include "daemon/lane_state.h"

#define SLOT_SHIFT 16u

static struct lease *session_leases(struct lane *lane, uint32_t session_slot)
{
	return lane->lease + (size_t)session_slot * lane->config.leases_max;
}

static struct skvc_abi_lease_word *word_of(struct lane *lane, const struct lease *l)
{
	struct session *s = l->session;
	ptrdiff_t i = l - session_leases(lane, l->session_slot);

	return (struct skvc_abi_lease_word *)(s->segment + s->layout.leases_off) + i;
}

/* Single writer; the generation last, so that a reader who sees it sees the rest. */
static void write_word(struct lane *lane, const struct lease *l)
{
	struct skvc_abi_lease_word *w = word_of(lane, l);

	/* After the 0 that ended the word's last lease: who still sees that one's generation sees its fields. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&w->blocks_hit, l->count, __ATOMIC_RELAXED);
	__atomic_store_n(&w->blocks_lost, l->lost, __ATOMIC_RELAXED);
	__atomic_store_n(&w->blocks_ready, l->ready, __ATOMIC_RELAXED);
	__atomic_store_n(&w->deadline_ns, l->deadline_ns, __ATOMIC_RELAXED);
	__atomic_store_n(&w->generation, l->generation, __ATOMIC_RELEASE);
}

int lease_new(struct lane *lane, struct session *s, struct namespace *ns, uint32_t count,
	      uint64_t ttl_ns, struct lease **ret_lease)
{
	struct lease *l = session_leases(lane, s->slot);
	uint32_t i, slot;

	if (s->leases_live == lane->config.leases_max)
		return -EAGAIN;
	for (i = 0; l[i].session; i++)
		assert(i + 1 < lane->config.leases_max);
	l += i;
	if (args_take(lane, s->tenant, (uint64_t)count * 4, &slot) < 0)
		return -EAGAIN;
	l->session = s;
	l->session_slot = s->slot;
	l->ns = ns;
	l->count = 0;
	l->ready = l->lost = 0;
	l->args_slot = slot;
	l->blocks = pool_ptr(lane->args, slot);
	l->deadline_ns = lane->now_ns + ttl_ns;
	/* From a random start: a handle of an earlier life of the daemon must not name a lease of this one. */
	l->generation = l->generation ? l->generation + 1 : randombytes_random();
	if (!l->generation) /* a handle is never 0 */
		l->generation = 1;
	l->next = &lane->leases_live;
	l->prev = lane->leases_live.prev;
	l->prev->next = l->next->prev = l;
	if (l->deadline_ns < lane->leases_next_ns)
		lane->leases_next_ns = l->deadline_ns;
	s->leases_live++;
	atomic_store_explicit(&s->leases, s->leases_live, memory_order_relaxed);
	stats_add(&lane->stats, STAT_LEASES, 1);
	*ret_lease = l;
	return 0;
}

static void advance(struct lane *lane, struct lease *l)
{
	while (l->ready < l->count) {
		const struct block *b = index_block(lane->index, l->blocks[l->ready]);
		int lost = (b->state == BLOCK_DEAD && !(b->flags & BLOCK_READABLE)) ||
			   (b->state == BLOCK_NVME && !(b->flags & BLOCK_WANTED));

		if (!lost && (b->state == BLOCK_NVME || b->state == BLOCK_FETCHING))
			break;
		l->lost += (uint32_t)lost;
		l->ready++;
	}
}

/* Its blocks are filled in: publish the word. */
void lease_grant(struct lane *lane, struct lease *l, uint64_t *ret_handle)
{
	ptrdiff_t i = l - session_leases(lane, l->session_slot);

	advance(lane, l);
	write_word(lane, l);
	stats_add(&lane->stats, STAT_LEASES_GRANTED, 1);
	*ret_handle = skvc_abi_handle((l->session_slot << SLOT_SHIFT) | (uint32_t)i, l->generation);
}

/* The lease of this handle, when it lives and belongs to the tenant of s. */
struct lease *lease_find(struct lane *lane, const struct session *s, uint64_t handle)
{
	uint32_t index = skvc_abi_handle_index(handle);
	uint32_t slot = index >> SLOT_SHIFT, i = skvc_abi_lease_word_index(handle);
	struct lease *l;

	if (slot >= lane->config.sessions_max || i >= lane->config.leases_max)
		return NULL;
	l = session_leases(lane, slot) + i;
	if (!l->session || l->generation != skvc_abi_handle_generation(handle) ||
	    l->session->tenant != s->tenant)
		return NULL;
	return l;
}

void lease_release(struct lane *lane, struct lease *l)
{
	struct session *s = l->session;
	struct skvc_abi_lease_word *w = word_of(lane, l);

	assert(s && s->leases_live > 0);
	__atomic_store_n(&w->generation, 0, __ATOMIC_RELEASE);
	/* Last block first: a parent ends up warmer than its children, so children are evicted before it. */
	while (l->count)
		tier_unhold(lane, l->blocks[--l->count]);
	args_give(lane, s->tenant, l->args_slot);
	l->session = NULL;
	l->prev->next = l->next;
	l->next->prev = l->prev;
	s->leases_live--;
	atomic_store_explicit(&s->leases, s->leases_live, memory_order_relaxed);
	stats_sub(&lane->stats, STAT_LEASES, 1);
}

void lease_release_all(struct lane *lane, struct session *s)
{
	struct lease *l = session_leases(lane, s->slot);

	for (uint32_t i = 0; s->leases_live; i++)
		if (l[i].session == s)
			lease_release(lane, &l[i]);
}

static unsigned expire(struct lane *lane)
{
	struct lease *l = lane->leases_live.next, *next;
	unsigned n = 0;

	lane->leases_next_ns = UINT64_MAX;
	for (; l != &lane->leases_live; l = next) {
		next = l->next;
		if (l->deadline_ns <= lane->now_ns) {
			stats_add(&lane->stats, STAT_LEASES_EXPIRED, 1);
			lease_release(lane, l);
			n++;
		} else if (l->deadline_ns < lane->leases_next_ns) {
			lane->leases_next_ns = l->deadline_ns;
		}
	}
	return n;
}

unsigned lease_run(struct lane *lane)
{
	struct lease *l;

	if (lane->words_behind) {
		lane->words_behind = 0;
		for (l = lane->leases_live.next; l != &lane->leases_live; l = l->next) {
			uint32_t ready = l->ready;

			advance(lane, l);
			if (l->ready != ready)
				write_word(lane, l);
		}
	}
	return lane->now_ns >= lane->leases_next_ns ? expire(lane) : 0;
}
