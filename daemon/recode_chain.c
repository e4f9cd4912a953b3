/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recode_chain.c - blocks that are coded again with `model`: after those before them in their sequence, and so from
 * the first one on that wants it, and as many together as the device that runs the model takes at a time.
 *
 *	DECODE	all records into raw blocks, by the CPU
 *	ENCODE	all of them after each other, by whoever has the sequence
 *	CHECK	back to before the first; then as they will be read: the new record where that is smaller, else the old
 *
 * What does not go well ends the chain before that block; what comes behind it has its own try.  A block is held until
 * the chain is over, and gets its new record as in recode.c.
 */
#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

#include "daemon/lane_state.h"
#include "daemon/recode.h"
#include "daemon/record.h"
#include "daemon/sequences.h"
#include "daemon/util/lazy.h"

#define CHAIN_BYTES (32ull << 20)      /* raw, at most, but for one block */
#define CHAIN_GIVE_UP_NS 1000000000ull /* behind others' work */
#define CHAIN_REST_NS 10000000000ull   /* after the machine has failed one */

/* ---- memory ---- */

static int link_memory(const struct lane *lane, struct recode_link *l)
{
	if (!l->raw)
		l->raw = map_lazily(lane->staging_bytes);
	if (!l->task.staging)
		l->task.staging = map_lazily(lane->staging_bytes);
	l->task.raw_slot = POOL_NONE;
	return l->raw && l->task.staging;
}

void recode_chain_stop(struct lane *lane)
{
	for (unsigned i = 0; i < RECODE_CHAIN_MAX; i++) {
		struct recode_link *l = &lane->chain.link[i];

		if (l->raw)
			(void)munmap(l->raw, lane->staging_bytes);
		if (l->task.staging)
			(void)munmap(l->task.staging, lane->staging_bytes);
		l->raw = l->task.staging = NULL;
	}
}

/* ---- which blocks ---- */

/* The GPU makes batches of what comes together; the CPU does one after the other, and others wait for it. */
static uint32_t links_max(const struct lane *lane, const struct namespace *ns)
{
	uint64_t n = CHAIN_BYTES / ns->geom.raw_bytes;

	if (!sequences_gpu(lane) || n == 0)
		return 1;
	return n < RECODE_CHAIN_MAX ? (uint32_t)n : RECODE_CHAIN_MAX;
}

/* Of the last links, so that the chain has `count`: as they were.  The last one was held last. */
static void shorten(struct lane *lane, unsigned count)
{
	struct recode_chain *c = &lane->chain;

	assert(!c->running);
	while (c->count > count) {
		struct recode_link *l = &c->link[--c->count];

		recode_unhold(lane, l->block, &l->place);
		l->block = BLOCK_NONE;
	}
	if (c->next > count)
		c->next = count;
}

static void over(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;

	assert(!c->running);
	c->step = RECODE_NONE;
	c->abandoned = 0;
	sequences_give_back(lane, &c->sequence);
	shorten(lane, 0);
	profiles_drop(lane, c->profile);
	c->profile = NULL;
}

static void give_up(struct lane *lane)
{
	stats_add(&lane->stats, STAT_RECODE_STOPPED, 1);
	over(lane);
}

/* It is the machine that fails: the same blocks would be found again and again. */
static void give_up_for_a_while(struct lane *lane)
{
	lane->chain.not_before_ns = lane->now_ns + CHAIN_REST_NS;
	give_up(lane);
}

/* Now, or as soon as what a device has begun is over. */
static void abandon(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;

	if (!c->running) {
		give_up(lane);
		return;
	}
	c->abandoned = 1;
	for (unsigned i = 0; i < c->next; i++) {
		struct task *t = &c->link[i].task;

		if (t->device && t->device->ops->cancel)
			(void)t->device->ops->cancel(t->device, &t->dev);
	}
}

/* This link's block has had its try; those behind it have not. */
static void end_before(struct lane *lane, unsigned i, enum stats_id why)
{
	index_block(lane->index, lane->chain.link[i].block)->model_tried = 1;
	stats_add(&lane->stats, why, 1);
	shorten(lane, i);
}

static void add(struct lane *lane, uint32_t id)
{
	struct recode_chain *c = &lane->chain;
	struct recode_link *l = &c->link[c->count++];
	struct namespace *ns = lane->ns[index_block(lane->index, id)->ns];

	recode_hold(lane, id, &l->place);
	tier_policy_lets_go(lane, id);
	l->block = id;
	l->better = 0;
	l->packed = device_region_packed(&ns->geom, l->raw);
	l->task.kind = TASK_CHAIN;
	l->task.block = id;
	l->task.profile = c->profile;
}

