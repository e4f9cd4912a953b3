/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recode.c - blocks that were stored quickly are coded again, one at a time, with the strongest speculator that
 * their namespace has by now: when there is nothing else to do, the coldest first, and so ahead of the write
 * to NVMe, which waits a while for it (tier.c).
 *
 * The block is held, so that its record stays; the record is decoded, coded anew, and that is decoded again
 * and compared by the block's checksum.  The block gets it only if it is smaller and nobody else holds the block:
 * who has a lease, or loads, goes on with the record that he found.  Whatever fails, the block keeps what it
 * has.  No step is begun while any load or store is under way, and a block has one try for each profile.
 *
 * With `model` a block is coded after those before it: recode_chain.c.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/lane_state.h"
#include "daemon/recode.h"
#include "daemon/record.h"
#include "daemon/sequences.h"
#include "daemon/util/lazy.h"

#define RECODE_IDLE_NS 1000000ull /* nobody wanted the machine for so long */
#define RECODE_GIVE_UP_NS \
	1000000000ull	   /* a block is not held longer than this behind others' work */
#define RECODE_SCAN 64u	   /* of the coldest blocks, before any */
#define RECODE_BATCH 1024u /* entries of the index looked at in one turn: some 20 us */

int recode_start(struct lane *lane)
{
	struct recode *r = &lane->recode;

	r->raw = map_lazily(lane->staging_bytes);
	r->task.staging = map_lazily(lane->staging_bytes);
	r->block = BLOCK_NONE;
	r->task.raw_slot = POOL_NONE;
	return r->raw && r->task.staging ? 0 : -ENOMEM;
}

void recode_stop(struct lane *lane)
{
	struct recode *r = &lane->recode;

	if (r->raw)
		(void)munmap(r->raw, lane->staging_bytes);
	if (r->task.staging)
		(void)munmap(r->task.staging, lane->staging_bytes);
	r->raw = r->task.staging = NULL;
	recode_chain_stop(lane);
}

/* ---- what is worth it ---- */

/* The GPU would have to leave the block to the CPU at each load. */
static int gpu_cannot(const struct lane *lane, const struct namespace *ns, uint8_t speculator)
{
	return lane->gpu && !lane->gpu_dead && lane->gpu->ops->can_encode &&
	       lane->config.speculator != CONFIG_SPECULATOR_LAYER &&
	       !lane->gpu->ops->can_encode(lane->gpu, &ns->geom, ns->newest->p, speculator);
}

/* After its prefix?  Whether all of that is here is seen when it is needed. */
static int may_model(const struct lane *lane, const struct block *b)
{
	const struct namespace *ns = lane->ns[b->ns];
	const struct ns_profile *np = ns->newest;

	return lane->config.speculator == CONFIG_SPECULATOR_MODEL && np->can_model &&
	       lane->now_ns >= lane->chain.not_before_ns && !b->model_tried &&
	       b->position != CODEC_POSITION_UNKNOWN &&
	       b->position / ns->geom.block_tokens < sequences_blocks_max(lane, ns) &&
	       (!np->wants_ids || b->flags & BLOCK_HAS_TOKENS);
}

/* `layer` takes less room and more time: whether that helps depends on the machine and what is wanted of it. */
static int pays(struct lane *lane, struct namespace *ns)
{
	return lane->config.speculator != CONFIG_SPECULATOR_AUTO || !lane->config.plan ||
	       plan_speculator(lane, ns) == CODEC_SPEC_LAYER;
}

/* With what?  CODEC_SPEC_RAW: leave it. */
static uint8_t target(struct lane *lane, const struct block *b)
{
	struct namespace *ns = lane->ns[b->ns];
	const struct ns_profile *newest = ns->newest;

	/* Who asks for something quick by name gets that and nothing in idle time. */
	if (lane->config.speculator < CONFIG_SPECULATOR_LAYER || !newest || b->model)
		return CODEC_SPEC_RAW;
	if (may_model(lane, b))
		return CODEC_SPEC_MODEL;
	if (b->tried == profiles_mark(newest))
		return CODEC_SPEC_RAW;
	if (newest->can_layer && b->position != CODEC_POSITION_UNKNOWN &&
	    !gpu_cannot(lane, ns, CODEC_SPEC_LAYER) && pays(lane, ns))
		return CODEC_SPEC_LAYER;
	return b->profile ? CODEC_SPEC_RAW : CODEC_SPEC_CHANNEL; /* stored before there was any */
}

