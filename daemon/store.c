/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.c - an offload, from top to bottom: begin (duplicate? reserve the key) -> gather, checksum, encode
 * and verify on the device -> SOURCE_FREE -> place (quota, a slot of the compressed size) -> publish in
 * the index, the only point where the block becomes visible -> COMMITTED.
 *
 * Out of GPU memory there are two ways.  What the GPU can code it codes, and keeps the payload staged until
 * it is placed; one more task moves it into the slot.  What it cannot, and samples for the profiler, it
 * copies raw into host memory, where the CPU goes on:
 *
 *	ENCODE on the GPU ------------------> place -> PLACE (a move) -> publish
 *	COPY_OUT -> SAMPLE (CPU) -> ENCODE on the GPU, as above
 *	COPY_OUT -> [SAMPLE] -> ENCODE (CPU) -> place -> publish, as from host memory
 *
 * Best effort: every refusal has a reason, frees the key again and is counted.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/lane_state.h"
#include "daemon/record.h"

#define QUOTA_EVICTIONS_MAX 16u
#define INDEX_EVICTIONS_MAX 8u

/* ---- begin ---- */

/* One that is not worth it is refused, and what hangs on it. */
static int admits(struct lane *lane, struct job *job, uint32_t i, const struct skvc_abi_key *key,
		  uint32_t parent)
{
	if (!lane->config.admission)
		return 1;
	return (i == 0 || parent != BLOCK_NONE) &&
	       policy_admits(lane->policy, index_hash(lane->index, job->ns->id, key),
			     i + 1 == job->count);
}

/* Room is made for it, but not of its parent; an entry that others name as theirs is no room. */
static int insert(struct lane *lane, uint32_t ns, const struct skvc_abi_key *key, uint32_t parent,
		  uint32_t *ret_id)
{
	int r = index_insert(lane->index, ns, key, ret_id);

	if (r == 0)
		return 0;
	if (parent != BLOCK_NONE)
		tier_hold(lane, parent);
	for (unsigned n = 0; r < 0 && n < INDEX_EVICTIONS_MAX && tier_evict_one(lane); n++)
		r = index_insert(lane->index, ns, key, ret_id);
	if (parent != BLOCK_NONE)
		tier_unhold(lane, parent);
	return r;
}

/* Its bytes are gone with the GPU, or could not be read from NVMe when they were last wanted: new ones are welcome. */
static int is_lost(const struct lane *lane, const struct block *b)
{
	return tier_gpu_lost(lane, b) || (b->state == BLOCK_NVME && b->flags & BLOCK_UNREAD);
}

/* Reserve one key for this job, or say why not: the item stays empty and, when the block is here already,
 * counts as done. */
static void begin_item(struct lane *lane, struct job *job, uint32_t i,
		       const struct skvc_abi_key *key, uint32_t parent, uint32_t position)
{
	const uint32_t *tokens = job->tokens ? job->tokens + (size_t)i * job->ns->geom.block_tokens
					     : NULL;
	uint64_t hash = tokens ? lookup_token_hash(job->ns, tokens) : 0;
	uint32_t id = index_find(lane->index, job->ns->id, key);
	struct block *b;

	if (id != BLOCK_NONE && is_lost(lane, index_block(lane->index, id))) {
		tier_forget(lane, id);
		id = BLOCK_NONE;
	}
	if (id != BLOCK_NONE) {
		b = index_block(lane->index, id);
		if (b->position == CODEC_POSITION_UNKNOWN)
			b->position = position; /* its parent was not here then */
		if (tokens && b->flags & BLOCK_HAS_TOKENS && b->token_hash != hash) {
			job_note(job, -EEXIST, SKVC_ABI_REASON_TOKENS_DIFFER);
		} else if (lookup_visible(b)) {
			tier_use(lane, id, i + 1 == job->count);
			tier_hold(lane, id); /* a touch */
			tier_unhold(lane, id);
			stats_add(&lane->stats, STAT_STORE_DUPLICATE_BLOCKS, 1);
			job_note(job, 0, SKVC_ABI_REASON_DUPLICATE);
			job_item_done(lane, job, i, 0, 0);
		} else {
			job_note(job, -EEXIST, SKVC_ABI_REASON_DUPLICATE);
		}
		return;
	}
	if (!admits(lane, job, i, key, parent)) {
		job_note(job, -EAGAIN, SKVC_ABI_REASON_NOT_ADMITTED);
		return;
	}
	if (insert(lane, job->ns->id, key, parent, &id) < 0) {
		job_note(job, -EAGAIN, SKVC_ABI_REASON_INDEX_FULL);
		return;
	}
	b = index_block(lane->index, id);
	b->token_hash = hash;
	b->position = position;
	if (tokens)
		b->flags |= BLOCK_HAS_TOKENS;
	if (parent != BLOCK_NONE)
		tier_link(lane, id, parent);
	job->items[i].block = id;
}

