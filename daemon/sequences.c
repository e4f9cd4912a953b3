/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequences.c - prefixes for the `model` speculator: a block that it codes can be coded, and decoded, only after
 * all blocks before it in its sequence.  A place holds one sequence's prefix, ready to go on from; who takes one for
 * a block gets it when it holds just the blocks before that one.  What is missing is decoded into it here, from
 * wherever those blocks are; what is too much is forgotten.
 *
 *	free -> taken		for a block; idle ones that hold part of its prefix first, then the longest unused
 *	taken -> running	a task has it: one that catches up, or its owner's
 *	running -> taken	it holds a block more, or not
 *	taken -> idle		given back; kept for a while, for whoever goes on from there
 *	idle -> free		nobody did
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/lane_state.h"
#include "daemon/sequences.h"
#include "daemon/util/lazy.h"

#define PREDICTOR_FULL_NS 60000000000ull

/* ---- places ---- */

static int runs(const struct lane_sequence *q)
{
	return q->busy || q->steps;
}

static void place_free(struct lane *lane, struct lane_sequence *q)
{
	assert(!q->taken && !runs(q));
	if (!q->s)
		return;
	lane->sequences_bytes -= q->bytes;
	stats_set(&lane->stats, STAT_SEQUENCE_BYTES, lane->sequences_bytes);
	stats_sub(&lane->stats, STAT_SEQUENCES, 1);
	stats_sub(&lane->stats, STAT_SEQUENCES_GPU, q->device == lane->predictor);
	q->s = q->device->ops->sequence_free(q->s);
	(void)munmap(q->raw, q->raw_bytes);
	free(q->holds);
	free(q->task);
	profiles_drop(lane, q->profile);
	*q = (struct lane_sequence){ .wanted = BLOCK_NONE };
}

/* Its GPU is gone, or gave no memory: another takes its place. */
static int place_lost(const struct lane *lane, const struct lane_sequence *q)
{
	return q->device == lane->predictor &&
	       (lane->gpu_dead || q->no_memory || q->device->ops->dead(q->device) < 0);
}

static int on_gpu(const struct lane *lane, const struct lane_sequence *q)
{
	return q->s && lane->predictor && q->device == lane->predictor && !place_lost(lane, q);
}

/* Lately it had no memory for another place. */
static int predictor_full(const struct lane *lane)
{
	return lane->now_ns < lane->predictor_full_ns;
}

/* Is there one on the GPU, whoever has it? */
static int any_on_gpu(const struct lane *lane)
{
	for (uint32_t i = 0; i < lane->config.model_sequences; i++)
		if (on_gpu(lane, &lane->sequence[i]))
			return 1;
	return 0;
}

int sequences_gpu(const struct lane *lane)
{
	return lane->predictor && !lane->gpu_dead && (!predictor_full(lane) || any_on_gpu(lane));
}

/* On the GPU, if it may be, and that can; else on the CPU, which is the slower the larger the model. */
static int make_sequence(struct lane *lane, struct lane_sequence *q, struct namespace *ns,
			 struct ns_profile *np, int gpu)
{
	int r = -EOPNOTSUPP;

	q->device = lane->predictor;
	if (q->device && gpu && !lane->gpu_dead && q->device->ops->dead(q->device) == 0)
		r = q->device->ops->sequence_new(q->device, &ns->geom, np->p, &q->s);
	if (r != -EOPNOTSUPP && r != -ENOMEM)
		return r;
	q->device = lane->device;
	return q->device->ops->sequence_new(q->device, &ns->geom, np->p, &q->s);
}

static int make_steps(struct lane_sequence *q)
{
	q->steps_max = q->device->sequence_tasks < SEQUENCE_STEPS_MAX ? q->device->sequence_tasks
								      : SEQUENCE_STEPS_MAX;
	q->task = calloc(q->steps_max, sizeof(*q->task));
	for (unsigned i = 0; q->task && i < q->steps_max; i++)
		q->task[i].raw_slot = POOL_NONE;
	return q->task ? 0 : -ENOMEM;
}

