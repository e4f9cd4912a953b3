/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier.c - where records lie: host slots, copies on NVMe, and what moves between them.
 *
 * A RESIDENT block that nobody holds is on one of three lists, coldest first: `clean` (its bytes are durable
 * on NVMe: the slot can be given up at once), `dirty`, or `droppable` (dirty, and not worth writing: tier_drop.c).
 * Without an NVMe tier, or while it is out of service, dirty blocks are evicted for good, children before parents.
 * With one they are written ahead of pressure, in order, and the slot is given up only after the write is durable.
 * Which goes first of a list tier_policy.c says.
 *
 * Blocks in the GPU pool have a list of their own, and tier_gpu.c to move them here.
 */
#include "daemon/lane_state.h"
#include "daemon/recode.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/record.h"
#include "daemon/util/clock.h"

#define TIER_SCAN_MAX 64u    /* blocks looked at for one victim */
#define TIER_ALLOC_TRIES 32u /* victims for one allocation */
#define TIER_SPILL_BATCH 16u /* writes started in one turn */
#define TIER_SPILLS_MAX 64u  /* writes in flight: leaves operations for reads */
#define TIER_CHAIN_MAX \
	32u /* blocks of one prefix that are written before the one whose turn it is */
#define TIER_SHORT_NS \
	100000000ull /* after a slot was refused, blocks are written as if the pool were full */
#define TIER_FRAGMENTED_PERCENT 90u /* fuller than this, ENOSPC means full */

/* ---- accounting of lists and gauges ---- */

/* Where a RESIDENT block belongs that nobody holds; by how much the bytes of its list change. */
static struct block_list *list_of(struct lane *lane, const struct block *b, int64_t bytes)
{
	if (index_gpu_slot(lane->index, b) != POOL_NONE)
		return &lane->gpu_cold;
	if (b->flags & BLOCK_CLEAN) {
		lane->clean_bytes += (uint64_t)bytes;
		return &lane->clean;
	}
	if (b->droppable) {
		lane->droppable_bytes += (uint64_t)bytes;
		return &lane->droppable;
	}
	lane->dirty_bytes += (uint64_t)bytes;
	return &lane->dirty;
}

static void list_push(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	lane->recode.look |= (uint8_t)recode_wants(lane, b); /* may look at the plan */
	b->droppable = !(b->flags & BLOCK_CLEAN) && tier_drops(lane, b);
	tier_policy_place(lane, id);
	policy_unhold(lane->policy, id);
	block_list_push(lane->index, list_of(lane, b, b->record_bytes), id);
}

void tier_unlist(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	if (policy_has(lane->policy, id))
		policy_hold(lane->policy, id);
	if (b->flags & BLOCK_WANTED) {
		block_list_remove(lane->index, &lane->fetch, id);
		b->flags &= (uint8_t)~BLOCK_WANTED;
	} else {
		block_list_remove(lane->index, list_of(lane, b, -(int64_t)b->record_bytes), id);
	}
}

void tier_relist(struct lane *lane, uint32_t id)
{
	tier_unlist(lane, id);
	list_push(lane, id);
}

static void set_clean(struct lane *lane, struct block *b, int clean)
{
	if (clean == !!(b->flags & BLOCK_CLEAN))
		return;
	b->flags ^= BLOCK_CLEAN;
	persist_changed(lane);
	if (clean)
		stats_add(&lane->stats, STAT_BLOCKS_NVME, 1);
	else
		stats_sub(&lane->stats, STAT_BLOCKS_NVME, 1);
}

void tier_release_host(struct lane *lane, struct block *b)
{
	if (b->slot == POOL_NONE)
		return;
	pool_release(lane->pool, b->slot);
	b->slot = POOL_NONE;
	stats_add(&lane->stats, STAT_READ_AHEAD_WASTED_BLOCKS, b->ahead);
	b->ahead = 0;
	stats_sub(&lane->stats, STAT_BLOCKS_HOST, 1);
	stats_sub(&lane->stats, STAT_POOL_USED_BYTES, b->record_bytes - b->padding_bytes);
}

static void release_slots(struct lane *lane, struct block *b)
{
	tier_release_host(lane, b);
	tier_gpu_release(lane, b);
}

void tier_unplace(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	assert(b->state == BLOCK_STORING);
	release_slots(lane, b);
	b->record_bytes = b->padding_bytes = 0;
}