/* Behind a block at this position comes one at ... */
static uint32_t position_after(const struct job *job, uint32_t position)
{
	uint32_t tokens = job->ns->geom.block_tokens;

	return position >= CODEC_POSITION_UNKNOWN - tokens ? CODEC_POSITION_UNKNOWN
							   : position + tokens;
}

/*
 * The keys of one store are a chain.  Where it begins the parent says; without one it is a sequence's first
 * block; a parent that is not here says nothing.
 */
static uint32_t item_position(const struct lane *lane, const struct job *job, int has_parent,
			      uint32_t parent, uint32_t before)
{
	if (!has_parent)
		return 0;
	if (parent != BLOCK_NONE && before == CODEC_POSITION_UNKNOWN)
		before = index_block(lane->index, parent)->position;
	return position_after(job, before);
}

void store_begin(struct lane *lane, struct session *s, struct namespace *ns,
		 const struct job_regions *regions, const struct skvc_abi_sqe *sqe,
		 const struct skvc_abi_key *parent_key, const struct skvc_abi_key *keys,
		 const uint32_t *pages, const uint32_t *tokens, struct skvc_abi_cqe *cqe,
		 int *ret_async)
{
	size_t tokens_count = tokens ? (size_t)sqe->count * ns->geom.block_tokens : 0;
	uint32_t parent = parent_key ? index_find(lane->index, ns->id, parent_key) : BLOCK_NONE;
	uint32_t position = CODEC_POSITION_UNKNOWN;
	struct job *job;

	if (!lane->accepting) {
		cqe->res = -EAGAIN;
		cqe->reason = SKVC_ABI_REASON_POOL_FULL;
		stats_add(&lane->stats, STAT_STORE_REFUSED_BLOCKS, sqe->count);
		return;
	}
	job = job_new(lane, s, sqe, ns, regions, (uint32_t)tokens_count);
	if (!job) {
		cqe->res = -EAGAIN;
		cqe->reason = SKVC_ABI_REASON_JOBS_FULL;
		stats_add(&lane->stats, STAT_STORE_REFUSED_BLOCKS, sqe->count);
		return;
	}
	*ret_async = 1;
	if (tokens)
		memcpy(job->tokens, tokens, tokens_count * 4);
	for (uint32_t i = 0; i < job->count; i++) {
		job->items[i] = (struct job_item){ .block = BLOCK_NONE, .page = pages[i] };
		position = item_position(lane, job, parent_key || i, parent, position);
		begin_item(lane, job, i, &keys[i], parent, position);
		if (job->items[i].block == BLOCK_NONE && !(job->bitmap[i / 64] >> (i % 64) & 1))
			stats_add(&lane->stats, STAT_STORE_REFUSED_BLOCKS, 1);
		parent = index_find(lane->index, ns->id, &keys[i]);
	}
}

/* ---- the end of an item ---- */

static void fail_item(struct lane *lane, struct job *job, uint32_t i, int32_t res, uint16_t reason)
{
	job_note(job, res, reason);
	stats_add(&lane->stats, STAT_STORE_REFUSED_BLOCKS, 1);
	store_cancel_item(lane, job, i);
}

void store_cancel_item(struct lane *lane, struct job *job, uint32_t i)
{
	if (job->items[i].block == BLOCK_NONE)
		return;
	tier_forget(lane, job->items[i].block);
	job->items[i].block = BLOCK_NONE;
}