/* A task that is made, on its way to the device.  block: that it adds. */
static int begin_step(struct lane *lane, struct lane_sequence *q, struct task *t, uint32_t block)
{
	int r;

	t->kind = TASK_SEQUENCE;
	t->block = block;
	t->sequence = q;
	r = task_start(lane, t, q->device);
	if (r < 0)
		return r;
	lane->sequence_steps++;
	q->steps++;
	return 0;
}

/* Its model to the GPU, and memory: what has not room there is found out before anybody's block depends on it. */
static int prepare(struct lane *lane, struct lane_sequence *q)
{
	struct task *t = &q->task[0];
	int r;

	t->dev = (struct device_task){ .op = DEVICE_PREPARE, .sequence = q->s };
	r = begin_step(lane, q, t, BLOCK_NONE);
	if (r < 0) {
		free(q->task);
		q->task = NULL;
	}
	return r;
}

static int place_make(struct lane *lane, struct lane_sequence *q, struct namespace *ns,
		      struct ns_profile *np, int gpu)
{
	void *raw = map_lazily(ns->geom.raw_bytes);
	int r;

	if (!raw)
		return -ENOMEM;
	q->holds = calloc(sequences_blocks_max(lane, ns), sizeof(*q->holds));
	r = q->holds ? make_sequence(lane, q, ns, np, gpu) : -ENOMEM;
	if (r == 0)
		r = make_steps(q);
	if (r == 0 && q->device != lane->device)
		r = prepare(lane, q);
	if (r < 0) {
		(void)munmap(raw, ns->geom.raw_bytes);
		free(q->holds);
		q->holds = NULL;
		if (q->s)
			q->s = q->device->ops->sequence_free(q->s);
		return r;
	}
	q->raw = raw;
	q->raw_bytes = ns->geom.raw_bytes;
	q->packed = device_region_packed(&ns->geom, raw);
	q->profile = profiles_use(np);
	q->ns = ns;
	stats_add(&lane->stats, STAT_SEQUENCES, 1);
	stats_add(&lane->stats, STAT_SEQUENCES_GPU, q->device == lane->predictor);
	return 0;
}

static void count_bytes(struct lane *lane, struct lane_sequence *q)
{
	uint64_t bytes = q->device->ops->sequence_bytes(q->s);

	lane->sequences_bytes += bytes - q->bytes;
	q->bytes = bytes;
	stats_set(&lane->stats, STAT_SEQUENCE_BYTES, lane->sequences_bytes);
}

/* ---- paths ---- */

static struct sequence_block block_now(const struct lane *lane, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);

	return (struct sequence_block){ id, b->generation, b->raw_xxh3 };
}

static int is_same(const struct sequence_block *a, const struct sequence_block *b)
{
	return a->block == b->block && a->generation == b->generation && a->raw_xxh3 == b->raw_xxh3;
}

uint32_t sequences_blocks_max(const struct lane *lane, const struct namespace *ns)
{
	uint32_t n = lane->config.model_tokens_max / ns->geom.block_tokens;

	return n < SEQUENCE_BLOCKS_MAX ? n : SEQUENCE_BLOCKS_MAX;
}

int sequences_path(struct lane *lane, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);
	const struct namespace *ns = lane->ns[b->ns];
	uint32_t tokens = ns->geom.block_tokens, n = b->position / tokens;

	if (b->position == CODEC_POSITION_UNKNOWN || b->position % tokens)
		return -ENODATA;
	if (n >= sequences_blocks_max(lane, ns))
		return -E2BIG;
	for (uint32_t i = n; i-- > 0;) {
		id = index_parent(lane->index, id);
		if (id == BLOCK_NONE)
			return -ENODATA;
		b = index_block(lane->index, id);
		if (b->ns != ns->id || b->position != i * tokens || !lookup_visible(b))
			return -ENODATA;
		lane->path[i] = block_now(lane, id);
	}
	return (int)n;
}

int sequences_reachable(struct lane *lane, uint32_t id)
{
	return sequences_path(lane, id) >= 0;
}

static uint32_t common(const struct lane *lane, const struct lane_sequence *q, uint32_t n)
{
	uint32_t i = 0;

	while (i < n && i < q->ahead && is_same(&q->holds[i], &lane->path[i]))
		i++;
	return i;
}

