/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_ops.c - the fake daemon's rings: operations from memory, and what can be wrong with a completion.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ipc/sqe_check.h"
#include "tests/lib/fake_internal.h"

/* ---- completions ---- */

static void push(struct fake_daemon *d, const struct skvc_abi_cqe *cqe)
{
	const uint64_t one = 1;

	assert(ring_produce_room(&d->cq) > 0); /* the library's credit rule */
	ring_produce(&d->cq, cqe);
	if (ring_publish(&d->cq))
		assert(write(d->cq_fd, &one, sizeof(one)) == sizeof(one));
}

/* The faults that a completion can have. */
static void complete(struct fake_daemon *d, struct skvc_abi_cqe cqe)
{
	struct skvc_abi_cqe stranger = { .user_data = 0xdead00000001u };
	const uint64_t one = 1;

	cqe.elapsed_ns = 1;
	switch (atomic_load(&d->fault)) {
	case FAKE_CQE_STRANGER:
		push(d, &stranger);
		stranger.user_data = skvc_abi_handle(0, 0x7fffffff);
		push(d, &stranger);
		break;
	case FAKE_CQE_TWICE:
		push(d, &cqe);
		break;
	case FAKE_CQE_KIND:
		stranger = cqe;
		stranger.kind = 9;
		push(d, &stranger);
		break;
	case FAKE_CQE_RES:
		cqe.res = 5;
		break;
	case FAKE_CQE_UNLISTED:
		cqe.res = -ENOTTY;
		break;
	case FAKE_CQE_COUNT:
		cqe.count = UINT32_MAX;
		break;
	case FAKE_SOURCE_FREE_STRAY:
		stranger = cqe;
		stranger.kind = SKVC_ABI_CQE_SOURCE_FREE;
		push(d, &stranger);
		break;
	case FAKE_CQ_INDEX:
		__atomic_store_n(&fake_header(d)->cq_tail.value,
				 d->cq.own_value + 4 * d->layout.cq_entries, __ATOMIC_RELEASE);
		assert(write(d->cq_fd, &one, sizeof(one)) == sizeof(one));
		return;
	case FAKE_CLOSED:
		__atomic_store_n(&fake_header(d)->end_reason, SKVC_ABI_REASON_SHUTDOWN,
				 __ATOMIC_RELAXED);
		__atomic_store_n(&fake_header(d)->daemon_state, SKVC_ABI_DAEMON_CLOSED,
				 __ATOMIC_RELEASE);
		return;
	default:
		break;
	}
	push(d, &cqe);
}

/* ---- operations ---- */

static uint8_t *args(struct fake_daemon *d, uint32_t rel)
{
	return d->segment + d->layout.args_off + rel;
}

static struct fake_block *find_block(struct fake_daemon *d, const struct skvc_abi_key *key)
{
	for (uint32_t i = 0; i < BLOCKS_MAX; i++)
		if (d->block[i].raw && !memcmp(&d->block[i].key, key, sizeof(*key)))
			return &d->block[i];
	return NULL;
}

static void set_bit(struct fake_daemon *d, const struct skvc_abi_sqe *sqe, uint32_t idx)
{
	uint64_t *words = (uint64_t *)args(d, sqe->result_rel);

	uint64_t bits = fake_is(d, FAKE_BITMAP_WILD) ? UINT64_MAX : UINT64_C(1) << idx % 64;

	if (sqe->result_bytes)
		__atomic_fetch_or(&words[idx / 64], bits, __ATOMIC_RELAXED);
}

static void set_progress(struct fake_daemon *d, const struct skvc_abi_sqe *sqe, uint64_t segments)
{
	uint64_t *words = (uint64_t *)args(d, sqe->result_rel);

	if (fake_is(d, FAKE_PROGRESS_WILD))
		segments = UINT64_MAX;
	if (sqe->flags & SKVC_ABI_SQE_LAYER_PROGRESS)
		__atomic_store_n(&words[(sqe->count + 63) / 64], segments, __ATOMIC_RELEASE);
}

static struct fake_region *find_region(struct fake_daemon *d, uint32_t handle)
{
	struct fake_region *host = fake_region_find(d, handle, FAKE_HOST);

	return host ? host : fake_region_find(d, handle, FAKE_GPU);
}

