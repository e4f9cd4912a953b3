/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restore.c - at the start: namespaces, profiles and blocks that are found on NVMe, and with warm_restore.c in host
 * memory.  Runs before the lane's thread does.  All that comes from the file is checked; what does not fit is refused
 * by itself, and counted.
 *
 * Blocks of namespaces that nobody has opened yet are in the index like any other, under the number that the
 * namespace will have when a client opens it.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/lane_state.h"
#include "daemon/log.h"
#include "daemon/nvme_recover.h"
#include "daemon/persist.h"
#include "daemon/warm.h"

#define OLD_IDS_MAX (1u << 27)
#define TABLES_MAX 32u /* of a piece */
#define AHEAD 16u
#define PROFILE_BYTES_MAX (1ull << 30)

/* Of an id in the last life. */
struct old_block {
	uint32_t id; /* + 1; 0: not found */
	uint32_t generation;
};

/* A link whose other end has not come yet. */
struct link {
	uint32_t id, generation;
	uint32_t old_parent, old_generation; /* by these, or by key */
	struct skvc_abi_key key;	     /* len 0: by the above */
};

struct piece;

struct restoring {
	struct lane *lane;
	struct nvme_log *log;  /* the one that is read */
	struct old_block *old; /* owned mapping, OLD_IDS_MAX */
	struct piece *piece;   /* owned */
	struct link *link;     /* owned */
	size_t links_count, links_room;
	struct restore_meta meta;
	uint64_t blocks, refused;
};

/* ---- namespaces and profiles ---- */

struct namespace *restore_find_ns(const struct lane *lane, const uint8_t *digest)
{
	for (uint32_t i = 0; i < lane->ns_end; i++)
		if (lane->ns[i] && !memcmp(lane->ns[i]->digest, digest, 32))
			return lane->ns[i];
	return NULL;
}

static void take_ns(struct restore_meta *rm, const struct persist_meta *h, const uint8_t *bytes)
{
	struct lane *lane = rm->lane;
	struct lane_saved_ns saved = { 0 };
	struct codec_segment *segments;
	struct persist_ns n;
	struct namespace *ns;
	int r;

	if (h->bytes < sizeof(n) || restore_find_ns(lane, h->ns_digest))
		return;
	memcpy(&n, bytes, sizeof(n));
	if (n.segments_count > CODEC_SEGMENTS_MAX ||
	    h->bytes != sizeof(n) + n.segments_count * sizeof(*segments))
		return;
	n.tenant[sizeof(n.tenant) - 1] = n.model[sizeof(n.model) - 1] = '\0';
	segments = malloc(n.segments_count * sizeof(*segments) + 1);
	if (!segments) {
		rm->error = -ENOMEM;
		return;
	}
	memcpy(segments, bytes + sizeof(n), n.segments_count * sizeof(*segments));
	memcpy(saved.digest, h->ns_digest, sizeof(saved.digest));
	memcpy(saved.tenant, n.tenant, sizeof(saved.tenant));
	memcpy(saved.tag, n.tag, sizeof(saved.tag));
	memcpy(saved.model, n.model, sizeof(saved.model));
	saved.block_tokens = n.block_tokens;
	saved.segments_count = n.segments_count;
	saved.segments = segments;
	r = lane->restore.ns(lane->restore.user, &saved, &ns);
	free(segments);
	if (r < 0) {
		log_line(LOG_LEVEL_WARNING, "%s: blocks of model %s, tenant %s, are forgotten: %s",
			 rm->where, saved.model, saved.tenant,
			 r == -ESTALE ? "no such tenant is configured, or the secret is another one"
				      : strerror(-r));
		return;
	}
	quota_know(lane, ns->tenant);
	lane->ns[ns->id] = ns;
	if (ns->id >= lane->ns_end)
		lane->ns_end = ns->id + 1;
}

/* All of its bytes are here. */
static void make_profile(struct restore_meta *rm, const struct persist_meta *h,
			 struct namespace *ns)
{
	struct profile_saved saved = { .number = h->number,
				       .newest = h->newest != 0 && !ns->newest,
				       .tokens = h->tokens,
				       .promised = { h->promised[0], h->promised[1] } };
	struct codec_profile *p = NULL;
	struct ns_profile *np;
	int r = codec_profile_parse(&ns->geom, rm->profile, rm->profile_bytes, &p);

