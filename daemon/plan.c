/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plan.c - what the lane tells planner.h and asks it: rates from tasks and I/O, room from the tiers, ratios from
 * each namespace's blocks.  A namespace's answer is kept for a moment, for it is asked block by block; control
 * reads it, and the rates, where they are shown.  Lane only.
 */
#include <math.h>

#include "daemon/lane_state.h"

#define PLAN_KEEP_NS 100000000ull
#define STORE_BUSY_MAX 0.5 /* of the device's time, for stores that code with more than they must */

static void show(_Atomic uint64_t *to, double value)
{
	uint64_t v = value > 0 ? (uint64_t)fmin(value, 1e18) : 0;

	atomic_store_explicit(to, v, memory_order_relaxed);
}

static const struct plan_rate *rate_of(const struct plan_machine *m, unsigned id)
{
	unsigned code = id - PLAN_SHOWN_CODE;

	switch (id) {
	case PLAN_SHOWN_COPY:
		return &m->copy;
	case PLAN_SHOWN_LINK:
		return &m->link;
	case PLAN_SHOWN_NVME_READ:
		return &m->nvme_read;
	case PLAN_SHOWN_NVME_WRITE:
		return &m->nvme_write;
	default:
		return &m->code[code / CODEC_SPEC_COUNT / PLAN_OPS]
			       [code / CODEC_SPEC_COUNT % PLAN_OPS][code % CODEC_SPEC_COUNT];
	}
}

static void show_rates(struct lane *lane)
{
	for (unsigned id = 0; id < PLAN_SHOWN_RATES; id++) {
		const struct plan_rate *r = rate_of(&lane->plan.machine, id);

		show(&lane->plan.shown[id].bytes_per_s, 1e9 / r->ns_per_byte);
		show(&lane->plan.shown[id].samples, (double)r->samples);
	}
}

void plan_start(struct lane *lane)
{
	planner_init(&lane->plan.machine, lane->cpu_workers);
	if (lane->config.plan)
		(void)planner_probe(&lane->plan.machine); /* what it could not measure is assumed */
	show_rates(lane);
}

const struct plan_shown_rate *lane_plan_rates(const struct lane *lane)
{
	return lane->plan.shown;
}

/* ---- what is measured ---- */

static void coded(struct lane *lane, const struct task *t, enum plan_op op, uint8_t speculator)
{
	enum plan_device d = t->device == lane->device ? PLAN_CPU : PLAN_GPU;

	plan_rate_seen(&lane->plan.machine.code[d][op][speculator], t->dev.region->geom->raw_bytes,
		       t->dev.busy_ns);
}

static void recoded(struct lane *lane, const struct task *t)
{
	const struct recode *r = &lane->recode;

	if (r->step == RECODE_ENCODE)
		coded(lane, t, PLAN_ENCODE, r->speculator);
	else if (r->step == RECODE_CHECK)
		coded(lane, t, PLAN_DECODE, t->info.speculator);
	else
		coded(lane, t, PLAN_DECODE, block_speculator(index_block(lane->index, r->block)));
}

void plan_task_done(struct lane *lane, const struct task *t)
{
	if (t->dev.res < 0)
		return;
	switch (t->kind) {
	case TASK_ENCODE:
		coded(lane, t, PLAN_ENCODE, t->dev.speculator);
		break;
	case TASK_DECODE:
	case TASK_DECODE_STAGE:
		coded(lane, t, PLAN_DECODE,
		      block_speculator(index_block(lane->index, t->job->items[t->item].block)));
		break;
	case TASK_COPY_OUT:
	case TASK_COPY_IN:
		plan_rate_seen(&lane->plan.machine.link, t->dev.region->geom->raw_bytes,
			       t->dev.busy_ns);
		break;
	case TASK_RECODE:
		recoded(lane, t);
		break;
	case TASK_CHAIN:
		if (t->dev.op == DEVICE_ENCODE)
			coded(lane, t, PLAN_ENCODE, CODEC_SPEC_MODEL);
		break;
	default: /* not of a kind that is planned with */
		break;
	}
}

void plan_block_coded(struct namespace *ns, uint8_t speculator, uint64_t coded_bytes)
{
	double ratio = (double)coded_bytes / (double)ns->geom.raw_bytes;
	double *r = &ns->plan_ratio[speculator];

	*r = *r > 0 ? *r + (ratio - *r) / 16 : ratio;
}