static uint8_t *page_of(struct fake_daemon *d, const struct fake_region *r, uint32_t block)
{
	uint8_t *base = r->kind == FAKE_HOST ? d->arena[r->arena].base : d->memory[r->memory].base;

	return base + r->offset + block * r->block_stride;
}

/* An event that is not there, or with pages in host memory: the library must never send one. */
static bool events_are_good(struct fake_daemon *d, const struct skvc_abi_sqe *sqe,
			    const struct fake_region *r)
{
	uint32_t ready = skvc_abi_ready_event(sqe->arg), done = skvc_abi_done_event(sqe->arg);

	if (sqe->arg && r->kind != FAKE_GPU)
		return false;
	return (!ready || fake_region_find(d, ready, FAKE_EVENT)) &&
	       (!done || fake_region_find(d, done, FAKE_EVENT));
}

static uint32_t u32_at(const uint8_t *at, uint32_t idx)
{
	uint32_t v;

	memcpy(&v, at + idx * sizeof(v), sizeof(v));
	return v;
}

static struct skvc_abi_key key_at(const uint8_t *at, uint32_t idx)
{
	struct skvc_abi_key key;

	memcpy(&key, at + idx * sizeof(key), sizeof(key));
	return key;
}

static bool store_one(struct fake_daemon *d, const struct fake_region *r,
		      const struct skvc_abi_key *key, uint32_t page)
{
	uint64_t bytes = d->ns[r->ns].block_bytes;

	for (uint32_t i = 0; i < BLOCKS_MAX; i++) {
		struct fake_block *b = &d->block[i];

		if (b->raw)
			continue;
		b->raw = malloc(bytes);
		assert(b->raw);
		memcpy(b->raw, page_of(d, r, page), bytes);
		b->bytes = bytes;
		b->key = *key;
		return true;
	}
	return false;
}

static void op_store(struct fake_daemon *d, const struct skvc_abi_sqe *sqe,
		     const struct sqe_args *a)
{
	const struct fake_region *r = find_region(d, sqe->region);
	struct skvc_abi_cqe cqe = { .user_data = sqe->user_data };
	const uint8_t *list = args(d, sqe->args_rel);

	if (!r || !events_are_good(d, sqe, r)) {
		cqe.res = -EINVAL;
		cqe.reason = r ? SKVC_ABI_REASON_BAD_EVENT : SKVC_ABI_REASON_BAD_REGION;
		complete(d, cqe);
		return;
	}
	for (uint32_t i = 0; i < sqe->count; i++) {
		struct skvc_abi_key key = key_at(list + a->keys_off, i);

		if (fake_is(d, FAKE_PARTIAL) && !i) {
			cqe.reason = SKVC_ABI_REASON_POOL_FULL;
			continue;
		}
		if (find_block(d, &key))
			cqe.reason = SKVC_ABI_REASON_DUPLICATE;
		else if (!store_one(d, r, &key, u32_at(list + a->blocks_off, i)))
			continue;
		set_bit(d, sqe, i);
		cqe.count++;
	}
	cqe.raw_bytes = cqe.count * d->ns[r->ns].block_bytes;
	cqe.stored_bytes = cqe.raw_bytes;
	if (!fake_is(d, FAKE_NO_SOURCE_FREE)) {
		struct skvc_abi_cqe free_cqe = { .user_data = sqe->user_data };

		free_cqe.kind = SKVC_ABI_CQE_SOURCE_FREE;
		push(d, &free_cqe);
		if (fake_is(d, FAKE_SOURCE_FREE_TWICE))
			push(d, &free_cqe);
	}
	complete(d, cqe);
}