	if (r == 0 && memcmp(codec_profile_digest(p), h->profile_digest, 32) != 0)
		r = -EBADMSG;
	if (r == 0)
		r = profiles_restore(rm->lane, ns, p, &saved, &np);
	if (r < 0)
		codec_profile_free(p);
}

static void take_profile(struct restore_meta *rm, const struct persist_meta *h,
			 const uint8_t *bytes)
{
	struct namespace *ns = restore_find_ns(rm->lane, h->ns_digest);

	if (!ns || profiles_find(ns, h->profile_digest)) /* another log had it */
		return;
	if (!h->number || h->total_bytes > PROFILE_BYTES_MAX || !h->total_bytes ||
	    h->off > h->total_bytes || h->bytes > h->total_bytes - h->off)
		return;
	if (h->off == 0) {
		free(rm->profile);
		rm->profile = malloc(h->total_bytes);
		rm->profile_bytes = 0;
		rm->profile_total = h->total_bytes;
		memcpy(rm->profile_digest, h->profile_digest, sizeof(rm->profile_digest));
	}
	if (!rm->profile || h->off != rm->profile_bytes || h->total_bytes != rm->profile_total ||
	    memcmp(rm->profile_digest, h->profile_digest, sizeof(rm->profile_digest)) != 0)
		return; /* a part of it is missing */
	memcpy(rm->profile + h->off, bytes, h->bytes);
	rm->profile_bytes += h->bytes;
	if (rm->profile_bytes < h->total_bytes)
		return;
	make_profile(rm, h, ns);
	free(rm->profile);
	rm->profile = NULL;
	rm->profile_bytes = 0;
}

void restore_meta_take(struct restore_meta *rm, const uint8_t *bytes, uint32_t count)
{
	struct persist_meta h;

	if (count < sizeof(h))
		return;
	memcpy(&h, bytes, sizeof(h));
	if (h.bytes != count - sizeof(h))
		return;
	if (h.kind == PERSIST_META_NS)
		take_ns(rm, &h, bytes + sizeof(h));
	else if (h.kind == PERSIST_META_PROFILE)
		take_profile(rm, &h, bytes + sizeof(h));
}

void restore_meta_end(struct restore_meta *rm)
{
	free(rm->profile);
	rm->profile = NULL;
}

/* ---- blocks ---- */

struct saved_block {
	struct skvc_abi_key key;
	struct nvme_place place;
	uint64_t raw_xxh3, token_hash;
	uint32_t position, padding;
	struct ns_profile *profile;
	uint8_t has_tokens, model, layer;
};

/* Another record of this key: 0: that goes; -EALREADY: it is the same one; -EEXIST: it is newer. */
static int replaces(struct lane *lane, uint32_t id, const struct nvme_place *place)
{
	struct nvme_place is;

	if (nvme_set_place(lane->log, id, &is) < 0)
		return -EEXIST;
	if (is.sequence == place->sequence && is.off_sectors == place->off_sectors)
		return -EALREADY;
	return is.sequence > place->sequence || (is.sequence == place->sequence &&
						 is.off_sectors > place->off_sectors)
		       ? -EEXIST
		       : 0;
}

static int lengths_ok(const struct lane *lane, const struct namespace *ns,
		      const struct saved_block *v)
{
	uint64_t bytes = (uint64_t)v->place.sectors * 512;
	uint64_t head = record_payload_off(v->has_tokens ? ns->geom.block_tokens : 0);

	return v->padding < lane->granule_bytes && bytes % lane->granule_bytes == 0 &&
	       bytes > head + v->padding && bytes <= pool_largest_bytes(lane->pool);
}