int tier_has_nvme(const struct lane *lane)
{
	return lane->log && nvme_set_in_service(lane->log);
}

/* ---- holding and forgetting ---- */

void tier_hold(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	if (b->refs++)
		return;
	quota_hold(lane, b);
	if (b->flags & BLOCK_LISTED)
		tier_unlist(lane, id);
	else
		tier_policy_settle(lane, id);
}

void tier_unhold(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	assert(b->refs > 0);
	if (--b->refs)
		return;
	quota_unhold(lane, b);
	if (b->flags & BLOCK_LISTED) /* queued for a fetch that nobody waits for any more */
		tier_unlist(lane, id);
	if (b->state == BLOCK_DEAD) {
		quota_uncharge(lane->ns[b->ns]->tenant, b->record_bytes);
		release_slots(lane, b);
		profiles_set_block(lane, b, NULL);
		policy_reset(lane->policy, id);
		index_release(lane->index, id);
	} else if (b->state == BLOCK_RESIDENT) {
		b->move = 0; /* no load waits for one any more, nor for how one ended */
		if (b->slot !=
		    POOL_NONE) /* it was moved, and the last that read it there is gone */
			tier_gpu_release(lane, b);
		list_push(lane, id);
	} else {
		tier_policy_settle(lane, id);
	}
}

static int is_dirty(const struct lane *lane, uint32_t id)
{
	const struct block *b = id == BLOCK_NONE ? NULL : index_block(lane->index, id);

	return b && b->state == BLOCK_RESIDENT && b->flags & BLOCK_LISTED &&
	       !(b->flags & (BLOCK_WANTED | BLOCK_CLEAN)) && !b->droppable &&
	       index_gpu_slot(lane->index, b) == POOL_NONE;
}

/* A neighbour may have gone, or been used: then the other one, or the cold end, says where it was. */
void tier_unhold_unused(struct lane *lane, uint32_t id, uint32_t prev, uint32_t next)
{
	tier_unhold(lane, id);
	if (!is_dirty(lane, id))
		return;
	block_list_remove(lane->index, &lane->dirty, id); /* it went to the hot end */
	if (is_dirty(lane, next))
		prev = block_list_prev(lane->index, next);
	else if (!is_dirty(lane, prev))
		prev = BLOCK_NONE;
	block_list_insert(lane->index, &lane->dirty, prev, id);
}

static void forget(struct lane *lane, uint32_t id, int log_has_forgotten)
{
	struct block *b = index_block(lane->index, id);
	struct namespace *ns = lane->ns[b->ns];
	int lost = tier_gpu_lost(lane, b);
	uint32_t parent = index_parent(lane->index, id);

	stats_add(&lane->stats, STAT_GPU_LOST_BLOCKS, (uint64_t)lost);
	if (b->state != BLOCK_STORING) {
		uint32_t bytes = b->record_bytes - b->padding_bytes;

		stats_sub(&lane->stats, STAT_RAW_BYTES, ns->geom.raw_bytes);
		stats_sub(&lane->stats, STAT_CODED_BYTES, bytes);
		stats_sub(&lane->stats, STAT_BLOCKS, 1);
		atomic_fetch_sub_explicit(&ns->blocks, 1, memory_order_relaxed);
		atomic_fetch_sub_explicit(&ns->raw_bytes, ns->geom.raw_bytes, memory_order_relaxed);
		atomic_fetch_sub_explicit(&ns->coded_bytes, bytes, memory_order_relaxed);
	}
	if (b->flags & BLOCK_LISTED)
		tier_unlist(lane, id);
	if (!log_has_forgotten && lane->log && !(b->flags & BLOCK_SPILLING))
		nvme_set_forget(lane->log, id);
	set_clean(lane, b, 0);
	if (b->pinned)
		quota_pin(lane, b, 0, 0);
	tier_policy_leave(lane, id);
	index_unlink(lane->index, id);
	if (parent != BLOCK_NONE)
		tier_policy_settle(lane, parent);
	lane->words_behind = 1;
	if (b->refs) {
		if (b->state == BLOCK_RESIDENT && !lost)
			b->flags |= BLOCK_READABLE;
		index_set_state(lane->index, id, BLOCK_DEAD);
		return; /* who holds it keeps its slot, and so it stays charged */
	}
	quota_uncharge(ns->tenant, b->record_bytes); /* 0 as long as it has no slot */
	release_slots(lane, b);
	profiles_set_block(lane, b, NULL);
	policy_reset(lane->policy, id);
	index_release(lane->index, id);
}

