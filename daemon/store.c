/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.c - an offload, from top to bottom: begin (duplicate? reserve the key) -> gather, checksum, encode
 * and verify on the device -> SOURCE_FREE -> place (quota, a slot of the compressed size) -> publish in
 * the index, the only point where the block becomes visible -> COMMITTED.
 *
 * Best effort: every refusal has a reason, frees the key again and is counted.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/lane_state.h"
#include "daemon/record.h"

#define QUOTA_EVICTIONS_MAX 16u

/* ---- begin ---- */

/* Reserve one key for this job, or say why not: the item stays empty and, when the block is here already,
 * counts as done. */
static void begin_item(struct lane *lane, struct job *job, uint32_t i,
		       const struct skvc_abi_key *key, uint32_t parent)
{
	const uint32_t *tokens = job->tokens ? job->tokens + (size_t)i * job->ns->geom.block_tokens
					     : NULL;
	uint64_t hash = tokens ? lookup_token_hash(job->ns, tokens) : 0;
	uint32_t id = index_find(lane->index, job->ns->id, key);
	struct block *b;

	if (id != BLOCK_NONE) {
		b = index_block(lane->index, id);
		if (tokens && b->flags & BLOCK_HAS_TOKENS && b->token_hash != hash) {
			job_note(job, -EEXIST, SKVC_ABI_REASON_TOKENS_DIFFER);
		} else if (lookup_visible(b)) {
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
	if (index_insert(lane->index, job->ns->id, key, &id) < 0 &&
	    (!tier_evict_one(lane) || index_insert(lane->index, job->ns->id, key, &id) < 0)) {
		job_note(job, -EAGAIN, SKVC_ABI_REASON_INDEX_FULL);
		return;
	}
	b = index_block(lane->index, id);
	b->token_hash = hash;
	if (tokens)
		b->flags |= BLOCK_HAS_TOKENS;
	if (parent != BLOCK_NONE)
		index_set_parent(lane->index, id, parent);
	job->items[i].block = id;
}

void store_begin(struct lane *lane, struct session *s, struct namespace *ns, struct region *region,
		 const struct skvc_abi_sqe *sqe, const struct skvc_abi_key *parent_key,
		 const struct skvc_abi_key *keys, const uint32_t *pages, const uint32_t *tokens,
		 struct skvc_abi_cqe *cqe, int *ret_async)
{
	size_t tokens_count = tokens ? (size_t)sqe->count * ns->geom.block_tokens : 0;
	uint32_t parent = parent_key ? index_find(lane->index, ns->id, parent_key) : BLOCK_NONE;
	struct job *job;

	if (!lane->accepting) {
		cqe->res = -EAGAIN;
		cqe->reason = SKVC_ABI_REASON_POOL_FULL;
		stats_add(&lane->stats, STAT_STORE_REFUSED_BLOCKS, sqe->count);
		return;
	}
	job = job_new(lane, s, sqe, ns, region, (uint32_t)tokens_count);
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
		begin_item(lane, job, i, &keys[i], parent);
		if (job->items[i].block == BLOCK_NONE && !(job->bitmap[i / 64] >> (i % 64) & 1))
			stats_add(&lane->stats, STAT_STORE_REFUSED_BLOCKS, 1);
		parent = index_find(lane->index, ns->id, &keys[i]);
	}
}

/* ---- encode ---- */

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

static uint32_t record_tokens(const struct job *job)
{
	return job->tokens ? job->ns->geom.block_tokens : 0;
}

static int start_encode(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	struct namespace *ns = job->ns;
	uint64_t off = record_payload_off(record_tokens(job));
	const struct codec_profile *profile = ns->profiles_count
						      ? ns->profile[ns->profiles_count - 1]
						      : NULL;

	t->kind = TASK_ENCODE;
	t->dev = (struct device_task){
		.op = DEVICE_ENCODE,
		.region = &job->region->dev,
		.block_index = job->items[t->item].page,
		.speculator = (uint8_t)lane->config.speculator,
		.profile = profile,
		.verify = (uint8_t)lane->config.verify,
		.out = t->staging + off,
		.out_cap_bytes = lane->staging_bytes - off,
	};
	return lane->device->ops->start(lane->device, &t->dev);
}

static int start_sample(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	t->kind = TASK_SAMPLE;
	t->dev = (struct device_task){
		.op = DEVICE_COPY_OUT,
		.region = &job->region->dev,
		.block_index = job->items[t->item].page,
		.out = profiler_reserve(job->ns),
		.out_cap_bytes = job->ns->geom.raw_bytes,
	};
	return lane->device->ops->start(lane->device, &t->dev);
}

int store_start_item(struct lane *lane, struct job *job)
{
	uint32_t i = job->next;
	int sample, r;
	struct task *t;

	if (job->items[i].block == BLOCK_NONE) {
		job->next++;
		return 1;
	}
	if (profiler_parks(lane, job->ns))
		return 0;
	t = task_get(lane);
	if (!t)
		return 0;
	t->job = job;
	t->item = i;
	t->room_deadline_ns = 0;
	sample = profiler_wants(lane, job->ns);
	r = sample ? start_sample(lane, t) : start_encode(lane, t);
	if (r < 0) {
		if (sample)
			profiler_sampled(lane, job->ns, 0);
		task_put(lane, t);
		if (r == -EAGAIN)
			return 0;
		job->next++;
		fail_item(lane, job, i, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		return 1;
	}
	stats_add(&lane->stats, STAT_DEVICE_INFLIGHT, 1);
	job->next++;
	job->inflight++;
	job->encoding++;
	return 1;
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
		.raw_xxh3 = t->dev.info.raw_xxh3,
		.epoch = lane->epoch,
		.generation = b->generation,
		.block = job->items[t->item].block,
		.group = b->group,
		.key_len = b->key_len,
		.speculator = t->dev.info.speculator,
		.tokens_count = record_tokens(job),
		.payload_bytes = (uint32_t)t->dev.info.encoded_bytes,
		.raw_bytes = ns->geom.raw_bytes,
	};
	memcpy(h->ns_digest, ns->digest, sizeof(h->ns_digest));
	memcpy(h->key, b->key, sizeof(h->key));
	if (t->dev.profile)
		memcpy(h->profile_digest, codec_profile_digest(t->dev.profile),
		       sizeof(h->profile_digest));
}

/* Finish the record in the staging buffer; returns its bytes without padding. */
static uint64_t build_record(const struct lane *lane, struct task *t)
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
	return record_bytes(h);
}