/* Does it hold just the blocks before this one, or will it?  Its last one says it for all. */
static int stands_before(const struct lane *lane, const struct lane_sequence *q, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);
	uint32_t parent = index_parent(lane->index, id);
	struct sequence_block last;

	if ((uint64_t)q->ahead * q->ns->geom.block_tokens != b->position ||
	    q->ahead >= sequences_blocks_max(lane, q->ns))
		return 0;
	if (!q->ahead)
		return 1;
	if (parent == BLOCK_NONE)
		return 0;
	last = block_now(lane, parent);
	return is_same(&q->holds[q->ahead - 1], &last);
}

static void cut(struct lane_sequence *q, uint32_t count)
{
	assert(!runs(q));
	q->device->ops->sequence_truncate(q->s, count * q->ns->geom.block_tokens);
	q->count = q->ahead = count;
}

/* ---- taking ---- */

/*
 * The one to go on with: it shares most with the path; else a free place; else the longest unused.  While the GPU has
 * no memory for more places those that it has are waited for; but what is as long as what it had none for (too_long) is
 * not put there.
 */
static struct lane_sequence *choose(struct lane *lane, const struct ns_profile *np, uint32_t n,
				    int too_long)
{
	struct lane_sequence *best = NULL, *empty = NULL, *oldest = NULL, *last = NULL;
	const int gpu_only = predictor_full(lane) && !too_long && any_on_gpu(lane);
	uint32_t most = 0;

	for (uint32_t i = 0; i < lane->config.model_sequences; i++) {
		struct lane_sequence *q = &lane->sequence[i];

		if (q->taken || runs(q) || (gpu_only && q->s && !on_gpu(lane, q)))
			continue;
		if (!q->s) {
			empty = gpu_only ? NULL : q;
		} else if (too_long && on_gpu(lane, q)) {
			last = q;
		} else if (q->profile == np && common(lane, q, n) >= (best ? most + 1 : 1)) {
			best = q;
			most = common(lane, q, n);
		} else if (!oldest || q->used_ns < oldest->used_ns) {
			oldest = q;
		}
	}
	return best ? best : empty ? empty : oldest ? oldest : last;
}

static int take(struct lane *lane, uint32_t id, struct ns_profile *np, struct lane_sequence **ret)
{
	struct namespace *ns = lane->ns[index_block(lane->index, id)->ns];
	int n = sequences_path(lane, id), r = 0, too_long;
	struct lane_sequence *q;

	if (n < 0)
		return n;
	too_long = predictor_full(lane) && (uint32_t)n >= lane->predictor_full_blocks;
	q = choose(lane, np, (uint32_t)n, too_long);
	if (!q)
		return 0;
	if (!q->s || q->profile != np || (too_long && on_gpu(lane, q))) {
		/* What one place gives back there is another's. */
		const int gpu = !too_long && (!predictor_full(lane) || on_gpu(lane, q));

		place_free(lane, q);
		r = place_make(lane, q, ns, np, gpu);
	}
	if (r < 0)
		return r == -EAGAIN ? 0 : r;
	q->taken = 1;
	q->failed = 0;
	*ret = q;
	return 1;
}

/* In a slot that the CPU reads?  1; 0: later; -ENODATA: never; -ESTALE: not after what this one holds. */
static int within_reach(struct lane *lane, const struct lane_sequence *q, uint32_t id)
{
	const struct block *b = index_block(lane->index, id);

	if (b->model && profiles_of_block(lane, b) != q->profile)
		return -ESTALE;
	switch (b->state) {
	case BLOCK_RESIDENT:
		if (tier_gpu_lost(lane, b))
			return -ENODATA;
		return b->slot != POOL_NONE ? 1 : tier_gpu_want_host(lane, id);
	case BLOCK_NVME:
		return b->flags & BLOCK_WANTED ? 0 : -ENODATA;
	case BLOCK_FETCHING:
		return 0;
	default:
		return -ENODATA;
	}
}

static struct task *free_step(struct lane_sequence *q)
{
	unsigned i = 0;

