/* SPDX-License-Identifier: Apache-2.0 */
/*
 * persist.c - when the index, namespaces and profiles are written to NVMe, and their pieces: persist.h.
 *
 * Meta is written as soon as a record needs a namespace or a profile that it does not have; until that is done,
 * the record would be refused at a start.  The checkpoint is written when nothing else is asked for, when there is
 * much behind the last one, and at the stop.  Both go out a piece a turn, and blocks come and go meanwhile: what
 * the checkpoint has missed is in the log's tail, which is read too (nvme_recover.h).
 */
#include "daemon/persist.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/lane_state.h"
#include "daemon/log.h"
#include "daemon/record.h"
#include "daemon/registry.h"

#define LOOK_NS 50000000ull
#define RETRY_NS 1000000000ull
#define META_TOO_LARGE_NS \
	600000000000ull		   /* a try costs what it may be of the log, and blocks there */
#define IDLE_NS 2000000000ull	   /* without a change: then it is a good time */
#define IDLE_MAX_NS 60000000000ull /* and at the latest after this, when little is behind */
#define TAIL_MIN_BYTES (64ull << 20)
#define TAIL_MAX_BYTES (1ull << 30)
#define TAIL_SHARE 8u /* as many times a checkpoint's bytes: this bounds what checkpoints cost */
#define STOP_NS_MAX 60000000000ull
#define SCAN_MAX 65536u /* entries of the index looked at for one piece */

/* ---- what is due ---- */

static int is_saved(const struct lane *lane, uint32_t in)
{
	return in && in <= lane->persist.meta_done;
}

void persist_spills(struct lane *lane, const struct block *b)
{
	const struct ns_profile *np = profiles_of_block(lane, b);

	if (!is_saved(lane, lane->ns[b->ns]->saved_in) || (np && !is_saved(lane, np->saved_in)))
		lane->persist.meta_due = 1;
}

void persist_changed(struct lane *lane)
{
	lane->persist.dirty = UINT8_MAX;
	lane->persist.changed_ns = lane->now_ns;
}

/* The parent's link may have come after the record was made, and so may its place in its sequence. */
void persist_name_parent(const struct lane *lane, uint32_t id, struct record_header *h)
{
	uint32_t parent = index_parent(lane->index, id);
	const struct block *p;

	h->position = index_block(lane->index, id)->position;
	h->parent_len = 0;
	h->parent_group = 0;
	memset(h->parent, 0, sizeof(h->parent));
	if (parent == BLOCK_NONE)
		return;
	p = index_block(lane->index, parent);
	memcpy(h->parent, p->key, sizeof(h->parent));
	h->parent_len = p->key_len;
	h->parent_group = p->group;
}

/* It was read into the block's slot: is it what the index says? */
int persist_record_ok(const struct lane *lane, uint32_t id, const struct nvme_op *op)
{
	const struct block *b = index_block(lane->index, id);
	const struct namespace *ns = lane->ns[b->ns];
	struct record_header expect = {
		.raw_xxh3 = b->raw_xxh3,
		.log_id = nvme_log_id(op->log),
		.sequence = op->sequence, /* it may have moved since */
		.group = b->group,
		.key_len = b->key_len,
		.raw_bytes = ns->geom.raw_bytes,
	};

	memcpy(expect.ns_digest, ns->digest, sizeof(expect.ns_digest));
	memcpy(expect.key, b->key, sizeof(expect.key));
	if (b->profile)
		memcpy(expect.profile_digest, codec_profile_digest(profiles_of_block(lane, b)->p),
		       sizeof(expect.profile_digest));
	return record_check(pool_ptr(lane->pool, b->slot), b->record_bytes, &expect) == 0;
}

/* ---- meta ---- */

int persist_needs(const struct namespace *ns)
{
	return ns->opened || atomic_load_explicit(&ns->blocks, memory_order_relaxed);
}