/* 1 + the profile's index; the task may have been encoded with an older one than today's. */
static uint8_t profile_number(const struct namespace *ns, const struct codec_profile *profile)
{
	for (uint32_t i = 0; i < ns->profiles_count; i++)
		if (ns->profile[i] == profile)
			return (uint8_t)(i + 1);
	return 0;
}

static void publish(struct lane *lane, struct task *t, uint64_t bytes, uint64_t padded_bytes)
{
	struct job *job = t->job;
	struct namespace *ns = job->ns;
	uint32_t id = job->items[t->item].block;
	struct block *b = index_block(lane->index, id);
	uint8_t *slot = pool_ptr(lane->pool, b->slot);

	memcpy(slot, t->staging, bytes);
	memset(slot + bytes, 0, padded_bytes - bytes);
	b->raw_xxh3 = t->dev.info.raw_xxh3;
	b->profile = profile_number(ns, t->dev.profile);
	tier_publish(lane, id);
	stats_add(&lane->stats, STAT_STORE_BLOCKS, 1);
	stats_add(&lane->stats, STAT_STORE_RAW_BYTES, ns->geom.raw_bytes);
	stats_add(&lane->stats, STAT_STORE_CODED_BYTES, bytes);
	stats_add(&lane->stats, STAT_CHUNKS_RAW, t->dev.info.chunks_raw);
	stats_add(&lane->stats, STAT_ESCAPES, t->dev.info.escapes);
	atomic_fetch_add_explicit(&job->session->store_blocks, 1, memory_order_relaxed);
	job_item_done(lane, job, t->item, ns->geom.raw_bytes, bytes);
	job->items[t->item].block = BLOCK_NONE;
}

