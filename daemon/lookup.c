/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lookup.c - the operations on keys alone: how long a prefix is here (and lease it), touch, drop, pin.
 * All are answered inside intake; none waits.
 */
#include <errno.h>
#include <sodium.h>
#include <string.h>

#include "daemon/lane_state.h"
#include "daemon/sequences.h"

int lookup_visible(const struct block *b)
{
	return b->state == BLOCK_RESIDENT || b->state == BLOCK_NVME || b->state == BLOCK_FETCHING;
}

/* Keyed with the tenant's salt, so that nobody can make two token lists agree on purpose. */
uint64_t lookup_token_hash(const struct namespace *ns, const uint32_t *tokens)
{
	unsigned char out[crypto_shorthash_BYTES];
	uint64_t hash;

	_Static_assert(crypto_shorthash_KEYBYTES <= sizeof(ns->tenant->salt), "salt is a key");
	crypto_shorthash(out, (const unsigned char *)tokens, (uint64_t)ns->geom.block_tokens * 4,
			 ns->tenant->salt);
	memcpy(&hash, out, sizeof(hash));
	return hash;
}

/* Is this the block the engine means?  NONE, or why it is not. */
static uint16_t matches(struct lane *lane, const struct namespace *ns, uint32_t id, uint32_t parent,
			int parent_known, const uint32_t *tokens)
{
	const struct block *b = index_block(lane->index, id);
	uint32_t its = index_parent(lane->index, id);

	if (!lookup_visible(b) || tier_gpu_lost(lane, b))
		return SKVC_ABI_REASON_MISS;
	if (tokens && b->flags & BLOCK_HAS_TOKENS && b->token_hash != lookup_token_hash(ns, tokens))
		return SKVC_ABI_REASON_TOKENS_DIFFER;
	if (parent_known && its != BLOCK_NONE && parent != BLOCK_NONE && its != parent)
		return SKVC_ABI_REASON_PARENT_DIFFERS;
	return SKVC_ABI_REASON_NONE;
}

/* Its parent was gone, and has been stored again since. */
static void link_again(struct lane *lane, uint32_t id, uint32_t parent)
{
	const struct block *b = index_block(lane->index, id), *p;

	if (parent == BLOCK_NONE || index_parent(lane->index, id) != BLOCK_NONE)
		return;
	p = index_block(lane->index, parent);
	if (p->position != CODEC_POSITION_UNKNOWN &&
	    b->position == p->position + lane->ns[b->ns]->geom.block_tokens)
		tier_link(lane, id, parent);
}

static void count_hits(struct lane *lane, struct namespace *ns, uint32_t asked, uint32_t hits,
		       uint32_t hits_nvme, uint32_t hits_gpu)
{
	stats_add(&lane->stats, STAT_LOOKUPS, 1);
	stats_add(&lane->stats, STAT_LOOKUP_BLOCKS, asked);
	stats_add(&lane->stats, STAT_HIT_BLOCKS_HOST, hits - hits_nvme - hits_gpu);
	stats_add(&lane->stats, STAT_HIT_BLOCKS_GPU, hits_gpu);
	stats_add(&lane->stats, STAT_HIT_BLOCKS_NVME, hits_nvme);
	atomic_fetch_add_explicit(&ns->hits, hits, memory_order_relaxed);
	atomic_fetch_add_explicit(&ns->misses, asked - hits, memory_order_relaxed);
}

/* The blocks at the end that it has sooner by itself, by its own word: 1 when there were any. */
static int leave_to_engine(struct lane *lane, const struct namespace *ns, struct lease *l)
{
	uint32_t keep = plan_worth_restoring(lane, ns, l->blocks, l->count), found = l->count;

	while (l->count > keep)
		tier_unhold(lane, l->blocks[--l->count]);
	return keep < found;
}

static int is_cold(const struct block *b)
{
	return b->state != BLOCK_RESIDENT || b->ahead;
}

static void count_tiers(const struct lane *lane, const struct lease *l, uint32_t *ret_nvme,
			uint32_t *ret_gpu)
{
	for (uint32_t i = 0; i < l->count; i++) {
		const struct block *b = index_block(lane->index, l->blocks[i]);

		*ret_nvme += b->state != BLOCK_RESIDENT;
		*ret_gpu += b->state == BLOCK_RESIDENT && b->slot == POOL_NONE;
	}
}