uint32_t persist_ns_bytes(const struct namespace *ns)
{
	return (uint32_t)(sizeof(struct persist_meta) + sizeof(struct persist_ns)) +
	       ns->geom.segments_count * (uint32_t)sizeof(*ns->geom.segments);
}

uint32_t persist_put_ns(const struct namespace *ns, uint8_t *buf)
{
	uint32_t segments_bytes = ns->geom.segments_count * (uint32_t)sizeof(*ns->geom.segments);
	struct persist_meta h = { .kind = PERSIST_META_NS,
				  .bytes = (uint32_t)sizeof(struct persist_ns) + segments_bytes };
	struct persist_ns n = { .block_tokens = ns->geom.block_tokens,
				.segments_count = ns->geom.segments_count };

	memcpy(h.ns_digest, ns->digest, sizeof(h.ns_digest));
	memcpy(n.tenant, ns->tenant->name, sizeof(n.tenant));
	memcpy(n.model, ns->model, sizeof(n.model));
	registry_tag(ns->tenant, n.tag);
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), &n, sizeof(n));
	memcpy(buf + sizeof(h) + sizeof(n), ns->geom.segments, segments_bytes);
	return persist_ns_bytes(ns);
}

void persist_profile_meta(const struct namespace *ns, const struct ns_profile *np,
			  struct persist_meta *ret)
{
	size_t total;

	(void)codec_profile_bytes(np->p, &total);
	*ret = (struct persist_meta){
		.kind = PERSIST_META_PROFILE,
		.total_bytes = total,
		.tokens = atomic_load_explicit(&np->tokens, memory_order_relaxed),
		.promised = { np->promised[0], np->promised[1] },
		.number = np->number,
		.newest = np == ns->newest,
	};
	memcpy(ret->ns_digest, ns->digest, sizeof(ret->ns_digest));
	memcpy(ret->profile_digest, codec_profile_digest(np->p), sizeof(ret->profile_digest));
}

static uint32_t put_ns(struct lane *lane, struct namespace *ns, uint8_t *buf)
{
	ns->saved_in = lane->persist.meta_number;
	return persist_put_ns(ns, buf);
}

/* The next part of persist.profile. */
static uint32_t put_part(struct lane *lane, const struct namespace *ns, uint8_t *buf, uint32_t cap)
{
	struct persist *s = &lane->persist;
	struct ns_profile *np = s->profile;
	struct persist_meta h;
	const uint8_t *bytes;
	size_t total;

	bytes = codec_profile_bytes(np->p, &total);
	persist_profile_meta(ns, np, &h);
	h.off = s->part_off;
	h.bytes = cap - (uint32_t)sizeof(h);
	if (h.bytes > total - s->part_off)
		h.bytes = (uint32_t)(total - s->part_off);
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), bytes + s->part_off, h.bytes);
	s->part_off += h.bytes;
	if (s->part_off == total) {
		np->saved_in = s->meta_number;
		profiles_drop(lane, np);
		s->profile = NULL;
	}
	return (uint32_t)sizeof(h) + h.bytes;
}

/* The next profile of the namespace: 1 when there is one. */
static int next_profile(struct lane *lane, struct namespace *ns)
{
	struct persist *s = &lane->persist;

	while (!s->profile && s->slot <= NS_PROFILES_MAX) {
		struct ns_profile *np = &ns->profile[s->slot++ - 1];

		if (np->p)
			s->profile = profiles_use(np);
	}
	s->part_off = 0;
	return s->profile != NULL;
}

/* Nobody needs it: it is not in this blob, and does not count as saved by it. */
static void skip_ns(struct namespace *ns)
{
	ns->saved_in = 0;
	for (unsigned i = 0; i < NS_PROFILES_MAX; i++)
		ns->profile[i].saved_in = 0;
}