void recode_chain_begin(struct lane *lane, uint32_t id)
{
	struct recode_chain *c = &lane->chain;
	struct block *b = index_block(lane->index, id);
	struct namespace *ns = lane->ns[b->ns];
	const uint32_t most = links_max(lane, ns);
	int n = sequences_path(lane, id);
	uint32_t i = 0, at;

	assert(c->step == RECODE_NONE && c->count == 0);
	if (n < 0) {
		b->model_tried = 1;
		stats_add(&lane->stats, STAT_RECODE_KEPT_BLOCKS, 1);
		return;
	}
	while (i < (uint32_t)n &&
	       !recode_may_model(lane, index_block(lane->index, lane->path[i].block)))
		i++;
	c->profile = profiles_use(ns->newest);
	for (; i <= (uint32_t)n && c->count < most; i++) {
		at = i < (uint32_t)n ? lane->path[i].block : id;
		if (!recode_may_model(lane, index_block(lane->index, at)) ||
		    !link_memory(lane, &c->link[c->count]))
			break;
		add(lane, at);
	}
	c->step = RECODE_DECODE;
	c->next = 0;
	c->begin_ns = lane->now_ns;
	if (c->count == 0)
		give_up_for_a_while(lane);
}

/* ---- steps ---- */

static void make_decode(struct lane *lane, struct recode_link *l)
{
	const struct block *b = index_block(lane->index, l->block);

	l->task.dev = (struct device_task){ 0 };
	task_decodes(lane, &l->task.dev, b, pool_ptr(lane->pool, b->slot));
}

static void make_encode(struct lane *lane, struct recode_link *l)
{
	const struct block *b = index_block(lane->index, l->block);
	uint64_t off = block_payload_off(lane, b);

	l->task.dev = (struct device_task){
		.op = DEVICE_ENCODE,
		.speculator = CODEC_SPEC_MODEL,
		.position = b->position,
		.profile = lane->chain.profile->p,
		.out = l->task.staging + off,
		.out_cap_bytes = lane->staging_bytes - off,
		.tokens = block_tokens(b, pool_ptr(lane->pool, b->slot)),
	};
}

static void make_check(struct lane *lane, struct recode_link *l)
{
	const struct block *b = index_block(lane->index, l->block);

	if (!l->better) {
		make_decode(lane, l);
	} else {
		l->task.dev = (struct device_task){
			.op = DEVICE_DECODE,
			.in = l->task.staging + block_payload_off(lane, b),
			.in_bytes = l->task.info.encoded_bytes,
			.profile = l->task.info.speculator >= CODEC_SPEC_CHANNEL
					   ? lane->chain.profile->p
					   : NULL,
			.position = b->position,
			.expect_xxh3 = b->raw_xxh3,
			.tokens = block_tokens(b, pool_ptr(lane->pool, b->slot)),
		};
	}
	l->task.dev.prefix_only = 1; /* the device compares checksums, and nobody wants the bytes */
}

/* The next link, if it can be now: 1; 0: not yet; or why it never will. */
static int start_next(struct lane *lane)
{
	static void (*const make[])(struct lane *, struct recode_link *) = {
		[RECODE_DECODE] = make_decode,
		[RECODE_ENCODE] = make_encode,
		[RECODE_CHECK] = make_check,
	};
	struct recode_chain *c = &lane->chain;
	struct recode_link *l = &c->link[c->next];
	struct device *d = lane->device;
	int r;

	if (c->step != RECODE_DECODE) {
		r = sequences_take(lane, &c->sequence, l->block, c->profile, 1);
		if (r <= 0)
			return r;
		d = c->sequence->device;
		if (d == lane->device && !c->next)
			shorten(lane, 1); /* one after the other is no batch */
	}
	make[c->step](lane, l);
	l->res = 0;
	l->task.dev.background = 1;
	l->task.dev.region = &l->packed;
	l->task.dev.sequence = c->step == RECODE_DECODE ? NULL : c->sequence->s;
	r = task_start(lane, &l->task, d);
	if (r < 0)
		return r == -EAGAIN ? 0 : r;
	if (c->step != RECODE_DECODE)
		sequences_begin(lane, c->sequence, l->block);
	c->running++;
	c->next++;
	return 1;
}

/* Which block does not go on, when it is that and not the machine. */
static int is_blocks_own(int res)
{
	return res != -ENOMEM && res != -EIO && res != -ECANCELED && res != -ENODEV;
}

static int start_all(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;
	unsigned before = c->next;
	int r = 1;

	while (r > 0 && c->next < c->count)
		r = start_next(lane);
	if (r >= 0 || c->running)
		return c->next > before;
	if (is_blocks_own(r))
		end_before(lane, c->next, STAT_RECODE_KEPT_BLOCKS);
	else
		shorten(lane, c->next);
	if (c->count == 0 && is_blocks_own(r))
		give_up(lane);
	else if (c->count == 0)
		give_up_for_a_while(lane);
	return 1;
}