static void op_lookup(struct fake_daemon *d, const struct skvc_abi_sqe *sqe,
		      const struct sqe_args *a)
{
	const uint8_t *list = args(d, sqe->args_rel);
	struct skvc_abi_cqe cqe = { .user_data = sqe->user_data };
	struct skvc_abi_lease_word *word;
	uint32_t idx = 0;

	while (idx < LEASES_MAX && d->lease[idx].generation)
		idx++;
	assert(idx < LEASES_MAX);
	for (uint32_t i = 0; i < sqe->count && i < LEASE_BLOCKS_MAX; i++) {
		struct skvc_abi_key key = key_at(list + a->keys_off, i);
		struct fake_block *b = find_block(d, &key);

		if (!b)
			break;
		d->lease[idx].block[i] = (uint32_t)(b - d->block);
		cqe.count++;
	}
	if (!cqe.count) {
		cqe.reason = SKVC_ABI_REASON_MISS;
		complete(d, cqe);
		return;
	}
	d->lease[idx].generation = ++d->lease_generation;
	d->lease[idx].count = cqe.count;
	/* The word's index is the low half of the handle's; the upper half is the daemon's own business. */
	cqe.lease = skvc_abi_handle(0x50000 | idx, d->lease[idx].generation);
	word = (struct skvc_abi_lease_word *)(d->segment + d->layout.leases_off) + idx;
	__atomic_store_n(&word->blocks_hit, cqe.count, __ATOMIC_RELAXED);
	__atomic_store_n(&word->blocks_ready, cqe.count, __ATOMIC_RELAXED);
	__atomic_store_n(&word->blocks_lost, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&word->deadline_ns, 12345, __ATOMIC_RELAXED);
	__atomic_store_n(&word->generation, d->lease[idx].generation, __ATOMIC_RELEASE);
	complete(d, cqe);
}

static struct fake_lease *find_lease(struct fake_daemon *d, uint64_t handle)
{
	uint32_t idx = skvc_abi_lease_word_index(handle);

	if (idx >= LEASES_MAX || !d->lease[idx].generation ||
	    d->lease[idx].generation != skvc_abi_handle_generation(handle))
		return NULL;
	return &d->lease[idx];
}

static void op_load(struct fake_daemon *d, const struct skvc_abi_sqe *sqe, const struct sqe_args *a)
{
	const struct fake_region *r = find_region(d, sqe->region);
	const struct fake_lease *lease = find_lease(d, sqe->lease);
	const uint8_t *list = args(d, sqe->args_rel);
	struct skvc_abi_cqe cqe = { .user_data = sqe->user_data };

	if (!r || !lease || sqe->first + sqe->count > lease->count) {
		cqe.res = r ? -ESTALE : -EINVAL;
		cqe.reason = r ? SKVC_ABI_REASON_LEASE_GONE : SKVC_ABI_REASON_BAD_REGION;
		complete(d, cqe);
		return;
	}
	if (!events_are_good(d, sqe, r)) {
		cqe.res = -EINVAL;
		cqe.reason = SKVC_ABI_REASON_BAD_EVENT;
		complete(d, cqe);
		return;
	}
	if (skvc_abi_done_event(sqe->arg))
		atomic_fetch_add(&d->events_recorded, 1);
	for (uint32_t i = 0; i < sqe->count; i++) {
		const struct fake_block *b = &d->block[lease->block[sqe->first + i]];

		if (!b->raw || (fake_is(d, FAKE_PARTIAL) && !i)) {
			cqe.res = -ENODATA;
			cqe.reason = SKVC_ABI_REASON_CORRUPT;
			continue;
		}
		memcpy(page_of(d, r, u32_at(list + a->blocks_off, i)), b->raw, b->bytes);
		set_bit(d, sqe, i);
		cqe.count++;
	}
	set_progress(d, sqe, d->ns[r->ns].segments_count);
	complete(d, cqe);
}

static void op_keys(struct fake_daemon *d, const struct skvc_abi_sqe *sqe, const struct sqe_args *a)
{
	const uint8_t *list = args(d, sqe->args_rel);
	struct skvc_abi_cqe cqe = { .user_data = sqe->user_data };

	for (uint32_t i = 0; i < sqe->count; i++) {
		struct skvc_abi_key key = key_at(list + a->keys_off, i);
		struct fake_block *b = find_block(d, &key);

		if (!b)
			continue;
		cqe.count++;
		if (sqe->opcode == SKVC_ABI_OP_DROP) {
			free(b->raw);
			b->raw = NULL;
		}
	}
	complete(d, cqe);
}

static void op_release(struct fake_daemon *d, const struct skvc_abi_sqe *sqe)
{
	struct fake_lease *lease = find_lease(d, sqe->lease);
	struct skvc_abi_cqe cqe = { .user_data = sqe->user_data };
	struct skvc_abi_lease_word *word;

	if (!lease) {
		cqe.res = -ESTALE;
		cqe.reason = SKVC_ABI_REASON_LEASE_GONE;
	} else {
		word = (struct skvc_abi_lease_word *)(d->segment + d->layout.leases_off) +
		       (lease - d->lease);
		__atomic_store_n(&word->generation, 0, __ATOMIC_RELEASE);
		lease->generation = 0;
	}
	complete(d, cqe);
}

