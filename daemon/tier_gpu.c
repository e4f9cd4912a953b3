/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_gpu.c - the pool in GPU memory, the first place for what the GPU has coded.  The coldest blocks are
 * moved to the host pool ahead of pressure, and others when a load into host memory wants them; the GPU
 * slot is given up when the bytes are in the host slot and nobody reads the old ones any more (in
 * tier_unhold).  When the host pool has no room either, tier.c's rules say what goes for good.
 *
 * When the GPU dies, blocks that were only there are forgotten, some in each turn; until the sweep has come
 * to them, tier_gpu_lost() keeps them from being found.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon/lane_state.h"

#define GPU_DEMOTE_PERCENT 80u /* of the pool: above it the coldest are moved out */
#define GPU_FULL_PERCENT 95u   /* above it they are evicted, if they cannot be moved */
#define GPU_DEMOTE_BATCH 16u   /* moves started in one turn */
#define GPU_DEMOTES_MAX 32u
#define GPU_NO_ROOM_NS 10000000ull /* before it is tried again */
#define GPU_FAILED_NS 100000000ull
#define GPU_SWEEP_BATCH 4096u /* index entries looked at in one turn: less than 0.1 ms */

int tier_gpu_start(struct lane *lane, char *err, unsigned err_bytes)
{
	struct pool_options o = {
		.bytes = lane->config.gpu_pool_bytes,
		.granule_bytes = lane->granule_bytes,
		.numa_node = -1,
	};
	struct pool_usage u;
	int r;

	if (!o.bytes)
		return 0;
	r = lane->gpu->ops->pool_memory(lane->gpu, o.bytes, &o.foreign);
	if (r == 0)
		r = pool_new(&o, &lane->gpu_pool);
	if (r == 0)
		r = index_add_gpu(lane->index);
	if (r < 0) {
		(void)snprintf(err, err_bytes, "[gpu] pool: %" PRIu64 " MiB of GPU memory: %s",
			       o.bytes >> 20, strerror(-r));
		return r;
	}
	pool_usage(lane->gpu_pool, &u);
	stats_set(&lane->stats, STAT_GPU_POOL_BYTES, u.bytes);
	return 0;
}

/* ---- slots ---- */

int tier_gpu_alloc(struct lane *lane, uint64_t bytes, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);
	uint32_t slot;

	if (!lane->gpu_pool || lane->gpu_dead || pool_alloc(lane->gpu_pool, bytes, id, &slot) < 0)
		return -ENOSPC;
	index_set_gpu_slot(lane->index, b, slot);
	stats_add(&lane->stats, STAT_GPU_BLOCKS, 1);
	stats_add(&lane->stats, STAT_GPU_USED_BYTES, b->record_bytes - b->padding_bytes);
	return 0;
}

void tier_gpu_release(struct lane *lane, struct block *b)
{
	uint32_t slot = index_gpu_slot(lane->index, b);

	if (slot == POOL_NONE)
		return;
	pool_release(lane->gpu_pool, slot);
	index_set_gpu_slot(lane->index, b, POOL_NONE);
	stats_sub(&lane->stats, STAT_GPU_BLOCKS, 1);
	stats_sub(&lane->stats, STAT_GPU_USED_BYTES, b->record_bytes - b->padding_bytes);
}

/* ---- moves to the host pool ---- */

/* 0 started; -EAGAIN: no task or no room now; -EFBIG; else the device's error. */
static int move_out(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);
	uint64_t bytes = b->record_bytes - b->padding_bytes;
	uint32_t gpu_slot = index_gpu_slot(lane->index, b);
	struct task *t = gpu_task_get(lane);
	uint8_t *slot;
	int r;

	assert(b->slot == POOL_NONE && gpu_slot != POOL_NONE && !(b->move & BLOCK_MOVE_RUNS));
	if (!t)
		return -EAGAIN;
	r = tier_alloc(lane, b->record_bytes, id);
	if (r < 0) {
		task_put(lane, t);
		return r;
	}
	slot = pool_ptr(lane->pool, b->slot);
	memset(slot + bytes, 0, b->padding_bytes);
	t->kind = TASK_DEMOTE;
	t->block = id;
	t->dev = (struct device_task){
		.op = DEVICE_MOVE,
		.background = !(b->move & BLOCK_MOVE_WANTED),
		.copy[0] = { .in = pool_ptr(lane->gpu_pool, gpu_slot),
			     .in_place = DEVICE_PLACE_DEVICE,
			     .out = slot,
			     .out_place = DEVICE_PLACE_HOST,
			     .bytes = bytes },
		.copies_count = 1,
	};
	r = task_start(lane, t, lane->gpu);
	if (r < 0) {
		tier_release_host(lane, b);
		task_put(lane, t);
		return r;
	}
	tier_hold(lane, id);
	quota_unhold(lane, b); /* who held it before holds room in memory from now on */
	quota_hold(lane, b);
	b->move |= BLOCK_MOVE_RUNS;
	lane->demotes_inflight++;
	return 0;
}