static int charge(struct lane *lane, struct tenant *tenant, uint64_t bytes)
{
	int r = quota_charge(tenant, bytes);

	for (unsigned i = 0; r < 0 && i < QUOTA_EVICTIONS_MAX; i++) {
		if (!tier_evict_for_tenant(lane, tenant))
			break;
		r = quota_charge(tenant, bytes);
	}
	return r;
}

/* 0: published; -EAGAIN: no room now; else: refused for good. */
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
	b->padding_bytes = (uint32_t)(padded_bytes - bytes);
	r = tier_alloc(lane, padded_bytes, job->items[t->item].block);
	if (r < 0) {
		b->record_bytes = b->padding_bytes = 0;
		quota_uncharge(tenant, padded_bytes);
		return r;
	}
	publish(lane, t, bytes, padded_bytes);
	return 0;
}

static void task_over(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	job->inflight--;
	task_put(lane, t);
	job_settle(lane, job);
}

/* Returns 1 when the task is over, 0 when it must wait for room. */
static int try_place(struct lane *lane, struct task *t)
{
	struct job *job = t->job;
	int r = job->aborted ? -ECANCELED : place(lane, t);

	if (r == -EAGAIN && (!t->room_deadline_ns || lane->now_ns < t->room_deadline_ns))
		return 0;
	if (r == -ECANCELED)
		fail_item(lane, job, t->item, -ECANCELED, SKVC_ABI_REASON_ABORTED);
	else if (r == -EDQUOT)
		fail_item(lane, job, t->item, -EDQUOT, SKVC_ABI_REASON_QUOTA);
	else if (r == -EFBIG)
		fail_item(lane, job, t->item, -EAGAIN, SKVC_ABI_REASON_TOO_LARGE);
	else if (r < 0)
		fail_item(lane, job, t->item, -EAGAIN, SKVC_ABI_REASON_POOL_FULL);
	task_over(lane, t);
	return 1;
}

static void room_push(struct lane *lane, struct task *t)
{
	t->next = NULL;
	if (lane->room.tail)
		lane->room.tail->next = t;
	else
		lane->room.head = t;
	lane->room.tail = t;
	lane->room.count++;
}

/* Those that wait for room, oldest first; the first that still has to wait ends the round, except that
 * aborted ones leave at once wherever they stand. */
unsigned store_room_run(struct lane *lane)
{
	struct task *t = lane->room.head, *next;
	int blocked = 0;
	unsigned n = 0;

	lane->room = (struct task_queue){ 0 };
	for (; t; t = next) {
		next = t->next;
		if ((blocked && !t->job->aborted) || !try_place(lane, t)) {
			blocked = 1;
			room_push(lane, t);
		} else {
			n++;
		}
	}
	return n;
}

static void encoded(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	job->encoding--;
	stats_add(&lane->stats, STAT_ENCODE_NS, t->dev.busy_ns);
	if (t->dev.res < 0) {
		fail_item(lane, job, t->item, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		task_over(lane, t);
		return;
	}
	build_record(lane, t);
	if (lane->room.count || !try_place(lane, t)) { /* behind those that wait already */
		t->room_deadline_ns = lane->now_ns + lane->config.store_wait_ns;
		room_push(lane, t);
		job_source_free(lane, job);
	}
}

void store_task_done(struct lane *lane, struct task *t)
{
	struct job *job = t->job;

	if (t->kind == TASK_ENCODE) {
		encoded(lane, t);
		return;
	}
	assert(t->kind == TASK_SAMPLE);
	profiler_sampled(lane, job->ns, t->dev.res == 0);
	if (start_encode(lane, t) < 0) {
		job->encoding--;
		fail_item(lane, job, t->item, -EIO, SKVC_ABI_REASON_DEVICE_ERROR);
		task_over(lane, t);
		return;
	}
	stats_add(&lane->stats, STAT_DEVICE_INFLIGHT, 1);
}