void plan_evicted(struct lane *lane, uint32_t id)
{
	const struct namespace *ns = lane->ns[index_block(lane->index, id)->ns];

	stats_add(&lane->stats, STAT_EVICTED_BLOCKS, 1);
	plan_demand_dropped(&lane->plan.demand, lane->now_ns, ns->geom.raw_bytes);
}

/* ---- what is asked ---- */

static enum plan_device coder(const struct lane *lane)
{
	return lane->gpu && !lane->gpu_dead && lane->gpu->ops->can_encode ? PLAN_GPU : PLAN_CPU;
}

/* As its blocks were; before there were any, as the profile promises. */
static double ratio_of(const struct lane *lane, const struct namespace *ns, uint8_t speculator)
{
	const struct ns_profile *np = ns->newest;
	int can = np && (speculator == CODEC_SPEC_CHANNEL ||
			 (speculator == CODEC_SPEC_LAYER && np->can_layer) ||
			 (speculator == CODEC_SPEC_MODEL && np->can_model &&
			  lane->config.speculator == CONFIG_SPECULATOR_MODEL));

	if (speculator == CODEC_SPEC_RAW)
		return 1;
	if (speculator >= CODEC_SPEC_CHANNEL && !can)
		return 0;
	if (ns->plan_ratio[speculator] > 0)
		return ns->plan_ratio[speculator];
	return can ? profiles_promised_ratio(ns, speculator) : 0;
}

static void blocks_of(const struct lane *lane, const struct namespace *ns, struct plan_blocks *ret)
{
	*ret = (struct plan_blocks){
		.device = coder(lane),
		.raw_bytes = ns->geom.raw_bytes,
		.tokens = ns->geom.block_tokens,
		.prefill_tokens_per_s = atomic_load_explicit(&ns->prefill_tokens_per_s,
							     memory_order_relaxed),
	};
	for (unsigned s = 0; s < CODEC_SPEC_COUNT; s++)
		ret->ratio[s] = ratio_of(lane, ns, (uint8_t)s);
}

static void room_of(struct lane *lane, struct plan_room *ret)
{
	*ret = (struct plan_room){
		.host_bytes = stats_get(&lane->stats, STAT_POOL_BYTES),
		.nvme_bytes = tier_has_nvme(lane) ? stats_get(&lane->stats, STAT_NVME_BYTES) : 0,
		.wanted_bytes = plan_demand_wanted(&lane->plan.demand, lane->now_ns,
						   stats_get(&lane->stats, STAT_RAW_BYTES)),
	};
}

static void show_weights(struct lane *lane, struct namespace *ns, const struct plan_room *room,
			 const struct plan_blocks *b)
{
	struct plan_weight w;

	for (unsigned s = 0; s < CODEC_SPEC_COUNT; s++) {
		struct plan_shown_way *to = &ns->plan_shown[s];

		(void)plan_weigh(&lane->plan.machine, room, b, (uint8_t)s, &w);
		show(&to->ratio_milli, b->ratio[s] * 1000);
		show(&to->host_milli, w.host_share * 1000);
		show(&to->nvme_milli, w.nvme_share * 1000);
		show(&to->host_ns, w.host_ns);
		show(&to->nvme_ns, w.nvme_ns);
		show(&to->gone_ns, w.gone_ns);
		show(&to->expected_ns, w.expected_ns);
		show(&to->assumed, w.assumed);
	}
}

/* As its blocks are coded: by the plan, or, before there is a profile, without one. */
static uint8_t coded_as(const struct namespace *ns, const struct plan_blocks *b)
{
	if (ns->plan_speculator != CODEC_SPEC_RAW && b->ratio[ns->plan_speculator] > 0)
		return ns->plan_speculator;
	return b->ratio[CODEC_SPEC_GENERIC] > 0 ? CODEC_SPEC_GENERIC : CODEC_SPEC_RAW;
}

static void look_at_place(struct lane *lane, struct namespace *ns, const struct plan_blocks *b)
{
	const struct plan_machine *m = &lane->plan.machine;
	uint8_t s = coded_as(ns, b);
	double coded = b->ratio[s] * (double)b->raw_bytes;
	int drops = lane->config.plan && lane->log && plan_drops(m, b, s, ns->plan_drops);

	show(&ns->plan_place.nvme_ns, plan_back_ns(m, b, s, coded));
	show(&ns->plan_place.prefill_ns, ceil(plan_prefill_ns(b)));
	show(&ns->plan_place.drops, drops);
	show(&ns->plan_place.promotes, plan_promotes(m, b, s));
	show(&ns->plan_place.host_ns, plan_host_ns(m, b, s, coded));
	show(&ns->plan_place.looked, 1);
	if (drops == ns->plan_drops)
		return;
	ns->plan_drops = (uint8_t)drops;
	tier_sort(lane);
}