int recode_wants(struct lane *lane, const struct block *b)
{
	return target(lane, b) != CODEC_SPEC_RAW;
}

/* Is it worth waiting with the write to NVMe?  Also when the first maps are being fitted just now. */
int recode_pending(struct lane *lane, const struct block *b)
{
	const struct namespace *ns = lane->ns[b->ns];

	return recode_wants(lane, b) ||
	       ((ns->fit_state == NS_FIT_LAYER_DUE || ns->fit_state == NS_FIT_LAYER) &&
		ns->newest && !ns->newest->can_layer && b->position != CODEC_POSITION_UNKNOWN &&
		!gpu_cannot(lane, ns, CODEC_SPEC_LAYER));
}

static int may_take(struct lane *lane, const struct block *b)
{
	return b->state == BLOCK_RESIDENT && !b->refs && b->slot != POOL_NONE &&
	       index_gpu_slot(lane->index, b) == POOL_NONE && b->flags & BLOCK_LISTED &&
	       !(b->flags & (BLOCK_CLEAN | BLOCK_WANTED)) && recode_wants(lane, b);
}

int recode_may_model(struct lane *lane, const struct block *b)
{
	return may_take(lane, b) && target(lane, b) == CODEC_SPEC_MODEL;
}

/* The coldest blocks first, then whatever the index has. */
static uint32_t find(struct lane *lane)
{
	struct recode *r = &lane->recode;
	uint32_t id = lane->dirty.head, end = index_end(lane->index);

	for (unsigned n = 0; n < RECODE_SCAN && id != BLOCK_NONE; n++) {
		const struct block *b = index_block(lane->index, id);

		if (may_take(lane, b))
			return id;
		id = block_list_next(lane->index, id);
	}
	if (r->look) {
		r->look = 0;
		r->left = end;
	}
	for (unsigned n = 0; n < RECODE_BATCH && r->left; n++, r->left--) {
		r->next = r->next + 1 < end ? r->next + 1 : 0;
		if (may_take(lane, index_block(lane->index, r->next)))
			return r->next;
	}
	return BLOCK_NONE;
}

/* ---- steps ---- */

static uint32_t generation(const struct lane *lane, uint32_t id)
{
	return id == BLOCK_NONE ? 0 : index_block(lane->index, id)->generation;
}

/* The block that had this number then, if it still has. */
static uint32_t still(const struct lane *lane, uint32_t id, uint32_t then)
{
	return generation(lane, id) == then ? id : BLOCK_NONE;
}

void recode_hold(struct lane *lane, uint32_t id, struct recode_place *ret_place)
{
	ret_place->prev = block_list_prev(lane->index, id);
	ret_place->next = block_list_next(lane->index, id);
	ret_place->prev_generation = generation(lane, ret_place->prev);
	ret_place->next_generation = generation(lane, ret_place->next);
	tier_hold(lane, id);
}

void recode_unhold(struct lane *lane, uint32_t id, const struct recode_place *place)
{
	tier_unhold_unused(lane, id, still(lane, place->prev, place->prev_generation),
			   still(lane, place->next, place->next_generation));
}

static void over(struct lane *lane)
{
	struct recode *r = &lane->recode;

	assert(!r->running && r->step != RECODE_NONE);
	profiles_drop(lane, r->task.profile);
	r->task.profile = NULL;
	r->step = RECODE_NONE;
	recode_unhold(lane, r->block, &r->place);
	r->block = BLOCK_NONE;
}