/* The block may be dead by now: who holds it may load it from either slot. */
void tier_gpu_moved(struct lane *lane, struct task *t)
{
	uint32_t id = t->block;
	struct block *b = index_block(lane->index, id);

	lane->demotes_inflight--;
	b->move &= (uint8_t)~BLOCK_MOVE_RUNS;
	if (t->dev.res == 0) {
		b->move = 0;
		stats_add(&lane->stats, STAT_GPU_DEMOTED_BLOCKS, 1);
		stats_add(&lane->stats, STAT_GPU_DEMOTED_BYTES, b->record_bytes - b->padding_bytes);
	} else {
		tier_release_host(lane, b);
		if (b->move & BLOCK_MOVE_WANTED)
			b->move = BLOCK_MOVE_FAILED;
		lane->demote_after_ns = lane->now_ns + GPU_FAILED_NS;
	}
	task_put(lane, t);
	tier_unhold(lane, id);
}

/* The caller holds the block.  1: its host slot is whole; 0: ask again; -ENOSPC: no room for store_wait. */
int tier_gpu_want_host(struct lane *lane, uint32_t id)
{
	struct block *b = index_block(lane->index, id);
	int r;

	if (b->move & BLOCK_MOVE_RUNS)
		return 0;
	if (b->slot != POOL_NONE)
		return 1;
	if (b->move & BLOCK_MOVE_FAILED) {
		b->move = 0;
		return -EIO;
	}
	if (!(b->move & BLOCK_MOVE_WANTED))
		tier_waits_begin(lane, b);
	b->move |= BLOCK_MOVE_WANTED;
	r = move_out(lane, id);
	if (r == -EAGAIN && tier_waits_ns(lane, b) <= lane->config.store_wait_ns)
		return 0;
	if (r < 0)
		b->move = 0;
	return r == -EAGAIN || r == -EFBIG ? -ENOSPC : r;
}

/* Neither pool has room for it: 1 when a block left for good. */
static int evict_instead(struct lane *lane, const struct pool_usage *u)
{
	uint32_t id = BLOCK_NONE;

	if (!tier_has_nvme(lane) && u->slot_bytes >= u->bytes / 100 * GPU_FULL_PERCENT)
		id = tier_victim(lane, TIER_PLACE_GPU);
	if (id == BLOCK_NONE)
		return 0;
	plan_evicted(lane, id);
	tier_forget(lane, id);
	return 1;
}

static unsigned run_demotes(struct lane *lane)
{
	struct pool_usage u;
	unsigned n = 0;
	int r = 0;

	if (!lane->gpu_pool || lane->gpu_dead || lane->now_ns < lane->demote_after_ns)
		return 0;
	pool_usage(lane->gpu_pool, &u);
	if (u.slot_bytes < u.bytes / 100 * GPU_DEMOTE_PERCENT)
		return 0;
	while (r == 0 && n < GPU_DEMOTE_BATCH && lane->demotes_inflight < GPU_DEMOTES_MAX &&
	       lane->gpu_cold.head != BLOCK_NONE) {
		r = move_out(lane, lane->gpu_cold.head);
		n += r == 0;
	}
	if (r == -EAGAIN || r == -EFBIG) {
		if (evict_instead(lane, &u))
			return n + 1;
		lane->demote_after_ns = lane->now_ns + GPU_NO_ROOM_NS;
	} else if (r < 0) {
		lane->demote_after_ns = lane->now_ns + GPU_FAILED_NS;
	}
	return n;
}

/* ---- the loss of all of it ---- */

int tier_gpu_lost(const struct lane *lane, const struct block *b)
{
	return lane->gpu_dead && index_gpu_slot(lane->index, b) != POOL_NONE &&
	       b->state != BLOCK_STORING && (b->slot == POOL_NONE || b->move & BLOCK_MOVE_RUNS);
}

static unsigned run_sweep(struct lane *lane)
{
	uint32_t end = index_end(lane->index);
	unsigned n = 0;

	if (!lane->gpu_dead || !lane->gpu_pool)
		return 0;
	for (; lane->lost_next < end && n < GPU_SWEEP_BATCH; n++) {
		uint32_t id = lane->lost_next++;
		const struct block *b = index_block(lane->index, id);

		if (b->state == BLOCK_RESIDENT && tier_gpu_lost(lane, b))
			tier_forget(lane, id);
	}
	return n;
}

unsigned tier_gpu_run(struct lane *lane)
{
	return run_sweep(lane) + run_demotes(lane);
}