/* Nothing reads the engine's pages for this task any more. */
static void pages_free(struct task *t)
{
	if (!t->reads_pages)
		return;
	assert(t->job->encoding > 0);
	t->reads_pages = 0;
	t->job->encoding--;
}

static void sample_over(struct lane *lane, struct task *t, int ok)
{
	if (!t->sample)
		return;
	profiler_sampled(lane, t->job->ns, ok);
	t->sample = NULL;
}

/* The task gives back all it has. */
static void task_over(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	pages_free(t);
	sample_over(lane, t, 0);
	gpu_unstage(lane, t);
	gpu_raw_put(lane, t);
	job->inflight--;
	task_put(lane, t);
	job_settle(lane, job);
}

/* The device did not do what it should. */
static void task_failed(struct lane *lane, struct task *t, int32_t res)
{
	if (res == -ECANCELED)
		fail_item(lane, t->job, t->item, res, t->job->abort_reason);
	else
		fail_item(lane, t->job, t->item, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
	task_over(lane, t);
}

/* ---- encode ---- */

static uint32_t record_tokens(const struct job *job)
{
	return job->tokens ? job->ns->geom.block_tokens : 0;
}

/* What is quick enough for a store: the strongest only when that is asked for. */
static uint8_t quick_speculator(struct lane *lane, struct namespace *ns)
{
	switch (lane->config.speculator) {
	case CONFIG_SPECULATOR_AUTO:
		return lane->config.plan ? plan_store_speculator(lane, ns) : CODEC_SPEC_CHANNEL;
	case CONFIG_SPECULATOR_MODEL: /* it needs the prefix: recode.c */
		return CODEC_SPEC_CHANNEL;
	case CONFIG_SPECULATOR_LAYER:
		return ns->newest && ns->newest->can_layer ? CODEC_SPEC_LAYER : CODEC_SPEC_CHANNEL;
	default:
		return (uint8_t)lane->config.speculator;
	}
}

static const struct codec_profile *newest_profile(const struct namespace *ns)
{
	return ns->newest ? ns->newest->p : NULL;
}

static struct block *item_block(const struct lane *lane, const struct task *t)
{
	return index_block(lane->index, t->job->items[t->item].block);
}

/* What both devices are told. */
static void encode_with(struct lane *lane, struct task *t)
{
	const struct job *job = t->job;

	assert(!t->profile);
	t->profile = profiles_use(job->ns->newest);
	t->dev.speculator = quick_speculator(lane, job->ns);
	t->dev.position = item_block(lane, t)->position;
	t->dev.profile = newest_profile(job->ns);
	t->dev.verify = (uint8_t)lane->config.verify;
}

/* The block lies in the engine's pages, or is a raw copy of the task's own. */
static void read_block(struct task *t)
{
	int copied = t->raw_slot != POOL_NONE;

	t->dev.region = copied ? &t->packed : &t->job->region->dev;
	t->dev.block_index = copied ? 0 : t->job->items[t->item].page;
}

static int start_encode(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	uint64_t off = record_payload_off(record_tokens(job));

	t->kind = TASK_ENCODE;
	t->dev = (struct device_task){
		.op = DEVICE_ENCODE,
		.out = t->staging + off,
		.out_cap_bytes = lane->staging_bytes - off,
	};
	encode_with(lane, t);
	read_block(t);
	return task_start(lane, t, lane->device);
}

static int start_sample(struct lane *lane, struct task *t)
{
	t->kind = TASK_SAMPLE;
	t->dev = (struct device_task){
		.op = DEVICE_COPY_OUT,
		.out = t->sample,
		.out_cap_bytes = t->job->ns->geom.raw_bytes,
	};
	read_block(t);
	return task_start(lane, t, lane->device);
}

/* An operation of the GPU on the engine's pages: it waits for the job's event first. */
static int start_on_pages(struct lane *lane, struct task *t)
{
	int r;

	gpu_event_begin(lane, t);
	r = task_start(lane, t, lane->gpu);
	if (r < 0) {
		t->dev.res = r;
		gpu_event_end(lane, t);
	}
	return r;
}

static int start_gpu_encode(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	t->kind = TASK_ENCODE;
	t->dev = (struct device_task){
		.op = DEVICE_ENCODE,
		.region = &job->region->dev,
		.block_index = job->items[t->item].page,
	};
	encode_with(lane, t);
	return start_on_pages(lane, t);
}

static int start_copy_out(struct lane *lane, struct task *t, int background)
{
	struct job *job = t->job;
	int r;

	assert(t->raw_slot != POOL_NONE);
	t->kind = TASK_COPY_OUT;
	t->dev = (struct device_task){
		.op = DEVICE_COPY_OUT,
		.region = &job->region->dev,
		.block_index = job->items[t->item].page,
		.background = (uint8_t)background,
		.out = gpu_raw_ptr(lane, t),
		.out_cap_bytes = job->ns->geom.raw_bytes,
	};
	r = start_on_pages(lane, t);
	if (r < 0)
		gpu_raw_put(lane, t);
	return r;
}

static int start_host(struct lane *lane, struct task *t)
{
	int r;

	if (!profiler_wants(lane, t->job->ns))
		return start_encode(lane, t);
	t->sample = profiler_reserve(t->job->ns, item_block(lane, t)->position);
	r = start_sample(lane, t);
	if (r < 0)
		sample_over(lane, t, 0);
	return r;
}

/*
 * A sample is taken when there is memory for it at once; the block is coded in any case.  Memory first: a place
 * that was reserved and not filled spoils the whole sample, and while memory is short there would be none.
 */
static int start_gpu(struct lane *lane, struct task *t)
{
	struct namespace *ns = t->job->ns;
	int direct = lane->gpu->ops->can_encode(lane->gpu, &ns->geom, newest_profile(ns),
						quick_speculator(lane, ns));
	int wants = profiler_wants(lane, ns), r = -EAGAIN;

	if (wants || !direct)
		r = gpu_raw_get(lane, t);
	if (r < 0)
		return direct ? start_gpu_encode(lane, t) : r;
	if (wants)
		t->sample = profiler_reserve(ns, item_block(lane, t)->position);
	r = start_copy_out(lane, t, direct);
	if (r == 0)
		return 0;
	sample_over(lane, t, 0);
	return direct ? start_gpu_encode(lane, t) : r;
}

/* 1: progress was made on the job's next item; 0: it has to wait. */
int store_start_item(struct lane *lane, struct job *job)
{
	int gpu = job->region->device != NULL, r;
	uint32_t i = job->next;
	struct task *t;

	if (job->items[i].block == BLOCK_NONE) {
		job->next++;
		return 1;
	}
	if (gpu && lane->gpu_dead) {
		job->next++;
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		return 1;
	}
	if (profiler_parks(lane, job->ns) || (gpu && !gpu_event_allows(lane, job)))
		return 0;
	t = gpu ? gpu_task_get(lane) : task_get(lane);
	if (!t)
		return 0;
	t->job = job;
	t->item = i;
	r = gpu ? start_gpu(lane, t) : start_host(lane, t);
	if (r < 0) {
		task_put(lane, t);
		if (r == -EAGAIN)
			return 0;
		job->next++;
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		return 1;
	}
	t->reads_pages = 1;
	job->next++;
	job->inflight++;
	job->encoding++;
	return 1;
}

/* ---- copied out of GPU memory ---- */

/* A task that has room for a whole record goes on with the block. */
static void encode_copied(struct lane *lane, struct task *from, struct task *t)
{
	t->job = from->job;
	t->item = from->item;
	t->raw_slot = from->raw_slot;
	t->packed = from->packed;
	from->raw_slot = POOL_NONE;
	task_put(lane, from);
	if (start_encode(lane, t) < 0)
		task_failed(lane, t, -EIO);
}

static unsigned run_cpu_wait(struct lane *lane)
{
	unsigned n = 0;

	for (; lane->cpu_wait.count; n++) {
		struct task *from = lane->cpu_wait.head, *t;

		if (from->job->aborted) {
			task_failed(lane, task_queue_pop(&lane->cpu_wait), -ECANCELED);
			continue;
		}
		t = task_get(lane);
		if (!t)
			break;
		encode_copied(lane, task_queue_pop(&lane->cpu_wait), t);
	}
	return n;
}

/* The raw block lies in host memory, and what the profiler wanted of it was done. */
static void go_on_copied(struct lane *lane, struct task *t)
{
	if (t->reads_pages) { /* it was copied for the profiler only */
		gpu_raw_put(lane, t);
		if (start_gpu_encode(lane, t) < 0)
			task_failed(lane, t, -EIO);
		return;
	}
	task_queue_push(&lane->cpu_wait, t);
	(void)run_cpu_wait(lane);
}

static void copied_out(struct lane *lane, struct task *t)
{
	if (t->dev.res < 0) {
		task_failed(lane, t, t->dev.res);
		return;
	}
	if (!t->dev.background) { /* the GPU is not going to code it: the copy is all we need */
		pages_free(t);
		job_source_free(lane, t->job);
	}
	if (t->sample && start_sample(lane, t) == 0)
		return;
	sample_over(lane, t, 0);
	go_on_copied(lane, t);
}

static void sampled(struct lane *lane, struct task *t)
{
	sample_over(lane, t, t->dev.res == 0);
	if (t->of_gpu)
		go_on_copied(lane, t);
	else if (start_encode(lane, t) < 0)
		task_failed(lane, t, -EIO);
}

/* ---- place and publish ---- */

static void fill_header(const struct lane *lane, const struct task *t, struct record_header *h)
{
	const struct job *job = t->job;
	const struct namespace *ns = job->ns;
	const struct block *b = index_block(lane->index, job->items[t->item].block);

	*h = (struct record_header){
		.magic = RECORD_MAGIC,
		.version = RECORD_VERSION,
		.header_bytes = sizeof(*h),
		.raw_xxh3 = t->info.raw_xxh3,
		.token_hash = b->token_hash,
		.group = b->group,
		.position = b->position,
		.key_len = b->key_len,
		.speculator = t->info.speculator,
		.flags = b->flags & BLOCK_HAS_TOKENS ? RECORD_HAS_TOKENS : 0,
		.tokens_count = record_tokens(job),
		.payload_bytes = (uint32_t)t->info.encoded_bytes,
		.raw_bytes = ns->geom.raw_bytes,
	};
	memcpy(h->ns_digest, ns->digest, sizeof(h->ns_digest));
	memcpy(h->key, b->key, sizeof(h->key));
	if (t->profile)
		memcpy(h->profile_digest, codec_profile_digest(t->profile->p),
		       sizeof(h->profile_digest));
}

/* Write what stands before the payload into the staging buffer. */
static void build_record(const struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	uint32_t tokens_count = record_tokens(job);
	struct record_header *h = (struct record_header *)t->staging;
	uint64_t off = record_payload_off(tokens_count);

	memset(t->staging, 0, off);
	fill_header(lane, t, h);
	if (tokens_count)
		memcpy(h + 1, job->tokens + (size_t)t->item * tokens_count,
		       (size_t)tokens_count * 4);
}

static void publish(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	struct namespace *ns = job->ns;
	uint32_t id = job->items[t->item].block;
	struct block *b = index_block(lane->index, id);
	uint64_t bytes = b->record_bytes - b->padding_bytes;

	b->raw_xxh3 = t->info.raw_xxh3;
	profiles_set_block(lane, b, t->profile);
	if (t->profile && (t->asked == CODEC_SPEC_LAYER || !t->profile->can_layer))
		b->tried = profiles_mark(t->profile);
	profiles_seen(lane, ns, t->profile, t->asked, t->info.encoded_bytes);
	b->layer = t->info.speculator == CODEC_SPEC_LAYER;
	plan_stored(lane, ns);
	plan_block_coded(ns, t->info.speculator, t->info.encoded_bytes);
	tier_publish(lane, id, t->item + 1 == job->count);
	stats_add(&lane->stats, STAT_LAYER_BLOCKS, t->info.speculator == CODEC_SPEC_LAYER);
	stats_add(&lane->stats, STAT_STORE_BLOCKS, 1);
	stats_add(&lane->stats, STAT_STORE_RAW_BYTES, ns->geom.raw_bytes);
	stats_add(&lane->stats, STAT_STORE_CODED_BYTES, bytes);
	stats_add(&lane->stats, STAT_CHUNKS_RAW, t->info.chunks_raw);
	stats_add(&lane->stats, STAT_ESCAPES, t->info.escapes);
	atomic_fetch_add_explicit(&job->session->store_blocks, 1, memory_order_relaxed);
	job_item_done(lane, job, t->item, ns->geom.raw_bytes, bytes);
	job->items[t->item].block = BLOCK_NONE;
}

static int charge(struct lane *lane, struct tenant *tenant, uint64_t bytes)
{
	int r = quota_charge(lane, tenant, bytes);

	for (unsigned i = 0; r < 0 && i < QUOTA_EVICTIONS_MAX; i++) {
		if (!tier_evict_for_tenant(lane, tenant))
			break;
		r = quota_charge(lane, tenant, bytes);
	}
	if (r == 0 && quota_return(lane))
		lane->evict.trim = 1; /* there may be more */
	return r;
}

/* The slot and what was paid for it. */
static void unplace(struct lane *lane, struct task *t)
{
	uint32_t id = t->job->items[t->item].block;
	uint64_t bytes = index_block(lane->index, id)->record_bytes;

	tier_unplace(lane, id);
	quota_uncharge(t->job->ns->tenant, bytes);
}

static int take_slot(struct lane *lane, struct task *t, uint64_t padded_bytes)
{
	uint32_t id = t->job->items[t->item].block;

	if (t->staged && tier_gpu_alloc(lane, padded_bytes, id) == 0)
		return 0;
	return tier_alloc(lane, padded_bytes, id);
}

/* From the GPU's staging into the slot: all of it into one on the GPU, the payload into one here. */
static int start_place(struct lane *lane, struct task *t)
{
	const struct block *b = index_block(lane->index, t->job->items[t->item].block);
	const struct record_header *h = (const struct record_header *)t->staging;
	uint64_t off = record_payload_off(h->tokens_count), bytes = record_bytes(h);
	uint32_t gpu_slot = index_gpu_slot(lane->index, b);
	int here = gpu_slot == POOL_NONE;
	uint8_t *slot = here ? pool_ptr(lane->pool, b->slot) : pool_ptr(lane->gpu_pool, gpu_slot);
	struct device_copy payload = {
		.in = t->staged,
		.in_place = DEVICE_PLACE_DEVICE,
		.out = slot + off,
		.out_place = here ? DEVICE_PLACE_HOST : DEVICE_PLACE_DEVICE,
		.bytes = h->payload_bytes,
	};

	t->kind = TASK_PLACE;
	t->dev = (struct device_task){ .op = DEVICE_MOVE, .copy[0] = payload, .copies_count = 1 };
	if (here) {
		memcpy(slot, t->staging, off);
		memset(slot + bytes, 0, b->padding_bytes);
	} else {
		t->dev.copy[t->dev.copies_count++] = (struct device_copy){
			.in = t->staging,
			.in_place = DEVICE_PLACE_HOST,
			.out = slot,
			.out_place = DEVICE_PLACE_DEVICE,
			.bytes = off,
		};
	}
	return task_start(lane, t, lane->gpu);
}

/* 1: published; 0: the payload is on its way; -EAGAIN: no room now; else: refused for good. */
static int place(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	struct tenant *tenant = job->ns->tenant;
	uint64_t bytes = record_bytes((const struct record_header *)t->staging);
	uint64_t padded_bytes = (bytes + lane->granule_bytes - 1) &
				~(uint64_t)(lane->granule_bytes - 1);
	struct block *b = index_block(lane->index, job->items[t->item].block);
	int r = charge(lane, tenant, padded_bytes);

	if (r < 0)
		return r;
	b->record_bytes = (uint32_t)padded_bytes;
	b->padding_bytes = (uint16_t)(padded_bytes - bytes);
	r = take_slot(lane, t, padded_bytes);
	if (r < 0) {
		b->record_bytes = b->padding_bytes = 0;
		quota_uncharge(tenant, padded_bytes);
		return r;
	}
	if (t->staged) {
		r = start_place(lane, t);
		if (r < 0)
			unplace(lane, t);
		return r;
	}
	memcpy(pool_ptr(lane->pool, b->slot), t->staging, bytes);
	memset((uint8_t *)pool_ptr(lane->pool, b->slot) + bytes, 0, b->padding_bytes);
	publish(lane, t);
	return 1;
}

/* Returns 1 when the task is over or goes on, 0 when it must wait for room. */
static int try_place(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	int r = job->aborted ? -ECANCELED : place(lane, t);

	if (r == 0)
		return 1;
	if (r == -EAGAIN && (!t->room_deadline_ns || lane->now_ns < t->room_deadline_ns))
		return 0;
	if (r == -ECANCELED)
		fail_item(lane, job, t->item, -ECANCELED, job->abort_reason);
	else if (r == -EDQUOT)
		fail_item(lane, job, t->item, -EDQUOT, SKVC_ABI_REASON_QUOTA);
	else if (r == -EFBIG)
		fail_item(lane, job, t->item, -EAGAIN, SKVC_ABI_REASON_TOO_LARGE);
	else if (r == -EAGAIN)
		fail_item(lane, job, t->item, -EAGAIN, SKVC_ABI_REASON_POOL_FULL);
	else if (r < 0)
		fail_item(lane, job, t->item, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
	task_over(lane, t);
	return 1;
}

/* Those that wait for room, oldest first; the first that still has to wait ends the round, except that
 * aborted ones leave at once wherever they stand. */
unsigned store_room_run(struct lane *lane)
{
	struct task *t = lane->room.head, *next;
	unsigned n = run_cpu_wait(lane);
	int blocked = 0;

	lane->room = (struct task_queue){ 0 };
	for (; t; t = next) {
		next = t->next;
		if ((blocked && !t->job->aborted) || !try_place(lane, t)) {
			blocked = 1;
			task_queue_push(&lane->room, t);
		} else {
			n++;
		}
	}
	return n;
}

static void encoded(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	stats_add(&lane->stats, t->of_gpu ? STAT_GPU_ENCODE_NS : STAT_ENCODE_NS, t->dev.busy_ns);
	if (t->dev.res < 0) {
		task_failed(lane, t, t->dev.res);
		return;
	}
	if (t->of_gpu)
		t->staged = t->dev.staged;
	t->info = t->dev.info;
	t->asked = t->dev.speculator;
	if (t->info.speculator < CODEC_SPEC_CHANNEL) { /* nobody needs it to decode this */
		profiles_drop(lane, t->profile);
		t->profile = NULL;
	}
	pages_free(t);
	gpu_raw_put(lane, t);
	build_record(lane, t);
	if (t->of_gpu)
		job_source_free(lane, job); /* before it is placed, which takes a while */
	if (lane->room.count || !try_place(lane, t)) { /* behind those that wait already */
		t->room_deadline_ns = lane->now_ns + lane->config.store_wait_ns;
		task_queue_push(&lane->room, t);
		job_source_free(lane, job);
	}
}

static void placed(struct lane *lane, struct task *t)
{
	const struct block *b = index_block(lane->index, t->job->items[t->item].block);

	if (t->dev.res < 0 || (lane->gpu_dead && index_gpu_slot(lane->index, b) != POOL_NONE)) {
		unplace(lane, t);
		task_failed(lane, t, -EIO);
		return;
	}
	publish(lane, t);
	task_over(lane, t);
}

void store_task_done(struct lane *lane, struct task *t)
{
	gpu_event_end(lane, t);
	switch (t->kind) {
	case TASK_COPY_OUT:
		copied_out(lane, t);
		break;
	case TASK_SAMPLE:
		sampled(lane, t);
		break;
	case TASK_ENCODE:
		encoded(lane, t);
		break;
	case TASK_PLACE:
		placed(lane, t);
		break;
	default:
		assert(!"not a task of a store");
	}
}