static uint32_t next_meta(void *user, uint8_t *buf, uint32_t cap)
{
	struct lane *lane = user;
	struct persist *s = &lane->persist;

	for (; s->ns < lane->ns_end; s->ns++, s->slot = 0) {
		struct namespace *ns = lane->ns[s->ns];

		if (s->profile)
			return put_part(lane, ns, buf, cap);
		if (!ns)
			continue;
		if (s->slot == 0 && !persist_needs(ns)) {
			skip_ns(ns);
			continue;
		}
		if (s->slot == 0) {
			s->slot = 1;
			return put_ns(lane, ns, buf);
		}
		if (next_profile(lane, ns))
			return put_part(lane, ns, buf, cap);
	}
	return 0;
}

static void over(struct lane *lane, int res)
{
	struct persist *s = &lane->persist;

	profiles_drop(lane, s->profile);
	s->profile = NULL;
	if (res < 0)
		s->next_ns = lane->now_ns + RETRY_NS;
}

static void meta_start_next(struct lane *lane);

static void meta_done(void *user, int res)
{
	struct lane *lane = user;
	struct persist *s = &lane->persist;

	over(lane, res);
	if (res == -EFBIG) {
		s->meta_next_ns = lane->now_ns + META_TOO_LARGE_NS;
		log_line(
			LOG_LEVEL_WARNING,
			"NVMe: profiles and names of namespaces take more than a quarter of the file: "
			"blocks of new ones are not found again after a restart");
	}
	if (res < 0) {
		s->meta_due = 1;
		return;
	}
	s->log++;
	meta_start_next(lane);
}

/* The same to each log that takes it; one that is out of service gets all of it when it is back. */
static void meta_start_next(struct lane *lane)
{
	const struct nvme_blob_source source = { .next = next_meta,
						 .done = meta_done,
						 .user = lane };
	struct persist *s = &lane->persist;

	s->ns = s->slot = 0;
	for (; s->log < nvme_set_logs(lane->log); s->log++) {
		struct nvme_log *log = nvme_set_log(lane->log, s->log);

		if (nvme_log_in_service(log) &&
		    nvme_log_blob_start(log, NVME_BLOB_META, &source) == 0)
			return;
	}
	s->meta_done = s->meta_number;
}

static int start_meta(struct lane *lane)
{
	struct persist *s = &lane->persist;

	s->meta_number++;
	s->meta_due = 0;
	s->log = 0;
	meta_start_next(lane);
	return nvme_set_blob_busy(lane->log) ? 0 : -ENOTSUP;
}

static int meta_is_due(const struct lane *lane)
{
	return lane->persist.meta_due && lane->now_ns >= lane->persist.meta_next_ns;
}

void persist_health_changed(struct lane *lane)
{
	lane->persist.meta_due |= lane->persist.meta_number != 0;
}

/* ---- checkpoint ---- */

/* Blocks for the next piece into persist.id, and their tables.  How many. */
static uint32_t collect(struct lane *lane, uint32_t max, uint32_t tables_max, uint8_t *table_of,
			uint32_t *tables, uint32_t *ret_tables)
{
	struct persist *s = &lane->persist;
	const struct nvme_log *log = nvme_set_log(lane->log, s->log);
	uint32_t end = index_end(lane->index), n = 0, t, count = 0;

	for (unsigned seen = 0; s->cursor < end && n < max && seen < SCAN_MAX; seen++) {
		const struct block *b = index_block(lane->index, s->cursor);

		if (!(b->flags & BLOCK_CLEAN) || nvme_set_log_of(lane->log, s->cursor) != log ||
		    !nvme_log_holds(log, s->cursor)) {
			s->cursor++;
			continue;
		}
		for (t = 0; t < count && tables[t] != b->ns; t++)
			;
		if (t == tables_max)
			break;
		if (t == count)
			tables[count++] = b->ns;
		table_of[n] = (uint8_t)t;
		s->id[n++] = s->cursor++;
	}
	*ret_tables = count;
	return n;
}