	assert(q->steps < q->steps_max);
	while (q->task[i].device)
		i++;
	return &q->task[i];
}

static void will_hold(struct lane *lane, struct lane_sequence *q, uint32_t id)
{
	assert(q->ahead < sequences_blocks_max(lane, q->ns));
	q->holds[q->ahead++] = block_now(lane, id);
}

/* The block that is wanted; it stays held until it is in.  1; 0: not now. */
static int start_step(struct lane *lane, struct lane_sequence *q)
{
	const struct block *b = index_block(lane->index, q->wanted);
	struct task *t = free_step(q);
	int r;

	t->dev = (struct device_task){ .region = &q->packed,
				       .sequence = q->s,
				       .prefix_only = 1,
				       .background = q->background };
	task_decodes(lane, &t->dev, b, pool_ptr(lane->pool, b->slot));
	r = begin_step(lane, q, t, q->wanted);
	if (r < 0)
		return r == -EAGAIN ? 0 : r;
	will_hold(lane, q, q->wanted);
	q->wanted = BLOCK_NONE;
	return 1;
}

static void want(struct lane *lane, struct lane_sequence *q, uint32_t id)
{
	if (q->wanted == id)
		return;
	if (q->wanted != BLOCK_NONE)
		tier_unhold(lane, q->wanted);
	q->wanted = id;
	if (id == BLOCK_NONE)
		return;
	tier_hold(lane, id);
	tier_want(lane, id);
}

/* As many blocks nearer as the device takes.  0, or why not. */
static int catch_up(struct lane *lane, struct lane_sequence *q, uint32_t n)
{
	uint32_t keep = common(lane, q, n);
	int r = 1;

	if (keep < q->ahead && runs(q))
		return 0;
	if (keep < q->ahead)
		cut(q, keep);
	while (r > 0 && q->ahead < n && q->steps < q->steps_max) {
		want(lane, q, lane->path[q->ahead].block);
		r = within_reach(lane, q, q->wanted);
		if (r > 0)
			r = start_step(lane, q);
	}
	if (r < 0)
		want(lane, q, BLOCK_NONE);
	return r < 0 && !q->steps ? r : 0; /* of what is under way something may still come */
}

int sequences_take(struct lane *lane, struct lane_sequence **pq, uint32_t id, struct ns_profile *np,
		   int background)
{
	struct lane_sequence *q = *pq;
	int n, r;

	if (!q) {
		r = take(lane, id, np, pq);
		if (r <= 0)
			return r;
		q = *pq;
		q->background = (uint8_t)background;
		q->wanted = BLOCK_NONE;
	}
	if (q->taken && place_lost(lane, q) && !runs(q)) { /* another will do */
		want(lane, q, BLOCK_NONE);
		q->taken = 0;
		place_free(lane, q);
		*pq = NULL;
		return 0;
	}
	if (q->busy) /* some devices take blocks one behind the other */
		return q->busy < q->device->sequence_tasks && !q->broken && q->profile == np &&
		       stands_before(lane, q, id);
	if (q->steps && (q->broken || q->steps > q->steps_max / 2u))
		return 0;
	if (q->failed) {
		r = q->failed;
		q->failed = 0;
		return r;
	}
	if (q->profile != np)
		return -ESTALE;
	if (stands_before(lane, q, id))
		return !q->steps;
	n = sequences_path(lane, id);
	if (n < 0)
		return n;
	if (!q->steps && common(lane, q, (uint32_t)n) == (uint32_t)n) {
		cut(q, (uint32_t)n);
		return 1;
	}
	return catch_up(lane, q, (uint32_t)n);
}

/* ---- while it is taken ---- */

static void holds_too(struct lane_sequence *q, uint32_t id)
{
	assert(q->holds[q->count].block == id && q->count < q->ahead);
	q->count++;
}

/* What a GPU did not do, for want of memory: this place is lost, and there are no more for a while. */
static void take_note(struct lane *lane, struct lane_sequence *q, int32_t res)
{
	if (q->device == lane->device || (res != -ENOMEM && res != -EOPNOTSUPP))
		return;
	q->no_memory = 1;
	lane->predictor_full_ns = lane->now_ns + PREDICTOR_FULL_NS;
	lane->predictor_full_blocks = q->count ? q->count : UINT32_MAX;
}

