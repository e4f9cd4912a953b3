/* SPDX-License-Identifier: Apache-2.0 */
/*
 * warm_save.c - the index of host memory, written when the lane has ended.  Nothing runs any more, so it is written in
 * one go.  Blocks of the GPU's pool are not in it: that memory ends with the process.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/lane_state.h"
#include "daemon/log.h"
#include "daemon/persist.h"
#include "daemon/warm.h"
#include "ipc/segment.h"

#define BUFFER_BYTES (1u << 20)

struct saving {
	const struct lane *lane;
	struct warm_header h;
	uint16_t *ns_number; /* owned, [ns_end]: which one it is among the pieces */
	int fd;
	uint8_t *buf; /* owned, BUFFER_BYTES */
	uint32_t used;
	uint64_t off;	    /* of buf in the file */
	XXH3_state_t *xxh3; /* owned */
	int error;
};

/* ---- bytes ---- */

static int write_at(int fd, const uint8_t *bytes, uint64_t count, uint64_t off)
{
	while (count) {
		ssize_t n = pwrite(fd, bytes, count, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		bytes += n;
		off += (uint64_t)n;
		count -= (uint64_t)n;
	}
	return 0;
}

static void flush(struct saving *s)
{
	if (s->error == 0)
		s->error = write_at(s->fd, s->buf, s->used, s->off);
	s->off += s->used;
	s->used = 0;
}

static void put(struct saving *s, const void *bytes, uint64_t count)
{
	const uint8_t *from = bytes;

	(void)XXH3_64bits_update(s->xxh3, bytes, count);
	while (count) {
		uint64_t n = BUFFER_BYTES - s->used;

		n = n < count ? n : count;
		memcpy(s->buf + s->used, from, n);
		s->used += (uint32_t)n;
		from += n;
		count -= n;
		if (s->used == BUFFER_BYTES)
			flush(s);
	}
}

/* ---- what there is ---- */

static const struct namespace *next_ns(const struct lane *lane, uint32_t *i)
{
	while (*i < lane->ns_end) {
		const struct namespace *ns = lane->ns[(*i)++];

		if (ns && persist_needs(ns))
			return ns;
	}
	return NULL;
}

static void count_metas(struct saving *s)
{
	const struct namespace *ns;
	uint16_t number = 0;
	size_t bytes;

	for (uint32_t i = 0; (ns = next_ns(s->lane, &i));) {
		s->ns_number[ns->id] = number++;
		s->h.metas_count++;
		s->h.metas_bytes += persist_ns_bytes(ns);
		for (unsigned k = 0; k < NS_PROFILES_MAX; k++) {
			if (!ns->profile[k].p)
				continue;
			(void)codec_profile_bytes(ns->profile[k].p, &bytes);
			s->h.metas_count++;
			s->h.metas_bytes += sizeof(struct persist_meta) + bytes;
		}
	}
}

static void count(struct saving *s)
{
	const struct lane *lane = s->lane;
	struct pool_saved_span span;
	struct pool_usage usage;
	struct stat st = { 0 };

	(void)fstat(pool_fd(lane->pool), &st); /* 0 is no pool's */
	pool_usage(lane->pool, &usage);
	s->h = (struct warm_header){
		.magic = WARM_MAGIC,
		.version = WARM_VERSION,
		.header_bytes = sizeof(s->h),
		.pool_ino = st.st_ino,
		.pool_bytes = usage.bytes,
		.pool_slab_bytes = pool_largest_bytes(lane->pool),
		.granule_bytes = lane->granule_bytes,
		.blocks_count = lane->dirty.count + lane->droppable.count + lane->clean.count,
	};
	for (uint32_t cursor = 0; pool_save_span(lane->pool, &cursor, &span);)
		s->h.spans_count++;
	count_metas(s);
	s->h.total_bytes = sizeof(s->h) + s->h.spans_count * (uint64_t)sizeof(struct warm_span) +
			   s->h.blocks_count * (uint64_t)sizeof(struct warm_block) +
			   s->h.metas_bytes;
}

/* ---- the parts ---- */

static void put_spans(struct saving *s)
{
	struct pool_saved_span span;

	for (uint32_t cursor = 0; pool_save_span(s->lane->pool, &cursor, &span);) {
		struct warm_span w = { .unit = span.unit,
				       .order = span.order,
				       .slot_granules = span.slot_granules };

		put(s, &w, sizeof(w));
	}
}

/* Among those of its namespace that are there. */
static uint8_t profile_number(const struct namespace *ns, uint8_t profile)
{
	uint8_t n = 0;

	for (unsigned k = 0; k < profile; k++)
		n += ns->profile[k].p != NULL;
	return n;
}

static void put_block(struct saving *s, uint32_t id)
{
	const struct lane *lane = s->lane;
	const struct block *b = index_block(lane->index, id), *p;
	uint32_t parent = index_parent(lane->index, id);
	struct warm_block w = {
		.raw_xxh3 = b->raw_xxh3,
		.token_hash = b->token_hash,
		.pin_until_ns = tier_pin_until_ns(b),
		.slot = b->slot,
		.record_bytes = b->record_bytes,
		.group = b->group,
		.position = b->position,
		.padding_bytes = b->padding_bytes,
		.ns = s->ns_number[b->ns],
		.profile = profile_number(lane->ns[b->ns], b->profile),
		.key_len = b->key_len,
		.flags = (uint8_t)((b->flags & BLOCK_HAS_TOKENS ? WARM_HAS_TOKENS : 0) |
				   (b->model ? WARM_MODEL : 0) |
				   (b->model_tried ? WARM_MODEL_TRIED : 0) |
				   (b->layer ? WARM_LAYER : 0)),
		.tried = b->tried,
	};

	assert(b->state == BLOCK_RESIDENT && b->slot != POOL_NONE && !b->refs);
	memcpy(w.key, b->key, sizeof(w.key));
	if (parent != BLOCK_NONE) {
		p = index_block(lane->index, parent);
		memcpy(w.parent, p->key, sizeof(w.parent));
		w.parent_len = p->key_len;
		w.parent_group = p->group;
	}
	put(s, &w, sizeof(w));
}

static void put_list(struct saving *s, const struct block_list *l)
{
	for (uint32_t id = l->head; id != BLOCK_NONE; id = block_list_next(s->lane->index, id))
		put_block(s, id);
}

/* No profile is of 4 GiB: its size is bounded where it is made. */
static void put_profile(struct saving *s, const struct namespace *ns, const struct ns_profile *np)
{
	struct persist_meta h;
	const uint8_t *bytes;
	size_t total;

	persist_profile_meta(ns, np, &h);
	bytes = codec_profile_bytes(np->p, &total);
	h.bytes = (uint32_t)total;
	put(s, &h, sizeof(h));
	put(s, bytes, total);
}

static void put_metas(struct saving *s)
{
	const struct namespace *ns;
	uint8_t *buf;

	for (uint32_t i = 0; (ns = next_ns(s->lane, &i));) {
		buf = malloc(persist_ns_bytes(ns));
		if (!buf) {
			s->error = -ENOMEM;
			return;
		}
		put(s, buf, persist_put_ns(ns, buf));
		free(buf);
		for (unsigned k = 0; k < NS_PROFILES_MAX; k++)
			if (ns->profile[k].p)
				put_profile(s, ns, &ns->profile[k]);
	}
}

/* The header last: without it, it is nothing. */
static int put_all(struct saving *s)
{
	s->off = sizeof(s->h);
	put_spans(s);
	put_list(s, &s->lane->droppable);
	put_list(s, &s->lane->dirty);
	put_list(s, &s->lane->clean);
	put_metas(s);
	flush(s);
	if (s->error < 0)
		return s->error;
	assert(s->off == s->h.total_bytes);
	s->h.body_xxh3 = XXH3_64bits_digest(s->xxh3);
	s->h.xxh3 = warm_header_xxh3(&s->h);
	return write_at(s->fd, (const uint8_t *)&s->h, sizeof(s->h), 0);
}

int warm_save(struct lane *lane, int *ret_fd)
{
	struct saving s = { .lane = lane, .fd = -1 };
	int r = -ENOMEM;

	s.buf = malloc(BUFFER_BYTES);
	s.ns_number = calloc(lane->ns_end + 1, sizeof(*s.ns_number));
	s.xxh3 = XXH3_createState();
	if (s.buf && s.ns_number && s.xxh3) {
		(void)XXH3_64bits_reset(s.xxh3);
		count(&s);
		r = segment_create("skvcd-index",
				   (s.h.total_bytes + WARM_PAGE_BYTES - 1) / WARM_PAGE_BYTES *
					   WARM_PAGE_BYTES,
				   &s.fd);
	}
	if (r == 0)
		r = put_all(&s);
	if (r < 0 && s.fd >= 0)
		(void)close(s.fd);
	if (r == 0)
		*ret_fd = s.fd;
	(void)XXH3_freeState(s.xxh3);
	free(s.ns_number);
	free(s.buf);
	return r;
}