static void put_tables(const struct lane *lane, const uint32_t *tables, uint32_t count,
		       uint8_t *buf)
{
	for (uint32_t t = 0; t < count; t++) {
		const struct namespace *ns = lane->ns[tables[t]];
		struct persist_table table = { 0 };

		memcpy(table.ns_digest, ns->digest, sizeof(table.ns_digest));
		for (unsigned i = 0; i < NS_PROFILES_MAX; i++)
			if (ns->profile[i].p)
				memcpy(table.profile_digest[i],
				       codec_profile_digest(ns->profile[i].p), 32);
		memcpy(buf + sizeof(struct persist_piece) + t * sizeof(table), &table,
		       sizeof(table));
	}
}

static void put_block(const struct lane *lane, uint32_t id, uint8_t table, uint8_t *buf,
		      const uint32_t *off, uint32_t i)
{
	const struct block *b = index_block(lane->index, id);
	uint32_t parent = index_parent(lane->index, id);
	uint32_t parent_generation = parent == BLOCK_NONE
					     ? 0
					     : index_block(lane->index, parent)->generation;
	uint8_t flags = (uint8_t)((b->flags & BLOCK_HAS_TOKENS ? PERSIST_HAS_TOKENS : 0) |
				  (b->model ? PERSIST_MODEL : 0) | (b->layer ? PERSIST_LAYER : 0));
	const uint32_t generation = b->generation;
	const uint8_t profile = b->profile, key_len = b->key_len;
	struct nvme_place place;

	(void)nvme_set_place(lane->log, id, &place); /* it is held */
#define PUT(column, value) \
	memcpy(buf + off[PERSIST_##column] + i * sizeof(value), &(value), sizeof(value))
	memcpy(buf + off[PERSIST_KEY] + (size_t)i * 32, b->key, 32);
	PUT(RAW_XXH3, b->raw_xxh3);
	PUT(TOKEN_HASH, b->token_hash);
	PUT(SEQUENCE, place.sequence);
	PUT(SEGMENT, place.segment);
	PUT(OFF_SECTORS, place.off_sectors);
	PUT(SECTORS, place.sectors);
	PUT(POSITION, b->position);
	PUT(ID, id);
	PUT(GENERATION, generation);
	PUT(PARENT, parent);
	PUT(PARENT_GENERATION, parent_generation);
	PUT(GROUP, b->group);
	PUT(PADDING, b->padding_bytes);
	PUT(TABLE, table);
	PUT(PROFILE, profile);
	PUT(KEY_LEN, key_len);
	PUT(FLAGS, flags);
#undef PUT
}

static uint32_t next_checkpoint(void *user, uint8_t *buf, uint32_t cap)
{
	struct lane *lane = user;
	uint32_t tables_max = cap / 4096 < 32 ? cap / 4096 : 32, tables[32], tables_count;
	uint32_t max = (cap - (uint32_t)sizeof(struct persist_piece) -
			tables_max * (uint32_t)sizeof(struct persist_table)) /
		       PERSIST_BLOCK_BYTES;
	uint32_t off[PERSIST_COLUMN_COUNT + 1];
	uint8_t table_of[PERSIST_ENTRIES_MAX];
	struct persist_piece h;

	if (lane->persist.cursor >= index_end(lane->index))
		return 0;
	if (max > PERSIST_ENTRIES_MAX)
		max = PERSIST_ENTRIES_MAX;
	h.count = collect(lane, max, tables_max, table_of, tables, &tables_count);
	h.tables = tables_count;
	memcpy(buf, &h, sizeof(h));
	put_tables(lane, tables, tables_count, buf);
	persist_columns(h.count, h.tables, off);
	assert(off[PERSIST_COLUMN_COUNT] <= cap);
	for (uint32_t i = 0; i < h.count; i++)
		put_block(lane, lane->persist.id[i], table_of[i], buf, off, i);
	return off[PERSIST_COLUMN_COUNT];
}

static void checkpoint_done(void *user, int res)
{
	struct lane *lane = user;

	over(lane, res);
	if (res < 0)
		lane->persist.dirty |= (uint8_t)(1u << lane->persist.log);
}

static int start_checkpoint(struct lane *lane, unsigned log)
{
	const struct nvme_blob_source source = { .next = next_checkpoint,
						 .done = checkpoint_done,
						 .user = lane };
	struct persist *s = &lane->persist;
	int r = nvme_log_blob_start(nvme_set_log(lane->log, log), NVME_BLOB_CHECKPOINT, &source);

	if (r < 0)
		return r;
	s->log = (uint8_t)log;
	s->cursor = 0;
	s->dirty &= (uint8_t) ~(1u << log);
	s->written_ns[log] = lane->now_ns;
	return 0;
}

/* ---- the turn ---- */

/* So much may be behind the checkpoint: it is all read at a start. */
static uint64_t tail_max(const struct nvme_log *log)
{
	uint64_t quarter = nvme_log_bytes(log) / 4;
	uint64_t most = quarter > TAIL_MAX_BYTES ? TAIL_MAX_BYTES : quarter;
	uint64_t cost = nvme_log_blob_bytes(log, NVME_BLOB_CHECKPOINT) * TAIL_SHARE;

	return cost > most ? cost : most;
}

static int checkpoint_due(const struct lane *lane, unsigned i)
{
	const struct nvme_log *log = nvme_set_log(lane->log, i);
	const struct persist *s = &lane->persist;
	uint64_t tail = nvme_log_tail_bytes(log);

	if (!(s->dirty >> i & 1) || !nvme_log_in_service(log))
		return 0;
	if (tail >= tail_max(log))
		return 1;
	if (lane->jobs_count || lane->now_ns - s->changed_ns < IDLE_NS)
		return 0;
	return tail >= TAIL_MIN_BYTES || lane->now_ns - s->written_ns[i] >= IDLE_MAX_NS;
}

int persist_keeps(const struct lane *lane)
{
	return lane->config.nvme_path[0] && lane->restore.ns && lane->config.nvme_persist;
}

/* 1: one was due; it has begun, or will be tried again. */
static int run_checkpoints(struct lane *lane, int *ret)
{
	for (unsigned i = 0; i < nvme_set_logs(lane->log); i++)
		if (checkpoint_due(lane, i)) {
			*ret = start_checkpoint(lane, i);
			return 1;
		}
	return 0;
}

unsigned persist_run(struct lane *lane)
{
	struct persist *s = &lane->persist;
	int r = 0;

	if (!persist_keeps(lane) || nvme_set_blob_busy(lane->log) ||
	    !nvme_set_in_service(lane->log))
		return 0;
	if (lane->now_ns < s->next_ns)
		return 0;
	if (meta_is_due(lane)) {
		r = start_meta(lane);
	} else {
		s->next_ns = lane->now_ns + LOOK_NS;
		if (!run_checkpoints(lane, &r))
			return 0;
	}
	if (r < 0)
		s->next_ns = lane->now_ns + RETRY_NS;
	return r == 0;
}

/* Nothing else is under way any more. */
int persist_may_stop(struct lane *lane)
{
	struct persist *s = &lane->persist;

	if (!persist_keeps(lane) || !nvme_set_in_service(lane->log))
		return 1;
	if (nvme_set_blob_busy(lane->log) || nvme_set_inflight(lane->log) ||
	    nvme_set_notes(lane->log))
		return 0;
	if (meta_is_due(lane) && s->stop_tried < 2) {
		s->stop_tried++;
		return start_meta(lane) < 0;
	}
	for (unsigned i = 0; i < nvme_set_logs(lane->log); i++) {
		if (!((s->dirty & ~s->stop_done) >> i & 1))
			continue;
		s->stop_done |= (uint8_t)(1u << i);
		if (nvme_log_in_service(nvme_set_log(lane->log, i)) &&
		    start_checkpoint(lane, i) == 0)
			return 0;
	}
	return 1;
}

int persist_progresses(const struct lane *lane)
{
	return persist_keeps(lane) && nvme_set_blob_busy(lane->log) &&
	       nvme_set_in_service(lane->log) && lane->now_ns - lane->stop_ns < STOP_NS_MAX;
}
