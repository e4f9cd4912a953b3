/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_log.c - a model of the NVMe log's segments, by the rules of daemon/nvme_gc.c, with blocks of one size and I/O
 * that takes no time.  The host pool before it is a plain LRU; a block is written to the log when it is stored, as
 * the daemon does ahead of need, and again when it leaves the host after the log gave it up.
 */
#include "tools/replay_log.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define NONE UINT32_MAX
#define SEGMENTS_MIN 8u
#define FREE_SHARE 32u
#define FREE_MIN 2u
#define FREE_MAX 8u
#define CANDIDATES 4u
#define SAVED_SEGMENTS 4u

struct item {
	uint32_t prev, next; /* in the host, hottest last; its own number: it is not there */
	uint32_t segment;    /* NONE: not in the log */
	uint8_t used;	     /* since it was written there */
};

struct segment {
	uint32_t *block; /* borrowed, [segment_blocks]: what was written, alive or not */
	uint32_t count, live;
	uint64_t sequence;
};

struct model {
	const struct replay_trace *t;
	const struct replay_log_options *o;
	struct replay_log_result r;
	struct item *item; /* owned; and one that is the list's head */
	struct segment *segment;
	uint32_t *blocks; /* owned */
	uint32_t segments, free, open, host;
	uint64_t sequence;
	double allowance; /* blocks that may be copied */
};

/* ---- the host ---- */

static void append(struct model *m, uint32_t block, bool copy);

static bool in_host(const struct model *m, uint32_t block)
{
	return m->item[block].next != block;
}

static void host_remove(struct model *m, uint32_t block)
{
	struct item *i = &m->item[block];

	m->item[i->prev].next = i->next;
	m->item[i->next].prev = i->prev;
	i->prev = i->next = block;
	m->host--;
}

static void host_touch(struct model *m, uint32_t block)
{
	const uint32_t head = m->t->blocks;
	struct item *i = &m->item[block];

	if (in_host(m, block)) {
		host_remove(m, block);
	} else if (m->host == m->o->host_blocks) {
		uint32_t coldest = m->item[head].next;

		host_remove(m, coldest);
		if (m->item[coldest].segment == NONE)
			append(m, coldest, false);
	}
	i->prev = m->item[head].prev;
	i->next = head;
	m->item[i->prev].next = m->item[head].prev = block;
	m->host++;
}

/* ---- the log ---- */

static bool lives(const struct model *m, const struct segment *s, uint32_t i)
{
	return m->item[s->block[i]].segment == (uint32_t)(s - m->segment);
}

static double gain(const struct model *m, const struct segment *s)
{
	double all = m->o->segment_blocks, worth = 0;

	for (uint32_t i = 0; i < s->count; i++)
		worth += lives(m, s, i) && m->item[s->block[i]].used;
	return (all - worth) / (all + worth) * (double)(m->sequence + 1 - s->sequence);
}

static double harm(const struct model *m, const struct segment *s)
{
	return s->live / (double)(m->sequence + 1 - s->sequence);
}

/* Of those that are given up with the least harm, the one that most is gained from. */
static uint32_t choose(const struct model *m)
{
	uint32_t chosen = NONE;
	double after = -1, most = -1;

	for (unsigned n = 0; n < CANDIDATES; n++) {
		uint32_t best = NONE;

		for (uint32_t i = 0; i < m->segments; i++) {
			const struct segment *s = &m->segment[i];

			if (i != m->open && s->count && harm(m, s) > after &&
			    (best == NONE || harm(m, s) < harm(m, &m->segment[best])))
				best = i;
		}
		if (best == NONE)
			break;
		after = harm(m, &m->segment[best]);
		if (gain(m, &m->segment[best]) > most) {
			most = gain(m, &m->segment[best]);
			chosen = best;
		}
	}
	return chosen;
}

static void clean(struct model *m)
{
	struct segment *s = &m->segment[choose(m)];

	for (uint32_t i = s->count; i-- > 0;) {
		struct item *b = &m->item[s->block[i]];

		if (!lives(m, s, i))
			continue;
		if (b->used && m->allowance >= 1) {
			m->allowance--;
			append(m, s->block[i], true);
		} else {
			b->segment = NONE;
			m->r.given_up++;
		}
	}
	s->count = s->live = 0;
	m->free++;
}

static uint32_t free_wanted(const struct model *m)
{
	uint32_t n = m->segments / FREE_SHARE;

	return n < FREE_MIN ? FREE_MIN : n > FREE_MAX ? FREE_MAX : n;
}

static void append(struct model *m, uint32_t block, bool copy)
{
	struct item *b = &m->item[block];
	struct segment *s = &m->segment[m->open];

	if (s->count == m->o->segment_blocks) {
		for (m->open = 0; m->segment[m->open].count; m->open++)
			;
		s = &m->segment[m->open];
		s->sequence = ++m->sequence;
		m->free--;
	}
	if (b->segment != NONE)
		m->segment[b->segment].live--;
	b->segment = m->open;
	b->used = 0;
	s->block[s->count++] = block;
	s->live++;
	if (copy) {
		m->r.copied++;
		return;
	}
	m->r.stored++;
	m->allowance += m->o->copy_percent / 100.0;
	if (m->allowance > (double)SAVED_SEGMENTS * m->o->segment_blocks)
		m->allowance = (double)SAVED_SEGMENTS * m->o->segment_blocks;
	while (m->free < free_wanted(m))
		clean(m);
}

/* ---- the trace ---- */

static void request(struct model *m, const uint32_t *block, uint32_t count)
{
	uint32_t hits = 0;

	while (hits < count && (in_host(m, block[hits]) || m->item[block[hits]].segment != NONE))
		m->item[block[hits++]].used = 1;
	m->r.hits += hits;
	/* The last one first, so that parents stay longer than their children. */
	for (uint32_t i = count; i-- > 0;) {
		host_touch(m, block[i]);
		if (i >= hits && m->item[block[i]].segment == NONE)
			append(m, block[i], false);
	}
}

static int make(struct model *m)
{
	const uint32_t segment_blocks = m->o->segment_blocks;

	m->segments = segment_blocks ? m->o->nvme_blocks / segment_blocks : 0;
	if (m->segments < SEGMENTS_MIN || !m->o->host_blocks)
		return -EINVAL;
	m->item = calloc((size_t)m->t->blocks + 1, sizeof(*m->item));
	m->segment = calloc(m->segments, sizeof(*m->segment));
	m->blocks = calloc((size_t)m->segments * segment_blocks, sizeof(*m->blocks));
	if (!m->item || !m->segment || !m->blocks)
		return -ENOMEM;
	for (uint32_t i = 0; i <= m->t->blocks; i++)
		m->item[i] = (struct item){ .prev = i, .next = i, .segment = NONE };
	for (uint32_t i = 0; i < m->segments; i++)
		m->segment[i].block = m->blocks + (size_t)i * segment_blocks;
	m->free = m->segments - 1;
	return 0;
}

int replay_log(const struct replay_trace *t, const struct replay_log_options *o,
	       struct replay_log_result *ret)
{
	struct model m = { .t = t, .o = o };
	int r = make(&m);

	for (uint32_t i = 0; r == 0 && i < t->requests; i++)
		request(&m, t->block + t->first[i], t->first[i + 1] - t->first[i]);
	free(m.item);
	free(m.segment);
	free(m.blocks);
	if (r == 0)
		*ret = m.r;
	return r;
}