/* One try is enough: what failed once is not asked for again and again. */
static void keep_old(struct lane *lane, enum stats_id why)
{
	struct recode *r = &lane->recode;
	struct block *b = index_block(lane->index, r->block);

	b->tried = profiles_mark(r->task.profile);
	stats_add(&lane->stats, why, 1);
	over(lane);
}

static void give_up(struct lane *lane)
{
	stats_add(&lane->stats, STAT_RECODE_STOPPED, 1);
	over(lane);
}

static void step_decode(struct lane *lane, const struct block *b, struct device_task *d)
{
	*d = (struct device_task){ 0 };
	task_decodes(lane, d, b, pool_ptr(lane->pool, b->slot));
}

static void step_encode(struct lane *lane, const struct block *b, struct device_task *d)
{
	struct recode *r = &lane->recode;
	struct task *t = &r->task;
	uint64_t off = block_payload_off(lane, b);

	*d = (struct device_task){
		.op = DEVICE_ENCODE,
		.speculator = r->speculator,
		.position = b->position,
		.profile = t->profile->p,
		.verify = 1,
		.out = t->staging + off,
		.out_cap_bytes = lane->staging_bytes - off,
	};
}

static void step_check(struct lane *lane, const struct block *b, struct device_task *d)
{
	struct task *t = &lane->recode.task;

	memset(lane->recode.raw, 0,
	       lane->ns[b->ns]->geom.raw_bytes); /* not what lies there anyway */
	*d = (struct device_task){
		.op = DEVICE_DECODE,
		.in = t->staging + block_payload_off(lane, b),
		.in_bytes = t->info.encoded_bytes,
		.profile = t->info.speculator >= CODEC_SPEC_CHANNEL ? t->profile->p : NULL,
		.position = b->position,
		.expect_xxh3 = b->raw_xxh3,
	};
}

static int start_step(struct lane *lane)
{
	static void (*const make[])(struct lane *, const struct block *, struct device_task *) = {
		[RECODE_DECODE] = step_decode,
		[RECODE_ENCODE] = step_encode,
		[RECODE_CHECK] = step_check,
	};
	struct recode *r = &lane->recode;
	const struct block *b = index_block(lane->index, r->block);

	make[r->step](lane, b, &r->task.dev);
	r->task.kind = TASK_RECODE;
	r->task.dev.background = 1;
	r->task.dev.region = &r->packed;
	if (task_start(lane, &r->task, lane->device) < 0) {
		give_up(lane);
		return 0;
	}
	r->running = 1;
	return 1;
}

static void begin(struct lane *lane, uint32_t id)
{
	struct recode *r = &lane->recode;
	struct namespace *ns = lane->ns[index_block(lane->index, id)->ns];

	recode_hold(lane, id, &r->place);
	r->block = id;
	tier_policy_lets_go(lane, id);
	r->speculator = target(lane, index_block(lane->index, id));
	r->task.block = id;
	r->task.profile = profiles_use(ns->newest);
	r->packed = device_region_packed(&ns->geom, r->raw);
	r->step = RECODE_DECODE;
	r->begin_ns = lane->now_ns;
	(void)start_step(lane);
}

/* ---- what came of a step ---- */

static uint64_t padded(const struct lane *lane, uint64_t bytes)
{
	return (bytes + lane->granule_bytes - 1) & ~(uint64_t)(lane->granule_bytes - 1);
}

int recode_smaller(const struct lane *lane, const struct block *b, const struct codec_info *info)
{
	return padded(lane, block_payload_off(lane, b) + info->encoded_bytes) < b->record_bytes;
}

/* The old record's head, with what is new in it. */
static void build_record(const struct lane *lane, const struct block *b, const struct task *t)
{
	struct record_header *h = (struct record_header *)t->staging;

	memcpy(t->staging, pool_ptr(lane->pool, b->slot), block_payload_off(lane, b));
	h->speculator = t->info.speculator;
	h->payload_bytes = (uint32_t)t->info.encoded_bytes;
	memset(h->profile_digest, 0, sizeof(h->profile_digest));
	if (t->info.speculator >= CODEC_SPEC_CHANNEL)
		memcpy(h->profile_digest, codec_profile_digest(t->profile->p),
		       sizeof(h->profile_digest));
}