void sequences_begin(struct lane *lane, struct lane_sequence *q, uint32_t id)
{
	assert(q->taken && !q->steps && !q->broken);
	q->busy++;
	will_hold(lane, q, id);
}

/* A task is over, and with the last one what they did before one of them failed. */
static void one_over(struct lane *lane, struct lane_sequence *q, uint32_t id, int32_t res)
{
	take_note(lane, q, res);
	if (res == 0 && !q->broken)
		holds_too(q, id);
	else
		q->broken = 1;
	if (runs(q))
		return; /* the device has it still */
	if (q->broken)
		cut(q, q->count);
	q->broken = 0;
	count_bytes(lane, q);
}

void sequences_end(struct lane *lane, struct lane_sequence *q, uint32_t id, int32_t res)
{
	assert(q->busy > 0);
	q->busy--;
	one_over(lane, q, id, res);
}

void sequences_back(const struct lane *lane, struct lane_sequence *q, uint32_t id)
{
	uint32_t count = index_block(lane->index, id)->position / q->ns->geom.block_tokens;

	assert(!runs(q));
	if (q->count > count)
		cut(q, count);
}

void sequences_give_back(struct lane *lane, struct lane_sequence **pq)
{
	struct lane_sequence *q = *pq;

	*pq = NULL;
	if (!q)
		return;
	assert(q->taken && !q->busy);
	q->taken = 0;
	q->used_ns = lane->now_ns;
	want(lane, q, BLOCK_NONE);
	for (unsigned i = 0; q->background && q->device->ops->cancel && i < q->steps_max; i++)
		if (q->task[i].device)
			(void)q->device->ops->cancel(q->device, &q->task[i].dev);
}

void sequences_task_done(struct lane *lane, struct task *t)
{
	struct lane_sequence *q = t->sequence;
	const int32_t res = t->dev.res;

	assert(lane->sequence_steps > 0 && q->steps > 0);
	lane->sequence_steps--;
	q->steps--;
	if (t->block == BLOCK_NONE) { /* it was prepared, or another place must be */
		take_note(lane, q, res < 0 ? -ENOMEM : 0);
		return;
	}
	stats_add(&lane->stats, STAT_SEQUENCE_NS, t->dev.busy_ns);
	stats_add(&lane->stats, STAT_SEQUENCE_STEPS, 1);
	if (res < 0 && !q->broken) {
		q->failed = res;
		/* What does not decode after what is before it never will. */
		if (res == -EBADMSG || res == -ESTALE)
			tier_quarantine(lane, t->block);
	}
	one_over(lane, q, t->block, res);
	tier_unhold(lane, t->block);
}

/* ---- the turn ---- */

void sequences_run(struct lane *lane)
{
	for (uint32_t i = 0; i < lane->config.model_sequences; i++) {
		struct lane_sequence *q = &lane->sequence[i];

		if (q->s && !q->taken && !runs(q) &&
		    (lane->stopping || lane->now_ns - q->used_ns > lane->config.model_idle_ns ||
		     place_lost(lane, q)))
			place_free(lane, q);
	}
}

int sequences_start(struct lane *lane)
{
	lane->sequence = calloc(lane->config.model_sequences + 1u, sizeof(*lane->sequence));
	lane->path = calloc(SEQUENCE_BLOCKS_MAX, sizeof(*lane->path));
	if (!lane->sequence || !lane->path)
		return -ENOMEM;
	for (uint32_t i = 0; i < lane->config.model_sequences; i++)
		lane->sequence[i].wanted = BLOCK_NONE;
	return 0;
}

/* No task runs any more, and nobody has one. */
void sequences_stop(struct lane *lane)
{
	for (uint32_t i = 0; lane->sequence && i < lane->config.model_sequences; i++)
		place_free(lane, &lane->sequence[i]);
	free(lane->sequence);
	free(lane->path);
	lane->sequence = NULL;
	lane->path = NULL;
}