/* Into the index and the log: 0, or why not; then nothing has changed. */
static int put(struct restoring *rs, struct namespace *ns, const struct saved_block *v,
	       uint32_t bucket, uint32_t *ret_id)
{
	struct lane *lane = rs->lane;
	struct block *b;
	int r;

	r = index_insert_at(lane->index, bucket, ns->id, &v->key, ret_id);
	if (r < 0)
		return r;
	b = index_block(lane->index, *ret_id);
	b->raw_xxh3 = v->raw_xxh3;
	b->token_hash = v->token_hash;
	b->flags = v->has_tokens ? BLOCK_HAS_TOKENS : 0;
	b->model = v->model;
	b->layer = v->layer;
	b->position = v->position;
	b->record_bytes = v->place.sectors * 512;
	b->padding_bytes = (uint16_t)v->padding;
	r = nvme_set_restore(lane->log, rs->log, *ret_id, &v->place);
	if (r == 0) {
		profiles_set_block(lane, b, v->profile);
		r = tier_restore(lane, *ret_id);
		if (r == 0) {
			rs->blocks++;
			return 0;
		}
		profiles_set_block(lane, b, NULL);
		nvme_set_forget(lane->log, *ret_id);
	}
	index_unlink(lane->index, *ret_id);
	index_release(lane->index, *ret_id);
	return r;
}

static int make_block(struct restoring *rs, struct namespace *ns, const struct saved_block *v,
		      uint32_t bucket, uint32_t *ret_id)
{
	struct lane *lane = rs->lane;
	uint32_t id;
	int r;

	if (!v->key.len || v->key.len > SKVC_ABI_KEY_BYTES || !lengths_ok(lane, ns, v))
		return -EBADMSG;
	id = index_find_at(lane->index, bucket, ns->id, &v->key);
	if (id != BLOCK_NONE) {
		r = replaces(lane, id, &v->place);
		if (r < 0)
			return r;
		tier_forget(lane, id);
		rs->blocks--;
	}
	return put(rs, ns, v, bucket, ret_id);
}

static void later(struct restoring *rs, const struct link *l)
{
	if (rs->links_count == rs->links_room) {
		size_t room = rs->links_room ? 2 * rs->links_room : 1024;
		struct link *p = realloc(rs->link, room * sizeof(*p));

		if (!p) /* a lookup links it again, where it matters */
			return;
		rs->link = p;
		rs->links_room = room;
	}
	rs->link[rs->links_count++] = *l;
}

/* 1: done, or never; 0: its parent is not here. */
static int link_now(struct restoring *rs, const struct link *l)
{
	struct lane *lane = rs->lane;
	uint32_t parent = BLOCK_NONE;

	if (index_block(lane->index, l->id)->generation != l->generation ||
	    index_block(lane->index, l->id)->state != BLOCK_NVME)
		return 1;
	if (l->key.len)
		parent = index_find(lane->index, index_block(lane->index, l->id)->ns, &l->key);
	else if (rs->old[l->old_parent].id &&
		 rs->old[l->old_parent].generation == l->old_generation)
		parent = rs->old[l->old_parent].id - 1;
	if (parent == BLOCK_NONE)
		return 0;
	if (index_parent(lane->index, l->id) != BLOCK_NONE ||
	    index_block(lane->index, parent)->state != BLOCK_NVME ||
	    !tier_may_link(lane, l->id, parent))
		return 1;
	tier_link(lane, l->id, parent);
	return 1;
}

/* ---- from the checkpoint ---- */

struct table {
	struct namespace *ns;
	struct ns_profile *profile[NS_PROFILES_MAX];
};

static void read_tables(const struct lane *lane, const uint8_t *bytes, uint32_t count,
			struct table *ret)
{
	static const uint8_t none[32];
	struct persist_table t;

	for (uint32_t i = 0; i < count; i++) {
		memcpy(&t, bytes + sizeof(struct persist_piece) + i * sizeof(t), sizeof(t));
		ret[i] = (struct table){ .ns = restore_find_ns(lane, t.ns_digest) };
		for (unsigned k = 0; ret[i].ns && k < NS_PROFILES_MAX; k++)
			if (memcmp(t.profile_digest[k], none, 32) != 0)
				ret[i].profile[k] = profiles_find(ret[i].ns, t.profile_digest[k]);
	}
}

struct piece {
	const uint8_t *bytes;
	uint32_t off[PERSIST_COLUMN_COUNT + 1];
	struct persist_piece h;
	struct table tables[TABLES_MAX];
	uint32_t bucket[PERSIST_ENTRIES_MAX];
};

