/* SPDX-License-Identifier: Apache-2.0 */
/*
 * warm_restore.c - blocks that the last life of the daemon left in host memory, taken over.  Runs before the lane's
 * thread does.  Each entry of the index is checked against the pool, and against the head of the record that lies
 * there; the payload's checksum is compared when it is loaded, as always.
 *
 * A block that is on NVMe too keeps both places when they agree.  When not, host memory is right: it was what the last
 * life served.
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
#include "daemon/record.h"
#include "daemon/warm.h"

#define AHEAD 8u /* records whose heads are asked of memory before they are looked at */

/* A namespace among the pieces, and the profiles behind it. */
struct table {
	struct namespace *ns; /* NULL: refused */
	struct ns_profile *profile[NS_PROFILES_MAX];
	unsigned profiles_count;
};

struct warm_restore {
	struct lane *lane;
	struct warm_index index;
	struct restore_meta meta;
	struct table *table; /* owned */
	uint32_t tables_count;
	uint32_t *
		id; /* owned, [blocks_count]: its id in the index; BLOCK_NONE: refused, or no slot */
	uint64_t start_ns;
	uint64_t blocks, bytes, refused;
};

/* ---- does it fit ---- */

void warm_refuse_pool(struct lane *lane)
{
	log_line(
		LOG_LEVEL_NOTICE,
		"host memory: the pool that was kept is not of the size that is configured: it starts empty");
	(void)close(lane->restore.pool_fd - 1);
	lane->restore.pool_fd = 0;
	if (lane->restore.pool_refused)
		lane->restore.pool_refused(lane->restore.user);
}

static int is_of_pool(const struct lane *lane, const struct warm_header *h)
{
	struct pool_usage usage;
	struct stat st;

	pool_usage(lane->pool, &usage);
	return fstat(pool_fd(lane->pool), &st) == 0 && st.st_ino == h->pool_ino &&
	       usage.bytes == h->pool_bytes &&
	       pool_largest_bytes(lane->pool) == h->pool_slab_bytes &&
	       lane->granule_bytes == h->granule_bytes;
}

static const char *why_not(int r)
{
	switch (r) {
	case -ENODATA:
		return "was not written to its end, or has been used";
	case -EPROTONOSUPPORT:
		return "is of another version";
	case -ESTALE:
		return "is of another pool, or of other alignment";
	default:
		return "is damaged";
	}
}

/* 1: there is an index, and it is of this pool; 0: there is none. */
static int read_index(struct lane *lane, struct warm_index *ret)
{
	int r;

	if (!lane->pool_kept)
		return 0;
	if (!lane->restore.index_fd) {
		log_line(
			LOG_LEVEL_NOTICE,
			"host memory: the last daemon did not stop in order: its pool starts empty");
		return 0;
	}
	r = warm_read(lane->restore.index_fd - 1, ret);
	if (r == 0 && !is_of_pool(lane, &ret->h)) {
		warm_index_end(ret);
		r = -ESTALE;
	}
	if (r == -ENOMEM)
		return r;
	if (r < 0)
		log_line(LOG_LEVEL_WARNING,
			 "host memory: the index of the pool that was kept %s: it starts empty",
			 why_not(r));
	return r == 0;
}

/* ---- namespaces and profiles ---- */

static void take_metas(struct warm_restore *w)
{
	struct table *t = NULL;
	uint64_t cursor = 0;
	const uint8_t *bytes;
	struct persist_meta h;
	uint32_t n;

	while (warm_next_meta(&w->index, &cursor, &bytes, &n)) {
		memcpy(&h, bytes, sizeof(h));
		restore_meta_take(&w->meta, bytes, n);
		if (h.kind == PERSIST_META_NS) {
			t = &w->table[w->tables_count++];
			t->ns = restore_find_ns(w->lane, h.ns_digest);
		} else if (t && t->ns && t->profiles_count < NS_PROFILES_MAX) {
			t->profile[t->profiles_count++] = profiles_find(t->ns, h.profile_digest);
		}
	}
}

int warm_restore_begin(struct lane *lane, struct warm_restore **ret)
{
	struct warm_index index = { 0 };
	uint64_t start_ns = clock_now_ns();
	struct warm_restore *w;
	int r = read_index(lane, &index);

	*ret = NULL;
	if (r <= 0)
		return r;
	w = calloc(1, sizeof(*w));
	if (!w) {
		warm_index_end(&index);
		return -ENOMEM;
	}
	w->lane = lane;
	w->index = index;
	w->start_ns = start_ns;
	w->meta = (struct restore_meta){ .lane = lane, .where = "host memory" };
	w->table = calloc(index.h.metas_count + 1, sizeof(*w->table));
	w->id = malloc((index.h.blocks_count + 1) * sizeof(*w->id));
	if (!w->table || !w->id) {
		(void)warm_restore_end(w);
		return -ENOMEM;
	}
	take_metas(w);
	*ret = w;
	return w->meta.error; /* the caller ends it */
}