void tier_forget(struct lane *lane, uint32_t id)
{
	forget(lane, id, 0);
}

/* Its bytes are wrong: nobody gets them again, not even who holds it. */
void tier_quarantine(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	assert(b->refs > 0);
	stats_add(&lane->stats, STAT_CHECKSUM_FAILURES, 1);
	if (b->state != BLOCK_DEAD)
		forget(lane, id, 0);
	b->flags &= (uint8_t)~BLOCK_READABLE;
	b->flags |= BLOCK_CORRUPT;
}

static void count_in(struct lane *lane, const struct block *b)
{
	struct namespace *ns = lane->ns[b->ns];
	uint32_t bytes = b->record_bytes - b->padding_bytes;

	stats_add(&lane->stats, STAT_BLOCKS, 1);
	stats_add(&lane->stats, STAT_RAW_BYTES, ns->geom.raw_bytes);
	stats_add(&lane->stats, STAT_CODED_BYTES, bytes);
	atomic_fetch_add_explicit(&ns->blocks, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&ns->raw_bytes, ns->geom.raw_bytes, memory_order_relaxed);
	atomic_fetch_add_explicit(&ns->coded_bytes, bytes, memory_order_relaxed);
}

void tier_publish(struct lane *lane, uint32_t id, int last)
{
	const struct block *b = index_block(lane->index, id);

	assert((b->slot == POOL_NONE) != (index_gpu_slot(lane->index, b) == POOL_NONE) &&
	       b->refs == 0);
	index_set_state(lane->index, id, BLOCK_RESIDENT);
	tier_policy_enter(lane, id, last);
	list_push(lane, id);
	count_in(lane, b);
}

int tier_restore(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);
	struct namespace *ns = lane->ns[b->ns];
	int r = quota_charge(lane, ns->tenant, b->record_bytes);

	if (r < 0)
		return r;
	index_set_state(lane->index, id, BLOCK_NVME);
	tier_policy_found(lane, id);
	set_clean(lane, b, 1);
	count_in(lane, b);
	return 0;
}

int tier_restore_host(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);
	int new = b->state == BLOCK_STORING;
	int r = new ? quota_charge(lane, lane->ns[b->ns]->tenant, b->record_bytes) : 0;

	if (r < 0)
		return r;
	assert(b->slot != POOL_NONE && b->refs == 0);
	if (!new)
		index_set_state(lane->index, id, BLOCK_FETCHING);
	index_set_state(lane->index, id, BLOCK_RESIDENT);
	if (new)
		tier_policy_enter(lane, id, 0);
	stats_add(&lane->stats, STAT_BLOCKS_HOST, 1);
	stats_add(&lane->stats, STAT_POOL_USED_BYTES, b->record_bytes - b->padding_bytes);
	list_push(lane, id);
	if (new)
		count_in(lane, b);
	return 0;
}

/* ---- making room ---- */

/* Give up the host copy (clean), or the block.  It is listed, so nobody holds it. */
static void evict(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);

	if (b->flags & BLOCK_CLEAN) {
		tier_unlist(lane, id);
		tier_release_host(lane, b);
		index_set_state(lane->index, id, BLOCK_NVME);
		tier_policy_place(lane, id);
		tier_policy_settle(lane, id);
		return;
	}
	stats_add(&lane->stats, STAT_DROPPED_BLOCKS, b->droppable);
	plan_evicted(lane, id);
	forget(lane, id, 0);
}

/* One slot freed: 1; nothing may go now: 0. */
static int free_a_slot(struct lane *lane)
{
	uint32_t id = tier_victim(lane, TIER_PLACE_CLEAN);

	if (id == BLOCK_NONE && !tier_has_nvme(lane))
		id = tier_victim(lane, TIER_PLACE_DIRTY);
	if (id == BLOCK_NONE)
		return 0;
	evict(lane, id);
	return 1;
}