#define GET(p, column, i, field)                                                                \
	memcpy(&(field), (p)->bytes + (p)->off[PERSIST_##column] + (size_t)(i) * sizeof(field), \
	       sizeof(field))

/* NULL: nobody knows it any more. */
static const struct table *table_of(const struct piece *p, uint32_t i)
{
	uint8_t table;

	GET(p, TABLE, i, table);
	return table < p->h.tables && p->tables[table].ns ? &p->tables[table] : NULL;
}

static void get_key(const struct piece *p, uint32_t i, struct skvc_abi_key *ret)
{
	GET(p, KEY, i, ret->bytes);
	GET(p, KEY_LEN, i, ret->len);
	GET(p, GROUP, i, ret->group);
}

/* What is about to be looked at lies all over memory. */
static void prefetch(const struct restoring *rs, struct piece *p)
{
	const struct lane *lane = rs->lane;
	uint32_t segment;

	for (uint32_t i = 0; i < p->h.count; i++) {
		const struct table *t = table_of(p, i);
		struct skvc_abi_key key = { 0 };

		get_key(p, i, &key);
		p->bucket[i] = index_bucket(lane->index, t ? t->ns->id : 0, &key);
		index_prefetch(lane->index, p->bucket[i], 0);
		GET(p, SEGMENT, i, segment);
		nvme_log_prefetch(rs->log, segment, 0);
	}
}

static void prefetch_next(const struct restoring *rs, const struct piece *p, uint32_t i)
{
	uint32_t segment;

	if (i >= p->h.count)
		return;
	index_prefetch(rs->lane->index, p->bucket[i], 1);
	GET(p, SEGMENT, i, segment);
	nvme_log_prefetch(rs->log, segment, 1);
}

/* 0, or it is refused. */
static int make_entry(struct restoring *rs, const struct piece *p, uint32_t i, uint32_t *ret_id)
{
	const struct table *t = table_of(p, i);
	struct saved_block v = { 0 };
	uint8_t profile, flags;
	uint16_t padding;

	if (!t)
		return -ENOENT;
	get_key(p, i, &v.key);
	GET(p, PROFILE, i, profile);
	GET(p, FLAGS, i, flags);
	GET(p, RAW_XXH3, i, v.raw_xxh3);
	GET(p, TOKEN_HASH, i, v.token_hash);
	GET(p, SEQUENCE, i, v.place.sequence);
	GET(p, SEGMENT, i, v.place.segment);
	GET(p, OFF_SECTORS, i, v.place.off_sectors);
	GET(p, SECTORS, i, v.place.sectors);
	GET(p, POSITION, i, v.position);
	GET(p, PADDING, i, padding);
	v.padding = padding;
	v.has_tokens = flags & PERSIST_HAS_TOKENS;
	v.model = !!(flags & PERSIST_MODEL);
	v.layer = !!(flags & PERSIST_LAYER);
	if (profile > NS_PROFILES_MAX)
		return -EBADMSG;
	v.profile = profile ? t->profile[profile - 1] : NULL;
	if ((profile || v.model) && !v.profile)
		return -ENOENT;
	return make_block(rs, t->ns, &v, p->bucket[i], ret_id);
}

static void take_entry(struct restoring *rs, const struct piece *p, uint32_t i)
{
	struct link l = { 0 };
	uint32_t old, generation;

	if (make_entry(rs, p, i, &l.id) < 0) {
		rs->refused++;
		return;
	}
	GET(p, ID, i, old);
	GET(p, GENERATION, i, generation);
	GET(p, PARENT, i, l.old_parent);
	GET(p, PARENT_GENERATION, i, l.old_generation);
	if (old < OLD_IDS_MAX)
		rs->old[old] = (struct old_block){ .id = l.id + 1, .generation = generation };
	if (l.old_parent >= OLD_IDS_MAX)
		return;
	l.generation = index_block(rs->lane->index, l.id)->generation;
	if (!link_now(rs, &l))
		later(rs, &l);
}

static void take_index(struct restoring *rs, const uint8_t *bytes, uint32_t count)
{
	struct piece *p = rs->piece;

	if (count < sizeof(p->h))
		return;
	p->bytes = bytes;
	memcpy(&p->h, bytes, sizeof(p->h));
	if (p->h.count > PERSIST_ENTRIES_MAX || p->h.tables > TABLES_MAX)
		return;
	persist_columns(p->h.count, p->h.tables, p->off);
	if (p->off[PERSIST_COLUMN_COUNT] != count)
		return;
	read_tables(rs->lane, bytes, p->h.tables, p->tables);
	prefetch(rs, p);
	for (uint32_t i = 0; i < AHEAD; i++)
		prefetch_next(rs, p, i);
	for (uint32_t i = 0; i < p->h.count; i++) {
		prefetch_next(rs, p, i + AHEAD);
		take_entry(rs, p, i);
	}
}
#undef GET

static void on_piece(void *user, enum nvme_blob kind, const uint8_t *bytes, uint32_t count)
{
	struct restoring *rs = user;

	if (kind == NVME_BLOB_META)
		restore_meta_take(&rs->meta, bytes, count);
	else
		take_index(rs, bytes, count);
}

/* ---- from records ---- */

static int on_record(void *user, const struct record_header *h, const struct nvme_place *place)
{
	static const uint8_t none[32];
	struct restoring *rs = user;
	struct namespace *ns = restore_find_ns(rs->lane, h->ns_digest);
	struct saved_block v = {
		.key = { .len = h->key_len, .group = h->group },
		.place = *place,
		.raw_xxh3 = h->raw_xxh3,
		.token_hash = h->token_hash,
		.position = h->position,
		.has_tokens = h->flags & RECORD_HAS_TOKENS,
		.model = h->speculator == CODEC_SPEC_MODEL,
		.layer = h->speculator == CODEC_SPEC_LAYER,
	};
	struct link l = { .key = { .len = h->parent_len, .group = h->parent_group } };
	uint32_t id;
	int r;

	if (!ns || h->raw_bytes != ns->geom.raw_bytes ||
	    h->tokens_count != (v.has_tokens ? ns->geom.block_tokens : 0))
		return -ENOENT;
	if (memcmp(h->profile_digest, none, sizeof(none)) != 0) {
		v.profile = profiles_find(ns, h->profile_digest);
		if (!v.profile)
			return -ENOENT;
	}
	if (v.model && !v.profile)
		return -EBADMSG;
	memcpy(v.key.bytes, h->key, sizeof(v.key.bytes));
	v.padding = (uint32_t)((uint64_t)place->sectors * 512 - record_bytes(h));
	r = make_block(rs, ns, &v, index_bucket(rs->lane->index, ns->id, &v.key), &id);
	if (r == -EALREADY || r == -EEXIST)
		return 0;
	if (r < 0)
		return r;
	if (!h->parent_len)
		return 0;
	memcpy(l.key.bytes, h->parent, sizeof(l.key.bytes));
	l.id = id;
	l.generation = index_block(rs->lane->index, id)->generation;
	if (!link_now(rs, &l))
		later(rs, &l);
	return 0;
}

/* The log has forgotten it already. */
static void on_forgotten(void *user, uint32_t id)
{
	struct restoring *rs = user;

	rs->blocks--;
	tier_forget(rs->lane, id);
}

/* ---- the whole ---- */

/* Those that no block needs go again. */
static void drop_profiles(struct lane *lane)
{
	for (uint32_t i = 0; i < lane->ns_end; i++)
		for (unsigned k = 0; lane->ns[i] && k < NS_PROFILES_MAX; k++)
			if (lane->ns[i]->profile[k].p)
				profiles_drop(lane, &lane->ns[i]->profile[k]);
}

static void report(const struct lane *lane, const struct nvme_recovered *found, uint64_t start_ns)
{
	uint64_t refused = stats_get(&lane->stats, STAT_NVME_REFUSED_BLOCKS);

	log_line(LOG_LEVEL_NOTICE,
		 "NVMe: %" PRIu64 " blocks found in %.3f s (checkpoint of %" PRIu64 " KiB, %" PRIu64
		 " records and %" PRIu64 " MiB behind it)%s",
		 stats_get(&lane->stats, STAT_BLOCKS_NVME),
		 (double)(clock_now_ns() - start_ns) / 1e9, found->checkpoint_bytes >> 10,
		 found->records, found->tail_bytes >> 20,
		 found->has_checkpoint ? "" : "; there was no checkpoint");
	if (refused || found->pieces_damaged || found->segments_damaged)
		log_line(
			LOG_LEVEL_WARNING,
			"NVMe: %" PRIu64 " records and %" PRIu64
			" pieces of the index were damaged or of no use, %u segments could not be read",
			refused, found->pieces_damaged, found->segments_damaged);
}

static void add(struct nvme_recovered *all, const struct nvme_recovered *one)
{
	all->records += one->records;
	all->records_refused += one->records_refused;
	all->forgotten += one->forgotten;
	all->pieces_damaged += one->pieces_damaged;
	all->tail_bytes += one->tail_bytes;
	all->checkpoint_bytes += one->checkpoint_bytes;
	all->segments_damaged += one->segments_damaged;
	all->has_checkpoint |= one->has_checkpoint;
}

/*
 * One log after the other.  Ids in a checkpoint are those of the life that wrote it, which may be another one for
 * each: parents are found by them within one log only, and across logs by keys, or when they are looked up.
 */
static int read_logs(struct restoring *rs, struct nvme_recovered *ret)
{
	const struct nvme_recover_ops ops = {
		.piece = on_piece, .record = on_record, .forgotten = on_forgotten, .user = rs
	};
	struct nvme_recovered one;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < nvme_set_logs(rs->lane->log); i++) {
		rs->log = nvme_set_log(rs->lane->log, i);
		r = nvme_log_recover(rs->log, &ops, &one);
		for (size_t k = 0; k < rs->links_count; k++)
			(void)link_now(rs, &rs->link[k]);
		rs->links_count = 0;
		(void)madvise(rs->old, OLD_IDS_MAX * sizeof(*rs->old), MADV_DONTNEED);
		add(ret, &one);
	}
	return r;
}