/* ---- what came of a step ---- */

/* The chain ends before the first that failed. */
static void end_before_failed(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;

	for (unsigned i = 0; i < c->next; i++) {
		int32_t res = c->link[i].res;

		if (index_block(lane->index, c->link[i].block)->state != BLOCK_RESIDENT)
			shorten(lane, i); /* dropped meanwhile */
		else if (res < 0 && is_blocks_own(res))
			end_before(lane, i, STAT_RECODE_FAILED);
		else if (res < 0)
			shorten(lane, i);
	}
}

/* Records that are smaller are to be checked, and what is before them. */
static void encoded(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;
	unsigned last = 0;

	for (unsigned i = 0; i < c->count; i++) {
		struct recode_link *l = &c->link[i];
		struct block *b = index_block(lane->index, l->block);

		l->task.info = l->task.dev.info;
		profiles_seen(lane, lane->ns[b->ns], c->profile, CODEC_SPEC_MODEL,
			      l->task.info.encoded_bytes);
		l->better = l->task.info.raw_xxh3 == b->raw_xxh3 &&
			    recode_smaller(lane, b, &l->task.info);
		if (l->better) {
			last = i + 1;
			continue;
		}
		b->model_tried = 1;
		stats_add(&lane->stats,
			  l->task.info.raw_xxh3 == b->raw_xxh3 ? STAT_RECODE_KEPT_BLOCKS
							       : STAT_RECODE_FAILED,
			  1);
	}
	shorten(lane, last);
}

static void checked(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;

	for (unsigned i = 0; i < c->count; i++)
		if (c->link[i].better)
			recode_commit(lane, &c->link[i].task, c->link[i].block, CODEC_SPEC_MODEL);
}

/* All links of the step are over, or those before the first that was not to be. */
static void step_over(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;
	int32_t first = c->link[0].res;

	if (c->step == RECODE_ENCODE)
		sequences_back(lane, c->sequence, c->link[0].block);
	end_before_failed(lane);
	if (c->count == 0 && first < 0 && !is_blocks_own(first)) {
		give_up_for_a_while(lane);
		return;
	}
	if (c->step == RECODE_ENCODE)
		encoded(lane);
	if (c->step == RECODE_CHECK)
		checked(lane);
	if (c->step == RECODE_CHECK || c->count == 0) {
		over(lane);
		return;
	}
	c->step++;
	c->next = 0;
}

static struct recode_link *link_of(struct task *t)
{
	return (struct recode_link *)((uint8_t *)t - offsetof(struct recode_link, task));
}

void recode_chain_task_done(struct lane *lane, struct task *t)
{
	struct recode_chain *c = &lane->chain;

	assert(c->step != RECODE_NONE && c->running > 0);
	c->running--;
	stats_add(&lane->stats, STAT_RECODE_NS, t->dev.busy_ns);
	link_of(t)->res = t->dev.res;
	if (t->dev.sequence)
		sequences_end(lane, c->sequence, t->block, t->dev.res);
}

/* ---- the turn ---- */

static int failed(const struct recode_chain *c)
{
	for (unsigned i = 0; i < c->next; i++)
		if (c->link[i].res < 0)
			return 1;
	return 0;
}

/* Others wait for the machine, or for a place for their prefix. */
static int too_long(const struct lane *lane)
{
	return lane->jobs_count && (lane->config.model_sequences == 1 || !lane->predictor ||
				    lane->now_ns - lane->chain.begin_ns > CHAIN_GIVE_UP_NS);
}

int recode_chain_make_way(struct lane *lane)
{
	if (lane->chain.step == RECODE_NONE)
		return 1;
	abandon(lane);
	return lane->chain.step == RECODE_NONE;
}

unsigned recode_chain_run(struct lane *lane)
{
	struct recode_chain *c = &lane->chain;
	const int ends = c->next > 0 && (c->next == c->count || failed(c));
	const struct block *first;

	if (c->abandoned && !c->running) {
		give_up(lane);
		return 1;
	}
	if (c->abandoned)
		return 0;
	if (lane->stopping || too_long(lane)) {
		abandon(lane);
		return 1;
	}
	if (ends && c->running)
		return 0;
	if (ends) {
		step_over(lane);
		return 1;
	}
	first = index_block(lane->index, c->link[0].block);
	if (!c->running &&
	    (lane->stopping || too_long(lane) || c->profile != lane->ns[first->ns]->newest)) {
		give_up(lane);
		return 1;
	}
	return recode_idle(lane) ? (unsigned)start_all(lane) : 0;
}