/* Empty the sparsest slab of another class, as far as nobody holds its blocks. */
static int free_a_slab(struct lane *lane, uint64_t bytes)
{
	uint32_t owners[TIER_SCAN_MAX];
	unsigned n = pool_sparse_owners(lane->pool, bytes, owners, TIER_SCAN_MAX), freed = 0;

	for (unsigned i = 0; i < n; i++) {
		const struct block *b = index_block(lane->index, owners[i]);

		if (!(b->flags & BLOCK_LISTED) || b->flags & BLOCK_WANTED || tier_pinned(lane, b) ||
		    (!(b->flags & BLOCK_CLEAN) &&
		     (b->children || (tier_has_nvme(lane) && !b->droppable))))
			continue;
		evict(lane, owners[i]);
		freed++;
	}
	return freed > 0;
}

/* A block leaves for good: 1 when one did. */
static int evict_lost(struct lane *lane, uint32_t id)
{
	if (id == BLOCK_NONE)
		return 0;
	plan_evicted(lane, id);
	forget(lane, id, 0);
	return 1;
}

/* So that its index entry can be used. */
int tier_evict_one(struct lane *lane)
{
	return evict_lost(lane, tier_victim_lost(lane, NULL));
}

int tier_evict_for_tenant(struct lane *lane, const struct tenant *tenant)
{
	return evict_lost(lane, tier_victim_lost(lane, tenant));
}

int tier_evict_pinned(struct lane *lane, const struct tenant *tenant)
{
	return evict_lost(lane, tier_victim_pinned(lane, tenant));
}

/* Share of the pool that no eviction can give back at once. */
static uint64_t stuck_percent(const struct lane *lane)
{
	uint64_t free_able = lane->clean_bytes + lane->droppable_bytes +
			     (tier_has_nvme(lane) ? 0 : lane->dirty_bytes);
	struct pool_usage u;

	pool_usage(lane->pool, &u);
	return u.slot_bytes > free_able ? (u.slot_bytes - free_able) * 100 / u.bytes : 0;
}

static int fragmented(const struct lane *lane)
{
	struct pool_usage u;

	pool_usage(lane->pool, &u);
	return u.slot_bytes < u.bytes / 100 * TIER_FRAGMENTED_PERCENT;
}

int tier_alloc(struct lane *lane, uint64_t bytes, uint32_t id)
{
	struct block *b = index_block(lane->index, id);
	int r = pool_alloc(lane->pool, bytes, id, &b->slot);

	/* With room left it is fragmentation: the sparsest place costs fewer blocks than the coldest ones. */
	if (r == -ENOSPC && fragmented(lane) && free_a_slab(lane, bytes))
		r = pool_alloc(lane->pool, bytes, id, &b->slot);
	for (unsigned i = 0; r == -ENOSPC && i < TIER_ALLOC_TRIES; i++) {
		if (!free_a_slot(lane))
			break;
		r = pool_alloc(lane->pool, bytes, id, &b->slot);
	}
	if (r == -ENOSPC && free_a_slab(lane, bytes))
		r = pool_alloc(lane->pool, bytes, id, &b->slot);
	if (r == -EFBIG)
		return r;
	if (r < 0) {
		lane->no_room_ns = lane->now_ns;
		return -EAGAIN;
	}
	stats_add(&lane->stats, STAT_BLOCKS_HOST, 1);
	stats_add(&lane->stats, STAT_POOL_USED_BYTES, b->record_bytes - b->padding_bytes);
	return 0;
}

/* ---- NVMe: operations ---- */

struct lane_nvme_op *tier_op_get(struct lane *lane)
{
	struct lane_nvme_op *op = lane->nvme_free;

	if (op)
		lane->nvme_free = op->next;
	return op;
}

void tier_op_put(struct lane *lane, struct lane_nvme_op *op)
{
	op->next = lane->nvme_free;
	lane->nvme_free = op;
}

unsigned tier_buffer_index(const struct lane *lane, uint32_t slot)
{
	return lane->pool_registered ? pool_iovec_index(lane->pool, slot) : URING_BUF_NONE;
}

/* The log gave this block's segment away. */
void tier_log_evicts(void *user, uint32_t id)
{
	struct lane *lane = user;
	struct block *b = index_block(lane->index, id);

	if (b->state == BLOCK_NVME) {
		plan_evicted(lane, id);
		forget(lane, id, 1);
		return;
	}
	if (b->flags & BLOCK_LISTED) {
		tier_unlist(lane, id);
		set_clean(lane, b, 0);
		list_push(lane, id);
	} else {
		set_clean(lane, b, 0);
	}
}

/* ---- NVMe: spill ---- */