static void op_abort(struct fake_daemon *d, const struct skvc_abi_sqe *sqe)
{
	struct skvc_abi_cqe cqe = { .user_data = sqe->user_data };

	for (uint32_t i = 0; i < d->held_count; i++) {
		struct skvc_abi_cqe target = { .user_data = sqe->arg, .res = -ECANCELED };

		if (d->held[i].user_data != sqe->arg)
			continue;
		target.reason = SKVC_ABI_REASON_ABORTED;
		complete(d, target);
		d->held[i] = d->held[--d->held_count];
		complete(d, cqe);
		return;
	}
	cqe.res = -ENOENT;
	cqe.reason = SKVC_ABI_REASON_NO_SUCH_JOB;
	complete(d, cqe);
}

/* Exactly what the real intake demands; a refusal here is a bug of the library. */
static bool entry_is_good(struct fake_daemon *d, const struct skvc_abi_sqe *sqe, struct sqe_args *a)
{
	uint32_t idx = sqe->ns - fake_handle_base(d);
	uint32_t tokens = sqe->ns && idx < d->ns_count ? d->ns[idx].block_tokens : 1;

	if (sqe_check(sqe, d->layout.args_bytes) || (sqe->ns && idx >= d->ns_count))
		return false;
	if (sqe_check_args(sqe, tokens, d->layout.args_bytes, a))
		return false;
	for (uint32_t i = 0; i < a->keys_count; i++) {
		struct skvc_abi_key key = key_at(args(d, sqe->args_rel) + a->keys_off, i);

		if (sqe_check_key(&key))
			return false;
	}
	return true;
}

static void run_entry(struct fake_daemon *d, const struct skvc_abi_sqe *sqe)
{
	struct sqe_args a;

	if (!entry_is_good(d, sqe, &a)) {
		struct skvc_abi_cqe cqe = { .user_data = sqe->user_data, .res = -EINVAL };

		atomic_fetch_add(&d->bad_entries, 1);
		complete(d, cqe);
		return;
	}
	switch (sqe->opcode) {
	case SKVC_ABI_OP_LOOKUP:
		op_lookup(d, sqe, &a);
		break;
	case SKVC_ABI_OP_LOAD:
		op_load(d, sqe, &a);
		break;
	case SKVC_ABI_OP_STORE:
		op_store(d, sqe, &a);
		break;
	case SKVC_ABI_OP_RELEASE:
		op_release(d, sqe);
		break;
	case SKVC_ABI_OP_TOUCH:
	case SKVC_ABI_OP_DROP:
	case SKVC_ABI_OP_PIN:
		op_keys(d, sqe, &a);
		break;
	case SKVC_ABI_OP_ABORT:
		op_abort(d, sqe);
		break;
	default:
		complete(d, (struct skvc_abi_cqe){ .user_data = sqe->user_data });
	}
}

bool fake_serve_ring(struct fake_daemon *d)
{
	bool worked = false;
	int ready;

	if (!d->segment || atomic_load(&d->stall))
		return false;
	if (!atomic_load(&d->hold)) {
		/* Releasing runs what was held, in order. */
		for (uint32_t i = 0; i < d->held_count; i++)
			run_entry(d, &d->held[i]);
		worked = d->held_count > 0;
		d->held_count = 0;
	}
	ready = ring_consume_ready(&d->sq);
	assert(ready >= 0);
	for (int i = 0; i < ready; i++) {
		struct skvc_abi_sqe sqe;

		ring_consume(&d->sq, &sqe);
		ring_consume_done(&d->sq);
		atomic_fetch_add(&d->taken, 1);
		if (fake_is(d, FAKE_SQ_INDEX))
			__atomic_store_n(&fake_header(d)->sq_head.value, d->sq.own_value + 1000,
					 __ATOMIC_RELEASE);
		if (atomic_load(&d->hold) && sqe.opcode != SKVC_ABI_OP_ABORT) {
			assert(d->held_count < HELD_MAX);
			d->held[d->held_count++] = sqe;
			set_progress(d, &sqe, 1);
		} else {
			run_entry(d, &sqe);
		}
	}
	return worked || ready > 0;
}