/* ---- slots ---- */

static int entry_ok(const struct warm_restore *w, const struct warm_block *e)
{
	uint32_t granule = w->lane->granule_bytes;

	return e->key_len && e->key_len <= SKVC_ABI_KEY_BYTES &&
	       e->parent_len <= SKVC_ABI_KEY_BYTES && e->ns < w->tables_count &&
	       w->table[e->ns].ns && e->profile <= w->table[e->ns].profiles_count &&
	       e->record_bytes % granule == 0 && e->padding_bytes < granule &&
	       e->record_bytes >= sizeof(struct record_header) + e->padding_bytes;
}

/* All of them before the first block: from then on the pool is one like any other. */
static void take_slots(struct warm_restore *w)
{
	struct pool *pool = w->lane->pool;

	for (uint32_t i = 0; i < w->index.h.spans_count; i++) {
		const struct warm_span *s = &w->index.spans[i];

		(void)pool_restore_span(
			pool, &(struct pool_saved_span){ .unit = s->unit,
							 .order = s->order,
							 .slot_granules = s->slot_granules });
	}
	for (uint32_t i = 0; i < w->index.h.blocks_count; i++) {
		const struct warm_block *e = &w->index.blocks[i];

		w->id[i] = BLOCK_NONE;
		if (entry_ok(w, e) &&
		    pool_restore_slot(pool, e->slot, e->record_bytes, BLOCK_NONE) == 0)
			w->id[i] = 0; /* it has its slot */
	}
	pool_restore_end(pool);
}

/* ---- blocks ---- */

static struct ns_profile *profile_of(const struct warm_restore *w, const struct warm_block *e)
{
	return e->profile ? w->table[e->ns].profile[e->profile - 1] : NULL;
}

/* Does the record in the slot begin like the one that the entry is of? */
static int record_is(const struct record_header *h, const struct warm_block *e,
		     const struct namespace *ns, const struct ns_profile *np)
{
	static const uint8_t none[32];
	const uint8_t *profile = np ? codec_profile_digest(np->p) : none;
	int has_tokens = e->flags & WARM_HAS_TOKENS;

	return h->magic == RECORD_MAGIC && h->version == RECORD_VERSION &&
	       h->header_bytes == sizeof(*h) && h->key_len == e->key_len && h->group == e->group &&
	       !memcmp(h->key, e->key, sizeof(h->key)) &&
	       !memcmp(h->ns_digest, ns->digest, sizeof(h->ns_digest)) &&
	       !memcmp(h->profile_digest, profile, sizeof(h->profile_digest)) &&
	       h->raw_xxh3 == e->raw_xxh3 && h->raw_bytes == ns->geom.raw_bytes &&
	       !!(h->flags & RECORD_HAS_TOKENS) == !!has_tokens && h->token_hash == e->token_hash &&
	       h->tokens_count == (has_tokens ? ns->geom.block_tokens : 0) &&
	       record_bytes(h) + e->padding_bytes == e->record_bytes &&
	       (h->speculator == CODEC_SPEC_MODEL) == !!(e->flags & WARM_MODEL) &&
	       (h->speculator == CODEC_SPEC_LAYER) == !!(e->flags & WARM_LAYER);
}

/* What NVMe has of this key is the same block, coded the same way. */
static int is_same(const struct lane *lane, const struct block *b, const struct warm_block *e,
		   const struct ns_profile *np)
{
	return b->state == BLOCK_NVME && b->raw_xxh3 == e->raw_xxh3 &&
	       b->token_hash == e->token_hash && b->record_bytes == e->record_bytes &&
	       b->padding_bytes == e->padding_bytes &&
	       !(b->flags & BLOCK_HAS_TOKENS) == !(e->flags & WARM_HAS_TOKENS) &&
	       b->model == !!(e->flags & WARM_MODEL) && b->layer == !!(e->flags & WARM_LAYER) &&
	       profiles_of_block(lane, b) == np;
}

/* Its slot is handed out already, and stays with the caller when this fails. */
static int make_block(struct warm_restore *w, const struct warm_block *e, struct ns_profile *np,
		      const struct skvc_abi_key *key, uint32_t *ret_id)
{
	struct lane *lane = w->lane;
	struct block *b;
	int r = index_insert(lane->index, w->table[e->ns].ns->id, key, ret_id);

	if (r < 0)
		return r;
	b = index_block(lane->index, *ret_id);
	b->raw_xxh3 = e->raw_xxh3;
	b->token_hash = e->token_hash;
	b->flags = e->flags & WARM_HAS_TOKENS ? BLOCK_HAS_TOKENS : 0;
	b->model = !!(e->flags & WARM_MODEL);
	b->model_tried = !!(e->flags & WARM_MODEL_TRIED);
	b->layer = !!(e->flags & WARM_LAYER);
	b->tried = e->tried;
	b->position = e->position;
	b->record_bytes = e->record_bytes;
	b->padding_bytes = e->padding_bytes;
	b->slot = e->slot;
	quota_pin(lane, b, e->pin_until_ns, 0);
	profiles_set_block(lane, b, np);
	r = tier_restore_host(lane, *ret_id);
	if (r == 0)
		return 0;
	profiles_set_block(lane, b, NULL);
	quota_pin(lane, b, 0, 0);
	b->slot = POOL_NONE;
	index_unlink(lane->index, *ret_id);
	index_release(lane->index, *ret_id);
	return r;
}

