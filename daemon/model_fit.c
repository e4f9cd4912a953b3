/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_fit.c - parameters of the `model` speculator, fitted by the daemon itself on what a namespace has stored: for
 * one namespace at a time, when there is nothing else to do.
 *
 *	NONE -> SCAN	a namespace has the model of its name, and a profile without that
 *	SCAN -> GATHER	chains of blocks from their first on, with token ids, enough of them
 *	GATHER -> FIT	they lie decoded in memory
 *	FIT -> NONE	its profile has a model's part now, or it is not worth it
 *	any -> NONE	not enough blocks, or one of them has gone: looked at again in a while
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/lane_state.h"
#include "daemon/model_sample.h"
#include "daemon/recode.h"
#include "daemon/record.h"
#include "daemon/sequences.h"
#include "daemon/util/lazy.h"
#include "gpu/codec/model.h"

#define MODEL_FIT_LOOK_NS 1000000000ull /* between looks for enough blocks */
#define MODEL_FIT_SCAN 256u		/* entries of the index in one turn */
#define MODEL_FIT_CHAIN_TOKENS 1024u	/* of one sequence: many say more than one long one */
#define MODEL_FIT_TOKENS_MIN 64u

void model_fit_start(struct lane *lane)
{
	lane->model_fit.task.raw_slot = POOL_NONE;
}

static void over(struct lane *lane)
{
	struct model_fit *f = &lane->model_fit;

	assert(!f->running);
	if (f->raw)
		(void)munmap(f->raw, f->raw_bytes);
	free(f->entry);
	free(f->positions);
	free(f->ids);
	f->raw = NULL;
	f->entry = NULL;
	f->positions = NULL;
	f->ids = NULL;
	f->count = f->next = 0;
	f->step = MODEL_FIT_NONE;
	f->look_ns = lane->now_ns + MODEL_FIT_LOOK_NS;
}

void model_fit_stop(struct lane *lane)
{
	over(lane);
}

/* ---- whose turn ---- */

static const struct mspec_model *model_of(struct namespace *ns)
{
	return atomic_load_explicit(&ns->fit_model, memory_order_acquire);
}

static int wants(const struct lane *lane, struct namespace *ns)
{
	const struct ns_profile *np = ns->newest;

	return np && !np->can_model && !ns->model_fit_failed && model_of(ns) && profiles_room(ns) &&
	       (ns->fit_state == NS_FIT_IDLE ||
		(ns->fit_state == NS_FIT_SAMPLING && np->can_layer)) &&
	       lane->config.speculator == CONFIG_SPECULATOR_MODEL;
}

static int is_draft(struct namespace *ns)
{
	struct mspec_shape shape;

	return mspec_shape_of(&ns->geom, &shape) == 0 &&
	       mspec_mode_for(model_of(ns), shape) == MSPEC_DRAFT;
}

static uint32_t goal(const struct lane *lane, struct namespace *ns)
{
	uint64_t wish = is_draft(ns) ? lane->config.model_draft_tokens
				     : lane->config.model_fit_tokens,
		 tokens = wish / ns->geom.block_tokens,
		 memory = lane->config.profile_sample_bytes / ns->geom.raw_bytes;

	return (uint32_t)(tokens < memory ? tokens : memory);
}

static void look(struct lane *lane)
{
	struct model_fit *f = &lane->model_fit;
	struct namespace *ns = NULL;

	f->look_ns = lane->now_ns + MODEL_FIT_LOOK_NS;
	for (uint32_t i = 0; i < lane->ns_end && !ns; i++) {
		f->turn = f->turn + 1 < lane->ns_end ? f->turn + 1 : 0;
		if (lane->ns[f->turn] && wants(lane, lane->ns[f->turn]))
			ns = lane->ns[f->turn];
	}
	if (!ns || goal(lane, ns) * ns->geom.block_tokens < MODEL_FIT_TOKENS_MIN)
		return;
	f->ns = ns;
	f->goal = goal(lane, ns);
	f->entry = calloc(f->goal, sizeof(*f->entry));
	f->positions = calloc(f->goal, sizeof(*f->positions));
	f->ids = calloc(f->goal, (size_t)ns->geom.block_tokens * sizeof(*f->ids));
	f->scan = 0;
	f->step = MODEL_FIT_SCAN_INDEX;
	if (!f->entry || !f->positions || !f->ids)
		over(lane);
}

/* ---- which blocks ---- */

static int fits(const struct block *b)
{
	return b->state == BLOCK_RESIDENT && b->slot != POOL_NONE && b->flags & BLOCK_HAS_TOKENS &&
	       !b->model;
}

/* The chain that ends with this block, from its start as far as it can be used. */
static void take_chain(struct lane *lane, uint32_t id)
{
	struct model_fit *f = &lane->model_fit;
	uint32_t tokens = f->ns->geom.block_tokens, most = MODEL_FIT_CHAIN_TOKENS / tokens, end;
	int n = sequences_path(lane, id);

	if (n < 0)
		return;
	lane->path[n].block = id; /* there is room: n is less than a sequence may have */
	end = model_sample_wants(f->entry, f->positions, f->count, lane->path, (uint32_t)n + 1u,
				 most ? most : 1u);
	for (uint32_t i = 0; i < end && f->count < f->goal; i++) {
		uint32_t at = lane->path[i].block;
		const struct block *b = index_block(lane->index, at);

		if (!fits(b))
			return;
		f->entry[f->count] = (struct sequence_step){ at, b->generation };
		f->positions[f->count++] = i * tokens;
	}
}