static void spill_done(struct nvme_op *nop, int res)
{
	struct lane_nvme_op *op = (struct lane_nvme_op *)nop;
	struct lane *lane = op->lane;
	uint32_t id = nop->block;
	struct block *b = index_block(lane->index, id);

	lane->spills_inflight--;
	plan_meter_end(&lane->plan.writes, &lane->plan.machine.nvme_write, clock_now_ns(),
		       res == 0 ? b->record_bytes : 0, lane->spills_inflight);
	b->flags &= (uint8_t)~BLOCK_SPILLING;
	if (b->state == BLOCK_DEAD) {
		nvme_set_forget(lane->log, id);
	} else if (res == 0) {
		set_clean(lane, b, 1);
		stats_add(&lane->stats, STAT_SPILL_BLOCKS, 1);
		stats_add(&lane->stats, STAT_SPILL_BYTES, b->record_bytes);
		stats_record_ns(&lane->stats, STATS_HIST_NVME_WRITE,
				lane->now_ns - nop->io.start_ns);
	}
	tier_op_put(lane, op);
	tier_unhold(lane, id);
}

static int spill(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);
	uint8_t *record = pool_ptr(lane->pool, b->slot);
	struct record_header *h = (struct record_header *)record;
	struct lane_nvme_op *op = tier_op_get(lane);
	int r;

	if (!op)
		return -EAGAIN;
	op->op.done = spill_done;
	r = nvme_set_room(lane->log, b->record_bytes, &h->log_id, &h->sequence);
	if (r == 0) {
		persist_name_parent(lane, id, h);
		record_seal(h);
		r = nvme_set_append(lane->log, &op->op, id, tier_buffer_index(lane, b->slot),
				    record, b->record_bytes);
	}
	if (r < 0) {
		tier_op_put(lane, op);
		return r;
	}
	persist_spills(lane, b);
	tier_hold(lane, id);
	b->flags |= BLOCK_SPILLING;
	plan_meter_begin(&lane->plan.writes, lane->now_ns, lane->spills_inflight++);
	return 0;
}

/*
 * The coldest that may be written now.  One that a stronger speculator could make smaller first waits for
 * that, while there is time: until what cannot be given up at once fills the pool half way from where
 * writing begins to where stores are refused.
 */
static uint32_t next_spill(struct lane *lane, int urgent)
{
	uint32_t id = lane->dirty.head;

	for (unsigned n = 0; !urgent && id != BLOCK_NONE; n++) {
		const struct block *b = index_block(lane->index, id);

		if (!recode_pending(lane, b))
			return id;
		id = n < TIER_SCAN_MAX ? block_list_next(lane->index, id) : BLOCK_NONE;
	}
	return id;
}

/* The child of what was written last, if it is about as cold. */
static uint32_t next_of_chain(struct lane *lane, int urgent)
{
	uint32_t id = lane->spilled_last == BLOCK_NONE ? BLOCK_NONE : lane->dirty.head;

	for (unsigned n = 0; id != BLOCK_NONE && n < TIER_SCAN_MAX; n++) {
		const struct block *b = index_block(lane->index, id);

		if (index_parent(lane->index, id) == lane->spilled_last &&
		    (urgent || !recode_pending(lane, b)))
			return id;
		id = block_list_next(lane->index, id);
	}
	return BLOCK_NONE;
}

/*
 * Blocks of one prefix are written together, parents first, for so they will be read: before the coldest go those of
 * its ancestors that have to be written, too.
 */
static uint32_t next_in_order(struct lane *lane, int urgent)
{
	uint32_t id = next_of_chain(lane, urgent), parent;

	if (id != BLOCK_NONE)
		return id;
	id = next_spill(lane, urgent);
	for (unsigned n = 0; id != BLOCK_NONE && n < TIER_CHAIN_MAX; n++) {
		parent = index_parent(lane->index, id);
		if (!is_dirty(lane, parent) ||
		    (!urgent && recode_pending(lane, index_block(lane->index, parent))))
			break;
		id = parent;
	}
	return id;
}

/* Somebody waits for a slot: slots may be free, and all of other sizes. */
static int short_of_room(const struct lane *lane)
{
	return lane->no_room_ns && lane->now_ns - lane->no_room_ns < TIER_SHORT_NS;
}