static int restore_nvme(struct lane *lane, char *err, unsigned err_bytes)
{
	struct restoring rs = { .lane = lane, .meta = { .lane = lane, .where = "NVMe" } };
	uint64_t start_ns = clock_now_ns();
	struct nvme_recovered found = { 0 };
	int r = -ENOMEM;

	rs.old = mmap(NULL, OLD_IDS_MAX * sizeof(*rs.old), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	rs.piece = malloc(sizeof(*rs.piece));
	if (rs.old != MAP_FAILED && rs.piece)
		r = read_logs(&rs, &found);
	if (rs.old != MAP_FAILED)
		(void)munmap(rs.old, OLD_IDS_MAX * sizeof(*rs.old));
	free(rs.piece);
	if (r == 0)
		r = rs.meta.error;
	restore_meta_end(&rs.meta);
	free(rs.link);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "reading the NVMe log's index: %s", strerror(-r));
		return r;
	}
	stats_add(&lane->stats, STAT_NVME_RESTORED_BLOCKS, rs.blocks);
	stats_add(&lane->stats, STAT_NVME_REFUSED_BLOCKS, found.records_refused + rs.refused);
	lane->persist.dirty = found.records > 0 || found.forgotten > 0 ? UINT8_MAX : 0;
	lane->persist.changed_ns = lane->now_ns;
	for (unsigned i = 0; i < NVME_SET_MAX; i++)
		lane->persist.written_ns[i] = lane->now_ns;
	if (rs.blocks || found.records || found.has_checkpoint)
		report(lane, &found, start_ns);
	return 0;
}

/*
 * Names and profiles of host memory come first: which profile is the newest it knows better.  Its blocks come last:
 * of what is in both places, NVMe knows where.
 */
int restore_run(struct lane *lane, char *err, unsigned err_bytes)
{
	struct warm_restore *warm;
	int r;

	lane->now_ns = clock_now_ns();
	r = warm_restore_begin(lane, &warm);
	if (r == 0 && persist_keeps(lane))
		r = restore_nvme(lane, err, err_bytes);
	else if (r < 0)
		(void)snprintf(err, err_bytes, "reading the index of host memory: %s",
			       strerror(-r));
	if (r == 0)
		warm_restore_blocks(warm);
	(void)warm_restore_end(warm);
	drop_profiles(lane);
	return r;
}