void plan_look(struct lane *lane, struct namespace *ns)
{
	struct plan_blocks b;
	struct plan_room room;
	uint8_t before = ns->plan_speculator;
	uint64_t said = atomic_load_explicit(&ns->prefill_tokens_per_s, memory_order_relaxed);

	/* What an engine says anew holds from its next block on. */
	if (ns->plan_until_ns > lane->now_ns && said == ns->plan_prefill)
		return;
	ns->plan_prefill = said;
	ns->plan_until_ns = lane->now_ns + PLAN_KEEP_NS;
	blocks_of(lane, ns, &b);
	room_of(lane, &room);
	if (!before)
		before = CODEC_SPEC_CHANNEL;
	ns->plan_speculator = plan_best(&lane->plan.machine, &room, &b,
					1u << CODEC_SPEC_CHANNEL | 1u << CODEC_SPEC_LAYER, before);
	ns->plan_squeezed = room.wanted_bytes * b.ratio[CODEC_SPEC_CHANNEL] >
			    (double)room.host_bytes;
	look_at_place(lane, ns, &b);
	if (ns->plan_speculator != before) /* what was left as it is may be worth it now */
		lane->recode.look = 1;
	show_weights(lane, ns, &room, &b);
	show_rates(lane);
	atomic_store_explicit(&ns->plan_chosen, ns->plan_speculator, memory_order_relaxed);
}

void plan_stored(struct lane *lane, struct namespace *ns)
{
	plan_demand_stored(&lane->plan.demand, lane->now_ns, ns->geom.raw_bytes);
	plan_look(lane, ns);
}

uint8_t plan_speculator(struct lane *lane, struct namespace *ns)
{
	plan_look(lane, ns);
	return ns->plan_speculator;
}

uint8_t plan_store_speculator(struct lane *lane, struct namespace *ns)
{
	plan_look(lane, ns);
	if (ns->plan_speculator != CODEC_SPEC_LAYER || !ns->plan_squeezed ||
	    plan_demand_busy(&lane->plan.demand, &lane->plan.machine, coder(lane), CODEC_SPEC_LAYER,
			     lane->now_ns) > STORE_BUSY_MAX)
		return CODEC_SPEC_CHANNEL;
	return CODEC_SPEC_LAYER;
}

static double restore_ns(const struct lane *lane, const struct plan_blocks *blocks,
			 const struct block *b)
{
	const struct plan_machine *m = &lane->plan.machine;
	uint8_t s = block_speculator(b);

	return b->state == BLOCK_RESIDENT ? plan_host_ns(m, blocks, s, b->record_bytes)
					  : plan_back_ns(m, blocks, s, b->record_bytes);
}

void plan_of_block(const struct lane *lane, const struct namespace *ns, const struct block *b,
		   struct lane_found *ret)
{
	struct plan_blocks blocks;

	blocks_of(lane, ns, &blocks);
	ret->restore_ns = (uint64_t)restore_ns(lane, &blocks, b);
	ret->host_ns = (uint64_t)plan_host_ns(&lane->plan.machine, &blocks, block_speculator(b),
					      b->record_bytes);
	ret->prefill_ns =
		(uint64_t)ceil(plan_prefill_ns(&blocks)); /* 0 says that nothing was said */
}

uint32_t plan_worth_restoring(const struct lane *lane, const struct namespace *ns,
			      const uint32_t *ids, uint32_t count)
{
	struct plan_blocks blocks;
	double saved_ns = 0, best_ns = 0, prefill_ns;
	uint32_t best = 0;

	if (!atomic_load_explicit(&ns->prefill_tokens_per_s, memory_order_relaxed))
		return count;
	blocks_of(lane, ns, &blocks);
	prefill_ns = plan_prefill_ns(&blocks);
	for (uint32_t i = 0; i < count; i++) {
		saved_ns += prefill_ns -
			    restore_ns(lane, &blocks, index_block(lane->index, ids[i]));
		if (saved_ns > best_ns) {
			best_ns = saved_ns;
			best = i + 1;
		}
	}
	return best;
}