static void encoded(struct lane *lane)
{
	struct recode *r = &lane->recode;
	const struct block *b = index_block(lane->index, r->block);

	r->task.info = r->task.dev.info;
	profiles_seen(lane, lane->ns[b->ns], r->task.profile, r->task.dev.speculator,
		      r->task.info.encoded_bytes);
	if (r->task.info.raw_xxh3 != b->raw_xxh3)
		keep_old(lane, STAT_RECODE_FAILED);
	else if (!recode_smaller(lane, b, &r->task.info))
		keep_old(lane, STAT_RECODE_KEPT_BLOCKS);
	else
		r->step = RECODE_CHECK;
}

/*
 * A slot for a smaller record of the block: in a full pool the one that it has makes room for it.  For who reads the
 * gauges meanwhile the block never leaves host memory.
 */
static void replace_slot(struct lane *lane, struct block *b, uint32_t id, uint64_t padded_bytes)
{
	uint32_t slot;
	int r = pool_alloc(lane->pool, padded_bytes, id, &slot);

	pool_release(lane->pool, b->slot);
	if (r < 0)
		r = pool_alloc(lane->pool, padded_bytes, id, &slot);
	if (r < 0) /* its own again, at worst: larger than need be */
		r = pool_alloc(lane->pool, b->record_bytes, id, &slot);
	assert(r == 0);
	b->slot = slot;
}

/* Nobody else holds the block: it gets this record, which is smaller. */
static void replace(struct lane *lane, uint32_t id, const void *record, uint64_t bytes,
		    uint64_t padded_bytes)
{
	struct block *b = index_block(lane->index, id);
	struct namespace *ns = lane->ns[b->ns];
	uint32_t saved = b->record_bytes - b->padding_bytes - (uint32_t)bytes;

	assert(b->state == BLOCK_RESIDENT && b->refs == 1 &&
	       index_gpu_slot(lane->index, b) == POOL_NONE &&
	       !(b->flags & (BLOCK_LISTED | BLOCK_CLEAN | BLOCK_SPILLING)));
	assert(padded_bytes < b->record_bytes && padded_bytes >= bytes);
	replace_slot(lane, b, id, padded_bytes);
	memcpy(pool_ptr(lane->pool, b->slot), record, bytes);
	memset((uint8_t *)pool_ptr(lane->pool, b->slot) + bytes, 0, padded_bytes - bytes);
	quota_uncharge(ns->tenant, b->record_bytes - padded_bytes);
	quota_unhold(lane, b);
	quota_pin_resize(lane, b, (uint32_t)padded_bytes);
	quota_hold(lane, b);
	b->padding_bytes = (uint16_t)(padded_bytes - bytes);
	stats_sub(&lane->stats, STAT_POOL_USED_BYTES, saved);
	stats_sub(&lane->stats, STAT_CODED_BYTES, saved);
	atomic_fetch_sub_explicit(&ns->coded_bytes, saved, memory_order_relaxed);
}

void recode_commit(struct lane *lane, struct task *t, uint32_t id, uint8_t asked)
{
	struct block *b = index_block(lane->index, id);
	uint64_t bytes = block_payload_off(lane, b) + t->info.encoded_bytes,
		 before = b->record_bytes;

	if (b->refs > 1) { /* somebody has come: his the old record is */
		stats_add(&lane->stats, STAT_RECODE_STOPPED, 1);
		return;
	}
	build_record(lane, b, t);
	replace(lane, id, t->staging, bytes, padded(lane, bytes));
	profiles_set_block(lane, b, t->info.speculator >= CODEC_SPEC_CHANNEL ? t->profile : NULL);
	b->tried = profiles_mark(t->profile);
	b->model = t->info.speculator == CODEC_SPEC_MODEL;
	b->layer = t->info.speculator == CODEC_SPEC_LAYER;
	plan_block_coded(lane->ns[b->ns], t->info.speculator, t->info.encoded_bytes);
	b->model_tried = asked == CODEC_SPEC_MODEL;
	stats_add(&lane->stats, STAT_RECODED_BLOCKS, 1);
	stats_add(&lane->stats, STAT_LAYER_BLOCKS, t->info.speculator == CODEC_SPEC_LAYER);
	stats_add(&lane->stats, STAT_MODEL_BLOCKS, b->model);
	stats_add(&lane->stats, STAT_RECODE_SAVED_BYTES, before - b->record_bytes);
}