static int take_block(struct warm_restore *w, const struct warm_block *e, uint32_t *ret_id)
{
	const struct table *t = &w->table[e->ns];
	struct skvc_abi_key key = { .len = e->key_len, .group = e->group };
	struct ns_profile *np = profile_of(w, e);
	struct lane *lane = w->lane;
	struct record_header h;
	struct block *b;

	if (!np && (e->profile || e->flags & WARM_MODEL))
		return -ENOENT;
	memcpy(&h, pool_ptr(lane->pool, e->slot), sizeof(h));
	if (!record_is(&h, e, t->ns, np))
		return -EBADMSG;
	memcpy(key.bytes, e->key, sizeof(key.bytes));
	*ret_id = index_find(lane->index, t->ns->id, &key);
	if (*ret_id == BLOCK_NONE)
		return make_block(w, e, np, &key, ret_id);
	b = index_block(lane->index, *ret_id);
	if (b->state != BLOCK_NVME)
		return -EEXIST; /* twice in one index */
	if (!is_same(lane, b, e, np)) {
		tier_forget(lane, *ret_id);
		return make_block(w, e, np, &key, ret_id);
	}
	b->slot = e->slot;
	quota_pin(lane, b, e->pin_until_ns, 0);
	return tier_restore_host(lane, *ret_id);
}

static void prefetch(const struct warm_restore *w, uint32_t i)
{
	if (i < w->index.h.blocks_count && w->id[i] != BLOCK_NONE)
		__builtin_prefetch(pool_ptr(w->lane->pool, w->index.blocks[i].slot));
}

static void take_blocks(struct warm_restore *w)
{
	struct pool *pool = w->lane->pool;
	uint32_t id;

	for (uint32_t i = 0; i < w->index.h.blocks_count; i++) {
		const struct warm_block *e = &w->index.blocks[i];

		prefetch(w, i + AHEAD);
		if (w->id[i] == BLOCK_NONE) {
			w->refused++;
			continue;
		}
		w->id[i] = BLOCK_NONE;
		if (take_block(w, e, &id) < 0) {
			pool_release(pool, e->slot);
			w->refused++;
			continue;
		}
		pool_set_owner(pool, e->slot, id);
		w->id[i] = id;
		w->blocks++;
		w->bytes += e->record_bytes;
	}
}

/* Now that all are here.  One that was on NVMe only may be the parent, too. */
static void link_parents(struct warm_restore *w)
{
	struct index *ix = w->lane->index;
	struct skvc_abi_key key = { 0 };

	for (uint32_t i = 0; i < w->index.h.blocks_count; i++) {
		const struct warm_block *e = &w->index.blocks[i];
		uint32_t parent;

		if (w->id[i] == BLOCK_NONE || !e->parent_len ||
		    index_parent(ix, w->id[i]) != BLOCK_NONE)
			continue;
		key.len = e->parent_len;
		key.group = e->parent_group;
		memcpy(key.bytes, e->parent, sizeof(key.bytes));
		parent = index_find(ix, w->table[e->ns].ns->id, &key);
		if (parent != BLOCK_NONE && tier_may_link(w->lane, w->id[i], parent))
			tier_link(w->lane, w->id[i], parent);
	}
}

void warm_restore_blocks(struct warm_restore *w)
{
	uint64_t took_ns;

	if (!w)
		return;
	take_slots(w);
	take_blocks(w);
	link_parents(w);
	took_ns = clock_now_ns() - w->start_ns;
	stats_add(&w->lane->stats, STAT_HOST_RESTORED_BLOCKS, w->blocks);
	stats_add(&w->lane->stats, STAT_HOST_REFUSED_BLOCKS, w->refused);
	stats_add(&w->lane->stats, STAT_HOST_RESTORE_NS, took_ns);
	log_line(LOG_LEVEL_NOTICE,
		 "host memory: %" PRIu64 " blocks of %" PRIu64 " MiB found in %.3f s", w->blocks,
		 w->bytes >> 20, (double)took_ns / 1e9);
	if (w->refused)
		log_line(LOG_LEVEL_WARNING,
			 "host memory: %" PRIu64
			 " blocks were damaged, above a quota, or not known what for",
			 w->refused);
}

struct warm_restore *warm_restore_end(struct warm_restore *w)
{
	if (!w)
		return NULL;
	restore_meta_end(&w->meta);
	warm_index_end(&w->index);
	free(w->table);
	free(w->id);
	free(w);
	return NULL;
}