static unsigned run_spills(struct lane *lane)
{
	uint32_t full = lane->config.full_percent, from = lane->config.spill_percent, id;
	struct pool_usage u;
	unsigned n = 0;
	uint64_t half;
	int urgent;

	if (!tier_has_nvme(lane) || lane->dirty.head == BLOCK_NONE)
		return 0;
	pool_usage(lane->pool, &u);
	if (u.slot_bytes < u.bytes / 100 * from && !short_of_room(lane))
		return 0;
	half = from < full ? from + (full - from) / 2 : from;
	urgent = u.slot_bytes - lane->clean_bytes - lane->droppable_bytes >= u.bytes / 100 * half ||
		 short_of_room(lane);
	while (n < TIER_SPILL_BATCH && lane->spills_inflight < TIER_SPILLS_MAX) {
		id = next_in_order(lane, urgent);
		if (id == BLOCK_NONE || spill(lane, id) < 0)
			break;
		lane->spilled_last = id;
		n++;
	}
	return n;
}

/* ---- the turn ---- */

/* As the gauge nvme_health has it. */
static int health(const struct lane *lane)
{
	unsigned n = lane->log ? nvme_set_in_service(lane->log) : 0;

	return !lane->log ? 0 : n == nvme_set_logs(lane->log) ? 1 : n ? 3 : 2;
}

static void watch_health(struct lane *lane)
{
	int now = health(lane);

	stats_set(&lane->stats, STAT_NVME_HEALTH, (uint64_t)now);
	if (now == lane->nvme_health)
		return;
	lane->nvme_health = now;
	persist_health_changed(lane);
	(void)mailbox_send(&lane->outbox,
			   &(struct mail){ .type = LANE_NVME_HEALTH, .value = (uint64_t)now });
}

unsigned tier_run(struct lane *lane)
{
	uint64_t stuck = stuck_percent(lane);
	struct pool_usage u;
	unsigned n = 0;

	if (lane->log) {
		nvme_set_tick(lane->log, lane->now_ns);
		n = tier_sort_run(lane) + tier_fetch_run(lane) + run_spills(lane) +
		    persist_run(lane);
	}
	watch_health(lane);
	if (stuck >= lane->config.full_percent)
		lane->accepting = 0;
	else if (stuck < lane->config.accept_percent)
		lane->accepting = 1;
	pool_usage(lane->pool, &u);
	stats_set(&lane->stats, STAT_POOL_SLOT_BYTES, u.slot_bytes);
	stats_set(&lane->stats, STAT_POOL_SLAB_BYTES, u.slab_bytes);
	return n;
}

unsigned tier_busy(const struct lane *lane)
{
	return lane->spills_inflight + lane->fetches_inflight + lane->demotes_inflight +
	       (lane->log ? nvme_set_inflight(lane->log) : 0);
}

/* ---- start and stop ---- */

int tier_start(struct lane *lane, char *err, unsigned err_bytes)
{
	struct pool_usage u;
	int r;

	block_list_init(&lane->clean);
	block_list_init(&lane->dirty);
	block_list_init(&lane->droppable);
	block_list_init(&lane->fetch);
	block_list_init(&lane->gpu_cold);
	lane->spilled_last = BLOCK_NONE;
	lane->accepting = 1;
	lane->granule_bytes = 512;
	r = tier_log_start(lane, err, err_bytes);
	if (r < 0)
		return r;
	if (lane->log && nvme_set_align_bytes(lane->log) > lane->granule_bytes)
		lane->granule_bytes = nvme_set_align_bytes(lane->log);
	r = tier_start_pool(lane, err, err_bytes);
	if (r == 0 && lane->restore.ns)
		r = restore_run(lane, err, err_bytes);
	if (r < 0)
		return r;
	pool_usage(lane->pool, &u);
	stats_set(&lane->stats, STAT_POOL_BYTES, u.bytes);
	return 0;
}

void tier_stop(struct lane *lane)
{
	const struct block_list *lists[] = { &lane->clean, &lane->dirty, &lane->droppable,
					     &lane->gpu_cold };

	if (lane->log)
		nvme_set_closing(lane->log);
	if (lane->pool && lane->index)
		for (unsigned i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
			while (lists[i]->head != BLOCK_NONE)
				forget(lane, lists[i]->head, 0);
	lane->log = nvme_set_close(lane->log);
	lane->gpu_pool = pool_free(lane->gpu_pool);
	lane->pool = pool_free(lane->pool);
}