void recode_task_done(struct lane *lane, struct task *t)
{
	struct recode *r = &lane->recode;

	assert(t == &r->task && r->running);
	r->running = 0;
	stats_add(&lane->stats, STAT_RECODE_NS, t->dev.busy_ns);
	if (index_block(lane->index, r->block)->state != BLOCK_RESIDENT) { /* dropped meanwhile */
		give_up(lane);
		return;
	}
	if (t->dev.res < 0) {
		keep_old(lane, STAT_RECODE_FAILED);
		return;
	}
	switch (r->step) {
	case RECODE_DECODE:
		r->step = RECODE_ENCODE;
		break;
	case RECODE_ENCODE:
		encoded(lane);
		break;
	default:
		recode_commit(lane, t, r->block, r->speculator);
		over(lane);
		break;
	}
}

/* ---- the turn ---- */

int recode_idle(const struct lane *lane)
{
	return !lane->jobs_count && lane->now_ns - lane->recode.busy_ns >= RECODE_IDLE_NS;
}

/* Others wait for the block. */
static int too_long(const struct lane *lane)
{
	return lane->now_ns - lane->recode.begin_ns > RECODE_GIVE_UP_NS;
}

int recode_busy(const struct lane *lane)
{
	return lane->recode.step != RECODE_NONE || lane->chain.step != RECODE_NONE;
}

int recode_holds(const struct lane *lane, uint32_t id)
{
	const struct recode_chain *c = &lane->chain;

	/* While tasks have them nothing comes of letting them go. */
	for (unsigned i = 0; c->step != RECODE_NONE && !c->running && i < c->count; i++)
		if (c->link[i].block == id)
			return 1;
	return lane->recode.step != RECODE_NONE && lane->recode.block == id;
}

int recode_waits(const struct lane *lane)
{
	return recode_busy(lane) || lane->recode.look || lane->recode.left;
}

/* What is held is no victim, and a chain is kept by its leaf: the coldest one would outlive all others. */
int recode_make_way(struct lane *lane)
{
	struct recode *r = &lane->recode;

	if (!recode_chain_make_way(lane))
		return 0;
	if (r->step == RECODE_NONE)
		return 1;
	if (r->running)
		return 0;
	give_up(lane);
	return 1;
}

unsigned recode_run(struct lane *lane)
{
	struct recode *r = &lane->recode;
	uint32_t id;

	if (lane->jobs_count)
		r->busy_ns = lane->now_ns;
	if (lane->chain.step != RECODE_NONE)
		return recode_chain_run(lane);
	if (lane->chain.not_before_ns && lane->now_ns >= lane->chain.not_before_ns) {
		lane->chain.not_before_ns = 0;
		r->look = 1;
	}
	if (r->running)
		return 0;
	if (r->step != RECODE_NONE) {
		const struct block *b = index_block(lane->index, r->block);

		if (lane->stopping || b->state != BLOCK_RESIDENT || b->refs > 1 ||
		    r->task.profile != lane->ns[b->ns]->newest || too_long(lane)) {
			give_up(lane);
			return 1;
		}
		return recode_idle(lane) ? (unsigned)start_step(lane) : 0;
	}
	if (lane->stopping || lane->evict.running || !recode_idle(lane))
		return 0;
	id = find(lane);
	if (id != BLOCK_NONE && target(lane, index_block(lane->index, id)) == CODEC_SPEC_MODEL)
		recode_chain_begin(lane, id);
	else if (id != BLOCK_NONE)
		begin(lane, id);
	return id != BLOCK_NONE || r->left;
}