void lookup_run(struct lane *lane, struct session *s, struct namespace *ns,
		const struct skvc_abi_sqe *sqe, const struct skvc_abi_key *parent_key,
		const struct skvc_abi_key *keys, const uint32_t *tokens, struct skvc_abi_cqe *cqe)
{
	uint64_t ttl_ns = sqe->arg ? sqe->arg : lane->config.lease_ttl_ns;
	uint32_t parent = parent_key ? index_find(lane->index, ns->id, parent_key) : BLOCK_NONE;
	uint32_t nvme = 0, gpu = 0;
	int chain = 0, cold = 0; /* cold: the last one had to be read, or was read ahead */
	struct lease *l;

	if (ttl_ns > lane->config.lease_ttl_max_ns)
		ttl_ns = lane->config.lease_ttl_max_ns;
	if (lease_new(lane, s, ns, sqe->count, ttl_ns, &l) < 0) {
		cqe->res = -EAGAIN;
		cqe->reason = SKVC_ABI_REASON_LEASES_FULL;
		return;
	}
	for (uint32_t i = 0; i < sqe->count; i++) {
		const uint32_t *its_tokens = tokens ? tokens + (size_t)i * ns->geom.block_tokens
						    : NULL;
		uint32_t id = index_find(lane->index, ns->id, &keys[i]);

		cqe->reason = id == BLOCK_NONE
				      ? SKVC_ABI_REASON_MISS
				      : matches(lane, ns, id, parent, parent_key || i, its_tokens);
		if (!cqe->reason && !quota_lease_allows(lane, index_block(lane->index, id)))
			cqe->reason = SKVC_ABI_REASON_LEASE_SHARE;
		if (cqe->reason)
			break;
		link_again(lane, id, parent);
		if (index_block(lane->index, id)->model && !chain) {
			if (!sequences_reachable(lane, id)) {
				cqe->reason = SKVC_ABI_REASON_PREFIX_GONE;
				break;
			}
			chain = 1; /* of the next ones it is the same, and this one */
		}
		cold = is_cold(index_block(lane->index, id));
		tier_use(lane, id, i + 1 == sqe->count);
		tier_hold(lane, id);
		l->blocks[l->count++] = id;
		if (index_block(lane->index, id)->state != BLOCK_RESIDENT)
			tier_want(lane, id);
		parent = id;
	}
	plan_look(lane, ns);
	if (leave_to_engine(lane, ns, l))
		cqe->reason = SKVC_ABI_REASON_RECOMPUTE;
	if (l->count == sqe->count && cold)
		tier_ahead(lane, parent);
	count_tiers(lane, l, &nvme, &gpu);
	count_hits(lane, ns, sqe->count, l->count, nvme, gpu);
	cqe->count = l->count;
	if (!l->count) {
		lease_release(lane, l);
		cqe->res = -ENOENT;
		return;
	}
	lease_grant(lane, l, &cqe->lease);
	cqe->pending = nvme;
}

void lookup_touch(struct lane *lane, struct namespace *ns, const struct skvc_abi_key *keys,
		  uint32_t count, struct skvc_abi_cqe *cqe)
{
	/* Last key first, for the reason given in lease_release(). */
	while (count--) {
		uint32_t id = index_find(lane->index, ns->id, &keys[count]);

		if (id == BLOCK_NONE || !lookup_visible(index_block(lane->index, id)))
			continue;
		tier_use(lane, id, 0);
		tier_hold(lane, id);
		tier_unhold(lane, id);
		cqe->count++;
	}
}

void lookup_drop(struct lane *lane, struct namespace *ns, const struct skvc_abi_key *keys,
		 uint32_t count, struct skvc_abi_cqe *cqe)
{
	while (count--) {
		uint32_t id = index_find(lane->index, ns->id, &keys[count]);

		if (id == BLOCK_NONE || !lookup_visible(index_block(lane->index, id)))
			continue;
		tier_forget(lane, id);
		cqe->count++;
	}
}

void lookup_pin(struct lane *lane, struct namespace *ns, const struct skvc_abi_key *keys,
		uint32_t count, uint64_t ttl_ns, struct skvc_abi_cqe *cqe)
{
	uint64_t limit = quota_pins_limit(lane, ns->tenant);

	if (ttl_ns > lane->config.lease_ttl_max_ns)
		ttl_ns = lane->config.lease_ttl_max_ns;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t id = index_find(lane->index, ns->id, &keys[i]);
		struct block *b = id == BLOCK_NONE ? NULL : index_block(lane->index, id);

		if (!b || !lookup_visible(b))
			continue;
		if (ttl_ns && !quota_pin_allows(lane, b, limit)) {
			cqe->reason = SKVC_ABI_REASON_LEASE_SHARE;
			cqe->res = cqe->count ? 0 : -EDQUOT;
			return;
		}
		tier_asked(lane, b); /* or it would end with what read ahead has pinned */
		quota_pin(lane, b, ttl_ns ? lane->now_ns + ttl_ns : 0, 0);
		(void)tier_sort_one(lane, id);
		cqe->count++;
	}
	if (!cqe->count) {
		cqe->res = -ENOENT;
		cqe->reason = SKVC_ABI_REASON_MISS;
	}
}