static void scan(struct lane *lane)
{
	struct model_fit *f = &lane->model_fit;
	uint32_t end = index_end(lane->index);

	for (unsigned n = 0; n < MODEL_FIT_SCAN && f->scan < end && f->count < f->goal;
	     n++, f->scan++) {
		const struct block *b = index_block(lane->index, f->scan);

		if (b->ns == f->ns->id && fits(b) && !b->children)
			take_chain(lane, f->scan);
	}
	if (f->count == f->goal) {
		f->raw_bytes = f->count * f->ns->geom.raw_bytes;
		f->raw = map_lazily(f->raw_bytes);
		f->step = MODEL_FIT_GATHER;
		if (!f->raw)
			over(lane);
	} else if (f->scan == end) {
		over(lane);
	}
}

/* ---- their bytes ---- */

static void gather(struct lane *lane)
{
	struct model_fit *f = &lane->model_fit;
	const struct namespace *ns = f->ns;
	const struct sequence_step *e = &f->entry[f->next];
	const struct block *b = index_block(lane->index, e->block);
	const uint8_t *slot;

	if (b->generation != e->generation || !fits(b)) {
		over(lane);
		return;
	}
	slot = pool_ptr(lane->pool, b->slot);
	memcpy(f->ids + (size_t)f->next * ns->geom.block_tokens,
	       slot + sizeof(struct record_header), (size_t)ns->geom.block_tokens * 4);
	f->packed = device_region_packed(&ns->geom, f->raw + f->next * ns->geom.raw_bytes);
	f->task.kind = TASK_GATHER;
	f->task.block = e->block;
	f->task.dev = (struct device_task){ .region = &f->packed, .background = 1 };
	task_decodes(lane, &f->task.dev, b, slot);
	tier_hold(lane, e->block);
	if (task_start(lane, &f->task, lane->device) < 0)
		tier_unhold(lane, e->block);
	else
		f->running = 1;
}

void model_fit_gathered(struct lane *lane, struct task *t)
{
	struct model_fit *f = &lane->model_fit;

	assert(t == &f->task && f->running);
	f->running = 0;
	tier_unhold(lane, t->block);
	if (t->dev.res < 0)
		over(lane);
	else if (++f->next == f->count)
		f->step = MODEL_FIT_FIT;
}

/* ---- the fit, on the thread that fits maps from layer to layer ---- */

static void start_fit(struct lane *lane)
{
	struct model_fit *f = &lane->model_fit;
	struct task *t = &lane->layer_task;

	if (!wants(lane, f->ns)) {
		over(lane);
		return;
	}
	t->kind = TASK_FIT_MODEL;
	t->ns = f->ns;
	t->dev = (struct device_task){
		.op = DEVICE_FIT_MODEL,
		.geom = &f->ns->geom,
		.in = f->raw,
		.in_bytes = f->raw_bytes,
		.samples_count = f->count,
		.positions = f->positions,
		.tokens = f->ids,
		.model = model_of(f->ns),
		.previous = lane->config.profile_previous == CONFIG_PREVIOUS_AUTO
				    ? MSPEC_PREVIOUS_DEFAULT
				    : (uint8_t)lane->config.profile_previous,
		.profile = f->ns->newest->p,
	};
	if (task_start(lane, t, lane->device) < 0)
		return;
	lane->layer_busy = 1;
	f->running = 1;
	t->profile = profiles_use(f->ns->newest);
}

void model_fit_done(struct lane *lane, struct task *t)
{
	struct model_fit *f = &lane->model_fit;
	struct namespace *ns = t->ns;
	struct ns_profile *base = t->profile;
	uint64_t model_milli = profiles_milli(t->dev.bits_model);

	lane->layer_busy = 0;
	f->running = 0;
	t->profile = NULL;
	if (t->dev.res < 0) {
		if (t->dev.res != -ECANCELED)
			profiler_note(lane, ns, PROFILE_NOTE_NO_MODEL, t->dev.res);
		ns->model_fit_failed = 1;
	} else if (base == ns->newest && profiles_room(ns) &&
		   model_milli < base->promised[base->can_layer]) {
		profiles_install(lane, ns, t->dev.ret_profile,
				 (uint64_t)f->count * ns->geom.block_tokens, base->promised[0],
				 base->promised[1]);
	} else { /* a newer one has come: it is fitted to that */
		ns->model_fit_failed = base == ns->newest && profiles_room(ns);
		codec_profile_free(t->dev.ret_profile);
		profiler_note(lane, ns, PROFILE_NOTE_NO_BETTER, 0);
	}
	profiles_drop(lane, base);
	over(lane);
}

/* ---- the turn ---- */

unsigned model_fit_run(struct lane *lane)
{
	struct model_fit *f = &lane->model_fit;

	if (f->running || lane->config.speculator != CONFIG_SPECULATOR_MODEL)
		return 0;
	if (lane->stopping) {
		over(lane);
		return 0;
	}
	if (f->step != MODEL_FIT_FIT && !recode_idle(lane))
		return 0;
	switch (f->step) {
	case MODEL_FIT_NONE:
		if (lane->now_ns >= f->look_ns)
			look(lane);
		return f->step != MODEL_FIT_NONE;
	case MODEL_FIT_SCAN_INDEX:
		scan(lane);
		return 1;
	case MODEL_FIT_GATHER:
		gather(lane);
		return 1;
	case MODEL_FIT_FIT:
		if (!lane->layer_busy)
			start_fit(lane);
		return 0;
	}
	return 0;
}
